//! The norms of all taps as bytes, to nearly their entropy.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | method: 2, the code below |
//! | 4 | length of the code, little-endian |
//! | … | a [range code](super::range_coder) of all norms, taps in layout order |
//!
//! bf16 bits without a sign order as the norms do, and 128 of them make an octave: a logarithm. Each norm is
//! coded as its *miss*: how far its bits lie from those predicted for it. The prediction starts from the mean of
//! what the tap has shown so far. Where the residual stream is tapped, at the inputs of attention and of the
//! MLP, a channel is much as it was a block before, so three earlier taps add what they know of it, with weights
//! learned by normalised least mean squares. Heads and gated activations have no such memory: two blocks'
//! channels of one number are strangers.
//!
//! A miss is a sign, a length in bits and the bits below the highest, the first two of them modelled. Lengths are
//! told apart by the size that is expected: that of late, and for a channel with a past what it missed by then.
//! Measured on ballots of seven texts of SmolLM2: 7.5 to 7.7 bits a norm, where exponents by zstd and fractions
//! as they are took 8.4 to 8.6. Mixing the predictions of three such models, weighted by their success, gained
//! 0.2 per cent and was left out.
//!
//! Integers only. Norms have one code: both sides learn the same, and a code that an encoder would not write is
//! refused.

use super::container::Reader;
use super::error::BallotError;
use super::range_coder::{Bit, BitTree, Coder, Decoder, Encoder};
use crate::layout::Tap;
use crate::norms::NormVector;

/// The one method; 0 and 1 were planes of exponents and fractions.
const RANGE_CODE: u8 = 2;
/// bf16 bits without the sign.
const MOST: i32 = 0x7fff;
/// A tap's first norm is expected here, where there was none of its kind before.
const FIRST_MEAN: i64 = 32000;
/// A tap's first misses are expected to be of this size.
const FIRST_SIZE: i64 = 64;
/// Fraction bits of means, sizes and weights.
const FRACTION: u32 = 16;
/// The mean is of all norms so far, and from here on one that forgets.
const MEAN_MEMORY: i64 = 200;
/// Memory of the size of misses.
const SIZE_MEMORY: i64 = 32;
/// Memory of models.
const MODEL_MEMORY: u16 = 255;
/// How fast weights are learned: this over 2^16 of what would make up for the miss.
const LEARNING: i64 = 1024;
/// No miss teaches more than one of this size.
const MOST_LEARNED: i64 = 100;
/// Inputs so faint teach little.
const FAINT: i64 = 4096;
/// Weights of the earlier taps to begin with.
const FIRST_WEIGHTS: [i64; INPUTS] = [40_000, 10_000, 0];
/// No weight gets larger: four.
const MOST_WEIGHT: i64 = 4 << FRACTION;
/// Earlier taps that predict.
const INPUTS: usize = 3;
/// Classes of expected size: half octaves.
const SIZES: usize = 16;
/// Bits below the highest of a miss that are modelled.
const LEADING_BITS: u32 = 2;
/// Lengths have so many bits: a miss has at most 16.
const LENGTH_BITS: u32 = 4;

/// A tap coded before, in the vector of all norms.
#[derive(Clone)]
struct Past {
    start: usize,
    mean: i64,
}

/// What is learned about the taps of one kind.
struct Kind {
    /// By the sign before: none, not negative, negative.
    signs: [Bit; 3],
    /// By expected size.
    lengths: Vec<BitTree>,
    /// By length.
    leading: Vec<BitTree>,
    weights: [i64; INPUTS],
    last: Option<Past>,
    last_but_one: Option<Past>,
    /// Sizes of the misses of the last tap, those above 255 as 255.
    misses: Vec<u8>,
}

impl Kind {
    fn new() -> Self {
        let leading = |length: u32| BitTree::new(length.min(LEADING_BITS), MODEL_MEMORY);
        Self {
            signs: [Bit::new(MODEL_MEMORY); 3],
            lengths: vec![BitTree::new(LENGTH_BITS, MODEL_MEMORY); SIZES],
            leading: (0..1 << LENGTH_BITS).map(leading).collect(),
            weights: FIRST_WEIGHTS,
            last: None,
            last_but_one: None,
            misses: Vec::new(),
        }
    }

    fn code_miss(&mut self, coder: &mut impl Coder, miss: i32, sign: usize, expected_size: i64) -> i32 {
        let negative = coder.bit(&mut self.signs[sign], miss < 0);
        // −1 and 0 are of size 1, −2 and 1 of size 2
        let size = if miss < 0 { miss.unsigned_abs() } else { miss as u32 + 1 };
        let length = self.lengths[size_class(expected_size)].code(coder, size.ilog2());
        let rest = length - length.min(LEADING_BITS);
        let below_highest = size & ((1 << length) - 1);
        let leading_mask = (1 << (length - rest)) - 1;
        let high = self.leading[length as usize].code(coder, below_highest >> rest & leading_mask);
        let low = coder.even(below_highest & ((1 << rest) - 1), rest);
        let size = (1 << length | high << rest | low) as i32;
        if negative { -size } else { size - 1 }
    }
}

/// Half octaves of an expected size.
fn size_class(size: i64) -> usize {
    let size = size.max(1);
    let octave = size.ilog2();
    let half = if octave > 0 { size >> (octave - 1) & 1 } else { 0 };
    (2 * octave as usize + half as usize).min(SIZES - 1)
}

/// The other tap of the residual stream.
fn sibling(tap: Tap) -> Option<Tap> {
    match tap {
        Tap::AttentionInput => Some(Tap::MlpInput),
        Tap::MlpInput => Some(Tap::AttentionInput),
        Tap::AttentionOutput | Tap::MlpOutput => None,
    }
}

/// Codes the norms of taps of these widths, one after another in `norms`.
fn code(coder: &mut impl Coder, taps: &[(Tap, usize)], norms: &mut [u16]) -> Result<(), &'static str> {
    let mut kinds = Tap::ALL.map(|_| Kind::new());
    let mut widths = [0usize; Tap::ALL.len()];
    let mut start = 0;
    for &(tap, width) in taps {
        let (before, rest) = norms.split_at_mut(start);
        let norms = &mut rest[..width];
        let sibling = sibling(tap).map(|sibling| sibling as usize);
        let tap = tap as usize;
        // of another width, channels are not the same ones
        let of = |kind: usize, past: &Option<Past>| past.clone().filter(|_| widths[kind] == width);
        let inputs: [Option<Past>; INPUTS] = match sibling {
            Some(sibling) => {
                [of(tap, &kinds[tap].last), of(sibling, &kinds[sibling].last), of(tap, &kinds[tap].last_but_one)]
            }
            None => [None, None, None],
        };
        let inputs = inputs.map(|past| past.map(|past| (&before[past.start..past.start + width], past.mean)));
        let mean = code_tap(coder, &mut kinds[tap], &inputs, norms)?;
        let kind = &mut kinds[tap];
        kind.last_but_one = kind.last.take().filter(|_| widths[tap] == width);
        kind.last = Some(Past { start, mean });
        widths[tap] = width;
        start += width;
    }
    Ok(())
}

/// Codes the norms of one tap, and returns their mean.
fn code_tap(
    coder: &mut impl Coder,
    kind: &mut Kind,
    inputs: &[Option<(&[u16], i64)>; INPUTS],
    norms: &mut [u16],
) -> Result<i64, &'static str> {
    let misses = std::mem::take(&mut kind.misses);
    let misses_before = if inputs[0].is_some() { misses.as_slice() } else { &[] };
    let mut misses = Vec::with_capacity(norms.len());
    let mut mean = kind.last.as_ref().map_or(FIRST_MEAN, |past| past.mean) << FRACTION;
    let mut size = FIRST_SIZE << FRACTION;
    let mut sign = 0;
    for (channel, norm) in norms.iter_mut().enumerate() {
        let input = |input: &Option<(&[u16], i64)>| match input {
            Some((norms, mean)) => i64::from(norms[channel]) - mean,
            None => 0,
        };
        let values = inputs.each_ref().map(input);
        let from_inputs: i64 = values.iter().zip(&kind.weights).map(|(value, weight)| value * weight).sum();
        let predicted = mean + from_inputs;
        let rounded = ((predicted + (1 << (FRACTION - 1))) >> FRACTION).clamp(0, i64::from(MOST)) as i32;
        let expected_size = match misses_before.get(channel) {
            Some(&before) => (3 * (size >> FRACTION) + i64::from(before)) / 4,
            None => size >> FRACTION,
        };
        let miss = kind.code_miss(coder, i32::from(*norm) - rounded, sign, expected_size);
        let coded = rounded + miss;
        if !(0..=MOST).contains(&coded) {
            return Err("a norm is no bf16 number");
        }
        *norm = coded as u16;

        sign = if miss < 0 { 2 } else { 1 };
        let steps = (2 * channel as i64 + 3).min(2 * MEAN_MEMORY);
        mean += 2 * ((i64::from(coded) << FRACTION) - predicted) / steps;
        size += ((i64::from(miss.abs()) << FRACTION) - size) / SIZE_MEMORY;
        misses.push(miss.unsigned_abs().min(255) as u8);
        let strength: i64 = values.iter().map(|value| value * value).sum();
        if strength > 0 {
            let lesson = i64::from(miss).clamp(-MOST_LEARNED, MOST_LEARNED) * LEARNING;
            for (weight, value) in kind.weights.iter_mut().zip(values) {
                *weight = (*weight + lesson * value / (strength + FAINT)).clamp(-MOST_WEIGHT, MOST_WEIGHT);
            }
        }
    }
    kind.misses = misses;
    Ok(norms.iter().map(|&norm| i64::from(norm)).sum::<i64>() / (norms.len() as i64).max(1))
}

/// The section for the norms of taps, in layout order.
pub(super) fn encode<'n>(taps: impl Iterator<Item = (Tap, &'n NormVector)>) -> Vec<u8> {
    let (mut widths, mut norms) = (Vec::new(), Vec::new());
    for (tap, vector) in taps {
        widths.push((tap, vector.len()));
        norms.extend_from_slice(vector.bits());
    }
    let mut encoder = Encoder::new();
    let coded = code(&mut encoder, &widths, &mut norms);
    assert_eq!(coded, Ok(()), "a norm vector holds bf16 numbers without a sign");
    let code = encoder.finish();
    let mut bytes = Vec::with_capacity(5 + code.len());
    bytes.push(RANGE_CODE);
    bytes.extend((code.len() as u32).to_le_bytes());
    bytes.extend(code);
    bytes
}

/// The bf16 bits of the norms of taps of these widths, one after another; whether each tap's are canonical is for
/// the caller to check.
pub(super) fn decode(reader: &mut Reader<'_>, taps: &[(Tap, usize)]) -> Result<Vec<u16>, BallotError> {
    let [method] = reader.array("the method of the norms")?;
    if method != RANGE_CODE {
        return Err(BallotError::NormSection("they are coded by an unknown method"));
    }
    let length = u32::from_le_bytes(reader.array("the length of the norms")?);
    let mut decoder = Decoder::new(reader.take(length as usize, "the norms")?);
    let mut norms = vec![0; taps.iter().map(|(_, width)| width).sum()];
    code(&mut decoder, taps, &mut norms).and_then(|()| decoder.finish()).map_err(BallotError::NormSection)?;
    Ok(norms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use proptest::prelude::*;

    /// Blocks of four taps, of these widths: residual streams that drift, and the rest as it comes.
    fn vectors(blocks: usize, widths: [usize; 4]) -> Vec<(Tap, NormVector)> {
        let mut state = 3u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24) + 0.01
        };
        let mut stream: Vec<f64> = (0..widths[0].max(widths[2])).map(|_| next().powi(3)).collect();
        (0..blocks)
            .flat_map(|_| Tap::ALL)
            .map(|tap| {
                stream.iter_mut().for_each(|value| *value *= 0.9 + 0.2 * next());
                let sum = |channel: usize| match tap {
                    _ if channel == 3 => 0.0,
                    Tap::AttentionInput | Tap::MlpInput => stream[channel],
                    _ => next().powi(4),
                };
                let sums: Vec<f64> = (0..widths[tap as usize]).map(sum).collect();
                (tap, NormVector::from_sums(&sums, 2).unwrap())
            })
            .collect()
    }

    fn encoded(vectors: &[(Tap, NormVector)]) -> Vec<u8> {
        encode(vectors.iter().map(|(tap, norms)| (*tap, norms)))
    }

    fn widths(vectors: &[(Tap, NormVector)]) -> Vec<(Tap, usize)> {
        vectors.iter().map(|(tap, norms)| (*tap, norms.len())).collect()
    }

    fn bits(vectors: &[(Tap, NormVector)]) -> Vec<u16> {
        vectors.iter().flat_map(|(_, norms)| norms.bits().to_vec()).collect()
    }

    fn decode_all(bytes: &[u8], taps: &[(Tap, usize)]) -> Result<Vec<u16>, BallotError> {
        let mut reader = Reader::new(bytes);
        let bits = decode(&mut reader, taps)?;
        reader.finish()?;
        Ok(bits)
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn bytes_are_pinned() {
        let vectors = vectors(6, [96, 128, 96, 200]);
        let bytes = encoded(&vectors);
        assert_eq!(decode_all(&bytes, &widths(&vectors)).unwrap(), bits(&vectors));
        assert_eq!(bytes[0], 2);
        assert_eq!(Digest::of(&bytes).to_string(), "77f794b05bc6fee0b9bfb1ade43674b322030e8abdd65a90a0802f7324172f1a");
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn a_residual_stream_costs_less_than_strangers_do() {
        let stream = encoded(&vectors(8, [400, 1, 400, 1]));
        let strangers = encoded(&vectors(8, [1, 400, 1, 400]));
        assert!(stream.len() * 10 < strangers.len() * 9, "{} and {} bytes", stream.len(), strangers.len());
    }

    proptest! {
        #[test]
        fn round_trips_and_has_one_code(
            blocks in 1usize..4, narrow in 1usize..90, wide in 1usize..90, other in 1usize..90, changed in any::<(u16, u8)>(),
        ) {
            let mut vectors = vectors(blocks, [narrow, wide, narrow, wide]);
            vectors.push((Tap::MlpInput, vectors[0].1.clone())); // again, and then of another width
            vectors.extend(self::vectors(1, [other, wide, narrow, other]));
            let bytes = encoded(&vectors);
            let taps = widths(&vectors);
            prop_assert_eq!(decode_all(&bytes, &taps).unwrap(), bits(&vectors));

            let mut damaged = bytes.clone();
            let at = 5 + usize::from(changed.0) % (bytes.len() - 5);
            damaged[at] ^= changed.1;
            if let Ok(others) = decode_all(&damaged, &taps) {
                let mut encoder = Encoder::new();
                code(&mut encoder, &taps, &mut others.clone()).unwrap();
                prop_assert_eq!(&damaged[5..], encoder.finish());
            }
        }

        /// Any bits at all, however unlike norms they are.
        #[test]
        fn whatever_has_fifteen_bits_round_trips(norms in proptest::collection::vec(0u16..0x8000, 1..400)) {
            let taps: Vec<(Tap, usize)> = Tap::ALL.into_iter().cycle().map(|tap| (tap, 7)).take(norms.len() / 7)
                .chain([(Tap::MlpInput, norms.len() % 7)]).collect();
            let mut encoder = Encoder::new();
            code(&mut encoder, &taps, &mut norms.clone()).unwrap();
            let bytes = encoder.finish();
            let mut decoded = vec![0; norms.len()];
            let mut decoder = Decoder::new(&bytes);
            code(&mut decoder, &taps, &mut decoded).unwrap();
            decoder.finish().unwrap();
            prop_assert_eq!(decoded, norms);
        }
    }

    #[test]
    fn refuses_unknown_methods_wrong_lengths_and_damage() {
        let vectors = vectors(2, [5, 6, 5, 7]);
        let (good, taps) = (encoded(&vectors), widths(&vectors));
        assert!(decode_all(&good, &taps).is_ok());
        for method in [0, 1, 3] {
            let mut bytes = good.clone();
            bytes[0] = method;
            assert!(decode_all(&bytes, &taps).unwrap_err().to_string().contains("unknown method"));
        }
        for length in 0..good.len() {
            assert!(decode_all(&good[..length], &taps).is_err());
        }
        let with = |more: &[u8], length: u32| {
            let mut bytes = [&good, more].concat();
            bytes[1..5].copy_from_slice(&length.to_le_bytes());
            decode_all(&bytes, &taps)
        };
        let length = good.len() as u32 - 5;
        assert!(with(&[], length).is_ok());
        assert!(with(&[], length - 1).is_err());
        assert!(with(&[], u32::MAX).is_err());
        assert!(with(&[1], length).is_err(), "followed by a byte");
        assert!(with(&[0], length + 1).is_err(), "a zero at the end");
        assert!(with(&[1, 2, 3, 4, 5, 6], length + 6).is_err(), "goes on");
        assert!(decode_all(&good, &taps[1..]).is_err());
    }

    #[test]
    fn refuses_what_leaves_the_fifteen_bits() {
        let taps = [(Tap::AttentionOutput, 4)];
        let mut encoder = Encoder::new();
        let mut kind = Kind::new();
        // the first norm is expected at 32000
        kind.code_miss(&mut encoder, 768, 0, FIRST_SIZE);
        let code = encoder.finish();
        let bytes = [&[RANGE_CODE][..], &(code.len() as u32).to_le_bytes(), &code].concat();
        assert!(decode_all(&bytes, &taps).unwrap_err().to_string().contains("no bf16 number"));
    }
}
