//! Digests of configuration and tokenizer: pinned, and blind to nothing that is computed with.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fedprune_checkpoint::{Checkpoint, MAX_TOKENIZER_BYTES, ModelConfig};
use fedprune_mask::Digest;
use serde_json::{Value, json};
use support::{assert_says, copied, fixture};

fn digest(changes: Value) -> String {
    let mut config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 136, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 256,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let parsed = ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes()).unwrap();
    parsed.forward_digest().to_string()
}

#[test]
fn configuration_digests_are_pinned() {
    let pinned = [
        ("llama", "32abe92bc80667093e1c4e8fde6406cafb8cd0b534b87b787d9424bb5fca210d"),
        ("llama3-rope-tied", "8831e7863bef5bc0788e843e3625df46370850353f09a1b0a2dd79ec1fedc6bc"),
        ("mistral", "9045101f8ab13ecae7c52c89b976bca41adfd27b6b51de9a3c0693932895484e"),
        ("qwen2", "d019bc76884964f1a55209746d8fe3888234cbf96a1caae953117b04ee57f6c8"),
        ("qwen3", "123fd6cafd70ffc2921ce8cd04f46630c6f67fc6b589a44b91a2c62e88f879e7"),
    ];
    for (name, expected) in pinned {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        assert_eq!(checkpoint.configuration_digest().to_string(), expected, "{name}");
    }
}

#[test]
fn every_field_of_the_forward_pass_changes_the_digest() {
    let changes = [
        json!({}),
        json!({ "model_type": "mistral", "num_key_value_heads": 4, "sliding_window": null }),
        json!({ "model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 16 }),
        json!({ "model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 17 }),
        json!({ "model_type": "qwen2", "num_key_value_heads": 4 }),
        json!({ "model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 16 }),
        json!({ "hidden_size": 128, "head_dim": 16 }),
        json!({ "intermediate_size": 137 }),
        json!({ "num_hidden_layers": 4 }),
        json!({ "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16 }),
        json!({ "num_key_value_heads": 2 }),
        json!({ "head_dim": 18 }),
        json!({ "vocab_size": 257 }),
        json!({ "rms_norm_eps": 1e-5 }),
        json!({ "rope_theta": 10001.0 }),
        json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 } }),
        json!({ "rope_scaling": { "rope_type": "linear", "factor": 4.0 } }),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64 } }),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 65 } }),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 5.0, "original_max_position_embeddings": 64 } }),
        json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 2.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64 } }),
        json!({ "tie_word_embeddings": true }),
        json!({ "attention_bias": true }),
        json!({ "mlp_bias": true }),
    ];
    let digests: BTreeSet<String> = changes.iter().cloned().map(digest).collect();
    assert_eq!(digests.len(), changes.len());
    // the same computation in other words, or with other bounds
    let same = [
        json!({ "torch_dtype": "float16", "architectures": ["Other"], "rope_theta": 10000.0, "head_dim": 16 }),
        json!({ "max_position_embeddings": 4096, "bos_token_id": 7, "eos_token_id": [1, 2] }),
    ];
    for changes in same {
        assert_eq!(digest(changes.clone()), digest(json!({})), "{changes}");
    }
}

#[test]
fn the_tokenizer_is_hashed_as_it_lies_there() {
    let model = copied("llama");
    let digest = |contents: &[u8]| Digest::of(contents).to_string();
    assert_eq!(model.open().tokenizer_digest().unwrap().to_string(), digest(b""), "there is none");
    let contents = b"{}\n".repeat(70_000);
    fs::write(model.path("tokenizer.json"), &contents).unwrap();
    assert_eq!(model.open().tokenizer_digest().unwrap().to_string(), digest(&contents));
}

#[test]
fn a_tokenizer_that_is_none_is_refused() {
    let model = copied("llama");
    // sparse: it takes no room on the disk
    fs::File::create(model.path("tokenizer.json")).unwrap().set_len(MAX_TOKENIZER_BYTES + 1).unwrap();
    let error = model.open().tokenizer_digest().unwrap_err();
    assert_says(&error, &["tokenizer.json", "268435457", "268435456"]);
    fs::remove_file(model.path("tokenizer.json")).unwrap();
    fs::create_dir(model.path("tokenizer.json")).unwrap();
    assert_says(&model.open().tokenizer_digest().unwrap_err(), &["tokenizer.json"]);
}
