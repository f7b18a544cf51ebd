//! The temporary folder in which a copy grows, beside the place where it will stand.
//!
//! Everything is written and made durable in `.NAME.partial-XXXXXX` next to the final path, then renamed
//! in one step: the final path either does not exist or is complete. Any error, and a panic, removes the
//! temporary folder; only a killed process or a power failure leaves it, under a name that says what it is.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::CheckpointError;
use crate::unbuffered::{UNBUFFERED_FROM_BYTES, Unbuffered};

/// Refuses a path that is taken or cannot become a folder; reads nothing else.
pub(crate) fn check_out(out: &Path) -> Result<(), CheckpointError> {
    match fs::symlink_metadata(out) {
        Ok(_) => return Err(CheckpointError::OutExists { path: out.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(writing("use", out)(error)),
    }
    let bad = |problem, remedy| Err(CheckpointError::OutPath { path: out.to_owned(), problem, remedy });
    if out.file_name().is_none() {
        return bad("it names no new folder", "give the path of a folder that does not exist yet");
    }
    if !parent(out).is_dir() {
        return bad("the folder that should hold it does not exist", "create that folder first");
    }
    Ok(())
}

/// A temporary folder that becomes `out`.
#[derive(Debug)]
pub(crate) struct Staging {
    out: PathBuf,
    folder: TempDir,
}

impl Staging {
    /// Makes the temporary folder, unless `out` is taken or the file system cannot hold `needed_bytes`.
    pub fn begin(out: &Path, needed_bytes: u64) -> Result<Self, CheckpointError> {
        check_out(out)?;
        let parent = parent(out);
        if let Some(available_bytes) = available_bytes(parent)
            && available_bytes < needed_bytes
        {
            return Err(CheckpointError::NoSpace { path: out.to_owned(), needed_bytes, available_bytes, source: None });
        }
        let mut prefix = OsString::from(".");
        prefix.push(out.file_name().unwrap_or(OsStr::new("out")));
        prefix.push(".partial-");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        // As any folder that the user makes (less the umask); temporary folders are private by default.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder.tempdir_in(parent).map_err(writing("create a folder in", parent))?;
        Ok(Self { out: out.to_owned(), folder })
    }

    /// Starts a file of about `bytes` bytes.
    pub fn create(&self, name: &OsStr, bytes: u64) -> Result<StagedFile, CheckpointError> {
        let path = self.folder.path().join(name);
        let shown = self.out.join(name);
        let file = File::create_new(&path).map_err(|error| failed(&shown, bytes, 0, self.folder.path(), error))?;
        let unbuffered = (bytes >= UNBUFFERED_FROM_BYTES).then(|| Unbuffered::open(&path)).flatten();
        let folder = self.folder.path().to_owned();
        Ok(StagedFile { file, unbuffered, folder, shown, bytes, written: 0, failure: None })
    }

    /// Makes the folder durable and gives it its name.
    pub fn finish(self) -> Result<(), CheckpointError> {
        let Self { out, folder } = self;
        sync_folder(folder.path()).map_err(writing("sync", &out))?;
        // Renaming onto a file or a filled folder fails; onto an empty one, made meanwhile, it is harmless.
        check_out(&out)?;
        fs::rename(folder.path(), &out).map_err(writing("create", &out))?;
        // The temporary name is gone; nothing is left for the guard to remove.
        let _ = folder.keep();
        sync_folder(parent(&out)).map_err(|source| CheckpointError::Io {
            action: "sync the folder of",
            path: out.clone(),
            remedy: "the copy is complete, but might not survive a power failure",
            source,
        })
    }
}

/// A file being written; errors name its final path.
#[derive(Debug)]
pub(crate) struct StagedFile {
    file: File,
    /// Through which a large file is written, where that can be.
    unbuffered: Option<Unbuffered>,
    folder: PathBuf,
    shown: PathBuf,
    /// Expected size.
    bytes: u64,
    written: u64,
    /// Set by a failed [`Write`] call, whose caller may have wrapped or lost the error.
    failure: Option<CheckpointError>,
}

impl StagedFile {
    /// Appends, with the error of this crate.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.write_all(bytes).map_err(|error| self.take_failure().unwrap_or_else(|| self.failed(error)))
    }

    /// The error of an earlier failed write through [`Write`].
    pub fn take_failure(&mut self) -> Option<CheckpointError> {
        self.failure.take()
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Another handle, to make durable what is written so far while more is; `None` for a file of which nothing is in
    /// the system's cache.
    ///
    /// # Errors
    /// The system's, of duplicating a handle.
    pub fn written_so_far(&self) -> Result<Option<WrittenSoFar>, CheckpointError> {
        if self.unbuffered.is_some() {
            return Ok(None);
        }
        let file = self.file.try_clone().map_err(|error| self.failed(error))?;
        Ok(Some(WrittenSoFar {
            file,
            folder: self.folder.clone(),
            shown: self.shown.clone(),
            bytes: self.bytes,
            written: self.written,
        }))
    }

    /// Makes the contents durable and closes the file.
    pub fn finish(mut self) -> Result<u64, CheckpointError> {
        if let Some(unbuffered) = self.unbuffered.take() {
            let written = unbuffered.written();
            unbuffered
                .finish(&mut self.file)
                .map_err(|error| failed(&self.shown, self.bytes, written, &self.folder, error))?;
        }
        // A file system may only now find that it is full.
        self.file.sync_all().map_err(|error| self.failed(error))?;
        Ok(self.written)
    }

    fn failed(&self, error: io::Error) -> CheckpointError {
        let written = self.unbuffered.as_ref().map_or(self.written, Unbuffered::written);
        failed(&self.shown, self.bytes, written, &self.folder, error)
    }
}

/// What a file held at some time. Both handles are of one open file, of which the system tells a failure to write once: whoever
/// hears it here must not take the file for complete.
#[derive(Debug)]
pub(crate) struct WrittenSoFar {
    file: File,
    folder: PathBuf,
    shown: PathBuf,
    bytes: u64,
    written: u64,
}

impl WrittenSoFar {
    /// Waits until it is durable.
    pub fn sync(self) -> Result<(), CheckpointError> {
        let Self { file, folder, shown, bytes, written } = self;
        file.sync_data().map_err(|error| failed(&shown, bytes, written, &folder, error))
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let outcome = match &mut self.unbuffered {
            Some(unbuffered) => unbuffered.append(&mut self.file, bytes),
            None => self.file.write(bytes),
        };
        match outcome {
            Ok(written) => {
                self.written += written as u64;
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(self.failed(error));
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Tells a full disk, quota or limit from other failures.
fn failed(path: &Path, bytes: u64, written: u64, folder: &Path, error: io::Error) -> CheckpointError {
    let room = match error.kind() {
        io::ErrorKind::StorageFull => available_bytes(folder).unwrap_or(0),
        // The free space of the disk is not what ran out.
        io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => 0,
        _ => return writing("write", path)(error),
    };
    CheckpointError::NoSpace {
        path: path.to_owned(),
        needed_bytes: bytes,
        available_bytes: written.saturating_add(room),
        source: Some(error),
    }
}

fn writing(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io {
        action,
        path: path.to_owned(),
        remedy: "nothing was left behind: choose a place where files can be written",
        source,
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a folder's entries durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
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
