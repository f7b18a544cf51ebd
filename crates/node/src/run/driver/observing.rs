//! What is published of a running node for those who look at it: nothing unless the node was told to serve it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fedprune_federation::machine::Standing;
use fedprune_federation::{Height, MemberIndex};
use tokio::sync::watch;

use super::super::config::PUBLISH_INTERVAL;
use super::super::error::NodeError;
use super::super::events::NodeEvent;
use super::super::model::chain;
use super::super::status::Status;
use super::super::work::Work;
use super::Driver;
use crate::observe::snapshot::{LOG_LINES, LogLine, MemberRow, Snapshot, Waits, one_line};

/// What a node remembers only to show it.
pub(in super::super) struct Observed {
    sender: watch::Sender<Arc<Snapshot>>,
    published: Option<Instant>,
    /// When anything last came from a member.
    heard: BTreeMap<MemberIndex, Instant>,
    events: BTreeMap<String, u64>,
    log: VecDeque<LogLine>,
    agreement: Vec<Option<f64>>,
    /// The height whose agreement is measured next, and whether it is being measured.
    next_height: u32,
    measuring: bool,
    /// When that was last known.
    measured: Option<Instant>,
}

impl Observed {
    /// Publishes through `sender`; what it holds is the start.
    pub(in super::super) fn new(sender: watch::Sender<Arc<Snapshot>>) -> Self {
        Self {
            sender,
            published: None,
            heard: BTreeMap::new(),
            events: BTreeMap::new(),
            log: VecDeque::new(),
            agreement: Vec::new(),
            next_height: 0,
            measuring: false,
            measured: None,
        }
    }

    /// Whether whoever looks has had `grace` to see the last of it.
    pub(in super::super) fn is_told(&self, grace: Duration) -> bool {
        !self.measuring && self.measured.is_none_or(|at| at.elapsed() >= grace)
    }

    /// How many decoder blocks the model has.
    pub(in super::super) fn has_blocks(&mut self, blocks: usize) {
        self.agreement = vec![None; blocks];
    }

    /// Takes note of an event before the loop runs, and shows it.
    pub(in super::super) fn note_at_start(&mut self, event: &NodeEvent, unix_ms: u64) {
        self.note(event, unix_ms);
        let start = Snapshot::clone(&self.sender.borrow());
        let (events, log) = (self.events.clone(), self.log.clone());
        self.sender.send_replace(Arc::new(Snapshot { unix_ms, events, log, ..start }));
    }

    /// Takes note of an event.
    pub(in super::super) fn note(&mut self, event: &NodeEvent, unix_ms: u64) {
        let (event, warning, text) = (event.name(), event.is_warning(), one_line(&event.text()));
        let line = LogLine { unix_ms, warning, event, text };
        let times = self.events.entry(line.event.clone()).or_default();
        *times = times.saturating_add(1);
        self.log.push_back(line);
        while self.log.len() > LOG_LINES {
            self.log.pop_front();
        }
    }
}

impl Driver<'_> {
    /// Something came from a member.
    pub(super) fn heard(&mut self, member: MemberIndex) {
        if let Some(observed) = &mut self.observed {
            observed.heard.insert(member, Instant::now());
        }
    }

    /// Publishes how the node is doing if that is due, or if it `ended`; costs nothing where nothing is served.
    pub(super) fn publish(&mut self, ended: Option<&'static str>) {
        let now = Instant::now();
        let Some(observed) = &self.observed else { return };
        let due = observed.published.is_none_or(|last| now.duration_since(last) >= PUBLISH_INTERVAL);
        if !due && ended.is_none() {
            return;
        }
        let status = self.status_now(ended);
        let snapshot = self.snapshot(status);
        if let (Some(observed), Some(snapshot)) = (&mut self.observed, snapshot) {
            observed.published = Some(now);
            observed.sender.send_replace(Arc::new(snapshot));
        }
        self.measure_agreement();
    }

    fn snapshot(&self, status: Status) -> Option<Snapshot> {
        let observed = self.observed.as_ref()?;
        let machine = &self.parts.machine;
        // when all is done, the last height is what there is to see
        let height = Height(machine.current().0.min(machine.heights().saturating_sub(1)));
        let traffic = self.parts.network.traffic();
        let happened = |event: &str| observed.events.get(event).copied().unwrap_or(0);
        let limits = [
            ("gossip dropped unread", traffic.unread),
            ("gossip dropped in a full queue", traffic.dropped),
            ("gossip that nobody took", traffic.unpublished),
            ("answered busy", traffic.busy),
            ("members shut out", happened("shut-out")),
            ("outsiders refused", happened("refused")),
            ("invalid ballots", happened("invalid")),
            ("proposals refused", happened("bad-proposal")),
        ];
        let (names, indices) = (&self.parts.names, (0..).map(MemberIndex));
        let roster = names.iter().zip(indices).map(|(name, member)| MemberRow {
            name: name.clone(),
            own: member == machine.me(),
            connected: self.connected.contains(&member),
            heard_seconds_ago: observed.heard.get(&member).map(|heard| heard.elapsed().as_secs_f64()),
            ballot: machine.standing(height, member).map(|standing: Standing| standing.name().to_owned()),
            shut_out: self.shut_out.get(name).cloned(),
            finished: self.finished_members.contains(&member) || (member == machine.me() && self.finished.is_some()),
        });
        let start = observed.sender.borrow();
        Some(Snapshot {
            consortium: start.consortium,
            unix_ms: self.parts.config.unix_ms(),
            view: machine.view(height),
            waits: machine.shortage().map(|shortage| Waits {
                what: shortage.what.to_owned(),
                found: shortage.found,
                needed: shortage.needed,
            }),
            roster: roster.collect(),
            agreement: observed.agreement.clone(),
            agreement_by_chance: start.agreement_by_chance,
            steps: self.seconds.clone(),
            limits: limits.map(|(name, times)| (name.to_owned(), times)).into(),
            events: observed.events.clone(),
            log: observed.log.clone(),
            status,
        })
    }

    /// Measures the agreement of the next height whose ballots were counted, one height at a time and beside everything
    /// else: it reads the weights once more, and the round does not wait for it.
    fn measure_agreement(&mut self) {
        let Some(observed) = &mut self.observed else { return };
        let machine = &self.parts.machine;
        let height = Height(observed.next_height);
        if observed.measuring || machine.mask_root(height).is_none() {
            return;
        }
        let Some(ballots) = machine.ballots(height) else { return };
        observed.measuring = true;
        let (model, blobs) = (Arc::clone(&self.parts.model), Arc::clone(&self.parts.blobs));
        self.spawn(move || Work::Agreement { height, result: model.agreement(&blobs, height, &ballots) });
    }

    /// Takes the agreement of the blocks of a height.
    pub(super) fn measured(
        &mut self,
        height: Height,
        result: Result<Vec<(u32, f64)>, super::super::model::ModelError>,
    ) {
        let Some(observed) = &mut self.observed else { return };
        observed.measuring = false;
        observed.measured = Some(Instant::now());
        observed.next_height = height.0.saturating_add(1);
        match result {
            Ok(blocks) => {
                for (block, agreement) in blocks {
                    if let Some(slot) = observed.agreement.get_mut(block as usize) {
                        *slot = Some(agreement);
                    }
                }
            }
            Err(error) => {
                let why = chain(&NodeError::from(error));
                let text = format!("how far the ballots of height {} agree is not known: {why}", height.0);
                self.say(&NodeEvent::Warning { text });
            }
        }
    }
}
