//! `fedprune demo`: four silos, one model, everything bundled, one command.
//!
//! Each silo is a node of its own: a process with its own key, its own text and its own copy of what the others sent,
//! which talks to the others over libp2p on this machine. The testnet runner starts them, audits the transcripts they
//! write, and counts the ballots again by hand. What pruning together is worth is then measured on a text that no
//! silo has, beside pruning alone and beside pruning with all texts in one place, which is what may not be done.

pub(super) mod bundled;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::score::Pruner;
use fedprune_mask::{Digest, Group, Sparsity};
use fedprune_model::DeviceName;
use fedprune_testnet::SiloReport;
use serde::Serialize;

use super::eval_perplexity::{EvaluationText, measure};
use super::{apply, mask_compute, testnet};
use crate::args::{
    ApplyOptions, Ballots, ComputeOptions, DemoOptions, DeviceOptions, SamplingMethod, SparsityOrPattern,
};
use crate::files::{program, shell};
use crate::output::{bytes, facts, table};
use crate::progress::Meter;

/// Calibration windows of each silo.
const SAMPLES: usize = 16;
/// Tokens of a calibration or evaluation window.
const SEQUENCE_TOKENS: usize = 128;
/// The silos, and the bundled text of each.
const SILOS: [(&str, &str); 4] = [
    ("north", "austen_emma"),
    ("east", "melville_moby_dick"),
    ("south", "speeches_1945_1953"),
    ("west", "speeches_1953_1958"),
];

/// The answer of `fedprune demo`.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    folder: PathBuf,
    sparsity: Sparsity,
    silos: Vec<SiloRow>,
    global_mask_root: Digest,
    consortium: Digest,
    round: Digest,
    /// What the auditor says of every transcript.
    audit: String,
    perplexity: Perplexities,
    seconds: f64,
    /// Commands to type next.
    look_further: Vec<String>,
    /// Commands by which a member attests what came of it, and anybody checks that.
    attest: Vec<String>,
}

/// One silo.
#[derive(Debug, Serialize)]
struct SiloRow {
    name: String,
    text: &'static str,
    ballot_bytes: u64,
    /// Until its node had the pruned model.
    seconds: f64,
    sent_bytes: u64,
    received_bytes: u64,
    /// The global mask that its node holds.
    mask_root: Digest,
    audit: String,
    /// Perplexity of the model pruned with this silo's own mask.
    perplexity_alone: f64,
}

/// Perplexity on the bundled held-out text.
#[derive(Debug, Serialize)]
struct Perplexities {
    dense: f64,
    local_mean: f64,
    federated: f64,
    centralized: f64,
}

crate::report!(DemoReport);

/// Runs the demo in a new folder.
///
/// # Errors
/// When the folder exists or cannot be written, or the round did not end as it must.
pub fn run(options: &DemoOptions, meter: &Meter) -> anyhow::Result<DemoReport> {
    let started = Instant::now();
    let folder = free_folder(options.out.as_deref())?;
    let mut manifest = tempfile::NamedTempFile::new().context("cannot write a temporary file")?;
    manifest.write_all(manifest_text(options.sparsity).as_bytes()).context("cannot write a temporary file")?;
    meter.say("four nodes, one round:");
    let run = testnet::Run { manifest: manifest.path(), base: None, out: Some(&folder), lying: None };
    let report = testnet::run_manifest(&run, meter)?;
    let (Some(global_mask_root), true) = (report.mask_root, report.passed) else {
        bail!(
            "the round did not end as it must: {}; logs are in {}",
            report.reason.as_deref().unwrap_or("no mask"),
            shell(&folder.join("logs"))
        );
    };

    let demo = Demo { folder: &folder, sparsity: options.sparsity, meter };
    meter.say("what it is worth: pruning alone, together, and with all texts in one place");
    let round = report.round;
    let silos = report.silos.iter().map(|silo| demo.row(silo, round)).collect::<anyhow::Result<Vec<_>>>()?;
    let pruned = report.silos.iter().find_map(|silo| silo.pruned.clone()).context("no node wrote a pruned model")?;
    let perplexity = Perplexities {
        dense: demo.perplexity(&demo.model())?,
        local_mean: silos.iter().map(|row| row.perplexity_alone).sum::<f64>() / silos.len() as f64,
        federated: demo.perplexity(&pruned)?,
        centralized: demo.centralized()?,
    };
    let transcript = report.silos.iter().find_map(|silo| silo.transcript.clone()).unwrap_or_default();
    let look_further = demo.suggestions(&pruned, &transcript, report.consortium, round);
    let attest = demo.attestations(&transcript, &pruned);
    Ok(DemoReport {
        perplexity,
        sparsity: options.sparsity,
        audit: silos.first().map(|row| row.audit.clone()).unwrap_or_default(),
        silos,
        global_mask_root,
        consortium: report.consortium,
        round,
        seconds: started.elapsed().as_secs_f64(),
        folder,
        look_further,
        attest,
    })
}

/// The manifest of the demo's round.
fn manifest_text(sparsity: Sparsity) -> String {
    let silos: String = SILOS
        .iter()
        .map(|(name, text)| format!("[[silo]]\nname = \"{name}\"\ndata = [\"bundled:{text}\"]\n\n"))
        .collect();
    format!(
        "name = \"demo\"\nmodel = \"bundled\"\n\n{silos}[round]\nsparsity = \"{sparsity}\"\nnsamples = {SAMPLES}\n\
         seqlen = {SEQUENCE_TOKENS}\ncontribution_seconds = 120\nproposal_ms = 5000\nvote_ms = 2000\ngrowth_ms = 1000\n\n\
         [expect]\ncontributors = {}\nevidence_against = []\nfault_named = []\nwithin_seconds = 240\n",
        SILOS.len()
    )
}

/// The folder, and how things in it are measured.
struct Demo<'a> {
    folder: &'a Path,
    sparsity: Sparsity,
    meter: &'a Meter,
}

impl Demo<'_> {
    fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    fn held_out(&self) -> PathBuf {
        self.folder.join("held_out.txt")
    }

    fn device() -> DeviceOptions {
        DeviceOptions { device: DeviceName::Cpu, dtype: None, threads: None }
    }

    fn perplexity(&self, model: &Path) -> anyhow::Result<f64> {
        let checkpoint = Checkpoint::open(model)?;
        let held_out = self.held_out();
        let text = EvaluationText {
            data: std::slice::from_ref(&held_out),
            field: "text",
            sequence_tokens: SEQUENCE_TOKENS,
            max_windows: None,
        };
        Ok(measure(&checkpoint, &text, &Self::device(), self.meter)?.perplexity)
    }

    fn apply(&self, mask: &Path, out: &Path) -> anyhow::Result<f64> {
        let options = ApplyOptions {
            model: self.model(),
            mask: mask.to_owned(),
            out: out.to_owned(),
            scale: None,
            agreement: None,
        };
        apply::run(&options, self.meter)?;
        self.perplexity(out)
    }

    fn row(&self, silo: &SiloReport, round: Digest) -> anyhow::Result<SiloRow> {
        let missing = || format!("the node of `{}` did not say all that it must", silo.name);
        // kept in the silo's own folder, where its node wrote it
        let ballot = self.folder.join("homes").join(&silo.name).join("rounds").join(round.to_string());
        let ballot = ballot.join("contribution").join("height-0000.ballot");
        let alone = self.folder.join("alone");
        std::fs::create_dir_all(&alone).with_context(|| format!("cannot create `{}`", alone.display()))?;
        let text = SILOS.iter().find(|(name, _)| *name == silo.name).map_or("", |(_, text)| text);
        Ok(SiloRow {
            name: silo.name.clone(),
            text,
            ballot_bytes: silo.ballot_bytes.with_context(missing)?,
            seconds: silo.seconds.with_context(missing)?,
            sent_bytes: silo.sent_bytes.with_context(missing)?,
            received_bytes: silo.received_bytes.with_context(missing)?,
            mask_root: silo.mask_root.with_context(missing)?,
            audit: silo.audit.clone().with_context(missing)?,
            perplexity_alone: self.apply(&ballot, &alone.join(&silo.name))?,
        })
    }

    /// All texts in one place: what the federation stands in for.
    fn centralized(&self) -> anyhow::Result<f64> {
        let ballot = self.folder.join("centralized.ballot");
        let data = SILOS.iter().map(|(_, text)| self.folder.join("silos").join(format!("{text}.txt"))).collect();
        mask_compute::run(
            &ComputeOptions {
                model: self.model(),
                data,
                sparsity: Some(SparsityOrPattern::Fraction(self.sparsity)),
                local_group: Some(Group::Row),
                pruner: Pruner::WANDA,
                out: ballot.clone(),
                nsamples: SAMPLES * SILOS.len(),
                seqlen: Some(SEQUENCE_TOKENS),
                seed: 0,
                sampling: SamplingMethod::Random,
                field: "text".to_owned(),
                ballots: Ballots::Auto,
                restart: false,
                device: Self::device(),
            },
            self.meter,
        )?;
        self.apply(&ballot, &self.folder.join("centralized"))
    }

    /// What is worth typing next, ready to be copied.
    fn suggestions(&self, pruned: &Path, transcript: &Path, consortium: Digest, round: Digest) -> Vec<String> {
        let (program, model) = (program(), shell(&self.model()));
        let (transcript, pruned) = (shell(transcript), shell(pruned));
        vec![
            format!("{program} audit show {transcript}"),
            format!(
                "{program} audit verify {transcript} --consortium-id {consortium} --round-id {round} --model {model} \
                 --pruned {pruned}"
            ),
            format!(
                "{program} eval perplexity --model {pruned} --data {} --seqlen {SEQUENCE_TOKENS}",
                shell(&self.held_out())
            ),
            format!("{program} node status --home {}", shell(&self.home())),
        ]
    }

    /// How one member attests the pruned model and the round in forms of others, and how that is checked.
    fn attestations(&self, transcript: &Path, pruned: &Path) -> Vec<String> {
        let (program, name, home) = (program(), SILOS[0].0, shell(&self.home()));
        let signature = shell(&self.folder.join(format!("{name}.sig")));
        let result = shell(&self.folder.join(format!("{name}-result.json")));
        let consortium = shell(&self.folder.join("consortium.toml"));
        let (model, transcript, pruned) = (shell(&self.model()), shell(transcript), shell(pruned));
        vec![
            format!("{program} attest model {pruned} --home {home} --out {signature}"),
            format!("{program} attest verify {signature} --consortium {consortium} --pruned {pruned}"),
            format!(
                "{program} attest result --home {home} --transcript {transcript} --model {model} --pruned {pruned} \
                 --out {result}"
            ),
            format!("{program} attest verify {result} --consortium {consortium} --pruned {pruned} --threshold 1"),
        ]
    }

    /// The folder of one of the members.
    fn home(&self) -> PathBuf {
        self.folder.join("homes").join(SILOS[0].0)
    }
}

/// The folder asked for, or the first free `fedprune-demo-N` below the current one; made by the runner.
fn free_folder(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let is_free = |path: &Path| path.symlink_metadata().is_err();
    if let Some(path) = asked {
        if !is_free(path) {
            bail!("`{}` exists; choose another --out or remove it", path.display());
        }
        return crate::files::absolute(path);
    }
    let names = (1u32..10_000).map(|number| PathBuf::from(format!("fedprune-demo-{number}")));
    let free = names.into_iter().find(|path| is_free(path));
    crate::files::absolute(&free.context("too many demo folders here; give one with --out DIR")?)
}

impl DemoReport {
    /// What came of it, in one sentence.
    fn verdict(&self) -> String {
        let Perplexities { dense, local_mean, federated, .. } = self.perplexity;
        let (lost, recovered) = (local_mean - dense, local_mean - federated);
        if recovered > 0.0 && lost > 0.0 {
            let share = recovered / lost * 100.0;
            format!(
                "Of the {lost:.2} that a silo alone loses, pruning together wins back {recovered:.2} ({share:.0} %)."
            )
        } else {
            format!("Pruning together won nothing back of the {lost:.2} that a silo alone loses.")
        }
    }

    fn text(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .silos
            .iter()
            .map(|silo| {
                vec![
                    silo.name.clone(),
                    silo.text.to_owned(),
                    bytes(silo.ballot_bytes),
                    format!("{:.1}", silo.seconds),
                    bytes(silo.sent_bytes),
                    silo.mask_root.short(),
                    format!("{:.2}", silo.perplexity_alone),
                ]
            })
            .collect();
        let holding = self.silos.iter().filter(|silo| silo.mask_root == self.global_mask_root).count();
        let verified = self.silos.iter().filter(|silo| silo.audit == self.audit).count();
        let typed = |commands: &[String]| commands.iter().map(|command| format!("\n  {command}")).collect::<String>();
        format!(
            "{} nodes, processes of this machine; sparsity {}\n\n{}\n{holding}/{} silos hold global mask {}\n\n{}\n{}\n\n\
             look further (everything is in {}):{}\n\n\
             attest it, as a member does in forms that programs of others check:{}",
            self.silos.len(),
            self.sparsity,
            table(&["silo", "text", "ballot", "seconds", "sent", "global mask", "perplexity alone"], &rows),
            self.silos.len(),
            self.global_mask_root,
            facts(&[
                ("perplexity, dense", format!("{:.2}", self.perplexity.dense)),
                ("perplexity, pruned by one silo alone", format!("{:.2} on average", self.perplexity.local_mean)),
                ("perplexity, pruned by all together", format!("{:.2}", self.perplexity.federated)),
                ("perplexity, with all texts in one place", format!("{:.2}", self.perplexity.centralized)),
                ("audit", format!("{verified} of {} transcripts are {}", self.silos.len(), self.audit)),
                ("time", format!("{:.1} s", self.seconds)),
            ]),
            self.verdict(),
            shell(&self.folder),
            typed(&self.look_further),
            typed(&self.attest),
        )
    }
}
