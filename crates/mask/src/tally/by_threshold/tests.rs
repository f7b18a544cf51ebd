use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::ballot::{Ballot, Encodings, VoteHeader, encode_ballot, peek_header};
use crate::layout::{Layout, Matrix, Tap};
use crate::tally::{Tally, Voter, count_one_by_one, global_mask};
use crate::thresholds::tests::{DTYPES, Noise, norms, stored};
use crate::weights::MatrixSource;
use crate::{Digest, Group};

struct Weights {
    layout: Layout,
    dtype: DType,
    bytes: Vec<Vec<u8>>,
}

impl MatrixSource for Weights {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.layout.matrices()[index];
        WeightsView::new(self.dtype, matrix.rows as usize, matrix.columns as usize, &self.bytes[index]).unwrap()
    }
}

/// How alike ballots are, and how their ties are.
#[derive(Debug, Clone)]
struct Case {
    rows: u32,
    columns: u32,
    dtype: DType,
    levels: u64,
    values: u64,
    numerator: u64,
    pruner: Pruner,
    /// Weight, whether it carries its mask only, and which of a few norm vectors is its own.
    voters: Vec<(u32, bool, u64)>,
    seed: u64,
    /// Norms of silos have nothing to do with each other.
    spread: bool,
}

/// Norms of silos that differ by up to a third; one channel is dead in all.
fn alike(columns: usize, values: u64, own: u64) -> NormVector {
    let (mut common, mut differing) = (Noise(77), Noise(own * 1009 + 5));
    let sums: Vec<f64> = (0..columns)
        .map(|column| {
            let shared = 1.0 + common.below(1 << (2 * values)) as f64;
            let own = 1.0 + differing.below(1 << values) as f64 / f64::from(1u32 << values);
            if column == 11 { 0.0 } else { shared * own }
        })
        .collect();
    NormVector::from_sums(&sums, 1).unwrap()
}

impl Case {
    fn weights(&self) -> Weights {
        let matrix =
            |name: &str, rows| Matrix { name: name.into(), block: 0, tap: Tap::MlpInput, rows, columns: self.columns };
        let layout = Layout::new(vec![matrix("gate", self.rows), matrix("up", self.rows.div_ceil(2))]).unwrap();
        let mut noise = Noise(self.seed);
        let bytes = layout
            .matrices()
            .iter()
            .map(|matrix| stored(self.dtype, matrix.weights() as usize, self.levels, &mut noise));
        Weights { bytes: bytes.collect(), layout, dtype: self.dtype }
    }

    fn sparsity(&self) -> Sparsity {
        Sparsity::new(self.numerator, 100).unwrap()
    }

    fn ballots(&self, weights: &Weights) -> Vec<Vec<u8>> {
        let header = VoteHeader {
            model: Digest::of(b"model"),
            layout: weights.layout.digest(),
            pruner: self.pruner,
            group: Group::Layer,
            sparsity: self.sparsity(),
            samples: 1,
            sequence_tokens: 1,
        };
        let ballot = |(_, mask_only, own): &(u32, bool, u64)| {
            let norms = [match self.spread {
                true => norms(self.columns as usize, self.values, &mut Noise(self.seed ^ (own + 1))),
                false => alike(self.columns as usize, self.values, *own),
            }];
            let encodings = if *mask_only { Encodings::MaskOnly } else { Encodings::Auto };
            let mut bytes = Vec::new();
            encode_ballot::<Infallible>(&header, &weights.layout, &norms, encodings, weights, &mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
            bytes
        };
        self.voters.iter().map(ballot).collect()
    }

    /// Compares with counting masks one by one; how many matrices were decided by thresholds.
    fn check(&self) -> usize {
        let weights = self.weights();
        let bytes = self.ballots(&weights);
        let ballots: Vec<Ballot<'_>> =
            bytes.iter().map(|bytes| Ballot::parse(bytes, &weights.layout).unwrap()).collect();
        let voters = (0..).zip(&ballots).zip(&self.voters).map(|((number, ballot), (weight, ..))| Voter {
            name: format!("{number:04}"),
            weight: *weight,
            ballot: ballot.clone(),
        });
        let tally = Tally::new(&weights.layout, Group::Layer, voters.collect()).unwrap();
        let mut by_threshold = 0;
        for index in 0..2 {
            let view = weights.matrix(index);
            let masks: Vec<MatrixMask> = ballots.iter().map(|ballot| ballot.mask(index, view).unwrap()).collect();
            let votes: Vec<(u32, &MatrixMask)> = self.voters.iter().map(|voter| voter.0).zip(&masks).collect();
            let mut counts = Counts::new(view.rows(), view.columns(), tally.total_weight());
            votes.iter().for_each(|(weight, mask)| counts.add(*weight, &[mask]).unwrap());
            assert_eq!(counts.to_vec(), count_one_by_one(&votes));
            let expected = global_mask(view, &counts, Group::Layer, self.sparsity());
            assert_eq!(tally.mask(index, view).unwrap(), expected, "{index}");
            assert_eq!(tally.matrix(index, view).unwrap(), (expected.clone(), counts.clone()));
            assert_eq!(tally.counts(index, view).unwrap(), counts);
            assert_eq!(tally.counts_by_masks(index, view).unwrap(), counts);
            assert_eq!(tally.agreement(index, view).unwrap(), counts.agreement());
            assert_eq!(tally.mask_and_agreement(index, view).unwrap(), (expected.clone(), counts.agreement()));
            let sources: Option<Vec<(u32, Source<'_>)>> = votes
                .iter()
                .zip(&ballots)
                .map(|((weight, _), ballot)| Some((*weight, ballot.prefix_source(index)?)))
                .collect();
            if let Some(mask) = sources.and_then(|sources| LayerVotes::new(&sources, self.sparsity(), view)?.mask(view))
            {
                assert_eq!(mask, expected, "{index}");
                by_threshold += 1;
            }
        }
        by_threshold
    }
}

fn voters() -> impl Strategy<Value = Vec<(u32, bool, u64)>> {
    let weight = prop_oneof![4 => Just(1u32), 1 => 1u32..6, 1 => 1u32..100_000_000];
    proptest::collection::vec((weight, any::<bool>(), 0u64..6), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 300 }))]

    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn equals_counting_masks(
        rows in 1u32..40, columns in 1u32..80, dtype in 0usize..3,
        levels in prop_oneof![1u64..12, 12u64..200, Just(100_000u64)], values in 1u64..5, numerator in 0u64..100,
        magnitude in prop::bool::weighted(0.1), voters in voters(), seed in any::<u64>(),
    ) {
        let pruner = if magnitude { Pruner::MAGNITUDE } else { Pruner::WANDA };
        Case { rows, columns, dtype: DTYPES[dtype], levels, values, numerator, pruner, voters, seed, spread: true }.check();
    }
}

/// Large enough for the sample; the way by thresholds is taken.
#[test]
#[cfg_attr(miri, ignore = "too long there")]
fn large_matrices_are_decided_by_thresholds() {
    let voters: Vec<(u32, bool, u64)> =
        (0..9).map(|at| (1 + (at == 4) as u32 * 70_000, at % 3 == 0, at as u64)).collect();
    for (levels, values, numerator) in [(100_000, 4, 50), (500, 3, 50), (100_000, 4, 70), (40, 4, 50)] {
        for dtype in [DType::BF16, DType::F16] {
            let case = Case {
                rows: 300,
                columns: 280,
                dtype,
                levels,
                values,
                numerator,
                pruner: Pruner::WANDA,
                voters: voters.clone(),
                seed: 5,
                spread: false,
            };
            assert_eq!(case.check(), 2, "{case:?}");
        }
    }
}

/// A ballot that a silo made up: the thresholds of another sparsity.
#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn unsound_thresholds_are_refused_by_name() {
    let case = Case {
        rows: 60,
        columns: 70,
        dtype: DType::BF16,
        levels: 1000,
        values: 4,
        numerator: 50,
        pruner: Pruner::WANDA,
        voters: vec![(1, false, 1), (1, true, 2), (1, false, 3)],
        seed: 3,
        spread: false,
    };
    let weights = case.weights();
    let mut bytes = case.ballots(&weights);
    // the header of one sparsity, the thresholds of another
    let other = Case { numerator: 51, ..case.clone() }.ballots(&weights);
    let head = peek_header(&bytes[1]).unwrap().to_bytes();
    bytes[1] = [head.as_slice(), &other[1][head.len()..]].concat();
    let mut voters = Vec::new();
    for (name, bytes) in ["ann", "bob", "carol"].into_iter().zip(&bytes) {
        voters.push(Voter { name: name.into(), weight: 1, ballot: Ballot::parse(bytes, &weights.layout).unwrap() });
    }
    let sources: Vec<(u32, Source<'_>)> =
        voters.iter().map(|voter| (1, voter.ballot.prefix_source(0).unwrap())).collect();
    assert!(LayerVotes::new(&sources, case.sparsity(), weights.matrix(0)).is_none());
    let tally = Tally::new(&weights.layout, Group::Layer, voters.clone()).unwrap();
    let error = tally.mask(0, weights.matrix(0)).unwrap_err();
    assert!(error.to_string().contains("`bob`"), "{error}");
}
