//! Names of repositories and revisions: they become parts of addresses, so that only what cannot be anything else passes.

use std::fmt;
use std::str::FromStr;

use crate::error::{HubError, shorten};

/// Longest part of a repository's name, in bytes.
const MAX_PART_BYTES: usize = 96;
/// Longest revision, in bytes.
const MAX_REVISION_BYTES: usize = 128;

/// `OWNER/NAME`, or one of the few names without owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryName(String);

/// A branch, a tag, or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

/// The commit that a revision is: 40 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit(String);

fn is_plain(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_PART_BYTES).contains(&part.len()) && part.bytes().all(allowed) && !part.starts_with('.')
}

impl RepositoryName {
    /// The name as it is in addresses.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What comes after the owner; a name for a folder.
    pub fn model(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, model)| model)
    }
}

impl FromStr for RepositoryName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let parts: Vec<&str> = text.split('/').collect();
        if matches!(parts.len(), 1 | 2) && parts.iter().all(|part| is_plain(part)) && !text.contains("..") {
            return Ok(Self(text.to_owned()));
        }
        Err(HubError::Name(shorten(text)))
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl Revision {
    /// The revision as it was typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a commit, and not this one.
    pub(crate) fn is_of_another(&self, commit: &Commit) -> bool {
        let is_commit = self.0.len() == 40 && self.0.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_commit && !self.0.eq_ignore_ascii_case(&commit.0)
    }
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let plain = text.split('/').all(is_plain) && text.len() <= MAX_REVISION_BYTES && !text.contains("..");
        if plain { Ok(Self(text.to_owned())) } else { Err(HubError::Revision(shorten(text))) }
    }
}

impl Commit {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Commit {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 40 && text.bytes().all(hex) {
            return Ok(Self(text.to_owned()));
        }
        Err(HubError::Listing(format!("it names `{}` as the commit, which is none", shorten(text))))
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_an_address_and_nothing_else() {
        for good in ["gpt2", "HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-3.2-1B", "a_b/c.d"] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        assert_eq!("a/b".parse::<RepositoryName>().unwrap().model(), "b");
        let long = "x".repeat(97);
        for bad in ["", "/", "a/", "/b", "a/b/c", "../x", "a/..", "a b", "a?b", "a#b", "a%2fb", ".a/b", "é", &long] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn revisions_may_have_parts_and_commits_are_digits() {
        for good in ["main", "v1.0", "refs/pr/3", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(good.parse::<Revision>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "../main", "main/../x", "a//b", "?x", "a%2fb"] {
            assert!(bad.parse::<Revision>().is_err(), "{bad:?}");
        }
        assert!("0123456789abcdef0123456789abcdef01234567".parse::<Commit>().is_ok());
        for bad in ["main", "0123456789ABCDEF0123456789abcdef01234567", "0123"] {
            assert!(bad.parse::<Commit>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_commit_that_is_asked_for_is_that_one() {
        let commit: Commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        for (revision, other) in [
            ("main", false),
            ("0123456", false),
            ("0123456789abcdef0123456789abcdef01234567", false),
            ("0123456789ABCDEF0123456789abcdef01234567", false),
            ("0123456789abcdef0123456789abcdef01234568", true),
            ("g123456789abcdef0123456789abcdef01234567", false),
        ] {
            assert_eq!(revision.parse::<Revision>().unwrap().is_of_another(&commit), other, "{revision}");
        }
    }
}
