//! Ballots, masks and tallies.

use fedprune_mask::ballot::{BallotHeader, Encoding, Encodings, MaskHeader, VoteHeader, check_budgets};
use fedprune_mask::matrix_mask::mask_root;
use fedprune_mask::tally::{Voter, count_one_by_one, encode_tally};
use fedprune_mask::{
    Ballot, DType, Group, Layout, Matrix, MatrixMask, MatrixSource, NormVector, Pruner, Sparsity, Tally, Tap,
    WeightsView, peek_header,
};

use crate::choices::Choices;
use crate::model::{self, DTYPES, MODEL, Weights};
use crate::mutate::Numbers;

/// What a seed is.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Vote(Encodings),
    Mask,
}

/// A ballot or mask of the model.
pub(crate) fn ballot_of(kind: Kind, dtype: DType, pruner: Pruner, group: Group, text: &str) -> Vec<u8> {
    let header = MODEL.vote(pruner, group);
    let encodings = if let Kind::Vote(encodings) = kind { encodings } else { Encodings::Auto };
    let vote = MODEL.ballot(dtype, &header, text, encodings);
    if matches!(kind, Kind::Vote(_)) {
        return vote;
    }
    let ballot = Ballot::parse(&vote, &MODEL.layout).expect("a sound ballot");
    let masks: Vec<MatrixMask> = masks_of(&ballot, MODEL.weights(dtype)).expect("a sound ballot");
    MODEL.mask(dtype, &header, &masks)
}

fn masks_of(ballot: &Ballot<'_>, weights: &Weights) -> Option<Vec<MatrixMask>> {
    (0..ballot.layout().matrices().len()).map(|index| ballot.mask(index, weights.matrix(index)).ok()).collect()
}

/// A ballot or an explicit mask.
pub fn ballot(bytes: &[u8]) -> bool {
    let header = peek_header(bytes);
    let Ok(ballot) = Ballot::parse(bytes, &MODEL.layout) else { return false };
    assert!(header.is_ok(), "what is read has a header");
    assert_eq!(ballot.encoded_bytes().total(), bytes.len() as u64);
    let mut taken = false;
    for dtype in DTYPES {
        let weights = MODEL.weights(dtype);
        let Some(masks) = masks_of(&ballot, weights) else { continue };
        taken = true;
        for mask in &masks {
            check_budgets(mask, ballot.group(), ballot.sparsity()).expect("a mask that is read keeps its budgets");
        }
        written_again(&ballot, &masks, weights);
    }
    norms_written_again(&ballot);
    taken
}

/// The masks of a ballot, written as an explicit mask, are the same masks; and thresholds have one encoding.
fn written_again(ballot: &Ballot<'_>, masks: &[MatrixMask], weights: &Weights) {
    let (model, layout) = (ballot.model(), MODEL.layout.digest());
    let header = MaskHeader { model, layout, group: ballot.group(), sparsity: ballot.sparsity(), votes: 1 };
    let again = model::explicit(&MODEL.layout, &header, masks, weights);
    let reread = Ballot::parse(&again, &MODEL.layout).expect("what is written is read");
    assert_eq!(masks_of(&reread, weights).as_deref(), Some(masks));
    let taps = 0..MODEL.layout.taps().len();
    let thresholds = |ballot: &Ballot<'_>| taps.clone().all(|tap| ballot.encoding(tap) == Encoding::ColumnThresholds);
    if thresholds(ballot) && thresholds(&reread) {
        let body = |ballot: &Ballot<'_>| ballot.bytes()[ballot.encoded_bytes().header as usize..].to_vec();
        assert_eq!(body(ballot), body(&reread), "thresholds have one encoding");
    }
}

/// Norms have one encoding.
fn norms_written_again(ballot: &Ballot<'_>) {
    let BallotHeader::Vote(header) = ballot.header() else { return };
    let norms: Option<Vec<NormVector>> = (0..MODEL.layout.taps().len()).map(|tap| ballot.norms(tap).cloned()).collect();
    let Some(norms) = norms else { return };
    for dtype in DTYPES {
        let again = model::ballot(&MODEL.layout, header, &norms, Encodings::Auto, MODEL.weights(dtype));
        let reread = Ballot::parse(&again, &MODEL.layout).expect("what is written is read");
        if (0..norms.len()).all(|tap| reread.encoding(tap) == Encoding::Norms) {
            assert_eq!(again, ballot.bytes(), "norms have one encoding");
        }
    }
}

/// A tally of ballots of the model.
pub fn tally(bytes: &[u8]) -> bool {
    let Ok(tally) = Tally::parse(bytes, &MODEL.layout) else { return false };
    let again = model::collect(|sink| {
        encode_tally(&tally, tally.mask_root().expect("a file says it"), sink).expect("nothing fails");
    });
    assert_eq!(again, bytes, "a tally has one encoding");
    let mut taken = false;
    for dtype in DTYPES {
        let weights = MODEL.weights(dtype);
        let mut all = true;
        for index in 0..MODEL.layout.matrices().len() {
            all &= tallied(&tally, index, weights.matrix(index)).is_some();
        }
        taken |= all;
    }
    taken
}

/// The mask of one matrix, by every way there is to it; nothing if a ballot's mask cannot be used.
fn tallied(tally: &Tally<'_>, index: usize, weights: WeightsView<'_>) -> Option<MatrixMask> {
    let masks: Option<Vec<MatrixMask>> =
        tally.voters().iter().map(|voter| voter.ballot.mask(index, weights).ok()).collect();
    let Some(masks) = masks else {
        // what takes a shorter way may not look at the one that is wrong; it may not panic either
        let _ = tally.mask(index, weights);
        let _ = tally.matrix(index, weights);
        return None;
    };
    let votes: Vec<(u32, &MatrixMask)> = tally.voters().iter().map(|voter| voter.weight).zip(&masks).collect();
    let counts = count_one_by_one(&votes);
    assert_eq!(tally.counts(index, weights).expect("masks are sound").to_vec(), counts);
    assert_eq!(tally.counts_by_masks(index, weights).expect("masks are sound").to_vec(), counts);
    let mask = tally.mask(index, weights).expect("masks are sound");
    let (other, other_counts) = tally.matrix(index, weights).expect("masks are sound");
    assert_eq!((&mask, &other_counts.to_vec()), (&other, &counts));
    let agreement = other_counts.agreement();
    assert_eq!(tally.agreement(index, weights).expect("masks are sound"), agreement);
    assert_eq!(tally.mask_and_agreement(index, weights).expect("masks are sound"), (other, agreement));
    let key = |at: usize| std::cmp::Reverse(counts[at]);
    assert_eq!(mask, reference(weights, tally.group(), tally.sparsity(), key), "the rule of the architecture page");
    Some(mask)
}

/// The mask by the rule as it is written: in each pool by key, |W| and flat index.
fn reference<K: Ord>(
    weights: WeightsView<'_>,
    group: Group,
    sparsity: Sparsity,
    key: impl Fn(usize) -> K,
) -> MatrixMask {
    let (rows, columns) = (weights.rows(), weights.columns());
    let mut mask = MatrixMask::kept(rows, columns);
    let sparsity = group.fixed_sparsity().unwrap_or(sparsity);
    for mut pool in pools(group, rows, columns) {
        let budget = sparsity.budget(pool.len() as u64) as usize;
        pool.sort_by_key(|&at| (key(at), weights.magnitude_bits(at / columns, at % columns), at));
        for &at in &pool[..budget] {
            mask.prune(at / columns, at % columns);
        }
    }
    mask
}

fn pools(group: Group, rows: usize, columns: usize) -> Vec<Vec<usize>> {
    let row = |row: usize| row * columns..(row + 1) * columns;
    match group {
        Group::Layer => vec![(0..rows * columns).collect()],
        Group::Row => (0..rows).map(|at| row(at).collect()).collect(),
        Group::Column => (0..columns).map(|column| (0..rows).map(|row| row * columns + column).collect()).collect(),
        Group::NofM { m, .. } => {
            let all: Vec<usize> = (0..rows * columns).collect();
            all.chunks(m as usize).map(<[usize]>::to_vec).collect()
        }
    }
}

/// A layout, weights, norms and a recipe that an input says, as ballots, and as the tally of these.
pub fn round_trip(bytes: &[u8]) -> bool {
    let mut choices = Choices::new(bytes);
    let groups = ["layer", "row", "column", "2:4", "1:2", "4:8", "2:3", "5:6", "1:16"];
    let group: Group = choices.of(&groups).parse().expect("a group");
    let pruner = choices.of(&[Pruner::WANDA, Pruner::MAGNITUDE, Pruner::RIA]);
    let denominator = choices.number() % 1000 + 1;
    let sparsity = Sparsity::new(choices.number() % denominator, denominator).expect("below one");
    let dtype = choices.of(&DTYPES);
    let layout = layout(&mut choices, group);
    let weights = weights(&mut choices, &layout, dtype);
    let header = model::vote(&layout, pruner, group, sparsity);
    let mut ballots = Vec::new();
    for _ in 0..=choices.below(4) {
        let norms = norms(&mut choices, &layout);
        let expected: Vec<MatrixMask> = expected(&layout, &weights, &header, &norms);
        for encodings in [Encodings::Auto, Encodings::MaskOnly] {
            let bytes = model::ballot(&layout, &header, &norms, encodings, &weights);
            let ballot = Ballot::parse(&bytes, &layout).expect("what is written is read");
            for (index, expected) in expected.iter().enumerate() {
                let mask = ballot.mask(index, weights.matrix(index)).expect("what is written is read");
                assert_eq!(mask, *expected, "matrix {index} as {encodings:?}");
            }
            ballots.push((choices.byte() % 3 + 1, bytes));
        }
        let explicit =
            MaskHeader { model: header.model, layout: header.layout, group, sparsity: header.sparsity, votes: 1 };
        let bytes = model::explicit(&layout, &explicit, &expected, &weights);
        let mask = Ballot::parse(&bytes, &layout).expect("what is written is read");
        assert_eq!(masks_of(&mask, &weights), Some(expected));
    }
    let global = if matches!(group, Group::NofM { .. }) { group } else { choices.of(&GLOBAL_GROUPS) };
    tally_round_trip(&layout, &weights, global, &ballots);
    true
}

const GLOBAL_GROUPS: [Group; 3] = [Group::Layer, Group::Row, Group::Column];

fn tally_round_trip(layout: &Layout, weights: &Weights, group: Group, ballots: &[(u8, Vec<u8>)]) {
    let voter = |(number, (weight, bytes)): (usize, &'_ (u8, Vec<u8>))| (number, u32::from(*weight), bytes.clone());
    let voters: Vec<(usize, u32, Vec<u8>)> = ballots.iter().enumerate().map(voter).collect();
    let voters = voters.iter().map(|(number, weight, bytes)| Voter {
        name: format!("member {number}"),
        weight: *weight,
        ballot: Ballot::parse(bytes, layout).expect("what is written is read"),
    });
    let tally = Tally::new(layout, group, voters.collect()).expect("ballots of one recipe");
    let masks: Vec<MatrixMask> = (0..layout.matrices().len())
        .map(|index| tallied(&tally, index, weights.matrix(index)).expect("what is written is read"))
        .collect();
    let root = mask_root(layout.digest(), masks.iter().map(MatrixMask::digest));
    let bytes = model::collect(|sink| {
        encode_tally(&tally, root, sink).expect("nothing fails");
    });
    let again = Tally::parse(&bytes, layout).expect("what is written is read");
    assert_eq!((again.mask_root(), again.total_weight()), (Some(root), tally.total_weight()));
    for (index, mask) in masks.iter().enumerate() {
        assert_eq!(again.mask(index, weights.matrix(index)).as_ref().ok(), Some(mask));
    }
}

/// One or two blocks, each of some taps with one to three matrices.
fn layout(choices: &mut Choices<'_>, group: Group) -> Layout {
    let unit = if let Group::NofM { m, .. } = group { m } else { 1 };
    let mut matrices = Vec::new();
    for block in 0..=choices.below(2) as u32 {
        let taps = choices.byte();
        let all = [Tap::AttentionInput, Tap::AttentionOutput, Tap::MlpInput, Tap::MlpOutput];
        for (number, tap) in all.into_iter().enumerate() {
            // at least one, and it is the last
            if number < 3 && taps >> number & 1 == 0 {
                continue;
            }
            let columns = unit * (1 + choices.below(24) as u32 / unit);
            for matrix in 0..=choices.below(3) {
                let rows = 1 + choices.below(20) as u32;
                matrices.push(Matrix { name: format!("{block}.{number}.{matrix}"), block, tap, rows, columns });
            }
        }
    }
    Layout::new(matrices).expect("a sound layout")
}

/// Weights of any finite values, or of a few.
fn weights(choices: &mut Choices<'_>, layout: &Layout, dtype: DType) -> Weights {
    let mut numbers = Numbers::new(choices.number());
    let style = choices.below(4);
    let few: Vec<u32> = (0..3).map(|_| choices.number() as u32).collect();
    let bytes = layout.matrices().iter().map(|matrix| {
        let weight = |_| {
            let bits = match style {
                0 => numbers.draw(),
                1 => few[numbers.below(few.len())],
                // all of one exponent, either sign
                2 => numbers.draw() & 0x807f_ffff | few[0] & 0x7f80_0000,
                _ => 0,
            };
            model::stored(dtype, bits)
        };
        (0..matrix.weights()).flat_map(weight).collect()
    });
    Weights::new(layout, dtype, bytes.collect())
}

fn norms(choices: &mut Choices<'_>, layout: &Layout) -> Vec<NormVector> {
    let mut numbers = Numbers::new(choices.number());
    let style = choices.below(4);
    let tap = |range: &std::ops::Range<usize>| {
        let sum = |_| match style {
            0 => f64::from(numbers.draw() % 256),
            1 => 2f64.powi(numbers.below(200) as i32 - 100),
            2 => 1.0,
            _ => f64::from(numbers.draw() % 2),
        };
        let columns = layout.matrices()[range.start].columns;
        NormVector::from_sums(&(0..columns).map(sum).collect::<Vec<_>>(), 2).expect("sound sums")
    };
    layout.taps().iter().map(tap).collect()
}

/// The masks by the rules of the pruners; RIA's scores are taken from the kernel one by one.
fn expected(layout: &Layout, weights: &Weights, header: &VoteHeader, norms: &[NormVector]) -> Vec<MatrixMask> {
    let mut masks = Vec::new();
    for (range, norms) in layout.taps().iter().zip(norms) {
        let scales = norms.to_f64();
        for index in range.clone() {
            let view = weights.matrix(index);
            let columns = view.columns();
            let keys = header.pruner.keys(view, norms).expect("as many norms as columns");
            let key = |at: usize| {
                let (row, column) = (at / columns, at % columns);
                let magnitude = f64::from(view.get(row, column).abs());
                match header.pruner {
                    Pruner::WANDA => (magnitude * scales[column]).to_bits(),
                    Pruner::MAGNITUDE => magnitude.to_bits(),
                    _ => keys.key(row, column),
                }
            };
            masks.push(reference(view, header.group, header.sparsity, key));
        }
    }
    masks
}
