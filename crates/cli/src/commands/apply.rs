//! `fedprune apply`: the pruned copy of a checkpoint, with its mask and a card that says how it was made.

use std::cell::RefCell;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::{
    BoxError, Checkpoint, CheckpointError, Extra, ExtraFile, Pruned, check_copyable, check_out, write_pruned,
};
use fedprune_mask::ballot::{MaskHeader, MaskSections, mask_head};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Counts, apply_to_stored};
use fedprune_mask::{Ballot, Digest, Group, Layout, Matrix, MatrixMask, Sparsity, WeightsView};
use fedprune_prune::PruneError;
use serde::Serialize;

use super::agreement::{self, Agreement};
use super::mask_file::{MappedFile, MaskFile, check_model, check_root};
use super::model_card::{ModelCard, matrix_kind};
use super::recipe::{PICTURE_FILE, RECIPE_FILE, Recipe, picture};
use crate::args::{ApplyOptions, Scale};
use crate::files::{folder_of, peak_memory_bytes, program, shell};
use crate::interrupt;
use crate::output::{bytes, count, facts, percent};
use crate::progress::Meter;

/// Name of the mask beside the pruned weights. It holds the bits and no ballot: a folder that is published says
/// no more than the zeros in it do.
pub const MASK_FILE: &str = "pruning-mask.fedprune";

/// The answer of `fedprune apply`.
#[derive(Debug, Clone, Serialize)]
pub struct ApplyReport {
    /// The pruned folder.
    #[serde(serialize_with = "crate::output::lossy::path")]
    pub folder: PathBuf,
    bytes: u64,
    /// The mask that was applied.
    pub mask_root: Digest,
    group: Group,
    sparsity: Sparsity,
    votes: u32,
    scaled: bool,
    pruned_weights: u64,
    prunable_weights: u64,
    base_digest: Digest,
    pruned_digest: Digest,
    carried: Vec<String>,
    left_out: Vec<LeftOut>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

/// A file of the original that is not in the copy.
#[derive(Debug, Clone, Serialize)]
struct LeftOut {
    name: String,
    reason: &'static str,
}

crate::report!(ApplyReport);

/// Writes the pruned copy.
///
/// # Errors
/// What is wrong with the model, the mask or the output path; nothing half-written is left.
pub fn run(options: &ApplyOptions, meter: &Meter) -> anyhow::Result<ApplyReport> {
    let started = Instant::now();
    check_out(&options.out)?;
    let checkpoint = Checkpoint::open(&options.model)?;
    check_copyable(&checkpoint)?;
    let layout = checkpoint.layout();
    let file = MappedFile::open(&options.mask)?;
    let mask = MaskFile::parse(&file, layout)?;
    if options.scale == Some(Scale::Support) && matches!(mask, MaskFile::Ballot(_)) {
        bail!(
            "`{}` holds one mask and no votes, so support is unknown; drop --scale, or tally ballots first with: \
             {} tally BALLOT… --model {} --out FILE",
            options.mask.display(),
            program(),
            shell(&options.model)
        );
    }
    let handed_over = options.agreement.as_ref().map(|path| Agreement::read(path, layout)).transpose()?;
    let handed_over = handed_over.filter(|_| mask.votes() > 1);
    // of one vote there is nothing to say
    let measures = matches!(&mask, MaskFile::Tally(_)) && mask.votes() > 1;
    let interruptible = interrupt::cooperative();
    let sidecar = RefCell::new(Sidecar::begin(layout, &options.out, &mask)?);
    // what `write_pruned` was told, as it was: its own error only wraps the words
    let refusal: RefCell<Option<anyhow::Error>> = RefCell::default();
    let refuse = |error: anyhow::Error| -> BoxError {
        let text = format!("{error:#}");
        *refusal.borrow_mut() = Some(error);
        text.into()
    };
    let edit = |index: usize, stored: &mut [u8]| -> anyhow::Result<()> {
        interruptible.check()?;
        let matrix = &layout.matrices()[index];
        let dtype = checkpoint.matrix(index).dtype();
        let weights = WeightsView::new(dtype, matrix.rows as usize, matrix.columns as usize, stored)?;
        weights.check_finite().map_err(|source| PruneError::Weights {
            file: checkpoint.matrix_file(index).to_owned(),
            tensor: matrix.name.clone(),
            source,
        })?;
        let derived = match options.scale {
            Some(Scale::Support) => mask.mask_and_counts(index, weights).map(|(bits, counts)| {
                let agreement = counts.as_ref().map(Counts::agreement);
                (bits, agreement, counts)
            }),
            None if measures => mask.mask_and_agreement(index, weights).map(|(bits, of)| (bits, of, None)),
            None => mask.mask(index, weights).map(|bits| (bits, None, None)),
        };
        let (bits, agreement, counts) = derived.with_context(|| file.unusable())?;
        sidecar.borrow_mut().keep(index, &bits, agreement.map(|agreement| agreement.share()))?;
        apply_to_stored(stored, dtype, &bits, counts.as_ref());
        Ok(())
    };
    // Weights are read once, so that whose they are is known when they have been written: a copy of other weights
    // never gets its name.
    let write_mask = |pruned: &Pruned, writer: &mut dyn Write| -> anyhow::Result<()> {
        check_model(&file, mask.model(), &checkpoint, pruned.base_digest)?;
        let mut sidecar = sidecar.borrow_mut();
        check_root(&options.mask, &mask, sidecar.mask_root()?)?;
        let header = MaskHeader {
            model: pruned.base_digest,
            layout: layout.digest(),
            group: mask.group(),
            sparsity: mask.sparsity(),
            votes: mask.votes(),
        };
        sidecar.encode(&header, writer)
    };
    let agreement = || if measures { sidecar.borrow().agreement() } else { handed_over.clone() };
    let write_card = |pruned: &Pruned, writer: &mut dyn Write| -> anyhow::Result<()> {
        let sidecar = sidecar.borrow();
        let card = ModelCard {
            checkpoint: &checkpoint,
            base_digest: pruned.base_digest,
            mask_root: sidecar.mask_root()?,
            recipe: recipe(&mask),
            scaled: options.scale.is_some(),
            pruned_weights: sidecar.pruned_weights(),
            pruned_by_kind: &sidecar.pruned_by_kind(),
            agreement: agreement().map(|votes| (votes.mean(layout), agreement::by_chance(mask.sparsity()))),
            mask_file: MASK_FILE,
            out: &options.out,
        };
        Ok(writer.write_all(card.text(pruned.content_digest, pruned.base_card.as_deref()).as_bytes())?)
    };
    let write_recipe = |pruned: &Pruned, writer: &mut dyn Write| -> anyhow::Result<()> {
        let recipe = Recipe {
            mask: &mask,
            base_digest: pruned.base_digest,
            pruned_digest: pruned.content_digest,
            layout_digest: layout.digest(),
            mask_root: sidecar.borrow().mask_root()?,
            scaled: options.scale.is_some(),
            mask_file: MASK_FILE,
        };
        Ok(writer.write_all(recipe.text().as_bytes())?)
    };
    let write_picture = |_: &Pruned, writer: &mut dyn Write| -> anyhow::Result<()> {
        Ok(writer.write_all(picture(&sidecar.borrow().pruned_by_matrix()).as_bytes())?)
    };
    let write_agreement = |_: &Pruned, writer: &mut dyn Write| -> anyhow::Result<()> {
        let picture = agreement().map(|votes| votes.picture(layout)).transpose()?.flatten();
        Ok(writer.write_all(picture.unwrap_or_default().as_bytes())?)
    };
    let mut extra = vec![
        ExtraFile {
            name: MASK_FILE.to_owned(),
            contents: Extra::Write {
                bytes: layout.packed_bytes(),
                write: Box::new(|pruned, writer| write_mask(pruned, writer).map_err(&refuse)),
            },
        },
        ExtraFile {
            name: RECIPE_FILE.to_owned(),
            contents: Extra::Write {
                bytes: 64 << 10,
                write: Box::new(|pruned, writer| write_recipe(pruned, writer).map_err(&refuse)),
            },
        },
        ExtraFile {
            name: PICTURE_FILE.to_owned(),
            contents: Extra::Write {
                bytes: 256 << 10,
                write: Box::new(|pruned, writer| write_picture(pruned, writer).map_err(&refuse)),
            },
        },
        ExtraFile {
            name: "README.md".to_owned(),
            contents: Extra::Write {
                bytes: 16 << 10,
                write: Box::new(|pruned, writer| write_card(pruned, writer).map_err(&refuse)),
            },
        },
    ];
    if measures || handed_over.is_some() {
        extra.push(ExtraFile {
            name: agreement::PICTURE_FILE.to_owned(),
            contents: Extra::Write {
                bytes: 512 << 10,
                write: Box::new(|pruned, writer| write_agreement(pruned, writer).map_err(&refuse)),
            },
        });
    }
    let task = meter.task("writing the pruned copy", checkpoint.file_bytes(), true);
    let mut refusing_edit = |index: usize, stored: &mut [u8]| edit(index, stored).map_err(&refuse);
    let outcome = write_pruned(&checkpoint, &options.out, &mut refusing_edit, &extra, &task.counter());
    drop(task);
    let written = outcome.map_err(|error| match error {
        CheckpointError::Edit { .. } | CheckpointError::Extra { .. } => refusal.take().unwrap_or_else(|| error.into()),
        _ => error.into(),
    })?;
    let sidecar = sidecar.borrow();
    Ok(ApplyReport {
        folder: written.folder,
        bytes: written.bytes,
        mask_root: sidecar.mask_root()?,
        group: mask.group(),
        sparsity: mask.sparsity(),
        votes: mask.votes(),
        scaled: options.scale.is_some(),
        pruned_weights: sidecar.pruned_weights(),
        prunable_weights: layout.weights(),
        base_digest: written.base_digest,
        pruned_digest: written.content_digest,
        carried: written.carried,
        left_out: written
            .skipped
            .into_iter()
            .map(|skipped| LeftOut { name: skipped.name, reason: skipped.reason })
            .collect(),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
    })
}

/// The explicit mask while it grows in file order, in a temporary file without a name: it goes with this process,
/// however that ends. Its sections are encoded as they come, while weights are being written; at the end they only change
/// places.
struct Sidecar<'a> {
    layout: &'a Layout,
    out: &'a Path,
    file: std::fs::File,
    sections: MaskSections,
    /// Bytes in the file.
    end: u64,
    /// Of each matrix in layout order, once it was seen.
    seen: Vec<Option<Seen>>,
    /// Of each matrix, how far the votes agree, if that was measured.
    agreement: Vec<Option<f64>>,
}

/// One matrix of the [`Sidecar`].
#[derive(Clone, Copy)]
struct Seen {
    digest: Digest,
    pruned_weights: u64,
    /// Where its section begins in the file, and how long it is.
    start: u64,
    bytes: u64,
}

impl<'a> Sidecar<'a> {
    fn begin(layout: &'a Layout, out: &'a Path, mask: &MaskFile<'_>) -> anyhow::Result<Self> {
        let file = tempfile::tempfile_in(folder_of(out)).with_context(|| context(out))?;
        let sections = MaskSections::new(mask.group(), mask.sparsity());
        let matrices = layout.matrices().len();
        Ok(Self { layout, out, file, sections, end: 0, seen: vec![None; matrices], agreement: vec![None; matrices] })
    }

    fn keep(&mut self, index: usize, bits: &MatrixMask, agreement: Option<f64>) -> anyhow::Result<()> {
        let section = self.sections.section(&self.layout.matrices()[index], bits)?;
        self.agreement[index] = agreement;
        let (start, bytes) = (self.end, section.len() as u64);
        self.file.write_all(&section).with_context(|| context(self.out))?;
        self.end += bytes;
        self.seen[index] = Some(Seen { digest: bits.digest(), pruned_weights: bits.count_pruned(), start, bytes });
        Ok(())
    }

    fn mask_root(&self) -> anyhow::Result<Digest> {
        let digests = self.seen.iter().map(|seen| seen.map(|seen| seen.digest)).collect::<Option<Vec<_>>>();
        Ok(mask_root(self.layout.digest(), digests.context("some matrices were not seen")?))
    }

    /// How far the votes agree, once that was measured of every matrix.
    fn agreement(&self) -> Option<Agreement> {
        self.agreement.iter().copied().collect::<Option<Vec<f64>>>().map(Agreement::of)
    }

    fn pruned_weights(&self) -> u64 {
        self.seen.iter().flatten().map(|seen| seen.pruned_weights).sum()
    }

    /// How many weights of each matrix are pruned, in layout order.
    fn pruned_by_matrix(&self) -> Vec<(&Matrix, u64)> {
        let pruned = self.seen.iter().map(|seen| seen.map_or(0, |seen| seen.pruned_weights));
        self.layout.matrices().iter().zip(pruned).collect()
    }

    /// (kind such as `self_attn.q_proj`, pruned, of how many), in layout order.
    fn pruned_by_kind(&self) -> Vec<(String, u64, u64)> {
        let mut kinds: Vec<(String, u64, u64)> = Vec::new();
        for (matrix, seen) in self.layout.matrices().iter().zip(&self.seen) {
            let (kind, pruned) = (matrix_kind(&matrix.name), seen.map_or(0, |seen| seen.pruned_weights));
            match kinds.iter_mut().find(|(known, _, _)| known == kind) {
                Some((_, sum, all)) => {
                    *sum += pruned;
                    *all += matrix.weights();
                }
                None => kinds.push((kind.to_owned(), pruned, matrix.weights())),
            }
        }
        kinds
    }

    /// Writes the mask file: its head, and the sections in layout order.
    fn encode(&mut self, header: &MaskHeader, writer: &mut dyn Write) -> anyhow::Result<()> {
        writer.write_all(&mask_head(header, self.layout)?)?;
        let mut section = Vec::new();
        for seen in &self.seen {
            let seen = seen.context("some matrices were not seen")?;
            section.resize(usize::try_from(seen.bytes)?, 0);
            let mut read = || {
                self.file.seek(SeekFrom::Start(seen.start))?;
                self.file.read_exact(&mut section)
            };
            read().with_context(|| context(self.out))?;
            writer.write_all(&section)?;
        }
        Ok(())
    }
}

/// How an error about the temporary mask begins.
fn context(out: &Path) -> String {
    format!("cannot write the mask of `{}` beside it; nothing was left behind", out.display())
}

/// How the mask was made, for the card.
fn recipe(mask: &MaskFile<'_>) -> Vec<(String, String)> {
    let vote = |ballot: &Ballot<'_>| match ballot.header() {
        fedprune_mask::ballot::BallotHeader::Vote(vote) if vote.samples > 0 => {
            format!("{}, local group {}, {} × {} tokens", vote.pruner, vote.group, vote.samples, vote.sequence_tokens)
        }
        fedprune_mask::ballot::BallotHeader::Vote(vote) => format!("{}, local group {}", vote.pruner, vote.group),
        fedprune_mask::ballot::BallotHeader::Mask(mask) => format!("explicit mask, group {}", mask.group),
    };
    let mut rows = vec![("Sparsity".to_owned(), mask.sparsity().to_string())];
    match mask {
        MaskFile::Ballot(ballot) => rows.push(("Mask of one silo".to_owned(), vote(ballot))),
        MaskFile::Tally(tally) => {
            rows.push(("Global group".to_owned(), tally.group().to_string()));
            rows.push(("Silos".to_owned(), tally.voters().len().to_string()));
            if let Some(first) = tally.voters().first() {
                let same = tally.voters().iter().all(|voter| vote(&voter.ballot) == vote(&first.ballot));
                let text = if same { vote(&first.ballot) } else { "differing recipes".to_owned() };
                rows.push(("Votes".to_owned(), text));
            }
            if tally.voters().iter().any(|voter| voter.weight != 1) {
                let weights = tally.voters().iter().map(|voter| voter.weight.to_string()).collect::<Vec<_>>();
                rows.push(("Tally weights".to_owned(), weights.join(", ")));
            }
        }
    }
    rows
}

impl ApplyReport {
    fn text(&self) -> String {
        let mut rows = vec![
            ("pruned copy", format!("{} ({})", self.folder.display(), bytes(self.bytes))),
            (
                "pruned",
                format!(
                    "{} of {} weights ({}){}",
                    count(self.pruned_weights),
                    count(self.prunable_weights),
                    percent(self.pruned_weights, self.prunable_weights),
                    if self.scaled { ", kept weights scaled by their support" } else { "" }
                ),
            ),
            ("mask root", self.mask_root.to_string()),
            ("content digest", self.pruned_digest.to_string()),
            ("carried along", self.carried.join(", ")),
        ];
        if !self.left_out.is_empty() {
            let names = self.left_out.iter().map(|file| format!("{} ({})", file.name, file.reason));
            rows.push(("left out", names.collect::<Vec<_>>().join(", ")));
        }
        rows.push(("time", format!("{:.1} s", self.seconds)));
        if let Some(peak) = self.peak_memory_bytes {
            rows.push(("peak memory", bytes(peak)));
        }
        format!("{}\nnext: {} eval perplexity --model {} --data FILE", facts(&rows), program(), shell(&self.folder))
    }
}
