//! Which ballot is checked next: few at a time, and first those of members that have sent none that was bad, so that a
//! member that sends one bad ballot after the other costs others nothing.

use std::collections::BTreeMap;

use fedprune_federation::{BallotHeader, MemberIndex, SignatureChecked};

use crate::limits::BALLOTS_CHECKED_AT_ONCE;

/// Ballots that wait to be checked.
#[derive(Default)]
pub(super) struct Validations {
    /// By bad ballots of their members so far, then as they came.
    waiting: BTreeMap<(u32, u64), SignatureChecked<BallotHeader>>,
    bad: BTreeMap<MemberIndex, u32>,
    running: usize,
    came: u64,
}

impl Validations {
    /// One more ballot, whose body is here.
    pub(super) fn add(&mut self, header: SignatureChecked<BallotHeader>) {
        let bad = self.bad.get(&header.member()).copied().unwrap_or(0);
        self.came = self.came.saturating_add(1);
        self.waiting.insert((bad, self.came), header);
    }

    /// Which to check now, if any; ends in [`done`](Self::done).
    pub(super) fn next(&mut self) -> Option<SignatureChecked<BallotHeader>> {
        if self.running >= BALLOTS_CHECKED_AT_ONCE {
            return None;
        }
        let (_, header) = self.waiting.pop_first()?;
        self.running += 1;
        Some(header)
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
