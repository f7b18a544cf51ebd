//! Zeroing pruned weights where they are stored, and support scaling of those that stay.
//!
//! Floor: stored bytes are read and written once, the mask read once. Eight mask bits become one or two
//! 128-bit AND masks by a table, so zeroing runs at memory speed without a branch.

use half::{bf16, f16};
use rayon::prelude::*;

use super::counts::Counts;
use crate::matrix_mask::MatrixMask;
use crate::weights::DType;

/// Mask words that one task takes: 64 Ki weights.
const TASK_WORDS: usize = if cfg!(miri) { 4 } else { 1 << 10 };
/// Totals up to this get a table of factors.
const MAX_TABLE: u32 = 1 << 16;

/// The factor of a kept weight that `count` of `total` voted to prune: `f32((total − count) / total)`.
pub fn support_factor(count: u32, total: u32) -> f32 {
    (f64::from(total.saturating_sub(count)) / f64::from(total)) as f32
}

/// Zeroes the pruned weights of `stored` (little-endian `dtype`, the shape of `mask`); with `support`,
/// kept ones become `f32(W) × factor`, rounded to nearest even in the stored dtype.
///
/// # Panics
/// When `stored` or `support` have another size or shape than the mask.
pub fn apply_to_stored(stored: &mut [u8], dtype: DType, mask: &MatrixMask, support: Option<&Counts>) {
    let weights = mask.rows() * mask.columns();
    assert_eq!(stored.len(), weights * dtype.bytes(), "stored bytes of the mask's shape");
    if let Some(counts) = support {
        assert_eq!((counts.rows(), counts.columns()), (mask.rows(), mask.columns()), "counts of the mask's shape");
        scale_kept(stored, dtype, counts);
    }
    let tasks = stored.par_chunks_mut(TASK_WORDS * 64 * dtype.bytes()).zip(mask.words().par_chunks(TASK_WORDS));
    tasks.for_each(|(stored, words)| {
        for (stored, &word) in stored.chunks_mut(64 * dtype.bytes()).zip(words) {
            match dtype.bytes() {
                2 => zero::<16, 8>(stored, word, &KEEP_EIGHT_OF_16),
                _ => zero::<16, 4>(stored, word, &KEEP_FOUR_OF_32),
            }
        }
    });
}

/// For each byte of mask bits, ones in the 16-bit lanes that stay.
static KEEP_EIGHT_OF_16: [u128; 256] = keep_table::<256>(16);
/// For each four mask bits, ones in the 32-bit lanes that stay.
static KEEP_FOUR_OF_32: [u128; 16] = keep_table::<16>(32);

const fn keep_table<const N: usize>(lane_bits: u32) -> [u128; N] {
    let mut table = [0u128; N];
    let mut index = 0;
    while index < N {
        let mut lane = 0;
        while lane * lane_bits < 128 {
            if index >> lane & 1 == 0 {
                table[index] |= ((1 << lane_bits) - 1) << (lane * lane_bits);
            }
            lane += 1;
        }
        index += 1;
    }
    table
}

/// Zeroes what `word` marks among up to 64 weights; `LANES` of them fill `BYTES` = 16 bytes.
#[inline(always)]
fn zero<const BYTES: usize, const LANES: usize>(stored: &mut [u8], mut word: u64, keep: &[u128]) {
    let (whole, rest) = stored.as_chunks_mut::<16>();
    for chunk in whole {
        let lanes = (word & ((1 << LANES) - 1)) as usize;
        *chunk = (u128::from_le_bytes(*chunk) & keep[lanes]).to_le_bytes();
        word >>= LANES % 64;
    }
    for (lane, weight) in rest.chunks_mut(BYTES / LANES).enumerate() {
        if word >> lane & 1 == 1 {
            weight.fill(0);
        }
    }
}

fn scale_kept(stored: &mut [u8], dtype: DType, counts: &Counts) {
    let total = counts.total();
    let table: Vec<f32> = match total {
        0..=MAX_TABLE => (0..=total).map(|count| support_factor(count, total)).collect(),
        _ => Vec::new(),
    };
    let factor = |count: u32| table.get(count as usize).copied().unwrap_or_else(|| support_factor(count, total));
    stored.par_chunks_mut(TASK_WORDS * 64 * dtype.bytes()).enumerate().for_each(|(task, stored)| {
        for (offset, stored) in stored.chunks_mut(64 * dtype.bytes()).enumerate() {
            let counts = counts.unpack(task * TASK_WORDS + offset);
            match dtype {
                DType::BF16 => {
                    for (bytes, &count) in stored.as_chunks_mut::<2>().0.iter_mut().zip(&counts) {
                        let scaled = bf16::from_le_bytes(*bytes).to_f32() * factor(count);
                        *bytes = bf16::from_f32(scaled).to_le_bytes();
                    }
                }
                DType::F16 => {
                    for (bytes, &count) in stored.as_chunks_mut::<2>().0.iter_mut().zip(&counts) {
                        let scaled = f16::from_le_bytes(*bytes).to_f32() * factor(count);
                        *bytes = f16::from_f32(scaled).to_le_bytes();
                    }
                }
                DType::F32 => {
                    for (bytes, &count) in stored.as_chunks_mut::<4>().0.iter_mut().zip(&counts) {
                        *bytes = (f32::from_le_bytes(*bytes) * factor(count)).to_le_bytes();
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(dtype: DType, value: f32) -> Vec<u8> {
        match dtype {
            DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            DType::F32 => value.to_le_bytes().to_vec(),
        }
    }

    fn decode(dtype: DType, bytes: &[u8]) -> f32 {
        match dtype {
            DType::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            DType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    fn check(rows: usize, columns: usize, votes: &[u32]) {
        let mut state = 5u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 33
        };
        let mut masks = Vec::new();
        for _ in 0..=votes.len() {
            let mut mask = MatrixMask::kept(rows, columns);
            for index in 0..rows * columns {
                if next() % 2 == 0 {
                    mask.prune(index / columns, index % columns);
                }
            }
            masks.push(mask);
        }
        let mask = masks.pop().unwrap();
        let mut counts = Counts::new(rows, columns, votes.iter().sum());
        for (weight, mask) in votes.iter().zip(&masks) {
            counts.add(*weight, &[mask]).unwrap();
        }
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let size = dtype.bytes();
            let dense: Vec<u8> = (0..rows * columns).flat_map(|_| encode(dtype, next() as f32 / 1e9 - 1.0)).collect();
            for support in [None, Some(&counts)] {
                let mut stored = dense.clone();
                apply_to_stored(&mut stored, dtype, &mask, support);
                for index in 0..rows * columns {
                    let (row, column) = (index / columns, index % columns);
                    let at = index * size..(index + 1) * size;
                    let expected = match (mask.get(row, column), support) {
                        (true, _) => vec![0; size],
                        (false, None) => dense[at.clone()].to_vec(),
                        (false, Some(counts)) => {
                            let (count, total) = (f64::from(counts.get(row, column)), f64::from(counts.total()));
                            encode(dtype, decode(dtype, &dense[at.clone()]) * ((total - count) / total) as f32)
                        }
                    };
                    assert_eq!(stored[at], expected, "{dtype} at {index}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn equals_one_weight_at_a_time(
            rows in 1usize..8, columns in 1usize..140,
            votes in proptest::collection::vec(prop_oneof![Just(1u32), 1u32..100_000], 1..6),
        ) {
            check(rows, columns, &votes);
        }
    }

    #[test]
    fn several_tasks() {
        let (rows, columns) = if cfg!(miri) { (13, 103) } else { (130, 1030) };
        check(rows, columns, &[1, 2]);
    }

    #[test]
    fn rounds_to_nearest_even() {
        // 129/128 · 2/3 in bf16: f32 product first, then its nearest neighbour
        let mut counts = Counts::new(1, 1, 3);
        let mut vote = MatrixMask::kept(1, 1);
        vote.prune(0, 0);
        counts.add(1, &[&vote]).unwrap();
        let mut stored = bf16::from_f32(129.0 / 128.0).to_le_bytes();
        apply_to_stored(&mut stored, DType::BF16, &MatrixMask::kept(1, 1), Some(&counts));
        assert_eq!(stored, bf16::from_f32((129.0f32 / 128.0) * (2.0f64 / 3.0) as f32).to_le_bytes());
        assert_eq!(support_factor(3, 3), 0.0);
        assert_eq!(support_factor(0, 7), 1.0);
    }
}
