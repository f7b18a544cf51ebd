//! How much memory a device of its own takes for a pass, counted before anything is sent there.

use fedprune_checkpoint::{Checkpoint, ModelConfig};

use crate::attention::{MAX_SLICE_TOKENS_GPU, SCORE_BYTES_GPU};
use crate::{Decoder, ModelError};

/// What selection, the vocabulary's slices and the libraries of the device take besides.
const FIXED_BYTES: u64 = 512 << 20;
/// Tensors of (tokens, hidden size) that exist at once beside the hidden states: normalised input, queries, keys and
/// values, each rotated or brought into another order once, and what attention gives.
const HIDDEN_TENSORS: u64 = 9;
/// Tensors of (tokens, intermediate size) that exist at once: gate, which becomes the product, up, and partial sums of squares.
const INTERMEDIATE_TENSORS: u64 = 3;
/// Scores of a slice, which become their weights in place, and those of the slice before while they are given back.
const SCORE_COPIES: u64 = 2;

/// Bytes of device memory that a pass takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNeed {
    /// Two blocks: the one that runs and the one that arrives.
    pub blocks: u64,
    /// Hidden states of all windows.
    pub activations: u64,
    /// What one window takes on its way through a block, and selection.
    pub workspace: u64,
}

impl DeviceNeed {
    /// For windows of `tokens` tokens in all, of which the longest has `longest`.
    pub fn new(checkpoint: &Checkpoint, dtype_bytes: u64, tokens: u64, longest: u64) -> Self {
        let (config, layout) = (checkpoint.config(), checkpoint.layout());
        let weights = |block: usize| {
            let matrices = layout.block(block).filter_map(|index| layout.matrices().get(index));
            matrices.map(|matrix| matrix.weights()).fold(0u64, u64::saturating_add)
        };
        let largest = (0..layout.blocks()).map(weights).max().unwrap_or(0);
        let hidden = config.hidden_size as u64;
        Self {
            // vectors are a thousandth of a block
            blocks: largest.saturating_mul(2 * dtype_bytes).saturating_add(largest / 100),
            activations: tokens.saturating_mul(hidden).saturating_mul(dtype_bytes),
            workspace: workspace(config, dtype_bytes, longest),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.blocks.saturating_add(self.activations).saturating_add(self.workspace)
    }
}

/// Attention and the feed-forward part come one after the other: the larger of the two.
fn workspace(config: &ModelConfig, dtype_bytes: u64, tokens: u64) -> u64 {
    let widest = config.hidden_size.max(config.attention_heads.saturating_mul(config.head_dim)) as u64;
    let rows = tokens.min(MAX_SLICE_TOKENS_GPU as u64);
    let scores =
        (config.attention_heads as u64).saturating_mul(rows).saturating_mul(tokens).saturating_mul(dtype_bytes);
    let scores = scores.min(SCORE_BYTES_GPU as u64).saturating_mul(SCORE_COPIES);
    let row = tokens.saturating_mul(dtype_bytes);
    let attention = row.saturating_mul(widest).saturating_mul(HIDDEN_TENSORS).saturating_add(scores);
    let feed_forward = row
        .saturating_mul(config.intermediate_size as u64)
        .saturating_mul(INTERMEDIATE_TENSORS)
        .saturating_add(row.saturating_mul(widest).saturating_mul(3));
    attention.max(feed_forward).saturating_add(FIXED_BYTES)
}

impl Decoder {
    /// Refuses a pass of `windows` that the device has no memory for. The processor's is not asked for.
    ///
    /// # Errors
    /// [`ModelError::DeviceMemory`] with what it takes and what is free.
    pub fn check_memory(&self, checkpoint: &Checkpoint, windows: &[Vec<u32>]) -> Result<(), ModelError> {
        let Some((free, all)) = self.device_memory()? else { return Ok(()) };
        let tokens = windows.iter().map(|window| window.len() as u64).sum();
        let longest = windows.iter().map(|window| window.len() as u64).max().unwrap_or(0);
        let need = DeviceNeed::new(checkpoint, self.dtype().size_in_bytes() as u64, tokens, longest);
        if need.total() <= free { Ok(()) } else { Err(ModelError::DeviceMemory { need, free, all }) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_a_pass_takes_is_counted() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"));
        let checkpoint = Checkpoint::open(folder).unwrap();
        let block: u64 = checkpoint.layout().weights() / checkpoint.layout().blocks() as u64;
        let need = DeviceNeed::new(&checkpoint, 2, 96, 48);
        assert_eq!(need.activations, 96 * checkpoint.config().hidden_size as u64 * 2);
        assert!(need.blocks >= 4 * block && need.blocks < 5 * block, "{need:?}");
        assert!(need.workspace >= FIXED_BYTES);
        let longer = DeviceNeed::new(&checkpoint, 2, 96, 96);
        assert!(longer.workspace > need.workspace && longer.activations == need.activations);
        assert_eq!(need.total(), need.blocks + need.activations + need.workspace);
    }

    /// The promise of the documentation, for the shape that it is made for.
    #[test]
    fn seven_billion_take_two_blocks_the_activations_and_a_gibibyte() {
        let config: ModelConfig = {
            let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"));
            let mut config = Checkpoint::open(folder).unwrap().config().clone();
            (config.hidden_size, config.intermediate_size) = (4096, 11008);
            (config.attention_heads, config.key_value_heads, config.head_dim) = (32, 32, 128);
            config
        };
        assert!(workspace(&config, 2, 2048) <= 1 << 30, "{}", workspace(&config, 2, 2048));
    }

    #[test]
    fn an_error_says_what_is_needed_and_what_is_free() {
        let need = DeviceNeed { blocks: 810_000_000, activations: 34_000_000, workspace: 900_000_000 };
        let said = ModelError::DeviceMemory { need, free: 1_500_000_000, all: 80_000_000_000 }.to_string();
        for words in [
            "1.50 GB of 80.00 GB",
            "1.74 GB are needed",
            "0.81 GB for two blocks",
            "0.03 GB for the hidden",
            "0.90 GB to",
        ] {
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn lengths_that_no_device_has_overflow_nothing() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama"));
        let checkpoint = Checkpoint::open(folder).unwrap();
        assert_eq!(DeviceNeed::new(&checkpoint, 2, u64::MAX, u64::MAX).total(), u64::MAX);
    }
}
