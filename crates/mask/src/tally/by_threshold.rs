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
//! 6. The thresholds of each column in order, hence the number of votes at which the budget runs out (`ranked.rs`), and the
//!    magnitude.
//! 7. One more read of W compares it with the levels that result.
//!
//! The number of votes at which the budget runs out, v, is known after step 6 from histograms alone. All
//! ballots prune the same number of weights, hence no weight below the band is undecided and none above it
//! is pruned. Anything that does not fit (single precision, a band too wide, ties too many to look up, a ballot that
//! fails its check) is left to the expanded way, which says what is wrong.

mod histogram;
mod ranked;
mod soundness;
mod steps;
mod ties;

use self::histogram::Histogram;
use self::ranked::{Ranked, Votes};
use self::soundness::are_sound;
use self::steps::Steps;
use self::ties::Ties;
use crate::ballot::Carried;
use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::score::Pruner;
use crate::sparsity::Sparsity;
use crate::tally::{Agreement, Counts};
use crate::thresholds::band::{Band, Levels, places_of};
use crate::thresholds::derive::{Sample, Scores, Unplaced, UnplacedSplit, factors};
use crate::thresholds::kernel::{Magnitude, bits_where};
use crate::thresholds::search::search;
use crate::thresholds::{ColumnThresholds, Split, top_level};
use crate::vector::vectorized;
use crate::weights::{DType, WeightsView};
use rayon::prelude::*;

/// Columns that one task looks at.
const TASK_COLUMNS: usize = if cfg!(miri) { 16 } else { 256 };
/// Weights looked up one by one that one task looks at.
const TASK_PLACES: usize = if cfg!(miri) { 1 << 6 } else { 1 << 12 };
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

/// Between which levels of each column one ballot's threshold lies, before W has been read.
enum Limits<'a> {
    Bracket(Scores),
    Carried(&'a Carried),
}

impl Limits<'_> {
    fn bracket(&self) -> Option<&Scores> {
        if let Self::Bracket(scores) = self { Some(scores) } else { None }
    }

    fn carried(&self) -> Option<&Carried> {
        if let Self::Carried(carried) = self { Some(carried) } else { None }
    }
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
        let has_norms = ballots.iter().any(|(_, source)| matches!(source, Source::Norms(..)));
        let sample = has_norms.then(|| Sample::of(weights));
        let limits: Vec<Limits<'_>> = ballots
            .par_iter()
            .map(|&(_, source)| match source {
                Source::Norms(pruner, norms) => {
                    let factors = factors(pruner, norms, columns)?;
                    let scores = Scores::new(factors, weights.dtype(), sample.as_ref()?, budget, pool);
                    Some(Limits::Bracket(scores))
                }
                Source::Carried(carried) => (carried.dtype() == weights.dtype()).then_some(Limits::Carried(carried)),
            })
            .collect::<Option<_>>()?;
        let band = Band::count(weights, range_of(&limits, columns))?;
        let brackets: Vec<&Scores> = limits.iter().filter_map(Limits::bracket).collect();
        let mut found = search(&brackets, &band, budget)?.into_iter();
        let voter = |((weight, _), limits): (&(u32, Source<'_>), &Limits<'_>)| {
            let weight = *weight;
            let Limits::Carried(carried) = limits else {
                let Unplaced { levels, split } = found.next()?;
                let wanted = split.as_ref().map(|split| split.wanted);
                // the end is looked up below
                let split = split.map(|UnplacedSplit { magnitude, columns, .. }| Split { magnitude, last: 0, columns });
                return Some(Voter { weight, thresholds: ColumnThresholds { levels, split }, wanted });
            };
            Some(Voter { weight, thresholds: carried.thresholds.clone(), wanted: None })
        };
        let mut voters: Vec<Voter> = ballots.iter().zip(&limits).map(voter).collect::<Option<_>>()?;
        let ties = Ties::look_up(&mut voters, weights)?;
        let carried: Vec<&Carried> = limits.iter().filter_map(Limits::carried).collect();
        are_sound(&carried, &band, &ties, budget).then_some(Self { voters, band, ties, budget, rows, columns })
    }

    /// The number of votes at which the budget runs out, from thresholds and histograms alone.
    pub fn threshold(&self) -> Option<LayerThreshold> {
        let (_, threshold) = self.votes_and_threshold(&Ranked::new(&self.votes(), &self.band)?)?;
        Some(threshold)
    }

    /// How far the votes agree, from thresholds and histograms alone.
    pub fn agreement(&self) -> Option<Agreement> {
        let (_, histogram) = self.votes_and_histogram(&Ranked::new(&self.votes(), &self.band)?);
        Some(histogram.agreement(self.rows as u64 * self.columns as u64, self.total()))
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
        let steps = Steps::count(&self.votes(), &self.band);
        let (mut low, mut width, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for column in 0..columns {
            low.push(self.band.low(column) as u16);
            width.push(self.band.sums(column).len() as u16 - 1);
            starts.push(self.band.starts()[column] + 1);
        }
        for column in 0..64 {
            // and around again where rows are shorter than a word
            low.push(low[column]);
            width.push(width[column]);
            starts.push(starts[column]);
        }
        let cells = &self.ties.cells;
        let base: Vec<u32> = cells
            .iter()
            .map(|&(column, magnitude)| {
                let column = column as usize;
                steps.votes[self.band.starts()[column] + self.band.step(column, magnitude + 1)]
            })
            .collect();
        let places = self.votes_of_places(&base);
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
                let votes = steps.votes[starts[from + at] + above[at] as usize];
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

    /// Weight and thresholds of each voter.
    fn votes(&self) -> Vec<(u32, &[u32])> {
        self.voters.iter().map(|voter| (voter.weight, voter.thresholds.levels.as_slice())).collect()
    }

    /// Votes of the weights that are looked up one by one; `base` are those of the cells.
    fn votes_of_places(&self, base: &[u32]) -> Vec<u32> {
        let Self { voters, ties, .. } = self;
        let votes = |&(index, cell): &(u64, u32)| {
            let splits = ties.splitters[cell as usize].iter().filter_map(|voter| {
                let voter = &voters[*voter as usize];
                voter.thresholds.split.as_ref().filter(|split| index <= split.last).map(|_| voter.weight)
            });
            base[cell as usize] + splits.sum::<u32>()
        };
        ties.places.par_iter().with_min_len(TASK_PLACES).map(votes).collect()
    }

    /// Votes of the weights that are looked up one by one, and where the budget runs out.
    fn votes_and_threshold(&self, ranked: &Ranked<'_>) -> Option<(Vec<u32>, LayerThreshold)> {
        let (places, histogram) = self.votes_and_histogram(ranked);
        Some((places, histogram.threshold(self.budget)?))
    }

    /// Votes of the weights that are looked up one by one, and how many weights have each number of votes but none.
    fn votes_and_histogram(&self, ranked: &Ranked<'_>) -> (Vec<u32>, Histogram) {
        let Self { ties, band, .. } = self;
        let Votes { mut histogram, cells } = ranked.votes(&ties.cells);
        // weights of cells that ballots split are counted one by one
        for (&(column, magnitude), votes) in ties.cells.iter().zip(&cells) {
            histogram.take(*votes, u64::from(band.weights(column as usize, magnitude)));
        }
        let places = self.votes_of_places(&cells);
        places.iter().for_each(|votes| histogram.add(*votes, 1));
        histogram.add(self.total(), band.below());
        (places, histogram)
    }

    /// The level of each column below which everything is pruned, and flat indices that are pruned besides.
    fn decide(&self, weights: WeightsView<'_>) -> Option<(Vec<u32>, Vec<u64>)> {
        let Self { band, ties, budget, columns, .. } = self;
        let (budget, columns) = (*budget, *columns);
        let votes = self.votes();
        let ranked = Ranked::new(&votes, band)?;
        let (places, LayerThreshold { votes, more, equal }) = self.votes_and_threshold(&ranked)?;
        let wanted = budget - more;
        let saturated = wanted == equal;
        if votes == self.total() && !saturated {
            // more are pruned by everybody than anybody may prune: not the ballots of one budget
            return None;
        }
        // up to before which levels of each column weights have more votes, and as many or more
        let ends = ranked.ends(votes);
        // of those with as many votes, by |W|: the magnitude at which the budget ends
        let (mut magnitude, mut rest, mut all_of_it) = (top_level(weights.dtype()), 0, true);
        let mut with_votes: Vec<(u32, u32, u64)> = Vec::new();
        if !saturated {
            with_votes = (0..columns)
                .into_par_iter()
                .with_min_len(TASK_COLUMNS)
                .flat_map_iter(|column| {
                    let (more, end) = ends[column];
                    (more..end).map(move |level| (level, column as u32, u64::from(band.weights(column, level))))
                })
                .filter(|(level, column, weights)| {
                    *weights > 0 && ties.cells.binary_search(&(*column, *level)).is_err()
                })
                .collect();
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
        // of weights that ballots split, too, those that all of their votes prune
        let past = magnitude.saturating_add(u32::from(all_of_it));
        let levels: Vec<u32> = ends.iter().map(|(more, end)| past.clamp(*more, (*end).max(*more))).collect();
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
fn range_of(limits: &[Limits<'_>], columns: usize) -> Levels {
    let mut range = Levels::new(columns);
    let strips = range.low.par_chunks_mut(TASK_COLUMNS).zip(range.high.par_chunks_mut(TASK_COLUMNS));
    strips.enumerate().for_each(|(task, (low, high))| {
        vectorized(
            #[inline(always)]
            || {
                for limits in limits {
                    match limits {
                        Limits::Bracket(scores) => scores.take_in(task * TASK_COLUMNS, low, high),
                        Limits::Carried(carried) => carried.take_in(task * TASK_COLUMNS, low, high),
                    }
                }
            },
        );
    });
    for carried in limits.iter().filter_map(Limits::carried) {
        for &column in carried.thresholds.split.iter().flat_map(|split| &split.columns) {
            let level = carried.thresholds.levels[column as usize];
            range.take_in(column as usize, level, level + 1);
        }
    }
    range
}

#[cfg(test)]
mod tests;
