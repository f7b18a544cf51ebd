//! The few things that a log asks of a disk, so that tests can lose what a crash would lose.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::file_name;

/// Where segments are kept, by height.
pub trait Disk {
    /// Heights and lengths in bytes, in any order.
    ///
    /// # Errors
    /// As the system says, here and below.
    fn segments(&mut self) -> io::Result<Vec<(u32, u64)>>;

    /// Fills the buffer from a segment.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when it ends before.
    fn read_at(&mut self, height: u32, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes into a segment, which is made if there is none.
    ///
    /// # Errors
    /// After one, any part may have been written.
    fn write_at(&mut self, height: u32, offset_bytes: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all writes to a segment durable.
    ///
    /// # Errors
    /// After one, nobody knows which of them are.
    fn sync(&mut self, height: u32) -> io::Result<()>;

    /// Makes the names of new segments durable.
    ///
    /// # Errors
    /// After one, nobody knows which of them are.
    fn sync_folder(&mut self) -> io::Result<()>;

    /// Cuts a segment.
    ///
    /// # Errors
    /// As the system says.
    fn truncate(&mut self, height: u32, length_bytes: u64) -> io::Result<()>;
}

/// Files in a folder.
#[derive(Debug)]
pub struct Folder {
    folder: PathBuf,
    /// The file used last: heights come one after the other.
    open: Option<(u32, File)>,
}

impl Folder {
    /// Files in this folder, which must exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, open: None }
    }

    pub(super) fn path(&self, height: u32) -> PathBuf {
        self.folder.join(file_name(height))
    }

    fn file(&mut self, height: u32, create: bool) -> io::Result<&File> {
        let open = self.open.take().filter(|(open, _)| *open == height);
        let (_, file) = match open {
            Some(open) => self.open.insert(open),
            None => {
                let mut options = File::options();
                options.read(true).write(true).create(create).truncate(false);
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                self.open.insert((height, options.open(self.folder.join(file_name(height)))?))
            }
        };
        Ok(file)
    }
}

impl Disk for Folder {
    fn segments(&mut self) -> io::Result<Vec<(u32, u64)>> {
        let mut segments = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let height = name.to_str().and_then(|name| name.strip_suffix(".wal")?.parse::<u32>().ok());
            // other files are not ours: `0000.wal~`, `+1.wal`
            let Some(height) = height.filter(|height| name == file_name(*height).as_str()) else { continue };
            segments.insert(height, entry.metadata()?.len());
            if segments.len() > super::MAX_SEGMENTS {
                break;
            }
        }
        Ok(segments.into_iter().collect())
    }

    fn read_at(&mut self, height: u32, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        bao_tree::io::sync::ReadAt::read_exact_at(self.file(height, false)?, offset_bytes, buffer)
    }

    fn write_at(&mut self, height: u32, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = self.file(height, true)?;
        file.seek(SeekFrom::Start(offset_bytes))?;
        file.write_all(bytes)
    }

    fn sync(&mut self, height: u32) -> io::Result<()> {
        self.file(height, false)?.sync_data()
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        if cfg!(unix) { File::open(&self.folder)?.sync_all() } else { Ok(()) }
    }

    fn truncate(&mut self, height: u32, length_bytes: u64) -> io::Result<()> {
        self.file(height, false)?.set_len(length_bytes)
    }
}
