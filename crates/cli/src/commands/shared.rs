//! What several commands about models and masks need.

use anyhow::Context;
use fedprune_checkpoint::{Checkpoint, ModelConfig};
use fedprune_mask::Digest;
use fedprune_model::{ComputeDType, Decoder};

use crate::args::DeviceOptions;
use crate::progress::Meter;

/// Length of a window when none is asked for, in tokens: what the papers use, as far as the model goes.
const DEFAULT_SEQUENCE_TOKENS: usize = 2048;

/// Hashes all weights of `checkpoint`.
pub(super) fn content_digest(checkpoint: &Checkpoint, meter: &Meter) -> Digest {
    let task = meter.task("reading the model", checkpoint.digest_bytes(), true);
    checkpoint.content_digest(&task.counter())
}

/// `--seqlen`, or its default for this model.
pub(super) fn sequence_tokens(asked: Option<usize>, config: &ModelConfig) -> usize {
    asked.unwrap_or_else(|| DEFAULT_SEQUENCE_TOKENS.min(config.max_position_embeddings))
}

/// A decoder on the device asked for.
pub(super) fn decoder(
    checkpoint: &Checkpoint,
    options: &DeviceOptions,
    sequence_tokens: usize,
) -> anyhow::Result<Decoder> {
    let device = options.device.open()?;
    let dtype = options.dtype.unwrap_or_else(|| ComputeDType::default_for(&device)).candle();
    Decoder::new(checkpoint, &device, dtype, sequence_tokens)
        .with_context(|| format!("cannot run the model on {}", options.device))
}
