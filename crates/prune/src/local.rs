//! A silo on its own: every block pruned by the silo's own mask before the next is measured.
//!
//! The result is one norm vector per tap of the model. With the weights they determine the mask, so nothing
//! larger is kept: masks exist one block at a time.

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::score::Pruner;
use fedprune_mask::select::select;
use fedprune_mask::{Digest, Group, Layout, MatrixMask, NormVector, Sparsity, Tap};
use fedprune_model::Decoder;
use rayon::prelude::*;

use crate::error::PruneError;
use crate::journal::{Journal, JournalKey};
use crate::pass::{BlockPass, Progress, check_finite, taps_of};

/// How a silo prunes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Scoring rule.
    pub pruner: Pruner,
    /// Pool within which weights compete.
    pub group: Group,
    /// Fraction pruned in each pool.
    pub sparsity: Sparsity,
}

impl Recipe {
    /// The masks of one block's matrices, in layout order, from the norm vectors of its taps.
    ///
    /// # Errors
    /// [`PruneError::Width`] when norms and matrices do not belong together.
    pub fn block_masks(
        &self,
        checkpoint: &Checkpoint,
        block: usize,
        norms: &[NormVector],
    ) -> Result<Vec<MatrixMask>, PruneError> {
        let layout = checkpoint.layout();
        let mut masks = Vec::with_capacity(layout.block(block).len());
        for (range, norms) in taps_of(layout, block).zip(norms) {
            for index in range {
                let weights = checkpoint.matrix(index);
                let keys = self
                    .pruner
                    .with(norms)
                    .keys(weights, norms)
                    .map_err(|source| PruneError::Width { tensor: layout.matrices()[index].name.clone(), source })?;
                masks.push(select(weights, &*keys, self.group, self.sparsity));
            }
        }
        Ok(masks)
    }
}

/// Inputs of [`local_pass`].
pub struct LocalPass<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// The decoder over it; unused by a data-free pruner.
    pub decoder: Option<&'a Decoder>,
    /// Calibration windows of equal length; unused by a data-free pruner.
    pub windows: &'a [Vec<u32>],
    /// How to prune.
    pub recipe: Recipe,
    /// Block and tap whose matrices are pruned without looking at data.
    pub data_free: &'a [(u32, Tap)],
}

/// Replaces the norms of one block's `data_free` taps: by equal ones, under which Wanda prunes by magnitude, and for other
/// pruners by none at all, which says the same ([`Pruner::with`]) and costs a ballot more bytes.
///
/// `norms` has one vector for each tap of the block, in layout order.
pub fn forget_data_free(
    layout: &Layout,
    block: usize,
    pruner: Pruner,
    data_free: &[(u32, Tap)],
    norms: &mut [NormVector],
) {
    for (range, norms) in taps_of(layout, block).zip(norms) {
        let first = &layout.matrices()[range.start];
        if data_free.contains(&(first.block, first.tap)) {
            let ones = vec![1.0; if pruner == Pruner::WANDA { first.columns as usize } else { 0 }];
            if let Ok(equal) = NormVector::from_sums(&ones, 1) {
                *norms = equal;
            }
        }
    }
}

/// What a silo measured and decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOutcome {
    /// The norm vectors of all taps, in layout order; empty ones for a pruner that looks at no activations.
    pub norms: Vec<NormVector>,
    /// The mask that they determine.
    pub mask_root: Digest,
    /// How many weights it prunes.
    pub pruned_weights: u64,
}

/// Runs the whole pass.
///
/// With a `journal`, blocks that an earlier run measured are replayed rather than measured again: one run
/// through each instead of two and a selection. Only norms are kept on disk; activations, from which text
/// could be read back, never are.
///
/// # Errors
/// [`PruneError`]: see its variants. What was measured before the error stays in the journal.
pub fn local_pass<'a>(
    inputs: &LocalPass<'a>,
    mut journal: Option<&mut Journal>,
    on_progress: impl FnMut(Progress) + 'a,
) -> Result<LocalOutcome, PruneError> {
    let (checkpoint, recipe) = (inputs.checkpoint, inputs.recipe);
    let layout = checkpoint.layout();
    layout.check_group(recipe.group)?;
    let mut norms = Vec::with_capacity(layout.taps().len());
    let mut digests = Vec::with_capacity(layout.matrices().len());
    let mut pruned_weights = 0;
    let mut note = |masks: &[MatrixMask]| {
        digests.extend(masks.par_iter().map(MatrixMask::digest).collect::<Vec<Digest>>());
        pruned_weights += masks.iter().map(MatrixMask::count_pruned).sum::<u64>();
    };
    match inputs.decoder {
        Some(decoder) if recipe.pruner.scorer().uses_norms() => {
            let mut pass = BlockPass::new(checkpoint, decoder, inputs.windows, on_progress)?;
            while !pass.is_finished() {
                let block = pass.block();
                let known = journal.as_deref_mut().and_then(|journal| journal.take_block(block));
                let mut of_block = match known {
                    Some(of_block) => of_block,
                    None => {
                        let of_block = pass.measure_to_choose()?.norms;
                        if let Some(journal) = journal.as_deref_mut() {
                            journal.append(block, &of_block)?;
                        }
                        of_block
                    }
                };
                forget_data_free(layout, block, recipe.pruner, inputs.data_free, &mut of_block);
                let masks = match pass.choose(&recipe, &of_block)? {
                    Some(masks) => masks,
                    None => recipe.block_masks(checkpoint, block, &of_block)?,
                };
                pass.advance(&masks)?;
                // while a device runs the block
                note(&masks);
                norms.extend(of_block);
            }
        }
        _ => {
            for block in 0..layout.blocks() {
                check_finite(checkpoint, block)?;
                let of_block: Vec<NormVector> = taps_of(layout, block).map(|_| NormVector::default()).collect();
                note(&recipe.block_masks(checkpoint, block, &of_block)?);
                checkpoint.release_block(block);
                norms.extend(of_block);
            }
        }
    }
    Ok(LocalOutcome { norms, mask_root: mask_root(layout.digest(), digests), pruned_weights })
}

/// Identifies calibration windows: BLAKE3 over the length of each and its tokens, little-endian.
pub fn windows_digest(windows: &[Vec<u32>]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for window in windows {
        hasher.update(&(window.len() as u64).to_le_bytes());
        window.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
    }
    hasher.finalize().into()
}

impl LocalPass<'_> {
    /// Identifies this run to a journal: another model, text, recipe or device may not continue it.
    pub fn journal_key(&self, model: Digest) -> JournalKey {
        JournalKey {
            model,
            calibration: windows_digest(self.windows),
            recipe: match self.data_free {
                [] => format!("{} {} {}", self.recipe.pruner, self.recipe.group, self.recipe.sparsity),
                taps => format!("{} {} {} {taps:?}", self.recipe.pruner, self.recipe.group, self.recipe.sparsity),
            },
            compute: self
                .decoder
                .map_or_else(String::new, |decoder| format!("{:?} {:?}", decoder.device().location(), decoder.dtype())),
        }
    }
}
