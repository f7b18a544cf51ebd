//! A proposal with what it rests on, and a decision with what proves it.
//!
//! A value that is agreed on is 32 bytes. What stands behind it travels beside it: the [`Decision`] whose
//! digest it is, and the q holdings statements of which its manifest is a function ([`Justified`]). A
//! [`Proposed`] is that with the aggregator's proposal; a [`Settled`] is that with the certificate.
//!
//! Most statements of one height hold the same ballots, so lists are kept once. On the wire: the decision's
//! own encoding as bytes (length 8), number of lists (8) and the lists, number of statements (8) and for
//! each, members ascending: member (2), index of its list (2), signature (64). An abandoned height rests on
//! nothing and has neither lists nor statements.

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode::{Decode, Encode};

use crate::certificate::{Certificate, CertificateError, ReceivedCertificate};
use crate::consortium::Ratified;
use crate::holdings::Holdings;
use crate::ids::{Height, MemberIndex};
use crate::manifest::{Decision, DecisionError, Manifest, ManifestError};
use crate::round::Round;
use crate::signing::Signature;
use crate::statement::{Received, SignatureChecked, Signed, StatementError};
use crate::vote::Proposal;
use crate::wire::{self, Content, WireError};

/// Most bytes of a proposal or a settled decision after its prefix: 300 members that all hold other
/// ballots, a thousand that hold the same.
pub const PROPOSED_LIMIT: usize = 4 << 20;

/// A decision, and the holdings statements that it follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Justified {
    decision: Decision,
    statements: Vec<SignatureChecked<Holdings>>,
}

/// A proposal whose decision follows from its statements; whether its mask root is right, a tally tells, and
/// whether it is time to abandon, a clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    proposal: SignatureChecked<Proposal>,
    justified: Justified,
}

/// A proposal as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct ReceivedProposed {
    proposal: Signed<Proposal>,
    justified: Wire,
}

/// A proposal of a member that does not stand up: proof that its signer is faulty.
#[derive(Debug)]
pub struct Unfounded {
    /// The proposal, which the member signed.
    pub proposal: SignatureChecked<Proposal>,
    /// Why it does not stand up.
    pub why: JustificationError,
    /// The encoding of it all.
    pub bytes: Vec<u8>,
}

/// A decision with its certificate, and what it follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    certificate: Certificate,
    justified: Justified,
}

/// A settled decision as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct ReceivedSettled {
    certificate: ReceivedCertificate,
    justified: Wire,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct Wire {
    decision: Vec<u8>,
    lists: Vec<Holdings>,
    statements: Vec<(MemberIndex, u16, Signature)>,
}

/// Why a decision does not follow from what stands beside it.
#[derive(Debug, thiserror::Error)]
pub enum JustificationError {
    /// The decision is none.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// Other bytes than those proposed or certified.
    #[error("the decision that travels with it is {found}, and what was signed is {signed}",
        found = found.short(), signed = signed.short())]
    OtherValue {
        /// Digest of the decision.
        found: Digest,
        /// The value signed.
        signed: Digest,
    },
    /// Of another height than what was signed.
    #[error("the decision is of height {found}, and what was signed is of height {signed}")]
    OtherHeight {
        /// Of the decision.
        found: Height,
        /// Of the proposal or certificate.
        signed: Height,
    },
    /// A statement that its member did not make.
    #[error("a holdings statement that it rests on does not count")]
    Statement(#[from] StatementError),
    /// Lists in another order, unused, or missing.
    #[error("its holdings statements are not in canonical order")]
    Order,
    /// Statements that make no manifest.
    #[error("its holdings statements make no manifest")]
    Manifest(#[from] ManifestError),
    /// Another manifest than the statements make.
    #[error("its manifest is not the one that its holdings statements make: ballot {0} differs")]
    OtherManifest(MemberIndex),
    /// Statements beside an abandoned height.
    #[error("an abandoned height rests on no holdings statements")]
    Needless,
}

/// Why a proposal is not even its member's.
#[derive(Debug, thiserror::Error)]
pub enum ProposedError {
    /// Nobody signed it.
    #[error("the proposal does not count")]
    Statement(#[from] StatementError),
    /// Its member did, and it does not stand up.
    #[error("the proposal of member {} in view {} does not stand up", .0.proposal.member(), .0.proposal.content().view)]
    Unfounded(Box<Unfounded>),
}

/// Why a settled decision is none.
#[derive(Debug, thiserror::Error)]
pub enum SettledError {
    /// Not certified.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Certified, and something else than what it comes with.
    #[error("the certified decision is not what it comes with")]
    Justification(#[from] JustificationError),
}

impl Justified {
    /// What these statements come to; `mask_root` where the round has it in the agreement.
    ///
    /// # Errors
    /// [`JustificationError`] when they come to nothing that the round can decide.
    pub fn from_holdings(
        statements: &[SignatureChecked<Holdings>],
        height: Height,
        mask_root: Option<Digest>,
        consortium: &Ratified,
        round: &Round,
    ) -> Result<Self, JustificationError> {
        let manifest = Manifest::from_holdings(statements, height, consortium, round)?;
        let decision = Decision::manifest(manifest, mask_root, consortium, round)?;
        let mut statements = statements.to_vec();
        statements.sort_unstable_by_key(SignatureChecked::member);
        Ok(Self { decision, statements })
    }

    /// That the height is abandoned.
    pub fn abandoned(height: Height, consortium: &Ratified, round: &Round) -> Self {
        Self { decision: Decision::abandoned(height, consortium, round), statements: Vec::new() }
    }

    /// What is decided.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// The holdings statements, members ascending; none for an abandoned height.
    pub fn statements(&self) -> &[SignatureChecked<Holdings>] {
        &self.statements
    }

    fn wire(&self) -> Wire {
        let mut lists: Vec<Holdings> = Vec::new();
        let statements = self.statements.iter().map(|statement| {
            let list = lists.iter().position(|list| list == statement.content()).unwrap_or_else(|| {
                lists.push(statement.content().clone());
                lists.len().saturating_sub(1)
            });
            (statement.member(), u16::try_from(list).unwrap_or(u16::MAX), statement.signature())
        });
        let statements = statements.collect();
        Wire { decision: self.decision.encode(), lists, statements }
    }

    fn check(
        wire: Wire,
        signed: (Height, Digest),
        consortium: &Ratified,
        round: &Round,
    ) -> Result<Self, JustificationError> {
        let found = Digest::of(&wire.decision);
        if found != signed.1 {
            return Err(JustificationError::OtherValue { found, signed: signed.1 });
        }
        let decision = Decision::decode(&wire.decision, consortium, round)?;
        let height = decision.height();
        if height != signed.0 {
            return Err(JustificationError::OtherHeight { found: height, signed: signed.0 });
        }
        let Some(expected) = decision.ballots() else {
            if wire.statements.is_empty() && wire.lists.is_empty() {
                return Ok(Self { decision, statements: Vec::new() });
            }
            return Err(JustificationError::Needless);
        };
        // order first: there are then no more signatures to check than members
        if wire.statements.array_windows().any(|[a, b]| a.0 >= b.0) {
            return Err(JustificationError::Order);
        }
        let mut statements = Vec::with_capacity(wire.statements.len());
        let mut used = 0usize;
        for (member, list, signature) in &wire.statements {
            let list = usize::from(*list);
            if list > used {
                return Err(JustificationError::Order);
            }
            let content = wire.lists.get(list).ok_or(JustificationError::Order)?.clone();
            used = used.max(list.saturating_add(1));
            let statement = Signed { member: *member, height, content, signature: *signature };
            statements.push(Received(statement).check(consortium, round.id())?);
        }
        if used != wire.lists.len() {
            return Err(JustificationError::Order);
        }
        let manifest = Manifest::from_holdings(&statements, height, consortium, round)?;
        if manifest != expected {
            let differs = manifest.ballots().iter().zip(expected.ballots()).position(|(a, b)| a != b);
            let member = differs.and_then(|position| u16::try_from(position).ok()).unwrap_or(u16::MAX);
            return Err(JustificationError::OtherManifest(MemberIndex(member)));
        }
        Ok(Self { decision, statements })
    }
}

impl Proposed {
    /// A proposal with what it rests on.
    ///
    /// # Errors
    /// [`JustificationError`] when the proposal is of another value or height.
    pub fn new(proposal: SignatureChecked<Proposal>, justified: Justified) -> Result<Self, JustificationError> {
        let (found, signed) = (justified.decision.value(), proposal.content().value);
        if found != signed {
            return Err(JustificationError::OtherValue { found, signed });
        }
        let (found, signed) = (justified.decision.height(), proposal.height());
        if found != signed {
            return Err(JustificationError::OtherHeight { found, signed });
        }
        Ok(Self { proposal, justified })
    }

    /// What its member signed.
    pub fn proposal(&self) -> &SignatureChecked<Proposal> {
        &self.proposal
    }

    /// What it rests on.
    pub fn justified(&self) -> &Justified {
        &self.justified
    }

    /// The proposal as it travels and is stored.
    pub fn encode(&self) -> Vec<u8> {
        let (proposal, justified) = (self.proposal.signed().clone(), self.justified.wire());
        wire::encode(Content::Proposed, &ReceivedProposed { proposal, justified })
    }
}

impl ReceivedProposed {
    /// Reads a proposal with what it rests on.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, PROPOSED_LIMIT>(Content::Proposed, bytes)
    }

    /// In whose name it speaks; anybody may have written that.
    pub fn claimed_member(&self) -> MemberIndex {
        self.proposal.member
    }

    /// Of which height it speaks; anybody may have written that.
    pub fn claimed_height(&self) -> Height {
        self.proposal.height
    }

    /// Checks who proposed it, and that it follows from what it rests on.
    ///
    /// What travels beside the signed value is not signed, and whoever passed it on may have exchanged it: only
    /// some reasons put the member in the wrong, see [`Unfounded::blames`].
    ///
    /// # Errors
    /// [`ProposedError`].
    pub fn check(self, consortium: &Ratified, round: &Round) -> Result<Proposed, ProposedError> {
        let bytes = wire::encode(Content::Proposed, &self);
        let proposal = Received(self.proposal).check(consortium, round.id())?;
        let signed = (proposal.height(), proposal.content().value);
        match Justified::check(self.justified, signed, consortium, round) {
            Ok(justified) => Ok(Proposed { proposal, justified }),
            Err(why) => Err(ProposedError::Unfounded(Box::new(Unfounded { proposal, why, bytes }))),
        }
    }
}

impl Unfounded {
    /// Whether the proposal itself, and not what somebody put beside it, is at fault: the bytes that were
    /// signed are no decision of the round.
    pub fn blames(&self) -> bool {
        matches!(self.why, JustificationError::Decision(_) | JustificationError::OtherHeight { .. })
    }
}

impl Settled {
    /// A decision with its certificate.
    ///
    /// # Errors
    /// [`JustificationError`] when the certificate is of another value or height.
    pub fn new(certificate: Certificate, justified: Justified) -> Result<Self, JustificationError> {
        let (found, signed) = (justified.decision.value(), certificate.value());
        if found != signed {
            return Err(JustificationError::OtherValue { found, signed });
        }
        let (found, signed) = (justified.decision.height(), certificate.height());
        if found != signed {
            return Err(JustificationError::OtherHeight { found, signed });
        }
        Ok(Self { certificate, justified })
    }

    /// Who committed to it.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What it follows from.
    pub fn justified(&self) -> &Justified {
        &self.justified
    }

    /// What was decided.
    pub fn decision(&self) -> &Decision {
        &self.justified.decision
    }

    /// The decision as it travels and is stored.
    pub fn encode(&self) -> Vec<u8> {
        let (certificate, justified) = (self.certificate.received().clone(), self.justified.wire());
        wire::encode(Content::Settled, &ReceivedSettled { certificate, justified })
    }
}

impl ReceivedSettled {
    /// Reads a settled decision.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, PROPOSED_LIMIT>(Content::Settled, bytes)
    }

    /// Of which height it speaks; anybody may have written that.
    pub fn claimed_height(&self) -> Height {
        self.certificate.claimed_height()
    }

    /// Checks the certificate, and that the decision follows from its statements.
    ///
    /// # Errors
    /// [`SettledError`].
    pub fn check(self, consortium: &Ratified, round: &Round) -> Result<Settled, SettledError> {
        let certificate = self.certificate.check(consortium, round.id())?;
        let signed = (certificate.height(), certificate.value());
        let justified = Justified::check(self.justified, signed, consortium, round)?;
        Ok(Settled { certificate, justified })
    }
}

#[cfg(test)]
mod tests;
