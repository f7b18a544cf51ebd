//! The votes of every level of each column: what counts of single weights are read from.

use std::ops::Range;

use rayon::prelude::*;

use crate::thresholds::band::{Band, STRIP_COLUMNS};
use crate::vector::vectorized;

/// The votes of every level that the band counts, splits left out: of the ballots whose thresholds are above it.
pub(super) struct Steps {
    /// As [`Band::sums`], one a level after the first of each column: entry k + 1 has the votes of level `low + k`.
    pub(super) votes: Vec<u32>,
}

impl Steps {
    /// Of ballots with their weight and a threshold a column.
    pub(super) fn count(ballots: &[(u32, &[u32])], band: &Band) -> Self {
        let mut votes = vec![0; band.entries()];
        band.split_by_columns(&mut votes).into_par_iter().for_each(|(columns, votes)| {
            vectorized(
                #[inline(always)]
                || count_strip(ballots, band, columns, votes),
            );
        });
        Self { votes }
    }
}

/// Votes of a few columns. What is worked on stays in the first-level cache: 64 columns of one ballot after the other, then
/// of each column its levels.
#[inline(always)]
fn count_strip(ballots: &[(u32, &[u32])], band: &Band, columns: Range<usize>, votes: &mut [u32]) {
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
        for ends in starts.array_windows::<2>() {
            let mut sum = 0;
            for votes in votes[ends[0] - starts[0]..ends[1] - starts[0]].iter_mut().rev() {
                sum += *votes;
                *votes = sum;
            }
        }
    }
}
