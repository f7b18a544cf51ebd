//! Pruning masks as the federation agrees on them: exact, packed, and the same bits on every machine.
//!
//! A mask bit of 1 means *pruned*: `W_pruned = W ⊙ (1 − M)`. From a silo's norm vectors on, everything
//! here is integers or exact products, so a mask is a function of the stored weights and the votes alone.
//!
//! | module | what it answers |
//! |---|---|
//! | [`digest`] | a BLAKE3 digest as a type |
//! | [`layout`] | which matrices are pruned, in which order, and what identifies that list |
//! | [`sparsity`] | how much is pruned, exactly, and among whom a weight competes |
//! | [`weights`] | a stored matrix read in place, whatever its dtype |
//! | [`matrix_mask`] | one packed mask |
//! | [`norms`] | the bf16 activation norms of one tap |
//! | [`score`] | the pruners: weights and norms to order-preserving keys |
//! | [`select`] | keys to a mask, in linear time, by one total order |
//! | `thresholds` | masks that are one magnitude a column |
//! | [`codec`] | the one place where bincode is used |
//! | [`ballot`] | what travels: a mask as bytes, and back |
//! | [`tally`] | ballots to counts to the global mask |
//!
//! No I/O, no clock, no randomness; bytes are arguments.

#![forbid(unsafe_code)]

pub mod ballot;
pub mod codec;
pub mod digest;
pub mod layout;
pub mod matrix_mask;
pub mod norms;
pub mod score;
pub mod select;
pub mod sparsity;
pub mod tally;
mod thresholds;
mod vector;
pub mod weights;

pub use ballot::{Ballot, encode_ballot, encode_mask, is_harmful, peek_header};
pub use digest::Digest;
pub use layout::{Layout, Matrix, Tap};
pub use matrix_mask::MatrixMask;
pub use norms::NormVector;
pub use score::Pruner;
pub use select::derive_mask;
pub use sparsity::{Group, Sparsity};
pub use tally::{Counts, Tally};
pub use weights::{DType, MatrixSource, WeightsView};
