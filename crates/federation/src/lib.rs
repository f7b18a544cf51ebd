//! What the members of a consortium say to each other, as data: who they are, what a round is, what each
//! of them signs, and what follows from it.
//!
//! | module | what it answers |
//! |---|---|
//! | [`ids`] | consortium, round, member and height as types; how many faults n members tolerate |
//! | [`wire`] | how every encoding begins, and the limits under which it is read |
//! | [`document`] | how documents that people write are read |
//! | [`signing`] | keys, and the bytes under a signature |
//!
//! No I/O, no clock, no floats, no randomness: bytes, keys and times are arguments. What a peer or a file
//! claims is bounded before it is stored and checked before it is used.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod document;
pub mod ids;
pub mod signing;
pub mod wire;

pub use ids::{ConsortiumId, Height, MemberIndex, Quorum, RoundId};
pub use signing::{Signature, SigningKey, VerifyingKey};
