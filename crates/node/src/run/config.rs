//! What a node is told when it starts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedprune_federation::{Height, PolicyRefusal, RoundId};
use fedprune_mask::{Digest, Layout};
use libp2p::Multiaddr;

use crate::network::{Options, ProgramName};
use crate::observe::Addresses;

/// How long a node whose round is over answers others, unless said otherwise.
pub const DEFAULT_LINGER: Duration = Duration::from_secs(600);
/// How often a node asks another for what it may have missed, while anything happens.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(700);
/// How often it asks when nothing has happened for long; the pause doubles up to that.
pub const SYNC_LONGEST: Duration = Duration::from_millis(700 << 4);
/// How long a node waits for the answer to such a question before it asks another.
pub const SYNC_PATIENCE: Duration = Duration::from_secs(20);
/// How often `status.json` is written, if it tells anything new.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How often bytes sent and received are reason enough to write it, and to count them in the index.
pub const TRAFFIC_INTERVAL: Duration = Duration::from_secs(10);
/// How often a node that is looked at says how it is doing, at most.
pub const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);
/// How long a node that is looked at shows its end, once all of that is known.
pub const LOOKED_AT_GRACE: Duration = Duration::from_secs(5);
/// How long a node that has everybody's result stays, so that the last ones get their answers.
pub const GRACE: Duration = Duration::from_millis(1500);
/// After this long, a node that is through says for whom it stays.
pub const TOLD_TO_STAY: Duration = Duration::from_secs(5);
/// How long children get to end by themselves before they are killed.
pub const CHILD_GRACE: Duration = Duration::from_secs(5);
/// Answers of workers that wait for the loop.
pub const WORK_QUEUE: usize = 256;
/// Longest line of a child's standard output, in bytes.
pub const MAX_CHILD_LINE_BYTES: u64 = 64 << 10;
/// What is kept of a child's standard error for messages, in bytes.
pub const CHILD_ERROR_BYTES: usize = 4 << 10;

/// Everything that a node is told.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The member's own folder.
    pub home: PathBuf,
    /// Which approved round; the only one if none is named.
    pub round: Option<RoundId>,
    /// The base model.
    pub model: PathBuf,
    /// Calibration text.
    pub data: Vec<PathBuf>,
    /// A ballot computed elsewhere, for a one-shot round.
    pub ballot: Option<PathBuf>,
    /// Further arguments of the process that computes masks: device and precision.
    pub compute_arguments: Vec<String>,
    /// Where the pruned model goes; `pruned` in the round's folder if nowhere.
    pub out: Option<PathBuf>,
    /// Where to listen; the consortium's addresses of this member if nowhere.
    pub listen: Vec<Multiaddr>,
    /// Where members are dialled, by name, instead of at the consortium's addresses.
    pub dial: Vec<(String, Multiaddr)>,
    /// How to be found and reached.
    pub options: Options,
    /// Where a page and metrics are served; nowhere by default.
    pub observe: Addresses,
    /// How long to answer others once the round is over here.
    pub linger: Duration,
    /// The `fedprune` program, which computes masks and writes the pruned model in processes of their own.
    pub program: PathBuf,
    /// What that program calls itself, with its version; told to other members.
    pub version: ProgramName,
    /// Asked before this member signs a ballot of its own.
    pub gate: Option<Gate>,
    /// For tests of recovery: die here, as if by power loss.
    pub fail_at: Option<FailPoint>,
    /// For tests of clocks that are wrong: how far this one is ahead, in milliseconds.
    pub clock_skew_ms: i64,
}

/// A ballot that this member is about to sign.
pub struct OwnBallot<'a> {
    /// Of which height.
    pub height: Height,
    /// BLAKE3 of its bytes.
    pub digest: Digest,
    /// Digest of the token windows that it was made from, where this node had it computed.
    pub calibration: Option<Digest>,
    /// As they are stored, and would be sent.
    pub bytes: &'a [u8],
    /// The layout of that height.
    pub layout: &'a Layout,
}

/// Says whether a ballot may leave this site. It must not depend on the network, and may take its time.
#[derive(Clone)]
pub struct Gate(pub Arc<Ask>);

/// What it asks of a ballot.
type Ask = dyn Fn(&OwnBallot<'_>) -> Result<(), PolicyRefusal> + Send + Sync;

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate(…)")
    }
}

impl NodeConfig {
    /// Milliseconds since 1970, as this node takes them to be: the only place where a running node reads a wall clock.
    pub(super) fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add_signed(self.clock_skew_ms)
    }
}

/// A point at which a node can be made to die, to show that it recovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailPoint {
    /// Its ballot is imported, nothing is signed.
    BallotStored,
    /// Its signed header is durable and has not left.
    HeaderWritten,
    /// Another member's ballot is recorded as held.
    HeldWritten,
    /// Half of a body has arrived.
    MidDownload,
    /// Its holdings statement is durable and has not left.
    HoldingsWritten,
    /// An entry of the agreement's journal is durable.
    JournalWritten,
    /// Its prevote is durable and has not left.
    PrevoteWritten,
    /// Its precommit is durable and has not left.
    PrecommitWritten,
    /// Its proposal is durable and has not left.
    ProposalWritten,
    /// Its proposal has left.
    ProposalSent,
    /// The decision is durable.
    SettledWritten,
    /// Its result is durable and has not left.
    ResultWritten,
    /// The pruned model is being written.
    MidApply,
}

impl FailPoint {
    /// All of them, with their names.
    pub const ALL: [(FailPoint, &'static str); 13] = [
        (FailPoint::BallotStored, "ballot-stored"),
        (FailPoint::HeaderWritten, "header-written"),
        (FailPoint::HeldWritten, "held-written"),
        (FailPoint::MidDownload, "mid-download"),
        (FailPoint::HoldingsWritten, "holdings-written"),
        (FailPoint::JournalWritten, "journal-written"),
        (FailPoint::PrevoteWritten, "prevote-written"),
        (FailPoint::PrecommitWritten, "precommit-written"),
        (FailPoint::ProposalWritten, "proposal-written"),
        (FailPoint::ProposalSent, "proposal-sent"),
        (FailPoint::SettledWritten, "settled-written"),
        (FailPoint::ResultWritten, "result-written"),
        (FailPoint::MidApply, "mid-apply"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(point, _)| *point == self).map_or("", |(_, name)| name)
    }
}

/// No such point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no point at which a node can be made to die; use one of {names}", names = FailPoint::ALL.map(|(_, name)| name).join(", "))]
pub struct ParseFailPointError(String);

impl std::str::FromStr for FailPoint {
    type Err = ParseFailPointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text).map(|(point, _)| *point);
        found.ok_or_else(|| ParseFailPointError(text.chars().take(64).collect()))
    }
}

/// Ends this process at once, as a power failure does: nothing is flushed, no destructor runs.
pub(super) fn die() -> ! {
    // SAFETY: both calls take plain integers and touch no memory of this process.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    std::process::abort()
}
