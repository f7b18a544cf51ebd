//! What a liar has to lie with: its key, its machine, and messages that honest members cannot make.

use std::collections::BTreeMap;

use fedprune_federation::machine::Machine;
use fedprune_federation::statement::Statement;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{
    Height, Holdings, Justified, MemberIndex, Proposal, Proposed, Received, ReceivedProposed, SignatureChecked,
};
use fedprune_mask::Digest;
use fedprune_mask::codec;

use super::random::Random;
use super::world::{Body, World};

/// What a liar has to lie with.
pub struct Seat<'a> {
    /// What all members have in common.
    pub world: &'a World,
    /// Which member it is.
    pub me: usize,
    /// Virtual milliseconds since the round began.
    pub now_ms: u64,
    /// What it knows; nothing once its machine has failed.
    pub machine: Option<&'a Machine>,
    /// Bodies that it has and serves.
    pub bodies: &'a mut BTreeMap<Digest, Body>,
    /// What it decides by.
    pub random: &'a mut Random,
}

/// Something that a liar sends.
#[derive(Debug)]
pub struct Sending {
    /// To whom.
    pub to: Vec<usize>,
    /// What.
    pub bytes: Vec<u8>,
}

impl Seat<'_> {
    /// Everybody else.
    pub fn others(&self) -> Vec<usize> {
        (0..self.world.members()).filter(|member| *member != self.me).collect()
    }

    /// To everybody else.
    pub fn to_all(&self, bytes: Vec<u8>) -> Sending {
        Sending { to: self.others(), bytes }
    }

    /// One thing to the first half of the others, and something else to the rest.
    pub(super) fn to_halves(&self, one: Vec<u8>, other: Vec<u8>) -> Vec<Sending> {
        let mut first = self.others();
        let rest = first.split_off(first.len() / 2);
        vec![Sending { to: first, bytes: one }, Sending { to: rest, bytes: other }]
    }

    /// Its own statement in these bytes, if that is what they are.
    pub(super) fn own<T: Statement>(&self, bytes: &[u8]) -> Option<SignatureChecked<T>> {
        let received = Received::<T>::decode(bytes).ok()?;
        let mine = received.claimed_member().as_usize() == self.me;
        mine.then(|| received.check(&self.world.consortium, self.world.round.id()).ok())?
    }

    /// Its own proposal in these bytes, if that is what they are.
    pub(super) fn own_proposal(&self, bytes: &[u8]) -> Option<Proposed> {
        let received = ReceivedProposed::decode(bytes).ok()?;
        let mine = received.claimed_member().as_usize() == self.me;
        mine.then(|| received.check(&self.world.consortium, &self.world.round).ok())?
    }

    /// Its machine knows what it would have proposed, and others could hear of it.
    pub(super) fn without_own_proposals(&self, mut messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        messages.retain(|bytes| self.own_proposal(bytes).is_none());
        messages
    }

    pub(super) fn sign<T: Statement>(&self, content: T, height: Height) -> Vec<u8> {
        self.world.sign(self.me, content, height).encode()
    }

    /// A proposal of a sound decision in the view of another.
    pub(super) fn propose_instead(&self, instead_of: &Proposed, justified: Justified) -> Option<Vec<u8>> {
        let (height, view) = (instead_of.proposal().height(), instead_of.proposal().content().view);
        let content = Proposal { view, value: justified.decision().value(), valid_view: None };
        let proposal = self.world.sign(self.me, content, height);
        Some(Proposed::new(proposal, justified).ok()?.encode())
    }

    /// A proposal of whatever bytes.
    pub(super) fn propose_bytes(&self, instead_of: &Proposed, decision: Vec<u8>) -> Vec<u8> {
        let (height, view) = (instead_of.proposal().height(), instead_of.proposal().content().view);
        let content = Proposal { view, value: Digest::of(&decision), valid_view: None };
        let signature = self.world.sign(self.me, content, height).signature();
        let mut lists: Vec<Holdings> = Vec::new();
        let mut statements = Vec::new();
        for statement in instead_of.justified().statements() {
            let list = lists.iter().position(|list| list == statement.content()).unwrap_or_else(|| {
                lists.push(statement.content().clone());
                lists.len() - 1
            });
            statements.push((statement.member(), list as u16, statement.signature()));
        }
        let proposal = (MemberIndex(self.me as u16), height, content, signature);
        framed(Content::Proposed, &(proposal, (decision, lists, statements)))
    }

    /// A decision as no honest member makes it.
    pub(super) fn decision(&self, height: Height, ballots: Vec<Option<Digest>>, mask_root: Option<Digest>) -> Vec<u8> {
        let (consortium, round) = (self.world.consortium.id(), self.world.round.id());
        framed(Content::Decision, &(consortium, round, height, (0u32, ballots, mask_root)))
    }
}

/// The encoding of anything.
pub(super) fn framed<T: codec::bincode::Encode>(content: Content, value: &T) -> Vec<u8> {
    let mut bytes = wire::MAGIC.to_vec();
    bytes.extend(wire::VERSION.to_le_bytes());
    bytes.push(content as u8);
    bytes.extend(codec::encode(value));
    bytes
}
