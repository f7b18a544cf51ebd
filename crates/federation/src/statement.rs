//! Signed statements, and how far each has been verified.
//!
//! [`Received`] → [`SignatureChecked`] → (ballots only) [`crate::Validated`]: what was merely received has
//! no content to look at, so no function can act on it by mistake. A [`SignatureChecked`] statement
//! remembers the consortium and round in which it was checked, and counts nowhere else.
//!
//! On the wire, after the prefix of [`crate::wire`]: member (2), height (4), content, signature (64).
//! Consortium and round are under the signature and not in the message: whoever speaks of another round
//! is refused by its signature.

use std::fmt::Debug;

use fedprune_mask::codec::bincode::{Decode, Encode};

use crate::consortium::Ratified;
use crate::ids::{ConsortiumId, Height, MemberIndex, RoundId};
use crate::signing::{Kind, Place, Signature, SigningKey, preimage};
use crate::wire::{self, Content, WireError};

/// Most bytes of a statement after the prefix: holds the holdings of 1000 members.
pub const STATEMENT_LIMIT: usize = 64 << 10;

/// What can be signed, in a round, at a height.
pub trait Statement: Encode + Decode<()> + Clone + Eq + Debug {
    /// What a signature of it says.
    const KIND: Kind;
    /// Its number on the wire.
    const CONTENT: Content;

    /// The bytes under the signature that are its own; of one width for all values.
    fn fields(&self) -> Vec<u8>;

    /// What is wrong with it, whoever signed it; `members` is the size of the consortium.
    ///
    /// # Errors
    /// One clause that begins with a verb, for [`StatementError::Content`].
    fn check(&self, members: usize) -> Result<(), &'static str>;

    /// Whether an honest member signs at most one of the two in one slot.
    fn conflicts_with(&self, other: &Self) -> bool {
        self != other
    }
}

/// What a member may fill with one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Consortium, round, height and member.
    pub place: Place,
    /// What kind of statement.
    pub kind: Kind,
}

/// A statement with its signature, neither checked.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub(crate) struct Signed<T> {
    pub(crate) member: MemberIndex,
    pub(crate) height: Height,
    pub(crate) content: T,
    pub(crate) signature: Signature,
}

/// A statement as it arrived: well-formed bytes, and anybody's.
#[derive(Debug, Clone)]
pub struct Received<T>(pub(crate) Signed<T>);

/// A statement that a member signed for one round; its content may still be false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureChecked<T> {
    signed: Signed<T>,
    consortium: ConsortiumId,
    round: RoundId,
}

/// Why a statement does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// No such member.
    #[error("a {kind} claims to be of member {member}, and the consortium has {members} members, numbered from 0")]
    NoSuchMember {
        /// What kind of statement.
        kind: Kind,
        /// The member that it names.
        member: MemberIndex,
        /// How many there are.
        members: usize,
    },
    /// Not signed by the member that it names, or not in this consortium, round and height.
    #[error(
        "a {kind} at height {height} in the name of `{member}` is not signed by it for this round: \
         it is forged, damaged, or of another round"
    )]
    Signature {
        /// What kind of statement.
        kind: Kind,
        /// The name of the member.
        member: String,
        /// The height that it names.
        height: Height,
    },
    /// Signed, and nothing that an honest member says.
    #[error("a {kind} of `{member}` {problem}")]
    Content {
        /// What kind of statement.
        kind: Kind,
        /// The name of the member.
        member: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Why a statement cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key is of nobody in the consortium.
    #[error("the key {0} is of no member of this consortium; use the key whose `signing_key` is in its document")]
    NotAMember(String),
    /// The statement is one that nobody accepts.
    #[error("the {kind} to be signed {problem}")]
    Content {
        /// What kind of statement.
        kind: Kind,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl<T: Statement> Received<T> {
    /// Reads a statement.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are no statement of this kind.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<Signed<T>, STATEMENT_LIMIT>(T::CONTENT, bytes).map(Self)
    }

    /// In whose name it speaks; anybody may have written that.
    pub fn claimed_member(&self) -> MemberIndex {
        self.0.member
    }

    /// Of which height it speaks; anybody may have written that.
    pub fn claimed_height(&self) -> Height {
        self.0.height
    }

    /// What it says; anybody may have written that. For catalogues, never for decisions.
    pub fn claimed(&self) -> &T {
        &self.0.content
    }

    /// Checks who signed it, for which round.
    ///
    /// Heights are not bounded here: how many a round has depends on the model.
    ///
    /// # Errors
    /// [`StatementError`] when the named member did not sign it for `round`, or its content cannot be.
    pub fn check(self, consortium: &Ratified, round: RoundId) -> Result<SignatureChecked<T>, StatementError> {
        let Signed { member, height, ref content, signature } = self.0;
        let members = consortium.members().len();
        let Some(known) = consortium.member(member) else {
            return Err(StatementError::NoSuchMember { kind: T::KIND, member, members });
        };
        let place = Place { consortium: consortium.id(), round, height, member };
        known
            .signing_key
            .verify(T::KIND, place, &content.fields(), &signature)
            .map_err(|_| StatementError::Signature { kind: T::KIND, member: known.name.clone(), height })?;
        content.check(members).map_err(|problem| StatementError::Content {
            kind: T::KIND,
            member: known.name.clone(),
            problem,
        })?;
        Ok(SignatureChecked { signed: self.0, consortium: consortium.id(), round })
    }
}

impl<T: Statement> SignatureChecked<T> {
    /// Signs `content`. Whoever calls this has made sure that the slot is empty and that the result is
    /// stored before it leaves.
    ///
    /// # Errors
    /// [`SignError`] when the key is of no member, or the content is one that nobody accepts.
    pub fn sign(
        content: T,
        height: Height,
        key: &SigningKey,
        consortium: &Ratified,
        round: RoundId,
    ) -> Result<Self, SignError> {
        let verifying_key = key.verifying_key();
        let stranger = || SignError::NotAMember(verifying_key.to_string());
        let member = consortium.index_of(&verifying_key).ok_or_else(stranger)?;
        let members = consortium.members().len();
        content.check(members).map_err(|problem| SignError::Content { kind: T::KIND, problem })?;
        let place = Place { consortium: consortium.id(), round, height, member };
        let signature = key.sign(T::KIND, place, &content.fields());
        let signed = Signed { member, height, content, signature };
        Ok(Self { signed, consortium: consortium.id(), round })
    }

    /// What was said.
    pub fn content(&self) -> &T {
        &self.signed.content
    }

    /// Who said it.
    pub fn member(&self) -> MemberIndex {
        self.signed.member
    }

    /// Of which height.
    pub fn height(&self) -> Height {
        self.signed.height
    }

    /// In which consortium it counts.
    pub fn consortium(&self) -> ConsortiumId {
        self.consortium
    }

    /// In which round it counts.
    pub fn round(&self) -> RoundId {
        self.round
    }

    /// The signature, which has been checked.
    pub fn signature(&self) -> Signature {
        self.signed.signature
    }

    /// The slot that it fills.
    pub fn slot(&self) -> Slot {
        let place =
            Place { consortium: self.consortium, round: self.round, height: self.height(), member: self.member() };
        Slot { place, kind: T::KIND }
    }

    /// The bytes under its signature.
    pub fn preimage(&self) -> Vec<u8> {
        preimage(T::KIND, self.slot().place, &self.content().fields())
    }

    /// The statement as it travels.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(T::CONTENT, &self.signed)
    }

    pub(crate) fn signed(&self) -> &Signed<T> {
        &self.signed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{consortium_of, key};
    use crate::{BallotHeader, Holdings, MaskResult};
    use fedprune_mask::Digest;
    use proptest::prelude::*;

    const ROUND: RoundId = RoundId(Digest([3; 32]));

    /// One key signs the same fields as every kind, in two consortiums, rounds and heights, as two members, and
    /// what libp2p signs with it: only what it was made for verifies.
    #[test]
    fn nothing_signed_in_one_place_verifies_in_another() {
        let key = key(0);
        let fields = [0x5a; 48];
        let digests = [Digest([1; 32]), Digest([2; 32])];
        let mut messages: Vec<Vec<u8>> = Vec::new();
        for kind in Kind::ALL {
            for bits in 0..16usize {
                let place = Place {
                    consortium: ConsortiumId(digests[bits & 1]),
                    round: RoundId(digests[bits >> 1 & 1]),
                    height: Height((bits >> 2 & 1) as u32),
                    member: MemberIndex((bits >> 3) as u16),
                };
                messages.push(preimage(kind, place, &fields));
            }
        }
        assert_eq!(messages.len(), Kind::ALL.len() * 16);
        for prefix in ["noise-libp2p-static-key:", "libp2p-tls-handshake:", "libp2p-pubsub:"] {
            messages.push([prefix.as_bytes(), &fields].concat());
            messages.push([prefix.as_bytes(), &messages[0]].concat());
        }
        let signatures: Vec<Signature> = messages.iter().map(|message| key.sign_bytes(message)).collect();
        for (made, message) in messages.iter().enumerate() {
            for (other, signature) in signatures.iter().enumerate() {
                let verified = key.verifying_key().verify_bytes(message, signature).is_ok();
                assert_eq!(verified, made == other, "what was signed as {other}, read as {made}");
            }
        }
    }

    #[test]
    fn every_part_of_the_place_counts() {
        let consortium = consortium_of(4);
        let others = crate::testing::named_consortium("another", 4);
        let said = MaskResult { mask_root: Digest::of(b"root") };
        let signed = SignatureChecked::sign(said, Height(2), &key(1), &consortium, ROUND).unwrap();
        let received = || Received::<MaskResult>::decode(&signed.encode()).unwrap();
        assert_eq!(received().check(&consortium, ROUND).unwrap(), signed);
        let refused = |received: Received<MaskResult>, consortium: &Ratified, round| {
            let error = received.check(consortium, round).unwrap_err();
            assert!(matches!(error, StatementError::Signature { .. }), "{error}");
        };
        refused(received(), &consortium, RoundId(Digest([4; 32])));
        refused(received(), &others, ROUND);
        let mut moved = received();
        moved.0.height = Height(3);
        refused(moved, &consortium, ROUND);
        let mut stolen = received();
        stolen.0.member = MemberIndex(0);
        refused(stolen, &consortium, ROUND);
        let mut changed = received();
        changed.0.content.mask_root = Digest::of(b"other");
        refused(changed, &consortium, ROUND);
        let mut nobody = received();
        nobody.0.member = MemberIndex(4);
        let error = nobody.check(&consortium, ROUND).unwrap_err();
        assert!(matches!(error, StatementError::NoSuchMember { members: 4, .. }), "{error}");
    }

    #[test]
    fn strangers_cannot_sign() {
        let said = MaskResult { mask_root: Digest::of(b"root") };
        let error = SignatureChecked::sign(said, Height(0), &key(9), &consortium_of(4), ROUND).unwrap_err();
        assert_eq!(error, SignError::NotAMember(key(9).verifying_key().to_string()));
    }

    #[test]
    fn a_message_of_one_kind_is_not_read_as_another() {
        let said = MaskResult { mask_root: Digest::of(b"root") };
        let signed = SignatureChecked::sign(said, Height(0), &key(0), &consortium_of(4), ROUND).unwrap();
        let error = Received::<BallotHeader>::decode(&signed.encode()).unwrap_err().to_string();
        assert_eq!(error, "it is a result, and the header of a ballot is wanted here");
        assert!(Received::<Holdings>::decode(&signed.encode()).is_err());
    }

    #[test]
    fn oversized_statements_are_refused_unread() {
        let mut bytes = wire::encode(Content::Holdings, &vec![0u8; STATEMENT_LIMIT]);
        let error = Received::<Holdings>::decode(&bytes).unwrap_err();
        assert!(
            matches!(
                error,
                WireError::Value {
                    source: fedprune_mask::codec::CodecError::TooLarge { limit: STATEMENT_LIMIT, .. },
                    ..
                }
            ),
            "{error:?}"
        );
        // a claim of 2^60 entries in a short message
        bytes.truncate(wire::PREFIX_BYTES + 6);
        bytes.extend((1u64 << 60).to_le_bytes());
        bytes.extend([0; 64]);
        assert!(Received::<Holdings>::decode(&bytes).is_err());
    }

    proptest! {
        /// Whatever one bit is flipped or however short it is cut, a message no longer counts.
        #[test]
        fn damage_is_noticed(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
            let consortium = consortium_of(4);
            let holdings = Holdings::from_digests(vec![Some(Digest::of(b"a")), None, None, Some(Digest::of(b"d"))]);
            let bytes = SignatureChecked::sign(holdings, Height(1), &key(2), &consortium, ROUND).unwrap().encode();
            let mut flipped = bytes.clone();
            flipped[at % bytes.len()] ^= 1 << bit;
            let read = Received::<Holdings>::decode(&flipped);
            prop_assert!(read.is_err() || read.unwrap().check(&consortium, ROUND).is_err());
            prop_assert!(Received::<Holdings>::decode(&bytes[..cut % bytes.len()]).is_err());
        }

        #[test]
        fn noise_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let framed = [&wire::encode(Content::BallotHeader, &())[..], &bytes].concat();
            let read = Received::<BallotHeader>::decode(&framed);
            prop_assert!(read.is_err() || read.unwrap().check(&consortium_of(4), ROUND).is_err());
            prop_assert!(Received::<BallotHeader>::decode(&bytes).is_err());
        }
    }
}
