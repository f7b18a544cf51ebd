//! The few element-wise loops that the processor would otherwise spend its time in, on plain f32 slices.
//!
//! Each is written so that the compiler vectorises it without `unsafe`: fixed-width lanes, no branches,
//! an exponential of our own. Work is split by rows or columns, and no sum crosses a split, so results
//! are the same bits whatever the number of threads.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, InplaceOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Elements that one task handles at least: about 10 µs of work.
const TASK_ELEMENTS: usize = 1 << 14;
/// Width of the running sums: two AVX-512 registers, or eight SSE ones.
const LANES: usize = 32;

/// e^x within 2 units in the last place, for any x; below −87.3 about 1e-38 instead of less; NaN stays NaN.
///
/// Cephes `expf`: x = n ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for e^r, n added to the exponent.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // comparisons rather than `clamp`'s `max`/`min`, which would turn NaN into a bound
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    polynomial = polynomial * r + 1.398_2e-3;
    polynomial = polynomial * r + 8.333_452e-3;
    polynomial = polynomial * r + 4.166_579_6e-2;
    polynomial = polynomial * r + 1.666_666_5e-1;
    polynomial = polynomial * r + 0.5;
    let exponential_of_r = polynomial * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    f32::from_bits(exponent) * exponential_of_r
}

/// The largest value, NaN when any is.
fn maximum(values: &[f32]) -> f32 {
    let pick = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, *value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if a.is_nan() { a } else { pick(a, *b) })
}

/// Replaces each x by e^(scale · (x − maximum)) and returns their sum, in fixed lanes.
fn exponentials(values: &mut [f32], maximum: f32, scale: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exponential(scale * (*value - maximum));
            *lane += *value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *value = exponential(scale * (*value - maximum));
        *lane += *value;
    }
    lanes.iter().sum()
}

/// Scales, masks and normalises attention scores in place.
///
/// Scores have shape (groups, queries_per_group, keys); row r of a group is the query at position
/// `first_query + r % queries`, so that several heads may share a group's keys.
pub(crate) struct CausalSoftmax {
    pub(crate) scale: f32,
    /// Position of the first query row.
    pub(crate) first_query: usize,
    /// Query positions per head.
    pub(crate) queries: usize,
    /// Position of the first key column.
    pub(crate) first_key: usize,
    /// Keys that a query sees, itself included; `None` is all before it.
    pub(crate) window: Option<usize>,
}

impl CausalSoftmax {
    /// Key columns that query row `row` attends to; never empty when the query's own key is present.
    fn visible(&self, row: usize, keys: usize) -> Range<usize> {
        let position = self.first_query + row % self.queries;
        let end = (position + 1 - self.first_key).min(keys);
        let oldest = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        oldest.saturating_sub(self.first_key).min(end)..end
    }
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let keys = layout.dims().last().copied().unwrap_or(0);
        let (Some((start, end)), CpuStorage::F32(scores)) = (layout.contiguous_offsets(), storage) else {
            candle_core::bail!("causal softmax needs contiguous f32 scores")
        };
        let rows_per_task = (TASK_ELEMENTS / keys.max(1)).max(1);
        scores[start..end].par_chunks_mut((rows_per_task * keys).max(1)).enumerate().for_each(|(task, rows)| {
            for (row, scores) in rows.chunks_exact_mut(keys).enumerate() {
                let visible = self.visible(task * rows_per_task + row, keys);
                scores[..visible.start].fill(0.0);
                scores[visible.end..].fill(0.0);
                let scores = &mut scores[visible];
                let inverse = exponentials(scores, maximum(scores), self.scale).recip();
                scores.iter_mut().for_each(|score| *score *= inverse);
            }
        });
        Ok(())
    }
}

/// silu(gate) · up, both contiguous and of the same shape.
pub(crate) struct GatedSilu;

impl CustomOp2 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ranges = (gate_layout.contiguous_offsets(), up_layout.contiguous_offsets());
        let ((Some((g, g_end)), Some((u, u_end))), CpuStorage::F32(gate), CpuStorage::F32(up)) = (ranges, gate, up)
        else {
            candle_core::bail!("gated silu needs contiguous f32, not {:?}", gate.dtype())
        };
        let mut out = vec![0f32; g_end - g];
        out.par_chunks_mut(TASK_ELEMENTS)
            .zip(gate[g..g_end].par_chunks(TASK_ELEMENTS))
            .zip(up[u..u_end].par_chunks(TASK_ELEMENTS))
            .for_each(|((out, gate), up)| {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exponential(-gate)) * up;
                }
            });
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

/// Adds Σ x² over rows to each column's sum, every column in row order.
///
/// `activations`: (rows, sums.len()), row-major. Threads take stripes of columns.
pub(crate) fn add_squares(activations: &[f32], sums: &mut [f64]) {
    let columns = sums.len();
    sums.par_chunks_mut(LANES).enumerate().for_each(|(stripe, sums)| {
        let from = stripe * LANES;
        let mut totals = [0f64; LANES];
        let totals = &mut totals[..sums.len()];
        totals.copy_from_slice(sums);
        for row in activations.chunks_exact(columns) {
            for (total, x) in totals.iter_mut().zip(&row[from..from + sums.len()]) {
                *total += f64::from(*x) * f64::from(*x);
            }
        }
        sums.copy_from_slice(totals);
    });
}

/// x / √(mean x² + ε) · weight over the last dimension, the mean in f32 whatever the dtype.
pub(crate) fn normalise(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() != DType::F32 {
        // candle's own kernel divides in half precision on the processor
        return candle_nn::ops::rms_norm_slow(x, weight, eps);
    }
    candle_nn::ops::rms_norm(x, weight, eps)
}

/// A running log-sum-exp of one row of logits, in f64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSumExp {
    maximum: f64,
    sum: f64,
}

impl LogSumExp {
    pub(crate) const EMPTY: Self = Self { maximum: f64::NEG_INFINITY, sum: 0.0 };

    /// Takes in more logits of the row.
    pub(crate) fn extend(&mut self, logits: &[f32]) {
        let maximum = f64::from(maximum(logits));
        let sum = logits.iter().map(|logit| (f64::from(*logit) - maximum).exp()).sum();
        self.merge(maximum, sum);
    }

    /// Takes in a part of the row whose largest logit is `maximum` and whose Σ e^(x − maximum) is `sum`.
    pub(crate) fn merge(&mut self, maximum: f64, sum: f64) {
        if maximum > self.maximum || maximum.is_nan() {
            self.sum = self.sum * (self.maximum - maximum).exp() + sum;
            self.maximum = maximum;
        } else {
            self.sum += sum * (maximum - self.maximum).exp();
        }
    }

    /// ln Σ e^x.
    pub(crate) fn value(&self) -> f64 {
        self.maximum + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for step in -870_000..=870_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exponential(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exponential(0.0), 1.0);
        assert!(exponential(f32::NAN).is_nan());
        assert!(exponential(f32::NEG_INFINITY) < 2e-38);
        assert!(exponential(f32::INFINITY) > 1e38);
    }

    #[test]
    fn maximum_sees_every_lane_and_keeps_nan() {
        for length in [1, 31, 32, 33, 100] {
            for at in 0..length {
                let mut values = vec![-1.0f32; length];
                values[at] = 5.0;
                assert_eq!(maximum(&values), 5.0);
                values[at] = f32::NAN;
                assert!(maximum(&values).is_nan(), "{at} of {length}");
            }
        }
    }

    /// The plain definition, against the kernel, with keys that start late and a sliding window.
    #[test]
    fn causal_softmax_equals_its_definition() {
        let (groups, heads, queries, keys) = (2, 3, 5, 41);
        for (first_query, first_key, window) in [(36, 0, None), (40, 4, Some(7)), (36, 0, Some(1))] {
            let op = CausalSoftmax { scale: 0.25, first_query, queries, first_key, window };
            let scores: Vec<f32> =
                (0..groups * heads * queries * keys).map(|i| ((i * 7919) % 613) as f32 * 0.05 - 15.0).collect();
            let tensor = Tensor::from_vec(scores.clone(), (groups, heads * queries, keys), &Device::Cpu).unwrap();
            tensor.inplace_op1(&op).unwrap();
            let got = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (row, (scores, got)) in scores.chunks(keys).zip(got.chunks(keys)).enumerate() {
                let position = first_query + row % queries;
                let weight = |key: usize| {
                    let at = first_key + key;
                    let seen = at <= position && window.is_none_or(|window| at + window > position);
                    if seen { (f64::from(scores[key]) * 0.25).exp() } else { 0.0 }
                };
                let total: f64 = (0..keys).map(weight).sum();
                for (key, got) in got.iter().enumerate() {
                    let expected = weight(key) / total;
                    assert!((f64::from(*got) - expected).abs() < 1e-6, "row {row}, key {key}");
                    assert_eq!(*got == 0.0, expected == 0.0, "row {row}, key {key}");
                }
            }
        }
    }

    #[test]
    fn sums_of_squares_are_added_in_row_order() {
        let (rows, columns) = (50, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 31) % 97) as f32 / 7.0 - 6.0).collect();
        let mut sums = vec![0.5f64; columns];
        add_squares(&values, &mut sums);
        for (column, sum) in sums.iter().enumerate() {
            let expected = (0..rows).fold(0.5f64, |sum, row| {
                let x = f64::from(values[row * columns + column]);
                sum + x * x
            });
            assert_eq!(*sum, expected);
        }
    }

    #[test]
    fn log_sum_exp_does_not_depend_on_the_split() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 389) % 1009) as f32 * 0.1 - 20.0).collect();
        let exact = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        for part in [1000, 333, 1] {
            let mut row = LogSumExp::EMPTY;
            logits.chunks(part).for_each(|part| row.extend(part));
            assert!((row.value() - exact).abs() < 1e-12, "{part}");
        }
        let mut row = LogSumExp::EMPTY;
        row.extend(&[f32::NAN, 1.0]);
        row.extend(&[1.0]);
        assert!(row.value().is_nan());
    }
}
