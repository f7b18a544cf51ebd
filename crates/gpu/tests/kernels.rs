//! The kernels, emulated on the processor, give what `fedprune_mask` gives, bit for bit, in whatever order threads run.
//!
//! Two variants of the same program are watched by sanitizers, for a few cases: one for what reads or writes past an end, is
//! misaligned, or is arithmetic that C++ does not define; one for threads that touch the same memory without a barrier between.

mod emulation;

use emulation::{Emulator, Order, Watched};
use fedprune_gpu::device::Device;
use fedprune_gpu::{Causal, DeviceTally, Engine, GpuError, Weights};
use fedprune_mask::ballot::{Ballot, Encodings, Header, MaskHeader, VoteHeader, encode_ballot, encode_mask};
use fedprune_mask::layout::{Layout, Matrix, Tap};
use fedprune_mask::tally::{Tally, Voter, global_mask};
use fedprune_mask::weights::MatrixSource;
use fedprune_mask::{Counts, DType, Digest, Group, MatrixMask, NormVector, Pruner, Sparsity, WeightsView, derive_mask};
use half::{bf16, f16};
use proptest::prelude::*;

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
const PRUNERS: [Pruner; 3] = [Pruner::WANDA, Pruner::MAGNITUDE, Pruner::RIA];
const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Seeded(9)];

fn engine(watched: Watched) -> Option<Engine<Emulator>> {
    let emulator = Emulator::new(watched, Order::Forward);
    if emulator.is_none() {
        eprintln_left_out(watched);
    }
    emulator.map(Engine::on)
}

/// Says on standard error what was not tried.
#[allow(clippy::print_stderr)]
fn eprintln_left_out(watched: Watched) {
    eprintln!("the C++ compiler has no sanitizer for {watched:?}: the kernels were not watched by it");
}

fn fast() -> Engine<Emulator> {
    engine(Watched::No).expect("a C++ compiler")
}

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }

    /// About normal.
    fn normal(&mut self) -> f32 {
        (0..8).map(|_| self.next(1 << 20) as f32 / (1 << 20) as f32 - 0.5).sum()
    }
}

/// What weights look like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Normal,
    /// So many magnitudes only.
    Levels(u64),
    /// Two in three are zero.
    Sparse,
    /// From one end of the format to the other.
    Extreme,
}

fn stored(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        DType::F32 => value.to_le_bytes().to_vec(),
    }
}

fn weights_of(kind: Kind, dtype: DType, count: usize, noise: &mut Noise) -> Vec<u8> {
    let one = |_| match kind {
        Kind::Normal => stored(dtype, noise.normal()),
        Kind::Levels(levels) => {
            let sign = if noise.next(2) == 0 { 1.0 } else { -1.0 };
            stored(dtype, sign * noise.next(levels) as f32 / 64.0)
        }
        Kind::Sparse => stored(dtype, if noise.next(3) == 0 { noise.normal() } else { 0.0 }),
        Kind::Extreme => {
            let sign = noise.next(2) << (8 * dtype.bytes() - 1);
            let bits = match dtype {
                DType::BF16 => noise.next(255) << 7 | noise.next(1 << 7),
                DType::F16 => noise.next(31) << 10 | noise.next(1 << 10),
                DType::F32 => noise.next(255) << 23 | noise.next(1 << 23),
            };
            (sign | bits).to_le_bytes()[..dtype.bytes()].to_vec()
        }
    };
    (0..count).flat_map(one).collect()
}

fn norms_of(kind: Kind, columns: usize, noise: &mut Noise) -> NormVector {
    let mut bits: Vec<u16> = (0..columns)
        .map(|_| match kind {
            Kind::Levels(_) => 254 << 7,
            Kind::Extreme => (noise.next(255) << 7 | noise.next(128)) as u16,
            _ => ((245 + noise.next(10)) << 7 | noise.next(128)) as u16,
        })
        .collect();
    if let Some(bits) = bits.first_mut() {
        *bits = 254 << 7; // canonical
    }
    NormVector::from_canonical_bits(bits).unwrap()
}

fn groups(columns: usize) -> Vec<Group> {
    let mut groups = vec![Group::Layer, Group::Row, Group::Column];
    let of_m = [(1, 2), (2, 4), (3, 4), (4, 8), (3, 7), (31, 64)];
    groups.extend(
        of_m.into_iter().filter(|(_, m)| columns.is_multiple_of(*m as usize)).map(|(n, m)| Group::NofM { n, m }),
    );
    groups
}

/// The device's mask, of weights that lie `offset` weights into its memory.
fn on_device(
    engine: &mut Engine<Emulator>,
    pruner: Pruner,
    group: Group,
    sparsity: Sparsity,
    weights: WeightsView<'_>,
    norms: &NormVector,
    offset: usize,
) -> Result<MatrixMask, GpuError> {
    let size = weights.dtype().bytes();
    let mut padded = vec![0x7f; offset * size];
    padded.extend_from_slice(weights.bytes());
    let all = WeightsView::new(weights.dtype(), 1, padded.len() / size, &padded).unwrap();
    let owned = engine.upload_weights(all)?;
    let view = emulation::view_of(&owned, engine, offset * size);
    let weights = Weights::of_view(engine.device(), weights.dtype(), weights.rows(), weights.columns(), view)?;
    let norms = engine.upload_norms(pruner, norms)?;
    let mask = engine.derive_mask(group, sparsity, &weights, &norms)?;
    engine.download_mask(&mask)
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Normal),
        2 => (1u64..20).prop_map(Kind::Levels),
        1 => Just(Kind::Sparse),
        2 => Just(Kind::Extreme)
    ]
}

/// Widths at which words, chunks and rows meet in different ways.
fn widths() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..70, (1usize..20).prop_map(|eighths| 8 * eighths), Just(64), Just(256), 500usize..530]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn selects_as_the_processor_does(
        rows in 1usize..30, columns in widths(), kind in kinds(), dtype in 0usize..3, pruner in 0usize..3,
        numerator in 0u64..100, offset in 0usize..9, order in 0usize..3, seed in any::<u64>(),
    ) {
        thread_local!(static ENGINE: std::cell::RefCell<Engine<Emulator>> = std::cell::RefCell::new(fast()));
        let (dtype, pruner) = (DTYPES[dtype], PRUNERS[pruner]);
        let mut noise = Noise(seed);
        let bytes = weights_of(kind, dtype, rows * columns, &mut noise);
        let norms = norms_of(kind, columns, &mut noise);
        let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
        let sparsity = Sparsity::new(numerator, 100).unwrap();
        ENGINE.with_borrow_mut(|engine| {
            engine.device().set_order(ORDERS[order]);
            for group in groups(columns) {
                let expected = derive_mask(pruner, group, sparsity, weights, &norms).unwrap();
                let found = on_device(engine, pruner, group, sparsity, weights, &norms, offset).unwrap();
                prop_assert!(found == expected, "{pruner} {group} {dtype}: {}", different(&found, &expected));
            }
            Ok(())
        })?;
    }

    #[test]
    fn counts_and_elects_as_the_processor_does(
        rows in 1usize..20, columns in widths(), kind in kinds(), dtype in 0usize..3, numerator in 0u64..100,
        votes in proptest::collection::vec(prop_oneof![4 => Just(1u32), 2 => 1u32..9, 1 => 1u32..400_000_000], 1..9),
        order in 0usize..3, seed in any::<u64>(),
    ) {
        thread_local!(static ENGINE: std::cell::RefCell<Engine<Emulator>> = std::cell::RefCell::new(fast()));
        let dtype = DTYPES[dtype];
        let mut noise = Noise(seed);
        let bytes = weights_of(kind, dtype, rows * columns, &mut noise);
        let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
        let sparsity = Sparsity::new(numerator, 100).unwrap();
        let total = votes.iter().sum();
        ENGINE.with_borrow_mut(|engine| {
            engine.device().set_order(ORDERS[order]);
            let mut expected = Counts::new(rows, columns, total);
            let mut counts = engine.counts(rows, columns, total).unwrap();
            for weight in &votes {
                let mut mask = MatrixMask::kept(rows, columns);
                (0..rows * columns).filter(|_| noise.next(2) == 0).for_each(|at| mask.prune(at / columns, at % columns));
                expected.add(*weight, &[&mask]).unwrap();
                let mask = engine.upload_mask(&mask).unwrap();
                engine.add_vote(&mut counts, *weight, &mask).unwrap();
            }
            let owned = engine.upload_weights(weights).unwrap();
            let lent = engine.lend(&owned).unwrap();
            for group in groups(columns) {
                let mask = engine.global_mask(group, sparsity, &lent, &counts).unwrap();
                let (found, expected) = (engine.download_mask(&mask).unwrap(), global_mask(weights, &expected, group, sparsity));
                prop_assert!(found == expected, "{group} {dtype}: {}", different(&found, &expected));
            }
            let one_more = engine.upload_mask(&MatrixMask::kept(rows, columns)).unwrap();
            let refused = matches!(engine.add_vote(&mut counts, 1, &one_more), Err(GpuError::Votes { .. }));
            prop_assert!(refused);
            Ok(())
        })?;
    }

    #[test]
    fn prunes_in_place(rows in 1usize..12, columns in widths(), dtype in 0usize..3, seed in any::<u64>()) {
        thread_local!(static ENGINE: std::cell::RefCell<Engine<Emulator>> = std::cell::RefCell::new(fast()));
        let dtype = DTYPES[dtype];
        let mut noise = Noise(seed);
        let mut bytes = weights_of(Kind::Extreme, dtype, rows * columns, &mut noise);
        let mut mask = MatrixMask::kept(rows, columns);
        (0..rows * columns).filter(|_| noise.next(2) == 0).for_each(|at| mask.prune(at / columns, at % columns));
        ENGINE.with_borrow_mut(|engine| {
            let mut owned = engine.upload_weights(WeightsView::new(dtype, rows, columns, &bytes).unwrap()).unwrap();
            let on_device = engine.upload_mask(&mask).unwrap();
            engine.prune(&on_device, &mut engine.lend_mut(&mut owned).unwrap()).unwrap();
            mask.zero(&mut bytes, dtype.bytes());
            prop_assert_eq!(engine.download_weights(&owned).unwrap(), bytes);
            Ok(())
        })?;
    }

    #[test]
    fn squares_are_summed_in_one_order(
        tokens in prop_oneof![0usize..10, 60usize..200], channels in 1usize..300, dtype in 0usize..3, parts in 1usize..3,
        order in 0usize..3, seed in any::<u64>(),
    ) {
        thread_local!(static ENGINE: std::cell::RefCell<Engine<Emulator>> = std::cell::RefCell::new(fast()));
        let dtype = DTYPES[dtype];
        let mut noise = Noise(seed);
        ENGINE.with_borrow_mut(|engine| {
            engine.device().set_order(ORDERS[order]);
            let mut expected = vec![0f64; channels];
            let mut sums = engine.sums(channels).unwrap();
            for _ in 0..parts {
                let bytes = weights_of(Kind::Extreme, dtype, tokens * channels, &mut noise);
                let values = WeightsView::new(dtype, tokens, channels, &bytes).unwrap();
                for slice in (0..tokens).step_by(64) {
                    for (channel, expected) in expected.iter_mut().enumerate() {
                        let squares = (slice..tokens.min(slice + 64)).map(|token| f64::from(values.get(token, channel)).powi(2));
                        *expected += squares.fold(0.0, |sum, square| sum + square);
                    }
                }
                let owned = engine.upload_weights(values).unwrap();
                let view = emulation::view_of(&owned, engine, 0);
                engine.add_squares_of(&mut sums, dtype, &view).unwrap();
            }
            let found = engine.download_sums(&sums).unwrap();
            prop_assert_eq!(bits(&found), bits(&expected));
            Ok(())
        })?;
    }
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn different(found: &MatrixMask, expected: &MatrixMask) -> String {
    let (found_count, expected_count) = (found.count_pruned(), expected.count_pruned());
    format!("{} bits differ, {found_count} pruned where {expected_count} should be", found.count_different(expected))
}

/// Large enough for a sample, for several blocks of it, and for lists that are full.
#[test]
fn large_layers_are_bracketed_or_go_the_long_way() {
    let mut engine = fast();
    let mut noise = Noise(3);
    for (rows, columns, kind) in [
        (150, 1104, Kind::Normal),
        (151, 1101, Kind::Normal),
        (150, 1104, Kind::Sparse),
        (150, 1104, Kind::Levels(3)),
        (150, 1104, Kind::Extreme),
    ] {
        for dtype in DTYPES {
            let bytes = weights_of(kind, dtype, rows * columns, &mut noise);
            let norms = norms_of(kind, columns, &mut noise);
            let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
            for (at, pruner) in PRUNERS.into_iter().enumerate() {
                engine.device().set_order(ORDERS[at]);
                for numerator in [1, 50, 97] {
                    let sparsity = Sparsity::new(numerator, 100).unwrap();
                    let expected = derive_mask(pruner, Group::Layer, sparsity, weights, &norms).unwrap();
                    let found = on_device(&mut engine, pruner, Group::Layer, sparsity, weights, &norms, 0).unwrap();
                    assert!(
                        found == expected,
                        "{pruner} {dtype} {kind:?} {numerator} %: {}",
                        different(&found, &expected)
                    );
                }
            }
        }
    }
}

/// Weights that make a sample mislead: those that it looks at are heavy, the others light.
#[test]
fn a_sample_that_misleads_is_noticed() {
    let mut engine = fast();
    let (rows, columns) = (256, 1000);
    let mut noise = Noise(4);
    let mut values: Vec<f32> = (0..rows * columns).map(|_| 0.5 + noise.next(1000) as f32 / 4000.0).collect();
    let samples = 16384u64;
    for sample in 0..samples {
        let (first, end) = (values.len() as u64 * sample / samples, values.len() as u64 * (sample + 1) / samples);
        values[(first + u64::from(scattered(sample as u32)) % (end - first)) as usize] += 4.0;
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let weights = WeightsView::new(DType::F32, rows, columns, &bytes).unwrap();
    let norms = NormVector::from_canonical_bits(vec![254 << 7; columns]).unwrap();
    let sparsity = Sparsity::new(1, 2).unwrap();
    let expected = derive_mask(Pruner::WANDA, Group::Layer, sparsity, weights, &norms).unwrap();
    let launches = engine.device().launches();
    let found = on_device(&mut engine, Pruner::WANDA, Group::Layer, sparsity, weights, &norms, 0).unwrap();
    assert!(found == expected, "{}", different(&found, &expected));
    let launched = engine.device().launches()[launches.len()..].to_vec();
    assert!(launched.iter().any(|kernel| kernel == "exact_mark_any"), "the sample misled nobody: {launched:?}");
}

/// As `kernels/layer.cuh` has it.
fn scattered(mut value: u32) -> u32 {
    value ^= value >> 16;
    value = value.wrapping_mul(0x7feb_352d);
    value ^= value >> 15;
    value = value.wrapping_mul(0x846c_a68b);
    value ^ value >> 16
}

/// A sample that does not mislead needs no long way: were it always taken, no other test would see it.
#[test]
fn a_sample_spares_the_long_way() {
    let mut engine = fast();
    let (rows, columns) = (300, 1104);
    let mut noise = Noise(5);
    let bytes = weights_of(Kind::Normal, DType::BF16, rows * columns, &mut noise);
    let weights = WeightsView::new(DType::BF16, rows, columns, &bytes).unwrap();
    let norms = norms_of(Kind::Normal, columns, &mut noise);
    on_device(&mut engine, Pruner::WANDA, Group::Layer, Sparsity::new(1, 2).unwrap(), weights, &norms, 0).unwrap();
    assert_eq!(
        engine.device().launches(),
        ["bracket_any", "split_wanda_bf16", "narrow_listed_any", "settle_any"],
        "one read of W and a sample"
    );
}

/// Rows that do not fit the shared memory of a block, and such as fit with 512 threads.
#[test]
fn wide_rows() {
    let mut engine = fast();
    let mut noise = Noise(6);
    for columns in [13_000, 13_312, 13_400, 13_401, 20_000] {
        for kind in [Kind::Normal, Kind::Levels(2), Kind::Extreme] {
            let bytes = weights_of(kind, DType::BF16, 3 * columns, &mut noise);
            let norms = norms_of(kind, columns, &mut noise);
            let weights = WeightsView::new(DType::BF16, 3, columns, &bytes).unwrap();
            for pruner in PRUNERS {
                let sparsity = Sparsity::new(1, 2).unwrap();
                let expected = derive_mask(pruner, Group::Row, sparsity, weights, &norms).unwrap();
                let found = on_device(&mut engine, pruner, Group::Row, sparsity, weights, &norms, 0).unwrap();
                assert!(found == expected, "{pruner} {columns} {kind:?}: {}", different(&found, &expected));
            }
        }
    }
    let kernels = engine.device().launches();
    assert!(
        kernels.iter().any(|kernel| kernel == "wide_rows_any")
            && kernels.iter().any(|kernel| kernel == "rows_wanda_bf16")
    );
}

/// The first weight that is not finite is named, as the processor names it.
#[test]
fn weights_that_are_not_finite_are_refused() {
    let mut engine = fast();
    let (rows, columns) = (33, 128);
    for dtype in DTYPES {
        for pruner in PRUNERS {
            let mut bytes = weights_of(Kind::Normal, dtype, rows * columns, &mut Noise(7));
            for (at, value) in [(2000, f32::NEG_INFINITY), (700, f32::NAN), (4223, f32::INFINITY), (4000, f32::NAN)] {
                bytes[at * dtype.bytes()..(at + 1) * dtype.bytes()].copy_from_slice(&stored(dtype, value));
            }
            let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
            let norms = norms_of(Kind::Normal, columns, &mut Noise(8));
            for group in groups(columns) {
                let sparsity = Sparsity::new(1, 2).unwrap();
                let error = on_device(&mut engine, pruner, group, sparsity, weights, &norms, 0).unwrap_err();
                let expected = weights.check_finite().unwrap_err();
                assert_eq!(error.to_string(), expected.to_string(), "{pruner} {group} {dtype}");
                assert!(error.to_string().contains("row 5, column 60 is NaN"), "{error}");
            }
            // and alone, where most of a pool is no number
            let none = vec![0xff; rows * columns * dtype.bytes()];
            let none = WeightsView::new(dtype, rows, columns, &none).unwrap();
            for group in groups(columns) {
                let sparsity = Sparsity::new(1, 2).unwrap();
                let error = on_device(&mut engine, pruner, group, sparsity, none, &norms, 0).unwrap_err();
                assert!(error.to_string().contains("row 0, column 0 is NaN"), "{error}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut engine = fast();
    let bytes = vec![0; 2 * 6 * 10];
    let weights = WeightsView::new(DType::BF16, 6, 10, &bytes).unwrap();
    let norms = NormVector::from_canonical_bits(vec![254 << 7; 9]).unwrap();
    let half = Sparsity::new(1, 2).unwrap();
    let error = on_device(&mut engine, Pruner::WANDA, Group::Row, half, weights, &norms, 0).unwrap_err();
    assert_eq!(error.to_string(), "9 norms cannot score a matrix of 10 inputs");
    let group = Group::NofM { n: 2, m: 4 };
    let error = on_device(&mut engine, Pruner::MAGNITUDE, group, half, weights, &norms, 0).unwrap_err();
    assert!(error.to_string().contains("group `2:4` does not divide a row of 10 inputs"), "{error}");
    let owned = engine.upload_weights(weights).unwrap();
    let view = emulation::view_of(&owned, &engine, 0);
    let error = Weights::of_view(engine.device(), DType::BF16, 6, 11, view).err().unwrap();
    assert!(error.to_string().contains("60 elements on the GPU, where shape (6, 11) takes 66"), "{error}");
    let view = emulation::view_of(&owned, &engine, 0);
    let error = Weights::of_view(engine.device(), DType::BF16, 1 << 17, 1 << 16, view).err().unwrap();
    assert!(matches!(error, GpuError::TooLarge { .. }), "{error}");
    // nothing to select
    for (rows, columns) in [(0, 4), (4, 0), (0, 0)] {
        let weights = WeightsView::new(DType::F32, rows, columns, &[]).unwrap();
        let norms = NormVector::from_canonical_bits(vec![254 << 7; columns]).unwrap();
        for pruner in PRUNERS {
            let mask = on_device(&mut engine, pruner, Group::Layer, half, weights, &norms, 0).unwrap();
            assert_eq!(mask, MatrixMask::kept(rows, columns));
        }
    }
}

/// A few cases of everything, with the memory watched.
#[test]
#[ignore = "compiling with sanitizers takes half a minute: .ci/run does"]
fn no_thread_leaves_its_memory() {
    let dtypes = [(DType::BF16, 0), (DType::F16, 3), (DType::F32, 1)];
    watched(Watched::Memory, &[(5, 70), (4, 64), (3, 257)], &dtypes, &PRUNERS);
}

/// Fewer, with races watched: a thread of the emulation is one of the sanitizer's then, which takes long.
#[test]
#[ignore = "watching a thousand threads takes long and memory: .ci/run does where FEDPRUNE_RACES is set"]
fn no_two_threads_race() {
    watched(Watched::Races, &[(2, 300)], &[(DType::BF16, 0)], &[Pruner::WANDA]);
}

fn watched(watched: Watched, shapes: &[(usize, usize)], dtypes: &[(DType, usize)], pruners: &[Pruner]) {
    let Some(mut engine) = engine(watched) else { return };
    let mut noise = Noise(11);
    for &(rows, columns) in shapes {
        for &(dtype, offset) in dtypes {
            for kind in [Kind::Normal, Kind::Levels(2)] {
                let bytes = weights_of(kind, dtype, rows * columns, &mut noise);
                let norms = norms_of(kind, columns, &mut noise);
                let weights = WeightsView::new(dtype, rows, columns, &bytes).unwrap();
                let sparsity = Sparsity::new(1, 2).unwrap();
                for (at, &pruner) in pruners.iter().enumerate() {
                    engine.device().set_order(ORDERS[at]);
                    for group in groups(columns) {
                        let expected = derive_mask(pruner, group, sparsity, weights, &norms).unwrap();
                        let found = on_device(&mut engine, pruner, group, sparsity, weights, &norms, offset).unwrap();
                        assert!(found == expected, "{pruner} {group} {dtype}");
                    }
                }
                let mut owned = engine.upload_weights(weights).unwrap();
                let mut counts = engine.counts(rows, columns, 5).unwrap();
                let norms = engine.upload_norms(Pruner::MAGNITUDE, &norms).unwrap();
                let lent = engine.lend(&owned).unwrap();
                let mask = engine.derive_mask(Group::Row, sparsity, &lent, &norms).unwrap();
                engine.add_vote(&mut counts, 5, &mask).unwrap();
                for group in groups(columns) {
                    let global = engine.global_mask(group, sparsity, &lent, &counts).unwrap();
                    engine.download_mask(&global).unwrap();
                }
                engine.prune(&mask, &mut engine.lend_mut(&mut owned).unwrap()).unwrap();
                let mut sums = engine.sums(columns).unwrap();
                let view = emulation::view_of(&owned, &engine, 0);
                engine.add_squares_of(&mut sums, dtype, &view).unwrap();
                engine.download_sums(&sums).unwrap();
                let causal =
                    Causal { queries: 3, keys: 40, first_query: 30, first_key: 0, window: Some(7), scale: 0.5 };
                weighed(&engine, dtype, causal, &values_of(dtype, 2 * 3 * 40, &mut noise));
                let gate = values_of(dtype, rows, &mut noise);
                gated(&engine, dtype, &gate, &gate);
            }
        }
    }
}

fn values_of(dtype: DType, count: usize, noise: &mut Noise) -> Vec<u8> {
    (0..count).flat_map(|_| stored(dtype, 8.0 * noise.normal())).collect()
}

fn widened(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let values = WeightsView::new(dtype, 1, bytes.len() / dtype.bytes(), bytes).unwrap();
    (0..values.columns()).map(|at| f64::from(values.get(0, at))).collect()
}

/// What the device makes of scores.
fn weighed(engine: &Engine<Emulator>, dtype: DType, causal: Causal, scores: &[u8]) -> Vec<f64> {
    let device = engine.device();
    let mut memory = device.allocate("scores", scores.len() as u64).unwrap();
    device.upload(&mut memory, scores).unwrap();
    engine.causal_softmax_of(dtype, &mut device.view_mut(&mut memory, scores.len() as u64), causal).unwrap();
    let mut found = vec![0; scores.len()];
    device.download(&memory, &mut found).unwrap();
    widened(dtype, &found)
}

fn gated(engine: &Engine<Emulator>, dtype: DType, gate: &[u8], up: &[u8]) -> Vec<f64> {
    let device = engine.device();
    let mut memory = device.allocate("a gate", gate.len() as u64).unwrap();
    let mut other = device.allocate("a gate", up.len() as u64).unwrap();
    device.upload(&mut memory, gate).unwrap();
    device.upload(&mut other, up).unwrap();
    let mut lent = device.view_mut(&mut memory, gate.len() as u64);
    engine.gate_up_of(dtype, &mut lent, &device.view(&other, up.len() as u64)).unwrap();
    let mut found = vec![0; gate.len()];
    device.download(&memory, &mut found).unwrap();
    widened(dtype, &found)
}

/// Units in the last place of each format, and a little for sums.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / 256.0 + 1e-5,
        DType::F16 => 1.0 / 2048.0 + 1e-5,
        DType::F32 => 1e-5,
    }
}

/// The definition, in every order of threads, with keys that begin late and windows that slide; smallest weights of f16 are
/// coarse.
#[test]
fn causal_weights_are_those_of_their_definition() {
    let engine = fast();
    let mut noise = Noise(11);
    for (queries, first_query, first_key, window) in [
        (1, 0, 0, None),
        (5, 0, 0, None),
        (37, 300, 0, None),
        (37, 300, 0, Some(9)),
        (37, 300, 292, Some(9)),
        (3, 7, 0, Some(1)),
    ] {
        let causal =
            Causal { queries, keys: first_query + queries - first_key, first_query, first_key, window, scale: 0.25 };
        for (at, dtype) in DTYPES.into_iter().enumerate() {
            engine.device().set_order(ORDERS[at]);
            let keys = causal.keys as usize;
            let scores = values_of(dtype, 3 * queries as usize * keys, &mut noise);
            let found = weighed(&engine, dtype, causal, &scores);
            for (row, (scores, found)) in widened(dtype, &scores).chunks(keys).zip(found.chunks(keys)).enumerate() {
                let position = first_query as usize + row % queries as usize;
                let weight = |key: usize| {
                    let at = first_key as usize + key;
                    let seen = at <= position && window.is_none_or(|window| at + window as usize > position);
                    if seen { (scores[key] * 0.25).exp() } else { 0.0 }
                };
                let total: f64 = (0..keys).map(weight).sum();
                for (key, found) in found.iter().enumerate() {
                    let expected = weight(key) / total;
                    let near = (found - expected).abs() <= tolerance(dtype) * expected + 6e-8;
                    assert!(near, "{dtype}, row {row}, key {key}: {found}, {expected}");
                    assert!(expected > 0.0 || *found == 0.0, "what is not seen weighs nothing");
                }
            }
        }
    }
}

#[test]
fn gates_are_those_of_their_definition() {
    let engine = fast();
    let mut noise = Noise(13);
    for dtype in DTYPES {
        let (gate, up) = (values_of(dtype, 1000, &mut noise), values_of(dtype, 1000, &mut noise));
        let found = gated(&engine, dtype, &gate, &up);
        for ((found, gate), up) in found.iter().zip(widened(dtype, &gate)).zip(widened(dtype, &up)) {
            let expected = gate / (1.0 + (-gate).exp()) * up;
            assert!(
                (found - expected).abs() <= tolerance(dtype) * expected.abs() + 6e-8,
                "{dtype}: {found}, {expected}"
            );
        }
    }
}

/// Whoever asks for what the memory does not hold is refused before anything runs.
#[test]
fn scores_that_do_not_fit_are_refused() {
    let engine = fast();
    let device = engine.device();
    let fits = Causal { queries: 4, keys: 10, first_query: 6, first_key: 0, window: None, scale: 1.0 };
    let mut memory = device.allocate("scores", 2 * 4 * 10 * 4).unwrap();
    let mut ask = |causal: Causal, bytes: u64| {
        engine.causal_softmax_of(DType::F32, &mut device.view_mut(&mut memory, bytes), causal).is_ok()
    };
    assert!(ask(fits, 320));
    assert!(!ask(fits, 316) && !ask(fits, 280), "part of a row, part of a head");
    for wrong in [
        Causal { keys: 9, ..fits },
        Causal { keys: 0, ..fits },
        Causal { queries: 0, ..fits },
        Causal { first_key: 7, ..fits },
        Causal { first_query: u32::MAX, ..fits },
        Causal { window: Some(0), ..fits },
    ] {
        assert!(!ask(wrong, 320), "{wrong:?}");
    }
    let other = device.allocate("a gate", 316).unwrap();
    let refused = engine.gate_up_of(DType::F32, &mut device.view_mut(&mut memory, 320), &device.view(&other, 316));
    assert!(refused.is_err());
}

struct Stored(Layout, Vec<Vec<u8>>);

impl MatrixSource for Stored {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        let matrix = &self.0.matrices()[index];
        WeightsView::new(DType::BF16, matrix.rows as usize, matrix.columns as usize, &self.1[index]).unwrap()
    }
}

/// Ballots in every encoding, of every local and global group that go together: the mask of the processor's tally.
#[test]
fn tallies_as_the_processor_does() {
    let mut engine = fast();
    let matrix = |name: &str, tap, rows, columns| Matrix { name: name.to_owned(), block: 0, tap, rows, columns };
    let layout = Layout::new(vec![
        matrix("q", Tap::AttentionInput, 24, 40),
        matrix("k", Tap::AttentionInput, 9, 40),
        matrix("down", Tap::MlpOutput, 40, 100),
    ])
    .unwrap();
    let mut noise = Noise(21);
    let weights = layout
        .matrices()
        .iter()
        .map(|matrix| weights_of(Kind::Normal, DType::BF16, (matrix.rows * matrix.columns) as usize, &mut noise));
    let weights: Vec<Vec<u8>> = weights.collect();
    let stored = Stored(layout.clone(), weights);
    let half = Sparsity::new(1, 2).unwrap();
    let two_of_four = Group::NofM { n: 2, m: 4 };
    for (local, global) in [
        (Group::Row, Group::Layer),
        (Group::Layer, Group::Layer),
        (Group::Row, Group::Row),
        (Group::Column, Group::Layer),
        (Group::Row, two_of_four),
        (two_of_four, two_of_four),
    ] {
        let model = Digest([7; 32]);
        let mut ballots: Vec<(String, u32, Vec<u8>)> = Vec::new();
        for (member, pruner) in [Pruner::WANDA, Pruner::RIA, Pruner::MAGNITUDE, Pruner::WANDA].into_iter().enumerate() {
            for encodings in [Encodings::Auto, Encodings::MaskOnly] {
                let norms = vec![norms_of(Kind::Normal, 40, &mut noise), norms_of(Kind::Normal, 100, &mut noise)];
                let samples = if pruner == Pruner::MAGNITUDE { 0 } else { 2 };
                let layout_digest = layout.digest();
                let header = VoteHeader {
                    model,
                    layout: layout_digest,
                    pruner,
                    group: local,
                    sparsity: half,
                    samples,
                    sequence_tokens: samples * 8,
                };
                let mut bytes = Vec::new();
                encode_ballot(&header, &layout, &norms, encodings, &stored, &mut |part: &[u8]| {
                    bytes.extend_from_slice(part);
                    Ok::<_, std::convert::Infallible>(())
                })
                .unwrap();
                let name = format!("{member}{encodings:?}");
                if encodings == Encodings::Auto {
                    // and another who cast the very same
                    ballots.push((format!("{name} again"), 3, bytes.clone()));
                }
                ballots.push((name, 1 + member as u32, bytes));
            }
        }
        let voters = ballots.iter().map(|(name, weight, bytes)| Voter {
            name: name.clone(),
            weight: *weight,
            ballot: Ballot::parse(bytes, &layout).unwrap(),
        });
        let tally = Tally::new(&layout, global, voters.collect()).unwrap();
        let device_tally = DeviceTally::new(&tally);
        for index in 0..layout.matrices().len() {
            let weights = stored.matrix(index);
            let mut told = vec![None; tally.voters().len()];
            let mask = device_tally
                .mask(
                    &mut engine,
                    index,
                    weights,
                    Some(&mut |place, mask: &MatrixMask, _: &MatrixMask| told[place] = Some(mask.clone())),
                )
                .unwrap();
            let expected = tally.mask(index, weights).unwrap();
            assert!(mask == expected, "{local} {global} {index}: {}", different(&mask, &expected));
            for (told, voter) in told.iter().zip(tally.voters()) {
                assert_eq!(told.as_ref(), Some(&voter.ballot.mask(index, weights).unwrap()), "{}", voter.name);
            }
        }
    }
    // a ballot whose bits break the budget is named
    let bytes = explicit(&layout, &stored);
    let voter =
        |name: &str, bytes| Voter { name: name.to_owned(), weight: 1, ballot: Ballot::parse(bytes, &layout).unwrap() };
    let tally = Tally::new(&layout, Group::Layer, vec![voter("north", &bytes)]).unwrap();
    let weights = stored.matrix(0);
    let expected = tally.mask(0, weights).unwrap();
    assert_eq!(DeviceTally::new(&tally).mask(&mut engine, 0, weights, None).unwrap(), expected);
    let error = DeviceTally::new(&tally).mask(&mut engine, 0, stored.matrix(1), None).unwrap_err();
    assert!(matches!(error, GpuError::Shape { .. }), "{error}");
}

/// An explicit mask of one silo.
fn explicit(layout: &Layout, stored: &Stored) -> Vec<u8> {
    let half = Sparsity::new(1, 2).unwrap();
    let header =
        MaskHeader { model: Digest([7; 32]), layout: layout.digest(), group: Group::Layer, sparsity: half, votes: 1 };
    let mut bytes = Vec::new();
    encode_mask(
        &header,
        layout,
        &mut |index| {
            let weights = stored.matrix(index);
            Ok(derive_mask(Pruner::MAGNITUDE, Group::Layer, half, weights, &NormVector::default()).unwrap())
        },
        &mut |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok::<_, std::convert::Infallible>(())
        },
    )
    .unwrap();
    assert!(matches!(fedprune_mask::peek_header(&bytes), Ok(Header::Mask(_))));
    bytes
}
