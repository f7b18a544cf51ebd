//! Whether a mask prunes exactly its budget in every pool: the check that a bitmap needs, since unlike
//! norms it could say anything.

use crate::matrix_mask::MatrixMask;
use crate::sparsity::{Group, Sparsity};

/// A pool in which too many or too few weights are pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("group `{group}` prunes {expected} weights of pool {pool}, and this mask prunes {actual}")]
pub struct BudgetError {
    /// The group that makes the pools.
    pub group: Group,
    /// Row, column or n:m pool (row-major), by group; 0 for a layer.
    pub pool: u64,
    /// The budget.
    pub expected: u64,
    /// Weights pruned in the pool.
    pub actual: u64,
}

/// Refuses a mask that does not prune exactly the budget in every pool.
///
/// `sparsity` is ignored for an n:m group, which fixes its own.
///
/// # Errors
/// [`BudgetError`] naming the first pool that is off.
pub fn check_budgets(mask: &MatrixMask, group: Group, sparsity: Sparsity) -> Result<(), BudgetError> {
    let (rows, columns) = (mask.rows(), mask.columns());
    let check = |pool: usize, expected: u64, actual: u64| {
        if expected == actual {
            return Ok(());
        }
        Err(BudgetError { group, pool: pool as u64, expected, actual })
    };
    match group {
        Group::Layer => check(0, sparsity.budget(rows as u64 * columns as u64), mask.count_pruned()),
        Group::Row => {
            let budget = sparsity.budget(columns as u64);
            (0..rows)
                .try_for_each(|row| check(row, budget, count_ones(mask.words(), row * columns..(row + 1) * columns)))
        }
        Group::Column => {
            let budget = sparsity.budget(rows as u64);
            let mut counts = vec![0u64; columns];
            let mut row_start = 0;
            mask.for_each_pruned(|index| {
                // pruned weights come in order, so rows advance without a division each
                while index - row_start >= columns {
                    row_start += columns;
                }
                counts[index - row_start] += 1;
            });
            counts.into_iter().enumerate().try_for_each(|(column, count)| check(column, budget, count))
        }
        Group::NofM { n, m } => {
            let (n, m) = (u64::from(n), m as usize);
            let pools = rows * columns / m;
            let whole_words = if 64 % m == 0 { words_with_pools_of(mask, n, m) } else { 0 };
            (whole_words * 64 / m..pools)
                .try_for_each(|pool| check(pool, n, count_ones(mask.words(), pool * m..(pool + 1) * m)))
        }
    }
}

/// How many leading words hold whole pools of m bits (m divides 64) with n ones each, and nothing else.
fn words_with_pools_of(mask: &MatrixMask, n: u64, m: usize) -> usize {
    let full_words = mask.rows() * mask.columns() / 64;
    let words = &mask.words()[..full_words];
    let fields = |bits: usize, value: u64| (0..64).step_by(bits).fold(0u64, |word, at| word | value << at);
    // n < m fits a field of m bits, for m = 2 too, where the only n is 1
    let expected = fields(m, n);
    let steps: Vec<(usize, u64)> = [1usize, 2, 4, 8, 16, 32]
        .into_iter()
        .take_while(|half| *half < m)
        .map(|half| (half, fields(2 * half, (1 << half) - 1)))
        .collect();
    let sums_match = |&word: &u64| {
        let sums = steps.iter().fold(word, |word, &(half, low)| (word & low) + (word >> half & low));
        sums == expected
    };
    words.iter().position(|word| !sums_match(word)).unwrap_or(full_words)
}

/// Ones among a range of bits.
fn count_ones(words: &[u64], bits: std::ops::Range<usize>) -> u64 {
    if bits.is_empty() {
        return 0;
    }
    let (first, last) = (bits.start / 64, (bits.end - 1) / 64);
    let head = u64::MAX << (bits.start % 64);
    let tail = u64::MAX >> (63 - (bits.end - 1) % 64);
    if first == last {
        return u64::from((words[first] & head & tail).count_ones());
    }
    let inner: u64 = words[first + 1..last].iter().map(|word| u64::from(word.count_ones())).sum();
    inner + u64::from((words[first] & head).count_ones()) + u64::from((words[last] & tail).count_ones())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightsView;
    use crate::score::Keys;
    use crate::select::select;
    use crate::weights::DType;

    /// Keys that look random and need no weights.
    struct Scattered(usize);

    impl Keys for Scattered {
        fn fill(&self, row: usize, columns: std::ops::Range<usize>, keys: &mut [u64]) {
            for (key, column) in keys.iter_mut().zip(columns) {
                *key = ((row * self.0 + column) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            }
        }

        fn significant_bits(&self) -> u32 {
            24
        }
    }

    #[test]
    fn accepts_what_selection_makes_and_nothing_one_bit_away() {
        let shapes = [(1, 64), (5, 192), (9, 24), (3, 840), (33, 66), (64, 2)];
        for (rows, columns) in shapes.into_iter().take(if cfg!(miri) { 2 } else { shapes.len() }) {
            let bytes = vec![0u8; rows * columns * 2];
            let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
            let sparsity = Sparsity::new(57, 100).unwrap();
            let mut groups = vec![Group::Layer, Group::Row, Group::Column];
            for (n, m) in [(1, 2), (2, 4), (3, 4), (4, 8), (3, 7), (31, 32), (5, 6), (10, 64)] {
                if columns % m as usize == 0 {
                    groups.push(Group::NofM { n, m });
                }
            }
            for group in groups {
                let mask = select(weights, &Scattered(columns), group, sparsity);
                assert_eq!(check_budgets(&mask, group, sparsity), Ok(()), "{group} {rows}×{columns}");
                for at in (0..rows * columns).step_by(if cfg!(miri) { 331 } else { 5 }) {
                    let mut other = mask.clone();
                    other.words_mut()[at / 64] ^= 1 << (at % 64);
                    let error = check_budgets(&other, group, sparsity).unwrap_err();
                    assert_eq!(error.expected.abs_diff(error.actual), 1);
                    let pool = match group {
                        Group::Layer => 0,
                        Group::Row => at / columns,
                        Group::Column => at % columns,
                        Group::NofM { m, .. } => at / m as usize,
                    };
                    assert_eq!(error.pool, pool as u64, "{group} {rows}×{columns}");
                }
            }
        }
    }
}
