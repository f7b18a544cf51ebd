//! `fedprune model import`: a GGUF file as a checkpoint that everything else here takes.

use std::path::PathBuf;

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::Digest;
use fedprune_model::gguf::{Import, import};
use serde::Serialize;

use super::content_digest;
use crate::args::ImportOptions;
use crate::files::{program, shell};
use crate::output::{bytes, count, facts, tame};
use crate::progress::Meter;

/// The answer of `fedprune model import`.
#[derive(Debug, Serialize)]
pub struct ImportReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    #[serde(serialize_with = "crate::output::lossy::path")]
    out: PathBuf,
    /// Of the model as it is now.
    content_digest: Digest,
    tensors: usize,
    weight_bytes: u64,
    /// Matrices of which the rows were put back into the order of a checkpoint.
    permuted: usize,
    /// Vectors that are stored in the format of the matrices.
    narrowed: usize,
    /// Where the tokenizer came from.
    tokenizer: Option<String>,
    warnings: Vec<String>,
}

crate::report!(ImportReport);

/// Imports a file.
///
/// # Errors
/// A file that is no whole LLaMA model in full precision, naming what is in the way; nothing is left behind.
pub fn run(options: &ImportOptions, meter: &Meter) -> anyhow::Result<ImportReport> {
    let imported = import(&Import {
        file: &options.file,
        out: &options.out,
        tokenizer: options.tokenizer.as_deref(),
        config: options.config.as_deref(),
    })?;
    let checkpoint = Checkpoint::open(&options.out)?;
    Ok(ImportReport {
        file: options.file.clone(),
        out: options.out.clone(),
        content_digest: content_digest(&checkpoint, meter),
        tensors: imported.tensors,
        weight_bytes: imported.weight_bytes,
        permuted: imported.permuted,
        narrowed: imported.narrowed,
        tokenizer: imported.tokenizer,
        warnings: imported.notes,
    })
}

impl ImportReport {
    fn text(&self) -> String {
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        let rows = [
            ("model", self.out.display().to_string()),
            ("content", self.content_digest.to_string()),
            ("tensors", format!("{}, {} in the file", count(self.tensors as u64), bytes(self.weight_bytes))),
            ("rows put back", format!("{} matrices of q and k, which GGUF files permute", self.permuted)),
            ("narrowed", format!("{} vectors, stored as the matrices are; each value is the same", self.narrowed)),
            ("tokenizer", self.tokenizer.clone().unwrap_or_else(|| "none".to_owned())),
        ];
        format!("{}{warnings}\nnext: {} model inspect {}", facts(&rows), program(), shell(&self.out))
    }
}
