//! One pool whose keys lie in memory: a row, or a column.

/// Fewer keys than this are partitioned without a sample.
const MIN_SAMPLED: usize = 256;
/// One key in this many is sampled.
const SAMPLE_STRIDE: usize = 24;
/// Most keys sampled.
const MAX_SAMPLE: usize = 256;
/// Standard deviations of a sampled rank on either side of the bracket.
const SAMPLE_DEVIATIONS: f64 = 2.5;

/// How far keys are shifted right to become *coarse* keys of 31 bits, which compare as quick `i32`.
pub(super) fn coarse_shift(significant_bits: u32) -> u32 {
    significant_bits.saturating_sub(31)
}

/// Coarse keys below `low` are surely pruned, those above `high` surely kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bracket {
    pub(super) low: i32,
    pub(super) high: i32,
    pub(super) shift: u32,
}

impl Bracket {
    /// Around rank `budget` of `pool` keys, judged by a sample of coarse keys, which is partitioned.
    pub(super) fn from_sample(sample: &mut [i32], budget: u64, pool: u64, deviations: f64, shift: u32) -> Self {
        let fraction = budget as f64 / pool as f64;
        let rank = fraction * sample.len() as f64;
        // bounds only ever cost time, so float rounding cannot change a mask
        let margin = deviations * (sample.len() as f64 * fraction * (1.0 - fraction)).sqrt() + 1.0;
        let (below, above) = (rank - margin, rank + margin);
        let high = if above >= sample.len() as f64 { i32::MAX } else { *sample.select_nth_unstable(above as usize).1 };
        let low = if below < 0.0 { i32::MIN } else { *sample.select_nth_unstable(below as usize).1 };
        Self { low, high, shift }
    }

    /// For 64 keys or fewer, bits of those below, and of those inside.
    #[inline]
    fn split(self, keys: &[u64]) -> (u64, u64) {
        let mut below = [0u8; 64];
        let mut not_above = [0u8; 64];
        let Self { low, high, shift } = self;
        match keys.as_array::<64>() {
            Some(keys) => {
                for at in 0..64 {
                    let coarse = (keys[at] >> shift) as i32;
                    below[at] = u8::from(coarse < low);
                    not_above[at] = u8::from(coarse <= high);
                }
            }
            None => {
                for (at, key) in keys.iter().enumerate() {
                    let coarse = (key >> shift) as i32;
                    below[at] = u8::from(coarse < low);
                    not_above[at] = u8::from(coarse <= high);
                }
            }
        }
        let below = pack(&below);
        (below, pack(&not_above) & !below)
    }

    /// Writes the bits of the keys below, and returns how many; calls `inside` with a word's number and the
    /// bits of those inside.
    #[inline]
    pub(super) fn split_all(self, keys: &[u64], below: &mut Vec<u64>, mut inside: impl FnMut(usize, u64)) -> u64 {
        below.clear();
        let mut count = 0;
        for (word, keys) in keys.chunks(64).enumerate() {
            let (bits, rest) = self.split(keys);
            count += u64::from(bits.count_ones());
            below.push(bits);
            if rest != 0 {
                inside(word, rest);
            }
        }
        count
    }
}

/// 64 bytes of 0 or 1 to bits.
#[inline(always)]
fn pack(flags: &[u8; 64]) -> u64 {
    let (eights, _) = flags.as_chunks::<8>();
    eights.iter().enumerate().fold(0, |bits, (at, eight)| {
        // the product brings byte i's lowest bit to bit 56 + i
        bits | u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * at)
    })
}

/// Calls `f(position)` for each one.
#[inline]
pub(super) fn for_each_one(words: &[u64], mut f: impl FnMut(usize)) {
    for (index, &word) in words.iter().enumerate() {
        let mut word = word;
        while word != 0 {
            f(index * 64 + word.trailing_zeros() as usize);
            word &= word - 1;
        }
    }
}

/// Buffers that one task reuses from pool to pool.
#[derive(Default)]
pub(super) struct Scratch {
    pruned: Vec<u64>,
    sample: Vec<i32>,
    candidates: Vec<(u64, u32)>,
    ties: Vec<(u32, u32)>,
}

impl Scratch {
    /// Bits of the first `budget` of a pool; `magnitude(position)` breaks ties of keys.
    pub(super) fn select(
        &mut self,
        keys: &[u64],
        shift: u32,
        budget: usize,
        magnitude: impl Fn(usize) -> u32,
    ) -> &[u64] {
        self.candidates.clear();
        let below = match self.bracket(keys, shift, budget) {
            Some(bracket) => {
                let candidates = &mut self.candidates;
                let below = bracket.split_all(keys, &mut self.pruned, |word, inside| {
                    for_each_one(&[inside], |at| {
                        let position = word * 64 + at;
                        candidates.push((keys[position], position as u32));
                    });
                });
                below as usize
            }
            None => usize::MAX,
        };
        // ranks below..=below + candidates are decided by the candidates alone
        let decided = below <= budget && budget - below <= self.candidates.len();
        let wanted = if decided {
            budget - below
        } else {
            self.pruned.clear();
            self.pruned.resize(keys.len().div_ceil(64), 0);
            self.candidates.clear();
            self.candidates.extend(keys.iter().zip(0..).map(|(&key, position)| (key, position)));
            budget
        };
        if wanted > 0 {
            self.mark_candidates(wanted, magnitude);
        }
        &self.pruned
    }

    fn bracket(&mut self, keys: &[u64], shift: u32, budget: usize) -> Option<Bracket> {
        if keys.len() < MIN_SAMPLED || budget == 0 {
            return None;
        }
        let count = (keys.len() / SAMPLE_STRIDE).min(MAX_SAMPLE);
        let stride = keys.len() / count;
        self.sample.clear();
        self.sample.extend((0..count).map(|at| {
            // scattered within the stride, lest a period of the channels shows
            let offset = ((at * 0x9e37_79b1) >> 8) % stride;
            (keys[at * stride + offset] >> shift) as i32
        }));
        Some(Bracket::from_sample(&mut self.sample, budget as u64, keys.len() as u64, SAMPLE_DEVIATIONS, shift))
    }

    /// Marks the first `wanted` ≥ 1 of the candidates.
    fn mark_candidates(&mut self, wanted: usize, magnitude: impl Fn(usize) -> u32) {
        let pruned = &mut self.pruned;
        let mut mark = |position: u32| pruned[position as usize / 64] |= 1 << (position % 64);
        let (before, &mut (threshold, last), after) =
            self.candidates.select_nth_unstable_by_key(wanted - 1, |candidate| candidate.0);
        self.ties.clear();
        for &(key, position) in &*before {
            if key < threshold {
                mark(position);
            } else {
                self.ties.push((0, position));
            }
        }
        let wanted = self.ties.len() + 1;
        self.ties.push((0, last));
        let with_key = after.iter().filter(|candidate| candidate.0 == threshold);
        self.ties.extend(with_key.map(|candidate| (0, candidate.1)));
        if wanted < self.ties.len() {
            self.ties.iter_mut().for_each(|(weight, position)| *weight = magnitude(*position as usize));
            self.ties.select_nth_unstable(wanted - 1);
        }
        self.ties[..wanted].iter().for_each(|&(_, position)| mark(position));
    }
}
