//! One decoder block: loaded from the checkpoint, run with or without taps, pruned in place.
//!
//! The forward pass is that of Hugging Face `modeling_llama.py` (and `mistral`, `qwen2`, `qwen3`):
//! ```text
//! x = norm(hidden)          tap AttentionInput    q, k, v = x Wqᵀ (+ b), x Wkᵀ (+ b), x Wvᵀ (+ b)
//! a = attention(q, k, v)    tap AttentionOutput   hidden  = hidden + a Woᵀ (+ b)
//! y = norm(hidden)          tap MlpInput          g = silu(y Wgateᵀ) · (y Wupᵀ)
//!                           tap MlpOutput         hidden  = hidden + g Wdownᵀ
//! ```
//! where q and k are normalised per head first (qwen3) and rotated by their position.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor};
use fedprune_checkpoint::{AttentionBias, Checkpoint};
use fedprune_mask::{DType as Stored, MatrixMask, Tap};
use rayon::prelude::*;

use crate::attention::{SCORE_BYTES_CPU, SCORE_BYTES_GPU, attend};
use crate::error::Doing;
use crate::kernels::{GatedSilu, normalise};
use crate::upload::upload;
use crate::{BlockSums, Decoder, ModelError};

/// Names of the prunable matrices within a block, in layout order.
const MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// y = x Wᵀ + b.
struct Linear {
    /// (out_features, in_features), as stored: the product reads it transposed without a copy.
    weight: Tensor,
    bias: Option<Tensor>,
    stored: Stored,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }
}

/// The weights of one block on the device.
pub struct Block {
    index: usize,
    /// In the order of [`MATRICES`].
    linears: [Linear; 7],
    input_norm: Tensor,
    post_attention_norm: Tensor,
    query_key_norms: Option<(Tensor, Tensor)>,
}

impl Block {
    pub(crate) fn load(decoder: &Decoder, checkpoint: &Checkpoint, index: usize) -> Result<Self, ModelError> {
        let config = decoder.config();
        if index >= config.blocks {
            return Err(ModelError::NoSuchBlock { block: index, blocks: config.blocks });
        }
        let tensor = |name: &str| -> Result<(Tensor, Stored), ModelError> {
            let view = checkpoint.tensor(&format!("model.layers.{index}.{name}"))?;
            Ok((upload(&view, decoder.dtype(), decoder.device())?, view.dtype))
        };
        let linear = |position: usize| -> Result<Linear, ModelError> {
            let name = MATRICES[position];
            let (weight, stored) = tensor(&format!("{name}.weight"))?;
            let biased = match position {
                Q | K | V => config.attention_bias != AttentionBias::None,
                O => config.attention_bias == AttentionBias::Qkvo,
                _ => config.mlp_bias,
            };
            let bias = if biased { Some(tensor(&format!("{name}.bias"))?.0) } else { None };
            Ok(Linear { weight, bias, stored })
        };
        Ok(Self {
            index,
            linears: [linear(Q)?, linear(K)?, linear(V)?, linear(O)?, linear(GATE)?, linear(UP)?, linear(DOWN)?],
            input_norm: tensor("input_layernorm.weight")?.0,
            post_attention_norm: tensor("post_attention_layernorm.weight")?.0,
            query_key_norms: if config.query_key_norm {
                Some((tensor("self_attn.q_norm.weight")?.0, tensor("self_attn.k_norm.weight")?.0))
            } else {
                None
            },
        })
    }

    /// Which block of the model this is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Runs one sequence through the block, adding the squares of its taps to `taps` when given.
    ///
    /// `hidden`: (tokens, hidden_size), positions 0 to tokens − 1. Returns the same shape.
    ///
    /// # Errors
    /// [`ModelError::SequenceOverDecoder`] when `decoder` was made for shorter sequences; [`ModelError::Compute`].
    pub fn forward(
        &self,
        decoder: &Decoder,
        hidden: &Tensor,
        mut taps: Option<&mut BlockSums>,
    ) -> Result<Tensor, ModelError> {
        let doing = |what: &'static str| move || format!("running the {what} of block {}", self.index);
        let tokens = hidden.dim(0).doing(doing("input"))?;
        decoder.check_length(tokens)?;
        let eps = decoder.config().rms_norm_eps as f32;
        let mut tap = |tap: Tap, activations: &Tensor| match taps.as_deref_mut() {
            Some(sums) => sums.add(tap, activations),
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
        drop(y);
        tap(Tap::MlpOutput, &gated)?;
        self.linears[DOWN].forward(&gated).and_then(|mlp| hidden + mlp).doing(doing("feed-forward output"))
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
        let score_bytes = if x.device().is_cpu() { SCORE_BYTES_CPU } else { SCORE_BYTES_GPU };
        attend(&query, &key, &value, config.sliding_window, score_bytes)
    }

    /// (tokens, hidden_size) to (tokens, intermediate_size).
    fn gate(&self, y: &Tensor) -> candle_core::Result<Tensor> {
        let gate = self.linears[GATE].forward(y)?;
        let up = self.linears[UP].forward(y)?;
        if gate.device().is_cpu() && gate.dtype() == DType::F32 {
            gate.apply_op2_no_bwd(&up, &GatedSilu)
        } else {
            gate.silu()? * up
        }
    }

    /// Zeroes the weights of one matrix whose mask bit is 1.
    ///
    /// `position` is the matrix's index within the block in layout order: q, k, v, o, gate, up, down.
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`] when the shapes differ.
    pub fn prune(&mut self, position: usize, mask: &MatrixMask) -> Result<(), ModelError> {
        let (rows, columns) = self.shape(position)?;
        if (mask.rows(), mask.columns()) != (rows, columns) {
            let given = format!("shape ({}, {})", mask.rows(), mask.columns());
            return Err(self.does_not_fit(position, "a mask", given));
        }
        let doing = || format!("pruning `{}` of block {}", MATRICES[position], self.index);
        let weight = &self.linears[position].weight;
        if weight.device().is_cpu() && weight.dtype() == DType::F32 {
            return weight.inplace_op1(&ZeroPruned { words: mask.words() }).doing(doing);
        }
        let kept = (|| {
            let mut pruned = vec![0u8; rows * columns];
            mask.for_each_pruned(|index| pruned[index] = 1);
            let pruned = Tensor::from_vec(pruned, (rows, columns), weight.device())?;
            pruned.where_cond(&weight.zeros_like()?, weight)
        })()
        .doing(doing)?;
        self.linears[position].weight = kept;
        Ok(())
    }

    /// Multiplies the weights of one matrix by `factors`, row-major, rounding each product to the
    /// stored dtype, as the written copy will be.
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`] unless there is one factor per weight.
    pub fn scale(&mut self, position: usize, factors: &[f32]) -> Result<(), ModelError> {
        let (rows, columns) = self.shape(position)?;
        if rows.checked_mul(columns) != Some(factors.len()) {
            return Err(self.does_not_fit(position, "factors", factors.len().to_string()));
        }
        let Linear { weight, stored, .. } = &self.linears[position];
        let stored = match stored {
            Stored::F32 => DType::F32,
            Stored::BF16 => DType::BF16,
            Stored::F16 => DType::F16,
        };
        let scaled = (|| {
            let factors = Tensor::from_slice(factors, (rows, columns), weight.device())?;
            (weight.to_dtype(DType::F32)? * factors)?.to_dtype(stored)?.to_dtype(weight.dtype())
        })()
        .doing(|| format!("scaling `{}` of block {}", MATRICES[position], self.index))?;
        self.linears[position].weight = scaled;
        Ok(())
    }

    /// The weights of one matrix in the compute dtype: (out_features, in_features).
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`] when there is no such matrix.
    pub fn weight(&self, position: usize) -> Result<&Tensor, ModelError> {
        self.shape(position)?;
        Ok(&self.linears[position].weight)
    }

    fn shape(&self, position: usize) -> Result<(usize, usize), ModelError> {
        match self.linears.get(position) {
            Some(linear) => linear.weight.dims2().doing(|| "reading a shape".to_owned()),
            None => Err(ModelError::DoesNotFit {
                what: "a position",
                given: position.to_string(),
                name: format!("model.layers.{}", self.index),
                rows: 0,
                columns: 0,
            }),
        }
    }

    fn does_not_fit(&self, position: usize, what: &'static str, given: String) -> ModelError {
        let (rows, columns) = self.shape(position).unwrap_or_default();
        let name = format!("model.layers.{}.{}.weight", self.index, MATRICES[position]);
        ModelError::DoesNotFit { what, given, name, rows, columns }
    }
}

/// Zeroes in place where the mask bit is 1; no second copy of the matrix.
struct ZeroPruned<'a> {
    words: &'a [u64],
}

impl InplaceOp1 for ZeroPruned<'_> {
    fn name(&self) -> &'static str {
        "zero-pruned"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        const TASK_WORDS: usize = 256;
        let (Some((start, end)), CpuStorage::F32(weights)) = (layout.contiguous_offsets(), storage) else {
            candle_core::bail!("pruning in place needs contiguous f32 weights")
        };
        weights[start..end].par_chunks_mut(TASK_WORDS * 64).zip(self.words.par_chunks(TASK_WORDS)).for_each(
            |(weights, words)| {
                for (weights, word) in weights.chunks_mut(64).zip(words) {
                    for (bit, weight) in weights.iter_mut().enumerate() {
                        if word >> bit & 1 == 1 {
                            *weight = 0.0;
                        }
                    }
                }
            },
        );
        Ok(())
    }
}
