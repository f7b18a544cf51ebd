//! Norms to thresholds without a mask.
//!
//! A Wanda mask of a layer is known once the score T at which its budget runs out is. A sample of the
//! weights brackets T; one read of W makes the [`Band`] of the levels that the bracket leaves open, for many
//! silos at once; and in that histogram T is found exactly by halving and interpolating, a pass over the
//! columns each time. What ties with T goes by |W|, then flat index, as everywhere.
//!
//! Scores are the exact products that [`crate::score`] compares. The sample decides only what is read: a bracket that
//! misses T is noticed, since weights are counted.

use half::f16;

use super::band::{Band, Range, places_of};
use super::{ColumnThresholds, Gaps, Split, top_level};
use crate::norms::NormVector;
use crate::score::Pruner;
use crate::select::{DeriveError, derive_mask};
use crate::sparsity::{Group, Sparsity};
use crate::vector::vectorized;
use crate::weights::{DType, WeightsView};

/// Weights looked at to bracket T; of smaller matrices all.
const SAMPLE: usize = 1 << 14;
/// Standard deviations of a sampled rank on either side.
const DEVIATIONS: f64 = 6.0;
/// Weights that may lie between the ends of the bracket when the rest is sorted.
const SORTED_WEIGHTS: u64 = 2048;
/// Passes over the columns; interpolation needs four or five.
const MOST_STEPS: u32 = 64;

/// Weights from all over a matrix: |W| and column.
pub(crate) struct Sample {
    weights: Vec<(f64, u32)>,
    whole: bool,
}

impl Sample {
    pub(crate) fn of(weights: WeightsView<'_>) -> Self {
        let (rows, columns) = (weights.rows(), weights.columns());
        let pool = rows * columns;
        let magnitude = |row: usize, column: usize| (f64::from(weights.get(row, column).abs()), column as u32);
        if pool <= SAMPLE {
            let all = (0..pool).map(|index| magnitude(index / columns, index % columns)).collect();
            return Self { weights: all, whole: true };
        }
        let place = |at: usize| {
            // the golden ratio spreads columns evenly, whatever their period
            let spread = u128::from((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            magnitude(at * rows / SAMPLE, ((spread * columns as u128) >> 64) as usize)
        };
        Self { weights: (0..SAMPLE).map(place).collect(), whole: false }
    }
}

/// The scores of one silo, and between which of them its budget runs out.
pub(crate) struct Scores {
    norms: Vec<f64>,
    /// 1 / norm of each column.
    inverses: Vec<f64>,
    dtype: DType,
    /// T is at least this,
    low: f64,
    /// and below this.
    high: f64,
}

/// Thresholds but for the place at which a split ends: after its first `wanted` weights by flat index.
pub(crate) struct Unplaced {
    pub(crate) levels: Vec<u32>,
    pub(crate) split: Option<UnplacedSplit>,
}

/// See [`Unplaced`].
pub(crate) struct UnplacedSplit {
    pub(crate) magnitude: u32,
    pub(crate) columns: Vec<u32>,
    pub(crate) wanted: u64,
}

impl Scores {
    /// `budget` of `pool` weights are pruned.
    pub(crate) fn new(norms: Vec<f64>, dtype: DType, sample: &Sample, budget: u64, pool: u64) -> Self {
        let mut scores: Vec<f64> =
            sample.weights.iter().map(|(magnitude, column)| magnitude * norms[*column as usize]).collect();
        let fraction = budget as f64 / pool as f64;
        let rank = fraction * scores.len() as f64;
        // bounds only ever cost time, so float rounding cannot change a mask
        let spread = (scores.len() as f64 * fraction * (1.0 - fraction)).sqrt();
        let margin = if sample.whole { 2.0 } else { DEVIATIONS * spread + 1.0 };
        let mut nth = |rank: f64, before: f64, after: f64| {
            if rank < 0.0 {
                before
            } else if rank >= scores.len() as f64 {
                after
            } else {
                *scores.select_nth_unstable_by(rank as usize, f64::total_cmp).1
            }
        };
        let low = nth(rank - margin, 0.0, f64::INFINITY);
        let high = nth(rank + margin, 0.0, f64::INFINITY).next_up();
        let inverses = norms.iter().map(|norm| 1.0 / norm).collect();
        Self { norms, inverses, dtype, low, high }
    }

    /// The lightest level of each column whose score is `score` or more; the top where no finite weight's is.
    ///
    /// What is asked most often, so that for bf16 it is without branches: a quotient that is wrong in its last bits, rounded
    /// to 24 and cut to 8, is the level wanted or the one below it, and the exact product tells which.
    fn first_levels(&self, score: f64) -> Vec<u32> {
        if self.dtype != DType::BF16 || score <= 0.0 {
            return (0..self.norms.len()).map(|column| self.first_level(column, score)).collect();
        }
        let mut levels = vec![0u32; self.norms.len()];
        vectorized(|| {
            for ((level, norm), inverse) in levels.iter_mut().zip(&self.norms).zip(&self.inverses) {
                let guess = ((score * inverse) as f32).to_bits() >> 16;
                let value = f64::from(f32::from_bits(guess << 16));
                let first = guess + u32::from(value * norm < score);
                *level = if first >= 0x7f80 { 1 << 15 } else { first };
            }
        });
        levels
    }

    /// Takes in the levels that the bracket leaves open.
    pub(crate) fn take_in(&self, range: &mut Range) {
        let (low, high) = (self.first_levels(self.low), self.first_levels(self.high));
        for (column, (low, high)) in low.into_iter().zip(high).enumerate() {
            range.take_in(column, low, high);
        }
    }

    #[inline]
    fn value(&self, level: u32) -> f64 {
        match self.dtype {
            DType::BF16 => f64::from(f32::from_bits(level << 16)),
            DType::F16 => f16::from_bits(level as u16).to_f64(),
            DType::F32 => f64::from(f32::from_bits(level)),
        }
    }

    /// The lightest level whose score is `score` or more; the top where no finite weight's is.
    #[inline]
    fn first_level(&self, column: usize, score: f64) -> u32 {
        let norm = self.norms[column];
        let infinite = match self.dtype {
            DType::BF16 => 0x7f80,
            DType::F16 => 0x7c00,
            DType::F32 => 0x7f80_0000,
        };
        if score <= 0.0 {
            return 0;
        }
        if norm == 0.0 || score == f64::INFINITY {
            return top_level(self.dtype);
        }
        let quotient = score / norm;
        let guess = match self.dtype {
            DType::BF16 => (quotient as f32).to_bits() >> 16,
            DType::F16 => u32::from(f16::from_f64(quotient).to_bits()),
            DType::F32 => (quotient as f32).to_bits(),
        };
        let mut level = guess.min(infinite);
        while level < infinite && self.value(level) * norm < score {
            level += 1;
        }
        while level > 0 && self.value(level - 1) * norm >= score {
            level -= 1;
        }
        if level == infinite { top_level(self.dtype) } else { level }
    }

    /// Weights with a lower score, which must be in the bracket.
    fn rank(&self, band: &Band, score: f64) -> u64 {
        let levels = self.first_levels(score);
        let before = levels.into_iter().enumerate().map(|(column, level)| u64::from(band.before(column, level)));
        band.below() + before.sum::<u64>()
    }

    /// The thresholds at which `budget` ≥ 1 weights are pruned; none where the bracket misled.
    pub(crate) fn thresholds(&self, band: &Band, budget: u64) -> Option<Unplaced> {
        let (mut low, mut high) = (self.low, self.high);
        let (mut before, mut after) = (self.rank(band, low), self.rank(band, high));
        if before >= budget || after < budget {
            return None;
        }
        let mut steps = 0;
        while after - before > SORTED_WEIGHTS && steps < MOST_STEPS {
            // aims beside the budget on alternate sides, so that both ends close in
            let aim =
                if steps % 2 == 0 { budget.saturating_sub(SORTED_WEIGHTS / 4) } else { budget + SORTED_WEIGHTS / 4 };
            let part = (aim.clamp(before, after) - before) as f64 / (after - before) as f64;
            let middle = if steps >= 16 || high == f64::INFINITY || low == 0.0 {
                // by halves of the representation, which cannot crawl
                f64::from_bits((low.to_bits() + high.to_bits()) / 2)
            } else {
                low + (high - low) * part.clamp(0.001, 0.999)
            };
            steps += 1;
            if middle <= low || middle >= high {
                break;
            }
            let rank = self.rank(band, middle);
            if rank < budget {
                (low, before) = (middle, rank);
            } else {
                (high, after) = (middle, rank);
            }
        }
        // (score, level, weights) of what is left
        let mut left: Vec<(f64, u32, u32)> = Vec::new();
        let ends = self.first_levels(low).into_iter().zip(self.first_levels(high));
        for ((column, &norm), (from, to)) in self.norms.iter().enumerate().zip(ends) {
            let steps = band.step(column, from)..band.step(column, to) + 1;
            for (level, sums) in
                (band.low(column) + steps.start as u32..).zip(band.sums(column)[steps].array_windows::<2>())
            {
                if sums[1] > sums[0] {
                    left.push((self.value(level) * norm, level, sums[1] - sums[0]));
                }
            }
        }
        left.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut wanted = budget - before;
        let mut last = None;
        for same in left.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let weights: u64 = same.iter().map(|(_, _, weights)| u64::from(*weights)).sum();
            last = Some((same[0].0, same[0].1, weights));
            if wanted <= weights {
                break;
            }
            wanted -= weights;
        }
        let (score, magnitude, weights) = last?;
        Some(self.at(score, magnitude, (wanted < weights).then_some(wanted)))
    }

    /// All below `score`, and of those with that score what is lighter than `magnitude`, and of what has that
    /// magnitude the first `wanted`, or all.
    fn at(&self, score: f64, magnitude: u32, wanted: Option<u64>) -> Unplaced {
        let mut split_columns = Vec::new();
        let level = |((column, norm), first): ((usize, &f64), u32)| {
            // in a column of zeros every level ties with a score of zero
            let tying = if *norm == 0.0 && score == 0.0 { magnitude } else { first };
            if tying == top_level(self.dtype) || self.value(tying) * norm != score || tying > magnitude {
                return tying;
            }
            if tying < magnitude {
                return tying + 1;
            }
            if wanted.is_some() {
                split_columns.push(column as u32);
            }
            magnitude + u32::from(wanted.is_none())
        };
        let levels = self.norms.iter().enumerate().zip(self.first_levels(score)).map(level).collect();
        let split = wanted.map(|wanted| UnplacedSplit { magnitude, columns: split_columns, wanted });
        Unplaced { levels, split }
    }
}

/// What a pruner multiplies |W| with, if its scores are such products.
pub(crate) fn factors(pruner: Pruner, norms: &NormVector, columns: usize) -> Option<Vec<f64>> {
    match pruner {
        Pruner::WANDA if norms.len() == columns => Some(norms.to_f64()),
        Pruner::MAGNITUDE => Some(vec![1.0; columns]),
        _ => None,
    }
}

/// The thresholds of a `layer` mask, straight from norms; none where that is not possible or not cheaper.
fn derive_thresholds(norms: Vec<f64>, sparsity: Sparsity, weights: WeightsView<'_>) -> Option<ColumnThresholds> {
    let pool = weights.rows() as u64 * weights.columns() as u64;
    let budget = sparsity.budget(pool);
    if budget == 0 {
        return Some(ColumnThresholds { levels: vec![0; weights.columns()], split: None });
    }
    if weights.dtype() == DType::F32 {
        return None;
    }
    let scores = Scores::new(norms, weights.dtype(), &Sample::of(weights), budget, pool);
    let mut range = Range::new(weights.columns());
    scores.take_in(&mut range);
    let band = Band::count(weights, range)?;
    let Unplaced { levels, split } = scores.thresholds(&band, budget)?;
    let Some(UnplacedSplit { magnitude, columns, wanted }) = split else {
        return Some(ColumnThresholds { levels, split: None });
    };
    let cells: Vec<(u32, u32)> = columns.iter().map(|column| (*column, magnitude)).collect();
    let places = places_of(weights, &cells, pool as usize / 8 + (1 << 16))?;
    let last = places.get(wanted as usize - 1)?.0;
    Some(ColumnThresholds { levels, split: Some(Split { magnitude, last, columns }) })
}

/// The gaps of the `layer` mask that a pruner gives, if that is a column prefix.
///
/// # Errors
/// [`DeriveError`] when norms and weights do not fit each other.
pub(crate) fn derive_gaps(
    pruner: Pruner,
    sparsity: Sparsity,
    weights: WeightsView<'_>,
    norms: &NormVector,
) -> Result<Option<Gaps>, DeriveError> {
    if let Some(factors) = factors(pruner, norms, weights.columns())
        && let Some(thresholds) = derive_thresholds(factors, sparsity, weights)
    {
        return Ok(Some(Gaps::of_thresholds(&thresholds, weights)));
    }
    Ok(Gaps::of_mask(&derive_mask(pruner, Group::Layer, sparsity, weights, norms)?, weights))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::select_by_sorting;
    use crate::thresholds::tests::{DTYPES, Noise, norms, stored};
    use proptest::prelude::*;

    fn check(dtype: DType, rows: usize, columns: usize, levels: u64, values: u64, numerator: u64, seed: u64) -> bool {
        let mut noise = Noise(seed);
        let bytes = stored(dtype, rows * columns, levels, &mut noise);
        let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
        let norms = norms(columns, values, &mut noise);
        let sparsity = Sparsity::new(numerator, 100).unwrap();
        let mut direct = true;
        for pruner in [Pruner::WANDA, Pruner::MAGNITUDE] {
            let keys = pruner.keys(weights, &norms).unwrap();
            let mask = select_by_sorting(weights, &*keys, Group::Layer, sparsity);
            let factors = factors(pruner, &norms, columns).unwrap();
            match derive_thresholds(factors, sparsity, weights) {
                Some(thresholds) => assert_eq!(thresholds.expand(weights), mask, "{pruner}"),
                None => direct = false,
            }
            assert_eq!(derive_gaps(pruner, sparsity, weights, &norms).unwrap(), Gaps::of_mask(&mask, weights));
        }
        direct
    }

    proptest! {
        /// Any norm and weight of 16 bits, subnormal, infinite or zero, and scores at, just below and just above their product.
        #[test]
        fn levels_without_branches_are_those_with(
            norms in proptest::collection::vec(0u16..0x7f80, 1..40), level in 0u32..0x7f80, which in any::<prop::sample::Index>(),
            nudge in -2i64..3, far in any::<u64>(),
        ) {
            let norms: Vec<f64> = norms.iter().map(|bits| half::bf16::from_bits(*bits).to_f64()).collect();
            let product = f64::from(f32::from_bits(level << 16)) * norms[which.index(norms.len())];
            let inverses = norms.iter().map(|norm| 1.0 / norm).collect();
            let scores = Scores { norms, inverses, dtype: DType::BF16, low: 0.0, high: 0.0 };
            let near = f64::from_bits(product.to_bits().saturating_add_signed(nudge));
            for score in [near, f64::from_bits(far >> 1), f64::INFINITY, 0.0].into_iter().filter(|score| !score.is_nan()) {
                let one_by_one: Vec<u32> = (0..scores.norms.len()).map(|column| scores.first_level(column, score)).collect();
                prop_assert_eq!(scores.first_levels(score), one_by_one);
            }
        }

        #[test]
        fn equals_the_mask_by_sorting(
            rows in 1usize..60, columns in 1usize..100, levels in prop_oneof![1u64..20, 1u64..100_000],
            values in 1u64..5, numerator in 0u64..100, dtype in 0usize..3, seed in any::<u64>(),
        ) {
            check(DTYPES[dtype], rows, columns, levels, values, numerator, seed);
        }
    }

    /// Larger than the sample, with many ties and with few: the direct way is taken, and right.
    #[test]
    fn large_matrices_take_the_direct_way() {
        for (levels, values, numerator) in [(100_000, 5, 50), (100_000, 1, 50), (3000, 3, 70), (100_000, 4, 20)] {
            for dtype in [DType::BF16, DType::F16] {
                assert!(check(dtype, 300, 280, levels, values, numerator, 9), "{levels} {values} {numerator} {dtype}");
            }
        }
        // half of everything is zero, which the band does not resolve: still right
        check(DType::BF16, 300, 280, 2, 3, 60, 4);
    }
}
