//! What was said at one height: every statement that malachite was told, with its signature.
//!
//! Malachite answers in its own types; from here come the signed statements that belong to them. It also is
//! the guard against signing twice: a slot of ours that is filled here stays as it is, whether it was filled
//! in this life, read from the journal, or heard from others.
//!
//! Malachite is told the first vote of a member and kind in a view, and counts that one. A second prevote
//! of the same member is kept beside it, because a quorum of prevotes that others saw may contain it.
//! Second precommits are not: a quorum of precommits reaches a member as a certificate.
//!
//! Bounds. A member fills one slot of each kind in a view, and keeps at most [`MAX_PREVOTES`] prevotes there,
//! and beyond that only prevotes of values that [`Quorum::one_honest`] members prevote: at most one for each
//! honest member.

use std::collections::{BTreeMap, BTreeSet};

use arc_malachitebft_core_types::VoteType;
use fedprune_federation::agreement::Repeated;
use fedprune_federation::{MemberIndex, Prevote, Proposal, Quorum, Signature, SignatureChecked};
use fedprune_mask::Digest;

use crate::context::facts;

/// Most different prevotes of one member in one view that are kept whatever they are for.
const MAX_PREVOTES: usize = 2;

/// What became of a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The first of its member, kind and view.
    First,
    /// Another than the first; kept.
    Second,
    /// Known, or one too many.
    Nothing,
}

/// What was said.
#[derive(Debug)]
pub(crate) struct Book {
    quorum: Quorum,
    votes: BTreeMap<(u32, VoteType, MemberIndex), Vec<Repeated>>,
    /// Who prevotes a value in a view, by first or second prevote.
    supporters: BTreeMap<(u32, Digest), BTreeSet<MemberIndex>>,
    proposals: BTreeMap<u32, Vec<SignatureChecked<Proposal>>>,
}

impl Book {
    pub(crate) fn new(quorum: Quorum) -> Self {
        Self { quorum, votes: BTreeMap::new(), supporters: BTreeMap::new(), proposals: BTreeMap::new() }
    }

    /// Takes note of a vote.
    pub(crate) fn add_vote(&mut self, vote: &Repeated) -> Heard {
        let told = facts(vote);
        let support = told.value.and_then(|value| self.supporters.get(&(told.view, value))).map_or(0, BTreeSet::len);
        let slot = self.votes.entry((told.view, told.kind, told.member)).or_default();
        if slot.iter().any(|known| facts(known).value == told.value) {
            return Heard::Nothing;
        }
        let heard = if slot.is_empty() { Heard::First } else { Heard::Second };
        if heard == Heard::Second {
            let room = slot.len() < MAX_PREVOTES || support >= self.quorum.one_honest();
            if told.kind == VoteType::Precommit || !room {
                return Heard::Nothing;
            }
        }
        slot.push(vote.clone());
        if let (VoteType::Prevote, Some(value)) = (told.kind, told.value) {
            self.supporters.entry((told.view, value)).or_default().insert(told.member);
        }
        heard
    }

    /// Takes note of a prevote of a quorum that was put together, whatever else its member prevoted.
    pub(crate) fn add_certified(&mut self, prevote: &SignatureChecked<Prevote>) {
        let vote = Repeated::Prevote(prevote.clone());
        let told = facts(&vote);
        if self.vote(told.view, told.kind, told.member, told.value).is_none() {
            self.votes.entry((told.view, told.kind, told.member)).or_default().push(vote);
        }
        if let Some(value) = told.value {
            self.supporters.entry((told.view, value)).or_default().insert(told.member);
        }
    }

    /// The vote that malachite counts of a member.
    pub(crate) fn first(&self, view: u32, kind: VoteType, member: MemberIndex) -> Option<&Repeated> {
        self.votes.get(&(view, kind, member)).and_then(|slot| slot.first())
    }

    /// The vote of a member for a value or nil.
    pub(crate) fn vote(
        &self,
        view: u32,
        kind: VoteType,
        member: MemberIndex,
        value: Option<Digest>,
    ) -> Option<&Repeated> {
        self.votes.get(&(view, kind, member))?.iter().find(|vote| facts(vote).value == value)
    }

    /// Whether exactly this was said, with this signature.
    pub(crate) fn has_vote(
        &self,
        view: u32,
        kind: VoteType,
        member: MemberIndex,
        value: Option<Digest>,
        signature: &Signature,
    ) -> bool {
        self.vote(view, kind, member, value).is_some_and(|vote| facts(vote).signature == *signature)
    }

    /// The prevotes of a value, if a quorum made them.
    pub(crate) fn polka(&self, view: u32, value: Digest) -> Option<Vec<&Repeated>> {
        let supporters = self.supporters.get(&(view, value))?;
        if supporters.len() < self.quorum.q() {
            return None;
        }
        Some(supporters.iter().filter_map(|member| self.vote(view, VoteType::Prevote, *member, Some(value))).collect())
    }

    /// The values that a quorum prevotes in a view.
    pub(crate) fn polkas(&self, view: u32) -> impl Iterator<Item = Digest> + '_ {
        let of_view = (view, Digest([0; 32]))..=(view, Digest([0xff; 32]));
        let quorum = self.quorum.q();
        self.supporters
            .range(of_view)
            .filter(move |(_, supporters)| supporters.len() >= quorum)
            .map(|((_, value), _)| *value)
    }

    /// Takes note of a proposal; false if it is known.
    pub(crate) fn add_proposal(&mut self, proposal: &SignatureChecked<Proposal>) -> bool {
        let known = self.proposals.entry(proposal.content().view).or_default();
        let new = !known.iter().any(|other| same(other, proposal));
        if new {
            known.push(proposal.clone());
        }
        new
    }

    /// The proposals of a view.
    pub(crate) fn proposals(&self, view: u32) -> &[SignatureChecked<Proposal>] {
        self.proposals.get(&view).map_or(&[], Vec::as_slice)
    }

    /// The proposal of a member in a view; the first if it made more.
    pub(crate) fn proposal_of(&self, view: u32, member: MemberIndex) -> Option<&SignatureChecked<Proposal>> {
        self.proposals(view).iter().find(|proposal| proposal.member() == member)
    }
}

/// Whether two proposals say the same, whatever their signatures.
pub(crate) fn same(a: &SignatureChecked<Proposal>, b: &SignatureChecked<Proposal>) -> bool {
    (a.member(), a.content()) == (b.member(), b.content())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, value};

    #[test]
    fn prevotes_that_a_quorum_may_rest_on_are_kept_and_others_are_not() {
        let world = World::new(4);
        let mut book = Book::new(world.consortium.quorum());
        let liar = |text| world.prevote(3, 0, Some(text));
        assert_eq!(book.add_vote(&liar("a")), Heard::First);
        assert_eq!(book.add_vote(&liar("a")), Heard::Nothing);
        assert_eq!(book.add_vote(&liar("b")), Heard::Second);
        assert_eq!(book.add_vote(&liar("c")), Heard::Nothing, "nobody else prevotes it");
        assert_eq!(book.add_vote(&world.prevote(0, 0, Some("c"))), Heard::First);
        assert_eq!(book.add_vote(&liar("c")), Heard::Nothing, "one liar may");
        assert_eq!(book.add_vote(&world.prevote(1, 0, Some("c"))), Heard::First);
        assert_eq!(book.polka(0, value("c")), None);
        assert_eq!(book.add_vote(&liar("c")), Heard::Second, "an honest member does");
        assert_eq!(book.polka(0, value("c")).unwrap().len(), 3);
        assert_eq!(book.polkas(0).collect::<Vec<_>>(), [value("c")]);
        assert_eq!(facts(book.first(0, VoteType::Prevote, MemberIndex(3)).unwrap()).value, Some(value("a")));
    }

    #[test]
    fn the_first_precommit_stands() {
        let world = World::new(4);
        let mut book = Book::new(world.consortium.quorum());
        assert_eq!(book.add_vote(&world.precommit(1, 0, None)), Heard::First);
        assert_eq!(book.add_vote(&world.precommit(1, 0, Some("a"))), Heard::Nothing);
        assert_eq!(book.add_vote(&world.precommit(1, 1, Some("a"))), Heard::First);
    }
}
