//! One file into a folder: as long as it is listed, of the digest that is listed, and going on where it was.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::Response;

use crate::client::{Answer, Hub};
use crate::error::{HubError, shorten};
use crate::fetch::Observer;
use crate::listing::{Identity, RemoteFile};
use crate::name::{Commit, RepositoryName};
use crate::trouble::{Interrupted, in_words};

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;
/// How often in a row a transfer may break off without having come far.
const MAX_TRIES: u32 = 5;
/// How far is far enough to forget earlier failures, in bytes.
const FAR_BYTES: u64 = 1 << 20;

/// Where a file of a repository goes.
pub(crate) struct Transfer<'a> {
    pub hub: &'a Hub,
    pub name: &'a RepositoryName,
    pub commit: &'a Commit,
    pub file: &'a RemoteFile,
    /// Without anything in it that was not written here.
    pub folder: &'a Path,
}

/// Both digests of what has come.
struct Digests {
    sha256: Sha256,
    git: Sha1,
}

impl Digests {
    fn of(file: &RemoteFile) -> Self {
        let mut git = Sha1::new();
        git.update(format!("blob {}\0", file.bytes).as_bytes());
        Self { sha256: Sha256::new(), git }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.git.update(bytes);
    }
}

/// A part of a file that is there already.
struct Part {
    path: PathBuf,
    file: File,
    digests: Digests,
    bytes: u64,
    /// How much of it the observer was told of.
    told: u64,
}

impl Transfer<'_> {
    fn path(&self) -> PathBuf {
        self.folder.join(&self.file.name)
    }

    fn part_path(&self) -> PathBuf {
        self.folder.join(part_name(self.file))
    }

    /// How many bytes of it are there already.
    pub fn present(&self) -> u64 {
        let bytes = |path: PathBuf| path.symlink_metadata().map(|metadata| metadata.len()).ok();
        bytes(self.path()).or_else(|| bytes(self.part_path())).unwrap_or(0).min(self.file.bytes)
    }

    /// Brings the file; returns its SHA-256.
    pub fn run(&self, observer: &mut dyn Observer) -> Result<String, HubError> {
        let whole = self.path();
        if whole.symlink_metadata().is_ok() {
            // of an earlier run, which may have ended in any way
            std::fs::rename(&whole, self.part_path()).map_err(failed("rename", &whole))?;
        }
        let mut part = self.begin(observer)?;
        let (mut tries, mut far) = (0u32, part.bytes);
        while part.bytes < self.file.bytes {
            let interrupted = match self.go_on(&mut part, observer) {
                Ok(()) => continue,
                Err(Interrupted::ForGood(error)) => return Err(error),
                Err(interrupted) => interrupted,
            };
            if part.bytes >= far.saturating_add(FAR_BYTES) {
                (tries, far) = (0, part.bytes);
            }
            tries += 1;
            if tries >= MAX_TRIES {
                return Err(self.given_up(interrupted, part.bytes));
            }
            std::thread::sleep(interrupted.pause(tries)); // the caller's own thread
        }
        self.finish(part)
    }

    /// What is told of the last failure when there is no other try.
    fn given_up(&self, interrupted: Interrupted, bytes: u64) -> HubError {
        match interrupted {
            Interrupted::ForGood(error) => error,
            Interrupted::Busy { address, status, .. } => HubError::Busy { address, status },
            Interrupted::ForNow { host, why } if bytes == 0 => HubError::Unreachable { endpoint: host, why },
            Interrupted::ForNow { why, .. } => {
                HubError::BrokenOff { file: self.file.name.clone(), bytes, of: self.file.bytes, why }
            }
        }
    }

    /// What is there of it, read once so that its digest is known.
    fn begin(&self, observer: &mut dyn Observer) -> Result<Part, HubError> {
        let path = self.part_path();
        if path.is_symlink() {
            // none is made here, and what it leads to is not ours
            std::fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(failed("open", &path))?;
        let mut part = Part { path, file, digests: Digests::of(self.file), bytes: 0, told: 0 };
        let there = part.file.metadata().map_err(failed("read", &part.path))?.len();
        if there > self.file.bytes {
            part.restart(self.file)?;
            return Ok(part);
        }
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = part.file.read(&mut buffer).map_err(failed("read", &part.path))?;
            if read == 0 {
                return Ok(part);
            }
            part.took(&buffer[..read], observer);
        }
    }

    /// Asks for the rest and takes what comes.
    fn go_on(&self, part: &mut Part, observer: &mut dyn Observer) -> Result<(), Interrupted> {
        let Answer { response, from: origin } = self.hub.open(self.name, self.commit, self.file, part.bytes)?;
        let host = self.hub.named(&origin);
        let for_now = |why: String| Interrupted::ForNow { host: host.clone(), why };
        match (response.status().as_u16(), part.bytes) {
            (200, 0) => {}
            // the whole file, though a part was asked for
            (200, _) => part.restart(self.file)?,
            (206, from) if from > 0 => self.check_range(&response, from)?,
            (416, from) if from > 0 => {
                part.restart(self.file)?;
                return Err(for_now("it does not go on from there".to_owned()));
            }
            _ => return Err(self.no_file(&response, self.hub.is_own(&origin), host)),
        }
        let left = self.file.bytes - part.bytes;
        if response.headers().get("content-encoding").is_some_and(|encoding| encoding != "identity") {
            return Err(self.wrong_length("it is compressed, which was not asked for".to_owned()).into());
        }
        if let Some(announced) = response.body().content_length().filter(|announced| *announced != left) {
            return Err(self.wrong_length(part.bytes.saturating_add(announced).to_string()).into());
        }
        // one byte more than is expected, to know that there is one
        let mut body = response.into_body().into_with_config().limit(left.saturating_add(1)).reader();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(for_now(in_words(&error.into()))),
            };
            if read == 0 {
                if part.bytes < self.file.bytes {
                    return Err(for_now("the connection was closed".to_owned()));
                }
                return Ok(());
            }
            if read as u64 > self.file.bytes - part.bytes {
                return Err(self.wrong_length(format!("more than {}", self.file.bytes)).into());
            }
            part.file.write_all(&buffer[..read]).map_err(failed("write", &part.path))?;
            part.took(&buffer[..read], observer);
        }
    }

    /// What an answer that is no file means, of the hub itself or of who keeps its files.
    fn no_file(&self, response: &Response<Body>, is_own: bool, host: String) -> Interrupted {
        let status = response.status().as_u16();
        let address = format!("{}/{}/{}", self.hub.endpoint(), self.name, self.file.name);
        let coded = response.headers().get("x-error-code").is_some();
        match status {
            429 | 500..=599 => {
                let address = if is_own { shorten(&address) } else { host };
                Interrupted::Busy { address, status, after: retry_after(response) }
            }
            // whether a model may be had is the hub's to say, and nobody else's
            _ if !is_own => HubError::Storage { file: self.file.name.clone(), host, status }.into(),
            404 if !coded => HubError::Status { address: shorten(&address), status }.into(),
            _ => self.hub.refused(response, &address, self.name, self.commit.as_str()).into(),
        }
    }

    /// Whether an answer goes on where it was asked to.
    fn check_range(&self, response: &Response<Body>, from: u64) -> Result<(), HubError> {
        let range = response.headers().get("content-range").and_then(|range| range.to_str().ok()).unwrap_or_default();
        let (bytes, last) = (self.file.bytes, self.file.bytes.saturating_sub(1));
        if range == format!("bytes {from}-{last}/{bytes}") {
            return Ok(());
        }
        let shown: String = range.chars().take(60).collect();
        Err(self.wrong_length(format!("`{shown}` where bytes {from} to {last} were asked for")))
    }

    fn wrong_length(&self, sent: String) -> HubError {
        HubError::Length { file: self.file.name.clone(), listed: self.file.bytes, sent }
    }

    /// Compares the digest, and gives the file its name.
    fn finish(&self, part: Part) -> Result<String, HubError> {
        let sha256 = hex(&part.digests.sha256.finalize());
        let (kind, listed, found) = match &self.file.identity {
            Identity::Sha256(listed) => ("SHA-256", listed, sha256.clone()),
            Identity::GitBlob(listed) => ("SHA-1 as git takes it", listed, hex(&part.digests.git.finalize())),
        };
        if found != *listed {
            std::fs::remove_file(&part.path).map_err(failed("remove", &part.path))?;
            let (file, listed) = (self.file.name.clone(), listed.clone());
            return Err(HubError::Digest { file, kind, listed, found });
        }
        part.file.sync_all().map_err(failed("write", &part.path))?;
        let whole = self.path();
        std::fs::rename(&part.path, &whole).map_err(failed("rename", &part.path))?;
        Ok(sha256)
    }
}

impl Part {
    /// Bytes are in the file that come next.
    fn took(&mut self, bytes: &[u8], observer: &mut dyn Observer) {
        self.digests.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.bytes > self.told {
            observer.advanced(self.bytes - self.told);
            self.told = self.bytes;
        }
    }

    /// Forgets what is there.
    fn restart(&mut self, file: &RemoteFile) -> Result<(), HubError> {
        self.file.set_len(0).map_err(failed("write", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed("write", &self.path))?;
        (self.digests, self.bytes) = (Digests::of(file), 0);
        Ok(())
    }
}

/// Under which name a file grows.
pub(crate) fn part_name(file: &RemoteFile) -> String {
    format!("{}.part", file.name)
}

/// For how long nothing should be asked, where an answer says that in seconds.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a failed operation on a file is told as.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::File { action, path, source }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
