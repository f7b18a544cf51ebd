//! `fedprune tally`: ballots to one global mask.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{BallotHeader, Kind};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Tally, Voter, encode_tally};
use fedprune_mask::{Ballot, Digest, Group, MatrixMask, Sparsity, WeightsView};
use fedprune_model::DeviceName;
use fedprune_prune::check_finite;
use serde::Serialize;

use super::mask_file::{MappedFile, check_model};
use crate::args::TallyOptions;
use crate::files::{check_new, create_new, peak_memory_bytes, program, shell};
use crate::output::{bytes, count, facts, percent, table, tame};
use crate::progress::Meter;
use crate::usage;

/// The answer of `fedprune tally`.
#[derive(Debug, Clone, Serialize)]
pub struct TallyReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    tally: PathBuf,
    tally_bytes: u64,
    /// The global mask.
    pub mask_root: Digest,
    global_group: Group,
    sparsity: Sparsity,
    pruned_weights: u64,
    prunable_weights: u64,
    members: Vec<MemberRow>,
    #[serde(serialize_with = "crate::output::lossy::path")]
    model: PathBuf,
    model_digest: Digest,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
    warnings: Vec<String>,
}

/// One ballot.
#[derive(Debug, Clone, Serialize)]
struct MemberRow {
    name: String,
    weight: u32,
    ballot_bytes: u64,
    ballot_digest: Digest,
    /// The silo's own mask, whatever its encoding; left out by `--brief`.
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_root: Option<Digest>,
    /// Bits in which its mask and the global one differ; left out by `--brief`.
    #[serde(skip_serializing_if = "Option::is_none")]
    different_bits: Option<u64>,
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
        usage!(
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
    let given: Vec<Digest> = voters.iter().map(|voter| voter.ballot.model()).collect();
    let tally = Tally::new(layout, group, voters)?;

    let mut counter = Counter::open(options.device, &tally)?;
    let task = meter.task("tallying", layout.weights(), false);
    // Weights are read once: whose they are is known at the end, and nothing is written before.
    let mut digest = checkpoint.digest_along();
    let mut digests = Vec::with_capacity(layout.matrices().len());
    let mut different = vec![0u64; tally.voters().len()];
    let mut own_digests = vec![Vec::with_capacity(layout.matrices().len()); tally.voters().len()];
    let mut pruned_weights = 0;
    for block in 0..layout.blocks() {
        for index in layout.block(block) {
            digest.matrix(index);
        }
        check_finite(&checkpoint, block)?;
        for index in layout.block(block) {
            let weights = checkpoint.matrix(index);
            let mut tell = |place: usize, vote: &MatrixMask, mask: &MatrixMask| {
                different[place] += vote.count_different(mask);
                own_digests[place].push(vote.digest());
            };
            let tell: Option<&mut Tell<'_>> = if options.brief { None } else { Some(&mut tell) };
            let mask = counter.mask(index, weights, tell)?;
            pruned_weights += mask.count_pruned();
            digests.push(mask.digest());
            task.advance(layout.matrices()[index].weights());
        }
        checkpoint.release_block(block);
    }
    drop(task);
    let model_digest = digest.finish(&|_| {});
    for (file, voter) in files.iter().zip(&given) {
        check_model(file, *voter, &checkpoint, model_digest)?;
    }
    let root = mask_root(layout.digest(), digests);
    let tally_bytes =
        create_new(&options.out, |writer| Ok(encode_tally(&tally, root, &mut |bytes| writer.write_all(bytes))?))?;
    let header = tally.header(root);
    let own_roots: Vec<Digest> = own_digests.into_iter().map(|own| mask_root(layout.digest(), own)).collect();
    let same: Vec<Digest> = match options.brief {
        true => header.members.iter().map(|member| member.ballot).collect(),
        false => own_roots.clone(),
    };
    let warnings = warnings(&tally, &same);
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
            .zip(own_roots)
            .map(|((member, different_bits), mask_root)| MemberRow {
                name: member.name,
                weight: member.weight,
                ballot_bytes: member.ballot_bytes,
                ballot_digest: member.ballot,
                mask_root: (!options.brief).then_some(mask_root),
                different_bits: (!options.brief).then_some(different_bits),
            })
            .collect(),
        model: options.model.clone(),
        model_digest,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
        warnings,
    })
}

/// What is told of each ballot's mask of a matrix: its place among the voters, its mask, and the global one.
type Tell<'e> = dyn FnMut(usize, &MatrixMask, &MatrixMask) + 'e;

/// What expands ballots and counts.
#[cfg_attr(feature = "cuda", allow(clippy::large_enum_variant, reason = "there is one"))]
enum Counter<'t, 'a> {
    Processor(&'t Tally<'a>),
    #[cfg(feature = "cuda")]
    Gpu(fedprune_gpu::Gpu, fedprune_gpu::DeviceTally<'t, 'a>),
}

impl<'t, 'a> Counter<'t, 'a> {
    fn open(device: DeviceName, tally: &'t Tally<'a>) -> anyhow::Result<Self> {
        match device {
            DeviceName::Cpu => Ok(Self::Processor(tally)),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(ordinal) => {
                let gpu =
                    fedprune_gpu::Gpu::open(ordinal).with_context(|| format!("device {device} cannot be used"))?;
                Ok(Self::Gpu(gpu, fedprune_gpu::DeviceTally::new(tally)))
            }
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => {
                device.open()?;
                bail!("device {device} cannot be used by this program")
            }
        }
    }

    /// The global mask of one matrix.
    fn mask(
        &mut self,
        index: usize,
        weights: WeightsView<'_>,
        tell: Option<&mut Tell<'_>>,
    ) -> anyhow::Result<MatrixMask> {
        match self {
            Self::Processor(tally) => {
                let mask = tally.mask(index, weights)?;
                let Some(tell) = tell else { return Ok(mask) };
                // one at a time: as many masks as ballots would be far more than a block of weights
                for (place, voter) in tally.voters().iter().enumerate() {
                    let vote = voter.ballot.mask(index, weights);
                    tell(place, &vote.with_context(|| format!("the ballot of `{}`", voter.name))?, &mask);
                }
                Ok(mask)
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu, tally) => Ok(tally.mask(gpu, index, weights, tell)?),
        }
    }
}

/// What is allowed and yet worth a second look.
///
/// Whoever's entries in `masks` are equal has the same mask.
fn warnings(tally: &Tally<'_>, masks: &[Digest]) -> Vec<String> {
    let voters = tally.voters();
    let mut warnings = Vec::new();
    for (later, voter) in voters.iter().enumerate() {
        if let Some(earlier) = (0..later).find(|&earlier| masks[earlier] == masks[later]) {
            warnings.push(format!(
                "`{}` and `{}` are one and the same mask, counted twice",
                voters[earlier].name, voter.name
            ));
        }
        let others = tally.total_weight() - voter.weight;
        if voters.len() > 1 && voter.weight > others {
            let (name, weight) = (&voter.name, voter.weight);
            warnings.push(format!("`{name}` (weight {weight}) outvotes all others together ({others})"));
        }
    }
    if voters.len() == 1 {
        warnings.push("there is one ballot only, so the global mask follows it alone".to_owned());
    }
    let recipes: Vec<String> = voters
        .iter()
        .filter_map(|voter| match voter.ballot.header() {
            BallotHeader::Vote(vote) => Some(format!("{}, {} × {}", vote.pruner, vote.samples, vote.sequence_tokens)),
            BallotHeader::Mask(_) => None,
        })
        .collect();
    if recipes.windows(2).any(|pair| pair[0] != pair[1]) {
        warnings.push("the ballots were made with different pruners or amounts of text".to_owned());
    }
    if let Some(voter) = voters.first()
        && voter.ballot.sparsity() != tally.sparsity()
    {
        let (votes, all) = (voter.ballot.sparsity(), tally.sparsity());
        warnings.push(format!("the ballots voted for sparsity {votes}, and group {} prunes {all}", tally.group()));
    }
    warnings
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
                    member
                        .different_bits
                        .map_or_else(|| "not compared".to_owned(), |bits| percent(bits, self.prunable_weights)),
                ]
            })
            .collect();
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        format!(
            "{}\n{}{warnings}\nnext: {} apply --model {} --mask {} --out {}",
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
