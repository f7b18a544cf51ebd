//! When to dial whom: a schedule without a clock or randomness.
//!
//! Every member dials every other one until they are connected, since either may be unreachable for the other.
//! The later of the two by index waits a little longer, so that they seldom dial each other at once. A failed
//! dial, or a connection that ended before its greetings matched, doubles the pause.

use std::collections::BTreeMap;
use std::time::Duration;

use fedprune_federation::MemberIndex;
use libp2p::Multiaddr;
use tokio::time::Instant;

use super::limits::{ADDRESSES_PER_MEMBER, DIAL_YIELD, REDIAL_FIRST, REDIAL_LONGEST};

struct Peer {
    addresses: Vec<Multiaddr>,
    failures: u32,
    yields: Duration,
    /// `None` while a dial or a connection is under way.
    due: Option<Instant>,
}

/// Whom to dial when.
pub(super) struct Schedule {
    peers: BTreeMap<MemberIndex, Peer>,
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
            (member, Peer { addresses, failures: 0, yields, due: Some(now + yields) })
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
            (*member, peer.addresses.clone())
        })
        .collect()
    }

    /// A connection exists, greeted or not: no dialling until it is lost.
    pub(super) fn connected(&mut self, member: MemberIndex) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.due = None;
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
