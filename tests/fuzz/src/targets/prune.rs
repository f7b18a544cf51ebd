//! The journal of an unfinished run.

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use fedprune_prune::journal::{Journal, JournalKey};
use tempfile::TempDir;

use super::scratch;
use crate::model::MODEL;

static PLACE: LazyLock<Mutex<(TempDir, PathBuf)>> = LazyLock::new(|| {
    let folder = scratch();
    let path = folder.path().join("journal");
    Mutex::new((folder, path))
});

/// The run that journals are of.
pub(crate) fn key() -> JournalKey {
    let (model, calibration) = (fedprune_mask::Digest::of(b"model"), fedprune_mask::Digest::of(b"text"));
    JournalKey { model, calibration, recipe: "wanda row 0.5".to_owned(), compute: "cpu f32".to_owned() }
}

/// A journal.
pub fn journal(bytes: &[u8]) -> bool {
    let place = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = &place.1;
    std::fs::write(path, bytes).expect("a file");
    let read = || std::fs::read(path).expect("the file is there");
    let known = match Journal::open(path, &key(), &MODEL.layout) {
        Ok(journal) => journal.known_blocks(),
        Err(_) => {
            assert_eq!(read(), bytes, "what is refused is left as it was");
            return false;
        }
    };
    assert!(known <= MODEL.layout.blocks());
    let kept = read();
    let again = Journal::open(path, &key(), &MODEL.layout).expect("what was opened opens again");
    assert_eq!((again.known_blocks(), read()), (known, kept), "opening changes nothing a second time");
    known > 0
}
