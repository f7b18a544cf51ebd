//! The transcript's folder: the one place that knows what lies where.
//!
//! ```text
//! consortium.bin  consortium.signatures  round.bin          canonical encodings
//! heights/0000/headers/<member>-<body>.bin                  signed headers of ballots, two of an equivocator
//! heights/0000/holdings/<member>.bin                        the latest holdings statement of each member
//! heights/0000/proposals/<view>-<member>-<file>.bin         proposals with what they rest on
//! heights/0000/settled.bin                                  the decision, its certificate, what it follows from
//! heights/0000/results/<member>.bin                         signed results
//! heights/0000/evidence/<file>.bin                          proof of equivocation
//! bodies/<digest>.ballot                                    the ballots that count
//! summary.json                                              unsigned facts
//! ```
//!
//! Heights, members and views are decimal with at least four digits, `<body>` and `<file>` the first 16 hexadecimal
//! digits of the BLAKE3 of the ballot's body and of the file itself. A name is read only if it is what would be
//! written, so that no two names mean the same.

mod reader;
mod summary;
mod writer;

use std::path::{Path, PathBuf};

use fedprune_federation::{Height, MemberIndex};
use fedprune_mask::Digest;

pub use reader::{Body, HeightFiles, Limits, ReadError, Transcript, TranscriptError};
pub use summary::{SUMMARY_LIMIT, Summary};
pub use writer::{TranscriptWriter, WriteError};

/// The consortium's canonical bytes.
pub const CONSORTIUM: &str = "consortium.bin";
/// The members' signatures of the consortium.
pub const SIGNATURES: &str = "consortium.signatures";
/// The round's canonical bytes.
pub const ROUND: &str = "round.bin";
/// Unsigned facts.
pub const SUMMARY: &str = "summary.json";
/// The folder of the heights.
pub const HEIGHTS: &str = "heights";
/// The folder of the ballots.
pub const BODIES: &str = "bodies";
/// A file that is being written; ignored by readers.
pub const UNFINISHED: &str = ".unfinished";
/// The decision of a height.
pub const SETTLED: &str = "settled.bin";

/// The files of a height that are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Signed headers of ballots.
    Headers,
    /// Holdings statements.
    Holdings,
    /// Proposals with what they rest on.
    Proposals,
    /// Signed results.
    Results,
    /// Proof of equivocation.
    Evidence,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 5] = [Class::Headers, Class::Holdings, Class::Proposals, Class::Results, Class::Evidence];

    /// The name of their folder.
    pub fn folder(self) -> &'static str {
        match self {
            Class::Headers => "headers",
            Class::Holdings => "holdings",
            Class::Proposals => "proposals",
            Class::Results => "results",
            Class::Evidence => "evidence",
        }
    }
}

/// Where a file lies below the transcript's folder, with `/` between the parts whatever the system.
pub type RelativePath = String;

/// The folder of one height.
pub fn height_folder(height: Height) -> RelativePath {
    format!("{HEIGHTS}/{:04}", height.0)
}

/// The decision of a height.
pub fn settled_path(height: Height) -> RelativePath {
    format!("{}/{SETTLED}", height_folder(height))
}

/// A file of a height.
pub fn path_of(height: Height, class: Class, name: &str) -> RelativePath {
    format!("{}/{}/{name}", height_folder(height), class.folder())
}

/// A ballot's body.
pub fn body_path(body: Digest) -> RelativePath {
    format!("{BODIES}/{}", body_name(body))
}

/// The name of a ballot's body in its folder.
pub fn body_name(body: Digest) -> String {
    format!("{body}.ballot")
}

/// The name of a header.
pub fn header_name(member: MemberIndex, body: Digest) -> String {
    format!("{:04}-{}.bin", member.0, short(body))
}

/// The name of a holdings statement or a result.
pub fn member_name(member: MemberIndex) -> String {
    format!("{:04}.bin", member.0)
}

/// The name of a proposal, of which `file` is the digest.
pub fn proposal_name(view: u32, member: MemberIndex, file: Digest) -> String {
    format!("{view:04}-{:04}-{}.bin", member.0, short(file))
}

/// The name of evidence, of which `file` is the digest.
pub fn evidence_name(file: Digest) -> String {
    format!("{}.bin", short(file))
}

/// The first 16 hexadecimal digits.
fn short(digest: Digest) -> String {
    digest.to_string().chars().take(16).collect()
}

/// The height that a folder is named after.
fn height_of(name: &str) -> Option<Height> {
    let height = Height(number(name)?);
    (format!("{:04}", height.0) == name).then_some(height)
}

/// The digest that a body is named after.
fn body_of(name: &str) -> Option<Digest> {
    let digest: Digest = name.strip_suffix(".ballot")?.parse().ok()?;
    (body_name(digest) == name).then_some(digest)
}

/// Whether a file of this name may lie in the folder of this class.
fn belongs(class: Class, name: &str) -> bool {
    let is_short = |text: &str| {
        text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_number = |text: &str| number(text).is_some_and(|number| format!("{number:04}") == text);
    let Some(stem) = name.strip_suffix(".bin") else { return false };
    let mut parts = stem.split('-');
    let parts = (parts.next(), parts.next(), parts.next(), parts.next());
    match (class, parts) {
        (Class::Headers, (Some(member), Some(body), None, None)) => is_number(member) && is_short(body),
        (Class::Holdings | Class::Results, (Some(member), None, None, None)) => is_number(member),
        (Class::Proposals, (Some(view), Some(member), Some(file), None)) => {
            is_number(view) && is_number(member) && is_short(file)
        }
        (Class::Evidence, (Some(file), None, None, None)) => is_short(file),
        _ => false,
    }
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A file below the transcript's folder as the system names it.
fn below(root: &Path, relative: &str) -> PathBuf {
    relative.split('/').fold(root.to_owned(), |path, part| path.join(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pinned() {
        let digest = Digest([0xab; 32]);
        assert_eq!(header_name(MemberIndex(7), digest), "0007-abababababababab.bin");
        assert_eq!(proposal_name(12345, MemberIndex(7), digest), "12345-0007-abababababababab.bin");
        assert_eq!(settled_path(Height(31)), "heights/0031/settled.bin");
        assert_eq!(body_path(digest), format!("bodies/{}.ballot", "ab".repeat(32)));
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let digest = Digest([0xab; 32]);
        assert_eq!(height_of("0031"), Some(Height(31)));
        assert_eq!(height_of("12345"), Some(Height(12345)));
        for name in ["31", "00031", "+031", "", "4294967296", "0x1f"] {
            assert_eq!(height_of(name), None, "{name}");
        }
        assert_eq!(body_of(&body_name(digest)), Some(digest));
        for name in [body_name(digest).to_uppercase(), "a.ballot".to_owned(), digest.to_string()] {
            assert_eq!(body_of(&name), None, "{name}");
        }
        assert!(belongs(Class::Headers, &header_name(MemberIndex(7), digest)));
        assert!(belongs(Class::Holdings, &member_name(MemberIndex(7))));
        assert!(belongs(Class::Results, &member_name(MemberIndex(1000))));
        assert!(belongs(Class::Proposals, &proposal_name(0, MemberIndex(7), digest)));
        assert!(belongs(Class::Evidence, &evidence_name(digest)));
        for class in Class::ALL {
            for name in
                ["", ".bin", "7.bin", "00007.bin", "0007", "0007.bin.bin", "0007-.bin", "0007-ABABABABABABABAB.bin"]
            {
                assert!(!belongs(class, name), "{class:?} {name}");
            }
        }
    }
}
