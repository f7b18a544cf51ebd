//! What is typed about transcripts.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fedprune_federation::{ConsortiumId, RoundId};

/// `fedprune audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Recompute everything in a transcript, offline, and say what holds.
    Verify(AuditVerifyOptions),
    /// Write what `verify` finds as a page for people: who voted, how far they agreed, every check.
    Report(AuditReportOptions),
    /// Show what a transcript holds: who took part, on what terms, how it went.
    Show(AuditShowOptions),
    /// Say whether two transcripts, such as those of two nodes, tell of the same decision.
    Compare(AuditCompareOptions),
    /// Write a small file that proves that a member's ballot counts.
    Prove(AuditProveOptions),
    /// Check such a file, with nothing but the consortium's document.
    CheckProof(AuditCheckProofOptions),
}

/// What the verdicts of `verify` and `report` exit with.
const VERDICTS: &str = "The ids must come from somebody you trust, not from the transcript.\n\
                        Exit code: 0 VERIFIED, 10 SELF-CONSISTENT (no ids given), 11 INCOMPLETE (no model, or ballots \
                        missing), 12 FAILED; 1 when nothing could be audited, 2 when not understood.";

/// `fedprune audit verify`
#[derive(Debug, Args)]
#[command(after_help = VERDICTS)]
pub struct AuditVerifyOptions {
    /// Folder with the transcript of a round.
    #[arg(value_name = "TRANSCRIPT")]
    pub transcript: PathBuf,
    /// The consortium that it should be of.
    #[arg(long, value_name = "DIGEST", requires = "round_id")]
    pub consortium_id: Option<ConsortiumId>,
    /// The round that it should be of.
    #[arg(long, value_name = "DIGEST", requires = "consortium_id")]
    pub round_id: Option<RoundId>,
    /// The base model; with it, ballots are read and the mask is recomputed.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// A pruned copy of it, to be compared with base ⊙ mask, bit for bit.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub pruned: Option<PathBuf>,
}

/// `fedprune audit report`
#[derive(Debug, Args)]
#[command(after_help = VERDICTS)]
pub struct AuditReportOptions {
    /// What is audited, and with what.
    #[command(flatten)]
    pub verify: AuditVerifyOptions,
    /// Where to write the page (HTML, complete in itself).
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune audit show`
#[derive(Debug, Args)]
pub struct AuditShowOptions {
    /// Folder with the transcript of a round.
    #[arg(value_name = "TRANSCRIPT")]
    pub transcript: PathBuf,
}

/// `fedprune audit compare`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 SAME-DECISION, 12 FAILED (what signatures tell does not hold in one), 13 PARTIAL (one decided \
                        more), 14 CONTRADICTION, 15 OTHER-ROUND; 1 when there is nothing to compare, 2 when not understood."
)]
pub struct AuditCompareOptions {
    /// Folder with a transcript.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// Folder with another.
    #[arg(value_name = "B")]
    pub b: PathBuf,
}

/// `fedprune audit prove`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0 written, 16 NOT-COUNTED (no ballot of the member counts; nothing is written), 1 when the \
                        transcript proves nothing, 2 when not understood."
)]
pub struct AuditProveOptions {
    /// Name of the member.
    #[arg(value_name = "MEMBER")]
    pub member: String,
    /// Folder with the transcript of a round.
    #[arg(long, value_name = "TRANSCRIPT")]
    pub transcript: PathBuf,
    /// Of an iterative round, one height [default: all].
    #[arg(long, value_name = "N")]
    pub height: Option<u32>,
    /// Where to write the proof.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune audit check-proof`
#[derive(Debug, Args)]
#[command(after_help = "The document, or the id, must come from somebody you trust.\n\
                        Exit code: 0 PROVEN, 12 FAILED; 1 when a file cannot be read, 2 when not understood.")]
pub struct AuditCheckProofOptions {
    /// The proof.
    #[arg(value_name = "FILE")]
    pub proof: PathBuf,
    /// The document of the consortium that it should be of.
    #[arg(long, value_name = "FILE", required_unless_present = "consortium_id", conflicts_with = "consortium_id")]
    pub consortium: Option<PathBuf>,
    /// The id of that consortium, in place of its document.
    #[arg(long, value_name = "DIGEST")]
    pub consortium_id: Option<ConsortiumId>,
    /// The document of the round that it should be of.
    #[arg(long, value_name = "FILE", conflicts_with = "round_id", requires = "consortium")]
    pub round: Option<PathBuf>,
    /// The id of that round, in place of its document.
    #[arg(long, value_name = "DIGEST")]
    pub round_id: Option<RoundId>,
}
