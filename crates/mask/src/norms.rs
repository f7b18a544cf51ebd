//! The activation norms of one tap, in the eight significant bits that travel.
//!
//! ‖X_j‖ = sqrt((Σ over sequences and tokens of x_j²) / number of sequences) — Wanda §3, as in its
//! reference code — is rounded to f32, then to bf16 (nearest even). Eight significant bits make
//! `|W| · ‖X_j‖` exact in float64, so a mask is an exact function of the stored weights and these norms.

use half::bf16;

/// The biased exponent that the largest norm of a vector is moved to, or one below it.
const TOP_EXPONENT: u16 = 254;
const FRACTION_BITS: u32 = 7;

/// One tap's norms, in canonical scale.
///
/// A common scale changes no mask, so the vector is multiplied by the even power of two that brings
/// its largest exponent field to 253 or 254. Moving up is exact, subnormals included; an even power
/// keeps √s of RIA exact too (√2 would not be).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NormVector {
    bits: Vec<u16>,
}

/// Statistics that make no norms.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NormError {
    /// NaN, infinite or negative.
    #[error(
        "the activation norm of input channel {channel} is {value}; the model does not compute on this text: check the checkpoint, and use --dtype f32"
    )]
    NotFinite {
        /// Input channel.
        channel: usize,
        /// What it came to.
        value: f64,
    },
    /// Norms need at least one sequence.
    #[error("there are no calibration sequences")]
    NoSequences,
    /// Bits that are not in canonical scale.
    #[error("the norm vector is not canonical: {0}")]
    NotCanonical(&'static str),
}

impl NormVector {
    /// From Σ x² per input channel, over all tokens of `sequences` calibration sequences.
    ///
    /// # Errors
    /// [`NormError`] when a norm is not a finite bf16 number.
    pub fn from_sums(sums_of_squares: &[f64], sequences: u64) -> Result<Self, NormError> {
        if sequences == 0 {
            return Err(NormError::NoSequences);
        }
        let mut bits = Vec::with_capacity(sums_of_squares.len());
        for (channel, &sum) in sums_of_squares.iter().enumerate() {
            let norm = (sum / sequences as f64).sqrt();
            let rounded = bf16::from_f32(norm as f32);
            if !rounded.is_finite() || norm.is_nan() {
                return Err(NormError::NotFinite { channel, value: norm });
            }
            bits.push(rounded.to_bits() & 0x7fff);
        }
        Ok(Self { bits: canonical(bits) })
    }

    /// Adopts bf16 bits that a ballot carried.
    ///
    /// # Errors
    /// [`NormError::NotCanonical`] for signs, NaN, infinity, or another scale than the canonical one.
    pub fn from_canonical_bits(bits: Vec<u16>) -> Result<Self, NormError> {
        let largest = bits.iter().copied().max().unwrap_or(0);
        let exponent = largest >> FRACTION_BITS;
        if exponent > TOP_EXPONENT {
            return Err(NormError::NotCanonical("it holds a sign, a NaN or an infinity"));
        }
        if largest != 0 && exponent < TOP_EXPONENT - 1 {
            return Err(NormError::NotCanonical("its largest exponent is not 253 or 254"));
        }
        Ok(Self { bits })
    }

    /// bf16 bits in canonical scale, sign zero.
    pub fn bits(&self) -> &[u16] {
        &self.bits
    }

    /// Number of input channels.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// Whether there are no channels.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// The norms, widened exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        self.bits.iter().map(|&bits| bf16::from_bits(bits).to_f64()).collect()
    }
}

/// Scales up by the largest even power of two that keeps every value finite.
fn canonical(mut bits: Vec<u16>) -> Vec<u16> {
    let largest = bits.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        return bits;
    }
    // The exponent of the largest, counted as if subnormals had exponent fields below one.
    let value = bf16::from_bits(largest).to_f64();
    let field = i32::from(exponent_field_of_f64(value)) - 1023 + 127;
    let shift = (i32::from(TOP_EXPONENT) - field) & !1;
    let scale = power_of_two(shift);
    for bits in &mut bits {
        *bits = bf16::from_f64(bf16::from_bits(*bits).to_f64() * scale).to_bits();
    }
    bits
}

/// 2^`exponent`, exactly, for exponents of normal numbers; of `powi` no precision is promised.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

fn exponent_field_of_f64(value: f64) -> u16 {
    ((value.to_bits() >> 52) & 0x7ff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What 2 is raised to, exactly; `log2` need not be.
    fn exponent_of_a_power_of_two(number: f64) -> Option<i64> {
        let bits = number.to_bits();
        (number.is_normal() && bits << 12 == 0).then_some((bits >> 52) as i64 - 1023)
    }

    #[test]
    fn follows_the_reference_rounding() {
        // sqrt(3/2) = 1.2247…; bf16 neighbours 1.21875 and 1.2265625
        let norms = NormVector::from_sums(&[3.0, 0.0], 2).unwrap();
        let ratio = norms.to_f64()[0] / 1.2265625;
        assert!(exponent_of_a_power_of_two(ratio).is_some(), "{ratio}");
        assert_eq!(norms.to_f64()[1], 0.0);
    }

    #[test]
    fn refuses_what_has_no_order() {
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let error = NormVector::from_sums(&[1.0, bad], 1).unwrap_err();
            assert!(error.to_string().contains("channel 1"), "{error}");
        }
        assert_eq!(NormVector::from_sums(&[1.0], 0), Err(NormError::NoSequences));
        assert!(NormVector::from_canonical_bits(vec![0x8000]).is_err());
        assert!(NormVector::from_canonical_bits(vec![0x7f80]).is_err());
        assert!(NormVector::from_canonical_bits(vec![0x3f80]).is_err());
        assert!(NormVector::from_canonical_bits(vec![0, 0]).is_ok());
    }

    #[test]
    fn every_scale_is_exact() {
        for exponent in 0..=260 {
            let mut expected = 1.0;
            (0..exponent).for_each(|_| expected *= 2.0);
            assert_eq!(power_of_two(exponent), expected);
        }
        // the smallest norm that there is, and the largest
        assert_eq!(canonical(vec![1]), [254 << 7]);
        assert_eq!(canonical(vec![0x7f7f, 1]), [0x7f7f, 1]);
    }

    proptest! {
        #[test]
        fn scaling_is_exact_even_and_idempotent(bits in proptest::collection::vec(0u16..0x7f80, 1..40)) {
            let scaled = NormVector { bits: canonical(bits.clone()) };
            let before: Vec<f64> = bits.iter().map(|&bits| bf16::from_bits(bits).to_f64()).collect();
            let after = scaled.to_f64();
            let shift = before.iter().zip(&after).find(|(b, _)| **b != 0.0).map(|(b, a)| a / b);
            if let Some(shift) = shift {
                prop_assert!(exponent_of_a_power_of_two(shift).is_some_and(|exponent| exponent % 2 == 0), "{}", shift);
                for (b, a) in before.iter().zip(&after) {
                    prop_assert_eq!(b * shift, *a);
                }
            }
            prop_assert_eq!(canonical(scaled.bits.clone()), scaled.bits.clone());
            prop_assert_eq!(NormVector::from_canonical_bits(scaled.bits.clone()), Ok(scaled));
        }
    }
}
