//! `fedprune completions`, `fedprune man`, and the reference in `docs/cli.md`: what the parser knows of itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use serde::Serialize;

use crate::args::{CompletionsOptions, ManOptions};
use crate::files::shell;
use crate::output::facts;
use crate::settings;

/// How wide help is in the reference.
const REFERENCE_COLUMNS: usize = 110;

/// The answer of `fedprune completions`.
#[derive(Debug, Serialize)]
pub struct CompletionsReport {
    shell: String,
    script: String,
}

/// The answer of `fedprune man`.
#[derive(Debug, Serialize)]
pub struct ManReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    folder: PathBuf,
    pages: usize,
}

crate::report!(CompletionsReport);
crate::report!(ManReport);

/// Makes a completion script.
pub fn completions(options: &CompletionsOptions) -> CompletionsReport {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut settings::command(), "fedprune", &mut script);
    CompletionsReport { shell: options.shell.to_string(), script: String::from_utf8_lossy(&script).into_owned() }
}

/// Writes the manual pages, in place of older ones.
///
/// # Errors
/// When the folder cannot be made or written.
pub fn man(options: &ManOptions) -> anyhow::Result<ManReport> {
    let folder = &options.folder;
    let unwritable = || format!("cannot write the manual to `{}`", folder.display());
    std::fs::create_dir_all(folder).with_context(unwritable)?;
    let mut command = settings::command();
    command.build();
    let pages = write_pages(&command, "fedprune", folder).with_context(unwritable)?;
    Ok(ManReport { folder: folder.clone(), pages })
}

fn write_pages(command: &Command, name: &str, folder: &Path) -> std::io::Result<usize> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().name(name.to_owned())).render(&mut page)?;
    std::fs::write(folder.join(format!("{name}.1")), page)?;
    let mut pages = 1;
    for child in shown(command) {
        pages += write_pages(child, &format!("{name}-{}", child.get_name()), folder)?;
    }
    Ok(pages)
}

/// The sub-commands that people type.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help")
}

impl CompletionsReport {
    fn text(&self) -> String {
        self.script.clone()
    }
}

impl ManReport {
    fn text(&self) -> String {
        format!(
            "{}\nnext: man {}",
            facts(&[("pages", self.pages.to_string()), ("folder", self.folder.display().to_string())]),
            shell(&self.folder.join("fedprune.1")),
        )
    }
}

/// The reference of all commands, as Markdown.
pub fn reference() -> String {
    let mut command = settings::command().term_width(REFERENCE_COLUMNS);
    command.build();
    let mut text = String::from(
        "# Commands\n\nWhat `fedprune help` says of each command, in one page. Made from the program itself; a test compares \
         the two.\n\n",
    );
    let (mut contents, mut sections) = (String::new(), String::new());
    describe(&command, "fedprune", &mut contents, &mut sections);
    let _ = write!(text, "{contents}\n## Exit codes\n\n{}", exit_codes());
    text.push_str(&sections);
    text
}

fn exit_codes() -> String {
    let mut text = String::from("| code | meaning |\n|---|---|\n");
    for (code, meaning) in [
        ("0", "done"),
        ("1", "failed: a file, a model, a disk"),
        ("2", "not understood: what was typed, or a setting"),
        (
            "3",
            "network or membership: others cannot be reached or do not agree, a key is of no member, a round was abandoned",
        ),
        ("4", "refused: a policy of this site, or its operator, does not allow it"),
        ("10 and up", "verdicts of an audit: 10 SELF-CONSISTENT, 11 INCOMPLETE, 12 FAILED"),
        ("130", "stopped by a signal"),
    ] {
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    text
}

fn describe(command: &Command, name: &str, contents: &mut String, sections: &mut String) {
    let anchor = name.replace(' ', "-");
    let depth = name.split(' ').count() - 1;
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = writeln!(contents, "{}* [`{name}`](#{anchor}): {about}", "  ".repeat(depth));
    let help = command.clone().bin_name(name).term_width(REFERENCE_COLUMNS).render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(sections, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for child in shown(command) {
        describe(child, &format!("{name} {}", child.get_name()), contents, sections);
    }
}
