//! What a study has measured so far, on disk, so that one that was stopped goes on.
//!
//! | path in the folder | what |
//! |---|---|
//! | `votes/<id>.ballot` | the ballot of one silo, as a node would send it |
//! | `votes/<id>/<height>-<silo>.ballot` | the ballots of an iterative federation |
//! | `measured.jsonl` | one line for each evaluated model |
//!
//! An id is the BLAKE3 of everything that the result follows from: model, windows, recipe, device. So whatever was
//! measured once, in this study or an earlier one with the same folder, is not measured again, and what changed is.
//! Files appear whole or not at all; of `measured.jsonl` a torn last line is dropped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use fedprune_mask::Digest;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::error::StudyError;
use crate::results::MatrixProfile;

/// Most bytes of `measured.jsonl`.
const MEASURED_LIMIT: u64 = 1 << 30;

/// One line of `measured.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What was evaluated.
    pub id: Digest,
    /// e^(mean over windows of the mean token loss).
    pub perplexity: f64,
    /// The mask.
    pub mask_root: Option<Digest>,
    /// The mask, matrix by matrix, where that was asked for.
    pub profile: Option<Vec<MatrixProfile>>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// One line of `measured.jsonl` about ballots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Voted {
    voted: Digest,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Measured(Measured),
    Voted(Voted),
}

/// The folder of a study.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    measured: BTreeMap<Digest, Measured>,
    seconds: f64,
    log: File,
}

impl Store {
    /// Opens the folder, or begins it.
    ///
    /// # Errors
    /// [`StudyError::Io`], [`StudyError::Measurement`] for a line that was not written here.
    pub fn open(folder: &Path) -> Result<Self, StudyError> {
        let votes = folder.join("votes");
        std::fs::create_dir_all(&votes).map_err(StudyError::io("create", &votes))?;
        let path = folder.join("measured.jsonl");
        let mut log = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(StudyError::io("open", &path))?;
        let bytes = log.metadata().map_err(StudyError::io("read", &path))?.len();
        if bytes > MEASURED_LIMIT {
            let why = format!("the file has {bytes} bytes, more than {MEASURED_LIMIT}");
            return Err(StudyError::Measurement { path, line: 1, why });
        }
        let mut text = Vec::new();
        log.read_to_end(&mut text).map_err(StudyError::io("read", &path))?;
        // a line without its end was being written when the program ended
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        log.set_len(whole as u64).map_err(StudyError::io("shorten", &path))?;
        text.truncate(whole);
        let mut store = Self { folder: folder.to_owned(), measured: BTreeMap::new(), seconds: 0.0, log };
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let damaged = |error: serde_json::Error| StudyError::Measurement {
                path: path.clone(),
                line: index + 1,
                why: error.to_string(),
            };
            match serde_json::from_slice(line).map_err(damaged)? {
                Line::Measured(measured) => {
                    store.seconds += measured.seconds;
                    store.measured.insert(measured.id, measured);
                }
                Line::Voted(voted) => store.seconds += voted.seconds,
            }
        }
        Ok(store)
    }

    /// What was measured of this id.
    pub fn measured(&self, id: Digest) -> Option<&Measured> {
        self.measured.get(&id)
    }

    /// Seconds of computing, over all runs.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Keeps a measurement.
    ///
    /// # Errors
    /// [`StudyError::Io`].
    pub fn keep(&mut self, measured: Measured) -> Result<(), StudyError> {
        self.append(&measured)?;
        self.seconds += measured.seconds;
        self.measured.insert(measured.id, measured);
        Ok(())
    }

    /// Notes how long it took to compute ballots.
    ///
    /// # Errors
    /// [`StudyError::Io`].
    pub fn voted(&mut self, id: Digest, seconds: f64) -> Result<(), StudyError> {
        self.append(&Voted { voted: id, seconds })?;
        self.seconds += seconds;
        Ok(())
    }

    fn append(&mut self, line: &impl Serialize) -> Result<(), StudyError> {
        let path = self.folder.join("measured.jsonl");
        let mut bytes = serde_json::to_vec(line).map_err(|error| StudyError::Io {
            action: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        bytes.push(b'\n');
        self.log.write_all(&bytes).and_then(|()| self.log.sync_data()).map_err(StudyError::io("write", path))
    }

    /// Where the ballot of one silo is kept.
    pub fn vote(&self, id: Digest) -> PathBuf {
        self.folder.join("votes").join(format!("{id}.ballot"))
    }

    /// Where the ballot of one silo at one height of an iterative federation is kept.
    pub fn height_vote(&self, id: Digest, height: usize, silo: usize) -> PathBuf {
        self.folder.join("votes").join(id.to_string()).join(format!("{height:04}-{silo:02}.ballot"))
    }

    /// Writes a file that is there whole or not at all.
    ///
    /// # Errors
    /// [`StudyError::Io`], and what `write` returns.
    pub fn create(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> Result<(), StudyError>,
    ) -> Result<(), StudyError> {
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(StudyError::io("create", folder))?;
        let mut file = new_file_in(folder)?;
        {
            let mut buffered = std::io::BufWriter::new(&mut file);
            write(&mut buffered)?;
            buffered.flush().map_err(StudyError::io("write", path))?;
        }
        file.as_file().sync_data().map_err(StudyError::io("write", path))?;
        file.persist(path).map_err(|error| StudyError::Io {
            action: "write",
            path: path.to_owned(),
            source: error.error,
        })?;
        Ok(())
    }
}

/// A temporary file that others may read once it has its name, as far as the user lets them read new files.
pub(crate) fn new_file_in(folder: &Path) -> Result<NamedTempFile, StudyError> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // less what the umask takes
    }
    builder.tempfile_in(folder).map_err(StudyError::io("write in", folder))
}

/// A kept ballot: about a megabyte for a 7 B model.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, StudyError> {
    std::fs::read(path).map_err(StudyError::io("read", path))
}
