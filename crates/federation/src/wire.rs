//! How every encoding of this crate begins, and how it is read.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `fedprune` |
//! | 2 | version, little-endian, 1 |
//! | 1 | what it is: a [`Content`] |
//! | … | the value, in the canonical form of [`fedprune_mask::codec`] |
//!
//! Each value has one encoding, so a digest of the bytes identifies the value. Contents are numbered apart
//! from the kinds of ballot files (1 to 3), so that no file is both.

use fedprune_mask::codec::bincode::{Decode, Encode};
use fedprune_mask::codec::{self, CodecError};

/// First bytes of every encoding.
pub const MAGIC: &[u8; 8] = fedprune_mask::ballot::MAGIC;
/// The version that this program speaks: of encodings, of what is signed, and of the protocol.
pub const VERSION: u16 = 1;
/// Bytes before the value.
pub const PREFIX_BYTES: usize = 11;

/// What an encoding holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Who may take part.
    Consortium = 16,
    /// Members' signatures of a consortium.
    ConsortiumSignatures = 17,
    /// What a round is.
    Round = 18,
    /// What a height came to.
    Decision = 19,
    /// Proof of equivocation.
    Evidence = 20,
    /// q precommits.
    Certificate = 21,
    /// A proposal with what it rests on.
    Proposed = 22,
    /// A decision with its certificate and what it follows from.
    Settled = 23,
    /// One entry of a member's log.
    Record = 24,
    /// What a member asks another for.
    Question = 25,
    /// What it is answered.
    Answer = 26,
    /// Who may take part, after a change.
    Successor = 27,
    /// Signatures of a changed consortium, with its chain.
    Succession = 28,
    /// Proof that a member's ballots count.
    Inclusion = 30,
    /// The signed header of a ballot.
    BallotHeader = 34,
    /// A signed holdings statement.
    Holdings = 35,
    /// A signed result.
    MaskResult = 36,
    /// A signed proposal.
    Proposal = 37,
    /// A signed prevote.
    Prevote = 38,
    /// A signed precommit.
    Precommit = 39,
}

impl Content {
    /// All of them.
    pub const ALL: [Content; 20] = [
        Content::Consortium,
        Content::ConsortiumSignatures,
        Content::Round,
        Content::Decision,
        Content::Evidence,
        Content::Certificate,
        Content::Proposed,
        Content::Settled,
        Content::Record,
        Content::Question,
        Content::Answer,
        Content::Successor,
        Content::Succession,
        Content::Inclusion,
        Content::BallotHeader,
        Content::Holdings,
        Content::MaskResult,
        Content::Proposal,
        Content::Prevote,
        Content::Precommit,
    ];

    /// The content that a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|content| *content as u8 == byte)
    }

    /// In words, with an article.
    pub fn in_words(self) -> &'static str {
        match self {
            Content::Consortium => "a consortium",
            Content::ConsortiumSignatures => "signatures of a consortium",
            Content::Successor => "a changed consortium",
            Content::Succession => "signatures of a changed consortium",
            Content::Round => "a round",
            Content::Decision => "a decision",
            Content::Evidence => "evidence",
            Content::BallotHeader => "the header of a ballot",
            Content::Holdings => "a holdings statement",
            Content::MaskResult => "a result",
            Content::Certificate => "a certificate",
            Content::Proposed => "a proposal with its grounds",
            Content::Settled => "a settled decision",
            Content::Record => "an entry of a log",
            Content::Question => "a question",
            Content::Answer => "an answer",
            Content::Inclusion => "proof that ballots count",
            Content::Proposal => "a proposal",
            Content::Prevote => "a prevote",
            Content::Precommit => "a precommit",
        }
    }
}

/// Why bytes are not the encoding of what was expected.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Some other bytes.
    #[error("it is not of this protocol: it does not start with `fedprune`")]
    NotOurs,
    /// Ends before the value starts.
    #[error("it is cut short after {0} bytes")]
    Truncated(usize),
    /// A version that this program does not speak.
    #[error("it is written in version {0}, and this program speaks version {VERSION}; use a program of that version")]
    Version(u16),
    /// Another value of this protocol, or of a newer one.
    #[error("it is {found}, and {wanted} is wanted here", wanted = wanted.in_words())]
    WrongContent {
        /// What it is, in words.
        found: String,
        /// What would do.
        wanted: Content,
    },
    /// The value is damaged, too large, or has another canonical form.
    #[error("{} cannot be read", wanted.in_words())]
    Value {
        /// What was expected.
        wanted: Content,
        /// What is wrong with it.
        source: CodecError,
    },
}

/// What an encoding says that it holds.
///
/// # Errors
/// [`WireError`] when it is no encoding of this version.
pub fn content_of(bytes: &[u8]) -> Result<Option<Content>, WireError> {
    let shared = bytes.len().min(MAGIC.len());
    if bytes.get(..shared) != MAGIC.get(..shared) {
        return Err(WireError::NotOurs);
    }
    let Some(([.., low, high, content], _)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(WireError::Truncated(bytes.len()));
    };
    match u16::from_le_bytes([*low, *high]) {
        VERSION => Ok(Content::from_byte(*content)),
        other => Err(WireError::Version(other)),
    }
}

/// The one encoding of `value`.
pub(crate) fn encode<T: Encode>(content: Content, value: &T) -> Vec<u8> {
    let value = codec::encode(value);
    let mut bytes = Vec::with_capacity(value.len().saturating_add(PREFIX_BYTES));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.push(content as u8);
    bytes.extend_from_slice(&value);
    bytes
}

/// The value of which `bytes` is the encoding; `LIMIT` bounds the bytes after the prefix and what is
/// allocated for them.
pub(crate) fn decode<T: Encode + Decode<()>, const LIMIT: usize>(
    wanted: Content,
    bytes: &[u8],
) -> Result<T, WireError> {
    let truncated = || WireError::Truncated(bytes.len());
    match content_of(bytes)? {
        Some(content) if content == wanted => {}
        other => {
            let unknown = || format!("of the unknown content {}", bytes.get(PREFIX_BYTES - 1).unwrap_or(&0));
            let found = other.map_or_else(unknown, |content| content.in_words().to_owned());
            return Err(WireError::WrongContent { found, wanted });
        }
    }
    let value = bytes.get(PREFIX_BYTES..).ok_or_else(truncated)?;
    codec::decode::<T, LIMIT>(value).map_err(|source| WireError::Value { wanted, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pinned() {
        let bytes = encode(Content::Round, &0x0102_0304u32);
        assert_eq!(bytes, b"fedprune\x01\x00\x12\x04\x03\x02\x01");
        assert_eq!(decode::<u32, 64>(Content::Round, &bytes).unwrap(), 0x0102_0304);
    }

    #[test]
    fn says_what_is_wrong_with_the_prefix() {
        let bytes = encode(Content::Round, &7u32);
        let read = |bytes: &[u8]| decode::<u32, 64>(Content::Round, bytes).unwrap_err().to_string();
        for length in 0..PREFIX_BYTES {
            assert_eq!(read(&bytes[..length]), format!("it is cut short after {length} bytes"));
        }
        for length in PREFIX_BYTES..bytes.len() {
            assert_eq!(read(&bytes[..length]), "a round cannot be read");
        }
        assert!(read(b"PK").contains("not of this protocol"));
        for at in 0..PREFIX_BYTES {
            let mut other = bytes.clone();
            other[at] ^= 0x80;
            let message = read(&other);
            let expected = match at {
                0..8 => "it is not of this protocol",
                8 | 9 => "it is written in version",
                _ => "it is of the unknown content 146, and a round is wanted here",
            };
            assert!(message.starts_with(expected), "{message}");
        }
        let message = decode::<u32, 64>(Content::Decision, &bytes).unwrap_err().to_string();
        assert_eq!(message, "it is a round, and a decision is wanted here");
    }

    #[test]
    fn limits_count_the_value() {
        let bytes = encode(Content::Round, &vec![0u8; 100]);
        assert!(decode::<Vec<u8>, 108>(Content::Round, &bytes).is_ok());
        let error = decode::<Vec<u8>, 107>(Content::Round, &bytes).unwrap_err();
        assert!(matches!(error, WireError::Value { source: CodecError::TooLarge { actual: 108, limit: 107 }, .. }));
    }

    #[test]
    fn contents_have_numbers_of_their_own() {
        for content in Content::ALL {
            assert_eq!(Content::from_byte(content as u8), Some(content));
            assert!(content as u8 > 3, "ballot files have 1 to 3");
        }
    }
}
