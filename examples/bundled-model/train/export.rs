//! The trained network as a Hugging Face folder: `config.json`, `generation_config.json`,
//! `model.safetensors` in bf16, `tokenizer_config.json`. The vocabulary, `tokenizer.json`, is
//! already there.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::network::{Config, Network};
use crate::vocabulary::{BEGIN, BEGIN_ID, END, END_ID};

/// Rounds every weight to the nearest bf16, in place: the network is then the one the file holds.
///
/// Errors: those of `candle`.
pub fn round_to_bf16(network: &Network) -> Result<()> {
    for parameter in network.parameters() {
        let rounded = parameter.var.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
        parameter.var.set(&rounded)?;
    }
    Ok(())
}

/// Sets to zero, in each row of each matrix of the decoder blocks, the half of the weights with the
/// smallest magnitude: the crudest pruning, to see that there is something to lose.
///
/// Errors: those of `candle`.
pub fn halve_by_magnitude(network: &Network) -> Result<()> {
    for parameter in network.parameters().iter().filter(|p| p.is_block_matrix()) {
        let mut rows = parameter.var.to_vec2::<f32>()?;
        for row in &mut rows {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs()));
            order[..row.len() / 2].iter().for_each(|&column| row[column] = 0.0);
        }
        let (out, inner) = parameter.var.dims2()?;
        let weights = Tensor::from_vec(rows.concat(), (out, inner), parameter.var.device())?;
        parameter.var.set(&weights)?;
    }
    Ok(())
}

/// Writes the folder's files into `dir`; returns the bytes of `model.safetensors`.
///
/// Errors: a file that cannot be written.
pub fn write(network: &Network, dir: &Path) -> Result<u64> {
    let config = network.config();
    write_json(&dir.join("config.json"), &config_json(config))?;
    write_json(
        &dir.join("generation_config.json"),
        &json!({ "bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "do_sample": true }),
    )?;
    write_json(
        &dir.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "clean_up_tokenization_spaces": false,
            "model_max_length": config.max_position_embeddings,
        }),
    )?;
    let path = dir.join("model.safetensors");
    write_weights(network, &path).with_context(|| format!("writing `{}`", path.display()))?;
    Ok(std::fs::metadata(&path)?.len())
}

fn config_json(config: &Config) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim(),
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": null,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": true,
        "dtype": "bfloat16",
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("writing `{}`", path.display()))
}

fn write_weights(network: &Network, path: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for parameter in network.parameters() {
        let weights = parameter.var.flatten_all()?.to_dtype(DType::BF16)?.to_vec1::<bf16>()?;
        let bytes: Vec<u8> = weights.into_iter().flat_map(bf16::to_le_bytes).collect();
        tensors.push((&parameter.name, parameter.var.dims().to_vec(), bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    // Hugging Face's loader asks which framework wrote the file.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)?;
    Ok(())
}
