//! n:m pools: so small that every weight's rank is counted outright.

use super::RowBits;

/// A weight's key and the bits of its magnitude, by its column: the order within a pool, save for the column.
pub(super) trait Place: Fn(usize) -> (u64, u32) + Copy {}

impl<F: Fn(usize) -> (u64, u32) + Copy> Place for F {}

/// Lowest bit of each of four 16-bit lanes.
const LOW: u64 = 0x0001_0001_0001_0001;
/// Highest bit of each.
const HIGH: u64 = LOW << 15;
/// Lowest bit of each of 16 pools of four in a word of mask.
const POOLS: u64 = 0x1111_1111_1111_1111;
const TWOS: u64 = 3 * POOLS;
const ALTERNATE: u64 = 5 * POOLS;

/// Marks n of each four consecutive keys: four 15-bit keys make a word, and all ranks come of three
/// subtractions, since a lane's spare bit catches the borrow.
pub(super) fn select_fours(coarse: &[i16], place: impl Place, n: u32, bits: &mut RowBits<'_>) {
    let n = u64::from(n);
    for (turn, keys) in coarse.chunks(64).enumerate() {
        let mut within = [0u64; 16];
        match keys.as_array::<64>() {
            Some(keys) => rank_fours(keys.as_chunks::<4>().0, n, &mut within),
            None => rank_fours(keys.as_chunks::<4>().0, n, &mut within),
        }
        let mut pruned = within.iter().rev().fold(0u64, |pruned, lanes| {
            // the product brings the four bits together, at bit 45
            pruned << 4 | lanes.wrapping_mul(1 << 45 | 1 << 30 | 1 << 15 | 1) >> 45 & 0xf
        });
        // A rank counts what is at most as great. If n have ranks below n, no tie can change which; else fewer
        // have, because some tie across the boundary, and their whole keys must tell.
        let twos = pruned - (pruned >> 1 & ALTERNATE);
        let counts = (twos & TWOS) + (twos >> 2 & TWOS);
        let mut tied = (counts ^ (n * POOLS)) & u64::MAX >> (64 - keys.len());
        while tied != 0 {
            let at = tied.trailing_zeros() as usize / 4 * 4;
            let pool = select_pool_slowly(turn * 64 + at, 4, place, n as usize);
            pruned = pruned & !(0xf << at) | pool << at;
            tied &= !(0xf << at);
        }
        bits.or(turn * 64, pruned);
    }
}

/// For each pool a one in lane i if fewer than n of the other keys are at most key i.
#[inline(always)]
fn rank_fours(pools: &[[i16; 4]], n: u64, within: &mut [u64; 16]) {
    for (within, pool) in within.iter_mut().zip(pools) {
        let keys = pool.iter().rev().fold(0, |word, &key| word << 16 | u64::from(key as u16));
        // lane i: whether key i is at least key i + 1, i + 2, i + 3 (mod 4)
        let at_least = |lanes: u32| (((keys | HIGH) - keys.rotate_right(16 * lanes)) & HIGH) >> 15;
        let ranks = at_least(1) + at_least(2) + at_least(3);
        *within = (((((n - 1) * LOW) | HIGH) - ranks) & HIGH) >> 15;
    }
}

/// Marks n of each `M` consecutive keys; a rank is a count of comparisons, without a branch.
pub(super) fn select_pools<const M: usize>(coarse: &[i16], place: impl Place, n: u32, bits: &mut RowBits<'_>) {
    for (index, pool) in coarse.as_chunks::<M>().0.iter().enumerate() {
        let mut ranks = [0u32; M];
        let mut ties = false;
        for later in 1..M {
            for earlier in 0..later {
                // the earlier one comes first unless it is greater
                let greater = u32::from(pool[earlier] > pool[later]);
                ranks[earlier] += greater;
                ranks[later] += 1 - greater;
                ties |= pool[earlier] == pool[later];
            }
        }
        let start = index * M;
        let pruned = if ties {
            select_pool_slowly(start, M, place, n as usize)
        } else {
            ranks.iter().enumerate().fold(0u64, |bits, (at, &rank)| bits | u64::from(rank < n) << at)
        };
        bits.or(start, pruned);
    }
}

/// Marks n of each m ≤ 64 consecutive weights.
pub(super) fn select_n_of_m(columns: usize, place: impl Place, n: usize, m: usize, bits: &mut RowBits<'_>) {
    for start in (0..columns).step_by(m) {
        bits.or(start, select_pool_slowly(start, m, place, n));
    }
}

/// The bits of the first n of the m ≤ 64 weights from column `start` on.
#[cold]
fn select_pool_slowly(start: usize, m: usize, place: impl Place, n: usize) -> u64 {
    let mut places = [(0u64, 0u32, 0u8); 64];
    let places = &mut places[..m];
    for (at, place_of) in places.iter_mut().enumerate() {
        let (key, magnitude) = place(start + at);
        *place_of = (key, magnitude, at as u8);
    }
    places.sort_unstable();
    places[..n].iter().fold(0, |bits, (_, _, at)| bits | 1 << at)
}
