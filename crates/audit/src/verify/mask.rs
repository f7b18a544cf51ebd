//! The mask that ballots come to, matrix by matrix.
//!
//! One matrix is in memory at a time, its counts beside it; ballots are mapped.

use std::collections::BTreeMap;

use fedprune_federation::ballot::validate;
use fedprune_federation::round::Scaling;
use fedprune_federation::{BallotHeader, Height, Manifest, MemberIndex, SignatureChecked};
use fedprune_mask::ballot::Encoding;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Agreement, Tally, TallyError, Voter};
use fedprune_mask::{Ballot, Counts, Digest, Matrix, MatrixMask, MatrixSource, WeightsView};

use super::ledger::{Ledger, blamed, failed};
use super::model::Block;
use super::pruned::PrunedCopy;
use super::{Context, Progress, Step};
use crate::report::{Area, Encodings, MatrixAgreement, Outcome, chain};
use crate::transcript::Body;

/// What is done with each matrix: index in the whole layout, base weights, mask, and its votes if kept weights are
/// scaled by them or if it is measured how far they agree.
type Each<'e> = dyn FnMut(usize, WeightsView<'_>, &MatrixMask, &Votes) + 'e;

/// Of the votes on one matrix, what was asked for.
struct Votes {
    counts: Option<Counts>,
    agreement: Option<Agreement>,
}

/// Recomputes the masks of a height from the ballots that count; their digests, if all of them are sound.
pub(super) fn recompute(
    context: &Context<'_>,
    height: Height,
    manifest: &Manifest,
    bodies: &BTreeMap<Digest, Body>,
    headers: &[SignatureChecked<BallotHeader>],
    pruned: Option<&mut PrunedCopy>,
    ledger: &mut Ledger,
) -> Option<Vec<Digest>> {
    let subject = format!("mask of height {height}");
    let skip = |ledger: &mut Ledger, why: &str| {
        let outcome = Outcome::NotChecked { why: why.to_owned() };
        ledger.add(Area::Mask, Some(height), format!("mask of height {height}"), "nothing", outcome);
        None
    };
    let Some(model) = context.model else { return skip(ledger, "it needs the round's model") };
    let block = match model.block(context.round, height) {
        Ok(block) => block,
        Err(error) => {
            let compared = "the height with the model's blocks";
            ledger.add(Area::Mask, Some(height), subject, compared, failed(chain(&error)));
            return None;
        }
    };
    let mut ballots = Vec::with_capacity(manifest.count());
    for (member, digest) in manifest.contributors() {
        let Some(body) = bodies.get(&digest) else { continue };
        let header = headers.iter().find(|header| header.member() == member && header.content().body == digest);
        let Some(header) = header else { continue };
        if let Some(ballot) = judge(context, &block, height, header, body, ledger) {
            ballots.push((member, ballot));
        }
    }
    if ballots.len() < manifest.count() {
        return skip(ledger, "not all of its ballots are there and sound");
    }
    let compared = format!("{} ballots with the weights of the base model", ballots.len());
    let mut pruned = pruned;
    let mut agreement = Vec::new();
    let mut each = |index: usize, weights: WeightsView<'_>, mask: &MatrixMask, votes: &Votes| {
        if let Some(pruned) = &mut pruned {
            pruned.compare(index, weights, mask, votes.counts.as_ref());
        }
        if let (Some(votes), Some(matrix)) = (votes.agreement, model.layout().matrices().get(index)) {
            agreement.push(measure(matrix, mask, votes));
        }
    };
    match masks(context, &block, height, ballots, &mut each) {
        Ok(digests) => {
            ledger.agreement.append(&mut agreement);
            let root = mask_root(block.layout.digest(), digests.iter().copied());
            let compared = format!("{compared}: they come to mask root {root}");
            ledger.add(Area::Mask, Some(height), subject, compared, Outcome::Passed);
            Some(digests)
        }
        Err(error) => {
            let outcome = match &error {
                TallyError::Ballot { member, .. } => blamed(member.clone(), chain(&error)),
                _ => failed(chain(&error)),
            };
            ledger.add(Area::Mask, Some(height), subject, compared, outcome);
            None
        }
    }
}

/// Compares a ballot with the round's terms; its signer is to blame if it does not fit, and those who counted it.
fn judge<'b>(
    context: &Context<'_>,
    block: &'b Block<'_>,
    height: Height,
    header: &SignatureChecked<BallotHeader>,
    body: &'b Body,
    ledger: &mut Ledger,
) -> Option<Ballot<'b>> {
    let name = context.name(header.member());
    let subject = format!("contents of the ballot of `{name}` at height {height}");
    let compared = "its recipe, encodings and budgets with the round's terms and the model's layout";
    let parsed = Ballot::parse(body.bytes(), &block.layout).map_err(|error| chain(&error));
    let judged = parsed.and_then(|ballot| {
        let layout = context.model.map_or(&block.layout, |model| model.layout());
        let validated = validate(header.clone(), &ballot, context.round, layout, block);
        validated.map(|_| ballot).map_err(|error| chain(&error))
    });
    let (ballot, outcome) = match judged {
        Ok(ballot) => {
            ledger.encodings.insert(header.content().body, encodings(&ballot));
            (Some(ballot), Outcome::Passed)
        }
        Err(why) => (None, blamed(name, why)),
    };
    ledger.add(Area::Ballot, Some(height), subject, compared, outcome);
    ballot
}

/// How a ballot says its masks.
fn encodings(ballot: &Ballot<'_>) -> Encodings {
    let mut encodings = Encodings { bytes: ballot.encoded_bytes(), ..Encodings::default() };
    for tap in 0..ballot.layout().taps().len() {
        let taps = match ballot.encoding(tap) {
            Encoding::Norms => &mut encodings.norms_taps,
            Encoding::ColumnThresholds => &mut encodings.thresholds_taps,
            Encoding::Bitmap => &mut encodings.bitmap_taps,
        };
        *taps = taps.saturating_add(1);
    }
    encodings
}

/// How far the votes on one matrix agree.
fn measure(matrix: &Matrix, mask: &MatrixMask, agreement: Agreement) -> MatrixAgreement {
    let name = matrix.name.trim_end_matches(".weight");
    MatrixAgreement {
        block: matrix.block,
        kind: name.rsplit('.').next().unwrap_or(name).to_owned(),
        weights: agreement.weights,
        pruned: mask.count_pruned(),
        unanimous: agreement.unanimous,
        agreement: agreement.share(),
    }
}

/// The digests of the masks of a height's matrices, in order.
fn masks(
    context: &Context<'_>,
    block: &Block<'_>,
    height: Height,
    ballots: Vec<(MemberIndex, Ballot<'_>)>,
    each: &mut Each<'_>,
) -> Result<Vec<Digest>, TallyError> {
    let terms = context.round.terms();
    let weight_of = |member: MemberIndex| terms.tally_weights.get(member.as_usize()).copied().unwrap_or(1);
    let voter = |(member, ballot)| Voter { name: context.name(member), weight: weight_of(member), ballot };
    let tally = Tally::new(&block.layout, terms.global_group, ballots.into_iter().map(voter).collect())?;
    let total = block.layout.weights();
    let mut digests = Vec::with_capacity(block.layout.matrices().len());
    for (index, matrix) in block.layout.matrices().iter().enumerate() {
        let weights = block.matrix(index);
        // many masks are cheaper without counts
        let (mask, votes) = match terms.scaling {
            Scaling::None if context.agreement => {
                let (mask, agreement) = tally.mask_and_agreement(index, weights)?;
                (mask, Votes { counts: None, agreement: Some(agreement) })
            }
            Scaling::None => (tally.mask(index, weights)?, Votes { counts: None, agreement: None }),
            Scaling::Support => {
                let (mask, counts) = tally.matrix(index, weights)?;
                let agreement = context.agreement.then(|| counts.agreement());
                (mask, Votes { counts: Some(counts), agreement })
            }
        };
        each(block.first.saturating_add(index), weights, &mask, &votes);
        digests.push(mask.digest());
        block.done_with(index);
        (context.progress)(Progress { step: Step::Mask(height), advanced: matrix.weights(), total });
    }
    Ok(digests)
}

/// The mask root that other ballots of the height come to, if all their bodies are there and can be read.
pub(super) fn root_of(context: &Context<'_>, height: Height, manifest: &Manifest) -> Option<Digest> {
    let block = context.model?.block(context.round, height).ok()?;
    let mut bodies = Vec::with_capacity(manifest.count());
    for (member, digest) in manifest.contributors() {
        let body = context.transcript.body(digest).ok()?;
        if fedprune_mask::ballot::digest_of_bytes(body.bytes()) != digest {
            return None;
        }
        bodies.push((member, body));
    }
    let mut ballots = Vec::with_capacity(bodies.len());
    for (member, body) in &bodies {
        ballots.push((*member, Ballot::parse(body.bytes(), &block.layout).ok()?));
    }
    let digests = masks(context, &block, height, ballots, &mut |_, _, _, _| ()).ok()?;
    Some(mask_root(block.layout.digest(), digests))
}
