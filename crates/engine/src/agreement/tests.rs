//! One member, told what to hear.

use super::*;
use crate::testing::{World, key, value};
use fedprune_federation::agreement::Engine;
use fedprune_federation::{Certificate, MemberIndex, Precommit};

/// A member at the start of a height.
fn agreement(world: &World, member: usize, journal: &[Vec<u8>]) -> (MalachiteAgreement, Vec<Action>) {
    try_resume(world, member, journal, true).unwrap()
}

fn try_resume(
    world: &World,
    member: usize,
    journal: &[Vec<u8>],
    participates: bool,
) -> Result<(MalachiteAgreement, Vec<Action>), AgreementError> {
    let seat = Seat {
        consortium: world.consortium.clone(),
        round: world.round.id(),
        member: MemberIndex(member as u16),
        key: key(member),
    };
    MalachiteAgreement::resume(Arc::new(seat), world.height, journal, participates)
}

/// A member with its journal.
struct Member<'a> {
    world: &'a World,
    member: usize,
    agreement: MalachiteAgreement,
    journal: Vec<Vec<u8>>,
    timers: BTreeSet<Timer>,
}

impl<'a> Member<'a> {
    fn new(world: &'a World, member: usize) -> Self {
        let (agreement, actions) = agreement(world, member, &[]);
        let mut new = Self { world, member, agreement, journal: Vec::new(), timers: BTreeSet::new() };
        new.keep(&actions);
        new
    }

    fn keep(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Record(entry) => self.journal.push(entry.clone()),
                Action::Set(timer) => _ = self.timers.insert(*timer),
                Action::Cancel(timer) => _ = self.timers.remove(timer),
                Action::CancelAll => self.timers.clear(),
                _ => {}
            }
        }
    }

    fn hear(&mut self, input: Input) -> Vec<Action> {
        let actions = self.agreement.step(input).unwrap();
        self.keep(&actions);
        actions
    }

    fn vote(&mut self, vote: Repeated) -> Vec<Action> {
        self.hear(match vote {
            Repeated::Prevote(vote) => Input::Prevote(vote),
            Repeated::Precommit(vote) => Input::Precommit(vote),
        })
    }

    fn elapse(&mut self, kind: TimerKind, view: u32) -> Vec<Action> {
        let timer = Timer { kind, view };
        assert!(self.timers.remove(&timer), "{timer:?} is not set");
        self.hear(Input::Elapsed(timer))
    }

    /// Hears a proposal and finds it valid.
    fn propose(&mut self, proposal: SignatureChecked<Proposal>) -> Vec<Action> {
        let asked = self.hear(Input::Proposal(proposal.clone()));
        assert!(asked.contains(&Action::Judge(proposal.clone())), "{asked:?}");
        self.hear(Input::Judged { proposal, valid: true })
    }

    fn restart(&mut self) -> Vec<Action> {
        let (agreement, actions) = agreement(self.world, self.member, &self.journal);
        self.agreement = agreement;
        self.timers.clear();
        self.keep(&actions);
        actions
    }
}

fn prevotes(actions: &[Action]) -> Vec<Prevote> {
    let prevote = |action: &Action| match action {
        Action::Prevote(vote) => Some(*vote.content()),
        _ => None,
    };
    actions.iter().filter_map(prevote).collect()
}

fn precommits(actions: &[Action]) -> Vec<Precommit> {
    let precommit = |action: &Action| match action {
        Action::Precommit(vote) => Some(*vote.content()),
        _ => None,
    };
    actions.iter().filter_map(precommit).collect()
}

fn decided(actions: &[Action]) -> Option<&Certificate> {
    actions.iter().find_map(|action| match action {
        Action::Decided(certificate) => Some(certificate),
        _ => None,
    })
}

/// The members by turn: the aggregators of views 0 to 3 of four.
fn turns(world: &World) -> [usize; 4] {
    [0, 1, 2, 3].map(|view| world.aggregator(view))
}

#[test]
fn engines_are_made_of_what_belongs_together() {
    let (world, other) = (World::new(4), World::new(5));
    assert!(crate::MalachiteEngine::new(world.consortium.clone(), &world.round, key(3)).is_ok());
    let stranger = crate::MalachiteEngine::new(world.consortium.clone(), &world.round, key(4));
    assert!(matches!(stranger, Err(crate::EngineError::NotAMember(_))));
    let elsewhere = crate::MalachiteEngine::new(world.consortium.clone(), &other.round, key(3));
    assert!(matches!(elsewhere, Err(crate::EngineError::OtherConsortium { .. })));
    let engine = crate::MalachiteEngine::new(world.consortium.clone(), &world.round, key(3)).unwrap();
    assert!(!format!("{engine:?}").contains("Signing"));
    let (agreement, actions) = engine.resume(world.height, &[], true).unwrap();
    assert_eq!(agreement.view(), 0);
    assert!(matches!(actions.first(), Some(Action::Record(_))), "{actions:?}");
}

#[test]
fn one_member_alone_decides_what_it_proposes() {
    let world = World::new(1);
    let mut member = Member::new(&world, 0);
    let actions = member.hear(Input::Propose { view: 0, value: value("a") });
    assert_eq!(decided(&actions).unwrap().value(), value("a"));
    assert!(matches!(actions.last(), Some(Action::Decided(_))));
    assert_eq!(prevotes(&actions).len() + precommits(&actions).len(), 2);
    assert_eq!(member.hear(Input::Propose { view: 0, value: value("b") }), []);
    let again = member.restart();
    assert_eq!(decided(&again), decided(&actions));
}

#[test]
fn our_turn_is_asked_for_again_until_we_proposed() {
    let world = World::new(4);
    let [me, other, ..] = turns(&world);
    let wants = |actions: &[Action]| actions.contains(&Action::Want { view: 0 });
    let mut member = Member::new(&world, me);
    assert!(wants(&member.restart()));
    assert!(!wants(&agreement(&world, other, &[]).1));
    let actions = member.hear(Input::Propose { view: 1, value: value("a") });
    assert_eq!(actions, [], "not the view");
    let actions = member.hear(Input::Propose { view: 0, value: value("a") });
    assert!(matches!(&actions[..], [.., Action::Propose(_)]), "{actions:?}");
    assert_eq!(prevotes(&actions), [Prevote { view: 0, value: Some(value("a")) }]);
    assert_eq!(member.hear(Input::Propose { view: 0, value: value("b") }), [], "we have");
    let again = member.restart();
    assert!(!wants(&again));
    let said = |actions: &[Action]| {
        let said = actions.iter().filter(|action| matches!(action, Action::Propose(_) | Action::Prevote(_)));
        said.cloned().collect::<BTreeSetByText>()
    };
    assert_eq!(said(&again), said(&actions));
}

/// Actions in any order.
#[derive(Debug, PartialEq)]
struct BTreeSetByText(BTreeSet<String>);

impl FromIterator<Action> for BTreeSetByText {
    fn from_iter<T: IntoIterator<Item = Action>>(actions: T) -> Self {
        Self(actions.into_iter().map(|action| format!("{action:?}")).collect())
    }
}

#[test]
fn values_are_proposed_in_time_or_not_at_all() {
    let world = World::new(4);
    let [me, ..] = turns(&world);
    let mut member = Member::new(&world, me);
    assert_eq!(prevotes(&member.elapse(TimerKind::Proposal, 0)), [Prevote { view: 0, value: None }]);
    let before = member.journal.len();
    assert_eq!(member.hear(Input::Propose { view: 0, value: value("a") }), []);
    assert_eq!(member.journal.len(), before);
}

#[test]
fn what_is_of_no_use_is_neither_heard_nor_recorded() {
    let world = World::new(4);
    let elsewhere = World::new(5);
    let [first, me, third, _] = turns(&world);
    let mut member = Member::new(&world, me);
    let vote = world.prevote(first, 0, None);
    assert!(!member.vote(vote.clone()).is_empty());
    let proposal = world.proposal(first, 0, "a", None);
    assert!(!member.hear(Input::Proposal(proposal.clone())).is_empty());
    let before = member.journal.clone();
    assert_eq!(member.vote(vote), [], "known");
    assert_eq!(member.hear(Input::Proposal(proposal)), [], "asked already");
    assert_eq!(member.vote(world.prevote(first, 0, Some("a"))), [], "its second");
    assert_eq!(member.vote(elsewhere.prevote(first, 0, None)), [], "of another consortium");
    assert_eq!(member.hear(Input::Proposal(world.proposal(third, 0, "a", None))), [], "not its turn");
    assert_eq!(member.hear(Input::Proposal(world.proposal(third, 2 + 4 * 5, "a", None))), [], "too far ahead");
    assert_eq!(member.vote(world.prevote(third, 11, None)), [], "too far ahead");
    let unknown = world.proposal(third, 2, "x", None);
    assert_eq!(member.hear(Input::Judged { proposal: unknown, valid: true }), [], "nobody asked");
    assert_eq!(member.hear(Input::Elapsed(Timer { kind: TimerKind::Prevote, view: 0 })), [], "not set");
    assert_eq!(member.journal, before);
    // an aggregator has two proposals, and a third for which a quorum voted
    let proposals = ["b", "c", "d"].map(|text| world.proposal(first, 0, text, None));
    assert!(!member.hear(Input::Proposal(proposals[0].clone())).is_empty());
    assert_eq!(member.hear(Input::Proposal(proposals[1].clone())), []);
    for voter in [third, turns(&world)[3], first] {
        member.vote(world.prevote(voter, 0, Some("c")));
    }
    assert!(!member.hear(Input::Proposal(proposals[1].clone())).is_empty());
    assert_eq!(member.hear(Input::Proposal(proposals[2].clone())), []);
}

#[test]
fn a_proposal_that_waits_is_asked_about_again() {
    let world = World::new(4);
    let [first, second, me, _] = turns(&world);
    let mut member = Member::new(&world, me);
    let (proposal, next) = (world.proposal(first, 0, "a", None), world.proposal(second, 1, "a", None));
    member.hear(Input::Proposal(proposal.clone()));
    member.hear(Input::Proposal(next.clone()));
    let entries = member.journal.len();
    for _ in 0..2 {
        let actions = member.restart();
        for waiting in [&proposal, &next] {
            assert_eq!(actions.iter().filter(|action| **action == Action::Judge(waiting.clone())).count(), 1);
        }
    }
    assert_eq!(member.journal.len(), entries, "restarts add nothing");
    // judged for one, it is for both
    let actions = member.hear(Input::Judged { proposal: next, valid: true });
    assert_eq!(prevotes(&actions), [Prevote { view: 0, value: Some(value("a")) }]);
    assert!(!member.restart().iter().any(|action| matches!(action, Action::Judge(_))));
    assert_eq!(member.hear(Input::Judged { proposal, valid: true }), []);
}

#[test]
fn a_value_found_false_may_be_found_valid_with_other_grounds() {
    let world = World::new(4);
    let [first, second, me, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    let bad = world.proposal(first, 0, "a", None);
    member.hear(Input::Proposal(bad.clone()));
    let actions = member.hear(Input::Judged { proposal: bad, valid: false });
    assert_eq!(prevotes(&actions), [Prevote { view: 0, value: None }]);
    for voter in [first, second, fourth] {
        member.vote(world.precommit(voter, 0, None));
    }
    member.elapse(TimerKind::Precommit, 0);
    assert_eq!(member.agreement.view(), 1);
    let actions = member.propose(world.proposal(second, 1, "a", None));
    assert_eq!(prevotes(&actions), [Prevote { view: 1, value: Some(value("a")) }]);
}

/// Malachite looks at what others propose when a value is judged, and not when we propose it; its log does not tell
/// the two apart, so a replay would come to another prevote than we made.
#[test]
fn what_we_propose_is_valid_whoever_proposes_it() {
    let world = World::new(4);
    let [me, second, third, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    let next = world.proposal(second, 1, "a", None);
    member.hear(Input::Proposal(next.clone()));
    member.hear(Input::Judged { proposal: next, valid: false });
    member.hear(Input::Propose { view: 0, value: value("a") });
    for voter in [second, third, fourth] {
        member.vote(world.precommit(voter, 0, None));
    }
    let actions = member.elapse(TimerKind::Precommit, 0);
    assert_eq!(prevotes(&actions), [Prevote { view: 1, value: Some(value("a")) }]);
    assert_eq!(prevotes(&member.restart()), prevotes(&actions));
}

#[test]
fn timers_that_are_set_are_set_after_a_restart() {
    let world = World::new(4);
    let [first, second, me, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    let kinds = |member: &Member<'_>| member.timers.iter().map(|timer| timer.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&member), [TimerKind::Proposal, TimerKind::Repeat]);
    member.elapse(TimerKind::Proposal, 0);
    for voter in [first, second] {
        member.vote(world.prevote(voter, 0, Some("a")));
    }
    assert_eq!(kinds(&member), [TimerKind::Prevote, TimerKind::Repeat]);
    member.restart();
    assert_eq!(kinds(&member), [TimerKind::Prevote, TimerKind::Repeat]);
    member.elapse(TimerKind::Prevote, 0);
    member.restart();
    assert_eq!(kinds(&member), [TimerKind::Repeat]);
    for voter in [second, fourth] {
        member.vote(world.precommit(voter, 0, None));
    }
    member.restart();
    assert_eq!(kinds(&member), [TimerKind::Precommit, TimerKind::Repeat]);
    member.elapse(TimerKind::Precommit, 0);
    member.restart();
    assert_eq!(kinds(&member), [TimerKind::Proposal, TimerKind::Repeat]);
    assert!(member.timers.iter().all(|timer| timer.view == 1));
}

#[test]
fn nothing_is_signed_twice() {
    let world = World::new(4);
    let [first, me, ..] = turns(&world);
    // a prevote for nil is in the book, and malachite does not know of it
    let mut member = Member::new(&world, me);
    assert_eq!(member.agreement.clerk.book.add_vote(&world.prevote(me, 0, None)), Heard::First);
    let proposal = world.proposal(first, 0, "a", None);
    member.hear(Input::Proposal(proposal.clone()));
    let error = member.agreement.step(Input::Judged { proposal, valid: true }).unwrap_err();
    assert!(error.to_string().contains("second Prevote"), "{error}");
    let error = member.agreement.step(Input::Elapsed(Timer { kind: TimerKind::Proposal, view: 0 })).unwrap_err();
    assert!(error.to_string().contains("second Prevote"), "it stays so: {error}");
    // the same for a proposal
    let mut member = Member::new(&world, first);
    member.agreement.clerk.book.add_proposal(&world.proposal(first, 0, "b", None));
    assert_eq!(member.hear(Input::Propose { view: 0, value: value("a") }), []);
    let proposal =
        CoreInput::Propose(LocallyProposedValue::new(world.height.into(), Round::ZERO, CoreValue(value("a"))));
    assert!(member.agreement.feed(proposal).unwrap_err().contains("second proposal"));
}

#[test]
fn what_another_says_with_our_key_ends_our_signing_for_good() {
    let world = World::new(4);
    let [first, me, ..] = turns(&world);
    let mut member = Member::new(&world, me);
    member.vote(world.prevote(me, 3, Some("clone")));
    assert!(!member.agreement.clerk.participates);
    member.restart();
    assert!(!member.agreement.clerk.participates);
    let actions = member.propose(world.proposal(first, 0, "a", None));
    assert!(actions.iter().any(|action| matches!(action, Action::Record(_))), "it follows");
    assert_eq!(prevotes(&actions), []);
    assert_eq!(prevotes(&member.restart()), []);
    member.vote(world.prevote(first, 0, Some("a")));
    // what we said ourselves does not
    let mut member = Member::new(&world, me);
    member.elapse(TimerKind::Proposal, 0);
    assert_eq!(member.vote(world.prevote(me, 0, None)), []);
    assert!(member.agreement.clerk.participates);
}

/// One liar prevotes nil to us and a value to the others, who lock on it. Counting first prevotes alone, we would
/// never prevote what they propose again, and without us there is no quorum.
#[test]
fn a_quorum_that_an_equivocator_hides_is_seen() {
    let world = World::new(4);
    let [liar, other, third, me] = turns(&world);
    for early in [false, true] {
        let mut member = Member::new(&world, me);
        member.elapse(TimerKind::Proposal, 0);
        let hidden = world.prevote(liar, 0, Some("a"));
        member.vote(world.prevote(liar, 0, None));
        if early {
            member.vote(hidden.clone());
        }
        member.vote(world.prevote(other, 0, Some("a")));
        member.vote(world.prevote(third, 0, Some("a")));
        for voter in [liar, other, third] {
            member.vote(world.precommit(voter, 0, Some("a")));
        }
        let actions = if early { Vec::new() } else { member.elapse(TimerKind::Prevote, 0) };
        assert!(precommits(&actions).iter().all(|vote| vote.value.is_none()));
        // no decision: the value was never proposed to us
        assert_eq!(member.agreement.clerk.decided, None);
        member.elapse(TimerKind::Precommit, 0);
        assert_eq!(member.agreement.view(), 1);
        let actions = member.propose(world.proposal(other, 1, "a", Some(0)));
        let seen = if early { actions } else { member.vote(hidden) };
        assert_eq!(prevotes(&seen), [Prevote { view: 1, value: Some(value("a")) }], "early: {early}");
        assert!(member.journal.iter().any(|entry| entry[0] == 7), "the quorum is recorded");
        let again = member.restart();
        assert_eq!(prevotes(&again), prevotes(&seen));
    }
}

/// Malachite forgets prevotes of views before the one in which it locked.
#[test]
fn a_quorum_before_our_lock_is_remembered() {
    let world = World::new(4);
    let [first, second, me, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    let others = [first, second, fourth];
    member.propose(world.proposal(first, 0, "a", None));
    // a quorum in view 0 that comes too late to lock: we precommitted nil
    for voter in [first, second] {
        member.vote(world.prevote(voter, 0, if voter == first { Some("a") } else { None }));
    }
    member.elapse(TimerKind::Prevote, 0);
    member.vote(world.prevote(fourth, 0, Some("a")));
    for voter in others {
        member.vote(world.precommit(voter, 0, None));
    }
    member.elapse(TimerKind::Precommit, 0);
    // locked in view 1
    member.hear(Input::Proposal(world.proposal(second, 1, "a", Some(0))));
    for voter in others {
        member.vote(world.prevote(voter, 1, Some("a")));
    }
    assert_eq!(member.agreement.state.driver.round_state().locked.as_ref().map(|lock| lock.round), Some(Round::new(1)));
    for voter in others {
        member.vote(world.precommit(voter, 1, None));
    }
    member.elapse(TimerKind::Precommit, 1);
    assert_eq!(member.agreement.view(), 2);
    for voter in others {
        member.vote(world.precommit(voter, 2, None));
    }
    member.elapse(TimerKind::Precommit, 2);
    // the next has seen no quorum but that of view 0
    let actions = member.hear(Input::Proposal(world.proposal(fourth, 3, "a", Some(0))));
    assert_eq!(prevotes(&actions), [Prevote { view: 3, value: Some(value("a")) }]);
}

#[test]
fn a_lock_outlives_a_restart() {
    let world = World::new(4);
    let [first, second, me, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    member.propose(world.proposal(first, 0, "a", None));
    for voter in [first, second] {
        member.vote(world.prevote(voter, 0, Some("a")));
    }
    assert_eq!(precommits(&member.restart()), [Precommit { view: 0, value: Some(value("a")) }]);
    for voter in [first, second, fourth] {
        member.vote(world.precommit(voter, 0, None));
    }
    member.elapse(TimerKind::Precommit, 0);
    member.restart();
    let actions = member.propose(world.proposal(second, 1, "b", None));
    assert_eq!(prevotes(&actions), [Prevote { view: 1, value: None }], "locked");
}

#[test]
fn a_journal_with_a_gap_is_refused_and_a_prefix_is_not() {
    let world = World::new(4);
    let [first, second, me, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    member.propose(world.proposal(first, 0, "a", None));
    for voter in [first, second] {
        member.vote(world.prevote(voter, 0, Some("a")));
    }
    let journal = member.journal.clone();
    for entries in 0..=journal.len() {
        try_resume(&world, me, &journal[..entries], true).unwrap();
    }
    let error = |journal: &[Vec<u8>]| match try_resume(&world, me, journal, true) {
        Err(AgreementError::Journal { entry, why, .. }) => (entry, why),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    // without the first prevote of another there was no quorum for our precommit
    let gap = journal.iter().position(|entry| entry[0] == 3).unwrap() + 1;
    let without = [&journal[..gap], &journal[gap + 1..]].concat();
    assert!(error(&without).1.contains("does not follow"), "{:?}", error(&without));
    assert_eq!(error(&journal[1..]).0, 0);
    assert_eq!(error(&[&journal[..1], &journal[..1]].concat()).0, 1);
    assert_eq!(error(&[&journal[..2], &[Vec::new()][..]].concat()), (2, "it is empty".to_owned()));
    let mut foreign = journal.clone();
    foreign.push(Entry::Vote(World::new(5).prevote(fourth, 0, None)).encode(World::new(5).owner(0)));
    assert_eq!(error(&foreign).0, journal.len());
    // too few prevotes for the quorum that they are said to be
    let Repeated::Prevote(few) = world.prevote(fourth, 0, Some("b")) else { unreachable!() };
    let few = Entry::Polka(vec![few]).encode(world.owner(me as u16));
    assert!(error(&[&journal[..], &[few][..]].concat()).1.contains("are needed"));
}

#[test]
fn a_member_may_stop_and_begin_to_take_part() {
    let world = World::new(4);
    let [first, second, me, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    member.propose(world.proposal(first, 0, "a", None));
    let said = prevotes(&member.restart());
    // follows for a view
    let (agreement, actions) = try_resume(&world, me, &member.journal, false).unwrap();
    assert!(prevotes(&actions).is_empty());
    member.agreement = agreement;
    member.timers.clear();
    member.keep(&actions);
    for voter in [first, second, fourth] {
        assert!(prevotes(&member.vote(world.prevote(voter, 0, None))).is_empty());
        assert!(precommits(&member.vote(world.precommit(voter, 0, None))).is_empty());
    }
    member.elapse(TimerKind::Precommit, 0);
    assert_eq!(prevotes(&member.elapse(TimerKind::Proposal, 1)), []);
    // and takes part again, twice
    for _ in 0..2 {
        let actions = member.restart();
        assert_eq!(member.agreement.view(), 1);
        assert_eq!(prevotes(&actions), [Prevote { view: 1, value: None }]);
    }
    assert_eq!(said, [Prevote { view: 0, value: Some(value("a")) }]);
}

#[test]
fn what_may_be_lost_is_repeated() {
    let world = World::new(4);
    let [me, second, third, fourth] = turns(&world);
    let mut member = Member::new(&world, me);
    member.hear(Input::Propose { view: 0, value: value("a") });
    let actions = member.elapse(TimerKind::Repeat, 0);
    assert!(actions.iter().any(|action| matches!(action, Action::Propose(_))), "{actions:?}");
    assert!(actions.contains(&Action::Repeat(vec![world.prevote(me, 0, Some("a"))])));
    assert!(member.timers.contains(&Timer { kind: TimerKind::Repeat, view: 0 }));
    // locked, and again our turn: the quorum that allows it goes with it
    for voter in [second, third] {
        member.vote(world.prevote(voter, 0, Some("a")));
    }
    for voter in [second, third, fourth] {
        member.vote(world.precommit(voter, 0, None));
    }
    member.elapse(TimerKind::Precommit, 0);
    let mut actions = Vec::new();
    for voter in [second, third] {
        actions = member.vote(world.prevote(voter, 4, None));
    }
    assert_eq!(member.agreement.view(), 4);
    let proposed = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Propose(proposal) => Some(*proposal.content()),
            _ => None,
        })
    };
    let again = Proposal { view: 4, value: value("a"), valid_view: Some(0) };
    let mut polka: Vec<_> = [me, second, third].map(|voter| world.prevote(voter, 0, Some("a"))).to_vec();
    polka.sort_by_key(|vote| facts(vote).member);
    let quorum = |actions: &[Action]| {
        actions.iter().any(|action| match action {
            Action::Repeat(votes) => polka.iter().all(|vote| votes.contains(vote)),
            _ => false,
        })
    };
    assert!(proposed(&actions) == Some(again) && quorum(&actions), "{actions:?}");
    let actions = member.elapse(TimerKind::Repeat, 4);
    assert!(proposed(&actions) == Some(again) && quorum(&actions), "{actions:?}");
}
