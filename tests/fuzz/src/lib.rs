//! Everything here that reads bytes from outside, as functions from bytes to whether they were taken.
//!
//! A [`Target`] reads its input as the product does, checks what must be true of whatever it takes, and panics where
//! it is not. Two programs call it: the fuzzers in `libfuzzer/`, for as long as they are let (`run.sh`), and
//! `cargo test`, with the committed corpus, the inputs that once failed, and mutations of both that are the same
//! on every machine. Where the allocator is [`Counting`], as in both, a target also fails if it takes more memory
//! than its limits say: whatever an input claims, it may cost a multiple of what it is.
//!
//! | module | what it answers |
//! |---|---|
//! | [`memory`] | how much an input makes the program allocate |
//! | [`mutate`] | one input from others |
//! | [`choices`] | well-formed values from any bytes |
//! | [`model`] | a model so small that a target runs thousands of times a second |
//! | [`targets`] | the targets, one file a room |
//! | [`seeds`] | the corpus as it is written from real encodings |

pub mod choices;
pub mod memory;
pub mod model;
pub mod mutate;
pub mod seeds;
pub mod targets;

use std::path::{Path, PathBuf};
use std::sync::Once;

pub use memory::Counting;
pub use targets::{TARGETS, Target};

/// The target of this name.
///
/// # Panics
/// When there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target `{name}`"))
}

/// What a fuzzer calls, over and over: fails if what the target takes is not what it should be, or costs too much.
///
/// # Panics
/// That is how a fuzzer is told.
pub fn fuzz(name: &str, bytes: &[u8]) {
    static WARM: Once = Once::new();
    let target = target(name);
    WARM.call_once(|| target.warm_up());
    target.check(bytes);
}

/// The folder of one target's corpus.
pub fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// The folder of inputs at which one target once failed.
pub fn regressions(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name)
}

/// Names and contents of the files in a folder, in the order of their names; nothing where there is no folder.
///
/// # Panics
/// When one cannot be read.
pub fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("the folder is readable").path();
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    files.sort();
    files
}
