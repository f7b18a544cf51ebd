//! What is typed about nodes.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fedprune_federation::RoundId;
use fedprune_node::Multiaddr;
use fedprune_node::run::FailPoint;

use super::DeviceOptions;

/// `fedprune node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Take part in an approved round: compute, agree, prune, and write the transcript.
    Run(Box<NodeRunOptions>),
    /// How a node is doing, or how it ended.
    Status(NodeStatusOptions),
}

/// `fedprune node run`
#[derive(Debug, Args)]
#[command(after_help = "\
A node that was stopped or killed goes on when the same command is repeated. With --format json every event is one
JSON object a line. Exit codes: 0 the round came to a mask, 1 failed, 2 not understood, 3 the round was abandoned,
130 stopped by a signal.")]
pub struct NodeRunOptions {
    /// The member's folder, with key, consortium and approved round.
    #[arg(long, value_name = "HOME")]
    pub home: PathBuf,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID")]
    pub round: Option<RoundId>,
    /// The round's base model.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Calibration text, which never leaves this machine: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Field that holds the text in .jsonl files.
    #[arg(long, default_value = "text")]
    pub field: String,
    /// A ballot that was computed elsewhere, for a one-shot round.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub ballot: Option<PathBuf>,
    /// Where to write the pruned model [default: in the round's folder].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to listen, as a multiaddress [default: the consortium's addresses of this member].
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<Multiaddr>,
    /// Where to dial a member, instead of at the consortium's addresses: NAME=MULTIADDR, as often as needed.
    #[arg(long, value_name = "NAME=MULTIADDR", value_parser = dialled)]
    pub dial: Vec<(String, Multiaddr)>,
    /// How long to answer others once the round is over here, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = fedprune_node::run::DEFAULT_LINGER.as_secs())]
    pub linger: u64,
    /// Find members in the local network by mDNS.
    #[arg(long)]
    pub mdns: bool,
    /// Relay for members that cannot reach each other, and be reached through them.
    #[arg(long)]
    pub relay: bool,
    /// Turn relayed connections into direct ones.
    #[arg(long)]
    pub dcutr: bool,
    /// Let members find out by dialling back where this node can be reached.
    #[arg(long)]
    pub autonat: bool,
    /// Die at this point, to test recovery.
    #[arg(long, value_name = "POINT", hide = true)]
    pub fail_at: Option<FailPoint>,
    /// Take the time to be so many milliseconds later, to test clocks that are wrong.
    #[arg(long, value_name = "MILLISECONDS", hide = true, default_value_t = 0, allow_negative_numbers = true)]
    pub clock_skew_ms: i64,
    /// What this site allows [default: HOME/policy.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Device and precision.
    #[command(flatten)]
    pub device: DeviceOptions,
}

/// Reads where a member is dialled.
fn dialled(text: &str) -> Result<(String, Multiaddr), String> {
    let (name, address) = text.split_once('=').ok_or("write it like south=/ip4/192.0.2.7/tcp/4100")?;
    let address = address.parse().map_err(|error| format!("`{address}` is no multiaddress: {error}"))?;
    Ok((name.to_owned(), address))
}

/// `fedprune node status`
#[derive(Debug, Args)]
pub struct NodeStatusOptions {
    /// The member's folder.
    #[arg(long, value_name = "HOME")]
    pub home: PathBuf,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID")]
    pub round: Option<RoundId>,
}
