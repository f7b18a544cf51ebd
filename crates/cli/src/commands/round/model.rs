//! A model folder held against the terms of a round.

use std::path::Path;

use anyhow::bail;
use fedprune_checkpoint::Checkpoint;
use fedprune_federation::round::{Round, Terms};
use fedprune_mask::Digest;
use serde::Serialize;

use crate::commands::content_digest;
use crate::progress::Meter;

/// The four digests by which members know that they mean one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct ModelDigests {
    pub base_model: Digest,
    pub layout: Digest,
    pub tokenizer: Digest,
    pub configuration: Digest,
}

impl ModelDigests {
    /// Reads the whole model.
    pub fn of(checkpoint: &Checkpoint, meter: &Meter) -> anyhow::Result<Self> {
        Ok(Self {
            // what is quick comes first, so that what is wrong is known soon
            tokenizer: checkpoint.tokenizer_digest()?,
            configuration: checkpoint.configuration_digest(),
            layout: checkpoint.layout().digest(),
            base_model: content_digest(checkpoint, meter),
        })
    }

    /// The digests that a round names.
    pub fn of_terms(terms: &Terms) -> Self {
        Self {
            base_model: terms.base_model,
            layout: terms.layout,
            tokenizer: terms.tokenizer,
            configuration: terms.configuration,
        }
    }

    fn named(&self) -> [(&'static str, &'static str, Digest); 4] {
        [
            ("base_model", "its weights", self.base_model),
            ("layout", "the shapes of its matrices", self.layout),
            ("tokenizer", "its tokenizer.json", self.tokenizer),
            ("configuration", "what its config.json says about the computation", self.configuration),
        ]
    }
}

/// Opens the round's model and checks that it is the one. Returns it and how many heights the round has.
pub(super) fn open(folder: &Path, round: &Round, meter: &Meter) -> anyhow::Result<(Checkpoint, u32)> {
    let checkpoint = Checkpoint::open(folder)?;
    let (found, expected) = (ModelDigests::of(&checkpoint, meter)?, ModelDigests::of_terms(round.terms()));
    let different: Vec<String> = found
        .named()
        .into_iter()
        .zip(expected.named())
        .filter(|(found, expected)| found.2 != expected.2)
        .map(|((field, meaning, found), (_, _, expected))| {
            format!("`{field}` ({meaning}) is {}, and the round says {}", found.short(), expected.short())
        })
        .collect();
    if !different.is_empty() {
        bail!(
            "`{}` is not the model of the round: {}; use the folder that the round was made from",
            folder.display(),
            different.join("; ")
        );
    }
    let heights = round.heights(checkpoint.layout())?;
    Ok((checkpoint, heights))
}
