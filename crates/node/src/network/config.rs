//! What a node's network is told when it starts, and why it may refuse.

use std::io;

use fedprune_federation::{MemberIndex, VerifyingKey};
use libp2p::{Multiaddr, noise};

use super::greeting::{Greeting, ProgramName};
use super::limits::ADDRESSES_PER_MEMBER;

/// A member as the network needs it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its position in the consortium.
    pub member: MemberIndex,
    /// Its name, for messages.
    pub name: String,
    /// Its `peer_key`: the key of its libp2p identity.
    pub key: VerifyingKey,
    /// Where to dial it: multiaddresses, with or without `/p2p/…` at the end.
    pub addresses: Vec<String>,
}

/// Ways to be found and reached beyond written-down addresses; all are off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Find members in the local network.
    pub mdns: bool,
    /// Relay other members' connections, and be reachable through relaying members (`/p2p-circuit` addresses).
    pub relay: bool,
    /// Turn relayed connections into direct ones.
    pub dcutr: bool,
    /// Let members dial back to learn which addresses are reachable.
    pub autonat: bool,
}

/// Everything that the network is told.
#[derive(Clone)]
pub struct NetworkConfig {
    /// Ed25519 seed of the `peer_key`.
    pub peer_key_seed: [u8; 32],
    /// Which member this node is.
    pub member: MemberIndex,
    /// All members, this one included.
    pub peers: Vec<Peer>,
    /// Where to listen; port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// What this node tells its peers first, and compares with what they tell.
    pub greeting: Greeting,
    /// What this node's program calls itself; told to peers, and compared with nothing.
    pub program: ProgramName,
    /// Ways to be found and reached.
    pub options: Options,
}

/// The network could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The seed is no key.
    #[error("the seed of the peer key is no Ed25519 key: {0}; make a new one with `fedprune key new`")]
    Seed(#[from] libp2p::identity::DecodingError),
    /// The key is not the member's.
    #[error(
        "this node's peer id is `{ours}`, the consortium has `{expected}` for this member: use the key that the consortium names"
    )]
    WrongKey {
        /// Of the member.
        expected: String,
        /// Of the seed.
        ours: String,
    },
    /// The member is not in the list.
    #[error("member {0} is not in the list of members")]
    NoMember(MemberIndex),
    /// A member's key is unusable.
    #[error("the peer key of `{name}` is no Ed25519 key")]
    Key {
        /// The member's name.
        name: String,
    },
    /// A member or its key is listed twice.
    #[error("member `{name}` or its peer key is listed twice: every member needs a key of its own")]
    Twice {
        /// The member's name.
        name: String,
    },
    /// A member has too many addresses.
    #[error("member `{name}` has {count} addresses, at most {ADDRESSES_PER_MEMBER} are dialled: remove some")]
    TooManyAddresses {
        /// The member's name.
        name: String,
        /// How many it has.
        count: usize,
    },
    /// An address cannot be dialled.
    #[error("address `{address}` of `{name}` cannot be dialled: {why}; write it like `/dns4/silo.example/tcp/4100`")]
    Address {
        /// The member's name.
        name: String,
        /// What is written.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The node cannot listen there.
    #[error(
        "cannot listen on `{address}`: {why}; give an address of this machine with a free port (--listen \
         /ip4/0.0.0.0/tcp/4100), or port 0 for any"
    )]
    Listen {
        /// Where.
        address: Multiaddr,
        /// What the system or libp2p says.
        why: String,
    },
    /// The keys of encrypted connections could not be made.
    #[error("the keys for encrypted connections could not be made")]
    Noise(#[source] Box<noise::Error>),
    /// Discovery in the local network does not work here.
    #[error("discovery in the local network (mdns) cannot start; leave it off")]
    Mdns(#[source] io::Error),
    /// Gossip is misconfigured: a mistake in this program.
    #[error("gossip cannot be set up: {why}")]
    Gossip {
        /// What gossipsub says.
        why: String,
    },
}
