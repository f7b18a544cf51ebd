//! The runner against a program that only pretends: a shell script that answers as the real one does, with nodes that
//! do as each test tells them.

#![cfg(unix)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fedprune_federation::consortium::Member;
use fedprune_federation::{Consortium, Height, Rotation, Round, SigningKey};
use fedprune_mask::Digest;
use fedprune_testnet::{Bundled, Manifest, Options, Outcome, Phase, Progress, Report, TestnetError, run};

/// The program: the test's folder is where it lies, and what a node does is there in `NAME.sh`.
const PROGRAM: &str = r#"#!/bin/sh
here=$(dirname "$0")
command="$1 $2"
option() { # the value of an option
    wanted=$1; shift
    while [ $# -gt 0 ]; do
        if [ "$1" = "$wanted" ]; then echo "$2"; return; fi
        shift
    done
}
out=$(option --out "$@")
home=$(option --home "$@")
case "$command" in
"consortium new") cp "$here/consortium.toml" "$out" ;;
"key new") mkdir -p "$home"; echo '{"public_key": "a key"}' ;;
"round new") cp "$here/round.toml" "$out"; echo '{}' ;;
"node run")
    fail_at=$(option --fail-at "$@")
    name=$(basename "$home")
    said() { echo "{\"event\": \"$1\", $2}"; }
    decided() { said decided "\"height\": 0, \"contributors\": [\"alpha\", \"beta\", \"gamma\"]"; }
    finished() { # MASK
        mkdir -p "$home/transcript"; cp -r "$here/transcript/." "$home/transcript"
        said finished "\"outcome\": \"agreed\", \"mask_root\": \"$1\", \"transcript\": \"$home/transcript\", \
            \"pruned\": \"$out\", \"sent_bytes\": 10, \"received_bytes\": 20"
    }
    trap 'exit 0' TERM
    linger() { while :; do sleep 0.02; done; }
    well() { said listening '"addresses": []'; said ballot "\"bytes\": 7, \"seconds\": 0.5, \"mask_root\": \"$root\""
        decided; finished "$root"; linger; }
    stuck() { sleep 600 & echo $! > "$here/$name.pid"; echo "$name waits for ever" >&2; wait; }
    root=$(cat "$here/root")
    . "$here/$name.sh" ;;
"audit verify") cat "$here/audit.json"; exit "$(cat "$here/audit.code")" ;;
"consortium add" | "consortium sign" | "round approve") ;;
*) [ "$1" = tally ] || { echo "what is $command?" >&2; exit 2; }
    cat "$here/tally.json" ;;
esac
"#;

const SILOS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

struct Fake {
    folder: tempfile::TempDir,
    round: Round,
    consortium: Consortium,
}

impl Fake {
    /// Four silos whose nodes all do well, and an auditor and a tally that agree.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let member = |(number, name): (usize, &&str)| {
            let key = SigningKey::from_seed(&[number as u8 + 1; 32]).unwrap().verifying_key();
            Member {
                name: (*name).to_owned(),
                signing_key: key,
                peer_key: key,
                addresses: Vec::new(),
                attestation_key: None,
            }
        };
        let members = SILOS.iter().enumerate().map(member).collect();
        let consortium = Consortium::new("fake".to_owned(), members).unwrap();
        let digest = |text: &str| Digest::of(text.as_bytes());
        let text = format!(
            "consortium = \"{}\"\nbase_model = \"{}\"\nlayout = \"{}\"\ntokenizer = \"{}\"\nconfiguration = \"{}\"\n\
             sparsity = \"0.5\"\npruner = \"magnitude\"\n[tally_weights]\nbeta = 3\n",
            consortium.id(),
            digest("model"),
            digest("layout"),
            digest("tokenizer"),
            digest("configuration"),
        );
        let round = Round::parse(&text, &consortium).unwrap();
        let fake = Self { folder, round, consortium };
        fake.write("consortium.toml", &fake.consortium.to_toml().unwrap());
        fake.write("round.toml", &text);
        fake.write("root", &fake.root());
        fake.write("fedprune", PROGRAM);
        fs::set_permissions(fake.path("fedprune"), Permissions::from_mode(0o755)).unwrap();
        fake.audit("VERIFIED", "[]", 0);
        fake.write("tally.json", &format!("{{\"mask_root\": \"{}\"}}", fake.root()));
        for folder in ["transcript/bodies", "transcript/heights/0000/headers"] {
            fs::create_dir_all(fake.path(folder)).unwrap();
        }
        for (number, name) in ["alpha", "beta", "delta", "gamma"].iter().enumerate() {
            let digest = digest(name).to_string();
            fake.write(&format!("transcript/bodies/{digest}.ballot"), &format!("the ballot of {name}"));
            fake.write(&format!("transcript/heights/0000/headers/{number:04}-{}.bin", &digest[..16]), "header");
        }
        SILOS.iter().for_each(|name| fake.node(name, "well"));
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn root(&self) -> String {
        Digest::of(b"the mask").to_string()
    }

    /// What the node of a silo does.
    fn node(&self, name: &str, script: &str) {
        self.write(&format!("{name}.sh"), script);
    }

    fn audit(&self, verdict: &str, findings: &str, code: u8) {
        let root = self.root();
        let answer = format!("{{\"verdict\": \"{verdict}\", \"mask_root\": \"{root}\", \"findings\": {findings}}}");
        self.write("audit.json", &answer);
        self.write("audit.code", &code.to_string());
    }

    /// Runs four silos with more said at the end of the manifest.
    fn run_until(&self, more: &str, stop: &dyn Fn() -> bool) -> Result<Report, TestnetError> {
        let silos: String =
            SILOS.iter().map(|name| format!("[[silo]]\nname = \"{name}\"\ndata = [\"bundled:emma\"]\n")).collect();
        let expect =
            if more.contains("[expect]") { "" } else { "[expect]\ncontributors = [\"alpha\", \"beta\", \"gamma\"]\n" };
        self.write("m.toml", &format!("name = \"fake\"\nmodel = \"bundled\"\n{silos}{more}\n{expect}"));
        let bundle = |folder: &Path| {
            let texts = BTreeMap::from([("emma".to_owned(), folder.join("emma.txt"))]);
            Ok(Bundled { model: folder.join("model"), texts })
        };
        let out = self.path("out");
        let options = Options {
            manifest: &self.path("m.toml"),
            base: None,
            folder: Some(&out),
            program: &self.path("fedprune"),
            lying_program: None,
            bundle: &bundle,
            stop,
        };
        run(&options, &mut |_| {})
    }

    fn run(&self, more: &str) -> Report {
        self.run_until(more, &|| false).unwrap()
    }

    /// Why it failed.
    fn reason(&self, more: &str) -> String {
        let report = self.run(more);
        assert!(!report.passed, "{report:#?}");
        report.reason.unwrap()
    }

    /// Whether the child that a node left behind is gone; a kill is certain, and not instantaneous.
    fn child_is_gone(&self, name: &str) -> bool {
        let stat = format!("/proc/{}/stat", self.read(&format!("{name}.pid")).trim());
        let runs = || {
            fs::read_to_string(&stat)
                .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
        };
        (0..1000).any(|_| {
            let gone = !runs();
            if !gone {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            gone
        })
    }
}

#[test]
fn a_round_that_goes_well_passes() {
    let fake = Fake::new();
    let report = fake.run("[round]\nsparsity = \"0.5\"\ncontribution_seconds = 9\n");
    assert!(report.passed, "{report:#?}");
    assert_eq!(report.mask_root.unwrap().to_string(), fake.root());
    assert_eq!(report.round, fake.round.id().0);
    assert_eq!(
        report.silos.iter().map(|silo| silo.name.as_str()).collect::<Vec<_>>(),
        ["alpha", "beta", "delta", "gamma"]
    );
    for silo in &report.silos {
        assert_eq!((silo.ballot_bytes, silo.sent_bytes, silo.received_bytes), (Some(7), Some(10), Some(20)));
        assert_eq!(silo.audit.as_deref(), Some("VERIFIED"));
        assert_eq!(silo.phase, Phase::Finished { outcome: Outcome::Agreed });
    }
    // as people would type it, and kept
    let typed = fake.read("out/logs/commands.log");
    let out = fake.path("out").display().to_string();
    for part in [
        " consortium new --name fake --out ",
        &format!(" consortium add {out}/consortium.toml --name beta --key 'a key' --address /ip4/127.0.0.1/tcp/"),
        &format!(
            " consortium sign {out}/consortium.toml --home {out}/homes/beta --merge {out}/homes/alpha/consortium.signatures"
        ),
        &format!(" consortium sign --home {out}/homes/alpha --merge {out}/homes/gamma/consortium.signatures"),
        &format!("--out {out}/round.toml --contribution-seconds 9 --sparsity 0.5"),
        &format!(" round approve {out}/round.toml --home {out}/homes/delta --model {out}/model --yes"),
        &format!("--consortium-id {} --round-id {}", fake.consortium.id(), fake.round.id()),
        &format!(
            " tally {out}/tally-by-hand/alpha.ballot {out}/tally-by-hand/beta.ballot {out}/tally-by-hand/gamma.ballot"
        ),
        // beta, second of those who contribute, weighs three
        "--global-group layer --out",
        "--weights 1,3,1",
    ] {
        assert!(typed.contains(part), "{part} is not in\n{typed}");
    }
    assert_eq!(fake.read("out/tally-by-hand/gamma.ballot"), "the ballot of gamma");
    assert!(fake.read("out/logs/beta.jsonl").contains("\"event\": \"finished\""));
    assert!(fake.read("out/logs/beta.log").contains("/quic-v1"));
    assert!(report.look_further.iter().any(|command| command.contains(" audit verify ")));
}

#[test]
fn progress_tells_each_phase() {
    let fake = Fake::new();
    let seen = RefCell::new(Vec::new());
    let out = fake.path("out");
    fake.run("");
    fs::remove_dir_all(&out).unwrap();
    let bundle = |folder: &Path| {
        let texts = BTreeMap::from([("emma".to_owned(), folder.join("emma.txt"))]);
        Ok(Bundled { model: folder.join("model"), texts })
    };
    let options = Options {
        manifest: &fake.path("m.toml"),
        base: None,
        folder: Some(&out),
        program: &fake.path("fedprune"),
        lying_program: None,
        bundle: &bundle,
        stop: &|| false,
    };
    run(&options, &mut |progress| match progress {
        Progress::Folder(folder) => seen.borrow_mut().push(folder.display().to_string()),
        Progress::Step(step) => seen.borrow_mut().push(step.to_owned()),
        Progress::Nodes { nodes, .. } => {
            if nodes.iter().all(|(_, phase)| matches!(phase, Phase::Finished { .. })) {
                seen.borrow_mut().push(format!("{} finished", nodes.len()));
            }
        }
    })
    .unwrap();
    let out = out.display().to_string();
    let steps = ["keys and consortium", "round and approvals", "nodes", "4 finished", "audit and tally by hand"];
    assert_eq!(seen.into_inner(), [&[out.as_str()], steps.as_slice()].concat());
}

#[test]
fn a_node_that_ends_early_is_named_with_its_log_and_nothing_lives_on() {
    let fake = Fake::new();
    fake.node("alpha", "stuck");
    fake.node("beta", "while [ ! -s \"$here/alpha.pid\" ]; do sleep 0.01; done\necho 'no such disk' >&2\nexit 1");
    let report = fake.run("");
    assert!(!report.passed);
    let reason = report.reason.unwrap();
    assert!(reason.contains("silo `beta` ended with code 1"), "{reason}");
    let log = report.log.unwrap();
    assert_eq!(log.lines.last().unwrap(), "no such disk");
    assert!(log.path.ends_with("logs/beta.log"));
    assert!(fake.child_is_gone("alpha"));
}

#[test]
fn the_deadline_ends_everything() {
    let fake = Fake::new();
    fake.node("gamma", "stuck");
    let report = fake.run("[expect]\nwithin_seconds = 1\n");
    let reason = report.reason.unwrap();
    assert!(reason.contains("1 s are over and silo `gamma` has not finished"), "{reason}");
    assert_eq!(report.log.unwrap().lines.last().unwrap(), "gamma waits for ever");
    assert!(fake.child_is_gone("gamma"));
}

#[test]
fn a_request_to_stop_ends_everything() {
    let fake = Fake::new();
    SILOS.iter().for_each(|name| fake.node(name, "stuck"));
    let all_wait =
        || SILOS.iter().all(|name| fs::metadata(fake.path(&format!("{name}.pid"))).is_ok_and(|file| file.len() > 0));
    assert!(matches!(fake.run_until("", &all_wait), Err(TestnetError::Stopped)));
    for name in SILOS {
        assert!(fake.child_is_gone(name), "{name}");
    }
    // and before any node runs
    fs::remove_dir_all(fake.path("out")).unwrap();
    assert!(matches!(fake.run_until("", &|| true), Err(TestnetError::Stopped)));
}

#[test]
fn the_first_aggregator_is_the_one_that_is_killed() {
    let fake = Fake::new();
    for name in SILOS {
        fake.node(
            name,
            "if [ \"$fail_at\" = proposal-written ]; then echo x >> \"$here/$name.died\"; kill -9 $$; fi; well",
        );
    }
    let rotation = Rotation::new(fake.round.id(), Height(0), fake.consortium.quorum());
    let first = fake.consortium.member(rotation.aggregator(0)).unwrap().name.clone();
    let report = fake.run("[[perturb]]\nwho = \"aggregator\"\npoint = \"proposal-written\"\n");
    assert!(report.passed, "{report:#?}");
    for silo in &report.silos {
        assert_eq!((silo.kills, silo.phase == Phase::Killed), if silo.name == first { (1, true) } else { (0, false) });
        assert_eq!(fake.path(&format!("{}.died", silo.name)).exists(), silo.name == first);
    }
}

#[test]
fn a_killed_node_starts_again_and_must_finish() {
    let fake = Fake::new();
    let script = "echo x >> \"$here/starts\"; said ballot \"\\\"bytes\\\": 7, \\\"seconds\\\": 1, \\\"mask_root\\\": \\\"$root\\\"\"
        if [ $(wc -l < \"$here/starts\") = 1 ]; then stuck; else well; fi";
    fake.node("beta", script);
    let report = fake.run("[[perturb]]\nwho = \"beta\"\nevent = \"ballot\"\nrestart_after_ms = 1\n");
    assert!(report.passed, "{report:#?}");
    assert_eq!((report.silos[1].kills, report.silos[1].ballot_bytes), (1, Some(7)));
    // its child may have been killed before it could say who it is
    assert!(!fake.path("beta.pid").exists() || fake.child_is_gone("beta"));
}

#[test]
fn different_masks_fail() {
    let fake = Fake::new();
    let other = Digest::of(b"another mask");
    fake.node("gamma", &format!("decided; finished {other}; linger"));
    let reason = fake.reason("");
    assert!(reason.contains(&format!("silo `alpha` holds {}, silo `gamma` {other}", fake.root())), "{reason}");
    fs::remove_dir_all(fake.path("out")).unwrap();
    fake.node("gamma", "well");
    let reason = fake.reason(&format!("[expect]\nmask_root = \"{other}\"\n"));
    assert!(reason.contains(&format!("it is {}", fake.root())), "{reason}");
}

#[test]
fn other_contributors_fail() {
    let reason = Fake::new().reason("[expect]\ncontributors = 4\n");
    assert!(reason.contains("those of `alpha`, `beta`, `gamma` count"), "{reason}");
}

#[test]
fn a_transcript_that_is_not_verified_fails() {
    let fake = Fake::new();
    fake.audit("FAILED", "[]", 12);
    let reason = fake.reason("");
    assert!(
        reason.contains("the transcript of silo `alpha`") && reason.contains("ended with code 12: FAILED"),
        "{reason}"
    );
    fs::remove_dir_all(fake.path("out")).unwrap();
    // an auditor that says one thing and ends with another is not believed
    fake.audit("VERIFIED", "[]", 12);
    assert!(fake.reason("").contains("code 12"));
}

#[test]
fn a_panic_is_found_wherever_it_is_in_a_long_log() {
    let fake = Fake::new();
    fake.node(
        "gamma",
        "echo \"thread 'main' panicked at src/x.rs:1:2\" >&2; head -c 300000 /dev/zero | tr '\\0' x >&2; well",
    );
    assert_eq!(fake.reason("").split(" (").next(), Some("the node of silo `gamma` panicked"));
}

#[test]
fn a_full_disk_is_known_by_the_error_that_names_the_file() {
    let fake = Fake::new();
    let script = |error: &str| format!("case $(ulimit -f) in unlimited) well ;; *) echo '{error}' >&2; exit 1 ;; esac");
    let full = "[[perturb]]\nwhat = \"disk-full\"\nwho = \"beta\"\nfile_bytes = 8192\nrestart_after_ms = 1\n";
    fake.node("beta", &script("error: cannot write `0000` of the log: File too large (os error 27)"));
    let report = fake.run(full);
    assert!(report.passed && report.silos[1].faults == 1, "{report:#?}");
    fs::remove_dir_all(fake.path("out")).unwrap();
    fake.node("beta", &script("error: the clock has stopped"));
    let reason = fake.reason(full);
    assert!(reason.contains("silo `beta` has a full disk") && reason.contains("the clock has stopped"), "{reason}");
}

#[test]
fn whoever_is_accused_in_a_round_that_stalls_counts_too() {
    let fake = Fake::new();
    for name in SILOS {
        fake.node(name, "said listening '\"addresses\": []'; linger");
    }
    fake.node("beta", "said shut-out '\"member\": \"alpha\"'; said evidence '\"member\": \"delta\"'; linger");
    let stalls = |more: &str| format!("[expect]\noutcome = \"stalled\"\nwithin_seconds = 1\n{more}\n");
    for (more, why) in [
        ("accused_only = [\"alpha\"]", "it is `alpha`, `delta` (expected: nobody is accused but maybe `alpha`)"),
        ("shut_out = []", "it is `alpha`"),
        ("evidence_against = []", "it is `delta`"),
    ] {
        let reason = fake.reason(&stalls(more));
        assert!(reason.contains(why), "{reason}");
        fs::remove_dir_all(fake.path("out")).unwrap();
    }
    let report = fake.run(&stalls("accused_only = [\"alpha\", \"delta\"]\nshut_out = [\"alpha\"]"));
    assert!(report.passed, "{report:#?}");
}

#[test]
fn links_that_are_disturbed_too_late_fail_at_once() {
    let fake = Fake::new();
    let apart = "[[perturb]]\nwhat = \"partition\"\ngroups = [[\"beta\"]]\nfor_ms = 5\n";
    let reason = fake.reason(&format!("{apart}after_ms = 80000\n"));
    assert!(
        reason.starts_with("every node had finished before links were stopped 80000 ms after the start"),
        "{reason}"
    );
    fs::remove_dir_all(fake.path("out")).unwrap();
    let report = fake.run(apart);
    assert!(report.passed, "{report:#?}");
    let checks: Vec<&str> = report.checks.iter().map(|check| check.what.as_str()).collect();
    assert!(checks.iter().any(|check| check.starts_with("`partition` of links began after 0.")), "{checks:?}");
    assert!(checks.iter().any(|check| check.starts_with("links have cut 0 connections")), "{checks:?}");
    // nodes of this program dial at the runner's ports
    assert!(fake.read("out/logs/beta.log").contains("--dial alpha=/ip4/127.0.0.1/tcp/"));
}

/// Links are TCP: what somebody else has at the same number for UDP is not theirs.
#[test]
fn a_udp_socket_at_the_port_of_a_link_is_nothing_that_is_left() {
    let fake = Fake::new();
    let others = RefCell::new(None);
    let take = || {
        if others.borrow().is_none() {
            let log = fs::read_to_string(fake.path("out/logs/beta.log")).unwrap_or_default();
            let port = log.split("--dial alpha=/ip4/127.0.0.1/tcp/").nth(1).and_then(|rest| rest.split(' ').next());
            *others.borrow_mut() = port.map(|port| std::net::UdpSocket::bind(format!("127.0.0.1:{port}")).unwrap());
        }
        false
    };
    let report = fake.run_until("[[perturb]]\nwhat = \"delay\"\ndelay_ms = 5\n", &take).unwrap();
    assert!(report.passed && others.borrow().is_some(), "{report:#?}");
}

/// Whose turn it is follows from the round id, so that this is known only then.
#[test]
fn what_an_aggregator_cannot_suffer_after_a_pause_is_refused_with_its_name() {
    let fake = Fake::new();
    let rotation = Rotation::new(fake.round.id(), Height(0), fake.consortium.quorum());
    let first = fake.consortium.member(rotation.aggregator(0)).unwrap().name.clone();
    let more = "[[perturb]]\nwhat = \"pause\"\nwho = \"aggregator\"\nevent = \"joined\"\nfor_ms = 5\n\
                [[perturb]]\nwho = \"aggregator\"\npoint = \"proposal-written\"\n";
    let error = fake.run_until(more, &|| false).unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.starts_with(&format!("`silo {first}: pause`")) && why.contains("proposal-written"), "{why}");
}

#[test]
fn findings_are_those_that_are_expected() {
    let fake = Fake::new();
    let findings = r#"[{"member": "beta", "fault": "equivocation"}, {"member": "gamma", "fault": "wrong-mask-root"}]"#;
    fake.audit("VERIFIED", findings, 0);
    let expect = "[expect]\nevidence_against = [\"beta\"]\nfault_named = [\"beta\", \"gamma\"]\n";
    assert!(fake.run(expect).passed);
    fs::remove_dir_all(fake.path("out")).unwrap();
    let reason = fake.reason("[expect]\nevidence_against = []\n");
    assert!(reason.contains("it is `beta` (expected: the evidence is against nobody)"), "{reason}");
}

#[test]
fn a_tally_by_hand_that_differs_fails() {
    let fake = Fake::new();
    fake.write("tally.json", &format!("{{\"mask_root\": \"{}\"}}", Digest::of(b"another mask")));
    assert!(fake.reason("").contains("`fedprune tally` of the ballots"));
    fs::remove_dir_all(fake.path("out")).unwrap();
    fs::remove_dir_all(fake.path("transcript/bodies")).unwrap();
    fs::create_dir(fake.path("transcript/bodies")).unwrap();
    assert!(fake.reason("").contains("no ballot of silo `alpha`"));
}

#[test]
fn a_node_that_ends_otherwise_than_it_said_fails() {
    let fake = Fake::new();
    fake.node("delta", "trap 'exit 5' TERM; decided; finished \"$root\"; linger");
    let reason = fake.reason("");
    assert!(reason.contains("silo `delta` finished well and ended with code 5, not code 0"), "{reason}");
}

#[test]
fn set_up_that_fails_says_what_was_typed_and_answered() {
    let fake = Fake::new();
    let without_approval = PROGRAM.replace(
        "\"consortium add\" | \"consortium sign\" | \"round approve\") ;;",
        "\"consortium add\" | \"consortium sign\") ;;",
    );
    fake.write("fedprune", &without_approval);
    let error = fake.run_until("", &|| false).unwrap_err().to_string();
    assert!(
        error.contains(" round approve ") && error.contains("code 2") && error.contains("what is round approve?"),
        "{error}"
    );
    let error = fake.run_until("", &|| false).unwrap_err();
    assert!(matches!(error, TestnetError::FolderExists(_)), "the folder is there already: {error}");
}

#[test]
fn a_text_that_is_not_bundled_is_named_with_those_that_are() {
    let more = "[[silo]]\nname = \"epsilon\"\ndata = [\"bundled:ema\"]\n";
    let error = Fake::new().run_until(more, &|| false).unwrap_err().to_string();
    assert!(error.contains("`epsilon`") && error.contains("`ema`") && error.contains("`emma`"), "{error}");
}

#[test]
fn shipped_manifests_are_manifests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let manifest = Manifest::parse(&fs::read_to_string(&path).unwrap());
        let manifest = manifest.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(path.file_stem().unwrap(), manifest.name.as_str());
        names.push(manifest.name);
    }
    names.sort();
    let shipped =
        ["elected-aggregator-killed", "four-silos-iterative", "four-silos-one-shot", "seven-silos-two-absent"];
    assert_eq!(names, shipped);
}
