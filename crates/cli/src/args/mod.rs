//! What can be typed. No file is opened and nothing is computed here.
//!
//! | module | feature | what is typed about |
//! |---|---|---|
//! | `silo` | `silo` | models, masks, pruned copies |
//! | `federation`, `node`, `testnet`, `demo` | `federation` | keys, consortiums, rounds, nodes |
//! | `audit`, `attest` | `audit` | transcripts, attestations |
//! | `operator` | `federation` | homes, checks before a round, services |
//! | `study` | `study` | comparisons of settings |

#[cfg(feature = "audit")]
pub mod attest;
#[cfg(feature = "audit")]
pub mod audit;
#[cfg(feature = "federation")]
pub mod demo;
#[cfg(feature = "federation")]
pub mod federation;
#[cfg(feature = "federation")]
pub mod node;
#[cfg(feature = "federation")]
pub mod operator;
#[cfg(feature = "federation")]
pub mod preview;
#[cfg(feature = "silo")]
pub mod silo;
#[cfg(feature = "study")]
pub mod study;
#[cfg(feature = "federation")]
pub mod testnet;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[cfg(all(feature = "audit", feature = "federation"))]
pub use attest::{AttestBallotOptions, AttestModelOptions, AttestResultOptions};
#[cfg(feature = "audit")]
pub use attest::{AttestCommand, AttestMergeOptions, AttestVerifyOptions};
#[cfg(feature = "audit")]
pub use audit::{
    AuditCheckProofOptions, AuditCommand, AuditCompareOptions, AuditProveOptions, AuditReportOptions, AuditShowOptions,
    AuditVerifyOptions,
};
#[cfg(feature = "federation")]
pub use demo::DemoOptions;
#[cfg(feature = "federation")]
pub use federation::{
    BosChoice, ConsortiumAddOptions, ConsortiumCommand, ConsortiumNewOptions, ConsortiumRemoveOptions,
    ConsortiumRenewOptions, ConsortiumReplaceOptions, ConsortiumShowOptions, ConsortiumSignOptions,
    KeyAttestationOptions, KeyCommand, KeyNewOptions, KeyShowOptions, RoundApproveOptions, RoundCommand,
    RoundNewOptions, RoundShowOptions, ScalingChoice, StrategyChoice, TallyChoice,
};
#[cfg(feature = "federation")]
pub use node::{Log, NodeCommand, NodeRunOptions, NodeStatusOptions, NodeWatchOptions};
#[cfg(feature = "federation")]
pub use operator::{CompletionsOptions, InitOptions, ManOptions, NodeInstallOptions, PreflightOptions};
#[cfg(feature = "federation")]
pub use preview::{RoundApprovalsOptions, RoundPreviewOptions};
#[cfg(feature = "federation")]
pub use silo::ContributeOptions;
#[cfg(feature = "silo")]
pub use silo::{
    ApplyOptions, Ballots, ComputeOptions, DeviceOptions, EvalCommand, FetchOptions, ImportOptions, InspectOptions,
    MaskCommand, ModelCommand, PerplexityOptions, SamplingMethod, Scale, ShowOptions, SparsityOrPattern, TallyOptions,
};
#[cfg(feature = "study")]
pub use study::{StudyCommand, StudyReportOptions, StudyRunOptions};
#[cfg(feature = "federation")]
pub use testnet::{TestnetCommand, TestnetGenerateOptions, TestnetRunOptions, TestnetSimulateOptions};

/// Prune one large language model together, without sharing text.
#[derive(Debug, Parser)]
#[command(name = "fedprune", version = crate::version::number(), max_term_width = 120, arg_required_else_help = true)]
#[cfg_attr(feature = "federation", command(after_help = format!("Start here: fedprune demo\n\n{}", crate::exit::HELP)))]
#[cfg_attr(not(feature = "federation"), command(after_help = crate::exit::HELP))]
pub struct Arguments {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What the settings of this command came out as.
    #[cfg(feature = "federation")]
    #[arg(skip)]
    pub settings: Vec<crate::settings::Setting>,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct GlobalOptions {
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text, global = true, env = "FEDPRUNE_FORMAT")]
    pub format: Format,
    /// Print no progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people.
    Text,
    /// One JSON document for machines.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at a checkpoint.
    #[cfg(feature = "silo")]
    #[command(subcommand)]
    Model(ModelCommand),
    /// Compute and look at pruning masks.
    #[cfg(feature = "silo")]
    #[command(subcommand)]
    Mask(MaskCommand),
    /// Count ballots into one global mask.
    #[cfg(feature = "silo")]
    Tally(TallyOptions),
    /// Write a pruned copy of a checkpoint.
    #[cfg(feature = "silo")]
    Apply(ApplyOptions),
    /// Measure a model.
    #[cfg(feature = "silo")]
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Make a member's folder: settings, each explained, and a key.
    #[cfg(feature = "federation")]
    Init(InitOptions),
    /// Check that a node can run here: clock, disk, memory, ports, model, and whether the others can be reached.
    #[cfg(feature = "federation")]
    Preflight(PreflightOptions),
    /// Make and look at the keys of members.
    #[cfg(feature = "federation")]
    #[command(subcommand)]
    Key(KeyCommand),
    /// Write down who takes part, and sign it.
    #[cfg(feature = "federation")]
    #[command(subcommand)]
    Consortium(ConsortiumCommand),
    /// Write down what is pruned and how, and approve it.
    #[cfg(feature = "federation")]
    #[command(subcommand)]
    Round(RoundCommand),
    /// Take part in a round.
    #[cfg(feature = "federation")]
    #[command(subcommand)]
    Node(NodeCommand),
    /// Check what a finished round left behind, trusting nobody.
    #[cfg(feature = "audit")]
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Say the same in forms that programs of others check.
    #[cfg(feature = "audit")]
    #[command(subcommand)]
    Attest(AttestCommand),
    /// Run a network of nodes on this machine.
    #[cfg(feature = "federation")]
    #[command(subcommand)]
    Testnet(TestnetCommand),
    /// Compare settings on your own model and text, with tables and figures.
    #[cfg(feature = "study")]
    #[command(subcommand)]
    Study(StudyCommand),
    /// Print a script that completes this program's commands in a shell.
    #[cfg(feature = "federation")]
    Completions(CompletionsOptions),
    /// Write the manual, a page for each command.
    #[cfg(feature = "federation")]
    Man(ManOptions),
    /// Four nodes prune the bundled model together, each with a text of its own; measured and audited.
    #[cfg(feature = "federation")]
    Demo(DemoOptions),
}
