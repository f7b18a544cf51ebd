//! `docs/operator.md`, typed: three organisations come from nothing to one pruned model by exactly the commands that
//! stand there.
//!
//! Each organisation is a shell in a folder of its own, and in a network namespace of its own where this machine lets
//! the test make some (root, `ip`): the addresses of the document are then really there, one a namespace. Elsewhere the
//! addresses become those of loopback, and the test says so.

#![allow(clippy::print_stdout, reason = "says when there are no namespaces")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use fedprune_tests::root;
use serde_json::Value;

const ORGANISATIONS: [&str; 3] = ["north", "south", "east"];
/// The network of the document (RFC 5737), which is nobody's.
const NETWORK: &str = "192.0.2.";
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a shell says once a command has ended, before its exit code.
const ENDED: &str = "--- ended with ";

/// A fenced block that is typed.
struct Block {
    line: usize,
    /// Whose shells.
    who: Vec<usize>,
    /// Whether all shells run it at the same time.
    together: bool,
    commands: Vec<String>,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let commands: Vec<String> =
            lines.by_ref().map(|(_, line)| line.to_owned()).take_while(|line| line != "```").collect();
        let words: Vec<&str> = info.split(' ').collect();
        let (who, together) = match words.as_slice() {
            ["text"] => continue,
            ["sh", "everyone"] => (vec![0, 1, 2], false),
            ["sh", "everyone", "together"] => (vec![0, 1, 2], true),
            ["sh", name] => {
                let place = ORGANISATIONS.iter().position(|organisation| organisation == name);
                (vec![place.unwrap_or_else(|| panic!("line {}: nobody is called `{name}`", number + 1))], false)
            }
            other => panic!("docs/operator.md line {}: whose block is {other:?}?", number + 1),
        };
        blocks.push(Block { line: number + 1, who, together, commands });
    }
    blocks
}

/// Three network namespaces on one bridge; gone when dropped.
struct Namespaces {
    prefix: String,
}

impl Namespaces {
    /// Makes them; says why not where it cannot.
    fn new() -> Result<Self, String> {
        let namespaces = Self { prefix: format!("fp{}", std::process::id() % 100_000) };
        let bridge = namespaces.bridge();
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("link set {bridge} up"))?;
        for number in 0..ORGANISATIONS.len() {
            let (space, outer) = (namespaces.name(number), format!("{}v{number}", namespaces.prefix));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {outer} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {outer} master {bridge} up"))?;
            ip(&format!("-n {space} link set lo up"))?;
            ip(&format!("-n {space} address add {NETWORK}{}/24 dev eth0", number + 1))?;
            ip(&format!("-n {space} link set eth0 up"))?;
        }
        Ok(namespaces)
    }

    fn bridge(&self) -> String {
        format!("{}b", self.prefix)
    }

    fn name(&self, number: usize) -> String {
        format!("{}-{}", self.prefix, ORGANISATIONS[number])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // veth pairs go with their namespace; what was never made is not there to be removed
        for number in 0..ORGANISATIONS.len() {
            let _ = ip(&format!("netns delete {}", self.name(number)));
        }
        let _ = ip(&format!("link delete {}", self.bridge()));
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// An organisation at its terminal.
struct Terminal {
    shell: Child,
    keyboard: ChildStdin,
    screen: Receiver<String>,
    said: Vec<String>,
}

impl Terminal {
    fn open(folder: &Path, path: &str, namespace: Option<&str>) -> Self {
        let mut command = match namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, "bash"]);
                command
            }
            None => Command::new("bash"),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FEDPRUNE_") {
                command.env_remove(name);
            }
        }
        command.arg("--norc").current_dir(folder).env("PATH", path).env("HOME", folder);
        let mut shell =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash runs");
        let keyboard = shell.stdin.take().expect("a keyboard");
        let (sender, screen) = channel();
        let errors = shell.stderr.take().expect("errors");
        let to_screen = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(errors).lines().map_while(Result::ok).try_for_each(|line| to_screen.send(line))
        });
        let output = shell.stdout.take().expect("output");
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { shell, keyboard, screen, said: Vec::new() }
    }

    /// Types a command, and does not wait.
    fn begin(&mut self, command: &str) {
        self.said.push(format!("$ {command}"));
        // the code is taken before `echo` changes it
        writeln!(self.keyboard, "{command}\necho \"{ENDED}$?\"").expect("the shell reads");
    }

    /// Waits for the command to end; returns its exit code and what it said.
    fn end(&mut self) -> (i32, Vec<String>) {
        let from = self.said.len();
        loop {
            let line = self.screen.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", self.story()));
            if let Some(code) = line.strip_prefix(ENDED) {
                let code = code.parse().expect("an exit code");
                // what it said on standard error may come a moment later
                while let Ok(line) = self.screen.recv_timeout(Duration::from_millis(20)) {
                    self.said.push(line);
                }
                return (code, self.said[from..].to_vec());
            }
            self.said.push(line);
        }
    }

    fn story(&self) -> String {
        self.said.join("\n")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // a node that still runs ends with its terminal
        let _ = Command::new("pkill").args(["-TERM", "-P", &self.shell.id().to_string()]).status();
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// What an organisation has before it begins: a model, its own text, and a folder shared with the others.
fn furnish(folder: &Path, number: usize, exchange: &Path) {
    let texts = ["austen_emma.txt", "melville_moby_dick.txt", "speeches_1945_1953.txt"];
    let bundled = root().join("examples/bundled-model");
    std::fs::create_dir_all(folder.join("notes")).unwrap();
    std::os::unix::fs::symlink(bundled.join("model"), folder.join("model")).unwrap();
    std::os::unix::fs::symlink(exchange, folder.join("exchange")).unwrap();
    std::fs::copy(bundled.join("silos").join(texts[number]), folder.join("notes/text.txt")).unwrap();
}

#[test]
fn the_walk_of_the_document_ends_in_one_model() {
    let document = std::fs::read_to_string(root().join("docs/operator.md")).expect("the document");
    let blocks = blocks(&document);
    let commands: usize = blocks.iter().map(|block| block.commands.len()).sum();
    assert!(blocks.len() >= 12 && commands >= 20, "{} blocks with {commands} commands", blocks.len());

    let folder = tempfile::tempdir().unwrap();
    let (bin, exchange) = (folder.path().join("bin"), folder.path().join("exchange"));
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(&exchange).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_fedprune-under-test"), bin.join("fedprune")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());

    let namespaces = Namespaces::new();
    if let Err(why) = &namespaces {
        // standard error of tests is theirs
        let _ = writeln!(std::io::stderr(), "no network namespaces here, and so the three nodes share loopback: {why}");
    }
    let homes: Vec<PathBuf> = ORGANISATIONS.iter().map(|name| folder.path().join(name)).collect();
    let mut terminals: Vec<Terminal> = homes
        .iter()
        .enumerate()
        .map(|(number, home)| {
            furnish(home, number, &exchange);
            Terminal::open(home, &path, namespaces.as_ref().ok().map(|spaces| spaces.name(number)).as_deref())
        })
        .collect();
    let typed = |command: &str| match namespaces {
        Ok(_) => command.to_owned(),
        Err(_) => command.replace(NETWORK, "127.0.0."),
    };

    for block in &blocks {
        for command in &block.commands {
            let command = typed(command);
            let check = |number: usize, (code, said): (i32, Vec<String>)| {
                let who = ORGANISATIONS[number];
                assert_eq!(code, 0, "line {}, {who}: {command}\n{}", block.line, said.join("\n"));
            };
            if block.together {
                block.who.iter().for_each(|number| terminals[*number].begin(&command));
                block.who.iter().for_each(|number| check(*number, terminals[*number].end()));
            } else {
                for number in &block.who {
                    terminals[*number].begin(&command);
                    check(*number, terminals[*number].end());
                }
            }
        }
    }

    let stories: Vec<String> = terminals.iter().map(Terminal::story).collect();
    for (number, story) in stories.iter().enumerate() {
        // each has seen both others before its node ran
        let seen =
            story.lines().filter(|line| line.contains("reached; the same protocol, consortium, round and model"));
        assert_eq!(seen.count(), 2, "{}\n{story}", ORGANISATIONS[number]);
    }
    assert!(stories[2].contains("VERIFIED"), "{}", stories[2]);
    let status = |home: &PathBuf| -> Value {
        let round = std::fs::read_dir(home.join("fedprune/rounds")).unwrap().next().unwrap().unwrap().path();
        serde_json::from_slice(&std::fs::read(round.join("status.json")).unwrap()).unwrap()
    };
    let statuses: Vec<Value> = homes.iter().map(status).collect();
    let roots: BTreeSet<&str> = statuses.iter().map(|status| status["mask_root"].as_str().expect("a mask")).collect();
    assert_eq!(roots.len(), 1, "{statuses:?}");
    for (number, status) in statuses.iter().enumerate() {
        let addresses = status["addresses"].to_string();
        let own = typed(&format!("/ip4/{NETWORK}{}/tcp/4001", number + 1));
        assert!(addresses.contains(&own), "{own} is not in {addresses}");
        // what came from others came over a network
        assert!(status["received_bytes"].as_u64().is_some_and(|bytes| bytes > 10_000), "{status}");
    }
}
