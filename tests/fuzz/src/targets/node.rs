//! What reaches a node from the network, and from its own disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{LazyLock, Mutex, PoisonError};

use fedprune_federation::Height;
use fedprune_mask::Digest;
use fedprune_node::network::decoding::{Wire, read_and_write_again};
use fedprune_node::storage::blobs::{Accepted, BlobStore};
use fedprune_node::storage::limits::MAX_RECORD_BYTES;
use fedprune_node::storage::wal::{Disk, Entry, Wal, WalError};
use tempfile::TempDir;

use super::scratch;
use crate::choices::Choices;
use crate::model::noise;

/// A request or an answer; of what kind, the first byte says.
pub fn request(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    let wire = Wire::ALL[usize::from(*which) % Wire::ALL.len()];
    match read_and_write_again(wire, bytes) {
        Ok(again) => {
            assert!(bytes.starts_with(&again), "{wire:?} has one encoding");
            true
        }
        Err(_) => false,
    }
}

/// Bodies of none, one and two groups of 16 KiB.
pub(crate) static BODIES: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| [0, 1000, 17_000].map(|bytes| noise("body", bytes)).into());

/// The one chunk of a body of [`BODIES`], as it travels.
pub(crate) fn encoded_chunk(body: usize) -> Vec<u8> {
    let scratch = scratch();
    let store = BlobStore::open(scratch.path(), u64::MAX).expect("a store");
    let file = scratch.path().join("file");
    std::fs::write(&file, &BODIES[body]).expect("a file");
    let (digest, _) = store.import_file(&file).expect("a body");
    store.encode_chunk(&digest, 0).expect("it can be read").expect("it is there")
}

static STORE: LazyLock<Mutex<(TempDir, BlobStore)>> = LazyLock::new(|| {
    let folder = scratch();
    let store = BlobStore::open(folder.path(), u64::MAX).expect("a store");
    Mutex::new((folder, store))
});

/// A chunk of one of three bodies, whose size may be given wrongly.
pub fn chunk(bytes: &[u8]) -> bool {
    let Some((which, encoded)) = bytes.split_first() else { return false };
    let place = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    let store = &place.1;
    let body = &BODIES[usize::from(*which) % BODIES.len()];
    let digest = Digest::of(body);
    let lies = usize::from(*which) / BODIES.len() % 4;
    let claimed = body.len() as u64 + [0, 1, 1 << 20, (1 << 37) + 1][lies];
    // what an input before this one left, whether or not it ended well
    store.forget_partials(&digest).expect("it can be removed");
    let Ok(mut partial) = store.begin(digest, claimed, 1 << 37) else { return false };
    let last = partial.missing().last().expect("a body has a chunk");
    let taken = match partial.accept(last, encoded) {
        Ok(accepted) => {
            assert_eq!(accepted, Accepted::New);
            assert_eq!(claimed, body.len() as u64, "a chunk proves the size of its body");
            true
        }
        Err(_) => false,
    };
    partial.abandon().expect("it can be removed");
    taken
}

/// A disk in memory. What was not synced may be lost or damaged in a crash.
#[derive(Debug, Clone, Default)]
struct Memory {
    seen: BTreeMap<u32, Vec<u8>>,
    synced: BTreeMap<u32, usize>,
    /// The power fails at the next sync.
    fails: bool,
}

impl Memory {
    fn of(segments: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Self {
        let seen: BTreeMap<u32, Vec<u8>> = segments.into_iter().collect();
        let synced = seen.iter().map(|(height, bytes)| (*height, bytes.len())).collect();
        Self { seen, synced, fails: false }
    }

    fn synced(&self, height: u32) -> usize {
        self.synced.get(&height).copied().unwrap_or(0)
    }

    /// The power fails: of what was not synced some first part is there, some of it damaged.
    fn crash(&mut self, choices: &mut Choices<'_>) {
        self.fails = false;
        let synced = self.synced.clone();
        for (height, bytes) in &mut self.seen {
            let synced = synced.get(height).copied().unwrap_or(0);
            let unsynced = bytes.len() - synced;
            let kept = choices.number() as usize % (unsynced + 1);
            bytes.truncate(synced + kept);
            for _ in 0..choices.below(4) {
                if kept > 0 {
                    let at = synced + choices.number() as usize % kept;
                    bytes[at] ^= choices.byte();
                }
            }
        }
        self.seen.retain(|height, bytes| !bytes.is_empty() || synced.contains_key(height));
    }
}

impl Disk for Memory {
    fn segments(&mut self) -> io::Result<Vec<(u32, u64)>> {
        Ok(self.seen.iter().map(|(height, bytes)| (*height, bytes.len() as u64)).collect())
    }

    fn read_at(&mut self, height: u32, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = self.seen.get(&height).map_or(&[][..], Vec::as_slice);
        let start = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let part = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, height: u32, offset_bytes: u64, new: &[u8]) -> io::Result<()> {
        let bytes = self.seen.entry(height).or_default();
        let start = offset_bytes as usize;
        bytes.resize(bytes.len().max(start + new.len()), 0);
        bytes[start..start + new.len()].copy_from_slice(new);
        Ok(())
    }

    fn sync(&mut self, height: u32) -> io::Result<()> {
        if self.fails {
            return Err(io::Error::other("the power fails"));
        }
        self.synced.insert(height, self.seen.get(&height).map_or(0, Vec::len));
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, height: u32, length_bytes: u64) -> io::Result<()> {
        self.seen.entry(height).or_default().truncate(length_bytes as usize);
        Ok(())
    }
}

/// A segment with records of these payloads.
pub(crate) fn segment(height: u32, payloads: &[&[u8]]) -> Vec<u8> {
    let folder = scratch();
    let (mut log, _) = Wal::open(folder.path()).expect("a log");
    for payload in payloads {
        log.append(Height(height), payload).expect("it is taken");
        log.sync().expect("it is written");
    }
    std::fs::read(log.path(Height(height))).expect("a file")
}

/// Segments of a log behind a byte 0; appends, crashes and damage behind any other.
pub fn wal(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    match which {
        0 => segments(bytes),
        _ => life(Choices::new(bytes)),
    }
}

/// A height as one byte, then its segment.
fn segments(bytes: &[u8]) -> bool {
    let Some((height, bytes)) = bytes.split_first() else { return false };
    let disk = Memory::of([(u32::from(*height), bytes.to_vec())]);
    let Ok((mut log, _)) = Wal::open_disk(disk) else { return false };
    let entries = all(&mut log);
    for entry in &entries {
        assert!(entry.payload.len() <= MAX_RECORD_BYTES);
        assert_eq!(log.read(entry.position).expect("it was listed"), entry.payload);
    }
    let _ = log.append(Height(u32::from(*height)), b"more").expect("there is room");
    log.sync().expect("memory does not fail");
    let again = all(&mut log);
    assert_eq!((&again[..entries.len()], again.len()), (&entries[..], entries.len() + 1));
    !entries.is_empty()
}

fn all(log: &mut Wal<Memory>) -> Vec<Entry> {
    log.entries().map(|entry| entry.expect("what was opened is read")).collect()
}

/// Whatever was synced survives every crash, and damage to it is noticed or undone by nobody.
fn life(mut choices: Choices<'_>) -> bool {
    let mut disk = Memory::default();
    // by height, as a log gives them back
    let mut synced: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    let mut unsynced: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut lives = 0;
    while !choices.is_empty() && lives < 16 {
        lives += 1;
        let shared = std::rc::Rc::new(std::cell::RefCell::new(disk));
        let (mut log, _) = Wal::open_disk(Shared(shared.clone())).expect("a crash damages nothing that was synced");
        let entries: Vec<Entry> = log.entries().map(|entry| entry.expect("what was opened is read")).collect();
        let mut found: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for entry in entries {
            found.entry(entry.position.height.0).or_default().push(entry.payload);
        }
        for (height, payloads) in &synced {
            let found = found.get(height).map_or(&[][..], Vec::as_slice);
            assert!(found.starts_with(payloads), "what was synced at height {height} is lost");
        }
        // of what was not synced, a first part of each height may be there
        for (height, payloads) in &found {
            let before = synced.get(height).map_or(0, Vec::len);
            let was_appended = unsynced.iter().filter(|(of, _)| of == height).map(|(_, payload)| payload);
            assert!(payloads[before..].iter().zip(was_appended).all(|(found, appended)| found == appended));
        }
        synced = found;
        unsynced.clear();
        loop {
            match choices.below(8) {
                0..4 => {
                    let height = choices.below(3) as u32;
                    let length = choices.below(200);
                    let payload = choices.bytes(length).to_vec();
                    log.append(Height(height), &payload).expect("there is room");
                    unsynced.push((height, payload));
                }
                4..6 => {
                    log.sync().expect("memory does not fail");
                    for (height, payload) in unsynced.drain(..) {
                        synced.entry(height).or_default().push(payload);
                    }
                }
                6 => {
                    shared.borrow_mut().fails = true;
                    let failed = log.sync();
                    assert!(failed.is_err() || unsynced.is_empty());
                    break;
                }
                _ => break,
            }
            if choices.is_empty() {
                break;
            }
        }
        drop(log);
        disk = std::rc::Rc::into_inner(shared).expect("the log is gone").into_inner();
        disk.crash(&mut choices);
    }
    // damage to what was synced is told apart from a torn write, or cuts the last batch off; it never invents records
    let victim = choices.below(3) as u32;
    if disk.synced(victim) > 0 {
        let bytes = disk.seen.get_mut(&victim).expect("it was synced");
        let at = choices.number() as usize % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= choices.byte() | 1;
        }
        match Wal::open_disk(disk) {
            Ok((mut log, _)) => {
                let left = all(&mut log).into_iter().filter(|entry| entry.position.height.0 == victim);
                let whole = synced.get(&victim).map_or(&[][..], Vec::as_slice);
                assert!(left.zip(whole).all(|(entry, payload)| entry.payload == *payload));
            }
            Err(WalError::Damaged { .. } | WalError::NotASegment(_)) => {}
            Err(error) => panic!("memory does not fail: {error}"),
        }
    }
    lives > 0
}

/// A disk that outlives its log.
#[derive(Debug)]
struct Shared(std::rc::Rc<std::cell::RefCell<Memory>>);

impl Disk for Shared {
    fn segments(&mut self) -> io::Result<Vec<(u32, u64)>> {
        self.0.borrow_mut().segments()
    }

    fn read_at(&mut self, height: u32, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.borrow_mut().read_at(height, offset_bytes, buffer)
    }

    fn write_at(&mut self, height: u32, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().write_at(height, offset_bytes, bytes)
    }

    fn sync(&mut self, height: u32) -> io::Result<()> {
        self.0.borrow_mut().sync(height)
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.0.borrow_mut().sync_folder()
    }

    fn truncate(&mut self, height: u32, length_bytes: u64) -> io::Result<()> {
        self.0.borrow_mut().truncate(height, length_bytes)
    }
}
