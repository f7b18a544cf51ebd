//! What is typed about testnets.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `fedprune testnet …`
#[derive(Debug, Subcommand)]
pub enum TestnetCommand {
    /// Start the nodes of a manifest as processes of this machine, and check what comes of it.
    Run(TestnetRunOptions),
}

/// `fedprune testnet run`
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 when everything came as the manifest expects, 1 when not.\n\
                        Manifests and their reference are in the folder testnet of the source.")]
pub struct TestnetRunOptions {
    /// What takes part, what goes wrong, and what must come of it (TOML).
    #[arg(value_name = "MANIFEST")]
    pub manifest: PathBuf,
    /// Folder for everything it makes [default: a new folder below the current one].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where the manifest's paths start [default: at the manifest's folder].
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
}
