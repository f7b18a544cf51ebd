//! What block 0's q, k and v read of each token, squared: streamed from the mapped embeddings.
//!
//! Sums over channels run in lanes of a fixed number and order, in f32: the same on every run, and exact enough to choose
//! which tokens to look at. What is solved with is computed again in f64.

use std::collections::BTreeMap;

use fedprune_checkpoint::{Checkpoint, TensorView};
use fedprune_mask::{DType, NormVector};
use half::{bf16, f16};
use rayon::prelude::*;

use super::DisclosureError;

/// Tokens that one task looks at.
const TASK_TOKENS: usize = 256;
/// Partial sums of a channel loop, so that it vectorises.
const LANES: usize = 16;

/// The embeddings and the first norm of a model.
pub struct TokenInputs<'a> {
    embeddings: TensorView<'a>,
    /// gain² by channel.
    gains: Vec<f64>,
    epsilon: f64,
    vocabulary: usize,
}

impl<'a> TokenInputs<'a> {
    /// Maps them.
    ///
    /// # Errors
    /// [`DisclosureError::Checkpoint`] for a missing tensor.
    pub fn open(checkpoint: &'a Checkpoint) -> Result<Self, DisclosureError> {
        let config = checkpoint.config();
        let embeddings = checkpoint.tensor("model.embed_tokens.weight")?;
        let gains = checkpoint.tensor("model.layers.0.input_layernorm.weight")?;
        let mut wide = vec![0.0; config.hidden_size];
        widen(gains.dtype, gains.bytes, &mut wide);
        let gains: Vec<f64> = wide.iter().map(|gain| f64::from(*gain) * f64::from(*gain)).collect();
        Ok(Self { embeddings, gains, epsilon: config.rms_norm_eps, vocabulary: config.vocab_size })
    }

    /// Tokens that there are.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Input channels.
    pub fn channels(&self) -> usize {
        self.gains.len()
    }

    /// x² of one token by channel.
    pub(super) fn squares(&self, token: usize) -> Vec<f64> {
        let mut row = vec![0.0f32; self.channels()];
        widen(self.embeddings.dtype, self.row(token), &mut row);
        let mean = row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + self.epsilon);
        row.iter().zip(&self.gains).map(|(value, gain)| f64::from(*value) * f64::from(*value) * scale * gain).collect()
    }

    /// The norms that a ballot of these tokens holds for block 0's q, k and v.
    ///
    /// # Errors
    /// [`DisclosureError::NoSuchToken`], [`DisclosureError::Norms`].
    pub fn norms_of(&self, tokens: &[u32], sequences: u64) -> Result<NormVector, DisclosureError> {
        let mut counts = BTreeMap::<u32, u64>::new();
        for token in tokens {
            if *token as usize >= self.vocabulary {
                return Err(DisclosureError::NoSuchToken { token: *token, vocabulary: self.vocabulary });
            }
            *counts.entry(*token).or_default() += 1;
        }
        let mut sums = vec![0.0; self.channels()];
        for (token, count) in counts {
            for (sum, square) in sums.iter_mut().zip(self.squares(token as usize)) {
                *sum += count as f64 * square;
            }
        }
        Ok(NormVector::from_sums(&sums, sequences)?)
    }

    /// Σ over channels of x² · weight, for every token.
    pub(super) fn correlate(&self, weights: &[f32]) -> Vec<f32> {
        let weights: Vec<f32> = weights.iter().zip(&self.gains).map(|(weight, gain)| weight * *gain as f32).collect();
        self.each_token(|row| {
            let (squares, products) = sums(row, &weights, |square, weight| square * weight);
            products / (squares / row.len() as f32 + self.epsilon as f32)
        })
    }

    /// sqrt(Σ over channels of (x² · weight)²), for every token.
    pub(super) fn lengths(&self, weights: &[f32]) -> Vec<f32> {
        let weights: Vec<f32> = weights.iter().zip(&self.gains).map(|(weight, gain)| weight * *gain as f32).collect();
        self.each_token(|row| {
            let (squares, products) = sums(row, &weights, |square, weight| square * weight * (square * weight));
            products.sqrt() / (squares / row.len() as f32 + self.epsilon as f32)
        })
    }

    fn row(&self, token: usize) -> &'a [u8] {
        let row_bytes = self.channels() * self.embeddings.dtype.bytes();
        // vocabulary × hidden was checked when the checkpoint was opened
        &self.embeddings.bytes[token * row_bytes..(token + 1) * row_bytes]
    }

    fn each_token(&self, of: impl Fn(&[f32]) -> f32 + Sync) -> Vec<f32> {
        let mut all = vec![0.0; self.vocabulary];
        all.par_chunks_mut(TASK_TOKENS).enumerate().for_each_init(
            || vec![0.0f32; self.channels()],
            |row, (task, out)| {
                for (offset, out) in out.iter_mut().enumerate() {
                    widen(self.embeddings.dtype, self.row(task * TASK_TOKENS + offset), row);
                    *out = of(row);
                }
            },
        );
        all
    }
}

/// Σ value², and Σ of what `of` makes of value² and weight.
#[inline]
fn sums(values: &[f32], weights: &[f32], of: impl Fn(f32, f32) -> f32) -> (f32, f32) {
    let (mut squares, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (values, weights) in values.chunks(LANES).zip(weights.chunks(LANES)) {
        for (lane, (value, weight)) in values.iter().zip(weights).enumerate() {
            let square = value * value;
            squares[lane] += square;
            products[lane] += of(square, *weight);
        }
    }
    (squares.iter().sum(), products.iter().sum())
}

/// Stored numbers as f32, exactly.
fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::BF16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        DType::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        DType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
    }
}
