//! Which windows of the text a model is calibrated or measured on: the same on every machine.
//!
//! *Sequential*: window i is tokens [i·seqlen, (i+1)·seqlen) of each file in turn; what does not fill a window at
//! the end of a file is dropped. *Random*: every position at which a whole window fits in one file is equally
//! likely, drawn with replacement by [`SplitMix64`], whose output is pinned by tests.

use std::path::{Path, PathBuf};

use fedprune_checkpoint::ModelConfig;

use crate::decoder::check_sequence;
use crate::error::FileNames;
use crate::text::{TextBudget, TextFile, find_text_files};
use crate::{ModelError, Tokenizer};

/// Shorter windows than this are never advised, in tokens: they say little about a text and reveal much of it.
const SHORTEST_ADVISED_WINDOW: u64 = 64;

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

/// Where the token that begins a sequence goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bos {
    /// Nowhere, nor any other special token.
    None,
    /// Where the tokenizer puts it: before each text, if at all.
    #[default]
    EachText,
    /// First in each window, the rest of which is text.
    EachWindow,
}

/// What windows are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowRequest {
    /// How many.
    pub samples: usize,
    /// How many will do where the text has no more.
    pub minimum_samples: usize,
    /// Where the token that begins a sequence goes.
    pub bos: Bos,
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
    /// Tokens made of it: all, unless the windows needed no more than its first part.
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
    let first = match request.bos {
        Bos::EachWindow => Some(config.bos_token_id.ok_or(ModelError::NoBos)?),
        Bos::None | Bos::EachText => None,
    };
    // of each window, what is text
    let text_tokens = request.sequence_tokens.saturating_sub(usize::from(first.is_some()));
    if text_tokens == 0 {
        return Err(ModelError::Zero("--seqlen without the token that begins each window"));
    }
    let minimum = request.minimum_samples.clamp(1, request.samples);
    let mut reader = Reader::new(tokenizer, paths, &request.field, request.bos == Bos::EachText)?;
    let mut windows = match request.sampling {
        Sampling::Sequential => sequential(&mut reader, text_tokens, minimum, request.samples)?,
        Sampling::Random { seed } => random(&mut reader, text_tokens, minimum, request.samples, seed)?,
    };
    if let Some(first) = first {
        windows.windows.iter_mut().for_each(|window| window.insert(0, first));
    }
    Ok(windows)
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
    let mut reader = Reader::new(tokenizer, paths, field, true)?;
    sequential(&mut reader, sequence_tokens, 1, max_windows.unwrap_or(usize::MAX))
}

/// Reads and tokenises files one after the other.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    field: &'a str,
    files: std::vec::IntoIter<TextFile>,
    budget: TextBudget,
    documents: Vec<Document>,
    /// Whether special tokens are added to each text.
    special: bool,
    /// Whether any file had more than white space.
    text: bool,
}

impl<'a> Reader<'a> {
    fn new(tokenizer: &'a Tokenizer, paths: &[PathBuf], field: &'a str, special: bool) -> Result<Self, ModelError> {
        Ok(Self {
            tokenizer,
            field,
            files: find_text_files(paths)?.into_iter(),
            budget: TextBudget::default(),
            documents: Vec::new(),
            special,
            text: false,
        })
    }

    /// The first `needed` tokens of the next file, or all; none of a file that holds nothing but white space.
    fn next(&mut self, needed: usize) -> Result<Option<Vec<u32>>, ModelError> {
        let Some(file) = self.files.next() else { return Ok(None) };
        self.budget.take(&file)?;
        let text = file.read(self.field)?;
        let tokens = if text.trim().is_empty() {
            Vec::new()
        } else {
            self.text = true;
            if needed == usize::MAX {
                TextBudget::check_whole(file.path(), &text)?;
            }
            self.tokenizer.encode_first(&text, needed, self.special)?
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

/// Windows in order: as many as there are up to `at_most`, and at least `at_least`.
fn sequential(
    reader: &mut Reader<'_>,
    sequence_tokens: usize,
    at_least: usize,
    at_most: usize,
) -> Result<Windows, ModelError> {
    let mut windows: Vec<Vec<u32>> = Vec::new();
    while windows.len() < at_most {
        let before = windows.len();
        let needed = (at_most - before).saturating_mul(sequence_tokens);
        let Some(tokens) = reader.next(needed)? else { break };
        windows.extend(tokens.chunks_exact(sequence_tokens).map(<[u32]>::to_vec));
        if let Some(document) = reader.documents.last_mut() {
            document.windows = (windows.len() - before) as u64;
        }
    }
    if windows.len() < at_least {
        return Err(too_short(reader, sequence_tokens, at_least, windows.len() as u64));
    }
    Ok(Windows { windows, documents: std::mem::take(&mut reader.documents) })
}

fn random(
    reader: &mut Reader<'_>,
    sequence_tokens: usize,
    at_least: usize,
    at_most: usize,
    seed: u64,
) -> Result<Windows, ModelError> {
    let mut streams = Vec::new();
    while let Some(tokens) = reader.next(usize::MAX)? {
        streams.push(tokens);
    }
    let positions = |tokens: &Vec<u32>| (tokens.len() + 1).saturating_sub(sequence_tokens) as u64;
    let usable: u64 = streams.iter().filter(|tokens| positions(tokens) > 0).map(|tokens| tokens.len() as u64).sum();
    let total: u64 = streams.iter().map(positions).sum();
    let possible = usable / sequence_tokens as u64;
    if total == 0 || possible < at_least as u64 {
        return Err(too_short(reader, sequence_tokens, at_least, possible));
    }
    let samples = usize::try_from(possible).unwrap_or(usize::MAX).min(at_most);
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
    let files = FileNames(reader.documents.iter().map(|document| document.path.clone()).collect());
    if !reader.text {
        return ModelError::EmptyText { files };
    }
    let longest = reader.documents.iter().map(|document| document.tokens).max().unwrap_or(0);
    let remedy = if windows > 0 {
        format!("pass --nsamples {windows}, a smaller --seqlen, or more text")
    } else if longest >= SHORTEST_ADVISED_WINDOW {
        format!("the longest file has {longest}: pass --seqlen {longest} or less, or longer files")
    } else {
        format!("the longest file has {longest}: pass longer files")
    };
    let usable =
        reader.documents.iter().map(|document| document.tokens).filter(|tokens| *tokens >= sequence_tokens as u64);
    ModelError::TooShort {
        files,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The published test vector of SplitMix64 (seed 1234567), and seed 0.
    #[test]
    fn the_generator_is_pinned() {
        let mut generator = SplitMix64::new(1_234_567);
        let drawn: Vec<u64> = (0..5).map(|_| generator.next_u64()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
        assert_eq!(SplitMix64::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn bounded_draws_are_unbiased_and_in_range() {
        // 3 · 2⁶² leaves a quarter of all draws to reject: a plain remainder would favour the low third
        let bound = 3 << 62;
        let mut generator = SplitMix64::new(7);
        let low = (0..30_000).filter(|_| generator.below(bound) < bound / 3).count();
        assert!((9_700..10_300).contains(&low), "{low}");
        assert!((0..1000).all(|_| generator.below(3) < 3));
        assert_eq!(generator.below(1), 0);
    }
}
