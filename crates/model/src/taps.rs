//! Sums of squares per input channel: what every data-driven local pruner is made from.

use candle_core::{DType, Tensor};
use fedprune_checkpoint::ModelConfig;
use fedprune_mask::Tap;

use crate::ModelError;
use crate::error::Doing;
use crate::kernels;

/// Σ x² of every input channel at the four taps of one block, over all tokens that were run.
///
/// Wanda's norm of a channel is `sqrt(sum / sequences)` (Wanda §3; see `pruning.md` for its rounding). Sums
/// are f64 and, on the processor, added in token order whatever the number of threads.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSums {
    sums: [Vec<f64>; 4],
    tokens: u64,
}

impl BlockSums {
    /// All zero, for blocks of this model.
    pub fn new(config: &ModelConfig) -> Self {
        let heads = config.attention_heads * config.head_dim;
        let widths = [config.hidden_size, heads, config.hidden_size, config.intermediate_size];
        Self { sums: widths.map(|width| vec![0.0; width]), tokens: 0 }
    }

    /// Σ x² per input channel of the matrices that read this tap.
    pub fn sums(&self, tap: Tap) -> &[f64] {
        &self.sums[tap as usize]
    }

    /// Tokens run so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds other sums of the same model, element by element.
    pub fn merge(&mut self, other: &Self) {
        for (sums, others) in self.sums.iter_mut().zip(&other.sums) {
            assert_eq!(sums.len(), others.len(), "sums of two models are never added");
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        self.tokens += other.tokens;
    }

    /// Adds the squares of `activations`: (tokens, channels), row-major.
    pub(crate) fn add_values(&mut self, tap: Tap, activations: &[f32]) {
        let sums = &mut self.sums[tap as usize];
        assert!(activations.len().is_multiple_of(sums.len()), "a tap is as wide as the matrices that read it");
        if tap == Tap::AttentionInput {
            self.tokens += (activations.len() / sums.len()) as u64;
        }
        kernels::add_squares(activations, sums);
    }

    /// Adds the squares of `activations`: (tokens, channels).
    pub(crate) fn add(&mut self, tap: Tap, activations: &Tensor) -> Result<(), ModelError> {
        let sums = &mut self.sums[tap as usize];
        let (tokens, channels) = activations.dims2().doing(|| format!("tapping {tap:?}"))?;
        assert_eq!(channels, sums.len(), "a tap is as wide as the matrices that read it");
        if tap == Tap::AttentionInput {
            self.tokens += tokens as u64;
        }
        // The squares are exact in f64 and summed on the device: one vector comes back, not the activations.
        let added = (|| activations.to_dtype(DType::F64)?.sqr()?.sum(0)?.to_vec1::<f64>())()
            .doing(|| format!("summing the squares of {tap:?}"))?;
        sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
        Ok(())
    }
}
