//! Requests under way: ours that await an answer, and others' that are being answered.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use fedprune_federation::MemberIndex;
use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, OutboundFailure, OutboundRequestId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{AskError, SendError};

/// Someone who waits for an answer, and the place in the lane that it occupies until then.
pub(super) struct Pending<T> {
    reply: oneshot::Sender<Result<T, AskError>>,
    _place: OwnedSemaphorePermit,
}

impl<T> Pending<T> {
    pub(super) async fn new(
        lane: &Arc<Semaphore>,
    ) -> Result<(Self, oneshot::Receiver<Result<T, AskError>>), SendError> {
        let place = Arc::clone(lane).acquire_owned().await.map_err(|_| SendError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        Ok((Self { reply, _place: place }, answer))
    }

    pub(super) fn settle(self, result: Result<T, AskError>) {
        // Whoever asked may have given up.
        let _ = self.reply.send(result);
    }
}

/// Requests of one protocol.
pub(super) struct Requests<T> {
    sent: HashMap<OutboundRequestId, (MemberIndex, Pending<T>)>,
    serving: HashMap<InboundRequestId, PeerId>,
    per_member: usize,
    in_all: usize,
}

impl<T> Requests<T> {
    pub(super) fn new(per_member: usize, in_all: usize) -> Self {
        Self { sent: HashMap::new(), serving: HashMap::new(), per_member, in_all }
    }

    /// Takes a place for answering; `false` if there is none.
    pub(super) fn serve(&mut self, peer: PeerId, id: InboundRequestId) -> bool {
        let of_peer = self.serving.values().filter(|other| **other == peer).count();
        if self.serving.len() >= self.in_all || of_peer >= self.per_member {
            return false;
        }
        self.serving.insert(id, peer);
        true
    }

    /// Remembers who waits for the answer.
    pub(super) fn sent(&mut self, id: OutboundRequestId, member: MemberIndex, pending: Pending<T>) {
        self.sent.insert(id, (member, pending));
    }

    /// The answer to a request of another is sent, or will never be.
    pub(super) fn served(&mut self, id: InboundRequestId) {
        self.serving.remove(&id);
    }

    /// Whether nobody waits for an answer of this node.
    pub(super) fn all_served(&self) -> bool {
        self.serving.is_empty()
    }

    pub(super) fn answered(&mut self, id: OutboundRequestId, answer: T) {
        if let Some((_, pending)) = self.sent.remove(&id) {
            pending.settle(Ok(answer));
        }
    }

    pub(super) fn failed(&mut self, id: OutboundRequestId, failure: OutboundFailure) {
        if let Some((member, pending)) = self.sent.remove(&id) {
            pending.settle(Err(ask_error(member, failure)));
        }
    }
}

fn ask_error(member: MemberIndex, failure: OutboundFailure) -> AskError {
    match failure {
        OutboundFailure::DialFailure => AskError::NotConnected(member),
        OutboundFailure::UnsupportedProtocols => AskError::Refused(member),
        OutboundFailure::Timeout => AskError::Io { member, source: io::ErrorKind::TimedOut.into() },
        OutboundFailure::ConnectionClosed => AskError::Io { member, source: io::ErrorKind::ConnectionAborted.into() },
        // The other side closed the stream without a word.
        OutboundFailure::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => AskError::Refused(member),
        OutboundFailure::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            AskError::Invalid { member, source: error }
        }
        OutboundFailure::Io(error) => AskError::Io { member, source: error },
    }
}
