//! Transcripts of which one thing was changed: what the audit says, and whom it blames.

mod support;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use fedprune_audit::{Report, Verdict};
use fedprune_federation::{Height, RoundId};
use fedprune_mask::Digest;
use proptest::prelude::*;
use support::*;

fn one_shot() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World::new(ONE_SHOT))
}

fn iterative() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World::new(ITERATIVE))
}

fn elected() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World::new(ELECTED))
}

/// Audits a copy of a world's transcript after a change.
fn after(world: &World, change: impl FnOnce(&Path)) -> Report {
    let (_folder, copy) = world.copy();
    change(&copy);
    world.audit_of(&copy)
}

#[track_caller]
fn fails(report: &Report, blamed: &[&str], says: &str) {
    assert_verdict(report, Verdict::Failed, blamed);
    assert!(report.failures().count() > 0);
    let text = report.text();
    assert!(text.contains(says), "`{says}` is not in\n{text}");
}

fn body_file(world: &World, height: usize, member: usize) -> String {
    format!("bodies/{}.ballot", Digest::of(&world.bodies[height][member]))
}

/// One bit in the middle of any file that is signed or hashed, and every file that goes missing.
#[test]
fn every_file_matters() {
    for world in [one_shot(), iterative(), elected()] {
        for file in files_below(&world.transcript()) {
            let flipped = after(world, |copy| flip(&copy.join(&file)));
            if file == "consortium.bin" {
                // without it the folder is no transcript at all
                assert_verdict(&flipped, Verdict::Failed, &[]);
                continue;
            }
            let missing = after(world, |copy| fs::remove_file(copy.join(&file)).unwrap());
            let (of_flip, of_loss) = match file.as_str() {
                // nothing is said about it and nothing hangs on it
                "summary.json" => (Verdict::Verified, Verdict::Verified),
                _ if file.starts_with("bodies/") => (Verdict::Failed, Verdict::Incomplete),
                // what members say beside the decision: four results, three needed; the decision quotes holdings
                _ if file.contains("/results/") || file.contains("/holdings/") || file.contains("/proposals/") => {
                    (Verdict::Failed, Verdict::Verified)
                }
                _ => (Verdict::Failed, Verdict::Failed),
            };
            assert_eq!((flipped.verdict, missing.verdict), (of_flip, of_loss), "{file}\n{}", flipped.text());
            assert_eq!(flipped.blamed(), Vec::<&str>::new(), "{file}: whoever flipped the bit is not known");
        }
    }
}

#[test]
fn every_bit_of_a_signed_statement_matters() {
    let world = one_shot();
    let (_folder, copy) = world.copy();
    for class in ["headers", "holdings", "results"] {
        let file = first_of_class(&copy, class);
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&file, bytes).unwrap();
            // model and pruned copy have no part in it
            let report = world.audit_with(&copy, |options| (options.model, options.pruned) = (None, None));
            assert_verdict(&report, Verdict::Failed, &[]);
        }
        fs::write(&file, good).unwrap();
    }
}

#[test]
fn files_cut_short_or_made_longer() {
    let world = one_shot();
    for file in files_below(&world.transcript()).iter().filter(|file| !file.ends_with(".json")) {
        let longer = after(world, |copy| {
            let mut bytes = fs::read(copy.join(file)).unwrap();
            bytes.push(0);
            fs::write(copy.join(file), bytes).unwrap();
        });
        assert_verdict(&longer, Verdict::Failed, &[]);
        let shorter = after(world, |copy| {
            let mut bytes = fs::read(copy.join(file)).unwrap();
            bytes.pop();
            fs::write(copy.join(file), bytes).unwrap();
        });
        assert_verdict(&shorter, Verdict::Failed, &[]);
        let empty = after(world, |copy| fs::write(copy.join(file), b"").unwrap());
        assert_verdict(&empty, Verdict::Failed, &[]);
    }
}

proptest! {
    /// Whatever byte of whatever file is changed, the audit says so and blames nobody.
    #[test]
    fn any_changed_byte_is_noticed(file in 0usize..1000, at in 0usize..1_000_000, change in 1u8..=255) {
        let world = iterative();
        let files: Vec<String> =
            files_below(&world.transcript()).into_iter().filter(|file| file != "summary.json").collect();
        let file = &files[file % files.len()];
        let report = after(world, |copy| {
            let mut bytes = fs::read(copy.join(file)).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= change;
            fs::write(copy.join(file), bytes).unwrap();
        });
        prop_assert_eq!((report.verdict, report.blamed()), (Verdict::Failed, vec![]), "{}", file);
    }
}

#[test]
fn swapped_bodies() {
    let world = one_shot();
    let (a, b) = (body_file(world, 0, 0), body_file(world, 0, 1));
    let report = after(world, |copy| {
        let (one, other) = (fs::read(copy.join(&a)).unwrap(), fs::read(copy.join(&b)).unwrap());
        fs::write(copy.join(&a), other).unwrap();
        fs::write(copy.join(&b), one).unwrap();
    });
    fails(&report, &[], "ballot of `north` at height 0");
}

#[test]
fn a_ballot_replaced_by_another_of_the_same_size() {
    let world = one_shot();
    let file = body_file(world, 0, 0);
    let report = after(world, |copy| {
        let mut bytes = fs::read(copy.join(&file)).unwrap();
        bytes.reverse();
        fs::write(copy.join(&file), bytes).unwrap();
    });
    fails(&report, &[], "its digest is");
}

#[test]
fn a_header_missing_where_another_ballot_was_signed_too() {
    let world = one_shot();
    let report = after(world, |copy| {
        let second = world.header(Height(0), EAST, b"another ballot");
        let name = fedprune_audit::transcript::header_name(EAST, Digest::of(b"another ballot"));
        fs::write(copy.join("heights/0000/headers").join(name), second.encode()).unwrap();
        let first = fedprune_audit::transcript::header_name(EAST, Digest::of(&world.bodies[0][0]));
        fs::remove_file(copy.join("heights/0000/headers").join(first)).unwrap();
    });
    fails(&report, &[], "no header of ballot");
}

#[test]
fn statements_under_the_name_of_another() {
    let world = one_shot();
    let results = "heights/0000/results";
    let report = after(world, |copy| {
        fs::copy(copy.join(results).join("0001.bin"), copy.join(results).join("0000.bin")).unwrap();
    });
    fails(&report, &[], "its content belongs under the name `0001.bin`");
    let report = after(world, |copy| {
        let file = first_of_class(copy, "proposals");
        fs::rename(&file, file.with_file_name("0007-0000-0123456789abcdef.bin")).unwrap();
    });
    fails(&report, &[], "its content belongs under the name");
}

#[test]
fn statements_of_another_height() {
    let world = iterative();
    for class in ["headers", "holdings", "results", "proposals"] {
        let report = after(world, |copy| {
            let file = first_of_class(copy, class);
            let target = copy.join("heights/0001").join(class).join(file.file_name().unwrap());
            fs::copy(file, target).unwrap();
        });
        fails(&report, &[], "it is of height 0, and lies at height 1");
    }
    let report = after(world, |copy| {
        fs::copy(copy.join("heights/0000/settled.bin"), copy.join("heights/0001/settled.bin")).unwrap();
    });
    fails(&report, &[], "it is of height 0, and is `heights/0001/settled.bin`");
}

#[test]
fn statements_of_another_round() {
    let world = one_shot();
    let other = World::with(ONE_SHOT, |terms| terms.timers.vote_ms += 1);
    for file in
        ["heights/0000/settled.bin", "heights/0000/results/0000.bin", "heights/0000/holdings/0000.bin", "round.bin"]
    {
        let report = after(world, |copy| {
            fs::copy(other.transcript().join(file), copy.join(file)).unwrap();
        });
        fails(&report, &[], "");
    }
    // consistent in itself, and not what was asked for
    let report = world.audit_of(&other.transcript());
    fails(&report, &[], "this transcript is of something else");
    assert_eq!(report.failures().count(), 1);
}

#[test]
fn wrong_ids() {
    let world = one_shot();
    let wrong = RoundId(Digest([1; 32]));
    let report = world.audit_with(&world.transcript(), |options| options.round = Some(wrong));
    fails(&report, &[], "round id");
    let wrong = fedprune_federation::ConsortiumId(Digest([1; 32]));
    let report = world.audit_with(&world.transcript(), |options| options.consortium = Some(wrong));
    fails(&report, &[], "consortium id");
}

#[test]
fn a_member_that_never_signed_the_consortium() {
    let world = one_shot();
    let report = after(world, |copy| {
        let consortium = world.consortium.consortium().clone();
        let mut draft = fedprune_federation::Draft::new(consortium);
        for member in [EAST, NORTH, SOUTH] {
            draft.sign(&key(member)).unwrap();
        }
        fs::write(copy.join("consortium.signatures"), draft.encode_signatures()).unwrap();
    });
    fails(&report, &[], "1 of 4 members have not signed the consortium: `west`");
}

#[test]
fn results_that_were_exchanged() {
    let world = one_shot();
    // three members sign what the ballots do not come to: q equal results, and still wrong
    let report = after(world, |copy| {
        for member in [EAST, SOUTH, WEST] {
            let name = format!("{:04}.bin", member.0);
            let result = world.result(Height(0), member, Digest([5; 32]));
            fs::write(copy.join("heights/0000/results").join(name), result.encode()).unwrap();
        }
    });
    fails(&report, &["east"], "`east`, `south`, `west`");
    assert_eq!(report.findings.len(), 3);
    // two results are no quorum
    let report = after(world, |copy| {
        for name in ["0000.bin", "0001.bin"] {
            fs::remove_file(copy.join("heights/0000/results").join(name)).unwrap();
        }
    });
    fails(&report, &[], "there are 2 results");
}

#[test]
fn a_certified_decision_that_the_results_contradict() {
    let world = one_shot();
    let report = after(world, |copy| {
        let statements = [EAST, NORTH, WEST].map(|member| world.holdings(Height(0), member, 3));
        let other = fedprune_federation::Justified::from_holdings(
            &statements,
            Height(0),
            None,
            &world.consortium,
            &world.round,
        )
        .unwrap();
        let settled = world.settled(Height(0), 0, other);
        fs::write(copy.join("heights/0000/settled.bin"), settled.encode()).unwrap();
    });
    // it is certified and follows from its statements, and its mask is not what the members signed
    fails(&report, &["east"], "0 are equal to it; others were signed by `east`, `north`, `south`, `west`");
}

#[test]
fn heights_missing_and_beyond_the_last() {
    let world = iterative();
    let report = after(world, |copy| fs::remove_dir_all(copy.join("heights/0000")).unwrap());
    fails(&report, &[], "`heights/0000/settled.bin` is missing");
    let report = after(world, |copy| fs::remove_dir_all(copy.join("heights/0001")).unwrap());
    fails(&report, &[], "`heights/0001/settled.bin` is missing");
    let report = after(world, |copy| copy_folder(&copy.join("heights/0001"), &copy.join("heights/0002")));
    fails(&report, &[], "there is a decision of height 2, which the round does not have");
    // without the model nobody knows how many there are, but a gap is a gap
    let (_folder, copy) = world.copy();
    fs::remove_dir_all(copy.join("heights/0000")).unwrap();
    let report = world.audit_with(&copy, |options| (options.model, options.pruned) = (None, None));
    fails(&report, &[], "decision of height 0");
}

#[test]
fn pruned_checkpoints_that_differ() {
    // worlds of its own, since it changes what the others compare with
    for world in [ONE_SHOT, ELECTED, ITERATIVE].map(World::new) {
        let pruned = world.path("pruned").join("model.safetensors");
        let good = fs::read(&pruned).unwrap();
        let header_bytes = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&good[8..8 + header_bytes]).unwrap();
        for (tensor, says) in [
            ("model.layers.1.mlp.down_proj.weight", "weights of `model.layers.1.mlp.down_proj.weight` differ"),
            (
                "model.layers.0.input_layernorm.weight",
                "`model.layers.0.input_layernorm.weight` is not that of the base",
            ),
            ("lm_head.weight", "`lm_head.weight` is not that of the base model"),
        ] {
            let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
            let mut bytes = good.clone();
            bytes[8 + header_bytes + start] ^= 1;
            fs::write(&pruned, bytes).unwrap();
            fails(&world.audit(), &[], says);
        }
        fs::write(&pruned, &good).unwrap();
        let config = world.path("pruned").join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("10000.0", "20000.0")).unwrap();
        fails(&world.audit(), &[], "configuration of the pruned checkpoint");
        fs::write(&config, "{").unwrap();
        fails(&world.audit(), &[], "pruned checkpoint");
        fs::write(&config, text).unwrap();
        assert_verdict(&world.audit(), Verdict::Verified, &[]);
        // the dense model is no pruned one
        let report = world.audit_with(&world.transcript(), |options| options.pruned = options.model);
        fails(&report, &[], "which is pruned by the mask");
    }
}

/// Damage is found wherever a file of the right name is not what it should be, and strangers' files are told.
#[test]
fn foreign_files_are_told_and_change_nothing() {
    let world = one_shot();
    let report = after(world, |copy| {
        fs::write(copy.join("notes.txt"), "hello").unwrap();
        fs::write(copy.join("heights/0000/results/north.bin"), "hello").unwrap();
        fs::create_dir_all(copy.join("heights/first/deep/deeper")).unwrap();
        fs::write(copy.join("bodies/\u{1b}[2J"), "hello").unwrap();
        fs::write(copy.join("heights/0000/.unfinished"), "half").unwrap();
    });
    assert_verdict(&report, Verdict::Verified, &[]);
    assert_eq!(report.notes.len(), 4, "{:?}", report.notes);
    assert!(report.notes.iter().all(|note| !note.contains('\u{1b}')));
    for name in ["notes.txt", "heights/0000/results/north.bin", "heights/first"] {
        assert!(report.notes.iter().any(|note| note.contains(name)), "{name}: {:?}", report.notes);
    }
}

/// What is in the right place and belongs to nothing is told.
#[test]
fn idle_ballots_and_heights_are_told() {
    let world = one_shot();
    let report = after(world, |copy| {
        fs::write(copy.join(format!("bodies/{}.ballot", Digest::of(b"idle"))), "idle").unwrap();
        copy_folder(&copy.join("heights/0000"), &copy.join("heights/0003"));
        fs::remove_file(copy.join("heights/0003/settled.bin")).unwrap();
    });
    assert_verdict(&report, Verdict::Verified, &[]);
    assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
    assert!(report.notes[0].contains("`heights/0003` is beyond the last height"), "{:?}", report.notes);
    assert!(report.notes[1].contains("1 ballots count at no height"), "{:?}", report.notes);
}

/// A file that has a transcript's name and is nothing of the kind is a failure.
#[test]
fn foreign_files_under_our_names_fail() {
    let world = one_shot();
    for file in [
        "heights/0000/results/0009.bin",
        "heights/0000/headers/0000-0123456789abcdef.bin",
        "heights/0000/evidence/0123456789abcdef.bin",
        "heights/0000/proposals/0000-0000-0123456789abcdef.bin",
    ] {
        let report = after(world, |copy| {
            fs::create_dir_all(copy.join(file).parent().unwrap()).unwrap();
            fs::write(copy.join(file), "hello").unwrap();
        });
        fails(&report, &[], file);
    }
}
