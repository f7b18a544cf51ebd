//! Reading a transcript that anybody may have made.
//!
//! The folder is listed once, under [`Limits`]; files are read when they are asked for, each under the limit of what
//! it is said to be. Links are not followed and folders that have no place here are not entered: both are reported.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use fedprune_federation::ballot::MAX_BODY_BYTES;
use fedprune_federation::evidence::EVIDENCE_LIMIT;
use fedprune_federation::proposed::PROPOSED_LIMIT;
use fedprune_federation::statement::STATEMENT_LIMIT;
use fedprune_federation::wire::PREFIX_BYTES;
use fedprune_federation::{Height, consortium, round};
use fedprune_mask::Digest;
use memmap2::Mmap;

use super::{
    BODIES, CONSORTIUM, Class, HEIGHTS, ROUND, SETTLED, SIGNATURES, SUMMARY, SUMMARY_LIMIT, UNFINISHED, belongs, below,
    body_of, body_path, height_folder, height_of, path_of, settled_path,
};

/// How much a transcript may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files and folders of all kinds.
    pub files: usize,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Unknown files that are named in a report.
    pub unknown: usize,
}

impl Default for Limits {
    /// Half a million files, 16 TB, and a hundred names of unknown ones.
    fn default() -> Self {
        Self { files: 1 << 19, bytes: 1 << 44, unknown: 100 }
    }
}

/// The names of the files of one height, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeightFiles {
    /// Whether there is a decision.
    pub settled: bool,
    names: BTreeMap<Class, Vec<String>>,
}

impl HeightFiles {
    /// The names in the folder of a class.
    pub fn names(&self, class: Class) -> &[String] {
        self.names.get(&class).map_or(&[], Vec::as_slice)
    }
}

/// A transcript, listed and not yet read.
#[derive(Debug)]
pub struct Transcript {
    root: PathBuf,
    heights: BTreeMap<Height, HeightFiles>,
    bodies: Vec<Digest>,
    unknown: Vec<String>,
    unknown_count: usize,
    links: Vec<String>,
}

/// Why a folder cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// The system refused.
    #[error("cannot list `{}`", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No folder, or not that of a transcript.
    #[error("`{}` is no transcript: it has no `{CONSORTIUM}`; give the folder that a node named `transcript`", .0.display())]
    NotATranscript(PathBuf),
    /// More than [`Limits::files`].
    #[error("`{}` holds more than {limit} files, as no transcript does", path.display())]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// More than [`Limits::bytes`].
    #[error("`{}` holds more than {limit} bytes, as no transcript does", path.display())]
    TooManyBytes {
        /// The folder.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("`{0}` is missing")]
    Missing(String),
    /// A link, a folder, a pipe.
    #[error("`{0}` is not a regular file; links are not followed")]
    NotAFile(String),
    /// Larger than what it is said to be can be.
    #[error("`{file}` has {bytes} bytes, more than the {limit} that it may have")]
    TooLarge {
        /// The file.
        file: String,
        /// Its bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The system refused.
    #[error("`{file}` cannot be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A ballot's body, mapped.
#[derive(Debug)]
pub struct Body(Option<Mmap>);

impl Body {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

struct Listing<'l> {
    transcript: Transcript,
    limits: &'l Limits,
    files: usize,
    bytes: u64,
}

impl Transcript {
    /// Lists the transcript in `root`.
    ///
    /// # Errors
    /// [`TranscriptError`] for a folder that is none or holds more than `limits` allow.
    pub fn open(root: &Path, limits: &Limits) -> Result<Self, TranscriptError> {
        let not_there = |error: &std::io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        let found = fs::metadata(root).and_then(|of_root| {
            let is_transcript = of_root.is_dir() && root.join(CONSORTIUM).symlink_metadata().map(|_| true)?;
            Ok(is_transcript)
        });
        match found {
            Ok(true) => {}
            // what may not be looked at is something else than what is not there
            Err(source) if !not_there(&source) => return Err(TranscriptError::Io { path: root.to_owned(), source }),
            Ok(false) | Err(_) => return Err(TranscriptError::NotATranscript(root.to_owned())),
        }
        let transcript = Self {
            root: root.to_owned(),
            heights: BTreeMap::new(),
            bodies: Vec::new(),
            unknown: Vec::new(),
            unknown_count: 0,
            links: Vec::new(),
        };
        let mut listing = Listing { transcript, limits, files: 0, bytes: 0 };
        listing.root()?;
        let mut transcript = listing.transcript;
        transcript.bodies.sort_unstable();
        transcript.unknown.sort_unstable();
        Ok(transcript)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The heights that have a folder, ascending.
    pub fn heights(&self) -> impl Iterator<Item = (Height, &HeightFiles)> {
        self.heights.iter().map(|(height, files)| (*height, files))
    }

    /// The files of one height.
    pub fn height(&self, height: Height) -> Option<&HeightFiles> {
        self.heights.get(&height)
    }

    /// The ballots, ascending.
    pub fn bodies(&self) -> &[Digest] {
        &self.bodies
    }

    /// Files that have no place in a transcript: the first few by name, made harmless, and how many there are.
    pub fn unknown(&self) -> (&[String], usize) {
        (&self.unknown, self.unknown_count)
    }

    /// Folders of a transcript's names that are links or files.
    pub fn not_folders(&self) -> &[String] {
        &self.links
    }

    /// The canonical bytes of the consortium.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn consortium(&self) -> Result<Vec<u8>, ReadError> {
        self.read(CONSORTIUM, limit(consortium::CANONICAL_LIMIT))
    }

    /// The members' signatures of the consortium.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn signatures(&self) -> Result<Vec<u8>, ReadError> {
        self.read(SIGNATURES, limit(consortium::SIGNATURES_LIMIT))
    }

    /// The canonical bytes of the round.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn round(&self) -> Result<Vec<u8>, ReadError> {
        self.read(ROUND, limit(round::CANONICAL_LIMIT))
    }

    /// The unsigned summary.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn summary(&self) -> Result<Vec<u8>, ReadError> {
        self.read(SUMMARY, SUMMARY_LIMIT)
    }

    /// The decision of a height.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn settled(&self, height: Height) -> Result<Vec<u8>, ReadError> {
        self.read(&settled_path(height), limit(PROPOSED_LIMIT))
    }

    /// A file of a height.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn file(&self, height: Height, class: Class, name: &str) -> Result<Vec<u8>, ReadError> {
        let most = match class {
            Class::Headers | Class::Holdings | Class::Results => limit(STATEMENT_LIMIT),
            Class::Proposals => limit(PROPOSED_LIMIT),
            Class::Evidence => limit(EVIDENCE_LIMIT),
        };
        self.read(&path_of(height, class, name), most)
    }

    /// Maps a ballot.
    ///
    /// Whoever truncates the file while it is mapped ends this process with a bus error: audit a copy that nobody
    /// else writes to.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn body(&self, digest: Digest) -> Result<Body, ReadError> {
        let relative = body_path(digest);
        let (file, metadata) = self.open_file(&relative, MAX_BODY_BYTES)?;
        if metadata.len() == 0 {
            return Ok(Body(None));
        }
        // SAFETY: the map is read-only and of a regular file. It is sound as long as nobody truncates or rewrites
        // the file meanwhile, which no reader of mapped files can enforce; the documentation above says so.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| ReadError::Io { file: relative, source })?;
        Ok(Body(Some(map)))
    }

    fn read(&self, relative: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let (file, metadata) = self.open_file(relative, limit)?;
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
        let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|source| ReadError::Io { file: relative.to_owned(), source })?;
        if bytes.len() as u64 > limit {
            return Err(ReadError::TooLarge { file: relative.to_owned(), bytes: bytes.len() as u64, limit });
        }
        Ok(bytes)
    }

    /// Opens a regular file that is reached without a link.
    fn open_file(&self, relative: &str, limit: u64) -> Result<(File, Metadata), ReadError> {
        let file = || relative.to_owned();
        let failed = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => ReadError::Missing(file()),
            _ => ReadError::Io { file: file(), source },
        };
        let mut path = self.root.clone();
        let mut parts = relative.split('/').peekable();
        let mut metadata = None;
        while let Some(part) = parts.next() {
            path.push(part);
            // asked before anything is opened: opening a pipe waits for a writer
            let found = path.symlink_metadata().map_err(failed)?;
            let fits = if parts.peek().is_some() { found.is_dir() } else { found.is_file() };
            if !fits {
                return Err(ReadError::NotAFile(file()));
            }
            metadata = Some(found);
        }
        let opened = File::open(&path).map_err(failed)?;
        let now = opened.metadata().map_err(failed)?;
        if !metadata.is_some_and(|before| same_file(&before, &now)) || !now.is_file() {
            return Err(ReadError::NotAFile(file()));
        }
        if now.len() > limit {
            return Err(ReadError::TooLarge { file: file(), bytes: now.len(), limit });
        }
        Ok((opened, now))
    }
}

/// With the prefix of an encoding.
fn limit(value_bytes: usize) -> u64 {
    value_bytes.saturating_add(PREFIX_BYTES) as u64
}

/// Whether what was opened is what was looked at before.
fn same_file(before: &Metadata, now: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (before.dev(), before.ino()) == (now.dev(), now.ino())
    }
    #[cfg(not(unix))]
    {
        before.len() == now.len()
    }
}

impl Listing<'_> {
    fn root(&mut self) -> Result<(), TranscriptError> {
        for (name, metadata) in self.list("")? {
            match name.as_str() {
                CONSORTIUM | SIGNATURES | ROUND | SUMMARY => {}
                HEIGHTS if self.is_folder(HEIGHTS, &metadata) => self.heights()?,
                BODIES if self.is_folder(BODIES, &metadata) => self.bodies()?,
                HEIGHTS | BODIES => {}
                _ => self.note_unknown("", &name),
            }
        }
        Ok(())
    }

    fn heights(&mut self) -> Result<(), TranscriptError> {
        for (name, metadata) in self.list(HEIGHTS)? {
            match height_of(&name) {
                Some(height) if self.is_folder(&height_folder(height), &metadata) => self.one_height(height)?,
                Some(_) => {}
                None => self.note_unknown(HEIGHTS, &name),
            }
        }
        Ok(())
    }

    fn one_height(&mut self, height: Height) -> Result<(), TranscriptError> {
        let folder = height_folder(height);
        let mut files = HeightFiles::default();
        for (name, metadata) in self.list(&folder)? {
            let class = Class::ALL.into_iter().find(|class| class.folder() == name);
            match class {
                _ if name == SETTLED => files.settled = true,
                Some(class) => {
                    let inner = format!("{folder}/{name}");
                    if self.is_folder(&inner, &metadata) {
                        let names = self.class(&inner, class)?;
                        files.names.insert(class, names);
                    }
                }
                None => self.note_unknown(&folder, &name),
            }
        }
        self.transcript.heights.insert(height, files);
        Ok(())
    }

    fn class(&mut self, folder: &str, class: Class) -> Result<Vec<String>, TranscriptError> {
        let mut names = Vec::new();
        for (name, _) in self.list(folder)? {
            if belongs(class, &name) {
                names.push(name);
            } else {
                self.note_unknown(folder, &name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn bodies(&mut self) -> Result<(), TranscriptError> {
        for (name, _) in self.list(BODIES)? {
            match body_of(&name) {
                Some(digest) => self.transcript.bodies.push(digest),
                None => self.note_unknown(BODIES, &name),
            }
        }
        Ok(())
    }

    /// Names and kinds of what lies in a folder; names that are no Unicode are noted as unknown.
    fn list(&mut self, relative: &str) -> Result<Vec<(String, Metadata)>, TranscriptError> {
        let path =
            if relative.is_empty() { self.transcript.root.clone() } else { below(&self.transcript.root, relative) };
        let failed = |source| TranscriptError::Io { path: path.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            self.files = self.files.saturating_add(1);
            if self.files > self.limits.files {
                let limit = self.limits.files;
                return Err(TranscriptError::TooManyFiles { path: self.transcript.root.clone(), limit });
            }
            // of the link itself, not of what it points to
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_file() {
                self.bytes = self.bytes.saturating_add(metadata.len());
            }
            if self.bytes > self.limits.bytes {
                let limit = self.limits.bytes;
                return Err(TranscriptError::TooManyBytes { path: self.transcript.root.clone(), limit });
            }
            match entry.file_name().into_string() {
                Ok(name) if name == UNFINISHED => {}
                Ok(name) => found.push((name, metadata)),
                Err(name) => self.note_unknown(relative, &name.to_string_lossy()),
            }
        }
        Ok(found)
    }

    fn is_folder(&mut self, relative: &str, metadata: &Metadata) -> bool {
        if !metadata.is_dir() {
            self.transcript.links.push(relative.to_owned());
        }
        metadata.is_dir()
    }

    fn note_unknown(&mut self, folder: &str, name: &str) {
        self.transcript.unknown_count = self.transcript.unknown_count.saturating_add(1);
        if self.transcript.unknown.len() < self.limits.unknown {
            let name = crate::report::harmless(name);
            self.transcript.unknown.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
        }
    }
}
