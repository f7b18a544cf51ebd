//! The kernels on a GPU give what `fedprune_mask` gives, bit for bit. Without a device each test says so and is left out; with
//! `FEDPRUNE_GPU=insist` that is a failure.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stderr)]

use std::time::Instant;

use fedprune_gpu::bytes::selection_floor;
use fedprune_gpu::{Gpu, GpuError};
use fedprune_mask::tally::global_mask;
use fedprune_mask::{Counts, DType, Group, MatrixMask, NormVector, Pruner, Sparsity, WeightsView, derive_mask};
use half::{bf16, f16};

fn gpu() -> Option<Gpu> {
    // cudarc panics where it does not find the driver
    let opened = std::panic::catch_unwind(|| Gpu::open(0));
    match opened {
        Ok(Ok(gpu)) => Some(gpu),
        problem => {
            let why =
                problem.map_or_else(|_| "there is no driver".to_owned(), |error| error.err().unwrap().to_string());
            assert!(std::env::var("FEDPRUNE_GPU").as_deref() != Ok("insist"), "{why}");
            eprintln!("there is no GPU to try the kernels on: {why}");
            None
        }
    }
}

struct Noise(u64);

impl Noise {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }

    fn normal(&mut self) -> f32 {
        (0..8).map(|_| self.next(1 << 20) as f32 / (1 << 20) as f32 - 0.5).sum()
    }
}

/// Weights of which some tie, and some are zero.
fn weights_of(dtype: DType, count: usize, noise: &mut Noise) -> Vec<u8> {
    let one = |_| {
        let value = match noise.next(16) {
            0 => 0.0,
            1..4 => noise.next(20) as f32 / 64.0,
            _ => noise.normal(),
        };
        match dtype {
            DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            DType::F32 => value.to_le_bytes().to_vec(),
        }
    };
    (0..count).flat_map(one).collect()
}

fn norms_of(columns: usize, noise: &mut Noise) -> NormVector {
    let mut bits: Vec<u16> = (0..columns).map(|_| ((240 + noise.next(15)) << 7 | noise.next(128)) as u16).collect();
    bits[0] = 254 << 7; // canonical
    NormVector::from_canonical_bits(bits).unwrap()
}

/// Every pruner, group and dtype, at widths that meet words and rows in different ways.
#[test]
fn masks_are_those_of_the_processor() {
    let Some(mut gpu) = gpu() else { return };
    let mut noise = Noise(1);
    for (rows, columns) in [(1, 1), (7, 13), (64, 64), (129, 1000), (512, 4096), (300, 11008), (33, 70_000)] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let bytes = weights_of(dtype, rows * columns, &mut noise);
            let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
            let owned = gpu.upload_weights(weights).unwrap();
            let lent = gpu.lend(&owned).unwrap();
            let norms = norms_of(columns, &mut noise);
            let mut groups = vec![Group::Layer, Group::Row, Group::Column];
            let of_m = [(1, 2), (2, 4), (4, 8), (3, 5), (40, 64)].into_iter();
            groups.extend(of_m.filter(|(_, m)| columns.is_multiple_of(*m as usize)).map(|(n, m)| Group::NofM { n, m }));
            for pruner in [Pruner::WANDA, Pruner::MAGNITUDE, Pruner::RIA] {
                let on_device = gpu.upload_norms(pruner, &norms).unwrap();
                for &group in &groups {
                    for numerator in [1, 50, 97] {
                        let sparsity = Sparsity::new(numerator, 100).unwrap();
                        let mask = gpu.derive_mask(group, sparsity, &lent, &on_device).unwrap();
                        let found = gpu.download_mask(&mask).unwrap();
                        let expected = derive_mask(pruner, group, sparsity, weights, &norms).unwrap();
                        let different = found.count_different(&expected);
                        assert_eq!(different, 0, "{pruner} {group} {dtype} {rows} × {columns} at {sparsity}");
                    }
                }
            }
        }
    }
}

#[test]
fn votes_are_counted_as_on_the_processor() {
    let Some(mut gpu) = gpu() else { return };
    let mut noise = Noise(2);
    let (rows, columns) = (700, 1001);
    let bytes = weights_of(DType::BF16, rows * columns, &mut noise);
    let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
    let owned = gpu.upload_weights(weights).unwrap();
    let lent = gpu.lend(&owned).unwrap();
    let votes: Vec<u32> = (0..64).map(|vote| if vote == 9 { 1_000_000 } else { 1 + vote % 3 }).collect();
    let total = votes.iter().sum();
    let mut expected = Counts::new(rows, columns, total);
    let mut counts = gpu.counts(rows, columns, total).unwrap();
    for weight in votes {
        let mut mask = MatrixMask::kept(rows, columns);
        (0..rows * columns).filter(|_| noise.next(2) == 0).for_each(|at| mask.prune(at / columns, at % columns));
        expected.add(weight, &[&mask]).unwrap();
        let mask = gpu.upload_mask(&mask).unwrap();
        gpu.add_vote(&mut counts, weight, &mask).unwrap();
    }
    for group in [Group::Layer, Group::Row, Group::Column, Group::NofM { n: 3, m: 7 }] {
        let sparsity = Sparsity::new(1, 2).unwrap();
        let mask = gpu.global_mask(group, sparsity, &lent, &counts).unwrap();
        let found = gpu.download_mask(&mask).unwrap();
        assert_eq!(found.count_different(&global_mask(weights, &expected, group, sparsity)), 0, "{group}");
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let Some(mut gpu) = gpu() else { return };
    let (rows, columns) = (257, 1024);
    let mut bytes = weights_of(DType::BF16, rows * columns, &mut Noise(3));
    for at in [200_000usize, 100_001] {
        bytes[2 * at..2 * at + 2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
    }
    let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
    let owned = gpu.upload_weights(weights).unwrap();
    let lent = gpu.lend(&owned).unwrap();
    let norms = gpu.upload_norms(Pruner::WANDA, &norms_of(columns, &mut Noise(4))).unwrap();
    for group in [Group::Layer, Group::Row, Group::Column, Group::NofM { n: 2, m: 4 }] {
        let error = gpu.derive_mask(group, Sparsity::new(1, 2).unwrap(), &lent, &norms).err().unwrap();
        assert!(matches!(error, GpuError::Weights(_)), "{error}");
        assert_eq!(error.to_string(), weights.check_finite().unwrap_err().to_string());
    }
}

/// Prints how fast selection is: bytes of its floor a second, many queued at once. No number is asked for here: that is a
/// measurement's business.
#[test]
fn how_fast_selection_is() {
    let Some(mut gpu) = gpu() else { return };
    let (rows, columns, times) = (4096, 11008, 50);
    let mut noise = Noise(5);
    let bytes = weights_of(DType::BF16, rows * columns, &mut noise);
    let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
    let owned = gpu.upload_weights(weights).unwrap();
    let lent = gpu.lend(&owned).unwrap();
    let norms = gpu.upload_norms(Pruner::WANDA, &norms_of(columns, &mut noise)).unwrap();
    let floor = selection_floor(DType::BF16, rows, columns).total();
    for group in [Group::Layer, Group::Row, Group::NofM { n: 2, m: 4 }, Group::Column] {
        let half = Sparsity::new(1, 2).unwrap();
        gpu.derive_mask(group, half, &lent, &norms).unwrap();
        gpu.synchronize().unwrap();
        let started = Instant::now();
        let all: Vec<_> = (0..times).map(|_| gpu.start_mask(group, half, &lent, &norms).unwrap()).collect();
        gpu.synchronize().unwrap();
        let seconds = started.elapsed().as_secs_f64() / f64::from(times);
        for selection in all {
            gpu.finish_mask(selection).unwrap();
        }
        let rate = floor as f64 / seconds / 1e9;
        eprintln!("selection {group} of {rows} × {columns}: {:.1} µs, {rate:.0} GB/s of its floor", seconds * 1e6);
    }
}
