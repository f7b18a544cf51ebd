//! Records as bytes: written, read under their check, and found again behind damage.

use std::hash::{BuildHasher, Hasher};

use super::{Disk, WalError, failed, file_name};
use crate::storage::limits::MAX_RECORD_BYTES;

const MAGIC: &[u8; 16] = b"fedprune wal 1\n\0";
const CHECK_BYTES: usize = 16;
/// Bytes before the first record.
pub(super) const HEADER_BYTES: u64 = 44;
/// Bytes before a payload.
pub(super) const RECORD_PREFIX_BYTES: usize = 36;
/// Bytes read at a time when a marker is searched for.
const WINDOW_BYTES: usize = 1 << 20;

/// What an opened segment turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    pub marker: [u8; 8],
    /// Up to here all records are intact; less than [`HEADER_BYTES`] when not even the header is.
    pub intact_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Record {
    pub batch_start: u64,
    pub payload: Vec<u8>,
}

impl Record {
    pub fn bytes(&self) -> u64 {
        (RECORD_PREFIX_BYTES + self.payload.len()) as u64
    }
}

/// Random, from the keys with which the standard library guards its hash tables.
pub(super) fn new_marker() -> [u8; 8] {
    std::hash::RandomState::new().build_hasher().finish().to_le_bytes()
}

fn header_check(height: u32, marker: [u8; 8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"fedprune wal segment v1\0").update(&height.to_le_bytes()).update(&marker);
    first_half(hasher)
}

fn record_check(
    marker: [u8; 8],
    height: u32,
    offset: u64,
    batch_start: u64,
    payload_length: u32,
    payload: &[u8],
) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"fedprune wal record v1\0").update(&marker).update(&height.to_le_bytes());
    hasher.update(&offset.to_le_bytes()).update(&batch_start.to_le_bytes()).update(&payload_length.to_le_bytes());
    hasher.update(payload);
    first_half(hasher)
}

fn first_half(hasher: blake3::Hasher) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    hasher.finalize_xof().fill(&mut check);
    check
}

pub(super) fn header(height: u32, marker: [u8; 8]) -> Vec<u8> {
    [MAGIC.as_slice(), &height.to_le_bytes(), &marker, &header_check(height, marker)].concat()
}

/// Appends a record to `bytes`; its payload has at most [`MAX_RECORD_BYTES`].
pub(super) fn write_record(
    bytes: &mut Vec<u8>,
    marker: [u8; 8],
    height: u32,
    offset: u64,
    batch_start: u64,
    payload: &[u8],
) {
    let length = payload.len() as u32;
    bytes.reserve(RECORD_PREFIX_BYTES + payload.len());
    bytes.extend_from_slice(&marker);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&batch_start.to_le_bytes());
    bytes.extend_from_slice(&record_check(marker, height, offset, batch_start, length, payload));
    bytes.extend_from_slice(payload);
}

/// The record at `offset` of a segment of `end` bytes; `None` when none that is intact begins there.
pub(super) fn record(
    disk: &mut impl Disk,
    height: u32,
    marker: [u8; 8],
    offset: u64,
    end: u64,
) -> Result<Option<Record>, WalError> {
    if offset.checked_add(RECORD_PREFIX_BYTES as u64).is_none_or(|after| after > end) {
        return Ok(None);
    }
    let mut prefix = [0; RECORD_PREFIX_BYTES];
    disk.read_at(height, offset, &mut prefix).map_err(failed("read", height))?;
    let (found_marker, rest) = prefix.split_at(8);
    let (length_bytes, rest) = rest.split_at(4);
    let (batch_start, check) = rest.split_at(8);
    let length = u32::from_le_bytes(length_bytes.try_into().expect("4 bytes"));
    let batch_start = u64::from_le_bytes(batch_start.try_into().expect("8 bytes"));
    let begin = offset + RECORD_PREFIX_BYTES as u64;
    // Nothing is allocated for a length that cannot be.
    if found_marker != marker || length as usize > MAX_RECORD_BYTES || u64::from(length) > end - begin {
        return Ok(None);
    }
    let mut payload = vec![0; length as usize];
    disk.read_at(height, begin, &mut payload).map_err(failed("read", height))?;
    let intact = record_check(marker, height, offset, batch_start, length, &payload) == check;
    Ok(intact.then_some(Record { batch_start, payload }))
}

/// Reads a segment of `length` bytes to its end or to where it was torn.
pub(super) fn segment(disk: &mut impl Disk, height: u32, length: u64) -> Result<Scanned, WalError> {
    let Some(marker) = marker(disk, height, length)? else {
        return Ok(Scanned { marker: new_marker(), intact_bytes: 0 });
    };
    let mut offset = HEADER_BYTES;
    while offset < length {
        let Some(record) = record(disk, height, marker, offset, length)? else {
            if later_batch_follows(disk, height, marker, offset, length)? {
                return Err(WalError::Damaged { name: file_name(height), offset_bytes: offset });
            }
            break;
        };
        offset += record.bytes();
    }
    Ok(Scanned { marker, intact_bytes: offset })
}

/// The marker of a segment; `None` when the crash came before its header was synced.
fn marker(disk: &mut impl Disk, height: u32, length: u64) -> Result<Option<[u8; 8]>, WalError> {
    if length < HEADER_BYTES {
        return Ok(None);
    }
    let mut found = [0; HEADER_BYTES as usize];
    disk.read_at(height, 0, &mut found).map_err(failed("read", height))?;
    let marker: [u8; 8] = found[20..28].try_into().expect("8 bytes");
    if found.as_slice() == header(height, marker) {
        return Ok(Some(marker));
    }
    // No record is written before the header is synced: a damaged header alone is a torn one.
    if length == HEADER_BYTES { Ok(None) } else { Err(WalError::NotASegment(file_name(height))) }
}

/// Whether an intact record of a batch that starts after `damage` lies behind it.
fn later_batch_follows(
    disk: &mut impl Disk,
    height: u32,
    marker: [u8; 8],
    damage: u64,
    length: u64,
) -> Result<bool, WalError> {
    let mut window = Vec::new();
    let mut from = damage + 1;
    while length.saturating_sub(from) >= RECORD_PREFIX_BYTES as u64 {
        let bytes = (length - from).min(WINDOW_BYTES as u64);
        window.resize(bytes as usize, 0);
        disk.read_at(height, from, &mut window).map_err(failed("read", height))?;
        let Some(at) = window.windows(marker.len()).position(|bytes| bytes == marker) else {
            // a marker may straddle two windows
            from += bytes - (marker.len() as u64 - 1);
            continue;
        };
        let offset = from + at as u64;
        from = match record(disk, height, marker, offset, length)? {
            Some(record) if record.batch_start > damage => return Ok(true),
            Some(record) => offset + record.bytes(),
            None => offset + 1,
        };
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pinned() {
        let marker = *b"marker!!";
        let header = header(7, marker);
        assert_eq!(header.len() as u64, HEADER_BYTES);
        let mut record = Vec::new();
        write_record(&mut record, marker, 7, HEADER_BYTES, HEADER_BYTES, b"payload");
        assert_eq!(record.len(), RECORD_PREFIX_BYTES + 7);
        assert_eq!(blake3::hash(&[header, record].concat()).to_hex()[..32], *"f7ad192e758f63ac43e110686018fedf");
    }

    #[test]
    fn markers_differ() {
        assert_ne!(new_marker(), new_marker());
    }
}
