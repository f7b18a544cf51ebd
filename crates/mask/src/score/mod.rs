//! Local pruners: how a weight is scored from its matrix and the norms of its input.
//!
//! A pruner turns weights and norms into *keys*: integers whose order is the order of the scores,
//! lowest pruned first. Whoever holds the weights and a silo's norm vector derives the same keys, hence
//! the same mask; that is why a ballot may carry norms instead of bits.
//!
//! Adding a pruner is one file here and one line in [`PRUNERS`].

mod magnitude;
mod ria;
mod wanda;

use std::fmt;
use std::ops::Range;

use crate::{NormVector, WeightsView};

/// Every pruner there is. The position is its number on the wire: append only.
pub static PRUNERS: &[&dyn Scorer] = &[&wanda::Wanda, &magnitude::Magnitude, &ria::Ria];

/// Keys of one matrix, computed where they are needed rather than stored.
pub trait Keys: Sync {
    /// Writes the keys of `columns` of one row; lower is pruned earlier.
    fn fill(&self, row: usize, columns: Range<usize>, keys: &mut [u64]);

    /// An upper bound on the significant bits of every key, so that selection can skip the rest.
    fn significant_bits(&self) -> u32;

    /// Writes the *coarse* keys of `columns` of one row: 0 to `i16::MAX`, in an order that never contradicts
    /// that of the keys. Most weights are told apart by these alone, many at a time; only those that tie with
    /// the threshold are asked for their keys.
    fn fill_coarse(&self, row: usize, columns: Range<usize>, coarse: &mut [i16]) {
        let shift = self.significant_bits().saturating_sub(COARSE_BITS);
        coarse_by(self, row, columns, coarse, |key| (key >> shift) as i16);
    }

    /// The key of one weight.
    fn key(&self, row: usize, column: usize) -> u64 {
        let mut key = [0];
        self.fill(row, column..column + 1, &mut key);
        key[0]
    }
}

/// Bits of a coarse key.
const COARSE_BITS: u32 = 15;

/// Coarse keys from whole ones, some at a time.
fn coarse_by<K: Keys + ?Sized>(
    keys: &K,
    row: usize,
    columns: Range<usize>,
    coarse: &mut [i16],
    of: impl Fn(u64) -> i16,
) {
    const CHUNK: usize = 64;
    assert_eq!(coarse.len(), columns.len());
    let mut buffer = [0u64; CHUNK];
    for (start, coarse) in columns.step_by(CHUNK).zip(coarse.chunks_mut(CHUNK)) {
        let buffer = &mut buffer[..coarse.len()];
        keys.fill(row, start..start + coarse.len(), buffer);
        coarse.iter_mut().zip(buffer).for_each(|(coarse, key)| *coarse = of(*key));
    }
}

/// The coarse key of a non-negative score: sign, exponent and seven bits of fraction of the nearest f32, which
/// orders as scores do since rounding never swaps two numbers.
#[inline(always)]
fn coarse_of_score(score: f32) -> i16 {
    (score.to_bits() as i32 >> 16) as i16 & i16::MAX
}

/// One way to score weights.
pub trait Scorer: Sync {
    /// Name on the command line and in files.
    fn name(&self) -> &'static str;

    /// One line for people: what it scores, and where it is from.
    fn summary(&self) -> &'static str;

    /// Whether it looks at activations at all.
    fn uses_norms(&self) -> bool;

    /// Keys of one matrix; `norms` has one entry per input channel and is ignored by data-free pruners.
    fn keys<'a>(&self, weights: WeightsView<'a>, norms: &NormVector) -> Box<dyn Keys + 'a>;
}

/// A pruner by name: an index into [`PRUNERS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, bincode::Encode)]
pub struct Pruner(u8);

/// No pruner of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a pruner: use one of {}", names())]
pub struct UnknownPruner {
    name: String,
}

/// Norms and weights that do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{norms} norms cannot score a matrix of {columns} inputs")]
pub struct WidthError {
    norms: usize,
    columns: usize,
}

impl WidthError {
    /// Compares the number of norms with the width of a matrix.
    ///
    /// # Errors
    /// This error when they differ.
    pub fn check(norms: usize, columns: usize) -> Result<(), Self> {
        if norms == columns { Ok(()) } else { Err(Self { norms, columns }) }
    }

    pub(crate) fn new(norms: usize, columns: usize) -> Self {
        Self { norms, columns }
    }
}

fn names() -> String {
    PRUNERS.iter().map(|pruner| pruner.name()).collect::<Vec<_>>().join(", ")
}

impl Pruner {
    /// Wanda (arXiv 2306.11695), the default.
    pub const WANDA: Pruner = Pruner(0);
    /// |W| alone.
    pub const MAGNITUDE: Pruner = Pruner(1);
    /// Relative importance and activations (Zhang et al., ICLR 2024).
    pub const RIA: Pruner = Pruner(2);

    /// The scoring rule.
    pub fn scorer(self) -> &'static dyn Scorer {
        PRUNERS[usize::from(self.0)]
    }

    /// The rule by which a tap with these norms is scored: this one, or magnitude where it needs norms and there are none,
    /// which is how a silo says that it pruned a tap without data.
    pub fn with(self, norms: &NormVector) -> Pruner {
        if norms.is_empty() && self.scorer().uses_norms() { Self::MAGNITUDE } else { self }
    }

    /// Keys of one matrix.
    ///
    /// # Errors
    /// [`WidthError`] when the norms are of another width than the matrix and the pruner uses them.
    pub fn keys<'a>(self, weights: WeightsView<'a>, norms: &NormVector) -> Result<Box<dyn Keys + 'a>, WidthError> {
        let scorer = self.scorer();
        if scorer.uses_norms() {
            WidthError::check(norms.len(), weights.columns())?;
        }
        Ok(scorer.keys(weights, norms))
    }
}

impl std::str::FromStr for Pruner {
    type Err = UnknownPruner;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let index = PRUNERS.iter().position(|pruner| pruner.name() == name);
        index.map(|index| Pruner(index as u8)).ok_or_else(|| UnknownPruner { name: name.chars().take(40).collect() })
    }
}

impl<Context> bincode::Decode<Context> for Pruner {
    fn decode<D: bincode::de::Decoder>(decoder: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let index: u8 = bincode::Decode::decode(decoder)?;
        if usize::from(index) < PRUNERS.len() {
            Ok(Pruner(index))
        } else {
            Err(bincode::error::DecodeError::Other("unknown pruner"))
        }
    }
}

bincode::impl_borrow_decode!(Pruner);

impl fmt::Display for Pruner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scorer().name())
    }
}

impl fmt::Debug for Pruner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Pruner {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Pruner {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The key of a non-negative finite score: IEEE bits of such numbers order as the numbers do.
///
/// Scores are sums and products of non-negative numbers, so there is no negative zero to tell apart.
#[inline]
fn key_of_score(score: f64) -> u64 {
    score.to_bits()
}

/// Sign is always clear in a key made by [`key_of_score`].
const SCORE_BITS: u32 = 63;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    /// Keys of a whole f32 matrix, row-major.
    fn keys_of(pruner: Pruner, rows: usize, columns: usize, weights: &[f32], sums: &[f64]) -> Vec<u64> {
        let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let view = WeightsView::new(DType::F32, rows, columns, &bytes).unwrap();
        let norms = NormVector::from_sums(sums, 1).unwrap();
        let keys = pruner.keys(view, &norms).unwrap();
        let mut out = vec![0; rows * columns];
        for (row, out) in out.chunks_exact_mut(columns).enumerate() {
            let (left, right) = out.split_at_mut(columns / 2);
            keys.fill(row, 0..columns / 2, left); // in two parts: a fill may start anywhere
            keys.fill(row, columns / 2..columns, right);
        }
        assert!(out.iter().all(|key| key.leading_zeros() >= 64 - keys.significant_bits()));
        let mut coarse = vec![0i16; rows * columns];
        for (row, coarse) in coarse.chunks_exact_mut(columns).enumerate() {
            keys.fill_coarse(row, 0..columns, coarse);
        }
        let mut order: Vec<(u64, i16)> = out.iter().copied().zip(coarse).collect();
        order.sort();
        assert!(order.is_sorted_by_key(|(_, coarse)| *coarse) && order[0].1 >= 0, "coarse keys contradict no key");
        assert!((0..columns).all(|column| keys.key(rows - 1, column) == out[(rows - 1) * columns + column]));
        out
    }

    fn order(keys: &[u64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&index| (keys[index], index));
        order
    }

    #[test]
    fn wanda_orders_by_weight_times_norm() {
        // norms 1, 2, 4: scores 3, -4→4, 4 / 1.5, 6, 0
        let keys = keys_of(Pruner::WANDA, 2, 3, &[3.0, -2.0, 1.0, 1.5, 3.0, 0.0], &[1.0, 4.0, 16.0]);
        assert_eq!(order(&keys), [5, 3, 0, 1, 2, 4]);
        assert_eq!(keys[1], keys[2], "an exact tie is a tie");
    }

    #[test]
    fn magnitude_ignores_the_norms() {
        let keys = keys_of(Pruner::MAGNITUDE, 1, 3, &[3.0, -2.0, 1.0], &[1.0, 100.0, 10000.0]);
        assert_eq!(order(&keys), [2, 1, 0]);
    }

    #[test]
    fn ria_weighs_rows_columns_and_the_root_of_the_norm() {
        let (rows, columns) = (2, 2);
        let weights = [1.0f32, 3.0, 2.0, 2.0];
        let keys = keys_of(Pruner::RIA, rows, columns, &weights, &[1.0, 16.0]);
        // (|W|/Σ_rows + |W|/Σ_columns)·√s, with s = (1, 4) up to a common scale
        let expected = [1.0 / 3.0 + 1.0 / 4.0, (3.0 / 5.0 + 3.0 / 4.0) * 2.0, 2.0 / 3.0 + 0.5, (2.0 / 5.0 + 0.5) * 2.0];
        let ratio = f64::from_bits(keys[0]) / expected[0];
        for (key, expected) in keys.iter().zip(expected) {
            assert!((f64::from_bits(*key) / (expected * ratio) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn ria_scores_an_all_zero_row_and_column_as_zero() {
        let keys = keys_of(Pruner::RIA, 2, 2, &[0.0, 0.0, 0.0, 1.0], &[1.0, 1.0]);
        assert_eq!(&keys[..3], [0, 0, 0]);
        assert!(keys[3] > 0);
    }

    #[test]
    fn names_round_trip_and_numbers_are_pinned() {
        for (pruner, name) in [(Pruner::WANDA, "wanda"), (Pruner::MAGNITUDE, "magnitude"), (Pruner::RIA, "ria")] {
            assert_eq!(name.parse(), Ok(pruner));
            assert_eq!(pruner.to_string(), name);
        }
        assert!("sparsegpt".parse::<Pruner>().unwrap_err().to_string().contains("wanda, magnitude, ria"));
    }
}
