//! `status.json`: how a node is doing, for `fedprune node status` and for people.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fedprune_mask::Digest;
use serde::{Deserialize, Serialize};

use crate::network::Split;
use crate::observe::Addresses;
use crate::storage::fs::{self, FileError};

/// Most bytes of a status.
pub const STATUS_LIMIT: usize = 1 << 20;

/// How a node is doing, or how it was when it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Which member.
    pub member: String,
    /// In which round.
    pub round: Digest,
    /// Whether its process went on when this was written; one that is killed cannot say so any more.
    pub running: bool,
    /// What it is at; `stopped` or `failed` if it ended before the round did.
    pub phase: String,
    /// What others owe it before it can go on, such as `3 of 5 holdings statements`; nothing while it works itself.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// The height that it works on.
    pub height: u32,
    /// How many there are.
    pub heights: u32,
    /// Members that are connected.
    pub connected: Vec<String>,
    /// How many members there are.
    pub members: usize,
    /// Where it can be dialled.
    pub addresses: Vec<String>,
    /// To other members, in all runs of this round.
    pub sent_bytes: u64,
    /// From other members.
    pub received_bytes: u64,
    /// What was sent, by what it was for.
    #[serde(default)]
    pub sent: Split,
    /// What was received, likewise.
    #[serde(default)]
    pub received: Split,
    /// Members that were shut out, and what they sent.
    #[serde(default)]
    pub shut_out: BTreeMap<String, String>,
    /// What this node's program calls itself.
    #[serde(default)]
    pub program: String,
    /// Members with another program, and what it calls itself; nothing where it does not tell.
    #[serde(default)]
    pub other_programs: BTreeMap<String, Option<String>>,
    /// Since it started.
    pub seconds: f64,
    /// The root of the global mask.
    pub mask_root: Option<Digest>,
    /// Where the transcript is.
    pub transcript: Option<PathBuf>,
    /// Where the pruned model is.
    pub pruned: Option<PathBuf>,
    /// Where the page is served, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<SocketAddr>,
    /// Where metrics are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is damaged.
    #[error("`{}` is damaged; a running node writes it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Status {
    /// That of a node that has just started and opens the model.
    pub(crate) fn at_start(member: &str, members: usize, round: Digest, program: String, served: Addresses) -> Self {
        Self {
            member: member.to_owned(),
            round,
            running: true,
            phase: "opening the model".to_owned(),
            waits_for: None,
            height: 0,
            heights: 0,
            connected: Vec::new(),
            members,
            addresses: Vec::new(),
            sent_bytes: 0,
            received_bytes: 0,
            sent: Split::default(),
            received: Split::default(),
            shut_out: BTreeMap::new(),
            program,
            other_programs: BTreeMap::new(),
            seconds: 0.0,
            mask_root: None,
            transcript: None,
            pruned: None,
            page: served.page,
            metrics: served.metrics,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`StatusError`].
    pub fn read(path: &Path) -> Result<Self, StatusError> {
        let bytes = fs::read(path, STATUS_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|source| StatusError::Json { path: path.to_owned(), source })
    }

    /// Whether nothing but time and bytes are different.
    pub(super) fn tells_the_same(&self, other: &Self) -> bool {
        let Self { seconds, sent_bytes, received_bytes, sent, received, .. } = *other;
        *other == Self { seconds, sent_bytes, received_bytes, sent, received, ..self.clone() }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), StatusError> {
        let bytes =
            serde_json::to_vec_pretty(self).map_err(|source| StatusError::Json { path: path.to_owned(), source })?;
        Ok(fs::write(path, &bytes)?)
    }
}
