//! What a ballot tells about the text that it was made from: the attack of a curious member, run by the silo itself.
//!
//! What q, k and v of block 0 read of a token is RMSNorm(embedding), a function of that token alone. So the squared norm
//! of each input channel is *linear* in how often each token occurs:
//!
//! ```text
//! s_j² · sequences = Σ over tokens t of count_t · x_tj²,   x_tj = gain_j · e_tj / sqrt(mean(e_t²) + ε)
//! ```
//!
//! Whoever has the model knows every x; whoever has the ballot knows every s, to one part in 256 from norms and about as
//! well from masks. Non-negative least squares over the vocabulary then gives counts, and the largest are words of the
//! text. Nothing here is secret knowledge, and a better attack may exist: what this one does not find is not safe for that.
//!
//! | module | what it answers |
//! |---|---|
//! | `inputs` | x² of every token, streamed from the embeddings; norms of a text without running the model |
//! | `least_squares` | counts that are not negative and explain the norms best |
//! | `masks` | norms, from masks and public weights alone |
//! | `score` | how many guesses are right, beside guessing common words |
//!
//! Memory: one number a token and one column a guess that is being considered, never vocabulary × hidden.

mod inputs;
mod least_squares;
mod masks;
mod score;
#[cfg(test)]
mod tests;

use fedprune_checkpoint::{Checkpoint, CheckpointError};
use fedprune_mask::ballot::{Ballot, BallotError, BallotHeader};
use fedprune_mask::norms::NormError;
use fedprune_mask::select::DeriveError;
use fedprune_mask::{Group, Layout, NormVector, Pruner, Tap};

pub use inputs::TokenInputs;
pub use masks::MaskedMatrix;
pub use score::{Apart, Frequencies, Score};

use least_squares::{Bounds, Columns};

/// Most tokens that are considered to be in a text at once: as many as a text of some thousand tokens holds.
pub const MAX_GUESSES: usize = 1024;
/// Most passes over the embeddings.
const MAX_PASSES: usize = 400;
/// Where least squares may stop, relative to what is explained: a third of what rounding to bf16 leaves open.
const GOOD_ENOUGH: f64 = 5e-4;

/// A token that is held to be in the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// Its id.
    pub token: u32,
    /// Which part of the text's tokens it is held to be, from 0 to 1.
    pub share: f64,
}

/// What the norms were read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// The ballot carries them.
    Norms,
    /// Worked out from masks of q, k and v and the public weights.
    Masks,
}

/// What was read from a ballot.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// Most frequent first; of equal ones the lower id.
    pub guesses: Vec<Guess>,
    /// What the norms were read from.
    pub read_from: ReadFrom,
    /// The strength of each channel as it was read, up to a common factor.
    pub norms: Vec<f64>,
    /// Root mean square of what stays unexplained of each channel, relative to that channel.
    pub residual: f64,
    /// Passes over the embeddings.
    pub passes: usize,
}

/// Why nothing was read from a ballot.
#[derive(Debug, thiserror::Error)]
pub enum DisclosureError {
    /// The embeddings cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The ballot cannot be decoded.
    #[error(transparent)]
    Ballot(#[from] BallotError),
    /// The norms of a text cannot be told.
    #[error("the input of block 0 cannot be measured: {0}")]
    Norms(#[from] NormError),
    /// Norms and weights do not fit each other.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// A token that the model does not have.
    #[error("token {token} is outside the vocabulary of {vocabulary}: tokenizer and model do not belong together")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Tokens that there are.
        vocabulary: usize,
    },
    /// The ballot has no vote on block 0.
    #[error("the ballot holds no vote on block 0's q, k and v; give the ballot of height 0")]
    NotBlockZero,
    /// Masks that say nothing that this attack could read.
    #[error("this attack reads no masks of the group {0}; that does not make them safe")]
    Unread(Group),
}

/// The matrices of a layout that read block 0's first input: their tap.
fn first_tap(layout: &Layout) -> Option<usize> {
    layout.taps().iter().position(|range| {
        let first = layout.matrices().get(range.start);
        first.is_some_and(|matrix| matrix.block == 0 && matrix.tap == Tap::AttentionInput)
    })
}

/// Runs the attack on a ballot, knowing what every member knows: the ballot and the model.
///
/// `ballot` is one of the whole model, or of block 0 alone. `on_pass` is told how many passes over the embeddings are
/// done.
///
/// # Errors
/// [`DisclosureError`] when the ballot holds nothing that this attack reads.
pub fn recover(
    checkpoint: &Checkpoint,
    ballot: &Ballot<'_>,
    on_pass: &mut dyn FnMut(usize),
) -> Result<Recovery, DisclosureError> {
    let layout = ballot.layout();
    let tap = first_tap(layout).ok_or(DisclosureError::NotBlockZero)?;
    if let Some(norms) = ballot.norms(tap) {
        return recover_from_norms(checkpoint, &norms.to_f64(), ReadFrom::Norms, on_pass);
    }
    let BallotHeader::Vote(vote) = ballot.header() else { return Err(DisclosureError::NotBlockZero) };
    let mut matrices = Vec::new();
    // block 0 comes first in every layout that has it, so that both layouts number its matrices alike
    for index in layout.taps()[tap].clone() {
        let weights = checkpoint.matrix(index);
        let mask = ballot.mask(index, weights)?;
        matrices.push(MaskedMatrix::new(vote.pruner, vote.group, weights, &mask)?);
    }
    let norms = masks::norms(vote.pruner, vote.group, &matrices)?;
    recover_from_norms(checkpoint, &norms, ReadFrom::Masks, on_pass)
}

/// Runs the attack on what a ballot of a text would hold, without computing the rest of it.
///
/// # Errors
/// As [`recover`].
pub fn recover_from_text(
    checkpoint: &Checkpoint,
    vote: &TextVote<'_>,
    on_pass: &mut dyn FnMut(usize),
) -> Result<Recovery, DisclosureError> {
    let norms = TokenInputs::open(checkpoint)?.norms_of(vote.tokens, vote.sequences)?;
    let Some((group, sparsity)) = vote.masks_of else {
        return recover_from_norms(checkpoint, &norms.to_f64(), ReadFrom::Norms, on_pass);
    };
    let layout = checkpoint.layout();
    let tap = first_tap(layout).ok_or(DisclosureError::NotBlockZero)?;
    let mut matrices = Vec::new();
    for index in layout.taps()[tap].clone() {
        let weights = checkpoint.matrix(index);
        let mask = fedprune_mask::derive_mask(vote.pruner, group, sparsity, weights, &norms)?;
        matrices.push(MaskedMatrix::new(vote.pruner, group, weights, &mask)?);
    }
    let norms = masks::norms(vote.pruner, group, &matrices)?;
    recover_from_norms(checkpoint, &norms, ReadFrom::Masks, on_pass)
}

/// A vote on block 0's q, k and v.
#[derive(Debug, Clone, Copy)]
pub struct TextVote<'a> {
    /// The text's tokens.
    pub tokens: &'a [u32],
    /// In how many sequences.
    pub sequences: u64,
    /// The scoring rule.
    pub pruner: Pruner,
    /// Group and sparsity, where the ballot says masks rather than norms.
    pub masks_of: Option<(Group, fedprune_mask::Sparsity)>,
}

/// Norms in, tokens out; a common scale of the norms changes nothing.
fn recover_from_norms(
    checkpoint: &Checkpoint,
    norms: &[f64],
    read_from: ReadFrom,
    on_pass: &mut dyn FnMut(usize),
) -> Result<Recovery, DisclosureError> {
    let inputs = TokenInputs::open(checkpoint)?;
    // Each channel is known to the same part of itself, so that each counts relative to itself: the target is one
    // everywhere. A channel of norm zero says next to nothing, and nothing can be divided by it.
    let squares: Vec<f64> = norms.iter().map(|norm| norm * norm).collect();
    let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
    let weights: Vec<f64> = squares.iter().map(|square| if *square > 0.0 { mean / square } else { 0.0 }).collect();
    let target: Vec<f64> = weights.iter().map(|weight| f64::from(u8::from(*weight > 0.0))).collect();
    let columns = Weighted { inputs: &inputs, weights };
    let bounds = Bounds { support: MAX_GUESSES, passes: MAX_PASSES, residual: GOOD_ENOUGH };
    let solution = least_squares::solve(&columns, &target, bounds, on_pass);
    let total: f64 = solution.support.iter().map(|(_, value)| value).sum();
    let mut guesses: Vec<Guess> = solution
        .support
        .into_iter()
        .map(|(token, value)| Guess { token, share: if total > 0.0 { value / total } else { 0.0 } })
        .collect();
    guesses.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.token.cmp(&b.token)));
    Ok(Recovery { guesses, read_from, norms: norms.to_vec(), residual: solution.residual, passes: solution.passes })
}

/// x² of every token, channel by channel relative to what is to be explained.
struct Weighted<'a, 'c> {
    inputs: &'a TokenInputs<'c>,
    weights: Vec<f64>,
}

impl Columns for Weighted<'_, '_> {
    fn count(&self) -> usize {
        self.inputs.vocabulary()
    }

    fn column(&self, index: usize) -> Vec<f64> {
        let mut column = self.inputs.squares(index);
        column.iter_mut().zip(&self.weights).for_each(|(square, weight)| *square *= weight);
        column
    }

    fn correlate(&self, residual: &[f64]) -> Vec<f32> {
        let weighted: Vec<f32> =
            residual.iter().zip(&self.weights).map(|(residual, weight)| (residual * weight) as f32).collect();
        self.inputs.correlate(&weighted)
    }

    fn lengths(&self) -> Vec<f32> {
        let weights: Vec<f32> = self.weights.iter().map(|weight| *weight as f32).collect();
        self.inputs.lengths(&weights)
    }
}

/// What block 0's q, k and v get of a text: for those who have the text and not yet a ballot.
///
/// # Errors
/// [`DisclosureError`].
pub fn norms_of_text(checkpoint: &Checkpoint, tokens: &[u32], sequences: u64) -> Result<NormVector, DisclosureError> {
    TokenInputs::open(checkpoint)?.norms_of(tokens, sequences)
}
