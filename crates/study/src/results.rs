//! What a study measured: one [`Record`] for each evaluated model, one [`Profile`] for each global mask.
//!
//! `results.json` is [`Results`] as it is; `results.csv` has the records, a line each.

use std::fmt::Write as _;

use fedprune_mask::score::Pruner;
use fedprune_mask::{Digest, Group, Sparsity};
use serde::{Deserialize, Serialize};

/// How a pruned model came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Not pruned at all.
    Dense,
    /// By one silo's own mask; the perplexity is the mean over the silos.
    Local,
    /// By one mask from the text of all silos in one place, which a consortium may not do.
    Centralized,
    /// By the mask that the silos agree on.
    Federated,
}

/// Which text the silos have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Each its own; silo i has text i, modulo their number.
    Different,
    /// All draw from all texts.
    Identical,
}

/// When ballots are agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Once, on the whole model.
    OneShot,
    /// Block by block; each next block is measured behind the agreed masks.
    Iterative,
}

/// What becomes of the weights that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// Nothing.
    None,
    /// Each is multiplied by the share of silos that kept it.
    Support,
}

/// The silos that a pruned model comes from, and how they prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silos {
    /// How many.
    pub silos: usize,
    /// With which text.
    pub split: Split,
    /// Calibration windows of each.
    pub samples: usize,
    /// Fraction pruned.
    pub sparsity: Sparsity,
    /// Scoring rule.
    pub pruner: Pruner,
    /// Comparison group of each silo.
    pub local_group: Group,
}

/// How ballots become one mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Together {
    /// Comparison group of the global mask.
    pub global_group: Group,
    /// What becomes of the weights that stay.
    pub scaling: Scaling,
    /// When ballots are agreed on.
    pub strategy: Strategy,
}

/// One evaluated model, or the mean of one model for each silo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How it came about.
    pub method: Method,
    /// From whom; nobody for [`Method::Dense`].
    pub from: Option<Silos>,
    /// How their ballots became one mask; for [`Method::Federated`] only.
    pub together: Option<Together>,
    /// The seed that the windows were drawn with; none for [`Method::Dense`].
    pub seed: Option<u64>,
    /// e^(mean over windows of the mean token loss); for [`Method::Local`] the mean over silos.
    pub perplexity: f64,
    /// Least and largest over the silos; for [`Method::Local`] only.
    pub perplexity_range: Option<(f64, f64)>,
    /// Bytes of the ballots that one silo sends, all heights together, mean over the silos; [`Method::Federated`] only.
    pub ballot_bytes: Option<f64>,
    /// The mask; none for [`Method::Dense`] and [`Method::Local`].
    pub mask_root: Option<Digest>,
}

/// One prunable matrix in a [`Profile`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixProfile {
    /// Decoder block, from 0.
    pub block: u32,
    /// What it is, such as `q_proj`.
    pub kind: String,
    /// Share of its weights on which two silos agree whether to prune them, mean over all pairs; 0 to 1.
    pub agreement: f64,
    /// Share of its output's energy that the global mask takes, if its inputs were uncorrelated:
    /// Σ over pruned (W_ij · ‖X_j‖)² / Σ over all, with ‖X_j‖² the mean over the silos; 0 to 1.
    pub energy_lost: f64,
}

/// A one-shot global mask without scaling, matrix by matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// From whom.
    pub from: Silos,
    /// Comparison group of the global mask.
    pub global_group: Group,
    /// The seed of the windows.
    pub seed: u64,
    /// Every prunable matrix, in layout order.
    pub matrices: Vec<MatrixProfile>,
}

/// The model of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Its folder's name, or `bundled`.
    pub name: String,
    /// Content digest.
    pub digest: Digest,
    /// Parameters in all.
    pub parameters: u64,
    /// Those that may be pruned.
    pub prunable_weights: u64,
    /// Bytes of a mask at one bit a weight: what a silo sends in the paper.
    pub packed_bytes: u64,
    /// Decoder blocks.
    pub blocks: usize,
}

/// What perplexity is measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationFacts {
    /// The files, by name.
    pub files: Vec<String>,
    /// Windows.
    pub windows: usize,
    /// Tokens of each.
    pub sequence_tokens: usize,
}

/// What was measured of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelResults {
    /// What was pruned.
    pub model: ModelFacts,
    /// What it was measured on.
    pub evaluation: EvaluationFacts,
    /// Every evaluated model; the dense one is the first.
    pub records: Vec<Record>,
    /// Global masks, matrix by matrix.
    pub profiles: Vec<Profile>,
}

/// Everything that a study measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Name of the study.
    pub study: String,
    /// Program that measured.
    pub program: String,
    /// Names of the silos' texts.
    pub texts: Vec<String>,
    /// Tokens of each calibration window.
    pub sequence_tokens: usize,
    /// The seeds of the windows.
    pub seeds: Vec<u64>,
    /// Whether everything that was planned is here.
    pub complete: bool,
    /// Seconds of computing, over all runs of this study.
    pub seconds: f64,
    /// One for each model.
    pub models: Vec<ModelResults>,
}

/// Columns of `results.csv`.
pub const CSV_HEADER: &str = "study,model,method,silos,split,samples,sequence_tokens,sparsity,pruner,local_group,\
    global_group,scaling,strategy,seed,perplexity,perplexity_min,perplexity_max,ballot_bytes,packed_bytes,mask_root";

impl Results {
    /// The records as comma-separated values; what does not apply is empty.
    pub fn csv(&self) -> String {
        fn field<T: Serialize>(value: Option<T>) -> String {
            match value.map(|value| serde_json::to_value(value)) {
                Some(Ok(serde_json::Value::String(text))) => quoted(&text),
                Some(Ok(value)) if !value.is_null() => value.to_string(),
                _ => String::new(),
            }
        }
        let mut csv = format!("{CSV_HEADER}\n");
        for (model, record) in
            self.models.iter().flat_map(|of| of.records.iter().map(move |record| (&of.model, record)))
        {
            let (from, together) = (record.from.as_ref(), record.together.as_ref());
            let range = record.perplexity_range;
            let fields = [
                quoted(&self.study),
                quoted(&model.name),
                field(Some(record.method)),
                field(from.map(|from| from.silos)),
                field(from.map(|from| from.split)),
                field(from.map(|from| from.samples)),
                self.sequence_tokens.to_string(),
                field(from.map(|from| from.sparsity)),
                field(from.map(|from| from.pruner)),
                field(from.map(|from| from.local_group)),
                field(together.map(|together| together.global_group)),
                field(together.map(|together| together.scaling)),
                field(together.map(|together| together.strategy)),
                field(record.seed),
                record.perplexity.to_string(),
                field(range.map(|(least, _)| least)),
                field(range.map(|(_, largest)| largest)),
                field(record.ballot_bytes),
                model.packed_bytes.to_string(),
                field(record.mask_root),
            ];
            let _ = writeln!(csv, "{}", fields.join(","));
        }
        csv
    }
}

/// A text that may hold commas, as a CSV field (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
