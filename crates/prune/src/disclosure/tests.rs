//! The attack on the bundled model, with text that is known.

use std::path::Path;

use fedprune_mask::ballot::{Ballot, Encoding, Encodings, VoteHeader, encode_ballot};
use fedprune_mask::{Group, Sparsity};
use fedprune_model::{Bos, ComputeDType, Decoder, DeviceName, Sampling, Tokenizer, WindowRequest, calibration_windows};

use super::*;
use crate::{LocalPass, Recipe, local_pass};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/bundled-model");

struct Setting {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    frequencies: Frequencies,
}

impl Setting {
    fn new() -> Self {
        let checkpoint = Checkpoint::open(&Path::new(FOLDER).join("model")).unwrap();
        let tokenizer = Tokenizer::open(checkpoint.dir()).unwrap();
        // another author's English
        let public = std::fs::read_to_string(Path::new(FOLDER).join("silos/melville_moby_dick.txt")).unwrap();
        let public = tokenizer.encode(&public).unwrap();
        let frequencies = Frequencies::of(checkpoint.config().vocab_size, &public);
        Self { checkpoint, tokenizer, frequencies }
    }

    fn windows(&self, text: &str, samples: usize, sequence_tokens: usize) -> Vec<Vec<u32>> {
        let request = WindowRequest {
            samples,
            minimum_samples: samples,
            bos: Bos::None,
            sequence_tokens,
            sampling: Sampling::Sequential,
            field: "text".to_owned(),
        };
        let path = Path::new(FOLDER).join(format!("silos/{text}.txt"));
        calibration_windows(self.checkpoint.config(), &self.tokenizer, &[path], &request).unwrap().windows
    }

    /// The ballot that a silo with these windows sends.
    fn ballot(
        &self,
        windows: &[Vec<u32>],
        pruner: Pruner,
        group: Group,
        encodings: Encodings,
        data_free: &[(u32, Tap)],
    ) -> Vec<u8> {
        let device = "cpu".parse::<DeviceName>().unwrap().open().unwrap();
        let decoder =
            Decoder::new(&self.checkpoint, &device, ComputeDType::default_for(&device).candle(), windows[0].len())
                .unwrap();
        let recipe = Recipe { pruner, group, sparsity: Sparsity::new(1, 2).unwrap() };
        let inputs = LocalPass { checkpoint: &self.checkpoint, decoder: Some(&decoder), windows, recipe, data_free };
        let outcome = local_pass(&inputs, None, |_| {}).unwrap();
        let layout = self.checkpoint.layout();
        let header = VoteHeader {
            model: self.checkpoint.content_digest(&|_| {}),
            layout: layout.digest(),
            pruner,
            group,
            sparsity: recipe.sparsity,
            samples: windows.len() as u32,
            sequence_tokens: windows[0].len() as u32,
        };
        let mut bytes = Vec::new();
        let mut sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok::<_, std::convert::Infallible>(())
        };
        encode_ballot(&header, layout, &outcome.norms, encodings, &self.checkpoint, &mut sink).unwrap();
        bytes
    }

    fn score(&self, recovery: &Recovery, windows: &[Vec<u32>]) -> Score {
        Score::of(&recovery.guesses, &windows.concat(), &self.frequencies)
    }
}

#[test]
fn norms_of_a_text_are_those_that_the_model_measures() {
    let setting = Setting::new();
    let windows = setting.windows("austen_emma", 4, 128);
    let bytes = setting.ballot(&windows, Pruner::WANDA, Group::Row, Encodings::Auto, &[]);
    let ballot = Ballot::parse(&bytes, setting.checkpoint.layout()).unwrap();
    let measured = ballot.norms(0).unwrap();
    let told = norms_of_text(&setting.checkpoint, &windows.concat(), 4).unwrap();
    // the model sums in f32 what is summed in f64 here: a norm on the edge may round to its neighbour
    for (a, b) in measured.bits().iter().zip(told.bits()) {
        assert!(a.abs_diff(*b) <= 1, "{a} {b}");
    }
    let equal = measured.bits().iter().zip(told.bits()).filter(|(a, b)| a == b).count();
    assert!(equal * 10 >= measured.len() * 9, "{equal} of {}", measured.len());
}

#[test]
fn a_short_text_is_read_from_its_ballot_and_a_long_one_less_so() {
    let setting = Setting::new();
    let mut shares = Vec::new();
    for (samples, sequence_tokens) in [(1, 32), (4, 64), (32, 128)] {
        let windows = setting.windows("austen_emma", samples, sequence_tokens);
        let bytes = setting.ballot(&windows, Pruner::WANDA, Group::Row, Encodings::Auto, &[]);
        let ballot = Ballot::parse(&bytes, setting.checkpoint.layout()).unwrap();
        assert_eq!(ballot.encoding(0), Encoding::Norms);
        let recovery = recover(&setting.checkpoint, &ballot, &mut |_| {}).unwrap();
        assert_eq!(recovery.read_from, ReadFrom::Norms);
        let score = setting.score(&recovery, &windows);
        shares.push((score, score.recovered as f64 / score.distinct as f64));
    }
    let (short, share) = shares[0];
    assert!(share > 0.9, "{short:?}");
    assert!(short.recovered > 2 * short.baseline && short.beyond > 5, "{short:?}");
    assert!(shares[1].1 < share && shares[2].1 < shares[1].1, "{shares:?}");
}

#[test]
fn shares_are_those_of_the_text() {
    let setting = Setting::new();
    let mut tokens = vec![300; 60];
    tokens.extend(vec![700; 30]);
    tokens.extend(vec![1500; 10]);
    let vote = TextVote { tokens: &tokens, sequences: 1, pruner: Pruner::WANDA, masks_of: None };
    let recovery = recover_from_text(&setting.checkpoint, &vote, &mut |_| {}).unwrap();
    for (guess, (token, share)) in recovery.guesses.iter().zip([(300, 0.6), (700, 0.3), (1500, 0.1)]) {
        assert_eq!(guess.token, token, "{recovery:?}");
        assert!((guess.share - share).abs() < 0.02, "{recovery:?}");
    }
    let outside = TextVote { tokens: &[1 << 30], ..vote };
    let error = recover_from_text(&setting.checkpoint, &outside, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("outside the vocabulary of 2048"), "{error}");
}

/// What is pruned without data is the same whatever the text: the vote on it tells nothing, this attack or any other.
#[test]
fn a_data_free_vote_does_not_depend_on_the_text() {
    let setting = Setting::new();
    let data_free = [(0, Tap::AttentionInput)];
    for encodings in [Encodings::Auto, Encodings::MaskOnly] {
        let mut firsts = Vec::new();
        for text in ["austen_emma", "speeches_1945_1953"] {
            let windows = setting.windows(text, 1, 64);
            let bytes = setting.ballot(&windows, Pruner::WANDA, Group::Layer, encodings, &data_free);
            let ballot = Ballot::parse(&bytes, setting.checkpoint.layout()).unwrap();
            let masks: Vec<_> = setting.checkpoint.layout().taps()[0]
                .clone()
                .map(|index| ballot.mask(index, setting.checkpoint.matrix(index)).unwrap())
                .collect();
            firsts.push((ballot.norms(0).cloned(), masks, ballot.norms(1).cloned()));
        }
        assert_eq!(firsts[0].0, firsts[1].0);
        assert_eq!(firsts[0].1, firsts[1].1);
        // the same of what is not named differs, so that the comparison is not blind
        assert!(encodings == Encodings::MaskOnly || firsts[0].2 != firsts[1].2);
    }
}

#[test]
fn masks_alone_give_the_norms_away() {
    let setting = Setting::new();
    let windows = setting.windows("austen_emma", 1, 24);
    let truth = norms_of_text(&setting.checkpoint, &windows.concat(), 1).unwrap().to_f64();
    for (pruner, group, within) in
        [(Pruner::WANDA, Group::Layer, 0.02), (Pruner::WANDA, Group::Row, 0.04), (Pruner::RIA, Group::Layer, 0.06)]
    {
        let bytes = setting.ballot(&windows, pruner, group, Encodings::MaskOnly, &[]);
        let ballot = Ballot::parse(&bytes, setting.checkpoint.layout()).unwrap();
        assert!(ballot.norms(0).is_none(), "nothing but masks");
        let recovery = recover(&setting.checkpoint, &ballot, &mut |_| {}).unwrap();
        assert_eq!(recovery.read_from, ReadFrom::Masks);
        let score = setting.score(&recovery, &windows);
        let apart = Apart::of(&recovery.norms, &truth).unwrap();
        assert!(apart.median < within && apart.largest < 10.0 * within, "{pruner} {group}: {apart:?}");
        assert!(score.recovered > score.baseline, "{pruner} {group}: {score:?}");
    }
    let pattern = "2:4".parse().unwrap();
    let weights = setting.checkpoint.matrix(0);
    let mask = fedprune_mask::MatrixMask::kept(weights.rows(), weights.columns());
    let refused = MaskedMatrix::new(Pruner::WANDA, pattern, weights, &mask);
    assert!(matches!(refused, Err(DisclosureError::Unread(_))));
}
