//! The same as OpenMetrics: a table of metrics, each a function of a [`Snapshot`], beside those that libp2p counts itself.
//!
//! Units are those of Prometheus: seconds, bytes, shares from 0 to 1. `docs/observability.md` has the table.

use std::fmt::{self, Write};
use std::sync::Arc;

use libp2p::metrics::Registry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::snapshot::Snapshot;

/// What every name begins with.
const PREFIX: &str = "fedprune";

/// Whether a value only grows while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does; its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Always 1: what matters are its labels; its name ends in `_info`.
    Info,
}

/// The unit in a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Seconds,
    Bytes,
    /// A share from 0 to 1.
    Ratio,
    /// A number of things.
    Things,
}

/// Values of labels, in the order of their names, and the value.
type Sample = (Vec<String>, f64);

/// One metric.
pub struct Metric {
    name: &'static str,
    kind: Kind,
    unit: In,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&Snapshot) -> Vec<Sample>,
}

impl Metric {
    /// The name under which it is found.
    pub fn full_name(&self) -> String {
        let unit = self.unit().map_or_else(String::new, |unit| format!("_{}", unit.as_str()));
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge => "",
        };
        format!("{PREFIX}_{}{unit}{suffix}", self.name)
    }

    fn unit(&self) -> Option<Unit> {
        match self.unit {
            In::Seconds => Some(Unit::Seconds),
            In::Bytes => Some(Unit::Bytes),
            In::Ratio => Some(Unit::Other("ratio".to_owned())),
            In::Things => None,
        }
    }
}

fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn by_name<'a>(values: impl IntoIterator<Item = (&'a (impl ToString + ?Sized + 'a), f64)>) -> Vec<Sample> {
    values.into_iter().map(|(name, value)| (vec![name.to_string()], value)).collect()
}

fn of_members(snapshot: &Snapshot, value: impl Fn(&super::MemberRow) -> Option<f64>) -> Vec<Sample> {
    let others = snapshot.roster.iter().filter(|member| !member.own);
    by_name(others.filter_map(|member| Some((&member.name, value(member)?))))
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// All metrics of our own.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "node",
        kind: Kind::Info,
        unit: In::Things,
        labels: &["member", "round", "consortium", "program"],
        help: "Always 1; says which node this is.",
        samples: |snapshot| {
            let Snapshot { status, consortium, .. } = snapshot;
            vec![(
                vec![status.member.clone(), status.round.to_string(), consortium.to_string(), status.program.clone()],
                1.0,
            )]
        },
    },
    Metric {
        name: "uptime",
        kind: Kind::Gauge,
        unit: In::Seconds,
        labels: &[],
        help: "Since this process started.",
        samples: |snapshot| one(snapshot.status.seconds),
    },
    Metric {
        name: "phase",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &["phase"],
        help: "Always 1; what the node is at.",
        samples: |snapshot| by_name([(&snapshot.status.phase, 1.0)]),
    },
    Metric {
        name: "heights",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &[],
        help: "Heights of the round: 1, or one a decoder block.",
        samples: |snapshot| one(f64::from(snapshot.status.heights)),
    },
    Metric {
        name: "heights_done",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &[],
        help: "Heights that are behind this node.",
        samples: |snapshot| one(f64::from(snapshot.status.height)),
    },
    Metric {
        name: "view",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &[],
        help: "View of the agreement on the current height; above 0 an aggregator's turn came to nothing.",
        samples: |snapshot| one(f64::from(snapshot.view)),
    },
    Metric {
        name: "waits_found",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &["what"],
        help: "How many there are of what others owe this node; absent while it waits for nobody.",
        samples: |snapshot| by_name(snapshot.waits.iter().map(|waits| (&waits.what, waits.found as f64))),
    },
    Metric {
        name: "waits_needed",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &["what"],
        help: "How many of them it takes.",
        samples: |snapshot| by_name(snapshot.waits.iter().map(|waits| (&waits.what, waits.needed as f64))),
    },
    Metric {
        name: "members",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &[],
        help: "Members of the consortium, this one included.",
        samples: |snapshot| one(snapshot.status.members as f64),
    },
    Metric {
        name: "members_connected",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &[],
        help: "Other members that are connected.",
        samples: |snapshot| one(snapshot.connected() as f64),
    },
    Metric {
        name: "member_connected",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &["member"],
        help: "Whether a member is connected: 1 or 0.",
        samples: |snapshot| of_members(snapshot, |member| Some(yes(member.connected))),
    },
    Metric {
        name: "member_last_heard",
        kind: Kind::Gauge,
        unit: In::Seconds,
        labels: &["member"],
        help: "How long ago anything came from a member; absent if nothing did.",
        samples: |snapshot| of_members(snapshot, |member| member.heard_seconds_ago),
    },
    Metric {
        name: "member_shut_out",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &["member"],
        help: "Whether a member was shut out since this process started: 1 or 0.",
        samples: |snapshot| of_members(snapshot, |member| Some(yes(member.shut_out.is_some()))),
    },
    Metric {
        name: "ballots",
        kind: Kind::Gauge,
        unit: In::Things,
        labels: &["standing"],
        help: "Members by how their ballot of the current height stands.",
        samples: |snapshot| {
            let mut standings = std::collections::BTreeMap::<&str, f64>::new();
            for member in &snapshot.roster {
                *standings.entry(member.ballot.as_deref().unwrap_or("not heard of")).or_default() += 1.0;
            }
            by_name(standings.iter().map(|(name, members)| (*name, *members)))
        },
    },
    Metric {
        name: "sent",
        kind: Kind::Counter,
        unit: In::Bytes,
        labels: &["kind"],
        help: "To other members in all runs of this round, by what it was for.",
        samples: |snapshot| of_kinds(snapshot.status.sent.by_name()),
    },
    Metric {
        name: "received",
        kind: Kind::Counter,
        unit: In::Bytes,
        labels: &["kind"],
        help: "From other members, likewise.",
        samples: |snapshot| of_kinds(snapshot.status.received.by_name()),
    },
    Metric {
        name: "block_agreement",
        kind: Kind::Gauge,
        unit: In::Ratio,
        labels: &["block"],
        help: "Share of weights and pairs of ballots with the same bit, by decoder block; absent until the ballots are counted.",
        samples: |snapshot| {
            let known = snapshot.agreement.iter().enumerate().filter_map(|(block, share)| Some((block, (*share)?)));
            known.map(|(block, share)| (vec![block.to_string()], share)).collect()
        },
    },
    Metric {
        name: "agreement_by_chance",
        kind: Kind::Gauge,
        unit: In::Ratio,
        labels: &[],
        help: "What ballots of that sparsity would come to that had nothing in common.",
        samples: |snapshot| one(snapshot.agreement_by_chance),
    },
    Metric {
        name: "step_done",
        kind: Kind::Gauge,
        unit: In::Seconds,
        labels: &["step"],
        help: "When a step was last done, since this process started.",
        samples: |snapshot| by_name(snapshot.steps.iter().map(|(step, seconds)| (step, *seconds))),
    },
    Metric {
        name: "events",
        kind: Kind::Counter,
        unit: In::Things,
        labels: &["event"],
        help: "Events told, by name.",
        samples: |snapshot| by_name(snapshot.events.iter().map(|(event, times)| (event, *times as f64))),
    },
    Metric {
        name: "limits_met",
        kind: Kind::Counter,
        unit: In::Things,
        labels: &["limit"],
        help: "How often a limit was met.",
        samples: |snapshot| by_name(snapshot.limits.iter().map(|(limit, times)| (limit, *times as f64))),
    },
];

fn of_kinds(kinds: [(&'static str, u64); 5]) -> Vec<Sample> {
    by_name(kinds.iter().map(|(kind, bytes)| (*kind, *bytes as f64)))
}

/// Encodes the latest snapshot whenever it is asked.
#[derive(Debug)]
struct FromSnapshot(watch::Receiver<Arc<Snapshot>>);

impl Collector for FromSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let snapshot = self.0.borrow().clone();
        for metric in METRICS {
            let unit = metric.unit();
            let (name, kind) = (format!("{PREFIX}_{}", metric.name), metric.kind);
            let metric_type = match kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
            };
            let mut family = encoder.encode_descriptor(&name, metric.help, unit.as_ref(), metric_type)?;
            for (values, value) in (metric.samples)(&snapshot) {
                let labels: Vec<(&str, String)> = metric.labels.iter().copied().zip(values).collect();
                if kind == Kind::Info {
                    family.encode_info(&labels)?;
                    continue;
                }
                // whole numbers, exact in a double up to 2^53
                let (count, gauge) = (ConstCounter::new(value as u64), ConstGauge::new(value));
                match (kind, labels.is_empty()) {
                    (Kind::Counter, true) => family.encode_counter::<NoLabelSet, _, f64>(&(value as u64), None)?,
                    (Kind::Counter, false) => count.encode(family.encode_family(&labels)?)?,
                    (_, true) => family.encode_gauge(&value)?,
                    (_, false) => gauge.encode(family.encode_family(&labels)?)?,
                }
            }
        }
        Ok(())
    }
}

/// Adds our metrics.
pub(super) fn register(registry: &mut Registry, snapshots: watch::Receiver<Arc<Snapshot>>) {
    registry.register_collector(Box::new(FromSnapshot(snapshots)));
}

/// All metrics as text.
pub(super) fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

/// The table as it stands in the documentation.
pub fn markdown() -> String {
    let mut text = "| metric | labels | |\n|---|---|---|\n".to_owned();
    for metric in METRICS {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // writing to a string cannot fail
        let _ = writeln!(text, "| `{}` | {} | {} |", metric.full_name(), labels.join(", "), metric.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_prometheus_asks_for() {
        let mut names = std::collections::BTreeSet::new();
        for metric in METRICS {
            let name = metric.full_name();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(names.insert(name), "{} twice", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '"']), "{}", metric.help);
        }
        for expected in ["fedprune_sent_bytes_total", "fedprune_uptime_seconds", "fedprune_block_agreement_ratio"] {
            assert!(names.contains(expected), "{expected} in {names:?}");
        }
    }
}
