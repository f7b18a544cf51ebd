//! Logs cut at every byte, flipped at every byte, and crashed between any two writes on a disk that loses and
//! reorders whatever was not synced.

use super::*;
use proptest::prelude::*;
use std::fs::File;

/// A disk that remembers what was synced apart from what was only written.
#[derive(Debug, Clone, Default)]
struct LossyDisk {
    /// What survives for certain.
    durable: BTreeMap<u32, Vec<u8>>,
    /// Segments whose names survive for certain.
    named: Vec<u32>,
    /// What a reader sees.
    seen: BTreeMap<u32, Vec<u8>>,
    /// Writes and syncs until one fails.
    fails_in: Option<u32>,
    syncs: u32,
}

/// Pages of this disk: small, so that records straddle them.
const PAGE_BYTES: usize = 16;

impl LossyDisk {
    fn count_down(&mut self) -> io::Result<()> {
        match self.fails_in.as_mut() {
            Some(0) => Err(io::Error::other("injected")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The power fails: of each unsynced page either version survives, as `keep` decides, and so for lengths.
    fn crash(&self, mut keep: impl FnMut() -> bool) -> LossyDisk {
        let mut durable = BTreeMap::new();
        for (height, seen) in &self.seen {
            let old = self.durable.get(height).cloned().unwrap_or_default();
            if !self.named.contains(height) && keep() {
                continue;
            }
            let length = if keep() { seen.len() } else { old.len().max(if keep() { seen.len() / 2 } else { 0 }) };
            let mut content = old;
            content.resize(length, 0);
            for start in (0..length).step_by(PAGE_BYTES) {
                let end = (start + PAGE_BYTES).min(length);
                if keep() {
                    let new = seen.get(start..end.min(seen.len())).unwrap_or_default();
                    content[start..start + new.len()].copy_from_slice(new);
                }
            }
            durable.insert(*height, content);
        }
        let named = durable.keys().copied().collect();
        LossyDisk { seen: durable.clone(), durable, named, fails_in: None, syncs: 0 }
    }
}

impl Disk for LossyDisk {
    fn segments(&mut self) -> io::Result<Vec<(u32, u64)>> {
        Ok(self.seen.iter().map(|(height, bytes)| (*height, bytes.len() as u64)).collect())
    }

    fn read_at(&mut self, height: u32, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let segment = self.seen.get(&height).ok_or(io::ErrorKind::NotFound)?;
        let from = offset_bytes as usize;
        let bytes = segment.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&mut self, height: u32, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let result = self.count_down();
        let segment = self.seen.entry(height).or_default();
        let from = offset_bytes as usize;
        // a failed write has written something
        let bytes = if result.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        if segment.len() < from + bytes.len() {
            segment.resize(from + bytes.len(), 0);
        }
        segment[from..from + bytes.len()].copy_from_slice(bytes);
        result
    }

    fn sync(&mut self, height: u32) -> io::Result<()> {
        self.count_down()?;
        self.syncs += 1;
        let seen = self.seen.get(&height).ok_or(io::ErrorKind::NotFound)?.clone();
        self.durable.insert(height, seen);
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.count_down()?;
        self.named = self.seen.keys().copied().collect();
        Ok(())
    }

    fn truncate(&mut self, height: u32, length_bytes: u64) -> io::Result<()> {
        self.seen.get_mut(&height).ok_or(io::ErrorKind::NotFound)?.truncate(length_bytes as usize);
        Ok(())
    }
}

fn all<D: Disk>(log: &mut Wal<D>) -> Vec<(u32, Vec<u8>)> {
    log.entries().map(|entry| entry.map(|entry| (entry.position.height.0, entry.payload)).unwrap()).collect()
}

/// Four records, each a batch of its own, and where each begins; then the end.
fn four(disk: LossyDisk) -> (Wal<LossyDisk>, Vec<u64>) {
    let (mut log, notices) = Wal::open_disk(disk).unwrap();
    assert_eq!(notices, []);
    let mut offsets = Vec::new();
    for payload in [b"one".as_slice(), b"", b"three, the longest of them all", b"four"] {
        offsets.push(log.append(Height(3), payload).unwrap().offset_bytes);
        log.sync().unwrap();
    }
    offsets.push(log.segments[&3].written_bytes);
    (log, offsets)
}

#[test]
fn what_is_synced_is_read_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wal");
    let (mut log, notices) = Wal::open(&path).unwrap();
    assert_eq!(notices, []);
    let position = log.append(Height(1), b"b").unwrap();
    log.append(Height(0), b"a").unwrap();
    log.append(Height(1), b"c").unwrap();
    assert!(log.has_unsynced());
    log.sync().unwrap();
    log.append(Height(0), b"d").unwrap();
    log.sync().unwrap();
    log.append(Height(0), b"never synced").unwrap();
    let expected = [(0, b"a".to_vec()), (0, b"d".to_vec()), (1, b"b".to_vec()), (1, b"c".to_vec())];
    drop(log);
    std::fs::write(path.join("notes.txt"), "not ours").unwrap();
    std::fs::write(path.join("1.wal"), "not ours").unwrap();
    let (mut log, notices) = Wal::open(&path).unwrap();
    assert_eq!(notices, []);
    assert_eq!(all(&mut log), expected);
    assert_eq!(log.read(position).unwrap(), b"b");
    assert_eq!(log.entries_from(Height(1)).count(), 2);
    assert_eq!(log.heights().collect::<Vec<_>>(), [Height(0), Height(1)]);
    let nowhere = Position { offset_bytes: position.offset_bytes + 1, ..position };
    let error = log.read(nowhere).unwrap_err().to_string();
    assert!(error.contains("0001.wal"), "{error}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(log.path(Height(1))).unwrap().permissions().mode() & 0o077, 0);
    }
}

#[test]
fn a_log_cut_anywhere_goes_on_from_its_last_whole_record() {
    let (log, offsets) = four(LossyDisk::default());
    let whole = log.disk.seen[&3].clone();
    for length in 0..=whole.len() {
        let mut disk = LossyDisk::default();
        disk.seen.insert(3, whole[..length].to_vec());
        let (mut log, notices) = Wal::open_disk(disk).unwrap();
        let kept = offsets[1..].iter().filter(|end| **end <= length as u64).count();
        let records = all(&mut log);
        assert_eq!(records.len(), kept, "cut at {length}");
        let clean = length == 0 || length as u64 == HEADER_BYTES || offsets[1..].contains(&(length as u64));
        assert_eq!(notices.is_empty(), clean, "cut at {length}: {notices:?}");
        log.append(Height(3), b"next").unwrap();
        log.sync().unwrap();
        let (mut log, notices) = Wal::open_disk(log.disk).unwrap();
        assert_eq!(notices, []);
        assert_eq!(all(&mut log)[..kept], records);
        assert_eq!(all(&mut log)[kept..], [(3, b"next".to_vec())]);
    }
}

#[test]
fn a_flipped_bit_is_never_read_and_synced_records_are_never_forgotten() {
    let (log, offsets) = four(LossyDisk::default());
    let whole = log.disk.seen[&3].clone();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            let mut disk = LossyDisk::default();
            disk.seen.insert(3, flipped.clone());
            let untouched = disk.clone();
            match Wal::open_disk(disk) {
                Ok((mut log, notices)) => {
                    assert!(at as u64 >= offsets[3], "only the last record can pass for torn, not byte {at}");
                    assert_eq!(all(&mut log).len(), 3);
                    assert_eq!(notices.len(), 1);
                }
                Err(WalError::NotASegment(name)) => assert!(name == "0003.wal" && (at as u64) < HEADER_BYTES),
                Err(WalError::Damaged { offset_bytes, name }) => {
                    let record = offsets.iter().rposition(|offset| *offset <= at as u64).unwrap();
                    assert_eq!((offset_bytes, name.as_str()), (offsets[record], "0003.wal"));
                }
                Err(other) => panic!("{other}"),
            }
            assert_eq!(untouched.seen[&3], flipped);
        }
    }
}

#[test]
fn damage_is_left_as_it_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut log, _) = Wal::open(folder.path()).unwrap();
    for payload in [b"one", b"two"] {
        log.append(Height(0), payload).unwrap();
        log.sync().unwrap();
    }
    log.append(Height(1), b"torn").unwrap();
    log.sync().unwrap();
    let (first, second) = (log.path(Height(0)), log.path(Height(1)));
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[HEADER_BYTES as usize + RECORD_PREFIX_BYTES] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    let torn = std::fs::read(&second).unwrap().len() - 1;
    File::options().write(true).open(&second).unwrap().set_len(torn as u64).unwrap();
    let error = Wal::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`0000.wal` is damaged at byte 44") && error.contains("restore"), "{error}");
    assert_eq!(std::fs::read(&first).unwrap(), bytes);
    assert_eq!(std::fs::read(&second).unwrap().len(), torn, "no other segment is changed either");
}

#[test]
fn a_segment_under_another_name_is_refused() {
    let (log, _) = four(LossyDisk::default());
    let mut disk = LossyDisk::default();
    disk.seen.insert(4, log.disk.seen[&3].clone());
    assert!(matches!(Wal::open_disk(disk), Err(WalError::NotASegment(name)) if name == "0004.wal"));
}

/// A record inside a message of a peer must not make a torn write look like damage.
#[test]
fn records_inside_payloads_are_not_found() {
    let (mut log, _) = Wal::open_disk(LossyDisk::default()).unwrap();
    log.append(Height(0), b"before").unwrap();
    log.sync().unwrap();
    let begin = log.segments[&0].written_bytes;
    let mut inner = Vec::new();
    let offset = begin + RECORD_PREFIX_BYTES as u64;
    scan::write_record(&mut inner, *b"guessed!", 0, offset, offset, b"inner");
    log.append(Height(0), &inner).unwrap();
    log.sync().unwrap();
    let mut disk = log.disk;
    disk.seen.get_mut(&0).unwrap()[begin as usize + 30] ^= 1;
    let (mut log, notices) = Wal::open_disk(disk).unwrap();
    assert_eq!((all(&mut log).len(), notices.len()), (1, 1));
}

#[test]
fn after_any_failure_every_call_fails() {
    for fails_in in 0..6 {
        let (mut log, _) = Wal::open_disk(LossyDisk::default()).unwrap();
        log.append(Height(0), b"one").unwrap();
        log.disk.fails_in = Some(fails_in);
        let first = log.sync();
        let result = first.and_then(|()| log.append(Height(0), b"two").map(drop)).and_then(|()| log.sync());
        let error = result.unwrap_err();
        assert!(matches!(error, WalError::Io { .. }), "{error}");
        // The disk works again, but what it holds is not known.
        log.disk.fails_in = None;
        for result in [log.append(Height(0), b"three").map(drop), log.sync(), log.append(Height(9), b"").map(drop)] {
            let error = result.unwrap_err();
            assert!(matches!(&error, WalError::Poisoned(why) if why.contains("injected")), "{error}");
        }
    }
}

#[test]
fn limits_hold() {
    let (mut log, _) = Wal::open_disk(LossyDisk::default()).unwrap();
    let large = vec![7; MAX_RECORD_BYTES];
    assert!(matches!(log.append(Height(0), &vec![7; MAX_RECORD_BYTES + 1]), Err(WalError::RecordTooLarge(_))));
    // three do not fit the buffer: they are written out, but not synced
    for _ in 0..3 {
        log.append(Height(0), &large).unwrap();
    }
    assert!(log.buffered_bytes < MAX_BUFFERED_BYTES && log.disk.seen[&0].len() > MAX_BUFFERED_BYTES);
    assert!(log.has_unsynced() && log.disk.durable[&0].len() as u64 == HEADER_BYTES);
    log.sync().unwrap();
    assert!(!log.has_unsynced());
    assert_eq!(log.disk.durable, log.disk.seen);
    assert_eq!(all(&mut log).len(), 3);
    let position = Position { height: Height(0), offset_bytes: u64::MAX };
    assert!(matches!(log.read(position), Err(WalError::NoRecord { .. })));
}

#[test]
fn opening_syncs_what_it_is_going_to_rely_on() {
    let (log, _) = four(LossyDisk::default());
    let mut disk = LossyDisk::default();
    disk.seen = log.disk.seen.clone(); // written by a process that was killed before it synced
    let (log, _) = Wal::open_disk(disk).unwrap();
    assert_eq!((&log.disk.durable, log.disk.named.as_slice()), (&log.disk.seen, [3].as_slice()));
}

#[derive(Debug, Clone)]
enum Act {
    Append(u32, Vec<u8>),
    Sync,
    Crash(Vec<bool>),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..3u32, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(height, payload)| Act::Append(height, payload)),
        2 => Just(Act::Sync),
        1 => prop::collection::vec(any::<bool>(), 64).prop_map(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// After any crash: everything synced is there; of the rest, a prefix of each height and nothing else.
    #[test]
    fn crashes_lose_only_what_was_not_synced(acts in prop::collection::vec(act(), 1..40)) {
        let (mut log, _) = Wal::open_disk(LossyDisk::default()).unwrap();
        let mut appended: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        let mut synced: BTreeMap<u32, usize> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Append(height, payload) => {
                    log.append(Height(height), &payload).unwrap();
                    appended.entry(height).or_default().push(payload);
                }
                Act::Sync => {
                    log.sync().unwrap();
                    synced = appended.iter().map(|(height, payloads)| (*height, payloads.len())).collect();
                }
                Act::Crash(choices) => {
                    // in the middle of a sync: all is written, nothing of it synced
                    log.write_pending().unwrap();
                    let mut choices = choices.into_iter().cycle();
                    let (mut next, _) = Wal::open_disk(log.disk.crash(|| choices.next().unwrap())).unwrap();
                    let mut found: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
                    for (height, payload) in all(&mut next) {
                        found.entry(height).or_default().push(payload);
                    }
                    for (height, payloads) in &appended {
                        let found = found.get(height).cloned().unwrap_or_default();
                        prop_assert!(found.len() >= synced.get(height).copied().unwrap_or(0));
                        prop_assert_eq!(&found[..], &payloads[..found.len()]);
                    }
                    prop_assert!(found.keys().all(|height| appended.contains_key(height)));
                    // the reopened log has synced all that it shows
                    synced = found.iter().map(|(height, payloads)| (*height, payloads.len())).collect();
                    appended = found;
                    log = next;
                }
            }
        }
    }

    /// Whatever bytes are there, opening neither panics nor shows a record that was not appended.
    #[test]
    fn any_bytes_are_survived(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut log, _) = four(LossyDisk::default());
        let genuine = all(&mut log);
        let mut bytes = log.disk.seen[&3].clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let mut disk = LossyDisk::default();
        disk.seen.insert(3, bytes);
        if let Ok((mut log, _)) = Wal::open_disk(disk) {
            let found = all(&mut log);
            prop_assert_eq!(&found[..], &genuine[..found.len()]);
        }
    }
}
