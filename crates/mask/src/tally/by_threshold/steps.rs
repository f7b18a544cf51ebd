//! Votes of the levels of each column, and how many weights have each number of votes.

use std::ops::Range;

use rayon::prelude::*;

use super::LayerThreshold;
use crate::thresholds::band::{Band, STRIP_COLUMNS};
use crate::vector::vectorized;

/// Of more votes than this no array is made.
const MAX_TABLE: u32 = 1 << 16;

/// The votes of every level that the band counts, splits left out: of the ballots whose thresholds are above it.
pub(super) struct Steps {
    /// As [`Band::sums`], one a level after the first of each column: entry k + 1 has the votes of level `low + k`.
    pub(super) votes: Vec<u32>,
}

impl Steps {
    /// Of ballots with their weight and a threshold a column; together they weigh `total`.
    pub(super) fn count(ballots: &[(u32, &[u32])], band: &Band, total: u32) -> (Self, Histogram) {
        let mut votes = vec![0; band.entries()];
        let histogram = band
            .split_by_columns(&mut votes)
            .into_par_iter()
            .map(|(columns, votes)| {
                let mut histogram = Histogram::new(total);
                vectorized(
                    #[inline(always)]
                    || count_strip(ballots, band, columns, votes, &mut histogram),
                );
                histogram
            })
            .reduce(|| Histogram::new(total), Histogram::join);
        (Self { votes }, histogram)
    }

    /// Votes of one level, which weights have.
    pub(super) fn at(&self, band: &Band, column: usize, level: u32) -> u32 {
        self.votes[band.starts()[column] + band.step(column, level + 1)]
    }

    /// The levels of a column's range with so many votes.
    pub(super) fn levels_with(&self, band: &Band, column: usize, votes: u32) -> Range<u32> {
        let (low, of_levels) = self.of_levels(band, column);
        // more votes come first
        let first = of_levels.partition_point(|of_level| *of_level > votes);
        let length = of_levels[first..].partition_point(|of_level| *of_level == votes);
        low + first as u32..low + (first + length) as u32
    }

    /// The first level of a column's range, or the one after, of which something does not hold that holds of lighter ones.
    pub(super) fn first_level_not(&self, band: &Band, column: usize, holds: impl Fn(u32, u32) -> bool) -> u32 {
        let (low, of_levels) = self.of_levels(band, column);
        let (mut first, mut end) = (0, of_levels.len());
        while first < end {
            let middle = first.midpoint(end);
            if holds(of_levels[middle], low + middle as u32) {
                first = middle + 1;
            } else {
                end = middle;
            }
        }
        low + first as u32
    }

    /// The lightest level of a column's range, and the votes from it on.
    fn of_levels(&self, band: &Band, column: usize) -> (u32, &[u32]) {
        let starts = band.starts();
        (band.low(column), &self.votes[starts[column] + 1..starts[column + 1]])
    }
}

/// Votes of a few columns, and their weights into a histogram. What is worked on stays in the first-level cache: 64 columns of
/// one ballot after the other, then of each column its levels.
#[inline(always)]
fn count_strip(
    ballots: &[(u32, &[u32])],
    band: &Band,
    columns: Range<usize>,
    votes: &mut [u32],
    histogram: &mut Histogram,
) {
    let mut steps = [0; STRIP_COLUMNS];
    let starts = &band.starts()[..=columns.end];
    let base = starts[columns.start];
    for first in columns.clone().step_by(STRIP_COLUMNS) {
        let end = (first + STRIP_COLUMNS).min(columns.end);
        let starts = &starts[first..=end];
        let votes = &mut votes[starts[0] - base..starts[end - first] - base];
        for (weight, levels) in ballots {
            let steps = &mut steps[..end - first];
            steps.copy_from_slice(&levels[first..end]);
            band.steps(first, steps);
            for (step, start) in steps.iter().zip(starts) {
                votes[start - starts[0] + *step as usize] += weight;
            }
        }
        for (column, ends) in (first..).zip(starts.array_windows::<2>()) {
            let votes = &mut votes[ends[0] - starts[0]..ends[1] - starts[0]];
            let mut sum = 0;
            for votes in votes.iter_mut().rev() {
                sum += *votes;
                *votes = sum;
            }
            histogram.add_column(&votes[1..], band.sums(column));
        }
    }
}

/// How many weights have each number of votes.
pub(super) enum Histogram {
    Table(Vec<u64>),
    /// Of many different ones: a number of votes may stand there more than once, and what is taken from it is negative.
    List(Vec<(u32, i64)>),
}

impl Histogram {
    /// No weights yet; votes are at most `total`.
    fn new(total: u32) -> Self {
        if total <= MAX_TABLE { Self::Table(vec![0; total as usize + 1]) } else { Self::List(Vec::new()) }
    }

    pub(super) fn add(&mut self, votes: u32, weights: u64) {
        match self {
            Self::Table(table) => table[votes as usize] += weights,
            Self::List(list) => list.push((votes, weights as i64)),
        }
    }

    /// Adds the levels of one column.
    #[inline(always)]
    fn add_column(&mut self, votes: &[u32], sums: &[u32]) {
        let levels = votes.iter().zip(sums.array_windows::<2>().map(|sums| sums[1] - sums[0]));
        match self {
            Self::Table(table) => levels.for_each(|(votes, weights)| table[*votes as usize] += u64::from(weights)),
            Self::List(list) => list.extend(levels.map(|(votes, weights)| (*votes, i64::from(weights)))),
        }
    }

    /// Takes away weights that were added.
    pub(super) fn take(&mut self, votes: u32, weights: u64) {
        match self {
            Self::Table(table) => table[votes as usize] -= weights,
            Self::List(list) => list.push((votes, -(weights as i64))),
        }
    }

    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Table(mut table), Self::Table(other)) => {
                table.iter_mut().zip(other).for_each(|(all, more)| *all += more);
                Self::Table(table)
            }
            (Self::List(mut list), Self::List(other)) => {
                list.extend(other);
                Self::List(list)
            }
            _ => unreachable!("all are of one total"),
        }
    }

    /// The most votes that must be pruned to prune `budget`; none where there are not so many weights.
    pub(super) fn threshold(self, budget: u64) -> Option<LayerThreshold> {
        let mut steps: Vec<(u32, i64)> = match self {
            Self::Table(table) => (0..).zip(table.into_iter().map(|weights| weights as i64)).collect(),
            Self::List(list) => list,
        };
        steps.sort_unstable_by_key(|step| std::cmp::Reverse(step.0));
        let mut more = 0;
        for same in steps.chunk_by(|a, b| a.0 == b.0) {
            let weights = same.iter().map(|step| step.1).sum::<i64>() as u64;
            if more + weights >= budget {
                return Some(LayerThreshold { votes: same[0].0, more, equal: weights });
            }
            more += weights;
        }
        None
    }
}
