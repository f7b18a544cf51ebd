//! Magnitude: |W| alone, the floor that every data-driven pruner must beat.

use std::ops::Range;

use super::{Keys, Scorer};
use crate::{NormVector, WeightsView};

/// The scoring rule: the stored bits without the sign, which order as the magnitudes do.
pub(super) struct Magnitude;

struct MagnitudeKeys<'a>(WeightsView<'a>);

impl Scorer for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn summary(&self) -> &'static str {
        "|W|: weight magnitude alone, no calibration text"
    }

    fn uses_norms(&self) -> bool {
        false
    }

    fn keys<'a>(&self, weights: WeightsView<'a>, _norms: &NormVector) -> Box<dyn Keys + 'a> {
        Box::new(MagnitudeKeys(weights))
    }
}

impl Keys for MagnitudeKeys<'_> {
    fn fill(&self, row: usize, columns: Range<usize>, keys: &mut [u64]) {
        self.0.magnitude_bits_of(row, columns, keys);
    }

    fn significant_bits(&self) -> u32 {
        self.0.dtype().bytes() as u32 * 8 - 1
    }

    fn fill_coarse(&self, row: usize, columns: Range<usize>, coarse: &mut [i16]) {
        self.0.coarse_magnitudes(row, columns, coarse);
    }

    fn key(&self, row: usize, column: usize) -> u64 {
        u64::from(self.0.magnitude_bits(row, column))
    }
}
