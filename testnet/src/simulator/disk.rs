//! A member's log on a disk that loses what was not flushed, tears what was being written, runs full and is slow.
//!
//! One segment a height, of records in frames with a check, as a node's log has. What was written and not flushed lies
//! in the system's memory: a crash brings any of its sectors to the disk and leaves zeros where others would be. What
//! is left is read up to the first frame that is not whole. As a node's log does, it gives back all records of one
//! height before those of the next.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_federation::Height;
use fedprune_federation::machine::Record;
use fedprune_federation::wire::WireError;
use fedprune_mask::Digest;

use super::random::Random;

/// Bytes that reach the disk together or not at all.
const SECTOR_BYTES: usize = 64;
/// Length and check before a record.
const FRAME_BYTES: usize = 4 + CHECK_BYTES;
const CHECK_BYTES: usize = 8;

/// There is no room left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// The records of one height.
#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    flushed_bytes: usize,
    records: usize,
}

/// The log of one member.
#[derive(Debug, Default)]
pub struct Disk {
    segments: BTreeMap<Height, Segment>,
    /// Digests of records that are durable, and of those that are not yet.
    durable: BTreeSet<(Height, Digest)>,
    pending: Vec<(Height, Digest)>,
    /// Whether a flush fails.
    pub full: bool,
}

impl Disk {
    /// Writes a record, which a crash may take away until [`Disk::flush`].
    pub fn append(&mut self, height: Height, record: &Record) {
        let payload = record.encode();
        let segment = self.segments.entry(height).or_default();
        let frame = frame(height, segment.bytes.len(), &payload);
        segment.bytes.extend_from_slice(&frame);
        segment.bytes.extend_from_slice(&payload);
        segment.records += 1;
        self.pending.push((height, Digest::of(&payload)));
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// [`Full`] when there is no room; nobody knows then what is durable.
    pub fn flush(&mut self) -> Result<(), Full> {
        if self.full && !self.pending.is_empty() {
            return Err(Full);
        }
        for segment in self.segments.values_mut() {
            segment.flushed_bytes = segment.bytes.len();
        }
        self.durable.extend(self.pending.drain(..));
        Ok(())
    }

    /// What is left after a crash: all that was flushed, and whatever sectors of the rest reached the disk.
    pub fn crash(&mut self, random: &mut Random) {
        self.pending.clear();
        for (height, segment) in &mut self.segments {
            // anything may be as far as the disk came, which is often to the end
            let unflushed = segment.bytes.len() - segment.flushed_bytes;
            let reached = if random.per_mille(500) { unflushed } else { random.index(unflushed + 1) };
            segment.bytes.truncate(segment.flushed_bytes + reached);
            let torn = random.per_mille(500);
            for sector in segment.bytes[segment.flushed_bytes..].chunks_mut(SECTOR_BYTES) {
                if torn && random.per_mille(300) {
                    sector.fill(0);
                }
            }
            let (records, whole_bytes) = scan(*height, &segment.bytes);
            segment.records = records.len();
            self.durable.extend(records.iter().map(|payload| (*height, Digest::of(payload))));
            segment.bytes.truncate(whole_bytes);
            segment.flushed_bytes = whole_bytes;
        }
    }

    /// Whether a crash leaves this record.
    pub fn has(&self, height: Height, record: &Record) -> bool {
        self.durable.contains(&(height, Digest::of(&record.encode())))
    }

    /// How many records there are of a height, and how many bytes they take.
    pub fn size(&self, height: Height) -> (usize, usize) {
        self.segments.get(&height).map_or((0, 0), |segment| (segment.records, segment.bytes.len()))
    }

    /// Every record, to continue from.
    ///
    /// # Errors
    /// [`WireError`] if what was written cannot be read, which is a fault of the encoding.
    pub fn read(&self) -> Result<Vec<(Height, Record)>, WireError> {
        let of_height = |(height, segment): (&Height, &Segment)| {
            let records = scan(*height, &segment.bytes).0;
            records.into_iter().map(|payload| Ok((*height, Record::decode(payload)?))).collect::<Vec<_>>()
        };
        self.segments.iter().flat_map(of_height).collect()
    }
}

/// Length and check of a record at this place.
fn frame(height: Height, offset: usize, payload: &[u8]) -> [u8; FRAME_BYTES] {
    let length = (payload.len() as u32).to_le_bytes();
    let place = [&height.0.to_le_bytes()[..], &(offset as u64).to_le_bytes(), &length].concat();
    let check = Digest::of(&[&place, payload].concat());
    let mut frame = [0; FRAME_BYTES];
    frame[..4].copy_from_slice(&length);
    frame[4..].copy_from_slice(&check.0[..CHECK_BYTES]);
    frame
}

/// The records up to the first that is not whole, and the bytes that they take.
fn scan(height: Height, bytes: &[u8]) -> (Vec<&[u8]>, usize) {
    let (mut records, mut at) = (Vec::new(), 0);
    while let Some(found) = bytes.get(at..at + FRAME_BYTES) {
        let length = u32::from_le_bytes([found[0], found[1], found[2], found[3]]) as usize;
        let payload = bytes.get(at + FRAME_BYTES..).and_then(|rest| rest.get(..length));
        let Some(payload) = payload.filter(|payload| frame(height, at, payload) == found) else { break };
        records.push(payload);
        at += FRAME_BYTES + length;
    }
    (records, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: usize) -> Record {
        Record::Heard(vec![number as u8; 10 + number * 7 % 200])
    }

    /// Whatever a crash does, what was flushed is there, and of the rest the first records or none.
    #[test]
    fn a_crash_leaves_what_was_flushed_and_a_first_part_of_the_rest() {
        let mut lost = BTreeSet::new();
        for seed in 0..500 {
            let mut random = Random::named(seed, "disk");
            let mut disk = Disk::default();
            let flushed = random.index(20);
            let all = flushed + random.index(20);
            for number in 0..all {
                disk.append(Height((number % 2) as u32), &record(number));
                if number + 1 == flushed {
                    disk.flush().unwrap();
                }
            }
            disk.crash(&mut random);
            for height in 0..2u32 {
                let of_height = || (0..all).filter(|number| (*number % 2) as u32 == height);
                let left: Vec<_> = disk.read().unwrap().into_iter().filter(|(of, _)| of.0 == height).collect();
                let sure = of_height().filter(|number| *number < flushed).count();
                assert!(left.len() >= sure, "seed {seed}: what was flushed is gone");
                for (number, (height, found)) in of_height().zip(&left) {
                    assert_eq!(*found, record(number), "seed {seed}");
                    assert!(disk.has(*height, found));
                }
                assert_eq!(disk.size(Height(height)).0, left.len());
                lost.insert(of_height().count() - left.len());
            }
            // and it goes on from there
            disk.append(Height(0), &Record::Silent);
            assert!(!disk.has(Height(0), &Record::Silent));
            disk.flush().unwrap();
            assert!(disk.has(Height(0), &Record::Silent));
            assert_eq!(disk.read().unwrap().iter().rfind(|(height, _)| height.0 == 0).unwrap().1, Record::Silent);
        }
        assert!(lost.contains(&0) && lost.len() > 5, "crashes lose nothing, a little, and much: {lost:?}");
    }

    #[test]
    fn a_full_disk_flushes_nothing() {
        let mut disk = Disk { full: true, ..Disk::default() };
        assert_eq!(disk.flush(), Ok(()), "there is nothing to write");
        disk.append(Height(0), &Record::Silent);
        assert_eq!(disk.flush(), Err(Full));
        assert!(!disk.has(Height(0), &Record::Silent));
    }
}
