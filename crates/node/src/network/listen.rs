//! Where the node listens, and listens again: a relay may go away and come back.

use std::collections::HashMap;

use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use tokio::time::Instant;

use super::limits::LISTEN_AGAIN;

/// Listeners that live, and addresses whose listener died.
#[derive(Default)]
pub(super) struct Listeners {
    live: HashMap<ListenerId, Multiaddr>,
    again: Vec<(Instant, Multiaddr)>,
}

impl Listeners {
    pub(super) fn listening(&mut self, id: ListenerId, address: Multiaddr) {
        self.live.insert(id, address);
    }

    /// The listener is gone; its address is due after a pause.
    pub(super) fn closed(&mut self, id: ListenerId, now: Instant) {
        if let Some(address) = self.live.remove(&id) {
            self.again(address, now);
        }
    }

    /// Listening failed at once; the address is due after a pause.
    pub(super) fn again(&mut self, address: Multiaddr, now: Instant) {
        self.again.push((now + LISTEN_AGAIN, address));
    }

    /// When [`due`](Self::due) has something.
    pub(super) fn next(&self) -> Option<Instant> {
        self.again.iter().map(|(due, _)| *due).min()
    }

    /// Takes the addresses whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Multiaddr> {
        self.again.extract_if(.., |(due, _)| *due <= now).map(|(_, address)| address).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_closed_listener_is_due_after_a_pause_once() {
        let now = Instant::now();
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
        let mut listeners = Listeners::default();
        let id = ListenerId::next();
        listeners.listening(id, address.clone());
        listeners.closed(ListenerId::next(), now);
        assert_eq!(listeners.next(), None);
        listeners.closed(id, now);
        listeners.closed(id, now);
        assert_eq!(listeners.next(), Some(now + LISTEN_AGAIN));
        assert!(listeners.due(now + LISTEN_AGAIN - Duration::from_millis(1)).is_empty());
        assert_eq!(listeners.due(now + LISTEN_AGAIN), [address]);
        assert_eq!(listeners.next(), None);
    }
}
