//! A verifier that shares no code with this one, `tests/verify_signatures.py`, comes to the same answers.
//!
//! It needs Python with `cryptography`. Where there is none these tests say so and check nothing; with
//! `FEDPRUNE_PYTHON=PROGRAM` they insist on that one.

#![allow(clippy::print_stderr, reason = "says when nothing is checked")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fedprune_audit::Verdict;
use fedprune_federation::evidence::Equivocation;
use fedprune_federation::{Evidence, Height, Justified, Precommit, Prevote};
use fedprune_mask::Digest;
use support::*;

/// The Python to use, if there is one that can.
fn python() -> Option<String> {
    let named = std::env::var("FEDPRUNE_PYTHON").ok();
    let program = named.clone().unwrap_or_else(|| "python3".to_owned());
    let can = Command::new(&program).args(["-c", "import cryptography"]).output().is_ok_and(|run| run.status.success());
    assert!(can || named.is_none(), "`{program}`, as FEDPRUNE_PYTHON says, has no module `cryptography`");
    if !can {
        eprintln!("nothing is checked here: `{program}` has no module `cryptography`");
    }
    can.then_some(program)
}

fn run(python: &str, transcript: &Path, more: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/verify_signatures.py");
    Command::new(python).arg(script).arg(transcript).args(more).output().expect("python starts")
}

#[track_caller]
fn passes(python: &str, transcript: &Path, more: &[&str]) -> String {
    let output = run(python, transcript, more);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[track_caller]
fn fails(python: &str, transcript: &Path, file: &str) {
    let output = run(python, transcript, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{file}: {text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with(&format!("FAILED: `{file}`")), "{file}: {text}");
}

#[test]
fn it_verifies_what_we_verify() {
    let Some(python) = python() else { return };
    for kind in [ONE_SHOT, ITERATIVE, ELECTED] {
        let world = World::new(kind);
        let text = passes(&python, &world.transcript(), &[]);
        assert!(
            text.contains(&format!("consortium {}\nround      {}\n", world.consortium.id(), world.round.id())),
            "{text}"
        );
    }
    // everything that a transcript can hold, at one height
    let world = World::new(ELECTED);
    let mut writer = world.writer();
    let lie = world.proposed(Height(0), 1, world.justified_with(Height(0), Some(Digest([7; 32]))));
    writer.proposed(lie.proposal(), &lie.encode()).unwrap();
    let headers = [b"one", b"two"].map(|body| world.header(Height(0), WEST, body));
    let holdings = [1, 2].map(|byte| {
        let entries = vec![Some(Digest([byte; 32])), None, None, None];
        world.sign(fedprune_federation::Holdings::from_digests(entries), Height(0), WEST)
    });
    let results = [1, 2].map(|byte| world.result(Height(0), WEST, Digest([byte; 32])));
    let proposals = [1, 2].map(|byte| {
        let proposal = fedprune_federation::Proposal { view: 3, value: Digest([byte; 32]), valid_view: Some(1) };
        world.sign(proposal, Height(0), WEST)
    });
    let prevotes = [None, Some(Digest([1; 32]))].map(|value| world.sign(Prevote { view: 3, value }, Height(0), WEST));
    let precommits =
        [None, Some(Digest([1; 32]))].map(|value| world.sign(Precommit { view: 3, value }, Height(0), WEST));
    for evidence in [
        Evidence::Ballot(Equivocation::between(&headers[0], &headers[1]).unwrap()),
        Evidence::Holdings(Equivocation::between(&holdings[0], &holdings[1]).unwrap()),
        Evidence::Result(Equivocation::between(&results[0], &results[1]).unwrap()),
        Evidence::Proposal(Equivocation::between(&proposals[0], &proposals[1]).unwrap()),
        Evidence::Prevote(Equivocation::between(&prevotes[0], &prevotes[1]).unwrap()),
        Evidence::Precommit(Equivocation::between(&precommits[0], &precommits[1]).unwrap()),
    ] {
        writer.evidence(&evidence).unwrap();
    }
    assert_verdict(&world.audit(), Verdict::Verified, &[]);
    let (consortium, round) = (world.consortium.id().to_string(), world.round.id().to_string());
    let text = passes(&python, &world.transcript(), &["--consortium-id", &consortium, "--round-id", &round]);
    assert_eq!(text.matches("finding: `west`").count(), 6, "{text}");
    assert_eq!(run(&python, &world.transcript(), &["--round-id", &consortium]).status.code(), Some(1));

    let world = World::new(ONE_SHOT);
    fs::remove_dir_all(world.transcript()).unwrap();
    let abandoned = Justified::abandoned(Height(0), &world.consortium, &world.round);
    world.writer().settled(&world.settled(Height(0), 0, abandoned)).unwrap();
    passes(&python, &world.transcript(), &[]);
}

#[test]
fn it_names_the_file_that_we_refuse() {
    let Some(python) = python() else { return };
    let world = World::new(ONE_SHOT);
    let signed = |file: &String| !file.starts_with("bodies/") && file != "summary.json";
    for file in files_below(&world.transcript()).iter().filter(|file| signed(file)) {
        let (_folder, copy) = world.copy();
        flip(&copy.join(file));
        assert_verdict(&world.audit_of(&copy), Verdict::Failed, &[]);
        match file.as_str() {
            // another consortium or round, which nobody signed: told by the first signature
            "consortium.bin" => assert_eq!(run(&python, &copy, &[]).status.code(), Some(1)),
            "round.bin" => {
                let output = run(&python, &copy, &[]);
                assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
            }
            file => fails(&python, &copy, file),
        }
    }
    for file in ["heights/0000/settled.bin", "consortium.signatures"] {
        let (_folder, copy) = world.copy();
        fs::remove_file(copy.join(file)).unwrap();
        fails(&python, &copy, file);
    }
}

#[test]
fn it_follows_a_chain_of_changes() {
    let Some(python) = python() else { return };
    let (consortium, founding) = changed_consortium();
    let world = World::of(consortium, ONE_SHOT, |_| ());
    let (transcript, id) = (world.transcript(), founding.id().to_string());
    let text = passes(&python, &transcript, &["--consortium-id", &id]);
    assert!(text.contains(&format!("founded    {id}, changed 2 times since")), "{text}");
    let other = consortium_id_of_nobody();
    let output = run(&python, &transcript, &["--consortium-id", &other]);
    assert_eq!(output.status.code(), Some(1));
    let good = world.consortium.encode_signatures();
    let file = "consortium.signatures";
    let (_folder, copy) = world.copy();
    for at in [11, 40, good.len() / 3, good.len() / 2, good.len() - 70, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(copy.join(file), bytes).unwrap();
        fails(&python, &copy, file);
    }
    fs::write(copy.join(file), founding.encode_signatures()).unwrap();
    fails(&python, &copy, file);
}

fn consortium_id_of_nobody() -> String {
    consortium().id().to_string()
}
