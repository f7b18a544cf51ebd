//! One decoder block: loaded from the checkpoint, measured, pruned in place, run.
//!
//! The forward pass is that of Hugging Face `modeling_llama.py` (and `mistral`, `qwen2`, `qwen3`):
//! ```text
//! x = norm(hidden)          tap AttentionInput    q, k, v = x Wqᵀ (+ b), x Wkᵀ (+ b), x Wvᵀ (+ b)
//! a = attention(q, k, v)    tap AttentionOutput   hidden  = hidden + a Woᵀ (+ b)
//! y = norm(hidden)          tap MlpInput          g = silu(y Wgateᵀ) · (y Wupᵀ)
//!                           tap MlpOutput         hidden  = hidden + g Wdownᵀ
//! ```
//! where q and k are normalised per head first (qwen3) and rotated by their position. Measuring ends at the last
//! tap. On the processor in f32 it runs on plain slices, elsewhere in candle's operations.

use candle_core::{Device, Tensor};
use fedprune_checkpoint::{AttentionBias, Checkpoint, TensorView};
use fedprune_gpu::GpuError;
use fedprune_mask::{DType as Stored, MatrixMask};
use half::{bf16, f16};

use crate::accelerator::{Choice, Refused};
use crate::cpu::{self, Layer, Panels, Workspace};
use crate::error::Doing;
use crate::hidden::{Hidden, States};
use crate::tensors::{Linear, TensorBlock, values};
use crate::upload::{upload, widen};
use crate::{Decoder, ModelError, Taps};

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
pub(crate) const Q: usize = 0;
pub(crate) const K: usize = 1;
pub(crate) const V: usize = 2;
pub(crate) const O: usize = 3;
pub(crate) const GATE: usize = 4;
pub(crate) const UP: usize = 5;
pub(crate) const DOWN: usize = 6;

/// The weights of one block.
pub struct Block {
    index: usize,
    /// As the checkpoint stores each matrix, in the order of [`MATRICES`].
    stored: [Stored; 7],
    weights: Weights,
}

/// Input norm, second norm, and those of queries and keys where the model has them.
type Norms<T> = (T, T, Option<(T, T)>);

/// Where and how they lie.
#[allow(clippy::large_enum_variant, reason = "one block is in memory at a time")]
enum Weights {
    /// On the processor in f32.
    Slices(SliceBlock),
    /// Anywhere else.
    Tensors(TensorBlock),
}

struct SliceBlock {
    /// In the order of [`MATRICES`].
    layers: [Layer; 7],
    input_norm: Vec<f32>,
    post_attention_norm: Vec<f32>,
    query_key_norms: Option<(Vec<f32>, Vec<f32>)>,
}

/// Finds the tensors of one block.
struct Source<'a> {
    decoder: &'a Decoder,
    checkpoint: &'a Checkpoint,
    index: usize,
}

impl<'a> Source<'a> {
    fn view(&self, name: &str) -> Result<TensorView<'a>, ModelError> {
        Ok(self.checkpoint.tensor(&format!("model.layers.{}.{name}", self.index))?)
    }

    fn matrix(&self, position: usize) -> Result<TensorView<'a>, ModelError> {
        self.view(&format!("{}.weight", MATRICES[position]))
    }

    fn bias(&self, position: usize) -> Result<Option<TensorView<'a>>, ModelError> {
        let config = self.decoder.config();
        let biased = match position {
            Q | K | V => config.attention_bias != AttentionBias::None,
            O => config.attention_bias == AttentionBias::Qkvo,
            _ => config.mlp_bias,
        };
        if biased { self.view(&format!("{}.bias", MATRICES[position])).map(Some) } else { Ok(None) }
    }

    /// The vectors: input norm, second norm, query and key norms where there are any.
    fn vectors<T>(&self, read: impl Fn(&TensorView<'_>) -> Result<T, ModelError>) -> Result<Norms<T>, ModelError> {
        let vector = |name: &str| read(&self.view(name)?);
        let of_heads = if self.decoder.config().query_key_norm {
            Some((vector("self_attn.q_norm.weight")?, vector("self_attn.k_norm.weight")?))
        } else {
            None
        };
        Ok((vector("input_layernorm.weight")?, vector("post_attention_layernorm.weight")?, of_heads))
    }

    fn slices(&self) -> Result<SliceBlock, ModelError> {
        let layer = |position: usize| -> Result<Layer, ModelError> {
            let view = self.matrix(position)?;
            let (outputs, inputs) = (view.shape[0], view.shape[1]);
            let bias = self.bias(position)?.map(|bias| widen(bias.dtype, bias.bytes));
            Ok(Layer { weight: Panels::from_stored(view.dtype, view.bytes, outputs, inputs), bias })
        };
        let (input_norm, post_attention_norm, query_key_norms) =
            self.vectors(|view| Ok(widen(view.dtype, view.bytes)))?;
        let layers = [layer(Q)?, layer(K)?, layer(V)?, layer(O)?, layer(GATE)?, layer(UP)?, layer(DOWN)?];
        Ok(SliceBlock { layers, input_norm, post_attention_norm, query_key_norms })
    }

    fn tensors(&self) -> Result<TensorBlock, ModelError> {
        let upload = |view: &TensorView<'_>| match self.decoder.accelerator() {
            Some(accelerator) => accelerator.upload(view, self.decoder.dtype()),
            None => upload(view, self.decoder.dtype(), self.decoder.device()),
        };
        let linear = |position: usize| -> Result<Linear, ModelError> {
            let bias = self.bias(position)?.map(|bias| upload(&bias)).transpose()?;
            Ok(Linear { weight: upload(&self.matrix(position)?)?, bias })
        };
        let (input_norm, post_attention_norm, query_key_norms) = self.vectors(upload)?;
        let linears = [linear(Q)?, linear(K)?, linear(V)?, linear(O)?, linear(GATE)?, linear(UP)?, linear(DOWN)?];
        let accelerator = self.decoder.accelerator().cloned();
        Ok(TensorBlock { index: self.index, accelerator, linears, input_norm, post_attention_norm, query_key_norms })
    }
}

impl Block {
    pub(crate) fn load(decoder: &Decoder, checkpoint: &Checkpoint, index: usize) -> Result<Self, ModelError> {
        let config = decoder.config();
        if index >= config.blocks {
            return Err(ModelError::NoSuchBlock { block: index, blocks: config.blocks });
        }
        let source = Source { decoder, checkpoint, index };
        let weights =
            if decoder.on_slices() { Weights::Slices(source.slices()?) } else { Weights::Tensors(source.tensors()?) };
        let mut stored = [Stored::F32; 7];
        for (position, stored) in stored.iter_mut().enumerate() {
            *stored = source.matrix(position)?.dtype;
        }
        Ok(Self { index, stored, weights })
    }

    /// Which block of the model this is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Runs windows through the block: `hidden` becomes what comes out of it.
    ///
    /// # Errors
    /// [`ModelError::SequenceOverDecoder`] when `decoder` was made for shorter sequences; [`ModelError::Compute`].
    pub fn run(&self, decoder: &Decoder, hidden: &mut Hidden, workspace: &mut Workspace) -> Result<(), ModelError> {
        hidden.check_lengths(decoder)?;
        match (&self.weights, &mut hidden.states) {
            (Weights::Slices(block), States::Slice(states)) => {
                cpu::run(&block.frame(decoder), &block.layers, &hidden.lengths, states, workspace);
            }
            (Weights::Tensors(block), States::Tensors(states)) => {
                for states in states {
                    *states = block.run(decoder, states)?;
                }
            }
            _ => return Err(ModelError::OtherDecoder),
        }
        Ok(())
    }

    /// Adds the squares of what the block's linear layers read to `sums`; `hidden` stays as it is.
    ///
    /// # Errors
    /// As [`Block::run`].
    pub fn measure(
        &self,
        decoder: &Decoder,
        hidden: &Hidden,
        sums: &mut Taps,
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        hidden.check_lengths(decoder)?;
        match (&self.weights, &hidden.states) {
            (Weights::Slices(block), States::Slice(states)) => {
                cpu::measure(&block.frame(decoder), &block.layers, &hidden.lengths, states, workspace, sums);
            }
            (Weights::Tensors(block), States::Tensors(states)) => {
                for states in states {
                    block.measure(decoder, states, sums)?;
                }
            }
            _ => return Err(ModelError::OtherDecoder),
        }
        Ok(())
    }

    /// Zeroes the weights of one matrix whose mask bit is 1.
    ///
    /// `position` is the matrix's index within the block in layout order: q, k, v, o, gate, up, down.
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`] when the shapes differ.
    pub fn prune(&mut self, position: usize, mask: &MatrixMask) -> Result<(), ModelError> {
        if (mask.rows(), mask.columns()) != self.shape(position)? {
            let given = format!("shape ({}, {})", mask.rows(), mask.columns());
            return Err(self.does_not_fit(position, "a mask", given));
        }
        match &mut self.weights {
            Weights::Slices(block) => {
                block.layers[position].weight.zero(mask.words());
                Ok(())
            }
            Weights::Tensors(block) => block.prune(position, mask),
        }
    }

    /// Chooses the weights of each matrix where they lie, and zeroes them; the masks are those that
    /// [`fedprune_mask::derive_mask`] gives. None where that is for the caller to do: on the processor.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] for weights that have no order; [`ModelError::Gpu`] for norms that do not fit, and for what
    /// the device says.
    pub fn choose_and_prune(
        &mut self,
        checkpoint: &Checkpoint,
        choice: &Choice<'_>,
    ) -> Result<Option<Vec<MatrixMask>>, ModelError> {
        let Weights::Tensors(block) = &self.weights else { return Ok(None) };
        let Some(accelerator) = &block.accelerator else { return Ok(None) };
        let layout = checkpoint.layout();
        let of_block = layout.block(self.index);
        let taps = layout.taps().iter().filter(|range| of_block.contains(&range.start)).enumerate();
        let taps = taps.flat_map(|(tap, range)| range.clone().map(move |index| (tap, index)));
        let matrices: Vec<_> = taps
            .zip(&block.linears)
            .map(|((tap, index), linear)| (&linear.weight, checkpoint.matrix(index), tap))
            .collect();
        accelerator.select(&matrices, choice).map(Some).map_err(|Refused { position, error }| {
            let index = position.map_or(of_block.start, |position| of_block.start + position);
            match *error {
                ModelError::Gpu(GpuError::Weights(source)) => ModelError::NotFinite {
                    file: checkpoint.matrix_file(index).to_owned(),
                    tensor: layout.matrices()[index].name.clone(),
                    source,
                },
                other => other,
            }
        })
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
        let doing = || format!("scaling `{}` of block {}", MATRICES[position], self.index);
        let mut scaled = self.values(position).doing(doing)?;
        let round = match self.stored[position] {
            Stored::F32 => |value: f32| value,
            Stored::BF16 => |value: f32| bf16::from_f32(value).to_f32(),
            Stored::F16 => |value: f32| f16::from_f32(value).to_f32(),
        };
        scaled.iter_mut().zip(factors).for_each(|(value, factor)| *value = round(*value * factor));
        match &mut self.weights {
            Weights::Slices(block) => {
                block.layers[position].weight = Panels::from_rows(&scaled, rows, columns, columns);
            }
            Weights::Tensors(block) => {
                let weight = &mut block.linears[position].weight;
                let tensor = Tensor::from_vec(scaled, (rows, columns), weight.device());
                *weight = tensor.and_then(|tensor| tensor.to_dtype(weight.dtype())).doing(doing)?;
            }
        }
        Ok(())
    }

    /// The weights of one matrix, in the compute dtype: a copy of shape (out_features, in_features).
    ///
    /// # Errors
    /// [`ModelError::DoesNotFit`] when there is no such matrix.
    pub fn weight(&self, position: usize) -> Result<Tensor, ModelError> {
        let shape = self.shape(position)?;
        match &self.weights {
            Weights::Slices(_) => {
                self.values(position).and_then(|values| Tensor::from_vec(values, shape, &Device::Cpu))
            }
            Weights::Tensors(block) => block.linears[position].weight.copy(),
        }
        .doing(|| format!("reading `{}` of block {}", MATRICES[position], self.index))
    }

    /// The weights of one matrix in f32, row-major.
    fn values(&self, position: usize) -> candle_core::Result<Vec<f32>> {
        match &self.weights {
            Weights::Slices(block) => Ok(block.layers[position].weight.to_rows()),
            Weights::Tensors(block) => values(&block.linears[position].weight),
        }
    }

    fn shape(&self, position: usize) -> Result<(usize, usize), ModelError> {
        if position >= MATRICES.len() {
            return Err(ModelError::DoesNotFit {
                what: "a position",
                given: position.to_string(),
                name: format!("model.layers.{}", self.index),
                rows: 0,
                columns: 0,
            });
        }
        match &self.weights {
            Weights::Slices(block) => Ok(block.layers[position].weight.shape()),
            Weights::Tensors(block) => block.linears[position].weight.dims2().doing(|| "reading a shape".to_owned()),
        }
    }

    fn does_not_fit(&self, position: usize, what: &'static str, given: String) -> ModelError {
        let (rows, columns) = self.shape(position).unwrap_or_default();
        let name = format!("model.layers.{}.{}.weight", self.index, MATRICES[position]);
        ModelError::DoesNotFit { what, given, name, rows, columns }
    }
}

impl SliceBlock {
    fn frame<'a>(&'a self, decoder: &'a Decoder) -> cpu::Frame<'a> {
        let config = decoder.config();
        let (cos, sin) = decoder.rope().slices();
        cpu::Frame {
            input_norm: &self.input_norm,
            post_attention_norm: &self.post_attention_norm,
            query_key_norms: self.query_key_norms.as_ref().map(|(query, key)| (query.as_slice(), key.as_slice())),
            eps: config.rms_norm_eps as f32,
            cos,
            sin,
            heads: config.attention_heads,
            groups: config.key_value_heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::DType;
    use fedprune_mask::Tap;

    use super::*;

    const ARCHITECTURES: [&str; 5] = ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"];

    fn open(architecture: &str) -> (Checkpoint, Decoder) {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(architecture);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let decoder = Decoder::new(&checkpoint, &Device::Cpu, DType::F32, 200).unwrap();
        (checkpoint, decoder)
    }

    fn windows(lengths: &[u32]) -> Vec<Vec<u32>> {
        lengths.iter().map(|length| (0..*length).map(|at| (at * at * 7 + at + length) % 256).collect()).collect()
    }

    /// The two ways of running a block agree, in what comes out and in what is measured, dense and pruned.
    #[test]
    fn slices_and_tensors_agree() {
        for architecture in ARCHITECTURES {
            let (checkpoint, decoder) = open(architecture);
            let windows = windows(&[48, 1, 200, 117]);
            let mut block = decoder.load_block(&checkpoint, 1).unwrap();
            let mut tensors = Source { decoder: &decoder, checkpoint: &checkpoint, index: 1 }.tensors().unwrap();
            for pruned in [false, true] {
                if pruned {
                    for position in 0..7 {
                        let (rows, columns) = block.shape(position).unwrap();
                        let mut mask = MatrixMask::kept(rows, columns);
                        (0..rows * columns).step_by(3).for_each(|at| mask.prune(at / columns, at % columns));
                        block.prune(position, &mask).unwrap();
                        tensors.prune(position, &mask).unwrap();
                    }
                }
                let mut hidden = decoder.embed(&checkpoint, &windows).unwrap();
                let mut sums = Taps::new(decoder.config());
                let mut expected_sums = Taps::new(decoder.config());
                let mut workspace = Workspace::default();
                block.measure(&decoder, &hidden, &mut sums, &mut workspace).unwrap();
                let before = hidden.clone().into_tensors().unwrap();
                block.run(&decoder, &mut hidden, &mut workspace).unwrap();
                for (before, after) in before.iter().zip(hidden.into_tensors().unwrap()) {
                    tensors.measure(&decoder, before, &mut expected_sums).unwrap();
                    let expected = values(&tensors.run(&decoder, before).unwrap()).unwrap();
                    let size = expected.iter().fold(0f32, |size, value| size.max(value.abs()));
                    for (got, expected) in values(&after).unwrap().iter().zip(&expected) {
                        assert!((got - expected).abs() < 1e-5 * size, "{architecture}: {got} {expected}");
                    }
                }
                let (sums, expected_sums) = (sums.into_sums().unwrap(), expected_sums.into_sums().unwrap());
                assert_eq!(sums.tokens(), expected_sums.tokens());
                for tap in Tap::ALL {
                    for (got, expected) in sums.sums(tap).iter().zip(expected_sums.sums(tap)) {
                        assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{architecture}, {tap:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (checkpoint, decoder) = open("qwen3");
        let windows = windows(&[200, 200, 93]);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut hidden = decoder.embed(&checkpoint, &windows).unwrap();
                let mut sums = Taps::new(decoder.config());
                let mut workspace = Workspace::default();
                let block = decoder.load_block(&checkpoint, 0).unwrap();
                block.measure(&decoder, &hidden, &mut sums, &mut workspace).unwrap();
                block.run(&decoder, &mut hidden, &mut workspace).unwrap();
                let States::Slice(states) = hidden.states else { panic!("f32 on the processor is slices") };
                (states, sums.into_sums().unwrap())
            })
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }
}
