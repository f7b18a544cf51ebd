//! What is typed about attestations.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fedprune_federation::RoundId;

/// `fedprune attest …`
#[derive(Debug, Subcommand)]
#[command(
    after_help = "An attestation says to programs of others what a transcript proves to those who read transcripts: it is made \
                        where a member's keys are, and adds nothing to the proof. docs/attestations.md has the forms."
)]
pub enum AttestCommand {
    /// Attest that this member cast a ballot that counts (in-toto statement in a DSSE envelope).
    #[cfg(feature = "federation")]
    Ballot(AttestBallotOptions),
    /// Attest what a round came to (SLSA provenance in a DSSE envelope), once everything in it was recomputed.
    #[cfg(feature = "federation")]
    Result(AttestResultOptions),
    /// Sign a pruned folder in the form of OpenSSF Model Signing, with the attestation key.
    #[cfg(feature = "federation")]
    Model(AttestModelOptions),
    /// Put the signatures of several members under one statement.
    Merge(AttestMergeOptions),
    /// Check an attestation of any of these kinds.
    Verify(AttestVerifyOptions),
}

/// `fedprune attest ballot`
#[cfg(feature = "federation")]
#[derive(Debug, Args)]
pub struct AttestBallotOptions {
    /// The member's folder.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Folder with the transcript of the round.
    #[arg(long, value_name = "TRANSCRIPT")]
    pub transcript: PathBuf,
    /// Which ballot of an iterative round [default: the only one].
    #[arg(long, value_name = "N")]
    pub height: Option<u32>,
    /// Where to write the envelope.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune attest result`
#[cfg(feature = "federation")]
#[derive(Debug, Args)]
pub struct AttestResultOptions {
    /// The member's folder.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Folder with the transcript of the round.
    #[arg(long, value_name = "TRANSCRIPT")]
    pub transcript: PathBuf,
    /// The base model.
    #[arg(long, value_name = "DIR", env = "FEDPRUNE_MODEL")]
    pub model: PathBuf,
    /// The pruned model that the round came to.
    #[arg(long, value_name = "DIR")]
    pub pruned: PathBuf,
    /// Where to write the envelope.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune attest model`
#[cfg(feature = "federation")]
#[derive(Debug, Args)]
pub struct AttestModelOptions {
    /// The pruned folder; every file in it is signed.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The member's folder.
    #[arg(long, value_name = "HOME", env = "FEDPRUNE_HOME")]
    pub home: PathBuf,
    /// Where to write the signature, outside the folder.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune attest merge`
#[derive(Debug, Args)]
pub struct AttestMergeOptions {
    /// Envelopes of one statement.
    #[arg(value_name = "FILE", required = true, num_args = 2..)]
    pub files: Vec<PathBuf>,
    /// Where to write the envelope with all signatures.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `fedprune attest verify`
#[derive(Debug, Args)]
#[command(after_help = "The consortium's document must come from somebody you trust.\n\
                        Exit code: 0 ATTESTED, 12 FAILED; 1 when a file cannot be read, 2 when not understood.")]
pub struct AttestVerifyOptions {
    /// The attestation.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The document of the consortium whose members attest.
    #[arg(long, value_name = "FILE")]
    pub consortium: PathBuf,
    /// The round that it should be of; a signature of a model says nothing of one.
    #[arg(long, value_name = "DIGEST")]
    pub round_id: Option<RoundId>,
    /// How many members must have signed, at least 1 [default: of a result the quorum, otherwise one].
    #[arg(long, value_name = "N")]
    pub threshold: Option<usize>,
    /// The ballot that is attested, to be compared.
    #[arg(long, value_name = "FILE")]
    pub ballot: Option<PathBuf>,
    /// The pruned folder that is attested, to be compared.
    #[arg(long, value_name = "DIR")]
    pub pruned: Option<PathBuf>,
}
