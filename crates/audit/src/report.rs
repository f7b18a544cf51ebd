//! What was compared, what was found, and the verdict.
//!
//! A [`Check`] compares two things and says how that went. A [`Finding`] is a fault of a member that is proven by what
//! it signed; the round may have ended right all the same, as it is built to. Notes are what an auditor should know and
//! that says nothing against anybody.

use std::fmt::Write as _;

use fedprune_federation::{ConsortiumId, Height, RoundId};
use fedprune_mask::Digest;
use fedprune_mask::ballot::EncodedBytes;
use serde::Serialize;

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// Whether the transcript is the one that was asked for.
    Identity,
    /// The files as such.
    Files,
    /// Who takes part.
    Consortium,
    /// What the round is.
    Round,
    /// The base model.
    Model,
    /// Signed headers of ballots.
    Header,
    /// Holdings statements.
    Holdings,
    /// Decisions and their certificates.
    Decision,
    /// Bodies of ballots.
    Ballot,
    /// The mask that they come to.
    Mask,
    /// Signed results.
    Result,
    /// Proposals of aggregators.
    Proposal,
    /// Proof of equivocation.
    Evidence,
    /// The pruned checkpoint.
    Pruned,
}

/// How a comparison went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Both sides are equal.
    Passed,
    /// They are not.
    Failed {
        /// Name of the member whose signature proves that it is to blame, if one does: what anybody could have
        /// damaged blames nobody.
        member: Option<String>,
        /// What differs.
        why: String,
    },
    /// One side is missing.
    NotChecked {
        /// What is missing.
        why: String,
    },
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about.
    pub area: Area,
    /// The height, if it is about one.
    pub height: Option<Height>,
    /// What was looked at.
    pub subject: String,
    /// What was compared with what, in words and digests.
    pub compared: String,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What a member did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It signed two things where it may sign one.
    Equivocation,
    /// As aggregator it proposed a mask root that its ballots do not come to.
    WrongMaskRoot,
    /// As aggregator it proposed what is no decision of the round.
    Unfounded,
    /// It proposed in a view that was not its turn.
    OutOfTurn,
    /// It signed a result that the agreed ballots do not come to.
    WrongResult,
}

/// A fault of a member, proven by its own signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the member.
    pub member: String,
    /// What kind of fault.
    pub fault: Fault,
    /// At which height.
    pub height: Height,
    /// What proves it.
    pub what: String,
}

/// A ballot that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contribution {
    /// Whose it is.
    pub member: String,
    /// BLAKE3 of its body.
    pub ballot: Digest,
    /// Its bytes, as signed.
    pub bytes: Option<u64>,
    /// When the member says that it signed, in milliseconds since 1970.
    pub claimed_unix_ms: Option<u64>,
    /// How it says its masks; only the model tells.
    pub encodings: Option<Encodings>,
}

/// How a ballot says its masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Encodings {
    /// Taps whose activation norms it carries.
    pub norms_taps: usize,
    /// Taps of which it carries a threshold for each column.
    pub thresholds_taps: usize,
    /// Taps of which it carries the packed bits.
    pub bitmap_taps: usize,
    /// Its bytes, by what they are for.
    pub bytes: EncodedBytes,
}

/// How far the ballots agree on one matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MatrixAgreement {
    /// Index of its decoder block.
    pub block: u32,
    /// What it is in its block, such as `q_proj`.
    pub kind: String,
    /// Its weights.
    pub weights: u64,
    /// Those that the mask prunes.
    pub pruned: u64,
    /// Those that all ballots prune or all keep.
    pub unanimous: u64,
    /// Share of (weight, pair of votes) in which both say the same; 1 where there is one vote.
    pub agreement: f64,
}

/// An aggregator in whose view nothing was decided: it or the network failed, or it lied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// Name of the member.
    pub member: String,
    /// The first view in which that was so.
    pub view: u32,
    /// Whether the transcript has its proposal of that view.
    pub proposed: bool,
}

impl PassedOver {
    /// For people.
    pub fn in_words(&self) -> String {
        let what = if self.proposed { "its proposal was not decided" } else { "no proposal of it is here" };
        format!("`{}` in view {} ({what})", self.member, self.view)
    }
}

/// What one height came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeightReport {
    /// The height.
    pub height: Height,
    /// Whether nothing was agreed on.
    pub abandoned: bool,
    /// The view in which it was decided.
    pub view: u32,
    /// Aggregators whose turn came and went before that view, in order; those with a fault that is proven are in the
    /// findings.
    pub passed_over: Vec<PassedOver>,
    /// Names of those who committed to it.
    pub committed: Vec<String>,
    /// The ballots that count.
    pub contributors: Vec<Contribution>,
    /// Names of those who signed a result.
    pub results: Vec<String>,
    /// How many proposals are in the transcript.
    pub proposals: usize,
    /// The mask root that was certified or that enough members signed.
    pub agreed_mask_root: Option<Digest>,
    /// The mask root that the ballots come to.
    pub recomputed_mask_root: Option<Digest>,
}

impl HeightReport {
    /// Who was passed over, for people; nothing if nobody was.
    pub fn passed_over_in_words(&self) -> Option<String> {
        let all: Vec<String> = self.passed_over.iter().map(PassedOver::in_words).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// What it all comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum Verdict {
    /// It is the transcript that was asked for, and every comparison was made and held.
    Verified,
    /// Every comparison was made and held, and nobody said which consortium and round it should be.
    SelfConsistent,
    /// Every comparison that could be made held.
    Incomplete,
    /// A comparison did not hold.
    Failed,
}

impl Verdict {
    /// The exit code of a program that ends with this verdict: 0, 10, 11 or 12.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Verified => 0,
            Verdict::SelfConsistent => 10,
            Verdict::Incomplete => 11,
            Verdict::Failed => 12,
        }
    }

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Verified => "VERIFIED",
            Verdict::SelfConsistent => "SELF-CONSISTENT",
            Verdict::Incomplete => "INCOMPLETE",
            Verdict::Failed => "FAILED",
        }
    }
}

/// Everything that an audit found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What it all comes to.
    pub verdict: Verdict,
    /// Name of the consortium.
    pub consortium_name: Option<String>,
    /// The consortium of the transcript.
    pub consortium: Option<ConsortiumId>,
    /// The round of the transcript.
    pub round: Option<RoundId>,
    /// Whether both ids were given out of band.
    pub ids_given: bool,
    /// The mask root of the whole model, recomputed.
    pub mask_root: Option<Digest>,
    /// What each height came to.
    pub heights: Vec<HeightReport>,
    /// How far the ballots agree on each matrix, in layout order; empty unless asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agreement: Vec<MatrixAgreement>,
    /// Every comparison.
    pub checks: Vec<Check>,
    /// Proven faults of members.
    pub findings: Vec<Finding>,
    /// What else an auditor should know.
    pub notes: Vec<String>,
}

impl Report {
    /// The verdict that follows from these checks.
    pub(crate) fn judge(checks: &[Check], ids_given: bool) -> Verdict {
        let failed = checks.iter().any(|check| matches!(check.outcome, Outcome::Failed { .. }));
        let skipped =
            |check: &Check| matches!(check.outcome, Outcome::NotChecked { .. }) && check.area != Area::Identity;
        if failed {
            Verdict::Failed
        } else if checks.iter().any(skipped) {
            Verdict::Incomplete
        } else if ids_given {
            Verdict::Verified
        } else {
            Verdict::SelfConsistent
        }
    }

    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed { .. }))
    }

    /// The checks that could not be made.
    pub fn not_checked(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::NotChecked { .. }))
    }

    /// Names of the members who are to blame for a failed check, each once.
    pub fn blamed(&self) -> Vec<&str> {
        let mut blamed: Vec<&str> = Vec::new();
        for check in self.failures() {
            if let Outcome::Failed { member: Some(member), .. } = &check.outcome
                && !blamed.contains(&member.as_str())
            {
                blamed.push(member);
            }
        }
        blamed
    }

    /// The report for people: a line for each check, findings, notes, and the verdict last.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let (word, why) = match &check.outcome {
                Outcome::Passed => ("passed     ", None),
                Outcome::Failed { member: Some(member), why } => {
                    ("FAILED     ", Some(format!("{why}; `{member}` is to blame")))
                }
                Outcome::Failed { member: None, why } => ("FAILED     ", Some(why.clone())),
                Outcome::NotChecked { why } => ("not checked", Some(why.clone())),
            };
            let _ = write!(text, "{word}  {}: {}", check.subject, check.compared);
            if let Some(why) = why {
                let _ = write!(text, " — {why}");
            }
            text.push('\n');
        }
        if !self.findings.is_empty() {
            text.push_str("\nfindings\n");
        }
        for finding in &self.findings {
            let _ = writeln!(text, "  `{}` at height {}: {}", finding.member, finding.height, finding.what);
        }
        if !self.notes.is_empty() {
            text.push_str("\nnotes\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        let passed = self.checks.iter().filter(|check| check.outcome == Outcome::Passed).count();
        let (failed, skipped) = (self.failures().count(), self.not_checked().count());
        let _ = writeln!(text, "\n{passed} passed, {failed} failed, {skipped} not checked");
        if let Some(consortium) = self.consortium {
            let _ = writeln!(text, "consortium  {consortium}");
        }
        if let Some(round) = self.round {
            let _ = writeln!(text, "round       {round}");
        }
        if let Some(root) = self.mask_root {
            let _ = writeln!(text, "mask root   {root}");
        }
        let _ = write!(text, "{}: {}", self.verdict.name(), self.in_words());
        text
    }

    /// The verdict in one sentence.
    pub fn in_words(&self) -> String {
        match self.verdict {
            Verdict::Verified => {
                "this is the round that was asked for, and everything in it follows from what its members signed".to_owned()
            }
            Verdict::SelfConsistent => {
                "everything follows from what the members signed; whether it is the consortium and the round that you mean, \
                 only --consortium-id and --round-id tell, obtained from somebody you trust"
                    .to_owned()
            }
            Verdict::Incomplete => {
                let areas: std::collections::BTreeSet<&str> =
                    self.not_checked().filter(|check| check.area != Area::Identity).map(|check| check.subject.as_str()).collect();
                let shown: Vec<&str> = areas.iter().take(8).copied().collect();
                let more = if areas.len() > shown.len() { ", …" } else { "" };
                format!("what could be checked holds; not checked: {}{more}", shown.join(", "))
            }
            Verdict::Failed => {
                let blamed = self.blamed();
                let first = self.failures().next();
                let what = first.map_or_else(String::new, |check| match &check.outcome {
                    Outcome::Failed { why, .. } => format!("{}: {why}", check.subject),
                    _ => check.subject.clone(),
                });
                match blamed.as_slice() {
                    [] => what,
                    names => format!("{what} (to blame: `{}`)", names.join("`, `")),
                }
            }
        }
    }
}

/// Text from outside on one line, without what would move a terminal's cursor; at most 120 characters.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().take(120).map(|c| if fedprune_mask::is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// An error and its causes on one line, without saying anything twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    let mut harmless_text = String::with_capacity(text.len());
    for c in text.chars().take(2000) {
        harmless_text.push(if c.is_control() { ' ' } else { c });
    }
    harmless_text
}
