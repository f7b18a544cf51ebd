//! What greetings mean: who may talk, and which instance holds a member's place.

use std::collections::{HashMap, HashSet, VecDeque};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use super::handler::{Command, Failure, Handler, Happened};
use super::{Difference, Greeting, Verdict, unreadable};
use crate::network::limits::REFUSAL_GRACE;

/// What a node learns from greetings.
#[derive(Debug)]
pub(crate) enum Event {
    /// Both sides accepted each other on this connection.
    Matched { peer: PeerId, connection: ConnectionId },
    /// The two cannot work together; the connection is being closed.
    Differs { peer: PeerId, connection: ConnectionId, differences: Vec<Difference> },
    /// The peer is connected to another process with this node's key; the connection is being closed.
    AnotherInstance { peer: PeerId, connection: ConnectionId },
    /// A second process with the peer's key was refused; the connection is being closed.
    SecondInstance { peer: PeerId, connection: ConnectionId },
    /// No greetings could be exchanged; the connection is being closed.
    Failed { peer: PeerId, connection: ConnectionId, why: String },
}

#[derive(Default)]
struct Connection {
    judged: Option<(Greeting, Verdict)>,
    finished: bool,
}

struct Lease {
    instance: [u8; 16],
    connections: HashSet<ConnectionId>,
}

/// Greets every peer, and closes connections with those it cannot work with.
pub(crate) struct Behaviour {
    ours: Greeting,
    connections: HashMap<ConnectionId, Connection>,
    leases: HashMap<PeerId, Lease>,
    queue: VecDeque<ToSwarm<Event, Command>>,
    closing: FuturesUnordered<BoxFuture<'static, (PeerId, ConnectionId)>>,
}

impl Behaviour {
    pub(crate) fn new(ours: Greeting) -> Self {
        Self {
            ours,
            connections: HashMap::new(),
            leases: HashMap::new(),
            queue: VecDeque::new(),
            closing: FuturesUnordered::new(),
        }
    }

    fn emit(&mut self, event: Event) {
        self.queue.push_back(ToSwarm::GenerateEvent(event));
    }

    fn close(&mut self, peer: PeerId, connection: ConnectionId) {
        let connection = CloseConnection::One(connection);
        self.queue.push_back(ToSwarm::CloseConnection { peer_id: peer, connection });
    }

    fn close_after_grace(&mut self, peer: PeerId, connection: ConnectionId) {
        self.closing.push(tokio::time::sleep(REFUSAL_GRACE).map(move |()| (peer, connection)).boxed());
    }

    /// Decides once for each connection, whichever stream brought the greeting first.
    fn judge(&mut self, peer: PeerId, id: ConnectionId, theirs: Greeting) -> Verdict {
        let Some(connection) = self.connections.get_mut(&id) else { return Verdict::Differs };
        if let Some((seen, verdict)) = connection.judged {
            if seen == theirs {
                return verdict;
            }
            self.fail(peer, id, "it greeted twice, differently".to_owned());
            return Verdict::Differs;
        }
        let differences = self.ours.differences(&theirs);
        let verdict = if !differences.is_empty() {
            Verdict::Differs
        } else {
            let lease = self
                .leases
                .entry(peer)
                .or_insert_with(|| Lease { instance: theirs.instance, connections: HashSet::new() });
            if lease.instance == theirs.instance {
                lease.connections.insert(id);
                Verdict::Accepted
            } else {
                // The holder may be dead without its connections having been closed.
                for holder in &lease.connections {
                    let handler = NotifyHandler::One(*holder);
                    self.queue.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: Command::Probe });
                }
                Verdict::AnotherInstance
            }
        };
        connection.judged = Some((theirs, verdict));
        match verdict {
            Verdict::Accepted => {}
            Verdict::Differs => {
                connection.finished = true;
                self.emit(Event::Differs { peer, connection: id, differences });
                self.close_after_grace(peer, id);
            }
            Verdict::AnotherInstance => {
                self.emit(Event::SecondInstance { peer, connection: id });
                self.close_after_grace(peer, id);
            }
        }
        verdict
    }

    fn answered(&mut self, peer: PeerId, id: ConnectionId, their_verdict: Verdict, theirs: Greeting) {
        let our_verdict = self.judge(peer, id, theirs);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match (our_verdict, their_verdict) {
            (Verdict::Accepted, Verdict::Accepted) => {
                if !std::mem::replace(&mut connection.finished, true) {
                    self.emit(Event::Matched { peer, connection: id });
                }
            }
            (_, Verdict::AnotherInstance) => {
                if !std::mem::replace(&mut connection.finished, true) {
                    self.emit(Event::AnotherInstance { peer, connection: id });
                }
                self.close(peer, id);
            }
            (Verdict::Accepted, Verdict::Differs) => {
                self.fail(peer, id, "it finds our greeting different, we find them equal".to_owned());
            }
            // The refusal of the one that refuses is on its way; the other has it.
            (Verdict::Differs | Verdict::AnotherInstance, _) => {}
        }
    }

    fn fail(&mut self, peer: PeerId, id: ConnectionId, why: String) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut connection.finished, true)
        {
            self.emit(Event::Failed { peer, connection: id, why });
        }
        self.close(peer, id);
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.ours))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.ours))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.connections.insert(established.connection_id, Connection::default());
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.connections.remove(&connection_id);
                if let Some(lease) = self.leases.get_mut(&peer_id) {
                    lease.connections.remove(&connection_id);
                    if lease.connections.is_empty() {
                        self.leases.remove(&peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, happened: THandlerOutEvent<Self>) {
        match happened {
            Happened::Greeted(greeting_id, theirs) => {
                let verdict = self.judge(peer, id, theirs);
                let event = Command::Answer(greeting_id, verdict);
                self.queue.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler: NotifyHandler::One(id), event });
            }
            Happened::Answered(verdict, theirs) => self.answered(peer, id, verdict, theirs),
            Happened::Failed(failure @ (Failure::Unsupported | Failure::Unreadable(_))) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                if !std::mem::replace(&mut connection.finished, true) {
                    let differences = vec![unreadable(failure.to_string())];
                    self.emit(Event::Differs { peer, connection: id, differences });
                }
                // The peer may still be reading ours.
                self.close_after_grace(peer, id);
            }
            Happened::Failed(failure) => self.fail(peer, id, failure.to_string()),
            Happened::Dead => self.close(peer, id),
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some((peer, connection))) = self.closing.poll_next_unpin(context) {
            if self.connections.contains_key(&connection) {
                self.close(peer, connection);
            }
        }
        self.queue.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
