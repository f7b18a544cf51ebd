//! `fedprune audit …`: what a finished round left behind, checked by somebody who trusts nobody.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fedprune_audit::html::{self, Brought};
use fedprune_audit::{AuditError, Limits, Options, Overview, Progress, Report, Step};
use serde::Serialize;

use crate::args::{AuditReportOptions, AuditShowOptions, AuditVerifyOptions};
use crate::files::{check_new, create_document};
use crate::output::tame;
use crate::progress::{Meter, Task};
use crate::version;

/// The answer of `fedprune audit verify`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct AuditReport(pub Report);

/// The answer of `fedprune audit show`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct ShowReport(pub Overview);

/// The answer of `fedprune audit report`.
#[derive(Debug, Serialize)]
pub struct PageReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    page: PathBuf,
    #[serde(flatten)]
    report: Report,
}

crate::report!(AuditReport, exit);
crate::report!(PageReport, exit);
crate::report!(ShowReport);

/// Checks a transcript; whatever is wrong with it is in the report, and in the exit code.
///
/// # Errors
/// When there is no transcript, or no model where one is said to be.
pub fn verify(options: &AuditVerifyOptions, meter: &Meter) -> anyhow::Result<AuditReport> {
    audit(options, meter, fedprune_audit::verify).map(AuditReport)
}

/// Checks a transcript as `verify` does, and writes what was found as a page.
///
/// # Errors
/// As [`verify`], and when the page cannot be written.
pub fn report(options: &AuditReportOptions, meter: &Meter) -> anyhow::Result<PageReport> {
    let verify = &options.verify;
    check_new(&options.out)?;
    let report = audit(verify, meter, fedprune_audit::verify_and_measure)?;
    let overview = fedprune_audit::overview(&verify.transcript, Limits::default(), &report)?;
    let program = version::name();
    let brought = Brought { program: &program, model: verify.model.is_some(), pruned: verify.pruned.is_some() };
    let page = &options.out;
    // no larger than the report, which is in memory
    let mut bytes = Vec::new();
    html::write(&mut bytes, &report, &overview, brought)?;
    create_document(page, &bytes)?;
    Ok(PageReport { page: page.clone(), report })
}

/// Audits with progress.
fn audit(options: &AuditVerifyOptions, meter: &Meter, how: How) -> anyhow::Result<Report> {
    let with = Options {
        consortium: options.consortium_id,
        round: options.round_id,
        model: options.model.as_deref(),
        pruned: options.pruned.as_deref(),
        limits: Limits::default(),
    };
    audit_with(&options.transcript, &with, meter, how)
}

/// Checks a transcript as `verify` does, for what is attested afterwards.
#[cfg(feature = "federation")]
pub(super) fn audited(transcript: &Path, with: &Options<'_>, meter: &Meter) -> anyhow::Result<Report> {
    audit_with(transcript, with, meter, fedprune_audit::verify)
}

/// One of the audits of the library.
type How = fn(&Path, &Options<'_>, &(dyn Fn(Progress) + Sync)) -> Result<Report, AuditError>;

fn audit_with(transcript: &Path, with: &Options<'_>, meter: &Meter, how: How) -> anyhow::Result<Report> {
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
    Ok(how(transcript, with, &progress)?)
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

impl PageReport {
    fn text(&self) -> String {
        let report = &self.report;
        format!(
            "page  {}\n{}",
            tame(&self.page.display().to_string()),
            lines(&format!("{}: {}", report.verdict.name(), report.in_words()))
        )
    }

    fn exit(&self) -> u8 {
        self.report.verdict.exit_code()
    }
}

impl ShowReport {
    fn text(&self) -> String {
        lines(&self.0.text())
    }
}

#[cfg(all(test, feature = "silo"))]
mod tests {
    use fedprune_audit::verify::{MADE, MASK_FILE};

    /// An audit knows by name what `apply` writes beside the weights.
    #[test]
    fn what_apply_writes_is_known_to_audits() {
        use super::super::{agreement, apply, recipe};
        assert_eq!(MASK_FILE, apply::MASK_FILE);
        assert_eq!(MADE, ["README.md", recipe::RECIPE_FILE, recipe::PICTURE_FILE, agreement::PICTURE_FILE]);
    }
}
