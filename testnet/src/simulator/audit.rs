//! The real audit of what one member has on its disk, and nothing else.
//!
//! A machine is made of its log alone, as after a restart; what it knows becomes a transcript, as a node writes it, and
//! `fedprune audit verify` looks at that with the ids of consortium and round. There is no model on a disk here, so the
//! masks are not recomputed by it; whether all came to the same root, [`super::watch`] sees.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use fedprune_audit::report::{Area, Outcome};
use fedprune_audit::{Options, TranscriptWriter, verify};
use fedprune_engine::MalachiteEngine;
use fedprune_federation::Height;
use fedprune_federation::machine::{Machine, Setup};
use fedprune_mask::Digest;

use super::disk::Disk;
use super::watch::Watch;
use super::world::{Body, World};

/// The machine of a member that starts with what is on its disk.
pub fn recover(world: &World, member: usize, disk: &Disk) -> Result<Machine, String> {
    let key = world.key(member);
    let engine = MalachiteEngine::new(world.consortium.clone(), &world.round, key.clone());
    let engine = engine.map_err(|error| error.to_string())?;
    let setup =
        Setup { consortium: world.consortium.clone(), round: world.round.clone(), layout: world.layout().clone(), key };
    let records = disk.read().map_err(|error| format!("member {member} cannot read its own log: {error}"))?;
    let machine = Machine::recover(setup, Box::new(engine), records);
    machine.map_err(|error| format!("member {member} does not come back: {error}"))
}

/// Audits what is on the disk of a member, in a folder below `folder`.
pub fn audit(
    world: &World,
    watch: &Watch<'_>,
    member: usize,
    disk: &Disk,
    bodies: &BTreeMap<Digest, Body>,
    folder: &Path,
) -> Result<(), String> {
    let folder = tempfile::tempdir_in(folder).map_err(|error| format!("no folder for an audit: {error}"))?;
    let machine = recover(world, member, disk)?;
    for (height, settled) in watch.settled() {
        let known = machine.known(height).and_then(|known| known.settled().map(|own| own.decision().value()));
        if known != Some(settled.decision().value()) {
            return Err(format!("it has not what was decided at height {height}, or something else"));
        }
        if machine.mask_root(height) != watch.roots().get(&height).copied() {
            return Err(format!("it has not the mask root of height {height}, or another one"));
        }
    }
    let transcript = folder.path().join("transcript");
    write(world, &machine, bodies, &transcript).map_err(|error| format!("no transcript can be written: {error}"))?;
    let options =
        Options { consortium: Some(world.consortium.id()), round: Some(world.round.id()), ..Options::default() };
    let report = verify(&transcript, &options, &|_| ()).map_err(|error| error.to_string())?;
    if let Some(failure) = report.failures().next() {
        return Err(format!("its transcript does not stand up: {failure:?}"));
    }
    // without a model these are all that cannot be looked at
    let needs_model = |area: Area| matches!(area, Area::Model | Area::Mask | Area::Ballot | Area::Proposal);
    let mut skipped = report.not_checked();
    if let Some(check) = skipped.find(|check| !needs_model(check.area) && !is_number_of_heights(&check.outcome)) {
        return Err(format!("its transcript is not complete: {check:?}"));
    }
    for finding in &report.findings {
        let found = (0..world.members()).find(|index| world.name(*index) == finding.member);
        if found.is_none_or(|member| watch.is_honest(member)) {
            return Err(format!("an auditor blames a member who is honest: {finding:?}"));
        }
    }
    for (height, settled) in watch.settled() {
        let audited = report.heights.iter().find(|audited| audited.height == height);
        let Some(audited) = audited else { return Err(format!("height {height} is not in the audit")) };
        let counts = settled.decision().ballots().map_or(0, |ballots| ballots.count());
        let root = audited.agreed_mask_root;
        if audited.contributors.len() != counts || root != watch.roots().get(&height).copied() {
            return Err(format!("the audit of height {height} finds other ballots or another mask"));
        }
    }
    Ok(())
}

/// How many heights there should be, only a model tells.
fn is_number_of_heights(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NotChecked { why } if why.contains("only the model tells"))
}

fn write(
    world: &World,
    machine: &Machine,
    bodies: &BTreeMap<Digest, Body>,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut writer = TranscriptWriter::create(folder, &world.consortium, &world.round)?;
    for height in (0..machine.heights()).map(Height) {
        let Some(known) = machine.known(height) else { continue };
        known.headers().try_for_each(|header| writer.header(header))?;
        known.holdings().try_for_each(|statement| writer.holdings(statement))?;
        known.results().try_for_each(|result| writer.result(result))?;
        known.proposals().try_for_each(|(proposal, bytes)| writer.proposed(proposal, &bytes))?;
        known.evidence().try_for_each(|evidence| writer.evidence(evidence))?;
        known.settled().map_or(Ok(()), |settled| writer.settled(settled))?;
        for (_, body) in machine.ballots(height).unwrap_or_default() {
            let Some(bytes) = bodies.get(&body) else {
                return Err(format!("the ballot {} counts and is not there", body.short()).into());
            };
            let blob = folder.with_file_name(body.to_string());
            std::fs::write(&blob, bytes)?;
            writer.body(body, &blob)?;
        }
    }
    Ok(())
}
