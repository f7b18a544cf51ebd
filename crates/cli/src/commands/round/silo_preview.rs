//! `fedprune round preview`: the ballot, computed before anything is sent, and what it tells about the text behind it.
//!
//! The ballot lies where the node will look for it, so that what was looked at is what is sent: a record beside it,
//! `preview.json`, names its digest, and an approval names both. The record holds numbers and no words.
//!
//! | module | what it does |
//! |---|---|
//! | `attack` | what a curious member reads from this ballot, and would read from ballots of less or more text |
//! | `documents` | which files were read |
//! | `record` | `preview.json` |
//! | `begun` | what a node has signed of the round already, after which nothing is seen before it is sent |
//! | `html` | the same as a page |

mod attack;
mod begun;
mod documents;
mod html;
mod record;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::policy::Refused;
use fedprune_federation::{ConsortiumId, RoundId};
use fedprune_mask::ballot::{Ballot, EncodedBytes, digest_of_bytes};
use fedprune_mask::{Digest, Layout};
use serde::Serialize;

pub(super) use begun::Begun;
pub(in crate::commands) use documents::all_encodings;
pub(in crate::commands) use record::Record;

use super::approve::refused;
use super::model::open;
use super::preview::{Preview, covers};
use super::terms::TermsReport;
use crate::args::{ContributeOptions, RoundPreviewOptions};
use crate::commands::contribute::{FirstBallot, first_ballot};
use crate::commands::home::{Home, consortium_path, read_round};
use crate::commands::mask_file::MappedFile;
use crate::commands::preflight::is_in_use;
use crate::commands::site_policy::SitePolicy;
use crate::files::{check_new, create_secret, program, shell};
use crate::output::{bytes, count, facts, tame};
use crate::progress::Meter;
use attack::Attack;
use documents::Documents;

/// The answer of `fedprune round preview`.
#[derive(Debug, Serialize)]
pub struct PreviewReport {
    round: RoundId,
    consortium: String,
    consortium_id: ConsortiumId,
    member: String,
    #[serde(serialize_with = "crate::output::lossy::path")]
    home: PathBuf,
    terms: TermsReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    documents: Option<Documents>,
    ballot: BallotReport,
    /// What an approval would bind.
    approval_covers: Vec<String>,
    /// What leaves besides, what it tells by its kind, and where it stays.
    silo: Preview,
    attack: Attack,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyReport>,
    /// The record, and what an approval names it by.
    #[serde(serialize_with = "crate::output::lossy::path")]
    record: PathBuf,
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
    warnings: Vec<String>,
    #[serde(skip)]
    typed: Typed,
}

/// The ballot that will be sent.
#[derive(Debug, Serialize)]
struct BallotReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    digest: Digest,
    bytes: u64,
    /// Of this height; later ones depend on what is agreed on before them.
    height: u32,
    heights: u32,
    /// How many inputs are encoded in which way.
    encodings: Vec<(&'static str, usize)>,
    encoded_bytes: EncodedBytes,
    /// The masks as packed bits, for comparison.
    packed_bytes: u64,
}

#[derive(Debug, Serialize)]
struct PolicyReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    digest: Digest,
    /// Rules that say no to this ballot.
    refused: Vec<Refused>,
}

/// For the command that is to be typed next.
#[derive(Debug, Default)]
struct Typed {
    round: PathBuf,
    model: PathBuf,
    data: Vec<PathBuf>,
}

crate::report!(PreviewReport, exit);

/// Computes the ballot, attacks it and says what came of it.
///
/// # Errors
/// What is wrong with home, round, model, text or policy; a policy that refuses the round; a ballot that is signed already.
pub fn preview(options: &RoundPreviewOptions, meter: &Meter) -> anyhow::Result<PreviewReport> {
    if let Some(page) = &options.out {
        check_new(page)?;
    }
    let home = Home::open(&options.home)?;
    let consortium = home.consortium.consortium();
    let (round, _) = read_round(&options.round, consortium)?;
    if let Some(refusal) = Begun::of(&home, &round)?.refusal(&round) {
        return Err(refusal.into());
    }
    let policy = SitePolicy::find(&home.folder, options.policy.as_deref())?;
    if let Some(site) = &policy {
        // before any text is read
        site.heed(site.policy.check_round(round.terms(), consortium))?;
    }
    let heights = open(&options.model, &round, meter)?.1;
    let folder = home.folder.join("rounds").join(round.id().to_string());
    let record_path = folder.join(record::FILE);
    let contribute = ContributeOptions {
        consortium: consortium_path(&home.folder),
        round: options.round.clone(),
        member: home.name().to_owned(),
        model: options.model.clone(),
        data: options.data.clone(),
        field: options.field.clone(),
        device: options.device.clone(),
        out: folder.join("contribution"),
    };
    if is_in_use(&options.home) {
        bail!(
            "a node runs on `{}`, and may be computing its ballot; wait for its end, or stop it",
            options.home.display()
        );
    }
    // one of which it is not known any more what it is made of is made again, of this text
    let FirstBallot { path, checkpoint, layout, windows, calibration } =
        first_ballot(&contribute, meter, |path, calibration| Ok(!is_previewed(path, &folder, calibration)?))?;
    let file = MappedFile::open(&path)?;
    let ballot = Ballot::parse(file.bytes(), &layout).with_context(|| file.unusable())?;
    let digest = ballot.digest();
    let documents = windows.as_ref().map(|windows| Documents::of(windows, calibration)).transpose()?;
    let attack = attack::run(
        &attack::Inputs { options, round: &round, checkpoint: &checkpoint, windows: windows.as_ref() },
        &ballot,
        meter,
    )?;
    let encodings = documents::encodings(&ballot);
    let record = Record::new(&round, home.name(), &ballot, documents.as_ref(), attack.score(), attack.is_unread());
    let policy = policy.map(|site| PolicyReport {
        file: site.path.clone(),
        digest: site.policy.digest(),
        refused: refused(&site.policy, &record),
    });
    let record_digest = record.write(&folder)?;
    let mut report = PreviewReport {
        round: round.id(),
        consortium: consortium.name().to_owned(),
        consortium_id: consortium.id(),
        member: home.name().to_owned(),
        home: home.folder.clone(),
        terms: TermsReport::of(round.terms(), consortium),
        ballot: BallotReport {
            file: path.clone(),
            digest,
            bytes: ballot.bytes().len() as u64,
            height: 0,
            heights,
            encodings,
            encoded_bytes: ballot.encoded_bytes(),
            packed_bytes: layout.packed_bytes(),
        },
        approval_covers: covers(round.terms().strategy, digest, calibration),
        documents,
        silo: Preview::of(&round, &home.consortium, Some((checkpoint.layout(), heights))),
        attack,
        policy,
        record: record_path,
        digest: record_digest,
        page: options.out.as_ref().map(|page| page.display().to_string()),
        warnings: home.warnings.clone(),
        typed: Typed { round: options.round.clone(), model: options.model.clone(), data: options.data.clone() },
    };
    if let Some(page) = &options.out {
        // words of the silo's text: for its owner alone, from the first byte on
        create_secret(page, html::page(&report).as_bytes())?;
        report.page = Some(page.display().to_string());
    }
    Ok(report)
}

/// Whether the ballot that lies there is the one of an earlier preview of the same text.
fn is_previewed(path: &Path, folder: &Path, calibration: Option<Digest>) -> anyhow::Result<bool> {
    let Some((record, _)) = Record::read(folder)? else { return Ok(false) };
    let file = MappedFile::open(path)?;
    Ok(record.calibration == calibration && record.ballot == digest_of_bytes(file.bytes()))
}

/// The record of a preview, if its ballot is still the one that would be sent.
///
/// # Errors
/// A ballot that changed since: the preview no longer shows what would be sent.
pub(in crate::commands) fn previewed(folder: &Path) -> anyhow::Result<Option<(Record, Digest)>> {
    let Some((record, digest)) = Record::read(folder)? else { return Ok(None) };
    let path = folder.join("contribution/height-0000.ballot");
    let file = MappedFile::open(&path).context("the ballot of the preview is gone; make another preview")?;
    if digest_of_bytes(file.bytes()) != record.ballot {
        bail!("`{}` is not the ballot that the preview showed; make another preview", path.display());
    }
    Ok(Some((record, digest)))
}

impl PreviewReport {
    fn exit(&self) -> u8 {
        let refused = self.policy.as_ref().is_some_and(|policy| !policy.refused.is_empty());
        if refused { crate::exit::REFUSED } else { 0 }
    }

    /// What is to be typed next.
    fn next(&self) -> String {
        let program = program();
        let (round, home) = (shell(&self.typed.round), shell(&self.home));
        let model = shell(&self.typed.model);
        let data: Vec<String> = self.typed.data.iter().map(|path| shell(path)).collect();
        let data = if data.is_empty() { String::new() } else { format!(" --data {}", data.join(" ")) };
        format!(
            "{program} round approve {round} --home {home} --model {model} --person NAME --role ROLE\n      \
             {program} node run --home {home} --round {} --model {model}{data}",
            self.round
        )
    }

    fn text(&self) -> String {
        let mut text = facts(&[
            ("round", self.round.to_string()),
            ("consortium", format!("{} ({})", self.consortium, self.consortium_id.0.short())),
            ("this member", self.member.clone()),
        ]);
        match &self.documents {
            Some(documents) => text.push_str(&format!("\n{}", documents.text())),
            None => text.push_str("\nno document was read: the round's pruner looks at no text\n"),
        }
        let ballot = &self.ballot;
        let encodings: Vec<String> =
            ballot.encodings.iter().map(|(name, taps)| format!("{name} for {taps} inputs")).collect();
        let of = if ballot.heights == 1 {
            "the whole model".to_owned()
        } else {
            format!("block 1 of {}; those of later blocks depend on what is agreed on before them", ballot.heights)
        };
        text.push_str(&format!(
            "\nthe ballot, as it will be sent\n{}",
            indented(&facts(&[
                ("of", of),
                ("file", ballot.file.display().to_string()),
                ("digest", ballot.digest.to_string()),
                (
                    "size",
                    format!("{} bytes; the masks as bits would be {}", count(ballot.bytes), bytes(ballot.packed_bytes)),
                ),
                ("encoding", encodings.join(", ")),
            ]))
        ));
        text.push_str("\nwhat an approval binds\n");
        for bound in &self.approval_covers {
            text.push_str(&format!("  {bound}\n"));
        }
        text.push_str(&format!("\n{}", self.attack.text()));
        text.push_str(&format!("\n{}", self.silo.text()));
        if let Some(policy) = &self.policy {
            text.push_str(&format!("\nthis site's policy, `{}`\n", tame(&policy.file.display().to_string())));
            if policy.refused.is_empty() {
                text.push_str("  refuses nothing of this round and ballot\n");
            }
            for refused in &policy.refused {
                text.push_str(&format!(
                    "  REFUSED by `{}` (line {}): it {}, and {}\n",
                    refused.rule, refused.line, refused.allowed, refused.found
                ));
            }
        }
        let mut rows = vec![("preview", format!("{} ({})", self.record.display(), self.digest))];
        if let Some(page) = &self.page {
            rows.push(("page", format!("{page}: it holds words of this silo's text; keep it here")));
        }
        text.push_str(&format!("\n{}", facts(&rows)));
        for warning in &self.warnings {
            text.push_str(&format!("warning: {}\n", tame(warning)));
        }
        if self.exit() == 0 {
            text.push_str(&format!("next: {}", self.next()));
        }
        text
    }
}

/// Lines, two places further in.
fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// Inputs that a layout has: what encodings are counted by.
fn taps(layout: &Layout) -> usize {
    layout.taps().len()
}
