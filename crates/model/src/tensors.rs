//! A decoder block in candle's operations, one sequence at a time: for any device and dtype.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use fedprune_mask::{MatrixMask, Tap};

use crate::accelerator::Accelerator;
use crate::attention::attend;
use crate::block::{DOWN, GATE, K, O, Q, UP, V};
use crate::error::Doing;
use crate::kernels::normalise;
use crate::{Decoder, ModelError, Taps};

/// y = x Wᵀ + b.
pub(crate) struct Linear {
    /// (out_features, in_features), as stored: the product reads it transposed without a copy.
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }

    fn prune_by_bytes(&mut self, mask: &MatrixMask) -> candle_core::Result<()> {
        let shape = self.weight.dims2()?;
        let mut pruned = vec![0u8; shape.0 * shape.1];
        mask.for_each_pruned(|index| pruned[index] = 1);
        let pruned = Tensor::from_vec(pruned, shape, self.weight.device())?;
        self.weight = pruned.where_cond(&self.weight.zeros_like()?, &self.weight)?;
        Ok(())
    }
}

/// The weights of one block on the device.
pub(crate) struct TensorBlock {
    pub index: usize,
    pub accelerator: Option<Arc<Accelerator>>,
    /// q, k, v, o, gate, up, down.
    pub linears: [Linear; 7],
    pub input_norm: Tensor,
    pub post_attention_norm: Tensor,
    pub query_key_norms: Option<(Tensor, Tensor)>,
}

impl TensorBlock {
    /// Zeroes the weights of one matrix whose mask bit is 1.
    pub fn prune(&mut self, position: usize, mask: &MatrixMask) -> Result<(), ModelError> {
        let linear = &mut self.linears[position];
        match &self.accelerator {
            Some(accelerator) => accelerator.prune(&linear.weight, mask),
            None => linear.prune_by_bytes(mask).doing(|| format!("pruning matrix {position} of block {}", self.index)),
        }
    }

    /// Runs one sequence through the block: `hidden`, (tokens, hidden_size), positions 0 to tokens − 1.
    pub fn run(&self, decoder: &Decoder, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let (hidden, gated) = self.up_to_gated(decoder, hidden, None)?;
        self.linears[DOWN]
            .forward(&gated)
            .and_then(|mlp| hidden + mlp)
            .doing(|| format!("running the feed-forward output of block {}", self.index))
    }

    /// Adds the squares of the taps; what would come out is not computed.
    pub fn measure(&self, decoder: &Decoder, hidden: &Tensor, sums: &mut Taps) -> Result<(), ModelError> {
        self.up_to_gated(decoder, hidden, Some(sums)).map(|_| ())
    }

    /// The hidden states with attention added, and the input of the last product.
    fn up_to_gated(
        &self,
        decoder: &Decoder,
        hidden: &Tensor,
        mut taps: Option<&mut Taps>,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let doing = |what: &'static str| move || format!("running the {what} of block {}", self.index);
        let tokens = hidden.dim(0).doing(doing("input"))?;
        let eps = decoder.config().rms_norm_eps as f32;
        let mut tap = |tap: Tap, activations: &Tensor| match taps.as_deref_mut() {
            Some(sums) => sums.add(tap, activations, self.accelerator.as_deref()),
            None => Ok(()),
        };

        let x = normalise(hidden, &self.input_norm, eps).doing(doing("input norm"))?;
        tap(Tap::AttentionInput, &x)?;
        let mixed = self.attention(decoder, &x, tokens, eps).doing(doing("attention"))?;
        drop(x);
        tap(Tap::AttentionOutput, &mixed)?;
        let hidden = self.linears[O]
            .forward(&mixed)
            .and_then(|attention| hidden + attention)
            .doing(doing("attention output"))?;

        let y = normalise(&hidden, &self.post_attention_norm, eps).doing(doing("second norm"))?;
        tap(Tap::MlpInput, &y)?;
        let gated = self.gate(&y).doing(doing("gate"))?;
        tap(Tap::MlpOutput, &gated)?;
        Ok((hidden, gated))
    }

    /// (tokens, hidden_size) to (tokens, heads × head_dim).
    fn attention(&self, decoder: &Decoder, x: &Tensor, tokens: usize, eps: f32) -> candle_core::Result<Tensor> {
        let config = decoder.config();
        let heads = |position: usize, heads: usize| {
            self.linears[position].forward(x)?.reshape((tokens, heads, config.head_dim))
        };
        let mut query = heads(Q, config.attention_heads)?;
        let mut key = heads(K, config.key_value_heads)?;
        let value = heads(V, config.key_value_heads)?;
        if let Some((query_norm, key_norm)) = &self.query_key_norms {
            query = normalise(&query, query_norm, eps)?;
            key = normalise(&key, key_norm, eps)?;
        }
        let (query, key) = (decoder.rope().rotate(&query)?, decoder.rope().rotate(&key)?);
        attend(&query, &key, &value, config.sliding_window, self.accelerator.as_deref())
    }

    /// (tokens, hidden_size) to (tokens, intermediate_size).
    fn gate(&self, y: &Tensor) -> candle_core::Result<Tensor> {
        let (gate, up) = (self.linears[GATE].forward(y)?, self.linears[UP].forward(y)?);
        match &self.accelerator {
            Some(accelerator) => {
                accelerator.gate_up(&gate, &up)?;
                Ok(gate)
            }
            None => gate.silu()? * up,
        }
    }
}

/// The values of a tensor in f32, row-major.
pub(crate) fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
