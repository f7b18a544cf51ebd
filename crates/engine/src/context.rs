//! The federation in malachite's terms: a member is an address, a view is a round, a digest is a value.
//!
//! Only what malachite demands. Who proposes is [`Rotation`]'s answer; every member weighs 1; the thresholds
//! are exactly [`Quorum`]'s. Malachite's own thirds would differ: for three members more than a third is
//! two, and one honest member is one.

use std::fmt;
use std::sync::Arc;

use arc_malachitebft_core_consensus::ThresholdParams;
use arc_malachitebft_core_types as core_types;
use arc_malachitebft_core_types::{
    LinearTimeouts, NilOrVal, Round, SignedExtension, SignedProposal, SignedVote, SigningScheme, ThresholdParam,
    VoteType, VotingPower,
};
use fedprune_federation::agreement::{Repeated, Timer, TimerKind};
use fedprune_federation::{
    Height, MemberIndex, Proposal, Quorum, Ratified, Rotation, Signature, SignatureChecked, SigningKey, VerifyingKey,
};
use fedprune_mask::Digest;

/// A member, as its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CoreAddress(pub(crate) MemberIndex);

impl fmt::Display for CoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl core_types::Address for CoreAddress {}

/// A height, counted from 1 as malachite does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CoreHeight(u64);

impl From<Height> for CoreHeight {
    fn from(height: Height) -> Self {
        Self(u64::from(height.0).saturating_add(1))
    }
}

impl fmt::Display for CoreHeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl core_types::Height for CoreHeight {
    const ZERO: Self = Self(0);
    const INITIAL: Self = Self(1);

    fn increment_by(&self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }

    fn decrement_by(&self, n: u64) -> Option<Self> {
        self.0.checked_sub(n).map(Self)
    }

    fn as_u64(&self) -> u64 {
        self.0
    }
}

/// A value is its own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CoreValue(pub(crate) Digest);

impl fmt::Display for CoreValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl core_types::Value for CoreValue {
    type Id = Self;

    fn id(&self) -> Self {
        *self
    }
}

/// A member of weight 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CoreMember {
    address: CoreAddress,
    key: VerifyingKey,
}

impl core_types::Validator<Context> for CoreMember {
    fn address(&self) -> &CoreAddress {
        &self.address
    }

    fn public_key(&self) -> &VerifyingKey {
        &self.key
    }

    fn voting_power(&self) -> VotingPower {
        1
    }
}

/// All members, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CoreMembers(Arc<[CoreMember]>);

impl CoreMembers {
    pub(crate) fn of(consortium: &Ratified) -> Self {
        let indices = consortium.consortium().indices();
        let member = |(address, member): (MemberIndex, &fedprune_federation::consortium::Member)| CoreMember {
            address: CoreAddress(address),
            key: member.signing_key,
        };
        Self(indices.zip(consortium.members()).map(member).collect())
    }
}

impl core_types::ValidatorSet<Context> for CoreMembers {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn total_voting_power(&self) -> VotingPower {
        self.0.len() as VotingPower
    }

    fn get_by_address(&self, address: &CoreAddress) -> Option<&CoreMember> {
        self.0.get(address.0.as_usize())
    }

    fn get_by_index(&self, index: usize) -> Option<&CoreMember> {
        self.0.get(index)
    }
}

/// A proposal without its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CoreProposal {
    pub(crate) height: CoreHeight,
    pub(crate) round: Round,
    pub(crate) value: CoreValue,
    pub(crate) valid_round: Round,
    pub(crate) address: CoreAddress,
}

impl core_types::Proposal<Context> for CoreProposal {
    fn height(&self) -> CoreHeight {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &CoreValue {
        &self.value
    }

    fn take_value(self) -> CoreValue {
        self.value
    }

    fn pol_round(&self) -> Round {
        self.valid_round
    }

    fn validator_address(&self) -> &CoreAddress {
        &self.address
    }
}

/// A vote without its signature. There are no extensions: malachite's are disabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CoreVote {
    pub(crate) kind: VoteType,
    pub(crate) height: CoreHeight,
    pub(crate) round: Round,
    pub(crate) value: NilOrVal<CoreValue>,
    pub(crate) address: CoreAddress,
}

impl core_types::Vote<Context> for CoreVote {
    fn height(&self) -> CoreHeight {
        self.height
    }

    fn round(&self) -> Round {
        self.round
    }

    fn value(&self) -> &NilOrVal<CoreValue> {
        &self.value
    }

    fn take_value(self) -> NilOrVal<CoreValue> {
        self.value
    }

    fn vote_type(&self) -> VoteType {
        self.kind
    }

    fn validator_address(&self) -> &CoreAddress {
        &self.address
    }

    fn extension(&self) -> Option<&SignedExtension<Context>> {
        None
    }

    fn take_extension(&mut self) -> Option<SignedExtension<Context>> {
        None
    }

    fn extend(self, _extension: SignedExtension<Context>) -> Self {
        self
    }
}

/// Values do not travel in parts here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoPart;

impl core_types::ProposalPart<Context> for NoPart {
    fn is_first(&self) -> bool {
        true
    }

    fn is_last(&self) -> bool {
        true
    }
}

/// Signatures as the federation has them; malachite only carries them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FederationKeys;

impl SigningScheme for FederationKeys {
    type DecodingError = &'static str;
    type Signature = Signature;
    type PublicKey = VerifyingKey;
    type PrivateKey = SigningKey;

    fn decode_signature(bytes: &[u8]) -> Result<Signature, &'static str> {
        bytes.try_into().map(Signature).map_err(|_| "a signature has 64 bytes")
    }

    fn encode_signature(signature: &Signature) -> Vec<u8> {
        signature.0.to_vec()
    }

    fn decode_public_key(bytes: &[u8]) -> Result<VerifyingKey, &'static str> {
        let bytes = bytes.try_into().map_err(|_| "a key has 32 bytes")?;
        VerifyingKey::from_bytes(bytes).map_err(|_| "not a key to rely on")
    }

    fn encode_public_key(key: &VerifyingKey) -> Vec<u8> {
        key.as_bytes().to_vec()
    }
}

/// What malachite is instantiated with, for one height.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) rotation: Arc<Rotation>,
}

impl core_types::Context for Context {
    type Address = CoreAddress;
    type Height = CoreHeight;
    type ProposalPart = NoPart;
    type Proposal = CoreProposal;
    type Validator = CoreMember;
    type ValidatorSet = CoreMembers;
    type Timeouts = LinearTimeouts;
    type Value = CoreValue;
    type Vote = CoreVote;
    type Extension = ();
    type SigningScheme = FederationKeys;

    #[expect(clippy::expect_used, reason = "a rotation of the consortium names its members, and it has one at least")]
    fn select_proposer<'a>(&self, members: &'a CoreMembers, _height: CoreHeight, round: Round) -> &'a CoreMember {
        let aggregator = self.rotation.aggregator(round.as_u32().unwrap_or(0));
        members.0.get(aggregator.as_usize()).expect("the aggregator is a member")
    }

    fn new_proposal(
        &self,
        height: CoreHeight,
        round: Round,
        value: CoreValue,
        valid_round: Round,
        address: CoreAddress,
    ) -> CoreProposal {
        CoreProposal { height, round, value, valid_round, address }
    }

    fn new_prevote(
        &self,
        height: CoreHeight,
        round: Round,
        value: NilOrVal<CoreValue>,
        address: CoreAddress,
    ) -> CoreVote {
        CoreVote { kind: VoteType::Prevote, height, round, value, address }
    }

    fn new_precommit(
        &self,
        height: CoreHeight,
        round: Round,
        value: NilOrVal<CoreValue>,
        address: CoreAddress,
    ) -> CoreVote {
        CoreVote { kind: VoteType::Precommit, height, round, value, address }
    }
}

/// Exactly q of n, and exactly f + 1 of n: a threshold is met by a weight w when w · denominator > n · numerator.
pub(crate) fn thresholds(quorum: Quorum) -> ThresholdParams {
    let n = quorum.n() as u64;
    ThresholdParams {
        quorum: ThresholdParam::new((quorum.q() as u64).saturating_sub(1), n),
        honest: ThresholdParam::new(quorum.f() as u64, n),
    }
}

/// What a vote says, whichever kind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: VoteType,
    pub(crate) view: u32,
    pub(crate) value: Option<Digest>,
    pub(crate) member: MemberIndex,
    pub(crate) signature: Signature,
}

/// What a vote says.
pub(crate) fn facts(vote: &Repeated) -> Facts {
    match vote {
        Repeated::Prevote(vote) => Facts {
            kind: VoteType::Prevote,
            view: vote.content().view,
            value: vote.content().value,
            member: vote.member(),
            signature: vote.signature(),
        },
        Repeated::Precommit(vote) => Facts {
            kind: VoteType::Precommit,
            view: vote.content().view,
            value: vote.content().value,
            member: vote.member(),
            signature: vote.signature(),
        },
    }
}

/// A value or nil, from malachite.
pub(crate) fn value_of(value: &NilOrVal<CoreValue>) -> Option<Digest> {
    match value {
        NilOrVal::Nil => None,
        NilOrVal::Val(value) => Some(value.0),
    }
}

/// A value or nil, for malachite.
pub(crate) fn core_value(value: Option<Digest>) -> NilOrVal<CoreValue> {
    value.map_or(NilOrVal::Nil, |value| NilOrVal::Val(CoreValue(value)))
}

/// A vote for malachite.
pub(crate) fn core_vote(vote: &Repeated, height: Height) -> SignedVote<Context> {
    let Facts { kind, view, value, member, signature } = facts(vote);
    let message = CoreVote {
        kind,
        height: height.into(),
        round: Round::new(view),
        value: core_value(value),
        address: CoreAddress(member),
    };
    SignedVote::new(message, signature)
}

/// A proposal for malachite.
pub(crate) fn core_proposal(proposal: &SignatureChecked<Proposal>) -> SignedProposal<Context> {
    let Proposal { view, value, valid_view } = *proposal.content();
    let message = CoreProposal {
        height: proposal.height().into(),
        round: Round::new(view),
        value: CoreValue(value),
        valid_round: Round::from(valid_view),
        address: CoreAddress(proposal.member()),
    };
    SignedProposal::new(message, proposal.signature())
}

/// A timer from malachite's; none for the one that is not used, which waits after a decision.
pub(crate) fn timer_of(timeout: core_types::Timeout) -> Option<Timer> {
    let kind = match timeout.kind {
        core_types::TimeoutKind::Propose => TimerKind::Proposal,
        core_types::TimeoutKind::Prevote => TimerKind::Prevote,
        core_types::TimeoutKind::Precommit => TimerKind::Precommit,
        core_types::TimeoutKind::Rebroadcast => TimerKind::Repeat,
        core_types::TimeoutKind::FinalizeHeight(_) => return None,
    };
    timeout.round.as_u32().map(|view| Timer { kind, view })
}

/// A timer for malachite.
pub(crate) fn core_timeout(timer: Timer) -> core_types::Timeout {
    let round = Round::new(timer.view);
    match timer.kind {
        TimerKind::Proposal => core_types::Timeout::propose(round),
        TimerKind::Prevote => core_types::Timeout::prevote(round),
        TimerKind::Precommit => core_types::Timeout::precommit(round),
        TimerKind::Repeat => core_types::Timeout::rebroadcast(round),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_those_of_the_federation() {
        for n in 1..=1000 {
            let quorum = Quorum::of(n).unwrap();
            let thresholds = thresholds(quorum);
            for weight in 0..=n {
                let met = |threshold: ThresholdParam| threshold.is_met(weight as u64, n as u64);
                assert_eq!(met(thresholds.quorum), weight >= quorum.q(), "{weight} of {n}");
                assert_eq!(met(thresholds.honest), weight >= quorum.one_honest(), "{weight} of {n}");
            }
        }
    }

    #[test]
    fn the_quorum_is_two_thirds_and_a_third_is_not_always_one_honest_member() {
        let thirds = ThresholdParams::default();
        for n in 1..=1000u64 {
            let ours = thresholds(Quorum::of(n as usize).unwrap());
            assert_eq!(ours.quorum.min_expected(n), thirds.quorum.min_expected(n), "{n}");
            assert_eq!(ours.honest.min_expected(n) == thirds.honest.min_expected(n), n % 3 != 0, "{n}");
        }
    }

    #[test]
    fn timers_and_timeouts_are_the_same() {
        for kind in [TimerKind::Proposal, TimerKind::Prevote, TimerKind::Precommit, TimerKind::Repeat] {
            let timer = Timer { kind, view: 7 };
            assert_eq!(timer_of(core_timeout(timer)), Some(timer));
        }
        let finalize = core_types::Timeout::finalize_height(Round::new(7), std::time::Duration::ZERO);
        assert_eq!(timer_of(finalize), None);
    }
}
