//! The index of a round, kept up with the log: what there is can be looked up while a node runs, and after.
//!
//! It lags behind the log by up to a second, since each update is synced; after a crash it is made again.

use std::path::Path;
use std::time::Instant;

use fedprune_federation::ballot::BallotHeader;
use fedprune_federation::machine::{Machine, Record, claims};
use fedprune_federation::statement::Received;
use fedprune_federation::wire::Content;
use fedprune_federation::{Height, MemberIndex};
use fedprune_mask::Digest;

use super::config::TRAFFIC_INTERVAL;
use super::error::NodeError;
use crate::network::Split;
use crate::storage::blobs::BlobStore;
use crate::storage::index::{Announced, Found, Index, IndexError, Place, StatementKey, Update};
use crate::storage::wal::Position;

/// Changes that are kept before they are written.
const MAX_PENDING: usize = 1 << 14;

/// One change.
enum Change {
    Statement(StatementKey, Position),
    /// Whose size is what its header says.
    Body(Announced),
    /// Whose size the store knows.
    Complete {
        digest: Digest,
        member: MemberIndex,
        height: Height,
    },
    Certificate(Height),
    Evidence(Vec<u8>),
}

/// The index, and what is not in it yet.
pub(super) struct Catalogue {
    index: Option<Index>,
    pending: Vec<Change>,
    /// Bytes sent and received that the counters have already.
    counted: (Split, Split),
    written: Instant,
}

/// What [`Catalogue::open`] found.
pub(super) struct Opened {
    pub(super) catalogue: Catalogue,
    /// Bytes sent and received by earlier processes.
    pub(super) earlier: (Split, Split),
    /// What the operator should know.
    pub(super) notice: Option<String>,
}

impl Catalogue {
    /// Opens the index of a round.
    pub(super) fn open(
        path: &Path,
        records: &[(Position, Record)],
        machine: &Machine,
        blobs: &BlobStore,
    ) -> Result<Opened, NodeError> {
        let rebuild = |update: &mut Update<'_>| -> Result<(), IndexError> {
            for (position, record) in records {
                for change in changes(*position, record) {
                    put(update, &change, machine, blobs)?;
                }
            }
            Ok(())
        };
        let (index, found) = Index::open(path, rebuild)?;
        let summary = index.summary()?;
        let counter = |name: &str| summary.counters.get(name).copied().unwrap_or(0);
        let split = |total: &str| {
            let streams = Split::from_names(|of| counter(&format!("{total}.{of}")));
            Split { framing: counter(total).saturating_sub(streams.total()), ..streams }
        };
        let earlier = (split("sent_bytes"), split("received_bytes"));
        let notice = match found {
            Found::Damaged { moved_to, why } => Some(format!(
                "the index was damaged ({why}) and is made again; the old one is `{}`",
                moved_to.display()
            )),
            Found::Closed | Found::New | Found::LeftOpen => None,
        };
        let catalogue = Self {
            index: Some(index),
            pending: Vec::new(),
            counted: <(Split, Split)>::default(),
            written: Instant::now(),
        };
        Ok(Opened { catalogue, earlier, notice })
    }

    /// Notes a record that was appended to the log.
    pub(super) fn note(&mut self, position: Position, record: &Record) {
        // what does not fit is in the log, and in the index when it is made again
        if self.pending.len() < MAX_PENDING {
            self.pending.extend(changes(position, record));
        }
    }

    /// Writes what was noted; bytes sent and received alone wait a while, unless nothing comes after. Returns what the
    /// operator should know; without its index a node goes on.
    pub(super) fn write(
        &mut self,
        traffic: (Split, Split),
        last: bool,
        machine: &Machine,
        blobs: &BlobStore,
    ) -> Option<String> {
        let index = self.index.as_mut()?;
        let more = (traffic.0 - self.counted.0, traffic.1 - self.counted.1);
        let waits = more == <(Split, Split)>::default() || (!last && self.written.elapsed() < TRAFFIC_INTERVAL);
        if self.pending.is_empty() && waits {
            return None;
        }
        self.written = Instant::now();
        let pending = std::mem::take(&mut self.pending);
        let written = index.update(|update| {
            for change in &pending {
                put(update, change, machine, blobs)?;
            }
            for (total, split) in [("sent_bytes", more.0), ("received_bytes", more.1)] {
                update.add_to_counter(total, split.total())?;
                // framing is what is left of the total
                for (of, bytes) in split.by_name().into_iter().filter(|(of, bytes)| *bytes > 0 && *of != "framing") {
                    update.add_to_counter(&format!("{total}.{of}"), bytes)?;
                }
            }
            Ok::<_, IndexError>(())
        });
        match written {
            Ok(()) => {
                self.counted = traffic;
                None
            }
            Err(error) => {
                self.index = None;
                Some(format!("the index is not kept any more: {}", super::model::chain(&error)))
            }
        }
    }

    /// Closes the index, so that it need not be made again.
    pub(super) fn close(&mut self) {
        if let Some(index) = self.index.take() {
            let _ = index.close(); // it is made again then
        }
    }
}

/// What a record adds to the index.
fn changes(position: Position, record: &Record) -> Vec<Change> {
    match record {
        Record::Said(bytes) | Record::Heard(bytes) => message_changes(position, bytes),
        Record::Held(member, digest) => {
            vec![Change::Complete { digest: *digest, member: *member, height: position.height }]
        }
        _ => Vec::new(),
    }
}

fn message_changes(position: Position, bytes: &[u8]) -> Vec<Change> {
    let Ok((content, height, member)) = claims(bytes) else { return Vec::new() };
    let mut changes = Vec::new();
    match (content, height, member) {
        (Content::Settled, Some(height), _) => changes.push(Change::Certificate(height)),
        (Content::Evidence, ..) => changes.push(Change::Evidence(bytes.to_vec())),
        (_, Some(height), Some(member)) => {
            let key = StatementKey { kind: content as u8, height, member, digest: Digest::of(bytes) };
            changes.push(Change::Statement(key, position));
            if let (Content::BallotHeader, Ok(header)) = (content, Received::<BallotHeader>::decode(bytes)) {
                let announced = header.claimed();
                changes.push(Change::Body(Announced {
                    digest: announced.body,
                    member,
                    size_bytes: announced.body_bytes,
                    height,
                    complete: false,
                }));
            }
        }
        _ => {}
    }
    changes
}

fn put(update: &mut Update<'_>, change: &Change, machine: &Machine, blobs: &BlobStore) -> Result<(), IndexError> {
    match change {
        Change::Statement(key, position) => update.put_statement(key, &Place::Log(*position)),
        Change::Body(announced) => update.put_body(announced),
        Change::Complete { digest, member, height } => {
            let size_bytes = blobs.size_bytes(digest).unwrap_or(0);
            update.put_body(&Announced {
                digest: *digest,
                member: *member,
                size_bytes,
                height: *height,
                complete: true,
            })
        }
        Change::Certificate(height) => match machine.known(*height).as_ref().and_then(|known| known.settled()) {
            Some(settled) => update.put_certificate(*height, &settled.certificate().encode()),
            None => Ok(()),
        },
        Change::Evidence(bytes) => update.put_evidence(&Digest::of(bytes), bytes),
    }
}
