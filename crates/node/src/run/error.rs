//! Why a node cannot run.

use std::path::PathBuf;

use fedprune_federation::machine::{MachineError, SetupError};
use fedprune_mask::Digest;

use super::model::ModelError;
use crate::network::{SendError, StartError};
use crate::observe::ObserveError;
use crate::storage::blobs::BlobError;
use crate::storage::fs::FileError;
use crate::storage::home::HomeError;
use crate::storage::index::IndexError;
use crate::storage::wal::WalError;

/// Why a node cannot run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The home folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log holds something that is no record.
    #[error("the log of this round in `{}` cannot be read", folder.display())]
    Record {
        /// Where it is.
        folder: PathBuf,
        /// What is wrong.
        source: fedprune_federation::wire::WireError,
    },
    /// Bodies.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The model cannot be opened.
    #[error("the model cannot be used")]
    Checkpoint(#[from] fedprune_checkpoint::CheckpointError),
    /// Another model than the round's.
    #[error("`{}` has {what} {found}, and the round is about {expected}; give the round's model", folder.display(), found = found.short(), expected = expected.short())]
    OtherModel {
        /// The model's folder.
        folder: PathBuf,
        /// Weights, tokenizer or configuration.
        what: &'static str,
        /// Its digest.
        found: Digest,
        /// The round's.
        expected: Digest,
    },
    /// Ballots and model do not come to a mask.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The setup.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The engine.
    #[error("the agreement cannot be set up: {0}")]
    Engine(String),
    /// The network cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The network has stopped.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Page or metrics cannot be served.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// They cannot be served on sockets that are listened on.
    #[error("page and metrics cannot be served")]
    Serve(#[source] std::io::Error),
    /// The protocol cannot go on.
    #[error("this member cannot go on")]
    Machine(#[from] MachineError),
    /// No address to listen on.
    #[error("the consortium has no address for `{0}`: give one with --listen /ip4/0.0.0.0/tcp/4100")]
    NoAddress(String),
    /// A member that there is not.
    #[error("the consortium has no member `{0}` to dial: correct the name in --dial NAME=MULTIADDR")]
    NoSuchMember(String),
    /// An address that is none.
    #[error("`{0}` is no multiaddress; write it like /ip4/0.0.0.0/tcp/4100")]
    Address(String),
    /// A combination that is not there.
    #[error("{0}")]
    NotSupported(&'static str),
    /// Another process with this key.
    #[error(
        "another process with this member's key has been connected to the others for {seconds} s; stop one of the two, or give each its own home and key"
    )]
    AnotherInstance {
        /// How long.
        seconds: u64,
    },
    /// The pruned model was not written.
    #[error("the pruned model was not written: {0}")]
    Apply(String),
    /// The transcript was not written.
    #[error("the transcript was not written")]
    Transcript(#[from] fedprune_audit::transcript::WriteError),
    /// A ballot of another round, or of none.
    #[error(
        "the ballot of this silo for height {height} does not fit the round, was not signed and does not leave: {why}"
    )]
    OwnBallot {
        /// Its height.
        height: fedprune_federation::Height,
        /// What is wrong with it.
        why: String,
    },
    /// A ballot that may not leave.
    #[error("this silo's ballot was not signed and does not leave")]
    Refused(#[source] fedprune_federation::PolicyRefusal),
    /// A thread was lost.
    #[error("a worker thread ended unexpectedly: {0}")]
    Worker(String),
    /// A random number could not be had.
    #[error("the system gives no random numbers")]
    Random(#[source] std::io::Error),
}
