//! The decoder as it is trained: LLaMA with grouped-query attention and tied embeddings, in `f32`.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Shape, Tensor, Var};

use crate::ops::{self, HeadShape, Rotary};
use crate::random;

/// Sizes of the network; the names are those of Hugging Face's `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the projections of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Positions the rotary embedding is trained for.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
}

impl Config {
    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// A trained tensor under its Hugging Face name.
#[derive(Clone)]
pub struct Parameter {
    /// For example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `(out_features, in_features)`, or `(width)` for a norm.
    pub var: Var,
}

impl Parameter {
    /// Whether it is a matrix of a decoder block: what weight decay and pruning apply to.
    pub fn is_block_matrix(&self) -> bool {
        self.name.ends_with("_proj.weight")
    }
}

/// Dropout of one forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that an element of a branch's output is dropped.
    pub rate: f64,
    /// Key of the pass.
    pub key: u64,
}

struct Block {
    input_norm: Var,
    query: Var,
    key: Var,
    value: Var,
    output: Var,
    post_attention_norm: Var,
    gate: Var,
    up: Var,
    down: Var,
}

/// The network and its parameters. Clones of a parameter share its storage.
pub struct Network {
    config: Config,
    parameters: Vec<Parameter>,
    embedding: Var,
    blocks: Vec<Block>,
    norm: Var,
    rotary: Arc<Rotary>,
}

/// Creates the parameters in their order, which is also the order of the file.
struct Initializer {
    seed: u64,
    parameters: Vec<Parameter>,
}

impl Initializer {
    fn matrix(&mut self, name: String, out: usize, inner: usize, deviation: f64) -> Result<Var> {
        let key = random::derive(self.seed, self.parameters.len() as u64);
        self.add(name, random::normal(key, out * inner, deviation), (out, inner))
    }

    fn norm(&mut self, name: String, width: usize) -> Result<Var> {
        self.add(name, vec![1.0; width], width)
    }

    fn add(&mut self, name: String, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Var> {
        let var = Var::from_tensor(&Tensor::from_vec(values, shape.into(), &Device::Cpu)?)?;
        self.parameters.push(Parameter { name, var: var.clone() });
        Ok(var)
    }
}

impl Network {
    /// A network with random weights. Branches that write to the residual stream start smaller, by
    /// the square root of their number (Radford et al. 2019, §2.3).
    ///
    /// Errors: sizes that do not divide.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        let head_dim = config.head_dim();
        ensure!(
            head_dim * config.num_attention_heads == config.hidden_size
                && head_dim.is_multiple_of(2)
                && config.num_attention_heads.is_multiple_of(config.num_key_value_heads),
            "the heads do not divide the width: {config:?}"
        );
        let hidden = config.hidden_size;
        let key_width = head_dim * config.num_key_value_heads;
        let inside = 0.5 / (hidden as f64).sqrt();
        let outward = inside / (2.0 * config.num_hidden_layers as f64).sqrt();

        let mut init = Initializer { seed, parameters: Vec::new() };
        let embedding = init.matrix("model.embed_tokens.weight".into(), config.vocab_size, hidden, 0.02)?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}.weight");
            let intermediate = config.intermediate_size;
            blocks.push(Block {
                input_norm: init.norm(name("input_layernorm"), hidden)?,
                query: init.matrix(name("self_attn.q_proj"), hidden, hidden, inside)?,
                key: init.matrix(name("self_attn.k_proj"), key_width, hidden, inside)?,
                value: init.matrix(name("self_attn.v_proj"), key_width, hidden, inside)?,
                output: init.matrix(name("self_attn.o_proj"), hidden, hidden, outward)?,
                post_attention_norm: init.norm(name("post_attention_layernorm"), hidden)?,
                gate: init.matrix(name("mlp.gate_proj"), intermediate, hidden, inside)?,
                up: init.matrix(name("mlp.up_proj"), intermediate, hidden, inside)?,
                down: init.matrix(name("mlp.down_proj"), hidden, intermediate, outward)?,
            });
        }
        let norm = init.norm("model.norm.weight".into(), hidden)?;
        let rotary = Rotary::new(config.max_position_embeddings, head_dim, config.rope_theta);
        Ok(Self { config, parameters: init.parameters, embedding, blocks, norm, rotary })
    }

    /// The network's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every parameter once, in the order of the file.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of weights, the tied embedding counted once.
    pub fn weights(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// The logits of the next token after each of `tokens`, which hold sequences of `length`
    /// tokens each: `(tokens, vocabulary)`.
    ///
    /// Errors: a length that does not divide the tokens or exceeds the positions.
    pub fn logits(&self, tokens: &[u32], length: usize, dropout: Option<Dropout>) -> Result<Tensor> {
        ensure!(
            length > 0 && tokens.len().is_multiple_of(length) && length <= self.config.max_position_embeddings,
            "{} tokens do not make sequences of {length}",
            tokens.len()
        );
        let batch = tokens.len() / length;
        let index = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = self.embedding.index_select(&index, 0)?;
        let mut site = 0;
        let mut drop = |x: Tensor| -> Result<Tensor> {
            let Some(dropout) = dropout else { return Ok(x) };
            site += 1;
            Ok(ops::dropout(&x, dropout.rate, random::derive(dropout.key, site))?)
        };
        x = drop(x)?;
        for (number, block) in self.blocks.iter().enumerate() {
            let attention = self.attention(block, &x, batch, length);
            let attention = attention.with_context(|| format!("attention of block {number}"))?;
            x = (x + drop(attention)?)?;
            let forward = self.feed_forward(block, &x);
            let forward = forward.with_context(|| format!("feed-forward of block {number}"))?;
            x = (x + drop(forward)?)?;
        }
        let x = ops::rms_norm(&x, &self.norm, self.config.rms_norm_eps as f32)?;
        Ok(x.matmul(&self.embedding.t()?)?)
    }

    fn attention(&self, block: &Block, x: &Tensor, batch: usize, length: usize) -> Result<Tensor> {
        let config = &self.config;
        let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
        let head_dim = config.head_dim();
        let queries = HeadShape { batch, length, heads, head_dim };
        let keys = HeadShape { heads: groups, ..queries };

        let x = ops::rms_norm(x, &block.input_norm, config.rms_norm_eps as f32)?;
        let query = ops::split_heads(&x.matmul(&block.query.t()?)?, queries, Some(&self.rotary))?;
        let key = ops::split_heads(&x.matmul(&block.key.t()?)?, keys, Some(&self.rotary))?;
        let value = ops::split_heads(&x.matmul(&block.value.t()?)?, keys, None)?;

        // The query heads that share a key head follow one another, so their rows can stand in one
        // matrix against that head's keys.
        let query = query.reshape((batch * groups, heads / groups * length, head_dim))?;
        let scores = query.matmul(&key.t()?)?;
        let weights = ops::causal_softmax(&scores, 1.0 / (head_dim as f32).sqrt())?;
        let mixed = weights.matmul(&value)?.reshape((batch * heads, length, head_dim))?;
        Ok(ops::merge_heads(&mixed, queries)?.matmul(&block.output.t()?)?)
    }

    fn feed_forward(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let epsilon = self.config.rms_norm_eps as f32;
        let x = ops::rms_norm(x, &block.post_attention_norm, epsilon)?;
        let gated = ops::swiglu(&x.matmul(&block.gate.t()?)?, &x.matmul(&block.up.t()?)?)?;
        Ok(gated.matmul(&block.down.t()?)?)
    }
}

/// Sizes small enough for tests.
#[cfg(test)]
pub const TINY: Config = Config {
    vocab_size: 31,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 16,
    rope_theta: 10_000.0,
    rms_norm_eps: 1e-5,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u64).map(|i| random::below(4, i, TINY.vocab_size) as u32).collect()
    }

    #[test]
    fn a_gradient_reaches_every_parameter() {
        let network = Network::new(TINY, 1).unwrap();
        let dropout = Some(Dropout { rate: 0.1, key: 3 });
        let logits = network.logits(&tokens(24), 8, dropout).unwrap();
        let loss = ops::cross_entropy(&logits, tokens(24).into()).unwrap();
        let gradients = loss.backward().unwrap();
        for parameter in network.parameters() {
            let gradient = gradients.get(&parameter.var);
            let gradient = gradient.unwrap_or_else(|| panic!("none for `{}`", parameter.name));
            let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0 && size.is_finite(), "`{}`: {size}", parameter.name);
        }
    }

    #[test]
    fn a_gradient_is_the_slope_of_the_loss() {
        let network = Network::new(TINY, 2).unwrap();
        let targets: Arc<[u32]> = tokens(17)[1..].to_vec().into();
        let loss = || {
            let logits = network.logits(&tokens(16), 8, None).unwrap();
            ops::cross_entropy(&logits, targets.clone()).unwrap()
        };
        let gradients = loss().backward().unwrap();
        for parameter in network.parameters() {
            // Along the gradient itself the loss rises by its squared length per unit.
            let gradient = gradients.get(&parameter.var).unwrap();
            let square = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let step = f64::from(0.002 / square.sqrt());
            let start = parameter.var.as_tensor().copy().unwrap();
            let at = |sign: f64| {
                parameter.var.set(&(&start + (gradient * (sign * step)).unwrap()).unwrap()).unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let slope = f64::from(at(1.0) - at(-1.0)) / (2.0 * step);
            parameter.var.set(&start).unwrap();
            let relative = (slope / f64::from(square) - 1.0).abs();
            assert!(relative < 0.05, "`{}`: {slope} against {square}", parameter.name);
        }
    }

    #[test]
    fn a_token_does_not_see_later_ones() {
        let network = Network::new(TINY, 3).unwrap();
        let before = tokens(8);
        let mut after = before.clone();
        after[5] = (after[5] + 1) % TINY.vocab_size as u32;
        let rows = |tokens: &[u32]| network.logits(tokens, 8, None).unwrap().to_vec2::<f32>().unwrap();
        let (before, after) = (rows(&before), rows(&after));
        assert_eq!(before[..5], after[..5]);
        assert_ne!(before[5], after[5]);
    }
}
