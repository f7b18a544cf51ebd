//! What is typed about keys, consortiums and rounds.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use fedprune_federation::round::{DataFree, SeedRule};
use fedprune_mask::Group;
use fedprune_mask::score::Pruner;

use super::{Ballots, SamplingMethod, SparsityOrPattern};

/// Everything that is typed before a round, in order.
const SEQUENCE: &str = "\
From nothing to an approved round. HOME is a member's own folder, such as ~/fedprune:

  each member:      fedprune key new --home HOME
  one of them:      fedprune consortium new --name \"Four hospitals\" --out consortium.toml
  once a member:    fedprune consortium add consortium.toml --name north --key KEY --address /dns4/north.example/tcp/4001
  each member:      fedprune consortium sign consortium.toml --home HOME
  and the others':  fedprune consortium sign --home HOME --merge south.signatures east.signatures west.signatures
  is it complete?   fedprune consortium show --home HOME
  one of them:      fedprune round new --consortium consortium.toml --model MODEL --out round.toml
  each member:      fedprune round approve round.toml --home HOME --model MODEL

KEY is what `fedprune key new` prints. HOME/consortium.signatures is the list that members send to each other;
consortium.toml and round.toml must be the same for all.";

/// What is typed to change a consortium that is complete.
const CHANGES: &str = "\
A consortium that is complete is changed without being founded again: more than two thirds of its members sign the change, and
whoever is new in it or has another key or address. What was signed before stays valid, and old rounds can be finished.

  a member renews its key:   fedprune consortium renew --home HOME
  one of them replaces one:  fedprune consortium replace HOME/consortium.toml WEST EAST --key KEY --out next.toml
  takes one out, adds one:   fedprune consortium remove …, fedprune consortium add …, both with --out next.toml
  whoever is new, first:     fedprune consortium sign next.toml --home HOME
  then each other member:    fedprune consortium sign next.toml --home HOME --merge FILES
  what is missing still?     fedprune consortium show --home HOME

A draft goes with its .signatures file beside it; --merge takes what others send back. With the last signature, sign
puts the changed consortium in place in HOME, and keeps a key that was renewed in HOME/former-keys.";

/// Both ways, founding and changing.
fn consortium_help() -> String {
    format!("{SEQUENCE}\n\n{CHANGES}")
}

/// `fedprune key …`
#[derive(Debug, Subcommand)]
#[command(after_help = SEQUENCE)]
pub enum KeyCommand {
    /// Make a member's key: it signs, and its node is known by it.
    New(KeyNewOptions),
    /// Show the public key and the peer id of a key.
    Show(KeyShowOptions),
    /// Make or show the key that signs pruned models (P-256), and nothing else.
    Attestation(KeyAttestationOptions),
}

/// `fedprune key new`
#[derive(Debug, Args)]
pub struct KeyNewOptions {
    /// Where to write the private key (PKCS#8 PEM, readable by its owner alone).
    #[arg(long, value_name = "FILE", required_unless_present = "home", conflicts_with = "home")]
    pub out: Option<PathBuf>,
    /// Write it to HOME/key.pem, with an attestation key beside it, and make the folder if there is none.
    #[arg(long, value_name = "HOME")]
    pub home: Option<PathBuf>,
}

/// `fedprune key show`
#[derive(Debug, Args)]
pub struct KeyShowOptions {
    /// A private or public key (PEM).
    #[arg(value_name = "FILE", required_unless_present = "home", conflicts_with = "home")]
    pub file: Option<PathBuf>,
    /// Show HOME/key.pem.
    #[arg(long, value_name = "HOME")]
    pub home: Option<PathBuf>,
    /// Also write the public key to a file (PEM), to send to whoever writes the consortium's document.
    #[arg(long, value_name = "FILE")]
    pub public: Option<PathBuf>,
}

/// `fedprune key attestation`
#[derive(Debug, Args)]
pub struct KeyAttestationOptions {
    /// The member's folder; the key is HOME/attestation-key.pem.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
}

/// `fedprune consortium …`
#[derive(Debug, Subcommand)]
#[command(after_help = consortium_help())]
pub enum ConsortiumCommand {
    /// Begin a consortium document, without members.
    New(ConsortiumNewOptions),
    /// Add a member to a consortium document.
    Add(ConsortiumAddOptions),
    /// Sign a consortium document, and merge the signatures of others.
    Sign(ConsortiumSignOptions),
    /// Show who the members are, who has signed, how many faults they tolerate, and the changes since the founding.
    Show(ConsortiumShowOptions),
    /// Renew this member's key: makes another, and a change that the members sign.
    Renew(ConsortiumRenewOptions),
    /// Put a member in another's place, or another key in a member's, as a change that the members sign.
    Replace(ConsortiumReplaceOptions),
    /// Take a member out, as a change that the members sign.
    Remove(ConsortiumRemoveOptions),
}

/// `fedprune consortium new`
#[derive(Debug, Args)]
pub struct ConsortiumNewOptions {
    /// What the consortium is called.
    #[arg(long)]
    pub name: String,
    /// Where to write the document.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune consortium add`
#[derive(Debug, Args)]
pub struct ConsortiumAddOptions {
    /// The document.
    #[arg(value_name = "CONSORTIUM")]
    pub consortium: PathBuf,
    /// What the member is called.
    #[arg(long)]
    pub name: String,
    /// Its public key: 64 hexadecimal digits, or a key file (PEM).
    #[arg(long)]
    pub key: String,
    /// The key of its libp2p node, if another.
    #[arg(long, value_name = "KEY")]
    pub peer_key: Option<String>,
    /// Its attestation key, by which it signs pruned models: HOME/attestation-key.public.pem, or another P-256 key (PEM).
    #[arg(long, value_name = "FILE")]
    pub attestation_key: Option<PathBuf>,
    /// Where its node is dialled, such as /dns4/north.example/tcp/4001 or /ip4/192.0.2.1/udp/4001/quic-v1.
    /// Can be given several times.
    #[arg(long, value_name = "MULTIADDR")]
    pub address: Vec<String>,
    /// Leave the document, of a complete consortium, as it is, and write the change of it here.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `fedprune consortium renew`
#[derive(Debug, Args)]
pub struct ConsortiumRenewOptions {
    /// The member's folder, with the consortium in it and, unless it is lost, the key.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// What the member is called [default: whose HOME/key.pem is].
    #[arg(long)]
    pub name: Option<String>,
    /// Where its node is dialled from now on [default: as before]. Can be given several times.
    #[arg(long, value_name = "MULTIADDR")]
    pub address: Vec<String>,
    /// A change that nobody has signed yet, to renew the key in as well [default: a change of its own].
    #[arg(long, value_name = "FILE")]
    pub draft: Option<PathBuf>,
    /// Agree to the change without being asked.
    #[arg(long, short)]
    pub yes: bool,
}

/// `fedprune consortium replace`
#[derive(Debug, Args)]
pub struct ConsortiumReplaceOptions {
    /// The document, of a complete consortium or a draft.
    #[arg(value_name = "CONSORTIUM")]
    pub consortium: PathBuf,
    /// Who is replaced.
    #[arg(value_name = "OLD")]
    pub old: String,
    /// What the member in its place is called; OLD again where it lost its key.
    #[arg(value_name = "NEW")]
    pub new: String,
    /// Its public key: 64 hexadecimal digits, or a key file (PEM).
    #[arg(long)]
    pub key: String,
    /// The key of its libp2p node, if another.
    #[arg(long, value_name = "KEY")]
    pub peer_key: Option<String>,
    /// Where its node is dialled [default: where OLD's was]. Can be given several times.
    #[arg(long, value_name = "MULTIADDR")]
    pub address: Vec<String>,
    /// Leave the document, of a complete consortium, as it is, and write the change of it here.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `fedprune consortium remove`
#[derive(Debug, Args)]
pub struct ConsortiumRemoveOptions {
    /// The document, of a complete consortium or a draft.
    #[arg(value_name = "CONSORTIUM")]
    pub consortium: PathBuf,
    /// Who leaves.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Leave the document, of a complete consortium, as it is, and write the change of it here.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `fedprune consortium sign`
#[derive(Debug, Args)]
pub struct ConsortiumSignOptions {
    /// The document [default with --home: HOME/consortium.toml, which is a copy of it].
    #[arg(value_name = "CONSORTIUM", required_unless_present = "home")]
    pub consortium: Option<PathBuf>,
    /// The private key of a member; not needed to merge alone.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["home", "merge"], conflicts_with = "home")]
    pub key: Option<PathBuf>,
    /// The list of signatures to add to [default: the document's name with the ending .signatures].
    #[arg(long, value_name = "FILE", conflicts_with = "home")]
    pub signatures: Option<PathBuf>,
    /// Lists of signatures of the same document, from other members.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub merge: Vec<PathBuf>,
    /// Sign with HOME/key.pem, and keep document and signatures in HOME.
    #[arg(long, value_name = "HOME")]
    pub home: Option<PathBuf>,
    /// Agree to a change of the consortium without being asked.
    #[arg(long, short)]
    pub yes: bool,
}

/// `fedprune consortium show`
#[derive(Debug, Args)]
pub struct ConsortiumShowOptions {
    /// The document.
    #[arg(value_name = "CONSORTIUM", required_unless_present = "home", conflicts_with = "home")]
    pub consortium: Option<PathBuf>,
    /// The list of signatures [default: the document's name with the ending .signatures].
    #[arg(long, value_name = "FILE", conflicts_with = "home")]
    pub signatures: Option<PathBuf>,
    /// Show HOME/consortium.toml and HOME/consortium.signatures.
    #[arg(long, value_name = "HOME")]
    pub home: Option<PathBuf>,
}

/// `fedprune round …`
#[derive(Debug, Subcommand)]
#[command(after_help = SEQUENCE)]
pub enum RoundCommand {
    /// Write the document of a round.
    New(Box<RoundNewOptions>),
    /// Show what a round says, and what to know before it is approved.
    Show(RoundShowOptions),
    /// Compute the ballot, and see what it tells about the text behind it, before anything is sent.
    Preview(Box<super::RoundPreviewOptions>),
    /// See what will leave the silo, and approve it: without, no node takes part.
    Approve(RoundApproveOptions),
    /// List the approvals of a home, and check that none was changed or taken out.
    Approvals(super::RoundApprovalsOptions),
}

/// `fedprune round new`
#[derive(Debug, Args)]
pub struct RoundNewOptions {
    /// The consortium's document.
    #[arg(long, value_name = "FILE")]
    pub consortium: PathBuf,
    /// The model to prune: a checkpoint folder in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Where to write the document.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Fraction of weights to prune: 0.5, 57/100, or a pattern n:m, n pruned of each m
    /// [default: 0.5, or what a group fixes].
    #[arg(long)]
    pub sparsity: Option<SparsityOrPattern>,
    /// Scoring rule: wanda, magnitude or ria.
    #[arg(long, default_value = "wanda")]
    pub pruner: Pruner,
    /// Pools of the silos' masks: row, column, layer or n:m [default: row].
    #[arg(long)]
    pub local_group: Option<Group>,
    /// Pools of the global mask: row, column, layer or n:m [default: layer, or the local n:m].
    #[arg(long)]
    pub global_group: Option<Group>,
    /// One agreement on the whole model, or one a decoder block.
    #[arg(long, value_enum, default_value_t = StrategyChoice::OneShot)]
    pub strategy: StrategyChoice,
    /// What is done to the weights that stay (support is usually worse than none).
    #[arg(long, value_enum, default_value_t = ScalingChoice::None)]
    pub scaling: ScalingChoice,
    /// Who tallies: every member after the agreement, or the elected aggregator within it, checked by all.
    #[arg(long, value_enum, default_value_t = TallyChoice::EveryPeer)]
    pub tally: TallyChoice,
    /// What ballots may hold: the smallest encoding, or only functions of the mask itself.
    #[arg(long, value_enum, default_value_t = Ballots::Auto)]
    pub ballots: Ballots,
    /// Fewest ballots that make a mask [default: the quorum].
    #[arg(long, value_name = "N")]
    pub minimum_ballots: Option<u16>,
    /// Number of calibration windows of a silo [default: 128].
    #[arg(long, value_name = "N")]
    pub nsamples: Option<u32>,
    /// Tokens per calibration window [default: 2048, or the model's longest].
    #[arg(long, value_name = "TOKENS")]
    pub seqlen: Option<usize>,
    /// How windows are chosen [default: random].
    #[arg(long, value_enum)]
    pub sampling: Option<SamplingMethod>,
    /// Seed of the random choice of windows: one number for all, or from-round, each member's own
    /// [default: from-round].
    #[arg(long, value_name = "SEED", value_parser = seed)]
    pub seed: Option<SeedRule>,
    /// Where the token of the beginning of a sequence goes [default: each-text, as the tokenizer does it].
    #[arg(long, value_enum)]
    pub bos: Option<BosChoice>,
    /// Fewest tokens that a silo may contribute from [default: nsamples × seqlen].
    #[arg(long, value_name = "TOKENS")]
    pub minimum_calibration_tokens: Option<u64>,
    /// Matrices to prune by magnitude, such as block0.qkv, which tells most about the words of a text.
    #[arg(long, value_name = "BLOCK.TAP", value_delimiter = ',')]
    pub data_free: Vec<DataFree>,
    /// Tally weight of a member, NAME=N [default: 1 each]. Can be given several times.
    #[arg(long, value_name = "NAME=N", value_parser = weight)]
    pub weight: Vec<(String, u32)>,
    /// How long a height waits for ballots.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub contribution_seconds: u64,
    /// After how long a height may be abandoned.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub abandon_seconds: u64,
    /// How long members wait for the aggregator's proposal.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub proposal_ms: u64,
    /// How long members wait for the votes of others.
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    pub vote_ms: u64,
    /// Added to the last two for each view that came to nothing.
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub growth_ms: u64,
}

/// `fedprune round show`
#[derive(Debug, Args)]
pub struct RoundShowOptions {
    /// The round's document.
    #[arg(value_name = "ROUND")]
    pub round: PathBuf,
    /// The consortium's document.
    #[arg(long, value_name = "FILE", required_unless_present = "home", conflicts_with = "home")]
    pub consortium: Option<PathBuf>,
    /// Take the consortium from HOME/consortium.toml.
    #[arg(long, value_name = "HOME")]
    pub home: Option<PathBuf>,
    /// Check that this is the round's model.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
}

/// `fedprune round approve`
#[derive(Debug, Args)]
pub struct RoundApproveOptions {
    /// The round's document.
    #[arg(value_name = "ROUND")]
    pub round: PathBuf,
    /// The member's folder, with key.pem, consortium.toml and consortium.signatures.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Check that this is the round's model, and say how large the ballot will be.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: Option<PathBuf>,
    /// Approve without being asked.
    #[arg(long, short)]
    pub yes: bool,
    /// Who approves, for the signed approval.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub person: String,
    /// As what: data protection officer, head of research.
    #[arg(long, value_name = "ROLE", default_value = "")]
    pub role: String,
    /// What this site allows [default: HOME/policy.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// How many agreements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StrategyChoice {
    /// One, on the whole model.
    OneShot,
    /// One for each decoder block, each on the model pruned up to there.
    Iterative,
}

/// What is done to the weights that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScalingChoice {
    /// Nothing.
    None,
    /// They are multiplied by the share of votes that keeps them.
    Support,
}

/// Who tallies before the agreement is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TallyChoice {
    /// Nobody: members agree on the ballots, and each derives the mask.
    EveryPeer,
    /// The aggregator; every voter derives the mask again before it votes.
    Elected,
}

/// Where the token of the beginning of a sequence goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BosChoice {
    /// Nowhere.
    None,
    /// Before each text, as the tokenizer does it.
    EachText,
    /// First in each window.
    EachWindow,
}

/// `--seed 7` or `--seed from-round`; a number of a document has at most 63 bits.
fn seed(text: &str) -> Result<SeedRule, String> {
    if text == "from-round" {
        return Ok(SeedRule::FromRound);
    }
    match text.parse::<u64>() {
        Ok(seed) if i64::try_from(seed).is_ok() => Ok(SeedRule::Fixed(seed)),
        _ => Err("expected a number from 0 to 9223372036854775807, or from-round".to_owned()),
    }
}

/// `--weight north=2`; a name may hold `=` itself.
fn weight(text: &str) -> Result<(String, u32), String> {
    let parse = || {
        let (name, weight) = text.rsplit_once('=')?;
        Some((name.to_owned(), weight.parse::<u32>().ok().filter(|weight| *weight > 0)?))
    };
    parse().ok_or_else(|| "expected NAME=N, such as north=2, with N from 1 to 4294967295".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_weights_are_read_or_refused() {
        assert_eq!(seed("from-round"), Ok(SeedRule::FromRound));
        assert_eq!(seed("9223372036854775807"), Ok(SeedRule::Fixed(i64::MAX as u64)));
        assert!(seed("9223372036854775808").is_err() && seed("-1").is_err() && seed("").is_err());
        assert_eq!(weight("north=2"), Ok(("north".to_owned(), 2)));
        assert_eq!(weight("a=b=3"), Ok(("a=b".to_owned(), 3)));
        assert!(weight("north").is_err() && weight("north=0").is_err() && weight("north=4294967296").is_err());
    }
}
