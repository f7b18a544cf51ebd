//! What a GPU does by kernels of our own and copies of its own, beside candle's operations: weights arrive in the background,
//! squares are summed, masks are chosen and applied where the weights are.
//!
//! Without the feature `cuda` there is no [`Accelerator`], and the compiler knows.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
mod none;

use fedprune_mask::{Group, NormVector, Pruner, Sparsity};

use crate::ModelError;

#[cfg(feature = "cuda")]
pub(crate) use cuda::{Accelerator, Squares};
#[cfg(not(feature = "cuda"))]
pub(crate) use none::{Accelerator, Squares};

/// Why weights were not chosen, and the matrix that it is about.
pub(crate) struct Refused {
    pub position: Option<usize>,
    pub error: Box<ModelError>,
}

#[cfg(feature = "cuda")]
impl Refused {
    fn at<E: Into<ModelError>>(position: Option<usize>) -> impl Fn(E) -> Self {
        move |error| Self { position, error: Box::new(error.into()) }
    }
}

/// How the weights to prune are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Scoring rule.
    pub pruner: Pruner,
    /// Pool within which weights compete.
    pub group: Group,
    /// Fraction pruned in each pool.
    pub sparsity: Sparsity,
    /// For each of the block's taps, in layout order.
    pub norms: &'a [NormVector],
}
