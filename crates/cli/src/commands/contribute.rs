//! `fedprune mask contribute`: a silo's ballots for a round, as its node asks for them.
//!
//! The node runs this as a process of its own, so that a model that does not fit into memory costs the ballot
//! and not the vote. It says on standard output, one JSON document a line, which ballot it has written. In an
//! iterative round it then waits, on standard input, for the path of the mask that was agreed on for that
//! block, prunes the block by it, and goes on to the next. What was written before is not computed again.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_federation::round::{Ballots, BosRule, Round, Sampling as RoundSampling, Strategy};
use fedprune_federation::{Consortium, Height};
use fedprune_mask::ballot::{Ballot, Encodings, VoteHeader, digest_of_bytes, encode_ballot};
use fedprune_mask::weights::MatricesFrom;
use fedprune_mask::{Digest, Layout, MatrixMask, NormVector, Tap};
use fedprune_model::{Bos, Decoder, Sampling, Tokenizer, WindowRequest, Windows, calibration_windows};
use fedprune_prune::{BlockPass, LocalPass, Recipe, forget_data_free, local_pass, windows_digest};
use serde::{Deserialize, Serialize};

use super::mask_compute::{journal_path, open_journal};
use super::mask_file::MappedFile;
use super::{content_digest, decoder};
use crate::args::ContributeOptions;
use crate::files::{create_new, peak_memory_bytes, read_small, replace_document};
use crate::progress::Meter;

/// Most bytes of a file that says what a ballot was made from.
const MAX_SOURCE_BYTES: usize = 4 << 10;
/// Longest path of a mask that is read from standard input, in bytes.
const MAX_LINE_BYTES: u64 = 16 << 10;

/// One line of standard output: a ballot is written.
#[derive(Debug, Serialize)]
struct Contribution {
    height: u32,
    #[serde(serialize_with = "crate::output::lossy::path")]
    ballot: PathBuf,
    ballot_bytes: u64,
    calibration_tokens: u64,
    /// Digest of the token windows that it was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Digest>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

/// What lies beside a ballot, and never leaves.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MadeFrom {
    ballot: Digest,
    /// Digest of the token windows.
    calibration: Option<Digest>,
}

/// Nothing more than was said line by line.
#[derive(Debug, Serialize)]
pub struct Done {
    heights: u32,
}

crate::report!(Done);

impl Done {
    fn text(&self) -> String {
        format!("{} ballots written", self.heights)
    }
}

/// Everything that one silo computes with.
struct Silo<'a> {
    options: &'a ContributeOptions,
    round: Round,
    checkpoint: Checkpoint,
    recipe: Recipe,
    data_free: Vec<(u32, Tap)>,
    windows: Option<Windows>,
    decoder: Option<Decoder>,
    /// Most heights, for which nobody is told.
    quietly: Option<u32>,
    started: Instant,
}

/// A silo's ballot of height 0, and what it was made from.
pub(super) struct FirstBallot {
    pub path: PathBuf,
    pub checkpoint: Checkpoint,
    /// The layout of height 0.
    pub layout: Layout,
    /// None for a pruner that looks at no text.
    pub windows: Option<Windows>,
    /// Digest of the windows.
    pub calibration: Option<Digest>,
}

/// Writes the ballots of a round.
///
/// # Errors
/// What is wrong with documents, model or text. An unfinished run continues when repeated.
pub fn run(options: &ContributeOptions, meter: &Meter) -> anyhow::Result<Done> {
    let silo = open(options, meter)?;
    let heights = silo.heights(meter)?;
    Ok(Done { heights })
}

/// Writes the ballot of height 0 where the node will look for it, unless it is there; `is_stale` says of one that is there
/// whether it is made again, given the digest of today's windows.
///
/// # Errors
/// As [`run`].
pub(super) fn first_ballot(
    options: &ContributeOptions,
    meter: &Meter,
    is_stale: impl FnOnce(&Path, Option<Digest>) -> anyhow::Result<bool>,
) -> anyhow::Result<FirstBallot> {
    let mut silo = open(options, meter)?;
    silo.quietly = Some(1);
    let path = silo.ballot_path(0);
    let calibration = silo.calibration();
    if path.symlink_metadata().is_ok() && is_stale(&path, calibration)? {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    silo.heights(meter)?;
    let layout = silo.round.layout_at(silo.checkpoint.layout(), Height(0))?;
    Ok(FirstBallot { path, layout, windows: silo.windows, calibration, checkpoint: silo.checkpoint })
}

/// Reads documents, model and text.
fn open<'a>(options: &'a ContributeOptions, meter: &Meter) -> anyhow::Result<Silo<'a>> {
    let started = Instant::now();
    options.device.limit_threads();
    let consortium = read_consortium(&options.consortium)?;
    let round = read_round(&options.round, &consortium)?;
    let member = consortium
        .index_by_name(&options.member)
        .with_context(|| format!("`{}` is no member of `{}`", options.member, options.consortium.display()))?;
    let checkpoint = Checkpoint::open(&options.model)?;
    round.heights(checkpoint.layout())?;
    let terms = round.terms();
    let model = content_digest(&checkpoint, meter);
    if model != terms.base_model {
        bail!(
            "`{}` is the model {}, and the round is about {}; give the round's model",
            options.model.display(),
            model.short(),
            terms.base_model.short()
        );
    }
    let recipe = Recipe { pruner: terms.pruner, group: terms.local_group, sparsity: terms.sparsity };
    let data_free: Vec<(u32, Tap)> = terms.data_free.iter().map(|named| (named.block, named.tap)).collect();
    let (mut windows, mut run_on) = (None, None);
    if let Some(calibration) = terms.calibration {
        if options.data.is_empty() {
            bail!("the round measures activations; give the silo's text with --data PATH");
        }
        let sequence_tokens = calibration.window_tokens as usize;
        let minimum = calibration.minimum_calibration_tokens.div_ceil(u64::from(calibration.window_tokens)).max(1);
        let sampling = match (calibration.sampling, round.seed(member)) {
            (RoundSampling::Random { .. }, Some(seed)) => Sampling::Random { seed },
            _ => Sampling::Sequential,
        };
        let request = WindowRequest {
            samples: calibration.samples as usize,
            minimum_samples: usize::try_from(minimum).unwrap_or(usize::MAX),
            bos: match calibration.bos {
                BosRule::None => Bos::None,
                BosRule::EachText => Bos::EachText,
                BosRule::EachWindow => Bos::EachWindow,
            },
            sequence_tokens,
            sampling,
            field: options.field.clone(),
        };
        let tokenizer = Tokenizer::open(checkpoint.dir())?;
        windows = Some(calibration_windows(checkpoint.config(), &tokenizer, &options.data, &request)?);
        run_on = Some(decoder(&checkpoint, &options.device, sequence_tokens)?);
    }
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot create `{}`", options.out.display()))?;
    Ok(Silo { options, round, checkpoint, recipe, data_free, windows, decoder: run_on, quietly: None, started })
}

fn read_consortium(path: &Path) -> anyhow::Result<Consortium> {
    let text = String::from_utf8(read_small(path, fedprune_federation::consortium::DOCUMENT_LIMIT)?)
        .with_context(|| format!("`{}` is not text", path.display()))?;
    Consortium::parse(&text).with_context(|| format!("`{}` cannot be used", path.display()))
}

fn read_round(path: &Path, consortium: &Consortium) -> anyhow::Result<Round> {
    let text = String::from_utf8(read_small(path, fedprune_federation::round::DOCUMENT_LIMIT)?)
        .with_context(|| format!("`{}` is not text", path.display()))?;
    Round::parse(&text, consortium).with_context(|| format!("`{}` cannot be used", path.display()))
}

impl Silo<'_> {
    /// Writes the ballots; returns of how many heights.
    fn heights(&self, meter: &Meter) -> anyhow::Result<u32> {
        match self.round.terms().strategy {
            Strategy::OneShot => self.one_shot(meter),
            Strategy::Iterative => self.iterative(meter),
        }
    }

    fn ballot_path(&self, height: u32) -> PathBuf {
        self.options.out.join(format!("height-{height:04}.ballot"))
    }

    /// Digest of today's token windows.
    fn calibration(&self) -> Option<Digest> {
        self.windows.as_ref().map(|windows| windows_digest(&windows.windows))
    }

    /// Where it says what a ballot was made from.
    fn source_path(&self, height: u32) -> PathBuf {
        self.options.out.join(format!("height-{height:04}.from.json"))
    }

    /// Whether a ballot of an iterative round that lies there was made from today's text. What an approval says of later
    /// ballots is which text they are made from: one that cannot be told that of is made again.
    fn is_of_this_text(&self, height: u32) -> anyhow::Result<bool> {
        let path = self.source_path(height);
        if path.symlink_metadata().is_err() {
            return Ok(false);
        }
        let from: Option<MadeFrom> = serde_json::from_slice(&read_small(&path, MAX_SOURCE_BYTES)?).ok();
        let ballot = MappedFile::open(&self.ballot_path(height))?;
        let now = MadeFrom { ballot: digest_of_bytes(ballot.bytes()), calibration: self.calibration() };
        Ok(from == Some(now))
    }

    fn header(&self, layout: &Layout) -> VoteHeader {
        let windows = self.windows.as_ref().map_or(&[][..], |windows| &windows.windows);
        let terms = self.round.terms();
        VoteHeader {
            model: terms.base_model,
            layout: layout.digest(),
            pruner: terms.pruner,
            group: terms.local_group,
            sparsity: terms.sparsity,
            samples: u32::try_from(windows.len()).unwrap_or(u32::MAX),
            sequence_tokens: terms.calibration.map_or(0, |calibration| calibration.window_tokens),
        }
    }

    /// Whether this height's ballot was written by an earlier run of the same round.
    fn is_written(&self, height: u32, layout: &Layout) -> anyhow::Result<bool> {
        let path = self.ballot_path(height);
        if path.symlink_metadata().is_err() {
            return Ok(false);
        }
        let file = MappedFile::open(&path)?;
        let ballot = Ballot::parse(file.bytes(), layout);
        let unusable = || format!("`{}` is of another round; remove it to compute the ballot again", path.display());
        match ballot.with_context(unusable)?.header() {
            fedprune_mask::ballot::BallotHeader::Vote(vote) if *vote == self.header(layout) => Ok(true),
            _ => bail!(unusable()),
        }
    }

    fn write(&self, height: u32, layout: &Layout, first: usize, norms: &[NormVector]) -> anyhow::Result<()> {
        let encodings = match self.round.terms().ballots {
            Ballots::Auto => Encodings::Auto,
            Ballots::MaskOnly => Encodings::MaskOnly,
        };
        let weights = MatricesFrom { source: &self.checkpoint, first };
        let path = self.ballot_path(height);
        create_new(&path, |writer| {
            encode_ballot(&self.header(layout), layout, norms, encodings, &weights, &mut |bytes| {
                writer.write_all(bytes)
            })?;
            Ok(())
        })?;
        let ballot = digest_of_bytes(MappedFile::open(&path)?.bytes());
        let from = serde_json::to_vec(&MadeFrom { ballot, calibration: self.calibration() })?;
        replace_document(&self.source_path(height), &from)
    }

    /// Says that a ballot is there.
    fn announce(&self, height: u32) -> anyhow::Result<()> {
        if self.quietly.is_some() {
            return Ok(());
        }
        let ballot = self.ballot_path(height);
        let ballot_bytes =
            std::fs::metadata(&ballot).with_context(|| format!("cannot read `{}`", ballot.display()))?.len();
        let line = serde_json::to_string(&Contribution {
            height,
            ballot,
            ballot_bytes,
            calibration_tokens: self.windows.as_ref().map_or(0, Windows::tokens),
            calibration: self.calibration(),
            seconds: self.started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
        })?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).context("nobody reads what was computed")
    }

    fn one_shot(&self, meter: &Meter) -> anyhow::Result<u32> {
        let layout = self.checkpoint.layout();
        if !self.is_written(0, layout)? {
            let inputs = LocalPass {
                checkpoint: &self.checkpoint,
                decoder: self.decoder.as_ref(),
                windows: self.windows.as_ref().map_or(&[], |windows| &windows.windows),
                recipe: self.recipe,
                data_free: &self.data_free,
            };
            let path = journal_path(&self.ballot_path(0));
            let mut journal = match self.windows {
                Some(_) => Some(open_journal(&path, &inputs, self.round.terms().base_model, false)?),
                None => None,
            };
            let task = meter.task("mask", 1, false);
            let outcome = local_pass(&inputs, journal.as_mut(), |progress| {
                task.of(progress.total);
                task.at(progress.done, format!("block {}/{}", progress.block + 1, progress.blocks));
            })
            .context("the mask was not finished")?;
            drop(task);
            self.write(0, layout, 0, &outcome.norms)?;
            if let Some(journal) = journal {
                journal.remove()?;
            }
        }
        self.announce(0)?;
        Ok(1)
    }

    fn iterative(&self, meter: &Meter) -> anyhow::Result<u32> {
        let layout = self.checkpoint.layout();
        let blocks = u32::try_from(layout.blocks()).context("too many blocks")?;
        let windows = self.windows.as_ref().map_or(&[][..], |windows| &windows.windows);
        let task = meter.task("masks", 1, false);
        let mut pass = match &self.decoder {
            Some(decoder) => Some(BlockPass::new(&self.checkpoint, decoder, windows, |progress| {
                task.of(progress.total);
                task.at(progress.done, format!("block {}/{}", progress.block + 1, progress.blocks));
            })?),
            None => None,
        };
        let mut masks = std::io::stdin().lock();
        for height in 0..blocks {
            let block_layout = self.round.layout_at(layout, Height(height))?;
            let block = height as usize;
            let first = layout.block(block).start;
            let path = self.ballot_path(height);
            // of the first an approval names the very ballot, and one of an older program does not say its text
            let by_digest = height == 0 && self.source_path(height).symlink_metadata().is_err();
            if path.symlink_metadata().is_ok() && !by_digest && !self.is_of_this_text(height)? {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
            }
            if !self.is_written(height, &block_layout)? {
                let norms = match &mut pass {
                    Some(pass) => {
                        let mut norms = pass.measure()?.norms;
                        forget_data_free(layout, block, self.recipe.pruner, &self.data_free, &mut norms);
                        norms
                    }
                    None => block_layout.taps().iter().map(|_| NormVector::default()).collect(),
                };
                self.write(height, &block_layout, first, &norms)?;
            }
            self.announce(height)?;
            if self.quietly.is_some_and(|most| height + 1 >= most) {
                return Ok(height + 1);
            }
            let Some(path) = next_line(&mut masks)? else { return Ok(height + 1) };
            if let Some(pass) = &mut pass {
                pass.advance(&self.agreed_masks(&path, &block_layout, first)?)?;
            }
        }
        Ok(blocks)
    }

    /// The masks of one block that were agreed on.
    fn agreed_masks(&self, path: &Path, layout: &Layout, first: usize) -> anyhow::Result<Vec<MatrixMask>> {
        let file = MappedFile::open(path)?;
        let unusable = || format!("`{}` cannot be used", path.display());
        let mask = Ballot::parse(file.bytes(), layout).with_context(unusable)?;
        let masks = (0..layout.matrices().len()).map(|index| mask.mask(index, self.checkpoint.matrix(first + index)));
        masks.collect::<Result<Vec<_>, _>>().with_context(unusable)
    }
}

/// One line of standard input, as a path; none at its end.
fn next_line(input: &mut impl BufRead) -> anyhow::Result<Option<PathBuf>> {
    let mut line = String::new();
    let read = std::io::Read::take(&mut *input, MAX_LINE_BYTES)
        .read_line(&mut line)
        .context("cannot read which mask was agreed on")?;
    Ok((read > 0).then(|| PathBuf::from(line.trim_end_matches(['\n', '\r']))))
}
