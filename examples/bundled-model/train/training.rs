//! The training loop: random windows, gradients of several threads, one step of AdamW.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::evaluate;
use crate::network::{Dropout, Network};
use crate::ops;
use crate::optimizer::AdamW;
use crate::random;
use crate::schedule::Schedule;
use crate::vocabulary::BEGIN_ID;

/// Steps between lines of progress.
const REPORT_STEPS: u64 = 50;
/// One window in this many begins with the token that begins a text.
const BEGIN_EVERY: usize = 16;

const PURPOSE_WINDOW: u64 = 1;
const PURPOSE_BEGIN: u64 = 2;
const PURPOSE_DROPOUT: u64 = 3;

/// One step in this many has windows of the full length; the others have twice as many of half the
/// length, which cost less attention and teach nearly as much.
const FULL_LENGTH_EVERY: u64 = 4;

/// What one step is made of.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Windows of a step of full length.
    pub batch: usize,
    /// Tokens of a full window.
    pub length: usize,
    /// Probability of dropout on embeddings and branches.
    pub dropout: f64,
    /// Threads; each takes an equal share of the windows.
    pub threads: usize,
    /// Key of everything random.
    pub seed: u64,
}

impl Recipe {
    /// Windows of the step numbered `step`, and the tokens of each.
    fn windows(&self, step: u64) -> (usize, usize) {
        if !self.length.is_multiple_of(2) || (step + 1).is_multiple_of(FULL_LENGTH_EVERY) {
            (self.batch, self.length)
        } else {
            (2 * self.batch, self.length / 2)
        }
    }
}

/// Windows of one thread.
struct Share {
    length: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    dropout: Option<Dropout>,
}

/// The windows of step `step`, dealt to the threads: a function of the seed and the step alone.
fn shares(stream: &[u32], recipe: &Recipe, step: u64) -> Vec<Share> {
    let key = random::derive(recipe.seed, step);
    let (windows, begins) = (random::derive(key, PURPOSE_WINDOW), random::derive(key, PURPOSE_BEGIN));
    let (batch, length) = recipe.windows(step);
    let per_thread = batch.div_ceil(recipe.threads);
    (0..recipe.threads)
        .map(|thread| {
            let range = thread * per_thread..batch.min((thread + 1) * per_thread);
            let dropout = Dropout { rate: recipe.dropout, key: random::derive(key, PURPOSE_DROPOUT + thread as u64) };
            let (mut inputs, mut targets) = (Vec::new(), Vec::new());
            for window in range {
                let start = random::below(windows, window as u64, stream.len() - length);
                let at = inputs.len();
                inputs.extend(&stream[start..start + length]);
                targets.extend(&stream[start + 1..start + 1 + length]);
                if random::below(begins, window as u64, BEGIN_EVERY) == 0 {
                    inputs[at] = BEGIN_ID;
                }
            }
            Share { length, inputs, targets, dropout: (recipe.dropout > 0.0).then_some(dropout) }
        })
        .filter(|share| !share.inputs.is_empty())
        .collect()
}

/// The mean loss of a share and its gradients in the network's order, both times `weight`.
fn gradients(network: &Network, share: Share, weight: f64) -> Result<(f64, Vec<Vec<f32>>)> {
    let logits = network.logits(&share.inputs, share.length, share.dropout)?;
    let loss = (ops::cross_entropy(&logits, share.targets.into())? * weight)?;
    let mut store = loss.backward()?;
    let gradients = network
        .parameters()
        .iter()
        .map(|parameter| {
            let gradient =
                store.remove(&parameter.var).with_context(|| format!("no gradient reaches `{}`", parameter.name))?;
            Ok(gradient.flatten_all()?.to_vec1::<f32>()?)
        })
        .collect::<Result<_>>()?;
    Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
}

/// The mean loss of step `step` and its gradients, the threads' added in their order.
fn step_gradients(network: &Network, stream: &[u32], recipe: &Recipe, step: u64) -> Result<(f64, Vec<Vec<f32>>)> {
    let tokens = (recipe.batch * recipe.length) as f64;
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = shares(stream, recipe, step)
            .into_iter()
            .map(|share| {
                let weight = share.targets.len() as f64 / tokens;
                scope.spawn(move || gradients(network, share, weight))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut total: Option<(f64, Vec<Vec<f32>>)> = None;
    for result in results {
        let (loss, gradients) = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let Some((total_loss, total_gradients)) = &mut total else {
            total = Some((loss, gradients));
            continue;
        };
        *total_loss += loss;
        for (sum, gradient) in total_gradients.iter_mut().zip(&gradients) {
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    }
    total.context("a step has no windows")
}

/// What the run is measured by while it goes on.
pub struct Watch<'a> {
    /// Held-out tokens.
    pub held_out: &'a [u32],
    /// Their unigram perplexity, printed beside the network's.
    pub unigram: f64,
    /// Steps between evaluations, and between saved states.
    pub every_steps: u64,
    /// Saves the state, given the optimizer and the seconds spent so far.
    pub save: &'a dyn Fn(&AdamW, f64) -> Result<()>,
}

/// Trains until the schedule ends and returns the seconds spent, the `elapsed_s` of earlier runs
/// included.
///
/// Errors: a gradient that is not finite, a state that cannot be saved.
pub fn train(
    network: &Network,
    stream: &[u32],
    recipe: &Recipe,
    schedule: &Schedule,
    optimizer: &mut AdamW,
    elapsed_s: f64,
    watch: &Watch<'_>,
) -> Result<f64> {
    let started = Instant::now();
    let elapsed = || elapsed_s + started.elapsed().as_secs_f64();
    let first_step = optimizer.step;
    let (mut losses, mut reported) = (Vec::new(), Instant::now());
    while schedule.progress(optimizer.step, elapsed()) < 1.0 {
        let rate = schedule.learning_rate(optimizer.step, elapsed());
        let (loss, gradients) = step_gradients(network, stream, recipe, optimizer.step)?;
        let length = optimizer.update(network.parameters(), &gradients, rate)?;
        losses.push(loss);

        let step = optimizer.step;
        if step.is_multiple_of(REPORT_STEPS) {
            let tokens = (losses.len() * recipe.batch * recipe.length) as f64;
            let per_s = tokens / reported.elapsed().as_secs_f64();
            let progress = schedule.progress(step, elapsed());
            let here = progress - schedule.progress(first_step, elapsed_s);
            let left_s = started.elapsed().as_secs_f64() * (1.0 - progress) / here.max(1e-9);
            println!(
                "step {step:>6}  {:>5.1} %  loss {:.4}  gradient {length:.2}  rate {rate:.2e}  \
                 {per_s:.0} tokens/s  ETA {:.0} min {:02.0} s",
                progress * 100.0,
                losses.iter().sum::<f64>() / losses.len() as f64,
                (left_s / 60.0).floor(),
                left_s % 60.0,
            );
            losses.clear();
            reported = Instant::now();
        }
        if step.is_multiple_of(watch.every_steps) {
            let perplexity = evaluate::perplexity(network, watch.held_out, recipe.length)?;
            println!(
                "step {step:>6}  held-out perplexity {perplexity:.2} = {:.1} % of the unigram's {:.1}",
                100.0 * perplexity / watch.unigram,
                watch.unigram
            );
            (watch.save)(optimizer, elapsed())?;
            reported = Instant::now();
        }
        std::io::stdout().flush()?;
    }
    Ok(elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{self, Progress};

    const RECIPE: Recipe = Recipe { batch: 5, length: 8, dropout: 0.0, threads: 2, seed: 3 };

    #[test]
    fn the_windows_depend_on_seed_and_step_but_not_on_threads() {
        let stream: Vec<u32> = (0..200).collect();
        let inputs = |recipe: &Recipe, step| -> Vec<u32> {
            shares(&stream, recipe, step).into_iter().flat_map(|share| share.inputs).collect()
        };
        assert_eq!(inputs(&RECIPE, 0).len(), 40);
        assert_eq!((RECIPE.windows(2), RECIPE.windows(3)), ((10, 4), (5, 8)));
        assert_eq!(inputs(&RECIPE, 4), inputs(&Recipe { threads: 1, ..RECIPE }, 4));
        assert_eq!(inputs(&RECIPE, 4), inputs(&Recipe { threads: 8, ..RECIPE }, 4));
        assert_ne!(inputs(&RECIPE, 4), inputs(&RECIPE, 5));
        assert_ne!(inputs(&RECIPE, 4), inputs(&Recipe { seed: 4, ..RECIPE }, 4));
    }

    #[test]
    fn a_resumed_run_is_the_run_that_never_stopped() {
        let stream: Vec<u32> = (0..300).map(|i| random::below(8, i, 31) as u32).collect();
        let config = crate::network::TINY;
        let recipe = Recipe { dropout: 0.2, ..RECIPE };
        let run = |network: &Network, optimizer: &mut AdamW, steps| {
            let schedule = Schedule { peak: 0.01, final_fraction: 1.0, warm_up_steps: 1, steps, seconds: None };
            let watch = Watch { held_out: &stream, unigram: 1.0, every_steps: 1000, save: &|_, _| Ok(()) };
            train(network, &stream, &recipe, &schedule, optimizer, 0.0, &watch).unwrap();
        };
        let weights = |network: &Network| -> Vec<Vec<f32>> {
            let flat = network.parameters().iter().map(|p| p.var.flatten_all().unwrap());
            flat.map(|tensor| tensor.to_vec1().unwrap()).collect()
        };
        let whole = Network::new(config, 1).unwrap();
        run(&whole, &mut AdamW::new(whole.parameters()), 5);

        let path = std::env::temp_dir().join(format!("fedprune-resume-{}.safetensors", std::process::id()));
        let first = Network::new(config, 1).unwrap();
        let mut optimizer = AdamW::new(first.parameters());
        run(&first, &mut optimizer, 2);
        let progress = Progress { step: 2, elapsed_s: 1.5, options: "a".into() };
        state::save(&path, first.parameters(), &optimizer, &progress).unwrap();

        let second = Network::new(config, 77).unwrap();
        assert!(state::load(&path, second.parameters(), "b").is_err());
        let (mut optimizer, loaded) = state::load(&path, second.parameters(), "a").unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(state::load(&path, second.parameters(), "a").unwrap().is_none());
        assert_eq!(loaded, progress);
        run(&second, &mut optimizer, 5);
        assert_eq!(weights(&whole), weights(&second));
        assert_ne!(weights(&whole), weights(&first));
    }

    #[test]
    fn a_target_is_the_next_token() {
        let stream: Vec<u32> = (0..200).collect();
        for share in shares(&stream, &RECIPE, 9) {
            for (input, target) in share.inputs.iter().zip(&share.targets) {
                assert!(*input == BEGIN_ID || input + 1 == *target);
            }
        }
    }
}
