//! Causal attention with grouped queries, in slices of query rows.
//!
//! At 2,048 tokens and 32 heads a full score tensor takes 512 MB; a slice takes at most
//! [`SCORE_BYTES_CPU`]. A slice attends only to the keys up to its own end, which also saves almost half
//! of the products. Keys and values are not repeated per query head: the heads of a group are
//! stacked as rows of one product.

use candle_core::{DType, Result, Tensor};

use crate::accelerator::Accelerator;

/// Most bytes of one slice of scores on the processor.
pub(crate) const SCORE_BYTES_CPU: usize = 8 << 20;
/// On a GPU: fewer, larger launches.
pub(crate) const SCORE_BYTES_GPU: usize = 256 << 20;
/// Query rows of one slice at most: the part of the diagonal that is computed and thrown away.
const MAX_SLICE_TOKENS_CPU: usize = 128;
/// On a GPU: fewer, larger launches.
pub(crate) const MAX_SLICE_TOKENS_GPU: usize = 512;

/// Which keys the queries of a slice see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Place of the first query.
    pub first_query: usize,
    /// Place of the first key.
    pub first_key: usize,
    /// How many keys a query sees, itself included.
    pub window: Option<usize>,
}

/// Attention of every query to the keys before it and itself.
///
/// `query`: (tokens, heads, head_dim); `key` and `value`: (tokens, key_value_heads, head_dim). `window`
/// limits how many keys a query sees, itself included. Returns (tokens, heads × head_dim).
pub(crate) fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    window: Option<usize>,
    accelerator: Option<&Accelerator>,
) -> Result<Tensor> {
    let (score_bytes, slice_tokens) = match query.device().is_cpu() {
        true => (SCORE_BYTES_CPU, MAX_SLICE_TOKENS_CPU),
        false => (SCORE_BYTES_GPU, MAX_SLICE_TOKENS_GPU),
    };
    let weigh = |scores: Tensor, seen: Seen, scale: f64| match accelerator {
        Some(accelerator) => {
            let queries = (seen.first_key + scores.dim(2)?) - seen.first_query;
            accelerator.causal_softmax(&scores, queries, seen, scale)?;
            Ok(scores)
        }
        None => weigh(&scores, scale, seen),
    };
    attend_in_slices((query, key, value), window, (score_bytes, slice_tokens), &weigh)
}

/// In slices of at most so many bytes of scores and so many queries. `weigh` makes weights of the scores of a slice, in f32,
/// and gives zero to keys that are not seen: (groups, shared × queries, keys).
fn attend_in_slices(
    (query, key, value): (&Tensor, &Tensor, &Tensor),
    window: Option<usize>,
    (score_bytes, most_tokens): (usize, usize),
    weigh: &dyn Fn(Tensor, Seen, f64) -> Result<Tensor>,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = query.dims3()?;
    let groups = key.dim(1)?;
    let shared = heads / groups;
    let key = key.transpose(0, 1)?.contiguous()?;
    let value = value.transpose(0, 1)?.contiguous()?;
    let row_bytes = heads * tokens * query.dtype().size_in_bytes();
    let slice_tokens = (score_bytes / row_bytes.max(1)).clamp(1, most_tokens);

    let mut slices = Vec::with_capacity(tokens.div_ceil(slice_tokens));
    for first_query in (0..tokens).step_by(slice_tokens) {
        let end = (first_query + slice_tokens).min(tokens);
        let queries = end - first_query;
        let first_key = window.map_or(0, |window| (first_query + 1).saturating_sub(window));
        let keys = end - first_key;
        // (queries, groups, shared, head_dim) to (groups, shared × queries, head_dim)
        let query = query
            .narrow(0, first_query, queries)?
            .reshape((queries, groups, shared, head_dim))?
            .permute((1, 2, 0, 3))?
            .contiguous()?
            .reshape((groups, shared * queries, head_dim))?;
        let scores = query.matmul(&key.narrow(1, first_key, keys)?.t()?)?;
        let weights = weigh(scores, Seen { first_query, first_key, window }, (head_dim as f64).sqrt().recip())?;
        let mixed = weights.matmul(&value.narrow(1, first_key, keys)?)?;
        slices.push(
            mixed
                .reshape((groups, shared, queries, head_dim))?
                .permute((2, 0, 1, 3))?
                .contiguous()?
                .reshape((queries, heads * head_dim))?,
        );
    }
    match slices.len() {
        1 => Ok(slices.swap_remove(0)),
        _ => Tensor::cat(&slices, 0),
    }
}

/// Softmax over the visible keys, in f32.
///
/// `scores`: (groups, shared × queries, keys), the queries from position `first_query` on and the keys from `first_key` on.
fn weigh(scores: &Tensor, scale: f64, Seen { first_query, first_key, window }: Seen) -> Result<Tensor> {
    let (groups, rows, keys) = scores.dims3()?;
    let queries = first_key + keys - first_query;
    let device = scores.device();
    let positions = |first: usize, count: usize| Tensor::arange(first as i64, (first + count) as i64, device);
    let at = positions(first_query, queries)?.reshape((queries, 1))?;
    let keys_at = positions(first_key, keys)?.reshape((1, keys))?;
    let shape = (groups, rows / queries, queries, keys);
    let scaled = (scores.to_dtype(DType::F32)? * scale)?.reshape(shape)?;
    let hidden = Tensor::new(f32::NEG_INFINITY, device)?.broadcast_as(scaled.shape())?;
    let mut masked = keys_at.broadcast_gt(&at)?.broadcast_as(scaled.shape())?.where_cond(&hidden, &scaled)?;
    if let Some(window) = window {
        // a key is too old when key + window ≤ query
        let too_old = (keys_at + window as f64)?.broadcast_le(&at)?;
        masked = too_old.broadcast_as(scaled.shape())?.where_cond(&hidden, &masked)?;
    }
    candle_nn::ops::softmax_last_dim(&masked.contiguous()?)?.reshape((groups, rows, keys))?.to_dtype(scores.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(shape: (usize, usize, usize), salt: usize) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let values: Vec<f32> = (0..count).map(|i| (((i + salt) * 7919) % 2003) as f32 / 500.0 - 2.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// One head and one query at a time, in f64.
    fn plain(query: &Tensor, key: &Tensor, value: &Tensor, window: Option<usize>) -> Vec<f64> {
        let read = |tensor: &Tensor| tensor.to_vec3::<f32>().unwrap();
        let (query, key, value) = (read(query), read(key), read(value));
        let shared = query[0].len() / key[0].len();
        let mut out = Vec::new();
        for (at, heads) in query.iter().enumerate() {
            for (head, query) in heads.iter().enumerate() {
                let group = head / shared;
                let oldest = window.map_or(0, |window| (at + 1).saturating_sub(window));
                let weight = |key_at: usize| {
                    let pairs = query.iter().zip(&key[key_at][group]);
                    let dot: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    (dot / (query.len() as f64).sqrt()).exp()
                };
                let total: f64 = (oldest..=at).map(weight).sum();
                out.extend((0..query.len()).map(|d| {
                    let weighted = |key_at: usize| weight(key_at) * f64::from(value[key_at][group][d]);
                    (oldest..=at).map(weighted).sum::<f64>() / total
                }));
            }
        }
        out
    }

    #[test]
    fn slices_of_any_size_equal_the_definition() {
        let (tokens, heads, groups, head_dim) = (37, 6, 2, 8);
        let query = values((tokens, heads, head_dim), 0);
        let (key, value) = (values((tokens, groups, head_dim), 5), values((tokens, groups, head_dim), 11));
        for window in [None, Some(1), Some(9), Some(100)] {
            let expected = plain(&query, &key, &value, window);
            let row = heads * tokens * 4;
            for (score_bytes, most) in [(1, 128), (5 * row, 128), (16 * row, 512), (usize::MAX, 7), (usize::MAX, 512)] {
                let weigh = |scores: Tensor, seen: Seen, scale: f64| weigh(&scores, scale, seen);
                let got = attend_in_slices((&query, &key, &value), window, (score_bytes, most), &weigh).unwrap();
                assert_eq!(got.dims(), [tokens, heads * head_dim]);
                let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 1e-5, "{window:?}, {score_bytes}");
                }
            }
        }
    }
}
