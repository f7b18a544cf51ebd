//! Who is who: members by index and by peer id.

use std::collections::{BTreeMap, HashMap};

use fedprune_federation::{MemberIndex, VerifyingKey};
use libp2p::identity::{PublicKey, ed25519};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::config::{NetworkConfig, StartError};
use super::limits::ADDRESSES_PER_MEMBER;

/// The members as libp2p knows them.
pub(super) struct Members {
    own: MemberIndex,
    peers: BTreeMap<MemberIndex, (PeerId, Vec<Multiaddr>)>,
    indices: HashMap<PeerId, MemberIndex>,
}

/// The id under which libp2p knows the holder of a key.
///
/// `None`: the key is no point of the curve; a [`VerifyingKey`] always is.
pub fn peer_id(key: &VerifyingKey) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(key.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

impl Members {
    pub(super) fn new(config: &NetworkConfig, own_peer: PeerId) -> Result<Self, StartError> {
        let mut members = Self { own: config.member, peers: BTreeMap::new(), indices: HashMap::new() };
        for peer in &config.peers {
            let name = || peer.name.clone();
            let id = peer_id(&peer.key).ok_or_else(|| StartError::Key { name: name() })?;
            if peer.addresses.len() > ADDRESSES_PER_MEMBER {
                return Err(StartError::TooManyAddresses { name: name(), count: peer.addresses.len() });
            }
            let addresses = peer.addresses.iter().map(|text| {
                address(text, id).map_err(|why| StartError::Address { name: name(), address: text.clone(), why })
            });
            let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
            if members.indices.insert(id, peer.member).is_some()
                || members.peers.insert(peer.member, (id, addresses)).is_some()
            {
                return Err(StartError::Twice { name: name() });
            }
        }
        match members.peers.get(&config.member) {
            Some((id, _)) if *id == own_peer => Ok(members),
            Some((id, _)) => Err(StartError::WrongKey { expected: id.to_string(), ours: own_peer.to_string() }),
            None => Err(StartError::NoMember(config.member)),
        }
    }

    /// Members other than this one.
    pub(super) fn others(&self) -> impl Iterator<Item = PeerId> {
        self.peers.iter().filter(|(member, _)| **member != self.own).map(|(_, (peer, _))| *peer)
    }

    pub(super) fn dialled(&self) -> impl Iterator<Item = (MemberIndex, Vec<Multiaddr>)> {
        self.peers.iter().map(|(member, (_, addresses))| (*member, addresses.clone()))
    }

    pub(super) fn addresses(&self, member: MemberIndex) -> &[Multiaddr] {
        self.peers.get(&member).map_or(&[], |(_, addresses)| addresses)
    }

    pub(super) fn peer(&self, member: MemberIndex) -> Option<PeerId> {
        self.peers.get(&member).map(|(peer, _)| *peer)
    }

    pub(super) fn member(&self, peer: &PeerId) -> Option<MemberIndex> {
        self.indices.get(peer).copied()
    }
}

/// Reads an address of `peer`; a peer id at its end must be the member's.
fn address(text: &str, peer: PeerId) -> Result<Multiaddr, String> {
    let address = text.parse::<Multiaddr>().map_err(|error| error.to_string())?;
    match address.iter().last() {
        Some(Protocol::P2p(named)) if named != peer => {
            Err(format!("it ends in the peer id `{named}`, the member's is `{peer}`"))
        }
        Some(_) => Ok(address),
        None => Err("it is empty".to_owned()),
    }
}
