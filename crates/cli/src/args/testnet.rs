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
    /// Simulate rounds in which members lie and die, and networks and disks fail, under virtual time.
    Simulate(TestnetSimulateOptions),
}

/// `fedprune testnet simulate`
#[derive(Debug, Args)]
#[command(
    after_help = "Real are the members' state machines, the agreement, signatures, logs, ballots, tally and audit. A \
                        seed says what is wrong: up to a third of the members lie, others die, and everything mixed.\n\
                        Exit code: 0 when every round went as it must, 1 when not. A round that did not is printed with \
                        the command that runs it again, and as a scenario with as little in it as was found."
)]
pub struct TestnetSimulateOptions {
    /// Members of each round, 1 to 128.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub members: u16,
    /// The seeds: one, or a range whose end is not in it.
    #[arg(long, value_name = "SEED|FROM..TO", default_value = "0..100", value_parser = seeds)]
    pub seeds: std::ops::Range<u64>,
    /// Run the round in this file instead (TOML, as it is printed for a round that fails).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["members", "seeds"])]
    pub scenario: Option<PathBuf>,
    /// Rounds at a time [default: as many as there are processors].
    #[arg(long, value_name = "N", conflicts_with = "scenario", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Do not audit the disks of honest members after each round.
    #[arg(long)]
    pub no_audit: bool,
}

/// Reads `7` or `0..100`.
fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| "give a seed such as 7, or a range such as 0..100");
    let range = match text.split_once("..") {
        Some((from, to)) => number(from)?..number(to)?,
        None => number(text)?..number(text)?.saturating_add(1),
    };
    if range.is_empty() { Err("there is no seed in it".to_owned()) } else { Ok(range) }
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
