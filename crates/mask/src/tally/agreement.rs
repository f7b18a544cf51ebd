//! How far votes agree: the share of (weight, pair of votes) with the same bit.
//!
//! A weight that c of m votes prune has c · (m − c) pairs of votes that differ on it. Sums of c and c² come from the bit
//! planes of [`Counts`] by counting ones: of a plane, and of two planes at a time.

use rayon::prelude::*;

use super::counts::{Counts, Lanes};
use crate::vector::vectorized;

impl Counts {
    /// Over all weights, the pairs of votes that differ: Σ count · (total − count). A vote of weight w is w votes.
    pub fn differing_pairs(&self) -> u128 {
        let planes = self.planes();
        if planes == 0 {
            return 0;
        }
        let ones = self.tasks().map(|blocks| vectorized(|| ones_of(blocks, planes)));
        let ones = ones.reduce(
            || vec![0u64; planes * planes],
            |mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                a
            },
        );
        let (mut sum, mut squares) = (0u128, 0u128);
        for low in 0..planes {
            let alone = u128::from(ones[low * planes + low]);
            sum += alone << low;
            squares += alone << (2 * low);
            for high in low + 1..planes {
                squares += u128::from(ones[low * planes + high]) << (low + high + 1);
            }
        }
        u128::from(self.total()) * sum - squares
    }
}

/// Ones of each plane, and of each two planes together, at `low · planes + high`.
#[inline(always)]
fn ones_of(blocks: &[Lanes], planes: usize) -> Vec<u64> {
    let mut ones = vec![0u64; planes * planes];
    for block in blocks.chunks_exact(planes) {
        for low in 0..planes {
            for high in low..planes {
                let both = block[low].iter().zip(&block[high]).map(|(a, b)| u64::from((a & b).count_ones()));
                ones[low * planes + high] += both.sum::<u64>();
            }
        }
    }
    ones
}

/// The agreement of `votes` votes on `weights` weights, `differing` of whose pairs differ: from 1 (all the same) down to
/// about a half. One vote agrees with itself.
pub fn agreement(differing: u128, votes: u32, weights: u64) -> f64 {
    let pairs = u64::from(votes) * u64::from(votes.saturating_sub(1)) / 2;
    if pairs == 0 || weights == 0 {
        return 1.0;
    }
    1.0 - differing as f64 / (pairs as f64 * weights as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MatrixMask;

    fn counted(rows: usize, columns: usize, weights: &[u32], seed: u64) -> (Counts, Vec<MatrixMask>) {
        let mut state = seed | 1;
        let mut masks = Vec::new();
        let mut counts = Counts::new(rows, columns, weights.iter().sum());
        for weight in weights {
            let mut mask = MatrixMask::kept(rows, columns);
            for index in 0..rows * columns {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if state >> 62 == 0 {
                    mask.prune(index / columns, index % columns);
                }
            }
            counts.add(*weight, &[&mask]).unwrap();
            masks.push(mask);
        }
        (counts, masks)
    }

    #[test]
    fn agreement_is_that_of_pairs() {
        let (counts, masks) = counted(37, 129, &[1; 5], 7);
        let (mut pairs, mut same) = (0u64, 0u64);
        for (index, one) in masks.iter().enumerate() {
            for other in &masks[..index] {
                pairs += 1;
                same += 37 * 129 - one.count_different(other);
            }
        }
        let expected = same as f64 / (pairs * 37 * 129) as f64;
        assert!((agreement(counts.differing_pairs(), 5, 37 * 129) - expected).abs() < 1e-12);
        assert!((0.5..0.8).contains(&expected), "{expected}");
    }

    #[test]
    fn nobody_differs_from_itself() {
        let (counts, _) = counted(8, 64, &[1], 3);
        assert_eq!((counts.differing_pairs(), agreement(0, 1, 512)), (0, 1.0));
        assert_eq!((Counts::new(3, 3, 0).differing_pairs(), agreement(0, 0, 9)), (0, 1.0));
        assert_eq!(agreement(0, 4, 0), 1.0);
    }

    proptest! {
        #[test]
        fn planes_say_what_single_counts_say(
            rows in 0usize..9, columns in 0usize..90, weights in proptest::collection::vec(1u32..40, 1..9), seed: u64,
        ) {
            let (counts, _) = counted(rows, columns, &weights, seed);
            let total = u128::from(counts.total());
            let single = counts.to_vec().into_iter().map(u128::from).map(|count| count * (total - count)).sum::<u128>();
            prop_assert_eq!(counts.differing_pairs(), single);
        }
    }
}
