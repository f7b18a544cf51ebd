//! What follows from what is known at a height.
//!
//! Rules, not reactions: each looks at the state and does what is missing, so their order of arrival and a
//! restart in between make no difference. They are applied until none has anything to do.

use fedprune_mask::Digest;

use super::message::Message;
use super::{Clock, Effect, Event, Machine, MachineError, Outcome, Phase};
use crate::ballot::BallotHeader;
use crate::holdings::Holdings;
use crate::ids::{Height, MemberIndex};
use crate::result::{MaskResult, agreed_root};
use crate::round::TallyBy;
use crate::signing::Kind;
use crate::statement::SignatureChecked;

/// Names a set of ballots.
pub fn set_digest(ballots: &[(MemberIndex, Digest)]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"fedprune set of ballots v1\0");
    for (member, body) in ballots {
        hasher.update(&member.0.to_le_bytes()).update(&body.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

impl Machine {
    /// Applies the rules until none has anything to do.
    pub(super) fn advance(&mut self, now_ms: u64) -> Result<(), MachineError> {
        if self.phase == Phase::Joining && !self.try_join() {
            // what a quorum stands for is so whoever answers; what we have to say to it waits until we have joined
            return if self.is_certified_to_the_end() { self.conclude(Outcome::Agreed) } else { Ok(()) };
        }
        loop {
            if self.phase == Phase::Over {
                return Ok(());
            }
            if self.current >= self.heights {
                return self.conclude(Outcome::Agreed);
            }
            let height = Height(self.current);
            self.enter(now_ms, height);
            self.fetch_bodies(height);
            let moved = if self.state_mut(height).store.settled.is_some() {
                self.after_decision(height)?
            } else {
                self.state_holdings(height)?;
                let started = self.maybe_start(now_ms, height)?;
                let fed = self.feed(now_ms)?;
                let judged = self.try_judge(now_ms)?;
                started || fed || judged || self.try_propose(now_ms)?
            };
            let settled_now = self.state_mut(height).store.settled.is_some() && !self.state_mut(height).told_decided;
            if !moved && !settled_now {
                return Ok(());
            }
        }
    }

    fn enter(&mut self, now_ms: u64, height: Height) {
        if std::mem::replace(&mut self.state_mut(height).entered, true) {
            return;
        }
        let timers = self.setup.round.terms().timers;
        self.clocks.clear();
        self.clocks.insert(Clock::Contribution, now_ms.saturating_add(timers.contribution_ms));
        self.clocks.insert(Clock::Abandon, now_ms.saturating_add(timers.abandon_ms));
        let me = self.me;
        let state = self.state_mut(height);
        let settled = state.store.settled.is_some();
        let own: Vec<Vec<u8>> = state.store.messages_of(me);
        if !settled && !state.abstained && !state.store.headers.contains_key(&me) && !state.computing {
            state.computing = true;
            self.out.push(Effect::Compute(height));
        }
        // what was signed before a restart may never have left
        for bytes in own {
            self.publish(bytes);
        }
    }

    /// Asks for the bodies of first headers, and of any that a settled decision or a proposal counts.
    fn fetch_bodies(&mut self, height: Height) {
        let state = self.state_mut(height);
        let mut wanted: Vec<(MemberIndex, Digest)> = Vec::new();
        if state.store.settled.is_none() {
            let first = |headers: &Vec<SignatureChecked<BallotHeader>>| {
                headers.first().map(|header| (header.member(), header.content().body))
            };
            wanted.extend(state.store.headers.values().filter_map(first));
        }
        wanted.extend(state.settled_ballots().unwrap_or_default());
        for proposal in &state.judging {
            let proposed = state.store.proposed(proposal.content().value);
            let manifest = proposed.and_then(|proposed| proposed.justified().decision().ballots());
            wanted.extend(manifest.iter().flat_map(|manifest| manifest.contributors()));
        }
        wanted.retain(|pair| {
            !state.valid.contains(pair) && !state.refused.contains(pair) && !state.fetching.contains(pair)
        });
        let mut fetches = Vec::new();
        for (member, body) in wanted {
            // without its header it cannot be validated; the header is on its way
            let Some(header) = state.store.header_of(member, body) else { continue };
            let body_bytes = header.content().body_bytes;
            if !state.fetching.insert((member, body)) {
                continue;
            }
            let holds = |statement: &&SignatureChecked<Holdings>| statement.content().of(member) == Some(body);
            let holders = state.store.holdings.values().filter(holds).map(SignatureChecked::member);
            let mut sources: Vec<MemberIndex> = vec![member];
            sources.extend(holders.filter(|holder| *holder != member));
            fetches.push(Effect::Fetch { height, body, body_bytes, sources });
        }
        self.out.extend(fetches);
    }

    pub(super) fn stored(&mut self, height: Height, body: Digest) {
        if height.0 >= self.heights {
            return;
        }
        let state = self.state_mut(height);
        let headers = state.store.headers.values().flatten().filter(|header| header.content().body == body);
        let headers: Vec<_> = headers.cloned().collect();
        for header in headers {
            let pair = (header.member(), body);
            let state = self.state_mut(height);
            let done = state.valid.contains(&pair) || state.refused.contains(&pair);
            if !done && state.validating.insert(pair) {
                self.out.push(Effect::Validate(header));
            }
        }
    }

    pub(super) fn valid(&mut self, height: Height, member: MemberIndex, body: Digest) {
        if height.0 >= self.heights || self.state_mut(height).valid.contains(&(member, body)) {
            return;
        }
        self.state_mut(height).hold(member, body);
        self.append(height, super::Record::Held(member, body));
        self.tell(Event::Held { height, member });
    }

    pub(super) fn contribute(
        &mut self,
        height: Height,
        body: Digest,
        body_bytes: u64,
        claimed_unix_ms: u64,
    ) -> Result<(), MachineError> {
        let (me, current) = (self.me, self.current);
        let state = self.state_mut(height);
        if height.0 != current || state.store.settled.is_some() || state.store.headers.contains_key(&me) {
            return Ok(()); // too late, or signed before
        }
        let content = BallotHeader { body, body_bytes, claimed_unix_ms };
        let (key, consortium) = (&self.setup.key, &self.setup.consortium);
        let header = SignatureChecked::sign(content, height, key, consortium, self.setup.round.id())?;
        let bytes = header.encode();
        self.tell_same_ballot(&header);
        self.write_down(height, Message::Header(header), &bytes);
        self.publish(bytes);
        self.tell(Event::Contributed { height, body_bytes });
        Ok(())
    }

    /// States what is held, when all ballots are there or the time for them is over; again only with more.
    fn state_holdings(&mut self, height: Height) -> Result<(), MachineError> {
        let me = self.me;
        let state = self.state_mut(height);
        let held = Holdings::from_digests(state.held.clone());
        let complete = held.count() == held.ballots().len();
        if !complete && !state.contribution_over {
            return Ok(());
        }
        if let Some(said) = state.store.holdings.get(&me)
            && (said.content() == &held || !held.contains(said.content()))
        {
            return Ok(());
        }
        if state.silent || state.store.evidence.contains_key(&(Kind::Holdings, me)) {
            return Ok(());
        }
        let ballots = held.count();
        let (key, consortium) = (&self.setup.key, &self.setup.consortium);
        let statement = SignatureChecked::sign(held, height, key, consortium, self.setup.round.id())?;
        let bytes = statement.encode();
        self.write_down(height, Message::Holdings(statement), &bytes);
        self.publish(bytes);
        self.tell(Event::Holding { height, ballots });
        Ok(())
    }

    /// Starts the agreement when there is something to agree on, time to abandon, or others have started.
    fn maybe_start(&mut self, now_ms: u64, height: Height) -> Result<bool, MachineError> {
        if self.state_mut(height).agreement.is_some() {
            return Ok(false);
        }
        let one_honest = self.quorum().one_honest();
        let state = self.state_mut(height);
        let others = state.store.voters().len() >= one_honest;
        let resumed = !state.journal.is_empty();
        if !(state.abandon_over || others || resumed || self.best_statements(height).is_some()) {
            return Ok(false);
        }
        self.start_agreement(now_ms)?;
        Ok(true)
    }

    /// Whether all these ballots are stored and valid; whatever is missing has been asked for by
    /// [`Self::fetch_bodies`].
    pub(super) fn have_all(&self, height: Height, ballots: &[(MemberIndex, Digest)]) -> bool {
        self.state(height).is_some_and(|state| ballots.iter().all(|ballot| state.valid.contains(ballot)))
    }

    /// Tally, result, next height. Returns whether the height is done with.
    fn after_decision(&mut self, height: Height) -> Result<bool, MachineError> {
        let state = self.state_mut(height);
        let Some(settled) = state.store.settled.as_ref() else { return Ok(false) };
        let (view, abandoned) = (settled.certificate().view(), settled.decision().is_abandoned());
        let in_agreement = settled.decision().mask_root();
        let ballots = state.settled_ballots().unwrap_or_default();
        if !std::mem::replace(&mut state.told_decided, true) {
            state.agreement = None;
            state.judging.clear();
            state.wanted = None;
            self.clocks.clear();
            let contributors = ballots.iter().map(|(member, _)| *member).collect();
            self.flush();
            self.tell(Event::Decided { height, view, contributors });
            self.fetch_bodies(height);
        }
        self.pending.clear();
        if abandoned {
            self.conclude(Outcome::Abandoned(height))?;
            return Ok(false);
        }
        if let Some(refused) =
            ballots.iter().find(|ballot| self.state(height).is_some_and(|state| state.refused.contains(*ballot)))
        {
            return Err(MachineError::RefusedCounts { height, member: refused.0 });
        }
        let Some(root) = self.tally_of(height, &ballots) else { return Ok(false) };
        if !std::mem::replace(&mut self.state_mut(height).told_tallied, true) {
            self.tell(Event::Tallied { height, mask_root: root });
        }
        if let Some(theirs) = in_agreement
            && theirs != root
        {
            return Err(MachineError::Diverged { height, ours: root, theirs });
        }
        self.say_result(height, root)?;
        if !self.is_certified(height) {
            let results: Vec<_> = self.state_mut(height).store.results.values().cloned().collect();
            return match agreed_root(&results, self.quorum()) {
                Some(theirs) if theirs != root => Err(MachineError::Diverged { height, ours: root, theirs }),
                _ => Ok(false),
            };
        }
        self.tell(Event::Certified { height, mask_root: root });
        self.current = self.current.saturating_add(1);
        Ok(true)
    }

    fn say_result(&mut self, height: Height, mask_root: Digest) -> Result<(), MachineError> {
        let me = self.me;
        if let Some(said) = self.state_mut(height).store.results.get(&me) {
            let same = said.content().mask_root == mask_root;
            return if same { Ok(()) } else { Err(Self::second(Kind::Result, height)) };
        }
        let (key, consortium) = (&self.setup.key, &self.setup.consortium);
        let result = SignatureChecked::sign(MaskResult { mask_root }, height, key, consortium, self.setup.round.id())?;
        let bytes = result.encode();
        self.write_down(height, Message::Result(result), &bytes);
        self.publish(bytes);
        Ok(())
    }

    /// Whether a height is settled, tallied here, and stood for by a quorum.
    pub(super) fn is_certified(&self, height: Height) -> bool {
        let Some(root) = self.mask_root(height) else { return false };
        let Some(state) = self.state(height) else { return false };
        match self.setup.round.terms().tally {
            TallyBy::Elected => {
                state.store.settled.as_ref().and_then(|settled| settled.decision().mask_root()) == Some(root)
            }
            TallyBy::EveryPeer => {
                let results: Vec<_> = state.store.results.values().cloned().collect();
                agreed_root(&results, self.quorum()) == Some(root)
            }
        }
    }

    /// Whether nothing is left to do at a height: a quorum stands for its mask, and so does this member. A crash between
    /// the tally and the result leaves a height at which others have said theirs and we have not; that those are enough
    /// for us does not make them enough for others, to whom a liar may have said something else.
    pub(super) fn is_done_with(&self, height: Height) -> bool {
        self.is_certified(height) && self.own_result(height) == self.mask_root(height)
    }

    /// Whether all heights have a mask that a quorum stands for, and none of our own results says otherwise.
    fn is_certified_to_the_end(&self) -> bool {
        (self.current..self.heights).map(Height).all(|height| {
            let (root, ours) = (self.mask_root(height), self.own_result(height));
            self.is_certified(height) && (ours.is_none() || ours == root)
        })
    }

    fn own_result(&self, height: Height) -> Option<Digest> {
        Some(self.state(height)?.store.results.get(&self.me)?.content().mask_root)
    }

    fn conclude(&mut self, outcome: Outcome) -> Result<(), MachineError> {
        if self.concluded {
            if self.phase == Phase::Running {
                self.phase = Phase::Over;
                self.clocks.clear();
            }
            if !std::mem::replace(&mut self.finished, true) {
                self.out.push(Effect::Finished(outcome));
            }
        } else if !std::mem::replace(&mut self.concluding, true) {
            self.clocks.clear();
            self.flush();
            self.out.push(Effect::Conclude(outcome));
        }
        Ok(())
    }
}
