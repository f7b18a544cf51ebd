//! Sizes of one silo's `layer` ballot in every encoding, of a real model.
//!
//! usage: cargo run --release -p fedprune-mask --example threshold_sizes -- MODEL.safetensors BALLOT...
//!
//! Each ballot is one of norms for a llama-like model in bf16, as `fedprune mask compute` writes it.

#![allow(clippy::print_stdout)]

use std::convert::Infallible;
use std::time::Instant;

use fedprune_mask::ballot::{BallotHeader, Encodings};
use fedprune_mask::layout::Matrix;
use fedprune_mask::{Ballot, DType, Layout, MatrixSource, Tap, WeightsView, encode_ballot};

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
        let packed = layout.packed_bytes();
        println!("{path}: packed {packed}");
        for encodings in [Encodings::Auto, Encodings::MaskOnly] {
            let start = Instant::now();
            let mut bytes = Vec::new();
            let mut sink = |part: &[u8]| {
                bytes.extend_from_slice(part);
                Ok::<_, Infallible>(())
            };
            let encoded = encode_ballot(header, &layout, &norms, encodings, &weights, &mut sink).expect("fits");
            let (encode, start) = (start.elapsed(), Instant::now());
            let parsed = Ballot::parse(&bytes, &layout).expect("just written");
            let (parse, start) = (start.elapsed(), Instant::now());
            for index in 0..layout.matrices().len() {
                parsed.mask(index, weights.matrix(index)).expect("just written");
            }
            let mask = start.elapsed();
            let ratio = packed as f64 / bytes.len() as f64;
            println!("  {encodings:?}: {} bytes, {ratio:.1}×; {encoded:?}", bytes.len());
            println!("    encode {encode:.1?}, parse {parse:.1?}, all masks {mask:.1?}");
            if encodings == Encodings::MaskOnly {
                for index in 0..layout.matrices().len() {
                    let view = weights.matrix(index);
                    assert_eq!(parsed.mask(index, view).expect("ok"), ballot.mask(index, view).expect("ok"));
                }
            }
        }
    }
}
