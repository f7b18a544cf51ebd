//! Norms to thresholds.
use super::Gaps;
use crate::norms::NormVector;
use crate::score::Pruner;
use crate::select::{DeriveError, derive_mask};
use crate::sparsity::{Group, Sparsity};
use crate::weights::WeightsView;

/// The gaps of a `layer` mask, if it is a column prefix.
pub(crate) fn derive_gaps(
    pruner: Pruner,
    sparsity: Sparsity,
    weights: WeightsView<'_>,
    norms: &NormVector,
) -> Result<Option<Gaps>, DeriveError> {
    Ok(Gaps::of_mask(&derive_mask(pruner, Group::Layer, sparsity, weights, norms)?, weights))
}
