//! What a study is, as people write it: TOML, read strictly, expanded into every combination that is asked for.
//!
//! ```toml
//! name = "example"
//! sequence_tokens = 128          # of each calibration window
//! seeds = [0, 1, 2]              # each draws other windows
//!
//! [[model]]
//! name = "small"
//! path = "../model"              # relative to this file, as all paths
//!
//! [evaluation]
//! data = ["../held_out.txt"]
//! sequence_tokens = 256
//! max_windows = 32
//!
//! [[silo]]
//! name = "north"
//! data = ["../north.txt"]
//!
//! [[grid]]                       # all combinations of what is listed; a study may have several grids
//! silos = [4]
//! split = ["different"]          # or "identical": all draw from all texts
//! samples = [2]                  # calibration windows of a silo
//! sparsity = ["0.5", "2:4"]      # a pattern is its own group, whatever groups are listed
//! pruner = ["wanda", "magnitude"]
//! local_group = ["row", "layer"]
//! global_group = ["layer"]
//! scaling = ["none"]             # or "support"
//! strategy = ["one-shot"]        # or "iterative"
//! baselines = true               # each silo alone, and all texts in one place
//! ```
//!
//! Where there are more silos than texts, silo i has text i modulo their number, and windows of its own. Nothing here
//! opens a file.

use std::path::{Path, PathBuf};

use fedprune_mask::score::Pruner;
use fedprune_mask::{Group, Sparsity};
use fedprune_model::{Bos, Sampling};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;

use crate::results::{Scaling, Silos, Split, Strategy, Together};

/// Most bytes of a study's document.
pub const DOCUMENT_LIMIT: usize = 256 << 10;
/// Most silos in one federation.
pub const MAX_SILOS: usize = 64;
/// Most combinations in one study, baselines and seeds not counted.
pub const MAX_POINTS: usize = 10_000;
/// Most seeds.
pub const MAX_SEEDS: usize = 64;
/// Most models, texts and grids, each.
pub const MAX_ENTRIES: usize = 256;
/// Most calibration windows of a silo.
pub const MAX_SAMPLES: usize = 1 << 16;
/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Something with the line that it stands in, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// What.
    pub value: T,
    /// Where.
    pub line: usize,
}

/// A named path or list of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T> {
    /// What it is called.
    pub name: String,
    /// Where it lies.
    pub place: T,
}

/// What perplexity is measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluation {
    /// Files and folders.
    pub data: Vec<PathBuf>,
    /// Tokens of each window.
    pub sequence_tokens: usize,
    /// Windows at most; all, if absent.
    pub max_windows: Option<usize>,
    /// Field of `.jsonl` records.
    pub field: String,
}

/// One federation that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Who, and how each prunes.
    pub from: Silos,
    /// How their ballots become one mask.
    pub together: Together,
    /// Whether each silo alone and all texts in one place are measured too.
    pub baselines: bool,
    /// Line of its grid.
    pub line: usize,
}

/// A study, checked as far as it can be without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it is called.
    pub name: String,
    /// Tokens of each calibration window.
    pub sequence_tokens: usize,
    /// Seeds of the windows; one that means nothing if they are taken in order.
    pub seeds: Vec<u64>,
    /// Whether windows are drawn or taken in order.
    pub sequential: bool,
    /// Where the token that begins a sequence goes.
    pub bos: Bos,
    /// The models.
    pub models: Vec<At<Named<PathBuf>>>,
    /// What perplexity is measured on.
    pub evaluation: At<Evaluation>,
    /// The texts.
    pub silos: Vec<At<Named<Vec<PathBuf>>>>,
    /// Every combination, each once, in the order of the grids.
    pub points: Vec<Point>,
}

/// Why a text is no study.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Larger than any study's document.
    #[error("it has {0} bytes, more than the {DOCUMENT_LIMIT} allowed; give the study itself")]
    TooLarge(usize),
    /// Something in it, with its line.
    #[error("line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl PlanError {
    pub(crate) fn at(line: usize, problem: impl Into<String>) -> Self {
        Self::Line { line, problem: problem.into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: Spanned<String>,
    sequence_tokens: Spanned<usize>,
    seeds: Option<Spanned<Vec<u64>>>,
    sampling: Option<Spanned<String>>,
    bos: Option<Spanned<String>>,
    model: Vec<Spanned<ModelDocument>>,
    evaluation: Spanned<EvaluationDocument>,
    silo: Vec<Spanned<SiloDocument>>,
    grid: Vec<Spanned<GridDocument>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelDocument {
    name: String,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluationDocument {
    data: Vec<PathBuf>,
    sequence_tokens: usize,
    max_windows: Option<usize>,
    field: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiloDocument {
    name: String,
    data: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GridDocument {
    silos: List<usize>,
    split: Option<List<String>>,
    samples: List<usize>,
    sparsity: List<String>,
    pruner: Option<List<String>>,
    local_group: Option<List<String>>,
    global_group: Option<List<String>>,
    scaling: Option<List<String>>,
    strategy: Option<List<String>>,
    #[serde(default = "yes")]
    baselines: bool,
}

type List<T> = Spanned<Vec<Spanned<T>>>;

fn yes() -> bool {
    true
}

/// Finds lines in a text.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of_byte(&self, byte: usize) -> usize {
        self.0.as_bytes().get(..byte).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn of<T>(&self, spanned: &Spanned<T>) -> usize {
        self.of_byte(spanned.span().start)
    }

    /// The values of a list, each as what `read` makes of it.
    fn read<T, U>(
        &self,
        list: &List<T>,
        what: &str,
        read: impl Fn(&T) -> Result<U, String>,
    ) -> Result<Vec<At<U>>, PlanError> {
        if list.get_ref().is_empty() {
            return Err(PlanError::at(self.of(list), format!("`{what}` lists nothing; give at least one")));
        }
        let one = |value: &Spanned<T>| {
            let line = self.of(value);
            let read = read(value.get_ref()).map_err(|problem| PlanError::at(line, format!("`{what}`: {problem}")))?;
            Ok(At { value: read, line })
        };
        list.get_ref().iter().map(one).collect()
    }

    /// As [`Lines::read`], of names; the default if there is no list.
    fn read_or<U: Clone>(
        &self,
        list: Option<&List<String>>,
        what: &str,
        default: U,
        grid: usize,
        read: impl Fn(&str) -> Result<U, String>,
    ) -> Result<Vec<At<U>>, PlanError> {
        match list {
            Some(list) => self.read(list, what, |name: &String| read(name)),
            None => Ok(vec![At { value: default, line: grid }]),
        }
    }
}

/// A name that `serde` knows, such as a [`Split`].
fn known<T: DeserializeOwned>(names: &'static str) -> impl Fn(&str) -> Result<T, String> {
    move |name| {
        let value = serde_json::Value::String(name.to_owned());
        serde_json::from_value(value).map_err(|_| format!("`{}` is not known here; use {names}", shortened(name)))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(200).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn parsed<T: std::str::FromStr>(name: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    name.parse().map_err(|error: T::Err| error.to_string())
}

/// A sparsity with the group that it fixes, if it is a pattern.
#[derive(Clone, Copy)]
struct Budget {
    sparsity: Sparsity,
    pattern: Option<Group>,
}

impl Budget {
    fn read(name: &str) -> Result<Self, String> {
        if !name.contains(':') {
            return Ok(Self { sparsity: parsed(name)?, pattern: None });
        }
        let pattern: Group = parsed(name)?;
        let sparsity = pattern.fixed_sparsity().ok_or_else(|| format!("`{}` fixes no sparsity", shortened(name)))?;
        Ok(Self { sparsity, pattern: Some(pattern) })
    }
}

impl Plan {
    /// Reads a study whose paths are relative to `folder`.
    ///
    /// # Errors
    /// [`PlanError`], naming the line.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, PlanError> {
        if text.len() > DOCUMENT_LIMIT {
            return Err(PlanError::TooLarge(text.len()));
        }
        let lines = Lines(text);
        let document: Document = toml::from_str(text).map_err(|error| {
            PlanError::at(lines.of_byte(error.span().map_or(0, |span| span.start)), shortened(error.message()))
        })?;
        let name_line = lines.of(&document.name);
        check_name(document.name.get_ref(), name_line)?;
        let (sequential, seeds) = windows(&lines, &document)?;
        let bos = match &document.bos {
            None => Bos::EachText,
            Some(bos) => match bos.get_ref().as_str() {
                "none" => Bos::None,
                "each-text" => Bos::EachText,
                "each-window" => Bos::EachWindow,
                other => {
                    let problem =
                        format!("`bos`: `{}` is not known here; use none, each-text or each-window", shortened(other));
                    return Err(PlanError::at(lines.of(bos), problem));
                }
            },
        };
        let length_line = lines.of(&document.sequence_tokens);
        let sequence_tokens = document.sequence_tokens.into_inner();
        if sequence_tokens == 0 {
            return Err(PlanError::at(length_line, "`sequence_tokens` is 0; windows have at least one token"));
        }
        for (what, entries) in
            [("model", document.model.len()), ("silo", document.silo.len()), ("grid", document.grid.len())]
        {
            if entries == 0 || entries > MAX_ENTRIES {
                let problem = format!("it has {entries} entries `[[{what}]]`; give 1 to {MAX_ENTRIES}");
                return Err(PlanError::at(name_line, problem));
            }
        }
        let placed = |paths: Vec<PathBuf>, line: usize| match paths.is_empty() {
            true => Err(PlanError::at(line, "`data` lists nothing; give at least one file or folder")),
            false => Ok(paths.into_iter().map(|path| folder.join(path)).collect::<Vec<_>>()),
        };
        let mut models = Vec::new();
        for model in document.model {
            let line = lines.of(&model);
            let ModelDocument { name, path } = model.into_inner();
            check_name(&name, line)?;
            models.push(At { value: Named { name, place: folder.join(path) }, line });
        }
        check_names(models.iter().map(|model| (&model.value.name, model.line)))?;
        let mut silos = Vec::new();
        for silo in document.silo {
            let line = lines.of(&silo);
            let SiloDocument { name, data } = silo.into_inner();
            check_name(&name, line)?;
            silos.push(At { value: Named { name, place: placed(data, line)? }, line });
        }
        check_names(silos.iter().map(|silo| (&silo.value.name, silo.line)))?;
        let line = lines.of(&document.evaluation);
        let EvaluationDocument { data, sequence_tokens: tokens, max_windows, field } = document.evaluation.into_inner();
        if tokens < 2 || max_windows == Some(0) {
            let problem = "perplexity needs windows of at least 2 tokens, and at least one of them";
            return Err(PlanError::at(line, problem));
        }
        let field = field.unwrap_or_else(|| "text".to_owned());
        let value = Evaluation { data: placed(data, line)?, sequence_tokens: tokens, max_windows, field };
        let evaluation = At { value, line };
        let mut points: Vec<Point> = Vec::new();
        for grid in &document.grid {
            expand(&lines, grid, sequential, &mut points)?;
        }
        let name = document.name.into_inner();
        Ok(Self { name, sequence_tokens, seeds, sequential, bos, models, evaluation, silos, points })
    }

    /// Which windows silo `index` takes of its text with one of the seeds, and how many before them belong to other
    /// silos with the same text.
    ///
    /// Drawn windows begin at seed · 2^16 + the silo's index.
    pub fn windows_of(&self, seed: u64, silo: usize, split: Split, samples: usize) -> (Sampling, usize) {
        let before = match split {
            Split::Different => silo / self.silos.len(),
            Split::Identical => silo,
        };
        match self.sequential {
            true => (Sampling::Sequential, before * samples),
            false => (Sampling::Random { seed: (seed << 16) | silo as u64 }, 0),
        }
    }
}

/// How windows are chosen, and the seeds.
fn windows(lines: &Lines<'_>, document: &Document) -> Result<(bool, Vec<u64>), PlanError> {
    let sequential = match &document.sampling {
        None => false,
        Some(sampling) => match sampling.get_ref().as_str() {
            "random" => false,
            "sequential" => true,
            other => {
                let problem = format!("`sampling`: `{}` is not known here; use random or sequential", shortened(other));
                return Err(PlanError::at(lines.of(sampling), problem));
            }
        },
    };
    let Some(listed) = &document.seeds else { return Ok((sequential, vec![0])) };
    let (line, seeds) = (lines.of(listed), listed.get_ref().clone());
    if sequential && seeds.len() > 1 {
        return Err(PlanError::at(line, "windows in order are the same for every seed; drop `seeds`, or draw them"));
    }
    if seeds.is_empty() || seeds.len() > MAX_SEEDS {
        return Err(PlanError::at(line, format!("there are {} seeds; give 1 to {MAX_SEEDS}", seeds.len())));
    }
    if let Some(seed) = seeds.iter().find(|seed| **seed >= 1 << 47) {
        return Err(PlanError::at(line, format!("seed {seed} is too large; use seeds below 2^47")));
    }
    if (1..seeds.len()).any(|at| seeds[..at].contains(&seeds[at])) {
        return Err(PlanError::at(line, "a seed is there twice; each draws other windows"));
    }
    Ok((sequential, seeds))
}

/// Adds every combination of a grid that is not there yet.
fn expand(
    lines: &Lines<'_>,
    grid: &Spanned<GridDocument>,
    sequential: bool,
    points: &mut Vec<Point>,
) -> Result<(), PlanError> {
    let (line, lists) = (lines.of(grid), grid.get_ref());
    let bounded = |least: usize, most: usize| {
        move |count: &usize| match (least..=most).contains(count) {
            true => Ok(*count),
            false => Err(format!("{count} is not between {least} and {most}")),
        }
    };
    let silos = lines.read(&lists.silos, "silos", bounded(2, MAX_SILOS))?;
    let samples = lines.read(&lists.samples, "samples", bounded(1, MAX_SAMPLES))?;
    let splits =
        lines.read_or(lists.split.as_ref(), "split", Split::Different, line, known("different or identical"))?;
    let budgets = lines.read(&lists.sparsity, "sparsity", |name: &String| Budget::read(name))?;
    let pruners = lines.read_or(lists.pruner.as_ref(), "pruner", Pruner::WANDA, line, parsed)?;
    let locals = lines.read_or(lists.local_group.as_ref(), "local_group", Group::Row, line, parsed)?;
    let globals = lines.read_or(lists.global_group.as_ref(), "global_group", Group::Layer, line, parsed)?;
    let scalings = lines.read_or(lists.scaling.as_ref(), "scaling", Scaling::None, line, known("none or support"))?;
    let strategies =
        lines.read_or(lists.strategy.as_ref(), "strategy", Strategy::OneShot, line, known("one-shot or iterative"))?;
    if let Some(split) = splits.iter().find(|split| sequential && split.value == Split::Identical) {
        return Err(PlanError::at(
            split.line,
            "silos with identical text draw their windows; use sampling = \"random\"",
        ));
    }
    let lengths = [
        silos.len(),
        splits.len(),
        samples.len(),
        budgets.len(),
        pruners.len(),
        locals.len(),
        globals.len(),
        scalings.len(),
        strategies.len(),
    ];
    let combinations = lengths.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
    if combinations.is_none_or(|combinations| combinations > MAX_POINTS) {
        return Err(PlanError::at(
            line,
            format!("this grid has more than {MAX_POINTS} combinations; drop some values"),
        ));
    }
    for (silos, split, samples) in triples(&silos, &splits, &samples) {
        for (budget, pruner, local) in triples(&budgets, &pruners, &locals) {
            for (global, scaling, strategy) in triples(&globals, &scalings, &strategies) {
                let local_group = budget.value.pattern.unwrap_or(local.value);
                let global_group = budget.value.pattern.unwrap_or(global.value);
                let sparsity = local_group
                    .with_sparsity(budget.value.sparsity)
                    .map_err(|error| PlanError::at(local.line, error.to_string()))?;
                local_group
                    .check_global(global_group)
                    .map_err(|error| PlanError::at(global.line, error.to_string()))?;
                global_group.with_sparsity(sparsity).map_err(|error| PlanError::at(global.line, error.to_string()))?;
                if scaling.value == Scaling::Support && strategy.value == Strategy::Iterative {
                    // a node refuses such a round too
                    continue;
                }
                let from = Silos {
                    silos: silos.value,
                    split: split.value,
                    samples: samples.value,
                    sparsity,
                    pruner: pruner.value,
                    local_group,
                };
                let together = Together { global_group, scaling: scaling.value, strategy: strategy.value };
                match points.iter_mut().find(|point| (point.from, point.together) == (from, together)) {
                    Some(point) => point.baselines |= lists.baselines,
                    None => points.push(Point { from, together, baselines: lists.baselines, line }),
                }
                if points.len() > MAX_POINTS {
                    let problem = format!("the grids have more than {MAX_POINTS} combinations; drop some values");
                    return Err(PlanError::at(line, problem));
                }
            }
        }
    }
    Ok(())
}

fn triples<'a, A, B, C>(a: &'a [A], b: &'a [B], c: &'a [C]) -> impl Iterator<Item = (&'a A, &'a B, &'a C)> {
    a.iter().flat_map(move |a| b.iter().flat_map(move |b| c.iter().map(move |c| (a, b, c))))
}

/// Names become columns and captions.
fn check_name(name: &str, line: usize) -> Result<(), PlanError> {
    if (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.chars().all(|char| char.is_alphanumeric() || "-_. ".contains(char))
    {
        return Ok(());
    }
    let problem = format!(
        "`{}` is no name here: use 1 to {MAX_NAME_BYTES} bytes of letters, digits, spaces and `-_.`",
        shortened(name)
    );
    Err(PlanError::at(line, problem))
}

fn check_names<'a>(names: impl Iterator<Item = (&'a String, usize)>) -> Result<(), PlanError> {
    let mut seen: Vec<&String> = Vec::new();
    for (name, line) in names {
        if seen.contains(&name) {
            return Err(PlanError::at(line, format!("there is a `{name}` already")));
        }
        seen.push(name);
    }
    Ok(())
}
