//! What happens to nodes and when, as a state machine: times and what nodes do are inputs, what to do with their
//! processes is the output. It starts no process and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use fedprune_mask::Digest;
use serde::Serialize;

use crate::events::{Named, NodeEvent};
use crate::manifest::{Kill, KillWhen, Outcome, Silo};

/// Exit code of a node whose round ended on a mask.
pub(crate) const EXIT_AGREED: i32 = 0;
/// Exit code of a node whose round was abandoned.
pub(crate) const EXIT_ABANDONED: i32 = 3;
/// Exit code of a node that was asked to end.
const EXIT_STOPPED: i32 = 130;

/// What to do with the process of one silo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start it; answered by an exit, sooner or later.
    Start {
        silo: usize,
        /// For `--fail-at`.
        fail_at: Option<String>,
    },
    /// Kill it and its children; answered by an exit.
    Kill { silo: usize },
}

/// What became of a process or of the time.
#[derive(Debug)]
pub(crate) enum Input {
    /// Time has passed.
    Tick,
    /// A node said something.
    Said { silo: usize, said: Result<Named, String> },
    /// A process has ended; everything it said came before.
    Exited {
        silo: usize,
        /// Absent when a signal ended it.
        code: Option<i32>,
        /// In words.
        status: String,
    },
}

/// Why a testnet failed while it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Whose log tells more.
    pub(crate) silo: Option<usize>,
    pub(crate) reason: String,
}

/// How far a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// It never starts.
    Absent,
    /// It starts later.
    Waiting,
    /// Its process runs and has said nothing yet.
    Started,
    /// It can be dialled.
    Listening,
    /// It has found others.
    Connected {
        /// How many.
        members: usize,
    },
    /// It has its ballot.
    Ballot {
        /// Bytes of the ballot.
        bytes: u64,
    },
    /// It knows whose ballots count.
    Decided {
        /// At this height.
        height: u32,
    },
    /// It has the mask.
    Tallied {
        /// At this height.
        height: u32,
    },
    /// It was killed, as the manifest has it.
    Killed,
    /// It has ended.
    Finished {
        /// How.
        outcome: Outcome,
    },
    /// It ended otherwise, which was not expected to go well.
    Gone,
}

/// What one node said, over all its processes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Record {
    pub(crate) connected: BTreeSet<String>,
    /// A ballot by its height and mask; a restarted node says again what it has.
    pub(crate) ballots: BTreeMap<(u32, Option<Digest>), OwnBallot>,
    pub(crate) decided: BTreeMap<u32, BTreeSet<String>>,
    pub(crate) tallied: BTreeMap<u32, Digest>,
    pub(crate) evidence_against: BTreeSet<String>,
    pub(crate) kills: usize,
    pub(crate) finished: Option<Finished>,
}

/// A ballot of a node's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OwnBallot {
    pub(crate) bytes: u64,
    /// Since the start of the process.
    pub(crate) seconds: f64,
}

/// What a node said last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finished {
    pub(crate) at: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) mask_root: Option<Digest>,
    pub(crate) transcript: Option<PathBuf>,
    pub(crate) pruned: Option<PathBuf>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// What was sent, by what it was for; known when the node has closed its connections.
    pub(crate) sent: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Absent,
    /// Starts at this time.
    Waiting(Duration),
    /// Since this time.
    Running(Duration),
    /// Was killed by us and has not ended yet.
    Dying,
    /// Has ended for good.
    Ended,
}

#[derive(Debug)]
struct Node {
    name: String,
    life: Life,
    phase: Phase,
    kills: Vec<Kill>,
    fail_at: Option<String>,
    must_finish: bool,
    record: Record,
}

/// All nodes of a testnet.
#[derive(Debug)]
pub(crate) struct Supervisor {
    nodes: Vec<Node>,
    within: Duration,
    stopping: bool,
    failure: Option<Failure>,
}

impl Node {
    fn next_kill(&self) -> Option<&Kill> {
        self.kills.get(self.record.kills)
    }

    fn start(&mut self, silo: usize, now: Duration) -> Action {
        self.life = Life::Running(now);
        self.phase = Phase::Started;
        let point = self.next_kill().and_then(|kill| match &kill.when {
            KillWhen::Point(point) => Some(point.clone()),
            KillWhen::Event(_) | KillWhen::After(_) => None,
        });
        Action::Start { silo, fail_at: point.or_else(|| self.fail_at.clone()) }
    }

    /// A kill has come to pass.
    fn killed(&mut self, now: Duration) {
        let restart_after = self.next_kill().and_then(|kill| kill.restart_after);
        self.record.kills += 1;
        self.phase = Phase::Killed;
        self.life = restart_after.map_or(Life::Ended, |after| Life::Waiting(now.saturating_add(after)));
    }
}

impl Supervisor {
    /// Nodes that have not started; time begins with the first [`Input::Tick`], at zero.
    pub(crate) fn new(silos: &[Silo], within: Duration) -> Self {
        let nodes = silos.iter().map(|silo| Node {
            name: silo.name.clone(),
            life: if silo.start { Life::Waiting(silo.start_after) } else { Life::Absent },
            phase: if silo.start { Phase::Waiting } else { Phase::Absent },
            kills: silo.kills.clone(),
            fail_at: silo.fail_at.clone(),
            must_finish: silo.must_finish(),
            record: Record::default(),
        });
        Self { nodes: nodes.collect(), within, stopping: false, failure: None }
    }

    /// Takes note of what happened at `now` and says what to do.
    #[must_use]
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Tick => self.tick(now, &mut actions),
            Input::Said { silo, said } => self.said(now, silo, said, &mut actions),
            Input::Exited { silo, code, status } => self.exited(now, silo, code, &status),
        }
        actions
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (silo, node) in self.nodes.iter_mut().enumerate() {
            match node.life {
                Life::Waiting(at) if now >= at => actions.push(node.start(silo, now)),
                Life::Running(since) if node.record.finished.is_none() => {
                    let due = node.next_kill().is_some_and(
                        |kill| matches!(kill.when, KillWhen::After(after) if now >= since.saturating_add(after)),
                    );
                    if due {
                        node.life = Life::Dying;
                        actions.push(Action::Kill { silo });
                    }
                }
                Life::Absent | Life::Waiting(_) | Life::Running(_) | Life::Dying | Life::Ended => {}
            }
        }
        if now > self.within && !self.all_is_done() {
            self.fail_for_time();
        }
    }

    fn said(&mut self, now: Duration, silo: usize, said: Result<Named, String>, actions: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(silo) else { return };
        let Named { name, event } = match said {
            Ok(named) => named,
            Err(problem) => {
                let reason = format!("silo `{}` printed what is no event: {problem}", node.name);
                return self.fail(Some(silo), reason);
            }
        };
        let due = matches!(node.next_kill(), Some(Kill { when: KillWhen::Event(event), .. }) if *event == name);
        if due && matches!(node.life, Life::Running(_)) {
            node.life = Life::Dying;
            actions.push(Action::Kill { silo });
        }
        self.note(now, silo, event);
    }

    fn note(&mut self, now: Duration, silo: usize, event: NodeEvent) {
        let Some(node) = self.nodes.get_mut(silo) else { return };
        let record = &mut node.record;
        match event {
            NodeEvent::Listening { .. } => node.phase = Phase::Listening,
            NodeEvent::Connected { member } => {
                record.connected.insert(member);
                if matches!(node.phase, Phase::Started | Phase::Listening | Phase::Connected { .. }) {
                    node.phase = Phase::Connected { members: record.connected.len() };
                }
            }
            NodeEvent::Ballot { height, bytes, seconds, mask_root } => {
                node.phase = Phase::Ballot { bytes };
                record.ballots.insert((height.unwrap_or(0), mask_root), OwnBallot { bytes, seconds });
            }
            NodeEvent::Decided { height, contributors } => {
                node.phase = Phase::Decided { height };
                let earlier = record.decided.insert(height, contributors.clone());
                self.check_one(silo, ("whose ballots count", height), &contributors, earlier, |record| {
                    record.decided.get(&height)
                });
            }
            NodeEvent::Tallied { height, mask_root } => {
                node.phase = Phase::Tallied { height };
                let earlier = record.tallied.insert(height, mask_root);
                self.check_one(silo, ("the mask", height), &mask_root, earlier, |record| record.tallied.get(&height));
            }
            NodeEvent::Evidence { member } => record.evidence_against.extend(member),
            // killed before it said so: it will say so again when it has restarted
            NodeEvent::Finished { .. } if node.life == Life::Dying => {}
            NodeEvent::Finished { outcome, mask_root, transcript, pruned, sent_bytes, received_bytes } => {
                node.phase = Phase::Finished { outcome };
                let sent = BTreeMap::new();
                record.finished = Some(Finished {
                    at: now,
                    outcome,
                    mask_root,
                    transcript,
                    pruned,
                    sent_bytes,
                    received_bytes,
                    sent,
                });
                if let Some(kill) = node.next_kill() {
                    let reason = format!(
                        "silo `{}` finished without being killed {}: the kill that the manifest asks for never happened",
                        node.name,
                        when(kill)
                    );
                    self.fail(Some(silo), reason);
                }
            }
            // what others were still given after it had finished
            NodeEvent::Closed { sent_bytes, received_bytes, sent } => {
                if let Some(finished) = &mut record.finished {
                    (finished.sent_bytes, finished.received_bytes, finished.sent) = (sent_bytes, received_bytes, sent);
                }
            }
            NodeEvent::Other => {}
        }
    }

    /// What was decided stays decided, on every node and after every restart.
    fn check_one<T: PartialEq>(
        &mut self,
        silo: usize,
        (what, height): (&str, u32),
        value: &T,
        earlier: Option<T>,
        of: impl Fn(&Record) -> Option<&T>,
    ) {
        let Some(node) = self.nodes.get(silo) else { return };
        if earlier.is_some_and(|earlier| earlier != *value) {
            let reason = format!("silo `{}` has changed its mind on {what} of height {height}", node.name);
            return self.fail(Some(silo), reason);
        }
        let honest = |node: &&Node| node.fail_at.is_none();
        let other =
            self.nodes.iter().filter(honest).find(|other| of(&other.record).is_some_and(|theirs| theirs != value));
        if let (Some(other), true) = (other, honest(&node)) {
            let reason = format!("silos `{}` and `{}` disagree on {what} of height {height}", node.name, other.name);
            self.fail(Some(silo), reason);
        }
    }

    fn exited(&mut self, now: Duration, silo: usize, code: Option<i32>, status: &str) {
        let Some(node) = self.nodes.get_mut(silo) else { return };
        if let Some(finished) = &node.record.finished {
            node.life = Life::Ended;
            let promised = match finished.outcome {
                Outcome::Agreed => EXIT_AGREED,
                Outcome::Abandoned => EXIT_ABANDONED,
            };
            let fits = code == Some(promised) || (self.stopping && code == Some(EXIT_STOPPED));
            if !fits && node.fail_at.is_none() {
                let reason = format!(
                    "the node of silo `{}` finished well and ended with {status}, not code {promised}",
                    node.name
                );
                self.fail(Some(silo), reason);
            }
            return;
        }
        let at_point = matches!(node.next_kill(), Some(Kill { when: KillWhen::Point(_), .. }));
        match node.life {
            Life::Dying => node.killed(now),
            Life::Running(_) if at_point && code.is_none() => node.killed(now),
            Life::Running(_) => {
                node.life = Life::Ended;
                node.phase = Phase::Gone;
                if !self.stopping && node.fail_at.is_none() {
                    let reason = format!("the node of silo `{}` ended with {status} before the round did", node.name);
                    self.fail(Some(silo), reason);
                }
            }
            Life::Absent | Life::Waiting(_) | Life::Ended => {}
        }
    }

    /// From now on nodes end because they were asked to.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// A node was asked to end, and did not.
    pub(crate) fn would_not_stop(&mut self, silo: usize, grace: Duration) {
        let Some(node) = self.nodes.get(silo) else { return };
        let reason = format!("the node of silo `{}` still ran {} s after SIGTERM", node.name, grace.as_secs());
        self.fail(Some(silo), reason);
    }

    fn fail(&mut self, silo: Option<usize>, reason: String) {
        // the first is the cause, what follows may be its consequence
        self.failure.get_or_insert(Failure { silo, reason });
    }

    fn fail_for_time(&mut self) {
        let late = |node: &Node| node.must_finish && node.record.finished.is_none();
        let first = self.nodes.iter().position(late);
        let names: Vec<String> =
            self.nodes.iter().filter(|node| late(node)).map(|node| format!("`{}`", node.name)).collect();
        let what = match names.as_slice() {
            [] => "a kill that the manifest asks for has not happened".to_owned(),
            [one] => format!("silo {one} has not finished"),
            several => format!("silos {} have not finished", several.join(", ")),
        };
        let first = first.or_else(|| self.nodes.iter().position(|node| node.next_kill().is_some()));
        self.fail(first, format!("{} s are over and {what}", self.within.as_secs()));
    }

    fn all_is_done(&self) -> bool {
        self.nodes
            .iter()
            .all(|node| node.next_kill().is_none() && (!node.must_finish || node.record.finished.is_some()))
    }

    /// How it ended, if it has: well when every node that must finish has, and every kill has happened.
    pub(crate) fn ended(&self) -> Option<Result<(), Failure>> {
        match &self.failure {
            Some(failure) => Some(Err(failure.clone())),
            None => self.all_is_done().then_some(Ok(())),
        }
    }

    /// How far each node is.
    pub(crate) fn phases(&self) -> impl Iterator<Item = (&str, &Phase)> {
        self.nodes.iter().map(|node| (node.name.as_str(), &node.phase))
    }

    /// What each node said.
    pub(crate) fn into_records(self) -> Vec<Record> {
        self.nodes.into_iter().map(|node| node.record).collect()
    }
}

fn when(kill: &Kill) -> String {
    match &kill.when {
        KillWhen::Point(point) => format!("at point `{point}`"),
        KillWhen::Event(event) => format!("at event `{event}`"),
        KillWhen::After(after) => format!("{} ms after its start", after.as_millis()),
    }
}

#[cfg(test)]
mod tests;
