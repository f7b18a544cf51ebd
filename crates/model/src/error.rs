//! Everything that can go wrong between a checkpoint, a text and a number, with what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use fedprune_checkpoint::CheckpointError;

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// Why a model could not be run or a text not be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint refused.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    /// A tensor operation failed: out of device memory, or a defect of ours.
    #[error("while {doing}")]
    Compute {
        /// What was being done.
        doing: String,
        /// What candle said.
        #[source]
        source: Box<candle_core::Error>,
    },

    /// The device's name is neither `cpu` nor `cuda:N`.
    #[error("unknown device `{0}`; use `cpu` or `cuda:N`, such as `cuda:0`")]
    DeviceName(String),

    /// The program was built without CUDA.
    #[error(
        "device `cuda:{0}` needs a build with CUDA: install the CUDA toolkit, build with \
         `cargo build --release --features cuda`, or use `cpu`"
    )]
    NoCuda(usize),

    /// The machine has no driver, or one that does not start.
    #[error("device `cuda:{ordinal}` cannot be used: {reason}; or use `cpu`")]
    NoDriver {
        /// Ordinal asked for.
        ordinal: usize,
        /// What is missing.
        reason: String,
    },

    /// There are fewer GPUs.
    #[error(
        "there is no device `cuda:{ordinal}`: the driver knows {count}, counted from 0; `fedprune model devices` lists them"
    )]
    NoSuchDevice {
        /// Ordinal asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },

    /// The device has too little memory for what is to be computed.
    #[error(
        "the GPU has {} of {} of memory free, and {} are needed: {} for two blocks, {} for the hidden states of all \
         windows, {} to compute with; free some (`nvidia-smi` shows who uses it), use fewer or shorter windows, or \
         `--device cpu`",
        gigabytes(*.free), gigabytes(*.all), gigabytes(.need.total()), gigabytes(.need.blocks),
        gigabytes(.need.activations), gigabytes(.need.workspace)
    )]
    DeviceMemory {
        /// What is needed.
        need: crate::DeviceNeed,
        /// Bytes that nobody uses.
        free: u64,
        /// Bytes that there are.
        all: u64,
    },

    /// A kernel of ours, or what it was given.
    #[error(transparent)]
    Gpu(#[from] fedprune_gpu::GpuError),

    /// Weights that have no order.
    #[error("tensor `{tensor}` of `{}`", file.display())]
    NotFinite {
        /// The file that holds them.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Which weight.
        #[source]
        source: fedprune_mask::weights::WeightsError,
    },

    /// The device exists by name but could not be opened.
    #[error("device `cuda:{ordinal}` could not be opened; `nvidia-smi` lists the devices and their driver")]
    DeviceOpen {
        /// Ordinal asked for.
        ordinal: usize,
        /// What the driver said.
        #[source]
        source: Box<candle_core::Error>,
    },

    /// The compute dtype is not one of ours.
    #[error("unknown compute dtype `{0}`; use `f32`, `bf16` or `f16`")]
    DTypeName(String),

    /// Sequences longer than the model's positions.
    #[error(
        "sequences of {asked} tokens exceed the model's `max_position_embeddings` of {positions}; \
         use --seqlen {positions} or less"
    )]
    SequenceTooLong {
        /// Tokens of one sequence, as asked for.
        asked: usize,
        /// `max_position_embeddings`.
        positions: usize,
    },

    /// A sequence longer than the decoder was made for: the caller's mistake.
    #[error("a sequence of {tokens} tokens was given to a decoder made for {limit} tokens")]
    SequenceOverDecoder {
        /// Tokens given.
        tokens: usize,
        /// Tokens that its rotary tables cover.
        limit: usize,
    },

    /// Hidden states of a decoder on another device or in another dtype: the caller's mistake.
    #[error("block and hidden states belong to decoders of different devices or dtypes")]
    OtherDecoder,

    /// A configuration whose numbers make no model.
    #[error("`config.json`: {0}")]
    Config(String),

    /// A token id outside the vocabulary.
    #[error(
        "token id {token} at position {position} is outside the model's vocabulary of {vocabulary}; \
         is `tokenizer.json` that of another model?"
    )]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Its index in the sequence.
        position: usize,
        /// `vocab_size`.
        vocabulary: usize,
    },

    /// Block index beyond the last block.
    #[error("block {block} does not exist: the model has {blocks}")]
    NoSuchBlock {
        /// Index asked for.
        block: usize,
        /// Number of blocks.
        blocks: usize,
    },

    /// A mask or a list of factors that does not fit the matrix it is for.
    #[error("{what} of {given} do not fit matrix `{name}` of shape ({rows}, {columns})")]
    DoesNotFit {
        /// `a mask` or `factors`.
        what: &'static str,
        /// Their shape or number.
        given: String,
        /// Which matrix.
        name: String,
        /// out_features.
        rows: usize,
        /// in_features.
        columns: usize,
    },

    /// No window can be scored.
    #[error("perplexity needs windows of at least 2 tokens; window {window} has {tokens}")]
    WindowTooShort {
        /// Index of the window.
        window: usize,
        /// Its tokens.
        tokens: usize,
    },

    /// Logits or activations that are no numbers.
    #[error(
        "the loss of window {window} is {loss}: the weights or the compute dtype overflow; \
         try --dtype f32, or check the checkpoint"
    )]
    LossNotFinite {
        /// Index of the window.
        window: usize,
        /// NaN or infinity.
        loss: f64,
    },

    /// Each window is to begin with a token that the model does not name.
    #[error("`config.json` names no bos_token_id, so no window can begin with it; use another rule for `bos`")]
    NoBos,

    /// A count that must not be zero is.
    #[error("`{0}` must be at least 1")]
    Zero(&'static str),

    /// No tokenizer beside the weights.
    #[error(
        "`{path}` is missing: text cannot be tokenised without it; copy `tokenizer.json` from the model's page \
         into the model folder (slow tokenizers are converted with transformers' `AutoTokenizer.from_pretrained(…).save_pretrained(…)`)"
    )]
    TokenizerMissing {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// A tokenizer file that no model has.
    #[error("`{path}` has {bytes} bytes, more than the {limit} accepted for a tokenizer; is it the right file?")]
    TokenizerTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most accepted.
        limit: u64,
    },

    /// The tokenizer cannot be parsed, or fails on a text.
    #[error("`{path}` {problem}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What was being done with it.
        problem: &'static str,
        /// What the tokenizer library said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A file or folder cannot be read.
    #[error("`{path}` cannot be read")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },

    /// A pipe or a device.
    #[error("`{path}` is not a regular file; write its text to a `.txt` file first")]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },

    /// A file named directly is of no kind we read.
    #[error("`{path}` is neither `.txt` nor `.jsonl`; rename it if it holds plain text, else convert it to `.jsonl`")]
    NotText {
        /// The file.
        path: PathBuf,
    },

    /// Folders without any text.
    #[error("no `.txt` or `.jsonl` file found in {0}; pass files or folders that hold them")]
    NoFiles(String),

    /// Folders nested or filled beyond reason.
    #[error("`{path}` {problem}; pass the folders that hold the text themselves")]
    FolderTooLarge {
        /// Where the walk stopped.
        path: PathBuf,
        /// Which bound.
        problem: String,
    },

    /// More text than is read into memory.
    #[error("`{path}` makes {bytes} bytes of text, more than the {limit} {scope}; {remedy}")]
    TooMuchText {
        /// The file that passed the bound.
        path: PathBuf,
        /// Bytes of it, or of all files up to it.
        bytes: u64,
        /// The bound.
        limit: u64,
        /// What the bound is on.
        scope: &'static str,
        /// What to do.
        remedy: &'static str,
    },

    /// Bytes that are no text.
    #[error("`{path}` is not UTF-8: byte {offset} does not fit; convert it, for instance with `iconv -t utf-8`")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that does not belong.
        offset: usize,
    },

    /// A line of a `.jsonl` file that is no record with the field.
    #[error("`{path}`, line {line}: {problem}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: String,
    },

    /// Nothing but white space.
    #[error("{files} is empty or holds nothing but white space; pass text")]
    EmptyText {
        /// Files read.
        files: FileNames,
    },

    /// Not enough text for the windows asked for.
    #[error(
        "the text of {files} is too short: {samples} windows of {sequence_tokens} tokens need {needed} tokens in files of at \
         least {sequence_tokens}, but there are {tokens} tokens in such files, enough for {windows} windows; {remedy}"
    )]
    TooShort {
        /// Files read.
        files: FileNames,
        /// Windows asked for.
        samples: usize,
        /// Tokens of one window.
        sequence_tokens: usize,
        /// samples × sequence_tokens.
        needed: u64,
        /// Tokens in files that hold at least one window.
        tokens: u64,
        /// Windows that the text could fill.
        windows: u64,
        /// What to pass instead.
        remedy: String,
    },
}

/// Files as a message names them: the first by name, the others by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNames(pub Vec<PathBuf>);

impl fmt::Display for FileNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("no file"),
            [only] => write!(f, "`{}`", only.display()),
            [first, second] => write!(f, "`{}` with `{}`", first.display(), second.display()),
            [first, others @ ..] => write!(f, "`{}` with {} other files", first.display(), others.len()),
        }
    }
}

/// Names what was being done when candle failed.
pub(crate) trait Doing<T> {
    /// Wraps a candle error with `doing`, a phrase that follows "while".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, ModelError>;
}

impl<T> Doing<T> for candle_core::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, ModelError> {
        self.map_err(|source| ModelError::Compute { doing: doing(), source: Box::new(source) })
    }
}
