//! The thresholds of each column in order, and what that says of votes.
//!
//! With the thresholds of a column from the heaviest on, a weight has more than so many votes if it is below the threshold at
//! which the weights of the voters, added up, exceed them. So the number of votes at which a budget runs out takes one sum of
//! the [`Band`] for each ballot and column, and no votes of single levels.
//!
//! Floor: one sum read for each ballot and column. The order comes from Batcher's merge exchange (Knuth, The Art of Computer
//! Programming, 5.2.2, algorithm M), whose comparisons do not depend on what is compared: 16 columns take each of them at once,
//! 543 for 64 ballots.

use rayon::prelude::*;

use super::histogram::Histogram;
use crate::thresholds::band::Band;
use crate::vector::vectorized;

/// Columns that are brought into order at once: 16 keys are a vector of AVX-512.
const LANES: usize = 16;
/// Blocks of columns that one task looks at.
const TASK_BLOCKS: usize = if cfg!(miri) { 2 } else { 16 };
/// A key holds the voter's number in so many of its bits, and above them its threshold as a step of the band.
const VOTER_BITS: u32 = 16;

type Row = [u32; LANES];

/// Ballots whose thresholds can be brought into order, column by column. Nothing is kept of it: a block's keys stay in the
/// first-level cache, and sorting them again costs less than memory for all.
pub(super) struct Ranked<'a> {
    ballots: &'a [(u32, &'a [u32])],
    band: &'a Band,
    exchanges: Vec<(u16, u16)>,
    /// If all voters weigh the same.
    weight: Option<u32>,
    /// All voters together.
    total: u32,
}

/// Of a layer: weights by votes, and the votes of cells.
pub(super) struct Votes {
    /// How many weights have each number of votes, splits left out.
    pub(super) histogram: Histogram,
    /// Of each cell that was asked for, splits left out.
    pub(super) cells: Vec<u32>,
}

impl<'a> Ranked<'a> {
    /// Of ballots with their weight and a threshold a column; none where there are too many ballots.
    pub(super) fn new(ballots: &'a [(u32, &'a [u32])], band: &'a Band) -> Option<Self> {
        let (first, _) = ballots.first()?;
        if ballots.len() > 1 << VOTER_BITS {
            return None;
        }
        let weight = ballots.iter().all(|(weight, _)| weight == first).then_some(*first);
        let total = ballots.iter().map(|ballot| ballot.0).sum();
        Some(Self { ballots, band, exchanges: exchanges(ballots.len()), weight, total })
    }

    /// Calls `block(first column, rows of keys in order, part)` for each [`LANES`] columns, a part for each task; on all cores,
    /// parts in the order of columns.
    fn blocks<T: Send>(
        &self,
        part: impl Fn() -> T + Sync + Send,
        block: impl Fn(usize, &[Row], &mut T) + Sync + Send,
    ) -> impl IndexedParallelIterator<Item = T> {
        let columns = self.band.columns();
        let tasks: Vec<usize> = (0..columns).step_by(LANES * TASK_BLOCKS).collect();
        tasks.into_par_iter().map_init(
            || vec![[0; LANES]; self.ballots.len()],
            move |rows, task| {
                let mut part = part();
                for first in (task..columns.min(task + LANES * TASK_BLOCKS)).step_by(LANES) {
                    vectorized(
                        #[inline(always)]
                        || rank_block(self.ballots, self.band, first, &self.exchanges, rows),
                    );
                    block(first, rows, &mut part);
                }
                part
            },
        )
    }

    /// How many weights have each number of votes, and votes of `cells`: (column, magnitude), ascending.
    pub(super) fn votes(&self, cells: &[(u32, u32)]) -> Votes {
        let (voters, band) = (self.ballots.len(), self.band);
        let part = || (vec![0u64; voters], 0u64, self.weight.is_none().then(|| Histogram::new(self.total)), Vec::new());
        let mut parts: Vec<_> = self
            .blocks(part, |first, rows, (below, within, histogram, votes)| {
                match histogram {
                    None => *within += add_block(band, first, rows, below),
                    Some(histogram) => self.add_weighted(first, rows, histogram),
                }
                let from = cells.partition_point(|(column, _)| (*column as usize) < first);
                let of_block = cells[from..].iter().take_while(|(column, _)| (*column as usize) < first + LANES);
                votes.extend(of_block.map(|&(column, magnitude)| self.votes_of(rows, column as usize, magnitude)));
            })
            .collect();
        let of_cells = parts.iter_mut().flat_map(|part| std::mem::take(&mut part.3)).collect();
        let mut histogram = Histogram::new(self.total);
        // of voters of one weight: weights below the threshold of each rank, and of all ranges
        let (mut all_below, mut above) = (vec![0; voters], 0);
        for (below, within, weighted, _) in parts {
            all_below.iter_mut().zip(below).for_each(|(all, below)| *all += below);
            above += within;
            if let Some(weighted) = weighted {
                histogram = histogram.join(weighted);
            }
        }
        if let Some(weight) = self.weight {
            for (rank, below) in (0..).zip(all_below) {
                // what is below the threshold before, and not below this one
                histogram.add(rank * weight, above - below);
                above = below;
            }
            histogram.add(self.total, above);
        }
        Votes { histogram, cells: of_cells }
    }

    /// Of each column's range the levels with more than so many votes, and those with as many or more: each up to before a
    /// level.
    pub(super) fn ends(&self, votes: u32) -> Vec<(u32, u32)> {
        let band = self.band;
        let parts: Vec<Vec<(u32, u32)>> = self
            .blocks(Vec::new, |first, rows, ends: &mut Vec<(u32, u32)>| {
                for (lane, column) in (first..band.columns()).enumerate().take(LANES) {
                    let low = band.low(column);
                    let (mut sum, mut more, mut as_many) = (0, 0, 0);
                    for row in rows {
                        let before = sum;
                        sum += self.weight_of(row[lane]);
                        if before < votes && sum >= votes {
                            as_many = step(row[lane]);
                        }
                        if sum > votes {
                            more = step(row[lane]);
                            break;
                        }
                    }
                    if votes == 0 {
                        as_many = band.sums(column).len() - 1;
                    }
                    ends.push((low + more as u32, low + as_many as u32));
                }
            })
            .collect();
        parts.concat()
    }

    /// Adds the levels of the columns from `first` on, for voters of different weights.
    fn add_weighted(&self, first: usize, rows: &[Row], histogram: &mut Histogram) {
        for (lane, column) in (first..self.band.columns()).enumerate().take(LANES) {
            let sums = self.band.sums(column);
            let (mut above, mut votes) = (sums[sums.len() - 1], 0);
            for row in rows {
                let below = sums[step(row[lane])];
                histogram.add(votes, u64::from(above - below));
                (above, votes) = (below, votes + self.weight_of(row[lane]));
            }
            histogram.add(votes, u64::from(above));
        }
    }

    /// Votes of one level of a column's range, from the rows of its block.
    fn votes_of(&self, rows: &[Row], column: usize, level: u32) -> u32 {
        let past = self.band.step(column, level + 1);
        let keys = rows.iter().map(|row| row[column % LANES]);
        keys.take_while(|key| step(*key) >= past).map(|key| self.weight_of(key)).sum()
    }

    fn weight_of(&self, key: u32) -> u32 {
        self.ballots[(key & ((1 << VOTER_BITS) - 1)) as usize].0
    }
}

/// At which sum of its column's range a threshold is.
fn step(key: u32) -> usize {
    (key >> VOTER_BITS) as usize
}

/// Fills the rows of the columns from `first` on, in order.
#[inline(always)]
fn rank_block(ballots: &[(u32, &[u32])], band: &Band, first: usize, exchanges: &[(u16, u16)], rows: &mut [Row]) {
    let columns = LANES.min(band.columns() - first);
    for ((voter, (_, levels)), row) in (0..).zip(ballots).zip(&mut *rows) {
        let keys = &mut row[..columns];
        keys.copy_from_slice(&levels[first..first + columns]);
        band.steps(first, keys);
        keys.iter_mut().for_each(|key| *key = *key << VOTER_BITS | voter);
    }
    for &(one, other) in exchanges {
        let (one, other) = (usize::from(one), usize::from(other));
        let (a, b) = (rows[one], rows[other]);
        for lane in 0..LANES {
            rows[one][lane] = a[lane].max(b[lane]);
            rows[other][lane] = a[lane].min(b[lane]);
        }
    }
}

/// Adds, for each rank, the weights of the columns' ranges below the threshold; returns all weights of the ranges.
fn add_block(band: &Band, first: usize, rows: &[Row], below: &mut [u64]) -> u64 {
    let columns = LANES.min(band.columns() - first);
    let starts = &band.starts()[first..=first + columns];
    let sums = band.all_sums();
    for (below, row) in below.iter_mut().zip(rows) {
        *below +=
            row.iter().zip(&starts[..columns]).map(|(key, start)| u64::from(sums[start + step(*key)])).sum::<u64>();
    }
    starts[1..].iter().map(|end| u64::from(sums[end - 1])).sum()
}

/// The places to compare, so that the greater key goes to the first, to bring so many into order: algorithm M of Knuth.
fn exchanges(keys: usize) -> Vec<(u16, u16)> {
    let mut exchanges = Vec::new();
    let top = keys.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            exchanges
                .extend((0..keys.saturating_sub(d)).filter(|at| at & p == r).map(|at| (at as u16, (at + d) as u16)));
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    exchanges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn so_many_comparisons_order_64() {
        assert_eq!(exchanges(64).len(), 543);
        assert_eq!(exchanges(1).len(), 0);
    }

    proptest! {
        /// What orders every sequence of zeros and ones orders every sequence.
        #[test]
        fn exchanges_order_anything(mut keys in proptest::collection::vec(any::<u32>(), 0..300)) {
            let mut expected = keys.clone();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            for (one, other) in exchanges(keys.len()) {
                let (one, other) = (usize::from(one), usize::from(other));
                prop_assert!(one < other);
                if keys[one] < keys[other] {
                    keys.swap(one, other);
                }
            }
            prop_assert_eq!(keys, expected);
        }
    }

    #[test]
    fn exchanges_order_zeros_and_ones_of_every_size_up_to_14() {
        for size in 0..=if cfg!(miri) { 7 } else { 14usize } {
            let exchanges = exchanges(size);
            for start in 0..1u32 << size {
                let mut keys = start;
                for (one, other) in &exchanges {
                    if keys >> one & 1 < keys >> other & 1 {
                        keys ^= 1 << one | 1 << other;
                    }
                }
                assert_eq!(keys, (1 << start.count_ones()) - 1, "{size} {start:b}");
            }
        }
    }
}
