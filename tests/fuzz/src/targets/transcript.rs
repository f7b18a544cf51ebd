//! A transcript that somebody has changed.

#[path = "../../../../crates/audit/tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use fedprune_audit::{Limits, Options, Verdict, verify};
use support::{ELECTED, ITERATIVE, ONE_SHOT, World};

/// Sound rounds of three kinds, and their files.
pub(crate) struct Audited {
    worlds: Vec<World>,
    /// Of each round: where a file lies below its transcript, and what is in it.
    pub(crate) files: Vec<(usize, String, Vec<u8>)>,
}

pub(crate) static AUDITED: LazyLock<Mutex<Audited>> = LazyLock::new(|| {
    let worlds: Vec<World> = [ONE_SHOT, ITERATIVE, ELECTED].into_iter().map(World::new).collect();
    let mut files = Vec::new();
    for (number, world) in worlds.iter().enumerate() {
        for name in support::files_below(&world.transcript()) {
            let bytes = std::fs::read(world.transcript().join(&name)).expect("a file");
            files.push((number, name, bytes));
        }
    }
    Mutex::new(Audited { worlds, files })
});

impl Audited {
    fn place(&self, file: usize) -> (PathBuf, &World) {
        let (world, name, _) = &self.files[file];
        (self.worlds[*world].transcript().join(name), &self.worlds[*world])
    }
}

/// The number of a file, two bytes, and what is in it instead. Taken is what the auditor verifies, which only the sound
/// transcript is: its summary alone says nothing that anybody signed.
pub fn transcript(bytes: &[u8]) -> bool {
    let Some((number, instead)) = bytes.split_first_chunk::<2>() else { return false };
    let audited = AUDITED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let file = usize::from(u16::from_le_bytes(*number)) % audited.files.len();
    let (path, world) = audited.place(file);
    std::fs::write(&path, instead).expect("a file");
    let model = world.path("model");
    let options = Options {
        consortium: Some(world.consortium.id()),
        round: Some(world.round.id()),
        model: Some(&model),
        pruned: None,
        limits: Limits::default(),
    };
    let report = std::panic::catch_unwind(|| verify(&world.transcript(), &options, &|_| ()));
    let (_, name, original) = &audited.files[file];
    let (is_summary, is_original) = (name == "summary.json", original == instead);
    std::fs::write(&path, original).expect("a file");
    let original = original.len();
    match report {
        Ok(report) => {
            let report = report.expect("transcript and model are there");
            let _ = report.text();
            let verified = report.verdict == Verdict::Verified;
            let name = &audited.files[file].1;
            assert!(!verified || is_summary || is_original, "`{name}` is another ({original} bytes) and verified");
            assert!(verified || !(is_original || is_summary), "`{name}` is as it was: {}", report.text());
            verified
        }
        // the file is as it was again
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
