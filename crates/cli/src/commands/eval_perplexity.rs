//! `fedprune eval perplexity`: how well a model predicts a text.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fedprune_checkpoint::Checkpoint;
use fedprune_model::{ModelError, Tokenizer, evaluation_windows, perplexity};
use serde::Serialize;

use super::{decoder, sequence_tokens};
use crate::args::{DeviceOptions, PerplexityOptions};
use crate::files::peak_memory_bytes;
use crate::output::{bytes, count, facts};
use crate::progress::Meter;

/// The answer of `fedprune eval perplexity`.
#[derive(Debug, Clone, Serialize)]
pub struct PerplexityReport {
    /// e^(mean over windows of the mean token loss).
    pub perplexity: f64,
    /// ln of it.
    mean_loss_nats: f64,
    windows: usize,
    sequence_tokens: usize,
    scored_tokens: u64,
    #[serde(serialize_with = "crate::output::lossy::path")]
    model: PathBuf,
    #[serde(serialize_with = "crate::output::lossy::paths")]
    files: Vec<PathBuf>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

crate::report!(PerplexityReport);

/// Measures perplexity.
///
/// # Errors
/// What is wrong with model, text or settings.
pub fn run(options: &PerplexityOptions, meter: &Meter) -> anyhow::Result<PerplexityReport> {
    options.device.limit_threads();
    let checkpoint = Checkpoint::open(&options.model)?;
    let text = EvaluationText {
        data: &options.data,
        field: &options.field,
        sequence_tokens: sequence_tokens(options.seqlen, checkpoint.config()),
        max_windows: options.max_windows,
    };
    measure(&checkpoint, &text, &options.device, meter)
}

/// What to measure on.
pub(crate) struct EvaluationText<'a> {
    pub data: &'a [PathBuf],
    pub field: &'a str,
    pub sequence_tokens: usize,
    pub max_windows: Option<usize>,
}

/// Measures the perplexity of an opened checkpoint.
pub(crate) fn measure(
    checkpoint: &Checkpoint,
    text: &EvaluationText<'_>,
    device: &DeviceOptions,
    meter: &Meter,
) -> anyhow::Result<PerplexityReport> {
    let started = Instant::now();
    let tokenizer = Tokenizer::open(checkpoint.dir())?;
    let windows = evaluation_windows(
        checkpoint.config(),
        &tokenizer,
        text.data,
        text.field,
        text.sequence_tokens,
        text.max_windows,
    )?;
    let decoder = decoder(checkpoint, device, text.sequence_tokens)?;
    let task = meter.task("perplexity", 1, false);
    let measured =
        perplexity::<ModelError>(checkpoint, &decoder, &windows.windows, &mut |_, _| Ok(()), &mut |done, total| {
            task.of(total);
            task.at(done, "");
        })?;
    Ok(PerplexityReport {
        perplexity: measured.perplexity,
        mean_loss_nats: measured.perplexity.ln(),
        windows: windows.windows.len(),
        sequence_tokens: text.sequence_tokens,
        scored_tokens: measured.scored_tokens,
        model: checkpoint.dir().to_owned(),
        files: windows.used_files().map(Path::to_owned).collect(),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
    })
}

impl PerplexityReport {
    fn text(&self) -> String {
        let files = self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let mut rows = vec![
            ("perplexity", format!("{:.4}", self.perplexity)),
            ("mean loss", format!("{:.5} nats a token", self.mean_loss_nats)),
            (
                "measured on",
                format!(
                    "{} windows of {} tokens ({} scored)",
                    count(self.windows as u64),
                    count(self.sequence_tokens as u64),
                    count(self.scored_tokens)
                ),
            ),
            ("text", files),
            ("time", format!("{:.1} s", self.seconds)),
        ];
        if let Some(peak) = self.peak_memory_bytes {
            rows.push(("peak memory", bytes(peak)));
        }
        facts(&rows)
    }
}
