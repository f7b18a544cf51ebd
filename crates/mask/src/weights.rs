//! A stored weight matrix, read in place: the bytes as they lie in the checkpoint, with their dtype.

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The storage formats of weights that are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DType {
    /// bfloat16: 8 exponent bits, 7 fraction bits.
    #[serde(rename = "bf16")]
    BF16,
    /// IEEE half precision.
    #[serde(rename = "f16")]
    F16,
    /// IEEE single precision.
    #[serde(rename = "f32")]
    F32,
}

impl DType {
    /// Bytes of one weight.
    pub const fn bytes(self) -> usize {
        match self {
            DType::BF16 | DType::F16 => 2,
            DType::F32 => 4,
        }
    }

    /// Lowercase name, as in `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::F32 => "f32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A matrix of shape (rows, columns), row-major little-endian, borrowed from wherever it lies.
///
/// Reading needs no alignment: a memory-mapped tensor may start at any byte.
#[derive(Debug, Clone, Copy)]
pub struct WeightsView<'a> {
    dtype: DType,
    rows: usize,
    columns: usize,
    bytes: &'a [u8],
}

/// Whoever holds the weights of a layout, such as a checkpoint.
pub trait MatrixSource: Sync {
    /// The weights of the matrix at this layout index.
    fn matrix(&self, index: usize) -> WeightsView<'_>;

    /// Says that the matrix is not needed for now, so that its memory may be given back.
    fn done_with(&self, _index: usize) {}
}

/// The matrices of another source from one of them on: those of one block, for a layout of that block alone.
pub struct MatricesFrom<'a> {
    /// Where they lie.
    pub source: &'a dyn MatrixSource,
    /// Index there of the matrix that is the first here.
    pub first: usize,
}

impl MatrixSource for MatricesFrom<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        self.source.matrix(self.first + index)
    }

    fn done_with(&self, index: usize) {
        self.source.done_with(self.first + index);
    }
}

/// Bytes that do not make the matrix they are said to be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// The length contradicts dtype and shape.
    #[error("a {dtype} matrix of shape ({rows}, {columns}) does not fit {bytes} bytes")]
    Length {
        /// Storage format.
        dtype: DType,
        /// out_features.
        rows: usize,
        /// in_features.
        columns: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// NaN or infinity: no order exists among such weights.
    #[error("the weight at row {row}, column {column} is {value}; a mask needs finite weights")]
    NotFinite {
        /// Row of the first such weight.
        row: usize,
        /// Its column.
        column: usize,
        /// NaN or ±inf.
        value: f32,
    },
}

/// Calls `$body` with `$read`, a function from little-endian bytes of one weight to `f32`, chosen once per call.
macro_rules! per_dtype {
    ($dtype:expr, $size:ident, $read:ident => $body:expr) => {
        match $dtype {
            DType::BF16 => {
                const $size: usize = 2;
                let $read = |bytes: &[u8]| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                $body
            }
            DType::F16 => {
                const $size: usize = 2;
                let $read = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                $body
            }
            DType::F32 => {
                const $size: usize = 4;
                let $read = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                $body
            }
        }
    };
}

impl<'a> WeightsView<'a> {
    /// Borrows `bytes` as a matrix.
    ///
    /// # Errors
    /// [`WeightsError::Length`] when the length contradicts dtype and shape.
    pub fn new(dtype: DType, rows: usize, columns: usize, bytes: &'a [u8]) -> Result<Self, WeightsError> {
        let expected = rows.checked_mul(columns).and_then(|weights| weights.checked_mul(dtype.bytes()));
        if expected != Some(bytes.len()) {
            return Err(WeightsError::Length { dtype, rows, columns, bytes: bytes.len() });
        }
        Ok(Self { dtype, rows, columns, bytes })
    }

    /// Storage format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn slice(&self, row: usize, columns: Range<usize>) -> &'a [u8] {
        let size = self.dtype.bytes();
        let start = row * self.columns;
        &self.bytes[(start + columns.start) * size..(start + columns.end) * size]
    }

    /// |W| of part of a row, widened exactly.
    ///
    /// # Panics
    /// When the range leaves the row or `out` has another length: both are the caller's own.
    pub fn magnitudes(&self, row: usize, columns: Range<usize>, out: &mut [f64]) {
        assert_eq!(out.len(), columns.len());
        let bytes = self.slice(row, columns);
        per_dtype!(self.dtype, SIZE, read => {
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(SIZE)) {
                *out = f64::from(read(bytes).abs());
            }
        });
    }

    /// Writes `f(|W|, factor)` for part of a row; the loop is compiled once per dtype, so that it vectorises.
    pub(crate) fn for_each_magnitude(
        &self,
        row: usize,
        columns: Range<usize>,
        factors: &[f64],
        out: &mut [u64],
        mut f: impl FnMut(f64, f64) -> u64,
    ) {
        assert!(out.len() == columns.len() && factors.len() == columns.len());
        let bytes = self.slice(row, columns);
        per_dtype!(self.dtype, SIZE, read => {
            for ((out, bytes), &factor) in out.iter_mut().zip(bytes.chunks_exact(SIZE)).zip(factors) {
                *out = f(f64::from(read(bytes).abs()), factor);
            }
        });
    }

    /// Writes `f(|W|, factor)` for part of a row, in f32; the loop is compiled once per dtype, so that it vectorises.
    #[inline(always)]
    pub(crate) fn for_each_magnitude_f32(
        &self,
        row: usize,
        columns: Range<usize>,
        factors: &[f32],
        out: &mut [i16],
        f: impl Fn(f32, f32) -> i16,
    ) {
        /// An f16 number read as if its exponent were that of an f32 is this much too small.
        const F16_SCALE: f32 = (1u128 << 112) as f32;
        assert!(out.len() == columns.len() && factors.len() == columns.len());
        let bytes = self.slice(row, columns);
        match self.dtype {
            DType::BF16 => {
                for ((out, bytes), &factor) in out.iter_mut().zip(bytes.as_chunks::<2>().0).zip(factors) {
                    let magnitude = u32::from(u16::from_le_bytes(*bytes) & 0x7fff);
                    *out = f(f32::from_bits(magnitude << 16), factor);
                }
            }
            DType::F16 => {
                for ((out, bytes), &factor) in out.iter_mut().zip(bytes.as_chunks::<2>().0).zip(factors) {
                    let magnitude = u32::from(u16::from_le_bytes(*bytes) & 0x7fff);
                    *out = f(f32::from_bits(magnitude << 13) * F16_SCALE, factor);
                }
            }
            DType::F32 => {
                for ((out, bytes), &factor) in out.iter_mut().zip(bytes.as_chunks::<4>().0).zip(factors) {
                    *out = f(f32::from_le_bytes(*bytes).abs(), factor);
                }
            }
        }
    }

    /// The highest 15 of [`WeightsView::magnitude_bits`] of part of a row.
    ///
    /// # Panics
    /// When the range leaves the row or `out` has another length: both are the caller's own.
    pub(crate) fn coarse_magnitudes(&self, row: usize, columns: Range<usize>, out: &mut [i16]) {
        assert_eq!(out.len(), columns.len());
        let bytes = self.slice(row, columns);
        match self.dtype {
            DType::BF16 | DType::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = i16::from_le_bytes(*bytes) & i16::MAX;
                }
            }
            DType::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = i16::from_le_bytes([bytes[2], bytes[3]]) & i16::MAX;
                }
            }
        }
    }

    /// |W| of one weight as bits that order as the magnitudes do (stored bits without the sign).
    #[inline]
    pub fn magnitude_bits(&self, row: usize, column: usize) -> u32 {
        self.magnitude_bits_at(row * self.columns + column)
    }

    /// [`WeightsView::magnitude_bits`], by flat index.
    #[inline]
    pub(crate) fn magnitude_bits_at(&self, index: usize) -> u32 {
        let at = index * self.dtype.bytes();
        match self.dtype {
            DType::BF16 | DType::F16 => u32::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]) & 0x7fff),
            DType::F32 => {
                let bytes = [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]];
                u32::from_le_bytes(bytes) & 0x7fff_ffff
            }
        }
    }

    /// [`WeightsView::magnitude_bits`] of part of a row.
    ///
    /// # Panics
    /// When the range leaves the row or `out` has another length: both are the caller's own.
    pub fn magnitude_bits_of(&self, row: usize, columns: Range<usize>, out: &mut [u64]) {
        assert_eq!(out.len(), columns.len());
        let bytes = self.slice(row, columns);
        match self.dtype {
            DType::BF16 | DType::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = u64::from(u16::from_le_bytes(*bytes) & 0x7fff);
                }
            }
            DType::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = u64::from(u32::from_le_bytes(*bytes) & 0x7fff_ffff);
                }
            }
        }
    }

    /// One weight.
    #[inline]
    pub fn get(&self, row: usize, column: usize) -> f32 {
        let at = (row * self.columns + column) * self.dtype.bytes();
        per_dtype!(self.dtype, SIZE, read => read(&self.bytes[at..at + SIZE]))
    }

    /// Refuses NaN and infinite weights, reading the matrix once on all cores.
    ///
    /// # Errors
    /// [`WeightsError::NotFinite`] with the position of the first.
    pub fn check_finite(&self) -> Result<(), WeightsError> {
        const CHUNK: usize = 1 << 16; // a multiple of every dtype's size
        let found = self.bytes.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, bytes)| {
            per_dtype!(self.dtype, SIZE, read => {
                // the whole chunk without a branch first: bad weights are the exception
                let finite = bytes.chunks_exact(SIZE).fold(true, |all, bytes| all & read(bytes).is_finite());
                if finite {
                    return None;
                }
                bytes.chunks_exact(SIZE).position(|bytes| !read(bytes).is_finite()).map(|at| chunk * (CHUNK / SIZE) + at)
            })
        });
        match found {
            None => Ok(()),
            Some(index) => {
                let (row, column) = (index / self.columns, index % self.columns);
                Err(WeightsError::NotFinite { row, column, value: self.get(row, column) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_dtype_at_any_alignment() {
        let values = [1.5f32, -2.0, 0.0, -0.25, 3.0, -0.0];
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let mut bytes = vec![0u8]; // one byte of offset: unaligned on purpose
            for value in values {
                match dtype {
                    DType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                    DType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                    DType::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            let view = WeightsView::new(dtype, 2, 3, &bytes[1..]).unwrap();
            let mut row = [0f64; 2];
            view.magnitudes(1, 1..3, &mut row);
            assert_eq!(row, [3.0, 0.0]);
            assert_eq!(view.get(0, 1), -2.0);
            assert_eq!(view.magnitude_bits(1, 2), view.magnitude_bits(0, 2), "-0 and 0 are equal");
            assert!(view.magnitude_bits(0, 0) < view.magnitude_bits(0, 1));
            assert_eq!(view.check_finite(), Ok(()));
            assert!(WeightsView::new(dtype, 2, 3, &bytes).is_err());
        }
    }

    #[test]
    fn finds_the_first_weight_that_is_not_finite() {
        let (rows, columns) = (if cfg!(miri) { 652 } else { 700 }, 130);
        let mut bytes: Vec<u8> = (0..rows * columns).flat_map(|_| 1f32.to_le_bytes()).collect();
        for (row, column, value) in [(651, 7, f32::INFINITY), (650, 129, f32::NAN)] {
            let at = (row * columns + column) * 4;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let error = WeightsView::new(DType::F32, rows, columns, &bytes).unwrap().check_finite().unwrap_err();
        assert!(error.to_string().contains("row 650, column 129 is NaN"), "{error}");
    }
}
