//! Perplexity of the network and of the unigram distribution on the same tokens.

use anyhow::{Result, ensure};
use candle_core::D;

use crate::network::Network;
use crate::ops;

/// Windows evaluated together.
const BATCH: usize = 16;

/// The windows of an evaluation: tokens `[i · length, (i + 1) · length)`; the tail that does not
/// fill a window is dropped. Every token of a window but the first is scored.
pub fn windows(tokens: &[u32], length: usize) -> std::slice::ChunksExact<'_, u32> {
    tokens.chunks_exact(length)
}

/// The perplexity of `network` on `tokens` in windows of `length`: the mean over windows of the mean
/// token loss, exponentiated.
///
/// Errors: less text than one window.
pub fn perplexity(network: &Network, tokens: &[u32], length: usize) -> Result<f64> {
    let windows: Vec<&[u32]> = windows(tokens, length).collect();
    ensure!(!windows.is_empty(), "{} tokens do not fill a window of {length}", tokens.len());
    let mut total = 0.0;
    for batch in windows.chunks(BATCH) {
        let inputs: Vec<u32> = batch.iter().flat_map(|window| &window[..length - 1]).copied().collect();
        let targets: Vec<u32> = batch.iter().flat_map(|window| &window[1..]).copied().collect();
        let logits = network.logits(&inputs, length - 1, None)?;
        let losses = ops::token_losses(&logits.detach(), targets.into())?;
        let means = losses.reshape((batch.len(), length - 1))?.mean(D::Minus1)?;
        total += means.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok((total / windows.len() as f64).exp())
}

/// How often each token occurs.
pub fn counts(tokens: impl IntoIterator<Item = u32>, vocab_size: usize) -> Vec<u64> {
    let mut counts = vec![0; vocab_size];
    for token in tokens {
        counts[token as usize] += 1;
    }
    counts
}

/// The perplexity of a distribution that ignores context, on the tokens that [`perplexity`] scores:
/// `counts` of each token, each raised by `smoothing`.
pub fn unigram_perplexity(counts: &[u64], smoothing: f64, tokens: &[u32], length: usize) -> f64 {
    let total = counts.iter().sum::<u64>() as f64 + smoothing * counts.len() as f64;
    let loss = |token: u32| -((counts[token as usize] as f64 + smoothing) / total).ln();
    let scored: Vec<u32> = scored(tokens, length).collect();
    (scored.iter().map(|&token| loss(token)).sum::<f64>() / scored.len() as f64).exp()
}

/// The tokens that [`perplexity`] scores.
pub fn scored(tokens: &[u32], length: usize) -> impl Iterator<Item = u32> + '_ {
    windows(tokens, length).flat_map(|window| &window[1..]).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_text_has_the_perplexity_of_its_alphabet() {
        let tokens: Vec<u32> = (0..44).map(|i| i % 4).collect();
        let own = counts(scored(&tokens, 11), 8);
        assert_eq!(own.iter().sum::<u64>(), 40);
        let perplexity = unigram_perplexity(&counts(0..4, 8), 0.0, &tokens, 11);
        assert!((perplexity - 4.0).abs() < 1e-9, "{perplexity}");
    }

    #[test]
    fn smoothing_gives_unseen_tokens_a_share() {
        let perplexity = unigram_perplexity(&[3, 0], 1.0, &[0, 1], 2);
        assert!((perplexity - 5.0).abs() < 1e-9, "{perplexity}");
    }
}
