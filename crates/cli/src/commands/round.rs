//! `fedprune round`: what is pruned and how, written down, looked at and approved.

mod approve;
mod document;
mod model;
mod preview;
mod terms;

pub use approve::{ApprovalReport, approve};
pub use document::{RoundReport, new, show};
