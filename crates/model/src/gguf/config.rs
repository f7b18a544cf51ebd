//! `config.json` from a GGUF file's metadata.
//!
//! Keys are those of llama.cpp's `gguf-py/gguf/constants.py`. Numbers that are F32 in the file become the shortest
//! decimal that is that F32: 0.00001, as the model's authors wrote it, and not 0.000009999999747378752.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;

use super::{GgufError, Heads, shown};

/// Most bytes of a `config.json` that is given.
pub(super) const MAX_BYTES: u64 = fedprune_checkpoint::config::MAX_CONFIG_BYTES;

/// What a file says of its model.
pub(super) struct Metadata<'a>(pub(super) &'a HashMap<String, Value>);

impl<'a> Metadata<'a> {
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.0.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn array(&self, key: &str) -> Option<&'a [Value]> {
        match self.0.get(key) {
            Some(Value::Array(values)) => Some(values),
            _ => None,
        }
    }

    /// A count, of whatever width; none if it is not there.
    fn count(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let wrong =
            || GgufError::Metadata { key: key.to_owned(), why: "is no number that a model can have".to_owned() };
        let number = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::U8(number)) => u64::from(*number),
            Some(Value::U16(number)) => u64::from(*number),
            Some(Value::U32(number)) => u64::from(*number),
            Some(Value::U64(number)) => *number,
            Some(Value::I32(number)) => u64::try_from(*number).map_err(|_| wrong())?,
            Some(Value::I64(number)) => u64::try_from(*number).map_err(|_| wrong())?,
            // one for each block, of models whose blocks differ
            Some(_) => return Err(wrong()),
        };
        usize::try_from(number).ok().filter(|number| u32::try_from(*number).is_ok()).map(Some).ok_or_else(wrong)
    }

    fn needed(&self, key: &str) -> Result<usize, GgufError> {
        let missing =
            || GgufError::Metadata { key: key.to_owned(), why: "is missing in the file's metadata".to_owned() };
        self.count(key)?.filter(|count| *count > 0).ok_or_else(missing)
    }

    fn decimal(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let number = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::F32(number)) => number.to_string().parse::<f64>().ok(),
            Some(Value::F64(number)) => Some(*number),
            Some(_) => None,
        };
        let wrong = || GgufError::Metadata { key: key.to_owned(), why: "is no finite number".to_owned() };
        number.filter(|number| number.is_finite()).map(Some).ok_or_else(wrong)
    }
}

/// How many heads there are.
pub(super) fn heads(metadata: &Metadata<'_>) -> Result<Heads, GgufError> {
    let queries = metadata.needed("llama.attention.head_count")?;
    let keys = metadata.count("llama.attention.head_count_kv")?.unwrap_or(queries);
    Ok(Heads { queries, keys })
}

/// The configuration, with everything in it that the forward pass reads.
pub(super) fn config(metadata: &Metadata<'_>, content: &Content) -> Result<Vec<u8>, GgufError> {
    let Heads { queries, keys } = heads(metadata)?;
    let hidden = metadata.needed("llama.embedding_length")?;
    let head_dim = metadata.count("llama.attention.key_length")?.unwrap_or(hidden / queries);
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        if metadata.count(key)?.is_some_and(|found| found != head_dim) {
            let why = format!("is not the {head_dim} dimensions of a head, and no config.json of `llama` says that");
            return Err(GgufError::Metadata { key: key.to_owned(), why });
        }
    }
    if metadata.count("llama.expert_count")?.is_some_and(|experts| experts > 0) {
        let why = "is not 0: experts are not supported".to_owned();
        return Err(GgufError::Metadata { key: "llama.expert_count".to_owned(), why });
    }
    let scaling = match metadata.text("llama.rope.scaling.type") {
        None | Some("none") => json!(null),
        Some("linear") => {
            let factor = metadata.decimal("llama.rope.scaling.factor")?.unwrap_or(1.0);
            json!({ "rope_type": "linear", "factor": factor })
        }
        Some(other) => {
            let why = format!("is `{}`, which is not imported", shown(other));
            return Err(GgufError::Metadata { key: "llama.rope.scaling.type".to_owned(), why });
        }
    };
    let embedding = content.tensor_infos.get("token_embd.weight");
    let vocabulary = embedding.and_then(|info| info.shape.dims().first().copied()).unwrap_or(0);
    let has_bias = |part: &str| content.tensor_infos.contains_key(&format!("blk.0.{part}.bias"));
    let epsilon_key = "llama.attention.layer_norm_rms_epsilon";
    let epsilon = metadata.decimal(epsilon_key)?.ok_or_else(|| GgufError::Metadata {
        key: epsilon_key.to_owned(),
        why: "is missing in the file's metadata".to_owned(),
    })?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata.needed("llama.feed_forward_length")?,
        "num_hidden_layers": metadata.needed("llama.block_count")?,
        "num_attention_heads": queries,
        "num_key_value_heads": keys,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": metadata.needed("llama.context_length")?,
        "rms_norm_eps": epsilon,
        "rope_theta": metadata.decimal("llama.rope.freq_base")?.unwrap_or(10_000.0),
        "rope_scaling": scaling,
        "attention_bias": has_bias("attn_q"),
        "mlp_bias": has_bias("ffn_gate"),
        "tie_word_embeddings": !content.tensor_infos.contains_key("output.weight"),
        "bos_token_id": metadata.count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": metadata.count("tokenizer.ggml.eos_token_id")?,
    });
    let mut text = serde_json::to_vec_pretty(&config).unwrap_or_default(); // a value of plain parts is always written
    text.push(b'\n');
    Ok(text)
}
