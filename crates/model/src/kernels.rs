//! The few element-wise loops that the processor would otherwise spend its time in, on plain f32 slices.
//!
//! Each is written so that the compiler vectorises it without `unsafe`: fixed-width lanes, no branches,
//! an exponential of our own; `vectorised!` compiles it for several processors' vectors. Work is split
//! by rows or columns, no sum crosses a split, and nothing is contracted, so results are the same bits whatever the
//! number of threads and the processor.

use std::marker::PhantomData;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Elements that one task handles at least: about 10 µs of work.
const TASK_ELEMENTS: usize = 1 << 14;
/// Width of the running sums: two AVX-512 registers, or eight SSE ones.
const LANES: usize = 32;

/// A function that is compiled for the vectors of several processors and runs as the widest of this one.
///
/// What it calls must be `#[inline(always)]` to be compiled along.
macro_rules! vectorised {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident<'a>($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        $visibility fn $name<'a>($($argument: $type),*) $(-> $result)? {
            struct Kernel<'a>($($type,)* PhantomData<&'a ()>);
            impl<'a> WithSimd for Kernel<'a> {
                type Output = vectorised!(@output $($result)?);

                #[inline(always)]
                fn with_simd<S: Simd>(self, _: S) -> Self::Output {
                    let Kernel($($argument,)* PhantomData) = self;
                    $body
                }
            }
            Arch::new().dispatch(Kernel($($argument,)* PhantomData))
        }
    };
    (@output) => { () };
    (@output $result:ty) => { $result };
}

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

/// e^x within 2 units in the last place for any x ≤ 0; below −708 about 1e-308 instead of less; NaN stays NaN.
///
/// As [`exponential`], with the series of e^r up to r¹³.
#[inline(always)]
fn exponential_f64(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵²
    const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = if x < -708.0 { -708.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut series = 1.0 / 6_227_020_800.0;
    for divisor in
        [479_001_600.0, 39_916_800.0, 3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0]
    {
        series = series * r + 1.0 / divisor;
    }
    let exponential_of_r = series * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023) << 52;
    f64::from_bits(exponent) * exponential_of_r
}

/// The largest value, NaN when any is.
#[inline(always)]
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
#[inline(always)]
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

/// Scales, masks and normalises attention scores.
pub(crate) struct CausalSoftmax {
    pub(crate) scale: f32,
    /// Position of the first query.
    pub(crate) first_query: usize,
    /// Rows of each query, one after the other: heads that share the keys.
    pub(crate) heads: usize,
    /// Position of the first key.
    pub(crate) first_key: usize,
    /// Keys that a query sees, itself included; `None` is all before it.
    pub(crate) window: Option<usize>,
}

impl CausalSoftmax {
    /// Columns that `row` attends to; never empty when the query's own key is present.
    fn visible(&self, row: usize, keys: usize) -> Range<usize> {
        let position = self.first_query + row / self.heads;
        let end = (position + 1 - self.first_key).min(keys);
        let oldest = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        oldest.saturating_sub(self.first_key).min(end)..end
    }

    /// Turns scores into weights, on this thread. Row r is that of query `first_query` + r / `heads`, one score a key.
    pub(crate) fn weigh(&self, rows: &mut [&mut [f32]]) {
        for (row, scores) in rows.iter_mut().enumerate() {
            let visible = self.visible(row, scores.len());
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            softmax(&mut scores[visible], self.scale);
        }
    }
}

vectorised! {
    /// e^(scale · x) / Σ e^(scale · x).
    fn softmax<'a>(scores: &'a mut [f32], scale: f32) {
        let inverse = exponentials(scores, maximum(scores), scale).recip();
        scores.iter_mut().for_each(|score| *score *= inverse);
    }
}

/// gate = silu(gate) · up.
pub(crate) fn gate(gate: &mut [f32], up: &[f32]) {
    vectorised! {
        fn part<'a>(gate: &'a mut [f32], up: &'a [f32]) {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate / (1.0 + exponential(-*gate)) * up;
            }
        }
    }
    gate.par_chunks_mut(TASK_ELEMENTS).zip(up.par_chunks(TASK_ELEMENTS)).for_each(|(gate, up)| part(gate, up));
}

/// Adds Σ x² over rows to each column's sum, every column in row order.
///
/// `activations`: (rows, sums.len()), row-major. Threads take stripes of columns.
pub(crate) fn add_squares(activations: &[f32], sums: &mut [f64]) {
    /// Columns whose sums stay in registers.
    const STRIPE: usize = 64;
    vectorised! {
        /// Of `totals.len()` columns from `from` on.
        fn stripe<'a>(activations: &'a [f32], columns: usize, from: usize, totals: &'a mut [f64]) {
            if let Ok(whole) = <&mut [f64; STRIPE]>::try_from(&mut *totals) {
                let mut sums = *whole;
                for row in activations.chunks_exact(columns) {
                    if let Some(row) = row[from..].first_chunk::<STRIPE>() {
                        add_squares_of(row, &mut sums);
                    }
                }
                *whole = sums;
            } else {
                for row in activations.chunks_exact(columns) {
                    add_squares_of(&row[from..], totals);
                }
            }
        }
    }
    let columns = sums.len();
    sums.par_chunks_mut(STRIPE)
        .enumerate()
        .for_each(|(index, totals)| stripe(activations, columns, index * STRIPE, totals));
}

/// The square of an f32 is exact in f64.
#[inline(always)]
fn add_squares_of(row: &[f32], totals: &mut [f64]) {
    for (total, x) in totals.iter_mut().zip(row) {
        *total += f64::from(*x) * f64::from(*x);
    }
}

/// 1 / √(mean x² + ε), the sum in fixed lanes.
#[inline(always)]
fn inverse_root_mean_square(values: &[f32], eps: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value * value;
    }
    (lanes.iter().sum::<f32>() / values.len() as f32 + eps).sqrt().recip()
}

/// out = x / √(mean x² + ε) · weight for each row of `x`: (rows, weight.len()).
pub(crate) fn normalise_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    vectorised! {
        fn part<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]) {
            let width = weight.len();
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let inverse = inverse_root_mean_square(x, eps);
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * inverse * weight;
                }
            }
        }
    }
    let task = (TASK_ELEMENTS / weight.len()).max(1) * weight.len();
    out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| part(x, weight, eps, out));
}

/// What happens to queries and keys before they meet.
pub(crate) struct Rotation<'a> {
    /// Heads of a row.
    pub(crate) heads: usize,
    /// Weight (head_dim) and ε of a norm of each head that comes first.
    pub(crate) norm: Option<(&'a [f32], f32)>,
    /// (positions, head_dim / 2).
    pub(crate) cos: &'a [f32],
    /// (positions, head_dim / 2).
    pub(crate) sin: &'a [f32],
}

impl Rotation<'_> {
    /// Rotates heads by their positions: `values`, (tokens of all windows, heads × head_dim), in place.
    ///
    /// `lengths`: tokens of each window in turn, each of which starts at position 0.
    pub(crate) fn apply(&self, lengths: &[usize], values: &mut [f32]) {
        let tokens: usize = lengths.iter().sum();
        let row = values.len() / tokens.max(1);
        let half = row / self.heads / 2;
        let task_rows = (TASK_ELEMENTS / row).max(1);
        let mut rest = values;
        for length in lengths {
            let (window, after) = std::mem::take(&mut rest).split_at_mut(length * row);
            let tables = self.cos.par_chunks(task_rows * half).zip(self.sin.par_chunks(task_rows * half));
            window.par_chunks_mut(task_rows * row).zip(tables).for_each(|(rows, (cos, sin))| {
                rotate(rows, row, half, self.norm, cos, sin);
            });
            rest = after;
        }
    }
}

vectorised! {
    /// Rows of `row` values in heads of 2 · `half`, each row by its angles.
    fn rotate<'a>(
        rows: &'a mut [f32],
        row: usize,
        half: usize,
        norm: Option<(&'a [f32], f32)>,
        cos: &'a [f32],
        sin: &'a [f32],
    ) {
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (row, (cos, sin)) in rows.chunks_exact_mut(row).zip(angles) {
            for head in row.chunks_exact_mut(2 * half) {
                if let Some((weight, eps)) = norm {
                    let inverse = inverse_root_mean_square(head, eps);
                    head.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * inverse * weight);
                }
                let (left, right) = head.split_at_mut(half);
                for ((left, right), (cos, sin)) in left.iter_mut().zip(right).zip(cos.iter().zip(sin)) {
                    (*left, *right) = (*left * cos - *right * sin, *left * sin + *right * cos);
                }
            }
        }
    }
}

/// x / √(mean x² + ε) · weight over the last dimension, the mean in f32 whatever the dtype.
pub(crate) fn normalise(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() != DType::F32 {
        // candle's own kernel divides in half precision on the processor
        return candle_nn::ops::rms_norm_slow(x, weight, eps);
    }
    candle_nn::ops::rms_norm(x, weight, eps)
}

vectorised! {
    /// The largest logit, and Σ e^(x − maximum) in fixed lanes.
    fn maximum_and_sum<'a>(logits: &'a [f32]) -> (f64, f64) {
        let maximum = f64::from(maximum(logits));
        let mut lanes = [0f64; LANES];
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                *lane += exponential_f64(f64::from(*logit) - maximum);
            }
        }
        for (lane, logit) in lanes.iter_mut().zip(rest) {
            *lane += exponential_f64(f64::from(*logit) - maximum);
        }
        (maximum, lanes.iter().sum())
    }
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
        let (maximum, sum) = maximum_and_sum(logits);
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

    #[test]
    fn exponential_of_f64_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for step in 0..=700_000 {
            let x = f64::from(step) * -1e-3;
            worst = worst.max((exponential_f64(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::EPSILON, "{worst:e}");
        assert_eq!(exponential_f64(0.0), 1.0);
        assert!(exponential_f64(f64::NAN).is_nan());
        assert!(exponential_f64(f64::NEG_INFINITY) < 4e-308);
    }

    /// The plain definition, against the kernel, with keys that start late and a sliding window.
    #[test]
    fn causal_softmax_equals_its_definition() {
        let (heads, queries, keys) = (3, 5, 41);
        for (first_query, first_key, window) in [(36, 0, None), (40, 4, Some(7)), (36, 0, Some(1))] {
            let softmax = CausalSoftmax { scale: 0.25, first_query, heads, first_key, window };
            let scores: Vec<f32> =
                (0..heads * queries * keys).map(|i| ((i * 7919) % 613) as f32 * 0.05 - 15.0).collect();
            let mut got = scores.clone();
            softmax.weigh(&mut got.chunks_exact_mut(keys).collect::<Vec<_>>());
            for (row, (scores, got)) in scores.chunks(keys).zip(got.chunks(keys)).enumerate() {
                let position = first_query + row / heads;
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
    fn gate_equals_its_definition() {
        let count = TASK_ELEMENTS + 77;
        let values: Vec<f32> = (0..count).map(|i| ((i * 389) % 1009) as f32 * 0.2 - 100.0).collect();
        let up: Vec<f32> = values.iter().rev().copied().collect();
        let mut got = values.clone();
        gate(&mut got, &up);
        for ((got, x), up) in got.iter().zip(&values).zip(&up) {
            let (x, up) = (f64::from(*x), f64::from(*up));
            let expected = x / (1.0 + (-x).exp()) * up;
            assert!((f64::from(*got) - expected).abs() <= 1e-6 * expected.abs() + 1e-30, "{x} {up} {got}");
        }
    }

    #[test]
    fn norms_equal_their_definition() {
        for width in [1, 31, 64, 577] {
            let rows = TASK_ELEMENTS / width + 3;
            let x: Vec<f32> = (0..rows * width).map(|i| ((i * 31) % 97) as f32 / 7.0 - 6.0).collect();
            let weight: Vec<f32> = (0..width).map(|i| i as f32 * 0.01 + 0.5).collect();
            let mut got = vec![f32::NAN; x.len()];
            normalise_rows(&x, &weight, 1e-5, &mut got);
            for (x, got) in x.chunks(width).zip(got.chunks(width)) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for ((x, got), weight) in x.iter().zip(got).zip(&weight) {
                    let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                    assert!((f64::from(*got) - expected).abs() < 1e-6 * expected.abs().max(1.0));
                }
            }
        }
    }

    #[test]
    fn sums_of_squares_are_added_in_row_order() {
        let (rows, columns) = (50, 150);
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
