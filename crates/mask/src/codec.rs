//! The one place where bincode is used, and the rules that make its output canonical.
//!
//! bincode alone accepts trailing bytes, other integer widths of the same value and unordered maps. What
//! is hashed, signed or compared must have one encoding, so integers are fixed-width little-endian, a
//! decoder reads under a limit and must use every byte, and what it read must encode to the same bytes.
//!
//! A claimed length is charged against the limit at the element's size in memory before a container is
//! allocated, and what is allocated is charged to those who pay for it: the limit of few bytes is a low one,
//! since no value takes more than [`MOST_EXPANSION`] times the bytes of its encoding in memory. That guards
//! nothing for elements of size zero: no type that travels holds a container of those.

/// For the derives of crates that encode through this module: `#[bincode(crate = "…::codec::bincode")]`.
pub use bincode;
use bincode::config;
use bincode::{Decode, Encode};

/// Bytes that are not the one encoding of a value.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// More bytes than any such value may have.
    #[error("it is {actual} bytes long, over the limit of {limit}")]
    TooLarge {
        /// Bytes given.
        actual: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Cut short, over the limit inside, or holding a value that cannot be.
    #[error("it cannot be decoded")]
    Malformed(#[from] bincode::error::DecodeError),
    /// A value followed by something else.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A second encoding of the same value.
    #[error("it is not in canonical form")]
    NotCanonical,
}

fn unlimited() -> impl config::Config {
    config::standard().with_little_endian().with_fixed_int_encoding()
}

/// The bytes of `value`.
///
/// # Panics
/// Never for plain data; only a hand-written `Encode` can fail.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, unlimited()).expect("plain data always encodes")
}

/// Bytes of memory for one of an encoding, at most: an absent digest, 33 for one, is the widest that travels.
const MOST_EXPANSION: usize = 64;
/// Limits on what is allocated for few bytes, each for those up to a [`MOST_EXPANSION`]th of it.
const LADDER: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// bincode under a limit, which is part of its types.
fn limited<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    let limited = config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>();
    Ok(bincode::decode_from_slice(bytes, limited)?)
}

/// The value that `bytes` are the encoding of; `LIMIT` bounds the bytes and what is allocated for them.
///
/// # Errors
/// [`CodecError`] unless `bytes` is exactly what [`encode`] makes of the value.
pub fn decode<T: Encode + Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge { actual: bytes.len(), limit: LIMIT });
    }
    let (value, read): (T, usize) = match bytes.len().saturating_mul(MOST_EXPANSION) {
        most if most <= LADDER[0] && LADDER[0] < LIMIT => limited::<T, { LADDER[0] }>(bytes),
        most if most <= LADDER[1] && LADDER[1] < LIMIT => limited::<T, { LADDER[1] }>(bytes),
        most if most <= LADDER[2] && LADDER[2] < LIMIT => limited::<T, { LADDER[2] }>(bytes),
        most if most <= LADDER[3] && LADDER[3] < LIMIT => limited::<T, { LADDER[3] }>(bytes),
        _ => limited::<T, LIMIT>(bytes),
    }?;
    if read != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - read));
    }
    if encode(&value) != bytes {
        return Err(CodecError::NotCanonical);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Group, Sparsity};
    use std::collections::BTreeSet;

    #[derive(Debug, PartialEq, Encode, Decode)]
    struct Sample {
        digest: Digest,
        group: Group,
        sparsity: Sparsity,
        names: Vec<String>,
        number: u64,
    }

    fn sample() -> Sample {
        Sample {
            digest: Digest([7; 32]),
            group: Group::NofM { n: 2, m: 4 },
            sparsity: "0.5".parse().unwrap(),
            names: vec!["ann".into(), "bob".into()],
            number: 0x0102_0304_0506_0708,
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let bytes = encode(&sample());
        assert_eq!(bytes.len(), 32 + 12 + 8 + 8 + 2 * (8 + 3) + 8);
        assert_eq!(&bytes[32..44], [3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(&bytes[bytes.len() - 8..], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(Digest::of(&bytes).to_string(), "2c5b0f531d7017bf233766847dfd387bf9eade1b3c0276f8c104ec002a3a257c");
        assert_eq!(decode::<Sample, 1024>(&bytes).unwrap(), sample());
    }

    #[test]
    fn refuses_every_truncation_and_any_trailing_byte() {
        let bytes = encode(&sample());
        for length in 0..bytes.len() {
            assert!(matches!(decode::<Sample, 1024>(&bytes[..length]), Err(CodecError::Malformed(_))), "{length}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(decode::<Sample, 1024>(&longer), Err(CodecError::Trailing(1))));
        assert!(matches!(decode::<Sample, 8>(&bytes), Err(CodecError::TooLarge { limit: 8, .. })));
    }

    /// What takes most memory for its bytes is read, however few or many they are.
    #[test]
    fn limits_on_memory_refuse_no_value() {
        let counts = [0, 1, 7, 200, 300, 5_000, 70_000];
        for count in counts.into_iter().take(if cfg!(miri) { 4 } else { counts.len() }) {
            let absent: Vec<Option<Digest>> = vec![None; count];
            assert_eq!(decode::<Vec<Option<Digest>>, { 8 << 20 }>(&encode(&absent)).unwrap(), absent);
            let nested: Vec<Vec<u8>> = vec![Vec::new(); count];
            assert_eq!(decode::<Vec<Vec<u8>>, { 8 << 20 }>(&encode(&nested)).unwrap(), nested);
        }
    }

    #[test]
    fn refuses_second_encodings() {
        let bytes = encode(&BTreeSet::from([1u32, 2]));
        let mut unordered = bytes.clone();
        unordered[8..16].rotate_left(4);
        assert!(decode::<BTreeSet<u32>, 64>(&bytes).is_ok());
        assert!(matches!(decode::<BTreeSet<u32>, 64>(&unordered), Err(CodecError::NotCanonical)));
    }

    #[test]
    fn refuses_values_that_cannot_be() {
        // groups 4:2, 0:4, 0:0 and 2:65; sparsities 2/4 and 1/1 and 1/0; a claimed length of 2^60
        for (n, m) in [(4u32, 2u32), (0, 4), (0, 0), (2, 65)] {
            assert!(decode::<Group, 64>(&encode(&(3u32, n, m))).is_err(), "{n}:{m}");
        }
        assert!(decode::<Group, 64>(&encode(&4u32)).is_err());
        for fraction in [(2u32, 4u32), (1, 1), (1, 0)] {
            assert!(decode::<Sparsity, 64>(&encode(&fraction)).is_err(), "{fraction:?}");
        }
        assert!(decode::<Vec<u64>, 1024>(&encode(&(1u64 << 60))).is_err());
        assert!(decode::<String, 1024>(&encode(&u64::MAX)).is_err());
    }
}
