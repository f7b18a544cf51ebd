//! Tally of 64 row masks of one 4096 × 4096 matrix: counting, then the global mask.
//!
//! Throughput is in packed mask bytes (64 × 2 MB) for counting and in stored bytes of W (32 MB) for
//! selection. Floors: counting reads every mask once (`floor/read`); selecting reads the planes and the
//! tying weights only. `one-by-one` and `by-keys` are the slow references that tests hold the kernels to.

mod common;

use std::hint::black_box;

use common::{Stored, norms, read_all, read_mask};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedprune_mask::select::select;
use fedprune_mask::tally::{GlobalKeys, apply_to_stored, count_one_by_one, global_mask};
use fedprune_mask::{Counts, DType, Group, MatrixMask, Pruner, Sparsity, derive_mask};

const SILOS: u32 = 64;

fn tally(criterion: &mut Criterion) {
    let (rows, columns) = (4096, 4096);
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
    group.bench_function("planes", |bencher| bencher.iter(count));
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

criterion_group!(benches, tally);
criterion_main!(benches);
