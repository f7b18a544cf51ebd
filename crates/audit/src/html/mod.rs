//! The report as one page for people who were not there: verdict first, in words, then who voted, how far they agreed,
//! what was found, and every check with what it compared.
//!
//! The page is complete in itself: it loads nothing and runs nothing, and tells the browser so. Whatever comes from the
//! transcript is escaped. The same audit makes the same page, byte for byte: nothing in it depends on when or where it
//! was made.

mod heat;
pub mod text;

use std::io::{self, Write};

use fedprune_mask::Digest;

use crate::report::{Area, Check, Contribution, Encodings, HeightReport, Outcome, Report, Verdict};
use crate::show::Overview;
use text::{Escaped, Marked, count, utc};

const STYLE: &str = include_str!("style.css");

/// What the auditor brought, as the page tells it.
#[derive(Debug, Clone, Copy)]
pub struct Brought<'a> {
    /// The program that checks, as it calls itself.
    pub program: &'a str,
    /// The base model.
    pub model: bool,
    /// A pruned copy.
    pub pruned: bool,
}

/// Writes the page of `report`, which is of the transcript that `overview` is of.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, report: &Report, overview: &Overview, brought: Brought<'_>) -> io::Result<()> {
    let name = overview.consortium_name.as_deref().unwrap_or("a consortium that cannot be read");
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{}: audit of {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>",
        report.verdict.name(),
        Escaped(name)
    )?;
    writeln!(out, "<h1>Audit of a round of {}</h1>", Escaped(name))?;
    verdict(out, report)?;
    facts(out, report, overview, brought)?;
    members(out, overview)?;
    votes(out, report)?;
    agreement(out, report, brought)?;
    evidence(out, report)?;
    checks(out, report)?;
    terms(out, overview)?;
    limits(out)?;
    writeln!(out, "</main>\n</body>\n</html>")
}

/// How a verdict is coloured; its name says the same.
fn tone(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Verified => "good",
        Verdict::SelfConsistent | Verdict::Incomplete => "open",
        Verdict::Failed => "bad",
    }
}

fn verdict(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let passed = report.checks.iter().filter(|check| check.outcome == Outcome::Passed).count();
    let words = report.in_words();
    let mut words = words.chars();
    let first: String = words.next().into_iter().flat_map(char::to_uppercase).collect();
    writeln!(
        out,
        "<section class=\"verdict {}\"><strong>{}</strong><p>{}{}.</p>\n\
         <p>{passed} checks passed, {} failed, {} could not be made.</p></section>",
        tone(report.verdict),
        report.verdict.name(),
        Escaped(&first),
        Marked(words.as_str()),
        report.failures().count(),
        report.not_checked().count(),
    )
}

fn fact(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "<dt>{name}</dt><dd>{}</dd>", Marked(value))
}

fn facts(out: &mut dyn Write, report: &Report, overview: &Overview, brought: Brought<'_>) -> io::Result<()> {
    let digest =
        |digest: Option<Digest>, absent: &str| digest.map_or_else(|| absent.to_owned(), |digest| format!("`{digest}`"));
    writeln!(out, "<dl>")?;
    fact(out, "Consortium id", &digest(overview.consortium, "cannot be read"))?;
    fact(out, "Round id", &digest(overview.round, "cannot be read"))?;
    let given = "given by the auditor, as somebody trusted named them";
    let not_given = "not given: the transcript may be of another consortium or round than is meant";
    fact(out, "Both ids", if report.ids_given { given } else { not_given })?;
    fact(out, "Mask root", &digest(report.mask_root, "not recomputed"))?;
    let model = if brought.model { "given" } else { "not given: no ballot was read and no mask recomputed" };
    fact(out, "Base model", model)?;
    let pruned = if brought.pruned { "given" } else { "not given: no pruned folder was compared with the mask" };
    fact(out, "Pruned model", pruned)?;
    if let Some(summary) = &overview.summary {
        let from = format!("the node of `{}`, it says: nobody signed that", summary.written_by);
        fact(out, "Transcript from", &from)?;
    }
    fact(out, "Checked by", brought.program)?;
    writeln!(out, "</dl>")
}

fn members(out: &mut dyn Write, overview: &Overview) -> io::Result<()> {
    writeln!(out, "<h2>Members</h2>")?;
    let Some(quorum) = overview.quorum.as_deref().filter(|_| !overview.members.is_empty()) else {
        return writeln!(out, "<p>The consortium cannot be read.</p>");
    };
    writeln!(out, "<p>{}.</p>", Escaped(quorum))?;
    writeln!(
        out,
        "<table class=\"stack\"><thead><tr><th>Member</th><th class=\"number\">Tally weight</th><th>Key that signs</th></tr></thead><tbody>"
    )?;
    for member in &overview.members {
        let weight = member.tally_weight.map_or_else(|| "unknown".to_owned(), |weight| weight.to_string());
        writeln!(
            out,
            "<tr><td data-label=\"Member\">{}</td><td class=\"number\" data-label=\"Tally weight\">{weight}</td>\
             <td data-label=\"Key\"><code>{}</code></td></tr>",
            Escaped(&member.name),
            Escaped(&member.signing_key)
        )?;
    }
    writeln!(out, "</tbody></table>")
}

fn votes(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "<h2>Who voted</h2>")?;
    if report.heights.is_empty() {
        return writeln!(out, "<p>There is no decision that can be read.</p>");
    }
    writeln!(
        out,
        "<p>Sizes and times are what each member signed with its ballot. A time is the member's claim: nothing depends \
         on it, and nobody can check it.</p>"
    )?;
    let alone = report.heights.len() == 1;
    report.heights.iter().try_for_each(|height| votes_of(out, height, alone))
}

fn votes_of(out: &mut dyn Write, height: &HeightReport, alone: bool) -> io::Result<()> {
    if !alone {
        writeln!(out, "<h3>Height {} (decoder block {})</h3>", height.height, height.height)?;
    }
    let committed = height.committed.join(", ");
    let outcome = if height.abandoned { "Abandoned" } else { "Agreed on" };
    write!(out, "<p>{outcome} in view {}, committed to by {}", height.view, Escaped(&committed))?;
    if !height.results.is_empty() {
        write!(out, "; the mask that follows was signed by {}", Escaped(&height.results.join(", ")))?;
    }
    writeln!(out, ".</p>")?;
    if let Some(passed_over) = height.passed_over_in_words() {
        writeln!(out, "<p>Aggregators passed over: {}.</p>", Marked(&passed_over))?;
    }
    if !height.contributors.is_empty() {
        writeln!(
            out,
            "<table class=\"stack\"><thead><tr><th>Member</th><th>Claimed time</th><th class=\"number\">Bytes</th>\
             <th>Says its masks by</th><th>Ballot (BLAKE3)</th></tr></thead><tbody>"
        )?;
        height.contributors.iter().try_for_each(|ballot| vote(out, ballot))?;
        writeln!(out, "</tbody></table>")?;
    }
    let line =
        |out: &mut dyn Write, what: &str, root: Digest| writeln!(out, "<p>Mask root {what}: <code>{root}</code></p>");
    match (height.agreed_mask_root, height.recomputed_mask_root) {
        (Some(agreed), Some(recomputed)) if agreed == recomputed => {
            line(out, "agreed on, and recomputed from the ballots", agreed)?;
        }
        (agreed, recomputed) => {
            agreed.map_or(Ok(()), |root| line(out, "agreed on", root))?;
            recomputed.map_or(Ok(()), |root| line(out, "recomputed from the ballots", root))?;
        }
    }
    Ok(())
}

fn vote(out: &mut dyn Write, ballot: &Contribution) -> io::Result<()> {
    let unknown = || "no header here".to_owned();
    writeln!(
        out,
        "<tr><td data-label=\"Member\">{}</td><td class=\"time\" data-label=\"Claimed time\">{}</td>\
         <td class=\"number\" data-label=\"Bytes\">{}</td><td data-label=\"Masks by\">{}</td>\
         <td data-label=\"Ballot\"><code>{}</code></td></tr>",
        Escaped(&ballot.member),
        ballot.claimed_unix_ms.map_or_else(unknown, utc),
        ballot.bytes.map_or_else(unknown, count),
        ballot.encodings.as_ref().map_or_else(|| "not read".to_owned(), said_by),
        ballot.ballot
    )
}

/// In what form a ballot says its masks.
fn said_by(encodings: &Encodings) -> String {
    let bytes = encodings.bytes;
    let parts = [
        ("norms", encodings.norms_taps, bytes.norms),
        ("column thresholds", encodings.thresholds_taps, bytes.thresholds),
        ("bits", encodings.bitmap_taps, bytes.bitmaps),
    ];
    let parts = parts.iter().filter(|(_, taps, _)| *taps > 0).map(|(what, taps, bytes)| {
        let inputs = if *taps == 1 { "input" } else { "inputs" };
        format!("{what} of {taps} {inputs} ({} bytes)", count(*bytes))
    });
    parts.collect::<Vec<String>>().join(", ")
}

fn agreement(out: &mut dyn Write, report: &Report, brought: Brought<'_>) -> io::Result<()> {
    writeln!(out, "<h2>How far the ballots agree</h2>")?;
    if !report.agreement.is_empty() {
        return heat::write(out, &report.agreement);
    }
    let why = if brought.model {
        "No mask could be recomputed; the checks say why."
    } else {
        "Left out: ballots are read with the weights of the base model, which was not given (--model DIR)."
    };
    writeln!(out, "<p>{why}</p>")
}

fn evidence(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "<h2>Evidence against members</h2>")?;
    if report.findings.is_empty() {
        writeln!(
            out,
            "<p>None, as far as could be checked: nobody signed two things where one is allowed, or anything false.</p>"
        )?;
    } else {
        writeln!(
            out,
            "<p>Faults that the members' own signatures prove. The protocol is built to come to the right end in spite \
             of them, so they do not change the verdict.</p><ul>"
        )?;
        for finding in &report.findings {
            writeln!(
                out,
                "<li><b>{}</b> at height {}: {}</li>",
                Escaped(&finding.member),
                finding.height,
                Marked(&finding.what)
            )?;
        }
        writeln!(out, "</ul>")?;
    }
    if !report.notes.is_empty() {
        writeln!(out, "<h3>Notes</h3><ul>")?;
        for note in &report.notes {
            writeln!(out, "<li>{}</li>", Marked(note))?;
        }
        writeln!(out, "</ul>")?;
    }
    Ok(())
}

/// What the checks of an area are about, in the order of the page.
const AREAS: [(Area, &str); 14] = [
    (Area::Identity, "Is this the round that was asked for?"),
    (Area::Files, "Files of the transcript"),
    (Area::Consortium, "Consortium and its members' signatures"),
    (Area::Round, "Terms of the round"),
    (Area::Model, "Base model"),
    (Area::Header, "Signed headers of ballots"),
    (Area::Holdings, "Signed statements of what members hold"),
    (Area::Proposal, "Proposals of aggregators"),
    (Area::Decision, "Decisions and their certificates"),
    (Area::Ballot, "Ballots"),
    (Area::Mask, "Masks, recomputed"),
    (Area::Result, "Signed results"),
    (Area::Evidence, "Evidence that members exchanged"),
    (Area::Pruned, "Pruned model"),
];

fn checks(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "<h2>Every check</h2>\n<p>Each compares two things; digests are BLAKE3, in hexadecimal.</p>")?;
    for (area, title) in AREAS {
        let count = |is: fn(&Outcome) -> bool| {
            report.checks.iter().filter(|check| check.area == area && is(&check.outcome)).count()
        };
        let passed = count(|outcome| matches!(outcome, Outcome::Passed));
        let failed = count(|outcome| matches!(outcome, Outcome::Failed { .. }));
        let open = count(|outcome| matches!(outcome, Outcome::NotChecked { .. }));
        let counts = [(passed, "passed"), (failed, "failed"), (open, "not checked")];
        let counts: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if counts.is_empty() {
            continue;
        }
        writeln!(
            out,
            "<details open><summary>{title} <span class=\"soft\">({})</span></summary><ul class=\"checks\">",
            counts.join(", ")
        )?;
        report.checks.iter().filter(|check| check.area == area).try_for_each(|each| check(out, each))?;
        writeln!(out, "</ul></details>")?;
    }
    Ok(())
}

fn check(out: &mut dyn Write, check: &Check) -> io::Result<()> {
    let (tone, word, why) = match &check.outcome {
        Outcome::Passed => ("good", "passed", None),
        Outcome::Failed { member: Some(member), why } => {
            ("bad", "FAILED", Some(format!("{why}; `{member}` is to blame")))
        }
        Outcome::Failed { member: None, why } => ("bad", "FAILED", Some(why.clone())),
        Outcome::NotChecked { why } => ("open", "not checked", Some(why.clone())),
    };
    write!(
        out,
        "<li><span class=\"word {tone}\">{word}</span><p><b>{}</b>: {}",
        Marked(&check.subject),
        Marked(&check.compared)
    )?;
    if let Some(why) = why {
        write!(out, " <span class=\"{tone}\">— {}</span>", Marked(&why))?;
    }
    writeln!(out, "</p></li>")
}

fn terms(out: &mut dyn Write, overview: &Overview) -> io::Result<()> {
    let Some(terms) = &overview.terms else { return Ok(()) };
    writeln!(out, "<h2>Terms of the round</h2>\n<pre>{}</pre>", Escaped(terms.trim()))
}

fn limits(out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "<h2>What no audit can tell</h2>\n<ul>\
         <li>Whether a ballot was made from the member's text, or from any text: that is nobody's to see.</li>\
         <li>When anything happened: times are claims.</li>\
         <li>Whether a member that is not among the contributors was really absent.</li></ul>\n\
         <p class=\"soft\">This page is a summary. Whoever has the transcript repeats it with <code>fedprune audit verify</code>; \
         docs/transcript.md describes every file for programs that share no code with fedprune.</p>"
    )
}
