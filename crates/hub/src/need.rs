//! Which files of a repository a model folder needs: configuration, tokenizer, weights, and no other.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::error::{HubError, shorten};
use crate::listing::{Listing, RemoteFile};
use crate::name::RepositoryName;

/// The configuration, with the most bytes of one.
pub(crate) const CONFIG: (&str, u64) = ("config.json", 1 << 20);
/// The tokenizer, with the most bytes of one.
const TOKENIZER: (&str, u64) = ("tokenizer.json", 256 << 20);
/// What may belong to a tokenizer beside that, with the most bytes of each.
const OF_TOKENIZER: [(&str, u64); 8] = [
    ("tokenizer_config.json", 64 << 20),
    ("special_tokens_map.json", 64 << 20),
    ("added_tokens.json", 64 << 20),
    ("vocab.json", 256 << 20),
    ("merges.txt", 256 << 20),
    ("tokenizer.model", 256 << 20),
    ("chat_template.jinja", 1 << 20),
    ("chat_template.json", 1 << 20),
];
/// The weights in one file.
const SINGLE: &str = "model.safetensors";
/// The index of weights in several, with the most bytes of one.
const INDEX: (&str, u64) = ("model.safetensors.index.json", 32 << 20);
/// Most files of weights.
const MAX_SHARDS: usize = 4096;
/// Longest name of one, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// What is needed of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// `config.json`, which says whether anything else is worth fetching.
    pub config: RemoteFile,
    /// `tokenizer.json` and what belongs to it.
    pub tokenizer: Vec<RemoteFile>,
    /// Where the weights are.
    pub weights: Weights,
}

/// The weights of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// All in this file.
    Single(RemoteFile),
    /// In the files that this one names.
    Index(RemoteFile),
}

impl Needed {
    /// What is needed of what is listed.
    ///
    /// # Errors
    /// [`HubError::Missing`] for what is not there, [`HubError::TooLarge`] for what is out of proportion.
    pub fn of(listing: &Listing, name: &RepositoryName) -> Result<Self, HubError> {
        let missing = |file: &str, remedy: &'static str| HubError::Missing {
            name: name.to_string(),
            file: file.to_owned(),
            commit: listing.commit.to_string(),
            remedy,
        };
        let known = "see that it is a model, in the format of transformers, of a hub that tells sizes and digests";
        let config = small(listing, CONFIG)?.ok_or_else(|| missing(CONFIG.0, known))?;
        let no_tokenizer = "texts are read with it; make one with `AutoTokenizer.from_pretrained(…).save_pretrained(…)` of transformers";
        let mut tokenizer = vec![small(listing, TOKENIZER)?.ok_or_else(|| missing(TOKENIZER.0, no_tokenizer))?];
        for file in OF_TOKENIZER {
            tokenizer.extend(small(listing, file)?);
        }
        // as a folder is read: the single file is the model even where an index lies beside it
        let weights = match (listing.file(SINGLE), small(listing, INDEX)?) {
            (Some(single), _) => Weights::Single(single.clone()),
            (None, Some(index)) => Weights::Index(index),
            (None, None) => {
                let no_weights = "weights in other formats are not read; convert them with \
                                  `AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)` of transformers, \
                                  or `fedprune model import` for GGUF";
                return Err(missing(SINGLE, no_weights));
            }
        };
        Ok(Self { config, tokenizer, weights })
    }

    /// Everything but the weights themselves.
    pub fn small(&self) -> impl Iterator<Item = &RemoteFile> {
        let index = match &self.weights {
            Weights::Index(index) => Some(index),
            Weights::Single(_) => None,
        };
        std::iter::once(&self.config).chain(&self.tokenizer).chain(index)
    }
}

fn small(listing: &Listing, (name, most): (&str, u64)) -> Result<Option<RemoteFile>, HubError> {
    match listing.file(name) {
        Some(file) if file.bytes > most => Err(HubError::TooLarge { file: name.to_owned(), bytes: file.bytes, most }),
        file => Ok(file.cloned()),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files of weights that an index names, in the order of their names; all are listed.
///
/// # Errors
/// [`HubError::Index`] for what is no index, and for names that no file of weights has or that are not listed.
pub fn shards(index: &[u8], listing: &Listing) -> Result<Vec<RemoteFile>, HubError> {
    let bad = |why: String| HubError::Index(why);
    let index: Index = serde_json::from_slice(index).map_err(|error| bad(shorten(&error.to_string())))?;
    let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if names.is_empty() {
        return Err(bad("it names no file".to_owned()));
    }
    if names.len() > MAX_SHARDS {
        return Err(bad(format!("it names {} files, more than the {MAX_SHARDS} allowed", names.len())));
    }
    let shard = |name: &str| {
        if !is_shard(name) {
            return Err(bad(format!("`{}` is no name of a file of weights", shorten(name))));
        }
        let file = listing.file(name);
        file.cloned().ok_or_else(|| bad(format!("it names `{name}`, which the hub does not list with size and digest")))
    };
    names.into_iter().map(shard).collect()
}

/// Whether a name is that of a file of weights, in the folder itself and nowhere else.
fn is_shard(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    plain && name.len() <= MAX_NAME_BYTES && !name.starts_with('.') && name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::listing::Identity;

    fn listing(files: &[(&str, u64)]) -> Listing {
        let file = |(name, bytes): &(&str, u64)| RemoteFile {
            name: (*name).to_owned(),
            bytes: *bytes,
            identity: Identity::Sha256("0".repeat(64)),
        };
        let commit = "0".repeat(40).parse().unwrap();
        Listing { commit, licence: None, files: files.iter().map(file).collect() }
    }

    fn needed(files: &[(&str, u64)]) -> Result<Needed, HubError> {
        Needed::of(&listing(files), &"a/b".parse().unwrap())
    }

    #[test]
    fn only_what_a_model_folder_has_is_needed() {
        let files = [
            ("README.md", 1),
            ("config.json", 1),
            ("../../.bashrc", 1),
            ("onnx/model.onnx", 1),
            ("pytorch_model.bin", 1 << 40),
            ("tokenizer.json", 1),
            ("merges.txt", 1),
            ("model.safetensors", 1 << 40),
        ];
        let found = needed(&files).unwrap();
        let small: Vec<&str> = found.small().map(|file| file.name.as_str()).collect();
        assert_eq!(small, ["config.json", "tokenizer.json", "merges.txt"]);
        assert!(matches!(found.weights, Weights::Single(ref file) if file.bytes == 1 << 40));
        let index = ("model.safetensors.index.json", 1);
        let sharded = needed(&[("config.json", 1), ("tokenizer.json", 1), index]).unwrap();
        assert_eq!(sharded.small().last().unwrap().name, index.0);
    }

    #[test]
    fn what_is_missing_or_out_of_proportion_is_named() {
        let all = [("config.json", 1), ("tokenizer.json", 1), ("model.safetensors", 1)];
        for left_out in 0..3 {
            let mut files = all.to_vec();
            let (name, _) = files.remove(left_out);
            assert!(matches!(needed(&files), Err(HubError::Missing { file, .. }) if file == name));
        }
        for (file, bytes) in [("config.json", (1 << 20) + 1), ("tokenizer.json", u64::MAX), ("vocab.json", 1 << 40)] {
            let files: Vec<(&str, u64)> =
                all.iter().copied().filter(|(name, _)| *name != file).chain([(file, bytes)]).collect();
            assert!(matches!(needed(&files), Err(HubError::TooLarge { .. })), "{file}");
        }
    }

    #[test]
    fn an_index_names_listed_files_of_this_folder() {
        let listing = listing(&[("a.safetensors", 1), ("b.safetensors", 2), ("../c.safetensors", 3), ("x.bin", 4)]);
        let of = |map: serde_json::Value| {
            shards(json!({ "weight_map": map, "metadata": { "x": [1] } }).to_string().as_bytes(), &listing)
        };
        let found = of(json!({ "w1": "b.safetensors", "w2": "a.safetensors", "w3": "b.safetensors" })).unwrap();
        assert_eq!(found.iter().map(|file| file.bytes).collect::<Vec<_>>(), [1, 2]);
        for bad in [
            "../c.safetensors",
            "/etc/c.safetensors",
            "x.bin",
            "not-listed.safetensors",
            ".a.safetensors",
            "a/b.safetensors",
            "",
        ] {
            assert!(matches!(of(json!({ "w": bad })), Err(HubError::Index(_))), "{bad}");
        }
        assert!(matches!(of(json!({})), Err(HubError::Index(_))));
        assert!(matches!(shards(b"{}", &listing), Err(HubError::Index(_))));
    }
}
