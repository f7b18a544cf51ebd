//! What is typed to see what leaves a silo, before it does.

use std::path::PathBuf;

use clap::Args;

use super::DeviceOptions;

/// `fedprune round preview`
#[derive(Debug, Args)]
#[command(after_help = "\
The ballot is computed now, kept where the node looks for it, and attacked as a curious member would: the words shown are
words of this silo's own text. Nothing is sent. Exit code 4: this site's policy refuses the round or the ballot.")]
pub struct RoundPreviewOptions {
    /// The round's document.
    #[arg(value_name = "ROUND")]
    pub round: PathBuf,
    /// The member's folder, with key.pem, consortium.toml and consortium.signatures.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// The round's base model.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: PathBuf,
    /// Calibration text, which never leaves this machine: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., env = "FEDPRUNE_DATA")]
    pub data: Vec<PathBuf>,
    /// Field that holds the text in .jsonl files.
    #[arg(long, default_value = "text", env = "FEDPRUNE_FIELD")]
    pub field: String,
    /// Also write the preview as a page, readable by its owner alone.
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Say how many words the ballot gives away, and not which.
    #[arg(long)]
    pub hide_words: bool,
    /// How many guesses to show.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub words: usize,
    /// What this site allows [default: HOME/policy.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Device and precision.
    #[command(flatten)]
    pub device: DeviceOptions,
}

/// `fedprune round approvals`
#[derive(Debug, Args)]
pub struct RoundApprovalsOptions {
    /// The member's folder.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
}
