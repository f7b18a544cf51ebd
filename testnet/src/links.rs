//! The links between nodes, as a proxy in this process: every node dials every other at a port of the runner, of its
//! own for each pair, and what passes there can be cut, stopped, delayed, lost or slowed down, each way by itself.
//!
//! It needs no rights and no network namespaces. What it cannot do is lose a packet of a TCP connection: the kernels
//! on both sides never see one missing. A lost segment is therefore what an application sees of it: it and everything
//! behind it come later, by the time after which TCP sends it again, doubled each time it is lost again; a connection
//! whose segment is lost too often breaks.
//!
//! One thread carries all links. It reads no more than may wait, so that a slow line is felt by the sender.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::manifest::Disturbance;
use crate::simulator::Random;

/// Bytes of a segment, as Ethernet carries them.
const SEGMENT_BYTES: usize = 1460;
/// When a lost segment is sent again; doubled each time that it is lost again.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// A segment that is lost so often breaks its connection.
const MOST_LOSSES: u32 = 6;
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// Bytes that wait in one direction of a connection of a line that is not slow.
const WAITING_BYTES: usize = 1 << 20;
/// For how long a slow line's bytes may wait; what the sender has beyond it waits there.
const WAITING_ON_SLOW: Duration = Duration::from_millis(250);
/// Connections of one link; further ones are closed at once.
const MAX_CONNECTIONS: usize = 32;
/// How long the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_millis(500);
/// How long a connection to a node of this machine may take.
const CONNECT: Duration = Duration::from_millis(200);
/// The thread sleeps no shorter.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// What happens to bytes in one direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rule {
    cut: bool,
    stalled: bool,
    delay: Duration,
    per_mille: u64,
    bytes_per_second: Option<u64>,
}

impl Rule {
    /// This and another disturbance at once.
    pub(crate) fn add(&mut self, disturbance: Disturbance) {
        match disturbance {
            Disturbance::Cut => self.cut = true,
            Disturbance::Stall => self.stalled = true,
            Disturbance::Delay(delay) => self.delay = self.delay.saturating_add(delay),
            Disturbance::Loss { per_mille } => self.per_mille = self.per_mille.max(per_mille),
            Disturbance::Slow { bytes_per_second } => {
                let slower = self.bytes_per_second.map_or(bytes_per_second, |slow| slow.min(bytes_per_second));
                self.bytes_per_second = Some(slower);
            }
        }
    }

    /// Bytes that may wait in one direction.
    fn waiting_bytes(&self) -> usize {
        let Some(rate) = self.bytes_per_second else { return WAITING_BYTES };
        let waits = self.delay.saturating_add(WAITING_ON_SLOW).as_secs_f64();
        ((rate as f64 * waits) as usize).clamp(SEGMENT_BYTES, WAITING_BYTES)
    }
}

/// The rules of all directions, by sender and receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    nodes: usize,
    rules: Vec<Rule>,
}

impl Rules {
    /// Nothing happens to any byte.
    pub(crate) fn open(nodes: usize) -> Self {
        Self { nodes, rules: vec![Rule::default(); nodes * nodes] }
    }

    /// The rule for what `from` sends `to`.
    pub(crate) fn of(&mut self, from: usize, to: usize) -> Option<&mut Rule> {
        self.rules.get_mut(from * self.nodes + to)
    }

    fn get(&self, from: usize, to: usize) -> Rule {
        self.rules.get(from * self.nodes + to).copied().unwrap_or_default()
    }
}

/// What the thread and its owner share.
struct Shared {
    rules: Rules,
    stop: bool,
}

/// The links of a testnet; they end when this is dropped.
pub(crate) struct Links {
    shared: Arc<Mutex<Shared>>,
    ports: Vec<Option<u16>>,
    nodes: usize,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Links {
    /// Links to nodes that listen at these ports of the loopback address; `seed` decides which segments are lost.
    ///
    /// # Errors
    /// When a port cannot be had.
    pub(crate) fn new(targets: &[u16], seed: u64) -> io::Result<Self> {
        let nodes = targets.len();
        let (mut ports, mut pumps) = (vec![None; nodes * nodes], Vec::new());
        for (to, target) in targets.iter().enumerate() {
            for from in (0..nodes).filter(|from| *from != to) {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                listener.set_nonblocking(true)?;
                if let Some(slot) = ports.get_mut(from * nodes + to) {
                    *slot = Some(listener.local_addr()?.port());
                }
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, *target));
                pumps.push(Link { from, to, listener, target, connections: Vec::new() });
            }
        }
        let shared = Arc::new(Mutex::new(Shared { rules: Rules::open(nodes), stop: false }));
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            Pump { links: pumps, shared: theirs, woken, random: Random::named(seed, "links") }.run();
        });
        Ok(Self { shared, ports, nodes, wake, thread: Some(thread) })
    }

    /// Where `from` dials `to`.
    pub(crate) fn port(&self, from: usize, to: usize) -> Option<u16> {
        self.ports.get(from * self.nodes + to).copied().flatten()
    }

    /// Every port that nodes are dialled at.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.iter().copied().flatten()
    }

    /// What happens from now on.
    pub(crate) fn set(&self, rules: Rules) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).rules = rules;
        self.wake();
    }

    fn wake(&self) {
        // a full pipe wakes just as well
        let _ = (&self.wake).write(&[1]);
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has panicked if it cannot be joined, and its sockets are closed either way
        }
    }
}

/// Where one node dials another.
struct Link {
    from: usize,
    to: usize,
    listener: TcpListener,
    target: SocketAddr,
    connections: Vec<Connection>,
}

/// A node that dials, and the node that it dialled, once it was let through.
struct Connection {
    client: TcpStream,
    server: Option<TcpStream>,
    /// From the client to the server.
    there: Direction,
    back: Direction,
}

/// Bytes on their way.
#[derive(Default)]
struct Direction {
    waiting: VecDeque<Segment>,
    waiting_bytes: usize,
    /// The line is busy until then.
    busy_until: Option<Instant>,
    /// Nothing arrives before this, since TCP keeps the order.
    last_due: Option<Instant>,
    /// The sender has said everything.
    ended: bool,
    /// The receiver was told so.
    told: bool,
}

struct Segment {
    bytes: Vec<u8>,
    at: usize,
    due: Instant,
}

/// The connection is over.
struct Over;

struct Pump {
    links: Vec<Link>,
    shared: Arc<Mutex<Shared>>,
    woken: UnixStream,
    random: Random,
}

impl Pump {
    fn run(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            while self.woken.read(&mut buffer).is_ok_and(|read| read > 0) {}
            let rules = {
                // held meanwhile: whoever has set other rules is not met by these any more
                let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                if shared.stop {
                    return;
                }
                let (rules, now) = (&shared.rules, Instant::now());
                for link in &mut self.links {
                    link.accept(rules);
                    link.carry(rules, now, &mut buffer, &mut self.random);
                }
                rules.clone()
            };
            self.wait(&rules);
        }
    }

    /// Sleeps until something can be read or written, or is due.
    fn wait(&self, rules: &Rules) {
        let mut polled = vec![interest(self.woken.as_raw_fd(), libc::POLLIN)];
        let (mut next, now) = (IDLE, Instant::now());
        for link in &self.links {
            polled.push(interest(link.listener.as_raw_fd(), libc::POLLIN));
            for connection in &link.connections {
                connection.interests(rules.get(link.from, link.to), rules.get(link.to, link.from), &mut polled);
                for direction in [&connection.there, &connection.back] {
                    let Some(segment) = direction.waiting.front().filter(|segment| segment.due > now) else { continue };
                    next = next.min(segment.due - now);
                }
            }
        }
        let timeout = libc::c_int::try_from(next.max(SHORTEST_WAIT).as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the pointer and the length are of one live vector of plain structs, which poll fills in.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
        if result < 0 {
            std::thread::sleep(SHORTEST_WAIT);
        }
    }
}

fn interest(descriptor: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: descriptor, events, revents: 0 }
}

impl Link {
    fn accept(&mut self, rules: &Rules) {
        while let Ok((client, _)) = self.listener.accept() {
            let cut = rules.get(self.from, self.to).cut || rules.get(self.to, self.from).cut;
            let prepared = client.set_nonblocking(true).and_then(|()| client.set_nodelay(true)).is_ok();
            if cut || !prepared || self.connections.len() >= MAX_CONNECTIONS {
                continue; // dropped, which closes it
            }
            let (there, back) = (Direction::default(), Direction::default());
            self.connections.push(Connection { client, server: None, there, back });
        }
    }

    fn carry(&mut self, rules: &Rules, now: Instant, buffer: &mut [u8], random: &mut Random) {
        let (there, back) = (rules.get(self.from, self.to), rules.get(self.to, self.from));
        let target = self.target;
        self.connections.retain_mut(|connection| {
            !(there.cut || back.cut) && connection.carry((there, back), target, now, buffer, random).is_ok()
        });
    }
}

impl Connection {
    fn interests(&self, there: Rule, back: Rule, polled: &mut Vec<libc::pollfd>) {
        let now = Instant::now();
        let mut of = |socket: &TcpStream, reads: (&Direction, Rule), writes: (&Direction, Rule)| {
            let mut events = 0;
            if !reads.0.ended && !reads.1.stalled && reads.0.waiting_bytes < reads.1.waiting_bytes() {
                events |= libc::POLLIN;
            }
            if !writes.1.stalled && writes.0.waiting.front().is_some_and(|segment| segment.due <= now) {
                events |= libc::POLLOUT;
            }
            if events != 0 {
                polled.push(interest(socket.as_raw_fd(), events));
            }
        };
        let Some(server) = &self.server else { return };
        of(&self.client, (&self.there, there), (&self.back, back));
        of(server, (&self.back, back), (&self.there, there));
    }

    fn carry(
        &mut self,
        (there, back): (Rule, Rule),
        target: SocketAddr,
        now: Instant,
        buffer: &mut [u8],
        random: &mut Random,
    ) -> Result<(), Over> {
        if self.server.is_none() {
            if there.stalled || back.stalled {
                return Ok(()); // the first packet does not arrive, or its answer does not
            }
            let server = TcpStream::connect_timeout(&target, CONNECT).map_err(|_| Over)?;
            server.set_nonblocking(true).map_err(|_| Over)?;
            server.set_nodelay(true).map_err(|_| Over)?;
            self.server = Some(server);
        }
        let Some(server) = &self.server else { return Ok(()) };
        self.there.carry(&self.client, server, there, now, buffer, random)?;
        self.back.carry(server, &self.client, back, now, buffer, random)?;
        if self.there.told && self.back.told { Err(Over) } else { Ok(()) }
    }
}

impl Direction {
    fn carry(
        &mut self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        rule: Rule,
        now: Instant,
        buffer: &mut [u8],
        random: &mut Random,
    ) -> Result<(), Over> {
        if rule.stalled {
            return Ok(());
        }
        while !self.ended && self.waiting_bytes < rule.waiting_bytes() {
            let room = buffer.len().min(rule.waiting_bytes());
            match from.read(buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => self.ended = true,
                Ok(read) => self.take(buffer.get(..read).unwrap_or_default(), rule, now, random)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        while let Some(segment) = self.waiting.front_mut().filter(|segment| segment.due <= now) {
            match to.write(segment.bytes.get(segment.at..).unwrap_or_default()) {
                Ok(0) => return Err(Over),
                Ok(written) => {
                    segment.at += written;
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(written);
                    if segment.at >= segment.bytes.len() {
                        self.waiting.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        if self.ended && self.waiting.is_empty() && !self.told {
            self.told = true;
            to.shutdown(Shutdown::Write).map_err(|_| Over)?;
        }
        Ok(())
    }

    /// Puts bytes on their way.
    fn take(&mut self, bytes: &[u8], rule: Rule, now: Instant, random: &mut Random) -> Result<(), Over> {
        let plain = rule.per_mille == 0 && rule.bytes_per_second.is_none();
        for bytes in bytes.chunks(if plain { READ_BYTES } else { SEGMENT_BYTES }) {
            let mut due = now;
            if let Some(rate) = rule.bytes_per_second {
                let free = self.busy_until.map_or(now, |until| until.max(now));
                due = free + Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64);
                self.busy_until = Some(due);
            }
            due += rule.delay;
            let (mut losses, mut again) = (0, SENT_AGAIN_AFTER);
            while rule.per_mille > 0 && random.per_mille(rule.per_mille) {
                losses += 1;
                if losses >= MOST_LOSSES {
                    return Err(Over);
                }
                due += again;
                again *= 2;
            }
            let due = self.last_due.map_or(due, |last| last.max(due));
            self.last_due = Some(due);
            self.waiting_bytes += bytes.len();
            self.waiting.push_back(Segment { bytes: bytes.to_vec(), at: 0, due });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread::spawn;

    use super::*;

    /// Two nodes, of which the second sends back what it gets; a connection of the first with it.
    fn echo(seed: u64) -> (Links, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = listener.local_addr().unwrap().port();
        let echoing = listener.try_clone().unwrap();
        spawn(move || {
            while let Ok((stream, _)) = echoing.accept() {
                spawn(move || {
                    let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        });
        (Links::new(&[1, target], seed).unwrap(), listener)
    }

    fn dial(links: &Links) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, links.port(0, 1).unwrap())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn rules(disturb: &[(usize, usize, Disturbance)]) -> Rules {
        let mut rules = Rules::open(2);
        for (from, to, disturbance) in disturb {
            rules.of(*from, *to).unwrap().add(*disturbance);
        }
        rules
    }

    fn there_and_back(stream: &mut TcpStream, bytes: usize) -> Duration {
        let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        let started = Instant::now();
        let (mut writer, copy) = (stream.try_clone().unwrap(), sent.clone());
        let writes = spawn(move || writer.write_all(&copy).unwrap());
        let mut got = vec![0; bytes];
        stream.read_exact(&mut got).unwrap();
        writes.join().unwrap();
        assert!(got == sent, "every byte in its place");
        started.elapsed()
    }

    #[test]
    fn everything_passes_and_ends_as_it_does_without() {
        let (links, _listener) = echo(1);
        let mut stream = dial(&links);
        there_and_back(&mut stream, 3_000_000);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the end is passed on, and the answer to it");
        let ports: Vec<u16> = links.ports().collect();
        assert_eq!(ports.len(), 2);
        drop(links);
        for port in ports {
            assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "no port is left");
        }
    }

    #[test]
    fn each_way_is_delayed_by_itself_and_slow_lines_take_their_time() {
        let (links, _listener) = echo(2);
        let mut stream = dial(&links);
        there_and_back(&mut stream, 10);
        links.set(rules(&[(0, 1, Disturbance::Delay(Duration::from_millis(150)))]));
        let took = there_and_back(&mut stream, 10);
        assert!(took >= Duration::from_millis(140), "{took:?}");
        links.set(rules(&[(1, 0, Disturbance::Slow { bytes_per_second: 100_000 })]));
        let slow = there_and_back(&mut stream, 50_000);
        assert!(slow >= Duration::from_millis(450), "{slow:?}");
        links.set(Rules::open(2));
        assert!(there_and_back(&mut stream, 50_000) < slow, "and at once again");
    }

    #[test]
    fn lost_segments_come_later_and_in_order() {
        let (links, _listener) = echo(3);
        let mut stream = dial(&links);
        links.set(rules(&[(0, 1, Disturbance::Loss { per_mille: 100 })]));
        let took = there_and_back(&mut stream, 60 * SEGMENT_BYTES);
        assert!(took >= SENT_AGAIN_AFTER, "{took:?}");
    }

    #[test]
    fn a_stalled_link_looks_alive_and_a_cut_one_does_not() {
        let (links, _listener) = echo(4);
        let mut stream = dial(&links);
        there_and_back(&mut stream, 10);
        links.set(rules(&[(1, 0, Disturbance::Stall)]));
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.write_all(b"anybody?").unwrap();
        let kind = stream.read(&mut [0; 8]).unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind:?}");
        links.set(Rules::open(2));
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut late = [0; 8];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"anybody?", "what waited arrives");

        links.set(rules(&[(0, 1, Disturbance::Cut)]));
        assert!(matches!(stream.read(&mut late), Ok(0) | Err(_)), "the connection breaks");
        let mut refused = dial(&links);
        assert!(matches!(refused.read(&mut late), Ok(0) | Err(_)), "and none is made");
        links.set(Rules::open(2));
        there_and_back(&mut dial(&links), 10);
    }
}
