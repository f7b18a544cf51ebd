//! The libp2p network of a member's node: who is connected, what they say, what they ask.
//!
//! One task owns the libp2p swarm. The node holds a [`Network`] to act (a bounded channel of commands) and takes
//! [`NetworkEvent`]s from [`Events`] (a bounded queue). Neither side can block the other for ever: the task never
//! waits for the node, and what the node does not take in time is ignored, or answered busy.
//!
//! | module | what it does |
//! |---|---|
//! | `config` | what the network is told when it starts |
//! | [`limits`] | every limit by name |
//! | `greeting` | protocol, consortium, round and model are compared, a second instance is refused |
//! | `dial`, `listen` | when to dial whom, where to listen again |
//! | `members` | who is who |
//! | `behaviour` | gossip, requests, chunks, allow-list: the libp2p behaviours put together |
//! | `codec`, `requests` | bytes of requests and answers, and who waits for them |
//! | `decoding` | the same and greetings, from memory |
//! | `transport`, `traffic` | TCP and QUIC, counted by what bytes are for |
//! | `events` | the queue to the node |
//! | `door`, `conduct` | who may knock, and what becomes of members that send too much or what they should not |
//! | `task` | the loop that owns the swarm |
//!
//! Only members may connect: the allow-list knows their peer ids, which are their `peer_key`s, and everyone else
//! is denied when the encrypted connection names its key. Until the greetings of a connection matched, nothing
//! that arrives on it reaches the node: gossip and requests are kept, within limits, and dropped if the greetings
//! differ. All that travels is opaque bytes; what they mean, and whether they may be passed on, is for the node.
//!
//! **Gossip.** A message is identified by the BLAKE3 of its bytes. It is passed on only after the node reported
//! [`Acceptance::Accept`]. Report `Ignore` for what is already known, also in an old and slow network, else copies
//! may circle; `Reject` only for what no honest member would have passed on, since it counts against the one who
//! did. The same bytes published again within [`limits::GOSSIP_MEMORY`] go nowhere: to tell a member that has just
//! connected what it missed, [`ask`](Network::ask) it.

mod behaviour;
mod codec;
mod conduct;
mod config;
#[doc(hidden)]
pub mod decoding;
mod dial;
mod door;
mod events;
mod greeting;
pub mod limits;
mod listen;
mod members;
mod requests;
mod task;
#[cfg(test)]
mod tests;
mod traffic;
mod transport;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use fedprune_federation::MemberIndex;
use fedprune_mask::Digest;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p::metrics::Registry;
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use codec::ChunkAnswer;
pub use config::{NetworkConfig, Options, Peer, StartError};
pub use events::{AnswerToken, ChunkAnswerToken, Events, NetworkEvent, VerdictToken};
pub use greeting::{Difference, Greeting, ProgramName, Subject};
pub use libp2p::Multiaddr;
pub use members::peer_id;
pub use traffic::{Split, Traffic};

use codec::{AskReply, ChunkRequest};
use limits::{
    ANSWER_BYTES, ASK_BYTES, ASKS_PER_MEMBER, CHUNK_ANSWER_BYTES, CHUNKS_PER_MEMBER, COMMAND_QUEUE, GOSSIP_BYTES,
};
use members::Members;
use requests::Pending;
use task::{Command, Task};
use traffic::Counters;

/// What a node makes of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// Valid and new: pass it on.
    Accept,
    /// Known already, not for now, or not to be judged: do not pass it on.
    Ignore,
    /// No honest member would have passed it on: hold it against the one who did.
    Reject,
}

/// What a member is blamed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// It asked what is no question.
    Question,
    /// It answered with a message that no honest member passes on.
    Answer,
}

/// A message or answer is too large, or the network has stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too many bytes.
    #[error("{what} has {bytes} bytes, at most {limit} can be sent")]
    TooLarge {
        /// What was to be sent.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
        /// Most bytes of such.
        limit: usize,
    },
    /// The network has stopped.
    #[error("the network has stopped")]
    Stopped,
}

/// A member did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection whose greeting matched.
    #[error("member {0} is not connected: ask again when it is")]
    NotConnected(MemberIndex),
    /// It has no time.
    #[error("member {0} is busy: ask again later")]
    Busy(MemberIndex),
    /// It does not answer this.
    #[error("member {0} refused to answer")]
    Refused(MemberIndex),
    /// The connection closed, or stood still.
    #[error("the connection with member {member} failed before it answered")]
    Io {
        /// Which member.
        member: MemberIndex,
        /// What happened.
        source: io::Error,
    },
    /// It answered more bytes than it may, or something that is no answer.
    #[error("the answer of member {member} is not valid")]
    Invalid {
        /// Which member.
        member: MemberIndex,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The request is too large, or the network has stopped.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// A node's hands on the network; clones act on the same one.
#[derive(Clone)]
pub struct Network {
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
    lanes: Arc<BTreeMap<MemberIndex, Lane>>,
    peer_id: PeerId,
}

/// How many requests to one member may be under way.
struct Lane {
    asks: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
}

impl Network {
    /// Listens, and begins to dial the members. Must be called within a tokio runtime.
    ///
    /// Errors: keys, addresses and members that do not fit together, or an address that cannot be listened on.
    pub fn start(config: NetworkConfig) -> Result<(Network, Events), StartError> {
        Self::start_measured(config, None)
    }

    /// [`start`](Self::start), and libp2p counts what it does in `registry`, under its own names.
    ///
    /// Errors: as [`start`](Self::start).
    pub fn start_measured(
        config: NetworkConfig,
        registry: Option<&mut Registry>,
    ) -> Result<(Network, Events), StartError> {
        let mut seed = config.peer_key_seed;
        let keypair = Keypair::ed25519_from_bytes(&mut seed)?;
        let peer_id = keypair.public().to_peer_id();
        let members = Members::new(&config, peer_id)?;
        let lanes = config.peers.iter().map(|peer| {
            let lane = Lane {
                asks: Arc::new(Semaphore::new(ASKS_PER_MEMBER)),
                chunks: Arc::new(Semaphore::new(CHUNKS_PER_MEMBER)),
            };
            (peer.member, lane)
        });
        let lanes = Arc::new(lanes.collect());
        let counters = Arc::new(Counters::of_peers(members.others()));
        let (outbox, events) = events::queue();
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let task = Task::new(&config, members, &keypair, Arc::clone(&counters), receiver, outbox, registry)?;
        tokio::spawn(task.run());
        Ok((Network { commands, counters, lanes, peer_id }, events))
    }

    /// The id under which libp2p knows this node.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// Sends `bytes` to all members, directly where connected and through others where not. It may be lost:
    /// nobody may be connected, queues may be full, and the same bytes may have been sent a moment ago.
    ///
    /// Errors: more than [`limits::GOSSIP_BYTES`], or stopped.
    pub async fn publish(&self, bytes: Vec<u8>) -> Result<(), SendError> {
        within("a gossip message", bytes.len(), GOSSIP_BYTES)?;
        self.command(Command::Publish(bytes)).await
    }

    /// Says what becomes of a gossip message.
    ///
    /// Errors: stopped.
    pub async fn report(&self, verdict: VerdictToken, acceptance: Acceptance) -> Result<(), SendError> {
        self.command(Command::Report(verdict, acceptance)).await
    }

    /// What a member asked or answered is what no honest member does: hold it against it.
    ///
    /// Errors: stopped.
    pub async fn blame(&self, member: MemberIndex, blame: Blame) -> Result<(), SendError> {
        self.command(Command::Blame(member, blame)).await
    }

    /// Asks `member`, and waits for its answer. At most [`limits::ASKS_PER_MEMBER`] wait at once; others queue.
    ///
    /// Errors: no valid answer came; what to do is in each.
    pub async fn ask(&self, member: MemberIndex, bytes: Vec<u8>) -> Result<Vec<u8>, AskError> {
        within("a request", bytes.len(), ASK_BYTES)?;
        let lane = self.lanes.get(&member).ok_or(AskError::NotConnected(member))?;
        let (reply, answer) = Pending::new(&lane.asks).await?;
        self.command(Command::Ask(member, bytes, reply)).await?;
        match answer.await.map_err(|_| SendError::Stopped)?? {
            AskReply::Answered(bytes) => Ok(bytes),
            AskReply::Refused => Err(AskError::Refused(member)),
            AskReply::Busy => Err(AskError::Busy(member)),
        }
    }

    /// Answers what a member asked. If it no longer waits, nothing happens.
    ///
    /// Errors: more than [`limits::ANSWER_BYTES`] (the member is refused), or stopped.
    pub async fn answer(&self, token: AnswerToken, bytes: Vec<u8>) -> Result<(), SendError> {
        let size = within("an answer", bytes.len(), ANSWER_BYTES);
        let reply = if size.is_ok() { AskReply::Answered(bytes) } else { AskReply::Refused };
        self.command(Command::Answer(token, reply)).await?;
        size
    }

    /// Asks `member` for a chunk of a body. At most [`limits::CHUNKS_PER_MEMBER`] wait at once; others queue.
    /// Nothing about the bytes has been verified.
    ///
    /// Errors: no valid answer came; what to do is in each.
    pub async fn fetch_chunk(&self, member: MemberIndex, body: Digest, chunk: u32) -> Result<ChunkAnswer, AskError> {
        let lane = self.lanes.get(&member).ok_or(AskError::NotConnected(member))?;
        let (reply, answer) = Pending::new(&lane.chunks).await?;
        self.command(Command::FetchChunk(member, ChunkRequest { body, chunk }, reply)).await?;
        answer.await.map_err(|_| SendError::Stopped)?
    }

    /// Answers a request for a chunk. If the member no longer waits, nothing happens.
    ///
    /// Errors: more than [`limits::CHUNK_ANSWER_BYTES`] (the member is told that it is not held), or stopped.
    pub async fn answer_chunk(&self, token: ChunkAnswerToken, answer: ChunkAnswer) -> Result<(), SendError> {
        let bytes = if let ChunkAnswer::Here(bytes) = &answer { bytes.len() } else { 0 };
        let size = within("a chunk with its proof", bytes, CHUNK_ANSWER_BYTES);
        let answer = if size.is_ok() { answer } else { ChunkAnswer::NotHeld };
        self.command(Command::AnswerChunk(token, answer)).await?;
        size
    }

    /// Bytes sent and received since the start.
    pub fn traffic(&self) -> Traffic {
        self.counters.read()
    }

    /// Stops: sends what is queued, lets answers finish, closes connections, and returns when all is closed, at
    /// the latest after [`limits::SHUTDOWN_DRAIN`] and [`limits::SHUTDOWN_CLOSE`]. Dropping every clone does the
    /// same in the background.
    pub async fn shutdown(&self) {
        let (done, stopped) = oneshot::channel();
        if self.command(Command::Shutdown(done)).await.is_ok() {
            // The sender is dropped with the task, which is what this waits for.
            let _ = stopped.await;
        }
    }

    async fn command(&self, command: Command) -> Result<(), SendError> {
        self.commands.send(command).await.map_err(|_| SendError::Stopped)
    }
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), SendError> {
    if bytes > limit { Err(SendError::TooLarge { what, bytes, limit }) } else { Ok(()) }
}
