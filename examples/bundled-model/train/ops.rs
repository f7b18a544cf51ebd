//! Operations of the decoder fused for training on a CPU, each with its backward pass.
//!
//! `candle`'s own fused operations have no backward pass, and the same functions composed of
//! primitive tensor operations spend most of a training step in passes over memory. Each operation
//! here is one pass forward and one pass backward; the tests compare values and gradients with the
//! composed form.
//!
//! All of them take contiguous `f32` tensors on the CPU.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::random;

/// Independent partial sums of a reduction; the compiler keeps them in vector registers.
const LANES: usize = 16;

/// The elements of a contiguous `f32` tensor.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused operation was given a tensor that is not contiguous"),
    }
}

/// `e^x` to about 1 unit in the last place of 24 bits, saturating outside ±87: free of branches and
/// calls, so that loops over it vectorize.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to the nearest whole number, which is left in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let power = rounded - ROUNDER;
    let rest = x - power * LN2_HIGH - power * LN2_LOW;
    let series = 1.0
        + rest
            * (1.0
                + rest
                    * (0.5
                        + rest
                            * (1.666_666_5e-1
                                + rest * (4.166_579_6e-2 + rest * (8.333_452e-3 + rest * 1.398_199_9e-3)))));
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    series * f32::from_bits(((exponent + 127) << 23) as u32)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The sum of products of two slices of the same length.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// Replaces each element `x` by `e^(scale · x - shift)` and returns the sum.
fn exponentiate(row: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(scale * chunk[lane] - shift);
            sums[lane] += chunk[lane];
        }
    }
    let mut total = 0.0;
    for x in rest {
        *x = exp(scale * *x - shift);
        total += *x;
    }
    total + sums.iter().sum::<f32>()
}

fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| max.max(x))
}

fn f32_output(values: Vec<f32>, shape: &Shape) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.clone()))
}

/// `x · weight / sqrt(mean(x²) + epsilon)` over the last dimension; `x: (tokens, width)`,
/// `weight: (width)`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { epsilon })
}

struct RmsNorm {
    epsilon: f32,
}

/// One row's `1 / sqrt(mean(x²) + epsilon)`.
fn inverse_rms(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt()
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let scale = inverse_rms(row, self.epsilon);
            out.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
        }
        f32_output(out, x_layout.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let input = x.apply_op3_no_bwd(weight, &grad, &RmsNormInput { epsilon: self.epsilon })?;
        let gain = x.apply_op3_no_bwd(weight, &grad, &RmsNormWeight { epsilon: self.epsilon })?;
        Ok((Some(input), Some(gain)))
    }
}

/// The gradient of [`RmsNorm`] for its input; arguments x, weight, gradient of the result.
struct RmsNormInput {
    epsilon: f32,
}

impl CustomOp3 for RmsNormInput {
    fn name(&self) -> &'static str {
        "rms-norm-input-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
        let grad = elements(grad, grad_layout)?;
        let width = weight.len();
        let mut out = Vec::with_capacity(x.len());
        let mut weighted = vec![0f32; width];
        for (row, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
            for ((weighted, g), w) in weighted.iter_mut().zip(grad).zip(weight) {
                *weighted = g * w;
            }
            let scale = inverse_rms(row, self.epsilon);
            let along = dot(row, &weighted) * scale * scale / width as f32;
            out.extend(row.iter().zip(&weighted).map(|(x, g)| scale * (g - x * along)));
        }
        f32_output(out, x_layout.shape())
    }
}

/// The gradient of [`RmsNorm`] for its weight; arguments x, weight, gradient of the result.
struct RmsNormWeight {
    epsilon: f32,
}

impl CustomOp3 for RmsNormWeight {
    fn name(&self) -> &'static str {
        "rms-norm-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
        let grad = elements(grad, grad_layout)?;
        let width = weight.len();
        let mut out = vec![0f32; width];
        for (row, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
            let scale = inverse_rms(row, self.epsilon);
            for ((out, x), g) in out.iter_mut().zip(row).zip(grad) {
                *out += x * scale * g;
            }
        }
        f32_output(out, weight_layout.shape())
    }
}

/// `silu(gate) · up`, element by element.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements(gate, gate_layout)?, elements(up, up_layout)?);
        let out = gate.iter().zip(up).map(|(&gate, up)| gate * sigmoid(gate) * up).collect();
        f32_output(out, gate_layout.shape())
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let for_gate = gate.apply_op3_no_bwd(up, &grad, &SwiGluGate)?;
        Ok((Some(for_gate), Some(gate.apply_op2_no_bwd(&grad, &SwiGlu)?)))
    }
}

/// The gradient of [`SwiGlu`] for its gate; arguments gate, up, gradient of the result.
struct SwiGluGate;

impl CustomOp3 for SwiGluGate {
    fn name(&self) -> &'static str {
        "swiglu-gate-gradient"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements(gate, gate_layout)?, elements(up, up_layout)?);
        let grad = elements(grad, grad_layout)?;
        let slope = |gate: f32| {
            let open = sigmoid(gate);
            open * (1.0 + gate * (1.0 - open))
        };
        let out = gate.iter().zip(up).zip(grad).map(|((&gate, up), g)| g * up * slope(gate));
        f32_output(out.collect(), gate_layout.shape())
    }
}

/// Softmax of `scale · scores` over the positions a query may see, zero elsewhere.
/// `scores: (batch, queries, length)`, where query row `r` stands at position `r mod length`.
pub fn causal_softmax(scores: &Tensor, scale: f32) -> Result<Tensor> {
    scores.apply_op1(CausalSoftmax { scale })
}

struct CausalSoftmax {
    scale: f32,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let length = layout.dims()[layout.dims().len() - 1];
        let scores = elements(scores, layout)?;
        let mut out = vec![0f32; scores.len()];
        for (index, (out, row)) in out.chunks_exact_mut(length).zip(scores.chunks_exact(length)).enumerate() {
            let seen = index % length + 1;
            let (row, out) = (&row[..seen], &mut out[..seen]);
            out.copy_from_slice(row);
            let total = exponentiate(out, self.scale, self.scale * largest(row));
            out.iter_mut().for_each(|p| *p /= total);
        }
        f32_output(out, layout.shape())
    }

    fn bwd(&self, _arg: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = CausalSoftmaxGradient { scale: self.scale };
        Ok(Some(res.apply_op2_no_bwd(&grad.contiguous()?, &backward)?))
    }
}

/// The gradient of [`CausalSoftmax`]; arguments result, gradient of the result.
struct CausalSoftmaxGradient {
    scale: f32,
}

impl CustomOp2 for CausalSoftmaxGradient {
    fn name(&self) -> &'static str {
        "causal-softmax-gradient"
    }

    fn cpu_fwd(
        &self,
        res: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let length = layout.dims()[layout.dims().len() - 1];
        let (res, grad) = (elements(res, layout)?, elements(grad, grad_layout)?);
        let mut out = vec![0f32; res.len()];
        let rows = res.chunks_exact(length).zip(grad.chunks_exact(length));
        for (index, (out, (res, grad))) in out.chunks_exact_mut(length).zip(rows).enumerate() {
            let seen = index % length + 1;
            let (res, grad) = (&res[..seen], &grad[..seen]);
            let mean = dot(res, grad);
            for ((out, p), g) in out[..seen].iter_mut().zip(res).zip(grad) {
                *out = self.scale * p * (g - mean);
            }
        }
        f32_output(out, layout.shape())
    }
}

/// Cosines and sines of the rotary embedding: `(positions, head_dim / 2)` each.
pub struct Rotary {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// The angles `position · theta^(-2i / head_dim)`.
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> Arc<Self> {
        let angles: Vec<f64> = (0..positions)
            .flat_map(|position| {
                (0..head_dim / 2).map(move |i| position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64))
            })
            .collect();
        Arc::new(Self {
            cosines: angles.iter().map(|angle| angle.cos() as f32).collect(),
            sines: angles.iter().map(|angle| angle.sin() as f32).collect(),
        })
    }
}

/// The shape of a batch as attention sees it.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// `(batch · length, heads · head_dim)` to `(batch · heads, length, head_dim)`, each head rotated by
/// its position when `rotary` is given (Hugging Face's convention: element `i` is paired with
/// `i + head_dim / 2`).
pub fn split_heads(x: &Tensor, shape: HeadShape, rotary: Option<&Arc<Rotary>>) -> Result<Tensor> {
    x.apply_op1(Heads { shape, split: true, rotary: rotary.cloned() })
}

/// `(batch · heads, length, head_dim)` to `(batch · length, heads · head_dim)`.
pub fn merge_heads(x: &Tensor, shape: HeadShape) -> Result<Tensor> {
    x.apply_op1(Heads { shape, split: false, rotary: None })
}

/// Splits and rotates, or rotates back and merges: each direction is the other's backward pass.
struct Heads {
    shape: HeadShape,
    split: bool,
    rotary: Option<Arc<Rotary>>,
}

impl CustomOp1 for Heads {
    fn name(&self) -> &'static str {
        "heads"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let HeadShape { batch, length, heads, head_dim } = self.shape;
        let x = elements(x, layout)?;
        let half = head_dim / 2;
        let mut out = vec![0f32; x.len()];
        for sequence in 0..batch {
            for head in 0..heads {
                for position in 0..length {
                    let merged = ((sequence * length + position) * heads + head) * head_dim;
                    let split = ((sequence * heads + head) * length + position) * head_dim;
                    let (from, to) = if self.split { (merged, split) } else { (split, merged) };
                    let (from, to) = (&x[from..from + head_dim], &mut out[to..to + head_dim]);
                    let Some(rotary) = &self.rotary else {
                        to.copy_from_slice(from);
                        continue;
                    };
                    let angles = position * half..(position + 1) * half;
                    let (cosines, sines) = (&rotary.cosines[angles.clone()], &rotary.sines[angles]);
                    let sign = if self.split { 1.0 } else { -1.0 };
                    let (left, right) = from.split_at(half);
                    let (to_left, to_right) = to.split_at_mut(half);
                    for i in 0..half {
                        let (cosine, sine) = (cosines[i], sign * sines[i]);
                        to_left[i] = left[i] * cosine - right[i] * sine;
                        to_right[i] = right[i] * cosine + left[i] * sine;
                    }
                }
            }
        }
        let shape = if self.split {
            Shape::from((batch * heads, length, head_dim))
        } else {
            Shape::from((batch * length, heads * head_dim))
        };
        f32_output(out, &shape)
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let inverse = Heads { shape: self.shape, split: !self.split, rotary: self.rotary.clone() };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&inverse)?))
    }
}

/// The mean over tokens of `-log softmax(logits)[target]`, in nats, as a scalar.
/// `logits: (tokens, vocabulary)`, `targets: (tokens)`.
pub fn cross_entropy(logits: &Tensor, targets: Arc<[u32]>) -> Result<Tensor> {
    logits.apply_op1(CrossEntropy { targets })?.mean_all()
}

/// Token losses: `(tokens, vocabulary)` to `(tokens)`, in nats.
pub fn token_losses(logits: &Tensor, targets: Arc<[u32]>) -> Result<Tensor> {
    logits.apply_op1_no_bwd(&CrossEntropy { targets })
}

struct CrossEntropy {
    targets: Arc<[u32]>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocabulary = layout.dims()[1];
        let logits = elements(logits, layout)?;
        let mut scratch = vec![0f32; vocabulary];
        let mut losses = Vec::with_capacity(self.targets.len());
        for (row, &target) in logits.chunks_exact(vocabulary).zip(self.targets.iter()) {
            let max = largest(row);
            scratch.copy_from_slice(row);
            let total = exponentiate(&mut scratch, 1.0, max);
            losses.push(total.ln() + max - row[target as usize]);
        }
        f32_output(losses, &Shape::from(self.targets.len()))
    }

    fn bwd(&self, logits: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = CrossEntropyGradient { targets: self.targets.clone() };
        Ok(Some(logits.apply_op2_no_bwd(&grad.contiguous()?, &backward)?))
    }
}

/// The gradient of [`CrossEntropy`]; arguments logits, gradient of the losses.
struct CrossEntropyGradient {
    targets: Arc<[u32]>,
}

impl CustomOp2 for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross-entropy-gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let vocabulary = layout.dims()[1];
        let (logits, grad) = (elements(logits, layout)?, elements(grad, grad_layout)?);
        let mut out = logits.to_vec();
        let rows = out.chunks_exact_mut(vocabulary).zip(self.targets.iter()).zip(grad);
        for ((row, &target), &grad) in rows {
            let max = largest(row);
            let factor = grad / exponentiate(row, 1.0, max);
            row.iter_mut().for_each(|p| *p *= factor);
            row[target as usize] -= grad;
        }
        f32_output(out, layout.shape())
    }
}

/// Sets each element to zero with probability `rate` and divides the others by `1 - rate`. Which
/// ones depends on `key` alone. `rate` is rounded to a multiple of 1/65536.
pub fn dropout(x: &Tensor, rate: f64, key: u64) -> Result<Tensor> {
    x.apply_op1(Dropout { rate, key })
}

struct Dropout {
    rate: f64,
    key: u64,
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = elements(x, layout)?;
        let threshold = (self.rate * 65_536.0).round() as u64;
        let scale = (1.0 / (1.0 - self.rate)) as f32;
        let mut out = Vec::with_capacity(x.len());
        for (counter, four) in x.chunks(4).enumerate() {
            let bits = random::draw(self.key, counter as u64);
            out.extend(four.iter().enumerate().map(|(i, x)| {
                let kept = (bits >> (16 * i)) & 0xffff >= threshold;
                if kept { x * scale } else { 0.0 }
            }));
        }
        f32_output(out, layout.shape())
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let again = Dropout { rate: self.rate, key: self.key };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&again)?))
    }
}

#[cfg(test)]
#[path = "ops_tests.rs"]
mod tests;
