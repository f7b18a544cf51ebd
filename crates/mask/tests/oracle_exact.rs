//! The exact parts of the oracle: from its votes and the stored weights, counts, global masks and weighted
//! masks bit for bit, and the magnitude votes; and its norms give its votes, through ballots.
//!
//! What needs the model (votes from text, perplexity) is tested where the model is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use fedprune_mask::ballot::{BallotHeader, Encodings, MaskHeader, VoteHeader};
use fedprune_mask::layout::Matrix;
use fedprune_mask::tally::{Voter, count_one_by_one, global_mask};
use fedprune_mask::{
    Ballot, Counts, DType, Digest, Group, Layout, MatrixMask, MatrixSource, NormVector, Pruner, Sparsity, Tally, Tap,
    WeightsView, derive_mask, encode_ballot, encode_mask,
};
use safetensors::{Dtype, SafeTensors};

const ARCHITECTURES: [&str; 5] = ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"];
const BLOCKS: u32 = 3;
const SILOS: usize = 5;
const LINEARS: [(&str, Tap); 7] = [
    ("self_attn.q_proj", Tap::AttentionInput),
    ("self_attn.k_proj", Tap::AttentionInput),
    ("self_attn.v_proj", Tap::AttentionInput),
    ("self_attn.o_proj", Tap::AttentionOutput),
    ("mlp.gate_proj", Tap::MlpInput),
    ("mlp.up_proj", Tap::MlpInput),
    ("mlp.down_proj", Tap::MlpOutput),
];

/// Weights and expectations of one architecture, read whole: they are tiny.
struct Oracle {
    layout: Layout,
    dtype: DType,
    weights: Vec<Vec<u8>>,
    expected: Vec<u8>,
    sparsity: Sparsity,
    tally_weights: Vec<u32>,
    samples: u64,
}

impl MatrixSource for Oracle {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.layout.matrices()[index];
        WeightsView::new(self.dtype, matrix.rows as usize, matrix.columns as usize, &self.weights[index]).unwrap()
    }
}

fn fixtures() -> PathBuf {
    match std::env::var_os("FEDPRUNE_FIXTURES") {
        Some(folder) => folder.into(),
        None => Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).to_owned(),
    }
}

impl Oracle {
    fn open(architecture: &str) -> Self {
        let folder = fixtures().join(architecture);
        let mut tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.starts_with("model") || !name.ends_with(".safetensors") {
                continue;
            }
            let file = std::fs::read(&path).unwrap();
            for (name, view) in SafeTensors::deserialize(&file).unwrap().tensors() {
                tensors.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
        let mut matrices = Vec::new();
        let mut weights = Vec::new();
        let mut dtype = DType::F32;
        for block in 0..BLOCKS {
            for (linear, tap) in LINEARS {
                let name = format!("model.layers.{block}.{linear}.weight");
                let (stored, shape, bytes) = tensors.remove(&name).unwrap();
                dtype = if stored == Dtype::BF16 { DType::BF16 } else { DType::F32 };
                let (rows, columns) = (shape[0] as u32, shape[1] as u32);
                matrices.push(Matrix { name, block, tap, rows, columns });
                weights.push(bytes);
            }
        }
        let numbers: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let tally_weights = numbers["tally_weights"].as_array().unwrap();
        Self {
            layout: Layout::new(matrices).unwrap(),
            dtype,
            weights,
            expected: std::fs::read(folder.join("expected.safetensors")).unwrap(),
            sparsity: numbers["sparsity"].as_str().unwrap().parse().unwrap(),
            tally_weights: tally_weights.iter().map(|weight| weight.as_u64().unwrap() as u32).collect(),
            samples: numbers["samples"].as_u64().unwrap(),
        }
    }

    fn tensor<'a>(&self, expected: &'a SafeTensors<'_>, kind: &str, index: usize) -> &'a [u8] {
        expected.tensor(&format!("{kind}.{}", self.layout.matrices()[index].name)).unwrap().data()
    }

    fn mask(&self, expected: &SafeTensors<'_>, kind: &str, index: usize) -> MatrixMask {
        let matrix = &self.layout.matrices()[index];
        let bytes = self.tensor(expected, kind, index);
        MatrixMask::from_bytes(matrix.rows as usize, matrix.columns as usize, bytes).unwrap()
    }

    fn sparsity_of(&self, group: Group) -> Sparsity {
        group.fixed_sparsity().unwrap_or(self.sparsity)
    }

    fn norms(&self, expected: &SafeTensors<'_>, tag: &str, silo: usize) -> Vec<NormVector> {
        let vector = |range: &std::ops::Range<usize>| {
            let bytes = self.tensor(expected, &format!("sumsq.{tag}.silo{silo}"), range.start);
            let sums: Vec<f64> =
                bytes.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
            NormVector::from_sums(&sums, self.samples).unwrap()
        };
        self.layout.taps().iter().map(vector).collect()
    }
}

/// A group and its tag in the fixtures.
type Tagged = (&'static str, Group);

/// Local groups, and the global groups that go with each.
fn groups() -> Vec<(&'static str, Group, Vec<Tagged>)> {
    let free = vec![("layer", Group::Layer), ("row", Group::Row), ("column", Group::Column)];
    let (two, four) = ("2:4".parse().unwrap(), "4:8".parse().unwrap());
    vec![
        ("layer", Group::Layer, free.clone()),
        ("row", Group::Row, free),
        ("2of4", two, vec![("2of4", two)]),
        ("4of8", four, vec![("4of8", four)]),
    ]
}

fn for_each_matrix(check: impl Fn(&Oracle, &SafeTensors<'_>, usize)) {
    for architecture in ARCHITECTURES {
        let oracle = Oracle::open(architecture);
        let expected = SafeTensors::deserialize(&oracle.expected).unwrap();
        for index in 0..oracle.layout.matrices().len() {
            check(&oracle, &expected, index);
        }
    }
}

#[test]
fn counts_and_global_masks_follow_from_the_votes() {
    for_each_matrix(|oracle, expected, index| {
        let weights = oracle.matrix(index);
        for (tag, _, globals) in groups() {
            let votes: Vec<MatrixMask> =
                (0..SILOS).map(|silo| oracle.mask(expected, &format!("vote.{tag}.silo{silo}"), index)).collect();
            let mut counts = Counts::new(weights.rows(), weights.columns(), SILOS as u32);
            counts.add(1, &votes.iter().collect::<Vec<_>>()).unwrap();
            let expected_counts: Vec<u32> =
                oracle.tensor(expected, &format!("counts.{tag}"), index).iter().map(|&count| count.into()).collect();
            assert_eq!(counts.to_vec(), expected_counts);
            for (global_tag, global) in globals {
                let mask = global_mask(weights, &counts, global, oracle.sparsity_of(global));
                assert_eq!(
                    mask,
                    oracle.mask(expected, &format!("global.{tag}-{global_tag}"), index),
                    "{tag}-{global_tag}"
                );
            }
        }
    });
}

#[test]
fn weighted_masks_follow_from_the_votes() {
    for_each_matrix(|oracle, expected, index| {
        let weights = oracle.matrix(index);
        for (tag, local, _) in groups() {
            let global = if local.fixed_sparsity().is_some() { local } else { Group::Layer };
            let mut counts = Counts::new(weights.rows(), weights.columns(), oracle.tally_weights.iter().sum());
            let votes: Vec<(u32, MatrixMask)> = (0..SILOS)
                .map(|silo| {
                    (oracle.tally_weights[silo], oracle.mask(expected, &format!("vote.{tag}.silo{silo}"), index))
                })
                .collect();
            for (weight, vote) in &votes {
                counts.add(*weight, &[vote]).unwrap();
            }
            let votes: Vec<(u32, &MatrixMask)> = votes.iter().map(|(weight, vote)| (*weight, vote)).collect();
            assert_eq!(counts.to_vec(), count_one_by_one(&votes));
            let mask = global_mask(weights, &counts, global, oracle.sparsity_of(global));
            assert_eq!(mask, oracle.mask(expected, &format!("weighted.{tag}"), index), "{tag}");
        }
    });
}

#[test]
fn magnitude_votes_are_exact() {
    for_each_matrix(|oracle, expected, index| {
        let vote =
            derive_mask(Pruner::MAGNITUDE, Group::Row, oracle.sparsity, oracle.matrix(index), &NormVector::default());
        assert_eq!(vote.unwrap(), oracle.mask(expected, "vote.magnitude.row.silo0", index));
    });
}

/// The oracle's sums of squares, rounded as ours are, give the oracle's own Wanda votes exactly; as
/// ballots they survive the wire, and their tally is the oracle's global mask.
#[test]
fn ballots_made_of_the_oracles_norms_tally_to_its_global_masks() {
    for architecture in ARCHITECTURES {
        let oracle = Oracle::open(architecture);
        let expected = SafeTensors::deserialize(&oracle.expected).unwrap();
        for (tag, group, globals) in groups() {
            let ballots: Vec<Vec<u8>> = (0..SILOS)
                .map(|silo| {
                    let header = VoteHeader {
                        model: Digest::of(architecture.as_bytes()),
                        layout: oracle.layout.digest(),
                        pruner: Pruner::WANDA,
                        group,
                        sparsity: oracle.sparsity_of(group),
                        samples: oracle.samples as u32,
                        sequence_tokens: 48,
                    };
                    let encodings = if silo == 0 { Encodings::MaskOnly } else { Encodings::Auto };
                    let norms = oracle.norms(&expected, tag, silo);
                    let mut bytes = Vec::new();
                    let mut sink = |part: &[u8]| {
                        bytes.extend_from_slice(part);
                        Ok::<(), Infallible>(())
                    };
                    encode_ballot(&header, &oracle.layout, &norms, encodings, &oracle, &mut sink).unwrap();
                    bytes
                })
                .collect();
            let voters: Vec<Voter<'_>> = ["a", "b", "c", "d", "e"]
                .into_iter()
                .zip(&ballots)
                .map(|(name, bytes)| Voter {
                    name: name.to_owned(),
                    weight: 1,
                    ballot: Ballot::parse(bytes, &oracle.layout).unwrap(),
                })
                .collect();
            for (global_tag, global) in globals {
                let tally = Tally::new(&oracle.layout, global, voters.clone()).unwrap();
                for index in 0..oracle.layout.matrices().len() {
                    let weights = oracle.matrix(index);
                    for (silo, voter) in tally.voters().iter().enumerate() {
                        let vote = oracle.mask(&expected, &format!("vote.{tag}.silo{silo}"), index);
                        assert_eq!(voter.ballot.mask(index, weights).unwrap(), vote, "{architecture} {tag} {silo}");
                    }
                    let (mask, _) = tally.matrix(index, weights).unwrap();
                    let kind = format!("global.{tag}-{global_tag}");
                    assert_eq!(mask, oracle.mask(&expected, &kind, index), "{architecture} {kind}");
                }
            }
        }
    }
}

/// The sidecar of a pruned model: any mask of the oracle, as an explicit mask file.
#[test]
fn explicit_masks_carry_every_global_mask() {
    let oracle = Oracle::open("llama3-rope-tied");
    let expected = SafeTensors::deserialize(&oracle.expected).unwrap();
    for (tag, _, globals) in groups() {
        for (global_tag, group) in globals {
            let kind = format!("global.{tag}-{global_tag}");
            let header = MaskHeader {
                model: Digest::of(b"model"),
                layout: oracle.layout.digest(),
                group,
                sparsity: oracle.sparsity_of(group),
                votes: SILOS as u32,
            };
            let mut bytes = Vec::new();
            let mut masks = |index| Ok::<_, Infallible>(oracle.mask(&expected, &kind, index));
            encode_mask(&header, &oracle.layout, &mut masks, &mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
            let file = Ballot::parse(&bytes, &oracle.layout).unwrap();
            assert_eq!(file.header(), &BallotHeader::Mask(header));
            for index in 0..oracle.layout.matrices().len() {
                let mask = file.mask(index, oracle.matrix(index)).unwrap();
                assert_eq!(mask, oracle.mask(&expected, &kind, index), "{kind}");
            }
        }
    }
}
