//! `fedprune round approve`: an operator sees what will leave the silo, and says yes.
//!
//! A node takes part in a round only where `HOME/rounds/<round id>/` holds `round.toml` and an `approval.json` that
//! names this id. The document is written first, so that an approval never stands alone. The approval is signed with the
//! member's key and kept in the home's log; where a preview was made, it names the ballot that the preview showed, and
//! the node signs no other.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fedprune_audit::html::text::utc;
use fedprune_federation::policy::{BallotFacts, Refused as Refusals};
use fedprune_federation::{Approval, ConsortiumId, Policy, RoundId, SignedApproval};
use fedprune_mask::Digest;
use serde::Serialize;

use super::document::warnings;
use super::model::open;
use super::preview::{Preview, covers};
use super::silo_preview::{Begun, Record, previewed};
use super::terms::TermsReport;
use crate::args::{RoundApprovalsOptions, RoundApproveOptions};
use crate::commands::approvals::{ApprovalFile, append, head, log_path, nothing_cut_off, read_log, who};
use crate::commands::home::{Home, key_path, read_round, read_signing_key};
use crate::commands::site_policy::SitePolicy;
use crate::exit::Refused;
use crate::files::{program, replace_document, shell, sync_folder};
use crate::output::{count, facts, table, tame};
use crate::progress::Meter;
use crate::version;

/// Most bytes of an answer; more is no answer.
const MAX_ANSWER_BYTES: u64 = 64;

/// The answer of `fedprune round approve`.
#[derive(Debug, Serialize)]
pub struct ApprovalReport {
    round: RoundId,
    consortium: String,
    consortium_id: ConsortiumId,
    member: String,
    #[serde(serialize_with = "crate::output::lossy::path")]
    home: PathBuf,
    /// The folder of the round.
    #[serde(serialize_with = "crate::output::lossy::path")]
    folder: PathBuf,
    approved_unix_ms: u64,
    /// Whether it was approved before, and nothing was done now.
    already: bool,
    /// What was signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<Approval>,
    terms: TermsReport,
    preview: Preview,
    /// What `round preview` found, if it was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    previewed: Option<Record>,
    warnings: Vec<String>,
    #[serde(skip)]
    model: Option<PathBuf>,
    /// Whether terms and preview were on the terminal already.
    #[serde(skip)]
    seen: bool,
}

crate::report!(ApprovalReport);

/// Shows what a round means for this silo, asks, and writes the approval.
///
/// # Errors
/// What is missing in the home folder, a model that is another, a round that is over or whose ballot is signed, a "no",
/// or nobody to ask.
pub fn approve(options: &RoundApproveOptions, meter: &Meter) -> anyhow::Result<ApprovalReport> {
    let home = Home::open(&options.home)?;
    let consortium = home.consortium.consortium();
    let (round, text) = read_round(&options.round, consortium)?;
    let site = SitePolicy::find(&home.folder, options.policy.as_deref())?;
    if let Some(site) = &site {
        site.heed(site.policy.check_round(round.terms(), consortium))?;
    }
    let model = match &options.model {
        Some(model) => Some(open(model, &round, meter)?),
        None => None,
    };
    let folder = home.folder.join("rounds").join(round.id().to_string());
    let begun = Begun::of(&home, &round)?;
    let preview = match (previewed(&folder), begun.refusal(&round)) {
        // of what is done nobody needs another preview
        (Err(_), Some(refusal)) => return Err(refusal.into()),
        (preview, _) => preview?,
    };
    let layout = model.as_ref().map(|(checkpoint, heights)| (checkpoint.layout(), *heights));
    let mut report = ApprovalReport {
        round: round.id(),
        consortium: consortium.name().to_owned(),
        consortium_id: consortium.id(),
        member: home.name().to_owned(),
        home: home.folder.clone(),
        folder,
        approved_unix_ms: 0,
        already: false,
        approval: None,
        terms: TermsReport::of(round.terms(), consortium),
        preview: Preview::of(&round, &home.consortium, layout),
        previewed: preview.as_ref().map(|(record, _)| record.clone()),
        warnings: [home.warnings.clone(), warnings(&round, consortium)].concat(),
        model: options.model.clone(),
        seen: false,
    };
    let key = read_signing_key(&key_path(&home.folder))?;
    let wanted = Approval {
        round: round.id(),
        consortium: consortium.id(),
        member: home.member,
        ballot: preview.as_ref().map(|(record, _)| record.ballot),
        calibration: preview.as_ref().and_then(|(record, _)| record.calibration),
        preview: preview.as_ref().map(|(_, digest)| *digest),
        policy: site.as_ref().map(|site| site.policy.digest()),
        approved_unix_ms: 0,
        person: options.person.clone(),
        role: options.role.clone(),
        program: version::name(),
        previous: None,
    };
    wanted.check()?;
    if let Some(file) = ApprovalFile::read(&report.folder)?
        && report.folder.join("round.toml").exists()
        && (file.round, file.consortium) == (report.round, report.consortium_id)
    {
        let earlier = file.checked(round.id(), &key.verifying_key())?;
        if says_all(earlier, &wanted) {
            if let Some(site) = &site {
                heed(site, earlier, preview.as_ref().map(|(record, _)| record), options, &round_name(options))?;
            }
            report.already = true;
            report.approved_unix_ms = file.approved_unix_ms;
            report.approval = earlier.cloned();
            return Ok(report);
        }
        if !may_follow(begun, earlier, &wanted)
            && let Some(refusal) = begun.refusal(&round)
        {
            return Err(refusal.into());
        }
    } else if let Some(refusal) = begun.refusal(&round) {
        return Err(refusal.into());
    }
    if let Some(site) = &site {
        heed(site, Some(&wanted), preview.as_ref().map(|(record, _)| record), options, &round_name(options))?;
    }
    if !options.yes {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            let message = format!(
                "nobody is there to be asked, since this is no terminal; read what the round says with \
                 `{} round show {} --home {}`, then approve it with --yes",
                program(),
                shell(&options.round),
                shell(&options.home)
            );
            return Err(Refused(message).into());
        }
        if !ask(&report.terms_text(), &mut std::io::stdin().lock(), &mut std::io::stderr())? {
            return Err(Refused("the round was not approved, and nothing was written".to_owned()).into());
        }
        report.seen = true;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("this machine's clock is before 1970")?;
    let wanted = Approval { approved_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX), ..wanted };
    report.approved_unix_ms = wanted.approved_unix_ms;
    let keys = home.keys();
    let signed = write(&report, &text, |home| append(home, wanted, &key, &keys))?;
    report.approval = Some(signed.approval);
    Ok(report)
}

/// Whether an earlier approval says all that is wanted now, so that there is nothing to be asked.
fn says_all(earlier: Option<&Approval>, wanted: &Approval) -> bool {
    let Some(earlier) = earlier else {
        // one without signature, of an older program, is one of the round and no more
        return wanted.ballot.is_none()
            && wanted.policy.is_none()
            && wanted.person.is_empty()
            && wanted.role.is_empty();
    };
    let named = |was: &str, is: &str| is.is_empty() || was == is;
    // of a ballot that was approved, a preview that is gone takes nothing back
    (wanted.preview.is_none() || earlier.preview == wanted.preview)
        && earlier.policy == wanted.policy
        && named(&earlier.person, &wanted.person)
        && named(&earlier.role, &wanted.role)
}

/// Whether an approval may take the place of an earlier one in a round that has begun: one of the very ballot that is
/// signed may, since who approved or by which policy can be asked for later on.
fn may_follow(begun: Begun, earlier: Option<&Approval>, wanted: &Approval) -> bool {
    let Begun::Signed(signed) = begun else { return begun == Begun::NotSigned };
    match wanted.ballot {
        Some(ballot) => ballot == signed,
        None => earlier.is_none_or(|earlier| earlier.ballot.is_none()),
    }
}

/// Asks the policy about everything that is approved.
fn heed(
    site: &SitePolicy,
    approval: Option<&Approval>,
    preview: Option<&Record>,
    options: &RoundApproveOptions,
    round: &str,
) -> anyhow::Result<()> {
    let mut refused = preview.map(|record| refused(&site.policy, record)).unwrap_or_default();
    refused.extend(site.policy.check_approval(approval, None));
    let missing = site.policy.requires_preview() && preview.is_none();
    if missing && refused.is_empty() {
        refused.extend(site.policy.missing_preview());
    }
    site.heed(refused).with_context(|| {
        if missing {
            format!(
                "no preview was made of round {round}; make one: {} round preview {} --home {} --model DIR --data PATH",
                program(),
                shell(&options.round),
                shell(&options.home)
            )
        } else {
            format!("round {round} is not approved, and nothing was written")
        }
    })
}

/// What the policy refuses of what a preview found.
pub(in crate::commands) fn refused(policy: &Policy, record: &Record) -> Vec<Refusals> {
    let mut refused = policy.check_ballot(BallotFacts {
        bytes: record.ballot_bytes,
        encodings: &record.encodings(),
        calibration_tokens: record.calibration_tokens,
    });
    if let Some(attack) = &record.attack {
        refused.extend(policy.check_recovered(attack.recovered, attack.distinct));
    }
    if record.unread {
        refused.extend(policy.unread());
    }
    refused
}

/// How messages name the round.
fn round_name(options: &RoundApproveOptions) -> String {
    format!("`{}`", options.round.display())
}

/// Shows `text` and asks; only y and yes are a yes.
fn ask(text: &str, input: &mut dyn BufRead, output: &mut dyn Write) -> anyhow::Result<bool> {
    write!(output, "{text}\napprove this round? Type yes or no [no]: ")
        .and_then(|()| output.flush())
        .context("the question cannot be shown")?;
    let mut answer = String::new();
    std::io::Read::take(input, MAX_ANSWER_BYTES).read_line(&mut answer).context("the answer cannot be read")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Writes the round's document, then the log, then the approval.
fn write(
    report: &ApprovalReport,
    text: &str,
    sign: impl FnOnce(&Path) -> anyhow::Result<SignedApproval>,
) -> anyhow::Result<SignedApproval> {
    let folder = &report.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    for parent in folder.ancestors().take(3) {
        sync_folder(parent);
    }
    replace_document(&folder.join("round.toml"), text.as_bytes())?;
    let signed = sign(&report.home)?;
    let file = ApprovalFile {
        round: report.round,
        consortium: report.consortium_id,
        approved_unix_ms: report.approved_unix_ms,
        program: signed.approval.program.clone(),
        signed: Some(signed.clone()),
    };
    file.write(folder)?;
    Ok(signed)
}

/// The answer of `fedprune round approvals`.
#[derive(Debug, Serialize)]
pub struct ApprovalsReport {
    member: String,
    #[serde(serialize_with = "crate::output::lossy::path")]
    log: PathBuf,
    approvals: Vec<Approval>,
    /// What a copy kept elsewhere is compared with: the digest of the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<Digest>,
}

crate::report!(ApprovalsReport);

/// Lists the approvals of a home; every signature and link is checked.
///
/// # Errors
/// Naming the line of the log that was changed, or before which one is missing, or the approval that it lacks.
pub fn approvals(options: &RoundApprovalsOptions) -> anyhow::Result<ApprovalsReport> {
    let home = Home::open(&options.home)?;
    let log = read_log(&home.folder, &home.keys())?;
    nothing_cut_off(&home.folder, &log)?;
    Ok(ApprovalsReport {
        member: home.name().to_owned(),
        log: log_path(&home.folder),
        head: head(&log),
        approvals: log.into_iter().map(|signed| signed.approval).collect(),
    })
}

impl ApprovalsReport {
    fn text(&self) -> String {
        let Some(head) = self.head else { return format!("no approvals in `{}`", self.log.display()) };
        let short = |digest: Option<Digest>| digest.map_or_else(|| "–".to_owned(), |digest| digest.short().to_string());
        let rows: Vec<Vec<String>> = self
            .approvals
            .iter()
            .map(|approval| {
                vec![
                    approval.round.0.short().to_string(),
                    utc(approval.approved_unix_ms),
                    short(approval.ballot),
                    short(approval.preview),
                    who(approval),
                ]
            })
            .collect();
        format!(
            "{}\n{}",
            table(&["round", "approved", "ballot", "preview", "by"], &rows),
            facts(&[
                ("signed by", self.member.clone()),
                (
                    "log",
                    format!(
                        "{}: {} in all, none changed, none of the rounds here missing",
                        self.log.display(),
                        count(rows.len() as u64)
                    )
                ),
                ("its head", head.to_string()),
            ])
        )
    }
}

impl ApprovalReport {
    fn terms_text(&self) -> String {
        let mut rows = vec![
            ("round", self.round.to_string()),
            ("consortium", format!("{} ({})", self.consortium, self.consortium_id.0.short())),
            ("this member", self.member.clone()),
        ];
        rows.extend(self.terms.facts());
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        let previewed = match &self.previewed {
            Some(record) => previewed_text(record),
            None => String::new(),
        };
        format!("{}\n{}{previewed}{warnings}\n", facts(&rows), self.preview.text())
    }

    fn text(&self) -> String {
        let before = if self.seen { String::new() } else { format!("{}\n", self.terms_text()) };
        let done = if self.already { "approved before" } else { "approved" };
        let model = self.model.as_deref().map_or_else(|| "MODEL".to_owned(), shell);
        let data = if self.terms.reads_text() { " --data TEXT" } else { "" };
        format!(
            "{before}{}\nnext: {} node run --home {} --round {} --model {model}{data}",
            facts(&self.done(done)),
            program(),
            shell(&self.home),
            self.round,
        )
    }
}

impl ApprovalReport {
    fn done(&self, done: &'static str) -> Vec<(&'static str, String)> {
        let mut rows = vec![(done, self.folder.join("approval.json").display().to_string())];
        if let Some(approval) = &self.approval {
            match approval.ballot {
                Some(ballot) => {
                    let bound = covers(self.terms.strategy(), ballot, approval.calibration);
                    rows.extend(bound.into_iter().map(|bound| ("signed", bound)));
                }
                None => {
                    rows.push(("signed", "of the round; no preview was made, so that it names no ballot".to_owned()));
                }
            }
        }
        rows
    }
}

/// What a preview found, in a few lines.
fn previewed_text(record: &Record) -> String {
    let found = match &record.attack {
        Some(attack) => format!(
            "recovers {} of the {} different tokens of the text ({} by frequency alone)",
            attack.recovered, attack.distinct, attack.baseline
        ),
        None => "was not made: nothing in this ballot that it reads depends on the text".to_owned(),
    };
    format!(
        "the ballot that was previewed\n  {} bytes, {}, digest {}\n  The attack of the preview {found}.\n",
        count(record.ballot_bytes),
        record.encodings.join(" and "),
        record.ballot
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(answer: &str) -> bool {
        let mut shown = Vec::new();
        let yes = ask("the terms", &mut answer.as_bytes(), &mut shown).unwrap();
        assert!(String::from_utf8(shown).unwrap().starts_with("the terms\n"));
        yes
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        assert!(answered("yes\n") && answered(" Y \r\n") && answered("y"));
        for no in ["", "\n", "no\n", "n\n", "yess\n", "ja\n", "yes no\n"] {
            assert!(!answered(no), "{no:?}");
        }
        assert!(!answered(&format!("{}yes", " ".repeat(1 << 20))));
    }
}
