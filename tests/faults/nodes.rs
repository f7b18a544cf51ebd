//! Real node processes that a test starts, kills, stops and listens to; none outlives the test.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fedprune_federation::Rotation;
use fedprune_federation::{Height, RoundId};
use fedprune_mask::Digest;
use fedprune_testnet::process::{Group, left_of};
use fedprune_testnet::{Bundled, NodeArguments, Options, SetUp};
use fedprune_tests::root;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that is waited for here.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often processes are looked at while nobody says anything.
const TICK: Duration = Duration::from_millis(10);

/// The program under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_fedprune-under-test"))
}

/// One network at a time: timers are meant for a machine that has nothing else to do.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Four members that may start over and over.
pub struct Bed {
    set_up: SetUp,
    transport: &'static str,
    /// The homes as they were before any node ran.
    pristine: PathBuf,
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    /// Keys, consortium, round and approvals, with this line in the manifest's `[round]`. Nodes listen on TCP, where
    /// the system tells at once that a process is gone.
    pub fn new(round: &str) -> Self {
        Self::over("tcp", round)
    }

    /// As [`Bed::new`], over another transport.
    pub fn over(transport: &'static str, round: &str) -> Self {
        let alone = alone();
        let folder = tempfile::tempdir().expect("a folder");
        let manifest = folder.path().join("manifest.toml");
        let key = |line: &str| line.split_once(" = ").map(|(key, _)| key.to_owned());
        let kept = MANIFEST.lines().filter(|line| round.is_empty() || key(line) != key(round));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        std::fs::write(&manifest, text.replace("[round]\n", &format!("[round]\n{round}\n"))).expect("written");
        let program = program();
        let options = Options {
            manifest: &manifest,
            base: Some(&root()),
            folder: Some(&folder.path().join("net")),
            program: &program,
            lying_program: None,
            bundle: &|_| Ok(Bundled::default()),
            stop: &|| false,
        };
        let set_up = SetUp::new(&options, &mut |_| ()).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        let pristine = folder.path().join("pristine");
        copy(&set_up.folder().join("homes"), &pristine);
        Self { set_up, transport, pristine, folder, _alone: alone }
    }

    /// All four, not started, as if none had ever run; `case` is for messages.
    pub fn nodes(&self, case: &str) -> Nodes {
        replace(&self.set_up.folder().join("homes"), &self.pristine);
        let pruned = self.set_up.folder().join("pruned");
        std::fs::remove_dir_all(&pruned).expect("removed");
        std::fs::create_dir(&pruned).expect("created");
        let mut nodes = Nodes::new(case);
        for (name, mut arguments) in self.set_up.names().into_iter().zip(self.set_up.nodes()) {
            arguments.listen.retain(|address| address.contains(self.transport));
            assert_eq!(arguments.listen.len(), 1);
            nodes.add(&name, arguments);
        }
        nodes
    }

    /// Who proposes first.
    pub fn aggregator(&self) -> usize {
        let quorum = self.set_up.consortium().quorum();
        Rotation::new(self.round(), Height(0), quorum).aggregator(0).as_usize()
    }

    /// Somebody who does not propose first.
    pub fn follower(&self) -> usize {
        (self.aggregator() + 1) % 4
    }

    pub fn round(&self) -> RoundId {
        self.set_up.round().id()
    }

    pub fn set_up(&self) -> &SetUp {
        &self.set_up
    }

    /// A member's home as it was before any node ran.
    pub fn pristine(&self, member: usize) -> PathBuf {
        self.pristine.join(self.set_up.names().swap_remove(member))
    }

    /// A path that nothing has yet.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let mut number = 0;
        loop {
            number += 1;
            let path = self.folder.path().join(format!("{name}-{number}"));
            if !path.exists() {
                return path;
            }
        }
    }
}

/// The bundled model and texts, with little to compute.
const MANIFEST: &str = r#"
name = "faults"
model = "examples/bundled-model/model"

[[silo]]
name = "east"
data = ["examples/bundled-model/silos/austen_emma.txt"]

[[silo]]
name = "north"
data = ["examples/bundled-model/silos/melville_moby_dick.txt"]

[[silo]]
name = "south"
data = ["examples/bundled-model/silos/speeches_1945_1953.txt"]

[[silo]]
name = "west"
data = ["examples/bundled-model/silos/speeches_1953_1958.txt"]

[round]
sparsity = "0.5"
nsamples = 2
seqlen = 64
contribution_seconds = 60
proposal_ms = 2000
vote_ms = 1000
growth_ms = 500

[expect]
within_seconds = 60
"#;

/// Copies a folder with everything in it, modes included.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copied");
        }
    }
    let mode = std::fs::metadata(from).expect("the folder's mode").permissions();
    std::fs::set_permissions(to, mode).expect("the same mode");
}

/// Puts a copy of a folder in the place of another one.
pub fn replace(place: &Path, with: &Path) {
    std::fs::remove_dir_all(place).expect("removed");
    copy(with, place);
}

/// Runs a command that must succeed; its answer.
pub fn command<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Value {
    let output = Command::new(program()).args(arguments).args(["--format", "json"]).output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// One node, over all its processes.
struct Node {
    name: String,
    arguments: NodeArguments,
    group: Option<Group>,
    /// Counts its processes.
    life: usize,
    /// Of which life, how long after the beginning, and what.
    said: Vec<(usize, Duration, Value)>,
    /// Whether everything that its process said was read.
    silent: bool,
    ended: Option<ExitStatus>,
}

/// Several nodes; all are killed on drop.
pub struct Nodes {
    case: String,
    nodes: Vec<Node>,
    logs: TempDir,
    sender: Sender<(usize, usize, Option<String>)>,
    receiver: Receiver<(usize, usize, Option<String>)>,
    begin: Instant,
}

/// Whether all threads of a process stand still, or it is gone. Where there is no `/proc`, the signal must do.
#[allow(dead_code, reason = "for the tests of clones")]
fn stands_still(process: u32) -> bool {
    let tasks = format!("/proc/{process}/task");
    std::fs::read_dir(tasks).into_iter().flatten().flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // the state follows the name, which is in brackets and may hold any character
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with(['T', 'Z', 'X']))
    })
}

impl Nodes {
    fn new(case: &str) -> Self {
        let (sender, receiver) = channel();
        let logs = tempfile::tempdir().expect("a folder");
        Self { case: case.to_owned(), nodes: Vec::new(), logs, sender, receiver, begin: Instant::now() }
    }

    /// One more node, not started; its number.
    pub fn add(&mut self, name: &str, arguments: NodeArguments) -> usize {
        let (group, ended) = (None, None);
        let name = name.to_owned();
        self.nodes.push(Node { name, arguments, group, life: 0, said: Vec::new(), silent: true, ended });
        self.nodes.len() - 1
    }

    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    pub fn arguments(&self, node: usize) -> &NodeArguments {
        &self.nodes[node].arguments
    }

    pub fn home(&self, node: usize) -> &Path {
        &self.nodes[node].arguments.home
    }

    /// Starts nodes as they always are.
    pub fn start(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.start_with(*node, &[]);
        }
    }

    /// Starts a node that dies at a point of its own code.
    pub fn start_to_die(&mut self, node: usize, point: &str) {
        self.start_with(node, &["--fail-at", point]);
    }

    fn start_with(&mut self, number: usize, more: &[&str]) {
        self.start_as(number, Command::new(program()), more);
    }

    /// Starts a node that is another program.
    pub fn start_as(&mut self, number: usize, mut command: Command, more: &[&str]) {
        let node = &mut self.nodes[number];
        assert!(node.group.is_none(), "`{}` runs", node.name);
        let errors = File::options().create(true).append(true).open(self.logs.path().join(&node.name));
        let mut arguments = node.arguments.words();
        arguments.extend(more.iter().map(OsString::from));
        command.args(arguments).args(["--format", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.expect("a log"));
        let mut group = Group::spawn(&mut command).expect("the program starts");
        let output = group.child_mut().stdout.take().expect("a pipe");
        node.life += 1;
        node.silent = false;
        node.ended = None;
        node.group = Some(group);
        let (life, sender) = (node.life, self.sender.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send((number, life, Some(line))); // nobody listens once the test is over
            }
            let _ = sender.send((number, life, None));
        });
    }

    /// Ends a node with SIGKILL.
    pub fn kill(&mut self, nodes: &[usize]) {
        for node in nodes {
            if let Some(mut group) = self.nodes[*node].group.take() {
                group.kill();
            }
        }
        let silent = |all: &Self| nodes.iter().all(|node| all.nodes[*node].silent);
        self.wait("what killed nodes said is read", silent);
    }

    /// Does something while a node's process stands still, as for an image of its machine: what it keeps does not change.
    #[allow(dead_code, reason = "for the tests of clones")]
    pub fn standing_still<T>(&mut self, node: usize, act: impl FnOnce(&mut Self) -> T) -> T {
        let group = self.nodes[node].group.as_mut().expect("it runs");
        group.pause_leader();
        let leader = group.id();
        self.wait("all threads of the node stand still", |_| stands_still(leader));
        self.nodes[node].group.as_mut().expect("it stands still").pause();
        self.wait("what the node started stands still", |_| left_of(&[leader]).into_iter().all(stands_still));
        let done = act(self);
        self.nodes[node].group.as_mut().expect("it stands still").resume();
        done
    }

    /// Asks a node with SIGTERM to end.
    pub fn terminate(&mut self, node: usize) {
        if let Some(group) = self.nodes[node].group.as_mut() {
            group.terminate();
        }
    }

    /// Waits until a node has ended; how.
    pub fn ended(&mut self, node: usize) -> ExitStatus {
        let what = format!("`{}` has ended", self.name(node));
        self.wait(&what, |all| all.nodes[node].ended.is_some() && all.nodes[node].silent);
        self.nodes[node].ended.expect("waited for")
    }

    /// Whether a node's process is there.
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].ended.is_none() && self.nodes[node].group.is_some()
    }

    /// The most memory that a node's process had so far, where there is `/proc`.
    #[allow(dead_code, reason = "for the tests of floods")]
    pub fn peak_memory_bytes(&self, node: usize) -> u64 {
        let Some(group) = &self.nodes[node].group else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{}/status", group.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
    }

    /// Everything of this kind that a node has said in its present life.
    pub fn said<'a>(&'a self, node: usize, event: &'a str) -> impl Iterator<Item = &'a Value> {
        let life = self.nodes[node].life;
        let said = self.nodes[node].said.iter();
        said.filter(move |(of, _, said)| *of == life && said["event"] == event).map(|(.., said)| said)
    }

    /// As [`Nodes::said`], in all its lives.
    pub fn ever_said<'a>(&'a self, node: usize, event: &'a str) -> impl Iterator<Item = &'a Value> {
        self.nodes[node].said.iter().map(|(.., said)| said).filter(move |said| said["event"] == event)
    }

    /// Waits until one of the nodes says this.
    pub fn until(&mut self, nodes: &[usize], event: &str) {
        let what = format!("somebody says `{event}`");
        self.wait(&what, |all| nodes.iter().any(|node| all.said(*node, event).next().is_some()));
    }

    /// Waits until something is so.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < PATIENCE, "waited in vain until {what}\n{}", self.story());
            let first = self.receiver.recv_timeout(TICK).ok();
            let rest: Vec<_> = self.receiver.try_iter().collect();
            for (node, life, line) in first.into_iter().chain(rest) {
                let node = &mut self.nodes[node];
                match line {
                    Some(line) => {
                        let said = serde_json::from_str(&line).unwrap_or_else(|_| panic!("`{line}` is no event"));
                        node.said.push((life, self.begin.elapsed(), said));
                    }
                    None => node.silent |= node.life == life,
                }
            }
            for node in &mut self.nodes {
                let Some(group) = node.group.as_mut() else { continue };
                if let Some(status) = group.poll().expect("the system tells") {
                    node.ended = Some(status);
                    node.group = None;
                }
            }
        }
    }

    /// The mask that all these nodes end with. They have then ended, with the code of a round that came to a mask.
    pub fn agree(&mut self, nodes: &[usize]) -> Digest {
        let finished = |all: &Self, node: usize| all.said(node, "finished").next().cloned();
        self.wait("all have finished", |all| {
            for node in nodes {
                let gone = finished(all, *node).is_none() && all.nodes[*node].ended.is_some();
                assert!(!gone, "`{}` ended before the round\n{}", all.name(*node), all.story());
            }
            nodes.iter().all(|node| finished(all, *node).is_some())
        });
        let mut roots = Vec::new();
        for node in nodes {
            let event = finished(self, *node).expect("waited for");
            assert_eq!(event["outcome"], "agreed", "{}", self.story());
            roots.push(event["mask_root"].as_str().and_then(|root| root.parse::<Digest>().ok()).expect("a root"));
            self.terminate(*node);
        }
        for node in nodes {
            let status = self.ended(*node);
            assert_eq!(status.code(), Some(0), "`{}`\n{}", self.name(*node), self.story());
        }
        assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}\n{}", self.story());
        roots[0]
    }

    /// Everything that was said, for the message of a test that failed.
    pub fn story(&self) -> String {
        let mut story =
            format!("case `{}`, {:.1} s after its beginning\n", self.case, self.begin.elapsed().as_secs_f64());
        for node in &self.nodes {
            let _ = writeln!(story, "== {} (life {}, ended {:?})", node.name, node.life, node.ended);
            for (life, at, said) in &node.said {
                let _ = writeln!(story, "{life} {:6.3} {said}", at.as_secs_f64());
            }
            story.push_str(&std::fs::read_to_string(self.logs.path().join(&node.name)).unwrap_or_default());
        }
        story
    }
}
