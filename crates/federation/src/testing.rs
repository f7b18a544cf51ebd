//! A small world for tests: keys, consortiums, a model of two blocks, rounds and ballots.

use std::convert::Infallible;

use fedprune_mask::ballot::{Encodings, VoteHeader};
use fedprune_mask::weights::MatrixSource;
use fedprune_mask::{DType, Digest, Layout, Matrix, NormVector, Pruner, Tap, WeightsView, encode_ballot};

use crate::consortium::{Consortium, Draft, Member, Ratified};
use crate::round::{Calibration, Round, Sampling, SeedRule, Strategy, Terms, Timers};
use crate::signing::SigningKey;

/// The key of the member of this index in every consortium here.
pub(crate) fn key(index: usize) -> SigningKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&(index as u64 + 1).to_le_bytes());
    SigningKey::from_seed(&seed).unwrap()
}

/// Signed by all.
pub(crate) fn named_draft(name: &str, members: usize) -> Draft {
    let member = |index| Member {
        name: format!("member {index:04}"),
        signing_key: key(index).verifying_key(),
        peer_key: key(index).verifying_key(),
        addresses: Vec::new(),
        attestation_key: None,
    };
    let consortium = Consortium::new(name.to_owned(), (0..members).map(member).collect()).unwrap();
    let mut draft = Draft::new(consortium);
    for index in 0..members {
        assert_eq!(draft.sign(&key(index)).unwrap().as_usize(), index);
    }
    draft
}

pub(crate) fn named_consortium(name: &str, members: usize) -> Ratified {
    named_draft(name, members).ratify().unwrap()
}

pub(crate) fn consortium_of(members: usize) -> Ratified {
    named_consortium("test", members)
}

/// Two blocks of three matrices.
pub(crate) fn layout() -> Layout {
    let block = |block| {
        [("q", Tap::AttentionInput, 12, 24), ("k", Tap::AttentionInput, 8, 24), ("down", Tap::MlpOutput, 24, 16)]
            .map(|(name, tap, rows, columns)| Matrix { name: format!("{block}.{name}"), block, tap, rows, columns })
    };
    Layout::new([block(0), block(1)].concat()).unwrap()
}

/// Bytes that look random and are the same everywhere.
pub(crate) fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// bf16 weights of a layout.
pub(crate) struct Weights {
    layout: Layout,
    bytes: Vec<Vec<u8>>,
}

impl Weights {
    pub(crate) fn of(layout: &Layout) -> Self {
        let bytes = layout.matrices().iter().map(|matrix| {
            // magnitudes from 1 to just below 4, either sign
            let bits = |byte: &u8| (0x3f80 | u16::from(byte & 0x7f) | u16::from(byte & 0x80) << 8).to_le_bytes();
            noise(&matrix.name, matrix.weights() as usize).iter().flat_map(bits).collect()
        });
        Self { bytes: bytes.collect(), layout: layout.clone() }
    }
}

impl MatrixSource for Weights {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.layout.matrices()[index];
        WeightsView::new(DType::BF16, matrix.rows as usize, matrix.columns as usize, &self.bytes[index]).unwrap()
    }
}

/// Sound terms for a consortium.
pub(crate) fn terms(consortium: &Consortium) -> Terms {
    Terms {
        consortium: consortium.id(),
        base_model: Digest::of(b"model"),
        layout: layout().digest(),
        tokenizer: Digest::of(b"tokenizer"),
        configuration: Digest::of(b"configuration"),
        pruner: Pruner::WANDA,
        local_group: "row".parse().unwrap(),
        global_group: "layer".parse().unwrap(),
        sparsity: "0.5".parse().unwrap(),
        strategy: Strategy::OneShot,
        scaling: Default::default(),
        tally_weights: vec![1; consortium.members().len()],
        data_free: Vec::new(),
        ballots: Default::default(),
        calibration: Some(Calibration {
            samples: 4,
            window_tokens: 64,
            sampling: Sampling::Random { seed: SeedRule::FromRound },
            bos: Default::default(),
            minimum_calibration_tokens: 128,
        }),
        minimum_ballots: consortium.quorum().q() as u16,
        tally: Default::default(),
        timers: Timers::default(),
    }
}

pub(crate) fn round(consortium: &Consortium) -> Round {
    Round::new(terms(consortium), consortium).unwrap()
}

/// The header that a ballot of `round` for `layout` has.
pub(crate) fn vote(round: &Round, layout: &Layout) -> VoteHeader {
    let terms = round.terms();
    VoteHeader {
        model: terms.base_model,
        layout: layout.digest(),
        pruner: terms.pruner,
        group: terms.local_group,
        sparsity: terms.sparsity,
        samples: terms.calibration.map_or(0, |calibration| calibration.samples),
        sequence_tokens: terms.calibration.map_or(0, |calibration| calibration.window_tokens),
    }
}

/// A ballot; `seed` makes the norms, and an empty one makes them all equal.
pub(crate) fn body(vote: &VoteHeader, layout: &Layout, seed: &str, encodings: Encodings) -> Vec<u8> {
    let norms = layout.taps().iter().map(|range| {
        let matrix = &layout.matrices()[range.start];
        let sums = noise(&format!("{seed}{}", matrix.name), matrix.columns as usize);
        let sum = |byte: u8| if seed.is_empty() { 1.0 } else { f64::from(byte) + 1.0 };
        NormVector::from_sums(&sums.into_iter().map(sum).collect::<Vec<_>>(), 1).unwrap()
    });
    let norms: Vec<NormVector> = norms.collect();
    let mut bytes = Vec::new();
    encode_ballot::<Infallible>(vote, layout, &norms, encodings, &Weights::of(layout), &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })
    .unwrap();
    bytes
}
