//! Votes per weight, kept as bit planes.
//!
//! A count of up to m needs ⌈log₂(m + 1)⌉ bits. Plane p holds bit p of the counts of 64 weights a word,
//! so adding a mask is an addition carried out on 64 weights at once, and 64 votes on 45 million weights
//! take 40 MB where a vector of u32 takes 180. Words of all planes of eight neighbouring words lie
//! together (a *block*), so that every kernel works within the first-level cache and vectorises.
//!
//! Floor: each mask is read once, n/8 bytes a vote; planes are read and written once for every
//! [`BATCH`] masks.

use rayon::prelude::*;

use crate::matrix_mask::MatrixMask;

/// Masks that are added in one pass over the planes: as many as three planes can count.
pub const BATCH: usize = 7;
/// Words of one plane that lie together.
pub(super) const LANES: usize = 8;
/// Blocks that one task of a parallel pass looks at.
pub(super) const TASK_BLOCKS: usize = 256;

pub(super) type Lanes = [u64; LANES];

/// How often each weight of one matrix was pruned, by weight of the votes.
#[derive(Clone, PartialEq, Eq)]
pub struct Counts {
    rows: usize,
    columns: usize,
    /// Weight of all votes that there will be.
    total: u32,
    /// Weight of the votes added so far.
    added: u32,
    planes: usize,
    /// `LANES` words of plane 0, of plane 1, …, then the next block.
    words: Vec<Lanes>,
}

/// More votes than were announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("votes of weight {added} and {more} more exceed the total weight of {total}")]
pub struct TotalError {
    total: u32,
    added: u32,
    more: u64,
}

impl Counts {
    /// No votes yet, and room for votes of weight `total` together.
    pub fn new(rows: usize, columns: usize, total: u32) -> Self {
        let planes = (u32::BITS - total.leading_zeros()) as usize;
        let blocks = (rows * columns).div_ceil(64 * LANES);
        Self { rows, columns, total, added: 0, planes, words: vec![[0; LANES]; blocks * planes] }
    }

    /// Adds masks of `weight` each; up to [`BATCH`] at a time cost about as much as one.
    ///
    /// # Errors
    /// [`TotalError`] when that would exceed the total; nothing is added then.
    ///
    /// # Panics
    /// When a mask has another shape: all come from one layout.
    pub fn add(&mut self, weight: u32, masks: &[&MatrixMask]) -> Result<(), TotalError> {
        let more = u64::from(weight) * masks.len() as u64;
        let sum = u64::from(self.added) + more;
        if sum > u64::from(self.total) {
            return Err(TotalError { total: self.total, added: self.added, more });
        }
        for mask in masks {
            assert_eq!((mask.rows(), mask.columns()), (self.rows, self.columns), "masks of one matrix");
        }
        if weight > 0 {
            for batch in masks.chunks(BATCH) {
                self.add_batch(weight, batch);
            }
        }
        self.added = sum as u32;
        Ok(())
    }

    fn add_batch(&mut self, weight: u32, masks: &[&MatrixMask]) {
        let planes = self.planes;
        if planes == 0 {
            return;
        }
        self.words.par_chunks_mut(planes * TASK_BLOCKS).enumerate().for_each(|(task, blocks)| {
            let mut lanes = [[0u64; LANES]; BATCH];
            for (offset, block) in blocks.chunks_exact_mut(planes).enumerate() {
                let first = (task * TASK_BLOCKS + offset) * LANES;
                for (lanes, mask) in lanes.iter_mut().zip(masks) {
                    load(lanes, mask.words(), first);
                }
                let sum = count_seven(&lanes);
                for place in (0..u32::BITS).filter(|place| weight >> place & 1 == 1) {
                    add_shifted(block, &sum, place as usize);
                }
            }
        });
    }

    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Weight of all votes together: the m of `(m − count) / m`.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Weight of the votes added so far.
    pub fn added(&self) -> u32 {
        self.added
    }

    /// How many planes there are: significant bits of the total.
    pub(super) fn planes(&self) -> usize {
        self.planes
    }

    /// Words of all planes, block by block.
    pub(super) fn blocks(&self) -> impl IndexedParallelIterator<Item = &[Lanes]> {
        self.words.par_chunks_exact(self.planes.max(1))
    }

    /// Word `word` of one plane.
    pub(super) fn word(&self, plane: usize, word: usize) -> u64 {
        self.words[word / LANES * self.planes + plane][word % LANES]
    }

    /// The count of one weight.
    ///
    /// # Panics
    /// When there is no such weight.
    pub fn get(&self, row: usize, column: usize) -> u32 {
        assert!(row < self.rows && column < self.columns);
        let index = row * self.columns + column;
        (0..self.planes)
            .fold(0, |count, plane| count | ((self.word(plane, index / 64) >> (index % 64) & 1) as u32) << plane)
    }

    /// The counts of the 64 weights of one mask word, unpacked; past the last weight they are zero.
    pub(super) fn unpack(&self, word: usize) -> [u32; 64] {
        let mut counts = [0u32; 64];
        for group in (0..self.planes).step_by(8) {
            let planes = group..(group + 8).min(self.planes);
            let mut words = [0u64; 8];
            for (slot, plane) in words.iter_mut().zip(planes.clone()) {
                *slot = self.word(plane, word);
            }
            for (byte, counts) in counts.chunks_exact_mut(8).enumerate() {
                // eight counts at once, a byte each
                let mut eight = 0u64;
                for (place, word) in words[..planes.len()].iter().enumerate() {
                    eight |= SPREAD[(word >> (8 * byte) & 0xff) as usize] << place;
                }
                for (count, part) in counts.iter_mut().zip(eight.to_le_bytes()) {
                    *count |= u32::from(part) << group;
                }
            }
        }
        counts
    }

    /// Calls `f(index, count)` for the weights `start..end` by flat index, in order.
    pub fn for_each(&self, range: std::ops::Range<usize>, mut f: impl FnMut(usize, u32)) {
        assert!(range.end <= self.rows * self.columns);
        let mut at = range.start;
        while at < range.end {
            let word = at / 64;
            let end = range.end.min((word + 1) * 64);
            let counts = self.unpack(word);
            for (index, &count) in (at..end).zip(&counts[at % 64..]) {
                f(index, count);
            }
            at = end;
        }
    }

    /// All counts, row-major: 4 bytes a weight, for tests and display.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut counts = Vec::with_capacity(self.rows * self.columns);
        self.for_each(0..self.rows * self.columns, |_, count| counts.push(count));
        counts
    }
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Counts({}×{}, {} of {} votes)", self.rows, self.columns, self.added, self.total)
    }
}

impl Counts {
    /// Counts of all votes at once: `planes_of(word, planes)` writes bit p of the counts of the 64 weights of a mask
    /// word to `planes[p]`, which is zero before, and nothing past the last weight.
    pub(super) fn from_words(
        rows: usize,
        columns: usize,
        total: u32,
        planes_of: impl Fn(usize, &mut [u64]) + Sync,
    ) -> Self {
        let mut counts = Self::new(rows, columns, total);
        let planes = counts.planes;
        counts.added = total;
        if planes == 0 {
            return counts;
        }
        let words = (rows * columns).div_ceil(64);
        counts.words.par_chunks_mut(planes * TASK_BLOCKS).enumerate().for_each_init(
            || vec![0u64; planes],
            |of_word, (task, blocks)| {
                for (offset, block) in blocks.chunks_exact_mut(planes).enumerate() {
                    let first = (task * TASK_BLOCKS + offset) * LANES;
                    for word in first..(first + LANES).min(words) {
                        of_word.fill(0);
                        planes_of(word, of_word);
                        block.iter_mut().zip(&*of_word).for_each(|(plane, bits)| plane[word - first] = *bits);
                    }
                }
            },
        );
        counts
    }
}

/// Bit i of a byte, moved to the lowest bit of byte i.
static SPREAD: [u64; 256] = {
    let mut table = [0u64; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            table[byte] |= ((byte as u64 >> bit) & 1) << (8 * bit);
            bit += 1;
        }
        byte += 1;
    }
    table
};

#[inline(always)]
fn load(lanes: &mut Lanes, words: &[u64], first: usize) {
    match words.get(first..first + LANES) {
        Some(words) => lanes.copy_from_slice(words),
        None => {
            *lanes = [0; LANES];
            let words = &words[first.min(words.len())..];
            lanes[..words.len()].copy_from_slice(words);
        }
    }
}

/// a + b + carry, bit by bit: (sum, carry out).
#[inline(always)]
fn full_adder(a: u64, b: u64, carry: u64) -> (u64, u64) {
    let either = a ^ b;
    (either ^ carry, a & b | either & carry)
}

/// The number of ones among seven words, as three planes: ones, twos, fours.
#[inline(always)]
fn count_seven(masks: &[Lanes; BATCH]) -> [Lanes; 3] {
    let mut sum = [[0; LANES]; 3];
    // lane by lane with everything in registers, which vectorises across lanes
    for lane in 0..LANES {
        let (first, carry_a) = full_adder(masks[0][lane], masks[1][lane], masks[2][lane]);
        let (second, carry_b) = full_adder(masks[3][lane], masks[4][lane], masks[5][lane]);
        let (ones, carry_c) = full_adder(first, second, masks[6][lane]);
        let (twos, fours) = full_adder(carry_a, carry_b, carry_c);
        sum[0][lane] = ones;
        sum[1][lane] = twos;
        sum[2][lane] = fours;
    }
    sum
}

/// Adds a three-plane number, `place` places up, to the planes of a block.
///
/// Sums never exceed the total, so nothing is carried out of the highest plane.
#[inline(always)]
fn add_shifted(block: &mut [Lanes], number: &[Lanes; 3], place: usize) {
    let mut carry = [0u64; LANES];
    let (digits, higher) = {
        let planes = block.get_mut(place..).unwrap_or_default();
        let split = planes.len().min(number.len());
        planes.split_at_mut(split)
    };
    for (plane, digit) in digits.iter_mut().zip(number) {
        for lane in 0..LANES {
            (plane[lane], carry[lane]) = full_adder(plane[lane], digit[lane], carry[lane]);
        }
    }
    for plane in higher {
        for lane in 0..LANES {
            (plane[lane], carry[lane]) = (plane[lane] ^ carry[lane], plane[lane] & carry[lane]);
        }
    }
}

/// The obvious way: one addition a weight and vote. The reference that tests hold [`Counts`] against.
///
/// # Panics
/// When shapes differ or a sum leaves u32.
pub fn count_one_by_one(votes: &[(u32, &MatrixMask)]) -> Vec<u32> {
    let Some((_, first)) = votes.first() else { return Vec::new() };
    let (rows, columns) = (first.rows(), first.columns());
    let mut counts = vec![0u32; rows * columns];
    for (weight, mask) in votes {
        assert_eq!((mask.rows(), mask.columns()), (rows, columns));
        for (index, count) in counts.iter_mut().enumerate() {
            if mask.get(index / columns, index % columns) {
                *count = count.checked_add(*weight).expect("the total weight fits 32 bits");
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(rows: usize, columns: usize, seed: u64) -> MatrixMask {
        let mut mask = MatrixMask::kept(rows, columns);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for index in 0..rows * columns {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if state >> 63 == 1 {
                mask.prune(index / columns, index % columns);
            }
        }
        mask
    }

    fn check(rows: usize, columns: usize, weights: &[u32], batch: usize) {
        let masks: Vec<MatrixMask> = (0..weights.len()).map(|vote| noise(rows, columns, vote as u64)).collect();
        let votes: Vec<(u32, &MatrixMask)> = weights.iter().copied().zip(&masks).collect();
        let mut counts = Counts::new(rows, columns, weights.iter().sum());
        let mut left = votes.as_slice();
        while let Some(&(weight, _)) = left.first() {
            let equal = left.iter().take_while(|(other, _)| *other == weight).count().min(batch);
            let (now, later) = left.split_at(equal);
            counts.add(weight, &now.iter().map(|(_, mask)| *mask).collect::<Vec<_>>()).unwrap();
            left = later;
        }
        let expected = count_one_by_one(&votes);
        assert_eq!(counts.to_vec(), expected);
        assert_eq!(counts.added(), counts.total());
        for index in (0..expected.len()).step_by(37) {
            assert_eq!(counts.get(index / columns, index % columns), expected[index]);
        }
    }

    proptest! {
        #[test]
        fn planes_count_as_adding_does(
            rows in 1usize..12, columns in 1usize..150, batch in 1usize..20,
            weights in proptest::collection::vec(prop_oneof![3 => Just(1u32), 1 => 1u32..9, 1 => 1u32..100_000_000], 1..30),
        ) {
            check(rows, columns, &weights, batch);
        }
    }

    #[test]
    fn more_than_one_task_and_every_block_boundary() {
        check(3, 64 * LANES * TASK_BLOCKS, &[1; 9], 9);
        for columns in [511, 512, 513, 64 * LANES * TASK_BLOCKS + 1] {
            check(1, columns, &[5, 1, 1, 1, 70000], 7);
        }
    }

    #[test]
    fn sixty_four_and_three_hundred_voters() {
        check(7, 65, &[1; 64], 7);
        check(5, 67, &[1; 300], 64);
        check(2, 33, &[u32::MAX], 1);
        check(2, 33, &[u32::MAX - 1, 1], 1);
    }

    #[test]
    fn refuses_more_weight_than_announced() {
        let mask = noise(3, 5, 1);
        let mut counts = Counts::new(3, 5, 2);
        counts.add(1, &[&mask]).unwrap();
        let before = counts.clone();
        assert!(counts.add(1, &[&mask, &mask]).is_err());
        assert!(counts.add(u32::MAX, &[&mask, &mask]).is_err());
        assert_eq!(counts, before);
        counts.add(1, &[&mask]).unwrap();
    }
}
