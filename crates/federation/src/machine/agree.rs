//! Between a height and the engine that carries out its agreement: what is proposed, what may be agreed on,
//! and what becomes of the engine's actions.

use std::collections::BTreeSet;

use fedprune_mask::Digest;

use super::flow::set_digest;
use super::message::{Message, ShortId, short_id};
use super::{Clock, Effect, Event, Machine, MachineError, Record};
use crate::agreement::{Action, Input, Repeated, TimerKind};
use crate::certificate::Certificate;
use crate::holdings::Holdings;
use crate::ids::{Height, MemberIndex};
use crate::manifest::Manifest;
use crate::proposed::{Justified, Proposed, Settled};
use crate::round::TallyBy;
use crate::signing::Kind;
use crate::statement::SignatureChecked;
use crate::vote::Proposal;

fn encoded(vote: &Repeated) -> Vec<u8> {
    match vote {
        Repeated::Prevote(vote) => vote.encode(),
        Repeated::Precommit(vote) => vote.encode(),
    }
}

impl Machine {
    /// Starts the agreement on the current height, with what is known of it.
    pub(super) fn start_agreement(&mut self, now_ms: u64) -> Result<(), MachineError> {
        let height = Height(self.current);
        let state = self.state_mut(height);
        let (journal, participate) = (state.journal.clone(), !state.silent);
        let (agreement, actions) = self.engine.resume(height, &journal, participate)?;
        self.state_mut(height).agreement = Some(agreement);
        self.act(now_ms, height, actions)?;
        let recorded: BTreeSet<ShortId> =
            self.engine.votes(height, &journal).iter().map(|vote| short_id(&encoded(vote))).collect();
        let (me, mut inputs) = (self.me, Vec::new());
        let store = &self.state_mut(height).store;
        for ((_, member), proposed) in &store.proposals {
            if *member != me {
                inputs.push(Input::Proposal(proposed.proposal().clone()));
            }
        }
        for ((_, member), (proposal, _)) in &store.unfounded {
            if *member != me {
                inputs.push(Input::Proposal(proposal.clone()));
            }
        }
        // those in the journal were taken from it
        let fresh = |member: MemberIndex, bytes: &[u8]| member != me && !recorded.contains(&short_id(bytes));
        let prevotes = store.all_prevotes().filter(|vote| fresh(vote.member(), &vote.encode()));
        inputs.extend(prevotes.cloned().map(Input::Prevote));
        let precommits = store.precommits.values().filter(|vote| fresh(vote.member(), &vote.encode()));
        inputs.extend(precommits.cloned().map(Input::Precommit));
        for input in inputs {
            self.agree(now_ms, input)?;
        }
        Ok(())
    }

    /// Hands a statement of another member to the agreement, if there is one at its height.
    pub(super) fn queue_for_agreement(&mut self, height: Height, member: MemberIndex, bytes: &[u8]) {
        let waiting = self.state(height).is_some_and(|state| state.agreement.is_some());
        if waiting && height.0 == self.current && member != self.me {
            self.pending.push(bytes.to_vec());
        }
    }

    /// Gives the agreement what arrived since.
    pub(super) fn feed(&mut self, now_ms: u64) -> Result<bool, MachineError> {
        let pending = std::mem::take(&mut self.pending);
        let fed = !pending.is_empty();
        for bytes in pending {
            let Ok(message) = Message::read(&bytes, &self.setup.consortium, &self.setup.round) else { continue };
            let input = match message {
                Message::Proposed(proposed) => Input::Proposal(proposed.proposal().clone()),
                Message::Unfounded(unfounded) => Input::Proposal(unfounded.proposal),
                Message::Prevote(vote) => Input::Prevote(vote),
                Message::Precommit(vote) => Input::Precommit(vote),
                _ => continue,
            };
            self.agree(now_ms, input)?;
        }
        Ok(fed)
    }

    /// One step of the agreement on the current height.
    pub(super) fn agree(&mut self, now_ms: u64, input: Input) -> Result<(), MachineError> {
        let height = Height(self.current);
        let Some(agreement) = self.state_mut(height).agreement.as_mut() else { return Ok(()) };
        let actions = agreement.step(input)?;
        self.act(now_ms, height, actions)
    }

    fn act(&mut self, now_ms: u64, height: Height, actions: Vec<Action>) -> Result<(), MachineError> {
        for action in actions {
            match action {
                Action::Record(entry) => {
                    self.state_mut(height).journal.push(entry.clone());
                    self.append(height, Record::Journal(entry));
                }
                Action::Propose(proposal) => self.say_proposal(height, proposal)?,
                Action::Prevote(vote) => {
                    let bytes = vote.encode();
                    self.say_vote(height, Kind::Prevote, Message::Prevote(vote), bytes)?;
                }
                Action::Precommit(vote) => {
                    let bytes = vote.encode();
                    self.say_vote(height, Kind::Precommit, Message::Precommit(vote), bytes)?;
                }
                Action::Repeat(votes) => {
                    for vote in votes {
                        self.publish(encoded(&vote));
                    }
                }
                Action::Want { view } => self.state_mut(height).wanted = Some(view),
                Action::Judge(proposal) => self.state_mut(height).judging.push(proposal),
                Action::Set(timer) => {
                    let timers = self.setup.round.terms().timers;
                    let base_ms = match timer.kind {
                        TimerKind::Proposal => timers.proposal_ms,
                        TimerKind::Prevote | TimerKind::Precommit => timers.vote_ms,
                        TimerKind::Repeat => timers.vote_ms.saturating_mul(2),
                    };
                    let wait_ms = base_ms.saturating_add(timers.growth_ms.saturating_mul(u64::from(timer.view)));
                    self.clocks.insert(Clock::Agreement(timer), now_ms.saturating_add(wait_ms));
                }
                Action::Cancel(timer) => {
                    self.clocks.remove(&Clock::Agreement(timer));
                }
                Action::CancelAll => self.clocks.retain(|clock, _| !matches!(clock, Clock::Agreement(_))),
                Action::Decided(certificate) => self.decided(height, certificate)?,
            }
        }
        self.tell_view(height);
        Ok(())
    }

    fn tell_view(&mut self, height: Height) {
        let state = self.state_mut(height);
        let Some(view) = state.agreement.as_ref().map(|agreement| agreement.view()) else { return };
        state.store.view = view;
        if state.view_told != Some(view) && state.store.settled.is_none() {
            state.view_told = Some(view);
            let aggregator = self.rotation(height).aggregator(view);
            self.tell(Event::View { height, view, aggregator });
        }
    }

    fn say_proposal(&mut self, height: Height, proposal: SignatureChecked<Proposal>) -> Result<(), MachineError> {
        let state = self.state_mut(height);
        let value = proposal.content().value;
        let known = state.store.proposed(value).map(|proposed| proposed.justified().clone());
        let known = state.grounds.get(&value).cloned().or(known);
        let Some(justified) = known.or_else(|| self.grounds_again(height, value)) else { return Ok(()) };
        let Ok(proposed) = Proposed::new(proposal, justified) else { return Ok(()) };
        let state = self.state_mut(height);
        let key = (proposed.proposal().content().view, proposed.proposal().member());
        if let Some(before) = state.store.proposals.get(&key)
            && before.proposal() != proposed.proposal()
        {
            return Err(Self::second(Kind::Proposal, height));
        }
        let bytes = proposed.encode();
        self.write_down(height, Message::Proposed(Box::new(proposed)), &bytes);
        self.publish(bytes);
        Ok(())
    }

    fn say_vote(&mut self, height: Height, kind: Kind, message: Message, bytes: Vec<u8>) -> Result<(), MachineError> {
        let store = &self.state_mut(height).store;
        let differs = match &message {
            Message::Prevote(vote) => {
                store.prevotes.get(&(vote.member(), vote.content().view)).is_some_and(|before| before != vote)
            }
            Message::Precommit(vote) => {
                store.precommits.get(&(vote.member(), vote.content().view)).is_some_and(|before| before != vote)
            }
            _ => false,
        };
        if differs {
            return Err(Self::second(kind, height));
        }
        self.write_down(height, message, &bytes);
        self.publish(bytes);
        Ok(())
    }

    /// Keeps and records what this member says; once.
    pub(super) fn write_down(&mut self, height: Height, message: Message, bytes: &[u8]) {
        let state = self.state_mut(height);
        if state.store.has_seen(bytes) {
            return;
        }
        state.store.note_seen(bytes);
        state.store.add(message);
        self.append(height, Record::Said(bytes.to_vec()));
    }

    /// Proposes, if it is our turn and there is something to propose. Returns whether it did.
    pub(super) fn try_propose(&mut self, now_ms: u64) -> Result<bool, MachineError> {
        let height = Height(self.current);
        let Some(view) = self.state_mut(height).wanted else { return Ok(false) };
        let Some(justified) = self.grounds_now(height) else { return Ok(false) };
        let value = justified.decision().value();
        let state = self.state_mut(height);
        state.wanted = None;
        state.grounds.insert(value, justified);
        self.agree(now_ms, Input::Propose { view, value })?;
        Ok(true)
    }

    /// What a proposal of ours rests on that stands in the journal only: a crash took what was to be written after it. What
    /// it followed from is in the log before it, so that it follows again; without anybody else nobody could propose more.
    fn grounds_again(&mut self, height: Height, value: Digest) -> Option<Justified> {
        let abandoned = Justified::abandoned(height, &self.setup.consortium, &self.setup.round);
        let mut found = [self.grounds_now(height), Some(abandoned)].into_iter().flatten();
        let justified = found.find(|justified| justified.decision().value() == value)?;
        self.state_mut(height).grounds.insert(value, justified.clone());
        Some(justified)
    }

    /// What we would propose now.
    fn grounds_now(&mut self, height: Height) -> Option<Justified> {
        let Some(statements) = self.best_statements(height) else {
            let over = self.state(height).is_some_and(|state| state.abandon_over);
            return over.then(|| Justified::abandoned(height, &self.setup.consortium, &self.setup.round));
        };
        let mask_root = match self.setup.round.terms().tally {
            TallyBy::EveryPeer => None,
            TallyBy::Elected => {
                let manifest =
                    Manifest::from_holdings(&statements, height, &self.setup.consortium, &self.setup.round).ok()?;
                let ballots: Vec<_> = manifest.contributors().collect();
                Some(self.tally_of(height, &ballots)?)
            }
        };
        Justified::from_holdings(&statements, height, mask_root, &self.setup.consortium, &self.setup.round).ok()
    }

    /// The q statements that hold most, if they make a manifest.
    pub(super) fn best_statements(&self, height: Height) -> Option<Vec<SignatureChecked<Holdings>>> {
        let mut statements: Vec<_> = self.state(height)?.store.holdings.values().collect();
        statements.sort_by_key(|statement| (std::cmp::Reverse(statement.content().count()), statement.member()));
        let chosen: Vec<_> = statements.into_iter().take(self.quorum().q()).cloned().collect();
        Manifest::from_holdings(&chosen, height, &self.setup.consortium, &self.setup.round).ok()?;
        Some(chosen)
    }

    /// Judges proposals that wait for it. Returns whether there was any that could be.
    pub(super) fn try_judge(&mut self, now_ms: u64) -> Result<bool, MachineError> {
        let height = Height(self.current);
        let waiting = std::mem::take(&mut self.state_mut(height).judging);
        let mut judged = false;
        let mut still = Vec::new();
        for proposal in waiting {
            match self.judge(height, &proposal) {
                None => still.push(proposal),
                Some(verdict) => {
                    judged = true;
                    if let Err(why) = &verdict {
                        let (view, member) = (proposal.content().view, proposal.member());
                        self.tell(Event::BadProposal { height, view, member, why: why.clone() });
                    }
                    self.agree(now_ms, Input::Judged { proposal, valid: verdict.is_ok() })?;
                }
            }
        }
        self.state_mut(height).judging.extend(still);
        Ok(judged)
    }

    /// Whether a proposal may be agreed on; nothing while that is not known.
    fn judge(&mut self, height: Height, proposal: &SignatureChecked<Proposal>) -> Option<Result<(), String>> {
        let state = self.state(height)?;
        let key = (proposal.content().view, proposal.member());
        if state.store.unfounded.contains_key(&key) {
            return Some(Err("it is no decision of this round".to_owned()));
        }
        let value = proposal.content().value;
        let decision = match state.store.proposed(value) {
            Some(proposed) => proposed.justified().decision().clone(),
            None => state.grounds.get(&value)?.decision().clone(),
        };
        let Some(manifest) = decision.ballots() else {
            return Some(if state.abandon_over { Ok(()) } else { Err("it is too early to abandon".to_owned()) });
        };
        let Some(proposed) = decision.mask_root() else { return Some(Ok(())) };
        let ballots: Vec<_> = manifest.contributors().collect();
        let ours = self.tally_of(height, &ballots)?;
        Some(if ours == proposed {
            Ok(())
        } else {
            Err(format!("its mask is {}, and its ballots come to {}", proposed.short(), ours.short()))
        })
    }

    /// The mask root of a set of ballots, asked for if it is not known.
    pub(super) fn tally_of(&mut self, height: Height, ballots: &[(MemberIndex, Digest)]) -> Option<Digest> {
        let set = set_digest(ballots);
        if let Some(root) = self.state(height)?.tallies.get(&set) {
            return Some(*root);
        }
        if self.have_all(height, ballots) && self.state_mut(height).tallying.insert(set) {
            self.flush();
            self.out.push(Effect::Tally { height, set, ballots: ballots.to_vec() });
        }
        None
    }

    fn decided(&mut self, height: Height, certificate: Certificate) -> Result<(), MachineError> {
        let state = self.state_mut(height);
        let value = certificate.value();
        let known = state.store.proposed(value).map(|proposed| proposed.justified().clone());
        // without its grounds, the settled decision comes from another member
        let Some(justified) = state.grounds.get(&value).cloned().or(known) else { return Ok(()) };
        if let Ok(settled) = Settled::new(certificate, justified) {
            let bytes = settled.encode();
            self.put(height, Message::Settled(Box::new(settled)), &bytes, false);
        }
        Ok(())
    }
}
