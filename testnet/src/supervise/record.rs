//! What nodes said, as far as it is compared and reported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use fedprune_mask::Digest;

use crate::manifest::Outcome;

/// What one node said, over all its processes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Record {
    pub(crate) connected: BTreeSet<String>,
    /// A ballot by its height and mask; a restarted node says again what it has.
    pub(crate) ballots: BTreeMap<(u32, Option<Digest>), OwnBallot>,
    pub(crate) decided: BTreeMap<u32, BTreeSet<String>>,
    pub(crate) tallied: BTreeMap<u32, Digest>,
    pub(crate) evidence_against: BTreeSet<String>,
    /// Members that it shut out.
    pub(crate) shut_out: BTreeSet<String>,
    /// Things that went wrong with it, as the manifest has it.
    pub(crate) faults: usize,
    pub(crate) kills: usize,
    pub(crate) finished: Option<Finished>,
}

/// A ballot of a node's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OwnBallot {
    pub(crate) bytes: u64,
    /// Since the start of the process.
    pub(crate) seconds: f64,
}

/// What a node said last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finished {
    pub(crate) at: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) mask_root: Option<Digest>,
    pub(crate) transcript: Option<PathBuf>,
    pub(crate) pruned: Option<PathBuf>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// What was sent, by what it was for; known when the node has closed its connections.
    pub(crate) sent: BTreeMap<String, u64>,
    pub(crate) peak_memory_bytes: Option<u64>,
}
