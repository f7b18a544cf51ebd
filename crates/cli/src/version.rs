//! Which version this program is.
//!
//! The program says it itself, once, when it starts: what is printed, written and told to other members is then of the
//! program that runs, whichever library it is built of. Programs of another version, in tests of upgrades, are programs
//! that start with another number.

use std::sync::OnceLock;

static NUMBER: OnceLock<&'static str> = OnceLock::new();

/// Says which version this program is; the first word counts.
pub(crate) fn is(number: &'static str) {
    let _ = NUMBER.set(number);
}

/// The version, as in `0.1.0`; that of this library where no program said anything.
pub fn number() -> &'static str {
    NUMBER.get().copied().unwrap_or(env!("CARGO_PKG_VERSION"))
}

/// What the program calls itself, with its version: `fedprune 0.1.0`.
pub fn name() -> String {
    format!("fedprune {}", number())
}
