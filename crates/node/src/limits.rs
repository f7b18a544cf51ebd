//! Every limit of what others can cause, in one place: here are those of a member's conduct, and [`table`] lists these
//! and those of the network, of transfers and of storage, with what each is for. `docs/reliability.md` has that table.

use std::time::Duration;

use crate::network::limits::*;
use crate::observe::limits::*;
use crate::storage::limits::*;
use crate::transfer::limits::*;

/// Connections from one address that are not authenticated yet.
pub const PENDING_PER_ADDRESS: usize = 32;
/// Streams of one connection whose protocol is not settled yet.
pub const NEGOTIATING_STREAMS: usize = 128;

/// Gossip messages of one member that are looked at, however close they come.
pub const GOSSIP_MESSAGES_AT_ONCE: u64 = 8192;
/// Gossip messages of one member in a second, from then on.
pub const GOSSIP_MESSAGES_PER_SECOND: u64 = 1024;
/// Questions of one member that are answered, however close they come.
pub const QUESTIONS_AT_ONCE: u64 = 256;
/// Questions of one member in a second, from then on.
pub const QUESTIONS_PER_SECOND: u64 = 16;
/// Requests of one member for chunks of ballots, however close they come.
pub const CHUNK_REQUESTS_AT_ONCE: u64 = 4096;
/// Requests of one member for chunks of ballots in a second, from then on.
pub const CHUNK_REQUESTS_PER_SECOND: u64 = 1024;
/// Bytes of one member that are no parts of ballots, however close they come.
pub const UNASKED_BYTES_AT_ONCE: u64 = 64 << 20;
/// Bytes of one member that are no parts of ballots, in a second, from then on.
pub const UNASKED_BYTES_PER_SECOND: u64 = 8 << 20;
/// How often what members send is compared with what they may.
pub const CONDUCT_INTERVAL: Duration = Duration::from_millis(100);

/// Faults after which a member is shut out: a rejected message or a question that is none is one.
pub const MOST_FAULTS: u64 = 8;
/// Faults of a member that are forgiven in a second.
pub const FAULTS_FORGIVEN_PER_SECOND: f64 = 0.2;
/// How long a member is shut out the first time; twice as long each further time.
pub const SHUT_OUT_FIRST: Duration = Duration::from_secs(15);
/// Longest time for which a member is shut out.
pub const SHUT_OUT_LONGEST: Duration = Duration::from_secs(600);

/// Places of the node's queue that one member takes.
pub const EVENT_QUEUE_PER_MEMBER: usize = 512;
/// Bytes of gossip and requests of one member that wait for the node.
pub const EVENT_QUEUE_BYTES_PER_MEMBER: usize = 16 << 20;

/// Ballots that are checked at a time; others wait, those of members that sent bad ones longest.
pub const BALLOTS_CHECKED_AT_ONCE: usize = 2;
/// Ballots of each member for which there is room on the disk, each as large as the model allows.
pub const STORED_BALLOTS_PER_MEMBER: u64 = 2;

/// A limit, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub group: &'static str,
    /// What it is called in the source.
    pub name: &'static str,
    /// How much.
    pub value: String,
    /// What is limited, and what for.
    pub reason: &'static str,
}

/// A value for people.
trait Shown {
    fn shown(&self, bytes: bool) -> String;
}

fn number(value: u64, bytes: bool) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(bits, _)| bytes && value >= 1 << bits && value.trailing_zeros() >= *bits);
    match unit {
        Some((bits, unit)) => format!("{} {unit}", value >> bits),
        None if bytes => format!("{value} B"),
        None => value.to_string(),
    }
}

impl Shown for u64 {
    fn shown(&self, bytes: bool) -> String {
        number(*self, bytes)
    }
}

impl Shown for usize {
    fn shown(&self, bytes: bool) -> String {
        number(*self as u64, bytes)
    }
}

impl Shown for u32 {
    fn shown(&self, bytes: bool) -> String {
        number(u64::from(*self), bytes)
    }
}

impl Shown for f64 {
    fn shown(&self, _: bool) -> String {
        self.to_string()
    }
}

impl Shown for Duration {
    fn shown(&self, _: bool) -> String {
        format!("{} s", self.as_secs_f64())
    }
}

/// Lists limits by the name of their constant.
macro_rules! limits {
    ($($group:literal { $($name:ident $reason:literal)* })*) => {
        vec![$($(Limit {
            group: $group,
            name: stringify!($name),
            value: $name.shown(stringify!($name).contains("BYTES")),
            reason: $reason,
        },)*)*]
    };
}

/// All limits, in the order in which bytes meet them.
pub fn table() -> Vec<Limit> {
    limits! {
        "connections" {
            PENDING_INCOMING_CONNECTIONS "incoming connections that are not authenticated: further ones are closed; members dial each other both ways, so that places taken by outsiders keep nobody apart"
            PENDING_PER_ADDRESS "the same from one address: one outsider does not take all places"
            CONNECTION_TIMEOUT "for encryption and authentication: who only knocks is gone after it"
            CONNECTIONS_PER_MEMBER "connections with one member; outsiders have none, since their keys are on no list"
            GREETING_TIMEOUT "for a greeting: who is authenticated and says nothing is gone after it"
            GREETINGS_PER_CONNECTION "greetings of one connection under way"
            HELD_REQUESTS_PER_CONNECTION "requests kept until the greeting matched; further ones are refused"
            HELD_GOSSIP_PER_PEER "messages kept until the greeting matched; further ones are dropped"
            HELD_GOSSIP_BYTES_PER_PEER "their bytes"
        }
        "streams" {
            STREAMS_PER_CONNECTION "streams of a TCP connection; further ones end it"
            NEGOTIATING_STREAMS "streams whose protocol is not settled; further ones are dropped"
            ASK_STREAMS "streams with questions, both ways; further ones are dropped"
            CHUNK_STREAMS "streams with parts of ballots, both ways; further ones are dropped"
        }
        "sizes" {
            GOSSIP_BYTES "a gossip message; a larger one counts as a fault"
            ASK_BYTES "a question; what is longer is refused before it is read"
            ANSWER_BYTES "an answer; likewise"
            CHUNK_ANSWER_BYTES "a part of a ballot with its proof; likewise"
            READ_STEP_BYTES "first allocation for what is announced; memory grows only with what arrives"
            MAX_BODY_BYTES "a ballot, if the model's layout allows that much: it is refused by its header otherwise"
            MAX_RECORD_BYTES "a record of the log"
        }
        "rates" {
            GOSSIP_MESSAGES_AT_ONCE "messages of one member looked at, however close; further ones are dropped unread"
            GOSSIP_MESSAGES_PER_SECOND "from then on; 128 members say about 650 things at a height"
            QUESTIONS_AT_ONCE "questions of one member answered, however close; further ones are answered busy"
            QUESTIONS_PER_SECOND "from then on; a member asks every 0.7 s, and back when asked"
            CHUNK_REQUESTS_AT_ONCE "requests of one member for parts of ballots; further ones are answered busy"
            CHUNK_REQUESTS_PER_SECOND "from then on: 1 GiB a second"
            UNASKED_BYTES_AT_ONCE "bytes of one member that are neither parts of ballots nor relayed; beyond them it is shut out"
            UNASKED_BYTES_PER_SECOND "from then on"
        }
        "in flight" {
            EVENT_QUEUE "events that wait for the node; beyond them gossip is dropped and requests are answered busy"
            EVENT_QUEUE_BYTES "their bytes"
            EVENT_QUEUE_PER_MEMBER "events of one member: others still have room"
            EVENT_QUEUE_BYTES_PER_MEMBER "their bytes"
            ASKS_SERVED_PER_MEMBER "questions of one member being answered; further ones are answered busy"
            ASKS_SERVED "questions of all"
            CHUNKS_SERVED_PER_MEMBER "parts of ballots that one member is being sent; further requests are answered busy"
            CHUNKS_SERVED "the same for all: 64 MiB in memory"
            MAX_REQUESTS_PER_MEMBER "parts of ballots that one member is asked for at a time"
            MAX_REQUESTS "the same of all: 32 MiB in memory"
            PROGRESS_PATIENCE "how long a transfer may stand still before it is given up"
            NO_PROGRESS_MS "milliseconds after which another member is asked for a part of a ballot"
        }
        "conduct" {
            MOST_FAULTS "faults until a member is shut out; its connections are closed, it is named, and what it signed reaches us through others"
            FAULTS_FORGIVEN_PER_SECOND "faults forgiven in a second"
            SHUT_OUT_FIRST "how long it is refused, doubled each further time"
            SHUT_OUT_LONGEST "the longest"
            CONDUCT_INTERVAL "how often bytes are compared with what is allowed"
            REFUSED_INTERVAL "outsiders named to the operator once in this time; further ones are counted"
        }
        "disk and processor" {
            STORED_BALLOTS_PER_MEMBER "ballots of each member that there is room for, each as large as the model allows; only the first is fetched unless a proposal or decision counts another"
            DISK_RESERVE_BYTES "left free by ballots, for the log"
            MAX_SEGMENT_BYTES "the log of one height"
            BALLOTS_CHECKED_AT_ONCE "ballots being checked; those of members that sent bad ones wait longest"
        }
        "page and metrics" {
            HTTP_CONNECTIONS "connections to the page or to metrics, if they are on; further ones wait until one closes"
            HTTP_REQUESTS_AT_ONCE "requests that a socket answers, however close; further ones wait for their turn"
            HTTP_REQUESTS_PER_SECOND "from then on"
            METRICS_KEPT "how long metrics are answered as they were, while the node says nothing new, which it does every 0.25 s at most"
            HTTP_HEAD_TIME "for the head of a request: who says nothing is gone after it"
            HTTP_HEAD_BYTES "bytes of it; a longer one ends the connection, and a body is never read"
            HTTP_HEAD_LINES "lines of it"
            HTTP_CONNECTION_TIME "how long a connection is used before its client has to connect again"
            HTTP_LAST_ANSWER_TIME "for the answer that is under way then"
        }
    }
}

/// The table as it stands in the documentation.
pub fn markdown() -> String {
    let mut text = "| | limit | | what for |\n|---|---|---|---|\n".to_owned();
    let mut before = "";
    for Limit { group, name, value, reason } in table() {
        let first = if group == before { "" } else { group };
        before = group;
        text.push_str(&format!("| {first} | `{name}` | {value} | {reason} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_each_other() {
        let table = table();
        let names: std::collections::BTreeSet<&str> = table.iter().map(|limit| limit.name).collect();
        assert_eq!(names.len(), table.len(), "each once");
        let value = |name: &str| table.iter().find(|limit| limit.name == name).expect("listed").value.clone();
        assert_eq!((value("GOSSIP_BYTES"), value("ASK_STREAMS")), ("2 MiB".to_owned(), "32".to_owned()));
        assert_eq!((value("SHUT_OUT_FIRST"), value("CONDUCT_INTERVAL")), ("15 s".to_owned(), "0.1 s".to_owned()));
        const {
            assert!(PENDING_PER_ADDRESS < PENDING_INCOMING_CONNECTIONS as usize);
            assert!(EVENT_QUEUE_PER_MEMBER < EVENT_QUEUE - EVENT_QUEUE_RESERVED);
            assert!(EVENT_QUEUE_BYTES_PER_MEMBER >= 2 * (GOSSIP_BYTES + ASK_BYTES));
            assert!(EVENT_QUEUE_BYTES_PER_MEMBER < EVENT_QUEUE_BYTES);
            // what may come at once passes before the bytes are used up
            assert!(UNASKED_BYTES_AT_ONCE >= 4 * ANSWER_BYTES as u64);
        }
    }
}
