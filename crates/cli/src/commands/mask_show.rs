//! `fedprune mask show`: what ballots, masks and tallies hold, and how far they agree.

use std::path::PathBuf;

use anyhow::Context;
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{EncodedBytes, Header, digest_of_bytes};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::{Digest, MatrixMask};
use serde::Serialize;

use super::content_digest;
use super::mask_file::{MappedFile, MaskFile, check_model, check_root};
use super::model_card::matrix_kind;
use crate::args::ShowOptions;
use crate::output::{bytes, count, facts, percent, table};
use crate::progress::Meter;

/// The answer of `fedprune mask show`.
#[derive(Debug, Serialize)]
pub struct ShowReport {
    files: Vec<FileReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    matrices: Vec<MatrixRow>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    agreement: Vec<Agreement>,
    detailed: bool,
    #[serde(skip)]
    every_matrix: bool,
}

/// One file.
#[derive(Debug, Serialize)]
struct FileReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    bytes: u64,
    digest: Digest,
    header: Header,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoded_bytes: Option<EncodedBytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_root: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned_weights: Option<u64>,
}

/// One matrix, in all files.
#[derive(Debug, Serialize)]
struct MatrixRow {
    name: String,
    weights: u64,
    /// Per file.
    pruned: Vec<u64>,
}

/// How far two files agree.
#[derive(Debug, Serialize)]
struct Agreement {
    first: usize,
    second: usize,
    different_bits: u64,
    /// Share of all weights on which both say the same.
    same_share: f64,
    /// Pruned in both, of those pruned in either (Jaccard).
    pruned_overlap: f64,
}

crate::report!(ShowReport);

/// Reads the files, and with a model their masks.
///
/// # Errors
/// Naming the file that is damaged or belongs to another model.
pub fn run(options: &ShowOptions, meter: &Meter) -> anyhow::Result<ShowReport> {
    let files = options.files.iter().map(|path| MappedFile::open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut reports = Vec::with_capacity(files.len());
    for file in &files {
        reports.push(FileReport {
            file: file.path.clone(),
            bytes: file.bytes().len() as u64,
            digest: digest_of_bytes(file.bytes()),
            header: file.header()?,
            encoded_bytes: None,
            mask_root: None,
            pruned_weights: None,
        });
    }
    let mut report = ShowReport {
        files: reports,
        matrices: Vec::new(),
        agreement: Vec::new(),
        detailed: false,
        every_matrix: options.matrices,
    };
    if let Some(model) = &options.model {
        report.detailed = true;
        let checkpoint = Checkpoint::open(model)?;
        let layout = checkpoint.layout();
        let masks = files.iter().map(|file| MaskFile::parse(file, layout)).collect::<anyhow::Result<Vec<_>>>()?;
        let digest = content_digest(&checkpoint, meter);
        for (file, mask) in files.iter().zip(&masks) {
            check_model(file, mask.model(), &checkpoint, digest)?;
        }
        report.look_inside(&checkpoint, &masks, meter)?;
    }
    Ok(report)
}

impl ShowReport {
    fn look_inside(&mut self, checkpoint: &Checkpoint, files: &[MaskFile<'_>], meter: &Meter) -> anyhow::Result<()> {
        let layout = checkpoint.layout();
        let task = meter.task("reading the masks", layout.weights(), false);
        let mut digests = vec![Vec::with_capacity(layout.matrices().len()); files.len()];
        let mut pairs: Vec<(usize, usize, u64)> =
            (0..files.len()).flat_map(|first| (first + 1..files.len()).map(move |second| (first, second, 0))).collect();
        let mut totals = vec![0u64; files.len()];
        for block in 0..layout.blocks() {
            for index in layout.block(block) {
                let weights = checkpoint.matrix(index);
                let masks = files
                    .iter()
                    .zip(&self.files)
                    .map(|(file, report)| {
                        let unusable = || format!("`{}` cannot be used", report.file.display());
                        file.mask(index, weights).with_context(unusable)
                    })
                    .collect::<anyhow::Result<Vec<_>>>()?;
                let pruned: Vec<u64> = masks.iter().map(MatrixMask::count_pruned).collect();
                for (pair, different) in pairs.iter_mut().map(|(first, second, bits)| ((*first, *second), bits)) {
                    *different += masks[pair.0].count_different(&masks[pair.1]);
                }
                for (file, mask) in masks.iter().enumerate() {
                    digests[file].push(mask.digest());
                    totals[file] += pruned[file];
                }
                let matrix = &layout.matrices()[index];
                self.matrices.push(MatrixRow { name: matrix.name.clone(), weights: matrix.weights(), pruned });
                task.advance(matrix.weights());
            }
            checkpoint.release_block(block);
        }
        for (((report, file), digests), pruned) in self.files.iter_mut().zip(files).zip(digests).zip(&totals) {
            let root = mask_root(layout.digest(), digests);
            check_root(&report.file, file, root)?;
            report.mask_root = Some(root);
            report.pruned_weights = Some(*pruned);
            if let MaskFile::Ballot(ballot) = file {
                report.encoded_bytes = Some(ballot.encoded_bytes());
            }
        }
        self.agreement = pairs
            .into_iter()
            .map(|(first, second, different_bits)| {
                // |A ∪ B| − |A ∩ B| = different, |A| + |B| = union + intersection
                let sum = totals[first] + totals[second];
                let union = (sum + different_bits) / 2;
                Agreement {
                    first,
                    second,
                    different_bits,
                    same_share: 1.0 - different_bits as f64 / layout.weights() as f64,
                    pruned_overlap: if union == 0 { 1.0 } else { (sum - union) as f64 / union as f64 },
                }
            })
            .collect();
        Ok(())
    }

    /// The matrices added up over the blocks.
    fn by_kind(&self) -> Vec<MatrixRow> {
        let mut kinds: Vec<MatrixRow> = Vec::new();
        for matrix in &self.matrices {
            let kind = matrix_kind(&matrix.name);
            match kinds.iter_mut().find(|known| known.name == kind) {
                Some(known) => {
                    known.weights += matrix.weights;
                    known.pruned.iter_mut().zip(&matrix.pruned).for_each(|(sum, pruned)| *sum += pruned);
                }
                None => kinds.push(MatrixRow {
                    name: kind.to_owned(),
                    weights: matrix.weights,
                    pruned: matrix.pruned.clone(),
                }),
            }
        }
        kinds
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (number, file) in self.files.iter().enumerate() {
            let mut rows = vec![("file", file.file.display().to_string()), ("holds", describe(&file.header))];
            if let Header::Tally(tally) = &file.header {
                let members = tally.members.iter().map(|member| format!("{} × {}", member.name, member.weight));
                rows.push(("ballots", members.collect::<Vec<_>>().join(", ")));
            }
            rows.push(("size", format!("{} ({} bytes)", bytes(file.bytes), count(file.bytes))));
            if let Some(encoded) = &file.encoded_bytes {
                rows.push((
                    "encodings",
                    format!(
                        "norms {}, column thresholds {}, bitmaps {}, header {}",
                        bytes(encoded.norms),
                        bytes(encoded.thresholds),
                        bytes(encoded.bitmaps),
                        bytes(encoded.header)
                    ),
                ));
            }
            rows.push(("file digest", file.digest.to_string()));
            if let Some(root) = &file.mask_root {
                rows.push(("mask root", root.to_string()));
            } else if let Header::Tally(tally) = &file.header {
                rows.push(("mask root", format!("{} (as the file says)", tally.mask_root)));
            }
            rows.push(("model", file.header.model().to_string()));
            let title = format!("{}", number + 1);
            text.push_str(&format!("[{title}]\n{}\n", facts(&rows)));
        }
        if !self.detailed {
            text.push_str(
                "Only headers were read. To check the contents and see sparsity and agreement, add --model DIR.\n",
            );
            return text;
        }
        let mut header = vec!["matrix".to_owned(), "weights".to_owned()];
        header.extend((1..=self.files.len()).map(|number| format!("[{number}] pruned")));
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let shown = if self.every_matrix { &self.matrices } else { &self.by_kind() };
        let mut rows: Vec<Vec<String>> = shown
            .iter()
            .map(|matrix| {
                let shares = matrix.pruned.iter().map(|&pruned| percent(pruned, matrix.weights));
                [matrix.name.clone(), count(matrix.weights)].into_iter().chain(shares).collect()
            })
            .collect();
        let all: u64 = self.matrices.iter().map(|matrix| matrix.weights).sum();
        let shares = self.files.iter().map(|file| percent(file.pruned_weights.unwrap_or(0), all));
        rows.push(["all".to_owned(), count(all)].into_iter().chain(shares).collect());
        text.push_str(&table(&header, &rows));
        if !self.agreement.is_empty() {
            let rows: Vec<Vec<String>> = self
                .agreement
                .iter()
                .map(|pair| {
                    vec![
                        format!("[{}] and [{}]", pair.first + 1, pair.second + 1),
                        format!("{:.3} %", pair.same_share * 100.0),
                        format!("{:.3} %", pair.pruned_overlap * 100.0),
                        count(pair.different_bits),
                    ]
                })
                .collect();
            text.push('\n');
            text.push_str(&table(&["agreement", "same bit", "overlap (both ÷ either)", "different bits"], &rows));
        }
        text
    }
}

/// What a file is, in one line.
fn describe(header: &Header) -> String {
    let rest = format!("{} group, sparsity {}", header.group(), header.sparsity());
    match header {
        Header::Vote(vote) if vote.samples > 0 => {
            format!("a ballot: {}, {rest}, from {} × {} tokens", vote.pruner, vote.samples, vote.sequence_tokens)
        }
        Header::Vote(vote) => format!("a ballot: {}, {rest}, without text", vote.pruner),
        Header::Mask(mask) => format!("an explicit mask of {} vote(s): {rest}", mask.votes),
        Header::Tally(tally) => format!("a tally of {} ballots: {rest}", tally.members.len()),
    }
}
