//! Rounds of a consortium that has changed since it was founded: the chain is audited with them.

mod support;

use std::fs;

use fedprune_audit::Verdict;
use fedprune_audit::report::Area;
use fedprune_federation::Draft;
use fedprune_federation::consortium::Consortium;
use support::*;

#[test]
fn the_chain_is_verified_from_the_newest_id_and_from_the_founding_one() {
    let (consortium, founding) = changed_consortium();
    assert_eq!(consortium.consortium().change(), 2);
    let world = World::of(consortium, ONE_SHOT, |_| ());
    let report = world.audit();
    assert_verdict(&report, Verdict::Verified, &[]);
    let text = report.text();
    for line in [
        "change 1 of the consortium",
        "`far west` leaves; `west` joins: the agreement of `east`, `north`, `south`, 3 of 4 members",
        "`west` renews its key: the agreement of `east`, `north`, `south`, 3 of 4 members",
    ] {
        let said = report.checks.iter().any(|check| format!("{}: {}", check.subject, check.compared).contains(line));
        assert!(said, "{line}: {text}");
    }
    for link in world.consortium.lineage() {
        let report = world.audit_with(&world.transcript(), |options| options.consortium = Some(link.id()));
        assert_verdict(&report, Verdict::Verified, &[]);
        let identity = report.checks.iter().find(|check| check.area == Area::Identity).unwrap();
        let changed = identity.compared.contains("agreed to by a quorum");
        assert_eq!(changed, link.id() != world.consortium.id(), "{}", identity.compared);
    }
    assert_eq!(world.consortium.lineage().last().unwrap().id(), founding.id());
    // another consortium of the same members, which none of these succeeds
    let report = world.audit_with(&world.transcript(), |options| options.consortium = Some(consortium_of_them().id()));
    assert_eq!(report.verdict, Verdict::Failed, "{}", report.text());
}

fn consortium_of_them() -> Consortium {
    consortium().consortium().clone()
}

#[test]
fn a_chain_that_was_tampered_with_fails() {
    let (consortium, founding) = changed_consortium();
    let world = World::of(consortium, ONE_SHOT, |_| ());
    let file = "consortium.signatures";
    let fails = |bytes: &[u8]| {
        let (_folder, copy) = world.copy();
        fs::write(copy.join(file), bytes).unwrap();
        let report = world.audit_of(&copy);
        assert_eq!(report.verdict, Verdict::Failed, "{}", report.text());
    };
    let good = world.consortium.encode_signatures();
    fails(&founding.encode_signatures());
    fails(&world.consortium.predecessor().unwrap().encode_signatures());
    fails(&good[..good.len() - 66]);
    fails(&[]);
    for at in (0..good.len()).step_by(97) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fails(&bytes);
    }
    // a change that two of four agreed to
    let before = world.consortium.predecessor().unwrap().clone();
    let mut draft = Draft::succeeding(world.consortium.consortium().clone(), before).unwrap();
    draft.sign(&key(WEST)).unwrap();
    draft.agree(&key(SOUTH)).unwrap();
    fails(&draft.encode_signatures());
}
