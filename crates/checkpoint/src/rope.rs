//! How positions are rotated: the two forms of `config.json` read into one.
//!
//! Older files have `rope_theta` at the top and scaling in `rope_scaling` (its kind in `rope_type`, or
//! `type` before that); newer ones have both in `rope_parameters`. Where a file has several, they are
//! taken as `transformers` does: `rope_scaling` before `rope_parameters`, and inside either before the top.

use serde::Serialize;
use serde_json::Value;

use crate::config::{Fields, MAX_POSITIONS};
use crate::error::{CheckpointError, shorten};

/// θ when no file says otherwise: the same in all four architectures.
const DEFAULT_THETA: f64 = 10_000.0;
/// Largest θ and scaling factor accepted; real ones end near 1e9 and 1e3.
const MAX_THETA: f64 = 1e15;
const MAX_FACTOR: f64 = 1e9;

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the frequencies: `theta^(-2i/head_dim)`.
    pub theta: f64,
    /// What is done to the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// LLaMA 3.1: low frequencies divided by the factor, high ones kept, those between interpolated.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are fully scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept; more than
        /// `low_freq_factor`.
        high_freq_factor: f64,
        /// Positions of the original training, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// Reads either form; `max_position_embeddings` stands in for the original length where a file omits it.
pub(crate) fn parse(top: &Fields<'_>, max_position_embeddings: usize) -> Result<Rope, CheckpointError> {
    let inner = match object(top, "rope_scaling", "rope_scaling.")? {
        Some(fields) => Some(fields),
        None => object(top, "rope_parameters", "rope_parameters.")?,
    };
    let empty = serde_json::Map::new();
    let inner = inner.unwrap_or(Fields { path: top.path, prefix: "rope_parameters.", map: &empty });

    if let Some(field) = inner.map.iter().find_map(|(field, value)| value.is_object().then_some(field)) {
        let problem = "is an object: rotary parameters that differ between layers";
        return Err(inner.bad(&shorten(field), problem, "only models with one set for all layers can be pruned"));
    }
    for fields in [&inner, top] {
        if fields.float("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            let problem = "is not 1: only a part of each head is rotated";
            return Err(fields.bad("partial_rotary_factor", problem, "only fully rotated heads can be pruned"));
        }
    }

    let (theta, at) = match (inner.float("rope_theta")?, top.float("rope_theta")?) {
        (Some(theta), _) => (theta, &inner),
        (None, Some(theta)) => (theta, top),
        (None, None) => (DEFAULT_THETA, top),
    };
    if !(theta > 1.0 && theta <= MAX_THETA) {
        let remedy = "it must be more than 1 and at most 1e15; restore the model's own `config.json`";
        return Err(at.bad("rope_theta", format!("is {theta}"), remedy));
    }
    Ok(Rope { theta, scaling: scaling(top, &inner, max_position_embeddings)? })
}

/// The object in `field`; an empty one counts as absent, as it does in `transformers`.
fn object<'a>(
    top: &Fields<'a>,
    field: &'static str,
    prefix: &'static str,
) -> Result<Option<Fields<'a>>, CheckpointError> {
    match top.get(field) {
        None => Ok(None),
        Some(Value::Object(map)) if map.is_empty() => Ok(None),
        Some(Value::Object(map)) => Ok(Some(Fields { path: top.path, prefix, map })),
        Some(other) => Err(top.bad(
            field,
            format!("is {}", shorten(&other.to_string())),
            "it must be an object or null; restore the model's own `config.json`",
        )),
    }
}

fn scaling(
    top: &Fields<'_>,
    inner: &Fields<'_>,
    max_position_embeddings: usize,
) -> Result<RopeScaling, CheckpointError> {
    let field = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = match inner.get(field) {
        None => "default",
        Some(Value::String(kind)) => kind,
        Some(_) => "(not a string)",
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor(inner, "factor", 1.0)? }),
        "llama3" => {
            let low_freq_factor = factor(inner, "low_freq_factor", f64::MIN_POSITIVE)?;
            let high_freq_factor = factor(inner, "high_freq_factor", f64::MIN_POSITIVE)?;
            if high_freq_factor <= low_freq_factor {
                let problem = format!("is {high_freq_factor}, not more than `low_freq_factor` {low_freq_factor}");
                return Err(inner.bad("high_freq_factor", problem, "restore the model's own `config.json`"));
            }
            const ORIGINAL: &str = "original_max_position_embeddings";
            let original = match top.optional_size(ORIGINAL, MAX_POSITIONS)? {
                Some(original) => original,
                None => inner.optional_size(ORIGINAL, MAX_POSITIONS)?.unwrap_or(max_position_embeddings),
            };
            Ok(RopeScaling::Llama3 {
                factor: factor(inner, "factor", 1.0)?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            })
        }
        other => Err(inner.bad(
            field,
            format!("is `{}`", shorten(other)),
            "supported are `default`, `linear` and `llama3`; use a checkpoint with one of them",
        )),
    }
}

fn factor(fields: &Fields<'_>, field: &str, least: f64) -> Result<f64, CheckpointError> {
    match fields.float(field)? {
        Some(factor) if factor >= least && factor <= MAX_FACTOR => Ok(factor),
        Some(factor) => Err(fields.bad(
            field,
            format!("is {factor}"),
            "it is out of range for a scaling factor; restore the model's own `config.json`",
        )),
        None => Err(fields.bad(field, "is missing", "restore the model's own `config.json`")),
    }
}
