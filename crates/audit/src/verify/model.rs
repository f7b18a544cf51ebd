//! The base model that the auditor brought, compared with the one that the round names.

use std::path::Path;

use fedprune_checkpoint::Checkpoint;
use fedprune_federation::round::LayoutMismatch;
use fedprune_federation::{Height, Round};
use fedprune_mask::{Layout, MatrixSource, WeightsView};

use super::ledger::{Ledger, failed};
use super::{AuditError, Progress, Step};
use crate::report::{Area, Outcome, chain};

/// The round's model.
pub(super) struct Model {
    pub checkpoint: Checkpoint,
    /// How many heights the round has on it.
    pub heights: u32,
}

/// The matrices of one height, by index of its own layout.
pub(super) struct Block<'a> {
    checkpoint: &'a Checkpoint,
    /// Index of the first in the whole model's layout.
    pub first: usize,
    /// The layout of the height.
    pub layout: Layout,
}

impl MatrixSource for Block<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        self.checkpoint.matrix(self.first + index)
    }

    fn done_with(&self, index: usize) {
        self.checkpoint.done_with(self.first + index);
    }
}

impl Model {
    /// The whole model's layout.
    pub fn layout(&self) -> &Layout {
        self.checkpoint.layout()
    }

    /// The matrices that a height is about.
    pub fn block(&self, round: &Round, height: Height) -> Result<Block<'_>, LayoutMismatch> {
        let layout = round.layout_at(self.layout(), height)?;
        let name = layout.matrices().first().map(|matrix| &matrix.name);
        // the matrices of a block lie together, in the order of the whole layout
        let first = self.layout().matrices().iter().position(|matrix| Some(&matrix.name) == name).unwrap_or(0);
        Ok(Block { checkpoint: &self.checkpoint, first, layout })
    }
}

/// Opens the auditor's model.
pub(super) fn open(path: &Path) -> Result<Checkpoint, AuditError> {
    Checkpoint::open(path).map_err(|source| AuditError::Model { path: path.to_owned(), source: Box::new(source) })
}

/// Compares everything that the round says about its model.
pub(super) fn check(
    checkpoint: Checkpoint,
    round: &Round,
    ledger: &mut Ledger,
    progress: &(dyn Fn(Progress) + Sync),
) -> Option<Model> {
    let terms = round.terms();
    let total = checkpoint.digest_bytes();
    // digest and finite numbers in one reading
    let mut along = checkpoint.digest_along();
    let mut not_finite = None;
    for index in 0..checkpoint.layout().matrices().len() {
        let weights = checkpoint.matrix(index);
        along.matrix(index);
        if not_finite.is_none() {
            not_finite = weights.check_finite().err().map(|error| (index, error));
        }
        progress(Progress { step: Step::Model, advanced: weights.bytes().len() as u64, total });
        MatrixSource::done_with(&checkpoint, index);
    }
    let content = along.finish(&|advanced| progress(Progress { step: Step::Model, advanced, total }));
    let tokenizer = checkpoint.tokenizer_digest().map_err(|error| chain(&error));
    let mut same = true;
    for (what, found, expected) in [
        ("weights of the base model", Ok(content), terms.base_model),
        ("layout of the base model", Ok(checkpoint.layout().digest()), terms.layout),
        ("configuration of the base model", Ok(checkpoint.configuration_digest()), terms.configuration),
        ("tokenizer of the base model", tokenizer, terms.tokenizer),
    ] {
        let (found, outcome) = match found {
            Ok(found) if found == expected => (found.to_string(), Outcome::Passed),
            Ok(found) => {
                same = false;
                (found.to_string(), failed("this is not the round's model; give that one as --model".to_owned()))
            }
            Err(why) => {
                same = false;
                ("nothing".to_owned(), failed(why))
            }
        };
        ledger.add(Area::Model, None, what.to_owned(), format!("digest {found} with {expected} of the round"), outcome);
    }
    let heights = round.heights(checkpoint.layout());
    let compared = "the round's groups and taps with the model's matrices";
    let outcome = heights.as_ref().err().map_or(Outcome::Passed, |error| failed(chain(error)));
    ledger.add(Area::Model, None, "terms of the round".to_owned(), compared, outcome);
    let (Ok(heights), true) = (heights, same) else { return None };
    if let Some((index, error)) = not_finite {
        let name = checkpoint.layout().matrices().get(index).map_or("", |matrix| matrix.name.as_str());
        let why = format!("`{name}`: {}", chain(&error));
        ledger.add(Area::Model, None, "weights of the base model".to_owned(), "each with finite numbers", failed(why));
        return None;
    }
    Some(Model { checkpoint, heights })
}
