//! What a global mask does to one matrix: how far the silos agree on it, and what it takes.

use fedprune_mask::layout::Matrix;
use fedprune_mask::tally::Counts;
use fedprune_mask::{MatrixMask, NormVector, WeightsView};

use crate::results::MatrixProfile;

/// Looks at one matrix; nothing without the norms of all ballots, as for a pruner that looks at no text.
pub(crate) fn profile_matrix(
    matrix: &Matrix,
    weights: WeightsView<'_>,
    mask: &MatrixMask,
    counts: &Counts,
    norms: &[NormVector],
) -> Option<MatrixProfile> {
    if norms.is_empty() || norms.iter().any(|norms| norms.len() != weights.columns()) {
        return None;
    }
    let name = matrix.name.trim_end_matches(".weight");
    Some(MatrixProfile {
        block: matrix.block,
        kind: name.rsplit('.').next().unwrap_or(name).to_owned(),
        agreement: counts.agreement().share(),
        energy_lost: energy_lost(weights, mask, &mean_energy(norms)),
    })
}

/// ‖X_j‖² of each input channel, mean over the silos, each in units of its own sum: a ballot's norms have no scale.
fn mean_energy(norms: &[NormVector]) -> Vec<f64> {
    let mut mean = vec![0.0; norms.first().map_or(0, NormVector::len)];
    for silo in norms {
        let squares: Vec<f64> = silo.to_f64().iter().map(|norm| norm * norm).collect();
        let sum: f64 = squares.iter().sum();
        if sum > 0.0 {
            mean.iter_mut().zip(&squares).for_each(|(mean, square)| *mean += square / sum / norms.len() as f64);
        }
    }
    mean
}

/// Σ over pruned (W_ij)² · energy_j / Σ over all; 0 for a matrix without energy.
fn energy_lost(weights: WeightsView<'_>, mask: &MatrixMask, energy: &[f64]) -> f64 {
    let (rows, columns) = (weights.rows(), weights.columns());
    let (mut lost, mut all) = (0.0, 0.0);
    let mut row_magnitudes = vec![0.0; columns];
    for row in 0..rows {
        weights.magnitudes(row, 0..columns, &mut row_magnitudes);
        for (column, (magnitude, energy)) in row_magnitudes.iter().zip(energy).enumerate() {
            let here = magnitude * magnitude * energy;
            all += here;
            if mask.get(row, column) {
                lost += here;
            }
        }
    }
    if all > 0.0 { lost / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedprune_mask::DType;

    #[test]
    fn energy_is_weighed_by_the_inputs() {
        let bytes: Vec<u8> = [1.0f32, -2.0, 3.0, 0.0].iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let weights = WeightsView::new(DType::F32, 2, 2, &bytes).unwrap();
        let mut mask = MatrixMask::kept(2, 2);
        mask.prune(0, 0);
        mask.prune(1, 0);
        let norms = [NormVector::from_sums(&[3.0, 1.0], 1).unwrap(), NormVector::from_sums(&[12.0, 4.0], 1).unwrap()];
        let energy = mean_energy(&norms);
        assert!((energy[0] - 0.75).abs() < 0.01 && (energy[1] - 0.25).abs() < 0.01, "{energy:?}");
        let lost = energy_lost(weights, &mask, &[0.75, 0.25]);
        assert!((lost - 7.5 / 8.5).abs() < 1e-12, "{lost}");
    }
}
