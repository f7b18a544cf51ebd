//! What is typed about nodes.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use fedprune_federation::RoundId;
use fedprune_node::Multiaddr;
use fedprune_node::run::FailPoint;

use super::{DeviceOptions, NodeInstallOptions};

/// `fedprune node …`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Take part in an approved round: compute, agree, prune, and write the transcript.
    Run(Box<NodeRunOptions>),
    /// How a node is doing, or how it ended.
    Status(NodeStatusOptions),
    /// Write a systemd unit that runs the node of a home.
    Install(NodeInstallOptions),
    /// Watch a node in the terminal: members, phase, bytes, agreement, log.
    Watch(NodeWatchOptions),
}

/// `fedprune node run`
#[derive(Debug, Args)]
#[command(after_help = "\
A node that was stopped or killed goes on when the same command is repeated. With --format json every event is one \
JSON object a line.

Exit codes: 0 the round came to a mask, 1 failed, 2 not understood, 3 the round was abandoned, this \
key is of no member, or the network cannot be used, 4 no round is approved, or policy or approval of this site refuse, \
130 stopped by a signal.")]
pub struct NodeRunOptions {
    /// The member's folder, with key, consortium and approved round.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID", env = "FEDPRUNE_ROUND")]
    pub round: Option<RoundId>,
    /// The round's base model.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: PathBuf,
    /// Calibration text, which never leaves this machine: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., env = "FEDPRUNE_DATA")]
    pub data: Vec<PathBuf>,
    /// Field that holds the text in .jsonl files.
    #[arg(long, default_value = "text", env = "FEDPRUNE_FIELD")]
    pub field: String,
    /// A ballot that was computed elsewhere, for a one-shot round.
    #[arg(long, value_name = "FILE")]
    pub ballot: Option<PathBuf>,
    /// Where to write the pruned model [default: in the round's folder].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to listen, as a multiaddress [default: the consortium's addresses of this member].
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddress, value_delimiter = ',', env = "FEDPRUNE_LISTEN")]
    pub listen: Vec<Multiaddr>,
    /// Where to dial a member, instead of at the consortium's addresses: NAME=MULTIADDR, as often as needed.
    #[arg(long, value_name = "NAME=MULTIADDR", value_parser = dialled, value_delimiter = ',', env = "FEDPRUNE_DIAL")]
    pub dial: Vec<(String, Multiaddr)>,
    /// Serve a page about this node here, for a browser on this machine: 127.0.0.1:9464, or port 0 for any.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page: Option<std::net::SocketAddr>,
    /// Serve metrics here, at /metrics, for Prometheus; may be the address of the page.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Log to standard error what the node and its libraries do; FEDPRUNE_LOG says what of it, such as
    /// `info,libp2p_swarm=debug` [default there: info].
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Log::Off)]
    pub log: Log,
    /// How long to answer others once the round is over here, in seconds.
    #[arg(long, value_name = "SECONDS", env = "FEDPRUNE_LINGER", default_value_t = fedprune_node::run::DEFAULT_LINGER.as_secs())]
    pub linger: u64,
    /// Find members in the local network by mDNS.
    #[arg(long, env = "FEDPRUNE_MDNS", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub mdns: bool,
    /// Relay for members that cannot reach each other, and be reached through them.
    #[arg(long, env = "FEDPRUNE_RELAY", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub relay: bool,
    /// Turn relayed connections into direct ones.
    #[arg(long, env = "FEDPRUNE_DCUTR", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub dcutr: bool,
    /// Let members find out by dialling back where this node can be reached.
    #[arg(long, env = "FEDPRUNE_AUTONAT", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub autonat: bool,
    /// Say what each setting is and where it comes from, and run nothing.
    #[arg(long)]
    pub show_settings: bool,
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

/// Reads where a node listens.
pub(super) fn multiaddress(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|_| "write it like /ip4/0.0.0.0/tcp/4100 or /ip4/0.0.0.0/udp/4100/quic-v1".to_owned())
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// Lines for people.
    Plain,
    /// One JSON object a line.
    Json,
    /// Not at all.
    Off,
}

/// Reads where a member is dialled.
pub(super) fn dialled(text: &str) -> Result<(String, Multiaddr), String> {
    let (name, address) = text.split_once('=').ok_or("write it like south=/ip4/192.0.2.7/tcp/4100")?;
    let address = address.parse().map_err(|error| format!("`{address}` is no multiaddress: {error}"))?;
    Ok((name.to_owned(), address))
}

/// `fedprune node status`
#[derive(Debug, Args)]
pub struct NodeStatusOptions {
    /// The member's folder.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID", env = "FEDPRUNE_ROUND")]
    pub round: Option<RoundId>,
}

/// `fedprune node watch`
#[derive(Debug, Args)]
#[command(after_help = "\
What there is to see comes from the page of the node, if it runs with --page; otherwise from its folder, once a second,
and then without agreement and log. Keys: q ends, arrows and PageUp, PageDown, Home, End move in the log.")]
pub struct NodeWatchOptions {
    /// The member's folder.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID", env = "FEDPRUNE_ROUND")]
    pub round: Option<RoundId>,
}
