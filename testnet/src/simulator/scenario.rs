//! What is simulated: a round of some shape, what goes wrong in it, and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fedprune_federation::round::{Strategy, TallyBy};

use super::byzantine::Lie;
use super::network::{Cut, Faults};
use super::random::Random;
use super::world::Shape;

/// For how long anything goes wrong, in milliseconds.
const FAULTS_MS: u64 = 30_000;
/// How long a round may take from then on. Views grow, so one that was reached in half a minute takes a while.
const PATIENCE_MS: u64 = 240_000;
/// Nothing is abandoned before.
pub const NEVER_ABANDON_MS: u64 = 86_400_000;
/// After how many milliseconds a height may be abandoned, in rounds that may be.
const ABANDON_MS: u64 = 12_000;

/// What is wrong with a member's disk, or with its machine as a whole, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// Whose.
    pub member: usize,
    /// From when, in milliseconds.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// What.
    pub kind: TroubleKind,
}

/// The kinds of [`Trouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// It dies, or does not start, and comes back afterwards. What it had not flushed is lost, or torn.
    Down,
    /// No flush succeeds: the member stops at the first one, as a node does, and tries again afterwards.
    DiskFull,
    /// A flush takes this long at most, in milliseconds, in which the member does nothing else.
    SlowFlush(u64),
}

/// One simulated round.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// What the round is.
    pub shape: Shape,
    /// What is wrong with the network.
    pub faults: Faults,
    /// What is wrong with single members.
    pub troubles: Vec<Trouble>,
    /// Whether members pass on what is new to them, as gossip does. Otherwise what is lost comes with the next answer.
    pub relays: bool,
    /// In how many of a thousand steps a member dies, until faults end.
    pub crashes_per_mille: u64,
    /// Members that lie, and how.
    pub liars: BTreeMap<usize, Lie>,
    /// Members that have no ballot.
    pub without_ballot: BTreeSet<usize>,
    /// When each member starts at the latest, in milliseconds.
    pub latest_start_ms: u64,
    /// When it is given up.
    pub limit_ms: u64,
}

impl Scenario {
    /// A round in which nothing goes wrong.
    pub fn calm(seed: u64, shape: Shape) -> Self {
        let faults = Faults { least_delay_ms: 5, most_delay_ms: 80, ..Faults::default() };
        Self {
            seed,
            shape,
            faults,
            troubles: Vec::new(),
            relays: true,
            crashes_per_mille: 0,
            liars: BTreeMap::new(),
            without_ballot: BTreeSet::new(),
            latest_start_ms: 200,
            limit_ms: PATIENCE_MS,
        }
    }

    /// A round in which whatever a seed says goes wrong, with as many liars as are tolerated.
    pub fn stormy(seed: u64, shape: Shape) -> Self {
        let mut random = Random::named(seed, "scenario");
        let mut scenario = Self::calm(seed, shape);
        let members = shape.members;
        let liars = random.sample(members, (members - 1) / 3);
        scenario.liars = liars.into_iter().map(|member| (member, Lie::ALL[random.index(Lie::ALL.len())])).collect();
        let faults = &mut scenario.faults;
        faults.end_ms = FAULTS_MS;
        faults.most_delay_ms = [20, 80, 400, 1500][random.index(4)];
        faults.loss_per_mille = [0, 0, 50, 200, 400][random.index(5)];
        faults.duplicates_per_mille = [0, 100][random.index(2)];
        for _ in 0..random.below(3) {
            let (from_ms, until_ms) = window(&mut random);
            let sides = 1 + random.index(members.max(2) - 1);
            let side = random.sample(members, sides).into_iter().collect();
            faults.cuts.push(Cut { from_ms, until_ms, side, one_way: random.per_mille(300) });
        }
        scenario.relays = random.per_mille(700);
        scenario.crashes_per_mille = [0, 0, 10, 40][random.index(4)];
        scenario.latest_start_ms = [200, 3_000, 20_000][random.index(3)];
        if shape.abandon_ms < NEVER_ABANDON_MS && random.per_mille(300) {
            // too few ballots are left if liars have none either
            let count = 1 + random.index(members - 1);
            scenario.without_ballot.extend(random.sample(members, count));
        }
        for _ in 0..random.below(4) {
            let (from_ms, until_ms) = window(&mut random);
            let member = random.index(members);
            let kind = match random.below(4) {
                0 => TroubleKind::Down,
                1 => TroubleKind::DiskFull,
                2 => TroubleKind::SlowFlush(100),
                _ => TroubleKind::SlowFlush(2_000),
            };
            scenario.troubles.push(Trouble { member, from_ms, until_ms, kind });
        }
        scenario.limit_ms = FAULTS_MS + PATIENCE_MS;
        scenario
    }
}

/// A while within that in which things go wrong.
fn window(random: &mut Random) -> (u64, u64) {
    let from_ms = random.below(FAULTS_MS);
    (from_ms, FAULTS_MS.min(from_ms + random.below(15_000)))
}

impl Shape {
    /// The shape of a seed's round: one-shot or iterative, tallied by all or by the aggregator, and in one of five
    /// rounds a height may be abandoned.
    pub fn of_seed(seed: u64, members: usize) -> Self {
        let strategy = if seed & 2 == 0 { Strategy::OneShot } else { Strategy::Iterative };
        let tally = if seed & 1 == 0 { TallyBy::EveryPeer } else { TallyBy::Elected };
        let abandon_ms = if seed / 4 % 5 == 4 { ABANDON_MS } else { NEVER_ABANDON_MS };
        Self { members, strategy, tally, abandon_ms }
    }
}

impl fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => write!(f, "down"),
            Self::DiskFull => write!(f, "disk full"),
            Self::SlowFlush(most_ms) => write!(f, "flushes take up to {most_ms} ms"),
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { members, strategy, tally, abandon_ms } = self.shape;
        let heights = if strategy == Strategy::OneShot { "one-shot" } else { "iterative" };
        let tally = if tally == TallyBy::EveryPeer { "every-peer" } else { "elected" };
        write!(f, "seed {}: {members} members, {heights}, {tally}", self.seed)?;
        if abandon_ms < NEVER_ABANDON_MS {
            write!(f, ", abandoned after {abandon_ms} ms")?;
        }
        let Faults { most_delay_ms, loss_per_mille, duplicates_per_mille, cuts, .. } = &self.faults;
        write!(f, "; delays to {most_delay_ms} ms, {loss_per_mille} ‰ lost, {duplicates_per_mille} ‰ twice")?;
        write!(f, ", {} cuts, {} ‰ crashes, relays: {}", cuts.len(), self.crashes_per_mille, self.relays)?;
        for Trouble { member, from_ms, until_ms, kind } in &self.troubles {
            write!(f, "; member {member} from {from_ms} to {until_ms} ms: {kind}")?;
        }
        write!(f, "; liars {:?}, without ballot {:?}", self.liars, self.without_ballot)
    }
}
