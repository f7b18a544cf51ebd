//! `fedprune audit compare`, `prove` and `check-proof`: two transcripts side by side, and one small file in place of one.

use std::path::{Path, PathBuf};

use anyhow::Context;
use fedprune_audit::{Comparison, Limits};
use fedprune_federation::inclusion::INCLUSION_LIMIT;
use fedprune_federation::wire::PREFIX_BYTES;
use fedprune_federation::{
    Consortium, ConsortiumId, Height, Inclusion, ReceivedInclusion, Round, RoundId, consortium, round,
};
use fedprune_mask::Digest;
use serde::Serialize;

use crate::args::{AuditCheckProofOptions, AuditCompareOptions, AuditProveOptions};
use crate::files::{check_new, create_document, program, read_small, shell};
use crate::output::{chain, count, facts, tame};

/// Exit code of `audit prove` when no ballot of the member counts.
const NOT_COUNTED: u8 = 16;
/// Exit code of what does not hold.
const FAILED: u8 = 12;

/// The answer of `fedprune audit compare`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct CompareReport(Comparison);

/// A ballot that is proven to count.
#[derive(Debug, Serialize)]
struct ProvenBallot {
    height: Height,
    ballot: Digest,
    bytes: u64,
    /// When the member says that it signed, in milliseconds since 1970.
    claimed_unix_ms: u64,
    /// How many ballots count beside and with it.
    ballots: usize,
    /// Names of those who committed to the tally.
    committed: Vec<String>,
    mask_root: Digest,
}

/// What a proof proves.
#[derive(Debug, Serialize)]
struct Proof {
    member: String,
    consortium_name: String,
    consortium: ConsortiumId,
    round: RoundId,
    ballots: Vec<ProvenBallot>,
}

/// The answer of `fedprune audit prove`.
#[derive(Debug, Serialize)]
pub struct ProveReport {
    verdict: &'static str,
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    bytes: usize,
    proof: Option<Proof>,
    /// Heights that were decided without a ballot of the member.
    not_counted: Vec<Height>,
    #[serde(skip)]
    member: String,
}

/// The answer of `fedprune audit check-proof`.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    verdict: &'static str,
    /// Why it proves nothing.
    why: Option<String>,
    proof: Option<Proof>,
    /// Whether a round was named that it had to be of.
    round_given: bool,
}

crate::report!(CompareReport, exit);
crate::report!(ProveReport, exit);
crate::report!(CheckReport, exit);

/// Compares two transcripts.
///
/// # Errors
/// When there are not two.
pub fn compare(options: &AuditCompareOptions) -> anyhow::Result<CompareReport> {
    Ok(CompareReport(fedprune_audit::compare(&options.a, &options.b, Limits::default())?))
}

/// Writes the proof that a member's ballots count.
///
/// # Errors
/// When the transcript does not hold in what is taken from it, or the file cannot be written.
pub fn prove(options: &AuditProveOptions) -> anyhow::Result<ProveReport> {
    check_new(&options.out)?;
    let height = options.height.map(Height);
    let proven = fedprune_audit::prove(&options.transcript, &options.member, height, Limits::default())?;
    let mut report = ProveReport {
        verdict: "NOT-COUNTED",
        file: options.out.clone(),
        bytes: 0,
        proof: None,
        not_counted: proven.not_counted,
        member: options.member.clone(),
    };
    if let Some(inclusion) = proven.proof {
        let bytes = inclusion.encode();
        if bytes.len() > INCLUSION_LIMIT + PREFIX_BYTES {
            anyhow::bail!(
                "the proof of all {} heights has {} bytes, more than the {INCLUSION_LIMIT} that are read; prove one: --height 0",
                inclusion.heights().len(),
                bytes.len()
            );
        }
        create_document(&options.out, &bytes)?;
        report.verdict = "PROVEN";
        report.bytes = bytes.len();
        report.proof = Some(Proof::of(&inclusion));
    }
    Ok(report)
}

/// Checks a proof.
///
/// # Errors
/// When one of the files cannot be read; a proof that proves nothing is in the report.
pub fn check(options: &AuditCheckProofOptions) -> anyhow::Result<CheckReport> {
    let document = options.consortium.as_deref().map(read_consortium).transpose()?;
    let expected = match (&document, options.consortium_id) {
        (Some(consortium), _) => consortium.id(),
        (None, Some(id)) => id,
        (None, None) => anyhow::bail!("give the consortium: --consortium consortium.toml, or --consortium-id ID"),
    };
    let round = match (&options.round, &document) {
        (Some(path), Some(consortium)) => Some(read_round(path, consortium)?.id()),
        _ => options.round_id,
    };
    let bytes = read_small(&options.proof, INCLUSION_LIMIT + PREFIX_BYTES)?;
    let checked = ReceivedInclusion::decode(&bytes)
        .map_err(anyhow::Error::from)
        .and_then(|received| Ok(received.check(expected, round)?));
    Ok(match checked {
        Ok(inclusion) => CheckReport {
            verdict: "PROVEN",
            why: None,
            proof: Some(Proof::of(&inclusion)),
            round_given: round.is_some(),
        },
        Err(error) => {
            CheckReport { verdict: "FAILED", why: Some(chain(&error)), proof: None, round_given: round.is_some() }
        }
    })
}

fn text_of(path: &Path, limit: usize) -> anyhow::Result<String> {
    String::from_utf8(read_small(path, limit)?).map_err(|_| anyhow::anyhow!("`{}` is no text", path.display()))
}

fn read_consortium(path: &Path) -> anyhow::Result<Consortium> {
    let text = text_of(path, consortium::DOCUMENT_LIMIT)?;
    Consortium::parse(&text).with_context(|| format!("`{}` cannot be used", path.display()))
}

fn read_round(path: &Path, consortium: &Consortium) -> anyhow::Result<Round> {
    let text = text_of(path, round::DOCUMENT_LIMIT)?;
    Round::parse(&text, consortium).with_context(|| format!("`{}` cannot be used", path.display()))
}

impl Proof {
    fn of(inclusion: &Inclusion) -> Self {
        let consortium = inclusion.consortium();
        let name = |member| consortium.member(member).map_or_else(String::new, |member| member.name.clone());
        let ballot = |height: &fedprune_federation::inclusion::IncludedBallot| ProvenBallot {
            height: height.height(),
            ballot: height.header().body,
            bytes: height.header().body_bytes,
            claimed_unix_ms: height.header().claimed_unix_ms,
            ballots: height.ballots(),
            committed: height.committed().map(name).collect(),
            mask_root: height.mask_root(),
        };
        Self {
            member: name(inclusion.member()),
            consortium_name: consortium.consortium().name().to_owned(),
            consortium: consortium.id(),
            round: inclusion.round().id(),
            ballots: inclusion.heights().iter().map(ballot).collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = facts(&[
            ("member", self.member.clone()),
            ("consortium", format!("{} ({})", self.consortium_name, self.consortium)),
            ("round", self.round.to_string()),
        ]);
        for ballot in &self.ballots {
            text.push_str(&format!(
                "height {}\n{}",
                ballot.height,
                facts(&[
                    ("  ballot", format!("{} of {} bytes", ballot.ballot, count(ballot.bytes))),
                    ("  counted with", format!("{} ballots in all", ballot.ballots)),
                    ("  committed to by", ballot.committed.join(", ")),
                    ("  mask root", ballot.mask_root.to_string()),
                ])
            ));
        }
        text
    }
}

impl CompareReport {
    fn text(&self) -> String {
        self.0.text().lines().map(|line| tame(line) + "\n").collect()
    }

    fn exit(&self) -> u8 {
        self.0.verdict.exit_code()
    }
}

impl ProveReport {
    fn text(&self) -> String {
        let member = tame(&self.member);
        let Some(proof) = &self.proof else {
            return format!("NOT-COUNTED: no ballot of `{member}` counts in what was decided; nothing was written");
        };
        let without: Vec<String> = self.not_counted.iter().map(ToString::to_string).collect();
        let without =
            if without.is_empty() { String::new() } else { format!("not counted at heights {}\n", without.join(", ")) };
        format!(
            "{}{without}proof of {} bytes in {}\nanybody checks it: {} audit check-proof {} --consortium consortium.toml",
            proof.text(),
            count(self.bytes as u64),
            tame(&self.file.display().to_string()),
            program(),
            shell(&self.file)
        )
    }

    fn exit(&self) -> u8 {
        if self.proof.is_some() { 0 } else { NOT_COUNTED }
    }
}

impl CheckReport {
    fn text(&self) -> String {
        match (&self.proof, &self.why) {
            (Some(proof), _) => {
                let round = if self.round_given {
                    "in the round that was named"
                } else {
                    "in the round above; whether it is the one that you mean, --round tells"
                };
                format!("{}PROVEN: a quorum committed to a tally that counts it, {round}", proof.text())
            }
            (None, why) => format!("FAILED: it proves nothing: {}", tame(why.as_deref().unwrap_or_default())),
        }
    }

    fn exit(&self) -> u8 {
        if self.proof.is_some() { 0 } else { FAILED }
    }
}
