//! What arrives at a node: from the network, from its threads and from its children.

use std::sync::Arc;

use fedprune_federation::machine::{Input, Question, Verdict, decode_answer, encode_answer};
use fedprune_federation::{Height, MemberIndex};

use super::super::config::FailPoint;
use super::super::error::NodeError;
use super::super::events::NodeEvent;
use super::super::work::Work;
use super::Driver;
use crate::network::limits::INSTANCE_PATIENCE;
use crate::network::{Acceptance, Blame, ChunkAnswer, Difference, NetworkEvent};

impl Driver<'_> {
    pub(super) async fn network(&mut self, event: NetworkEvent) -> Result<(), NodeError> {
        match event {
            NetworkEvent::Gossip { from, bytes, verdict } => {
                self.heard(from);
                let now_ms = self.now_ms();
                let (found, effects) = self.parts.machine.receive(now_ms, &bytes);
                let acceptance = match found {
                    Verdict::New => Acceptance::Accept,
                    Verdict::Known | Verdict::Later => Acceptance::Ignore,
                    Verdict::Bad(_) => Acceptance::Reject,
                };
                self.parts.network.report(verdict, acceptance).await?;
                self.carry_out(effects).await?;
            }
            NetworkEvent::Asked { from, bytes, answer } => {
                self.heard(from);
                // a question that cannot be read is refused by dropping its token
                let Ok(question) = Question::decode(&bytes) else {
                    return Ok(self.parts.network.blame(from, Blame::Question).await?);
                };
                {
                    if matches!(question, Question::Finished { .. }) {
                        self.finished_members.insert(from);
                    }
                    let mut messages = self.parts.machine.answer(from, &question);
                    if let Some(outgoing) = &mut self.parts.outgoing {
                        messages = outgoing.answer(messages);
                    }
                    self.parts.network.answer(answer, encode_answer(&messages)).await?;
                    self.ask_back(from, &question);
                }
            }
            NetworkEvent::ChunkAsked { from, body, chunk, answer } => {
                self.heard(from);
                let (network, blobs) = (self.parts.network.clone(), Arc::clone(&self.parts.blobs));
                if self.parts.outgoing.as_mut().is_some_and(|outgoing| !outgoing.serves(&body)) {
                    return Ok(network.answer_chunk(answer, ChunkAnswer::NotHeld).await?);
                }
                tokio::spawn(async move {
                    let read = tokio::task::spawn_blocking(move || blobs.encode_chunk(&body, chunk)).await;
                    let found = match read {
                        Ok(Ok(Some(bytes))) => ChunkAnswer::Here(bytes),
                        Ok(Ok(None) | Err(_)) => ChunkAnswer::NotHeld,
                        Err(_) => ChunkAnswer::Busy,
                    };
                    let _ = network.answer_chunk(answer, found).await;
                });
            }
            NetworkEvent::Listening { address } => {
                self.addresses.insert(address.to_string());
                let addresses = self.addresses.iter().cloned().collect();
                self.say(&NodeEvent::Listening { addresses });
            }
            NetworkEvent::NotListening { address, why } => {
                self.addresses.remove(&address.to_string());
                if let Some(why) = why {
                    self.say(&NodeEvent::Warning { text: format!("no longer listening on {address}: {why}") });
                }
            }
            NetworkEvent::Reachable { address } => {
                self.say(&NodeEvent::Listening { addresses: vec![address.to_string()] });
            }
            NetworkEvent::Connected { member, program } => {
                self.connected.insert(member);
                self.heard(member);
                self.say(&NodeEvent::Connected { member: self.name(member) });
                self.note_program(member, program.map(|program| program.to_string()));
                self.fetching.connected(member, true);
                self.recall();
                self.ask_member(member);
            }
            NetworkEvent::Disconnected { member } => {
                self.connected.remove(&member);
                self.recalled.remove(&member);
                self.asking.remove(&member);
                self.fetching.connected(member, false);
                self.say(&NodeEvent::Disconnected { member: self.name(member) });
            }
            NetworkEvent::Mismatch { member, differences } => {
                let remedies = differences.iter().map(Difference::remedy).collect();
                let differences = differences.iter().map(ToString::to_string).collect();
                self.say(&NodeEvent::Mismatch { member: self.name(member), differences, remedies });
            }
            NetworkEvent::GreetingFailed { member, why } => {
                let text = format!("no greetings could be exchanged with `{}`: {why}", self.name(member));
                self.say(&NodeEvent::Warning { text });
            }
            NetworkEvent::AnotherInstance { seen_by, refused_for } => {
                self.say(&NodeEvent::AnotherInstance { seen_by: self.name(seen_by) });
                if refused_for >= INSTANCE_PATIENCE {
                    self.failed = Some(NodeError::AnotherInstance { seconds: refused_for.as_secs() });
                }
            }
            NetworkEvent::SecondInstance { member } => {
                let text = format!("a second process with the key of `{}` was refused", self.name(member));
                self.say(&NodeEvent::Warning { text });
            }
            NetworkEvent::ShutOut { member, why, lasts } => {
                let member = self.name(member);
                self.shut_out.insert(member.clone(), why.clone());
                self.say(&NodeEvent::ShutOut { member, why, seconds: lasts.as_secs() });
            }
            NetworkEvent::Refused { peer_id, why } => {
                let peer = peer_id.to_string();
                let why = match self.parts.former_peers.get(&peer) {
                    Some(former) => format!("{why}: {former}"),
                    None => why,
                };
                self.say(&NodeEvent::Refused { peer, why });
            }
        }
        Ok(())
    }

    /// Says once what another member's program is, where it is not this one.
    fn note_program(&mut self, member: MemberIndex, program: Option<String>) {
        let (name, ours) = (self.name(member), self.parts.config.version.to_string());
        if program.as_deref() == Some(&ours) {
            self.programs.remove(&name);
        } else if self.programs.get(&name) != Some(&program) {
            self.programs.insert(name.clone(), program.clone());
            self.say(&NodeEvent::OtherProgram { member: name, program, ours });
        }
    }

    pub(super) async fn done(&mut self, done: Work) -> Result<(), NodeError> {
        match done {
            Work::Imported { height, result } => {
                let (body, body_bytes) = result?;
                self.fail_here(FailPoint::BallotStored);
                let claimed_unix_ms = self.parts.config.unix_ms();
                self.step(Input::Contributed { height, body, body_bytes, claimed_unix_ms }).await?;
            }
            Work::Validated { height, member, body, result } => match result? {
                Ok(valid) => {
                    self.validations.done(member, true);
                    self.validate();
                    self.step(Input::Valid(valid)).await?;
                }
                Err(why) => {
                    self.validations.done(member, false);
                    self.validate();
                    self.step(Input::Invalid { height, member, body, why }).await?;
                }
            },
            Work::Tallied { height, set, result } => {
                let mask_root = result?;
                self.step(Input::Tallied { height, set, mask_root }).await?;
            }
            Work::Recalled { from, result } => match result.ok().and_then(|bytes| decode_answer(&bytes).ok()) {
                Some(messages) => self.step(Input::Recalled { from, messages }).await?,
                None => {
                    self.recalled.remove(&from); // asked again with the next round of questions
                }
            },
            Work::News { from, result } => {
                self.asking.remove(&from);
                if let Ok(bytes) = result {
                    self.heard(from);
                    self.news(from, &bytes).await?;
                }
            }
            Work::Agreement { height, result } => self.measured(height, result),
            Work::Chunk { request, result } => {
                if result.is_ok() {
                    self.heard(request.member);
                }
                let now_ms = self.now_ms();
                self.fetching.arrived(request, result, now_ms);
            }
            Work::Accepted { request, result } => {
                let now_ms = self.now_ms();
                if let Some(text) = self.fetching.accepted(request, result, now_ms)? {
                    self.say(&NodeEvent::Warning { text });
                }
                if self.fetching.is_half_here(&request) {
                    self.fail_here(FailPoint::MidDownload);
                }
            }
            Work::Complete { body, result } => {
                result?;
                for height in self.fetching.complete(body) {
                    self.step(Input::Stored { height, body }).await?;
                }
            }
            Work::Announced(announced) => {
                let height = Height(announced.height);
                if self.computing == Some(height) && self.parts.machine.current() == height {
                    self.import(height, announced.ballot, announced.calibration);
                } else {
                    self.announced.insert(height.0, announced);
                }
            }
            Work::ContributorEnded(why) => {
                self.contributor = None;
                if let Some(why) = why {
                    self.contributor_failed = Some(why.clone());
                    if let Some(height) = self.computing {
                        self.step(Input::Abstained { height, why }).await?;
                    }
                }
            }
            Work::Concluded(result) => {
                self.concluded = Some(result?);
                self.step(Input::Concluded).await?;
            }
        }
        Ok(())
    }
}
