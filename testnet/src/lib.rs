//! Local testnets: a manifest says who takes part, what goes wrong and what must come of it; the runner starts one real
//! node process a silo on this machine and passes only if that is what came of it.
//!
//! | module | what it does |
//! |---|---|
//! | [`manifest`] | what a testnet is, read and checked |
//! | [`generate`] | manifests drawn from a seed |
//! | `prepare` | keys, consortium, round and approvals, by the program's own commands |
//! | `ports` | free ports |
//! | `links` | the links between nodes, which can be cut, stopped, delayed and slowed down |
//! | `supervise` | what happens to nodes and when, without processes or a clock |
//! | `network` | the processes, as the supervisor says |
//! | `process` | processes that never outlive their owner |
//! | `events` | what nodes say |
//! | `judge` | whether everything came as expected |
//! | [`report`] | what came of it |
//! | [`simulator`] | whole rounds in one process, under virtual time |
//!
//! Everything is done through the program's commands and files, as users do it: nothing here links the node, so that
//! what passes here passes for them.

#![cfg(unix)]

mod error;
mod events;
mod files;
pub mod generate;
mod judge;
mod links;
pub mod manifest;
mod network;
mod ports;
mod prepare;
pub mod process;
mod program;
pub mod report;
pub mod simulator;
mod supervise;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedprune_federation::{Consortium, Round};

pub use error::TestnetError;
pub use manifest::{Manifest, Outcome};
pub use prepare::NodeArguments;
pub use report::{Check, LogEnd, Report, SiloReport, Wire};
pub use supervise::Phase;

use files::Folder;
use judge::{Judge, Judgement};
use links::{Felt, Links};
use network::Stage;
use prepare::{Prepared, Sources};
use program::Program;
use supervise::{Begun, Failure, Record, Supervisor};

/// How a default folder is called, before its number.
const FOLDER_PREFIX: &str = "fedprune-testnet-";
/// What the program of nodes that lie is called.
const LYING_PROGRAM: &str = "fedprune-lying-node";
/// What tells it how to lie.
const LIE_VARIABLE: &str = "FEDPRUNE_LIE";
/// Where all nodes are.
const LOCALHOST: &str = "127.0.0.1";
/// Begins every panic of a Rust program.
const PANIC: &str = "panicked at ";

/// The bundled model and texts, once they are written somewhere.
#[derive(Debug, Clone, Default)]
pub struct Bundled {
    /// Folder of the model.
    pub model: PathBuf,
    /// Texts by name.
    pub texts: BTreeMap<String, PathBuf>,
}

/// Writes the bundled model and texts into a folder.
pub type Bundle<'a> = &'a dyn Fn(&Path) -> Result<Bundled, Box<dyn std::error::Error + Send + Sync>>;

/// Is told how far a testnet is.
pub type Observer<'a> = &'a mut dyn FnMut(Progress<'_>);

/// How far a testnet is.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The folder for everything has been made.
    Folder(&'a Path),
    /// What is done next.
    Step(&'a str),
    /// What nodes do has changed.
    Nodes {
        /// Since the first started.
        elapsed: Duration,
        /// Each silo, by name.
        nodes: &'a [(&'a str, &'a Phase)],
    },
}

/// What to run, and how.
pub struct Options<'a> {
    /// The manifest.
    pub manifest: &'a Path,
    /// Where its paths start, if not at its own folder.
    pub base: Option<&'a Path>,
    /// The folder for everything, which must not exist; otherwise the first free `fedprune-testnet-N`.
    pub folder: Option<&'a Path>,
    /// The `fedprune` program.
    pub program: &'a Path,
    /// The program of nodes that lie; `fedprune-lying-node` beside the other one unless given.
    pub lying_program: Option<&'a Path>,
    /// The bundled model and texts.
    pub bundle: Bundle<'a>,
    /// Whether someone has asked to stop; asked many times a second.
    pub stop: &'a dyn Fn() -> bool,
}

/// A testnet whose nodes can be started: keys, documents and approvals are there.
pub struct SetUp {
    manifest: Manifest,
    sources: Sources,
    prepared: Prepared,
    folder: Folder,
    ports: Vec<u16>,
}

impl SetUp {
    /// Makes everything that nodes need before they start.
    ///
    /// # Errors
    /// When there is no such testnet, or it could not be set up.
    pub fn new(options: &Options<'_>, observe: Observer<'_>) -> Result<Self, TestnetError> {
        let text = files::read_manifest(options.manifest)?;
        let wrong = |source| TestnetError::Manifest { path: options.manifest.to_owned(), source };
        let mut manifest = Manifest::parse(&text).map_err(wrong)?;
        if !manifest.link_faults.is_empty() {
            links::allow_open_files(manifest.silos.len()).map_err(error::at("open links at", LOCALHOST.as_ref()))?;
        }
        let own = options.manifest.parent().unwrap_or(Path::new("")).to_owned();
        let base = options.base.unwrap_or(&own);
        let folder = Folder { root: files::new_folder(options.folder, FOLDER_PREFIX)? };
        observe(Progress::Folder(&folder.root));
        folder.furnish()?;
        prepare::keep_manifest(&folder, &text)?;
        let program = options.program_in(&folder);
        let lying_program = options.lying_program();
        if let Some(silo) = manifest.silos.iter().find(|silo| silo.lie.is_some() && silo.start)
            && !lying_program.is_file()
        {
            return Err(TestnetError::NoLyingProgram { silo: silo.name.clone(), path: lying_program });
        }

        let sources = prepare::sources(&manifest, base, &folder.root, options.bundle)?;
        let reserved = ports::reserve(manifest.silos.len(), first_port())
            .map_err(error::at("reserve ports of", LOCALHOST.as_ref()))?;
        let prepared = prepare::prepare(&mut manifest, &sources.model, &folder, &reserved, &program, observe)?;
        manifest.check_faults().map_err(wrong)?;
        let ports = reserved.iter().map(ports::Reserved::port).collect();
        Ok(Self { manifest, sources, prepared, folder, ports })
    }

    /// How each silo's node is started, in the order of members.
    pub fn nodes(&self) -> Vec<NodeArguments> {
        // a node that has finished helps the others, until all have and it is told to stop
        let linger_seconds = self.manifest.expect.within.as_secs();
        let silos = self.manifest.silos.iter().zip(&self.ports).enumerate();
        let (sources, folder, round) = (&self.sources, &self.folder, &self.prepared.round);
        let nodes = silos.map(|(number, (silo, port))| {
            NodeArguments::of(silo, number, sources, folder, *port, round, linger_seconds)
        });
        nodes.collect()
    }

    /// What each silo is called, in the order of members.
    pub fn names(&self) -> Vec<String> {
        self.manifest.silos.iter().map(|silo| silo.name.clone()).collect()
    }

    /// The round.
    pub fn round(&self) -> &Round {
        &self.prepared.round
    }

    /// Who takes part.
    pub fn consortium(&self) -> &Consortium {
        &self.prepared.consortium
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        &self.folder.root
    }
}

impl Options<'_> {
    fn lying_program(&self) -> PathBuf {
        self.lying_program.map_or_else(|| self.program.with_file_name(LYING_PROGRAM), Path::to_owned)
    }

    fn program_in(&self, folder: &Folder) -> Program<'_> {
        Program { path: self.program, log: folder.commands_log(), stop: self.stop }
    }
}

/// Runs a testnet to its end. No process that it started is left when it returns, whatever it returns. The thread that
/// calls this must live until then: on Linux, the nodes die with it.
///
/// # Errors
/// When there is no such testnet, or it could not be set up. One that ran and did not end as expected is a report.
pub fn run(options: &Options<'_>, observe: Observer<'_>) -> Result<Report, TestnetError> {
    let set_up = SetUp::new(options, observe)?;
    let SetUp { manifest, sources, prepared, folder, .. } = &set_up;
    let program = options.program_in(folder);

    observe(Progress::Step("nodes"));
    let links = set_up.links()?;
    let mut ended = run_nodes(&set_up, &program, &options.lying_program(), links.as_ref(), observe)?;
    let link_ports: Vec<u16> = links.iter().flat_map(Links::ports).collect();
    let felt = links.as_ref().map(Links::felt).unwrap_or_default();
    drop(links);
    let problem = set_up.left_behind(&ended.groups, &link_ports);
    if let (None, Some((silo, reason))) = (&ended.failure, &problem) {
        ended.failure = Some(Failure { silo: *silo, reason: reason.clone() });
    }
    let judge = Judge {
        silos: &manifest.silos,
        records: &ended.records,
        expect: &manifest.expect,
        prepared,
        model: &sources.model,
        folder,
    };
    let (judgement, ballots) = match &ended.failure {
        Some(failure) => (failed(manifest, failure), Vec::new()),
        None => {
            let mut judgement = judge.compare();
            judgement.checks.push(Check { what: NOTHING_LEFT.to_owned(), problem: None });
            judgement.checks.extend(disturbances(&ended.begun, &felt));
            observe(Progress::Step("audit and tally by hand"));
            judge.audit(&program, &mut judgement)?;
            let ballots = judge.tally_by_hand(&program, &mut judgement)?;
            (judgement, ballots)
        }
    };
    let look_further = look_further(&judge, &program, &ballots);
    Ok(report(manifest, prepared, folder, &ended, judgement, look_further))
}

/// What is looked at when all nodes have ended.
const NOTHING_LEFT: &str = "no node panicked, and no process and no port is left";

/// What faults of links came to; one that has not met the round has failed it by now.
fn disturbances(begun: &[Begun], felt: &Felt) -> Vec<Check> {
    let began = begun.iter().map(|Begun { name, at, unfinished }| {
        format!("`{name}` of links began after {:.2} s, when {unfinished} nodes had not finished", at.as_secs_f64())
    });
    let Felt { cut, stalled, delayed, lost, slowed } = felt;
    let felt = (!begun.is_empty()).then(|| {
        format!(
            "links have cut {cut} connections, stopped {stalled}, delayed {delayed} segments, lost {lost} and slowed \
             down {slowed}"
        )
    });
    began.chain(felt).map(|what| Check { what, problem: None }).collect()
}

/// Where ports are looked for: testnets that start together look elsewhere.
fn first_port() -> u64 {
    u64::from(std::process::id()).wrapping_mul(manifest::MAX_SILOS as u64)
}

impl SetUp {
    /// The links that nodes have instead of dialling each other, if something goes wrong with them.
    fn links(&self) -> Result<Option<Links>, TestnetError> {
        if self.manifest.link_faults.is_empty() {
            return Ok(None);
        }
        let round = self.prepared.round.id().0;
        let seed = round.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let start = first_port() + self.ports.len() as u64;
        Links::new(&self.ports, start, seed).map(Some).map_err(error::at("open links at", LOCALHOST.as_ref()))
    }

    /// What nodes left that nothing may be left of: panics, processes, ports.
    fn left_behind(&self, groups: &[u32], link_ports: &[u16]) -> Option<(Option<usize>, String)> {
        for (number, silo) in self.manifest.silos.iter().enumerate() {
            let log = self.folder.logs(&silo.name).errors;
            match files::holds(&log, PANIC) {
                Ok(false) => {}
                Ok(true) => return Some((Some(number), format!("the node of silo `{}` panicked", silo.name))),
                Err(error) => return Some((Some(number), format!("{error}, which may hold a panic"))),
            }
        }
        let started = std::time::Instant::now();
        loop {
            // a kill is certain, and not instantaneous
            let processes = process::left_of(groups);
            let mut ports = ports::taken(self.ports.iter().copied());
            ports.extend(ports::taken_for_tcp(link_ports.iter().copied()));
            if processes.is_empty() && ports.is_empty() {
                return None;
            }
            if started.elapsed() > GONE_WITHIN {
                return Some((None, format!("processes {processes:?} and ports {ports:?} are left")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);

fn run_nodes(
    set_up: &SetUp,
    program: &Program<'_>,
    lying_program: &Path,
    links: Option<&Links>,
    observe: Observer<'_>,
) -> Result<network::Ended, TestnetError> {
    let manifest = &set_up.manifest;
    let logs: Vec<network::Logs> = manifest.silos.iter().map(|silo| set_up.folder.logs(&silo.name)).collect();
    let mut nodes = set_up.nodes();
    if let Some(links) = links {
        let names = set_up.names();
        for (from, node) in nodes.iter_mut().enumerate() {
            let others = names.iter().enumerate().filter_map(|(to, name)| Some((name, links.port(from, to)?)));
            node.dial = others.map(|(name, port)| (name.clone(), format!("/ip4/127.0.0.1/tcp/{port}"))).collect();
        }
    }
    let launch = |number: usize, fail_at: Option<&str>| {
        let mut arguments = nodes.get(number).map(NodeArguments::words).unwrap_or_default();
        if let Some(point) = fail_at {
            arguments.extend(prepare::words(&[&"--fail-at", &point]));
        }
        let lie = manifest.silos.get(number).and_then(|silo| silo.lie.as_ref());
        match lie {
            Some(lie) => {
                let lying = Program { path: lying_program, log: program.log.clone(), stop: program.stop };
                let mut command = lying.command(arguments);
                command.env(LIE_VARIABLE, lie);
                command
            }
            None => program.command(arguments),
        }
    };
    let expect = &manifest.expect;
    let supervisor = Supervisor::new(&manifest.silos, &manifest.link_faults, expect.within, expect.outcome);
    let stage = Stage { logs: &logs, launch: &launch, links, link_faults: &manifest.link_faults };
    network::run(supervisor, &stage, program.stop, observe)
}

/// What a network that failed while it ran comes to.
fn failed(manifest: &Manifest, failure: &Failure) -> Judgement {
    let what = format!("every node that should finish does, within {} s", manifest.expect.within.as_secs());
    Judgement {
        checks: vec![Check { what, problem: Some(failure.reason.clone()) }],
        silo: failure.silo,
        mask_root: None,
        audits: vec![None; manifest.silos.len()],
    }
}

fn look_further(judge: &Judge<'_>, program: &Program<'_>, ballots: &[PathBuf]) -> Vec<String> {
    let typed = |arguments: Vec<std::ffi::OsString>| {
        let mut command = std::process::Command::new(program.path);
        command.args(arguments);
        program::in_words(&command)
    };
    let mut commands = Vec::new();
    let transcripts = judge.records.iter().filter_map(|record| {
        let finished = record.finished.as_ref()?;
        Some((finished.transcript.as_deref()?, finished))
    });
    if let Some((transcript, finished)) = transcripts.into_iter().next() {
        commands.push(typed(prepare::words(&[&"audit", &"show", &transcript])));
        commands.push(typed(judge.audit_arguments(transcript, finished)));
    }
    if !ballots.is_empty() {
        let mut show = prepare::words(&[&"mask", &"show"]);
        show.extend(ballots.iter().map(|path| path.clone().into_os_string()));
        show.extend(prepare::words(&[&"--model", &judge.model]));
        commands.push(typed(show));
    }
    commands.push(format!("less {}", program::quoted(&judge.folder.commands_log().to_string_lossy())));
    commands
}

fn report(
    manifest: &Manifest,
    prepared: &Prepared,
    folder: &Folder,
    ended: &network::Ended,
    judgement: Judgement,
    look_further: Vec<String>,
) -> Report {
    let silos = manifest.silos.iter().zip(&ended.records).zip(&ended.phases).zip(judgement.audits);
    let silos: Vec<SiloReport> =
        silos.map(|(((silo, record), phase), audit)| silo_report(&silo.name, record, phase, audit)).collect();
    let reason = judgement.checks.iter().find_map(|check| Some((&check.what, check.problem.as_ref()?)));
    let log = judgement.silo.filter(|_| reason.is_some()).and_then(|silo| {
        let path = folder.logs(&manifest.silos.get(silo)?.name).errors;
        Some(LogEnd { lines: files::last_lines(&files::read_from(&path, 0)), path })
    });
    Report {
        name: manifest.name.clone(),
        passed: reason.is_none(),
        reason: reason.map(|(what, problem)| format!("{problem} (expected: {what})")),
        log,
        folder: folder.root.clone(),
        consortium: prepared.consortium.id().0,
        round: prepared.round.id().0,
        mask_root: judgement.mask_root,
        seconds: ended.took.as_secs_f64(),
        wire: wire(&silos),
        silos,
        checks: judgement.checks,
        look_further,
    }
}

/// What all nodes that finished sent.
fn wire(silos: &[SiloReport]) -> Wire {
    let finished: Vec<&SiloReport> = silos.iter().filter(|silo| silo.sent_bytes.is_some()).collect();
    let sum =
        |of: fn(&SiloReport) -> Option<u64>| finished.iter().filter_map(|silo| of(silo)).fold(0, u64::saturating_add);
    let sent_bytes = sum(|silo| silo.sent_bytes);
    let others = finished.len().saturating_sub(1) as u64;
    let least_bytes = sum(|silo| silo.ballot_bytes).saturating_mul(others);
    let mut sent: BTreeMap<String, u64> = BTreeMap::new();
    for (what, bytes) in finished.iter().flat_map(|silo| &silo.sent) {
        let entry = sent.entry(what.clone()).or_default();
        *entry = entry.saturating_add(*bytes);
    }
    let ratio = (least_bytes > 0).then(|| sent_bytes as f64 / least_bytes as f64);
    Wire { sent_bytes, sent, least_bytes, ratio }
}

fn silo_report(name: &str, record: &Record, phase: &Phase, audit: Option<String>) -> SiloReport {
    let finished = record.finished.as_ref();
    // ballots of an iterative round, one a height, are added up
    let ballots = || (!record.ballots.is_empty()).then(|| record.ballots.values());
    SiloReport {
        name: name.to_owned(),
        phase: phase.clone(),
        outcome: finished.map(|finished| finished.outcome),
        ballot_bytes: ballots().map(|ballots| ballots.fold(0, |sum: u64, ballot| sum.saturating_add(ballot.bytes))),
        ballot_seconds: ballots().map(|ballots| ballots.map(|ballot| ballot.seconds).fold(0.0, f64::max)),
        seconds: finished.map(|finished| finished.at.as_secs_f64()),
        sent_bytes: finished.map(|finished| finished.sent_bytes),
        sent: finished.map(|finished| finished.sent.clone()).unwrap_or_default(),
        received_bytes: finished.map(|finished| finished.received_bytes),
        peak_memory_bytes: finished.and_then(|finished| finished.peak_memory_bytes),
        shut_out: record.shut_out.iter().cloned().collect(),
        kills: record.kills,
        faults: record.faults,
        mask_root: finished.and_then(|finished| finished.mask_root),
        audit,
        transcript: finished.and_then(|finished| finished.transcript.clone()),
        pruned: finished.and_then(|finished| finished.pruned.clone()),
    }
}
