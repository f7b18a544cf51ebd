//! Whole rounds under virtual time: whatever members, network and disks do, one mask, certified, and nobody honest blamed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fedprune_federation::Height;
use fedprune_federation::machine::Outcome;
use fedprune_federation::round::{Strategy, TallyBy};
use fedprune_federation::signing::Kind;
use fedprune_testnet::simulator::{Lie, NEVER_ABANDON_MS, Report, Scenario, Shape, World, simulate};

const ONE_SHOT: Shape =
    Shape { members: 4, strategy: Strategy::OneShot, tally: TallyBy::EveryPeer, abandon_ms: NEVER_ABANDON_MS };
const ELECTED: Shape = Shape { tally: TallyBy::Elected, ..ONE_SHOT };
const ITERATIVE: Shape = Shape { strategy: Strategy::Iterative, ..ONE_SHOT };
const SHAPES: [Shape; 4] = [ONE_SHOT, ELECTED, ITERATIVE, Shape { tally: TallyBy::Elected, ..ITERATIVE }];

fn run(world: &World, scenario: &Scenario) -> Report {
    simulate(world, scenario).unwrap_or_else(|violation| panic!("{violation}"))
}

/// Runs something for every seed, on as many threads as there are cores; fails with what the first seed fails with.
fn for_seeds(seeds: Range<u64>, one: impl Fn(u64) -> Result<(), String> + Sync) {
    let (next, failures) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if let Err(why) = one(seed) {
                        failures.lock().unwrap().insert(seed, why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    if let Some((seed, why)) = failures.first_key_value() {
        panic!(
            "{} of {} seeds fail: {:?}; seed {seed}:\n{why}",
            failures.len(),
            seeds.end - seeds.start,
            failures.keys()
        );
    }
}

/// `FEDPRUNE_SEEDS=1000..2000` runs these instead; a failure names its seed.
fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("FEDPRUNE_SEEDS") else { return usual };
    let bound = |text: &str| text.parse().expect("FEDPRUNE_SEEDS is a range such as 1000..2000");
    let (start, end) = text.split_once("..").expect("FEDPRUNE_SEEDS is a range such as 1000..2000");
    bound(start)..bound(end)
}

fn stormy(shapes: &[Shape], usual: Range<u64>) {
    let seeds = seeds(usual);
    let worlds: Vec<World> = shapes.iter().map(|shape| World::new(*shape)).collect();
    for_seeds(seeds, |seed| {
        let which = seed as usize % shapes.len();
        let report =
            simulate(&worlds[which], &Scenario::stormy(seed, shapes[which])).map_err(|error| error.to_string())?;
        let abandoned = shapes[which].abandon_ms < NEVER_ABANDON_MS;
        match report.outcome {
            Outcome::Agreed if report.decided.len() as u32 == worlds[which].heights() => Ok(()),
            Outcome::Abandoned(height) if abandoned && report.decided[&height].decision().is_abandoned() => Ok(()),
            other => Err(format!("seed {seed} ends as {other:?} with {} heights", report.decided.len())),
        }
    });
}

#[test]
fn storms_of_four() {
    stormy(&SHAPES, 0..240);
}

#[test]
fn storms_of_seven() {
    stormy(&SHAPES.map(|shape| Shape { members: 7, ..shape }), 0..80);
}

/// Whether it is abandoned or not depends on who is in time; that all end alike does not.
#[test]
fn storms_in_which_rounds_may_be_abandoned() {
    stormy(&SHAPES.map(|shape| Shape { abandon_ms: 12_000, ..shape }), 0..120);
}
