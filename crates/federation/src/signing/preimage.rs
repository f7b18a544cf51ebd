//! What is hashed and signed, byte by byte.

use std::fmt;

use crate::ids::{ConsortiumId, Height, MemberIndex, RoundId};
use crate::wire::VERSION;

/// Bytes of a domain.
pub const DOMAIN_BYTES: usize = 32;
/// Bytes before the fields.
const HEAD_BYTES: usize = DOMAIN_BYTES + 2 + 32 + 32 + 4 + 1 + 2;

/// What a signature says.
///
/// Those of proposals and votes belong to whatever carries out the agreement, which defines their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A member agrees to the consortium. No fields, no round, height 0.
    Membership = 1,
    /// A member's ballot.
    Ballot = 2,
    /// Which ballots a member holds.
    Holdings = 3,
    /// Which mask a member derived.
    Result = 4,
    /// The aggregator proposes a value.
    Proposal = 5,
    /// A member would accept a value.
    Prevote = 6,
    /// A member commits to a value.
    Precommit = 7,
    /// A member of a consortium agrees that another takes its place. Fields: the other's id. No round; the height is
    /// the number of the change.
    Succession = 8,
}

/// First bytes under every signature of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain([u8; DOMAIN_BYTES]);

impl Domain {
    const fn new(name: &str) -> Self {
        let mut bytes = [0; DOMAIN_BYTES];
        // names below are constants shorter than the array, checked when they are compiled
        if let Some((start, _)) = bytes.split_at_mut_checked(name.len()) {
            start.copy_from_slice(name.as_bytes());
        } else {
            panic!("a domain is at most 32 bytes");
        }
        Self(bytes)
    }

    /// The name, padded with zeros.
    pub fn as_bytes(&self) -> &[u8; DOMAIN_BYTES] {
        &self.0
    }
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] = [
        Kind::Membership,
        Kind::Ballot,
        Kind::Holdings,
        Kind::Result,
        Kind::Proposal,
        Kind::Prevote,
        Kind::Precommit,
        Kind::Succession,
    ];

    /// Its domain.
    pub fn domain(self) -> Domain {
        const MEMBERSHIP: Domain = Domain::new("fedprune-consortium-membership:");
        const BALLOT: Domain = Domain::new("fedprune-ballot-header:");
        const HOLDINGS: Domain = Domain::new("fedprune-holdings:");
        const RESULT: Domain = Domain::new("fedprune-mask-result:");
        const PROPOSAL: Domain = Domain::new("fedprune-agreement-proposal:");
        const PREVOTE: Domain = Domain::new("fedprune-agreement-prevote:");
        const PRECOMMIT: Domain = Domain::new("fedprune-agreement-precommit:");
        const SUCCESSION: Domain = Domain::new("fedprune-consortium-succession:");
        match self {
            Kind::Membership => MEMBERSHIP,
            Kind::Ballot => BALLOT,
            Kind::Holdings => HOLDINGS,
            Kind::Result => RESULT,
            Kind::Proposal => PROPOSAL,
            Kind::Prevote => PREVOTE,
            Kind::Precommit => PRECOMMIT,
            Kind::Succession => SUCCESSION,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Membership => "membership",
            Kind::Ballot => "ballot header",
            Kind::Holdings => "holdings statement",
            Kind::Result => "result",
            Kind::Proposal => "proposal",
            Kind::Prevote => "prevote",
            Kind::Precommit => "precommit",
            Kind::Succession => "agreement to a change",
        })
    }
}

/// Where a statement counts, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// In which consortium.
    pub consortium: ConsortiumId,
    /// In which round; [`RoundId::NONE`] outside rounds.
    pub round: RoundId,
    /// At which height.
    pub height: Height,
    /// Of which member.
    pub member: MemberIndex,
}

/// The bytes under a signature; `fields` has one width per kind.
pub fn preimage(kind: Kind, place: Place, fields: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES.saturating_add(fields.len()));
    bytes.extend_from_slice(kind.domain().as_bytes());
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&place.consortium.0.0);
    bytes.extend_from_slice(&place.round.0.0);
    bytes.extend_from_slice(&place.height.0.to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&place.member.0.to_le_bytes());
    bytes.extend_from_slice(fields);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedprune_mask::Digest;

    fn place() -> Place {
        Place {
            consortium: ConsortiumId(Digest([0xc1; 32])),
            round: RoundId(Digest([0xd2; 32])),
            height: Height(0x0403_0201),
            member: MemberIndex(0x0605),
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let expected = [
            b"fedprune-holdings:".as_slice(),
            &[0; 14],
            &[1, 0],
            &[0xc1; 32],
            &[0xd2; 32],
            &[1, 2, 3, 4],
            &[3],
            &[5, 6],
            b"fields",
        ]
        .concat();
        assert_eq!(preimage(Kind::Holdings, place(), b"fields"), expected);
        assert_eq!(expected.len(), HEAD_BYTES + 6);
        let (last, first) = Kind::ALL.split_last().unwrap();
        let domains: Vec<u8> = first.iter().flat_map(|kind| *kind.domain().as_bytes()).collect();
        assert_eq!(
            Digest::of(&domains).to_string(),
            "aa65e4c5399ebef4001af5a284aa9f285d4286c495698d302b9232934b29ab3c"
        );
        assert_eq!(last.domain().as_bytes(), b"fedprune-consortium-succession:\0");
    }

    /// What libp2p signs with the same key starts otherwise, whatever follows.
    #[test]
    fn no_preimage_is_a_message_of_libp2p() {
        // noise, TLS, gossipsub, and signed envelopes: length of the domain, then the domain
        let foreign: [&[u8]; 5] = [
            b"noise-libp2p-static-key:",
            b"libp2p-tls-handshake:",
            b"libp2p-pubsub:",
            b"\x12libp2p-peer-record",
            b"\x11libp2p-relay-rsvp",
        ];
        for kind in Kind::ALL {
            let message = preimage(kind, place(), &[]);
            for foreign in foreign {
                assert_ne!(message[0], foreign[0], "{kind}");
                assert!(!message.starts_with(foreign) && !foreign.starts_with(&message));
            }
            assert!(message.starts_with(b"fedprune-"));
        }
    }

    #[test]
    fn domains_are_distinct_and_end_in_a_zero() {
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index + 1);
            assert_eq!(kind.domain().as_bytes()[DOMAIN_BYTES - 1], 0);
            for other in &Kind::ALL[..index] {
                assert_ne!(kind.domain(), other.domain());
            }
        }
    }
}
