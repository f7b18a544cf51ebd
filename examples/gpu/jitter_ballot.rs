//! Makes many ballots of one: every norm multiplied by a factor of its own, a few percent of its bits differing from one
//! to the next. A tally of them costs what one of as many silos does, and they are made in seconds.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::BallotHeader;
use fedprune_mask::{Ballot, MatrixSource, NormVector, WeightsView, encode_ballot};
use rayon::prelude::*;

/// Largest factor.
const MOST: f64 = 1.25;

/// What is typed.
#[derive(Parser)]
struct Arguments {
    /// The model, in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// A ballot that carries norms for every tap.
    #[arg(long, value_name = "FILE")]
    ballot: PathBuf,
    /// How many to make.
    #[arg(long, default_value_t = 64)]
    count: u32,
    /// Folder for them; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

struct Weights<'a>(&'a Checkpoint);

impl MatrixSource for Weights<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        self.0.matrix(index)
    }
}

/// A factor between 1 / [`MOST`] and [`MOST`], the same everywhere: SplitMix64 of a ballot, a tap and a channel.
fn factor(ballot: u64, tap: u64, channel: u64) -> f64 {
    let mut z = (ballot << 48 ^ tap << 32 ^ channel).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = (z >> 11) as f64 / (1u64 << 53) as f64;
    MOST.powf(2.0 * uniform - 1.0)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let layout = checkpoint.layout();
    let unusable = || format!("`{}` cannot be used", arguments.ballot.display());
    let bytes = std::fs::read(&arguments.ballot).with_context(unusable)?;
    let ballot = Ballot::parse(&bytes, layout).with_context(unusable)?;
    let BallotHeader::Vote(header) = ballot.header() else { bail!("`{}` is a mask", arguments.ballot.display()) };
    let norms: Option<Vec<&NormVector>> = (0..layout.taps().len()).map(|tap| ballot.norms(tap)).collect();
    let Some(norms) = norms else { bail!("`{}` has taps without norms", arguments.ballot.display()) };
    std::fs::create_dir(&arguments.out).with_context(|| format!("cannot create `{}`", arguments.out.display()))?;
    let sizes: Vec<u64> = (0..arguments.count)
        .into_par_iter()
        .map(|number| {
            let moved = norms.iter().enumerate().map(|(tap, norms)| {
                let square = |(channel, norm): (usize, &f64)| {
                    let moved = norm * 2f64.powi(-60) * factor(number.into(), tap as u64, channel as u64);
                    moved * moved
                };
                NormVector::from_sums(&norms.to_f64().iter().enumerate().map(square).collect::<Vec<f64>>(), 1)
            });
            let moved = moved.collect::<Result<Vec<NormVector>, _>>()?;
            let mut written = Vec::new();
            let encodings = fedprune_mask::ballot::Encodings::Auto;
            encode_ballot::<std::convert::Infallible>(
                header,
                layout,
                &moved,
                encodings,
                &Weights(&checkpoint),
                &mut |part| {
                    written.extend_from_slice(part);
                    Ok(())
                },
            )?;
            let path = arguments.out.join(format!("voter-{number:03}.ballot"));
            std::fs::write(&path, &written).with_context(|| format!("cannot write `{}`", path.display()))?;
            Ok(written.len() as u64)
        })
        .collect::<anyhow::Result<_>>()?;
    println!("{} ballots, {} bytes", sizes.len(), sizes.iter().sum::<u64>());
    Ok(())
}
