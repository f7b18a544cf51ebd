//! The digest of a checkpoint's weights, whatever their sharding.
//!
//! Over the tensors that the model computes with, sorted by name (bytewise):
//!
//! ```text
//! BLAKE3( "fedprune checkpoint content v1\0" ‖ tensor count: u64
//!         ‖ for each: name length: u32 ‖ name ‖ dtype name length: u32 ‖ dtype name ("bf16", "f16", "f32")
//!                     ‖ dimensions: u32 ‖ each: u64 ‖ BLAKE3(stored bytes) )        all little-endian
//! ```
//!
//! Not part of it: file names, tensor order, header metadata, tensors that the model does not use (they
//! change nothing that it computes), and `config.json`.
//!
//! Large tensors are hashed window by window on all cores and their pages released behind the reader, so
//! that resident memory is bounded by a window.

use std::ops::Range;

use fedprune_mask::Digest;
use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, Shard, Tensor};

/// Separates this digest from every other use of BLAKE3 here; its version changes with the encoding above.
const DOMAIN: &[u8] = b"fedprune checkpoint content v1\0";
/// Bytes hashed, reported and released at a time. A power of two, so that BLAKE3's tree splits evenly
/// among the cores.
const WINDOW_BYTES: usize = 16 << 20;
/// From here on, splitting one hash among cores is worth its cost.
const PARALLEL_BYTES: usize = 128 << 10;

impl Checkpoint {
    /// Digest of the weights: the same for the same tensors in any sharding, different when one bit, name,
    /// shape or dtype of a tensor that the model uses differs.
    ///
    /// Reads all of them once, on all cores. `progress` is told the bytes hashed since its last call; they
    /// add up to [`digest_bytes`](Self::digest_bytes).
    pub fn content_digest(&self, progress: &(dyn Fn(u64) + Sync)) -> Digest {
        self.digest_along().finish(progress)
    }

    /// The content digest for a caller who reads the matrices anyway.
    pub fn digest_along(&self) -> DigestAlong<'_> {
        DigestAlong { checkpoint: self, hashes: vec![None; self.tensors.len()] }
    }

    /// Bytes that [`content_digest`](Self::content_digest) reads.
    pub fn digest_bytes(&self) -> u64 {
        let used = self.tensors.iter().filter(|tensor| tensor.used.is_some());
        used.map(|tensor| tensor.range.len() as u64).sum()
    }
}

/// The content digest, taken along while the matrices are read for something else: of a checkpoint larger than memory
/// each is then read from the disk once.
#[derive(Debug)]
pub struct DigestAlong<'a> {
    checkpoint: &'a Checkpoint,
    /// Of each tensor that was seen.
    hashes: Vec<Option<blake3::Hash>>,
}

impl DigestAlong<'_> {
    /// Hashes a prunable matrix, by its layout index. Its pages stay for whoever looks at it next.
    ///
    /// # Panics
    /// When the layout has no such matrix: it is the caller's own.
    pub fn matrix(&mut self, index: usize) {
        let at = self.checkpoint.matrices[index];
        self.hashes[at] = Some(hash(self.checkpoint.matrix(index).bytes()));
    }

    /// Hashes what was not seen, releasing it, and returns what [`Checkpoint::content_digest`] does. `progress` is told
    /// the bytes hashed since its last call.
    pub fn finish(self, progress: &(dyn Fn(u64) + Sync)) -> Digest {
        let Self { checkpoint, mut hashes } = self;
        let tensors = &checkpoint.tensors;
        for shard in &checkpoint.shards {
            let open = |&at: &usize| tensors[at].used.is_some() && hashes[at].is_none();
            let open: Vec<usize> = shard.order.iter().copied().filter(open).collect();
            let mut rest = open.as_slice();
            while let Some(&first) = rest.first() {
                let start = tensors[first].range.start;
                let fits = |&&at: &&usize| tensors[at].range.end - start <= WINDOW_BYTES;
                let batch = rest.iter().take_while(fits).count();
                if batch == 0 {
                    hashes[first] = Some(hash_large(shard, tensors[first].range.clone(), progress));
                    rest = &rest[1..];
                    continue;
                }
                // Small neighbours together: hashed side by side, released in one call.
                let end = tensors[rest[batch - 1]].range.end;
                let hash = |&at: &usize| {
                    let mut hasher = blake3::Hasher::new();
                    update(&mut hasher, &shard.bytes()[tensors[at].range.clone()]);
                    (at, hasher.finalize())
                };
                let hashed: Vec<(usize, blake3::Hash)> = rest[..batch].par_iter().map(hash).collect();
                for (at, hash) in hashed {
                    hashes[at] = Some(hash);
                    progress(tensors[at].range.len() as u64);
                }
                shard.release(start..end);
                rest = &rest[batch..];
            }
        }
        digest_of(tensors, &hashes)
    }
}

/// Hashes a tensor of more than a window, window by window.
fn hash_large(shard: &Shard, range: Range<usize>, progress: &(dyn Fn(u64) + Sync)) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for start in range.clone().step_by(WINDOW_BYTES) {
        let window = start..range.end.min(start + WINDOW_BYTES);
        update(&mut hasher, &shard.bytes()[window.clone()]);
        progress(window.len() as u64);
        shard.release(window);
    }
    hasher.finalize()
}

/// Feeds bytes to a hasher, on all cores where that pays.
pub(crate) fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() >= PARALLEL_BYTES {
        hasher.update_rayon(bytes);
    } else {
        hasher.update(bytes);
    }
}

/// [`update`], begun and ended.
pub(crate) fn hash(bytes: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    update(&mut hasher, bytes);
    hasher.finalize()
}

/// The digest, from the tensors in name order and the hash of each one's bytes; unused ones have none.
pub(crate) fn digest_of(tensors: &[Tensor], hashes: &[Option<blake3::Hash>]) -> Digest {
    let used = || {
        let pairs = tensors.iter().zip(hashes);
        pairs.filter_map(|(tensor, hash)| Some((tensor, tensor.used?.name(), (*hash)?)))
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    hasher.update(&(used().count() as u64).to_le_bytes());
    for (tensor, dtype, hash) in used() {
        for text in [tensor.name.as_str(), dtype] {
            hasher.update(&(text.len() as u32).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&(tensor.shape.len() as u32).to_le_bytes());
        for &dimension in &tensor.shape {
            hasher.update(&(dimension as u64).to_le_bytes());
        }
        hasher.update(hash.as_bytes());
    }
    hasher.finalize().into()
}
