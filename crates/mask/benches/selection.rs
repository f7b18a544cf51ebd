//! Selection: stored bf16 weights and norms to a mask. Throughput is in stored bytes of W.
//!
//! Floor: every selection of real weights reads W once and writes a sixteenth of that; `floor/read` is one read of
//! W on all cores in the same run. `RAYON_NUM_THREADS=1` measures one thread.

mod common;

use std::hint::black_box;

use common::{Stored, norms, read_all};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fedprune_mask::{Group, Pruner, Sparsity, derive_mask};

fn selection(criterion: &mut Criterion) {
    let sparsity = Sparsity::new(1, 2).expect("in range");
    for (rows, columns) in [(4096, 11008), (11008, 4096)] {
        let weights = Stored::new(rows, columns);
        let norms = norms(columns, 1, 0);
        let mut group = criterion.benchmark_group(format!("selection/{rows}x{columns}"));
        group.throughput(Throughput::Bytes(weights.bytes.len() as u64)).sample_size(10);
        group.bench_function("floor/read", |bencher| bencher.iter(|| read_all(black_box(&weights.bytes))));
        for (name, pool) in [
            ("layer", Group::Layer),
            ("row", Group::Row),
            ("column", Group::Column),
            ("2:4", Group::NofM { n: 2, m: 4 }),
        ] {
            group.bench_function(format!("wanda/{name}"), |bencher| {
                bencher.iter(|| derive_mask(Pruner::WANDA, pool, sparsity, black_box(weights.view()), &norms));
            });
        }
        group.bench_function("magnitude/row", |bencher| {
            bencher.iter(|| derive_mask(Pruner::MAGNITUDE, Group::Row, sparsity, black_box(weights.view()), &norms));
        });
        group.bench_function("ria/row", |bencher| {
            bencher.iter(|| derive_mask(Pruner::RIA, Group::Row, sparsity, black_box(weights.view()), &norms));
        });
        group.finish();
    }
}

criterion_group!(benches, selection);
criterion_main!(benches);
