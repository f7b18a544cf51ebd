//! Whole rounds in one process, under virtual time: real machines, a real engine, and a seed that decides everything else.
//!
//! | module | what it does |
//! |---|---|
//! | `world` | documents and tiny ballots |
//! | `scenario` | what goes wrong |
//! | `byzantine` | members that lie |
//! | `seat` | what they have to lie with |
//! | `clock` | virtual time |
//! | `network` | delay, loss, reordering, duplication, cuts |
//! | `disk` | logs that lose what was not flushed |
//! | `member` | a machine with its disk |
//! | `watch` | what must be true after every step |
//! | `story` | what happened last, in words |
//! | `random` | numbers from a seed |
//!
//! Real are the state machine of a member, the engine that carries out its agreement, every message and signature, the
//! log as it is written and read again, and the validation of ballots. Simulated are time, network and disks; bodies,
//! which move whole between stores in memory, keyed by digest; and masks: the root of one is a digest of the set of
//! ballots.
//!
//! The same scenario is the same run: everything that happens goes into [`Report::trace`].

mod byzantine;
mod clock;
mod disk;
mod member;
mod network;
mod random;
mod run;
mod scenario;
mod seat;
mod story;
mod watch;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fedprune_federation::machine::Outcome;
use fedprune_federation::signing::Kind;
use fedprune_federation::{Height, Settled};
use fedprune_mask::Digest;

pub use byzantine::{Byzantine, Lie};
pub use network::{Cut, Faults};
pub use random::Random;
pub use run::{Liars, simulate, simulate_with};
pub use scenario::{NEVER_ABANDON_MS, Scenario};
pub use seat::{Seat, Sending};
pub use world::{Body, Shape, World};

/// How a simulated round went.
#[derive(Debug)]
pub struct Report {
    /// Hash of everything that happened.
    pub trace: Digest,
    /// How the round ended, for all honest members.
    pub outcome: Outcome,
    /// What was decided at each height.
    pub decided: BTreeMap<Height, Settled>,
    /// The mask root of each height that has one.
    pub mask_roots: BTreeMap<Height, Digest>,
    /// Of each honest member, of whose equivocation it has proof.
    pub evidence: BTreeMap<usize, BTreeSet<(Height, Kind, usize)>>,
    /// Of each honest member, whose proposals of a height it keeps.
    pub proposals: BTreeMap<usize, BTreeSet<(Height, usize, Digest)>>,
    /// Whom somebody told to have proposed what may not be agreed on.
    pub bad_proposals: BTreeSet<usize>,
    /// Whose ballots somebody found invalid.
    pub refused: BTreeSet<usize>,
    /// Members that sent the same ballot.
    pub same_ballots: BTreeSet<(usize, usize)>,
    /// How often a member died.
    pub crashes: u32,
    /// Things that happened.
    pub events: u64,
    /// Virtual milliseconds until all honest members were done.
    pub finished_ms: u64,
}

/// Something that must never happen has.
#[derive(Debug)]
pub struct Violation {
    /// What was simulated.
    pub scenario: Scenario,
    /// When, in virtual milliseconds.
    pub at_ms: u64,
    /// What.
    pub what: String,
    /// What happened before it, oldest first.
    pub before: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.before {
            writeln!(f, "    {line}")?;
        }
        write!(f, "at {} ms: {}\n{}", self.at_ms, self.what, self.scenario)
    }
}

impl std::error::Error for Violation {}
