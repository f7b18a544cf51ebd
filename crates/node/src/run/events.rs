//! What a node tells its operator: one event a line, as JSON for machines and as a sentence for people.

use std::path::PathBuf;

use fedprune_federation::MemberIndex;
use fedprune_federation::machine::Event;
use fedprune_federation::wire::VERSION;
use fedprune_mask::Digest;
use serde::Serialize;

use crate::network::Split;
use crate::observe::snapshot::one_line;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum NodeEvent {
    /// The node runs.
    Started {
        /// Which member it is.
        member: String,
        /// The round's id.
        round: Digest,
        /// The consortium's id.
        consortium: Digest,
    },
    /// It can be dialled there.
    Listening {
        /// With `/p2p/` and its peer id.
        addresses: Vec<String>,
    },
    /// It can be looked at there.
    Serving {
        /// The page, for a browser on this machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        page: Option<String>,
        /// For Prometheus.
        #[serde(skip_serializing_if = "Option::is_none")]
        metrics: Option<String>,
    },
    /// A member is connected.
    Connected {
        /// Which one.
        member: String,
    },
    /// A member runs another version of the program, which speaks the same protocol: the round goes on.
    OtherProgram {
        /// Which one.
        member: String,
        /// What its program calls itself, if it tells.
        program: Option<String>,
        /// What this one calls itself.
        ours: String,
    },
    /// A member is not connected any more.
    Disconnected {
        /// Which one.
        member: String,
    },
    /// A member takes part in something else.
    Mismatch {
        /// Which one.
        member: String,
        /// What differs.
        differences: Vec<String>,
        /// What to do about each.
        remedies: Vec<String>,
    },
    /// A member sends what no honest member sends, or too much, and is refused for a while.
    ShutOut {
        /// Which one.
        member: String,
        /// What it sends.
        why: String,
        /// For how long.
        seconds: u64,
    },
    /// An outsider was refused.
    Refused {
        /// Its peer id.
        peer: String,
        /// Why.
        why: String,
    },
    /// Another process runs with this member's key.
    AnotherInstance {
        /// Who is connected to it.
        seen_by: String,
    },
    /// Enough members have told what they have of ours.
    Joined,
    /// The mask is being computed.
    Computing {
        /// Of which height.
        height: u32,
    },
    /// Our ballot is signed.
    Ballot {
        /// Of which height.
        height: u32,
        /// Its size.
        bytes: u64,
        /// Since the node started.
        seconds: f64,
    },
    /// We have no ballot.
    Abstained {
        /// Of which height.
        height: u32,
        /// Why.
        why: String,
    },
    /// A member's ballot is stored and valid.
    Held {
        /// Of which height.
        height: u32,
        /// Whose.
        member: String,
    },
    /// A member's ballot is not valid.
    Invalid {
        /// Of which height.
        height: u32,
        /// Whose.
        member: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two members sent the same ballot.
    SameBallot {
        /// Of which height.
        height: u32,
        /// The two.
        members: Vec<String>,
    },
    /// We said what we hold.
    Holding {
        /// Of which height.
        height: u32,
        /// How many ballots.
        ballots: usize,
    },
    /// The agreement is in a view.
    View {
        /// Of which height.
        height: u32,
        /// From 0.
        view: u32,
        /// Whose turn it is.
        aggregator: String,
    },
    /// A proposal that may not be agreed on.
    BadProposal {
        /// Of which height.
        height: u32,
        /// In which view.
        view: u32,
        /// Who proposed it.
        member: String,
        /// What is wrong with it.
        why: String,
    },
    /// A height is decided.
    Decided {
        /// Which.
        height: u32,
        /// In which view.
        view: u32,
        /// Whose ballots count.
        contributors: Vec<String>,
    },
    /// We know the mask of a height.
    Tallied {
        /// Which.
        height: u32,
        /// The root of its mask.
        mask_root: Digest,
    },
    /// A quorum stands for the mask of a height.
    Certified {
        /// Which.
        height: u32,
        /// The root of its mask.
        mask_root: Digest,
    },
    /// A member said two things where it may say one.
    Evidence {
        /// Of which height.
        height: u32,
        /// Who.
        member: String,
        /// In what kind of statement.
        kind: String,
    },
    /// Others have something of ours that our log does not have.
    Adopted {
        /// Of which height.
        height: u32,
        /// What kind of statement.
        kind: String,
    },
    /// Something that an operator should know.
    Warning {
        /// What.
        text: String,
    },
    /// The round is over here; others are still answered.
    Finished {
        /// `agreed` or `abandoned`.
        outcome: &'static str,
        /// The root of the global mask of the whole model.
        mask_root: Option<Digest>,
        /// What a stranger can verify.
        transcript: PathBuf,
        /// The pruned model.
        pruned: Option<PathBuf>,
        /// To other members.
        sent_bytes: u64,
        /// From other members.
        received_bytes: u64,
        /// Since the node started.
        seconds: f64,
        /// The most memory that this process had, mapped files included.
        peak_memory_bytes: Option<u64>,
    },
    /// This node is through, and stays to answer others.
    Staying {
        /// Those that have not said that they need nobody any more.
        members: Vec<String>,
        /// How long at most.
        seconds: u64,
    },
    /// All connections are closed; nothing is said or sent after this.
    Closed {
        /// To other members, in all runs of this round.
        sent_bytes: u64,
        /// From other members.
        received_bytes: u64,
        /// What was sent, by what it was for.
        sent: Split,
        /// What was received, likewise.
        received: Split,
    },
}

impl NodeEvent {
    pub(super) fn of(event: Event, seconds: f64, name: impl Fn(MemberIndex) -> String) -> Self {
        match event {
            Event::Joined => Self::Joined,
            Event::Contributed { height, body_bytes } => Self::Ballot { height: height.0, bytes: body_bytes, seconds },
            Event::Abstained { height, why } => Self::Abstained { height: height.0, why },
            Event::Held { height, member } => Self::Held { height: height.0, member: name(member) },
            Event::Refused { height, member, why } => Self::Invalid { height: height.0, member: name(member), why },
            Event::SameBallot { height, members } => {
                Self::SameBallot { height: height.0, members: members.map(&name).to_vec() }
            }
            Event::Holding { height, ballots } => Self::Holding { height: height.0, ballots },
            Event::View { height, view, aggregator } => {
                Self::View { height: height.0, view, aggregator: name(aggregator) }
            }
            Event::BadProposal { height, view, member, why } => {
                Self::BadProposal { height: height.0, view, member: name(member), why }
            }
            Event::Decided { height, view, contributors } => {
                Self::Decided { height: height.0, view, contributors: contributors.into_iter().map(name).collect() }
            }
            Event::Tallied { height, mask_root } => Self::Tallied { height: height.0, mask_root },
            Event::Certified { height, mask_root } => Self::Certified { height: height.0, mask_root },
            Event::Equivocation { height, member, kind } => {
                Self::Evidence { height: height.0, member: name(member), kind: kind.to_string() }
            }
            Event::Adopted { height, kind } => Self::Adopted { height: height.0, kind: kind.to_string() },
        }
    }

    /// What it is called in JSON.
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value.get("event").and_then(|name| name.as_str()).unwrap_or_default().to_owned()
    }

    /// Whether it calls for an operator's attention.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::Mismatch { .. }
                | Self::ShutOut { .. }
                | Self::AnotherInstance { .. }
                | Self::Abstained { .. }
                | Self::Invalid { .. }
                | Self::SameBallot { .. }
                | Self::BadProposal { .. }
                | Self::Evidence { .. }
                | Self::Adopted { .. }
                | Self::Warning { .. }
        )
    }

    /// Tells it to whoever listens to `tracing`, under the name `fedprune`.
    pub(super) fn trace(&self) {
        if self.is_warning() {
            tracing::warn!(target: "fedprune", event = self.name(), "{}", one_line(&self.text()));
        } else {
            tracing::info!(target: "fedprune", event = self.name(), "{}", one_line(&self.text()));
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        match self {
            Self::Started { member, round, consortium } => {
                format!("`{member}` in round {} of consortium {}", round.short(), consortium.short())
            }
            Self::Listening { addresses } => format!("listening; others dial {}", addresses.join(" or ")),
            Self::Serving { page, metrics } => {
                let page = page.iter().map(|at| format!("the page is at {at}"));
                let metrics = metrics.iter().map(|at| format!("metrics are at {at}"));
                page.chain(metrics).collect::<Vec<_>>().join("; ")
            }
            Self::Connected { member } => format!("`{member}` is connected"),
            Self::OtherProgram { member, program, ours } => {
                let theirs = program.as_deref().map_or_else(
                    || "a program that does not tell its version".to_owned(),
                    |theirs| format!("`{theirs}`"),
                );
                format!(
                    "`{member}` runs {theirs}, and this is `{ours}`: both speak protocol {VERSION}, and the round goes on"
                )
            }
            Self::Disconnected { member } => format!("`{member}` is gone"),
            Self::Mismatch { member, differences, remedies } => {
                format!("`{member}` cannot take part: {}; {}", differences.join("; "), remedies.join("; "))
            }
            Self::ShutOut { member, why, seconds } => {
                format!("`{member}` sends {why}: its connections are closed, and it is refused for {seconds} s")
            }
            Self::Refused { peer, why } => format!("refused {peer}: {why}"),
            Self::AnotherInstance { seen_by } => {
                format!("`{seen_by}` is connected to another process with this key; stop one of the two")
            }
            Self::Joined => "joined: a quorum has told what it has of ours".to_owned(),
            Self::Computing { height } => format!("computing our ballot for height {height}"),
            Self::Ballot { height, bytes, seconds } => {
                format!("our ballot for height {height} is signed: {bytes} bytes, after {seconds:.1} s")
            }
            Self::Abstained { height, why } => format!(
                "no ballot of ours for height {height}: {why}; once that is mended, stop this node and start it again: it tries anew"
            ),
            Self::Held { height, member } => format!("the ballot of `{member}` for height {height} is here and valid"),
            Self::Invalid { height, member, why } => {
                format!("the ballot of `{member}` for height {height} does not count: {why}")
            }
            Self::SameBallot { height, members } => {
                format!("{} sent the same ballot for height {height}; one may be a copy", members.join(" and "))
            }
            Self::Holding { height, ballots } => format!("said that {ballots} ballots are held for height {height}"),
            Self::View { height, view, aggregator } => {
                format!("agreeing on height {height}, view {view}: it is the turn of `{aggregator}`")
            }
            Self::BadProposal { height, view, member, why } => {
                format!("the proposal of `{member}` for height {height} in view {view} is refused: {why}")
            }
            Self::Decided { height, view, contributors } if contributors.is_empty() => {
                format!("height {height} is abandoned, in view {view}")
            }
            Self::Decided { height, view, contributors } => {
                format!("height {height} is decided in view {view}; ballots of {} count", contributors.join(", "))
            }
            Self::Tallied { height, mask_root } => format!("our mask of height {height} is {}", mask_root.short()),
            Self::Certified { height, mask_root } => {
                format!("a quorum stands for mask {} of height {height}", mask_root.short())
            }
            Self::Evidence { height, member, kind } => {
                format!("`{member}` signed two different {kind}s at height {height}; the proof is kept")
            }
            Self::Adopted { height, kind } => format!(
                "others have a {kind} of ours for height {height} that is not in our log: a restored backup, or a second \
                 node with this key; it is adopted"
            ),
            Self::Warning { text } => format!("warning: {text}"),
            Self::Finished { outcome, mask_root, transcript, pruned, sent_bytes, received_bytes, seconds, .. } => {
                let root = mask_root.map_or_else(String::new, |root| format!("; global mask {root}"));
                let pruned =
                    pruned.as_ref().map_or_else(String::new, |path| format!("; pruned model in {}", path.display()));
                format!(
                    "round {outcome} after {seconds:.1} s{root}{pruned}; transcript in {}; {sent_bytes} bytes sent, \
                     {received_bytes} received",
                    transcript.display()
                )
            }
            Self::Staying { members, seconds } => {
                let members: Vec<String> = members.iter().map(|name| format!("`{name}`")).collect();
                format!(
                    "done here; staying up to {seconds} s (--linger) to answer {}, not known to be done; Ctrl-C ends that, \
                     and loses nothing",
                    members.join(", ")
                )
            }
            Self::Closed { sent_bytes, received_bytes, .. } => {
                format!("connections are closed; {sent_bytes} bytes sent, {received_bytes} received")
            }
        }
    }
}
