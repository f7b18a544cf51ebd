//! Tests of the tests: deliberately broken builds, each of which the simulator must catch within 500 seeds.
//!
//! No switch for any of this is in the program. The sources of the crates below the simulator are copied, broken by
//! replacing text, and built as a workspace of their own, with the dependencies that are built already; which of the
//! faults is active in that build, an environment variable says, so that one build does. Text that is no longer found
//! fails the test: a mutant must be kept with the code that it breaks. The same build with no fault active passes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that are copied, and built again.
const COPIED: [&str; 6] =
    ["crates/audit", "crates/checkpoint", "crates/engine", "crates/federation", "crates/mask", "testnet"];
/// Seeds within which a mutant must be caught.
const SEEDS: &str = "500";
/// Stands in the replacements for: this mutant is active.
const ACTIVE: &str = "ACTIVE";

/// A way to break the sources: a file, text in it, and what stands there instead.
struct Mutant {
    name: &'static str,
    changes: &'static [(&'static str, &'static str, &'static str)],
    /// One of these is in what the simulator says.
    caught_as: &'static [&'static str],
}

const MUTANTS: [Mutant; 4] = [
    Mutant {
        name: "a quorum that is one too small",
        changes: &[(
            "crates/federation/src/ids.rs",
            "Ok(Self { n, f, q: q.saturating_add(1) })",
            "Ok(Self { n, f, q: q.saturating_add(u16::from(!ACTIVE)) })",
        )],
        caught_as: &["decides by the votes of 2 of 4 members", "decides otherwise", "another mask"],
    },
    Mutant {
        name: "nothing is flushed before it is sent",
        changes: &[(
            "crates/federation/src/machine/mod.rs",
            "self.out.push(Effect::Flush);",
            "if !ACTIVE { self.out.push(Effect::Flush); }",
        )],
        caught_as: &["before it is durable"],
    },
    Mutant {
        name: "a proposal is accepted unverified",
        changes: &[(
            "crates/federation/src/machine/agree.rs",
            "Some(if ours == proposed {",
            "Some(if ours == proposed || ACTIVE {",
        )],
        caught_as: &["cannot go on: our mask", "another mask"],
    },
    Mutant {
        name: "of equal votes the ballot that arrived first decides",
        changes: &[
            (
                "crates/federation/src/machine/mod.rs",
                "    held: Vec<Option<Digest>>,",
                "    held: Vec<Option<Digest>>,\n    arrived: Vec<(MemberIndex, Digest)>,",
            ),
            (
                "crates/federation/src/machine/mod.rs",
                "            held: vec![None; quorum.n()],",
                "            held: vec![None; quorum.n()],\n            arrived: Vec::new(),",
            ),
            (
                "crates/federation/src/machine/join.rs",
                "        self.valid.insert((member, body));",
                "        self.valid.insert((member, body));\n        self.arrived.push((member, body));",
            ),
            (
                "crates/federation/src/machine/agree.rs",
                "self.out.push(Effect::Tally { height, set, ballots: ballots.to_vec() });",
                "let mut ballots = ballots.to_vec();
            if ACTIVE {
                let arrived = self.state_mut(height).arrived.clone();
                ballots.sort_by_key(|ballot| arrived.iter().position(|other| other == ballot));
            }
            self.out.push(Effect::Tally { height, set, ballots });",
            ),
            (
                "testnet/src/simulator/world.rs",
                "let weight = self.round.terms().tally_weights[member.as_usize()];",
                "let mut weight = self.round.terms().tally_weights[member.as_usize()];
            if ACTIVE {
                weight = 2 * weight + u32::from(voters.is_empty());
            }",
            ),
        ],
        caught_as: &["another mask", "cannot go on: our mask", "who is honest, for its mask is"],
    },
];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&from, &to);
        } else if std::fs::read(&to).ok() != Some(std::fs::read(&from).unwrap()) {
            // what is there already keeps its time, so that it is not built again
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// A manifest without what only tests of the package itself need.
fn without_tests(manifest: &str) -> String {
    let mut kept = String::new();
    let mut skip = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            skip = ["[dev-dependencies", "[[bench", "[[test"].iter().any(|table| line.starts_with(table));
        }
        if !skip {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Copies the sources, breaks them, and builds the program that hunts in them.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let copied = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let manifest = read(&root.join("Cargo.toml"));
    let (members, default) = (
        r#"members = ["crates/*", "examples", "testnet", "tests", "tests/fuzz"]"#,
        "default-members = [\"crates/cli\"]",
    );
    assert!(manifest.contains(members) && manifest.contains(default), "the workspace is another");
    let manifest = manifest.replace(default, "").replace(members, r#"members = ["crates/*", "testnet"]"#);
    std::fs::create_dir_all(&copied).unwrap();
    let write = |path: PathBuf, text: &str| {
        if std::fs::read_to_string(&path).ok().as_deref() != Some(text) {
            std::fs::write(path, text).unwrap();
        }
    };
    write(copied.join("Cargo.toml"), &manifest);
    std::fs::copy(root.join("Cargo.lock"), copied.join("Cargo.lock")).unwrap();
    let sources = copied.join("sources");
    for package in COPIED {
        copy(&root.join(package).join("src"), &sources.join(package).join("src"));
        std::fs::create_dir_all(sources.join(package)).unwrap();
        write(sources.join(package).join("Cargo.toml"), &without_tests(&read(&root.join(package).join("Cargo.toml"))));
    }
    let bins = sources.join("testnet/src/bin");
    std::fs::create_dir_all(&bins).unwrap();
    write(bins.join("fedprune-mutants.rs"), include_str!("mutants/hunt.rs"));
    let mut texts = std::collections::BTreeMap::<&str, String>::new();
    for Mutant { name, changes, .. } in &MUTANTS {
        let active = format!("(std::env::var(\"FEDPRUNE_MUTANT\").as_deref() == Ok(\"{name}\"))");
        for (file, from, to) in *changes {
            let text = texts.entry(file).or_insert_with(|| read(&root.join(file)));
            assert_eq!(text.matches(from).count(), 1, "mutant `{name}`: `{from}` is not once in `{file}`");
            *text = text.replace(from, &to.replace(ACTIVE, &active));
        }
    }
    for (file, text) in texts {
        write(sources.join(file), &text);
    }
    // what is broken goes where the manifest looks for it; files that did not change keep their times
    for package in COPIED {
        copy(&sources.join(package), &copied.join(package));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--package", "fedprune-testnet", "--bin", "fedprune-mutants"])
        // built once and run for seconds
        .args(["--config", "profile.dev.opt-level=1", "--config", "profile.dev.debug=false"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(&copied)
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("debug/fedprune-mutants")
}

fn hunt(program: &Path, mutant: &str, seeds: &str) -> String {
    let ran = Command::new(program).args(["4", seeds]).env("FEDPRUNE_MUTANT", mutant).output().expect("it runs");
    assert!(ran.status.success(), "{mutant}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

#[test]
#[expect(clippy::print_stdout, reason = "at which seeds, for those who ask for it")]
fn broken_builds_are_caught() {
    let program = build();
    assert_eq!(hunt(&program, "none", "20"), "none of 20", "the sources as they are pass");
    for Mutant { name, caught_as, .. } in &MUTANTS {
        let told = hunt(&program, name, SEEDS);
        println!("{name}: {told}");
        assert!(told.starts_with("seed "), "the mutant `{name}` is not caught: {told}");
        assert!(caught_as.iter().any(|words| told.contains(words)), "{name}: {told}");
    }
}
