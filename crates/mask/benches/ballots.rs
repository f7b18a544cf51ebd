//! Ballots: writing and reading, of SmolLM2's shape (30 blocks, 97,920 channels, 13 MB of packed bits), and
//! one large bitmap; mask digests; zeroing where weights are stored.
//!
//! Throughput is in packed mask bytes, save for `apply`, which counts stored bytes. Norms are coded to their entropy,
//! about ten decisions each; what coded their exponents before is `rival/zstd-19`. Floors: a bitmap must be read once (`floor/read`)
//! and is hashed or compressed at the speed of BLAKE3 and zstd; zeroing reads and writes W once
//! (`floor/copy`).

mod common;

use std::convert::Infallible;
use std::hint::black_box;

use common::{Stored, norms, read_mask};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedprune_mask::ballot::{Encodings, MaskHeader, VoteHeader, check_budgets};
use fedprune_mask::layout::Matrix;
use fedprune_mask::tally::apply_to_stored;
use fedprune_mask::{
    Ballot, DType, Digest, Group, Layout, MatrixSource, NormVector, Pruner, Sparsity, Tap, WeightsView, derive_mask,
    encode_ballot, encode_mask,
};

/// Norm ballots read no weights.
struct NoWeights;

impl MatrixSource for NoWeights {
    fn matrix(&self, _: usize) -> WeightsView<'_> {
        unreachable!("norms win everywhere in this layout")
    }
}

fn smollm2() -> Layout {
    let block = |block| {
        [
            ("q", Tap::AttentionInput, 576, 576),
            ("k", Tap::AttentionInput, 192, 576),
            ("v", Tap::AttentionInput, 192, 576),
            ("o", Tap::AttentionOutput, 576, 576),
            ("gate", Tap::MlpInput, 1536, 576),
            ("up", Tap::MlpInput, 1536, 576),
            ("down", Tap::MlpOutput, 576, 1536),
        ]
        .map(|(name, tap, rows, columns)| Matrix {
            name: format!("{block}.{name}"),
            block,
            tap,
            rows,
            columns,
        })
    };
    Layout::new((0..30).flat_map(block).collect()).expect("a layout")
}

fn collect<E>(write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Infallible>) -> Result<(), E>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let result = write(&mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    assert!(result.is_ok());
    bytes
}

fn norm_ballot(criterion: &mut Criterion) {
    let layout = smollm2();
    let header = VoteHeader {
        model: Digest::of(b"model"),
        layout: layout.digest(),
        pruner: Pruner::WANDA,
        group: Group::Row,
        sparsity: Sparsity::new(1, 2).expect("in range"),
        samples: 2,
        sequence_tokens: 512,
    };
    let norms: Vec<NormVector> = layout
        .taps()
        .iter()
        .enumerate()
        .map(|(tap, range)| norms(layout.matrices()[range.start].columns as usize, tap as u64, 0))
        .collect();
    let encode =
        || collect(|sink| encode_ballot(&header, &layout, &norms, Encodings::Auto, &NoWeights, sink).map(drop));
    let bytes = encode();
    let mut group = criterion.benchmark_group("ballot/norms-smollm2");
    group.throughput(Throughput::Bytes(layout.packed_bytes())).sample_size(10);
    let exponents: Vec<u8> = norms.iter().flat_map(|norms| norms.bits()).map(|bits| 254 - (bits >> 7) as u8).collect();
    group.bench_function("rival/zstd-19", |bencher| bencher.iter(|| zstd::bulk::compress(black_box(&exponents), 19)));
    group.bench_function(format!("encode-to-{}-bytes", bytes.len()), |bencher| bencher.iter(encode));
    group.bench_function("parse", |bencher| bencher.iter(|| Ballot::parse(black_box(&bytes), &layout).map(drop)));
    group.finish();
}

fn bitmap(criterion: &mut Criterion) {
    let (rows, columns) = (4096u32, 11008u32);
    let matrix = Matrix { name: "down".to_owned(), block: 0, tap: Tap::MlpOutput, rows, columns };
    let layout = Layout::new(vec![matrix]).expect("a layout");
    let weights = Stored::new(rows as usize, columns as usize);
    let norms = norms(columns as usize, 1, 0);
    for (name, pool) in [("row", Group::Row), ("2:4", Group::NofM { n: 2, m: 4 })] {
        let sparsity = Sparsity::new(1, 2).expect("in range");
        let mask = derive_mask(Pruner::WANDA, pool, sparsity, weights.view(), &norms).expect("it fits");
        let header =
            MaskHeader { model: Digest::of(b"model"), layout: layout.digest(), group: pool, sparsity, votes: 1 };
        let encode = || {
            collect(|sink| encode_mask(&header, &layout, &mut |_| Ok::<_, Infallible>(mask.clone()), sink).map(drop))
        };
        let bytes = encode();
        let packed = mask.to_bytes();
        let mut group = criterion.benchmark_group(format!("ballot/bitmap-{rows}x{columns}-{name}"));
        group.throughput(Throughput::Bytes(packed.len() as u64)).sample_size(10);
        group.bench_function("floor/read", |bencher| bencher.iter(|| read_mask(black_box(&mask))));
        group.bench_function("floor/blake3", |bencher| bencher.iter(|| Digest::of(black_box(&packed))));
        group.bench_function("digest", |bencher| bencher.iter(|| black_box(&mask).digest()));
        group.bench_function("check_budgets", |bencher| {
            bencher.iter(|| check_budgets(black_box(&mask), pool, sparsity))
        });
        group.bench_function(format!("encode-to-{}-bytes", bytes.len()), |bencher| bencher.iter(encode));
        group.bench_function("decode", |bencher| {
            bencher.iter(|| {
                let ballot = Ballot::parse(black_box(&bytes), &layout).expect("just written");
                ballot.mask(0, weights.view()).map(drop)
            });
        });
        group.finish();

        let mut stored = weights.bytes.clone();
        let mut group = criterion.benchmark_group(format!("apply/{rows}x{columns}-{name}"));
        group.throughput(Throughput::Bytes(stored.len() as u64)).sample_size(10);
        group
            .bench_function("floor/copy", |bencher| bencher.iter(|| stored.copy_from_slice(black_box(&weights.bytes))));
        group.bench_function("zero", |bencher| {
            bencher.iter(|| apply_to_stored(black_box(&mut stored), DType::BF16, &mask, None));
        });
        group.finish();
    }
}

criterion_group!(benches, norm_ballot, bitmap);
criterion_main!(benches);
