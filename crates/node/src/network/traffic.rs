//! How many bytes went out and came in.
//!
//! TCP is counted at the socket: everything that libp2p writes and reads, encryption and framing included.
//! QUIC is counted at its streams: libp2p hides the UDP socket, whose headers and repetitions add a few
//! percent. Relayed connections run inside counted ones and are not counted again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

/// Bytes since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes sent, of all protocols.
    pub sent_bytes: u64,
    /// Bytes received, of all protocols.
    pub received_bytes: u64,
    /// Bytes of requests and answers in both directions: requests sent and answers given, answers got and requests taken.
    pub asks: Exchanged,
    /// Bytes of chunks and the requests for them.
    pub chunks: Exchanged,
    /// Own gossip messages that no peer took: queues were full, or nobody was there.
    pub unpublished: u64,
    /// Gossip messages dropped because the node did not keep up.
    pub dropped: u64,
}

/// Bytes of one protocol, without encryption and framing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// Sent and received bytes, shared by all connections.
#[derive(Debug, Default)]
pub(super) struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Exchanged {
        Exchanged {
            sent_bytes: self.sent.load(Ordering::Relaxed),
            received_bytes: self.received.load(Ordering::Relaxed),
        }
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) all: Arc<Meter>,
    pub(super) asks: Arc<Meter>,
    pub(super) chunks: Arc<Meter>,
    pub(super) unpublished: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> Traffic {
        let all = self.all.read();
        Traffic {
            sent_bytes: all.sent_bytes,
            received_bytes: all.received_bytes,
            asks: self.asks.read(),
            chunks: self.chunks.read(),
            unpublished: self.unpublished.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// A stream whose bytes are counted.
pub(super) struct Counted<S> {
    inner: S,
    meter: Arc<Meter>,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(context, bytes))?;
        self.meter.add_received(read);
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read_vectored(context, bytes))?;
        self.meter.add_received(read);
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.meter.add_sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, bytes))?;
        self.meter.add_sent(written);
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
    meter: Arc<Meter>,
}

impl<M> CountedMuxer<M> {
    pub(super) fn new(inner: M, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

impl<M> StreamMuxer for CountedMuxer<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
{
    type Substream = Counted<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_inbound(context))?;
        Poll::Ready(Ok(Counted::new(stream, Arc::clone(&self.meter))))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.inner).poll_outbound(context))?;
        Poll::Ready(Ok(Counted::new(stream, Arc::clone(&self.meter))))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(context)
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(context)
    }
}
