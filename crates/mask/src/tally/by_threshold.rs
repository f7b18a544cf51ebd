//! The global `layer` mask of column-prefix ballots, without expanding any.
//!
//! Where one ballot prunes a weight it prunes all lighter ones of the column, so the votes of a column are a
//! falling staircase over its levels, and the global mask is a column prefix as well. What decides is how
//! many weights each step holds: the [`Band`] says that after one read of W.
//!
//! 1. Ballots with the same norms or thresholds count as one of their weight together. If one is left, its
//!    mask is the global mask.
//! 2. Of ballots of norms, a sample of W brackets the score at which each runs out.
//! 3. One read of W: the band of all levels that thresholds or brackets leave open.
//! 4. The thresholds of each ballot, exactly; ballots that carried thresholds are checked against the
//!    band as [`Ballot::mask`](crate::Ballot::mask) checks them against W: budget, and that they are the ones to be
//!    written.
//! 5. Weights that some ballot splits by flat index (a few of each ballot) are looked up one by one.
//! 6. Votes of each level, hence the number of votes at which the budget runs out, and the magnitude.
//! 7. One more read of W compares it with the levels that result.
//!
//! The number of votes at which the budget runs out, v, is known after step 6 from histograms alone. All
//! ballots prune the same number of weights, hence no weight below the band is undecided and none above it
//! is pruned. Anything that does not fit (single precision, a band too wide, ties too many to look up, a ballot that
//! fails its check) is left to the expanded way, which says what is wrong.

use crate::ballot::Carried;
use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::score::Pruner;
use crate::sparsity::Sparsity;
use crate::tally::Counts;
use crate::thresholds::band::{Band, Range, places_of};
use crate::thresholds::derive::{Sample, Scores, UnplacedSplit, factors};
use crate::thresholds::kernel::{Magnitude, bits_where};
use crate::thresholds::{ColumnThresholds, Split, top_level};
use crate::weights::{DType, WeightsView};
use rayon::prelude::*;

/// Columns that one task looks at.
const TASK_COLUMNS: usize = 256;
/// Of more votes than this no array is made.
const MAX_TABLE: u32 = 1 << 16;
/// Weights that are looked up one by one: a sixteenth, and this many more.
const FREE_PLACES: usize = 1 << 16;

/// What says a ballot's mask of one matrix.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Norms, or none for a pruner that uses none.
    Norms(Pruner, &'a NormVector),
    /// Thresholds that were carried.
    Carried(&'a Carried),
}

impl Source<'_> {
    /// Whether both say the same mask in the same way: what is wrong with one is wrong with the other.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Source::Norms(pruner, norms), Source::Norms(others, other)) => pruner == others && norms == other,
            (Source::Carried(carried), Source::Carried(other)) => carried == other,
            _ => false,
        }
    }
}

/// A ballot with its thresholds found.
struct Voter {
    weight: u32,
    thresholds: ColumnThresholds,
    /// Where a split ends after so many of its weights, if that is not known yet.
    wanted: Option<u64>,
}

/// The votes of one matrix's column-prefix ballots, in histograms: what is known after W has been read once.
pub struct LayerVotes {
    voters: Vec<Voter>,
    band: Band,
    ties: Ties,
    budget: u64,
    rows: usize,
    columns: usize,
}

/// Where the votes of a layer run out of budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerThreshold {
    /// More votes than this: pruned. Fewer: kept.
    pub votes: u32,
    /// Weights with more.
    pub more: u64,
    /// Weights with as many, of which the lightest are pruned up to the budget.
    pub equal: u64,
}

impl LayerVotes {
    /// Of ballots all of which prune `sparsity` of the layer; none where it takes expanding them. Reads `weights` once
    /// or twice, and of columns that ballots split a little more.
    pub(crate) fn new(ballots: &[(u32, Source<'_>)], sparsity: Sparsity, weights: WeightsView<'_>) -> Option<Self> {
        let (rows, columns) = (weights.rows(), weights.columns());
        let pool = rows as u64 * columns as u64;
        let budget = sparsity.budget(pool);
        if budget == 0 || weights.dtype() == DType::F32 {
            return None;
        }
        let sample = Sample::of(weights);
        let scores: Vec<Option<Scores>> = ballots
            .par_iter()
            .map(|(_, source)| match source {
                Source::Norms(pruner, norms) => {
                    let factors = factors(*pruner, norms, columns)?;
                    Some(Scores::new(factors, weights.dtype(), &sample, budget, pool))
                }
                Source::Carried(_) => None,
            })
            .collect();
        let band = Band::count(weights, range_of(ballots, &scores, weights)?)?;
        let voters: Option<Vec<Voter>> = ballots
            .par_iter()
            .zip(&scores)
            .map(|((weight, source), scores)| match (source, scores) {
                (Source::Norms(..), Some(scores)) => {
                    let found = scores.thresholds(&band, budget)?;
                    let (split, wanted) = match found.split {
                        // the end is looked up below
                        Some(UnplacedSplit { magnitude, columns, wanted }) => {
                            (Some(Split { magnitude, last: 0, columns }), Some(wanted))
                        }
                        None => (None, None),
                    };
                    Some(Voter {
                        weight: *weight,
                        thresholds: ColumnThresholds { levels: found.levels, split },
                        wanted,
                    })
                }
                (Source::Carried(carried), _) => {
                    Some(Voter { weight: *weight, thresholds: carried.thresholds.clone(), wanted: None })
                }
                _ => None,
            })
            .collect();
        let mut voters = voters?;
        let ties = Ties::look_up(&mut voters, weights)?;
        for (voter, (_, source)) in voters.iter().zip(ballots) {
            if let Source::Carried(carried) = source
                && !is_sound(carried, voter, &band, &ties, budget)
            {
                return None;
            }
        }
        Some(Self { voters, band, ties, budget, rows, columns })
    }

    /// The number of votes at which the budget runs out, from thresholds and histograms alone.
    pub fn threshold(&self) -> Option<LayerThreshold> {
        threshold_count(self, &self.votes_of_places())
    }

    /// The global mask; none where too many weights tie to be looked up one by one.
    ///
    /// # Panics
    /// When `weights` have another shape than those that were read.
    pub fn mask(&self, weights: WeightsView<'_>) -> Option<MatrixMask> {
        assert_eq!((weights.rows(), weights.columns()), (self.rows, self.columns), "the weights that were read");
        let (levels, marked) = self.decide(weights)?;
        let mut mask = ColumnThresholds { levels, split: None }.expand(weights);
        let words = mask.words_mut();
        marked.iter().for_each(|index| words[(index / 64) as usize] |= 1 << (index % 64));
        Some(mask)
    }

    /// How often each weight was pruned, in one read of `weights`: what [`counts_by_masks`](super::Tally::counts_by_masks) counts.
    ///
    /// # Panics
    /// When `weights` have another shape than those that were read.
    pub fn counts(&self, weights: WeightsView<'_>) -> Counts {
        let (rows, columns, total) = (self.rows, self.columns, self.total());
        assert_eq!((weights.rows(), weights.columns()), (rows, columns), "the weights that were read");
        // votes of each level of each column's range, and 64 weights of any word without a division each
        let (mut votes, mut scratch) = (Vec::new(), Vec::new());
        let (mut low, mut width, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for column in 0..columns {
            votes_of_levels(&self.voters, &self.band, column, &mut scratch);
            low.push(self.band.low(column) as u16);
            width.push(scratch.len() as u16 - 1);
            starts.push(votes.len());
            votes.extend_from_slice(&scratch[1..]);
        }
        for column in 0..64 {
            // and around again where rows are shorter than a word
            low.push(low[column]);
            width.push(width[column]);
            starts.push(starts[column]);
        }
        let places = self.votes_of_places();
        Counts::from_words(rows, columns, total, |word, planes| {
            let (first, end) = (word * 64, (word * 64 + 64).min(rows * columns));
            let mut above = [0u16; 64];
            let above = &mut above[..end - first];
            u16::read(&weights.bytes()[2 * first..2 * end], above);
            let from = first % columns;
            let (low, width) = (&low[from..from + above.len()], &width[from..from + above.len()]);
            let below = bits_where(above, low, |magnitude, low| magnitude < low);
            above.iter_mut().zip(low).for_each(|(magnitude, low)| *magnitude = magnitude.wrapping_sub(*low));
            let mut inside = bits_where(above, width, |above, width| above < width);
            for (place, plane) in planes.iter_mut().enumerate() {
                *plane = below & u64::from(total >> place & 1).wrapping_neg();
            }
            while inside != 0 {
                let at = inside.trailing_zeros() as usize;
                let votes = votes[starts[from + at] + above[at] as usize];
                for (place, plane) in planes.iter_mut().enumerate() {
                    *plane |= u64::from(votes >> place & 1) << at;
                }
                inside &= inside - 1;
            }
            // those that some ballot splits
            let start = self.ties.places.partition_point(|(index, _)| *index < first as u64);
            for ((index, _), votes) in self.ties.places[start..].iter().zip(&places[start..]) {
                let Some(at) = (*index as usize).checked_sub(first).filter(|at| *at < 64) else { break };
                for (place, plane) in planes.iter_mut().enumerate() {
                    *plane = *plane & !(1 << at) | u64::from(votes >> place & 1) << at;
                }
            }
        })
    }

    fn total(&self) -> u32 {
        self.voters.iter().map(|voter| voter.weight).sum()
    }

    /// Votes of the weights that are looked up one by one.
    fn votes_of_places(&self) -> Vec<u32> {
        let Self { voters, ties, .. } = self;
        let base: Vec<u32> =
            ties.cells.iter().map(|&(column, magnitude)| votes_above(voters, column as usize, magnitude)).collect();
        let votes = |&(index, cell): &(u64, u32)| {
            let splits = ties.splitters[cell as usize].iter().filter_map(|voter| {
                let voter = &voters[*voter as usize];
                voter.thresholds.split.as_ref().filter(|split| index <= split.last).map(|_| voter.weight)
            });
            base[cell as usize] + splits.sum::<u32>()
        };
        ties.places.iter().map(votes).collect()
    }

    /// The level of each column below which everything is pruned, and flat indices that are pruned besides.
    fn decide(&self, weights: WeightsView<'_>) -> Option<(Vec<u32>, Vec<u64>)> {
        let Self { voters, band, ties, budget, columns, .. } = self;
        let (budget, columns) = (*budget, *columns);
        let places = self.votes_of_places();
        let LayerThreshold { votes, more, equal } = threshold_count(self, &places)?;
        let wanted = budget - more;
        let saturated = wanted == equal;
        if votes == self.total() && !saturated {
            // more are pruned by everybody than anybody may prune: not the ballots of one budget
            return None;
        }
        // of those with as many votes, by |W|: the magnitude at which the budget ends
        let (mut magnitude, mut rest, mut all_of_it) = (top_level(weights.dtype()), 0, true);
        let mut with_votes: Vec<(u32, u32, u64)> = Vec::new();
        if !saturated {
            let tasks: Vec<usize> = (0..columns).step_by(TASK_COLUMNS).collect();
            with_votes = tasks
                .into_par_iter()
                .map(|first| {
                    let (mut found, mut scratch) = (Vec::new(), Vec::new());
                    for column in first..(first + TASK_COLUMNS).min(columns) {
                        for_each_step(voters, band, ties, column, &mut scratch, |level, weights, of_level| {
                            if of_level == votes {
                                found.push((level, column as u32, u64::from(weights)));
                            }
                            of_level >= votes
                        });
                    }
                    found
                })
                .collect::<Vec<_>>()
                .concat();
            let mut by_magnitude: Vec<(u32, u64)> =
                with_votes.iter().map(|(level, _, weights)| (*level, *weights)).collect();
            let tying = ties.places.iter().zip(&places).filter(|(_, of_place)| **of_place == votes);
            by_magnitude.extend(tying.map(|((_, cell), _)| (ties.cells[*cell as usize].1, 1)));
            by_magnitude.sort_unstable();
            rest = wanted;
            for same in by_magnitude.chunk_by(|a, b| a.0 == b.0) {
                let weights: u64 = same.iter().map(|step| step.1).sum();
                magnitude = same[0].0;
                if weights >= rest {
                    all_of_it = weights == rest;
                    break;
                }
                rest -= weights;
            }
        }
        let is_pruned =
            |of: u32, level: u32| of > votes || of == votes && (level < magnitude || level == magnitude && all_of_it);
        let levels: Vec<u32> = (0..columns)
            .into_par_iter()
            .with_min_len(TASK_COLUMNS)
            .map_init(Vec::new, |scratch, column| {
                let mut below = band.low(column);
                for_each_step(voters, band, ties, column, scratch, |level, _, votes| {
                    let pruned = is_pruned(votes, level);
                    if pruned {
                        below = level + 1;
                    }
                    pruned
                });
                below
            })
            .collect();
        let mut marked: Vec<u64> = Vec::new();
        let split_here = |of: u32, level: u32| of == votes && level == magnitude && !all_of_it;
        for (&(index, cell), &of_place) in ties.places.iter().zip(&places) {
            if is_pruned(of_place, ties.cells[cell as usize].1) {
                marked.push(index);
            }
        }
        if !all_of_it {
            // the first by flat index of those with that magnitude and as many votes
            let cells: Vec<(u32, u32)> = with_votes
                .iter()
                .filter(|(level, ..)| *level == magnitude)
                .map(|(level, column, _)| (*column, *level))
                .collect();
            let most = weights.rows() * columns / 16 + FREE_PLACES;
            let mut found: Vec<u64> = places_of(weights, &cells, most)?.into_iter().map(|(index, _)| index).collect();
            let tying = ties.places.iter().zip(&places);
            found.extend(
                tying
                    .filter(|((_, cell), of)| split_here(**of, ties.cells[*cell as usize].1))
                    .map(|((index, _), _)| *index),
            );
            found.sort_unstable();
            marked.extend(&found[..(rest as usize).min(found.len())]);
        }
        Some((levels, marked))
    }
}

/// The levels that have to be counted: where any ballot may end, and what its check looks at.
fn range_of(ballots: &[(u32, Source<'_>)], scores: &[Option<Scores>], weights: WeightsView<'_>) -> Option<Range> {
    let columns = weights.columns();
    let top = top_level(weights.dtype());
    let mut range = Range::new(columns);
    for ((_, source), scores) in ballots.iter().zip(scores) {
        match (source, scores) {
            (Source::Norms(..), Some(scores)) => scores.take_in(&mut range),
            (Source::Carried(carried), _) if carried.dtype() == weights.dtype() => {
                for (column, &level) in carried.thresholds.levels.iter().enumerate() {
                    let (low, high) = carried.witnesses(column);
                    range.take_in(column, low.unwrap_or(level), high.unwrap_or(level).min(top));
                }
                for &column in carried.thresholds.split.iter().flat_map(|split| &split.columns) {
                    let level = carried.thresholds.levels[column as usize];
                    range.take_in(column as usize, level, level + 1);
                }
            }
            _ => return None,
        }
    }
    Some(range)
}

/// The weights of magnitudes that some ballot splits, one by one.
struct Ties {
    /// (column, magnitude), ascending.
    cells: Vec<(u32, u32)>,
    /// Flat index and cell of each of their weights, by flat index.
    places: Vec<(u64, u32)>,
    /// For each cell the voters that split it.
    splitters: Vec<Vec<u32>>,
}

impl Ties {
    /// Finds the weights, and where splits end that are known by their number of weights only.
    fn look_up(voters: &mut [Voter], weights: WeightsView<'_>) -> Option<Self> {
        let mut all: Vec<((u32, u32), u32)> = Vec::new();
        for (number, voter) in (0..).zip(voters.iter()) {
            if let Some(split) = &voter.thresholds.split {
                all.extend(split.columns.iter().map(|column| ((*column, split.magnitude), number)));
            }
        }
        all.sort_unstable();
        let (mut cells, mut splitters) = (Vec::new(), Vec::new());
        for same in all.chunk_by(|a, b| a.0 == b.0) {
            cells.push(same[0].0);
            splitters.push(same.iter().map(|(_, voter)| *voter).collect::<Vec<u32>>());
        }
        let places = places_of(weights, &cells, weights.rows() * weights.columns() / 16 + FREE_PLACES)?;
        let mut left: Vec<Option<u64>> = voters.iter().map(|voter| voter.wanted).collect();
        for (index, cell) in &places {
            for &voter in &splitters[*cell as usize] {
                if let Some(wanted) = &mut left[voter as usize]
                    && *wanted > 0
                {
                    *wanted -= 1;
                    if let Some(split) = &mut voters[voter as usize].thresholds.split {
                        split.last = *index;
                    }
                }
            }
        }
        Some(Self { cells, places, splitters })
    }

    /// The cells of one column.
    fn of_column(&self, column: usize) -> &[(u32, u32)] {
        let from = self.cells.partition_point(|cell| (cell.0 as usize) < column);
        let length = self.cells[from..].partition_point(|cell| cell.0 as usize == column);
        &self.cells[from..from + length]
    }
}

/// Whether thresholds that a ballot carried keep the budget and are the ones that their mask is written with.
fn is_sound(carried: &Carried, voter: &Voter, band: &Band, ties: &Ties, budget: u64) -> bool {
    let thresholds = &voter.thresholds;
    let split_columns = thresholds.split.as_ref().map_or(&[][..], |split| &split.columns);
    let mut pruned = band.below();
    for (column, &level) in thresholds.levels.iter().enumerate() {
        let before = band.before(column, level);
        pruned += u64::from(before);
        if split_columns.binary_search(&(column as u32)).is_ok() {
            continue;
        }
        let (from, to) = carried.witnesses(column);
        if from.is_some_and(|from| before == band.before(column, from))
            || to.is_some_and(|to| band.before(column, to) == before)
        {
            return false;
        }
    }
    if let Some(split) = &thresholds.split {
        // each of its columns prunes some and keeps some, and the last one pruned is one of them
        let mut parts = vec![(false, false); split.columns.len()];
        let mut ends_there = false;
        for &(index, cell) in &ties.places {
            let (column, magnitude) = ties.cells[cell as usize];
            if magnitude != split.magnitude {
                continue;
            }
            let Ok(at) = split.columns.binary_search(&column) else { continue };
            if index <= split.last {
                pruned += 1;
                parts[at].0 = true;
            } else {
                parts[at].1 = true;
            }
            ends_there |= index == split.last;
        }
        if !ends_there || parts.iter().any(|(some, rest)| !some || !rest) {
            return false;
        }
    }
    pruned == budget
}

/// Calls `f(level, weights, votes)` for the levels of a column's range that hold weights and that no ballot
/// splits, from the lightest.
#[inline]
fn for_each_step(
    voters: &[Voter],
    band: &Band,
    ties: &Ties,
    column: usize,
    votes: &mut Vec<u32>,
    mut f: impl FnMut(u32, u32, u32) -> bool,
) {
    let (low, sums) = (band.low(column), band.sums(column));
    votes_of_levels(voters, band, column, votes);
    let mut splits = ties.of_column(column);
    for (step, sums) in sums.array_windows::<2>().enumerate() {
        let (level, weights) = (low + step as u32, sums[1] - sums[0]);
        splits = &splits[splits.partition_point(|cell| cell.1 < level)..];
        if splits.first().is_some_and(|cell| cell.1 == level) {
            continue;
        }
        if weights > 0 && !f(level, weights, votes[step + 1]) {
            return;
        }
    }
}

/// Writes at k + 1 the votes of the k-th level of a column's range, splits left out: of the ballots whose thresholds
/// are above it.
#[inline]
fn votes_of_levels(voters: &[Voter], band: &Band, column: usize, votes: &mut Vec<u32>) {
    votes.clear();
    votes.resize(band.sums(column).len(), 0);
    for voter in voters {
        votes[band.step(column, voter.thresholds.levels[column])] += voter.weight;
    }
    let mut sum = 0;
    for votes in votes.iter_mut().rev() {
        sum += *votes;
        *votes = sum;
    }
}

/// How many weights have each number of votes.
enum Tally {
    Table(Vec<u64>),
    List(Vec<(u32, u64)>),
}

impl Tally {
    fn new(total: u32) -> Self {
        if total <= MAX_TABLE { Self::Table(vec![0; total as usize + 1]) } else { Self::List(Vec::new()) }
    }

    #[inline]
    fn add(&mut self, votes: u32, weights: u64) {
        match self {
            Self::Table(table) => table[votes as usize] += weights,
            Self::List(list) => list.push((votes, weights)),
        }
    }

    fn join(self, other: Self) -> Self {
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

    fn threshold(self, budget: u64) -> Option<LayerThreshold> {
        let mut steps: Vec<(u32, u64)> = match self {
            Self::Table(table) => (0..).zip(table).collect(),
            Self::List(list) => list,
        };
        steps.sort_unstable_by_key(|step| std::cmp::Reverse(step.0));
        let mut more = 0;
        for same in steps.chunk_by(|a, b| a.0 == b.0) {
            let weights: u64 = same.iter().map(|step| step.1).sum();
            if more + weights >= budget {
                return Some(LayerThreshold { votes: same[0].0, more, equal: weights });
            }
            more += weights;
        }
        None
    }
}

/// Where the budget runs out; `places` are the votes of the weights that ballots split.
fn threshold_count(all: &LayerVotes, places: &[u32]) -> Option<LayerThreshold> {
    let LayerVotes { voters, band, ties, budget, columns, .. } = all;
    let (total, columns) = (all.total(), *columns);
    let tasks: Vec<usize> = (0..columns).step_by(TASK_COLUMNS).collect();
    let mut tally = tasks
        .into_par_iter()
        .fold(
            || (Tally::new(total), Vec::new()),
            |(mut tally, mut votes), first| {
                for column in first..(first + TASK_COLUMNS).min(columns) {
                    for_each_step(voters, band, ties, column, &mut votes, |_, weights, votes| {
                        tally.add(votes, u64::from(weights));
                        true
                    });
                }
                (tally, votes)
            },
        )
        .map(|(tally, _)| tally)
        .reduce(|| Tally::new(total), Tally::join);
    tally.add(total, band.below());
    places.iter().for_each(|votes| tally.add(*votes, 1));
    tally.threshold(*budget)
}

/// Votes of the ballots whose threshold is above a level.
fn votes_above(voters: &[Voter], column: usize, level: u32) -> u32 {
    voters.iter().filter(|voter| voter.thresholds.levels[column] > level).map(|voter| voter.weight).sum()
}

#[cfg(test)]
mod tests;
