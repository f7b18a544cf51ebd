//! One silo's side of a vote: calibration windows in, norm vectors and masks out, one decoder block at a time.
//!
//! A block is loaded, run once with its dense weights to measure what each linear layer reads, pruned by the
//! mask that those measurements give, and run again, so that the next block sees what the pruned model will
//! see (Wanda §4.1). Then it is dropped: memory holds one block and the activations, never the model.
//!
//! | module | what it answers |
//! |---|---|
//! | [`pass`] | the two runs through a block, with any mask in between: a silo's own, or one agreed with others |
//! | [`local`] | the whole pass with a silo's own masks |
//! | [`journal`] | what was measured so far, on disk, so that a killed run continues |
//! | [`disclosure`] | what a ballot tells about the text behind it |
//!
//! The scoring rules themselves are [`fedprune_mask::score`]: they are functions of weights and norms that an
//! auditor without this crate can evaluate too.

#![forbid(unsafe_code)]

pub mod disclosure;
pub mod error;
pub mod journal;
pub mod local;
pub mod pass;

pub use error::PruneError;
pub use journal::Journal;
pub use local::{LocalOutcome, LocalPass, Recipe, forget_data_free, local_pass, windows_digest};
pub use pass::{BlockPass, Measured, Progress, Stage, check_finite};
