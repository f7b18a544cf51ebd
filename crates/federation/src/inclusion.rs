//! Proof that a member's ballot counts: small, and checked by whoever knows which consortium is meant.
//!
//! For each height: the header that the member signed, the decision whose manifest has the ballot, the certificate by
//! which a quorum committed to that decision, and q signed results with the mask root that follows. Beside them, once:
//! consortium, its members' signatures, round. The ballot itself is not in it, nor what the decision rests on: that a
//! quorum committed to it says as much.
//!
//! On the wire, after the prefix: the encodings of consortium (content 16), signatures (17) and round (18), each as
//! bytes (length 8); number of heights (8), and for each, ascending, the encodings of header (34), decision (19) and
//! certificate (21), each as bytes; number of results (8), and the encodings of the results (36), members ascending. There
//! are q results, or none where the round says `elected`, which has the mask root in the decision. Each of these has one
//! encoding, and every byte of it is under an id or a signature, or is one: a changed byte is refused.

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode::{Decode, Encode};

use crate::ballot::BallotHeader;
use crate::certificate::{Certificate, CertificateError, ReceivedCertificate};
use crate::consortium::{Consortium, ConsortiumError, Draft, NotRatified, RatificationError, Ratified};
use crate::ids::{ConsortiumId, Height, MemberIndex, RoundId};
use crate::manifest::{Decision, DecisionError};
use crate::result::MaskResult;
use crate::round::{Round, RoundError, TallyBy};
use crate::statement::{Received, SignatureChecked, StatementError};
use crate::wire::{self, Content, WireError};

/// Most bytes of a proof after its prefix: fits a height of 1000 members, or a hundred blocks of a hundred.
pub const INCLUSION_LIMIT: usize = 8 << 20;

/// A proof as it arrived; proves nothing yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedInclusion(Wire);

/// That the ballots of one member count, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inclusion {
    consortium: Ratified,
    round: Round,
    member: MemberIndex,
    heights: Vec<IncludedBallot>,
}

/// That one ballot counts, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncludedBallot {
    header: SignatureChecked<BallotHeader>,
    decision: Decision,
    certificate: Certificate,
    results: Vec<SignatureChecked<MaskResult>>,
    mask_root: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct Wire {
    consortium: Vec<u8>,
    signatures: Vec<u8>,
    round: Vec<u8>,
    heights: Vec<HeightWire>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
struct HeightWire {
    header: Vec<u8>,
    decision: Vec<u8>,
    certificate: Vec<u8>,
    results: Vec<Vec<u8>>,
}

/// Why there is no such proof.
#[derive(Debug, thiserror::Error)]
pub enum InclusionError {
    /// Bytes in it that cannot be read.
    #[error("something in the proof cannot be read")]
    Wire(#[from] WireError),
    /// No consortium.
    #[error("the consortium in the proof cannot be used")]
    Consortium(#[from] ConsortiumError),
    /// Of another consortium than is meant.
    #[error("the proof is of consortium {found}, and {expected} is meant")]
    OtherConsortium {
        /// The one meant.
        expected: ConsortiumId,
        /// The one in the proof.
        found: ConsortiumId,
    },
    /// Signatures of the consortium that do not verify.
    #[error(transparent)]
    Ratification(#[from] RatificationError),
    /// Not all members agreed to the consortium.
    #[error(transparent)]
    NotRatified(#[from] NotRatified),
    /// No round of this consortium.
    #[error("the round in the proof cannot be used")]
    Round(#[from] RoundError),
    /// Of another round than is meant.
    #[error("the proof is of round {found}, and {expected} is meant")]
    OtherRound {
        /// The one meant.
        expected: RoundId,
        /// The one in the proof.
        found: RoundId,
    },
    /// No heights, or not ascending.
    #[error("the proof has no heights, or not in ascending order")]
    Heights,
    /// A header or result that its member did not sign.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// Headers of several members.
    #[error("the proof has ballots of members {0} and {1}, and is of one member")]
    SeveralMembers(MemberIndex, MemberIndex),
    /// No decision of the round.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// No quorum committed.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Parts of different heights.
    #[error("parts of the proof of height {0} are of other heights")]
    Mixed(Height),
    /// The certificate is of another decision.
    #[error("the certificate of height {0} is of another decision than the one beside it")]
    OtherDecision(Height),
    /// The manifest has another ballot of the member, or none.
    #[error("the certified decision of height {height} does not count ballot {ballot} of member {member}", ballot = ballot.short())]
    NotCounted {
        /// The height.
        height: Height,
        /// Whose.
        member: MemberIndex,
        /// The ballot.
        ballot: Digest,
    },
    /// Too few results, too many, in another order, or not equal.
    #[error(
        "height {height} has {found} results in the proof, and exactly {wanted} equal ones, members ascending, belong there"
    )]
    Results {
        /// The height.
        height: Height,
        /// Results given.
        found: usize,
        /// How many make a proof.
        wanted: usize,
    },
}

impl IncludedBallot {
    /// Puts a proof for one height together. Of `results` q equal ones are kept.
    ///
    /// # Errors
    /// [`InclusionError`] when the parts prove nothing.
    pub fn new(
        header: SignatureChecked<BallotHeader>,
        decision: Decision,
        certificate: Certificate,
        results: &[SignatureChecked<MaskResult>],
        consortium: &Ratified,
        round: &Round,
    ) -> Result<Self, InclusionError> {
        let wanted = wanted_results(consortium, round);
        let root = crate::result::agreed_root(results, consortium.quorum());
        let mut equal: Vec<_> =
            results.iter().filter(|result| Some(result.content().mask_root) == root).cloned().collect();
        equal.sort_by_key(SignatureChecked::member);
        equal.dedup_by_key(|result| result.member());
        equal.truncate(wanted);
        Self::check(header, decision, certificate, equal, consortium, round)
    }

    fn check(
        header: SignatureChecked<BallotHeader>,
        decision: Decision,
        certificate: Certificate,
        results: Vec<SignatureChecked<MaskResult>>,
        consortium: &Ratified,
        round: &Round,
    ) -> Result<Self, InclusionError> {
        let (height, member, ballot) = (header.height(), header.member(), header.content().body);
        let here = (consortium.id(), round.id(), height);
        if (header.consortium(), header.round(), header.height()) != here
            || decision.height() != height
            || certificate.height() != height
            || results.iter().any(|result| (result.consortium(), result.round(), result.height()) != here)
        {
            return Err(InclusionError::Mixed(height));
        }
        if certificate.value() != decision.value() {
            return Err(InclusionError::OtherDecision(height));
        }
        let counted = decision.ballots().and_then(|manifest| {
            let entry = manifest.ballots().get(member.as_usize());
            entry.copied().flatten()
        });
        if counted != Some(ballot) {
            return Err(InclusionError::NotCounted { height, member, ballot });
        }
        let (found, wanted) = (results.len(), wanted_results(consortium, round));
        let unequal = InclusionError::Results { height, found, wanted };
        let ascending = results.array_windows().all(|[a, b]| a.member() < b.member() && a.content() == b.content());
        if found != wanted || !ascending {
            return Err(unequal);
        }
        let signed = results.first().map(|result| result.content().mask_root);
        let Some(mask_root) = signed.or(decision.mask_root()) else { return Err(unequal) };
        Ok(Self { header, decision, certificate, results, mask_root })
    }

    /// The height.
    pub fn height(&self) -> Height {
        self.header.height()
    }

    /// What the member signed about its ballot.
    pub fn header(&self) -> &BallotHeader {
        self.header.content()
    }

    /// Who committed to the tally that counts it.
    pub fn committed(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        self.certificate.members()
    }

    /// How many ballots count at this height.
    pub fn ballots(&self) -> usize {
        self.decision.ballots().map_or(0, |manifest| manifest.count())
    }

    /// The mask root that a quorum signed, or certified.
    pub fn mask_root(&self) -> Digest {
        self.mask_root
    }
}

/// Results that a proof has at each height.
fn wanted_results(consortium: &Ratified, round: &Round) -> usize {
    match round.terms().tally {
        TallyBy::EveryPeer => consortium.quorum().q(),
        TallyBy::Elected => 0,
    }
}

impl Inclusion {
    /// That these ballots, which are of one member, count in `round`.
    ///
    /// # Errors
    /// [`InclusionError`] for none, several members, or heights that do not ascend.
    pub fn new(consortium: &Ratified, round: &Round, heights: Vec<IncludedBallot>) -> Result<Self, InclusionError> {
        let member = heights.first().map(|height| height.header.member()).ok_or(InclusionError::Heights)?;
        if heights.array_windows().any(|[a, b]| a.height() >= b.height()) {
            return Err(InclusionError::Heights);
        }
        let here = (consortium.id(), round.id());
        for height in &heights {
            if height.header.member() != member {
                return Err(InclusionError::SeveralMembers(member, height.header.member()));
            }
            if (height.header.consortium(), height.header.round()) != here {
                return Err(InclusionError::Mixed(height.height()));
            }
        }
        Ok(Self { consortium: consortium.clone(), round: round.clone(), member, heights })
    }

    /// The consortium.
    pub fn consortium(&self) -> &Ratified {
        &self.consortium
    }

    /// The round.
    pub fn round(&self) -> &Round {
        &self.round
    }

    /// Whose ballots.
    pub fn member(&self) -> MemberIndex {
        self.member
    }

    /// The ballots, by height.
    pub fn heights(&self) -> &[IncludedBallot] {
        &self.heights
    }

    /// The proof as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let height = |height: &IncludedBallot| HeightWire {
            header: height.header.encode(),
            decision: height.decision.encode(),
            certificate: height.certificate.encode(),
            results: height.results.iter().map(SignatureChecked::encode).collect(),
        };
        let wire = Wire {
            consortium: self.consortium.consortium().encode(),
            signatures: self.consortium.encode_signatures(),
            round: self.round.encode(),
            heights: self.heights.iter().map(height).collect(),
        };
        wire::encode(Content::Inclusion, &wire)
    }
}

impl ReceivedInclusion {
    /// Reads a proof.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, INCLUSION_LIMIT>(Content::Inclusion, bytes).map(Self)
    }

    /// Checks that it proves something of this consortium, and of this round if one is meant.
    ///
    /// # Errors
    /// [`InclusionError`] when it does not.
    pub fn check(self, expected: ConsortiumId, round: Option<RoundId>) -> Result<Inclusion, InclusionError> {
        let Wire { consortium, signatures, round: round_bytes, heights } = self.0;
        let consortium = Consortium::decode(&consortium)?;
        let found = consortium.id();
        if found != expected {
            return Err(InclusionError::OtherConsortium { expected, found });
        }
        let mut draft = Draft::new(consortium);
        draft.add_encoded(&signatures)?;
        let consortium = draft.ratify()?;
        let here = Round::decode(&round_bytes, consortium.consortium())?;
        if let Some(expected) = round.filter(|round| *round != here.id()) {
            return Err(InclusionError::OtherRound { expected, found: here.id() });
        }
        // before any signature is checked: there are then no more of them than members, for each height of one model
        let wanted = wanted_results(&consortium, &here);
        let mut included = Vec::with_capacity(heights.len());
        for parts in heights {
            let header = Received::<BallotHeader>::decode(&parts.header)?;
            let found = parts.results.len();
            if found != wanted {
                return Err(InclusionError::Results { height: header.claimed_height(), found, wanted });
            }
            let header = header.check(&consortium, here.id())?;
            let decision = Decision::decode(&parts.decision, &consortium, &here)?;
            let certificate = ReceivedCertificate::decode(&parts.certificate)?.check(&consortium, here.id())?;
            let results = parts
                .results
                .iter()
                .map(|bytes| Ok(Received::<MaskResult>::decode(bytes)?.check(&consortium, here.id())?));
            let results: Vec<_> = results.collect::<Result<_, InclusionError>>()?;
            included.push(IncludedBallot::check(header, decision, certificate, results, &consortium, &here)?);
        }
        Inclusion::new(&consortium, &here, included)
    }
}

#[cfg(test)]
mod tests;
