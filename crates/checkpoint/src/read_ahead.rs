//! Reading ahead: the next matrix is read and hashed while the last one is being pruned, so that no core waits for what only
//! one of them can do.
//!
//! Bounded: one piece beside the one in work. Errors come in the place of the piece that could not be read.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use crate::checkpoint::{Checkpoint, Shard};
use crate::content;
use crate::error::CheckpointError;
use crate::write_behind::Buffer;

/// Bytes of a tensor that is not pruned that are copied at a time. A power of two, so that BLAKE3's tree splits evenly.
const COPY_BYTES: usize = 4 << 20;

/// A prunable matrix, or a window of another tensor.
pub(crate) struct Loaded {
    pub buffer: Buffer,
    /// Of the whole tensor, with the last of its pieces.
    pub hash: Option<blake3::Hash>,
}

/// The thread that reads all tensors, in the order of the files.
pub(crate) struct ReadAhead {
    pieces: Receiver<Result<Loaded, CheckpointError>>,
}

/// Whoever was read for is gone.
struct Unwanted;

impl ReadAhead {
    /// Starts the thread, which ends with the last piece or when `self` is gone. It reads into `spare` buffers if there are any.
    pub fn begin<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        checkpoint: &'env Checkpoint,
        spare: Receiver<Buffer>,
    ) -> Self {
        let (ready, pieces) = sync_channel(0);
        scope.spawn(move || {
            // nobody is left to be told
            let _ = read(checkpoint, &spare, &ready);
        });
        Self { pieces }
    }

    /// The next piece.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] of the file; what follows it is not read.
    ///
    /// # Panics
    /// When more is wanted than there is.
    pub fn next(&mut self) -> Result<Loaded, CheckpointError> {
        self.pieces.recv().expect("every tensor is read")
    }
}

fn read(
    checkpoint: &Checkpoint,
    spare: &Receiver<Buffer>,
    ready: &SyncSender<Result<Loaded, CheckpointError>>,
) -> Result<(), Unwanted> {
    let load = |shard: &Shard, range: Range<usize>| {
        let mut buffer = spare.try_recv().unwrap_or_default();
        buffer.resize(range.len());
        shard.read(range, buffer.bytes_mut()).map(|()| buffer)
    };
    let give = |piece: Result<Loaded, CheckpointError>| {
        let failed = piece.is_err();
        ready.send(piece).map_err(|_| Unwanted)?;
        if failed { Err(Unwanted) } else { Ok(()) }
    };
    for shard in &checkpoint.shards {
        for tensor in shard.order.iter().map(|at| &checkpoint.tensors[*at]) {
            let Range { start, end } = tensor.range;
            if tensor.matrix.is_some() {
                give(load(shard, start..end).map(|buffer| {
                    let hash = Some(content::hash(buffer.bytes()));
                    Loaded { buffer, hash }
                }))?;
                continue;
            }
            let mut hasher = blake3::Hasher::new();
            let mut at = start;
            loop {
                let next = end.min(at.saturating_add(COPY_BYTES));
                give(load(shard, at..next).map(|buffer| {
                    content::update(&mut hasher, buffer.bytes());
                    let hash = (next == end).then(|| hasher.finalize());
                    Loaded { buffer, hash }
                }))?;
                at = next;
                if at == end {
                    break;
                }
            }
        }
    }
    Ok(())
}
