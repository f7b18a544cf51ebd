//! What lies in a checkpoint's folder.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use fedprune_checkpoint::config::{MAX_BLOCKS, MAX_FEATURES, MAX_HEADS, MAX_VOCABULARY};
use fedprune_checkpoint::{Checkpoint, ModelConfig};
use tempfile::TempDir;

use super::scratch;
use crate::seeds::{CONFIG, weight_file};

/// `config.json`.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(config) = ModelConfig::parse(Path::new("config.json"), bytes) else { return false };
    for (size, most) in [
        (config.hidden_size, MAX_FEATURES),
        (config.intermediate_size, MAX_FEATURES),
        (config.blocks, MAX_BLOCKS),
        (config.attention_heads, MAX_HEADS),
        (config.key_value_heads, MAX_HEADS),
        (config.head_dim, MAX_HEADS),
        (config.attention_heads * config.head_dim, MAX_FEATURES),
        (config.vocab_size, MAX_VOCABULARY),
    ] {
        assert!((1..=most).contains(&size), "{config:?}");
    }
    assert!(config.attention_heads.is_multiple_of(config.key_value_heads), "{config:?}");
    assert!(config.head_dim.is_multiple_of(2), "{config:?}");
    assert!(config.rms_norm_eps.is_finite() && config.rope.theta.is_finite(), "{config:?}");
    assert_eq!(config.forward_digest(), config.clone().forward_digest());
    true
}

/// Two checkpoints of one block: one in a file, one with an index.
struct Folders {
    _scratch: TempDir,
    single: PathBuf,
    indexed: PathBuf,
}

static FOLDERS: LazyLock<Mutex<Folders>> = LazyLock::new(|| {
    let scratch = scratch();
    let make = |name: &str| {
        let folder = scratch.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("config.json"), CONFIG).expect("a file");
        folder
    };
    let (single, indexed) = (make("single"), make("indexed"));
    for (name, block) in [("model-1.safetensors", false), ("model-2.safetensors", true)] {
        std::fs::write(indexed.join(name), weight_file(&|tensor| tensor.contains("layers") == block)).expect("a file");
    }
    Mutex::new(Folders { _scratch: scratch, single, indexed })
});

/// A weight file behind a byte 0, the index of two behind any other.
pub fn safetensors(bytes: &[u8]) -> bool {
    let Some((which, bytes)) = bytes.split_first() else { return false };
    // what failed before left the folders as they were
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let (folder, name) = match which {
        0 => (&folders.single, "model.safetensors"),
        _ => (&folders.indexed, "model.safetensors.index.json"),
    };
    std::fs::write(folder.join(name), bytes).expect("a file");
    let Ok(checkpoint) = Checkpoint::open(folder) else { return false };
    for (index, matrix) in checkpoint.layout().matrices().iter().enumerate() {
        let view = checkpoint.matrix(index);
        assert_eq!((view.rows(), view.columns()), (matrix.rows as usize, matrix.columns as usize));
        // every byte is there
        let _ = view.check_finite();
    }
    assert_eq!(checkpoint.content_digest(&|_| ()), checkpoint.content_digest(&|_| ()));
    true
}
