//! The other files of a checkpoint folder, and which of them belong into a pruned copy.
//!
//! Carried: regular files that hold no weights (configuration, tokenizer, chat template, licence, code).
//! Left out, and named in [`Written::skipped`](crate::Written::skipped): weight files that are not the
//! checkpoint's own, what says from where the original was fetched, sub-folders, hidden files, dangling links, and files above
//! [`MAX_CARRIED_BYTES`].
//!
//! Links are followed, since the Hugging Face cache consists of them, but only to files in the folder
//! itself or in the `blobs` of the same cached repository: a copy is made to be published, and a
//! downloaded folder must not be able to pull a private file of this machine into it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::error::{CheckpointError, reading};
use crate::shards::INDEX_FILE;
use crate::write::Skipped;

/// Largest file carried along, in bytes; the largest tokenizers have some 30 MB.
pub const MAX_CARRIED_BYTES: u64 = 256 << 20;

/// Says from where the files of a folder were fetched, and what their digests are: those of a copy are others.
pub const PROVENANCE_FILE: &str = "fetched-from.json";

/// The picture of how far votes agreed: of another pruning than that which is being written.
pub const AGREEMENT_PICTURE_FILE: &str = "pruning-agreement.svg";

/// The model card, which every copy gets anew.
pub(crate) const CARD: &str = "README.md";

/// Endings of files that hold weights in some format: in a pruned copy they would be the unpruned model.
const WEIGHT_ENDINGS: [&str; 20] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "msgpack",
    "h5",
    "hdf5",
    "tflite",
    "pb",
    "npz",
    "npy",
    "pkl",
    "pickle",
    "mlmodel",
    "engine",
];

/// A file to be copied as it is.
#[derive(Debug)]
pub(crate) struct Carried {
    pub source: PathBuf,
    /// Its name in the copy.
    pub name: OsString,
    /// Size when surveyed.
    pub bytes: u64,
}

/// What goes along and what does not.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub carried: Vec<Carried>,
    pub skipped: Vec<Skipped>,
    /// Name under which the original's model card is kept, when a new one takes its place.
    pub base_card: Option<String>,
}

/// Whether a file holds weights, or is the index of files that do, judged by its name. Copies leave such files out: they would
/// be the unpruned model.
pub fn is_weight_file(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".index.json").unwrap_or(&name);
    name.rsplit_once('.').is_some_and(|(_, ending)| WEIGHT_ENDINGS.contains(&ending))
}

/// Decides about every file of the folder; `replaced` says which names the caller brings itself.
pub(crate) fn survey(checkpoint: &Checkpoint, replaced: &dyn Fn(&str) -> bool) -> Result<Survey, CheckpointError> {
    let folder = checkpoint.dir();
    let roots = link_roots(folder)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading("list", folder))? {
        names.push(entry.map_err(reading("list", folder))?.file_name());
    }
    names.sort_unstable();

    // A copy is often published; a link out of the folder would take a private file along, weights or not.
    for shard in &checkpoint.shards {
        let target = shard.path.canonicalize().map_err(reading("follow", &shard.path))?;
        if !roots.iter().any(|root| target.starts_with(root)) {
            return Err(CheckpointError::LinkLeaves { path: shard.path.clone(), target });
        }
    }
    let mut survey = Survey::default();
    for name in &names {
        let shown = name.to_string_lossy();
        let source = folder.join(name);
        // Weights are written by the writer.
        if checkpoint.shards.iter().any(|shard| shard.name == shown) || (replaced(&shown) && shown != CARD) {
            continue;
        }
        let mut skip = |reason| survey.skipped.push(Skipped { name: shown.to_string(), reason });
        if shown == PROVENANCE_FILE {
            skip("it is about the files of the original");
            continue;
        }
        if shown == AGREEMENT_PICTURE_FILE {
            skip("it is about an earlier pruning");
            continue;
        }
        if shown.starts_with('.') {
            skip("hidden");
            continue;
        }
        if is_weight_file(&shown) && !(shown == INDEX_FILE && checkpoint.is_sharded()) {
            skip("weights that are not part of the checkpoint");
            continue;
        }
        let Ok(metadata) = fs::metadata(&source) else {
            skip("a dangling link, or unreadable");
            continue;
        };
        if !metadata.is_file() {
            skip("not a regular file");
            continue;
        }
        let target = source.canonicalize().map_err(reading("follow", &source))?;
        if !roots.iter().any(|root| target.starts_with(root)) {
            return Err(CheckpointError::LinkLeaves { path: source, target });
        }
        if metadata.len() > MAX_CARRIED_BYTES {
            skip("larger than 256 MiB");
            continue;
        }
        let name = if shown == CARD && replaced(CARD) {
            let kept = free_card_name(&|candidate| replaced(candidate) || names.iter().any(|name| name == candidate));
            survey.base_card = Some(kept.clone());
            OsString::from(kept)
        } else {
            name.clone()
        };
        survey.carried.push(Carried { source, name, bytes: metadata.len() });
    }
    Ok(survey)
}

/// `README.base.md`, or with a number when an earlier copy's is there already.
fn free_card_name(taken: &dyn Fn(&str) -> bool) -> String {
    let mut name = "README.base.md".to_owned();
    let mut number = 2;
    while taken(&name) {
        name = format!("README.base-{number}.md");
        number += 1;
    }
    name
}

/// Where the folder's links may lead.
fn link_roots(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let own = folder.canonicalize().map_err(reading("read", folder))?;
    // The cache: `models--…/snapshots/REVISION/config.json` is a link to `models--…/blobs/HASH`.
    let blobs = own.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent);
    let blobs = blobs.map(|repository| repository.join("blobs"));
    Ok(std::iter::once(own).chain(blobs).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_weights_from_what_belongs_to_them() {
        for name in [
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "model.fp16.safetensors",
            "model.safetensors.index.json",
            "consolidated.00.pth",
            "ggml-model-q4_0.GGUF",
            "model.onnx_data",
        ] {
            assert!(is_weight_file(name), "{name}");
        }
        for name in ["config.json", "tokenizer.model", "tokenizer.json", "merges.txt", "LICENSE", "chat_template.jinja"]
        {
            assert!(!is_weight_file(name), "{name}");
        }
    }

    #[test]
    fn the_original_card_never_overwrites_an_older_one() {
        assert_eq!(free_card_name(&|_| false), "README.base.md");
        assert_eq!(free_card_name(&|name| name == "README.base.md"), "README.base-2.md");
    }
}
