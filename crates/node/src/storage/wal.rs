//! What the node said and heard, in order, on disk before it acts on it.
//!
//! `wal/0000.wal` is the segment of height 0, and so on:
//!
//! ```text
//! segment: "fedprune wal 1\n\0", height u32, marker 8 bytes, check 16 bytes, records
//! record:  marker 8 bytes, payload length u32, batch start u64, check 16 bytes, payload
//! check:   the first 16 bytes of BLAKE3("fedprune wal segment v1\0" ‖ height ‖ marker), or of
//!          BLAKE3("fedprune wal record v1\0" ‖ marker ‖ height ‖ offset of the record ‖ batch start ‖ length ‖ payload)
//! ```
//! Integers are little-endian. [`Wal::append`] buffers, [`Wal::sync`] writes what was appended (a *batch*) and
//! syncs it; only then may the node act on it.
//!
//! When a log is opened, damage is told from a torn write:
//! * Nothing intact follows, or only records of the damaged record's own batch: a crash before the batch was
//!   synced leaves just that (pages reach the disk in any order). The tail is dropped, and a [`Notice`] says so.
//! * A record of a later batch follows: that batch was written after the damaged one had been synced. The disk
//!   lost what the node relied on, and opening fails rather than forget it.
//!
//! Damage to the last batch cannot be told from a torn write; a node therefore asks the others for its own
//! statements before it signs anything. To find what follows a damaged length, the marker is searched for: it
//! is random and never leaves this disk, so no peer can place records inside its messages.
//!
//! After a failed write or sync nobody knows what is on the disk, and a second sync may report success without
//! having written anything (the system forgets pages that it failed to write). The log is then *poisoned*:
//! every later call fails, and the node must stop.

mod disk;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use fedprune_federation::Height;

pub use disk::{Disk, Folder};

use super::fs::FileError;
use super::limits::{MAX_BUFFERED_BYTES, MAX_RECORD_BYTES, MAX_SEGMENT_BYTES, MAX_SEGMENTS};
use scan::{HEADER_BYTES, RECORD_PREFIX_BYTES, Scanned};

/// A log.
#[derive(Debug)]
pub struct Wal<D = Folder> {
    disk: D,
    segments: BTreeMap<u32, Segment>,
    /// Bytes of `pending` of all segments.
    buffered_bytes: usize,
    /// The first failure.
    poisoned: Option<String>,
}

/// One height.
#[derive(Debug)]
struct Segment {
    marker: [u8; 8],
    /// Up to here it is synced; a batch starts here. 0 when there is no file yet.
    synced_bytes: u64,
    /// Up to here it is written.
    written_bytes: u64,
    /// What follows the written part.
    pending: Vec<u8>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Its segment.
    pub height: Height,
    /// Bytes before it in the segment's file.
    pub offset_bytes: u64,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub position: Position,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// A torn tail that was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The segment.
    pub height: Height,
    /// Bytes that stayed.
    pub kept_bytes: u64,
    /// Bytes that were dropped.
    pub dropped_bytes: u64,
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Notice { height, kept_bytes, dropped_bytes } = self;
        let name = file_name(height.0);
        write!(
            f,
            "the last {dropped_bytes} bytes of `{name}` were not completely written and are dropped ({kept_bytes} bytes stay)"
        )
    }
}

/// Why a log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refuses.
    #[error("cannot {action} `{name}` of the log")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The segment's file, or the folder.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The folder cannot be made.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// An earlier write or sync failed.
    #[error("the log takes nothing more, because a write failed: {0}; check the disk and start the node again")]
    Poisoned(String),
    /// Synced records are damaged.
    #[error(
        "`{name}` is damaged at byte {offset_bytes}, and intact records follow: the disk lost what the node relied on; \
         restore this round's folder from a copy, or move it away and start the node again, which then asks the other \
         members for what it signed"
    )]
    Damaged {
        /// The segment's file.
        name: String,
        /// Where the damage begins.
        offset_bytes: u64,
    },
    /// Not a segment of this height.
    #[error(
        "`{0}` does not begin as a segment of this height does: it is damaged or another file; restore this round's \
         folder from a copy, or move it away and start the node again, which then asks the other members for what it \
         signed"
    )]
    NotASegment(String),
    /// A record that is too large.
    #[error("a record of {0} bytes is more than the {MAX_RECORD_BYTES} that the log takes")]
    RecordTooLarge(usize),
    /// A segment that is full.
    #[error("`{0}` is full: a height has at most {MAX_SEGMENT_BYTES} bytes")]
    SegmentFull(String),
    /// Too many heights.
    #[error("the log has more than {MAX_SEGMENTS} segments; no round has as many heights")]
    TooManySegments,
    /// Nothing there.
    #[error("the log has no record at byte {offset_bytes} of `{name}`")]
    NoRecord {
        /// The segment's file.
        name: String,
        /// Where it should begin.
        offset_bytes: u64,
    },
}

/// The file of a height.
pub(super) fn file_name(height: u32) -> String {
    format!("{height:04}.wal")
}

fn failed(action: &'static str, height: u32) -> impl FnOnce(io::Error) -> WalError {
    move |source| WalError::Io { action, name: file_name(height), source }
}

impl Wal<Folder> {
    /// Opens the log in a folder, which is made if there is none; drops torn tails and syncs the rest.
    ///
    /// # Errors
    /// [`WalError::Damaged`] and [`WalError::NotASegment`] when synced records are lost; nothing is changed then.
    pub fn open(folder: &Path) -> Result<(Self, Vec<Notice>), WalError> {
        super::fs::create_folder(folder)?;
        Self::open_disk(Folder::new(folder.to_owned()))
    }

    /// The file of a segment.
    pub fn path(&self, height: Height) -> PathBuf {
        self.disk.path(height.0)
    }
}

impl<D: Disk> Wal<D> {
    /// As [`Wal::open`], on any disk.
    ///
    /// # Errors
    /// As [`Wal::open`].
    pub fn open_disk(mut disk: D) -> Result<(Self, Vec<Notice>), WalError> {
        let mut lengths = BTreeMap::new();
        let listing = |source| WalError::Io { action: "list the folder of", name: "wal".to_owned(), source };
        for (height, length) in disk.segments().map_err(listing)? {
            lengths.insert(height, length);
            if lengths.len() > MAX_SEGMENTS {
                return Err(WalError::TooManySegments);
            }
        }
        // All are read before any is changed: a log that cannot be used is left as it was.
        let mut found = Vec::new();
        for (height, length) in lengths {
            if length > MAX_SEGMENT_BYTES {
                return Err(WalError::SegmentFull(file_name(height)));
            }
            found.push((height, length, scan::segment(&mut disk, height, length)?));
        }
        let (mut segments, mut notices) = (BTreeMap::new(), Vec::new());
        for (height, length, Scanned { marker, intact_bytes }) in found {
            if intact_bytes < length {
                disk.truncate(height, intact_bytes).map_err(failed("truncate", height))?;
                let (kept_bytes, dropped_bytes) = (intact_bytes, length.saturating_sub(intact_bytes));
                notices.push(Notice { height: Height(height), kept_bytes, dropped_bytes });
            }
            // A process that died between writing and syncing left records that the system still holds in
            // memory: they are acted on from here, so they must not be lost with the power.
            disk.sync(height).map_err(failed("sync", height))?;
            let (synced_bytes, written_bytes) = (intact_bytes, intact_bytes);
            segments.insert(height, Segment { marker, synced_bytes, written_bytes, pending: Vec::new() });
        }
        disk.sync_folder().map_err(listing)?;
        Ok((Self { disk, segments, buffered_bytes: 0, poisoned: None }, notices))
    }

    /// Adds a record, in memory. It is on the disk after the next [`Wal::sync`].
    ///
    /// # Errors
    /// [`WalError::RecordTooLarge`], [`WalError::SegmentFull`], [`WalError::TooManySegments`], with the log as it
    /// was; [`WalError::Poisoned`] and [`WalError::Io`], and the log is of no more use.
    pub fn append(&mut self, height: Height, payload: &[u8]) -> Result<Position, WalError> {
        self.check()?;
        if payload.len() > MAX_RECORD_BYTES {
            return Err(WalError::RecordTooLarge(payload.len()));
        }
        let known = self.segments.len();
        let segment = match self.segments.entry(height.0) {
            std::collections::btree_map::Entry::Occupied(segment) => segment.into_mut(),
            std::collections::btree_map::Entry::Vacant(_) if known == MAX_SEGMENTS => {
                return Err(WalError::TooManySegments);
            }
            std::collections::btree_map::Entry::Vacant(place) => place.insert(Segment {
                marker: scan::new_marker(),
                synced_bytes: 0,
                written_bytes: 0,
                pending: Vec::new(),
            }),
        };
        // A segment without a file gets its header, synced, before its first record.
        let offset_bytes = segment.written_bytes.max(HEADER_BYTES) + segment.pending.len() as u64;
        let record_bytes = (RECORD_PREFIX_BYTES + payload.len()) as u64;
        if offset_bytes + record_bytes > MAX_SEGMENT_BYTES {
            return Err(WalError::SegmentFull(file_name(height.0)));
        }
        let batch_start = segment.synced_bytes.max(HEADER_BYTES);
        scan::write_record(&mut segment.pending, segment.marker, height.0, offset_bytes, batch_start, payload);
        self.buffered_bytes += record_bytes as usize;
        if self.buffered_bytes > MAX_BUFFERED_BYTES {
            self.poisoning(Self::write_pending)?;
        }
        Ok(Position { height, offset_bytes })
    }

    /// Puts everything that was appended on the disk; when it returns, that survives a power failure.
    ///
    /// # Errors
    /// [`WalError::Io`], and from then on [`WalError::Poisoned`].
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check()?;
        self.poisoning(|log| {
            log.write_pending()?;
            for (height, segment) in &mut log.segments {
                if segment.synced_bytes < segment.written_bytes {
                    log.disk.sync(*height).map_err(failed("sync", *height))?;
                    segment.synced_bytes = segment.written_bytes;
                }
            }
            Ok(())
        })
    }

    /// All records on the disk, by height, then in the order in which they were appended.
    ///
    /// Yields an error, and then nothing more, when a record is not as it was when the log was opened.
    pub fn entries(&mut self) -> Entries<'_, D> {
        self.entries_from(Height(0))
    }

    /// As [`Wal::entries`], from a height on.
    pub fn entries_from(&mut self, height: Height) -> Entries<'_, D> {
        Entries { next: Some(Position { height, offset_bytes: HEADER_BYTES }), log: self }
    }

    /// The payload of the record at `position`, as [`Wal::append`] or an [`Entry`] told it; it must be written out.
    ///
    /// # Errors
    /// [`WalError::NoRecord`] when none is there, [`WalError::Io`].
    pub fn read(&mut self, position: Position) -> Result<Vec<u8>, WalError> {
        let Position { height, offset_bytes } = position;
        let none = || WalError::NoRecord { name: file_name(height.0), offset_bytes };
        let segment = self.segments.get(&height.0).ok_or_else(none)?;
        let record = scan::record(&mut self.disk, height.0, segment.marker, offset_bytes, segment.written_bytes)?;
        record.map(|record| record.payload).ok_or_else(none)
    }

    /// Heights that anything is recorded for, ascending.
    pub fn heights(&self) -> impl Iterator<Item = Height> {
        self.segments.keys().copied().map(Height)
    }

    /// Whether anything was appended and not synced.
    pub fn has_unsynced(&self) -> bool {
        self.segments
            .values()
            .any(|segment| !segment.pending.is_empty() || segment.synced_bytes < segment.written_bytes)
    }

    fn check(&self) -> Result<(), WalError> {
        self.poisoned.as_ref().map_or(Ok(()), |why| Err(WalError::Poisoned(why.clone())))
    }

    fn poisoning(&mut self, act: impl FnOnce(&mut Self) -> Result<(), WalError>) -> Result<(), WalError> {
        let result = act(self);
        if let Err(error) = &result {
            let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
            self.poisoned = Some(format!("{error}{cause}"));
        }
        result
    }

    /// Writes what was appended, unsynced; makes the files of new segments durable.
    fn write_pending(&mut self) -> Result<(), WalError> {
        for (height, segment) in &mut self.segments {
            let height = *height;
            if segment.pending.is_empty() {
                continue;
            }
            if segment.written_bytes < HEADER_BYTES {
                let header = scan::header(height, segment.marker);
                self.disk.write_at(height, 0, &header).map_err(failed("write", height))?;
                self.disk.sync(height).map_err(failed("sync", height))?;
                self.disk.sync_folder().map_err(failed("sync the folder of", height))?;
                (segment.synced_bytes, segment.written_bytes) = (HEADER_BYTES, HEADER_BYTES);
            }
            let end = segment.written_bytes + segment.pending.len() as u64;
            self.disk.write_at(height, segment.written_bytes, &segment.pending).map_err(failed("write", height))?;
            segment.written_bytes = end;
            self.buffered_bytes = self.buffered_bytes.saturating_sub(segment.pending.len());
            // A burst does not keep its memory for ever.
            segment.pending = Vec::new();
        }
        Ok(())
    }
}

/// See [`Wal::entries`].
#[derive(Debug)]
pub struct Entries<'a, D> {
    log: &'a mut Wal<D>,
    next: Option<Position>,
}

impl<D: Disk> Iterator for Entries<'_, D> {
    type Item = Result<Entry, WalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let wanted = self.next?;
            let Some((&height, segment)) = self.log.segments.range(wanted.height.0..).next() else {
                self.next = None;
                return None;
            };
            let same = height == wanted.height.0;
            let position = Position {
                height: Height(height),
                offset_bytes: if same { wanted.offset_bytes } else { HEADER_BYTES },
            };
            if position.offset_bytes >= segment.written_bytes {
                let after = height.checked_add(1).map(Height);
                self.next = after.map(|height| Position { height, offset_bytes: HEADER_BYTES });
                continue;
            }
            let payload = self.log.read(position);
            self.next = payload.as_ref().ok().map(|payload| {
                let record_bytes = (RECORD_PREFIX_BYTES + payload.len()) as u64;
                Position { offset_bytes: position.offset_bytes + record_bytes, ..position }
            });
            return Some(payload.map(|payload| Entry { position, payload }));
        }
    }
}
