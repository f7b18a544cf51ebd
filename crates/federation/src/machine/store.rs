//! What a member knows of one height: every statement once, and proof of those made twice.
//!
//! The first statement of a slot stays; the first one that conflicts with it is kept as evidence. Beyond that, what
//! an equivocator says is kept where others may rest on it, so that nobody is left behind who heard something else
//! first: headers of ballots that somebody holds or proposes, and second prevotes. How much is kept is bounded for
//! each member, whatever it sends.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_mask::Digest;

use super::message::{Message, ShortId, short_id};
use crate::ballot::BallotHeader;
use crate::evidence::{Equivocation, Evidence};
use crate::holdings::{Holdings, Reissue, reissue};
use crate::ids::{MemberIndex, Quorum};
use crate::proposed::{Proposed, Settled};
use crate::result::MaskResult;
use crate::signing::Kind;
use crate::statement::{SignatureChecked, Statement};
use crate::vote::{Precommit, Prevote, Proposal};

/// Most views of one member of which votes of one kind are kept: the latest.
pub const MAX_VIEWS_A_MEMBER: usize = 64;
/// Most proposals of one member that are kept: the first and the latest.
pub const MAX_PROPOSALS_A_MEMBER: usize = 16;
/// How far ahead of the agreement a member's proposal may be once [`MAX_PROPOSALS_A_MEMBER`] of it are kept.
pub const MAX_VIEWS_AHEAD: u32 = 16;

/// What came of putting a statement into the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is new, and counts.
    New,
    /// It was known, or says less than what is known.
    Known,
    /// It conflicts with what is known, which stays: the first proof against its member in this kind.
    Conflict(Box<Evidence>),
    /// It conflicts with what is known, as others did before it, and nobody rests on it so far. To be looked at
    /// again when it comes again.
    Excess,
}

/// Everything of one height.
#[derive(Debug)]
pub(crate) struct Store {
    quorum: Quorum,
    pub(crate) headers: BTreeMap<MemberIndex, Vec<SignatureChecked<BallotHeader>>>,
    pub(crate) holdings: BTreeMap<MemberIndex, SignatureChecked<Holdings>>,
    /// By view and member.
    pub(crate) proposals: BTreeMap<(u32, MemberIndex), Proposed>,
    /// Proposals that do not stand up, as they arrived.
    pub(crate) unfounded: BTreeMap<(u32, MemberIndex), (SignatureChecked<Proposal>, Vec<u8>)>,
    pub(crate) prevotes: BTreeMap<(MemberIndex, u32), SignatureChecked<Prevote>>,
    /// Other prevotes of the same members in the same views: a quorum that others saw may rest on them.
    second_prevotes: BTreeMap<(MemberIndex, u32), Vec<SignatureChecked<Prevote>>>,
    pub(crate) precommits: BTreeMap<(MemberIndex, u32), SignatureChecked<Precommit>>,
    pub(crate) results: BTreeMap<MemberIndex, SignatureChecked<MaskResult>>,
    pub(crate) settled: Option<Settled>,
    /// The view that the agreement is in.
    pub(crate) view: u32,
    pub(crate) evidence: BTreeMap<(Kind, MemberIndex), Evidence>,
    /// Messages that were looked at, with what is no longer kept.
    seen: BTreeSet<ShortId>,
}

/// Most short ids that are remembered of one height; beyond that, messages are looked at again.
pub(crate) const MAX_SEEN: usize = 1 << 17;

impl Store {
    pub(crate) fn new(quorum: Quorum) -> Self {
        Self {
            quorum,
            headers: BTreeMap::new(),
            holdings: BTreeMap::new(),
            proposals: BTreeMap::new(),
            unfounded: BTreeMap::new(),
            prevotes: BTreeMap::new(),
            second_prevotes: BTreeMap::new(),
            precommits: BTreeMap::new(),
            results: BTreeMap::new(),
            settled: None,
            view: 0,
            evidence: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Whether these very bytes were taken before.
    pub(crate) fn has_seen(&self, bytes: &[u8]) -> bool {
        self.has_seen_id(&short_id(bytes))
    }

    pub(crate) fn has_seen_id(&self, id: &ShortId) -> bool {
        self.seen.contains(id)
    }

    pub(crate) fn seen_count(&self) -> usize {
        self.seen.len()
    }

    pub(crate) fn note_seen(&mut self, bytes: &[u8]) {
        if self.seen.len() < MAX_SEEN {
            self.seen.insert(short_id(bytes));
        }
    }

    pub(crate) fn add(&mut self, message: Message) -> Added {
        match message {
            Message::Header(header) => self.add_header(header),
            Message::Holdings(statement) => self.add_holdings(statement),
            Message::Proposed(proposed) => self.add_proposed(*proposed),
            Message::Unfounded(unfounded) => {
                let key = (unfounded.proposal.content().view, unfounded.proposal.member());
                let of_member = self.unfounded.keys().filter(|(_, member)| *member == key.1).count();
                if self.unfounded.contains_key(&key) || of_member >= MAX_PROPOSALS_A_MEMBER {
                    return Added::Known;
                }
                self.unfounded.insert(key, (unfounded.proposal, unfounded.bytes));
                Added::New
            }
            Message::Prevote(vote) => self.add_prevote(vote),
            Message::Precommit(vote) => {
                let key = (vote.member(), vote.content().view);
                let added = add_vote(&mut self.precommits, key, vote);
                self.vote_evidence(added, Evidence::Precommit)
            }
            Message::Result(result) => match self.results.get(&result.member()) {
                None => {
                    self.results.insert(result.member(), result);
                    Added::New
                }
                Some(known) => {
                    let pair = Equivocation::between(known, &result);
                    self.vote_evidence(VoteAdded::of(pair), Evidence::Result)
                }
            },
            Message::Settled(settled) => {
                if self.settled.is_some() {
                    return Added::Known;
                }
                self.settled = Some(*settled);
                Added::New
            }
            Message::Evidence(evidence) => self.add_evidence(*evidence),
        }
    }

    fn add_header(&mut self, header: SignatureChecked<BallotHeader>) -> Added {
        let of_member = self.headers.entry(header.member()).or_default();
        if of_member.iter().any(|known| known.content() == header.content()) {
            return Added::Known;
        }
        match of_member.first().and_then(|first| Equivocation::between(first, &header)) {
            None => {
                of_member.push(header);
                Added::New
            }
            Some(pair) => {
                let (member, body) = (header.member(), header.content().body);
                let another = of_member.iter().all(|known| known.content().body != body);
                // the second stays, and that of any ballot that somebody holds: it may be the one that counts
                let kept = of_member.len() < 2 || (another && self.is_relied_on(member, body));
                if kept {
                    self.headers.entry(member).or_default().push(header);
                }
                self.conflict(Evidence::Ballot(pair), kept)
            }
        }
    }

    /// Whether somebody says that it holds this ballot, or it is in a manifest: as many as there are members and
    /// proposals that are kept, at most.
    fn is_relied_on(&self, member: MemberIndex, body: Digest) -> bool {
        let held = self.holdings.values().any(|statement| statement.content().of(member) == Some(body));
        let proposed = self.proposals.values().map(|proposed| proposed.justified().decision());
        let mut decisions = proposed.chain(self.settled.iter().map(Settled::decision));
        held || decisions.any(|decision| {
            let manifest = decision.ballots();
            manifest.is_some_and(|manifest| manifest.ballots().get(member.as_usize()) == Some(&Some(body)))
        })
    }

    fn add_prevote(&mut self, vote: SignatureChecked<Prevote>) -> Added {
        let key = (vote.member(), vote.content().view);
        let before = self.prevotes.get(&key).filter(|known| **known != vote);
        let Some(pair) = before.and_then(|known| Equivocation::between(known, &vote)) else {
            let added = add_vote(&mut self.prevotes, key, vote);
            self.second_prevotes.retain(|key, _| self.prevotes.contains_key(key));
            return self.vote_evidence(added, Evidence::Prevote);
        };
        if self.second_prevotes.get(&key).is_some_and(|others| others.contains(&vote)) {
            return Added::Known;
        }
        // beyond the second, those that an honest member makes too
        let kept = !self.second_prevotes.contains_key(&key) || self.support(key.1, &vote) >= self.quorum.one_honest();
        if kept {
            self.second_prevotes.entry(key).or_default().push(vote);
        }
        self.conflict(Evidence::Prevote(pair), kept)
    }

    /// How many others prevote the same in a view.
    fn support(&self, view: u32, vote: &SignatureChecked<Prevote>) -> usize {
        let same = |other: &SignatureChecked<Prevote>| other.content() == vote.content();
        let of_view = self.prevotes.iter().filter(|((member, of), _)| *of == view && *member != vote.member());
        of_view
            .filter(|(key, first)| {
                same(first) || self.second_prevotes.get(key).is_some_and(|others| others.iter().any(same))
            })
            .count()
    }

    /// Every prevote that is kept.
    pub(crate) fn all_prevotes(&self) -> impl Iterator<Item = &SignatureChecked<Prevote>> {
        self.prevotes.values().chain(self.second_prevotes.values().flatten())
    }

    /// What a statement is that conflicts with what is known, and may be kept beside it.
    fn conflict(&mut self, evidence: Evidence, kept: bool) -> Added {
        let slot = evidence.slot();
        let key = (slot.kind, slot.place.member);
        if self.evidence.contains_key(&key) {
            return if kept { Added::New } else { Added::Excess };
        }
        self.evidence.insert(key, evidence.clone());
        Added::Conflict(Box::new(evidence))
    }

    fn add_holdings(&mut self, statement: SignatureChecked<Holdings>) -> Added {
        let Some(known) = self.holdings.get(&statement.member()) else {
            self.holdings.insert(statement.member(), statement);
            return Added::New;
        };
        match reissue(known, &statement) {
            Reissue::Newer => {
                self.holdings.insert(statement.member(), statement);
                Added::New
            }
            Reissue::Older | Reissue::Unrelated => Added::Known,
            Reissue::Conflict => {
                let pair = Equivocation::between(known, &statement);
                self.vote_evidence(VoteAdded::of(pair), Evidence::Holdings)
            }
        }
    }

    fn add_proposed(&mut self, proposed: Proposed) -> Added {
        let proposal = proposed.proposal();
        let key = (proposal.content().view, proposal.member());
        if let Some(known) = self.proposals.get(&key) {
            let pair = Equivocation::between(known.proposal(), proposal);
            return self.vote_evidence(VoteAdded::of(pair), Evidence::Proposal);
        }
        // what was proposed first tells most about a liar, what was proposed last is being voted on
        let of_member: Vec<_> = self.proposals.keys().filter(|(_, member)| *member == key.1).copied().collect();
        if of_member.len() >= MAX_PROPOSALS_A_MEMBER
            && let (Some(middle), Some((latest, _))) = (of_member.get(MAX_PROPOSALS_A_MEMBER / 2), of_member.last())
        {
            // each of them is written down: no more than there are views, whatever a member proposes
            if key.0 <= *latest || key.0 > self.view.saturating_add(MAX_VIEWS_AHEAD) {
                return Added::Excess;
            }
            self.proposals.remove(middle);
        }
        self.proposals.insert(key, proposed);
        Added::New
    }

    pub(crate) fn add_evidence(&mut self, evidence: Evidence) -> Added {
        let slot = evidence.slot();
        let key = (slot.kind, slot.place.member);
        if self.evidence.contains_key(&key) {
            return Added::Known;
        }
        if let Evidence::Ballot(pair) = &evidence {
            let of_member = self.headers.entry(slot.place.member).or_default();
            for header in pair.statements() {
                let known = of_member.iter().any(|known| known.content() == header.content());
                if !known && of_member.len() < 2 {
                    of_member.push(header.clone());
                }
            }
        }
        self.evidence.insert(key, evidence);
        Added::New
    }

    fn vote_evidence<T>(&mut self, added: VoteAdded<T>, wrap: impl Fn(Equivocation<T>) -> Evidence) -> Added {
        match added {
            VoteAdded::New => Added::New,
            VoteAdded::Known => Added::Known,
            VoteAdded::Conflict(pair) => match self.conflict(wrap(*pair), false) {
                // nobody will ever rest on it
                Added::Excess => Added::Known,
                added => added,
            },
        }
    }

    /// The header of this member for this body.
    pub(crate) fn header_of(&self, member: MemberIndex, body: Digest) -> Option<&SignatureChecked<BallotHeader>> {
        self.headers.get(&member)?.iter().find(|header| header.content().body == body)
    }

    /// What is behind a value, as far as proposals tell.
    pub(crate) fn proposed(&self, value: Digest) -> Option<&Proposed> {
        self.proposals.values().find(|proposed| proposed.proposal().content().value == value)
    }

    /// Every message that is kept, as it travels, what matters first: what was decided, then ballots and
    /// holdings, then votes from `view` on.
    pub(crate) fn messages(&self, view: u32) -> Vec<Vec<u8>> {
        let mut messages: Vec<Vec<u8>> = self.settled.iter().map(Settled::encode).collect();
        messages.extend(self.evidence.values().map(Evidence::encode));
        messages.extend(self.headers.values().flatten().map(SignatureChecked::encode));
        messages.extend(self.holdings.values().map(SignatureChecked::encode));
        messages.extend(self.results.values().map(SignatureChecked::encode));
        if self.settled.is_none() {
            messages
                .extend(self.all_prevotes().filter(|vote| vote.content().view >= view).map(SignatureChecked::encode));
            messages.extend(
                self.precommits.values().filter(|vote| vote.content().view >= view).map(SignatureChecked::encode),
            );
            messages.extend(self.unfounded.range((view, MemberIndex(0))..).map(|(_, (_, bytes))| bytes.clone()));
        }
        // all of them: a liar is named by what it proposed
        messages.extend(self.proposals.values().map(Proposed::encode));
        messages
    }

    /// Everything that one member signed, as it travels.
    pub(crate) fn messages_of(&self, member: MemberIndex) -> Vec<Vec<u8>> {
        let mut messages: Vec<Vec<u8>> = Vec::new();
        messages.extend(self.headers.get(&member).into_iter().flatten().map(SignatureChecked::encode));
        messages.extend(self.holdings.get(&member).map(SignatureChecked::encode));
        messages.extend(self.results.get(&member).map(SignatureChecked::encode));
        messages.extend(self.proposals.iter().filter(|((_, of), _)| *of == member).map(|(_, one)| one.encode()));
        let views = (member, 0)..=(member, u32::MAX);
        messages.extend(self.prevotes.range(views.clone()).map(|(_, vote)| vote.encode()));
        messages.extend(self.precommits.range(views).map(|(_, vote)| vote.encode()));
        messages
    }

    /// Members that voted or proposed.
    pub(crate) fn voters(&self) -> BTreeSet<MemberIndex> {
        let votes = self.prevotes.keys().chain(self.precommits.keys()).map(|(member, _)| *member);
        votes.chain(self.proposals.keys().map(|(_, member)| *member)).collect()
    }
}

/// What is known of one height, to be read.
pub struct Known<'a>(pub(super) &'a Store);

impl Known<'_> {
    /// Signed headers of ballots; two of a member that equivocates.
    pub fn headers(&self) -> impl Iterator<Item = &SignatureChecked<BallotHeader>> {
        self.0.headers.values().flatten()
    }

    /// The latest holdings statement of each member.
    pub fn holdings(&self) -> impl Iterator<Item = &SignatureChecked<Holdings>> {
        self.0.holdings.values()
    }

    /// The first result of each member.
    pub fn results(&self) -> impl Iterator<Item = &SignatureChecked<MaskResult>> {
        self.0.results.values()
    }

    /// Proposals with what they rest on, encoded; also those that do not stand up.
    pub fn proposals(&self) -> impl Iterator<Item = (&SignatureChecked<Proposal>, Vec<u8>)> {
        let sound = self.0.proposals.values().map(|proposed| (proposed.proposal(), proposed.encode()));
        sound.chain(self.0.unfounded.values().map(|(proposal, bytes)| (proposal, bytes.clone())))
    }

    /// What was decided.
    pub fn settled(&self) -> Option<&Settled> {
        self.0.settled.as_ref()
    }

    /// Proof of statements made twice.
    pub fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.0.evidence.values()
    }
}

enum VoteAdded<T> {
    New,
    Known,
    Conflict(Box<Equivocation<T>>),
}

impl<T> VoteAdded<T> {
    /// Of a statement whose slot is filled.
    fn of(pair: Option<Equivocation<T>>) -> Self {
        pair.map_or(Self::Known, |pair| Self::Conflict(Box::new(pair)))
    }
}

fn add_vote<T: Statement>(
    votes: &mut BTreeMap<(MemberIndex, u32), SignatureChecked<T>>,
    key: (MemberIndex, u32),
    vote: SignatureChecked<T>,
) -> VoteAdded<T> {
    if let Some(known) = votes.get(&key) {
        return VoteAdded::of(Equivocation::between(known, &vote));
    }
    let of_member = (key.0, 0)..=(key.0, u32::MAX);
    if votes.range(of_member.clone()).count() >= MAX_VIEWS_A_MEMBER
        && let Some((oldest, _)) = votes.range(of_member).next()
    {
        let oldest = *oldest;
        if oldest.1 > key.1 {
            return VoteAdded::Known;
        }
        votes.remove(&oldest);
    }
    votes.insert(key, vote);
    VoteAdded::New
}
