//! What is typed about studies.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::silo::DeviceOptions;

/// `fedprune study …`
#[derive(Debug, Subcommand)]
pub enum StudyCommand {
    /// Measure everything that a study asks for; goes on where an earlier run was stopped.
    Run(StudyRunOptions),
    /// Write tables and figures of what a folder has so far.
    Report(StudyReportOptions),
}

/// `fedprune study run`
#[derive(Debug, Args)]
pub struct StudyRunOptions {
    /// The study, such as examples/study/bundled.toml.
    #[arg(value_name = "STUDY.toml")]
    pub study: PathBuf,
    /// Folder for measurements, tables and figures.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Only check that the study can be run, and say how much work it is.
    #[arg(long)]
    pub check: bool,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceOptions,
}

/// `fedprune study report`
#[derive(Debug, Args)]
pub struct StudyReportOptions {
    /// Folder of `study run --out`.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
