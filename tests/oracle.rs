//! The independent oracle: HF transformers and torch on tiny checkpoints of five architectures.
//!
//! `FEDPRUNE_FIXTURES` names another folder of fixtures, such as one made with another seed.
//! *Exact*: counts, global and weighted masks from the given votes; magnitude votes. *Near-exact*: votes from our
//! own forward passes (at most one bit in a thousand), sums of squares (1e-4), perplexity (0.1 %), logits (1e-3).

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{Encodings, VoteHeader, encode_ballot};
use fedprune_mask::score::Pruner;
use fedprune_mask::tally::{Counts, apply_to_stored, global_mask, support_factor};
use fedprune_mask::{Ballot, Digest, Group, Layout, MatrixMask, NormVector, Sparsity};
use fedprune_model::{Block, ComputeDType, Decoder, DeviceName, ModelError, logits, perplexity};
use fedprune_prune::{BlockPass, LocalPass, Recipe, local_pass};
use fedprune_tests::Fixture;

const LOCAL_GROUPS: [&str; 4] = ["layer", "row", "2:4", "4:8"];

/// A fixture with its checkpoint opened.
struct Oracle {
    fixture: Fixture,
    checkpoint: Checkpoint,
    decoder: Decoder,
    sparsity: Sparsity,
    silos: Vec<Vec<Vec<u32>>>,
}

type Masks = Vec<MatrixMask>;

impl Oracle {
    fn all() -> impl Iterator<Item = Oracle> {
        Fixture::all().into_iter().map(Oracle::new)
    }

    fn new(fixture: Fixture) -> Self {
        let checkpoint = Checkpoint::open(&fixture.folder).expect("the fixture is a checkpoint");
        let device = DeviceName::Cpu.open().expect("there is a processor");
        let dtype = ComputeDType::F32.candle();
        let decoder = Decoder::new(&checkpoint, &device, dtype, 64).expect("the decoder supports it");
        let sparsity = fixture.numbers["sparsity"].as_str().expect("sparsity").parse().expect("a fraction");
        let silos = fixture.silos();
        Self { fixture, checkpoint, decoder, sparsity, silos }
    }

    fn layout(&self) -> &Layout {
        self.checkpoint.layout()
    }

    fn recipe(&self, pruner: Pruner, group: Group) -> Recipe {
        Recipe { pruner, group, sparsity: group.fixed_sparsity().unwrap_or(self.sparsity) }
    }

    /// The masks `KIND.NAME` of all matrices.
    fn masks(&self, kind: &str) -> Masks {
        let matrices = self.layout().matrices().iter();
        matrices
            .map(|matrix| {
                let (_, bytes) = self.fixture.tensor(&format!("{kind}.{}", matrix.name));
                MatrixMask::from_bytes(matrix.rows as usize, matrix.columns as usize, &bytes).expect("a packed mask")
            })
            .collect()
    }

    fn votes(&self, group: Group) -> Vec<Masks> {
        (0..self.silos.len()).map(|silo| self.masks(&format!("vote.{}.silo{silo}", tag(group)))).collect()
    }

    /// Our own votes of one silo, and the norms behind them.
    fn local(&self, windows: &[Vec<u32>], recipe: Recipe) -> (Masks, Vec<NormVector>) {
        let inputs =
            LocalPass { checkpoint: &self.checkpoint, decoder: Some(&self.decoder), windows, recipe, data_free: &[] };
        let outcome = local_pass(&inputs, None, |_| {}).expect("the pass runs");
        let blocks = 0..self.layout().blocks();
        let taps = self.layout().taps().len() / blocks.len();
        let masks = blocks.flat_map(|block| {
            let norms = &outcome.norms[block * taps..(block + 1) * taps];
            recipe.block_masks(&self.checkpoint, block, norms).expect("norms fit")
        });
        (masks.collect(), outcome.norms)
    }

    /// Perplexity with `masks` applied, kept weights scaled by the support in `counts`.
    fn perplexity(&self, masks: Option<&Masks>, counts: Option<&[Counts]>) -> f64 {
        let layout = self.layout();
        let mut prune = |index: usize, block: &mut Block| -> Result<(), ModelError> {
            for (position, matrix) in layout.block(index).enumerate() {
                if let Some(masks) = masks {
                    block.prune(position, &masks[matrix])?;
                }
                if let Some(counts) = counts {
                    let counts = &counts[matrix];
                    let factor = |count: u32| support_factor(count, counts.total());
                    block.scale(position, &counts.to_vec().into_iter().map(factor).collect::<Vec<_>>())?;
                }
            }
            Ok(())
        };
        let windows = self.fixture.evaluation();
        perplexity(&self.checkpoint, &self.decoder, &windows, &mut prune, &mut |_, _| {}).expect("it runs").perplexity
    }

    fn check_perplexity(&self, actual: f64, key: &str) {
        let expected = self.fixture.number(key);
        let name = self.fixture.name();
        assert!((actual / expected - 1.0).abs() <= 1e-3, "{name} {key}: {actual} instead of {expected}");
    }

    fn check_near(&self, actual: &Masks, expected: &Masks, what: &str) {
        let different: u64 = actual.iter().zip(expected).map(|(a, b)| a.count_different(b)).sum();
        let bits = self.layout().weights();
        let name = self.fixture.name();
        assert!(different * 1000 <= bits, "{name} {what}: {different} of {bits} bits differ");
    }

    /// Counts and global masks of `votes`, all matrices.
    fn tally(&self, votes: &[Masks], weights: &[u32], group: Group) -> (Vec<Counts>, Masks) {
        let sparsity = group.fixed_sparsity().unwrap_or(self.sparsity);
        let all = 0..self.layout().matrices().len();
        all.map(|index| {
            let matrix = self.checkpoint.matrix(index);
            let mut counts = Counts::new(matrix.rows(), matrix.columns(), weights.iter().sum());
            for (vote, &weight) in votes.iter().zip(weights) {
                counts.add(weight, &[&vote[index]]).expect("within the total");
            }
            let mask = global_mask(matrix, &counts, group, sparsity);
            (counts, mask)
        })
        .unzip()
    }
}

fn group(text: &str) -> Group {
    text.parse().expect("a group")
}

fn tag(group: Group) -> String {
    group.to_string().replace(':', "of")
}

fn global_groups(local: Group) -> Vec<Group> {
    match local {
        Group::NofM { .. } => vec![local],
        _ => vec![Group::Layer, Group::Row, Group::Column],
    }
}

#[test]
fn logits_and_dense_perplexity() {
    for oracle in Oracle::all() {
        let window = oracle.fixture.evaluation().remove(0);
        let ours = logits(&oracle.checkpoint, &oracle.decoder, &window).expect("it runs");
        let ours: Vec<f32> = ours.flatten_all().and_then(|logits| logits.to_vec1()).expect("f32 logits");
        let expected = oracle.fixture.f32s("logits.dense");
        let largest = expected.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        assert_eq!(ours.len(), expected.len());
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((ours - expected).abs() <= 1e-3 * largest, "{}: {ours} {expected}", oracle.fixture.name());
        }
        oracle.check_perplexity(oracle.perplexity(None, None), "perplexity.dense");
    }
}

/// The pass driven by the oracle's masks: the same inputs reach every block, so sums must agree closely.
#[test]
fn sums_of_squares() {
    for oracle in Oracle::all() {
        for local in LOCAL_GROUPS.map(group) {
            let votes = oracle.votes(local);
            for (silo, windows) in oracle.silos.iter().enumerate() {
                let mut pass =
                    BlockPass::new(&oracle.checkpoint, &oracle.decoder, windows, |_| {}).expect("tokens fit");
                for block in 0..oracle.layout().blocks() {
                    let measured = pass.measure().expect("it runs");
                    for index in oracle.layout().block(block) {
                        let matrix = &oracle.layout().matrices()[index];
                        let key = format!("sumsq.{}.silo{silo}.{}", tag(local), matrix.name);
                        let expected = oracle.fixture.f64s(&key);
                        let largest = expected.iter().copied().fold(0.0, f64::max);
                        let ours = measured.sums.sums(matrix.tap);
                        assert_eq!(ours.len(), expected.len());
                        for (ours, expected) in ours.iter().zip(&expected) {
                            let near = (ours - expected).abs() <= 1e-4 * expected + 1e-9 * largest;
                            assert!(near, "{} {key}: {ours} {expected}", oracle.fixture.name());
                        }
                    }
                    let masks: Masks = oracle.layout().block(block).map(|index| votes[silo][index].clone()).collect();
                    pass.advance(&masks).expect("it runs");
                }
            }
        }
    }
}

#[test]
fn votes_and_local_perplexity() {
    for oracle in Oracle::all() {
        for local in LOCAL_GROUPS.map(group) {
            for (silo, expected) in oracle.votes(local).iter().enumerate() {
                let what = format!("{}.silo{silo}", tag(local));
                let (ours, _) = oracle.local(&oracle.silos[silo], oracle.recipe(Pruner::WANDA, local));
                oracle.check_near(&ours, expected, &what);
                oracle.check_perplexity(oracle.perplexity(Some(expected), None), &format!("perplexity.local.{what}"));
            }
            let pooled: Vec<Vec<u32>> = oracle.silos.concat();
            let (ours, _) = oracle.local(&pooled, oracle.recipe(Pruner::WANDA, local));
            let expected = oracle.masks(&format!("centralized.{}", tag(local)));
            oracle.check_near(&ours, &expected, "centralized");
            let key = format!("perplexity.centralized.{}", tag(local));
            oracle.check_perplexity(oracle.perplexity(Some(&expected), None), &key);
        }
    }
}

#[test]
fn other_pruners() {
    for oracle in Oracle::all() {
        for (name, exact) in [("magnitude", true), ("ria", false)] {
            let expected = oracle.masks(&format!("vote.{name}.row.silo0"));
            let pruner: Pruner = name.parse().expect("a pruner");
            let (ours, _) = oracle.local(&oracle.silos[0], oracle.recipe(pruner, Group::Row));
            if exact {
                assert!(ours == expected, "{} {name}", oracle.fixture.name());
            }
            oracle.check_near(&ours, &expected, name);
            let key = format!("perplexity.local.{name}.row.silo0");
            oracle.check_perplexity(oracle.perplexity(Some(&expected), None), &key);
        }
    }
}

#[test]
fn counts_and_global_masks_are_exact() {
    for oracle in Oracle::all() {
        let name = oracle.fixture.name();
        let weights: Vec<u32> = oracle.fixture.numbers["tally_weights"]
            .as_array()
            .expect("tally_weights")
            .iter()
            .map(|weight| u32::try_from(weight.as_u64().expect("a number")).expect("within 32 bits"))
            .collect();
        let ones = vec![1; oracle.silos.len()];
        for local in LOCAL_GROUPS.map(group) {
            let votes = oracle.votes(local);
            for global in global_groups(local) {
                let what = format!("{}-{}", tag(local), tag(global));
                let (counts, masks) = oracle.tally(&votes, &ones, global);
                for (counts, matrix) in counts.iter().zip(oracle.layout().matrices()) {
                    let (_, expected) = oracle.fixture.tensor(&format!("counts.{}.{}", tag(local), matrix.name));
                    let expected: Vec<u32> = expected.into_iter().map(u32::from).collect();
                    assert!(counts.to_vec() == expected, "{name} counts {what} {}", matrix.name);
                }
                assert!(masks == oracle.masks(&format!("global.{what}")), "{name} global {what}");
                let plain = oracle.perplexity(Some(&masks), None);
                oracle.check_perplexity(plain, &format!("perplexity.federated.{what}"));
                let scaled = oracle.perplexity(Some(&masks), Some(&counts));
                oracle.check_perplexity(scaled, &format!("perplexity.federated-scaled.{what}"));
            }
            let global = if matches!(local, Group::NofM { .. }) { local } else { Group::Layer };
            let (_, masks) = oracle.tally(&votes, &weights, global);
            assert!(masks == oracle.masks(&format!("weighted.{}", tag(local))), "{name} weighted {local}");
        }
    }
}

/// Block by block: every silo measures, votes, and moves on with the agreed mask.
#[test]
fn iterative_agreement() {
    for oracle in Oracle::all() {
        for local in LOCAL_GROUPS.map(group) {
            let recipe = oracle.recipe(Pruner::WANDA, local);
            let expected = oracle.masks(&format!("iterative.{}", tag(local)));
            let mut passes: Vec<BlockPass<'_>> = oracle
                .silos
                .iter()
                .map(|windows| BlockPass::new(&oracle.checkpoint, &oracle.decoder, windows, |_| {}).expect("fits"))
                .collect();
            let mut agreed = Masks::new();
            for block in 0..oracle.layout().blocks() {
                let votes: Vec<Masks> = passes
                    .iter_mut()
                    .map(|pass| {
                        let norms = pass.measure().expect("it runs").norms;
                        recipe.block_masks(&oracle.checkpoint, block, &norms).expect("norms fit")
                    })
                    .collect();
                let of_block: Masks = oracle
                    .layout()
                    .block(block)
                    .enumerate()
                    .map(|(position, index)| {
                        let matrix = oracle.checkpoint.matrix(index);
                        let mut counts = Counts::new(matrix.rows(), matrix.columns(), votes.len() as u32);
                        let masks: Vec<&MatrixMask> = votes.iter().map(|vote| &vote[position]).collect();
                        counts.add(1, &masks).expect("within the total");
                        global_mask(matrix, &counts, local, recipe.sparsity)
                    })
                    .collect();
                passes.iter_mut().for_each(|pass| pass.advance(&of_block).expect("it runs"));
                agreed.extend(of_block);
            }
            oracle.check_near(&agreed, &expected, &format!("iterative {local}"));
            let key = format!("perplexity.iterative.{}", tag(local));
            oracle.check_perplexity(oracle.perplexity(Some(&expected), None), &key);
        }
    }
}

/// What travels gives back the same bits, in either encoding and for every group and pruner.
#[test]
fn ballots_decode_to_the_same_mask() {
    for oracle in Oracle::all() {
        let layout = oracle.layout();
        for (pruner, local) in
            [("wanda", "layer"), ("wanda", "row"), ("wanda", "2:4"), ("ria", "row"), ("magnitude", "4:8")]
        {
            let recipe = oracle.recipe(pruner.parse().expect("a pruner"), group(local));
            let (masks, norms) = oracle.local(&oracle.silos[0], recipe);
            let header = VoteHeader {
                model: Digest::of(b"any"),
                layout: layout.digest(),
                pruner: recipe.pruner,
                group: recipe.group,
                sparsity: recipe.sparsity,
                samples: 2,
                sequence_tokens: 48,
            };
            for encodings in [Encodings::Auto, Encodings::MaskOnly] {
                let mut bytes = Vec::new();
                encode_ballot(&header, layout, &norms, encodings, &oracle.checkpoint, &mut |part| {
                    bytes.extend_from_slice(part);
                    Ok::<(), std::convert::Infallible>(())
                })
                .expect("it encodes");
                let ballot = Ballot::parse(&bytes, layout).expect("it parses");
                for (index, mask) in masks.iter().enumerate() {
                    let decoded = ballot.mask(index, oracle.checkpoint.matrix(index)).expect("it decodes");
                    assert!(decoded == *mask, "{} {pruner} {local} {encodings:?}", oracle.fixture.name());
                }
            }
        }
    }
}

/// Scaling as `apply` does it, in the stored dtype, is the same as scaling in float32 and rounding.
#[test]
fn stored_weights_are_scaled_and_rounded() {
    for oracle in Oracle::all() {
        let votes = oracle.votes(Group::Row);
        let (counts, masks) = oracle.tally(&votes, &vec![1; votes.len()], Group::Layer);
        for index in 0..masks.len() {
            let matrix = oracle.checkpoint.matrix(index);
            let mut stored = matrix.bytes().to_vec();
            apply_to_stored(&mut stored, matrix.dtype(), &masks[index], Some(&counts[index]));
            let scaled = fedprune_mask::WeightsView::new(matrix.dtype(), matrix.rows(), matrix.columns(), &stored)
                .expect("size");
            let relative = f32::powi(2.0, if matrix.dtype().bytes() == 2 { -8 } else { -24 });
            for row in 0..matrix.rows() {
                for column in 0..matrix.columns() {
                    let kept = !masks[index].get(row, column);
                    let factor = support_factor(counts[index].get(row, column), counts[index].total());
                    let exact = if kept { matrix.get(row, column) * factor } else { 0.0 };
                    let difference = (scaled.get(row, column) - exact).abs();
                    assert!(difference <= exact.abs() * relative, "{} {index} {row} {column}", oracle.fixture.name());
                }
            }
        }
    }
}
