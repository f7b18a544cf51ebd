//! A pruned checkpoint, compared with base ⊙ mask: tensor by tensor, bit for bit.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use fedprune_checkpoint::{Checkpoint, StoredTensor};
use fedprune_federation::round::Scaling;
use fedprune_mask::tally::apply_to_stored;
use fedprune_mask::{Counts, MatrixMask, MatrixSource, WeightsView};

use super::ledger::{Ledger, failed};
use super::{Context, beside};
use crate::report::{Area, Outcome, chain, harmless};

/// Differing tensors that are named in a report.
const MAX_NAMED: usize = 20;

/// The pruned checkpoint while its matrices are compared.
pub(super) struct PrunedCopy {
    checkpoint: Checkpoint,
    /// The mask beside its weights.
    mask: Option<PathBuf>,
    scaled: bool,
    /// Matrices and weights that were compared.
    compared: usize,
    weights: u64,
    /// What differs.
    differing: Vec<String>,
    differing_count: usize,
}

/// Opens the copy and compares what lies beside its weights.
pub(super) fn open(path: &Path, context: &Context<'_>, ledger: &mut Ledger) -> Option<PrunedCopy> {
    let subject = || "pruned checkpoint".to_owned();
    let Some(model) = context.model else {
        let why = "it needs the round's model".to_owned();
        ledger.add(Area::Pruned, None, subject(), "nothing", Outcome::NotChecked { why });
        return None;
    };
    let checkpoint = match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            ledger.add(Area::Pruned, None, subject(), "its files with those of a checkpoint", failed(chain(&error)));
            return None;
        }
    };
    let base = &model.checkpoint;
    let tokenizer = checkpoint.tokenizer_digest();
    let tokenizer = tokenizer.map_or_else(|error| chain(&error), |digest| digest.to_string());
    let mut same = true;
    for (what, found, expected) in [
        ("layout of the pruned checkpoint", checkpoint.layout().digest().to_string(), base.layout().digest()),
        (
            "configuration of the pruned checkpoint",
            checkpoint.configuration_digest().to_string(),
            base.configuration_digest(),
        ),
        ("tokenizer of the pruned checkpoint", tokenizer, context.round.terms().tokenizer),
    ] {
        let equal = found == expected.to_string();
        same &= equal || !what.starts_with("layout");
        let outcome = if equal { Outcome::Passed } else { failed("it is not that of the base model".to_owned()) };
        ledger.add(Area::Pruned, None, what.to_owned(), format!("{found} with {expected} of the base model"), outcome);
    }
    let mask = beside::compare(base, &checkpoint, ledger);
    let scaled = context.round.terms().scaling == Scaling::Support;
    same.then_some(PrunedCopy {
        checkpoint,
        mask,
        scaled,
        compared: 0,
        weights: 0,
        differing: Vec::new(),
        differing_count: 0,
    })
}

impl PrunedCopy {
    /// Compares one matrix, by index of the whole layout, with what the base weights come to.
    pub fn compare(&mut self, index: usize, base: WeightsView<'_>, mask: &MatrixMask, counts: Option<&Counts>) {
        let found = self.checkpoint.matrix(index);
        self.compared = self.compared.saturating_add(1);
        self.weights = self.weights.saturating_add(base.bytes().len() as u64 / base.dtype().bytes() as u64);
        let name = || {
            let matrices = self.checkpoint.layout().matrices();
            matrices.get(index).map_or_else(String::new, |matrix| matrix.name.clone())
        };
        if (found.dtype(), found.rows(), found.columns()) != (base.dtype(), base.rows(), base.columns()) {
            let what = format!("`{}` is stored as {}, and the base model as {}", name(), found.dtype(), base.dtype());
            return self.note(what);
        }
        let mut expected = base.bytes().to_vec();
        apply_to_stored(&mut expected, base.dtype(), mask, counts.filter(|_| self.scaled));
        let size = base.dtype().bytes();
        let pairs = || expected.chunks_exact(size).zip(found.bytes().chunks_exact(size));
        let differing = if expected == found.bytes() { 0 } else { pairs().filter(|(a, b)| a != b).count() };
        let first = pairs().position(|(a, b)| a != b).filter(|_| differing > 0);
        if let Some(first) = first {
            let columns = base.columns().max(1);
            let (row, column) = (first / columns, first % columns);
            let should = if mask.get(row, column) { "pruned" } else { "kept" };
            let what = format!(
                "{differing} weights of `{}` differ, the first at row {row}, column {column}, which is {should} by the mask",
                name()
            );
            self.note(what);
        }
        self.checkpoint.done_with(index);
    }

    fn note(&mut self, what: String) {
        self.differing_count = self.differing_count.saturating_add(1);
        if self.differing.len() < MAX_NAMED {
            self.differing.push(what);
        }
    }

    /// Compares what is not pruned, and notes how everything went.
    pub fn finish(mut self, context: &Context<'_>, abandoned: bool, ledger: &mut Ledger) {
        let Some(model) = context.model else { return };
        if abandoned {
            let why = "the round was abandoned, so that nothing is pruned by it".to_owned();
            let compared = "it with the mask of the round";
            ledger.add(Area::Pruned, None, "pruned checkpoint".to_owned(), compared, failed(why));
            return;
        }
        let matrices = model.layout().matrices().len();
        let (compared, weights) = (self.compared, self.weights);
        let (others, differing) = compare_others(&model.checkpoint, &self.checkpoint);
        for what in differing {
            self.note(what);
        }
        let scaled = if self.scaled { ", scaled by their support" } else { "" };
        let what = format!(
            "{compared} of {matrices} matrices ({weights} weights) with base ⊙ mask{scaled}, and {others} other tensors with the base model's, bit for bit"
        );
        let more = self.differing_count.saturating_sub(self.differing.len());
        let outcome = match self.differing.as_slice() {
            [] if compared < matrices => Outcome::NotChecked { why: "not all masks could be recomputed".to_owned() },
            [] => Outcome::Passed,
            some if more > 0 => failed(format!("{}; and {more} more", some.join("; "))),
            some => failed(some.join("; ")),
        };
        ledger.add(Area::Pruned, None, "pruned checkpoint".to_owned(), what, outcome);
        if let Some(path) = &self.mask {
            let root = ledger.mask_root;
            beside::compare_mask(path, &model.checkpoint, context.round.terms().base_model, root, ledger);
        }
    }
}

/// Compares the tensors that are not matrices of the layout: how many there are, and what differs.
fn compare_others(base: &Checkpoint, copy: &Checkpoint) -> (usize, Vec<String>) {
    let mut differing = Vec::new();
    let rest = |checkpoint| Checkpoint::stored(checkpoint).filter(|tensor| tensor.matrix.is_none());
    let count = rest(base).count();
    let (mut expected, mut found) = (rest(base).peekable(), rest(copy).peekable());
    // both are in the order of their names
    loop {
        let order = match (expected.peek(), found.peek()) {
            (None, None) => break,
            (Some(a), Some(b)) => a.name.cmp(b.name),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
        };
        let a = if order.is_le() { expected.next() } else { None };
        let b = if order.is_ge() { found.next() } else { None };
        match (a, b) {
            (Some(a), Some(b)) if !same(&a, &b) => {
                differing.push(format!("`{}` is not that of the base model", harmless(b.name)));
            }
            (Some(a), None) => differing.push(format!("`{}` is missing", harmless(a.name))),
            (None, Some(b)) => differing.push(format!("`{}` is not in the base model", harmless(b.name))),
            _ => {}
        }
    }
    base.release_all();
    copy.release_all();
    (count, differing)
}

fn same(a: &StoredTensor<'_>, b: &StoredTensor<'_>) -> bool {
    a.dtype == b.dtype && a.shape == b.shape && a.bytes == b.bytes
}
