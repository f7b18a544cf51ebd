//! Two transcripts of one round, as two nodes write them, and what must not differ between them.

mod support;

use std::fs;
use std::path::Path;

use fedprune_audit::{Comparison, Limits, Sameness, compare};
use fedprune_federation::{Height, Justified};
use fedprune_mask::Digest;
use support::{EAST, ELECTED, ITERATIVE, NORTH, ONE_SHOT, World, first_of_class, flip};

#[track_caller]
fn compared(a: &Path, b: &Path, expected: Sameness) -> Comparison {
    let comparison = compare(a, b, Limits::default()).unwrap();
    assert_eq!(comparison.verdict, expected, "{}", comparison.text());
    let last = comparison.text();
    let last = last.lines().last().unwrap();
    assert!(last.starts_with(&format!("{}: ", expected.name())), "{last}");
    comparison
}

#[test]
fn a_transcript_is_the_same_as_itself() {
    for kind in [ONE_SHOT, ITERATIVE, ELECTED] {
        let world = World::new(kind);
        let (_folder, copy) = world.copy();
        let same = compared(&world.transcript(), &copy, Sameness::SameDecision);
        assert!(same.contradictions.is_empty() && same.heights.iter().all(|height| height.statements.is_empty()));
        assert_eq!(same.heights[0].mask_root_in_a, Some(world.roots[0]));
    }
}

#[test]
fn what_nodes_see_differently_is_listed_and_changes_nothing() {
    let world = World::new(ONE_SHOT);
    let (_folder, copy) = world.copy();
    fs::remove_file(first_of_class(&copy, "results")).unwrap();
    fs::remove_file(first_of_class(&copy, "holdings")).unwrap();
    let body = fs::read_dir(copy.join("bodies")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(body).unwrap();
    let same = compared(&world.transcript(), &copy, Sameness::SameDecision);
    let height = &same.heights[0];
    assert_eq!(height.statements["results"].a, ["0000.bin"]);
    assert_eq!((height.statements["holdings"].a_count, height.statements["holdings"].b_count), (1, 0));
    assert_eq!((same.bodies.a_count, same.bodies.b_count), (1, 0));
    assert!(same.text().contains("results in A alone: 0000.bin"), "{}", same.text());
}

#[test]
fn a_certificate_of_another_view_is_of_the_same_decision() {
    let world = World::new(ONE_SHOT);
    let (_folder, copy) = world.copy();
    let settled = world.settled(Height(0), 2, world.justified(Height(0)));
    fs::write(copy.join("heights/0000/settled.bin"), settled.encode()).unwrap();
    let same = compared(&world.transcript(), &copy, Sameness::SameDecision);
    assert_eq!(same.heights[0].views, (Some(0), Some(2)));
}

#[test]
fn who_has_less_is_partial() {
    let world = World::new(ITERATIVE);
    let (_folder, copy) = world.copy();
    fs::remove_dir_all(copy.join("heights/0001")).unwrap();
    // what is missing is no failure of the transcript as far as signatures tell, unless a height is half there
    let partial = compare(&world.transcript(), &copy, Limits::default()).unwrap();
    assert_eq!(partial.verdict, Sameness::Partial, "{}", partial.text());
    assert!(partial.in_words().contains("B has no decision of height 1"), "{}", partial.in_words());
}

/// More than a third signed two decisions: each transcript holds by itself.
#[test]
fn two_certified_decisions_are_a_contradiction() {
    let world = World::new(ONE_SHOT);
    let (_folder, copy) = world.copy();
    let abandoned = Justified::abandoned(Height(0), &world.consortium, &world.round);
    let settled = world.settled(Height(0), 0, abandoned);
    fs::write(copy.join("heights/0000/settled.bin"), settled.encode()).unwrap();
    let contradiction = compared(&world.transcript(), &copy, Sameness::Contradiction);
    assert_eq!(contradiction.heights[0].same_decision, Some(false));
    assert_eq!(contradiction.heights[0].ballots.a_count, 4);
}

/// One thing was said to one node and another to the other: neither transcript shows it.
#[test]
fn a_member_that_says_two_things_is_found_between_the_two() {
    let world = World::new(ONE_SHOT);
    let (_folder, copy) = world.copy();
    let mut result = first_of_class(&copy, "results");
    result.set_file_name("0001.bin");
    let lie = world.result(Height(0), NORTH, Digest::of(b"another mask"));
    fs::write(result, lie.encode()).unwrap();
    let header = first_of_class(&copy, "headers");
    fs::remove_file(&header).unwrap();
    let other = world.header(Height(0), EAST, b"another ballot");
    let name = format!("0000-{}.bin", &Digest::of(b"another ballot").to_string()[..16]);
    fs::write(header.with_file_name(name), other.encode()).unwrap();
    let comparison = compare(&world.transcript(), &copy, Limits::default()).unwrap();
    let found: Vec<(&str, bool)> = comparison
        .contradictions
        .iter()
        .map(|finding| (finding.member.as_str(), finding.what.contains("`A: ") && finding.what.contains("`B: ")))
        .collect();
    assert_eq!(found, [("east", true), ("north", true)], "{}", comparison.text());
}

#[test]
fn other_rounds_and_damage_are_told_apart() {
    let world = World::new(ONE_SHOT);
    let other = World::new(ELECTED);
    let rounds = compared(&world.transcript(), &other.transcript(), Sameness::OtherRound);
    assert!(rounds.heights.is_empty());
    let (_folder, copy) = world.copy();
    flip(&first_of_class(&copy, "results"));
    let failed = compared(&world.transcript(), &copy, Sameness::Failed);
    assert!(failed.in_words().contains("B does not hold"), "{}", failed.in_words());
    assert!(failed.heights[0].differing.a.iter().any(|name| name.starts_with("results/")));
    let (_folder, copy) = world.copy();
    flip(&copy.join("consortium.signatures"));
    compared(&copy, &world.transcript(), Sameness::Failed);
    assert!(compare(&world.transcript(), &world.path("model"), Limits::default()).is_err());
}
