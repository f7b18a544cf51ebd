//! y = x Wᵀ in f32, from operands that were laid out for it.
//!
//! A decoder block multiplies by the same seven matrices again and again: in two runs, for every batch of
//! windows. So a matrix is brought into the order in which the inner loop reads it once, when the block is
//! loaded, straight from the stored bytes ([`Panels`]); a general product would do that again in each call. Rows of x
//! are brought into order once for all matrices that read them ([`Rows`]).
//!
//! The inner loop holds a tile of y in registers and is written once, for whatever vectors the processor
//! has ([`pulp`] finds out): no `unsafe`. Every element of y is one sum over the inputs in ascending order, split at
//! fixed places ([`PART_INPUTS`]): the same bits whatever the number of threads and however rows are batched. Between
//! processors they may differ: some multiply and add in one rounding, others in two.

use fedprune_mask::DType as Stored;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::upload::widen_into;

/// Inputs summed in registers before y is written and read back: such a part of a panel and of some rows fits
/// the second-level cache.
const PART_INPUTS: usize = 1024;
/// Rows of one task at most, a multiple of every kernel's rows: a panel is read once for all of them.
const TASK_ROWS: usize = 96;
/// Tasks for each thread at least, where there is that much to do: the last ones end at about the same time.
const TASKS_PER_THREAD: usize = 8;
/// Columns of a matrix brought into order at a time, so that source and target stay in the first-level cache.
const TILE_COLUMNS: usize = 128;

/// What the inner loop computes at once on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    /// Rows of x.
    rows: usize,
    /// Rows of W: two vectors.
    outputs: usize,
}

/// Rows of x whose tile, with two vectors for W and one for x, fits the registers: 32, 16 or 32 of them.
const fn tile_rows(lanes: usize) -> usize {
    match lanes {
        16 => 12,
        8 => 6,
        4 => 8,
        _ => 4,
    }
}

struct TileOf;

impl WithSimd for TileOf {
    type Output = Tile;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Tile {
        Tile { rows: tile_rows(S::F32_LANES), outputs: 2 * S::F32_LANES }
    }
}

/// A matrix W of shape (outputs, inputs), in panels of as many outputs as a tile has.
///
/// Panel p holds, for each input, the weights of outputs p · width to (p + 1) · width; behind the last output zeros.
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    arch: Arch,
    outputs: usize,
    inputs: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Widens a stored matrix of shape (outputs, inputs), row-major.
    pub(crate) fn from_stored(stored: Stored, bytes: &[u8], outputs: usize, inputs: usize) -> Self {
        assert_eq!(bytes.len(), outputs * inputs * stored.bytes(), "a matrix has as many bytes as its shape says");
        let size = stored.bytes();
        let rows = |row: usize, columns: std::ops::Range<usize>, out: &mut [f32]| {
            let start = row * inputs;
            widen_into(stored, &bytes[(start + columns.start) * size..(start + columns.end) * size], out);
        };
        Self::fill(Arch::new(), outputs, inputs, rows)
    }

    /// From values of shape (outputs, inputs), row `row` of which starts at `row * stride`.
    pub(crate) fn from_rows(values: &[f32], outputs: usize, inputs: usize, stride: usize) -> Self {
        let rows = |row: usize, columns: std::ops::Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&values[row * stride + columns.start..row * stride + columns.end]);
        };
        Self::fill(Arch::new(), outputs, inputs, rows)
    }

    /// From the transposed: values of shape (inputs, outputs), row `input` of which starts at `input * stride`.
    pub(crate) fn from_columns(values: &[f32], outputs: usize, inputs: usize, stride: usize) -> Self {
        let arch = Arch::new();
        let width = arch.dispatch(TileOf).outputs;
        let mut packed = vec![0f32; outputs.div_ceil(width) * width * inputs];
        for (panel, packed) in packed.chunks_exact_mut((width * inputs).max(1)).enumerate() {
            let columns = panel * width..((panel + 1) * width).min(outputs);
            for (input, packed) in packed.chunks_exact_mut(width).enumerate() {
                let row = &values[input * stride..][columns.clone()];
                packed[..row.len()].copy_from_slice(row);
            }
        }
        Self { arch, outputs, inputs, values: packed }
    }

    /// `row(row, columns, out)` gives part of a row of W.
    fn fill(
        arch: Arch,
        outputs: usize,
        inputs: usize,
        row: impl Fn(usize, std::ops::Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let width = arch.dispatch(TileOf).outputs;
        let mut values = vec![0f32; outputs.div_ceil(width) * width * inputs];
        values.par_chunks_exact_mut((width * inputs).max(1)).enumerate().for_each(|(panel, values)| {
            let mut tile = [[0f32; TILE_COLUMNS]; MAX_WIDTH];
            for start in (0..inputs).step_by(TILE_COLUMNS) {
                let columns = start..inputs.min(start + TILE_COLUMNS);
                for (output, part) in (panel * width..((panel + 1) * width).min(outputs)).zip(&mut tile) {
                    row(output, columns.clone(), &mut part[..columns.len()]);
                }
                let values = &mut values[columns.start * width..columns.end * width];
                match width {
                    32 => transpose::<32>(&tile, values),
                    16 => transpose::<16>(&tile, values),
                    8 => transpose::<8>(&tile, values),
                    _ => transpose::<2>(&tile, values),
                }
            }
        });
        Self { arch, outputs, inputs, values }
    }

    /// The matrix, row-major.
    pub(crate) fn to_rows(&self) -> Vec<f32> {
        let width = self.width();
        let mut rows = vec![0f32; self.outputs * self.inputs];
        rows.par_chunks_exact_mut(self.inputs.max(1)).enumerate().for_each(|(output, row)| {
            let panel = &self.values[output / width * width * self.inputs..][..width * self.inputs];
            for (value, panel) in row.iter_mut().zip(panel.chunks_exact(width)) {
                *value = panel[output % width];
            }
        });
        rows
    }

    /// (outputs, inputs).
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    fn width(&self) -> usize {
        self.arch.dispatch(TileOf).outputs
    }

    /// Zeroes the weights whose bit is 1; `words` holds the bits of the row-major matrix, least significant first.
    pub(crate) fn zero(&mut self, words: &[u64]) {
        let (width, outputs, inputs) = (self.width(), self.outputs, self.inputs);
        let arch = self.arch;
        self.values.par_chunks_exact_mut((width * inputs).max(1)).enumerate().for_each(|(panel, values)| {
            let first = panel * width;
            let mut keep = [u32::MAX; MAX_WIDTH];
            for (part, values) in values.chunks_mut(32 * width).enumerate() {
                for (at, keep) in keep[..width.min(outputs - first)].iter_mut().enumerate() {
                    *keep = !bits(words, (first + at) * inputs + part * 32);
                }
                arch.dispatch(|| {
                    for (bit, values) in values.chunks_exact_mut(width).enumerate() {
                        for (value, keep) in values.iter_mut().zip(&keep) {
                            let all = 0u32.wrapping_sub(keep >> bit & 1);
                            *value = f32::from_bits(value.to_bits() & all);
                        }
                    }
                });
            }
        });
    }
}

/// Outputs of the widest tile.
const MAX_WIDTH: usize = 32;

/// The first columns of `tile`, as many as fit `out`, each as one row of `WIDTH`.
fn transpose<const WIDTH: usize>(tile: &[[f32; TILE_COLUMNS]; MAX_WIDTH], out: &mut [f32]) {
    for (column, out) in out.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        for (out, row) in out.iter_mut().zip(tile) {
            *out = row[column % TILE_COLUMNS];
        }
    }
}

/// 32 bits from bit `start` on; zeros behind the end.
fn bits(words: &[u64], start: usize) -> u32 {
    let word = |at: usize| u128::from(words.get(at).copied().unwrap_or(0));
    let both = word(start / 64) | word(start / 64 + 1) << 64;
    (both >> (start % 64)) as u32
}

/// Rows of x of shape (rows, inputs), in panels of as many rows as a tile has; kept to be used again.
///
/// Panel p holds, for each input, the values of rows p · height to (p + 1) · height; behind the last row, anything
/// finite.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    arch: Arch,
    rows: usize,
    inputs: usize,
    values: Vec<f32>,
}

impl Rows {
    /// Takes in `x`: (rows, inputs), row-major, on all cores.
    pub(crate) fn set(&mut self, x: &[f32], inputs: usize) {
        let height = self.resize(x.len() / inputs.max(1), inputs);
        let panels = self.values.par_chunks_exact_mut((height * inputs).max(1));
        // there may be more panels than rows fill
        panels.zip(x.par_chunks((height * inputs).max(1))).for_each(|(panel, x)| {
            for (at, row) in x.chunks_exact(inputs).enumerate() {
                put(panel, height, at, row);
            }
        });
    }

    /// Makes room for (rows, inputs), to be filled by [`Rows::put_row`]; returns the height of a panel.
    pub(crate) fn resize(&mut self, rows: usize, inputs: usize) -> usize {
        let height = self.arch.dispatch(TileOf).rows;
        (self.rows, self.inputs) = (rows, inputs);
        at_least(&mut self.values, rows.div_ceil(height) * height * inputs);
        height
    }

    /// Sets one row of `inputs` values; `height` is what [`Rows::resize`] returned.
    pub(crate) fn put_row(&mut self, height: usize, row: usize, values: &[f32]) {
        let panel = height * self.inputs;
        put(&mut self.values[row / height * panel..][..panel], height, row % height, values);
    }
}

/// The first `length` values of a buffer that grows as needed and is never cleared.
pub(super) fn at_least(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// Writes one row into a panel.
fn put(panel: &mut [f32], height: usize, at: usize, row: &[f32]) {
    for (panel, value) in panel.chunks_exact_mut(height).zip(row) {
        panel[at] = *value;
    }
}

/// Whether a product replaces y or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// y = x Wᵀ.
    Set,
    /// y = y + x Wᵀ.
    Add,
}

/// y = x Wᵀ, or added to y, on all cores. `out`: (rows, outputs), row-major.
pub(crate) fn multiply(x: &Rows, weights: &Panels, out: &mut [f32], store: Store) {
    let (outputs, inputs) = weights.shape();
    assert!(x.inputs == inputs && out.len() == x.rows * outputs, "x, W and y fit together");
    if out.is_empty() {
        return;
    }
    let width = weights.width();
    let panels = outputs.div_ceil(width);
    let wanted = TASKS_PER_THREAD * rayon::current_num_threads();
    let groups = wanted.div_ceil(x.rows.div_ceil(TASK_ROWS)).clamp(1, panels);
    let group_panels = panels.div_ceil(groups);

    let mut rows: Vec<_> = out.chunks_exact_mut(outputs).map(|row| row.chunks_mut(group_panels * width)).collect();
    let mut tasks = Vec::new();
    // all rows of one group of panels next to each other: the cores that share a cache read the same weights
    for group in 0..panels.div_ceil(group_panels) {
        for (chunk, rows) in rows.chunks_mut(TASK_ROWS).enumerate() {
            let rows: Vec<&mut [f32]> = rows.iter_mut().filter_map(Iterator::next).collect();
            tasks.push((group * group_panels, chunk * TASK_ROWS, rows));
        }
    }
    tasks.into_par_iter().for_each(|(panel, first_row, mut rows)| {
        let outputs = rows[0].len();
        weights.arch.dispatch(Product {
            x: &x.values[first_row * inputs..],
            x_inputs: inputs,
            weights: &weights.values[panel * width * inputs..],
            weight_inputs: inputs,
            inputs,
            outputs,
            rows: &mut rows,
            store,
        });
    });
}

/// The same for some rows and part of the matrix, on this thread.
///
/// `x` has as many inputs as `inputs`; of W, outputs from `outputs.start` (a multiple of [`Panels::align`]) on. Row i of
/// y is `rows[i]`, with as many values as `outputs`.
pub(crate) fn multiply_part(
    x: &Rows,
    weights: &Panels,
    outputs: std::ops::Range<usize>,
    inputs: std::ops::Range<usize>,
    rows: &mut [&mut [f32]],
) {
    let width = weights.width();
    assert!(outputs.start.is_multiple_of(width) && outputs.end <= weights.outputs && inputs.end <= weights.inputs);
    assert!(x.inputs == inputs.len() && x.rows == rows.len());
    weights.arch.dispatch(Product {
        x: &x.values,
        x_inputs: x.inputs,
        weights: &weights.values[outputs.start * weights.inputs + inputs.start * width..],
        weight_inputs: weights.inputs,
        inputs: inputs.len(),
        outputs: outputs.len(),
        rows,
        store: Store::Set,
    });
}

impl Panels {
    /// The largest multiple of a panel's outputs that is at most `output`.
    pub(crate) fn align(&self, output: usize) -> usize {
        output / self.width() * self.width()
    }
}

/// One task: some rows by some panels.
struct Product<'a, 'b> {
    /// Row panels, from the first row on.
    x: &'a [f32],
    /// Inputs of a row panel.
    x_inputs: usize,
    /// Weight panels, from the first output and input on.
    weights: &'a [f32],
    /// Inputs of a weight panel.
    weight_inputs: usize,
    /// Inputs summed.
    inputs: usize,
    outputs: usize,
    rows: &'a mut [&'b mut [f32]],
    store: Store,
}

impl WithSimd for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, { tile_rows(16) }>(simd),
            8 => self.run::<S, { tile_rows(8) }>(simd),
            4 => self.run::<S, { tile_rows(4) }>(simd),
            _ => self.run::<S, { tile_rows(1) }>(simd),
        }
    }
}

impl Product<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let width = 2 * S::F32_LANES;
        let parts = self.inputs.div_ceil(PART_INPUTS).max(1);
        let part_inputs = self.inputs.div_ceil(parts);
        for part in 0..parts {
            let inputs = part * part_inputs..self.inputs.min((part + 1) * part_inputs);
            for (panel, first) in (0..self.outputs).step_by(width).enumerate() {
                let weights = &self.weights[panel * width * self.weight_inputs..];
                let weights = &weights[inputs.start * width..inputs.end * width];
                let outputs = first..self.outputs.min(first + width);
                for (panel, rows) in self.rows.chunks_mut(ROWS).enumerate() {
                    let x = &self.x[panel * ROWS * self.x_inputs..][inputs.start * ROWS..inputs.end * ROWS];
                    tile::<S, ROWS>(simd, x, weights, rows, outputs.clone(), part > 0 || self.store == Store::Add);
                }
            }
        }
    }
}

/// A tile of y: up to `ROWS` rows by up to two vectors of outputs.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[f32],
    weights: &[f32],
    rows: &mut [&mut [f32]],
    outputs: std::ops::Range<usize>,
    add: bool,
) {
    let lanes = S::F32_LANES;
    let whole = outputs.len() == 2 * lanes;
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    if add {
        for (sums, row) in sums.iter_mut().zip(rows.iter()) {
            let row = &row[outputs.clone()];
            if whole {
                let (vectors, _) = S::as_simd_f32s(row);
                *sums = [vectors[0], vectors[1]];
            } else {
                let (left, right) = row.split_at(row.len().min(lanes));
                *sums = [simd.partial_load_f32s(left), simd.partial_load_f32s(right)];
            }
        }
    }
    let (vectors, _) = S::as_simd_f32s(weights);
    for (x, weights) in x.as_chunks::<ROWS>().0.iter().zip(vectors.as_chunks::<2>().0) {
        for row in 0..ROWS {
            let x = simd.splat_f32s(x[row]);
            sums[row][0] = simd.mul_add_e_f32s(x, weights[0], sums[row][0]);
            sums[row][1] = simd.mul_add_e_f32s(x, weights[1], sums[row][1]);
        }
    }
    for (sums, row) in sums.iter().zip(rows.iter_mut()) {
        let row = &mut row[outputs.clone()];
        if whole {
            let (vectors, _) = S::as_mut_simd_f32s(row);
            vectors[0] = sums[0];
            vectors[1] = sums[1];
        } else {
            let (left, right) = row.split_at_mut(row.len().min(lanes));
            simd.partial_store_f32s(left, sums[0]);
            simd.partial_store_f32s(right, sums[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    /// What the processor of this test can run: its widest vectors, narrower ones, none.
    fn arches() -> Vec<Arch> {
        let mut arches = vec![Arch::new(), Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
        arches
    }

    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + salt) * 7919) % 2003) as f32 / 500.0 - 2.0).collect()
    }

    /// On one set of vectors, with whatever was in `out`.
    fn product(arch: Arch, x: &[f32], w: &[f32], outputs: usize, inputs: usize, out: &mut [f32], store: Store) {
        let mut rows = Rows { arch, ..Rows::default() };
        rows.set(x, inputs);
        let panels = Panels::fill(arch, outputs, inputs, |row, columns, part| {
            part.copy_from_slice(&w[row * inputs..][columns]);
        });
        multiply(&rows, &panels, out, store);
    }

    fn check(x: &[f32], w: &[f32], before: &[f32], out: &[f32], outputs: usize, inputs: usize) {
        for (at, (out, before)) in out.iter().zip(before).enumerate() {
            let (row, output) = (at / outputs, at % outputs);
            let pairs = x[row * inputs..][..inputs].iter().zip(&w[output * inputs..][..inputs]);
            let terms = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (sum, size) =
                terms.fold((f64::from(*before), 1.0), |(sum, size), term| (sum + term, size + term.abs()));
            // what roundings of single precision add up to when they are independent, several times over
            let tolerance = 4.0 * f64::from(f32::EPSILON) * (inputs as f64).sqrt() * size;
            assert!((f64::from(*out) - sum).abs() < tolerance, "row {row}, output {output}: {out}, {sum}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_shape_equals_the_definition(
            rows in 1usize..230, outputs in 1usize..150, inputs in 1usize..150, salt in 0usize..1000,
        ) {
            let (x, w, before) =
                (values(rows * inputs, salt), values(outputs * inputs, 7 * salt), values(rows * outputs, 5));
            for arch in arches() {
                let mut out = vec![f32::NAN; rows * outputs];
                product(arch, &x, &w, outputs, inputs, &mut out, Store::Set);
                check(&x, &w, &vec![0.0; rows * outputs], &out, outputs, inputs);
                out.copy_from_slice(&before);
                product(arch, &x, &w, outputs, inputs, &mut out, Store::Add);
                check(&x, &w, &before, &out, outputs, inputs);
            }
        }

        #[test]
        fn parts_equal_the_whole(
            rows in 1usize..60, outputs in 1usize..150, inputs in 1usize..90, cut in 0usize..150, from in 0usize..89,
        ) {
            let (x, w) = (values(rows * inputs, 3), values(outputs * inputs, 11));
            let panels = Panels::from_rows(&w, outputs, inputs, inputs);
            let transposed: Vec<f32> =
                (0..outputs * inputs).map(|at| w[at % outputs * inputs + at / outputs]).collect();
            let same = Panels::from_columns(&transposed, outputs, inputs, outputs);
            prop_assert_eq!(&panels.values, &same.values);
            prop_assert_eq!(&panels.to_rows(), &w);

            let (first, from) = (panels.align(cut.min(outputs - 1)), from.min(inputs - 1));
            let part: Vec<f32> = x.chunks(inputs).flat_map(|row| row[from..].to_vec()).collect();
            let mut of_part = Rows::default();
            of_part.set(&part, inputs - from);
            let mut out = vec![f32::NAN; rows * (outputs - first)];
            multiply_part(
                &of_part, &panels, first..outputs, from..inputs,
                &mut out.chunks_exact_mut(outputs - first).collect::<Vec<_>>(),
            );
            let w: Vec<f32> = w.chunks(inputs).skip(first).flat_map(|row| row[from..].to_vec()).collect();
            check(&part, &w, &vec![0.0; out.len()], &out, outputs - first, inputs - from);
        }

        #[test]
        fn zeroing_follows_the_bits(outputs in 1usize..100, inputs in 1usize..200, seed in 1u64..u64::MAX) {
            let w: Vec<f32> = values(outputs * inputs, 1).into_iter().map(|w| w + 0.1234).collect();
            let mut state = seed;
            let words: Vec<u64> = (0..(outputs * inputs).div_ceil(64))
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    state ^ state >> 29
                })
                .collect();
            let expected: Vec<f32> =
                w.iter().enumerate().map(|(at, w)| if words[at / 64] >> (at % 64) & 1 == 1 { 0.0 } else { *w }).collect();
            for arch in arches() {
                let mut panels = Panels::fill(arch, outputs, inputs, |row, columns, part| {
                    part.copy_from_slice(&w[row * inputs..][columns]);
                });
                panels.zero(&words);
                prop_assert_eq!(&panels.to_rows(), &expected);
            }
        }
    }

    /// More inputs than one part, more rows than one task, and bias-like contents of y.
    #[test]
    fn large_products_equal_the_definition() {
        let (rows, outputs, inputs) = (201, 70, 2 * PART_INPUTS + 301);
        let (x, w, before) = (values(rows * inputs, 1), values(outputs * inputs, 2), values(rows * outputs, 3));
        for arch in arches() {
            let mut out = before.clone();
            product(arch, &x, &w, outputs, inputs, &mut out, Store::Add);
            check(&x, &w, &before, &out, outputs, inputs);
        }
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_batches() {
        let (rows, outputs, inputs) = (201, 333, PART_INPUTS + 77);
        let (x, w) = (values(rows * inputs, 1), values(outputs * inputs, 2));
        let run = |threads: usize, rows: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![f32::NAN; rows * outputs];
            pool.install(|| product(Arch::new(), &x[..rows * inputs], &w, outputs, inputs, &mut out, Store::Set));
            out
        };
        let one = run(1, rows);
        for threads in [2, 3, 8] {
            assert!(run(threads, rows) == one, "{threads} threads");
        }
        for rows in [1, 5, 97] {
            assert!(run(2, rows) == one[..rows * outputs], "{rows} rows");
        }
    }

    #[test]
    fn stored_values_arrive_exactly() {
        let (outputs, inputs) = (45, 2 * TILE_COLUMNS + 13);
        let values: Vec<f32> = (0..outputs * inputs).map(|i| (i % 251) as f32 * 0.25 - 30.0).collect();
        for stored in [Stored::BF16, Stored::F16, Stored::F32] {
            let mut bytes = vec![0u8]; // an odd address
            for value in &values {
                match stored {
                    Stored::BF16 => bytes.extend(bf16::from_f32(*value).to_le_bytes()),
                    Stored::F16 => bytes.extend(f16::from_f32(*value).to_le_bytes()),
                    Stored::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            assert_eq!(Panels::from_stored(stored, &bytes[1..], outputs, inputs).to_rows(), values, "{stored}");
        }
    }
}
