//! The shipped testnets, with real nodes: every manifest passes, and nothing lives on when a run is ended.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fedprune_tests::root;
use serde_json::Value;

/// How long anything may take that is waited for here.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a node may send another beside bodies: handshakes, statements, votes.
const BYTES_A_PAIR: u64 = 12_000;
/// What a node may send all others, in a second, to learn what it missed.
const BYTES_A_SECOND: u64 = 2_000;

/// One network at a time: their timers are meant for a machine that has nothing else to do.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn command(name: &str, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"));
    command.args(["--format", "json", "--quiet", "testnet", "run"]);
    command.arg(root().join(format!("testnet/manifests/{name}.toml"))).arg("--out").arg(out);
    command
}

/// Runs a manifest that must pass; returns its report.
fn passes(name: &str) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let command = command(name, &folder.path().join("net"));
    report_of(command, folder.path())
}

fn report_of(mut command: Command, folder: &Path) -> Value {
    let _alone = alone();
    let output = command.output().expect("the program starts");
    let (report, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{report}\n{errors}\n{}", logs(folder));
    let report: Value = serde_json::from_str(&report).expect("a JSON report");
    assert_eq!(report["passed"], true);
    assert!(report["checks"].as_array().is_some_and(|checks| checks.len() >= 7), "{report:#}");
    report
}

/// The logs of all nodes, for the message of a test that failed.
fn logs(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder.join("net/logs")) else { return String::new() };
    let text = |path: PathBuf| format!("== {}\n{}", path.display(), std::fs::read_to_string(&path).unwrap_or_default());
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| !path.ends_with("commands.log")).map(text).collect()
}

/// How many silos are in a phase.
fn count(report: &Value, phase: &str) -> usize {
    let silos = report["silos"].as_array().expect("silos");
    silos.iter().filter(|silo| silo["phase"]["phase"] == phase).count()
}

fn verified(report: &Value) -> usize {
    report["silos"].as_array().expect("silos").iter().filter(|silo| silo["audit"] == "VERIFIED").count()
}

#[test]
fn four_silos_agree_at_once() {
    let report = passes("four-silos-one-shot");
    assert_eq!((count(&report, "finished"), verified(&report)), (4, 4));
    bodies_travel_once_and_the_rest_is_little(&report, 4);
}

/// Counted, not timed; what nodes ask each other while they wait is allowed by the second.
fn bodies_travel_once_and_the_rest_is_little(report: &Value, nodes: u64) {
    let wire = &report["wire"];
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{wire:#}"));
    let sent = wire["sent"].as_object().expect("what it was for");
    let (all, least) = (number(&wire["sent_bytes"]), number(&wire["least_bytes"]));
    assert_eq!(sent.values().map(number).sum::<u64>(), all, "{wire:#}");
    let pairs = nodes * (nodes - 1);
    let bodies = number(&sent["bodies"]);
    // a request names the body, and an answer has hashes; half of a copy more if a busy machine lets one wait
    let allowed = least + least / 2 + pairs * 1024;
    assert!((least..=allowed).contains(&bodies), "{bodies} of {least} to {allowed} bytes of bodies: {wire:#}");
    let seconds = report["seconds"].as_f64().expect("seconds").ceil() as u64;
    let allowed = pairs * BYTES_A_PAIR + nodes * seconds * BYTES_A_SECOND;
    assert!(all - bodies <= allowed, "{} of {allowed} bytes beside bodies: {wire:#}", all - bodies);
}

#[test]
fn four_silos_agree_block_by_block() {
    let report = passes("four-silos-iterative");
    assert_eq!((count(&report, "finished"), verified(&report)), (4, 4));
    let heights = |check: &Value| check["what"].as_str().is_some_and(|what| what.contains("the same 6 heights"));
    assert!(report["checks"].as_array().expect("checks").iter().any(heights), "{report:#}");
}

#[test]
fn seven_silos_do_without_two() {
    let report = passes("seven-silos-two-absent");
    assert_eq!((count(&report, "finished"), count(&report, "absent"), verified(&report)), (5, 2, 5));
}

#[test]
fn the_next_aggregator_takes_over() {
    let report = passes("elected-aggregator-killed");
    assert_eq!((count(&report, "finished"), count(&report, "killed"), verified(&report)), (3, 1, 3));
}

/// 18: two full disks, loss and a partition; 23: a liar that forges, a kill, a partition, two wrong clocks.
#[test]
fn drawn_manifests_end_as_they_must() {
    for (seed, disturbed, links) in [("18", 2, ["`loss`", "`partition`"].as_slice()), ("23", 1, &["`partition`"])] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"));
        command.args(["--format", "json", "--quiet", "testnet", "run", "--seed", seed, "--out"]);
        command.arg(folder.path().join("net")).arg("--lying-program").arg(env!("CARGO_BIN_EXE_fedprune-lying-node"));
        let report = report_of(command, folder.path());
        let faults = report["silos"].as_array().expect("silos").iter().map(|silo| silo["faults"].as_u64());
        assert_eq!(faults.map(|faults| faults.expect("a number")).sum::<u64>(), disturbed, "{report:#}");
        let checks = report["checks"].as_array().expect("checks").iter().filter_map(|check| check["what"].as_str());
        let met: Vec<&str> =
            checks.filter_map(|what| what.split_once(" of links began ")).map(|(name, _)| name).collect();
        assert_eq!(met, links, "{report:#}");
    }
}

/// Processes whose command line names the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().expect("UTF-8");
    let entries = std::fs::read_dir("/proc").expect("a system with /proc");
    let read = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read(entry.ok()?.path().join("cmdline")).ok();
    let lines = entries.filter_map(read).map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

fn within_patience(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A runner that does not outlive its test.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        // it has ended, or a test has failed
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts four nodes, and goes on when all of them listen.
fn under_way(out: &Path) -> Runner {
    let child = command("four-silos-one-shot", out).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let runner = Runner(child.expect("the program starts"));
    let listening = |silo: &&str| {
        let events = std::fs::read_to_string(out.join(format!("logs/{silo}.jsonl")));
        events.is_ok_and(|events| events.contains("\"listening\""))
    };
    within_patience("all nodes listen", || ["north", "east", "south", "west"].iter().all(&listening));
    assert!(processes_of(out).len() > 4, "the runner and its nodes");
    runner
}

fn signal(runner: &Runner, name: &str) {
    let status = Command::new("kill").args([name, &runner.0.id().to_string()]).status();
    assert!(status.expect("kill starts").success());
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_run_leaves_no_process() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("net");
    let mut runner = under_way(&out);
    signal(&runner, "-INT");
    assert_eq!(runner.0.wait().expect("it ends").code(), Some(130));
    within_patience("all are gone", || processes_of(&out).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_runner_takes_its_nodes_along() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("net");
    let mut runner = under_way(&out);
    signal(&runner, "-KILL");
    runner.0.wait().expect("it ends");
    within_patience("all are gone", || processes_of(&out).is_empty());
}
