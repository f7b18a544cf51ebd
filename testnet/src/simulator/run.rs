//! The run of one scenario: events in order of time, effects of machines carried out.
//!
//! A member whose disk is slow does nothing else while it waits for a flush: what reaches it meanwhile comes afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;

use fedprune_federation::machine::{Effect, Input, Question, Verdict, decode_answer, encode_answer};
use fedprune_federation::{BallotHeader, Height, MemberIndex, SignatureChecked};
use fedprune_mask::Digest;

use super::audit;
use super::byzantine::Byzantine;
use super::clock::Clock;
use super::member::{FETCH_PATIENCE_MS, Member, SYNC_MS};
use super::network::Network;
use super::random::Random;
use super::scenario::{Scenario, Trouble, TroubleKind};
use super::seat::{Seat, Sending};
use super::story::Story;
use super::watch::Watch;
use super::world::{Body, World};
use super::{Report, Violation};

mod effects;

/// How long members go on once all honest ones are done, so that the last ones hear what others know.
const LINGER_MS: u64 = 10_000;
/// How long a member stays down after a crash, at most.
const MOST_DOWN_MS: u64 = 4_000;
/// To how many others a member passes on what is new to it, at most.
const MESH_DEGREE: usize = 8;

/// Events of one millisecond, at most: with more, something waits for itself.
const MOST_AT_ONCE: u64 = 1_000_000;

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
    Tally(Height, Digest, Vec<(MemberIndex, Digest)>),
    Conclude,
}

#[derive(Debug)]
enum Event {
    Start(usize),
    Arrive {
        from: usize,
        to: usize,
        packet: Packet,
    },
    Wake(usize, u64),
    Sync(usize, u64),
    AskBody(usize, u64, Digest),
    Done(usize, u64, Work),
    /// What came while a member waited for its disk.
    Later(usize, u64, Input),
    /// A flush has ended; the rest of its step follows.
    Flushed(usize, u64, Step),
    /// A member goes down.
    Trouble(Trouble),
}

impl Event {
    /// Who has to have time for it.
    fn needs(&self) -> Option<usize> {
        match self {
            Self::Arrive { to, .. } => Some(*to),
            Self::Wake(member, _) | Self::Sync(member, _) | Self::AskBody(member, ..) => Some(*member),
            Self::Done(member, ..) | Self::Later(member, ..) => Some(*member),
            Self::Start(_) | Self::Flushed(..) | Self::Trouble(_) => None,
        }
    }
}

/// What is left to do of a step of a member.
#[derive(Debug)]
struct Step {
    effects: VecDeque<Effect>,
    /// Answers to effects that there were at once.
    feed: Vec<Input>,
    /// After how many more effects the member dies, if it does.
    dies_after: Option<usize>,
}

/// Members that lie.
pub type Liars = BTreeMap<usize, Box<dyn Byzantine>>;

/// Runs a round to its end.
///
/// # Errors
/// [`Violation`] as soon as an honest member does what it may not, or if the round does not end in time.
pub fn simulate(world: &World, scenario: &Scenario) -> Result<Report, Box<Violation>> {
    simulate_and_audit(world, scenario, None)
}

/// Runs a round to its end; then the real audit is made of what is on each honest member's disk, in a folder below
/// `audit_in`, which is left empty.
///
/// # Errors
/// As [`simulate`], and if an audit finds anything wrong.
pub fn simulate_and_audit(
    world: &World,
    scenario: &Scenario,
    audit_in: Option<&Path>,
) -> Result<Report, Box<Violation>> {
    let liars = scenario.liars.iter().map(|(member, lie)| (*member, lie.liar())).collect();
    run(world, scenario, liars, audit_in)
}

/// Runs a round with these liars, instead of those in the scenario, to its end.
///
/// # Errors
/// As [`simulate`].
pub fn simulate_with(world: &World, scenario: &Scenario, liars: Liars) -> Result<Report, Box<Violation>> {
    run(world, scenario, liars, None)
}

fn run(world: &World, scenario: &Scenario, liars: Liars, audit_in: Option<&Path>) -> Result<Report, Box<Violation>> {
    let mut run = Run::new(world, scenario, liars);
    run.go(audit_in).map_err(|what| {
        let before = run.story.tell(world);
        Box::new(Violation { scenario: scenario.clone(), at_ms: run.clock.now_ms(), what, before })
    })
}

pub(super) struct Run<'a> {
    pub(super) world: &'a World,
    pub(super) scenario: &'a Scenario,
    clock: Clock<Event>,
    pub(super) network: Network,
    pub(super) members: Vec<Member>,
    pub(super) watch: Watch<'a>,
    work: Random,
    pub(super) crash: Random,
    lies: Random,
    pub(super) crashes: u32,
    pub(super) events: u64,
    pub(super) trace: Digest,
    story: Story,
    /// Mask roots by set of ballots, which they are a function of.
    roots: BTreeMap<Digest, Digest>,
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
            roots: BTreeMap::new(),
        }
    }

    fn go(&mut self, audit_in: Option<&Path>) -> Result<Report, String> {
        for trouble in &self.scenario.troubles {
            if trouble.kind == TroubleKind::Down {
                self.clock.plan(trouble.from_ms, Event::Trouble(*trouble));
            }
        }
        for member in 0..self.members.len() {
            let delay_ms = self.work.below(self.scenario.latest_start_ms + 1);
            self.clock.plan(delay_ms, Event::Start(member));
        }
        let mut finished_ms = None;
        let (mut instant_ms, mut at_once) = (0, 0u64);
        while let Some(event) = self.clock.next() {
            let now_ms = self.clock.now_ms();
            at_once = if now_ms == instant_ms { at_once + 1 } else { 0 };
            instant_ms = now_ms;
            if at_once > MOST_AT_ONCE {
                return Err("time does not go on".to_owned());
            }
            if finished_ms.is_none() && self.all_finished() {
                finished_ms = Some(now_ms);
            }
            match finished_ms {
                Some(since) if now_ms >= since + LINGER_MS => {
                    self.look_at_disks(audit_in)?;
                    return self.report(since);
                }
                None if now_ms > self.scenario.limit_ms => return Err(self.stalled()),
                _ => {}
            }
            self.events += 1;
            self.handle(event)?;
        }
        Err("nothing happens any more".to_owned())
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
        if let Some(member) = event.needs()
            && let Some(wait_ms) = self.waits_for_disk(member)
        {
            self.clock.plan(wait_ms, event);
            return Ok(());
        }
        match event {
            Event::Trouble(trouble) => {
                if self.members[trouble.member].machine.is_some() {
                    self.die(trouble.member);
                }
                self.clock.plan(trouble.until_ms - self.clock.now_ms(), Event::Start(trouble.member));
                Ok(())
            }
            Event::Flushed(member, life, step) if self.members[member].life == life => {
                self.members[member].flushes_until_ms = None;
                // a liar whose machine has failed has nothing more to do
                if self.lives(member, life) && self.flush(member) { self.carry_on(member, step) } else { Ok(()) }
            }
            Event::Later(member, life, input) if self.lives(member, life) => self.step(member, input),
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
            Event::Wake(..)
            | Event::Sync(..)
            | Event::AskBody(..)
            | Event::Done(..)
            | Event::Later(..)
            | Event::Flushed(..) => Ok(()),
        }
    }

    fn lives(&self, member: usize, life: u64) -> bool {
        self.members[member].life == life && self.members[member].machine.is_some()
    }

    /// The trouble of a kind that a member is in now.
    fn trouble(&self, member: usize, kind: impl Fn(TroubleKind) -> bool) -> Option<&'a Trouble> {
        let now_ms = self.clock.now_ms();
        let here = |one: &&Trouble| one.member == member && (one.from_ms..one.until_ms).contains(&now_ms);
        self.scenario.troubles.iter().filter(here).find(|one| kind(one.kind))
    }

    /// How long a member waits for its disk from now, if it does. In the millisecond in which the flush ends it still does:
    /// what is planned anew for that one comes after its end.
    fn waits_for_disk(&self, member: usize) -> Option<u64> {
        self.members[member].flushes_until_ms.map(|until_ms| until_ms.saturating_sub(self.clock.now_ms()))
    }

    fn start(&mut self, member: usize) -> Result<(), String> {
        if self.members[member].machine.is_some() {
            return Ok(());
        }
        if let Some(down) = self.trouble(member, |kind| kind == TroubleKind::Down) {
            self.clock.plan(down.until_ms - self.clock.now_ms(), Event::Start(member));
            return Ok(());
        }
        let records: usize =
            (0..self.world.heights()).map(|height| self.members[member].disk.size(Height(height)).0).sum();
        let machine = audit::recover(self.world, member, &self.members[member].disk)?;
        self.mark(member, &format!("starts from {records} records"), None);
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
        if let Some(wait_ms) = self.waits_for_disk(member) {
            let life = self.members[member].life;
            self.clock.plan(wait_ms, Event::Later(member, life, input));
            return Ok(());
        }
        let now_ms = self.local_ms(member);
        let Some(machine) = self.members[member].machine.as_mut() else { return Ok(()) };
        let effects = machine.step(now_ms, input);
        self.carry_out(member, effects)
    }

    /// Hands a message to a machine. Returns whether it was new to it.
    fn hear(&mut self, from: usize, to: usize, bytes: &[u8]) -> Result<bool, String> {
        if let Some(wait_ms) = self.waits_for_disk(to) {
            let packet = Packet::Gossip(bytes.into());
            self.clock.plan(wait_ms, Event::Arrive { from, to, packet });
            return Ok(false);
        }
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
                        for other in self.passes_on_to(from, to) {
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
                    if self.trouble(to, |kind| kind == TroubleKind::DiskFull).is_some() {
                        self.stop_of_full_disk(to);
                        return Ok(());
                    }
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
            if !self.watch.is_honest(from) {
                return Ok(());
            }
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

    fn die(&mut self, member: usize) {
        self.mark(member, "dies", None);
        self.crashes += 1;
        self.members[member].stop();
        self.members[member].disk.crash(&mut self.crash);
    }

    fn crash(&mut self, member: usize) {
        self.die(member);
        let delay_ms = 1 + self.crash.below(MOST_DOWN_MS);
        self.clock.plan(delay_ms, Event::Start(member));
    }

    /// Makes durable what a member has written; false if there is no room, which stops it.
    fn flush(&mut self, member: usize) -> bool {
        let full = self.trouble(member, |kind| kind == TroubleKind::DiskFull).is_some();
        let disk = &mut self.members[member].disk;
        disk.full = full;
        let flushed = disk.flush().is_ok();
        if !flushed {
            self.stop_of_full_disk(member);
        }
        flushed
    }

    /// A node ends when it cannot write, and its operator starts it again when there is room.
    fn stop_of_full_disk(&mut self, member: usize) {
        let until_ms = self.trouble(member, |kind| kind == TroubleKind::DiskFull).map_or(0, |full| full.until_ms);
        self.mark(member, "finds its disk full", None);
        self.die(member);
        let delay_ms = until_ms.saturating_sub(self.clock.now_ms()) + self.crash.below(MOST_DOWN_MS);
        self.clock.plan(delay_ms, Event::Start(member));
    }

    /// To whom a member passes on what is new to it: to all others where they are few, as in a mesh where not.
    fn passes_on_to(&mut self, from: usize, me: usize) -> Vec<usize> {
        let mut others: Vec<usize> = (0..self.members.len()).filter(|other| ![from, me].contains(other)).collect();
        if others.len() > MESH_DEGREE {
            others = self.work.sample(others.len(), MESH_DEGREE).into_iter().map(|index| others[index]).collect();
        }
        others
    }
}
