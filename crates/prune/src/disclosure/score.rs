//! How good guesses are, for those who know the text: the silo itself.
//!
//! The measure is precision: of the first k guesses, how many are tokens of the text; k is the number of different tokens
//! that the text has, so that whoever knew them all would score all. Beside it, what guessing the commonest tokens of
//! public text scores without any ballot, and how many right guesses such guessing does not have: those are what the ballot
//! gave away.

use std::collections::BTreeSet;

use super::Guess;

/// How often tokens occur in public text.
#[derive(Debug, Clone)]
pub struct Frequencies {
    /// Commonest first; of equal ones the lower id, which a byte-pair tokenizer learned earlier.
    ranking: Vec<u32>,
}

impl Frequencies {
    /// Counts the tokens of public text; tokens that do not occur come last.
    pub fn of(vocabulary: usize, tokens: &[u32]) -> Self {
        let mut counts = vec![0u64; vocabulary];
        for token in tokens {
            if let Some(count) = counts.get_mut(*token as usize) {
                *count += 1;
            }
        }
        let mut ranking: Vec<u32> = (0..vocabulary as u32).collect();
        // a stable sort keeps equal ones by id
        ranking.sort_by_key(|token| std::cmp::Reverse(counts[*token as usize]));
        Self { ranking }
    }

    /// The `most` commonest.
    pub fn first(&self, most: usize) -> &[u32] {
        &self.ranking[..most.min(self.ranking.len())]
    }
}

/// Right guesses among the first k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// Tokens of the text.
    pub tokens: u64,
    /// Different ones: k.
    pub distinct: usize,
    /// Of the attack's first k guesses, those that the text has.
    pub recovered: usize,
    /// Of the k commonest tokens, those that the text has.
    pub baseline: usize,
    /// Of `recovered`, those that are not among the k commonest.
    pub beyond: usize,
}

impl Score {
    /// Compares guesses with the text.
    pub fn of(guesses: &[Guess], text: &[u32], frequencies: &Frequencies) -> Self {
        let mut score = Self::at(guesses, text, frequencies, usize::MAX);
        score.tokens = text.len() as u64;
        score
    }

    /// As [`Score::of`], of the first `most` guesses where the text has more different tokens.
    pub fn at(guesses: &[Guess], text: &[u32], frequencies: &Frequencies, most: usize) -> Self {
        let present: BTreeSet<u32> = text.iter().copied().collect();
        let k = present.len().min(most);
        let common: BTreeSet<u32> = frequencies.first(k).iter().copied().collect();
        let right: Vec<u32> =
            guesses.iter().take(k).map(|guess| guess.token).filter(|token| present.contains(token)).collect();
        Self {
            tokens: text.len() as u64,
            distinct: present.len(),
            recovered: right.len(),
            baseline: common.intersection(&present).count(),
            beyond: right.iter().filter(|token| !common.contains(token)).count(),
        }
    }
}

/// How far norms that were worked out are from those of the text, each relative to itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Apart {
    /// Of half the channels no more than this.
    pub median: f64,
    /// Of none more than this.
    pub largest: f64,
}

impl Apart {
    /// Up to a common factor, which is never told. Nothing where there is no channel to compare.
    pub fn of(worked_out: &[f64], truth: &[f64]) -> Option<Self> {
        let both = worked_out.iter().zip(truth).filter(|(norm, truth)| **norm > 0.0 && **truth > 0.0);
        let ratios: Vec<f64> = both.map(|(norm, truth)| (norm / truth).ln()).collect();
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        let mut apart: Vec<f64> = ratios.iter().map(|ratio| (ratio - mean).abs()).collect();
        apart.sort_by(f64::total_cmp);
        Some(Self { median: *apart.get(apart.len() / 2)?, largest: *apart.last()? })
    }
}
