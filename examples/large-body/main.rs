//! Writes a synthetic model and one ballot of half a gigabyte for it, to see how large bodies travel.
//!
//! The model is LLaMA-shaped, all of its weights are zero, and its file is sparse: it takes no room on disk. The ballot
//! is an explicit mask of random bits, half of each row, which nothing compresses.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{MAGIC, VERSION, VoteHeader};
use fedprune_mask::codec;
use fedprune_mask::score::Pruner;
use fedprune_mask::{Group, Sparsity};
use serde_json::{Map, Value, json};

const HIDDEN: u64 = 4096;
const INTERMEDIATE: u64 = 11008;
const VOCABULARY: u64 = 256;

/// What is typed.
#[derive(Parser)]
struct Arguments {
    /// Folder to write into: `model` and `large.ballot`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Decoder blocks; 21 make a ballot of 531 MB.
    #[arg(long, default_value_t = 21)]
    blocks: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let model = arguments.out.join("model");
    std::fs::create_dir_all(&model).with_context(|| format!("cannot create `{}`", model.display()))?;
    write_model(&model, arguments.blocks)?;
    write_ballot(&model, &arguments.out.join("large.ballot"))
}

/// A checkpoint of zeros, with a tokenizer that nobody needs.
fn write_model(folder: &Path, blocks: u64) -> anyhow::Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": blocks, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "torch_dtype": "bfloat16",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).context("cannot write config.json")?;
    let mut tensors = Map::new();
    let mut offset = 0u64;
    let mut add = |name: String, shape: &[u64]| {
        let end = offset + shape.iter().product::<u64>() * 2;
        tensors.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    };
    add("model.embed_tokens.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    add("model.norm.weight".to_owned(), &[HIDDEN]);
    for block in 0..blocks {
        for (name, shape) in [
            ("input_layernorm", [HIDDEN].as_slice()),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.v_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", &[INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, INTERMEDIATE]),
        ] {
            add(format!("model.layers.{block}.{name}.weight"), shape);
        }
    }
    let mut header = Value::Object(tensors).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let path = folder.join("model.safetensors");
    let mut file = std::fs::File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // the weights are a hole
    file.set_len(8 + header.len() as u64 + offset)?;
    Ok(())
}

/// Magnitude votes as explicit bits, byte by byte as `docs/formats.md` has it.
fn write_ballot(model: &Path, path: &Path) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(model)?;
    let layout = checkpoint.layout();
    let header = VoteHeader {
        model: checkpoint.content_digest(&|_| {}),
        layout: layout.digest(),
        pruner: Pruner::MAGNITUDE,
        group: Group::Row,
        sparsity: Sparsity::new(1, 2)?,
        samples: 0,
        sequence_tokens: 0,
    };
    let header = codec::encode(&header);
    let file = std::fs::File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    writer.write_all(MAGIC)?;
    writer.write_all(&VERSION.to_le_bytes())?;
    writer.write_all(&[1])?;
    writer.write_all(&u32::try_from(header.len())?.to_le_bytes())?;
    writer.write_all(&header)?;
    writer.write_all(&vec![2; layout.taps().len()])?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for matrix in layout.matrices() {
        writer.write_all(&[0])?;
        writer.write_all(&matrix.packed_bytes().to_le_bytes())?;
        // a word and its complement, 128 columns: exactly half of each row, whose width they divide
        for _ in 0..matrix.packed_bytes() / 16 {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            writer.write_all(&state.to_le_bytes())?;
            writer.write_all(&(!state).to_le_bytes())?;
        }
    }
    writer.flush()?;
    Ok(())
}
