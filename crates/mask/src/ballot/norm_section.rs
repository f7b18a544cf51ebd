//! The norms of all taps as bytes: exponents compressed together, fractions packed as they are.
//!
//! A norm has an exponent field of 8 bits and a fraction of 7. Exponents lie in a few neighbouring values
//! and shrink to a fraction; fractions are noise, so packing them at 7 bits beats a plane of bytes that
//! any compressor would have to code at a shade over 7.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | method of the exponent plane: 0 as it is, 1 zstd |
//! | 4 | its length, little-endian |
//! | … | the plane: 254 − exponent field, one byte a channel, taps in layout order |
//! | ⌈7·channels / 8⌉ | fractions, 7 bits each, least significant first, padded with zero bits |

use super::compress::{self, Squeezer};
use super::container::Reader;
use super::error::BallotError;
use crate::norms::NormVector;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const FRACTION_BITS: u32 = 7;
const FRACTION_MASK: u16 = 0x7f;
/// The largest exponent field of a norm; the plane counts down from here.
const TOP_EXPONENT: u8 = 254;

/// How the exponent plane may be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Planes {
    /// Whichever is smaller.
    Smallest,
    /// As it is: a wire form that no compressor version changes, for tests that pin bytes.
    #[cfg(test)]
    Raw,
}

/// The section for `norms`, in order.
pub(super) fn encode<'n>(norms: impl Iterator<Item = &'n NormVector>, planes: Planes) -> Vec<u8> {
    let mut exponents = Vec::new();
    let mut fractions = Vec::new();
    let (mut pending, mut pending_bits) = (0u32, 0u32);
    for &bits in norms.flat_map(NormVector::bits) {
        exponents.push(TOP_EXPONENT - (bits >> FRACTION_BITS) as u8);
        pending |= u32::from(bits & FRACTION_MASK) << pending_bits;
        pending_bits += FRACTION_BITS;
        if pending_bits >= 8 {
            fractions.push(pending as u8);
            pending >>= 8;
            pending_bits -= 8;
        }
    }
    if pending_bits > 0 {
        fractions.push(pending as u8);
    }
    let squeezed = match planes {
        Planes::Smallest => Squeezer::new().squeeze(&exponents),
        #[cfg(test)]
        Planes::Raw => None,
    };
    let (method, plane) = squeezed.map_or((RAW, exponents), |plane| (ZSTD, plane));
    let mut bytes = Vec::with_capacity(5 + plane.len() + fractions.len());
    bytes.push(method);
    bytes.extend((plane.len() as u32).to_le_bytes());
    bytes.extend(plane);
    bytes.extend(fractions);
    bytes
}

/// The bf16 bits of `channels` norms; whether each tap's are canonical is for the caller to check.
pub(super) fn decode(reader: &mut Reader<'_>, channels: usize) -> Result<Vec<u16>, BallotError> {
    let [method] = reader.array("the method of the norms")?;
    let length = u32::from_le_bytes(reader.array("the length of the exponents")?) as usize;
    if length > channels {
        return Err(BallotError::NormSection("there are more exponents than the model has input channels"));
    }
    let plane = reader.take(length, "the exponents")?;
    let packed = reader.take((channels * FRACTION_BITS as usize).div_ceil(8), "the fractions")?;
    let expanded;
    let exponents: &[u8] = match method {
        RAW if length == channels => plane,
        RAW => return Err(BallotError::NormSection("there are fewer exponents than the model has input channels")),
        ZSTD if length < channels => {
            expanded = compress::expand(plane, channels).map_err(BallotError::NormSection)?;
            &expanded
        }
        ZSTD => return Err(BallotError::NormSection("compression made its exponents longer")),
        _ => return Err(BallotError::NormSection("its exponents are compressed by an unknown method")),
    };
    let mut fractions = packed.iter();
    let (mut pending, mut pending_bits) = (0u32, 0u32);
    let mut bits = Vec::with_capacity(channels);
    for &exponent in exponents {
        if pending_bits < FRACTION_BITS {
            pending |= u32::from(*fractions.next().unwrap_or(&0)) << pending_bits;
            pending_bits += 8;
        }
        let field = TOP_EXPONENT
            .checked_sub(exponent)
            .ok_or(BallotError::NormSection("an exponent is that of no finite number"))?;
        bits.push(u16::from(field) << FRACTION_BITS | pending as u16 & FRACTION_MASK);
        pending >>= FRACTION_BITS;
        pending_bits -= FRACTION_BITS;
    }
    if pending != 0 {
        return Err(BallotError::NormSection("its padding is not zero"));
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use proptest::prelude::*;

    fn vectors(sizes: &[usize]) -> Vec<NormVector> {
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        sizes
            .iter()
            .map(|&size| {
                let sums: Vec<f64> = (0..size).map(|channel| if channel == 3 { 0.0 } else { next().powi(4) }).collect();
                NormVector::from_sums(&sums, 2).unwrap()
            })
            .collect()
    }

    fn decode_all(bytes: &[u8], channels: usize) -> Result<Vec<u16>, BallotError> {
        let mut reader = Reader::new(bytes);
        let bits = decode(&mut reader, channels)?;
        reader.finish()?;
        Ok(bits)
    }

    #[test]
    fn raw_bytes_are_pinned() {
        let norms = vectors(&[5, 8, 3]);
        let bytes = encode(norms.iter(), Planes::Raw);
        assert_eq!(bytes.len(), 5 + 16 + 14);
        assert_eq!(Digest::of(&bytes).to_string(), "fb97ccd51b885354ef7298fdad4d5baa1b7d2db879729131fdf09a919c505138");
        assert_eq!(decode_all(&bytes, 16).unwrap(), norms.concat_bits());
    }

    /// Written once by zstd 1.5.7; every later version must still read it.
    #[test]
    fn stored_zstd_bytes_still_decode() {
        let norms = vectors(&[200]);
        let stored = concat!(
            "017000000028b52ffd00003d030032cc1714d0158603000000000000c684104208d95bca9464ba45d68c0dbadff199b2c5d8",
            "6501e9107a1513937d812353716b14211d7520298da582395f482a4cd40408482860802a1c606a22c2d44f03128d91ee0a2e",
            "6cd3edb438cf97f84b1dd408010084ab0494cc10e05a44712aaf6cb5d83d298458d511d6342c2b2b66df47669af04a9a6a77",
            "6808a09fbd7adfd95ba78d7fdb6829ae255feb40b827814acca03e9fd426aa113740ccbc0c101253914b4f523e92fcb580cb",
            "a08c07e00a8a520b22371462998a2cb73943204e62820e86bb0dbe273ab00204c160a2741a0ca8c5c27ba305d6c5b45214c8",
            "b3cd2bc0b1b28d1c149814aee0d09d2269b19e705109cc853c8a7a0b12cf854cda343811fb4701973692",
        );
        let stored: Vec<u8> =
            (0..stored.len() / 2).map(|at| u8::from_str_radix(&stored[2 * at..2 * at + 2], 16).unwrap()).collect();
        assert_eq!(stored[0], ZSTD);
        assert_eq!(decode_all(&stored, 200).unwrap(), norms.concat_bits());
    }

    trait ConcatBits {
        fn concat_bits(&self) -> Vec<u16>;
    }

    impl ConcatBits for Vec<NormVector> {
        fn concat_bits(&self) -> Vec<u16> {
            self.iter().flat_map(|norms| norms.bits().to_vec()).collect()
        }
    }

    proptest! {
        #[test]
        fn round_trips(sizes in proptest::collection::vec(1usize..200, 1..5)) {
            let norms = vectors(&sizes);
            for planes in [Planes::Smallest, Planes::Raw] {
                let bytes = encode(norms.iter(), planes);
                prop_assert_eq!(decode_all(&bytes, sizes.iter().sum()).unwrap(), norms.concat_bits());
            }
        }
    }

    #[test]
    fn refuses_padding_unknown_methods_and_wrong_lengths() {
        let norms = vectors(&[5]);
        let good = encode(norms.iter(), Planes::Raw);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode_all(&bytes, 5)
        };
        assert!(decode_all(&good, 5).is_ok());
        assert!(with(0, 2).is_err(), "unknown method");
        assert!(with(1, 4).is_err(), "one exponent fewer");
        assert!(with(1, 6).is_err(), "one more");
        assert!(with(5, 255).is_err(), "no finite number");
        assert!(with(good.len() - 1, good[good.len() - 1] | 0x80).is_err(), "padding");
        assert!(decode_all(&good, 4).is_err());
        assert!(decode_all(&good, 6).is_err());
        for length in 0..good.len() {
            assert!(decode_all(&good[..length], 5).is_err());
        }
    }
}
