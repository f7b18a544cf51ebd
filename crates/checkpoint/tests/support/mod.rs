//! Copies of the fixtures, and small changes to them.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use fedprune_checkpoint::{Checkpoint, CheckpointError};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The architectures of the oracle.
pub const FIXTURES: [&str; 5] = ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"];

/// A tensor for [`write_file`]: name, dtype, shape, bytes.
pub type Stored = (String, String, Vec<usize>, Vec<u8>);

pub fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

/// A copy of a fixture's checkpoint, in a folder named `model` that may be changed.
pub struct Copied {
    pub temporary: TempDir,
    pub folder: PathBuf,
}

pub fn copied(name: &str) -> Copied {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("model");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("expected.") {
            fs::write(folder.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
    }
    Copied { temporary, folder }
}

impl Copied {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn weights(&self) -> PathBuf {
        self.path("model.safetensors")
    }

    pub fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.folder).unwrap()
    }

    pub fn refused(&self) -> CheckpointError {
        Checkpoint::open(&self.folder).expect_err("must be refused")
    }

    /// Asserts that opening fails with a message that has all of these parts.
    #[track_caller]
    pub fn refused_with(&self, parts: &[&str]) {
        assert_says(&self.refused(), parts);
    }

    pub fn edit_config(&self, edit: impl FnOnce(&mut Map<String, Value>)) {
        edit_json(&self.path("config.json"), edit);
    }

    /// Rewrites the header of a weight file, data untouched.
    pub fn edit_header(&self, file: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.path(file);
        let bytes = fs::read(&path).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut header: Map<String, Value> = serde_json::from_slice(header).unwrap();
        edit(&mut header);
        write_raw(&path, &serde_json::to_vec(&header).unwrap(), data);
    }
}

#[track_caller]
pub fn assert_says(error: &CheckpointError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut map: Map<String, Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut map);
    fs::write(path, serde_json::to_vec(&map).unwrap()).unwrap();
}

pub fn write_raw(path: &Path, header: &[u8], data: &[u8]) {
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header, data].concat()).unwrap();
}

/// A safetensors file with these tensors, in this order.
pub fn write_file(path: &Path, tensors: &[Stored]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend_from_slice(bytes);
    }
    write_raw(path, &serde_json::to_vec(&header).unwrap(), &data);
}

/// The tensors of a file as the `safetensors` crate reads them, by name.
pub fn read_file(path: &Path) -> Vec<Stored> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<Stored> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype().to_string(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}

/// Names of everything in a folder, sorted.
pub fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
