//! Members agree over a network that loses, delays and cuts, with members that crash and lie.

mod network;
mod world;

use std::collections::BTreeSet;

use fedprune_federation::agreement::Repeated;
use fedprune_federation::{Precommit, Prevote, Proposal};
use fedprune_mask::Digest;
use network::{Crash, Intruder, Message, Network, Outcome, Random, Scenario};
use world::{World, value};

fn run(world: &World, scenario: Scenario) -> Outcome {
    Network::run(world, scenario, None)
}

#[test]
fn everybody_decides_in_the_first_view() {
    for members in [1, 2, 3, 4, 5, 7] {
        let world = World::new(members);
        let outcome = run(&world, Scenario { certificates: false, ..Scenario::new(1) });
        assert_eq!(outcome.by_itself.len(), members);
        assert!(outcome.decided.iter().flatten().all(|certificate| certificate.view() == 0));
        assert!(outcome.now_ms < 500, "no timer was needed");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let world = World::new(4);
    let scenario = |seed| Scenario { loss_percent: 20, crashes_per_mille: 20, ..Scenario::new(seed) };
    let traces: BTreeSet<_> = (0..5).map(|seed| run(&world, scenario(seed)).trace.0).collect();
    let again: BTreeSet<_> = (0..5).map(|seed| run(&world, scenario(seed)).trace.0).collect();
    assert_eq!(traces, again);
    assert_eq!(traces.len(), 5);
}

#[test]
fn a_crashed_aggregator_costs_one_view() {
    let world = World::new(4);
    let absent = BTreeSet::from([world.aggregator(0)]);
    let outcome = run(&world, Scenario { absent, certificates: false, ..Scenario::new(2) });
    assert_eq!(outcome.by_itself.len(), 3);
    assert!(outcome.decided.iter().flatten().all(|certificate| certificate.view() == 1));
}

#[test]
fn two_of_seven_may_be_absent_and_three_may_not() {
    let world = World::new(7);
    let absent = BTreeSet::from([world.aggregator(0), world.aggregator(1)]);
    let outcome = run(&world, Scenario { absent, certificates: false, ..Scenario::new(3) });
    assert_eq!(outcome.by_itself.len(), 5);
    let absent = (0..3).map(|view| world.aggregator(view)).collect();
    let outcome = run(&world, Scenario { absent, limit_ms: 30_000, ..Scenario::new(3) });
    assert!(outcome.decided.iter().all(Option::is_none));
}

#[test]
fn silent_members_decide_and_say_nothing() {
    let world = World::new(4);
    for silent in 0..4 {
        let silent = BTreeSet::from([silent]);
        let outcome = run(&world, Scenario { silent, certificates: false, ..Scenario::new(4) });
        assert_eq!(outcome.by_itself.len(), 4);
    }
    let silent = BTreeSet::from([0, 1]);
    let outcome = run(&world, Scenario { silent, limit_ms: 30_000, ..Scenario::new(4) });
    assert!(outcome.decided.iter().all(Option::is_none), "two do not make a quorum");
}

#[test]
fn losses_delay_and_do_not_prevent() {
    let world = World::new(4);
    for seed in 0..40 {
        let outcome = run(&world, Scenario { loss_percent: 20, ..Scenario::new(seed) });
        assert!(outcome.everybody_decided(0..4), "seed {seed}");
    }
    // one away, so that every vote of the others is needed
    for seed in 0..20 {
        let absent = BTreeSet::from([world.aggregator(0)]);
        let others: Vec<usize> = (0..4).filter(|member| !absent.contains(member)).collect();
        let outcome = run(&world, Scenario { loss_percent: 20, absent, ..Scenario::new(seed) });
        assert!(outcome.everybody_decided(others), "seed {seed}");
    }
}

#[test]
fn a_partition_heals() {
    let world = World::new(4);
    for seed in 0..5 {
        let side = BTreeSet::from([world.aggregator(0), world.aggregator(2)]);
        let partition = Some((20_000, side));
        let outcome = run(&world, Scenario { partition, certificates: false, ..Scenario::new(seed) });
        assert_eq!(outcome.by_itself.len(), 4, "seed {seed}");
        assert!(outcome.now_ms > 20_000);
    }
}

/// Malachite does not listen to single votes of more than ten views ahead.
#[test]
fn who_was_cut_off_for_many_views_catches_up() {
    let world = World::new(4);
    let first_good_view = 30;
    // the others are in some view near twenty when the cut ends
    let cut = Some((90_000, BTreeSet::from([world.aggregator(1)])));
    let scenario = Scenario { partition: cut, first_good_view, certificates: false, ..Scenario::new(6) };
    let outcome = run(&world, scenario);
    assert_eq!(outcome.by_itself.len(), 4, "at {} ms in views {:?}", outcome.now_ms, outcome.views);
    assert!(outcome.decided.iter().flatten().all(|certificate| certificate.view() == first_good_view));
    assert!(outcome.longest_jump > 12, "{}", outcome.longest_jump);
}

#[test]
fn a_value_that_is_judged_false_is_not_decided() {
    let world = World::new(4);
    let outcome = run(&world, Scenario { first_good_view: 1, certificates: false, ..Scenario::new(7) });
    assert_eq!(outcome.by_itself.len(), 4);
    assert!(outcome.decided.iter().flatten().all(|certificate| certificate.view() == 1));
    let outcome = run(&world, Scenario { first_good_view: 3, loss_percent: 10, ..Scenario::new(7) });
    assert!(outcome.everybody_decided(0..4));
    assert!(outcome.decided.iter().flatten().all(|certificate| certificate.view() >= 3));
}

/// Proposes two values, and votes for both, in every view that it hears of.
struct Equivocator {
    member: usize,
    views: BTreeSet<u32>,
    values: Vec<String>,
}

impl Intruder for Equivocator {
    fn members(&self) -> Vec<usize> {
        vec![self.member]
    }

    fn hear(&mut self, world: &World, message: Option<&Message>) -> Vec<(usize, usize, Message)> {
        let view = match message {
            Some(message) => message.view().unwrap_or(0),
            None => 0,
        };
        let member = self.member;
        let mut sent = Vec::new();
        let mut say = |to: usize, side: usize, view: u32, of: &str| {
            let text = format!("{of} {side}");
            if world.aggregator(view) == member {
                let content = Proposal { view, value: value(&text), valid_view: None };
                sent.push((member, to, Message::Proposal(world.sign(member, content))));
            }
            let value = Some(value(&text));
            let prevote = world.sign(member, Prevote { view, value });
            let precommit = world.sign(member, Precommit { view, value });
            sent.push((member, to, Message::Vote(Repeated::Prevote(prevote))));
            sent.push((member, to, Message::Vote(Repeated::Precommit(precommit))));
        };
        // what is proposed by others is voted for among other things
        if let Some(Message::Proposal(proposal)) = message
            && proposal.member().as_usize() != member
        {
            let Proposal { view, value, .. } = *proposal.content();
            let vote = Repeated::Prevote(world.sign(member, Prevote { view, value: Some(value) }));
            for to in (0..world.consortium.members().len()).step_by(2) {
                sent.push((member, to, Message::Vote(vote.clone())));
            }
            return sent;
        }
        if self.views.insert(view) {
            for to in 0..world.consortium.members().len() {
                for (which, of) in self.values.iter().enumerate() {
                    say(to, (to + which) % 2, view, of);
                }
            }
        }
        sent
    }
}

#[test]
fn an_equivocator_neither_splits_nor_stops_the_others() {
    for (members, seeds) in [(4, 40), (7, 10)] {
        let world = World::new(members);
        for seed in 0..seeds {
            for (member, values) in [
                (world.aggregator(0), vec!["one"]),
                (world.aggregator(0), vec!["one", "two"]),
                (world.aggregator(1), vec!["x"]),
            ] {
                let values = values.into_iter().map(str::to_owned).collect();
                let intruder = Equivocator { member, views: BTreeSet::new(), values };
                let scenario = Scenario { loss_percent: seed % 3 * 10, ..Scenario::new(seed) };
                let outcome = Network::run(&world, scenario, Some(Box::new(intruder)));
                let others = (0..members).filter(|other| *other != member);
                assert!(outcome.everybody_decided(others), "seed {seed}, views {:?}", outcome.views);
            }
        }
    }
}

/// Says anything to anybody: of the views around, of views far ahead, and of values that it heard or made up.
struct Babbler {
    members: Vec<usize>,
    random: Random,
    values: Vec<Digest>,
    said: usize,
}

impl Intruder for Babbler {
    fn members(&self) -> Vec<usize> {
        self.members.clone()
    }

    fn hear(&mut self, world: &World, message: Option<&Message>) -> Vec<(usize, usize, Message)> {
        let now = message.and_then(Message::view).unwrap_or(0);
        if let Some(Message::Proposal(proposal)) = message {
            self.values.push(proposal.content().value);
        }
        let members = world.consortium.members().len() as u64;
        let mut sent = Vec::new();
        // a flood is the network's concern
        while self.said < 3000 && self.random.below(3) > 0 {
            self.said += 1;
            let member = self.members[self.random.below(self.members.len() as u64) as usize];
            let view = match self.random.below(10) {
                0 => now + self.random.below(60) as u32,
                1 => now.saturating_sub(1 + self.random.below(3) as u32),
                _ => now + self.random.below(3) as u32,
            };
            let known = self.random.below(self.values.len() as u64 + 1) as usize;
            let any = self.values.get(known).copied();
            let text = format!("made up {}", self.random.below(3));
            let content = match self.random.below(4) {
                0 if world.aggregator(view) == member => {
                    let valid_view =
                        (view > 0 && self.random.below(2) == 0).then(|| self.random.below(view.into()) as u32);
                    let value = any.unwrap_or_else(|| value(&text));
                    Message::Proposal(world.sign(member, Proposal { view, value, valid_view }))
                }
                1 => Message::Vote(Repeated::Precommit(world.sign(member, Precommit { view, value: any }))),
                _ => Message::Vote(Repeated::Prevote(world.sign(member, Prevote { view, value: any }))),
            };
            for to in 0..members {
                if self.random.below(2) == 0 {
                    sent.push((member, to as usize, content.clone()));
                }
            }
        }
        sent
    }
}

#[test]
fn babblers_neither_split_nor_stop_the_others() {
    for (members, seeds) in [(4, 40), (7, 16)] {
        let world = World::new(members);
        for seed in 0..seeds {
            let liars: Vec<usize> =
                (0..world.consortium.quorum().f()).map(|turn| world.aggregator(turn as u32)).collect();
            let intruder =
                Babbler { members: liars.clone(), random: Random(seed ^ 0xb0b), values: Vec::new(), said: 0 };
            let scenario = Scenario {
                loss_percent: seed % 3 * 10,
                crashes_per_mille: seed % 2 * 10,
                first_good_view: (seed % 4) as u32,
                ..Scenario::new(seed)
            };
            let outcome = Network::run(&world, scenario, Some(Box::new(intruder)));
            let others = (0..members).filter(|other| !liars.contains(other));
            assert!(outcome.everybody_decided(others), "{members}, seed {seed}, views {:?}", outcome.views);
        }
    }
}

#[test]
fn a_crash_after_any_action_of_any_step_is_survived() {
    let world = World::new(4);
    let mut runs = 0;
    // without loss; with it; and with views in which nothing is decided
    for (seed, loss_percent, first_good_view) in [(11, 0, 0), (12, 15, 0), (13, 15, 2)] {
        let scenario = |crash| Scenario { loss_percent, first_good_view, crash, ..Scenario::new(seed) };
        let plain = run(&world, scenario(None));
        for member in 0..4 {
            for (step, actions) in plain.actions[member].iter().enumerate() {
                for actions in 0..=*actions {
                    let outcome = run(&world, scenario(Some(Crash { member, step, actions })));
                    assert_eq!(outcome.crashes, 1);
                    assert!(outcome.everybody_decided(0..4), "{seed}: {member}, step {step}, {actions} actions");
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 300, "{runs}");
}

#[test]
fn members_that_crash_all_the_time_agree() {
    let world = World::new(4);
    let mut crashes = 0;
    for seed in 0..80 {
        let scenario = Scenario {
            loss_percent: 10,
            crashes_per_mille: 50,
            first_good_view: (seed % 3) as u32,
            ..Scenario::new(seed)
        };
        let outcome = run(&world, scenario);
        assert!(outcome.everybody_decided(0..4), "seed {seed}, views {:?}", outcome.views);
        crashes += outcome.crashes;
    }
    assert!(crashes > 300, "{crashes}");
}

#[test]
fn members_that_crash_agree_beside_an_equivocator() {
    let world = World::new(4);
    for seed in 0..40 {
        let member = world.aggregator((seed % 2) as u32);
        let values = vec!["one".to_owned(), "two".to_owned()];
        let intruder = Equivocator { member, views: BTreeSet::new(), values };
        let scenario = Scenario { loss_percent: 10, crashes_per_mille: 40, ..Scenario::new(seed) };
        let outcome = Network::run(&world, scenario, Some(Box::new(intruder)));
        assert!(outcome.everybody_decided((0..4).filter(|other| *other != member)), "seed {seed}");
    }
}

#[test]
fn thirty_two_members_agree() {
    let world = World::new(32);
    let outcome = run(&world, Scenario { certificates: false, ..Scenario::new(8) });
    assert_eq!(outcome.by_itself.len(), 32);
    // proposal, judgement, votes of all, and little else
    assert!(outcome.journal_entries.iter().all(|entries| *entries < 80), "{:?}", outcome.journal_entries);
}

#[test]
fn of_128_members_42_may_be_absent_and_43_may_not() {
    let world = World::new(128);
    let absent = |number: usize| (0..number).map(|member| member * 2 + 1).collect::<BTreeSet<_>>();
    let outcome = run(&world, Scenario { absent: absent(42), certificates: false, ..Scenario::new(9) });
    assert_eq!(outcome.by_itself.len(), 86);
    let outcome = run(&world, Scenario { absent: absent(43), limit_ms: 5_000, ..Scenario::new(9) });
    assert!(outcome.decided.iter().all(Option::is_none));
}
