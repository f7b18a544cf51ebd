//! Every limit of the network, in one place.

use std::time::Duration;

/// Commands of the node that wait for the swarm's task.
pub const COMMAND_QUEUE: usize = 256;
/// Events that wait for the node.
pub const EVENT_QUEUE: usize = 1024;
/// Places of [`EVENT_QUEUE`] that gossip and requests leave to connections coming and going.
pub const EVENT_QUEUE_RESERVED: usize = 64;
/// Bytes of gossip and requests that wait for the node; beyond it gossip is ignored and requests are answered busy.
pub const EVENT_QUEUE_BYTES: usize = 64 << 20;

/// Most addresses of a member, written down or discovered.
pub const ADDRESSES_PER_MEMBER: usize = 16;
/// Most connections with a member: both may dial at once, and a second instance is told why it is refused.
pub const CONNECTIONS_PER_MEMBER: u32 = 4;
/// Incoming connections that are not yet authenticated.
pub const PENDING_INCOMING_CONNECTIONS: u32 = 64;
/// Streams of a TCP connection.
pub const STREAMS_PER_CONNECTION: usize = 256;
/// Time for a connection to be dialled, encrypted and authenticated.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection without streams stays open: a node keeps all of them.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Pause after the first failed dial; it doubles with each further one.
pub const REDIAL_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between two dials.
pub const REDIAL_LONGEST: Duration = Duration::from_secs(15);
/// Dials that do without QUIC before it is tried too.
pub const DIALS_WITHOUT_QUIC: usize = 3;
/// How much longer the later of two members waits before it dials the other: they seldom dial each other at once.
pub const DIAL_YIELD: Duration = Duration::from_millis(300);
/// Pause before listening again where a listener ended: its relay may have restarted.
pub const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// Pause between two pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A connection whose ping is unanswered this long is closed; bulk transfers over slow lines delay pings.
pub const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// Outsiders named to the node; further ones within this time are counted only.
pub const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// Time to answer a greeting.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// So long a live instance has to answer when another one claims its place. A process that was killed leaves QUIC
/// connections that look alive; whoever starts it again waits this long.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a refused connection stays open, so that the refusal arrives.
pub const REFUSAL_GRACE: Duration = Duration::from_secs(1);
/// Greetings of one connection that are being answered.
pub const GREETINGS_PER_CONNECTION: usize = 4;
/// A process refused this long as another instance should stop; after a restart shorter refusals are normal.
pub const INSTANCE_PATIENCE: Duration = Duration::from_secs(30);
/// Requests of a connection that are kept until its greeting matched.
pub const HELD_REQUESTS_PER_CONNECTION: usize = 16;
/// Gossip messages of a peer that are kept until its greeting matched.
pub const HELD_GOSSIP_PER_PEER: usize = 64;
/// Bytes of gossip of a peer that are kept until its greeting matched.
pub const HELD_GOSSIP_BYTES_PER_PEER: usize = 4 << 20;

/// Most bytes of a gossip message.
pub const GOSSIP_BYTES: usize = 2 << 20;
/// What gossipsub adds around a message: topic, lengths.
pub const GOSSIP_ENVELOPE_BYTES: usize = 1 << 10;
/// Fewest members to whom a node passes on others' messages; a writer itself sends to all it is connected with.
pub const GOSSIP_MESH_FEWEST: usize = 1;
/// Members to whom a node aims to pass on others' messages.
pub const GOSSIP_MESH_AIM: usize = 2;
/// Most members to whom a node passes on others' messages.
pub const GOSSIP_MESH_MOST: usize = 3;
/// Gossip messages that wait for one peer.
pub const GOSSIP_QUEUE_PER_PEER: usize = 256;
/// Gossip messages in one frame of a peer.
pub const GOSSIP_MESSAGES_PER_FRAME: usize = 256;
/// How long a queued gossip message waits for a slow peer before it is dropped.
pub const GOSSIP_QUEUE_TIME: Duration = Duration::from_secs(5);
/// How long a message is remembered: the same bytes published again within it go nowhere.
pub const GOSSIP_MEMORY: Duration = Duration::from_secs(10);
/// Pause between two rounds of gossipsub's upkeep.
pub const GOSSIP_HEARTBEAT: Duration = Duration::from_secs(1);
/// Pause before the first round of gossipsub's upkeep.
pub const GOSSIP_FIRST_HEARTBEAT: Duration = Duration::from_millis(300);
/// Messages above this many bytes are announced as not wanted twice.
pub const GOSSIP_LARGE_BYTES: usize = 1 << 10;
/// How long a rejected gossip message counts against the peer it came from.
pub const GOSSIP_REJECTED_MEMORY: Duration = Duration::from_secs(60);

/// Most bytes of a request.
pub const ASK_BYTES: usize = 256 << 10;
/// Most bytes of an answer.
pub const ANSWER_BYTES: usize = 8 << 20;
/// Requests to one member that await an answer; further ones wait their turn.
pub const ASKS_PER_MEMBER: usize = 8;
/// Requests of one member that are being answered; further ones are answered busy.
pub const ASKS_SERVED_PER_MEMBER: usize = 8;
/// Requests of all members that are being answered; further ones are answered busy.
pub const ASKS_SERVED: usize = 64;
/// Request streams of one connection, both ways; libp2p drops further ones.
pub const ASK_STREAMS: usize = 32;

/// Most bytes of the answer to a request for a chunk: 1 MiB of body and its proof.
pub const CHUNK_ANSWER_BYTES: usize = (1 << 20) + (64 << 10);
/// Chunks that one member is asked for at once; further ones wait their turn.
pub const CHUNKS_PER_MEMBER: usize = 16;
/// Chunks that one member is being sent; further requests are answered busy.
pub const CHUNKS_SERVED_PER_MEMBER: usize = 16;
/// Chunks that all members are being sent; further requests are answered busy.
pub const CHUNKS_SERVED: usize = 64;
/// Chunk streams of one connection, both ways; libp2p drops further ones.
pub const CHUNK_STREAMS: usize = 64;

/// How long a request waits for the first byte of its answer.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How long a transfer may stand still before it is given up.
pub const PROGRESS_PATIENCE: Duration = Duration::from_secs(30);
/// Longest time of one request with its answer, however steady: at 8 MiB, 9 KiB a second.
pub const TRANSFER_CEILING: Duration = Duration::from_secs(900);
/// First allocation for bytes that a peer announces; it grows only with what arrives.
pub const READ_STEP_BYTES: usize = 64 << 10;

/// Bytes that a member relays for two others over one circuit.
pub const RELAY_CIRCUIT_BYTES: u64 = 64 << 30;
/// How long a relayed circuit lasts.
pub const RELAY_CIRCUIT_TIME: Duration = Duration::from_secs(24 * 3600);

/// How long a stopping node keeps sending what is queued and answering what was asked.
pub const SHUTDOWN_DRAIN: Duration = Duration::from_secs(2);
/// How long a stopping node at least sends what is queued.
pub const SHUTDOWN_FLUSH: Duration = Duration::from_millis(250);
/// How long a stopping node waits for its connections to close.
pub const SHUTDOWN_CLOSE: Duration = Duration::from_secs(2);
