//! One pool whose coarse keys lie in memory: a row, or a column.
//!
//! Counting how many coarse keys lie below two levels takes a tenth of a nanosecond a key, so the level at
//! which the budget runs out is searched for by counting: first where the pool before had its own, then by
//! interpolation. What ties at that level, under a per cent of real pools, is asked for its keys.

/// Keys sampled where there is no pool before.
const SAMPLE: usize = 64;
/// Standard deviations of a sampled rank on either side of the first bracket.
const SAMPLE_DEVIATIONS: f64 = 2.5;
/// Brackets with no more keys inside than this, and one in [`FEW_SHARE`], are not narrowed further.
const FEW: usize = 16;
const FEW_SHARE: usize = 256;
/// Counting passes that interpolate; after these the levels are halved, lest a pool be made to last.
const MAX_INTERPOLATIONS: usize = 6;
/// Keys that are counted in 16 bits.
const COUNT_CHUNK: usize = 1 << 15;

/// Coarse keys below `low` are pruned, those above `high` kept, and the rest undecided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bracket {
    pub(super) low: i16,
    pub(super) high: i16,
}

impl Bracket {
    /// Around rank `budget` of `pool` keys, judged by a sample of coarse keys, which is partitioned.
    pub(super) fn from_sample(sample: &mut [i16], budget: u64, pool: u64, deviations: f64) -> Self {
        let fraction = budget as f64 / pool as f64;
        let rank = fraction * sample.len() as f64;
        // bounds only ever cost time, so float rounding cannot change a mask
        let margin = deviations * (sample.len() as f64 * fraction * (1.0 - fraction)).sqrt() + 1.0;
        let (below, above) = (rank - margin, rank + margin);
        let high = if above >= sample.len() as f64 { i16::MAX } else { *sample.select_nth_unstable(above as usize).1 };
        let low = if below < 0.0 { 0 } else { *sample.select_nth_unstable(below as usize).1 };
        Self { low, high }
    }

    /// How many keys lie below, and how many do not lie above.
    fn count(self, keys: &[i16]) -> (usize, usize) {
        let Self { low, high } = self;
        let (mut below, mut not_above) = (0, 0);
        for keys in keys.chunks(COUNT_CHUNK) {
            // 16 bits a lane: twice as many lanes, and a chunk fits them
            let (mut below_of_chunk, mut not_above_of_chunk) = (0u16, 0u16);
            for &key in keys {
                below_of_chunk += u16::from(key < low);
                not_above_of_chunk += u16::from(key <= high);
            }
            below += usize::from(below_of_chunk);
            not_above += usize::from(not_above_of_chunk);
        }
        (below, not_above)
    }

    /// For 64 keys or fewer, bits of those below, and of those inside.
    #[inline(always)]
    fn split(self, keys: &[i16]) -> (u64, u64) {
        let Self { low, high } = self;
        let mut below = [0u8; 64];
        let mut not_above = [0u8; 64];
        match keys.as_array::<64>() {
            Some(keys) => {
                for at in 0..64 {
                    below[at] = u8::from(keys[at] < low);
                    not_above[at] = u8::from(keys[at] <= high);
                }
            }
            None => {
                for (at, &key) in keys.iter().enumerate() {
                    below[at] = u8::from(key < low);
                    not_above[at] = u8::from(key <= high);
                }
            }
        }
        let below = pack(&below);
        (below, pack(&not_above) & !below)
    }

    /// Writes the bits of the keys below, and returns how many; calls `inside` with the positions of those inside.
    #[inline]
    pub(super) fn split_all(self, keys: &[i16], below: &mut Vec<u64>, mut inside: impl FnMut(usize)) -> usize {
        below.clear();
        let mut count = 0;
        for (word, keys) in keys.chunks(64).enumerate() {
            let (bits, mut rest) = self.split(keys);
            count += bits.count_ones() as usize;
            below.push(bits);
            while rest != 0 {
                inside(word * 64 + rest.trailing_zeros() as usize);
                rest &= rest - 1;
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

/// Where the threshold is expected: what the pools before were like.
#[derive(Clone, Copy, Debug)]
struct Expected {
    level: f32,
    /// How far off it was of late, in levels.
    miss: f32,
    /// Keys of one level near it, as a share of the pool.
    density: f32,
}

/// Buffers that one task reuses from pool to pool, and what it learnt from them; none of it changes a mask.
#[derive(Default)]
pub(super) struct Scratch {
    pruned: Vec<u64>,
    candidates: Vec<(u64, u32)>,
    ties: Vec<(u32, u32)>,
    expected: Option<Expected>,
}

impl Scratch {
    /// Bits of the first `budget` of a pool; `key(position)` decides among equal coarse keys, and
    /// `magnitude(position)` among equal keys.
    pub(super) fn select(
        &mut self,
        coarse: &[i16],
        budget: usize,
        key: impl Fn(usize) -> u64,
        magnitude: impl Fn(usize) -> u32,
    ) -> &[u64] {
        if budget == 0 {
            self.pruned.clear();
            self.pruned.resize(coarse.len().div_ceil(64), 0);
            return &self.pruned;
        }
        let bracket = self.narrow(coarse, budget);
        self.candidates.clear();
        let candidates = &mut self.candidates;
        let below = bracket.split_all(coarse, &mut self.pruned, |at| candidates.push((key(at), at as u32)));
        if budget > below {
            self.mark_candidates(budget - below, magnitude);
        }
        &self.pruned
    }

    /// A bracket around the `budget`-th of the keys, `budget` ≥ 1, with few keys inside unless they all tie.
    fn narrow(&mut self, keys: &[i16], budget: usize) -> Bracket {
        let few = FEW + keys.len() / FEW_SHARE;
        // always: below < budget ≤ upto
        let mut bracket = Bracket { low: 0, high: i16::MAX };
        let (mut below, mut upto) = (0, keys.len());
        if keys.len() <= 2 * few {
            return bracket;
        }
        let mut probe = match self.expected {
            Some(expected) => around(expected.level, 1.5 * expected.miss + 1.0),
            None => {
                let mut sample = [0; SAMPLE];
                let stride = keys.len() as f64 / SAMPLE as f64;
                for (at, key) in sample.iter_mut().enumerate() {
                    // scattered within the stride, lest a period of the channels shows
                    let offset = f64::from(((at as u32).wrapping_mul(0x9e37_79b1) >> 8) % 1024) / 1024.0;
                    *key = keys[((at as f64 + offset) * stride) as usize];
                }
                Bracket::from_sample(&mut sample, budget as u64, keys.len() as u64, SAMPLE_DEVIATIONS)
            }
        };
        let mut passes = 0;
        while upto - below > few && bracket.low < bracket.high {
            let low = probe.low.clamp(bracket.low, bracket.high);
            let high = probe.high.clamp(low, bracket.high);
            let (below_probe, upto_probe) = Bracket { low, high }.count(keys);
            passes += 1;
            // each branch leaves less of the bracket: what was probed, or what lies beside it
            let step;
            if below_probe >= budget {
                (bracket.high, upto) = (low - 1, below_probe);
                step = (low, below_probe);
            } else if upto_probe < budget {
                (bracket.low, below) = (high + 1, upto_probe);
                step = (high, upto_probe);
            } else {
                (bracket, below, upto) = (Bracket { low, high }, below_probe, upto_probe);
                step = (low, below_probe);
            }
            let span = f32::from(bracket.high - bracket.low) + 1.0;
            let missed = below_probe >= budget || upto_probe < budget;
            probe = if passes > MAX_INTERPOLATIONS {
                let middle = bracket.low + (bracket.high - bracket.low) / 2;
                Bracket { low: middle, high: middle }
            } else if let (true, Some(expected)) = (missed, self.expected) {
                // onwards from where it was looked for, as far as the density says and a little more
                let keys_away = budget as f32 - step.1 as f32;
                let levels_away = keys_away / (expected.density.max(1e-6) * keys.len() as f32);
                around(f32::from(step.0) + levels_away, levels_away.abs() / 4.0 + 1.0)
            } else {
                let share = (budget - below) as f32 / (upto - below) as f32;
                around(f32::from(bracket.low) + share * span - 0.5, span / 32.0)
            };
        }
        let span = f32::from(bracket.high - bracket.low) + 1.0;
        let level = f32::from(bracket.low) + span / 2.0 - 0.5;
        let density = (upto - below) as f32 / (span * keys.len() as f32);
        self.expected = Some(match self.expected {
            Some(before) => Expected {
                level,
                miss: (before.miss * 3.0 + (level - before.level).abs()) / 4.0,
                density: (before.density * 3.0 + density) / 4.0,
            },
            None => Expected { level, miss: 16.0, density },
        });
        bracket
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

/// Levels from `level − reach` to `level + reach`.
fn around(level: f32, reach: f32) -> Bracket {
    // a cast of a float saturates
    Bracket { low: ((level - reach).floor() as i16).max(0), high: ((level + reach).ceil() as i16).max(0) }
}
