//! What the network tells the node, through a queue that never blocks the swarm.
//!
//! Gossip and requests are offered: when the queue is full they are handed back, and ignored or answered busy.
//! What changes the node's picture of its peers (connected, disconnected, …) is never lost: it waits outside the
//! queue, where for each member only what is still true is kept, so that it stays bounded however often
//! connections come and go.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fedprune_federation::MemberIndex;
use fedprune_mask::Digest;
use libp2p::gossipsub::MessageId;
use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::mpsc;

use super::codec::{AskReply, ChunkAnswer};
use super::greeting::{Difference, ProgramName};
use super::limits::{EVENT_QUEUE, EVENT_QUEUE_BYTES, EVENT_QUEUE_RESERVED};
use crate::limits::{EVENT_QUEUE_BYTES_PER_MEMBER, EVENT_QUEUE_PER_MEMBER};

/// Stands for a gossip message until its verdict is reported.
#[derive(Debug)]
pub struct VerdictToken {
    pub(super) id: MessageId,
    pub(super) source: PeerId,
}

/// Stands for a request until it is answered; dropping it refuses the request.
#[derive(Debug)]
pub struct AnswerToken(pub(super) ResponseChannel<AskReply>);

/// Stands for a request for a chunk until it is answered; dropping it refuses the request.
#[derive(Debug)]
pub struct ChunkAnswerToken(pub(super) ResponseChannel<ChunkAnswer>);

/// What happened.
#[derive(Debug)]
pub enum NetworkEvent {
    /// The node listens there.
    Listening {
        /// Ready to be given to others: it ends in `/p2p/` and the node's peer id.
        address: Multiaddr,
    },
    /// The node no longer listens there.
    NotListening {
        /// The address, with peer id.
        address: Multiaddr,
        /// What the system says, if it is an error.
        why: Option<String>,
    },
    /// Another member dialled back and reached the node there (with `autonat`).
    Reachable {
        /// The address, with peer id.
        address: Multiaddr,
    },
    /// A member is connected and its greeting matched.
    Connected {
        /// Which one.
        member: MemberIndex,
        /// What its program calls itself, if it tells.
        program: Option<ProgramName>,
    },
    /// The last connection with a member closed.
    Disconnected {
        /// Which one.
        member: MemberIndex,
    },
    /// A member takes part in something else; reported again only when the differences change or it had matched.
    Mismatch {
        /// Which one.
        member: MemberIndex,
        /// What differs: at least one thing.
        differences: Vec<Difference>,
    },
    /// Greeting refused: another instance is live. A member is connected to another process with this node's key.
    /// Short after a restart this is normal; see [`INSTANCE_PATIENCE`](super::limits::INSTANCE_PATIENCE).
    AnotherInstance {
        /// Who refused.
        seen_by: MemberIndex,
        /// How long that member has been refusing this process.
        refused_for: Duration,
    },
    /// A second process with a member's key was refused while the first is connected.
    SecondInstance {
        /// Whose key.
        member: MemberIndex,
    },
    /// A member connected but exchanged no greeting; it is dialled again.
    GreetingFailed {
        /// Which one.
        member: MemberIndex,
        /// What went wrong.
        why: String,
    },
    /// A member was shut out: it is refused for a while.
    ShutOut {
        /// Which one.
        member: MemberIndex,
        /// What it sent.
        why: String,
        /// For how long.
        lasts: Duration,
    },
    /// An outsider was refused; at most one a second is reported.
    Refused {
        /// Who it says it is.
        peer_id: PeerId,
        /// Why, and how many others were refused unreported.
        why: String,
    },
    /// A gossip message arrived.
    Gossip {
        /// Who passed it on; not who wrote it.
        from: MemberIndex,
        /// The message.
        bytes: Vec<u8>,
        /// For [`report`](super::Network::report).
        verdict: VerdictToken,
    },
    /// A member asks.
    Asked {
        /// Which one.
        from: MemberIndex,
        /// What it asks.
        bytes: Vec<u8>,
        /// For [`answer`](super::Network::answer).
        answer: AnswerToken,
    },
    /// A member asks for a chunk.
    ChunkAsked {
        /// Which member.
        from: MemberIndex,
        /// Of which body.
        body: Digest,
        /// Which chunk, from 0.
        chunk: u32,
        /// For [`answer_chunk`](super::Network::answer_chunk).
        answer: ChunkAnswerToken,
    },
}

/// An event and the bytes it counts for.
struct Queued {
    event: NetworkEvent,
    bytes: usize,
}

/// Places and bytes that events of each member take.
type Shares = Arc<Mutex<HashMap<MemberIndex, (usize, usize)>>>;

impl NetworkEvent {
    /// Who caused an event that may be dropped.
    fn caused_by(&self) -> Option<MemberIndex> {
        match self {
            Self::Gossip { from, .. } | Self::Asked { from, .. } | Self::ChunkAsked { from, .. } => Some(*from),
            _ => None,
        }
    }
}

/// Where the node takes events from.
pub struct Events {
    receiver: mpsc::Receiver<Queued>,
    waiting_bytes: Arc<AtomicUsize>,
    shares: Shares,
}

impl Events {
    /// The next event; `None` when the network has stopped.
    pub async fn recv(&mut self) -> Option<NetworkEvent> {
        let queued = self.receiver.recv().await?;
        self.waiting_bytes.fetch_sub(queued.bytes, Ordering::Relaxed);
        if let Some(member) = queued.event.caused_by() {
            let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((places, bytes)) = shares.get_mut(&member) {
                (*places, *bytes) = (places.saturating_sub(1), bytes.saturating_sub(queued.bytes));
            }
        }
        Some(queued.event)
    }
}

/// Where the swarm puts events.
pub(super) struct Outbox {
    sender: mpsc::Sender<Queued>,
    waiting_bytes: Arc<AtomicUsize>,
    shares: Shares,
    states: VecDeque<NetworkEvent>,
}

/// The queue is full, or the node no longer listens: the event comes back.
pub(super) struct Full(pub(super) Box<NetworkEvent>);

pub(super) fn queue() -> (Outbox, Events) {
    let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let shares = Shares::default();
    let events = Events { receiver, waiting_bytes: Arc::clone(&waiting_bytes), shares: Arc::clone(&shares) };
    (Outbox { sender, waiting_bytes, shares, states: VecDeque::new() }, events)
}

impl Outbox {
    /// Queues gossip or a request if there is room, and if its member has not taken its share.
    pub(super) fn offer(&mut self, event: NetworkEvent, bytes: usize) -> Result<(), Full> {
        self.flush();
        let member = event.caused_by();
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let (places, of_member) = member.and_then(|member| shares.get(&member).copied()).unwrap_or_default();
        let waiting = self.waiting_bytes.load(Ordering::Relaxed);
        if !self.states.is_empty()
            || self.sender.capacity() <= EVENT_QUEUE_RESERVED
            || waiting.saturating_add(bytes) > EVENT_QUEUE_BYTES
            || places >= EVENT_QUEUE_PER_MEMBER
            || of_member.saturating_add(bytes) > EVENT_QUEUE_BYTES_PER_MEMBER
        {
            return Err(Full(Box::new(event)));
        }
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.sender.try_send(Queued { event, bytes }).map_err(|error| {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            Full(Box::new(error.into_inner().event))
        })?;
        if let Some(member) = member {
            // the lock is held: the event is not taken away before it counts
            let share = shares.entry(member).or_default();
            *share = (share.0.saturating_add(1), share.1.saturating_add(bytes));
        }
        Ok(())
    }

    /// Keeps what must not be lost, instead of what it makes untrue.
    pub(super) fn tell(&mut self, event: NetworkEvent) {
        let same = |other: &NetworkEvent| match (&event, other) {
            (NetworkEvent::Disconnected { member: new }, NetworkEvent::Connected { member: old, .. })
            | (NetworkEvent::Mismatch { member: new, .. }, NetworkEvent::Mismatch { member: old, .. })
            | (NetworkEvent::SecondInstance { member: new }, NetworkEvent::SecondInstance { member: old })
            | (NetworkEvent::GreetingFailed { member: new, .. }, NetworkEvent::GreetingFailed { member: old, .. })
            | (
                NetworkEvent::AnotherInstance { seen_by: new, .. },
                NetworkEvent::AnotherInstance { seen_by: old, .. },
            ) => new == old,
            (NetworkEvent::ShutOut { member: new, .. }, NetworkEvent::ShutOut { member: old, .. }) => new == old,
            (NetworkEvent::Refused { .. }, NetworkEvent::Refused { .. }) => true,
            (NetworkEvent::NotListening { address: new, .. }, NetworkEvent::Listening { address: old })
            | (NetworkEvent::Listening { address: new }, NetworkEvent::NotListening { address: old, .. })
            | (NetworkEvent::Reachable { address: new }, NetworkEvent::Reachable { address: old }) => new == old,
            _ => false,
        };
        let before = self.states.len();
        self.states.retain(|other| !same(other));
        // A connection that came and went before the node heard of it needs no mention.
        let unheard = matches!(event, NetworkEvent::Disconnected { .. }) && self.states.len() < before;
        if !unheard {
            self.states.push_back(event);
        }
        self.flush();
    }

    /// Moves what waits into the queue, as far as there is room.
    pub(super) fn flush(&mut self) {
        while !self.states.is_empty() {
            let Ok(place) = self.sender.try_reserve() else { return };
            if let Some(event) = self.states.pop_front() {
                place.send(Queued { event, bytes: 0 });
            }
        }
    }

    /// Whether [`room`](Self::room) is worth waiting for.
    pub(super) fn is_waiting(&self) -> bool {
        !self.states.is_empty()
    }

    /// Returns when the queue has room.
    pub(super) async fn room(&self) {
        // Closed: nobody will ever listen, and the task ends by its commands.
        if self.sender.reserve().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(member: u16) -> NetworkEvent {
        NetworkEvent::Connected { member: MemberIndex(member), program: None }
    }

    fn disconnected(member: u16) -> NetworkEvent {
        NetworkEvent::Disconnected { member: MemberIndex(member) }
    }

    fn gossip_of(member: u16, bytes: usize) -> NetworkEvent {
        let verdict = VerdictToken { id: MessageId::from(b"id".as_slice()), source: PeerId::random() };
        NetworkEvent::Gossip { from: MemberIndex(member), bytes: vec![0; bytes], verdict }
    }

    fn gossip(bytes: usize) -> NetworkEvent {
        gossip_of(0, bytes)
    }

    fn seen(event: &NetworkEvent) -> String {
        match event {
            NetworkEvent::Connected { member, .. } => format!("+{member}"),
            NetworkEvent::Disconnected { member } => format!("-{member}"),
            NetworkEvent::Gossip { .. } => "gossip".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_full_queue_hands_gossip_back_and_keeps_the_last_truth_about_members() {
        let (mut outbox, mut events) = queue();
        outbox.tell(connected(1));
        let mut accepted = 0;
        for member in 0..3 {
            while outbox.offer(gossip_of(member, 0), 0).is_ok() {
                accepted += 1;
            }
        }
        assert_eq!(accepted, EVENT_QUEUE - EVENT_QUEUE_RESERVED - 1);
        for _ in 0..10 * EVENT_QUEUE {
            outbox.tell(disconnected(1));
            outbox.tell(connected(1));
            outbox.tell(connected(2));
            outbox.tell(disconnected(2));
        }
        assert!(outbox.states.len() <= 2, "{:?}", outbox.states);
        let mut last = std::collections::BTreeMap::new();
        let mut gossips = 0;
        while outbox.is_waiting() || !events.receiver.is_empty() {
            let event = events.recv().await.expect("open");
            outbox.flush();
            match &event {
                NetworkEvent::Connected { member, .. } => {
                    assert_ne!(last.insert(*member, true), Some(true), "connected twice");
                }
                NetworkEvent::Disconnected { member } => {
                    assert_eq!(last.insert(*member, false), Some(true), "was not connected");
                }
                _ => gossips += 1,
            }
        }
        assert_eq!(gossips, accepted);
        assert_eq!(last.get(&MemberIndex(1)), Some(&true));
        assert_ne!(last.get(&MemberIndex(2)), Some(&true));
        assert!(outbox.offer(gossip(0), 0).is_ok());
    }

    #[tokio::test]
    async fn bytes_that_wait_are_bounded_and_freed() {
        let (mut outbox, mut events) = queue();
        let share = EVENT_QUEUE_BYTES_PER_MEMBER;
        let members = (EVENT_QUEUE_BYTES / share) as u16;
        for member in 0..members {
            assert!(outbox.offer(gossip_of(member, 1), share).is_ok());
            let Err(Full(back)) = outbox.offer(gossip_of(member, 1), 1) else { panic!("beyond its share") };
            assert_eq!(seen(&back), "gossip");
        }
        assert!(outbox.offer(gossip_of(members, 1), 1).is_err(), "over the limit of all");
        assert_eq!(seen(&events.recv().await.expect("open")), "gossip");
        assert!(outbox.offer(gossip(1), share).is_ok());
        drop(events);
        assert!(outbox.offer(gossip(1), 0).is_err());
    }

    #[tokio::test]
    async fn one_member_does_not_take_all_places() {
        let (mut outbox, mut events) = queue();
        for _ in 0..EVENT_QUEUE_PER_MEMBER {
            assert!(outbox.offer(gossip(0), 0).is_ok());
        }
        assert!(outbox.offer(gossip(0), 0).is_err());
        assert!(outbox.offer(gossip_of(1, 0), 0).is_ok());
        assert_eq!(seen(&events.recv().await.expect("open")), "gossip");
        assert!(outbox.offer(gossip(0), 0).is_ok());
    }
}
