//! `fedprune preflight`: what is missing is found, with the command that makes it; members that look at the same time see
//! each other; exit codes 0, 1 and 3.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use fedprune_tests::root;
use serde_json::Value;
use tempfile::TempDir;

fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FEDPRUNE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).args(["--format", "json", "--quiet"]).current_dir(folder).stdin(Stdio::null());
    command
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let output = program(folder, arguments).output().expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Looks; returns exit code and report.
fn look(folder: &Path, home: &str, more: &[&str]) -> (i32, Value) {
    let wait: &[&str] = if more.contains(&"--wait") { &[] } else { &["--wait", "1"] };
    let arguments = [&["preflight", "--home", home], wait, more].concat();
    let output = program(folder, &arguments).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    let checks = report["checks"].as_array().expect("checks");
    for check in checks.iter().filter(|check| check["state"] == "failed") {
        assert!(check["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "no remedy: {check}");
    }
    (output.status.code().expect("an exit code"), report)
}

/// State, finding and remedy of a check.
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str, &'a str) {
    let checks = report["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default();
    (text("state"), text("found"), text("remedy"))
}

/// A port that is free and stays so until it is asked for: none of those that the system gives to outgoing connections
/// or to who asks for any, as other tests do at the same time, and none that another test of this process was given.
fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let outgoing = range.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(32_768);
    let candidates = outgoing.max(FIRST + 2_000) - FIRST;
    let start = (std::process::id() % u32::from(candidates)) as u16;
    for _ in 0..candidates {
        let offset = GIVEN.fetch_add(1, Ordering::Relaxed) % candidates;
        let port = FIRST + (u32::from(start) + u32::from(offset)).rem_euclid(u32::from(candidates)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port below {outgoing} is free");
}

fn model() -> PathBuf {
    root().join("examples/bundled-model/model")
}

/// Two members with one consortium signed by both, no round; returns the folder and their ports.
fn two() -> (TempDir, [u16; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ports = [free_port(), free_port()];
    std::fs::create_dir(at.join("notes")).unwrap();
    std::fs::copy(root().join("examples/bundled-model/silos/austen_emma.txt"), at.join("notes/a.txt")).unwrap();
    json(at, &["consortium", "new", "--name", "Two", "--out", "consortium.toml"]);
    let model = model();
    for (name, port) in ["north", "south"].into_iter().zip(ports) {
        json(at, &["init", "--home", name, "--model", model.to_str().unwrap(), "--data", "notes"]);
        let (key, address) = (format!("{name}/key.pem"), format!("/ip4/127.0.0.1/tcp/{port}"));
        json(at, &["consortium", "add", "consortium.toml", "--name", name, "--key", &key, "--address", &address]);
    }
    for name in ["north", "south"] {
        json(at, &["consortium", "sign", "consortium.toml", "--home", name]);
    }
    for (name, other) in [("north", "south"), ("south", "north")] {
        let list = format!("{other}/consortium.signatures");
        json(at, &["consortium", "sign", "--home", name, "--merge", &list]);
    }
    (folder, ports)
}

/// A round in `file`, approved by these members.
fn round(folder: &Path, file: &str, samples: &str, members: &[&str]) {
    let (model, new) =
        (model(), ["round", "new", "--consortium", "consortium.toml", "--nsamples", samples, "--seqlen", "64"]);
    json(folder, &[&new[..], &["--model", model.to_str().unwrap(), "--out", file]].concat());
    for member in members {
        json(folder, &["round", "approve", file, "--home", member, "--yes"]);
    }
}

/// What a node would be stopped by when it starts is found here, too.
#[test]
fn policies_and_approvals_that_were_changed_are_in_the_way() {
    let (folder, _) = two();
    let at = folder.path();
    round(at, "round.toml", "4", &["north"]);
    assert_eq!(check(&look(at, "north", &[]).1, "policy").0, "ok");
    let policy = at.join("north/policy.toml");
    std::fs::write(&policy, "require_approval = true\n").unwrap();
    let (code, report) = look(at, "north", &[]);
    let (state, found, _) = check(&report, "policy");
    assert!(code == 1 && state == "failed" && found.contains("require_approval"), "{report:#}");
    std::fs::write(&policy, "require_coffee = true\n").unwrap();
    let (_, report) = look(at, "north", &[]);
    let (state, found, _) = check(&report, "policy");
    assert!(state == "failed" && found.contains("policy.toml"), "{found}");
    std::fs::remove_file(&policy).unwrap();
    let rounds = std::fs::read_dir(at.join("north/rounds")).unwrap();
    let approval = rounds.map(|entry| entry.unwrap().path().join("approval.json")).next().unwrap();
    let text = std::fs::read_to_string(&approval).unwrap();
    std::fs::write(&approval, text.replace("\"role\": \"\"", "\"role\": \"chief\"")).unwrap();
    assert_ne!(text, std::fs::read_to_string(&approval).unwrap(), "{text}");
    assert_eq!(check(&look(at, "north", &[]).1, "policy").0, "failed");
}

#[test]
fn what_is_missing_comes_with_the_command_that_makes_it() {
    let (folder, [_, south]) = two();
    let at = folder.path();
    let (code, report) = look(at, "nowhere", &[]);
    assert_eq!((code, check(&report, "home").0), (1, "failed"));
    assert!(check(&report, "home").2.ends_with("init --home nowhere"), "{report:#}");
    std::fs::create_dir(at.join("empty")).unwrap();
    assert!(check(&look(at, "empty", &[]).1, "key").2.ends_with("init --home empty"));
    json(at, &["key", "new", "--home", "new"]);
    let (code, report) = look(at, "new", &["--model", "nowhere"]);
    assert!(check(&report, "consortium").2.ends_with("consortium sign consortium.toml --home new"), "{report:#}");
    assert_eq!((code, check(&report, "model").0), (1, "failed"));
    // a key that is of nobody
    for file in ["consortium.toml", "consortium.signatures"] {
        std::fs::copy(at.join("north").join(file), at.join("new").join(file)).unwrap();
    }
    let (code, report) = look(at, "new", &[]);
    assert!(check(&report, "key").1.contains("is of no member"), "{report:#}");
    assert_eq!(code, 3, "{report:#}");
    // no round yet, and the other has started nothing, which is a warning
    let (code, report) = look(at, "north", &[]);
    assert!(check(&report, "round").2.ends_with("round approve round.toml --home north"), "{report:#}");
    let (state, found, remedy) = check(&report, "member south");
    assert!(state == "warning" && found.contains("nothing listens") && remedy.contains("`south`"), "{report:#}");
    assert_eq!(code, 1);
    // something listens there, and nobody can say more without a round
    let listener = TcpListener::bind(("127.0.0.1", south)).unwrap();
    assert_eq!(check(&look(at, "north", &[]).1, "member south").0, "ok");
    drop(listener);
}

#[test]
fn a_node_can_run_or_not() {
    let (folder, [north, south]) = two();
    let at = folder.path();
    round(at, "round.toml", "4", &["north", "south"]);
    let (code, report) = look(at, "north", &[]);
    assert_eq!((code, &report["ready"]), (0, &Value::Bool(true)), "{report:#}");
    assert!(report["next"].as_str().unwrap().ends_with("node run --home north"), "{report:#}");
    for name in ["versions", "key", "consortium", "round", "device", "model", "text", "disk", "memory", "ports"] {
        assert_eq!(check(&report, name).0, "ok", "{report:#}");
    }
    // a name that nobody knows is the network's fault, and so is a port that somebody has
    let (code, report) = look(at, "north", &["--dial", "south=/dns4/nowhere.invalid/tcp/1"]);
    assert_eq!((code, check(&report, "member south").0), (3, "failed"), "{report:#}");
    assert!(check(&report, "member south").1.contains("name is not known"), "{report:#}");
    let taken = TcpListener::bind(("127.0.0.1", north)).unwrap();
    let (code, report) = look(at, "north", &[]);
    let (state, found, remedy) = check(&report, "ports");
    assert!(code == 3 && state == "failed" && remedy.contains("ss -lntup"), "{report:#}");
    assert!(found.contains(&north.to_string()), "{report:#}");
    drop(taken);
    // somebody who is no node
    let stranger = TcpListener::bind(("127.0.0.1", south)).unwrap();
    let (code, report) = look(at, "north", &[]);
    assert_eq!((code, check(&report, "member south").0), (3, "failed"), "{report:#}");
    drop(stranger);
    // this machine's faults
    for (more, name) in [
        (["--model", root().join("tests/fixtures/llama").to_str().unwrap()], "model"),
        (["--data", "nowhere"], "text"),
        (["--device", "cuda:7"], "device"),
    ] {
        let (code, report) = look(at, "north", &more);
        let (state, _, remedy) = check(&report, name);
        assert_eq!((code, state, remedy.is_empty()), (1, "failed", false), "{more:?}: {report:#}");
    }
    // a key that is none: what does not need it is looked at all the same
    let key = at.join("north").join("key.pem");
    let kept = std::fs::read(&key).unwrap();
    std::fs::write(&key, "no key").unwrap();
    let (code, report) = look(at, "north", &[]);
    assert_eq!((code, check(&report, "key").0), (1, "failed"), "{report:#}");
    for name in ["consortium", "round", "model", "disk"] {
        assert_eq!(check(&report, name).0, "ok", "{report:#}");
    }
    std::fs::write(&key, kept).unwrap();
}

#[test]
fn members_that_look_at_the_same_time_see_each_other_and_what_differs() {
    let (folder, _) = two();
    let at = folder.path().to_owned();
    round(&at, "round.toml", "4", &["north", "south"]);
    let both = |more: &'static [&'static str]| {
        let at = at.clone();
        let other = std::thread::spawn(move || look(&at, "south", &[&["--wait", "20"], more].concat()));
        let here = look(folder.path(), "north", &["--wait", "20"]);
        (here, other.join().expect("it ends"))
    };
    let (north, south) = both(&[]);
    assert_eq!((north.0, south.0), (0, 0), "{:#}\n{:#}", north.1, south.1);
    assert!(check(&north.1, "member south").1.starts_with("reached"), "{:#}", north.1);
    assert!(check(&south.1, "member north").1.starts_with("reached"), "{:#}", south.1);

    std::fs::rename(at.join("south/rounds"), at.join("south/rounds.old")).unwrap();
    round(&at, "other.toml", "5", &["south"]);
    let (north, south) = both(&[]);
    assert_eq!((north.0, south.0), (3, 3), "{:#}\n{:#}", north.1, south.1);
    let (state, found, remedy) = check(&north.1, "member south");
    assert!(state == "failed" && found.contains("the round differs") && remedy.contains("round.toml"), "{:#}", north.1);
}
