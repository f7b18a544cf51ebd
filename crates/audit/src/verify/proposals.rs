//! What aggregators proposed, compared with what they should have.
//!
//! A proposal that was refused does no harm: the round went on to the next aggregator. It is told who proposed it.

use std::collections::BTreeMap;

use fedprune_federation::round::TallyBy;
use fedprune_federation::{Height, Rotation, Settled};
use fedprune_mask::Digest;

use super::ledger::Ledger;
use super::statements::Statements;
use super::{Context, mask};
use crate::report::Fault;

/// Manifests other than the certified one whose masks are recomputed, at one height; each costs a tally.
const MAX_OTHER_MANIFESTS: usize = 4;

/// Notes aggregators that proposed out of turn, what is no decision, or a mask root that is not that of its ballots.
///
/// `roots` has what is known of manifests so far, by their entries.
pub(super) fn judge(
    context: &Context<'_>,
    height: Height,
    statements: &Statements,
    settled: &Settled,
    roots: &mut BTreeMap<Vec<Option<Digest>>, Option<Digest>>,
    ledger: &mut Ledger,
) {
    let rotation = Rotation::new(context.round.id(), height, context.consortium.quorum());
    let mut others = 0usize;
    for proposed in &statements.proposed {
        let (member, content) = (proposed.proposal.member(), proposed.proposal.content());
        let (name, view, file) = (context.name(member), content.view, &proposed.file);
        let turn = rotation.aggregator(view);
        if turn != member {
            let what = format!("proposed in view {view}, which was the turn of `{}` (`{file}`)", context.name(turn));
            ledger.find(name.clone(), Fault::OutOfTurn, height, what);
        }
        let decision = match &proposed.grounds {
            Ok(decision) => decision,
            Err(unfounded) if unfounded.blames => {
                let what = format!("proposed what is no decision in view {view}: {} (`{file}`)", unfounded.why);
                ledger.find(name, Fault::Unfounded, height, what);
                continue;
            }
            Err(unfounded) => {
                ledger.note(format!(
                    "the proposal of `{name}` in view {view} of height {height} does not follow from what lies beside it, \
                     for which `{name}` or whoever passed it on is to blame: {} (`{file}`)",
                    unfounded.why
                ));
                continue;
            }
        };
        let (Some(manifest), Some(proposed_root)) = (decision.ballots(), decision.mask_root()) else { continue };
        if context.round.terms().tally != TallyBy::Elected || decision.value() == settled.decision().value() {
            continue;
        }
        let known = roots.get(manifest.ballots()).copied();
        let right = known.unwrap_or_else(|| {
            others = others.saturating_add(1);
            let root = (others <= MAX_OTHER_MANIFESTS).then(|| mask::root_of(context, height, &manifest)).flatten();
            roots.insert(manifest.ballots().to_vec(), root);
            root
        });
        match right {
            Some(right) if right != proposed_root => {
                let what =
                    format!("proposed mask root {proposed_root} in view {view}, and its ballots come to {right} (`{file}`)");
                ledger.find(name, Fault::WrongMaskRoot, height, what);
            }
            Some(_) => {}
            None => ledger.note(format!(
                "whether the mask root that `{name}` proposed in view {view} of height {height} was right cannot be told: \
                 its ballots, or the model, are not there (`{file}`)"
            )),
        }
    }
}
