//! `fedprune consortium`: who takes part, written down and signed by all, and how that changes later.

mod change;
mod document;
mod pending;
mod renew;
mod sign;
mod view;

pub use change::{remove, replace};
pub use document::{NewReport, add, new};
pub use renew::renew;
pub use sign::{show, sign};
pub use view::ConsortiumReport;
