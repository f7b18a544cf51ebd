//! Documents that people write: TOML, read strictly and under a limit.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest part of a parser's message that is repeated.
const MAX_MESSAGE_CHARS: usize = 300;

/// Why a text is not the document that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Larger than any such document.
    #[error("it has {bytes} bytes, more than the {limit} allowed; give the document itself")]
    TooLarge {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not TOML, or with keys or values that such a document does not have.
    #[error("line {line}: {message}")]
    Toml {
        /// From 1.
        line: usize,
        /// What the parser says, shortened and without control characters.
        message: String,
    },
    /// A value without a place in TOML, such as an integer above 2^63 − 1.
    #[error("it cannot be written as TOML: {0}")]
    Unwritable(String),
}

/// Reads a document of at most `limit` bytes.
///
/// # Errors
/// [`DocumentError`], naming the line.
pub fn read<T: DeserializeOwned>(text: &str, limit: usize) -> Result<T, DocumentError> {
    if text.len() > limit {
        return Err(DocumentError::TooLarge { bytes: text.len(), limit });
    }
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().get(..start).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
        DocumentError::Toml { line, message: harmless(error.message()) }
    })
}

/// Writes a document.
pub(crate) fn write<T: Serialize>(document: &T) -> Result<String, DocumentError> {
    toml::to_string(document).map_err(|error| DocumentError::Unwritable(harmless(&error.to_string())))
}

/// Text that may come from anybody, fit for a message.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_CHARS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn names_the_line_and_repeats_nothing_harmful() {
        let error = read::<BTreeMap<String, u8>>("a = 1\nb = 300\n", 100).unwrap_err();
        assert!(matches!(&error, DocumentError::Toml { line: 2, .. }), "{error}");
        let long = format!("a = 1\n\"{}\\u001b[31m\" = \"x\"\n", "k".repeat(5000));
        let error = read::<BTreeMap<String, u8>>(&long, 10_000).unwrap_err().to_string();
        assert!(error.chars().count() < 320 && !error.contains('\u{1b}'), "{error}");
        let error = read::<BTreeMap<String, u8>>("a = 1", 4).unwrap_err();
        assert_eq!(error, DocumentError::TooLarge { bytes: 5, limit: 4 });
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        for text in ["a = ".to_owned() + &"[".repeat(100_000), "[".to_owned() + &"a.".repeat(50_000) + "a]"] {
            assert!(read::<BTreeMap<String, u8>>(&text, 1 << 20).is_err());
        }
    }
}
