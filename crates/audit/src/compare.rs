//! Two transcripts side by side, such as those that two nodes wrote of one round: whether they tell of one decision.
//!
//! What nodes write differs: who is quoted in a certificate, which statement of a member came last, which proposals came
//! at all. None of that matters. What must be the same is the decision of each height and the mask that follows; and no
//! member may have said one thing to one node and another to the other.
//!
//! Each transcript is checked by itself first, as far as signatures tell; no model is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use fedprune_federation::{ConsortiumId, Height, RoundId};
use fedprune_mask::Digest;
use serde::Serialize;

use crate::report::{Finding, HeightReport, Report, harmless};
use crate::transcript::{Class, HeightFiles, Limits, Summary, Transcript};
use crate::verify::{AuditError, Options, contradictions, founded, verify, why};

/// Names that are listed of one kind.
const MAX_NAMED: usize = 100;

/// What a comparison comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum Sameness {
    /// Both tell of the same decision of every height.
    SameDecision,
    /// What signatures tell does not hold in one of them.
    Failed,
    /// What both decided is the same, and one decided more.
    Partial,
    /// A quorum committed to one decision in one, and to another in the other, or signed different masks.
    Contradiction,
    /// Of different consortiums or rounds.
    OtherRound,
}

impl Sameness {
    /// The exit code of a program that ends with this: 0, 12, 13, 14 or 15.
    pub fn exit_code(self) -> u8 {
        match self {
            Sameness::SameDecision => 0,
            Sameness::Failed => 12,
            Sameness::Partial => 13,
            Sameness::Contradiction => 14,
            Sameness::OtherRound => 15,
        }
    }

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Sameness::SameDecision => "SAME-DECISION",
            Sameness::Failed => "FAILED",
            Sameness::Partial => "PARTIAL",
            Sameness::Contradiction => "CONTRADICTION",
            Sameness::OtherRound => "OTHER-ROUND",
        }
    }
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Whose node says that it wrote it; unsigned.
    pub written_by: Option<String>,
    /// Its consortium.
    pub consortium: Option<ConsortiumId>,
    /// Its round.
    pub round: Option<RoundId>,
    /// What does not hold, as far as signatures tell.
    pub failures: Vec<String>,
    /// Ballots of its bodies folder.
    pub bodies: usize,
}

/// What one has and the other has not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Only {
    /// In A alone, the first hundred.
    pub a: Vec<String>,
    /// In B alone, the first hundred.
    pub b: Vec<String>,
    /// How many there are in A alone.
    pub a_count: usize,
    /// How many there are in B alone.
    pub b_count: usize,
}

/// One height of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeightComparison {
    /// The height.
    pub height: Height,
    /// Whether A has a decision of it that holds.
    pub decided_in_a: bool,
    /// Whether B has.
    pub decided_in_b: bool,
    /// Whether they are the same, if both have one.
    pub same_decision: Option<bool>,
    /// The mask root that A's members signed or certified.
    pub mask_root_in_a: Option<Digest>,
    /// And B's.
    pub mask_root_in_b: Option<Digest>,
    /// Ballots that count in one and not in the other: member and digest.
    pub ballots: Only,
    /// Views of the certificates.
    pub views: (Option<u32>, Option<u32>),
    /// Members whose precommits stand in one certificate alone.
    pub committed: Only,
    /// Files of statements that one has and the other has not, by their folder.
    pub statements: BTreeMap<&'static str, Only>,
    /// Files of one name with other contents, which are no contradiction by themselves.
    pub differing: Only,
}

/// Two transcripts, compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What it comes to.
    pub verdict: Sameness,
    /// The first.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// Each height that one of them has.
    pub heights: Vec<HeightComparison>,
    /// Ballots whose bytes one has and the other has not.
    pub bodies: Only,
    /// Members that said different things in the two, where one is allowed: proven by their signatures.
    pub contradictions: Vec<Finding>,
}

impl Only {
    fn of<T: Ord>(a: &BTreeSet<T>, b: &BTreeSet<T>, show: impl Fn(&T) -> String) -> Self {
        let (in_a, in_b): (Vec<&T>, Vec<&T>) = (a.difference(b).collect(), b.difference(a).collect());
        let named = |some: &[&T]| some.iter().take(MAX_NAMED).map(|one| show(one)).collect();
        Self { a: named(&in_a), b: named(&in_b), a_count: in_a.len(), b_count: in_b.len() }
    }

    fn is_empty(&self) -> bool {
        self.a_count == 0 && self.b_count == 0
    }

    /// Lines for people, if there is anything.
    fn lines(&self, what: &str, text: &mut String) {
        for (side, names, count) in [("A", &self.a, self.a_count), ("B", &self.b, self.b_count)] {
            if count > 0 {
                let shown: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
                let more = count.saturating_sub(shown.len());
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let _ = writeln!(text, "  {what} in {side} alone: {}{more}", shown.join(", "));
            }
        }
    }
}

/// Compares the transcripts in two folders.
///
/// # Errors
/// [`AuditError`] when one is none; whatever is wrong with one is in the comparison.
pub fn compare(a: &Path, b: &Path, limits: Limits) -> Result<Comparison, AuditError> {
    let options = Options { limits, ..Options::default() };
    let (report_a, report_b) = (verify(a, &options, &|_| ())?, verify(b, &options, &|_| ())?);
    let (a, b) = (Transcript::open(a, &limits), Transcript::open(b, &limits));
    // what has too many files was reported by `verify`
    let (transcript_a, transcript_b) = (a.ok(), b.ok());
    let (side_a, side_b) = (side(transcript_a.as_ref(), &report_a), side(transcript_b.as_ref(), &report_b));
    let mut comparison = Comparison {
        verdict: Sameness::Failed,
        heights: Vec::new(),
        bodies: Only::default(),
        contradictions: Vec::new(),
        a: side_a,
        b: side_b,
    };
    let (Some(a), Some(b)) = (&transcript_a, &transcript_b) else { return Ok(comparison) };
    let (Ok((consortium, round)), Ok((other_consortium, other))) = (founded(a), founded(b)) else {
        return Ok(comparison);
    };
    if (consortium.id(), round.id()) != (other_consortium.id(), other.id()) {
        comparison.verdict = Sameness::OtherRound;
        return Ok(comparison);
    }
    let bodies = |transcript: &Transcript| transcript.bodies().iter().copied().collect::<BTreeSet<Digest>>();
    comparison.bodies = Only::of(&bodies(a), &bodies(b), ToString::to_string);
    comparison.contradictions = contradictions((a, b), &consortium, &round);
    let heights: BTreeSet<Height> = a.heights().chain(b.heights()).map(|(height, _)| height).collect();
    comparison.heights =
        heights.into_iter().map(|height| compare_height(height, (a, &report_a), (b, &report_b))).collect();
    comparison.verdict = judge(&comparison);
    Ok(comparison)
}

fn side(transcript: Option<&Transcript>, report: &Report) -> Side {
    let summary = transcript.and_then(|transcript| transcript.summary().ok());
    let summary = summary.and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
    Side {
        written_by: summary.map(|summary| harmless(&summary.written_by)),
        consortium: report.consortium,
        round: report.round,
        failures: report.failures().take(MAX_NAMED).map(why).collect(),
        bodies: transcript.map_or(0, |transcript| transcript.bodies().len()),
    }
}

fn judge(comparison: &Comparison) -> Sameness {
    let heights = &comparison.heights;
    let roots_differ =
        |height: &HeightComparison| height.mask_root_in_a.zip(height.mask_root_in_b).is_some_and(|(a, b)| a != b);
    if heights.iter().any(|height| height.same_decision == Some(false) || roots_differ(height)) {
        return Sameness::Contradiction;
    }
    if !comparison.a.failures.is_empty() || !comparison.b.failures.is_empty() {
        return Sameness::Failed;
    }
    let decided = heights.iter().filter(|height| height.decided_in_a || height.decided_in_b);
    // a height that lies there without a decision has failed already, and so has a round without any; that nothing
    // was decided is no sameness all the same
    let partial = decided.clone().any(|height| height.decided_in_a != height.decided_in_b);
    if partial || decided.count() == 0 { Sameness::Partial } else { Sameness::SameDecision }
}

fn compare_height(height: Height, a: (&Transcript, &Report), b: (&Transcript, &Report)) -> HeightComparison {
    fn decided(report: &Report, height: Height) -> Option<&HeightReport> {
        report.heights.iter().find(|found| found.height == height)
    }
    let (in_a, in_b) = (decided(a.1, height), decided(b.1, height));
    let ballots = |report: Option<&HeightReport>| {
        let ballots = report.into_iter().flat_map(|report| &report.contributors);
        ballots.map(|ballot| (ballot.member.clone(), ballot.ballot)).collect::<BTreeSet<_>>()
    };
    let committed = |report: Option<&HeightReport>| {
        report.into_iter().flat_map(|report| report.committed.iter().cloned()).collect::<BTreeSet<_>>()
    };
    let (ballots_a, ballots_b) = (ballots(in_a), ballots(in_b));
    let same_decision = in_a.zip(in_b).map(|(in_a, in_b)| in_a.abandoned == in_b.abandoned && ballots_a == ballots_b);
    let none = HeightFiles::default();
    let (files_a, files_b) = (a.0.height(height).unwrap_or(&none), b.0.height(height).unwrap_or(&none));
    let names = |files: &HeightFiles, class| files.names(class).iter().cloned().collect::<BTreeSet<String>>();
    let mut statements = BTreeMap::new();
    let mut differing = BTreeSet::new();
    for class in Class::ALL {
        let (names_a, names_b) = (names(files_a, class), names(files_b, class));
        for name in names_a.intersection(&names_b) {
            let contents = |transcript: &Transcript| transcript.file(height, class, name).ok();
            if contents(a.0) != contents(b.0) {
                differing.insert(format!("{}/{name}", class.folder()));
            }
        }
        let only = Only::of(&names_a, &names_b, Clone::clone);
        if !only.is_empty() {
            statements.insert(class.folder(), only);
        }
    }
    let root = |report: Option<&HeightReport>| report.and_then(|report| report.agreed_mask_root);
    HeightComparison {
        height,
        decided_in_a: in_a.is_some(),
        decided_in_b: in_b.is_some(),
        same_decision,
        mask_root_in_a: root(in_a),
        mask_root_in_b: root(in_b),
        ballots: Only::of(&ballots_a, &ballots_b, |(member, ballot)| format!("{member} {ballot}")),
        views: (in_a.map(|report| report.view), in_b.map(|report| report.view)),
        committed: Only::of(&committed(in_a), &committed(in_b), Clone::clone),
        statements,
        differing: Only::of(&differing, &BTreeSet::new(), Clone::clone),
    }
}

impl Comparison {
    /// The comparison for people, with the verdict last.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, side) in [("A", &self.a), ("B", &self.b)] {
            let from =
                side.written_by.as_deref().map_or_else(String::new, |from| format!(", written by {from} as it says"));
            let shown = |id: Option<String>| id.unwrap_or_else(|| "unreadable".to_owned());
            let _ = writeln!(text, "{name}  round {}{from}", shown(side.round.map(|round| round.to_string())));
            for failure in &side.failures {
                let _ = writeln!(text, "  does not hold: {failure}");
            }
        }
        for height in &self.heights {
            height.text(&mut text);
        }
        if !self.bodies.is_empty() {
            text.push_str("ballots\n");
            self.bodies.lines("bytes", &mut text);
        }
        if !self.contradictions.is_empty() {
            text.push_str("contradictions between the two\n");
        }
        for finding in &self.contradictions {
            let _ = writeln!(text, "  `{}` at height {}: {}", finding.member, finding.height, finding.what);
        }
        let _ = write!(text, "{}: {}", self.verdict.name(), self.in_words());
        text
    }

    /// The verdict in one sentence.
    pub fn in_words(&self) -> String {
        match self.verdict {
            Sameness::SameDecision => {
                "both tell of one decision at every height; what else differs is how it was come to".to_owned()
            }
            Sameness::Failed => {
                let first = self
                    .a
                    .failures
                    .iter()
                    .map(|why| ("A", why))
                    .chain(self.b.failures.iter().map(|why| ("B", why)))
                    .next();
                first.map_or_else(
                    || "one of the two does not hold".to_owned(),
                    |(side, why)| format!("{side} does not hold: {why}"),
                )
            }
            Sameness::Partial => {
                let lacking = self.heights.iter().find(|height| height.decided_in_a != height.decided_in_b);
                lacking.map_or_else(
                    || "neither has a decision".to_owned(),
                    |height| {
                        let side = if height.decided_in_a { "B" } else { "A" };
                        format!("{side} has no decision of height {}; what both decided is the same", height.height)
                    },
                )
            }
            Sameness::Contradiction => {
                "a quorum stands behind each of two decisions that exclude each other: more members \
                                        signed both than may fail; keep both transcripts, they are the proof"
                    .to_owned()
            }
            Sameness::OtherRound => {
                "they are of different consortiums or rounds, and have nothing in common".to_owned()
            }
        }
    }
}

impl HeightComparison {
    fn text(&self, text: &mut String) {
        let what = match (self.same_decision, self.decided_in_a, self.decided_in_b) {
            (Some(true), ..) => "the same decision",
            (Some(false), ..) => "DIFFERENT DECISIONS",
            (None, true, _) => "decided in A alone",
            (None, _, true) => "decided in B alone",
            (None, false, false) => "not decided",
        };
        let _ = writeln!(text, "height {}: {what}", self.height);
        match (self.mask_root_in_a, self.mask_root_in_b) {
            (Some(a), Some(b)) if a == b => {
                let _ = writeln!(text, "  mask root {a} in both");
            }
            (a, b) => {
                for (side, root) in [("A", a), ("B", b)] {
                    if let Some(root) = root {
                        let _ = writeln!(text, "  mask root in {side}: {root}");
                    }
                }
            }
        }
        self.ballots.lines("ballots that count", text);
        if let (Some(a), Some(b)) = self.views
            && a != b
        {
            let _ = writeln!(text, "  certificates of views {a} in A and {b} in B");
        }
        self.committed.lines("signers of the certificate", text);
        for (class, only) in &self.statements {
            only.lines(class, text);
        }
        if !self.differing.is_empty() {
            let names = self.differing.a.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "  {} files differ: {names}", self.differing.a_count);
        }
    }
}
