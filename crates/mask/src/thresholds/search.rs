//! The score at which the budget of each of many silos runs out, found in their common histogram.
//!
//! Each silo's bracket is narrowed by halving and interpolating. All of them take a step in one pass over the columns:
//! the histograms of a few columns stay in the first-level cache while every silo asks for its own score.

use rayon::prelude::*;

use super::band::{Band, STRIP_COLUMNS};
use super::derive::{Scores, Unplaced};
use crate::vector::vectorized;

/// Weights that may lie between the ends of the bracket when the rest is sorted.
const SORTED_WEIGHTS: u64 = 2048;
/// Passes over the columns; interpolation needs four or five.
const MOST_STEPS: u32 = 64;
/// From this step on by halves, which cannot crawl.
const HALVED_STEPS: u32 = 16;

/// Between which scores the budget of one silo runs out.
struct Bracket {
    low: f32,
    high: f32,
    /// Weights with a lower score than `low`: less than the budget.
    before: u64,
    /// Weights with a lower score than `high`: the budget, or more.
    after: u64,
    steps: u32,
}

impl Bracket {
    /// A score inside that is worth asking for.
    fn middle(&self, budget: u64) -> Option<f32> {
        let Self { low, high, before, after, steps } = *self;
        if after - before <= SORTED_WEIGHTS || steps == MOST_STEPS {
            return None;
        }
        let middle = if steps >= HALVED_STEPS || high == f32::INFINITY || low == 0.0 {
            f32::from_bits(low.to_bits().midpoint(high.to_bits()))
        } else {
            // aims beside the budget on alternate sides, so that both ends close in
            let aim = if steps.is_multiple_of(2) {
                budget.saturating_sub(SORTED_WEIGHTS / 4)
            } else {
                budget + SORTED_WEIGHTS / 4
            };
            let part = (aim.clamp(before, after) - before) as f64 / (after - before) as f64;
            low + (high - low) * part.clamp(0.001, 0.999) as f32
        };
        (low < middle && middle < high).then_some(middle)
    }
}

/// The thresholds at which each silo prunes `budget` ≥ 1 weights; none where a bracket misled.
pub(crate) fn search(silos: &[&Scores], band: &Band, budget: u64) -> Option<Vec<Unplaced>> {
    let ends: Vec<(&Scores, f32)> =
        silos.iter().flat_map(|scores| [(*scores, scores.low), (*scores, scores.high)]).collect();
    let ranks = ranks(&ends, band);
    let bracket = |(scores, ranks): (&&Scores, &[u64; 2])| {
        let [before, after] = *ranks;
        let bracket = Bracket { low: scores.low, high: scores.high, before, after, steps: 0 };
        (before < budget && budget <= after).then_some(bracket)
    };
    let mut brackets: Vec<Bracket> = silos.iter().zip(ranks.as_chunks::<2>().0).map(bracket).collect::<Option<_>>()?;
    loop {
        let asking: Vec<(usize, f32)> =
            brackets.iter().enumerate().filter_map(|(silo, bracket)| Some((silo, bracket.middle(budget)?))).collect();
        if asking.is_empty() {
            break;
        }
        let asked: Vec<(&Scores, f32)> = asking.iter().map(|(silo, middle)| (silos[*silo], *middle)).collect();
        for ((silo, middle), rank) in asking.into_iter().zip(self::ranks(&asked, band)) {
            let bracket = &mut brackets[silo];
            bracket.steps += 1;
            if rank < budget {
                (bracket.low, bracket.before) = (middle, rank);
            } else {
                (bracket.high, bracket.after) = (middle, rank);
            }
        }
    }
    let found = silos
        .par_iter()
        .zip(&brackets)
        .map(|(scores, Bracket { low, high, before, .. })| scores.thresholds(band, *low, *high, budget - before));
    found.collect()
}

/// How many weights have lower scores than those asked for, which must be in their silo's bracket.
fn ranks(asked: &[(&Scores, f32)], band: &Band) -> Vec<u64> {
    let columns = band.columns();
    let task_columns = columns.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(STRIP_COLUMNS);
    let tasks: Vec<usize> = (0..columns).step_by(task_columns).collect();
    let within = tasks
        .into_par_iter()
        .map(|first| {
            vectorized(
                #[inline(always)]
                || ranks_within(asked, band, first, (first + task_columns).min(columns)),
            )
        })
        .reduce(
            || vec![0; asked.len()],
            |mut all, part| {
                all.iter_mut().zip(part).for_each(|(all, part)| *all += part);
                all
            },
        );
    within.into_iter().map(|within| band.below() + within).collect()
}

/// Of the columns from `first` to before `end`, and of their ranges in the band only.
#[inline(always)]
fn ranks_within(asked: &[(&Scores, f32)], band: &Band, first: usize, end: usize) -> Vec<u64> {
    let mut ranks = vec![0u64; asked.len()];
    let mut levels = [0; STRIP_COLUMNS];
    for first in (first..end).step_by(STRIP_COLUMNS) {
        let levels = &mut levels[..STRIP_COLUMNS.min(end - first)];
        for (rank, (scores, score)) in ranks.iter_mut().zip(asked) {
            scores.first_levels(f64::from(*score), first, levels);
            band.before_all(first, levels);
            *rank += levels.iter().map(|before| u64::from(*before)).sum::<u64>();
        }
    }
    ranks
}
