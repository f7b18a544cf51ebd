//! Whole rounds under virtual time: whatever members, network and disks do, one mask, certified, and nobody honest blamed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fedprune_federation::machine::Outcome;
use fedprune_federation::round::{Strategy, TallyBy};
use fedprune_federation::signing::Kind;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{Height, Prevote};
use fedprune_testnet::simulator::{
    Byzantine, Campaign, Cut, Liars, Lie, NEVER_ABANDON_MS, Report, Scenario, Seat, Sending, Shape, Trouble,
    TroubleKind, World, simulate, simulate_with,
};

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

/// Everything mixed, and the disk of every honest member audited. `FEDPRUNE_SEEDS=0..1000 FEDPRUNE_MEMBERS=7` runs
/// others, as `fedprune testnet simulate` does.
#[test]
#[expect(clippy::print_stdout, reason = "the figures, for those who ask for them")]
fn whatever_goes_wrong_rounds_end_and_every_disk_stands_up_to_an_audit() {
    let chosen = std::env::var("FEDPRUNE_MEMBERS").ok();
    let chosen: Option<usize> = chosen.map(|members| members.parse().expect("FEDPRUNE_MEMBERS is a number"));
    // 1,100 and 1,192 have a disk that is full and slow at once; in 1,219 a question arrives in the millisecond in which a flush ends
    let usual = [(1, 0..60), (2, 0..20), (4, 1_060..1_200), (7, 0..40), (7, 1_219..1_220), (16, 0..4), (32, 0..1)];
    for (members, usual) in usual.into_iter().filter(|(members, _)| chosen.is_none_or(|chosen| chosen == *members)) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let campaign = Campaign { members, seeds: seeds(usual), threads, audit: true, progress: &|_| true };
        let report = campaign.run();
        println!("{}", serde_json::to_string(&report).unwrap());
        let told = |failure: &fedprune_testnet::simulator::Failure| {
            format!("seed {}: {}\nshrunk:\n{}{}", failure.seed, failure.what, failure.shrunk, failure.shrunk_what)
        };
        let failures: Vec<String> = report.failures.iter().map(told).collect();
        assert!(report.failed == 0, "{} of {} fail\n{}", report.failed, report.rounds, failures.join("\n\n"));
        assert_eq!(report.agreed + report.abandoned, report.rounds);
    }
}

const MANY: Shape = Shape { members: 128, ..ONE_SHOT };

/// A round of 128 members, of whom so many die a few seconds after it began; one of them is back after a minute, if
/// it is to return.
fn of_128(down: usize, one_returns: bool) -> Result<Report, String> {
    let world = World::new(MANY);
    let mut scenario = Scenario { latest_start_ms: 1_000, limit_ms: 45_000, ..Scenario::calm(1, MANY) };
    for index in 0..down {
        let returns = one_returns && index == 0;
        let until_ms = if returns { 60_000 } else { NEVER_ABANDON_MS };
        // every third member, some before they took part and some after they voted
        let from_ms = [0, 1_500, 3_000][index % 3];
        scenario.troubles.push(Trouble { member: 3 * index, from_ms, until_ms, kind: TroubleKind::Down });
    }
    if one_returns {
        scenario.limit_ms = 120_000;
    }
    simulate(&world, &scenario).map_err(|violation| violation.to_string())
}

#[test]
fn of_128_members_42_may_die() {
    let report = of_128(42, false).unwrap();
    assert_eq!(report.outcome, Outcome::Agreed);
    assert_eq!(report.crashes, 28, "14 never started");
    assert!(report.decided[&FIRST].certificate().members().count() >= 86);
}

#[test]
fn of_128_members_with_43_dead_nothing_is_decided_and_all_say_why_until_one_returns() {
    let why = of_128(43, false).unwrap_err();
    assert!(why.contains("the round does not end") && why.contains("85 of 86"), "{why}");
    let report = of_128(43, true).unwrap();
    assert_eq!(report.outcome, Outcome::Agreed);
    assert!(report.finished_ms > 60_000, "{} ms", report.finished_ms);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let world = World::new(Shape { strategy: Strategy::Iterative, tally: TallyBy::Elected, ..ONE_SHOT });
    let shape = Shape { strategy: Strategy::Iterative, tally: TallyBy::Elected, ..ONE_SHOT };
    let traces = || -> Vec<_> { (0..6).map(|seed| run(&world, &Scenario::stormy(seed, shape)).trace).collect() };
    let (once, again) = (traces(), traces());
    assert_eq!(once, again);
    assert_eq!(once.iter().collect::<BTreeSet<_>>().len(), 6, "and another seed is another run");
}

#[test]
fn in_calm_weather_all_ballots_count_in_the_first_view() {
    for shape in SHAPES {
        for members in [1, 2, 3, 4, 7] {
            let shape = Shape { members, ..shape };
            let world = World::new(shape);
            let report = run(&world, &Scenario::calm(1, shape));
            assert_eq!(report.outcome, Outcome::Agreed);
            assert_eq!(report.mask_roots.len() as u32, world.heights());
            for settled in report.decided.values() {
                assert_eq!(settled.decision().ballots().unwrap().count(), members);
                assert_eq!(settled.certificate().view(), 0);
            }
            assert!(report.evidence.values().all(BTreeSet::is_empty));
            let most_ms = 4_500 * u64::from(world.heights());
            assert!(report.finished_ms < most_ms, "no timer was needed, in {} ms", report.finished_ms);
        }
    }
}

/// A round in calm weather with one liar.
fn with_liar(world: &World, shape: Shape, seed: u64, liar: usize, lie: Lie) -> Report {
    let scenario = Scenario { liars: BTreeMap::from([(liar, lie)]), ..Scenario::calm(seed, shape) };
    let report = run(world, &scenario);
    assert_eq!(report.outcome, Outcome::Agreed);
    report
}

/// Whether a ballot of the member counts at the height.
fn counts(report: &Report, height: Height, member: usize) -> bool {
    report.decided[&height].decision().ballots().unwrap().ballots()[member].is_some()
}

const FIRST: Height = Height(0);

#[test]
fn who_sends_two_ballots_is_known_to_all() {
    for lie in [Lie::TwoBallots, Lie::ThreeBallots] {
        for shape in SHAPES {
            for members in [4, 7] {
                let shape = Shape { members, ..shape };
                let world = World::new(shape);
                for seed in 0..4 {
                    let liar = seed as usize % members;
                    let report = with_liar(&world, shape, seed, liar, lie);
                    for (member, evidence) in &report.evidence {
                        let proof = (FIRST, Kind::Ballot, liar);
                        assert!(evidence.contains(&proof), "member {member} has no proof of {lie} by {liar}");
                    }
                }
            }
        }
    }
}

/// Without relays a member has a second ballot's header only from the answers of others.
#[test]
fn the_third_ballot_of_a_liar_stops_nobody() {
    for shape in SHAPES {
        for members in [4, 7] {
            let shape = Shape { members, ..shape };
            let world = World::new(shape);
            for seed in 0..6 {
                let liars = BTreeMap::from([(seed as usize % members, Lie::ThreeBallots)]);
                let scenario = Scenario { liars, relays: seed % 2 == 0, ..Scenario::calm(seed, shape) };
                assert_eq!(run(&world, &scenario).outcome, Outcome::Agreed);
            }
        }
    }
}

/// Aggregators that lie cost a view, and no more.
#[test]
fn the_next_aggregator_proposes_what_is_right() {
    for shape in SHAPES {
        for members in [4, 7] {
            let shape = Shape { members, ..shape };
            let world = World::new(shape);
            let liar = world.aggregator(FIRST, 0);
            for lie in [Lie::WrongMask, Lie::Censor, Lie::SilentAggregator] {
                let report = with_liar(&world, shape, 5, liar, lie);
                let settled = &report.decided[&FIRST];
                assert_eq!(settled.certificate().view(), 1, "{lie} costs one view");
                assert_eq!(settled.decision().ballots().unwrap().count(), members, "all ballots count");
                // a manifest against its own statements is no proposal, so it names nobody; a wrong mask does
                assert_eq!(report.bad_proposals, BTreeSet::from_iter((lie == Lie::WrongMask).then_some(liar)));
                let names = |kept: &BTreeSet<(Height, usize, _)>| kept.iter().any(|(_, member, _)| *member == liar);
                assert_eq!(report.proposals.values().all(names), lie == Lie::WrongMask);
            }
        }
    }
}

#[test]
fn two_proposals_are_proof_and_decide_one_thing() {
    for shape in SHAPES {
        let world = World::new(shape);
        let liar = world.aggregator(FIRST, 0);
        for seed in 0..4 {
            let report = with_liar(&world, shape, seed, liar, Lie::TwoProposals);
            let proof = (FIRST, Kind::Proposal, liar);
            assert!(report.evidence.values().all(|evidence| evidence.contains(&proof)));
            assert_eq!(report.decided[&FIRST].decision().ballots().unwrap().count(), 4);
        }
    }
}

#[test]
fn whatever_statements_are_chosen_no_ballot_that_all_hold_is_left_out() {
    for shape in [ONE_SHOT, ITERATIVE] {
        for members in [4, 7] {
            let shape = Shape { members, ..shape };
            let world = World::new(shape);
            let liar = world.aggregator(FIRST, 0);
            let report = with_liar(&world, shape, 3, liar, Lie::LeastStatements);
            let settled = &report.decided[&FIRST];
            assert_eq!(settled.certificate().view(), 0, "it is a manifest, and the liar's proposal is decided");
            assert!(settled.justified().statements().iter().any(|held| held.content().count() == 0));
            assert_eq!(settled.decision().ballots().unwrap().count(), members);
        }
    }
}

#[test]
fn two_votes_two_holdings_and_two_results_are_proof() {
    let kinds = [
        (Lie::TwoVotes, [Kind::Prevote, Kind::Precommit].as_slice()),
        (Lie::TwoHoldings, &[Kind::Holdings]),
        (Lie::TwoResults, &[Kind::Result]),
    ];
    for shape in SHAPES {
        let world = World::new(shape);
        for (lie, kinds) in kinds {
            for liar in 0..2 {
                let report = with_liar(&world, shape, 9, liar, lie);
                for evidence in report.evidence.values() {
                    let found = evidence.iter().any(|(_, kind, member)| kinds.contains(kind) && *member == liar);
                    assert!(found, "{lie} by {liar}: {evidence:?}");
                }
            }
        }
    }
}

#[test]
fn a_copied_ballot_is_told_and_counts_twice_or_not_at_all() {
    let world = World::new(ONE_SHOT);
    let told = (0..8).filter(|seed| {
        let report = with_liar(&world, ONE_SHOT, *seed, 2, Lie::CopiedBallot);
        assert!(report.same_ballots.iter().all(|(one, other)| *one == 2 || *other == 2));
        !report.same_ballots.is_empty()
    });
    assert!(told.count() >= 3, "a member that is late can copy");
}

#[test]
fn bodies_that_are_withheld_or_no_ballots_do_not_count() {
    for shape in SHAPES {
        let world = World::new(shape);
        for lie in [Lie::WithheldBody, Lie::GarbageBody] {
            let report = with_liar(&world, shape, 4, 1, lie);
            for height in report.decided.keys() {
                assert!(!counts(&report, *height, 1));
                assert_eq!(report.decided[height].decision().ballots().unwrap().count(), 3);
            }
            assert_eq!(report.refused, BTreeSet::from_iter((lie == Lie::GarbageBody).then_some(1)));
        }
        // one honest member has it, and so can all others
        let report = with_liar(&world, shape, 4, 3, Lie::HalfServedBody);
        assert!(counts(&report, FIRST, 3));
    }
}

#[test]
fn what_was_said_in_another_round_or_by_forgers_counts_for_nothing() {
    for shape in SHAPES {
        let world = World::new(shape);
        for lie in [Lie::Replay, Lie::Forger] {
            for liar in 0..4 {
                let report = with_liar(&world, shape, 6, liar, lie);
                assert!(report.evidence.values().all(BTreeSet::is_empty));
                assert!(report.bad_proposals.is_empty() && report.refused.is_empty());
                assert_eq!(report.decided[&FIRST].decision().ballots().unwrap().count(), 4);
            }
        }
    }
}

#[test]
fn too_few_ballots_are_abandoned_with_a_certificate() {
    for shape in SHAPES {
        for (members, without) in [(4, vec![0, 2]), (7, vec![1, 4, 5])] {
            let shape = Shape { members, abandon_ms: 12_000, ..shape };
            let world = World::new(shape);
            for seed in 0..3 {
                let mut scenario = Scenario::calm(seed, shape);
                scenario.without_ballot.extend(without.iter().copied());
                scenario.latest_start_ms = 4_000;
                let report = run(&world, &scenario);
                assert_eq!(report.outcome, Outcome::Abandoned(FIRST));
                let settled = &report.decided[&FIRST];
                assert!(settled.decision().is_abandoned());
                assert!(settled.certificate().members().count() >= world.quorum().q());
                assert!(report.mask_roots.is_empty());
            }
        }
    }
}

/// When everybody has started to agree.
const ALL_AGREE_MS: u64 = 6_000;

/// Proposes to two members, and lets them alone see that a quorum prevotes its proposal: the third hears it vote
/// otherwise first. From then on it votes no more, and comes forward with its own ballot, so that the third would
/// rather propose something else.
struct HiddenQuorum {
    deceived: usize,
    proposal: Option<Vec<u8>>,
    vote: Option<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

impl HiddenQuorum {
    /// Whom it does not deceive.
    fn favoured(&self, seat: &Seat<'_>) -> Vec<usize> {
        seat.others().into_iter().filter(|other| *other != self.deceived).collect()
    }
}

impl Byzantine for HiddenQuorum {
    fn publish(&mut self, _seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        match wire::content_of(&bytes) {
            Ok(Some(Content::Proposed)) => drop(self.proposal.get_or_insert(bytes)),
            Ok(Some(Content::Prevote)) => drop(self.vote.get_or_insert(bytes)),
            Ok(Some(Content::BallotHeader | Content::Holdings)) => self.others.push(bytes),
            _ => {}
        }
        Vec::new()
    }

    fn regularly(&mut self, seat: &mut Seat<'_>) -> Vec<Sending> {
        let to = self.favoured(seat);
        match (&self.proposal, &self.vote) {
            (Some(proposal), Some(vote)) if seat.now_ms > ALL_AGREE_MS && !to.is_empty() => {
                let proposal = Sending { to: to.clone(), bytes: proposal.clone() };
                let nil = seat.world.sign(seat.me, Prevote { view: 0, value: None }, FIRST).encode();
                let lie = Sending { to: vec![self.deceived], bytes: nil };
                let vote = Sending { to, bytes: vote.clone() };
                (self.proposal, self.vote) = (Some(Vec::new()), None);
                vec![proposal, lie, vote]
            }
            _ => Vec::new(),
        }
    }

    fn hear(&mut self, seat: &mut Seat<'_>, bytes: &[u8]) -> Vec<Sending> {
        match wire::content_of(bytes) {
            Ok(Some(Content::Precommit)) => self.others.drain(..).map(|bytes| seat.to_all(bytes)).collect(),
            _ => Vec::new(),
        }
    }

    fn answer(&mut self, _seat: &mut Seat<'_>, _to: usize, _honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        None
    }
}

#[test]
fn a_quorum_of_prevotes_cannot_be_hidden_for_good() {
    let world = World::new(ONE_SHOT);
    let (liar, deceived) = (world.aggregator(FIRST, 0), world.aggregator(FIRST, 2));
    let views = Mutex::new(BTreeMap::<u32, u32>::new());
    for_seeds(0..60, |seed| {
        let mut scenario = Scenario { latest_start_ms: 0, relays: seed % 2 == 0, ..Scenario::calm(seed, ONE_SHOT) };
        scenario.faults.end_ms = 20_000;
        let side = (0..4).filter(|one| ![deceived, liar].contains(one)).collect();
        scenario.faults.cuts = vec![Cut { from_ms: ALL_AGREE_MS, until_ms: 8_500, side, one_way: true }];
        let lie = HiddenQuorum { deceived, proposal: None, vote: None, others: Vec::new() };
        let liars: Liars = BTreeMap::from([(liar, Box::new(lie) as Box<dyn Byzantine>)]);
        let report = simulate_with(&world, &scenario, liars).map_err(|error| error.to_string())?;
        *views.lock().unwrap().entry(report.decided[&FIRST].certificate().view()).or_default() += 1;
        Ok(())
    });
    let views = views.into_inner().unwrap();
    assert!(views.keys().any(|view| *view > 0), "nobody was deceived: {views:?}");
}
