//! What is typed in the first hour of an operator: a home, a look at everything that a node needs, a service.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use fedprune_federation::RoundId;
use fedprune_node::Multiaddr;

use super::DeviceOptions;
use super::node::{dialled, multiaddress};

/// `fedprune init`
#[derive(Debug, Args)]
#[command(after_help = "\
The home is readable by its owner alone. What is in config.toml holds for every command that is given this home: what is \
typed goes before the environment (FEDPRUNE_…), the environment before the file, the file before the default.")]
pub struct InitOptions {
    /// The member's own folder; it is made if there is none.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// The base model's folder, to be written down.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: Option<PathBuf>,
    /// Calibration text, to be written down: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., env = "FEDPRUNE_DATA")]
    pub data: Vec<PathBuf>,
    /// Where to listen, as a multiaddress, to be written down.
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddress, value_delimiter = ',', env = "FEDPRUNE_LISTEN")]
    pub listen: Vec<Multiaddr>,
}

/// `fedprune preflight`
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is signed, written or sent but the greeting with which nodes meet: repeat it as often as you like. Members that \
run it, or their nodes, at the same time see each other.

Exit codes: 0 a node can run here (warnings included), 1 something here is missing or too small, 3 the network or the \
membership is not as it must be.")]
pub struct PreflightOptions {
    /// The member's folder, with key, consortium and approved round.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID", env = "FEDPRUNE_ROUND")]
    pub round: Option<RoundId>,
    /// The round's base model.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: Option<PathBuf>,
    /// Calibration text: .txt and .jsonl files, or folders of them.
    #[arg(long, value_name = "PATH", num_args = 1.., env = "FEDPRUNE_DATA")]
    pub data: Vec<PathBuf>,
    /// What this site allows [default: HOME/policy.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Where the pruned model would be written [default: in the round's folder].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to listen, as a multiaddress [default: the consortium's addresses of this member].
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddress, value_delimiter = ',', env = "FEDPRUNE_LISTEN")]
    pub listen: Vec<Multiaddr>,
    /// Where to dial a member, instead of at the consortium's addresses: NAME=MULTIADDR, as often as needed.
    #[arg(long, value_name = "NAME=MULTIADDR", value_parser = dialled, value_delimiter = ',', env = "FEDPRUNE_DIAL")]
    pub dial: Vec<(String, Multiaddr)>,
    /// Find members in the local network by mDNS.
    #[arg(long, env = "FEDPRUNE_MDNS", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub mdns: bool,
    /// Be reached through members that relay.
    #[arg(long, env = "FEDPRUNE_RELAY", value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false)]
    pub relay: bool,
    /// How long to try to reach the others, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub wait: u16,
    /// Device and precision.
    #[command(flatten)]
    pub device: DeviceOptions,
}

/// `fedprune node install`
#[derive(Debug, Args)]
#[command(after_help = "\
The service runs `fedprune node run --home HOME`; model, text and everything else come from HOME/config.toml. It may write \
in HOME alone, gains no privileges, and is started again when it fails, but not when repeating cannot help (exit codes 2, \
3 and 4).")]
pub struct NodeInstallOptions {
    /// The member's folder; the service runs as its owner.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// A service of this user instead of the system's.
    #[arg(long)]
    pub user: bool,
    /// Where to write the unit [default: /etc/systemd/system/fedprune-node.service, or with --user the same name in
    /// ~/.config/systemd/user].
    #[arg(long, value_name = "FILE", conflicts_with = "print")]
    pub out: Option<PathBuf>,
    /// Print the unit, and write nothing.
    #[arg(long)]
    pub print: bool,
    /// Most memory of the service, such as 8G [default: twice what the model needs, where that is known].
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub memory_max: Option<String>,
    /// The round's base model, to know how much memory it needs.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: Option<PathBuf>,
    /// Which round, if several are approved.
    #[arg(long, value_name = "ROUND_ID", env = "FEDPRUNE_ROUND")]
    pub round: Option<RoundId>,
    /// Device and precision.
    #[command(flatten)]
    pub device: DeviceOptions,
}

/// A size as systemd writes it: digits, and K, M, G or T.
fn memory_size(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['K', 'M', 'G', 'T']).unwrap_or(text);
    let number =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u64>().is_ok_and(|number| number > 0);
    if number { Ok(text.to_owned()) } else { Err("write it like 8G or 512M".to_owned()) }
}

/// `fedprune completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Bash:  fedprune completions bash > ~/.local/share/bash-completion/completions/fedprune
Zsh:   fedprune completions zsh > a folder of $fpath, as _fedprune
Fish:  fedprune completions fish > ~/.config/fish/completions/fedprune.fish")]
pub struct CompletionsOptions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `fedprune man`
#[derive(Debug, Args)]
pub struct ManOptions {
    /// Folder for the pages, one a command; it is made if there is none.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
