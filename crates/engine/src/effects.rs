//! Carries out what malachite asks for: signs, looks signatures up, and turns its effects into actions.
//!
//! Malachite asks to append to its log before it asks to publish. That a statement of ours is recorded
//! before it is sent is checked here all the same, and recorded here if malachite did not ask.
//!
//! An effect that cannot be carried out ends the agreement: `process!` swallows errors, so they are kept in
//! [`Clerk::fault`], and malachite is resumed with an answer that it takes for one of its own errors.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use arc_malachitebft_core_consensus::{
    ConsensusMsg, Effect, Input, LivenessMsg, Resumable, Resume, SignedConsensusMsg,
};
use arc_malachitebft_core_types::{
    CommitCertificate, PolkaCertificate, Proposal as _, RoundCertificate, RoundCertificateType, SignedProposal,
    SignedVote, Vote as _, VoteType,
};
use fedprune_federation::agreement::{Action, Repeated, Timer};
use fedprune_federation::{
    Certificate, Height, MemberIndex, Precommit, Prevote, Proposal, Ratified, RoundId, SignatureChecked, SigningKey,
};

use crate::book::Book;
use crate::context::{Context, CoreProposal, CoreVote, core_proposal, core_vote, facts, timer_of, value_of};
use crate::journal::{Entry, Judgement, Owner, chain};

/// Whose agreement, and where.
pub(crate) struct Seat {
    pub(crate) consortium: Ratified,
    pub(crate) round: RoundId,
    pub(crate) member: MemberIndex,
    pub(crate) key: SigningKey,
}

/// A slot of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Own {
    Proposal(u32),
    Vote(VoteType, u32),
}

/// What there is beside malachite's state.
pub(crate) struct Clerk {
    pub(crate) seat: Arc<Seat>,
    pub(crate) height: Height,
    pub(crate) book: Book,
    /// What to do, in order.
    pub(crate) actions: Vec<Action>,
    /// While the journal is replayed nothing is done; what is signed for the first time is recorded.
    pub(crate) replaying: bool,
    /// Whether we sign.
    pub(crate) participates: bool,
    /// Statements of ours that are in the journal.
    pub(crate) recorded: BTreeSet<Own>,
    /// Statements of ours that malachite came to while the journal was replayed.
    pub(crate) derived: BTreeSet<Own>,
    /// The judgement that was recorded last.
    last_judgement: Option<Judgement>,
    /// Timers that are set.
    pub(crate) timers: BTreeSet<Timer>,
    pub(crate) decided: Option<Certificate>,
    /// Why nothing more can be done.
    pub(crate) fault: Option<String>,
}

impl Clerk {
    pub(crate) fn new(seat: Arc<Seat>, height: Height, participates: bool) -> Self {
        let book = Book::new(seat.consortium.quorum());
        Self {
            seat,
            height,
            book,
            actions: Vec::new(),
            replaying: false,
            participates,
            recorded: BTreeSet::new(),
            derived: BTreeSet::new(),
            last_judgement: None,
            timers: BTreeSet::new(),
            decided: None,
            fault: None,
        }
    }

    pub(crate) fn owner(&self) -> Owner<'_> {
        let seat = &self.seat;
        Owner { consortium: &seat.consortium, round: seat.round, height: self.height, member: seat.member }
    }

    /// Asks for an entry to be recorded.
    pub(crate) fn record(&mut self, entry: &Entry) {
        let bytes = entry.encode(self.owner());
        self.actions.push(Action::Record(bytes));
    }

    /// Asks for something to be done, unless it was done in an earlier life.
    pub(crate) fn act(&mut self, action: Action) {
        if !self.replaying {
            self.actions.push(action);
        }
    }

    fn record_own(&mut self, own: Own, entry: &Entry) {
        self.derived.insert(own);
        if self.recorded.insert(own) {
            self.record(entry);
        }
    }

    /// Carries out an effect. It does not fail: see [`Clerk::fault`].
    pub(crate) fn handle(&mut self, effect: Effect<Context>) -> Result<Resume<Context>, Infallible> {
        if self.fault.is_some() {
            return Ok(Resume::Continue);
        }
        Ok(self.carry_out(effect).unwrap_or_else(|why| {
            self.fault = Some(why);
            Resume::Continue
        }))
    }

    fn carry_out(&mut self, effect: Effect<Context>) -> Result<Resume<Context>, String> {
        Ok(match effect {
            Effect::CancelAllTimeouts(resume) => {
                if !self.timers.is_empty() {
                    self.timers.clear();
                    self.act(Action::CancelAll);
                }
                resume.resume_with(())
            }
            Effect::CancelTimeout(timeout, resume) => {
                if let Some(timer) = timer_of(timeout)
                    && self.timers.remove(&timer)
                {
                    self.act(Action::Cancel(timer));
                }
                resume.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, resume) => {
                if let Some(timer) = timer_of(timeout) {
                    self.timers.insert(timer);
                    self.act(Action::Set(timer));
                }
                resume.resume_with(())
            }
            Effect::StartRound(_, _, _, _, resume) => resume.resume_with(()),
            Effect::PublishConsensusMsg(message, resume) => {
                match message {
                    SignedConsensusMsg::Vote(vote) => self.publish_vote(&vote)?,
                    SignedConsensusMsg::Proposal(proposal) => self.publish_proposal(&proposal)?,
                }
                resume.resume_with(())
            }
            Effect::PublishLivenessMsg(message, resume) => {
                let votes = match message {
                    LivenessMsg::Vote(vote) => vec![self.known(&vote)?],
                    LivenessMsg::PolkaCertificate(polka) => self.votes_of_polka(&polka)?,
                    LivenessMsg::SkipRoundCertificate(skip) => self.votes_of_round(&skip)?,
                };
                self.act(Action::Repeat(votes));
                resume.resume_with(())
            }
            Effect::RepublishVote(vote, resume) => {
                let vote = self.known(&vote)?;
                self.act(Action::Repeat(vec![vote]));
                resume.resume_with(())
            }
            Effect::RepublishRoundCertificate(certificate, resume) => {
                let votes = self.votes_of_round(&certificate)?;
                self.act(Action::Repeat(votes));
                resume.resume_with(())
            }
            Effect::GetValue(_, round, _, resume) => {
                if let Some(view) = round.as_u32() {
                    self.act(Action::Want { view });
                }
                resume.resume_with(())
            }
            // a proposal of ours is published right after this; those of others are not ours to send
            Effect::RestreamProposal(_, _, _, _, _, resume) => resume.resume_with(()),
            Effect::SignVote(vote, resume) => resume.resume_with(self.sign_vote(&vote)?),
            Effect::SignProposal(proposal, resume) => resume.resume_with(self.sign_proposal(&proposal)?),
            Effect::VerifySignature(message, _, resume) => {
                let valid = match &message.message {
                    ConsensusMsg::Vote(vote) => self.has(vote, &message.signature),
                    ConsensusMsg::Proposal(proposal) => {
                        let view = proposal.round().as_u32().unwrap_or(u32::MAX);
                        self.book.proposals(view).iter().any(|known| {
                            let known = core_proposal(known);
                            known.message == *proposal && known.signature == message.signature
                        })
                    }
                };
                resume.resume_with(valid)
            }
            Effect::VerifyCommitCertificate(certificate, _, _, resume) => {
                // malachite panics when its own certificate is refused, so a refusal ends the agreement here
                self.certificate(&certificate)?;
                resume.resume_with(Ok(()))
            }
            Effect::VerifyPolkaCertificate(certificate, _, _, resume) => {
                let votes = self.votes_of_polka(&certificate)?;
                self.quorate(&votes, self.seat.consortium.quorum().q())?;
                resume.resume_with(Ok(()))
            }
            Effect::VerifyRoundCertificate(certificate, _, _, resume) => {
                let votes = self.votes_of_round(&certificate)?;
                let quorum = self.seat.consortium.quorum();
                self.quorate(
                    &votes,
                    match certificate.cert_type {
                        RoundCertificateType::Skip => quorum.one_honest(),
                        RoundCertificateType::Precommit => quorum.q(),
                    },
                )?;
                resume.resume_with(Ok(()))
            }
            Effect::WalAppend(_, input, resume) => {
                self.append(input)?;
                resume.resume_with(())
            }
            Effect::Decide(certificate, _, resume) => {
                if self.decided.is_none() {
                    self.decided = Some(self.certificate(&certificate)?);
                }
                resume.resume_with(())
            }
            Effect::Finalize(_, _, _, resume) => resume.resume_with(()),
            // neither is asked for: votes have no extensions, and nothing is fed from malachite's sync
            Effect::ExtendVote(_, _, _, _, resume) => resume.resume_with(None),
            Effect::VerifyVoteExtension(..)
            | Effect::VerifyExtendedCommitCertificate(..)
            | Effect::CertVerifiedSyncValue(..)
            | Effect::CertRejectedSyncValue(..) => return Err("it asked for what it was not given".to_owned()),
        })
    }

    fn append(&mut self, input: Input<Context>) -> Result<(), String> {
        let me = self.seat.member;
        match input {
            Input::Vote(vote) => {
                let entry = Entry::Vote(self.known(&vote)?);
                if vote.address.0 == me {
                    self.record_own(own_vote(&vote)?, &entry);
                } else if !self.replaying {
                    self.record(&entry);
                }
            }
            Input::Proposal(proposal) => {
                let known = self.known_proposal(&proposal)?;
                let (own, ours) = (Own::Proposal(known.content().view), known.member() == me);
                if ours {
                    self.record_own(own, &Entry::Proposal(known));
                } else if !self.replaying {
                    self.record(&Entry::Proposal(known));
                }
            }
            _ if self.replaying => {}
            Input::ProposedValue(value, _) => {
                let judgement = Judgement::of(&value).ok_or("it judged a value of no view")?;
                // it asks again when we propose what we told it; once is enough, since the second changes nothing
                if self.last_judgement.replace(judgement) != Some(judgement) {
                    self.record(&Entry::Judged(judgement));
                }
            }
            Input::TimeoutElapsed(timeout) => {
                if let Some(timer) = timer_of(timeout) {
                    self.record(&Entry::Elapsed(timer));
                }
            }
            Input::PolkaCertificate(certificate) => {
                let mut prevotes = Vec::new();
                for vote in self.votes_of_polka(&certificate)? {
                    if let Repeated::Prevote(prevote) = vote {
                        prevotes.push(prevote);
                    }
                }
                self.record(&Entry::Polka(prevotes));
            }
            Input::StartHeight(..) | Input::RoundCertificate(_) | Input::Propose(_) | Input::SyncValueResponse(_) => {
                return Err("it appended to its log what does not belong there".to_owned());
            }
        }
        Ok(())
    }

    fn publish_vote(&mut self, vote: &SignedVote<Context>) -> Result<(), String> {
        if vote.address.0 != self.seat.member {
            return Err("it published a vote of another member as ours".to_owned());
        }
        let known = self.known(vote)?;
        self.record_own(own_vote(vote)?, &Entry::Vote(known.clone()));
        self.act(match known {
            Repeated::Prevote(vote) => Action::Prevote(vote),
            Repeated::Precommit(vote) => Action::Precommit(vote),
        });
        Ok(())
    }

    /// From view 10 on malachite also publishes the proposals of others when it locks; they are not ours to send.
    fn publish_proposal(&mut self, proposal: &SignedProposal<Context>) -> Result<(), String> {
        if proposal.address.0 == self.seat.member {
            let known = self.known_proposal(proposal)?;
            self.record_own(Own::Proposal(known.content().view), &Entry::Proposal(known.clone()));
            if self.participates {
                self.act(Action::Propose(known));
            }
        }
        Ok(())
    }

    fn sign_vote(&mut self, vote: &CoreVote) -> Result<SignedVote<Context>, String> {
        let view = self.may_sign(vote.address.0, vote.round.as_u32())?;
        let value = value_of(&vote.value);
        if let Some(known) = self.book.first(view, vote.kind, self.seat.member) {
            if facts(known).value != value {
                return Err(format!("it asked for a second {:?} of ours in view {view}, and got none", vote.kind));
            }
            return Ok(core_vote(known, self.height));
        }
        let Seat { consortium, round, key, .. } = &*self.seat;
        let signed = match vote.kind {
            VoteType::Prevote => SignatureChecked::sign(Prevote { view, value }, self.height, key, consortium, *round)
                .map(Repeated::Prevote),
            VoteType::Precommit => {
                SignatureChecked::sign(Precommit { view, value }, self.height, key, consortium, *round)
                    .map(Repeated::Precommit)
            }
        };
        let signed = signed.map_err(|error| chain(&error))?;
        self.book.add_vote(&signed);
        Ok(core_vote(&signed, self.height))
    }

    fn sign_proposal(&mut self, proposal: &CoreProposal) -> Result<SignedProposal<Context>, String> {
        let view = self.may_sign(proposal.address.0, proposal.round.as_u32())?;
        let content = Proposal { view, value: proposal.value.0, valid_view: proposal.valid_round.as_u32() };
        if let Some(known) = self.book.proposal_of(view, self.seat.member) {
            if *known.content() != content {
                return Err(format!("it asked for a second proposal of ours in view {view}, and got none"));
            }
            return Ok(core_proposal(known));
        }
        let Seat { consortium, round, key, .. } = &*self.seat;
        let signed = SignatureChecked::sign(content, self.height, key, consortium, *round);
        let signed = signed.map_err(|error| chain(&error))?;
        self.book.add_proposal(&signed);
        Ok(core_proposal(&signed))
    }

    fn may_sign(&self, member: MemberIndex, view: Option<u32>) -> Result<u32, String> {
        if member != self.seat.member {
            return Err(format!("it asked for a signature of member {member}"));
        }
        if !self.participates {
            return Err("it asked for a signature of a member that does not take part".to_owned());
        }
        view.ok_or_else(|| "it asked for a signature in no view".to_owned())
    }

    fn has(&self, vote: &CoreVote, signature: &fedprune_federation::Signature) -> bool {
        let value = value_of(&vote.value);
        let view = vote.round.as_u32();
        vote.height == self.height.into()
            && view.is_some_and(|view| self.book.has_vote(view, vote.kind, vote.address.0, value, signature))
    }

    fn known(&self, vote: &SignedVote<Context>) -> Result<Repeated, String> {
        let view = vote.round().as_u32().ok_or("it spoke of a vote in no view")?;
        let known = self.book.vote(view, vote.kind, vote.address.0, value_of(&vote.value));
        known.cloned().ok_or_else(|| format!("it spoke of a vote that nobody told it, in view {view}"))
    }

    fn known_proposal(&self, proposal: &SignedProposal<Context>) -> Result<SignatureChecked<Proposal>, String> {
        let view = proposal.round().as_u32().ok_or("it spoke of a proposal in no view")?;
        let known = self.book.proposals(view).iter().find(|known| core_proposal(known).message == proposal.message);
        known.cloned().ok_or_else(|| format!("it spoke of a proposal that nobody told it, in view {view}"))
    }

    fn votes_of_polka(&self, polka: &PolkaCertificate<Context>) -> Result<Vec<Repeated>, String> {
        let view = polka.round.as_u32().ok_or("it spoke of prevotes in no view")?;
        let known = polka.polka_signatures.iter().map(|signature| {
            self.book.vote(view, VoteType::Prevote, signature.address.0, Some(polka.value_id.0)).cloned()
        });
        known.collect::<Option<_>>().ok_or_else(|| format!("it spoke of prevotes that nobody told it, in view {view}"))
    }

    fn votes_of_round(&self, certificate: &RoundCertificate<Context>) -> Result<Vec<Repeated>, String> {
        let view = certificate.round.as_u32().ok_or("it spoke of votes in no view")?;
        let known = certificate.round_signatures.iter().map(|signature| {
            self.book.vote(view, signature.vote_type, signature.address.0, value_of(&signature.value_id)).cloned()
        });
        known.collect::<Option<_>>().ok_or_else(|| format!("it spoke of votes that nobody told it, in view {view}"))
    }

    /// Whether votes are of enough different members.
    fn quorate(&self, votes: &[Repeated], wanted: usize) -> Result<(), String> {
        let members: BTreeSet<_> = votes.iter().map(|vote| facts(vote).member).collect();
        if members.len() < wanted || members.len() != votes.len() {
            return Err(format!("there are votes of {} members, and {wanted} are needed", members.len()));
        }
        Ok(())
    }

    fn certificate(&self, certificate: &CommitCertificate<Context>) -> Result<Certificate, String> {
        let view = certificate.round.as_u32().ok_or("it decided in no view")?;
        let mut precommits = Vec::new();
        for signature in &certificate.commit_signatures {
            let value = Some(certificate.value_id.0);
            match self.book.vote(view, VoteType::Precommit, signature.address.0, value) {
                Some(Repeated::Precommit(vote)) if vote.signature() == signature.signature => {
                    precommits.push(vote.clone())
                }
                _ => return Err(format!("it decided by precommits that nobody told it, in view {view}")),
            }
        }
        Certificate::from_precommits(&precommits, &self.seat.consortium).map_err(|error| chain(&error))
    }
}

fn own_vote(vote: &SignedVote<Context>) -> Result<Own, String> {
    let view = vote.round().as_u32().ok_or("it made a vote in no view")?;
    Ok(Own::Vote(vote.vote_type(), view))
}
