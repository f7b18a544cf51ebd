//! `fedprune mask compute`: a silo's own mask, from its own text, written as a ballot.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_mask::ballot::{Ballot, Encodings, VoteHeader, encode_ballot};
use fedprune_mask::{Digest, Group, Sparsity};
use fedprune_model::{Bos, Decoder, DeviceName, Sampling, Tokenizer, WindowRequest, calibration_windows};
use fedprune_prune::{Journal, LocalPass, Recipe, local_pass};
use serde::Serialize;

use super::mask_file::MappedFile;
use super::{content_digest, decoder, sequence_tokens};
use crate::args::{Ballots, ComputeOptions, SamplingMethod, SparsityOrPattern};
use crate::files::{check_new, create_new, peak_memory_bytes, program, shell};
use crate::interrupt;
use crate::output::{bytes, count, facts, percent};
use crate::progress::Meter;
use crate::usage;

/// The answer of `fedprune mask compute`.
#[derive(Debug, Clone, Serialize)]
pub struct ComputeReport {
    /// The ballot.
    #[serde(serialize_with = "crate::output::lossy::path")]
    pub ballot: PathBuf,
    /// Its size.
    pub ballot_bytes: u64,
    ballot_digest: Digest,
    /// The mask that it stands for, whatever its encoding.
    pub mask_root: Digest,
    packed_mask_bytes: u64,
    times_smaller: f64,
    pruner: String,
    local_group: Group,
    sparsity: Sparsity,
    pruned_weights: u64,
    prunable_weights: u64,
    samples: usize,
    sequence_tokens: usize,
    #[serde(serialize_with = "crate::output::lossy::paths")]
    files: Vec<PathBuf>,
    resumed_blocks: usize,
    #[serde(serialize_with = "crate::output::lossy::path")]
    model: PathBuf,
    model_digest: Digest,
    /// Wall time.
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
    /// Device memory that was allocated at once; of a GPU only.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_device_memory_bytes: Option<u64>,
    warnings: Vec<String>,
}

/// Fewer calibration tokens than this reveal much of what they say, and measure little.
pub(super) const FEW_CALIBRATION_TOKENS: u64 = 2048;

crate::report!(ComputeReport);

/// Computes a mask and writes the ballot.
///
/// # Errors
/// What is wrong with model, text, settings or the output path. An unfinished run continues when repeated.
pub fn run(options: &ComputeOptions, meter: &Meter) -> anyhow::Result<ComputeReport> {
    let started = Instant::now();
    let (group, sparsity) = group_and_sparsity(options.local_group, options.sparsity)?;
    let recipe = Recipe { pruner: options.pruner, group, sparsity };
    options.device.limit_threads();
    check_new(&options.out)?;
    options.device.device.check()?;
    let checkpoint = Checkpoint::open(&options.model)?;
    let layout = checkpoint.layout();
    layout.check_group(group)?;

    let uses_text = recipe.pruner.scorer().uses_norms();
    if uses_text && options.data.is_empty() {
        usage!("pruner `{}` needs calibration text; add --data FILE, or use --pruner magnitude", recipe.pruner);
    }
    if !uses_text && !options.data.is_empty() {
        usage!("pruner `{}` looks at no text; drop --data, or use --pruner wanda", recipe.pruner);
    }
    let sequence_tokens = if uses_text { sequence_tokens(options.seqlen, checkpoint.config()) } else { 0 };
    let windows = if uses_text {
        let sampling = match options.sampling {
            SamplingMethod::Random => Sampling::Random { seed: options.seed },
            SamplingMethod::Sequential => Sampling::Sequential,
        };
        let request = WindowRequest {
            samples: options.nsamples,
            minimum_samples: options.nsamples,
            bos: Bos::EachText,
            sequence_tokens,
            sampling,
            field: options.field.clone(),
        };
        let tokenizer = Tokenizer::open(checkpoint.dir())?;
        Some(calibration_windows(checkpoint.config(), &tokenizer, &options.data, &request)?)
    } else {
        None
    };
    let open = || uses_text.then(|| decoder(&checkpoint, &options.device, sequence_tokens)).transpose();
    let (decoder, model_digest) = match options.device.device {
        DeviceName::Cpu => (open()?, content_digest(&checkpoint, meter)),
        // a GPU's driver takes as long to start as the weights to be read
        DeviceName::Cuda(_) => {
            let (decoder, digest) = rayon::join(open, || content_digest(&checkpoint, meter));
            (decoder?, digest)
        }
    };

    let inputs = LocalPass {
        checkpoint: &checkpoint,
        decoder: decoder.as_ref(),
        windows: windows.as_ref().map_or(&[], |windows| &windows.windows),
        recipe,
        data_free: &[],
    };
    let mut journal = match uses_text {
        true => Some(open_journal(&journal_path(&options.out), &inputs, model_digest, options.restart)?),
        false => None,
    };
    let resumed_blocks = journal.as_ref().map_or(0, Journal::known_blocks);
    let path = journal_path(&options.out);
    interrupt::set_hint(format!("what was measured is in `{}`: the same command continues it", path.display()));
    let task = meter.task("mask", 1, false);
    let outcome = local_pass(&inputs, journal.as_mut(), |progress| {
        task.of(progress.total);
        task.at(progress.done, format!("block {}/{}", progress.block + 1, progress.blocks));
    })
    .context("the mask was not finished")?;
    drop(task);
    interrupt::set_hint("");

    let samples = inputs.windows.len();
    let header = VoteHeader {
        model: model_digest,
        layout: layout.digest(),
        pruner: recipe.pruner,
        group,
        sparsity,
        samples: u32::try_from(samples).context("too many samples")?,
        sequence_tokens: u32::try_from(sequence_tokens).context("the windows are too long")?,
    };
    let encodings = match options.ballots {
        Ballots::Auto => Encodings::Auto,
        Ballots::MaskOnly => Encodings::MaskOnly,
    };
    create_new(&options.out, |writer| {
        encode_ballot(&header, layout, &outcome.norms, encodings, &checkpoint, &mut |bytes| writer.write_all(bytes))?;
        Ok(())
    })?;
    let file = MappedFile::open(&options.out)?;
    let written = Ballot::parse(file.bytes(), layout).context("the ballot just written does not read back")?;
    if let Some(journal) = journal {
        journal.remove()?;
    }
    let ballot_bytes = written.bytes().len() as u64;
    Ok(ComputeReport {
        ballot: options.out.clone(),
        ballot_bytes,
        ballot_digest: written.digest(),
        mask_root: outcome.mask_root,
        packed_mask_bytes: layout.packed_bytes(),
        times_smaller: layout.packed_bytes() as f64 / ballot_bytes as f64,
        pruner: recipe.pruner.to_string(),
        local_group: group,
        sparsity,
        pruned_weights: outcome.pruned_weights,
        prunable_weights: layout.weights(),
        samples,
        sequence_tokens,
        files: windows.iter().flat_map(|windows| windows.used_files()).map(Path::to_owned).collect(),
        resumed_blocks,
        model: options.model.clone(),
        model_digest,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes(),
        peak_device_memory_bytes: decoder.as_ref().map_or(Ok(None), Decoder::most_device_bytes)?,
        warnings: few_tokens(uses_text, (samples * sequence_tokens) as u64).into_iter().collect(),
    })
}

/// What to say about a text that is too short to hide in.
fn few_tokens(uses_text: bool, tokens: u64) -> Option<String> {
    (uses_text && tokens < FEW_CALIBRATION_TOKENS).then(|| {
        format!(
            "only {} calibration tokens: whoever holds this ballot can recover many of their words; \
             use {} or more before you hand it out",
            count(tokens),
            count(FEW_CALIBRATION_TOKENS)
        )
    })
}

/// Reconciles `--local-group` and `--sparsity`, either of which may be an n:m pattern.
pub(super) fn group_and_sparsity(
    group: Option<Group>,
    sparsity: Option<SparsityOrPattern>,
) -> anyhow::Result<(Group, Sparsity)> {
    let group = match (group, sparsity) {
        (Some(group), Some(SparsityOrPattern::Pattern(pattern))) if group != pattern => {
            bail!(
                "--sparsity {pattern} is a group of its own and contradicts --local-group {group}; drop one of the two"
            )
        }
        (_, Some(SparsityOrPattern::Pattern(pattern))) => pattern,
        (group, _) => group.unwrap_or(Group::Row),
    };
    let sparsity = match (sparsity, group.fixed_sparsity()) {
        (Some(SparsityOrPattern::Fraction(sparsity)), _) => group.with_sparsity(sparsity)?,
        (_, Some(fixed)) => fixed,
        (_, None) => Sparsity::new(1, 2)?,
    };
    Ok((group, sparsity))
}

/// Where an unfinished run keeps what it has measured: beside the ballot.
pub(super) fn journal_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".unfinished");
    PathBuf::from(name)
}

pub(super) fn open_journal(
    path: &Path,
    inputs: &LocalPass<'_>,
    model: Digest,
    restart: bool,
) -> anyhow::Result<Journal> {
    if restart {
        Journal::discard(path)?;
    }
    Ok(Journal::open(path, &inputs.journal_key(model), inputs.checkpoint.layout())?)
}

impl ComputeReport {
    fn text(&self) -> String {
        let mut rows = vec![
            ("ballot", self.ballot.display().to_string()),
            (
                "size",
                format!(
                    "{} ({} bytes), {:.0} × smaller than the packed mask",
                    bytes(self.ballot_bytes),
                    count(self.ballot_bytes),
                    self.times_smaller
                ),
            ),
            ("recipe", format!("{}, {} group, sparsity {}", self.pruner, self.local_group, self.sparsity)),
            (
                "pruned",
                format!(
                    "{} of {} weights ({})",
                    count(self.pruned_weights),
                    count(self.prunable_weights),
                    percent(self.pruned_weights, self.prunable_weights)
                ),
            ),
            ("mask root", self.mask_root.to_string()),
        ];
        if self.samples > 0 {
            let files = self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            rows.push(("calibrated on", format!("{} × {} tokens of {files}", self.samples, self.sequence_tokens)));
        }
        if self.resumed_blocks > 0 {
            rows.push(("resumed", format!("{} blocks of an earlier run were not measured again", self.resumed_blocks)));
        }
        rows.push(("time", format!("{:.1} s", self.seconds)));
        if let Some(peak) = self.peak_memory_bytes {
            rows.push(("peak memory", bytes(peak)));
        }
        if let Some(peak) = self.peak_device_memory_bytes {
            rows.push(("peak memory of the GPU", bytes(peak)));
        }
        let (program, model, ballot) = (program(), shell(&self.model), shell(&self.ballot));
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {warning}")).collect();
        format!(
            "{}{warnings}\nnext, with the others' ballots: {program} tally {ballot} OTHERS… --model {model} --out {}\n\
             or on its own: {program} apply --model {model} --mask {ballot} --out {}",
            facts(&rows),
            shell(&self.ballot.with_extension("tally")),
            shell(&self.ballot.with_extension("pruned"))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reconcile(group: Option<&str>, sparsity: Option<&str>) -> Result<(String, String), String> {
        let group = group.map(|group| group.parse().unwrap());
        let sparsity = sparsity.map(|sparsity| sparsity.parse().unwrap());
        group_and_sparsity(group, sparsity)
            .map(|(group, sparsity)| (group.to_string(), sparsity.to_string()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn group_and_sparsity_agree_or_are_refused() {
        let fine = |group: &str, sparsity: &str| Ok((group.to_owned(), sparsity.to_owned()));
        assert_eq!(reconcile(None, None), fine("row", "0.5"));
        assert_eq!(reconcile(Some("layer"), Some("0.7")), fine("layer", "0.7"));
        assert_eq!(reconcile(None, Some("2:4")), fine("2:4", "0.5"));
        assert_eq!(reconcile(Some("4:8"), None), fine("4:8", "0.5"));
        assert_eq!(reconcile(Some("2:4"), Some("0.5")), fine("2:4", "0.5"));
        assert!(reconcile(Some("2:4"), Some("0.6")).unwrap_err().contains("fixes the sparsity at 0.5"));
        assert!(reconcile(Some("row"), Some("2:4")).unwrap_err().contains("drop one"));
    }
}
