//! Which windows of the text a model is calibrated or measured on: the same on every machine.
//!
//! *Sequential*: window i is tokens [i·seqlen, (i+1)·seqlen) of each file in turn; what does not fill a window at
//! the end of a file is dropped. *Random*: every position at which a whole window fits in one file is equally
//! likely, drawn with replacement by [`SplitMix64`], whose output is pinned by tests.

use std::path::{Path, PathBuf};

use fedprune_checkpoint::ModelConfig;

use crate::decoder::check_sequence;
use crate::text::{TextBudget, TextFile, find_text_files};
use crate::{ModelError, Tokenizer};

/// How windows are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// From the start of each file in turn; later files are not read once there are enough windows.
    Sequential,
    /// At positions drawn uniformly from all files.
    Random {
        /// The same seed gives the same windows of the same files.
        seed: u64,
    },
}

/// What windows are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowRequest {
    /// How many.
    pub samples: usize,
    /// Tokens of each.
    pub sequence_tokens: usize,
    /// Which.
    pub sampling: Sampling,
    /// Field taken from each record of a `.jsonl` file.
    pub field: String,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes, markup of records included.
    pub bytes: u64,
    /// Its tokens.
    pub tokens: u64,
    /// Windows taken from it.
    pub windows: u64,
}

/// Windows of token ids, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Token ids, all windows of one length.
    pub windows: Vec<Vec<u32>>,
    /// The files that were read, in order.
    pub documents: Vec<Document>,
}

/// Windows to calibrate on.
///
/// # Errors
/// [`ModelError::Zero`] and [`ModelError::SequenceTooLong`] for a request that no text can meet,
/// [`ModelError::TooShort`] and [`ModelError::EmptyText`] for too little text, and what reading files gives.
pub fn calibration_windows(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    paths: &[PathBuf],
    request: &WindowRequest,
) -> Result<Windows, ModelError> {
    if request.samples == 0 {
        return Err(ModelError::Zero("--nsamples"));
    }
    check_sequence(config, request.sequence_tokens)?;
    let mut reader = Reader::new(tokenizer, paths, &request.field)?;
    match request.sampling {
        Sampling::Sequential => sequential(&mut reader, request.sequence_tokens, Some(request.samples)),
        Sampling::Random { seed } => random(&mut reader, request.sequence_tokens, request.samples, seed),
    }
}

/// Windows to measure perplexity on: sequential, all of them or the first `max_windows`.
///
/// # Errors
/// As [`calibration_windows`]; one whole window suffices.
pub fn evaluation_windows(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    paths: &[PathBuf],
    field: &str,
    sequence_tokens: usize,
    max_windows: Option<usize>,
) -> Result<Windows, ModelError> {
    if max_windows == Some(0) {
        return Err(ModelError::Zero("--max-windows"));
    }
    check_sequence(config, sequence_tokens)?;
    let mut reader = Reader::new(tokenizer, paths, field)?;
    reader.at_most = max_windows;
    sequential(&mut reader, sequence_tokens, None)
}

/// Reads and tokenises files one after the other.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    field: &'a str,
    files: std::vec::IntoIter<TextFile>,
    budget: TextBudget,
    documents: Vec<Document>,
    /// Whether any file had more than white space.
    text: bool,
    at_most: Option<usize>,
}

impl<'a> Reader<'a> {
    fn new(tokenizer: &'a Tokenizer, paths: &[PathBuf], field: &'a str) -> Result<Self, ModelError> {
        Ok(Self {
            tokenizer,
            field,
            files: find_text_files(paths)?.into_iter(),
            budget: TextBudget::default(),
            documents: Vec::new(),
            text: false,
            at_most: None,
        })
    }

    /// The tokens of the next file; none of a file that holds nothing but white space.
    fn next(&mut self) -> Result<Option<Vec<u32>>, ModelError> {
        let Some(file) = self.files.next() else { return Ok(None) };
        self.budget.take(&file)?;
        let text = file.read(self.field)?;
        let tokens = if text.trim().is_empty() {
            Vec::new()
        } else {
            self.text = true;
            self.tokenizer.encode(&text)?
        };
        self.documents.push(Document {
            path: file.path().to_owned(),
            bytes: file.bytes(),
            tokens: tokens.len() as u64,
            windows: 0,
        });
        Ok(Some(tokens))
    }
}

fn sequential(reader: &mut Reader<'_>, sequence_tokens: usize, samples: Option<usize>) -> Result<Windows, ModelError> {
    let wanted = samples.or(reader.at_most).unwrap_or(usize::MAX);
    let mut windows: Vec<Vec<u32>> = Vec::new();
    while windows.len() < wanted {
        let Some(tokens) = reader.next()? else { break };
        let before = windows.len();
        windows.extend(tokens.chunks_exact(sequence_tokens).take(wanted - before).map(<[u32]>::to_vec));
        if let Some(document) = reader.documents.last_mut() {
            document.windows = (windows.len() - before) as u64;
        }
    }
    let needed = samples.unwrap_or(1);
    if windows.len() < needed {
        return Err(too_short(reader, sequence_tokens, needed, windows.len() as u64));
    }
    Ok(Windows { windows, documents: std::mem::take(&mut reader.documents) })
}

fn random(reader: &mut Reader<'_>, sequence_tokens: usize, samples: usize, seed: u64) -> Result<Windows, ModelError> {
    let mut streams = Vec::new();
    while let Some(tokens) = reader.next()? {
        streams.push(tokens);
    }
    let positions = |tokens: &Vec<u32>| (tokens.len() + 1).saturating_sub(sequence_tokens) as u64;
    let usable: u64 = streams.iter().filter(|tokens| positions(tokens) > 0).map(|tokens| tokens.len() as u64).sum();
    let total: u64 = streams.iter().map(positions).sum();
    if total == 0 || u128::from(usable) < samples as u128 * sequence_tokens as u128 {
        return Err(too_short(reader, sequence_tokens, samples, usable / sequence_tokens as u64));
    }
    let mut generator = SplitMix64::new(seed);
    let mut windows = Vec::with_capacity(samples);
    for _ in 0..samples {
        let mut start = generator.below(total);
        for (tokens, document) in streams.iter().zip(&mut reader.documents) {
            let here = positions(tokens);
            if start < here {
                let start = start as usize;
                windows.push(tokens[start..start + sequence_tokens].to_vec());
                document.windows += 1;
                break;
            }
            start -= here;
        }
    }
    Ok(Windows { windows, documents: std::mem::take(&mut reader.documents) })
}

fn too_short(reader: &Reader<'_>, sequence_tokens: usize, samples: usize, windows: u64) -> ModelError {
    if !reader.text {
        return ModelError::EmptyText { files: reader.documents.len() };
    }
    let longest = reader.documents.iter().map(|document| document.tokens).max().unwrap_or(0);
    let remedy = if windows > 0 {
        format!("pass --nsamples {windows}, a smaller --seqlen, or more text")
    } else {
        format!("the longest file has {longest}: pass --seqlen {longest} or less, or longer files")
    };
    let usable =
        reader.documents.iter().map(|document| document.tokens).filter(|tokens| *tokens >= sequence_tokens as u64);
    ModelError::TooShort {
        samples,
        sequence_tokens,
        needed: (samples as u64).saturating_mul(sequence_tokens as u64),
        tokens: usable.sum(),
        windows,
        remedy,
    }
}

/// Vigna's SplitMix64 (public domain): a counter stepped by the golden ratio, then mixed. Eight lines in any
/// language, so that an auditor can draw the same windows.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A uniform number below `bound`: draws below 2⁶⁴ mod `bound` are rejected, the rest reduced.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        let surplus = bound.wrapping_neg() % bound;
        loop {
            let draw = self.next_u64();
            if draw >= surplus {
                return draw % bound;
            }
        }
    }
}

/// The paths of `windows` that were used, for messages.
impl Windows {
    /// Tokens of all windows together.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.len() as u64).sum()
    }

    /// Files that at least one window comes from.
    pub fn used_files(&self) -> impl Iterator<Item = &Path> {
        self.documents.iter().filter(|document| document.windows > 0).map(|document| document.path.as_path())
    }
}
