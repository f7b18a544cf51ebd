//! What a pass has measured so far, on disk: an append-only file, one record a block.
//!
//! ```text
//! magic "fedprune journal 1\n"
//! record: u32 length, 32-byte BLAKE3 of the payload, payload       (first payload: the run's key)
//! ```
//! Every record is synced before the pass goes on. A torn last record is dropped when the file is opened
//! again; anything before it is intact by its digest. Norms are what the ballot will hold anyway.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fedprune_mask::{Digest, Layout, NormVector};

use crate::error::PruneError;
use crate::pass::taps_of;

const MAGIC: &[u8] = b"fedprune journal 1\n";
const DIGEST_BYTES: usize = 32;

/// What must be the same for a run to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalKey {
    /// Content digest of the dense checkpoint.
    pub model: Digest,
    /// Digest of the calibration tokens.
    pub calibration: Digest,
    /// Pruner, group and sparsity.
    pub recipe: String,
    /// Device and compute dtype: activations differ in their last bits between devices.
    pub compute: String,
}

impl JournalKey {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.model.0);
        bytes.extend(self.calibration.0);
        for text in [&self.recipe, &self.compute] {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    /// Which part of `stored`, another run's key, differs; `None` when they are the same.
    fn difference(&self, stored: &[u8]) -> Option<&'static str> {
        if stored == self.to_bytes() {
            None
        } else if stored.get(..32) != Some(&self.model.0) {
            Some("model")
        } else if stored.get(32..64) != Some(&self.calibration.0) {
            Some("calibration text, --nsamples, --seqlen, --sampling or --seed")
        } else {
            Some("--pruner, --local-group, --sparsity, --device or --dtype")
        }
    }
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    known: BTreeMap<usize, Vec<NormVector>>,
}

impl Journal {
    /// Opens or creates the journal at `path` for the run `key`.
    ///
    /// # Errors
    /// [`PruneError::JournalMismatch`] when the file belongs to another run, [`PruneError::NoJournal`] when it is
    /// something else, [`PruneError::JournalIo`] when it cannot be read or written. The file is then as it was.
    pub fn open(path: &Path, key: &JournalKey, layout: &Layout) -> Result<Self, PruneError> {
        let io = |action| move |source| PruneError::JournalIo { action, path: path.to_owned(), source };
        let key = key.clone();
        let existing = regular_file(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).truncate(false);
        if existing.is_none() {
            options.create_new(true);
        }
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600); // norms are the silo's until they are sent
        let mut file = options.open(path).map_err(io("open"))?;
        let mut bytes = Vec::new();
        if existing.is_some_and(|length| length > 0) {
            let longest = longest(&key, layout);
            (&mut file).take(MAGIC.len() as u64).read_to_end(&mut bytes).map_err(io("read"))?;
            if !MAGIC.starts_with(&bytes) {
                return Err(PruneError::NoJournal { path: path.to_owned() });
            }
            (&mut file).take(longest).read_to_end(&mut bytes).map_err(io("read"))?;
        }
        let mut known = BTreeMap::new();
        let mut valid = 0; // bytes up to the end of the last intact record
        if let Some(mut rest) = bytes.strip_prefix(MAGIC) {
            let mut first = true;
            while let Some((payload, after)) = next_record(rest) {
                if first {
                    if let Some(difference) = key.difference(payload) {
                        return Err(PruneError::JournalMismatch { path: path.to_owned(), difference });
                    }
                    first = false;
                } else {
                    let Some(norms) = block_of(payload, known.len(), layout) else { break };
                    known.insert(known.len(), norms);
                }
                rest = after;
                valid = bytes.len() - rest.len();
            }
        }
        let mut journal = Self { path: path.to_owned(), file, known };
        let begin = |journal: &mut Self| {
            journal.file.set_len(valid as u64).map_err(io("truncate"))?;
            journal.file.seek(SeekFrom::Start(valid as u64)).map_err(io("read"))?;
            if valid > 0 {
                return Ok(());
            }
            journal.file.write_all(MAGIC).map_err(io("write"))?;
            journal.write_record(&key.to_bytes())
        };
        if let Err(error) = begin(&mut journal) {
            if existing.is_none() {
                // It holds nothing yet; if even this fails, the first error is the one to hear about.
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
        Ok(journal)
    }

    /// Deletes the journal at `path`, of whatever run; nothing happens when there is none.
    ///
    /// # Errors
    /// [`PruneError::NoJournal`] when the file is something else, which is left alone.
    pub fn discard(path: &Path) -> Result<(), PruneError> {
        let io = |action| move |source| PruneError::JournalIo { action, path: path.to_owned(), source };
        if regular_file(path)?.is_none() {
            return Ok(());
        }
        let mut start = Vec::new();
        let file = File::open(path).map_err(io("open"))?;
        file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(io("read"))?;
        if !MAGIC.starts_with(&start) {
            return Err(PruneError::NoJournal { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(io("remove"))
    }

    /// Blocks measured by earlier runs.
    pub fn known_blocks(&self) -> usize {
        self.known.len()
    }

    /// Norms of a block that an earlier run measured.
    pub(crate) fn take_block(&mut self, block: usize) -> Option<Vec<NormVector>> {
        self.known.remove(&block)
    }

    /// Adds the norms of `block` and syncs them.
    pub(crate) fn append(&mut self, block: usize, norms: &[NormVector]) -> Result<(), PruneError> {
        let mut payload = Vec::new();
        payload.extend((block as u64).to_le_bytes());
        for bits in norms.iter().flat_map(|norms| norms.bits()) {
            payload.extend(bits.to_le_bytes());
        }
        self.write_record(&payload)
    }

    fn write_record(&mut self, payload: &[u8]) -> Result<(), PruneError> {
        let io = |source| PruneError::JournalIo { action: "write", path: self.path.clone(), source };
        let mut record = Vec::with_capacity(payload.len() + 36);
        record.extend((payload.len() as u32).to_le_bytes());
        record.extend(Digest::of(payload).0);
        record.extend(payload);
        self.file.write_all(&record).and_then(|()| self.file.sync_data()).map_err(io)
    }

    /// Deletes the journal: the run it belongs to has ended well.
    ///
    /// # Errors
    /// [`PruneError::JournalIo`].
    pub fn remove(self) -> Result<(), PruneError> {
        std::fs::remove_file(&self.path).map_err(|source| PruneError::JournalIo {
            action: "remove",
            path: self.path,
            source,
        })
    }
}

/// The length of the regular file at `path`, `None` when nothing is there. Links are not followed: norms would
/// end up wherever they lead.
fn regular_file(path: &Path) -> Result<Option<u64>, PruneError> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Err(PruneError::NoJournal { path: path.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PruneError::JournalIo { action: "open", path: path.to_owned(), source }),
    }
}

/// Bytes of a journal's records when every block is measured.
fn longest(key: &JournalKey, layout: &Layout) -> u64 {
    let record = |payload: u64| 4 + DIGEST_BYTES as u64 + payload;
    let norms = |range: &std::ops::Range<usize>| u64::from(layout.matrices()[range.start].columns) * 2;
    let blocks = layout.blocks() as u64;
    record(key.to_bytes().len() as u64) + blocks * record(8) + layout.taps().iter().map(norms).sum::<u64>()
}

/// The first record of `bytes` and what follows it; `None` when it is torn.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (digest, rest) = rest.split_first_chunk::<DIGEST_BYTES>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let payload = rest.get(..length)?;
    (Digest::of(payload).0 == *digest).then(|| (payload, &rest[length..]))
}

/// The norm vectors in the record of block `expected`.
fn block_of(payload: &[u8], expected: usize, layout: &Layout) -> Option<Vec<NormVector>> {
    let (block, mut rest) = payload.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*block) != expected as u64 {
        return None;
    }
    let mut norms = Vec::new();
    for range in taps_of(layout, expected) {
        let columns = layout.matrices()[range.start].columns as usize;
        let bits = rest.get(..columns * 2)?;
        rest = &rest[columns * 2..];
        let bits = bits.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        norms.push(NormVector::from_canonical_bits(bits).ok()?);
    }
    (rest.is_empty() && !norms.is_empty()).then_some(norms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedprune_mask::{Matrix, Tap};

    fn layout() -> Layout {
        let matrix = |name: &str, block, tap, columns| Matrix { name: name.into(), block, tap, rows: 4, columns };
        Layout::new(
            (0..3)
                .flat_map(|block| [matrix("q", block, Tap::AttentionInput, 3), matrix("o", block, Tap::MlpOutput, 5)])
                .collect(),
        )
        .unwrap()
    }

    fn key() -> JournalKey {
        let (model, calibration) = (Digest::of(b"model"), Digest::of(b"text"));
        JournalKey { model, calibration, recipe: "wanda row 0.5".into(), compute: "cpu f32".into() }
    }

    fn norms(block: usize) -> Vec<NormVector> {
        [3, 5].map(|columns| NormVector::from_sums(&vec![(block + columns) as f64; columns], 1).unwrap()).to_vec()
    }

    fn filled(path: &Path) {
        let mut journal = Journal::open(path, &key(), &layout()).unwrap();
        for block in 0..2 {
            journal.append(block, &norms(block)).unwrap();
        }
    }

    #[test]
    fn continues_after_any_torn_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        filled(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut journal = Journal::open(&path, &key(), &layout()).unwrap();
            let known = journal.known_blocks();
            for block in 0..known {
                assert_eq!(journal.take_block(block), Some(norms(block)));
            }
            for block in known..2 {
                journal.append(block, &norms(block)).unwrap();
            }
            drop(journal);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_bit_drops_what_follows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        filled(&path);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Journal::open(&path, &key(), &layout()).unwrap().known_blocks(), 1);
    }

    #[test]
    fn another_run_is_refused_by_name_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        filled(&path);
        let before = std::fs::read(&path).unwrap();
        for (change, expected) in [(0, "another model"), (1, "another calibration text"), (2, "another --pruner")] {
            let mut other = key();
            match change {
                0 => other.model = Digest::of(b"other"),
                1 => other.calibration = Digest::of(b"other"),
                _ => other.recipe = "ria row 0.5".into(),
            }
            let error = Journal::open(&path, &other, &layout()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("--restart"), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::write(&path, "precious notes").unwrap();
        assert!(Journal::open(&path, &key(), &layout()).unwrap_err().to_string().contains("no unfinished run"));
        assert!(Journal::discard(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious notes");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed_and_nobody_else_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("journal"), folder.path().join("elsewhere"));
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(Journal::open(&path, &key(), &layout()), Err(PruneError::NoJournal { .. })));
        assert!(matches!(Journal::discard(&path), Err(PruneError::NoJournal { .. })));
        assert!(!target.exists());
        std::fs::remove_file(&path).unwrap();
        filled(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        Journal::discard(&path).unwrap();
        Journal::discard(&path).unwrap();
        assert!(!path.exists());
    }
}
