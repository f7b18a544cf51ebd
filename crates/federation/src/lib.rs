//! What the members of a consortium say to each other, as data: who they are, what a round is, what each
//! of them signs, and what follows from it.
//!
//! | module | what it answers |
//! |---|---|
//! | [`ids`] | consortium, round, member and height as types; how many faults n members tolerate |
//! | [`wire`] | how every encoding begins, and the limits under which it is read |
//! | [`document`] | how documents that people write are read |
//! | [`signing`] | keys, and the bytes under a signature |
//! | [`consortium`] | who may take part, and that all of them agreed to it |
//! | [`round`] | what is pruned, how, from what, and by when |
//! | [`statement`] | signed statements, and how far each has been verified |
//! | [`ballot`] | a member's ballot: what it signs about it, and what others check before they count it |
//! | [`holdings`] | which ballots a member has checked and stored |
//! | [`result`] | which mask a member derived |
//! | [`manifest`] | which ballots count: a function of holdings |
//! | [`evidence`] | proof that a member said two things where it may say one |
//! | [`election`] | whose turn it is to propose |
//! | [`vote`] | proposals, prevotes and precommits |
//! | [`certificate`] | proof that a quorum committed to a value |
//! | [`proposed`] | a value with what it rests on |
//! | [`agreement`] | what carries out the agreement on one height, as a trait |
//! | [`approval`] | that a person approved what leaves a silo |
//! | [`policy`] | what a site allows |
//! | [`machine`] | one member's side of a round, as a state machine |
//!
//! No I/O, no clock, no floats, no randomness: bytes, keys and times are arguments. What a peer or a file
//! claims is bounded before it is stored and checked before it is used.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod agreement;
pub mod approval;
pub mod ballot;
pub mod certificate;
pub mod consortium;
pub mod document;
pub mod election;
pub mod evidence;
pub mod holdings;
pub mod ids;
pub mod inclusion;
pub mod machine;
pub mod manifest;
pub mod policy;
pub mod proposed;
pub mod result;
pub mod round;
pub mod signing;
pub mod statement;
#[cfg(test)]
mod testing;
pub mod vote;
pub mod wire;

pub use approval::{Approval, SignedApproval};
pub use ballot::{BallotHeader, InvalidBallot, Validated};
pub use certificate::{Certificate, ReceivedCertificate};
pub use consortium::{Consortium, Draft, Ratified};
pub use election::Rotation;
pub use evidence::{Evidence, ReceivedEvidence};
pub use holdings::Holdings;
pub use ids::{ConsortiumId, Height, MemberIndex, Quorum, RoundId};
pub use inclusion::{Inclusion, ReceivedInclusion};
pub use machine::Machine;
pub use manifest::{Decision, Manifest};
pub use policy::{Policy, PolicyRefusal};
pub use proposed::{Justified, Proposed, ReceivedProposed, ReceivedSettled, Settled};
pub use result::MaskResult;
pub use round::{Round, Terms};
pub use signing::{Signature, SigningKey, VerifyingKey};
pub use statement::{Received, SignatureChecked, Slot, Statement};
pub use vote::{Precommit, Prevote, Proposal};
