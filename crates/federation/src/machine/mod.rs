//! One member's side of one round, from joining to the pruned model, as a state machine.
//!
//! [`Machine::step`] and [`Machine::receive`] take the time and what happened and return [`Effect`]s, in the order
//! in which they must be carried out; whoever drives it, a node or a simulator, carries them out and feeds the
//! answers back. It reads no clock, waits for nothing and writes nothing.
//!
//! Everything that must survive a crash leaves as [`Effect::Append`], and [`Effect::Flush`] stands before whatever may
//! only happen once it is durable: no signature leaves before it is written down. [`Machine::recover`] reads the
//! records again. What is to be done follows from what is known, not from what just happened (see `flow`), so
//! a member that restarts goes on wherever it stopped.
//!
//! **Joining.** Before it signs anything, a member asks the others for what it signed in this round, and waits
//! for answers of a quorum, itself included. What it finds and does not have, it adopts: so a folder restored
//! from a backup does not sign a second ballot, and a member that finds votes of its own that its log does
//! not have is silent at that height (it cannot know what it was locked on). If its log ends behind the last
//! certificate and before its own result, it concludes without waiting for anybody, and says its result once it has
//! joined.
//!
//! **Heights** come one after another: ballots, holdings, agreement, tally, result (see `flow`). What arrives
//! for the next height is kept; what is further ahead is asked for again later.
//!
//! | module | what it does |
//! |---|---|
//! | `effect` | inputs, effects, events, errors |
//! | `flow` | what follows from what is known at a height |
//! | `agree` | between a height and the engine that carries out its agreement |
//! | `join` | recovering what was signed: from the log, and from others |
//! | `store` | what is known of a height |
//! | `inspect` | what is kept, and what is waited for |
//! | `message` | what members send each other |
//! | `record` | what a member writes down |

mod agree;
mod effect;
mod flow;
mod inspect;
mod join;
mod message;
mod record;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use fedprune_mask::{Digest, Layout};

pub use effect::{Effect, Event, Input, MachineError, Outcome};
pub use flow::set_digest;
pub use inspect::{Kept, Shortage, Standing};
pub use message::{MAX_KNOWN, MessageError, Question, ShortId, claims, decode_answer, encode_answer, short_id};
pub use record::{RECORD_LIMIT, Record};
pub use store::{Known, MAX_PROPOSALS_A_MEMBER, MAX_VIEWS_A_MEMBER, MAX_VIEWS_AHEAD};

use crate::agreement::{Agreement, Engine, Timer};
use crate::ballot::largest_body_bytes;
use crate::consortium::Ratified;
use crate::election::Rotation;
use crate::ids::{Height, MemberIndex, Quorum};
use crate::proposed::{Justified, Settled};
use crate::round::{LayoutMismatch, Round};
use crate::signing::{Kind, SigningKey};
use crate::statement::SignatureChecked;
use crate::vote::Proposal;
use message::Message;
use store::{Added, Store};

/// Most bytes of the messages in one answer.
pub const MAX_ANSWER_BYTES: usize = 8 << 20;
/// What an answer's frame may take of that.
const ANSWER_MARGIN_BYTES: usize = 64 << 10;

/// What a machine is made of.
pub struct Setup {
    /// Who takes part.
    pub consortium: Ratified,
    /// In what.
    pub round: Round,
    /// On which matrices.
    pub layout: Layout,
    /// Our key.
    pub key: SigningKey,
}

/// Why there is no machine for a setup.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The key is of nobody in the consortium.
    #[error("the key {0} is of no member of this consortium; use the key whose `signing_key` is in its document")]
    NotAMember(String),
    /// The model is not the round's.
    #[error(transparent)]
    Layout(#[from] LayoutMismatch),
    /// The log is not of this round and member.
    #[error(transparent)]
    Log(MachineError),
}

/// What came of a message.
#[derive(Debug)]
pub enum Verdict {
    /// It is new; pass it on.
    New,
    /// It says nothing new.
    Known,
    /// It is of a height that we have not come to.
    Later,
    /// No honest member passes it on.
    Bad(MessageError),
}

/// Stands for a decision among what a member knows, whichever certificate it has of it.
fn decision_id(settled: &Settled) -> ShortId {
    short_id(&settled.decision().encode())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Joining,
    Running,
    /// Nothing more is signed; others are answered.
    Over,
}

/// A timer of the current height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Clock {
    /// For ballots.
    Contribution,
    /// Before abandoning is an option.
    Abandon,
    /// The engine's.
    Agreement(Timer),
}

/// Our side of one height.
struct HeightState {
    store: Store,
    /// The ballots that are stored and valid, the first of each member.
    held: Vec<Option<Digest>>,
    /// All ballots that are stored and valid.
    valid: BTreeSet<(MemberIndex, Digest)>,
    refused: BTreeSet<(MemberIndex, Digest)>,
    journal: Vec<Vec<u8>>,
    /// Mask roots by set of ballots.
    tallies: BTreeMap<Digest, Digest>,
    silent: bool,
    abstained: bool,
    agreement: Option<Box<dyn Agreement>>,
    view_told: Option<u32>,
    /// The view in which it is our turn.
    wanted: Option<u32>,
    /// Proposals that wait for a judgement.
    judging: Vec<SignatureChecked<Proposal>>,
    /// What stands behind values that we propose.
    grounds: BTreeMap<Digest, Justified>,
    // what was asked for since the start
    entered: bool,
    computing: bool,
    fetching: BTreeSet<(MemberIndex, Digest)>,
    validating: BTreeSet<(MemberIndex, Digest)>,
    tallying: BTreeSet<Digest>,
    told_decided: bool,
    told_tallied: bool,
    contribution_over: bool,
    abandon_over: bool,
}

/// One member's side of one round.
pub struct Machine {
    setup: Setup,
    engine: Box<dyn Engine + Send>,
    me: MemberIndex,
    heights: u32,
    /// Largest body of each height.
    body_limits: Vec<u64>,
    phase: Phase,
    recalled: BTreeSet<MemberIndex>,
    states: BTreeMap<u32, HeightState>,
    current: u32,
    clocks: BTreeMap<Clock, u64>,
    /// Statements that wait for the agreement on the current height.
    pending: Vec<Vec<u8>>,
    concluding: bool,
    concluded: bool,
    finished: bool,
    /// What the last step wants done.
    out: Vec<Effect>,
    /// Whether something in `out` was appended and not flushed.
    unflushed: bool,
}

impl Machine {
    /// A machine that continues where `records`, from its log in order, end. `step` it with [`Input::Tick`] to start.
    ///
    /// # Errors
    /// [`SetupError`] when key, round, model and log do not belong together.
    pub fn recover(
        setup: Setup,
        engine: Box<dyn Engine + Send>,
        records: impl IntoIterator<Item = (Height, Record)>,
    ) -> Result<Self, SetupError> {
        let key = setup.key.verifying_key();
        let me = setup.consortium.index_of(&key).ok_or_else(|| SetupError::NotAMember(key.to_string()))?;
        let heights = setup.round.heights(&setup.layout)?;
        let limit =
            |height| setup.round.layout_at(&setup.layout, Height(height)).map(|layout| largest_body_bytes(&layout));
        let body_limits = (0..heights).map(limit).collect::<Result<Vec<u64>, _>>()?;
        let mut machine = Self {
            setup,
            engine,
            me,
            heights,
            body_limits,
            phase: Phase::Joining,
            recalled: BTreeSet::new(),
            states: BTreeMap::new(),
            current: 0,
            clocks: BTreeMap::new(),
            pending: Vec::new(),
            concluding: false,
            concluded: false,
            finished: false,
            out: Vec::new(),
            unflushed: false,
        };
        machine.replay(records).map_err(SetupError::Log)?;
        machine.out.push(Effect::Recall);
        Ok(machine)
    }

    /// Carries on.
    #[must_use]
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        let taken = self.take(now_ms, input);
        self.finish(now_ms, taken)
    }

    /// Takes a message that a member passed on, its own or another's.
    #[must_use]
    pub fn receive(&mut self, now_ms: u64, bytes: &[u8]) -> (Verdict, Vec<Effect>) {
        match self.hear(bytes) {
            Ok(verdict) => {
                let fresh = matches!(verdict, Verdict::New);
                let effects = if fresh { self.finish(now_ms, Ok(())) } else { std::mem::take(&mut self.out) };
                (verdict, effects)
            }
            Err(error) => (Verdict::Bad(error), std::mem::take(&mut self.out)),
        }
    }

    /// When to `step` with [`Input::Tick`] at the latest.
    pub fn next_tick_ms(&self) -> Option<u64> {
        self.clocks.values().min().copied()
    }

    /// What to ask other members for, again and again.
    pub fn question(&self) -> Question {
        let height = Height(self.current.min(self.heights.saturating_sub(1)));
        let view =
            self.state(height).and_then(|state| state.agreement.as_ref()).map_or(0, |agreement| agreement.view());
        let messages = self.state(height).map(|state| state.store.messages(view.saturating_sub(1))).unwrap_or_default();
        let decision = self.state(height).and_then(|state| state.store.settled.as_ref()).map(decision_id);
        // a settled decision comes first, and is known by what was decided
        let messages = messages.iter().skip(usize::from(decision.is_some())).map(|bytes| short_id(bytes));
        let known = decision.into_iter().chain(messages).take(MAX_KNOWN).collect();
        if self.is_over() { Question::Finished { known } } else { Question::News { height, known } }
    }

    /// Whether a member that asks knows of something that this one has not seen, so that it is worth asking back.
    pub fn misses(&self, question: &Question) -> bool {
        let (height, known) = match question {
            Question::Mine => return false,
            Question::News { height, known } => (*height, known),
            Question::Finished { known } => (Height(self.heights.saturating_sub(1)), known),
        };
        if height.0 >= self.heights || height.0 < self.current {
            return false;
        }
        let Some(state) = self.state(height).filter(|_| height.0 == self.current) else { return true };
        let decision = state.store.settled.as_ref().map(decision_id);
        known.iter().any(|id| Some(*id) != decision && !state.store.has_seen_id(id))
    }

    /// What to answer a member that asks.
    pub fn answer(&self, from: MemberIndex, question: &Question) -> Vec<Vec<u8>> {
        let last = Height(self.heights.saturating_sub(1));
        let news = |height: Height, known: &[ShortId]| {
            let known: BTreeSet<&ShortId> = known.iter().collect();
            let Some(state) = self.state(height) else { return Vec::new() };
            let view = state.agreement.as_ref().map_or(0, |agreement| agreement.view());
            let mut messages = state.store.messages(view.saturating_sub(1));
            // another certificate of the same decision tells the asker nothing
            let decided = state.store.settled.as_ref().is_some_and(|settled| known.contains(&decision_id(settled)));
            messages.drain(..usize::from(decided));
            messages.retain(|bytes| !known.contains(&short_id(bytes)));
            messages
        };
        let messages = match question {
            Question::Mine => self.states.values().flat_map(|state| state.store.messages_of(from)).collect(),
            Question::News { height, known } => news(*height, known),
            Question::Finished { known } => news(last, known),
        };
        let mut room = MAX_ANSWER_BYTES - ANSWER_MARGIN_BYTES;
        let fits = |bytes: &Vec<u8>| match room.checked_sub(bytes.len().saturating_add(8)) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        };
        messages.into_iter().take_while(fits).collect()
    }

    /// Which member this is.
    pub fn me(&self) -> MemberIndex {
        self.me
    }

    /// How many heights the round has.
    pub fn heights(&self) -> u32 {
        self.heights
    }

    /// The height that is being worked on; the number of heights when all are certified.
    pub fn current(&self) -> Height {
        Height(self.current)
    }

    /// Whether a quorum has told what it has of ours.
    pub fn has_joined(&self) -> bool {
        self.phase != Phase::Joining
    }

    /// Whether this member's part of the round is over.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// The mask root of a height, once it is settled and tallied here.
    pub fn mask_root(&self, height: Height) -> Option<Digest> {
        let state = self.state(height)?;
        let ballots = state.settled_ballots()?;
        state.tallies.get(&flow::set_digest(&ballots)).copied()
    }

    /// The ballots that count at a height, once it is settled.
    pub fn ballots(&self, height: Height) -> Option<Vec<(MemberIndex, Digest)>> {
        self.state(height)?.settled_ballots()
    }

    /// What the current height waits for, in words.
    pub fn stage(&self) -> &'static str {
        let Some(state) = self.state(Height(self.current)) else { return "waiting" };
        if state.store.settled.is_some() {
            return if state.told_tallied { "collecting results" } else { "counting ballots" };
        }
        match (state.agreement.is_some(), state.store.holdings.contains_key(&self.me)) {
            (true, _) => "agreeing",
            (false, true) => "waiting for holdings of others",
            (false, false) if state.store.headers.contains_key(&self.me) => "waiting for ballots of others",
            _ if state.abstained => "waiting for ballots of others, without one of ours",
            _ => "computing our ballot",
        }
    }

    /// Who has a result at a height, ourselves included.
    pub fn results(&self, height: Height) -> usize {
        self.state(height).map_or(0, |state| state.store.results.len())
    }

    /// The signed header of a ballot that is known.
    pub fn header(
        &self,
        height: Height,
        member: MemberIndex,
        body: Digest,
    ) -> Option<&SignatureChecked<crate::BallotHeader>> {
        self.state(height)?.store.header_of(member, body)
    }

    /// What is known of a height: for transcripts.
    pub fn known(&self, height: Height) -> Option<Known<'_>> {
        self.state(height).map(|state| Known(&state.store))
    }

    /// Whether some member's body may be asked for: it is of a ballot that somebody signed in this round.
    pub fn knows_body(&self, body: Digest) -> bool {
        let headers = self.states.values().flat_map(|state| state.store.headers.values().flatten());
        headers.into_iter().any(|header| header.content().body == body)
    }

    fn quorum(&self) -> Quorum {
        self.setup.consortium.quorum()
    }

    fn rotation(&self, height: Height) -> Rotation {
        Rotation::new(self.setup.round.id(), height, self.quorum())
    }

    fn state(&self, height: Height) -> Option<&HeightState> {
        self.states.get(&height.0)
    }

    fn state_mut(&mut self, height: Height) -> &mut HeightState {
        let quorum = self.quorum();
        self.states.entry(height.0).or_insert_with(|| HeightState::new(quorum))
    }

    fn take(&mut self, now_ms: u64, input: Input) -> Result<(), MachineError> {
        match input {
            Input::Tick => return self.tick(now_ms),
            Input::Recalled { from, messages } => return self.recall(from, &messages),
            Input::Contributed { height, body, body_bytes, claimed_unix_ms } => {
                return self.contribute(height, body, body_bytes, claimed_unix_ms);
            }
            Input::Abstained { height, why } => {
                if height.0 == self.current && !self.state_mut(height).abstained {
                    self.state_mut(height).abstained = true;
                    self.append(height, Record::Abstained);
                    self.tell(Event::Abstained { height, why });
                }
            }
            Input::Stored { height, body } => self.stored(height, body),
            Input::Valid(ballot) => self.valid(ballot.height(), ballot.member(), ballot.body()),
            Input::Invalid { height, member, body, why } => {
                if self.state_mut(height).refused.insert((member, body)) {
                    self.append(height, Record::Refused(member, body));
                    self.tell(Event::Refused { height, member, why });
                }
            }
            Input::Tallied { height, set, mask_root } => {
                if self.state_mut(height).tallies.insert(set, mask_root).is_none() {
                    self.append(height, Record::Tallied(set, mask_root));
                }
            }
            Input::Concluded => self.concluded = true,
        }
        Ok(())
    }

    /// Carries on until nothing follows any more, and hands out what is to be done.
    fn finish(&mut self, now_ms: u64, taken: Result<(), MachineError>) -> Vec<Effect> {
        if self.phase != Phase::Over
            && let Err(error) = taken.and_then(|()| self.advance(now_ms))
        {
            self.phase = Phase::Over;
            self.clocks.clear();
            self.out.push(Effect::Failed(error));
        }
        self.flush();
        std::mem::take(&mut self.out)
    }

    fn tick(&mut self, now_ms: u64) -> Result<(), MachineError> {
        let due: Vec<Clock> = self.clocks.iter().filter(|(_, at)| **at <= now_ms).map(|(clock, _)| *clock).collect();
        for clock in due {
            self.clocks.remove(&clock);
            let height = Height(self.current);
            match clock {
                Clock::Contribution => self.state_mut(height).contribution_over = true,
                Clock::Abandon => self.state_mut(height).abandon_over = true,
                Clock::Agreement(timer) => self.agree(now_ms, crate::agreement::Input::Elapsed(timer))?,
            }
        }
        Ok(())
    }

    /// Puts a message where it belongs.
    fn hear(&mut self, bytes: &[u8]) -> Result<Verdict, MessageError> {
        if let Some(height) = message::claims(bytes)?.1 {
            if height.0 >= self.heights {
                return Err(MessageError::Height { height, heights: self.heights });
            }
            if height.0 > self.current.saturating_add(1) {
                return Ok(Verdict::Later);
            }
            if self.state(height).is_some_and(|state| state.store.has_seen(bytes)) {
                return Ok(Verdict::Known);
            }
        }
        let message = Message::read(bytes, &self.setup.consortium, &self.setup.round)?;
        let height = message.height();
        if height.0 >= self.heights {
            return Err(MessageError::Height { height, heights: self.heights });
        }
        if height.0 > self.current.saturating_add(1) {
            return Ok(Verdict::Later);
        }
        if let Message::Header(header) = &message {
            let limit =
                usize::try_from(height.0).ok().and_then(|height| self.body_limits.get(height)).copied().unwrap_or(0);
            let announced = header.content().body_bytes;
            if announced > limit {
                return Err(MessageError::BodyTooLarge { member: header.member(), bytes: announced, limit });
            }
        }
        Ok(self.put(height, message, bytes, false))
    }

    /// Stores a message and what follows at once from it; `ours` if it is written down already.
    fn put(&mut self, height: Height, message: Message, bytes: &[u8], recorded: bool) -> Verdict {
        let (member, me) = (message.member(), self.me);
        let ours = if member == Some(me) { message.kind() } else { None };
        let vote = matches!(message, Message::Prevote(_) | Message::Precommit(_));
        let header = if let Message::Header(header) = &message { Some(header.clone()) } else { None };
        let proof = if let Message::Evidence(evidence) = &message { Some(evidence.clone()) } else { None };
        let state = self.state_mut(height);
        let added = state.store.add(message);
        if !matches!(added, Added::Excess) {
            state.store.note_seen(bytes);
        }
        match added {
            Added::Known | Added::Excess => Verdict::Known,
            Added::New => {
                if let Some(evidence) = proof {
                    let slot = evidence.slot();
                    self.tell(Event::Equivocation { height, member: slot.place.member, kind: slot.kind });
                    for prevote in evidence.prevotes().filter(|prevote| prevote.member() != me) {
                        self.state_mut(height).store.add(Message::Prevote(prevote.clone()));
                        self.queue_for_agreement(height, prevote.member(), &prevote.encode());
                    }
                }
                if let Some(kind) = ours.filter(|_| !recorded) {
                    self.adopt(height, kind, bytes);
                } else if !recorded && !vote {
                    // votes of others that matter are in the journal of the agreement
                    self.append(height, Record::Heard(bytes.to_vec()));
                }
                if let Some(header) = header {
                    self.tell_same_ballot(&header);
                }
                if let Some(member) = member.filter(|member| *member != me) {
                    self.queue_for_agreement(height, member, bytes);
                }
                Verdict::New
            }
            Added::Conflict(evidence) => {
                let slot = evidence.slot();
                let encoded = evidence.encode();
                if !recorded {
                    self.append(height, Record::Heard(bytes.to_vec()));
                    self.append(height, Record::Heard(encoded.clone()));
                    self.publish(encoded);
                }
                self.tell(Event::Equivocation { height, member: slot.place.member, kind: slot.kind });
                if slot.kind == Kind::Prevote {
                    // a quorum may rest on it
                    self.queue_for_agreement(height, slot.place.member, bytes);
                }
                Verdict::New
            }
        }
    }

    fn tell_same_ballot(&mut self, header: &SignatureChecked<crate::BallotHeader>) {
        let (height, member, body) = (header.height(), header.member(), header.content().body);
        let Some(state) = self.state(height) else { return };
        let same = state.store.headers.iter().filter(|(other, _)| **other != member);
        let mut same = same.filter(|(_, headers)| headers.iter().any(|other| other.content().body == body));
        if let Some((other, _)) = same.next() {
            let members = [(*other).min(member), (*other).max(member)];
            self.tell(Event::SameBallot { height, members });
        }
    }

    fn append(&mut self, height: Height, record: Record) {
        self.unflushed = true;
        self.out.push(Effect::Append(height, record));
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed) {
            self.out.push(Effect::Flush);
        }
    }

    fn publish(&mut self, bytes: Vec<u8>) {
        self.flush();
        self.out.push(Effect::Publish(bytes));
    }

    fn tell(&mut self, event: Event) {
        self.out.push(Effect::Tell(event));
    }

    fn second(kind: Kind, height: Height) -> MachineError {
        MachineError::SecondStatement { kind, height }
    }
}

impl HeightState {
    fn new(quorum: Quorum) -> Self {
        Self {
            store: Store::new(quorum),
            held: vec![None; quorum.n()],
            valid: BTreeSet::new(),
            refused: BTreeSet::new(),
            journal: Vec::new(),
            tallies: BTreeMap::new(),
            silent: false,
            abstained: false,
            agreement: None,
            view_told: None,
            wanted: None,
            judging: Vec::new(),
            grounds: BTreeMap::new(),
            entered: false,
            computing: false,
            fetching: BTreeSet::new(),
            validating: BTreeSet::new(),
            tallying: BTreeSet::new(),
            told_decided: false,
            told_tallied: false,
            contribution_over: false,
            abandon_over: false,
        }
    }

    /// The ballots that count, unless the height is abandoned or not settled.
    fn settled_ballots(&self) -> Option<Vec<(MemberIndex, Digest)>> {
        let manifest = self.store.settled.as_ref()?.decision().ballots()?;
        Some(manifest.contributors().collect())
    }
}
