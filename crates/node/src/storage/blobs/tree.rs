//! The hash tree of a body, and the slices of it that travel. All of bao-tree is used here.

use std::fs::File;
use std::io::{self, Cursor, Read};

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard, decode_ranges, encode_ranges_validated, valid_ranges};
use bao_tree::io::{DecodeError, EncodeError};
use bao_tree::iter::BaoChunk;
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use fedprune_mask::Digest;

use crate::storage::limits::{CHUNK_BYTES, MAX_BODY_BYTES, MAX_ENCODED_CHUNK_BYTES};

/// Leaves of the stored tree: 16 KiB, that is 2^4 chunks of BLAKE3.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
/// Bytes of what BLAKE3 calls a chunk.
const LEAF_BYTES: u64 = 1024;

const _: () = assert!(MAX_BODY_BYTES / CHUNK_BYTES <= u32::MAX as u64, "chunk numbers are 32 bits");

/// Chunks of a body of this size; the empty body has one, without data. `None` for sizes that no body has.
pub fn chunk_count(size_bytes: u64) -> Option<u32> {
    if size_bytes > MAX_BODY_BYTES {
        return None;
    }
    u32::try_from(size_bytes.div_ceil(CHUNK_BYTES).max(1)).ok()
}

/// Bytes of data in one chunk; `None` when there is no such chunk.
pub fn chunk_bytes(size_bytes: u64, chunk: u32) -> Option<u64> {
    if chunk >= chunk_count(size_bytes)? {
        return None;
    }
    Some(size_bytes.saturating_sub(u64::from(chunk) * CHUNK_BYTES).min(CHUNK_BYTES))
}

/// Bytes of one chunk as it travels, at most [`MAX_ENCODED_CHUNK_BYTES`]; `None` when there is no such chunk.
pub fn encoded_chunk_bytes(size_bytes: u64, chunk: u32) -> Option<usize> {
    Some(Slice::of(Digest([0; 32]), size_bytes, chunk)?.encoded_bytes())
}

/// Bytes of the tree of a body.
pub(super) fn outboard_bytes(size_bytes: u64) -> u64 {
    BaoTree::new(size_bytes.min(MAX_BODY_BYTES), GROUP).outboard_size()
}

/// The tree of `size_bytes` bytes read from `data`, written to `outboard`. Returns the root.
pub(super) fn write_outboard(data: impl Read, size_bytes: u64, outboard: &mut File) -> io::Result<Digest> {
    let root = blake3::Hash::from_bytes([0; 32]);
    let mut tree = PreOrderOutboard { root, tree: BaoTree::new(size_bytes, GROUP), data: outboard };
    tree.init_from(data)?;
    Ok(tree.root.into())
}

/// Which chunks of a body are on the disk, by hashing all that could be: `held[chunk]`.
pub(super) fn held_chunks(root: Digest, size_bytes: u64, body: &File, outboard: &File) -> io::Result<Vec<bool>> {
    let tree = PreOrderOutboard { root: root.0.into(), tree: BaoTree::new(size_bytes, GROUP), data: outboard };
    let chunks = chunk_count(size_bytes).unwrap_or(0);
    let mut valid_leaves = vec![0u64; chunks as usize];
    let everything = ChunkRanges::all();
    for range in valid_ranges(&tree, body, &everything) {
        // groups do not straddle chunks, and no two ranges overlap
        let range = range?;
        let leaves = range.end.0.saturating_sub(range.start.0);
        if let Some(valid) = valid_leaves.get_mut((range.start.0 / (CHUNK_BYTES / LEAF_BYTES)) as usize) {
            *valid = valid.saturating_add(leaves);
        }
    }
    if size_bytes == 0 {
        // nothing is on the disk of the empty body; its one chunk says whether the root is right
        return Ok(vec![false]);
    }
    let expected = (0..chunks).map(|chunk| chunk_bytes(size_bytes, chunk).unwrap_or(0).div_ceil(LEAF_BYTES));
    Ok(expected.zip(valid_leaves).map(|(expected, valid)| valid == expected).collect())
}

/// One chunk of one body.
#[derive(Debug)]
pub(super) struct Slice {
    root: blake3::Hash,
    tree: BaoTree,
    ranges: ChunkRanges,
}

/// Why a slice is not what was asked for.
#[derive(Debug)]
pub(super) enum SliceError {
    /// The sender's fault.
    Corrupt,
    /// The disk's.
    Io(io::Error),
}

impl Slice {
    /// `None` when the body has no such chunk.
    pub fn of(root: Digest, size_bytes: u64, chunk: u32) -> Option<Self> {
        if chunk >= chunk_count(size_bytes)? {
            return None;
        }
        let leaves = CHUNK_BYTES / LEAF_BYTES;
        let start = u64::from(chunk) * leaves;
        let ranges = ChunkRanges::from(ChunkNum(start)..ChunkNum(start + leaves));
        Some(Self { root: root.0.into(), tree: BaoTree::new(size_bytes, GROUP), ranges })
    }

    /// Bytes of it as it travels.
    pub fn encoded_bytes(&self) -> usize {
        let items = self.tree.ranges_pre_order_chunks_iter_ref(&self.ranges, GROUP.chunk_log());
        items.fold(0, |bytes: usize, item| {
            bytes.saturating_add(match item {
                BaoChunk::Parent { .. } => 64,
                BaoChunk::Leaf { size, .. } => size,
            })
        })
    }

    /// Its bytes, checked against the root; `None` when they are not there or not right.
    pub fn encode(&self, body: &File, outboard: &File) -> io::Result<Option<Vec<u8>>> {
        let outboard = PreOrderOutboard { root: self.root, tree: self.tree, data: outboard };
        let mut encoded = Vec::with_capacity(self.encoded_bytes());
        match encode_ranges_validated(body, outboard, &self.ranges, &mut encoded) {
            Ok(()) => Ok(Some(encoded)),
            Err(EncodeError::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Checks a slice against the root and writes it into the body and its tree. After an error some right groups
    /// of it may have been written, and nothing else.
    pub fn decode(&self, encoded: &[u8], body: &mut File, outboard: &mut File) -> Result<(), SliceError> {
        // Each slice has one length; more or less is not looked at.
        if encoded.len() > MAX_ENCODED_CHUNK_BYTES || encoded.len() != self.encoded_bytes() {
            return Err(SliceError::Corrupt);
        }
        let outboard = PreOrderOutboard { root: self.root, tree: self.tree, data: outboard };
        decode_ranges(Cursor::new(encoded), &self.ranges, body, outboard).map_err(|error| match error {
            DecodeError::Io(error) => SliceError::Io(error),
            _ => SliceError::Corrupt,
        })
    }
}
