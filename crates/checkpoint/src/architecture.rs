//! Which tensors a model has, of which shapes, and which of them are pruned.
//!
//! The list is a function of the configuration alone. It is produced lazily, block by block, so that a
//! configuration that claims more blocks than are stored fails on the first missing tensor.

use fedprune_mask::{Matrix, Tap};

use crate::config::{AttentionBias, ModelConfig};

/// A tensor that the model computes with.
pub(crate) struct Expected {
    pub name: String,
    /// (out_features, in_features) of a matrix, (features) of a vector.
    pub shape: Vec<usize>,
    /// Decoder block that it belongs to.
    pub block: Option<usize>,
    /// Set for the prunable matrices.
    pub tap: Option<Tap>,
}

impl Expected {
    /// The layout entry of a prunable matrix.
    pub fn matrix(&self) -> Option<Matrix> {
        let (tap, block, &[rows, columns]) = (self.tap?, self.block?, self.shape.as_slice()) else { return None };
        Some(Matrix {
            name: self.name.clone(),
            block: u32::try_from(block).ok()?,
            tap,
            rows: u32::try_from(rows).ok()?,
            columns: u32::try_from(columns).ok()?,
        })
    }
}

/// Every tensor the model uses: embedding, blocks in order, final norm, and the head unless tied.
/// Prunable matrices come in layout order: block, then q, k, v, o, gate, up, down.
pub(crate) fn expected(config: &ModelConfig) -> impl Iterator<Item = Expected> + '_ {
    let outer =
        |name: &str, shape: &[usize]| Expected { name: name.to_owned(), shape: shape.to_vec(), block: None, tap: None };
    let table = [config.vocab_size, config.hidden_size];
    let head = (!config.tie_word_embeddings).then(|| outer("lm_head.weight", &table));
    std::iter::once(outer("model.embed_tokens.weight", &table))
        .chain((0..config.blocks).flat_map(move |block| block_tensors(config, block)))
        .chain(std::iter::once(outer("model.norm.weight", &[config.hidden_size])))
        .chain(head)
}

/// Prefix of the tensor names of a block.
pub(crate) fn block_prefix(block: usize) -> String {
    format!("model.layers.{block}.")
}

fn block_tensors(config: &ModelConfig, block: usize) -> Vec<Expected> {
    let hidden = config.hidden_size;
    let inner = config.intermediate_size;
    let query = config.query_features();
    let key_value = config.key_value_features();
    let biased = |projection: char| match config.attention_bias {
        AttentionBias::None => false,
        AttentionBias::Qkv => projection != 'o',
        AttentionBias::Qkvo => true,
    };
    let prefix = block_prefix(block);
    let mut tensors = Vec::with_capacity(18);
    let mut add = |name: String, shape: Vec<usize>, tap| {
        tensors.push(Expected { name: format!("{prefix}{name}"), shape, block: Some(block), tap });
    };
    for (projection, tap, rows, columns) in [
        ('q', Tap::AttentionInput, query, hidden),
        ('k', Tap::AttentionInput, key_value, hidden),
        ('v', Tap::AttentionInput, key_value, hidden),
        ('o', Tap::AttentionOutput, hidden, query),
    ] {
        add(format!("self_attn.{projection}_proj.weight"), vec![rows, columns], Some(tap));
        if biased(projection) {
            add(format!("self_attn.{projection}_proj.bias"), vec![rows], None);
        }
    }
    for (projection, tap, rows, columns) in [
        ("gate", Tap::MlpInput, inner, hidden),
        ("up", Tap::MlpInput, inner, hidden),
        ("down", Tap::MlpOutput, hidden, inner),
    ] {
        add(format!("mlp.{projection}_proj.weight"), vec![rows, columns], Some(tap));
        if config.mlp_bias {
            add(format!("mlp.{projection}_proj.bias"), vec![rows], None);
        }
    }
    add("input_layernorm.weight".to_owned(), vec![hidden], None);
    add("post_attention_layernorm.weight".to_owned(), vec![hidden], None);
    if config.query_key_norm {
        add("self_attn.q_norm.weight".to_owned(), vec![config.head_dim], None);
        add("self_attn.k_norm.weight".to_owned(), vec![config.head_dim], None);
    }
    tensors
}
