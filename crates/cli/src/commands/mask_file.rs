//! A ballot, an explicit mask or a tally, opened from a file for a checkpoint.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{Header, Kind, peek_header};
use fedprune_mask::tally::{Agreement, Counts, Tally};
use fedprune_mask::{Ballot, Digest, Group, Layout, MatrixMask, Sparsity, WeightsView};
use memmap2::Mmap;

/// The bytes of a file, mapped.
pub(crate) struct MappedFile {
    pub path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps `path`.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot read `{}`", path.display());
        // asked before it is opened: opening a pipe waits for a writer
        let metadata = std::fs::metadata(path).with_context(context)?;
        if !metadata.is_file() {
            bail!("`{}` is not a regular file; give a ballot, mask or tally", path.display());
        }
        let file = std::fs::File::open(path).with_context(context)?;
        let metadata = file.metadata().with_context(context)?;
        if metadata.len() == 0 {
            return Ok(Self { path: path.to_owned(), map: None });
        }
        Self::of(path, &file).with_context(context)
    }

    /// Maps an open file that `path` names in messages.
    pub fn of(path: &Path, file: &std::fs::File) -> std::io::Result<Self> {
        // SAFETY: the map is read-only and private to this process's view. Whoever truncates the file while it is
        // read ends this process with a bus error; mask files are written whole and renamed, never truncated.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self { path: path.to_owned(), map: Some(map) })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Its header.
    pub fn header(&self) -> anyhow::Result<Header> {
        peek_header(self.bytes()).with_context(|| self.unusable())
    }

    /// How an error about this file begins.
    pub fn unusable(&self) -> String {
        format!("`{}` cannot be used", self.path.display())
    }

    /// A name for its silo: the file's name without its extension.
    pub fn stem(&self) -> String {
        self.path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
    }
}

/// What a mask file holds.
pub(crate) enum MaskFile<'a> {
    /// One silo's ballot, or an explicit mask.
    Ballot(Box<Ballot<'a>>),
    /// An agreed set of ballots.
    Tally(Box<Tally<'a>>),
}

impl<'a> MaskFile<'a> {
    /// Parses `file`, which must have been made for the layout.
    pub fn parse(file: &'a MappedFile, layout: &'a Layout) -> anyhow::Result<Self> {
        let header = file.header()?;
        Ok(match header.kind() {
            Kind::Tally => {
                let tally = Tally::parse(file.bytes(), layout).with_context(|| file.unusable())?;
                Self::Tally(Box::new(tally))
            }
            Kind::Vote | Kind::Mask => {
                let ballot = Ballot::parse(file.bytes(), layout).with_context(|| file.unusable())?;
                Self::Ballot(Box::new(ballot))
            }
        })
    }

    /// Content digest of the checkpoint it was made for.
    pub fn model(&self) -> Digest {
        match self {
            Self::Ballot(ballot) => ballot.model(),
            Self::Tally(tally) => tally.model(),
        }
    }

    /// The group in which it keeps its budgets.
    pub fn group(&self) -> Group {
        match self {
            Self::Ballot(ballot) => ballot.group(),
            Self::Tally(tally) => tally.group(),
        }
    }

    /// Its sparsity.
    pub fn sparsity(&self) -> Sparsity {
        match self {
            Self::Ballot(ballot) => ballot.sparsity(),
            Self::Tally(tally) => tally.sparsity(),
        }
    }

    /// How many silos speak through it.
    pub fn votes(&self) -> u32 {
        match self {
            Self::Ballot(ballot) => ballot.votes(),
            Self::Tally(tally) => tally.voters().len() as u32,
        }
    }

    /// The mask of one matrix.
    pub fn mask(&self, index: usize, weights: WeightsView<'_>) -> anyhow::Result<MatrixMask> {
        Ok(match self {
            Self::Ballot(ballot) => ballot.mask(index, weights)?,
            Self::Tally(tally) => tally.mask(index, weights)?,
        })
    }

    /// The mask of one matrix, and of a tally the votes that it came from.
    pub fn mask_and_counts(
        &self,
        index: usize,
        weights: WeightsView<'_>,
    ) -> anyhow::Result<(MatrixMask, Option<Counts>)> {
        Ok(match self {
            Self::Ballot(ballot) => (ballot.mask(index, weights)?, None),
            Self::Tally(tally) => tally.matrix(index, weights).map(|(mask, counts)| (mask, Some(counts)))?,
        })
    }

    /// The mask of one matrix, and of a tally how far its votes agree.
    pub fn mask_and_agreement(
        &self,
        index: usize,
        weights: WeightsView<'_>,
    ) -> anyhow::Result<(MatrixMask, Option<Agreement>)> {
        Ok(match self {
            Self::Ballot(ballot) => (ballot.mask(index, weights)?, None),
            Self::Tally(tally) => tally.mask_and_agreement(index, weights).map(|(mask, of)| (mask, Some(of)))?,
        })
    }
}

/// Refuses a tally whose ballots give another mask than it says.
pub(crate) fn check_root(path: &Path, mask: &MaskFile<'_>, derived: Digest) -> anyhow::Result<()> {
    if let MaskFile::Tally(tally) = mask
        && let Some(claimed) = tally.mask_root()
        && claimed != derived
    {
        bail!(
            "`{}` says that its mask root is {claimed}, but its ballots give {derived}; \
             it is damaged or forged: tally the ballots again",
            path.display()
        );
    }
    Ok(())
}

/// Refuses a mask that was made for other weights.
pub(crate) fn check_model(
    file: &MappedFile,
    made_for: Digest,
    checkpoint: &Checkpoint,
    digest: Digest,
) -> anyhow::Result<()> {
    if made_for != digest {
        bail!(
            "`{}` was made for a model with content digest {made_for}, but `{}` has {digest}; \
             give the --model that it was computed from",
            file.path.display(),
            checkpoint.dir().display()
        );
    }
    Ok(())
}
