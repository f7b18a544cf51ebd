//! What a height came to: certificate, the statements it follows from, and everything that hangs on it.

use std::collections::BTreeMap;

use fedprune_federation::proposed::SettledError;
use fedprune_federation::result::agreed_root;
use fedprune_federation::round::TallyBy;
use fedprune_federation::{Height, MaskResult, ReceivedSettled, Rotation, Settled, SignatureChecked};
use fedprune_mask::Digest;
use fedprune_mask::matrix_mask::mask_root;

use super::equivocation::Said;
use super::ledger::{Ledger, blamed, failed};
use super::pruned::PrunedCopy;
use super::statements::{self, Statements};
use super::{Context, ballots, mask, proposals};
use crate::report::{Area, Contribution, Fault, HeightReport, Outcome, PassedOver, chain};
use crate::transcript::{HeightFiles, settled_path};

/// What one height came to, as far as it could be recomputed.
#[derive(Default)]
pub(super) struct HeightOutcome {
    /// Nothing more is decided after it.
    pub abandoned: bool,
    /// Digests of the masks of its matrices.
    pub digests: Option<Vec<Digest>>,
}

/// Checks everything of one height.
pub(super) fn audit_height(
    context: &Context<'_>,
    height: Height,
    files: &HeightFiles,
    pruned: Option<&mut PrunedCopy>,
    ledger: &mut Ledger,
) -> HeightOutcome {
    let mut said = Said::default();
    let settled = settled(context, height, &mut said, ledger);
    let statements = statements::read(context, height, files, &mut said, ledger);
    said.judge(context, height, ledger);
    let Some(settled) = settled else { return HeightOutcome::default() };
    let Some(manifest) = settled.decision().ballots() else {
        proposals::judge(context, height, &statements, &settled, &mut BTreeMap::new(), ledger);
        let report = summary(context, &settled, &statements, Recomputed::default(), ledger);
        ledger.height(report);
        return HeightOutcome { abandoned: true, digests: None };
    };
    let bodies = ballots::read(context, height, &manifest, &statements.headers, ledger);
    let digests = mask::recompute(context, height, &manifest, &bodies, &statements.headers, pruned, ledger);
    let block = context.model.and_then(|model| model.block(context.round, height).ok());
    let recomputed = match (&digests, &block) {
        (Some(digests), Some(block)) => Some(mask_root(block.layout.digest(), digests.iter().copied())),
        _ => None,
    };
    certified_root(context, height, &settled, recomputed, ledger);
    let agreed = results(context, height, &settled, &statements.results, recomputed, ledger);
    let mut roots: BTreeMap<Vec<Option<Digest>>, Option<Digest>> = BTreeMap::new();
    roots.insert(manifest.ballots().to_vec(), recomputed.or(settled.decision().mask_root()));
    proposals::judge(context, height, &statements, &settled, &mut roots, ledger);
    let report = summary(context, &settled, &statements, Recomputed { agreed, root: recomputed }, ledger);
    ledger.height(report);
    HeightOutcome { abandoned: false, digests }
}

/// The decision with its certificate.
pub(super) fn settled(context: &Context<'_>, height: Height, said: &mut Said, ledger: &mut Ledger) -> Option<Settled> {
    let path = settled_path(height);
    let fail = |ledger: &mut Ledger, what: &str, why: String| {
        ledger.add(Area::Decision, Some(height), format!("decision of height {height}"), what, failed(why));
        None
    };
    let bytes = match context.transcript.settled(height) {
        Ok(bytes) => bytes,
        Err(error) => return fail(ledger, "it with a certificate", chain(&error)),
    };
    let received = match ReceivedSettled::decode(&bytes) {
        Ok(received) => received,
        Err(error) => return fail(ledger, "its bytes with the canonical form of a decision", chain(&error)),
    };
    let claimed = received.claimed_height();
    let settled = match received.check(context.consortium, context.round) {
        Ok(settled) => settled,
        Err(error @ SettledError::Certificate(_)) => {
            return fail(ledger, "its certificate with the keys of the members who committed", chain(&error));
        }
        Err(error @ SettledError::Justification(_)) => {
            return fail(ledger, "its manifest with the holdings statements that it rests on", chain(&error));
        }
    };
    if claimed != height {
        return fail(ledger, "its height with its place", format!("it is of height {claimed}, and is `{path}`"));
    }
    let (certificate, decision) = (settled.certificate(), settled.decision());
    let q = context.consortium.quorum().q();
    let compared = format!(
        "{} precommits ({q} are needed) of view {} with the keys of {}, over the decision's digest {}",
        certificate.members().count(),
        certificate.view(),
        context.names(certificate.members()),
        certificate.value()
    );
    let subject = format!("certificate of height {height}");
    ledger.add(Area::Decision, Some(height), subject, compared, Outcome::Passed);
    for statement in settled.justified().statements() {
        said.holdings(statement, &path);
        let shown = format!("{} ballots held, in `{path}`", statement.content().count());
        let (subject, compared) = statements::passed(context, statement, shown);
        ledger.add(Area::Holdings, Some(height), subject, compared, Outcome::Passed);
    }
    let (subject, compared) = match decision.ballots() {
        Some(manifest) => {
            let ballots: Vec<String> = manifest
                .contributors()
                .map(|(member, body)| format!("`{}` {}", context.name(member), body.short()))
                .collect();
            let what = format!(
                "the certified ballots with those that the {} holdings statements make: {}",
                settled.justified().statements().len(),
                ballots.join(", ")
            );
            (format!("manifest of height {height}"), what)
        }
        None => (format!("outcome of height {height}"), "the certified decision with an abandoned height".to_owned()),
    };
    ledger.add(Area::Decision, Some(height), subject, compared, Outcome::Passed);
    Some(settled)
}

/// The mask root that was agreed on, where the round has one in the agreement.
fn certified_root(
    context: &Context<'_>,
    height: Height,
    settled: &Settled,
    recomputed: Option<Digest>,
    ledger: &mut Ledger,
) {
    let Some(certified) = settled.decision().mask_root() else { return };
    let subject = format!("certified mask root of height {height}");
    let Some(recomputed) = recomputed else {
        let why = "the mask could not be recomputed".to_owned();
        let compared = format!("{certified} with nothing");
        ledger.add(Area::Mask, Some(height), subject, compared, Outcome::NotChecked { why });
        return;
    };
    let outcome = if certified == recomputed {
        Outcome::Passed
    } else {
        let committed = context.names(settled.certificate().members());
        failed(format!("the certified ballots come to another mask; {committed} committed to it all the same"))
    };
    ledger.add(Area::Mask, Some(height), subject, format!("{certified} with {recomputed} recomputed"), outcome);
}

/// What the members say that the ballots come to. Returns what was agreed on.
fn results(
    context: &Context<'_>,
    height: Height,
    settled: &Settled,
    results: &[SignatureChecked<MaskResult>],
    recomputed: Option<Digest>,
    ledger: &mut Ledger,
) -> Option<Digest> {
    let quorum = context.consortium.quorum();
    let certified = settled.decision().mask_root();
    let agreed = agreed_root(results, quorum);
    let right = recomputed.or(certified).or(agreed);
    let wrong = || results.iter().filter(move |result| right.is_some_and(|right| result.content().mask_root != right));
    for result in wrong() {
        let what = format!(
            "signed the result {}, and the ballots come to {}",
            result.content().mask_root,
            right.map_or_else(String::new, |right| right.to_string())
        );
        ledger.find(context.name(result.member()), Fault::WrongResult, height, what);
    }
    if context.round.terms().tally == TallyBy::Elected {
        return certified;
    }
    let subject = format!("results of height {height}");
    let equal = right.map_or(0, |right| results.iter().filter(|result| result.content().mask_root == right).count());
    let against = match (recomputed, right) {
        (Some(root), _) => format!("{root} recomputed"),
        (None, Some(root)) => format!("each other: {root}"),
        (None, None) => "each other".to_owned(),
    };
    let compared = format!("{} signed results with {against}; {} must be equal", results.len(), quorum.q());
    let outcome = if equal >= quorum.q() {
        Outcome::Passed
    } else {
        let liar = wrong().next().map(|result| context.name(result.member()));
        let names = context.names(wrong().map(SignatureChecked::member));
        match liar {
            Some(liar) => blamed(liar, format!("{equal} are equal to it; others were signed by {names}")),
            None => failed(format!("there are {} results", results.len())),
        }
    };
    ledger.add(Area::Result, Some(height), subject, compared, outcome);
    agreed
}

#[derive(Default)]
struct Recomputed {
    agreed: Option<Digest>,
    root: Option<Digest>,
}

/// The height at a glance.
fn summary(
    context: &Context<'_>,
    settled: &Settled,
    statements: &Statements,
    recomputed: Recomputed,
    ledger: &Ledger,
) -> HeightReport {
    let names = |members: &mut dyn Iterator<Item = fedprune_federation::MemberIndex>| {
        members.map(|member| context.name(member)).collect::<Vec<String>>()
    };
    let contribution = |(member, body)| {
        let header = |header: &&SignatureChecked<_>| {
            let header: &SignatureChecked<fedprune_federation::BallotHeader> = header;
            header.member() == member && header.content().body == body
        };
        let header = statements.headers.iter().find(header).map(|header| *header.content());
        Contribution {
            member: context.name(member),
            ballot: body,
            bytes: header.map(|header| header.body_bytes),
            claimed_unix_ms: header.map(|header| header.claimed_unix_ms),
            encodings: ledger.encodings.get(&body).copied(),
        }
    };
    let manifest = settled.decision().ballots();
    let (height, view) = (settled.decision().height(), settled.certificate().view());
    let rotation = Rotation::new(context.round.id(), height, context.consortium.quorum());
    let passed_over = (0..view).zip(rotation.order()).map(|(view, member)| PassedOver {
        member: context.name(*member),
        view,
        proposed: statements
            .proposed
            .iter()
            .any(|proposed| (proposed.proposal.member(), proposed.proposal.content().view) == (*member, view)),
    });
    HeightReport {
        height,
        abandoned: settled.decision().is_abandoned(),
        view,
        passed_over: passed_over.collect(),
        committed: names(&mut settled.certificate().members()),
        contributors: manifest.iter().flat_map(|manifest| manifest.contributors().map(contribution)).collect(),
        results: names(&mut statements.results.iter().map(SignatureChecked::member)),
        proposals: statements.proposed.len(),
        agreed_mask_root: recomputed.agreed,
        recomputed_mask_root: recomputed.root,
    }
}
