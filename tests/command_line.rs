//! The program as people run it: what it prints, what it leaves on disk, how it fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fedprune_tests::root;
use serde_json::Value;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"))
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

/// Runs what must succeed; returns its JSON report.
fn json(arguments: &[&str]) -> Value {
    let output = program().args(arguments).args(["--format", "json"]).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fedprune {}: {errors}", arguments.join(" "));
    serde_json::from_slice(&output.stdout).expect("a JSON report")
}

/// Runs what must fail with `code`; standard output stays empty, and the message is returned.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = run(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "fedprune {}: {message}", arguments.join(" "));
    assert!(output.stdout.is_empty(), "a failure prints no report");
    assert!(!message.contains("panicked"), "{message}");
    message
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn bundled(path: &str) -> PathBuf {
    root().join("examples/bundled-model").join(path)
}

/// Copies the bundled model's folder, so that a test may damage it.
fn model_copy(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    std::fs::create_dir(&copy).expect("a new folder");
    for entry in std::fs::read_dir(bundled("model")).expect("the bundled model") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, copy.join(path.file_name().expect("a name"))).expect("it copies");
    }
    copy
}

fn compute<'a>(model: &'a str, data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["mask", "compute", "--model", model, "--data", data, "--out", out];
    if !more.contains(&"--nsamples") {
        arguments.extend(["--nsamples", "4"]);
    }
    if !more.contains(&"--seqlen") {
        arguments.extend(["--seqlen", "64"]);
    }
    arguments.extend(more);
    arguments
}

fn perplexity(model: &Path) -> f64 {
    let held_out = bundled("held_out.txt");
    let arguments = ["eval", "perplexity", "--model", text(model), "--data", text(&held_out), "--seqlen", "128"];
    json(&[&arguments[..], &["--max-windows", "24"]].concat())["perplexity"].as_f64().expect("a number")
}

#[test]
fn from_text_to_a_pruned_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = bundled("model");
    let inspected = json(&["model", "inspect", text(&model)]);
    let prunable = inspected["prunable_weights"].as_u64().unwrap();

    let silos = ["austen_emma", "melville_moby_dick"];
    for silo in silos {
        let data = bundled(&format!("silos/{silo}.txt"));
        let ballot = at(&format!("{silo}.ballot"));
        let report = json(&compute(text(&model), text(&data), text(&ballot), &["--sparsity", "0.5"]));
        assert_eq!(report["pruned_weights"].as_u64().unwrap() * 2, prunable);
        assert_eq!(report["model_digest"], inspected["content_digest"]);
        assert!(report["times_smaller"].as_f64().unwrap() > 10.0, "{report}");
    }
    let ballots = silos.map(|silo| at(&format!("{silo}.ballot")));
    let tally = at("global.tally");
    let tallied =
        json(&["tally", text(&ballots[0]), text(&ballots[1]), "--model", text(&model), "--out", text(&tally)]);
    let shown = json(&["mask", "show", text(&ballots[0]), text(&tally), "--model", text(&model)]);
    assert_eq!(shown["files"][1]["mask_root"], tallied["mask_root"]);
    let same = shown["agreement"][0]["same_share"].as_f64().unwrap();
    assert!(same > 0.8 && same < 1.0, "{same}");

    let dense = perplexity(&model);
    let mut pruned_perplexity = Vec::new();
    for (name, mask, more) in
        [("alone", &ballots[0], &[][..]), ("global", &tally, &[][..]), ("scaled", &tally, &["--scale", "support"][..])]
    {
        let out = at(name);
        let arguments = ["apply", "--model", text(&model), "--mask", text(mask), "--out", text(&out)];
        let applied = json(&[&arguments[..], more].concat());
        for file in [
            "config.json",
            "tokenizer.json",
            "pruning-mask.fedprune",
            "pruning-recipe.toml",
            "pruning-sparsity.svg",
            "README.md",
            "README.base.md",
        ] {
            assert!(out.join(file).is_file(), "{name} lacks {file}");
        }
        let card = std::fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.contains(applied["mask_root"].as_str().unwrap()), "{card}");
        assert_eq!(json(&["model", "inspect", text(&out)])["content_digest"], applied["pruned_digest"]);
        // the sidecar is the same mask, and says so against the base model
        let sidecar = json(&["mask", "show", text(&out.join("pruning-mask.fedprune")), "--model", text(&model)]);
        assert_eq!(sidecar["files"][0]["mask_root"], applied["mask_root"]);
        pruned_perplexity.push(perplexity(&out));
        // the recipe's last command makes the same weights again, save those that were scaled, which need the ballots
        let recipe = std::fs::read_to_string(out.join("pruning-recipe.toml")).unwrap();
        for (key, value) in [("mask_root", &applied["mask_root"]), ("pruned_model", &applied["pruned_digest"])] {
            assert!(recipe.contains(&format!("{key} = {value}\n")), "{recipe}");
        }
        let votes = if name == "alone" { 1 } else { 2 };
        assert_eq!(recipe.matches("[[ballot]]").count(), votes, "{recipe}");
        let alone = "'fedprune apply --model BASE --mask pruning-mask.fedprune --out DIR'";
        assert_eq!(recipe.contains(alone), more.is_empty(), "{recipe}");
        let (again, sidecar) = (at(&format!("{name}-again")), out.join("pruning-mask.fedprune"));
        let again = json(&["apply", "--model", text(&model), "--mask", text(&sidecar), "--out", text(&again)]);
        assert_eq!(again["pruned_digest"] == applied["pruned_digest"], more.is_empty());
        let picture = std::fs::read_to_string(out.join("pruning-sparsity.svg")).unwrap();
        assert_eq!(picture.matches("<rect x=").count(), 42, "six blocks of seven matrices");
    }
    for pruned in pruned_perplexity {
        assert!(pruned > dense * 1.01 && pruned < dense * 20.0, "dense {dense}, pruned {pruned}");
    }
    // temporary files are gone
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".unfinished")), "{left:?}");
}

#[test]
fn every_group_pruner_and_encoding_gives_one_mask() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (bundled("model"), bundled("silos/austen_emma.txt"));
    for (pruner, group) in
        [("wanda", "layer"), ("wanda", "column"), ("wanda", "2:4"), ("ria", "row"), ("magnitude", "4:8")]
    {
        let mut roots = Vec::new();
        for ballots in ["auto", "mask-only"] {
            let out = folder.path().join(format!("{pruner}-{}-{ballots}", group.replace(':', "of")));
            let mut arguments = compute(text(&model), text(&data), text(&out), &["--local-group", group]);
            arguments.extend(["--pruner", pruner, "--ballots", ballots]);
            if pruner == "magnitude" {
                let at = arguments.iter().position(|argument| *argument == "--data").unwrap();
                arguments.drain(at..at + 2);
            }
            let computed = json(&arguments);
            let shown = json(&["mask", "show", text(&out), "--model", text(&model)]);
            assert_eq!(shown["files"][0]["mask_root"], computed["mask_root"], "{pruner} {group} {ballots}");
            roots.push(computed["mask_root"].clone());
        }
        assert_eq!(roots[0], roots[1], "{pruner} {group}");
    }
}

#[test]
fn a_killed_run_continues_to_the_same_ballot() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, data) = (bundled("model"), bundled("silos/austen_emma.txt"));
    let (whole, killed) = (at("whole"), at("killed"));
    let more = ["--nsamples", "64", "--seqlen", "128"];
    json(&compute(text(&model), text(&data), text(&whole), &more));

    let journal = at("killed.unfinished");
    let mut child = program()
        .args(compute(text(&model), text(&data), text(&killed), &more))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // key record plus at least one block; polled, since what matters is the state, not the time
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(&journal).map_or(0, |metadata| metadata.len()) < 1024 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no block was ever recorded");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!killed.exists());

    let other = fails(1, &compute(text(&model), text(&data), text(&killed), &["--nsamples", "8"]));
    assert!(other.contains("unfinished run") && other.contains("--restart"), "{other}");
    let resumed = json(&compute(text(&model), text(&data), text(&killed), &more));
    assert!(resumed["resumed_blocks"].as_u64().unwrap() > 0, "{resumed}");
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&killed).unwrap());
    assert!(!journal.exists());
}

/// Mistakes: each is refused with exit code and a message that names the thing and the remedy; nothing is left.
#[test]
fn mistakes_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, data, out) = (bundled("model"), bundled("silos/austen_emma.txt"), at("out"));
    let (model, data, out) = (text(&model), text(&data), text(&out));
    let (empty, short, existing) = (at("empty.txt"), at("short.txt"), at("existing"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&short, "A few words only.").unwrap();
    std::fs::write(&existing, "precious").unwrap();
    let (nowhere, missing, gone) = (at("no/such/folder/out"), at("missing.txt"), at("gone"));

    let cases: &[(i32, Vec<&str>, &[&str])] = &[
        (2, vec!["mask", "compute", "--model", model], &["--out"]),
        (2, vec!["prune"], &["unrecognized subcommand"]),
        (2, compute(model, data, out, &["--sparsity", "1.0"]), &["outside [0, 1)"]),
        (2, compute(model, data, out, &["--sparsity", "half"]), &["not a sparsity"]),
        (2, compute(model, data, out, &["--local-group", "rows"]), &["layer, row, column or n:m"]),
        (2, compute(model, data, out, &["--pruner", "sparsegpt"]), &["wanda, magnitude, ria"]),
        (2, compute(model, data, out, &["--device", "tpu"]), &["tpu", "cuda:N"]),
        (1, compute(model, data, out, &["--local-group", "2:4", "--sparsity", "0.6"]), &["fixes the sparsity at 0.5"]),
        (1, compute(model, data, out, &["--local-group", "3:7"]), &["q_proj", "multiple of 7"]),
        (1, compute(model, text(&empty), out, &[]), &["empty.txt"]),
        (1, compute(model, text(&short), out, &[]), &["short.txt", "longer files"]),
        (1, compute(model, text(&missing), out, &[]), &["missing.txt"]),
        (1, compute(model, data, out, &["--seqlen", "100000"]), &["100000"]),
        (1, compute(model, data, out, &["--nsamples", "1000000"]), &["--nsamples"]),
        (1, compute(model, data, text(&existing), &[]), &["existing", "not overwritten"]),
        (1, compute(model, data, text(&nowhere), &[]), &["mkdir -p"]),
        (2, vec!["mask", "compute", "--model", model, "--out", out], &["--data", "magnitude"]),
        (1, compute(text(&gone), data, out, &[]), &["gone", "config.json"]),
        (1, vec!["mask", "show", text(&empty)], &["empty.txt"]),
        (1, vec!["mask", "show", data], &["austen_emma.txt"]),
        (1, vec!["apply", "--model", model, "--mask", data, "--out", out], &["austen_emma.txt"]),
        (1, vec!["tally", data, "--model", model, "--out", out], &["austen_emma.txt"]),
        (1, vec!["apply", "--model", model, "--mask", data, "--out", text(&existing)], &["existing", "choose another"]),
        (1, vec!["eval", "perplexity", "--model", model, "--data", text(&empty), "--seqlen", "64"], &["empty.txt"]),
    ];
    for (code, arguments, expected) in cases {
        let message = fails(*code, arguments);
        for part in *expected {
            assert!(message.contains(part), "fedprune {}: `{part}` is missing from: {message}", arguments.join(" "));
        }
        assert!(!Path::new(out).exists(), "fedprune {} left something", arguments.join(" "));
    }
    {
        let message = fails(1, &compute(model, data, out, &["--device", "cuda:0"]));
        assert!(message.contains("--features cuda"), "{message}");
    }
    assert_eq!(std::fs::read(&existing).unwrap(), b"precious");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

/// The processor is always there, and whoever misses a GPU is told why there is none.
#[test]
fn devices_are_listed_with_what_is_missing() {
    let found = json(&["model", "devices"]);
    let devices = found["devices"].as_array().expect("devices");
    assert_eq!(devices[0]["device"], "cpu");
    assert!(devices[0]["threads"].as_u64().unwrap() > 0 && devices[0]["memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(devices[0]["free_bytes"].as_u64().unwrap() <= devices[0]["memory_bytes"].as_u64().unwrap());
    assert_eq!(devices.len(), 1, "built without CUDA: {found:#}");
    assert!(found["no_gpus"].as_str().unwrap().contains("--features cuda"), "{found:#}");
    assert!(found.get("driver").is_none(), "{found:#}");
    let output = run(&["model", "devices"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("cpu") && said.contains("--features cuda"), "{said}");
}

/// Pipes, links and names that lie in wait.
#[cfg(unix)]
#[test]
fn what_is_no_ordinary_file_is_refused_at_once() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, data, pipe, out) = (bundled("model"), bundled("silos/austen_emma.txt"), at("pipe.txt"), at("out"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for arguments in [
        vec!["mask", "show", text(&pipe)],
        vec!["apply", "--model", text(&model), "--mask", text(&pipe), "--out", text(&out)],
        vec!["tally", text(&pipe), "--model", text(&model), "--out", text(&out)],
        vec!["eval", "perplexity", "--model", text(&model), "--data", text(&pipe)],
        compute(text(&model), text(&pipe), text(&out), &[]),
    ] {
        let message = fails(1, &arguments);
        assert!(message.contains("pipe.txt") && message.contains("not a regular file"), "{message}");
    }
    // the journal is no way to write elsewhere, nor to delete what is not ours
    let elsewhere = at("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, at("out.unfinished")).unwrap();
    for more in [&[][..], &["--restart"]] {
        let message = fails(1, &compute(text(&model), text(&data), text(&out), more));
        assert!(message.contains("out.unfinished") && message.contains("no unfinished run"), "{message}");
    }
    assert!(!elsewhere.exists() && !out.exists());

    // a ballot whose name would steer a terminal, and one that is not Unicode
    let (steering, raw) = (at("a\u{1b}[2Jb.ballot"), folder.path().join(std::ffi::OsStr::from_bytes(b"nua\xff")));
    let compute_to = |path: &Path| {
        program()
            .args(["mask", "compute", "--model", text(&model), "--pruner", "magnitude", "--format", "json", "--out"])
            .arg(path)
            .output()
            .unwrap()
    };
    assert!(compute_to(&steering).status.success());
    assert!(compute_to(&raw).status.success(), "paths need not be Unicode");
    let message = fails(1, &["tally", text(&steering), "--model", text(&model), "--out", text(&out)]);
    assert!(!message.contains('\u{1b}') && message.contains("rename the ballot file"), "{message}");
    let shown = run(&["mask", "show", text(&steering)]);
    assert!(shown.status.success() && !shown.stdout.contains(&0x1b));
}

/// A copy may be published, so weights that are links out of the folder are not copied.
#[cfg(unix)]
#[test]
fn links_out_of_the_model_are_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (model, private) = (model_copy(folder.path()), folder.path().join("private.safetensors"));
    std::fs::rename(model.join("model.safetensors"), &private).unwrap();
    std::os::unix::fs::symlink(&private, model.join("model.safetensors")).unwrap();
    let (ballot, out) = (folder.path().join("ballot"), folder.path().join("out"));
    json(&["mask", "compute", "--model", text(&model), "--pruner", "magnitude", "--out", text(&ballot)]);
    let message = fails(1, &["apply", "--model", text(&model), "--mask", text(&ballot), "--out", text(&out)]);
    assert!(message.contains("private.safetensors") && message.contains("outside"), "{message}");
    assert!(!out.exists());
}

#[test]
fn tallies_warn_of_what_deserves_a_second_look() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, data) = (bundled("model"), bundled("silos/austen_emma.txt"));
    let (a, b, twin) = (at("a.ballot"), at("b.ballot"), at("twin.ballot"));
    let report = json(&compute(text(&model), text(&data), text(&a), &[]));
    assert!(report["warnings"][0].as_str().unwrap().contains("calibration tokens"), "{report}");
    json(&["mask", "compute", "--model", text(&model), "--pruner", "magnitude", "--out", text(&b)]);
    std::fs::copy(&a, &twin).unwrap();
    let report = json(&[
        "tally",
        text(&a),
        text(&b),
        text(&twin),
        "--weights",
        "5,1,1",
        "--model",
        text(&model),
        "--out",
        text(&at("t")),
    ]);
    let warnings = report["warnings"].to_string();
    for part in ["one and the same mask", "outvotes all others", "different pruners"] {
        assert!(warnings.contains(part), "`{part}` is missing from {warnings}");
    }
    let (model, out) = (text(&model), at("brief"));
    let brief = ["tally", text(&a), text(&b), text(&twin), "--weights", "5,1,1", "--model", model, "--brief", "--out"];
    let brief = json(&[&brief[..], &[text(&out)]].concat());
    assert_eq!(brief["mask_root"], report["mask_root"]);
    assert_eq!(brief["warnings"], report["warnings"]);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(at("t")).unwrap());
    let compared = |report: &Value| report["members"][1]["different_bits"].is_u64();
    assert_eq!((compared(&report), compared(&brief)), (true, false));
}

#[test]
fn a_mask_for_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_copy(folder.path());
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1; // one bit of one weight
    std::fs::write(&weights, bytes).unwrap();
    let (ballot, data, out) =
        (folder.path().join("ballot"), bundled("silos/austen_emma.txt"), folder.path().join("out"));
    json(&compute(text(&bundled("model")), text(&data), text(&ballot), &[]));
    for arguments in [
        vec!["apply", "--model", text(&model), "--mask", text(&ballot), "--out", text(&out)],
        vec!["tally", text(&ballot), "--model", text(&model), "--out", text(&out)],
        vec!["mask", "show", text(&ballot), "--model", text(&model)],
    ] {
        let message = fails(1, &arguments);
        assert!(message.contains("content digest") && message.contains("--model"), "{message}");
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let hidden: Vec<_> = left.filter(|name| text(Path::new(name)).starts_with('.')).collect();
        assert!(hidden.is_empty(), "{hidden:?} was left behind");
    }
    // another layout altogether
    let llama = root().join("tests/fixtures/llama");
    let message = fails(1, &["apply", "--model", text(&llama), "--mask", text(&ballot), "--out", text(&out)]);
    assert!(message.contains("another model"), "{message}");
    let message = fails(1, &compute(text(&llama), text(&data), text(&out), &[]));
    assert!(message.contains("tokenizer.json"), "{message}");
    assert!(!out.exists());
}

/// A tally carries its ballots, so what it claims of their mask can be checked, and is.
#[test]
fn a_tally_that_lies_about_its_mask_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, ballot, tally, out) = (bundled("model"), at("silo.ballot"), at("tally"), at("out"));
    json(&["mask", "compute", "--model", text(&model), "--pruner", "magnitude", "--out", text(&ballot)]);
    let report = json(&["tally", text(&ballot), "--model", text(&model), "--out", text(&tally)]);
    let root = report["mask_root"].as_str().unwrap();
    let root: Vec<u8> = (0..32).map(|byte| u8::from_str_radix(&root[2 * byte..2 * byte + 2], 16).unwrap()).collect();
    let mut bytes = std::fs::read(&tally).unwrap();
    let place = bytes.windows(32).position(|window| window == root).unwrap();
    bytes[place] ^= 1;
    std::fs::write(&tally, bytes).unwrap();
    for arguments in [
        vec!["apply", "--model", text(&model), "--mask", text(&tally), "--out", text(&out)],
        vec!["mask", "show", text(&tally), "--model", text(&model)],
    ] {
        let message = fails(1, &arguments);
        assert!(message.contains("mask root") && message.contains("tally the ballots again"), "{message}");
        assert!(!out.exists());
    }
}

#[test]
fn not_a_number_among_the_weights_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_copy(folder.path());
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let start = {
        let (header_bytes, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = metadata.tensors();
        8 + header_bytes + tensors[name].data_offsets.0
    };
    bytes[start + 2..start + 4].copy_from_slice(&[0xc0, 0x7f]); // a bf16 NaN
    std::fs::write(&weights, bytes).unwrap();
    let (data, out) = (bundled("silos/austen_emma.txt"), folder.path().join("out"));
    let message = fails(1, &compute(text(&model), text(&data), text(&out), &[]));
    for part in [name, "model.safetensors", "row 0, column 1 is NaN", "intact copy"] {
        assert!(message.contains(part), "`{part}` is missing from: {message}");
    }
}

/// A disk that fills up, by a limit on file sizes: a clear error, and nothing half-written.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, ballot, out) = (bundled("model"), folder.path().join("ballot"), folder.path().join("out"));
    json(&["mask", "compute", "--model", text(&model), "--pruner", "magnitude", "--out", text(&ballot)]);
    let before = std::fs::read(&ballot).unwrap();
    for (blocks, arguments) in [
        (40, ["apply", "--model", text(&model), "--mask", text(&ballot), "--out", text(&out)].as_slice()),
        (400, &["apply", "--model", text(&model), "--mask", text(&ballot), "--out", text(&out)]),
        (
            40,
            &[
                "mask",
                "compute",
                "--model",
                text(&model),
                "--pruner",
                "magnitude",
                "--ballots",
                "mask-only",
                "--out",
                text(&out),
            ],
        ),
    ] {
        // an ignored SIGXFSZ is inherited, and the write fails with an error instead
        let output = Command::new("sh")
            .args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"])
            .arg(env!("CARGO_BIN_EXE_fedprune-under-test"))
            .args(arguments)
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("too large") && message.contains("out"), "{message}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["ballot"], "{message}");
    }
    assert_eq!(std::fs::read(&ballot).unwrap(), before);
}

#[test]
fn the_demo_holds_what_it_promises() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let report = json(&["demo", "--out", text(&out)]);
    let perplexity = |key: &str| report["perplexity"][key].as_f64().unwrap();
    assert!(perplexity("dense") < perplexity("federated"), "{report}");
    assert!(perplexity("federated") < perplexity("local_mean"), "{report}");
    assert_eq!(report["silos"].as_array().unwrap().len(), 4);
    let message = fails(1, &["demo", "--out", text(&out)]);
    assert!(message.contains("exists"), "{message}");
    // every command it suggests runs as it stands
    let suggested = |key: &str| report[key].as_array().unwrap().iter().map(|command| command.as_str().unwrap());
    let suggestions: Vec<&str> = suggested("look_further").chain(suggested("attest")).collect();
    assert_eq!(suggestions.len(), 8, "{report}");
    for suggestion in suggestions {
        let arguments = suggestion.strip_prefix(env!("CARGO_BIN_EXE_fedprune-under-test")).unwrap();
        let output = run(&arguments.split_whitespace().collect::<Vec<_>>());
        assert!(output.status.success(), "{suggestion}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // the keys by which members attest are listed, and one that is not is not theirs
    let shown = json(&["consortium", "show", text(&out.join("consortium.toml"))]);
    let hints: std::collections::BTreeSet<&str> = shown["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["attestation_key_sha256"].as_str().unwrap())
        .collect();
    assert!(hints.len() == 4 && hints.iter().all(|hint| hint.len() == 64), "{shown}");
    let signature = std::fs::read(out.join("north.sig")).unwrap();
    let signature: serde_json::Value = serde_json::from_slice(&signature).unwrap();
    let hint = signature["verificationMaterial"]["publicKey"]["hint"].as_str().unwrap();
    assert!(hints.contains(hint), "{hint} {shown}");
}

#[test]
fn simulated_rounds_are_told_by_their_seeds() {
    let rounds = json(&["testnet", "simulate", "--members", "4", "--seeds", "3..6"]);
    assert_eq!((rounds["rounds"].as_u64(), rounds["failed"].as_u64()), (Some(3), Some(0)), "{rounds}");
    let again = json(&["testnet", "simulate", "--members", "4", "--seeds", "3..6", "--threads", "1"]);
    assert_eq!(rounds["trace"], again["trace"], "the same seeds are the same rounds, whatever runs beside them");
    let others = json(&["testnet", "simulate", "--members", "4", "--seeds", "6..9"]);
    assert_ne!(rounds["trace"], others["trace"]);

    let said = fails(2, &["testnet", "simulate", "--seeds", "9..3"]);
    assert!(said.contains("there is no seed in it"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("round.toml");
    std::fs::write(&file, "members = 900000\n").unwrap();
    let said = fails(1, &["testnet", "simulate", "--scenario", text(&file)]);
    assert!(said.contains("round.toml") && said.contains("line 1: missing field"), "{said}");
    assert!(!said.contains("\\u{a}"), "on one line: {said}");
}
