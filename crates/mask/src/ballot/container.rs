//! What every file of the federation starts with: magic, version, kind, header.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `fedprune` |
//! | 2 | format version, little-endian, 1 |
//! | 1 | kind: 1 vote, 2 mask, 3 tally |
//! | 4 | header length, little-endian, at most [`HEADER_LIMIT`] (a tally: [`TALLY_HEADER_LIMIT`]) |
//! | … | header, in the canonical form of [`crate::codec`] |
//! | … | body, by kind |

use std::fmt;

use bincode::{Decode, Encode};
use serde::Serialize;

use super::error::BallotError;
use crate::codec;
use crate::layout::Layout;
use crate::score::Pruner;
use crate::{Digest, Group, Sparsity};

/// First bytes of every file.
pub const MAGIC: &[u8; 8] = b"fedprune";
/// The format that this program reads and writes.
pub const VERSION: u16 = 1;
/// Most bytes of the header of a vote or a mask.
pub const HEADER_LIMIT: usize = 64 << 10;
/// Most bytes of the header of a tally: fits [`MAX_MEMBERS`] with the longest names.
pub const TALLY_HEADER_LIMIT: usize = 256 << 10;
/// Most ballots in one tally.
pub const MAX_MEMBERS: usize = 1000;
/// Longest member name, in bytes.
pub const MAX_MEMBER_NAME_BYTES: usize = 64;
/// Bytes before the header: magic, version, kind, header length.
pub const PREFIX_BYTES: usize = 8 + 2 + 1 + 4;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A ballot: one silo's mask, as it was computed and travels.
    Vote = 1,
    /// An explicit mask: beside a pruned model, or somebody's own.
    Mask = 2,
    /// The agreed set of ballots, from which the global mask is recomputed.
    Tally = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Kind::Vote, Kind::Mask, Kind::Tally].into_iter().find(|kind| *kind as u8 == byte)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Vote => "ballot",
            Kind::Mask => "mask",
            Kind::Tally => "tally",
        })
    }
}

/// What a ballot says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct VoteHeader {
    /// Content digest of the base checkpoint.
    pub model: Digest,
    /// Digest of its layout.
    pub layout: Digest,
    /// How weights were scored.
    pub pruner: Pruner,
    /// Local group.
    pub group: Group,
    /// Local sparsity; an n:m group's own when the group fixes it.
    pub sparsity: Sparsity,
    /// Calibration sequences; 0 for a pruner that needs none.
    pub samples: u32,
    /// Tokens of each of them.
    pub sequence_tokens: u32,
}

/// What an explicit mask says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct MaskHeader {
    /// Content digest of the base checkpoint.
    pub model: Digest,
    /// Digest of its layout.
    pub layout: Digest,
    /// The group within which the mask keeps its budget.
    pub group: Group,
    /// Sparsity; an n:m group's own when the group fixes it.
    pub sparsity: Sparsity,
    /// How many ballots it was tallied from; 1 for one silo's own mask.
    pub votes: u32,
}

/// One ballot of a tally.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Member {
    /// Who cast it, 1 to [`MAX_MEMBER_NAME_BYTES`] bytes.
    pub name: String,
    /// Tally weight, at least 1.
    pub weight: u32,
    /// BLAKE3 of the ballot's bytes.
    pub ballot: Digest,
    /// Their number.
    pub ballot_bytes: u64,
}

/// What a tally says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct TallyHeader {
    /// Content digest of the base checkpoint.
    pub model: Digest,
    /// Digest of its layout.
    pub layout: Digest,
    /// Global group.
    pub group: Group,
    /// Global sparsity; an n:m group's own when the group fixes it.
    pub sparsity: Sparsity,
    /// The ballots, by name, ascending.
    pub members: Vec<Member>,
    /// The global mask that they come to.
    pub mask_root: Digest,
}

/// The header of any file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Header {
    /// Of a ballot.
    Vote(VoteHeader),
    /// Of an explicit mask.
    Mask(MaskHeader),
    /// Of a tally.
    Tally(TallyHeader),
}

impl Header {
    /// What the file is.
    pub fn kind(&self) -> Kind {
        match self {
            Header::Vote(_) => Kind::Vote,
            Header::Mask(_) => Kind::Mask,
            Header::Tally(_) => Kind::Tally,
        }
    }

    /// Content digest of the base checkpoint.
    pub fn model(&self) -> Digest {
        match self {
            Header::Vote(header) => header.model,
            Header::Mask(header) => header.model,
            Header::Tally(header) => header.model,
        }
    }

    /// Digest of the layout.
    pub fn layout(&self) -> Digest {
        match self {
            Header::Vote(header) => header.layout,
            Header::Mask(header) => header.layout,
            Header::Tally(header) => header.layout,
        }
    }

    /// Local group of a ballot, global group of a tally.
    pub fn group(&self) -> Group {
        match self {
            Header::Vote(header) => header.group,
            Header::Mask(header) => header.group,
            Header::Tally(header) => header.group,
        }
    }

    /// Sparsity within the group.
    pub fn sparsity(&self) -> Sparsity {
        match self {
            Header::Vote(header) => header.sparsity,
            Header::Mask(header) => header.sparsity,
            Header::Tally(header) => header.sparsity,
        }
    }

    /// Prefix and header as they are written.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let header = match self {
            Header::Vote(header) => codec::encode(header),
            Header::Mask(header) => codec::encode(header),
            Header::Tally(header) => codec::encode(header),
        };
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + header.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.push(self.kind() as u8);
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header);
        bytes
    }

    /// Reads prefix and header, and leaves the body in `reader`.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, BallotError> {
        let magic = reader.take(MAGIC.len(), "the file signature").map_err(|_| BallotError::NotOurs)?;
        if magic != MAGIC {
            return Err(BallotError::NotOurs);
        }
        let version = u16::from_le_bytes(reader.array("the format version")?);
        if version != VERSION {
            return Err(BallotError::Version(version));
        }
        let [byte] = reader.array("the kind")?;
        let kind = Kind::from_byte(byte).ok_or(BallotError::UnknownKind(byte))?;
        let limit = if kind == Kind::Tally { TALLY_HEADER_LIMIT } else { HEADER_LIMIT };
        let length = u32::from_le_bytes(reader.array("the header length")?) as usize;
        if length > limit {
            return Err(BallotError::Header(codec::CodecError::TooLarge { actual: length, limit }));
        }
        let bytes = reader.take(length, "the header")?;
        let header = match kind {
            Kind::Vote => Header::Vote(codec::decode::<_, HEADER_LIMIT>(bytes)?),
            Kind::Mask => Header::Mask(codec::decode::<_, HEADER_LIMIT>(bytes)?),
            Kind::Tally => Header::Tally(codec::decode::<_, TALLY_HEADER_LIMIT>(bytes)?),
        };
        if let Header::Tally(tally) = &header
            && let Some(member) = tally.members.iter().find(|member| !is_member_name(&member.name))
        {
            return Err(BallotError::MemberName(member.name.escape_debug().take(80).collect()));
        }
        header.group().with_sparsity(header.sparsity())?;
        Ok(header)
    }
}

/// Whether a text may name a member: 1 to [`MAX_MEMBER_NAME_BYTES`] bytes, and nothing that would move a
/// terminal's cursor, end a line or turn the direction of writing where the name is shown.
pub fn is_member_name(name: &str) -> bool {
    (1..=MAX_MEMBER_NAME_BYTES).contains(&name.len()) && !name.contains(is_harmful)
}

/// Whether a character would move a terminal's cursor, end a line or turn the direction of writing where it is shown:
/// text from outside is shown without.
pub fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The header of a ballot, mask or tally, without looking at what follows it: no layout is needed.
///
/// # Errors
/// [`BallotError`] when the file is something else, or its header is damaged.
pub fn peek_header(bytes: &[u8]) -> Result<Header, BallotError> {
    Header::read(&mut Reader::new(bytes))
}

/// What reader and writer ask of a header alike: layout, group and sparsity fit each other.
pub(crate) fn check_header(header: &Header, layout: &Layout) -> Result<(), BallotError> {
    if header.layout() != layout.digest() {
        return Err(BallotError::OtherLayout { expected: layout.digest(), found: header.layout() });
    }
    header.group().with_sparsity(header.sparsity())?;
    layout.check_group(header.group())?;
    Ok(())
}

/// Takes bytes off the front of a slice and says what was missing.
pub(crate) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    pub(crate) fn left(&self) -> usize {
        self.left.len()
    }

    pub(crate) fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], BallotError> {
        let (taken, left) = self.left.split_at_checked(bytes).ok_or(BallotError::Truncated {
            what,
            needed: bytes as u64,
            left: self.left.len() as u64,
        })?;
        self.left = left;
        Ok(taken)
    }

    /// [`Reader::take`] for a length that a peer wrote.
    pub(crate) fn take_claimed(&mut self, bytes: u64, what: &'static str) -> Result<&'a [u8], BallotError> {
        let left = self.left.len() as u64;
        match usize::try_from(bytes) {
            Ok(bytes) => self.take(bytes, what),
            Err(_) => Err(BallotError::Truncated { what, needed: bytes, left }),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], BallotError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(crate) fn finish(&self) -> Result<(), BallotError> {
        match self.left.len() {
            0 => Ok(()),
            trailing => Err(BallotError::Trailing(trailing as u64)),
        }
    }
}
