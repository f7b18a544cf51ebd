//! Which ballot is checked next: few at a time, and first those of members that have sent none that was bad, so that a
//! member that sends one bad ballot after the other costs others nothing.

use std::collections::BTreeMap;

use fedprune_federation::MemberIndex;

use crate::limits::BALLOTS_CHECKED_AT_ONCE;

/// Ballots that wait to be checked.
pub(super) struct Validations<T> {
    /// By bad ballots of their members so far, then as they came.
    waiting: BTreeMap<(u32, u64), T>,
    bad: BTreeMap<MemberIndex, u32>,
    running: usize,
    came: u64,
}

impl<T> Default for Validations<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), bad: BTreeMap::new(), running: 0, came: 0 }
    }
}

impl<T> Validations<T> {
    /// One more ballot of this member, whose body is here.
    pub(super) fn add(&mut self, member: MemberIndex, ballot: T) {
        let bad = self.bad.get(&member).copied().unwrap_or(0);
        self.came = self.came.saturating_add(1);
        self.waiting.insert((bad, self.came), ballot);
    }

    /// Which to check now, if any; ends in [`done`](Self::done).
    pub(super) fn next(&mut self) -> Option<T> {
        if self.running >= BALLOTS_CHECKED_AT_ONCE {
            return None;
        }
        let (_, ballot) = self.waiting.pop_first()?;
        self.running += 1;
        Some(ballot)
    }

    /// A ballot of this member was checked.
    pub(super) fn done(&mut self, member: MemberIndex, valid: bool) {
        self.running = self.running.saturating_sub(1);
        if !valid {
            let bad = self.bad.entry(member).or_default();
            *bad = bad.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_checked_at_once_and_bad_members_wait() {
        let (good, bad) = (MemberIndex(1), MemberIndex(2));
        let mut validations = Validations::default();
        validations.add(bad, "bad, first");
        assert_eq!(validations.next(), Some("bad, first"), "nobody is suspected at first");
        validations.done(bad, false);
        for ballot in ["bad, second", "bad, third"] {
            validations.add(bad, ballot);
        }
        for ballot in ["good, first", "good, second"] {
            validations.add(good, ballot);
        }
        let checked: Vec<_> = std::iter::from_fn(|| validations.next()).collect();
        assert_eq!(checked, ["good, first", "good, second"], "{BALLOTS_CHECKED_AT_ONCE} at once");
        validations.done(good, true);
        assert_eq!(validations.next(), Some("bad, second"), "and in the end everybody's");
        assert_eq!(validations.next(), None);
    }
}
