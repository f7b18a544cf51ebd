//! Whether a node could listen where it shall.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// Why a node could not listen at an address.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// It is dialled, or relayed, and not listened at.
    #[error("`{0}` is none that can be listened at: write it like /ip4/0.0.0.0/tcp/4100")]
    Kind(Multiaddr),
    /// The system refuses.
    #[error("nothing can listen at `{address}`")]
    Refused {
        /// Where.
        address: Multiaddr,
        /// What the system says.
        source: io::Error,
    },
}

/// Listens at `address` and stops again. Relayed addresses need no port.
///
/// # Errors
/// [`PortError`].
pub fn check_port(address: &Multiaddr) -> Result<(), PortError> {
    if address.iter().any(|part| matches!(part, Protocol::P2pCircuit)) {
        return Ok(());
    }
    let mut ip: Option<IpAddr> = None;
    for part in address {
        let refused = |source| PortError::Refused { address: address.clone(), source };
        match (part, ip) {
            (Protocol::Ip4(found), _) => ip = Some(found.into()),
            (Protocol::Ip6(found), _) => ip = Some(found.into()),
            (Protocol::Tcp(port), Some(ip)) => {
                return TcpListener::bind(SocketAddr::new(ip, port)).map(drop).map_err(refused);
            }
            (Protocol::Udp(port), Some(ip)) => {
                return UdpSocket::bind(SocketAddr::new(ip, port)).map(drop).map_err(refused);
            }
            _ => {}
        }
    }
    Err(PortError::Kind(address.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_or_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let tcp: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
        assert!(
            matches!(check_port(&tcp), Err(PortError::Refused { source, .. }) if source.kind() == io::ErrorKind::AddrInUse)
        );
        drop(taken);
        check_port(&tcp).unwrap();
        check_port(&"/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
        assert!(matches!(check_port(&"/dns4/a.example/tcp/1".parse().unwrap()), Err(PortError::Kind(_))));
        // an address of no interface of this machine (TEST-NET-1)
        assert!(matches!(check_port(&"/ip4/192.0.2.1/tcp/4100".parse().unwrap()), Err(PortError::Refused { .. })));
    }
}
