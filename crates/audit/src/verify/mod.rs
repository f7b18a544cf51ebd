//! Every check that an offline auditor can make, one after another.
//!
//! | module | what it compares |
//! |---|---|
//! | `founding` | consortium, its members' signatures, the round, and the ids given out of band |
//! | `model` | the base model with the one that the round names |
//! | `statements` | headers, holdings, results, proposals and evidence with the keys of their members |
//! | `decision` | what each height came to with its certificate and the statements it follows from |
//! | `ballots` | bodies with the headers that were signed, and with the round's terms |
//! | `mask` | the mask that the ballots come to with what the members signed |
//! | `proposals` | what aggregators proposed with what they should have |
//! | `equivocation` | everything that a member said with everything else that it said |
//! | `pruned` | a pruned checkpoint with base ⊙ mask |
//! | `beside` | what lies beside its weights with what lies beside those of the base model |
//! | `between` | what members said in one transcript with what they said in another |
//!
//! Nothing is believed because the transcript says it: names of files, digests, sizes and numbers are recomputed. What
//! an audit cannot tell is whether a silo's ballot was made from its text, or from any text; that is nobody's to see.

mod ballots;
mod beside;
mod between;
mod decision;
mod equivocation;
mod founding;
mod ledger;
mod mask;
mod model;
mod proposals;
mod pruned;
mod statements;

use std::path::{Path, PathBuf};

use fedprune_checkpoint::CheckpointError;
use fedprune_federation::round::Strategy;
use fedprune_federation::{ConsortiumId, Height, MemberIndex, Ratified, Round, RoundId};
use fedprune_mask::Digest;
use fedprune_mask::matrix_mask::mask_root;

use crate::report::{Area, Outcome, Report, chain};
use crate::transcript::{HeightFiles, Limits, Transcript, TranscriptError, body_path, height_folder};
pub use beside::{MADE, MASK_FILE};
pub(crate) use between::{contradictions, founded, why};
use ledger::Ledger;
use model::Model;
use pruned::PrunedCopy;

/// What an auditor brings along.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The consortium that the transcript should be of, from somebody trusted.
    pub consortium: Option<ConsortiumId>,
    /// The round that it should be of, from somebody trusted.
    pub round: Option<RoundId>,
    /// The base model's folder.
    pub model: Option<&'a Path>,
    /// A pruned copy of it that should be the round's.
    pub pruned: Option<&'a Path>,
    /// How much is looked at.
    pub limits: Limits,
}

/// What takes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Hashing the base model; in bytes.
    Model,
    /// Recomputing the mask of a height; in weights.
    Mask(Height),
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// Units done since the last call.
    pub advanced: u64,
    /// Units in all.
    pub total: u64,
}

/// Why there is no report: what was given is not there. What a transcript is, however damaged, is in a report.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// No transcript.
    #[error(transparent)]
    Transcript(#[from] TranscriptError),
    /// The auditor's own model cannot be opened.
    #[error("the model `{}` cannot be used", path.display())]
    Model {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Box<CheckpointError>,
    },
    /// No such folder.
    #[error("`{}` is no folder; give the pruned checkpoint that is to be checked", .0.display())]
    NoPruned(PathBuf),
}

/// What all checks of a founded round look at.
struct Context<'a> {
    transcript: &'a Transcript,
    consortium: &'a Ratified,
    round: &'a Round,
    model: Option<&'a Model>,
    progress: &'a (dyn Fn(Progress) + Sync),
    /// Whether it is measured how far ballots agree.
    agreement: bool,
}

impl Context<'_> {
    /// The name of a member.
    fn name(&self, member: MemberIndex) -> String {
        self.consortium.member(member).map_or_else(|| format!("member {member}"), |known| known.name.clone())
    }

    /// Names in text: `a`, `b`.
    fn names(&self, members: impl IntoIterator<Item = MemberIndex>) -> String {
        let quoted: Vec<String> = members.into_iter().map(|member| format!("`{}`", self.name(member))).collect();
        quoted.join(", ")
    }
}

/// Checks the transcript in a folder.
///
/// # Errors
/// [`AuditError`] when there is no transcript, or no model where one is said to be. Anything wrong with a transcript
/// is in the report.
pub fn verify(
    transcript: &Path,
    options: &Options<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, AuditError> {
    audit(transcript, options, false, progress)
}

/// As [`verify`], and measures how far the ballots agree on each matrix, where the model is there: votes of every weight
/// are counted, which the mask alone does not always take.
///
/// # Errors
/// As [`verify`].
pub fn verify_and_measure(
    transcript: &Path,
    options: &Options<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, AuditError> {
    audit(transcript, options, true, progress)
}

fn audit(
    transcript: &Path,
    options: &Options<'_>,
    agreement: bool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, AuditError> {
    let mut ledger = Ledger::default();
    let transcript = match Transcript::open(transcript, &options.limits) {
        Ok(transcript) => transcript,
        Err(error @ (TranscriptError::TooManyFiles { .. } | TranscriptError::TooManyBytes { .. })) => {
            let subject = "transcript".to_owned();
            let why = chain(&error);
            ledger.add(Area::Files, None, subject, "its size with what a transcript may have", ledger::failed(why));
            return Ok(ledger.into_report(options, None));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(pruned) = options.pruned.filter(|pruned| !pruned.is_dir()) {
        return Err(AuditError::NoPruned(pruned.to_owned()));
    }
    let checkpoint = options.model.map(model::open).transpose()?;
    note_files(&transcript, &mut ledger);
    let Some((consortium, round)) = founding::check(&transcript, options, &mut ledger) else {
        let why = "what comes before it failed".to_owned();
        ledger.add(Area::Round, None, "everything else".to_owned(), "nothing", Outcome::NotChecked { why });
        return Ok(ledger.into_report(options, None));
    };
    let model = checkpoint.and_then(|checkpoint| model::check(checkpoint, &round, &mut ledger, progress));
    if options.model.is_none() {
        let why = "no model was given".to_owned();
        ledger.add(Area::Model, None, "base model".to_owned(), "nothing", Outcome::NotChecked { why });
    }
    let context = Context {
        transcript: &transcript,
        consortium: &consortium,
        round: &round,
        model: model.as_ref(),
        progress,
        agreement,
    };
    let pruned = options.pruned.and_then(|path| pruned::open(path, &context, &mut ledger));
    audit_heights(&context, pruned, &mut ledger);
    note_bodies(&transcript, &mut ledger);
    Ok(ledger.into_report(options, Some((&consortium, &round))))
}

/// What has no place in a transcript.
fn note_files(transcript: &Transcript, ledger: &mut Ledger) {
    for folder in transcript.not_folders() {
        let why = "it is not a folder; links are not followed".to_owned();
        ledger.add(Area::Files, None, format!("`{folder}`"), "its kind with what lies there", ledger::failed(why));
    }
    let (names, count) = transcript.unknown();
    for name in names {
        ledger.note(format!("`{name}` is no part of a transcript; nothing was checked about it"));
    }
    if count > names.len() {
        ledger.note(format!("{} more files are no part of a transcript", count - names.len()));
    }
}

/// Ballots that no decision counts.
fn note_bodies(transcript: &Transcript, ledger: &mut Ledger) {
    let idle: Vec<&Digest> = transcript.bodies().iter().filter(|body| !ledger.counted.contains(*body)).collect();
    if let Some(first) = idle.first() {
        let (count, first) = (idle.len(), body_path(**first));
        ledger.note(format!("{count} ballots count at no height, such as `{first}`; nothing was checked about them"));
    }
}

/// All heights in order, and what they come to together.
fn audit_heights(context: &Context<'_>, mut pruned: Option<PrunedCopy>, ledger: &mut Ledger) {
    let one_shot = context.round.terms().strategy == Strategy::OneShot;
    let expected = context.model.map(|model| model.heights).or(one_shot.then_some(1));
    let present = context.transcript.heights().map(|(height, _)| height.0.saturating_add(1)).max().unwrap_or(0);
    let none = HeightFiles::default();
    let mut digests: Option<Vec<Digest>> = Some(Vec::new());
    let mut abandoned = None;
    // folders beyond the last height are looked at too; their number is bounded by the files that were listed
    let all = expected.unwrap_or(present.max(1)).min(MAX_HEIGHTS);
    for height in (0..all).map(Height) {
        let files = context.transcript.height(height).unwrap_or(&none);
        let outcome = decision::audit_height(context, height, files, pruned.as_mut(), ledger);
        if outcome.abandoned {
            abandoned = Some(height);
            break;
        }
        match (&mut digests, outcome.digests) {
            (Some(all), Some(mut some)) => all.append(&mut some),
            (slot, _) => *slot = None,
        }
    }
    count_heights(context, expected, abandoned, ledger);
    if let (Some(model), Some(digests), None) = (context.model, digests, abandoned)
        && digests.len() == model.layout().matrices().len()
    {
        ledger.mask_root = Some(mask_root(model.layout().digest(), digests));
    }
    if let Some(pruned) = pruned {
        pruned.finish(context, abandoned.is_some(), ledger);
    }
}

/// More heights than any model has blocks; a claim beyond is not walked through.
const MAX_HEIGHTS: u32 = 1 << 16;
/// Heights without a decision that are named.
const MAX_NOTED: usize = 10;

/// Compares the folders of heights with the number that the round has.
fn count_heights(context: &Context<'_>, expected: Option<u32>, abandoned: Option<Height>, ledger: &mut Ledger) {
    let subject = || "number of heights".to_owned();
    // a height that was begun by some, and that the round did not come to, says nothing against it
    let beyond = |last: u32, ledger: &mut Ledger| {
        let folders = context.transcript.heights().filter(|(height, _)| height.0 > last);
        let (decided, begun): (Vec<_>, Vec<_>) = folders.partition(|(_, files)| files.settled);
        for (height, _) in begun.iter().take(MAX_NOTED) {
            let folder = height_folder(*height);
            ledger.note(format!("`{folder}` is beyond the last height and has no decision; nothing in it was checked"));
        }
        decided.first().map(|(height, _)| *height)
    };
    if let Some(last) = abandoned {
        let compared = format!("the decisions with the end at height {last}, which was abandoned");
        let outcome = match beyond(last.0, ledger) {
            None => Outcome::Passed,
            Some(height) => ledger::failed(format!("there is a decision of height {height}, after the round's end")),
        };
        ledger.add(Area::Decision, None, subject(), compared, outcome);
        return;
    }
    let Some(expected) = expected else {
        let why = "how many blocks the model has, only the model tells".to_owned();
        ledger.add(
            Area::Decision,
            None,
            subject(),
            "the decisions with the model's blocks",
            Outcome::NotChecked { why },
        );
        return;
    };
    let compared = format!("the decisions with the {expected} that the round has");
    let outcome = match beyond(expected.saturating_sub(1), ledger) {
        None => Outcome::Passed,
        Some(height) => {
            ledger::failed(format!("there is a decision of height {height}, which the round does not have"))
        }
    };
    ledger.add(Area::Decision, None, subject(), compared, outcome);
}
