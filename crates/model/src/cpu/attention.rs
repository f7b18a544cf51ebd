//! Causal attention with grouped queries on plain f32 slices, in slices of query positions.
//!
//! A slice attends only to the keys up to its own end, which saves almost half of the products, and its scores stay in
//! the cache of the core that works on it: no tensor of heads × tokens × tokens exists. Keys and values are brought
//! into the product's order once for all slices. The query heads that share keys are rows of one product.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::product::{Panels, Rows, at_least, multiply_part};
use crate::kernels::CausalSoftmax;

/// Most bytes of the scores of one slice.
const SCORE_BYTES: usize = 512 << 10;
/// Query positions of one slice, at least and at most.
const SLICE_TOKENS: Range<usize> = 16..97;

/// Sizes of attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each shared by as many query heads.
    pub groups: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Keys that a query sees, itself included; `None` is all before it.
    pub window: Option<usize>,
}

/// Attention within each sequence, on all cores.
///
/// `query`: (tokens of all sequences, heads × head_dim); `key` and `value`: (tokens, groups × head_dim); `lengths`: tokens
/// of each sequence in turn. Writes `out`, of the shape of `query`.
pub(super) fn attend(sizes: Heads, lengths: &[usize], query: &[f32], key: &[f32], value: &[f32], out: &mut [f32]) {
    let Heads { heads, groups, head_dim, .. } = sizes;
    let (row, shared_row) = (heads * head_dim, groups * head_dim);
    let starts = lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length)));
    let sequences: Vec<(usize, usize)> = starts.zip(lengths.iter().copied()).collect();

    let pairs: Vec<_> =
        sequences.iter().flat_map(|&sequence| (0..groups).map(move |group| (sequence, group))).collect();
    let panels: Vec<(Panels, Panels)> = pairs
        .into_par_iter()
        .map(|((start, tokens), group)| {
            let from = start * shared_row + group * head_dim;
            let keys = Panels::from_rows(&key[from..], tokens, head_dim, shared_row);
            (keys, Panels::from_columns(&value[from..], head_dim, tokens, shared_row))
        })
        .collect();

    let mut slices = Vec::new();
    let mut rest = out;
    for (sequence, &(start, tokens)) in sequences.iter().enumerate() {
        let row_bytes = (heads / groups * tokens * size_of::<f32>()).max(1);
        let slice_tokens = (SCORE_BYTES / row_bytes).clamp(SLICE_TOKENS.start, SLICE_TOKENS.end - 1);
        for first in (0..tokens).step_by(slice_tokens) {
            let queries = slice_tokens.min(tokens - first);
            let (out, after) = std::mem::take(&mut rest).split_at_mut(queries * row);
            let query = &query[(start + first) * row..][..queries * row];
            slices.push((&panels[sequence * groups..][..groups], first, query, out));
            rest = after;
        }
    }
    // later slices see more keys and take longer: the longest first
    slices.into_par_iter().rev().for_each(|(panels, first, query, out)| {
        SCRATCH.with_borrow_mut(|scratch| {
            for (group, (keys, values)) in panels.iter().enumerate() {
                scratch.attend(sizes, group, (keys, values), first, query, out);
            }
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread works in; nothing in here waits for other threads.
#[derive(Default)]
struct Scratch {
    query: Rows,
    scores: Vec<f32>,
    weights: Rows,
}

impl Scratch {
    /// One slice of one group: `query` and `out` are (queries, heads × head_dim), the first at position `first`.
    fn attend(
        &mut self,
        sizes: Heads,
        group: usize,
        (keys, values): (&Panels, &Panels),
        first: usize,
        query: &[f32],
        out: &mut [f32],
    ) {
        let Heads { heads, groups, head_dim, window } = sizes;
        let shared = heads / groups;
        let columns = group * shared * head_dim..(group + 1) * shared * head_dim;
        let queries = query.len() / (heads * head_dim);
        let rows = queries * shared;
        let oldest = window.map_or(0, |window| (first + 1).saturating_sub(window));
        let visible = keys.align(oldest)..first + queries;

        let height = self.query.resize(rows, head_dim);
        for (at, query) in query.chunks_exact(heads * head_dim).enumerate() {
            for (head, query) in query[columns.clone()].chunks_exact(head_dim).enumerate() {
                self.query.put_row(height, at * shared + head, query);
            }
        }
        let scores = at_least(&mut self.scores, rows * visible.len());
        let mut scores: Vec<&mut [f32]> = scores.chunks_exact_mut(visible.len()).collect();
        multiply_part(&self.query, keys, visible.clone(), 0..head_dim, &mut scores);

        let softmax = CausalSoftmax {
            scale: (head_dim as f32).sqrt().recip(),
            first_query: first,
            heads: shared,
            first_key: visible.start,
            window,
        };
        let height = self.weights.resize(rows, visible.len());
        softmax.weigh(&mut scores);
        for (row, scores) in scores.iter().enumerate() {
            self.weights.put_row(height, row, scores);
        }
        let mut mixed: Vec<&mut [f32]> = out
            .chunks_exact_mut(heads * head_dim)
            .flat_map(|out| out[columns.clone()].chunks_exact_mut(head_dim))
            .collect();
        multiply_part(&self.weights, values, 0..head_dim, visible, &mut mixed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + salt) * 7919) % 2003) as f32 / 500.0 - 2.0).collect()
    }

    /// One head and one query at a time, in f64.
    fn plain(sizes: Heads, lengths: &[usize], query: &[f32], key: &[f32], value: &[f32]) -> Vec<f64> {
        let Heads { heads, groups, head_dim, window } = sizes;
        let (row, shared_row) = (heads * head_dim, groups * head_dim);
        let mut out = Vec::new();
        let mut start = 0;
        for length in lengths {
            for at in 0..*length {
                for head in 0..heads {
                    let column = head / (heads / groups) * head_dim;
                    let query = &query[(start + at) * row + head * head_dim..][..head_dim];
                    let oldest = window.map_or(0, |window| (at + 1).saturating_sub(window));
                    let weight = |key_at: usize| {
                        let key = &key[(start + key_at) * shared_row + column..][..head_dim];
                        let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        (dot / (head_dim as f64).sqrt()).exp()
                    };
                    let total: f64 = (oldest..=at).map(weight).sum();
                    out.extend((0..head_dim).map(|d| {
                        let weighted = |key_at: usize| {
                            weight(key_at) * f64::from(value[(start + key_at) * shared_row + column + d])
                        };
                        (oldest..=at).map(weighted).sum::<f64>() / total
                    }));
                }
            }
            start += length;
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn attention_equals_its_definition(
            lengths in prop::collection::vec(1usize..140, 1..4),
            groups in 1usize..4,
            shared in 1usize..4,
            half_head in 1usize..20,
            window in prop::option::of(1usize..100),
        ) {
            let sizes = Heads { heads: groups * shared, groups, head_dim: 2 * half_head, window };
            let tokens: usize = lengths.iter().sum();
            let row = sizes.heads * sizes.head_dim;
            let query = values(tokens * row, 0);
            let (key, value) =
                (values(tokens * groups * sizes.head_dim, 5), values(tokens * groups * sizes.head_dim, 11));
            let mut out = vec![f32::NAN; tokens * row];
            attend(sizes, &lengths, &query, &key, &value, &mut out);
            for (got, expected) in out.iter().zip(plain(sizes, &lengths, &query, &key, &value)) {
                prop_assert!((f64::from(*got) - expected).abs() < 2e-5, "{got} {expected}");
            }
        }
    }
}
