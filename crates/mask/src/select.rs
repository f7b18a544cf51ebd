//! From keys to a mask, in linear time.
//!
//! Order inside a pool, always: key ascending, then |W| ascending, then flat index (row-major) ascending;
//! the first `floor(pool × sparsity)` are pruned. The order is total, so the mask is unique.
//!
//! Nothing is sorted and nothing the size of a matrix is allocated, save the mask. *Coarse* keys of 15 bits,
//! compared many at a time, bracket the threshold; one branchless pass marks what lies below the bracket
//! and sets aside the few weights inside it, whose keys alone are computed and partitioned. A sample or an
//! expectation that misleads is noticed, since ranks are counted, and costs time only.
//!
//! Floor for one selection of n weights, `layer` or `row`: W is read once and n/8 bytes are written.

mod layer;
mod pairs;
mod pool;

use rayon::prelude::*;

use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::score::{Keys, Pruner, WidthError};
use crate::sparsity::{Group, Sparsity};
use crate::weights::WeightsView;
use pool::{Scratch, for_each_one};

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

/// Weights that one task of a parallel pass looks at, about.
const TASK_WEIGHTS: usize = if cfg!(miri) { 1 << 9 } else { 1 << 16 };
/// Columns that are gathered together for a `column` group.
const COLUMN_TILE: usize = 32;

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
        Group::Layer => layer::select_layer(weights, keys, sparsity, &mut mask),
        Group::Row => {
            let budget = sparsity.budget(weights.columns() as u64) as usize;
            for_each_row(weights, keys, &mut mask, |row, coarse, scratch, bits| {
                let key = |column| keys.key(row, column);
                bits.or_words(scratch.select(coarse, budget, key, |column| weights.magnitude_bits(row, column)));
            });
        }
        Group::Column => select_columns(weights, keys, sparsity, &mut mask),
        Group::NofM { n, m } => {
            assert_eq!(weights.columns() % m as usize, 0, "the group was checked against the layout");
            for_each_row(weights, keys, &mut mask, |row, coarse, _, bits| {
                let place = |column| (keys.key(row, column), weights.magnitude_bits(row, column));
                match m {
                    2 => pairs::select_pools::<2>(coarse, place, n, bits),
                    4 => pairs::select_fours(coarse, place, n, bits),
                    8 => pairs::select_pools::<8>(coarse, place, n, bits),
                    _ => pairs::select_n_of_m(coarse.len(), place, n as usize, m as usize, bits),
                }
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

    /// Marks up to 64 weights from `column` on.
    #[inline]
    fn or(&mut self, column: usize, bits: u64) {
        let bit = self.start + column;
        self.words[bit / 64] |= bits << (bit % 64);
        let spilled = bits.checked_shr(64 - (bit % 64) as u32).unwrap_or(0);
        if spilled != 0 {
            self.words[bit / 64 + 1] |= spilled;
        }
    }

    /// Marks a whole row.
    fn or_words(&mut self, row: &[u64]) {
        for (word, &bits) in row.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            self.or(word * 64, bits);
        }
    }
}

/// How many rows one task takes: a multiple that ends on a whole word, so that tasks share no word.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    let whole_words = 64 >> columns.trailing_zeros().min(6);
    (TASK_WEIGHTS / columns).max(1).next_multiple_of(whole_words)
}

/// Runs `f(row, coarse keys, scratch, bits)` over all rows, on all cores.
fn for_each_row(
    weights: WeightsView<'_>,
    keys: &dyn Keys,
    mask: &mut MatrixMask,
    f: impl Fn(usize, &[i16], &mut Scratch, &mut RowBits<'_>) + Sync,
) {
    let (rows, columns) = (weights.rows(), weights.columns());
    let task_rows = rows_per_task(columns);
    mask.words_mut().par_chunks_mut((task_rows * columns).div_ceil(64)).enumerate().for_each_init(
        || (vec![0i16; columns], Scratch::default()),
        |(coarse, scratch), (task, words)| {
            let first = task * task_rows;
            for row in first..(first + task_rows).min(rows) {
                keys.fill_coarse(row, 0..columns, coarse);
                f(row, coarse, scratch, &mut RowBits { words, start: (row - first) * columns });
            }
        },
    );
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
                let mut tile = vec![0i16; rows * width];
                let mut line = vec![0i16; width];
                for row in 0..rows {
                    keys.fill_coarse(row, start..start + width, &mut line);
                    for (column, &key) in line.iter().enumerate() {
                        tile[column * rows + row] = key;
                    }
                }
                let mut chosen = Vec::with_capacity(budget * width);
                for (offset, coarse) in tile.chunks_exact(rows).enumerate() {
                    let column = start + offset;
                    let key = |row| keys.key(row, column);
                    let pruned = scratch.select(coarse, budget, key, |row| weights.magnitude_bits(row, column));
                    for_each_one(pruned, |row| chosen.push((row, column as u32)));
                }
                chosen
            })
            .collect();
        for (row, column) in chosen.into_iter().flatten() {
            mask.prune(row, column as usize);
        }
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

    const MOST_ROWS: usize = if cfg!(miri) { 10 } else { 40 };

    /// Keys given outright, the width, and the significant bits.
    struct Given(Vec<u64>, usize, u32);

    impl Given {
        fn new(keys: Vec<u64>, columns: usize) -> Self {
            let bits = 64 - keys.iter().copied().max().unwrap_or(0).leading_zeros();
            Self(keys, columns, bits)
        }
    }

    impl Keys for Given {
        fn fill(&self, row: usize, columns: std::ops::Range<usize>, keys: &mut [u64]) {
            keys.copy_from_slice(&self.0[row * self.1..][columns]);
        }

        fn significant_bits(&self) -> u32 {
            self.2
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
            rows in 1usize..MOST_ROWS, columns in 1usize..80, levels in 1u64..1000,
            numerator in 0u64..100, seed in any::<u64>(),
        ) {
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); state >> 33 };
            let keys = Given::new((0..rows * columns).map(|_| next() % levels).collect(), columns);
            let weights: Vec<u8> = (0..rows * columns)
                .flat_map(|_| bf16::from_f32((next() % 5) as f32 - 2.0).to_le_bytes()).collect();
            check(rows, columns, &weights, &keys, Sparsity::new(numerator, 100).unwrap());
        }

        #[test]
        fn real_scores_equal_sorting(rows in 1usize..MOST_ROWS / 2, columns in 1usize..70, seed in any::<u64>()) {
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

    /// Large enough for samples and for radix passes: many distinct keys, few, and one.
    #[test]
    fn large_pools_equal_sorting() {
        let (rows, columns) = if cfg!(miri) { (17, 64) } else { (531, 777) };
        assert!((rows * columns) as u64 > 2 * layer::MAX_CANDIDATES);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 20
        };
        let weights: Vec<u8> =
            (0..rows * columns).flat_map(|_| bf16::from_f32((next() % 3) as f32).to_le_bytes()).collect();
        let view = WeightsView::new(DType::BF16, rows, columns, &weights).unwrap();
        let all_levels: &[u64] = if cfg!(miri) { &[1 << 44, 1] } else { &[1 << 44, 64, 2, 1] };
        for levels in all_levels {
            let keys = Given::new((0..rows * columns).map(|_| next() % *levels).collect(), columns);
            let numerators: &[u64] = if cfg!(miri) { &[50] } else { &[1, 50, 99] };
            for numerator in numerators {
                let sparsity = Sparsity::new(*numerator, 100).unwrap();
                for group in [Group::Layer, Group::Row, Group::Column] {
                    let fast = select(view, &keys, group, sparsity);
                    let slow = select_by_sorting(view, &keys, group, sparsity);
                    assert_eq!(fast, slow, "{group}, {levels} levels, {numerator} %");
                }
            }
        }
    }

    /// Norms and weights from one end of their formats to the other: products that overflow f32 or vanish in it,
    /// subnormal numbers, zeros, and everything alike.
    #[test]
    fn extreme_exponents_equal_sorting() {
        let mut state = 5u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let cases = [(255, 128), (2, 128), (255, 1), (40, 3), (1, 1)];
        for (exponents, fractions) in cases.into_iter().take(if cfg!(miri) { 1 } else { cases.len() }) {
            for first_exponent in [0, 100, 254] {
                for dtype in [DType::BF16, DType::F16, DType::F32] {
                    let (rows, columns) = if cfg!(miri) { (2, 64) } else { (7, 640) };
                    let mut exponent = |most: u64| (first_exponent + next(exponents)) % (most + 1);
                    let bits: Vec<u16> = (0..columns).map(|_| (exponent(254) << 7) as u16).collect();
                    let mut bits: Vec<u16> = bits.into_iter().map(|bits| bits | next(fractions) as u16).collect();
                    bits[3] = 254 << 7; // canonical
                    let norms = NormVector::from_canonical_bits(bits).unwrap();
                    let mut exponent = |most: u64| (first_exponent + next(exponents)) % (most + 1);
                    let weights: Vec<u64> = (0..rows * columns)
                        .map(|_| match dtype {
                            DType::BF16 => exponent(254) << 7,
                            DType::F16 => exponent(30) << 10,
                            DType::F32 => exponent(254) << 23,
                        })
                        .collect();
                    let weights: Vec<u8> = weights
                        .into_iter()
                        .flat_map(|bits| (bits | next(fractions)).to_le_bytes()[..dtype.bytes()].to_vec())
                        .collect();
                    let view = WeightsView::new(dtype, rows, columns, &weights).unwrap();
                    let sparsity = Sparsity::new(next(100), 100).unwrap();
                    for pruner in [Pruner::WANDA, Pruner::MAGNITUDE] {
                        let keys = pruner.keys(view, &norms).unwrap();
                        for group in groups(columns) {
                            let slow = select_by_sorting(view, &*keys, group, sparsity);
                            assert_eq!(select(view, &*keys, group, sparsity), slow, "{pruner} {dtype} {group}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn ties_fall_by_magnitude_then_index() {
        let weights: Vec<u8> = [2.0f32, -1.0, 1.0, 0.0].iter().flat_map(|w| bf16::from_f32(*w).to_le_bytes()).collect();
        let view = WeightsView::new(DType::BF16, 1, 4, &weights).unwrap();
        let mask = select(view, &Given::new(vec![7; 4], 4), Group::Layer, Sparsity::new(1, 2).unwrap());
        assert_eq!(mask.to_bytes(), [0b1010], "the zero, then the first of magnitude 1");
    }
}
