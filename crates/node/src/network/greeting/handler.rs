//! Greetings on one connection: streams, bytes and timeouts. What a greeting means is decided in the behaviour.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt};
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound, StreamUpgradeError,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, SubstreamProtocol};
use tokio::time::timeout;

use super::behaviour::Timing;
use super::{
    ANSWER_BYTES, GREETING_BYTES, Greeting, GreetingError, MAX_PROGRAM_BYTES, PREFIX_BYTES, ProgramName, Verdict,
};
use crate::network::limits::GREETINGS_PER_CONNECTION;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/fedprune/greeting/1");

/// Names an incoming greeting until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GreetingId(u64);

/// What the behaviour wants done.
#[derive(Debug)]
pub(crate) enum Command {
    /// Answer an incoming greeting.
    Answer(GreetingId, Verdict),
    /// Greet again, to see whether the peer is alive.
    Probe,
}

/// What happened on the connection.
#[derive(Debug)]
pub(crate) enum Happened {
    /// The peer greeted and awaits an answer.
    Greeted(GreetingId, Greeting),
    /// The peer answered our greeting, and may have told what its program is.
    Answered(Verdict, Greeting, Option<ProgramName>),
    /// Greeting failed.
    Failed(Failure),
    /// The peer did not answer a probe.
    Dead,
}

/// Why greeting failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("it does not speak `{PROTOCOL}`")]
    Unsupported,
    #[error("its greeting cannot be read: {0}")]
    Unreadable(#[from] GreetingError),
    #[error("greetings could not be exchanged: {0}")]
    Io(#[from] io::Error),
    #[error("it did not answer in time")]
    TimedOut,
}

/// Why a stream was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Greet,
    Probe,
}

/// A verdict, the greeting of whoever gave it, and its program.
type Answer = (Verdict, Greeting, Option<ProgramName>);

enum Done {
    Answered(Purpose, Result<Answer, Failure>),
    Read(Stream, Result<Greeting, Failure>),
    Written,
}

/// Greets once when the connection is new, and answers the peer's greetings.
pub(crate) struct Handler {
    ours: Greeting,
    program: ProgramName,
    timing: Timing,
    to_open: VecDeque<Purpose>,
    probing: bool,
    waiting: Vec<(GreetingId, Stream)>,
    next_id: u64,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    happened: VecDeque<Happened>,
}

impl Handler {
    pub(super) fn new(ours: Greeting, program: ProgramName, timing: Timing) -> Self {
        Self {
            ours,
            program,
            timing,
            to_open: VecDeque::from([Purpose::Greet]),
            probing: false,
            waiting: Vec::new(),
            next_id: 0,
            work: FuturesUnordered::new(),
            happened: VecDeque::new(),
        }
    }

    fn patience(&self, purpose: Purpose) -> Duration {
        match purpose {
            Purpose::Greet => self.timing.answer,
            Purpose::Probe => self.timing.probe,
        }
    }

    fn settle(&mut self, purpose: Purpose, result: Result<Answer, Failure>) {
        if purpose == Purpose::Probe {
            self.probing = false;
        }
        self.happened.push_back(match (purpose, result) {
            (_, Ok((verdict, theirs, program))) => Happened::Answered(verdict, theirs, program),
            (Purpose::Greet, Err(failure)) => Happened::Failed(failure),
            (Purpose::Probe, Err(_)) => Happened::Dead,
        });
    }
}

async fn greet(mut stream: Stream, ours: Greeting) -> Result<Answer, Failure> {
    stream.write_all(&ours.encode()).await?;
    stream.flush().await?;
    let mut bytes = [0; ANSWER_BYTES];
    let answer = read_versioned(&mut stream, &mut bytes).await?;
    let (verdict, theirs) = Greeting::decode_answer(answer)?;
    let program = read_program(&mut stream).await;
    let _ = stream.close().await;
    Ok((verdict, theirs, program))
}

/// What follows an answer; nothing from a program that does not tell, and nothing that is no name.
async fn read_program(stream: &mut Stream) -> Option<ProgramName> {
    let mut length = [0];
    stream.read_exact(&mut length).await.ok()?;
    let mut text = [0; MAX_PROGRAM_BYTES];
    let text = text.get_mut(..usize::from(length[0]))?;
    stream.read_exact(text).await.ok()?;
    ProgramName::new(std::str::from_utf8(text).ok()?)
}

/// Fills `bytes`, except where the first bytes already tell that they are of another version and maybe fewer.
async fn read_versioned<'a>(stream: &mut Stream, bytes: &'a mut [u8]) -> io::Result<&'a [u8]> {
    stream.read_exact(&mut bytes[..PREFIX_BYTES]).await?;
    if bytes[..PREFIX_BYTES - 1] != super::prefix(0)[..PREFIX_BYTES - 1] {
        return Ok(bytes);
    }
    stream.read_exact(&mut bytes[PREFIX_BYTES..]).await?;
    Ok(bytes)
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(patience, work).await.unwrap_or(Err(Failure::TimedOut))
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Command;
    type ToBehaviour = Happened;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn on_behaviour_event(&mut self, command: Command) {
        match command {
            Command::Answer(id, verdict) => {
                let Some(position) = self.waiting.iter().position(|(waiting, _)| *waiting == id) else { return };
                let (_, mut stream) = self.waiting.swap_remove(position);
                let bytes = [&self.ours.encode_answer(verdict)[..], &self.program.encode()].concat();
                let write = async move {
                    stream.write_all(&bytes).await?;
                    stream.close().await?;
                    Ok(())
                };
                // A peer that does not take its answer times out by itself.
                self.work.push(within(self.timing.answer, write).map(|_: Result<(), Failure>| Done::Written).boxed());
            }
            Command::Probe if self.probing => {}
            Command::Probe => {
                self.probing = true;
                self.to_open.push_back(Purpose::Probe);
            }
        }
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Purpose, Happened>> {
        loop {
            if let Some(happened) = self.happened.pop_front() {
                return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(happened));
            }
            if let Some(purpose) = self.to_open.pop_front() {
                let patience = self.patience(purpose);
                let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), purpose).with_timeout(patience);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            match self.work.poll_next_unpin(context) {
                Poll::Ready(Some(Done::Answered(purpose, result))) => self.settle(purpose, result),
                Poll::Ready(Some(Done::Read(stream, Ok(theirs)))) => {
                    let id = GreetingId(self.next_id);
                    self.next_id += 1;
                    self.waiting.push((id, stream));
                    self.happened.push_back(Happened::Greeted(id, theirs));
                }
                Poll::Ready(Some(Done::Read(_, Err(failure)))) => self.happened.push_back(Happened::Failed(failure)),
                Poll::Ready(Some(Done::Written)) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), Purpose>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: mut stream, .. }) => {
                if self.work.len() + self.waiting.len() >= 2 * GREETINGS_PER_CONNECTION {
                    return;
                }
                let patience = self.timing.answer;
                let read = async move {
                    let mut bytes = [0; GREETING_BYTES];
                    let read = async {
                        let bytes = read_versioned(&mut stream, &mut bytes).await?;
                        Ok(Greeting::decode(bytes)?)
                    };
                    let theirs = within(patience, read).await;
                    Done::Read(stream, theirs)
                };
                self.work.push(read.boxed());
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: purpose }) => {
                let ours = self.ours;
                self.work.push(
                    within(self.patience(purpose), greet(stream, ours))
                        .map(move |result| Done::Answered(purpose, result))
                        .boxed(),
                );
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: purpose, error }) => {
                let failure = match error {
                    StreamUpgradeError::Timeout => Failure::TimedOut,
                    StreamUpgradeError::NegotiationFailed => Failure::Unsupported,
                    StreamUpgradeError::Io(error) => Failure::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.settle(purpose, Err(failure));
            }
            _ => {}
        }
    }
}
