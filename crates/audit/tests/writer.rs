//! Writing a transcript again, and into the wrong place.

mod support;

use std::fs;

use fedprune_audit::transcript::{WriteError, header_name};
use fedprune_audit::{TranscriptWriter, Verdict};
use fedprune_federation::Height;
use fedprune_mask::Digest;
use support::*;

fn contents(world: &World) -> Vec<(String, Vec<u8>)> {
    let root = world.transcript();
    files_below(&root).into_iter().map(|file| (file.clone(), fs::read(root.join(file)).unwrap())).collect()
}

#[test]
fn writing_again_changes_nothing() {
    let world = World::new(ONE_SHOT);
    let before = contents(&world);
    let mut writer = world.writer();
    writer.header(&world.header(Height(0), EAST, &world.bodies[0][0])).unwrap();
    // less than what is there, and something else: both stay out
    writer.holdings(&world.holdings(Height(0), EAST, 2)).unwrap();
    writer.result(&world.result(Height(0), EAST, Digest([1; 32]))).unwrap();
    writer.settled(&world.settled(Height(0), 5, world.justified(Height(0)))).unwrap();
    assert_eq!(contents(&world), before);
    assert!(!before.iter().any(|(name, _)| name.contains("unfinished")));
}

#[test]
fn holdings_grow() {
    let world = World::new(ONE_SHOT);
    let file = world.transcript().join("heights/0000/holdings/0000.bin");
    fs::write(&file, world.holdings(Height(0), EAST, 2).encode()).unwrap();
    world.writer().holdings(&world.holdings(Height(0), EAST, 3)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), world.holdings(Height(0), EAST, 3).encode());
    // a torn one is replaced
    fs::write(&file, b"torn").unwrap();
    world.writer().holdings(&world.holdings(Height(0), EAST, 1)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), world.holdings(Height(0), EAST, 1).encode());
}

#[test]
fn a_folder_of_another_round_is_refused() {
    let world = World::new(ONE_SHOT);
    let other = World::with(ONE_SHOT, |terms| terms.timers.vote_ms += 1);
    let error = TranscriptWriter::create(&world.transcript(), &other.consortium, &other.round).unwrap_err();
    assert!(error.to_string().contains("holds something else"), "{error}");
    let mut writer = world.writer();
    let header = other.header(Height(0), EAST, b"body");
    assert!(matches!(writer.header(&header), Err(WriteError::OtherRound(_))));
    assert!(!world.transcript().join("heights/0000/headers").join(header_name(EAST, Digest::of(b"body"))).exists());
}

#[test]
fn bodies_are_linked_or_copied_and_told_apart() {
    let world = World::new(ONE_SHOT);
    let file = world.path("blob");
    fs::write(&file, b"some ballot").unwrap();
    let digest = Digest::of(b"some ballot");
    let mut writer = world.writer();
    writer.body(digest, &file).unwrap();
    writer.body(digest, &file).unwrap();
    let written = world.transcript().join(format!("bodies/{digest}.ballot"));
    assert_eq!(fs::read(&written).unwrap(), b"some ballot");
    // a link is followed once, so that what lies in the transcript is a file
    #[cfg(unix)]
    {
        let link = world.path("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::remove_file(&written).unwrap();
        writer.body(digest, &link).unwrap();
        assert!(written.symlink_metadata().unwrap().is_file());
    }
    let error = writer.body(Digest([1; 32]), &world.path("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_verdict(&world.audit(), Verdict::Verified, &[]);
}

#[test]
fn leftovers_of_a_crash_are_overwritten() {
    let world = World::new(ONE_SHOT);
    let folder = world.transcript().join("heights/0000/results");
    fs::write(folder.join(".unfinished"), b"half a result").unwrap();
    fs::remove_file(folder.join("0000.bin")).unwrap();
    world.writer().result(&world.result(Height(0), EAST, world.roots[0])).unwrap();
    assert!(!folder.join(".unfinished").exists());
    assert_verdict(&world.audit(), Verdict::Verified, &[]);
}
