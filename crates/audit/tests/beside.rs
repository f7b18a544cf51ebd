//! What lies beside the weights of a pruned folder: an honest copy passes whatever the base model has beside its own, and
//! nothing else does.

mod support;

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;

use fedprune_audit::report::{Outcome, Report};
use fedprune_audit::{Verdict, verify::MASK_FILE};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::MaskHeader;
use fedprune_mask::{MatrixMask, encode_mask};
use support::*;

/// A round whose base model and copy have what such folders have.
struct Place {
    world: World,
}

impl Place {
    fn new() -> Self {
        let place = Self { world: World::new(ONE_SHOT) };
        for (name, text) in [
            ("README.md", "of the base"),
            ("tokenizer_config.json", "{}"),
            ("LICENSE", "free"),
            // these are left out of copies
            ("pytorch_model.bin", "weights"),
            ("model.safetensors.index.json", "{}"),
            (".gitattributes", "x"),
            ("fetched-from.json", "{}"),
        ] {
            fs::write(place.base(name), text).unwrap();
        }
        fs::create_dir(place.base("onnx")).unwrap();
        for (name, text) in [
            ("README.base.md", "of the base"),
            ("tokenizer_config.json", "{}"),
            ("README.md", "a card"),
            ("pruning-recipe.toml", "a = 1"),
            ("pruning-sparsity.svg", "<svg/>"),
            ("pruning-agreement.svg", "<svg/>"),
        ] {
            fs::write(place.pruned(name), text).unwrap();
        }
        fs::write(place.pruned(MASK_FILE), place.mask(false)).unwrap();
        place
    }

    fn base(&self, name: &str) -> PathBuf {
        self.world.path("model").join(name)
    }

    fn pruned(&self, name: &str) -> PathBuf {
        self.world.path("pruned").join(name)
    }

    /// The mask file of the round, or of another mask that keeps the budgets.
    fn mask(&self, other: bool) -> Vec<u8> {
        let checkpoint = Checkpoint::open(&self.world.path("model")).unwrap();
        let (layout, terms) = (&self.world.layout, self.world.round.terms());
        let tally = self.world.tally(layout, &self.world.bodies[0]);
        let header = MaskHeader {
            model: terms.base_model,
            layout: layout.digest(),
            group: terms.global_group,
            sparsity: terms.sparsity,
            votes: 4,
        };
        let mut masks = |index: usize| {
            let mask = tally.matrix(index, checkpoint.matrix(index)).unwrap().0;
            Ok::<_, Infallible>(if other && index == 3 { inverse(&mask) } else { mask })
        };
        let mut bytes = Vec::new();
        encode_mask(&header, layout, &mut masks, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        bytes
    }

    #[track_caller]
    fn fails(&self, says: &str) {
        let report = self.world.audit();
        assert_eq!(report.verdict, Verdict::Failed, "`{says}`: {}", report.text());
        let all: Vec<&str> = report.failures().map(why).collect();
        assert!(all.len() == 1 && all[0].contains(says), "`{says}` is not alone in {all:?}");
    }
}

/// Half of the weights are pruned: so they are the other way round.
fn inverse(mask: &MatrixMask) -> MatrixMask {
    let mut inverse = MatrixMask::kept(mask.rows(), mask.columns());
    for row in 0..mask.rows() {
        for column in (0..mask.columns()).filter(|column| !mask.get(row, *column)) {
            inverse.prune(row, column);
        }
    }
    inverse
}

fn why(check: &fedprune_audit::Check) -> &str {
    match &check.outcome {
        Outcome::Failed { why, .. } => why,
        _ => "",
    }
}

fn compared(report: &Report) -> String {
    let check = report.checks.iter().find(|check| check.subject == "other files of the pruned folder").unwrap();
    assert_eq!(check.outcome, Outcome::Passed);
    check.compared.clone()
}

#[test]
fn an_honest_copy_passes_and_what_was_not_compared_is_listed() {
    let place = Place::new();
    let report = place.world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    assert_eq!(
        compared(&report),
        "`README.base.md`, `config.json`, `tokenizer.json`, `tokenizer_config.json` with those of the base model, byte for \
         byte; not compared, since whoever pruned or fetched it made them: `README.md`, `pruning-agreement.svg`, \
         `pruning-recipe.toml`, `pruning-sparsity.svg`; of the base model's, it does not have `LICENSE`"
    );
    let mask = report.checks.iter().find(|check| check.subject.contains(MASK_FILE)).unwrap();
    assert_eq!(mask.outcome, Outcome::Passed);
    // what a download leaves, in the copy
    fs::write(place.pruned("fetched-from.json"), "{\"of\":\"the copy\"}").unwrap();
    fs::write(place.pruned(".lock"), "").unwrap();
    // and the copy of a copy
    fs::write(place.base("README.base.md"), "of the base's base").unwrap();
    fs::write(place.pruned("README.base.md"), "of the base's base").unwrap();
    fs::write(place.pruned("README.base-2.md"), "of the base").unwrap();
    fs::write(place.base(MASK_FILE), "an earlier mask").unwrap();
    let report = place.world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    assert!(compared(&report).contains("`.lock`, `README.md`, `fetched-from.json`"), "{}", compared(&report));
}

#[test]
fn whatever_else_lies_there_is_named() {
    let place = Place::new();
    for (name, says) in [
        ("adapter_config.json", "`adapter_config.json` is not in the base model"),
        ("modeling_llama.py", "`modeling_llama.py` is not in the base model"),
        ("generation_config.json", "`generation_config.json` is not in the base model"),
        ("adapter_model.safetensors", "`adapter_model.safetensors` is not in the base model"),
        ("pruned.sig", "`pruned.sig` is not in the base model"),
        ("README.base-x.md", "`README.base-x.md` is not in the base model"),
        ("LICENSE", "`LICENSE` is not that of the base model"),
        (".hidden", "`.hidden` is hidden"),
        (".gitattributes", "`.gitattributes` is hidden"),
        (".lock", "`.lock` is hidden"),
    ] {
        fs::write(place.pruned(name), "x").unwrap();
        place.fails(says);
        fs::remove_file(place.pruned(name)).unwrap();
    }
    // unpruned weights of the base model are no part of a copy, though they are the base model's
    for name in ["pytorch_model.bin", "model.safetensors.index.json"] {
        fs::copy(place.base(name), place.pruned(name)).unwrap();
        place.fails("is unpruned weights of the base model");
        fs::remove_file(place.pruned(name)).unwrap();
    }
    fs::create_dir(place.pruned("onnx")).unwrap();
    place.fails("`onnx` is no regular file");
    fs::remove_dir(place.pruned("onnx")).unwrap();
    assert_verdict(&place.world.audit(), Verdict::Verified, &[]);
    // all of them at once are told
    fs::write(place.pruned("a.py"), "x").unwrap();
    fs::write(place.pruned("b.py"), "x").unwrap();
    place.fails("`a.py` is not in the base model; `b.py` is not in the base model");
}

#[test]
fn changed_files_are_named() {
    let place = Place::new();
    for name in ["tokenizer_config.json", "README.base.md", "config.json"] {
        let good = fs::read(place.pruned(name)).unwrap();
        // of `config.json`, what the digest of the configuration does not see
        let changed = if name == "config.json" { [&good[..], b"\n"].concat() } else { b"changed".to_vec() };
        fs::write(place.pruned(name), changed).unwrap();
        place.fails(&format!("`{name}` is not that of the base model"));
        fs::write(place.pruned(name), good).unwrap();
    }
    assert_verdict(&place.world.audit(), Verdict::Verified, &[]);
}

#[test]
fn the_mask_file_is_that_of_the_round() {
    let place = Place::new();
    let good = place.mask(false);
    for (bytes, says) in [
        (b"junk".to_vec(), "it is no mask of this model"),
        (Vec::new(), "it has 0 bytes"),
        (good[..good.len() - 1].to_vec(), "it is no mask of this model"),
        ([&good[..], b"x"].concat(), "it is no mask of this model"),
        (place.mask(true), "it is another mask, of root"),
        (place.world.bodies[0][0].clone(), "it is the ballot of one member"),
    ] {
        fs::write(place.pruned(MASK_FILE), bytes).unwrap();
        place.fails(says);
    }
    // without one the weights are compared all the same
    fs::remove_file(place.pruned(MASK_FILE)).unwrap();
    assert_verdict(&place.world.audit(), Verdict::Verified, &[]);
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere_else() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let outside = place.world.path("outside");
    fs::write(&outside, "{}").unwrap();
    fs::remove_file(place.pruned("tokenizer_config.json")).unwrap();
    symlink(&outside, place.pruned("tokenizer_config.json")).unwrap();
    place.fails("`tokenizer_config.json` is a link out of the folder");
    fs::remove_file(place.pruned("tokenizer_config.json")).unwrap();
    symlink("nowhere", place.pruned("tokenizer_config.json")).unwrap();
    place.fails("`tokenizer_config.json` cannot be read");
    fs::remove_file(place.pruned("tokenizer_config.json")).unwrap();
    fs::remove_file(place.pruned(MASK_FILE)).unwrap();
    symlink("/dev/zero", place.pruned(MASK_FILE)).unwrap();
    place.fails("is a link out of the folder");
    fs::remove_file(place.pruned(MASK_FILE)).unwrap();
    // as in a Hugging Face cache
    let cache = place.world.path("models--x");
    fs::create_dir_all(cache.join("snapshots/rev")).unwrap();
    fs::create_dir(cache.join("blobs")).unwrap();
    for (at, name) in ["config.json", "tokenizer.json", "model.safetensors"].iter().enumerate() {
        fs::copy(place.pruned(name), cache.join(format!("blobs/{at}"))).unwrap();
        symlink(format!("../../blobs/{at}"), cache.join("snapshots/rev").join(name)).unwrap();
    }
    let snapshot = cache.join("snapshots/rev");
    let audit = || {
        let options = fedprune_audit::Options {
            consortium: Some(place.world.consortium.id()),
            round: Some(place.world.round.id()),
            model: Some(&place.world.path("model")),
            pruned: Some(&snapshot),
            ..Default::default()
        };
        fedprune_audit::verify(&place.world.transcript(), &options, &|_| ()).unwrap()
    };
    assert_verdict(&audit(), Verdict::Verified, &[]);
}
