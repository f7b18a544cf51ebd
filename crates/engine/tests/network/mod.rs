//! Members on a network in virtual time, driven through the federation's trait alone.
//!
//! One queue of events in order of time; delays, losses and crashes come from a seed, so a seed is a run. The
//! network relays nothing, and delivers a message to a member once however often it is sent, as gossip does;
//! what is lost may be sent again. Members whose agreement is decided answer with the certificate, as nodes do.
//!
//! Every honest member is watched: what it sends was recorded before, it says one thing in one slot, it keeps to
//! its lock (Buchman, Kwon and Milosevic, lines 22 and 28), and all decide the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use fedprune_engine::MalachiteEngine;
use fedprune_federation::agreement::{Action, Agreement, Engine, Input, Repeated, Timer, TimerKind};
use fedprune_federation::{Certificate, Prevote, Proposal, Received, ReceivedCertificate, SignatureChecked};
use fedprune_mask::Digest;

use crate::world::{World, key};

#[derive(Debug, Clone)]
pub enum Message {
    Proposal(SignatureChecked<Proposal>),
    Vote(Repeated),
    Certificate(Vec<u8>),
}

impl Message {
    fn id(&self) -> Digest {
        Digest::of(&match self {
            Message::Proposal(proposal) => proposal.encode(),
            Message::Vote(Repeated::Prevote(vote)) => vote.encode(),
            Message::Vote(Repeated::Precommit(vote)) => vote.encode(),
            Message::Certificate(bytes) => bytes.clone(),
        })
    }

    pub fn view(&self) -> Option<u32> {
        match self {
            Message::Proposal(proposal) => Some(proposal.content().view),
            Message::Vote(Repeated::Prevote(vote)) => Some(vote.content().view),
            Message::Vote(Repeated::Precommit(vote)) => Some(vote.content().view),
            Message::Certificate(_) => None,
        }
    }
}

/// A member that does as it likes; it has the keys of those in `members`.
pub trait Intruder {
    fn members(&self) -> Vec<usize>;
    /// What it sends to whom, on hearing something; at the start it hears nothing.
    fn hear(&mut self, world: &World, message: Option<&Message>) -> Vec<(usize, usize, Message)>;
}

/// Dies in one of its steps.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    pub member: usize,
    /// In its step of this number, the start being 0.
    pub step: usize,
    /// After this many of the step's actions.
    pub actions: usize,
}

pub struct Scenario {
    pub seed: u64,
    pub loss_percent: u64,
    /// Never there.
    pub absent: BTreeSet<usize>,
    /// Follow and say nothing.
    pub silent: BTreeSet<usize>,
    /// Until when members of different sides do not hear each other, and the sides.
    pub partition: Option<(u64, BTreeSet<usize>)>,
    /// Values proposed in views before this one are judged false.
    pub first_good_view: u32,
    pub crash: Option<Crash>,
    /// In how many of a thousand steps a member dies, and how often in all.
    pub crashes_per_mille: u64,
    pub crashes_left: u32,
    /// Whether everybody may have a certificate from those who decided.
    pub certificates: bool,
    pub limit_ms: u64,
}

impl Scenario {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            loss_percent: 0,
            absent: BTreeSet::new(),
            silent: BTreeSet::new(),
            partition: None,
            first_good_view: 0,
            crash: None,
            crashes_per_mille: 0,
            crashes_left: 20,
            certificates: true,
            limit_ms: 600_000,
        }
    }
}

pub struct Outcome {
    pub decided: Vec<Option<Certificate>>,
    /// Who decided without a certificate from others.
    pub by_itself: BTreeSet<usize>,
    /// Number of actions of each step of each member.
    pub actions: Vec<Vec<usize>>,
    pub journal_entries: Vec<usize>,
    pub views: Vec<u32>,
    pub crashes: u32,
    /// Most views that a member went ahead in one step.
    pub longest_jump: u32,
    pub now_ms: u64,
    pub trace: Digest,
}

impl Outcome {
    pub fn everybody_decided(&self, members: impl IntoIterator<Item = usize>) -> bool {
        members.into_iter().all(|member| self.decided[member].is_some())
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

struct Node {
    engine: MalachiteEngine,
    agreement: Option<Box<dyn Agreement>>,
    journal: Vec<Vec<u8>>,
    /// Events of an earlier life are not delivered.
    life: u64,
    timers: BTreeMap<Timer, u64>,
    decided: Option<Certificate>,
    steps: Vec<usize>,
}

enum Event {
    Deliver(usize, usize, Message),
    Elapsed(usize, u64, Timer, u64),
    Judge(usize, u64, SignatureChecked<Proposal>),
    Propose(usize, u64, u32),
    Restart(usize),
}

/// Value and valid view.
type Said = (Option<Digest>, Option<u32>);

pub struct Network<'a> {
    world: &'a World,
    scenario: Scenario,
    intruder: Option<Box<dyn Intruder>>,
    random: Random,
    nodes: Vec<Node>,
    events: BTreeMap<u64, Event>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    number: u64,
    now_ms: u64,
    seen: Vec<BTreeSet<Digest>>,
    by_itself: BTreeSet<usize>,
    crashes: u32,
    longest_jump: u32,
    trace: Digest,
    /// The view in which each value was proposed first.
    values: BTreeMap<Digest, u32>,
    /// What honest members said: proposal, prevote or precommit, by view.
    said: BTreeMap<(usize, u8, u32), Said>,
    /// Everybody who ever prevoted a value in a view.
    prevoted: BTreeMap<(u32, Digest), BTreeSet<usize>>,
}

impl<'a> Network<'a> {
    pub fn run(world: &'a World, scenario: Scenario, intruder: Option<Box<dyn Intruder>>) -> Outcome {
        let members = world.consortium.members().len();
        let node = |member| Node {
            engine: MalachiteEngine::new(world.consortium.clone(), &world.round, key(member)).unwrap(),
            agreement: None,
            journal: Vec::new(),
            life: 0,
            timers: BTreeMap::new(),
            decided: None,
            steps: Vec::new(),
        };
        let mut network = Self {
            world,
            random: Random(scenario.seed),
            scenario,
            intruder,
            nodes: (0..members).map(node).collect(),
            events: BTreeMap::new(),
            queue: BinaryHeap::new(),
            number: 0,
            now_ms: 0,
            seen: vec![BTreeSet::new(); members],
            by_itself: BTreeSet::new(),
            crashes: 0,
            longest_jump: 0,
            trace: Digest([0; 32]),
            values: BTreeMap::new(),
            said: BTreeMap::new(),
            prevoted: BTreeMap::new(),
        };
        network.go();
        Outcome {
            decided: network.nodes.iter().map(|node| node.decided.clone()).collect(),
            by_itself: network.by_itself,
            actions: network.nodes.iter().map(|node| node.steps.clone()).collect(),
            journal_entries: network.nodes.iter().map(|node| node.journal.len()).collect(),
            views: network.nodes.iter().map(|node| node.agreement.as_ref().map_or(0, |node| node.view())).collect(),
            crashes: network.crashes,
            longest_jump: network.longest_jump,
            now_ms: network.now_ms,
            trace: network.trace,
        }
    }

    fn intruders(&self) -> Vec<usize> {
        self.intruder.as_ref().map_or_else(Vec::new, |intruder| intruder.members())
    }

    fn go(&mut self) {
        let intruders = self.intruders();
        let honest = |member: &usize| !intruders.contains(member);
        let there: Vec<usize> =
            (0..self.nodes.len()).filter(honest).filter(|member| !self.scenario.absent.contains(member)).collect();
        for member in &there {
            self.start(*member);
        }
        self.intrude(None);
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > self.scenario.limit_ms || there.iter().all(|member| self.nodes[*member].decided.is_some()) {
                break;
            }
            self.now_ms = at;
            let event = self.events.remove(&number).unwrap();
            self.handle(event);
        }
        let values: BTreeSet<Digest> =
            self.nodes.iter().flat_map(|node| &node.decided).map(Certificate::value).collect();
        assert!(values.len() <= 1, "members decided differently");
    }

    fn later(&mut self, delay_ms: u64, event: Event) {
        self.number += 1;
        self.events.insert(self.number, event);
        self.queue.push(Reverse((self.now_ms + delay_ms, self.number)));
    }

    fn mark(&mut self, member: usize, what: &str) {
        let line = format!("{} {} {member} {what}", self.trace, self.now_ms);
        self.trace = Digest::of(line.as_bytes());
    }

    fn start(&mut self, member: usize) {
        // what came while it was dead may come again
        self.seen[member].clear();
        let participates = !self.scenario.silent.contains(&member);
        let node = &mut self.nodes[member];
        let (agreement, actions) = node.engine.resume(self.world.height, &node.journal, participates).unwrap();
        // the same journal gives the same again
        let (twin, again) = node.engine.resume(self.world.height, &node.journal, participates).unwrap();
        assert_eq!((twin.view(), again), (agreement.view(), actions.clone()));
        node.agreement = Some(agreement);
        self.perform(member, actions);
    }

    fn step(&mut self, member: usize, input: Input) {
        if let Some(agreement) = &mut self.nodes[member].agreement {
            let before = agreement.view();
            let actions = agreement.step(input).unwrap();
            self.longest_jump = self.longest_jump.max(agreement.view() - before);
            self.perform(member, actions);
        }
    }

    /// Carries out actions in order, and dies among them if it has to.
    fn perform(&mut self, member: usize, actions: Vec<Action>) {
        let step = self.nodes[member].steps.len();
        self.nodes[member].steps.push(actions.len());
        let planned = self.scenario.crash.filter(|crash| (crash.member, crash.step) == (member, step));
        let mut dies_after = planned.map(|crash| crash.actions);
        let per_mille = self.scenario.crashes_per_mille;
        if per_mille > 0 && self.crashes < self.scenario.crashes_left && self.random.below(1000) < per_mille {
            dies_after = Some(self.random.below(actions.len() as u64 + 1) as usize);
        }
        for action in actions.into_iter().take(dies_after.unwrap_or(usize::MAX)) {
            self.mark(member, &format!("{action:?}"));
            self.carry_out(member, action);
        }
        if dies_after.is_some() {
            self.crashes += 1;
            let node = &mut self.nodes[member];
            (node.agreement, node.life) = (None, node.life + 1);
            node.timers.clear();
            let delay_ms = 1 + self.random.below(3000);
            self.later(delay_ms, Event::Restart(member));
        }
    }

    fn carry_out(&mut self, member: usize, action: Action) {
        let life = self.nodes[member].life;
        match action {
            Action::Record(entry) => {
                // a prevote of our own may complete the quorum on which the precommit rests that is sent before it
                if let Some((3, statement)) = entry.split_first()
                    && let vote = Received::<Prevote>::decode(statement).unwrap()
                    && vote.claimed_member().as_usize() == member
                {
                    let vote = vote.check(&self.world.consortium, self.world.round.id()).unwrap();
                    if let Prevote { view, value: Some(value) } = *vote.content() {
                        self.prevoted.entry((view, value)).or_default().insert(member);
                    }
                }
                self.nodes[member].journal.push(entry);
            }
            Action::Propose(proposal) => self.broadcast(member, &Message::Proposal(proposal)),
            Action::Prevote(vote) => self.broadcast(member, &Message::Vote(Repeated::Prevote(vote))),
            Action::Precommit(vote) => self.broadcast(member, &Message::Vote(Repeated::Precommit(vote))),
            Action::Repeat(votes) => votes.into_iter().for_each(|vote| self.broadcast(member, &Message::Vote(vote))),
            Action::Want { view } => {
                let delay_ms = self.random.below(60);
                self.later(delay_ms, Event::Propose(member, life, view));
            }
            Action::Judge(proposal) => {
                let delay_ms = self.random.below(120);
                self.later(delay_ms, Event::Judge(member, life, proposal));
            }
            Action::Set(timer) => {
                let growth = 300 * u64::from(timer.view);
                let delay_ms = match timer.kind {
                    TimerKind::Proposal => 1000 + growth,
                    TimerKind::Prevote | TimerKind::Precommit => 500 + growth,
                    TimerKind::Repeat => 1500,
                };
                self.nodes[member].timers.insert(timer, self.number + 1);
                self.later(delay_ms, Event::Elapsed(member, life, timer, self.number + 1));
            }
            Action::Cancel(timer) => {
                self.nodes[member].timers.remove(&timer);
            }
            Action::CancelAll => self.nodes[member].timers.clear(),
            Action::Decided(certificate) => {
                let again = ReceivedCertificate::decode(&certificate.encode()).unwrap();
                again.check(&self.world.consortium, self.world.round.id()).unwrap();
                assert!(self.nodes[member].timers.is_empty());
                self.nodes[member].decided = Some(certificate);
                self.by_itself.insert(member);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(from, to, message) => {
                self.mark(to, &format!("{message:?}"));
                if self.intruders().contains(&to) {
                    return self.intrude(Some(&message));
                }
                let node = &mut self.nodes[to];
                if let (Some(certificate), true) = (&node.decided, self.scenario.certificates) {
                    if message.view().is_some() {
                        let answer = Message::Certificate(certificate.encode());
                        self.send(to, from, &answer);
                    }
                    return;
                }
                match message {
                    Message::Proposal(proposal) => self.step(to, Input::Proposal(proposal)),
                    Message::Vote(Repeated::Prevote(vote)) => self.step(to, Input::Prevote(vote)),
                    Message::Vote(Repeated::Precommit(vote)) => self.step(to, Input::Precommit(vote)),
                    Message::Certificate(bytes) => {
                        let received = ReceivedCertificate::decode(&bytes).unwrap();
                        let checked = received.check(&self.world.consortium, self.world.round.id()).unwrap();
                        if node.agreement.is_some() {
                            node.decided = Some(checked);
                        }
                    }
                }
            }
            Event::Elapsed(member, life, timer, number) => {
                let node = &mut self.nodes[member];
                if node.life == life && node.timers.get(&timer) == Some(&number) {
                    node.timers.remove(&timer);
                    self.step(member, Input::Elapsed(timer));
                }
            }
            Event::Judge(member, life, proposal) => {
                if self.nodes[member].life == life {
                    let first = self.values.get(&proposal.content().value);
                    let valid = first.is_some_and(|view| *view >= self.scenario.first_good_view);
                    self.step(member, Input::Judged { proposal, valid });
                }
            }
            Event::Propose(member, life, view) => {
                if self.nodes[member].life == life {
                    let value = Digest::of(format!("of {member} in {view}, life {life}").as_bytes());
                    self.values.entry(value).or_insert(view);
                    self.step(member, Input::Propose { view, value });
                }
            }
            Event::Restart(member) => self.start(member),
        }
    }

    fn intrude(&mut self, message: Option<&Message>) {
        let Some(mut intruder) = self.intruder.take() else { return };
        for (from, to, message) in intruder.hear(self.world, message) {
            if let Message::Vote(Repeated::Prevote(vote)) = &message
                && let Some(value) = vote.content().value
            {
                self.prevoted.entry((vote.content().view, value)).or_default().insert(from);
            }
            if let Message::Proposal(proposal) = &message {
                self.values.entry(proposal.content().value).or_insert(proposal.content().view);
            }
            self.send(from, to, &message);
        }
        self.intruder = Some(intruder);
    }

    fn broadcast(&mut self, from: usize, message: &Message) {
        self.watch(from, message);
        for to in 0..self.nodes.len() {
            self.send(from, to, message);
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &Message) {
        let id = message.id();
        let cut = self.scenario.partition.as_ref();
        let cut = cut.is_some_and(|(until, side)| self.now_ms < *until && side.contains(&from) != side.contains(&to));
        // one that decided hears repetitions too: it is how it learns who needs its certificate
        let known = self.seen[to].contains(&id) && self.nodes[to].decided.is_none();
        if from == to || cut || known || self.scenario.absent.contains(&to) {
            return;
        }
        if self.random.below(100) >= self.scenario.loss_percent {
            self.seen[to].insert(id);
            let delay_ms = 5 + self.random.below(80);
            self.later(delay_ms, Event::Deliver(from, to, message.clone()));
        }
    }

    /// Checks what an honest member says.
    fn watch(&mut self, from: usize, message: &Message) {
        let (member, kind, view, value, valid_view, bytes) = match message {
            Message::Proposal(said) => {
                let Proposal { view, value, valid_view } = *said.content();
                (said.member(), 0, view, Some(value), valid_view, said.encode())
            }
            Message::Vote(Repeated::Prevote(said)) => {
                (said.member(), 1, said.content().view, said.content().value, None, said.encode())
            }
            Message::Vote(Repeated::Precommit(said)) => {
                (said.member(), 2, said.content().view, said.content().value, None, said.encode())
            }
            Message::Certificate(_) => return,
        };
        if member.as_usize() != from {
            return;
        }
        assert!(!self.scenario.silent.contains(&from), "a silent member spoke");
        let recorded = self.nodes[from].journal.iter().any(|entry| entry.get(1..) == Some(&bytes));
        assert!(recorded, "member {from} sent what it had not recorded: {message:?}");
        let first = *self.said.entry((from, kind, view)).or_insert((value, valid_view));
        assert_eq!(first, (value, valid_view), "member {from} said two things in view {view}");
        if let (1, Some(value)) = (kind, value) {
            let locks = self.said.range((from, 2, 0)..(from, 2, view)).rev();
            let lock = locks.filter_map(|((_, _, view), (locked, _))| locked.map(|locked| (*view, locked))).next();
            if let Some((locked_view, locked)) = lock
                && locked != value
            {
                let q = self.world.consortium.quorum().q();
                let freed = (locked_view..view)
                    .any(|view| self.prevoted.get(&(view, value)).is_some_and(|members| members.len() >= q));
                assert!(freed, "member {from} is locked since view {locked_view} and prevoted otherwise in {view}");
            }
        }
        if let (2, Some(value)) = (kind, value) {
            // its own prevote may be nil; those of a quorum are not
            let q = self.world.consortium.quorum().q();
            let members = self.prevoted.get(&(view, value)).map_or(0, BTreeSet::len);
            assert!(members >= q, "member {from} precommitted what {members} prevoted");
        }
    }
}
