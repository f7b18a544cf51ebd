//! A member's ballot: what it signs about it, and what others check before they hold and count it.
//!
//! The body is a ballot file of [`fedprune_mask::ballot`]. The header binds it to member, round and height.

mod header;
#[cfg(test)]
mod tests;
mod validate;

pub use header::{BallotHeader, MAX_BODY_BYTES, largest_body_bytes};
pub use validate::{InvalidBallot, Validated, check_body, validate};
