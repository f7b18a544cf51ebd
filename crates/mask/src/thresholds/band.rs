//! How many weights of each column have each magnitude, in the few levels where ballots end.
//!
//! Silos disagree on a few levels of a column only: below all of their thresholds a weight is pruned by
//! everybody, above by nobody. One read of W counts the first together and histograms what lies between,
//! the *band*, and from then on nothing that is asked about ballots needs W: how many weights a threshold
//! prunes, whether a ballot keeps its budget, at which score it runs out, how many votes a level has.
//!
//! The band is a few per cent of the weights, and its histogram smaller than the mask. It is made for weights of
//! 16 bits; single precision has too many levels, and is left to those who expand masks.

use std::hint::black_box;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Magnitude, bits_where, extremes, stored_row};
use crate::vector::{ENTRIES_ROOM, entries_inside, vectorized};
use crate::weights::{DType, WeightsView};

/// Entries a column, on average, that a histogram may always have, of bf16; f16 has eight times as many levels an octave.
/// More only in proportion to the matrix.
const FREE_ENTRIES: u64 = 256;
/// Weights an entry at least, beyond that.
const WEIGHTS_AN_ENTRY: u64 = 8;

/// What memory is read in.
const LINE_BYTES: usize = 64;

/// Which levels of each column are of interest: from `low` up to before `high`.
pub(crate) struct Levels {
    pub(crate) low: Vec<u32>,
    pub(crate) high: Vec<u32>,
}

impl Levels {
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
        let (past_most, least) = extremes(weights);
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
    /// Levels of each column's range.
    width: Vec<u32>,
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
    pub(crate) fn count(weights: WeightsView<'_>, mut range: Levels) -> Option<Self> {
        if weights.dtype() == DType::F32 {
            return None;
        }
        let (rows, columns) = (weights.rows(), weights.columns());
        let finer = if weights.dtype() == DType::F16 { 8 } else { 1 };
        let most = (FREE_ENTRIES * finer * columns as u64).max((rows * columns) as u64 / WEIGHTS_AN_ENTRY);
        if range.entries() > FREE_ENTRIES * finer * columns as u64 {
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
        let mut sums = vec![0u32; entries];
        let below = split_by_columns(&mut sums, &starts)
            .into_par_iter()
            .map(|(strip, sums)| {
                let strip = Strip { low: &low[strip.clone()], width: &width[strip.clone()], columns: strip };
                strip.count(weights, &starts, sums)
            })
            .sum();
        let low = low.into_iter().map(u32::from).collect();
        let width = width.into_iter().map(u32::from).collect();
        Some(Self { low, width, starts, sums, below })
    }

    /// Something that there is for each entry of [`Band::sums`], in parts of whole columns for tasks.
    pub(crate) fn split_by_columns<'v, T>(&self, values: &'v mut [T]) -> Vec<(Range<usize>, &'v mut [T])> {
        split_by_columns(values, &self.starts)
    }

    /// Of the matrix.
    pub(crate) fn columns(&self) -> usize {
        self.low.len()
    }

    /// How many sums there are.
    pub(crate) fn entries(&self) -> usize {
        self.sums.len()
    }

    /// Where each column's sums start among all, and where the last one's end.
    pub(crate) fn starts(&self) -> &[usize] {
        &self.starts
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

    /// [`Band::sums`] of all columns, one after the other.
    #[inline]
    pub(crate) fn all_sums(&self) -> &[u32] {
        &self.sums
    }

    /// Weights of a column from the start of its range up to before `level`, which lies in the range that was asked
    /// for or right after.
    #[inline]
    pub(crate) fn before(&self, column: usize, level: u32) -> u32 {
        self.sums(column)[self.step(column, level)]
    }

    /// Weights of one level of a column, which lies in the range; of other levels none.
    #[inline]
    pub(crate) fn weights(&self, column: usize, level: u32) -> u32 {
        self.before(column, level + 1) - self.before(column, level)
    }

    /// At which of a column's sums a level of the range that was asked for is.
    #[inline]
    pub(crate) fn step(&self, column: usize, level: u32) -> usize {
        // what was left out of the range holds no weights
        level.saturating_sub(self.low[column]).min(self.width[column]) as usize
    }

    /// [`Band::step`] of as many columns as there are `levels`, in their place; those from `first` on.
    #[inline(always)]
    pub(crate) fn steps(&self, first: usize, levels: &mut [u32]) {
        let columns = first..first + levels.len();
        for ((level, low), width) in levels.iter_mut().zip(&self.low[columns.clone()]).zip(&self.width[columns]) {
            *level = level.saturating_sub(*low).min(*width);
        }
    }

    /// [`Band::before`] of as many columns as there are `levels`, in their place; those from `first` on.
    #[inline(always)]
    pub(crate) fn before_all(&self, first: usize, levels: &mut [u32]) {
        self.steps(first, levels);
        for (level, start) in levels.iter_mut().zip(&self.starts[first..]) {
            *level = self.sums[start + *level as usize];
        }
    }
}

/// Consecutive columns whose histogram is small enough to stay in the second-level cache.
struct Strip<'a> {
    columns: Range<usize>,
    /// Of its columns.
    low: &'a [u16],
    width: &'a [u16],
}

impl Strip<'_> {
    /// Writes the sums of its columns; how many of their weights are below the range.
    fn count(&self, weights: WeightsView<'_>, starts: &[usize], sums: &mut [u32]) -> u64 {
        let first = starts[self.columns.start];
        let starts = &starts[self.columns.start..=self.columns.end];
        // histograms fit the cache of a core: relative to the strip they have less than 2^32 entries
        let relative: Vec<u32> = starts.iter().map(|start| (start - first) as u32).collect();
        let mut below = 0;
        let mut counts = vec![0u16; sums.len()];
        let rows: Vec<usize> = (0..weights.rows()).step_by(usize::from(u16::MAX)).collect();
        for first_row in rows {
            let rows = first_row..(first_row + usize::from(u16::MAX)).min(weights.rows());
            below += vectorized(
                #[inline(always)]
                || self.count_rows(weights, rows, &relative, &mut counts),
            );
            sums.iter_mut().zip(&mut counts).for_each(|(sum, count)| *sum += u32::from(std::mem::take(count)));
        }
        for column in starts.array_windows::<2>() {
            // counts of levels to sums up to before them
            let mut sum = 0;
            for entry in &mut sums[column[0] - first..column[1] - first] {
                let count = *entry;
                *entry = sum;
                sum += count;
            }
        }
        below
    }

    /// Adds rows to the histograms; how many of their weights are below the range.
    #[inline(always)]
    fn count_rows(&self, weights: WeightsView<'_>, rows: Range<usize>, starts: &[u32], counts: &mut [u16]) -> u64 {
        let mut below = 0u64;
        let mut entries = [0; ENTRIES_ROOM];
        let (low_words, low_rest) = self.low.as_chunks::<64>();
        let (width_words, width_rest) = self.width.as_chunks::<64>();
        let (start_words, start_rest) = starts[..self.low.len()].as_chunks::<64>();
        let stored = |row| &stored_row(weights, row)[2 * self.columns.start..2 * self.columns.end];
        let mut touched = 0;
        for row in rows.clone() {
            // a strip is too short for the processor to see where the next row of it lies
            if row + 1 < rows.end {
                touched ^= stored(row + 1).iter().step_by(LINE_BYTES).fold(0, |all, byte| all ^ byte);
            }
            let (words, rest) = stored(row).as_chunks::<128>();
            for (((stored, low), width), starts) in words.iter().zip(low_words).zip(width_words).zip(start_words) {
                if let Some((inside, less)) = entries_inside(stored, low, width, starts, &mut entries) {
                    entries[..inside].iter().for_each(|entry| counts[*entry as usize] += 1);
                    below += u64::from(less);
                } else {
                    below += u64::from(count_word(stored, low, width, starts, counts));
                }
            }
            below += u64::from(count_word(rest, low_rest, width_rest, start_rest, counts));
        }
        black_box(touched);
        below
    }
}

/// Adds up to 64 weights to the histograms of their columns; how many are below the range.
#[inline(always)]
fn count_word(stored: &[u8], low: &[u16], width: &[u16], starts: &[u32], counts: &mut [u16]) -> u32 {
    let (mut magnitudes, mut entries) = ([0u16; 64], [0u32; 64]);
    let magnitudes = &mut magnitudes[..low.len()];
    u16::read(stored, magnitudes);
    let below = bits_where(magnitudes, low, |magnitude, low| magnitude < low).count_ones();
    for (magnitude, low) in magnitudes.iter_mut().zip(low) {
        *magnitude = magnitude.wrapping_sub(*low);
    }
    for ((entry, start), above) in entries.iter_mut().zip(starts).zip(&*magnitudes) {
        *entry = start + u32::from(*above);
    }
    let mut inside = bits_where(magnitudes, width, |above, width| above < width);
    while inside != 0 {
        counts[entries[inside.trailing_zeros() as usize] as usize] += 1;
        inside &= inside - 1;
    }
    below
}

/// Entries of one strip's histogram: what fits the second-level cache beside the weights that pass.
const STRIP_ENTRIES: usize = 1 << 18;
/// Columns of a strip are a multiple of this, but for the last: the words of passes over rows.
pub(crate) const STRIP_COLUMNS: usize = 64;

/// Values that lie column by column, from `starts` on, in strips with enough columns for a task.
fn split_by_columns<'v, T>(mut values: &'v mut [T], starts: &[usize]) -> Vec<(Range<usize>, &'v mut [T])> {
    let (columns, entries) = (starts.len() - 1, values.len());
    let most = entries.div_ceil(rayon::current_num_threads()).min(STRIP_ENTRIES);
    let mut strips = Vec::new();
    let mut first = 0;
    while first < columns {
        let mut end = (first + STRIP_COLUMNS).min(columns);
        while end < columns && starts[end] - starts[first] < most {
            end = (end + STRIP_COLUMNS).min(columns);
        }
        let (strip, rest) = values.split_at_mut(starts[end] - starts[first]);
        strips.push((first..end, strip));
        (first, values) = (end, rest);
    }
    strips
}

/// The flat indices, ascending, of the weights of given (column, magnitude) *cells*, with the cell's number each;
/// none if they are more than `most`. Reads the cells' columns only, row by row.
pub(crate) fn places_of(weights: WeightsView<'_>, cells: &[(u32, u32)], most: usize) -> Option<Vec<(u64, u32)>> {
    match weights.dtype() {
        DType::BF16 | DType::F16 => places_as::<u16>(weights, cells, most),
        DType::F32 => places_as::<u32>(weights, cells, most),
    }
}

fn places_as<T: Magnitude>(weights: WeightsView<'_>, cells: &[(u32, u32)], most: usize) -> Option<Vec<(u64, u32)>> {
    if cells.is_empty() {
        return Some(Vec::new());
    }
    let (columns, magnitudes): (Vec<u32>, Vec<T>) =
        cells.iter().map(|(column, magnitude)| (*column, T::of(*magnitude))).unzip();
    let rows = weights.rows();
    let task_rows = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
    let tasks: Vec<usize> = (0..rows).step_by(task_rows).collect();
    let parts: Option<Vec<Vec<(u64, u32)>>> = tasks
        .into_par_iter()
        .map(|first| {
            let rows = first..(first + task_rows).min(rows);
            vectorized(
                #[inline(always)]
                || places_in_rows(weights, rows, &columns, &magnitudes, most),
            )
        })
        .collect();
    let places = parts?.concat();
    (places.len() <= most).then_some(places)
}

/// [`places_of`] for some rows; cells are those of `columns` with `magnitudes`.
#[inline(always)]
fn places_in_rows<T: Magnitude>(
    weights: WeightsView<'_>,
    rows: Range<usize>,
    columns: &[u32],
    magnitudes: &[T],
    most: usize,
) -> Option<Vec<(u64, u32)>> {
    let mut places = Vec::new();
    for row in rows {
        let of_row = stored_row(weights, row);
        // few match: a branch that is hardly ever taken costs less than gathering what is compared
        for (cell, (column, magnitude)) in (0..).zip(columns.iter().zip(magnitudes)) {
            if T::at(of_row, *column) == *magnitude {
                places.push(((row * weights.columns()) as u64 + u64::from(*column), cell));
            }
        }
        if places.len() > most {
            return None;
        }
    }
    Some(places)
}
