//! What came of a testnet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fedprune_mask::Digest;
use serde::Serialize;

use crate::manifest::Outcome;
use crate::supervise::Phase;

/// What came of a testnet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The manifest's name for it.
    pub name: String,
    /// Whether everything came as the manifest expects.
    pub passed: bool,
    /// Why not, if not: the first cause.
    pub reason: Option<String>,
    /// The log of the silo that the reason names.
    pub log: Option<LogEnd>,
    /// Where everything lies that it made.
    pub folder: PathBuf,
    /// The consortium.
    pub consortium: Digest,
    /// The round.
    pub round: Digest,
    /// The mask that all nodes came to.
    pub mask_root: Option<Digest>,
    /// From the start of the first node to the end of the last, in seconds.
    pub seconds: f64,
    /// What all nodes sent.
    pub wire: Wire,
    /// By name.
    pub silos: Vec<SiloReport>,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
    /// Commands to type next.
    pub look_further: Vec<String>,
}

/// What all nodes sent until they had closed their connections, as far as they came to say so.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Wire {
    /// Bytes, as nodes count them: of TCP everything above TCP itself.
    pub sent_bytes: u64,
    /// The same, by what it was for.
    pub sent: BTreeMap<String, u64>,
    /// The least that would do: every ballot once to every other of these nodes.
    pub least_bytes: u64,
    /// How much more it was than the least.
    pub ratio: Option<f64>,
}

/// One silo.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiloReport {
    /// Its name.
    pub name: String,
    /// How far it came.
    pub phase: Phase,
    /// How its round ended.
    pub outcome: Option<Outcome>,
    /// Bytes of all its ballots.
    pub ballot_bytes: Option<u64>,
    /// Seconds from the start of its process until it had its last ballot.
    pub ballot_seconds: Option<f64>,
    /// Seconds from the start of the first node until it had finished.
    pub seconds: Option<f64>,
    /// Bytes that it sent, over all its processes.
    pub sent_bytes: Option<u64>,
    /// What it sent, by what it was for.
    pub sent: BTreeMap<String, u64>,
    /// Bytes that it received, over all its processes.
    pub received_bytes: Option<u64>,
    /// The most memory that its last process had.
    pub peak_memory_bytes: Option<u64>,
    /// Members that it shut out for what they sent.
    pub shut_out: Vec<String>,
    /// How often it was killed.
    pub kills: usize,
    /// How often something went wrong with its process, kills among them.
    pub faults: usize,
    /// The global mask that it came to.
    pub mask_root: Option<Digest>,
    /// What `fedprune audit verify` says about its transcript.
    pub audit: Option<String>,
    /// Its transcript.
    pub transcript: Option<PathBuf>,
    /// Its pruned model.
    pub pruned: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// What was wrong; nothing, if it passed.
    pub problem: Option<String>,
}

/// The last lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogEnd {
    /// The whole log.
    pub path: PathBuf,
    /// Its last lines.
    pub lines: Vec<String>,
}
