//! One round of members whose programs are of two versions, in processes of their own; a member that is upgraded while a
//! round goes on; and a program of another protocol, which both sides refuse.

#![cfg(unix)]

#[path = "faults/nodes.rs"]
#[allow(dead_code, reason = "killing and restoring is for the tests of faults")]
mod nodes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use fedprune_mask::Digest;
use fedprune_node::storage::home::Home;
use nodes::{Bed, Nodes, program};
use serde_json::{Value, json};

const ALL: [usize; 4] = [0, 1, 2, 3];
/// Places by name.
const EAST: usize = 0;
const NORTH: usize = 1;
const SOUTH: usize = 2;
const WEST: usize = 3;

/// What the two programs call themselves.
const THIS: &str = concat!("fedprune ", env!("CARGO_PKG_VERSION"));
const NEXT: &str = "fedprune 0.2.0-next";

/// The program of the later version.
fn next() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_fedprune-next"))
}

/// What a program answers, which must succeed.
#[track_caller]
fn asked(program: &Path, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = Command::new(program).args(arguments.iter().map(|word| word.as_ref())).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The members whose other version a node named, in the present life of its process, and what it called it.
fn met(nodes: &Nodes, node: usize, ours: &str) -> BTreeMap<String, String> {
    let mut met = BTreeMap::new();
    for said in nodes.said(node, "other-program") {
        assert_eq!(said["ours"], ours, "{}", nodes.story());
        let member = said["member"].as_str().expect("a name").to_owned();
        let program = said["program"].as_str().expect("it tells").to_owned();
        assert_eq!(met.insert(member, program), None, "said twice\n{}", nodes.story());
    }
    met
}

fn named(members: &[(&str, &str)]) -> BTreeMap<String, String> {
    members.iter().map(|(member, program)| ((*member).to_owned(), (*program).to_owned())).collect()
}

/// What `node status` of a program says of the versions in a home.
fn status(program: &Path, home: &Path) -> (String, BTreeMap<String, String>) {
    let status = asked(program, &[&"node", &"status", &"--home", &home, &"--format", &"json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let others = serde_json::from_value(status["other_programs"].clone()).expect("names");
    (status["program"].as_str().expect("a name").to_owned(), others)
}

/// Audits what a node wrote, pruned model included, with a program.
fn audit(nodes: &Nodes, node: usize, bed: &Bed, program: &Path, mask: Digest) {
    let arguments = nodes.arguments(node);
    let transcript = Home::inspect(&arguments.home).expect("a home").round_folder(bed.round()).transcript();
    let (consortium, round) = (bed.set_up().consortium().id().to_string(), bed.round().to_string());
    let report = asked(
        program,
        &[
            &"audit",
            &"verify",
            &transcript,
            &"--consortium-id",
            &consortium,
            &"--round-id",
            &round,
            &"--model",
            &arguments.model,
            &"--pruned",
            &arguments.out,
            &"--format",
            &"json",
        ],
    );
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((&report["verdict"], &report["mask_root"]), (&json!("VERIFIED"), &json!(mask.to_string())));
}

/// What a node wrote about itself into its transcript.
fn written_by(nodes: &Nodes, node: usize, bed: &Bed) -> Value {
    let transcript = Home::inspect(nodes.home(node)).expect("a home").round_folder(bed.round()).transcript();
    let summary = std::fs::read(transcript.join("summary.json")).expect("a summary");
    serde_json::from_slice::<Value>(&summary).expect("JSON")["program"].clone()
}

/// Two members of each version: one mask, one pruned model, and each says which other version it met.
#[test]
fn two_versions_end_one_round() {
    assert_eq!(asked(&program(), &[&"--version"]).trim(), THIS);
    assert_eq!(asked(&next(), &[&"--version"]).trim(), NEXT);

    let bed = Bed::new("");
    let mut nodes = bed.nodes("two versions");
    nodes.start(&[EAST, SOUTH]);
    for node in [NORTH, WEST] {
        nodes.start_as(node, Command::new(next()), &[]);
    }
    let mask = nodes.agree(&ALL);

    let versions = [(EAST, THIS), (NORTH, NEXT), (SOUTH, THIS), (WEST, NEXT)];
    for (node, version) in versions {
        let others = match version {
            THIS => named(&[("north", NEXT), ("west", NEXT)]),
            _ => named(&[("east", THIS), ("south", THIS)]),
        };
        assert_eq!(met(&nodes, node, version), others, "{}", nodes.story());
        // what was written is read by either
        for reader in [program(), next()] {
            assert_eq!(status(&reader, nodes.home(node)), (version.to_owned(), others.clone()));
            audit(&nodes, node, &bed, &reader, mask);
        }
        assert_eq!(written_by(&nodes, node, &bed), version);
        let text = asked(&program(), &[&"node", &"status", &"--home", &nodes.home(node)]);
        assert!(text.contains("other program") && text.contains("of the same protocol"), "{text}");
    }
    // the same files, but for those that say which program wrote them
    let folder = |node: usize| files_of(&nodes.arguments(node).out);
    let first = folder(EAST);
    assert!(first.keys().any(|name| name.ends_with(".safetensors")), "{:?}", first.keys());
    for node in [NORTH, SOUTH, WEST] {
        let other = folder(node);
        assert_eq!(first.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        let differing: Vec<&String> = first.keys().filter(|name| first[*name] != other[*name]).collect();
        let says_version = ["README.md", "pruning-recipe.toml"];
        assert!(differing.iter().all(|name| says_version.contains(&name.as_str())), "{differing:?}");
    }
}

/// Every file of a folder, by name, with the digest of what it holds.
fn files_of(folder: &Path) -> BTreeMap<String, Digest> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).expect("a file");
            (entry.file_name().to_string_lossy().into_owned(), Digest::of(&bytes))
        })
        .collect()
}

/// Members are upgraded one by one while a round waits for the last of them: each stops, and comes back as the other
/// version from the same home, with the ballot that it had signed.
#[test]
fn members_are_upgraded_one_by_one_within_a_round() {
    let bed = Bed::new("");
    let mut nodes = bed.nodes("upgrades");
    nodes.start(&[EAST, NORTH, SOUTH]);
    for node in [EAST, NORTH, SOUTH] {
        nodes.until(&[node], "ballot");
    }
    let others = |node: usize| [EAST, NORTH, SOUTH].into_iter().filter(move |other| *other != node);
    for node in [EAST, NORTH, SOUTH] {
        nodes.terminate(node);
        assert_eq!(nodes.ended(node).code(), Some(130), "{}", nodes.story());
        nodes.start_as(node, Command::new(next()), &[]);
        let name = nodes.name(node).to_owned();
        nodes.wait("the others meet the other version", |all| {
            others(node).all(|other| {
                // whoever is of the new version already meets its like, and says nothing
                let upgraded = other < node;
                let back = all.said(other, "connected").filter(|said| said["member"] == *name).count() > 1;
                let met =
                    all.said(other, "other-program").any(|said| said["member"] == *name && said["program"] == NEXT);
                if upgraded { back } else { met }
            }) && all.said(node, "joined").next().is_some()
        });
        assert!(nodes.said(node, "finished").next().is_none(), "the round is not over\n{}", nodes.story());
    }
    // the last one is as it was, and one that was upgraded does not find the new version to its liking
    nodes.terminate(SOUTH);
    nodes.ended(SOUTH);
    nodes.start(&[SOUTH, WEST]);
    let mask = nodes.agree(&ALL);
    for node in [EAST, NORTH, SOUTH] {
        // what was signed before the upgrade is what counts: nothing was computed or signed again
        assert_eq!(nodes.ever_said(node, "ballot").count(), 1, "{}", nodes.story());
        assert!(nodes.said(node, "computing").next().is_none(), "{}", nodes.story());
    }
    assert!(ALL.iter().all(|node| nodes.ever_said(*node, "evidence").next().is_none()), "{}", nodes.story());
    for (node, version) in [(EAST, NEXT), (NORTH, NEXT), (SOUTH, THIS), (WEST, THIS)] {
        let others = match version {
            NEXT => named(&[("south", THIS), ("west", THIS)]),
            _ => named(&[("east", NEXT), ("north", NEXT)]),
        };
        assert_eq!(status(&program(), nodes.home(node)), (version.to_owned(), others), "{}", nodes.story());
        let decided = nodes.ever_said(node, "decided").next().expect("decided");
        assert_eq!(decided["contributors"], json!(["east", "north", "south", "west"]), "{}", nodes.story());
        audit(&nodes, node, &bed, &next(), mask);
    }
}

/// A program of another protocol is refused by both sides, whatever their versions, and both say who is to be updated.
#[test]
fn another_protocol_is_refused_by_both_sides() {
    // the others wait for the missing ballot as long as the round says
    let bed = Bed::new("contribution_seconds = 12");
    let mut nodes = bed.nodes("protocols");
    let mut another = Command::new(env!("CARGO_BIN_EXE_fedprune-lying-node"));
    another.env("FEDPRUNE_LIE", "another-protocol");
    nodes.start(&[EAST, NORTH]);
    nodes.start_as(SOUTH, Command::new(next()), &[]);
    nodes.start_as(WEST, another, &[]);
    let refused = |nodes: &Nodes, node: usize, member: &str, differs: &str, remedy: &str| {
        nodes.said(node, "mismatch").any(|said| {
            let says = |key: &str, part: &str| said[key].to_string().contains(part);
            said["member"] == member && says("differences", differs) && says("remedies", remedy)
        })
    };
    nodes.wait("both sides refuse by name", |all| {
        [EAST, NORTH, SOUTH].iter().all(|node| {
            refused(
                all,
                *node,
                "west",
                "the protocol differs: ours is `1`, theirs is `2`",
                "of one protocol, of whatever version: this program is the older one, and is to be updated",
            ) && refused(all, WEST, all.name(*node), "ours is `2`, theirs is `1`", "its program is the older one")
        })
    });
    // the others do without it, in two versions
    nodes.agree(&[EAST, NORTH, SOUTH]);
    for node in [EAST, NORTH, SOUTH] {
        let decided = nodes.said(node, "decided").next().expect("decided");
        assert_eq!(decided["contributors"], json!(["east", "north", "south"]), "{}", nodes.story());
    }
}
