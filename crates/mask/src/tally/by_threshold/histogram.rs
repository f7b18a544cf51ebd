//! How many weights have each number of votes.

use super::LayerThreshold;
use crate::tally::Agreement;

/// Of more votes than this no array is made.
const MAX_TABLE: u32 = 1 << 16;

/// How many weights have each number of votes.
pub(super) enum Histogram {
    Table(Vec<u64>),
    /// Of many different ones: a number of votes may stand there more than once, and what is taken from it is negative.
    List(Vec<(u32, i64)>),
}

impl Histogram {
    /// No weights yet; votes are at most `total`.
    pub(super) fn new(total: u32) -> Self {
        if total <= MAX_TABLE { Self::Table(vec![0; total as usize + 1]) } else { Self::List(Vec::new()) }
    }

    pub(super) fn add(&mut self, votes: u32, weights: u64) {
        match self {
            Self::Table(table) => table[votes as usize] += weights,
            Self::List(list) => list.push((votes, weights as i64)),
        }
    }

    /// Takes away weights that were added.
    pub(super) fn take(&mut self, votes: u32, weights: u64) {
        match self {
            Self::Table(table) => table[votes as usize] -= weights,
            Self::List(list) => list.push((votes, -(weights as i64))),
        }
    }

    pub(super) fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Table(mut table), Self::Table(other)) => {
                table.iter_mut().zip(other).for_each(|(all, more)| *all += more);
                Self::Table(table)
            }
            (Self::List(mut list), Self::List(other)) => {
                list.extend(other);
                Self::List(list)
            }
            _ => unreachable!("all are of one total"),
        }
    }

    /// Numbers of votes, and how many weights have them.
    fn steps(self) -> Vec<(u32, i64)> {
        match self {
            Self::Table(table) => (0..).zip(table.into_iter().map(|weights| weights as i64)).collect(),
            Self::List(list) => list,
        }
    }

    /// How far `total` votes agree on so many weights, of which those that are not counted here have none.
    pub(super) fn agreement(self, weights: u64, total: u32) -> Agreement {
        let votes = u64::from(total);
        let (mut differing, mut split) = (0i128, 0i64);
        for (count, weights) in self.steps() {
            if count > 0 && count < total {
                differing += i128::from(u64::from(count) * (votes - u64::from(count))) * i128::from(weights);
                split += weights;
            }
        }
        Agreement { weights, votes: total, unanimous: weights - split as u64, differing: differing as u128 }
    }

    /// The most votes that must be pruned to prune `budget`; none where there are not so many weights.
    pub(super) fn threshold(self, budget: u64) -> Option<LayerThreshold> {
        let mut steps = self.steps();
        steps.sort_unstable_by_key(|step| std::cmp::Reverse(step.0));
        let mut more = 0;
        for same in steps.chunk_by(|a, b| a.0 == b.0) {
            let weights = same.iter().map(|step| step.1).sum::<i64>() as u64;
            if more + weights >= budget {
                return Some(LayerThreshold { votes: same[0].0, more, equal: weights });
            }
            more += weights;
        }
        None
    }
}
