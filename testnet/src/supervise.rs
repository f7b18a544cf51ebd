//! What happens to nodes and when, as a state machine: times and what nodes do are inputs, what to do with their
//! processes is the output. It starts no process and reads no clock.

mod disturbances;
mod record;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::events::{Named, NodeEvent};
use crate::manifest::{Fault, How, LinkFault, Outcome, Silo, When};

pub(crate) use disturbances::Begun;
use disturbances::Disturbances;
pub(crate) use record::{Finished, OwnBallot, Record};

/// Exit code of a node whose round ended on a mask.
pub(crate) const EXIT_AGREED: i32 = 0;
/// Exit code of a node whose round was abandoned.
pub(crate) const EXIT_ABANDONED: i32 = 3;
/// Exit code of a node that could not go on.
const EXIT_FAILED: i32 = 1;
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
        /// Bytes of the largest file that it can write, if its disk is full.
        file_bytes: Option<u64>,
    },
    /// Kill it and its children; answered by an exit.
    Kill { silo: usize },
    /// Ask it to end; answered by an exit.
    Terminate { silo: usize },
    /// Let it and its children stand still.
    Pause { silo: usize },
    /// Let it and its children go on.
    Resume { silo: usize },
    /// Begin or end a fault of links, by its number.
    Disturb { fault: usize, on: bool },
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
        /// The last error that it had for its log.
        error: Option<String>,
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
    /// It was killed or stopped, as the manifest has it.
    Killed,
    /// It stands still, as the manifest has it.
    Paused,
    /// It has ended.
    Finished {
        /// How.
        outcome: Outcome,
    },
    /// It ended otherwise, which was not expected to go well.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Absent,
    /// Starts at this time.
    Waiting(Duration),
    /// Since this time.
    Running(Duration),
    /// Was killed by us, or asked to end, and has not ended yet.
    Dying,
    /// Has ended for good.
    Ended,
}

#[derive(Debug)]
struct Node {
    name: String,
    life: Life,
    phase: Phase,
    faults: Vec<Fault>,
    fail_at: Option<String>,
    honest: bool,
    must_finish: bool,
    /// When it goes on, with how far it was.
    paused: Option<(Duration, Phase)>,
    /// The event of its next fault was read while it stood still.
    due: bool,
    record: Record,
}

/// All nodes of a testnet.
#[derive(Debug)]
pub(crate) struct Supervisor {
    nodes: Vec<Node>,
    links: Disturbances,
    within: Duration,
    /// Whether no node may finish, and running out of time is how it ends well.
    stalls: bool,
    time_is_over: bool,
    stopping: bool,
    failure: Option<Failure>,
}

impl Node {
    fn next_fault(&self) -> Option<&Fault> {
        self.faults.get(self.record.faults)
    }

    fn start(&mut self, silo: usize, now: Duration) -> Action {
        self.life = Life::Running(now);
        self.phase = Phase::Started;
        self.due = false;
        let next = self.next_fault();
        let point = next.and_then(|fault| match &fault.when {
            When::Point(point) => Some(point.clone()),
            When::Event(_) | When::After(_) | When::Start => None,
        });
        let file_bytes = next.and_then(|fault| match fault.how {
            How::FullDisk { file_bytes } => Some(file_bytes),
            How::Kill | How::Restart | How::Pause => None,
        });
        Action::Start { silo, fail_at: point.or_else(|| self.fail_at.clone()), file_bytes }
    }

    /// Whether its process will be ended, so that whatever it says last it says again.
    fn is_ending(&self) -> bool {
        self.life == Life::Dying || (self.due && self.next_fault().is_some_and(|fault| fault.how != How::Pause))
    }

    fn is_late(&self) -> bool {
        self.must_finish && self.record.finished.is_none()
    }

    /// The next fault, whose time has come, begins.
    fn strike(&mut self, silo: usize, now: Duration, actions: &mut Vec<Action>) {
        let Some(fault) = self.next_fault() else { return };
        match fault.how {
            How::Kill => {
                self.life = Life::Dying;
                actions.push(Action::Kill { silo });
            }
            How::Restart => {
                self.life = Life::Dying;
                actions.push(Action::Terminate { silo });
            }
            How::Pause => {
                let until = now.saturating_add(fault.ends_after.unwrap_or_default());
                self.record.faults += 1;
                self.paused = Some((until, std::mem::replace(&mut self.phase, Phase::Paused)));
                actions.push(Action::Pause { silo });
            }
            // it strikes by itself
            How::FullDisk { .. } => {}
        }
    }

    /// A fault has ended its process.
    fn killed(&mut self, now: Duration) {
        let restart_after = self.next_fault().and_then(|fault| fault.ends_after);
        self.record.kills += usize::from(self.next_fault().is_some_and(|fault| fault.how == How::Kill));
        self.record.faults += 1;
        self.phase = Phase::Killed;
        self.life = restart_after.map_or(Life::Ended, |after| Life::Waiting(now.saturating_add(after)));
    }

    fn set_phase(&mut self, phase: Phase) {
        match &mut self.paused {
            // what it said before it was stopped
            Some((_, before)) => *before = phase,
            None => self.phase = phase,
        }
    }
}

impl Supervisor {
    /// Nodes that have not started; time begins with the first [`Input::Tick`], at zero.
    pub(crate) fn new(silos: &[Silo], links: &[LinkFault], within: Duration, outcome: Outcome) -> Self {
        let nodes = silos.iter().map(|silo| Node {
            name: silo.name.clone(),
            life: if silo.start { Life::Waiting(silo.start_after) } else { Life::Absent },
            phase: if silo.start { Phase::Waiting } else { Phase::Absent },
            faults: silo.faults.clone(),
            fail_at: silo.fail_at.clone(),
            honest: silo.is_honest(),
            must_finish: silo.must_finish(),
            paused: None,
            due: false,
            record: Record::default(),
        });
        Self {
            nodes: nodes.collect(),
            links: Disturbances::new(links),
            within,
            stalls: outcome == Outcome::Stalled,
            time_is_over: false,
            stopping: false,
            failure: None,
        }
    }

    /// Takes note of what happened at `now` and says what to do.
    #[must_use]
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Tick => self.tick(now, &mut actions),
            Input::Said { silo, said } => self.said(now, silo, said, &mut actions),
            Input::Exited { silo, code, status, error } => self.exited(now, silo, (code, &status), error.as_deref()),
        }
        actions
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (silo, node) in self.nodes.iter_mut().enumerate() {
            if let Some((_, phase)) = node.paused.take_if(|(until, _)| now >= *until) {
                node.phase = phase;
                actions.push(Action::Resume { silo });
                if std::mem::take(&mut node.due) {
                    node.strike(silo, now, actions);
                }
            }
            match node.life {
                Life::Waiting(at) if now >= at => actions.push(node.start(silo, now)),
                Life::Running(since) if node.record.finished.is_none() && node.paused.is_none() => {
                    let due = node.next_fault().is_some_and(
                        |fault| matches!(fault.when, When::After(after) if now >= since.saturating_add(after)),
                    );
                    if due {
                        node.strike(silo, now, actions);
                    }
                }
                Life::Absent | Life::Waiting(_) | Life::Running(_) | Life::Dying | Life::Ended => {}
            }
        }
        let unfinished = self.unfinished();
        self.links.tick(now, unfinished, actions);
        if now > self.within && !self.all_is_done() {
            if self.stalls && self.failure.is_none() && self.everything_has_happened() {
                self.time_is_over = true;
            } else {
                self.fail_for_time();
            }
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
        let due = matches!(node.next_fault(), Some(Fault { when: When::Event(event), .. }) if *event == name);
        if due && matches!(node.life, Life::Running(_)) {
            // what was on its way when it was stopped comes first when it goes on
            if node.paused.is_some() {
                node.due = true;
            } else {
                node.strike(silo, now, actions);
            }
        }
        self.note(now, silo, event);
        let unfinished = self.unfinished();
        self.links.said(now, unfinished, (silo, &name), actions);
    }

    /// How many of the nodes that must finish have not.
    fn unfinished(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_late()).count()
    }

    fn note(&mut self, now: Duration, silo: usize, event: NodeEvent) {
        let Some(node) = self.nodes.get_mut(silo) else { return };
        match event {
            NodeEvent::Listening { .. } => node.set_phase(Phase::Listening),
            NodeEvent::Connected { member } => {
                node.record.connected.insert(member);
                if matches!(node.phase, Phase::Started | Phase::Listening | Phase::Connected { .. }) {
                    let members = node.record.connected.len();
                    node.set_phase(Phase::Connected { members });
                }
            }
            NodeEvent::Ballot { height, bytes, seconds, mask_root } => {
                node.set_phase(Phase::Ballot { bytes });
                node.record.ballots.insert((height.unwrap_or(0), mask_root), OwnBallot { bytes, seconds });
            }
            NodeEvent::Decided { height, contributors } => {
                node.set_phase(Phase::Decided { height });
                let earlier = node.record.decided.insert(height, contributors.clone());
                self.check_one(silo, ("whose ballots count", height), &contributors, earlier, |record| {
                    record.decided.get(&height)
                });
            }
            NodeEvent::Tallied { height, mask_root } => {
                node.set_phase(Phase::Tallied { height });
                let earlier = node.record.tallied.insert(height, mask_root);
                self.check_one(silo, ("the mask", height), &mask_root, earlier, |record| record.tallied.get(&height));
            }
            NodeEvent::Evidence { member } => node.record.evidence_against.extend(member),
            NodeEvent::ShutOut { member } => drop(node.record.shut_out.insert(member)),
            // killed before it said so: it will say so again when it has restarted
            NodeEvent::Finished { .. } if node.is_ending() => {}
            NodeEvent::Finished {
                outcome,
                mask_root,
                transcript,
                pruned,
                sent_bytes,
                received_bytes,
                peak_memory_bytes,
            } => {
                node.set_phase(Phase::Finished { outcome });
                let sent = BTreeMap::new();
                node.record.finished = Some(Finished {
                    at: now,
                    outcome,
                    mask_root,
                    transcript,
                    pruned,
                    sent_bytes,
                    received_bytes,
                    sent,
                    peak_memory_bytes,
                });
                if self.stalls {
                    let reason = format!("silo `{}` finished, in a round that can come to nothing", node.name);
                    return self.fail(Some(silo), reason);
                }
                if let Some(fault) = node.next_fault() {
                    let reason = format!(
                        "silo `{}` finished without being {}: what the manifest asks for never happened",
                        node.name,
                        in_words(fault)
                    );
                    self.fail(Some(silo), reason);
                }
                if let (0, Some(missing)) = (self.unfinished(), self.links.missing()) {
                    let reason = format!(
                        "every node had finished before links were {missing}: let that begin earlier, so that it meets \
                         the round"
                    );
                    self.fail(None, reason);
                }
            }
            // what others were still given after it had finished
            NodeEvent::Closed { sent_bytes, received_bytes, sent } => {
                if let Some(finished) = &mut node.record.finished {
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
        let honest = |node: &&Node| node.honest;
        let other =
            self.nodes.iter().filter(honest).find(|other| of(&other.record).is_some_and(|theirs| theirs != value));
        if let (Some(other), true) = (other, honest(&node)) {
            let reason = format!("silos `{}` and `{}` disagree on {what} of height {height}", node.name, other.name);
            self.fail(Some(silo), reason);
        }
    }

    fn exited(&mut self, now: Duration, silo: usize, (code, status): (Option<i32>, &str), error: Option<&str>) {
        let Some(node) = self.nodes.get_mut(silo) else { return };
        node.paused = None;
        if let Some(finished) = &node.record.finished {
            node.life = Life::Ended;
            let promised = match finished.outcome {
                Outcome::Agreed | Outcome::Stalled => EXIT_AGREED,
                Outcome::Abandoned => EXIT_ABANDONED,
            };
            let fits = code == Some(promised) || (self.stopping && code == Some(EXIT_STOPPED));
            if !fits && node.honest {
                let reason = format!(
                    "the node of silo `{}` finished well and ended with {status}, not code {promised}",
                    node.name
                );
                self.fail(Some(silo), reason);
            }
            return;
        }
        let next = node.next_fault();
        let at_point = next.is_some_and(|fault| matches!(fault.when, When::Point(_)));
        let full = next.is_some_and(|fault| matches!(fault.how, How::FullDisk { .. }));
        let asked = next.is_some_and(|fault| fault.how == How::Restart);
        match node.life {
            Life::Dying if asked && !matches!(code, Some(EXIT_STOPPED | EXIT_AGREED | EXIT_ABANDONED)) => {
                let reason = format!(
                    "the node of silo `{}` was asked to end and ended with {status}, not code {EXIT_STOPPED}",
                    node.name
                );
                self.fail(Some(silo), reason);
            }
            Life::Dying => node.killed(now),
            Life::Running(_) if at_point && code.is_none() => node.killed(now),
            Life::Running(_) if full && code == Some(EXIT_FAILED) => {
                if error.is_some_and(says_what_had_no_room) {
                    return node.killed(now);
                }
                let reason = format!(
                    "the node of silo `{}` has a full disk and ended with {status} without an error that says what was \
                     not written for lack of room; it said: {}",
                    node.name,
                    error.unwrap_or("nothing")
                );
                self.fail(Some(silo), reason);
            }
            Life::Running(_) => {
                node.life = Life::Ended;
                node.phase = Phase::Gone;
                if !self.stopping && node.honest {
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
        let first = self.nodes.iter().position(Node::is_late);
        let names: Vec<String> =
            self.nodes.iter().filter(|node| node.is_late()).map(|node| format!("`{}`", node.name)).collect();
        let what = match names.as_slice() {
            [] => "something that the manifest asks for has not happened".to_owned(),
            [one] => format!("silo {one} has not finished"),
            several => format!("silos {} have not finished", several.join(", ")),
        };
        let first = first.or_else(|| self.nodes.iter().position(|node| node.next_fault().is_some()));
        self.fail(first, format!("{} s are over and {what}", self.within.as_secs()));
    }

    /// Whether every fault has begun.
    fn everything_has_happened(&self) -> bool {
        self.nodes.iter().all(|node| node.next_fault().is_none()) && self.links.missing().is_none()
    }

    fn all_is_done(&self) -> bool {
        self.time_is_over || (!self.stalls && self.everything_has_happened() && self.unfinished() == 0)
    }

    /// How it ended, if it has: well when every node that must finish has, and everything that should go wrong did.
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

    /// The faults of links that have begun.
    pub(crate) fn begun(&self) -> &[Begun] {
        self.links.begun()
    }

    /// What each node said.
    pub(crate) fn into_records(self) -> Vec<Record> {
        self.nodes.into_iter().map(|node| node.record).collect()
    }
}

/// Whether an error says that a file may not grow, and what that file is.
fn says_what_had_no_room(error: &str) -> bool {
    error.contains(&format!("(os error {})", libc::EFBIG)) && error.contains('`')
}

fn in_words(fault: &Fault) -> String {
    let how = match fault.how {
        How::Kill => "killed",
        How::Restart => "restarted",
        How::Pause => "paused",
        How::FullDisk { file_bytes } => return format!("stopped by files of {file_bytes} bytes at most"),
    };
    match &fault.when {
        When::Point(point) => format!("{how} at point `{point}`"),
        When::Event(event) => format!("{how} at event `{event}`"),
        When::After(after) => format!("{how} {} ms after its start", after.as_millis()),
        When::Start => how.to_owned(),
    }
}

#[cfg(test)]
mod tests;
