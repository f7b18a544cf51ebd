//! Reports, as text for people or as JSON for machines.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Context;

use crate::args::Format;

/// What a command found out or made.
pub trait Report {
    /// The report as a JSON value.
    fn to_json(&self) -> serde_json::Result<serde_json::Value>;

    /// The report for people, without a final newline.
    fn to_text(&self) -> String;

    /// What the program exits with once the report is printed; not 0 when it tells of something gone wrong.
    fn exit_code(&self) -> u8 {
        0
    }

    /// Whether everything was printed while it happened, so that nothing is left to print.
    fn is_said(&self) -> bool {
        false
    }
}

/// Implements [`Report`] for a `Serialize` type with an inherent `text(&self) -> String`; `report!(Type, exit)` also
/// takes its inherent `exit(&self) -> u8` for the exit code.
#[macro_export]
macro_rules! report {
    ($type:ty $(, $exit:ident)?) => {
        impl $crate::output::Report for $type {
            fn to_json(&self) -> serde_json::Result<serde_json::Value> {
                serde_json::to_value(self)
            }

            fn to_text(&self) -> String {
                self.text()
            }
            $(
                fn exit_code(&self) -> u8 {
                    self.$exit()
                }
            )?
        }
    };
}

/// Prints `report` to `out`.
///
/// # Errors
/// When it cannot be written.
pub fn print(report: &dyn Report, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    if report.is_said() {
        return Ok(());
    }
    let text = match format {
        Format::Text => report.to_text(),
        Format::Json => serde_json::to_string_pretty(&report.to_json()?)?,
    };
    writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Whether the reader of standard output has gone away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .or_else(|| error.root_cause().downcast_ref::<std::io::Error>())
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Text from outside, such as a file's name, without what would move a terminal's cursor or fake a line.
pub fn tame(text: &str) -> String {
    let mut tamed = String::with_capacity(text.len());
    for c in text.chars() {
        if fedprune_mask::is_harmful(c) { tamed.extend(c.escape_unicode()) } else { tamed.push(c) }
    }
    tamed
}

/// Writes paths into JSON whatever bytes they hold; those that are no Unicode are replaced.
pub mod lossy {
    use std::path::{Path, PathBuf};

    use serde::{Serialize, Serializer};

    /// One path.
    pub fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&path.to_string_lossy())
    }

    /// One, or none.
    pub fn optional_path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Path::to_string_lossy).serialize(serializer)
    }

    /// Several.
    pub fn paths<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
    }
}

/// An error and its causes on one line, without saying anything twice.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            let _ = write!(text, ": {cause}");
        }
    }
    tame(&text)
}

/// Columns aligned for people; the first is left-aligned, the others right-aligned.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| tame(cell)).collect()).collect();
    let columns = header.len();
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut rendered = String::new();
        for (index, cell) in cells.take(columns).enumerate() {
            let width = widths[index];
            let _ = if index == 0 { write!(rendered, "{cell:<width$}") } else { write!(rendered, "  {cell:>width$}") };
        }
        text.push_str(rendered.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Names and values, one a line.
pub fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<width$}  {}", tame(value));
    }
    text
}

/// A count with thousands separators.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that keeps them above one.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if number < 1000 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A share as a percentage with two decimals.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".to_owned() } else { format!("{:.2} %", part as f64 * 100.0 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(106_168_320), "106,168,320");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!(bytes(13_271_040), "13.3 MB");
        assert_eq!(percent(1, 3), "33.33 %");
        assert_eq!(percent(0, 0), "–");
    }

    #[test]
    fn tables_align() {
        let text = table(&["silo", "bytes"], &[vec!["a".into(), "10".into()], vec!["longer".into(), "7".into()]]);
        assert_eq!(text, "silo    bytes\na          10\nlonger      7\n");
    }

    #[test]
    fn names_from_outside_cannot_steer_a_terminal() {
        assert_eq!(tame("a\u{1b}[2Jb\nc\u{202e}d é"), "a\\u{1b}[2Jb\\u{a}c\\u{202e}d é");
        assert!(!table(&["x"], &[vec!["\u{1b}".into()]]).contains('\u{1b}'));
        assert!(!facts(&[("x", "a\nb".into())]).contains("a\nb"));
        assert!(!chain(&anyhow::anyhow!("`\u{1b}[31m` is red")).contains('\u{1b}'));
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("disk full").context("cannot write `x`: disk full").context("apply failed");
        assert_eq!(chain(&error), "apply failed: cannot write `x`: disk full");
    }
}
