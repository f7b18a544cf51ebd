//! The run of one scenario: events in order of time, effects of machines carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use fedprune_engine::MalachiteEngine;
use fedprune_federation::machine::{Effect, Input, Machine, Question, Setup, Verdict, decode_answer, encode_answer};
use fedprune_federation::{BallotHeader, Height, MemberIndex, SignatureChecked};
use fedprune_mask::Digest;

use super::byzantine::Byzantine;
use super::clock::Clock;
use super::member::{FETCH_PATIENCE_MS, Member, SYNC_MS};
use super::network::Network;
use super::random::Random;
use super::scenario::Scenario;
use super::seat::{Seat, Sending};
use super::story::Story;
use super::watch::Watch;
use super::world::{Body, World};
use super::{Report, Violation};

/// How long members go on once all honest ones are done, so that the last ones hear what others know.
const LINGER_MS: u64 = 10_000;
/// How long a member stays down after a crash, at most.
const MOST_DOWN_MS: u64 = 4_000;

/// What travels.
#[derive(Debug, Clone)]
enum Packet {
    Gossip(Rc<[u8]>),
    Ask(Question),
    /// The answer to a question, and whether that was for what the asker itself signed.
    Answer(Rc<[u8]>, bool),
    AskBody(Digest),
    Body(Digest, Body),
}

/// What a member is doing beside its loop.
#[derive(Debug)]
enum Work {
    Compute(Height),
    Validate(SignatureChecked<BallotHeader>),
    Tally(Height, Digest),
    Conclude,
}

#[derive(Debug)]
enum Event {
    Start(usize),
    Arrive { from: usize, to: usize, packet: Packet },
    Wake(usize, u64),
    Sync(usize, u64),
    AskBody(usize, u64, Digest),
    Done(usize, u64, Work),
}

/// Members that lie.
pub type Liars = BTreeMap<usize, Box<dyn Byzantine>>;

/// Runs a round to its end.
///
/// # Errors
/// [`Violation`] as soon as an honest member does what it may not, or if the round does not end in time.
pub fn simulate(world: &World, scenario: &Scenario) -> Result<Report, Box<Violation>> {
    let liars = scenario.liars.iter().map(|(member, lie)| (*member, lie.liar()));
    simulate_with(world, scenario, liars.collect())
}

/// Runs a round with these liars, instead of those in the scenario, to its end.
///
/// # Errors
/// As [`simulate`].
pub fn simulate_with(world: &World, scenario: &Scenario, liars: Liars) -> Result<Report, Box<Violation>> {
    let mut run = Run::new(world, scenario, liars);
    run.go().map_err(|what| {
        let before = run.story.tell(world);
        Box::new(Violation { scenario: scenario.clone(), at_ms: run.clock.now_ms(), what, before })
    })
}

struct Run<'a> {
    world: &'a World,
    scenario: &'a Scenario,
    clock: Clock<Event>,
    network: Network,
    members: Vec<Member>,
    watch: Watch<'a>,
    work: Random,
    crash: Random,
    lies: Random,
    crashes: u32,
    events: u64,
    trace: Digest,
    story: Story,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, scenario: &'a Scenario, mut liars: Liars) -> Self {
        let random = |name| Random::named(scenario.seed, name);
        let watch = Watch::new(world, &liars.keys().copied().collect());
        Self {
            world,
            scenario,
            clock: Clock::new(),
            network: Network::new(scenario.faults.clone(), random("network")),
            members: (0..world.members()).map(|member| Member::new(liars.remove(&member))).collect(),
            watch,
            work: random("work"),
            crash: random("crash"),
            lies: random("lies"),
            crashes: 0,
            events: 0,
            trace: Digest([0; 32]),
            story: Story::default(),
        }
    }

    fn go(&mut self) -> Result<Report, String> {
        for member in 0..self.members.len() {
            let delay_ms = self.work.below(self.scenario.latest_start_ms + 1);
            self.clock.plan(delay_ms, Event::Start(member));
        }
        let mut finished_ms = None;
        while let Some(event) = self.clock.next() {
            let now_ms = self.clock.now_ms();
            if finished_ms.is_none() && self.all_finished() {
                finished_ms = Some(now_ms);
            }
            match finished_ms {
                Some(since) if now_ms >= since + LINGER_MS => return self.report(since),
                None if now_ms > self.scenario.limit_ms => return Err(self.stalled()),
                _ => {}
            }
            self.events += 1;
            self.handle(event)?;
        }
        Err("nothing happens any more".to_owned())
    }

    fn honest(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(member, _)| self.watch.is_honest(*member))
    }

    fn all_finished(&self) -> bool {
        self.honest().all(|(_, member)| member.finished.is_some())
    }

    fn stalled(&self) -> String {
        let stage = |(member, state): (usize, &Member)| {
            let stage = match (&state.machine, state.finished) {
                (_, Some(outcome)) => format!("{outcome:?}"),
                (None, None) => "down".to_owned(),
                (Some(machine), None) if !machine.has_joined() => "joining".to_owned(),
                (Some(machine), None) => format!("at height {}, {}", machine.current(), machine.stage()),
            };
            format!("member {member}: {stage}")
        };
        format!("the round does not end: {}", self.honest().map(stage).collect::<Vec<_>>().join("; "))
    }

    fn report(&mut self, finished_ms: u64) -> Result<Report, String> {
        let outcomes: Vec<_> = self.honest().filter_map(|(_, member)| member.finished).collect();
        let Some(outcome) = outcomes.first().copied() else { return Err("nobody is honest".to_owned()) };
        if outcomes.iter().any(|other| *other != outcome) {
            return Err(format!("members end differently: {outcomes:?}"));
        }
        let (mut evidence, mut proposals) = (BTreeMap::new(), BTreeMap::new());
        for (index, member) in self.honest() {
            let (mut against, mut proposed) = (BTreeSet::new(), BTreeSet::new());
            for height in (0..self.world.heights()).map(Height) {
                let Some(known) = member.machine.as_ref().and_then(|machine| machine.known(height)) else { continue };
                for one in known.evidence() {
                    against.insert((height, one.slot().kind, one.slot().place.member.as_usize()));
                }
                for (proposal, _) in known.proposals() {
                    proposed.insert((height, proposal.member().as_usize(), proposal.content().value));
                }
            }
            evidence.insert(index, against);
            proposals.insert(index, proposed);
        }
        Ok(Report {
            trace: self.trace,
            outcome,
            decided: self.watch.settled().map(|(height, settled)| (height, settled.clone())).collect(),
            mask_roots: self.watch.roots().clone(),
            evidence,
            proposals,
            bad_proposals: self.watch.bad_proposals.clone(),
            refused: self.watch.refused.clone(),
            same_ballots: self.watch.same_ballots.clone(),
            crashes: self.crashes,
            events: self.events,
            finished_ms,
        })
    }

    /// Adds to the trace and to the story.
    fn mark(&mut self, member: usize, what: &str, message: Option<&Rc<[u8]>>) {
        let now_ms = self.clock.now_ms();
        let bytes: &[u8] = message.map_or(&[], |message| message);
        let parts = [&self.trace.0, &now_ms.to_le_bytes()[..], what.as_bytes(), &[member as u8], bytes];
        self.trace = Digest::of(&parts.concat());
        if !what.ends_with(" in 0 messages") {
            self.story.note(now_ms, member, what.to_owned(), message.map(Rc::clone));
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Start(member) => self.start(member),
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Wake(member, life) if self.lives(member, life) => {
                self.members[member].wake_at_ms = None;
                self.step(member, Input::Tick)
            }
            Event::Sync(member, life) if self.lives(member, life) => {
                self.sync(member);
                let further = self.lie(member, |liar, seat| liar.regularly(seat)).unwrap_or_default();
                self.say(member, further);
                self.clock.plan(SYNC_MS, Event::Sync(member, life));
                Ok(())
            }
            Event::AskBody(member, life, body) if self.lives(member, life) => {
                let count = self.members.len();
                if let Some(wanted) = self.members[member].wanted.get_mut(&body) {
                    let source = wanted.next_source(count, member);
                    self.send(member, source, Packet::AskBody(body));
                    self.clock.plan(FETCH_PATIENCE_MS, Event::AskBody(member, life, body));
                }
                Ok(())
            }
            Event::Done(member, life, work) if self.lives(member, life) => self.done(member, work),
            Event::Wake(..) | Event::Sync(..) | Event::AskBody(..) | Event::Done(..) => Ok(()),
        }
    }

    fn lives(&self, member: usize, life: u64) -> bool {
        self.members[member].life == life && self.members[member].machine.is_some()
    }

    fn start(&mut self, member: usize) -> Result<(), String> {
        let key = self.world.key(member);
        let engine = MalachiteEngine::new(self.world.consortium.clone(), &self.world.round, key.clone());
        let engine = engine.map_err(|error| error.to_string())?;
        let setup = Setup {
            consortium: self.world.consortium.clone(),
            round: self.world.round.clone(),
            layout: self.world.layout().clone(),
            key,
        };
        let records = self.members[member].disk.read();
        let records = records.map_err(|error| format!("member {member} cannot read its own log: {error}"))?;
        let entries = records.len();
        let machine = Machine::recover(setup, Box::new(engine), records);
        let machine = machine.map_err(|error| format!("member {member} does not come back: {error}"))?;
        self.mark(member, &format!("starts from {entries} records"), None);
        let state = &mut self.members[member];
        state.machine = Some(machine);
        state.started_ms = self.clock.now_ms();
        let life = state.life;
        self.clock.plan(self.work.below(SYNC_MS), Event::Sync(member, life));
        let begun = self.lie(member, |liar, seat| liar.begin(seat)).unwrap_or_default();
        self.say(member, begun);
        self.step(member, Input::Tick)
    }

    /// What a liar does; nothing for an honest member.
    fn lie<T>(&mut self, member: usize, lie: impl FnOnce(&mut dyn Byzantine, &mut Seat<'_>) -> T) -> Option<T> {
        let now_ms = self.clock.now_ms();
        let state = &mut self.members[member];
        let liar = state.liar.as_mut()?;
        let mut seat = Seat {
            world: self.world,
            me: member,
            now_ms,
            machine: state.machine.as_ref(),
            bodies: &mut state.bodies,
            random: &mut self.lies,
        };
        Some(lie(liar.as_mut(), &mut seat))
    }

    fn say(&mut self, member: usize, sendings: Vec<Sending>) {
        for Sending { to, bytes } in sendings {
            let bytes: Rc<[u8]> = bytes.into();
            for other in to {
                self.send(member, other, Packet::Gossip(Rc::clone(&bytes)));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, packet: Packet) {
        for delay_ms in self.network.deliver(self.clock.now_ms(), from, to) {
            self.clock.plan(delay_ms, Event::Arrive { from, to, packet: packet.clone() });
        }
    }

    /// Milliseconds since a member started, which is all that it knows of time.
    fn local_ms(&self, member: usize) -> u64 {
        self.clock.now_ms() - self.members[member].started_ms
    }

    fn step(&mut self, member: usize, input: Input) -> Result<(), String> {
        let now_ms = self.local_ms(member);
        let Some(machine) = self.members[member].machine.as_mut() else { return Ok(()) };
        let effects = machine.step(now_ms, input);
        self.carry_out(member, effects)
    }

    /// Hands a message to a machine. Returns whether it was new to it.
    fn hear(&mut self, from: usize, to: usize, bytes: &[u8]) -> Result<bool, String> {
        let now_ms = self.local_ms(to);
        let Some(machine) = self.members[to].machine.as_mut() else { return Ok(false) };
        let (verdict, effects) = machine.receive(now_ms, bytes);
        if let Verdict::Bad(error) = &verdict
            && self.watch.is_honest(from)
            && self.watch.is_honest(to)
        {
            return Err(format!("member {to} does not take what member {from}, who is honest, sends: {error}"));
        }
        self.carry_out(to, effects)?;
        Ok(matches!(verdict, Verdict::New))
    }

    fn arrive(&mut self, from: usize, to: usize, packet: Packet) -> Result<(), String> {
        if self.members[to].machine.is_none() {
            return Ok(());
        }
        match packet {
            Packet::Gossip(bytes) => {
                self.mark(to, &format!("hears from {from}"), Some(&bytes));
                let life = self.members[to].life;
                if self.hear(from, to, &bytes)? && self.lives(to, life) {
                    let further = self.lie(to, |liar, seat| liar.hear(seat, &bytes)).unwrap_or_default();
                    self.say(to, further);
                    if self.scenario.relays {
                        let others = (0..self.members.len()).filter(|other| ![from, to].contains(other));
                        for other in others.collect::<Vec<_>>() {
                            self.send(to, other, Packet::Gossip(Rc::clone(&bytes)));
                        }
                    }
                }
                Ok(())
            }
            Packet::Ask(question) => {
                let Some(machine) = &self.members[to].machine else { return Ok(()) };
                let honest = machine.answer(MemberIndex(from as u16), &question);
                let answer = match self.lie(to, |liar, seat| liar.answer(seat, from, honest.clone())) {
                    None => {
                        for bytes in &honest {
                            self.watch.sends(to, bytes, &self.members[to].disk)?;
                        }
                        Some(honest)
                    }
                    Some(instead) => instead,
                };
                if let Some(messages) = answer {
                    let mine = matches!(question, Question::Mine);
                    self.send(to, from, Packet::Answer(encode_answer(&messages).into(), mine));
                }
                Ok(())
            }
            Packet::Answer(bytes, mine) => self.answered(from, to, &bytes, mine),
            Packet::AskBody(digest) => {
                let serves = self.lie(to, |liar, seat| liar.serves(seat, from, digest)).unwrap_or(true);
                match self.members[to].bodies.get(&digest) {
                    Some(body) if serves => {
                        let body = Rc::clone(body);
                        self.send(to, from, Packet::Body(digest, body));
                    }
                    _ => {}
                }
                Ok(())
            }
            Packet::Body(digest, body) => {
                // nodes verify what they fetch chunk by chunk
                if Digest::of(&body) == digest
                    && let Some(wanted) = self.members[to].wanted.remove(&digest)
                {
                    self.mark(to, &format!("fetches {} from {from}", digest.short()), None);
                    self.members[to].bodies.insert(digest, body);
                    let life = self.members[to].life;
                    for height in wanted.heights {
                        if self.lives(to, life) {
                            self.step(to, Input::Stored { height, body: digest })?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn answered(&mut self, from: usize, to: usize, bytes: &[u8], mine: bool) -> Result<(), String> {
        let Ok(messages) = decode_answer(bytes) else {
            return Err(format!("member {to} cannot read the answer of member {from}"));
        };
        self.mark(to, &format!("is answered by {from} in {} messages", messages.len()), None);
        let member = MemberIndex(from as u16);
        if mine {
            if self.members[to].recalled.insert(member) {
                return self.step(to, Input::Recalled { from: member, messages });
            }
            return Ok(());
        }
        let life = self.members[to].life;
        for message in messages {
            if !self.lives(to, life) {
                break;
            }
            self.hear(from, to, &message)?;
        }
        Ok(())
    }

    /// Asks others for what this member may have missed.
    fn sync(&mut self, member: usize) {
        let others: Vec<usize> = (0..self.members.len()).filter(|other| *other != member).collect();
        let state = &mut self.members[member];
        let Some(machine) = &state.machine else { return };
        let question = machine.question();
        let joined = machine.has_joined();
        let next = others.get(state.next_peer).or(others.first()).copied();
        state.next_peer = (state.next_peer + 1) % others.len().max(1);
        let unanswered: Vec<usize> =
            others.into_iter().filter(|other| !state.recalled.contains(&MemberIndex(*other as u16))).collect();
        if let Some(next) = next {
            self.send(member, next, Packet::Ask(question));
        }
        if !joined {
            for other in unanswered {
                self.send(member, other, Packet::Ask(Question::Mine));
            }
        }
    }

    /// After how many effects of a step a member dies in it, if it does.
    fn dies_after(&mut self, member: usize, effects: usize) -> Option<usize> {
        let faulty = self.clock.now_ms() < self.scenario.faults.end_ms && self.watch.is_honest(member);
        let dies = faulty && effects > 0 && self.crash.per_mille(self.scenario.crashes_per_mille);
        dies.then(|| self.crash.index(effects + 1))
    }

    fn crash(&mut self, member: usize) {
        self.mark(member, "dies", None);
        self.crashes += 1;
        self.members[member].stop();
        self.members[member].disk.crash(&mut self.crash);
        let delay_ms = 1 + self.crash.below(MOST_DOWN_MS);
        self.clock.plan(delay_ms, Event::Start(member));
    }

    fn carry_out(&mut self, member: usize, effects: Vec<Effect>) -> Result<(), String> {
        let dies_after = self.dies_after(member, effects.len());
        let life = self.members[member].life;
        let mut feed = Vec::new();
        for effect in effects.into_iter().take(dies_after.unwrap_or(usize::MAX)) {
            self.carry_out_one(member, effect, &mut feed)?;
        }
        if dies_after.is_some() {
            self.crash(member);
            return Ok(());
        }
        for input in feed {
            if self.lives(member, life) {
                self.step(member, input)?;
            }
        }
        if !self.lives(member, life) {
            return Ok(());
        }
        self.plan_wake(member);
        match &self.members[member].machine {
            Some(machine) if self.watch.is_honest(member) => self.watch.after(member, machine),
            _ => Ok(()),
        }
    }

    fn plan_wake(&mut self, member: usize) {
        let state = &mut self.members[member];
        let Some(at_ms) = state.machine.as_ref().and_then(Machine::next_tick_ms) else { return };
        let at_ms = (state.started_ms + at_ms).max(self.clock.now_ms() + 1);
        if state.wake_at_ms.is_none_or(|planned| planned > at_ms) {
            state.wake_at_ms = Some(at_ms);
            self.clock.plan(at_ms - self.clock.now_ms(), Event::Wake(member, state.life));
        }
    }

    fn carry_out_one(&mut self, member: usize, effect: Effect, feed: &mut Vec<Input>) -> Result<(), String> {
        let life = self.members[member].life;
        match effect {
            Effect::Append(height, record) => self.members[member].disk.append(height, &record),
            Effect::Flush => self.members[member].disk.flush(),
            Effect::Publish(bytes) => {
                self.mark(member, "says", Some(&bytes.as_slice().into()));
                let instead = self.lie(member, |liar, seat| liar.publish(seat, bytes.clone()));
                let sendings = match instead {
                    Some(sendings) => sendings,
                    None => {
                        self.watch.sends(member, &bytes, &self.members[member].disk)?;
                        let to = (0..self.members.len()).filter(|other| *other != member).collect();
                        vec![Sending { to, bytes }]
                    }
                };
                self.say(member, sendings);
            }
            // asked with every `sync`
            Effect::Recall => {}
            Effect::Compute(height) => {
                let delay_ms = self.work.between(50, 2_000);
                self.clock.plan(delay_ms, Event::Done(member, life, Work::Compute(height)));
            }
            Effect::Fetch { height, body, body_bytes: _, sources } => {
                if self.members[member].bodies.contains_key(&body) {
                    feed.push(Input::Stored { height, body });
                    return Ok(());
                }
                let wanted = self.members[member].wanted.entry(body).or_default();
                let first = wanted.heights.is_empty();
                wanted.heights.insert(height);
                wanted.sources.extend(sources.iter().map(|source| source.as_usize()));
                if first {
                    self.clock.plan(1, Event::AskBody(member, life, body));
                }
            }
            Effect::Validate(header) => {
                let delay_ms = self.work.between(1, 50);
                self.clock.plan(delay_ms, Event::Done(member, life, Work::Validate(header)));
            }
            Effect::Tally { height, set, ballots } => {
                let has = |body: &Digest| self.members[member].bodies.contains_key(body);
                if !ballots.iter().all(|(_, body)| has(body)) {
                    return Err(format!("member {member} counts ballots that it does not have"));
                }
                let delay_ms = self.work.between(1, 200);
                self.clock.plan(delay_ms, Event::Done(member, life, Work::Tally(height, set)));
            }
            Effect::Conclude(_) => {
                let delay_ms = self.work.between(1, 300);
                self.clock.plan(delay_ms, Event::Done(member, life, Work::Conclude));
            }
            Effect::Tell(event) => {
                self.mark(member, &format!("tells {event:?}"), None);
                if self.watch.is_honest(member) {
                    self.watch.tells(member, &event)?;
                }
            }
            Effect::Finished(outcome) => {
                self.mark(member, &format!("is done: {outcome:?}"), None);
                self.members[member].finished = Some(outcome);
            }
            Effect::Failed(error) => {
                self.mark(member, &format!("fails: {error}"), None);
                if self.watch.is_honest(member) {
                    return Err(format!("member {member} cannot go on: {error}"));
                }
                self.members[member].machine = None;
            }
        }
        Ok(())
    }

    fn done(&mut self, member: usize, work: Work) -> Result<(), String> {
        match work {
            Work::Compute(height) if self.scenario.without_ballot.contains(&member) => {
                self.step(member, Input::Abstained { height, why: "it has no text".to_owned() })
            }
            Work::Compute(height) => {
                // another one after every restart, so that signing a second one would not go unnoticed
                let life = self.members[member].life;
                let own = self.world.body(&format!("member {member}, life {life}"), height);
                let body = match self.lie(member, |liar, seat| liar.body(seat, height, Rc::clone(&own))) {
                    Some(instead) => instead,
                    None => own,
                };
                let (digest, body_bytes) = (Digest::of(&body), body.len() as u64);
                self.members[member].bodies.insert(digest, body);
                let claimed_unix_ms = self.clock.now_ms();
                self.step(member, Input::Contributed { height, body: digest, body_bytes, claimed_unix_ms })
            }
            Work::Validate(header) => {
                let (height, of, body) = (header.height(), header.member(), header.content().body);
                let Some(bytes) = self.members[member].bodies.get(&body) else {
                    return Err(format!("member {member} validates a ballot that it does not have"));
                };
                match self.world.validate(header, bytes) {
                    Ok(valid) => {
                        if self.watch.is_honest(member) {
                            self.watch.stored(height, of.as_usize(), body);
                        }
                        self.step(member, Input::Valid(valid))
                    }
                    Err(why) => self.step(member, Input::Invalid { height, member: of, body, why }),
                }
            }
            Work::Tally(height, set) => {
                let mask_root = self.world.mask_root(set);
                self.step(member, Input::Tallied { height, set, mask_root })
            }
            Work::Conclude => self.step(member, Input::Concluded),
        }
    }
}
