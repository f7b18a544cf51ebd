//! A GGUF file, as llama.cpp has it, as a checkpoint folder in Hugging Face layout.
//!
//! Only what comes out the same is imported: `llama` architectures whose tensors are F32, F16 or BF16. Bytes are copied,
//! with two exceptions that undo what llama.cpp's converter did:
//!
//! * **Rows of q and k.** LLaMA rotates dimension i with i + d/2, llama.cpp dimension 2i with 2i + 1, and its converter
//!   permutes the rows of each head to match (`permute` in `convert_hf_to_gguf.py`). They are put back: row i·d/2 + j of
//!   a head is row 2j + i of the file, i in 0..2.
//! * **Norms.** The converter stores vectors as F32 whatever the model had. A vector of which every value is exactly
//!   representable in the format of the matrices is stored in that; the numbers are the same.
//!
//! A quantised file is refused: its weights are no longer the model's, and pruning what another program reads
//! differently agrees with nobody. The header is read by candle, behind bounds of its size and of its values; every tensor is then checked
//! against the file before it is read, one at a time. The folder appears whole, after it was opened as a checkpoint, or
//! not at all.

mod config;
mod tokenizer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use fedprune_checkpoint::{Checkpoint, CheckpointError};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::View;

/// Most bytes before the tensors: vocabularies of a quarter of a million tokens take seven million.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most values in the header, about: candle keeps each in 32 bytes, the smallest of which have one in the file, and reads
/// each on its own. A quarter of a million tokens with their scores, kinds and merges take two million reads.
const MAX_HEADER_READS: u64 = 4 << 20;
const _: () = assert!(size_of::<Value>() <= 32);
/// Most tensors, beyond what any checkpoint here has.
const MAX_TENSORS: usize = 1 << 16;
/// Longest name of a tensor that is repeated in a message.
const MAX_SHOWN_CHARS: usize = 100;

/// What is imported and from where.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// The GGUF file.
    pub file: &'a Path,
    /// The folder to make.
    pub out: &'a Path,
    /// The model's `tokenizer.json`, instead of one made from the file's vocabulary.
    pub tokenizer: Option<&'a Path>,
    /// The model's `config.json`, instead of one made from the file's metadata.
    pub config: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Matrices whose rows were put back.
    pub permuted: usize,
    /// Vectors stored in the format of the matrices.
    pub narrowed: usize,
    /// Where the tokenizer came from, in words; none if there is none.
    pub tokenizer: Option<String>,
    /// What to know about it.
    pub notes: Vec<String>,
}

/// Why a file is not imported.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot write `{}`; nothing of it was left behind", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something already.
    #[error("`{}` exists and is not overwritten; choose another --out or remove it", .0.display())]
    Exists(PathBuf),
    /// Not the format.
    #[error("`{}` is no GGUF file that can be read: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: String,
    },
    /// Another kind of model.
    #[error("`{}` holds a model of architecture `{found}`, and only `llama` can be imported; convert it from its original checkpoint", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Weights that are not the model's any more.
    #[error(
        "`{tensor}` is stored as {found}: quantised weights are no longer the model's, and are not imported; get the file as F16, \
         BF16 or F32, or the original checkpoint"
    )]
    Quantised {
        /// The tensor.
        tensor: String,
        /// Its format.
        found: String,
    },
    /// A tensor that has no place in a checkpoint.
    #[error("the tensor `{tensor}` cannot be imported: {why}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something about the model that is missing or beyond what a configuration can say.
    #[error("`{key}` {why}; if you have the model's config.json, give it with --config FILE")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A file that was given beside it.
    #[error("`{}` cannot be used: {why}", path.display())]
    Given {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What was written is no checkpoint: the file lacks something.
    #[error("what `{}` holds is no whole model", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// What a checkpoint lacks.
        source: Box<CheckpointError>,
    },
}

/// Imports a file.
///
/// # Errors
/// [`GgufError`] naming the tensor, key or file. Nothing is left in `out` then.
pub fn import(import: &Import<'_>) -> Result<Imported, GgufError> {
    let Import { file: path, out, .. } = *import;
    if out.symlink_metadata().is_ok() {
        return Err(GgufError::Exists(out.to_owned()));
    }
    let reading = |source| GgufError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(reading)?;
    let bytes = file.metadata().map_err(reading)?.len();
    let longer = if bytes > MAX_HEADER_BYTES {
        format!(" (a header has at most {MAX_HEADER_BYTES} bytes, and no more of the file was looked at)")
    } else {
        String::new()
    };
    let unreadable = |why: &str| GgufError::Format { path: path.to_owned(), why: shown(why) + &longer };
    let mut bounded = Bounded { file: BufReader::new(&mut file), end: bytes.min(MAX_HEADER_BYTES), at: 0, reads: 0 };
    // it divides by an alignment that may be zero
    let content = crate::text::survived(|| Content::read(&mut bounded))
        .ok_or_else(|| unreadable("it is damaged in a way that the reader does not survive"))?
        .map_err(|error| unreadable(&error.to_string()))?;
    let metadata = config::Metadata(&content.metadata);
    let architecture = metadata.text("general.architecture").unwrap_or("none");
    if architecture != "llama" {
        return Err(GgufError::Architecture { path: path.to_owned(), found: shown(architecture) });
    }
    let heads = config::heads(&metadata)?;
    let plan = plan(&content, bytes, heads)?;
    let config = match import.config {
        Some(given) => read_given(given, config::MAX_BYTES)?,
        None => config::config(&metadata, &content)?,
    };
    let mut notes = Vec::new();
    let made = tokenizer::tokenizer(&metadata);
    let (tokenizer, source) = match (import.tokenizer, made) {
        (Some(given), _) => {
            let bytes = read_given(given, fedprune_checkpoint::MAX_TOKENIZER_BYTES)?;
            (Some(bytes), Some(format!("{}, as given", given.display())))
        }
        (None, Ok((bytes, source))) => (Some(bytes), Some(source)),
        (None, Err(why)) => {
            notes.push(format!("there is no tokenizer: {why}; give the model's tokenizer.json with --tokenizer FILE"));
            (None, None)
        }
    };

    let writing = |source| GgufError::Write { path: out.to_owned(), source };
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = parent.join(format!(".fedprune-import-{}", std::process::id()));
    std::fs::create_dir(&staged).map_err(writing)?;
    let staging = Staging(staged);
    let folder = &staging.0;
    std::fs::write(folder.join("config.json"), config).map_err(writing)?;
    if let Some(tokenizer) = tokenizer {
        std::fs::write(folder.join("tokenizer.json"), tokenizer).map_err(writing)?;
    }
    let counts = write_weights(&plan, file, path, &folder.join("model.safetensors"), out)?;
    let opened = Checkpoint::open(folder);
    opened.map_err(|source| GgufError::Incomplete { path: path.to_owned(), source: Box::new(source) })?;
    std::fs::rename(folder, out).map_err(writing)?;
    let weight_bytes = plan.values().map(|planned| planned.bytes).sum();
    let permuted = plan.values().filter(|planned| planned.heads.is_some()).count();
    Ok(Imported { tensors: plan.len(), weight_bytes, permuted, narrowed: counts, tokenizer: source, notes })
}

/// A folder that is removed unless it got its name.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // after the rename there is nothing of this name
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Text from the file, fit for a message.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// A file that people gave.
fn read_given(path: &Path, limit: u64) -> Result<Vec<u8>, GgufError> {
    let reading = |source| GgufError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(reading)?;
    if bytes.len() as u64 > limit {
        return Err(GgufError::Given { path: path.to_owned(), why: format!("it has more than {limit} bytes") });
    }
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(GgufError::Given { path: path.to_owned(), why: error.to_string() }),
    }
}

/// A reader to whom a file ends where a header has to, and who reads no more often than a header needs.
struct Bounded<'f> {
    file: BufReader<&'f mut File>,
    /// Where it ends, in bytes.
    end: u64,
    /// Where it is, in bytes.
    at: u64,
    reads: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        if self.reads > MAX_HEADER_READS {
            return Err(io::Error::other("its header holds more values than any model needs"));
        }
        let left = self.end.saturating_sub(self.at);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read(&mut buffer[..most])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Bounded<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // within what is buffered, nothing is read again
        let to = match to {
            SeekFrom::Start(to) => to,
            SeekFrom::End(from) => self.end.saturating_add_signed(from),
            SeekFrom::Current(from) => self.at.saturating_add_signed(from),
        };
        let from = i64::try_from(i128::from(to) - i128::from(self.at)).map_err(io::Error::other)?;
        self.file.seek_relative(from)?;
        self.at = to;
        Ok(to)
    }
}

/// How many heads q and k have.
#[derive(Debug, Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
}

/// One tensor: where it lies and what becomes of it.
#[derive(Debug, Clone)]
struct Planned {
    offset: u64,
    bytes: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    /// How many heads' rows are to be put back.
    heads: Option<usize>,
}

/// All tensors by their names in the checkpoint, each checked to lie in the file.
fn plan(content: &Content, file_bytes: u64, heads: Heads) -> Result<BTreeMap<String, Planned>, GgufError> {
    let wrong = |tensor: &str, why: String| GgufError::Tensor { tensor: shown(tensor), why };
    if content.tensor_infos.len() > MAX_TENSORS {
        return Err(wrong("…", format!("the file has more than {MAX_TENSORS} tensors")));
    }
    // in one order, so that the same file is refused for the same reason
    let sorted: BTreeMap<&String, &TensorInfo> = content.tensor_infos.iter().collect();
    let mut plan = BTreeMap::new();
    for (name, info) in sorted {
        let (dtype, width) = match info.ggml_dtype {
            GgmlDType::F32 => (Dtype::F32, 4u64),
            GgmlDType::F16 => (Dtype::F16, 2),
            GgmlDType::BF16 => (Dtype::BF16, 2),
            other => return Err(GgufError::Quantised { tensor: shown(name), found: format!("{other:?}") }),
        };
        let Some((target, rotated)) = target(name) else {
            let why = if name == "rope_freqs.weight" {
                "it scales the rotary frequencies, which this file's metadata does not describe as a config.json does"
                    .to_owned()
            } else {
                "no `llama` checkpoint has a place for it".to_owned()
            };
            return Err(wrong(name, why));
        };
        let shape = info.shape.dims().to_vec();
        let values = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size as u64));
        let bytes = values.and_then(|values| values.checked_mul(width)).filter(|bytes| *bytes > 0);
        let end = |bytes: u64| content.tensor_data_offset.checked_add(info.offset)?.checked_add(bytes);
        let Some(bytes) = bytes.filter(|bytes| end(*bytes).is_some_and(|end| end <= file_bytes)) else {
            return Err(wrong(
                name,
                format!("its {shape:?} values do not lie in the file, which is cut short or damaged"),
            ));
        };
        let heads = match rotated {
            Some(Rotated::Query) => Some(heads.queries),
            Some(Rotated::Key) => Some(heads.keys),
            None => None,
        };
        let rows = shape.first().copied().unwrap_or(0);
        if heads.is_some_and(|heads| heads == 0 || !rows.is_multiple_of(heads.saturating_mul(2))) {
            return Err(wrong(name, format!("its {rows} rows are not those of heads of an even size")));
        }
        let offset = content.tensor_data_offset.saturating_add(info.offset);
        plan.insert(target, Planned { offset, bytes, dtype, shape, heads });
    }
    Ok(plan)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotated {
    Query,
    Key,
}

/// What a tensor is called in a checkpoint, and whether its rows were permuted.
fn target(name: &str) -> Option<(String, Option<Rotated>)> {
    let global = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(global) = global {
        return Some((global.to_owned(), None));
    }
    let (block, part) = name.strip_prefix("blk.")?.split_once('.')?;
    // the one spelling of a number, so that no two tensors become one
    let block = block.parse::<u32>().ok().filter(|number| number.to_string() == block)?;
    let (part, kind) = part.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let (part, rotated) = match part {
        "attn_q" => ("self_attn.q_proj", Some(Rotated::Query)),
        "attn_k" => ("self_attn.k_proj", Some(Rotated::Key)),
        "attn_v" => ("self_attn.v_proj", None),
        "attn_output" => ("self_attn.o_proj", None),
        "ffn_gate" => ("mlp.gate_proj", None),
        "ffn_up" => ("mlp.up_proj", None),
        "ffn_down" => ("mlp.down_proj", None),
        "attn_norm" if kind == "weight" => ("input_layernorm", None),
        "ffn_norm" if kind == "weight" => ("post_attention_layernorm", None),
        _ => return None,
    };
    Some((format!("model.layers.{block}.{part}.{kind}"), rotated))
}

/// A tensor as the writer asks for it: read when it is asked for, so that one is in memory at a time.
struct Source<'a> {
    planned: &'a Planned,
    /// What it is stored as.
    dtype: Dtype,
    file: &'a Mutex<File>,
    failure: &'a Mutex<Option<io::Error>>,
}

impl View for Source<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.planned.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = read(self.file, self.planned).unwrap_or_else(|error| {
            // the writer has no way to fail here: it is told afterwards, and what was written is removed
            self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
            vec![0; usize::try_from(self.planned.bytes).unwrap_or(0)]
        });
        let bytes = match self.planned.heads {
            Some(heads) => put_back(&bytes, heads, self.planned.shape.first().copied().unwrap_or(1)),
            None => bytes,
        };
        Cow::Owned(if self.dtype == self.planned.dtype { bytes } else { narrow(&bytes, self.dtype).unwrap_or(bytes) })
    }

    fn data_len(&self) -> usize {
        let width = if self.dtype == self.planned.dtype { 1 } else { 2 };
        usize::try_from(self.planned.bytes).unwrap_or(usize::MAX) / width
    }
}

fn read(file: &Mutex<File>, planned: &Planned) -> io::Result<Vec<u8>> {
    let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    file.seek(SeekFrom::Start(planned.offset))?;
    let mut bytes = vec![0; usize::try_from(planned.bytes).map_err(io::Error::other)?];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The rows of each head in the order of a checkpoint.
fn put_back(bytes: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let head_rows = rows / heads.max(1);
    let half = head_rows / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for part in 0..2 {
            for pair in 0..half {
                let row = head * head_rows + 2 * pair + part;
                out.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}

/// F32 values in a format of 16 bits, if that holds each of them exactly.
fn narrow(bytes: &[u8], to: Dtype) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    let (values, _) = bytes.as_chunks::<4>();
    for value in values.iter().map(|value| f32::from_le_bytes(*value)) {
        let (narrow, back) = match to {
            Dtype::BF16 => (bf16::from_f32(value).to_le_bytes(), bf16::from_f32(value).to_f32()),
            Dtype::F16 => (f16::from_f32(value).to_le_bytes(), f16::from_f32(value).to_f32()),
            _ => return None,
        };
        if back.to_bits() != value.to_bits() {
            return None;
        }
        out.extend_from_slice(&narrow);
    }
    Some(out)
}

/// Writes the weights. Returns how many vectors were stored in the format of the matrices.
fn write_weights(
    plan: &BTreeMap<String, Planned>,
    file: File,
    path: &Path,
    to: &Path,
    out: &Path,
) -> Result<usize, GgufError> {
    let matrices: Option<Dtype> = {
        let mut dtypes: Vec<Dtype> =
            plan.values().filter(|planned| planned.shape.len() == 2).map(|planned| planned.dtype).collect();
        dtypes.dedup();
        // of several formats none is the model's
        if let [one] = dtypes.as_slice() { Some(*one) } else { None }
    };
    let file = Mutex::new(file);
    let failure = Mutex::new(None);
    let reading = |source| GgufError::Read { path: path.to_owned(), source };
    let mut sources = Vec::with_capacity(plan.len());
    let mut narrowed = 0;
    for (name, planned) in plan {
        let mut dtype = planned.dtype;
        if let Some(wanted) = matrices
            && planned.shape.len() == 1
            && dtype == Dtype::F32
            && wanted != Dtype::F32
            && narrow(&read(&file, planned).map_err(reading)?, wanted).is_some()
        {
            (dtype, narrowed) = (wanted, narrowed + 1);
        }
        sources.push((name.clone(), Source { planned, dtype, file: &file, failure: &failure }));
    }
    let format = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(sources, Some(format), to);
    written.map_err(|error| GgufError::Write { path: out.to_owned(), source: io::Error::other(error.to_string()) })?;
    match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(source) => Err(reading(source)),
        None => Ok(narrowed),
    }
}
