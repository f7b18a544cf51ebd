//! What a node asks other members: what they have of its own, and what it may have missed.

use std::time::Instant;

use fedprune_federation::MemberIndex;
use fedprune_federation::machine::{Question, Verdict, decode_answer};

use super::super::config::{SYNC_INTERVAL, SYNC_PATIENCE};
use super::super::error::NodeError;
use super::super::work::Work;
use super::Driver;
use crate::network::Blame;

impl Driver<'_> {
    /// Asks members that are connected for what this one signed.
    pub(super) fn recall(&mut self) {
        if !self.wants_recall || self.parts.machine.has_joined() {
            return;
        }
        for member in self.connected.iter().copied() {
            if !self.recalled.insert(member) {
                continue;
            }
            let (network, work) = (self.parts.network.clone(), self.work.clone());
            tokio::spawn(async move {
                let result = network.ask(member, Question::Mine.encode()).await;
                let _ = work.send(Work::Recalled { from: member, result }).await;
            });
        }
    }

    /// Asks one member for what this one may have missed.
    pub(super) fn ask_for_news(&mut self) {
        self.asking.retain(|_, since| since.elapsed() < SYNC_PATIENCE);
        let free: Vec<MemberIndex> =
            self.connected.iter().copied().filter(|member| !self.asking.contains_key(member)).collect();
        if free.is_empty() {
            return;
        }
        let member = free.get(self.next_peer % free.len()).copied();
        self.next_peer = self.next_peer.wrapping_add(1);
        if let Some(member) = member {
            self.ask_member(member);
        }
    }

    /// Asks a member that knows of more than this one, as its own question shows. What gossip lost on its way to all is
    /// so heard of from whoever said it, without waiting for its turn to be asked.
    pub(super) fn ask_back(&mut self, member: MemberIndex, question: &Question) {
        let now = Instant::now();
        // two members may never have seen the same: an equivocator's third ballot, say
        let lately = self.asked_back.get(&member).is_some_and(|last| now.duration_since(*last) < SYNC_INTERVAL);
        let can = self.connected.contains(&member) && !self.asking.contains_key(&member);
        if can && !lately && self.parts.machine.misses(question) {
            self.asked_back.insert(member, now);
            self.ask_member(member);
        }
    }

    pub(super) fn ask_member(&mut self, member: MemberIndex) {
        self.asking.insert(member, Instant::now());
        let question = self.parts.machine.question().encode();
        let (network, work) = (self.parts.network.clone(), self.work.clone());
        tokio::spawn(async move {
            let result = network.ask(member, question).await;
            let _ = work.send(Work::News { from: member, result }).await;
        });
    }

    /// Takes what a member answered; asks it again at once if that moved us to another height.
    pub(super) async fn news(&mut self, from: MemberIndex, bytes: &[u8]) -> Result<(), NodeError> {
        let Ok(messages) = decode_answer(bytes) else { return Ok(()) };
        let before = self.parts.machine.current();
        for message in &messages {
            let now_ms = self.now_ms();
            let (found, effects) = self.parts.machine.receive(now_ms, message);
            self.carry_out(effects).await?;
            if matches!(found, Verdict::Bad(_)) {
                // an honest member has checked what it answers; to check the rest costs more than it is worth
                self.parts.network.blame(from, Blame::Answer).await?;
                break;
            }
        }
        if self.parts.machine.current() != before && !self.asking.contains_key(&from) && self.connected.contains(&from)
        {
            self.ask_member(from);
        }
        Ok(())
    }
}
