//! What comes back to the loop from threads, children and members that were asked.

use fedprune_federation::{Height, MemberIndex, Validated};
use fedprune_mask::Digest;

use super::child::Announced;
use super::error::NodeError;
use super::model::ModelError;
use crate::network::{AskError, ChunkAnswer};
use crate::transfer::download::Request;

/// Something that is done.
pub(super) enum Work {
    /// A body is in the store: our own.
    Imported { height: Height, result: Result<(Digest, u64), NodeError> },
    /// A ballot was checked.
    Validated {
        height: Height,
        member: MemberIndex,
        body: Digest,
        result: Result<Result<Validated, String>, NodeError>,
    },
    /// Ballots were counted.
    Tallied { height: Height, set: Digest, result: Result<Digest, NodeError> },
    /// A member has told what it has of ours.
    Recalled { from: MemberIndex, result: Result<Vec<u8>, AskError> },
    /// A member has told what we may have missed.
    News { from: MemberIndex, result: Result<Vec<u8>, AskError> },
    /// A part of a body arrived, or did not.
    Chunk { request: Request, result: Result<ChunkAnswer, AskError> },
    /// A part of a body was verified and stored, or was not.
    Accepted { request: Request, result: Result<bool, ChunkFault> },
    /// A body is complete.
    Complete { body: Digest, result: Result<(), NodeError> },
    /// How far the ballots of a height agree, by block.
    Agreement { height: Height, result: Result<Vec<(u32, f64)>, ModelError> },
    /// The contributing process has written a ballot.
    Announced(Announced),
    /// The contributing process has ended; why, unless it was done.
    ContributorEnded(Option<String>),
    /// Pruned model and transcript are written.
    Concluded(Result<Conclusion, NodeError>),
}

/// Why a part of a body does not count.
pub(super) enum ChunkFault {
    /// It is not what was asked for: the member that sent it is at fault.
    Corrupt,
    /// It could not be stored.
    Store(NodeError),
}

/// What a round has come to.
#[derive(Debug, Clone)]
pub(super) struct Conclusion {
    pub(super) mask_root: Option<Digest>,
    pub(super) transcript: std::path::PathBuf,
    pub(super) pruned: Option<std::path::PathBuf>,
}
