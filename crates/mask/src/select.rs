//! From keys to a mask, in linear time.
//!
//! Order inside a pool, always: key ascending, then |W| ascending, then flat index (row-major) ascending;
//! the first `floor(pool × sparsity)` are pruned. The order is total, so the mask is unique.
//!
//! Nothing is sorted and nothing the size of a matrix is allocated, save the mask. A `layer` pool is
//! narrowed down by radix: histograms of one digit after another of the key, recomputed on each pass,
//! until the few candidates around the threshold fit a small buffer. Other pools are small enough to be
//! copied and partitioned.
//!
//! Floor for one `layer` selection of n weights: W is read twice (one histogram, one marking pass) and
//! n/8 bytes are written. A `row` selection reads W once.

use rayon::prelude::*;

use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::score::{Keys, Pruner, WidthError};
use crate::sparsity::{Group, Sparsity};
use crate::weights::WeightsView;

/// What keeps a mask from being derived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeriveError {
    /// Norms of another width than the matrix.
    #[error(transparent)]
    Width(#[from] WidthError),
    /// An n:m group on a width that m does not divide.
    #[error("group `{group}` does not divide a row of {columns} inputs; use the group row or layer")]
    Indivisible {
        /// The n:m group.
        group: Group,
        /// in_features.
        columns: usize,
    },
}

/// The mask that `pruner` gives `weights` under `norms`: what a silo votes, and what everyone rebuilds.
///
/// # Errors
/// [`DeriveError`] when norms or group do not fit the width of the matrix.
pub fn derive_mask(
    pruner: Pruner,
    group: Group,
    sparsity: Sparsity,
    weights: WeightsView<'_>,
    norms: &NormVector,
) -> Result<MatrixMask, DeriveError> {
    if matches!(group, Group::NofM { m, .. } if !weights.columns().is_multiple_of(m as usize)) {
        return Err(DeriveError::Indivisible { group, columns: weights.columns() });
    }
    let keys = pruner.keys(weights, norms)?;
    Ok(select(weights, &*keys, group, sparsity))
}

/// Bits of one radix digit; its histogram stays in the second-level cache.
const DIGIT_BITS: u32 = 14;
/// Weights that one task of a parallel pass looks at, about.
const TASK_WEIGHTS: usize = 1 << 16;
/// Candidates are collected once this few are left, about.
const MAX_CANDIDATES: u64 = 1 << 17;
/// Columns that are gathered together for a `column` group.
const COLUMN_TILE: usize = 32;

/// A position in the total order; everything up to and including it is pruned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    key: u64,
    magnitude: u32,
    index: u64,
}

/// The mask of `weights` under `keys`: the first weights of each pool, in the total order.
///
/// `sparsity` is ignored for an n:m group, which fixes its own.
///
/// # Panics
/// When an n:m group does not divide the width: [`crate::Layout::check_group`] comes first.
pub fn select(weights: WeightsView<'_>, keys: &dyn Keys, group: Group, sparsity: Sparsity) -> MatrixMask {
    let mut mask = MatrixMask::kept(weights.rows(), weights.columns());
    if weights.rows() == 0 || weights.columns() == 0 {
        return mask;
    }
    match group {
        Group::Layer => select_layer(weights, keys, sparsity, &mut mask),
        Group::Row => {
            let budget = sparsity.budget(weights.columns() as u64) as usize;
            for_each_row(weights, keys, &mut mask, |row, keys, scratch, bits| {
                select_pool(
                    keys,
                    |column| weights.magnitude_bits(row, column),
                    budget,
                    scratch,
                    |column| {
                        bits.set(column);
                    },
                );
            });
        }
        Group::Column => select_columns(weights, keys, sparsity, &mut mask),
        Group::NofM { n, m } => {
            assert_eq!(weights.columns() % m as usize, 0, "the group was checked against the layout");
            for_each_row(weights, keys, &mut mask, |row, keys, _, bits| {
                select_n_of_m(keys, |column| weights.magnitude_bits(row, column), n as usize, m as usize, bits);
            });
        }
    }
    mask
}

/// The bits of one row inside words shared with its neighbours in the same task.
struct RowBits<'a> {
    words: &'a mut [u64],
    start: usize,
}

impl RowBits<'_> {
    #[inline]
    fn set(&mut self, column: usize) {
        let bit = self.start + column;
        self.words[bit / 64] |= 1 << (bit % 64);
    }
}

/// Buffers that one task reuses from pool to pool.
#[derive(Default)]
struct Scratch {
    keys: Vec<u64>,
    ties: Vec<(u32, u32)>,
}

/// How many rows one task takes: a multiple that ends on a whole word, so that tasks share no word.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    let whole_words = 64 >> columns.trailing_zeros().min(6);
    (TASK_WEIGHTS / columns).max(1).next_multiple_of(whole_words)
}

/// Runs `f(row, keys, scratch, bits)` over all rows, on all cores.
fn for_each_row(
    weights: WeightsView<'_>,
    keys: &dyn Keys,
    mask: &mut MatrixMask,
    f: impl Fn(usize, &[u64], &mut Scratch, &mut RowBits<'_>) + Sync,
) {
    let (rows, columns) = (weights.rows(), weights.columns());
    let task_rows = rows_per_task(columns);
    mask.words_mut().par_chunks_mut((task_rows * columns).div_ceil(64)).enumerate().for_each_init(
        || (vec![0u64; columns], Scratch::default()),
        |(row_keys, scratch), (task, words)| {
            let first = task * task_rows;
            for row in first..(first + task_rows).min(rows) {
                keys.fill(row, 0..columns, row_keys);
                f(row, row_keys, scratch, &mut RowBits { words, start: (row - first) * columns });
            }
        },
    );
}

/// Marks the first `budget` of one pool; `magnitude(position)` breaks ties of keys.
fn select_pool(
    keys: &[u64],
    magnitude: impl Fn(usize) -> u32,
    budget: usize,
    scratch: &mut Scratch,
    mut mark: impl FnMut(usize),
) {
    if budget == 0 {
        return;
    }
    scratch.keys.clear();
    scratch.keys.extend_from_slice(keys);
    let (_, &mut threshold, _) = scratch.keys.select_nth_unstable(budget - 1);
    scratch.ties.clear();
    let mut below = 0;
    for (position, &key) in keys.iter().enumerate() {
        if key < threshold {
            mark(position);
            below += 1;
        } else if key == threshold {
            scratch.ties.push((magnitude(position), position as u32));
        }
    }
    let wanted = budget - below;
    if wanted < scratch.ties.len() {
        scratch.ties.select_nth_unstable(wanted - 1);
        scratch.ties.truncate(wanted);
    }
    for &(_, position) in &scratch.ties {
        mark(position as usize);
    }
}

/// Marks n of each m consecutive keys.
fn select_n_of_m(keys: &[u64], magnitude: impl Fn(usize) -> u32, n: usize, m: usize, bits: &mut RowBits<'_>) {
    for start in (0..keys.len()).step_by(m) {
        let pool = &keys[start..start + m];
        let mut taken = 0u64;
        for _ in 0..n {
            let mut best: Option<(u64, u32, usize)> = None;
            for (position, &key) in pool.iter().enumerate() {
                if taken >> position & 1 == 1 || best.is_some_and(|(lowest, _, _)| key > lowest) {
                    continue;
                }
                let place = (key, magnitude(start + position), position);
                if best.is_none_or(|best| place < best) {
                    best = Some(place);
                }
            }
            if let Some((_, _, position)) = best {
                taken |= 1 << position;
                bits.set(start + position);
            }
        }
    }
}

fn select_columns(weights: WeightsView<'_>, keys: &dyn Keys, sparsity: Sparsity, mask: &mut MatrixMask) {
    let (rows, columns) = (weights.rows(), weights.columns());
    let budget = sparsity.budget(rows as u64) as usize;
    if budget == 0 {
        return;
    }
    let tiles: Vec<usize> = (0..columns).step_by(COLUMN_TILE).collect();
    // Chosen rows per column come back as lists, one group of tiles at a time: columns of different
    // tiles share mask words.
    for tiles in tiles.chunks(rayon::current_num_threads().max(1) * 2) {
        let chosen: Vec<Vec<(usize, u32)>> = tiles
            .par_iter()
            .map_init(Scratch::default, |scratch, &start| {
                let width = COLUMN_TILE.min(columns - start);
                let mut tile = vec![0u64; rows * width];
                let mut line = vec![0u64; width];
                for row in 0..rows {
                    keys.fill(row, start..start + width, &mut line);
                    for (column, &key) in line.iter().enumerate() {
                        tile[column * rows + row] = key;
                    }
                }
                let mut chosen = Vec::with_capacity(budget * width);
                for (offset, keys) in tile.chunks_exact(rows).enumerate() {
                    let column = start + offset;
                    select_pool(
                        keys,
                        |row| weights.magnitude_bits(row, column),
                        budget,
                        scratch,
                        |row| {
                            chosen.push((row, column as u32));
                        },
                    );
                }
                chosen
            })
            .collect();
        for (row, column) in chosen.into_iter().flatten() {
            mask.prune(row, column as usize);
        }
    }
}

fn select_layer(weights: WeightsView<'_>, keys: &dyn Keys, sparsity: Sparsity, mask: &mut MatrixMask) {
    let pool = weights.rows() as u64 * weights.columns() as u64;
    let budget = sparsity.budget(pool);
    if budget == 0 {
        return;
    }
    let last = last_pruned(weights, keys, budget);
    for_each_row(weights, keys, mask, |row, keys, _, bits| {
        let columns = keys.len();
        for (column, &key) in keys.iter().enumerate() {
            let pruned = key < last.key
                || key == last.key && {
                    let index = (row * columns + column) as u64;
                    (weights.magnitude_bits(row, column), index) <= (last.magnitude, last.index)
                };
            if pruned {
                bits.set(column);
            }
        }
    });
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

/// The obvious way: sort every pool whole. The reference that tests hold [`select`] against.
pub fn select_by_sorting(weights: WeightsView<'_>, keys: &dyn Keys, group: Group, sparsity: Sparsity) -> MatrixMask {
    let (rows, columns) = (weights.rows(), weights.columns());
    let mut all = vec![0u64; rows * columns];
    for (row, keys_of_row) in all.chunks_exact_mut(columns).enumerate() {
        keys.fill(row, 0..columns, keys_of_row);
    }
    let pools: Vec<Vec<usize>> = match group {
        Group::Layer => vec![(0..rows * columns).collect()],
        Group::Row => (0..rows).map(|row| (row * columns..(row + 1) * columns).collect()).collect(),
        Group::Column => (0..columns).map(|column| (column..rows * columns).step_by(columns).collect()).collect(),
        Group::NofM { m, .. } => {
            (0..rows * columns).step_by(m as usize).map(|start| (start..start + m as usize).collect()).collect()
        }
    };
    let mut mask = MatrixMask::kept(rows, columns);
    for mut pool in pools {
        pool.sort_by_key(|&index| (all[index], weights.magnitude_bits(index / columns, index % columns), index));
        let budget = match group {
            Group::NofM { n, .. } => n as usize,
            _ => sparsity.budget(pool.len() as u64) as usize,
        };
        for &index in &pool[..budget] {
            mask.prune(index / columns, index % columns);
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::score::PRUNERS;
    use half::bf16;
    use proptest::prelude::*;

    /// Keys given outright.
    struct Given(Vec<u64>, usize);

    impl Keys for Given {
        fn fill(&self, row: usize, columns: std::ops::Range<usize>, keys: &mut [u64]) {
            keys.copy_from_slice(&self.0[row * self.1..][columns]);
        }

        fn significant_bits(&self) -> u32 {
            64 - self.0.iter().copied().max().unwrap_or(0).leading_zeros()
        }
    }

    fn groups(columns: usize) -> Vec<Group> {
        let mut groups = vec![Group::Layer, Group::Row, Group::Column];
        groups.extend(
            [(1, 2), (2, 4), (4, 8), (3, 7), (63, 64)]
                .into_iter()
                .filter(|(_, m)| columns.is_multiple_of(*m as usize))
                .map(|(n, m)| Group::NofM { n, m }),
        );
        groups
    }

    fn check(rows: usize, columns: usize, weights: &[u8], keys: &dyn Keys, sparsity: Sparsity) {
        let view = WeightsView::new(DType::BF16, rows, columns, weights).unwrap();
        for group in groups(columns) {
            let fast = select(view, keys, group, sparsity);
            assert_eq!(fast, select_by_sorting(view, keys, group, sparsity), "{group} {rows}×{columns}");
            let budget = group.matrix_budget(rows as u32, columns as u32, sparsity);
            assert_eq!(fast.count_pruned(), budget, "{group}");
        }
    }

    proptest! {
        #[test]
        fn equals_sorting(
            rows in 1usize..40, columns in 1usize..80, levels in 1u64..1000,
            numerator in 0u64..100, seed in any::<u64>(),
        ) {
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); state >> 33 };
            let keys = Given((0..rows * columns).map(|_| next() % levels).collect(), columns);
            let weights: Vec<u8> = (0..rows * columns)
                .flat_map(|_| bf16::from_f32((next() % 5) as f32 - 2.0).to_le_bytes()).collect();
            check(rows, columns, &weights, &keys, Sparsity::new(numerator, 100).unwrap());
        }

        #[test]
        fn real_scores_equal_sorting(rows in 1usize..20, columns in 1usize..70, seed in any::<u64>()) {
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 40) as f32 / 1e6 - 8.0 };
            let weights: Vec<u8> = (0..rows * columns).flat_map(|_| bf16::from_f32(next()).to_le_bytes()).collect();
            let sums: Vec<f64> = (0..columns).map(|_| f64::from(next()).powi(2)).collect();
            let norms = NormVector::from_sums(&sums, 3).unwrap();
            let view = WeightsView::new(DType::BF16, rows, columns, &weights).unwrap();
            for pruner in PRUNERS {
                let pruner: Pruner = pruner.name().parse().unwrap();
                check(rows, columns, &weights, &*pruner.keys(view, &norms).unwrap(), Sparsity::new(57, 100).unwrap());
            }
        }
    }

    /// Large enough that the radix passes run: many distinct keys, few, and one.
    #[test]
    fn large_layers_equal_sorting() {
        let (rows, columns) = (531, 777);
        assert!((rows * columns) as u64 > 2 * MAX_CANDIDATES);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 20
        };
        let weights: Vec<u8> =
            (0..rows * columns).flat_map(|_| bf16::from_f32((next() % 3) as f32).to_le_bytes()).collect();
        let view = WeightsView::new(DType::BF16, rows, columns, &weights).unwrap();
        for levels in [1u64 << 44, 64, 2, 1] {
            let keys = Given((0..rows * columns).map(|_| next() % levels).collect(), columns);
            for numerator in [1, 50, 99] {
                let sparsity = Sparsity::new(numerator, 100).unwrap();
                let fast = select(view, &keys, Group::Layer, sparsity);
                assert_eq!(
                    fast,
                    select_by_sorting(view, &keys, Group::Layer, sparsity),
                    "{levels} levels, {numerator} %"
                );
            }
        }
    }

    #[test]
    fn ties_fall_by_magnitude_then_index() {
        let weights: Vec<u8> = [2.0f32, -1.0, 1.0, 0.0].iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
        let view = WeightsView::new(DType::BF16, 1, 4, &weights).unwrap();
        let mask = select(view, &Given(vec![7; 4], 4), Group::Layer, Sparsity::new(1, 2).unwrap());
        assert_eq!(mask.to_bytes(), [0b1010], "the zero, then the first of magnitude 1");
    }
}
