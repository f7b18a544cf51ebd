//! `fedprune testnet simulate`: rounds under virtual time in which whatever a seed says goes wrong.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use fedprune_testnet::simulator::{Campaign, CampaignReport, SCENARIO_LIMIT_BYTES, Scenario, World, run_one, scratch};
use serde::Serialize;

use crate::args::TestnetSimulateOptions;
use crate::files::{program, read_small};
use crate::interrupt::{self, Stopped};
use crate::output::{count, facts};
use crate::progress::Meter;

/// The answer of `fedprune testnet simulate`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum SimulateReport {
    /// Of a range of seeds.
    Seeds {
        /// What came of it.
        #[serde(flatten)]
        report: CampaignReport,
        /// For each failure that is told, the command that runs it again.
        again: Vec<String>,
    },
    /// Of one scenario.
    Scenario {
        /// The scenario, in words.
        scenario: String,
        /// What went wrong, and what happened before it.
        failure: Option<String>,
        /// How it ended, if it did.
        outcome: Option<String>,
        /// Hash of everything that happened.
        trace: Option<fedprune_mask::Digest>,
    },
}

crate::report!(SimulateReport, exit);

/// Simulates rounds.
///
/// # Errors
/// When the scenario cannot be read, or on request; rounds that fail are a report.
pub fn run(options: &TestnetSimulateOptions, meter: &Meter) -> anyhow::Result<SimulateReport> {
    if let Some(path) = &options.scenario {
        let unusable = || format!("`{}` cannot be run", path.display());
        let text = String::from_utf8(read_small(path, SCENARIO_LIMIT_BYTES)?).with_context(unusable)?;
        let scenario = Scenario::from_toml(&text).with_context(unusable)?;
        if scenario.liars.len() == scenario.shape.members {
            bail!("in `{}` every member lies; leave one that is honest", path.display());
        }
        let scratch = (!options.no_audit).then(scratch);
        let ran = run_one(&World::new(scenario.shape), &scenario, scratch.as_deref());
        let (outcome, trace) = match &ran {
            Ok(report) => (Some(format!("{:?}", report.outcome)), Some(report.trace)),
            Err(_) => (None, None),
        };
        return Ok(SimulateReport::Scenario { scenario: scenario.to_string(), failure: ran.err(), outcome, trace });
    }
    let interrupt = interrupt::cooperative();
    let stopped = AtomicBool::new(false);
    let rounds = options.seeds.end - options.seeds.start;
    let task = meter.task("simulated rounds", rounds, false);
    let progress = |done: u64| {
        task.advance(done);
        let stop = interrupt.check().is_err();
        if stop {
            stopped.store(true, Ordering::Relaxed);
        }
        !stop
    };
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let campaign = Campaign {
        members: usize::from(options.members),
        seeds: options.seeds.clone(),
        threads: options.threads.map_or_else(processors, usize::from),
        audit: !options.no_audit,
        progress: &progress,
    };
    let report = campaign.run();
    drop(task);
    if stopped.load(Ordering::Relaxed) && report.failed == 0 {
        let done = format!("{} of {} rounds were simulated, and none failed", count(report.rounds), count(rounds));
        return Err(Stopped::leaving(done).into());
    }
    let command = |seed: u64| format!("{} testnet simulate --members {} --seeds {seed}", program(), options.members);
    let again = report.failures.iter().map(|failure| command(failure.seed)).collect();
    Ok(SimulateReport::Seeds { report, again })
}

impl SimulateReport {
    fn exit(&self) -> u8 {
        match self {
            Self::Seeds { report, .. } => u8::from(report.failed > 0),
            Self::Scenario { failure, .. } => u8::from(failure.is_some()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Scenario { scenario, failure: Some(failure), .. } => format!("{scenario}\n{failure}\nFAILED"),
            Self::Scenario { scenario, outcome, trace, .. } => {
                let trace = trace.map_or_else(String::new, |trace| trace.to_string());
                let outcome = outcome.clone().unwrap_or_default();
                format!("{scenario}\n{}\nPASSED", facts(&[("outcome", outcome), ("trace", trace)]))
            }
            Self::Seeds { report, again } => {
                let mut text = facts(&[
                    (
                        "rounds",
                        format!(
                            "{} of {} members, from seed {}",
                            count(report.rounds),
                            report.members,
                            report.first_seed
                        ),
                    ),
                    ("agreed", count(report.agreed)),
                    ("abandoned", count(report.abandoned)),
                    (
                        "heights decided",
                        format!(
                            "{}, {} of them after the first view, the latest in view {}",
                            count(report.heights),
                            count(report.later_views),
                            report.latest_view
                        ),
                    ),
                    ("liars", format!("{}, equivocation of {} proven", count(report.liars), count(report.proven))),
                    ("deaths", count(report.crashes)),
                    ("disks audited", count(report.audits)),
                    ("events", count(report.events)),
                    ("time", format!("{:.1} s, {} s of virtual time", report.seconds, count(report.virtual_seconds))),
                    ("trace", report.trace.map_or_else(|| "none".to_owned(), |trace| trace.to_string())),
                ]);
                for (failure, again) in report.failures.iter().zip(again) {
                    text.push_str(&format!(
                        "\nseed {} FAILED\n{}\nagain: {again}\nwith less in it, for --scenario FILE:\n{}and that fails so:\n{}\n",
                        failure.seed, failure.what, failure.shrunk, failure.shrunk_what
                    ));
                }
                let verdict =
                    if report.failed == 0 { "PASSED".to_owned() } else { format!("FAILED: {} rounds", report.failed) };
                format!("{text}\n{verdict}")
            }
        }
    }
}
