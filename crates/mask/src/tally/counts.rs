//! Votes per weight, kept as bit planes.
//!
//! A count of up to m needs ⌈log₂(m + 1)⌉ bits. Plane p holds bit p of the counts of 64 weights a word,
//! so adding a mask is an addition carried out on 64 weights at once, and 64 votes on 45 million weights
//! take 40 MB where a vector of u32 takes 180. Words of all planes of eight neighbouring words lie
//! together (a *block*), so that every kernel works within the first-level cache and vectorises.
//!
//! Eight masks at a time are added by the carry-save tree of Harley and Seal, whose running ones, twos and
//! fours are the lowest planes themselves. A task takes a tile of all masks, eight by eight, while its planes
//! stay in the second-level cache: every mask is read from memory once, and so are the planes. Sixteen at a
//! time need fewer additions, yet measured slower: caches follow eight streams better than sixteen.
//!
//! Floor: each mask is read once, n/8 bytes a vote.

use rayon::prelude::*;

use crate::matrix_mask::MatrixMask;
use crate::vector::vectorized;

/// Masks that are added in one pass over the planes of a tile.
pub const BATCH: usize = 8;
/// Words of one plane that lie together.
pub(super) const LANES: usize = 8;
/// Blocks that one task of a parallel pass looks at.
pub(super) const TASK_BLOCKS: usize = if cfg!(miri) { 1 } else { 1024 };
/// Words that the adders work on together: all that one step needs stays in registers, and vectorises.
const WIDTH: usize = 8;

pub(super) type Lanes = [u64; LANES];

/// Stands in for the masks that a batch lacks.
static NOTHING: [Lanes; TASK_BLOCKS] = [[0; LANES]; TASK_BLOCKS];

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

    /// As [`Counts::new`], in the memory of counts that are no longer needed: fresh pages cost a matrix of 45 million weights
    /// more than counting 64 masks does.
    pub fn in_place_of(spare: Option<Self>, rows: usize, columns: usize, total: u32) -> Self {
        let Some(Self { mut words, .. }) = spare else { return Self::new(rows, columns, total) };
        let planes = (u32::BITS - total.leading_zeros()) as usize;
        words.resize((rows * columns).div_ceil(64 * LANES) * planes, [0; LANES]);
        words.par_chunks_mut(planes.max(1) * TASK_BLOCKS).for_each(|blocks| blocks.fill([0; LANES]));
        Self { rows, columns, total, added: 0, planes, words }
    }

    /// Adds masks of `weight` each; up to [`BATCH`] at a time cost about as much as one.
    ///
    /// # Errors
    /// [`TotalError`] when that would exceed the total; nothing is added then.
    ///
    /// # Panics
    /// When a mask has another shape: all come from one layout.
    pub fn add(&mut self, weight: u32, masks: &[&MatrixMask]) -> Result<(), TotalError> {
        self.add_after(self.added, weight, masks)
    }

    /// Forgets the votes so far and adds masks, as [`Counts::add`] does: what the planes take in memory is used
    /// again, which costs less than zeroed memory does.
    ///
    /// # Errors
    /// [`TotalError`] when that would exceed the total; nothing is forgotten then.
    ///
    /// # Panics
    /// When a mask has another shape: all come from one layout.
    pub fn recount(&mut self, weight: u32, masks: &[&MatrixMask]) -> Result<(), TotalError> {
        self.add_after(0, weight, masks)
    }

    /// Adds to votes of weight `added`: to all that there are, or to none.
    fn add_after(&mut self, added: u32, weight: u32, masks: &[&MatrixMask]) -> Result<(), TotalError> {
        let more = u64::from(weight) * masks.len() as u64;
        let sum = u64::from(added) + more;
        if sum > u64::from(self.total) {
            return Err(TotalError { total: self.total, added, more });
        }
        for mask in masks {
            assert_eq!((mask.rows(), mask.columns()), (self.rows, self.columns), "masks of one matrix");
        }
        let forget = self.added > added;
        let planes = self.planes;
        if more > 0 || forget {
            self.words.par_chunks_mut(planes * TASK_BLOCKS).enumerate().for_each(|(task, blocks)| {
                if forget {
                    blocks.fill([0; LANES]);
                }
                for batch in masks.chunks(BATCH) {
                    for place in (0..u32::BITS).filter(|place| weight >> place & 1 == 1) {
                        let first_word = task * TASK_BLOCKS * LANES;
                        vectorized(
                            #[inline(always)]
                            || add_tile(blocks, planes, place as usize, batch, first_word),
                        );
                    }
                }
            });
        }
        self.added = sum as u32;
        Ok(())
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

    /// Words of all planes, block by block, as many blocks as one task of a parallel pass looks at.
    pub(super) fn tasks(&self) -> impl IndexedParallelIterator<Item = &[Lanes]> {
        self.words.par_chunks(self.planes.max(1) * TASK_BLOCKS)
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

/// Adds the words of up to [`BATCH`] masks from `first_word` on to the planes of `blocks`, `place` places up.
#[inline(always)]
fn add_tile(blocks: &mut [Lanes], planes: usize, place: usize, masks: &[&MatrixMask], first_word: usize) {
    let mut tiles = [&NOTHING[..blocks.len() / planes]; BATCH];
    let mut partial = [[0; LANES]; BATCH];
    for ((tile, partial), mask) in tiles.iter_mut().zip(&mut partial).zip(masks) {
        let (whole, rest) = mask.words()[first_word..].as_chunks::<LANES>();
        *tile = &whole[..whole.len().min(tile.len())];
        partial[..rest.len()].copy_from_slice(rest);
    }
    // only the last block of a matrix is not whole, and then of all masks
    let whole = tiles.iter().map(|tile| tile.len()).min().unwrap_or(0);
    let (whole_blocks, last_block) = blocks.split_at_mut(whole * planes);
    add_blocks(whole_blocks, planes, place, &tiles.map(|tile| &tile[..whole]));
    if !last_block.is_empty() {
        add_blocks(last_block, planes, place, &partial.each_ref().map(std::slice::from_ref));
    }
}

/// Adds one block of each mask to each block of planes, `place` places up.
///
/// Sums never exceed the total, so nothing is carried out of the highest plane.
#[inline(always)]
fn add_blocks(blocks: &mut [Lanes], planes: usize, place: usize, masks: &[&[Lanes]; BATCH]) {
    for (index, block) in blocks.chunks_exact_mut(planes).enumerate() {
        let masks = masks.map(|mask| &mask[index]);
        match block[place..].split_first_chunk_mut::<3>() {
            Some((low, high)) => add_eight(low, high, &masks),
            None => {
                // planes that the total does not need: they stay zero
                let block = &mut block[place..];
                let mut low = [[0; LANES]; 3];
                low[..block.len()].copy_from_slice(block);
                add_eight(&mut low, &mut [], &masks);
                block.copy_from_slice(&low[..block.len()]);
            }
        }
    }
}

/// `WIDTH` words.
type Wide = [u64; WIDTH];

/// a + b + c, bit by bit: (sum, carry).
#[inline(always)]
fn full_adder(a: &Wide, b: &Wide, c: &Wide) -> (Wide, Wide) {
    let (mut sum, mut carry) = ([0; WIDTH], [0; WIDTH]);
    for at in 0..WIDTH {
        let either = a[at] ^ b[at];
        sum[at] = either ^ c[at];
        carry[at] = a[at] & b[at] | either & c[at];
    }
    (sum, carry)
}

/// Adds eight masks to planes: to ones, twos and fours, and what they carry to the higher ones.
#[inline(always)]
fn add_eight(low: &mut [Lanes; 3], high: &mut [Lanes], masks: &[&Lanes; BATCH]) {
    for part in 0..LANES / WIDTH {
        let mask = |index: usize| &masks[index].as_chunks::<WIDTH>().0[part];
        let [ones, twos, fours] = low.each_mut().map(|plane| &mut plane.as_chunks_mut::<WIDTH>().0[part]);
        let (sum, carry_a) = full_adder(ones, mask(0), mask(1));
        let (sum, carry_b) = full_adder(&sum, mask(2), mask(3));
        let (sum_of_twos, carry_of_twos_a) = full_adder(twos, &carry_a, &carry_b);
        let (sum, carry_a) = full_adder(&sum, mask(4), mask(5));
        let (sum, carry_b) = full_adder(&sum, mask(6), mask(7));
        let (sum_of_twos, carry_of_twos_b) = full_adder(&sum_of_twos, &carry_a, &carry_b);
        let (sum_of_fours, mut carry) = full_adder(fours, &carry_of_twos_a, &carry_of_twos_b);
        (*ones, *twos, *fours) = (sum, sum_of_twos, sum_of_fours);
        for plane in &mut *high {
            let plane = &mut plane.as_chunks_mut::<WIDTH>().0[part];
            for at in 0..WIDTH {
                (plane[at], carry[at]) = (plane[at] ^ carry[at], plane[at] & carry[at]);
            }
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

    /// Whatever counts were there before, of whatever shape.
    #[test]
    fn memory_of_other_counts_counts_as_new_memory_does() {
        let mut spare = None;
        for (rows, columns, total) in [(40, 70, 9), (3, 5, 200), (64, 130, 1), (1, 1, 70_000), (40, 70, 9)] {
            let masks: Vec<MatrixMask> = (0..total.min(9)).map(|vote| noise(rows, columns, u64::from(vote))).collect();
            let mut new = Counts::new(rows, columns, total);
            let mut reused = Counts::in_place_of(spare.take(), rows, columns, total);
            assert_eq!(reused, new);
            for counts in [&mut new, &mut reused] {
                counts.add(1, &masks.iter().collect::<Vec<_>>()).unwrap();
            }
            assert_eq!(reused, new);
            spare = Some(reused);
        }
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
            rows in 1usize..if cfg!(miri) { 4 } else { 12 }, columns in 1usize..150, batch in 1usize..20,
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
        let (more, fewer) = if cfg!(miri) { (1, 1) } else { (7, 5) };
        check(more, 65, &[1; 64], 7);
        check(fewer, 67, &[1; 300], 64);
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

    #[test]
    fn counting_again_forgets() {
        let (first, second) = (noise(9, 71, 1), noise(9, 71, 2));
        let mut counts = Counts::new(9, 71, 3);
        counts.recount(1, &[]).unwrap();
        assert_eq!(counts, Counts::new(9, 71, 3));
        counts.add(2, &[&first]).unwrap();
        let before = counts.clone();
        assert!(counts.recount(2, &[&first, &second]).is_err());
        assert_eq!(counts, before);
        counts.recount(1, &[&second, &second, &first]).unwrap();
        assert_eq!(counts.to_vec(), count_one_by_one(&[(2, &second), (1, &first)]));
        counts.recount(7, &[]).unwrap();
        assert_eq!(counts, Counts::new(9, 71, 3));
    }
}
