//! Attestations as members make them with the program, held against verifiers that are not ours
//! (`tests/attestations.py`): those accept ours and refuse every changed one, and so do we.
//!
//! It needs a Python with `securesystemslib`, `model-signing`, `pyopenssl` and `tomllib`. Where there is none the part that
//! needs it says so and checks nothing; with `FEDPRUNE_PYTHON=PROGRAM` it insists on that one.

#![allow(clippy::print_stderr, reason = "says when nothing is checked")]

#[path = "../crates/audit/tests/support/mod.rs"]
mod support;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fedprune_attest::AttestationKey;
use fedprune_federation::MemberIndex;
use fedprune_tests::root;
use serde_json::Value;
use support::{EAST, ITERATIVE, Kind, MEMBERS, ONE_SHOT, World, consortium_with, key};

fn attestation_key(member: MemberIndex) -> AttestationKey {
    AttestationKey::from_seed(&[member.0 as u8 + 0x41; 32]).unwrap()
}

/// A round whose members have attestation keys, and their homes.
struct Place {
    world: World,
}

impl Place {
    fn new(kind: Kind) -> Self {
        let consortium = consortium_with(|member| attestation_key(member).public().to_pem().ok());
        let world = World::of(consortium, kind, |_| ());
        let place = Self { world };
        let document = place.world.consortium.consortium().to_toml().unwrap();
        fs::write(place.path("consortium.toml"), &document).unwrap();
        for (index, name) in MEMBERS.iter().enumerate() {
            let (home, member) = (place.path(name), MemberIndex(index as u16));
            fs::create_dir(&home).unwrap();
            fs::write(home.join("key.pem"), key(member).to_pkcs8_pem().unwrap().as_bytes()).unwrap();
            fs::write(home.join("attestation-key.pem"), attestation_key(member).to_pem().unwrap().as_ref()).unwrap();
            fs::write(home.join("consortium.toml"), &document).unwrap();
            fs::write(home.join("consortium.signatures"), place.world.consortium.encode_signatures()).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let program = env!("CARGO_BIN_EXE_fedprune-under-test");
        let folder = self.world.folder.path();
        Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output().expect("it starts")
    }

    /// Runs `attest …`; exit code, and what was printed to either stream.
    fn attest(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(&[&["attest"], arguments].concat());
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("panicked"), "{text}");
        (output.status.code().unwrap(), text)
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        let (code, text) = self.attest(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], expected: i32, says: &str) {
        let (code, text) = self.attest(arguments);
        assert_eq!(code, expected, "{arguments:?}: {text}");
        assert!(text.contains(says), "`{says}` is not in: {text}");
    }

    /// Everything that is attested of a one-shot round.
    fn everything(&self) {
        self.done(&["ballot", "--home", "east", "--transcript", "transcript", "--out", "ballot.json"]);
        for name in MEMBERS {
            self.done(&[
                "result",
                "--home",
                name,
                "--transcript",
                "transcript",
                "--model",
                "model",
                "--pruned",
                "pruned",
                "--out",
                &format!("result-{name}.json"),
            ]);
        }
        let results = MEMBERS.map(|name| format!("result-{name}.json"));
        let results: Vec<&str> = results.iter().map(String::as_str).collect();
        self.done(&[&["merge"], &results[..], &["--out", "result.json"]].concat());
        self.done(&["model", "pruned", "--home", "east", "--out", "pruned.sig"]);
    }
}

const WITH: [&str; 2] = ["--consortium", "consortium.toml"];

#[test]
fn what_is_attested_verifies_and_says_what_it_says() {
    let place = Place::new(ONE_SHOT);
    place.everything();
    let body = fedprune_mask::Digest::of(&place.world.bodies[0][EAST.as_usize()]);
    let ballot = format!("transcript/bodies/{body}.ballot");
    let round = place.world.round.id().to_string();
    let text = place.done(&[&["verify", "ballot.json", "--ballot", &ballot, "--round-id", &round], &WITH[..]].concat());
    assert!(text.contains("ATTESTED") && text.contains("signed by  east") && text.contains(&round), "{text}");
    let text = place.done(&[&["verify", "result.json", "--pruned", "pruned"], &WITH[..]].concat());
    assert!(text.contains("east, north, south, west") && text.contains(&place.world.mask_root.to_string()), "{text}");
    assert!(text.contains("--round-id tells"), "{text}");
    assert!(text.contains("ATTESTED: every signature in it verifies; the folder has the files"), "{text}");
    let text = place.done(&[&["verify", "result.json"], &WITH[..]].concat());
    assert!(text.contains("; nothing was compared with what it says"), "{text}");
    let text = place.done(&[&["verify", "ballot.json", "--pruned", "pruned"], &WITH[..]].concat());
    assert!(text.contains("--pruned was not compared") && text.contains("; nothing was compared"), "{text}");
    let text = place.done(&[&["verify", "pruned.sig", "--pruned", "pruned"], &WITH[..]].concat());
    assert!(text.contains("only `attest result` says") && text.contains("files that were signed"), "{text}");
    // who attests the same signs the same bytes
    let payload = |name: &str| {
        let envelope: Value = serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap();
        envelope["payload"].clone()
    };
    assert_eq!(payload("result-east.json"), payload("result-west.json"));
}

#[test]
fn what_does_not_hold_is_refused_and_says_why() {
    let place = Place::new(ONE_SHOT);
    place.everything();
    let verify = |file: &str, more: &[&str], says: &str| {
        place.refused(&[&["verify", file], more, &WITH[..]].concat(), 12, says);
    };
    let other = fedprune_mask::Digest::of(&place.world.bodies[0][1]);
    verify("ballot.json", &["--ballot", &format!("transcript/bodies/{other}.ballot")], "is another ballot");
    verify("ballot.json", &["--threshold", "2"], "1 members signed it, and 2 are needed");
    verify("result-east.json", &["--pruned", "pruned"], "1 members signed it, and 3 are needed");
    verify("result.json", &["--pruned", "model"], "is another file");
    verify("result.json", &["--round-id", &"ab".repeat(32)], "it is of round");
    verify("pruned.sig", &["--pruned", "model"], "the folder is not what was signed");
    verify("consortium.toml", &[], "no DSSE envelope");
    // another consortium: the same members without attestation keys
    let document = support::consortium().consortium().to_toml().unwrap();
    fs::write(place.path("other.toml"), document).unwrap();
    let other = ["--consortium", "other.toml"];
    place.refused(&[&["verify", "result.json"], &other[..]].concat(), 12, "it is of consortium");
    place.refused(
        &[&["verify", "pruned.sig", "--pruned", "pruned"], &other[..]].concat(),
        12,
        "attestation key of no member",
    );
    // a ballot of east that north signed
    place.done(&["ballot", "--home", "north", "--transcript", "transcript", "--out", "north.json"]);
    place.refused(&["merge", "north.json", "ballot.json", "--out", "both.json"], 1, "different statements");
    place.refused(&[&["verify", "pruned.sig"], &WITH[..]].concat(), 1, "--pruned DIR");
    // what says nothing of a round is not held against one
    let of_folder = ["verify", "pruned.sig", "--pruned", "pruned"];
    let round = place.world.round.id().to_string();
    place.refused(&[&of_folder[..], &["--round-id", &round], &WITH].concat(), 2, "says nothing of a round");
    place.refused(&[&of_folder[..], &["--threshold", "0"], &WITH].concat(), 2, "--threshold 0");
    place.refused(&[&["verify", "result.json", "--threshold", "0"], &WITH[..]].concat(), 2, "--threshold 0");
    place.refused(&[&["verify", "nowhere"], &WITH[..]].concat(), 1, "there is no file `nowhere`");
    place.refused(&["model", "east", "--home", "east", "--out", "home.sig"], 1, "is not signed, since it is no model");
    assert!(!place.path("home.sig").exists());
    // signatures are counted, not files
    let text = place.done(&["merge", "result-east.json", "result-east.json", "--out", "once.json"]);
    assert!(text.contains("1 signature, of 2 envelopes"), "{text}");
    place.refused(&["model", "pruned", "--home", "east", "--out", "pruned/x.sig"], 1, "write it outside");
    place.refused(&["model", "pruned", "--home", "east", "--out", "pruned.sig"], 1, "is not overwritten");
}

#[test]
fn nothing_is_attested_that_does_not_hold() {
    let place = Place::new(ONE_SHOT);
    let result = |out: &str| {
        let words = "result --home east --transcript transcript --model model --pruned pruned --out";
        let arguments: Vec<&str> = words.split(' ').chain([out]).collect();
        place.attest(&arguments)
    };
    support::flip(&place.path("pruned").join("model.safetensors"));
    let (code, text) = result("a.json");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("FAILED") && !place.path("a.json").exists(), "{text}");
    // a key that the document does not have
    let key = AttestationKey::from_seed(&[9; 32]).unwrap();
    fs::write(place.path("east/attestation-key.pem"), key.to_pem().unwrap().as_ref()).unwrap();
    place.refused(&["model", "pruned", "--home", "east", "--out", "x.sig"], 1, "is not the one that the consortium's");
    fs::remove_file(place.path("east/attestation-key.pem")).unwrap();
    place.refused(&["model", "pruned", "--home", "east", "--out", "x.sig"], 1, "key attestation --home");
}

#[test]
fn an_iterative_round_is_attested_height_by_height_and_as_a_whole() {
    let place = Place::new(ITERATIVE);
    let ballot = ["ballot", "--home", "east", "--transcript", "transcript", "--out", "ballot.json"];
    place.refused(&ballot, 1, "say which: --height N");
    place.done(&[&ballot[..], &["--height", "1"]].concat());
    place.done(&[&["verify", "ballot.json"], &WITH[..]].concat());
    let words = "result --home west --transcript transcript --model model --pruned pruned --out result.json";
    place.done(&words.split(' ').collect::<Vec<_>>());
    let text = place.done(&[&["verify", "result.json", "--pruned", "pruned", "--threshold", "1"], &WITH[..]].concat());
    assert!(text.contains(&place.world.mask_root.to_string()), "{text}");
}

#[test]
fn keys_are_made_shown_and_entered() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_fedprune-under-test");
        let output = Command::new(program).args(arguments).current_dir(folder.path()).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    let done = |arguments: &[&str]| {
        let (code, text) = run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {text}");
        text
    };
    done(&["key", "new", "--home", "home"]);
    let private = folder.path().join("home/attestation-key.pem");
    let before = fs::read_to_string(&private).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let shown = done(&["key", "attestation", "--home", "home"]);
    let public = fs::read_to_string(folder.path().join("home/attestation-key.public.pem")).unwrap();
    assert!(shown.contains(public.trim()) && !shown.contains(before.lines().nth(1).unwrap()), "{shown}");
    assert_eq!(fs::read_to_string(&private).unwrap(), before, "a key that is there stays");
    done(&["consortium", "new", "--name", "one", "--out", "c.toml"]);
    let add = ["consortium", "add", "c.toml", "--name", "east", "--key", "home/key.pem", "--attestation-key"];
    let (code, text) = run(&[&add[..], &["home/key.pem"]].concat());
    assert!(code == 1 && text.contains("P-256"), "{text}");
    done(&[&add[..], &["home/attestation-key.public.pem"]].concat());
    let text = fs::read_to_string(folder.path().join("c.toml")).unwrap();
    let consortium = fedprune_federation::Consortium::parse(&text).unwrap();
    assert_eq!(consortium.members()[0].attestation_key.as_deref(), Some(public.as_str()));
    let (code, text) = run(&["key", "attestation", "--home", "nowhere"]);
    assert!(code == 1 && text.contains("key new --home nowhere"), "{text}");
}

/// The Python to use, if there is one that can.
fn python() -> Option<String> {
    let named = std::env::var("FEDPRUNE_PYTHON").ok();
    let program = named.clone().unwrap_or_else(|| "python3".to_owned());
    let modules = "import cryptography, model_signing, OpenSSL, securesystemslib.dsse, tomllib";
    let can = Command::new(&program).args(["-c", modules]).output().is_ok_and(|run| run.status.success());
    assert!(can || named.is_none(), "`{program}`, as FEDPRUNE_PYTHON says, cannot: {modules}");
    if !can {
        // standard error of tests is theirs
        let _ = writeln!(std::io::stderr(), "left out: `{program}` cannot: {modules}");
    }
    can.then_some(program)
}

#[test]
fn verifiers_of_others_accept_ours_and_refuse_every_changed_one() {
    let Some(python) = python() else { return };
    let place = Place::new(ONE_SHOT);
    place.everything();
    let script = root().join("tests/attestations.py");
    let arguments = "--consortium consortium.toml --ballot ballot.json --result result.json --threshold 3 --model pruned \
                     --signature pruned.sig --member east --out tampered";
    let output = Command::new(python)
        .arg(script)
        .args(arguments.split_whitespace())
        .current_dir(place.world.folder.path())
        .output()
        .expect("python starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let refused: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
    assert!(refused.len() >= 10, "{refused:?}");
    // what they refuse, we refuse
    for changed in &refused {
        let file = changed["file"].as_str().unwrap();
        let threshold = changed["threshold"].as_u64().unwrap_or(1).to_string();
        let folder = changed["model"].as_str().unwrap_or("pruned");
        let arguments = ["verify", file, "--threshold", &threshold, "--pruned", folder];
        let (code, text) = place.attest(&[&arguments[..], &WITH[..]].concat());
        assert_eq!(code, 12, "{changed}: {text}");
    }
    // the key by which a member is known is refused where it is weak, which those verifiers are not for
    let document = fs::read_to_string(place.path("consortium.toml")).unwrap();
    let weak = document.replace(&key(EAST).verifying_key().to_string(), &("01".to_owned() + &"00".repeat(31)));
    assert_ne!(weak, document);
    fs::write(place.path("weak.toml"), weak).unwrap();
    place.refused(&["verify", "ballot.json", "--consortium", "weak.toml"], 1, "weak");
    assert!(Path::new(&place.path("tampered")).is_dir());
}
