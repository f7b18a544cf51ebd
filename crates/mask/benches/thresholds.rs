//! Column thresholds: one silo's `layer` ballot, and the tally of 64 of them.
//!
//! Throughput is in stored bytes of W, so that every line stands beside `floor/read`, one read of W on all
//! cores. `expanded` is what the tally by thresholds is held to, bit for bit: every mask made and counted.
//! Floors: encoding reads W twice (band, gaps), deriving a mask by thresholds once, the tally twice.
//!
//! `threshold-count` is the number of votes at which the budget runs out, from thresholds and histograms that one read
//! of W has made (`layer-votes`).

mod common;

use std::convert::Infallible;
use std::hint::black_box;

use common::{Stored, norms, read_all};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedprune_mask::ballot::{Encodings, VoteHeader};
use fedprune_mask::layout::Matrix;
use fedprune_mask::tally::{Voter, global_mask};
use fedprune_mask::{
    Ballot, Digest, Group, Layout, MatrixSource, NormVector, Pruner, Sparsity, Tally, Tap, WeightsView, derive_mask,
    encode_ballot,
};

const SILOS: u64 = 64;

struct One<'a>(&'a Stored);

impl MatrixSource for One<'_> {
    fn matrix(&self, _: usize) -> WeightsView<'_> {
        self.0.view()
    }
}

fn encoded(layout: &Layout, weights: &Stored, norms: &NormVector, encodings: Encodings) -> Vec<u8> {
    let header = VoteHeader {
        model: Digest::of(b"model"),
        layout: layout.digest(),
        pruner: Pruner::WANDA,
        group: Group::Layer,
        sparsity: Sparsity::new(1, 2).expect("in range"),
        samples: 2,
        sequence_tokens: 512,
    };
    let mut bytes = Vec::new();
    let mut sink = |part: &[u8]| {
        bytes.extend_from_slice(part);
        Ok::<_, Infallible>(())
    };
    encode_ballot(&header, layout, std::slice::from_ref(norms), encodings, &One(weights), &mut sink).expect("it fits");
    bytes
}

fn thresholds(criterion: &mut Criterion) {
    let half = Sparsity::new(1, 2).expect("in range");
    for (rows, columns) in [(4096, 4096), (4096, 11008)] {
        let weights = Stored::new(rows, columns);
        let matrix =
            Matrix { name: "w".to_owned(), block: 0, tap: Tap::MlpOutput, rows: rows as u32, columns: columns as u32 };
        let layout = Layout::new(vec![matrix]).expect("a layout");
        let of_silo = |silo: u64| norms(columns, 1, silo);

        let bytes = encoded(&layout, &weights, &of_silo(0), Encodings::MaskOnly);
        let ballot = Ballot::parse(&bytes, &layout).expect("just written");
        let mut group = criterion.benchmark_group(format!("thresholds/ballot-{rows}x{columns}"));
        group.throughput(Throughput::Bytes(weights.bytes.len() as u64)).sample_size(10);
        group.bench_function("floor/read", |bencher| bencher.iter(|| read_all(black_box(&weights.bytes))));
        group.bench_function(format!("encode-to-{}-bytes", bytes.len()), |bencher| {
            bencher.iter(|| encoded(&layout, black_box(&weights), &of_silo(0), Encodings::MaskOnly));
        });
        group.bench_function("parse", |bencher| bencher.iter(|| Ballot::parse(black_box(&bytes), &layout).map(drop)));
        group.bench_function("mask-and-check", |bencher| bencher.iter(|| ballot.mask(0, black_box(weights.view()))));
        group.bench_function("mask-from-norms", |bencher| {
            bencher.iter(|| derive_mask(Pruner::WANDA, Group::Layer, half, black_box(weights.view()), &of_silo(0)));
        });
        group.finish();

        for (name, encodings) in [("norms", Encodings::Auto), ("column-thresholds", Encodings::MaskOnly)] {
            let ballots: Vec<Vec<u8>> =
                (0..SILOS).map(|silo| encoded(&layout, &weights, &of_silo(silo), encodings)).collect();
            let voters = ballots.iter().enumerate().map(|(silo, bytes)| Voter {
                name: silo.to_string(),
                weight: 1,
                ballot: Ballot::parse(bytes, &layout).expect("just written"),
            });
            let tally = Tally::new(&layout, Group::Layer, voters.collect()).expect("one round");
            let view = weights.view();
            let votes = tally.layer_votes(0, view).expect("the shape").expect("column prefixes");
            assert_eq!(votes.counts(view), tally.counts_by_masks(0, view).expect("sound"));
            let mut group = criterion.benchmark_group(format!("thresholds/tally-64-{name}-{rows}x{columns}"));
            group.throughput(Throughput::Bytes(weights.bytes.len() as u64)).sample_size(10);
            group.bench_function("floor/read", |bencher| bencher.iter(|| read_all(black_box(&weights.bytes))));
            group.bench_function("mask", |bencher| bencher.iter(|| tally.mask(0, black_box(view))));
            group.bench_function("mask-and-counts", |bencher| bencher.iter(|| tally.matrix(0, black_box(view))));
            group.bench_function("layer-votes", |bencher| bencher.iter(|| tally.layer_votes(0, black_box(view))));
            group.bench_function("threshold-count", |bencher| bencher.iter(|| black_box(&votes).threshold()));
            if columns == 4096 {
                group.bench_function("expanded", |bencher| {
                    bencher.iter(|| {
                        let counts = tally.counts_by_masks(0, black_box(view)).expect("sound");
                        global_mask(view, &counts, Group::Layer, half)
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, thresholds);
criterion_main!(benches);
