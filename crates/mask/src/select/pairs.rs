//! n:m pools: so small that every weight's rank is counted outright.

use super::RowBits;

/// Marks n of each `M` consecutive keys; a rank is a count of comparisons, without a branch.
pub(super) fn select_pools<const M: usize>(
    keys: &[u64],
    magnitude: impl Fn(usize) -> u32 + Copy,
    n: u32,
    bits: &mut RowBits<'_>,
) {
    let (pools, _) = keys.as_chunks::<M>();
    for (index, pool) in pools.iter().enumerate() {
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
        if ties {
            // |W| decides before the index does
            select_pool_slowly(pool, start, magnitude, n as usize, bits);
            continue;
        }
        let pruned = ranks.iter().enumerate().fold(0u64, |bits, (at, &rank)| bits | u64::from(rank < n) << at);
        bits.or(start, pruned);
    }
}

/// Marks n of each m consecutive keys.
pub(super) fn select_n_of_m(
    keys: &[u64],
    magnitude: impl Fn(usize) -> u32 + Copy,
    n: usize,
    m: usize,
    bits: &mut RowBits<'_>,
) {
    for (index, pool) in keys.chunks_exact(m).enumerate() {
        select_pool_slowly(pool, index * m, magnitude, n, bits);
    }
}

fn select_pool_slowly(pool: &[u64], start: usize, magnitude: impl Fn(usize) -> u32, n: usize, bits: &mut RowBits<'_>) {
    let mut taken = 0u64;
    for _ in 0..n {
        let mut best: Option<(u64, u32, usize)> = None;
        for (position, &key) in pool.iter().enumerate() {
            if taken >> position & 1 == 1 || best.is_some_and(|(lowest, _, _)| key > lowest) {
                continue;
            }
            let place = (key, magnitude(start + position), position);
            if best.is_none_or(|best| place < best) {
                best = Some(place);
            }
        }
        if let Some((_, _, position)) = best {
            taken |= 1 << position;
            bits.set(start + position);
        }
    }
}
