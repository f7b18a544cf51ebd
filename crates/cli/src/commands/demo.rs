//! `fedprune demo`: four silos, one model, everything bundled, one command.
//!
//! The silos live in this one process, one after the other; no network is involved. Each uses exactly the code of
//! `fedprune mask compute`, and their ballots are tallied and applied as `fedprune tally` and `fedprune apply` do.

pub(super) mod bundled;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::score::Pruner;
use fedprune_mask::{Digest, Group, Sparsity};
use fedprune_model::DeviceName;
use serde::Serialize;

use super::eval_perplexity::{EvaluationText, measure};
use super::{apply, mask_compute, tally};
use crate::args::{
    ApplyOptions, Ballots, ComputeOptions, DemoOptions, DeviceOptions, SamplingMethod, SparsityOrPattern, TallyOptions,
};
use crate::files::{program, shell};
use crate::output::{bytes, facts, table};
use crate::progress::Meter;

/// Calibration of each silo.
const SAMPLES: usize = 16;
/// Tokens of a calibration or evaluation window.
const SEQUENCE_TOKENS: usize = 128;

/// The answer of `fedprune demo`.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    folder: PathBuf,
    sparsity: Sparsity,
    silos: Vec<SiloRow>,
    global_mask_root: Digest,
    perplexity: Perplexities,
    seconds: f64,
    /// Commands to type next.
    look_further: Vec<String>,
}

/// One silo.
#[derive(Debug, Serialize)]
struct SiloRow {
    name: String,
    #[serde(serialize_with = "crate::output::lossy::path")]
    ballot: PathBuf,
    ballot_bytes: u64,
    seconds: f64,
    mask_root: Digest,
    /// Perplexity of the model pruned with this silo's own mask.
    perplexity: f64,
}

/// Perplexity on the bundled held-out text.
#[derive(Debug, Serialize)]
struct Perplexities {
    dense: f64,
    local_mean: f64,
    federated: f64,
}

/// Where things lie in the demo's folder.
struct Paths {
    model: PathBuf,
    held_out: PathBuf,
    tally: PathBuf,
    pruned: PathBuf,
}

crate::report!(DemoReport);

/// Runs the demo in a new folder.
///
/// # Errors
/// When the folder exists or cannot be written.
pub fn run(options: &DemoOptions, meter: &Meter) -> anyhow::Result<DemoReport> {
    let started = Instant::now();
    let folder = new_folder(options.out.as_deref())?;
    let paths = Paths {
        model: folder.join("model"),
        held_out: folder.join("held_out.txt"),
        tally: folder.join("global.tally"),
        pruned: folder.join("pruned"),
    };
    let silos = bundled::unpack(&folder)?;
    let device = DeviceOptions { device: DeviceName::Cpu, dtype: None };
    let perplexity_of = |model: &Path| {
        let checkpoint = Checkpoint::open(model)?;
        let text = EvaluationText {
            data: std::slice::from_ref(&paths.held_out),
            field: "text",
            sequence_tokens: SEQUENCE_TOKENS,
            max_windows: None,
        };
        anyhow::Ok(measure(&checkpoint, &text, &device, meter)?.perplexity)
    };
    let apply_mask = |mask: &Path, out: &Path| {
        let options =
            ApplyOptions { model: paths.model.clone(), mask: mask.to_owned(), out: out.to_owned(), scale: None };
        apply::run(&options, meter)
    };

    let mut rows = Vec::new();
    let silo_count = silos.len();
    for (number, (name, text)) in silos.into_iter().enumerate() {
        meter.say(&format!("silo {} of {silo_count}: {name}", number + 1));
        let ballot = folder.join(format!("{name}.ballot"));
        let computed = mask_compute::run(
            &ComputeOptions {
                model: paths.model.clone(),
                data: vec![text],
                sparsity: Some(SparsityOrPattern::Fraction(options.sparsity)),
                local_group: Some(Group::Row),
                pruner: Pruner::WANDA,
                out: ballot.clone(),
                nsamples: SAMPLES,
                seqlen: Some(SEQUENCE_TOKENS),
                seed: 0,
                sampling: SamplingMethod::Random,
                field: "text".to_owned(),
                ballots: Ballots::Auto,
                restart: false,
                device: device.clone(),
            },
            meter,
        )?;
        let alone = folder.join(format!("{name}.alone"));
        apply_mask(&ballot, &alone)?;
        rows.push(SiloRow {
            perplexity: perplexity_of(&alone)?,
            name,
            ballot,
            ballot_bytes: computed.ballot_bytes,
            seconds: computed.seconds,
            mask_root: computed.mask_root,
        });
    }
    meter.say("all together: counting the ballots, pruning, measuring");
    let tallied = tally::run(
        &TallyOptions {
            ballots: rows.iter().map(|row| row.ballot.clone()).collect(),
            model: paths.model.clone(),
            global_group: None,
            weights: Vec::new(),
            out: paths.tally.clone(),
        },
        meter,
    )?;
    let applied = apply_mask(&paths.tally, &paths.pruned)?;
    if applied.mask_root != tallied.mask_root {
        bail!("the mask that was applied is not the one that was tallied; please report this");
    }
    let look_further = suggestions(&paths, &rows, &folder);
    Ok(DemoReport {
        perplexity: Perplexities {
            dense: perplexity_of(&paths.model)?,
            local_mean: rows.iter().map(|row| row.perplexity).sum::<f64>() / rows.len() as f64,
            federated: perplexity_of(&paths.pruned)?,
        },
        sparsity: options.sparsity,
        silos: rows,
        global_mask_root: tallied.mask_root,
        seconds: started.elapsed().as_secs_f64(),
        folder,
        look_further,
    })
}

/// What is worth typing next, ready to be copied.
fn suggestions(paths: &Paths, silos: &[SiloRow], folder: &Path) -> Vec<String> {
    let program = program();
    let (model, tally) = (shell(&paths.model), shell(&paths.tally));
    let ballots = silos.iter().map(|silo| shell(&silo.ballot)).collect::<Vec<_>>().join(" ");
    let first = silos.first().map(|silo| shell(&silo.ballot)).unwrap_or_default();
    vec![
        format!("{program} mask show {ballots} {tally} --model {model}"),
        format!(
            "{program} eval perplexity --model {} --data {} --seqlen {SEQUENCE_TOKENS}",
            shell(&paths.pruned),
            shell(&paths.held_out)
        ),
        format!("{program} apply --model {model} --mask {first} --out {}", shell(&folder.join("mine"))),
    ]
}

/// Creates the folder asked for, or the first free `fedprune-demo-N` below the current one.
fn new_folder(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let create = |path: &Path| std::fs::create_dir(path);
    if let Some(path) = asked {
        return match create(path) {
            Ok(()) => Ok(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("`{}` exists; choose another --out or remove it", path.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot create `{}`", path.display())),
        };
    }
    for number in 1u32.. {
        let path = PathBuf::from(format!("fedprune-demo-{number}"));
        match create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).context("cannot create a folder here; give one with --out DIR");
            }
        }
    }
    bail!("too many demo folders here; give one with --out DIR")
}

impl DemoReport {
    /// What came of it, in one sentence.
    fn verdict(&self) -> String {
        let Perplexities { dense, local_mean, federated } = self.perplexity;
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
                    bytes(silo.ballot_bytes),
                    format!("{:.1}", silo.seconds),
                    silo.mask_root.short(),
                    format!("{:.2}", silo.perplexity),
                ]
            })
            .collect();
        let look_further: String = self.look_further.iter().map(|command| format!("\n  {command}")).collect();
        format!(
            "{} silos, one after the other in this process; sparsity {}\n\n{}\n{}\n{}\n\n\
             look further (everything is in {}):{look_further}",
            self.silos.len(),
            self.sparsity,
            table(&["silo", "ballot", "seconds", "mask", "perplexity alone"], &rows),
            facts(&[
                ("global mask", self.global_mask_root.to_string()),
                ("perplexity, dense", format!("{:.2}", self.perplexity.dense)),
                ("perplexity, pruned by one silo alone", format!("{:.2} on average", self.perplexity.local_mean)),
                ("perplexity, pruned by all together", format!("{:.2}", self.perplexity.federated)),
                ("time", format!("{:.1} s", self.seconds)),
            ]),
            self.verdict(),
            shell(&self.folder),
        )
    }
}
