//! Verification of a round by someone who trusts nobody, offline.
//!
//! A node writes what it saw and signed into one folder, the transcript. Whoever has that folder can check, without
//! having been there and without asking anyone, that the consortium agreed to the round, that the ballots that were
//! counted are those that its members signed, and that the mask is what these ballots come to.
//!
//! | module | what it answers |
//! |---|---|
//! | [`transcript`] | what lies where in the folder; how it is written and how it is read |
//! | [`verify`](mod@verify) | every check, one after another |
//! | [`report`] | what was compared, what was found, and the verdict |
//! | [`show`](mod@show) | the round at a glance, for people |
//! | [`html`] | the report as a page |
//! | [`mod@compare`] | whether two transcripts tell of one decision |
//! | [`mod@prove`] | proof that a member's ballots count, in a small file |
//!
//! `docs/transcript.md` describes every file byte by byte, for verifiers that share no code with this one.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod compare;
pub mod html;
pub mod prove;
pub mod report;
pub mod show;
pub mod transcript;
pub mod verify;

pub use compare::{Comparison, Sameness, compare};
pub use prove::{ProveError, Proven, prove};
pub use report::{Check, Finding, Outcome, Report, Verdict};
pub use show::{Overview, overview, show};
pub use transcript::{Limits, Summary, Transcript, TranscriptError, TranscriptWriter};
pub use verify::{AuditError, Options, Progress, Step, verify, verify_and_measure};
