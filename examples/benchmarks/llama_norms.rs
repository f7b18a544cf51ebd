//! How large the `norms` ballot of a LLaMA-7B is: its layout, with norms resampled from ballots of a smaller model.
//!
//! Every channel of the larger model gets the *trajectory* of a channel of the smaller one drawn at random with
//! replacement: its norms at the same kind of tap in one block after another, so that what connects blocks, and
//! the two taps of the residual stream, is what was measured. Channels of the residual stream draw one for both of
//! its taps; heads and gated activations draw their own. The larger model has more blocks: block b takes those
//! of block ⌊b · blocks / 32⌋, and where that is the same one again, which would cost nothing, each channel moves by
//! the step that another channel, drawn anew, took there. Channels that share a trajectory gain nothing by it, since
//! no coder here looks from one channel to another; shapes of distributions are the smaller model's, and that is the
//! assumption.

#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{BallotHeader, Encodings, VoteHeader};
use fedprune_mask::layout::Matrix;
use fedprune_mask::{Ballot, Layout, MatrixSource, NormVector, Tap, WeightsView, encode_ballot};
use half::bf16;

const BLOCKS: u32 = 32;
const HIDDEN: u32 = 4096;
const INTERMEDIATE: u32 = 11008;
/// Ballots of norms read each this many times; the fastest is told.
const RUNS: usize = 5;

/// What is typed.
#[derive(Parser)]
struct Arguments {
    /// The smaller model, in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a ballot instead of a line of text.
    #[arg(long)]
    json: bool,
    /// Ballots of the smaller model that carry norms for every tap.
    #[arg(required = true, value_name = "BALLOT")]
    ballots: Vec<PathBuf>,
}

/// Norms win everywhere in these layouts.
struct NoWeights;

impl MatrixSource for NoWeights {
    fn matrix(&self, _: usize) -> WeightsView<'_> {
        unreachable!("norms are smaller than the masks of every tap")
    }
}

/// A generator that is the same everywhere.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * bound as u128) >> 64) as usize
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let checkpoint =
        Checkpoint::open(&arguments.model).with_context(|| format!("cannot open `{}`", arguments.model.display()))?;
    let small = checkpoint.layout();
    let large = llama_layout()?;
    for path in &arguments.ballots {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let ballot = Ballot::parse(&bytes, small).with_context(|| format!("`{}` is no ballot", path.display()))?;
        let BallotHeader::Vote(header) = ballot.header() else { bail!("`{}` is a mask", path.display()) };
        let norms: Option<Vec<&NormVector>> = (0..small.taps().len()).map(|tap| ballot.norms(tap)).collect();
        let Some(norms) = norms else { bail!("`{}` has taps without norms", path.display()) };
        let resampled = resample(small, &norms, &large, &mut Draws(arguments.seed))?;
        let header = VoteHeader { layout: large.digest(), ..header.clone() };

        let mut written = Vec::new();
        let mut encode_s = f64::INFINITY;
        for _ in 0..RUNS {
            written.clear();
            let start = Instant::now();
            encode_ballot::<Infallible>(&header, &large, &resampled, Encodings::Auto, &NoWeights, &mut |part| {
                written.extend_from_slice(part);
                Ok(())
            })?;
            encode_s = encode_s.min(start.elapsed().as_secs_f64());
        }
        let mut parse_s = f64::INFINITY;
        for _ in 0..RUNS {
            let start = Instant::now();
            let parsed = Ballot::parse(&written, &large)?;
            parse_s = parse_s.min(start.elapsed().as_secs_f64());
            let same = resampled.iter().enumerate().all(|(tap, norms)| parsed.norms(tap) == Some(norms));
            anyhow::ensure!(same, "what was read is not what was written");
        }
        let channels: usize = resampled.iter().map(NormVector::len).sum();
        let ratio = large.packed_bytes() as f64 / written.len() as f64;
        if arguments.json {
            println!(
                "{}",
                serde_json::json!({
                    "ballot": path, "ballot_bytes": bytes.len(), "ratio": small.packed_bytes() as f64 / bytes.len() as f64,
                    "llama_norms": channels, "llama_ballot_bytes": written.len(), "llama_ratio": ratio,
                    "encode_s": encode_s, "parse_s": parse_s,
                })
            );
        } else {
            println!(
                "{}: {} bytes; LLaMA-7B layout: {channels} norms, {} bytes, {ratio:.0} times smaller than {} bytes of \
                 bits; written in {encode_s:.3} s, read in {parse_s:.3} s",
                path.display(),
                bytes.len(),
                written.len(),
                large.packed_bytes()
            );
        }
    }
    Ok(())
}

fn llama_layout() -> anyhow::Result<Layout> {
    let linears = [
        ("self_attn.q_proj", Tap::AttentionInput, HIDDEN, HIDDEN),
        ("self_attn.k_proj", Tap::AttentionInput, HIDDEN, HIDDEN),
        ("self_attn.v_proj", Tap::AttentionInput, HIDDEN, HIDDEN),
        ("self_attn.o_proj", Tap::AttentionOutput, HIDDEN, HIDDEN),
        ("mlp.gate_proj", Tap::MlpInput, INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", Tap::MlpInput, INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", Tap::MlpOutput, HIDDEN, INTERMEDIATE),
    ];
    let block = |block| {
        linears.map(|(name, tap, rows, columns)| Matrix {
            name: format!("model.layers.{block}.{name}.weight"),
            block,
            tap,
            rows,
            columns,
        })
    };
    Ok(Layout::new((0..BLOCKS).flat_map(block).collect())?)
}

/// Norms for every tap of `large`, from those of `small`.
fn resample(
    small: &Layout,
    norms: &[&NormVector],
    large: &Layout,
    draws: &mut Draws,
) -> anyhow::Result<Vec<NormVector>> {
    // by kind of tap, one block after another
    let mut source: [Vec<&[u16]>; 4] = Default::default();
    for (range, norms) in small.taps().iter().zip(norms) {
        source[small.matrices()[range.start].tap as usize].push(norms.bits());
    }
    let blocks = source[0].len();
    anyhow::ensure!(blocks > 1 && source.iter().all(|taps| taps.len() == blocks), "a model of several whole blocks");
    let mut draw =
        |width: u32, source: &[&[u16]]| -> Vec<usize> { (0..width).map(|_| draws.below(source[0].len())).collect() };
    let stream = draw(HIDDEN, &source[Tap::AttentionInput as usize]);
    let heads = draw(HIDDEN, &source[Tap::AttentionOutput as usize]);
    let gated = draw(INTERMEDIATE, &source[Tap::MlpOutput as usize]);
    // bits of the tap before of each kind, and the block that they were taken from
    let mut before: [(Vec<u16>, usize); 4] = std::array::from_fn(|_| (Vec::new(), usize::MAX));
    let mut all = Vec::new();
    for range in large.taps() {
        let matrix = &large.matrices()[range.start];
        let (tap, from) = (matrix.tap as usize, matrix.block as usize * blocks / BLOCKS as usize);
        let channels = match matrix.tap {
            Tap::AttentionInput | Tap::MlpInput => &stream,
            Tap::AttentionOutput => &heads,
            Tap::MlpOutput => &gated,
        };
        let bits: Vec<u16> = if before[tap].1 == from {
            let (now, earlier) = (source[tap][from.max(1)], source[tap][from.max(1) - 1]);
            let moved = |&bits: &u16| {
                let other = draws.below(now.len());
                let step = i32::from(now[other]) - i32::from(earlier[other]);
                (i32::from(bits) + step).clamp(0, 0x7f7f) as u16
            };
            before[tap].0.iter().map(moved).collect()
        } else {
            channels.iter().map(|&channel| source[tap][from][channel]).collect()
        };
        // moved to where squares and steps stay finite; the vector's own scale is normalised again
        let square = |&bits: &u16| (bf16::from_bits(bits).to_f64() * 2f64.powi(-60)).powi(2);
        all.push(NormVector::from_sums(&bits.iter().map(square).collect::<Vec<f64>>(), 1)?);
        before[tap] = (bits, from);
    }
    Ok(all)
}
