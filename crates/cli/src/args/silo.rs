//! What is typed about models, masks and pruned copies: what one silo does by itself.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use fedprune_mask::score::Pruner;
use fedprune_mask::{Group, Sparsity};
use fedprune_model::{ComputeDType, DeviceName};

/// `fedprune model …`
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Architecture, sizes and digests of a checkpoint.
    Inspect(InspectOptions),
    /// What can compute on this machine: what --device may say, how much memory each has, and what is missing.
    Devices,
    /// Make a checkpoint folder of a GGUF file: LLaMA architectures in F32, F16 or BF16, whose numbers stay as they are.
    Import(ImportOptions),
    /// Fetch a model from the Hugging Face Hub: what is needed of it and no more, of one commit, checked file by file.
    Fetch(FetchOptions),
}

/// `fedprune model fetch`
#[derive(Debug, Args)]
#[command(
    after_help = "The folder gets its name when it is whole; until then it is DIR.fetching, and the same command goes on.\n\
                        fetched-from.json in it says which commit it is of, and has the digest of every file.\n\
                        A token for models that are not given to all is taken from HF_TOKEN, and sent to the hub alone.\n\n\
                        This command is in programs that were built with it: cargo install --path crates/cli --features fetch"
)]
pub struct FetchOptions {
    /// The model's name on the hub, such as HuggingFaceTB/SmolLM2-135M.
    #[arg(value_name = "OWNER/NAME")]
    pub name: String,
    /// A branch, a tag or a commit; whichever it is, what is fetched is of one commit, which is told.
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
    /// The folder to make [default: NAME, below the current one].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The hub's address, or that of a mirror: https://, with a certificate of a public authority, or on this machine
    /// [default: HF_ENDPOINT, or https://huggingface.co].
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
}

/// `fedprune model import`
#[derive(Debug, Args)]
pub struct ImportOptions {
    /// The GGUF file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The model's tokenizer.json [default: made from the file, where it says all that is in one].
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// The model's config.json [default: made from the file's metadata].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `fedprune mask …`
#[derive(Debug, Subcommand)]
pub enum MaskCommand {
    /// Compute a mask from calibration text and write it as a ballot.
    Compute(ComputeOptions),
    /// Write the ballots of a round; what a node runs.
    #[cfg(feature = "federation")]
    #[command(hide = true)]
    Contribute(ContributeOptions),
    /// Show what ballots, masks and tallies hold, and how far they agree.
    Show(ShowOptions),
}

/// `fedprune eval …`
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Perplexity on a text.
    Perplexity(PerplexityOptions),
}

/// `fedprune model inspect`
#[derive(Debug, Args)]
pub struct InspectOptions {
    /// Folder with config.json and model.safetensors (or an index with shards).
    #[arg(value_name = "DIR")]
    pub model: PathBuf,
    /// Also list every prunable matrix.
    #[arg(long)]
    pub matrices: bool,
}

/// Where and how the decoder computes.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Device: cpu or cuda:N.
    #[arg(long, default_value = "cpu", env = "FEDPRUNE_DEVICE")]
    pub device: DeviceName,
    /// Compute dtype: f32, bf16 or f16 [default: f32 on the CPU, bf16 on a GPU].
    #[arg(long, env = "FEDPRUNE_DTYPE")]
    pub dtype: Option<ComputeDType>,
    /// Threads that compute [default: as many as there are processors].
    #[arg(long, value_name = "N", env = "FEDPRUNE_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl DeviceOptions {
    /// Makes `--threads` hold for this process; called before anything is computed.
    pub fn limit_threads(&self) {
        if let Some(threads) = self.threads {
            // refused only where threads were started before, which then are as many as there are processors
            let _ = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build_global();
        }
    }
}

/// `fedprune mask contribute`
#[cfg(feature = "federation")]
#[derive(Debug, Args)]
pub struct ContributeOptions {
    /// The consortium's document.
    #[arg(long, value_name = "FILE")]
    pub consortium: PathBuf,
    /// The round's document.
    #[arg(long, value_name = "FILE")]
    pub round: PathBuf,
    /// Whose ballots.
    #[arg(long, value_name = "NAME")]
    pub member: String,
    /// The round's base model.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Calibration text: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Field that holds the text in .jsonl files.
    #[arg(long, default_value = "text")]
    pub field: String,
    /// Device and precision.
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Folder for the ballots.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `fedprune mask compute`
#[derive(Debug, Args)]
pub struct ComputeOptions {
    /// Checkpoint folder in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Calibration text: .txt and .jsonl files, or folders of them. Not needed by --pruner magnitude.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Fraction of weights to prune: 0.5, 57/100, or a pattern n:m, n pruned of each m (1:4 prunes a quarter)
    /// [default: 0.5, or what the group fixes].
    #[arg(long)]
    pub sparsity: Option<SparsityOrPattern>,
    /// Pool within which weights compete for being kept: `row` (one output of a matrix), `column` (one input),
    /// `layer` (a whole matrix), or n:m (n pruned of each m inputs in a row) [default: row].
    #[arg(long)]
    pub local_group: Option<Group>,
    /// Scoring rule: wanda, magnitude or ria.
    #[arg(long, default_value = "wanda")]
    pub pruner: Pruner,
    /// Where to write the ballot.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Number of calibration windows.
    #[arg(long, default_value_t = 128)]
    pub nsamples: usize,
    /// Tokens per calibration window [default: 2048, or the model's longest].
    #[arg(long)]
    pub seqlen: Option<usize>,
    /// Seed of the random choice of windows.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How windows are chosen.
    #[arg(long, value_enum, default_value_t = SamplingMethod::Random)]
    pub sampling: SamplingMethod,
    /// Field of .jsonl records that holds the text.
    #[arg(long, default_value = "text")]
    pub field: String,
    /// What the ballot may hold: the smallest encoding, or only functions of the mask itself.
    #[arg(long, value_enum, default_value_t = Ballots::Auto)]
    pub ballots: Ballots,
    /// Discard an unfinished run instead of continuing it.
    #[arg(long)]
    pub restart: bool,
    /// Device and dtype.
    #[command(flatten)]
    pub device: DeviceOptions,
}

/// How calibration windows are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplingMethod {
    /// Starts drawn uniformly, seeded.
    Random,
    /// Window i is tokens [i·seqlen, (i+1)·seqlen) of each file in turn.
    Sequential,
}

/// What a ballot may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ballots {
    /// Norm vectors where they are smallest: about 100 times smaller than bits.
    Auto,
    /// Functions of the mask alone: thresholds where the local group is layer, bits else.
    MaskOnly,
}

/// `--sparsity 0.5` or `--sparsity 2:4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparsityOrPattern {
    /// A fraction of each pool.
    Fraction(Sparsity),
    /// An n:m group, which is a group and a sparsity at once.
    Pattern(Group),
}

impl std::str::FromStr for SparsityOrPattern {
    type Err = fedprune_mask::sparsity::SparsityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') { text.parse().map(Self::Pattern) } else { text.parse().map(Self::Fraction) }
    }
}

/// `fedprune mask show`
#[derive(Debug, Args)]
pub struct ShowOptions {
    /// Ballots, masks or tallies.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The checkpoint they were made for; with it, sparsity per matrix and agreement between files are shown.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// List every matrix, not the seven kinds.
    #[arg(long, requires = "model")]
    pub matrices: bool,
}

/// `fedprune tally`
#[derive(Debug, Args)]
pub struct TallyOptions {
    /// Ballots, one a silo; a ballot's file name, without its ending, names its silo.
    #[arg(value_name = "FILE", required = true)]
    pub ballots: Vec<PathBuf>,
    /// The checkpoint they were made for.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Pool within which weights compete in the global mask [default: layer, or the ballots' n:m].
    #[arg(long)]
    pub global_group: Option<Group>,
    /// Tally weight of each ballot, in the order of the files [default: 1 each].
    #[arg(long, value_delimiter = ',', value_name = "N,N,…", value_parser = clap::value_parser!(u32).range(1..))]
    pub weights: Vec<u32>,
    /// Do not compare each ballot's mask with the global one: local-layer ballots then need not be expanded.
    #[arg(long)]
    pub brief: bool,
    /// Device that expands ballots and counts, to the same mask: cpu or cuda:N.
    #[arg(long, default_value = "cpu", env = "FEDPRUNE_DEVICE")]
    pub device: DeviceName,
    /// Where to write the tally.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune apply`
#[derive(Debug, Args)]
pub struct ApplyOptions {
    /// Checkpoint folder in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A ballot, mask or tally made for it.
    #[arg(long, value_name = "FILE")]
    pub mask: PathBuf,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Scale kept weights by the share of silos that voted to keep them (needs a tally; usually worse than not).
    #[arg(long, value_enum)]
    pub scale: Option<Scale>,
    /// How far votes agree, of a round whose mask has none in it any more; what a node hands over.
    #[arg(long, value_name = "FILE", hide = true)]
    pub agreement: Option<PathBuf>,
}

/// How kept weights are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// W × (m − count) / m, where count of m votes were to prune.
    Support,
}

/// `fedprune eval perplexity`
#[derive(Debug, Args)]
pub struct PerplexityOptions {
    /// Checkpoint folder in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Evaluation text: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub data: Vec<PathBuf>,
    /// Tokens per window [default: 2048, or the model's longest].
    #[arg(long)]
    pub seqlen: Option<usize>,
    /// Evaluate at most this many windows.
    #[arg(long)]
    pub max_windows: Option<usize>,
    /// Field of .jsonl records that holds the text.
    #[arg(long, default_value = "text")]
    pub field: String,
    /// Device and dtype.
    #[command(flatten)]
    pub device: DeviceOptions,
}
