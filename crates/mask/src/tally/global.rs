//! Counts to the global mask.
//!
//! Order inside a pool: count descending, then |W| ascending, then flat index ascending.
//! [`GlobalKeys`] brings that to [`select`], which serves every group. For a `layer` pool the planes of
//! [`Counts`] are already a radix sort waiting to happen: [`global_mask`] walks them from the highest, 64
//! weights a step, and only the weights that tie at the threshold are looked up at all.

use super::counts::Counts;
use crate::matrix_mask::MatrixMask;
use crate::score::Keys;
use crate::select::select;
use crate::sparsity::{Group, Sparsity};
use crate::weights::WeightsView;

/// Keys by votes: `total − count`, so that what most silos prune comes first.
pub struct GlobalKeys<'a> {
    counts: &'a Counts,
}

impl<'a> GlobalKeys<'a> {
    /// Over the counts of one matrix.
    pub fn new(counts: &'a Counts) -> Self {
        Self { counts }
    }
}

impl Keys for GlobalKeys<'_> {
    fn fill(&self, row: usize, columns: std::ops::Range<usize>, keys: &mut [u64]) {
        let start = row * self.counts.columns();
        let total = self.counts.total();
        let mut keys = keys.iter_mut();
        self.counts.for_each(start + columns.start..start + columns.end, |_, count| {
            if let Some(key) = keys.next() {
                *key = u64::from(total - count);
            }
        });
    }

    fn significant_bits(&self) -> u32 {
        self.counts.planes() as u32
    }
}

/// The mask that the votes come to, in pools of `group`.
///
/// `sparsity` is ignored for an n:m group, which fixes its own.
///
/// # Panics
/// When counts and weights differ in shape, or an n:m group does not divide the width: layout and group
/// are checked before.
pub fn global_mask(weights: WeightsView<'_>, counts: &Counts, group: Group, sparsity: Sparsity) -> MatrixMask {
    assert_eq!((weights.rows(), weights.columns()), (counts.rows(), counts.columns()), "counts of one matrix");
    select(weights, &GlobalKeys::new(counts), group, sparsity)
}
