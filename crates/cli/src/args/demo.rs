//! What is typed for the demo.

use std::path::PathBuf;

use clap::Args;
use fedprune_mask::Sparsity;

/// `fedprune demo`
#[derive(Debug, Args)]
pub struct DemoOptions {
    /// Folder for everything it makes [default: a new folder below the current one].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Fraction of weights to prune.
    #[arg(long, default_value = "0.5")]
    pub sparsity: Sparsity,
}
