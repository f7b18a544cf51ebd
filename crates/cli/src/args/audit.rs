//! What is typed about transcripts.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fedprune_federation::{ConsortiumId, RoundId};

/// `fedprune audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Recompute everything in a transcript, offline, and say what holds.
    Verify(AuditVerifyOptions),
    /// Show what a transcript holds: who took part, on what terms, how it went.
    Show(AuditShowOptions),
}

/// `fedprune audit verify`
#[derive(Debug, Args)]
#[command(after_help = "The ids must come from somebody you trust, not from the transcript.\n\
                        Exit code: 0 VERIFIED, 10 SELF-CONSISTENT (no ids given), 11 INCOMPLETE (no model, or ballots \
                        missing), 12 FAILED; 1 when nothing could be audited, 2 when not understood.")]
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

/// `fedprune audit show`
#[derive(Debug, Args)]
pub struct AuditShowOptions {
    /// Folder with the transcript of a round.
    #[arg(value_name = "TRANSCRIPT")]
    pub transcript: PathBuf,
}
