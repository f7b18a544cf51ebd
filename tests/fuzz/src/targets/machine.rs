//! One member's state machine with its engine, and everything that may happen to it: others that say whatever their keys
//! can sign, answers in any order, time, and crashes that take away what was not flushed.
//!
//! All three others may lie, two more than a consortium of four tolerates, so what they can make it believe is not looked
//! at. What must hold all the same: it does not panic, it signs nothing twice, nothing leaves before it is durable, it
//! comes back from its log, and it says nothing more once it has failed.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_engine::MalachiteEngine;
use fedprune_federation::evidence::Equivocation;
use fedprune_federation::machine::{
    Effect, Input, Machine, Question, Record, Setup, Verdict, decode_answer, encode_answer,
};
use fedprune_federation::round::TallyBy;
use fedprune_federation::signing::Kind;
use fedprune_federation::statement::Statement;
use fedprune_federation::wire::{Content, content_of};
use fedprune_federation::{
    BallotHeader, Certificate, Evidence, Height, Holdings, Justified, MaskResult, MemberIndex, Precommit, Prevote,
    Proposal, Proposed, Received, ReceivedProposed, Settled, SignatureChecked,
};
use fedprune_mask::Digest;
use fedprune_testnet::simulator::World;

use super::federation::WORLDS;
use crate::choices::Choices;

/// Stands for the root of the mask that a set of ballots comes to: the machine only compares it.
fn stand_in(set: Digest) -> Digest {
    Digest::of(&[b"fuzzed mask".as_slice(), &set.0].concat())
}

/// The member that is looked at.
const ME: usize = 0;
/// Steps that one input may take.
const MOST_STEPS: usize = 200;
/// Decisions that are known at once.
const MOST_DECISIONS: usize = 8;

/// What the machine waits for.
enum Work {
    Recall,
    Compute(Height),
    Fetch(Height, Digest),
    Validate(SignatureChecked<BallotHeader>),
    Tally(Height, Digest),
    Conclude,
}

/// The machine and all that surrounds it.
struct Seat<'a> {
    world: &'a World,
    machine: Machine,
    now_ms: u64,
    /// The log: all of it, and how much of it is durable.
    log: Vec<(Height, Vec<u8>)>,
    durable: usize,
    work: Vec<Work>,
    /// What it signed and sent, by kind, height and view.
    said: BTreeMap<(Kind, Height, u32), Vec<u8>>,
    /// Bodies of each height and member, two of each.
    bodies: BTreeMap<(Height, usize, usize), Vec<u8>>,
    decisions: Vec<(Height, Justified)>,
    sent: Vec<Vec<u8>>,
    /// What somebody else signed with its key, which it may pass on.
    cloned: BTreeSet<Vec<u8>>,
    failed: bool,
}

fn start(world: &World, log: &[(Height, Vec<u8>)]) -> Machine {
    let (consortium, round, key) = (world.consortium.clone(), world.round.clone(), world.key(ME));
    let engine = MalachiteEngine::new(consortium.clone(), &round, key.clone()).expect("key and round are of a member");
    let setup = Setup { consortium, round, layout: world.layout().clone(), key };
    let mut records: Vec<&(Height, Vec<u8>)> = log.iter().collect();
    // as a log gives them back
    records.sort_by_key(|(height, _)| *height);
    let records = records.into_iter().map(|(height, bytes)| (*height, Record::decode(bytes).expect("it was written")));
    Machine::recover(setup, Box::new(engine), records).expect("a member comes back from its log")
}

/// What happens to a member, step by step. Taken is what leaves it able to go on.
pub fn machine(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let world = &WORLDS[choices.below(WORLDS.len())];
    let mut seat = Seat {
        machine: start(world, &[]),
        world,
        now_ms: 0,
        log: Vec::new(),
        durable: 0,
        work: Vec::new(),
        said: BTreeMap::new(),
        bodies: BTreeMap::new(),
        decisions: Vec::new(),
        sent: Vec::new(),
        cloned: BTreeSet::new(),
        failed: false,
    };
    seat.step(Input::Tick);
    for _ in 0..MOST_STEPS {
        if choices.is_empty() {
            break;
        }
        seat.happen(&mut choices);
    }
    // whatever happened, it comes back
    seat.log.truncate(seat.durable);
    let again = start(world, &seat.log);
    // who still joins writes down what it hears and goes on only once it has joined; a log is read to its end at once
    if !seat.machine.has_joined() {
        seat.answer(Work::Recall, true);
    }
    assert!(again.current() <= seat.machine.current(), "a log knows no more than who wrote it");
    !seat.failed
}

impl Seat<'_> {
    fn step(&mut self, input: Input) {
        let effects = self.machine.step(self.now_ms, input);
        self.carry_out(effects);
    }

    fn hear(&mut self, bytes: &[u8]) {
        let (verdict, effects) = self.machine.receive(self.now_ms, bytes);
        if matches!(verdict, Verdict::Bad(_) | Verdict::Later) {
            assert!(effects.is_empty(), "{verdict:?} changes nothing");
        }
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Append(height, record) => self.log.push((height, record.encode())),
                Effect::Flush => self.durable = self.log.len(),
                Effect::Publish(bytes) => self.publish(bytes),
                Effect::Recall => self.work.push(Work::Recall),
                Effect::Compute(height) => self.work.push(Work::Compute(height)),
                Effect::Fetch { height, body, .. } => self.work.push(Work::Fetch(height, body)),
                Effect::Validate(header) => self.work.push(Work::Validate(header)),
                Effect::Tally { height, set, .. } => self.work.push(Work::Tally(height, set)),
                Effect::Conclude(_) => self.work.push(Work::Conclude),
                Effect::Tell(_) | Effect::Finished(_) => {}
                Effect::Failed(_) => self.failed = true,
            }
        }
        assert!(self.machine.next_tick_ms().is_none() || !self.failed, "who has failed waits for nothing");
    }

    fn publish(&mut self, bytes: Vec<u8>) {
        assert_eq!(self.durable, self.log.len(), "what was written is flushed before anything is sent");
        if self.cloned.contains(&bytes) {
            return;
        }
        match content_of(&bytes).expect("it sends what it can read") {
            Some(Content::BallotHeader) => self.says::<BallotHeader>(&bytes, |_| 0),
            Some(Content::Holdings) => self.says::<Holdings>(&bytes, |_| 0),
            Some(Content::MaskResult) => self.says::<MaskResult>(&bytes, |_| 0),
            Some(Content::Prevote) => self.says::<Prevote>(&bytes, |vote| vote.view),
            Some(Content::Precommit) => self.says::<Precommit>(&bytes, |vote| vote.view),
            Some(Content::Proposed) => {
                let received = ReceivedProposed::decode(&bytes).expect("it sends what it can read");
                if received.claimed_member().as_usize() == ME {
                    let proposed = received.check(&self.world.consortium, &self.world.round).expect("a sound proposal");
                    let (height, view) = (proposed.proposal().height(), proposed.proposal().content().view);
                    self.is_durable(height, &bytes);
                    self.fills((Kind::Proposal, height, view), proposed.proposal().encode());
                    self.know(height, proposed.justified().clone());
                }
            }
            Some(Content::Evidence | Content::Settled) => {}
            other => panic!("it sends {other:?}"),
        }
    }

    fn says<T: Statement>(&mut self, bytes: &[u8], view: impl Fn(&T) -> u32) {
        let received = Received::<T>::decode(bytes).expect("it sends what it can read");
        if received.claimed_member().as_usize() != ME {
            return;
        }
        let statement = received.check(&self.world.consortium, self.world.round.id()).expect("it signs soundly");
        let height = statement.height();
        self.is_durable(height, bytes);
        let slot = (T::KIND, height, view(statement.content()));
        if let Some(before) = self.said.get(&slot).filter(|_| T::KIND == Kind::Holdings) {
            let before = Received::<T>::decode(before).expect("it was sent");
            assert!(!before.claimed().conflicts_with(statement.content()), "it holds two things at height {height}");
            self.said.remove(&slot);
        }
        self.fills(slot, bytes.to_vec());
    }

    fn is_durable(&self, height: Height, bytes: &[u8]) {
        assert!(!self.failed, "who has failed signs nothing more");
        // a vote that the agreement repeats may be in its journal only, behind the byte that says what it is
        let says = |record: Record| match record {
            Record::Said(said) => said == bytes,
            Record::Journal(entry) => entry.get(1..) == Some(bytes),
            _ => false,
        };
        let mut written = self.log[..self.durable].iter().filter(|(of, _)| *of == height);
        let is_durable = written.any(|(_, record)| Record::decode(record).is_ok_and(says));
        assert!(is_durable, "what it signs is durable before it leaves: {:?} at height {height}", content_of(bytes));
    }

    fn fills(&mut self, slot: (Kind, Height, u32), signed: Vec<u8>) {
        let before = self.said.insert(slot, signed.clone());
        assert!(before.is_none_or(|before| before == signed), "it signs two of {} at height {}", slot.0, slot.1);
    }

    fn know(&mut self, height: Height, justified: Justified) {
        if self.decisions.len() == MOST_DECISIONS {
            self.decisions.remove(0);
        }
        self.decisions.push((height, justified));
    }

    fn body(&mut self, height: Height, member: usize, which: usize) -> Vec<u8> {
        let world = self.world;
        let make = || world.body(&format!("text {which} of {member}"), height).to_vec();
        self.bodies.entry((height, member, which)).or_insert_with(make).clone()
    }

    /// The body of this digest, if it is one of ours.
    fn body_of(&self, digest: Digest) -> Option<Vec<u8>> {
        self.bodies.values().find(|body| Digest::of(body) == digest).cloned()
    }

    /// The one thing that answers what the machine waits for; or the other, where there are two.
    fn answer(&mut self, work: Work, well: bool) {
        match work {
            Work::Recall => {
                for from in [1, 2, 3].map(MemberIndex) {
                    self.step(Input::Recalled { from, messages: Vec::new() });
                }
            }
            Work::Compute(height) if well => {
                let body = self.body(height, ME, 0);
                let (digest, body_bytes) = (Digest::of(&body), body.len() as u64);
                self.step(Input::Contributed { height, body: digest, body_bytes, claimed_unix_ms: self.now_ms });
            }
            Work::Compute(height) => self.step(Input::Abstained { height, why: "no text".to_owned() }),
            Work::Fetch(height, body) if self.body_of(body).is_some() => self.step(Input::Stored { height, body }),
            // nobody has it
            Work::Fetch(height, body) => self.work.push(Work::Fetch(height, body)),
            Work::Validate(header) => {
                let (height, member, body) = (header.height(), header.member(), header.content().body);
                let bytes = self.body_of(body).unwrap_or_default();
                let input = match self.world.validate(header, &bytes) {
                    Ok(valid) if well => Input::Valid(valid),
                    Ok(_) => Input::Invalid { height, member, body, why: "it is not liked".to_owned() },
                    Err(why) => Input::Invalid { height, member, body, why },
                };
                self.step(input);
            }
            Work::Tally(height, set) => {
                let mask_root = if well { stand_in(set) } else { Digest::of(b"a broken tally") };
                self.step(Input::Tallied { height, set, mask_root });
            }
            Work::Conclude => self.step(Input::Concluded),
        }
    }

    /// What an input says next.
    fn happen(&mut self, choices: &mut Choices<'_>) {
        match choices.below(20) {
            0 | 1 => self.time(choices),
            2..5 => {
                // everything, answered well
                for work in std::mem::take(&mut self.work) {
                    self.answer(work, true);
                }
            }
            5 => {
                if !self.work.is_empty() {
                    let index = choices.below(self.work.len());
                    let work = self.work.remove(index);
                    self.answer(work, choices.below(4) != 0);
                }
            }
            6 => self.headers(choices),
            7 => self.holdings(choices),
            8 => self.decide(choices),
            9 | 10 => self.propose(choices),
            11 => self.vote::<Prevote>(choices, |view, value| Prevote { view, value }),
            12 => self.vote::<Precommit>(choices, |view, value| Precommit { view, value }),
            13 => self.results(choices),
            14 => self.settle(choices),
            15 => self.equivocate(choices),
            16 => self.crash(choices),
            17 => self.noise(choices),
            18 => self.questions(choices),
            _ => self.clone_of_me(choices),
        }
    }

    fn time(&mut self, choices: &mut Choices<'_>) {
        let next = self.machine.next_tick_ms().unwrap_or(0).saturating_sub(self.now_ms);
        self.now_ms += [next, next, 1, 250, 1_000, 6_000, 100_000_000, 0][choices.below(8)];
        self.step(Input::Tick);
    }

    fn height(&self, choices: &mut Choices<'_>) -> Height {
        let current = self.machine.current().0.min(self.machine.heights() - 1);
        Height([current, current, current, current + 1, 0, 1][choices.below(6)])
    }

    /// One of the others, or all of them.
    fn others(choices: &mut Choices<'_>) -> Vec<usize> {
        match choices.below(8) {
            0..4 => vec![1, 2, 3],
            other => vec![1 + other % 3],
        }
    }

    fn send(&mut self, bytes: Vec<u8>) {
        self.hear(&bytes);
        if self.sent.len() < 64 {
            self.sent.push(bytes);
        }
    }

    fn headers(&mut self, choices: &mut Choices<'_>) {
        let (height, which) = (self.height(choices), choices.below(4) / 3);
        if height.0 >= self.machine.heights() {
            return;
        }
        for member in Self::others(choices) {
            let body = self.body(height, member, which);
            let body_bytes = if choices.below(16) == 15 { choices.number() } else { body.len() as u64 };
            let content = BallotHeader { body: Digest::of(&body), body_bytes, claimed_unix_ms: 1 };
            if let Some(bytes) = self.signed(member, content, height) {
                self.send(bytes);
            }
        }
    }

    /// A signed statement, if anybody can sign it.
    fn signed<T: Statement>(&self, member: usize, content: T, height: Height) -> Option<Vec<u8>> {
        let (consortium, round) = (&self.world.consortium, self.world.round.id());
        let key = self.world.key(member);
        SignatureChecked::sign(content, height, &key, consortium, round).ok().map(|statement| statement.encode())
    }

    /// Which body of each member somebody holds: the first of all, unless the input says otherwise.
    fn held(&mut self, choices: &mut Choices<'_>, height: Height) -> Holdings {
        let which = if choices.below(4) == 0 { choices.byte() } else { 0 };
        let digest = |member: usize| match which >> (2 * member) & 3 {
            0 => Some(Digest::of(&self.body(height, member, 0))),
            1 => Some(Digest::of(&self.body(height, member, 1))),
            _ => None,
        };
        Holdings::from_digests((0..4).map(digest).collect())
    }

    fn holdings(&mut self, choices: &mut Choices<'_>) {
        let height = self.height(choices);
        if height.0 >= self.machine.heights() {
            return;
        }
        for member in Self::others(choices) {
            let held = self.held(choices, height);
            if let Some(bytes) = self.signed(member, held, height) {
                self.send(bytes);
            }
        }
    }

    /// Something that the others may agree on.
    fn decide(&mut self, choices: &mut Choices<'_>) {
        let height = self.height(choices);
        if height.0 >= self.machine.heights() {
            return;
        }
        let (consortium, round) = (&self.world.consortium, &self.world.round);
        if choices.below(6) == 5 {
            let abandoned = Justified::abandoned(height, consortium, round);
            return self.know(height, abandoned);
        }
        let held = self.held(choices, height);
        let statements = [1, 2, 3].map(|member| self.world.sign(member, held.clone(), height));
        let elected = round.terms().tally == TallyBy::Elected;
        let manifest = fedprune_federation::Manifest::from_holdings(&statements, height, consortium, round);
        let Ok(manifest) = manifest else { return };
        let ballots: Vec<_> = manifest.contributors().collect();
        let set = fedprune_federation::machine::set_digest(&ballots);
        let root = if choices.below(8) == 7 { Digest::of(b"a lie") } else { stand_in(set) };
        let justified = Justified::from_holdings(&statements, height, elected.then_some(root), consortium, round);
        if let Ok(justified) = justified {
            self.know(height, justified);
        }
    }

    fn decision(&self, choices: &mut Choices<'_>) -> Option<(Height, Justified)> {
        let back = choices.below(MOST_DECISIONS * 2).saturating_sub(MOST_DECISIONS);
        let index = self.decisions.len().checked_sub(1 + back)?;
        Some(self.decisions[index].clone())
    }

    fn view(&self, choices: &mut Choices<'_>) -> u32 {
        [0, 0, 0, 1, 2, 3, 1 << 30, u32::MAX][choices.below(8)]
    }

    fn propose(&mut self, choices: &mut Choices<'_>) {
        let Some((height, justified)) = self.decision(choices) else { return };
        let view = self.view(choices);
        let turn = self.world.aggregator(height, view);
        let member = if turn == ME || choices.below(4) == 0 { 1 + choices.below(3) } else { turn };
        let valid_view = [None, None, Some(0), Some(1), view.checked_sub(1)][choices.below(5)];
        let content = Proposal { view, value: justified.decision().value(), valid_view };
        let (consortium, round) = (&self.world.consortium, self.world.round.id());
        let proposal = SignatureChecked::sign(content, height, &self.world.key(member), consortium, round);
        if let Ok(proposed) = proposal.map(|proposal| Proposed::new(proposal, justified)) {
            self.send(proposed.expect("it is of the same decision").encode());
        }
    }

    fn vote<T: Statement>(&mut self, choices: &mut Choices<'_>, vote: impl Fn(u32, Option<Digest>) -> T) {
        let view = self.view(choices);
        let (height, value) = match self.decision(choices) {
            Some((height, justified)) => (height, Some(justified.decision().value())),
            None => (self.height(choices), None),
        };
        let value = if choices.below(6) == 5 { None } else { value };
        for member in Self::others(choices) {
            if let Some(bytes) = self.signed(member, vote(view, value), height) {
                self.send(bytes);
            }
        }
    }

    fn results(&mut self, choices: &mut Choices<'_>) {
        let height = self.height(choices);
        let ours = self.machine.mask_root(height);
        let mask_root = ours.filter(|_| choices.below(4) != 3).unwrap_or(Digest::of(b"another mask"));
        for member in Self::others(choices) {
            if let Some(bytes) = self.signed(member, MaskResult { mask_root }, height) {
                self.send(bytes);
            }
        }
    }

    /// What q of the others settle without this member.
    fn settle(&mut self, choices: &mut Choices<'_>) {
        let Some((height, justified)) = self.decision(choices) else { return };
        let content = Precommit { view: choices.below(3) as u32, value: Some(justified.decision().value()) };
        let votes = [1, 2, 3].map(|member| self.world.sign(member, content, height));
        let certificate = Certificate::from_precommits(&votes, &self.world.consortium).expect("q of one value");
        self.send(Settled::new(certificate, justified).expect("it is of the same decision").encode());
    }

    /// Two statements of one member that contradict each other, and the proof.
    fn equivocate(&mut self, choices: &mut Choices<'_>) {
        let (height, member) = (self.height(choices), 1 + choices.below(3));
        if height.0 >= self.machine.heights() {
            return;
        }
        let view = choices.below(3) as u32;
        let world = self.world;
        let [one, other] = [b"one".as_slice(), b"other"].map(Digest::of);
        let evidence = match choices.below(4) {
            0 => {
                let vote = |value| world.sign(member, Prevote { view, value }, height);
                Equivocation::between(&vote(Some(one)), &vote(None)).map(Evidence::Prevote)
            }
            1 => {
                let vote = |value| world.sign(member, Precommit { view, value }, height);
                Equivocation::between(&vote(Some(one)), &vote(Some(other))).map(Evidence::Precommit)
            }
            2 => {
                let result = |mask_root| world.sign(member, MaskResult { mask_root }, height);
                Equivocation::between(&result(one), &result(other)).map(Evidence::Result)
            }
            _ => {
                let header = |body| {
                    let content = BallotHeader { body, body_bytes: 1, claimed_unix_ms: 1 };
                    world.sign(member, content, height)
                };
                Equivocation::between(&header(one), &header(other)).map(Evidence::Ballot)
            }
        };
        if let Some(evidence) = evidence {
            self.send(evidence.encode());
        }
    }

    /// The process dies and starts again; what was not flushed may be lost.
    fn crash(&mut self, choices: &mut Choices<'_>) {
        let unflushed = self.log.len() - self.durable;
        let kept = choices.below(unflushed.min(255) + 1);
        self.log.truncate(self.durable + kept);
        self.durable = self.log.len();
        self.work.clear();
        self.now_ms = 0;
        self.failed = false;
        self.machine = start(self.world, &self.log);
        self.step(Input::Tick);
    }

    /// Bytes that are no message, or one that is damaged, or one said before.
    fn noise(&mut self, choices: &mut Choices<'_>) {
        if self.sent.is_empty() {
            let length = choices.below(64);
            let bytes = choices.bytes(length).to_vec();
            return self.hear(&bytes);
        }
        let index = choices.below(self.sent.len());
        let mut bytes = self.sent[index].clone();
        for _ in 0..choices.below(3) {
            let at = choices.number() as usize % bytes.len();
            bytes[at] ^= choices.byte();
        }
        self.hear(&bytes);
    }

    /// What others ask, and what they answer.
    fn questions(&mut self, choices: &mut Choices<'_>) {
        let known: Vec<[u8; 8]> = (0..choices.below(4)).map(|_| choices.number().to_le_bytes()).collect();
        let question = match choices.below(4) {
            0 => Question::Mine,
            1 => Question::News { height: Height(choices.number() as u32), known },
            2 => Question::News { height: self.height(choices), known },
            _ => Question::Finished { known },
        };
        let from = MemberIndex(choices.below(6) as u16);
        let _ = self.machine.misses(&question);
        let answer = encode_answer(&self.machine.answer(from, &question));
        for message in decode_answer(&answer).expect("an answer is read") {
            assert!(content_of(&message).is_ok_and(|content| content.is_some()), "it answers with messages");
        }
        let question = self.machine.question();
        assert_eq!(Question::decode(&question.encode()).ok(), Some(question));
    }

    /// Somebody else has this member's key, and others tell it so.
    fn clone_of_me(&mut self, choices: &mut Choices<'_>) {
        let height = self.height(choices);
        if height.0 >= self.machine.heights() || choices.below(4) != 0 {
            return;
        }
        let body = self.body(height, ME, choices.below(2));
        let content = BallotHeader { body: Digest::of(&body), body_bytes: body.len() as u64, claimed_unix_ms: 2 };
        let vote = Prevote { view: self.view(choices), value: None };
        let bytes =
            if choices.below(2) == 0 { self.signed(ME, content, height) } else { self.signed(ME, vote, height) };
        let Some(bytes) = bytes else { return };
        self.cloned.insert(bytes.clone());
        if choices.below(2) == 0 {
            self.hear(&bytes);
        } else {
            self.step(Input::Recalled { from: MemberIndex(1 + choices.below(3) as u16), messages: vec![bytes] });
        }
    }
}
