//! Whether a member said one thing in one transcript and another in the other, which neither shows by itself.

use std::collections::BTreeSet;

use fedprune_federation::{Height, Ratified, Round};

use super::equivocation::Said;
use super::ledger::Ledger;
use super::{Context, decision, founding, statements};
use crate::report::{Check, Finding, Outcome};
use crate::transcript::{HeightFiles, Transcript};

/// The founding documents of a transcript, or why they do not hold.
pub(crate) fn founded(transcript: &Transcript) -> Result<(Ratified, Round), String> {
    let mut ledger = Ledger::default();
    founding::check(transcript, &super::Options::default(), &mut ledger).ok_or_else(|| {
        let report = ledger.into_report(&super::Options::default(), None);
        let first = report.failures().next().map(why);
        first.unwrap_or_else(|| "its founding documents cannot be read".to_owned())
    })
}

/// A failed check in words.
pub(crate) fn why(check: &Check) -> String {
    match &check.outcome {
        Outcome::Failed { why, .. } => format!("{}: {why}", check.subject),
        _ => check.subject.clone(),
    }
}

/// Members that contradict themselves between two transcripts of one round, and in neither alone.
pub(crate) fn contradictions((a, b): (&Transcript, &Transcript), consortium: &Ratified, round: &Round) -> Vec<Finding> {
    let contexts = [("A: ", a), ("B: ", b)].map(|(from, transcript)| {
        let progress: &(dyn Fn(super::Progress) + Sync) = &|_| ();
        (from, Context { transcript, consortium, round, model: None, progress, agreement: false })
    });
    let heights: BTreeSet<Height> = a.heights().chain(b.heights()).map(|(height, _)| height).collect();
    let mut found = Vec::new();
    for height in heights {
        let mut alone = Ledger::default();
        let mut both = Said::from("");
        for (from, context) in &contexts {
            let mut said = Said::from(from);
            hear(context, height, &mut said);
            said.judge(context, height, &mut alone);
            both.absorb(said);
        }
        let mut together = Ledger::default();
        let [(_, context), _] = &contexts;
        both.judge(context, height, &mut together);
        // of one kind: what stands before the colon
        let kind =
            |finding: &Finding| (finding.member.clone(), finding.what.split(':').next().unwrap_or_default().to_owned());
        let known: BTreeSet<_> = alone.findings().iter().map(kind).collect();
        found.extend(together.findings().iter().filter(|finding| !known.contains(&kind(finding))).cloned());
    }
    found
}

/// Everything signed that a transcript has of one height.
fn hear(context: &Context<'_>, height: Height, said: &mut Said) {
    let none = HeightFiles::default();
    let files = context.transcript.height(height).unwrap_or(&none);
    let mut unused = Ledger::default();
    if files.settled {
        decision::settled(context, height, said, &mut unused);
    }
    statements::read(context, height, files, said, &mut unused);
}
