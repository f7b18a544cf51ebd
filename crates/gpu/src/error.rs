//! What can go wrong on the device.

use fedprune_mask::select::DeriveError;
use fedprune_mask::tally::TallyError;
use fedprune_mask::weights::WeightsError;

/// Why a device has no answer.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A library of CUDA is not on this machine.
    #[error("there is no `{library}` on this machine: install {of}, or name its folder in LD_LIBRARY_PATH")]
    Missing {
        /// The file.
        library: &'static str,
        /// What it belongs to.
        of: &'static str,
    },
    /// Fewer GPUs.
    #[error("there is no GPU {ordinal}: the driver knows {count}, counted from 0")]
    NoSuchGpu {
        /// Asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver, or the device, says no.
    #[error("the GPU failed while {doing}: {reason}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the driver says.
        reason: String,
    },
    /// Less device memory than it takes.
    #[error(
        "{doing} takes {needed} bytes of GPU memory and {free} are free; free some (nvidia-smi shows who uses it), or \
         compute on the processor with --device cpu"
    )]
    Memory {
        /// What was to be done.
        doing: &'static str,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A matrix beyond what the kernels count in 32 bits.
    #[error(
        "a matrix of shape ({rows}, {columns}) has more than the 4294967295 weights that the kernels index; \
         use --device cpu"
    )]
    TooLarge {
        /// out_features.
        rows: usize,
        /// in_features.
        columns: usize,
    },
    /// Device memory that does not hold what it is said to hold.
    #[error("{what} of {found} elements on the GPU, where shape ({rows}, {columns}) takes {expected}")]
    Shape {
        /// What it is said to be.
        what: &'static str,
        /// Elements that there are.
        found: usize,
        /// out_features.
        rows: usize,
        /// in_features.
        columns: usize,
        /// Elements of the shape.
        expected: usize,
    },
    /// More votes than were announced.
    #[error("votes of weight {added} and {more} more exceed the total weight of {total}")]
    Votes {
        /// Announced.
        total: u32,
        /// Added before.
        added: u32,
        /// Not added.
        more: u32,
    },
    /// Weights that have no order.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Norms or group do not fit the matrix.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// Ballots that cannot be counted.
    #[error(transparent)]
    Tally(#[from] TallyError),
}
