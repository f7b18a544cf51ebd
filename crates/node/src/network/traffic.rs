//! How many bytes went out and came in, and what for.
//!
//! TCP is counted at the socket: everything that libp2p writes and reads, encryption and framing included.
//! QUIC is counted at its streams: libp2p hides the UDP socket, whose handshakes, headers and repetitions add to
//! that. Relayed connections run inside counted ones and are not counted again.
//!
//! What bytes are for is told by the stream that carries them: the first bytes that either side writes to a stream
//! name its protocol (multistream-select), so no protocol needs to count by itself. What is left of a TCP
//! connection is handshakes, encryption and multiplexing.

use std::collections::HashMap;
use std::io;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use serde::{Deserialize, Serialize};

use super::codec::{ASK, CHUNK};

/// What both sides of a stream say first in multistream-select.
const NEGOTIATION: &[u8] = b"/multistream/1.0.0\n";
/// What one says in it to a protocol that it does not speak.
const NOT_SPOKEN: &[u8] = b"na\n";
/// How the names of gossipsub's protocols begin.
const GOSSIP: &[u8] = b"/meshsub/";
/// How the names of the protocols of relaying begin.
const RELAY: &[u8] = b"/libp2p/circuit/";
/// A stream that names no protocol within so many bytes is one of upkeep.
const NEGOTIATION_BYTES: usize = 512;

/// Bytes since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes sent.
    pub sent: Split,
    /// Bytes received.
    pub received: Split,
    /// Own gossip messages that no peer took: queues were full, or nobody was there.
    pub unpublished: u64,
    /// Gossip messages dropped because the node did not keep up.
    pub dropped: u64,
    /// Gossip messages of members that sent more of them than they may, dropped unread.
    pub unread: u64,
    /// Questions and requests for parts of ballots that were answered busy.
    pub busy: u64,
}

/// Bytes in one direction, by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Ballot bodies with their proofs, and the requests for them.
    pub bodies: u64,
    /// What members ask each other, and the answers.
    pub questions: u64,
    /// Signed statements as gossip, and gossipsub's own messages.
    pub gossip: u64,
    /// Greetings, identify, ping, discovery.
    pub upkeep: u64,
    /// Handshakes, encryption and multiplexing; of TCP alone.
    pub framing: u64,
}

impl Split {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_name().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Each with its name.
    pub fn by_name(&self) -> [(&'static str, u64); 5] {
        let Self { bodies, questions, gossip, upkeep, framing } = *self;
        [("bodies", bodies), ("questions", questions), ("gossip", gossip), ("upkeep", upkeep), ("framing", framing)]
    }

    /// The inverse of [`by_name`](Self::by_name).
    pub fn from_names(bytes: impl Fn(&str) -> u64) -> Self {
        Self {
            bodies: bytes("bodies"),
            questions: bytes("questions"),
            gossip: bytes("gossip"),
            upkeep: bytes("upkeep"),
            framing: bytes("framing"),
        }
    }

    fn with(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            bodies: with(self.bodies, other.bodies),
            questions: with(self.questions, other.questions),
            gossip: with(self.gossip, other.gossip),
            upkeep: with(self.upkeep, other.upkeep),
            framing: with(self.framing, other.framing),
        }
    }
}

impl Add for Split {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(&other, u64::saturating_add)
    }
}

impl Sub for Split {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(&other, u64::saturating_sub)
    }
}

/// Sent and received bytes.
#[derive(Debug, Default)]
struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    fn add(&self, sent: u64, received: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
    }

    /// Takes back what was added.
    fn take(&self, sent: u64, received: u64) {
        self.sent.fetch_sub(sent, Ordering::Relaxed);
        self.received.fetch_sub(received, Ordering::Relaxed);
    }
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Bodies,
    Questions,
    Gossip,
    /// What passes between others, or comes from others through a member that relays; counted as upkeep.
    Relayed,
    Upkeep,
}

/// All that is counted, shared by all connections.
#[derive(Debug, Default)]
pub(super) struct Counters {
    all: Meter,
    bodies: Meter,
    questions: Meter,
    gossip: Meter,
    upkeep: Meter,
    /// Of streams that have not named their protocol.
    unnamed: Meter,
    /// The most that was told: sockets write later than their streams, and a counter does not go back.
    framing: Meter,
    pub(super) unpublished: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) unread: AtomicU64,
    pub(super) busy: AtomicU64,
    /// Of members, bytes received that are no parts of ballots.
    unasked: HashMap<PeerId, Arc<AtomicU64>>,
}

impl Counters {
    /// Counts what these peers send that is no part of a ballot, each by itself.
    pub(super) fn of_peers(peers: impl IntoIterator<Item = PeerId>) -> Self {
        Self { unasked: peers.into_iter().map(|peer| (peer, Arc::default())).collect(), ..Self::default() }
    }

    /// Bytes received from a peer that are no parts of ballots; framing is not among them.
    pub(super) fn unasked(&self, peer: &PeerId) -> u64 {
        self.unasked.get(peer).map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }

    pub(super) fn read(&self) -> Traffic {
        let split = |of: fn(&Meter) -> &AtomicU64| {
            let read = |meter: &Meter| of(meter).load(Ordering::Relaxed);
            let streams = Split {
                bodies: read(&self.bodies),
                questions: read(&self.questions),
                gossip: read(&self.gossip),
                upkeep: read(&self.upkeep),
                framing: 0,
            };
            let named = streams.total().saturating_add(read(&self.unnamed));
            let framing = read(&self.all).saturating_sub(named);
            Split { framing: of(&self.framing).fetch_max(framing, Ordering::Relaxed).max(framing), ..streams }
        };
        Traffic {
            sent: split(|meter| &meter.sent),
            received: split(|meter| &meter.received),
            unpublished: self.unpublished.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            unread: self.unread.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
        }
    }

    fn of(&self, purpose: Purpose) -> &Meter {
        match purpose {
            Purpose::Bodies => &self.bodies,
            Purpose::Questions => &self.questions,
            Purpose::Gossip => &self.gossip,
            Purpose::Relayed | Purpose::Upkeep => &self.upkeep,
        }
    }
}

/// What a stream is for, from the first bytes written to it; `None` while they do not tell.
fn purpose(mut written: &[u8]) -> Option<Purpose> {
    if written.len() > NEGOTIATION_BYTES {
        return Some(Purpose::Upkeep);
    }
    loop {
        // each message is preceded by its length; names of 128 bytes and more are none of ours
        let (length, rest) = written.split_first()?;
        if *length >= 128 {
            return Some(Purpose::Upkeep);
        }
        let (message, rest) = rest.split_at_checked(usize::from(*length))?;
        written = rest;
        if message == NEGOTIATION || message == NOT_SPOKEN {
            continue;
        }
        let name = message.strip_suffix(b"\n").unwrap_or(message);
        return Some(match name {
            name if name == CHUNK.as_ref().as_bytes() => Purpose::Bodies,
            name if name == ASK.as_ref().as_bytes() => Purpose::Questions,
            name if name.starts_with(GOSSIP) => Purpose::Gossip,
            name if name.starts_with(RELAY) => Purpose::Relayed,
            _ => Purpose::Upkeep,
        });
    }
}

/// Counts what passes.
pub(super) trait Count {
    /// Bytes that were written.
    fn sent(&mut self, bytes: &[u8]);
    /// How many were read.
    fn received(&mut self, bytes: usize);
}

/// Counts a socket.
pub(super) struct Socket(Arc<Counters>);

impl Count for Socket {
    fn sent(&mut self, bytes: &[u8]) {
        self.0.all.add(bytes.len() as u64, 0);
    }

    fn received(&mut self, bytes: usize) {
        self.0.all.add(0, bytes as u64);
    }
}

/// Counts one stream of a connection.
pub(super) struct Stream {
    counters: Arc<Counters>,
    /// Whether nothing counts the socket below.
    whole: bool,
    label: Label,
    /// Where bytes that are no parts of ballots are counted.
    unasked: Option<Arc<AtomicU64>>,
}

enum Label {
    Known(Purpose),
    /// What was written so far, and how much was read.
    Unknown(Vec<u8>, u64),
}

impl Stream {
    fn new(counters: Arc<Counters>, whole: bool, unasked: Option<Arc<AtomicU64>>) -> Self {
        Self { counters, whole, label: Label::Unknown(Vec::new(), 0), unasked }
    }
}

impl Count for Stream {
    fn sent(&mut self, bytes: &[u8]) {
        if self.whole {
            self.counters.all.add(bytes.len() as u64, 0);
        }
        match &mut self.label {
            Label::Known(purpose) => self.counters.of(*purpose).add(bytes.len() as u64, 0),
            Label::Unknown(written, received) => {
                written.extend_from_slice(bytes);
                self.counters.unnamed.add(bytes.len() as u64, 0);
                if let Some(purpose) = purpose(written) {
                    let sent = written.len() as u64;
                    self.counters.of(purpose).add(sent, *received);
                    self.counters.unnamed.take(sent, *received);
                    self.label = Label::Known(purpose);
                }
            }
        }
    }

    fn received(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        if self.whole {
            self.counters.all.add(0, bytes);
        }
        if let Some(unasked) = &self.unasked
            && !matches!(self.label, Label::Known(Purpose::Bodies | Purpose::Relayed))
        {
            unasked.fetch_add(bytes, Ordering::Relaxed);
        }
        match &mut self.label {
            Label::Known(purpose) => self.counters.of(*purpose).add(0, bytes),
            Label::Unknown(_, received) => {
                *received += bytes;
                self.counters.unnamed.add(0, bytes);
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Label::Unknown(written, received) = &self.label {
            let sent = written.len() as u64;
            self.counters.upkeep.add(sent, *received);
            self.counters.unnamed.take(sent, *received);
        }
    }
}

/// A stream whose bytes are counted.
pub(super) struct Counted<S, C> {
    inner: S,
    count: C,
}

impl<S> Counted<S, Socket> {
    /// Counts what a socket carries.
    pub(super) fn socket(inner: S, counters: Arc<Counters>) -> Self {
        Self { inner, count: Socket(counters) }
    }
}

impl<S: AsyncRead + Unpin, C: Count + Unpin> AsyncRead for Counted<S, C> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(context, bytes))?;
        self.count.received(read);
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read_vectored(context, bytes))?;
        self.count.received(read);
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin, C: Count + Unpin> AsyncWrite for Counted<S, C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.count.sent(bytes.get(..written).unwrap_or(bytes));
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, bytes))?;
        let mut left = written;
        for slice in bytes {
            let of_slice = left.min(slice.len());
            self.count.sent(slice.get(..of_slice).unwrap_or(slice));
            left -= of_slice;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// A connection whose streams' bytes are counted.
pub(super) struct CountedMuxer<M> {
    inner: M,
    counters: Arc<Counters>,
    whole: bool,
    unasked: Option<Arc<AtomicU64>>,
}

impl<M> CountedMuxer<M> {
    /// Counts what streams are for, and, of a connection whose socket is not counted, their bytes.
    pub(super) fn new(inner: M, peer: &PeerId, counters: Arc<Counters>, whole: bool) -> Self {
        let unasked = counters.unasked.get(peer).cloned();
        Self { inner, counters, whole, unasked }
    }

    fn counted<S>(&self, inner: S) -> Counted<S, Stream> {
        Counted { inner, count: Stream::new(Arc::clone(&self.counters), self.whole, self.unasked.clone()) }
    }
}

impl<M> StreamMuxer for CountedMuxer<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
{
    type Substream = Counted<M::Substream, Stream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(context))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(context))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(context)
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(messages: &[&str]) -> Vec<u8> {
        messages.iter().flat_map(|message| [&[message.len() as u8], message.as_bytes()].concat()).collect()
    }

    #[test]
    fn streams_are_told_by_the_protocol_that_they_name() {
        let header = "/multistream/1.0.0\n";
        let names = [
            ("/fedprune/chunk/1\n", Purpose::Bodies),
            ("/fedprune/ask/1\n", Purpose::Questions),
            ("/meshsub/1.2.0\n", Purpose::Gossip),
            ("/libp2p/circuit/relay/0.2.0/stop\n", Purpose::Relayed),
            ("/ipfs/id/1.0.0\n", Purpose::Upkeep),
        ];
        for (name, expected) in names {
            for messages in [vec![header, name], vec![header, "na\n", name]] {
                let said = said(&messages);
                assert_eq!(purpose(&said), Some(expected), "{name}");
                for length in 0..said.len() {
                    assert_eq!(purpose(&said[..length]), None, "{length} bytes of {name}");
                }
                assert_eq!(purpose(&[said, b"what follows".to_vec()].concat()), Some(expected));
            }
        }
        assert_eq!(purpose(&[0x80]), Some(Purpose::Upkeep));
        assert_eq!(purpose(&said(&[header; 26])), Some(Purpose::Upkeep), "no end of headers");
    }

    #[test]
    fn what_was_counted_before_the_name_counts_for_it() {
        let counters = Arc::new(Counters::default());
        let mut stream = Stream::new(Arc::clone(&counters), true, None);
        let said = said(&["/multistream/1.0.0\n", "/fedprune/ask/1\n"]);
        stream.received(7);
        stream.sent(&said[..5]);
        assert_eq!(counters.read().sent, Split::default());
        stream.sent(&said[5..]);
        stream.sent(&[0; 100]);
        stream.received(1);
        let traffic = counters.read();
        assert_eq!(traffic.sent, Split { questions: said.len() as u64 + 100, ..Split::default() });
        assert_eq!(traffic.received, Split { questions: 8, ..Split::default() });
        let mut silent = Stream::new(Arc::clone(&counters), false, None);
        silent.sent(b"x");
        drop(silent);
        Socket(Arc::clone(&counters)).sent(&[0; 50]);
        let traffic = counters.read();
        assert_eq!((traffic.sent.upkeep, traffic.sent.framing), (1, 49));
        assert_eq!(traffic.sent.total(), said.len() as u64 + 150);
    }

    #[test]
    fn no_count_goes_back_while_sockets_are_behind_their_streams() {
        let counters = Arc::new(Counters::default());
        let (mut socket, mut stream) = (Socket(Arc::clone(&counters)), Stream::new(Arc::clone(&counters), false, None));
        let said = said(&["/multistream/1.0.0\n", "/fedprune/ask/1\n"]);
        socket.sent(&[0; 20]);
        let mut before = counters.read().sent;
        for piece in said.chunks(3).chain([&[0; 300][..], &[0; 7]]) {
            stream.sent(piece);
            for written in [0, piece.len() + 1] {
                socket.sent(&vec![0; written]);
                let now = counters.read().sent;
                let went_back = before.by_name().iter().zip(now.by_name()).any(|(before, now)| before.1 > now.1);
                assert!(!went_back && before.total() <= now.total(), "{before:?}, then {now:?}");
                before = now;
            }
        }
        let pieces = said.len().div_ceil(3) as u64 + 2;
        assert_eq!(before, Split { questions: said.len() as u64 + 307, framing: 20 + pieces, ..Split::default() });
    }

    #[test]
    fn of_a_member_everything_counts_that_is_no_part_of_a_ballot() {
        let (one, other) = (PeerId::random(), PeerId::random());
        let counters = Arc::new(Counters::of_peers([one]));
        let open = |name: &str| {
            let mut stream = Stream::new(Arc::clone(&counters), false, counters.unasked.get(&one).cloned());
            stream.sent(&said(&["/multistream/1.0.0\n", name]));
            stream
        };
        open("/fedprune/chunk/1\n").received(1000);
        open("/libp2p/circuit/relay/0.2.0/stop\n").received(1000);
        assert_eq!(counters.unasked(&one), 0);
        open("/meshsub/1.2.0\n").received(100);
        open("/fedprune/ask/1\n").received(10);
        Stream::new(Arc::clone(&counters), false, counters.unasked.get(&one).cloned()).received(1);
        assert_eq!((counters.unasked(&one), counters.unasked(&other)), (111, 0));
    }
}
