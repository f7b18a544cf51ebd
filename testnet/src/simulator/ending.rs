//! How a run ends: who is waited for, what is said when nothing ends, what is on the disks, and the report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fedprune_federation::Height;
use fedprune_federation::machine::Machine;

use super::audit;
use super::member::Member;
use super::run::Run;
use super::scenario::TroubleKind;
use super::{Report, Violation};

impl Violation {
    /// What kind of thing went wrong, without who and when: the first words.
    pub fn is_stall(&self) -> bool {
        self.what.starts_with(STALLED)
    }
}

const STALLED: &str = "the round does not end";

impl Run<'_> {
    /// Honest members that are up in the end.
    fn honest(&self) -> impl Iterator<Item = (usize, &Member)> {
        let stays_down = |member: usize| {
            let mut troubles = self.scenario.troubles.iter().filter(|trouble| trouble.member == member);
            troubles.any(|trouble| trouble.kind == TroubleKind::Down && trouble.until_ms > self.scenario.limit_ms)
        };
        let members = self.members.iter().enumerate();
        members.filter(move |(member, _)| self.watch.is_honest(*member) && !stays_down(*member))
    }

    pub(super) fn all_finished(&self) -> bool {
        self.honest().all(|(index, member)| member.finished.is_some() && self.without_result(index, member).is_none())
    }

    /// A height with a mask of which a member has no result of its own, to say it or to answer with it: others may need it.
    fn without_result(&self, index: usize, member: &Member) -> Option<Height> {
        let known = |height| member.machine.as_ref().and_then(|machine| machine.known(height));
        let has = |height| known(height).is_some_and(|of| of.results().any(|one| one.member().as_usize() == index));
        self.watch.roots().keys().copied().find(|height| !has(*height))
    }

    /// Where each member is, and what it waits for; members in the same state together.
    pub(super) fn stalled(&self) -> String {
        let mut stages: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (member, state) in self.honest() {
            let stage = match (&state.machine, state.finished) {
                (_, Some(outcome)) => match self.without_result(member, state) {
                    Some(height) => format!("{outcome:?}, and it never signs its result of height {height}"),
                    None => format!("{outcome:?}"),
                },
                (None, None) => "down".to_owned(),
                (Some(machine), None) => stage(machine),
            };
            stages.entry(stage).or_default().push(member);
        }
        let told = stages.into_iter().map(|(stage, members)| match members.as_slice() {
            [member] => format!("member {member}: {stage}"),
            [first, .., last] => format!("{} members, {first} to {last}: {stage}", members.len()),
            [] => stage,
        });
        format!("{STALLED}: {}", told.collect::<Vec<_>>().join("; "))
    }

    /// Cuts the power of all, and looks at what is on the disk of each honest member.
    pub(super) fn look_at_disks(&mut self, audit_in: Option<&Path>) -> Result<(), String> {
        let Some(folder) = audit_in else { return Ok(()) };
        let honest: Vec<usize> = self.honest().map(|(member, _)| member).collect();
        for member in honest {
            self.members[member].disk.crash(&mut self.crash);
            let state = &self.members[member];
            audit::audit(self.world, &self.watch, member, &state.disk, &state.bodies, folder)
                .map_err(|why| format!("the disk of member {member}: {why}"))?;
        }
        Ok(())
    }

    pub(super) fn report(&mut self, finished_ms: u64) -> Result<Report, String> {
        let outcomes: Vec<_> = self.honest().filter_map(|(_, member)| member.told).collect();
        let Some(outcome) = outcomes.first().copied() else { return Err("nobody is honest".to_owned()) };
        if outcomes.iter().any(|other| *other != outcome) {
            return Err(format!("members end differently: {outcomes:?}"));
        }
        let (mut evidence, mut proposals) = (BTreeMap::new(), BTreeMap::new());
        for (index, member) in self.honest() {
            let (mut against, mut proposed) = (BTreeSet::new(), BTreeSet::new());
            // one that is down is what its disk makes of it
            let recovered = match &member.machine {
                Some(_) => None,
                None => Some(audit::recover(self.world, index, &member.disk)?),
            };
            let Some(machine) = member.machine.as_ref().or(recovered.as_ref()) else { continue };
            for height in (0..self.world.heights()).map(Height) {
                let Some(known) = machine.known(height) else { continue };
                for one in known.evidence() {
                    against.insert((height, one.slot().kind, one.slot().place.member.as_usize()));
                }
                for (proposal, _) in known.proposals() {
                    proposed.insert((height, proposal.member().as_usize(), proposal.content().value));
                }
            }
            evidence.insert(index, against);
            proposals.insert(index, proposed);
        }
        Ok(Report {
            trace: self.trace,
            outcome,
            decided: self.watch.settled().map(|(height, settled)| (height, settled.clone())).collect(),
            mask_roots: self.watch.roots().clone(),
            evidence,
            proposals,
            bad_proposals: self.watch.bad_proposals.clone(),
            refused: self.watch.refused.clone(),
            same_ballots: self.watch.same_ballots.clone(),
            crashes: self.crashes,
            events: self.events,
            finished_ms,
        })
    }
}

/// Where a member is, and what it waits for.
fn stage(machine: &Machine) -> String {
    let stage = if machine.has_joined() {
        format!("at height {}, {}", machine.current(), machine.stage())
    } else {
        "joining".to_owned()
    };
    match machine.shortage() {
        Some(shortage) => format!("{stage}: {shortage}"),
        None => stage,
    }
}
