//! Keys, consortiums and rounds as people make them with the program: from nothing to an approved round, and what is
//! refused on the way.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use fedprune_tests::root;
use serde_json::Value;
use tempfile::TempDir;

const NAMES: [&str; 4] = ["north", "south", "east", "west"];

/// Runs the program in `folder`, with nobody at the terminal.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_fedprune-under-test");
    Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output().expect("the program starts")
}

/// Runs what must succeed; returns its JSON report.
fn json(folder: &Path, arguments: &[&str]) -> Value {
    let output = run(folder, &[arguments, &["--format", "json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fedprune {}: {errors}", arguments.join(" "));
    serde_json::from_slice(&output.stdout).expect("a JSON report")
}

/// Runs what must succeed; returns its report for people.
fn text(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fedprune {}: {errors}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("reports are text")
}

/// Runs what must fail with `code` and says all of `parts`; standard output stays empty.
#[track_caller]
fn fails(folder: &Path, code: i32, arguments: &[&str], parts: &[&str]) {
    let output = run(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "fedprune {}: {message}", arguments.join(" "));
    assert!(output.stdout.is_empty(), "a failure prints no report");
    assert!(!message.contains("panicked") && !message.contains("\\u{a}"), "{message}");
    for part in parts {
        assert!(message.contains(part), "fedprune {}: `{part}` is missing from: {message}", arguments.join(" "));
    }
}

fn bundled(path: &str) -> String {
    let path = root().join("examples/bundled-model").join(path);
    path.to_str().expect("test paths are UTF-8").to_owned()
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// A folder with `consortium.toml` of four members and a home for each, which nobody has signed.
fn unsigned() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    json(at, &["consortium", "new", "--name", "Four hospitals", "--out", "consortium.toml"]);
    for (index, name) in NAMES.into_iter().enumerate() {
        let key = json(at, &["key", "new", "--home", name]);
        let address = format!("/ip4/192.0.2.{index}/tcp/4001");
        let key = string(&key["public_key"]);
        json(at, &["consortium", "add", "consortium.toml", "--name", name, "--key", key, "--address", &address]);
    }
    folder
}

fn signatures(name: &str) -> String {
    format!("{name}/consortium.signatures")
}

/// The same, signed by all, with all signatures in every home.
fn ratified() -> TempDir {
    let folder = unsigned();
    for name in NAMES {
        json(folder.path(), &["consortium", "sign", "consortium.toml", "--home", name]);
    }
    for name in NAMES {
        let lists = NAMES.map(signatures);
        let mut arguments = vec!["consortium", "sign", "--home", name, "--merge"];
        arguments.extend(lists.iter().map(String::as_str));
        json(folder.path(), &arguments);
    }
    folder
}

/// A round on the bundled model in `round.toml`; returns its report.
fn round(folder: &Path, more: &[&str]) -> Value {
    let model = bundled("model");
    let arguments = ["round", "new", "--consortium", "consortium.toml", "--model", &model, "--out", "round.toml"];
    json(folder, &[&arguments[..], more].concat())
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn four_members_come_to_an_approved_round() {
    let folder = unsigned();
    let at = folder.path();

    let shown = json(at, &["consortium", "show", "consortium.toml"]);
    assert_eq!(shown["quorum"]["may_fail"], 1);
    assert_eq!((&shown["ratified"], shown["missing"].as_array().unwrap().len()), (&Value::Bool(false), 4));
    let id = shown["id"].clone();

    for (index, name) in NAMES.into_iter().enumerate() {
        let signed = json(at, &["consortium", "sign", "consortium.toml", "--home", name]);
        assert_eq!((&signed["id"], string(&signed["signed_as"])), (&id, name));
        assert_eq!(signed["signed"], serde_json::json!([name]), "{index}");
    }
    let lists = NAMES.map(signatures);
    for name in NAMES {
        let mut arguments = vec!["consortium", "sign", "--home", name, "--merge"];
        arguments.extend(lists.iter().map(String::as_str));
        let merged = json(at, &arguments);
        let all = (merged["ratified"].as_bool(), merged["missing"].as_array().unwrap().len());
        assert_eq!(all, (Some(true), 0));
    }
    assert_eq!(json(at, &["consortium", "show", "--home", "west"])["ratified"], true);
    let words = text(at, &["consortium", "show", "--home", "west"]);
    assert!(words.contains("up to 1 may fail") && words.contains("round new --consortium"), "{words}");

    let model = bundled("model");
    let made = round(at, &["--nsamples", "16", "--seqlen", "128", "--weight", "north=2", "--data-free", "block0.qkv"]);
    assert_eq!(made["consortium_id"], id);
    assert_eq!(made["warnings"], serde_json::json!([]));
    assert_eq!(made["terms"]["tally_weights"]["north"], 2);
    assert_eq!(made["terms"]["minimum_ballots"], 3);
    assert_eq!(made["terms"]["base_model"], json(at, &["model", "inspect", &model])["content_digest"]);
    let shown = json(at, &["round", "show", "round.toml", "--home", "south", "--model", &model]);
    assert_eq!((&shown["id"], &shown["terms"], shown["heights"].as_u64()), (&made["id"], &made["terms"], Some(1)));

    for name in NAMES {
        let approved = json(at, &["round", "approve", "round.toml", "--home", name, "--model", &model, "--yes"]);
        assert_eq!((string(&approved["member"]), &approved["round"]), (name, &made["id"]));
        let home = at.join(name).join("rounds").join(string(&made["id"]));
        assert_eq!(std::fs::read(home.join("round.toml")).unwrap(), std::fs::read(at.join("round.toml")).unwrap());
        let approval: Value = serde_json::from_slice(&std::fs::read(home.join("approval.json")).unwrap()).unwrap();
        assert_eq!((&approval["round"], &approval["consortium"]), (&made["id"], &id));
        assert!(approval["approved_unix_ms"].as_u64().unwrap() > 1_600_000_000_000);
        assert!(string(&approval["program"]).starts_with("fedprune "));
        // approving twice changes nothing, and needs no answer
        let again = json(at, &["round", "approve", "round.toml", "--home", name]);
        assert_eq!(
            (&again["already"], &again["approved_unix_ms"]),
            (&Value::Bool(true), &approval["approved_unix_ms"])
        );
    }
    let words = text(at, &["round", "approve", "round.toml", "--home", "north", "--model", &model]);
    for part in
        ["what will leave this silo", "signed holdings", "not nothing", "2,048 tokens", "get every ballot", "node run"]
    {
        assert!(words.contains(part), "`{part}` is missing from: {words}");
    }
    // temporary files are gone
    for name in NAMES {
        let mut left: Vec<_> =
            std::fs::read_dir(at.join(name)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        let keys = ["approvals.jsonl", "attestation-key.pem", "attestation-key.public.pem"];
        let others = ["consortium.signatures", "consortium.toml", "key.pem", "rounds"];
        assert_eq!(left, [&keys[..], &others].concat());
    }
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let made = json(at, &["key", "new", "--out", "key.pem"]);
    let home = json(at, &["key", "new", "--home", "deep/home"]);
    assert_ne!(made["public_key"], home["public_key"]);
    assert_eq!(made["warnings"], serde_json::json!([]));
    assert!(string(&made["peer_id"]).starts_with("12D3KooW"));
    let before = std::fs::read(at.join("key.pem")).unwrap();
    fails(at, 1, &["key", "new", "--out", "key.pem"], &["key.pem", "not overwritten", "key show"]);
    fails(at, 1, &["key", "new", "--home", "deep/home"], &["deep/home/key.pem", "not overwritten"]);
    fails(at, 1, &["key", "new", "--out", "no/where/key.pem"], &["mkdir -p"]);
    fails(at, 2, &["key", "new"], &["--out"]);
    assert_eq!(std::fs::read(at.join("key.pem")).unwrap(), before);

    let shown = json(at, &["key", "show", "key.pem"]);
    assert_eq!((&shown["public_key"], &shown["peer_id"]), (&made["public_key"], &made["peer_id"]));
    assert_eq!(json(at, &["key", "show", "--home", "deep/home"])["public_key"], home["public_key"]);
    // the first key of RFC 8032, as openssl writes both halves of it
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    for (name, pem, is_private) in [("public.pem", public, false), ("openssl.pem", private, true)] {
        std::fs::write(at.join(name), pem).unwrap();
        let shown = json(at, &["key", "show", name]);
        assert_eq!(shown["public_key"], "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(shown["peer_id"], "12D3KooWQK1wnefoLrcVHbbnf5tLzbopUd3K3bFAoJpA7YJgL5pV");
        assert_eq!(shown["private"], is_private);
    }
    std::fs::write(at.join("text.pem"), "nothing").unwrap();
    std::fs::write(at.join("large.pem"), "x".repeat(5000)).unwrap();
    fails(at, 1, &["key", "show", "text.pem"], &["text.pem", "BEGIN PUBLIC KEY"]);
    fails(at, 1, &["key", "show", "large.pem"], &["large.pem", "5000 bytes"]);
    fails(at, 1, &["key", "show", "missing.pem"], &["missing.pem"]);

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| std::fs::metadata(at.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("key.pem"), mode("deep/home/key.pem"), mode("deep/home")), (0o600, 0o600, 0o700));
        std::fs::set_permissions(at.join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
        let shown = json(at, &["key", "show", "key.pem"]);
        assert!(string(&shown["warnings"][0]).contains("chmod 600 key.pem"), "{shown}");
    }
}

#[test]
fn consortiums_are_written_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    json(at, &["key", "new", "--out", "a.pem"]);
    json(at, &["key", "new", "--out", "b.pem"]);
    let new = ["consortium", "new", "--name", "Two", "--out", "c.toml"];
    let words = text(at, &new);
    assert!(words.contains("consortium add c.toml --name NAME"), "{words}");
    fails(at, 1, &new, &["c.toml", "not overwritten"]);
    fails(at, 1, &["consortium", "new", "--name", "Zwölf", "--out", "d.toml"], &["printable ASCII"]);
    assert!(!at.join("d.toml").exists());
    for command in [["consortium", "show", "c.toml"].as_slice(), &["consortium", "sign", "c.toml", "--key", "a.pem"]] {
        fails(at, 1, command, &["no members yet", "consortium add c.toml"]);
    }
    let add = |name: &'static str, key: &'static str| ["consortium", "add", "c.toml", "--name", name, "--key", key];
    let added = json(at, &add("a", "a.pem"));
    assert!(string(&added["quorum"]["in_words"]).contains("alone"), "{added}");
    fails(at, 1, &add("b", "a.pem"), &["share a key"]);
    fails(at, 1, &add("A", "b.pem"), &["two members are named"]);
    fails(at, 1, &add("b", "c.pem"), &["`c.pem` is neither a key"]);
    fails(at, 3, &["consortium", "sign", "c.toml", "--key", "b.pem"], &["b.pem", "signs for nobody", "`a`"]);

    let signed = json(at, &["consortium", "sign", "c.toml", "--key", "a.pem"]);
    assert_eq!((&signed["ratified"], string(&signed["signatures"])), (&Value::Bool(true), "c.signatures"));
    let added = json(at, &add("b", "b.pem"));
    assert!(string(&added["warnings"][0]).contains("all must sign again"), "{added}");
    assert!(string(&added["quorum"]["in_words"]).contains("no fault is tolerated"), "{added}");
    // the old list does not count, and is not thrown away either
    let shown = json(at, &["consortium", "show", "c.toml"]);
    assert!(string(&shown["warnings"][0]).contains("every member must sign the same document"), "{shown}");
    assert_eq!(shown["signed"], serde_json::json!([]));
    let sign = ["consortium", "sign", "c.toml", "--key", "b.pem"];
    fails(at, 3, &sign, &["c.signatures", "mv c.signatures c.signatures.old"]);
    std::fs::rename(at.join("c.signatures"), at.join("c.signatures.old")).unwrap();
    json(at, &sign);
    fails(at, 3, &["consortium", "sign", "c.toml", "--merge", "c.signatures.old"], &["c.signatures.old"]);
    let words = text(at, &["consortium", "show", "c.toml"]);
    assert!(words.contains("missing: `a`") && words.contains("sign c.toml --key KEY"), "{words}");

    fails(at, 1, &["consortium", "sign", "c.toml", "--home", "home"], &["home", "key new --home home"]);
    // a home belongs to one consortium
    json(at, &["key", "new", "--home", "home"]);
    json(at, &["consortium", "add", "c.toml", "--name", "h", "--key", "home/key.pem"]);
    fails(
        at,
        1,
        &["consortium", "sign", "--home", "home"],
        &["home/consortium.toml", "sign consortium.toml --home home"],
    );
    json(at, &["consortium", "sign", "c.toml", "--home", "home"]);
    let comment = std::fs::read_to_string(at.join("c.toml")).unwrap() + "\n# nothing else\n";
    std::fs::write(at.join("c.toml"), comment).unwrap();
    json(at, &["consortium", "sign", "c.toml", "--home", "home"]);
    std::fs::write(at.join("d.toml"), std::fs::read_to_string(at.join("c.toml")).unwrap().replace("Two", "2")).unwrap();
    fails(at, 1, &["consortium", "sign", "d.toml", "--home", "home"], &["a home belongs to one consortium"]);
}

#[test]
fn a_tampered_signature_is_refused_everywhere() {
    let folder = ratified();
    let at = folder.path();
    round(at, &[]);
    let list = at.join(signatures("north"));
    let mut bytes = std::fs::read(&list).unwrap();
    // the last byte of the last member's signature
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&list, &bytes).unwrap();
    let by_name = ["`west`", "does not verify"];
    fails(at, 3, &["consortium", "show", "--home", "north"], &by_name);
    fails(at, 3, &["consortium", "sign", "--home", "north"], &by_name);
    fails(at, 3, &["consortium", "sign", "--home", "south", "--merge", &signatures("north")], &by_name);
    fails(at, 3, &["round", "approve", "round.toml", "--home", "north", "--yes"], &by_name);
    assert!(!at.join("north/rounds").exists());
    assert_eq!(json(at, &["consortium", "show", "--home", "south"])["ratified"], true);
    for damaged in [&bytes[..bytes.len() - 1], b"fedprune", b""] {
        std::fs::write(&list, damaged).unwrap();
        fails(at, 1, &["consortium", "show", "--home", "north"], &["north/consortium.signatures"]);
    }
}

#[test]
fn approval_needs_a_complete_home_and_an_answer() {
    let folder = unsigned();
    let at = folder.path();
    round(at, &[]);
    let approve = |home: &'static str| ["round", "approve", "round.toml", "--home", home, "--yes"];
    fails(at, 1, &approve("nowhere"), &["nowhere/key.pem", "key new --home nowhere"]);
    fails(at, 1, &approve("north"), &["north/consortium.toml", "consortium sign consortium.toml --home north"]);
    json(at, &["consortium", "sign", "consortium.toml", "--home", "north"]);
    let missing = ["3 of 4", "`east`, `south`, `west`", "consortium sign --home north --merge"];
    fails(at, 3, &approve("north"), &missing);
    json(at, &["key", "new", "--home", "stranger"]);
    std::fs::copy(at.join("consortium.toml"), at.join("stranger/consortium.toml")).unwrap();
    fails(at, 3, &approve("stranger"), &["stranger/key.pem", "of no member", "`north`"]);
    for name in NAMES {
        json(at, &["consortium", "sign", "consortium.toml", "--home", name]);
    }
    let lists = NAMES.map(signatures);
    let mut merge = vec!["consortium", "sign", "--home", "north", "--merge"];
    merge.extend(lists.iter().map(String::as_str));
    json(at, &merge);
    // nobody is there to say yes
    fails(at, 4, &approve("north")[..5], &["--yes", "round show round.toml --home north"]);
    assert!(!at.join("north/rounds").exists());
    json(at, &approve("north"));

    // a round of other members, and one that contradicts itself
    let document = std::fs::read_to_string(at.join("round.toml")).unwrap();
    let write = |from: &str, to: &str| {
        assert!(document.contains(from), "{document}");
        std::fs::write(at.join("other.toml"), document.replace(from, to)).unwrap();
    };
    let other = ["round", "approve", "other.toml", "--home", "north", "--yes"];
    let consortium = document.lines().find(|line| line.starts_with("consortium = ")).unwrap();
    write(consortium, &format!("consortium = \"{}\"", "0".repeat(64)));
    fails(at, 1, &other, &["other.toml", "is a round of consortium 00000000"]);
    write("minimum_ballots = 3", "minimum_ballots = 9");
    fails(at, 1, &other, &["other.toml", "`minimum_ballots` is 9: use 1 to 4"]);
    write("minimum_ballots = 3", "minimum_balots = 3");
    fails(at, 1, &other, &["other.toml", "line ", "minimum_balots"]);
    // what may be, and is warned of
    write("minimum_ballots = 3", "minimum_ballots = 1");
    let approved = json(at, &other);
    assert!(approved["warnings"].to_string().contains("a mask of one ballot"), "{approved}");
    assert_eq!(std::fs::read_dir(at.join("north/rounds")).unwrap().count(), 2);
}

#[test]
fn another_model_is_told_by_what_differs() {
    let folder = ratified();
    let at = folder.path();
    let made = round(at, &[]);
    let copies: [(&str, &str, &[&str]); 3] = [
        ("tokenizer", "tokenizer.json", &["`tokenizer`"]),
        ("configuration", "config.json", &["`configuration`"]),
        ("weights", "model.safetensors", &["`base_model`"]),
    ];
    for (name, file, says) in copies {
        let model = at.join(name);
        copy_folder(Path::new(&bundled("model")), &model);
        let path = model.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        match name {
            "tokenizer" => bytes.push(b'\n'),
            "configuration" => {
                let mut config: Value = serde_json::from_slice(&bytes).unwrap();
                config["rms_norm_eps"] = serde_json::json!(0.5);
                bytes = serde_json::to_vec(&config).unwrap();
            }
            _ => *bytes.last_mut().unwrap() ^= 1,
        }
        std::fs::write(&path, bytes).unwrap();
        let others = ["`base_model`", "`layout`", "`tokenizer`", "`configuration`"];
        let others: Vec<&str> = others.into_iter().filter(|field| !says.contains(field)).collect();
        for command in ["approve", "show"] {
            let mut arguments = vec!["round", command, "round.toml", "--home", "north", "--model", name];
            if command == "approve" {
                arguments.push("--yes");
            }
            fails(at, 1, &arguments, &[says, &["is not the model of the round"]].concat());
            let message = String::from_utf8(run(at, &arguments).stderr).unwrap();
            assert!(others.iter().all(|field| !message.contains(field)), "{message}");
        }
    }
    assert!(!at.join("north/rounds").exists());
    // the same model in a folder of another name is the same model
    copy_folder(Path::new(&bundled("model")), &at.join("copy"));
    let shown = json(at, &["round", "show", "round.toml", "--consortium", "consortium.toml", "--model", "copy"]);
    assert_eq!(shown["id"], made["id"]);
}

#[test]
fn rounds_say_what_was_typed() {
    let folder = ratified();
    let at = folder.path();
    let model = bundled("model");
    let new = |more: &[&'static str]| -> Vec<String> {
        let arguments = ["round", "new", "--consortium", "consortium.toml", "--model", &model, "--out", "round.toml"];
        arguments.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    };
    let made = |more: &[&'static str]| {
        let arguments = new(more);
        let report = json(at, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        std::fs::remove_file(at.join("round.toml")).unwrap();
        report
    };
    let terms = made(&[])["terms"].clone();
    let expected = [
        ("pruner", "wanda"),
        ("local_group", "row"),
        ("global_group", "layer"),
        ("sparsity", "0.5"),
        ("strategy", "one-shot"),
        ("scaling", "none"),
        ("ballots", "auto"),
        ("tally", "every-peer"),
    ];
    for (field, value) in expected {
        assert_eq!(terms[field], value, "{field}");
    }
    let calibration = &terms["calibration"];
    assert_eq!((&calibration["sampling"], &calibration["seed"]), (&"random".into(), &"from-round".into()));
    let all = calibration["samples"].as_u64().unwrap() * calibration["window_tokens"].as_u64().unwrap();
    assert_eq!(calibration["minimum_calibration_tokens"].as_u64(), Some(all));

    let report = made(&[
        "--sparsity",
        "2:4",
        "--pruner",
        "ria",
        "--strategy",
        "iterative",
        "--scaling",
        "support",
        "--tally",
        "elected",
        "--ballots",
        "mask-only",
        "--minimum-ballots",
        "4",
        "--nsamples",
        "2",
        "--seqlen",
        "64",
        "--seed",
        "7",
        "--weight",
        "east=9",
        "--data-free",
        "block0.qkv,block1.down",
        "--minimum-calibration-tokens",
        "100",
        "--contribution-seconds",
        "5",
        "--abandon-seconds",
        "60",
        "--proposal-ms",
        "700",
        "--vote-ms",
        "300",
    ]);
    let terms = &report["terms"];
    let expected = [
        ("pruner", "ria"),
        ("local_group", "2:4"),
        ("global_group", "2:4"),
        ("sparsity", "0.5"),
        ("strategy", "iterative"),
        ("scaling", "support"),
        ("ballots", "mask-only"),
        ("tally", "elected"),
    ];
    for (field, value) in expected {
        assert_eq!(terms[field], value, "{field}");
    }
    assert_eq!(terms["data_free"], serde_json::json!(["block0.qkv", "block1.down"]));
    assert_eq!((&terms["calibration"]["seed"], &terms["tally_weights"]["east"]), (&7.into(), &9.into()));
    let timers = serde_json::json!({
        "contribution_ms": 5000, "proposal_ms": 700, "vote_ms": 300, "growth_ms": 2000, "abandon_ms": 60_000
    });
    assert_eq!(terms["timers"], timers);
    let blocks = json(at, &["model", "inspect", &model])["config"]["blocks"].clone();
    assert_eq!(report["heights"], blocks);
    let warnings = report["warnings"].to_string();
    for part in ["stall the round", "`east` has 9 of 12", "100 tokens", "support is worse"] {
        assert!(warnings.contains(part), "`{part}` is missing from {warnings}");
    }
    assert_eq!(made(&["--pruner", "magnitude"])["terms"]["calibration"], Value::Null);
    assert_eq!(made(&["--global-group", "1:4"])["terms"]["sparsity"], "0.25");
    let sequential = made(&["--sampling", "sequential"]);
    assert_eq!(sequential["terms"]["calibration"]["seed"], Value::Null);

    let refused: [(&[&'static str], i32, &[&str]); 13] = [
        (&["--sparsity", "0"], 1, &["prunes nothing"]),
        (&["--sparsity", "0.6", "--local-group", "2:4"], 1, &["fixes the sparsity"]),
        (&["--local-group", "2:4", "--global-group", "layer"], 1, &["allows only the global group"]),
        (&["--local-group", "3:7"], 1, &["multiple of 7"]),
        (&["--data-free", "block99.qkv"], 1, &["block99.qkv"]),
        (&["--data-free", "block0.q"], 2, &["block0.qkv"]),
        (&["--pruner", "magnitude", "--nsamples", "4"], 2, &["looks at no text", "--nsamples"]),
        (&["--seqlen", "100000"], 1, &["100000"]),
        (&["--sampling", "sequential", "--seed", "1"], 2, &["drop --seed"]),
        (&["--weight", "nobody=2"], 2, &["no member `nobody`", "`north`"]),
        (&["--weight", "north"], 2, &["NAME=N"]),
        (&["--minimum-ballots", "5"], 1, &["use 1 to 4"]),
        (&["--contribution-seconds", "60", "--abandon-seconds", "60"], 1, &["`abandon_ms` is 60000"]),
    ];
    for (more, code, says) in refused {
        let arguments = new(more);
        fails(at, code, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), says);
        assert!(!at.join("round.toml").exists(), "{more:?}");
    }
    std::fs::write(at.join("round.toml"), "precious").unwrap();
    let arguments = new(&[]);
    fails(at, 1, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), &["round.toml", "not overwritten"]);
    assert_eq!(std::fs::read(at.join("round.toml")).unwrap(), b"precious");
}

/// The sizes in the preview bound what `mask compute` writes for the same terms.
#[test]
fn ballots_are_no_larger_than_was_said() {
    let folder = ratified();
    let at = folder.path();
    let (model, data) = (bundled("model"), bundled("silos/austen_emma.txt"));
    for (name, more) in [
        ("norms", &["--pruner", "wanda"][..]),
        ("masks", &["--pruner", "wanda", "--ballots", "mask-only"]),
        ("magnitude", &["--pruner", "magnitude"]),
    ] {
        let windows: &[&str] = if name == "magnitude" { &[] } else { &["--nsamples", "4", "--seqlen", "64"] };
        round(at, &[more, windows].concat());
        let approve = ["round", "approve", "round.toml", "--home", "north", "--model", &model, "--yes"];
        let preview = json(at, &approve)["preview"].clone();
        std::fs::remove_file(at.join("round.toml")).unwrap();
        let mut compute = vec!["mask", "compute", "--model", &model, "--out", name];
        compute.extend(more.iter().chain(windows));
        if name != "magnitude" {
            compute.extend(["--data", &data]);
        }
        let ballot = json(at, &compute)["ballot_bytes"].as_u64().unwrap();
        let said = |field: &str| preview["ballot_bytes"][field].as_u64().unwrap();
        assert!(ballot <= said("at_most"), "{name}: {ballot} bytes, {preview}");
        assert!(said("about") <= ballot * 2 + 512 && ballot <= said("about") * 2 + 512, "{name}: {ballot}, {preview}");
        assert!(said("at_most") <= said("bitmaps"));
    }
}

/// Each of the three commands says how they are used together.
#[test]
fn help_has_the_sequence_to_copy() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["key", "consortium", "round"] {
        let help = text(folder.path(), &[command, "--help"]);
        for part in
            ["key new --home", "consortium new --name", "consortium add", "--merge", "round new", "round approve"]
        {
            assert!(help.contains(part), "`{part}` is missing from: {help}");
        }
    }
}
