//! Which matrices are pruned, in which order, and the digest that identifies that list.
//!
//! A layout is shape alone: two checkpoints of one architecture and size share it, whatever their
//! values and dtypes. Order is by block, then q, k, v, o, gate, up, down.

use std::ops::Range;

use crate::Digest;
use crate::sparsity::Group;

/// No model has more prunable matrices; a larger claim is refused before it is stored.
pub const MAX_MATRICES: usize = 1 << 17;
/// Longest tensor name accepted, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Most weights in one matrix; keeps every flat index and count well inside 64 bits.
pub const MAX_MATRIX_WEIGHTS: u64 = 1 << 36;

/// One measured activation of a decoder block: every matrix that reads the same input shares a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
pub enum Tap {
    /// The normalised block input, read by `q_proj`, `k_proj` and `v_proj`.
    AttentionInput,
    /// The concatenated heads, read by `o_proj`.
    AttentionOutput,
    /// The normalised attention output, read by `gate_proj` and `up_proj`.
    MlpInput,
    /// The gated activation, read by `down_proj`.
    MlpOutput,
}

impl Tap {
    /// The four taps of a block, in layout order.
    pub const ALL: [Tap; 4] = [Tap::AttentionInput, Tap::AttentionOutput, Tap::MlpInput, Tap::MlpOutput];
}

/// One prunable weight matrix, of shape (out_features, in_features).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Tensor name in the checkpoint, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Index of the decoder block.
    pub block: u32,
    /// The activation that this matrix multiplies.
    pub tap: Tap,
    /// out_features.
    pub rows: u32,
    /// in_features.
    pub columns: u32,
}

impl Matrix {
    /// Number of weights: out_features × in_features.
    pub fn weights(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.columns)
    }

    /// Bytes of its packed mask.
    pub fn packed_bytes(&self) -> u64 {
        self.weights().div_ceil(8)
    }
}

/// The ordered list of prunable matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    matrices: Vec<Matrix>,
    /// Ranges of `matrices` that share one (block, tap), in order.
    taps: Vec<Range<usize>>,
    digest: Digest,
}

/// Why a list of matrices is no layout, or a group does not fit one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Nothing to prune.
    #[error("the layout has no prunable matrices")]
    Empty,
    /// More than [`MAX_MATRICES`].
    #[error("the layout has {0} matrices, more than the {MAX_MATRICES} allowed")]
    TooMany(usize),
    /// Zero-sized, oversized, or badly named.
    #[error("matrix `{name}` of shape ({rows}, {columns}) cannot be pruned: {problem}")]
    Matrix {
        /// Tensor name.
        name: String,
        /// out_features.
        rows: u32,
        /// in_features.
        columns: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An n:m group on a width that m does not divide.
    #[error(
        "group `{group}` needs a width that is a multiple of {m}, but `{name}` has {columns} inputs; \
         use --local-group row or layer, or an m that divides {columns}"
    )]
    Indivisible {
        /// The group asked for.
        group: Group,
        /// Its m.
        m: u32,
        /// The first matrix that it does not fit.
        name: String,
        /// in_features of that matrix.
        columns: u32,
    },
}

impl Layout {
    /// Checks and adopts `matrices`, which must be ordered by (block, tap).
    ///
    /// # Errors
    /// [`LayoutError`] when the list is empty, too long, out of order, or a shape is zero or too large.
    pub fn new(matrices: Vec<Matrix>) -> Result<Self, LayoutError> {
        if matrices.is_empty() {
            return Err(LayoutError::Empty);
        }
        if matrices.len() > MAX_MATRICES {
            return Err(LayoutError::TooMany(matrices.len()));
        }
        let mut taps: Vec<Range<usize>> = Vec::new();
        for (index, matrix) in matrices.iter().enumerate() {
            let error = |problem| LayoutError::Matrix {
                name: matrix.name.chars().take(MAX_NAME_BYTES).collect(),
                rows: matrix.rows,
                columns: matrix.columns,
                problem,
            };
            if matrix.name.is_empty() || matrix.name.len() > MAX_NAME_BYTES {
                return Err(error("its name is empty or longer than 256 bytes"));
            }
            if matrix.rows == 0 || matrix.columns == 0 {
                return Err(error("it has no weights"));
            }
            if matrix.weights() > MAX_MATRIX_WEIGHTS {
                return Err(error("it has more than 2^36 weights"));
            }
            match index.checked_sub(1).and_then(|previous| matrices.get(previous)) {
                Some(previous) if (previous.block, previous.tap) == (matrix.block, matrix.tap) => {
                    if previous.columns != matrix.columns {
                        return Err(error("it shares an input with a matrix of another width"));
                    }
                    if let Some(range) = taps.last_mut() {
                        range.end = index + 1;
                    }
                }
                Some(previous) if (previous.block, previous.tap) > (matrix.block, matrix.tap) => {
                    return Err(error("it is out of order"));
                }
                _ => taps.push(index..index + 1),
            }
        }
        let digest = digest_of(&matrices);
        Ok(Self { matrices, taps, digest })
    }

    /// The matrices in layout order.
    pub fn matrices(&self) -> &[Matrix] {
        &self.matrices
    }

    /// For each tap in order, the range of matrices that read it.
    pub fn taps(&self) -> &[Range<usize>] {
        &self.taps
    }

    /// Identifies the layout: names, order and shapes; not values or dtypes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// All prunable weights together.
    pub fn weights(&self) -> u64 {
        self.matrices.iter().map(Matrix::weights).sum()
    }

    /// Bytes of all packed masks together, each padded to a byte.
    pub fn packed_bytes(&self) -> u64 {
        self.matrices.iter().map(Matrix::packed_bytes).sum()
    }

    /// The number of decoder blocks, taken as the largest block index plus one.
    pub fn blocks(&self) -> usize {
        self.matrices.last().map_or(0, |matrix| matrix.block as usize + 1)
    }

    /// Indices of the matrices of one block.
    pub fn block(&self, block: usize) -> Range<usize> {
        let start = self.matrices.partition_point(|matrix| (matrix.block as usize) < block);
        let end = self.matrices.partition_point(|matrix| (matrix.block as usize) <= block);
        start..end
    }

    /// Refuses an n:m group that some matrix's width does not fit.
    ///
    /// # Errors
    /// [`LayoutError::Indivisible`] naming the first such matrix.
    pub fn check_group(&self, group: Group) -> Result<(), LayoutError> {
        let Group::NofM { m, .. } = group else { return Ok(()) };
        match self.matrices.iter().find(|matrix| !matrix.columns.is_multiple_of(m)) {
            None => Ok(()),
            Some(matrix) => {
                Err(LayoutError::Indivisible { group, m, name: matrix.name.clone(), columns: matrix.columns })
            }
        }
    }
}

/// BLAKE3 over a domain, the count, and for each matrix its length-prefixed name, block, tap and shape.
fn digest_of(matrices: &[Matrix]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"fedprune layout v1\0");
    hasher.update(&(matrices.len() as u64).to_le_bytes());
    for matrix in matrices {
        hasher.update(&(matrix.name.len() as u32).to_le_bytes());
        hasher.update(matrix.name.as_bytes());
        hasher.update(&matrix.block.to_le_bytes());
        hasher.update(&[matrix.tap as u8]);
        hasher.update(&matrix.rows.to_le_bytes());
        hasher.update(&matrix.columns.to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(name: &str, block: u32, tap: Tap, rows: u32, columns: u32) -> Matrix {
        Matrix { name: name.to_owned(), block, tap, rows, columns }
    }

    fn two_blocks() -> Vec<Matrix> {
        (0..2)
            .flat_map(|block| {
                [
                    matrix("q", block, Tap::AttentionInput, 8, 6),
                    matrix("k", block, Tap::AttentionInput, 4, 6),
                    matrix("down", block, Tap::MlpOutput, 6, 10),
                ]
            })
            .collect()
    }

    #[test]
    fn groups_by_tap_and_block() {
        let layout = Layout::new(two_blocks()).unwrap();
        assert_eq!(layout.taps(), &[0..2, 2..3, 3..5, 5..6]);
        assert_eq!(layout.block(1), 3..6);
        assert_eq!(layout.blocks(), 2);
        assert_eq!(layout.weights(), 2 * (48 + 24 + 60));
    }

    #[test]
    fn digest_is_pinned_and_sees_every_field() {
        let base = Layout::new(two_blocks()).unwrap().digest();
        assert_eq!(base.to_string(), "da4ce3749e326c8cd1ca960b2658c26919758da5237e436c80c8afa66f270a2c");
        for change in 0..4 {
            let mut matrices = two_blocks();
            match change {
                0 => matrices[0].name = "r".into(),
                1 => matrices[0].rows = 9,
                2 => matrices[2].tap = Tap::MlpInput,
                _ => matrices[5].block = 2,
            }
            assert_ne!(Layout::new(matrices).unwrap().digest(), base);
        }
    }

    #[test]
    fn refuses_lists_that_are_no_layout() {
        assert_eq!(Layout::new(vec![]), Err(LayoutError::Empty));
        for bad in [
            vec![matrix("a", 0, Tap::MlpInput, 0, 4)],
            vec![matrix("", 0, Tap::MlpInput, 4, 4)],
            vec![matrix("a", 0, Tap::MlpInput, u32::MAX, u32::MAX)],
            vec![matrix("a", 1, Tap::MlpInput, 4, 4), matrix("b", 0, Tap::MlpInput, 4, 4)],
            vec![matrix("a", 0, Tap::MlpInput, 4, 4), matrix("b", 0, Tap::MlpInput, 4, 5)],
        ] {
            assert!(matches!(Layout::new(bad), Err(LayoutError::Matrix { .. })));
        }
    }

    #[test]
    fn names_the_matrix_that_an_n_of_m_group_does_not_fit() {
        let layout = Layout::new(two_blocks()).unwrap();
        let error = layout.check_group("2:4".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("`q` has 6 inputs"), "{error}");
        assert_eq!(layout.check_group("1:2".parse().unwrap()), Ok(()));
    }
}
