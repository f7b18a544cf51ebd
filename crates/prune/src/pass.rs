//! The block-by-block pass: measure a block, prune it, run it again.
//!
//! The pass does not choose masks. [`BlockPass::measure`] yields the norm vectors of the block it stands at;
//! [`BlockPass::advance`] takes whatever masks were decided on and moves on. A silo on its own answers with its
//! own masks ([`crate::local`]); in an iterative federation the answer is what everyone agreed on.
//!
//! Cost: two runs of every window through every block, save what nobody reads: the last product of each first run,
//! and the last block's second.

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::{Layout, MatrixMask, NormVector};
use fedprune_model::{Block, BlockSums, Decoder, Hidden, Workspace};

use crate::error::PruneError;

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
    done: u64,
    on_progress: Box<dyn FnMut(Progress) + 'a>,
}

impl<'a> BlockPass<'a> {
    /// Embeds the calibration windows and stands before block 0.
    ///
    /// # Errors
    /// [`PruneError`] when a token is outside the vocabulary.
    pub fn new(
        checkpoint: &'a Checkpoint,
        decoder: &'a Decoder,
        windows: &[Vec<u32>],
        on_progress: impl FnMut(Progress) + 'a,
    ) -> Result<Self, PruneError> {
        let hidden = decoder.embed_in_batches(checkpoint, windows)?;
        Ok(Self {
            checkpoint,
            decoder,
            hidden,
            windows: windows.len() as u64,
            workspace: Workspace::default(),
            block: 0,
            loaded: None,
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

    /// Tells the observer that masks are being chosen for this block.
    pub(crate) fn selecting(&mut self) {
        self.report(Stage::Selecting);
    }

    /// Runs all windows through the dense block; returns what its taps saw.
    ///
    /// # Errors
    /// [`PruneError`] when weights or activations are not finite, or the decoder fails.
    pub fn measure(&mut self) -> Result<Measured, PruneError> {
        check_finite(self.checkpoint, self.block)?;
        let block = self.decoder.load_block(self.checkpoint, self.block)?;
        let mut sums = BlockSums::new(self.checkpoint.config());
        self.report(Stage::Measuring);
        for index in 0..self.hidden.len() {
            block.measure(self.decoder, &self.hidden[index], &mut sums, &mut self.workspace)?;
            self.done += self.hidden[index].windows() as u64;
            self.report(Stage::Measuring);
        }
        self.loaded = Some(block);
        let layout = self.checkpoint.layout();
        let norms = taps_of(layout, self.block)
            .map(|range| {
                let first = &layout.matrices()[range.start];
                NormVector::from_sums(sums.sums(first.tap), self.windows)
                    .map_err(|source| PruneError::Norms { tensor: first.name.clone(), source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Measured { norms, sums })
    }

    /// Drops the block that was measured, which [`BlockPass::advance`] then loads again: where several passes stand
    /// at one block, memory need not hold it several times.
    pub fn unload(&mut self) {
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
                self.decoder.load_block(self.checkpoint, self.block)?
            }
        };
        if self.block + 1 < self.blocks() {
            for (position, mask) in masks.iter().enumerate() {
                block.prune(position, mask)?;
            }
            self.report(Stage::Propagating);
            for index in 0..self.hidden.len() {
                block.run(self.decoder, &mut self.hidden[index], &mut self.workspace)?;
                self.done += self.hidden[index].windows() as u64;
                self.report(Stage::Propagating);
            }
        }
        self.checkpoint.release_block(self.block);
        self.block += 1;
        Ok(())
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
