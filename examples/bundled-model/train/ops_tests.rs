//! Every fused operation against the same function composed of `candle`'s primitive operations:
//! values and gradients.

use candle_core::{D, DType, Device, Var};

use super::*;

const TOLERANCE: f32 = 2e-5;

fn var(key: u64, shape: impl Into<Shape>) -> Var {
    let shape = shape.into();
    let values = random::normal(key, shape.elem_count(), 1.0);
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn assert_close(what: &str, fused: &Tensor, composed: &Tensor) {
    assert_eq!(fused.dims(), composed.dims(), "{what}");
    let difference = (fused - composed).unwrap().abs().unwrap().flatten_all().unwrap();
    let largest = difference.max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(largest < TOLERANCE, "{what} differs by {largest}");
}

/// Compares the two forms as functions of `vars`, through a weighted sum of their outputs.
fn assert_same(vars: &[&Var], fused: impl Fn() -> Tensor, composed: impl Fn() -> Tensor) {
    let (fused, composed) = (fused(), composed());
    assert_close("value", &fused, &composed);
    let weights = var(99, fused.shape().clone()).detach();
    let gradients = |out: &Tensor| (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (fused, composed) = (gradients(&fused), gradients(&composed));
    for (index, var) in vars.iter().enumerate() {
        let name = format!("gradient {index}");
        assert_close(&name, fused.get(var).unwrap(), composed.get(var).unwrap());
    }
}

#[test]
fn exponentials_are_exact_to_f32() {
    for step in -8600..8600 {
        let x = step as f32 / 100.0;
        let exact = f64::from(x).exp();
        let relative = (f64::from(exp(x)) - exact).abs() / exact;
        assert!(relative < 3e-7, "e^{x}: {relative}");
    }
}

#[test]
fn rms_norm_is_its_composed_form() {
    let (x, weight) = (var(1, (5, 24)), var(2, 24));
    assert_same(
        &[&x, &weight],
        || rms_norm(&x, &weight, 1e-5).unwrap(),
        || candle_nn::ops::rms_norm_slow(&x, &weight, 1e-5).unwrap(),
    );
}

#[test]
fn swiglu_is_its_composed_form() {
    let (gate, up) = (var(3, (4, 19)), var(4, (4, 19)));
    assert_same(&[&gate, &up], || swiglu(&gate, &up).unwrap(), || (gate.silu().unwrap() * up.as_tensor()).unwrap());
}

#[test]
fn causal_softmax_is_its_composed_form() {
    let length = 21;
    let scores = var(5, (3, 2 * length, length));
    let mask: Vec<f32> = (0..2 * length)
        .flat_map(|row| (0..length).map(move |column| (row % length, column)))
        .map(|(position, column)| if column > position { -1e9 } else { 0.0 })
        .collect();
    let mask = Tensor::from_vec(mask, (1, 2 * length, length), &Device::Cpu).unwrap();
    assert_same(
        &[&scores],
        || causal_softmax(&scores, 0.7).unwrap(),
        || {
            let masked = (scores.as_tensor() * 0.7).unwrap().broadcast_add(&mask).unwrap();
            candle_nn::ops::softmax(&masked, D::Minus1).unwrap()
        },
    );
}

#[test]
fn heads_are_split_rotated_and_merged_as_composed() {
    let shape = HeadShape { batch: 2, length: 5, heads: 3, head_dim: 8 };
    let rotary = Rotary::new(5, 8, 100.0);
    let angles = |values: &[f32]| Tensor::from_slice(values, (5, 4), &Device::Cpu).unwrap();
    let (cosines, sines) = (angles(&rotary.cosines), angles(&rotary.sines));
    let x = var(6, (10, 24));
    let split = || {
        let split = x.reshape((2, 5, 3, 8)).unwrap().transpose(1, 2).unwrap();
        split.contiguous().unwrap()
    };
    assert_same(
        &[&x],
        || split_heads(&x, shape, Some(&rotary)).unwrap(),
        || {
            let rotated = candle_nn::rotary_emb::rope_slow(&split(), &cosines, &sines).unwrap();
            rotated.reshape((6, 5, 8)).unwrap()
        },
    );
    assert_same(&[&x], || split_heads(&x, shape, None).unwrap(), || split().reshape((6, 5, 8)).unwrap());
    assert_same(
        &[&x],
        || merge_heads(&split_heads(&x, shape, None).unwrap(), shape).unwrap(),
        || x.as_tensor().clone(),
    );
}

#[test]
fn cross_entropy_is_its_composed_form() {
    let logits = var(7, (6, 37));
    let targets: Arc<[u32]> = Arc::from([0, 36, 5, 5, 17, 2]);
    let index = Tensor::from_slice(&targets, 6, &Device::Cpu).unwrap();
    assert_same(
        &[&logits],
        || cross_entropy(&logits, targets.clone()).unwrap(),
        || candle_nn::loss::cross_entropy(&logits, &index).unwrap(),
    );
}

#[test]
fn dropout_drops_its_share_and_its_backward_pass_drops_the_same() {
    let x = var(8, 40_001);
    let kept = dropout(&x, 0.25, 11).unwrap();
    let gradient = kept.sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
    let gradient = gradient.to_vec1::<f32>().unwrap();
    let dropped = gradient.iter().filter(|&&g| g == 0.0).count() as f64 / gradient.len() as f64;
    assert!((dropped - 0.25).abs() < 0.01, "{dropped}");
    let gradient = Tensor::from_vec(gradient, 40_001, &Device::Cpu).unwrap();
    let expected = x.as_tensor() * gradient;
    assert_close("value", &kept, &expected.unwrap());
    assert_eq!(kept.dtype(), DType::F32);
}
