//! Folders that were made to harm whoever reads them.

mod support;

use std::fs::{self, File};

use fedprune_audit::{Limits, Verdict};
use fedprune_mask::Digest;
use support::*;

#[track_caller]
fn fails(report: &fedprune_audit::Report, says: &str) {
    assert_verdict(report, Verdict::Failed, &[]);
    assert!(report.text().contains(says), "`{says}` is not in\n{}", report.text());
}

#[test]
fn too_many_files_and_too_many_bytes() {
    let world = World::new(ONE_SHOT);
    let files = files_below(&world.transcript()).len();
    let limited = |limits| world.audit_with(&world.transcript(), |options| options.limits = limits);
    fails(&limited(Limits { files, ..Limits::default() }), "more than");
    // eight folders beside the files
    assert_verdict(&limited(Limits { files: files + 8, ..Limits::default() }), Verdict::Verified, &[]);
    fails(&limited(Limits { bytes: 2000, ..Limits::default() }), "more than 2000 bytes");
    for number in 0..50 {
        fs::write(world.transcript().join(format!("{number}")), "").unwrap();
    }
    let report = limited(Limits { unknown: 10, ..Limits::default() });
    assert_eq!(report.notes.len(), 11);
    assert_eq!(report.notes[10], "40 more files are no part of a transcript");
}

/// Sparse files of a terabyte are refused by their size, unread.
#[test]
fn huge_files_are_refused_unread() {
    let world = World::new(ONE_SHOT);
    let body = format!("bodies/{}.ballot", Digest::of(&world.bodies[0][0]));
    for file in [
        "consortium.bin",
        "consortium.signatures",
        "round.bin",
        "heights/0000/settled.bin",
        "heights/0000/results/0000.bin",
        body.as_str(),
    ] {
        let (_folder, copy) = world.copy();
        File::options().write(true).open(copy.join(file)).unwrap().set_len(1 << 40).unwrap();
        fails(&world.audit_of(&copy), "1099511627776 bytes");
    }
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    use std::os::unix::fs::symlink;
    let world = World::new(ONE_SHOT);
    for file in ["round.bin", "heights/0000/settled.bin", "heights/0000/results/0000.bin", "summary.json"] {
        let (folder, copy) = world.copy();
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(copy.join(file), &elsewhere).unwrap();
        symlink(&elsewhere, copy.join(file)).unwrap();
        let report = world.audit_of(&copy);
        match file {
            "summary.json" => assert_verdict(&report, Verdict::Verified, &[]),
            _ => fails(&report, "is not a regular file"),
        }
    }
    for folder_name in ["bodies", "heights", "heights/0000", "heights/0000/headers"] {
        let (folder, copy) = world.copy();
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(copy.join(folder_name), &elsewhere).unwrap();
        symlink(&elsewhere, copy.join(folder_name)).unwrap();
        fails(&world.audit_of(&copy), "it is not a folder; links are not followed");
    }
    // a loop
    let (_folder, copy) = world.copy();
    symlink(&copy, copy.join("heights/0001")).unwrap();
    fails(&world.audit_of(&copy), "`heights/0001`");
    // what is given by hand may be a link
    let (folder, copy) = world.copy();
    symlink(&copy, folder.path().join("link")).unwrap();
    assert_verdict(&world.audit_of(&folder.path().join("link")), Verdict::Verified, &[]);
}

#[test]
fn folders_where_files_should_be() {
    let world = World::new(ONE_SHOT);
    for file in ["round.bin", "heights/0000/settled.bin", "heights/0000/results/0000.bin"] {
        let (_folder, copy) = world.copy();
        fs::remove_file(copy.join(file)).unwrap();
        fs::create_dir(copy.join(file)).unwrap();
        fails(&world.audit_of(&copy), "is not a regular file");
    }
}

/// Nothing that noise says under any name makes the audit panic.
#[test]
fn noise_is_refused_without_panic() {
    let world = World::new(ONE_SHOT);
    let files = files_below(&world.transcript());
    for (number, file) in files.iter().enumerate().filter(|(_, file)| !file.ends_with(".json")) {
        let (_folder, copy) = world.copy();
        let original = fs::read(copy.join(file)).unwrap();
        for bytes in [0usize, 11, 64, 4096] {
            let mut noise = noise(&format!("{number} {bytes}"), bytes);
            fs::write(copy.join(file), &noise).unwrap();
            assert_verdict(&world.audit_of(&copy), Verdict::Failed, &[]);
            // behind a sound prefix
            let prefix = 11.min(noise.len()).min(original.len());
            noise[..prefix].copy_from_slice(&original[..prefix]);
            fs::write(copy.join(file), &noise).unwrap();
            assert_verdict(&world.audit_of(&copy), Verdict::Failed, &[]);
        }
    }
}
