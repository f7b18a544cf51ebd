//! `fedprune audit` as people run it: what it prints and what it exits with.

#[path = "../crates/audit/tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::{ITERATIVE, ONE_SHOT, World, first_of_class, flip};

fn run(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_fedprune-under-test");
    Command::new(program).args(arguments).output().expect("the program starts")
}

fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// Runs `audit verify` with more arguments; exit code and report.
fn verify(world: &World, more: &[&str]) -> (i32, String) {
    let transcript = text(&world.transcript());
    let output = run(&[&["audit", "verify", &transcript], more].concat());
    let report = String::from_utf8(output.stdout).expect("reports are text");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    (output.status.code().expect("an exit code"), report)
}

#[test]
fn each_verdict_has_its_exit_code_and_comes_last() {
    let world = World::new(ITERATIVE);
    let (model, pruned) = (text(&world.path("model")), text(&world.path("pruned")));
    let (consortium, round) = (world.consortium.id().to_string(), world.round.id().to_string());
    let with_model = ["--model", &model, "--pruned", &pruned];
    let ids = ["--consortium-id", &consortium, "--round-id", &round];
    let ends = |(code, report): (i32, String), expected: i32, verdict: &str| {
        assert_eq!(code, expected, "{report}");
        let last = report.trim_end().lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with(&format!("{verdict}: ")), "{report}");
        report
    };
    let report = ends(verify(&world, &[with_model, ids].concat()), 0, "VERIFIED");
    for part in
        ["passed       `consortium.signatures`", "mask of height 1", "base ⊙ mask", &world.mask_root.to_string()]
    {
        assert!(report.contains(part), "`{part}` is not in\n{report}");
    }
    ends(verify(&world, &with_model), 10, "SELF-CONSISTENT");
    let report = ends(verify(&world, &ids), 11, "INCOMPLETE");
    assert!(report.contains("not checked  base model"), "{report}");
    let wrong = ["--consortium-id", &round, "--round-id", &round];
    ends(verify(&world, &[with_model, wrong].concat()), 12, "FAILED");
    let weights = world.path("pruned").join("model.safetensors");
    flip(&weights);
    let report = ends(verify(&world, &[with_model, ids].concat()), 12, "FAILED");
    assert!(report.contains("pruned checkpoint"), "{report}");
}

#[test]
fn reports_for_machines() {
    let world = World::new(ONE_SHOT);
    flip(&first_of_class(&world.transcript(), "results"));
    let (code, report) = verify(&world, &["--format", "json"]);
    let report: Value = serde_json::from_str(&report).expect("a JSON report");
    assert_eq!((code, report["verdict"].as_str()), (12, Some("FAILED")));
    assert_eq!(report["heights"][0]["contributors"].as_array().map(Vec::len), Some(4));
    let failed = |check: &&Value| check["outcome"] == "failed";
    assert_eq!(report["checks"].as_array().unwrap().iter().filter(failed).count(), 1);
}

#[test]
fn show_is_for_people_and_machines() {
    let world = World::new(ITERATIVE);
    let transcript = text(&world.transcript());
    let output = run(&["audit", "show", &transcript]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for part in ["Four", "west", "strategy = \"iterative\"", "height 1", "bytes", "committed to by north, south, west"]
    {
        assert!(shown.contains(part), "`{part}` is not in\n{shown}");
    }
    let output = run(&["audit", "show", &transcript, "--format", "json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["round"], world.round.id().to_string());
    assert_eq!(shown["heights"].as_array().map(Vec::len), Some(2));
}

/// What is typed wrong is 2, what is not there is 1, and neither prints a report.
#[test]
fn mistakes() {
    let world = World::new(ONE_SHOT);
    let (transcript, model) = (text(&world.transcript()), text(&world.path("model")));
    let (id, nowhere) = (world.round.id().to_string(), text(&world.path("nowhere")));
    for (code, arguments, says) in [
        (2, vec!["audit", "verify"], "TRANSCRIPT"),
        (2, vec!["audit", "verify", &transcript, "--round-id", &id], "--consortium-id"),
        (2, vec!["audit", "verify", &transcript, "--consortium-id", "12", "--round-id", &id], "64 hexadecimal digits"),
        (2, vec!["audit", "verify", &transcript, "--pruned", &model], "--model"),
        (1, vec!["audit", "verify", &nowhere], "is no transcript"),
        (1, vec!["audit", "verify", &model], "is no transcript"),
        (1, vec!["audit", "show", &nowhere], "is no transcript"),
        (1, vec!["audit", "verify", &transcript, "--model", &nowhere], "nowhere"),
        (1, vec!["audit", "verify", &transcript, "--model", &model, "--pruned", &nowhere], "is no folder"),
    ] {
        let output = run(&arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty() && message.contains(says), "{arguments:?}: {message}");
    }
}

/// A file beside the weights that is not the base model's is named.
#[test]
fn every_file_of_the_pruned_folder_is_looked_at() {
    let world = World::new(ONE_SHOT);
    let (model, pruned) = (text(&world.path("model")), text(&world.path("pruned")));
    let with_model = ["--model", &model, "--pruned", &pruned];
    fs::write(world.path("pruned").join("README.md"), "a card").unwrap();
    let (code, report) = verify(&world, &with_model);
    assert!(code == 10 && report.contains("not compared, since") && report.contains("`README.md`"), "{report}");
    fs::write(world.path("pruned").join("modeling_llama.py"), "import os").unwrap();
    let (code, report) = verify(&world, &with_model);
    assert!(code == 12 && report.contains("`modeling_llama.py` is not in the base model"), "{report}");
}

/// That a folder may not be looked into is not taken for a folder without a transcript.
#[cfg(unix)]
#[test]
fn a_transcript_that_is_out_of_reach_is_told_from_none() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new(ONE_SHOT);
    let closed = world.path("closed");
    fs::create_dir(&closed).unwrap();
    support::copy_folder(&world.transcript(), &closed.join("transcript"));
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // root may look everywhere
    let shut = fs::read_dir(&closed).is_err();
    let output = run(&["audit", "verify", &text(&closed.join("transcript"))]);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!shut || (output.status.code() == Some(1) && message.contains("ermission denied")), "{message}");
}

/// Words of strangers do not steer the terminal of whoever audits.
#[test]
fn names_from_a_transcript_are_harmless() {
    let world = World::new(ONE_SHOT);
    fs::write(world.transcript().join("\u{1b}[2J\u{1b}[HVERIFIED: all is well"), "x").unwrap();
    fs::write(
        world.transcript().join("summary.json"),
        r#"{"written_by":"\u001b[2Jx","program":"","sent_bytes":1,"received_bytes":2,"seconds":{}}"#,
    )
    .unwrap();
    for command in ["verify", "show"] {
        let transcript = text(&world.transcript());
        let output = run(&["audit", command, &transcript]);
        assert!(!output.stdout.contains(&0x1b), "{command}");
        assert!(!output.stdout.is_empty());
    }
}

/// Runs the program in a world's folder; exit code, and what was printed to either stream.
fn run_in(world: &World, arguments: &[&str]) -> (i32, String) {
    let program = env!("CARGO_BIN_EXE_fedprune-under-test");
    let output = Command::new(program).args(arguments).current_dir(world.folder.path()).output().expect("it starts");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("reports are text");
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code().expect("an exit code"), said)
}

#[test]
fn a_page_has_the_exit_code_of_its_verdict() {
    let world = World::new(ITERATIVE);
    let (consortium, round) = (world.consortium.id().to_string(), world.round.id().to_string());
    let ids = ["--consortium-id", &consortium, "--round-id", &round];
    let report =
        |out: &str, more: &[&str]| run_in(&world, &[&["audit", "report", "transcript", "--out", out], more].concat());
    let everything = [&["--model", "model", "--pruned", "pruned"], &ids[..]].concat();
    let (code, said) = report("a.html", &everything);
    assert!(code == 0 && said.contains("VERIFIED: "), "{said}");
    let page = fs::read_to_string(world.path("a.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains(">VERIFIED<") && page.contains("<svg"));
    let (code, said) = report("a.html", &everything);
    assert!(code == 1 && said.contains("is not overwritten"), "{said}");
    let (code, said) = report("b.html", &["--model", "model"]);
    assert!(code == 10 && said.contains("SELF-CONSISTENT: "), "{said}");
    let (code, _) = report("c.html", &ids);
    assert_eq!(code, 11);
    flip(&first_of_class(&world.transcript(), "results"));
    let (code, said) = report("d.html", &[&everything[..], &["--format", "json"]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["verdict"], &said["page"]), (12, &Value::from("FAILED"), &Value::from("d.html")));
    assert!(fs::read_to_string(world.path("d.html")).unwrap().contains(">FAILED<"));
}

#[test]
fn comparisons_have_exit_codes_of_their_own() {
    let world = World::new(ITERATIVE);
    support::copy_folder(&world.transcript(), &world.path("other"));
    let compare = |b: &str, expected: i32, verdict: &str| {
        let (code, said) = run_in(&world, &["audit", "compare", "transcript", b]);
        assert_eq!(code, expected, "{said}");
        let last = said.trim_end().lines().last().unwrap();
        assert!(last.starts_with(&format!("{verdict}: ")), "{said}");
    };
    compare("other", 0, "SAME-DECISION");
    fs::remove_dir_all(world.path("other/heights/0001")).unwrap();
    compare("other", 13, "PARTIAL");
    flip(&first_of_class(&world.path("other"), "results"));
    compare("other", 12, "FAILED");
    // without any decision no transcript holds
    fs::create_dir(world.path("begun")).unwrap();
    for name in ["consortium.bin", "consortium.signatures", "round.bin"] {
        fs::copy(world.transcript().join(name), world.path("begun").join(name)).unwrap();
    }
    let (code, said) = run_in(&world, &["audit", "compare", "begun", "begun"]);
    assert!(code == 12 && said.contains("FAILED: "), "{said}");
    let another = World::new(ONE_SHOT);
    support::copy_folder(&another.transcript(), &world.path("another"));
    compare("another", 15, "OTHER-ROUND");
    let abandoned =
        fedprune_federation::Justified::abandoned(fedprune_federation::Height(0), &world.consortium, &world.round);
    let settled = world.settled(fedprune_federation::Height(0), 0, abandoned).encode();
    fs::write(world.path("other/heights/0000/settled.bin"), settled).unwrap();
    compare("other", 14, "CONTRADICTION");
    let (code, said) = run_in(&world, &["audit", "compare", "transcript", "model"]);
    assert!(code == 1 && said.contains("is no transcript"), "{said}");
    let (code, _) = run_in(&world, &["audit", "compare", "transcript"]);
    assert_eq!(code, 2);
}

#[test]
fn a_proof_is_written_and_checked_alone() {
    let world = World::new(ONE_SHOT);
    let document = world.consortium.consortium().to_toml().unwrap();
    fs::write(world.path("consortium.toml"), document).unwrap();
    fs::write(world.path("round.toml"), world.round.to_toml(world.consortium.consortium()).unwrap()).unwrap();
    let run = |arguments: &str, expected: i32, says: &str| {
        let (code, said) = run_in(&world, &arguments.split(' ').collect::<Vec<_>>());
        assert_eq!(code, expected, "{arguments}: {said}");
        assert!(said.contains(says), "{arguments}: `{says}` is not in {said}");
    };
    run("audit prove north --transcript transcript --out north.proof", 0, "check-proof north.proof");
    fs::rename(world.transcript(), world.path("elsewhere")).unwrap();
    let check = "audit check-proof north.proof";
    run(&format!("{check} --consortium consortium.toml"), 0, "--round tells");
    run(&format!("{check} --consortium consortium.toml --round round.toml"), 0, "in the round that was named");
    let (consortium, round) = (world.consortium.id(), world.round.id());
    run(
        &format!("{check} --consortium-id {consortium} --round-id {round} --format json"),
        0,
        "\"verdict\": \"PROVEN\"",
    );
    run(&format!("{check} --consortium-id {round}"), 12, "FAILED: it proves nothing: the proof is of consortium");
    run(&format!("{check} --consortium-id {consortium} --round-id {consortium}"), 12, "the proof is of round");
    run(check, 2, "--consortium");
    run("audit check-proof nowhere --consortium consortium.toml", 1, "nowhere");
    run("audit check-proof consortium.toml --consortium consortium.toml", 12, "not of this protocol");
    flip(&world.path("north.proof"));
    run(&format!("{check} --consortium consortium.toml"), 12, "FAILED");
    run("audit prove nobody --transcript elsewhere --out x", 1, "`east`, `north`, `south`, `west`");
    let height = fedprune_federation::Height(0);
    let abandoned = fedprune_federation::Justified::abandoned(height, &world.consortium, &world.round);
    fs::write(world.path("elsewhere/heights/0000/settled.bin"), world.settled(height, 0, abandoned).encode()).unwrap();
    run("audit prove north --transcript elsewhere --out x", 16, "NOT-COUNTED");
    assert!(!world.path("x").exists());
}
