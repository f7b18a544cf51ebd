//! That all members agreed to the consortium.
//!
//! Each member signs the consortium id; signatures travel in lists that anybody may merge. On the wire
//! after the prefix: consortium id (32), number (8), then for each, ascending: member (2), signature (64).

use std::collections::BTreeMap;

use fedprune_mask::codec::bincode::{Decode, Encode};

use super::{Consortium, Member};
use crate::ids::{ConsortiumId, Height, MemberIndex, Quorum, RoundId};
use crate::signing::{Kind, Place, Signature, SigningKey, VerifyingKey};
use crate::statement::SignError;
use crate::wire::{self, Content, WireError};

/// Most bytes of a list of signatures after its prefix: fits 1000 members.
pub const SIGNATURES_LIMIT: usize = 128 << 10;

/// A consortium with the signatures that it has so far, all checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    consortium: Consortium,
    pub(super) signatures: BTreeMap<MemberIndex, Signature>,
}

/// A consortium that every member signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ratified(Draft);

/// Why signatures cannot be added to a draft.
#[derive(Debug, thiserror::Error)]
pub enum RatificationError {
    /// The bytes are no list of signatures.
    #[error("the signatures of the consortium cannot be read")]
    Wire(#[from] WireError),
    /// Of another consortium, or of an older version of this one.
    #[error(
        "the signatures are of consortium {found}, and this one is {expected}; every member must sign the same document",
        found = found.0.short(), expected = expected.0.short()
    )]
    OtherConsortium {
        /// This consortium.
        expected: ConsortiumId,
        /// The one signed.
        found: ConsortiumId,
    },
    /// Of nobody.
    #[error("a signature is of member {0}, and there is no such member")]
    NoSuchMember(MemberIndex),
    /// Listed twice or out of order.
    #[error("the signatures are not in order at member {0}; the list is damaged")]
    Order(MemberIndex),
    /// Not made by the member's key for this consortium.
    #[error("the signature of `{0}` does not verify; have it sign again")]
    Signature(String),
}

/// Some members have not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of {members} members have not signed the consortium: {}", missing.len(), shown(missing))]
pub struct NotRatified {
    /// Their names.
    pub missing: Vec<String>,
    /// How many members there are.
    pub members: usize,
}

fn shown(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().take(10).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > quoted.len() { ", …" } else { "" };
    quoted.join(", ") + more
}

#[derive(Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct List {
    consortium: ConsortiumId,
    signatures: Vec<(MemberIndex, Signature)>,
}

/// Where a member's signature of a consortium counts.
fn membership(consortium: ConsortiumId, member: MemberIndex) -> Place {
    Place { consortium, round: RoundId::NONE, height: Height(0), member }
}

impl Draft {
    /// Signed by nobody yet.
    pub fn new(consortium: Consortium) -> Self {
        Self { consortium, signatures: BTreeMap::new() }
    }

    /// Signs it with the key of a member, whose index is returned.
    ///
    /// # Errors
    /// [`SignError::NotAMember`] when the key is of nobody in it.
    pub fn sign(&mut self, key: &SigningKey) -> Result<MemberIndex, SignError> {
        let verifying_key = key.verifying_key();
        let stranger = || SignError::NotAMember(verifying_key.to_string());
        let member = self.consortium.index_of(&verifying_key).ok_or_else(stranger)?;
        self.signatures.insert(member, key.sign(Kind::Membership, membership(self.consortium.id(), member), &[]));
        Ok(member)
    }

    /// Adds the signature of a member. Returns whether it had none yet; a first one stays.
    ///
    /// # Errors
    /// [`RatificationError`] when it does not verify.
    pub fn add(&mut self, member: MemberIndex, signature: Signature) -> Result<bool, RatificationError> {
        let known = self.consortium.member(member).ok_or(RatificationError::NoSuchMember(member))?;
        let place = membership(self.consortium.id(), member);
        let verified = known.signing_key.verify(Kind::Membership, place, &[], &signature);
        verified.map_err(|_| RatificationError::Signature(known.name.clone()))?;
        let first = !self.signatures.contains_key(&member);
        self.signatures.entry(member).or_insert(signature);
        Ok(first)
    }

    /// Adds an encoded list of signatures; all of it or, on an error, nothing. Returns how many were new.
    ///
    /// # Errors
    /// [`RatificationError`] naming the signature that does not verify.
    pub fn add_encoded(&mut self, bytes: &[u8]) -> Result<usize, RatificationError> {
        let list: List = wire::decode::<_, SIGNATURES_LIMIT>(Content::ConsortiumSignatures, bytes)?;
        let expected = self.consortium.id();
        if list.consortium != expected {
            return Err(RatificationError::OtherConsortium { expected, found: list.consortium });
        }
        // order first: a list then has no more signatures to check than there are members
        if let Some([_, (member, _)]) = list.signatures.array_windows().find(|[a, b]| a.0 >= b.0) {
            return Err(RatificationError::Order(*member));
        }
        let mut merged = self.clone();
        let mut added = 0usize;
        for (member, signature) in list.signatures {
            added = added.saturating_add(usize::from(merged.add(member, signature)?));
        }
        *self = merged;
        Ok(added)
    }

    /// The signatures so far, to be passed on.
    pub fn encode_signatures(&self) -> Vec<u8> {
        let signatures = self.signatures.iter().map(|(member, signature)| (*member, *signature)).collect();
        wire::encode(Content::ConsortiumSignatures, &List { consortium: self.consortium.id(), signatures })
    }

    /// The consortium.
    pub fn consortium(&self) -> &Consortium {
        &self.consortium
    }

    /// Who has signed, by name.
    pub fn signed_by(&self) -> impl Iterator<Item = &Member> {
        self.signatures.keys().filter_map(|member| self.consortium.member(*member))
    }

    /// Who has not, by name.
    pub fn missing(&self) -> impl Iterator<Item = &Member> {
        let unsigned = self.consortium.indices().filter(|member| !self.signatures.contains_key(member));
        unsigned.filter_map(|member| self.consortium.member(member))
    }

    /// The consortium as agreed to by all.
    ///
    /// # Errors
    /// [`NotRatified`] with the names of those who have not signed.
    pub fn ratify(self) -> Result<Ratified, NotRatified> {
        let missing: Vec<String> = self.missing().map(|member| member.name.clone()).collect();
        if missing.is_empty() {
            return Ok(Ratified(self));
        }
        Err(NotRatified { missing, members: self.consortium.members().len() })
    }
}

impl Ratified {
    /// The consortium.
    pub fn consortium(&self) -> &Consortium {
        &self.0.consortium
    }

    /// Identifies it.
    pub fn id(&self) -> ConsortiumId {
        self.0.consortium.id()
    }

    /// Its members, by name.
    pub fn members(&self) -> &[Member] {
        self.0.consortium.members()
    }

    /// One member.
    pub fn member(&self, index: MemberIndex) -> Option<&Member> {
        self.0.consortium.member(index)
    }

    /// Who signs with this key.
    pub fn index_of(&self, signing_key: &VerifyingKey) -> Option<MemberIndex> {
        self.0.consortium.index_of(signing_key)
    }

    /// How many must agree, and may fail.
    pub fn quorum(&self) -> Quorum {
        self.0.consortium.quorum()
    }

    /// Everybody's signatures, for a transcript.
    pub fn encode_signatures(&self) -> Vec<u8> {
        self.0.encode_signatures()
    }
}
