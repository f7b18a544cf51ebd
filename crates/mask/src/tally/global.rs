//! Counts to the global mask.
//!
//! Order inside a pool: count descending, then |W| ascending, then flat index ascending.
//! [`GlobalKeys`] brings that to [`select`], which serves every group. For a `layer` pool the planes of
//! [`Counts`] are already a radix sort waiting to happen: [`global_mask`] walks them from the highest, 64
//! weights a step, and only the weights that tie at the threshold are looked up at all.

use rayon::prelude::*;

use super::counts::{Counts, LANES, Lanes, TASK_BLOCKS};
use crate::matrix_mask::MatrixMask;
use crate::score::Keys;
use crate::select::{rows_per_task, select};
use crate::sparsity::{Group, Sparsity};
use crate::vector::vectorized;
use crate::weights::WeightsView;

/// Bits of |W| that one histogram of ties sorts by.
const MAGNITUDE_DIGIT_BITS: u32 = if cfg!(miri) { 6 } else { 16 };

/// Keys by votes: `total − count`, so that what most silos prune comes first, and below it the bits of |W|,
/// which break ties anyway and are cheaper to have in the key.
pub struct GlobalKeys<'a> {
    counts: &'a Counts,
    weights: WeightsView<'a>,
}

impl<'a> GlobalKeys<'a> {
    /// Over the counts and weights of one matrix.
    ///
    /// # Panics
    /// When they differ in shape.
    pub fn new(counts: &'a Counts, weights: WeightsView<'a>) -> Self {
        assert_eq!((weights.rows(), weights.columns()), (counts.rows(), counts.columns()), "counts of one matrix");
        Self { counts, weights }
    }

    /// At most 31.
    fn magnitude_bits(&self) -> u32 {
        self.weights.dtype().bytes() as u32 * 8 - 1
    }
}

impl Keys for GlobalKeys<'_> {
    fn fill(&self, row: usize, columns: std::ops::Range<usize>, keys: &mut [u64]) {
        let start = row * self.counts.columns();
        let (total, shift) = (self.counts.total(), self.magnitude_bits());
        self.weights.magnitude_bits_of(row, columns.clone(), keys);
        self.counts.for_each(start + columns.start..start + columns.end, |index, count| {
            keys[index - start - columns.start] |= u64::from(total - count) << shift;
        });
    }

    fn significant_bits(&self) -> u32 {
        self.counts.planes() as u32 + self.magnitude_bits()
    }
}

/// The mask that the votes come to, in pools of `group`.
///
/// `sparsity` is ignored for an n:m group, which fixes its own.
///
/// # Panics
/// When counts and weights differ in shape, or an n:m group does not divide the width: layout and group
/// are checked before.
pub fn global_mask(weights: WeightsView<'_>, counts: &Counts, group: Group, sparsity: Sparsity) -> MatrixMask {
    let keys = GlobalKeys::new(counts, weights);
    let empty = counts.planes() == 0 || counts.rows() == 0 || counts.columns() == 0;
    match group {
        Group::Layer if !empty => layer_mask(weights, counts, sparsity),
        Group::Row if !empty => row_masks(weights, counts, sparsity),
        _ => select(weights, &keys, group, sparsity),
    }
}

/// The count at which a pool's budget runs out.
#[derive(Clone, Copy, Debug)]
struct Threshold {
    /// More votes than this: pruned. Fewer: kept.
    count: u32,
    /// Weights with exactly this count.
    ties: u64,
    /// How many of them are pruned.
    wanted: u64,
}

/// Finds the threshold of a pool, one binary digit after another from the highest; `ones(prefix, plane)`
/// counts the weights that share the digits of `prefix` above `plane` and have a one there.
fn threshold_of(pool: u64, budget: u64, planes: usize, ones: impl Fn(u32, usize) -> u64) -> Threshold {
    let mut threshold = Threshold { count: 0, ties: pool, wanted: budget };
    for plane in (0..planes).rev() {
        let ones = ones(threshold.count, plane);
        if ones >= threshold.wanted {
            threshold.count |= 1 << plane;
            threshold.ties = ones;
        } else {
            threshold.wanted -= ones;
            threshold.ties -= ones;
        }
    }
    threshold
}

/// All ones where the digit of `count` at `plane` is zero: what turns "equal" into an AND.
#[inline(always)]
fn flip(count: u32, plane: usize) -> u64 {
    u64::from(count >> plane & 1).wrapping_sub(1)
}

/// Of 64 weights, those with more votes than `count`, and those with as many.
#[inline(always)]
fn more_and_equal(plane_words: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator, count: u32) -> (u64, u64) {
    let (mut more, mut equal) = (0, u64::MAX);
    for (plane, word) in plane_words.enumerate().rev() {
        let flip = flip(count, plane);
        more |= equal & word & flip;
        equal &= word ^ flip;
    }
    (more, equal)
}

/// One pool: the whole matrix.
fn layer_mask(weights: WeightsView<'_>, counts: &Counts, sparsity: Sparsity) -> MatrixMask {
    let mut mask = MatrixMask::kept(weights.rows(), weights.columns());
    let pool = weights.rows() * weights.columns();
    let budget = sparsity.budget(pool as u64);
    if budget == 0 {
        return mask;
    }
    // weights past the last have no votes, hence no ones anywhere
    let planes = counts.planes();
    let threshold = threshold_of(pool as u64, budget, planes, |prefix, plane| {
        let ones_of = |block: &[Lanes]| {
            let mut ones = block[plane];
            for (above, lanes) in block.iter().enumerate().skip(plane + 1) {
                let flip = flip(prefix, above);
                ones.iter_mut().zip(lanes).for_each(|(ones, word)| *ones &= word ^ flip);
            }
            ones.iter().map(|ones| u64::from(ones.count_ones())).sum::<u64>()
        };
        let ones_of_task = |blocks: &[Lanes]| {
            vectorized(
                #[inline(always)]
                || blocks.chunks_exact(planes).map(ones_of).sum::<u64>(),
            )
        };
        counts.tasks().map(ones_of_task).sum()
    });
    let all_ties = threshold.ties == threshold.wanted;
    let mut ties = vec![0u64; if all_ties { 0 } else { mask.words().len() }];
    let split = |block: &[Lanes], mask: &mut [u64], ties: &mut [u64]| {
        let (mut more, mut equal) = ([0; LANES], [u64::MAX; LANES]);
        for (plane, words) in block.iter().enumerate().rev() {
            let flip = flip(threshold.count, plane);
            for lane in 0..LANES {
                more[lane] |= equal[lane] & words[lane] & flip;
                equal[lane] &= words[lane] ^ flip;
            }
        }
        if all_ties {
            more.iter_mut().zip(equal).for_each(|(more, equal)| *more |= equal);
        }
        // the last block may have more words than the matrix
        mask.iter_mut().zip(more).for_each(|(mask, more)| *mask = more);
        ties.iter_mut().zip(equal).for_each(|(ties, equal)| *ties = equal);
    };
    let last_word = u64::MAX >> ((64 - pool % 64) % 64);
    if all_ties {
        let parts = counts.tasks().zip(mask.words_mut().par_chunks_mut(LANES * TASK_BLOCKS));
        parts.for_each(|(blocks, mask)| {
            vectorized(
                #[inline(always)]
                || {
                    let parts = blocks.chunks_exact(planes).zip(mask.chunks_mut(LANES));
                    parts.for_each(|(block, mask)| split(block, mask, &mut []));
                },
            );
        });
        mask.words_mut().last_mut().into_iter().for_each(|word| *word &= last_word);
        return mask;
    }
    let of_task = LANES * TASK_BLOCKS;
    let parts = counts.tasks().zip(mask.words_mut().par_chunks_mut(of_task)).zip(ties.par_chunks_mut(of_task));
    parts.for_each(|((blocks, mask), ties)| {
        vectorized(
            #[inline(always)]
            || {
                let parts = blocks.chunks_exact(planes).zip(mask.chunks_mut(LANES)).zip(ties.chunks_mut(LANES));
                parts.for_each(|((block, mask), ties)| split(block, mask, ties));
            },
        );
    });
    ties.last_mut().into_iter().for_each(|word| *word &= last_word);
    mark_lightest(weights, &ties, threshold.wanted, mask.words_mut());
    mask
}

/// Marks the first `wanted` of `ties` (bits of flat indices) in the order of |W|, then index.
fn mark_lightest(weights: WeightsView<'_>, ties: &[u64], mut wanted: u64, marked: &mut [u64]) {
    let magnitude = |index: usize| weights.magnitude_bits_at(index);
    let task_words = ties.len().div_ceil(8 * rayon::current_num_threads()).max(1 << 10);
    let histogram = |digit: &(dyn Fn(u32) -> Option<usize> + Sync)| {
        let zero = || vec![0u64; 1 << MAGNITUDE_DIGIT_BITS];
        let counts_of = |(task, words): (usize, &[u64])| {
            let mut counts = zero();
            for_each_one(words, task * task_words, |index| {
                if let Some(digit) = digit(magnitude(index)) {
                    counts[digit] += 1;
                }
            });
            counts
        };
        ties.par_chunks(task_words).enumerate().map(counts_of).reduce(zero, |mut a, b| {
            a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
            a
        })
    };
    // the magnitude of the last one marked: its high digit, then its low one if it has more bits
    let bits = weights.dtype().bytes() as u32 * 8 - 1;
    let (mut last, mut open_bits) = (0u32, bits);
    while open_bits > 0 {
        let shift = open_bits.saturating_sub(MAGNITUDE_DIGIT_BITS);
        let digit_mask = (1u32 << (open_bits - shift)) - 1;
        let counts = histogram(&|magnitude| {
            (u64::from(magnitude) >> open_bits == u64::from(last)).then_some((magnitude >> shift & digit_mask) as usize)
        });
        let mut digit = 0;
        while counts[digit] < wanted {
            wanted -= counts[digit];
            digit += 1;
        }
        last = last << (open_bits - shift) | digit as u32;
        open_bits = shift;
    }
    // lighter ones at once; of those with that very magnitude the first by index
    let parts = ties.par_chunks(task_words).zip(marked.par_chunks_mut(task_words)).enumerate();
    let equal: Vec<Vec<usize>> = parts
        .map(|(task, (ties, marked))| {
            let first = task * task_words;
            let mut equal = Vec::new();
            for_each_one(ties, first, |index| {
                let magnitude = magnitude(index);
                marked[index / 64 - first] |= u64::from(magnitude < last) << (index % 64);
                if magnitude == last {
                    equal.push(index - first * 64);
                }
            });
            equal
        })
        .collect();
    let by_index = (0..).zip(&equal).flat_map(|(task, equal)| equal.iter().map(move |offset| (task, *offset)));
    for (task, offset) in by_index.take(wanted as usize) {
        marked[task * task_words + offset / 64] |= 1 << (offset % 64);
    }
}

#[inline]
fn for_each_one(words: &[u64], first_word: usize, mut f: impl FnMut(usize)) {
    for (offset, &word) in words.iter().enumerate() {
        let mut word = word;
        while word != 0 {
            f((first_word + offset) * 64 + word.trailing_zeros() as usize);
            word &= word - 1;
        }
    }
}

/// One pool a row.
fn row_masks(weights: WeightsView<'_>, counts: &Counts, sparsity: Sparsity) -> MatrixMask {
    let (rows, columns, planes) = (weights.rows(), weights.columns(), counts.planes());
    let mut mask = MatrixMask::kept(rows, columns);
    let budget = sparsity.budget(columns as u64);
    if budget == 0 {
        return mask;
    }
    let task_rows = rows_per_task(columns);
    mask.words_mut().par_chunks_mut((task_rows * columns).div_ceil(64)).enumerate().for_each_init(
        Vec::new,
        |ties: &mut Vec<(u32, usize)>, (task, marked)| {
            let first_word = task * task_rows * columns / 64;
            for row in task * task_rows..((task + 1) * task_rows).min(rows) {
                let (start, end) = (row * columns, (row + 1) * columns);
                let words = start / 64..end.div_ceil(64);
                // the bits of a word that belong to this row
                let inside = |word: usize| {
                    let head = u64::MAX << start.saturating_sub(word * 64).min(63);
                    let tail = u64::MAX >> ((word + 1) * 64).saturating_sub(end).min(63);
                    head & tail
                };
                let threshold = threshold_of(columns as u64, budget, planes, |prefix, plane| {
                    let ones = |word: usize| {
                        (plane + 1..planes).fold(counts.word(plane, word) & inside(word), |ones, above| {
                            ones & (counts.word(above, word) ^ flip(prefix, above))
                        })
                    };
                    words.clone().map(|word| u64::from(ones(word).count_ones())).sum()
                });
                let all_ties = threshold.ties == threshold.wanted;
                ties.clear();
                for word in words {
                    let plane_words = (0..planes).map(|plane| counts.word(plane, word));
                    let (more, equal) = more_and_equal(plane_words, threshold.count);
                    marked[word - first_word] |= (if all_ties { more | equal } else { more }) & inside(word);
                    if !all_ties {
                        for_each_one(&[equal & inside(word)], word, |index| {
                            ties.push((weights.magnitude_bits(row, index - start), index));
                        });
                    }
                }
                if !all_ties {
                    let wanted = threshold.wanted as usize;
                    if wanted < ties.len() {
                        ties.select_nth_unstable(wanted);
                    }
                    for &(_, index) in &ties[..wanted] {
                        marked[index / 64 - first_word] |= 1 << (index % 64);
                    }
                }
            }
        },
    );
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::select_by_sorting;
    use crate::weights::DType;
    use half::{bf16, f16};
    use proptest::prelude::*;

    /// Votes and weights that look random, with few magnitudes so that ties abound.
    fn check(rows: usize, columns: usize, votes: &[u32], agreement: u32, magnitudes: u64, sparsity: Sparsity) {
        let mut state = (rows * 7919 + columns) as u64 | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        let base: Vec<bool> = (0..rows * columns).map(|_| next() % 2 == 0).collect();
        let mut counts = Counts::new(rows, columns, votes.iter().sum());
        for &weight in votes {
            let mut mask = MatrixMask::kept(rows, columns);
            for (index, &base) in base.iter().enumerate() {
                if base ^ (next() % u64::from(agreement) == 0) {
                    mask.prune(index / columns, index % columns);
                }
            }
            counts.add(weight, &[&mask]).unwrap();
        }
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let mut bytes = Vec::new();
            for _ in 0..rows * columns {
                let value = (next() % magnitudes) as f32 / 64.0 - 1.0;
                match dtype {
                    DType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                    DType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                    DType::F32 => bytes.extend(value.to_le_bytes()),
                }
            }
            let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
            let keys = GlobalKeys::new(&counts, weights);
            let mut groups = vec![Group::Layer, Group::Row, Group::Column];
            if columns.is_multiple_of(4) {
                groups.push(Group::NofM { n: 2, m: 4 });
            }
            for group in groups {
                let expected = select_by_sorting(weights, &keys, group, sparsity);
                assert_eq!(global_mask(weights, &counts, group, sparsity), expected, "{dtype} {group}");
                assert_eq!(select(weights, &keys, group, sparsity), expected, "{dtype} {group} by keys");
            }
        }
    }

    proptest! {
        #[test]
        fn planes_select_as_sorting_does(
            rows in 1usize..if cfg!(miri) { 3 } else { 10 }, columns in 1usize..150, percent in 0u64..100,
            votes in proptest::collection::vec(prop_oneof![4 => Just(1u32), 1 => 1u32..100_000], 1..10),
            agreement in 1u32..20, magnitudes in 1u64..300,
        ) {
            check(rows, columns, &votes, agreement, magnitudes, Sparsity::new(percent, 100).unwrap());
        }
    }

    /// Large enough for several parallel tasks of every pass.
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn large_matrices_select_as_sorting_does() {
        for (agreement, magnitudes) in [(20, 300), (2, 3), (1, 1)] {
            check(301, 1111, &[1; 5], agreement, magnitudes, Sparsity::new(57, 100).unwrap());
        }
    }

    #[test]
    fn most_votes_first_then_lightest_then_first() {
        let votes = ["110011", "110010", "000010"];
        let mut counts = Counts::new(1, 6, 3);
        for vote in votes {
            let mut mask = MatrixMask::kept(1, 6);
            vote.chars().enumerate().filter(|(_, bit)| *bit == '1').for_each(|(column, _)| mask.prune(0, column));
            counts.add(1, &[&mask]).unwrap();
        }
        assert_eq!(counts.to_vec(), [2, 2, 0, 0, 3, 1]);
        let bytes: Vec<u8> = [-3f32, 2.0, 0.0, 1.0, 9.0, 0.0].iter().flat_map(|w| w.to_le_bytes()).collect();
        let weights = WeightsView::new(DType::F32, 1, 6, &bytes).unwrap();
        let pruned = |numerator| {
            let mask = global_mask(weights, &counts, Group::Layer, Sparsity::new(numerator, 6).unwrap());
            (0..6).filter(|column| mask.get(0, *column)).collect::<Vec<_>>()
        };
        assert_eq!(pruned(1), [4]);
        assert_eq!(pruned(2), [1, 4], "of two with two votes the lighter");
        assert_eq!(pruned(4), [0, 1, 4, 5]);
        assert_eq!(pruned(5), [0, 1, 2, 4, 5], "no votes, but lightest");
    }
}
