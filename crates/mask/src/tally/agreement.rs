//! How far votes agree on the weights of one matrix, from its counts alone.

use rayon::prelude::*;

use super::Counts;
use super::counts::{LANES, Lanes};

/// How far votes agree on the weights of one matrix. A vote of weight w is w votes that agree with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Weights of the matrix.
    pub weights: u64,
    /// Votes, by their weight.
    pub votes: u32,
    /// Weights that all prune or all keep.
    pub unanimous: u64,
    /// Pairs of votes that differ, summed over the weights.
    pub differing: u128,
}

impl Agreement {
    /// Share of (weight, pair of votes) in which both say the same; 1 where there are no pairs.
    pub fn share(&self) -> f64 {
        share(self.differing, self.votes, u128::from(self.weights))
    }
}

/// The same of several matrices together: `differing` pairs of `votes` votes on `weights` weights.
pub fn share(differing: u128, votes: u32, weights: u128) -> f64 {
    let votes = u128::from(votes);
    let pairs = votes * votes.saturating_sub(1) / 2 * weights;
    if pairs == 0 { 1.0 } else { 1.0 - differing as f64 / pairs as f64 }
}

/// Sums over some weights.
#[derive(Clone, Copy, Default)]
struct Sums {
    counts: u128,
    squares: u128,
    none: u64,
    all: u64,
}

impl Counts {
    /// How far the votes so far agree.
    pub fn agreement(&self) -> Agreement {
        let (votes, planes) = (self.added(), self.planes());
        let weights = self.rows() as u64 * self.columns() as u64;
        if planes == 0 {
            return Agreement { weights, votes, unanimous: weights, differing: 0 };
        }
        let sums = self.tasks().map(|blocks| sums_of(blocks, planes, votes)).reduce(Sums::default, |a, b| Sums {
            counts: a.counts + b.counts,
            squares: a.squares + b.squares,
            none: a.none + b.none,
            all: a.all + b.all,
        });
        // past the last weight there are no votes
        let places = weights.div_ceil(64 * LANES as u64) * 64 * LANES as u64;
        let none = sums.none - (places - weights);
        let unanimous = if votes == 0 { weights } else { none + sums.all };
        // of c votes to prune and v - c to keep, c (v - c) pairs differ
        let differing = u128::from(votes) * sums.counts - sums.squares;
        Agreement { weights, votes, unanimous, differing }
    }
}

/// Σ count, Σ count², and how often the count is 0 and `votes`, over the weights of some blocks.
fn sums_of(blocks: &[Lanes], planes: usize, votes: u32) -> Sums {
    let mut sums = Sums::default();
    let ones = |words: &dyn Fn(usize) -> u64| (0..LANES).map(|lane| u64::from(words(lane).count_ones())).sum::<u64>();
    for block in blocks.chunks_exact(planes) {
        for (low, a) in block.iter().enumerate() {
            sums.counts += u128::from(ones(&|lane| a[lane])) << low;
            // (Σ 2^p bit_p)²: each pair of different planes twice
            sums.squares += u128::from(ones(&|lane| a[lane])) << (2 * low);
            for (high, b) in block.iter().enumerate().skip(low + 1) {
                sums.squares += u128::from(ones(&|lane| a[lane] & b[lane])) << (low + high + 1);
            }
        }
        sums.none += ones(&|lane| !block.iter().fold(0, |any, plane| any | plane[lane]));
        let equal = |plane: usize| if votes >> plane & 1 == 1 { 0 } else { u64::MAX };
        sums.all += ones(&|lane| {
            block.iter().enumerate().fold(u64::MAX, |all, (plane, words)| all & (words[lane] ^ equal(plane)))
        });
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MatrixMask;
    use proptest::prelude::*;

    /// One weight and one vote after the other.
    fn reference(counts: &Counts) -> Agreement {
        let votes = u64::from(counts.added());
        let all = counts.to_vec();
        Agreement {
            weights: all.len() as u64,
            votes: counts.added(),
            unanimous: all.iter().filter(|count| **count == 0 || **count == counts.added()).count() as u64,
            differing: all.iter().map(|count| u128::from(*count) * u128::from(votes - u64::from(*count))).sum(),
        }
    }

    fn counts(rows: usize, columns: usize, votes: &[u32], room: u32) -> Counts {
        let mut state = 7u64;
        let mut counts = Counts::new(rows, columns, votes.iter().sum::<u32>().saturating_add(room));
        for weight in votes {
            let mut mask = MatrixMask::kept(rows, columns);
            for index in 0..rows * columns {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                // two weights in three are pruned by all
                if index % 3 != 0 || state >> 63 == 1 {
                    mask.prune(index / columns, index % columns);
                }
            }
            counts.add(*weight, &[&mask]).unwrap();
        }
        counts
    }

    proptest! {
        #[test]
        fn planes_agree_as_counting_does(
            rows in 1usize..12, columns in 1usize..150, room in 0u32..3,
            votes in proptest::collection::vec(prop_oneof![3 => Just(1u32), 1 => 1u32..200_000_000], 0..12),
        ) {
            let counts = counts(rows, columns, &votes, room);
            prop_assert_eq!(counts.agreement(), reference(&counts));
        }
    }

    #[test]
    fn more_than_one_task_and_the_largest_votes() {
        for votes in [&[1u32; 5][..], &[u32::MAX], &[u32::MAX - 1, 1], &[]] {
            let counts = counts(3, 64 * LANES * super::super::counts::TASK_BLOCKS + 1, votes, 0);
            assert_eq!(counts.agreement(), reference(&counts), "{votes:?}");
        }
    }

    #[test]
    fn agreement_is_that_of_pairs() {
        let mask = |pruned: [usize; 2]| {
            let mut mask = MatrixMask::kept(1, 4);
            pruned.iter().for_each(|column| mask.prune(0, *column));
            mask
        };
        let votes = [mask([0, 1]), mask([0, 2]), mask([0, 1])];
        let mut counts = Counts::new(1, 4, 3);
        counts.add(1, &votes.iter().collect::<Vec<_>>()).unwrap();
        let same: u64 = [(0, 1), (0, 2), (1, 2)].map(|(a, b)| 4 - votes[a].count_different(&votes[b])).iter().sum();
        assert!((counts.agreement().share() - same as f64 / 12.0).abs() < 1e-12);
        assert_eq!(counts.agreement().unanimous, 2);
        assert_eq!(Counts::new(1, 4, 0).agreement().share(), 1.0);
    }
}
