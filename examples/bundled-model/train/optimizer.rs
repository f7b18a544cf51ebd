//! AdamW with gradient clipping. Its moments are plain vectors, so that a run's state can be saved
//! and resumed exactly.

use anyhow::{Result, ensure};
use candle_core::Tensor;

use crate::network::Parameter;

const MOMENTUM_DECAY: f32 = 0.9;
const VARIANCE_DECAY: f32 = 0.95;
const EPSILON: f32 = 1e-8;
/// Per unit of learning rate; on matrices of decoder blocks only.
const WEIGHT_DECAY: f32 = 0.1;
/// Longest gradient, over all parameters together, that is applied as it is.
const LONGEST_GRADIENT: f64 = 1.0;

/// The optimizer's state, one vector per parameter in the network's order.
pub struct AdamW {
    /// Steps taken.
    pub step: u64,
    /// Running means of the gradients.
    pub momentum: Vec<Vec<f32>>,
    /// Running means of their squares.
    pub variance: Vec<Vec<f32>>,
}

impl AdamW {
    /// The state before the first step.
    pub fn new(parameters: &[Parameter]) -> Self {
        let zeros = || parameters.iter().map(|p| vec![0.0; p.var.elem_count()]).collect();
        Self { step: 0, momentum: zeros(), variance: zeros() }
    }

    /// Takes one step down `gradients` (as many and as long as the parameters) and returns their
    /// length before clipping.
    ///
    /// Errors: a gradient that is not finite; nothing is changed then.
    pub fn update(&mut self, parameters: &[Parameter], gradients: &[Vec<f32>], learning_rate: f64) -> Result<f64> {
        let squares = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g));
        let length = squares.sum::<f64>().sqrt();
        ensure!(length.is_finite(), "the gradient of step {} is not finite", self.step);
        let clip = (LONGEST_GRADIENT / length.max(LONGEST_GRADIENT)) as f32;

        self.step += 1;
        let unbias = |decay: f32| 1.0 / (1.0 - f64::from(decay).powf(self.step as f64)) as f32;
        let (first, second) = (unbias(MOMENTUM_DECAY), unbias(VARIANCE_DECAY));
        let rate = learning_rate as f32;
        let moments = self.momentum.iter_mut().zip(&mut self.variance);
        for ((parameter, gradient), (momentum, variance)) in parameters.iter().zip(gradients).zip(moments) {
            let decay = if parameter.is_block_matrix() { 1.0 - rate * WEIGHT_DECAY } else { 1.0 };
            let mut weights = parameter.var.flatten_all()?.to_vec1::<f32>()?;
            let moments = momentum.iter_mut().zip(variance);
            for ((weight, &gradient), (momentum, variance)) in weights.iter_mut().zip(gradient).zip(moments) {
                let gradient = gradient * clip;
                *momentum = MOMENTUM_DECAY * *momentum + (1.0 - MOMENTUM_DECAY) * gradient;
                *variance = VARIANCE_DECAY * *variance + (1.0 - VARIANCE_DECAY) * gradient * gradient;
                let step = *momentum * first / ((*variance * second).sqrt() + EPSILON);
                *weight = *weight * decay - rate * step;
            }
            let weights = Tensor::from_vec(weights, parameter.var.shape(), parameter.var.device())?;
            parameter.var.set(&weights)?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn parameter(name: &str, values: &[f32]) -> Parameter {
        let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        Parameter { name: name.to_owned(), var: Var::from_tensor(&tensor).unwrap() }
    }

    #[test]
    fn it_finds_the_bottom_of_a_bowl() {
        let parameters = [parameter("norm.weight", &[3.0, -2.0])];
        let mut optimizer = AdamW::new(&parameters);
        for step in 0..600 {
            let at = parameters[0].var.to_vec1::<f32>().unwrap();
            let gradient = vec![2.0 * (at[0] - 1.0), 2.0 * (at[1] - 0.5)];
            let rate = 0.05 * (1.0 - f64::from(step) / 600.0);
            optimizer.update(&parameters, &[gradient], rate).unwrap();
        }
        let at = parameters[0].var.to_vec1::<f32>().unwrap();
        assert!((at[0] - 1.0).abs() < 0.01 && (at[1] - 0.5).abs() < 0.01, "{at:?}");
    }

    #[test]
    fn only_block_matrices_decay() {
        let parameters = [parameter("norm.weight", &[1.0]), parameter("a.up_proj.weight", &[1.0])];
        let mut optimizer = AdamW::new(&parameters);
        optimizer.update(&parameters, &[vec![0.0], vec![0.0]], 0.1).unwrap();
        assert_eq!(parameters[0].var.to_vec1::<f32>().unwrap(), [1.0]);
        assert!((parameters[1].var.to_vec1::<f32>().unwrap()[0] - 0.99).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let parameters = [parameter("norm.weight", &[1.0])];
        let mut optimizer = AdamW::new(&parameters);
        assert!(optimizer.update(&parameters, &[vec![f32::NAN]], 0.1).is_err());
        assert_eq!((optimizer.step, parameters[0].var.to_vec1::<f32>().unwrap()), (0, vec![1.0]));
    }
}
