//! When to dial whom: a schedule without a clock or randomness.
//!
//! Every member dials every other one until they are connected, since either may be unreachable for the other.
//! The later of the two by index waits a little longer, so that they seldom dial each other at once. A failed
//! dial, or a connection that ended before its greetings matched, doubles the pause.
//!
//! Addresses of QUIC are tried when those without have failed a few times, and then in every other attempt: to try
//! both at once is to pay for two handshakes, of which one is thrown away, and TCP is faster here and takes fewer
//! bytes. A few times, since members that are just starting refuse, too.

use std::collections::BTreeMap;
use std::time::Duration;

use fedprune_federation::MemberIndex;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::time::Instant;

use super::limits::{ADDRESSES_PER_MEMBER, DIAL_YIELD, DIALS_WITHOUT_QUIC, REDIAL_FIRST, REDIAL_LONGEST};

struct Peer {
    addresses: Vec<Multiaddr>,
    failures: u32,
    /// Dials since the last connection.
    attempts: usize,
    yields: Duration,
    /// `None` while a dial or a connection is under way.
    due: Option<Instant>,
}

/// Whom to dial when.
pub(super) struct Schedule {
    peers: BTreeMap<MemberIndex, Peer>,
}

impl Peer {
    /// Where to dial now.
    fn attempt(&self) -> Vec<Multiaddr> {
        let (quic, others): (Vec<_>, Vec<_>) = self.addresses.iter().cloned().partition(is_quic);
        let turn = self.attempts.checked_sub(DIALS_WITHOUT_QUIC).is_some_and(|turn| turn.is_multiple_of(2));
        if others.is_empty() || (turn && !quic.is_empty()) { quic } else { others }
    }
}

/// Whether a member itself is dialled by QUIC there.
fn is_quic(address: &Multiaddr) -> bool {
    let relayed = address.iter().any(|part| matches!(part, Protocol::P2pCircuit));
    !relayed && address.iter().any(|part| matches!(part, Protocol::QuicV1 | Protocol::Quic))
}

/// The pause after this many failures in a row.
fn pause(failures: u32) -> Duration {
    let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    REDIAL_FIRST.saturating_mul(doubled).min(REDIAL_LONGEST)
}

impl Schedule {
    pub(super) fn new(
        own: MemberIndex,
        peers: impl IntoIterator<Item = (MemberIndex, Vec<Multiaddr>)>,
        now: Instant,
    ) -> Self {
        let peers = peers.into_iter().filter(|(member, _)| *member != own).map(|(member, addresses)| {
            let yields = if own > member { DIAL_YIELD } else { Duration::ZERO };
            (member, Peer { addresses, failures: 0, attempts: 0, yields, due: Some(now + yields) })
        });
        Self { peers: peers.collect() }
    }

    /// When [`due`](Self::due) has someone.
    pub(super) fn next(&self) -> Option<Instant> {
        let reachable = self.peers.values().filter(|peer| !peer.addresses.is_empty());
        reachable.filter_map(|peer| peer.due).min()
    }

    /// Takes those whose time has come, with their addresses; each then ends in one of the calls below.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(MemberIndex, Vec<Multiaddr>)> {
        let due = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| !peer.addresses.is_empty() && peer.due.is_some_and(|due| due <= now));
        due.map(|(member, peer)| {
            peer.due = None;
            let attempt = peer.attempt();
            peer.attempts = peer.attempts.wrapping_add(1);
            (*member, attempt)
        })
        .collect()
    }

    /// A connection exists, greeted or not: no dialling until it is lost.
    pub(super) fn connected(&mut self, member: MemberIndex) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.due = None;
            peer.attempts = 0;
        }
    }

    /// Greetings matched: the next pause is short again.
    pub(super) fn matched(&mut self, member: MemberIndex) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.failures = 0;
        }
    }

    /// The dial failed or the last connection closed.
    pub(super) fn lost(&mut self, member: MemberIndex, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.failures = peer.failures.saturating_add(1);
            peer.due = Some(now + pause(peer.failures) + peer.yields);
        }
    }

    /// The member says that it can be reached there; dials soon unless connected.
    pub(super) fn discovered(&mut self, member: MemberIndex, address: Multiaddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(&member) else { return };
        if peer.addresses.contains(&address) || peer.addresses.len() >= ADDRESSES_PER_MEMBER {
            return;
        }
        peer.addresses.push(address);
        if let Some(due) = &mut peer.due {
            *due = (*due).min(now + peer.yields);
        }
    }

    /// The member can no longer be reached at a discovered address.
    pub(super) fn expired(&mut self, member: MemberIndex, address: &Multiaddr, written_down: &[Multiaddr]) {
        if let Some(peer) = self.peers.get_mut(&member)
            && !written_down.contains(address)
        {
            peer.addresses.retain(|known| known != address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: MemberIndex = MemberIndex(2);

    fn address() -> Multiaddr {
        "/ip4/127.0.0.1/tcp/1".parse().expect("an address")
    }

    fn members(due: Vec<(MemberIndex, Vec<Multiaddr>)>) -> Vec<u16> {
        due.into_iter().map(|(member, _)| member.0).collect()
    }

    #[test]
    fn the_later_member_yields() {
        let now = Instant::now();
        let all = (0..4).map(|member| (MemberIndex(member), vec![address()])).collect::<Vec<_>>();
        let mut schedule = Schedule::new(OTHER, all, now);
        assert_eq!(schedule.next(), Some(now));
        assert_eq!(members(schedule.due(now)), [3]);
        assert_eq!(schedule.next(), Some(now + DIAL_YIELD));
        assert_eq!(members(schedule.due(now + DIAL_YIELD)), [0, 1]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_anew_after_a_match() {
        let start = Instant::now();
        let mut schedule = Schedule::new(MemberIndex(0), [(OTHER, vec![address()])], start);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(members(schedule.due(now)), [2]);
            schedule.lost(OTHER, now);
            let next = schedule.next().expect("dials again");
            assert!(schedule.due(next - Duration::from_millis(1)).is_empty());
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        schedule.connected(OTHER);
        assert_eq!(schedule.next(), None);
        schedule.matched(OTHER);
        schedule.lost(OTHER, now);
        assert_eq!(schedule.next(), Some(now + REDIAL_FIRST));
        for _ in 0..100 {
            schedule.lost(OTHER, now);
        }
        assert_eq!(schedule.next(), Some(now + REDIAL_LONGEST));
    }

    #[test]
    fn quic_comes_after_the_rest_has_failed() {
        let now = Instant::now();
        let address = |text: &str| text.parse::<Multiaddr>().expect("an address");
        let quic = address("/ip4/127.0.0.1/udp/1/quic-v1");
        let others = [address("/ip4/127.0.0.1/tcp/1"), address("/ip4/127.0.0.2/udp/1/quic-v1/p2p-circuit")];
        let all = vec![others[0].clone(), quic.clone(), others[1].clone()];
        let only_quic = MemberIndex(1);
        let mut schedule = Schedule::new(MemberIndex(0), [(OTHER, all), (only_quic, vec![quic.clone()])], now);
        let dialled = |schedule: &mut Schedule| {
            let due = schedule.due(now + REDIAL_LONGEST);
            due.iter().for_each(|(member, _)| schedule.lost(*member, now));
            BTreeMap::from_iter(due)
        };
        for by_quic in [false, false, false, true, false, true, false] {
            let due = dialled(&mut schedule);
            assert_eq!(due[&OTHER], if by_quic { vec![quic.clone()] } else { others.to_vec() });
            assert_eq!(due[&only_quic], std::slice::from_ref(&quic));
        }
        schedule.connected(OTHER);
        schedule.lost(OTHER, now);
        assert_eq!(dialled(&mut schedule)[&OTHER], others, "the first after a connection are without again");
    }

    #[test]
    fn discovered_addresses_are_bounded_and_expire_unless_written_down() {
        let now = Instant::now();
        let mut schedule = Schedule::new(MemberIndex(0), [(OTHER, vec![])], now);
        assert_eq!(schedule.next(), None);
        for port in 1..100 {
            let discovered = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("an address");
            schedule.discovered(OTHER, discovered, now);
        }
        let due = schedule.due(now);
        assert_eq!(due[0].1.len(), ADDRESSES_PER_MEMBER);
        schedule.expired(OTHER, &due[0].1[0], &[]);
        schedule.expired(OTHER, &due[0].1[1], &due[0].1[1..2]);
        schedule.lost(OTHER, now);
        let due_again = schedule.due(now + REDIAL_LONGEST);
        assert_eq!(due_again[0].1, due[0].1[1..]);
        schedule.discovered(MemberIndex(9), address(), now);
        assert!(schedule.due(now).is_empty());
    }
}
