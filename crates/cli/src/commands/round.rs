//! `fedprune round`: what is pruned and how, written down, looked at and approved.

mod approve;
mod document;
mod model;
mod preview;
mod silo_preview;
mod terms;

pub(super) use approve::refused;
pub use approve::{ApprovalReport, ApprovalsReport, approvals, approve};
pub use document::{RoundReport, new, show};
pub use silo_preview::{PreviewReport, preview};
pub(super) use silo_preview::{Record, all_encodings, previewed};
