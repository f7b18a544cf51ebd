//! Which weight files a checkpoint has, and what its index says about them.
//!
//! As in `transformers`: a `model.safetensors` is the whole model even where an index lies beside it;
//! otherwise the index names the files, and every tensor stored in those files belongs to the model,
//! whether or not the index lists it. Stricter than there: each tensor that the index lists must be in
//! the file that it names, and no tensor may be in two files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::config::read_bounded;
use crate::error::{CheckpointError, reading, shorten};
use crate::header::MAX_TENSORS;

/// The weight file of an unsharded checkpoint.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded one.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// Largest index read, in bytes; one of 100,000 tensors has about 10 MB.
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// Most shards.
const MAX_SHARDS: usize = 4096;
/// Longest file name, in bytes.
const MAX_FILE_NAME_BYTES: usize = 255;

/// The weight files of a folder.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    /// Plain names inside the folder, sorted.
    pub names: Vec<String>,
    /// The index, unless there is a single file.
    pub index: Option<Index>,
}

/// `model.safetensors.index.json`.
#[derive(Debug)]
pub(crate) struct Index {
    pub path: PathBuf,
    /// Tensor name → file name, in name order.
    pub weight_map: BTreeMap<String, String>,
}

/// Finds the weight files of `folder`; opens none of them.
pub(crate) fn find(folder: &Path) -> Result<WeightFiles, CheckpointError> {
    if folder.join(SINGLE_FILE).is_file() {
        return Ok(WeightFiles { names: vec![SINGLE_FILE.to_owned()], index: None });
    }
    let path = folder.join(INDEX_FILE);
    if !path.is_file() {
        return Err(CheckpointError::NoWeights { path: folder.to_owned(), remedy: remedy(folder)? });
    }
    let bytes = read_bounded(&path, MAX_INDEX_BYTES)?;
    let IndexFile { weight_map: WeightMap(weight_map) } =
        serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    let bad = |problem: String| CheckpointError::Index { path: path.clone(), problem };
    if weight_map.is_empty() {
        return Err(bad("its `weight_map` lists no tensors".to_owned()));
    }
    let mut names: Vec<String> = weight_map.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_SHARDS {
        return Err(bad(format!("it names {} files, more than the {MAX_SHARDS} allowed", names.len())));
    }
    for name in &names {
        if let Err(problem) = check_file_name(name) {
            return Err(bad(format!("the file name `{}` {problem}", shorten(name))));
        }
        if !name.ends_with(".safetensors") {
            return Err(bad(format!("`{}` is no safetensors file", shorten(name))));
        }
    }
    for (tensor, name) in &weight_map {
        let shard = folder.join(name);
        match std::fs::metadata(&shard) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CheckpointError::MissingShard { index: path.clone(), shard, tensor: shorten(tensor) });
            }
            Err(error) => return Err(reading("read", &shard)(error)),
        }
    }
    Ok(WeightFiles { names, index: Some(Index { path, weight_map }) })
}

/// Refuses what is not the plain, visible name of a file inside a folder.
pub(crate) fn check_file_name(name: &str) -> Result<(), &'static str> {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name);
    if !plain || name.contains(['/', '\\', ':']) {
        return Err("leads out of the folder or into another");
    }
    if name.len() > MAX_FILE_NAME_BYTES || name.chars().any(char::is_control) {
        return Err("is too long or has control characters");
    }
    if name.starts_with('.') {
        return Err("is that of a hidden file");
    }
    Ok(())
}

/// What to do about a folder without safetensors: convert what it has, or download it.
fn remedy(folder: &Path) -> Result<String, CheckpointError> {
    let entries = std::fs::read_dir(folder).map_err(reading("list", folder))?;
    let mut others: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| crate::carry::is_weight_file(name))
        .collect();
    others.sort_unstable();
    Ok(match others.first() {
        Some(other) => format!(
            "it has `{}`: convert it with `AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)` \
             of `transformers`",
            shorten(other)
        ),
        None => "download the weights into it".to_owned(),
    })
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: WeightMap,
}

struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a `weight_map` of at most {MAX_TENSORS} tensor names and their files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::invalid_length(MAX_TENSORS + 1, &self));
                    }
                    if let Some(duplicate) = entries.insert(tensor, file) {
                        let duplicate = shorten(&duplicate);
                        return Err(A::Error::custom(format_args!("a tensor is listed twice, once in `{duplicate}`")));
                    }
                }
                Ok(WeightMap(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
