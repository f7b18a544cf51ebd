//! Bodies on their way here: what the scheduler asks for is asked for, what arrives is verified and stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use fedprune_federation::{Height, MemberIndex};
use fedprune_mask::Digest;
use tokio::sync::mpsc;

use super::error::NodeError;
use super::work::{ChunkFault, Work};
use crate::network::{AskError, ChunkAnswer, Network};
use crate::storage::blobs::{AcceptError, BlobError, BlobStore, Partial};
use crate::transfer::{Body, Downloads, Event, Outcome, Request};

/// How long those are asked who should have a body, before everybody is.
const ONLY_HOLDERS_MS: u64 = 2_000;

/// Bodies on their way.
pub(super) struct Fetching {
    downloads: Downloads,
    blobs: Arc<BlobStore>,
    network: Network,
    work: mpsc::Sender<Work>,
    partials: BTreeMap<Body, Arc<Mutex<Option<Partial>>>>,
    heights: BTreeMap<Digest, BTreeSet<Height>>,
    /// Bodies that only holders were asked for, since when.
    narrow: BTreeMap<Body, Option<u64>>,
    members: usize,
    wake_at_ms: Option<u64>,
    failed: Option<NodeError>,
}

impl Fetching {
    pub(super) fn new(blobs: Arc<BlobStore>, network: Network, work: mpsc::Sender<Work>, me: MemberIndex) -> Self {
        Self {
            downloads: Downloads::new(me),
            blobs,
            network,
            work,
            partials: BTreeMap::new(),
            heights: BTreeMap::new(),
            narrow: BTreeMap::new(),
            members: 0,
            wake_at_ms: None,
            failed: None,
        }
    }

    /// Fetch this body; `sources` should have it.
    pub(super) fn want(
        &mut self,
        height: Height,
        digest: Digest,
        size_bytes: u64,
        sources: &[MemberIndex],
        members: usize,
    ) {
        self.members = members;
        let body = Body { digest, size_bytes };
        self.heights.entry(digest).or_default().insert(height);
        if !self.partials.contains_key(&body) {
            // what an earlier process fetched is hashed again
            let begun = tokio::task::block_in_place(|| self.blobs.begin(digest, size_bytes, size_bytes));
            let partial = match begun {
                Ok(partial) => partial,
                // a lying header: the body is here or on its way under its true size, or there is none
                Err(
                    BlobError::Held(_) | BlobError::Arriving(_) | BlobError::TooLarge { .. } | BlobError::Quota { .. },
                ) => {
                    return;
                }
                Err(error) => {
                    self.failed.get_or_insert(error.into());
                    return;
                }
            };
            let held: Vec<u32> = partial.held().collect();
            self.partials.insert(body, Arc::new(Mutex::new(Some(partial))));
            // earlier heights first
            let priority = u32::MAX.saturating_sub(height.0);
            match self.downloads.want(body, priority, held) {
                Ok(true) => self.finish(body),
                Ok(false) => drop(self.narrow.insert(body, None)),
                // sizes are bounded by the layout, and bodies by members and heights: asked for again by the machine
                Err(_) => drop(self.partials.remove(&body)),
            }
        }
        self.downloads.sources(body, sources);
    }

    pub(super) fn connected(&mut self, member: MemberIndex, connected: bool) {
        if connected {
            self.downloads.connected(member);
        }
    }

    pub(super) fn next_wake_ms(&self) -> Option<u64> {
        self.wake_at_ms
    }

    /// Sends what the scheduler wants asked.
    pub(super) fn pump(&mut self, now_ms: u64) {
        let mut widen = Vec::new();
        for (body, since) in &mut self.narrow {
            let since = *since.get_or_insert(now_ms);
            if now_ms.saturating_sub(since) >= ONLY_HOLDERS_MS {
                widen.push(*body);
            }
        }
        let everybody: Vec<MemberIndex> =
            (0..self.members).filter_map(|member| u16::try_from(member).ok()).map(MemberIndex).collect();
        for body in widen {
            self.narrow.remove(&body);
            self.downloads.sources(body, &everybody);
        }
        let next = self.downloads.next(now_ms);
        for request in next.ask {
            let (network, work) = (self.network.clone(), self.work.clone());
            tokio::spawn(async move {
                let result = network.fetch_chunk(request.member, request.body.digest, request.chunk).await;
                let _ = work.send(Work::Chunk { request, result }).await;
            });
        }
        let of_narrow = self.narrow.values().flatten().map(|since| since.saturating_add(ONLY_HOLDERS_MS)).min();
        self.wake_at_ms = match (self.downloads.wake_at_ms(now_ms), of_narrow) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Whether half of a body is here, or all.
    pub(super) fn is_half_here(&self, request: &Request) -> bool {
        let progress = self.downloads.progress(&request.body);
        progress.is_none_or(|progress| progress.missing.saturating_mul(2) <= progress.chunks as usize)
    }

    /// Takes an answer.
    pub(super) fn arrived(&mut self, request: Request, result: Result<ChunkAnswer, AskError>, now_ms: u64) {
        let outcome = match result {
            Ok(ChunkAnswer::Here(bytes)) => {
                if let Some(partial) = self.partials.get(&request.body) {
                    let (partial, work) = (Arc::clone(partial), self.work.clone());
                    tokio::task::spawn_blocking(move || {
                        let result = accept(&partial, request.chunk, &bytes);
                        let _ = work.blocking_send(Work::Accepted { request, result });
                    });
                } else {
                    // a second answer, to what another gave first
                    self.downloads.answered(&request, Outcome::Verified, now_ms);
                }
                return;
            }
            Ok(ChunkAnswer::NotHeld) => Outcome::NotHeld,
            Ok(ChunkAnswer::Busy) | Err(AskError::Busy(_)) => Outcome::Busy,
            Err(AskError::Invalid { .. }) => Outcome::Corrupt,
            Err(_) => Outcome::Failed,
        };
        self.downloads.answered(&request, outcome, now_ms);
    }

    /// Notes what came of verifying a chunk. Returns what the operator should know.
    pub(super) fn accepted(
        &mut self,
        request: Request,
        result: Result<bool, ChunkFault>,
        now_ms: u64,
    ) -> Result<Option<String>, NodeError> {
        let outcome = match result {
            Ok(_) => Outcome::Verified,
            Err(ChunkFault::Corrupt) => Outcome::Corrupt,
            Err(ChunkFault::Store(error)) => return Err(error),
        };
        match self.downloads.answered(&request, outcome, now_ms) {
            Some(Event::Completed(body)) => {
                self.finish(body);
                Ok(None)
            }
            Some(Event::Banned { member, body, size_proven }) => {
                // where the size is not proven, whoever announced it may have lied instead
                let who =
                    if size_proven { format!("member {member} sent") } else { "somebody announced or sent".to_owned() };
                Ok(Some(format!("{who} a part of ballot {} that is not of it; others are asked", body.digest.short())))
            }
            None => Ok(None),
        }
    }

    fn finish(&mut self, body: Body) {
        self.narrow.remove(&body);
        let Some(partial) = self.partials.remove(&body) else { return };
        let work = self.work.clone();
        tokio::task::spawn_blocking(move || {
            let partial = partial.lock().unwrap_or_else(PoisonError::into_inner).take();
            let result = match partial {
                Some(partial) => partial.finish().map(|_| ()).map_err(NodeError::from),
                None => Ok(()),
            };
            let _ = work.blocking_send(Work::Complete { body: body.digest, result });
        });
    }

    /// A body is complete: of which heights it was wanted.
    pub(super) fn complete(&mut self, body: Digest) -> Vec<Height> {
        self.heights.remove(&body).into_iter().flatten().collect()
    }

    /// What went wrong where nothing could be returned.
    pub(super) fn take_failure(&mut self) -> Option<NodeError> {
        self.failed.take()
    }
}

fn accept(partial: &Mutex<Option<Partial>>, chunk: u32, bytes: &[u8]) -> Result<bool, ChunkFault> {
    let mut partial = partial.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(partial) = partial.as_mut() else { return Ok(false) };
    match partial.accept(chunk, bytes) {
        Ok(_) => Ok(true),
        Err(AcceptError::File(error)) => Err(ChunkFault::Store(error.into())),
        Err(_) => Err(ChunkFault::Corrupt),
    }
}
