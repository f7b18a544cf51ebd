//! What a node notes beside the proof: facts that nobody signed and nothing depends on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most bytes of a summary.
pub const SUMMARY_LIMIT: u64 = 1 << 20;

/// Unsigned facts about how the round went at the member who wrote the transcript.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the member whose node wrote the transcript.
    pub written_by: String,
    /// The program, such as `fedprune 0.1.0`.
    pub program: String,
    /// Bytes sent to other members.
    pub sent_bytes: u64,
    /// Bytes received from them.
    pub received_bytes: u64,
    /// Seconds spent in each phase, by its name.
    pub seconds: BTreeMap<String, f64>,
}
