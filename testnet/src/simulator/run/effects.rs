//! What machines ask for, carried out: written, flushed, sent, fetched, and computed beside the loop.

use std::rc::Rc;

use fedprune_federation::machine::{Effect, Input, Machine, set_digest};
use fedprune_federation::{Height, MemberIndex};
use fedprune_mask::Digest;

use super::{Event, Run, Step, Work};
use crate::simulator::scenario::{Trouble, TroubleKind};
use crate::simulator::seat::Sending;

impl Run<'_> {
    pub(super) fn carry_out(&mut self, member: usize, effects: Vec<Effect>) -> Result<(), String> {
        let dies_after = self.dies_after(member, effects.len());
        self.carry_on(member, Step { effects: effects.into(), feed: Vec::new(), dies_after })
    }

    pub(super) fn carry_on(&mut self, member: usize, mut step: Step) -> Result<(), String> {
        let life = self.members[member].life;
        while let Some(effect) = step.effects.pop_front() {
            match &mut step.dies_after {
                Some(0) => break,
                Some(left) => *left -= 1,
                None => {}
            }
            if !matches!(effect, Effect::Flush) {
                self.carry_out_one(member, effect, &mut step.feed)?;
                continue;
            }
            let slow = self.trouble(member, |kind| matches!(kind, TroubleKind::SlowFlush(_)));
            if let Some(Trouble { kind: TroubleKind::SlowFlush(most_ms), .. }) = slow {
                let delay_ms = 1 + self.crash.below(*most_ms);
                self.members[member].flushes_until_ms = Some(self.clock.now_ms() + delay_ms);
                self.clock.plan(delay_ms, Event::Flushed(member, life, step));
                return Ok(());
            }
            if !self.flush(member) {
                return Ok(());
            }
        }
        if step.dies_after.is_some() {
            self.crash(member);
            return Ok(());
        }
        for input in step.feed {
            if self.lives(member, life) {
                self.step(member, input)?;
            }
        }
        if !self.lives(member, life) {
            return Ok(());
        }
        self.plan_wake(member);
        let state = &self.members[member];
        match &state.machine {
            Some(machine) if self.watch.is_honest(member) => self.watch.after(member, life, machine, &state.disk),
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
            // carried out by whoever calls this
            Effect::Flush => {}
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
                self.clock.plan(delay_ms, Event::Done(member, life, Work::Tally(height, set, ballots)));
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
                let state = &mut self.members[member];
                state.finished = Some(outcome);
                let told = *state.told.get_or_insert(outcome);
                if told != outcome && self.watch.is_honest(member) {
                    return Err(format!("member {member} ends as {outcome:?}, and told that it ends as {told:?}"));
                }
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

    pub(super) fn done(&mut self, member: usize, work: Work) -> Result<(), String> {
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
                if self.trouble(member, |kind| kind == TroubleKind::DiskFull).is_some() {
                    self.stop_of_full_disk(member);
                    return Ok(());
                }
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
            Work::Tally(height, set, ballots) => {
                let mask_root = self.tally(member, height, &ballots)?;
                self.step(member, Input::Tallied { height, set, mask_root })
            }
            Work::Conclude => self.step(member, Input::Concluded),
        }
    }

    fn tally(&mut self, member: usize, height: Height, ballots: &[(MemberIndex, Digest)]) -> Result<Digest, String> {
        let key = Digest::of(&[&height.0.to_le_bytes()[..], &set_digest(ballots).0].concat());
        if let Some(root) = self.roots.get(&key) {
            return Ok(*root);
        }
        let body = |(of, digest): &(MemberIndex, Digest)| {
            let found = self.members[member].bodies.get(digest).map(|body| (*of, Rc::clone(body)));
            found.ok_or_else(|| format!("member {member} counts ballots that it does not have"))
        };
        let bodies = ballots.iter().map(body).collect::<Result<Vec<_>, _>>()?;
        let root = self.world.mask_root(height, &bodies)?;
        self.roots.insert(key, root);
        Ok(root)
    }
}
