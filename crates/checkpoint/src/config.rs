//! What the model is: `config.json`, normalised to one form and bounded.
//!
//! Absent fields take the defaults of the Hugging Face configuration class of the same `model_type`,
//! so that a file means here what it means there. What would change the computation in a way that is
//! not implemented (other activations, quantised weights, experts, windows on some layers only) is
//! refused by name, never ignored.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{CheckpointError, reading, shorten};
use crate::rope::{self, Rope};

/// Largest `config.json` read, in bytes; real ones have a few kilobytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most decoder blocks; their tensors keep within the bounds of a header and of a layout.
pub const MAX_BLOCKS: usize = 1 << 12;
/// Most features of any activation (hidden, intermediate, all heads together).
pub const MAX_FEATURES: usize = 1 << 20;
/// Most attention heads, and most dimensions of one.
pub const MAX_HEADS: usize = 1 << 14;
/// Most entries of the vocabulary.
pub const MAX_VOCABULARY: usize = 1 << 24;
/// Most positions.
pub const MAX_POSITIONS: usize = 1 << 31;
/// Most end-of-sequence tokens kept.
const MAX_EOS_TOKENS: usize = 64;

/// The supported architectures, by their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelType {
    /// LLaMA 1 to 3, SmolLM2 and everything that reuses the type.
    Llama,
    /// Mistral: LLaMA with an attention window on every layer, or none.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on the queries and keys of each head.
    Qwen3,
}

impl ModelType {
    /// Every supported type.
    pub const ALL: [ModelType; 4] = [ModelType::Llama, ModelType::Mistral, ModelType::Qwen2, ModelType::Qwen3];

    /// As in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            ModelType::Llama => "llama",
            ModelType::Mistral => "mistral",
            ModelType::Qwen2 => "qwen2",
            ModelType::Qwen3 => "qwen3",
        }
    }

    /// All names, for messages.
    pub(crate) fn list() -> String {
        Self::ALL.map(|model_type| format!("`{model_type}`")).join(", ")
    }
}

impl fmt::Display for ModelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which of the attention projections have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionBias {
    /// None of them.
    None,
    /// q, k and v: always so in Qwen2.
    Qkv,
    /// All four: `attention_bias` of LLaMA and Qwen3.
    Qkvo,
}

/// A checked model configuration.
///
/// Every number is within the bounds of this module, no size is zero, `key_value_heads` divides
/// `attention_heads`, and `head_dim` is even, so that products of any two sizes fit 64 bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Architecture.
    pub model_type: ModelType,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the gated MLP.
    pub intermediate_size: usize,
    /// Decoder blocks (`num_hidden_layers`).
    pub blocks: usize,
    /// Query heads.
    pub attention_heads: usize,
    /// Key and value heads, each shared by `attention_heads / key_value_heads` query heads.
    pub key_value_heads: usize,
    /// Dimensions of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// ε of every RMS norm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Longest sequence, in tokens, that the model says it was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding; a stored `lm_head.weight` is then not used.
    pub tie_word_embeddings: bool,
    /// Biases of the attention projections.
    pub attention_bias: AttentionBias,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head (Qwen3).
    pub query_key_norm: bool,
    /// Attention window in tokens when one is active, on every layer alike: a query sees itself and the
    /// `sliding_window - 1` tokens before it.
    pub sliding_window: Option<usize>,
    /// Beginning-of-sequence token; not checked against the vocabulary.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence tokens, possibly none; not checked against the vocabulary.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`] when the file is missing, too large, no JSON object, or describes a model that
    /// is not supported.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = read_bounded(path, MAX_CONFIG_BYTES)?;
        Self::parse(path, &bytes)
    }

    /// Checks the contents of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let map: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        let fields = Fields { path, prefix: "", map: &map };
        let model_type = model_type(&fields)?;
        refuse_unsupported(&fields)?;

        let hidden_size = fields.size("hidden_size", MAX_FEATURES)?;
        let intermediate_size = fields.size("intermediate_size", MAX_FEATURES)?;
        let blocks = fields.size("num_hidden_layers", MAX_BLOCKS)?;
        let attention_heads = fields.size("num_attention_heads", MAX_HEADS)?;
        let vocab_size = fields.size("vocab_size", MAX_VOCABULARY)?;
        let key_value_heads = key_value_heads(&fields, model_type, attention_heads)?;
        let head_dim = head_dim(&fields, model_type, hidden_size, attention_heads)?;
        if attention_heads * head_dim > MAX_FEATURES {
            return Err(fields.bad(
                "head_dim",
                format!("makes {attention_heads} heads of {head_dim} dimensions, more than {MAX_FEATURES} together"),
                RESTORE,
            ));
        }

        let max_position_embeddings = match fields.optional_size("max_position_embeddings", MAX_POSITIONS)? {
            Some(positions) => positions,
            None => match model_type {
                ModelType::Llama => 2048,
                ModelType::Mistral => 131_072,
                ModelType::Qwen2 | ModelType::Qwen3 => 32_768,
            },
        };
        let rms_norm_eps = fields.float("rms_norm_eps")?.unwrap_or(1e-6);
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(fields.bad("rms_norm_eps", format!("is {rms_norm_eps}, not between 0 and 1"), RESTORE));
        }
        let attention_bias = match model_type {
            ModelType::Qwen2 => AttentionBias::Qkv,
            ModelType::Llama | ModelType::Qwen3 if fields.flag("attention_bias")? => AttentionBias::Qkvo,
            _ => AttentionBias::None,
        };
        Ok(Self {
            model_type,
            hidden_size,
            intermediate_size,
            blocks,
            attention_heads,
            key_value_heads,
            head_dim,
            vocab_size,
            rms_norm_eps,
            rope: rope::parse(&fields, max_position_embeddings)?,
            max_position_embeddings,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias,
            mlp_bias: model_type == ModelType::Llama && fields.flag("mlp_bias")?,
            query_key_norm: model_type == ModelType::Qwen3,
            sliding_window: sliding_window(&fields, model_type, blocks)?,
            bos_token_id: fields.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: fields.tokens("eos_token_id")?,
        })
    }

    /// Features of all query heads together: the input width of `o_proj`.
    pub fn query_features(&self) -> usize {
        self.attention_heads * self.head_dim
    }

    /// Features of all key (or value) heads together.
    pub fn key_value_features(&self) -> usize {
        self.key_value_heads * self.head_dim
    }
}

/// Reads a file whole unless it is larger than `limit` bytes or no regular file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    // A pipe or device would block or never end; what is not a regular file is not opened.
    let metadata = std::fs::metadata(path).map_err(reading("read", path))?;
    if !metadata.is_file() {
        return Err(reading("read", path)(std::io::Error::other("it is not a regular file")));
    }
    if metadata.len() > limit {
        // nothing is read, let alone allocated, for a size that is too large already
        return Err(CheckpointError::TooLarge { path: path.to_owned(), bytes: metadata.len(), limit });
    }
    let file = File::open(path).map_err(reading("read", path))?;
    let mut bytes = Vec::new();
    // it may have grown since
    file.take(limit + 1).read_to_end(&mut bytes).map_err(reading("read", path))?;
    if bytes.len() as u64 > limit {
        let bytes = metadata.len().max(bytes.len() as u64);
        return Err(CheckpointError::TooLarge { path: path.to_owned(), bytes, limit });
    }
    Ok(bytes)
}

const RESTORE: &str = "restore the model's own `config.json`";

fn model_type(fields: &Fields<'_>) -> Result<ModelType, CheckpointError> {
    let found = match fields.map.get("model_type") {
        Some(Value::String(name)) => match ModelType::ALL.into_iter().find(|known| known.name() == name) {
            Some(known) => return Ok(known),
            None => shorten(name),
        },
        Some(other) => shorten(&other.to_string()),
        None => "(absent)".to_owned(),
    };
    Err(CheckpointError::UnknownModelType { path: fields.path.to_owned(), found })
}

/// What a supported `model_type` may be combined with, but is not implemented here.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), CheckpointError> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.bad(
            "quantization_config",
            "says that the weights are quantised",
            "use the unquantised checkpoint (BF16, F16 or F32)",
        ));
    }
    for field in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if fields.get(field).is_some() {
            return Err(fields.bad(
                field,
                "says that this is a mixture of experts",
                format!("only dense models can be pruned: {}", ModelType::list()),
            ));
        }
    }
    match fields.get("hidden_act") {
        None => Ok(()),
        // Both names stand for x·sigmoid(x) in the Hugging Face table of activations.
        Some(Value::String(name)) if name == "silu" || name == "swish" => Ok(()),
        Some(other) => Err(fields.bad(
            "hidden_act",
            format!("is {}", shorten(&other.to_string())),
            "only models with the activation `silu` can be pruned",
        )),
    }
}

fn key_value_heads(fields: &Fields<'_>, model_type: ModelType, heads: usize) -> Result<usize, CheckpointError> {
    const FIELD: &str = "num_key_value_heads";
    // An explicit null means one per query head; absence means the default of the configuration class.
    let groups = match (fields.optional_size(FIELD, MAX_HEADS)?, model_type) {
        (Some(groups), _) => groups,
        (None, ModelType::Llama) => heads,
        (None, _) if fields.map.contains_key(FIELD) => heads,
        (None, ModelType::Mistral) => 8,
        (None, ModelType::Qwen2 | ModelType::Qwen3) => 32,
    };
    if !heads.is_multiple_of(groups) {
        return Err(fields.bad(FIELD, format!("is {groups}, which does not divide {heads} attention heads"), RESTORE));
    }
    Ok(groups)
}

fn head_dim(
    fields: &Fields<'_>,
    model_type: ModelType,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, CheckpointError> {
    let head_dim = match (fields.optional_size("head_dim", MAX_HEADS)?, model_type) {
        (Some(head_dim), _) => head_dim,
        (None, ModelType::Qwen3) => 128,
        (None, _) if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        (None, _) => {
            let problem = format!("is {hidden_size}, not a multiple of {heads} attention heads");
            return Err(fields.bad(
                "hidden_size",
                problem,
                "give `head_dim`, or restore the model's own `config.json`",
            ));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(fields.bad("head_dim", format!("is {head_dim}; rotary positions need an even one"), RESTORE));
    }
    Ok(head_dim)
}

/// The window that is active on every layer; partial windows are refused.
fn sliding_window(fields: &Fields<'_>, model_type: ModelType, blocks: usize) -> Result<Option<usize>, CheckpointError> {
    const FIELD: &str = "sliding_window";
    let default = (!fields.map.contains_key(FIELD)).then_some(4096);
    match model_type {
        ModelType::Llama => Ok(None),
        // The class's default is active even where the file does not mention it; null switches it off.
        ModelType::Mistral => Ok(fields.optional_size(FIELD, MAX_POSITIONS)?.or(default)),
        ModelType::Qwen2 | ModelType::Qwen3 => {
            let window = match fields.flag("use_sliding_window")? {
                true => fields.optional_size(FIELD, MAX_POSITIONS)?.or(default),
                false => None,
            };
            let sliding = sliding_blocks(fields, window.is_some(), blocks)?;
            match (sliding, window) {
                (0, _) => Ok(None),
                (all, Some(window)) if all == blocks => Ok(Some(window)),
                (_, None) => Err(fields.bad(
                    "layer_types",
                    "asks for windows, but no `sliding_window` is active",
                    "set `use_sliding_window` and `sliding_window`, or restore the model's own `config.json`",
                )),
                (some, Some(_)) => Err(fields.bad(
                    if fields.get("layer_types").is_some() { "layer_types" } else { "max_window_layers" },
                    format!("gives {some} of {blocks} layers an attention window"),
                    "only models whose layers all have the window, or none, can be pruned",
                )),
            }
        }
    }
}

/// How many layers have a window: by `layer_types`, else those from `max_window_layers` on.
fn sliding_blocks(fields: &Fields<'_>, window: bool, blocks: usize) -> Result<usize, CheckpointError> {
    let Some(layer_types) = fields.get("layer_types") else {
        let first = fields.count("max_window_layers", MAX_POSITIONS)?.unwrap_or(28);
        return Ok(if window { blocks.saturating_sub(first) } else { 0 });
    };
    let entries = layer_types.as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.len() != blocks {
        let problem = format!("has {} entries for {blocks} layers", entries.len());
        return Err(fields.bad("layer_types", problem, RESTORE));
    }
    let mut sliding = 0;
    for entry in entries {
        match entry.as_str() {
            Some("full_attention") => {}
            Some("sliding_attention") => sliding += 1,
            _ => {
                let problem = format!("contains {}", shorten(&entry.to_string()));
                return Err(fields.bad("layer_types", problem, "only full and sliding attention can be pruned"));
            }
        }
    }
    Ok(sliding)
}

/// One JSON object of `config.json` with bounded, named access.
pub(crate) struct Fields<'a> {
    pub path: &'a Path,
    /// Name of this object with a trailing dot, or nothing at the top.
    pub prefix: &'static str,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The value unless absent or null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub fn bad(&self, field: &str, problem: impl Into<String>, remedy: impl Into<String>) -> CheckpointError {
        CheckpointError::Config {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn shown(value: &Value) -> String {
        format!("is {}", shorten(&value.to_string()))
    }

    /// A size that must be there, in 1..=`most`.
    pub fn size(&self, field: &str, most: usize) -> Result<usize, CheckpointError> {
        self.optional_size(field, most)?.ok_or_else(|| self.bad(field, "is missing", RESTORE))
    }

    /// A size in 1..=`most`, unless absent or null.
    pub fn optional_size(&self, field: &str, most: usize) -> Result<Option<usize>, CheckpointError> {
        match self.count(field, most)? {
            Some(0) => Err(self.bad(field, "is 0", format!("it must be between 1 and {most}; {RESTORE}"))),
            other => Ok(other),
        }
    }

    /// An integer in 0..=`most`, unless absent or null.
    pub fn count(&self, field: &str, most: usize) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number <= most => Ok(Some(number)),
            _ => Err(self.bad(
                field,
                Self::shown(value),
                format!("it must be a whole number of at most {most}; {RESTORE}"),
            )),
        }
    }

    /// A finite number, unless absent or null.
    pub fn float(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.bad(field, Self::shown(value), format!("it must be a number; {RESTORE}"))),
        }
    }

    /// A boolean, false when absent or null: the default of every flag that is read.
    pub fn flag(&self, field: &str) -> Result<bool, CheckpointError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.bad(field, Self::shown(other), format!("it must be true or false; {RESTORE}"))),
        }
    }

    /// One token id or a list of them; negative ids mean "none" in old files.
    fn tokens(&self, field: &str) -> Result<Vec<u32>, CheckpointError> {
        let values = match self.get(field) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        if values.len() > MAX_EOS_TOKENS {
            let problem = format!("lists {} tokens, more than {MAX_EOS_TOKENS}", values.len());
            return Err(self.bad(field, problem, RESTORE));
        }
        let mut tokens = Vec::with_capacity(values.len());
        for value in values {
            match value.as_i64() {
                Some(number) if number < 0 => {}
                Some(number) if u32::try_from(number).is_ok() => tokens.push(number as u32),
                _ => return Err(self.bad(field, Self::shown(value), format!("it must be a token id; {RESTORE}"))),
            }
        }
        Ok(tokens)
    }
}
