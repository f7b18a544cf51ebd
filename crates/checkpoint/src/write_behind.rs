//! Writing behind: the weight files of a copy are written on a thread of their own, and made durable on another, while
//! the next matrix is being read and pruned. What is written becomes durable as it comes, a few hundred megabytes at a time: left
//! to the end, the disk would stand still now and everybody wait for it then.
//!
//! Bounded: two buffers beside the one in work, and what is read ahead. Errors of the disk end the writer; whoever gives it more learns that it
//! is gone and fetches the error with [`WriteBehind::finish`].

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::error::CheckpointError;
use crate::staging::StagedFile;

/// Buffers that wait while another is written.
const WAITING: usize = 1;
/// Bytes after which progress is told.
const STEP_BYTES: usize = 4 << 20;
/// Bytes after which what is written is made durable.
const DURABLE_BYTES: u64 = 128 << 20;

/// Memory for a piece, which may be larger than the piece: what is there already need not be zeroed to be overwritten.
#[derive(Default)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    bytes: usize,
}

impl Buffer {
    /// That of these bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.len(), memory: bytes }
    }

    /// Makes it a piece of so many bytes, of any contents.
    pub fn resize(&mut self, bytes: usize) {
        if self.memory.len() < bytes {
            self.memory.resize(bytes, 0);
        }
        self.bytes = bytes;
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }

    /// What is in it, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.bytes]
    }
}

/// The thread that writes.
pub(crate) struct WriteBehind<'scope> {
    pieces: SyncSender<Piece>,
    writer: ScopedJoinHandle<'scope, Result<u64, CheckpointError>>,
}

/// The writer has met an error, which [`WriteBehind::finish`] returns.
#[derive(Debug)]
pub(crate) struct WriterGone;

enum Piece {
    /// What follows goes into this file; the one before is complete.
    File(StagedFile),
    Bytes(Buffer),
    /// All files are complete. Without it the last one was given up.
    End,
}

impl<'scope> WriteBehind<'scope> {
    /// Starts the thread; `progress` is told the bytes written since its last call. Buffers that were written come back.
    pub fn begin<'env>(
        scope: &'scope Scope<'scope, 'env>,
        progress: &'env (dyn Fn(u64) + Sync),
    ) -> (Self, Receiver<Buffer>) {
        let (pieces, receiver) = sync_channel(WAITING);
        let (give_back, spare) = channel();
        let writer = scope.spawn(move || write(&receiver, &give_back, progress));
        (Self { pieces, writer }, spare)
    }

    /// Ends the file before, if any, and begins `file`.
    pub fn file(&mut self, file: StagedFile) -> Result<(), WriterGone> {
        self.give(Piece::File(file))
    }

    /// Appends to the file begun last.
    pub fn append(&mut self, bytes: Buffer) -> Result<(), WriterGone> {
        self.give(Piece::Bytes(bytes))
    }

    fn give(&mut self, piece: Piece) -> Result<(), WriterGone> {
        self.pieces.send(piece).map_err(|_| WriterGone)
    }

    /// Waits until everything is durable; the bytes of all files.
    ///
    /// # Errors
    /// The first of the disk's.
    pub fn finish(self) -> Result<u64, CheckpointError> {
        // a writer that is gone has its error to tell
        let _ = self.pieces.send(Piece::End);
        self.join()
    }

    /// Gives the file begun last up and waits for the thread.
    ///
    /// # Errors
    /// The first of the disk's.
    pub fn abandon(self) -> Result<u64, CheckpointError> {
        self.join()
    }

    fn join(self) -> Result<u64, CheckpointError> {
        drop(self.pieces);
        self.writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn write(
    pieces: &Receiver<Piece>,
    give_back: &Sender<Buffer>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<u64, CheckpointError> {
    std::thread::scope(|scope| {
        let mut bytes_written = 0;
        let mut file: Option<StagedFile> = None;
        // one file, or what there is of it, becomes durable while more is written
        let mut syncing: Option<ScopedJoinHandle<'_, Result<u64, CheckpointError>>> = None;
        let mut since_synced = 0;
        for piece in pieces {
            match piece {
                Piece::File(next) => {
                    if let Some(complete) = file.replace(next) {
                        bytes_written += joined(&mut syncing)?;
                        syncing = Some(scope.spawn(move || complete.finish()));
                    }
                    since_synced = 0;
                }
                Piece::Bytes(buffer) => {
                    let Some(file) = &mut file else { continue };
                    for step in buffer.bytes().chunks(STEP_BYTES) {
                        file.append(step)?;
                        progress(step.len() as u64);
                    }
                    since_synced += buffer.bytes().len() as u64;
                    // nobody may be left to use it again
                    let _ = give_back.send(buffer);
                    if since_synced >= DURABLE_BYTES && syncing.as_ref().is_none_or(ScopedJoinHandle::is_finished) {
                        bytes_written += joined(&mut syncing)?;
                        if let Some(so_far) = file.written_so_far()? {
                            syncing = Some(scope.spawn(move || so_far.sync().map(|()| 0)));
                        }
                        since_synced = 0;
                    }
                }
                Piece::End => {
                    bytes_written += joined(&mut syncing)?;
                    if let Some(complete) = file.take() {
                        bytes_written += complete.finish()?;
                    }
                    break;
                }
            }
        }
        Ok(bytes_written)
    })
}

/// Waits for the thread that makes something durable, if there is one.
fn joined(thread: &mut Option<ScopedJoinHandle<'_, Result<u64, CheckpointError>>>) -> Result<u64, CheckpointError> {
    match thread.take() {
        Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        None => Ok(0),
    }
}
