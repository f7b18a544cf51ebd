//! Wanda: |W_ij| · ‖X_j‖ (Sun et al., arXiv 2306.11695, eq. 1).

use std::ops::Range;

use super::{Keys, SCORE_BITS, Scorer, key_of_score};
use crate::{NormVector, WeightsView};

/// The scoring rule; the product is exact in float64, since a norm has eight significant bits and a
/// stored weight at most 24.
pub(super) struct Wanda;

struct WandaKeys<'a> {
    weights: WeightsView<'a>,
    norms: Vec<f64>,
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
        Box::new(WandaKeys { weights, norms: norms.to_f64() })
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
}
