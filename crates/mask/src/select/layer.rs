//! One pool for the whole matrix.
//!
//! A sample brackets the threshold so tightly that one pass over W does nearly everything: it marks what is
//! below, and notes the one or two per cent inside; of these only what ties at the threshold's own level is
//! asked for its keys. Where keys tie too much for that, histograms of one digit after another narrow the
//! threshold down exactly, recomputing keys on each pass.

use rayon::prelude::*;

use super::pool::Bracket;
use super::{RowBits, TASK_WEIGHTS, rows_per_task};
use crate::matrix_mask::MatrixMask;
use crate::score::Keys;
use crate::sparsity::Sparsity;
use crate::weights::WeightsView;

/// Bits of one radix digit; its histogram stays in the second-level cache.
const DIGIT_BITS: u32 = if cfg!(miri) { 5 } else { 14 };
/// Candidates are collected once this few are left, about.
pub(super) const MAX_CANDIDATES: u64 = if cfg!(miri) { 1 << 9 } else { 1 << 17 };
/// One weight in this many is sampled.
const SAMPLE_SHARE: u64 = 16;
/// Most weights of a sample.
const MAX_SAMPLE: usize = 1 << 17;
/// Neighbouring weights that are sampled together.
const SAMPLE_RUN: usize = 8;
/// Standard deviations of a sampled rank on either side of the bracket; samples of one row are alike, so
/// ranks deviate more than those of independent draws.
const SAMPLE_DEVIATIONS: f64 = 6.0;
/// A bracket with more than this share of the weights inside would collect too much.
const MAX_INSIDE_SHARE: usize = 8;

/// A position in the total order; everything up to and including it is pruned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    key: u64,
    magnitude: u32,
    index: u64,
}

pub(super) fn select_layer(weights: WeightsView<'_>, keys: &dyn Keys, sparsity: Sparsity, mask: &mut MatrixMask) {
    let pool = weights.rows() as u64 * weights.columns() as u64;
    let budget = sparsity.budget(pool);
    if budget == 0 {
        return;
    }
    if pool > MAX_CANDIDATES && select_by_sample(weights, keys, budget, mask) {
        return;
    }
    select_by_radix(weights, keys, budget, mask);
}

/// What one task of the pass found.
struct Part {
    /// Weights below the bracket.
    below: u64,
    /// Coarse keys inside, and where they are, counted from the task's first weight.
    inside: Vec<(i16, u32)>,
}

/// One pass with a bracket; false, and `mask` in any state, when the sample misled.
fn select_by_sample(weights: WeightsView<'_>, keys: &dyn Keys, budget: u64, mask: &mut MatrixMask) -> bool {
    let (rows, columns) = (weights.rows(), weights.columns());
    let pool = rows as u64 * columns as u64;
    let task_rows = rows_per_task(columns);
    if u32::try_from(task_rows * columns).is_err() {
        return false;
    }
    let mut sample = sample_of(rows, columns, keys);
    let bracket = Bracket::from_sample(&mut sample, budget, pool, SAMPLE_DEVIATIONS);
    let inside = sample.iter().filter(|coarse| (bracket.low..=bracket.high).contains(coarse)).count();
    if inside > sample.len() / MAX_INSIDE_SHARE {
        return false;
    }
    // a matrix made to mislead the sample may put most of itself inside: that is not collected
    let most = 2 * task_rows * columns / MAX_INSIDE_SHARE + MAX_CANDIDATES as usize / 8;
    let parts: Vec<Part> = mask
        .words_mut()
        .par_chunks_mut((task_rows * columns).div_ceil(64))
        .enumerate()
        .map_init(
            || (vec![0i16; columns], Vec::new()),
            |(coarse, pruned), (task, words)| {
                words.fill(0);
                let first = task * task_rows;
                let mut part = Part { below: 0, inside: Vec::new() };
                for row in first..(first + task_rows).min(rows) {
                    keys.fill_coarse(row, 0..columns, coarse);
                    let start = (row - first) * columns;
                    let below = bracket.split_all(coarse, pruned, |column| {
                        if part.inside.len() <= most {
                            part.inside.push((coarse[column], (start + column) as u32));
                        }
                    });
                    part.below += below as u64;
                    RowBits { words, start }.or_words(pruned);
                }
                part
            },
        )
        .collect();
    if parts.iter().any(|part| part.inside.len() > most) {
        return false;
    }
    let below: u64 = parts.iter().map(|part| part.below).sum();
    // ranks below..=below + inside are decided by those inside alone
    let mut counts = vec![0u64; usize::from(bracket.high.abs_diff(bracket.low)) + 1];
    let digit = |coarse: i16| usize::from(coarse.abs_diff(bracket.low));
    parts.iter().flat_map(|part| &part.inside).for_each(|(coarse, _)| counts[digit(*coarse)] += 1);
    if below > budget || budget - below > counts.iter().sum() {
        return false;
    }
    if budget == below {
        return true;
    }
    let (level, before, _) = bucket_of(&counts, budget - below);
    let words = mask.words_mut();
    let mut candidates = Vec::new();
    for (task, part) in parts.into_iter().enumerate() {
        for (coarse, at) in part.inside {
            let index = task * task_rows * columns + at as usize;
            if digit(coarse) < level {
                words[index / 64] |= 1 << (index % 64);
            } else if digit(coarse) == level {
                candidates.push((keys.key(index / columns, index % columns), index as u64));
            }
        }
    }
    mark_first(weights, &mut candidates, (budget - below - before) as usize, mask);
    true
}

/// Coarse keys from all over the matrix.
fn sample_of(rows: usize, columns: usize, keys: &dyn Keys) -> Vec<i16> {
    let run = SAMPLE_RUN.min(columns);
    let runs = ((rows as u64 * columns as u64 / SAMPLE_SHARE) as usize).min(MAX_SAMPLE) / run;
    let mut sample = vec![0; runs * run];
    for (at, sample) in sample.chunks_exact_mut(run).enumerate() {
        let row = at * rows / runs;
        // the golden ratio spreads runs evenly over the columns, whatever their period
        let place = u128::from((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let column = ((place * (columns - run + 1) as u128) >> 64) as usize;
        keys.fill_coarse(row, column..column + run, sample);
    }
    sample
}

/// Marks the first `wanted` ≥ 1 of candidates (key, flat index).
fn mark_first(weights: WeightsView<'_>, candidates: &mut [(u64, u64)], wanted: usize, mask: &mut MatrixMask) {
    let columns = weights.columns();
    let words = mask.words_mut();
    let mut mark = |index: u64| words[(index / 64) as usize] |= 1 << (index % 64);
    let threshold = candidates.select_nth_unstable_by_key(wanted - 1, |candidate| candidate.0).1.0;
    let (before, with_key): (Vec<_>, Vec<_>) =
        candidates.iter().filter(|(key, _)| *key <= threshold).partition(|(key, _)| *key < threshold);
    before.iter().for_each(|(_, index)| mark(*index));
    let magnitude = |index: u64| weights.magnitude_bits(index as usize / columns, index as usize % columns);
    let mut ties: Vec<(u32, u64)> = with_key.iter().map(|(_, index)| (magnitude(*index), *index)).collect();
    let wanted = wanted - before.len();
    ties.select_nth_unstable(wanted - 1);
    ties[..wanted].iter().for_each(|(_, index)| mark(*index));
}

/// The exact threshold first, then a pass that marks up to it; `mask` may be in any state.
fn select_by_radix(weights: WeightsView<'_>, keys: &dyn Keys, budget: u64, mask: &mut MatrixMask) {
    let last = last_pruned(weights, keys, budget);
    let (rows, columns) = (weights.rows(), weights.columns());
    let task_rows = rows_per_task(columns);
    mask.words_mut().par_chunks_mut((task_rows * columns).div_ceil(64)).enumerate().for_each_init(
        || vec![0u64; columns],
        |row_keys, (task, words)| {
            words.fill(0);
            let first = task * task_rows;
            for row in first..(first + task_rows).min(rows) {
                keys.fill(row, 0..columns, row_keys);
                let mut bits = RowBits { words, start: (row - first) * columns };
                for (column, &key) in row_keys.iter().enumerate() {
                    let pruned = key < last.key
                        || key == last.key && {
                            let index = (row * columns + column) as u64;
                            (weights.magnitude_bits(row, column), index) <= (last.magnitude, last.index)
                        };
                    if pruned {
                        bits.set(column);
                    }
                }
            }
        },
    );
}

/// The place of the last weight pruned of the whole matrix, `budget` ≥ 1.
fn last_pruned(weights: WeightsView<'_>, keys: &dyn Keys, budget: u64) -> Place {
    let pass = Pass { weights, keys };
    let mut wanted = budget; // rank of the threshold among those that match the prefix, from 1
    let mut prefix = Prefix { value: 0, low_bits: keys.significant_bits() };
    let mut candidates = weights.rows() as u64 * weights.columns() as u64;
    while candidates > MAX_CANDIDATES && prefix.low_bits > 0 {
        let digit_bits = DIGIT_BITS.min(prefix.low_bits);
        let shift = prefix.low_bits - digit_bits;
        let counts = pass.histogram(digit_bits, |key, _| {
            prefix.matches(key).then(|| ((key >> shift) & ((1 << digit_bits) - 1)) as usize)
        });
        let (digit, before, inside) = bucket_of(&counts, wanted);
        wanted -= before;
        candidates = inside;
        prefix = Prefix { value: prefix.value << digit_bits | digit as u64, low_bits: shift };
    }
    if candidates <= MAX_CANDIDATES {
        return nth_candidate(pass.collect(prefix), wanted);
    }
    // More equal keys than fit: narrow by |W|, then take the last by its index.
    let key = prefix.value;
    let mut magnitude = Prefix { value: 0, low_bits: weights.dtype().bytes() as u32 * 8 - 1 };
    while magnitude.low_bits > 0 {
        let digit_bits = DIGIT_BITS.min(magnitude.low_bits);
        let shift = magnitude.low_bits - digit_bits;
        let counts = pass.histogram(digit_bits, |candidate, bits| {
            let bits = (candidate == key).then(|| u64::from(bits()))?;
            magnitude.matches(bits).then(|| ((bits >> shift) & ((1 << digit_bits) - 1)) as usize)
        });
        let (digit, before, _) = bucket_of(&counts, wanted);
        wanted -= before;
        magnitude = Prefix { value: magnitude.value << digit_bits | digit as u64, low_bits: shift };
    }
    let magnitude = magnitude.value as u32;
    Place { key, magnitude, index: pass.nth_equal(key, magnitude, wanted) }
}

/// The high bits that candidates share; `low_bits` are still open.
#[derive(Clone, Copy)]
struct Prefix {
    value: u64,
    low_bits: u32,
}

impl Prefix {
    #[inline]
    fn matches(self, key: u64) -> bool {
        key >> self.low_bits == self.value
    }
}

/// The bucket that holds rank `wanted` (from 1), how many lie before it, and how many inside.
fn bucket_of(counts: &[u64], wanted: u64) -> (usize, u64, u64) {
    let mut before = 0;
    for (digit, &count) in counts.iter().enumerate() {
        if before + count >= wanted {
            return (digit, before, count);
        }
        before += count;
    }
    unreachable!("a rank is at most the number of candidates");
}

fn nth_candidate(mut candidates: Vec<Place>, wanted: u64) -> Place {
    *candidates.select_nth_unstable(wanted as usize - 1).1
}

/// Parallel passes over all keys of a matrix, recomputing them.
struct Pass<'a> {
    weights: WeightsView<'a>,
    keys: &'a dyn Keys,
}

impl Pass<'_> {
    /// Row ranges that cover the matrix, one a task.
    fn tasks(&self) -> Vec<std::ops::Range<usize>> {
        let (rows, columns) = (self.weights.rows(), self.weights.columns());
        // few tasks, so that few histograms exist at once
        let task_rows = (TASK_WEIGHTS / columns).max(1).max(rows.div_ceil(8 * rayon::current_num_threads()));
        (0..rows).step_by(task_rows).map(|start| start..(start + task_rows).min(rows)).collect()
    }

    /// Counts `digit(key, magnitude bits)` over all weights.
    fn histogram(&self, digit_bits: u32, digit: impl Fn(u64, &dyn Fn() -> u32) -> Option<usize> + Sync) -> Vec<u64> {
        let zero = || vec![0u64; 1 << digit_bits];
        self.tasks()
            .into_par_iter()
            .map(|rows| {
                let mut counts = zero();
                let mut keys = vec![0u64; self.weights.columns()];
                for row in rows {
                    self.keys.fill(row, 0..keys.len(), &mut keys);
                    for (column, &key) in keys.iter().enumerate() {
                        if let Some(digit) = digit(key, &|| self.weights.magnitude_bits(row, column)) {
                            counts[digit] += 1;
                        }
                    }
                }
                counts
            })
            .reduce(zero, |mut a, b| {
                a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
                a
            })
    }

    /// The places of all weights whose key has this prefix.
    fn collect(&self, prefix: Prefix) -> Vec<Place> {
        let columns = self.weights.columns();
        self.tasks()
            .into_par_iter()
            .map(|rows| {
                let mut places = Vec::new();
                let mut keys = vec![0u64; columns];
                for row in rows {
                    self.keys.fill(row, 0..columns, &mut keys);
                    for (column, &key) in keys.iter().enumerate().filter(|(_, key)| prefix.matches(**key)) {
                        let magnitude = self.weights.magnitude_bits(row, column);
                        places.push(Place { key, magnitude, index: (row * columns + column) as u64 });
                    }
                }
                places
            })
            .reduce(Vec::new, |mut a, mut b| {
                a.append(&mut b);
                a
            })
    }

    /// Flat index of the `wanted`-th weight (from 1) with exactly this key and magnitude.
    fn nth_equal(&self, key: u64, magnitude: u32, mut wanted: u64) -> u64 {
        let columns = self.weights.columns();
        let mut keys = vec![0u64; columns];
        for row in 0..self.weights.rows() {
            self.keys.fill(row, 0..columns, &mut keys);
            for (column, &candidate) in keys.iter().enumerate() {
                if candidate == key && self.weights.magnitude_bits(row, column) == magnitude {
                    wanted -= 1;
                    if wanted == 0 {
                        return (row * columns + column) as u64;
                    }
                }
            }
        }
        unreachable!("the histograms counted at least this many");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::DType;

    struct Given(Vec<u64>, usize);

    impl Keys for Given {
        fn fill(&self, row: usize, columns: std::ops::Range<usize>, keys: &mut [u64]) {
            keys.copy_from_slice(&self.0[row * self.1..][columns]);
        }

        fn significant_bits(&self) -> u32 {
            40
        }
    }

    /// Which way a mask was found is no one's business; that both ways run, and agree, is ours.
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn sample_and_radix_agree_and_a_misleading_sample_is_noticed() {
        let (rows, columns) = (600, 500);
        let bytes = vec![0u8; rows * columns * 2];
        let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
        let random = |index: usize| (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
        let scattered = Given((0..rows * columns).map(random).collect(), columns);
        let few = Given((0..rows * columns).map(|index| random(index) % 5).collect(), columns);
        // every sampled key is low, every other one high
        let mut seen = vec![1u64 << 39; rows * columns];
        let probe = Probe(columns, std::sync::Mutex::new(Vec::new()));
        sample_of(rows, columns, &probe);
        for index in probe.1.into_inner().unwrap() {
            seen[index] = random(index) >> 2;
        }
        let misleading = Given(seen, columns);
        for (keys, sampled) in [(&scattered, true), (&few, false), (&misleading, false)] {
            let (mut by_sample, mut by_radix) = (MatrixMask::kept(rows, columns), MatrixMask::kept(rows, columns));
            assert_eq!(select_by_sample(weights, keys, 123_456, &mut by_sample), sampled);
            select_by_radix(weights, keys, 123_456, &mut by_radix);
            assert_eq!(by_radix.count_pruned(), 123_456);
            if sampled {
                assert_eq!(by_sample, by_radix);
            }
        }
    }

    /// Notes which keys are asked for.
    struct Probe(usize, std::sync::Mutex<Vec<usize>>);

    impl Keys for Probe {
        fn fill(&self, _: usize, _: std::ops::Range<usize>, keys: &mut [u64]) {
            keys.fill(0);
        }

        fn fill_coarse(&self, row: usize, columns: std::ops::Range<usize>, coarse: &mut [i16]) {
            coarse.fill(0);
            self.1.lock().unwrap().extend(columns.map(|column| row * self.0 + column));
        }

        fn significant_bits(&self) -> u32 {
            40
        }
    }
}
