//! Who may knock: connections that are not authenticated yet, counted by the address that they come from, so that one
//! outsider does not take all places of those who wait.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::{ConnectionEstablished, ListenFailure};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::limits::PENDING_PER_ADDRESS;

/// Too many connections from one address are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{PENDING_PER_ADDRESS} connections from {0} are not authenticated yet")]
pub(super) struct Crowded(IpAddr);

/// Counts connections that are not authenticated yet.
#[derive(Default)]
pub(super) struct Door {
    waiting: HashMap<ConnectionId, IpAddr>,
}

fn address_of(remote: &Multiaddr) -> Option<IpAddr> {
    remote.iter().find_map(|part| match part {
        Protocol::Ip4(address) => Some(IpAddr::V4(address)),
        Protocol::Ip6(address) => Some(IpAddr::V6(address)),
        _ => None,
    })
}

impl NetworkBehaviour for Door {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        // a relayed one comes through a member
        let Some(address) = address_of(remote) else { return Ok(()) };
        if self.waiting.values().filter(|other| **other == address).count() >= PENDING_PER_ADDRESS {
            return Err(ConnectionDenied::new(Crowded(address)));
        }
        self.waiting.insert(id, address);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.waiting.remove(&connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places() {
        let local: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
        let one: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().expect("an address");
        let other: Multiaddr = "/ip6/2001:db8::1/udp/1/quic-v1".parse().expect("an address");
        let mut door = Door::default();
        let ids: Vec<ConnectionId> = (0..PENDING_PER_ADDRESS).map(ConnectionId::new_unchecked).collect();
        for id in &ids {
            door.handle_pending_inbound_connection(*id, &local, &one).expect("there is room");
        }
        let next = ConnectionId::new_unchecked(1 << 20);
        door.handle_pending_inbound_connection(next, &local, &one).expect_err("no room");
        door.handle_pending_inbound_connection(next, &local, &other).expect("another address");
        door.waiting.remove(&ids[0]);
        door.handle_pending_inbound_connection(ConnectionId::new_unchecked(1 << 21), &local, &one)
            .expect("one has gone");
    }
}
