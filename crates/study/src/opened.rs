//! A model of a study with its windows, checked against the plan before anything is computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fedprune_checkpoint::Checkpoint;
use fedprune_mask::Digest;
use fedprune_model::{Decoder, ModelError, Tokenizer, WindowRequest, Windows, calibration_windows, evaluation_windows};

use crate::bench::{Bench, SiloWindows, uses_text};
use crate::error::StudyError;
use crate::plan::{At, Named, Plan, PlanError};
use crate::results::{EvaluationFacts, ModelFacts, Silos, Split};
use crate::run::RunOptions;

/// One model with everything that its part of the study needs.
pub(crate) struct Opened {
    name: String,
    checkpoint: Checkpoint,
    decoder: Decoder,
    digest: Digest,
    evaluation: Vec<Vec<u32>>,
    evaluation_files: Vec<String>,
    windows: DrawnWindows,
}

/// Windows by seed, silo and split: as many as any point needs.
type DrawnWindows = BTreeMap<(u64, usize, Split), Vec<Vec<u32>>>;

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

fn at(line: usize) -> impl Fn(ModelError) -> StudyError {
    move |error| PlanError::at(line, chain(&error)).into()
}

impl Opened {
    /// Opens a model and draws all windows.
    ///
    /// # Errors
    /// [`StudyError::Plan`], naming the line, for a model, a text or a grid that cannot be used.
    pub fn open(plan: &Plan, model: &At<Named<PathBuf>>, options: &RunOptions<'_>) -> Result<Self, StudyError> {
        let checkpoint =
            Checkpoint::open(&model.value.place).map_err(|error| PlanError::at(model.line, chain(&error)))?;
        for point in &plan.points {
            for group in [point.from.local_group, point.together.global_group] {
                let fits = checkpoint.layout().check_group(group);
                fits.map_err(|error| PlanError::at(point.line, format!("`{}`: {error}", model.value.name)))?;
            }
        }
        let tokenizer = Tokenizer::open(checkpoint.dir()).map_err(at(model.line))?;
        let wanted = &plan.evaluation.value;
        let evaluation = evaluation_windows(
            checkpoint.config(),
            &tokenizer,
            &wanted.data,
            &wanted.field,
            wanted.sequence_tokens,
            wanted.max_windows,
        )
        .map_err(at(plan.evaluation.line))?;
        let windows = draw(plan, &checkpoint, &tokenizer)?;
        let decoder = (options.decoder)(&checkpoint, plan.sequence_tokens.max(wanted.sequence_tokens))?;
        let digest = checkpoint.content_digest(&|_| ());
        let evaluation_files = evaluation.used_files().map(file_name).collect();
        let name = model.value.name.clone();
        Ok(Self { name, checkpoint, decoder, digest, evaluation: evaluation.windows, evaluation_files, windows })
    }

    /// The bench that this model is measured on.
    pub fn bench<'b>(&'b self, progress: &'b dyn Fn(u64) -> Result<(), StudyError>) -> Bench<'b> {
        Bench {
            checkpoint: &self.checkpoint,
            decoder: &self.decoder,
            model: self.digest,
            evaluation: &self.evaluation,
            progress,
        }
    }

    /// Windows of one silo.
    pub fn windows(&self, plan: &Plan, seed: u64, silo: usize, from: &Silos) -> SiloWindows {
        let (_, before) = plan.windows_of(seed, silo, from.split, from.samples);
        let all = self.windows.get(&(seed, silo, from.split)).map_or(&[][..], Vec::as_slice);
        SiloWindows::new(all.iter().skip(before).take(from.samples).cloned().collect())
    }

    /// Decoder blocks.
    pub fn blocks(&self) -> usize {
        self.checkpoint.layout().blocks()
    }

    /// Tokens that perplexity is measured on.
    pub fn evaluation_tokens(&self) -> u64 {
        self.evaluation.iter().map(|window| window.len() as u64).sum()
    }

    /// Tokens through a block as units of work.
    pub fn units(&self, tokens: u64) -> u64 {
        let layout = self.checkpoint.layout();
        let block = layout.weights() / (layout.blocks() as u64).max(1);
        tokens.saturating_mul(block) >> 10
    }

    /// What the results say about the model and what it is measured on.
    pub fn facts(&self) -> (ModelFacts, EvaluationFacts) {
        let layout = self.checkpoint.layout();
        let model = ModelFacts {
            name: self.name.clone(),
            digest: self.digest,
            parameters: self.checkpoint.parameters(),
            prunable_weights: layout.weights(),
            packed_bytes: layout.packed_bytes(),
            blocks: layout.blocks(),
        };
        let evaluation = EvaluationFacts {
            files: self.evaluation_files.clone(),
            windows: self.evaluation.len(),
            sequence_tokens: self.evaluation.first().map_or(0, Vec::len),
        };
        (model, evaluation)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Draws the windows of every silo, with every seed.
fn draw(plan: &Plan, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<DrawnWindows, StudyError> {
    let mut needed: BTreeMap<(usize, Split), (usize, usize)> = BTreeMap::new();
    for point in plan.points.iter().filter(|point| uses_text(point.from.pruner)) {
        for silo in 0..point.from.silos {
            let (_, before) = plan.windows_of(0, silo, point.from.split, point.from.samples);
            let windows = before + point.from.samples;
            let most = needed.entry((silo, point.from.split)).or_insert((0, point.line));
            if windows > most.0 {
                *most = (windows, point.line);
            }
        }
    }
    let all: Vec<PathBuf> = plan.silos.iter().flat_map(|silo| silo.value.place.iter().cloned()).collect();
    let mut drawn = BTreeMap::new();
    for ((silo, split), (samples, line)) in needed {
        let Some(text) = plan.silos.get(silo % plan.silos.len()) else { continue };
        let (data, text_line) = match split {
            Split::Different => (&text.value.place, text.line),
            Split::Identical => (&all, line),
        };
        for seed in &plan.seeds {
            let (sampling, _) = plan.windows_of(*seed, silo, split, samples);
            let request = WindowRequest {
                samples,
                minimum_samples: samples,
                bos: plan.bos,
                sequence_tokens: plan.sequence_tokens,
                sampling,
                field: plan.evaluation.value.field.clone(),
            };
            let windows = calibration_windows(checkpoint.config(), tokenizer, data, &request).map_err(at(text_line))?;
            if !plan.sequential {
                check_enough(plan, split, silo, &windows)?;
            }
            drawn.insert((*seed, silo, split), windows.windows);
        }
    }
    Ok(drawn)
}

/// Silos with the same text are different silos only as long as it has windows for all of them.
fn check_enough(plan: &Plan, split: Split, silo: usize, windows: &Windows) -> Result<(), StudyError> {
    let tokens = plan.sequence_tokens as u64;
    let there: u64 = windows.documents.iter().map(|document| document.tokens / tokens).sum();
    for point in plan.points.iter().filter(|point| point.from.split == split && silo < point.from.silos) {
        let sharing = match split {
            Split::Different => (point.from.silos - silo % plan.silos.len()).div_ceil(plan.silos.len()),
            Split::Identical => point.from.silos,
        };
        let needed = sharing as u64 * point.from.samples as u64;
        if needed > there {
            let problem = format!(
                "{} silos with {} windows of {tokens} tokens each share a text that has {there} windows; use fewer silos, \
                 fewer or shorter windows, or more text",
                sharing, point.from.samples
            );
            return Err(PlanError::at(point.line, problem).into());
        }
    }
    Ok(())
}
