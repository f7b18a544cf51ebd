//! What an agreement asks to record, and reads back after a restart.
//!
//! One entry for each input that changed the state, in order, and for each statement of ours before it is
//! sent. One byte, then the fields; integers little-endian; statements as they travel.
//!
//! | byte | entry | fields |
//! |---|---|---|
//! | 0 | the first of every journal | version (1), consortium id (32), round id (32), height (4), member (2) |
//! | 1 | a proposal that waits to be judged | statement |
//! | 2 | a proposal | statement |
//! | 3 | a prevote | statement |
//! | 4 | a precommit | statement |
//! | 5 | a judgement | view (4), a byte, 1 and the valid view (4) or 0, proposer (2), value (32), 1 if valid |
//! | 6 | a timer elapsed | kind (1), view (4) |
//! | 7 | a quorum of prevotes | number (2), then for each: bytes (2), statement |
//! | 8 | our key was used elsewhere: nothing is signed at this height any more | |
//!
//! Nothing here is trusted: signatures are checked again when it is read.

use arc_malachitebft_core_consensus::{Input, ProposedValue};
use arc_malachitebft_core_types::{PolkaCertificate, PolkaSignature, Round, Validity, ValueOrigin};
use fedprune_federation::agreement::{Repeated, Timer, TimerKind};
use fedprune_federation::statement::Statement;
use fedprune_federation::vote::MAX_VIEW;
use fedprune_federation::{
    Height, MemberIndex, Precommit, Prevote, Proposal, Ratified, Received, RoundId, SignatureChecked,
};
use fedprune_mask::Digest;

use crate::context::{Context, CoreAddress, CoreValue, core_proposal, core_timeout, core_vote};

const VERSION: u8 = 1;

/// What a member thinks of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) view: u32,
    pub(crate) valid_view: Option<u32>,
    pub(crate) proposer: MemberIndex,
    pub(crate) value: Digest,
    pub(crate) valid: bool,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Began,
    Waiting(SignatureChecked<Proposal>),
    Proposal(SignatureChecked<Proposal>),
    Vote(Repeated),
    Judged(Judgement),
    Elapsed(Timer),
    Polka(Vec<SignatureChecked<Prevote>>),
    Abstained,
}

/// Of whom and where a journal is.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) consortium: &'a Ratified,
    pub(crate) round: RoundId,
    pub(crate) height: Height,
    pub(crate) member: MemberIndex,
}

impl Judgement {
    /// For malachite.
    pub(crate) fn proposed_value(&self, height: Height) -> ProposedValue<Context> {
        ProposedValue {
            height: height.into(),
            round: Round::new(self.view),
            valid_round: Round::from(self.valid_view),
            proposer: CoreAddress(self.proposer),
            value: CoreValue(self.value),
            validity: Validity::from_bool(self.valid),
        }
    }

    /// From malachite.
    pub(crate) fn of(value: &ProposedValue<Context>) -> Option<Self> {
        Some(Self {
            view: value.round.as_u32()?,
            valid_view: value.valid_round.as_u32(),
            proposer: value.proposer.0,
            value: value.value.0,
            valid: value.validity.is_valid(),
        })
    }
}

impl Entry {
    /// As it is recorded.
    pub(crate) fn encode(&self, owner: Owner<'_>) -> Vec<u8> {
        match self {
            Entry::Began => [&[0, VERSION][..], &header(owner)].concat(),
            Entry::Waiting(proposal) => [&[1][..], &proposal.encode()].concat(),
            Entry::Proposal(proposal) => [&[2][..], &proposal.encode()].concat(),
            Entry::Vote(Repeated::Prevote(vote)) => [&[3][..], &vote.encode()].concat(),
            Entry::Vote(Repeated::Precommit(vote)) => [&[4][..], &vote.encode()].concat(),
            Entry::Judged(judgement) => {
                let mut bytes = vec![5];
                bytes.extend_from_slice(&judgement.view.to_le_bytes());
                bytes.push(u8::from(judgement.valid_view.is_some()));
                if let Some(valid_view) = judgement.valid_view {
                    bytes.extend_from_slice(&valid_view.to_le_bytes());
                }
                bytes.extend_from_slice(&judgement.proposer.0.to_le_bytes());
                bytes.extend_from_slice(&judgement.value.0);
                bytes.push(u8::from(judgement.valid));
                bytes
            }
            Entry::Elapsed(timer) => {
                let kind = match timer.kind {
                    TimerKind::Proposal => 0,
                    TimerKind::Prevote => 1,
                    TimerKind::Precommit => 2,
                    TimerKind::Repeat => 3,
                };
                [&[6, kind][..], &timer.view.to_le_bytes()].concat()
            }
            Entry::Polka(prevotes) => {
                let mut bytes = vec![7];
                // a consortium has a thousand members at most, and a prevote two hundred bytes
                bytes.extend_from_slice(&u16::try_from(prevotes.len()).unwrap_or(u16::MAX).to_le_bytes());
                for prevote in prevotes {
                    let statement = prevote.encode();
                    bytes.extend_from_slice(&u16::try_from(statement.len()).unwrap_or(u16::MAX).to_le_bytes());
                    bytes.extend_from_slice(&statement);
                }
                bytes
            }
            Entry::Abstained => vec![8],
        }
    }

    /// The votes in it.
    pub(crate) fn into_votes(self) -> Vec<Repeated> {
        match self {
            Entry::Vote(vote) => vec![vote],
            Entry::Polka(prevotes) => prevotes.into_iter().map(Repeated::Prevote).collect(),
            _ => Vec::new(),
        }
    }

    /// Reads an entry and checks all signatures in it.
    ///
    /// # Errors
    /// What is wrong, in words that follow "entry 3 of the journal cannot be replayed".
    pub(crate) fn decode(bytes: &[u8], owner: Owner<'_>) -> Result<Self, String> {
        let (tag, rest) = bytes.split_first().ok_or("it is empty")?;
        let mut fields = Fields(rest);
        let entry = match tag {
            0 => {
                let [version] = fields.array()?;
                if version != VERSION {
                    return Err(format!("it is written in version {version}, and this program reads {VERSION}"));
                }
                if fields.0 != header(owner) {
                    return Err("it begins the journal of another consortium, round, height or member".to_owned());
                }
                return Ok(Entry::Began);
            }
            1 => return Ok(Entry::Waiting(statement(rest, owner)?)),
            2 => return Ok(Entry::Proposal(statement(rest, owner)?)),
            3 => return Ok(Entry::Vote(Repeated::Prevote(statement::<Prevote>(rest, owner)?))),
            4 => return Ok(Entry::Vote(Repeated::Precommit(statement::<Precommit>(rest, owner)?))),
            5 => {
                let view = fields.view()?;
                let valid_view = if fields.flag()? { Some(fields.view()?) } else { None };
                let proposer = MemberIndex(u16::from_le_bytes(fields.array()?));
                let value = Digest(fields.array()?);
                let valid = fields.flag()?;
                if owner.consortium.member(proposer).is_none() {
                    return Err(format!("it names member {proposer}, and there is none"));
                }
                Entry::Judged(Judgement { view, valid_view, proposer, value, valid })
            }
            6 => {
                let kind = match fields.array()? {
                    [0] => TimerKind::Proposal,
                    [1] => TimerKind::Prevote,
                    [2] => TimerKind::Precommit,
                    [3] => TimerKind::Repeat,
                    [other] => return Err(format!("it names a timer of kind {other}, and there is none")),
                };
                Entry::Elapsed(Timer { kind, view: fields.view()? })
            }
            7 => {
                let number = u16::from_le_bytes(fields.array()?);
                let mut prevotes = Vec::new();
                for _ in 0..number {
                    let length = u16::from_le_bytes(fields.array()?);
                    prevotes.push(statement(fields.take(usize::from(length))?, owner)?);
                }
                Entry::Polka(prevotes)
            }
            8 => Entry::Abstained,
            other => return Err(format!("it is of kind {other}, and there is none")),
        };
        if !fields.0.is_empty() {
            return Err(format!("it has {} bytes too many", fields.0.len()));
        }
        Ok(entry)
    }

    /// What malachite is told when the entry is replayed, if it is told anything.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn input(&self, height: Height) -> Result<Option<Input<Context>>, String> {
        Ok(Some(match self {
            Entry::Began | Entry::Waiting(_) | Entry::Abstained => return Ok(None),
            Entry::Proposal(proposal) => Input::Proposal(core_proposal(proposal)),
            Entry::Vote(vote) => Input::Vote(core_vote(vote, height)),
            Entry::Judged(judgement) => Input::ProposedValue(judgement.proposed_value(height), ValueOrigin::Consensus),
            Entry::Elapsed(timer) => Input::TimeoutElapsed(core_timeout(*timer)),
            Entry::Polka(prevotes) => Input::PolkaCertificate(certificate(prevotes.iter(), height)?),
        }))
    }
}

/// Malachite's certificate of prevotes for one value.
///
/// # Errors
/// When they are not of one view and value.
pub(crate) fn certificate<'a>(
    prevotes: impl IntoIterator<Item = &'a SignatureChecked<Prevote>>,
    height: Height,
) -> Result<PolkaCertificate<Context>, String> {
    let mut prevotes = prevotes.into_iter().peekable();
    let place = prevotes.peek().map(|first| *first.content());
    let Some(Prevote { view, value: Some(value) }) = place else {
        return Err("it has prevotes of no value".to_owned());
    };
    let mut polka_signatures = Vec::new();
    for prevote in prevotes {
        if Some(*prevote.content()) != place {
            return Err("it has prevotes of several views or values".to_owned());
        }
        polka_signatures.push(PolkaSignature::new(CoreAddress(prevote.member()), prevote.signature()));
    }
    Ok(PolkaCertificate {
        height: height.into(),
        round: Round::new(view),
        value_id: CoreValue(value),
        polka_signatures,
    })
}

fn header(owner: Owner<'_>) -> Vec<u8> {
    let mut bytes = owner.consortium.id().0.0.to_vec();
    bytes.extend_from_slice(&owner.round.0.0);
    bytes.extend_from_slice(&owner.height.0.to_le_bytes());
    bytes.extend_from_slice(&owner.member.0.to_le_bytes());
    bytes
}

fn statement<T: Statement>(bytes: &[u8], owner: Owner<'_>) -> Result<SignatureChecked<T>, String> {
    let received = Received::<T>::decode(bytes).map_err(|error| chain(&error))?;
    let checked = received.check(owner.consortium, owner.round).map_err(|error| chain(&error))?;
    if checked.height() != owner.height {
        return Err(format!("it is of height {}", checked.height()));
    }
    Ok(checked)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// What of the fields is not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "it is cut short".to_owned())
    }

    fn view(&mut self) -> Result<u32, String> {
        let view = u32::from_le_bytes(self.array()?);
        if view > MAX_VIEW {
            return Err(format!("it is of view {view}, and no round comes to that"));
        }
        Ok(view)
    }

    fn flag(&mut self) -> Result<bool, String> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("it says {other} where 0 or 1 is expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MalachiteEngine;
    use crate::testing::{World, key, value};
    use fedprune_federation::agreement::Engine;
    use proptest::prelude::*;

    fn entries(world: &World) -> Vec<Entry> {
        let proposal = world.proposal(1, 2, "a", Some(0));
        let prevotes = [0, 2, 3].map(|member| match world.prevote(member, 1, Some("a")) {
            Repeated::Prevote(vote) => vote,
            Repeated::Precommit(_) => unreachable!(),
        });
        let judgement =
            |valid_view, valid| Judgement { view: 2, valid_view, proposer: MemberIndex(1), value: value("a"), valid };
        let timer = |kind| Entry::Elapsed(Timer { kind, view: 9 });
        vec![
            Entry::Began,
            Entry::Waiting(proposal.clone()),
            Entry::Proposal(proposal),
            Entry::Vote(world.prevote(3, 0, None)),
            Entry::Vote(world.precommit(3, 0, Some("a"))),
            Entry::Judged(judgement(None, true)),
            Entry::Judged(judgement(Some(1), false)),
            timer(TimerKind::Proposal),
            timer(TimerKind::Prevote),
            timer(TimerKind::Precommit),
            timer(TimerKind::Repeat),
            Entry::Polka(prevotes.to_vec()),
            Entry::Abstained,
        ]
    }

    #[test]
    fn entries_read_back() {
        let world = World::new(4);
        for entry in entries(&world) {
            let bytes = entry.encode(world.owner(0));
            assert_eq!(Entry::decode(&bytes, world.owner(0)), Ok(entry));
        }
    }

    #[test]
    fn votes_are_found_again() {
        let world = World::new(4);
        let journal: Vec<Vec<u8>> = entries(&world).iter().map(|entry| entry.encode(world.owner(0))).collect();
        let engine = MalachiteEngine::new(world.consortium.clone(), &world.round, key(0)).unwrap();
        let votes = engine.votes(world.height, &journal);
        assert_eq!(votes.len(), 2 + 3);
        assert_eq!(votes[..2], [world.prevote(3, 0, None), world.precommit(3, 0, Some("a"))]);
        assert!(votes[2..].contains(&world.prevote(2, 1, Some("a"))));
    }

    #[test]
    fn journals_of_others_are_refused() {
        let (ours, other) = (World::new(4), World::new(5));
        for entry in entries(&other) {
            let bytes = entry.encode(other.owner(0));
            let foreign = !matches!(entry, Entry::Judged(_) | Entry::Elapsed(_) | Entry::Abstained);
            assert_eq!(Entry::decode(&bytes, ours.owner(0)).is_err(), foreign, "{entry:?}");
        }
        let bytes = Entry::Began.encode(ours.owner(0));
        assert!(Entry::decode(&bytes, ours.owner(1)).unwrap_err().contains("another"));
        let next = Owner { height: Height(ours.height.0 + 1), ..ours.owner(0) };
        let vote = Entry::Vote(ours.prevote(1, 0, None)).encode(ours.owner(0));
        assert!(Entry::decode(&vote, next).unwrap_err().contains("height"));
        let mixed = |votes: [Repeated; 2]| {
            let votes = votes.map(|vote| match vote {
                Repeated::Prevote(vote) => vote,
                Repeated::Precommit(_) => unreachable!(),
            });
            Entry::Polka(votes.to_vec()).input(ours.height)
        };
        assert!(mixed([ours.prevote(0, 0, Some("a")), ours.prevote(1, 0, Some("b"))]).is_err());
        assert!(mixed([ours.prevote(0, 0, None), ours.prevote(1, 0, None)]).is_err());
        assert!(Entry::Polka(Vec::new()).input(ours.height).is_err());
    }

    proptest! {
        #[test]
        fn damage_is_found_or_harmless(which in 0usize..13, at: prop::sample::Index, bit in 0u8..8, cut: bool) {
            let world = World::new(4);
            let entry = entries(&world).swap_remove(which);
            let mut bytes = entry.encode(world.owner(0));
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            // what is read is another entry, and what it says is signed or local
            if let Ok(read) = Entry::decode(&bytes, world.owner(0)) {
                prop_assert_ne!(&read, &entry);
                prop_assert_eq!(read.encode(world.owner(0)), bytes);
            }
        }
    }
}
