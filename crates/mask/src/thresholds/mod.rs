//! Masks that are a threshold a column, kept as those thresholds.
//!
//! Under a `layer` group Wanda's score is |W_ij| · s_j, so in column j the pruned weights are those of
//! the smallest magnitudes: a *column prefix* in the order (|W|, row). One number a column says which, its
//! *level*: pruned are the weights whose |W|, as bits that order as magnitudes do, is below it. Magnitude
//! pruning is the case of equal norms. So is the global `layer` mask of such ballots: where one ballot
//! prunes a weight it prunes every lighter one of the column, hence counts fall along the order.
//!
//! **Ties.** The order of a pool is (score, |W|, flat index). Of the score at which the budget runs out,
//! T, a column has one magnitude T / s_j (or, where s_j = 0 and T = 0, all of them); these go by |W|, so a
//! column with a lighter one prunes it whole and one with a heavier one keeps it whole. Only where that
//! magnitude is the one w at which the budget really ends do columns disagree inside, and there by flat
//! index: up to `last` pruned, after it kept. That is [`Split`]; a layer has at most one. The order of a
//! global pool, (votes descending, |W|, flat index), ends in the same way, but its mask may inherit the
//! splits of ballots besides: such a mask has no form here, and is carried as bits.
//!
//! Any level in the gap between the heaviest weight pruned and the lightest kept gives the same mask:
//! [`Gaps`] has both ends, from a mask or from other thresholds, and is a function of the mask alone.
//!
//! RIA adds a term that depends on the row, so its masks are no column prefixes in general; whether a mask
//! is one is found out from the mask ([`Gaps::of_mask`]), never assumed.
//!
//! | module | what it answers |
//! |---|---|
//! | [`kernel`] | passes over stored rows: compare with levels, gather gaps |
//! | [`band`] | how many weights of each column have each magnitude, near where ballots end |
//! | [`derive`] | norms to thresholds without a mask |
//! | [`search`] | at which score the budget of each of many silos runs out |

pub(crate) mod band;
pub(crate) mod derive;
pub(crate) mod kernel;
pub(crate) mod search;
#[cfg(test)]
pub(crate) mod tests;

use crate::matrix_mask::MatrixMask;
use crate::weights::{DType, WeightsView};

/// Above the magnitude of every weight: the level of a column that is pruned whole.
pub(crate) fn top_level(dtype: DType) -> u32 {
    1 << (8 * dtype.bytes() - 1)
}

/// Weights of one magnitude of which some columns prune the first by flat index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    /// Their |W|, as bits.
    pub(crate) magnitude: u32,
    /// Flat index of the last one pruned.
    pub(crate) last: u64,
    /// The columns that prune them up to there, ascending; their level is `magnitude`. Never empty.
    pub(crate) columns: Vec<u32>,
}

/// A column-prefix mask of one matrix.
///
/// Pruned is |W_ij| < `levels[j]`, and in the columns of the split |W_ij| = `magnitude` up to `last`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnThresholds {
    /// One a column, at most [`top_level`].
    pub(crate) levels: Vec<u32>,
    pub(crate) split: Option<Split>,
}

impl ColumnThresholds {
    /// The mask, bit for bit, in one read of the weights.
    ///
    /// # Panics
    /// When there are other columns than the weights have: whoever made the thresholds checked.
    pub(crate) fn expand(&self, weights: WeightsView<'_>) -> MatrixMask {
        assert_eq!(self.levels.len(), weights.columns(), "thresholds of this matrix");
        kernel::expand(self, weights)
    }

    /// [`ColumnThresholds::expand`], a weight at a time: the reference.
    #[cfg(test)]
    pub(crate) fn expand_one_by_one(&self, weights: WeightsView<'_>) -> MatrixMask {
        let mut mask = MatrixMask::kept(weights.rows(), weights.columns());
        for row in 0..weights.rows() {
            for column in 0..weights.columns() {
                let magnitude = weights.magnitude_bits(row, column);
                let index = (row * weights.columns() + column) as u64;
                let by_split = self.split.as_ref().is_some_and(|split| {
                    split.columns.contains(&(column as u32)) && magnitude == split.magnitude && index <= split.last
                });
                if magnitude < self.levels[column] || by_split {
                    mask.prune(row, column);
                }
            }
        }
        mask
    }
}

/// Between which levels each column's threshold lies: a function of a column-prefix mask and the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// One above the heaviest weight pruned whole; 0 where there is none. In columns of the split, `magnitude`.
    pub(crate) low: Vec<u32>,
    /// The lightest weight kept; [`top_level`] where there is none. Never below `low`.
    pub(crate) high: Vec<u32>,
    /// Columns that both prune and keep some of the weights of one magnitude.
    pub(crate) split: Option<Split>,
}

impl Gaps {
    /// Of a mask, if it is a column prefix with one split at most.
    ///
    /// # Panics
    /// When mask and weights differ in shape.
    pub(crate) fn of_mask(mask: &MatrixMask, weights: WeightsView<'_>) -> Option<Self> {
        assert_eq!((mask.rows(), mask.columns()), (weights.rows(), weights.columns()), "a mask of this matrix");
        let (low, high) = kernel::gaps_of_mask(mask, weights)?;
        Self::from_ends(low, high, weights, |row, column| mask.get(row, column))
    }

    /// Of the mask that `thresholds` stand for, which is not made.
    pub(crate) fn of_thresholds(thresholds: &ColumnThresholds, weights: WeightsView<'_>) -> Self {
        let (low, high) = kernel::gaps_of_thresholds(thresholds, weights);
        let pruned = |row: usize, column: usize| {
            let magnitude = weights.magnitude_bits(row, column);
            let index = (row * weights.columns() + column) as u64;
            // asked for columns of the split only, and for its magnitude
            magnitude < thresholds.levels[column]
                || thresholds.split.as_ref().is_some_and(|split| magnitude == split.magnitude && index <= split.last)
        };
        Self::from_ends(low, high, weights, pruned).expect("thresholds are a column prefix with one split")
    }

    /// Finds the split, where `low` is above `high` by one.
    fn from_ends(
        mut low: Vec<u32>,
        high: Vec<u32>,
        weights: WeightsView<'_>,
        pruned: impl Fn(usize, usize) -> bool,
    ) -> Option<Self> {
        let mixed: Vec<u32> = (0..).zip(low.iter().zip(&high)).filter(|(_, (l, h))| l > h).map(|(at, _)| at).collect();
        let Some(&first) = mixed.first() else { return Some(Self { low, high, split: None }) };
        let magnitude = high[first as usize];
        if mixed.iter().any(|&column| (low[column as usize], high[column as usize]) != (magnitude + 1, magnitude)) {
            return None;
        }
        let (mut last, mut kept) = (0, false);
        for row in 0..weights.rows() {
            for &column in &mixed {
                let column = column as usize;
                if weights.magnitude_bits(row, column) == magnitude {
                    if !pruned(row, column) {
                        kept = true;
                    } else if kept {
                        return None;
                    } else {
                        last = (row * weights.columns() + column) as u64;
                    }
                }
            }
        }
        mixed.iter().for_each(|&column| low[column as usize] = magnitude);
        Some(Self { low, high, split: Some(Split { magnitude, last, columns: mixed }) })
    }

    /// The thresholds with the highest levels: the lightest weight kept of each column.
    #[cfg(test)]
    pub(crate) fn first_kept(&self) -> ColumnThresholds {
        ColumnThresholds { levels: self.high.clone(), split: self.split.clone() }
    }
}
