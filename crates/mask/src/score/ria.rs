//! RIA: relative importance times activations (Zhang et al., *Plug-and-Play*, ICLR 2024, eq. 3 with a = ½).
//!
//! score = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · √‖X_j‖, in float64. Sums run in index order, and
//! IEEE division and square root are exactly rounded, so that every machine gets the same bits.

use std::ops::Range;

use rayon::prelude::*;

use super::{Keys, SCORE_BITS, Scorer, coarse_by, coarse_of_score, key_of_score};
use crate::{NormVector, WeightsView};

/// Columns that one task sums.
const COLUMN_TILE: usize = 256;

/// The scoring rule.
pub(super) struct Ria;

struct RiaKeys<'a> {
    weights: WeightsView<'a>,
    /// Σ over rows of |W|, per column.
    column_sums: Vec<f64>,
    /// Σ over columns of |W|, per row.
    row_sums: Vec<f64>,
    /// √‖X_j‖ per column.
    norm_roots: Vec<f64>,
}

impl Scorer for Ria {
    fn name(&self) -> &'static str {
        "ria"
    }

    fn summary(&self) -> &'static str {
        "relative importance × √‖X‖: a weight's share of its row and column (ICLR 2024)"
    }

    fn uses_norms(&self) -> bool {
        true
    }

    fn keys<'a>(&self, weights: WeightsView<'a>, norms: &NormVector) -> Box<dyn Keys + 'a> {
        let (rows, columns) = (weights.rows(), weights.columns());
        // Each sum runs in index order whatever the number of threads: a task owns whole rows, or whole columns.
        let row_sums = (0..rows)
            .into_par_iter()
            .map_init(
                || vec![0f64; columns],
                |magnitudes, row| {
                    weights.magnitudes(row, 0..columns, magnitudes);
                    magnitudes.iter().fold(0f64, |sum, magnitude| sum + magnitude)
                },
            )
            .collect();
        let mut column_sums = vec![0f64; columns];
        column_sums.par_chunks_mut(COLUMN_TILE).enumerate().for_each(|(tile, sums)| {
            let start = tile * COLUMN_TILE;
            let mut magnitudes = [0f64; COLUMN_TILE];
            let magnitudes = &mut magnitudes[..sums.len()];
            for row in 0..rows {
                weights.magnitudes(row, start..start + sums.len(), magnitudes);
                sums.iter_mut().zip(&*magnitudes).for_each(|(sum, magnitude)| *sum += magnitude);
            }
        });
        let norm_roots = norms.to_f64().into_iter().map(f64::sqrt).collect();
        Box::new(RiaKeys { weights, column_sums, row_sums, norm_roots })
    }
}

impl Keys for RiaKeys<'_> {
    fn fill(&self, row: usize, columns: Range<usize>, keys: &mut [u64]) {
        let row_sum = self.row_sums[row];
        let sums = &self.column_sums[columns.clone()];
        let roots = &self.norm_roots[columns.clone()];
        let mut at = 0;
        self.weights.for_each_magnitude(row, columns, sums, keys, |magnitude, column_sum| {
            let root = roots[at];
            at += 1;
            // a zero weight has no share of anything: 0/0 must not arise
            if magnitude == 0.0 {
                return 0;
            }
            key_of_score((magnitude / column_sum + magnitude / row_sum) * root)
        });
    }

    fn significant_bits(&self) -> u32 {
        SCORE_BITS
    }

    fn fill_coarse(&self, row: usize, columns: Range<usize>, coarse: &mut [i16]) {
        coarse_by(self, row, columns, coarse, |key| coarse_of_score(f64::from_bits(key) as f32));
    }
}
