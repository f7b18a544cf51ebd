//! Tallies as a whole: round trips, pinned bytes, and what is refused.

use std::convert::Infallible;

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::ballot::{Ballot, Encodings, Header, MaskHeader, VoteHeader, encode_ballot, encode_mask};
use crate::layout::{Layout, Matrix, Tap};
use crate::matrix_mask::mask_root;
use crate::weights::{DType, MatrixSource, WeightsView};
use crate::{Digest, Group, MatrixMask, NormVector, Pruner, Sparsity};

/// Name, weight and ballot.
type Cast = (&'static str, u32, Vec<u8>);

struct Weights(Layout, Vec<Vec<u8>>);

impl MatrixSource for Weights {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.0.matrices()[index];
        WeightsView::new(DType::BF16, matrix.rows as usize, matrix.columns as usize, &self.1[index]).unwrap()
    }
}

fn noise(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) as f64 / f64::from(1u32 << 31)
}

fn weights() -> Weights {
    let matrix = |name: &str, tap, rows, columns| Matrix { name: name.to_owned(), block: 0, tap, rows, columns };
    let layout = Layout::new(vec![
        matrix("gate", Tap::MlpInput, 30, 24),
        matrix("up", Tap::MlpInput, 31, 24),
        matrix("down", Tap::MlpOutput, 24, 32),
    ])
    .unwrap();
    let mut state = 3;
    let bytes = layout.matrices().iter().map(|matrix| {
        (0..matrix.weights()).flat_map(|_| bf16::from_f64(noise(&mut state) - 0.5).to_le_bytes()).collect()
    });
    Weights(layout.clone(), bytes.collect())
}

fn header(weights: &Weights, group: &str) -> VoteHeader {
    let group: Group = group.parse().unwrap();
    VoteHeader {
        model: Digest::of(b"model"),
        layout: weights.0.digest(),
        pruner: Pruner::WANDA,
        group,
        sparsity: group.fixed_sparsity().unwrap_or("0.5".parse().unwrap()),
        samples: 2,
        sequence_tokens: 64,
    }
}

fn ballot(weights: &Weights, header: &VoteHeader, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let norms: Vec<NormVector> = [24, 32]
        .map(|width| {
            let sums: Vec<f64> = (0..width).map(|_| noise(&mut state) + 0.01).collect();
            NormVector::from_sums(&sums, 2).unwrap()
        })
        .into();
    collect(|sink| encode_ballot(header, &weights.0, &norms, Encodings::Auto, weights, sink).map(drop).unwrap())
}

fn collect(write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Infallible>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    bytes
}

fn voters<'a>(layout: &'a Layout, ballots: &'a [Cast]) -> Vec<Voter<'a>> {
    let voter = |(name, weight, bytes): &'a Cast| Voter {
        name: (*name).to_owned(),
        weight: *weight,
        ballot: Ballot::parse(bytes, layout).unwrap(),
    };
    ballots.iter().map(voter).collect()
}

fn three(weights: &Weights, group: &str) -> Vec<Cast> {
    let header = header(weights, group);
    [("carol", 1, 7), ("ann", 1, 8), ("bob", 70000, 9)]
        .map(|(name, weight, seed)| (name, weight, ballot(weights, &header, seed)))
        .into()
}

fn tally_bytes(weights: &Weights, group: &str, global: &str) -> Vec<u8> {
    let ballots = three(weights, group);
    let tally = Tally::new(&weights.0, global.parse().unwrap(), voters(&weights.0, &ballots)).unwrap();
    let digests: Vec<Digest> =
        (0..3).map(|index| tally.matrix(index, weights.matrix(index)).unwrap().0.digest()).collect();
    let root = mask_root(weights.0.digest(), digests);
    collect(|sink| {
        encode_tally(&tally, root, sink).unwrap();
    })
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn counts_and_masks_are_those_of_the_ballots_and_survive_the_file() {
    let weights = weights();
    for (local, global) in [("row", "layer"), ("layer", "row"), ("row", "column"), ("2:4", "2:4"), ("row", "2:4")] {
        let ballots = three(&weights, local);
        let tally = Tally::new(&weights.0, global.parse().unwrap(), voters(&weights.0, &ballots)).unwrap();
        assert_eq!(tally.voters().iter().map(|voter| voter.name.as_str()).collect::<Vec<_>>(), ["ann", "bob", "carol"]);
        assert_eq!(tally.total_weight(), 70002);
        let file = tally_bytes(&weights, local, global);
        let parsed = Tally::parse(&file, &weights.0).unwrap();
        let mut digests = Vec::new();
        for index in 0..3 {
            let view = weights.matrix(index);
            let (mask, counts) = tally.matrix(index, view).unwrap();
            assert_eq!(parsed.matrix(index, view).unwrap(), (mask.clone(), counts.clone()));
            let votes: Vec<(u32, MatrixMask)> =
                tally.voters().iter().map(|voter| (voter.weight, voter.ballot.mask(index, view).unwrap())).collect();
            let votes: Vec<(u32, &MatrixMask)> = votes.iter().map(|(weight, mask)| (*weight, mask)).collect();
            assert_eq!(counts.to_vec(), count_one_by_one(&votes));
            digests.push(mask.digest());
        }
        assert_eq!(parsed.mask_root(), Some(mask_root(weights.0.digest(), digests)));
        assert_eq!(parsed.header(parsed.mask_root().unwrap()), tally.header(parsed.mask_root().unwrap()));
    }
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn bytes_are_pinned() {
    let weights = weights();
    let file = tally_bytes(&weights, "row", "layer");
    let parsed = Tally::parse(&file, &weights.0).unwrap();
    let mut header = parsed.header(Digest::of(b"root"));
    for (member, name) in header.members.iter_mut().zip([b"1", b"2", b"3"]) {
        member.ballot = Digest::of(name); // the ballots themselves hold zstd frames
        member.ballot_bytes = 1000;
    }
    let bytes = Header::Tally(header).to_bytes();
    assert_eq!(&bytes[..11], b"fedprune\x01\x00\x03");
    assert_eq!(Digest::of(&bytes).to_string(), "de887a7c9a0b1f41dbbf614115b6dbb8d514f68c01076c9bfd8c14803c9f05d9");
    assert_eq!(
        parsed.mask_root().unwrap().to_string(),
        "a0de128e8c0a889cac98c75e8fcc7e178c3ab1a2467df0a5c0889daeec8d4d01"
    );
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn somebodys_own_mask_may_vote_and_a_tallied_one_may_not() {
    let weights = weights();
    let mut ballots = three(&weights, "row");
    let explicit = |votes: u32| {
        let bytes = &ballots[0].2;
        let ballot = Ballot::parse(bytes, &weights.0).unwrap();
        let header = MaskHeader {
            model: ballot.model(),
            layout: weights.0.digest(),
            group: Group::Row,
            sparsity: "0.5".parse().unwrap(),
            votes,
        };
        collect(|sink| {
            let mut masks = |index| Ok(ballot.mask(index, weights.matrix(index)).unwrap());
            encode_mask(&header, &weights.0, &mut masks, sink).map(drop).unwrap();
        })
    };
    let (own, tallied) = (explicit(1), explicit(3));
    let before = Tally::new(&weights.0, Group::Layer, voters(&weights.0, &ballots)).unwrap();
    let before = before.matrix(1, weights.matrix(1)).unwrap();
    ballots[0].2 = own;
    let after = Tally::new(&weights.0, Group::Layer, voters(&weights.0, &ballots)).unwrap();
    assert_eq!(after.matrix(1, weights.matrix(1)).unwrap(), before);
    ballots[0].2 = tallied;
    let error = Tally::new(&weights.0, Group::Layer, voters(&weights.0, &ballots)).unwrap_err().to_string();
    assert!(error.contains("`carol` is a mask tallied from 3 ballots"), "{error}");
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn refusals_name_the_ballot_and_the_difference() {
    let weights = weights();
    let base = header(&weights, "row");
    let refusal = |global: &str, change: &dyn Fn(&mut Vec<Cast>)| {
        let mut ballots = three(&weights, "row");
        change(&mut ballots);
        Tally::new(&weights.0, global.parse().unwrap(), voters(&weights.0, &ballots)).unwrap_err().to_string()
    };
    let replaced =
        |header: VoteHeader| refusal("layer", &|ballots: &mut Vec<_>| ballots[0].2 = ballot(&weights, &header, 1));
    let error = replaced(VoteHeader { model: Digest::of(b"other"), ..base.clone() });
    assert!(error.contains("`ann` and `carol` differ in the model"), "{error}");
    let error = replaced(VoteHeader { group: Group::Layer, ..base.clone() });
    assert!(error.contains("differ in the local group: row and layer"), "{error}");
    let error = replaced(VoteHeader { sparsity: "0.6".parse().unwrap(), ..base.clone() });
    assert!(error.contains("differ in the sparsity: 0.5 and 0.6"), "{error}");
    assert!(refusal("layer", &|ballots| ballots.clear()).contains("give at least one"));
    assert!(refusal("layer", &|ballots| ballots[1].0 = "bob").contains("two ballots of `bob`"));
    assert!(refusal("layer", &|ballots| ballots[1].0 = "").contains("cannot name a member"));
    assert!(refusal("layer", &|ballots| ballots[1].1 = 0).contains("`ann` has weight 0"));
    assert!(refusal("layer", &|ballots| ballots[1].1 = u32::MAX).contains("4295037296"));
    assert!(refusal("3:7", &|_| ()).contains("multiple of 7"));
    let pairs = three(&weights, "2:4");
    let error = Tally::new(&weights.0, Group::Layer, voters(&weights.0, &pairs)).unwrap_err().to_string();
    assert!(error.contains("allows only the global group `2:4`"), "{error}");
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn files_whose_header_lies_are_refused() {
    let weights = weights();
    let ballots = three(&weights, "row");
    let tally = Tally::new(&weights.0, Group::Layer, voters(&weights.0, &ballots)).unwrap();
    let body: Vec<u8> = tally.voters().iter().flat_map(|voter| voter.ballot.bytes().to_vec()).collect();
    let refusal = |change: &dyn Fn(&mut crate::ballot::TallyHeader)| {
        let mut header = tally.header(Digest::of(b"root"));
        change(&mut header);
        let bytes = [Header::Tally(header).to_bytes(), body.clone()].concat();
        Tally::parse(&bytes, &weights.0).map(drop).unwrap_err().to_string()
    };
    assert!(refusal(&|header| header.members[0].ballot = Digest::of(b"x")).contains("the ballot of `ann` is "));
    assert!(refusal(&|header| header.members.swap(0, 1)).contains("not in order at `ann`"));
    assert!(refusal(&|header| header.members[1].name = "ann".into()).contains("not in order at `ann`"));
    assert!(refusal(&|header| header.members[2].weight = 0).contains("weight 0"));
    assert!(refusal(&|header| header.members[0].name = "x".repeat(65)).contains("cannot name"));
    assert!(refusal(&|header| header.members[2].ballot_bytes += 1).contains("cut short"));
    assert!(refusal(&|header| header.members[2].ballot_bytes = u64::MAX).contains("cut short"));
    assert!(refusal(&|header| header.members.truncate(2)).contains("follow its end"));
    assert!(refusal(&|header| header.members.clear()).contains("no ballots"));
    assert!(refusal(&|header| header.model = Digest::of(b"x")).contains("its header says model"));
    assert!(refusal(&|header| header.sparsity = "0.6".parse().unwrap()).contains("its header says sparsity 0.6"));
    assert!(refusal(&|header| header.layout = Digest::of(b"x")).contains("made for another model"));
    let error = Tally::parse(&ballots[0].2, &weights.0).unwrap_err().to_string();
    assert!(error.contains("it is a ballot, and a tally is wanted"), "{error}");
    let file = tally_bytes(&weights, "row", "layer");
    let error = Ballot::parse(&file, &weights.0).unwrap_err().to_string();
    assert!(error.contains("it is a tally, and a ballot or a mask is wanted"), "{error}");
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn a_thousand_members_with_the_longest_names_fit() {
    let weights = weights();
    let bytes = ballot(&weights, &header(&weights, "row"), 5);
    let names: Vec<String> = (0..1001).map(|member| format!("{member:0>64}")).collect();
    let voters = |count: usize| -> Vec<Voter<'_>> {
        let ballot = Ballot::parse(&bytes, &weights.0).unwrap();
        names[..count].iter().map(|name| Voter { name: name.clone(), weight: 1, ballot: ballot.clone() }).collect()
    };
    let tally = Tally::new(&weights.0, Group::Layer, voters(1000)).unwrap();
    let file = collect(|sink| {
        encode_tally(&tally, Digest::of(b"root"), sink).unwrap();
    });
    assert_eq!(Tally::parse(&file, &weights.0).unwrap().voters().len(), 1000);
    assert!(matches!(Tally::new(&weights.0, Group::Layer, voters(1001)), Err(TallyError::TooMany(1001))));
}

#[test]
#[cfg_attr(miri, ignore = "zstd is C")]
fn truncated_anywhere_is_refused() {
    let weights = weights();
    let file = tally_bytes(&weights, "row", "layer");
    for length in 0..file.len() {
        assert!(Tally::parse(&file[..length], &weights.0).is_err(), "{length} of {}", file.len());
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "zstd is C")]
    fn damaged_tallies_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let weights = weights();
        let mut file = tally_bytes(&weights, "row", "layer");
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(tally) = Tally::parse(&file, &weights.0) {
            // a change outside the ballots, such as of a weight or the root
            let budget = Group::Layer.matrix_budget(30, 24, Sparsity::new(1, 2).unwrap());
            prop_assert_eq!(tally.matrix(0, weights.matrix(0)).unwrap().0.count_pruned(), budget);
        }
    }
}
