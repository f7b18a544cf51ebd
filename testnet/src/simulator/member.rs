//! One simulated member: its machine and what it has on its disk.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_federation::machine::{Machine, Outcome};
use fedprune_federation::{Height, MemberIndex};
use fedprune_mask::Digest;

use super::byzantine::Byzantine;
use super::disk::Disk;
use super::world::Body;

/// How often a member asks another for what it may have missed, in milliseconds.
pub const SYNC_MS: u64 = 700;
/// How long it waits for a body before it asks somebody else.
pub const FETCH_PATIENCE_MS: u64 = 400;
/// From this attempt on, everybody is asked for a body, not only those who should have it.
const ONLY_HOLDERS: usize = 6;

/// A body that is wanted.
#[derive(Debug, Default)]
pub struct Wanted {
    pub heights: BTreeSet<Height>,
    pub sources: Vec<usize>,
    pub attempts: usize,
}

impl Wanted {
    /// Whom to ask next.
    pub fn next_source(&mut self, members: usize, me: usize) -> usize {
        let attempt = self.attempts;
        self.attempts += 1;
        let sources: Vec<usize> = self.sources.iter().copied().filter(|source| *source != me).collect();
        if attempt < ONLY_HOLDERS && !sources.is_empty() {
            return sources[attempt % sources.len()];
        }
        let others: Vec<usize> = (0..members).filter(|other| *other != me).collect();
        others[attempt % others.len()]
    }
}

/// One simulated member.
pub struct Member {
    /// Nothing while it is down, or once it cannot go on.
    pub machine: Option<Machine>,
    pub disk: Disk,
    /// Bodies are durable before anybody is told of them.
    pub bodies: BTreeMap<Digest, Body>,
    /// Counts starts; what an earlier life planned does not happen.
    pub life: u64,
    pub started_ms: u64,
    pub liar: Option<Box<dyn Byzantine>>,
    pub wanted: BTreeMap<Digest, Wanted>,
    /// Who was told that this member wants to know what it signed, and has answered.
    pub recalled: BTreeSet<MemberIndex>,
    pub next_peer: usize,
    /// The next planned tick.
    pub wake_at_ms: Option<u64>,
    /// How its present life has ended the round.
    pub finished: Option<Outcome>,
    /// What it told its operator of how the round ended, in any of its lives.
    pub told: Option<Outcome>,
    /// It flushes, and does nothing else, until then.
    pub flushes_until_ms: Option<u64>,
}

impl Member {
    pub fn new(liar: Option<Box<dyn Byzantine>>) -> Self {
        Self {
            machine: None,
            disk: Disk::default(),
            bodies: BTreeMap::new(),
            life: 0,
            started_ms: 0,
            liar,
            wanted: BTreeMap::new(),
            recalled: BTreeSet::new(),
            next_peer: 0,
            wake_at_ms: None,
            finished: None,
            told: None,
            flushes_until_ms: None,
        }
    }

    /// Everything that a crash takes away.
    pub fn stop(&mut self) {
        self.machine = None;
        self.life += 1;
        self.wanted.clear();
        self.recalled.clear();
        self.wake_at_ms = None;
        self.finished = None;
        self.flushes_until_ms = None;
    }
}
