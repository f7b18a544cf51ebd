//! What members send each other during a round, read and verified as far as bytes and signatures go.

use super::MAX_ANSWER_BYTES;
use crate::ballot::BallotHeader;
use crate::certificate::CertificateError;
use crate::consortium::Ratified;
use crate::evidence::{Evidence, EvidenceError, ReceivedEvidence};
use crate::holdings::Holdings;
use crate::ids::{Height, MemberIndex};
use crate::proposed::{Proposed, ProposedError, ReceivedProposed, ReceivedSettled, Settled, SettledError, Unfounded};
use crate::result::MaskResult;
use crate::round::Round;
use crate::signing::Kind;
use crate::statement::{Received, SignatureChecked, Statement, StatementError};
use crate::vote::{Precommit, Prevote};
use crate::wire::{self, Content, WireError};

/// Most messages of which a member says that it knows them.
pub const MAX_KNOWN: usize = 1 << 14;

/// A message whose signatures were checked.
#[derive(Debug)]
pub(crate) enum Message {
    Header(SignatureChecked<BallotHeader>),
    Holdings(SignatureChecked<Holdings>),
    Proposed(Box<Proposed>),
    /// Signed by the aggregator, and its own fault.
    Unfounded(Box<Unfounded>),
    Prevote(SignatureChecked<Prevote>),
    Precommit(SignatureChecked<Precommit>),
    Result(SignatureChecked<MaskResult>),
    Settled(Box<Settled>),
    Evidence(Box<Evidence>),
}

/// Why a message is not taken.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// No message of this protocol.
    #[error("the message cannot be read")]
    Wire(#[from] WireError),
    /// Something that is not sent as a message.
    #[error("the message is {0}, which nobody sends")]
    Content(&'static str),
    /// A statement that does not count.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// A proposal that does not stand up.
    #[error(transparent)]
    Proposed(#[from] ProposedError),
    /// A settled decision that is none.
    #[error(transparent)]
    Settled(#[from] SettledError),
    /// A certificate that is none.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Evidence that proves nothing.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// A height that the round does not have.
    #[error("the message is of height {height}, and the round has {heights}, counted from 0")]
    Height {
        /// The height claimed.
        height: Height,
        /// How many there are.
        heights: u32,
    },
    /// A body larger than any ballot for this model.
    #[error("member {member} announces a ballot of {bytes} bytes, and none of this round has more than {limit}")]
    BodyTooLarge {
        /// Who.
        member: MemberIndex,
        /// What it announces.
        bytes: u64,
        /// What the layout allows.
        limit: u64,
    },
}

/// What a message claims to be: what it holds, of which height, and in whose name if it is one member's. Anybody
/// may have written that. Evidence is of no height.
///
/// # Errors
/// [`MessageError`] for what nobody sends.
pub fn claims(bytes: &[u8]) -> Result<(Content, Option<Height>, Option<MemberIndex>), MessageError> {
    fn of<T: Statement>(bytes: &[u8]) -> Result<(Content, Option<Height>, Option<MemberIndex>), MessageError> {
        let received = Received::<T>::decode(bytes)?;
        Ok((T::CONTENT, Some(received.claimed_height()), Some(received.claimed_member())))
    }
    match wire::content_of(bytes)? {
        Some(Content::BallotHeader) => of::<BallotHeader>(bytes),
        Some(Content::Holdings) => of::<Holdings>(bytes),
        Some(Content::MaskResult) => of::<MaskResult>(bytes),
        Some(Content::Prevote) => of::<Prevote>(bytes),
        Some(Content::Precommit) => of::<Precommit>(bytes),
        Some(Content::Proposed) => {
            let received = ReceivedProposed::decode(bytes)?;
            Ok((Content::Proposed, Some(received.claimed_height()), Some(received.claimed_member())))
        }
        Some(Content::Settled) => Ok((Content::Settled, Some(ReceivedSettled::decode(bytes)?.claimed_height()), None)),
        Some(Content::Evidence) => Ok((Content::Evidence, None, None)),
        Some(other) => Err(MessageError::Content(other.in_words())),
        None => Err(MessageError::Content("of an unknown content")),
    }
}

impl Message {
    /// Reads a message and checks whatever is signed in it.
    pub(crate) fn read(bytes: &[u8], consortium: &Ratified, round: &Round) -> Result<Self, MessageError> {
        let id = round.id();
        Ok(match wire::content_of(bytes)? {
            Some(Content::BallotHeader) => Self::Header(Received::decode(bytes)?.check(consortium, id)?),
            Some(Content::Holdings) => Self::Holdings(Received::decode(bytes)?.check(consortium, id)?),
            Some(Content::MaskResult) => Self::Result(Received::decode(bytes)?.check(consortium, id)?),
            Some(Content::Prevote) => Self::Prevote(Received::decode(bytes)?.check(consortium, id)?),
            Some(Content::Precommit) => Self::Precommit(Received::decode(bytes)?.check(consortium, id)?),
            Some(Content::Proposed) => match ReceivedProposed::decode(bytes)?.check(consortium, round) {
                Ok(proposed) => Self::Proposed(Box::new(proposed)),
                Err(ProposedError::Unfounded(unfounded)) if unfounded.blames() => Self::Unfounded(unfounded),
                Err(error) => return Err(error.into()),
            },
            Some(Content::Settled) => {
                Self::Settled(Box::new(ReceivedSettled::decode(bytes)?.check(consortium, round)?))
            }
            Some(Content::Evidence) => {
                Self::Evidence(Box::new(ReceivedEvidence::decode(bytes)?.verify(consortium, id)?))
            }
            Some(other) => return Err(MessageError::Content(other.in_words())),
            None => return Err(MessageError::Content("of an unknown content")),
        })
    }

    /// Of which height.
    pub(crate) fn height(&self) -> Height {
        match self {
            Self::Header(statement) => statement.height(),
            Self::Holdings(statement) => statement.height(),
            Self::Proposed(proposed) => proposed.proposal().height(),
            Self::Unfounded(unfounded) => unfounded.proposal.height(),
            Self::Prevote(statement) => statement.height(),
            Self::Precommit(statement) => statement.height(),
            Self::Result(statement) => statement.height(),
            Self::Settled(settled) => settled.decision().height(),
            Self::Evidence(evidence) => evidence.slot().place.height,
        }
    }

    /// What kind of statement it is; none for what many signed.
    pub(crate) fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Header(_) => Kind::Ballot,
            Self::Holdings(_) => Kind::Holdings,
            Self::Proposed(_) | Self::Unfounded(_) => Kind::Proposal,
            Self::Prevote(_) => Kind::Prevote,
            Self::Precommit(_) => Kind::Precommit,
            Self::Result(_) => Kind::Result,
            Self::Settled(_) | Self::Evidence(_) => return None,
        })
    }

    /// Who signed it; nobody in particular for what many signed.
    pub(crate) fn member(&self) -> Option<MemberIndex> {
        Some(match self {
            Self::Header(statement) => statement.member(),
            Self::Holdings(statement) => statement.member(),
            Self::Proposed(proposed) => proposed.proposal().member(),
            Self::Unfounded(unfounded) => unfounded.proposal.member(),
            Self::Prevote(statement) => statement.member(),
            Self::Precommit(statement) => statement.member(),
            Self::Result(statement) => statement.member(),
            Self::Settled(_) | Self::Evidence(_) => return None,
        })
    }
}

/// First bytes of the digest of a message; tells one's own messages from another's, and proves nothing.
pub type ShortId = [u8; 8];

/// The short id of a message.
pub fn short_id(bytes: &[u8]) -> ShortId {
    let mut id = [0; 8];
    if let Some(start) = blake3::hash(bytes).as_bytes().first_chunk::<8>() {
        id = *start;
    }
    id
}

/// What a member asks another for; the answer is a list of messages.
#[derive(Debug, Clone, PartialEq, Eq, fedprune_mask::codec::bincode::Encode, fedprune_mask::codec::bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub enum Question {
    /// Everything of this height that is not among what the asker knows.
    News {
        /// The height.
        height: Height,
        /// What the asker knows of it: short ids of messages; of a settled decision, of which there are several
        /// certificates, that of the decision.
        known: Vec<ShortId>,
    },
    /// Everything that the asker itself signed in this round.
    Mine,
    /// As [`Question::News`], of the last height, from a member whose part of the round is over: it needs nobody any
    /// more.
    Finished {
        /// What the asker knows of the last height.
        known: Vec<ShortId>,
    },
}

impl Question {
    /// The question as it travels.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(Content::Question, self)
    }

    /// Reads a question.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, { MAX_KNOWN * 8 + 64 }>(Content::Question, bytes)
    }
}

/// The answer to a question as it travels: a list of messages.
pub fn encode_answer(messages: &[Vec<u8>]) -> Vec<u8> {
    wire::encode(Content::Answer, &messages.to_vec())
}

/// Reads an answer: messages, none of them checked.
///
/// # Errors
/// [`WireError`] for bytes that are none.
pub fn decode_answer(bytes: &[u8]) -> Result<Vec<Vec<u8>>, WireError> {
    wire::decode::<_, MAX_ANSWER_BYTES>(Content::Answer, bytes)
}
