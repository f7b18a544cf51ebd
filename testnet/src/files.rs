//! Folders and logs of a testnet.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{TestnetError, at};
use crate::manifest::MANIFEST_LIMIT;
use crate::network::Logs;

/// Most testnets in one folder.
const MAX_FOLDERS: u32 = 100_000;
/// Most bytes of a log that are looked at for its last lines.
const TAIL_BYTES: u64 = 16 << 10;
/// Lines of a log that are quoted.
const TAIL_LINES: usize = 12;
/// Most characters of a quoted line.
const TAIL_LINE_CHARS: usize = 300;
/// Bytes of a log that are searched at a time.
const SEARCH_BYTES: usize = 64 << 10;
/// Begins the line with which the program says why it ends.
const ERROR: &str = "error: ";

/// Where everything lies in the folder of a testnet.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) root: PathBuf,
}

impl Folder {
    pub(crate) fn manifest(&self) -> PathBuf {
        self.root.join("manifest.toml")
    }

    pub(crate) fn consortium(&self) -> PathBuf {
        self.root.join("consortium.toml")
    }

    pub(crate) fn round(&self) -> PathBuf {
        self.root.join("round.toml")
    }

    pub(crate) fn home(&self, silo: &str) -> PathBuf {
        self.root.join("homes").join(silo)
    }

    pub(crate) fn pruned(&self, silo: &str) -> PathBuf {
        self.root.join("pruned").join(silo)
    }

    pub(crate) fn by_hand(&self) -> PathBuf {
        self.root.join("tally-by-hand")
    }

    pub(crate) fn commands_log(&self) -> PathBuf {
        self.root.join("logs").join("commands.log")
    }

    pub(crate) fn logs(&self, silo: &str) -> Logs {
        let logs = self.root.join("logs");
        Logs { events: logs.join(format!("{silo}.jsonl")), errors: logs.join(format!("{silo}.log")) }
    }

    /// Makes the folders that nodes and commands write into.
    pub(crate) fn furnish(&self) -> Result<(), TestnetError> {
        for name in ["homes", "logs", "pruned"] {
            let path = self.root.join(name);
            std::fs::create_dir(&path).map_err(at("create", &path))?;
        }
        Ok(())
    }
}

/// Creates the folder asked for, or the first free one below the current one that is called `prefix` and a number.
pub(crate) fn new_folder(asked: Option<&Path>, prefix: &str) -> Result<PathBuf, TestnetError> {
    if let Some(path) = asked {
        return match std::fs::create_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(TestnetError::FolderExists(path.to_owned()))
            }
            created => created.map(|()| path.to_owned()).map_err(at("create", path)),
        };
    }
    let mut number = 1u32;
    loop {
        let path = PathBuf::from(format!("{prefix}{number}"));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < MAX_FOLDERS => number += 1,
            created => return created.map(|()| path.clone()).map_err(at("create", &path)),
        }
    }
}

/// Reads a manifest's text, of which one byte more than may be is enough to refuse it.
pub(crate) fn read_manifest(path: &Path) -> Result<String, TestnetError> {
    read_text(path, MANIFEST_LIMIT)
}

/// Reads a text of at most `limit` bytes and one; pipes and devices, which may never end, are not opened.
pub(crate) fn read_text(path: &Path, limit: usize) -> Result<String, TestnetError> {
    let metadata = std::fs::metadata(path).map_err(at("read", path))?;
    if !metadata.is_file() {
        return Err(at("read", path)(std::io::Error::other("it is no file")));
    }
    let mut text = String::new();
    let file = File::open(path).map_err(at("read", path))?;
    file.take(limit as u64 + 1).read_to_string(&mut text).map_err(at("read", path))?;
    Ok(text)
}

/// What a file holds from a position on, of a long rest the end; empty if it cannot be read.
pub(crate) fn read_from(path: &Path, position: u64) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let from = position.max(file.metadata()?.len().saturating_sub(TAIL_BYTES));
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

/// Whether a file holds a text, wherever in it, however long it is; one that is not there does not.
pub(crate) fn holds(path: &Path, text: &str) -> Result<bool, TestnetError> {
    let search = || -> std::io::Result<bool> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        loop {
            // what a text that goes on would begin with
            bytes.drain(..bytes.len().saturating_sub(text.len().saturating_sub(1)));
            if file.by_ref().take(SEARCH_BYTES as u64).read_to_end(&mut bytes)? == 0 {
                return Ok(false);
            }
            if bytes.windows(text.len().max(1)).any(|window| window == text.as_bytes()) {
                return Ok(true);
            }
        }
    };
    search().map_err(at("read", path))
}

/// The last error that the program had for a log, from a position on.
pub(crate) fn last_error(path: &Path, position: u64) -> Option<String> {
    let said = read_from(path, position);
    let text = String::from_utf8_lossy(&said);
    text.lines().rev().find(|line| line.starts_with(ERROR)).map(str::to_owned)
}

/// The last lines of a log, without what would move a terminal's cursor.
pub(crate) fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tame = |line: &str| -> String {
        line.chars().take(TAIL_LINE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
    };
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|line| tame(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_is_quoted_tamely() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let line = |number: usize| format!("line {number} {}\u{1b}[2J", "x".repeat(400));
        let text: Vec<String> = (0..1000).map(line).collect();
        std::fs::write(&path, text.join("\n\n")).unwrap();
        let quoted = last_lines(&read_from(&path, 0));
        assert_eq!(quoted.len(), TAIL_LINES);
        assert!(quoted[TAIL_LINES - 1].starts_with("line 999 xxx"));
        assert!(quoted.iter().all(|line| line.chars().count() == TAIL_LINE_CHARS && !line.contains('\u{1b}')));
        assert!(read_from(&folder.path().join("none"), 0).is_empty());
        assert_eq!(last_lines(&read_from(&path, 1 << 40)), Vec::<String>::new());
    }

    #[test]
    fn a_text_is_found_wherever_it_is_in_a_long_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let needle = "panicked at ";
        for before in [0, 1, SEARCH_BYTES - 5, SEARCH_BYTES, 3 * SEARCH_BYTES - 11, 3 * SEARCH_BYTES + 7] {
            let line = |bytes: usize| "x".repeat(bytes);
            std::fs::write(&path, format!("{}{needle}{}", line(before), line(200_000))).unwrap();
            assert!(holds(&path, needle).unwrap(), "{before}");
            std::fs::write(&path, format!("{}panicked_at {}", line(before), line(200_000))).unwrap();
            assert!(!holds(&path, needle).unwrap(), "{before}");
        }
        assert!(!holds(&folder.path().join("none"), needle).unwrap());
        assert!(holds(folder.path(), needle).is_err());
    }

    #[test]
    fn the_last_error_is_that_of_the_last_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let first = "$ fedprune\nerror: one\n";
        std::fs::write(&path, format!("{first}$ fedprune\nwell\n")).unwrap();
        assert_eq!(last_error(&path, 0).as_deref(), Some("error: one"));
        assert_eq!(last_error(&path, first.len() as u64), None);
    }

    #[test]
    fn a_manifest_is_a_file_of_bounded_size() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_manifest(folder.path()).is_err());
        let path = folder.path().join("m.toml");
        std::fs::write(&path, "x".repeat(MANIFEST_LIMIT * 2)).unwrap();
        assert_eq!(read_manifest(&path).unwrap().len(), MANIFEST_LIMIT + 1);
    }
}
