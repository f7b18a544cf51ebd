//! What a running node is doing, at one moment: the one source of the page, the metrics and the dashboard.

use std::collections::{BTreeMap, VecDeque};

use fedprune_mask::Digest;
use serde::{Deserialize, Serialize};

use crate::run::Status;

/// Lines of the log that are kept to be shown.
pub const LOG_LINES: usize = 200;
/// Most characters of one of them.
pub const LOG_LINE_CHARACTERS: usize = 600;

/// A running node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What `fedprune node status` reads, as of now.
    #[serde(flatten)]
    pub status: Status,
    /// Which consortium.
    pub consortium: Digest,
    /// When this was, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Of the agreement on the current height, from 0.
    pub view: u32,
    /// What the others owe, as numbers.
    pub waits: Option<Waits>,
    /// All members, in the consortium's order.
    pub roster: Vec<MemberRow>,
    /// Of each decoder block, how far the ballots that count agree: the share of (weight, pair of ballots) with the same
    /// bit. Nothing where that is not known yet.
    pub agreement: Vec<Option<f64>>,
    /// What masks of that sparsity would come to that had nothing in common.
    pub agreement_by_chance: f64,
    /// When each step was last done, in seconds since the node started.
    pub steps: BTreeMap<String, f64>,
    /// How often each limit was met.
    pub limits: BTreeMap<String, u64>,
    /// How often each event was told.
    pub events: BTreeMap<String, u64>,
    /// The latest events, oldest first.
    pub log: VecDeque<LogLine>,
}

/// So many of how many of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// What is counted.
    pub what: String,
    /// How many there are.
    pub found: usize,
    /// How many it takes.
    pub needed: usize,
}

/// A member, as this node knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Its name.
    pub name: String,
    /// Whether it is this node.
    pub own: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// How long ago anything came from it, in seconds; nothing if nothing did.
    pub heard_seconds_ago: Option<f64>,
    /// How its ballot of the current height, or of the last, stands.
    pub ballot: Option<String>,
    /// What it was shut out for, if it was.
    pub shut_out: Option<String>,
    /// Whether it has told that it needs nobody any more.
    pub finished: bool,
}

/// An event, to be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Whether it calls for attention.
    pub warning: bool,
    /// The event's name.
    pub event: String,
    /// The event in words, without anything that moves a cursor.
    pub text: String,
}

impl Snapshot {
    /// How many other members are connected.
    pub fn connected(&self) -> usize {
        self.roster.iter().filter(|member| member.connected).count()
    }

    /// The mean agreement of the blocks of which it is known.
    pub fn mean_agreement(&self) -> Option<f64> {
        let known: Vec<f64> = self.agreement.iter().copied().flatten().collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }
}

/// A text of bounded length on one line, whatever it was made from.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == LOG_LINE_CHARACTERS {
            line.push('…');
            break;
        }
        if fedprune_mask::is_harmful(character) {
            line.extend(character.escape_unicode());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_tame_and_bounded() {
        assert_eq!(one_line("a\nb\u{1b}[2J\u{202e}é"), "a\\u{a}b\\u{1b}[2J\\u{202e}é");
        let long = one_line(&"ü".repeat(10_000));
        assert_eq!(long.chars().count(), LOG_LINE_CHARACTERS + 1);
        assert!(long.ends_with('…'));
    }
}
