//! Resident memory stays bounded while a checkpoint much larger than the bound is digested and copied.
//!
//! The peak is that of the whole process, so this file has one test.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::io::Write;

use fedprune_checkpoint::{Checkpoint, write_pruned};
use serde_json::{Map, json};

const MIB: u64 = 1 << 20;

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// Four blocks of 8 MiB matrices with an embedding of 64 MiB: about 290 MiB, sparse on disk.
fn sparse(folder: &std::path::Path) -> u64 {
    let (hidden, inner, vocabulary, blocks) = (2048, 2048, 16_384, 4);
    let config = json!({ "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": blocks, "num_attention_heads": 16, "vocab_size": vocabulary, "tie_word_embeddings": true });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for block in 0..blocks {
        for name in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"] {
            tensors.push((format!("model.layers.{block}.{name}_proj.weight"), vec![hidden, hidden]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{block}.{name}.weight"), vec![hidden]));
        }
    }
    let (mut header, mut offset) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * 2;
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + offset as u64).unwrap();
    offset as u64
}

#[test]
fn digest_and_copy_hold_a_matrix_at_a_time() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("model");
    fs::create_dir(&folder).unwrap();
    let bytes = sparse(&folder);
    assert!(bytes > 280 * MIB);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let before = status_bytes("VmRSS");

    let digest = checkpoint.content_digest(&|_| {});
    let digested = status_bytes("VmHWM") - before;
    assert!(digested < 32 * MIB, "the digest held {digested} bytes");

    let out = temporary.path().join("out");
    let written = write_pruned(&checkpoint, &out, &mut |_, _| Ok(()), &[], &|_| {}).unwrap();
    assert_eq!(written.content_digest, digest);
    let copied = status_bytes("VmHWM") - before;
    assert!(copied < 48 * MIB, "the copy held {copied} bytes");

    // The measure can see what it should see: reading without releasing shows up, and releasing undoes it.
    let read =
        |index: usize| checkpoint.matrix(index).bytes().iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>();
    assert_eq!((0..28).map(read).sum::<u64>(), 0);
    let held = status_bytes("VmRSS") - before;
    assert!(held > 200 * MIB, "only {held} bytes");
    for block in 0..3 {
        checkpoint.release_block(block);
    }
    let held = status_bytes("VmRSS").saturating_sub(before);
    assert!(held < 72 * MIB, "{held} bytes after releasing three of four blocks");
    checkpoint.release_all();
    let held = status_bytes("VmRSS").saturating_sub(before);
    assert!(held < 16 * MIB, "{held} bytes after releasing everything");
}
