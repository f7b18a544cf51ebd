//! Norms to thresholds without a mask.
//!
//! A Wanda mask of a layer is known once the score T at which its budget runs out is. A sample of the
//! weights brackets T; one read of W makes the [`Band`] of the levels that the bracket leaves open, for many
//! silos at once; and in that histogram [`search`] finds T exactly. What ties with T goes by |W|, then flat
//! index, as everywhere.
//!
//! Scores are the exact products that [`crate::score`] compares. The sample decides only what is read: a bracket that
//! misses T is noticed, since weights are counted.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::band::{Band, Levels, STRIP_COLUMNS, places_of};
use super::search::search;
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
/// Scores that f32 holds and near which products of what is stored as bf16 are exact in it. Norms reach up to
/// 2^127; a product that overflows is still the greater one.
const PLAIN_SCORES: Range<f32> = 7.888_609e-31..f32::INFINITY; // from 2^-100

/// Weights from all over a matrix: |W| and column.
pub(crate) struct Sample {
    weights: Vec<(f32, u32)>,
    whole: bool,
}

impl Sample {
    pub(crate) fn of(weights: WeightsView<'_>) -> Self {
        let (rows, columns) = (weights.rows(), weights.columns());
        let pool = rows * columns;
        let magnitude = |row: usize, column: usize| (weights.get(row, column).abs(), column as u32);
        if pool <= SAMPLE {
            let all = (0..pool).map(|index| magnitude(index / columns, index % columns)).collect();
            return Self { weights: all, whole: true };
        }
        let place = |at: usize| {
            // the golden ratio spreads columns evenly, whatever their period
            let spread = u128::from((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            magnitude(at * rows / SAMPLE, ((spread * columns as u128) >> 64) as usize)
        };
        // each is a page of its own, to be waited for
        Self { weights: (0..SAMPLE).into_par_iter().with_min_len(1 << 10).map(place).collect(), whole: false }
    }

    /// Two scores between which the one of rank `budget` of `pool` lies, but for bad luck.
    ///
    /// Bounds only ever cost time, so float rounding cannot change a mask.
    fn bracket(&self, norms: &[f32], budget: u64, pool: u64) -> (f32, f32) {
        // as bits, which order as numbers without a sign do
        let scores: Vec<u32> =
            self.weights.iter().map(|(magnitude, column)| (magnitude * norms[*column as usize]).to_bits()).collect();
        let fraction = budget as f64 / pool as f64;
        let rank = fraction * scores.len() as f64;
        let spread = (scores.len() as f64 * fraction * (1.0 - fraction)).sqrt();
        let margin = if self.whole { 2.0 } else { DEVIATIONS * spread + 1.0 };
        let (infinity, resolved) = (f32::INFINITY.to_bits(), 1 << 12); // a sixteenth of a level of bf16
        // (at most so many scores are below, more scores than that are)
        let around = |rank: f64, mut below: u32| {
            let mut above = infinity;
            while above - below > resolved {
                let middle = below + (above - below) / 2;
                if vectorized(
                    #[inline(always)]
                    || count_below(&scores, middle),
                ) <= rank as usize
                {
                    below = middle;
                } else {
                    above = middle;
                }
            }
            (f32::from_bits(below), f32::from_bits(above))
        };
        let low = if rank < margin { 0.0 } else { around(rank - margin, 0).0 };
        let past_all = rank + margin >= scores.len() as f64;
        let high = if past_all { f32::INFINITY } else { around(rank + margin, low.to_bits()).1 };
        (low, high)
    }
}

/// How many are less than `bound`.
#[inline(always)]
fn count_below(scores: &[u32], bound: u32) -> usize {
    scores.iter().map(|score| u32::from(*score < bound)).sum::<u32>() as usize
}

/// The scores of one silo, and between which of them its budget runs out.
pub(crate) struct Scores {
    norms: Vec<f32>,
    dtype: DType,
    /// T is at least this,
    pub(super) low: f32,
    /// and below this.
    pub(super) high: f32,
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
    pub(crate) fn new(norms: Vec<f32>, dtype: DType, sample: &Sample, budget: u64, pool: u64) -> Self {
        let (low, high) = sample.bracket(&norms, budget, pool);
        Self { norms, dtype, low, high }
    }

    /// The lightest level whose score is `score` or more; the top where no finite weight's is. Of as many columns as there
    /// are `levels`, from `first` on.
    ///
    /// What is asked most often, so that for bf16 it is without branches: the quotient, rounded to 24 bits and cut to 8, is
    /// the level wanted or the one below it, since rounding keeps the order of quotients and levels; and the product with
    /// a norm, exact in 16 bits, tells which.
    #[inline(always)]
    pub(super) fn first_levels(&self, score: f64, first: usize, levels: &mut [u32]) {
        let rounded = score as f32;
        let plain = f64::from(rounded) == score && PLAIN_SCORES.contains(&rounded);
        if self.dtype != DType::BF16 || !plain {
            levels.iter_mut().enumerate().for_each(|(at, level)| *level = self.first_level(first + at, score));
            return;
        }
        for (level, norm) in levels.iter_mut().zip(&self.norms[first..]) {
            let guess = (rounded / norm).to_bits() >> 16;
            let found = guess + u32::from(f32::from_bits(guess << 16) * norm < rounded);
            *level = if found >= 0x7f80 { 1 << 15 } else { found };
        }
    }

    /// Takes in the levels that the bracket leaves open, of columns from `first` on.
    #[inline(always)]
    pub(crate) fn take_in(&self, first: usize, low: &mut [u32], high: &mut [u32]) {
        let mut levels = [0; STRIP_COLUMNS];
        for (at, (low, high)) in
            (first..).step_by(STRIP_COLUMNS).zip(low.chunks_mut(STRIP_COLUMNS).zip(high.chunks_mut(STRIP_COLUMNS)))
        {
            let levels = &mut levels[..low.len()];
            self.first_levels(f64::from(self.low), at, levels);
            low.iter_mut().zip(&*levels).for_each(|(low, level)| *low = (*low).min(*level));
            self.first_levels(f64::from(self.high), at, levels);
            high.iter_mut().zip(&*levels).for_each(|(high, level)| *high = (*high).max(*level));
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
        let norm = f64::from(self.norms[column]);
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

    /// What is pruned when of the scores from `low` up to before `high`, ascending, the first `wanted` are.
    pub(super) fn thresholds(&self, band: &Band, low: f32, high: f32, mut wanted: u64) -> Option<Unplaced> {
        // (score, level, weights) of what is left
        let mut left: Vec<(f64, u32, u32)> = Vec::new();
        let (mut from, mut to) = ([0; STRIP_COLUMNS], [0; STRIP_COLUMNS]);
        for (first, norms) in (0..).step_by(STRIP_COLUMNS).zip(self.norms.chunks(STRIP_COLUMNS)) {
            let (from, to) = (&mut from[..norms.len()], &mut to[..norms.len()]);
            vectorized(
                #[inline(always)]
                || {
                    self.first_levels(f64::from(low), first, from);
                    self.first_levels(f64::from(high), first, to);
                    band.steps(first, from);
                    band.steps(first, to);
                },
            );
            for ((column, norm), (from, to)) in (first..).zip(norms).zip(from.iter().zip(&*to)) {
                if from >= to {
                    continue;
                }
                let sums = &band.sums(column)[*from as usize..*to as usize + 1];
                for (level, sums) in (band.low(column) + from..).zip(sums.array_windows::<2>()) {
                    if sums[1] > sums[0] {
                        left.push((self.value(level) * f64::from(*norm), level, sums[1] - sums[0]));
                    }
                }
            }
        }
        left.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
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
        let mut levels = vec![0; self.norms.len()];
        vectorized(
            #[inline(always)]
            || self.first_levels(score, 0, &mut levels),
        );
        for ((column, norm), level) in (0..).zip(&self.norms).zip(&mut levels) {
            // in a column of zeros every level ties with a score of zero
            let tying = if *norm == 0.0 && score == 0.0 { magnitude } else { *level };
            *level = tying;
            if tying > magnitude || self.value(tying) * f64::from(*norm) != score || tying == top_level(self.dtype) {
                continue;
            }
            if tying < magnitude {
                *level = tying + 1;
            } else if wanted.is_some() {
                split_columns.push(column);
            } else {
                *level = magnitude + 1;
            }
        }
        let split = wanted.map(|wanted| UnplacedSplit { magnitude, columns: split_columns, wanted });
        Unplaced { levels, split }
    }
}

/// What a pruner multiplies |W| with, if its scores are such products.
pub(crate) fn factors(pruner: Pruner, norms: &NormVector, columns: usize) -> Option<Vec<f32>> {
    match pruner {
        Pruner::WANDA if norms.len() == columns => {
            Some(norms.bits().iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect())
        }
        Pruner::MAGNITUDE => Some(vec![1.0; columns]),
        _ => None,
    }
}

/// The thresholds of a `layer` mask, straight from norms; none where that is not possible or not cheaper.
fn derive_thresholds(norms: Vec<f32>, sparsity: Sparsity, weights: WeightsView<'_>) -> Option<ColumnThresholds> {
    let pool = weights.rows() as u64 * weights.columns() as u64;
    let budget = sparsity.budget(pool);
    if budget == 0 {
        return Some(ColumnThresholds { levels: vec![0; weights.columns()], split: None });
    }
    if weights.dtype() == DType::F32 {
        return None;
    }
    let scores = Scores::new(norms, weights.dtype(), &Sample::of(weights), budget, pool);
    let mut range = Levels::new(weights.columns());
    vectorized(
        #[inline(always)]
        || scores.take_in(0, &mut range.low, &mut range.high),
    );
    let band = Band::count(weights, range)?;
    let Unplaced { levels, split } = search(&[&scores], &band, budget)?.pop()?;
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
            nudge in -2i32..3, far in any::<u64>(),
        ) {
            let norms: Vec<f32> = norms.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect();
            let columns = norms.len();
            let product = f64::from(f32::from_bits(level << 16)) * f64::from(norms[which.index(columns)]);
            let scores = Scores { norms, dtype: DType::BF16, low: 0.0, high: 0.0 };
            let rounded = product as f32;
            let near = f32::from_bits(rounded.to_bits().saturating_add_signed(nudge));
            let finer = f64::from_bits(product.to_bits().saturating_add_signed(i64::from(nudge)));
            let far = [f64::from_bits(far >> 1), f64::from(f32::from_bits(far as u32 >> 1))];
            let asked = [product, f64::from(rounded), f64::from(near), finer, far[0], far[1], f64::INFINITY, 0.0];
            for score in asked.into_iter().filter(|score| !score.is_nan()) {
                let one_by_one: Vec<u32> = (0..columns).map(|column| scores.first_level(column, score)).collect();
                let mut at_once = vec![0; columns];
                vectorized(#[inline(always)] || scores.first_levels(score, 0, &mut at_once));
                prop_assert_eq!(&at_once, &one_by_one, "{}", score);
                let from = which.index(columns);
                scores.first_levels(score, from, &mut at_once[from..]);
                prop_assert_eq!(&at_once, &one_by_one, "{}", score);
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
    #[cfg_attr(miri, ignore = "too long there")]
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
