//! What libp2p counts by itself: connections, dials, pings, gossip; kept under its own names.

use libp2p::metrics::{Metrics, Recorder};
use libp2p::swarm::SwarmEvent;

use super::super::behaviour::BehaviourEvent;

/// Counts one event.
pub(super) fn record(metrics: &Metrics, event: &SwarmEvent<BehaviourEvent>) {
    metrics.record(event);
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::RelayServer(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Dcutr(event)) => metrics.record(event),
        _ => {}
    }
}
