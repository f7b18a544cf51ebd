//! The loop of a node: what happens goes into the machine, what the machine wants done is done.
//!
//! The loop itself never waits for anything long: hashing, validating, counting and writing happen on other
//! threads or in other processes and come back as [`Work`]. The log is written here, in order, since what
//! leaves must have been written before.

mod arrivals;
mod asking;
mod ending;
mod observing;
mod pace;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fedprune_federation::machine::{Effect, Input, Machine, Outcome, Record, set_digest};
use fedprune_federation::round::Strategy;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{BallotHeader, Height, MemberIndex, SignatureChecked};
use fedprune_mask::Digest;
use tokio::sync::mpsc;

use super::catalogue::Catalogue;
use super::child::{Announced, Contributor, contribute_arguments};
use super::config::{FailPoint, NodeConfig, STATUS_INTERVAL, die};
use super::error::NodeError;
use super::events::NodeEvent;
use super::fetch::Fetching;
use super::model::{BallotSet, RoundModel};
use super::status::Status;
use super::validations::Validations;
use super::work::Work;
use crate::network::{Events, Network, Split};
use crate::observe::Addresses;
use crate::storage::blobs::BlobStore;
use crate::storage::home::RoundFolder;
use crate::storage::wal::Wal;
pub(super) use observing::Observed;
use pace::Pace;

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The round came to a mask.
    Agreed,
    /// The round was abandoned.
    Abandoned,
    /// It was asked to stop before the round was over.
    Stopped,
}

/// What everything is made of.
pub(super) struct Parts {
    pub(super) config: NodeConfig,
    pub(super) name: String,
    pub(super) names: Vec<String>,
    pub(super) folder: RoundFolder,
    pub(super) home: PathBuf,
    pub(super) machine: Machine,
    pub(super) model: Arc<RoundModel>,
    pub(super) wal: Wal,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) network: Network,
    pub(super) events: Events,
    pub(super) catalogue: Catalogue,
    pub(super) earlier: (Split, Split),
    pub(super) outgoing: Option<Box<dyn super::Outgoing>>,
    pub(super) observed: Option<Observed>,
    /// Where page and metrics are.
    pub(super) served: Addresses,
    /// Peer ids of former members' keys, and what is said of them.
    pub(super) former_peers: BTreeMap<String, String>,
}

/// A running node.
pub(super) struct Driver<'a> {
    parts: Parts,
    tell: &'a mut (dyn FnMut(&NodeEvent) + Send),
    started: Instant,
    work: mpsc::Sender<Work>,
    results: Option<mpsc::Receiver<Work>>,
    fetching: Fetching,
    connected: BTreeSet<MemberIndex>,
    addresses: BTreeSet<String>,
    /// Members that have told what they have of ours, or are being asked.
    recalled: BTreeSet<MemberIndex>,
    wants_recall: bool,
    /// Members being asked for news, since when.
    asking: BTreeMap<MemberIndex, Instant>,
    /// Members that knew of more than this one when they asked, and when they were last asked for that.
    asked_back: BTreeMap<MemberIndex, Instant>,
    next_peer: usize,
    pace: Pace,
    next_status: Instant,
    /// What was last written about how this node is doing, and when.
    status: Option<(Status, Instant)>,
    contributor: Option<Contributor>,
    contributor_failed: Option<String>,
    /// Ballots that the contributing process has written and that are not signed yet.
    announced: BTreeMap<u32, Announced>,
    computing: Option<Height>,
    /// Heights whose mask the contributing process was told.
    told_masks: u32,
    seconds: BTreeMap<String, f64>,
    /// Members that were shut out, and why.
    shut_out: BTreeMap<String, String>,
    /// Members whose program calls itself something else than this one, and what; nothing where it does not tell.
    programs: BTreeMap<String, Option<String>>,
    validations: Validations<SignatureChecked<BallotHeader>>,
    finished: Option<(Outcome, Instant)>,
    /// Members that have told that they need nobody any more.
    finished_members: BTreeSet<MemberIndex>,
    /// Whether it was said for whom this node stays.
    told_to_stay: bool,
    concluded: Option<super::work::Conclusion>,
    failed: Option<NodeError>,
    observed: Option<Observed>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(mut parts: Parts, tell: &'a mut (dyn FnMut(&NodeEvent) + Send)) -> Self {
        let (work, results) = mpsc::channel(super::config::WORK_QUEUE);
        let now = Instant::now();
        let fetching = Fetching::new(Arc::clone(&parts.blobs), parts.network.clone(), work.clone(), parts.machine.me());
        let observed = parts.observed.take();
        Self {
            parts,
            tell,
            observed,
            started: now,
            work,
            results: Some(results),
            fetching,
            connected: BTreeSet::new(),
            addresses: BTreeSet::new(),
            recalled: BTreeSet::new(),
            wants_recall: false,
            asking: BTreeMap::new(),
            asked_back: BTreeMap::new(),
            next_peer: 0,
            pace: Pace::new(now),
            next_status: now,
            status: None,
            contributor: None,
            contributor_failed: None,
            announced: BTreeMap::new(),
            computing: None,
            told_masks: 0,
            seconds: BTreeMap::new(),
            shut_out: BTreeMap::new(),
            programs: BTreeMap::new(),
            validations: Validations::default(),
            finished: None,
            finished_members: BTreeSet::new(),
            told_to_stay: false,
            concluded: None,
            failed: None,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes sent and received in all runs of this round.
    fn totals(&self) -> (Split, Split) {
        let traffic = self.parts.network.traffic();
        (self.parts.earlier.0 + traffic.sent, self.parts.earlier.1 + traffic.received)
    }

    fn name(&self, member: MemberIndex) -> String {
        self.parts.names.get(member.as_usize()).cloned().unwrap_or_else(|| member.to_string())
    }

    fn say(&mut self, event: &NodeEvent) {
        if let Some(observed) = &mut self.observed {
            observed.note(event, self.parts.config.unix_ms());
        }
        event.trace();
        (self.tell)(event);
    }

    /// Runs until the round is over and others have had their answers, or until `stop`.
    pub(super) async fn run(mut self, stop: tokio::sync::watch::Receiver<bool>) -> Result<Ending, NodeError> {
        match self.turns(stop).await {
            Ok(ending) => self.end(ending).await,
            Err(error) => {
                self.status(Some("failed"));
                self.parts.network.shutdown().await;
                Err(error)
            }
        }
    }

    /// Turn after turn, until it is known how this ends.
    async fn turns(&mut self, mut stop: tokio::sync::watch::Receiver<bool>) -> Result<Ending, NodeError> {
        let Some(mut results) = self.results.take() else { return Ok(Ending::Stopped) };
        if let Some(outgoing) = &mut self.parts.outgoing {
            outgoing.begin(&self.parts.network);
        }
        self.step(Input::Tick).await?;
        loop {
            if let Some(ending) = self.ending() {
                return Ok(ending);
            }
            let wake = self.next_wake();
            tokio::select! {
                event = self.parts.events.recv() => match event {
                    Some(event) => self.network(event).await?,
                    None => return Err(NodeError::Send(crate::network::SendError::Stopped)),
                },
                Some(done) = results.recv() => self.done(done).await?,
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = stop.changed() => {
                    return Ok(self.finished.map_or(Ending::Stopped, |(outcome, _)| ending_of(outcome)));
                }
            }
            self.regular().await?;
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.pace.next().min(self.next_status);
        if let Some(at_ms) = self.parts.machine.next_tick_ms() {
            wake = wake.min(self.started + Duration::from_millis(at_ms));
        }
        if let Some(at_ms) = self.fetching.next_wake_ms() {
            wake = wake.min(self.started + Duration::from_millis(at_ms));
        }
        wake.max(Instant::now() + Duration::from_millis(1))
    }

    /// What is done again and again.
    async fn regular(&mut self) -> Result<(), NodeError> {
        let now = Instant::now();
        if self.parts.machine.next_tick_ms().is_some_and(|at_ms| at_ms <= self.now_ms()) {
            self.step(Input::Tick).await?;
        }
        self.fetching.pump(self.now_ms());
        if let Some(error) = self.fetching.take_failure() {
            return Err(error);
        }
        if self.pace.is_due(now) {
            self.recall();
            self.ask_for_news();
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_INTERVAL;
            self.status(None);
            self.write_catalogue(false);
            self.tell_for_whom_we_stay();
        }
        self.publish(None);
        self.tell_masks().await;
        Ok(())
    }

    /// Feeds the machine and carries out what it wants.
    async fn step(&mut self, input: Input) -> Result<(), NodeError> {
        let now_ms = self.now_ms();
        let effects = self.parts.machine.step(now_ms, input);
        self.carry_out(effects).await
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), NodeError> {
        let mut unsynced: Vec<FailPoint> = Vec::new();
        let mut feed: VecDeque<Input> = VecDeque::new();
        for effect in effects {
            match effect {
                Effect::Append(height, record) => {
                    self.pace.stir(Instant::now());
                    unsynced.extend(fail_point(&record));
                    let position = self.parts.wal.append(height, &record.encode())?;
                    self.parts.catalogue.note(position, &record);
                }
                Effect::Flush => {
                    // a synced write takes milliseconds, and nothing may leave before it
                    tokio::task::block_in_place(|| self.parts.wal.sync())?;
                    if let Some(point) = self.parts.config.fail_at
                        && unsynced.contains(&point)
                    {
                        die();
                    }
                    unsynced.clear();
                }
                Effect::Publish(bytes) => {
                    let proposal = matches!(wire::content_of(&bytes), Ok(Some(Content::Proposed)));
                    let messages = match &mut self.parts.outgoing {
                        Some(outgoing) => outgoing.publish(bytes),
                        None => vec![bytes],
                    };
                    for bytes in messages {
                        if let Err(error) = self.parts.network.publish(bytes).await {
                            self.say(&NodeEvent::Warning { text: format!("a message was not sent: {error}") });
                        }
                    }
                    if proposal && self.parts.config.fail_at == Some(FailPoint::ProposalSent) {
                        tokio::time::sleep(Duration::from_millis(300)).await; // until it has left this machine
                        die();
                    }
                }
                Effect::Recall => self.wants_recall = true,
                Effect::Compute(height) => self.compute(height, &mut feed),
                Effect::Fetch { height, body, body_bytes, sources } => {
                    if self.parts.blobs.contains(&body) {
                        feed.push_back(Input::Stored { height, body });
                    } else {
                        self.fetching.want(height, body, body_bytes, &sources, self.parts.names.len());
                    }
                }
                Effect::Validate(header) => {
                    self.validations.add(header.member(), header);
                    self.validate();
                }
                Effect::Tally { height, set, ballots } => {
                    let (model, blobs) = (Arc::clone(&self.parts.model), Arc::clone(&self.parts.blobs));
                    self.spawn(move || Work::Tallied {
                        height,
                        set,
                        result: model.tally(&blobs, height, set, &ballots).map_err(NodeError::from),
                    });
                }
                Effect::Conclude(outcome) => self.conclude(outcome),
                Effect::Tell(event) => {
                    let seconds = self.started.elapsed().as_secs_f64();
                    let names = &self.parts.names;
                    let name = |member: MemberIndex| names.get(member.as_usize()).cloned().unwrap_or_default();
                    let event = NodeEvent::of(event, seconds, name);
                    self.note_time(&event, seconds);
                    self.say(&event);
                }
                Effect::Finished(outcome) => self.finish(outcome),
                Effect::Failed(error) => self.failed = Some(error.into()),
            }
        }
        for input in feed {
            Box::pin(self.step(input)).await?;
        }
        Ok(())
    }

    fn note_time(&mut self, event: &NodeEvent, seconds: f64) {
        let phase = match event {
            NodeEvent::Joined => "joined",
            NodeEvent::Ballot { .. } => "ballot",
            NodeEvent::Holding { .. } => "holdings",
            NodeEvent::Decided { .. } => "decided",
            NodeEvent::Tallied { .. } => "tallied",
            NodeEvent::Certified { .. } => "certified",
            _ => return,
        };
        self.seconds.insert(phase.to_owned(), seconds);
    }

    /// Checks ballots whose turn it is.
    pub(super) fn validate(&mut self) {
        while let Some(header) = self.validations.next() {
            let (model, blobs) = (Arc::clone(&self.parts.model), Arc::clone(&self.parts.blobs));
            let (height, member, body) = (header.height(), header.member(), header.content().body);
            self.spawn(move || Work::Validated {
                height,
                member,
                body,
                result: model.validate(&blobs, header).map_err(NodeError::from),
            });
        }
    }

    /// Runs something on a thread where waiting is allowed.
    fn spawn(&self, job: impl FnOnce() -> Work + Send + 'static) {
        let work = self.work.clone();
        tokio::task::spawn_blocking(move || {
            // the loop has ended if this cannot be sent
            let _ = work.blocking_send(job());
        });
    }

    fn compute(&mut self, height: Height, feed: &mut VecDeque<Input>) {
        self.computing = Some(height);
        if let Some(why) = &self.contributor_failed {
            feed.push_back(Input::Abstained { height, why: why.clone() });
            return;
        }
        if let Some(ballot) = self.parts.config.ballot.clone() {
            self.import(height, ballot, None);
            return;
        }
        self.say(&NodeEvent::Computing { height: height.0 });
        if let Some(announced) = self.announced.remove(&height.0) {
            self.import(height, announced.ballot, announced.calibration);
            return;
        }
        if self.contributor.is_none() {
            let consortium = self.parts.home.join("consortium.toml");
            let out = self.parts.folder.folder().join("contribution");
            let round = self.parts.folder.document();
            let arguments = contribute_arguments(&self.parts.config, &self.parts.name, &consortium, &round, &out);
            match Contributor::start(&self.parts.config.program, &arguments, self.work.clone()) {
                Ok(contributor) => self.contributor = Some(contributor),
                Err(error) => {
                    let why = format!("cannot run `{}`: {error}", self.parts.config.program.display());
                    feed.push_back(Input::Abstained { height, why });
                }
            }
        }
    }

    fn import(&self, height: Height, path: PathBuf, calibration: Option<Digest>) {
        let (blobs, model) = (Arc::clone(&self.parts.blobs), Arc::clone(&self.parts.model));
        let gate = self.parts.config.gate.clone();
        self.spawn(move || {
            let imported = blobs.import_file(&path).map_err(NodeError::from);
            let result = imported.and_then(|(body, bytes)| {
                // asked about the bytes in the store, which are those that would be sent
                model.ask(gate.as_ref(), &blobs, height, (body, calibration)).map(|()| (body, bytes))
            });
            Work::Imported { height, result }
        });
    }

    /// Tells the contributing process which masks were agreed on.
    async fn tell_masks(&mut self) {
        if self.parts.model.round.terms().strategy != Strategy::Iterative {
            return;
        }
        let Some(contributor) = self.contributor.as_mut() else { return };
        while self.told_masks < self.parts.machine.current().0 {
            let Some(ballots) = self.parts.machine.ballots(Height(self.told_masks)) else { return };
            let mask = self.parts.model.mask_of(set_digest(&ballots));
            contributor.agreed(&mask).await;
            self.told_masks += 1;
        }
    }

    fn fail_here(&self, point: FailPoint) {
        if self.parts.config.fail_at == Some(point) {
            die();
        }
    }
}

fn ending_of(outcome: Outcome) -> Ending {
    if outcome == Outcome::Agreed { Ending::Agreed } else { Ending::Abandoned }
}

/// The point of recovery that a record stands for.
fn fail_point(record: &Record) -> Option<FailPoint> {
    Some(match record {
        Record::Journal(_) => FailPoint::JournalWritten,
        Record::Held(..) => FailPoint::HeldWritten,
        Record::Said(bytes) => match wire::content_of(bytes) {
            Ok(Some(Content::BallotHeader)) => FailPoint::HeaderWritten,
            Ok(Some(Content::Holdings)) => FailPoint::HoldingsWritten,
            Ok(Some(Content::Proposed)) => FailPoint::ProposalWritten,
            Ok(Some(Content::Prevote)) => FailPoint::PrevoteWritten,
            Ok(Some(Content::Precommit)) => FailPoint::PrecommitWritten,
            Ok(Some(Content::MaskResult)) => FailPoint::ResultWritten,
            _ => return None,
        },
        Record::Heard(bytes) => match wire::content_of(bytes) {
            Ok(Some(Content::Settled)) => FailPoint::SettledWritten,
            _ => return None,
        },
        _ => return None,
    })
}

/// The ballots that count, as far as they are known, for those who have no machine.
pub(super) fn sets_of(machine: &Machine) -> Vec<BallotSet> {
    let heights = (0..machine.heights()).map(Height);
    let known = heights.filter_map(|height| machine.ballots(height).map(|ballots| (height, ballots)));
    let set = |(height, ballots): (Height, Vec<_>)| BallotSet { height, digest: set_digest(&ballots), ballots };
    known.map(set).collect()
}
