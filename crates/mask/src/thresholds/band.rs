//! How many weights of each column have each magnitude, in the few levels where ballots end.
//!
//! Silos disagree on a few levels of a column only: below all of their thresholds a weight is pruned by
//! everybody, above by nobody. One read of W counts the first together and histograms what lies between,
//! the *band*, and from then on nothing that is asked about ballots needs W: how many weights a threshold
//! prunes, whether a ballot keeps its budget, at which score it runs out, how many votes a level has.
//!
//! The band is a few per cent of the weights, and its histogram smaller than the mask. It is made for weights of
//! 16 bits; single precision has too many levels, and is left to those who expand masks.

use rayon::prelude::*;

use super::kernel::{Magnitude, bits_where, gaps_of_thresholds, stored_row};
use super::{ColumnThresholds, top_level};
use crate::weights::{DType, WeightsView};

/// Entries a column, on average, that a histogram may always have, of bf16; f16 has eight times as many levels an octave.
/// More only in proportion to the matrix.
const FREE_ENTRIES: u64 = 256;
/// Entries of a column, on average, from which on it is worth a read of W to leave out levels without weights.
const WIDE_COLUMN: u64 = 128;
/// Weights an entry at least, beyond that.
const WEIGHTS_AN_ENTRY: u64 = 8;

/// Which levels of each column are of interest: from `low` up to before `high`.
pub(crate) struct Range {
    pub(crate) low: Vec<u32>,
    pub(crate) high: Vec<u32>,
}

impl Range {
    /// Nothing yet.
    pub(crate) fn new(columns: usize) -> Self {
        Self { low: vec![u32::MAX; columns], high: vec![0; columns] }
    }

    /// Takes in levels from `low` up to before `high`; both become levels that can be asked for.
    #[inline]
    pub(crate) fn take_in(&mut self, column: usize, low: u32, high: u32) {
        self.low[column] = self.low[column].min(low);
        self.high[column] = self.high[column].max(high);
    }

    /// Leaves out the levels that no weight of the column has. A column that one silo prunes whole and another does
    /// not would span half of all levels otherwise.
    fn clamp(&mut self, weights: WeightsView<'_>) {
        let (least, past_most) = extremes(weights);
        for (level, (least, past_most)) in self.low.iter_mut().zip(least.iter().zip(&past_most)) {
            *level = (*level).clamp(*least, *past_most);
        }
        for (level, (least, past_most)) in self.high.iter_mut().zip(least.iter().zip(&past_most)) {
            *level = (*level).clamp(*least, *past_most);
        }
    }

    fn entries(&self) -> u64 {
        self.low.iter().zip(&self.high).map(|(low, high)| u64::from(high.saturating_sub(*low)) + 1).sum()
    }
}

/// Cumulative histograms of the weights of one matrix.
pub(crate) struct Band {
    low: Vec<u32>,
    /// Where a column's sums start in `sums`, and where the last one's end.
    starts: Vec<usize>,
    /// Of each column, for each level of its range and the one after: weights from `low` up to before it.
    sums: Vec<u32>,
    /// Weights below the range of their column, all columns together.
    below: u64,
}

impl Band {
    /// Reads `weights` once, or twice where the range is wide. None where it stays too wide, or weights have
    /// too many levels.
    pub(crate) fn count(weights: WeightsView<'_>, mut range: Range) -> Option<Self> {
        if weights.dtype() == DType::F32 {
            return None;
        }
        let (rows, columns) = (weights.rows(), weights.columns());
        let finer = if weights.dtype() == DType::F16 { 8 } else { 1 };
        let most = (FREE_ENTRIES * finer * columns as u64).max((rows * columns) as u64 / WEIGHTS_AN_ENTRY);
        if range.entries() > WIDE_COLUMN * finer * columns as u64 {
            range.clamp(weights);
        }
        if range.entries() > most {
            return None;
        }
        let mut starts = Vec::with_capacity(columns + 1);
        let mut entries = 0usize;
        for (low, high) in range.low.iter().zip(&range.high) {
            starts.push(entries);
            entries += high.saturating_sub(*low) as usize + 1;
        }
        starts.push(entries);
        let low: Vec<u16> = range.low.iter().map(|low| (*low).min(1 << 15) as u16).collect();
        let width: Vec<u16> =
            range.low.iter().zip(&range.high).map(|(low, high)| high.saturating_sub(*low) as u16).collect();
        // each task has a histogram of its own: together no more than a part of the matrix
        let most_tasks = (rows * columns / (4 * entries)).clamp(1, rayon::current_num_threads());
        let task_rows = rows.div_ceil(most_tasks).max(1);
        let tasks: Vec<usize> = (0..rows).step_by(task_rows).collect();
        let parts: Vec<(u64, Vec<u32>)> = tasks
            .into_par_iter()
            .map(|first| {
                let (mut below, mut counts) = (0u64, vec![0u32; entries]);
                let mut magnitudes = vec![0u16; columns];
                for row in first..(first + task_rows).min(rows) {
                    u16::read(stored_row(weights, row), &mut magnitudes);
                    for at in (0..columns).step_by(64) {
                        let end = (at + 64).min(columns);
                        let (magnitudes, low) = (&magnitudes[at..end], &low[at..end]);
                        below += u64::from(bits_where(magnitudes, low, |magnitude, low| magnitude < low).count_ones());
                        let mut above = [0u16; 64];
                        let above = &mut above[..magnitudes.len()];
                        for ((above, magnitude), low) in above.iter_mut().zip(magnitudes).zip(low) {
                            *above = magnitude.wrapping_sub(*low);
                        }
                        let mut inside = bits_where(above, &width[at..end], |above, width| above < width);
                        while inside != 0 {
                            let column = inside.trailing_zeros() as usize;
                            counts[starts[at + column] + above[column] as usize] += 1;
                            inside &= inside - 1;
                        }
                    }
                }
                (below, counts)
            })
            .collect();
        let (mut below, mut sums) = (0, vec![0u32; entries]);
        for (more, counts) in parts {
            below += more;
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for column in starts.array_windows::<2>() {
            // counts of levels to sums up to before them
            let mut sum = 0;
            for entry in &mut sums[column[0]..column[1]] {
                let count = *entry;
                *entry = sum;
                sum += count;
            }
        }
        Some(Self { low: low.into_iter().map(u32::from).collect(), starts, sums, below })
    }

    /// Weights below the range of their column, all columns together.
    pub(crate) fn below(&self) -> u64 {
        self.below
    }

    /// The first level of a column's range.
    #[inline]
    pub(crate) fn low(&self, column: usize) -> u32 {
        self.low[column]
    }

    /// Sums of a column: entry k has the weights from `low` up to before `low + k`.
    #[inline]
    pub(crate) fn sums(&self, column: usize) -> &[u32] {
        &self.sums[self.starts[column]..self.starts[column + 1]]
    }

    /// Weights of a column from the start of its range up to before `level`, which lies in the range that was asked
    /// for or right after.
    #[inline]
    pub(crate) fn before(&self, column: usize, level: u32) -> u32 {
        self.sums(column)[self.step(column, level)]
    }

    /// At which of a column's sums a level of the range that was asked for is.
    #[inline]
    pub(crate) fn step(&self, column: usize, level: u32) -> usize {
        // what was left out of the range holds no weights
        let steps = self.starts[column + 1] - self.starts[column];
        (level.saturating_sub(self.low[column]) as usize).min(steps - 1)
    }
}

/// The least magnitude of each column, and one more than the greatest.
fn extremes(weights: WeightsView<'_>) -> (Vec<u32>, Vec<u32>) {
    // thresholds that keep everything know the lightest kept, and those that prune everything the heaviest
    let everywhere = |level| ColumnThresholds { levels: vec![level; weights.columns()], split: None };
    let (_, least) = gaps_of_thresholds(&everywhere(0), weights);
    let (past_most, _) = gaps_of_thresholds(&everywhere(top_level(weights.dtype())), weights);
    (least, past_most)
}

/// The flat indices, ascending, of the weights of given (column, magnitude) *cells*, with the cell's number each;
/// none if they are more than `most`. Reads the cells' columns only, row by row.
pub(crate) fn places_of(weights: WeightsView<'_>, cells: &[(u32, u32)], most: usize) -> Option<Vec<(u64, u32)>> {
    let (rows, columns) = (weights.rows(), weights.columns());
    if cells.is_empty() {
        return Some(Vec::new());
    }
    let task_rows = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
    let tasks: Vec<usize> = (0..rows).step_by(task_rows).collect();
    let parts: Option<Vec<Vec<(u64, u32)>>> = tasks
        .into_par_iter()
        .map(|first| {
            let mut places = Vec::new();
            for row in first..(first + task_rows).min(rows) {
                for (number, &(column, magnitude)) in (0..).zip(cells) {
                    if weights.magnitude_bits(row, column as usize) == magnitude {
                        places.push(((row * columns) as u64 + u64::from(column), number));
                    }
                }
                if places.len() > most {
                    return None;
                }
            }
            Some(places)
        })
        .collect();
    let places = parts?.concat();
    (places.len() <= most).then_some(places)
}
