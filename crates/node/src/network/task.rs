//! The loop that owns the swarm.

mod conducting;
mod measured;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fedprune_federation::MemberIndex;
use futures::StreamExt;
use libp2p::allow_block_list::NotAllowed;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance};
use libp2p::identity::Keypair;
use libp2p::metrics::{Metrics, Registry};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, InboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{self, ConnectionId, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, mdns};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::behaviour::{self, Behaviour, BehaviourEvent};
use super::codec::{AskReply, ChunkAnswer, ChunkRequest};
use super::conduct::{Conduct, Fault};
use super::config::{NetworkConfig, StartError};
use super::dial::Schedule;
use super::events::{AnswerToken, ChunkAnswerToken, Full, NetworkEvent, Outbox, VerdictToken};
use super::greeting::{self, Difference, ProgramName};
use super::limits::*;
use super::listen::Listeners;
use super::members::Members;
use super::requests::{Pending, Requests};
use super::traffic::Counters;
use super::{Acceptance, AskError, Blame, transport};
use crate::limits::{CONDUCT_INTERVAL, NEGOTIATING_STREAMS};

/// What the node wants done.
pub(super) enum Command {
    Publish(Vec<u8>),
    Report(VerdictToken, Acceptance),
    Ask(MemberIndex, Vec<u8>, Pending<AskReply>),
    Answer(AnswerToken, AskReply),
    FetchChunk(MemberIndex, ChunkRequest, Pending<ChunkAnswer>),
    AnswerChunk(ChunkAnswerToken, ChunkAnswer),
    Blame(MemberIndex, Blame),
    Shutdown(oneshot::Sender<()>),
}

/// A request whose connection has not been greeted.
enum Held {
    Ask(InboundRequestId, Vec<u8>, ResponseChannel<AskReply>),
    Chunk(InboundRequestId, ChunkRequest, ResponseChannel<ChunkAnswer>),
}

/// Gossip of a peer whose greeting is not known yet.
#[derive(Default)]
struct HeldGossip {
    messages: Vec<(VerdictToken, Vec<u8>)>,
    bytes: usize,
}

/// The swarm and what the node needs to know about it.
pub(super) struct Task {
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    members: Members,
    schedule: Schedule,
    listeners: Listeners,
    counters: Arc<Counters>,
    commands: mpsc::Receiver<Command>,
    outbox: Outbox,
    /// Connections whose greetings matched.
    matched: BTreeMap<MemberIndex, HashSet<ConnectionId>>,
    /// Connections whose greetings are still awaited.
    ungreeted: HashMap<ConnectionId, Vec<Held>>,
    held_gossip: HashMap<PeerId, HeldGossip>,
    asks: Requests<AskReply>,
    chunks: Requests<ChunkAnswer>,
    /// What was last reported as different about members that have not matched since.
    mismatches: HashMap<MemberIndex, Vec<Difference>>,
    /// Since when members refuse this process for another with its key.
    refused_since: HashMap<MemberIndex, Instant>,
    outsiders_reported: Option<Instant>,
    outsiders_unreported: u64,
    conduct: Conduct,
    /// When bytes of members are looked at.
    look_at: Instant,
    measured: Option<Metrics>,
}

/// What an error of libp2p's transports says; some of them say nothing themselves, and leave it to their causes.
fn why(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !words.is_empty() && said.last() != Some(&words) {
            said.push(words);
        }
        cause = error.source();
    }
    if said.is_empty() { "the system does not say why".to_owned() } else { said.join(": ") }
}

impl Task {
    pub(super) fn new(
        config: &NetworkConfig,
        members: Members,
        keypair: &Keypair,
        counters: Arc<Counters>,
        commands: mpsc::Receiver<Command>,
        outbox: Outbox,
        mut registry: Option<&mut Registry>,
    ) -> Result<Self, StartError> {
        let (transport, relay_client) = transport::build(keypair, &counters, config.options.relay)
            .map_err(|error| StartError::Noise(Box::new(error)))?;
        let behaviour = behaviour::build(config, &members, keypair, relay_client, registry.as_deref_mut())?;
        let measured = registry.map(Metrics::new);
        let swarm_config = swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(IDLE_CONNECTION)
            .with_max_negotiating_inbound_streams(NEGOTIATING_STREAMS);
        let own = keypair.public().to_peer_id();
        let mut swarm = Swarm::new(transport, behaviour, own, swarm_config);
        let mut listeners = Listeners::default();
        for address in &config.listen {
            let id = swarm
                .listen_on(address.clone())
                .map_err(|error| StartError::Listen { address: address.clone(), why: why(&error) })?;
            listeners.listening(id, address.clone());
        }
        // What the consortium has written down is where others reach this node; relaying needs to know.
        for address in members.addresses(config.member) {
            swarm.add_external_address(address.clone());
        }
        let conduct = Conduct::new(members.dialled().map(|(member, _)| member), Instant::now());
        Ok(Self {
            swarm,
            conduct,
            look_at: Instant::now() + CONDUCT_INTERVAL,
            topic: behaviour::topic(config.greeting.round),
            schedule: Schedule::new(config.member, members.dialled(), Instant::now()),
            members,
            listeners,
            counters,
            commands,
            outbox,
            matched: BTreeMap::new(),
            ungreeted: HashMap::new(),
            held_gossip: HashMap::new(),
            asks: Requests::new(ASKS_SERVED_PER_MEMBER, ASKS_SERVED),
            chunks: Requests::new(CHUNKS_SERVED_PER_MEMBER, CHUNKS_SERVED),
            mismatches: HashMap::new(),
            refused_since: HashMap::new(),
            measured,
            outsiders_reported: None,
            outsiders_unreported: 0,
        })
    }

    /// Runs until told to stop, or until nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        let stopped = loop {
            let next = self.schedule.next().into_iter().chain(self.listeners.next()).chain(self.conduct.next());
            let connected = self.swarm.connected_peers().next().is_some();
            let next = next.chain(connected.then_some(self.look_at)).min();
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(stopped)) => break Some(stopped),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.look_at_conduct();
                    self.listen_again();
                    self.dial();
                }
                () = self.outbox.room(), if self.outbox.is_waiting() => self.outbox.flush(),
            }
        };
        self.stop().await;
        drop(self);
        drop(stopped);
    }

    /// Sends what is queued and lets answers finish, then closes.
    async fn stop(&mut self) {
        let began = Instant::now();
        self.serve_until(began + SHUTDOWN_FLUSH, |_| false).await;
        self.serve_until(began + SHUTDOWN_DRAIN, |task| task.asks.all_served() && task.chunks.all_served()).await;
        for peer in self.swarm.connected_peers().copied().collect::<Vec<_>>() {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        self.serve_until(Instant::now() + SHUTDOWN_CLOSE, |task| task.swarm.connected_peers().next().is_none()).await;
    }

    async fn serve_until(&mut self, deadline: Instant, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv(), if !self.commands.is_closed() => {
                    if let Some(command) = command {
                        self.on_command(command);
                    }
                }
                () = sleep_until(deadline) => return,
            }
        }
    }

    fn dial(&mut self) {
        let now = Instant::now();
        for (member, addresses) in self.schedule.due(now) {
            let Some(peer) = self.members.peer(member) else { continue };
            if self.swarm.is_connected(&peer) {
                continue;
            }
            if self.conduct.is_out(member) {
                self.schedule.lost(member, now);
                continue;
            }
            let options = DialOpts::peer_id(peer)
                .addresses(addresses)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .build();
            if self.swarm.dial(options).is_err() {
                self.schedule.lost(member, now);
            }
        }
    }

    fn listen_again(&mut self) {
        let now = Instant::now();
        for address in self.listeners.due(now) {
            match self.swarm.listen_on(address.clone()) {
                Ok(id) => self.listeners.listening(id, address),
                Err(_) => self.listeners.again(address, now),
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Publish(bytes) => {
                use gossipsub::PublishError::{AllQueuesFull, Duplicate, NoPeersSubscribedToTopic};
                match self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), bytes) {
                    Ok(_) | Err(Duplicate) => {}
                    Err(NoPeersSubscribedToTopic | AllQueuesFull(_)) | Err(_) => {
                        self.counters.unpublished.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Command::Report(token, acceptance) => self.report(&token, acceptance),
            Command::Ask(member, bytes, pending) => match self.connected(member) {
                Some(peer) => {
                    let id = self.swarm.behaviour_mut().asks.send_request(&peer, bytes);
                    self.asks.sent(id, member, pending);
                }
                None => pending.settle(Err(AskError::NotConnected(member))),
            },
            Command::Answer(token, reply) => {
                let _ = self.swarm.behaviour_mut().asks.send_response(token.0, reply);
            }
            Command::FetchChunk(member, request, pending) => match self.connected(member) {
                Some(peer) => {
                    let id = self.swarm.behaviour_mut().chunks.send_request(&peer, request);
                    self.chunks.sent(id, member, pending);
                }
                None => pending.settle(Err(AskError::NotConnected(member))),
            },
            Command::AnswerChunk(token, answer) => {
                let _ = self.swarm.behaviour_mut().chunks.send_response(token.0, answer);
            }
            Command::Blame(member, blame) => {
                let fault = match blame {
                    Blame::Question => Fault::Question,
                    Blame::Answer => Fault::Message,
                };
                let out = self.conduct.fault(member, fault, Instant::now());
                self.shut_out(member, out);
            }
            // While stopping: the sender is dropped, which the caller takes for stopped.
            Command::Shutdown(_) => {}
        }
    }

    /// The peer of a member that can be asked.
    fn connected(&self, member: MemberIndex) -> Option<PeerId> {
        self.matched.contains_key(&member).then(|| self.members.peer(member)).flatten()
    }

    fn report(&mut self, token: &VerdictToken, acceptance: Acceptance) {
        if acceptance == Acceptance::Reject
            && let Some(member) = self.members.member(&token.source)
        {
            let out = self.conduct.fault(member, Fault::Message, Instant::now());
            self.shut_out(member, out);
        }
        let acceptance = match acceptance {
            Acceptance::Accept => MessageAcceptance::Accept,
            Acceptance::Ignore => MessageAcceptance::Ignore,
            Acceptance::Reject => MessageAcceptance::Reject,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        // Unknown: reported so late that gossipsub has forgotten the message.
        let _ = gossip.report_message_validation_result(&token.id, &token.source, acceptance);
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        if let Some(measured) = &self.measured {
            measured::record(measured, &event);
        }
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } => {
                if let Some(member) = self.members.member(&peer_id) {
                    self.schedule.connected(member);
                    self.ungreeted.insert(connection_id, Vec::new());
                }
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, .. } => {
                self.on_closed(peer_id, connection_id, num_established);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), .. } => {
                if let Some(member) = self.members.member(&peer)
                    && !self.swarm.is_connected(&peer)
                {
                    self.schedule.lost(member, Instant::now());
                }
            }
            SwarmEvent::IncomingConnectionError { peer_id: Some(peer_id), error, .. } => {
                self.on_refused(peer_id, error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                let address = self.full(address);
                self.outbox.tell(NetworkEvent::Listening { address });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let address = self.full(address);
                self.outbox.tell(NetworkEvent::NotListening { address, why: None });
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                self.listeners.closed(listener_id, Instant::now());
                let why = reason.err().map(|error| error.to_string());
                for address in addresses {
                    let address = self.full(address);
                    self.outbox.tell(NetworkEvent::NotListening { address, why: why.clone() });
                }
            }
            SwarmEvent::ExternalAddrConfirmed { address } => {
                let address = self.full(address);
                self.outbox.tell(NetworkEvent::Reachable { address });
            }
            _ => {}
        }
    }

    /// The address with this node's peer id at its end.
    fn full(&self, address: Multiaddr) -> Multiaddr {
        let own = *self.swarm.local_peer_id();
        address.clone().with_p2p(own).unwrap_or_else(|_| address.with(Protocol::P2p(own)))
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId, remaining: u32) {
        let Some(member) = self.members.member(&peer) else { return };
        self.ungreeted.remove(&connection);
        if let Some(connections) = self.matched.get_mut(&member) {
            connections.remove(&connection);
            if connections.is_empty() {
                self.matched.remove(&member);
                self.outbox.tell(NetworkEvent::Disconnected { member });
            }
        }
        if remaining == 0 {
            self.ignore_held_gossip(peer);
            self.schedule.lost(member, Instant::now());
        }
    }

    fn on_refused(&mut self, peer_id: PeerId, error: ListenError) {
        let ListenError::Denied { cause } = error else { return };
        // a member that is shut out was named when it was
        if cause.downcast::<NotAllowed>().is_err() || self.members.member(&peer_id).is_some() {
            return;
        }
        let now = Instant::now();
        if self.outsiders_reported.is_some_and(|last| now - last < REFUSED_INTERVAL) {
            self.outsiders_unreported = self.outsiders_unreported.saturating_add(1);
            return;
        }
        self.outsiders_reported = Some(now);
        let unreported = std::mem::take(&mut self.outsiders_unreported);
        let mut why = "no member of the consortium has this key".to_owned();
        if unreported > 0 {
            why = format!("{why}; {unreported} more attempts were refused since the last report");
        }
        self.outbox.tell(NetworkEvent::Refused { peer_id, why });
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Greeting(event) => self.on_greeting(event),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let token = VerdictToken { id: message_id, source: propagation_source };
                self.on_gossip(token, message.data);
            }
            BehaviourEvent::Asks(event) => self.on_ask(event),
            BehaviourEvent::Chunks(event) => self.on_chunk(event),
            BehaviourEvent::Ping(event) => {
                use libp2p::ping::Failure::{Other, Timeout};
                if let Err(Timeout | Other { .. }) = event.result {
                    self.swarm.close_connection(event.connection);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                let now = Instant::now();
                for (peer, address) in found {
                    if let Some(member) = self.members.member(&peer) {
                        self.schedule.discovered(member, address, now);
                    }
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(lost)) => {
                for (peer, address) in lost {
                    if let Some(member) = self.members.member(&peer) {
                        self.schedule.expired(member, &address, self.members.addresses(member));
                    }
                }
            }
            _ => {}
        }
    }

    fn on_greeting(&mut self, event: greeting::Event) {
        match event {
            greeting::Event::Matched { peer, connection, program } => self.on_matched(peer, connection, program),
            greeting::Event::Differs { peer, connection, differences } => {
                self.ungreeted.remove(&connection);
                let Some(member) = self.members.member(&peer) else { return };
                if self.mismatches.get(&member) != Some(&differences) {
                    self.mismatches.insert(member, differences.clone());
                    self.outbox.tell(NetworkEvent::Mismatch { member, differences });
                }
            }
            greeting::Event::AnotherInstance { peer, connection } => {
                self.ungreeted.remove(&connection);
                let Some(seen_by) = self.members.member(&peer) else { return };
                let now = Instant::now();
                let since = *self.refused_since.entry(seen_by).or_insert(now);
                self.outbox.tell(NetworkEvent::AnotherInstance { seen_by, refused_for: now - since });
            }
            greeting::Event::SecondInstance { peer, connection } => {
                self.ungreeted.remove(&connection);
                if let Some(member) = self.members.member(&peer) {
                    self.outbox.tell(NetworkEvent::SecondInstance { member });
                }
            }
            greeting::Event::Failed { peer, connection, why } => {
                self.ungreeted.remove(&connection);
                if let Some(member) = self.members.member(&peer) {
                    self.outbox.tell(NetworkEvent::GreetingFailed { member, why });
                }
            }
        }
    }

    fn on_matched(&mut self, peer: PeerId, connection: ConnectionId, program: Option<ProgramName>) {
        let Some(member) = self.members.member(&peer) else { return };
        let Some(held) = self.ungreeted.remove(&connection) else { return };
        self.schedule.matched(member);
        self.mismatches.remove(&member);
        self.refused_since.remove(&member);
        let connections = self.matched.entry(member).or_default();
        let first = connections.is_empty();
        connections.insert(connection);
        if first {
            self.outbox.tell(NetworkEvent::Connected { member, program });
        }
        for request in held {
            match request {
                Held::Ask(id, bytes, channel) => self.deliver_ask(peer, member, id, bytes, channel),
                Held::Chunk(id, request, channel) => self.deliver_chunk(peer, member, id, request, channel),
            }
        }
        for (token, bytes) in self.held_gossip.remove(&peer).unwrap_or_default().messages {
            self.deliver_gossip(member, token, bytes);
        }
    }

    fn on_gossip(&mut self, token: VerdictToken, bytes: Vec<u8>) {
        let peer = token.source;
        let Some(member) = self.members.member(&peer) else {
            return self.report(&token, Acceptance::Ignore);
        };
        if let Err(out) = self.conduct.message(member, Instant::now()) {
            self.counters.unread.fetch_add(1, Ordering::Relaxed);
            self.shut_out(member, out);
            return self.report(&token, Acceptance::Ignore);
        }
        if bytes.len() > GOSSIP_BYTES {
            return self.report(&token, Acceptance::Reject);
        }
        if self.matched.contains_key(&member) {
            return self.deliver_gossip(member, token, bytes);
        }
        // A message that is ignored now would stay ignored when others pass it on, so it waits for the greeting.
        let held = self.held_gossip.entry(peer).or_default();
        if held.messages.len() >= HELD_GOSSIP_PER_PEER
            || held.bytes.saturating_add(bytes.len()) > HELD_GOSSIP_BYTES_PER_PEER
        {
            return self.report(&token, Acceptance::Ignore);
        }
        held.bytes += bytes.len();
        held.messages.push((token, bytes));
    }

    fn deliver_gossip(&mut self, from: MemberIndex, verdict: VerdictToken, bytes: Vec<u8>) {
        let size = bytes.len();
        let event = NetworkEvent::Gossip { from, bytes, verdict };
        if let Err(Full(event)) = self.outbox.offer(event, size)
            && let NetworkEvent::Gossip { verdict, .. } = *event
        {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.report(&verdict, Acceptance::Ignore);
        }
    }

    fn ignore_held_gossip(&mut self, peer: PeerId) {
        for (token, _) in self.held_gossip.remove(&peer).unwrap_or_default().messages {
            self.report(&token, Acceptance::Ignore);
        }
    }

    fn on_ask(&mut self, event: request_response::Event<Vec<u8>, AskReply>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, connection_id, message: Message::Request { request_id, request, channel } } => {
                match self.standing(peer, connection_id) {
                    Standing::Matched(member) => self.deliver_ask(peer, member, request_id, request, channel),
                    Standing::Ungreeted(held) => held.push(Held::Ask(request_id, request, channel)),
                    Standing::Refused => {
                        let _ = self.swarm.behaviour_mut().asks.send_response(channel, AskReply::Refused);
                    }
                }
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.asks.answered(request_id, response);
            }
            Event::OutboundFailure { request_id, error, .. } => self.asks.failed(request_id, error),
            Event::ResponseSent { request_id, .. } | Event::InboundFailure { request_id, .. } => {
                self.asks.served(request_id);
            }
        }
    }

    fn deliver_ask(
        &mut self,
        peer: PeerId,
        from: MemberIndex,
        id: InboundRequestId,
        bytes: Vec<u8>,
        channel: ResponseChannel<AskReply>,
    ) {
        if let Err(out) = self.conduct.question(from, Instant::now()) {
            self.shut_out(from, out);
            self.counters.busy.fetch_add(1, Ordering::Relaxed);
            let _ = self.swarm.behaviour_mut().asks.send_response(channel, AskReply::Busy);
            return;
        }
        let size = bytes.len();
        let event = NetworkEvent::Asked { from, bytes, answer: AnswerToken(channel) };
        let back = if self.asks.serve(peer, id) { self.outbox.offer(event, size) } else { Err(Full(Box::new(event))) };
        if let Err(Full(event)) = back
            && let NetworkEvent::Asked { answer, .. } = *event
        {
            self.counters.busy.fetch_add(1, Ordering::Relaxed);
            let _ = self.swarm.behaviour_mut().asks.send_response(answer.0, AskReply::Busy);
        }
    }

    fn on_chunk(&mut self, event: request_response::Event<ChunkRequest, ChunkAnswer>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, connection_id, message: Message::Request { request_id, request, channel } } => {
                match self.standing(peer, connection_id) {
                    Standing::Matched(member) => self.deliver_chunk(peer, member, request_id, request, channel),
                    Standing::Ungreeted(held) => held.push(Held::Chunk(request_id, request, channel)),
                    // Dropping the channel closes the stream, which the other side takes for a refusal.
                    Standing::Refused => drop(channel),
                }
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.chunks.answered(request_id, response);
            }
            Event::OutboundFailure { request_id, error, .. } => self.chunks.failed(request_id, error),
            Event::ResponseSent { request_id, .. } | Event::InboundFailure { request_id, .. } => {
                self.chunks.served(request_id);
            }
        }
    }

    fn deliver_chunk(
        &mut self,
        peer: PeerId,
        from: MemberIndex,
        id: InboundRequestId,
        ChunkRequest { body, chunk }: ChunkRequest,
        channel: ResponseChannel<ChunkAnswer>,
    ) {
        if let Err(out) = self.conduct.chunk(from, Instant::now()) {
            self.shut_out(from, out);
            self.counters.busy.fetch_add(1, Ordering::Relaxed);
            let _ = self.swarm.behaviour_mut().chunks.send_response(channel, ChunkAnswer::Busy);
            return;
        }
        let event = NetworkEvent::ChunkAsked { from, body, chunk, answer: ChunkAnswerToken(channel) };
        let back = if self.chunks.serve(peer, id) { self.outbox.offer(event, 0) } else { Err(Full(Box::new(event))) };
        if let Err(Full(event)) = back
            && let NetworkEvent::ChunkAsked { answer, .. } = *event
        {
            self.counters.busy.fetch_add(1, Ordering::Relaxed);
            let _ = self.swarm.behaviour_mut().chunks.send_response(answer.0, ChunkAnswer::Busy);
        }
    }

    /// What requests on this connection may expect.
    fn standing(&mut self, peer: PeerId, connection: ConnectionId) -> Standing<'_> {
        let Some(member) = self.members.member(&peer) else { return Standing::Refused };
        if self.matched.get(&member).is_some_and(|connections| connections.contains(&connection)) {
            return Standing::Matched(member);
        }
        match self.ungreeted.get_mut(&connection) {
            Some(held) if held.len() < HELD_REQUESTS_PER_CONNECTION => Standing::Ungreeted(held),
            _ => Standing::Refused,
        }
    }
}

/// Where a connection is with its greetings.
enum Standing<'a> {
    Matched(MemberIndex),
    Ungreeted(&'a mut Vec<Held>),
    Refused,
}
