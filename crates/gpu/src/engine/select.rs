//! Selection in every group, by the norms of one silo or by votes.

use std::sync::Arc;

use fedprune_mask::select::DeriveError;
use fedprune_mask::weights::{WeightsError, WeightsView};
use fedprune_mask::{DType, Group, Pruner, Sparsity};

use super::{
    Counts, Engine, Mask, Norms, SharesOf, Weights, blocks_for, check_width, launch, launch_sharing, weights_of,
};
use crate::bytes::{self, SETTLING_CAPACITY};
use crate::device::{Argument, Device};
use crate::error::GpuError;

/// Words of the state of one selection, as `kernels/layer.cuh` has them.
const STATE_WORDS: usize = 16;
const NOT_FINITE: usize = 0;
const OUTCOME: usize = 1;
/// Outcome of a bracket that misled, or of a list that was full.
const FAILED: u64 = 2;

/// Weights that the sample looks at, at most: threads of the block times what each keeps.
const MOST_SAMPLES: u32 = 1024 * 16;
/// How far the bracket reaches to both sides, in standard deviations of the sample's rank: of 15,000 selections one is misled.
const DEVIATIONS: f64 = 4.0;
/// Weights that one block of `split` reads, about: of these as many lie in the bracket as it can set aside, and no more.
const SPLIT_WEIGHTS: u64 = 1 << 16;
/// Bits that one round of the exact way tells apart.
const ROUND_BITS: u32 = 11;
/// Bits of |W| and flat index together.
const TIE_BITS: u32 = 63;
/// Static shared memory of `rows_…`, rounded up; its row comes on top.
const ROWS_SHARED_BYTES: u32 = 12 << 10;
/// Columns up to which a row is given 256 threads; wider ones get 512.
const NARROW_ROW: usize = 1 << 14;

/// What orders weights.
enum Order<'a, D: Device> {
    Norms(&'a Norms<D>),
    Votes(&'a Counts<D>),
}

impl<D: Device> Clone for Order<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Order<'_, D> {}

/// A selection that is under way.
pub struct Selection<'a, 'v, D: Device> {
    scored: Scored<'a, 'v, D>,
    budget: u64,
    /// None where nothing was to be selected.
    state: Option<D::Memory>,
    mask: Mask<D>,
}

/// Weights, and what orders them.
struct Scored<'a, 'v, D: Device> {
    weights: &'a Weights<'v, D>,
    order: Order<'a, D>,
    /// Sums of |W| over columns, then rows, for RIA.
    shares: Option<SharesOf<D>>,
}

impl<'v, D: Device> Scored<'_, 'v, D> {
    fn rows(&self) -> usize {
        self.weights.rows
    }

    fn columns(&self) -> usize {
        self.weights.columns
    }

    /// As `kernels/scores.cuh` numbers them.
    fn pruner(&self) -> u32 {
        match &self.order {
            Order::Norms(norms) if norms.pruner == Pruner::WANDA => 0,
            Order::Norms(norms) if norms.pruner == Pruner::RIA => 2,
            Order::Norms(_) => 1,
            Order::Votes(_) => 3,
        }
    }

    /// Ending of the kernels for this pruner and dtype.
    fn name(&self) -> &'static str {
        match (self.pruner(), self.weights.dtype) {
            (0, DType::BF16) => "wanda_bf16",
            (0, DType::F16) => "wanda_f16",
            (0, DType::F32) => "wanda_f32",
            _ => "any",
        }
    }

    /// Bits of a key in which |W| lies as it is.
    fn magnitude_bits(&self) -> u32 {
        match self.pruner() {
            0 | 2 => 0,
            _ => self.weights.dtype.bytes() as u32 * 8 - 1,
        }
    }

    /// Bits of a key.
    fn key_bits(&self) -> u32 {
        match &self.order {
            Order::Votes(counts) => u32::BITS - counts.total.leading_zeros() + self.magnitude_bits(),
            Order::Norms(_) if self.magnitude_bits() > 0 => self.magnitude_bits(),
            Order::Norms(_) => TIE_BITS,
        }
    }

    /// The parameters `INPUTS` of `kernels/scores.cuh`, and `more`.
    fn arguments<'b, const N: usize>(&'b self, more: [Argument<'b, 'v, D>; N]) -> Vec<Argument<'b, 'v, D>> {
        // what a pruner does not use is never looked at: any pointer will do
        let unused = || Argument::View(&self.weights.view);
        let factors = match &self.order {
            Order::Norms(Norms { factors: Some(factors), .. }) => Argument::Read(factors),
            _ => unused(),
        };
        let (planes, total) = match &self.order {
            Order::Votes(counts) => (Argument::Read(&counts.planes), counts.total),
            Order::Norms(_) => (unused(), 0),
        };
        let dtype = match self.weights.dtype {
            DType::BF16 => 0,
            DType::F16 => 1,
            DType::F32 => 2,
        };
        let mut arguments = vec![
            Argument::View(&self.weights.view),
            factors,
            self.shares.as_ref().map_or_else(unused, |shares| Argument::Read(&**shares)),
            planes,
            Argument::U32(self.weights.rows as u32),
            Argument::U32(self.weights.columns as u32),
            Argument::U32(total),
            Argument::U32(u32::BITS - total.leading_zeros()),
            Argument::U32(self.pruner() + 16 * dtype),
        ];
        arguments.extend(more);
        arguments
    }
}

impl<D: Device> Engine<D> {
    /// The mask that the pruner of `norms` gives `weights`: the bits of [`fedprune_mask::derive_mask`].
    ///
    /// # Errors
    /// [`GpuError::Derive`] when norms or group do not fit the width, [`GpuError::Weights`] for the first weight that is not
    /// finite, and what the device says.
    pub fn derive_mask(
        &mut self,
        group: Group,
        sparsity: Sparsity,
        weights: &Weights<'_, D>,
        norms: &Norms<D>,
    ) -> Result<Mask<D>, GpuError> {
        let selection = self.start_mask(group, sparsity, weights, norms)?;
        self.finish_mask(selection)
    }

    /// Queues the selection that [`Engine::derive_mask`] waits for: several can be under way.
    ///
    /// # Errors
    /// As [`Engine::derive_mask`], save for weights that are not finite: [`Engine::finish_mask`] says that.
    pub fn start_mask<'a, 'v>(
        &mut self,
        group: Group,
        sparsity: Sparsity,
        weights: &'a Weights<'v, D>,
        norms: &'a Norms<D>,
    ) -> Result<Selection<'a, 'v, D>, GpuError> {
        let shares = match norms.pruner {
            Pruner::RIA => Some(self.shares(weights)?),
            _ => None,
        };
        self.start_sharing(group, sparsity, weights, norms, shares)
    }

    /// As [`Engine::start_mask`], with what RIA divides by, which is the same for all norms.
    pub(crate) fn start_sharing<'a, 'v>(
        &mut self,
        group: Group,
        sparsity: Sparsity,
        weights: &'a Weights<'v, D>,
        norms: &'a Norms<D>,
        shares: Option<SharesOf<D>>,
    ) -> Result<Selection<'a, 'v, D>, GpuError> {
        if norms.pruner.scorer().uses_norms() {
            check_width(norms.columns, weights.columns)?;
        }
        self.start(group, sparsity, Scored { weights, order: Order::Norms(norms), shares })
    }

    /// The mask that votes come to: the bits of [`fedprune_mask::tally::global_mask`].
    ///
    /// # Errors
    /// As [`Engine::derive_mask`]; [`GpuError::Shape`] for counts of another matrix.
    pub fn global_mask(
        &mut self,
        group: Group,
        sparsity: Sparsity,
        weights: &Weights<'_, D>,
        counts: &Counts<D>,
    ) -> Result<Mask<D>, GpuError> {
        let (rows, columns) = (weights.rows, weights.columns);
        if (counts.rows, counts.columns) != (rows, columns) {
            let (found, expected) = (counts.rows * counts.columns, rows * columns);
            return Err(GpuError::Shape { what: "counts", found, rows, columns, expected });
        }
        let selection = self.start(group, sparsity, Scored { weights, order: Order::Votes(counts), shares: None })?;
        self.finish_mask(selection)
    }

    /// Sums of |W| over columns, then rows.
    pub(crate) fn shares(&self, weights: &Weights<'_, D>) -> Result<SharesOf<D>, GpuError> {
        let (rows, columns) = (weights.rows, weights.columns);
        let allocate = |length: usize| self.device.allocate("sums of rows and columns", 8 * length.max(1) as u64);
        let mut sums = allocate(rows + columns)?;
        if rows > 0 && columns > 0 {
            let norms = Norms { pruner: Pruner::MAGNITUDE, columns: 0, factors: None };
            let scored = Scored { weights, order: Order::Norms(&norms), shares: None };
            let name = |what: &str| format!("sums_of_{what}_of_{}", weights.dtype);
            let blocks = blocks_for(columns as u64, 256);
            let mut arguments = scored.arguments([Argument::Write(&mut sums)]);
            launch(&self.device, &name("columns"), (blocks, 256), &mut arguments)?;
            let blocks = blocks_for(rows as u64, 32);
            let mut arguments = scored.arguments([Argument::Write(&mut sums)]);
            launch(&self.device, &name("rows"), (blocks, 256), &mut arguments)?;
        }
        Ok(Arc::new(sums))
    }

    fn start<'a, 'v>(
        &mut self,
        group: Group,
        sparsity: Sparsity,
        scored: Scored<'a, 'v, D>,
    ) -> Result<Selection<'a, 'v, D>, GpuError> {
        let (rows, columns) = (scored.rows(), scored.columns());
        if matches!(group, Group::NofM { m, .. } if !columns.is_multiple_of(m as usize)) {
            return Err(DeriveError::Indivisible { group, columns }.into());
        }
        let weights = weights_of(rows, columns)?;
        let mut mask = self.empty_mask(rows, columns)?;
        let budget = match group {
            Group::Layer => sparsity.budget(u64::from(weights)),
            Group::Row => sparsity.budget(columns as u64),
            Group::Column => sparsity.budget(rows as u64),
            Group::NofM { n, .. } => u64::from(n),
        };
        if budget == 0 || weights == 0 {
            self.device.clear(&mut mask.memory)?;
            return Ok(Selection { scored, budget, state: None, mask });
        }
        let mut state = self.device.allocate("the state of a selection", 8 * STATE_WORDS as u64)?;
        match group {
            Group::Layer if scored.magnitude_bits() == 0 => {
                self.layer_by_sample(&scored, weights, budget, &mut state, &mut mask)?;
            }
            Group::Layer => self.layer_exactly(&scored, weights, budget, &mut state, &mut mask)?,
            Group::Row => self.rows(&scored, budget, &mut state, &mut mask)?,
            Group::Column => {
                self.device.clear(&mut state)?;
                self.device.clear(&mut mask.memory)?;
                let more =
                    [Argument::U32(budget as u32), Argument::Write(&mut state), Argument::Write(&mut mask.memory)];
                let grid = (blocks_for(columns as u64, 1), 256);
                launch(&self.device, "columns_any", grid, &mut scored.arguments(more))?;
            }
            Group::NofM { n, m } => self.n_of_m(&scored, n, m, &mut state, &mut mask)?,
        }
        Ok(Selection { scored, budget, state: Some(state), mask })
    }

    /// The mask of a selection, after all that was queued.
    ///
    /// # Errors
    /// [`GpuError::Weights`] for the first weight that is not finite, and what the device says, also of what failed before.
    pub fn finish_mask(&mut self, selection: Selection<'_, '_, D>) -> Result<Mask<D>, GpuError> {
        let Selection { scored, budget, state, mut mask } = selection;
        let Some(mut state) = state else { return Ok(mask) };
        let mut words = [0u8; 8 * STATE_WORDS];
        self.device.download(&state, &mut words)?;
        let word = |index: usize| u64::from_le_bytes(*words[8 * index..].first_chunk().expect("eight bytes a word"));
        // one more than 2^32 − 1 − the first such index, so that zero says that there is none
        if let Some(from_the_end) = word(NOT_FINITE).checked_sub(1) {
            let flat = (u64::from(u32::MAX) - from_the_end) as usize;
            return Err(self.not_finite(scored.weights, flat));
        }
        if word(OUTCOME) == FAILED {
            let weights = weights_of(scored.rows(), scored.columns())?;
            self.layer_exactly(&scored, weights, budget, &mut state, &mut mask)?;
        }
        Ok(mask)
    }

    /// The error that names a weight that is not finite.
    fn not_finite(&self, weights: &Weights<'_, D>, flat: usize) -> GpuError {
        let (row, column) = (flat / weights.columns, flat % weights.columns);
        let size = weights.dtype.bytes();
        let mut bytes = [0; 4];
        if let Err(error) = self.device.download_view(&weights.view, (flat * size) as u64, &mut bytes[..size]) {
            return error;
        }
        match WeightsView::new(weights.dtype, 1, 1, &bytes[..size]) {
            Ok(one) => WeightsError::NotFinite { row, column, value: one.get(0, 0) }.into(),
            Err(error) => error.into(),
        }
    }

    /// One pool, with the threshold bracketed by a sample; a sample that misled leaves [`FAILED`].
    fn layer_by_sample(
        &mut self,
        scored: &Scored<'_, '_, D>,
        weights: u32,
        budget: u64,
        state: &mut D::Memory,
        mask: &mut Mask<D>,
    ) -> Result<(), GpuError> {
        self.scratch_for(weights)?;
        let (device, scratch) = (&self.device, self.scratch.as_mut().expect("made above"));
        let mask_bytes = bytes::mask_bytes(mask.rows, mask.columns) as u32;
        let (samples, low_rank, high_rank) = ranks_of_bracket(weights, budget);
        let more = [
            Argument::U32(samples),
            Argument::U32(low_rank),
            Argument::U32(high_rank),
            Argument::Write(state),
            Argument::Write(&mut scratch.histogram),
        ];
        launch(device, "bracket_any", (1, 1024), &mut scored.arguments(more))?;
        let more = [
            Argument::Write(state),
            Argument::Write(&mut scratch.histogram),
            Argument::Write(&mut scratch.list),
            Argument::U32(scratch.capacity),
            Argument::Write(&mut mask.memory),
            Argument::U32(mask_bytes),
        ];
        let grid = (blocks_for(u64::from(weights), SPLIT_WEIGHTS as u32), 256);
        launch(device, &format!("split_{}", scored.name()), grid, &mut scored.arguments(more))?;
        let mut arguments = [
            Argument::U64(budget),
            Argument::Write(state),
            Argument::Read(&scratch.histogram),
            Argument::Read(&scratch.list),
            Argument::U32(scratch.capacity),
            Argument::Write(&mut scratch.settling),
            Argument::U32(SETTLING_CAPACITY),
            Argument::Write(&mut mask.memory),
        ];
        let blocks = blocks_for(u64::from(weights) / 32, 256).min(2 * device.limits().processors);
        launch(device, "narrow_listed_any", (blocks, 256), &mut arguments)?;
        let more = [Argument::Write(state), Argument::Read(&scratch.settling), Argument::Write(&mut mask.memory)];
        launch(device, "settle_any", (1, 1024), &mut scored.arguments(more))
    }

    /// One pool, digit by digit.
    fn layer_exactly(
        &mut self,
        scored: &Scored<'_, '_, D>,
        weights: u32,
        budget: u64,
        state: &mut D::Memory,
        mask: &mut Mask<D>,
    ) -> Result<(), GpuError> {
        self.scratch_for(weights)?;
        let (device, scratch) = (&self.device, self.scratch.as_mut().expect("made above"));
        let blocks = blocks_for(u64::from(weights), 256 * 8).min(8 * device.limits().processors);
        let tie_bits = if scored.magnitude_bits() > 0 { u32::BITS } else { TIE_BITS };
        let mut arguments = [
            Argument::U64(budget),
            Argument::U64(u64::from(weights)),
            Argument::U32(scored.key_bits()),
            Argument::Write(state),
            Argument::Write(&mut scratch.histogram),
        ];
        launch(device, "exact_start_any", (1, 1024), &mut arguments)?;
        for _ in 0..scored.key_bits().div_ceil(ROUND_BITS) + tie_bits.div_ceil(ROUND_BITS) {
            let more = [Argument::Write(state), Argument::Write(&mut scratch.histogram)];
            launch(device, "exact_round_any", (blocks, 256), &mut scored.arguments(more))?;
            let mut arguments = [
                Argument::U32(scored.magnitude_bits()),
                Argument::Write(state),
                Argument::Write(&mut scratch.histogram),
            ];
            launch(device, "exact_pick_any", (1, 1024), &mut arguments)?;
        }
        let mask_words = (bytes::mask_bytes(mask.rows, mask.columns) / 4) as u32;
        let more = [Argument::Read(state), Argument::Write(&mut mask.memory), Argument::U32(mask_words)];
        launch(device, "exact_mark_any", (blocks, 256), &mut scored.arguments(more))
    }

    /// One pool a row.
    fn rows(
        &self,
        scored: &Scored<'_, '_, D>,
        budget: u64,
        state: &mut D::Memory,
        mask: &mut Mask<D>,
    ) -> Result<(), GpuError> {
        let (rows, columns) = (scored.rows(), scored.columns());
        self.device.clear(state)?;
        if !columns.is_multiple_of(32) || !rows.is_multiple_of(2) {
            // rows share words, or the last word is half empty
            self.device.clear(&mut mask.memory)?;
        }
        let more = [Argument::U32(budget as u32), Argument::Write(state), Argument::Write(&mut mask.memory)];
        let grid = (blocks_for(rows as u64, 1), if columns <= NARROW_ROW { 256 } else { 512 });
        let row_bytes = 4 * columns as u64;
        if row_bytes + u64::from(ROWS_SHARED_BYTES) <= u64::from(self.device.limits().shared_bytes) {
            let kernel = format!("rows_{}", scored.name());
            launch_sharing(&self.device, &kernel, grid, row_bytes as u32, &mut scored.arguments(more))
        } else {
            launch(&self.device, "wide_rows_any", grid, &mut scored.arguments(more))
        }
    }

    /// A pool each m weights.
    fn n_of_m(
        &self,
        scored: &Scored<'_, '_, D>,
        n: u32,
        m: u32,
        state: &mut D::Memory,
        mask: &mut Mask<D>,
    ) -> Result<(), GpuError> {
        self.device.clear(state)?;
        let mask_bytes = bytes::mask_bytes(mask.rows, mask.columns);
        let kernel = match m {
            4 => format!("n_of_4_{}", scored.name()),
            2 | 8 => format!("n_of_{m}_any"),
            _ => {
                let more = [
                    Argument::U32(n),
                    Argument::U32(m),
                    Argument::Write(state),
                    Argument::Write(&mut mask.memory),
                    Argument::U32((mask_bytes / 4) as u32),
                ];
                let grid = (blocks_for(mask_bytes * 8, 256), 256);
                return launch(&self.device, "n_of_m_any", grid, &mut scored.arguments(more));
            }
        };
        let more = [
            Argument::U32(n),
            Argument::Write(state),
            Argument::Write(&mut mask.memory),
            Argument::U32(mask_bytes as u32),
        ];
        launch(&self.device, &kernel, (blocks_for(mask_bytes, 256), 256), &mut scored.arguments(more))
    }
}

/// How many weights are sampled, and between which ranks of the sample (1 is the lowest) the threshold lies but for bad
/// luck; 0 and one more than there are samples for the ends.
fn ranks_of_bracket(weights: u32, budget: u64) -> (u32, u32, u32) {
    let samples = weights.min(MOST_SAMPLES);
    let share = budget as f64 / f64::from(weights);
    let expected = share * f64::from(samples);
    let margin = DEVIATIONS * (f64::from(samples) * share * (1.0 - share)).sqrt() + 1.0;
    let low = (expected - margin).floor().max(0.0) as u32;
    let high = (expected + margin).ceil().min(f64::from(samples) + 1.0) as u32;
    (samples, low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_hold_what_they_should() {
        let (samples, low, high) = ranks_of_bracket(4096 * 11008, 4096 * 11008 / 2);
        assert_eq!(samples, 16384);
        assert!(low < 8192 && high > 8192 && f64::from(high - low) / 16384.0 < 0.032, "{low} {high}");
        assert_eq!(ranks_of_bracket(1, 1), (1, 0, 2));
        assert_eq!(ranks_of_bracket(100, 99).2, 101);
        assert_eq!(ranks_of_bracket(100_000, 1).1, 0);
    }
}
