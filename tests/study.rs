//! Studies: the numbers of the oracle, the masks of real nodes, and what becomes of bad input and of a kill.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::{Digest, Group, MatrixMask};
use fedprune_study::Results;
use fedprune_study::results::{Method, Record, Scaling, Strategy};
use fedprune_tests::{Fixture, root};
use serde_json::Value;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"))
}

fn run(study: &Path, out: &Path) -> Output {
    program().args(["--format", "json", "--quiet", "study", "run"]).arg(study).arg("--out").arg(out).output().unwrap()
}

/// Runs a study that must come to its end.
fn results(study: &Path, out: &Path) -> Results {
    let output = run(study, out);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Results = serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert!(results.complete);
    results
}

/// The study of a fixture's own windows, in order.
fn oracle_study(fixture: &Fixture, folder: &Path, grids: &str) -> PathBuf {
    let silos = fixture.furnish(folder).len();
    let mut study = format!(
        "name = \"oracle\"\nsequence_tokens = {}\nsampling = \"sequential\"\nbos = \"none\"\n\n\
         [[model]]\nname = \"tiny\"\npath = \"model\"\n\n\
         [evaluation]\ndata = [\"evaluation.txt\"]\nsequence_tokens = {}\n",
        fixture.numbers["seqlen"], fixture.numbers["seqlen"]
    );
    for silo in 0..silos {
        write!(study, "\n[[silo]]\nname = \"silo{silo}\"\ndata = [\"silo{silo}.txt\"]\n").unwrap();
    }
    let common = format!("silos = [{silos}]\nsamples = [{}]", fixture.numbers["samples"]);
    study.push_str(&grids.replace("COMMON", &common).replace("SPARSITY", &fixture.numbers["sparsity"].to_string()));
    let path = folder.join("study.toml");
    std::fs::write(&path, study).unwrap();
    path
}

const ORACLE_GRIDS: &str = r#"
[[grid]]
COMMON
sparsity = [SPARSITY, "2:4", "4:8"]
local_group = ["row", "layer"]
global_group = ["layer", "row", "column"]
scaling = ["none", "support"]

[[grid]]
COMMON
sparsity = [SPARSITY, "2:4", "4:8"]
local_group = ["row"]
global_group = ["row"]
strategy = ["iterative"]

[[grid]]
COMMON
sparsity = [SPARSITY]
local_group = ["layer"]
global_group = ["layer"]
strategy = ["iterative"]
"#;

fn tag(group: Group) -> String {
    group.to_string().replace(':', "of")
}

/// What the oracle calls a record, if it has it.
fn keys(record: &Record) -> Option<Vec<String>> {
    let Some(from) = record.from else { return Some(vec!["perplexity.dense".to_owned()]) };
    let local = tag(from.local_group);
    Some(match (record.method, record.together) {
        (Method::Local, _) => (0..from.silos).map(|silo| format!("perplexity.local.{local}.silo{silo}")).collect(),
        (Method::Centralized, _) => vec![format!("perplexity.centralized.{local}")],
        (Method::Federated, Some(together)) => {
            let global = tag(together.global_group);
            match (together.strategy, together.scaling) {
                (Strategy::Iterative, _) => vec![format!("perplexity.iterative.{local}")],
                (_, Scaling::Support) => vec![format!("perplexity.federated-scaled.{local}-{global}")],
                (_, Scaling::None) => vec![format!("perplexity.federated.{local}-{global}")],
            }
        }
        _ => return None,
    })
}

/// The root of the oracle's mask for a record that has one mask.
fn oracle_root(fixture: &Fixture, record: &Record) -> Option<Digest> {
    let local = tag(record.from?.local_group);
    let kind = match (record.method, record.together) {
        (Method::Centralized, _) => format!("centralized.{local}"),
        (Method::Federated, Some(together)) => match together.strategy {
            Strategy::Iterative => format!("iterative.{local}"),
            Strategy::OneShot => format!("global.{local}-{}", tag(together.global_group)),
        },
        _ => return None,
    };
    let checkpoint = Checkpoint::open(&fixture.folder).unwrap();
    let layout = checkpoint.layout();
    let digests = layout.matrices().iter().map(|matrix| {
        let (_, bytes) = fixture.tensor(&format!("{kind}.{}", matrix.name));
        MatrixMask::from_bytes(matrix.rows as usize, matrix.columns as usize, &bytes).unwrap().digest()
    });
    Some(mask_root(layout.digest(), digests))
}

/// Perplexities are within 0.1 % where the mask is the oracle's. Votes that were computed, not given, may differ from
/// its own in 1 bit of 1,000 (float32 sums in another order), which the oracle's own perplexity does not know of: masks that
/// have such a bit must be few, and their perplexities within 0.5 %.
#[test]
fn perplexities_are_those_of_the_oracle() {
    let (mut same, mut other) = (0, 0);
    for fixture in Fixture::all() {
        let folder = tempfile::tempdir().unwrap();
        let study = oracle_study(&fixture, folder.path(), ORACLE_GRIDS);
        let results = results(&study, &folder.path().join("out"));
        let mut compared = 0;
        for record in &results.models[0].records {
            let expected: Vec<f64> = keys(record).unwrap().iter().map(|key| fixture.number(key)).collect();
            let mean = expected.iter().sum::<f64>() / expected.len() as f64;
            let tolerance = match oracle_root(&fixture, record) {
                Some(root) if record.mask_root != Some(root) => {
                    other += 1;
                    5e-3
                }
                root => {
                    same += usize::from(root.is_some());
                    1e-3
                }
            };
            let near = |actual: f64, expected: f64| (actual / expected - 1.0).abs() <= tolerance;
            assert!(near(record.perplexity, mean), "{}: {record:?} instead of {mean}", fixture.name());
            if let Some((least, largest)) = record.perplexity_range {
                assert!(near(least, expected.iter().copied().fold(f64::INFINITY, f64::min)));
                assert!(near(largest, expected.iter().copied().fold(0.0, f64::max)));
            }
            compared += 1;
        }
        // dense; four groups alone and centralized; 12 of row and layer, 4 of patterns; iterative
        assert_eq!(compared, 1 + 8 + 12 + 4 + 4, "{}", fixture.name());
    }
    assert!(other * 5 <= same, "{other} of {} masks are not the oracle's", same + other);
}

/// A testnet of real nodes with the same silos comes to the same masks, bit for bit.
#[test]
fn masks_are_those_of_real_nodes() {
    let fixture = Fixture::all().into_iter().find(|fixture| fixture.name() == "llama").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let study = oracle_study(&fixture, folder.path(), ORACLE_GRIDS);
    let results = results(&study, &folder.path().join("out"));
    let rounds = [
        ("local-group = \"row\"\nglobal-group = \"layer\"", Group::Layer, Strategy::OneShot),
        ("local-group = \"row\"\nglobal-group = \"row\"\nstrategy = \"iterative\"", Group::Row, Strategy::Iterative),
    ];
    for (number, (round, global_group, strategy)) in rounds.into_iter().enumerate() {
        let mut manifest = "name = \"study\"\nmodel = \"model\"\n".to_owned();
        let silos = fixture.silos().len();
        for silo in 0..silos {
            write!(manifest, "\n[[silo]]\nname = \"silo{silo}\"\ndata = [\"silo{silo}.txt\"]\n").unwrap();
        }
        write!(
            manifest,
            "\n[round]\nsparsity = {}\n{round}\nnsamples = {}\nseqlen = {}\nsampling = \"sequential\"\n\
             contribution-seconds = 60\n\n[expect]\ncontributors = {silos}\nwithin_seconds = 100\n",
            fixture.numbers["sparsity"], fixture.numbers["samples"], fixture.numbers["seqlen"]
        )
        .unwrap();
        let path = folder.path().join(format!("manifest-{number}.toml"));
        std::fs::write(&path, manifest).unwrap();
        let net = folder.path().join(format!("net-{number}"));
        let output = program()
            .args(["--format", "json", "--quiet", "testnet", "run"])
            .arg(&path)
            .arg("--out")
            .arg(&net)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let record = results.models[0].records.iter().find(|record| {
            record.from.is_some_and(|from| from.local_group == Group::Row)
                && record.together.is_some_and(|together| {
                    (together.global_group, together.strategy, together.scaling)
                        == (global_group, strategy, Scaling::None)
                })
        });
        assert_eq!(report["mask_root"], record.unwrap().mask_root.unwrap().to_string(), "{round}");
    }
}

/// A small study of the bundled model.
fn small_study(folder: &Path, change: impl Fn(String) -> String) -> PathBuf {
    let bundled = root().join("examples/bundled-model");
    let text = format!(
        r#"name = "small"
sequence_tokens = 64
seeds = [0, 1]

[[model]]
name = "bundled"
path = "{bundled}/model"

[evaluation]
data = ["{bundled}/held_out.txt"]
sequence_tokens = 64
max_windows = 2

[[silo]]
name = "one"
data = ["{bundled}/silos/austen_emma.txt"]

[[silo]]
name = "two"
data = ["{bundled}/silos/speeches_1945_1953.txt"]

[[grid]]
silos = [2, 3]
samples = [1]
sparsity = ["0.5", "2:4"]
pruner = ["wanda", "magnitude"]
"#,
        bundled = bundled.display()
    );
    let path = folder.join("study.toml");
    std::fs::write(&path, change(text)).unwrap();
    path
}

#[test]
fn what_was_measured_is_not_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let (study, out) = (small_study(folder.path(), |text| text), folder.path().join("out"));
    let first = results(&study, &out);
    let lines = || std::fs::read_to_string(out.join("measured.jsonl")).unwrap();
    let before = lines();
    let again = results(&study, &out);
    assert_eq!((again, lines()), (first.clone(), before.clone()));
    // one that was killed while it wrote a line, with the last ballot and the last measurement missing
    let whole: Vec<&str> = before.lines().collect();
    let torn = format!("{}\n{}", whole[..whole.len() - 1].join("\n"), &whole[whole.len() - 1][..20]);
    std::fs::write(out.join("measured.jsonl"), torn).unwrap();
    let resumed = results(&study, &out);
    assert_eq!(resumed.models, first.models);
    assert_eq!(lines().lines().count(), whole.len());
    // three silos have the ballots of the two among them, and one more for each seed and sparsity
    let ballots = std::fs::read_dir(out.join("votes")).unwrap().count();
    assert_eq!(
        ballots,
        2 * (3 + 2) * 2 + 2,
        "wanda: silos and centralized, by seed and sparsity; magnitude: by sparsity"
    );
    // what changes is measured, and nothing else
    let more = small_study(folder.path(), |text| text.replace("[\"wanda\", \"magnitude\"]", "[\"wanda\", \"ria\"]"));
    let changed = results(&more, &out);
    let kept = changed.models[0].records.iter().filter(|record| first.models[0].records.contains(record)).count();
    assert_eq!(kept, 1 + 2 * 2 * 2 * 3, "dense, and wanda's");
}

#[test]
fn a_kill_loses_the_point_in_progress_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let (study, out) = (small_study(folder.path(), |text| text), folder.path().join("out"));
    let mut kills = 0;
    let expected = results(&study, &folder.path().join("undisturbed"));
    for measured in [1, 4, 9, 15] {
        let mut child = program()
            .args(["--quiet", "study", "run"])
            .arg(&study)
            .arg("--out")
            .arg(&out)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let lines = || std::fs::read_to_string(out.join("measured.jsonl")).unwrap_or_default().lines().count();
        while lines() < measured && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "it was faster than this test");
    assert_eq!(results(&study, &out).models, expected.models);
}

#[test]
fn bad_studies_are_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |from: &str, to: &str| {
        let study = small_study(folder.path(), |text| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let out = folder.path().join("never");
        let output = run(&study, &out);
        assert_eq!(output.status.code(), Some(1), "{to}");
        let votes = std::fs::read_dir(out.join("votes")).map_or(0, Iterator::count);
        assert_eq!(votes, 0, "{to}: nothing is computed");
        String::from_utf8(output.stderr).unwrap()
    };
    let cases = [
        ("\"magnitude\"", "\"magnitud\"", "line 26: `pruner`: `magnitud` is not a pruner"),
        ("[2, 3]", "[2, 65]", "line 23: `silos`: 65 is not between 2 and 64"),
        ("[2, 3]", "[1]", "line 23: `silos`: 1 is not between 2 and 64"),
        ("\"2:4\"]", "\"3:7\"]", "line 22: `bundled`: "),
        ("\"0.5\",", "\"1.5\",", "line 25: `sparsity`: "),
        ("samples = [1]", "samples = [100000]", "line 24: `samples`: 100000 is not between 1 and 65536"),
        ("samples = [1]", "samples = [800]", "line 14: "),
        ("samples = [1]", "samples = [150]", "line 22: 2 silos with 150 windows of 64 tokens each share a text"),
        ("samples = [1]", "samples = [1]\nsplit = [\"some\"]", "line 25: `split`: `some` is not known here"),
        ("samples = [1]", "samples = [1]\nlocal_group = [\"diagonal\"]", "line 25: `local_group`: "),
        (
            "sparsity = [\"0.5\", ",
            "local_group = [\"2:4\"]\nglobal_group = [\"4:8\"]\nsparsity = [\"0.5\", ",
            "line 26: ",
        ),
        ("samples = [1]", "samples = []", "line 24: `samples` lists nothing"),
        ("samples = [1]", "sample = [1]", "line 24: unknown field `sample`"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "line 3: a seed is there twice"),
        ("austen_emma.txt", "nobody.txt", "line 14: "),
        ("held_out.txt", "nobody.txt", "line 9: "),
        ("/model\"", "/nothing\"", "line 5: "),
        ("sequence_tokens = 64\nmax", "sequence_tokens = 640000\nmax", "line 9: "),
    ];
    for (from, to, expected) in cases {
        let said = refused(from, to);
        assert!(said.contains(expected) && said.starts_with("error: "), "{to}: {said}");
    }
}
