//! How well a model predicts given windows of tokens.
//!
//! Perplexity is e to the mean over windows of the mean token loss in nats, as in the evaluation of Wanda
//! (`lib/eval.py`) and in the reference that the tests compare with. Each window is a sequence of its own from
//! position 0, and its first token is not scored.
//!
//! Blocks are the outer loop: each is loaded once for as many windows as fit [`HIDDEN_BYTES`], so that
//! memory holds one block and those hidden states, never the model.

use candle_core::Tensor;
use fedprune_checkpoint::Checkpoint;

use crate::{Block, Decoder, ModelError, Workspace};

/// Most bytes of hidden states carried from block to block.
pub const HIDDEN_BYTES: usize = 512 << 20;

/// The result of scoring some windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// e^(mean of `window_losses`).
    pub perplexity: f64,
    /// Per window, the mean loss of its scored tokens in nats.
    pub window_losses: Vec<f64>,
    /// Tokens run through the model.
    pub tokens: u64,
    /// Tokens that were predicted: all but the first of each window.
    pub scored_tokens: u64,
}

/// Scores `windows` of at least two tokens each.
///
/// `after_load(block index, block)` may change a block's weights after it was loaded, for instance prune it;
/// it runs once per block and batch of windows. `progress(done, total)` counts windows through blocks.
///
/// # Errors
/// [`ModelError`] as `E`: no windows, windows too short or long, ids outside the vocabulary, a loss that is no
/// number; and whatever `after_load` returns.
pub fn perplexity<E: From<ModelError>>(
    checkpoint: &Checkpoint,
    decoder: &Decoder,
    windows: &[Vec<u32>],
    after_load: &mut dyn FnMut(usize, &mut Block) -> Result<(), E>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Perplexity, E> {
    if windows.is_empty() {
        return Err(ModelError::Zero("windows").into());
    }
    for (window, tokens) in windows.iter().map(Vec::len).enumerate() {
        if tokens < 2 {
            return Err(ModelError::WindowTooShort { window, tokens }.into());
        }
        decoder.check_length(tokens)?;
    }
    let head = decoder.load_head(checkpoint)?;
    let blocks = decoder.config().blocks;
    let total = windows.len() as u64 * (blocks as u64 + 1);
    let mut done = 0;
    let mut window_losses = Vec::with_capacity(windows.len());
    let mut workspace = Workspace::default();
    for batch in batches(decoder, windows) {
        decoder.check_memory(checkpoint, batch)?;
        let mut hidden = decoder.embed_in_batches(checkpoint, batch)?;
        let mut next = None;
        for index in 0..blocks {
            let mut block = match next.take() {
                Some(block) => block,
                None => decoder.load_block(checkpoint, index)?,
            };
            checkpoint.release_block(index);
            after_load(index, &mut block)?;
            for hidden in &mut hidden {
                block.run(decoder, hidden, &mut workspace)?;
                done += hidden.windows() as u64;
                progress(done, total);
            }
            if decoder.loads_ahead() && index + 1 < blocks {
                next = Some(decoder.load_block(checkpoint, index + 1)?);
            }
        }
        let tokens: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
        window_losses.extend(head.mean_losses(decoder, hidden, &tokens)?);
        checkpoint.release_all();
        done += batch.len() as u64;
        progress(done, total);
    }
    if let Some((window, loss)) = window_losses.iter().enumerate().find(|(_, loss)| !loss.is_finite()) {
        return Err(ModelError::LossNotFinite { window, loss: *loss }.into());
    }
    let tokens: u64 = windows.iter().map(|window| window.len() as u64).sum();
    Ok(Perplexity {
        perplexity: (window_losses.iter().sum::<f64>() / window_losses.len() as f64).exp(),
        window_losses,
        tokens,
        scored_tokens: tokens - windows.len() as u64,
    })
}

/// Consecutive windows whose hidden states fit [`HIDDEN_BYTES`] together, at least one each.
fn batches<'w>(decoder: &Decoder, windows: &'w [Vec<u32>]) -> Vec<&'w [Vec<u32>]> {
    let token_bytes = decoder.config().hidden_size * decoder.dtype().size_in_bytes();
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0usize);
    for (index, window) in windows.iter().enumerate() {
        if index > start && (tokens + window.len()).saturating_mul(token_bytes) > HIDDEN_BYTES {
            batches.push(&windows[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += window.len();
    }
    batches.push(&windows[start..]);
    batches
}

/// Logits of one sequence: f32, (tokens, vocab_size).
///
/// # Errors
/// As [`perplexity`].
pub fn logits(checkpoint: &Checkpoint, decoder: &Decoder, tokens: &[u32]) -> Result<Tensor, ModelError> {
    let mut hidden = decoder.embed(checkpoint, &[tokens.to_vec()])?;
    let mut workspace = Workspace::default();
    for index in 0..decoder.config().blocks {
        decoder.load_block(checkpoint, index)?.run(decoder, &mut hidden, &mut workspace)?;
    }
    decoder.load_head(checkpoint)?.logits(decoder, hidden)
}
