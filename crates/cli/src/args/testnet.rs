//! What is typed about testnets.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `fedprune testnet …`
#[derive(Debug, Subcommand)]
pub enum TestnetCommand {
    /// Start the nodes of a manifest as processes of this machine, and check what comes of it.
    Run(TestnetRunOptions),
    /// Draw a manifest from a seed: who takes part, what goes wrong, and what must come of it all the same.
    Generate(TestnetGenerateOptions),
}

/// `fedprune testnet run`
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 when everything came as the manifest expects, 1 when not.\n\
                        Manifests and their reference are in the folder testnet of the source.")]
pub struct TestnetRunOptions {
    /// What takes part, what goes wrong, and what must come of it (TOML).
    #[arg(value_name = "MANIFEST", required_unless_present = "seed")]
    pub manifest: Option<PathBuf>,
    /// Draw the manifest from this seed instead.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["manifest", "base"])]
    pub seed: Option<u64>,
    /// Folder for everything it makes [default: a new folder below the current one].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where the manifest's paths start [default: at the manifest's folder].
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The program of silos that lie [default: `fedprune-lying-node` beside this one].
    #[arg(long, value_name = "FILE")]
    pub lying_program: Option<PathBuf>,
}

/// `fedprune testnet generate`
#[derive(Debug, Args)]
pub struct TestnetGenerateOptions {
    /// What everything is drawn from.
    #[arg(long, value_name = "SEED")]
    pub seed: u64,
    /// Where to write it.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}
