//! That all members agreed to the consortium.
//!
//! Each member signs the consortium id; signatures travel in lists that anybody may merge. On the wire
//! after the prefix: consortium id (32), number (8), then for each, ascending: member (2), signature (64).
//! Who signs a consortium that takes another's place, and what its list looks like, is in [`super::succession`].

use std::collections::BTreeMap;
use std::sync::Arc;

use fedprune_mask::codec::bincode::{Decode, Encode};

use super::succession::{self, Chain, Signatures, SuccessionError};
use super::{Consortium, Member};
use crate::ids::{ConsortiumId, Height, MemberIndex, Quorum, RoundId};
use crate::signing::{Kind, Place, Signature, SigningKey, VerifyingKey};
use crate::statement::SignError;
use crate::wire::{self, Content, WireError};

/// Most bytes of a file of signatures after its prefix: fits a chain of sixty consortiums of 1000 members.
pub const SIGNATURES_LIMIT: usize = 16 << 20;
/// Most bytes of the signatures of a founding: fits 1000 members.
const FOUNDING_LIMIT: usize = 128 << 10;

/// A consortium with the signatures that it has so far, all checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    consortium: Consortium,
    /// Of membership.
    pub(super) signatures: BTreeMap<MemberIndex, Signature>,
    /// The one whose place it takes, once it is known.
    predecessor: Option<Arc<Ratified>>,
    /// By members of the predecessor.
    pub(super) successions: BTreeMap<MemberIndex, Signature>,
}

/// A consortium that every member signed, or whose change the members before it signed.
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
    /// Not the signatures of a change, or of a change to something else.
    #[error(transparent)]
    Succession(#[from] SuccessionError),
    /// A change, and what was changed is not known.
    #[error("the consortium is a change of another, which is not known here; give the signatures that carry its chain")]
    UnknownPredecessor,
}

/// Some members have not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRatified {
    /// Of a consortium that is founded.
    #[error("{} of {members} members have not signed the consortium: {}", missing.len(), shown(missing))]
    Founding {
        /// Their names.
        missing: Vec<String>,
        /// How many members there are.
        members: usize,
    },
    /// A change, and what was changed is not known.
    #[error("the consortium is a change of another, and its signatures, which carry the chain, are not there")]
    UnknownPredecessor,
    /// Of a change.
    #[error("the change is not signed by enough: {}", wanting(entering, *agreed, *quorum, undecided))]
    Change {
        /// Names of new or changed members that have not signed.
        entering: Vec<String>,
        /// How many of the members before have signed.
        agreed: usize,
        /// How many of them must.
        quorum: usize,
        /// Names of those who have not.
        undecided: Vec<String>,
    },
}

/// What a change still needs.
fn wanting(entering: &[String], agreed: usize, quorum: usize, undecided: &[String]) -> String {
    let mut wanting = Vec::new();
    if !entering.is_empty() {
        wanting.push(format!("{} must sign as it shall be", shown(entering)));
    }
    if let Some(more @ 1..) = quorum.checked_sub(agreed) {
        wanting.push(format!("{more} more of the {quorum} needed of the members before, of {}", shown(undecided)));
    }
    wanting.join("; ")
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
        Self { consortium, signatures: BTreeMap::new(), predecessor: None, successions: BTreeMap::new() }
    }

    /// One that takes the place of `predecessor`, signed by nobody yet.
    ///
    /// # Errors
    /// [`SuccessionError`] when it names another, counts otherwise, or brings back a key that left.
    pub fn succeeding(consortium: Consortium, predecessor: Ratified) -> Result<Self, SuccessionError> {
        succession::check(&consortium, &predecessor)?;
        Ok(Self { predecessor: Some(Arc::new(predecessor)), ..Self::new(consortium) })
    }

    /// Signs it with the key of a member, whose index is returned; a change in the name of a member as it shall be.
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

    /// Signs a change with the key of a member of the predecessor, whose index there is returned.
    ///
    /// What is signed cannot be taken back: who agrees to two changes of one consortium is found to have done so.
    ///
    /// # Errors
    /// [`SignError::NotAMember`] when the key is of nobody there, or there is no predecessor.
    pub fn agree(&mut self, key: &SigningKey) -> Result<MemberIndex, SignError> {
        let verifying_key = key.verifying_key();
        let stranger = || SignError::NotAMember(verifying_key.to_string());
        let predecessor = self.predecessor.as_ref().ok_or_else(stranger)?;
        let member = predecessor.index_of(&verifying_key).ok_or_else(stranger)?;
        let place = succession::succession(predecessor.id(), self.consortium.change(), member);
        self.successions.insert(member, key.sign(Kind::Succession, place, &self.consortium.id().0.0));
        Ok(member)
    }

    /// Adds the agreement of a member of the predecessor. Returns whether it had none yet; a first one stays.
    ///
    /// # Errors
    /// [`RatificationError`] when it does not verify.
    pub fn add_agreement(&mut self, member: MemberIndex, signature: Signature) -> Result<bool, RatificationError> {
        let predecessor = self.predecessor.as_ref().ok_or(RatificationError::UnknownPredecessor)?;
        let known = predecessor.member(member).ok_or(RatificationError::NoSuchMember(member))?;
        let place = succession::succession(predecessor.id(), self.consortium.change(), member);
        let verified = known.signing_key.verify(Kind::Succession, place, &self.consortium.id().0.0, &signature);
        verified.map_err(|_| RatificationError::Signature(known.name.clone()))?;
        let first = !self.successions.contains_key(&member);
        self.successions.entry(member).or_insert(signature);
        Ok(first)
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

    /// Adds encoded signatures; all of them or, on an error, nothing. Returns how many were new. Those of a change bring the
    /// chain along, all of which is checked unless it is known already.
    ///
    /// # Errors
    /// [`RatificationError`] naming the signature that does not verify.
    pub fn add_encoded(&mut self, bytes: &[u8]) -> Result<usize, RatificationError> {
        let expected = self.consortium.id();
        let right = |found: ConsortiumId| match found == expected {
            true => Ok(()),
            false => Err(RatificationError::OtherConsortium { expected, found }),
        };
        let mut merged = self.clone();
        let added = match wire::content_of(bytes)? {
            Some(Content::Succession) => {
                let chain = Chain::decode(bytes)?;
                right(chain.consortium)?;
                if merged.predecessor.is_none() {
                    let Draft { consortium, signatures, .. } = merged;
                    merged = Self { signatures, ..Self::succeeding(consortium, chain.predecessor()?)? };
                }
                merged.add_lists(&chain.memberships, &chain.successions)?
            }
            _ => {
                let list: List = wire::decode::<_, FOUNDING_LIMIT>(Content::ConsortiumSignatures, bytes)?;
                right(list.consortium)?;
                if self.consortium.origin().is_some() {
                    return Err(RatificationError::UnknownPredecessor);
                }
                merged.add_lists(&list.signatures, &Vec::new())?
            }
        };
        *self = merged;
        Ok(added)
    }

    /// Adds lists of membership and succession. Returns how many were new; on an error some may have been added.
    pub(super) fn add_lists(
        &mut self,
        memberships: &Signatures,
        successions: &Signatures,
    ) -> Result<usize, RatificationError> {
        // order first: a list then has no more signatures to check than there are members
        for list in [memberships, successions] {
            if let Some([_, (member, _)]) = list.array_windows().find(|[a, b]| a.0 >= b.0) {
                return Err(RatificationError::Order(*member));
            }
        }
        let mut added = 0usize;
        for (member, signature) in memberships {
            added = added.saturating_add(usize::from(self.add(*member, *signature)?));
        }
        for (member, signature) in successions {
            added = added.saturating_add(usize::from(self.add_agreement(*member, *signature)?));
        }
        Ok(added)
    }

    /// The signatures so far, to be passed on; of a change with its chain.
    pub fn encode_signatures(&self) -> Vec<u8> {
        if let Some(predecessor) = &self.predecessor {
            return Chain::of(self, predecessor).encode();
        }
        let signatures = self.signatures.iter().map(|(member, signature)| (*member, *signature)).collect();
        wire::encode(Content::ConsortiumSignatures, &List { consortium: self.consortium.id(), signatures })
    }

    /// The one whose place it takes, if that is known.
    pub(super) fn predecessor(&self) -> Option<&Arc<Ratified>> {
        self.predecessor.as_ref()
    }

    /// The one whose place it takes; none of a founding, or while the chain is not known.
    pub fn known_predecessor(&self) -> Option<&Ratified> {
        self.predecessor.as_deref()
    }

    /// The consortium.
    pub fn consortium(&self) -> &Consortium {
        &self.consortium
    }

    /// Who has signed to be a member, by name.
    pub fn signed_by(&self) -> impl Iterator<Item = &Member> {
        self.signatures.keys().filter_map(|member| self.consortium.member(*member))
    }

    /// Who must sign to be a member: all of a founding; of a change those that are new or have another entry than before.
    pub fn entering(&self) -> impl Iterator<Item = MemberIndex> {
        self.consortium.indices().filter(|member| {
            let entry = self.consortium.member(*member);
            let stays = |before: &Arc<Ratified>| before.members().iter().any(|known| Some(known) == entry);
            !self.predecessor.as_ref().is_some_and(stays)
        })
    }

    /// Who must sign to be a member and has not, by name.
    pub fn missing(&self) -> impl Iterator<Item = &Member> {
        let unsigned = self.entering().filter(|member| !self.signatures.contains_key(member));
        unsigned.filter_map(|member| self.consortium.member(member))
    }

    /// Members of the predecessor that have agreed to the change, by name.
    pub fn agreed_by(&self) -> impl Iterator<Item = &Member> {
        let predecessor = self.predecessor.as_ref();
        self.successions.keys().filter_map(move |member| predecessor?.member(*member))
    }

    /// Members of the predecessor that have not, by name.
    pub fn undecided(&self) -> impl Iterator<Item = &Member> {
        let members = self.predecessor.iter().flat_map(|before| before.consortium().indices().zip(before.members()));
        members.filter(|(index, _)| !self.successions.contains_key(index)).map(|(_, member)| member)
    }

    /// How many more members of the predecessor must agree; 0 of a founding.
    pub fn agreements_wanting(&self) -> usize {
        let needed = self.predecessor.as_ref().map_or(0, |before| before.quorum().q());
        needed.saturating_sub(self.successions.len())
    }

    /// Whether all have signed that must.
    pub fn is_complete(&self) -> bool {
        self.consortium.origin().is_some() == self.predecessor.is_some()
            && self.agreements_wanting() == 0
            && self.missing().next().is_none()
    }

    /// The consortium as agreed to by all that must.
    ///
    /// # Errors
    /// [`NotRatified`] with the names of those who have not signed.
    pub fn ratify(self) -> Result<Ratified, NotRatified> {
        if self.is_complete() {
            return Ok(Ratified(self));
        }
        let names = |member: &Member| member.name.clone();
        let missing: Vec<String> = self.missing().map(names).collect();
        Err(match (&self.predecessor, self.consortium.origin()) {
            (Some(before), _) => NotRatified::Change {
                entering: missing,
                agreed: self.successions.len(),
                quorum: before.quorum().q(),
                undecided: self.undecided().map(names).collect(),
            },
            (None, Some(_)) => NotRatified::UnknownPredecessor,
            (None, None) => NotRatified::Founding { missing, members: self.consortium.members().len() },
        })
    }
}

impl Ratified {
    /// As it was signed.
    pub(super) fn draft(&self) -> &Draft {
        &self.0
    }

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

    /// Everybody's signatures, with the chain of a change, for a transcript.
    pub fn encode_signatures(&self) -> Vec<u8> {
        self.0.encode_signatures()
    }
}
