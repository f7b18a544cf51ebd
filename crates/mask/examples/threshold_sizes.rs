//! Sizes of one silo's `layer` ballot in every encoding, of a real model.
//!
//! usage: cargo run --release -p fedprune-mask --example threshold_sizes -- MODEL.safetensors BALLOT...
//!
//! Each ballot is one of norms for a llama-like model in bf16, as `fedprune mask compute` writes it. Besides, a matrix of
//! 4096 × 4096 Gaussian bf16 weights is made, alone and with two more that share its input, whose norms are
//! drawn from those of the first ballot's attention inputs of the middle block (with replacement, each times
//! 2^±1/8 at random, lest the few values there are repeat).

#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::time::Instant;

use fedprune_mask::ballot::{BallotHeader, Encodings, VoteHeader};
use fedprune_mask::layout::Matrix;
use fedprune_mask::{Ballot, DType, Layout, MatrixSource, NormVector, Tap, WeightsView, encode_ballot};
use half::bf16;

struct Weights<'a>(Layout, Vec<&'a [u8]>);

impl MatrixSource for Weights<'_> {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.0.matrices()[index];
        WeightsView::new(DType::BF16, matrix.rows as usize, matrix.columns as usize, self.1[index]).expect("bf16")
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let file = std::fs::read(&arguments[0]).expect("the model");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    let names = [
        ("self_attn.q_proj", Tap::AttentionInput),
        ("self_attn.k_proj", Tap::AttentionInput),
        ("self_attn.v_proj", Tap::AttentionInput),
        ("self_attn.o_proj", Tap::AttentionOutput),
        ("mlp.gate_proj", Tap::MlpInput),
        ("mlp.up_proj", Tap::MlpInput),
        ("mlp.down_proj", Tap::MlpOutput),
    ];
    let (mut matrices, mut bytes) = (Vec::new(), Vec::new());
    for block in 0.. {
        for (name, tap) in names {
            let name = format!("model.layers.{block}.{name}.weight");
            let Ok(tensor) = tensors.tensor(&name) else { break };
            let (rows, columns) = (tensor.shape()[0] as u32, tensor.shape()[1] as u32);
            matrices.push(Matrix { name, block, tap, rows, columns });
            bytes.push(tensor.data());
        }
        if matrices.last().is_none_or(|matrix| matrix.block != block) {
            break;
        }
    }
    let layout = Layout::new(matrices).expect("a layout");
    let weights = Weights(layout.clone(), bytes);
    for path in &arguments[1..] {
        let file = std::fs::read(path).expect("a ballot");
        let ballot = Ballot::parse(&file, &layout).expect("a ballot of this model");
        let BallotHeader::Vote(header) = ballot.header() else { panic!("a vote") };
        let norms: Vec<_> = (0..layout.taps().len()).map(|tap| ballot.norms(tap).expect("norms").clone()).collect();
        println!("{path}: packed {}", layout.packed_bytes());
        sizes(header, &layout, &norms, &weights);
        if path == &arguments[1] {
            synthetic(header, &norms[layout.taps().len() / 2 / 4 * 4]);
        }
    }
}

/// One matrix of 4096 × 4096, then three.
fn synthetic(header: &VoteHeader, source: &NormVector) {
    let mut state = 1u64;
    let mut unit = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let drawn: Vec<f64> = source.to_f64().iter().map(|norm| norm * 2f64.powi(-126)).collect();
    let sums: Vec<f64> = (0..4096)
        .map(|_| (drawn[(unit() * drawn.len() as f64) as usize] * 2f64.powf((unit() - 0.5) / 4.0)).powi(2))
        .collect();
    let norms = [NormVector::from_sums(&sums, 1).expect("finite")];
    let mut normal = move || (-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
    let bytes: Vec<Vec<u8>> = (0..3)
        .map(|_| (0..4096 * 4096).flat_map(|_| bf16::from_f64(0.02 * normal()).to_le_bytes()).collect())
        .collect();
    for matrices in [1, 3] {
        let matrix =
            |at: usize| Matrix { name: at.to_string(), block: 0, tap: Tap::AttentionInput, rows: 4096, columns: 4096 };
        let layout = Layout::new((0..matrices).map(matrix).collect()).expect("a layout");
        let header = VoteHeader { layout: layout.digest(), ..header.clone() };
        println!("{matrices} × 4096 × 4096, one input: packed {}", layout.packed_bytes());
        let weights = Weights(layout.clone(), bytes[..matrices].iter().map(Vec::as_slice).collect());
        sizes(&header, &layout, &norms, &weights);
    }
}

fn sizes(header: &VoteHeader, layout: &Layout, norms: &[NormVector], weights: &Weights<'_>) {
    let packed = layout.packed_bytes();
    let mut expected = Vec::new();
    for encodings in [Encodings::Auto, Encodings::MaskOnly] {
        let start = Instant::now();
        let mut bytes = Vec::new();
        let mut sink = |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok::<_, Infallible>(())
        };
        let encoded = encode_ballot(header, layout, norms, encodings, weights, &mut sink).expect("fits");
        let (encode, start) = (start.elapsed(), Instant::now());
        let parsed = Ballot::parse(&bytes, layout).expect("just written");
        let (parse, start) = (start.elapsed(), Instant::now());
        for index in 0..layout.matrices().len() {
            parsed.mask(index, weights.matrix(index)).expect("just written");
        }
        let mask = start.elapsed();
        let ratio = packed as f64 / bytes.len() as f64;
        println!("  {encodings:?}: {} bytes, {ratio:.1}×; {encoded:?}", bytes.len());
        println!("    encode {encode:.1?}, parse {parse:.1?}, all masks {mask:.1?}");
        let masks = |ballot: &Ballot<'_>| -> Vec<_> {
            let masks = (0..layout.matrices().len()).map(|index| ballot.mask(index, weights.matrix(index)));
            masks.map(|mask| mask.expect("just written").digest()).collect()
        };
        match encodings {
            Encodings::Auto => expected = masks(&parsed),
            Encodings::MaskOnly => assert_eq!(masks(&parsed), expected, "the same masks"),
        }
    }
}
