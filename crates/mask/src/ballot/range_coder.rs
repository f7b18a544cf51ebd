//! A binary range coder with adaptive models: symbols to nearly as few bits as their probabilities allow.
//!
//! As in LZMA, a symbol is a few binary decisions, each coded in an interval of 32 bits that is split in
//! proportion to the probability of a one; models learn that probability as they go, alike on both sides.
//! Integers only, so that every machine writes and reads the same bytes.
//!
//! A format is written once, over [`Coder`]: [`Encoder`] takes the values that it is given and hands them
//! back, [`Decoder`] ignores them and hands back what it reads.
//!
//! **Canonical**: symbols have one encoding. The encoder ends with the number of its last interval that has
//! the fewest bytes, and leaves out zeros at the end; the decoder reads zeros past the end, and
//! [`Decoder::finish`] refuses any other number, any byte more and any zero at the end. Reading is bounded
//! by whoever says how many symbols there are: bytes of any length can be read for ever, and give zeros.

/// Bits in which a probability is given to the coder.
const PROBABILITY_BITS: u32 = 16;
/// No decision is surer than this, of 2^16: 0.0014 bits at the least, 11 at the most.
const LEAST: u32 = 32;
/// The interval never gets narrower.
const LEAST_RANGE: u32 = 1 << 24;

/// Both directions of a code.
pub(crate) trait Coder {
    /// One decision that is a one with probability `ones` / 2^16, `ones` in 1..2^16.
    fn decide(&mut self, ones: u32, bit: bool) -> bool;

    /// One decision under a model, which learns from it.
    #[inline]
    fn bit(&mut self, model: &mut Bit, bit: bool) -> bool {
        let bit = self.decide(model.ones(), bit);
        model.learn(bit);
        bit
    }

    /// The low `bits` ≤ 32 of `value`, highest first, each as likely a one as a zero.
    fn even(&mut self, value: u32, bits: u32) -> u32 {
        (0..bits).rev().fold(0, |read, place| {
            let bit = self.decide(1 << (PROBABILITY_BITS - 1), value >> place & 1 == 1);
            read << 1 | u32::from(bit)
        })
    }
}

/// How likely one kind of decision is a one, learned from those before: their mean at first, and soon one
/// that forgets, with a memory of as many decisions as it was made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bit {
    /// Of 2^32.
    probability: u32,
    /// Decisions learned from, up to the memory.
    seen: u16,
    memory: u16,
}

impl Default for Bit {
    fn default() -> Self {
        Self::new(255)
    }
}

impl Bit {
    /// Undecided, with a memory of `memory` decisions.
    pub(crate) const fn new(memory: u16) -> Self {
        Self { probability: 1 << 31, seen: 0, memory }
    }

    /// Probability of a one, of 2^16, that a coder takes.
    #[inline]
    pub(crate) fn ones(&self) -> u32 {
        (self.probability >> (32 - PROBABILITY_BITS)).clamp(LEAST, (1 << PROBABILITY_BITS) - LEAST)
    }

    /// Moves a step of 1 / (seen + 1½) towards what happened.
    #[inline]
    pub(crate) fn learn(&mut self, bit: bool) {
        let target = if bit { i64::from(u32::MAX) } else { 0 };
        let step = 2 * (target - i64::from(self.probability)) / (2 * i64::from(self.seen) + 3);
        self.probability = (i64::from(self.probability) + step) as u32;
        self.seen = (self.seen + 1).min(self.memory);
    }
}

/// A symbol of a fixed number of bits, each decided under a model of its own for all that went before it:
/// any distribution over 2^bits symbols.
#[derive(Debug, Clone)]
pub(crate) struct BitTree {
    bits: u32,
    models: Vec<Bit>,
}

impl BitTree {
    /// For symbols below 2^`bits`, `bits` ≤ 16.
    pub(crate) fn new(bits: u32, memory: u16) -> Self {
        Self { bits, models: vec![Bit::new(memory); 1 << bits] }
    }

    /// Codes `symbol`.
    pub(crate) fn code(&mut self, coder: &mut impl Coder, symbol: u32) -> u32 {
        debug_assert!(symbol >> self.bits == 0);
        let mut node = 1usize;
        for place in (0..self.bits).rev() {
            let bit = coder.bit(&mut self.models[node], symbol >> place & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        node as u32 - (1 << self.bits)
    }
}

/// Where the interval is split: below are the ones.
#[inline]
fn split(range: u32, ones: u32) -> u32 {
    ((u64::from(range) * u64::from(ones)) >> PROBABILITY_BITS) as u32
}

/// How far above `low` the number of an interval lies that ends a code: the lowest with the most zeros at
/// the end. An interval of [`LEAST_RANGE`] holds one whose low three bytes are zero.
fn end_above(low: u32, range: u32) -> u32 {
    let to_next = |zeros: u32| (low.wrapping_neg()) & (((1u64 << zeros) - 1) as u32);
    [32, 24].into_iter().map(to_next).find(|above| *above < range).unwrap_or(0)
}

/// Values to bytes.
#[derive(Debug)]
pub(crate) struct Encoder {
    low: u32,
    range: u32,
    bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { low: 0, range: u32::MAX, bytes: Vec::new() }
    }

    /// Bytes that are certain so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn raise(&mut self, by: u32) {
        let (low, carry) = self.low.overflowing_add(by);
        self.low = low;
        if carry {
            // a number below one never carries out of its first byte
            for byte in self.bytes.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
    }

    /// The bytes of all that was coded.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.raise(end_above(self.low, self.range));
        self.bytes.extend(self.low.to_be_bytes());
        while self.bytes.last() == Some(&0) {
            self.bytes.pop();
        }
        self.bytes
    }
}

impl Coder for Encoder {
    #[inline]
    fn decide(&mut self, ones: u32, bit: bool) -> bool {
        let bound = split(self.range, ones);
        if bit {
            self.range = bound;
        } else {
            self.raise(bound);
            self.range -= bound;
        }
        while self.range < LEAST_RANGE {
            self.bytes.push((self.low >> 24) as u8);
            self.low <<= 8;
            self.range <<= 8;
        }
        bit
    }
}

/// Bytes to values.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    /// As the encoder's, without what was carried out of it.
    low: u32,
    range: u32,
    /// How far the number read lies above `low`; below `range`, always.
    above: u32,
    bytes: &'a [u8],
    /// Bytes read, those past the end included.
    read: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { low: 0, range: u32::MAX, above: 0, bytes, read: 0 };
        for _ in 0..4 {
            decoder.above = decoder.above << 8 | decoder.next();
        }
        decoder
    }

    #[inline]
    fn next(&mut self) -> u32 {
        let byte = self.bytes.get(self.read).copied().unwrap_or(0);
        self.read += 1;
        u32::from(byte)
    }

    /// Refuses bytes that no encoder writes for what was read.
    pub(crate) fn finish(self) -> Result<(), &'static str> {
        if self.read < self.bytes.len() {
            return Err("it goes on after its end");
        }
        if self.bytes.last() == Some(&0) || self.above != end_above(self.low, self.range) {
            return Err("it is not in the one form that an encoder writes");
        }
        Ok(())
    }
}

impl Coder for Decoder<'_> {
    #[inline]
    fn decide(&mut self, ones: u32, _: bool) -> bool {
        let bound = split(self.range, ones);
        let bit = self.above < bound;
        if bit {
            self.range = bound;
        } else {
            self.low = self.low.wrapping_add(bound);
            self.above -= bound;
            self.range -= bound;
        }
        while self.range < LEAST_RANGE {
            self.low <<= 8;
            self.range <<= 8;
            self.above = self.above << 8 | self.next();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use proptest::prelude::*;

    /// One message of everything that there is; `values` are what is coded.
    fn message(coder: &mut impl Coder, values: &[u32]) -> Vec<u32> {
        let mut tree = BitTree::new(4, 60);
        let mut bit = Bit::default();
        let code = |(at, &value): (usize, &u32)| match at % 3 {
            0 => tree.code(coder, value & 15),
            1 => u32::from(coder.bit(&mut bit, value % 7 == 0)),
            _ => coder.even(value, value_bits(at)),
        };
        values.iter().enumerate().map(code).collect()
    }

    fn value_bits(at: usize) -> u32 {
        (at * 5 % 33) as u32
    }

    fn encoded(values: &[u32]) -> (Vec<u8>, Vec<u32>) {
        let mut encoder = Encoder::new();
        let coded = message(&mut encoder, values);
        (encoder.finish(), coded)
    }

    fn noise(count: usize, mut state: u64) -> Vec<u32> {
        let next = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 32) as u32
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn bytes_are_pinned() {
        let (bytes, _) = encoded(&noise(4000, 1));
        assert_eq!(Digest::of(&bytes).to_string(), "7bbdb0cfe51405a6c69011c9eed11afe6035cceab8ef29b940dfd94f5da04227");
        assert_eq!(encoded(&[]).0, [] as [u8; 0]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn comes_near_the_entropy() {
        // one in eight: 0.5436 bits each
        let values = noise(80_000, 5);
        let mut encoder = Encoder::new();
        let mut model = Bit::new(1023);
        for value in &values {
            encoder.bit(&mut model, value % 8 == 0);
        }
        let ideal = 80_000.0 * 0.5436 / 8.0;
        let written = encoder.finish().len() as f64;
        assert!((0.98..1.01).contains(&(written / ideal)), "{written} bytes against {ideal}");
        // sixteen symbols, skewed: their own entropy
        let values: Vec<u32> = values.iter().map(|value| (value & 15) * (value >> 4 & 15) / 16).collect();
        let mut counts = [0f64; 16];
        values.iter().for_each(|value| counts[*value as usize] += 1.0);
        let ideal: f64 =
            counts.iter().filter(|count| **count > 0.0).map(|count| count * (80_000.0 / count).log2() / 8.0).sum();
        let (mut encoder, mut tree) = (Encoder::new(), BitTree::new(4, 1023));
        values.iter().for_each(|value| assert_eq!(tree.code(&mut encoder, *value), *value));
        let written = encoder.finish().len() as f64;
        assert!((0.98..1.01).contains(&(written / ideal)), "{written} bytes against {ideal}");
    }

    /// Carries run through long stretches of 255.
    #[test]
    fn carries_reach_far_back() {
        for tail in 0..40 {
            let mut encoder = Encoder::new();
            let bits: Vec<bool> = (0..200 + tail).map(|at| at != 0 && (at < 150 || at % 3 == 0)).collect();
            // a sure zero moves low up to just below a boundary; ones keep it there
            let ones = |at: usize| if at < 150 { 65535 } else { 1 + (at as u32 * 7919) % 65535 };
            bits.iter().enumerate().for_each(|(at, bit)| {
                encoder.decide(ones(at), *bit);
            });
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            bits.iter().enumerate().for_each(|(at, bit)| assert_eq!(decoder.decide(ones(at), false), *bit));
            decoder.finish().unwrap();
        }
    }

    /// Every string of up to two bytes is either refused, or the one encoding of what it decodes to.
    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn short_strings_are_canonical_or_refused() {
        let mut accepted = 0;
        for length in 0..=2u32 {
            for code in 0..256u32.pow(length) {
                let bytes = &code.to_be_bytes()[4 - length as usize..];
                let mut decoder = Decoder::new(bytes);
                let read = message(&mut decoder, &[0; 3]);
                if decoder.finish().is_ok() {
                    let mut encoder = Encoder::new();
                    again(&mut encoder, &read);
                    assert_eq!(encoder.finish(), bytes);
                    accepted += 1;
                }
            }
        }
        assert!(accepted > 100, "{accepted}");
    }

    /// [`message`] of values as they were read, for which it need not look for them in others.
    fn again(coder: &mut impl Coder, values: &[u32]) {
        let mut tree = BitTree::new(4, 60);
        let mut bit = Bit::default();
        for (at, &value) in values.iter().enumerate() {
            match at % 3 {
                0 => tree.code(coder, value),
                1 => u32::from(coder.bit(&mut bit, value == 1)),
                _ => coder.even(value, value_bits(at)),
            };
        }
    }

    proptest! {
        #[test]
        fn round_trips(values in proptest::collection::vec(any::<u32>(), 0..300)) {
            let (bytes, coded) = encoded(&values);
            let mut decoder = Decoder::new(&bytes);
            let read = message(&mut decoder, &vec![0; values.len()]);
            prop_assert_eq!(&read, &coded);
            prop_assert_eq!(decoder.finish(), Ok(()));
            for more in [&[0u8][..], &[1], &[0, 0, 7]] {
                let longer = [bytes.as_slice(), more].concat();
                let mut decoder = Decoder::new(&longer);
                let read = message(&mut decoder, &vec![0; values.len()]);
                // more bytes are another number, which may be the encoding of something else
                prop_assert!(decoder.finish().is_err() || read != coded);
            }
        }

        /// Whatever the bytes: they are read without a panic, and accepted only if they are canonical.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..40), symbols in 0usize..60) {
            let mut decoder = Decoder::new(&bytes);
            let read = message(&mut decoder, &vec![0; symbols]);
            let accepted = decoder.finish().is_ok();
            let mut encoder = Encoder::new();
            again(&mut encoder, &read);
            prop_assert_eq!(accepted, encoder.finish() == bytes);
        }

        #[test]
        fn damaged(
            values in proptest::collection::vec(any::<u32>(), 1..100),
            at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let (mut bytes, _) = encoded(&values);
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                let mut decoder = Decoder::new(&bytes);
                let read = message(&mut decoder, &vec![0; values.len()]);
                let accepted = decoder.finish().is_ok();
                let mut encoder = Encoder::new();
                again(&mut encoder, &read);
                prop_assert_eq!(accepted, encoder.finish() == bytes);
            }
        }
    }
}
