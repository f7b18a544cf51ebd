//! Ports of this machine that are free, remembered until the nodes start.
//!
//! Asking the system for any free port gives one of those that it also gives to outgoing connections: between
//! the moment it is released and the moment its node listens (for a late or restarted node, seconds) a connection of
//! another node may take it. So ports are tried below that range, and only where it leaves no room is the system asked.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;

/// Fewest ports below the range of outgoing connections that make it worth trying there.
const MIN_CANDIDATES: u16 = 2000;
/// Lowest port that is tried; below lie those of well-known services.
const LOWEST: u16 = 10_000;
/// Most ports that are tried for one node.
const MAX_TRIES: usize = 2000;

/// One port, for TCP and UDP alike, that nothing else can take while this lives.
#[derive(Debug)]
pub(crate) struct Reserved {
    port: u16,
    _tcp: TcpListener,
    _udp: UdpSocket,
}

impl Reserved {
    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn of(port: u16) -> io::Result<Self> {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let port = tcp.local_addr()?.port();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        Ok(Self { port, _tcp: tcp, _udp: udp })
    }
}

/// Reserves `count` ports of the loopback address; `start` spreads testnets that start together.
///
/// # Errors
/// When none is free, with the last cause.
pub(crate) fn reserve(count: usize, start: u64) -> io::Result<Vec<Reserved>> {
    free(count, start, Reserved::of)
}

/// Listens at `count` TCP ports of the loopback address, none of them among `except`, which others will take.
///
/// # Errors
/// When none is free, with the last cause.
pub(crate) fn listeners(count: usize, start: u64, except: &[u16]) -> io::Result<Vec<TcpListener>> {
    free(count, start, |port| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        if except.contains(&listener.local_addr()?.port()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(listener)
    })
}

/// Takes `count` ports one after the other, passing over those that cannot be taken.
fn free<T>(count: usize, start: u64, take: impl Fn(u16) -> io::Result<T>) -> io::Result<Vec<T>> {
    let candidates = candidates(std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok().as_deref());
    let mut offset = start;
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let mut last_error = None;
        for _ in 0..MAX_TRIES {
            let taken = take(nth(&candidates, offset));
            offset = offset.wrapping_add(1);
            match taken {
                Ok(one) => {
                    all.push(one);
                    last_error = None;
                    break;
                }
                Err(error) => last_error = Some(error),
            }
        }
        if let Some(error) = last_error {
            return Err(error);
        }
    }
    Ok(all)
}

/// Those of these ports that something holds, for TCP or UDP.
pub(crate) fn taken(ports: impl IntoIterator<Item = u16>) -> Vec<u16> {
    ports.into_iter().filter(|port| Reserved::of(*port).is_err()).collect()
}

/// Those of these ports that something holds for TCP.
pub(crate) fn taken_for_tcp(ports: impl IntoIterator<Item = u16>) -> Vec<u16> {
    ports.into_iter().filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_err()).collect()
}

/// The ports to try: below those that the system gives to outgoing connections, which it states as two numbers.
fn candidates(outgoing: Option<&str>) -> Range<u16> {
    let lowest_outgoing = outgoing.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(32_768);
    LOWEST..lowest_outgoing.max(LOWEST)
}

/// One of the candidates, or 0, which asks the system, when there are too few.
fn nth(candidates: &Range<u16>, offset: u64) -> u16 {
    let count = candidates.end - candidates.start;
    if count < MIN_CANDIDATES {
        return 0;
    }
    // below the count, which has 16 bits
    candidates.start + (offset % u64::from(count)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct_held_and_then_free() {
        let reserved = reserve(8, u64::from(std::process::id()) * 37).unwrap();
        let mut ports: Vec<u16> = reserved.iter().map(Reserved::port).collect();
        for port in &ports {
            assert_eq!(TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            assert_eq!(UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        drop(reserved);
        for port in &ports {
            // a process that another test is just starting may hold a copy of the socket for a moment
            let free = || {
                std::thread::yield_now();
                Reserved::of(*port).is_ok()
            };
            assert!((0..100_000).any(|_| free()), "{port}");
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let first = reserve(1, 7000).unwrap().remove(0);
        let again = reserve(1, 7000).unwrap().remove(0);
        assert_ne!(first.port(), again.port());
    }

    #[test]
    fn listeners_leave_ports_to_others_and_mind_tcp_alone() {
        let start = u64::from(std::process::id()) * 37 + 3000;
        let first = listeners(3, start, &[]).unwrap();
        let ports: Vec<u16> = first.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        assert_eq!(taken_for_tcp(ports.clone()), ports);
        drop(first);
        // free, and said to be another's
        let others = listeners(3, start, &ports).unwrap();
        let mut all: Vec<u16> = others.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        all.extend(&ports);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
        let _udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, ports[0])).unwrap();
        let is_free = |_| {
            std::thread::yield_now();
            taken_for_tcp(ports.clone()).is_empty()
        };
        assert!((0..100_000).any(is_free), "{ports:?}");
        assert!(taken(ports.clone()).contains(&ports[0]));
    }

    #[test]
    fn candidates_lie_below_outgoing_ports_or_the_system_is_asked() {
        let usual = candidates(Some("32768\t60999\n"));
        assert_eq!((nth(&usual, 0), nth(&usual, 22_767), nth(&usual, 22_768)), (10_000, 32_767, 10_000));
        for crowded in ["1024\t65535\n", "11000 60999"] {
            assert_eq!(nth(&candidates(Some(crowded)), 5), 0);
        }
        assert_eq!(candidates(Some("nonsense")), candidates(None));
        assert!(Reserved::of(0).unwrap().port() > 0);
    }
}
