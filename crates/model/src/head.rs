//! From hidden states to logits and losses, a slice of the vocabulary at a time.
//!
//! The projection of a large vocabulary (128,256 × 4,096 takes 2.1 GB in f32) would outweigh any block, and
//! logits of one window are as large again. So neither exists whole: slices of the projection are loaded in
//! turn, and every token keeps a running log-sum-exp and the logit of the token that follows it.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use fedprune_checkpoint::{Checkpoint, TensorView};
use rayon::prelude::*;

use crate::error::Doing;
use crate::hidden::Hidden;
use crate::kernels::{LogSumExp, normalise};
use crate::upload::{upload, upload_bytes};
use crate::{Decoder, ModelError};

/// Most bytes of one slice of the projection in the compute dtype.
const SLICE_BYTES: usize = 32 << 20;
/// Most bytes of one slice of logits, in f32.
const LOGITS_BYTES: usize = 16 << 20;

/// The final norm and the (tied or separate) vocabulary projection.
pub struct Head<'a> {
    norm: Tensor,
    projection: TensorView<'a>,
}

impl<'a> Head<'a> {
    pub(crate) fn load(decoder: &Decoder, checkpoint: &'a Checkpoint) -> Result<Self, ModelError> {
        let tied = decoder.config().tie_word_embeddings;
        let name = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let norm = checkpoint.tensor("model.norm.weight")?;
        Ok(Self { norm: upload(&norm, decoder.dtype(), decoder.device())?, projection: checkpoint.tensor(name)? })
    }

    /// The final norm: same shape.
    fn normalise(&self, decoder: &Decoder, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let eps = decoder.config().rms_norm_eps as f32;
        normalise(hidden, &self.norm, eps).doing(|| "running the final norm".to_owned())
    }

    /// Calls `each` with slices of the projection, (tokens of the vocabulary, hidden_size), and the id of their first.
    fn for_each_slice(
        &self,
        decoder: &Decoder,
        mut each: impl FnMut(usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let (vocabulary, hidden_size) = (decoder.config().vocab_size, decoder.config().hidden_size);
        let step = (SLICE_BYTES / (hidden_size * decoder.dtype().size_in_bytes())).max(1);
        let row_bytes = hidden_size * self.projection.dtype.bytes();
        for first in (0..vocabulary).step_by(step) {
            let count = step.min(vocabulary - first);
            let shape = (count, hidden_size);
            let bytes =
                self.projection.bytes.get(first * row_bytes..(first + count) * row_bytes).ok_or_else(|| {
                    ModelError::Config(format!("`{}` has no row for every token", self.projection.name))
                })?;
            let slice = upload_bytes(self.projection.dtype, bytes, shape, decoder.dtype(), decoder.device())
                .doing(|| format!("loading `{}`", self.projection.name))?;
            each(first, &slice)?;
        }
        Ok(())
    }

    /// Logits of every token of all windows: f32, (tokens, vocab_size). For short sequences: nothing is sliced.
    ///
    /// # Errors
    /// [`ModelError::Compute`].
    pub fn logits(&self, decoder: &Decoder, hidden: Hidden) -> Result<Tensor, ModelError> {
        let windows = hidden.into_tensors()?;
        let hidden = Tensor::cat(&windows, 0).doing(|| "joining windows".to_owned())?;
        let hidden = self.normalise(decoder, &hidden)?;
        let mut slices = Vec::new();
        self.for_each_slice(decoder, |_, slice| {
            slices.push(project(&hidden, slice)?);
            Ok(())
        })?;
        Tensor::cat(&slices, 1).doing(|| "joining logits".to_owned())
    }

    /// For each sequence, the mean over its tokens but the last of −ln p(next token), in nats.
    ///
    /// `hidden`: the states of all sequences, in order; `tokens`: their ids, at least two each.
    ///
    /// # Errors
    /// [`ModelError::Compute`].
    pub(crate) fn mean_losses(
        &self,
        decoder: &Decoder,
        hidden: Vec<Hidden>,
        tokens: &[&[u32]],
    ) -> Result<Vec<f64>, ModelError> {
        let mut normalised = Vec::with_capacity(tokens.len());
        for hidden in hidden {
            for window in hidden.into_tensors()? {
                normalised.push(self.normalise(decoder, &window)?);
            }
        }
        let mut scores: Vec<Vec<Score>> =
            tokens.iter().map(|tokens| vec![Score::default(); tokens.len() - 1]).collect();
        self.for_each_slice(decoder, |first, slice| {
            for ((hidden, tokens), scores) in normalised.iter().zip(tokens).zip(&mut scores) {
                let width = slice.dims()[0];
                let rows = (LOGITS_BYTES / (4 * width)).max(1);
                for (part, scores) in scores.chunks_mut(rows).enumerate() {
                    let start = part * rows;
                    let logits = hidden
                        .narrow(0, start, scores.len())
                        .doing(|| "slicing hidden states".to_owned())
                        .and_then(|hidden| project(&hidden, slice))?;
                    score(&logits, first, &tokens[start + 1..], scores)?;
                }
            }
            Ok(())
        })?;
        Ok(scores.iter().map(|scores| scores.iter().map(Score::loss).sum::<f64>() / scores.len() as f64).collect())
    }
}

/// hidden · sliceᵀ in f32.
fn project(hidden: &Tensor, slice: &Tensor) -> Result<Tensor, ModelError> {
    (|| hidden.matmul(&slice.t()?)?.to_dtype(DType::F32))().doing(|| "computing logits".to_owned())
}

/// What is known of one token's prediction so far.
#[derive(Clone, Copy)]
struct Score {
    total: LogSumExp,
    /// Logit of the token that follows.
    target: f32,
}

impl Default for Score {
    fn default() -> Self {
        Self { total: LogSumExp::EMPTY, target: f32::NAN }
    }
}

impl Score {
    fn loss(&self) -> f64 {
        self.total.value() - f64::from(self.target)
    }
}

/// Takes logits of (rows, width), for the vocabulary from `first` on, into the scores of those rows.
fn score(logits: &Tensor, first: usize, targets: &[u32], scores: &mut [Score]) -> Result<(), ModelError> {
    let doing = || "scoring logits".to_owned();
    let (_, width) = logits.dims2().doing(doing)?;
    {
        let (storage, layout) = logits.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            values[start..end].par_chunks_exact(width).zip(scores).zip(targets).for_each(
                |((logits, score), target)| {
                    score.total.extend(logits);
                    if let Some(logit) = (*target as usize).checked_sub(first).and_then(|at| logits.get(at)) {
                        score.target = *logit;
                    }
                },
            );
            return Ok(());
        }
    }
    // On a GPU only three numbers per row come back.
    let (maxima, sums, picked) = (|| {
        let logits = logits.to_dtype(DType::F64)?;
        let maxima = logits.max_keepdim(1)?;
        let sums = logits.broadcast_sub(&maxima)?.exp()?.sum(1)?;
        let local: Vec<u32> = targets
            .iter()
            .take(scores.len())
            .map(|target| (*target as usize).checked_sub(first).filter(|at| *at < width).unwrap_or(0) as u32)
            .collect();
        let local = Tensor::from_vec(local, (scores.len(), 1), logits.device())?;
        let picked = logits.gather(&local, 1)?;
        let read = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f64>();
        candle_core::Result::Ok((read(maxima)?, read(sums)?, read(picked)?))
    })()
    .doing(doing)?;
    let rows = maxima.iter().zip(&sums).zip(&picked).zip(targets).zip(scores);
    for ((((maximum, sum), picked), target), score) in rows {
        score.total.merge(*maximum, *sum);
        if (first..first + width).contains(&(*target as usize)) {
            score.target = *picked as f32;
        }
    }
    Ok(())
}
