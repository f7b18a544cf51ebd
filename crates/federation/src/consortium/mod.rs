//! Who may take part.
//!
//! `consortium.toml` is written by people:
//!
//! ```toml
//! name = "Four hospitals"
//! protocol = 1
//!
//! [[member]]
//! name = "north"
//! signing_key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
//! peer_key = "…"              # of its libp2p node; the signing key if absent
//! addresses = ["/dns4/north.example/tcp/4001"]
//! attestation_key = """…"""   # P-256 in PEM, signs pruned models; optional, kept as it is
//! ```
//!
//! The order of members in the document means nothing: they are numbered by name. The id is the BLAKE3 of
//! the canonical bytes, so a document with the same content in other words has the same id. Every member
//! signs the id; a [`Draft`] collects signatures, and only a [`Ratified`] consortium, which all its members
//! have signed, verifies statements. How a consortium changes later, signed by the members it had, is in
//! [`succession`].

mod ratify;
pub mod succession;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

pub use ratify::{Draft, NotRatified, RatificationError, Ratified, SIGNATURES_LIMIT};
pub use succession::{FormerMember, MAX_CHANGES, Origin, Whose};

use crate::document::{self, DocumentError};
use crate::ids::{ConsortiumId, MAX_MEMBERS, MemberCountError, MemberIndex, Quorum};
use crate::signing::VerifyingKey;
use crate::wire::{self, Content, VERSION, WireError};

/// Most bytes of a `consortium.toml`.
pub const DOCUMENT_LIMIT: usize = 1 << 20;
/// Most bytes of the canonical form after its prefix.
pub const CANONICAL_LIMIT: usize = 4 << 20;
/// Longest name of a consortium or a member, in bytes.
pub const MAX_NAME_BYTES: usize = fedprune_mask::ballot::MAX_MEMBER_NAME_BYTES;
/// Most dial addresses of one member.
pub const MAX_ADDRESSES: usize = 16;
/// Longest dial address, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 256;
/// Longest attestation key, in bytes.
pub const MAX_ATTESTATION_KEY_BYTES: usize = 1024;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Member {
    /// 1 to [`MAX_NAME_BYTES`] printable ASCII characters, without space at either end.
    pub name: String,
    /// The key under which its statements verify.
    pub signing_key: VerifyingKey,
    /// The key of its libp2p node; may be the signing key.
    pub peer_key: VerifyingKey,
    /// Where it can be dialled, as multiaddresses, which are not interpreted here; may be empty.
    pub addresses: Vec<String>,
    /// The P-256 key by which it signs pruned models, in PEM; kept as it is and not interpreted here.
    pub attestation_key: Option<String>,
}

/// The members of a consortium, checked; not yet that they agreed to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consortium {
    content: Canonical,
    origin: Option<Origin>,
    quorum: Quorum,
    id: ConsortiumId,
}

/// What is hashed of a consortium without predecessor.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct Canonical {
    name: String,
    protocol: u16,
    members: Vec<Member>,
}

/// What is hashed of one that takes another's place: under a content number of its own, so that no bytes are both.
#[derive(Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct Successor {
    predecessor: ConsortiumId,
    change: u32,
    content: Canonical,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    protocol: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    predecessor: Option<ConsortiumId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<u32>,
    member: Vec<MemberDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberDocument {
    name: String,
    signing_key: VerifyingKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_key: Option<VerifyingKey>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation_key: Option<String>,
}

/// Why there is no such consortium.
#[derive(Debug, thiserror::Error)]
pub enum ConsortiumError {
    /// The text is not the document.
    #[error("the consortium document cannot be read")]
    Document(#[from] DocumentError),
    /// The bytes are not the canonical form.
    #[error("the consortium cannot be read")]
    Wire(#[from] WireError),
    /// Another protocol.
    #[error("the consortium speaks protocol {0}, and this program protocol {VERSION}; use a program of that protocol")]
    Protocol(u16),
    /// None, or too many.
    #[error(transparent)]
    Members(#[from] MemberCountError),
    /// A name that cannot be shown, or that looks like another.
    #[error(
        "`{0}` cannot be a name: use 1 to {MAX_NAME_BYTES} printable ASCII characters, without space at either end"
    )]
    Name(String),
    /// Two members of one name, upper and lower case taken as the same.
    #[error("two members are named `{0}` and `{1}`; give one of them another name")]
    SameName(String, String),
    /// Two members with one key.
    #[error("`{0}` and `{1}` share a key; each member needs keys of its own")]
    SameKey(String, String),
    /// Too many addresses, or one that is too long or not printable.
    #[error(
        "the addresses of `{0}` cannot be used: at most {MAX_ADDRESSES}, each of 1 to {MAX_ADDRESS_BYTES} printable ASCII \
         characters without spaces, none twice"
    )]
    Addresses(String),
    /// Too long or not text.
    #[error(
        "the attestation key of `{0}` cannot be used: 1 to {MAX_ATTESTATION_KEY_BYTES} printable ASCII characters and line ends"
    )]
    AttestationKey(String),
    /// One of the two without the other.
    #[error("`predecessor` and `change` belong together: write both, or neither for a consortium that is founded")]
    HalfAnOrigin,
    /// No number of a change.
    #[error(
        "the consortium says that it is change {0} since the founding; changes are counted from 1 to {MAX_CHANGES}, then found a new one"
    )]
    Change(u32),
    /// Canonical bytes with members in another order than by name.
    #[error("its members are not in order at `{0}`; it is damaged")]
    Order(String),
}

impl Consortium {
    /// The consortium of these members, in any order.
    ///
    /// # Errors
    /// [`ConsortiumError`] naming the member that is in the way.
    pub fn new(name: String, members: Vec<Member>) -> Result<Self, ConsortiumError> {
        Self::sorted(name, members, None)
    }

    /// The consortium of these members, in any order, that takes the place of another.
    ///
    /// # Errors
    /// As [`Consortium::new`], and for a number of a change that there is not.
    pub fn successor(name: String, members: Vec<Member>, origin: Origin) -> Result<Self, ConsortiumError> {
        Self::sorted(name, members, Some(origin))
    }

    fn sorted(name: String, members: Vec<Member>, origin: Option<Origin>) -> Result<Self, ConsortiumError> {
        let mut members = members;
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Self::check(Canonical { name, protocol: VERSION, members }, origin)
    }

    /// Reads `consortium.toml`.
    ///
    /// # Errors
    /// [`ConsortiumError`] for unknown keys, and for everything that [`Consortium::new`] refuses.
    pub fn parse(text: &str) -> Result<Self, ConsortiumError> {
        let document: Document = document::read(text, DOCUMENT_LIMIT)?;
        if document.protocol != VERSION {
            return Err(ConsortiumError::Protocol(document.protocol));
        }
        let origin = match (document.predecessor, document.change) {
            (Some(predecessor), Some(change)) => Some(Origin { predecessor, change }),
            (None, None) => None,
            _ => return Err(ConsortiumError::HalfAnOrigin),
        };
        let members = document.member.into_iter().map(|member| Member {
            name: member.name,
            signing_key: member.signing_key,
            peer_key: member.peer_key.unwrap_or(member.signing_key),
            addresses: member.addresses,
            attestation_key: member.attestation_key,
        });
        Self::sorted(document.name, members.collect(), origin)
    }

    /// Reads the canonical bytes.
    ///
    /// # Errors
    /// [`ConsortiumError`] for anything that [`Consortium::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConsortiumError> {
        let (content, origin) = match wire::content_of(bytes)? {
            Some(Content::Successor) => {
                let Successor { predecessor, change, content } =
                    wire::decode::<_, CANONICAL_LIMIT>(Content::Successor, bytes)?;
                (content, Some(Origin { predecessor, change }))
            }
            _ => (wire::decode::<Canonical, CANONICAL_LIMIT>(Content::Consortium, bytes)?, None),
        };
        if let Some([_, member]) = content.members.array_windows().find(|[a, b]| a.name > b.name) {
            return Err(ConsortiumError::Order(document::harmless(&member.name)));
        }
        Self::check(content, origin)
    }

    fn check(content: Canonical, origin: Option<Origin>) -> Result<Self, ConsortiumError> {
        if content.protocol != VERSION {
            return Err(ConsortiumError::Protocol(content.protocol));
        }
        if let Some(Origin { change, .. }) = origin
            && !(1..=MAX_CHANGES).contains(&change)
        {
            return Err(ConsortiumError::Change(change));
        }
        let quorum = Quorum::of(content.members.len())?;
        for name in std::iter::once(&content.name).chain(content.members.iter().map(|member| &member.name)) {
            check_name(name)?;
        }
        let mut names = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for (index, member) in content.members.iter().enumerate() {
            if let Some(other) = names.insert(member.name.to_ascii_lowercase(), &member.name) {
                return Err(ConsortiumError::SameName(other.clone(), member.name.clone()));
            }
            for key in [member.signing_key, member.peer_key] {
                let (owner, name) = *keys.entry(key).or_insert((index, &member.name));
                if owner != index {
                    return Err(ConsortiumError::SameKey(name.clone(), member.name.clone()));
                }
            }
            check_addresses(member)?;
            let printable = |byte: u8| byte == b'\n' || (b' '..=b'~').contains(&byte);
            let fits =
                |key: &String| (1..=MAX_ATTESTATION_KEY_BYTES).contains(&key.len()) && key.bytes().all(printable);
            if !member.attestation_key.as_ref().is_none_or(fits) {
                return Err(ConsortiumError::AttestationKey(member.name.clone()));
            }
        }
        let id = ConsortiumId(Digest::of(&canonical(&content, origin)));
        Ok(Self { content, origin, quorum, id })
    }

    /// The canonical bytes, whose BLAKE3 is the id.
    pub fn encode(&self) -> Vec<u8> {
        canonical(&self.content, self.origin)
    }

    /// A `consortium.toml` of the same id.
    ///
    /// # Errors
    /// [`DocumentError::Unwritable`] never in practice: names, keys and addresses are plain text.
    pub fn to_toml(&self) -> Result<String, DocumentError> {
        let member = |member: &Member| MemberDocument {
            name: member.name.clone(),
            signing_key: member.signing_key,
            peer_key: (member.peer_key != member.signing_key).then_some(member.peer_key),
            addresses: member.addresses.clone(),
            attestation_key: member.attestation_key.clone(),
        };
        document::write(&Document {
            name: self.content.name.clone(),
            protocol: self.content.protocol,
            predecessor: self.origin.map(|origin| origin.predecessor),
            change: self.origin.map(|origin| origin.change),
            member: self.content.members.iter().map(member).collect(),
        })
    }

    /// Identifies it.
    pub fn id(&self) -> ConsortiumId {
        self.id
    }

    /// Which consortium it takes the place of; none if it is founded.
    pub fn origin(&self) -> Option<Origin> {
        self.origin
    }

    /// How many changes there were since the founding.
    pub fn change(&self) -> u32 {
        self.origin.map_or(0, |origin| origin.change)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.content.name
    }

    /// Its members, by name; a [`MemberIndex`] is a position here.
    pub fn members(&self) -> &[Member] {
        &self.content.members
    }

    /// One member.
    pub fn member(&self, index: MemberIndex) -> Option<&Member> {
        self.content.members.get(index.as_usize())
    }

    /// Who signs with this key.
    pub fn index_of(&self, signing_key: &VerifyingKey) -> Option<MemberIndex> {
        let position = self.content.members.iter().position(|member| member.signing_key == *signing_key)?;
        u16::try_from(position).ok().map(MemberIndex)
    }

    /// Who bears this name.
    pub fn index_by_name(&self, name: &str) -> Option<MemberIndex> {
        let position = self.content.members.binary_search_by(|member| member.name.as_str().cmp(name)).ok()?;
        u16::try_from(position).ok().map(MemberIndex)
    }

    /// All indices, ascending.
    pub fn indices(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        (0..u16::try_from(self.content.members.len()).unwrap_or(u16::MAX)).map(MemberIndex)
    }

    /// How many must agree, and may fail.
    pub fn quorum(&self) -> Quorum {
        self.quorum
    }
}

/// The bytes whose BLAKE3 is the id.
fn canonical(content: &Canonical, origin: Option<Origin>) -> Vec<u8> {
    match origin {
        None => wire::encode(Content::Consortium, content),
        Some(Origin { predecessor, change }) => {
            wire::encode(Content::Successor, &Successor { predecessor, change, content: content.clone() })
        }
    }
}

/// ASCII only: names of other scripts that look alike would pass for each other in a terminal.
fn check_name(name: &str) -> Result<(), ConsortiumError> {
    let printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let ends = name.starts_with(' ') || name.ends_with(' ');
    if printable && !ends && (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(ConsortiumError::Name(document::harmless(name)))
}

fn check_addresses(member: &Member) -> Result<(), ConsortiumError> {
    let fits = |address: &String| {
        (1..=MAX_ADDRESS_BYTES).contains(&address.len()) && address.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let distinct: std::collections::BTreeSet<&String> = member.addresses.iter().collect();
    if member.addresses.len() <= MAX_ADDRESSES
        && distinct.len() == member.addresses.len()
        && member.addresses.iter().all(fits)
    {
        return Ok(());
    }
    Err(ConsortiumError::Addresses(member.name.clone()))
}

const _: () = assert!(MAX_MEMBERS <= u16::MAX as usize, "member indices are 16 bits");
