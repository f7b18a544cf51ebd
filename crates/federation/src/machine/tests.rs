use fedprune_mask::Digest;
use fedprune_mask::ballot::Encodings;

use super::message::{Message, claims};
use super::*;
use crate::agreement::{Action, AgreementError, Repeated};
use crate::ballot::{BallotHeader, validate};
use crate::holdings::Holdings;
use crate::testing::{Weights, body, consortium_of, key, layout, round, vote};
use crate::vote::{Precommit, Prevote};
use crate::wire::{self, Content};

/// An engine that starts, wants nothing and decides nothing: what the machine does around it is looked at.
struct Idle;

impl Engine for Idle {
    fn resume(&self, _: Height, _: &[Vec<u8>], _: bool) -> Result<(Box<dyn Agreement>, Vec<Action>), AgreementError> {
        Ok((Box::new(IdleAgreement), Vec::new()))
    }

    /// Its journals, which it does not write, are prevotes.
    fn votes(&self, _: Height, journal: &[Vec<u8>]) -> Vec<Repeated> {
        let consortium = consortium_of(4);
        let round = round(consortium.consortium()).id();
        let read =
            |bytes: &Vec<u8>| crate::Received::<Prevote>::decode(bytes).unwrap().check(&consortium, round).unwrap();
        journal.iter().map(|bytes| Repeated::Prevote(read(bytes))).collect()
    }
}

struct IdleAgreement;

impl Agreement for IdleAgreement {
    fn step(&mut self, _: crate::agreement::Input) -> Result<Vec<Action>, AgreementError> {
        Ok(Vec::new())
    }

    fn view(&self) -> u32 {
        0
    }
}

fn machine_of(member: usize, records: Vec<(Height, Record)>) -> Machine {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let setup = Setup { consortium, round, layout: layout(), key: key(member) };
    Machine::recover(setup, Box::new(Idle), records).unwrap()
}

/// A machine that a quorum has answered.
fn joined(member: usize) -> Machine {
    let mut machine = machine_of(member, Vec::new());
    let _ = machine.step(0, Input::Tick);
    for other in (0..4u16).filter(|other| usize::from(*other) != member) {
        let _ = machine.step(1, Input::Recalled { from: MemberIndex(other), messages: Vec::new() });
    }
    assert!(machine.has_joined());
    machine
}

fn signed<T: crate::Statement>(content: T, member: usize) -> SignatureChecked<T> {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium()).id();
    SignatureChecked::sign(content, Height(0), &key(member), &consortium, round).unwrap()
}

fn header(text: &str) -> BallotHeader {
    BallotHeader { body: Digest::of(text.as_bytes()), body_bytes: 100, claimed_unix_ms: 5 }
}

fn tells(effects: &[Effect]) -> Vec<&Event> {
    effects.iter().filter_map(|effect| if let Effect::Tell(event) = effect { Some(event) } else { None }).collect()
}

/// Whatever is sent was recorded and made durable before.
fn check_order(effects: &[Effect]) {
    let mut appended: Vec<Vec<u8>> = Vec::new();
    let mut durable: Vec<Vec<u8>> = Vec::new();
    for effect in effects {
        match effect {
            Effect::Append(_, Record::Said(bytes) | Record::Heard(bytes)) => appended.push(bytes.clone()),
            Effect::Flush => durable.append(&mut appended),
            Effect::Publish(bytes) => assert!(durable.contains(bytes), "sent before it is durable"),
            _ => {}
        }
    }
    assert!(appended.is_empty(), "what was appended is flushed at the end");
}

#[test]
fn statements_of_ours_that_arrive_as_news_are_adopted_too() {
    let mut machine = machine_of(0, Vec::new());
    let _ = machine.step(0, Input::Tick);
    let prevote = signed(Prevote { view: 0, value: None }, 0).encode();
    let (verdict, effects) = machine.receive(0, &prevote);
    assert!(matches!(verdict, Verdict::New));
    check_order(&effects);
    assert_eq!(tells(&effects), [&Event::Adopted { height: Height(0), kind: Kind::Prevote }]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Append(_, Record::Said(bytes)) if *bytes == prevote)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Append(_, Record::Silent))));
    // the answer to our question says nothing new
    let effects = machine.step(1, Input::Recalled { from: MemberIndex(1), messages: vec![prevote] });
    assert!(effects.is_empty(), "{effects:?}");
    // what we say ourselves is not adopted when it comes back
    let mut machine = joined(0);
    let input = Input::Contributed { height: Height(0), body: Digest::of(b"a"), body_bytes: 9, claimed_unix_ms: 1 };
    let effects = machine.step(2, input);
    let said = effects.iter().find_map(|effect| if let Effect::Publish(bytes) = effect { Some(bytes) } else { None });
    let (verdict, effects) = machine.receive(3, said.unwrap());
    assert!(matches!(verdict, Verdict::Known) && effects.is_empty());
}

#[test]
fn votes_of_others_are_remembered_across_a_crash() {
    let theirs = signed(Prevote { view: 0, value: None }, 1).encode();
    let machine = machine_of(0, vec![(Height(0), Record::Journal(theirs.clone()))]);
    assert_eq!(machine.answer(MemberIndex(1), &Question::Mine), [theirs]);
}

#[test]
fn nothing_is_signed_before_a_quorum_told_what_it_has() {
    let mut machine = machine_of(0, Vec::new());
    assert!(matches!(machine.step(0, Input::Tick).as_slice(), [Effect::Recall]));
    let contributed =
        || Input::Contributed { height: Height(0), body: Digest::of(b"a"), body_bytes: 9, claimed_unix_ms: 1 };
    // one answer and ourselves are two of the three that it takes
    let effects = machine.step(1, Input::Recalled { from: MemberIndex(1), messages: vec![b"noise".to_vec()] });
    assert!(effects.is_empty() && !machine.has_joined(), "{effects:?}");
    let again = machine.step(1, Input::Recalled { from: MemberIndex(1), messages: Vec::new() });
    assert!(again.is_empty(), "one member counts once");
    let effects = machine.step(2, Input::Recalled { from: MemberIndex(3), messages: Vec::new() });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Compute(Height(0)))), "{effects:?}");
    let effects = machine.step(3, contributed());
    check_order(&effects);
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).count(), 1);
    // a second ballot is not signed
    assert!(
        machine
            .step(
                4,
                Input::Contributed { height: Height(0), body: Digest::of(b"b"), body_bytes: 9, claimed_unix_ms: 2 }
            )
            .is_empty()
    );
}

#[test]
fn what_others_have_of_ours_is_adopted_and_votes_we_forgot_silence_us() {
    let mut machine = machine_of(0, Vec::new());
    let ours = signed(header("first"), 0);
    let prevote = signed(Prevote { view: 0, value: None }, 0);
    let messages = vec![ours.encode(), prevote.encode(), signed(header("theirs"), 1).encode()];
    let effects = machine.step(0, Input::Recalled { from: MemberIndex(1), messages });
    let adopted = [
        &Event::Adopted { height: Height(0), kind: Kind::Ballot },
        &Event::Adopted { height: Height(0), kind: Kind::Prevote },
    ];
    assert_eq!(tells(&effects), adopted);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Append(Height(0), Record::Silent))));
    let effects = machine.step(1, Input::Recalled { from: MemberIndex(2), messages: vec![ours.encode()] });
    // the ballot is signed: it is fetched, not computed
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Compute(_))), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { body, .. } if *body == Digest::of(b"first"))));
    // silent: no holdings statement although the time for ballots is over
    let late = machine.next_tick_ms().unwrap();
    let effects = machine.step(late, Input::Tick);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Publish(_))), "{effects:?}");
}

#[test]
fn a_restart_asks_for_nothing_that_is_recorded_and_signs_nothing_again() {
    let mut machine = joined(0);
    let input = Input::Contributed { height: Height(0), body: Digest::of(b"a"), body_bytes: 9, claimed_unix_ms: 1 };
    let effects = machine.step(2, input);
    let log: Vec<(Height, Record)> = effects
        .into_iter()
        .filter_map(|effect| if let Effect::Append(height, record) = effect { Some((height, record)) } else { None })
        .collect();
    let mut again = machine_of(0, log);
    let _ = again.step(0, Input::Recalled { from: MemberIndex(1), messages: Vec::new() });
    let effects = again.step(0, Input::Recalled { from: MemberIndex(2), messages: Vec::new() });
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Compute(_) | Effect::Append(..))), "{effects:?}");
    // it may never have left, so it is sent again
    let sent: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::Publish(_))).collect();
    assert_eq!(sent.len(), 1);
}

#[test]
fn two_ballots_of_one_member_are_evidence_and_the_first_is_kept() {
    let mut machine = joined(0);
    let (first, second) = (signed(header("a"), 2), signed(header("b"), 2));
    let (verdict, effects) = machine.receive(5, &first.encode());
    assert!(matches!(verdict, Verdict::New));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })));
    let (verdict, effects) = machine.receive(6, &second.encode());
    assert!(matches!(verdict, Verdict::New), "others must see it too");
    check_order(&effects);
    assert_eq!(
        tells(&effects),
        [&Event::Equivocation { height: Height(0), member: MemberIndex(2), kind: Kind::Ballot }]
    );
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Fetch { .. })), "the second is not fetched");
    let known = machine.known(Height(0)).unwrap();
    assert_eq!((known.headers().count(), known.evidence().count()), (2, 1));
    assert!(matches!(machine.receive(7, &second.encode()).0, Verdict::Known));
}

#[test]
fn the_same_ballot_twice_is_told() {
    let mut machine = joined(0);
    let _ = machine.receive(5, &signed(header("a"), 2).encode());
    let (_, effects) = machine.receive(6, &signed(header("a"), 3).encode());
    let members = [MemberIndex(2), MemberIndex(3)];
    assert_eq!(tells(&effects), [&Event::SameBallot { height: Height(0), members }]);
}

#[test]
fn a_valid_ballot_is_held_and_holdings_follow_when_the_time_is_over() {
    let mut machine = joined(0);
    let (consortium, layout) = (consortium_of(4), layout());
    let round = round(consortium.consortium());
    let bytes = body(&vote(&round, &layout), &layout, "silo", Encodings::Auto);
    let content = BallotHeader { body: Digest::of(&bytes), body_bytes: bytes.len() as u64, claimed_unix_ms: 0 };
    let header = signed(content, 2);
    let two = MemberIndex(2);
    assert_eq!(machine.standing(Height(0), two), None);
    let _ = machine.receive(5, &header.encode());
    assert_eq!(machine.standing(Height(0), two), Some(Standing::Announced));
    let effects = machine.step(6, Input::Stored { height: Height(0), body: content.body });
    assert!(matches!(effects.as_slice(), [Effect::Validate(asked)] if *asked == header), "{effects:?}");
    let ballot = fedprune_mask::Ballot::parse(&bytes, &layout).unwrap();
    let valid = validate(header, &ballot, &round, &layout, &Weights::of(&layout)).unwrap();
    let effects = machine.step(7, Input::Valid(valid));
    assert_eq!(tells(&effects), [&Event::Held { height: Height(0), member: MemberIndex(2) }]);
    assert_eq!(machine.standing(Height(0), two), Some(Standing::Held));
    let over = machine.next_tick_ms().unwrap();
    let effects = machine.step(over, Input::Tick);
    check_order(&effects);
    let statement = effects.iter().find_map(|effect| match effect {
        Effect::Publish(bytes) => crate::Received::<Holdings>::decode(bytes).ok(),
        _ => None,
    });
    assert_eq!(statement.unwrap().claimed().ballots(), [None, None, Some(content.body), None]);
}

#[test]
fn what_no_honest_member_sends_is_refused() {
    let mut machine = joined(0);
    let bad = |machine: &mut Machine, bytes: &[u8]| match machine.receive(5, bytes).0 {
        Verdict::Bad(error) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(bad(&mut machine, b"noise"), MessageError::Wire(_)));
    let consortium = consortium_of(4);
    let id = round(consortium.consortium()).id();
    let far = SignatureChecked::sign(header("a"), Height(9), &key(1), &consortium, id).unwrap();
    assert!(matches!(bad(&mut machine, &far.encode()), MessageError::Height { heights: 1, .. }));
    let huge = signed(BallotHeader { body_bytes: 1 << 30, ..header("a") }, 1);
    assert!(matches!(bad(&mut machine, &huge.encode()), MessageError::BodyTooLarge { .. }));
    let record = Record::Silent.encode();
    assert!(matches!(bad(&mut machine, &record), MessageError::Content("an entry of a log")));
    let other =
        SignatureChecked::sign(header("a"), Height(0), &key(1), &consortium, crate::RoundId(Digest([9; 32]))).unwrap();
    assert!(matches!(bad(&mut machine, &other.encode()), MessageError::Statement(_)));
    assert!(machine.known(Height(0)).is_none_or(|known| known.headers().count() == 0));
}

#[test]
fn votes_of_a_member_are_bounded_whatever_it_sends() {
    let mut machine = joined(0);
    for view in 0..200 {
        let _ = machine.receive(5, &signed(Precommit { view, value: None }, 1).encode());
    }
    assert_eq!(machine.state(Height(0)).unwrap().store.precommits.len(), MAX_VIEWS_A_MEMBER);
    // the latest are kept, and an old one does not come back
    let latest = machine.state(Height(0)).unwrap().store.precommits.keys().map(|(_, view)| *view).max();
    assert_eq!(latest, Some(199));
}

/// A member may propose in any view, as often as it likes: others keep few of them, and write down few.
#[test]
fn proposals_of_a_member_are_bounded_whatever_it_sends() {
    let mut machine = joined(0);
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let abandoned = || crate::Justified::abandoned(Height(0), &consortium, &round);
    let mut send = |view: u32, valid_view: Option<u32>| {
        let content = Proposal { view, value: abandoned().decision().value(), valid_view };
        let proposed = crate::Proposed::new(signed(content, 1), abandoned()).unwrap();
        let (_, effects) = machine.receive(5, &proposed.encode());
        effects.iter().filter(|effect| matches!(effect, Effect::Append(..))).count()
    };
    let mut written = 0;
    for view in 0..200 {
        written += send(view * 1000, None);
        // once it has gone from memory it is not new again
        written += send(8_000, Some(view));
        written += send(view % 20 + 1, Some(0));
    }
    assert!(written <= 2 * MAX_PROPOSALS_A_MEMBER, "{written} records");
    let kept = machine.kept(Height(0)).unwrap();
    assert_eq!(kept.proposals, MAX_PROPOSALS_A_MEMBER);
    assert_eq!(kept.beyond(&Kept::most(4, 1)), None);
    let little = Kept { proposals: 1, ..Kept::default() };
    assert_eq!(kept.beyond(&little), Some(("proposals", MAX_PROPOSALS_A_MEMBER, 1)));
}

#[test]
fn a_member_says_what_it_waits_for() {
    let mut machine = machine_of(0, Vec::new());
    let _ = machine.step(0, Input::Tick);
    let _ = machine.step(1, Input::Recalled { from: MemberIndex(1), messages: Vec::new() });
    let told = machine.shortage().unwrap().to_string();
    assert_eq!(told, "2 of 3 members that tell what they have of ours");
    let mut machine = joined(0);
    let _ = machine.receive(5, &signed(Holdings::none(4), 1).encode());
    let shortage = machine.shortage().unwrap();
    assert_eq!((shortage.what, shortage.found, shortage.needed), ("holdings statements", 1, 3));
    for member in [2, 3] {
        let _ = machine.receive(5, &signed(Prevote { view: 0, value: None }, member).encode());
    }
    let shortage = machine.shortage().unwrap();
    assert_eq!((shortage.what, shortage.found, shortage.needed), ("prevotes of a view", 2, 3));
}

#[test]
fn news_is_what_the_asker_does_not_know() {
    let (mut one, mut other) = (joined(0), joined(1));
    for member in [1, 2, 3] {
        let _ = one.receive(5, &signed(header(&member.to_string()), member).encode());
    }
    let answer = one.answer(MemberIndex(1), &other.question());
    assert_eq!(answer.len(), 3);
    for message in &decode_answer(&encode_answer(&answer)).unwrap() {
        let _ = other.receive(6, message);
    }
    assert!(one.answer(MemberIndex(1), &other.question()).is_empty());
    assert!(!one.misses(&other.question()) && !other.misses(&one.question()));
    let own = Input::Contributed { height: Height(0), body: Digest::of(b"a"), body_bytes: 9, claimed_unix_ms: 1 };
    let _ = one.step(7, own);
    assert!(other.misses(&one.question()) && !one.misses(&other.question()));
    assert!(!other.misses(&Question::Mine));
    let beyond = Question::News { height: Height(u32::MAX), known: vec![[0; 8]] };
    assert!(!other.misses(&beyond), "there is no such height");
    let mine = one.answer(MemberIndex(2), &Question::Mine);
    assert_eq!(mine, [signed(header("2"), 2).encode()]);
}

/// Decided by these members' precommits on everybody holding the ballots of all.
fn settled_by(members: [usize; 3]) -> crate::Settled {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let digests = (0..4).map(|member| Some(Digest::of(&[member]))).collect::<Vec<_>>();
    let statements = [0, 1, 2].map(|member| signed(Holdings::from_digests(digests.clone()), member));
    let justified =
        crate::proposed::Justified::from_holdings(&statements, Height(0), None, &consortium, &round).unwrap();
    let content = Precommit { view: 0, value: Some(justified.decision().value()) };
    let certificate =
        crate::certificate::Certificate::from_precommits(&members.map(|member| signed(content, member)), &consortium);
    crate::Settled::new(certificate.unwrap(), justified).unwrap()
}

#[test]
fn a_decision_is_news_once_whoever_certified_it() {
    let (mut one, mut other) = (joined(0), joined(1));
    let (by_these, by_those) = (settled_by([0, 1, 2]).encode(), settled_by([1, 2, 3]).encode());
    assert_ne!(by_these, by_those);
    let _ = one.receive(5, &by_these);
    assert_eq!(one.answer(MemberIndex(1), &other.question()), [by_these]);
    assert!(other.misses(&one.question()) && !one.misses(&other.question()));
    let _ = other.receive(5, &by_those);
    assert!(!other.misses(&one.question()) && !one.misses(&other.question()));
    assert!(one.answer(MemberIndex(1), &other.question()).is_empty());
    assert!(other.answer(MemberIndex(0), &one.question()).is_empty());
    // everything else is still news
    let late = signed(header("late"), 3).encode();
    let _ = one.receive(6, &late);
    assert_eq!(one.answer(MemberIndex(1), &other.question()), [late]);
}

/// The root of the mask of [`settled_by`]'s decision.
const ROOT: Digest = Digest([5; 32]);

fn result(mask_root: Digest, member: usize) -> SignatureChecked<crate::MaskResult> {
    signed(crate::MaskResult { mask_root }, member)
}

/// The log of member 0, which died when it had counted the ballots and not yet said what they came to; these results of
/// others it had heard before.
fn log_without_our_result(
    others: impl IntoIterator<Item = SignatureChecked<crate::MaskResult>>,
) -> Vec<(Height, Record)> {
    let settled = settled_by([1, 2, 3]);
    let ballots: Vec<_> = settled.decision().ballots().unwrap().contributors().collect();
    let mut log = vec![Record::Heard(settled.encode())];
    log.extend(ballots.iter().map(|(member, body)| Record::Held(*member, *body)));
    log.extend(others.into_iter().map(|result| Record::Heard(result.encode())));
    log.push(Record::Tallied(set_digest(&ballots), ROOT));
    log.into_iter().map(|record| (Height(0), record)).collect()
}

fn answers(machine: &mut Machine) -> Vec<Effect> {
    let answer = |from| Input::Recalled { from: MemberIndex(from), messages: Vec::new() };
    [1, 2].into_iter().flat_map(|from| machine.step(9, answer(from))).collect()
}

fn published(effects: &[Effect]) -> Vec<&Vec<u8>> {
    effects.iter().filter_map(|effect| if let Effect::Publish(bytes) = effect { Some(bytes) } else { None }).collect()
}

/// A crash between the tally and the result must not keep a member from ever saying its result: that others have a
/// quorum here does not mean that they have one there.
#[test]
fn a_result_that_a_crash_kept_back_is_said_and_may_be_the_one_that_others_wait_for() {
    // member 3 lies: it says what is right to member 0, and something else to member 1
    let mut other = joined(1);
    let _ = other.receive(5, &settled_by([0, 1, 2]).encode());
    let ballots = other.ballots(Height(0)).unwrap();
    other.state_mut(Height(0)).valid.extend(ballots.iter().copied());
    let _ = other.step(6, Input::Tallied { height: Height(0), set: set_digest(&ballots), mask_root: ROOT });
    let _ = other.receive(7, &result(Digest([6; 32]), 3).encode());
    let _ = other.receive(7, &result(ROOT, 2).encode());
    // not even the right one of the liar helps it: it is proof, and the first one stays
    let _ = other.receive(7, &result(ROOT, 3).encode());
    assert_eq!(other.current(), Height(0), "two results of the three that it takes");

    let mut machine = machine_of(0, log_without_our_result([1, 2, 3].map(|member| result(ROOT, member))));
    let before = machine.step(0, Input::Tick);
    assert!(published(&before).is_empty(), "nothing is signed before others have told what they have: {before:?}");
    // a quorum stands for the mask, and others may be gone for good: nobody is waited for
    assert!(before.iter().any(|effect| matches!(effect, Effect::Conclude(Outcome::Agreed))), "{before:?}");
    let done = machine.step(1, Input::Concluded);
    assert!(matches!(done.as_slice(), [Effect::Finished(Outcome::Agreed)]), "{done:?}");
    assert!(machine.step(2, Input::Tick).is_empty() && !machine.has_joined() && !machine.is_over());

    let effects = answers(&mut machine);
    check_order(&effects);
    let ours = result(ROOT, 0).encode();
    assert_eq!(published(&effects), [&ours]);
    assert!(tells(&effects).contains(&&Event::Certified { height: Height(0), mask_root: ROOT }), "{effects:?}");
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Conclude(_) | Effect::Finished(_) | Effect::Failed(_)))
    );
    assert!(machine.is_over(), "nothing is left to say");

    let (_, effects) = other.receive(8, &ours);
    assert_eq!(tells(&effects), [&Event::Certified { height: Height(0), mask_root: ROOT }]);
}

#[test]
fn a_result_that_was_said_is_not_said_again_after_a_crash() {
    let mut log = log_without_our_result([1, 2, 3].map(|member| result(ROOT, member)));
    log.push((Height(0), Record::Said(result(ROOT, 0).encode())));
    let mut machine = machine_of(0, log);
    let effects = machine.step(0, Input::Tick);
    assert!(matches!(effects.as_slice(), [Effect::Recall, Effect::Conclude(Outcome::Agreed)]), "{effects:?}");
    let effects = machine.step(1, Input::Concluded);
    assert!(matches!(effects.as_slice(), [Effect::Finished(Outcome::Agreed)]) && machine.is_over(), "{effects:?}");
}

/// What others have of ours is looked at first: a result unlike what our ballots come to now is not followed by another.
#[test]
fn another_result_of_ours_than_what_is_certified_ends_it() {
    let mut log = log_without_our_result([1, 2, 3].map(|member| result(ROOT, member)));
    let mut machine = machine_of(0, log.clone());
    let _ = machine.step(0, Input::Tick);
    let ours = result(Digest([6; 32]), 0).encode();
    let _ = machine.step(1, Input::Recalled { from: MemberIndex(1), messages: vec![ours.clone()] });
    let second = |effects: &[Effect]| {
        let failed = |effect: &Effect| {
            matches!(effect, Effect::Failed(MachineError::SecondStatement { kind: Kind::Result, .. }))
        };
        effects.iter().any(failed)
    };
    let effects = answers(&mut machine);
    assert!(second(&effects) && published(&effects).iter().all(|bytes| **bytes == ours), "{effects:?}");
    // it was known before
    log.push((Height(0), Record::Said(ours.clone())));
    let mut machine = machine_of(0, log);
    let effects = machine.step(0, Input::Tick);
    assert!(matches!(effects.as_slice(), [Effect::Recall]), "nothing is concluded: {effects:?}");
    let effects = answers(&mut machine);
    assert!(second(&effects) && published(&effects).iter().all(|bytes| **bytes == ours), "{effects:?}");
}

/// A text that was not found, say, is nothing that a member could not mend: it signed nothing yet.
#[test]
fn a_member_that_abstained_tries_again_when_it_comes_back() {
    let height = Height(0);
    let computes = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Compute(Height(0))));
    let mut machine = joined(0);
    let effects = machine.step(7, Input::Abstained { height, why: "no text".to_owned() });
    let record = |effect: &Effect| match effect {
        Effect::Append(height, record) => Some((*height, record.clone())),
        _ => None,
    };
    let records: Vec<_> = effects.iter().filter_map(record).collect();
    assert_eq!(records, [(height, Record::Abstained)]);
    assert!(!computes(&machine.step(8, Input::Tick)), "not in the same life");
    let mut machine = machine_of(0, records);
    let _ = machine.step(0, Input::Tick);
    let again = [1, 2, 3]
        .map(|other| computes(&machine.step(1, Input::Recalled { from: MemberIndex(other), messages: Vec::new() })));
    assert!(again.contains(&true));
}

#[test]
fn how_a_ballot_stands_is_told() {
    let height = Height(0);
    let mut machine = joined(0);
    let _ = machine.receive(5, &signed(header("a"), 2).encode());
    let invalid = Input::Invalid { height, member: MemberIndex(2), body: Digest::of(b"a"), why: "bad".to_owned() };
    let _ = machine.step(6, invalid);
    let _ = machine.step(7, Input::Abstained { height, why: "no text".to_owned() });
    assert!(machine.stage().ends_with("without one of ours"), "{}", machine.stage());
    let standing = |machine: &Machine| [0, 1, 2].map(|member| machine.standing(height, MemberIndex(member)));
    assert_eq!(standing(&machine), [Some(Standing::Abstained), None, Some(Standing::Refused)]);
    let mut decided = joined(0);
    let _ = decided.receive(5, &settled_by([0, 1, 2]).encode());
    assert_eq!(standing(&decided), [Some(Standing::Counts); 3]);
    assert_eq!(decided.standing(height, MemberIndex(9)), Some(Standing::LeftOut));
}

#[test]
fn questions_and_answers_are_pinned_and_bounded() {
    let question = Question::News { height: Height(3), known: vec![[1; 8], [2; 8]] };
    let bytes = [question.encode(), Question::Mine.encode(), encode_answer(&[vec![1], vec![]])].concat();
    assert_eq!(Question::decode(&question.encode()).unwrap(), question);
    assert_eq!(Digest::of(&bytes).to_string(), "79bb54d65afa54b80ecd6f151ab2d63a61716929ec78a6c809794751867d1748");
    let many = Question::News { height: Height(0), known: vec![[0; 8]; MAX_KNOWN + 16] };
    assert!(Question::decode(&many.encode()).is_err());
    assert!(decode_answer(&wire::encode(Content::Answer, &vec![vec![0u8; MAX_ANSWER_BYTES]])).is_err());
    // a claim of 2^60 messages
    let mut lying = wire::encode(Content::Answer, &());
    lying.extend((1u64 << 60).to_le_bytes());
    assert!(decode_answer(&lying).is_err());
}

#[test]
fn a_message_claims_what_it_is() {
    let bytes = signed(header("a"), 2).encode();
    assert_eq!(claims(&bytes).unwrap(), (Content::BallotHeader, Some(Height(0)), Some(MemberIndex(2))));
    let read = Message::read(&bytes, &consortium_of(4), &round(consortium_of(4).consortium())).unwrap();
    assert_eq!((read.height(), read.member()), (Height(0), Some(MemberIndex(2))));
}

#[test]
fn logs_of_other_rounds_are_refused() {
    let consortium = consortium_of(4);
    let setup = || Setup {
        consortium: consortium.clone(),
        round: round(consortium.consortium()),
        layout: layout(),
        key: key(0),
    };
    let foreign =
        SignatureChecked::sign(header("a"), Height(0), &key(1), &consortium, crate::RoundId(Digest([9; 32]))).unwrap();
    let log = vec![(Height(0), Record::Heard(foreign.encode()))];
    assert!(matches!(Machine::recover(setup(), Box::new(Idle), log), Err(SetupError::Log(_))));
    let log = vec![(Height(5), Record::Silent)];
    assert!(matches!(Machine::recover(setup(), Box::new(Idle), log), Err(SetupError::Log(_))));
    let stranger = Setup { key: key(9), ..setup() };
    assert!(matches!(Machine::recover(stranger, Box::new(Idle), Vec::new()), Err(SetupError::NotAMember(_))));
}

/// A liar shows two ballots to one member and a third to all others, who hold it: it may count, so its header stays.
#[test]
fn the_header_of_a_ballot_that_others_hold_is_kept_whatever_came_before() {
    let mut machine = joined(0);
    for text in ["a", "b"] {
        assert!(matches!(machine.receive(5, &signed(header(text), 2).encode()).0, Verdict::New));
    }
    let third = signed(header("c"), 2);
    let headers = |machine: &Machine| machine.known(Height(0)).unwrap().headers().count();
    let (verdict, effects) = machine.receive(6, &third.encode());
    assert!(matches!(verdict, Verdict::Known) && effects.is_empty(), "nobody holds it: {effects:?}");
    assert_eq!(headers(&machine), 2);
    let holds = Holdings::from_digests(vec![None, None, Some(third.content().body), None]);
    let _ = machine.receive(7, &signed(holds, 1).encode());
    let (verdict, effects) = machine.receive(8, &third.encode());
    assert!(matches!(verdict, Verdict::New));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Append(..))), "{effects:?}");
    assert!(machine.header(Height(0), MemberIndex(2), third.content().body).is_some());
    // one for each ballot, however often its member signs it
    for claimed_unix_ms in 0..20 {
        let _ = machine.receive(9, &signed(BallotHeader { claimed_unix_ms, ..*third.content() }, 2).encode());
    }
    assert_eq!(headers(&machine), 3);
    assert_eq!(machine.known(Height(0)).unwrap().evidence().count(), 1);
    // who hears of the proof first tells it all the same, once
    let mut other = joined(1);
    let evidence: Vec<Vec<u8>> = machine.known(Height(0)).unwrap().evidence().map(crate::Evidence::encode).collect();
    let told = [&Event::Equivocation { height: Height(0), member: MemberIndex(2), kind: Kind::Ballot }];
    assert_eq!(tells(&other.receive(5, &evidence[0]).1), told);
    assert!(other.receive(6, &third.encode()).1.is_empty());
}

/// Hands on what it is told.
#[derive(Clone, Default)]
struct Told(std::sync::Arc<std::sync::Mutex<Vec<crate::agreement::Input>>>);

impl Engine for Told {
    fn resume(&self, _: Height, _: &[Vec<u8>], _: bool) -> Result<(Box<dyn Agreement>, Vec<Action>), AgreementError> {
        Ok((Box::new(self.clone()), Vec::new()))
    }

    fn votes(&self, _: Height, _: &[Vec<u8>]) -> Vec<Repeated> {
        Vec::new()
    }
}

impl Agreement for Told {
    fn step(&mut self, input: crate::agreement::Input) -> Result<Vec<Action>, AgreementError> {
        self.0.lock().unwrap().push(input);
        Ok(Vec::new())
    }

    fn view(&self) -> u32 {
        0
    }
}

/// A quorum that others saw may rest on whichever prevote of an equivocator we heard second.
#[test]
fn the_agreement_is_told_of_second_prevotes_however_they_come() {
    let votes =
        |member| ["a", "b"].map(|text| signed(Prevote { view: 0, value: Some(Digest::of(text.as_bytes())) }, member));
    let evidence = |[one, other]: [SignatureChecked<Prevote>; 2]| {
        crate::Evidence::Prevote(crate::evidence::Equivocation::between(&one, &other).unwrap()).encode()
    };
    let (consortium, told) = (consortium_of(4), Told::default());
    let setup = || Setup {
        consortium: consortium.clone(),
        round: round(consortium.consortium()),
        layout: layout(),
        key: key(0),
    };
    let count = || {
        told.0.lock().unwrap().drain(..).filter(|input| matches!(input, crate::agreement::Input::Prevote(_))).count()
    };
    let join = |records| {
        let mut machine = Machine::recover(setup(), Box::new(told.clone()), records).unwrap();
        for other in 1..4 {
            let _ = machine.step(1, Input::Recalled { from: MemberIndex(other), messages: Vec::new() });
        }
        machine
    };
    // before the agreement starts: two of one member, and evidence against another, which makes f + 1 voters
    let mut machine = join(Vec::new());
    let mut log = Vec::new();
    let mut hear = |machine: &mut Machine, bytes: &[u8]| {
        for effect in machine.receive(5, bytes).1 {
            if let Effect::Append(height, record) = effect {
                log.push((height, record));
            }
        }
    };
    for vote in votes(1) {
        hear(&mut machine, &vote.encode());
    }
    assert_eq!(count(), 0);
    hear(&mut machine, &evidence(votes(2)));
    assert_eq!(count(), 4);
    // and afterwards
    for vote in votes(3) {
        hear(&mut machine, &vote.encode());
    }
    assert_eq!(count(), 2);
    // others get them with the news, and a restart does not lose what is proof
    let news = machine.answer(MemberIndex(3), &Question::News { height: Height(0), known: Vec::new() });
    let prevotes = news.iter().filter(|bytes| matches!(wire::content_of(bytes), Ok(Some(Content::Prevote))));
    assert_eq!(prevotes.count(), 6);
    drop(machine);
    let _ = join(log);
    assert!(count() >= 4, "both of 2, and the second ones of 1 and 3");
}
