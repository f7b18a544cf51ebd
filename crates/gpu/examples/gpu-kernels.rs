//! What our own kernels and copies take on a GPU, alone: for `examples/gpu/run.sh`, which compares it with what the GPU does
//! at best.
//!
//! usage: gpu-kernels upload|select [--device N] [--rows R] [--columns C] [--json]
//! Prints one JSON object: seconds, the best of some runs, and the bytes that must move.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use cudarc::driver::CudaContext;
use fedprune_gpu::Gpu;
use fedprune_gpu::found;
use fedprune_gpu::upload::Uploader;
use fedprune_mask::{DType, Group, NormVector, Pruner, Sparsity, WeightsView};
use half::bf16;

/// Bytes that are uploaded: some blocks of LLaMA-7B.
const UPLOAD_BYTES: usize = 4 << 30;
/// Selections under way at once.
const SELECTIONS: usize = 16;
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| -> Result<usize, Box<dyn Error>> {
        match arguments.iter().position(|argument| argument == name) {
            Some(at) => Ok(arguments.get(at + 1).ok_or("a number is missing")?.parse()?),
            None => Ok(default),
        }
    };
    let device = number("--device", 0)?;
    let there = found::count()?;
    if device >= there {
        return Err(format!("there is no GPU {device}: the driver knows {there}, counted from 0").into());
    }
    match arguments.first().map(String::as_str) {
        Some("upload") => upload(device),
        Some("select") => select(device, number("--rows", 4096)?, number("--columns", 11008)?),
        _ => Err("usage: gpu-kernels upload|select [--device N] [--rows R] [--columns C] [--json]".into()),
    }
}

/// bf16 weights as random as they must be for nothing to be easy: SplitMix64, exponents around one.
fn weights(count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * count);
    let mut state = 1u64;
    while bytes.len() < 2 * count {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        for part in 0..4 {
            let bits = (z >> (16 * part)) as u16;
            // sign and significand as drawn; one of eight exponents
            bytes.extend((bits & 0x807f | (0x3c00 + (bits >> 7 & 7) * 0x80)).to_le_bytes());
        }
    }
    bytes.truncate(2 * count);
    bytes
}

fn upload(device: usize) -> Result<(), Box<dyn Error>> {
    let context = CudaContext::new(device)?;
    found::keep_freed_memory(&context)?;
    let mut uploader = Uploader::new(&*context.new_stream()?)?;
    let source = weights(UPLOAD_BYTES / 2);
    let threads = std::thread::available_parallelism()?.get().min(16);
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let started = Instant::now();
        let there = uploader.upload::<bf16>(UPLOAD_BYTES / 2, &mut |range, out| {
            let part = &source[2 * range.start..2 * range.end];
            let step = part.len().div_ceil(threads);
            std::thread::scope(|scope| {
                for (out, part) in out.chunks_mut(step).zip(part.chunks(step)) {
                    scope.spawn(|| out.copy_from_slice(part));
                }
            });
        })?;
        uploader.wait()?;
        best = best.min(started.elapsed().as_secs_f64());
        drop(there);
    }
    println!(
        "{{\"bytes\": {UPLOAD_BYTES}, \"seconds\": {best}, \"bytes_per_second\": {}}}",
        UPLOAD_BYTES as f64 / best
    );
    Ok(())
}

fn select(device: usize, rows: usize, columns: usize) -> Result<(), Box<dyn Error>> {
    let mut gpu = Gpu::open(device)?;
    let bytes = weights(rows * columns);
    let view = WeightsView::new(DType::BF16, rows, columns, &bytes)?;
    let on_device = gpu.upload_weights(view)?;
    let sums: Vec<f64> = (0..columns).map(|column| 1.0 + (column * 7919 % 1009) as f64).collect();
    let norms = gpu.upload_norms(Pruner::WANDA, &NormVector::from_sums(&sums, 1)?)?;
    let half = Sparsity::new(1, 2)?;
    let least = 2 * rows * columns + (rows * columns).div_ceil(8) + 2 * columns;
    let mut told = Vec::new();
    for (name, group) in [("layer", Group::Layer), ("row", Group::Row), ("2of4", "2:4".parse()?)] {
        let sparsity = group.fixed_sparsity().unwrap_or(half);
        let lent = gpu.lend(&on_device)?;
        let mut best = f64::INFINITY;
        for _ in 0..=RUNS {
            gpu.synchronize()?;
            let started = Instant::now();
            let mut under_way = Vec::with_capacity(SELECTIONS);
            for _ in 0..SELECTIONS {
                under_way.push(gpu.start_mask(group, sparsity, &lent, &norms)?);
            }
            gpu.synchronize()?;
            // the first run loads the kernels
            best = best.min(started.elapsed().as_secs_f64() / SELECTIONS as f64);
            for selection in under_way {
                gpu.finish_mask(selection)?;
            }
        }
        told.push(format!("\"{name}\": {{\"seconds\": {best}, \"bytes\": {least}}}"));
    }
    println!("{{\"rows\": {rows}, \"columns\": {columns}, {}}}", told.join(", "));
    Ok(())
}
