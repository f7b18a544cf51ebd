//! What can go wrong while a mask is computed.

use std::path::PathBuf;

use fedprune_mask::layout::LayoutError;
use fedprune_mask::norms::NormError;
use fedprune_mask::score::WidthError;
use fedprune_mask::weights::WeightsError;
use fedprune_model::ModelError;

/// A mask could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// The decoder failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The group does not fit the layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// NaN or infinite weights.
    #[error("tensor `{tensor}` in `{file}` cannot be pruned: {source}; obtain an intact copy of the checkpoint")]
    Weights {
        /// Shard that holds the tensor.
        file: PathBuf,
        /// Tensor name.
        tensor: String,
        /// Where the weight lies.
        source: WeightsError,
    },
    /// The activations are not finite.
    #[error("the input of `{tensor}` cannot be measured: {source}")]
    Norms {
        /// First matrix that reads the input.
        tensor: String,
        /// The channel.
        source: NormError,
    },
    /// Norms of another width than the matrix.
    #[error("tensor `{tensor}`: {source}")]
    Width {
        /// Tensor name.
        tensor: String,
        /// Both widths.
        source: WidthError,
    },
    /// The pass was driven out of order.
    #[error("block {given} was given to a pass that stands at block {expected}")]
    OutOfOrder {
        /// Where the pass stands.
        expected: usize,
        /// What was given.
        given: usize,
    },
    /// Reading or writing the journal.
    #[error("cannot {action} the unfinished run's journal `{path}`: {source}")]
    JournalIo {
        /// What was tried.
        action: &'static str,
        /// The journal.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Something else lies where the journal would.
    #[error("`{path}` is no unfinished run of fedprune; move it away, or choose another --out")]
    NoJournal {
        /// What lies there.
        path: PathBuf,
    },
    /// A journal of other settings.
    #[error(
        "`{path}` holds an unfinished run with another {difference}; repeat that run as it was started, \
         or discard it with --restart"
    )]
    JournalMismatch {
        /// The journal.
        path: PathBuf,
        /// Which setting differs.
        difference: &'static str,
    },
}
