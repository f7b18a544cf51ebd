//! Who of the other members can be reached, and whether they are in the same round.
//!
//! With a round, the node's own network is started for a moment: who answers is greeted as nodes greet each other, and
//! protocol, consortium, round and model are compared. Whoever does not answer is dialled at each address besides, to
//! tell a machine where no node listens yet from one that cannot be reached at all.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use fedprune_federation::consortium::Member;
use fedprune_federation::{MemberIndex, Ratified, Round};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::network::{
    Difference, Greeting, Network, NetworkConfig, NetworkEvent, Options, Peer, ProgramName, StartError,
};
use crate::run::{NodeError, addresses_of, instance};
use crate::storage::home::Identity;

/// How long the network goes on once everybody has answered, so that those who ask at the same time get theirs.
const GRACE: Duration = Duration::from_secs(2);

/// Whom to reach, as whom, and for how long.
pub struct Request<'a> {
    /// Everybody.
    pub consortium: &'a Ratified,
    /// This member.
    pub identity: &'a Identity,
    /// The round to be compared; without one, addresses are only dialled.
    pub round: Option<&'a Round>,
    /// Where to listen meanwhile.
    pub listen: Vec<Multiaddr>,
    /// Where to dial members instead of at the consortium's addresses, by name.
    pub dial: &'a [(String, Multiaddr)],
    /// What this program calls itself.
    pub program: ProgramName,
    /// How to be found and reached.
    pub options: Options,
    /// How long to try.
    pub patience: Duration,
}

/// What came of one member.
#[derive(Debug)]
pub struct Reach {
    /// Its name.
    pub member: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of trying to reach a member.
#[derive(Debug)]
pub enum Outcome {
    /// It is connected, and has the same protocol, consortium, round and model.
    Same,
    /// It is connected, and takes part in something else.
    Different(Vec<Difference>),
    /// It is connected to another process with this member's key.
    AnotherInstance,
    /// It answered and did not greet.
    NoGreeting(String),
    /// No node answered; each address was dialled. Without a round that is all that is known.
    Dialled(Vec<Dialled>),
}

/// One address of a member.
#[derive(Debug)]
pub struct Dialled {
    /// As written.
    pub address: String,
    /// Whether something answered.
    pub result: Result<(), TryError>,
}

/// Why nothing answered.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    /// The machine is there.
    #[error("the machine answers, and nothing listens at that port")]
    Refused,
    /// No answer.
    #[error("no answer")]
    Silent,
    /// A name that nobody knows.
    #[error("the name is not known here")]
    Name(#[source] io::Error),
    /// No way there.
    #[error("{0}")]
    Unreachable(#[source] io::Error),
    /// UDP and relays cannot be told from silence without the node's own greeting.
    #[error("only a node can tell: it is no TCP address")]
    NotTcp,
}

/// Tries to reach every other member at once.
///
/// # Errors
/// [`NodeError`] when the network cannot start here; about members, everything is in the answer.
pub async fn reach(request: Request<'_>) -> Result<Vec<Reach>, NodeError> {
    let others: Vec<(MemberIndex, &Member)> = request
        .consortium
        .consortium()
        .indices()
        .zip(request.consortium.members())
        .filter(|(index, _)| *index != request.identity.member)
        .collect();
    let dials: Vec<_> = others
        .iter()
        .map(|(_, member)| {
            let addresses = addresses_of(request.dial, member);
            let patience = request.patience;
            tokio::task::spawn_blocking(move || {
                addresses.into_iter().map(|address| dialled(address, patience)).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut greeted: Vec<Option<Outcome>> = others.iter().map(|_| None).collect();
    if let Some(round) = request.round {
        greet(&request, round, &others, &mut greeted).await?;
    }
    let mut found = Vec::with_capacity(others.len());
    for (((_, member), outcome), dial) in others.iter().zip(greeted).zip(dials) {
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => Outcome::Dialled(dial.await.map_err(|error| NodeError::Worker(error.to_string()))?),
        };
        found.push(Reach { member: member.name.clone(), outcome });
    }
    Ok(found)
}

async fn greet(
    request: &Request<'_>,
    round: &Round,
    others: &[(MemberIndex, &Member)],
    greeted: &mut [Option<Outcome>],
) -> Result<(), NodeError> {
    let consortium = request.consortium;
    let peers = consortium.consortium().indices().zip(consortium.members()).map(|(index, member)| Peer {
        member: index,
        name: member.name.clone(),
        key: member.peer_key,
        addresses: addresses_of(request.dial, member),
    });
    let (network, mut events) = Network::start(NetworkConfig {
        peer_key_seed: *request.identity.peer_key.to_seed(),
        member: request.identity.member,
        peers: peers.collect(),
        listen: request.listen.clone(),
        greeting: Greeting {
            protocol: fedprune_federation::wire::VERSION,
            consortium: consortium.id(),
            round: round.id(),
            model: round.terms().base_model,
            instance: instance()?,
        },
        program: request.program.clone(),
        options: request.options,
    })
    .map_err(|error: StartError| NodeError::from(error))?;
    let mut deadline = Instant::now() + request.patience;
    let mut all = false;
    loop {
        if !all && greeted.iter().all(Option::is_some) {
            (all, deadline) = (true, Instant::now() + GRACE);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(Some(event)) = tokio::time::timeout(left, events.recv()).await else { break };
        let (member, outcome) = match event {
            NetworkEvent::Connected { member, .. } => (member, Outcome::Same),
            NetworkEvent::Mismatch { member, differences } => (member, Outcome::Different(differences)),
            NetworkEvent::AnotherInstance { seen_by, .. } => (seen_by, Outcome::AnotherInstance),
            NetworkEvent::GreetingFailed { member, why } => (member, Outcome::NoGreeting(why)),
            _ => continue,
        };
        let place = others.iter().position(|(index, _)| *index == member);
        if let Some(place) = place.and_then(|place| greeted.get_mut(place))
            && !matches!(place, Some(Outcome::Same))
        {
            *place = Some(outcome);
        }
    }
    network.shutdown().await;
    Ok(())
}

/// Dials one address by TCP.
fn dialled(address: String, patience: Duration) -> Dialled {
    let result = dial(&address, patience);
    Dialled { address, result }
}

fn dial(address: &str, patience: Duration) -> Result<(), TryError> {
    let (mut host, mut port) = (None, None);
    for part in address.parse::<Multiaddr>().iter().flatten() {
        match part {
            Protocol::Ip4(ip) => host = Some(ip.to_string()),
            Protocol::Ip6(ip) => host = Some(ip.to_string()),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => host = Some(name.to_string()),
            Protocol::Tcp(number) => port = Some(number),
            _ => {}
        }
    }
    let (Some(host), Some(port)) = (host, port) else { return Err(TryError::NotTcp) };
    let found: Vec<SocketAddr> = (host.as_str(), port).to_socket_addrs().map_err(TryError::Name)?.collect();
    let mut last = TryError::Silent;
    for socket in found.into_iter().take(4) {
        match TcpStream::connect_timeout(&socket, patience) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => last = TryError::Refused,
            Err(error) if error.kind() == ErrorKind::TimedOut => last = TryError::Silent,
            Err(error) => last = TryError::Unreachable(error),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_silence_and_unknown_names() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = |host: &str| dial(&format!("{host}/tcp/{port}"), Duration::from_millis(300));
        assert!(at("/ip4/127.0.0.1").is_ok());
        drop(listener);
        assert!(matches!(at("/ip4/127.0.0.1"), Err(TryError::Refused)));
        assert!(matches!(at("/dns4/nowhere.invalid"), Err(TryError::Name(_))));
        assert!(matches!(dial("/ip4/127.0.0.1/udp/1/quic-v1", Duration::ZERO), Err(TryError::NotTcp)));
    }
}
