//! Nodes that die, are restored from older copies, run twice, or meet strangers, as real processes: the round ends on
//! the one mask all the same, and nobody signs two things where it may sign one.

#![cfg(unix)]

#[path = "faults/nodes.rs"]
mod nodes;
#[path = "faults/slots.rs"]
mod slots;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fedprune_audit::report::Report;
use fedprune_federation::MemberIndex;
use fedprune_mask::Digest;
use fedprune_node::run::{FailPoint, Status};
use fedprune_node::storage::home::Home;
use nodes::{Bed, Nodes, command, copy, program, replace};
use slots::Slots;

/// All four members.
const ALL: [usize; 4] = [0, 1, 2, 3];
const SIGKILL: i32 = 9;
/// What the program exits with when it was asked to stop.
const STOPPED: i32 = 130;

fn others(one: usize) -> Vec<usize> {
    ALL.into_iter().filter(|other| *other != one).collect()
}

/// Nobody, in any of its lives, signed two things in one slot, and no transcript says so. Returns what was found.
fn nobody_equivocates(bed: &Bed, nodes: &Nodes, ran: &[usize], more: &[&Path]) -> Slots {
    let mut slots = Slots::of(nodes.home(0), bed.round());
    for home in ran.iter().map(|node| nodes.home(*node)).chain(more.iter().copied()) {
        slots.add_home(home);
    }
    assert!(slots.said() >= ran.len() * 3, "headers, holdings and results at least: {}", slots.said());
    assert_eq!(slots.faults(), Vec::<String>::new(), "{}", nodes.story());
    for node in ALL {
        assert_eq!(nodes.ever_said(node, "evidence").count(), 0, "{}", nodes.story());
    }
    slots
}

/// What an auditor makes of the transcript of a member.
fn verified(bed: &Bed, nodes: &Nodes, node: usize) -> Report {
    let transcript = Home::inspect(nodes.home(node)).expect("a home").round_folder(bed.round()).transcript();
    let arguments = nodes.arguments(node);
    let options = fedprune_audit::Options {
        consortium: Some(bed.set_up().consortium().id()),
        round: Some(bed.round()),
        model: Some(&arguments.model),
        pruned: Some(&arguments.out),
        ..fedprune_audit::Options::default()
    };
    let report = fedprune_audit::verify(&transcript, &options, &|_| ()).expect("a transcript");
    assert_eq!(report.verdict, fedprune_audit::Verdict::Verified, "{report:?}");
    report
}

/// The mask that all came to, in every case of a test.
#[derive(Default)]
struct OneMask(BTreeSet<Digest>);

impl OneMask {
    fn see(&mut self, case: &str, root: Digest) {
        self.0.insert(root);
        assert_eq!(self.0.len(), 1, "`{case}` comes to another mask than the cases before it");
    }
}

#[test]
fn a_node_killed_at_any_point_goes_on() {
    let bed = Bed::new("");
    let mut mask = OneMask::default();
    for (_, point) in FailPoint::ALL {
        let victim = if point.starts_with("proposal-") { bed.aggregator() } else { bed.follower() };
        let mut nodes = bed.nodes(point);
        nodes.start_to_die(victim, point);
        nodes.start(&others(victim));
        assert_eq!(nodes.ended(victim).signal(), Some(SIGKILL), "{}", nodes.story());
        nodes.start(&[victim]);
        let root = nodes.agree(&ALL);
        mask.see(point, root);
        nobody_equivocates(&bed, &nodes, &ALL, &[]);
        verified(&bed, &nodes, victim);
    }
}

#[test]
fn an_elected_aggregator_that_stays_dead_is_passed_over() {
    let bed = Bed::new("tally = \"elected\"");
    let (dead, mut mask) = (bed.aggregator(), OneMask::default());
    for point in ["proposal-written", "proposal-sent"] {
        let mut nodes = bed.nodes(point);
        nodes.start_to_die(dead, point);
        nodes.start(&others(dead));
        assert_eq!(nodes.ended(dead).signal(), Some(SIGKILL), "{}", nodes.story());
        if point == "proposal-sent" {
            let dead_alone = [nodes.name(dead).to_owned()];
            let stays = |all: &Nodes, node: usize| {
                all.said(node, "staying")
                    .any(|said| said["members"].as_array().is_some_and(|named| *named == dead_alone))
            };
            nodes
                .wait("the others say for whom they stay", |all| others(dead).into_iter().all(|node| stays(all, node)));
        }
        let root = nodes.agree(&others(dead));
        mask.see(point, root);
        nobody_equivocates(&bed, &nodes, &ALL, &[]);
        for node in others(dead) {
            let report = verified(&bed, &nodes, node);
            let height = &report.heights[0];
            assert_eq!((height.contributors.len(), height.recomputed_mask_root), (4, Some(root)), "{report:?}");
            let passed_over: Vec<&str> = height.passed_over.iter().map(|one| one.member.as_str()).collect();
            // what it sent in time is decided without it
            let expected: &[&str] = if point == "proposal-sent" { &[] } else { &[nodes.name(dead)] };
            assert_eq!(passed_over, expected, "{}", nodes.story());
            assert!(report.findings.is_empty(), "it died, and did nothing wrong: {:?}", report.findings);
        }
    }
}

/// A killed process leaves QUIC connections that look alive to the others.
#[test]
fn a_killed_node_returns_over_quic() {
    let bed = Bed::over("quic", "");
    let mut nodes = bed.nodes("quic");
    let victim = bed.follower();
    nodes.start(&ALL);
    nodes.until(&[victim], "holding");
    nodes.kill(&[victim]);
    nodes.start(&[victim]);
    nodes.agree(&ALL);
    nobody_equivocates(&bed, &nodes, &ALL, &[]);
}

/// A home that is put back to an earlier state.
struct Restored {
    name: &'static str,
    /// Whether it is the one that proposes first.
    aggregator: bool,
    /// Whether one member never starts, so that nothing is decided without the votes of the restored one.
    needed: bool,
    /// When the copy is made; none for before the first start.
    copied_at: Option<&'static str>,
    /// Where the node dies that goes on from there; none for when the others hold its ballot.
    killed_at: Option<&'static str>,
    /// Kinds of statements that it finds with others.
    adopts: &'static [&'static str],
}

const RESTORED: [Restored; 5] = [
    Restored {
        name: "nothing, after the ballot left",
        aggregator: false,
        needed: false,
        copied_at: None,
        killed_at: None,
        adopts: &["ballot header"],
    },
    Restored {
        name: "the ballot, in the middle of the votes",
        aggregator: false,
        needed: false,
        copied_at: Some("header-written"),
        killed_at: Some("precommit-written"),
        adopts: &[],
    },
    Restored {
        name: "the ballot, after the proposal left",
        aggregator: true,
        needed: false,
        // it may propose before it holds all ballots itself, but not before the others have its own
        copied_at: Some("header-written"),
        killed_at: Some("proposal-sent"),
        adopts: &["proposal"],
    },
    Restored {
        name: "nothing, after the votes left",
        aggregator: false,
        needed: true,
        copied_at: None,
        killed_at: Some("result-written"),
        adopts: &["ballot header", "holdings statement", "prevote", "precommit"],
    },
    Restored {
        name: "the prevote, after the precommit left",
        aggregator: false,
        needed: true,
        copied_at: Some("prevote-written"),
        killed_at: Some("result-written"),
        adopts: &["precommit"],
    },
];

#[test]
fn a_restored_home_adopts_what_others_have_of_it() {
    for needed in [false, true] {
        let bed = Bed::new(if needed { "contribution_seconds = 2" } else { "" });
        let mut mask = OneMask::default();
        for case in RESTORED.iter().filter(|case| case.needed == needed) {
            let root = restored(&bed, case);
            mask.see(case.name, root);
        }
    }
}

fn restored(bed: &Bed, case: &Restored) -> Digest {
    let mut nodes = bed.nodes(case.name);
    let victim = if case.aggregator { bed.aggregator() } else { bed.follower() };
    let absent = case.needed.then_some((victim + 1) % 4);
    let running: Vec<usize> = ALL.into_iter().filter(|node| Some(*node) != absent).collect();
    let steady: Vec<usize> = running.iter().copied().filter(|node| *node != victim).collect();
    nodes.start(&steady);
    let backup = match case.copied_at {
        None => bed.pristine(victim),
        Some(point) => {
            nodes.start_to_die(victim, point);
            assert_eq!(nodes.ended(victim).signal(), Some(SIGKILL), "{}", nodes.story());
            let backup = bed.fresh("backup");
            copy(nodes.home(victim), &backup);
            backup
        }
    };
    match case.killed_at {
        None => nodes.start(&[victim]),
        Some(point) => {
            nodes.start_to_die(victim, point);
            assert_eq!(nodes.ended(victim).signal(), Some(SIGKILL), "{}", nodes.story());
        }
    }
    let name = nodes.name(victim).to_owned();
    nodes.wait("the others hold its ballot", |all| {
        steady.iter().all(|other| all.said(*other, "held").any(|held| held["member"] == name.as_str()))
    });
    nodes.kill(&[victim]);
    let dead = bed.fresh("dead");
    copy(nodes.home(victim), &dead);
    replace(nodes.home(victim), &backup);
    nodes.start(&[victim]);
    let root = nodes.agree(&running);
    let adopted: BTreeSet<&str> =
        nodes.said(victim, "adopted").filter_map(|adopted| adopted["kind"].as_str()).collect();
    for kind in case.adopts {
        assert!(adopted.contains(kind), "{kind} is not among {adopted:?}\n{}", nodes.story());
    }
    nobody_equivocates(bed, &nodes, &running, &[&dead]);
    verified(bed, &nodes, victim);
    root
}

/// A second home with the same key: where it listens nobody dials.
fn cloned(bed: &Bed, nodes: &mut Nodes, original: usize, home: &Path) -> usize {
    let mut arguments = nodes.arguments(original).clone();
    arguments.home = bed.fresh("clone");
    arguments.out = bed.fresh("pruned");
    arguments.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
    copy(home, &arguments.home);
    nodes.add("clone", arguments)
}

/// Whether a process noticed that another one has its key.
fn noticed(nodes: &Nodes, node: usize) -> bool {
    nodes.said(node, "another-instance").next().is_some()
}

#[test]
fn a_clone_beside_the_original_is_kept_out() {
    let bed = Bed::new("");
    let mut mask = OneMask::default();
    for moment in ["joined", "ballot", "holding"] {
        let mut nodes = bed.nodes(moment);
        let original = bed.follower();
        nodes.start(&ALL);
        nodes.until(&[original], moment);
        let home = nodes.home(original).to_owned();
        let clone = nodes.standing_still(original, |nodes| cloned(&bed, nodes, original, &home));
        nodes.start(&[clone]);
        nodes.wait("the clone notices", |all| noticed(all, clone));
        assert!(nodes.said(clone, "joined").next().is_none(), "{}", nodes.story());
        let clone_home = nodes.home(clone).to_owned();
        nodes.kill(&[clone]);
        let root = nodes.agree(&ALL);
        mask.see(moment, root);
        nobody_equivocates(&bed, &nodes, &ALL, &[&clone_home]);
    }
}

#[test]
fn of_two_clones_at_most_one_takes_part() {
    let bed = Bed::new("");
    let mut nodes = bed.nodes("together");
    let original = bed.follower();
    let clone = cloned(&bed, &mut nodes, original, &bed.pristine(original));
    nodes.start(&[original, clone]);
    nodes.start(&others(original));
    nodes.wait("one of them notices", |all| noticed(all, original) || noticed(all, clone));
    let through = |all: &Nodes, node: usize| all.said(node, "finished").next().is_some();
    nodes.wait("one of them is through", |all| through(all, original) || through(all, clone));
    let (winner, loser) = if through(&nodes, original) { (original, clone) } else { (clone, original) };
    assert!(noticed(&nodes, loser) && nodes.said(loser, "joined").next().is_none(), "{}", nodes.story());
    nodes.kill(&[loser]);
    let mut all = others(original);
    all.push(winner);
    nodes.agree(&all);
    let clone_home = nodes.home(clone).to_owned();
    nobody_equivocates(&bed, &nodes, &ALL, &[&clone_home]);
    for node in all {
        verified(&bed, &nodes, node);
    }
}

/// The original is dead, its clone from before the first start goes on in its place, and then the original comes back.
#[test]
fn a_clone_that_took_over_and_the_original_that_comes_back() {
    let bed = Bed::new("");
    let mut nodes = bed.nodes("taken over");
    let original = bed.follower();
    let clone = cloned(&bed, &mut nodes, original, &bed.pristine(original));
    nodes.start_to_die(original, "prevote-written");
    nodes.start(&others(original));
    assert_eq!(nodes.ended(original).signal(), Some(SIGKILL), "{}", nodes.story());
    nodes.start(&[clone]);
    nodes.until(&[clone], "joined");
    nodes.start(&[original]);
    nodes.wait("the original notices", |all| noticed(all, original));
    let mut all = others(original);
    all.push(clone);
    nodes.kill(&[original]);
    nodes.agree(&all);
    let clone_home = nodes.home(clone).to_owned();
    let slots = nobody_equivocates(&bed, &nodes, &ALL, &[&clone_home]);
    let kinds = slots.kinds(MemberIndex(u16::try_from(original).expect("a member")));
    assert!(kinds.iter().any(|kind| kind == "prevote"), "{kinds:?}");
}

#[test]
fn all_nodes_crash_and_the_round_goes_on() {
    let bed = Bed::new("");
    let mut mask = OneMask::default();
    for moment in ["computing", "ballot", "holding", "view", "decided", "certified"] {
        let mut nodes = bed.nodes(moment);
        nodes.start(&ALL);
        nodes.until(&ALL, moment);
        nodes.kill(&ALL);
        nodes.start(&ALL);
        let root = nodes.agree(&ALL);
        mask.see(moment, root);
        nobody_equivocates(&bed, &nodes, &ALL, &[]);
    }
}

#[test]
fn crashes_and_a_restored_home_in_an_iterative_round() {
    let bed = Bed::new("strategy = \"iterative\"");
    let mut nodes = bed.nodes("iterative");
    let victim = bed.follower();
    let at = |height: u64| {
        move |all: &Nodes| ALL.iter().any(|node| all.said(*node, "decided").any(|said| said["height"] == height))
    };
    nodes.start(&ALL);
    nodes.wait("height 1 is decided", at(1));
    nodes.kill(&ALL);
    let backup = bed.fresh("backup");
    copy(nodes.home(victim), &backup);
    nodes.start(&ALL);
    nodes.wait("height 3 is decided", at(3));
    nodes.kill(&[victim]);
    let dead = bed.fresh("dead");
    copy(nodes.home(victim), &dead);
    replace(nodes.home(victim), &backup);
    nodes.start(&[victim]);
    nodes.agree(&ALL);
    assert!(nodes.said(victim, "adopted").next().is_some(), "{}", nodes.story());
    nobody_equivocates(&bed, &nodes, &ALL, &[&dead]);
    verified(&bed, &nodes, victim);
}

fn words(words: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// Approves another round of the same consortium in a member's home; its id.
fn another_round(bed: &Bed, nodes: &Nodes, member: usize) -> fedprune_federation::RoundId {
    let (home, model, file) = (nodes.home(member), &nodes.arguments(member).model, bed.fresh("round"));
    let consortium = home.join("consortium.toml");
    command(&words(&[&"round", &"new", &"--consortium", &consortium, &"--model", model, &"--out", &file]));
    let approved = command(&words(&[&"round", &"approve", &file, &"--home", &home, &"--model", model, &"--yes"]));
    let home = Home::inspect(home).expect("a home");
    let rounds = home.rounds_with_approval().expect("rounds");
    let other = rounds.into_iter().find(|round| *round != bed.round());
    other.unwrap_or_else(|| panic!("two rounds are approved: {approved}"))
}

/// A home with a valid key of its own, whose consortium has the members of the other one at their addresses.
fn outsider(bed: &Bed, nodes: &Nodes, consortium: &Path) -> PathBuf {
    let home = bed.fresh("outsider");
    let made = command(&words(&[&"key", &"new", &"--home", &home]));
    command(&words(&[&"consortium", &"new", &"--name", &"others", &"--out", &consortium]));
    let key = made["public_key"].as_str().expect("a key");
    let add = |name: &str, key: &str, addresses: &[String]| {
        let mut add = words(&[&"consortium", &"add", &consortium, &"--name", &name, &"--key", &key]);
        for address in addresses {
            add.extend(words(&[&"--address", address]));
        }
        command(&add);
    };
    add("outsider", key, &["/ip4/127.0.0.1/tcp/9".to_owned()]);
    for member in bed.set_up().consortium().members() {
        add(&member.name, &member.signing_key.to_string(), &member.addresses);
    }
    let mut signed = home.clone();
    command(&words(&[&"consortium", &"sign", &consortium, &"--home", &home]));
    for member in ALL {
        // the members' keys sign, in homes that no node uses
        let with_key = bed.fresh("signer");
        copy(&bed.pristine(member), &with_key);
        let _ = std::fs::remove_file(with_key.join("consortium.toml"));
        let _ = std::fs::remove_file(with_key.join("consortium.signatures"));
        let merge = signed.join("consortium.signatures");
        command(&words(&[&"consortium", &"sign", &consortium, &"--home", &with_key, &"--merge", &merge]));
        signed = with_key;
    }
    let merge = signed.join("consortium.signatures");
    command(&words(&[&"consortium", &"sign", &"--home", &home, &"--merge", &merge]));
    let (model, round) = (&nodes.arguments(0).model, bed.fresh("round"));
    command(&words(&[&"round", &"new", &"--consortium", &consortium, &"--model", model, &"--out", &round]));
    command(&words(&[&"round", &"approve", &round, &"--home", &home, &"--model", model, &"--yes"]));
    home
}

#[test]
fn strangers_and_members_elsewhere_are_told() {
    let bed = Bed::new("");
    let mut nodes = bed.nodes("strangers");
    let elsewhere = bed.follower();
    let here = others(elsewhere);

    let consortium = bed.fresh("consortium");
    let mut arguments = nodes.arguments(0).clone();
    arguments.home = outsider(&bed, &nodes, &consortium);
    arguments.listen = vec!["/ip4/127.0.0.1/tcp/0".to_owned()];
    let rounds = Home::inspect(&arguments.home).expect("a home").rounds_with_approval().expect("rounds");
    arguments.round = rounds[0];
    let stranger = nodes.add("outsider", arguments);

    let other = another_round(&bed, &nodes, elsewhere);
    let mut arguments = nodes.arguments(elsewhere).clone();
    arguments.round = other;
    let name = nodes.name(elsewhere).to_owned();
    let elsewhere = nodes.add(&name, arguments);

    nodes.start(&here);
    nodes.start(&[elsewhere]);
    let expected = |ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
        format!("the round differs: ours is `{ours}`, theirs is `{theirs}`")
    };
    nodes.wait("each side is told how the rounds differ", |all| {
        let told = |node: usize, member: &str, expected: &str| {
            let mut said = all.said(node, "mismatch").filter(|said| said["member"] == member);
            said.any(|said| said["differences"].as_array().is_some_and(|all| all.len() == 1 && all[0] == expected))
        };
        here.iter().all(|node| {
            told(*node, &name, &expected(&bed.round(), &other))
                && told(elsewhere, all.name(*node), &expected(&other, &bed.round()))
        })
    });
    assert_eq!(nodes.said(elsewhere, "connected").count(), 0, "{}", nodes.story());

    nodes.start(&[stranger]);
    nodes.until(&[stranger], "listening");
    let address = nodes.said(stranger, "listening").next().expect("waited for")["addresses"][0].clone();
    let peer = address.as_str().and_then(|address| address.rsplit('/').next()).expect("a peer id").to_owned();
    nodes.wait("all members refuse the outsider", |all| {
        here.iter().all(|node| all.said(*node, "refused").any(|said| said["peer"] == peer.as_str()))
    });
    assert_eq!(nodes.said(stranger, "connected").count(), 0, "{}", nodes.story());
    assert!(here.iter().all(|node| nodes.runs(*node)), "{}", nodes.story());
}

#[test]
fn a_node_with_another_model_names_what_differs() {
    let bed = Bed::new("");
    let nodes = bed.nodes("models");
    let change = |name: &str, from: &[u8], to: &[u8]| {
        let model = bed.fresh("model");
        copy(&nodes.arguments(0).model, &model);
        let path = model.join(name);
        let mut bytes = std::fs::read(&path).expect("a file");
        let found = bytes.windows(from.len()).rposition(|window| window == from).expect("it is there");
        bytes[found..found + from.len()].copy_from_slice(to);
        std::fs::write(&path, bytes).expect("written");
        model
    };
    let weights = std::fs::read(nodes.arguments(0).model.join("model.safetensors")).expect("weights");
    let last_byte = [*weights.last().expect("not empty")];
    let cases = [
        ("weights", change("model.safetensors", &last_byte, &[last_byte[0] ^ 1])),
        ("configuration", change("config.json", b"0.00001", b"0.00002")),
        ("tokenizer", change("tokenizer.json", b"<|bos|>", b"<|sob|>")),
    ];
    for (what, model) in cases {
        let mut arguments = nodes.arguments(0).clone();
        arguments.model = model;
        let output = Command::new(program()).args(arguments.words()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        let digests = said
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(said.contains(what) && digests.collect::<BTreeSet<_>>().len() == 2, "{what}: {said}");
    }
}

#[test]
fn a_stopped_node_says_so_and_goes_on() {
    let bed = Bed::new("");
    let mut mask = OneMask::default();
    for moment in ["joined", "ballot", "decided"] {
        let mut nodes = bed.nodes(moment);
        let stopped = bed.follower();
        nodes.start(&ALL);
        nodes.until(&[stopped], moment);
        nodes.terminate(stopped);
        assert_eq!(nodes.ended(stopped).code(), Some(STOPPED), "{}", nodes.story());
        let folder = Home::inspect(nodes.home(stopped)).expect("a home").round_folder(bed.round());
        let status = Status::read(&folder.status()).expect("a status");
        assert_eq!((status.running, status.phase.as_str()), (false, "stopped"));
        nodes.start(&[stopped]);
        let root = nodes.agree(&ALL);
        mask.see(moment, root);
        nobody_equivocates(&bed, &nodes, &ALL, &[]);
    }
}

#[test]
fn a_node_that_cannot_go_on_says_what_it_waits_for() {
    let bed = Bed::new("");
    let mut nodes = bed.nodes("waiting");
    let waits_for = |nodes: &Nodes, node: usize| {
        let folder = Home::inspect(nodes.home(node)).expect("a home").round_folder(bed.round());
        Status::read(&folder.status()).ok().and_then(|status| status.waits_for)
    };
    nodes.start(&[0]);
    let alone = Some("1 of 3 members that tell what they have of ours".to_owned());
    nodes.wait("says that it is alone", |nodes| waits_for(nodes, 0) == alone);
    let home = words(&[&"node", &"status", &"--home", &nodes.home(0)]);
    assert_eq!(command(&home)["waits_for"].as_str(), alone.as_deref());
    nodes.start(&others(0));
    nodes.agree(&ALL);
    assert_eq!(waits_for(&nodes, 0), None, "nothing is owed to it any more");
}
