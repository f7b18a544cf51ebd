//! The widest vectors that the processor has, for loops that are written plainly.
//!
//! A build for every x86-64 may assume vectors of 16 bytes only. What runs within [`vectorized`] is compiled for wider ones
//! as well, and the processor decides which is taken: the same integer operations, hence the same bits.

//! Two things a compiler does not make of plain loops, since they need masks of bits and compression: [`below`] and
//! [`entries_inside`] are in AVX-512 where there is, and elsewhere say so.

use pulp::Arch;

/// Runs `work` compiled for the widest vectors there are; only what is inlined into it profits. A closure that is more than a
/// line is inlined for certain only with `#[inline(always)]` before it.
#[inline]
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// 64 stored weights of 16 bits.
pub(crate) type StoredWord = [u8; 128];

/// The bits of the 64 weights whose magnitude is below its level; none on processors where the plain loop is as good.
#[inline(always)]
pub(crate) fn below(stored: &StoredWord, levels: &[u16; 64]) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        let ([first, second], levels) = (wide::magnitudes(simd, stored), wide::halves(levels));
        let low = u64::from(simd.cmp_lt_u16x32(first, levels[0]).0);
        let high = u64::from(simd.cmp_lt_u16x32(second, levels[1]).0);
        return Some(low | high << 32);
    }
    _ = (stored, levels);
    None
}

/// Room that [`entries_inside`] needs: it writes full vectors.
pub(crate) const ENTRIES_ROOM: usize = 80;

/// Of 64 weights those whose magnitude is at least `low` and less than `width` above it: `start` plus how far above, one
/// after the other. Returns how many these are, and how many weights are below `low`; none on processors where the plain loop
/// is as good.
#[inline(always)]
pub(crate) fn entries_inside(
    stored: &StoredWord,
    low: &[u16; 64],
    width: &[u16; 64],
    starts: &[u32; 64],
    entries: &mut [u32; ENTRIES_ROOM],
) -> Option<(usize, u32)> {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        let (mut count, mut below) = (0, 0);
        let (low, width) = (wide::halves(low), wide::halves(width));
        for (half, magnitudes) in wide::magnitudes(simd, stored).into_iter().enumerate() {
            below += simd.cmp_lt_u16x32(magnitudes, low[half]).0.count_ones();
            // below low it wraps around to more than any width
            let above = simd.wrapping_sub_u16x32(magnitudes, low[half]);
            let inside = simd.cmp_lt_u16x32(above, width[half]).0;
            let above: [pulp::u16x16; 2] = pulp::cast(above);
            for (quarter, above) in above.into_iter().enumerate() {
                let first = 32 * half + 16 * quarter;
                let starts: &[u32; 16] = starts[first..].first_chunk().expect("a quarter");
                let all = simd.wrapping_add_u32x16(simd.convert_u16x16_to_u32x16(above), pulp::cast(*starts));
                let inside = (inside >> (16 * quarter)) as u16;
                let compressed = simd.avx512f._mm512_maskz_compress_epi32(inside, pulp::cast(all));
                let room: &mut [u32; 16] = entries[count..].first_chunk_mut().expect("room for a full vector");
                *room = pulp::cast(compressed);
                count += inside.count_ones() as usize;
            }
        }
        return Some((count, below));
    }
    _ = (stored, low, width, starts, entries);
    None
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use pulp::u16x32;
    use pulp::x86::V4;

    use super::StoredWord;

    #[inline(always)]
    pub(super) fn halves(values: &[u16; 64]) -> [u16x32; 2] {
        pulp::cast(*values)
    }

    #[inline(always)]
    pub(super) fn magnitudes(simd: V4, stored: &StoredWord) -> [u16x32; 2] {
        let stored: [u16x32; 2] = pulp::cast(*stored);
        stored.map(|stored| simd.and_u16x32(stored, simd.splat_u16x32(u16::MAX >> 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::array::uniform;
    use proptest::prelude::*;

    proptest! {
        /// Where the processor has them; elsewhere there is nothing to compare.
        #[test]
        fn equal_the_plain_loops(
            stored in uniform::<_, 64>(any::<u16>()), low in uniform::<_, 64>(0u16..0x8000),
            width in uniform::<_, 64>(0u16..0x8000), starts in uniform::<_, 64>(0u32..1 << 20),
        ) {
            let mut bytes = [0; 128];
            for (bytes, stored) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(stored) {
                *bytes = stored.to_le_bytes();
            }
            let (mut bits, mut inside) = (0u64, Vec::new());
            for at in 0..64 {
                let magnitude = stored[at] & 0x7fff;
                bits |= u64::from(magnitude < low[at]) << at;
                if magnitude >= low[at] && magnitude - low[at] < width[at] {
                    inside.push(starts[at] + u32::from(magnitude - low[at]));
                }
            }
            if let Some(found) = vectorized(#[inline(always)] || below(&bytes, &low)) {
                prop_assert_eq!(found, bits);
            }
            let mut entries = [0; ENTRIES_ROOM];
            let found = vectorized(#[inline(always)] || entries_inside(&bytes, &low, &width, &starts, &mut entries));
            if let Some((count, below)) = found {
                prop_assert_eq!(&entries[..count], &*inside);
                prop_assert_eq!(below, bits.count_ones());
            }
        }
    }
}
