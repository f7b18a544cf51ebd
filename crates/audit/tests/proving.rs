//! A small file in place of a transcript: that a member's ballot counts.

mod support;

use std::fs;

use fedprune_audit::{Limits, ProveError, prove};
use fedprune_federation::{Height, Justified, ReceivedInclusion};
use fedprune_mask::Digest;
use support::{ELECTED, ITERATIVE, ONE_SHOT, World, first_of_class, flip};

#[test]
fn what_counts_is_proven_by_the_file_alone() {
    for kind in [ONE_SHOT, ITERATIVE, ELECTED] {
        let world = World::new(kind);
        let proven = prove(&world.transcript(), "south", None, Limits::default()).unwrap();
        assert!(proven.not_counted.is_empty());
        let bytes = proven.proof.unwrap().encode();
        let received = ReceivedInclusion::decode(&bytes).unwrap();
        let proof = received.check(world.consortium.id(), Some(world.round.id())).unwrap();
        assert_eq!(proof.heights().len(), world.roots.len());
        for (height, included) in proof.heights().iter().enumerate() {
            assert_eq!(included.header().body, Digest::of(&world.bodies[height][2]));
            assert_eq!(included.mask_root(), world.roots[height]);
        }
        let one = prove(&world.transcript(), "south", Some(Height(0)), Limits::default()).unwrap().proof.unwrap();
        assert_eq!(one.heights().len(), 1);
    }
}

#[test]
fn bodies_are_not_needed_and_other_damage_is_not_in_the_way() {
    let world = World::new(ONE_SHOT);
    fs::remove_dir_all(world.transcript().join("bodies")).unwrap();
    flip(&first_of_class(&world.transcript(), "results")); // of east; three are left
    flip(&first_of_class(&world.transcript(), "headers"));
    assert!(prove(&world.transcript(), "west", None, Limits::default()).unwrap().proof.is_some());
    let error = prove(&world.transcript(), "east", None, Limits::default()).unwrap_err();
    assert!(matches!(error, ProveError::Height { .. }) && error.to_string().contains("no signed header"), "{error}");
    fs::remove_file(first_of_class(&world.transcript(), "results").with_file_name("0001.bin")).unwrap();
    let error = prove(&world.transcript(), "west", None, Limits::default()).unwrap_err();
    assert!(matches!(error, ProveError::Inclusion(_)), "{error}");
}

#[test]
fn what_is_not_there_is_told() {
    let world = World::new(ONE_SHOT);
    let error = prove(&world.transcript(), "centre", None, Limits::default()).unwrap_err();
    assert!(error.to_string().contains("`east`, `north`, `south`, `west`"), "{error}");
    let error = prove(&world.transcript(), "east", Some(Height(1)), Limits::default()).unwrap_err();
    assert!(matches!(error, ProveError::NoHeight(Height(1))), "{error}");
    assert!(matches!(prove(&world.path("model"), "east", None, Limits::default()), Err(ProveError::Transcript(_))));
    let abandoned = Justified::abandoned(Height(0), &world.consortium, &world.round);
    let settled = world.settled(Height(0), 0, abandoned).encode();
    fs::write(world.transcript().join("heights/0000/settled.bin"), settled).unwrap();
    let proven = prove(&world.transcript(), "east", None, Limits::default()).unwrap();
    assert_eq!((proven.proof.is_none(), proven.not_counted), (true, vec![Height(0)]));
    let path = world.transcript().join("round.bin");
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[1..]).unwrap();
    let error = prove(&world.transcript(), "east", None, Limits::default()).unwrap_err();
    assert!(matches!(error, ProveError::Founding(_)), "{error}");
}

/// Of a proof as it comes out of a transcript: whatever byte is another, it is refused.
#[test]
fn every_changed_byte_is_refused() {
    let world = World::new(ONE_SHOT);
    let bytes = prove(&world.transcript(), "north", None, Limits::default()).unwrap().proof.unwrap().encode();
    let checks = |bytes: &[u8]| {
        let received = ReceivedInclusion::decode(bytes).map_err(|error| error.to_string())?;
        received.check(world.consortium.id(), None).map_err(|error| error.to_string())
    };
    assert!(checks(&bytes).is_ok());
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(checks(&changed).is_err(), "byte {at} of {} changes nothing", bytes.len());
    }
}
