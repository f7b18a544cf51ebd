//! What must be true of honest members, whatever anybody does; looked at after each of their steps.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_federation::machine::{Event, Kept, Machine, Record};
use fedprune_federation::signing::Kind;
use fedprune_federation::statement::Statement;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{
    BallotHeader, Height, Holdings, MaskResult, Precommit, Prevote, Received, ReceivedEvidence, ReceivedProposed,
    ReceivedSettled, Settled, SignatureChecked,
};
use fedprune_mask::Digest;

use super::disk::Disk;
use super::world::World;

/// A slot of a member: what it may fill with one statement.
type Slot = (usize, Kind, Height, u32);

/// In how many steps of a member it is looked once how much it keeps.
const STEPS_A_LOOK: u64 = 32;

/// What was looked at of a member since it started.
#[derive(Debug, Default)]
struct Looked {
    life: u64,
    steps: u64,
    evidence: BTreeMap<Height, usize>,
    settled: BTreeSet<Height>,
    rooted: BTreeSet<Height>,
}

/// What honest members did, and whether they may.
pub struct Watch<'a> {
    world: &'a World,
    honest: Vec<bool>,
    /// The statement in each slot of an honest member; of holdings, the latest.
    said: BTreeMap<Slot, Vec<u8>>,
    /// The first holdings statement of each honest member.
    first_holdings: BTreeMap<(Height, usize), Holdings>,
    /// Ballots that honest members found valid and have stored.
    stored: BTreeSet<(Height, usize, Digest)>,
    settled: BTreeMap<Height, (Digest, Settled)>,
    /// Encodings of settled decisions that were checked.
    certified: BTreeSet<Digest>,
    roots: BTreeMap<Height, Digest>,
    accusations: BTreeSet<Digest>,
    /// Of each member in its present life: what was looked at and cannot change, and how many steps it has taken.
    looked: BTreeMap<usize, Looked>,
    /// Whom somebody told to have proposed what may not be agreed on.
    pub bad_proposals: BTreeSet<usize>,
    /// Whose ballots somebody found invalid.
    pub refused: BTreeSet<usize>,
    /// Members that sent the same ballot, as somebody told.
    pub same_ballots: BTreeSet<(usize, usize)>,
}

impl<'a> Watch<'a> {
    pub fn new(world: &'a World, liars: &BTreeSet<usize>) -> Self {
        Self {
            world,
            honest: (0..world.members()).map(|member| !liars.contains(&member)).collect(),
            said: BTreeMap::new(),
            first_holdings: BTreeMap::new(),
            stored: BTreeSet::new(),
            settled: BTreeMap::new(),
            certified: BTreeSet::new(),
            roots: BTreeMap::new(),
            accusations: BTreeSet::new(),
            looked: BTreeMap::new(),
            bad_proposals: BTreeSet::new(),
            refused: BTreeSet::new(),
            same_ballots: BTreeSet::new(),
        }
    }

    pub fn is_honest(&self, member: usize) -> bool {
        self.honest[member]
    }

    /// What was decided at each height.
    pub fn settled(&self) -> impl Iterator<Item = (Height, &Settled)> {
        self.settled.iter().map(|(height, (_, settled))| (*height, settled))
    }

    /// The mask root of each height.
    pub fn roots(&self) -> &BTreeMap<Height, Digest> {
        &self.roots
    }

    /// An honest member has found a ballot valid, and has it stored.
    pub fn stored(&mut self, height: Height, member: usize, body: Digest) {
        self.stored.insert((height, member, body));
    }

    /// An honest member sends something.
    pub fn sends(&mut self, from: usize, bytes: &[u8], disk: &Disk) -> Result<(), String> {
        match wire::content_of(bytes) {
            Ok(Some(Content::BallotHeader)) => self.says::<BallotHeader>(from, bytes, disk, |_| 0),
            Ok(Some(Content::Holdings)) => self.says::<Holdings>(from, bytes, disk, |_| 0),
            Ok(Some(Content::MaskResult)) => self.says::<MaskResult>(from, bytes, disk, |_| 0),
            Ok(Some(Content::Prevote)) => self.says::<Prevote>(from, bytes, disk, |vote| vote.view),
            Ok(Some(Content::Precommit)) => self.says::<Precommit>(from, bytes, disk, |vote| vote.view),
            Ok(Some(Content::Proposed)) => {
                let received = ReceivedProposed::decode(bytes).map_err(|error| error.to_string())?;
                if received.claimed_member().as_usize() != from {
                    return Ok(());
                }
                let proposed = received
                    .check(&self.world.consortium, &self.world.round)
                    .map_err(|error| format!("member {from} sends a proposal that nobody takes: {error}"))?;
                let (height, view) = (proposed.proposal().height(), proposed.proposal().content().view);
                // what a value rests on is no part of what is signed
                let signed = proposed.proposal().encode();
                self.fills((from, Kind::Proposal, height, view), signed, bytes, disk)
            }
            Ok(Some(Content::Evidence)) => self.accuses(from, bytes),
            Ok(Some(Content::Settled)) => Ok(()),
            other => Err(format!("member {from} sends {other:?}")),
        }
    }

    fn says<T: Statement>(
        &mut self,
        from: usize,
        bytes: &[u8],
        disk: &Disk,
        view: impl Fn(&T) -> u32,
    ) -> Result<(), String> {
        let received = Received::<T>::decode(bytes).map_err(|error| error.to_string())?;
        if received.claimed_member().as_usize() != from {
            return Ok(());
        }
        let statement = received
            .check(&self.world.consortium, self.world.round.id())
            .map_err(|error| format!("member {from} sends what nobody takes: {error}"))?;
        let slot = (from, T::KIND, statement.height(), view(statement.content()));
        if T::KIND == Kind::Holdings {
            return self.holds(slot, bytes, disk);
        }
        self.fills(slot, bytes.to_vec(), bytes, disk)
    }

    fn holds(&mut self, slot: Slot, bytes: &[u8], disk: &Disk) -> Result<(), String> {
        let new = self.holdings(bytes)?;
        self.first_holdings.entry((slot.2, slot.0)).or_insert_with(|| new.content().clone());
        if let Some(before) = self.said.get(&slot) {
            let before = self.holdings(before)?;
            if before.content().conflicts_with(new.content()) {
                return Err(format!("member {} holds two things at height {}", slot.0, slot.2));
            }
        }
        self.said.remove(&slot);
        self.fills(slot, bytes.to_vec(), bytes, disk)
    }

    fn holdings(&self, bytes: &[u8]) -> Result<SignatureChecked<Holdings>, String> {
        let received = Received::<Holdings>::decode(bytes).map_err(|error| error.to_string())?;
        received.check(&self.world.consortium, self.world.round.id()).map_err(|error| error.to_string())
    }

    fn fills(&mut self, slot: Slot, signed: Vec<u8>, bytes: &[u8], disk: &Disk) -> Result<(), String> {
        let (member, kind, height, view) = slot;
        match self.said.get(&slot) {
            Some(before) if *before == signed => return Ok(()),
            Some(_) => return Err(format!("member {member} signs two of {kind} at height {height}, view {view}")),
            None => {}
        }
        // a vote that the agreement repeats may be in its journal alone: behind a byte that says what it is
        let journalled = || (0..=u8::MAX).any(|kind| disk.has(height, &Record::Journal([&[kind], bytes].concat())));
        if !disk.has(height, &Record::Said(bytes.to_vec())) && !journalled() {
            return Err(format!("member {member} sends a {kind} at height {height} before it is durable"));
        }
        self.said.insert(slot, signed);
        Ok(())
    }

    fn accuses(&mut self, from: usize, bytes: &[u8]) -> Result<(), String> {
        if !self.accusations.insert(Digest::of(bytes)) {
            return Ok(());
        }
        let received = ReceivedEvidence::decode(bytes).map_err(|error| error.to_string())?;
        let evidence = received.verify(&self.world.consortium, self.world.round.id());
        let evidence = evidence.map_err(|error| format!("member {from} sends evidence of nothing: {error}"))?;
        self.blames(from, evidence.slot().place.member.as_usize(), "equivocation")
    }

    fn blames(&self, by: usize, member: usize, what: &str) -> Result<(), String> {
        match self.honest.get(member) {
            Some(false) => Ok(()),
            _ => Err(format!("member {by} blames member {member}, who is honest, for {what}")),
        }
    }

    /// An honest member tells its operator something.
    pub fn tells(&mut self, from: usize, event: &Event) -> Result<(), String> {
        match event {
            Event::BadProposal { member, why, .. } => {
                self.bad_proposals.insert(member.as_usize());
                // clocks differ: who abandons a little earlier than others does nothing wrong
                if why.contains("too early to abandon") { Ok(()) } else { self.blames(from, member.as_usize(), why) }
            }
            Event::Refused { member, why, .. } => {
                self.refused.insert(member.as_usize());
                self.blames(from, member.as_usize(), why)
            }
            Event::Equivocation { member, .. } => self.blames(from, member.as_usize(), "equivocation"),
            Event::SameBallot { members: [one, other], .. } => {
                self.same_ballots.insert((one.as_usize(), other.as_usize()));
                if self.honest[one.as_usize()] && self.honest[other.as_usize()] {
                    return Err(format!("members {one} and {other} are honest and have the same ballot"));
                }
                Ok(())
            }
            Event::Adopted { height, kind } => {
                Err(format!("member {from} did not know a {kind} of its own at height {height}"))
            }
            _ => Ok(()),
        }
    }

    /// An honest member has taken a step.
    pub fn after(&mut self, member: usize, life: u64, machine: &Machine, disk: &Disk) -> Result<(), String> {
        let mut looked = self.looked.remove(&member).unwrap_or_default();
        if looked.life != life {
            looked = Looked { life, ..Looked::default() };
        }
        looked.steps += 1;
        for height in (0..machine.heights()).map(Height) {
            let Some(known) = machine.known(height) else { continue };
            let proofs = known.evidence().count();
            if looked.evidence.insert(height, proofs) != Some(proofs) {
                for evidence in known.evidence() {
                    self.blames(member, evidence.slot().place.member.as_usize(), "equivocation")?;
                }
            }
            if let Some(settled) = known.settled()
                && looked.settled.insert(height)
            {
                self.decided(member, height, settled)?;
            }
            if !looked.rooted.contains(&height)
                && let Some(root) = machine.mask_root(height)
            {
                looked.rooted.insert(height);
                let first = *self.roots.entry(height).or_insert(root);
                if first != root {
                    return Err(format!("member {member} has another mask at height {height}"));
                }
            }
            if looked.steps.is_multiple_of(STEPS_A_LOOK) {
                self.keeps(member, height, machine, disk)?;
            }
        }
        self.looked.insert(member, looked);
        Ok(())
    }

    /// However much others send, a member keeps and writes down so much and no more.
    fn keeps(&self, member: usize, height: Height, machine: &Machine, disk: &Disk) -> Result<(), String> {
        let members = self.world.members();
        let most = Kept::most(members, machine.view(height) as usize + 1);
        let kept = machine.kept(height).unwrap_or_default();
        if let Some((what, found, most)) = kept.beyond(&most) {
            return Err(format!("member {member} keeps {found} {what} of height {height}, more than {most}"));
        }
        // what is kept is written down once, statements that replace others too; a restart may write an entry again
        let replaced = members * (members + 2) + most.proposals * 2;
        let most = 2 * (most.journal + most.headers + most.ballots + most.evidence * 2 + most.results + replaced);
        let (records, _) = disk.size(height);
        if records > most {
            return Err(format!("member {member} has written {records} records of height {height}, more than {most}"));
        }
        Ok(())
    }

    fn decided(&mut self, member: usize, height: Height, settled: &Settled) -> Result<(), String> {
        let value = settled.decision().value();
        let encoded = settled.encode();
        if self.certified.insert(Digest::of(&encoded)) {
            // from its bytes alone, as an auditor would
            let received = ReceivedSettled::decode(&encoded).map_err(|error| error.to_string())?;
            let again = received
                .check(&self.world.consortium, &self.world.round)
                .map_err(|error| format!("member {member} decides what is not certified: {error}"))?;
            if again.decision().height() != height || again.certificate().value() != value {
                return Err(format!("member {member} decides something else than what is certified"));
            }
            // counted here, whatever the code under test takes for a quorum
            let (members, committed) = (self.world.members(), again.certificate().members().count());
            if 3 * committed <= 2 * members {
                return Err(format!("member {member} decides by the votes of {committed} of {members} members"));
            }
            self.manifest_is_fair(height, settled)?;
        }
        match self.settled.get(&height) {
            Some((first, _)) if *first != value => Err(format!("member {member} decides otherwise at height {height}")),
            Some(_) => Ok(()),
            None => {
                self.settled.insert(height, (value, settled.clone()));
                Ok(())
            }
        }
    }

    /// What counts is held by somebody honest, and what all of them hold counts.
    fn manifest_is_fair(&self, height: Height, settled: &Settled) -> Result<(), String> {
        let Some(manifest) = settled.decision().ballots() else { return Ok(()) };
        for (member, body) in manifest.contributors() {
            if !self.stored.contains(&(height, member.as_usize(), body)) {
                return Err(format!(
                    "the ballot of member {member} counts at height {height}, and no honest member has it"
                ));
            }
        }
        let mut of_height = self.first_holdings.iter().filter(|((of, _), _)| *of == height).map(|(_, held)| held);
        let Some(first) = of_height.next() else {
            return Err(format!("height {height} is decided before anybody honest says what it holds"));
        };
        let mut common = first.ballots().to_vec();
        for held in of_height {
            for (entry, other) in common.iter_mut().zip(held.ballots()) {
                if entry != other {
                    *entry = None;
                }
            }
        }
        for (member, (held, counts)) in common.iter().zip(manifest.ballots()).enumerate() {
            if held.is_some() && held != counts {
                return Err(format!(
                    "all honest members hold the ballot of member {member} at height {height}, and it does not count"
                ));
            }
        }
        Ok(())
    }
}
