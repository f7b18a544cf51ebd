//! How requests and their answers are written, read and bounded.
//!
//! | protocol | request | answer |
//! |---|---|---|
//! | `/fedprune/ask/1` | length u32, bytes | status, then if 0: length u32, bytes |
//! | `/fedprune/chunk/1` | body digest 32, chunk u32 | status, then if 0: length u32, bytes |
//!
//! Numbers are little-endian. Status of an ask: 0 answered, 1 refused, 2 busy; of a chunk: 0 here, 1 not held,
//! 2 busy. A length is checked before anything is allocated, and memory grows only with what arrives. Reading
//! and writing end when nothing moves for [`PROGRESS_PATIENCE`], not when a transfer takes long: on a slow line
//! sixteen chunks share it.

use std::io;
use std::time::Duration;

use fedprune_mask::Digest;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;
use tokio::time::timeout;

use super::limits::{ANSWER_PATIENCE, PROGRESS_PATIENCE, READ_STEP_BYTES};

pub(super) const ASK: StreamProtocol = StreamProtocol::new("/fedprune/ask/1");
pub(super) const CHUNK: StreamProtocol = StreamProtocol::new("/fedprune/chunk/1");

const CHUNK_REQUEST_BYTES: usize = 36;

/// The answer to an ask, as it travels.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AskReply {
    Answered(Vec<u8>),
    Refused,
    Busy,
}

/// The answer to a request for a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkAnswer {
    /// The chunk, with whatever proves it.
    Here(Vec<u8>),
    /// This member does not have it (yet).
    NotHeld,
    /// This member has it or not, but no time: ask later, or another.
    Busy,
}

/// Which part of which body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkRequest {
    pub(super) body: Digest,
    pub(super) chunk: u32,
}

/// A peer announced more bytes than it may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes announced where at most {limit} are allowed")]
pub(super) struct TooLong {
    pub(super) bytes: u64,
    pub(super) limit: usize,
}

/// Reads and writes asks.
#[derive(Clone)]
pub(super) struct AskCodec {
    pub(super) request_bytes: usize,
    pub(super) answer_bytes: usize,
    pub(super) patience: Patience,
}

/// Reads and writes requests for chunks.
#[derive(Clone)]
pub(super) struct ChunkCodec {
    pub(super) answer_bytes: usize,
    pub(super) patience: Patience,
}

/// When to give up.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// Until the first byte of an answer.
    pub(super) answer: Duration,
    /// Between two pieces.
    pub(super) progress: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: ANSWER_PATIENCE, progress: PROGRESS_PATIENCE }
    }
}

impl Codec for AskCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = AskReply;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read_bytes(io, self.request_bytes, self.patience.progress).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<AskReply>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut status = [0];
        read_exact(io, &mut status, self.patience.answer).await?;
        match status {
            [0] => {
                let bytes = read_bytes(io, self.answer_bytes, self.patience.progress).await?;
                Ok(AskReply::Answered(bytes))
            }
            [1] => Ok(AskReply::Refused),
            [2] => Ok(AskReply::Busy),
            [other] => Err(unknown_status(other)),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_bytes(io, &request, self.patience.progress).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, reply: AskReply) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let (status, bytes) = match &reply {
            AskReply::Answered(bytes) => (0, Some(bytes)),
            AskReply::Refused => (1, None),
            AskReply::Busy => (2, None),
        };
        write_reply(io, status, bytes, self.patience.progress).await
    }
}

impl Codec for ChunkCodec {
    type Protocol = StreamProtocol;
    type Request = ChunkRequest;
    type Response = ChunkAnswer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<ChunkRequest>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut bytes = [0; CHUNK_REQUEST_BYTES];
        read_exact(io, &mut bytes, self.patience.progress).await?;
        let (mut body, mut chunk) = ([0; 32], [0; 4]);
        body.copy_from_slice(&bytes[..32]);
        chunk.copy_from_slice(&bytes[32..]);
        Ok(ChunkRequest { body: Digest(body), chunk: u32::from_le_bytes(chunk) })
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<ChunkAnswer>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut status = [0];
        read_exact(io, &mut status, self.patience.answer).await?;
        match status {
            [0] => {
                let bytes = read_bytes(io, self.answer_bytes, self.patience.progress).await?;
                Ok(ChunkAnswer::Here(bytes))
            }
            [1] => Ok(ChunkAnswer::NotHeld),
            [2] => Ok(ChunkAnswer::Busy),
            [other] => Err(unknown_status(other)),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: ChunkRequest) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let mut bytes = [0; CHUNK_REQUEST_BYTES];
        bytes[..32].copy_from_slice(&request.body.0);
        bytes[32..].copy_from_slice(&request.chunk.to_le_bytes());
        write_all(io, &bytes, self.patience.progress).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: ChunkAnswer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let (status, bytes) = match &answer {
            ChunkAnswer::Here(bytes) => (0, Some(bytes)),
            ChunkAnswer::NotHeld => (1, None),
            ChunkAnswer::Busy => (2, None),
        };
        write_reply(io, status, bytes, self.patience.progress).await
    }
}

fn unknown_status(status: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("status {status} is none that exists"))
}

fn stalled(patience: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing moved for {} s", patience.as_secs()))
}

async fn write_reply<T>(io: &mut T, status: u8, bytes: Option<&Vec<u8>>, patience: Duration) -> io::Result<()>
where
    T: AsyncWrite + Unpin + Send,
{
    write_all(io, &[status], patience).await?;
    if let Some(bytes) = bytes {
        write_bytes(io, bytes, patience).await?;
    }
    Ok(())
}

async fn write_bytes<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8], patience: Duration) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    write_all(io, &length.to_le_bytes(), patience).await?;
    write_all(io, bytes, patience).await
}

/// Writes all of `bytes`, waiting at most `patience` for each piece.
async fn write_all<T>(io: &mut T, mut bytes: &[u8], patience: Duration) -> io::Result<()>
where
    T: AsyncWrite + Unpin + Send,
{
    while !bytes.is_empty() {
        let written = timeout(patience, io.write(bytes)).await.map_err(|_| stalled(patience))??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

async fn read_bytes<T: AsyncRead + Unpin + Send>(io: &mut T, limit: usize, patience: Duration) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    read_exact(io, &mut length, patience).await?;
    let announced = u32::from_le_bytes(length);
    let length = announced as usize;
    if length > limit {
        let error = TooLong { bytes: u64::from(announced), limit };
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let start = bytes.len();
        let step = (length - start).min(start.max(READ_STEP_BYTES));
        bytes.resize(start + step, 0);
        read_exact(io, &mut bytes[start..], patience).await?;
    }
    Ok(bytes)
}

/// Fills `bytes`, waiting at most `patience` for each piece.
async fn read_exact<T>(io: &mut T, mut bytes: &mut [u8], patience: Duration) -> io::Result<()>
where
    T: AsyncRead + Unpin + Send,
{
    while !bytes.is_empty() {
        let read = timeout(patience, io.read(bytes)).await.map_err(|_| stalled(patience))??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[read..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    use futures::io::Cursor;

    use super::*;

    fn ask_codec() -> AskCodec {
        AskCodec { request_bytes: 10, answer_bytes: 100_000, patience: Patience::default() }
    }

    fn chunk_codec() -> ChunkCodec {
        ChunkCodec { answer_bytes: 100_000, patience: Patience::default() }
    }

    async fn written<C: Codec<Protocol = StreamProtocol>>(mut codec: C, response: C::Response) -> Vec<u8> {
        let mut bytes = Vec::new();
        codec.write_response(&ASK, &mut Cursor::new(&mut bytes), response).await.expect("writes to memory");
        bytes
    }

    #[tokio::test]
    async fn bytes_are_pinned() {
        let mut bytes = Vec::new();
        ask_codec().write_request(&ASK, &mut Cursor::new(&mut bytes), b"why".to_vec()).await.expect("writes");
        assert_eq!(bytes, b"\x03\0\0\0why");
        assert_eq!(written(ask_codec(), AskReply::Answered(b"so".to_vec())).await, b"\0\x02\0\0\0so");
        assert_eq!(written(ask_codec(), AskReply::Refused).await, b"\x01");
        assert_eq!(written(ask_codec(), AskReply::Busy).await, b"\x02");

        let mut bytes = Vec::new();
        let request = ChunkRequest { body: Digest([7; 32]), chunk: 258 };
        chunk_codec().write_request(&CHUNK, &mut Cursor::new(&mut bytes), request).await.expect("writes");
        assert_eq!(bytes, [[7; 32].as_slice(), &[2, 1, 0, 0]].concat());
        assert_eq!(chunk_codec().read_request(&CHUNK, &mut Cursor::new(&bytes)).await.expect("reads"), request);
        assert_eq!(written(chunk_codec(), ChunkAnswer::Here(vec![9])).await, b"\0\x01\0\0\0\x09");
        assert_eq!(written(chunk_codec(), ChunkAnswer::NotHeld).await, b"\x01");
        assert_eq!(written(chunk_codec(), ChunkAnswer::Busy).await, b"\x02");
    }

    #[tokio::test]
    async fn reads_back_across_several_steps() {
        let answer = (0..99_999).map(|i| i as u8).collect::<Vec<_>>();
        let (sender, receiver) = (chunk_codec(), chunk_codec());
        let bytes = written(sender.clone(), ChunkAnswer::Here(answer.clone())).await;
        let read = receiver.clone().read_response(&CHUNK, &mut Cursor::new(&bytes)).await.expect("reads");
        assert_eq!(read, ChunkAnswer::Here(answer));
    }

    #[tokio::test]
    async fn refuses_lengths_beyond_the_limit_before_reading_on() {
        let announced = [0, 0xff, 0xff, 0xff, 0xff];
        let error = ask_codec().read_response(&ASK, &mut Cursor::new(&announced)).await.expect_err("too long");
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<TooLong>());
        assert_eq!(cause, Some(&TooLong { bytes: 0xffff_ffff, limit: 100_000 }));
        chunk_codec().read_response(&CHUNK, &mut Cursor::new(&announced)).await.expect_err("too long");
        ask_codec().read_request(&ASK, &mut Cursor::new(b"\x0b\0\0\0elevenbytes")).await.expect_err("too long");
        assert_eq!(ask_codec().read_request(&ASK, &mut Cursor::new(b"\x03\0\0\0why")).await.expect("fits"), b"why");
    }

    #[tokio::test]
    async fn refuses_what_is_cut_off_or_unknown() {
        let cut_off = ask_codec().read_response(&ASK, &mut Cursor::new(b"\0\x05\0\0\0four")).await;
        assert_eq!(cut_off.expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
        let unknown = chunk_codec().read_response(&CHUNK, &mut Cursor::new(b"\x03")).await;
        assert_eq!(unknown.expect_err("unknown").kind(), io::ErrorKind::InvalidData);
        let cut_off = chunk_codec().read_request(&CHUNK, &mut Cursor::new([0; 35])).await;
        assert_eq!(cut_off.expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn gives_up_when_nothing_moves() {
        let short = Duration::from_millis(10);
        let mut codec = ChunkCodec { patience: Patience { answer: short, progress: short }, ..chunk_codec() };
        for begun in [b"".as_slice(), b"\0", b"\0\x05\0\0\0fo"] {
            let mut stuck = AsyncReadExt::chain(Cursor::new(begun), Never);
            let error = codec.read_response(&CHUNK, &mut stuck).await.expect_err("stuck");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn a_steady_transfer_may_take_longer_than_the_patience() {
        let patience = Patience { answer: Duration::from_secs(1), progress: Duration::from_secs(1) };
        let mut codec = ChunkCodec { patience, ..chunk_codec() };
        let bytes = written(chunk_codec(), ChunkAnswer::Here(vec![1; 50])).await;
        let started = tokio::time::Instant::now();
        let mut slow = Slow { bytes, at: 0, wait: Box::pin(tokio::time::sleep(Slow::PAUSE)) };
        let read = codec.read_response(&CHUNK, &mut slow).await.expect("slow but steady");
        assert_eq!(read, ChunkAnswer::Here(vec![1; 50]));
        assert!(started.elapsed() > patience.progress);
    }

    struct Never;

    impl AsyncRead for Never {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    /// Gives one byte at a time.
    struct Slow {
        bytes: Vec<u8>,
        at: usize,
        wait: Pin<Box<tokio::time::Sleep>>,
    }

    impl Slow {
        const PAUSE: Duration = Duration::from_millis(20);
    }

    impl AsyncRead for Slow {
        fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
            ready!(self.wait.as_mut().poll(context));
            self.wait.as_mut().reset(tokio::time::Instant::now() + Self::PAUSE);
            into[0] = self.bytes[self.at];
            self.at += 1;
            Poll::Ready(Ok(1))
        }
    }
}
