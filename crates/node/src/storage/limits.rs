//! Every limit of what is stored, in one place.

/// Most bytes of a WAL record's payload.
pub const MAX_RECORD_BYTES: usize = 8 << 20;
/// Most bytes of a WAL segment, that is, of all records of one height.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// Most WAL segments of a round: heights that anything was recorded for.
pub const MAX_SEGMENTS: usize = 10_000;
/// Bytes of appended WAL records that are kept in memory before they are written out, still unsynced.
pub const MAX_BUFFERED_BYTES: usize = 16 << 20;

/// Bytes of a body that are asked for and verified at a time; the last chunk of a body is shorter.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Most bytes of a body.
pub const MAX_BODY_BYTES: u64 = 1 << 37;
/// Most bytes of an encoded chunk: its data, the 63 hash pairs between its groups of 16 KiB, and one hash
/// pair for each of the at most 17 levels above it.
pub const MAX_ENCODED_CHUNK_BYTES: usize = (CHUNK_BYTES as usize) + 64 * (63 + 17);
/// Most files that a folder of bodies may hold.
pub const MAX_BLOB_FILES: usize = 100_000;
/// Bytes of the disk that bodies leave free, for logs and everything else.
pub const DISK_RESERVE_BYTES: u64 = 64 << 20;

/// Most folders in `rounds/` that are looked at.
pub const MAX_ROUNDS: usize = 1024;
/// Most bytes of an `approval.json`.
pub const MAX_APPROVAL_BYTES: usize = 64 << 10;

/// Most bytes of memory that the index keeps of its file.
pub const INDEX_CACHE_BYTES: usize = 8 << 20;
/// Most bytes of a statement, certificate or piece of evidence in the index.
pub const MAX_INDEX_VALUE_BYTES: usize = MAX_RECORD_BYTES;
/// Longest name of a counter, in bytes.
pub const MAX_COUNTER_NAME_BYTES: usize = 64;
