//! A GGUF file written from the bundled model, as llama.cpp's converter writes one, comes back as the same model: the same
//! digests, the same tokens, the same mask. Files that are damaged, quantised or of something else are refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use fedprune_checkpoint::Checkpoint;
use fedprune_model::gguf::{GgufError, Import, Imported, import};
use fedprune_tests::root;
use serde_json::Value;

const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const BF16: u32 = 30;

fn model() -> PathBuf {
    root().join("examples/bundled-model/model")
}

/// A value of a file's metadata.
#[derive(Clone)]
enum Meta {
    Text(String),
    Number(u32),
    Float(f32),
    Yes(bool),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let list = |kind: u32, values: Vec<Vec<u8>>| {
            let head = [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
            [head, values.concat()].concat()
        };
        match self {
            Meta::Number(number) => [4u32.to_le_bytes(), number.to_le_bytes()].concat(),
            Meta::Float(number) => [6u32.to_le_bytes(), number.to_le_bytes()].concat(),
            Meta::Yes(yes) => [&7u32.to_le_bytes()[..], &[u8::from(*yes)]].concat(),
            Meta::Text(value) => [&8u32.to_le_bytes()[..], &text(value)].concat(),
            Meta::Texts(values) => list(8, values.iter().map(|value| text(value)).collect()),
            Meta::Numbers(values) => list(5, values.iter().map(|value| value.to_le_bytes().to_vec()).collect()),
        }
    }
}

#[derive(Clone)]
struct Tensor {
    name: String,
    kind: u32,
    /// Rows first.
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// A file of version 3.
#[derive(Clone)]
struct Gguf {
    metadata: Vec<(String, Meta)>,
    tensors: Vec<Tensor>,
}

impl Gguf {
    fn encode(&self) -> Vec<u8> {
        let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(32), 0);
        let counts = [self.tensors.len() as u64, self.metadata.len() as u64].map(u64::to_le_bytes).concat();
        let mut bytes = [b"GGUF", &3u32.to_le_bytes()[..], &counts].concat();
        for (key, value) in &self.metadata {
            bytes.extend([text(key), value.encode()].concat());
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            bytes.extend(text(&tensor.name));
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                bytes.extend(size.to_le_bytes());
            }
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            pad(&mut data);
        }
        pad(&mut bytes);
        [bytes, data].concat()
    }

    fn set(&mut self, key: &str, value: Option<Meta>) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("it is there")
    }
}

/// What llama.cpp calls a tensor.
fn name_of(name: &str) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    parts.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// `permute` of `convert_hf_to_gguf.py`: reshape(heads, 2, half, …).swapaxes(1, 2).
fn permuted(bytes: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let width = bytes.len() / rows;
    let half = rows / heads / 2;
    let mut out = vec![0; bytes.len()];
    for head in 0..heads {
        for part in 0..2 {
            for pair in 0..half {
                let from = (head * 2 + part) * half + pair;
                let to = (head * half + pair) * 2 + part;
                out[to * width..(to + 1) * width].copy_from_slice(&bytes[from * width..(from + 1) * width]);
            }
        }
    }
    out
}

fn widened(bytes: &[u8]) -> Vec<u8> {
    // a bf16 is the upper half of an f32
    bytes.chunks(2).flat_map(|pair| [0, 0, pair[0], pair[1]]).collect()
}

/// The bundled model as the converter writes it, matrices in this format.
fn bundled(kind: u32) -> Gguf {
    let checkpoint = Checkpoint::open(&model()).expect("the bundled model");
    let config: Value = serde_json::from_slice(&std::fs::read(model().join("config.json")).unwrap()).unwrap();
    let number = |key: &str| Meta::Number(config[key].as_u64().expect("a number") as u32);
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(model().join("tokenizer.json")).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().expect("a vocabulary");
    let mut tokens = vec![String::new(); config["vocab_size"].as_u64().unwrap() as usize];
    let added = tokenizer["added_tokens"].as_array().expect("a list");
    let added =
        added.iter().map(|token| (token["content"].as_str().unwrap().to_owned(), token["id"].as_u64().unwrap()));
    let added: Vec<(String, u64)> = added.collect();
    for (token, id) in vocabulary.iter().map(|(token, id)| (token.clone(), id.as_u64().unwrap())).chain(added.clone()) {
        tokens[id as usize] = token;
    }
    let kinds = (0..tokens.len() as u64).map(|id| if added.iter().any(|(_, special)| *special == id) { 3 } else { 1 });
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    let metadata = [
        ("general.architecture", Meta::Text("llama".to_owned())),
        ("llama.block_count", number("num_hidden_layers")),
        ("llama.context_length", number("max_position_embeddings")),
        ("llama.embedding_length", number("hidden_size")),
        ("llama.feed_forward_length", number("intermediate_size")),
        ("llama.attention.head_count", number("num_attention_heads")),
        ("llama.attention.head_count_kv", number("num_key_value_heads")),
        ("llama.attention.layer_norm_rms_epsilon", Meta::Float(1e-5)),
        ("llama.rope.freq_base", Meta::Float(10_000.0)),
        ("llama.rope.dimension_count", number("head_dim")),
        ("llama.vocab_size", number("vocab_size")),
        ("tokenizer.ggml.model", Meta::Text("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Meta::Text("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type", Meta::Numbers(kinds.collect())),
        ("tokenizer.ggml.merges", Meta::Texts(merges.collect())),
        ("tokenizer.ggml.bos_token_id", Meta::Number(0)),
        ("tokenizer.ggml.eos_token_id", Meta::Number(1)),
        ("tokenizer.ggml.add_bos_token", Meta::Yes(false)),
    ];
    let tensors = checkpoint.stored().map(|stored| {
        let view = checkpoint.tensor(stored.name).expect("a stored tensor");
        let mut bytes = view.bytes.to_vec();
        if stored.name.contains("q_proj") {
            bytes = permuted(&bytes, 4, view.shape[0]);
        } else if stored.name.contains("k_proj") {
            bytes = permuted(&bytes, 2, view.shape[0]);
        }
        let wide = view.shape.len() == 1 || kind == F32;
        let bytes = if wide { widened(&bytes) } else { bytes };
        let kind = if wide { F32 } else { kind };
        Tensor { name: name_of(stored.name), kind, shape: view.shape.iter().map(|size| *size as u64).collect(), bytes }
    });
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    Gguf { metadata, tensors: tensors.collect() }
}

fn taken(gguf: &[u8], folder: &Path) -> Result<Imported, GgufError> {
    let file = folder.join("model.gguf");
    std::fs::write(&file, gguf).expect("written");
    let result = import(&Import { file: &file, out: &folder.join("imported"), tokenizer: None, config: None });
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1 + usize::from(result.is_ok()), "{left:?}");
    result
}

fn run(folder: &Path, arguments: &[&str]) -> Value {
    let program = env!("CARGO_BIN_EXE_fedprune-under-test");
    let output = Command::new(program).args(arguments).args(["--format", "json"]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
}

#[test]
fn the_bundled_model_comes_back_with_the_same_mask() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("model.gguf"), bundled(BF16).encode()).unwrap();
    let report = run(at, &["model", "import", "model.gguf", "--out", "imported"]);
    assert_eq!((&report["permuted"], &report["narrowed"]), (&12.into(), &13.into()));
    assert_eq!(report["warnings"], serde_json::json!([]));
    let (ours, theirs) = (Checkpoint::open(&at.join("imported")).unwrap(), Checkpoint::open(&model()).unwrap());
    assert_eq!(ours.content_digest(&|_| ()), theirs.content_digest(&|_| ()));
    assert_eq!(ours.configuration_digest(), theirs.configuration_digest());
    let silo = root().join("examples/bundled-model/silos/austen_emma.txt");
    let original = model();
    let mask = |model: &str, out: &str| {
        let silo = silo.to_str().unwrap();
        run(
            at,
            &["mask", "compute", "--model", model, "--data", silo, "--nsamples", "4", "--seqlen", "64", "--out", out],
        );
        std::fs::read(at.join(out)).unwrap()
    };
    let (ours, theirs) = (mask("imported", "ours.ballot"), mask(original.to_str().unwrap(), "theirs.ballot"));
    assert!(ours == theirs, "the same text, weights and tokens make the same ballot");
}

#[test]
fn formats_are_kept_and_given_files_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let imported = taken(&bundled(F32).encode(), folder.path()).unwrap();
    assert_eq!((imported.narrowed, imported.permuted, imported.tensors), (0, 12, 56));
    let (ours, theirs) =
        (Checkpoint::open(&folder.path().join("imported")).unwrap(), Checkpoint::open(&model()).unwrap());
    for stored in theirs.stored() {
        let (wide, narrow) = (ours.tensor(stored.name).unwrap(), theirs.tensor(stored.name).unwrap());
        assert!(wide.bytes == widened(narrow.bytes), "{}", stored.name);
    }
    // a norm that no bf16 is stays as it is
    let mut other = bundled(BF16);
    other.tensor("blk.3.ffn_norm.weight").bytes[..4].copy_from_slice(&1.000_001_f32.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(taken(&other.encode(), folder.path()).unwrap().narrowed, 12);
    // a tokenizer that the file does not describe completely is not made, and can be given
    other.set("tokenizer.ggml.pre", Some(Meta::Text("llama-bpe".to_owned())));
    let folder = tempfile::tempdir().unwrap();
    let imported = taken(&other.encode(), folder.path()).unwrap();
    assert!(imported.tokenizer.is_none() && imported.notes[0].contains("--tokenizer FILE"), "{imported:?}");
    let (file, tokenizer) = (folder.path().join("model.gguf"), model().join("tokenizer.json"));
    let config = model().join("config.json");
    let out = folder.path().join("given");
    import(&Import { file: &file, out: &out, tokenizer: Some(&tokenizer), config: Some(&config) }).unwrap();
    for name in ["tokenizer.json", "config.json"] {
        assert_eq!(std::fs::read(out.join(name)).unwrap(), std::fs::read(model().join(name)).unwrap());
    }
}

#[test]
fn what_is_not_such_a_model_is_refused_by_name() {
    let good = bundled(BF16);
    let refused = |change: &dyn Fn(&mut Gguf), says: &str| {
        let mut gguf = good.clone();
        change(&mut gguf);
        let folder = tempfile::tempdir().unwrap();
        let error = taken(&gguf.encode(), folder.path()).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {cause}").contains(says), "{says}: {error}: {cause}");
    };
    let text = |text: &str| Some(Meta::Text(text.to_owned()));
    refused(&|gguf| gguf.set("general.architecture", text("gemma")), "architecture `gemma`");
    refused(&|gguf| gguf.set("general.architecture", None), "architecture `none`");
    refused(&|gguf| gguf.tensor("blk.2.attn_v.weight").kind = Q4_0, "`blk.2.attn_v.weight` is stored as Q4_0");
    refused(&|gguf| gguf.tensors[0].name = "blk.07.attn_q.weight".to_owned(), "`blk.07.attn_q.weight`");
    refused(&|gguf| gguf.tensors[0].name = "rope_freqs.weight".to_owned(), "rotary frequencies");
    refused(&|gguf| drop(gguf.tensors.pop()), "no whole model");
    refused(&|gguf| gguf.tensor("blk.0.attn_q.weight").shape[0] = 126, "heads of an even size");
    refused(&|gguf| gguf.tensor("output_norm.weight").shape[0] = u64::MAX, "");
    refused(&|gguf| gguf.set("llama.attention.head_count", Some(Meta::Number(0))), "`llama.attention.head_count`");
    refused(&|gguf| gguf.set("llama.attention.head_count_kv", Some(Meta::Float(2.0))), "head_count_kv");
    refused(
        &|gguf| gguf.set("llama.attention.layer_norm_rms_epsilon", Some(Meta::Float(f32::NAN))),
        "no finite number",
    );
    refused(&|gguf| gguf.set("llama.rope.scaling.type", text("yarn")), "is `yarn`");
    refused(&|gguf| gguf.set("llama.rope.dimension_count", Some(Meta::Number(16))), "dimensions of a head");
    refused(&|gguf| gguf.set("llama.expert_count", Some(Meta::Number(8))), "experts");
    refused(&|gguf| gguf.set("llama.embedding_length", Some(Meta::Number(u32::MAX))), "");
    // a file where all is F16 is fine whatever its values are
    let mut half = good.clone();
    for tensor in half.tensors.iter_mut().filter(|tensor| tensor.kind == BF16) {
        tensor.kind = F16;
    }
    let folder = tempfile::tempdir().unwrap();
    taken(&half.encode(), folder.path()).unwrap();
}

#[test]
fn damaged_files_are_refused_without_harm() {
    let good = bundled(BF16).encode();
    let folder = tempfile::tempdir().unwrap();
    for length in [0, 3, 4, 8, 20, 24, 100, 10_000, 60_000, good.len() / 2, good.len() - 100_000] {
        assert!(taken(&good[..length], folder.path()).is_err(), "{length}");
    }
    // counts, lengths and kinds in the header, each made huge
    let header = good.len().min(2000);
    for at in (4..header).step_by(7) {
        let mut bytes = good.clone();
        for byte in &mut bytes[at..at + 8] {
            *byte = 0xff;
        }
        if taken(&bytes, folder.path()).is_ok() {
            std::fs::remove_dir_all(folder.path().join("imported")).unwrap();
        }
    }
    // a header beyond what any has: an array of bytes that memory would hold thirty times over
    for (values, refusal) in [(60u64 << 20, "header has at most"), (5 << 20, "more values than any model needs")] {
        let head = [b"GGUF", &3u32.to_le_bytes()[..], &0u64.to_le_bytes(), &1u64.to_le_bytes(), &text("x")].concat();
        let array = [&9u32.to_le_bytes()[..], &0u32.to_le_bytes(), &values.to_le_bytes()].concat();
        let huge = [head, array, vec![0; values as usize]].concat();
        let error = taken(&huge, folder.path()).unwrap_err().to_string();
        assert!(error.contains(refusal), "{error}");
    }
    // a name of a gigabyte in a file that has one on paper
    let elsewhere = tempfile::tempdir().unwrap();
    let sparse = elsewhere.path().join("sparse.gguf");
    let head =
        [b"GGUF", &3u32.to_le_bytes()[..], &0u64.to_le_bytes(), &1u64.to_le_bytes(), &(1u64 << 30).to_le_bytes()];
    std::fs::write(&sparse, head.concat()).unwrap();
    std::fs::File::options().write(true).open(&sparse).unwrap().set_len(2 << 30).unwrap();
    let out = elsewhere.path().join("imported");
    let error = import(&Import { file: &sparse, out: &out, tokenizer: None, config: None }).unwrap_err().to_string();
    assert!(error.contains("header has at most"), "{error}");
    // an alignment that the reader divides by
    let mut aligned = [b"GGUF", &3u32.to_le_bytes()[..], &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    aligned.extend([text("general.alignment"), Meta::Number(0).encode()].concat());
    let error = taken(&aligned, folder.path()).unwrap_err().to_string();
    assert!(error.contains("does not survive"), "{error}");
}
