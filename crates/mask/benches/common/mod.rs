//! Inputs that look like a model's, and the floor that each figure is to be read against.

#![allow(dead_code, missing_docs)]

use fedprune_mask::{DType, MatrixMask, NormVector, WeightsView};
use half::bf16;
use rayon::prelude::*;

/// A generator that is the same everywhere.
pub struct Noise(pub u64);

impl Noise {
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Near enough to a normal deviate: trained weights are.
    pub fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.unit()).sum::<f64>() - 3.0
    }
}

/// bf16 weights of a matrix.
pub struct Stored {
    pub rows: usize,
    pub columns: usize,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn new(rows: usize, columns: usize) -> Self {
        let chunk = |row: usize| {
            let mut noise = Noise(row as u64 * 977 + 1);
            (0..columns).flat_map(|_| bf16::from_f64(noise.normal() * 0.02).to_le_bytes()).collect::<Vec<u8>>()
        };
        Self { rows, columns, bytes: (0..rows).into_par_iter().flat_map_iter(chunk).collect() }
    }

    pub fn view(&self) -> WeightsView<'_> {
        WeightsView::new(DType::BF16, self.rows, self.columns, &self.bytes).expect("the shape fits")
    }
}

/// Norms of one tap: log-normal, with the few outlier channels that models have; `silo` moves them by a few
/// per cent, so that silos agree as they do on different texts.
pub fn norms(columns: usize, tap: u64, silo: u64) -> NormVector {
    let mut common = Noise(tap * 31 + 7);
    let mut own = Noise(tap * 1009 + silo * 7919 + 3);
    let sums: Vec<f64> = (0..columns)
        .map(|channel| {
            let outlier = if channel % 500 == 17 { 6.0 } else { 0.0 };
            (0.8 * common.normal() + outlier + 0.1 * own.normal()).exp()
        })
        .collect();
    NormVector::from_sums(&sums, 1).expect("finite")
}

/// The floor of everything here: reading the same bytes once, on all cores.
pub fn read_all(bytes: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| {
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().fold(0u64, |sum, word| sum ^ u64::from_le_bytes(*word))
    };
    bytes.par_chunks(1 << 18).map(sum).reduce(|| 0, |a, b| a ^ b)
}

/// [`read_all`] of a mask's words.
pub fn read_mask(mask: &MatrixMask) -> u64 {
    mask.words()
        .par_chunks(1 << 15)
        .map(|words| words.iter().fold(0, |sum, word| sum ^ word))
        .reduce(|| 0, |a, b| a ^ b)
}
