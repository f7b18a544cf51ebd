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
//! | `nuisance` | more of them: floods, poison, stalling, votes for everything |
//! | `disk` | logs that lose what was not flushed, tear, and run full |
//! | `member` | a machine with its disk |
//! | `run` | events in order, effects carried out |
//! | `watch` | what must be true after every step |
//! | `ending` | how a run ends, and why one does not |
//! | `audit` | the real audit of what is on a member's disk |
//! | `story` | what happened last, in words |
//! | `campaign` | many seeds on several threads |
//! | `shrink` | a scenario that still fails with less in it |
//! | `document` | a scenario as a file |
//! | `random` | numbers from a seed |
//!
//! Real are the state machine of a member, the engine that carries out its agreement, every message and signature, the
//! records of the log as they are written and read again, ballots, their validation and tally, and the audit. Simulated
//! are time, network and disks, and bodies, which move whole between stores in memory, keyed by digest.
//!
//! The same scenario is the same run: everything that happens goes into [`Report::trace`].

mod audit;
mod byzantine;
mod campaign;
mod clock;
mod disk;
mod document;
mod ending;
mod member;
mod network;
mod nuisance;
mod random;
mod run;
mod scenario;
mod seat;
mod shrink;
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
pub use campaign::{Campaign, CampaignReport, Failure, MAX_SIMULATED_MEMBERS, run_one, scratch};
pub use document::{SCENARIO_LIMIT_BYTES, ScenarioError};
pub use network::{Cut, Faults};
pub use random::Random;
pub use run::{Liars, simulate, simulate_and_audit, simulate_with};
pub use scenario::{NEVER_ABANDON_MS, Scenario, Trouble, TroubleKind};
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
