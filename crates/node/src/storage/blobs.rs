//! Ballot bodies, named by their BLAKE3 root and verified as they arrive.
//!
//! ```text
//! blobs/<root>                   a complete body
//! blobs/<root>.obao              its hash tree down to groups of 16 KiB, in pre-order (bao); can be remade
//! blobs/<root>-<size>.partial    a body that is still arriving, of its full length with holes
//! blobs/<root>-<size>.tree       as much of its tree as has arrived
//! blobs/<root>.damaged           a body that the disk changed; replaced by the next good copy
//! ```
//!
//! A body travels in chunks of 1 MiB, each a *slice* of the hash tree: the hash pairs that lead from the root to
//! the chunk, and its data. Whoever knows the root and the size can check each chunk alone, so a chunk from any
//! member is as good as another's, and a wrong one names the member that sent it. Slices are checked before they
//! are written, again when a transfer resumes (what was held is found by hashing what is on the disk, never from
//! a note about it), and again before they are sent on: a disk that changes bytes is noticed here, not by others.
//!
//! The size is proven by the last chunk alone: earlier ones can be right under a false size. Ask for it first. What
//! arrives is kept by root *and* size, so that a member which announces another's body under a false size is not in
//! the way of the right one.
//!
//! No body is ever in memory as a whole, except mapped. All bodies together stay within a quota.

mod import;
mod partial;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fedprune_mask::Digest;

pub use partial::{AcceptError, Accepted, Partial};
pub use tree::{chunk_bytes, chunk_count, encoded_chunk_bytes};

use super::fs::{self, FileError, failed};
use super::limits::{DISK_RESERVE_BYTES, MAX_BLOB_FILES, MAX_BODY_BYTES};
use tree::{Slice, outboard_bytes};

/// Bodies in a folder; clones share it.
#[derive(Debug, Clone)]
pub struct BlobStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    quota_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Complete bodies and their sizes.
    bodies: BTreeMap<Digest, u64>,
    /// Bodies that are still arriving, by root and size.
    partials: BTreeMap<(Digest, u64), Arriving>,
    /// Bytes of damaged bodies.
    damaged: BTreeMap<Digest, u64>,
    /// Bytes of bodies that are being imported.
    importing_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Arriving {
    /// Bytes that still have to be written.
    missing_bytes: u64,
    /// A [`Partial`] exists.
    open: bool,
}

/// Bytes of a body that are hashed before they are given back.
const HASHED_PIECE_BYTES: usize = 16 << 20;

/// A complete body, mapped into memory.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Hashes the body, a piece at a time, with each piece given back to the system before the next is read.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for piece in self.0.chunks(HASHED_PIECE_BYTES) {
            hasher.update(piece);
            self.release();
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Gives the resident pages back to the system; the next access reads the file again.
    pub fn release(&self) {
        #[cfg(unix)]
        if !self.0.is_empty() {
            // SAFETY: the mapping is of a file, shared and read-only, so that dropped pages come back with the same
            // contents: borrowed slices stay valid and keep their values.
            let advised = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            drop(advised); // advice that the system does not take changes nothing
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Why a body cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The system refuses.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is to be imported cannot be read.
    #[error("the body to be stored cannot be read")]
    Source(#[source] io::Error),
    /// More than the caller allows for this body, or than any body has.
    #[error("body {digest} of {size_bytes} bytes is larger than the {limit_bytes} that it may have", digest = digest.short())]
    TooLarge {
        /// The body.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
        /// Bytes allowed.
        limit_bytes: u64,
    },
    /// More than all bodies may take.
    #[error("{needed_bytes} bytes more would exceed the {quota_bytes} that all bodies of this round may take in `{folder}`", folder = folder.display())]
    Quota {
        /// Where bodies are.
        folder: PathBuf,
        /// Bytes to be added.
        needed_bytes: u64,
        /// Bytes of all bodies.
        quota_bytes: u64,
    },
    /// The disk is full, or nearly.
    #[error("`{folder}` needs {needed_bytes} bytes more and its disk has {available_bytes} to give; free some space", folder = folder.display())]
    NoSpace {
        /// Where bodies are.
        folder: PathBuf,
        /// Bytes to be added, with those of other bodies that are still arriving.
        needed_bytes: u64,
        /// Bytes free beyond the reserve.
        available_bytes: u64,
    },
    /// It is complete already.
    #[error("body {digest} is already held", digest = .0.short())]
    Held(Digest),
    /// Another [`Partial`] of it exists.
    #[error("body {digest} is already being fetched", digest = .0.short())]
    Arriving(Digest),
    /// It is not complete.
    #[error("body {digest} is not held", digest = .0.short())]
    NotHeld(Digest),
    /// Chunks are missing.
    #[error("body {digest} still lacks {missing} chunks", digest = digest.short())]
    Incomplete {
        /// The body.
        digest: Digest,
        /// How many chunks.
        missing: usize,
    },
    /// The disk changed it; it counts as not held from now on.
    #[error("body {digest} was changed on the disk and is no longer held; check the disk (it was moved to `{path}`)", digest = digest.short(), path = path.display())]
    Damaged {
        /// The body.
        digest: Digest,
        /// Where it is now.
        path: PathBuf,
    },
    /// More files than bodies of any round.
    #[error("`{path}` holds more than {MAX_BLOB_FILES} files; move what is not fedprune's elsewhere", path = .0.display())]
    TooManyFiles(PathBuf),
}

impl BlobStore {
    /// Opens the bodies in a folder, which is made if there is none, and removes what a crash left behind. All
    /// bodies together, also those still arriving, may take `quota_bytes`.
    ///
    /// # Errors
    /// [`BlobError::File`], [`BlobError::TooManyFiles`].
    pub fn open(folder: &Path, quota_bytes: u64) -> Result<Self, BlobError> {
        fs::create_folder(folder)?;
        let mut state = State::default();
        let mut trees = Vec::new();
        for (number, entry) in std::fs::read_dir(folder).map_err(failed("list", folder))?.enumerate() {
            if number == MAX_BLOB_FILES {
                return Err(BlobError::TooManyFiles(folder.to_owned()));
            }
            let entry = entry.map_err(failed("list", folder))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(fs::TEMPORARY_PREFIX) {
                fs::remove(&entry.path())?;
                continue;
            }
            let path = entry.path();
            let metadata = entry.metadata().map_err(failed("read", &path))?;
            if !metadata.is_file() {
                continue;
            }
            let size_bytes = metadata.len();
            match Name::parse(name) {
                Some(Name::Body(digest)) => drop(state.bodies.insert(digest, size_bytes)),
                Some(Name::Damaged(digest)) => drop(state.damaged.insert(digest, size_bytes)),
                Some(Name::Partial(digest, size)) if size == size_bytes => {
                    state.partials.insert((digest, size), Arriving { missing_bytes: size, open: false });
                }
                // made in the instant before a crash, or not by this program
                Some(Name::Partial(..)) => fs::remove(&path)?,
                Some(tree) => trees.push((tree, path)),
                None => {}
            }
        }
        let State { bodies, partials, .. } = &mut state;
        // completed in the instant before a crash
        partials.retain(|(digest, _), _| !bodies.contains_key(digest));
        for (tree, path) in trees {
            let used = match tree {
                Name::Tree(digest) => bodies.contains_key(&digest),
                Name::PartialTree(digest, size) => partials.contains_key(&(digest, size)),
                _ => true,
            };
            if !used {
                fs::remove(&path)?;
            }
        }
        let shared = Shared { folder: folder.to_owned(), quota_bytes, state: Mutex::new(state) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether the complete body is here.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.shared.state().bodies.contains_key(digest)
    }

    /// Bytes of a complete body.
    pub fn size_bytes(&self, digest: &Digest) -> Option<u64> {
        self.shared.state().bodies.get(digest).copied()
    }

    /// Complete bodies and their sizes in bytes.
    pub fn bodies(&self) -> Vec<(Digest, u64)> {
        self.shared.state().bodies.iter().map(|(digest, size)| (*digest, *size)).collect()
    }

    /// Bodies that an earlier process began to fetch or this one is fetching, and their sizes in bytes.
    pub fn partials(&self) -> Vec<(Digest, u64)> {
        self.shared.state().partials.keys().copied().collect()
    }

    /// Bytes that count towards the quota.
    pub fn used_bytes(&self) -> u64 {
        self.shared.state().used_bytes()
    }

    /// Where a complete body is, for a transcript to copy.
    ///
    /// # Errors
    /// [`BlobError::NotHeld`].
    pub fn path(&self, digest: &Digest) -> Result<PathBuf, BlobError> {
        if self.contains(digest) { Ok(self.shared.path(Name::Body(*digest))) } else { Err(BlobError::NotHeld(*digest)) }
    }

    /// A complete body as bytes. It is not hashed again; [`BlobStore::verify`] does.
    ///
    /// # Errors
    /// [`BlobError::NotHeld`], [`BlobError::File`].
    pub fn open_mapped(&self, digest: &Digest) -> Result<Mapped, BlobError> {
        let path = self.path(digest)?;
        let file = fs::open(&path)?;
        // SAFETY: a complete body is never written to or cut: it got its name by a rename and is read-only, and
        // the lock of the home folder keeps other nodes away. A body found damaged is renamed, which leaves the
        // mapping as it is.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed("map", &path))?;
        Ok(Mapped(map))
    }

    /// One chunk of a body as it travels; `None` when it is not held, or the body has no such chunk. Chunks of a
    /// body that is still arriving are given too.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when the disk changed the body, which then counts as not held; [`BlobError::File`].
    pub fn encode_chunk(&self, digest: &Digest, chunk: u32) -> Result<Option<Vec<u8>>, BlobError> {
        let Some(size_bytes) = self.size_bytes(digest) else {
            for (digest, size_bytes) in self.arriving(digest) {
                let (body, tree) = (Name::Partial(digest, size_bytes), Name::PartialTree(digest, size_bytes));
                if let Some(bytes) = self.encode(digest, size_bytes, chunk, body, tree)? {
                    return Ok(Some(bytes));
                }
            }
            return Ok(None);
        };
        if chunk_count(size_bytes).is_none_or(|chunks| chunk >= chunks) {
            return Ok(None);
        }
        let encode = || self.encode(*digest, size_bytes, chunk, Name::Body(*digest), Name::Tree(*digest));
        if let Some(bytes) = encode()? {
            return Ok(Some(bytes));
        }
        // Either file may be damaged. The body says which: if it is whole, its tree can be made again.
        self.verify(digest)?;
        encode()
    }

    /// A chunk from these files; `None` when it is not there, or not right.
    fn encode(
        &self,
        digest: Digest,
        size_bytes: u64,
        chunk: u32,
        body: Name,
        tree: Name,
    ) -> Result<Option<Vec<u8>>, BlobError> {
        let Some(slice) = Slice::of(digest, size_bytes, chunk) else { return Ok(None) };
        let (body, tree) = (self.shared.path(body), self.shared.path(tree));
        let open = |path: &Path| match File::open(path) {
            Ok(file) => Ok(Some(file)),
            // being completed this very moment, or the tree is missing
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", path)(error)),
        };
        let (Some(body_file), Some(tree_file)) = (open(&body)?, open(&tree)?) else { return Ok(None) };
        Ok(slice.encode(&body_file, &tree_file).map_err(failed("read", &body))?)
    }

    /// What is arriving under this root.
    fn arriving(&self, digest: &Digest) -> Vec<(Digest, u64)> {
        self.shared.state().partials.range((*digest, 0)..=(*digest, u64::MAX)).map(|(key, _)| *key).collect()
    }

    /// Hashes a complete body again, and makes its tree again if that is damaged or missing.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when it is not what its name says: it is moved aside and no longer held.
    pub fn verify(&self, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest)?;
        let expected_bytes = self.size_bytes(digest).ok_or(BlobError::NotHeld(*digest))?;
        let mut file = fs::open(&path)?;
        let size_bytes = file.metadata().map_err(failed("read", &path))?.len();
        if size_bytes == expected_bytes {
            let tree = import::hash(&self.shared.folder, &mut file, size_bytes)?;
            if tree.root == *digest {
                return self.put_tree(digest, tree);
            }
        }
        let aside = self.shared.path(Name::Damaged(*digest));
        let mut state = self.shared.state();
        state.bodies.remove(digest);
        std::fs::rename(&path, &aside).map_err(failed("rename", &path))?;
        state.damaged.insert(*digest, size_bytes);
        drop(state);
        fs::remove(&self.shared.path(Name::Tree(*digest)))?;
        fs::sync_folder(&self.shared.folder)?;
        Err(BlobError::Damaged { digest: *digest, path: aside })
    }

    /// Deletes what has arrived of a body, of whatever size; nothing happens to what is being fetched.
    ///
    /// # Errors
    /// [`BlobError::File`].
    pub fn forget_partials(&self, digest: &Digest) -> Result<(), BlobError> {
        for key in self.arriving(digest) {
            let mut state = self.shared.state();
            if state.partials.get(&key).is_some_and(|partial| !partial.open) {
                state.partials.remove(&key);
                // under the lock: nobody begins to fetch it meanwhile
                fs::remove(&self.shared.path(Name::Partial(key.0, key.1)))?;
                fs::remove(&self.shared.path(Name::PartialTree(key.0, key.1)))?;
            }
        }
        Ok(())
    }

    /// A good copy replaces a damaged one.
    fn forget_damaged(&self, digest: &Digest) -> Result<(), BlobError> {
        if self.shared.state().damaged.remove(digest).is_some() {
            fs::remove(&self.shared.path(Name::Damaged(*digest)))?;
        }
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The maps are changed in single steps, so a panic elsewhere leaves them whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: Name) -> PathBuf {
        self.folder.join(name.to_string())
    }

    /// Whether `needed_bytes` more fit the quota and the disk; the caller then adds them to the state.
    fn check_room(&self, state: &State, needed_bytes: u64) -> Result<(), BlobError> {
        if state.used_bytes().checked_add(needed_bytes).is_none_or(|bytes| bytes > self.quota_bytes) {
            let quota_bytes = self.quota_bytes;
            return Err(BlobError::Quota { folder: self.folder.clone(), needed_bytes, quota_bytes });
        }
        self.check_disk(state, needed_bytes)
    }

    /// Whether the disk has room for `needed_bytes` more besides what is still arriving.
    fn check_disk(&self, state: &State, needed_bytes: u64) -> Result<(), BlobError> {
        let Some(available_bytes) = fs::available_bytes(&self.folder) else { return Ok(()) };
        let available_bytes = available_bytes.saturating_sub(DISK_RESERVE_BYTES);
        // holes of other bodies will be filled
        let promised = state.partials.values().filter(|partial| partial.open).map(|partial| partial.missing_bytes);
        let needed_bytes = promised.fold(needed_bytes, u64::saturating_add);
        if needed_bytes > available_bytes {
            return Err(BlobError::NoSpace { folder: self.folder.clone(), needed_bytes, available_bytes });
        }
        Ok(())
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        let whole = self.bodies.values().chain(self.damaged.values()).copied();
        let arriving = self.partials.keys().map(|(_, size_bytes)| *size_bytes);
        let with_trees = whole.chain(arriving).map(|size_bytes| size_bytes.saturating_add(outboard_bytes(size_bytes)));
        with_trees.fold(self.importing_bytes, u64::saturating_add)
    }
}

/// A file of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Body(Digest),
    Tree(Digest),
    Partial(Digest, u64),
    PartialTree(Digest, u64),
    Damaged(Digest),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Body(digest) => write!(f, "{digest}"),
            Name::Tree(digest) => write!(f, "{digest}.obao"),
            Name::Partial(digest, size) => write!(f, "{digest}-{size}.partial"),
            Name::PartialTree(digest, size) => write!(f, "{digest}-{size}.tree"),
            Name::Damaged(digest) => write!(f, "{digest}.damaged"),
        }
    }
}

impl Name {
    /// `None` for names that the store does not give.
    fn parse(text: &str) -> Option<Self> {
        let (digest, rest) = text.split_at_checked(64)?;
        let digest = digest.parse().ok()?;
        let sized = |ending: &str| rest.strip_prefix('-')?.strip_suffix(ending)?.parse::<u64>().ok();
        let name = match rest {
            "" => Name::Body(digest),
            ".obao" => Name::Tree(digest),
            ".damaged" => Name::Damaged(digest),
            _ => match (sized(".partial"), sized(".tree")) {
                (Some(size), _) => Name::Partial(digest, size),
                (_, size) => Name::PartialTree(digest, size?),
            },
        };
        (name.to_string() == text).then_some(name)
    }
}

/// Fails for sizes that no body has.
fn check_size(digest: &Digest, size_bytes: u64, limit_bytes: u64) -> Result<(), BlobError> {
    let limit_bytes = limit_bytes.min(MAX_BODY_BYTES);
    if size_bytes > limit_bytes {
        return Err(BlobError::TooLarge { digest: *digest, size_bytes, limit_bytes });
    }
    Ok(())
}
