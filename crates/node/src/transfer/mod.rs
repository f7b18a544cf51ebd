//! Fetching ballot bodies from whoever has them.
//!
//! | module | what it answers |
//! |---|---|
//! | [`download`] | which member is asked for which chunk next |
//! | [`limits`] | every limit |
//!
//! No I/O and no clock: times are arguments, requests and answers are values.

pub mod download;
pub mod limits;

pub use download::{Body, Downloads, Event, Next, Outcome, Progress, Request};
