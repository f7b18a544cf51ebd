//! How a consortium changes without being founded again.
//!
//! A member renews its key, one leaves, another takes its place: the members write down the consortium as it shall
//! be, a **successor**, which names the id of its predecessor and counts the changes since the founding:
//!
//! ```toml
//! name = "Four hospitals"
//! protocol = 1
//! predecessor = "1df6552372d3b26bfb9589b0b661e76a069ebb9af48b4e7ffdb914c4595f84de"
//! change = 1
//!
//! [[member]]
//! …
//! ```
//!
//! A consortium without predecessor is founded by the signatures of all its members, as ever. A successor counts when
//!
//! * **q of the predecessor's members** have signed that it takes the predecessor's place (kind 8, *succession*), and
//! * **every member that is new, or whose entry differs** in anything from the predecessor's, has signed that it is a
//!   member of the successor (kind 1, *membership*, with the key of the successor).
//!
//! **Why q, ⌊2n/3⌋ + 1 of the n old members**: what decides about ballots decides about members, for the same two
//! reasons. Any two sets of q share more than f members, so an honest one, which agrees to one successor of a
//! predecessor and not to two: while no more than f lie, a consortium has one successor. And n − f ≥ q: the f whose
//! keys are lost, stolen or held by somebody who does not want to go cannot keep the others from replacing them. Two and
//! three members tolerate no fault, and so cannot do without anybody's signature here either: where one of them
//! has lost its key, a new consortium is founded.
//!
//! **Why those that stay as they are need not sign**: their agreement would give everyone a veto, the compromised
//! included. Nothing happens to them without it all the same: nothing leaves a site before its operator approved a round,
//! and a round names its consortium. A changed entry, however, is signed by the key in it, since nobody but its owner can
//! say that it has that key, and since a mistyped one would make a seat that nobody sits in.
//!
//! **Order.** The members that enter sign first. The signature of an old member is the one that cannot be taken back: if it
//! came first, a mistyped key would leave a change that cannot be completed, and whoever signed it bound to it.
//!
//! **What is not replayed.** Succession is signed as a statement *in the predecessor*: its id, the number of the change and the
//! signer's place there are under the signature, in a domain of its own. Everything else that is signed names the
//! id of the consortium it is made in. So what somebody signed who then left, or what an old key signs later, counts in
//! the consortium in which it was a member and in no later one. A key that left does not return ([`RetiredKey`]): a
//! stolen one stays worthless when its thief applies for a seat, and the member that comes back makes another.
//!
//! **Forks.** Two complete successors of one predecessor exist only if more than f of its members signed both. Neither
//! is preferred; [`fork`] names those members, and programs that come to see both refuse. What cannot be seen is a fork that
//! one is not shown. Who knows the newest id needs no chain at all; who knows the founding id trusts that in
//! no consortium since more than f members lied *or lost their old keys to somebody*: a key that was renewed is
//! to be destroyed when its last round is over.
//!
//! **Length.** At most [`MAX_CHANGES`] changes and [`SIGNATURES_LIMIT`] bytes, then a consortium is founded anew: whoever
//! joins or audits reads all of it.
//!
//! [`SIGNATURES_LIMIT`]: super::SIGNATURES_LIMIT
//! [`RetiredKey`]: SuccessionError::RetiredKey
//!
//! The signatures of a successor carry its chain, so that two files, document and signatures, are all that anybody needs.
//! On the wire after the prefix (content 28): list of predecessors, the founding one first, each with its document
//! (bytes of content 16 or 27), its membership signatures and its succession signatures; id of the consortium (32); its
//! membership signatures; its succession signatures. Signatures are lists of member (2) and signature (64), ascending;
//! of membership by the place in that consortium, of succession by the place in the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fedprune_mask::codec::bincode::{Decode, Encode};

use super::ratify::{Draft, NotRatified, RatificationError, Ratified, SIGNATURES_LIMIT};
use super::{Consortium, ConsortiumError, Member};
use crate::ids::{ConsortiumId, Height, MemberIndex, Quorum, RoundId};
use crate::signing::{Place, Signature, VerifyingKey};
use crate::wire::{self, Content};

/// Most changes since the founding.
pub const MAX_CHANGES: u32 = 64;

/// Which consortium another takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The one before.
    pub predecessor: ConsortiumId,
    /// How many changes there were since the founding, this one included: from 1.
    pub change: u32,
}

/// Why a consortium is not the successor of another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// It names no predecessor.
    #[error("the consortium is of no predecessor, and signatures of a change are given; give those of its founding")]
    NotASuccessor,
    /// It names another one.
    #[error(
        "the consortium is a change of {expected}, and the one before it here is {found}; give the chain that the change was made from",
        expected = expected.0.short(), found = found.0.short()
    )]
    OtherPredecessor {
        /// The one that it names.
        expected: ConsortiumId,
        /// The one given.
        found: ConsortiumId,
    },
    /// It counts otherwise.
    #[error(
        "the consortium says that it is change {found} since the founding, and it is change {expected}; correct `change`"
    )]
    Change {
        /// One more than the predecessor.
        expected: u32,
        /// What it says.
        found: u32,
    },
    /// A key that was there once.
    #[error(
        "`{member}` has a key that left the consortium at an earlier change, of `{owner}` then; make a new key: such keys do not return"
    )]
    RetiredKey {
        /// Who would have it.
        member: String,
        /// Whose it was.
        owner: String,
    },
    /// A link does not count.
    #[error("change {change} of the chain does not count: {why}")]
    Link {
        /// Which, the founding being 0.
        change: u32,
        /// Why not.
        why: String,
    },
}

/// A member that is in both consortiums with another entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// As it was.
    pub before: Member,
    /// As it shall be.
    pub after: Member,
}

/// What differs between a consortium and its successor. Members are told by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The name, before and after, if it differs.
    pub name: Option<(String, String)>,
    /// Who leaves, by name.
    pub leaving: Vec<Member>,
    /// Who joins, by name.
    pub joining: Vec<Member>,
    /// Who stays with other keys or addresses, by name.
    pub changed: Vec<Changed>,
    /// Members, faults and quorum before and after.
    pub quorum: (Quorum, Quorum),
}

/// Two complete successors of one consortium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The one that they both take the place of.
    pub predecessor: ConsortiumId,
    /// The two.
    pub successors: [ConsortiumId; 2],
    /// Which change each of them is.
    pub change: u32,
    /// The names of those who signed both, in the predecessor: more than f.
    pub signed_both: Vec<String>,
}

impl std::fmt::Display for Fork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.signed_both.iter().map(|name| format!("`{name}`")).collect();
        let [one, other] = self.successors;
        write!(
            f,
            "consortium {} has two successors, {} and {}, each signed by a quorum: {} signed both, which no honest member does; \
             neither counts until the members have settled which",
            self.predecessor.0.short(),
            one.0.short(),
            other.0.short(),
            names.join(", ")
        )
    }
}

/// Signatures of members, ascending.
pub(super) type Signatures = Vec<(MemberIndex, Signature)>;

#[derive(Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct Link {
    document: Vec<u8>,
    memberships: Signatures,
    successions: Signatures,
}

/// What the signatures of a successor are on the wire.
#[derive(Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub(super) struct Chain {
    predecessors: Vec<Link>,
    pub(super) consortium: ConsortiumId,
    pub(super) memberships: Signatures,
    pub(super) successions: Signatures,
}

/// Where a member of `predecessor` says what takes its place.
pub(super) fn succession(predecessor: ConsortiumId, change: u32, member: MemberIndex) -> Place {
    Place { consortium: predecessor, round: RoundId::NONE, height: Height(change), member }
}

/// What differs from `before` to `after`.
pub fn difference(before: &Consortium, after: &Consortium) -> Difference {
    let of = |consortium: &Consortium, name: &str| {
        consortium.index_by_name(name).and_then(|index| consortium.member(index)).cloned()
    };
    let without = |these: &Consortium, those: &Consortium| {
        these.members().iter().filter(|member| of(those, &member.name).is_none()).cloned().collect()
    };
    let changed = after.members().iter().filter_map(|member| {
        let before = of(before, &member.name)?;
        (before != *member).then(|| Changed { before, after: member.clone() })
    });
    Difference {
        name: (before.name() != after.name()).then(|| (before.name().to_owned(), after.name().to_owned())),
        leaving: without(before, after),
        joining: without(after, before),
        changed: changed.collect(),
        quorum: (before.quorum(), after.quorum()),
    }
}

impl Difference {
    /// Whether the two are the same but for their place in the chain.
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.leaving.is_empty() && self.joining.is_empty() && self.changed.is_empty()
    }

    /// In words, a clause each: who leaves, who joins, what changes.
    pub fn in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some((before, after)) = &self.name {
            words.push(format!("the consortium `{before}` is called `{after}`"));
        }
        words.extend(self.leaving.iter().map(|member| format!("`{}` leaves", member.name)));
        words.extend(self.joining.iter().map(|member| format!("`{}` joins", member.name)));
        words.extend(self.changed.iter().map(Changed::in_words));
        words
    }
}

impl Changed {
    /// In words: `west` renews its key and changes its addresses.
    pub fn in_words(&self) -> String {
        let (before, after) = (&self.before, &self.after);
        let mut what = Vec::new();
        if before.signing_key != after.signing_key {
            what.push("renews its key");
        }
        // a node is known by the member's key where it has none of its own, which then is no change of its own
        let together = before.peer_key == before.signing_key && after.peer_key == after.signing_key;
        if before.peer_key != after.peer_key && !together {
            what.push("renews the key of its node");
        }
        if before.addresses != after.addresses {
            what.push("changes its addresses");
        }
        if before.attestation_key != after.attestation_key {
            what.push("changes its attestation key");
        }
        format!("`{}` {}", after.name, what.join(" and "))
    }
}

/// Whether two chains part, and who signed both ways.
pub fn fork(one: &Ratified, other: &Ratified) -> Option<Fork> {
    let of = |chain: &Ratified, change: u32| chain.lineage().find(|link| link.consortium().change() == change).cloned();
    let (one_last, other_last) = (one.consortium().change(), other.consortium().change());
    for change in 1..=one_last.min(other_last) {
        let (Some(one), Some(other)) = (of(one, change), of(other, change)) else { continue };
        let (Some(before), Some(also)) = (one.predecessor(), other.predecessor()) else { continue };
        if before.id() != also.id() || one.id() == other.id() {
            continue;
        }
        let both = one.agreed().filter(|member| other.agreed().any(|also| also == *member));
        let names = both.filter_map(|member| before.member(member)).map(|member| member.name.clone());
        return Some(Fork {
            predecessor: before.id(),
            successors: [one.id(), other.id()],
            change,
            signed_both: names.collect(),
        });
    }
    None
}

/// That `consortium` can take the place of `predecessor`, whoever has signed it.
pub(super) fn check(consortium: &Consortium, predecessor: &Ratified) -> Result<(), SuccessionError> {
    let origin = consortium.origin().ok_or(SuccessionError::NotASuccessor)?;
    if origin.predecessor != predecessor.id() {
        return Err(SuccessionError::OtherPredecessor { expected: origin.predecessor, found: predecessor.id() });
    }
    let expected = predecessor.consortium().change().saturating_add(1);
    if origin.change != expected {
        return Err(SuccessionError::Change { expected, found: origin.change });
    }
    let keys = |member: &Member| [member.signing_key, member.peer_key];
    let current: BTreeSet<VerifyingKey> = predecessor.members().iter().flat_map(keys).collect();
    let mut retired: BTreeMap<VerifyingKey, &str> = BTreeMap::new();
    for member in predecessor.lineage().skip(1).flat_map(Ratified::members) {
        for key in keys(member).into_iter().filter(|key| !current.contains(key)) {
            retired.entry(key).or_insert(&member.name);
        }
    }
    for member in consortium.members() {
        if let Some(owner) = keys(member).iter().find_map(|key| retired.get(key)) {
            return Err(SuccessionError::RetiredKey { member: member.name.clone(), owner: (*owner).to_owned() });
        }
        // nor does a key that its member gives up in this very change go to another
        let given_up = predecessor.members().iter().find(|owner| {
            owner.name != member.name
                && keys(owner).iter().any(|key| keys(member).contains(key))
                && consortium.index_by_name(&owner.name).is_some()
        });
        if let Some(owner) = given_up {
            return Err(SuccessionError::RetiredKey { member: member.name.clone(), owner: owner.name.clone() });
        }
    }
    Ok(())
}

impl Chain {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RatificationError> {
        Ok(wire::decode::<_, SIGNATURES_LIMIT>(Content::Succession, bytes)?)
    }

    /// Of a draft whose predecessors are known.
    pub(super) fn of(draft: &Draft, predecessor: &Ratified) -> Self {
        let mut predecessors: Vec<Link> = predecessor.lineage().map(|link| Link::of(link.draft())).collect();
        predecessors.reverse();
        let Link { memberships, successions, .. } = Link::of(draft);
        Self { predecessors, consortium: draft.consortium().id(), memberships, successions }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        wire::encode(Content::Succession, self)
    }

    /// The one before, with everything before it, all of it checked.
    pub(super) fn predecessor(&self) -> Result<Ratified, RatificationError> {
        let mut last: Option<Ratified> = None;
        for (change, link) in (0u32..).zip(&self.predecessors) {
            let failed = |why: String| RatificationError::from(SuccessionError::Link { change, why });
            let consortium = Consortium::decode(&link.document).map_err(|error| failed(told(&error)))?;
            let mut draft = match last.take() {
                None => Draft::new(consortium),
                Some(before) => Draft::succeeding(consortium, before).map_err(|error| failed(error.to_string()))?,
            };
            draft.add_lists(&link.memberships, &link.successions).map_err(|error| failed(error.to_string()))?;
            last = Some(draft.ratify().map_err(|error: NotRatified| failed(error.to_string()))?);
        }
        last.ok_or_else(|| SuccessionError::Link { change: 0, why: "there is none".to_owned() }.into())
    }
}

impl Link {
    fn of(draft: &Draft) -> Self {
        let list = |signatures: &BTreeMap<MemberIndex, Signature>| {
            signatures.iter().map(|(member, signature)| (*member, *signature)).collect()
        };
        Self {
            document: draft.consortium().encode(),
            memberships: list(&draft.signatures),
            successions: list(&draft.successions),
        }
    }
}

/// An error with its cause.
fn told(error: &ConsortiumError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

impl Ratified {
    /// The one that it took the place of; none for a founding consortium.
    pub fn predecessor(&self) -> Option<&Ratified> {
        self.draft().predecessor().map(Arc::as_ref)
    }

    /// Itself, the one before it, and so on to the founding one.
    pub fn lineage(&self) -> impl Iterator<Item = &Ratified> {
        std::iter::successors(Some(self), |link| link.predecessor())
    }

    /// Itself or the one before it that has this id.
    pub fn in_lineage(&self, id: ConsortiumId) -> Option<&Ratified> {
        self.lineage().find(|link| link.id() == id)
    }

    /// Which members of the predecessor signed that this takes its place, by their place there.
    pub fn agreed(&self) -> impl Iterator<Item = MemberIndex> {
        self.draft().successions.keys().copied()
    }

    /// The member that had this key, for signing or of its node, in an earlier consortium and has not now, with the change
    /// at which the key left.
    pub fn retired(&self, key: &VerifyingKey) -> Option<FormerMember<'_>> {
        let has = |member: &&Member| member.signing_key == *key || member.peer_key == *key;
        if self.members().iter().any(|member| has(&member)) {
            return None;
        }
        self.lineage().find_map(|left| {
            let member = left.predecessor()?.members().iter().find(has)?;
            Some(FormerMember { member, left, replaced: self.consortium().index_by_name(&member.name).is_some() })
        })
    }

    /// Whose a signing key is, or was: the one place that decides it.
    pub fn whose(&self, signing_key: &VerifyingKey) -> Whose<'_> {
        match (self.index_of(signing_key), self.retired(signing_key)) {
            (Some(member), _) => Whose::Member(member),
            (None, Some(former)) => Whose::Former(former),
            (None, None) => Whose::Nobody,
        }
    }
}

/// Whose a signing key is.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// A member's.
    Member(MemberIndex),
    /// Of nobody any more.
    Former(FormerMember<'a>),
    /// It never was anybody's.
    Nobody,
}

/// A member that had a key which nobody has any more.
#[derive(Debug, Clone, Copy)]
pub struct FormerMember<'a> {
    /// The member, as it was then.
    pub member: &'a Member,
    /// What came of the change at which the key left.
    pub left: &'a Ratified,
    /// Whether a member of that name is there now, with another key.
    pub replaced: bool,
}

impl FormerMember<'_> {
    /// The number of the change at which the key left.
    pub fn change(&self) -> u32 {
        self.left.consortium().change()
    }
}

#[cfg(test)]
mod tests;
