//! What greetings mean: who may talk, and which instance holds a member's place.

use std::collections::{HashMap, HashSet, VecDeque};
use std::task::{Context, Poll};
use std::time::Duration;

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
use super::{Difference, Greeting, ProgramName, Verdict, unreadable};
use crate::network::limits::{GREETING_TIMEOUT, PROBE_TIMEOUT, REFUSAL_GRACE};

/// What a node learns from greetings.
#[derive(Debug)]
pub(crate) enum Event {
    /// Both sides accepted each other on this connection.
    Matched { peer: PeerId, connection: ConnectionId, program: Option<ProgramName> },
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

/// How long things take at most.
#[derive(Clone, Copy)]
pub(crate) struct Timing {
    /// Until a greeting is answered.
    pub(crate) answer: Duration,
    /// Until a probe is answered.
    pub(crate) probe: Duration,
    /// Until a refused connection is closed.
    pub(crate) grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { answer: GREETING_TIMEOUT, probe: PROBE_TIMEOUT, grace: REFUSAL_GRACE }
    }
}

/// Greets every peer, and closes connections with those it cannot work with.
pub(crate) struct Behaviour {
    ours: Greeting,
    program: ProgramName,
    timing: Timing,
    connections: HashMap<ConnectionId, Connection>,
    leases: HashMap<PeerId, Lease>,
    queue: VecDeque<ToSwarm<Event, Command>>,
    closing: FuturesUnordered<BoxFuture<'static, (PeerId, ConnectionId)>>,
}

impl Behaviour {
    pub(crate) fn new(ours: Greeting, program: ProgramName, timing: Timing) -> Self {
        Self {
            ours,
            program,
            timing,
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
        self.closing.push(tokio::time::sleep(self.timing.grace).map(move |()| (peer, connection)).boxed());
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

    fn answered(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        their_verdict: Verdict,
        theirs: Greeting,
        program: Option<ProgramName>,
    ) {
        let our_verdict = self.judge(peer, id, theirs);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match (our_verdict, their_verdict) {
            (Verdict::Accepted, Verdict::Accepted) => {
                if !std::mem::replace(&mut connection.finished, true) {
                    self.emit(Event::Matched { peer, connection: id, program });
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
        Ok(Handler::new(self.ours, self.program.clone(), self.timing))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.ours, self.program.clone(), self.timing))
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
            Happened::Answered(verdict, theirs, program) => self.answered(peer, id, verdict, theirs, program),
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

#[cfg(test)]
mod tests {
    use fedprune_federation::{ConsortiumId, RoundId};
    use fedprune_mask::Digest;
    use libp2p::identity::Keypair;
    use libp2p::swarm::SwarmEvent;
    use libp2p::{Swarm, SwarmBuilder, noise, tcp, yamux};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn swarm(key: u8, instance: u8) -> Swarm<Behaviour> {
        let greeting = Greeting {
            protocol: 1,
            consortium: ConsortiumId(Digest([1; 32])),
            round: RoundId(Digest([2; 32])),
            model: Digest([3; 32]),
            instance: [instance; 16],
        };
        let timing = Timing { answer: LONG, probe: Duration::from_millis(300), grace: Duration::from_millis(50) };
        SwarmBuilder::with_existing_identity(Keypair::ed25519_from_bytes([key; 32]).expect("a good seed"))
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .expect("a transport")
            .with_behaviour(|_| Behaviour::new(greeting, ProgramName::new("a test").expect("a name"), timing))
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(LONG))
            .build()
    }

    async fn event(swarm: &mut Swarm<Behaviour>) -> Event {
        loop {
            let event = timeout(LONG, swarm.select_next_some()).await.expect("an event in time");
            if let SwarmEvent::Behaviour(event) = event {
                return event;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_instance_that_no_longer_answers_loses_its_place() {
        let mut member = swarm(1, 1);
        member.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("listens");
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = member.select_next_some().await {
                break address;
            }
        };
        tokio::spawn(async move {
            loop {
                member.select_next_some().await;
            }
        });
        // Its connection stays open, but nobody is there any more: the swarm is not polled.
        let mut stuck = swarm(2, 2);
        stuck.dial(address.clone()).expect("dials");
        assert!(matches!(event(&mut stuck).await, Event::Matched { .. }));
        let mut successor = swarm(2, 3);
        let mut refusals = 0;
        loop {
            successor.dial(address.clone()).expect("dials");
            match event(&mut successor).await {
                Event::AnotherInstance { .. } => refusals += 1,
                Event::Matched { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(refusals > 0);
        drop(stuck);
    }
}
