//! `fedprune tally`: ballots to one global mask.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::Kind;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Tally, Voter, encode_tally};
use fedprune_mask::{Ballot, Digest, Group, Sparsity};
use serde::Serialize;

use super::content_digest;
use super::mask_file::{MappedFile, check_model};
use crate::args::TallyOptions;
use crate::files::{check_new, create_new, program, shell};
use crate::output::{bytes, count, facts, percent, table};
use crate::progress::Meter;

/// The answer of `fedprune tally`.
#[derive(Debug, Clone, Serialize)]
pub struct TallyReport {
    tally: PathBuf,
    tally_bytes: u64,
    /// The global mask.
    pub mask_root: Digest,
    global_group: Group,
    sparsity: Sparsity,
    pruned_weights: u64,
    prunable_weights: u64,
    members: Vec<MemberRow>,
    model: PathBuf,
    model_digest: Digest,
    seconds: f64,
}

/// One ballot.
#[derive(Debug, Clone, Serialize)]
struct MemberRow {
    name: String,
    weight: u32,
    ballot_bytes: u64,
    ballot_digest: Digest,
    /// Bits in which its mask and the global one differ.
    different_bits: u64,
}

crate::report!(TallyReport);

/// Tallies ballots and writes the agreed set with the root of its mask.
///
/// # Errors
/// Naming the ballot that does not belong, or the output path.
pub fn run(options: &TallyOptions, meter: &Meter) -> anyhow::Result<TallyReport> {
    let started = Instant::now();
    check_new(&options.out)?;
    if !options.weights.is_empty() && options.weights.len() != options.ballots.len() {
        bail!(
            "--weights lists {} weights for {} ballots; give one a ballot, in the same order",
            options.weights.len(),
            options.ballots.len()
        );
    }
    let checkpoint = Checkpoint::open(&options.model)?;
    let layout = checkpoint.layout();
    let files = options.ballots.iter().map(|path| MappedFile::open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut voters = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        if file.header()?.kind() == Kind::Tally {
            bail!("`{}` is a tally already; give the ballots it was made from", file.path.display());
        }
        let ballot = Ballot::parse(file.bytes(), layout).with_context(|| file.unusable())?;
        voters.push(Voter { name: file.stem(), weight: options.weights.get(index).copied().unwrap_or(1), ballot });
    }
    let group = match (options.global_group, voters.first().map(|voter| voter.ballot.group())) {
        (Some(group), _) => group,
        (None, Some(group @ Group::NofM { .. })) => group,
        (None, _) => Group::Layer,
    };
    layout.check_group(group)?;
    let model_digest = content_digest(&checkpoint, meter);
    for (file, voter) in files.iter().zip(&voters) {
        check_model(file, voter.ballot.model(), &checkpoint, model_digest)?;
    }
    let tally = Tally::new(layout, group, voters)?;

    let task = meter.task("tallying", layout.weights(), false);
    let mut digests = Vec::with_capacity(layout.matrices().len());
    let mut different = vec![0u64; tally.voters().len()];
    let mut pruned_weights = 0;
    for block in 0..layout.blocks() {
        for index in layout.block(block) {
            let weights = checkpoint.matrix(index);
            let (mask, _) = tally.matrix(index, weights)?;
            for (different, voter) in different.iter_mut().zip(tally.voters()) {
                *different += voter.ballot.mask(index, weights)?.count_different(&mask);
            }
            pruned_weights += mask.count_pruned();
            digests.push(mask.digest());
            task.advance(layout.matrices()[index].weights());
        }
        checkpoint.release_block(block);
    }
    drop(task);
    let root = mask_root(layout.digest(), digests);
    let tally_bytes =
        create_new(&options.out, |writer| Ok(encode_tally(&tally, root, &mut |bytes| writer.write_all(bytes))?))?;
    let header = tally.header(root);
    Ok(TallyReport {
        tally: options.out.clone(),
        tally_bytes,
        mask_root: root,
        global_group: group,
        sparsity: tally.sparsity(),
        pruned_weights,
        prunable_weights: layout.weights(),
        members: header
            .members
            .into_iter()
            .zip(different)
            .map(|(member, different_bits)| MemberRow {
                name: member.name,
                weight: member.weight,
                ballot_bytes: member.ballot_bytes,
                ballot_digest: member.ballot,
                different_bits,
            })
            .collect(),
        model: options.model.clone(),
        model_digest,
        seconds: started.elapsed().as_secs_f64(),
    })
}

impl TallyReport {
    fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .members
            .iter()
            .map(|member| {
                vec![
                    member.name.clone(),
                    member.weight.to_string(),
                    bytes(member.ballot_bytes),
                    member.ballot_digest.short(),
                    percent(member.different_bits, self.prunable_weights),
                ]
            })
            .collect();
        format!(
            "{}\n{}\nnext: {} apply --model {} --mask {} --out {}",
            table(&["ballot", "weight", "size", "digest", "differs from global"], &rows),
            facts(&[
                ("tally", format!("{} ({})", self.tally.display(), bytes(self.tally_bytes))),
                ("global group", format!("{}, sparsity {}", self.global_group, self.sparsity)),
                (
                    "pruned",
                    format!(
                        "{} of {} weights ({})",
                        count(self.pruned_weights),
                        count(self.prunable_weights),
                        percent(self.pruned_weights, self.prunable_weights)
                    )
                ),
                ("mask root", self.mask_root.to_string()),
                ("time", format!("{:.1} s", self.seconds)),
            ]),
            program(),
            shell(&self.model),
            shell(&self.tally),
            shell(&self.tally.with_extension("pruned")),
        )
    }
}
