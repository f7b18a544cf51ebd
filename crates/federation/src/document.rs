//! Documents that people write: TOML, read strictly and under a limit.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// Most keys, parts of dotted keys, tables and values of one document. Each may cost the parser a table, and a table 1.1
/// KiB, for two bytes of text; the largest consortium there can be has 26 for each of 1,000 members.
pub const MAX_PARTS: usize = 40_000;

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
    /// More than the largest such document has.
    #[error("it has more than {MAX_PARTS} keys, tables and values; give the document itself")]
    TooManyParts,
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
    // by the parser's own lexer, which keeps nothing
    let parts = Source::new(text).lex().filter(|token| {
        matches!(
            token.kind(),
            TokenKind::Dot
                | TokenKind::Equals
                | TokenKind::Comma
                | TokenKind::LeftSquareBracket
                | TokenKind::LeftCurlyBracket
        )
    });
    if parts.take(MAX_PARTS + 1).count() > MAX_PARTS {
        return Err(DocumentError::TooManyParts);
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
    fn parts_are_counted_before_they_are_read_and_strings_have_none() {
        let many = |part: &str| part.repeat(MAX_PARTS + 1);
        for text in
            [many("a.b = 1\n"), format!("a = [{}]", many("1,")), format!("a = [{}]", many("{},")), many("[[a]]\n")]
        {
            let error = read::<toml::Table>(&text, 1 << 20).unwrap_err();
            assert_eq!(error, DocumentError::TooManyParts);
        }
        for text in
            [format!("a = \"{}\"", many(".,=[{")), format!("a = 1 # {}", many(".,=[{")), format!("a = '{}'", many("."))]
        {
            read::<toml::Table>(&text, 1 << 20).unwrap();
        }
        read::<toml::Table>(&format!("a = [{}]", "1,".repeat(MAX_PARTS - 2)), 1 << 20).unwrap();
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        for text in ["a = ".to_owned() + &"[".repeat(100_000), "[".to_owned() + &"a.".repeat(50_000) + "a]"] {
            assert!(read::<BTreeMap<String, u8>>(&text, 1 << 20).is_err());
        }
    }
}
