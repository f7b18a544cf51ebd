//! What the integration tests share: where fixtures lie, and how expected tensors are read.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};

/// The project's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the project").to_owned()
}

/// The oracle's folders: `FEDPRUNE_FIXTURES`, or the copy shipped with the tests.
pub fn fixtures() -> PathBuf {
    std::env::var_os("FEDPRUNE_FIXTURES").map_or_else(|| root().join("tests/fixtures"), PathBuf::from)
}

/// One architecture's fixture: a checkpoint and what must come of it.
pub struct Fixture {
    /// Checkpoint folder.
    pub folder: PathBuf,
    /// `expected.json`.
    pub numbers: Value,
    tensors: Vec<u8>,
}

impl Fixture {
    /// All fixtures, in the order of their names.
    pub fn all() -> Vec<Fixture> {
        let root = fixtures();
        let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
            .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
            .map(|entry| entry.expect("the folder is readable").path())
            .filter(|path| path.join("expected.json").is_file())
            .collect();
        folders.sort();
        assert!(!folders.is_empty(), "{} holds no fixture", root.display());
        folders.into_iter().map(Fixture::open).collect()
    }

    /// The fixture in `folder`.
    pub fn open(folder: PathBuf) -> Fixture {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let numbers = serde_json::from_slice(&read("expected.json")).expect("expected.json is JSON");
        let tensors = read("expected.safetensors");
        Fixture { folder, numbers, tensors }
    }

    /// The architecture's name.
    pub fn name(&self) -> String {
        self.folder.file_name().expect("a folder has a name").to_string_lossy().into_owned()
    }

    /// A number of `expected.json`.
    pub fn number(&self, key: &str) -> f64 {
        self.numbers[key].as_f64().unwrap_or_else(|| panic!("no number `{key}`"))
    }

    /// A tensor's shape and bytes.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let tensors = SafeTensors::deserialize(&self.tensors).expect("expected.safetensors is well-formed");
        let tensor = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    /// An i32 tensor as token ids.
    pub fn tokens(&self, name: &str) -> (Vec<usize>, Vec<u32>) {
        let (shape, bytes) = self.tensor(name);
        let tokens = bytes.chunks_exact(4).map(|chunk| i32::from_le_bytes(chunk.try_into().expect("four bytes")));
        (shape, tokens.map(|token| u32::try_from(token).expect("token ids are not negative")).collect())
    }

    /// An f64 tensor.
    pub fn f64s(&self, name: &str) -> Vec<f64> {
        let (_, bytes) = self.tensor(name);
        bytes.chunks_exact(8).map(|chunk| f64::from_le_bytes(chunk.try_into().expect("eight bytes"))).collect()
    }

    /// An f32 tensor.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let (_, bytes) = self.tensor(name);
        bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().expect("four bytes"))).collect()
    }

    /// How many token ids the model knows.
    pub fn vocabulary(&self) -> u64 {
        let bytes = std::fs::read(self.folder.join("config.json")).expect("config.json is there");
        let config: Value = serde_json::from_slice(&bytes).expect("config.json is JSON");
        config["vocab_size"].as_u64().expect("a vocabulary")
    }

    /// Calibration windows of each silo.
    pub fn silos(&self) -> Vec<Vec<Vec<u32>>> {
        let (shape, tokens) = self.tokens("tokens.silos");
        let (samples, length) = (shape[1], shape[2]);
        tokens
            .chunks_exact(samples * length)
            .map(|silo| silo.chunks_exact(length).map(<[u32]>::to_vec).collect())
            .collect()
    }

    /// Evaluation windows; the tail is dropped.
    pub fn evaluation(&self) -> Vec<Vec<u32>> {
        let (_, tokens) = self.tokens("tokens.eval");
        let length = self.number("seqlen") as usize;
        let windows = self.number("eval_windows") as usize;
        tokens.chunks_exact(length).take(windows).map(<[u32]>::to_vec).collect()
    }

    /// The checkpoint with a tokenizer in `folder`/model, and a text for each silo, whose paths are returned; the text
    /// that perplexity is measured on is `folder`/evaluation.txt.
    ///
    /// The oracle gives windows as token ids, and its checkpoints have no tokenizer: this one's words are its ids, so
    /// that a text of those words is those windows.
    pub fn furnish(&self, folder: &Path) -> Vec<PathBuf> {
        let model = folder.join("model");
        std::fs::create_dir(&model).expect("a folder");
        for entry in std::fs::read_dir(&self.folder).expect("a fixture") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_owned();
            if !name.to_string_lossy().starts_with("expected") {
                std::fs::copy(&path, model.join(name)).expect("a copy");
            }
        }
        let vocabulary: serde_json::Map<String, Value> =
            (0..self.vocabulary()).map(|id| (format!("t{id}"), json!(id))).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "t0" },
        });
        std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
        let write = |name: String, windows: Vec<Vec<u32>>| {
            let words: Vec<String> = windows.iter().flatten().map(|token| format!("t{token}")).collect();
            let path = folder.join(name);
            std::fs::write(&path, words.join(" ")).expect("a file");
            path
        };
        write("evaluation.txt".to_owned(), self.evaluation());
        let silos = self.silos().into_iter().enumerate();
        silos.map(|(silo, windows)| write(format!("silo{silo}.txt"), windows)).collect()
    }
}
