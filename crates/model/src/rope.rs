//! Rotary position tables, with the scalings of Hugging Face `modeling_rope_utils.py`.
//!
//! Frequencies are rounded to f32 where the reference rounds them, since at position p a rounding error
//! of a frequency is multiplied by p: a table in f64 would drift away from the model that was trained.

use std::f32::consts::PI;

use candle_core::{DType, Device, Tensor};
use fedprune_checkpoint::{Rope, RopeScaling};

use crate::ModelError;
use crate::error::Doing;

/// cos and sin, each of shape (tokens, head_dim / 2).
#[derive(Debug, Clone)]
pub(crate) struct RopeTables {
    cos: Tensor,
    sin: Tensor,
    /// The same in f32, row-major.
    values: (Vec<f32>, Vec<f32>),
}

impl RopeTables {
    /// Tables for positions 0 to `tokens` − 1.
    pub(crate) fn new(
        rope: &Rope,
        head_dim: usize,
        tokens: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let frequencies = inverse_frequencies(rope, head_dim)?;
        if let Some(bad) = frequencies.iter().find(|frequency| !frequency.is_finite()) {
            return Err(ModelError::Config(format!(
                "the rotary parameters give a frequency of {bad}; check `rope_theta` and `rope_scaling`"
            )));
        }
        let angles = (0..tokens)
            .flat_map(|position| frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency)));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        let table = |values: &[f32]| Tensor::from_slice(values, (tokens, frequencies.len()), device)?.to_dtype(dtype);
        let doing = || "making the rotary tables".to_owned();
        Ok(Self { cos: table(&cos).doing(doing)?, sin: table(&sin).doing(doing)?, values: (cos, sin) })
    }

    /// cos and sin in f32, row-major.
    pub(crate) fn slices(&self) -> (&[f32], &[f32]) {
        (&self.values.0, &self.values.1)
    }

    /// Rotates `heads` of shape (tokens, heads, head_dim) by their positions.
    pub(crate) fn rotate(&self, heads: &Tensor) -> candle_core::Result<Tensor> {
        let tokens = heads.dim(0)?;
        let (cos, sin) = (self.cos.narrow(0, 0, tokens)?, self.sin.narrow(0, 0, tokens)?);
        candle_nn::rotary_emb::rope_thd(&heads.unsqueeze(0)?, &cos, &sin)?.squeeze(0)
    }
}

/// One frequency per pair of channels, in f32 as the reference computes them.
fn inverse_frequencies(rope: &Rope, head_dim: usize) -> Result<Vec<f32>, ModelError> {
    let plain = (0..head_dim / 2).map(|pair| {
        let exponent = (2 * pair) as f32 / head_dim as f32;
        1.0 / rope.theta.powf(f64::from(exponent)) as f32
    });
    Ok(match rope.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor as f32).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
            let trained = original_max_position_embeddings as f32;
            let scale = |frequency: f32| {
                let wavelength = 2.0 * PI / frequency;
                if wavelength < trained / high {
                    frequency
                } else if wavelength > trained / low {
                    frequency / factor
                } else {
                    let smooth = (trained / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            plain.map(scale).collect()
        }
        ref other => {
            return Err(ModelError::Config(format!("rotary scaling {other:?} is not implemented")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values from transformers' `ROPE_INIT_FUNCTIONS` (Llama 3.2: head_dim 64, theta 500000).
    #[test]
    fn llama3_frequencies_match_the_reference() {
        let rope = Rope {
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192,
            },
        };
        let frequencies = inverse_frequencies(&rope, 64).unwrap();
        assert_eq!(frequencies.len(), 32);
        for (pair, expected) in GOLDEN {
            let relative = (frequencies[pair] / expected - 1.0).abs();
            assert!(relative < 1e-6, "pair {pair}: {} against {expected}", frequencies[pair]);
        }
    }

    const GOLDEN: [(usize, f32); 9] = [
        (0, 1.0),
        (1, 0.663_601_3),
        (7, 0.056_669_62),
        (14, 0.003_211_446),
        (15, 0.001_290_548),
        (16, 0.000_429_556_7),
        (17, 9.708_286e-5),
        (18, 1.946_163_9e-5),
        (31, 9.418_306e-8),
    ];

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = inverse_frequencies(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, 16).unwrap();
        let scaled =
            inverse_frequencies(&Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 4.0 } }, 16).unwrap();
        assert_eq!(plain[0], 1.0);
        assert!(plain.iter().zip(&scaled).all(|(plain, scaled)| plain / 4.0 == *scaled));
    }

    #[test]
    fn frequencies_that_are_no_numbers_are_refused() {
        let rope = Rope { theta: 0.0, scaling: RopeScaling::None };
        let error = RopeTables::new(&rope, 16, 4, DType::F32, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("rope_theta"), "{error}");
    }
}
