//! Whole rounds, audited: each verdict, and what it rests on.

mod support;

use std::fs;

use fedprune_audit::report::{Area, Fault, Outcome};
use fedprune_audit::{Options, Verdict, show, verify};
use fedprune_federation::{Height, Justified};
use fedprune_mask::Digest;
use support::*;

#[test]
fn honest_rounds_verify() {
    for kind in [ONE_SHOT, ITERATIVE, ELECTED] {
        let world = World::new(kind);
        let report = world.audit();
        assert_verdict(&report, Verdict::Verified, &[]);
        assert_eq!(report.mask_root, Some(world.mask_root));
        assert_eq!(report.findings, []);
        assert_eq!(report.verdict.exit_code(), 0);
        for (height, root) in report.heights.iter().zip(&world.roots) {
            assert_eq!((height.agreed_mask_root, height.recomputed_mask_root), (Some(*root), Some(*root)));
            assert_eq!(height.contributors.len(), 4);
            assert_eq!(height.committed, ["north", "south", "west"]);
        }
        assert_eq!(report.heights.len(), world.roots.len());
        // nothing is left out: each of these was compared at each height
        for area in [Area::Header, Area::Holdings, Area::Decision, Area::Ballot, Area::Mask, Area::Proposal] {
            for height in 0..world.roots.len() {
                let made =
                    report.checks.iter().any(|check| (check.area, check.height) == (area, Some(Height(height as u32))));
                assert!(made, "{area:?} at height {height}");
            }
        }
        assert!(report.checks.iter().any(|check| check.area == Area::Pruned));
        assert!(report.text().trim_end().lines().last().unwrap().starts_with("VERIFIED: "), "{}", report.text());
    }
}

#[test]
fn without_ids_it_is_self_consistent() {
    let world = World::new(ONE_SHOT);
    let report = world.audit_with(&world.transcript(), |options| options.round = None);
    assert_verdict(&report, Verdict::SelfConsistent, &[]);
    let report = world.audit_with(&world.transcript(), |options| (options.consortium, options.round) = (None, None));
    assert_verdict(&report, Verdict::SelfConsistent, &[]);
    assert_eq!(report.verdict.exit_code(), 10);
    assert!(report.in_words().contains("--consortium-id"), "{}", report.in_words());
}

#[test]
fn without_model_or_bodies_it_is_incomplete() {
    let world = World::new(ITERATIVE);
    let report = world.audit_with(&world.transcript(), |options| (options.model, options.pruned) = (None, None));
    assert_verdict(&report, Verdict::Incomplete, &[]);
    assert_eq!(report.verdict.exit_code(), 11);
    let skipped: Vec<&str> = report.not_checked().map(|check| check.subject.as_str()).collect();
    for subject in ["base model", "mask of height 0", "mask of height 1", "number of heights"] {
        assert!(skipped.contains(&subject), "{skipped:?}");
    }
    // what q members signed is known all the same
    assert_eq!(report.heights[1].agreed_mask_root, Some(world.roots[1]));
    let report = world.audit_with(&world.transcript(), |options| options.model = None);
    assert_verdict(&report, Verdict::Incomplete, &[]);
    assert!(report.not_checked().any(|check| check.subject == "pruned checkpoint"));

    let (_folder, copy) = world.copy();
    let body = Digest::of(&world.bodies[1][2]);
    fs::remove_file(copy.join(format!("bodies/{body}.ballot"))).unwrap();
    let report = world.audit_of(&copy);
    assert_verdict(&report, Verdict::Incomplete, &[]);
    let skipped: Vec<&str> = report.not_checked().map(|check| check.subject.as_str()).collect();
    assert_eq!(skipped, ["ballot of `south` at height 1", "mask of height 1", "pruned checkpoint"]);
    // a failure weighs more than what is missing
    flip(&first_of_class(&copy, "headers"));
    assert_verdict(&world.audit_of(&copy), Verdict::Failed, &[]);
}

#[test]
fn another_model_is_told() {
    let world = World::new(ONE_SHOT);
    write_model(&world.path("other"), "other");
    let other = world.path("other");
    let (model, pruned) = (world.path("model"), world.path("pruned"));
    let options = |model| Options {
        consortium: Some(world.consortium.id()),
        round: Some(world.round.id()),
        model: Some(model),
        pruned: Some(&pruned),
        ..Options::default()
    };
    let report = verify(&world.transcript(), &options(other.as_path()), &|_| ()).unwrap();
    assert_verdict(&report, Verdict::Failed, &[]);
    assert!(report.in_words().contains("not the round's model"), "{}", report.in_words());
    let nowhere = world.path("nowhere");
    let error = verify(&world.transcript(), &options(nowhere.as_path()), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    let error = verify(&world.path("pruned"), &options(model.as_path()), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("is no transcript"), "{error}");
}

#[test]
fn an_abandoned_round_verifies() {
    let world = World::new(ITERATIVE);
    fs::remove_dir_all(world.transcript()).unwrap();
    let mut writer = world.writer();
    let abandoned = Justified::abandoned(Height(0), &world.consortium, &world.round);
    let proposed = world.proposed(Height(0), 0, abandoned.clone());
    writer.proposed(proposed.proposal(), &proposed.encode()).unwrap();
    writer.settled(&world.settled(Height(0), 3, abandoned)).unwrap();
    let report = world.audit_with(&world.transcript(), |options| options.pruned = None);
    assert_verdict(&report, Verdict::Verified, &[]);
    assert!(report.heights[0].abandoned);
    assert_eq!(report.mask_root, None);
    // no pruned model can be of it
    assert_verdict(&world.audit(), Verdict::Failed, &[]);
    // and nothing comes after it
    let justified = world.justified(Height(1));
    writer.settled(&world.settled(Height(1), 0, justified)).unwrap();
    let report = world.audit_with(&world.transcript(), |options| options.pruned = None);
    assert_verdict(&report, Verdict::Failed, &[]);
    assert!(report.in_words().contains("after the round's end"), "{}", report.in_words());
}

/// A round that ended right although its first aggregator lied: everything verifies, and the liar is named.
#[test]
fn a_lying_aggregator_is_found() {
    let world = World::new(ELECTED);
    let mut writer = world.writer();
    fs::remove_file(world.transcript().join("heights/0000/settled.bin")).unwrap();
    fs::remove_dir_all(world.transcript().join("heights/0000/proposals")).unwrap();
    let lie = world.justified_with(Height(0), Some(Digest([7; 32])));
    let proposed = world.proposed(Height(0), 0, lie);
    writer.proposed(proposed.proposal(), &proposed.encode()).unwrap();
    let justified = world.justified(Height(0));
    let second = world.proposed(Height(0), 1, justified.clone());
    writer.proposed(second.proposal(), &second.encode()).unwrap();
    writer.settled(&world.settled(Height(0), 1, justified)).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    let liar = MEMBERS[world.aggregator(Height(0), 0).as_usize()];
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.member.as_str(), finding.fault)).collect();
    assert_eq!(found, [(liar, Fault::WrongMaskRoot)]);
    // without the model, what q members certified speaks against it
    let report = world.audit_with(&world.transcript(), |options| (options.model, options.pruned) = (None, None));
    assert_eq!(report.findings.len(), 1);
}

/// A wrong mask root for other ballots than the certified ones is found too, where those ballots are there.
#[test]
fn a_lie_about_other_ballots_is_found() {
    let world = World::new(ELECTED);
    let mut writer = world.writer();
    let statements = [EAST, NORTH, WEST].map(|member| world.holdings(Height(0), member, 3));
    let of_three = |root| {
        let root = Some(root);
        Justified::from_holdings(&statements, Height(0), root, &world.consortium, &world.round).unwrap()
    };
    let proposed = world.proposed(Height(0), 1, of_three(world.roots[0]));
    writer.proposed(proposed.proposal(), &proposed.encode()).unwrap();
    let report = world.audit();
    let liar = MEMBERS[world.aggregator(Height(0), 1).as_usize()];
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.member.as_str(), finding.fault)).collect();
    assert_eq!(found, [(liar, Fault::WrongMaskRoot)]);
    assert_verdict(&report, Verdict::Verified, &[]);
    // proposals of the ballots of three members, with the root that they come to
    let right = report.findings[0].what.split("its ballots come to ").nth(1).unwrap()[..64].parse().unwrap();
    let (_folder, copy) = world.copy();
    fs::remove_dir_all(copy.join("heights/0000/proposals")).unwrap();
    let proposed = world.proposed(Height(0), 1, of_three(right));
    let name =
        fedprune_audit::transcript::proposal_name(1, proposed.proposal().member(), Digest::of(&proposed.encode()));
    fs::create_dir(copy.join("heights/0000/proposals")).unwrap();
    fs::write(copy.join("heights/0000/proposals").join(name), proposed.encode()).unwrap();
    assert_eq!(world.audit_of(&copy).findings, []);
}

#[test]
fn proposals_out_of_turn_are_found() {
    let world = World::new(ONE_SHOT);
    let turn = world.aggregator(Height(0), 1);
    let pushy = if turn == EAST { WEST } else { EAST };
    let proposed = world.proposed_by(pushy, Height(0), 1, world.justified(Height(0)));
    world.writer().proposed(proposed.proposal(), &proposed.encode()).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    assert_eq!(report.findings.len(), 1);
    assert_eq!(
        (report.findings[0].member.as_str(), report.findings[0].fault),
        (MEMBERS[pushy.as_usize()], Fault::OutOfTurn)
    );
}

/// One wrong result among four does no harm and is told; too few right ones are a failure with a name.
#[test]
fn wrong_results_are_named() {
    let world = World::new(ONE_SHOT);
    let folder = world.transcript().join("heights/0000/results");
    fs::write(folder.join("0002.bin"), world.result(Height(0), SOUTH, Digest([9; 32])).encode()).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    assert_eq!((report.findings[0].member.as_str(), report.findings[0].fault), ("south", Fault::WrongResult));
    fs::remove_file(folder.join("0000.bin")).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Failed, &["south"]);
}

/// Equivocation is found from the statements alone, and from evidence, and counts once.
#[test]
fn equivocation_is_found_with_and_without_evidence() {
    let world = World::new(ONE_SHOT);
    let mut writer = world.writer();
    let second = world.header(Height(0), WEST, b"another ballot");
    writer.header(&second).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.member.as_str(), finding.fault)).collect();
    assert_eq!(found, [("west", Fault::Equivocation)]);

    let first = world.header(Height(0), WEST, &world.bodies[0][3]);
    let pair = fedprune_federation::evidence::Equivocation::between(&first, &second).unwrap();
    let evidence = fedprune_federation::Evidence::Ballot(pair);
    writer.evidence(&evidence).unwrap();
    assert_eq!(world.audit().findings.len(), 1);
    assert!(world.audit().checks.iter().any(|check| check.area == Area::Evidence && check.outcome == Outcome::Passed));

    // evidence of two prevotes, which lie nowhere else
    let vote = |value| {
        let prevote = fedprune_federation::Prevote { view: 0, value };
        world.sign(prevote, Height(0), EAST)
    };
    let pair = fedprune_federation::evidence::Equivocation::between(&vote(None), &vote(Some(Digest([1; 32])))).unwrap();
    writer.evidence(&fedprune_federation::Evidence::Prevote(pair)).unwrap();
    let found: Vec<_> = world.audit().findings.into_iter().map(|finding| finding.member).collect();
    assert_eq!(found, ["west", "east"]);
}

/// Holdings that say neither more nor less than what the same member said in the decision.
#[test]
fn conflicting_holdings_are_found_between_files() {
    let world = World::new(ONE_SHOT);
    let bodies: Vec<Option<Digest>> = vec![Some(Digest([1; 32])), None, None, None];
    let other = world.sign(fedprune_federation::Holdings::from_digests(bodies), Height(0), NORTH);
    fs::write(world.transcript().join("heights/0000/holdings/0001.bin"), other.encode()).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    assert_eq!((report.findings[0].member.as_str(), report.findings[0].fault), ("north", Fault::Equivocation));
    // an older statement that says less is no lie
    let (_folder, copy) = world.copy();
    fs::write(copy.join("heights/0000/holdings/0001.bin"), world.holdings(Height(0), NORTH, 2).encode()).unwrap();
    assert_eq!(world.audit_of(&copy).findings, []);
}

/// A ballot that breaks the round's terms and was certified all the same: its signer is named.
#[test]
fn an_invalid_ballot_that_counts_is_blamed_on_its_signer() {
    let mut world = World::new(ONE_SHOT);
    let checkpoint = fedprune_checkpoint::Checkpoint::open(&world.path("model")).unwrap();
    let sparser = World::with(ONE_SHOT, |terms| terms.sparsity = "0.25".parse().unwrap());
    let body = ballot(&sparser.round, &world.layout, &checkpoint, "x", ONE_SHOT.encodings);
    world.bodies[0][2] = body.clone();
    fs::remove_dir_all(world.transcript()).unwrap();
    let mut writer = world.writer();
    for member in [EAST, NORTH, SOUTH, WEST] {
        let body = &world.bodies[0][member.as_usize()];
        writer.header(&world.header(Height(0), member, body)).unwrap();
        let file = world.path("body");
        fs::write(&file, body).unwrap();
        writer.body(Digest::of(body), &file).unwrap();
        fs::remove_file(&file).unwrap();
        writer.result(&world.result(Height(0), member, world.roots[0])).unwrap();
    }
    writer.settled(&world.settled(Height(0), 0, world.justified(Height(0)))).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Failed, &["south"]);
    assert!(report.text().contains("sparsity is 0.25"), "{}", report.text());
}

/// A certified mask root that the ballots do not come to: a quorum stood for it.
#[test]
fn a_wrong_certified_mask_root_fails() {
    let world = World::new(ELECTED);
    fs::remove_file(world.transcript().join("heights/0000/settled.bin")).unwrap();
    let lie = world.justified_with(Height(0), Some(Digest([7; 32])));
    world.writer().settled(&world.settled(Height(0), 0, lie)).unwrap();
    let report = world.audit();
    assert_verdict(&report, Verdict::Failed, &[]);
    assert!(report.in_words().contains("committed to it all the same"), "{}", report.in_words());
}

#[test]
fn a_round_at_a_glance() {
    let world = World::new(ITERATIVE);
    let overview = show(&world.transcript(), Default::default()).unwrap();
    assert_eq!(overview.problems, Vec::<String>::new());
    assert_eq!(overview.heights.len(), 2);
    let text = overview.text();
    for part in
        ["Four", "north", "strategy = \"iterative\"", "height 1", "agreed in view 0", "results signed by east, north"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let bytes = world.bodies[0][0].len();
    assert!(text.contains(&format!("{bytes} bytes")), "{text}");
    assert!(serde_json::to_value(&overview).unwrap()["heights"][0]["contributors"][0]["ballot"].is_string());
    flip(&world.transcript().join("heights/0001/settled.bin"));
    let overview = show(&world.transcript(), Default::default()).unwrap();
    assert!(overview.problems.iter().any(|problem| problem.contains("height 1")), "{:?}", overview.problems);
}

#[test]
fn reports_are_json() {
    let world = World::new(ONE_SHOT);
    let report = serde_json::to_value(world.audit()).unwrap();
    assert_eq!(report["verdict"], "VERIFIED");
    assert_eq!(report["checks"][0]["outcome"], "passed");
    assert_eq!(report["mask_root"], world.mask_root.to_string());
    flip(&first_of_class(&world.transcript(), "headers"));
    let report = serde_json::to_value(world.audit()).unwrap();
    assert_eq!(report["verdict"], "FAILED");
    let failed = report["checks"].as_array().unwrap().iter().find(|check| check["outcome"] == "failed").unwrap();
    assert_eq!((failed["area"].as_str(), failed["height"].as_u64()), (Some("header"), Some(0)));
    assert!(failed["member"].is_null() && failed["why"].is_string());
}
