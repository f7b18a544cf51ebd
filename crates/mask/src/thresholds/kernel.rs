//! Passes over stored rows: levels to bits, and where the gaps around levels end.
//!
//! Floor: W is read once. Everything is done on magnitudes as they are stored, 16 or 32 bits, with plain
//! loops over arrays of a fixed size, which vectorise.

use std::ops::Range;

use rayon::prelude::*;

use super::{ColumnThresholds, top_level};
use crate::matrix_mask::MatrixMask;
use crate::select::rows_per_task;
use crate::vector::{self, vectorized};
use crate::weights::{DType, WeightsView};

/// A stored magnitude as an integer that orders as magnitudes do.
pub(crate) trait Magnitude: Copy + Ord + Default + Send + Sync {
    /// The magnitudes of a stored row.
    fn read(bytes: &[u8], out: &mut [Self]);
    /// The magnitude of one column of a stored row.
    fn at(bytes: &[u8], column: u32) -> Self;
    /// From a level, which fits.
    fn of(level: u32) -> Self;
    fn bits(self) -> u32;
    /// `self` where `keep`, zero elsewhere: an AND in vector code.
    fn only_if(self, keep: bool) -> Self;
    /// One more; the top stays within the type.
    fn next(self) -> Self;
    /// The bits of up to 64 stored weights whose magnitude is below its level.
    fn below(stored: &[u8], levels: &[Self]) -> u64;
}

macro_rules! magnitude {
    ($integer:ty, $size:literal, $below:expr) => {
        impl Magnitude for $integer {
            #[inline(always)]
            fn read(bytes: &[u8], out: &mut [Self]) {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<$size>().0) {
                    *out = <$integer>::from_le_bytes(*bytes) & (<$integer>::MAX >> 1);
                }
            }
            #[inline(always)]
            fn at(bytes: &[u8], column: u32) -> Self {
                <$integer>::from_le_bytes(bytes.as_chunks::<$size>().0[column as usize]) & (<$integer>::MAX >> 1)
            }
            #[inline(always)]
            fn of(level: u32) -> Self {
                level as $integer
            }
            #[inline(always)]
            fn bits(self) -> u32 {
                u32::from(self)
            }
            #[inline(always)]
            fn only_if(self, keep: bool) -> Self {
                self & <$integer>::from(keep).wrapping_neg()
            }
            #[inline(always)]
            fn next(self) -> Self {
                self + 1
            }
            #[inline(always)]
            fn below(stored: &[u8], levels: &[Self]) -> u64 {
                $below(stored, levels)
            }
        }
    };
}

magnitude!(u16, 2, below_16);
magnitude!(u32, 4, below_plain);

#[inline(always)]
fn below_16(stored: &[u8], levels: &[u16]) -> u64 {
    if let (Some(stored), Some(levels)) = (stored.as_array(), levels.as_array())
        && let Some(bits) = vector::below(stored, levels)
    {
        return bits;
    }
    below_plain(stored, levels)
}

#[inline(always)]
fn below_plain<T: Magnitude>(stored: &[u8], levels: &[T]) -> u64 {
    let mut magnitudes = [T::default(); 64];
    let magnitudes = &mut magnitudes[..levels.len()];
    T::read(stored, magnitudes);
    bits_where(magnitudes, levels, |magnitude, level| magnitude < level)
}

/// Calls a function that is generic over the stored magnitude.
macro_rules! by_size {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::BF16 | DType::F16 => $function::<u16>($($argument),*),
            DType::F32 => $function::<u32>($($argument),*),
        }
    };
}

/// Bytes of one stored row.
#[inline]
pub(super) fn stored_row<'a>(weights: WeightsView<'a>, row: usize) -> &'a [u8] {
    let row_bytes = weights.columns() * weights.dtype().bytes();
    &weights.bytes()[row * row_bytes..(row + 1) * row_bytes]
}

/// 64 bytes of 0 or 1 to bits.
#[inline(always)]
fn pack(flags: &[u8; 64]) -> u64 {
    let (eights, _) = flags.as_chunks::<8>();
    eights.iter().enumerate().fold(0, |bits, (at, eight)| {
        // the product brings byte i's lowest bit to bit 56 + i
        bits | (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * at)
    })
}

/// Bits of up to 64 pairs for which `test` holds.
#[inline(always)]
pub(crate) fn bits_where<T: Magnitude>(magnitudes: &[T], levels: &[T], test: impl Fn(T, T) -> bool) -> u64 {
    let mut flags = [0u8; 64];
    match (magnitudes.as_array::<64>(), levels.as_array::<64>()) {
        (Some(magnitudes), Some(levels)) => {
            for at in 0..64 {
                flags[at] = u8::from(test(magnitudes[at], levels[at]));
            }
        }
        _ => {
            for (flag, (&magnitude, &level)) in flags.iter_mut().zip(magnitudes.iter().zip(levels)) {
                *flag = u8::from(test(magnitude, level));
            }
        }
    }
    pack(&flags)
}

/// ORs up to 64 bits into words from bit `at` on.
#[inline(always)]
pub(super) fn or_bits(words: &mut [u64], at: usize, bits: u64) {
    words[at / 64] |= bits << (at % 64);
    let spilled = bits.checked_shr(64 - (at % 64) as u32).unwrap_or(0);
    if spilled != 0 {
        words[at / 64 + 1] |= spilled;
    }
}

pub(super) fn expand(thresholds: &ColumnThresholds, weights: WeightsView<'_>) -> MatrixMask {
    by_size!(weights.dtype(), expand_as(thresholds, weights))
}

/// Levels of the rows before, of and after the one in which a split ends: one more where it prunes.
struct Levels<T> {
    before: Vec<T>,
    last: Vec<T>,
    after: Vec<T>,
    last_row: usize,
}

impl<T: Magnitude> Levels<T> {
    fn new(thresholds: &ColumnThresholds, columns: usize) -> Self {
        let after: Vec<T> = thresholds.levels.iter().map(|level| T::of(*level)).collect();
        let (mut before, mut last, mut last_row) = (after.clone(), after.clone(), 0);
        if let Some(split) = &thresholds.split {
            last_row = (split.last / columns as u64) as usize;
            let last_column = (split.last % columns as u64) as u32;
            for &column in &split.columns {
                before[column as usize] = T::of(split.magnitude + 1);
                if column <= last_column {
                    last[column as usize] = T::of(split.magnitude + 1);
                }
            }
        }
        Self { before, last, after, last_row }
    }

    #[inline(always)]
    fn of(&self, row: usize) -> &[T] {
        match row.cmp(&self.last_row) {
            std::cmp::Ordering::Less => &self.before,
            std::cmp::Ordering::Equal => &self.last,
            std::cmp::Ordering::Greater => &self.after,
        }
    }
}

fn expand_as<T: Magnitude>(thresholds: &ColumnThresholds, weights: WeightsView<'_>) -> MatrixMask {
    let (rows, columns) = (weights.rows(), weights.columns());
    let levels = Levels::<T>::new(thresholds, columns);
    let mut mask = MatrixMask::kept(rows, columns);
    let task_rows = rows_per_task(columns);
    mask.words_mut().par_chunks_mut((task_rows * columns).div_ceil(64)).enumerate().for_each(|(task, words)| {
        let first = task * task_rows;
        let task_rows = first..(first + task_rows).min(rows);
        vectorized(
            #[inline(always)]
            || expand_rows(&levels, weights, task_rows, words),
        );
    });
    mask
}

/// Sets the bits of `rows` in their words, of which the first starts with the first row.
#[inline(always)]
fn expand_rows<T: Magnitude>(levels: &Levels<T>, weights: WeightsView<'_>, rows: Range<usize>, words: &mut [u64]) {
    let columns = weights.columns();
    for (number, row) in rows.enumerate() {
        let (start, stored) = (number * columns, stored_row(weights, row));
        let parts = stored.chunks(64 * weights.dtype().bytes()).zip(levels.of(row).chunks(64));
        for (word, (stored, levels)) in parts.enumerate() {
            or_bits(words, start + word * 64, T::below(stored, levels));
        }
    }
}

/// One above the heaviest pruned and the lightest kept of each column: (low, high).
pub(super) fn gaps_of_thresholds(thresholds: &ColumnThresholds, weights: WeightsView<'_>) -> (Vec<u32>, Vec<u32>) {
    by_size!(weights.dtype(), gaps_of_thresholds_as(thresholds, weights))
}

fn gaps_of_thresholds_as<T: Magnitude>(
    thresholds: &ColumnThresholds,
    weights: WeightsView<'_>,
) -> (Vec<u32>, Vec<u32>) {
    let columns = weights.columns();
    let levels = Levels::<T>::new(thresholds, columns);
    gather(
        weights,
        #[inline(always)]
        |row, magnitudes: &[T], ends: &mut Ends<T>| {
            let levels = &levels.of(row)[..columns];
            let (low, high) = (&mut ends.low[..columns], &mut ends.high[..columns]);
            for at in 0..columns {
                let pruned = magnitudes[at] < levels[at];
                low[at] = low[at].max(magnitudes[at].next().only_if(pruned));
                // not pruned: itself; pruned: the top, which is no less than any
                let kept = if pruned { ends.top } else { magnitudes[at] };
                high[at] = high[at].min(kept);
            }
            true
        },
    )
    .filter(Ends::are_apart)
    .expect("nothing stops this pass, and thresholds are column prefixes")
    .into_levels()
}

/// One above the heaviest and the lightest weight of each column.
pub(super) fn extremes(weights: WeightsView<'_>) -> (Vec<u32>, Vec<u32>) {
    by_size!(weights.dtype(), extremes_as(weights))
}

fn extremes_as<T: Magnitude>(weights: WeightsView<'_>) -> (Vec<u32>, Vec<u32>) {
    let ends = gather(
        weights,
        #[inline(always)]
        |_, magnitudes: &[T], ends: &mut Ends<T>| {
            for (end, magnitude) in ends.low.iter_mut().zip(magnitudes) {
                *end = (*end).max(magnitude.next());
            }
            for (end, magnitude) in ends.high.iter_mut().zip(magnitudes) {
                *end = (*end).min(*magnitude);
            }
            true
        },
    );
    ends.expect("nothing stops this pass").into_levels()
}

/// As [`gaps_of_thresholds`], of a mask; none as soon as a column prunes a weight that is heavier than one that it
/// keeps.
pub(super) fn gaps_of_mask(mask: &MatrixMask, weights: WeightsView<'_>) -> Option<(Vec<u32>, Vec<u32>)> {
    by_size!(weights.dtype(), gaps_of_mask_as(mask, weights))
}

/// Rows after which it is looked whether a mask can still be a column prefix.
const CHECKED_ROWS: usize = 32;

fn gaps_of_mask_as<T: Magnitude>(mask: &MatrixMask, weights: WeightsView<'_>) -> Option<(Vec<u32>, Vec<u32>)> {
    let columns = weights.columns();
    let words = mask.words();
    gather(
        weights,
        #[inline(always)]
        |row, magnitudes: &[T], ends: &mut Ends<T>| {
            let start = row * columns;
            for (at, &magnitude) in magnitudes.iter().enumerate() {
                let bit = start + at;
                let pruned = words[bit / 64] >> (bit % 64) & 1 == 1;
                ends.low[at] = ends.low[at].max(magnitude.next().only_if(pruned));
                let kept = if pruned { ends.top } else { magnitude };
                ends.high[at] = ends.high[at].min(kept);
            }
            row % CHECKED_ROWS != 0 || ends.are_apart()
        },
    )
    .filter(Ends::are_apart)
    .map(Ends::into_levels)
}

struct Ends<T> {
    low: Vec<T>,
    high: Vec<T>,
    top: T,
}

impl<T: Magnitude> Ends<T> {
    /// Whether no column prunes a heavier weight than it keeps.
    fn are_apart(&self) -> bool {
        self.low.iter().zip(&self.high).all(|(low, high)| low.bits() <= high.bits() + 1)
    }

    fn into_levels(self) -> (Vec<u32>, Vec<u32>) {
        (self.low.into_iter().map(T::bits).collect(), self.high.into_iter().map(T::bits).collect())
    }
}

/// Runs `row(number, magnitudes, ends)` over all rows on all cores and joins the ends; none if one of them was false.
fn gather<T: Magnitude>(
    weights: WeightsView<'_>,
    row: impl Fn(usize, &[T], &mut Ends<T>) -> bool + Sync,
) -> Option<Ends<T>> {
    let (rows, columns) = (weights.rows(), weights.columns());
    let top = T::of(top_level(weights.dtype()));
    let task_rows = rows.div_ceil(2 * rayon::current_num_threads()).max(1);
    let tasks: Vec<usize> = (0..rows).step_by(task_rows).collect();
    let parts: Option<Vec<Ends<T>>> = tasks
        .into_par_iter()
        .map(|first| {
            let mut ends = Ends { low: vec![T::default(); columns], high: vec![top; columns], top };
            let mut magnitudes = vec![T::default(); columns];
            let is_whole = vectorized(
                #[inline(always)]
                || {
                    (first..(first + task_rows).min(rows)).all(
                        #[inline(always)]
                        |number| {
                            T::read(stored_row(weights, number), &mut magnitudes);
                            row(number, &magnitudes, &mut ends)
                        },
                    )
                },
            );
            is_whole.then_some(ends)
        })
        .collect();
    parts?.into_iter().reduce(|mut all, part| {
        all.low.iter_mut().zip(part.low).for_each(|(low, other)| *low = (*low).max(other));
        all.high.iter_mut().zip(part.high).for_each(|(high, other)| *high = (*high).min(other));
        all
    })
}
