//! What kernels take, beside their floors, in one process; and the inputs for the rivals that are not Rust.
//!
//! Everything is timed in turns, best of several rounds, so that other work on the machine meets all of them alike.
//! Prints one JSON object. `examples/benchmarks/run.sh` calls this and the rivals on the same files.
//!
//! | command | measures |
//! |---|---|
//! | `matrix` | one 4096 × 11008 matrix: counting 64 bitmaps, the global mask, tallies of 64 ballots; selection |
//! | `digest` | the content digest of a checkpoint, beside reading it and BLAKE3 alone |
//! | `sizes` | the masks of ballots as packed bits, under zstd and as Roaring bitmaps |
//! | `tally` | 64 local-layer ballots of a checkpoint on disk, to the root of their global mask |

use std::convert::Infallible;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{Encodings, VoteHeader, encode_ballot};
use fedprune_mask::layout::Matrix;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Voter, global_mask};
use fedprune_mask::{
    Ballot, Counts, DType, Digest, Group, Layout, MatrixMask, MatrixSource, NormVector, Pruner, Sparsity, Tally, Tap,
    WeightsView, derive_mask,
};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Votes counted.
const SILOS: usize = 64;

/// What is typed.
#[derive(Parser)]
struct Arguments {
    /// Rounds of which the best counts.
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    #[command(subcommand)]
    command: Command,
}

/// What is measured.
#[derive(Subcommand)]
enum Command {
    /// One matrix in memory.
    Matrix {
        /// Folder for the weights, norms and masks that the rivals read.
        #[arg(long, value_name = "DIR")]
        work: PathBuf,
        /// Its out_features.
        #[arg(long, default_value_t = 4096)]
        rows: usize,
        /// Its in_features.
        #[arg(long, default_value_t = 11008)]
        columns: usize,
    },
    /// A checkpoint's digest.
    Digest {
        /// The checkpoint.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
    },
    /// Masks in other people's encodings.
    Sizes {
        /// The checkpoint.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Its ballots.
        #[arg(required = true, value_name = "BALLOT")]
        ballots: Vec<PathBuf>,
    },
    /// Local-layer ballots of a whole checkpoint.
    Tally {
        /// The checkpoint.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Blocks that are tallied; the others only lie there.
        #[arg(long, default_value_t = u32::MAX)]
        blocks: u32,
        /// Ballots that are functions of the masks alone, instead of norms.
        #[arg(long)]
        mask_only: bool,
    },
}

fn main() -> anyhow::Result<()> {
    let Arguments { rounds, command } = Arguments::parse();
    ensure!(rounds > 0, "--rounds must be at least 1");
    let mut answer = match command {
        Command::Matrix { work, rows, columns } => matrix(&work, rows, columns, rounds)?,
        Command::Digest { model } => digest(&model, rounds)?,
        Command::Sizes { model, ballots } => sizes(&model, &ballots)?,
        Command::Tally { model, blocks, mask_only } => tally(&model, blocks, mask_only)?,
    };
    answer["threads"] = rayon::current_num_threads().into();
    answer["rounds"] = rounds.into();
    answer["peak_memory_bytes"] = peak_memory_bytes().into();
    writeln!(std::io::stdout(), "{answer}")?;
    Ok(())
}

/// A name, and what is timed under it.
type Entrant<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// Pieces of work that are timed in turns.
struct Race<'a> {
    entrants: Vec<Entrant<'a>>,
}

impl<'a> Race<'a> {
    fn new() -> Self {
        Self { entrants: Vec::new() }
    }

    fn enter<T>(&mut self, name: &'static str, mut work: impl FnMut() -> T + 'a) {
        self.entrants.push((name, Box::new(move || drop(black_box(work())))));
    }

    /// Best seconds of each, by name.
    fn run(mut self, rounds: usize) -> Value {
        let mut best = vec![f64::INFINITY; self.entrants.len()];
        for _ in 0..rounds {
            for ((_, work), best) in self.entrants.iter_mut().zip(&mut best) {
                let started = Instant::now();
                work();
                *best = best.min(started.elapsed().as_secs_f64());
            }
        }
        self.entrants.iter().zip(best).map(|((name, _), best)| ((*name).to_owned(), json!(best))).collect()
    }
}

/// Xorshift64*: the same everywhere.
struct Noise(u64);

impl Noise {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Near enough to a normal deviate of standard deviation 0.7: trained weights are.
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.unit()).sum::<f64>() - 3.0
    }
}

/// bf16 weights.
fn random_weights(rows: usize, columns: usize) -> Vec<u8> {
    let row = |row: usize| {
        let mut noise = Noise(row as u64 * 977 + 1);
        (0..columns).flat_map(move |_| bf16::from_f64(noise.normal() * 0.02).to_le_bytes())
    };
    (0..rows).into_par_iter().flat_map_iter(row).collect()
}

/// Log-normal norms with a few outlier channels; `silo` moves them by some per cent, so that masks differ as those of
/// different texts do, in about 5 bits of 100.
fn random_norms(columns: usize, tap: usize, silo: usize) -> NormVector {
    let mut common = Noise(tap as u64 * 31 + 7);
    let mut own = Noise((tap * 1009 + silo * 7919 + 3) as u64);
    let sum = |channel: usize| {
        let outlier = if channel % 500 == 17 { 6.0 } else { 0.0 };
        (0.8 * common.normal() + outlier + 0.3 * own.normal()).exp()
    };
    let sums: Vec<f64> = (0..columns).map(sum).collect();
    NormVector::from_sums(&sums, 1).expect("finite sums")
}

/// Reading bytes once, on all threads.
fn read_all(bytes: &[u8]) -> u64 {
    let part = |bytes: &[u8]| {
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().fold(0u64, |sum, word| sum ^ u64::from_le_bytes(*word))
    };
    bytes.par_chunks(1 << 18).map(part).reduce(|| 0, |a, b| a ^ b)
}

/// Reading a mask once, on all threads.
fn read_mask(mask: &MatrixMask) -> u64 {
    let part = |words: &[u64]| words.iter().fold(0, |sum, word| sum ^ word);
    mask.words().par_chunks(1 << 15).map(part).reduce(|| 0, |a, b| a ^ b)
}

/// A matrix whose ballots hold norms, so that nobody asks for its weights.
struct Unread;

impl MatrixSource for Unread {
    fn matrix(&self, _: usize) -> WeightsView<'_> {
        unreachable!("ballots of norms are written without weights")
    }
}

/// The only matrix of a layout.
struct Only<'a>(WeightsView<'a>);

impl MatrixSource for Only<'_> {
    fn matrix(&self, _: usize) -> WeightsView<'_> {
        self.0
    }
}

/// One matrix as a layout of its own.
fn layout_of(rows: usize, columns: usize) -> anyhow::Result<Layout> {
    let (rows, columns) = (u32::try_from(rows)?, u32::try_from(columns)?);
    let name = "model.layers.0.mlp.down_proj.weight".to_owned();
    Ok(Layout::new(vec![Matrix { name, block: 0, tap: Tap::MlpOutput, rows, columns }])?)
}

/// Bytes of the smallest ballots of one 4096 × 4096 matrix that are functions of their masks alone, and of the packed
/// mask.
fn mask_only_ballots() -> anyhow::Result<Value> {
    let layout = layout_of(4096, 4096)?;
    let stored = random_weights(4096, 4096);
    let weights = Only(WeightsView::new(DType::BF16, 4096, 4096, &stored)?);
    let ballots = ballots(&layout, Group::Layer, Sparsity::new(1, 2)?, Some(&weights))?;
    let mean = ballots.iter().map(Vec::len).sum::<usize>() / ballots.len();
    Ok(json!({ "ballot_bytes": mean, "packed_bytes": layout.packed_bytes() }))
}

/// Ballots for a layout, one a silo: of norms, or else of what `weights` and norms come to.
fn ballots(
    layout: &Layout,
    group: Group,
    sparsity: Sparsity,
    weights: Option<&dyn MatrixSource>,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let header = VoteHeader {
        model: Digest([0; 32]),
        layout: layout.digest(),
        pruner: Pruner::WANDA,
        group,
        sparsity: group.fixed_sparsity().unwrap_or(sparsity),
        samples: 2,
        sequence_tokens: 2048,
    };
    let ballot = |silo: usize| {
        let norms: Vec<NormVector> = (layout.taps().iter().enumerate())
            .map(|(tap, range)| random_norms(layout.matrices()[range.start].columns as usize, tap, silo))
            .collect();
        let encodings = if weights.is_some() { Encodings::MaskOnly } else { Encodings::Auto };
        let mut bytes = Vec::new();
        encode_ballot(&header, layout, &norms, encodings, weights.unwrap_or(&Unread), &mut |part| {
            bytes.extend_from_slice(part);
            Ok::<(), Infallible>(())
        })
        .context("cannot write a ballot")?;
        Ok(bytes)
    };
    (0..SILOS).map(ballot).collect()
}

/// The agreed set of some ballots, with members named by their places.
fn tally_of<'a>(layout: &'a Layout, group: Group, ballots: &'a [Vec<u8>]) -> anyhow::Result<Tally<'a>> {
    let voter = |(silo, bytes): (usize, &'a Vec<u8>)| {
        let ballot = Ballot::parse(bytes, layout)?;
        anyhow::Ok(Voter { name: format!("silo-{silo:02}"), weight: 1, ballot })
    };
    Ok(Tally::new(layout, group, ballots.iter().enumerate().map(voter).collect::<anyhow::Result<_>>()?)?)
}

fn matrix(work: &Path, rows: usize, columns: usize, rounds: usize) -> anyhow::Result<Value> {
    std::fs::create_dir_all(work).with_context(|| format!("cannot create `{}`", work.display()))?;
    let half = Sparsity::new(1, 2)?;
    let stored = random_weights(rows, columns);
    let weights = WeightsView::new(DType::BF16, rows, columns, &stored)?;
    // as in a feed-forward block: the one matrix has the other's shape turned round
    let turned_stored = random_weights(columns, rows);
    let turned = WeightsView::new(DType::BF16, columns, rows, &turned_stored)?;
    let turned_norms = &random_norms(rows, 0, 0);
    let norms: Vec<NormVector> = (0..SILOS).map(|silo| random_norms(columns, 0, silo)).collect();
    let masks = norms
        .iter()
        .map(|norms| derive_mask(Pruner::WANDA, Group::Row, half, weights, norms))
        .collect::<Result<Vec<MatrixMask>, _>>()?;
    let differing = masks[0].count_different(&masks[1]) as f64 / (rows * columns) as f64;
    ensure!((0.01..0.2).contains(&differing), "two silos differ in {differing} of the bits; real ones in about 0.05");

    let save = |name: &str, bytes: &[u8]| {
        let path = work.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
    };
    save("weights.bf16", &stored)?;
    save("turned.bf16", &turned_stored)?;
    let as_bytes = |norms: &NormVector| norms.bits().iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<u8>>();
    save("turned-norms.bf16", &as_bytes(turned_norms))?;
    for (silo, mask) in masks.iter().enumerate() {
        save(&format!("mask-{silo:02}.bits"), &mask.to_bytes())?;
    }
    let all: Vec<&MatrixMask> = masks.iter().collect();
    let count = || {
        let mut counts = Counts::new(rows, columns, SILOS as u32);
        counts.add(1, &all).expect("as many as announced");
        counts
    };
    // what the rival's answer is compared with: ties aside, both prune the same number at each count
    let counts = count();
    let global = global_mask(weights, &counts, Group::Layer, half);
    let mut pruned_by_count = vec![0u64; SILOS + 1];
    global.for_each_pruned(|index| pruned_by_count[counts.get(index / columns, index % columns) as usize] += 1);

    let layout = layout_of(rows, columns)?;
    let two_of_four = Group::NofM { n: 2, m: 4 };
    let row_ballots = ballots(&layout, Group::Row, half, None)?;
    let pattern_ballots = ballots(&layout, two_of_four, half, None)?;
    let row_tally = tally_of(&layout, Group::Layer, &row_ballots)?;
    let pattern_tally = tally_of(&layout, two_of_four, &pattern_ballots)?;

    // as from matrix to matrix in a tally: planes are counted into memory that is in use already
    let (mut planes, mut planes_to_select) = (count(), count());
    let mut quick = Race::new();
    quick.enter("read_masks", || all.iter().fold(0, |sum, mask| sum ^ read_mask(mask)));
    quick.enter("count", || planes.recount(1, &all).expect("as many as announced"));
    quick.enter("count_new", count);
    quick.enter("count_and_select", || {
        planes_to_select.recount(1, &all).expect("as many as announced");
        global_mask(weights, &planes_to_select, Group::Layer, half)
    });
    quick.enter("read_weights", || read_all(&stored));
    for (name, group) in [("select_layer", Group::Layer), ("select_row", Group::Row)] {
        quick.enter(name, move || derive_mask(Pruner::WANDA, group, half, turned, turned_norms));
    }
    let seconds = quick.run(rounds);
    let mut slow = Race::new();
    slow.enter("tally_row", || row_tally.mask(0, weights).expect("sound ballots"));
    slow.enter("tally_2of4", || pattern_tally.mask(0, weights).expect("sound ballots"));
    let slow = slow.run(rounds.div_ceil(2).min(3));
    Ok(json!({
        "thresholds": mask_only_ballots()?,
        "rows": rows, "columns": columns, "silos": SILOS, "differing_share": differing,
        "mask_bytes": masks.iter().map(|mask| mask.to_bytes().len()).sum::<usize>(), "weight_bytes": stored.len(),
        "pruned_by_count": pruned_by_count, "seconds": seconds, "tally_seconds": slow,
    }))
}

fn digest(model: &Path, rounds: usize) -> anyhow::Result<Value> {
    let checkpoint = Checkpoint::open(model)?;
    let resident = checkpoint.shards().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let mut race = Race::new();
    race.enter("digest", || checkpoint.content_digest(&|_| {}));
    race.enter("read", || {
        let sum = checkpoint.stored().fold(0, |sum, tensor| sum ^ read_all(tensor.bytes));
        checkpoint.release_all();
        sum
    });
    race.enter("blake3", || {
        let mut hasher = blake3::Hasher::new();
        for bytes in &resident {
            hasher.update_rayon(bytes);
        }
        hasher.finalize()
    });
    let seconds = race.run(rounds);
    Ok(json!({ "bytes": checkpoint.digest_bytes(), "seconds": seconds }))
}

fn sizes(model: &Path, ballots: &[PathBuf]) -> anyhow::Result<Value> {
    let checkpoint = Checkpoint::open(model)?;
    let layout = checkpoint.layout();
    let mut rows = Vec::new();
    for path in ballots {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let ballot = Ballot::parse(&bytes, layout).with_context(|| format!("`{}` cannot be used", path.display()))?;
        let of_matrix = |index: usize| -> anyhow::Result<(u64, u64)> {
            let mask = ballot.mask(index, checkpoint.matrix(index))?;
            checkpoint.release_block(layout.matrices()[index].block as usize);
            let squeezed = zstd::bulk::compress(&mask.to_bytes(), 19)?.len() as u64;
            let mut bitmap = roaring::RoaringBitmap::new();
            let mut pruned = Vec::with_capacity(usize::try_from(mask.count_pruned())?);
            mask.for_each_pruned(|index| pruned.push(index as u32));
            bitmap.append(pruned).ok().context("indices ascend")?;
            bitmap.optimize();
            Ok((squeezed, bitmap.serialized_size() as u64))
        };
        let both = (0..layout.matrices().len()).into_par_iter().map(of_matrix).collect::<anyhow::Result<Vec<_>>>()?;
        rows.push(json!({
            "ballot": path, "ballot_bytes": bytes.len(), "packed_bytes": layout.packed_bytes(),
            "zstd_bytes": both.iter().map(|(zstd, _)| zstd).sum::<u64>(),
            "roaring_bytes": both.iter().map(|(_, roaring)| roaring).sum::<u64>(),
        }));
    }
    Ok(json!({ "ballots": rows }))
}

/// One pass over the checkpoint, block by block.
fn tally(model: &Path, blocks: u32, mask_only: bool) -> anyhow::Result<Value> {
    let checkpoint = Checkpoint::open(model)?;
    let whole = checkpoint.layout();
    // the first blocks as a layout of their own: its matrices have the same places
    let within = |matrix: &&Matrix| matrix.block < blocks;
    let layout = &Layout::new(whole.matrices().iter().take_while(within).cloned().collect())?;
    let weights: Option<&dyn MatrixSource> = if mask_only { Some(&checkpoint) } else { None };
    let ballots = ballots(layout, Group::Layer, Sparsity::new(1, 2)?, weights)?;
    let tally = tally_of(layout, Group::Layer, &ballots)?;
    let (mut read_seconds, mut threshold_seconds, mut tally_seconds, mut weights_seen) = (0.0, 0.0, 0.0, 0u64);
    let mut digests = Vec::new();
    for block in 0..layout.blocks() {
        for index in layout.block(block) {
            let weights = checkpoint.matrix(index);
            let started = Instant::now();
            black_box(read_all(weights.bytes()));
            read_seconds += started.elapsed().as_secs_f64();
            if let Some(votes) = tally.layer_votes(index, weights)? {
                let started = Instant::now();
                black_box(votes.threshold());
                threshold_seconds += started.elapsed().as_secs_f64();
            }
            let started = Instant::now();
            digests.push(tally.mask(index, weights)?.digest());
            tally_seconds += started.elapsed().as_secs_f64();
            weights_seen += layout.matrices()[index].weights();
        }
        checkpoint.release_block(block);
    }
    let block_bytes: u64 = layout.block(0).map(|index| checkpoint.matrix(index).bytes().len() as u64).sum();
    Ok(json!({
        "silos": SILOS, "weights": weights_seen, "prunable_weights": whole.weights(), "block_bytes": block_bytes,
        "ballot_bytes": ballots.iter().map(Vec::len).sum::<usize>(),
        "mask_root": mask_root(layout.digest(), digests).to_string(),
        "seconds": { "read": read_seconds, "thresholds": threshold_seconds, "tally": tally_seconds },
    }))
}

/// VmHWM, where the system tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
