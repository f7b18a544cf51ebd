//! Whole rounds of real nodes on the oracle's checkpoints: the global mask that the protocol comes to is the one
//! that the reference implementation computed, at once and block by block.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::{Ballot, Digest, MatrixMask};
use fedprune_tests::Fixture;
use serde_json::Value;

/// What of the oracle a round must come to.
struct Case {
    /// Lines of the manifest's `[round]`.
    round: &'static str,
    /// The expected masks, `KIND.MATRIX`.
    kind: &'static str,
}

const AT_ONCE: Case = Case { round: "local-group = \"row\"\nglobal-group = \"layer\"", kind: "global.row-layer" };
const BY_BLOCK: Case =
    Case { round: "local-group = \"row\"\nglobal-group = \"row\"\nstrategy = \"iterative\"", kind: "iterative.row" };
const BY_BLOCK_IN_PATTERNS: Case =
    Case { round: "local-group = \"2:4\"\nstrategy = \"iterative\"", kind: "iterative.2of4" };
const WEIGHTED: Case = Case {
    round: "local-group = \"layer\"\nweight = [\"silo1=3\", \"silo2=2\", \"silo4=70000\"]",
    kind: "weighted.layer",
};

/// Runs the round that a case is about; returns the mask of every silo's pruned model.
fn run(fixture: &Fixture, case: &Case, folder: &Path) -> Vec<Vec<MatrixMask>> {
    let texts = fixture.furnish(folder);
    let mut manifest = "name = \"oracle\"\nmodel = \"model\"\n".to_owned();
    for silo in 0..texts.len() {
        write!(manifest, "\n[[silo]]\nname = \"silo{silo}\"\ndata = [\"silo{silo}.txt\"]\n").expect("a string");
    }
    let (samples, tokens) = (fixture.numbers["samples"].clone(), fixture.numbers["seqlen"].clone());
    let sparsity = if case.round.contains("2:4") {
        String::new()
    } else {
        format!("sparsity = {}\n", fixture.numbers["sparsity"])
    };
    write!(
        manifest,
        "\n[round]\n{sparsity}{}\nnsamples = {samples}\nseqlen = {tokens}\nsampling = \"sequential\"\n\
         contribution-seconds = 60\nproposal-ms = 4000\nvote-ms = 2000\n\n\
         [expect]\ncontributors = {}\nevidence_against = []\nfault_named = []\nwithin_seconds = 100\n",
        case.round,
        texts.len()
    )
    .expect("a string");
    let path = folder.join("manifest.toml");
    std::fs::write(&path, manifest).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"))
        .args(["--format", "json", "--quiet", "testnet", "run"])
        .arg(&path)
        .arg("--out")
        .arg(folder.join("net"))
        .output()
        .expect("the program starts");
    let (report, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{} {}: {report}\n{errors}", fixture.name(), case.kind);
    let report: Value = serde_json::from_str(&report).expect("a JSON report");
    let agreed: Digest = report["mask_root"].as_str().expect("a mask").parse().expect("a digest");
    let checkpoint = Checkpoint::open(&fixture.folder).expect("the fixture is a checkpoint");
    let layout = checkpoint.layout();
    let silos = report["silos"].as_array().expect("silos");
    assert_eq!(silos.len(), texts.len());
    let masks = silos.iter().map(|silo| {
        let pruned = Path::new(silo["pruned"].as_str().expect("a pruned model")).join("pruning-mask.fedprune");
        let bytes = std::fs::read(pruned).expect("a mask beside the pruned model");
        let mask = Ballot::parse(&bytes, layout).expect("it parses");
        let masks: Vec<MatrixMask> = (0..layout.matrices().len())
            .map(|index| mask.mask(index, checkpoint.matrix(index)).expect("it decodes"))
            .collect();
        assert_eq!(mask_root(layout.digest(), masks.iter().map(MatrixMask::digest)), agreed);
        masks
    });
    masks.collect()
}

/// Every silo holds the oracle's mask: bit for bit among them, and as near to the oracle as its own votes are.
fn check(fixture: &Fixture, case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let held = run(fixture, case, folder.path());
    let checkpoint = Checkpoint::open(&fixture.folder).expect("the fixture is a checkpoint");
    let matrices = checkpoint.layout().matrices();
    let expected = matrices.iter().map(|matrix| {
        let (_, bytes) = fixture.tensor(&format!("{}.{}", case.kind, matrix.name));
        MatrixMask::from_bytes(matrix.rows as usize, matrix.columns as usize, &bytes).expect("a packed mask")
    });
    let expected: Vec<MatrixMask> = expected.collect();
    for masks in &held {
        assert!(masks == &held[0], "all silos hold one mask");
    }
    let different: u64 = held[0].iter().zip(&expected).map(|(mask, expected)| mask.count_different(expected)).sum();
    let bits = checkpoint.layout().weights();
    let name = fixture.name();
    // the oracle's tolerance for votes that were computed, not given: float32 sums in another order
    assert!(different * 1000 <= bits, "{name} {}: {different} of {bits} bits differ", case.kind);
}

#[test]
fn rounds_come_to_the_masks_of_the_oracle() {
    for fixture in Fixture::all() {
        check(&fixture, &BY_BLOCK);
    }
    let llama = Fixture::all().into_iter().find(|fixture| fixture.name() == "llama").expect("a fixture");
    for case in [AT_ONCE, WEIGHTED, BY_BLOCK_IN_PATTERNS] {
        check(&llama, &case);
    }
}
