//! Carries out what the supervisor says: starts processes, listens to them, kills them, and leaves none behind.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::error::{TestnetError, at};
use crate::events::{self, Named};
use crate::files;
use crate::links::{Links, Rules};
use crate::manifest::LinkFault;
use crate::process::{self, Group, in_words};
use crate::supervise::{Action, Begun, Failure, Input, Record, Supervisor};
use crate::{Observer, Phase, Progress};

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(20);
/// How long a process may take to end after SIGTERM.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long what an ended process has said may be on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Most lines that wait to be read; a node that says more waits.
const MAX_QUEUED_LINES: usize = 1024;

/// Where the output of one node goes.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    /// Standard output.
    pub(crate) events: PathBuf,
    /// Standard error.
    pub(crate) errors: PathBuf,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) records: Vec<Record>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) failure: Option<Failure>,
    /// From the first start until the last node that had to finish had.
    pub(crate) took: Duration,
    /// The process groups that nodes had.
    pub(crate) groups: Vec<u32>,
    /// The faults of links that have begun.
    pub(crate) begun: Vec<Begun>,
}

/// What a network is run with.
pub(crate) struct Stage<'a> {
    /// By silo.
    pub(crate) logs: &'a [Logs],
    /// Makes the command of a silo's node, given what to pass as `--fail-at`.
    pub(crate) launch: &'a dyn Fn(usize, Option<&str>) -> Command,
    /// Where nodes dial each other, if that is not at each other.
    pub(crate) links: Option<&'a Links>,
    /// What goes wrong on links.
    pub(crate) link_faults: &'a [LinkFault],
}

enum Message {
    Said(Result<Named, String>),
    Closed,
}

/// Of which silo and which of its processes.
type Sender = SyncSender<(usize, u64, Message)>;

struct Process {
    group: Group,
    number: u64,
    /// Where its part of the log begins.
    logs_from: u64,
    silent: bool,
    exit: Option<(ExitStatus, Instant)>,
}

struct Network<'a> {
    supervisor: Supervisor,
    stage: &'a Stage<'a>,
    /// Which faults of links are at work.
    disturbing: Vec<bool>,
    processes: Vec<Option<Process>>,
    groups: Vec<u32>,
    started: u64,
    begin: Instant,
    sender: Sender,
    receiver: Receiver<(usize, u64, Message)>,
}

/// Runs all nodes until the supervisor says that it is over, then stops them.
///
/// # Errors
/// When a process cannot be started or a log not written; [`TestnetError::Stopped`] when `stop` says so. No process is
/// left in either case.
pub(crate) fn run(
    supervisor: Supervisor,
    stage: &Stage<'_>,
    stop: &dyn Fn() -> bool,
    observe: Observer<'_>,
) -> Result<Ended, TestnetError> {
    let (sender, receiver) = sync_channel(MAX_QUEUED_LINES);
    let mut network = Network {
        supervisor,
        stage,
        disturbing: vec![false; stage.link_faults.len()],
        processes: stage.logs.iter().map(|_| None).collect(),
        groups: Vec::new(),
        started: 0,
        begin: Instant::now(),
        sender,
        receiver,
    };
    let mut shown = Vec::new();
    loop {
        network.turn(true)?;
        network.show(&mut shown, observe);
        if stop() {
            return Err(TestnetError::Stopped);
        }
        if network.supervisor.ended().is_some() {
            break;
        }
    }
    let took = network.begin.elapsed();
    network.stop_all(stop)?;
    network.show(&mut shown, observe);
    let failure = network.supervisor.ended().and_then(Result::err);
    let phases = network.supervisor.phases().map(|(_, phase)| phase.clone()).collect();
    let Network { supervisor, groups, .. } = network;
    let begun = supervisor.begun().to_vec();
    Ok(Ended { records: supervisor.into_records(), phases, failure, took, groups, begun })
}

impl Network<'_> {
    /// Listens for a moment, looks at all processes, does what is to be done.
    fn turn(&mut self, tick: bool) -> Result<(), TestnetError> {
        let first = self.receiver.recv_timeout(TICK).ok();
        let rest: Vec<_> = self.receiver.try_iter().take(MAX_QUEUED_LINES).collect();
        for (silo, number, message) in first.into_iter().chain(rest) {
            match message {
                Message::Said(said) => self.step(Input::Said { silo, said })?,
                Message::Closed => {
                    if let Some(Some(process)) = self.processes.get_mut(silo)
                        && process.number == number
                    {
                        process.silent = true;
                    }
                }
            }
        }
        for silo in 0..self.processes.len() {
            if let Some((status, error)) = self.exit_of(silo)? {
                self.step(Input::Exited { silo, code: status.code(), status: in_words(status), error })?;
            }
        }
        if tick { self.step(Input::Tick) } else { Ok(()) }
    }

    /// Takes away a process that has ended, once everything it said was heard; with the last error in its log.
    fn exit_of(&mut self, silo: usize) -> Result<Option<(ExitStatus, Option<String>)>, TestnetError> {
        let Some(slot) = self.processes.get_mut(silo) else { return Ok(None) };
        let Some(process) = slot else { return Ok(None) };
        if process.exit.is_none() {
            let status = process.group.poll().map_err(at("look at", Path::new("a node's process")))?;
            process.exit = status.map(|status| (status, Instant::now()));
        }
        match process.exit {
            Some((status, since)) if process.silent || since.elapsed() >= DRAIN_GRACE => {
                let error =
                    self.stage.logs.get(silo).and_then(|logs| files::last_error(&logs.errors, process.logs_from));
                *slot = None;
                Ok(Some((status, error)))
            }
            _ => Ok(None),
        }
    }

    fn step(&mut self, input: Input) -> Result<(), TestnetError> {
        for action in self.supervisor.step(self.begin.elapsed(), input) {
            match action {
                Action::Start { silo, fail_at, file_bytes } => self.start(silo, fail_at.as_deref(), file_bytes)?,
                Action::Kill { silo } => self.with_group(silo, Group::kill),
                Action::Terminate { silo } => self.with_group(silo, Group::terminate),
                Action::Pause { silo } => self.with_group(silo, Group::pause),
                Action::Resume { silo } => self.with_group(silo, Group::resume),
                Action::Disturb { fault, on } => {
                    if let Some(disturbing) = self.disturbing.get_mut(fault) {
                        *disturbing = on;
                    }
                    self.set_links();
                }
            }
        }
        Ok(())
    }

    fn with_group(&mut self, silo: usize, then: impl FnOnce(&mut Group)) {
        if let Some(Some(process)) = self.processes.get_mut(silo) {
            then(&mut process.group);
        }
    }

    /// Puts all faults that are at work together.
    fn set_links(&self) {
        let Some(links) = self.stage.links else { return };
        let mut rules = Rules::open(self.processes.len());
        let at_work = self.stage.link_faults.iter().zip(&self.disturbing).filter(|(_, disturbing)| **disturbing);
        for (fault, _) in at_work {
            for (from, to) in &fault.pairs {
                if let Some(rule) = rules.of(*from, *to) {
                    rule.add(fault.disturbance);
                }
            }
        }
        links.set(rules);
    }

    fn start(&mut self, silo: usize, fail_at: Option<&str>, file_bytes: Option<u64>) -> Result<(), TestnetError> {
        let Some(logs) = self.stage.logs.get(silo) else { return Ok(()) };
        let append = |path: &Path| -> Result<File, TestnetError> {
            OpenOptions::new().create(true).append(true).open(path).map_err(at("write", path))
        };
        let mut errors = append(&logs.errors)?;
        let mut command = (self.stage.launch)(silo, fail_at);
        if let Some(file_bytes) = file_bytes {
            process::limit_files(&mut command, file_bytes);
        }
        writeln!(errors, "$ {}", crate::program::in_words(&command)).map_err(at("write", &logs.errors))?;
        let logs_from = errors.metadata().map_err(at("read", &logs.errors))?.len();
        // unbuffered: people read along
        let mut log = append(&logs.events)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let program = PathBuf::from(command.get_program());
        let mut group = Group::spawn(&mut command).map_err(at("start", &program))?;
        self.groups.push(group.id());
        self.started += 1;
        let number = self.started;
        if let Some(output) = group.child_mut().stdout.take() {
            let sender = self.sender.clone();
            std::thread::spawn(move || {
                // a message that nobody takes is of a run that is over
                let take = |said| sender.send((silo, number, Message::Said(said))).is_ok();
                if let Err(error) = events::follow(BufReader::new(output), &mut log, take) {
                    let _ = sender.send((silo, number, Message::Said(Err(format!("(not readable) {error}")))));
                }
                let _ = sender.send((silo, number, Message::Closed));
            });
        }
        let process = Process { group, number, logs_from, silent: false, exit: None };
        if let Some(slot) = self.processes.get_mut(silo) {
            *slot = Some(process);
        }
        Ok(())
    }

    /// Lets nodes end by themselves after a round that went well; after any other there is no reason to wait.
    fn stop_all(&mut self, stop: &dyn Fn() -> bool) -> Result<(), TestnetError> {
        if matches!(self.supervisor.ended(), Some(Ok(()))) {
            self.supervisor.stop();
            for process in self.processes.iter_mut().flatten() {
                process.group.terminate();
            }
            let asked = Instant::now();
            while self.processes.iter().any(Option::is_some) && asked.elapsed() < STOP_GRACE && !stop() {
                self.turn(false)?;
            }
            for silo in 0..self.processes.len() {
                if matches!(self.processes.get(silo), Some(Some(_))) {
                    self.supervisor.would_not_stop(silo, STOP_GRACE);
                }
            }
        }
        self.processes.clear();
        if stop() { Err(TestnetError::Stopped) } else { Ok(()) }
    }

    fn show(&self, shown: &mut Vec<Phase>, observe: Observer<'_>) {
        let phases: Vec<Phase> = self.supervisor.phases().map(|(_, phase)| phase.clone()).collect();
        if phases != *shown {
            let nodes: Vec<(&str, &Phase)> = self.supervisor.phases().collect();
            observe(Progress::Nodes { elapsed: self.begin.elapsed(), nodes: &nodes });
            *shown = phases;
        }
    }
}
