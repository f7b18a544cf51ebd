//! What a node needs of this machine.

use std::path::{Path, PathBuf};

use fedprune_checkpoint::Checkpoint;
use fedprune_federation::ballot::largest_body_bytes;
use fedprune_federation::{Height, Round};
use fedprune_model::text::find_text_files;
use fedprune_model::{ComputeDType, DeviceName};
use fedprune_node::preflight::{self, Clock};
use fedprune_node::storage::fs::available_bytes;

use super::Check;
use crate::args::{DeviceOptions, PreflightOptions};
use crate::commands::machine_memory;
use crate::files::{program, shell};
use crate::output::{bytes, chain, count};

/// How far a clock may be off before ballots' times mislead people.
const MOST_CLOCK_ERROR_MS: u64 = 1000;
/// Copies of every ballot on disk: the store's, what is arriving, the transcript's.
const BALLOT_COPIES: u64 = 3;
/// Log, index and everything small.
const SMALL_FILES_BYTES: u64 = 64 << 20;
/// What a node and the process that computes take besides weights and hidden states: program, tokenizer, buffers.
const PROCESS_BYTES: u64 = 96 << 20;
/// Activations of a batch: attention, MLP and copies of them, each bounded by the decoder.
const ACTIVATION_BYTES: u64 = 5 * (8 << 20);

/// Whether something keeps the clock.
pub(super) fn clock() -> Check {
    match preflight::clock() {
        Clock::Synchronised { most_ms: Some(most_ms) } if most_ms > MOST_CLOCK_ERROR_MS => Check::warning(
            "clock",
            format!("a time service keeps it, and says that it may be off by {} s", most_ms.div_ceil(1000)),
            "look at what the service says: timedatectl timesync-status, or chronyc tracking",
        ),
        Clock::Synchronised { most_ms: Some(most_ms) } => {
            Check::ok("clock", format!("a time service keeps it; off by {most_ms} ms at most"))
        }
        Clock::Synchronised { most_ms: None } => Check::ok("clock", "a time service keeps it"),
        Clock::Free => Check::warning(
            "clock",
            "no time service keeps it, as far as the system says",
            "timedatectl set-ntp true, or install chrony; a round goes on with wrong clocks, but times in it mislead",
        ),
        Clock::Unknown => Check::warning(
            "clock",
            "unknown: the system does not say whether a time service keeps it",
            "compare it by hand: date -u",
        ),
    }
}

/// Whether the device is there.
pub(super) fn device(options: &DeviceOptions) -> Check {
    match options.device.open() {
        Ok(device) => {
            let dtype = options.dtype.unwrap_or_else(|| ComputeDType::default_for(&device));
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = options.threads.map_or(processors, usize::from);
            Check::ok("device", format!("{} in {dtype}, {threads} threads of {processors} processors", options.device))
        }
        Err(error) => Check::failed("device", chain(&error.into()), "use --device cpu, which is always there"),
    }
}

/// Whether there is text to compute from; nothing of it is read.
pub(super) fn text(options: &PreflightOptions, round: Option<&Round>) -> Option<Check> {
    if round.is_some_and(|round| round.terms().calibration.is_none()) {
        return None;
    }
    if options.data.is_empty() {
        let settings = shell(&options.home.join(crate::settings::FILE));
        let remedy = format!("give it with --data PATH, or write it into {settings}");
        return Some(Check::warning("text", "nobody says where the calibration text is", remedy));
    }
    Some(match find_text_files(&options.data) {
        Ok(files) => {
            let total: u64 = files.iter().map(fedprune_model::text::TextFile::bytes).sum();
            let calibration = round.and_then(|round| round.terms().calibration);
            let fewest = calibration.map_or(0, |calibration| calibration.minimum_calibration_tokens);
            if total < fewest {
                // a token has a byte at least
                let found =
                    format!("{} cannot hold the {} tokens that the round wants at least", bytes(total), count(fewest));
                return Some(Check::failed("text", found, "give more text with --data PATH"));
            }
            Check::ok("text", format!("{} files, {}", count(files.len() as u64), bytes(total)))
        }
        Err(error) => Check::error("text", &error.into()),
    })
}

/// The nearest folder that exists.
fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|folder| folder.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// Bytes that a round may write beside the pruned model: everybody's ballots, this member's mask.
fn round_bytes(round: &Round, checkpoint: &Checkpoint, members: usize) -> Option<u64> {
    let layout = checkpoint.layout();
    let heights = round.heights(layout).ok()?;
    let mut ballots = 0u64;
    for height in 0..heights {
        ballots = ballots.saturating_add(largest_body_bytes(&round.layout_at(layout, Height(height)).ok()?));
    }
    let ballots = ballots.saturating_mul(members as u64).saturating_mul(BALLOT_COPIES);
    Some(ballots.saturating_add(layout.packed_bytes()).saturating_add(SMALL_FILES_BYTES))
}

/// Whether the disk has room for ballots and the pruned copy.
pub(super) fn disk(options: &PreflightOptions, round: &Round, model: Option<&Checkpoint>, members: usize) -> Check {
    let Some(checkpoint) = model else {
        return Check::warning("disk", "unknown: it depends on the model", "give --model DIR");
    };
    let Some(of_round) = round_bytes(round, checkpoint, members) else {
        return Check::failed("disk", "the model is not the round's", "give the round's model with --model DIR");
    };
    let copy = checkpoint.bytes();
    let home = existing(&options.home);
    let out = options.out.as_deref().map(existing);
    let places = match out {
        Some(out) if !same_disk(&home, &out) => vec![(home, of_round), (out, copy)],
        _ => vec![(home, of_round.saturating_add(copy))],
    };
    let mut said = Vec::new();
    for (folder, needed) in &places {
        match available_bytes(folder) {
            None => said.push(format!("`{}`: unknown room, at most {} needed", folder.display(), bytes(*needed))),
            Some(room) if room < *needed => {
                return Check::failed(
                    "disk",
                    format!(
                        "`{}` has room for {}, and up to {} are needed",
                        folder.display(),
                        bytes(room),
                        bytes(*needed)
                    ),
                    format!("make room, or put the pruned copy ({}) elsewhere with --out DIR", bytes(copy)),
                );
            }
            Some(room) => {
                said.push(format!("`{}`: {} free, at most {} needed", folder.display(), bytes(room), bytes(*needed)));
            }
        }
    }
    Check::ok("disk", said.join("; "))
}

fn same_disk(left: &Path, right: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let of = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
        of(left) == of(right)
    }
    #[cfg(not(unix))]
    {
        let _ = (left, right);
        true
    }
}

/// Bytes that computing a ballot takes at most: one block as it is computed with, the hidden states of all windows,
/// and what every process has.
pub(in crate::commands) fn needed_memory_bytes(round: &Round, checkpoint: &Checkpoint, device: &DeviceOptions) -> u64 {
    let layout = checkpoint.layout();
    let weight_bytes = match (device.dtype, device.device) {
        (Some(ComputeDType::BF16 | ComputeDType::F16), _) | (None, DeviceName::Cuda(_)) => 2,
        _ => 4,
    };
    let block = (0..layout.blocks())
        .map(|block| {
            layout
                .block(block)
                .filter_map(|index| layout.matrices().get(index))
                .map(|matrix| matrix.weights())
                .sum::<u64>()
        })
        .max()
        .unwrap_or(0);
    let hidden = round.terms().calibration.map_or(0, |calibration| {
        let tokens = u64::from(calibration.samples) * u64::from(calibration.window_tokens);
        tokens.saturating_mul(checkpoint.config().hidden_size as u64).saturating_mul(weight_bytes)
    });
    let weights = block.saturating_mul(weight_bytes);
    weights.saturating_add(hidden).saturating_add(ACTIVATION_BYTES).saturating_add(PROCESS_BYTES)
}

/// Whether there is memory for this model.
pub(super) fn memory(options: &PreflightOptions, round: &Round, model: Option<&Checkpoint>) -> Check {
    let Some(checkpoint) = model else {
        return Check::warning("memory", "unknown: it depends on the model", "give --model DIR");
    };
    let needed = needed_memory_bytes(round, checkpoint, &options.device);
    let Some(available) = machine_memory::available() else {
        return Check::warning(
            "memory",
            format!("about {} needed; the system does not say what is available", bytes(needed)),
            "look by hand: free -h",
        );
    };
    let found = format!("about {} needed, {} available", bytes(needed), bytes(available));
    if available < needed {
        let remedy = format!(
            "stop other programs, compute the ballot on a larger machine (`{} mask compute`, then --ballot FILE), or \
             agree on fewer --nsamples",
            program()
        );
        return Check::failed("memory", found, remedy);
    }
    Check::ok("memory", found)
}
