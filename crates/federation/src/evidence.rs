//! Proof that a member said two things where it may say one.
//!
//! Two statements of one slot that conflict, both signed by the member: nobody else can make them, and
//! whoever has consortium and round ids can check them. An honest member never signs such a pair, since it
//! stores what it signs before it sends it, and re-issues holdings only with more in them.
//!
//! What decides is content: a second signature of the same content is no evidence. On the wire, after the
//! prefix: consortium id (32), round id (32), kind (4), the two signed statements, the one whose content
//! encodes to the lesser bytes first.

use fedprune_mask::codec::bincode::{Decode, Encode};
use fedprune_mask::codec::{self};

use crate::ballot::BallotHeader;
use crate::consortium::Ratified;
use crate::holdings::Holdings;
use crate::ids::{ConsortiumId, RoundId};
use crate::result::MaskResult;
use crate::statement::{Received, SignatureChecked, Signed, Slot, Statement, StatementError};
use crate::vote::{Precommit, Prevote, Proposal};
use crate::wire::{self, Content, WireError};

/// Most bytes of evidence after its prefix: two statements.
pub const EVIDENCE_LIMIT: usize = 160 << 10;

/// Two conflicting statements of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equivocation<T> {
    first: SignatureChecked<T>,
    second: SignatureChecked<T>,
}

/// Equivocation in any kind of statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// Two ballots.
    Ballot(Equivocation<BallotHeader>),
    /// Two holdings statements of which neither contains the other.
    Holdings(Equivocation<Holdings>),
    /// Two masks.
    Result(Equivocation<MaskResult>),
    /// Two proposals in one view.
    Proposal(Equivocation<Proposal>),
    /// Two prevotes in one view.
    Prevote(Equivocation<Prevote>),
    /// Two precommits in one view.
    Precommit(Equivocation<Precommit>),
}

/// Evidence as it arrived; proves nothing yet.
#[derive(Debug, Clone)]
pub struct ReceivedEvidence(Wire);

#[derive(Debug, Clone, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct Wire {
    consortium: ConsortiumId,
    round: RoundId,
    pair: Pair,
}

#[derive(Debug, Clone, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
enum Pair {
    Ballot(Signed<BallotHeader>, Signed<BallotHeader>),
    Holdings(Signed<Holdings>, Signed<Holdings>),
    Result(Signed<MaskResult>, Signed<MaskResult>),
    Proposal(Signed<Proposal>, Signed<Proposal>),
    Prevote(Signed<Prevote>, Signed<Prevote>),
    Precommit(Signed<Precommit>, Signed<Precommit>),
}

/// Why evidence proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Of another consortium or round.
    #[error("the evidence is of another consortium or round: {consortium}, {round}",
        consortium = consortium.0.short(), round = round.0.short())]
    OtherRound {
        /// The consortium that it names.
        consortium: ConsortiumId,
        /// The round that it names.
        round: RoundId,
    },
    /// One of the statements does not count.
    #[error("a statement of the evidence does not count")]
    Statement(#[from] StatementError),
    /// Different slots, the same content, or holdings that grew.
    #[error("the two statements of the evidence do not conflict; whoever sent it accuses a member of nothing")]
    NoConflict,
    /// The same evidence in another order.
    #[error("the two statements of the evidence are not in order; it is damaged")]
    Order,
}

impl<T: Statement> Equivocation<T> {
    /// Of two statements, if they are of one slot and conflict; the same for either order.
    pub fn between(one: &SignatureChecked<T>, other: &SignatureChecked<T>) -> Option<Self> {
        if one.slot() != other.slot() || !one.content().conflicts_with(other.content()) {
            return None;
        }
        let ordered = codec::encode(one.content()) < codec::encode(other.content());
        let (first, second) = if ordered { (one, other) } else { (other, one) };
        Some(Self { first: first.clone(), second: second.clone() })
    }

    /// The slot that was filled twice.
    pub fn slot(&self) -> Slot {
        self.first.slot()
    }

    /// The two statements, in canonical order.
    pub fn statements(&self) -> [&SignatureChecked<T>; 2] {
        [&self.first, &self.second]
    }

    fn pair(&self) -> (Signed<T>, Signed<T>) {
        (self.first.signed().clone(), self.second.signed().clone())
    }

    fn verify(
        (first, second): (Signed<T>, Signed<T>),
        consortium: &Ratified,
        round: RoundId,
    ) -> Result<Self, EvidenceError> {
        let first = Received(first).check(consortium, round)?;
        let second = Received(second).check(consortium, round)?;
        let found = Self::between(&first, &second).ok_or(EvidenceError::NoConflict)?;
        if found.first != first { Err(EvidenceError::Order) } else { Ok(found) }
    }
}

impl Evidence {
    /// The slot that was filled twice, which names the faulty member.
    pub fn slot(&self) -> Slot {
        match self {
            Evidence::Ballot(pair) => pair.slot(),
            Evidence::Holdings(pair) => pair.slot(),
            Evidence::Result(pair) => pair.slot(),
            Evidence::Proposal(pair) => pair.slot(),
            Evidence::Prevote(pair) => pair.slot(),
            Evidence::Precommit(pair) => pair.slot(),
        }
    }

    /// The two prevotes, if it is of prevotes.
    pub fn prevotes(&self) -> impl Iterator<Item = &SignatureChecked<Prevote>> {
        let pair = match self {
            Evidence::Prevote(pair) => Some(pair.statements()),
            _ => None,
        };
        pair.into_iter().flatten()
    }

    /// Evidence as it travels and is stored.
    pub fn encode(&self) -> Vec<u8> {
        let place = self.slot().place;
        let pair = match self {
            Evidence::Ballot(equivocation) => {
                let (first, second) = equivocation.pair();
                Pair::Ballot(first, second)
            }
            Evidence::Holdings(equivocation) => {
                let (first, second) = equivocation.pair();
                Pair::Holdings(first, second)
            }
            Evidence::Result(equivocation) => {
                let (first, second) = equivocation.pair();
                Pair::Result(first, second)
            }
            Evidence::Proposal(equivocation) => {
                let (first, second) = equivocation.pair();
                Pair::Proposal(first, second)
            }
            Evidence::Prevote(equivocation) => {
                let (first, second) = equivocation.pair();
                Pair::Prevote(first, second)
            }
            Evidence::Precommit(equivocation) => {
                let (first, second) = equivocation.pair();
                Pair::Precommit(first, second)
            }
        };
        wire::encode(Content::Evidence, &Wire { consortium: place.consortium, round: place.round, pair })
    }
}

impl ReceivedEvidence {
    /// Reads evidence.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, EVIDENCE_LIMIT>(Content::Evidence, bytes).map(Self)
    }

    /// Checks both signatures, and that the statements conflict.
    ///
    /// # Errors
    /// [`EvidenceError`] when it proves nothing in this round.
    pub fn verify(self, consortium: &Ratified, round: RoundId) -> Result<Evidence, EvidenceError> {
        let Wire { consortium: named, round: named_round, pair } = self.0;
        if (named, named_round) != (consortium.id(), round) {
            return Err(EvidenceError::OtherRound { consortium: named, round: named_round });
        }
        match pair {
            Pair::Ballot(a, b) => Equivocation::verify((a, b), consortium, round).map(Evidence::Ballot),
            Pair::Holdings(a, b) => Equivocation::verify((a, b), consortium, round).map(Evidence::Holdings),
            Pair::Result(a, b) => Equivocation::verify((a, b), consortium, round).map(Evidence::Result),
            Pair::Precommit(a, b) => Equivocation::verify((a, b), consortium, round).map(Evidence::Precommit),
            Pair::Prevote(a, b) => Equivocation::verify((a, b), consortium, round).map(Evidence::Prevote),
            Pair::Proposal(a, b) => Equivocation::verify((a, b), consortium, round).map(Evidence::Proposal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Height, MemberIndex};
    use crate::testing::{consortium_of, key};
    use fedprune_mask::Digest;
    use proptest::prelude::*;

    const ROUND: RoundId = RoundId(Digest([3; 32]));

    fn sign<T: Statement>(content: T, height: u32, member: usize) -> SignatureChecked<T> {
        SignatureChecked::sign(content, Height(height), &key(member), &consortium_of(4), ROUND).unwrap()
    }

    fn header(body: &str, claimed_unix_ms: u64) -> BallotHeader {
        BallotHeader { body: Digest::of(body.as_bytes()), body_bytes: 9, claimed_unix_ms }
    }

    fn ballots() -> Evidence {
        let pair = Equivocation::between(&sign(header("a", 1), 0, 2), &sign(header("b", 1), 0, 2));
        Evidence::Ballot(pair.unwrap())
    }

    fn holdings() -> Evidence {
        let one = Holdings::from_digests(vec![Some(Digest::of(b"a")), None, None, None]);
        let other = Holdings::from_digests(vec![None, Some(Digest::of(b"b")), None, None]);
        Evidence::Holdings(Equivocation::between(&sign(one, 5, 0), &sign(other, 5, 0)).unwrap())
    }

    fn results() -> Evidence {
        let root = |text: &str| MaskResult { mask_root: Digest::of(text.as_bytes()) };
        Evidence::Result(Equivocation::between(&sign(root("a"), 1, 3), &sign(root("b"), 1, 3)).unwrap())
    }

    fn proposals() -> Evidence {
        let proposal = |text: &str| Proposal { view: 2, value: Digest::of(text.as_bytes()), valid_view: None };
        Evidence::Proposal(Equivocation::between(&sign(proposal("a"), 0, 1), &sign(proposal("b"), 0, 1)).unwrap())
    }

    fn prevotes() -> Evidence {
        let vote = |value: Option<&str>| Prevote { view: 2, value: value.map(|text| Digest::of(text.as_bytes())) };
        Evidence::Prevote(Equivocation::between(&sign(vote(Some("a")), 0, 1), &sign(vote(None), 0, 1)).unwrap())
    }

    fn precommits() -> Evidence {
        let vote = |text: &str| Precommit { view: 2, value: Some(Digest::of(text.as_bytes())) };
        Evidence::Precommit(Equivocation::between(&sign(vote("a"), 0, 1), &sign(vote("b"), 0, 1)).unwrap())
    }

    #[test]
    fn bytes_are_pinned_and_verify() {
        for (evidence, golden) in [
            (proposals(), "2ad216a32733d1e6286e4d4511cc7239ad52eff7c97cf049dfd84b9b83aeaf16"),
            (prevotes(), "bc05c095f7b16adbd7e07ca05bf3881f193bd79291f5e972d46058fd5272d885"),
            (precommits(), "860e05f74a4ae3d7548fe139cf7241e32cf46557611ab391aeb60a64042666cb"),
            (ballots(), "123ef543a18e1eb33ef3542c3d01fa213bc0c27d9834dc5f29dd055d5ac5a69e"),
            (holdings(), "766a32a41134cb0ecc80ff91b7d525836489b196fb48ddb41a94be18ccba1229"),
            (results(), "f961a12d1c4fe6b475470c6976943fbbb1a8cf5ae38d44021340c5c5f603ca3d"),
        ] {
            let bytes = evidence.encode();
            let read = ReceivedEvidence::decode(&bytes).unwrap().verify(&consortium_of(4), ROUND).unwrap();
            assert_eq!(read, evidence);
            assert_eq!(Digest::of(&bytes).to_string(), golden);
        }
        assert_eq!(ballots().slot().place.member, MemberIndex(2));
    }

    #[test]
    fn either_order_gives_the_same_evidence() {
        let (one, other) = (sign(header("a", 1), 0, 2), sign(header("a", 2), 0, 2));
        let evidence = Equivocation::between(&one, &other);
        assert!(evidence.is_some(), "a second time is a second statement");
        assert_eq!(evidence, Equivocation::between(&other, &one));
        let [first, second] = evidence.as_ref().unwrap().statements();
        let swapped = Wire {
            consortium: consortium_of(4).id(),
            round: ROUND,
            pair: Pair::Ballot(second.signed().clone(), first.signed().clone()),
        };
        let bytes = wire::encode(Content::Evidence, &swapped);
        let error = ReceivedEvidence::decode(&bytes).unwrap().verify(&consortium_of(4), ROUND).unwrap_err();
        assert_eq!(error, EvidenceError::Order);
    }

    #[test]
    fn honest_members_cannot_be_accused() {
        let one = sign(header("a", 1), 0, 2);
        // the same statement; another height; another member; another round
        let other_round =
            SignatureChecked::sign(header("b", 1), Height(0), &key(2), &consortium_of(4), RoundId(Digest([4; 32])));
        for other in [one.clone(), sign(header("b", 1), 1, 2), sign(header("b", 1), 0, 1), other_round.unwrap()] {
            assert_eq!(Equivocation::between(&one, &other), None);
            let accusation = Wire {
                consortium: consortium_of(4).id(),
                round: ROUND,
                pair: Pair::Ballot(one.signed().clone(), other.signed().clone()),
            };
            let bytes = wire::encode(Content::Evidence, &accusation);
            assert!(ReceivedEvidence::decode(&bytes).unwrap().verify(&consortium_of(4), ROUND).is_err());
        }
        // holdings that grew
        let less = Holdings::from_digests(vec![Some(Digest::of(b"a")), None, None, None]);
        let more = Holdings::from_digests(vec![Some(Digest::of(b"a")), Some(Digest::of(b"b")), None, None]);
        assert_eq!(Equivocation::between(&sign(less.clone(), 0, 1), &sign(more, 0, 1)), None);
        assert_eq!(Equivocation::between(&sign(less.clone(), 0, 1), &sign(less, 0, 1)), None);
    }

    #[test]
    fn evidence_of_another_round_is_named() {
        let received = ReceivedEvidence::decode(&ballots().encode()).unwrap();
        let error = received.verify(&consortium_of(4), RoundId(Digest([4; 32]))).unwrap_err();
        assert!(matches!(error, EvidenceError::OtherRound { .. }), "{error}");
    }

    #[test]
    fn oversized_evidence_is_refused_unread() {
        let bytes = wire::encode(Content::Evidence, &vec![0u8; EVIDENCE_LIMIT]);
        let error = ReceivedEvidence::decode(&bytes).unwrap_err();
        assert!(matches!(
            error,
            WireError::Value { source: codec::CodecError::TooLarge { limit: EVIDENCE_LIMIT, .. }, .. }
        ));
    }

    #[test]
    fn evidence_of_a_thousand_members_fits() {
        let consortium = consortium_of(1000);
        let sign = |text: &str| {
            let content = Holdings::from_digests(vec![Some(Digest::of(text.as_bytes())); 1000]);
            SignatureChecked::sign(content, Height(0), &key(0), &consortium, ROUND).unwrap()
        };
        let evidence = Evidence::Holdings(Equivocation::between(&sign("a"), &sign("b")).unwrap());
        let received = ReceivedEvidence::decode(&evidence.encode()).unwrap();
        assert_eq!(received.verify(&consortium, ROUND), Ok(evidence));
    }

    proptest! {
        #[test]
        fn damage_is_noticed(which in 0usize..6, at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
            let bytes = [ballots(), holdings(), results(), proposals(), prevotes(), precommits()][which].encode();
            prop_assert!(ReceivedEvidence::decode(&bytes[..cut % bytes.len()]).is_err());
            let mut flipped = bytes.clone();
            flipped[at % bytes.len()] ^= 1 << bit;
            let read = ReceivedEvidence::decode(&flipped);
            prop_assert!(read.is_err() || read.unwrap().verify(&consortium_of(4), ROUND).is_err());
        }
    }
}
