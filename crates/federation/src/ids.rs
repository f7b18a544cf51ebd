//! Identifiers as types, so that none is taken for another, and the arithmetic of faults.

use std::fmt;
use std::str::FromStr;

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode;
use fedprune_mask::digest::ParseDigestError;
use serde::{Deserialize, Serialize};

/// Most members of a consortium.
pub const MAX_MEMBERS: usize = fedprune_mask::ballot::MAX_MEMBERS;

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode, Serialize, Deserialize,
        )]
        #[bincode(crate = "fedprune_mask::codec::bincode")]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

digest_id! {
    /// BLAKE3 of the canonical bytes of a consortium.
    ConsortiumId
}

digest_id! {
    /// BLAKE3 of the canonical bytes of a round.
    RoundId
}

impl RoundId {
    /// Stands for the round in what is signed outside any; no document hashes to it.
    pub const NONE: RoundId = RoundId(Digest([0; 32]));
}

/// Position of a member in the consortium: by name, ascending, from 0.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode, Serialize, Deserialize,
)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct MemberIndex(pub u16);

impl MemberIndex {
    /// For positions in lists of members.
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for MemberIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which agreement of a round, from 0: the only one of a one-shot round, the decoder block of an iterative one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode, Serialize, Deserialize,
)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Height(pub u32);

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How many members there are, may fail, and must agree.
///
/// Any two sets of q members share more than f, hence an honest one; and of q statements at least f + 1 are
/// of honest members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quorum {
    n: u16,
    f: u16,
    q: u16,
}

/// No consortium has this many members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a consortium has 1 to {MAX_MEMBERS} members, not {0}")]
pub struct MemberCountError(pub usize);

impl Quorum {
    /// For `members` members: f = ⌊(n − 1)/3⌋, q = ⌊2n/3⌋ + 1.
    ///
    /// # Errors
    /// [`MemberCountError`] outside 1 to [`MAX_MEMBERS`].
    pub fn of(members: usize) -> Result<Self, MemberCountError> {
        let error = MemberCountError(members);
        if members > MAX_MEMBERS {
            return Err(error);
        }
        let n = u16::try_from(members).map_err(|_| error)?;
        let f = n.checked_sub(1).ok_or(error)? / 3;
        let q = n.saturating_mul(2) / 3; // at most 2000
        Ok(Self { n, f, q: q.saturating_add(1) })
    }

    /// Members.
    pub fn n(self) -> usize {
        usize::from(self.n)
    }

    /// Members that may fail in any way whatever.
    pub fn f(self) -> usize {
        usize::from(self.f)
    }

    /// Members whose agreement decides.
    pub fn q(self) -> usize {
        usize::from(self.q)
    }

    /// One statement more than the faulty members can make: an honest one is among them.
    pub fn one_honest(self) -> usize {
        self.f().saturating_add(1)
    }

    /// What the numbers mean, for people who set up a consortium.
    pub fn in_words(self) -> String {
        match (self.n, self.f) {
            (1, _) => "1 member: it decides alone, and nothing it does is checked by another".to_owned(),
            (n, 0) => format!(
                "{n} members: no fault is tolerated; all {n} must be up and honest for a round to end, 4 members would tolerate one fault"
            ),
            (n, f) => format!(
                "{n} members: up to {f} may fail, lie or be absent; {q} must agree for a round to end",
                q = self.q
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_intersect_in_an_honest_member_and_are_reachable_without_the_faulty() {
        for n in 1..=MAX_MEMBERS {
            let quorum = Quorum::of(n).unwrap();
            let (f, q) = (quorum.f(), quorum.q());
            assert_eq!((f, q), ((n - 1) / 3, 2 * n / 3 + 1));
            assert!(2 * q > n + f, "{n}: two quorums share an honest member");
            assert!(q - f > f, "{n}: f + 1 of q statements are honest");
            assert!(q <= n - f, "{n}: the honest are a quorum");
        }
        assert_eq!(Quorum::of(0), Err(MemberCountError(0)));
        assert_eq!(Quorum::of(1001), Err(MemberCountError(1001)));
        assert!(Quorum::of(70_000).is_err());
    }

    #[test]
    fn two_and_three_members_are_told_that_they_tolerate_nothing() {
        for n in [2, 3] {
            let words = Quorum::of(n).unwrap().in_words();
            assert!(words.contains("no fault is tolerated") && words.contains(&format!("all {n}")), "{words}");
        }
        assert!(Quorum::of(4).unwrap().in_words().contains("up to 1 may fail"));
        assert!(Quorum::of(1).unwrap().in_words().contains("alone"));
    }

    #[test]
    fn ids_read_back_what_they_show() {
        let id = RoundId(Digest::of(b"round"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(format!("{id:?}"), format!("RoundId({id})"));
    }
}
