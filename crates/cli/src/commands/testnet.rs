//! `fedprune testnet run`: a manifest's nodes as processes of this machine, this program started once a silo.

use std::path::{Path, PathBuf};

use anyhow::Context;
use fedprune_mask::Digest;
use fedprune_testnet::{Bundled, Options, Outcome, Phase, Progress, Report, SiloReport, TestnetError, Wire};
use serde::Serialize;

use super::demo::bundled;
use crate::args::{TestnetGenerateOptions, TestnetRunOptions};
use crate::files::{self, shell};
use crate::interrupt::{self, Stopped};
use crate::output::{bytes, facts, table, tame};
use crate::progress::Meter;

/// The answer of `fedprune testnet run`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct TestnetReport(pub Report);

crate::report!(TestnetReport, exit);

/// Runs a testnet.
///
/// # Errors
/// When there is no such testnet, or it cannot be set up; one that did not end as expected is a report.
pub fn run(options: &TestnetRunOptions, meter: &Meter) -> anyhow::Result<TestnetReport> {
    let drawn = options.seed.map(drawn).transpose()?;
    let Some(manifest) = drawn.as_ref().map(tempfile::NamedTempFile::path).or(options.manifest.as_deref()) else {
        anyhow::bail!("no manifest was given");
    };
    let run = Run {
        manifest,
        base: options.base.as_deref(),
        out: options.out.as_deref(),
        lying: options.lying_program.as_deref(),
    };
    run_manifest(&run, meter).map(TestnetReport)
}

/// The manifest of a seed, as a file.
fn drawn(seed: u64) -> anyhow::Result<tempfile::NamedTempFile> {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().context("cannot write a temporary file")?;
    file.write_all(fedprune_testnet::generate::generate(seed).as_bytes()).context("cannot write a temporary file")?;
    Ok(file)
}

/// The answer of `fedprune testnet generate`.
#[derive(Debug, Serialize)]
pub struct GenerateReport {
    seed: u64,
    manifest: PathBuf,
}

crate::report!(GenerateReport);

impl GenerateReport {
    fn text(&self) -> String {
        let manifest = shell(&self.manifest);
        format!("wrote {manifest}\nnext: {} testnet run {manifest}", files::program())
    }
}

/// Draws a manifest.
///
/// # Errors
/// When it cannot be written, or the file is there.
pub fn generate(options: &TestnetGenerateOptions) -> anyhow::Result<GenerateReport> {
    use std::io::Write;
    let failed = || format!("cannot write `{}`", options.out.display());
    let mut file = std::fs::File::create_new(&options.out).with_context(failed)?;
    file.write_all(fedprune_testnet::generate::generate(options.seed).as_bytes()).with_context(failed)?;
    Ok(GenerateReport { seed: options.seed, manifest: options.out.clone() })
}

/// Which testnet to run.
pub(super) struct Run<'a> {
    pub(super) manifest: &'a Path,
    pub(super) base: Option<&'a Path>,
    pub(super) out: Option<&'a Path>,
    pub(super) lying: Option<&'a Path>,
}

/// Runs a manifest in a new folder.
pub(super) fn run_manifest(run: &Run<'_>, meter: &Meter) -> anyhow::Result<Report> {
    let program = std::env::current_exe().context("the system does not say where this program lies")?;
    let interrupt = interrupt::cooperative();
    let mut folder: Option<PathBuf> = None;
    let mut board = None;
    let mut observe = |progress: Progress<'_>| match progress {
        Progress::Folder(path) => folder = Some(path.to_owned()),
        Progress::Step(step) => {
            board = None;
            meter.say(step);
        }
        Progress::Nodes { elapsed, nodes } => {
            let board = board.get_or_insert_with(|| meter.board(nodes.iter().map(|(name, _)| *name)));
            for (index, (_, phase)) in nodes.iter().enumerate() {
                board.set(index, elapsed, &in_words(phase));
            }
        }
    };
    let ran = fedprune_testnet::run(
        &Options {
            manifest: run.manifest,
            base: run.base,
            folder: run.out,
            program: &program,
            lying_program: run.lying,
            bundle: &unpack,
            stop: &|| interrupt.check().is_err(),
        },
        &mut observe,
    );
    drop(board);
    match ran {
        Ok(mut report) => {
            // nodes are started by the program's full path; people type it as they did
            let full = shell(&program);
            for command in &mut report.look_further {
                if let Some(arguments) = command.strip_prefix(&full) {
                    *command = format!("{}{arguments}", files::program());
                }
            }
            Ok(report)
        }
        Err(error) => {
            let made = folder.map(|folder| format!("what was made until then is in {}", shell(&folder)));
            if matches!(error, TestnetError::Stopped) {
                let made = made.unwrap_or_else(|| "nothing was made".to_owned());
                return Err(Stopped::leaving(format!("no node is left; {made}")).into());
            }
            if let Some(made) = made {
                meter.say(&made);
            }
            Err(error.into())
        }
    }
}

fn unpack(folder: &Path) -> Result<Bundled, Box<dyn std::error::Error + Send + Sync>> {
    let texts = bundled::unpack(folder)?.into_iter().collect();
    Ok(Bundled { model: folder.join("model"), texts })
}

fn in_words(phase: &Phase) -> String {
    match phase {
        Phase::Absent => "absent".to_owned(),
        Phase::Waiting => "starts later".to_owned(),
        Phase::Started => "started".to_owned(),
        Phase::Listening => "listening".to_owned(),
        Phase::Connected { members } => format!("connected to {members}"),
        Phase::Ballot { bytes: size } => format!("ballot of {}", bytes(*size)),
        Phase::Decided { height } => format!("height {height} decided"),
        Phase::Tallied { height } => format!("height {height} tallied"),
        Phase::Killed => "killed".to_owned(),
        Phase::Paused => "paused".to_owned(),
        Phase::Finished { outcome: Outcome::Agreed | Outcome::Stalled } => "finished".to_owned(),
        Phase::Finished { outcome: Outcome::Abandoned } => "finished: abandoned".to_owned(),
        Phase::Gone => "gone".to_owned(),
    }
}

/// One line of the table.
fn row(silo: &SiloReport) -> Vec<String> {
    let seconds = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let size = |value: Option<u64>| value.map_or("–".to_owned(), bytes);
    let mut state = in_words(&silo.phase);
    if silo.kills > 0 && silo.phase != Phase::Killed {
        state = format!("{state}, killed {}×", silo.kills);
    }
    if silo.faults > silo.kills {
        state = format!("{state}, disturbed {}×", silo.faults - silo.kills);
    }
    vec![
        silo.name.clone(),
        state,
        size(silo.ballot_bytes),
        seconds(silo.ballot_seconds),
        seconds(silo.seconds),
        size(silo.sent_bytes),
        size(silo.received_bytes),
        silo.mask_root.map_or("–".to_owned(), |root| root.short()),
        silo.audit.clone().unwrap_or_else(|| "–".to_owned()),
    ]
}

/// What all nodes sent, in words.
fn on_the_wire(wire: &Wire) -> String {
    let mut parts: Vec<(&String, &u64)> = wire.sent.iter().filter(|(_, of)| **of > 0).collect();
    parts.sort_by_key(|(_, of)| std::cmp::Reverse(**of));
    let parts: Vec<String> = parts.iter().map(|(what, of)| format!("{} {}", tame(what), bytes(**of))).collect();
    let mut text = bytes(wire.sent_bytes);
    if let Some(ratio) = wire.ratio {
        text.push_str(&format!(", {ratio:.2} × each ballot once to each other node"));
    }
    if !parts.is_empty() {
        text.push_str(&format!(": {}", parts.join(", ")));
    }
    text
}

impl TestnetReport {
    fn exit(&self) -> u8 {
        u8::from(!self.0.passed)
    }

    fn text(&self) -> String {
        let report = &self.0;
        let header = ["silo", "state", "ballot", "ballot at s", "done at s", "sent", "received", "mask", "transcript"];
        let rows: Vec<Vec<String>> = report.silos.iter().map(row).collect();
        let checks: String = report
            .checks
            .iter()
            .map(|check| match &check.problem {
                None => format!("  ok    {}\n", tame(&check.what)),
                Some(_) => format!("  FAIL  {}\n", tame(&check.what)),
            })
            .collect();
        let look_further: String = report.look_further.iter().map(|command| format!("\n  {command}")).collect();
        format!(
            "{}\n{}\n{checks}\n{}\n\nlook further (everything is in {}):{look_further}",
            table(&header, &rows),
            facts(&[
                ("global mask", report.mask_root.map_or("none".to_owned(), |root: Digest| root.to_string())),
                ("consortium", report.consortium.to_string()),
                ("round", report.round.to_string()),
                ("time", format!("{:.1} s", report.seconds)),
                ("on the wire", on_the_wire(&report.wire)),
            ]),
            self.verdict(),
            shell(&report.folder),
        )
    }

    fn verdict(&self) -> String {
        let report = &self.0;
        let name = tame(&report.name);
        let Some(reason) = &report.reason else { return format!("testnet `{name}` PASSED") };
        let mut text = format!("testnet `{name}` FAILED");
        for line in reason.lines() {
            text.push_str(&format!("\n  {}", tame(line)));
        }
        if let Some(log) = &report.log {
            text.push_str(&format!("\nthe last lines of {}:", shell(&log.path)));
            for line in &log.lines {
                text.push_str(&format!("\n  | {}", tame(line)));
            }
        }
        text
    }
}
