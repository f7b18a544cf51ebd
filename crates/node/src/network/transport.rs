//! TCP (noise, yamux) and QUIC, names resolved by DNS, counted; relayed connections if wanted.

use std::sync::Arc;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, OptionalTransport, OrTransport};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, dns, noise, quic, relay, tcp, yamux};

use super::limits::{CONNECTION_TIMEOUT, STREAMS_PER_CONNECTION};
use super::traffic::{Counted, CountedMuxer, Counters};

type Connections = Boxed<(PeerId, StreamMuxerBox)>;

/// Builds the transport; the behaviour belongs to it and is there if `relay` is.
///
/// Errors: the noise keys could not be made.
pub(super) fn build(
    keypair: &Keypair,
    counters: &Arc<Counters>,
    relay: bool,
) -> Result<(Connections, Option<relay::client::Behaviour>), noise::Error> {
    let named = match dns::tokio::Transport::system(direct(keypair, counters)?) {
        Ok(named) => named.boxed(),
        // A machine without resolver settings can still dial addresses by number.
        Err(_) => direct(keypair, counters)?,
    };
    if !relay {
        return Ok((named, None));
    }
    let (transport, behaviour) = relay::client::new(keypair.public().to_peer_id());
    let relayed = transport
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux_config())
        .timeout(CONNECTION_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let all = OrTransport::new(OptionalTransport::some(relayed), named).map(|either, _| either.into_inner());
    Ok((all.boxed(), Some(behaviour)))
}

fn direct(keypair: &Keypair, counters: &Arc<Counters>) -> Result<Connections, noise::Error> {
    let (of_tcp, of_streams, of_quic) = (Arc::clone(counters), Arc::clone(counters), Arc::clone(counters));
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |stream, _| Counted::socket(stream, of_tcp))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux_config())
        .timeout(CONNECTION_TIMEOUT)
        .map(move |(peer, muxer), _| (peer, StreamMuxerBox::new(CountedMuxer::new(muxer, &peer, of_streams, false))));
    let quic = quic::tokio::Transport::new(quic::Config::new(keypair))
        .map(move |(peer, muxer), _| (peer, StreamMuxerBox::new(CountedMuxer::new(muxer, &peer, of_quic, true))));
    Ok(OrTransport::new(tcp, quic).map(|either, _| either.into_inner()).boxed())
}

fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS_PER_CONNECTION);
    config
}
