//! A round and a model's layout: how many heights there are, and which matrices each is about.

use fedprune_mask::layout::LayoutError;
use fedprune_mask::{Digest, Layout};

use super::Round;
use super::terms::{DataFree, Strategy};
use crate::ids::Height;

/// A layout that is not the round's, or that its terms do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutMismatch {
    /// Another model's.
    #[error("the model's layout is {found}, and the round is about {expected}; use the round's model",
        found = found.short(), expected = expected.short())]
    OtherLayout {
        /// The round's.
        expected: Digest,
        /// The model's.
        found: Digest,
    },
    /// An n:m group that does not fit its widths.
    #[error(transparent)]
    Group(#[from] LayoutError),
    /// Matrices that the model does not have.
    #[error("`data_free` names {0}, and the model has no such matrices")]
    DataFree(DataFree),
    /// A block without a matrix, about which nothing can be agreed.
    #[error("block {0} has nothing to prune, so that the round cannot be iterative")]
    EmptyBlock(u32),
    /// A height beyond the last.
    #[error("the round has {heights} heights, and {height} is not among them, counted from 0")]
    NoSuchHeight {
        /// The height asked for.
        height: Height,
        /// How many there are.
        heights: u32,
    },
}

impl Round {
    /// Checks that the round can be carried out on a model, and says how many heights it has.
    ///
    /// # Errors
    /// [`LayoutMismatch`] when it is another model, or terms name what the model does not have.
    pub fn heights(&self, layout: &Layout) -> Result<u32, LayoutMismatch> {
        let terms = self.terms();
        if layout.digest() != terms.layout {
            return Err(LayoutMismatch::OtherLayout { expected: terms.layout, found: layout.digest() });
        }
        layout.check_group(terms.local_group)?;
        layout.check_group(terms.global_group)?;
        for tap in &terms.data_free {
            if !layout.matrices().iter().any(|matrix| (matrix.block, matrix.tap) == (tap.block, tap.tap)) {
                return Err(LayoutMismatch::DataFree(*tap));
            }
        }
        if terms.strategy == Strategy::OneShot {
            return Ok(1);
        }
        // matrices are in order of their blocks, so a block is missing where numbers skip
        let mut blocks = 0u32;
        for matrix in layout.matrices() {
            if matrix.block > blocks {
                return Err(LayoutMismatch::EmptyBlock(blocks));
            }
            if matrix.block == blocks {
                blocks = blocks.saturating_add(1);
            }
        }
        Ok(blocks)
    }

    /// The layout that ballots of one height are made for: the whole model's, or one block's.
    ///
    /// # Errors
    /// [`LayoutMismatch`] as [`Round::heights`], and for a height beyond the last.
    pub fn layout_at(&self, layout: &Layout, height: Height) -> Result<Layout, LayoutMismatch> {
        let heights = self.heights(layout)?;
        if height.0 >= heights {
            return Err(LayoutMismatch::NoSuchHeight { height, heights });
        }
        match self.terms().strategy {
            Strategy::OneShot => Ok(layout.clone()),
            Strategy::Iterative => {
                let block = layout.matrices().iter().filter(|matrix| matrix.block == height.0);
                Ok(Layout::new(block.cloned().collect())?)
            }
        }
    }
}
