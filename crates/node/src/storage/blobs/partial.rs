//! A body that arrives in chunks, from anybody and in any order.

use std::fs::File;
use std::path::Path;
use std::sync::MutexGuard;

use fedprune_mask::Digest;

use super::import::protect;
use super::tree::{Slice, SliceError, held_chunks, outboard_bytes};
use super::{Arriving, BlobError, BlobStore, Name, State, check_size};
use crate::storage::fs::{self, FileError, failed};
use crate::storage::limits::CHUNK_BYTES;

/// A body that is arriving. Dropped unfinished, it stays on the disk and [`BlobStore::begin`] goes on with it.
#[derive(Debug)]
pub struct Partial {
    store: BlobStore,
    digest: Digest,
    size_bytes: u64,
    body: File,
    tree: File,
    /// By chunk.
    held: Vec<bool>,
    missing: usize,
}

/// What came of a right chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It was missing.
    New,
    /// It was held already; the bytes were not looked at.
    Already,
}

/// Why a chunk was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It is not that chunk of a body of this root and size: whoever sent it is wrong about it.
    #[error("chunk {chunk} of body {digest} is not what its root says", digest = digest.short())]
    Corrupt {
        /// The body.
        digest: Digest,
        /// The chunk.
        chunk: u32,
    },
    /// The body has no such chunk.
    #[error("body {digest} has no chunk {chunk}", digest = digest.short())]
    NoSuchChunk {
        /// The body.
        digest: Digest,
        /// The chunk.
        chunk: u32,
    },
    /// The disk refuses.
    #[error(transparent)]
    File(#[from] FileError),
}

impl BlobStore {
    /// Begins to fetch a body of `size_bytes` bytes, or goes on where an earlier attempt stopped, with all chunks
    /// on the disk hashed again. Its full size is set aside from the quota.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] above `limit_bytes`, [`BlobError::Quota`] and [`BlobError::NoSpace`] before anything
    /// is made; [`BlobError::Held`], [`BlobError::Arriving`].
    pub fn begin(&self, digest: Digest, size_bytes: u64, limit_bytes: u64) -> Result<Partial, BlobError> {
        check_size(&digest, size_bytes, limit_bytes)?;
        let key = (digest, size_bytes);
        let earlier = {
            let mut state = self.shared.state();
            if state.bodies.contains_key(&digest) {
                return Err(BlobError::Held(digest));
            }
            let earlier = state.partials.get(&key).copied();
            if earlier.is_some_and(|partial| partial.open) {
                return Err(BlobError::Arriving(digest));
            }
            if earlier.is_none() {
                let needed_bytes = size_bytes.saturating_add(outboard_bytes(size_bytes));
                let mut room = self.shared.check_room(&state, needed_bytes);
                if room.is_err() && state.damaged.remove(&digest).is_some() {
                    // the damaged copy makes room for a good one
                    fs::remove(&self.shared.path(Name::Damaged(digest)))?;
                    room = self.shared.check_room(&state, needed_bytes);
                }
                room?;
            }
            state.partials.insert(key, Arriving { missing_bytes: size_bytes, open: true });
            earlier
        };
        let result = self.open_partial(digest, size_bytes);
        if result.is_err() {
            let mut state = self.shared.state();
            match earlier {
                Some(earlier) => drop(state.partials.insert(key, earlier)),
                None => {
                    state.partials.remove(&key);
                    drop(state);
                    fs::remove(&self.shared.path(Name::Partial(digest, size_bytes)))?;
                    fs::remove(&self.shared.path(Name::PartialTree(digest, size_bytes)))?;
                }
            }
        }
        result
    }

    fn open_partial(&self, digest: Digest, size_bytes: u64) -> Result<Partial, BlobError> {
        let open = |name: Name, length_bytes: u64| -> Result<File, FileError> {
            let path = self.shared.path(name);
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let file = options.open(&path).map_err(failed("open", &path))?;
            // holes: no space is taken before bytes arrive
            file.set_len(length_bytes).map_err(failed("extend", &path))?;
            Ok(file)
        };
        let body = open(Name::Partial(digest, size_bytes), size_bytes)?;
        let tree = open(Name::PartialTree(digest, size_bytes), outboard_bytes(size_bytes))?;
        let held = held_chunks(digest, size_bytes, &body, &tree)
            .map_err(failed("read", &self.shared.path(Name::Partial(digest, size_bytes))))?;
        let missing = held.iter().filter(|held| !**held).count();
        let partial = Partial { store: self.clone(), digest, size_bytes, body, tree, held, missing };
        let state = partial.note_missing();
        self.shared.check_disk(&state, 0)?;
        drop(state);
        Ok(partial)
    }
}

impl Partial {
    /// Its root.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its size in bytes, as announced; proven when its last chunk is held.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Chunks that are still missing, ascending.
    pub fn missing(&self) -> impl Iterator<Item = u32> {
        self.held.iter().zip(0..).filter(|(held, _)| !**held).map(|(_, chunk)| chunk)
    }

    /// Chunks that are held, ascending.
    pub fn held(&self) -> impl Iterator<Item = u32> {
        self.held.iter().zip(0..).filter(|(held, _)| **held).map(|(_, chunk)| chunk)
    }

    /// Whether no chunk is missing.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Checks a chunk as [`BlobStore::encode_chunk`] makes it, and writes it; it is durable only after
    /// [`Partial::finish`], and checked again when a later attempt goes on.
    ///
    /// # Errors
    /// [`AcceptError::Corrupt`] when its sender is wrong, [`AcceptError::File`] when the disk is.
    pub fn accept(&mut self, chunk: u32, encoded: &[u8]) -> Result<Accepted, AcceptError> {
        let digest = self.digest;
        let held = usize::try_from(chunk).ok().and_then(|chunk| self.held.get_mut(chunk));
        let held = held.ok_or(AcceptError::NoSuchChunk { digest, chunk })?;
        let slice = Slice::of(digest, self.size_bytes, chunk).ok_or(AcceptError::NoSuchChunk { digest, chunk })?;
        if *held {
            return Ok(Accepted::Already);
        }
        slice.decode(encoded, &mut self.body, &mut self.tree).map_err(|error| match error {
            SliceError::Corrupt => AcceptError::Corrupt { digest, chunk },
            SliceError::Io(error) => {
                let path = self.store.shared.path(Name::Partial(digest, self.size_bytes));
                AcceptError::File(failed("write", &path)(error))
            }
        })?;
        *held = true;
        self.missing = self.missing.saturating_sub(1);
        drop(self.note_missing());
        Ok(Accepted::New)
    }

    /// Makes it a body; once this returns it survives a power failure. Returns its size in bytes.
    ///
    /// # Errors
    /// [`BlobError::Incomplete`], and what has arrived stays for a later attempt. [`BlobError::File`] when the disk
    /// fails; nobody knows then what of it is on the disk, so all of it is dropped.
    pub fn finish(self) -> Result<u64, BlobError> {
        let (digest, size_bytes) = (self.digest, self.size_bytes);
        if self.missing > 0 {
            return Err(BlobError::Incomplete { digest, missing: self.missing });
        }
        let store = self.store.clone();
        let shared = &store.shared;
        let [body, tree] = [Name::Body(digest), Name::Tree(digest)].map(|name| shared.path(name));
        let synced = self.body.sync_all().map_err(failed("sync", &body));
        if let Err(error) = synced.and_then(|()| self.tree.sync_all().map_err(failed("sync", &tree))) {
            // A second sync might succeed without having written anything.
            self.abandon()?;
            return Err(error.into());
        }
        {
            // Whoever serves chunks finds the arriving body or the complete one, never neither.
            let mut state = shared.state();
            let rename = |from: Name, to: &Path| std::fs::rename(shared.path(from), to).map_err(failed("write", to));
            // The body first: its tree can be made again, the reverse would lose all that has arrived.
            rename(Name::Partial(digest, size_bytes), &body)?;
            state.partials.remove(&(digest, size_bytes));
            state.bodies.insert(digest, size_bytes);
            rename(Name::PartialTree(digest, size_bytes), &tree)?;
        }
        protect(&self.body, &body)?;
        protect(&self.tree, &tree)?;
        fs::sync_folder(&shared.folder)?;
        store.forget_partials(&digest)?;
        store.forget_damaged(&digest)?;
        Ok(size_bytes)
    }

    /// Deletes what has arrived.
    ///
    /// # Errors
    /// [`BlobError::File`].
    pub fn abandon(self) -> Result<(), BlobError> {
        let (store, digest) = (self.store.clone(), self.digest);
        drop(self);
        store.forget_partials(&digest)
    }

    /// Tells the store how much will still be written.
    fn note_missing(&self) -> MutexGuard<'_, State> {
        let missing_bytes = (self.missing as u64).saturating_mul(CHUNK_BYTES).min(self.size_bytes);
        let mut state = self.store.shared.state();
        if let Some(partial) = state.partials.get_mut(&(self.digest, self.size_bytes)) {
            partial.missing_bytes = missing_bytes;
        }
        state
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(partial) = self.store.shared.state().partials.get_mut(&(self.digest, self.size_bytes)) {
            partial.open = false;
        }
    }
}
