//! Bodies that come from this machine: streamed into the store, hashed on the way.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use fedprune_mask::Digest;
use tempfile::NamedTempFile;

use super::tree::{outboard_bytes, write_outboard};
use super::{BlobError, BlobStore, Name, check_size};
use crate::storage::fs::{self, FileError, failed};
use crate::storage::limits::MAX_BODY_BYTES;

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A tree that has no name yet.
#[derive(Debug)]
pub(super) struct Tree {
    pub root: Digest,
    file: NamedTempFile,
}

/// The tree of `size_bytes` bytes of `data`, in a temporary file in `folder`.
pub(super) fn hash(folder: &Path, data: &mut File, size_bytes: u64) -> Result<Tree, BlobError> {
    let mut file = fs::temporary(folder).map_err(failed("write in", folder))?;
    let root = data.rewind().and_then(|()| write_outboard(data, size_bytes, file.as_file_mut()));
    Ok(Tree { root: root.map_err(failed("hash a body in", folder))?, file })
}

/// Bytes of an import that count towards the quota until it ends.
struct Reserved<'a> {
    store: &'a BlobStore,
    bytes: u64,
}

impl Reserved<'_> {
    fn add(&mut self, bytes: u64) -> Result<(), BlobError> {
        let mut state = self.store.shared.state();
        self.store.shared.check_room(&state, bytes)?;
        state.importing_bytes = state.importing_bytes.saturating_add(bytes);
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.store.shared.state();
        state.importing_bytes = state.importing_bytes.saturating_sub(self.bytes);
    }
}

impl BlobStore {
    /// Stores the file at `path` as a body. Returns its root and size in bytes.
    ///
    /// # Errors
    /// [`BlobError`], with nothing stored.
    pub fn import_file(&self, path: &Path) -> Result<(Digest, u64), BlobError> {
        self.import(fs::open(path)?)
    }

    /// Stores all that can be read from `source` as a body; once this returns it survives a power failure. Returns
    /// its root and size in bytes. A body that is already held stays as it is.
    ///
    /// # Errors
    /// [`BlobError`], with nothing stored.
    pub fn import(&self, mut source: impl Read) -> Result<(Digest, u64), BlobError> {
        let folder = &self.shared.folder;
        let mut file = fs::temporary(folder).map_err(failed("write in", folder))?;
        let mut reserved = Reserved { store: self, bytes: 0 };
        let mut buffer = vec![0; COPY_BYTES];
        let mut size_bytes = 0u64;
        loop {
            let read = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(BlobError::Source(error)),
            };
            size_bytes = size_bytes.saturating_add(read as u64);
            check_size(&Digest([0; 32]), size_bytes, MAX_BODY_BYTES)?;
            reserved.add(read as u64)?;
            let part = buffer.get(..read).unwrap_or_default();
            file.write_all(part).map_err(failed("write in", folder))?;
        }
        reserved.add(outboard_bytes(size_bytes))?;
        let tree = hash(folder, file.as_file_mut(), size_bytes)?;
        let root = tree.root;
        if !self.contains(&root) {
            self.put(root, size_bytes, file, tree)?;
        }
        Ok((root, size_bytes))
    }

    /// Gives a body and its tree their names.
    fn put(&self, root: Digest, size_bytes: u64, file: NamedTempFile, tree: Tree) -> Result<(), BlobError> {
        let path = self.shared.path(Name::Body(root));
        file.as_file().sync_all().map_err(failed("sync", &path))?;
        let file = file.persist(&path).map_err(|error| failed("write", &path)(error.error))?;
        protect(&file, &path)?;
        self.put_tree(&root, tree)?;
        self.shared.state().bodies.insert(root, size_bytes);
        self.forget_partials(&root)?;
        self.forget_damaged(&root)
    }

    /// Gives a tree its name and syncs the folder.
    pub(super) fn put_tree(&self, root: &Digest, tree: Tree) -> Result<(), BlobError> {
        let path = self.shared.path(Name::Tree(*root));
        tree.file.as_file().sync_all().map_err(failed("sync", &path))?;
        let file = tree.file.persist(&path).map_err(|error| failed("write", &path)(error.error))?;
        protect(&file, &path)?;
        Ok(fs::sync_folder(&self.shared.folder)?)
    }
}

/// Makes a file read-only, once it has its name: before, a later attempt may have to write to it.
pub(super) fn protect(file: &File, path: &Path) -> Result<(), FileError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o400)).map_err(failed("protect", path))?;
    }
    #[cfg(not(unix))]
    let _ = (file, path);
    Ok(())
}
