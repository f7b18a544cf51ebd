//! `fedprune study`: the paper's comparison on one's own model and text.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_model::{ComputeDType, Decoder};
use fedprune_study::results::Method;
use fedprune_study::{Plan, Results, RunOptions, StudyError};
use serde::Serialize;

use crate::args::{DeviceOptions, StudyReportOptions, StudyRunOptions};
use crate::files::{folder_of, program, read_small, shell};
use crate::interrupt;
use crate::output::{count, facts};
use crate::progress::Meter;

/// Most bytes of `results.json`.
const RESULTS_LIMIT: usize = 256 << 20;

/// The answer of `fedprune study run` and `study report`.
#[derive(Debug, Serialize)]
pub struct StudyReport {
    study: String,
    complete: bool,
    models: usize,
    records: usize,
    federated: usize,
    #[serde(serialize_with = "crate::output::lossy::path")]
    folder: PathBuf,
    files: Vec<String>,
    measured_seconds: f64,
    seconds: f64,
    #[serde(skip)]
    next: String,
}

crate::report!(StudyReport);

/// The answer of `fedprune study run --check`.
#[derive(Debug, Serialize)]
pub struct StudyCheck {
    study: String,
    combinations: usize,
    seeds: usize,
    models: usize,
    evaluations_left: usize,
    ballots_left: usize,
    /// Weights times tokens.
    work_left: u64,
}

crate::report!(StudyCheck);

/// Runs a study, or goes on with it.
///
/// # Errors
/// What is wrong with the study, naming its line, before anything is computed; or what stopped it.
pub fn run(options: &StudyRunOptions, meter: &Meter) -> anyhow::Result<Box<dyn crate::output::Report>> {
    let started = Instant::now();
    options.device.limit_threads();
    let plan_text = String::from_utf8(read_small(&options.study, fedprune_study::plan::DOCUMENT_LIMIT)?)
        .with_context(|| format!("`{}` is not text", options.study.display()))?;
    let unusable = || format!("`{}` cannot be run", options.study.display());
    let plan = Plan::parse(&plan_text, folder_of(&options.study)).with_context(unusable)?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot create `{}`", options.out.display()))?;
    let go_on = format!("{} study run {} --out {}", program(), shell(&options.study), shell(&options.out));
    interrupt::set_hint(format!("what was measured is kept: `{go_on}` goes on"));

    let (task, done) = (RefCell::new(None), Cell::new(0u64));
    let decoder = |checkpoint: &Checkpoint, tokens: usize| open_decoder(checkpoint, &options.device, tokens);
    let progress = |progress: fedprune_study::Progress| {
        let mut task = task.borrow_mut();
        let task = task.get_or_insert_with(|| meter.task("study", progress.total, false));
        done.set(done.get().saturating_add(progress.advanced));
        task.at(done.get().min(progress.total), progress.what);
        Ok(())
    };
    let keep = |results: &Results| fedprune_study::files::write_results(&options.out, results);
    let version = crate::version::name();
    let run_options =
        RunOptions { folder: &options.out, program: &version, decoder: &decoder, progress: &progress, results: &keep };
    if options.check {
        let left = fedprune_study::run::check(&plan, &run_options).with_context(unusable)?;
        return Ok(Box::new(StudyCheck {
            study: plan.name.clone(),
            combinations: plan.points.len(),
            seeds: plan.seeds.len(),
            models: plan.models.len(),
            evaluations_left: left.evaluations,
            ballots_left: left.votes,
            work_left: left.units.saturating_mul(1024),
        }));
    }
    let results = fedprune_study::run(&plan, &run_options).map_err(|error| match error {
        StudyError::Plan(_) => anyhow::Error::new(error).context(unusable()),
        other => anyhow::Error::new(other).context(format!(
            "the study stopped; what was measured before is kept, and once this is put right `{go_on}` goes on"
        )),
    })?;
    drop(task.take());
    fedprune_study::files::write_plan(&options.out, &plan_text)?;
    write(&options.out, &results, started.elapsed()).map(|report| Box::new(report) as Box<dyn crate::output::Report>)
}

/// Writes tables and figures anew.
///
/// # Errors
/// When the folder has no results, or they cannot be read.
pub fn report(options: &StudyReportOptions) -> anyhow::Result<StudyReport> {
    let started = Instant::now();
    let path = options.folder.join("results.json");
    if !path.exists() {
        bail!(
            "`{}` has no results.json; run a study first: {} study run examples/study/bundled.toml --out {}",
            options.folder.display(),
            program(),
            shell(&options.folder)
        );
    }
    let bytes = read_small(&path, RESULTS_LIMIT)?;
    let results: Results = serde_json::from_slice(&bytes).with_context(|| {
        format!("`{}` is damaged; run the study again, which measures only what is missing", path.display())
    })?;
    write(&options.folder, &results, started.elapsed())
}

fn write(folder: &Path, results: &Results, elapsed: Duration) -> anyhow::Result<StudyReport> {
    let files = fedprune_study::files::write_report(folder, results)?;
    let records = || results.models.iter().flat_map(|model| &model.records);
    Ok(StudyReport {
        study: results.study.clone(),
        complete: results.complete,
        models: results.models.len(),
        records: records().count(),
        federated: records().filter(|record| record.method == Method::Federated).count(),
        folder: folder.to_owned(),
        files,
        measured_seconds: results.seconds,
        seconds: elapsed.as_secs_f64(),
        next: format!("read {}", shell(&folder.join("report.md"))),
    })
}

fn open_decoder(checkpoint: &Checkpoint, options: &DeviceOptions, tokens: usize) -> Result<Decoder, StudyError> {
    let device = options.device.open()?;
    let dtype = options.dtype.unwrap_or_else(|| ComputeDType::default_for(&device)).candle();
    Ok(Decoder::new(checkpoint, &device, dtype, tokens)?)
}

impl StudyReport {
    fn text(&self) -> String {
        let whole = if self.complete { "all that was planned" } else { "interrupted; the rest is missing" };
        let rows = [
            ("study", format!("{}: {whole}", self.study)),
            (
                "measured",
                format!(
                    "{} records, {} of federations, in {:.0} s of computing",
                    count(self.records as u64),
                    count(self.federated as u64),
                    self.measured_seconds
                ),
            ),
            ("folder", self.folder.display().to_string()),
            ("files", self.files.join(", ")),
        ];
        format!("{}\nnext: {}", facts(&rows), self.next)
    }
}

impl StudyCheck {
    fn text(&self) -> String {
        facts(&[
            ("study", self.study.clone()),
            ("combinations", format!("{} × {} seeds × {} models", self.combinations, self.seeds, self.models)),
            (
                "left to do",
                format!(
                    "{} ballots, {} evaluations, {:.2} × 10¹² weights × tokens",
                    count(self.ballots_left as u64),
                    count(self.evaluations_left as u64),
                    self.work_left as f64 / 1e12
                ),
            ),
        ])
    }
}
