//! What a machine keeps, and what it waits for: for whoever watches it.
//!
//! How much is kept of a height is bounded whatever others send. [`Kept::most`] says by what, as a function of the
//! number of members and of the views that were reached; faulty members alone cannot make a view be reached.

use super::store::{MAX_PROPOSALS_A_MEMBER, MAX_SEEN, MAX_VIEWS_A_MEMBER};
use super::{Height, Machine, MemberIndex};

/// How many things a machine keeps of one height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Signed headers of ballots.
    pub headers: usize,
    /// Holdings statements.
    pub holdings: usize,
    /// Proposals with what they rest on, those that do not stand up among them.
    pub proposals: usize,
    /// Prevotes.
    pub prevotes: usize,
    /// Precommits.
    pub precommits: usize,
    /// Signed results.
    pub results: usize,
    /// Proofs of equivocation.
    pub evidence: usize,
    /// Ballots that were judged.
    pub ballots: usize,
    /// Mask roots of sets of ballots.
    pub tallies: usize,
    /// Proposals that wait for a judgement, and statements that wait for the agreement.
    pub waiting: usize,
    /// Entries of the agreement's journal.
    pub journal: usize,
    /// Short ids of messages that were looked at.
    pub seen: usize,
}

impl Kept {
    /// The most that a machine keeps of a height with `members` members, `views` of whose views were reached.
    pub fn most(members: usize, views: usize) -> Self {
        let n = members;
        // what malachite listens to, and what it is entered by
        let views = views.saturating_add(12);
        let (of_views, voters) = (MAX_VIEWS_A_MEMBER.saturating_mul(n), n.saturating_add(2));
        let proposals = MAX_PROPOSALS_A_MEMBER.saturating_mul(n);
        // a second one, and those that a member holds or a proposal that was ever kept counts
        let headers = n.saturating_mul(n.saturating_add(3).saturating_add(views.saturating_mul(2)));
        let in_view = n.saturating_mul(voters).saturating_add(n).saturating_add(24);
        Self {
            headers,
            holdings: n,
            proposals: proposals.saturating_mul(2),
            prevotes: of_views.saturating_mul(voters),
            precommits: of_views,
            results: n,
            evidence: n.saturating_mul(6),
            ballots: headers,
            tallies: proposals.saturating_add(1),
            waiting: views.saturating_mul(4),
            journal: views.saturating_mul(in_view),
            seen: MAX_SEEN,
        }
    }

    /// What there is more of than `most` allows: its name, how many there are, and how many there may be.
    pub fn beyond(&self, most: &Self) -> Option<(&'static str, usize, usize)> {
        let pairs = [
            ("headers", self.headers, most.headers),
            ("holdings statements", self.holdings, most.holdings),
            ("proposals", self.proposals, most.proposals),
            ("prevotes", self.prevotes, most.prevotes),
            ("precommits", self.precommits, most.precommits),
            ("results", self.results, most.results),
            ("proofs", self.evidence, most.evidence),
            ("ballots", self.ballots, most.ballots),
            ("mask roots", self.tallies, most.tallies),
            ("waiting proposals and statements", self.waiting, most.waiting),
            ("entries of the journal", self.journal, most.journal),
            ("short ids", self.seen, most.seen),
        ];
        pairs.into_iter().find(|(_, found, most)| found > most)
    }
}

/// What a member waits for, and cannot do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// What is counted.
    pub what: &'static str,
    /// How many there are, our own among them.
    pub found: usize,
    /// How many are needed.
    pub needed: usize,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} {}", self.found, self.needed, self.what)
    }
}

/// What this member knows of the ballot of a member at a height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It said that it has none; known of ourselves only.
    Abstained,
    /// Its signed header is here.
    Announced,
    /// It is stored here and valid.
    Held,
    /// It is not valid.
    Refused,
    /// The height is decided, and it counts.
    Counts,
    /// The height is decided, and it does not count.
    LeftOut,
}

impl Standing {
    /// In a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Self::Abstained => "abstained",
            Self::Announced => "announced",
            Self::Held => "held",
            Self::Refused => "refused",
            Self::Counts => "counts",
            Self::LeftOut => "left out",
        }
    }
}

impl Machine {
    /// How the ballot of a member stands at a height; nothing while none was heard of.
    pub fn standing(&self, height: Height, member: MemberIndex) -> Option<Standing> {
        let state = self.state(height)?;
        if let Some(settled) = state.settled_ballots() {
            let counts = settled.iter().any(|(of, _)| *of == member);
            return Some(if counts { Standing::Counts } else { Standing::LeftOut });
        }
        if state.held.get(member.as_usize()).is_some_and(Option::is_some) {
            return Some(Standing::Held);
        }
        if state.refused.iter().any(|(of, _)| *of == member) {
            return Some(Standing::Refused);
        }
        if state.store.headers.contains_key(&member) {
            return Some(Standing::Announced);
        }
        (member == self.me && state.abstained).then_some(Standing::Abstained)
    }

    /// How much is kept of a height.
    pub fn kept(&self, height: Height) -> Option<Kept> {
        let state = self.state(height)?;
        let store = &state.store;
        let current = height.0 == self.current;
        Some(Kept {
            headers: store.headers.values().map(Vec::len).sum(),
            holdings: store.holdings.len(),
            proposals: store.proposals.len().saturating_add(store.unfounded.len()),
            prevotes: store.all_prevotes().count(),
            precommits: store.precommits.len(),
            results: store.results.len(),
            evidence: store.evidence.len(),
            ballots: state.valid.len().saturating_add(state.refused.len()),
            tallies: state.tallies.len(),
            waiting: state.judging.len().saturating_add(if current { self.pending.len() } else { 0 }),
            journal: state.journal.len(),
            seen: store.seen_count(),
        })
    }

    /// The view of a height that its agreement is in, or was when it was decided; 0 before it starts.
    pub fn view(&self, height: Height) -> u32 {
        let Some(state) = self.state(height) else { return 0 };
        let decided = state.store.settled.as_ref().map_or(0, |settled| settled.certificate().view());
        state.agreement.as_ref().map_or(state.view_told.unwrap_or(0), |agreement| agreement.view()).max(decided)
    }

    /// What the others owe this member before it can go on; nothing if it waits for nobody, or for its own work.
    pub fn shortage(&self) -> Option<Shortage> {
        let q = self.quorum().q();
        let short = |what, found: usize| (found < q).then_some(Shortage { what, found, needed: q });
        if !self.has_joined() {
            return short("members that tell what they have of ours", self.recalled.len().saturating_add(1));
        }
        let height = Height(self.current);
        let state = self.state(height).filter(|_| !self.is_over())?;
        let store = &state.store;
        if store.settled.is_some() {
            return if state.told_tallied { short("results", store.results.len()) } else { None };
        }
        let Some(agreement) = state.agreement.as_ref() else {
            return short("holdings statements", store.holdings.len());
        };
        let view = agreement.view();
        let prevotes = store.prevotes.keys().filter(|(_, of)| *of == view).count();
        let precommits = store.precommits.keys().filter(|(_, of)| *of == view).count();
        short("prevotes of a view", prevotes).or_else(|| short("precommits of a view", precommits))
    }
}
