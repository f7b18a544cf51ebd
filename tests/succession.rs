//! A consortium changes between two rounds, with the program's commands and real nodes: one member renews its key, another
//! is replaced, the others sign; both rounds are audited, and the old key is told what became of it.

#![cfg(unix)]

#[path = "faults/nodes.rs"]
#[allow(dead_code, reason = "killing and restoring is for the tests of faults")]
mod nodes;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use fedprune_audit::Verdict;
use fedprune_federation::{ConsortiumId, RoundId};
use fedprune_node::storage::home::Home;
use nodes::{Bed, Nodes, command, copy, program};
use serde_json::Value;

const ALL: [usize; 4] = [0, 1, 2, 3];
/// Places by name: east renews its key, west is replaced by centre.
const EAST: usize = 0;
const NORTH: usize = 1;
const SOUTH: usize = 2;
const WEST: usize = 3;

fn words(words: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// Runs what must fail with `code`, and says all of `parts`.
#[track_caller]
fn fails(arguments: &[OsString], code: i32, parts: &[&str]) {
    let output = Command::new(program()).args(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing from: {said}");
    }
}

fn sign(document: Option<&Path>, home: &Path, merge: &[&Path]) -> Vec<OsString> {
    let mut arguments = words(&[&"consortium", &"sign"]);
    arguments.extend(document.map(|path| path.as_os_str().to_owned()));
    arguments.extend(words(&[&"--home", &home, &"--yes"]));
    if !merge.is_empty() {
        arguments.push("--merge".into());
        arguments.extend(merge.iter().map(|path| path.as_os_str().to_owned()));
    }
    arguments
}

fn id<T: std::str::FromStr>(value: &Value) -> T {
    value.as_str().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id: {value}"))
}

/// What an auditor makes of a member's transcript of a round.
fn audit(nodes: &Nodes, node: usize, round: RoundId, consortium: ConsortiumId) -> fedprune_audit::Report {
    let transcript = Home::inspect(nodes.home(node)).expect("a home").round_folder(round).transcript();
    let arguments = nodes.arguments(node);
    let options = fedprune_audit::Options {
        consortium: Some(consortium),
        round: Some(round),
        model: Some(&arguments.model),
        pruned: Some(&arguments.out),
        ..fedprune_audit::Options::default()
    };
    fedprune_audit::verify(&transcript, &options, &|_| ()).expect("a transcript")
}

/// The change, signed by whoever must, in place in every home; the home of the new member is returned.
fn change(bed: &Bed, homes: &[PathBuf]) -> PathBuf {
    let (centre, draft) = (bed.fresh("centre"), bed.fresh("next.toml"));
    let made = command(&words(&[&"key", &"new", &"--home", &centre]));
    let key = made["public_key"].as_str().expect("a key").to_owned();
    let document = homes[SOUTH].join("consortium.toml");
    let replaced =
        command(&words(&[&"consortium", &"replace", &document, &"west", &"centre", &"--key", &key, &"--out", &draft]));
    assert_eq!(replaced["changes"][0]["what"], serde_json::json!(["`west` leaves", "`centre` joins"]));
    let renewed = command(&words(&[&"consortium", &"renew", &"--home", &homes[EAST], &"--draft", &draft, &"--yes"]));
    assert_eq!(renewed["ratified"], false);
    let next = homes[EAST].join("next/consortium.toml");

    // who has not entered cannot be agreed to, and a second change cannot be begun beside this one
    fails(&sign(Some(&next), &homes[NORTH], &[]), 1, &["`centre` must sign", "`north` agrees", "--merge FILE"]);
    fails(&words(&[&"consortium", &"renew", &"--home", &homes[EAST]]), 1, &["a change is under way"]);
    command(&sign(Some(&next), &centre, &[]));
    let entered = centre.join("consortium.signatures");
    let agreed = command(&sign(Some(&next), &homes[SOUTH], &[&entered]));
    assert_eq!((&agreed["agreed_as"], &agreed["ratified"]), (&"south".into(), &false.into()));
    let souths = homes[SOUTH].join("next/consortium.signatures");
    // west leaves without having agreed, and keeps working until the others have
    let shown = command(&words(&[&"consortium", &"show", &"--home", &homes[SOUTH]]));
    assert_eq!(shown["pending"]["changes"][0]["undecided"], serde_json::json!(["east", "north", "west"]));
    command(&sign(None, &homes[EAST], &[&souths]));
    let easts = homes[EAST].join("next/consortium.signatures");
    let complete = command(&sign(Some(&next), &homes[NORTH], &[&easts]));
    assert_eq!((&complete["ratified"], &complete["adopted"].is_null()), (&true.into(), &false));
    let (document, all) = (homes[NORTH].join("consortium.toml"), homes[NORTH].join("consortium.signatures"));
    for home in [&homes[EAST], &homes[SOUTH], &centre] {
        let done = command(&sign(None, home, &[&all]));
        assert_eq!(done["ratified"], true, "{done}");
        assert!(!home.join("next").exists());
    }
    let left = command(&sign(Some(&document), &homes[WEST], &[]));
    assert!(left["warnings"].to_string().contains("no member any more"), "{left}");
    centre
}

#[test]
fn a_key_is_renewed_and_a_member_replaced_between_two_rounds() {
    let bed = Bed::new("");
    let mut nodes = bed.nodes("succession");
    let founding = bed.set_up().consortium().id();
    nodes.start(&ALL);
    let first_mask = nodes.agree(&ALL);
    let homes: Vec<PathBuf> = ALL.iter().map(|node| nodes.home(*node).to_owned()).collect();
    // as somebody has it who heard of nothing
    let (stale, stale_before) = (bed.fresh("stale"), bed.fresh("stale-before"));
    copy(&homes[EAST], &stale);
    copy(&homes[EAST], &stale_before);

    let centre = change(&bed, &homes);
    let shown = command(&words(&[&"consortium", &"show", &"--home", &homes[NORTH]]));
    let newest: ConsortiumId = id(&shown["id"]);
    assert_ne!(newest, founding);

    // the next round, of the changed consortium
    let (model, round_file) = (nodes.arguments(0).model.clone(), bed.fresh("round.toml"));
    let document = homes[NORTH].join("consortium.toml");
    let small = ["--nsamples", "2", "--seqlen", "64", "--contribution-seconds", "60", "--proposal-ms", "2000"];
    let mut new = words(&[&"round", &"new", &"--consortium", &document, &"--model", &model, &"--out", &round_file]);
    new.extend(small.iter().map(OsString::from));
    let round: RoundId = id(&command(&new)["id"]);
    assert_ne!(round, bed.round());
    let approve =
        |home: &Path| words(&[&"round", &"approve", &round_file, &"--home", &home, &"--model", &model, &"--yes"]);
    for home in [&homes[EAST], &homes[NORTH], &homes[SOUTH], &centre] {
        command(&approve(home));
    }

    // the old key is told, by the command that approves and by the node, what became of it
    let former = ["was that of `east` until change 1", "`east` has another since", "consortium renew --home"];
    for file in ["consortium.toml", "consortium.signatures"] {
        std::fs::copy(homes[NORTH].join(file), stale.join(file)).expect("copied");
    }
    fails(&approve(&stale), 3, &former);
    let approved = stale.join("rounds").join(round.to_string());
    copy(&homes[NORTH].join("rounds").join(round.to_string()), &approved);
    let mut with_old_key = nodes.arguments(EAST).clone();
    (with_old_key.home, with_old_key.round) = (stale.clone(), round);
    fails(&with_old_key.words(), 3, &former);
    fails(&approve(&homes[WEST]), 3, &["was that of `west` until change 1", "`west` is no member since"]);

    // and where it comes to the door of the others, they know whose it was
    let unaware = bed.fresh("unaware");
    copy(&stale_before, &unaware);
    let mut arguments = nodes.arguments(EAST).clone();
    (arguments.home, arguments.listen) = (unaware, vec!["/ip4/127.0.0.1/tcp/0".to_owned()]);
    arguments.out = bed.fresh("unaware-pruned");
    let unaware = nodes.add("unaware", arguments);

    let mut second: Vec<usize> = Vec::new();
    for (node, home) in [(EAST, &homes[EAST]), (NORTH, &homes[NORTH]), (SOUTH, &homes[SOUTH]), (WEST, &centre)] {
        let mut arguments = nodes.arguments(node).clone();
        (arguments.home, arguments.round) = (home.clone(), round);
        let name = if node == WEST { "centre".to_owned() } else { nodes.name(node).to_owned() };
        arguments.out = bed.fresh(&format!("pruned-of-{name}"));
        second.push(nodes.add(&name, arguments));
    }
    nodes.start(&[second[NORTH]]);
    nodes.start(&[unaware]);
    nodes.wait("a former key is refused by name", |all| {
        let why = |said: &Value| said["why"].as_str().unwrap_or_default().to_owned();
        let mut refused = all.said(second[NORTH], "refused");
        refused.any(|said| why(said).contains("the one that `east` had until change 1; `east` has another since"))
    });
    nodes.kill(&[unaware]);
    nodes.start(&[second[EAST], second[SOUTH], second[WEST]]);
    let second_mask = nodes.agree(&second);
    // of the same texts, drawn otherwise
    assert_ne!(first_mask, second_mask);

    // both rounds, from the newest id and from the founding one; the first is of the founding alone
    for node in ALL {
        let report = audit(&nodes, node, bed.round(), founding);
        assert_eq!(report.verdict, Verdict::Verified, "{}", report.text());
    }
    assert_eq!(audit(&nodes, NORTH, bed.round(), newest).verdict, Verdict::Failed);
    for node in &second {
        for consortium in [newest, founding] {
            let report = audit(&nodes, *node, round, consortium);
            assert_eq!(report.verdict, Verdict::Verified, "{}", report.text());
            let said = |part: &str| report.checks.iter().any(|check| check.compared.contains(part));
            assert!(said(
                "`west` leaves; `centre` joins; `east` renews its key: the agreement of `east`, `north`, `south`"
            ));
        }
    }
    // state and log of the old round are as usable as before, with the key that was renewed since
    for node in [EAST, NORTH] {
        let home = &homes[node];
        let status = command(&words(&[&"node", &"status", &"--home", home, &"--round", &bed.round().to_string()]));
        assert_eq!(status["mask_root"], first_mask.to_string());
        let newest = command(&words(&[&"node", &"status", &"--home", home]));
        assert_eq!(
            newest["mask_root"],
            second_mask.to_string(),
            "the newest consortium's round is meant if none is named"
        );
    }
    nodes.start(&[EAST, WEST]);
    assert_eq!(nodes.agree(&[EAST, WEST]), first_mask);
}
