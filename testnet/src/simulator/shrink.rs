//! A scenario that fails, with less and less in it while it still fails.
//!
//! Greedy: one thing is left out at a time, and stays out if the round still fails, whatever it fails with; until
//! nothing can be left out any more, or the patience for it is over.

use std::path::Path;

use fedprune_federation::round::{Strategy, TallyBy};

use super::byzantine::Lie;
use super::campaign::run_one;
use super::scenario::Scenario;
use super::world::World;

/// Most rounds that are simulated to shrink one.
const MOST_RUNS: usize = 150;

/// The scenario with as little in it as was found, and what goes wrong in it if anything was left out.
pub fn shrink(scenario: &Scenario, audit_in: Option<&Path>, go_on: &dyn Fn() -> bool) -> (Scenario, Option<String>) {
    let (mut best, mut what, mut runs) = (scenario.clone(), None, 0);
    loop {
        let mut smaller = None;
        for candidate in with_less(&best) {
            if runs >= MOST_RUNS || !go_on() {
                return (best, what);
            }
            runs += 1;
            let world = World::new(candidate.shape);
            if let Err(why) = run_one(&world, &candidate, audit_in) {
                smaller = Some((candidate, why));
                break;
            }
        }
        match smaller {
            Some((found, why)) => (best, what) = (found, Some(why)),
            None => return (best, what),
        }
    }
}

/// Scenarios with one thing less each, those that leave out most first.
fn with_less(scenario: &Scenario) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Scenario)| {
        let mut other = scenario.clone();
        change(&mut other);
        if other != *scenario {
            all.push(other);
        }
    };
    with(&|one| one.shape.strategy = Strategy::OneShot);
    with(&|one| one.shape.tally = TallyBy::EveryPeer);
    with(&|one| one.liars.clear());
    with(&|one| one.troubles.clear());
    with(&|one| one.faults.cuts.clear());
    with(&|one| one.without_ballot.clear());
    with(&|one| one.crashes_per_mille = 0);
    with(&|one| one.faults.loss_per_mille = 0);
    with(&|one| one.faults.duplicates_per_mille = 0);
    with(&|one| one.faults.most_delay_ms = one.faults.most_delay_ms.min(80));
    with(&|one| one.latest_start_ms = one.latest_start_ms.min(200));
    with(&|one| one.relays = true);
    for liar in scenario.liars.keys() {
        with(&|one| {
            let _ = one.liars.remove(liar);
        });
    }
    for index in 0..scenario.troubles.len() {
        with(&|one| {
            let _ = one.troubles.remove(index);
        });
    }
    for index in 0..scenario.faults.cuts.len() {
        with(&|one| drop(one.faults.cuts.remove(index)));
    }
    for member in &scenario.without_ballot {
        with(&|one| {
            let _ = one.without_ballot.remove(member);
        });
    }
    // somebody who does this and that, as somebody who does one thing
    for (liar, _) in scenario.liars.iter().filter(|(_, lie)| **lie == Lie::Anything) {
        for lie in Lie::ALL {
            with(&|one| {
                let _ = one.liars.insert(*liar, lie);
            });
        }
    }
    all
}
