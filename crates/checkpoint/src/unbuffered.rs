//! Writing past the system's page cache, for files that are larger than what one would want to find in it: the copy into
//! the cache costs as much of a core as pruning does, and pushes out of memory what others use.
//!
//! Whether that can be is for the file system to say. Where it cannot, when a file is opened or later, the same bytes go
//! through the cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// Files from this size on are written past the cache; smaller ones are read soon by whoever made them.
pub(crate) const UNBUFFERED_FROM_BYTES: u64 = 512 << 20;
/// Bytes that are written at a time: enough of them for the disk to have work in all its queues.
const BLOCK_BYTES: usize = 16 << 20;
/// What places in memory and in the file are multiples of: a page, and at least a sector of any disk.
const ALIGNMENT_BYTES: usize = 4096;

/// A second handle to a file that is being written, and what was not written yet.
#[derive(Debug)]
pub(crate) struct Unbuffered {
    /// `None` once the file system refused.
    direct: Option<File>,
    /// [`BLOCK_BYTES`] from `begin` on, which is aligned.
    memory: Vec<u8>,
    begin: usize,
    filled: usize,
    /// Bytes of the file that are written.
    written: u64,
}

impl Unbuffered {
    /// For the empty file at `path`; `None` where system or file system have no such writing.
    pub fn open(path: &Path) -> Option<Self> {
        let direct = open_direct(path)?;
        let memory = vec![0; BLOCK_BYTES + ALIGNMENT_BYTES];
        let begin = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
        (begin <= ALIGNMENT_BYTES).then_some(Self { direct: Some(direct), memory, begin, filled: 0, written: 0 })
    }

    /// Bytes that are in the file.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes some of `bytes`, which follow what came before; how many. `plain` is another handle to the file.
    ///
    /// # Errors
    /// The system's, of what was taken before as well.
    pub fn append(&mut self, plain: &mut File, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.filled);
        let start = self.begin + self.filled;
        self.memory[start..start + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        if self.filled == BLOCK_BYTES {
            self.write_block(plain)?;
        }
        Ok(taken)
    }

    /// Writes what is left. It is not durable before `plain` was synced.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(mut self, plain: &mut File) -> io::Result<()> {
        // the end of a file is hardly ever aligned
        self.direct = None;
        self.write_block(plain)
    }

    fn write_block(&mut self, plain: &mut File) -> io::Result<()> {
        let block = &self.memory[self.begin..self.begin + self.filled];
        let mut done = 0;
        while let Some(direct) = self.direct.as_mut().filter(|_| done < block.len()) {
            match direct.write(&block[done..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // also after a disk that was full in the middle of a block, of which the other way tells
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                Err(error) => return Err(error),
            }
        }
        if done < block.len() {
            plain.seek(SeekFrom::Start(self.written + done as u64))?;
            plain.write_all(&block[done..])?;
        }
        self.written += block.len() as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that repeat nowhere near a block's length.
    fn bytes(count: usize) -> Vec<u8> {
        (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    /// Writes `contents` in pieces of these sizes; what is in the file then.
    fn written(contents: &[u8], pieces: &[usize], make: impl FnOnce(&Path) -> Unbuffered) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let mut plain = File::create_new(&path).expect("a file");
        let mut file = make(&path);
        let (mut rest, mut sizes) = (contents, pieces.iter().cycle());
        while !rest.is_empty() {
            let (mut piece, after) = rest.split_at(rest.len().min(*sizes.next().expect("a size")));
            while !piece.is_empty() {
                let taken = file.append(&mut plain, piece).expect("taken");
                piece = &piece[taken..];
            }
            rest = after;
        }
        file.finish(&mut plain).expect("written");
        std::fs::read(&path).expect("read")
    }

    /// A file as it is written where the file system refuses what `direct` would do.
    fn refused(direct: Option<File>) -> Unbuffered {
        Unbuffered { direct, memory: vec![0; BLOCK_BYTES + 1], begin: 1, filled: 0, written: 0 }
    }

    #[test]
    fn pieces_of_any_size_come_to_the_same_file() {
        let pieces: [&[usize]; 3] =
            [&[1 << 20, 7, 4 << 20, 4095], &[BLOCK_BYTES], &[BLOCK_BYTES + 1, BLOCK_BYTES - 1, 513]];
        for size in [0, 1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 12_345] {
            let contents = bytes(size);
            for sizes in pieces {
                // a file system that has no such writing is one on which the product goes another way
                let make = |path: &Path| Unbuffered::open(path).unwrap_or_else(|| refused(None));
                assert!(written(&contents, sizes, make) == contents, "{size} bytes in pieces of {sizes:?}");
            }
        }
    }

    #[test]
    fn what_the_file_system_refuses_goes_through_the_cache() {
        let contents = bytes(BLOCK_BYTES + 99);
        // memory that is not aligned is refused by some file systems and taken by others
        let make = |path: &Path| refused(open_direct(path));
        assert!(written(&contents, &[1 << 20], make) == contents);
        assert!(written(&contents, &[1 << 20], |_| refused(None)) == contents);
    }
}
