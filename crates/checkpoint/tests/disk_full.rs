//! A disk that fills up while the copy is written: nothing half-written is left behind.
//!
//! The limit on file size stands in for a full disk: it needs no privileges, and makes the very same writes fail.
//! It holds for the whole process, so this file has one test.
#![cfg(unix)]

mod support;

use std::borrow::Cow;
use std::cell::Cell;

use fedprune_checkpoint::error::BoxError;
use fedprune_checkpoint::{CheckpointError, Extra, ExtraFile, write_pruned};
use support::{Copied, assert_says, copied, listing};

/// Limits the size of files that this process writes, in bytes.
fn limit_file_size(bytes: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write one structure that outlives them. Ignoring SIGXFSZ makes writes
    // beyond the limit fail instead of ending the process; no handler is installed.
    let done = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) == 0 && {
            limit.rlim_cur = bytes as libc::rlim_t;
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0
        }
    };
    assert!(done, "the limit on file size can be lowered");
}

/// Writes a copy under a limit; returns the error and how many matrices had been edited.
fn fails(model: &Copied, limit: u64, extra: &[ExtraFile<'_>]) -> (CheckpointError, usize) {
    let checkpoint = model.open();
    let edited = Cell::new(0);
    let mut edit = |_: usize, _: &mut [u8]| -> Result<(), BoxError> {
        edited.set(edited.get() + 1);
        Ok(())
    };
    limit_file_size(limit);
    let outcome = write_pruned(&checkpoint, &model.temporary.path().join("out"), &mut edit, extra, &|_| {});
    limit_file_size(libc::RLIM_INFINITY);
    let left = listing(model.temporary.path());
    assert_eq!(left, ["model"], "nothing may be left behind");
    (outcome.expect_err("the disk is full"), edited.get())
}

#[track_caller]
fn assert_full(error: &CheckpointError, file: &str, needed: u64, available: u64) {
    let numbers = [format!("{needed} bytes are needed"), format!("{available} are available")];
    assert_says(error, &[file, &numbers[0], &numbers[1], "nothing was left behind", "free some space"]);
    let CheckpointError::NoSpace { source: Some(source), .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::FileTooLarge);
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let model = copied("llama");
    // In the header, in the middle, and on the last byte of the weights.
    for (limit, some_edited) in [(1000, false), (300_000, true), (596_743, true)] {
        let (error, edited) = fails(&model, limit, &[]);
        assert_full(&error, "out/model.safetensors", 596_744, limit);
        assert_eq!(edited > 0, some_edited);
    }
    // In a later shard, when earlier ones are complete.
    let sharded = copied("mistral");
    let (error, edited) = fails(&sharded, 95_000, &[]);
    assert_full(&error, "out/model-00002-of-00004.safetensors", 95_984, 95_000);
    assert!(edited > 0);

    // In an added file, when all weights are complete.
    let (limit, bytes) = (700_000, 900_000);
    let contents = Extra::Bytes(Cow::Owned(vec![7; bytes as usize]));
    let (error, edited) = fails(&model, limit, &[ExtraFile { name: "mask.fedprune".into(), contents }]);
    assert_full(&error, "out/mask.fedprune", bytes, limit);
    assert_eq!(edited, 21);

    // In one that a function writes, whether or not the function passes the error on.
    for passes_on in [true, false] {
        let write = move |_: &fedprune_checkpoint::Pruned, file: &mut dyn std::io::Write| -> Result<(), BoxError> {
            for _ in 0..bytes / 1000 {
                let outcome = file.write_all(&[7; 1000]);
                if passes_on {
                    outcome?;
                }
            }
            Ok(())
        };
        let contents = Extra::Write { bytes, write: Box::new(write) };
        let (error, _) = fails(&model, limit, &[ExtraFile { name: "README.md".into(), contents }]);
        assert_full(&error, "out/README.md", bytes, limit);
    }

    // With room again, the same copy succeeds.
    let out = model.temporary.path().join("out");
    write_pruned(&model.open(), &out, &mut |_, _| Ok(()), &[], &|_| {}).unwrap();
    assert_eq!(listing(&out), ["config.json", "model.safetensors"]);
}
