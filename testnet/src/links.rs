//! The links between nodes, as a proxy in this process: every node dials every other at a port of the runner, of its
//! own for each pair, and what passes there can be cut, stopped, delayed, lost or slowed down, each way by itself.
//!
//! It needs no rights and no network namespaces. What it cannot do is lose a packet of a TCP connection: the kernels
//! on both sides never see one missing. A lost segment is therefore what an application sees of it: it and everything
//! behind it come later, by the time after which TCP sends it again, doubled each time it is lost again; a connection
//! whose segment is lost too often breaks.
//!
//! One thread carries all links. It reads no more than may wait, so that a slow line is felt by the sender. All
//! connections from one node to another share one line, whichever of the two has dialled.

mod rules;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::simulator::Random;
use crate::{ports, process};

use rules::Rule;
pub(crate) use rules::{Felt, Rules};

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
/// For how long nodes are dialled before connections that are made get their turn.
const DIALLING: Duration = Duration::from_millis(20);
/// When connections are taken again after the system has refused one, as it does without open files to give.
const TAKEN_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Open files that a link needs: where it is dialled, both sockets of a connection, and the first of the next one.
const OPEN_FILES: usize = 4;
/// Open files that the runner needs beside links, by node and in all.
const OTHER_OPEN_FILES: (usize, usize) = (8, 128);
/// What poll says when the other side has closed, whatever it has sent before.
#[cfg(target_os = "linux")]
const GONE: libc::c_short = libc::POLLRDHUP;
/// Elsewhere it says so unasked.
#[cfg(not(target_os = "linux"))]
const GONE: libc::c_short = 0;
/// The thread sleeps no shorter.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// What the thread and its owner share.
struct Shared {
    rules: Rules,
    felt: Felt,
    stop: bool,
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees to it that this process may have the open files that links between so many nodes need.
///
/// # Errors
/// When the system does not allow as many, with what to do.
pub(crate) fn allow_open_files(nodes: usize) -> io::Result<()> {
    let links = nodes * nodes.saturating_sub(1);
    let needed = links * OPEN_FILES + nodes * OTHER_OPEN_FILES.0 + OTHER_OPEN_FILES.1;
    process::allow_open_files(needed as u64, &format!("links between {nodes} nodes"))
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
    /// Links to nodes that listen at these ports of the loopback address, dialled at others from `start` on; `seed`
    /// decides which segments are lost.
    ///
    /// # Errors
    /// When a port or a socket cannot be had.
    pub(crate) fn new(targets: &[u16], start: u64, seed: u64) -> io::Result<Self> {
        allow_open_files(targets.len())?;
        Self::between(targets, start, seed)
    }

    fn between(targets: &[u16], start: u64, seed: u64) -> io::Result<Self> {
        let nodes = targets.len();
        let (mut ports, mut links) = (vec![None; nodes * nodes], Vec::new());
        let mut listeners = ports::listeners(nodes * nodes.saturating_sub(1), start, targets)?.into_iter();
        for (to, target) in targets.iter().enumerate() {
            for (from, listener) in (0..nodes).filter(|from| *from != to).zip(&mut listeners) {
                listener.set_nonblocking(true)?;
                if let Some(slot) = ports.get_mut(from * nodes + to) {
                    *slot = Some(listener.local_addr()?.port());
                }
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, *target));
                links.push(Link { from, to, listener, target, connections: Vec::new() });
            }
        }
        let shared = Shared { rules: Rules::open(nodes), felt: Felt::default(), stop: false };
        let shared = Arc::new(Mutex::new(shared));
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let pump = Pump {
            links,
            lines: vec![None; nodes * nodes],
            shared: Arc::clone(&shared),
            woken,
            random: Random::named(seed, "links"),
            felt: Felt::default(),
            backwards: false,
            takes_again: None,
        };
        let thread = std::thread::spawn(move || pump.run());
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

    /// What happens from now on, to whatever is dialled or sent from now on.
    pub(crate) fn set(&self, rules: Rules) {
        locked(&self.shared).rules = rules;
        self.wake();
    }

    /// What faults came to so far.
    pub(crate) fn felt(&self) -> Felt {
        locked(&self.shared).felt
    }

    fn wake(&self) {
        // a full pipe wakes just as well
        let _ = (&self.wake).write(&[1]);
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        locked(&self.shared).stop = true;
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
    /// It has stood still.
    stalled: bool,
}

/// Bytes on their way.
#[derive(Default)]
struct Direction {
    waiting: VecDeque<Segment>,
    waiting_bytes: usize,
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

/// The line from one node to another.
struct Line<'a> {
    rule: Rule,
    /// Until then, when it is slow.
    busy_until: &'a mut Option<Instant>,
}

/// The connection is over.
struct Over;

struct Pump {
    links: Vec<Link>,
    /// Until when each line is busy, by sender and receiver.
    lines: Vec<Option<Instant>>,
    shared: Arc<Mutex<Shared>>,
    woken: UnixStream,
    random: Random,
    felt: Felt,
    /// Whose turn comes first changes every time.
    backwards: bool,
    /// Connections are taken again then.
    takes_again: Option<Instant>,
}

/// What everything that is carried in one turn has in common.
struct Turn<'a> {
    now: Instant,
    buffer: &'a mut [u8],
    random: &'a mut Random,
    felt: &'a mut Felt,
}

impl Pump {
    fn run(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        let shared = Arc::clone(&self.shared);
        loop {
            while self.woken.read(&mut buffer).is_ok_and(|read| read > 0) {}
            let rules = {
                // held while connections are taken and bytes are carried: what was dialled or sent after other rules
                // were set is not met by these
                let shared = locked(&shared);
                if shared.stop {
                    return;
                }
                self.take(&shared.rules);
                shared.rules.clone()
            };
            // not held: this may take long
            let dialled_all = self.dial(&rules);
            let rules = {
                let mut shared = locked(&shared);
                self.carry(&shared.rules, &mut buffer);
                shared.felt = self.felt;
                shared.rules.clone()
            };
            self.wait(&rules, dialled_all);
        }
    }

    /// Takes the connections that nodes have made.
    fn take(&mut self, rules: &Rules) {
        let now = Instant::now();
        if self.takes_again.is_some_and(|again| now < again) {
            return;
        }
        self.takes_again = None;
        for link in &mut self.links {
            if link.take(rules, &mut self.felt).is_err() {
                // it stays where it is, and would be tried again at once
                self.takes_again = Some(now + TAKEN_AGAIN_AFTER);
                return;
            }
        }
    }

    /// Dials the nodes for which connections were let through; false if some have to wait.
    fn dial(&mut self, rules: &Rules) -> bool {
        let (began, mut dialled_all) = (Instant::now(), true);
        for link in &mut self.links {
            if rules.get(link.from, link.to).stalled || rules.get(link.to, link.from).stalled {
                continue; // the first packet does not arrive, or its answer does not
            }
            link.connections.retain_mut(|connection| {
                if connection.server.is_some() {
                    return true;
                }
                dialled_all &= began.elapsed() < DIALLING;
                !dialled_all || connection.dial(link.target).is_ok()
            });
        }
        dialled_all
    }

    fn carry(&mut self, rules: &Rules, buffer: &mut [u8]) {
        let Self { links, lines, random, felt, .. } = self;
        let mut turn = Turn { now: Instant::now(), buffer, random, felt };
        let mut carry = |link: &mut Link| {
            let (there, back) = (link.from * rules.nodes + link.to, link.to * rules.nodes + link.from);
            let Ok([busy_there, busy_back]) = lines.get_disjoint_mut([there, back]) else { return };
            let mut there = Line { rule: rules.get(link.from, link.to), busy_until: busy_there };
            let mut back = Line { rule: rules.get(link.to, link.from), busy_until: busy_back };
            link.carry(&mut there, &mut back, &mut turn);
        };
        self.backwards = !self.backwards;
        if self.backwards {
            links.iter_mut().rev().for_each(&mut carry);
        } else {
            links.iter_mut().for_each(&mut carry);
        }
    }

    /// Sleeps until something can be read or written, or is due.
    fn wait(&mut self, rules: &Rules, dialled_all: bool) {
        let mut polled = vec![interest(self.woken.as_raw_fd(), libc::POLLIN)];
        let (mut next, now) = (if dialled_all { IDLE } else { Duration::ZERO }, Instant::now());
        if let Some(again) = self.takes_again {
            next = next.min(again.saturating_duration_since(now));
        }
        for link in &self.links {
            if self.takes_again.is_none() {
                polled.push(interest(link.listener.as_raw_fd(), libc::POLLIN));
            }
            let ways = [(link.from, link.to), (link.to, link.from)].map(|(from, to)| {
                let busy_until = self.lines.get(from * rules.nodes + to).copied().flatten();
                (rules.get(from, to), busy_until)
            });
            for connection in &link.connections {
                next = next.min(connection.interests(ways, now, &mut polled));
            }
        }
        let timeout = libc::c_int::try_from(next.max(SHORTEST_WAIT).as_millis()).unwrap_or(libc::c_int::MAX);
        if poll(&mut polled, timeout).is_err() {
            std::thread::sleep(SHORTEST_WAIT);
        }
    }
}

fn interest(descriptor: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: descriptor, events, revents: 0 }
}

/// Waits at most so many milliseconds for any of these.
fn poll(polled: &mut [libc::pollfd], timeout: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are of one live slice of plain structs, which poll fills in.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the node at the other end has closed its end. Whoever dials and only stops sending counts as gone, too.
fn is_gone(socket: &TcpStream) -> bool {
    let mut polled = [interest(socket.as_raw_fd(), GONE)];
    poll(&mut polled, 0).is_ok() && polled.iter().any(|socket| socket.revents != 0)
}

impl Link {
    /// Takes the connections that were made.
    ///
    /// # Errors
    /// When one is there and the system does not hand it out, such as without open files.
    fn take(&mut self, rules: &Rules, felt: &mut Felt) -> io::Result<()> {
        let cut = rules.get(self.from, self.to).cut || rules.get(self.to, self.from).cut;
        loop {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => return Err(error),
                },
            };
            if self.connections.len() >= MAX_CONNECTIONS {
                self.connections.retain(|connection| connection.server.is_some() || !is_gone(&connection.client));
            }
            felt.cut += u64::from(cut);
            let prepared = client.set_nonblocking(true).and_then(|()| client.set_nodelay(true)).is_ok();
            if cut || !prepared || self.connections.len() >= MAX_CONNECTIONS {
                continue; // dropped, which closes it
            }
            let (there, back) = (Direction::default(), Direction::default());
            self.connections.push(Connection { client, server: None, there, back, stalled: false });
        }
    }

    fn carry(&mut self, there: &mut Line<'_>, back: &mut Line<'_>, turn: &mut Turn<'_>) {
        if there.rule.cut || back.rule.cut {
            turn.felt.cut += self.connections.len() as u64;
            return self.connections.clear();
        }
        self.connections.retain_mut(|connection| connection.carry(there, back, turn).is_ok());
        if !self.connections.is_empty() {
            self.connections.rotate_left(1); // another is the first next time
        }
    }
}

impl Connection {
    /// Adds what is waited for, by what happens to bytes there and back; returns how long it may be waited at most.
    fn interests(
        &self,
        [there, back]: [(Rule, Option<Instant>); 2],
        now: Instant,
        polled: &mut Vec<libc::pollfd>,
    ) -> Duration {
        let Some(server) = &self.server else {
            polled.push(interest(self.client.as_raw_fd(), GONE));
            return IDLE;
        };
        let mut next = IDLE;
        for (direction, (rule, busy_until)) in [(&self.there, there), (&self.back, back)] {
            if let Some(segment) = direction.waiting.front().filter(|segment| segment.due > now) {
                next = next.min(segment.due - now);
            }
            let free = free_in(rule, busy_until, now);
            if direction.takes_more(rule) && !free.is_zero() {
                next = next.min(free);
            }
        }
        let ends = [
            (&self.client, (&self.there, there), (&self.back, back)),
            (server, (&self.back, back), (&self.there, there)),
        ];
        for (socket, (reads, (rule, busy_until)), (writes, (other_rule, _))) in ends {
            let mut events = 0;
            if reads.takes_more(rule) && free_in(rule, busy_until, now).is_zero() {
                events |= libc::POLLIN;
            }
            if !other_rule.stalled && writes.waiting.front().is_some_and(|segment| segment.due <= now) {
                events |= libc::POLLOUT;
            }
            if events != 0 {
                polled.push(interest(socket.as_raw_fd(), events));
            }
        }
        next
    }

    fn dial(&mut self, target: SocketAddr) -> Result<(), Over> {
        let server = TcpStream::connect_timeout(&target, CONNECT).map_err(|_| Over)?;
        server.set_nonblocking(true).map_err(|_| Over)?;
        server.set_nodelay(true).map_err(|_| Over)?;
        self.server = Some(server);
        Ok(())
    }

    fn carry(&mut self, there: &mut Line<'_>, back: &mut Line<'_>, turn: &mut Turn<'_>) -> Result<(), Over> {
        if (there.rule.stalled || back.rule.stalled) && !self.stalled {
            self.stalled = true;
            turn.felt.stalled += 1;
        }
        let Some(server) = &self.server else {
            // nobody else would ever learn of it
            return if is_gone(&self.client) { Err(Over) } else { Ok(()) };
        };
        self.there.carry(&self.client, server, there, turn)?;
        self.back.carry(server, &self.client, back, turn)?;
        if self.there.told && self.back.told { Err(Over) } else { Ok(()) }
    }
}

/// In how long a line takes more bytes.
fn free_in(rule: Rule, busy_until: Option<Instant>, now: Instant) -> Duration {
    let slow = busy_until.filter(|_| rule.bytes_per_second.is_some());
    slow.map_or(Duration::ZERO, |until| until.saturating_duration_since(now).saturating_sub(WAITING_ON_SLOW))
}

impl Direction {
    /// Whether more may be read, as far as this connection goes.
    fn takes_more(&self, rule: Rule) -> bool {
        !self.ended && !rule.stalled && self.waiting_bytes < rule.waiting_bytes()
    }

    fn carry(
        &mut self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        line: &mut Line<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<(), Over> {
        let rule = line.rule;
        if rule.stalled {
            return Ok(());
        }
        let mut left = rule.turn_bytes();
        while left > 0 && self.takes_more(rule) && free_in(rule, *line.busy_until, turn.now).is_zero() {
            let room = turn.buffer.len().min(left).min(rule.waiting_bytes());
            match from.read(turn.buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    left -= read;
                    self.take(read, line, turn)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Over),
            }
        }
        while let Some(segment) = self.waiting.front_mut().filter(|segment| segment.due <= turn.now) {
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

    /// Puts the first bytes of the buffer on their way.
    fn take(&mut self, bytes: usize, line: &mut Line<'_>, turn: &mut Turn<'_>) -> Result<(), Over> {
        let (rule, now) = (line.rule, turn.now);
        let plain = rule.per_mille == 0 && rule.bytes_per_second.is_none();
        let bytes = turn.buffer.get(..bytes).unwrap_or_default();
        for bytes in bytes.chunks(if plain { READ_BYTES } else { SEGMENT_BYTES }) {
            let mut due = now;
            if let Some(rate) = rule.bytes_per_second {
                let free = line.busy_until.map_or(now, |until| until.max(now));
                due = free + Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64);
                *line.busy_until = Some(due);
                turn.felt.slowed += 1;
            }
            due += rule.delay;
            turn.felt.delayed += u64::from(!rule.delay.is_zero());
            let (mut losses, mut again) = (0, SENT_AGAIN_AFTER);
            while rule.per_mille > 0 && turn.random.per_mille(rule.per_mille) {
                losses += 1;
                turn.felt.lost += 1;
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
mod tests;
