//! Tally of 64 masks of one 4096 × 11008 matrix: counting, then the global mask; and both from norms.
//!
//! Throughput is in packed mask bytes (64 × 5.6 MB) for counting, in stored bytes of W (90 MB) for selection,
//! and in weights × voters for `tally/voters-64`, which derives every voter's mask, counts it, and selects
//! globally. Floors: counting reads every mask once (`floor/read`); selecting reads the planes and the tying
//! weights only. `planes` counts into memory in use, `planes-new` asks for 40 MB of zeroed memory first.
//! `one-by-one` and `by-keys` are the slow references that tests hold the kernels to.

mod common;

use std::hint::black_box;

use common::{Stored, norms, read_all, read_mask};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedprune_mask::select::select;
use fedprune_mask::tally::{BATCH, GlobalKeys, apply_to_stored, count_one_by_one, global_mask};
use fedprune_mask::{Counts, DType, Group, MatrixMask, NormVector, Pruner, Sparsity, derive_mask};

const SILOS: u32 = 64;

fn tally(criterion: &mut Criterion) {
    let (rows, columns) = (4096, 11008);
    let sparsity = Sparsity::new(1, 2).expect("in range");
    let weights = Stored::new(rows, columns);
    let masks: Vec<MatrixMask> = (0..SILOS)
        .map(|silo| {
            let norms = norms(columns, 1, u64::from(silo));
            derive_mask(Pruner::WANDA, Group::Row, sparsity, weights.view(), &norms).expect("it fits")
        })
        .collect();
    let differing = masks[0].count_different(&masks[1]) as f64 / (rows * columns) as f64;
    assert!((0.01..0.2).contains(&differing), "two silos differ in {differing} of the bits; real ones in about 0.05");
    let all: Vec<&MatrixMask> = masks.iter().collect();
    let count = || {
        let mut counts = Counts::new(rows, columns, SILOS);
        counts.add(1, &all).expect("as announced");
        counts
    };

    let mut group = criterion.benchmark_group("tally/count-64");
    group.throughput(Throughput::Bytes((rows * columns / 8) as u64 * u64::from(SILOS))).sample_size(10);
    group.bench_function("floor/read", |bencher| {
        bencher.iter(|| all.iter().fold(0, |sum, mask| sum ^ read_mask(black_box(mask))));
    });
    let mut used = count();
    group.bench_function("planes", |bencher| bencher.iter(|| used.recount(1, black_box(&all))));
    group.bench_function("planes-new", |bencher| bencher.iter(count));
    group.bench_function("one-by-one", |bencher| {
        let votes: Vec<(u32, &MatrixMask)> = all.iter().map(|mask| (1, *mask)).collect();
        bencher.iter(|| count_one_by_one(black_box(&votes)));
    });
    group.finish();

    let counts = count();
    let mut group = criterion.benchmark_group("tally/global");
    group.throughput(Throughput::Bytes(weights.bytes.len() as u64)).sample_size(10);
    group.bench_function("floor/read", |bencher| bencher.iter(|| read_all(black_box(&weights.bytes))));
    for (name, pool) in [("layer", Group::Layer), ("row", Group::Row), ("2:4", Group::NofM { n: 2, m: 4 })] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| global_mask(black_box(weights.view()), &counts, pool, sparsity));
        });
        group.bench_function(format!("by-keys/{name}"), |bencher| {
            bencher
                .iter(|| select(black_box(weights.view()), &GlobalKeys::new(&counts, weights.view()), pool, sparsity));
        });
    }
    let mask = global_mask(weights.view(), &counts, Group::Layer, sparsity);
    let mut stored = weights.bytes.clone();
    group.bench_function("apply/support", |bencher| {
        bencher.iter(|| apply_to_stored(black_box(&mut stored), DType::BF16, &mask, Some(&counts)));
    });
    group.finish();
}

fn voters(criterion: &mut Criterion) {
    let (rows, columns) = (4096, 11008);
    let sparsity = Sparsity::new(1, 2).expect("in range");
    let weights = Stored::new(rows, columns);
    let silos: Vec<NormVector> = (0..SILOS).map(|silo| norms(columns, 1, u64::from(silo))).collect();
    let mut group = criterion.benchmark_group("tally/voters-64");
    group.throughput(Throughput::Elements((rows * columns) as u64 * u64::from(SILOS))).sample_size(10);
    let fours = Group::NofM { n: 2, m: 4 };
    for (name, local, global) in [("row", Group::Row, Group::Layer), ("2:4", fours, fours)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut counts = Counts::new(rows, columns, SILOS);
                for batch in silos.chunks(BATCH) {
                    let derive = |norms| derive_mask(Pruner::WANDA, local, sparsity, weights.view(), norms);
                    let masks: Vec<MatrixMask> = batch.iter().map(|norms| derive(norms).expect("it fits")).collect();
                    counts.add(1, &masks.iter().collect::<Vec<_>>()).expect("as announced");
                }
                global_mask(weights.view(), &counts, global, sparsity)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tally, voters);
criterion_main!(benches);
