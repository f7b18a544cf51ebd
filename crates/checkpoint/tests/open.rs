//! Real checkpoints, opened: configuration, tensors, layout, digest.

mod support;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use fedprune_checkpoint::{AttentionBias, Checkpoint, ModelType, RopeScaling};
use fedprune_mask::{DType, Tap};
use serde_json::json;
use support::{FIXTURES, Stored, copied, edit_json, fixture, read_file, write_file};

fn digest(checkpoint: &Checkpoint) -> String {
    checkpoint.content_digest(&|_| {}).to_string()
}

#[test]
fn every_fixture_opens_as_what_it_is() {
    for name in FIXTURES {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let config = checkpoint.config();
        assert_eq!((config.hidden_size, config.intermediate_size, config.blocks), (64, 136, 3), "{name}");
        assert_eq!((config.attention_heads, config.key_value_heads, config.head_dim), (4, 2, 16), "{name}");
        assert_eq!((config.vocab_size, config.max_position_embeddings), (256, 256), "{name}");
        assert_eq!((config.rms_norm_eps, config.sliding_window, config.mlp_bias), (1e-6, None, false), "{name}");
        assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()), "{name}");
        let (model_type, tied, bias) = match name {
            "mistral" => (ModelType::Mistral, false, AttentionBias::None),
            "qwen2" => (ModelType::Qwen2, true, AttentionBias::Qkv),
            "qwen3" => (ModelType::Qwen3, true, AttentionBias::None),
            _ => (ModelType::Llama, name != "llama", AttentionBias::None),
        };
        assert_eq!((config.model_type, config.tie_word_embeddings), (model_type, tied), "{name}");
        assert_eq!((config.attention_bias, config.query_key_norm), (bias, name == "qwen3"), "{name}");
        let (theta, scaling) = match name {
            "llama3-rope-tied" => {
                let original_max_position_embeddings = 64;
                let (factor, low_freq_factor, high_freq_factor) = (8.0, 1.0, 4.0);
                let scaling =
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings };
                (500_000.0, scaling)
            }
            _ => (10_000.0, RopeScaling::None),
        };
        assert_eq!((config.rope.theta, config.rope.scaling), (theta, scaling), "{name}");
        assert_eq!(checkpoint.shards().count(), if name == "mistral" { 4 } else { 1 });
        assert_eq!(checkpoint.unused().count(), 0);
    }
}

#[test]
fn the_layout_is_by_block_then_q_k_v_o_gate_up_down() {
    let checkpoint = Checkpoint::open(&fixture("mistral")).unwrap();
    let matrices = checkpoint.layout().matrices();
    assert_eq!(matrices.len(), 21);
    let expected = [
        ("self_attn.q_proj", Tap::AttentionInput, 64, 64),
        ("self_attn.k_proj", Tap::AttentionInput, 32, 64),
        ("self_attn.v_proj", Tap::AttentionInput, 32, 64),
        ("self_attn.o_proj", Tap::AttentionOutput, 64, 64),
        ("mlp.gate_proj", Tap::MlpInput, 136, 64),
        ("mlp.up_proj", Tap::MlpInput, 136, 64),
        ("mlp.down_proj", Tap::MlpOutput, 64, 136),
    ];
    for (index, matrix) in matrices.iter().enumerate() {
        let (name, tap, rows, columns) = expected[index % 7];
        assert_eq!(matrix.name, format!("model.layers.{}.{name}.weight", index / 7));
        assert_eq!((matrix.block as usize, matrix.tap), (index / 7, tap));
        assert_eq!((matrix.rows, matrix.columns), (rows, columns));
        let view = checkpoint.matrix(index);
        let tensor = checkpoint.tensor(&matrix.name).unwrap();
        assert_eq!(view.bytes(), tensor.bytes);
        assert_eq!(tensor.shape, [view.rows(), view.columns()]);
        assert_eq!((view.dtype(), tensor.dtype), (DType::BF16, DType::BF16));
        assert_eq!(checkpoint.matrix_file(index), tensor.file);
    }
}

/// Every tensor, byte for byte, as the `safetensors` crate reads it.
#[test]
fn tensors_are_what_the_files_hold() {
    for name in FIXTURES {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let (mut elements, mut bytes) = (0, 0);
        for file in checkpoint.shards() {
            for (name, dtype, shape, data) in read_file(file) {
                let tensor = checkpoint.tensor(&name).unwrap();
                assert_eq!((tensor.name, tensor.file), (name.as_str(), file));
                assert_eq!(tensor.dtype.name().to_uppercase(), dtype);
                assert_eq!(tensor.shape, shape);
                assert!(tensor.bytes == data, "{name}");
                elements += shape.iter().product::<usize>() as u64;
                bytes += data.len() as u64;
            }
        }
        assert_eq!((checkpoint.parameters(), checkpoint.bytes()), (elements, bytes));
        assert_eq!(checkpoint.digest_bytes(), bytes);
    }
}

/// Pins the encoding of the digest: whoever changes it changes its domain's version and these lines.
#[test]
fn content_digests_are_pinned() {
    let expected = [
        "9461bd763bd4f81dcaa8eeecab907904d0f03eb336f23a509f73541b8d6f62cc",
        "6bec8136c4abd2c1f1ac62c848185b34d81c1a0ef6dfafe45a85f454eddb4404",
        "dade48a818d25f163c14cceba1471aeade5223c3e82717c12eeee7fb6c9b369f",
        "1f4b092efb10129b2894ba2c42da1fe46e70fa5c8774ae7a9512d06fb88b6448",
        "de0aa5aa572c9f9efc2501d98218d7a47d7ab23d30081de3afc5800cac8a6bf1",
    ];
    for (name, expected) in FIXTURES.into_iter().zip(expected) {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let reported = AtomicU64::new(0);
        let digest = checkpoint.content_digest(&|bytes| {
            reported.fetch_add(bytes, Ordering::Relaxed);
        });
        assert_eq!(digest.to_string(), expected, "{name}");
        assert_eq!(reported.into_inner(), checkpoint.digest_bytes());
        // some of the matrices seen before, in whatever order
        for step in 1..4 {
            let mut along = checkpoint.digest_along();
            (0..checkpoint.layout().matrices().len()).rev().step_by(step).for_each(|index| along.matrix(index));
            assert_eq!(along.finish(&|_| {}).to_string(), expected, "{name}, one of {step} along");
        }
    }
}

/// The digest again, from its description, with nothing shared but BLAKE3.
#[test]
fn content_digest_is_what_its_description_says() {
    let mut tensors: Vec<Stored> =
        Checkpoint::open(&fixture("mistral")).unwrap().shards().flat_map(read_file).collect();
    tensors.sort();
    let mut preimage = b"fedprune checkpoint content v1\0".to_vec();
    preimage.extend((tensors.len() as u64).to_le_bytes());
    for (name, dtype, shape, bytes) in &tensors {
        for text in [name.as_str(), &dtype.to_lowercase()] {
            preimage.extend((text.len() as u32).to_le_bytes());
            preimage.extend(text.as_bytes());
        }
        preimage.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|&dimension| preimage.extend((dimension as u64).to_le_bytes()));
        preimage.extend(blake3::hash(bytes).as_bytes());
    }
    let expected = blake3::hash(&preimage).to_string();
    assert_eq!(digest(&Checkpoint::open(&fixture("mistral")).unwrap()), expected);
}

#[test]
fn resharding_changes_no_digest() {
    let sharded = copied("mistral");
    let mut tensors: Vec<Stored> = sharded.open().shards().flat_map(read_file).collect();
    let expected = digest(&sharded.open());
    tensors.reverse();
    write_file(&sharded.weights(), &tensors); // takes precedence over the index beside it
    let single = sharded.open();
    assert_eq!(single.shards().count(), 1);
    assert_eq!(digest(&single), expected);
    assert_eq!(single.layout(), Checkpoint::open(&fixture("mistral")).unwrap().layout());

    fs::remove_file(sharded.weights()).unwrap();
    let (odd, even): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, ..)| name.len() % 2 == 1);
    write_file(&sharded.path("a.safetensors"), &odd);
    write_file(&sharded.path("b.safetensors"), &even);
    let placed = |tensors: &[Stored], file: &str| {
        tensors.iter().map(|(name, ..)| (name.clone(), json!(file))).collect::<Vec<_>>()
    };
    edit_json(&sharded.path("model.safetensors.index.json"), |index| {
        let map = placed(&odd, "a.safetensors").into_iter().chain(placed(&even, "b.safetensors"));
        index.insert("weight_map".into(), map.collect());
    });
    assert_eq!(sharded.open().shards().count(), 2);
    assert_eq!(digest(&sharded.open()), expected);
}

#[test]
fn one_bit_a_shape_or_a_dtype_changes_the_digest() {
    let model = copied("llama");
    let expected = digest(&model.open());
    let original = read_file(&model.weights());

    let mut tensors = original.clone();
    tensors[7].3[11] ^= 0x10;
    write_file(&model.weights(), &tensors);
    let flipped = digest(&model.open());
    assert_ne!(flipped, expected);

    // The bytes of two equal shapes swapped: the same bytes in the file, under other names.
    let mut tensors = original.clone();
    let at = |name: &str| original.iter().position(|tensor| tensor.0.ends_with(name)).unwrap();
    let (gate, up) = (at("0.mlp.gate_proj.weight"), at("0.mlp.up_proj.weight"));
    (tensors[gate].3, tensors[up].3) = (original[up].3.clone(), original[gate].3.clone());
    write_file(&model.weights(), &tensors);
    assert_ne!(digest(&model.open()), expected);

    // All-zero norms in f16 and in bf16 have the same bytes.
    let mut digests = Vec::new();
    for dtype in ["F16", "BF16"] {
        let mut tensors = original.clone();
        let norm = at("model.norm.weight");
        (tensors[norm].1, tensors[norm].3) = (dtype.to_owned(), vec![0; 128]);
        write_file(&model.weights(), &tensors);
        digests.push(digest(&model.open()));
    }
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn what_the_model_does_not_use_is_accepted_and_not_digested() {
    let model = copied("llama3-rope-tied");
    let (expected, parameters) = (digest(&model.open()), model.open().parameters());
    let mut tensors = read_file(&model.weights());
    tensors.push(("lm_head.weight".into(), "F32".into(), vec![256, 64], vec![1; 256 * 64 * 4]));
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "F64".into(), vec![8], vec![2; 64]));
    write_file(&model.weights(), &tensors);
    let checkpoint = model.open();
    assert_eq!(digest(&checkpoint), expected);
    assert_eq!(checkpoint.parameters(), parameters);
    assert_eq!(
        checkpoint.unused().collect::<Vec<_>>(),
        ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    );
    assert_eq!(checkpoint.bytes(), checkpoint.digest_bytes() + 256 * 64 * 4 + 64);
    assert_eq!(checkpoint.tensor("lm_head.weight").unwrap().bytes.len(), 256 * 64 * 4);
    let error = checkpoint.tensor("model.layers.0.self_attn.rotary_emb.inv_freq").unwrap_err();
    support::assert_says(&error, &["inv_freq", "model.safetensors", "F64", "convert"]);
}

/// As `transformers` does: the index says which files, the files say which tensors.
#[test]
fn tensors_that_the_index_does_not_list_are_part_of_the_model() {
    let model = copied("mistral");
    let expected = digest(&model.open());
    edit_json(&model.path("model.safetensors.index.json"), |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    });
    assert_eq!(digest(&model.open()), expected);
}

#[test]
fn released_blocks_read_the_same_again() {
    let checkpoint = Checkpoint::open(&fixture("mistral")).unwrap();
    let before = digest(&checkpoint);
    let matrix = checkpoint.matrix(3);
    let copy = matrix.bytes().to_vec();
    for block in 0..5 {
        checkpoint.release_block(block); // blocks 3 and 4 do not exist
    }
    assert!(matrix.bytes() == copy);
    checkpoint.release_all();
    assert!(matrix.bytes() == copy);
    assert_eq!(digest(&checkpoint), before);
}
