//! `config.json` in its forms, and the refusals.

use std::path::Path;

use fedprune_checkpoint::{AttentionBias, CheckpointError, ModelConfig, ModelType, RopeScaling};
use serde_json::{Value, json};

/// A LLaMA of the old form with only what every configuration must have.
fn base() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 136, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 256,
    })
}

/// The base with fields replaced.
fn with(changes: Value) -> Value {
    let mut config = base();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn parse(config: &Value) -> Result<ModelConfig, CheckpointError> {
    ModelConfig::parse(Path::new("some/config.json"), config.to_string().as_bytes())
}

fn parsed(changes: Value) -> ModelConfig {
    parse(&with(changes)).unwrap()
}

#[track_caller]
fn refused(changes: Value, parts: &[&str]) {
    let message = parse(&with(changes)).expect_err("must be refused").to_string();
    for part in ["some/config.json"].iter().chain(parts) {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// Values of the configuration classes of `transformers` 5, for a file that leaves everything out.
#[test]
fn defaults_are_those_of_the_configuration_classes() {
    let llama = parsed(json!({}));
    assert_eq!(llama.model_type, ModelType::Llama);
    assert_eq!((llama.key_value_heads, llama.head_dim), (4, 16));
    assert_eq!((llama.rms_norm_eps, llama.rope.theta, llama.rope.scaling), (1e-6, 10_000.0, RopeScaling::None));
    assert_eq!((llama.max_position_embeddings, llama.sliding_window), (2048, None));
    assert_eq!((llama.tie_word_embeddings, llama.mlp_bias, llama.query_key_norm), (false, false, false));
    assert_eq!((llama.attention_bias, llama.bos_token_id), (AttentionBias::None, None));
    assert!(llama.eos_token_ids.is_empty());

    let mistral = parsed(json!({ "model_type": "mistral", "num_attention_heads": 16 }));
    assert_eq!((mistral.key_value_heads, mistral.head_dim), (8, 4));
    assert_eq!((mistral.max_position_embeddings, mistral.sliding_window), (131_072, Some(4096)));

    let qwen2 = parsed(json!({ "model_type": "qwen2", "num_attention_heads": 32 }));
    assert_eq!((qwen2.key_value_heads, qwen2.head_dim), (32, 2));
    assert_eq!((qwen2.max_position_embeddings, qwen2.sliding_window), (32_768, None));
    assert_eq!((qwen2.attention_bias, qwen2.query_key_norm), (AttentionBias::Qkv, false));

    let qwen3 = parsed(json!({ "model_type": "qwen3", "num_attention_heads": 32 }));
    assert_eq!((qwen3.key_value_heads, qwen3.head_dim), (32, 128));
    assert_eq!((qwen3.attention_bias, qwen3.query_key_norm), (AttentionBias::None, true));

    let heads = parsed(json!({ "model_type": "qwen3", "num_key_value_heads": null }));
    assert_eq!(heads.key_value_heads, 4, "null means one per query head");
}

#[test]
fn flags_count_only_where_the_architecture_has_them() {
    let all = json!({ "attention_bias": true, "mlp_bias": true });
    let of = |model_type: &str| {
        let mut changes = all.clone();
        changes["model_type"] = json!(model_type);
        changes["num_key_value_heads"] = json!(2);
        let config = parsed(changes);
        (config.attention_bias, config.mlp_bias)
    };
    assert_eq!(of("llama"), (AttentionBias::Qkvo, true));
    assert_eq!(of("mistral"), (AttentionBias::None, false));
    assert_eq!(of("qwen2"), (AttentionBias::Qkv, false));
    assert_eq!(of("qwen3"), (AttentionBias::Qkvo, false));
}

#[test]
fn both_forms_of_rope_say_the_same() {
    let scaling = json!({ "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_type": "llama3" });
    let old = parsed(json!({ "rope_theta": 5e5, "rope_scaling": scaling }));
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(5e5);
    assert_eq!(old, parsed(json!({ "rope_parameters": parameters })));
    assert_eq!(old, parsed(json!({ "rope_parameters": scaling, "rope_theta": 500_000 })));
    assert!(matches!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));

    let linear = RopeScaling::Linear { factor: 2.5 };
    for form in [json!({ "type": "linear", "factor": 2.5 }), json!({ "rope_type": "linear", "factor": 2.5 })] {
        assert_eq!(parsed(json!({ "rope_scaling": form })).rope.scaling, linear);
        assert_eq!(parsed(json!({ "rope_parameters": form })).rope.scaling, linear);
    }
    for none in [json!(null), json!({}), json!({ "rope_type": "default" }), json!({ "type": "default" })] {
        let config = parsed(json!({ "rope_scaling": none, "rope_theta": 1e6 }));
        assert_eq!((config.rope.theta, config.rope.scaling), (1e6, RopeScaling::None));
    }
    // `rope_scaling` wins where both are given, and inside counts before the top.
    let both =
        parsed(json!({ "rope_theta": 7.0, "rope_scaling": { "type": "linear", "factor": 2.5, "rope_theta": 9.0 },
        "rope_parameters": { "rope_type": "default", "rope_theta": 8.0 } }));
    assert_eq!((both.rope.theta, both.rope.scaling), (9.0, linear));

    let short = parsed(json!({ "max_position_embeddings": 512,
        "rope_scaling": { "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 } }));
    let RopeScaling::Llama3 { original_max_position_embeddings, .. } = short.rope.scaling else { panic!() };
    assert_eq!(original_max_position_embeddings, 512);
}

#[test]
fn rope_that_is_not_implemented_is_refused_by_name() {
    for kind in ["yarn", "dynamic", "longrope", "su", "mrope"] {
        for form in ["rope_scaling", "rope_parameters"] {
            refused(json!({ form: { "rope_type": kind, "factor": 4.0 } }), &[kind, form, "`llama3`"]);
            refused(json!({ form: { "type": kind, "factor": 4.0 } }), &[kind, form, "`llama3`"]);
        }
    }
    refused(json!({ "rope_scaling": "yarn" }), &["rope_scaling", "object"]);
    refused(json!({ "rope_scaling": { "type": 3 } }), &["rope_scaling.type"]);
    refused(
        json!({ "rope_parameters": { "full_attention": { "rope_theta": 1e4 } } }),
        &["full_attention", "all layers"],
    );
    refused(json!({ "partial_rotary_factor": 0.5 }), &["partial_rotary_factor"]);
    refused(json!({ "rope_theta": 0 }), &["rope_theta", "more than 1"]);
    refused(json!({ "rope_theta": "1e4" }), &["rope_theta", "number"]);
    refused(json!({ "rope_scaling": { "type": "linear" } }), &["rope_scaling.factor", "missing"]);
    refused(json!({ "rope_scaling": { "type": "linear", "factor": 0.0 } }), &["rope_scaling.factor"]);
    let equal = json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4 });
    refused(json!({ "rope_scaling": equal }), &["high_freq_factor", "not more than"]);
}

#[test]
fn windows_are_active_on_every_layer_or_refused() {
    let mistral = |window: Value| {
        let changes = json!({ "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": window });
        parsed(changes).sliding_window
    };
    assert_eq!(mistral(json!(null)), None);
    assert_eq!(mistral(json!(32)), Some(32));
    assert_eq!(parsed(json!({ "sliding_window": 32 })).sliding_window, None, "LLaMA has none");

    for model_type in ["qwen2", "qwen3"] {
        let qwen = |changes: Value| {
            let mut all = json!({ "model_type": model_type, "num_key_value_heads": 2, "sliding_window": 32 });
            all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            all
        };
        let window = |changes| parsed(qwen(changes)).sliding_window;
        assert_eq!(window(json!({})), None);
        assert_eq!(window(json!({ "use_sliding_window": false, "max_window_layers": 0 })), None);
        assert_eq!(window(json!({ "use_sliding_window": true })), None, "28 full layers come first");
        assert_eq!(window(json!({ "use_sliding_window": true, "max_window_layers": 0 })), Some(32));
        let layers = |kinds: [&str; 3]| json!({ "use_sliding_window": true, "layer_types": kinds });
        assert_eq!(window(layers(["full_attention"; 3])), None);
        assert_eq!(window(layers(["sliding_attention"; 3])), Some(32));
        refused(qwen(json!({ "use_sliding_window": true, "max_window_layers": 2 })), &["max_window_layers", "1 of 3"]);
        let mixed = layers(["full_attention", "sliding_attention", "full_attention"]);
        refused(qwen(mixed), &["layer_types", "1 of 3 layers"]);
        refused(qwen(layers(["chunked_attention"; 3])), &["layer_types", "chunked_attention"]);
        refused(qwen(json!({ "layer_types": ["full_attention"] })), &["layer_types", "1 entries for 3 layers"]);
        let sliding = ["sliding_attention"; 3];
        refused(qwen(json!({ "layer_types": sliding })), &["layer_types", "`use_sliding_window`"]);
    }
}

#[test]
fn unknown_architectures_are_refused_with_the_supported_ones() {
    for name in ["gpt2", "gemma2", "mixtral", "qwen2_moe", "Llama", ""] {
        refused(json!({ "model_type": name }), &[&format!("`{name}`"), "`llama`, `mistral`, `qwen2`, `qwen3`"]);
    }
    refused(json!({ "model_type": 7 }), &["`7`", "supported are"]);
    refused(json!({ "model_type": null }), &["supported are"]);
    let mut without = base();
    without.as_object_mut().unwrap().remove("model_type");
    assert!(parse(&without).unwrap_err().to_string().contains("(absent)"));
}

#[test]
fn what_would_change_the_computation_is_refused() {
    let quantised = json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } });
    refused(quantised, &["quantization_config", "unquantised checkpoint"]);
    for field in ["num_experts", "num_local_experts", "n_routed_experts"] {
        refused(json!({ field: 8 }), &[field, "mixture of experts", "dense"]);
    }
    refused(json!({ "hidden_act": "gelu" }), &["hidden_act", "gelu", "`silu`"]);
    assert!(parse(&with(json!({ "hidden_act": "swish", "quantization_config": null }))).is_ok());
}

#[test]
fn every_number_is_bounded() {
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ];
    for field in sizes {
        for bad in [json!(0), json!(-1), json!(u64::MAX), json!(1u64 << 33), json!(1.5), json!("64"), json!([64])] {
            refused(json!({ field: bad }), &[field]);
        }
    }
    for field in &sizes[..5] {
        refused(json!({ *field: null }), &[field, "missing"]);
    }
    refused(json!({ "num_key_value_heads": 3 }), &["num_key_value_heads", "does not divide 4"]);
    refused(json!({ "num_key_value_heads": 8 }), &["num_key_value_heads", "does not divide 4"]);
    refused(json!({ "head_dim": 15 }), &["head_dim", "even"]);
    refused(json!({ "hidden_size": 66 }), &["hidden_size", "not a multiple of 4", "`head_dim`"]);
    refused(json!({ "num_attention_heads": 16384, "head_dim": 16384 }), &["head_dim", "together"]);
    for eps in [json!(0.0), json!(-1e-6), json!(1.0), json!("x")] {
        refused(json!({ "rms_norm_eps": eps }), &["rms_norm_eps"]);
    }
    refused(json!({ "tie_word_embeddings": "yes" }), &["tie_word_embeddings", "true or false"]);
}

#[test]
fn token_ids_are_one_many_or_none() {
    let eos = |value: Value| parsed(json!({ "eos_token_id": value })).eos_token_ids;
    assert_eq!(eos(json!([128_001, 128_008])), [128_001, 128_008]);
    assert_eq!(eos(json!(2)), [2]);
    assert!(eos(json!(-1)).is_empty());
    assert!(eos(json!(null)).is_empty());
    refused(json!({ "eos_token_id": "</s>" }), &["eos_token_id"]);
    refused(json!({ "bos_token_id": u64::from(u32::MAX) + 1 }), &["bos_token_id"]);
    refused(json!({ "eos_token_id": vec![1; 1000] }), &["eos_token_id", "1000"]);
}

#[test]
fn what_is_no_json_object_is_refused() {
    for text in ["", "{", "[]", "null", "{\"model_type\":\"llama\"", "\u{feff}{}", &"[".repeat(10_000)] {
        let error = ModelConfig::parse(Path::new("some/config.json"), text.as_bytes()).unwrap_err();
        assert!(matches!(error, CheckpointError::Json { .. }), "{error}");
        assert!(error.to_string().contains("`some/config.json`"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
