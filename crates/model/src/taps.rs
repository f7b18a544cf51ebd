//! Sums of squares per input channel: what every data-driven local pruner is made from.

use candle_core::{DType, Tensor};
use fedprune_checkpoint::ModelConfig;
use fedprune_mask::Tap;

use crate::ModelError;
use crate::accelerator::{Accelerator, Squares};
use crate::error::Doing;
use crate::kernels;

/// Σ x² of every input channel at the four taps of one block, over all tokens that were run.
///
/// Wanda's norm of a channel is `sqrt(sum / sequences)` (Wanda §3; see `pruning.md` for its rounding).
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSums {
    sums: [Vec<f64>; 4],
    tokens: u64,
}

impl BlockSums {
    /// Σ x² per input channel of the matrices that read this tap.
    pub fn sums(&self, tap: Tap) -> &[f64] {
        &self.sums[tap as usize]
    }

    /// Tokens run.
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
}

/// [`BlockSums`] while they are being added, where the activations are: nothing waits for a device before
/// [`Taps::into_sums`].
///
/// Sums are f64 and, on the processor, added in token order whatever the number of threads.
#[derive(Debug)]
pub struct Taps {
    widths: [usize; 4],
    tokens: u64,
    /// Of what ran on plain slices.
    slices: Option<[Vec<f64>; 4]>,
    /// Of what ran in candle's operations: f64, on its device.
    tensors: [Option<Tensor>; 4],
    /// Of what kernels of ours summed.
    squares: [Option<Squares>; 4],
}

impl Taps {
    /// Nothing added, for blocks of this model.
    pub fn new(config: &ModelConfig) -> Self {
        let heads = config.attention_heads * config.head_dim;
        let widths = [config.hidden_size, heads, config.hidden_size, config.intermediate_size];
        Self { widths, tokens: 0, slices: None, tensors: [const { None }; 4], squares: [const { None }; 4] }
    }

    /// What was added; waits for the device.
    ///
    /// # Errors
    /// [`ModelError::Compute`] when the device failed at anything that was queued on it.
    pub fn into_sums(self) -> Result<BlockSums, ModelError> {
        let mut sums = self.slices.unwrap_or_else(|| self.widths.map(|width| vec![0.0; width]));
        for (sums, tensor) in sums.iter_mut().zip(self.tensors) {
            let Some(tensor) = tensor else { continue };
            let added = tensor.to_vec1::<f64>().doing(|| "reading the sums of squares".to_owned())?;
            sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
        }
        for (sums, squares) in sums.iter_mut().zip(&self.squares) {
            let Some(squares) = squares else { continue };
            sums.iter_mut().zip(squares.read()?).for_each(|(sum, added)| *sum += added);
        }
        Ok(BlockSums { sums, tokens: self.tokens })
    }

    /// Adds the squares of `activations`: (tokens, channels), row-major.
    pub(crate) fn add_values(&mut self, tap: Tap, activations: &[f32]) {
        let width = self.widths[tap as usize];
        assert!(activations.len().is_multiple_of(width), "a tap is as wide as the matrices that read it");
        if tap == Tap::AttentionInput {
            self.tokens += (activations.len() / width) as u64;
        }
        let widths = self.widths;
        let sums = self.slices.get_or_insert_with(|| widths.map(|width| vec![0.0; width]));
        kernels::add_squares(activations, &mut sums[tap as usize]);
    }

    /// Adds the squares of `activations`: (tokens, channels).
    pub(crate) fn add(
        &mut self,
        tap: Tap,
        activations: &Tensor,
        accelerator: Option<&Accelerator>,
    ) -> Result<(), ModelError> {
        let doing = || format!("summing the squares of {tap:?}");
        let (tokens, channels) = activations.dims2().doing(doing)?;
        assert_eq!(channels, self.widths[tap as usize], "a tap is as wide as the matrices that read it");
        if tap == Tap::AttentionInput {
            self.tokens += tokens as u64;
        }
        if let Some(accelerator) = accelerator {
            let known = &mut self.squares[tap as usize];
            let squares = match known {
                Some(squares) => squares,
                None => known.insert(accelerator.squares(channels)?),
            };
            return squares.add(activations);
        }
        let known = &mut self.tensors[tap as usize];
        // the square of an f32 is exact in f64
        let sum = (|| {
            let added = activations.to_dtype(DType::F64)?.sqr()?.sum(0)?;
            match known.take() {
                Some(sum) => sum + added,
                None => Ok(added),
            }
        })();
        *known = Some(sum.doing(doing)?);
        Ok(())
    }
}
