//! `fedprune model fetch` against a hub on this machine: what is fetched, what is refused and what is left on the disk.

#[path = "fetch/place.rs"]
mod place;
#[path = "fetch/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fedprune_tests::{Fixture, fixtures};
use place::{Place, WEIGHTS, files, nobody, program, said};
use serde_json::{Value, json};
use server::{COMMIT, Sends, Server};

/// Changes what is listed of one file.
fn relist(list: &mut Value, file: &str, change: impl Fn(&mut Value)) {
    let siblings = list["siblings"].as_array_mut().expect("siblings");
    siblings.iter_mut().filter(|sibling| sibling["rfilename"] == file).for_each(change);
}

#[test]
fn what_is_needed_comes_and_nothing_else() {
    let place = Place::new();
    let report = place.fetches();
    let model = place.path("model");
    let wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let mut expected: Vec<&str> = wanted.to_vec();
    expected.insert(1, "fetched-from.json");
    assert_eq!(files(&model), expected);
    assert_eq!(files(place.folder.path()), ["model"], "nothing lies beside it");
    for name in wanted {
        assert_eq!(fs::read(model.join(name)).unwrap(), place.server.content().files[name], "{name}");
    }
    // the branch is asked for once; everything else is of the commit that it was then
    let asked = place.server.asked();
    assert_eq!(asked[0], "/api/models/owner/model/revision/main?blobs=true");
    assert_eq!(asked.len(), 1 + wanted.len(), "{asked:?}");
    for line in &asked[1..] {
        assert!(line.starts_with(&format!("/owner/model/resolve/{COMMIT}/")), "{line}");
    }

    // and says so, beside the model and on the way
    let from: Value = serde_json::from_slice(&fs::read(model.join("fetched-from.json")).unwrap()).unwrap();
    assert_eq!(
        (&from["repository"], &from["revision"], &from["commit"]),
        (&json!("owner/model"), &json!("main"), &json!(COMMIT))
    );
    assert_eq!((&from["licence"], &from["hub"]), (&json!("mit"), &json!(place.server.address)));
    assert_eq!(from["files"].as_array().unwrap().len(), wanted.len());
    for key in ["commit", "files", "content_digest", "licence"] {
        assert_eq!(report[key], from[key], "{key}");
    }
    let inspected = program().args(["model", "inspect", "--format", "json"]).arg(&model).output().expect("it starts");
    let inspected: Value = serde_json::from_slice(&inspected.stdout).expect("JSON");
    assert_eq!(inspected["content_digest"], from["content_digest"], "{inspected}");

    // it is there now, and a commit is a revision, too
    let output = place.command(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("exists and is not overwritten"));
    let output = place.command(&["--revision", COMMIT, "--out", "again/"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(text.contains(COMMIT) && text.contains(&format!("--revision {COMMIT}")), "{text}");
    assert_eq!(files(&place.path("again")), expected);
}

#[test]
fn weights_in_several_files_are_those_that_the_index_names() {
    let furnished = tempfile::tempdir().unwrap();
    Fixture::open(fixtures().join("mistral")).furnish(furnished.path());
    let place = Place::of(&furnished.path().join("model"));
    place.server.content().files.insert("model-extra.safetensors".to_owned(), vec![0; 9]);
    let report = place.fetches();
    let names: Vec<&str> =
        report["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".safetensors")).count(), 4, "{names:?}");
    assert!(!names.contains(&"model-extra.safetensors"));

    // names that lead elsewhere, or to what is not listed
    fs::rename(place.path("model"), place.path("good")).unwrap();
    for bad in
        ["../../evil.safetensors", "/tmp/evil.safetensors", ".evil.safetensors", "evil.bin", "absent.safetensors"]
    {
        place.clean();
        let index = json!({ "metadata": {}, "weight_map": { "model.norm.weight": bad } }).to_string();
        let mut content = place.server.content();
        content.files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
        content.files.insert("../../evil.safetensors".to_owned(), vec![0; 9]);
        content.files.insert("/tmp/evil.safetensors".to_owned(), vec![0; 9]);
        drop(content);
        place.fails(3, &["index of the weights cannot be used", bad]);
        assert!(!place.server.asked().iter().any(|asked| asked.contains("evil")));
    }
}

#[test]
fn a_transfer_that_broke_off_goes_on() {
    let place = Place::new();
    place.server.sends(WEIGHTS, Sends::CutOff(100_000));
    let length = place.weights().len();
    // five answers, each of them cut off
    place.fails(3, &["`model.safetensors` broke off after 500000 of", "the same command goes on"]);
    assert_eq!(place.growing()["model.safetensors.part"], 500_000);
    let ranges: Vec<String> = place.server.asked().into_iter().filter(|asked| asked.contains(WEIGHTS)).collect();
    assert_eq!(ranges.len(), 5);
    assert!(ranges[4].ends_with("bytes=400000-"), "{ranges:?}");

    place.server.sends(WEIGHTS, Sends::Well);
    let report = place.fetches();
    let asked = place.server.asked();
    assert!(asked.iter().any(|asked| asked.ends_with("bytes=500000-")), "{asked:?}");
    // what was whole before is read again and not fetched again
    assert!(!asked.iter().any(|asked| asked.contains("tokenizer")), "{asked:?}");
    assert!(report["resumed_bytes"].as_u64().unwrap() > 500_000, "{report}");
    assert_eq!(fs::read(place.path("model").join(WEIGHTS)).unwrap().len(), length);

    // what comes far each time is not given up
    fs::remove_dir_all(place.path("model")).unwrap();
    place.server.sends(WEIGHTS, Sends::CutOff(1 << 20));
    assert_eq!(place.fetches()["resumed_bytes"], 0);
    assert_eq!(fs::read(place.path("model").join(WEIGHTS)).unwrap(), place.weights());
}

#[test]
fn a_hub_that_knows_no_parts_sends_all_of_it_again() {
    let place = Place::new();
    place.server.sends(WEIGHTS, Sends::CutOff(100_000));
    place.fails(3, &["broke off"]);
    place.server.sends(WEIGHTS, Sends::Whole);
    place.fetches();
    assert_eq!(fs::read(place.path("model").join(WEIGHTS)).unwrap(), place.weights());
}

/// What was left of an earlier run is compared like everything else.
#[test]
fn a_part_that_was_changed_meanwhile_is_found_out() {
    let place = Place::new();
    place.server.sends(WEIGHTS, Sends::CutOff(100_000));
    place.fails(3, &["broke off"]);
    let part = place.path("model.fetching/model.safetensors.part");
    let mut bytes = fs::read(&part).unwrap();
    bytes[17] ^= 1;
    fs::write(&part, &bytes).unwrap();
    place.server.sends(WEIGHTS, Sends::Well);
    place.fails(3, &["is not what the hub lists: its SHA-256 is", "it was removed"]);
    assert!(!place.growing().keys().any(|name| name.starts_with(WEIGHTS)));
    // longer than it may be
    fs::write(&part, vec![0; place.weights().len() + 1]).unwrap();
    place.fetches();
    assert_eq!(fs::read(place.path("model").join(WEIGHTS)).unwrap(), place.weights());
}

#[test]
fn what_is_sent_must_be_what_is_listed() {
    let place = Place::new();
    let weights = place.weights();
    let longer = [&weights[..], b"more"].concat();
    let length = weights.len();
    let listed = format!("has {length} bytes as the hub lists it");
    let huge = u64::MAX.to_string();
    let cases: Vec<(Sends, Vec<&str>)> = vec![
        (Sends::Announces(length as u64 - 1), vec![&listed, "it is refused"]),
        (Sends::Announces(length as u64 + 1), vec![&listed, "it is refused"]),
        (Sends::Announces(u64::MAX), vec![&listed, &huge]),
        (Sends::Chunked(longer), vec![&listed, "more than"]),
        (Sends::Compressed, vec![&listed, "compressed"]),
        (Sends::Damaged, vec!["is not what the hub lists: its SHA-256 is", "it was removed"]),
        (Sends::Status(404), vec!["model.safetensors` answers with status 404"]),
        (Sends::Status(204), vec!["status 204"]),
    ];
    for (how, parts) in cases {
        place.clean();
        place.server.sends(WEIGHTS, how.clone());
        let message = place.fails(3, &parts);
        let written = place.growing().get("model.safetensors.part").copied().unwrap_or(0);
        // never more than is listed, and nothing where the head says that it is another
        let most = if matches!(how, Sends::Chunked(_)) { length as u64 } else { 0 };
        assert!(written <= most, "{how:?}: {written} bytes; {message}");
    }
    // small files, which git stores, likewise
    place.clean();
    place.server.sends("tokenizer_config.json", Sends::Damaged);
    place.fails(3, &["`tokenizer_config.json` is not what the hub lists: its SHA-1 as git takes it is"]);
    // the same length in chunks is fine, and so is nothing at all said of its length
    place.clean();
    place.server.sends(WEIGHTS, Sends::Chunked(weights));
    place.fetches();
}

#[test]
fn a_part_of_another_place_is_refused() {
    let place = Place::new();
    place.server.sends(WEIGHTS, Sends::CutOff(100_000));
    place.fails(3, &["broke off"]);
    place.server.sends(WEIGHTS, Sends::WrongRange);
    place.fails(3, &["where bytes 500000 to", "it is refused"]);
}

#[test]
fn only_what_has_a_sha256_may_come_from_elsewhere_and_no_token_goes_there() {
    let place = Place::new();
    let elsewhere = Server::with(place.server.content().files.clone());
    place.server.sends(WEIGHTS, Sends::SentOn(format!("{}/cdn/{WEIGHTS}", elsewhere.address)));
    let output = place.command(&[]).env("HF_TOKEN", "hf_secret").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(place.server.asked().iter().all(|asked| asked.ends_with("Bearer hf_secret")));
    assert_eq!(elsewhere.asked(), [format!("/cdn/{WEIGHTS}")]);
    assert!(!said(&output).contains("hf_secret") && !String::from_utf8_lossy(&output.stdout).contains("hf_secret"));

    fs::remove_dir_all(place.path("model")).unwrap();
    elsewhere.sends(WEIGHTS, Sends::Damaged);
    place.fails(3, &["is not what the hub lists"]);
    for to in [format!("{}/cdn/config.json", elsewhere.address), "https://192.0.2.1/config.json".to_owned()] {
        place.clean();
        place.server.sends("config.json", Sends::SentOn(to));
        place.fails(3, &["is sent on to", "another host", "nothing was written"]);
    }
    for (to, why) in
        [("file:///etc/passwd", "no address of HTTP"), ("gopher://x/", "no address of HTTP"), ("", "no address")]
    {
        place.clean();
        place.server.sends(WEIGHTS, Sends::SentOn(to.to_owned()));
        place.fails(3, &["is sent on to", why]);
    }
    place.clean();
    place.server.sends(WEIGHTS, Sends::SentOn(format!("/owner/model/resolve/{COMMIT}/{WEIGHTS}")));
    place.fails(3, &["again and again"]);
}

#[test]
fn small_files_may_be_elsewhere_on_the_hub_itself() {
    let place = Place::new();
    let config = place.server.content().files["config.json"].clone();
    place.server.content().files.insert("cached.json".to_owned(), config);
    place.server.sends("config.json", Sends::SentOn("/cdn/cached.json".to_owned()));
    place.fetches();
}

#[test]
fn who_is_not_there_or_has_no_such_model_is_named() {
    let place = Place::new();
    let answers = |status: u16, head: &str, body: &[u8]| {
        place.clean();
        place.server.content().instead = Some((status, head.to_owned(), body.to_vec()));
    };
    answers(404, "x-error-code: RepoNotFound\r\n", b"{}");
    place.fails(3, &["has no model `owner/model`", "see that the name is right", "HF_TOKEN"]);
    answers(401, "", b"{}");
    place.fails(3, &["has no model `owner/model`"]);
    answers(404, "x-error-code: RevisionNotFound\r\n", b"{}");
    place.fails(3, &["`owner/model` has no revision `main`"]);
    answers(403, "x-error-code: GatedRepo\r\n", b"{}");
    place.fails(3, &["only to those who accepted its terms", "HF_TOKEN"]);
    answers(307, "Location: /api/models/other/name\r\n", b"");
    place.fails(3, &["`owner/model` has moved", "/api/models/other/name", "new name"]);
    answers(503, "", b"");
    place.fails(3, &["status 503", "try again later"]);
    answers(200, "", b"<html>a portal that wants a password</html>");
    place.fails(3, &["list of files cannot be used"]);
    answers(200, "Content-Length: 99999999999\r\n", b"");
    place.fails(3, &["more than the 16777216 bytes"]);
    answers(200, "Content-Length: 500\r\n", b"{}");
    place.fails(3, &["cannot reach"]);
    assert_eq!(place.growing(), BTreeMap::new(), "nothing was begun");

    // nobody there
    let output = place.command_at(&format!("http://{}", nobody()), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    for part in ["cannot reach", "refused", "offline", "HTTPS_PROXY", "copy the folder"] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
}

#[test]
fn a_proxy_is_asked_about_other_machines_alone() {
    let place = Place::new();
    let proxy = Server::with(BTreeMap::new());
    for name in ["ALL_PROXY", "HTTPS_PROXY", "http_proxy"] {
        for address in [proxy.address.clone(), proxy.address.replace("http:", "socks5:")] {
            let mut command = place.command(&[]);
            let output = command.env(name, &address).env("HF_TOKEN", "hf_secret").output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{name}={address}: {}", said(&output));
            fs::remove_dir_all(place.path("model")).unwrap();
        }
    }
    assert_eq!(proxy.asked(), Vec::<String>::new());

    // nobody there, and nothing is looked up or asked past it
    let hub = |proxy: String| place.command_at("https://hub.example", &[]).env("HTTPS_PROXY", proxy).output().unwrap();
    let output = hub(format!("http://{}", nobody()));
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("cannot reach `https://hub.example`"), "{}", said(&output));
    // one of a kind that cannot be used
    let output = hub("socks5h://user:secret@127.0.0.1:1".to_owned());
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    for part in ["`https://hub.example` is behind a SOCKS proxy", "HTTPS_PROXY", "HTTP proxies only", "NO_PROXY"] {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    assert!(!said(&output).contains("secret"), "{}", said(&output));
}

#[test]
fn who_has_too_much_to_do_is_asked_again_and_told_as_that() {
    let place = Place::new();
    for (status, after) in [(503, "0"), (429, "1")] {
        place.clean();
        place.server.sends(WEIGHTS, Sends::Busy(status, after));
        let started = Instant::now();
        let message = place.fails(3, &[&format!("answers with status {status}"), "the same command goes on"]);
        assert!(!message.contains("offline"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(30), "it waits for as long as it is told to");
        assert_eq!(place.server.asked().iter().filter(|asked| asked.contains(WEIGHTS)).count(), 5);
    }
    place.server.sends(WEIGHTS, Sends::Well);
    assert!(place.fetches()["resumed_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn who_keeps_the_files_of_a_hub_is_told_apart_from_it() {
    let place = Place::new();
    let elsewhere = Server::with(place.server.content().files.clone());
    let to = format!("{}/cdn/{WEIGHTS}?Signature=secret", elsewhere.address);
    for status in [401, 403, 404] {
        place.clean();
        place.server.sends(WEIGHTS, Sends::SentOn(to.clone()));
        elsewhere.sends(WEIGHTS, Sends::Status(status));
        let told = format!("`{WEIGHTS}` comes from `{}`", elsewhere.address);
        let message = place.fails(3, &[&told, &format!("status {status}")]);
        for part in ["terms", "has no model", "secret"] {
            assert!(!message.contains(part), "{message}");
        }
    }
    place.clean();
    place.server.sends(WEIGHTS, Sends::Status(403));
    place.fails(3, &["only to those who accepted its terms"]);
    // not there at all
    place.clean();
    let nobody = format!("http://{}", nobody());
    place.server.sends(WEIGHTS, Sends::SentOn(format!("{nobody}/cdn/{WEIGHTS}")));
    place.fails(3, &[&format!("cannot reach `{nobody}`")]);
}

#[test]
fn what_is_typed_wrongly_is_usage() {
    let place = Place::new();
    let fetch = |arguments: &[&str], token: &str| {
        let output = program()
            .args(["model", "fetch"])
            .args(arguments)
            .current_dir(place.folder.path())
            .env("HF_TOKEN", token)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        said(&output)
    };
    assert!(fetch(&["../../etc"], "").contains("OWNER/NAME"));
    assert!(fetch(&["a/b/c"], "").contains("OWNER/NAME"));
    assert!(fetch(&["a/b", "--revision", "../x"], "").contains("no revision"));
    assert!(fetch(&["a/b", "--endpoint", "ftp://x"], "").contains("no address of a hub"));
    for token in ["", "hf_secret"] {
        let said = fetch(&["a/b", "--endpoint", "http://192.0.2.1"], token);
        assert!(said.contains("`http://192.0.2.1` is not encrypted") && !said.contains("hf_secret"), "{said}");
    }
    assert_eq!(files(place.folder.path()), Vec::<String>::new());
}

#[test]
fn sizes_are_looked_at_before_the_disk_is_used() {
    let place = Place::new();
    place.server.lists(|list| {
        relist(list, WEIGHTS, |file| {
            file["size"] = json!(1u64 << 60);
            file["lfs"]["size"] = json!(1u64 << 60);
        });
    });
    place.fails(1, &["has room for", "and 1152921504606846976 are still to come"]);
    assert!(!place.server.asked().iter().any(|asked| asked.contains(WEIGHTS)));
    for (file, bytes) in [("config.json", 1u64 << 30), ("tokenizer.json", u64::MAX)] {
        place.clean();
        place.server.lists(move |list| {
            relist(list, file, |file| {
                file["size"] = json!(bytes);
                file["lfs"] = Value::Null;
            });
        });
        place.fails(3, &[&format!("`{file}` has {bytes} bytes, more than the")]);
        assert_eq!(place.growing(), BTreeMap::new());
    }
    // what has neither size nor digest is as if it were not there
    place.clean();
    place.server.lists(|list| relist(list, WEIGHTS, |file| file["lfs"] = json!({ "sha256": "no digest" })));
    place.fails(3, &["has no `model.safetensors`", COMMIT]);
}

#[test]
fn a_model_of_another_kind_is_known_before_its_weights_are_fetched() {
    let place = Place::new();
    let config = br#"{ "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"] }"#.to_vec();
    place.server.content().files.insert("config.json".to_owned(), config);
    place.fails(1, &["`owner/model` is not fetched", "gpt2"]);
    let asked = place.server.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    // and weights that are none, afterwards
    let place = Place::new();
    let content = vec![0; 200_000];
    place.server.content().files.insert(WEIGHTS.to_owned(), content);
    place.fails(1, &["came as the hub lists it, and is no model that can be used here", "model.fetching"]);
}

#[test]
fn two_commits_are_never_mixed() {
    let place = Place::new();
    place.server.sends(WEIGHTS, Sends::CutOff(100_000));
    place.fails(3, &["broke off"]);
    place.server.sends(WEIGHTS, Sends::Well);
    let other = "f".repeat(40);
    let newer = other.clone();
    place.server.lists(move |list| list["sha"] = json!(newer));
    place.fails(
        1,
        &["holds a part of `owner/model` at commit", COMMIT, &other, &format!("--revision {COMMIT}"), "rm -r"],
    );
    place.server.lists(|_| ());
    place.fetches();
    // a folder that somebody else made
    fs::rename(place.path("model"), place.path("first")).unwrap();
    fs::create_dir(place.path("model.fetching")).unwrap();
    fs::write(place.path("model.fetching/precious"), "x").unwrap();
    place.fails(1, &["was not made by this command"]);
    assert_eq!(files(&place.path("model.fetching")), ["precious"]);
}

#[test]
fn a_commit_that_is_asked_for_is_the_one_that_is_listed() {
    let place = Place::new();
    let other = "f".repeat(40);
    let output = place.command(&["--revision", &other]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let told = format!("the list of `owner/model` is of commit {COMMIT}, and {other} was asked for");
    assert!(said(&output).contains(&told), "{}", said(&output));
    assert_eq!(files(place.folder.path()), Vec::<String>::new());
    // who has only part of one asks for a branch or tag of that name, or is told that there is none
    let output = place.command(&["--revision", &COMMIT[..7]]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// What an earlier run left, of another mirror's list, is not part of the model.
#[test]
fn leftovers_do_not_get_the_name_of_the_model() {
    let furnished = tempfile::tempdir().unwrap();
    Fixture::open(fixtures().join("mistral")).furnish(furnished.path());
    let place = Place::of(&furnished.path().join("model"));
    let names: Vec<String> = place.server.content().files.keys().cloned().collect();
    let shard = names.iter().find(|name| name.ends_with(".safetensors")).expect("weights in several files");
    place.server.sends(shard, Sends::Status(404));
    place.fails(3, &["answers with status 404"]);
    place.server.sends(shard, Sends::Well);
    let growing = place.path("model.fetching");
    for name in [WEIGHTS, "model.safetensors.part", "chat_template.jinja", "fetched-from.json.new"] {
        fs::write(growing.join(name), "of another list").unwrap();
    }
    fs::write(place.path("precious"), "x").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(place.path("precious"), growing.join("vocab.json")).unwrap();

    // what it takes to make one is not removed without being asked
    fs::create_dir(growing.join("folder")).unwrap();
    fs::write(growing.join("folder/precious"), "x").unwrap();
    place.fails(1, &["a folder, which this command does not make", "rm -r"]);
    assert!(growing.join("folder/precious").exists() && growing.join(WEIGHTS).exists());
    fs::remove_dir_all(growing.join("folder")).unwrap();

    let report = place.fetches();
    let fetched = report["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap().to_owned());
    let mut expected: Vec<String> = fetched.chain(["fetched-from.json".to_owned()]).collect();
    expected.sort();
    assert_eq!(files(&place.path("model")), expected);
    assert_eq!(fs::read(place.path("precious")).unwrap(), b"x");
}

/// As if the disk had been full, or the machine without power, at the very beginning.
#[test]
fn a_run_that_ended_before_it_had_begun_is_gone_on_with() {
    let place = Place::new();
    for there in [&[][..], &["fetched-from.json.new"], &["fetched-from.json.new", ".lock"]] {
        fs::create_dir(place.path("model.fetching")).unwrap();
        for name in there {
            fs::write(place.path("model.fetching").join(name), "{").unwrap();
        }
        place.fetches();
        assert_eq!(files(&place.path("model")).len(), 5);
        fs::remove_dir_all(place.path("model")).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_it_and_the_same_command_goes_on() {
    let place = Place::new();
    place.server.sends(WEIGHTS, Sends::Stalls(600_000));
    let child = place.command(&[]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while place.growing().get("model.safetensors.part").copied().unwrap_or(0) < 500_000 {
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", place.growing());
        std::thread::sleep(Duration::from_millis(20));
    }
    // another one keeps out of the way meanwhile
    place.fails(1, &["another process is fetching into"]);
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    assert!(said(&ended).contains("what came is kept, and the same command goes on"), "{}", said(&ended));
    assert!(started.elapsed() < Duration::from_secs(50), "it does not wait for a hub that says nothing");
    place.server.sends(WEIGHTS, Sends::Well);
    assert!(place.fetches()["resumed_bytes"].as_u64().unwrap() >= 500_000);
}

/// What says where the original came from is not said of a copy.
#[test]
fn a_pruned_copy_does_not_say_that_it_was_fetched() {
    let place = Place::new();
    place.fetches();
    let run = |arguments: &[&str]| {
        let output = program().args(arguments).current_dir(place.folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    };
    run(&["mask", "compute", "--model", "model", "--sparsity", "0.5", "--pruner", "magnitude", "--out", "ballot"]);
    run(&["apply", "--model", "model", "--mask", "ballot", "--out", "pruned"]);
    let pruned = files(&place.path("pruned"));
    assert!(
        pruned.iter().any(|name| name == WEIGHTS) && !pruned.iter().any(|name| name == "fetched-from.json"),
        "{pruned:?}"
    );
}
