//! A decoder block on the processor in f32: plain slices, all windows of a batch at once.
//!
//! Linear layers see the windows of a batch as rows of one matrix, so that weights are read once for all of them;
//! attention sees each window by itself. Buffers are kept from batch to batch and block to block.
//! The same computation in candle's operations, for other devices and dtypes, is [`crate::block`]'s;
//! tests hold this one to it.

mod attention;
mod product;

pub(crate) use product::Panels;

use fedprune_mask::Tap;

use crate::Taps;
use crate::cpu::attention::{Heads, attend};
use crate::cpu::product::{Rows, Store, multiply};
use crate::kernels::{self, Rotation};

/// y = x Wᵀ + b.
#[derive(Debug)]
pub(crate) struct Layer {
    /// (out_features, in_features).
    pub weight: Panels,
    /// (out_features).
    pub bias: Option<Vec<f32>>,
}

impl Layer {
    /// Writes y into `out`, kept to be used again.
    fn forward(&self, x: &Rows, tokens: usize, out: &mut Vec<f32>) {
        let (outputs, _) = self.weight.shape();
        out.resize(tokens * outputs, 0.0);
        match &self.bias {
            None => multiply(x, &self.weight, out, Store::Set),
            Some(bias) => {
                out.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
                multiply(x, &self.weight, out, Store::Add);
            }
        }
    }

    /// Adds y to `hidden`.
    fn add_to(&self, x: &Rows, hidden: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in hidden.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        multiply(x, &self.weight, hidden, Store::Add);
    }
}

/// The vectors of a block, and its sizes.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub input_norm: &'a [f32],
    pub post_attention_norm: &'a [f32],
    /// Of one head each (qwen3).
    pub query_key_norms: Option<(&'a [f32], &'a [f32])>,
    pub eps: f32,
    /// (positions, head_dim / 2).
    pub cos: &'a [f32],
    /// (positions, head_dim / 2).
    pub sin: &'a [f32],
    pub heads: usize,
    pub groups: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
}

/// Buffers of a run through blocks, kept from batch to batch.
#[derive(Debug, Default)]
pub struct Workspace {
    hidden: Vec<f32>,
    buffers: Buffers,
}

#[derive(Debug, Default)]
struct Buffers {
    normalised: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    rows: Rows,
}

/// Runs a batch through a block: `hidden`, (tokens of all windows, hidden_size), becomes what comes out.
///
/// `layers`: q, k, v, o, gate, up, down; `lengths`: tokens of each window.
pub(crate) fn run(
    frame: &Frame<'_>,
    layers: &[Layer; 7],
    lengths: &[usize],
    hidden: &mut [f32],
    workspace: &mut Workspace,
) {
    let buffers = &mut workspace.buffers;
    up_to_gated(frame, layers, lengths, hidden, buffers, None);
    let down = &layers[6];
    buffers.rows.set(&buffers.gate, down.weight.shape().1);
    down.add_to(&buffers.rows, hidden);
}

/// Adds the squares of a block's taps to `sums`. `hidden` stays as it is, and what would come out is not computed.
pub(crate) fn measure(
    frame: &Frame<'_>,
    layers: &[Layer; 7],
    lengths: &[usize],
    hidden: &[f32],
    workspace: &mut Workspace,
    sums: &mut Taps,
) {
    workspace.hidden.clear();
    workspace.hidden.extend_from_slice(hidden);
    up_to_gated(frame, layers, lengths, &mut workspace.hidden, &mut workspace.buffers, Some(sums));
}

/// Everything but the last product, whose input is left in `gate`; attention is added to `hidden`.
fn up_to_gated(
    frame: &Frame<'_>,
    [q, k, v, o, gate, up, _]: &[Layer; 7],
    lengths: &[usize],
    hidden: &mut [f32],
    buffers: &mut Buffers,
    mut sums: Option<&mut Taps>,
) {
    let mut tap = |tap: Tap, values: &[f32]| {
        if let Some(sums) = sums.as_deref_mut() {
            sums.add_values(tap, values);
        }
    };
    let hidden_size = frame.input_norm.len();
    let tokens = hidden.len() / hidden_size;
    let Buffers { normalised, query, key, value, mixed, gate: gated, up: upper, rows } = buffers;

    normalised.resize(hidden.len(), 0.0);
    kernels::normalise_rows(hidden, frame.input_norm, frame.eps, normalised);
    tap(Tap::AttentionInput, normalised);
    rows.set(normalised, hidden_size);
    q.forward(rows, tokens, query);
    k.forward(rows, tokens, key);
    v.forward(rows, tokens, value);
    let (query_norm, key_norm) = frame.query_key_norms.unzip();
    let rotation = |heads, norm: Option<_>| Rotation {
        heads,
        norm: norm.map(|norm| (norm, frame.eps)),
        cos: frame.cos,
        sin: frame.sin,
    };
    rotation(frame.heads, query_norm).apply(lengths, query);
    rotation(frame.groups, key_norm).apply(lengths, key);
    let Frame { heads, groups, head_dim, window, .. } = *frame;
    mixed.resize(query.len(), 0.0);
    attend(Heads { heads, groups, head_dim, window }, lengths, query, key, value, mixed);
    tap(Tap::AttentionOutput, mixed);
    rows.set(mixed, heads * head_dim);
    o.add_to(rows, hidden);

    kernels::normalise_rows(hidden, frame.post_attention_norm, frame.eps, normalised);
    tap(Tap::MlpInput, normalised);
    rows.set(normalised, hidden_size);
    gate.forward(rows, tokens, gated);
    up.forward(rows, tokens, upper);
    kernels::gate(gated, upper);
    tap(Tap::MlpOutput, gated);
}
