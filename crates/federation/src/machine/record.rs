//! What a member writes down, and reads again when it starts.
//!
//! The log of a round is a list of records, each of one height, in the order in which they were written.

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode::{Decode, Encode};

use crate::ids::MemberIndex;
use crate::wire::{self, Content, WireError};

/// Most bytes of a record after its prefix: the largest message and its frame.
pub const RECORD_LIMIT: usize = crate::proposed::PROPOSED_LIMIT + 64;

/// One entry of a member's log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub enum Record {
    /// A message that this member signed; durable before it leaves.
    Said(Vec<u8>),
    /// A message of another member.
    Heard(Vec<u8>),
    /// An entry of the agreement's journal.
    Journal(Vec<u8>),
    /// A ballot whose body is stored and was found valid.
    Held(MemberIndex, Digest),
    /// A ballot that was found invalid.
    Refused(MemberIndex, Digest),
    /// What a set of ballots came to: the digest of the set, and the mask root.
    Tallied(Digest, Digest),
    /// This member found votes of its own that its log does not have, and says nothing more at this height.
    Silent,
    /// This member had no ballot for this height, in one life of its process; in the next it tries again.
    Abstained,
}

impl Record {
    /// The record as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(Content::Record, self)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, RECORD_LIMIT>(Content::Record, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pinned_and_read_back() {
        let member = MemberIndex(3);
        let records = [
            Record::Said(vec![1, 2]),
            Record::Heard(vec![3]),
            Record::Journal(vec![]),
            Record::Held(member, Digest([7; 32])),
            Record::Refused(member, Digest([8; 32])),
            Record::Tallied(Digest([9; 32]), Digest([10; 32])),
            Record::Silent,
            Record::Abstained,
        ];
        let mut all = Vec::new();
        for record in &records {
            assert_eq!(&Record::decode(&record.encode()).unwrap(), record);
            all.extend(record.encode());
        }
        assert_eq!(Digest::of(&all).to_string(), "cc750bcbfaa2fc4e6594ab4444f677b63a20eda949a0ebf9b4587ed9ce92b57e");
        assert!(Record::decode(&wire::encode(Content::Record, &vec![0u8; RECORD_LIMIT])).is_err());
    }
}
