//! `train-bundled-model`: trains the small LLaMA that the project bundles, on public-domain text, on
//! a CPU.
//!
//! It cuts the text into training, held-out and silo passages, trains a vocabulary and the network
//! on the training passages alone, and writes the bundle: `model/` in Hugging Face layout with its
//! model card, `held_out.txt`, `silos/*.txt`. A run that is stopped is resumed by repeating its
//! command.

#![allow(clippy::print_stdout, reason = "the program reports its progress on standard output")]

mod card;
mod evaluate;
mod export;
mod network;
mod ops;
mod optimizer;
mod random;
mod schedule;
mod state;
mod text;
mod training;
mod vocabulary;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::network::{Config, Network};
use crate::optimizer::AdamW;
use crate::schedule::Schedule;
use crate::state::Progress;
use crate::training::{Recipe, Watch};

/// The bundled model's sizes. Every width is a multiple of 32, so that any n:m pattern divides it.
const CONFIG: Config = Config {
    vocab_size: 2048,
    hidden_size: 128,
    intermediate_size: 352,
    num_hidden_layers: 6,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 256,
    rope_theta: 10_000.0,
    rms_norm_eps: 1e-5,
};

/// Trains the small LLaMA that the project bundles.
#[derive(Debug, Parser)]
#[command(name = "train-bundled-model", version)]
struct Options {
    /// Folder with `novels_austen.txt`, `novel_moby_dick.txt` and `speeches_sotu.txt`
    #[arg(long, value_name = "DIR")]
    text_dir: PathBuf,
    /// Folder to write the bundle into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Steps of training
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    steps: u64,
    /// Windows of a step; of half the length, twice as many
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Tokens of a window in evaluation and in one training step of four; half as many in the others
    #[arg(long, value_name = "N", default_value_t = 256)]
    seqlen: usize,
    /// Key of everything random: initial weights, windows, dropout
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End after this many minutes of training if the steps are not done; the learning rate falls
    /// in time for it
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-3)]
    learning_rate: f64,
    /// Probability of dropout on embeddings and residual branches
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    dropout: f64,
    /// Threads that share the windows of a step (set RAYON_NUM_THREADS=1 beside it)
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Steps between evaluations and saved states
    #[arg(long, value_name = "N", default_value_t = 500)]
    eval_every: u64,
}

impl Options {
    fn validate(&self) -> Result<()> {
        let positions = CONFIG.max_position_embeddings;
        ensure!(
            (2..=positions).contains(&self.seqlen),
            "`--seqlen {}` must be from 2 to the {positions} positions of the model",
            self.seqlen
        );
        ensure!(self.batch > 0, "`--batch 0`: a step needs a window");
        ensure!(self.threads > 0, "`--threads 0`: a step needs a thread");
        ensure!(self.eval_every > 0, "`--eval-every 0`: give the steps between evaluations");
        ensure!((0.0..1.0).contains(&self.dropout), "`--dropout {}` must be at least 0 and below 1", self.dropout);
        Ok(())
    }

    /// What must be the same for a state to be resumed.
    fn fingerprint(&self) -> String {
        format!(
            "--steps {} --batch {} --seqlen {} --seed {} --learning-rate {} --dropout {} --threads {}{}",
            self.steps,
            self.batch,
            self.seqlen,
            self.seed,
            self.learning_rate,
            self.dropout,
            self.threads,
            self.minutes.map(|minutes| format!(" --minutes {minutes}")).unwrap_or_default()
        )
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    options.validate()?;
    run(&options)
}

fn run(options: &Options) -> Result<()> {
    let (model_dir, silo_dir) = (options.out.join("model"), options.out.join("silos"));
    for dir in [&model_dir, &silo_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("creating `{}`", dir.display()))?;
    }

    let corpus = text::load(&options.text_dir)?;
    std::fs::write(options.out.join("held_out.txt"), &corpus.held_out)?;
    for (name, silo) in &corpus.silos {
        std::fs::write(silo_dir.join(format!("{name}.txt")), silo)?;
    }
    let training_bytes: usize = corpus.training.iter().map(String::len).sum();
    let vocab_size = CONFIG.vocab_size;
    let tokenizer = vocabulary::train(&corpus.training, vocab_size, &model_dir.join("tokenizer.json"))?;
    let stream = vocabulary::encode_stream(&tokenizer, &corpus.training)?;
    let held_out = vocabulary::encode(&tokenizer, &corpus.held_out)?;
    ensure!(stream.len() > options.seqlen, "the training text is shorter than a window");

    let counts = evaluate::counts(stream.iter().copied(), vocab_size);
    let unigram = evaluate::unigram_perplexity(&counts, 1.0, &held_out, options.seqlen);
    let own_counts = evaluate::counts(evaluate::scored(&held_out, options.seqlen), vocab_size);
    let own_unigram = evaluate::unigram_perplexity(&own_counts, 0.0, &held_out, options.seqlen);
    let network = Network::new(CONFIG, options.seed)?;
    println!(
        "training text {training_bytes} bytes = {} tokens; held-out text {} bytes = {} tokens; \
         {} weights\nunigram perplexity of the held-out tokens: {unigram:.1} with training counts, \
         {own_unigram:.1} with their own",
        stream.len(),
        corpus.held_out.len(),
        held_out.len(),
        network.weights()
    );

    let state_path = options.out.join("training-state.safetensors");
    let fingerprint = options.fingerprint();
    let (mut optimizer, elapsed_s) = match state::load(&state_path, network.parameters(), &fingerprint)? {
        Some((optimizer, progress)) => {
            println!("resuming after step {} and {:.0} s", progress.step, progress.elapsed_s);
            (optimizer, progress.elapsed_s)
        }
        None => (AdamW::new(network.parameters()), 0.0),
    };
    let recipe = Recipe {
        batch: options.batch,
        length: options.seqlen,
        dropout: options.dropout,
        threads: options.threads,
        seed: options.seed,
    };
    let schedule = Schedule {
        peak: options.learning_rate,
        final_fraction: 0.02,
        warm_up_steps: 200.min(options.steps / 10),
        steps: options.steps,
        seconds: options.minutes.map(|minutes| minutes * 60.0),
    };
    let save = |optimizer: &AdamW, elapsed_s| {
        let progress = Progress { step: optimizer.step, elapsed_s, options: fingerprint.clone() };
        state::save(&state_path, network.parameters(), optimizer, &progress)
    };
    let watch = Watch { held_out: &held_out, unigram, every_steps: options.eval_every, save: &save };
    let training_s = training::train(&network, &stream, &recipe, &schedule, &mut optimizer, elapsed_s, &watch)?;
    save(&optimizer, training_s)?;

    export::round_to_bf16(&network)?;
    let model_bytes = export::write(&network, &model_dir)?;
    let perplexity = evaluate::perplexity(&network, &held_out, options.seqlen)?;
    export::halve_by_magnitude(&network)?;
    let halved = evaluate::perplexity(&network, &held_out, options.seqlen)?;
    let facts = card::Facts {
        weights: network.weights(),
        model_bytes,
        training_bytes,
        training_tokens: stream.len(),
        held_out_bytes: corpus.held_out.len(),
        held_out_windows: evaluate::windows(&held_out, options.seqlen).len(),
        steps: optimizer.step,
        step_tokens: options.batch * options.seqlen,
        seqlen: options.seqlen,
        training_s,
        options: fingerprint,
        perplexity,
        unigram,
        own_unigram,
        halved,
    };
    let card_path = model_dir.join("README.md");
    std::fs::write(&card_path, card::render(&CONFIG, &facts))
        .with_context(|| format!("writing `{}`", card_path.display()))?;
    println!("{}", facts.summary());
    std::fs::remove_file(&state_path).with_context(|| format!("removing the finished run's `{}`", state_path.display()))
}
