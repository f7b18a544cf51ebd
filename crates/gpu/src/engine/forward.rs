//! What a block computes between its products.

use fedprune_mask::DType;

use super::{Engine, blocks_for, launch};
use crate::device::{Argument, Device};
use crate::error::GpuError;

/// Threads of a block, as `kernels/forward.cuh` has them.
const SOFTMAX_THREADS: u32 = 256;
const GATE_THREADS: u32 = 256;

/// Whose scores they are, and what each query sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Causal {
    /// Queries of each head, one row after the other.
    pub queries: u32,
    /// Keys of each query: columns.
    pub keys: u32,
    /// Place of the first query.
    pub first_query: u32,
    /// Place of the first key, at most that of the first query.
    pub first_key: u32,
    /// How many keys a query sees, itself included.
    pub window: Option<u32>,
    /// What scores are multiplied by.
    pub scale: f32,
}

impl<D: Device> Engine<D> {
    /// Scores to weights in place: softmax in float32 over the keys that each query sees, zero elsewhere.
    ///
    /// `scores` is (heads × queries, keys), row-major.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the length is not one of whole heads, and what the device says.
    pub fn causal_softmax_of<'v>(
        &self,
        dtype: DType,
        scores: &mut D::ViewMut<'v>,
        causal: Causal,
    ) -> Result<(), GpuError> {
        let Causal { queries, keys, first_query, first_key, window, scale } = causal;
        let bytes = self.device.view_mut_length(scores);
        let row = u64::from(keys) * dtype.bytes() as u64;
        let rows = bytes.checked_div(row).unwrap_or(0);
        let whole = row > 0 && bytes.is_multiple_of(row) && queries > 0 && rows.is_multiple_of(u64::from(queries));
        // every query has its own key
        let last_query = first_query.checked_add(queries.saturating_sub(1));
        let keyed =
            first_key <= first_query && last_query.is_some_and(|last| last - first_key < keys && last < u32::MAX);
        if !whole || !keyed || window == Some(0) {
            let (found, expected) = ((bytes / dtype.bytes() as u64) as usize, (rows * u64::from(keys)) as usize);
            return Err(GpuError::Shape {
                what: "attention scores",
                found,
                rows: rows as usize,
                columns: keys as usize,
                expected,
            });
        }
        let mut arguments = [
            Argument::ViewMut(scores),
            Argument::U64(rows),
            Argument::U32(keys),
            Argument::U32(queries),
            Argument::U32(first_query),
            Argument::U32(first_key),
            Argument::U32(window.unwrap_or(0)),
            Argument::U32(scale.to_bits()),
        ];
        let blocks = blocks_for(rows, 1);
        launch(&self.device, &format!("causal_softmax_of_{dtype}"), (blocks, SOFTMAX_THREADS), &mut arguments)
    }

    /// gate = silu(gate) · up in place, in float32.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the lengths differ, and what the device says.
    pub fn gate_up_of<'v>(&self, dtype: DType, gate: &mut D::ViewMut<'v>, up: &D::View<'v>) -> Result<(), GpuError> {
        let size = dtype.bytes() as u64;
        let (count, other) = (self.device.view_mut_length(gate) / size, self.device.view_length(up) / size);
        if count != other {
            let (found, expected) = (other as usize, count as usize);
            return Err(GpuError::Shape { what: "activations", found, rows: 1, columns: expected, expected });
        }
        if count == 0 {
            return Ok(());
        }
        let mut arguments = [Argument::ViewMut(gate), Argument::View(up), Argument::U64(count)];
        let grid = (blocks_for(count, GATE_THREADS), GATE_THREADS);
        launch(&self.device, &format!("gate_up_of_{dtype}"), grid, &mut arguments)
    }
}
