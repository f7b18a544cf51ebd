//! Ctrl-C, termination and hang-up: a word about what was kept, and no temporary files left.
//!
//! Most commands may end at any instruction, since they write through files that vanish or are renamed when whole.
//! Where a temporary folder has a name, work is [`cooperative`]: the first signal asks it to clean up, a second one
//! ends it at once.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a shell reports for a program that was interrupted: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

static COOPERATIVE: AtomicUsize = AtomicUsize::new(0);
static REQUESTED: AtomicBool = AtomicBool::new(false);
static HINT: Mutex<String> = Mutex::new(String::new());
static LAST: Mutex<Option<fn()>> = Mutex::new(None);

/// Work that checks whether it was asked to stop; while this lives, one signal does not end the program.
pub struct Cooperative(());

/// The user asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request; {left}")]
pub struct Stopped {
    /// What was left behind, in words.
    left: String,
}

impl Stopped {
    /// Something is still there; `left` says what and where.
    pub fn leaving(left: impl Into<String>) -> Self {
        Self { left: left.into() }
    }
}

/// Installs the handler; called once, at the start.
pub fn install() {
    // A program whose signals cannot be handled works all the same, with the system's defaults.
    let _ = ctrlc::set_handler(|| {
        let first = !REQUESTED.swap(true, Ordering::SeqCst);
        if first && COOPERATIVE.load(Ordering::SeqCst) > 0 {
            return;
        }
        if let Some(last) = LAST.lock().ok().and_then(|last| *last) {
            last();
        }
        let hint = HINT.lock().map(|hint| hint.clone()).unwrap_or_default();
        // Nowhere is left to report a failing standard error.
        let _ = writeln!(std::io::stderr(), "\nstopped{}{hint}", if hint.is_empty() { "" } else { "; " });
        std::process::exit(i32::from(EXIT_CODE));
    });
}

/// What to say when the program is stopped: what was kept, and how to go on.
pub fn set_hint(hint: impl Into<String>) {
    if let Ok(mut slot) = HINT.lock() {
        *slot = hint.into();
    }
}

/// What is done before a signal ends the program at once: what would otherwise outlive it, as the state of a terminal
/// does. It must not wait for the work that was asked to stop.
pub fn set_last(last: Option<fn()>) {
    if let Ok(mut slot) = LAST.lock() {
        *slot = last;
    }
}

/// Begins work that must clean up when it is stopped.
pub fn cooperative() -> Cooperative {
    COOPERATIVE.fetch_add(1, Ordering::SeqCst);
    Cooperative(())
}

impl Cooperative {
    /// Whether to go on.
    ///
    /// # Errors
    /// [`Stopped`] once a signal came.
    pub fn check(&self) -> Result<(), Stopped> {
        if REQUESTED.load(Ordering::SeqCst) { Err(Stopped::leaving("nothing was left behind")) } else { Ok(()) }
    }
}

impl Drop for Cooperative {
    fn drop(&mut self) {
        COOPERATIVE.fetch_sub(1, Ordering::SeqCst);
    }
}
