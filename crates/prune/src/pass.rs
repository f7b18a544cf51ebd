//! The block-by-block pass: measure a block, prune it, run it again.
//!
//! The pass does not choose masks. [`BlockPass::measure`] yields the norm vectors of the block it stands at;
//! [`BlockPass::advance`] takes whatever masks were decided on and moves on. A silo on its own answers with its
//! own masks ([`crate::local`]); in an iterative federation the answer is what everyone agreed on.
//!
//! Cost: two runs of every window through every block, save what nobody reads: the last product of each first run,
//! and the last block's second.
//!
//! On a device of its own memory what a block computes is queued, and the next block's weights travel there meanwhile: at
//! most two blocks are there, and only sums of squares come back.

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::{Layout, MatrixMask, NormVector};
use fedprune_model::{Block, BlockSums, Choice, Decoder, Hidden, ModelError, Taps, Workspace};

use crate::error::PruneError;
use crate::local::Recipe;

/// What the pass is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Running calibration windows through dense weights.
    Measuring,
    /// Choosing the weights to prune.
    Selecting,
    /// Running calibration windows through pruned weights.
    Propagating,
}

/// How far a pass has come; `done` of `total` window-runs through a block.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What it is busy with.
    pub stage: Stage,
    /// The block it stands at.
    pub block: usize,
    /// Blocks in the model.
    pub blocks: usize,
    /// Window-runs done.
    pub done: u64,
    /// Window-runs in all.
    pub total: u64,
}

/// What one block's linear layers read, over all calibration windows.
pub struct Measured {
    /// One norm vector a tap, in layout order.
    pub norms: Vec<NormVector>,
    /// The sums of squares that they were rounded from.
    pub sums: BlockSums,
}

/// A pass through the decoder that stands before one of its blocks.
pub struct BlockPass<'a> {
    checkpoint: &'a Checkpoint,
    decoder: &'a Decoder,
    /// The input of the block that the pass stands at, in batches of windows.
    hidden: Vec<Hidden>,
    windows: u64,
    workspace: Workspace,
    block: usize,
    /// The block that was measured and not yet left.
    loaded: Option<Block>,
    /// Whether the next block is loaded while this one runs.
    loads_ahead: bool,
    /// The block after it.
    next: Option<Block>,
    /// Whether `loaded` was pruned where it lies.
    chosen: bool,
    done: u64,
    on_progress: Box<dyn FnMut(Progress) + 'a>,
}

impl<'a> BlockPass<'a> {
    /// Embeds the calibration windows and stands before block 0.
    ///
    /// # Errors
    /// [`PruneError`] when a token is outside the vocabulary, or a device has too little memory.
    pub fn new(
        checkpoint: &'a Checkpoint,
        decoder: &'a Decoder,
        windows: &[Vec<u32>],
        on_progress: impl FnMut(Progress) + 'a,
    ) -> Result<Self, PruneError> {
        decoder.check_memory(checkpoint, windows)?;
        let hidden = decoder.embed_in_batches(checkpoint, windows)?;
        Ok(Self {
            checkpoint,
            decoder,
            hidden,
            windows: windows.len() as u64,
            workspace: Workspace::default(),
            block: 0,
            loaded: None,
            loads_ahead: decoder.loads_ahead(),
            next: None,
            chosen: false,
            done: 0,
            on_progress: Box::new(on_progress),
        })
    }

    /// The block that the pass stands at.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Whether every block was left.
    pub fn is_finished(&self) -> bool {
        self.block == self.blocks()
    }

    fn blocks(&self) -> usize {
        self.checkpoint.layout().blocks()
    }

    fn report(&mut self, stage: Stage) {
        let blocks = self.blocks() as u64;
        let total = (2 * blocks - 1) * self.windows;
        (self.on_progress)(Progress { stage, block: self.block, blocks: blocks as usize, done: self.done, total });
    }

    /// Runs all windows through the dense block; returns what its taps saw.
    ///
    /// # Errors
    /// [`PruneError`] when weights or activations are not finite, or the decoder fails.
    pub fn measure(&mut self) -> Result<Measured, PruneError> {
        self.measure_weights(true)
    }

    /// As [`BlockPass::measure`], for whoever chooses the weights next: where [`BlockPass::choose`] does so on the device, it
    /// finds there whether they are finite.
    pub(crate) fn measure_to_choose(&mut self) -> Result<Measured, PruneError> {
        self.measure_weights(!self.decoder.chooses())
    }

    fn measure_weights(&mut self, check: bool) -> Result<Measured, PruneError> {
        if check && !self.loads_ahead {
            check_finite(self.checkpoint, self.block)?;
        }
        let block = self.load()?;
        let mut taps = Taps::new(self.checkpoint.config());
        self.report(Stage::Measuring);
        for index in 0..self.hidden.len() {
            block.measure(self.decoder, &self.hidden[index], &mut taps, &mut self.workspace)?;
            self.done += self.hidden[index].windows() as u64;
            self.report(Stage::Measuring);
        }
        if check && self.loads_ahead {
            // the device is busy meanwhile; nothing of what it computes is used unless the weights are numbers
            check_finite(self.checkpoint, self.block)?;
        }
        let sums = taps.into_sums()?;
        self.loaded = Some(block);
        let layout = self.checkpoint.layout();
        let norms = taps_of(layout, self.block)
            .map(|range| {
                let first = &layout.matrices()[range.start];
                NormVector::from_sums(sums.sums(first.tap), self.windows)
                    .map_err(|source| PruneError::Norms { tensor: first.name.clone(), source })
            })
            .collect::<Result<_, _>>();
        match norms {
            Ok(norms) => Ok(Measured { norms, sums }),
            // weights that are no numbers are what is wrong, and not what came of them
            Err(error) => check_finite(self.checkpoint, self.block).and(Err(error)),
        }
    }

    /// Chooses the weights to prune by the block's norms, where they lie, and prunes them: [`BlockPass::advance`] then only
    /// has to run the block. None where there is no such place, which leaves it to [`Recipe::block_masks`](crate::Recipe).
    pub(crate) fn choose(
        &mut self,
        recipe: &Recipe,
        norms: &[NormVector],
    ) -> Result<Option<Vec<MatrixMask>>, PruneError> {
        self.report(Stage::Selecting);
        if !self.decoder.chooses() {
            return Ok(None);
        }
        // a block that an earlier run measured is loaded only now
        let mut block = match self.loaded.take() {
            Some(block) => block,
            None => {
                self.done += self.windows;
                self.load()?
            }
        };
        let choice = Choice { pruner: recipe.pruner, group: recipe.group, sparsity: recipe.sparsity, norms };
        let masks = block.choose_and_prune(self.checkpoint, &choice).map_err(|error| match error {
            ModelError::NotFinite { file, tensor, source } => PruneError::Weights { file, tensor, source },
            other => other.into(),
        })?;
        self.chosen = masks.is_some();
        self.loaded = Some(block);
        Ok(masks)
    }

    /// Drops the block that was measured, which [`BlockPass::advance`] then loads again: where several passes stand
    /// at one block, memory need not hold it several times.
    pub fn unload(&mut self) {
        (self.loads_ahead, self.next) = (false, None);
        self.chosen = false;
        if self.loaded.take().is_some() {
            // `advance` counts the runs of a block that it finds unmeasured
            self.done -= self.windows;
        }
    }

    /// Prunes the block by `masks` (one per matrix, in layout order), runs all windows through it and moves on.
    ///
    /// The block need not have been measured: a run that resumes replays the blocks whose masks it knows.
    ///
    /// # Errors
    /// [`PruneError`] when there is no such block or the decoder fails.
    pub fn advance(&mut self, masks: &[MatrixMask]) -> Result<(), PruneError> {
        if self.is_finished() {
            return Err(PruneError::OutOfOrder { expected: self.blocks(), given: self.block });
        }
        let mut block = match self.loaded.take() {
            Some(block) => block,
            None => {
                self.done += self.windows;
                self.load()?
            }
        };
        if self.block + 1 < self.blocks() {
            // whoever chose on the device hands the same masks back
            let pruned = std::mem::take(&mut self.chosen);
            for (position, mask) in masks.iter().enumerate().filter(|_| !pruned) {
                block.prune(position, mask)?;
            }
            self.report(Stage::Propagating);
            for index in 0..self.hidden.len() {
                block.run(self.decoder, &mut self.hidden[index], &mut self.workspace)?;
                self.done += self.hidden[index].windows() as u64;
                self.report(Stage::Propagating);
            }
            if self.loads_ahead {
                self.next = Some(self.decoder.load_block(self.checkpoint, self.block + 1)?);
            }
        }
        self.checkpoint.release_block(self.block);
        self.block += 1;
        Ok(())
    }
}

impl BlockPass<'_> {
    /// The block that the pass stands at, from wherever it is.
    fn load(&mut self) -> Result<Block, PruneError> {
        match self.next.take().filter(|block| block.index() == self.block) {
            Some(block) => Ok(block),
            None => Ok(self.decoder.load_block(self.checkpoint, self.block)?),
        }
    }
}

/// The matrix ranges of one block's taps, in layout order.
pub(crate) fn taps_of(layout: &Layout, block: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let matrices = layout.block(block);
    layout.taps().iter().filter(move |range| matrices.contains(&range.start)).cloned()
}

/// Refuses a block with NaN or infinite weights before anything is computed from it.
///
/// # Errors
/// [`PruneError::Weights`], naming file and tensor.
pub fn check_finite(checkpoint: &Checkpoint, block: usize) -> Result<(), PruneError> {
    for index in checkpoint.layout().block(block) {
        if let Err(source) = checkpoint.matrix(index).check_finite() {
            let tensor = checkpoint.layout().matrices()[index].name.clone();
            let file = checkpoint.matrix_file(index).to_owned();
            return Err(PruneError::Weights { file, tensor, source });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fedprune_model::{ComputeDType, DeviceName};

    use super::*;

    /// What a device does, on the processor: the next block is loaded while one runs, and nothing changes by it.
    #[test]
    fn loading_ahead_changes_nothing() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen2"));
        let checkpoint = Checkpoint::open(folder).unwrap();
        let windows: Vec<Vec<u32>> =
            (0..3u32).map(|window| (0..40).map(|at| (at * at * 7 + window * 31) % 256).collect()).collect();
        let device = DeviceName::Cpu.open().unwrap();
        for dtype in [ComputeDType::F32, ComputeDType::BF16] {
            let decoder = Decoder::new(&checkpoint, &device, dtype.candle(), 40).unwrap();
            let run = |ahead: bool, unload_at: Option<usize>| {
                let mut pass = BlockPass::new(&checkpoint, &decoder, &windows, |_| {}).unwrap();
                pass.loads_ahead = ahead;
                let mut seen = Vec::new();
                while !pass.is_finished() {
                    seen.push(pass.measure().unwrap().sums);
                    if unload_at == Some(pass.block()) {
                        pass.unload();
                    }
                    let masks: Vec<MatrixMask> = checkpoint
                        .layout()
                        .block(pass.block())
                        .map(|index| {
                            let weights = checkpoint.matrix(index);
                            let mut mask = MatrixMask::kept(weights.rows(), weights.columns());
                            (0..weights.rows()).for_each(|row| mask.prune(row, row % weights.columns()));
                            mask
                        })
                        .collect();
                    let last = pass.block() + 1 == pass.blocks();
                    pass.advance(&masks).unwrap();
                    let ahead = pass.loads_ahead && !last;
                    assert_eq!(
                        pass.next.as_ref().map(Block::index),
                        ahead.then_some(pass.block()),
                        "two blocks at most"
                    );
                }
                seen
            };
            let expected = run(false, None);
            assert!(run(true, None) == expected, "{dtype}");
            assert!(run(true, Some(1)) == expected, "{dtype}: a block that was unloaded is loaded again");
        }
    }
}
