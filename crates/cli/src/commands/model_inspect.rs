//! `fedprune model inspect`: what a checkpoint is, before anything is done with it.

use std::path::PathBuf;

use fedprune_checkpoint::{Checkpoint, ModelConfig};
use fedprune_mask::{Digest, Tap};
use serde::Serialize;

use super::content_digest;
use crate::args::InspectOptions;
use crate::output::{bytes, count, facts, percent, table};
use crate::progress::Meter;

/// The answer of `fedprune model inspect`.
#[derive(Debug, Serialize)]
pub struct Inspection {
    #[serde(serialize_with = "crate::output::lossy::path")]
    model: PathBuf,
    content_digest: Digest,
    layout_digest: Digest,
    config: ModelConfig,
    dtypes: Vec<String>,
    shards: usize,
    parameters: u64,
    weight_bytes: u64,
    prunable_matrices: usize,
    prunable_weights: u64,
    packed_mask_bytes: u64,
    norm_values: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    matrices: Option<Vec<MatrixRow>>,
}

/// One prunable matrix.
#[derive(Debug, Serialize)]
struct MatrixRow {
    name: String,
    out_features: u32,
    in_features: u32,
    dtype: &'static str,
    input: &'static str,
}

crate::report!(Inspection);

/// Opens, checks and hashes the checkpoint.
///
/// # Errors
/// What is wrong with the folder, by file and tensor.
pub fn run(options: &InspectOptions, meter: &Meter) -> anyhow::Result<Inspection> {
    let checkpoint = Checkpoint::open(&options.model)?;
    let layout = checkpoint.layout();
    let mut dtypes: Vec<String> =
        (0..layout.matrices().len()).map(|index| checkpoint.matrix(index).dtype().to_string()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let row = |(index, matrix): (usize, &fedprune_mask::Matrix)| MatrixRow {
        name: matrix.name.clone(),
        out_features: matrix.rows,
        in_features: matrix.columns,
        dtype: checkpoint.matrix(index).dtype().name(),
        input: match matrix.tap {
            Tap::AttentionInput => "attention input",
            Tap::AttentionOutput => "attention output",
            Tap::MlpInput => "MLP input",
            Tap::MlpOutput => "MLP output",
        },
    };
    Ok(Inspection {
        model: options.model.clone(),
        content_digest: content_digest(&checkpoint, meter),
        layout_digest: layout.digest(),
        config: checkpoint.config().clone(),
        dtypes,
        shards: checkpoint.shards().count(),
        parameters: checkpoint.parameters(),
        weight_bytes: checkpoint.bytes(),
        prunable_matrices: layout.matrices().len(),
        prunable_weights: layout.weights(),
        packed_mask_bytes: layout.packed_bytes(),
        norm_values: layout.taps().iter().map(|range| u64::from(layout.matrices()[range.start].columns)).sum(),
        matrices: options.matrices.then(|| layout.matrices().iter().enumerate().map(row).collect()),
    })
}

impl Inspection {
    fn text(&self) -> String {
        let config = &self.config;
        let heads = format!(
            "{} heads of {}, {} key/value heads",
            config.attention_heads, config.head_dim, config.key_value_heads
        );
        let head = if config.tie_word_embeddings { "tied to the embedding" } else { "separate" };
        let mut text = facts(&[
            ("model", self.model.display().to_string()),
            ("architecture", format!("{}, {} blocks", config.model_type, config.blocks)),
            ("hidden / intermediate", format!("{} / {}", config.hidden_size, config.intermediate_size)),
            ("attention", heads),
            ("vocabulary", format!("{} tokens, head {head}", count(config.vocab_size as u64))),
            ("longest sequence", format!("{} tokens", count(config.max_position_embeddings as u64))),
            ("parameters", count(self.parameters)),
            (
                "stored as",
                format!("{}, {} in {} file(s)", self.dtypes.join(" + "), bytes(self.weight_bytes), self.shards),
            ),
            (
                "prunable",
                format!(
                    "{} weights in {} matrices ({} of all)",
                    count(self.prunable_weights),
                    self.prunable_matrices,
                    percent(self.prunable_weights, self.parameters)
                ),
            ),
            ("mask, packed", bytes(self.packed_mask_bytes)),
            ("ballot, about", format!("{} ({} norms)", bytes(self.norm_values * 17 / 16), count(self.norm_values))),
            ("content digest", self.content_digest.to_string()),
            ("layout digest", self.layout_digest.to_string()),
        ]);
        if let Some(matrices) = &self.matrices {
            let rows: Vec<Vec<String>> = matrices
                .iter()
                .map(|row| {
                    let shape = format!("({}, {})", row.out_features, row.in_features);
                    vec![row.name.clone(), shape, row.dtype.into(), row.input.into()]
                })
                .collect();
            text.push('\n');
            text.push_str(&table(&["matrix", "(out, in)", "dtype", "reads"], &rows));
        }
        text
    }
}
