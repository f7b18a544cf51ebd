//! Norms from masks: what a ballot without norms says of them anyway.
//!
//! A weight is pruned where ln f(W) + e · ln s_j, its score, is below the threshold of its pool; f and e are the pruner's and
//! public. So every bit is one inequality between the norm of a column and the threshold of a pool. They are met by turns:
//! thresholds such that each pool prunes as many as it does, then norms such that each column contradicts the fewest bits,
//! in the middle of where that is so. A common factor of all norms is never told, and never needed.

use fedprune_mask::{Group, MatrixMask, NormVector, Pruner, WeightsView};
use rayon::prelude::*;

use super::DisclosureError;

/// Weights of one matrix that are looked at, about; further rows add little.
const MAX_WEIGHTS: usize = 1 << 22;
/// Turns; what comes later moves norms by less than they are rounded.
const TURNS: usize = 60;
/// How far beyond the last bit a norm is put that all bits allow to be as large or small as it likes (a factor e^½).
const BEYOND: f64 = 0.5;

/// One mask beside the public part of its scores.
pub struct MaskedMatrix {
    rows: usize,
    columns: usize,
    /// ln f(W), row-major; −∞ for weights of zero.
    logarithms: Vec<f32>,
    /// Row-major.
    pruned: Vec<bool>,
}

impl MaskedMatrix {
    /// Takes what is needed of a matrix.
    ///
    /// # Errors
    /// [`DisclosureError::Unread`] where the mask tells nothing of this kind, [`DisclosureError::Derive`].
    pub fn new(
        pruner: Pruner,
        group: Group,
        weights: WeightsView<'_>,
        mask: &MatrixMask,
    ) -> Result<Self, DisclosureError> {
        if !matches!(group, Group::Layer | Group::Row) || !pruner.scorer().uses_norms() {
            return Err(DisclosureError::Unread(group));
        }
        let columns = weights.columns();
        let rows = weights.rows().min((MAX_WEIGHTS / columns.max(1)).max(1));
        let equal = NormVector::from_sums(&vec![1.0; columns], 1)?;
        let keys = pruner.keys(weights, &equal).map_err(fedprune_mask::select::DeriveError::from)?;
        let mut logarithms = Vec::with_capacity(rows * columns);
        let mut pruned = Vec::with_capacity(rows * columns);
        let mut row_keys = vec![0u64; columns];
        for row in 0..rows {
            keys.fill(row, 0..columns, &mut row_keys);
            // a key is the bits of its score
            logarithms.extend(row_keys.iter().map(|key| f64::from_bits(*key).ln() as f32));
            pruned.extend((0..columns).map(|column| mask.get(row, column)));
        }
        Ok(Self { rows, columns, logarithms, pruned })
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (f32, bool)> {
        let range = row * self.columns..(row + 1) * self.columns;
        self.logarithms[range.clone()].iter().copied().zip(self.pruned[range].iter().copied())
    }

    /// The threshold of each row, under these logarithms of norms.
    fn thresholds(&self, group: Group, norms: &[f64]) -> Vec<f64> {
        let scores = |row: usize| {
            self.row(row).zip(norms).map(|((logarithm, pruned), norm)| (f64::from(logarithm) + norm, pruned))
        };
        match group {
            Group::Row => (0..self.rows).into_par_iter().map(|row| threshold(scores(row).collect())).collect(),
            _ => vec![threshold((0..self.rows).flat_map(scores).collect()); self.rows],
        }
    }
}

/// Between the last that is pruned and the first that is kept, if as many are pruned as the mask says.
fn threshold(mut scores: Vec<(f64, bool)>) -> f64 {
    let budget = scores.iter().filter(|(_, pruned)| *pruned).count();
    if budget == 0 || budget >= scores.len() {
        return if budget == 0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let (below, first, _) = scores.select_nth_unstable_by(budget, |a, b| a.0.total_cmp(&b.0));
    let last = below.iter().map(|(score, _)| *score).fold(f64::NEG_INFINITY, f64::max);
    if last.is_finite() { (last + first.0) / 2.0 } else { first.0 }
}

/// A common factor of all norms is arbitrary. All matrices must have the same columns.
///
/// # Errors
/// [`DisclosureError::Unread`] where masks tell nothing of this kind.
pub(super) fn norms(pruner: Pruner, group: Group, matrices: &[MaskedMatrix]) -> Result<Vec<f64>, DisclosureError> {
    let columns = matrices.first().map_or(0, |matrix| matrix.columns);
    if columns == 0 || matrices.iter().any(|matrix| matrix.columns != columns) {
        return Err(DisclosureError::Unread(group));
    }
    let mut norms = vec![0.0; columns];
    let mut best: Option<(u64, Vec<f64>)> = None;
    for _ in 0..TURNS {
        let thresholds: Vec<Vec<f64>> = matrices.iter().map(|matrix| matrix.thresholds(group, &norms)).collect();
        let placed: Vec<(f64, u64)> = (0..columns)
            .into_par_iter()
            .map(|column| {
                let mut ends = Vec::new();
                for (matrix, thresholds) in matrices.iter().zip(&thresholds) {
                    for (row, threshold) in thresholds.iter().enumerate() {
                        let at = row * columns + column;
                        let end = threshold - f64::from(matrix.logarithms[at]);
                        if end.is_finite() {
                            ends.push((end, matrix.pruned[at]));
                        }
                    }
                }
                place(ends, norms[column])
            })
            .collect();
        let contradicted: u64 = placed.iter().map(|(_, bits)| bits).sum();
        norms = placed.into_iter().map(|(norm, _)| norm).collect();
        let mean = norms.iter().sum::<f64>() / columns as f64;
        norms.iter_mut().for_each(|norm| *norm -= mean);
        // of equally good ones the latest, which lies best in the middle
        if best.as_ref().is_none_or(|(fewest, _)| contradicted <= *fewest) {
            best = Some((contradicted, norms.clone()));
        }
    }
    let exponent = if pruner == Pruner::RIA { 0.5 } else { 1.0 };
    let norms = best.map_or(norms, |(_, norms)| norms);
    Ok(norms.into_iter().map(|norm| (norm / exponent).exp()).collect())
}

/// Where a norm contradicts the fewest bits: below the end of what is pruned, above that of what is kept. Returns how
/// many it contradicts, too.
fn place(mut ends: Vec<(f64, bool)>, otherwise: f64) -> (f64, u64) {
    if ends.is_empty() {
        return (otherwise, 0);
    }
    ends.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut contradicted = ends.iter().filter(|(_, pruned)| !pruned).count() as u64;
    let (mut fewest, mut from, mut to) = (contradicted, 0, 0);
    for (at, (_, pruned)) in ends.iter().enumerate() {
        contradicted = if *pruned { contradicted + 1 } else { contradicted - 1 };
        match contradicted.cmp(&fewest) {
            std::cmp::Ordering::Less => (fewest, from, to) = (contradicted, at + 1, at + 1),
            // as good as before, on both sides of bits that outweigh each other
            std::cmp::Ordering::Equal => to = at + 1,
            std::cmp::Ordering::Greater => {}
        }
    }
    let below = from.checked_sub(1).and_then(|at| ends.get(at)).map(|(end, _)| *end);
    let above = ends.get(to).map(|(end, _)| *end);
    let middle = match (below, above) {
        (Some(below), Some(above)) => (below + above) / 2.0,
        (Some(below), None) => below + BEYOND,
        (None, Some(above)) => above - BEYOND,
        (None, None) => otherwise,
    };
    (middle, fewest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_goes_between_what_is_kept_and_what_is_pruned() {
        // kept below 1 and 2, pruned above 4 and 5
        let clean = vec![(5.0, true), (1.0, false), (4.0, true), (2.0, false)];
        assert_eq!(place(clean.clone(), 9.0), (3.0, 0));
        // one bit on the wrong side is outvoted
        assert_eq!(place([clean, vec![(0.0, true)]].concat(), 9.0), (3.0, 1));
        assert_eq!(place(vec![(1.0, true), (2.0, true)], 9.0), (0.5, 0));
        assert_eq!(place(vec![(1.0, false)], 9.0), (1.5, 0));
        assert_eq!(place(Vec::new(), 9.0), (9.0, 0));
    }

    #[test]
    fn a_threshold_prunes_as_many_as_the_mask_does() {
        let scores = |pruned: [bool; 4]| [3.0, 1.0, 2.0, 4.0].into_iter().zip(pruned).collect::<Vec<_>>();
        assert_eq!(threshold(scores([false, true, true, false])), 2.5);
        assert_eq!(threshold(scores([false; 4])), f64::NEG_INFINITY);
        assert_eq!(threshold(scores([true; 4])), f64::INFINITY);
    }
}
