//! What leaves a silo: seen before it does, approved, bound to what was seen, and refused where the site says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fedprune_tests::root;
use serde_json::Value;
use tempfile::TempDir;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_fedprune-under-test");
    Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output().expect("the program starts")
}

#[track_caller]
fn json(folder: &Path, arguments: &[&str]) -> Value {
    exits(folder, 0, arguments)
}

/// Runs what prints a report and exits with `code`.
#[track_caller]
fn exits(folder: &Path, code: i32, arguments: &[&str]) -> Value {
    let output = run(folder, &[arguments, &["--format", "json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "fedprune {}: {errors}", arguments.join(" "));
    serde_json::from_slice(&output.stdout).expect("a JSON report")
}

/// Runs what is refused by policy, and says all of `parts`.
#[track_caller]
fn refused(folder: &Path, arguments: &[&str], parts: &[&str]) {
    let output = run(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "fedprune {}: {message}", arguments.join(" "));
    for part in parts {
        assert!(message.contains(part), "fedprune {}: `{part}` is missing from: {message}", arguments.join(" "));
    }
}

fn bundled(path: &str) -> String {
    root().join("examples/bundled-model").join(path).to_str().expect("test paths are UTF-8").to_owned()
}

/// A consortium of one, whose node needs nobody, and a round of 16 windows of 64 tokens.
struct Site {
    folder: TempDir,
    model: String,
    round: String,
}

impl Site {
    fn new(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        json(at, &["consortium", "new", "--name", "A <b>clinic</b>", "--out", "consortium.toml"]);
        json(at, &["key", "new", "--home", "home"]);
        let member = ["consortium", "add", "consortium.toml", "--name", "clinic", "--key", "home/key.pem"];
        json(at, &[&member[..], &["--address", "/ip4/192.0.2.1/tcp/4001"]].concat());
        json(at, &["consortium", "sign", "consortium.toml", "--home", "home"]);
        let model = bundled("model");
        let made = [
            &["round", "new", "--consortium", "consortium.toml", "--model", &model, "--out", "round.toml"][..],
            &["--nsamples", "16", "--seqlen", "64", "--sampling", "sequential", "--bos", "none"],
            more,
        ]
        .concat();
        let round = json(at, &made)["id"].as_str().unwrap().to_owned();
        std::fs::copy(bundled("silos/austen_emma.txt"), at.join("notes.txt")).unwrap();
        Self { folder, model, round }
    }

    fn at(&self) -> &Path {
        self.folder.path()
    }

    fn folder(&self) -> PathBuf {
        self.at().join("home/rounds").join(&self.round)
    }

    fn preview<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let first = ["round", "preview", "round.toml", "--home", "home", "--model", &self.model, "--data", "notes.txt"];
        [&first[..], more].concat()
    }

    fn approve<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["round", "approve", "round.toml", "--home", "home", "--yes"][..], more].concat()
    }

    fn node(&self) -> Vec<&str> {
        let listen = ["--listen", "/ip4/127.0.0.1/tcp/0", "--linger", "0"];
        [&["node", "run", "--home", "home", "--model", &self.model, "--data", "notes.txt"][..], &listen].concat()
    }
}

/// Others would refuse it, and by then they would have it.
#[test]
fn a_ballot_that_is_none_of_the_round_is_not_signed_whoever_computed_it() {
    let site = Site::new(&[]);
    let at = site.at();
    json(at, &site.approve(&[]));
    let mask = ["mask", "compute", "--model", &site.model, "--data", "notes.txt", "--nsamples", "1", "--seqlen", "64"];
    let local = [&mask[..], &["--sparsity", "0.25", "--out", "other.ballot"]].concat();
    json(at, &local);
    let listen = ["--listen", "/ip4/127.0.0.1/tcp/0", "--linger", "0", "--ballot", "other.ballot"];
    let output = run(at, &[&["node", "run", "--home", "home", "--model", &site.model][..], &listen].concat());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("does not fit the round, was not signed and does not leave"), "{message}");
}

#[test]
fn what_was_seen_is_what_is_sent() {
    let site = Site::new(&[]);
    let at = site.at();
    let seen = json(at, &site.preview(&["--out", "page.html"]));
    assert_eq!(seen["documents"]["count"], 1);
    assert_eq!(seen["documents"]["calibration_tokens"], 1024);
    assert_eq!(seen["ballot"]["encodings"], serde_json::json!([["norms", 24]]));
    let outcome = &seen["attack"]["outcome"];
    assert_eq!((&outcome["kind"], &outcome["read_from"]), (&Value::from("attacked"), &Value::from("norms")));
    assert!(outcome["recovered"].as_u64() <= outcome["distinct"].as_u64() && outcome["distinct"].as_u64() > Some(100));
    let sizes: Vec<u64> =
        seen["attack"]["sizes"].as_array().unwrap().iter().map(|size| size["tokens"].as_u64().unwrap()).collect();
    assert_eq!(sizes[..3], [64, 512, 4096]);
    let words = outcome["words"].as_array().unwrap();
    assert!(words.iter().any(|word| word["right"] == true));

    // the record has numbers and no words; the same preview again is the same, and computes nothing anew
    let record = std::fs::read_to_string(site.folder().join("preview.json")).unwrap();
    assert!(!record.contains("word") && !record.contains("notes.txt"), "{record}");
    let made = std::fs::metadata(site.folder().join("contribution/height-0000.ballot")).unwrap().modified().unwrap();
    let again = json(at, &site.preview(&["--hide-words"]));
    assert_eq!((&again["digest"], &again["ballot"]["digest"]), (&seen["digest"], &seen["ballot"]["digest"]));
    assert!(again["attack"]["outcome"].get("words").is_none());
    let later = std::fs::metadata(site.folder().join("contribution/height-0000.ballot")).unwrap().modified().unwrap();
    assert_eq!(made, later);

    let approved = json(at, &site.approve(&["--person", "Ada", "--role", "officer"]));
    let approval = &approved["approval"];
    assert_eq!(approval["ballot"], seen["ballot"]["digest"]);
    assert_eq!(approval["preview"], seen["digest"]);
    assert_eq!(approval["calibration"], seen["documents"]["calibration"]);
    let log = json(at, &["round", "approvals", "--home", "home"]);
    assert_eq!(log["approvals"][0], *approval);

    let output = run(at, &site.node());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let status = json(at, &["node", "status", "--home", "home"]);
    assert_eq!(status["approval"]["ballot"], seen["ballot"]["digest"]);
    let body = site.folder().join("transcript");
    let shown = run(at, &["audit", "show", body.to_str().unwrap(), "--format", "json"]);
    let digest = seen["ballot"]["digest"].as_str().unwrap();
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains(digest),
        "the ballot in the transcript is the one that was seen"
    );
    let words = String::from_utf8(run(at, &["node", "status", "--home", "home"]).stdout).unwrap();
    for part in ["audit verify ", &format!(" --round-id {} --model DIR --pruned ", site.round), " --consortium-id "] {
        assert!(words.contains(part), "`{part}` is missing from: {words}");
    }

    // what is over is not seen before it is sent
    std::fs::copy(bundled("silos/melville_moby_dick.txt"), at.join("notes.txt")).unwrap();
    unchanged_by(&site, &[site.preview(&[]), site.approve(&["--person", "Eve"])], "this round is over here");
    assert_eq!(json(at, &site.approve(&[]))["already"], true);
}

/// What lies beside a round, none of which these commands change when they refuse.
#[track_caller]
fn unchanged_by(site: &Site, commands: &[Vec<&str>], why: &str) {
    let files = ["contribution/height-0000.ballot", "approval.json", "preview.json", "../../approvals.jsonl"];
    let read = || files.map(|file| std::fs::read(site.folder().join(file)).ok());
    let before = read();
    for command in commands {
        refused(site.at(), command, &[why]);
    }
    assert!(before == read(), "something was written");
}

#[test]
fn nothing_takes_the_place_of_a_signed_ballot() {
    let site = Site::new(&["--strategy", "iterative"]);
    let at = site.at();
    let seen = json(at, &site.preview(&[]));
    json(at, &site.approve(&[]));
    let died = run(at, &[&site.node()[..], &["--fail-at", "settled-written"]].concat());
    assert_eq!(died.status.code(), None, "{}", String::from_utf8_lossy(&died.stderr));
    let signed = format!("already signed: {}", seen["ballot"]["digest"].as_str().unwrap());
    unchanged_by(&site, &[site.preview(&[])], &signed);
    // who approves that very ballot may still be said
    let approved = json(at, &site.approve(&["--person", "Ada"]));
    assert_eq!(approved["approval"]["ballot"], seen["ballot"]["digest"]);
    std::fs::remove_file(site.folder().join("preview.json")).unwrap();
    unchanged_by(&site, &[site.approve(&["--person", "Eve"])], &signed);
    let done = run(at, &site.node());
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_refused_ballot_does_not_stay_where_it_was_computed() {
    let site = Site::new(&[]);
    let at = site.at();
    json(at, &site.preview(&[]));
    json(at, &site.approve(&[]));
    let notes = std::fs::read(at.join("notes.txt")).unwrap();
    let ballot = site.folder().join("contribution/height-0000.ballot");
    std::fs::remove_file(&ballot).unwrap();
    std::fs::copy(bundled("silos/melville_moby_dick.txt"), at.join("notes.txt")).unwrap();
    refused(at, &site.node(), &["`approval` names ballot", "text, model or settings are not those of the preview"]);
    assert!(!ballot.exists());
    std::fs::write(at.join("notes.txt"), notes).unwrap();
    let done = run(at, &site.node());
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_page_loads_nothing_runs_nothing_and_is_its_owners() {
    let site = Site::new(&[]);
    std::fs::create_dir(site.at().join("notes")).unwrap();
    // a name that would be markup, a text that would be
    let name = "<img src=x onerror=alert(1)>&\"'.txt";
    let text = std::fs::read_to_string(site.at().join("notes.txt")).unwrap();
    std::fs::write(site.at().join("notes").join(name), format!("<script>alert(1)</script> {text}")).unwrap();
    let arguments = ["round", "preview", "round.toml", "--home", "home", "--model", &site.model, "--data", "notes"];
    json(site.at(), &[&arguments[..], &["--out", "page.html"]].concat());
    let page = std::fs::read_to_string(site.at().join("page.html")).unwrap();
    for forbidden in ["<script", "<img", "http://", "https://", "src=x onerror=alert(1)>", "style=", "<b>clinic"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("default-src 'none'; style-src 'sha256-"));
    assert!(
        page.contains("&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#39;.txt") && page.contains("A &lt;b&gt;clinic")
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(site.at().join("page.html")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    json(site.at(), &[&arguments[..], &["--hide-words", "--out", "hidden.html"]].concat());
    let hidden = std::fs::read_to_string(site.at().join("hidden.html")).unwrap();
    assert!(hidden.contains("The words are hidden") && !hidden.contains("class=\"chip beyond\""));
}

#[test]
fn another_text_than_the_one_approved_does_not_leave() {
    let site = Site::new(&[]);
    json(site.at(), &site.preview(&[]));
    json(site.at(), &site.approve(&[]));
    let other = std::fs::read(bundled("silos/speeches_1945_1953.txt")).unwrap();
    std::fs::write(site.at().join("notes.txt"), other).unwrap();
    std::fs::remove_dir_all(site.folder().join("contribution")).unwrap();
    refused(site.at(), &site.node(), &["refused", "`approval` names ballot", "make another preview"]);
    assert!(site.folder().join("wal").exists(), "the node had begun");
    // nothing was signed, so that after a preview of the new text and its approval it leaves
    let seen = json(site.at(), &site.preview(&[]));
    let approved = json(site.at(), &site.approve(&[]));
    assert_eq!(approved["approval"]["ballot"], seen["ballot"]["digest"]);
    let output = run(site.at(), &site.node());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let log = json(site.at(), &["round", "approvals", "--home", "home"]);
    assert_eq!(log["approvals"].as_array().unwrap().len(), 2);
}

/// Of an iterative round nobody can see more than the first ballot: the others are bound to the text that was approved,
/// from the second on, whatever lies where the first one was.
#[test]
fn later_ballots_of_an_iterative_round_are_of_the_text_that_was_approved() {
    let site = Site::new(&["--strategy", "iterative"]);
    let at = site.at();
    let seen = json(at, &site.preview(&[]));
    let text = seen["documents"]["calibration"].as_str().expect("a digest").to_owned();
    let covers = seen["approval_covers"].as_array().expect("what it binds");
    assert_eq!(covers.len(), 2, "{covers:?}");
    let (first, later) = (covers[0].as_str().unwrap(), covers[1].as_str().unwrap());
    assert!(first.contains(seen["ballot"]["digest"].as_str().unwrap()), "{first}");
    assert!(later.contains(&text) && later.contains("nobody can see it now"), "{later}");
    let approved = json(at, &site.approve(&[]));
    assert_eq!(approved["approval"]["calibration"], text.as_str());

    // it has agreed on the first block when the power fails, and the text is another when it comes back
    let died = run(at, &[&site.node()[..], &["--fail-at", "settled-written"]].concat());
    assert_eq!(died.status.code(), None, "{}", String::from_utf8_lossy(&died.stderr));
    let notes = std::fs::read(at.join("notes.txt")).unwrap();
    std::fs::copy(bundled("silos/melville_moby_dick.txt"), at.join("notes.txt")).unwrap();
    let parts = ["`approval` names the text (token windows", &text[..8], "the ballot of height 1 is made from another"];
    refused(at, &site.node(), &parts);
    // again, with what it computed meanwhile at hand
    refused(at, &site.node(), &parts);
    // with the text that was approved it goes on, and makes anew what was made of the other
    std::fs::write(at.join("notes.txt"), notes).unwrap();
    let done = run(at, &site.node());
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let status = json(at, &["node", "status", "--home", "home"]);
    assert_eq!((&status["height"], &status["heights"]), (&Value::from(6), &Value::from(6)));
}

#[test]
fn an_approval_that_was_changed_stops_the_node() {
    let site = Site::new(&[]);
    json(site.at(), &site.preview(&[]));
    json(site.at(), &site.approve(&["--person", "Ada"]));
    let path = site.folder().join("approval.json");
    let changed = std::fs::read_to_string(&path).unwrap().replace("Ada", "Eve");
    std::fs::write(&path, changed).unwrap();
    let output = run(site.at(), &site.node());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("is not signed by this member's key"), "{message}");
    let log = site.at().join("home/approvals.jsonl");
    let changed = std::fs::read_to_string(&log).unwrap().replace("Ada", "Eve");
    std::fs::write(&log, changed).unwrap();
    let output = run(site.at(), &["round", "approvals", "--home", "home"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1 of"));
}

#[test]
fn a_policy_refuses_by_name_and_line_at_every_step() {
    let site = Site::new(&[]);
    let at = site.at();
    let policy = |text: &str| std::fs::write(at.join("home/policy.toml"), text).unwrap();
    policy("# ours\nrequired_data_free = [\"block0.qkv\"]\nminimum_calibration_tokens = 65536\n");
    for arguments in [site.preview(&[]), site.approve(&[])] {
        refused(
            at,
            &arguments,
            &[
                "home/policy.toml",
                "`required_data_free` (line 2) requires block0.qkv",
                "`minimum_calibration_tokens` (line 3)",
            ],
        );
    }
    assert!(!site.folder().exists(), "nothing was read or written");

    policy("require_approval = true\nrequire_person = true\n");
    refused(at, &site.approve(&[]), &["`require_approval` (line 1)", "round preview"]);
    json(at, &site.preview(&[]));
    refused(at, &site.approve(&[]), &["`require_person` (line 2)"]);
    // an approval of before the policy is not enough
    policy("");
    std::fs::rename(site.folder().join("preview.json"), at.join("kept")).unwrap();
    json(at, &site.approve(&[]));
    policy("require_approval = true\nrequire_person = true\n");
    refused(at, &site.node(), &["`require_approval` (line 1)", "names no ballot", "`require_person` (line 2)"]);
    std::fs::rename(at.join("kept"), site.folder().join("preview.json")).unwrap();
    json(at, &site.approve(&["--person", "Ada", "--role", "officer"]));

    policy("allowed_encodings = [\"bitmap\"]\n");
    let seen = exits(at, 4, &site.preview(&["--out", "page.html"]));
    assert_eq!(seen["policy"]["refused"][0]["rule"], "allowed_encodings");
    assert!(std::fs::read_to_string(at.join("page.html")).unwrap().contains("Refused by this site"));
    refused(at, &site.node(), &["`allowed_encodings` (line 1) allows bitmap, and the ballot holds norms"]);
    policy("maximum_recovered_percent = 0\n");
    refused(at, &site.node(), &["`maximum_recovered_percent` (line 1) allows 0 %, and the preview recovered"]);
    // a policy elsewhere, and one that is none
    policy("");
    std::fs::write(at.join("strict.toml"), "maximum_ballot_bytes = 10\n").unwrap();
    refused(
        at,
        &[&site.node()[..], &["--policy", "strict.toml"]].concat(),
        &["`maximum_ballot_bytes` (line 1) allows 10"],
    );
    policy("maximum_ballot_byte = 10\n");
    let output = run(at, &site.node());
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1: unknown field `maximum_ballot_byte`"));
    assert_eq!(output.status.code(), Some(2));
    policy("require_approval = true\nrequire_person = true\n");
    json(at, &site.approve(&["--person", "Ada", "--role", "officer"]));
    let output = run(at, &site.node());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_round_that_withholds_the_vote_leaves_this_attack_nothing() {
    let site = Site::new(&["--data-free", "block0.qkv", "--ballots", "mask-only", "--local-group", "layer"]);
    let seen = json(site.at(), &site.preview(&[]));
    assert_eq!(seen["attack"]["outcome"], serde_json::json!({"kind": "withheld"}));
    assert_eq!(seen["attack"]["withheld"], true);
    // of RIA, equal norms are no magnitude: the vote is carried as its mask, and every member checks that it is that
    let ria = Site::new(&["--pruner", "ria", "--data-free", "block0.qkv"]);
    let seen = json(ria.at(), &ria.preview(&[]));
    assert_eq!(seen["attack"]["outcome"], serde_json::json!({"kind": "withheld"}));
    assert_eq!(seen["ballot"]["encodings"], serde_json::json!([["norms", 23], ["bitmap", 1]]));
    json(ria.at(), &ria.approve(&[]));
    let output = run(ria.at(), &ria.node());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let again = Site::new(&["--ballots", "mask-only", "--local-group", "layer"]);
    let seen = json(again.at(), &again.preview(&[]));
    assert_eq!(seen["attack"]["outcome"]["read_from"], "masks");
    let iterative = Site::new(&["--strategy", "iterative"]);
    let seen = json(iterative.at(), &iterative.preview(&[]));
    assert_eq!((&seen["ballot"]["height"], &seen["ballot"]["heights"]), (&Value::from(0), &Value::from(6)));
    assert_eq!(seen["attack"]["outcome"]["kind"], "attacked");
    let made = ["round", "new", "--consortium", "consortium.toml", "--model", &again.model, "--pruner", "magnitude"];
    json(again.at(), &[&made[..], &["--out", "free.toml"]].concat());
    let seen = json(again.at(), &["round", "preview", "free.toml", "--home", "home", "--model", &again.model]);
    assert_eq!((&seen["attack"]["outcome"]["kind"], seen.get("documents")), (&Value::from("no-text"), None));
}
