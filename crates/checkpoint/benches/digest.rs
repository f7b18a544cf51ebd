//! The content digest in bytes per second, beside the floors that bound it.
//!
//! The floors: `mapped words` reads every word of the matrices through the mapping on all cores, page faults
//! included, which the digest cannot avoid; `BLAKE3 in memory` hashes the same files where they are resident
//! already. The files are written (or read) first, so that they come from the page cache.
//! `FEDPRUNE_BENCH_MODEL` names another folder than the synthetic checkpoint of about 0.5 GB.

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedprune_checkpoint::Checkpoint;
use rayon::prelude::*;

/// A LLaMA of two wide blocks with a separate head, in bf16, weights from a xorshift generator.
fn synthetic(folder: &Path) {
    const HIDDEN: usize = 2048;
    const INNER: usize = 5632;
    const VOCABULARY: usize = 32_000;
    const BLOCKS: usize = 2;
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": BLOCKS,
        "num_attention_heads": 16, "vocab_size": VOCABULARY,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for block in 0..BLOCKS {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{block}.{name}"), shape.to_vec()));
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj.weight"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj.weight", &[INNER, HIDDEN]);
        add("mlp.up_proj.weight", &[INNER, HIDDEN]);
        add("mlp.down_proj.weight", &[HIDDEN, INNER]);
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
    }
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * 2;
        header.insert(name, serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = std::io::BufWriter::new(fs::File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..offset / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).unwrap();
    }
    file.write_all(&vec![0; offset % 8]).unwrap();
    file.flush().unwrap();
}

fn sum_of_words(bytes: &[u8]) -> u64 {
    let part = |bytes: &[u8]| {
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        words.fold(0u64, u64::wrapping_add)
    };
    bytes.par_chunks(1 << 20).map(part).reduce(|| 0, u64::wrapping_add)
}

fn digest(criterion: &mut Criterion) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = match std::env::var_os("FEDPRUNE_BENCH_MODEL") {
        Some(folder) => PathBuf::from(folder),
        None => {
            synthetic(temporary.path());
            temporary.path().to_owned()
        }
    };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let resident: Vec<Vec<u8>> = checkpoint.shards().map(|path| fs::read(path).unwrap()).collect();
    let names: Vec<String> = checkpoint.layout().matrices().iter().map(|matrix| matrix.name.clone()).collect();
    let matrix_bytes: u64 = names.iter().map(|name| checkpoint.tensor(name).unwrap().bytes.len() as u64).sum();

    let mut group = criterion.benchmark_group("digest");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(checkpoint.digest_bytes()));
    group.bench_function("content digest", |bencher| bencher.iter(|| checkpoint.content_digest(&|_| {})));
    group.throughput(Throughput::Bytes(resident.iter().map(|bytes| bytes.len() as u64).sum()));
    group.bench_function("floor: BLAKE3 in memory", |bencher| {
        bencher.iter(|| {
            let mut hasher = blake3::Hasher::new();
            resident.iter().for_each(|bytes| {
                hasher.update_rayon(bytes);
            });
            hasher.finalize()
        });
    });
    group.throughput(Throughput::Bytes(matrix_bytes));
    group.bench_function("floor: mapped words", |bencher| {
        bencher.iter(|| {
            checkpoint.release_all();
            let sum = |name: &String| sum_of_words(checkpoint.tensor(name).unwrap().bytes);
            black_box(names.iter().map(sum).fold(0, u64::wrapping_add))
        });
    });
    group.finish();
}

criterion_group!(benches, digest);
criterion_main!(benches);
