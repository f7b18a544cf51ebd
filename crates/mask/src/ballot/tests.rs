//! Ballots and masks as a whole: round trips, pinned bytes, and what is refused.

use std::convert::Infallible;

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::layout::{Matrix, Tap};
use crate::score::Pruner;
use crate::weights::{DType, MatrixSource};

/// bf16 weights of a layout, in memory.
struct Weights {
    layout: Layout,
    bytes: Vec<Vec<u8>>,
}

impl MatrixSource for Weights {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.layout.matrices()[index];
        WeightsView::new(DType::BF16, matrix.rows as usize, matrix.columns as usize, &self.bytes[index]).unwrap()
    }
}

struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn unit(&mut self) -> f64 {
        self.next() as f64 / f64::from(1u32 << 31)
    }
}

/// Two blocks; the last tap feeds a matrix of two rows, so small that bits beat norms.
fn layout() -> Layout {
    let matrix =
        |name: &str, block, tap, rows, columns| Matrix { name: format!("{block}.{name}"), block, tap, rows, columns };
    let block = |block, down_rows| {
        [
            matrix("q", block, Tap::AttentionInput, 24, 40),
            matrix("k", block, Tap::AttentionInput, 8, 40),
            matrix("o", block, Tap::AttentionOutput, 40, 24),
            matrix("gate", block, Tap::MlpInput, 45, 40),
            matrix("down", block, Tap::MlpOutput, down_rows, 48),
        ]
    };
    Layout::new([block(0, 33), block(1, 2)].concat()).unwrap()
}

fn weights() -> Weights {
    let layout = layout();
    let mut noise = Noise(11);
    let bytes = layout
        .matrices()
        .iter()
        .map(|matrix| (0..matrix.weights()).flat_map(|_| bf16::from_f64(noise.unit() - 0.5).to_le_bytes()).collect());
    Weights { bytes: bytes.collect(), layout }
}

fn norms(layout: &Layout) -> Vec<NormVector> {
    let mut noise = Noise(7);
    let vector = |range: &std::ops::Range<usize>| {
        let sums: Vec<f64> = (0..layout.matrices()[range.start].columns)
            .map(|channel| if channel == 5 { 0.0 } else { noise.unit() + 0.1 })
            .collect();
        NormVector::from_sums(&sums, 2).unwrap()
    };
    layout.taps().iter().map(vector).collect()
}

fn vote(layout: &Layout, pruner: Pruner, group: &str) -> VoteHeader {
    let group: Group = group.parse().unwrap();
    VoteHeader {
        model: Digest::of(b"model"),
        layout: layout.digest(),
        pruner,
        group,
        sparsity: group.fixed_sparsity().unwrap_or("0.57".parse().unwrap()),
        samples: 2,
        sequence_tokens: 512,
    }
}

fn written(header: &VoteHeader, weights: &Weights, encodings: Encodings) -> (Vec<u8>, EncodedBytes) {
    let mut bytes = Vec::new();
    let encoded = encode_ballot::<Infallible>(
        header,
        &weights.layout,
        &norms(&weights.layout),
        encodings,
        weights,
        &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        },
    )
    .unwrap();
    (bytes, encoded)
}

fn ballot_bytes(encodings: Encodings) -> (Weights, Vec<u8>) {
    let weights = weights();
    let bytes = written(&vote(&weights.layout, Pruner::WANDA, "row"), &weights, encodings).0;
    (weights, bytes)
}

fn explicit_mask(weights: &Weights, group: Group, sparsity: Sparsity) -> Result<Vec<u8>, EncodeError<BallotError>> {
    let (_, ballot) = ballot_bytes(Encodings::Auto);
    let ballot = Ballot::parse(&ballot, &weights.layout).unwrap();
    let header = MaskHeader { model: ballot.model(), layout: weights.layout.digest(), group, sparsity, votes: 1 };
    let mut bytes = Vec::new();
    encode_mask(&header, &weights.layout, &mut |index| ballot.mask(index, weights.matrix(index)), &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })?;
    Ok(bytes)
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn every_pruner_and_group_decodes_to_the_mask_it_was_made_from() {
    let weights = weights();
    let norms = norms(&weights.layout);
    for pruner in [Pruner::WANDA, Pruner::MAGNITUDE, Pruner::RIA] {
        for group in ["layer", "row", "column", "2:4", "4:8"] {
            let header = vote(&weights.layout, pruner, group);
            for encodings in [Encodings::Auto, Encodings::MaskOnly] {
                let (bytes, encoded) = written(&header, &weights, encodings);
                assert_eq!(encoded.total(), bytes.len() as u64);
                let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
                assert_eq!(ballot.encoded_bytes(), encoded);
                assert_eq!(ballot.header(), &BallotHeader::Vote(header.clone()));
                assert_eq!(peek_header(&bytes).unwrap(), Header::Vote(header.clone()));
                assert_eq!(ballot.digest(), Digest::of(&bytes));
                for (tap, range) in weights.layout.taps().iter().enumerate() {
                    for index in range.clone() {
                        let view = weights.matrix(index);
                        let expected = derive_mask(pruner, header.group, header.sparsity, view, &norms[tap]).unwrap();
                        assert_eq!(ballot.mask(index, view).unwrap(), expected, "{pruner} {group} matrix {index}");
                    }
                    let revealed = encodings == Encodings::Auto
                        && pruner != Pruner::MAGNITUDE
                        && ballot.encoding(tap) == Encoding::Norms;
                    assert_eq!(ballot.norms(tap), revealed.then_some(&norms[tap]));
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn the_smallest_encoding_wins() {
    let weights = weights();
    let (bytes, encoded) = written(&vote(&weights.layout, Pruner::WANDA, "row"), &weights, Encodings::Auto);
    let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
    let encodings: Vec<Encoding> = (0..8).map(|tap| ballot.encoding(tap)).collect();
    assert_eq!(encodings[..7], [Encoding::Norms; 7]);
    assert_eq!(encodings[7], Encoding::Bitmap, "two rows of 48");
    assert_eq!(encoded.bitmaps, 9 + 12);

    let data_free = vote(&weights.layout, Pruner::MAGNITUDE, "row");
    let (_, encoded) = written(&data_free, &weights, Encodings::Auto);
    assert_eq!((encoded.norms, encoded.bitmaps), (0, 0), "a function of the weights alone");
}

/// A tap without norms is pruned by magnitude whatever the pruner, and the ballot says so by its mask.
#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn a_tap_without_norms_is_carried_as_its_magnitude_mask() {
    let weights = weights();
    for pruner in [Pruner::WANDA, Pruner::RIA] {
        for (group, encodings) in [("row", Encodings::Auto), ("layer", Encodings::Auto), ("2:4", Encodings::MaskOnly)] {
            let header = vote(&weights.layout, pruner, group);
            let mut norms = norms(&weights.layout);
            norms[0] = NormVector::default();
            let mut bytes = Vec::new();
            let mut sink = |part: &[u8]| {
                bytes.extend_from_slice(part);
                Ok::<_, Infallible>(())
            };
            let written = encode_ballot(&header, &weights.layout, &norms, encodings, &weights, &mut sink).unwrap();
            let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
            assert_eq!(ballot.encoded_bytes(), written);
            assert_ne!(ballot.encoding(0), Encoding::Norms, "{pruner} {group}");
            for index in 0..2 {
                let view = weights.matrix(index);
                let by_magnitude =
                    derive_mask(Pruner::MAGNITUDE, header.group, header.sparsity, view, &NormVector::default())
                        .unwrap();
                assert_eq!(ballot.mask(index, view).unwrap(), by_magnitude, "{pruner} {group}");
            }
            let by_norms = derive_mask(pruner, header.group, header.sparsity, weights.matrix(2), &norms[1]).unwrap();
            assert_eq!(ballot.mask(2, weights.matrix(2)).unwrap(), by_norms);
        }
    }
}

/// The wire, pinned: what a peer with the same inputs must write, byte for byte.
#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn bytes_are_pinned() {
    let weights = weights();
    let header = vote(&weights.layout, Pruner::WANDA, "2:4");
    let (bytes, encoded) = written(&header, &weights, Encodings::Auto);
    assert_eq!(&bytes[..15], b"fedprune\x01\x00\x01\x5d\x00\x00\x00");
    assert_eq!(encoded.header, 15 + 93 + 8);
    assert_eq!(bytes[108..116], [1, 1, 1, 1, 1, 1, 1, 2]);
    assert_eq!(encoded.bitmaps, 9 + 12, "stored as it is: no zstd in what is pinned");
    assert_eq!(
        Digest::of(&bytes[..116]).to_string(),
        "4ea6f9f4303f518548b5c069a4d57dd92b8fe18592ac9895ef0175f9ef6a19ad"
    );
    assert_eq!(Digest::of(&bytes).to_string(), "307c30cbd20a76fcccc12c06c06802991aac66d800b0719d5b209722ca74ca9f");
    assert_eq!(Ballot::parse(&bytes, &weights.layout).unwrap().encoded_bytes(), encoded);

    let mask = explicit_mask(&weights, Group::Row, "0.57".parse().unwrap()).unwrap();
    assert_eq!(&mask[..15], b"fedprune\x01\x00\x02\x50\x00\x00\x00");
    let stored: u64 = weights.layout.matrices().iter().map(|matrix| 9 + matrix.packed_bytes()).sum();
    assert_eq!(mask.len() as u64, 15 + 80 + 8 + stored, "stored as it is: no zstd in what is pinned");
    assert_eq!(Digest::of(&mask).to_string(), "bb3454fbbc81d62621fb0662a404f089690bf5a6a18088952f2c62bcea5f7e42");
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn explicit_masks_round_trip_and_keep_their_budgets() {
    let (weights, bytes) = ballot_bytes(Encodings::Auto);
    let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
    let file = explicit_mask(&weights, Group::Row, ballot.sparsity()).unwrap();
    let mask = Ballot::parse(&file, &weights.layout).unwrap();
    assert_eq!((mask.votes(), mask.group(), mask.sparsity()), (1, Group::Row, ballot.sparsity()));
    for index in 0..weights.layout.matrices().len() {
        let view = weights.matrix(index);
        assert_eq!(mask.mask(index, view).unwrap(), ballot.mask(index, view).unwrap());
    }
    // the same bits under a header that promises something else
    for (group, sparsity) in [("row", "0.5"), ("column", "0.57"), ("2:4", "0.5")] {
        let error = explicit_mask(&weights, group.parse().unwrap(), sparsity.parse().unwrap()).unwrap_err();
        assert!(
            matches!(&error, EncodeError::Ballot(BallotError::Budget { matrix, .. }) if matrix == "0.q"),
            "{error}"
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn a_bitmap_that_breaks_a_budget_is_refused_by_name() {
    let (weights, mut bytes) = ballot_bytes(Encodings::MaskOnly);
    let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
    assert!(ballot.mask(9, weights.matrix(9)).is_ok());
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
    let error = ballot.mask(9, weights.matrix(9)).unwrap_err();
    assert!(error.to_string().contains("`1.down`"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("prunes 27 weights of pool 1"), "{source}");
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn refusals_say_what_is_wrong_and_what_to_do() {
    let (weights, bytes) = ballot_bytes(Encodings::Auto);
    let parse = |bytes: &[u8]| Ballot::parse(bytes, &weights.layout).unwrap_err().to_string();
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    assert!(parse(b"GGUF").contains("no fedprune file"));
    assert!(parse(b"").contains("no fedprune file"));
    assert!(parse(&with(8, 2)).contains("version 2"));
    assert!(parse(&with(10, 9)).contains("unknown kind, 9"));
    assert!(parse(&with(14, 0xff)).contains("header is damaged"));
    assert!(parse(&[bytes.as_slice(), b"x"].concat()).contains("1 bytes follow its end"));
    let other = Layout::new(layout().matrices()[..5].to_vec()).unwrap();
    let error = Ballot::parse(&bytes, &other).unwrap_err().to_string();
    for part in ["made for another model", &other.digest().short(), &weights.layout.digest().short()] {
        assert!(error.contains(part), "{error}");
    }
    let view = weights.matrix(1);
    let error = Ballot::parse(&bytes, &weights.layout).unwrap().mask(0, view).unwrap_err().to_string();
    assert!(error.contains("`0.q` has the shape (24, 40)"), "{error}");
    // an n:m group whose header contradicts itself
    let mut header = vote(&weights.layout, Pruner::WANDA, "2:4");
    header.sparsity = "0.6".parse().unwrap();
    assert!(matches!(peek_header(&Header::Vote(header).to_bytes()), Err(BallotError::Sparsity(_))));
    // one that does not fit the layout, and an encoding that a mask does not have
    let odd = vote(&weights.layout, Pruner::WANDA, "3:7");
    assert!(matches!(Ballot::parse(&Header::Vote(odd).to_bytes(), &weights.layout), Err(BallotError::Layout(_))));
    let mut mask = explicit_mask(&weights, Group::Row, "0.57".parse().unwrap()).unwrap();
    mask[15 + 80] = Encoding::Norms as u8;
    assert!(parse(&mask).contains("which a mask does not have"));
    assert!(parse(&with(15 + 85, 3)).contains("the encoding 3, which a ballot does not have"));
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn the_writer_refuses_what_does_not_fit() {
    let weights = weights();
    let norms = norms(&weights.layout);
    let write = |header: &VoteHeader, norms: &[NormVector]| {
        let mut sink = |_: &[u8]| Ok::<(), Infallible>(());
        encode_ballot(header, &weights.layout, norms, Encodings::Auto, &weights, &mut sink)
    };
    let header = vote(&weights.layout, Pruner::WANDA, "row");
    assert!(write(&header, &norms).is_ok());
    assert!(matches!(write(&header, &norms[1..]), Err(EncodeError::Ballot(BallotError::NormCount { .. }))));
    let mut swapped = norms.clone();
    swapped.swap(0, 1);
    assert!(matches!(write(&header, &swapped), Err(EncodeError::Ballot(BallotError::Derive { .. }))));
    let other = VoteHeader { layout: Digest::of(b"other"), ..header.clone() };
    assert!(matches!(write(&other, &norms), Err(EncodeError::Ballot(BallotError::OtherLayout { .. }))));
    let data_free = vote(&weights.layout, Pruner::MAGNITUDE, "row");
    assert!(write(&data_free, &[]).is_ok());
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn the_sinks_error_comes_back() {
    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("disk full")]
    struct Full;
    let weights = weights();
    let mut left = 2;
    let result = encode_ballot(
        &vote(&weights.layout, Pruner::WANDA, "row"),
        &weights.layout,
        &norms(&weights.layout),
        Encodings::MaskOnly,
        &weights,
        &mut |_| {
            left -= 1;
            if left == 0 { Err(Full) } else { Ok(()) }
        },
    );
    assert!(matches!(result, Err(EncodeError::Caller(Full))));
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn truncated_anywhere_is_refused() {
    for encodings in [Encodings::Auto, Encodings::MaskOnly] {
        let (weights, bytes) = ballot_bytes(encodings);
        for length in 0..bytes.len() {
            assert!(Ballot::parse(&bytes[..length], &weights.layout).is_err(), "{length} of {}", bytes.len());
        }
    }
}

proptest! {
    /// Whatever is changed, reading ends in an error or in masks that keep their budgets.
    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn damaged_ballots_never_panic(
        mask_only in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (weights, mut bytes) = ballot_bytes(if mask_only { Encodings::MaskOnly } else { Encodings::Auto });
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = peek_header(&bytes);
        if let Ok(ballot) = Ballot::parse(&bytes, &weights.layout) {
            for index in 0..weights.layout.matrices().len() {
                if let Ok(mask) = ballot.mask(index, weights.matrix(index)) {
                    prop_assert_eq!(check_budgets(&mask, ballot.group(), ballot.sparsity()), Ok(()));
                }
            }
        }
    }
}

fn thresholds_bytes(weights: &Weights) -> (Vec<u8>, EncodedBytes) {
    written(&vote(&weights.layout, Pruner::WANDA, "layer"), weights, Encodings::MaskOnly)
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn layer_masks_travel_as_thresholds_and_their_bytes_are_pinned() {
    let weights = weights();
    let (bytes, encoded) = thresholds_bytes(&weights);
    let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
    assert_eq!((0..8).filter(|tap| ballot.encoding(*tap) == Encoding::ColumnThresholds).count(), 7);
    assert_eq!(ballot.encoding(7), Encoding::Bitmap, "two rows of 48");
    assert_eq!((encoded.norms, encoded.bitmaps), (0, 9 + 12));
    assert_eq!(Digest::of(&bytes).to_string(), "d1ea49a8045d45e3959a13a4feb92cc5b9202e8950431b32e2334b70482f9233");
}

/// Two silos whose norms differ and whose masks do not.
#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn thresholds_are_a_function_of_the_mask() {
    let weights = weights();
    let header = vote(&weights.layout, Pruner::WANDA, "layer");
    let with_norms = |norms: &[NormVector]| {
        let mut bytes = Vec::new();
        encode_ballot::<Infallible>(&header, &weights.layout, norms, Encodings::MaskOnly, &weights, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        bytes
    };
    let masks_of = |bytes: &[u8]| -> Vec<MatrixMask> {
        let ballot = Ballot::parse(bytes, &weights.layout).unwrap();
        (0..weights.layout.matrices().len()).map(|at| ballot.mask(at, weights.matrix(at)).unwrap()).collect()
    };
    let norms = norms(&weights.layout);
    let collected = with_norms(&norms);
    let (mut same, mut different) = (0, 0);
    for channel in 0..norms[0].len() {
        let mut bits = norms[0].bits().to_vec();
        bits[channel] ^= 1;
        let Ok(nudged) = NormVector::from_canonical_bits(bits) else { continue };
        let others = with_norms(&[&[nudged], &norms[1..]].concat());
        let equal = masks_of(&others) == masks_of(&collected);
        assert_eq!(others == collected, equal);
        same += usize::from(equal);
        different += usize::from(!equal);
    }
    assert!(same > 0 && different > 0, "{same} {different}");
    // an explicit mask of the same bits has the same section
    let ballot = Ballot::parse(&collected, &weights.layout).unwrap();
    let (header, mut file) = (
        MaskHeader {
            model: ballot.model(),
            layout: weights.layout.digest(),
            group: Group::Layer,
            sparsity: ballot.sparsity(),
            votes: 1,
        },
        Vec::new(),
    );
    let mut masks = |index: usize| ballot.mask(index, weights.matrix(index));
    let encoded = encode_mask_smallest(&header, &weights.layout, &mut masks, &weights, &mut |part| {
        file.extend_from_slice(part);
        Ok(())
    })
    .unwrap();
    assert_eq!(encoded.thresholds, ballot.encoded_bytes().thresholds);
    let body = (encoded.thresholds + encoded.bitmaps) as usize;
    assert_eq!(file[file.len() - body..], collected[collected.len() - body..]);
    let mask = Ballot::parse(&file, &weights.layout).unwrap();
    for index in 0..weights.layout.matrices().len() {
        assert_eq!(
            mask.mask(index, weights.matrix(index)).unwrap(),
            ballot.mask(index, weights.matrix(index)).unwrap()
        );
    }
    // a mask that is none falls back to bits
    let by_row = vote(&weights.layout, Pruner::WANDA, "row");
    let (bytes, _) = written(&by_row, &weights, Encodings::Auto);
    let by_row = Ballot::parse(&bytes, &weights.layout).unwrap();
    let header = MaskHeader { group: Group::Row, ..header };
    let mut masks = |index: usize| by_row.mask(index, weights.matrix(index));
    let encoded =
        encode_mask_smallest::<BallotError>(&header, &weights.layout, &mut masks, &weights, &mut |_| Ok(())).unwrap();
    assert_eq!(encoded.thresholds, 0);
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn thresholds_that_say_no_mask_of_the_header_are_refused() {
    let weights = weights();
    let (bytes, encoded) = thresholds_bytes(&weights);
    // of a header that prunes a little more
    let mut header = vote(&weights.layout, Pruner::WANDA, "layer");
    header.sparsity = "0.58".parse().unwrap();
    let mut other = Header::Vote(header).to_bytes();
    other.extend(&bytes[other.len()..]);
    let ballot = Ballot::parse(&other, &weights.layout).unwrap();
    let error = ballot.mask(0, weights.matrix(0)).unwrap_err();
    assert!(matches!(error, BallotError::Budget { .. }), "{error}");
    // of a group that has none
    let mut row = Header::Vote(vote(&weights.layout, Pruner::WANDA, "row")).to_bytes();
    row.extend(&bytes[row.len()..]);
    let error = Ballot::parse(&row, &weights.layout).unwrap_err().to_string();
    assert!(error.contains("have the encoding 3"), "{error}");
    // of weights in another format
    let ballot = Ballot::parse(&bytes, &weights.layout).unwrap();
    let view = weights.matrix(0);
    let halves = WeightsView::new(DType::F16, view.rows(), view.columns(), view.bytes()).unwrap();
    let error = ballot.mask(0, halves).unwrap_err().to_string();
    assert!(error.contains("`0.q`") && error.contains("another format"), "{error}");
    // longer than it is
    let at = encoded.header as usize;
    let mut longer = bytes.clone();
    let length = u32::from_le_bytes(longer[at..at + 4].try_into().unwrap());
    longer[at..at + 4].copy_from_slice(&(length + 1).to_le_bytes());
    longer.insert(at + 4 + length as usize, 7);
    let error = Ballot::parse(&longer, &weights.layout).unwrap_err().to_string();
    assert!(error.contains("column thresholds are damaged"), "{error}");
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn truncated_thresholds_are_refused() {
    let weights = weights();
    let (bytes, _) = thresholds_bytes(&weights);
    for length in 0..bytes.len() {
        assert!(Ballot::parse(&bytes[..length], &weights.layout).is_err(), "{length} of {}", bytes.len());
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn damaged_thresholds_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let weights = weights();
        let (mut bytes, _) = thresholds_bytes(&weights);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(ballot) = Ballot::parse(&bytes, &weights.layout) {
            for index in 0..weights.layout.matrices().len() {
                if let Ok(mask) = ballot.mask(index, weights.matrix(index)) {
                    prop_assert_eq!(check_budgets(&mask, ballot.group(), ballot.sparsity()), Ok(()));
                }
            }
        }
    }
}
