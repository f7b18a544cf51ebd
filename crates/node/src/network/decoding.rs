//! What a peer sends, read from bytes in memory by the code that reads it from a stream: for tests and fuzzers.

use std::cell::RefCell;
use std::io;

use futures::io::Cursor;
use libp2p::request_response::Codec;
use tokio::runtime::{Builder, Runtime};

use super::codec::{ASK, AskCodec, CHUNK, ChunkCodec, Patience};
use super::greeting::read_and_write_greeting_again;
use super::limits::{ANSWER_BYTES, ASK_BYTES, CHUNK_ANSWER_BYTES};

/// What the bytes should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// What a member asks.
    Ask,
    /// What it is answered.
    AskAnswer,
    /// A request for a chunk.
    Chunk,
    /// What it is answered.
    ChunkAnswer,
    /// What a node says first.
    Greeting,
    /// What it is answered.
    GreetingAnswer,
}

impl Wire {
    /// All of them.
    pub const ALL: [Wire; 6] =
        [Wire::Ask, Wire::AskAnswer, Wire::Chunk, Wire::ChunkAnswer, Wire::Greeting, Wire::GreetingAnswer];
}

thread_local! {
    static RUNTIME: RefCell<io::Result<Runtime>> = RefCell::new(Builder::new_current_thread().enable_time().build());
}

/// Reads what `bytes` begin with, under the limits of the network, and writes it again.
///
/// # Errors
/// As a peer's bytes are refused.
pub fn read_and_write_again(wire: Wire, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut again = Vec::new();
    let work = async {
        let (mut from, mut to) = (Cursor::new(bytes), Cursor::new(&mut again));
        let patience = Patience::default();
        let mut asks = AskCodec { request_bytes: ASK_BYTES, answer_bytes: ANSWER_BYTES, patience };
        let mut chunks = ChunkCodec { answer_bytes: CHUNK_ANSWER_BYTES, patience };
        match wire {
            Wire::Ask => {
                let request = asks.read_request(&ASK, &mut from).await?;
                asks.write_request(&ASK, &mut to, request).await
            }
            Wire::AskAnswer => {
                let answer = asks.read_response(&ASK, &mut from).await?;
                asks.write_response(&ASK, &mut to, answer).await
            }
            Wire::Chunk => {
                let request = chunks.read_request(&CHUNK, &mut from).await?;
                chunks.write_request(&CHUNK, &mut to, request).await
            }
            Wire::ChunkAnswer => {
                let answer = chunks.read_response(&CHUNK, &mut from).await?;
                chunks.write_response(&CHUNK, &mut to, answer).await
            }
            Wire::Greeting | Wire::GreetingAnswer => {
                let greeting = read_and_write_greeting_again(bytes, wire == Wire::GreetingAnswer);
                to.get_mut().extend(greeting.map_err(io::Error::other)?);
                Ok(())
            }
        }
    };
    RUNTIME.with_borrow(|runtime| match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    })?;
    Ok(again)
}
