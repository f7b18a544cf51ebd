//! Whose turn it is to propose.
//!
//! Members take turns in an order that the round id and the height decide, so that nobody proposes first
//! every time, and n consecutive views have each member once: a dead or lying aggregator costs one view.
//! Whoever writes the round can choose among orders; that decides who is first, and nothing else.

use crate::ids::{Height, MemberIndex, Quorum, RoundId};

/// The order of members at one height.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    order: Vec<MemberIndex>,
}

/// Numbers below a bound, all equally likely, from BLAKE3 in its extendable mode.
struct Draws(blake3::OutputReader);

impl Draws {
    /// A number below `bound`, which is at least 1.
    fn below(&mut self, bound: u64) -> u64 {
        // 2^64 mod bound: numbers below it would make the first residues likelier
        let excess = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
        loop {
            let mut bytes = [0; 8];
            self.0.fill(&mut bytes);
            let number = u64::from_le_bytes(bytes);
            if number >= excess {
                return number.checked_rem(bound).unwrap_or(0);
            }
        }
    }
}

impl Rotation {
    /// Fisher–Yates from the last position down, over BLAKE3(`fedprune rotation v1\0` ‖ round id ‖ height).
    pub fn new(round: RoundId, height: Height, quorum: Quorum) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"fedprune rotation v1\0");
        hasher.update(&round.0.0);
        hasher.update(&height.0.to_le_bytes());
        let mut draws = Draws(hasher.finalize_xof());
        let members = u16::try_from(quorum.n()).unwrap_or(u16::MAX);
        let mut order: Vec<MemberIndex> = (0..members).map(MemberIndex).collect();
        for position in (1..order.len()).rev() {
            let chosen = usize::try_from(draws.below((position as u64).saturating_add(1))).unwrap_or(0);
            order.swap(position, chosen);
        }
        Self { order }
    }

    /// Who proposes in a view, from 0.
    pub fn aggregator(&self, view: u32) -> MemberIndex {
        let turn = usize::try_from(view).ok().and_then(|view| view.checked_rem(self.order.len()));
        turn.and_then(|turn| self.order.get(turn)).copied().unwrap_or(MemberIndex(0))
    }

    /// The members in the order of their turns.
    pub fn order(&self) -> &[MemberIndex] {
        &self.order
    }
}

/// Who proposes in one view of one height.
pub fn aggregator(round: RoundId, height: Height, view: u32, quorum: Quorum) -> MemberIndex {
    Rotation::new(round, height, quorum).aggregator(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedprune_mask::Digest;
    use proptest::prelude::*;

    fn round(text: &str) -> RoundId {
        RoundId(Digest::of(text.as_bytes()))
    }

    #[test]
    fn orders_are_pinned() {
        let order = |height| {
            let rotation = Rotation::new(round("r"), Height(height), Quorum::of(7).unwrap());
            rotation.order().iter().map(|member| member.0).collect::<Vec<_>>()
        };
        assert_eq!((order(0), order(1)), (vec![4, 3, 1, 5, 6, 2, 0], vec![1, 2, 0, 5, 6, 4, 3]));
    }

    #[test]
    fn first_turns_are_spread_evenly() {
        let mut firsts = [0u32; 5];
        for height in 0..5000 {
            firsts[aggregator(round("r"), Height(height), 0, Quorum::of(5).unwrap()).as_usize()] += 1;
        }
        // standard deviation 28
        assert!(firsts.iter().all(|count| count.abs_diff(1000) < 150), "{firsts:?}");
    }

    #[test]
    fn draws_stay_below_their_bound() {
        let mut draws = Draws(blake3::Hasher::new().finalize_xof());
        for bound in [1, 2, 3, 1000, u64::MAX / 2 + 2, u64::MAX] {
            assert!((0..100).all(|_| draws.below(bound) < bound));
        }
    }

    #[test]
    fn draws_are_even_where_the_bound_does_not_divide() {
        // of 3 · 2^62 numbers a third is below 2^62; without rejection half would be
        let mut draws = Draws(blake3::Hasher::new().finalize_xof());
        let low = (0..3000).filter(|_| draws.below(3 << 62) < 1 << 62).count();
        assert!(low.abs_diff(1000) < 130, "{low}"); // five standard deviations
    }

    proptest! {
        #[test]
        fn n_consecutive_views_have_each_member_once(
            text in ".{0,8}", height: u32, start in 0u32..4_000_000_000, n in 1usize..=1000,
        ) {
            let rotation = Rotation::new(round(&text), Height(height), Quorum::of(n).unwrap());
            let mut seen = vec![false; n];
            for view in start..start + n as u32 {
                let member = rotation.aggregator(view).as_usize();
                prop_assert!(!std::mem::replace(&mut seen[member], true));
            }
            prop_assert_eq!(rotation.aggregator(start), rotation.aggregator(start % n as u32));
        }
    }
}
