//! The decoder against two independent implementations: the oracle's numbers (Hugging Face transformers, five
//! architectures, see `tests/fixtures/README.md`) and `candle-transformers` on the same tensors.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use fedprune_checkpoint::{Checkpoint, ModelConfig, RopeScaling};
use fedprune_mask::Tap;
use fedprune_model::{Decoder, ModelError, Taps, Workspace, logits, perplexity};
use serde_json::Value;

const ARCHITECTURES: [&str; 5] = ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"];

fn folder(architecture: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(architecture)
}

struct Fixture {
    checkpoint: Checkpoint,
    decoder: Decoder,
    expected: HashMap<String, Tensor>,
    numbers: Value,
}

impl Fixture {
    fn open(architecture: &str) -> Self {
        let folder = folder(architecture);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let decoder = Decoder::new(&checkpoint, &Device::Cpu, DType::F32, 256).unwrap();
        let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let numbers = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        Self { checkpoint, decoder, expected, numbers }
    }

    fn tokens(&self, name: &str) -> Vec<u32> {
        let tokens = self.expected[name].flatten_all().unwrap().to_dtype(DType::I64).unwrap();
        tokens.to_vec1::<i64>().unwrap().into_iter().map(|token| u32::try_from(token).unwrap()).collect()
    }

    fn seqlen(&self) -> usize {
        self.numbers["seqlen"].as_u64().unwrap() as usize
    }

    fn eval_windows(&self) -> Vec<Vec<u32>> {
        let tokens = self.tokens("tokens.eval");
        let count = self.numbers["eval_windows"].as_u64().unwrap() as usize;
        tokens.chunks_exact(self.seqlen()).take(count).map(<[u32]>::to_vec).collect()
    }
}

/// Largest |a − b| over the largest |b|.
fn relative_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let largest = |tensor: &Tensor| {
        tensor.abs().unwrap().max_all().unwrap().to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap()
    };
    let difference = largest(&(a - b).unwrap()) / largest(b);
    assert!(!difference.is_nan());
    difference
}

#[test]
fn logits_match_transformers() {
    for architecture in ARCHITECTURES {
        let fixture = Fixture::open(architecture);
        let got = logits(&fixture.checkpoint, &fixture.decoder, &fixture.eval_windows()[0]).unwrap();
        let difference = relative_difference(&got, &fixture.expected["logits.dense"]);
        assert!(difference < 1e-5, "{architecture}: {difference}");
    }
}

#[test]
fn perplexity_matches_transformers() {
    for architecture in ARCHITECTURES {
        let fixture = Fixture::open(architecture);
        let windows = fixture.eval_windows();
        let mut steps = Vec::new();
        let result = perplexity::<ModelError>(
            &fixture.checkpoint,
            &fixture.decoder,
            &windows,
            &mut |_, _| Ok(()),
            &mut |done, total| steps.push((done, total)),
        )
        .unwrap();
        let expected = fixture.numbers["perplexity.dense"].as_f64().unwrap();
        assert!((result.perplexity / expected - 1.0).abs() < 1e-5, "{architecture}: {result:?}");
        assert_eq!(result.window_losses.len(), windows.len());
        assert_eq!(result.scored_tokens, (windows.len() * (fixture.seqlen() - 1)) as u64);
        let total = (windows.len() * (fixture.decoder.config().blocks + 1)) as u64;
        assert_eq!(steps.last(), Some(&(total, total)));
        assert!(steps.is_sorted());
    }
}

#[test]
fn sums_of_squares_match_transformers() {
    let tapped = [
        ("self_attn.q_proj", Tap::AttentionInput),
        ("self_attn.v_proj", Tap::AttentionInput),
        ("self_attn.o_proj", Tap::AttentionOutput),
        ("mlp.up_proj", Tap::MlpInput),
        ("mlp.down_proj", Tap::MlpOutput),
    ];
    for architecture in ARCHITECTURES {
        let fixture = Fixture::open(architecture);
        let silos = &fixture.tokens("tokens.silos");
        let per_silo = fixture.numbers["samples"].as_u64().unwrap() as usize * fixture.seqlen();
        let block = fixture.decoder.load_block(&fixture.checkpoint, 0).unwrap();
        for (silo, tokens) in silos.chunks(per_silo).enumerate() {
            let mut taps = Taps::new(fixture.decoder.config());
            for sample in tokens.chunks(fixture.seqlen()) {
                let hidden = fixture.decoder.embed(&fixture.checkpoint, &[sample.to_vec()]).unwrap();
                block.measure(&fixture.decoder, &hidden, &mut taps, &mut Workspace::default()).unwrap();
            }
            let sums = taps.into_sums().unwrap();
            assert_eq!(sums.tokens(), per_silo as u64);
            for (name, tap) in tapped {
                let key = format!("sumsq.row.silo{silo}.model.layers.0.{name}.weight");
                let expected = fixture.expected[&key].to_vec1::<f64>().unwrap();
                assert_eq!(expected.len(), sums.sums(tap).len());
                for (got, expected) in sums.sums(tap).iter().zip(&expected) {
                    assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{architecture}, {key}: {got} {expected}");
                }
            }
        }
    }
}

/// The same logits from candle's own models, where those support the checkpoint.
#[test]
fn logits_match_candle_transformers() {
    for architecture in ARCHITECTURES {
        let fixture = Fixture::open(architecture);
        let tokens = &fixture.eval_windows()[0];
        let got = logits(&fixture.checkpoint, &fixture.decoder, tokens).unwrap();
        let last = got.narrow(0, tokens.len() - 1, 1).unwrap();
        let theirs = second_opinion(architecture, fixture.decoder.config(), tokens).flatten_to(1).unwrap();
        let difference = relative_difference(&last, &theirs);
        assert!(difference < 1e-4, "{architecture}: {difference}");
    }
}

/// Logits of the last token, (1, 1, vocab_size) or (1, vocab_size).
fn second_opinion(architecture: &str, config: &ModelConfig, tokens: &[u32]) -> Tensor {
    use candle_nn::{Activation, VarBuilder};
    use candle_transformers::models::{llama, mistral, qwen2, qwen3};

    let mut files: Vec<PathBuf> = fs::read_dir(folder(architecture))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("model"))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    let mut tensors = HashMap::new();
    for file in files {
        for (name, tensor) in candle_core::safetensors::load(file, &Device::Cpu).unwrap() {
            tensors.insert(name, tensor.to_dtype(DType::F32).unwrap());
        }
    }
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    match architecture {
        "llama" | "llama3-rope-tied" => {
            let rope_scaling = match config.rope.scaling {
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    Some(llama::Llama3RopeConfig {
                        factor: factor as f32,
                        low_freq_factor: low_freq_factor as f32,
                        high_freq_factor: high_freq_factor as f32,
                        original_max_position_embeddings,
                        rope_type: llama::Llama3RopeType::Llama3,
                    })
                }
                _ => None,
            };
            assert_eq!(rope_scaling.is_some(), architecture == "llama3-rope-tied");
            let theirs = llama::Config {
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                vocab_size: config.vocab_size,
                num_hidden_layers: config.blocks,
                num_attention_heads: config.attention_heads,
                num_key_value_heads: config.key_value_heads,
                use_flash_attn: false,
                rms_norm_eps: config.rms_norm_eps,
                rope_theta: config.rope.theta as f32,
                bos_token_id: None,
                eos_token_id: None,
                rope_scaling,
                max_position_embeddings: config.max_position_embeddings,
                tie_word_embeddings: config.tie_word_embeddings,
            };
            let mut cache = llama::Cache::new(false, DType::F32, &theirs, &Device::Cpu).unwrap();
            let model = llama::Llama::load(weights, &theirs).unwrap();
            model.forward(&input, 0, &mut cache).unwrap().unsqueeze(0).unwrap()
        }
        "mistral" => {
            let theirs = mistral::Config {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_hidden_layers: config.blocks,
                num_attention_heads: config.attention_heads,
                head_dim: Some(config.head_dim),
                num_key_value_heads: config.key_value_heads,
                hidden_act: Activation::Silu,
                max_position_embeddings: config.max_position_embeddings,
                rms_norm_eps: config.rms_norm_eps,
                rope_theta: config.rope.theta,
                sliding_window: config.sliding_window,
                use_flash_attn: false,
            };
            mistral::Model::new(&theirs, weights).unwrap().forward(&input, 0).unwrap()
        }
        "qwen2" => {
            let theirs = qwen2::Config {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_hidden_layers: config.blocks,
                num_attention_heads: config.attention_heads,
                num_key_value_heads: config.key_value_heads,
                max_position_embeddings: config.max_position_embeddings,
                sliding_window: config.max_position_embeddings,
                max_window_layers: config.blocks,
                tie_word_embeddings: config.tie_word_embeddings,
                rope_theta: config.rope.theta,
                rms_norm_eps: config.rms_norm_eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            qwen2::ModelForCausalLM::new(&theirs, weights).unwrap().forward(&input, 0).unwrap()
        }
        "qwen3" => {
            let theirs = qwen3::Config {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_hidden_layers: config.blocks,
                num_attention_heads: config.attention_heads,
                head_dim: config.head_dim,
                attention_bias: false,
                num_key_value_heads: config.key_value_heads,
                max_position_embeddings: config.max_position_embeddings,
                sliding_window: None,
                max_window_layers: config.blocks,
                tie_word_embeddings: config.tie_word_embeddings,
                rope_theta: config.rope.theta,
                rms_norm_eps: config.rms_norm_eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            qwen3::ModelForCausalLM::new(&theirs, weights).unwrap().forward(&input, 0).unwrap()
        }
        other => panic!("no second opinion on {other}"),
    }
}
