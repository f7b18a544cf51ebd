//! Thresholds against masks made the obvious way.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::NormVector;
use crate::score::Pruner;
use crate::select::select_by_sorting;
use crate::sparsity::{Group, Sparsity};

pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(crate) const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Weights of `levels` different magnitudes, about, of both signs.
pub(crate) fn stored(dtype: DType, weights: usize, levels: u64, noise: &mut Noise) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..weights {
        let value = noise.below(levels) as f32 / levels as f32 * if noise.below(2) == 0 { 1.0 } else { -1.0 };
        match dtype {
            DType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            DType::F32 => bytes.extend(value.to_le_bytes()),
        }
    }
    bytes
}

/// Norms of few values, a tenth of them zero: ties within and between columns.
pub(crate) fn norms(columns: usize, values: u64, noise: &mut Noise) -> NormVector {
    let sums: Vec<f64> = (0..columns)
        .map(|_| {
            if noise.below(10) == 0 {
                0.0
            } else {
                (4.0f64).powi(noise.below(values) as i32) * (1.0 + noise.below(values) as f64)
            }
        })
        .collect();
    NormVector::from_sums(&sums, 1).unwrap()
}

proptest! {
    #[test]
    fn layer_masks_are_column_prefixes_and_come_back(
        rows in 1usize..40, columns in 1usize..150, levels in 1u64..300, values in 1u64..5,
        numerator in 0u64..100, dtype in 0usize..3, magnitude in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut noise = Noise(seed);
        let bytes = stored(DTYPES[dtype], rows * columns, levels, &mut noise);
        let weights = WeightsView::new(DTYPES[dtype], rows, columns, &bytes).unwrap();
        let norms = norms(columns, values, &mut noise);
        let pruner = if magnitude { Pruner::MAGNITUDE } else { Pruner::WANDA };
        let sparsity = Sparsity::new(numerator, 100).unwrap();
        let keys = pruner.keys(weights, &norms).unwrap();
        let mask = select_by_sorting(weights, &*keys, Group::Layer, sparsity);
        let gaps = Gaps::of_mask(&mask, weights).unwrap();
        prop_assert!(gaps.low.iter().zip(&gaps.high).all(|(low, high)| low <= high));
        let highest = gaps.first_kept();
        let lowest = ColumnThresholds { levels: gaps.low.clone(), split: gaps.split.clone() };
        for thresholds in [highest, lowest] {
            prop_assert_eq!(&thresholds.expand(weights), &mask);
            prop_assert_eq!(&thresholds.expand_one_by_one(weights), &mask);
            prop_assert_eq!(&Gaps::of_thresholds(&thresholds, weights), &gaps);
        }
    }

    /// One bit turned round: either no column prefix any more, or thresholds that say the turned mask.
    #[test]
    fn other_masks_are_told_apart(
        rows in 1usize..12, columns in 1usize..12, levels in 1u64..10, numerator in 0u64..100,
        at in any::<prop::sample::Index>(), seed in any::<u64>(),
    ) {
        let mut noise = Noise(seed);
        let bytes = stored(DType::BF16, rows * columns, levels, &mut noise);
        let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
        let norms = norms(columns, 3, &mut noise);
        let keys = Pruner::WANDA.keys(weights, &norms).unwrap();
        let mut mask = select_by_sorting(weights, &*keys, Group::Layer, Sparsity::new(numerator, 100).unwrap());
        let at = at.index(rows * columns);
        mask.words_mut()[at / 64] ^= 1 << (at % 64);
        match Gaps::of_mask(&mask, weights) {
            Some(gaps) => prop_assert_eq!(gaps.first_kept().expand(weights), mask),
            None => prop_assert!(!is_prefix_with_one_split(&mask, weights)),
        }
    }
}

/// By the definition, each column and each pair of its weights.
fn is_prefix_with_one_split(mask: &MatrixMask, weights: WeightsView<'_>) -> bool {
    let (rows, columns) = (weights.rows(), weights.columns());
    let mut splits: Vec<(u32, Vec<(u64, bool)>)> = Vec::new();
    for column in 0..columns {
        for (a, b) in (0..rows).flat_map(|a| (0..rows).map(move |b| (a, b))) {
            let (heavy, light) = (weights.magnitude_bits(a, column), weights.magnitude_bits(b, column));
            if mask.get(a, column) && !mask.get(b, column) && heavy >= light {
                if heavy > light {
                    return false;
                }
                let of = |row: usize| ((row * columns + column) as u64, mask.get(row, column));
                splits.push((heavy, vec![of(a), of(b)]));
            }
        }
    }
    let magnitudes: std::collections::BTreeSet<u32> = splits.iter().map(|(magnitude, _)| *magnitude).collect();
    let all: Vec<(u64, bool)> = splits.into_iter().flat_map(|(_, pair)| pair).collect();
    let last_pruned = all.iter().filter(|(_, pruned)| *pruned).map(|(index, _)| *index).max();
    let first_kept = all.iter().filter(|(_, pruned)| !pruned).map(|(index, _)| *index).min();
    magnitudes.len() <= 1 && last_pruned.zip(first_kept).is_none_or(|(last, first)| last < first)
}

#[test]
fn a_row_mask_is_no_column_prefix() {
    let mut noise = Noise(3);
    let size = if cfg!(miri) { 20 } else { 64 };
    let bytes = stored(DType::BF16, size * size, 10_000, &mut noise);
    let weights = WeightsView::new(DType::BF16, size, size, &bytes).unwrap();
    let norms = norms(size, 4, &mut noise);
    let half = Sparsity::new(1, 2).unwrap();
    let row = select_by_sorting(weights, &*Pruner::WANDA.keys(weights, &norms).unwrap(), Group::Row, half);
    assert_eq!(Gaps::of_mask(&row, weights), None);
    let ria = select_by_sorting(weights, &*Pruner::RIA.keys(weights, &norms).unwrap(), Group::Layer, half);
    assert_eq!(Gaps::of_mask(&ria, weights), None);
}
