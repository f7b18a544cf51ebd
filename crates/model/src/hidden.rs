//! What travels from block to block: the hidden states of some windows.

use candle_core::{Device, Tensor};

use crate::error::Doing;
use crate::{Decoder, ModelError};

/// Tokens of one batch at least, unless there are fewer: so many share one reading of the weights.
const BATCH_TOKENS: usize = 512;
/// Bytes of the widest activations of a batch, up to which it grows beyond that.
const BATCH_BYTES: usize = 8 << 20;

/// The hidden states of some windows, each of positions 0 to its length − 1: (tokens, hidden_size) each.
#[derive(Debug, Clone)]
pub struct Hidden {
    /// Tokens of each window.
    pub(crate) lengths: Vec<usize>,
    pub(crate) states: States,
}

/// Where and how they lie.
#[derive(Debug, Clone)]
pub(crate) enum States {
    /// On the processor in f32: one window after the other, row-major.
    Slice(Vec<f32>),
    /// Anywhere else: a tensor for each window.
    Tensors(Vec<Tensor>),
}

impl Hidden {
    /// How many windows.
    pub fn windows(&self) -> usize {
        self.lengths.len()
    }

    /// A tensor for each window, (tokens, hidden_size).
    ///
    /// # Errors
    /// [`ModelError::Compute`].
    pub fn into_tensors(self) -> Result<Vec<Tensor>, ModelError> {
        match self.states {
            States::Tensors(tensors) => Ok(tensors),
            States::Slice(values) => {
                let tokens: usize = self.lengths.iter().sum();
                let width = values.len() / tokens.max(1);
                let mut rest = values.as_slice();
                let mut tensors = Vec::with_capacity(self.lengths.len());
                for length in self.lengths {
                    let (window, after) = rest.split_at(length * width);
                    let tensor = Tensor::from_slice(window, (length, width), &Device::Cpu);
                    tensors.push(tensor.doing(|| "reading hidden states".to_owned())?);
                    rest = after;
                }
                Ok(tensors)
            }
        }
    }

    pub(crate) fn check_lengths(&self, decoder: &Decoder) -> Result<(), ModelError> {
        self.lengths.iter().try_for_each(|tokens| decoder.check_length(*tokens))
    }
}

/// Windows in batches that run through a block together, in order. The same on every machine.
pub(crate) fn batches<'w>(decoder: &Decoder, windows: &'w [Vec<u32>]) -> Vec<&'w [Vec<u32>]> {
    let config = decoder.config();
    let widest = config.intermediate_size.max(config.hidden_size).max(config.attention_heads * config.head_dim);
    let limit = BATCH_TOKENS.max(BATCH_BYTES / (widest * size_of::<f32>()).max(1));
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0usize);
    for (index, window) in windows.iter().enumerate() {
        if index > start && tokens + window.len() > limit {
            batches.push(&windows[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += window.len();
    }
    if start < windows.len() {
        batches.push(&windows[start..]);
    }
    batches
}
