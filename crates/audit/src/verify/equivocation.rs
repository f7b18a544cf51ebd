//! Whether a member said two things where it may say one, wherever in the transcript it said them.
//!
//! Evidence that members exchanged is one source; the statements themselves are the other, so that equivocation is
//! found even where nobody reported it.

use std::collections::BTreeMap;

use fedprune_federation::evidence::Equivocation;
use fedprune_federation::holdings::{Reissue, reissue};
use fedprune_federation::{
    BallotHeader, Evidence, Height, Holdings, MaskResult, MemberIndex, Precommit, Prevote, Proposal, SignatureChecked,
    Statement,
};
use fedprune_mask::Digest;

use super::Context;
use super::ledger::Ledger;
use crate::report::Fault;

/// Different statements of one member and kind that are kept. An honest member makes a handful, a growing holdings
/// statement apart, which has one form for each ballot at most.
const MAX_DIFFERENT: usize = 2048;

/// A statement and where it was found.
type Place<T> = (SignatureChecked<T>, String);

/// Everything of one kind that was said at one height.
struct Kind<T>(BTreeMap<MemberIndex, BTreeMap<Digest, Place<T>>>);

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Statement> Kind<T> {
    fn add(&mut self, statement: &SignatureChecked<T>, from: &str, file: &str) {
        let different = self.0.entry(statement.member()).or_default();
        let digest = Digest::of(&statement.preimage());
        if different.len() < MAX_DIFFERENT {
            different.entry(digest).or_insert_with(|| (statement.clone(), format!("{from}{file}")));
        }
    }

    /// For each member the first two statements that conflict.
    fn conflicts(&self) -> impl Iterator<Item = (MemberIndex, &Place<T>, &Place<T>)> {
        self.0.iter().filter_map(|(member, different)| {
            let all: Vec<&Place<T>> = different.values().collect();
            let pairs = all.iter().enumerate().flat_map(|(later, b)| all.iter().take(later).map(move |a| (a, b)));
            let mut conflicting = pairs.filter(|(a, b)| a.0.content().conflicts_with(b.0.content()));
            conflicting.next().map(|(a, b)| (*member, *a, *b))
        })
    }
}

impl Kind<Holdings> {
    /// Statements that only ever grew contain each other in the order of their sizes: neighbours tell.
    fn neighbours_that_conflict(&self) -> impl Iterator<Item = (MemberIndex, &Place<Holdings>, &Place<Holdings>)> {
        self.0.iter().filter_map(|(member, different)| {
            let mut all: Vec<&Place<Holdings>> = different.values().collect();
            all.sort_by_key(|(statement, _)| statement.content().count());
            let conflict = all.array_windows().find(|[a, b]| reissue(&a.0, &b.0) == Reissue::Conflict);
            conflict.map(|[a, b]| (*member, *a, *b))
        })
    }
}

/// Everything that was said at one height.
#[derive(Default)]
pub(super) struct Said {
    /// What the names of files are preceded by.
    from: &'static str,
    headers: Kind<BallotHeader>,
    holdings: Kind<Holdings>,
    results: Kind<MaskResult>,
    proposals: Kind<Proposal>,
    prevotes: Kind<Prevote>,
    precommits: Kind<Precommit>,
}

impl Said {
    /// Nothing yet; names of files are preceded by `from`.
    pub fn from(from: &'static str) -> Self {
        Self { from, ..Self::default() }
    }

    /// Takes over everything that was said elsewhere.
    pub fn absorb(&mut self, other: Said) {
        fn take<T: Statement>(kind: &mut Kind<T>, other: Kind<T>) {
            for (statement, file) in other.0.into_values().flat_map(BTreeMap::into_values) {
                kind.add(&statement, "", &file);
            }
        }
        take(&mut self.headers, other.headers);
        take(&mut self.holdings, other.holdings);
        take(&mut self.results, other.results);
        take(&mut self.proposals, other.proposals);
        take(&mut self.prevotes, other.prevotes);
        take(&mut self.precommits, other.precommits);
    }

    /// A header was found in `file`.
    pub fn header(&mut self, statement: &SignatureChecked<BallotHeader>, file: &str) {
        self.headers.add(statement, self.from, file);
    }

    /// A holdings statement was found in `file`.
    pub fn holdings(&mut self, statement: &SignatureChecked<Holdings>, file: &str) {
        self.holdings.add(statement, self.from, file);
    }

    /// A result was found in `file`.
    pub fn result(&mut self, statement: &SignatureChecked<MaskResult>, file: &str) {
        self.results.add(statement, self.from, file);
    }

    /// A proposal was found in `file`.
    pub fn proposal(&mut self, statement: &SignatureChecked<Proposal>, file: &str) {
        self.proposals.add(statement, self.from, file);
    }

    /// Evidence that verified was found in `file`.
    pub fn evidence(&mut self, evidence: &Evidence, file: &str) {
        fn both<T: Statement>(kind: &mut Kind<T>, pair: &Equivocation<T>, (from, file): (&str, &str)) {
            for statement in pair.statements() {
                kind.add(statement, from, file);
            }
        }
        let file = (self.from, file);
        match evidence {
            Evidence::Ballot(pair) => both(&mut self.headers, pair, file),
            Evidence::Holdings(pair) => both(&mut self.holdings, pair, file),
            Evidence::Result(pair) => both(&mut self.results, pair, file),
            Evidence::Proposal(pair) => both(&mut self.proposals, pair, file),
            Evidence::Prevote(pair) => both(&mut self.prevotes, pair, file),
            Evidence::Precommit(pair) => both(&mut self.precommits, pair, file),
        }
    }

    /// Notes every member that contradicted itself.
    pub fn judge(&self, context: &Context<'_>, height: Height, ledger: &mut Ledger) {
        let mut find = |member, what: &str, a: String, a_file: &str, b: String, b_file: &str| {
            let text = format!("signed two {what}: {a} (`{a_file}`) and {b} (`{b_file}`)");
            ledger.find(context.name(member), Fault::Equivocation, height, text);
        };
        for (member, a, b) in self.headers.conflicts() {
            let show = |header: &BallotHeader| format!("ballot {} of {} bytes", header.body.short(), header.body_bytes);
            find(member, "ballots", show(a.0.content()), &a.1, show(b.0.content()), &b.1);
        }
        for (member, a, b) in self.holdings.neighbours_that_conflict() {
            let show = |holdings: &Holdings| format!("{} ballots", holdings.count());
            find(
                member,
                "holdings statements of which neither contains the other",
                show(a.0.content()),
                &a.1,
                show(b.0.content()),
                &b.1,
            );
        }
        for (member, a, b) in self.results.conflicts() {
            let show = |result: &MaskResult| format!("mask root {}", result.mask_root.short());
            find(member, "results", show(a.0.content()), &a.1, show(b.0.content()), &b.1);
        }
        for (member, a, b) in self.proposals.conflicts() {
            let show = |proposal: &Proposal| format!("value {} in view {}", proposal.value.short(), proposal.view);
            find(member, "proposals", show(a.0.content()), &a.1, show(b.0.content()), &b.1);
        }
        let vote = |view: u32, value: Option<Digest>| match value {
            Some(value) => format!("value {} in view {view}", value.short()),
            None => format!("nil in view {view}"),
        };
        for (member, a, b) in self.prevotes.conflicts() {
            let show = |prevote: &Prevote| vote(prevote.view, prevote.value);
            find(member, "prevotes", show(a.0.content()), &a.1, show(b.0.content()), &b.1);
        }
        for (member, a, b) in self.precommits.conflicts() {
            let show = |precommit: &Precommit| vote(precommit.view, precommit.value);
            find(member, "precommits", show(a.0.content()), &a.1, show(b.0.content()), &b.1);
        }
    }
}
