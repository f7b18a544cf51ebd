//! The paper's comparison (FedPrLLM, arXiv 2505.13547) on one's own model and text, in one process, with the code that
//! nodes run: the same windows, passes, ballots and tally.
//!
//! | module | what it is for |
//! |---|---|
//! | [`plan`] | what is measured: a TOML document, and every combination in it |
//! | [`run`](mod@run) | carrying it out: each thing once, and what was there before not again |
//! | [`bench`] | one model: ballots, masks, perplexities |
//! | [`store`] | what was measured so far, on disk |
//! | [`results`] | what was measured, as others read it |
//! | [`report`], [`figures`] | tables, what they say, and pictures |
//! | [`files`] | all of that in a folder |

#![forbid(unsafe_code)]

pub mod bench;
pub mod error;
pub mod figures;
pub mod files;
pub mod plan;
pub mod report;
pub mod results;
pub mod run;
pub mod store;

mod cells;
mod findings;
mod opened;
mod profile;

pub use error::StudyError;
pub use plan::{Plan, PlanError};
pub use results::Results;
pub use run::{Progress, RunOptions, run};
