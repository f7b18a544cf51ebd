//! `fedprune round approve`: an operator sees what will leave the silo, and says yes.
//!
//! A node takes part in a round only where `HOME/rounds/<round id>/` holds `round.toml` and an `approval.json` that
//! names this id. The document is written first, so that an approval never stands alone.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fedprune_federation::{ConsortiumId, RoundId};
use serde::{Deserialize, Serialize};

use super::document::warnings;
use super::model::open;
use super::preview::Preview;
use super::terms::TermsReport;
use crate::args::RoundApproveOptions;
use crate::commands::home::{Home, read_round};
use crate::exit::Refused;
use crate::files::{program, read_small, replace_document, shell, sync_folder};
use crate::output::{facts, tame};
use crate::progress::Meter;

/// Most bytes of an `approval.json`; ours have about 300.
const MAX_APPROVAL_BYTES: usize = 4096;
/// Most bytes of an answer; more is no answer.
const MAX_ANSWER_BYTES: u64 = 64;

/// `approval.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Approval {
    round: RoundId,
    consortium: ConsortiumId,
    /// Milliseconds since 1970 by this machine's clock.
    approved_unix_ms: u64,
    /// What wrote it.
    program: String,
}

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
    terms: TermsReport,
    preview: Preview,
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
/// What is missing in the home folder, a model that is another, a "no", or nobody to ask.
pub fn approve(options: &RoundApproveOptions, meter: &Meter) -> anyhow::Result<ApprovalReport> {
    let home = Home::open(&options.home)?;
    let consortium = home.consortium.consortium();
    let (round, text) = read_round(&options.round, consortium)?;
    let model = match &options.model {
        Some(model) => Some(open(model, &round, meter)?),
        None => None,
    };
    let folder = home.folder.join("rounds").join(round.id().to_string());
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
        terms: TermsReport::of(round.terms(), consortium),
        preview: Preview::of(&round, &home.consortium, layout),
        warnings: [home.warnings.clone(), warnings(&round, consortium)].concat(),
        model: options.model.clone(),
        seen: false,
    };
    if let Some(approval) = earlier(&report)? {
        report.already = true;
        report.approved_unix_ms = approval.approved_unix_ms;
        return Ok(report);
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
    report.approved_unix_ms = write(&report, &text)?;
    Ok(report)
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

/// An approval of this very round that is there already, document and all.
fn earlier(report: &ApprovalReport) -> anyhow::Result<Option<Approval>> {
    let path = report.folder.join("approval.json");
    if !path.exists() || !report.folder.join("round.toml").exists() {
        return Ok(None);
    }
    let bytes = read_small(&path, MAX_APPROVAL_BYTES)?;
    let approval: Option<Approval> = serde_json::from_slice(&bytes).ok();
    Ok(approval.filter(|approval| approval.round == report.round && approval.consortium == report.consortium_id))
}

/// Writes the round's document, then the approval. Returns its time.
fn write(report: &ApprovalReport, text: &str) -> anyhow::Result<u64> {
    let folder = &report.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    for parent in folder.ancestors().take(3) {
        sync_folder(parent);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("this machine's clock is before 1970")?;
    let approval = Approval {
        round: report.round,
        consortium: report.consortium_id,
        approved_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        program: format!("fedprune {}", env!("CARGO_PKG_VERSION")),
    };
    replace_document(&folder.join("round.toml"), text.as_bytes())?;
    replace_document(
        &folder.join("approval.json"),
        format!("{}\n", serde_json::to_string_pretty(&approval)?).as_bytes(),
    )?;
    Ok(approval.approved_unix_ms)
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
        format!("{}\n{}{warnings}\n", facts(&rows), self.preview.text())
    }

    fn text(&self) -> String {
        let before = if self.seen { String::new() } else { format!("{}\n", self.terms_text()) };
        let done = if self.already { "approved before" } else { "approved" };
        let model = self.model.as_deref().map_or_else(|| "MODEL".to_owned(), shell);
        let data = if self.terms.reads_text() { " --data TEXT" } else { "" };
        format!(
            "{before}{}\nnext: {} node run --home {} --round {} --model {model}{data}",
            facts(&[(done, self.folder.join("approval.json").display().to_string())]),
            program(),
            shell(&self.home),
            self.round,
        )
    }
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
