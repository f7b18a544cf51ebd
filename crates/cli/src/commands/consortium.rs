//! `fedprune consortium`: who takes part, written down and signed by all.

mod document;
mod sign;
mod view;

pub use document::{NewReport, add, new};
pub use sign::{show, sign};
pub use view::ConsortiumReport;
