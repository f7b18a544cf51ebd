//! Which ballots a member has checked and stored: one statement per member and height.
//!
//! A member re-issues its statement only with more in it. So two statements of one slot are no lie when
//! one contains the other, and are evidence when neither does.
//!
//! Content on the wire: number of members (8), then for each a byte, 1 and the digest (32) of the ballot's
//! body or 0. Under the signature: number of members (2), BLAKE3 of those entries (32).

use fedprune_mask::Digest;
use fedprune_mask::codec::{self, bincode};

use crate::ballot::Validated;
use crate::ids::MemberIndex;
use crate::signing::Kind;
use crate::statement::{SignatureChecked, Slot, Statement};
use crate::wire::Content;

/// For each member the digest of the ballot held from it, or none.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Holdings {
    ballots: Vec<Option<Digest>>,
}

/// A ballot that cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// Another ballot of the same member is held already; the two are evidence.
    #[error("another ballot of member {member}, {held}, is held already; keep that one and report both",
        held = held.short())]
    AnotherHeld {
        /// Whose ballots.
        member: MemberIndex,
        /// The one held.
        held: Digest,
    },
    /// The list is of a smaller consortium.
    #[error("member {0} is not in the list of holdings; it is of another consortium")]
    NoSuchMember(MemberIndex),
}

impl Holdings {
    /// Of nothing yet, in a consortium of `members`.
    pub fn none(members: usize) -> Self {
        Self { ballots: vec![None; members] }
    }

    /// As listed, one entry for each member; what follows from it is decided by signatures and quorums.
    pub fn from_digests(ballots: Vec<Option<Digest>>) -> Self {
        Self { ballots }
    }

    /// Adds a ballot that was validated and is stored.
    ///
    /// # Errors
    /// [`HoldError`] when another ballot of the same member is held: the first one stays.
    pub fn add(&mut self, ballot: &Validated) -> Result<(), HoldError> {
        let member = ballot.member();
        let entry = self.ballots.get_mut(member.as_usize()).ok_or(HoldError::NoSuchMember(member))?;
        match *entry {
            Some(held) if held != ballot.body() => Err(HoldError::AnotherHeld { member, held }),
            _ => {
                *entry = Some(ballot.body());
                Ok(())
            }
        }
    }

    /// The ballot held of one member.
    pub fn of(&self, member: MemberIndex) -> Option<Digest> {
        self.ballots.get(member.as_usize()).copied().flatten()
    }

    /// One entry for each member.
    pub fn ballots(&self) -> &[Option<Digest>] {
        &self.ballots
    }

    /// How many ballots are held.
    pub fn count(&self) -> usize {
        self.ballots.iter().flatten().count()
    }

    /// Whether all that `other` holds is held here too, and the lists are of one length.
    pub fn contains(&self, other: &Holdings) -> bool {
        self.ballots.len() == other.ballots.len()
            && self.ballots.iter().zip(&other.ballots).all(|(mine, theirs)| theirs.is_none() || mine == theirs)
    }
}

impl Statement for Holdings {
    const KIND: Kind = Kind::Holdings;
    const CONTENT: Content = Content::Holdings;

    fn fields(&self) -> Vec<u8> {
        // `check` refuses other lengths than the consortium's, at most 1000
        let members = u16::try_from(self.ballots.len()).unwrap_or(u16::MAX);
        let mut fields = members.to_le_bytes().to_vec();
        fields.extend_from_slice(&Digest::of(&codec::encode(self)).0);
        fields
    }

    fn check(&self, members: usize) -> Result<(), &'static str> {
        if self.ballots.len() == members { Ok(()) } else { Err("does not list exactly the members of the consortium") }
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        !self.contains(other) && !other.contains(self)
    }
}

/// What a new statement is to the one already known of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reissue {
    /// It says more: keep the new one.
    Newer,
    /// It says the same or less, and came late: keep the old one.
    Older,
    /// Neither contains the other: keep the old one, and both are evidence.
    Conflict,
    /// They are of different slots and have nothing to do with each other.
    Unrelated,
}

/// Compares a statement with the one known of its slot.
pub fn reissue(known: &SignatureChecked<Holdings>, new: &SignatureChecked<Holdings>) -> Reissue {
    let slots: [Slot; 2] = [known.slot(), new.slot()];
    match slots {
        [a, b] if a != b => Reissue::Unrelated,
        _ if known.content().contains(new.content()) => Reissue::Older,
        _ if new.content().contains(known.content()) => Reissue::Newer,
        _ => Reissue::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Height, RoundId};
    use crate::testing::{consortium_of, key};

    fn digest(text: &str) -> Option<Digest> {
        Some(Digest::of(text.as_bytes()))
    }

    fn holdings(ballots: &[Option<Digest>]) -> Holdings {
        Holdings::from_digests(ballots.to_vec())
    }

    #[test]
    fn bytes_are_pinned() {
        let holdings = holdings(&[digest("a"), None, digest("c"), None]);
        let fields = holdings.fields();
        assert_eq!(fields.len(), 34);
        assert_eq!(fields[..2], [4, 0]);
        let round = RoundId(Digest([3; 32]));
        let signed = SignatureChecked::sign(holdings, Height(7), &key(1), &consortium_of(4), round).unwrap();
        let bytes = signed.encode();
        assert_eq!(bytes.len(), 11 + 2 + 4 + 8 + 2 * 33 + 2 + 64);
        assert_eq!(bytes[11..17], [1, 0, 7, 0, 0, 0]);
        assert_eq!(Digest::of(&fields).to_string(), "0021bfba8bfac014b3ae96c877535df125df4c2ba612d008b5d4d9aaf63a1128");
        assert_eq!(
            Digest::of(&signed.preimage()).to_string(),
            "80898feb0609379d05a0126be6d0574d030d5af78ec35aae71d632aef4d2d2bf"
        );
        assert_eq!(Digest::of(&bytes).to_string(), "b4fb65c70d451c440dd195368ff2b84297129d526d0300a986eefb3c2886eb07");
    }

    #[test]
    fn fields_see_every_entry_and_its_position() {
        let all = [
            holdings(&[digest("a"), None]),
            holdings(&[None, digest("a")]),
            holdings(&[digest("b"), None]),
            holdings(&[digest("a"), None, None]),
            Holdings::none(2),
            Holdings::none(3),
        ];
        for (index, one) in all.iter().enumerate() {
            assert_eq!(one.fields().len(), 34, "one width");
            assert!(all[..index].iter().all(|other| other.fields() != one.fields()));
        }
    }

    #[test]
    fn more_is_no_conflict_and_anything_else_is() {
        let less = holdings(&[digest("a"), None, None, None]);
        let more = holdings(&[digest("a"), None, digest("c"), None]);
        let other = holdings(&[digest("a"), digest("b"), None, None]);
        let changed = holdings(&[digest("x"), None, digest("c"), None]);
        for (one, two, expected) in [
            (&less, &more, Reissue::Newer),
            (&more, &less, Reissue::Older),
            (&less, &less, Reissue::Older),
            (&more, &other, Reissue::Conflict),
            (&less, &changed, Reissue::Conflict),
            (&more, &changed, Reissue::Conflict),
        ] {
            assert_eq!(one.conflicts_with(two), expected == Reissue::Conflict);
            let round = RoundId(Digest([3; 32]));
            let sign = |content: &Holdings, height, member| {
                SignatureChecked::sign(content.clone(), Height(height), &key(member), &consortium_of(4), round).unwrap()
            };
            assert_eq!(reissue(&sign(one, 0, 0), &sign(two, 0, 0)), expected);
            assert_eq!(reissue(&sign(one, 0, 0), &sign(two, 1, 0)), Reissue::Unrelated);
            assert_eq!(reissue(&sign(one, 0, 0), &sign(two, 0, 1)), Reissue::Unrelated);
        }
    }

    #[test]
    fn lists_of_another_length_are_refused() {
        let consortium = consortium_of(4);
        let round = RoundId(Digest([3; 32]));
        for members in [0, 3, 5] {
            let error = SignatureChecked::sign(Holdings::none(members), Height(0), &key(1), &consortium, round);
            assert!(error.unwrap_err().to_string().contains("exactly the members"));
        }
    }
}
