//! Writes a checkpoint of a large model's shape with random weights, to see what time, memory and disk such a model
//! takes where no real one can be had.
//!
//! LLaMA in Hugging Face layout: `config.json`, bf16 shards of at most 5 GB with their index, tensors of a shard in
//! order of their names as `save_pretrained` leaves them, and a tokenizer of one token a byte. Matrices are Gaussian,
//! of about the standard deviations that LLaMA's have, block by block; norm gains are log-normal with a few outlier
//! channels, so that activation norms spread as real ones do. Equal seeds write equal bytes, whatever the machine's
//! number of threads. What the model says is noise, and so is every perplexity.
//!
//! A weight is a 16-bit draw looked up in a table of the normal distribution's quantiles, four draws to a step of the
//! generator: the disk is the slowest part. Memory is bounded by a window of 64 MiB.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

/// Bytes written at a time.
const WINDOW_BYTES: usize = 64 << 20;
/// Bytes that one thread draws from one seed.
const CHUNK_BYTES: usize = 1 << 20;
/// A channel in so many is an outlier of the norm gains.
const OUTLIER_CHANNELS: usize = 500;

/// What is typed.
#[derive(Parser)]
struct Arguments {
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose shape.
    #[arg(long, value_enum, default_value = "llama-7b")]
    shape: Shape,
    /// Decoder blocks instead of the shape's own.
    #[arg(long)]
    blocks: Option<u64>,
    /// Equal seeds write equal files.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Largest shard, in bytes of tensors.
    #[arg(long, default_value_t = 5_000_000_000)]
    shard_bytes: u64,
}

/// Shapes that have names.
#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// LLaMA-7B: 6.74 B parameters, 13.5 GB.
    #[value(name = "llama-7b")]
    Llama7b,
    /// Llama-3.2-1B: 1.24 B parameters, 2.5 GB, tied embeddings, four query heads to a key head.
    #[value(name = "1b")]
    Llama1b,
    /// For tests: half a million parameters.
    #[value(name = "tiny")]
    Tiny,
}

/// The numbers that shapes differ in.
#[derive(Clone, Copy)]
struct Dimensions {
    hidden: u64,
    intermediate: u64,
    blocks: u64,
    heads: u64,
    key_value_heads: u64,
    vocabulary: u64,
    positions: u64,
    rope_theta: f64,
    tied: bool,
}

impl Shape {
    fn dimensions(self) -> Dimensions {
        match self {
            Self::Llama7b => Dimensions {
                hidden: 4096,
                intermediate: 11008,
                blocks: 32,
                heads: 32,
                key_value_heads: 32,
                vocabulary: 32000,
                positions: 2048,
                rope_theta: 1e4,
                tied: false,
            },
            Self::Llama1b => Dimensions {
                hidden: 2048,
                intermediate: 8192,
                blocks: 16,
                heads: 32,
                key_value_heads: 8,
                vocabulary: 128_256,
                positions: 8192,
                rope_theta: 5e5,
                tied: true,
            },
            Self::Tiny => Dimensions {
                hidden: 128,
                intermediate: 352,
                blocks: 3,
                heads: 4,
                key_value_heads: 2,
                vocabulary: 300,
                positions: 512,
                rope_theta: 1e4,
                tied: false,
            },
        }
    }
}

/// How the values of a tensor are drawn.
#[derive(Clone, Copy)]
enum Draw {
    /// Gaussian of this standard deviation around zero.
    Gaussian(f64),
    /// Norm gains: log-normal around this, a few channels far above.
    Gains(f64),
}

/// One tensor to be written.
struct Tensor {
    name: String,
    shape: Vec<u64>,
    draw: Draw,
}

impl Tensor {
    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        self.elements() * 2
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut dimensions = arguments.shape.dimensions();
    dimensions.blocks = arguments.blocks.unwrap_or(dimensions.blocks);
    let started = Instant::now();
    let bytes = write_checkpoint(&arguments.out, &dimensions, arguments.seed, arguments.shard_bytes)?;
    let seconds = started.elapsed().as_secs_f64();
    let (folder, gigabytes) = (arguments.out.display(), bytes as f64 / 1e9);
    writeln!(std::io::stdout(), "`{folder}`: {gigabytes:.2} GB of tensors in {seconds:.1} s")?;
    Ok(())
}

/// Writes the folder; returns the bytes of its tensors.
fn write_checkpoint(folder: &Path, dimensions: &Dimensions, seed: u64, shard_bytes: u64) -> anyhow::Result<u64> {
    if dimensions.blocks == 0 || shard_bytes == 0 {
        bail!("--blocks and --shard-bytes must be at least 1");
    }
    std::fs::create_dir(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let write = |name: &str, value: &Value| {
        let path = folder.join(name);
        std::fs::write(&path, format!("{value:#}\n")).with_context(|| format!("cannot write `{}`", path.display()))
    };
    write("config.json", &config(dimensions))?;
    write("tokenizer.json", &tokenizer())?;
    write("tokenizer_config.json", &json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>" }))?;

    let tensors = tensors(dimensions);
    let total: u64 = tensors.iter().map(Tensor::bytes).sum();
    let shards = shards(tensors, shard_bytes);
    let quantiles = normal_quantiles();
    let mut weight_map = BTreeMap::new();
    for (number, tensors) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            all => format!("model-{:05}-of-{all:05}.safetensors", number + 1),
        };
        let path = folder.join(&name);
        write_shard(&path, tensors, seed, &quantiles).with_context(|| format!("cannot write `{}`", path.display()))?;
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.clone())));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write("model.safetensors.index.json", &index)?;
    }
    Ok(total)
}

fn config(dimensions: &Dimensions) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dimensions.hidden,
        "intermediate_size": dimensions.intermediate, "num_hidden_layers": dimensions.blocks,
        "num_attention_heads": dimensions.heads, "num_key_value_heads": dimensions.key_value_heads,
        "vocab_size": dimensions.vocabulary, "max_position_embeddings": dimensions.positions,
        "rms_norm_eps": 1e-6, "rope_theta": dimensions.rope_theta, "tie_word_embeddings": dimensions.tied,
        "bos_token_id": 256, "eos_token_id": 257, "hidden_act": "silu", "torch_dtype": "bfloat16",
        "initializer_range": 0.02,
    })
}

/// One token a byte: byte-level BPE that merges nothing, then the beginning and the end of a text.
fn tokenizer() -> Value {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on
    let mut free = 0x100u32..;
    let mut vocabulary = Map::new();
    for byte in 0..=255u32 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { Some(byte) } else { free.next() };
        let character = code.and_then(char::from_u32).expect("a code below U+0200");
        vocabulary.insert(character.to_string(), byte.into());
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// All tensors, in the order in which the model has them.
///
/// Standard deviations follow LLaMA-7B's: queries and keys are large in the first blocks, values and outputs grow with
/// depth, the feed-forward matrices hardly change; the gains of the norms grow with depth.
fn tensors(dimensions: &Dimensions) -> Vec<Tensor> {
    let Dimensions { hidden, intermediate, blocks, heads, key_value_heads, vocabulary, .. } = *dimensions;
    let keys = hidden / heads * key_value_heads;
    // Gaussian products keep their scale at any width when weights shrink with its root
    let scale = (4096.0 / hidden as f64).sqrt();
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[u64], draw: Draw| tensors.push(Tensor { name, shape: shape.to_vec(), draw });
    add("model.embed_tokens.weight".to_owned(), &[vocabulary, hidden], Draw::Gaussian(0.018));
    for block in 0..blocks {
        let depth = block as f64 / blocks.saturating_sub(1).max(1) as f64;
        let between = |first: f64, last: f64| (first + (last - first) * depth) * scale;
        let gaussian = |first, last| Draw::Gaussian(between(first, last));
        for (name, shape, draw) in [
            ("self_attn.q_proj", [hidden, hidden].as_slice(), gaussian(0.030, 0.020)),
            ("self_attn.k_proj", &[keys, hidden], gaussian(0.030, 0.020)),
            ("self_attn.v_proj", &[keys, hidden], gaussian(0.012, 0.022)),
            ("self_attn.o_proj", &[hidden, hidden], gaussian(0.012, 0.020)),
            ("mlp.gate_proj", &[intermediate, hidden], gaussian(0.018, 0.022)),
            ("mlp.up_proj", &[intermediate, hidden], gaussian(0.017, 0.021)),
            ("mlp.down_proj", &[hidden, intermediate], gaussian(0.017, 0.020)),
            ("input_layernorm", &[hidden], Draw::Gains(0.2 + 0.3 * depth)),
            ("post_attention_layernorm", &[hidden], Draw::Gains(0.15 + 0.35 * depth)),
        ] {
            add(format!("model.layers.{block}.{name}.weight"), shape, draw);
        }
    }
    add("model.norm.weight".to_owned(), &[hidden], Draw::Gains(1.5));
    if !dimensions.tied {
        add("lm_head.weight".to_owned(), &[vocabulary, hidden], Draw::Gaussian(0.018));
    }
    tensors
}

/// Fills shard after shard in the model's order, each then sorted by name, as `save_pretrained` does.
fn shards(tensors: Vec<Tensor>, shard_bytes: u64) -> Vec<Vec<Tensor>> {
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut bytes = 0;
    for tensor in tensors {
        let current = shards.last_mut().expect("there is one from the start");
        if !current.is_empty() && bytes + tensor.bytes() > shard_bytes {
            bytes = tensor.bytes();
            shards.push(vec![tensor]);
        } else {
            bytes += tensor.bytes();
            current.push(tensor);
        }
    }
    shards.iter_mut().for_each(|shard| shard.sort_by(|left, right| left.name.cmp(&right.name)));
    shards
}

fn write_shard(path: &Path, tensors: &[Tensor], seed: u64, quantiles: &[f64]) -> anyhow::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = std::fs::File::create_new(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut window = Vec::new();
    for tensor in tensors {
        let seed = seed_of(seed, &tensor.name);
        match tensor.draw {
            Draw::Gains(middle) => file.write_all(&gains(tensor.elements(), middle, seed, quantiles))?,
            Draw::Gaussian(deviation) => {
                let table: Vec<u16> = quantiles.iter().map(|x| bf16::from_f64(x * deviation).to_bits()).collect();
                let table: &[u16; 1 << 16] = table.as_slice().try_into().expect("a quantile for every draw");
                let bytes = usize::try_from(tensor.bytes())?;
                for start in (0..bytes).step_by(WINDOW_BYTES) {
                    window.resize(WINDOW_BYTES.min(bytes - start), 0u8);
                    window.par_chunks_mut(CHUNK_BYTES).enumerate().for_each(|(chunk, bytes)| {
                        let chunk = (start / CHUNK_BYTES + chunk) as u64;
                        draw(bytes, Noise(seed ^ chunk.wrapping_mul(0xd1b5_4a32_d192_ed03)), table);
                    });
                    file.write_all(&window)?;
                }
            }
        }
    }
    Ok(())
}

/// SplitMix64: every seed starts a sequence of its own.
struct Noise(u64);

impl Noise {
    #[inline]
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A tensor's own seed.
fn seed_of(seed: u64, name: &str) -> u64 {
    name.bytes().fold(Noise(seed).next(), |state, byte| Noise(state ^ u64::from(byte)).next())
}

/// Fills `bytes` with weights of `table`.
fn draw(bytes: &mut [u8], mut noise: Noise, table: &[u16; 1 << 16]) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let mut four = |word: &mut [u8]| {
        let bits = noise.next();
        for (index, weight) in word.chunks_exact_mut(2).enumerate() {
            weight.copy_from_slice(&table[usize::from((bits >> (16 * index)) as u16)].to_le_bytes());
        }
    };
    words.iter_mut().for_each(|word| four(word));
    four(rest);
}

/// Gains of a norm, stored.
fn gains(channels: u64, middle: f64, seed: u64, quantiles: &[f64]) -> Vec<u8> {
    let mut noise = Noise(seed);
    let gain = |_| {
        let bits = noise.next();
        let normal = quantiles[usize::from(bits as u16)];
        let outlier = ((bits >> 16) as usize).is_multiple_of(OUTLIER_CHANNELS);
        bf16::from_f64(middle * (0.3 * normal + if outlier { 1.5 } else { 0.0 }).exp()).to_le_bytes()
    };
    (0..channels).flat_map(gain).collect()
}

/// The quantiles of the standard normal distribution at the middles of 65,536 equal parts.
fn normal_quantiles() -> Vec<f64> {
    (0..1 << 16).map(|part| normal_quantile((f64::from(part) + 0.5) / f64::from(1 << 16))).collect()
}

/// P. J. Acklam's rational approximation of the normal quantile; relative error below 1.2e-9.
fn normal_quantile(p: f64) -> f64 {
    let polynomial = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        let above = [
            -7.784_894_002_430_293e-3,
            -3.223_964_580_411_365e-1,
            -2.400_758_277_161_838,
            -2.549_732_539_343_734,
            4.374_664_141_464_968,
            2.938_163_982_698_783,
        ];
        let below =
            [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416, 1.0];
        polynomial(&above, q) / polynomial(&below, q)
    };
    if p < 0.024_25 {
        return tail(p);
    }
    if p > 1.0 - 0.024_25 {
        return -tail(1.0 - p);
    }
    let q = p - 0.5;
    let above = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    let below = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    q * polynomial(&above, q * q) / polynomial(&below, q * q)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedprune_checkpoint::Checkpoint;

    /// Two threads or one, in shards or whole: the same weights; and they are as wide as they should be.
    #[test]
    fn equal_seeds_write_equal_weights() {
        let folder = tempfile::tempdir().unwrap();
        let dimensions = Shape::Tiny.dimensions();
        let digest = |name: &str, seed: u64, shard_bytes: u64, threads: usize| {
            let path = folder.path().join(name);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| write_checkpoint(&path, &dimensions, seed, shard_bytes)).unwrap();
            Checkpoint::open(&path).unwrap().content_digest(&|_| {})
        };
        let whole = digest("whole", 1, u64::MAX, 2);
        assert_eq!(digest("sharded", 1, 300_000, 1), whole);
        assert_ne!(digest("other", 2, u64::MAX, 2), whole);
        assert!(Checkpoint::open(&folder.path().join("sharded")).unwrap().shards().count() > 1);

        let checkpoint = Checkpoint::open(&folder.path().join("whole")).unwrap();
        let weights = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
        let (values, _) = weights.bytes.as_chunks::<2>();
        let squares: f64 = values.iter().map(|value| f64::from(bf16::from_le_bytes(*value)).powi(2)).sum();
        let deviation = (squares / values.len() as f64).sqrt();
        let expected = 0.030 * (4096.0f64 / 128.0).sqrt();
        assert!((deviation / expected - 1.0).abs() < 0.02, "{deviation} instead of {expected}");
    }

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        for (p, expected) in [(0.5, 0.0), (0.975, 1.959_963_984_540_054), (0.001, -3.090_232_306_167_813_5)] {
            assert!((normal_quantile(p) - expected).abs() < 1e-8, "at {p}");
        }
    }
}
