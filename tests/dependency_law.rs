//! Who may know whom: the law of `docs/architecture.md`, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// For each crate, the crates of ours that it may depend on.
const OURS: &[(&str, &[&str])] = &[
    ("fedprune-mask", &[]),
    ("fedprune-checkpoint", &["fedprune-mask"]),
    ("fedprune-gpu", &["fedprune-mask"]),
    ("fedprune-model", &["fedprune-checkpoint", "fedprune-gpu", "fedprune-mask"]),
    ("fedprune-prune", &["fedprune-checkpoint", "fedprune-mask", "fedprune-model"]),
    (
        "fedprune-study",
        &["fedprune-checkpoint", "fedprune-figures", "fedprune-mask", "fedprune-model", "fedprune-prune"],
    ),
    ("fedprune-federation", &["fedprune-mask"]),
    ("fedprune-figures", &[]),
    ("fedprune-hub", &[]),
    ("fedprune-audit", &["fedprune-checkpoint", "fedprune-federation", "fedprune-mask"]),
    ("fedprune-attest", &["fedprune-federation", "fedprune-mask"]),
    ("fedprune-engine", &["fedprune-federation", "fedprune-mask"]),
    (
        "fedprune-node",
        &["fedprune-audit", "fedprune-checkpoint", "fedprune-engine", "fedprune-federation", "fedprune-mask"],
    ),
    ("fedprune-testnet", &["fedprune-audit", "fedprune-engine", "fedprune-federation", "fedprune-mask"]),
    (
        "fedprune-cli",
        &[
            "fedprune-attest",
            "fedprune-audit",
            "fedprune-checkpoint",
            "fedprune-federation",
            "fedprune-gpu",
            "fedprune-figures",
            "fedprune-hub",
            "fedprune-mask",
            "fedprune-model",
            "fedprune-node",
            "fedprune-prune",
            "fedprune-study",
            "fedprune-testnet",
        ],
    ),
];

/// Crates that only some of ours may name, directly or through others of ours below them.
const CONFINED: &[(&str, &[&str])] = &[
    ("candle-core", &["fedprune-model", "fedprune-examples", "fedprune-tests"]),
    ("candle-nn", &["fedprune-model", "fedprune-examples", "fedprune-tests"]),
    ("candle-transformers", &["fedprune-model"]),
    ("cudarc", &["fedprune-gpu"]),
    ("tokenizers", &["fedprune-model", "fedprune-examples"]),
    ("bincode", &["fedprune-mask"]),
    ("ed25519-dalek", &["fedprune-federation"]),
    ("p256", &["fedprune-attest"]),
    ("arc-malachitebft-core-consensus", &["fedprune-engine"]),
    ("tokio", &["fedprune-node", "fedprune-cli"]),
    ("libp2p", &["fedprune-node"]),
    ("hyper", &["fedprune-node"]),
    ("plotters", &["fedprune-figures"]),
    ("ureq", &["fedprune-hub"]),
    ("prometheus-client", &["fedprune-node"]),
    ("ratatui", &["fedprune-cli"]),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

/// Normal (neither build nor development) dependencies of each workspace package.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let names = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
            let names = names.map(|dependency| dependency["name"].as_str().expect("name").to_owned());
            (package["name"].as_str().expect("name").to_owned(), names.collect())
        })
        .collect()
}

#[test]
fn crates_know_only_those_below_them() {
    let dependencies = dependencies();
    for (name, allowed) in OURS {
        let ours = dependencies[*name].iter().filter(|dependency| dependency.starts_with("fedprune-"));
        for dependency in ours {
            assert!(allowed.contains(&dependency.as_str()), "`{name}` may not depend on `{dependency}`");
        }
    }
    for name in dependencies.keys() {
        let outside = ["fedprune-tests", "fedprune-examples", "fedprune-fuzz"].contains(&name.as_str());
        assert!(outside || OURS.iter().any(|(known, _)| known == name), "`{name}` has no place in the law");
    }
}

#[test]
fn heavy_and_impure_crates_stay_in_their_rooms() {
    for (name, dependencies) in dependencies() {
        for (confined, rooms) in CONFINED {
            let allowed = rooms.contains(&name.as_str());
            assert!(allowed || !dependencies.contains(*confined), "`{name}` may not depend on `{confined}`");
        }
    }
}

/// What the program is built of with these features: names of packages.
fn built_of(features: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "fedprune-cli", "--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}", "--locked", "--offline"])
        .args(features)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("names are text");
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// An auditor builds neither models nor networks nor an engine.
#[test]
fn the_auditors_program_has_what_it_needs_and_no_more() {
    let heavy = |name: &&String| {
        let families = [
            "candle",
            "libp2p",
            "arc-malachitebft",
            "tokio",
            "tokenizers",
            "quinn",
            "redb",
            "bao-tree",
            "hyper",
            "ratatui",
        ];
        let ours = ["fedprune-engine", "fedprune-model", "fedprune-node", "fedprune-prune", "fedprune-testnet"];
        families.iter().any(|family| name.starts_with(family)) || ours.contains(&name.as_str())
    };
    let audit = built_of(&["--no-default-features", "--features", "audit"]);
    assert_eq!(audit.iter().filter(heavy).collect::<Vec<_>>(), Vec::<&String>::new());
    for needed in ["fedprune-audit", "fedprune-federation", "fedprune-checkpoint", "ed25519-dalek"] {
        assert!(audit.contains(needed), "{needed} is not in {audit:?}");
    }
    // the same names in the whole program, so that the test above is not blind
    let whole = built_of(&[]);
    assert!(whole.iter().filter(heavy).any(|name| name == "candle-core"), "{whole:?}");
    assert!(audit.len() * 2 < whole.len(), "{} packages of {}", audit.len(), whole.len());
}

/// Whoever fetches models otherwise builds no client for that, and who does builds one with TLS in Rust.
#[test]
fn models_are_fetched_by_programs_that_were_built_for_it() {
    let of_fetching = ["fedprune-hub", "ureq", "webpki-roots"];
    let (default, with) = (built_of(&[]), built_of(&["--features", "fetch"]));
    for name in of_fetching {
        assert!(!default.contains(name), "`{name}` is in the program by default");
        assert!(with.contains(name), "`{name}` is not in the program that fetches");
    }
    for name in ["native-tls", "openssl", "openssl-sys", "reqwest"] {
        assert!(!with.contains(name), "`{name}` is in the program that fetches");
    }
}
