//! Nodes in one process, over TCP and QUIC on the loopback interface.

use std::time::{Duration, Instant};

use fedprune_federation::{ConsortiumId, RoundId, SigningKey};
use futures::StreamExt;
use libp2p::gossipsub::{self, MessageAuthenticity, ValidationMode};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Swarm, SwarmBuilder, noise, tcp, yamux};
use tokio::time::timeout;

use super::codec::{AskCodec, AskReply, ChunkCodec, Patience, TooLong};
use super::*;

/// Far beyond what anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

fn seed(member: u16) -> [u8; 32] {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&member.to_le_bytes());
    seed
}

fn greeting(instance: u8) -> Greeting {
    Greeting {
        protocol: 1,
        consortium: ConsortiumId(Digest([1; 32])),
        round: RoundId(Digest([2; 32])),
        model: Digest([3; 32]),
        instance: [instance; 16],
    }
}

fn peers(count: u16, addresses: &[(u16, Multiaddr)]) -> Vec<Peer> {
    let peer = |member| Peer {
        member: MemberIndex(member),
        name: format!("member-{member}"),
        key: SigningKey::from_seed(&seed(member)).expect("a good seed").verifying_key(),
        addresses: addresses.iter().filter(|(of, _)| *of == member).map(|(_, address)| address.to_string()).collect(),
    };
    (0..count).map(peer).collect()
}

fn program(name: &str) -> ProgramName {
    ProgramName::new(name).expect("a name")
}

fn config(member: u16, count: u16, listen: &str, addresses: &[(u16, Multiaddr)]) -> NetworkConfig {
    NetworkConfig {
        peer_key_seed: seed(member),
        member: MemberIndex(member),
        peers: peers(count, addresses),
        listen: vec![listen.parse().expect("an address")],
        greeting: greeting(member as u8),
        program: program(&format!("fedprune 0.{member}.0")),
        options: Options::default(),
    }
}

struct Node {
    network: Network,
    events: Events,
}

impl Node {
    fn start(config: NetworkConfig) -> Self {
        let (network, events) = Network::start(config).expect("starts");
        Self { network, events }
    }

    async fn next(&mut self) -> NetworkEvent {
        timeout(LONG, self.events.recv()).await.expect("an event in time").expect("runs")
    }

    /// The first event that `pick` takes; earlier ones are dropped.
    async fn until<T>(&mut self, mut pick: impl FnMut(NetworkEvent) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.next().await) {
                return picked;
            }
        }
    }

    async fn listening(&mut self) -> Multiaddr {
        self.until(|event| match event {
            NetworkEvent::Listening { address } => Some(address),
            _ => None,
        })
        .await
    }

    async fn connected(&mut self, others: usize) {
        let mut members = std::collections::BTreeSet::new();
        while members.len() < others {
            match self.next().await {
                NetworkEvent::Connected { member, .. } => assert!(members.insert(member), "{member} connected twice"),
                NetworkEvent::Disconnected { member } => panic!("{member} disconnected"),
                _ => {}
            }
        }
    }

    async fn disconnected(&mut self) -> MemberIndex {
        self.until(|event| match event {
            NetworkEvent::Disconnected { member } => Some(member),
            _ => None,
        })
        .await
    }

    async fn gossip(&mut self) -> (MemberIndex, Vec<u8>, VerdictToken) {
        self.until(|event| match event {
            NetworkEvent::Gossip { from, bytes, verdict } => Some((from, bytes, verdict)),
            _ => None,
        })
        .await
    }

    /// Answers asks with what they ask, and chunks with their number repeated, until the network stops.
    fn serve(mut self) {
        tokio::spawn(async move {
            while let Some(event) = self.events.recv().await {
                let done = match event {
                    NetworkEvent::Asked { bytes, answer, .. } => self.network.answer(answer, bytes).await,
                    NetworkEvent::ChunkAsked { chunk, answer, .. } => {
                        let bytes = vec![chunk as u8; 1 << 20];
                        self.network.answer_chunk(answer, ChunkAnswer::Here(bytes)).await
                    }
                    _ => Ok(()),
                };
                if done.is_err() {
                    return;
                }
            }
        });
    }
}

/// Nodes that each know the addresses of those before them.
async fn nodes(count: u16, listen: &str) -> Vec<Node> {
    let mut addresses = Vec::new();
    let mut nodes = Vec::new();
    for member in 0..count {
        let mut node = Node::start(config(member, count, listen, &addresses));
        addresses.push((member, node.listening().await));
        nodes.push(node);
    }
    for node in &mut nodes {
        node.connected(usize::from(count) - 1).await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_gossip_to_all() {
    let mut nodes = nodes(4, TCP).await;
    let large = (0..limits::GOSSIP_BYTES).map(|i| (i / 1000) as u8).collect::<Vec<_>>();
    for (from, bytes) in [(0, b"small".to_vec()), (3, large)] {
        nodes[from].network.publish(bytes.clone()).await.expect("runs");
        // A second time at once: the same message, which goes nowhere.
        nodes[from].network.publish(bytes.clone()).await.expect("runs");
        for (position, node) in nodes.iter_mut().enumerate() {
            if position == from {
                continue;
            }
            let (_, received, verdict) = node.gossip().await;
            assert_eq!(received, bytes);
            node.network.report(verdict, Acceptance::Accept).await.expect("runs");
        }
    }
    let too_large = nodes[0].network.publish(vec![0; limits::GOSSIP_BYTES + 1]).await;
    let message = too_large.expect_err("too large").to_string();
    assert_eq!(message, "a gossip message has 2097153 bytes, at most 2097152 can be sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_is_passed_on_only_when_accepted() {
    // 0 and 2 know only 1, which passes on.
    let mut middle = Node::start(config(1, 3, TCP, &[]));
    let address = middle.listening().await;
    let mut first = Node::start(config(0, 3, TCP, &[(1, address.clone())]));
    let mut last = Node::start(config(2, 3, TCP, &[(1, address)]));
    middle.connected(2).await;
    first.connected(1).await;
    last.connected(1).await;
    for (bytes, acceptance) in [
        (b"ignored".to_vec(), Acceptance::Ignore),
        (b"rejected".to_vec(), Acceptance::Reject),
        (b"accepted".to_vec(), Acceptance::Accept),
    ] {
        // Until gossipsub knows that the neighbour listens, a message goes nowhere and may be repeated.
        let (from, received, verdict) = loop {
            first.network.publish(bytes.clone()).await.expect("runs");
            if let Ok(arrived) = timeout(Duration::from_millis(200), middle.gossip()).await {
                break arrived;
            }
        };
        assert_eq!((from, &received), (MemberIndex(0), &bytes));
        middle.network.report(verdict, acceptance).await.expect("runs");
    }
    let (from, received, _) = last.gossip().await;
    assert_eq!((from, received.as_slice()), (MemberIndex(1), b"accepted".as_slice()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outsider_is_refused() {
    let mut member = Node::start(config(0, 2, TCP, &[]));
    let address = member.listening().await;
    // The outsider's own list says that it is a member; member 0 knows another key as member 1.
    let mut peers = peers(2, &[(0, address.clone())]);
    peers[1].key = SigningKey::from_seed(&seed(99)).expect("a good seed").verifying_key();
    let outsider_id = peer_id(&peers[1].key).expect("a key");
    let config = NetworkConfig { peer_key_seed: seed(99), peers, ..config(1, 2, TCP, &[]) };
    let mut outsider = Node::start(config);
    let refused = member
        .until(|event| match event {
            NetworkEvent::Refused { peer_id, why } => Some((peer_id, why)),
            NetworkEvent::Connected { member, .. } => panic!("{member} connected"),
            _ => None,
        })
        .await;
    assert_eq!(refused, (outsider_id, "no member of the consortium has this key".to_owned()));
    outsider.network.shutdown().await;
    while let Some(event) = outsider.events.recv().await {
        assert!(!matches!(event, NetworkEvent::Connected { .. }), "{event:?}");
    }
}

async fn mismatch(node: &mut Node) -> (MemberIndex, Vec<Difference>) {
    node.until(|event| match event {
        NetworkEvent::Mismatch { member, differences } => Some((member, differences)),
        NetworkEvent::Connected { member, .. } => panic!("{member} connected"),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_of_different_versions_connect_and_know_it() {
    let mut first = Node::start(config(0, 2, TCP, &[]));
    let address = first.listening().await;
    let mut second = Node::start(config(1, 2, TCP, &[(0, address)]));
    for (node, theirs) in [(&mut first, "fedprune 0.1.0"), (&mut second, "fedprune 0.0.0")] {
        let told = node.until(|event| match event {
            NetworkEvent::Connected { program, .. } => Some(program),
            _ => None,
        });
        assert_eq!(told.await, Some(program(theirs)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_are_told_what_differs() {
    for (theirs, what) in [
        (Greeting { round: RoundId(Digest([9; 32])), ..greeting(1) }, Subject::Round),
        (Greeting { protocol: 2, ..greeting(1) }, Subject::Protocol),
        (Greeting { consortium: ConsortiumId(Digest([9; 32])), ..greeting(1) }, Subject::Consortium),
        (Greeting { model: Digest([9; 32]), ..greeting(1) }, Subject::Model),
    ] {
        let mut first = Node::start(config(0, 2, TCP, &[]));
        let address = first.listening().await;
        let mut second = Node::start(NetworkConfig { greeting: theirs, ..config(1, 2, TCP, &[(0, address)]) });
        let (member, at_first) = mismatch(&mut first).await;
        assert_eq!(member, MemberIndex(1));
        assert_eq!(at_first.iter().map(|difference| difference.what).collect::<Vec<_>>(), [what]);
        let (member, at_second) = mismatch(&mut second).await;
        assert_eq!(member, MemberIndex(0));
        assert_eq!(at_second[0].what, what);
        assert_eq!((&at_first[0].ours, &at_first[0].theirs), (&at_second[0].theirs, &at_second[0].ours));
        assert_ne!(at_first[0].ours, at_first[0].theirs);
        if what == Subject::Protocol {
            // each side says which of the two is to be updated
            assert!(at_first[0].remedy().contains("this program is the older one"), "{}", at_first[0].remedy());
            assert!(at_second[0].remedy().contains("its program is the older one"), "{}", at_second[0].remedy());
        }
        // Nothing can be asked.
        let asked = first.network.ask(MemberIndex(1), b"hello".to_vec()).await;
        assert!(matches!(asked, Err(AskError::NotConnected(MemberIndex(1)))), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_instance_is_refused_until_the_first_is_gone() {
    for listen in [TCP, QUIC] {
        let mut member = Node::start(config(0, 2, listen, &[]));
        let address = member.listening().await;
        let mut first = Node::start(config(1, 2, listen, &[(0, address.clone())]));
        member.connected(1).await;
        first.connected(1).await;
        let clone = NetworkConfig { greeting: greeting(200), ..config(1, 2, listen, &[(0, address)]) };
        let mut second = Node::start(clone);
        let seen_by = second
            .until(|event| match event {
                NetworkEvent::AnotherInstance { seen_by, .. } => Some(seen_by),
                NetworkEvent::Connected { member, .. } => panic!("{member} connected"),
                _ => None,
            })
            .await;
        assert_eq!(seen_by, MemberIndex(0));
        member
            .until(|event| matches!(event, NetworkEvent::SecondInstance { member: MemberIndex(1) }).then_some(()))
            .await;
        // The first still has its place.
        let asked = tokio::spawn({
            let network = first.network.clone();
            async move { network.ask(MemberIndex(0), b"still there?".to_vec()).await }
        });
        let (bytes, answer) = member
            .until(|event| match event {
                NetworkEvent::Asked { bytes, answer, .. } => Some((bytes, answer)),
                NetworkEvent::Disconnected { member } => panic!("{member} disconnected"),
                _ => None,
            })
            .await;
        member.network.answer(answer, bytes).await.expect("runs");
        assert_eq!(asked.await.expect("no panic").expect("answered"), b"still there?");
        first.network.shutdown().await;
        assert_eq!(member.disconnected().await, MemberIndex(1));
        second.connected(1).await;
        member.connected(1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_are_answered() {
    let mut nodes = nodes(2, TCP).await;
    let answering = nodes.remove(1);
    let asking = nodes.remove(0);
    answering.serve();
    let asks = (0..100u8).map(|i| asking.network.ask(MemberIndex(1), vec![i; 1000]));
    for (i, answer) in futures::future::join_all(asks).await.into_iter().enumerate() {
        assert_eq!(answer.expect("answered"), vec![i as u8; 1000]);
    }
    let largest = vec![5; limits::ASK_BYTES];
    assert_eq!(asking.network.ask(MemberIndex(1), largest.clone()).await.expect("answered"), largest);
    let too_large = asking.network.ask(MemberIndex(1), vec![0; limits::ASK_BYTES + 1]).await;
    assert!(matches!(too_large, Err(AskError::Send(SendError::TooLarge { .. }))), "{too_large:?}");
    let nobody = asking.network.ask(MemberIndex(7), Vec::new()).await;
    assert!(matches!(nobody, Err(AskError::NotConnected(MemberIndex(7)))), "{nobody:?}");
    let traffic = asking.network.traffic();
    let exchanged = 100 * 1000 + limits::ASK_BYTES as u64 + 101 * 4;
    // each request is a stream that names its protocol first, and each answer begins with its status
    let (sent, received) = (exchanged + 101 * 37, exchanged + 101 * 38);
    assert_eq!((traffic.sent.questions, traffic.received.questions), (sent, received), "{traffic:?}");
    assert!(traffic.sent.total() > exchanged && traffic.sent.total() < 2 * exchanged, "{traffic:?}");
    assert!(traffic.received.total() > exchanged && traffic.received.total() < 2 * exchanged, "{traffic:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_time_is_busy_and_one_without_an_answer_refuses() {
    let mut nodes = nodes(2, TCP).await;
    let mut answering = nodes.remove(1);
    let asking = nodes.remove(0);
    let ask = |network: Network| tokio::spawn(async move { network.ask(MemberIndex(1), b"?".to_vec()).await });
    let asked = async |node: &mut Node| {
        node.until(|event| match event {
            NetworkEvent::Asked { answer, .. } => Some(answer),
            _ => None,
        })
        .await
    };
    // Dropped tokens and answers over the limit refuse.
    let refused = ask(asking.network.clone());
    drop(asked(&mut answering).await);
    let refused = refused.await.expect("no panic");
    assert!(matches!(refused, Err(AskError::Refused(MemberIndex(1)))), "{refused:?}");
    let refused = ask(asking.network.clone());
    let token = asked(&mut answering).await;
    let too_large = answering.network.answer(token, vec![0; limits::ANSWER_BYTES + 1]).await;
    assert!(matches!(too_large, Err(SendError::TooLarge { .. })), "{too_large:?}");
    let refused = refused.await.expect("no panic");
    assert!(matches!(refused, Err(AskError::Refused(MemberIndex(1)))), "{refused:?}");
    // One more than a member may have served at once, past the queue on the asking side.
    let chunks = (0..=limits::CHUNKS_SERVED_PER_MEMBER as u32).map(|chunk| {
        let (network, body) = (asking.network.clone(), Digest([1; 32]));
        tokio::spawn(async move { network.fetch_chunk(MemberIndex(1), body, chunk).await })
    });
    let chunks = chunks.collect::<Vec<_>>();
    let mut tokens = Vec::new();
    while tokens.len() < limits::CHUNKS_SERVED_PER_MEMBER {
        let token = answering.until(|event| match event {
            NetworkEvent::ChunkAsked { answer, .. } => Some(answer),
            _ => None,
        });
        tokens.push(token.await);
    }
    for token in tokens {
        answering.network.answer_chunk(token, ChunkAnswer::NotHeld).await.expect("runs");
    }
    let last = answering.until(|event| match event {
        NetworkEvent::ChunkAsked { answer, .. } => Some(answer),
        _ => None,
    });
    let last = last.await;
    let too_large = ChunkAnswer::Here(vec![0; limits::CHUNK_ANSWER_BYTES + 1]);
    answering.network.answer_chunk(last, too_large).await.expect_err("too large");
    for chunk in chunks {
        assert_eq!(chunk.await.expect("no panic").expect("answered"), ChunkAnswer::NotHeld);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_travel_over_tcp_and_quic() {
    for listen in [TCP, QUIC] {
        let mut nodes = nodes(2, listen).await;
        let answering = nodes.remove(1);
        let asking = nodes.remove(0);
        answering.serve();
        let chunks = (0..24u32).map(|chunk| asking.network.fetch_chunk(MemberIndex(1), Digest([8; 32]), chunk));
        for (chunk, answer) in futures::future::join_all(chunks).await.into_iter().enumerate() {
            assert_eq!(answer.expect("answered"), ChunkAnswer::Here(vec![chunk as u8; 1 << 20]), "{listen}");
        }
        let traffic = asking.network.traffic();
        assert_eq!(traffic.sent.bodies, 24 * (36 + 39), "{listen}");
        assert_eq!(traffic.received.bodies, 24 * ((1 << 20) + 5 + 39), "{listen}");
        assert!(traffic.received.total() > 24 << 20, "{traffic:?}");
        assert!(traffic.received.total() < 25 << 20, "{traffic:?}");
        assert!(traffic.sent.total() < 1 << 20, "{traffic:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_member_is_reported_and_found_again() {
    let mut first = Node::start(config(0, 2, TCP, &[]));
    let address = first.listening().await;
    let mut second = Node::start(config(1, 2, TCP, &[(0, address.clone())]));
    first.connected(1).await;
    second.connected(1).await;
    second.network.shutdown().await;
    assert_eq!(first.disconnected().await, MemberIndex(1));
    let stopped = second.network.publish(b"late".to_vec()).await;
    assert_eq!(stopped, Err(SendError::Stopped));
    second.network.shutdown().await;
    let again = NetworkConfig { greeting: greeting(77), ..config(1, 2, TCP, &[(0, address)]) };
    let mut again = Node::start(again);
    again.connected(1).await;
    first.connected(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_takes_no_events_holds_nobody_up() {
    let mut nodes = nodes(3, TCP).await;
    let sleeping = nodes.remove(2);
    let mut awake = nodes.remove(1);
    let speaking = nodes.remove(0);
    // More than the sleeper's queue holds, and more than fits its bytes.
    for i in 0..2 * limits::EVENT_QUEUE as u32 {
        loop {
            speaking.network.publish(i.to_le_bytes().to_vec()).await.expect("runs");
            let Ok((_, bytes, verdict)) = timeout(Duration::from_millis(500), awake.gossip()).await else { continue };
            assert_eq!(bytes, i.to_le_bytes());
            awake.network.report(verdict, Acceptance::Ignore).await.expect("runs");
            break;
        }
    }
    let busy = speaking.network.fetch_chunk(MemberIndex(2), Digest([1; 32]), 0).await;
    assert_eq!(busy.expect("answered"), ChunkAnswer::Busy);
    let busy = speaking.network.ask(MemberIndex(2), b"awake?".to_vec()).await;
    assert!(matches!(busy, Err(AskError::Busy(MemberIndex(2)))), "{busy:?}");
    assert!(sleeping.network.traffic().dropped > 0);
    sleeping.network.shutdown().await;
    assert_eq!(awake.disconnected().await, MemberIndex(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_rejected_messages_is_shut_out() {
    let mut nodes = nodes(2, TCP).await;
    let mut hearing = nodes.remove(1);
    let speaking = nodes.remove(0);
    let (mut heard, began) = (0, Instant::now());
    for i in 0..100u8 {
        speaking.network.publish(vec![i]).await.expect("runs");
        let next = hearing.until(|event| match event {
            NetworkEvent::Gossip { verdict, .. } => Some(Ok(verdict)),
            NetworkEvent::ShutOut { member, why, lasts } => Some(Err((member, why, lasts))),
            _ => None,
        });
        match next.await {
            Ok(verdict) => {
                heard += 1;
                hearing.network.report(verdict, Acceptance::Reject).await.expect("runs");
            }
            Err((member, why, lasts)) => {
                assert_eq!((member, lasts), (MemberIndex(0), crate::limits::SHUT_OUT_FIRST));
                assert!(why.contains("no honest member"), "{why}");
                // on a starved machine, some are forgiven meanwhile
                let forgiven = began.elapsed().as_secs_f64() * crate::limits::FAULTS_FORGIVEN_PER_SECOND;
                let most = crate::limits::MOST_FAULTS + forgiven.ceil() as u64 + 2;
                assert!((crate::limits::MOST_FAULTS..=most).contains(&heard), "{heard} after {:?}", began.elapsed());
                assert_eq!(hearing.disconnected().await, MemberIndex(0));
                // it is not dialled, and does not get in
                let again = timeout(Duration::from_secs(2), hearing.connected(1)).await;
                assert!(again.is_err(), "it is back at once");
                return;
            }
        }
    }
    panic!("still heard after 100 messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_without_end_is_answered_busy_and_then_shut_out() {
    // small questions are too many before their bytes are
    let why = asks_without_end(64 << 10).await;
    assert!(why.contains("more questions"), "{why}");
    let why = asks_without_end(limits::ASK_BYTES).await;
    assert!(why.contains("bytes that nobody asked for"), "{why}");
}

/// One member asks another questions of this size until it is shut out; why it was.
async fn asks_without_end(question_bytes: usize) -> String {
    let mut nodes = nodes(2, TCP).await;
    let mut hearing = nodes.remove(1);
    let asking = nodes.remove(0).network;
    let answers = tokio::spawn(async move {
        let (mut answered, mut busy) = (0u64, 0u64);
        loop {
            match asking.ask(MemberIndex(1), vec![7; question_bytes]).await {
                Ok(_) => answered += 1,
                Err(AskError::Busy(_)) => busy += 1,
                Err(_) => return (answered, busy),
            }
        }
    });
    let why = loop {
        match hearing.next().await {
            NetworkEvent::Asked { answer, .. } => hearing.network.answer(answer, Vec::new()).await.expect("runs"),
            NetworkEvent::ShutOut { member: MemberIndex(0), why, .. } => break why,
            _ => {}
        }
    };
    let (answered, busy) = answers.await.expect("no panic");
    let most = crate::limits::UNASKED_BYTES_AT_ONCE / question_bytes as u64;
    assert!(answered >= crate::limits::QUESTIONS_AT_ONCE.min(most * 3 / 4), "{answered} answered, {busy} not");
    assert_eq!(hearing.disconnected().await, MemberIndex(0));
    why
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_behind_a_relay_is_reached_also_after_the_relay_restarted() {
    let relaying = |config| NetworkConfig { options: Options { relay: true, ..Options::default() }, ..config };
    // The port must be known before the relay starts: the consortium has it written down.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("a port").port();
    let relay: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("an address");
    let relay_id = peer_id(&peers(3, &[])[1].key).expect("a key");
    let circuit: Multiaddr = format!("{relay}/p2p/{relay_id}/p2p-circuit").parse().expect("an address");
    let middle = || config(1, 3, &relay.to_string(), &[(1, relay.clone())]);
    let mut first_middle = Node::start(relaying(middle()));
    first_middle.listening().await;
    // Nobody is told where 2 listens but through the relay.
    let mut hidden = Node::start(relaying(config(2, 3, &circuit.to_string(), &[(1, relay.clone())])));
    let addresses = [(1, relay.clone()), (2, circuit)];
    let mut first = Node::start(relaying(config(0, 3, TCP, &addresses)));
    let mut seen = (None, 0);
    while seen.0.is_none() || seen.1 < 2 {
        match hidden.next().await {
            NetworkEvent::Listening { address } => seen.0 = Some(address.to_string()),
            NetworkEvent::Connected { .. } => seen.1 += 1,
            _ => {}
        }
    }
    let address = seen.0.expect("listens");
    assert!(address.contains("/p2p-circuit/p2p/"), "{address}");
    first.connected(2).await;
    first_middle.network.shutdown().await;
    assert_ne!(first.disconnected().await, first.disconnected().await);
    let mut second_middle = Node::start(relaying(NetworkConfig { greeting: greeting(101), ..middle() }));
    second_middle.connected(2).await;
    first.connected(2).await;
    hidden.serve();
    let chunk = first.network.fetch_chunk(MemberIndex(2), Digest([1; 32]), 3).await;
    assert_eq!(chunk.expect("answered"), ChunkAnswer::Here(vec![3; 1 << 20]));
    assert!(second_middle.network.traffic().sent.total() > 1 << 20, "it went through the relay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_options_at_once_work() {
    let options = Options { mdns: true, relay: true, dcutr: true, autonat: true };
    let mut first = Node::start(NetworkConfig { options, ..config(0, 2, TCP, &[]) });
    let address = first.listening().await;
    let mut second = Node::start(NetworkConfig { options, ..config(1, 2, TCP, &[(0, address)]) });
    first.connected(1).await;
    second.connected(1).await;
}

/// A member that answers more than it may, and gossips without greeting.
#[derive(NetworkBehaviour)]
struct Hostile {
    greeting: Toggle<super::greeting::Behaviour>,
    gossip: gossipsub::Behaviour,
    asks: request_response::Behaviour<AskCodec>,
    chunks: request_response::Behaviour<ChunkCodec>,
}

fn hostile(member: u16, greeting: Option<Greeting>) -> Swarm<Hostile> {
    let keypair = Keypair::ed25519_from_bytes(seed(member)).expect("a good seed");
    let no_limit = usize::MAX;
    let patience = Patience::default();
    let asks = AskCodec { request_bytes: no_limit, answer_bytes: no_limit, patience };
    let chunks = ChunkCodec { answer_bytes: no_limit, patience };
    let config = request_response::Config::default;
    let gossip = gossipsub::ConfigBuilder::default().validation_mode(ValidationMode::Anonymous).build().expect("valid");
    let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, gossip).expect("valid");
    gossip.subscribe(&behaviour::topic(RoundId(Digest([2; 32])))).expect("allowed");
    SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|_| Hostile {
            greeting: greeting
                .map(|ours| {
                    super::greeting::Behaviour::new(ours, program("hostile 6.6.6"), super::greeting::Timing::default())
                })
                .into(),
            gossip,
            asks: request_response::Behaviour::with_codec(asks, [(codec::ASK, ProtocolSupport::Full)], config()),
            chunks: request_response::Behaviour::with_codec(chunks, [(codec::CHUNK, ProtocolSupport::Full)], config()),
        })
        .expect("a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(LONG))
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_beyond_the_limit_are_refused() {
    let mut node = Node::start(config(0, 2, TCP, &[]));
    let address = node.listening().await;
    let mut hostile = hostile(1, Some(greeting(1)));
    hostile.dial(address).expect("dials");
    tokio::spawn(async move {
        loop {
            match hostile.select_next_some().await {
                SwarmEvent::Behaviour(HostileEvent::Asks(request_response::Event::Message {
                    message: request_response::Message::Request { channel, .. },
                    ..
                })) => {
                    let reply = AskReply::Answered(vec![0; limits::ANSWER_BYTES + 1]);
                    hostile.behaviour_mut().asks.send_response(channel, reply).expect("open");
                }
                SwarmEvent::Behaviour(HostileEvent::Chunks(request_response::Event::Message {
                    message: request_response::Message::Request { channel, .. },
                    ..
                })) => {
                    let answer = ChunkAnswer::Here(vec![0; limits::CHUNK_ANSWER_BYTES + 1]);
                    hostile.behaviour_mut().chunks.send_response(channel, answer).expect("open");
                }
                _ => {}
            }
        }
    });
    node.connected(1).await;
    let invalid = node.network.ask(MemberIndex(1), b"?".to_vec()).await.expect_err("too long");
    let invalid_chunk = node.network.fetch_chunk(MemberIndex(1), Digest([0; 32]), 0).await.expect_err("too long");
    for (error, limit) in [(invalid, limits::ANSWER_BYTES), (invalid_chunk, limits::CHUNK_ANSWER_BYTES)] {
        let AskError::Invalid { member: MemberIndex(1), source } = error else { panic!("{error:?}") };
        let cause = source.get_ref().and_then(|cause| cause.downcast_ref::<TooLong>());
        assert_eq!(cause, Some(&TooLong { bytes: limit as u64 + 1, limit }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_before_the_greeting_matched_is_kept_back() {
    // The other side greets with another round, and asks and fetches at once without waiting.
    let mut node = Node::start(config(0, 2, TCP, &[]));
    let address = node.listening().await;
    let mut hostile = hostile(1, Some(Greeting { round: RoundId(Digest([9; 32])), ..greeting(1) }));
    hostile.dial(address).expect("dials");
    let failures = tokio::spawn(async move {
        let mut failures = 0;
        while failures < 2 {
            match timeout(LONG, hostile.select_next_some()).await.expect("an event in time") {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    hostile.behaviour_mut().asks.send_request(&peer_id, b"early".to_vec());
                    let request = codec::ChunkRequest { body: Digest([1; 32]), chunk: 0 };
                    hostile.behaviour_mut().chunks.send_request(&peer_id, request);
                }
                SwarmEvent::Behaviour(
                    HostileEvent::Asks(request_response::Event::OutboundFailure { .. })
                    | HostileEvent::Asks(request_response::Event::Message {
                        message: request_response::Message::Response { response: AskReply::Refused, .. },
                        ..
                    })
                    | HostileEvent::Chunks(request_response::Event::OutboundFailure { .. }),
                ) => failures += 1,
                SwarmEvent::Behaviour(
                    event @ (HostileEvent::Asks(request_response::Event::Message { .. })
                    | HostileEvent::Chunks(request_response::Event::Message { .. })),
                ) => panic!("{event:?}"),
                _ => {}
            }
        }
    });
    mismatch(&mut node).await;
    failures.await.expect("both failed");
    node.network.shutdown().await;
    while let Some(event) = node.events.recv().await {
        assert!(!matches!(event, NetworkEvent::Asked { .. } | NetworkEvent::ChunkAsked { .. }), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_of_a_peer_that_does_not_greet_is_not_heard() {
    let mut node = Node::start(config(0, 2, TCP, &[]));
    let address = node.listening().await;
    let mut hostile = hostile(1, None);
    hostile.dial(address).expect("dials");
    tokio::spawn(async move {
        loop {
            let event = hostile.select_next_some().await;
            if let SwarmEvent::Behaviour(HostileEvent::Gossip(gossipsub::Event::Subscribed { topic, .. })) = event {
                hostile.behaviour_mut().gossip.publish(topic, b"unheard".to_vec()).expect("one listens");
            }
        }
    });
    let (member, differences) = mismatch(&mut node).await;
    assert_eq!(member, MemberIndex(1));
    let sentence = differences[0].to_string();
    let expected = "the greeting differs: ours is `fedprune greeting 1`, \
                    theirs is `it does not speak `/fedprune/greeting/1``";
    assert_eq!(sentence, expected);
    node.network.shutdown().await;
    assert!(node.network.traffic().received.total() > 0);
    while let Some(event) = node.events.recv().await {
        assert!(!matches!(event, NetworkEvent::Gossip { .. } | NetworkEvent::Connected { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn settings_that_do_not_fit_are_refused() {
    let refused = |config: NetworkConfig| Network::start(config).err().expect("refused").to_string();
    let good = || config(0, 2, TCP, &[]);
    let wrong_key = refused(NetworkConfig { peer_key_seed: seed(5), ..good() });
    assert!(wrong_key.contains("use the key that the consortium names"), "{wrong_key}");
    let no_member = refused(NetworkConfig { member: MemberIndex(9), ..good() });
    assert_eq!(no_member, "member 9 is not in the list of members");
    let mut peers = good().peers;
    peers[1].key = peers[0].key;
    let twice = refused(NetworkConfig { peers, ..good() });
    assert!(twice.contains("`member-1` or its peer key is listed twice"), "{twice}");
    let mut peers = good().peers;
    peers[1].addresses = vec!["127.0.0.1:80".to_owned()];
    let address = refused(NetworkConfig { peers, ..good() });
    assert!(address.contains("`127.0.0.1:80` of `member-1` cannot be dialled"), "{address}");
    let mut peers = good().peers;
    let other = peer_id(&peers[0].key).expect("a key");
    peers[1].addresses = vec![format!("/ip4/127.0.0.1/tcp/1/p2p/{other}")];
    let address = refused(NetworkConfig { peers, ..good() });
    assert!(address.contains(&format!("it ends in the peer id `{other}`")), "{address}");
    let listen = vec!["/dns4/example.invalid/tcp/1".parse().expect("an address")];
    let listen = refused(NetworkConfig { listen, ..good() });
    assert!(listen.contains("cannot listen on `/dns4/example.invalid/tcp/1`"), "{listen}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let listen = vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("an address")];
    let listen = refused(NetworkConfig { listen, ..good() });
    assert!(listen.contains(&format!("cannot listen on `/ip4/127.0.0.1/tcp/{port}`")), "{listen}");
}

/// An address of the documentation's own network, which no interface has; the system's reason is passed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_listen_says_why() {
    for address in ["/ip4/192.0.2.1/tcp/4100", "/ip4/192.0.2.1/udp/4100/quic-v1"] {
        match Network::start(config(0, 2, address, &[])) {
            Err(StartError::Listen { why, .. }) => assert!(why.contains("os error"), "{address}: `{why}`"),
            other => panic!("{address}: {:?}", other.map(|_| "it listens")),
        }
    }
}
