//! What members attest in forms that programs of others read: in-toto statements in DSSE envelopes, and OpenSSF Model
//! Signing bundles.
//!
//! | module | what it answers |
//! |---|---|
//! | [`statement`] | what is said of a ballot, and of the result of a round, as in-toto Statement v1 |
//! | [`envelope`] | such statements signed with members' signing keys, one or several to an envelope, and checked |
//! | [`model`] | a pruned folder signed in the form of OpenSSF Model Signing v1, and checked |
//! | [`files`] | the files of a folder and their SHA-256 |
//! | [`key`] | the P-256 key that signs models, and nothing else |
//!
//! Nothing here adds to what a round proves: a transcript says more, to those who read transcripts. Attestations are for
//! those who do not, made where the keys are. `docs/attestations.md` has the forms field by field.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod envelope;
pub mod files;
pub mod key;
pub mod model;
pub mod statement;

pub use envelope::{Envelope, EnvelopeError};
pub use files::{FilesError, FolderFiles};
pub use key::{AttestationKey, AttestationPublicKey, KeyError};
pub use model::{ModelError, ModelSignature};
pub use statement::{Statement, StatementError};

/// The type of every payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
