//! `fedprune audit …`: what a finished round left behind, checked by somebody who trusts nobody.

use std::sync::Mutex;

use fedprune_audit::{Limits, Options, Overview, Progress, Report, Step};
use serde::Serialize;

use crate::args::{AuditShowOptions, AuditVerifyOptions};
use crate::output::tame;
use crate::progress::{Meter, Task};

/// The answer of `fedprune audit verify`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct AuditReport(pub Report);

/// The answer of `fedprune audit show`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct ShowReport(pub Overview);

crate::report!(AuditReport, exit);
crate::report!(ShowReport);

/// Checks a transcript; whatever is wrong with it is in the report, and in the exit code.
///
/// # Errors
/// When there is no transcript, or no model where one is said to be.
pub fn verify(options: &AuditVerifyOptions, meter: &Meter) -> anyhow::Result<AuditReport> {
    let with = Options {
        consortium: options.consortium_id,
        round: options.round_id,
        model: options.model.as_deref(),
        pruned: options.pruned.as_deref(),
        limits: Limits::default(),
    };
    let current: Mutex<Option<(Step, Task)>> = Mutex::new(None);
    let progress = |progress: Progress| {
        let Ok(mut current) = current.lock() else { return };
        if current.as_ref().is_none_or(|(step, _)| *step != progress.step) {
            let task = match progress.step {
                Step::Model => meter.task("reading the model", progress.total, true),
                Step::Mask(height) => meter.task(format!("tallying height {height}"), progress.total, false),
            };
            *current = Some((progress.step, task));
        }
        if let Some((_, task)) = current.as_ref() {
            task.advance(progress.advanced);
        }
    };
    Ok(AuditReport(fedprune_audit::verify(&options.transcript, &with, &progress)?))
}

/// Shows what a transcript holds.
///
/// # Errors
/// When there is none.
pub fn show(options: &AuditShowOptions) -> anyhow::Result<ShowReport> {
    Ok(ShowReport(fedprune_audit::show(&options.transcript, Limits::default())?))
}

/// Tames every line of a text that has words from outside in it.
fn lines(text: &str) -> String {
    text.lines().map(|line| tame(line) + "\n").collect()
}

impl AuditReport {
    fn text(&self) -> String {
        lines(&self.0.text())
    }

    fn exit(&self) -> u8 {
        self.0.verdict.exit_code()
    }
}

impl ShowReport {
    fn text(&self) -> String {
        lines(&self.0.text())
    }
}
