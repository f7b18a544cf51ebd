//! The libp2p behaviours of a node, put together.

use std::collections::HashMap;

use fedprune_federation::RoundId;
use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{
    self, IdentTopic, MessageAuthenticity, MessageId, MetricsConfig, PeerScoreParams, PeerScoreThresholds,
    TopicScoreParams, ValidationMode,
};
use libp2p::identity::Keypair;
use libp2p::metrics::Registry;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{autonat, dcutr, identify, mdns, ping, relay};

use super::codec::{ASK, AskCodec, CHUNK, ChunkCodec, Patience};
use super::config::{NetworkConfig, StartError};
use super::door::Door;
use super::greeting;
use super::limits::*;
use super::members::Members;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) allowed: allow_block_list::Behaviour<AllowedPeers>,
    limits: connection_limits::Behaviour,
    door: Door,
    pub(super) greeting: greeting::Behaviour,
    identify: Toggle<identify::Behaviour>,
    ping: ping::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) asks: request_response::Behaviour<AskCodec>,
    pub(super) chunks: request_response::Behaviour<ChunkCodec>,
    mdns: Toggle<mdns::tokio::Behaviour>,
    relay_server: Toggle<relay::Behaviour>,
    relay_client: Toggle<relay::client::Behaviour>,
    dcutr: Toggle<dcutr::Behaviour>,
    autonat_client: Toggle<autonat::v2::client::Behaviour>,
    autonat_server: Toggle<autonat::v2::server::Behaviour>,
}

/// Where the members of a round gossip. Every message names it, and greetings compare the whole round id, so a few
/// of its digits are enough.
pub(super) fn topic(round: RoundId) -> IdentTopic {
    IdentTopic::new(format!("fedprune/1/{}", round.0.short()))
}

/// What identifies a message: nothing but its bytes, so that the same statement from two members is one message.
fn message_id(message: &gossipsub::Message) -> MessageId {
    MessageId::from(blake3::hash(&message.data).as_bytes().as_slice())
}

pub(super) fn build(
    config: &NetworkConfig,
    members: &Members,
    keypair: &Keypair,
    relay_client: Option<relay::client::Behaviour>,
    registry: Option<&mut Registry>,
) -> Result<Behaviour, StartError> {
    let own = keypair.public().to_peer_id();
    let mut allowed = allow_block_list::Behaviour::<AllowedPeers>::default();
    for peer in members.others() {
        allowed.allow_peer(peer);
    }
    let count = u32::try_from(members.others().count()).unwrap_or(u32::MAX);
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_INCOMING_CONNECTIONS))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_MEMBER))
        .with_max_established(Some(count.saturating_mul(CONNECTIONS_PER_MEMBER).saturating_add(1)));
    // greetings say all that members need; what a node sees of another's address is for those behind routers
    let identifies = config.options.relay || config.options.dcutr || config.options.autonat;
    let identify = identify::Config::new("/fedprune/1".to_owned(), keypair.public())
        .with_agent_version(config.program.to_string().replace(' ', "/"));
    let ping = ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT);
    let asks = AskCodec { request_bytes: ASK_BYTES, answer_bytes: ANSWER_BYTES, patience: Patience::default() };
    let chunks = ChunkCodec { answer_bytes: CHUNK_ANSWER_BYTES, patience: Patience::default() };
    let streams = |streams| {
        let config = request_response::Config::default().with_request_timeout(TRANSFER_CEILING);
        config.with_max_concurrent_streams(streams)
    };
    let options = config.options;
    let mdns = if options.mdns {
        let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), own);
        Some(behaviour.map_err(StartError::Mdns)?)
    } else {
        None
    };
    let relay_limits = relay::Config {
        max_circuit_bytes: RELAY_CIRCUIT_BYTES,
        max_circuit_duration: RELAY_CIRCUIT_TIME,
        ..relay::Config::default()
    };
    Ok(Behaviour {
        allowed,
        limits: connection_limits::Behaviour::new(limits),
        door: Door::default(),
        greeting: greeting::Behaviour::new(config.greeting, config.program.clone(), greeting::Timing::default()),
        identify: identifies.then(|| identify::Behaviour::new(identify)).into(),
        ping: ping::Behaviour::new(ping),
        gossip: gossip(config.greeting.round, registry)?,
        asks: request_response::Behaviour::with_codec(asks, [(ASK, ProtocolSupport::Full)], streams(ASK_STREAMS)),
        chunks: request_response::Behaviour::with_codec(
            chunks,
            [(CHUNK, ProtocolSupport::Full)],
            streams(CHUNK_STREAMS),
        ),
        mdns: mdns.into(),
        relay_server: options.relay.then(|| relay::Behaviour::new(own, relay_limits)).into(),
        relay_client: relay_client.into(),
        dcutr: options.dcutr.then(|| dcutr::Behaviour::new(own)).into(),
        autonat_client: options.autonat.then(autonat::v2::client::Behaviour::default).into(),
        autonat_server: options.autonat.then(autonat::v2::server::Behaviour::default).into(),
    })
}

/// Members are not each other's explicit peers in gossipsub's sense: it passes every message on over every such
/// link without asking who has it (each of 8 members then sends 49 copies of 8 messages, here 12), and does not
/// let scores silence them.
fn gossip(round: RoundId, registry: Option<&mut Registry>) -> Result<gossipsub::Behaviour, StartError> {
    let broken = |why: String| StartError::Gossip { why };
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(GOSSIP_BYTES + GOSSIP_ENVELOPE_BYTES)
        .flood_publish(true)
        .duplicate_cache_time(GOSSIP_MEMORY)
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        .heartbeat_initial_delay(GOSSIP_FIRST_HEARTBEAT)
        // nodes ask each other for what they missed, in fewer bytes than lists of what was said
        .gossip_lazy(0)
        .gossip_factor(0.0)
        .mesh_outbound_min(0)
        .mesh_n_low(GOSSIP_MESH_FEWEST)
        .mesh_n(GOSSIP_MESH_AIM)
        .mesh_n_high(GOSSIP_MESH_MOST)
        .idontwant_message_size_threshold(GOSSIP_LARGE_BYTES)
        .idontwant_on_publish(true)
        .connection_handler_queue_len(GOSSIP_QUEUE_PER_PEER)
        .max_publish_messages(GOSSIP_MESSAGES_PER_FRAME)
        .publish_queue_duration(GOSSIP_QUEUE_TIME)
        .forward_queue_duration(GOSSIP_QUEUE_TIME)
        .build()
        .map_err(|error| broken(error.to_string()))?;
    let mut gossip =
        gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, config).map_err(|error| broken(error.to_owned()))?;
    let topic = topic(round);
    gossip.with_peer_score(score(&topic), PeerScoreThresholds::default()).map_err(broken)?;
    gossip.subscribe(&topic).map_err(|error| broken(error.to_string()))?;
    Ok(match registry {
        Some(registry) => {
            let registry = registry.sub_registry_with_prefix("libp2p").sub_registry_with_prefix("gossipsub");
            gossip.with_metrics(registry, MetricsConfig::default())
        }
        None => gossip,
    })
}

/// Only what a member can be blamed for counts: messages that the node rejected, and broken gossipsub promises in
/// number. Ten rejected within a minute silence a member for a while; slow lines, quiet members and several
/// members behind one address are fine.
fn score(topic: &IdentTopic) -> PeerScoreParams {
    let rejected_only = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -1.0,
        invalid_message_deliveries_decay: gossipsub::score_parameter_decay(GOSSIP_REJECTED_MEMORY),
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: HashMap::from([(topic.hash(), rejected_only)]),
        ip_colocation_factor_weight: 0.0,
        behaviour_penalty_weight: -1.0,
        behaviour_penalty_threshold: 6.0,
        slow_peer_weight: 0.0,
        ..PeerScoreParams::default()
    }
}
