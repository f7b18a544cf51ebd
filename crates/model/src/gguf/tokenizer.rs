//! `tokenizer.json` from a GGUF file, where the file says all that is in it.
//!
//! Some files carry the model's own (`tokenizer.huggingface.json`). Of the others, a byte-level BPE whose text is cut as
//! GPT-2 cuts it is described completely by its tokens, merges and kinds of tokens. What other models cut is known to
//! llama.cpp by a name only, in code: a tokenizer that is nearly right would give other tokens, so none is made.

use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, json};

use super::config::Metadata;
use super::shown;

/// Most tokens, and merges.
const MAX_TOKENS: usize = 1 << 20;
/// `LLAMA_TOKEN_TYPE_CONTROL` and `…_USER_DEFINED` of llama.cpp.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// The tokenizer's bytes and where they come from, or why there is none.
pub(super) fn tokenizer<'a>(metadata: &Metadata<'a>) -> Result<(Vec<u8>, String), String> {
    if let Some(text) = metadata.text("tokenizer.huggingface.json") {
        return match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => Ok((text.as_bytes().to_vec(), "tokenizer.huggingface.json of the file".to_owned())),
            Err(error) => Err(format!("the file's `tokenizer.huggingface.json` is damaged: {error}")),
        };
    }
    let model = metadata.text("tokenizer.ggml.model").ok_or("the file describes none")?;
    let cut = metadata.text("tokenizer.ggml.pre").unwrap_or("default");
    if model != "gpt2" || !matches!(cut, "gpt-2" | "default") {
        return Err(format!(
            "the file's is `{}`, cut as `{}`, of which only a `gpt2` cut as `gpt-2` is described completely",
            shown(model),
            shown(cut)
        ));
    }
    let texts = |key: &str| -> Result<Vec<&'a str>, String> {
        let values = metadata.array(key).ok_or_else(|| format!("the file has no `{key}`"))?;
        if values.len() > MAX_TOKENS {
            return Err(format!("`{key}` has more than {MAX_TOKENS} entries"));
        }
        let text = |value: &'a Value| if let Value::String(text) = value { Some(text.as_str()) } else { None };
        values.iter().map(text).collect::<Option<Vec<&str>>>().ok_or_else(|| format!("`{key}` is no list of texts"))
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let merges = texts("tokenizer.ggml.merges")?;
    let kinds = metadata.array("tokenizer.ggml.token_type").unwrap_or_default();
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), json!(id)).is_some() {
            return Err(format!("the token `{}` is there twice", shown(token)));
        }
    }
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let kind = match kind {
            Value::I32(kind) => *kind,
            Value::U32(kind) => i32::try_from(*kind).unwrap_or(0),
            _ => return Err("`tokenizer.ggml.token_type` is no list of numbers".to_owned()),
        };
        if matches!(kind, CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            }));
        }
    }
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": post_processor(metadata, &tokens)?,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    });
    let bytes = serde_json::to_vec(&json).map_err(|error| error.to_string())?;
    Ok((bytes, "the file's tokens and merges".to_owned()))
}

/// What puts the token of the beginning before each text, if the file says so.
fn post_processor(metadata: &Metadata<'_>, tokens: &[&str]) -> Result<serde_json::Value, String> {
    if !matches!(metadata.0.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))) {
        return Ok(json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }));
    }
    let id = match metadata.0.get("tokenizer.ggml.bos_token_id") {
        Some(Value::U32(id)) => *id,
        _ => return Err("the file wants a token before each text, and does not say which".to_owned()),
    };
    let token = tokens.get(id as usize).ok_or("the token of the beginning is beyond the vocabulary")?;
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = |name: &str, kind: u32| json!({ "Sequence": { "id": name, "type_id": kind } });
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A", 0)],
        "pair": [special, sequence("A", 0), json!({ "SpecialToken": { "id": token, "type_id": 1 } }), sequence("B", 1)],
        "special_tokens": { *token: { "id": token, "ids": [id], "tokens": [token] } },
    }))
}
