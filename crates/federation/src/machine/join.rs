//! Recovering what this member signed: from its own log, and from what others have of it.

use super::message::Message;
use super::{Effect, Event, HeightState, Machine, MachineError, Phase, Record};
use crate::agreement::Repeated;
use crate::ids::{Height, MemberIndex};
use crate::signing::Kind;

impl Machine {
    /// Reads the log again.
    pub(super) fn replay(&mut self, records: impl IntoIterator<Item = (Height, Record)>) -> Result<(), MachineError> {
        for (height, record) in records {
            if height.0 >= self.heights {
                return Err(MachineError::Log(format!("it has height {height}, and the round has {}", self.heights)));
            }
            match record {
                Record::Said(bytes) | Record::Heard(bytes) => {
                    let message = Message::read(&bytes, &self.setup.consortium, &self.setup.round)
                        .map_err(|error| MachineError::Log(format!("a message of height {height} in it: {error}")))?;
                    let of = message.height();
                    self.put(of, message, &bytes, true);
                }
                Record::Journal(entry) => self.state_mut(height).journal.push(entry),
                Record::Held(member, body) => self.state_mut(height).hold(member, body),
                Record::Refused(member, body) => {
                    self.state_mut(height).refused.insert((member, body));
                }
                Record::Tallied(set, root) => {
                    self.state_mut(height).tallies.insert(set, root);
                }
                Record::Silent => self.state_mut(height).silent = true,
                // for lack of what its operator may have mended since: nothing was signed, and it is tried again
                Record::Abstained => {}
            }
        }
        self.remember_votes();
        // what the log tells was told before
        self.out.clear();
        self.unflushed = false;
        while self.current < self.heights && self.is_done_with(Height(self.current)) {
            self.current = self.current.saturating_add(1);
        }
        if self.current == self.heights {
            self.phase = Phase::Running; // nothing is left to sign
        }
        Ok(())
    }

    /// Votes of others are only in the journals of agreements. They are answered with when others ask for their own:
    /// when all have crashed, nobody else knows what a member voted whose disk is lost.
    fn remember_votes(&mut self) {
        for (height, state) in &mut self.states {
            for vote in self.engine.votes(Height(*height), &state.journal) {
                let (bytes, message) = match vote {
                    Repeated::Prevote(vote) => (vote.encode(), Message::Prevote(vote)),
                    Repeated::Precommit(vote) => (vote.encode(), Message::Precommit(vote)),
                };
                // ours are in the log as such
                if message.member() != Some(self.me) && !state.store.has_seen(&bytes) {
                    state.store.note_seen(&bytes);
                    state.store.add(message);
                }
            }
        }
    }

    /// Adopts what a member has of ours.
    pub(super) fn recall(&mut self, from: MemberIndex, messages: &[Vec<u8>]) -> Result<(), MachineError> {
        for bytes in messages {
            // a message that does not count is somebody's noise
            let Ok(message) = Message::read(bytes, &self.setup.consortium, &self.setup.round) else { continue };
            let height = message.height();
            if message.member() != Some(self.me) || height.0 >= self.heights {
                continue;
            }
            if !self.state_mut(height).store.has_seen(bytes) {
                self.put(height, message, bytes, false);
            }
        }
        if from != self.me {
            self.recalled.insert(from);
        }
        Ok(())
    }

    /// Takes note of a statement of ours that our log does not have, whichever way it came here.
    pub(super) fn adopt(&mut self, height: Height, kind: Kind, bytes: &[u8]) {
        self.append(height, Record::Said(bytes.to_vec()));
        if matches!(kind, Kind::Proposal | Kind::Prevote | Kind::Precommit) && !self.state_mut(height).silent {
            self.state_mut(height).silent = true;
            self.state_mut(height).agreement = None;
            self.append(height, Record::Silent);
        }
        self.tell(Event::Adopted { height, kind });
    }

    /// Joins when a quorum has answered, this member included.
    pub(super) fn try_join(&mut self) -> bool {
        if self.recalled.len().saturating_add(1) < self.quorum().q() {
            return false;
        }
        self.phase = Phase::Running;
        self.flush();
        self.out.push(Effect::Tell(Event::Joined));
        true
    }
}

impl HeightState {
    /// Notes a ballot that is stored and valid; the first of a member is the one held.
    pub(super) fn hold(&mut self, member: MemberIndex, body: fedprune_mask::Digest) {
        self.valid.insert((member, body));
        if let Some(entry) = self.held.get_mut(member.as_usize()) {
            entry.get_or_insert(body);
        }
    }
}
