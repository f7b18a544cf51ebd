//! Counting votes, pruning in place, and sums of squares.

use fedprune_mask::DType;

use super::{Counts, Engine, Mask, Sums, WeightsMut, blocks_for, launch, weights_of};
use crate::bytes;
use crate::device::{Argument, Device};
use crate::error::GpuError;

/// Tokens that one thread adds, as `kernels/sums.cuh` has it.
const SLICE_TOKENS: u64 = 64;

impl<D: Device> Counts<D> {
    /// Weight of all votes that there will be.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Weight of the votes added so far.
    pub fn added(&self) -> u32 {
        self.added
    }
}

impl<D: Device> Engine<D> {
    /// No votes yet, and room for votes of weight `total` together.
    ///
    /// # Errors
    /// [`GpuError`] when they do not fit.
    pub fn counts(&self, rows: usize, columns: usize, total: u32) -> Result<Counts<D>, GpuError> {
        weights_of(rows, columns)?;
        let needed = bytes::counts_bytes(rows, columns, total).max(4);
        let mut planes = self.device.allocate("the counts of votes", needed)?;
        self.device.clear(&mut planes)?;
        Ok(Counts { rows, columns, total, added: 0, planes })
    }

    /// Adds a vote.
    ///
    /// # Errors
    /// [`GpuError::Shape`] for a mask of another matrix, [`GpuError::Votes`] for more votes than were announced; nothing is
    /// added then.
    pub fn add_vote(&self, counts: &mut Counts<D>, weight: u32, mask: &Mask<D>) -> Result<(), GpuError> {
        let (rows, columns) = (counts.rows, counts.columns);
        if (mask.rows, mask.columns) != (rows, columns) {
            let (found, expected) = (mask.rows * mask.columns, rows * columns);
            return Err(GpuError::Shape { what: "a mask", found, rows, columns, expected });
        }
        let added = counts.added.checked_add(weight).filter(|added| *added <= counts.total);
        let Some(added) = added else {
            return Err(GpuError::Votes { total: counts.total, added: counts.added, more: weight });
        };
        let planes = u32::BITS - counts.total.leading_zeros();
        let plane_words = (rows as u64 * columns as u64).div_ceil(32);
        if plane_words > 0 {
            let mut arguments = [
                Argument::Read(&mask.memory),
                Argument::U32((bytes::mask_bytes(rows, columns) / 4) as u32),
                Argument::U32(weight),
                Argument::Write(&mut counts.planes),
                Argument::U64(plane_words),
                Argument::U32(planes),
            ];
            launch(&self.device, "add_vote_any", (blocks_for(plane_words, 256), 256), &mut arguments)?;
        }
        counts.added = added;
        Ok(())
    }

    /// Zeroes the weights that `mask` prunes.
    ///
    /// # Errors
    /// [`GpuError::Shape`] for a mask of another matrix.
    pub fn prune(&self, mask: &Mask<D>, weights: &mut WeightsMut<'_, D>) -> Result<(), GpuError> {
        let (rows, columns) = (weights.rows, weights.columns);
        if (mask.rows, mask.columns) != (rows, columns) {
            let (found, expected) = (mask.rows * mask.columns, rows * columns);
            return Err(GpuError::Shape { what: "a mask", found, rows, columns, expected });
        }
        let count = weights_of(rows, columns)?;
        if count == 0 {
            return Ok(());
        }
        let mask_bytes = bytes::mask_bytes(rows, columns);
        let kernel = if weights.dtype == DType::F32 { "prune_32" } else { "prune_16" };
        let mut arguments = [
            Argument::Read(&mask.memory),
            Argument::U32(mask_bytes as u32),
            Argument::U32(count),
            Argument::ViewMut(&mut weights.view),
        ];
        launch(&self.device, kernel, (blocks_for(mask_bytes, 256), 256), &mut arguments)
    }

    /// Sums of squares of so many channels, all zero.
    ///
    /// # Errors
    /// [`GpuError`] when they do not fit.
    pub fn sums(&self, channels: usize) -> Result<Sums<D>, GpuError> {
        if u32::try_from(channels).is_err() {
            return Err(GpuError::TooLarge { rows: 1, columns: channels });
        }
        let mut memory = self.device.allocate("sums of squares", 8 * channels.max(1) as u64)?;
        self.device.clear(&mut memory)?;
        Ok(Sums { channels, memory })
    }

    /// Adds the squares of `activations`, (tokens, channels) row-major: exact squares, added in float64 in slices of 64 tokens
    /// and then slice by slice, whatever the device. What is not finite makes its channel's sum so.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the length is not a multiple of the channels, and what the device says.
    pub fn add_squares_of(&self, sums: &mut Sums<D>, dtype: DType, activations: &D::View<'_>) -> Result<(), GpuError> {
        let channels = sums.channels as u64;
        let (elements, rest) = {
            let (bytes, size) = (self.device.view_length(activations), dtype.bytes() as u64);
            (bytes / size, bytes % size)
        };
        if elements == 0 && rest == 0 {
            return Ok(());
        }
        if channels == 0 || rest != 0 || !elements.is_multiple_of(channels) {
            let (rows, columns) = (elements.checked_div(channels).unwrap_or(0) as usize, sums.channels);
            let (found, expected) = (elements as usize, rows * columns);
            return Err(GpuError::Shape { what: "activations", found, rows, columns, expected });
        }
        let tokens = elements / channels;
        let slices = tokens.div_ceil(SLICE_TOKENS);
        let mut partial = self.device.allocate("sums of squares", 8 * slices * channels)?;
        let mut arguments = [
            Argument::View(activations),
            Argument::U64(tokens),
            Argument::U32(sums.channels as u32),
            Argument::Write(&mut partial),
        ];
        let grid = (blocks_for(slices * channels, 256), 256);
        launch(&self.device, &format!("squares_of_{dtype}"), grid, &mut arguments)?;
        let mut arguments = [
            Argument::Read(&partial),
            Argument::U64(slices),
            Argument::U32(sums.channels as u32),
            Argument::Write(&mut sums.memory),
        ];
        launch(&self.device, "add_slices_any", (blocks_for(channels, 256), 256), &mut arguments)
    }

    /// Copies sums from the device, after all that was queued.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for what failed before.
    pub fn download_sums(&self, sums: &Sums<D>) -> Result<Vec<f64>, GpuError> {
        let mut bytes = vec![0; 8 * sums.channels];
        self.device.download(&sums.memory, &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }
}
