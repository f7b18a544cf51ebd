//! What a node says on its standard output: one JSON object a line.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

use fedprune_mask::Digest;
use serde::Deserialize;
use serde_json::Value;

use crate::manifest::Outcome;

/// Longest line of a node, in bytes.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// Most bytes that one process says.
pub const MAX_EVENT_BYTES: u64 = 64 << 20;

/// One line. Keys that are not listed are left alone: a node may say more than the runner reads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum NodeEvent {
    Listening {
        #[serde(default)]
        addresses: Vec<String>,
    },
    Connected {
        member: String,
    },
    Ballot {
        height: Option<u32>,
        bytes: u64,
        seconds: f64,
        mask_root: Option<Digest>,
    },
    Decided {
        height: u32,
        #[serde(default)]
        contributors: BTreeSet<String>,
    },
    Tallied {
        height: u32,
        mask_root: Digest,
    },
    Evidence {
        member: Option<String>,
    },
    ShutOut {
        member: String,
    },
    Finished {
        outcome: Outcome,
        mask_root: Option<Digest>,
        transcript: Option<PathBuf>,
        pruned: Option<PathBuf>,
        sent_bytes: u64,
        received_bytes: u64,
        peak_memory_bytes: Option<u64>,
    },
    /// The last one, when all connections are closed.
    Closed {
        sent_bytes: u64,
        received_bytes: u64,
        #[serde(default)]
        sent: BTreeMap<String, u64>,
    },
    /// An event that the runner does not know.
    #[serde(other)]
    Other,
}

/// A line with its event's name, by which manifests say when a node is killed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) event: NodeEvent,
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Named, String> {
    let shown = || {
        let text: String = String::from_utf8_lossy(line).chars().take(200).collect();
        text.trim_end().escape_debug().to_string()
    };
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("`{}`: {error}", shown()))?;
    let name = value.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
    let event = serde_json::from_value(value).map_err(|error| format!("`{}`: {error}", shown()))?;
    Ok(Named { name, event })
}

/// Reads lines until the end, writes each to `log`, and hands each on; ends early when `take` is false.
///
/// # Errors
/// When the process cannot be read, or says too much; a log that cannot be written.
pub(crate) fn follow(
    mut source: impl BufRead,
    log: &mut impl Write,
    mut take: impl FnMut(Result<Named, String>) -> bool,
) -> io::Result<()> {
    let mut said_bytes = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        // one byte more than may be, to tell
        let read = source.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        said_bytes += read as u64;
        log.write_all(&line)?;
        if read > MAX_LINE_BYTES || said_bytes > MAX_EVENT_BYTES {
            take(Err(format!(
                "it prints more than {MAX_LINE_BYTES} bytes a line or {MAX_EVENT_BYTES} in all; the rest is not read"
            )));
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if !take(parse(&line)) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(said: &[u8]) -> (Vec<Result<String, String>>, Vec<u8>) {
        let (mut events, mut log) = (Vec::new(), Vec::new());
        let take = |event: Result<Named, String>| {
            events.push(event.map(|event| event.name));
            true
        };
        follow(said, &mut log, take).unwrap();
        (events, log)
    }

    #[test]
    fn lines_become_events_and_are_kept() {
        let root = "ab".repeat(32);
        let said = format!(
            "{{\"event\":\"listening\",\"addresses\":[\"/ip4/127.0.0.1/tcp/1\"],\"more\":1}}\n\n\
             {{\"event\":\"tallied\",\"height\":3,\"mask_root\":\"{root}\"}}\n{{\"event\":\"weather\"}}"
        );
        let (events, log) = followed(said.as_bytes());
        let names: Vec<String> = events.into_iter().map(Result::unwrap).collect();
        assert_eq!(names, ["listening", "tallied", "weather"]);
        assert_eq!(log, said.as_bytes());
        let tallied = parse(said.lines().nth(2).unwrap().as_bytes()).unwrap().event;
        assert_eq!(tallied, NodeEvent::Tallied { height: 3, mask_root: root.parse().unwrap() });
        assert_eq!(parse(b"{\"event\":\"weather\"}").unwrap().event, NodeEvent::Other);
    }

    #[test]
    fn what_is_no_event_is_named() {
        for said in ["hello", "{}", "[]", "{\"event\":\"tallied\",\"height\":-1}", "{\"event\":\"finished\"}"] {
            let error = parse(said.as_bytes()).unwrap_err();
            assert!(error.starts_with(&format!("`{}`", said.escape_debug())), "{error}");
        }
        assert!(!parse(b"\x1b[31m").unwrap_err().contains('\u{1b}'));
    }

    #[test]
    fn an_endless_line_is_cut() {
        let (events, log) = followed(&vec![b'x'; MAX_LINE_BYTES * 3]);
        assert!(matches!(events.as_slice(), [Err(error)] if error.contains("bytes a line")), "{events:?}");
        assert_eq!(log.len(), MAX_LINE_BYTES + 1);
    }
}
