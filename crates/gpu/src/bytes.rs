//! What must move at least, and how much device memory it takes.
//!
//! A selection of n weights reads W once and writes n / 8 bytes; norms are read from caches. What the kernels move beside
//! that floor:
//!
//! | group | passes over W | beside it |
//! |---|---|---|
//! | `row` | one: a block holds the coarse keys of its row in shared memory; a row that does not fit what the device lends a block is read three times and more, from the second-level cache | – |
//! | `layer`, Wanda and RIA | one, and a sample of 16384 weights | about 3 % of the weights, in the bracket of the sample: 8 bytes written and read for each, and half of their mask bits |
//! | `layer`, magnitude and votes, and where a sample misled | one for each 11 bits of the key that it takes to tell weights apart, and for each 11 bits of the index where magnitudes tie, and one that writes the mask | – |
//! | `n:m` | one | – |
//! | `column` | one for the range, and one to three a round of 11 bits; neighbouring columns share what they read in the second-level cache | – |
//!
//! RIA reads W twice more, for the sums of rows and columns. A vote that is counted reads and writes the planes of the counts:
//! at most n / 8 bytes twice for each bit of the total.

use fedprune_mask::DType;

/// Bytes that must move at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Read from device memory.
    pub read: u64,
    /// Written to it.
    pub written: u64,
}

impl Traffic {
    /// Both.
    pub fn total(self) -> u64 {
        self.read + self.written
    }
}

/// The floor of one selection, whatever the group: W read once, a bit a weight written, a norm a column read.
pub fn selection_floor(dtype: DType, rows: usize, columns: usize) -> Traffic {
    let weights = weights(rows, columns);
    Traffic { read: weights * dtype.bytes() as u64 + 2 * columns as u64, written: weights.div_ceil(8) }
}

/// Device memory of one packed mask.
pub fn mask_bytes(rows: usize, columns: usize) -> u64 {
    weights(rows, columns).div_ceil(64) * 8
}

/// Device memory of the counts of one matrix under votes of weight `total` together.
pub fn counts_bytes(rows: usize, columns: usize, total: u32) -> u64 {
    weights(rows, columns).div_ceil(32) * 4 * u64::from(u32::BITS - total.leading_zeros())
}

/// Device memory that a selection takes beside weights and mask: what all selections of an engine share, as large as the
/// largest matrix needs.
pub fn scratch_bytes(rows: usize, columns: usize) -> u64 {
    u64::from(list_capacity(weights(rows, columns))) * 8 + u64::from(SETTLING_CAPACITY) * 4 + HISTOGRAM_BYTES
}

/// Device memory that a tally takes for one matrix: weights, counts, two masks, norms and what selections share.
pub fn tally_bytes(dtype: DType, rows: usize, columns: usize, total: u32) -> u64 {
    weights(rows, columns) * dtype.bytes() as u64
        + counts_bytes(rows, columns, total)
        + 2 * mask_bytes(rows, columns)
        + 10 * columns as u64
        + 8 * (rows as u64 + columns as u64)
        + scratch_bytes(rows, columns)
}

/// Weights that may lie in the bracket of a sample: a sixteenth, and some more for small matrices.
pub(crate) fn list_capacity(weights: u64) -> u32 {
    u32::try_from(weights / 16 + (1 << 16)).unwrap_or(u32::MAX)
}

/// Weights that one block ranks at the end.
pub(crate) const SETTLING_CAPACITY: u32 = 1 << 14;
/// 2048 bins.
pub(crate) const HISTOGRAM_BYTES: u64 = 2048 * 4;

fn weights(rows: usize, columns: usize) -> u64 {
    rows as u64 * columns as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_of_the_matrix_that_the_goal_names() {
        let floor = selection_floor(DType::BF16, 4096, 11008);
        assert_eq!((floor.read, floor.written), (90_177_536 + 22_016, 5_636_096));
        assert_eq!(mask_bytes(1, 65), 16);
        assert_eq!(counts_bytes(1, 33, 64), 8 * 7);
    }
}
