//! One matrix's mask: a bit per weight, 1 = pruned, row-major, least significant bit first.

use crate::Digest;

/// Pruned-or-kept for every weight of one matrix.
///
/// Bit `row × columns + column` lies in word `bit / 64` at position `bit % 64`; bits past the last
/// weight are zero, always, so that equal masks are equal words.
#[derive(Clone, PartialEq, Eq)]
pub struct MatrixMask {
    rows: usize,
    columns: usize,
    words: Vec<u64>,
}

/// Bytes that are no packed mask of the shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedMaskError {
    /// Wrong length.
    #[error("a packed mask of shape ({rows}, {columns}) is {expected} bytes, not {actual}")]
    Length {
        /// out_features.
        rows: usize,
        /// in_features.
        columns: usize,
        /// What the shape needs.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A second encoding of the same mask.
    #[error("a packed mask of shape ({rows}, {columns}) has bits set past its last weight")]
    Padding {
        /// out_features.
        rows: usize,
        /// in_features.
        columns: usize,
    },
}

impl MatrixMask {
    /// Nothing pruned.
    pub fn kept(rows: usize, columns: usize) -> Self {
        Self { rows, columns, words: vec![0; (rows * columns).div_ceil(64)] }
    }

    /// Unpacks `bytes`, as [`MatrixMask::to_bytes`] wrote them.
    ///
    /// # Errors
    /// [`PackedMaskError`] on a wrong length or non-zero padding.
    pub fn from_bytes(rows: usize, columns: usize, bytes: &[u8]) -> Result<Self, PackedMaskError> {
        let bits = rows * columns;
        let expected = bits.div_ceil(8);
        if bytes.len() != expected {
            return Err(PackedMaskError::Length { rows, columns, expected, actual: bytes.len() });
        }
        let words: Vec<u64> = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0u8; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_le_bytes(word)
            })
            .collect();
        let spare = words.len() * 64 - bits;
        if spare > 0 && words.last().is_some_and(|last| last.leading_zeros() < spare as u32) {
            return Err(PackedMaskError::Padding { rows, columns });
        }
        Ok(Self { rows, columns, words })
    }

    /// Packed bytes: `ceil(rows × columns / 8)`, zero-padded.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.words.len() * 8);
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.truncate((self.rows * self.columns).div_ceil(8));
        bytes
    }

    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The packed words.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The packed words; whoever writes keeps the bits past the last weight zero.
    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Whether the weight is pruned.
    pub fn get(&self, row: usize, column: usize) -> bool {
        let bit = row * self.columns + column;
        self.words[bit / 64] >> (bit % 64) & 1 == 1
    }

    /// Marks the weight as pruned.
    pub fn prune(&mut self, row: usize, column: usize) {
        assert!(row < self.rows && column < self.columns);
        let bit = row * self.columns + column;
        self.words[bit / 64] |= 1 << (bit % 64);
    }

    /// How many weights are pruned.
    pub fn count_pruned(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many weights are pruned in exactly one of the two.
    ///
    /// # Panics
    /// When the shapes differ: both come from one layout.
    pub fn count_different(&self, other: &Self) -> u64 {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a ^ b).count_ones())).sum()
    }

    /// Calls `f(flat index)` for each pruned weight, in order.
    pub fn for_each_pruned(&self, mut f: impl FnMut(usize)) {
        for (index, &word) in self.words.iter().enumerate() {
            let mut word = word;
            while word != 0 {
                f(index * 64 + word.trailing_zeros() as usize);
                word &= word - 1;
            }
        }
    }

    /// Zeroes the pruned weights of `stored`, a matrix of `weight_bytes` bytes a weight.
    ///
    /// # Panics
    /// When `stored` has another size than the mask.
    pub fn zero(&self, stored: &mut [u8], weight_bytes: usize) {
        assert_eq!(stored.len(), self.rows * self.columns * weight_bytes);
        self.for_each_pruned(|index| stored[index * weight_bytes..(index + 1) * weight_bytes].fill(0));
    }

    /// BLAKE3 of the packed bytes; independent of any encoding.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let mut left = (self.rows * self.columns).div_ceil(8);
        let mut buffer = [0u8; 1 << 13];
        for words in self.words.chunks(buffer.len() / 8) {
            for (bytes, word) in buffer.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let length = left.min(words.len() * 8);
            hasher.update(&buffer[..length]);
            left -= length;
        }
        hasher.finalize().into()
    }
}

impl std::fmt::Debug for MatrixMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MatrixMask({}×{}, {} pruned)", self.rows, self.columns, self.count_pruned())
    }
}

/// The mask root: BLAKE3(layout digest ‖ per-matrix digests in layout order).
///
/// It names a whole mask whatever it was encoded or sent as.
pub fn mask_root(layout: Digest, matrices: impl IntoIterator<Item = Digest>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&layout.0);
    for digest in matrices {
        hasher.update(&digest.0);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkered(rows: usize, columns: usize) -> MatrixMask {
        let mut mask = MatrixMask::kept(rows, columns);
        for index in (0..rows * columns).filter(|index| index % 3 == 0) {
            mask.prune(index / columns, index % columns);
        }
        mask
    }

    #[test]
    fn packs_and_unpacks_every_width() {
        for (rows, columns) in [(1, 1), (3, 5), (8, 8), (7, 64), (5, 136), (9, 13)] {
            let mask = checkered(rows, columns);
            let bytes = mask.to_bytes();
            assert_eq!(MatrixMask::from_bytes(rows, columns, &bytes).unwrap(), mask);
            assert_eq!(mask.digest(), Digest::of(&bytes));
            assert_eq!(mask.count_pruned(), (rows * columns).div_ceil(3) as u64);
            assert_eq!(mask.count_different(&MatrixMask::kept(rows, columns)), mask.count_pruned());
        }
        let large = if cfg!(miri) { checkered(31, 21) } else { checkered(1031, 1021) }; // more than one hashing buffer
        assert_eq!(large.digest(), Digest::of(&large.to_bytes()));
    }

    #[test]
    fn bit_order_is_least_significant_first() {
        let mut mask = MatrixMask::kept(2, 5);
        mask.prune(0, 1);
        mask.prune(1, 4);
        assert_eq!(mask.to_bytes(), [0b0000_0010, 0b0000_0010]);
    }

    #[test]
    fn refuses_a_second_encoding() {
        assert!(matches!(MatrixMask::from_bytes(1, 5, &[0xff]), Err(PackedMaskError::Padding { .. })));
        assert!(MatrixMask::from_bytes(1, 5, &[0x1f]).is_ok());
        assert!(MatrixMask::from_bytes(8, 8, &[0xff; 8]).is_ok());
        assert!(matches!(MatrixMask::from_bytes(1, 5, &[0, 0]), Err(PackedMaskError::Length { .. })));
    }

    #[test]
    fn zeroes_stored_weights() {
        let mask = checkered(2, 3);
        let mut stored = [7u8; 12];
        mask.zero(&mut stored, 2);
        assert_eq!(stored, [0, 0, 7, 7, 7, 7, 0, 0, 7, 7, 7, 7]);
    }
}
