//! Files that are written whole or not at all, and read under a limit.
//!
//! A new file grows under a temporary name in the same folder, is synced, gets its name by a rename, and the
//! folder is synced: after a crash at any instruction the name leads to the old content or to the new one.
//! Files are readable by their owner alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How the names of unfinished files begin.
pub const TEMPORARY_PREFIX: &str = ".fedprune-";

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("cannot {action} `{path}`", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not such a file at all.
    #[error("`{path}` has more than the {limit} bytes that such a file can have; put the right file there", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        limit: usize,
    },
    /// A folder, device or pipe.
    #[error("`{path}` is not a file; put the right file there", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A text was expected.
    #[error("`{path}` is not a text in UTF-8; put the right file there", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    /// Nothing is at the path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Names the action and the path of a system's error.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Opens a regular file for reading; links to one are followed.
///
/// # Errors
/// [`FileError::NotAFile`] for anything else, before it is opened: a pipe would block.
pub fn open(path: &Path) -> Result<File, FileError> {
    let metadata = std::fs::metadata(path).map_err(failed("read", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(failed("read", path))
}

/// All of a file of at most `limit` bytes.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    read_open(open(path)?, path, limit)
}

/// All of an open file of at most `limit` bytes, which is at `path`.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn read_open(file: File, path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// All of a text of at most `limit` bytes.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn read_text(path: &Path, limit: usize) -> Result<String, FileError> {
    String::from_utf8(read(path, limit)?).map_err(|_| FileError::NotText { path: path.to_owned() })
}

/// Gives `path` this content, in place of any that it has.
///
/// # Errors
/// [`FileError`] naming the path, which then leads to what it led to before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let file = staged(path, bytes)?;
    file.persist(path).map_err(|error| failed("write", path)(error.error))?;
    sync_folder(folder_of(path))
}

/// Makes a new file with this content.
///
/// # Errors
/// [`FileError`] naming the path, also when something is there, which is left alone.
pub fn create_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let file = staged(path, bytes)?;
    file.persist_noclobber(path).map_err(|error| failed("create", path)(error.error))?;
    sync_folder(folder_of(path))
}

fn staged(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, FileError> {
    let mut file = temporary(folder_of(path)).map_err(failed("write", path))?;
    file.write_all(bytes).map_err(failed("write", path))?;
    file.as_file().sync_all().map_err(failed("sync", path))?;
    Ok(file)
}

/// An empty file in `folder` that goes away unless it gets a name.
pub(crate) fn temporary(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder)
}

/// Makes a folder for its owner alone, unless there is one; what holds it must exist.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Ok(()) => sync_folder(folder_of(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(failed("create the folder", path)(error)),
    }
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`FileError`] naming the folder.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder", folder))?;
    }
    Ok(())
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes a file; nothing happens when there is none.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Bytes that an ordinary process can still write to the file system of `folder`, where that can be told.
pub fn available_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
        let mut status = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: `path` is a valid C string that outlives the call, and `status` is writable memory of the
        // type that the call fills.
        if unsafe { libc::statvfs(path.as_ptr(), status.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call succeeded and filled the structure, which is plain integers and was zeroed before.
        let status = unsafe { status.assume_init() };
        // The widths of these fields differ between systems.
        #[allow(clippy::unnecessary_cast)]
        let (blocks, block_bytes) = (status.f_bavail as u64, status.f_frsize as u64);
        blocks.checked_mul(block_bytes)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_no_temporary_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert!(matches!(read(&path, 2), Err(FileError::TooLarge { limit: 2, .. })));
        let error = create_new(&path, b"three").unwrap_err();
        assert!(error.to_string().contains("status.json"), "{error}");
        assert_eq!(read_text(&path, 9).unwrap(), "two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(read(&folder.path().join("none"), 9).unwrap_err().is_not_found());
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        std::fs::write(taken.join("precious"), "x").unwrap();
        assert!(write(&taken, b"new").is_err());
        assert!(taken.join("precious").is_file());
        assert!(matches!(read(&taken, 9), Err(FileError::NotAFile { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (file, inner) = (folder.path().join("file"), folder.path().join("inner"));
        create_new(&file, b"x").unwrap();
        create_folder(&inner).unwrap();
        create_folder(&inner).unwrap();
        for path in [&file, &inner] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o077, 0);
        }
        assert!(create_folder(&file).is_err(), "a file is no folder");
        assert!(available_bytes(folder.path()).unwrap() > 0);
    }
}
