//! The round at a glance, for people: who took part, on what terms, and how each height went.
//!
//! Signatures are checked on the way; masks are not recomputed, which is what [`verify`](crate::verify()) is for.

use std::fmt::Write as _;
use std::path::Path;

use fedprune_federation::{Consortium, Round};
use fedprune_mask::Digest;
use serde::Serialize;

use crate::report::{Finding, HeightReport, Report, chain};
use crate::transcript::{Limits, Summary, Transcript};
use crate::verify::{AuditError, Options, verify};

/// A member of the consortium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberOverview {
    /// Its name.
    pub name: String,
    /// The key under which its statements verify.
    pub signing_key: String,
    /// What its ballot counts.
    pub tally_weight: Option<u32>,
}

/// What a transcript holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Name of the consortium.
    pub consortium_name: Option<String>,
    /// Consortium id.
    pub consortium: Option<Digest>,
    /// How many may fail and must agree, in words.
    pub quorum: Option<String>,
    /// The members, by name.
    pub members: Vec<MemberOverview>,
    /// Round id.
    pub round: Option<Digest>,
    /// The round's terms as `round.toml`.
    pub terms: Option<String>,
    /// Each height.
    pub heights: Vec<HeightReport>,
    /// Proven faults of members, as far as signatures tell.
    pub findings: Vec<Finding>,
    /// What is wrong with the transcript, as far as signatures tell.
    pub problems: Vec<String>,
    /// Unsigned facts.
    pub summary: Option<Summary>,
}

/// Looks at the transcript in a folder.
///
/// # Errors
/// [`AuditError`] when there is none. What is wrong with it is in the overview.
pub fn show(folder: &Path, limits: Limits) -> Result<Overview, AuditError> {
    let options = Options { limits, ..Options::default() };
    overview(folder, limits, &verify(folder, &options, &|_| ())?)
}

/// What the transcript in a folder holds, once it was audited.
///
/// # Errors
/// [`AuditError`] when there is none.
pub fn overview(folder: &Path, limits: Limits, report: &Report) -> Result<Overview, AuditError> {
    let mut problems: Vec<String> = report.failures().map(failure).collect();
    let transcript = match Transcript::open(folder, &limits) {
        Ok(transcript) => Some(transcript),
        Err(_) if !problems.is_empty() => None, // verify has said why
        Err(error) => return Err(error.into()),
    };
    let read = |transcript: &Transcript| Consortium::decode(&transcript.consortium().ok()?).ok();
    let consortium = transcript.as_ref().and_then(read);
    let round = transcript
        .as_ref()
        .zip(consortium.as_ref())
        .and_then(|(transcript, consortium)| Round::decode(&transcript.round().ok()?, consortium).ok());
    let summary = transcript.as_ref().and_then(|transcript| transcript.summary().ok());
    let summary = summary.and_then(|bytes| match serde_json::from_slice(&bytes) {
        Ok(summary) => Some(summary),
        Err(error) => {
            problems.push(format!("the summary cannot be read: {}", chain(&error)));
            None
        }
    });
    let weights = round.as_ref().map(|round| round.terms().tally_weights.as_slice()).unwrap_or_default();
    let member = |(index, member): (usize, &fedprune_federation::consortium::Member)| MemberOverview {
        name: member.name.clone(),
        signing_key: member.signing_key.to_string(),
        tally_weight: weights.get(index).copied(),
    };
    Ok(Overview {
        consortium_name: consortium.as_ref().map(|consortium| consortium.name().to_owned()),
        consortium: consortium.as_ref().map(|consortium| consortium.id().0),
        quorum: consortium.as_ref().map(|consortium| consortium.quorum().in_words()),
        members: consortium.iter().flat_map(|known| known.members().iter().enumerate().map(member)).collect(),
        round: round.as_ref().map(|round| round.id().0),
        terms: round.as_ref().zip(consortium.as_ref()).and_then(|(round, known)| round.to_toml(known).ok()),
        heights: report.heights.clone(),
        findings: report.findings.clone(),
        problems,
        summary,
    })
}

fn failure(check: &crate::report::Check) -> String {
    match &check.outcome {
        crate::report::Outcome::Failed { why, .. } => format!("{}: {why}", check.subject),
        _ => check.subject.clone(),
    }
}

impl Overview {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let digest =
            |digest: Option<Digest>| digest.map_or_else(|| "unreadable".to_owned(), |digest| digest.to_string());
        let _ = writeln!(
            text,
            "consortium  {} ({})",
            self.consortium_name.as_deref().unwrap_or("unreadable"),
            digest(self.consortium)
        );
        if let Some(quorum) = &self.quorum {
            let _ = writeln!(text, "            {quorum}");
        }
        for member in &self.members {
            let weight = member.tally_weight.filter(|weight| *weight != 1);
            let weight = weight.map_or_else(String::new, |weight| format!(", tally weight {weight}"));
            let _ = writeln!(text, "  {}  key {}{weight}", member.name, member.signing_key);
        }
        let _ = writeln!(text, "round       {}", digest(self.round));
        for line in self.terms.as_deref().unwrap_or_default().lines().filter(|line| !line.is_empty()) {
            let _ = writeln!(text, "  {line}");
        }
        for height in &self.heights {
            let _ = writeln!(text, "\nheight {}", height.height);
            self.height(height, &mut text);
        }
        if let Some(summary) = &self.summary {
            let _ = writeln!(
                text,
                "\nnoted by {}, unsigned: {}, {} bytes sent, {} received",
                crate::report::harmless(&summary.written_by),
                crate::report::harmless(&summary.program),
                summary.sent_bytes,
                summary.received_bytes
            );
            for (phase, seconds) in &summary.seconds {
                let _ = writeln!(text, "  {}  {seconds:.1} s", crate::report::harmless(phase));
            }
        }
        if !self.findings.is_empty() {
            text.push_str("\nfindings\n");
        }
        for finding in &self.findings {
            let _ = writeln!(text, "  `{}` at height {}: {}", finding.member, finding.height, finding.what);
        }
        if !self.problems.is_empty() {
            text.push_str("\nproblems\n");
        }
        for problem in &self.problems {
            let _ = writeln!(text, "  {problem}");
        }
        text
    }

    fn height(&self, height: &HeightReport, text: &mut String) {
        let committed = height.committed.join(", ");
        let outcome = if height.abandoned { "abandoned" } else { "agreed" };
        let _ = writeln!(text, "  {outcome} in view {}, committed to by {committed}", height.view);
        if let Some(passed_over) = height.passed_over_in_words() {
            let _ = writeln!(text, "  passed over: {passed_over}");
        }
        for ballot in &height.contributors {
            let bytes = ballot.bytes.map_or_else(|| "of unknown size".to_owned(), |bytes| format!("{bytes} bytes"));
            let _ = writeln!(text, "  ballot  {}  {bytes}  {}", ballot.member, ballot.ballot);
        }
        if !height.results.is_empty() {
            let _ = writeln!(text, "  results signed by {}", height.results.join(", "));
        }
        if let Some(root) = height.agreed_mask_root {
            let _ = writeln!(text, "  mask root  {root}");
        }
        if height.proposals > 1 {
            let _ = writeln!(text, "  {} proposals were made", height.proposals);
        }
    }
}
