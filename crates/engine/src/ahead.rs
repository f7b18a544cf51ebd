//! Votes of views that are too far ahead for malachite.
//!
//! Malachite drops votes of more than [`MAX_FUTURE_ROUND_LOOKAHEAD`] views ahead, and takes certificates of
//! any. Here votes travel one by one, so a member that was cut off for longer would never hear of a view
//! that it may enter. The latest votes of each member are kept here until f + 1 members are in one view:
//! an honest one is among them, and that view may be entered (Buchman, Kwon and Milosevic, line 55).
//!
//! At most two votes of each member.

use std::collections::BTreeMap;

use arc_malachitebft_core_consensus::MAX_FUTURE_ROUND_LOOKAHEAD;
use fedprune_federation::MemberIndex;
use fedprune_federation::agreement::Repeated;

use crate::context::facts;

/// Last view of which malachite listens to votes and proposals while it is in `view`.
pub(crate) fn horizon(view: u32) -> u32 {
    view.saturating_add(MAX_FUTURE_ROUND_LOOKAHEAD)
}

/// The latest votes of each member, all of one view.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    latest: BTreeMap<MemberIndex, Vec<Repeated>>,
}

impl Ahead {
    /// Keeps a vote, unless its member is known to be further.
    pub(crate) fn keep(&mut self, vote: &Repeated) {
        let told = facts(vote);
        let kept = self.latest.entry(told.member).or_default();
        match kept.first().map(|first| facts(first).view) {
            Some(view) if view > told.view => return,
            Some(view) if view < told.view => kept.clear(),
            _ => {}
        }
        if !kept.iter().any(|known| facts(known).kind == told.kind) {
            kept.push(vote.clone());
        }
    }

    /// Takes out the votes of views up to `horizon`.
    pub(crate) fn within(&mut self, horizon: u32) -> Vec<Repeated> {
        self.take(|view| view <= horizon)
    }

    /// Takes out the votes of the latest view in which there are `members` members.
    pub(crate) fn enterable(&mut self, members: usize) -> Vec<Repeated> {
        let mut views = BTreeMap::<u32, usize>::new();
        for first in self.latest.values().filter_map(|votes| votes.first()) {
            let count = views.entry(facts(first).view).or_default();
            *count = count.saturating_add(1);
        }
        let latest = views.into_iter().rev().find(|(_, count)| *count >= members);
        latest.map_or_else(Vec::new, |(enterable, _)| self.take(|view| view == enterable))
    }

    fn take(&mut self, wanted: impl Fn(u32) -> bool) -> Vec<Repeated> {
        let mut taken = Vec::new();
        self.latest.retain(|_, votes| {
            let matches = votes.first().is_some_and(|first| wanted(facts(first).view));
            if matches {
                taken.append(votes);
            }
            !matches
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[test]
    fn a_view_is_entered_with_one_honest_member_and_no_liar_prevents_it() {
        let world = World::new(4);
        let mut ahead = Ahead::default();
        ahead.keep(&world.prevote(0, 50, None));
        ahead.keep(&world.precommit(0, 50, None));
        ahead.keep(&world.prevote(3, 1 << 30, None));
        assert!(ahead.enterable(2).is_empty());
        ahead.keep(&world.prevote(1, 49, None));
        assert!(ahead.enterable(2).is_empty());
        ahead.keep(&world.prevote(1, 50, Some("a")));
        ahead.keep(&world.prevote(1, 40, Some("a")));
        ahead.keep(&world.prevote(1, 50, Some("b")));
        let votes = ahead.enterable(2);
        assert_eq!(votes, [world.prevote(0, 50, None), world.precommit(0, 50, None), world.prevote(1, 50, Some("a"))]);
        assert!(ahead.enterable(1) == [world.prevote(3, 1 << 30, None)]);
        ahead.keep(&world.prevote(2, 20, None));
        assert!(ahead.within(19).is_empty());
        assert_eq!(ahead.within(20).len(), 1);
    }
}
