//! Many seeds, on several threads: what `fedprune testnet simulate` and tests do.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fedprune_federation::machine::Outcome;
use fedprune_mask::Digest;
use serde::Serialize;

use super::run::simulate_and_audit;
use super::scenario::{NEVER_ABANDON_MS, Scenario};
use super::world::{Shape, World};
use super::{Report, shrink};

/// Most members of a simulated consortium.
pub const MAX_SIMULATED_MEMBERS: usize = 128;
/// Failing seeds that are told; the others are counted.
const TOLD_FAILURES: usize = 10;

/// Rounds that are simulated one after the other, of shapes and faults that their seeds say.
pub struct Campaign<'a> {
    /// Members of each.
    pub members: usize,
    /// Their seeds.
    pub seeds: Range<u64>,
    /// On how many threads.
    pub threads: usize,
    /// Whether the disks of honest members are audited after each round.
    pub audit: bool,
    /// Called with the number of rounds that were done since the last call; false ends the campaign.
    pub progress: &'a (dyn Fn(u64) -> bool + Sync),
}

/// A round that did not go as it must.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What was wrong, and what happened before.
    pub what: String,
    /// A scenario that fails with as little in it as was found, for `fedprune testnet simulate --scenario`.
    pub shrunk: String,
    /// What is wrong in that.
    pub shrunk_what: String,
}

/// What came of a campaign.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CampaignReport {
    /// Members of each round.
    pub members: usize,
    /// The first seed.
    pub first_seed: u64,
    /// Rounds that were simulated.
    pub rounds: u64,
    /// Those in which all heights got their mask.
    pub agreed: u64,
    /// Those that all honest members abandoned alike.
    pub abandoned: u64,
    /// Heights that were decided.
    pub heights: u64,
    /// The latest view in which one was decided.
    pub latest_view: u32,
    /// Heights that were decided in a later view than the first.
    pub later_views: u64,
    /// Members that died.
    pub crashes: u64,
    /// Members that lied.
    pub liars: u64,
    /// Members whose equivocation was proven to somebody, summed over rounds.
    pub proven: u64,
    /// Disks that were audited.
    pub audits: u64,
    /// Events.
    pub events: u64,
    /// Virtual seconds, until all were done.
    pub virtual_seconds: u64,
    /// Real seconds.
    pub seconds: f64,
    /// Hash of the traces of all rounds, in order of their seeds.
    pub trace: Option<Digest>,
    /// Rounds that failed.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<Failure>,
}

/// A folder whose files need not survive: in memory, where the system has such.
pub fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Runs one scenario. Besides what must be true of every step, a round must have all its heights, or be abandoned if
/// it may be.
///
/// # Errors
/// What is wrong, in words.
pub fn run_one(world: &World, scenario: &Scenario, audit_in: Option<&Path>) -> Result<Report, String> {
    let report = simulate_and_audit(world, scenario, audit_in).map_err(|violation| violation.to_string())?;
    let may_be_abandoned = scenario.shape.abandon_ms < NEVER_ABANDON_MS;
    match report.outcome {
        Outcome::Agreed if report.decided.len() as u32 == world.heights() => Ok(report),
        Outcome::Abandoned(height) if may_be_abandoned && report.decided[&height].decision().is_abandoned() => {
            Ok(report)
        }
        other => Err(format!("it ends as {other:?} with {} heights\n{scenario}", report.decided.len())),
    }
}

#[derive(Default)]
struct Sum {
    report: CampaignReport,
    traces: BTreeMap<u64, Digest>,
    /// The first of those that failed.
    failures: BTreeMap<u64, String>,
}

impl Sum {
    fn add(&mut self, scenario: &Scenario, report: &Report) {
        let sum = &mut self.report;
        match report.outcome {
            Outcome::Agreed => sum.agreed += 1,
            Outcome::Abandoned(_) => sum.abandoned += 1,
        }
        for settled in report.decided.values() {
            let view = settled.certificate().view();
            sum.heights += 1;
            sum.later_views += u64::from(view > 0);
            sum.latest_view = sum.latest_view.max(view);
        }
        let proven = report.evidence.values().flatten().map(|(_, _, member)| member);
        sum.proven += proven.collect::<std::collections::BTreeSet<_>>().len() as u64;
        sum.crashes += u64::from(report.crashes);
        sum.liars += scenario.liars.len() as u64;
        sum.events += report.events;
        sum.virtual_seconds += report.finished_ms / 1000;
        self.traces.insert(scenario.seed, report.trace);
    }
}

impl Campaign<'_> {
    /// Runs all of them, and shrinks those that fail.
    pub fn run(&self) -> CampaignReport {
        let started = Instant::now();
        let (next, sum) = (AtomicU64::new(self.seeds.start), Mutex::new(Sum::default()));
        let worlds = Worlds::default();
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let after = |seed: u64| (seed < self.seeds.end).then_some(seed + 1);
                        let Ok(seed) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after) else { break };
                        self.one(seed, &worlds, &sum);
                        if !(self.progress)(1) {
                            next.store(self.seeds.end, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut report = sum.report;
        report.members = self.members;
        report.first_seed = self.seeds.start;
        report.rounds = sum.traces.len() as u64 + report.failed;
        let traces: Vec<u8> = sum.traces.values().flat_map(|trace| trace.0).collect();
        report.trace = (!traces.is_empty()).then(|| Digest::of(&traces));
        for (seed, what) in sum.failures {
            let scenario = Scenario::stormy(seed, Shape::of_seed(seed, self.members));
            let audit_in = self.audit.then(scratch);
            let (shrunk, shrunk_what) = shrink::shrink(&scenario, audit_in.as_deref(), &|| (self.progress)(0));
            let shrunk_what = shrunk_what.unwrap_or_else(|| what.clone());
            report.failures.push(Failure { seed, what, shrunk: shrunk.to_toml(), shrunk_what });
        }
        report.seconds = started.elapsed().as_secs_f64();
        report
    }

    fn one(&self, seed: u64, worlds: &Worlds, sum: &Mutex<Sum>) {
        let shape = Shape::of_seed(seed, self.members);
        let scenario = Scenario::stormy(seed, shape);
        let world = worlds.of(shape);
        let audit_in = self.audit.then(scratch);
        let ran = run_one(&world, &scenario, audit_in.as_deref());
        let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match ran {
            Ok(report) => {
                sum.add(&scenario, &report);
                sum.report.audits += if self.audit { report.evidence.len() as u64 } else { 0 };
            }
            Err(what) => {
                sum.report.failed += 1;
                sum.failures.insert(seed, what);
                if sum.failures.len() > TOLD_FAILURES {
                    sum.failures.pop_last();
                }
            }
        }
    }
}

/// Worlds by shape: making one costs as many signatures as it has members.
#[derive(Default)]
struct Worlds(Mutex<Vec<(Shape, std::sync::Arc<World>)>>);

impl Worlds {
    fn of(&self, shape: Shape) -> std::sync::Arc<World> {
        let mut worlds = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, world)) = worlds.iter().find(|(of, _)| *of == shape) {
            return std::sync::Arc::clone(world);
        }
        let world = std::sync::Arc::new(World::new(shape));
        worlds.push((shape, std::sync::Arc::clone(&world)));
        world
    }
}
