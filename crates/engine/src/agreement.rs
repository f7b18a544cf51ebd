//! One height: inputs to malachite, its effects to actions, and its state back from a journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_malachitebft_core_consensus::{Error, Input as CoreInput, LocallyProposedValue, Params, State, process};
use arc_malachitebft_core_types::{
    Round, RoundCertificate, RoundCertificateType, SignedVote, ValueOrigin, ValuePayload, VoteExtensionPolicy, VoteType,
};
use fedprune_federation::agreement::{Action, Agreement, AgreementError, Input, Repeated, Timer, TimerKind};
use fedprune_federation::statement::Statement;
use fedprune_federation::{Height, Prevote, Proposal, Rotation, SignatureChecked};
use fedprune_mask::Digest;

use crate::ahead::{Ahead, horizon};
use crate::book::{Heard, same};
use crate::context::{
    Context, CoreAddress, CoreMembers, CoreValue, core_proposal, core_timeout, core_vote, facts, thresholds,
};
use crate::effects::{Clerk, Own, Seat};
use crate::journal::{Entry, Judgement, certificate, chain};

/// Most proposals of one view that are looked at; one more if a quorum prevotes its value.
const MAX_PROPOSALS: usize = 2;
/// Malachite's queues hold what comes before the height starts: nothing does.
const QUEUED_HEIGHTS: usize = 1;
/// Inputs in each of them.
const QUEUED_INPUTS: usize = 1;

/// Of a proposal that waits: view, value, valid view.
type Waiting = BTreeMap<(u32, Digest, Option<u32>), SignatureChecked<Proposal>>;

/// The agreement on one height.
pub(crate) struct MalachiteAgreement {
    state: State<Context>,
    clerk: Clerk,
    rotation: Arc<Rotation>,
    members: CoreMembers,
    /// Proposals that were not judged yet.
    waiting: Waiting,
    ahead: Ahead,
    /// Our key was used elsewhere.
    abstained: bool,
    done: bool,
}

impl MalachiteAgreement {
    fn new(seat: Arc<Seat>, height: Height, participates: bool) -> Self {
        let quorum = seat.consortium.quorum();
        let rotation = Arc::new(Rotation::new(seat.round, height, quorum));
        let members = CoreMembers::of(&seat.consortium);
        let params = Params {
            address: CoreAddress(seat.member),
            threshold_params: thresholds(quorum),
            // malachite would take every value for valid with `ProposalOnly`
            value_payload: ValuePayload::ProposalAndParts,
            enabled: participates,
        };
        let context = Context { rotation: Arc::clone(&rotation) };
        let state = State::new(context, height.into(), members.clone(), params, QUEUED_HEIGHTS, QUEUED_INPUTS);
        Self {
            state,
            clerk: Clerk::new(seat, height, participates),
            rotation,
            members,
            waiting: Waiting::new(),
            ahead: Ahead::default(),
            abstained: false,
            done: false,
        }
    }

    /// The agreement as it was when the last entry was recorded, and what to do now.
    pub(crate) fn resume(
        seat: Arc<Seat>,
        height: Height,
        journal: &[Vec<u8>],
        participates: bool,
    ) -> Result<(Self, Vec<Action>), AgreementError> {
        let mut agreement = Self::new(seat, height, participates);
        let failed = |why| AgreementError::Engine { height, why };
        if journal.is_empty() {
            agreement.clerk.record(&Entry::Began);
            agreement.start().map_err(failed)?;
        } else {
            agreement.replay(journal).map_err(|(entry, why)| AgreementError::Journal { height, entry, why })?;
            agreement.reappear().map_err(failed)?;
        }
        agreement.settle().map_err(failed)?;
        let actions = agreement.finish();
        Ok((agreement, actions))
    }

    fn start(&mut self) -> Result<(), String> {
        let height = self.clerk.height.into();
        let members = self.members.clone();
        self.feed(CoreInput::StartHeight(height, members, false, None, VoteExtensionPolicy::Disabled))
    }

    /// Brings back the state; nothing is done, and what is signed for the first time is recorded.
    fn replay(&mut self, journal: &[Vec<u8>]) -> Result<(), (usize, String)> {
        let height = self.clerk.height;
        let mut entries = Vec::with_capacity(journal.len());
        for (number, bytes) in journal.iter().enumerate() {
            let at = |why| (number, why);
            let entry = Entry::decode(bytes, self.clerk.owner()).map_err(at)?;
            if (number == 0) != (entry == Entry::Began) {
                return Err(at("a journal begins once, at its first entry".to_owned()));
            }
            let input = entry.input(height).map_err(at)?;
            entries.push((entry, input));
        }
        // all of it before anything is replayed: no slot that is filled anywhere in it is filled anew
        for (entry, _) in &entries {
            self.note(entry);
        }
        self.clerk.replaying = true;
        self.start().map_err(|why| (0, why))?;
        self.state.index_wal_entries(entries.iter().filter_map(|(_, input)| input.as_ref()));
        for (number, (entry, input)) in entries.into_iter().enumerate() {
            self.replay_entry(entry, input).map_err(|why| (number, why))?;
        }
        self.state.reset_entries_index();
        self.clerk.replaying = false;
        Ok(())
    }

    fn note(&mut self, entry: &Entry) {
        let me = self.clerk.seat.member;
        match entry {
            Entry::Proposal(proposal) => {
                self.clerk.book.add_proposal(proposal);
                if proposal.member() == me {
                    self.clerk.recorded.insert(Own::Proposal(proposal.content().view));
                }
            }
            Entry::Waiting(proposal) => {
                self.clerk.book.add_proposal(proposal);
            }
            Entry::Vote(vote) => {
                self.clerk.book.add_vote(vote);
                let told = facts(vote);
                if told.member == me {
                    self.clerk.recorded.insert(Own::Vote(told.kind, told.view));
                }
            }
            Entry::Polka(prevotes) => {
                for prevote in prevotes {
                    self.clerk.book.add_certified(prevote);
                }
            }
            Entry::Began | Entry::Judged(_) | Entry::Elapsed(_) | Entry::Abstained => {}
        }
    }

    fn replay_entry(&mut self, entry: Entry, input: Option<CoreInput<Context>>) -> Result<(), String> {
        match &entry {
            Entry::Waiting(proposal) => {
                self.waiting.insert(key(proposal), proposal.clone());
            }
            Entry::Proposal(proposal) => {
                self.waiting.remove(&key(proposal));
                // a value of our own is proposed from outside, so only what is proposed again can be derived
                if proposal.content().valid_view.is_some() {
                    self.check_derived(proposal.member(), Own::Proposal(proposal.content().view))?;
                }
            }
            Entry::Vote(vote) => {
                let told = facts(vote);
                self.check_derived(told.member, Own::Vote(told.kind, told.view))?;
            }
            Entry::Elapsed(timer) => {
                self.clerk.timers.remove(timer);
            }
            Entry::Abstained => self.abstain(),
            Entry::Began | Entry::Judged(_) | Entry::Polka(_) => {}
        }
        match input {
            Some(input) => self.feed(input),
            None => Ok(()),
        }
    }

    /// A statement of ours follows from what was recorded before it. If it does not, entries are missing, among
    /// them perhaps the one that tells on which value we are locked.
    fn check_derived(&self, member: fedprune_federation::MemberIndex, own: Own) -> Result<(), String> {
        if member == self.clerk.seat.member && self.clerk.participates && !self.clerk.derived.contains(&own) {
            return Err(format!("it is a statement of ours that does not follow from the entries before it ({own:?})"));
        }
        Ok(())
    }

    /// What has to be done again after a restart: the crash may have come before it was done.
    fn reappear(&mut self) -> Result<(), String> {
        let view = self.current_view();
        for timer in self.clerk.timers.clone() {
            self.clerk.act(Action::Set(timer));
        }
        if self.clerk.participates {
            let me = self.clerk.seat.member;
            if let Some(proposal) = self.clerk.book.proposal_of(view, me).cloned() {
                self.clerk.act(Action::Propose(proposal));
            }
            for kind in [VoteType::Prevote, VoteType::Precommit] {
                match self.clerk.book.first(view, kind, me).cloned() {
                    Some(Repeated::Prevote(vote)) => self.clerk.act(Action::Prevote(vote)),
                    Some(Repeated::Precommit(vote)) => self.clerk.act(Action::Precommit(vote)),
                    None => {}
                }
            }
            if self.our_turn(view) {
                self.clerk.act(Action::Want { view });
            }
        }
        for proposal in std::mem::take(&mut self.waiting).into_values() {
            self.admit_or_ask(proposal)?;
        }
        Ok(())
    }

    /// Whether we are to propose, and have not.
    fn our_turn(&self, view: u32) -> bool {
        let me = self.clerk.seat.member;
        self.clerk.participates
            && self.clerk.decided.is_none()
            && view == self.current_view()
            && self.rotation.aggregator(view) == me
            && self.state.driver.step_is_propose()
            && self.clerk.book.proposal_of(view, me).is_none()
    }

    fn current_view(&self) -> u32 {
        self.state.round().as_u32().unwrap_or(0)
    }

    /// Whether a statement is of this agreement.
    fn is_ours<T: Statement>(&self, statement: &SignatureChecked<T>) -> bool {
        let seat = &self.clerk.seat;
        let place = (statement.consortium(), statement.round(), statement.height());
        place == (seat.consortium.id(), seat.round, self.clerk.height)
    }

    fn take(&mut self, input: Input) -> Result<(), String> {
        match input {
            Input::Proposal(proposal) if self.is_ours(&proposal) => self.hear_proposal(proposal),
            Input::Prevote(vote) if self.is_ours(&vote) => self.hear_vote(&Repeated::Prevote(vote)),
            Input::Precommit(vote) if self.is_ours(&vote) => self.hear_vote(&Repeated::Precommit(vote)),
            Input::Proposal(_) | Input::Prevote(_) | Input::Precommit(_) => Ok(()),
            Input::Judged { proposal, valid } => self.judged(&proposal, valid),
            Input::Propose { view, value } => self.propose(view, value),
            Input::Elapsed(timer) => self.elapsed(timer),
        }
    }

    fn hear_proposal(&mut self, proposal: SignatureChecked<Proposal>) -> Result<(), String> {
        let Proposal { view, value, .. } = *proposal.content();
        let known = self.clerk.book.proposals(view);
        if self.rotation.aggregator(view) != proposal.member()
            || view > horizon(self.current_view())
            || known.iter().any(|other| same(other, &proposal))
        {
            return Ok(());
        }
        if known.len() >= MAX_PROPOSALS {
            let new = !known.iter().any(|other| other.content().value == value);
            if !new || self.clerk.book.polka(view, value).is_none() {
                return Ok(());
            }
        }
        if proposal.member() == self.clerk.seat.member {
            self.give_up_signing();
        }
        self.clerk.book.add_proposal(&proposal);
        if !self.is_valid(value) {
            self.clerk.record(&Entry::Waiting(proposal.clone()));
        }
        self.admit_or_ask(proposal)
    }

    /// A value is judged before malachite hears of the proposal, since it would prevote nil at once for a value
    /// that came with bad grounds before and comes with good ones now.
    fn admit_or_ask(&mut self, proposal: SignatureChecked<Proposal>) -> Result<(), String> {
        if self.is_valid(proposal.content().value) {
            return self.feed(CoreInput::Proposal(core_proposal(&proposal)));
        }
        self.clerk.act(Action::Judge(proposal.clone()));
        self.waiting.insert(key(&proposal), proposal);
        Ok(())
    }

    fn is_valid(&self, value: Digest) -> bool {
        let known = self.state.get_proposed_value_by_id(self.clerk.height.into(), Round::ZERO, &CoreValue(value));
        known.is_some_and(|known| known.validity.is_valid())
    }

    fn judged(&mut self, proposal: &SignatureChecked<Proposal>, valid: bool) -> Result<(), String> {
        let Some(proposal) = self.waiting.remove(&key(proposal)) else { return Ok(()) };
        let Proposal { view, value, valid_view } = *proposal.content();
        self.judge(Judgement { view, valid_view, proposer: proposal.member(), value, valid })?;
        self.feed(CoreInput::Proposal(core_proposal(&proposal)))?;
        // the others of that value need no judgement of their own any more
        if self.is_valid(value) {
            let same_value = self.waiting.extract_if(.., |key, _| key.1 == value);
            for (_, proposal) in same_value.collect::<Vec<_>>() {
                self.feed(CoreInput::Proposal(core_proposal(&proposal)))?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, judgement: Judgement) -> Result<(), String> {
        let value = judgement.proposed_value(self.clerk.height);
        self.feed(CoreInput::ProposedValue(value, ValueOrigin::Consensus))
    }

    fn propose(&mut self, view: u32, value: Digest) -> Result<(), String> {
        if !self.our_turn(view) {
            return Ok(());
        }
        // told first, and in the same words as malachite records it: its own path does not look whether the value
        // is proposed elsewhere, and a replay of the record would
        let proposer = self.clerk.seat.member;
        self.judge(Judgement { view, valid_view: None, proposer, value, valid: true })?;
        let (height, round) = (self.clerk.height.into(), Round::new(view));
        self.feed(CoreInput::Propose(LocallyProposedValue::new(height, round, CoreValue(value))))
    }

    fn elapsed(&mut self, timer: Timer) -> Result<(), String> {
        if !self.clerk.timers.remove(&timer) {
            return Ok(());
        }
        self.feed(CoreInput::TimeoutElapsed(core_timeout(timer)))?;
        if timer.kind == TimerKind::Repeat && timer.view == self.current_view() {
            self.repeat_proposal(timer.view);
        }
        Ok(())
    }

    /// Malachite repeats votes only.
    fn repeat_proposal(&mut self, view: u32) {
        if !self.clerk.participates {
            return;
        }
        if let Some(proposal) = self.clerk.book.proposal_of(view, self.clerk.seat.member).cloned() {
            let Proposal { value, valid_view, .. } = *proposal.content();
            if let Some(prevotes) = valid_view.and_then(|view| self.clerk.book.polka(view, value)) {
                let prevotes = prevotes.into_iter().cloned().collect();
                self.clerk.act(Action::Repeat(prevotes));
            }
            self.clerk.act(Action::Propose(proposal));
        }
    }

    fn hear_vote(&mut self, vote: &Repeated) -> Result<(), String> {
        let told = facts(vote);
        if told.view > horizon(self.current_view()) {
            self.ahead.keep(vote);
            return Ok(());
        }
        let ours = told.member == self.clerk.seat.member;
        if ours && self.clerk.book.vote(told.view, told.kind, told.member, told.value).is_none() {
            self.give_up_signing();
        }
        match self.clerk.book.add_vote(vote) {
            Heard::First => self.feed(CoreInput::Vote(core_vote(vote, self.clerk.height))),
            Heard::Second | Heard::Nothing => Ok(()),
        }
    }

    /// Somebody heard a statement of ours that we do not know: the key is used twice, or our journal is not the
    /// latest. Which value we are locked on is then unknown, so nothing more is signed at this height.
    fn give_up_signing(&mut self) {
        if !self.abstained {
            self.clerk.record(&Entry::Abstained);
            self.abstain();
        }
    }

    fn abstain(&mut self) {
        self.abstained = true;
        self.clerk.participates = false;
        self.state.params.enabled = false;
    }

    /// What follows from what is known, beyond what malachite sees in single votes.
    fn settle(&mut self) -> Result<(), String> {
        while self.clerk.decided.is_none() {
            let near = self.ahead.within(horizon(self.current_view()));
            if !near.is_empty() {
                for vote in near {
                    self.hear_vote(&vote)?;
                }
                continue;
            }
            let votes = self.ahead.enterable(self.clerk.seat.consortium.quorum().one_honest());
            if !votes.is_empty() {
                self.enter(votes)?;
                continue;
            }
            let Some((view, value)) = self.unseen_polka() else { break };
            let polka = self.polka(view, value)?;
            self.feed(CoreInput::PolkaCertificate(certificate(polka.iter(), self.clerk.height)?))?;
        }
        Ok(())
    }

    /// A quorum of prevotes that matters now and that malachite does not have, because it counts the first prevote
    /// of each member, or because it forgot those of views before the one in which it locked.
    fn unseen_polka(&self) -> Option<(u32, Digest)> {
        let view = self.current_view();
        let proposed = self.clerk.book.proposals(view).iter().filter_map(|proposal| {
            let Proposal { value, valid_view, .. } = *proposal.content();
            valid_view.filter(|valid| self.clerk.book.polka(*valid, value).is_some()).map(|valid| (valid, value))
        });
        let current = self.clerk.book.polkas(view).map(|value| (view, value));
        let unseen = |(view, value): &(u32, Digest)| {
            self.state.polka_certificate(Round::new(*view), &CoreValue(*value)).is_none()
        };
        current.chain(proposed).find(unseen)
    }

    fn polka(&self, view: u32, value: Digest) -> Result<Vec<SignatureChecked<Prevote>>, String> {
        let prevotes = self.clerk.book.polka(view, value).ok_or("a quorum of prevotes is gone")?;
        let prevote = |vote: &&Repeated| match vote {
            Repeated::Prevote(prevote) => Some(prevote.clone()),
            Repeated::Precommit(_) => None,
        };
        Ok(prevotes.iter().filter_map(prevote).collect())
    }

    /// Enters a view far ahead, by votes of f + 1 members in it.
    fn enter(&mut self, votes: Vec<Repeated>) -> Result<(), String> {
        let mut members = BTreeSet::new();
        let (mut entrance, mut others) = (Vec::<SignedVote<Context>>::new(), Vec::new());
        for vote in votes {
            if members.insert(facts(&vote).member) && self.clerk.book.add_vote(&vote) == Heard::First {
                entrance.push(core_vote(&vote, self.clerk.height));
            } else {
                others.push(vote);
            }
        }
        if let Some(view) = entrance.first().map(|vote| vote.message.round) {
            let (height, kind) = (self.clerk.height.into(), RoundCertificateType::Skip);
            let certificate = RoundCertificate::new_from_votes(height, view, kind, entrance);
            self.feed(CoreInput::RoundCertificate(certificate))?;
        }
        for vote in others {
            self.hear_vote(&vote)?;
        }
        Ok(())
    }

    fn feed(&mut self, input: CoreInput<Context>) -> Result<(), String> {
        let Self { state, clerk, .. } = self;
        if clerk.decided.is_some() {
            return Ok(());
        }
        let result: Result<(), Error<Context>> =
            process!(input: input, state: state, metrics: &(), with: effect => clerk.handle(effect));
        match clerk.fault.clone() {
            Some(why) => Err(why),
            None => result.map_err(|error| chain(&error)),
        }
    }

    /// What is to be done. Nothing follows a decision but what was recorded and said on the way to it.
    fn finish(&mut self) -> Vec<Action> {
        let mut actions = std::mem::take(&mut self.clerk.actions);
        if let Some(certificate) = self.clerk.decided.clone()
            && !self.done
        {
            self.done = true;
            actions.retain(|action| {
                matches!(
                    action,
                    Action::Record(_)
                        | Action::Propose(_)
                        | Action::Prevote(_)
                        | Action::Precommit(_)
                        | Action::Repeat(_)
                )
            });
            actions.push(Action::CancelAll);
            actions.push(Action::Decided(certificate));
        }
        actions
    }
}

impl Agreement for MalachiteAgreement {
    fn step(&mut self, input: Input) -> Result<Vec<Action>, AgreementError> {
        let height = self.clerk.height;
        if let Some(why) = self.clerk.fault.clone() {
            return Err(AgreementError::Engine { height, why });
        }
        if self.done {
            return Ok(Vec::new());
        }
        match self.take(input).and_then(|()| self.settle()) {
            Ok(()) => Ok(self.finish()),
            Err(why) => {
                // malachite may have stopped half-way
                self.clerk.fault = Some(why.clone());
                Err(AgreementError::Engine { height, why })
            }
        }
    }

    fn view(&self) -> u32 {
        self.current_view()
    }
}

fn key(proposal: &SignatureChecked<Proposal>) -> (u32, Digest, Option<u32>) {
    let Proposal { view, value, valid_view } = *proposal.content();
    (view, value, valid_view)
}

#[cfg(test)]
mod tests;
