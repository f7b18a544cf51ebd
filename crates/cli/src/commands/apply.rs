//! `fedprune apply`: the pruned copy of a checkpoint, with its mask and a card that says how it was made.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::{Checkpoint, Extra, ExtraFile, check_copyable, check_out, write_pruned};
use fedprune_mask::ballot::{MaskHeader, encode_mask};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::apply_to_stored;
use fedprune_mask::{Ballot, Digest, Group, Sparsity};
use fedprune_prune::check_finite;
use serde::Serialize;

use super::mask_file::{MappedFile, MaskFile, check_model, check_root};
use super::model_card::{ModelCard, matrix_kind};
use super::{content_digest, encode_error};
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
    let base_digest = content_digest(&checkpoint, meter);
    check_model(&file, mask.model(), &checkpoint, base_digest)?;

    let interruptible = interrupt::cooperative();
    let sidecar = Sidecar::derive(&checkpoint, &mask, base_digest, options, meter)?;
    check_root(&options.mask, &mask, sidecar.mask_root)?;
    let bits = MappedFile::of(Path::new(MASK_FILE), &sidecar.file).context("cannot read the mask just written")?;
    let explicit = Ballot::parse(bits.bytes(), layout).context("the mask just written does not read back")?;
    let card = ModelCard {
        checkpoint: &checkpoint,
        base_digest,
        mask_root: sidecar.mask_root,
        recipe: recipe(&mask),
        scaled: options.scale.is_some(),
        pruned_weights: sidecar.pruned_weights,
        pruned_by_kind: &sidecar.pruned_by_kind,
        mask_file: MASK_FILE,
        out: &options.out,
    };
    let task = meter.task("writing the pruned copy", checkpoint.file_bytes(), true);
    let written = write_pruned(
        &checkpoint,
        &options.out,
        &mut |index, stored| {
            interruptible.check()?;
            let weights = checkpoint.matrix(index);
            let bits = explicit.mask(index, weights)?;
            let counts = match options.scale {
                Some(Scale::Support) => mask.counts(index, weights)?,
                None => None,
            };
            apply_to_stored(stored, weights.dtype(), &bits, counts.as_ref());
            Ok(())
        },
        &[
            ExtraFile { name: MASK_FILE.to_owned(), contents: Extra::Bytes(bits.bytes().into()) },
            ExtraFile {
                name: "README.md".to_owned(),
                contents: Extra::Write {
                    bytes: 16 << 10,
                    write: Box::new(|pruned, writer| {
                        let text = card.text(pruned.content_digest, pruned.base_card.as_deref());
                        Ok(writer.write_all(text.as_bytes())?)
                    }),
                },
            },
        ],
        &task.counter(),
    )?;
    drop(task);
    Ok(ApplyReport {
        folder: written.folder,
        bytes: written.bytes,
        mask_root: sidecar.mask_root,
        group: mask.group(),
        sparsity: mask.sparsity(),
        votes: mask.votes(),
        scaled: options.scale.is_some(),
        pruned_weights: sidecar.pruned_weights,
        prunable_weights: layout.weights(),
        base_digest,
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

/// The explicit mask, in a temporary file without a name: it goes with this process, however that ends.
struct Sidecar {
    file: std::fs::File,
    mask_root: Digest,
    pruned_weights: u64,
    /// (kind such as `self_attn.q_proj`, pruned, of how many), in layout order.
    pruned_by_kind: Vec<(String, u64, u64)>,
}

impl Sidecar {
    /// Derives every matrix's mask once, block by block.
    fn derive(
        checkpoint: &Checkpoint,
        mask: &MaskFile<'_>,
        model: Digest,
        options: &ApplyOptions,
        meter: &Meter,
    ) -> anyhow::Result<Self> {
        let layout = checkpoint.layout();
        let header = MaskHeader {
            model,
            layout: layout.digest(),
            group: mask.group(),
            sparsity: mask.sparsity(),
            votes: mask.votes(),
        };
        let out = &options.out;
        let context = || format!("cannot write the mask of `{}` beside it; nothing was left behind", out.display());
        let unusable = || format!("`{}` cannot be used", options.mask.display());
        let mut file = tempfile::tempfile_in(folder_of(out)).with_context(context)?;
        let task = meter.task("deriving the mask", layout.weights(), false);
        let mut digests = Vec::with_capacity(layout.matrices().len());
        let mut pruned_weights = 0;
        let mut pruned_by_kind: Vec<(String, u64, u64)> = Vec::new();
        encode_mask(
            &header,
            layout,
            &mut |index| {
                let matrix = &layout.matrices()[index];
                if index == layout.block(matrix.block as usize).start {
                    check_finite(checkpoint, matrix.block as usize)?;
                }
                let bits = mask.mask(index, checkpoint.matrix(index)).with_context(unusable)?;
                if index + 1 == layout.block(matrix.block as usize).end {
                    checkpoint.release_block(matrix.block as usize);
                }
                let pruned = bits.count_pruned();
                digests.push(bits.digest());
                pruned_weights += pruned;
                let kind = matrix_kind(&matrix.name);
                match pruned_by_kind.iter_mut().find(|(known, _, _)| known == kind) {
                    Some((_, sum, all)) => {
                        *sum += pruned;
                        *all += matrix.weights();
                    }
                    None => pruned_by_kind.push((kind.to_owned(), pruned, matrix.weights())),
                }
                task.advance(matrix.weights());
                anyhow::Ok(bits)
            },
            &mut |bytes| file.write_all(bytes).with_context(context),
        )
        .map_err(encode_error)?;
        file.flush().with_context(context)?;
        Ok(Self { file, mask_root: mask_root(layout.digest(), digests), pruned_weights, pruned_by_kind })
    }
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
