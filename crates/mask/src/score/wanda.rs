//! Wanda: |W_ij| · ‖X_j‖ (Sun et al., arXiv 2306.11695, eq. 1).

use std::ops::Range;

use half::bf16;

use super::{Keys, SCORE_BITS, Scorer, coarse_of_score, key_of_score};
use crate::{NormVector, WeightsView};

/// The scoring rule; the product is exact in float64, since a norm has eight significant bits and a
/// stored weight at most 24.
pub(super) struct Wanda;

/// What brings canonical norms, whose largest lies near 2^127, to where products with weights below 2^16 do
/// not overflow. It is exact: the smallest bf16 number, 2^-133, becomes the smallest f32 number.
const COARSE_SCALE: f32 = 1.0 / 65536.0;

struct WandaKeys<'a> {
    weights: WeightsView<'a>,
    norms: Vec<f64>,
    /// The norms times [`COARSE_SCALE`].
    coarse_norms: Vec<f32>,
}

impl Scorer for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn summary(&self) -> &'static str {
        "|W|·‖X‖: weight magnitude times the norm of its input (arXiv 2306.11695)"
    }

    fn uses_norms(&self) -> bool {
        true
    }

    fn keys<'a>(&self, weights: WeightsView<'a>, norms: &NormVector) -> Box<dyn Keys + 'a> {
        let coarse_norms = norms.bits().iter().map(|&bits| bf16::from_bits(bits).to_f32() * COARSE_SCALE).collect();
        Box::new(WandaKeys { weights, norms: norms.to_f64(), coarse_norms })
    }
}

impl Keys for WandaKeys<'_> {
    fn fill(&self, row: usize, columns: Range<usize>, keys: &mut [u64]) {
        self.weights.for_each_magnitude(row, columns.clone(), &self.norms[columns], keys, |magnitude, norm| {
            key_of_score(magnitude * norm)
        });
    }

    fn significant_bits(&self) -> u32 {
        SCORE_BITS
    }

    /// Scores rounded to f32, which keeps their order wherever they lie; where they overflow or vanish, more tie.
    fn fill_coarse(&self, row: usize, columns: Range<usize>, coarse: &mut [i16]) {
        let norms = &self.coarse_norms[columns.clone()];
        self.weights
            .for_each_magnitude_f32(row, columns, norms, coarse, |magnitude, norm| coarse_of_score(magnitude * norm));
    }

    fn key(&self, row: usize, column: usize) -> u64 {
        key_of_score(f64::from(self.weights.get(row, column).abs()) * self.norms[column])
    }
}
