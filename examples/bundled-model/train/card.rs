//! The model card, written from what the run measured.

use crate::network::Config;

/// What the card tells of the run.
pub struct Facts {
    /// Weights, the tied embedding counted once.
    pub weights: usize,
    /// Bytes of `model.safetensors`.
    pub model_bytes: u64,
    /// Bytes of training text.
    pub training_bytes: usize,
    /// Tokens of training text.
    pub training_tokens: usize,
    /// Bytes of held-out text.
    pub held_out_bytes: usize,
    /// Windows of held-out text evaluated.
    pub held_out_windows: usize,
    /// Steps taken.
    pub steps: u64,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// Tokens of a window.
    pub seqlen: usize,
    /// Seconds of training.
    pub training_s: f64,
    /// The options of the run.
    pub options: String,
    /// Held-out perplexity of the weights in the file.
    pub perplexity: f64,
    /// Unigram perplexity of the same tokens, with add-one-smoothed training counts.
    pub unigram: f64,
    /// The same with the counts of the scored tokens themselves.
    pub own_unigram: f64,
    /// Held-out perplexity after [`crate::export::halve_by_magnitude`].
    pub halved: f64,
}

impl Facts {
    /// The measurements in one line.
    pub fn summary(&self) -> String {
        format!(
            "held-out perplexity {:.2} = {:.1} % of the unigram's {:.1} ({:.1} % of {:.1} with the \
             held-out counts); {:.2} with half the weights pruned by magnitude; {} steps in {:.0} s",
            self.perplexity,
            100.0 * self.perplexity / self.unigram,
            self.unigram,
            100.0 * self.perplexity / self.own_unigram,
            self.own_unigram,
            self.halved,
            self.steps,
            self.training_s
        )
    }
}

/// The card as Markdown, with the header that Hugging Face reads.
pub fn render(config: &Config, facts: &Facts) -> String {
    let tokens = facts.steps * facts.step_tokens as u64;
    format!(
        "---
language: en
license: [mit, apache-2.0]
library_name: transformers
pipeline_tag: text-generation
---

# fedprune bundled model

A small LLaMA ({weights} weights, bf16, {model_bytes} bytes) for trying `fedprune` without a download,
and for its tests. It writes English of the kind it was trained on and knows nothing; it is not meant
for any other use.

| | |
|---|---|
| architecture | `LlamaForCausalLM`, embeddings tied |
| blocks | {blocks} |
| width, feed-forward width | {hidden}, {intermediate} |
| query heads, key-value heads, head width | {heads}, {groups}, {head_dim} |
| vocabulary | {vocab} tokens, byte-level BPE of its own |
| positions | {positions} (trained on windows of {seqlen} and of half as many tokens) |

## Text

All of it is in the public domain in the United States; the weights are the project's own, under its
licences.

| text | author | used |
|---|---|---|
| *Emma* (1815) | Jane Austen | volumes I, II and III to chapter 9 |
| *Moby-Dick* (1851) | Herman Melville | chapters 1–52, lines of a paragraph joined |
| Messages on the state of the Union, 1945–1958 | Presidents Roosevelt, Truman, Eisenhower | fifteen, works of the US government |

Before anything was trained, several contiguous passages of each were taken out for `held_out.txt` and
others for `silos/*.txt`. Weights and vocabulary saw neither: training text, held-out text and silos do
not overlap. Training text: {training_bytes} bytes, {training_tokens} tokens.

## Training

`train-bundled-model` (in `examples/bundled-model/train`), `candle` in f32 on two CPU cores, {minutes:.0}
minutes: {steps} steps of {step_tokens} tokens = {tokens} tokens, {epochs:.1} times the training text. AdamW
(0.9, 0.95; weight decay 0.1 on the matrices of the blocks; gradients clipped at 1), warm-up, cosine.

```sh
RAYON_NUM_THREADS=1 cargo run --release -p fedprune-examples -- --text-dir TEXT_DIR --out OUT_DIR \\
  {options}
```

Given `--steps` without `--minutes`, the same command gives the same weights on the same kind of CPU.
Where `--minutes` bounds the run, the learning rate follows the clock and the weights differ a little
from run to run.

## Measured

On `held_out.txt` ({held_out_bytes} bytes), {windows} windows of {seqlen} tokens, all but the first token of each
scored; mean over windows of the mean token loss, exponentiated; the bf16 weights computed in f32:

| | perplexity | model's share of it |
|---|---|---|
| this model | **{perplexity:.2}** | |
| unigram, training counts plus one | {unigram:.1} | {share:.1} % |
| unigram, counts of the scored tokens themselves | {own_unigram:.1} | {own_share:.1} % |
| this model, the smaller half of each row pruned by magnitude | {halved:.2} | |
",
        weights = facts.weights,
        model_bytes = facts.model_bytes,
        blocks = config.num_hidden_layers,
        hidden = config.hidden_size,
        intermediate = config.intermediate_size,
        heads = config.num_attention_heads,
        groups = config.num_key_value_heads,
        head_dim = config.head_dim(),
        vocab = config.vocab_size,
        positions = config.max_position_embeddings,
        seqlen = facts.seqlen,
        training_bytes = facts.training_bytes,
        training_tokens = facts.training_tokens,
        minutes = facts.training_s / 60.0,
        steps = facts.steps,
        step_tokens = facts.step_tokens,
        epochs = tokens as f64 / facts.training_tokens as f64,
        options = facts.options,
        held_out_bytes = facts.held_out_bytes,
        windows = facts.held_out_windows,
        perplexity = facts.perplexity,
        unigram = facts.unigram,
        share = 100.0 * facts.perplexity / facts.unigram,
        own_unigram = facts.own_unigram,
        own_share = 100.0 * facts.perplexity / facts.own_unigram,
        halved = facts.halved,
    )
}
