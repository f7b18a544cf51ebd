//! The short run: every target with its corpus, with what once failed, and with mutations of both that are the same on
//! every machine. Memory is counted, so one target runs at a time.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fedprune_fuzz::mutate::{Numbers, mutate};
use fedprune_fuzz::{Counting, TARGETS, corpus, files, regressions, target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Mutations of each target's inputs.
const MUTATIONS: usize = 3000;
/// When a slow target stops, having done this many at least.
const LONGEST: Duration = Duration::from_secs(4);
const FEWEST_MUTATIONS: usize = 100;

fn run(name: &str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = target(name);
    target.warm_up();
    let inputs = [files(&corpus(name)), files(&regressions(name))].concat();
    assert!(
        inputs.iter().any(|(file, _)| file.starts_with("seed-")),
        "run `cargo run -p fedprune-fuzz --example seeds`"
    );
    for (file, bytes) in &inputs {
        let taken = target.check(bytes);
        let is_seed = file.starts_with("seed-");
        assert!(taken || !is_seed, "`{file}` is no longer what it was: write the seeds again");
    }
    let mut numbers = Numbers::new(7);
    let started = Instant::now();
    for done in 0..MUTATIONS {
        if done >= FEWEST_MUTATIONS && started.elapsed() > LONGEST {
            break;
        }
        let base = &inputs[numbers.below(inputs.len())].1;
        let other = &inputs[numbers.below(inputs.len())].1;
        let bytes = mutate(base, other, &mut numbers);
        let outcome = std::panic::catch_unwind(|| target.check(&bytes));
        assert!(outcome.is_ok(), "mutation {done} fails: {}", written(name, &bytes));
    }
}

/// Where a failing input was put.
fn written(name: &str, bytes: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("fedprune-fuzz-{name}-{}", std::process::id()));
    match std::fs::write(&path, bytes) {
        Ok(()) => format!("see `{}`; `regressions/{name}` keeps it", path.display()),
        Err(error) => format!("{bytes:?} ({error})"),
    }
}

macro_rules! run {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)) })*
        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

run! {
    ballot tally ballot_round_trip message canonical document machine config safetensors request chunk wal journal
    transcript manifest proof attestation hub
}

/// Every target is here, and has a fuzzer and a corpus; nothing else has.
#[test]
fn nothing_is_left_out() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(TESTED.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), targets);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| -> BTreeSet<String> {
        let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return BTreeSet::new() };
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("libfuzzer/fuzz_targets"), targets);
    assert!(names("regressions").is_subset(&targets));
    let manifest = std::fs::read_to_string(root.join("libfuzzer/Cargo.toml")).unwrap();
    let built = manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""));
    assert_eq!(built.map(str::to_owned).collect::<BTreeSet<_>>(), targets);
}

/// The same seed gives the same inputs, or a failure could not be found again.
#[test]
fn mutations_are_the_same_every_time() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let twice = [(); 2].map(|()| {
        let mut numbers = Numbers::new(3);
        (0..200).map(|_| mutate(&[7; 200], b"another", &mut numbers)).collect::<Vec<_>>()
    });
    assert_eq!(twice[0], twice[1]);
    assert!(twice[0].iter().collect::<BTreeSet<_>>().len() > 150);
}
