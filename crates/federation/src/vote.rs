//! What members say while they agree on the value of a height: proposals, prevotes and precommits.
//!
//! These are the messages of Tendermint (Buchman, Kwon and Milosevic, arXiv 1807.04938, Algorithm 1), with
//! *view* for its round, since a round is something else here. Whoever carries out the agreement decides
//! when to say them; what they are, and the bytes under their signatures, is fixed here, so that an auditor
//! needs no engine.
//!
//! | kind | content on the wire | under the signature |
//! |---|---|---|
//! | proposal | view (4), value (32), a byte, 1 and the valid view (4) or 0 | view (4), value (32), valid view + 1 or 0 (8) |
//! | prevote, precommit | view (4), a byte, 1 and the value (32) or 0 for nil | view (4), 1 or 0, value or zeros (32) |

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode;

use crate::signing::Kind;
use crate::statement::Statement;
use crate::wire::Content;

/// The highest view that anybody may speak of; at a second each, no round gets there in thirty years.
pub const MAX_VIEW: u32 = 1 << 30;

/// The aggregator of a view proposes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Proposal {
    /// From 0.
    pub view: u32,
    /// The value of a [`crate::Decision`].
    pub value: Digest,
    /// The view in which a quorum prevoted the value, if it is proposed again.
    pub valid_view: Option<u32>,
}

/// A member would accept a value in a view; none for nil.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Prevote {
    /// From 0.
    pub view: u32,
    /// The value of a [`crate::Decision`].
    pub value: Option<Digest>,
}

/// A member commits to a value in a view; none for nil.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Precommit {
    /// From 0.
    pub view: u32,
    /// The value of a [`crate::Decision`].
    pub value: Option<Digest>,
}

fn check_view(view: u32) -> Result<(), &'static str> {
    if view <= MAX_VIEW { Ok(()) } else { Err("is of a view that no round comes to") }
}

fn vote_fields(view: u32, value: Option<Digest>) -> Vec<u8> {
    let mut fields = view.to_le_bytes().to_vec();
    fields.push(u8::from(value.is_some()));
    fields.extend_from_slice(&value.unwrap_or(Digest([0; 32])).0);
    fields
}

impl Statement for Proposal {
    const KIND: Kind = Kind::Proposal;
    const CONTENT: Content = Content::Proposal;

    fn fields(&self) -> Vec<u8> {
        let mut fields = self.view.to_le_bytes().to_vec();
        fields.extend_from_slice(&self.value.0);
        let valid = self.valid_view.map_or(0, |view| u64::from(view).saturating_add(1));
        fields.extend_from_slice(&valid.to_le_bytes());
        fields
    }

    fn check(&self, _members: usize) -> Result<(), &'static str> {
        check_view(self.view)?;
        match self.valid_view {
            Some(valid) if valid >= self.view => Err("names a valid view that is not before its own"),
            _ => Ok(()),
        }
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        self.view == other.view && self != other
    }
}

impl Statement for Prevote {
    const KIND: Kind = Kind::Prevote;
    const CONTENT: Content = Content::Prevote;

    fn fields(&self) -> Vec<u8> {
        vote_fields(self.view, self.value)
    }

    fn check(&self, _members: usize) -> Result<(), &'static str> {
        check_view(self.view)
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        self.view == other.view && self != other
    }
}

impl Statement for Precommit {
    const KIND: Kind = Kind::Precommit;
    const CONTENT: Content = Content::Precommit;

    fn fields(&self) -> Vec<u8> {
        vote_fields(self.view, self.value)
    }

    fn check(&self, _members: usize) -> Result<(), &'static str> {
        check_view(self.view)
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        self.view == other.view && self != other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Height, RoundId};
    use crate::statement::{Received, SignatureChecked};
    use crate::testing::{consortium_of, key};

    fn golden<T: Statement>(content: T, preimage: &str, bytes: &str) {
        let round = RoundId(Digest([3; 32]));
        let signed = SignatureChecked::sign(content, Height(7), &key(1), &consortium_of(4), round).unwrap();
        let read = Received::<T>::decode(&signed.encode()).unwrap().check(&consortium_of(4), round).unwrap();
        assert_eq!(read, signed);
        assert_eq!(Digest::of(&signed.preimage()).to_string(), preimage);
        assert_eq!(Digest::of(&signed.encode()).to_string(), bytes);
    }

    #[test]
    fn bytes_are_pinned() {
        let value = Digest::of(b"value");
        golden(
            Proposal { view: 3, value, valid_view: Some(1) },
            "2b42bdffb291f01c43b8fb3a1de1ff8d912edab632ed3373576c6a1c9e7fef86",
            "59b0015bc43409c915f023254867071bc32aebe77d6a25a5173ff194e32ccb98",
        );
        golden(
            Prevote { view: 3, value: Some(value) },
            "eb6558b8427c159c1f9bb44ce48b0a39bd23cfc63ca7759b40cd27fb0e040838",
            "c56d261881b8abc0a38fe7b0d56ffd9fb74646d04be7319a73a0d1cfeedb7f67",
        );
        golden(
            Precommit { view: 3, value: None },
            "a82469ef7f294c03b5c48cd56ee4eed1adcc3ae2f48929838943f07f99118f88",
            "2acc6602f7dbdacaaa4eb56783c2bd617d56d3eefe5a7081b94c61c1cf694afd",
        );
    }

    #[test]
    fn every_field_is_signed_in_one_width() {
        let value = Digest::of(b"value");
        let proposals = [
            Proposal { view: 1, value, valid_view: None },
            Proposal { view: 2, value, valid_view: None },
            Proposal { view: 1, value, valid_view: Some(0) },
            Proposal { view: 1, value: Digest([0; 32]), valid_view: None },
        ];
        let votes = [(0, None), (1, None), (0, Some(value)), (0, Some(Digest([0; 32])))]
            .map(|(view, value)| Prevote { view, value });
        let all: Vec<Vec<u8>> = proposals.iter().map(Statement::fields).collect();
        let of_votes: Vec<Vec<u8>> = votes.iter().map(Statement::fields).collect();
        for fields in [all, of_votes] {
            for (index, one) in fields.iter().enumerate() {
                assert_eq!(one.len(), fields[0].len());
                assert!(!fields[..index].contains(one));
            }
        }
    }

    #[test]
    fn views_are_bounded_and_in_order() {
        let value = Digest::of(b"value");
        assert!(Prevote { view: MAX_VIEW + 1, value: None }.check(4).is_err());
        assert!(Precommit { view: u32::MAX, value: None }.check(4).is_err());
        assert!(Proposal { view: 2, value, valid_view: Some(2) }.check(4).is_err());
        assert!(Proposal { view: 2, value, valid_view: Some(1) }.check(4).is_ok());
    }

    #[test]
    fn one_vote_a_view() {
        let vote = |view, text: &str| Prevote { view, value: Some(Digest::of(text.as_bytes())) };
        assert!(vote(1, "a").conflicts_with(&vote(1, "b")));
        assert!(vote(1, "a").conflicts_with(&Prevote { view: 1, value: None }));
        assert!(!vote(1, "a").conflicts_with(&vote(2, "b")));
        assert!(!vote(1, "a").conflicts_with(&vote(1, "a")));
    }
}
