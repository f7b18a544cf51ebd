//! What goes wrong in a testnet: with the processes of nodes, and on the links between them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use super::{AGGREGATOR, ManifestError, Silo, check_text, milliseconds, shortened, wrong};

/// Most faults of one process, one after the other.
pub const MAX_FAULTS: usize = 16;
/// Most faults of links.
pub const MAX_LINK_FAULTS: usize = 64;
/// Longest delay of a link, in milliseconds.
pub const MAX_DELAY_MS: u64 = 10_000;
/// Most of a thousand segments that a link loses.
pub const MAX_LOSS_PER_MILLE: u64 = 500;
/// Slowest and fastest line, in bytes a second.
pub const LINE_BYTES_PER_SECOND: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000;
/// Smallest and largest file that a full disk has room for, in bytes.
pub const FULL_DISK_BYTES: std::ops::RangeInclusive<u64> = 4_096..=1 << 40;

/// Something that goes wrong with a node's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub how: How,
    /// When.
    pub when: When,
    /// How long after that its node starts again, or goes on; never, if absent.
    pub ends_after: Option<Duration>,
}

/// What goes wrong with a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// It and its children end with SIGKILL.
    Kill,
    /// It is asked to end with SIGTERM, as its operator does.
    Restart,
    /// It and its children stand still between SIGSTOP and SIGCONT.
    Pause,
    /// No file of it grows beyond so many bytes (RLIMIT_FSIZE), until it ends because of that.
    FullDisk {
        /// Bytes of the largest file.
        file_bytes: u64,
    },
}

/// When something goes wrong with a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// At this point of its own code, which it is told with `--fail-at`.
    Point(String),
    /// When it has printed this event.
    Event(String),
    /// This long after it was started.
    After(Duration),
    /// From its start.
    Start,
}

/// A fault of whoever's turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregatorFault {
    /// Of which agreement.
    pub height: u32,
    /// Of which turn, from 0.
    pub view: u32,
    /// What, when and for how long.
    pub fault: Fault,
}

/// Something that goes wrong between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFault {
    /// As the manifest calls it.
    pub name: &'static str,
    /// What happens to bytes.
    pub disturbance: Disturbance,
    /// To which: sender and receiver, as numbers of silos.
    pub pairs: BTreeSet<(usize, usize)>,
    /// When it begins.
    pub begins: Begin,
    /// How long it lasts; to the end, if absent.
    pub lasts: Option<Duration>,
}

/// What happens to bytes on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Connections break, and none can be made.
    Cut,
    /// Bytes stop, and nobody is told: connections look alive.
    Stall,
    /// They arrive so much later.
    Delay(Duration),
    /// Of a thousand segments so many are lost, and sent again.
    Loss {
        /// Of a thousand.
        per_mille: u64,
    },
    /// So many pass in a second.
    Slow {
        /// Bytes.
        bytes_per_second: u64,
    },
}

/// When a fault of links begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// This long after the first node started.
    After(Duration),
    /// When this silo has printed this event, or any silo.
    Event(Option<usize>, String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KillDocument {
    point: Option<String>,
    event: Option<String>,
    after_ms: Option<u64>,
    restart_after_ms: Option<u64>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
enum What {
    #[default]
    Kill,
    Restart,
    Pause,
    DiskFull,
    Disconnect,
    Partition,
    Delay,
    Loss,
    Slow,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PerturbDocument {
    #[serde(default)]
    what: What,
    who: Option<String>,
    to: Option<Vec<String>>,
    groups: Option<Vec<Vec<String>>>,
    one_way: Option<bool>,
    height: Option<u32>,
    view: Option<u32>,
    point: Option<String>,
    event: Option<String>,
    after_ms: Option<u64>,
    restart_after_ms: Option<u64>,
    for_ms: Option<u64>,
    delay_ms: Option<u64>,
    loss_per_mille: Option<u64>,
    bytes_per_second: Option<u64>,
    file_bytes: Option<u64>,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::DiskFull => "disk-full",
            Self::Disconnect => "disconnect",
            Self::Partition => "partition",
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::Slow => "slow",
        }
    }

    /// The keys that go with it, beside `what` and `who`.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Kill => &["height", "view", "point", "event", "after_ms", "restart_after_ms"],
            Self::Restart => &["height", "view", "event", "after_ms", "restart_after_ms"],
            Self::Pause => &["height", "view", "event", "after_ms", "for_ms"],
            Self::DiskFull => &["file_bytes", "restart_after_ms"],
            // a connection that breaks breaks both ways
            Self::Disconnect => &["to", "event", "after_ms", "for_ms"],
            Self::Partition => &["to", "groups", "one_way", "event", "after_ms", "for_ms"],
            Self::Delay => &["to", "one_way", "event", "after_ms", "for_ms", "delay_ms"],
            Self::Loss => &["to", "one_way", "event", "after_ms", "for_ms", "loss_per_mille"],
            Self::Slow => &["to", "one_way", "event", "after_ms", "for_ms", "bytes_per_second"],
        }
    }
}

impl PerturbDocument {
    /// What was given, beside `what` and `who`.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("to", self.to.is_some()),
            ("groups", self.groups.is_some()),
            ("one_way", self.one_way.is_some()),
            ("height", self.height.is_some()),
            ("view", self.view.is_some()),
            ("point", self.point.is_some()),
            ("event", self.event.is_some()),
            ("after_ms", self.after_ms.is_some()),
            ("restart_after_ms", self.restart_after_ms.is_some()),
            ("for_ms", self.for_ms.is_some()),
            ("delay_ms", self.delay_ms.is_some()),
            ("loss_per_mille", self.loss_per_mille.is_some()),
            ("bytes_per_second", self.bytes_per_second.is_some()),
            ("file_bytes", self.file_bytes.is_some()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    fn key(&self) -> String {
        match &self.who {
            Some(who) => format!("perturb {}", shortened(who)),
            None => format!("perturb {}", self.what.name()),
        }
    }

    fn begins(&self, key: &str, silo: Option<usize>) -> Result<Begin, ManifestError> {
        match (&self.event, self.after_ms) {
            (Some(event), None) => {
                check_text(key, event)?;
                Ok(Begin::Event(silo, event.clone()))
            }
            (None, after_ms) => Ok(Begin::After(milliseconds(key, after_ms.unwrap_or(0))?)),
            (Some(_), Some(_)) => Err(wrong(key, "say when: give `event` or `after_ms`, not both")),
        }
    }
}

/// What a kill in a silo's own table says.
pub(super) fn kill_of(key: &str, kill: KillDocument) -> Result<Fault, ManifestError> {
    let KillDocument { point, event, after_ms, restart_after_ms } = kill;
    let ends_after = restart_after_ms.map(|given| milliseconds(key, given)).transpose()?;
    Ok(Fault { how: How::Kill, when: when_of(key, point, event, after_ms)?, ends_after })
}

fn when_of(
    key: &str,
    point: Option<String>,
    event: Option<String>,
    after_ms: Option<u64>,
) -> Result<When, ManifestError> {
    match (point, event, after_ms) {
        (Some(point), None, None) => {
            check_text(key, &point)?;
            Ok(When::Point(point))
        }
        (None, Some(event), None) => {
            check_text(key, &event)?;
            if event == "finished" {
                return Err(wrong(key, "a node that has finished is stopped anyway: use an earlier event"));
            }
            Ok(When::Event(event))
        }
        (None, None, Some(after_ms)) => Ok(When::After(milliseconds(key, after_ms)?)),
        _ => Err(wrong(key, "say when: give one of `point`, `event` and `after_ms`")),
    }
}

fn within(
    key: &str,
    name: &str,
    given: Option<u64>,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, ManifestError> {
    match given {
        Some(given) if range.contains(&given) => Ok(given),
        Some(given) => Err(wrong(key, format!("`{name}` is {given}: use {} to {}", range.start(), range.end()))),
        None => Err(wrong(key, format!("give `{name}`, {} to {}", range.start(), range.end()))),
    }
}

/// Gives each fault of a process to its silo; returns those of aggregators and of links.
pub(super) fn perturbations(
    documents: Vec<PerturbDocument>,
    silos: &mut [Silo],
) -> Result<(Vec<AggregatorFault>, Vec<LinkFault>), ManifestError> {
    let (mut of_aggregators, mut of_links) = (Vec::new(), Vec::new());
    for document in documents {
        let (key, what) = (document.key(), document.what);
        if let Some(given) = document.given().into_iter().find(|given| !what.keys().contains(given)) {
            let keys = what.keys().join("`, `");
            return Err(wrong(
                key,
                format!("`{given}` does not go with what = \"{}\"; with it go `who` and `{keys}`", what.name()),
            ));
        }
        match what {
            What::Kill | What::Restart | What::Pause | What::DiskFull => {
                let Some(who) = document.who.clone() else {
                    return Err(wrong(key, "say `who`: a silo, or \"aggregator\""));
                };
                let (height, view) = (document.height, document.view);
                let fault = process_fault(&key, document)?;
                if who == AGGREGATOR && what != What::DiskFull {
                    let (height, view) = (height.unwrap_or(0), view.unwrap_or(0));
                    of_aggregators.push(AggregatorFault { height, view, fault });
                    continue;
                }
                if height.is_some() || view.is_some() {
                    return Err(wrong(
                        key,
                        "`height` and `view` say whose turn it is: they go with who = \"aggregator\"",
                    ));
                }
                let Some(silo) = silos.iter_mut().find(|silo| silo.name == who) else {
                    return Err(wrong(key, "no silo has this name: give one, or \"aggregator\""));
                };
                silo.faults.push(fault);
            }
            _ => of_links.push(link_fault(&key, document, silos)?),
        }
    }
    if of_aggregators.len() > MAX_FAULTS {
        return Err(wrong("perturb", format!("at most {MAX_FAULTS} faults of aggregators")));
    }
    if of_links.len() > MAX_LINK_FAULTS {
        return Err(wrong("perturb", format!("at most {MAX_LINK_FAULTS} faults of links")));
    }
    let disturbed = |silo: &&Silo| !silo.start || !silo.is_honest() || !silo.faults.is_empty();
    if !of_aggregators.is_empty()
        && let Some(silo) = silos.iter().find(disturbed)
    {
        return Err(wrong(
            "perturb aggregator",
            format!(
                "whose turn it is follows from the round id, and it may be `{}`, which is absent or fails in its own way: \
                 let all other silos run undisturbed",
                silo.name
            ),
        ));
    }
    Ok((of_aggregators, of_links))
}

fn process_fault(key: &str, document: PerturbDocument) -> Result<Fault, ManifestError> {
    let what = document.what;
    let ends_after = document.restart_after_ms.or(document.for_ms);
    let ends_after = ends_after.map(|given| milliseconds(key, given)).transpose()?;
    let how = match what {
        What::Restart => How::Restart,
        What::Pause => How::Pause,
        What::DiskFull => {
            let file_bytes = within(key, "file_bytes", document.file_bytes, FULL_DISK_BYTES)?;
            return Ok(Fault { how: How::FullDisk { file_bytes }, when: When::Start, ends_after });
        }
        _ => How::Kill,
    };
    if how == How::Pause && ends_after.is_none() {
        return Err(wrong(key, "say how long: give `for_ms`"));
    }
    if how == How::Restart && ends_after.is_none() {
        return Err(wrong(key, "say when it starts again: give `restart_after_ms`"));
    }
    Ok(Fault { how, when: when_of(key, document.point, document.event, document.after_ms)?, ends_after })
}

fn link_fault(key: &str, document: PerturbDocument, silos: &[Silo]) -> Result<LinkFault, ManifestError> {
    let number = |name: &String| {
        let found = silos.iter().position(|silo| silo.name == *name);
        found.ok_or_else(|| wrong(key, format!("no silo is called `{}`: correct the name", shortened(name))))
    };
    let what = document.what;
    let silo = document.who.as_ref().map(number).transpose()?;
    let mut pairs = BTreeSet::new();
    match (&document.groups, silo) {
        (Some(_), Some(_)) => return Err(wrong(key, "give `groups`, or `who` and `to`, not both")),
        (Some(groups), None) => {
            if document.to.is_some() || document.one_way.is_some() {
                return Err(wrong(key, "`to` and `one_way` go with `who`, not with `groups`"));
            }
            // silos that are named nowhere are one more group
            let mut group_of = vec![None; silos.len()];
            for (group, names) in groups.iter().enumerate() {
                for name in names {
                    let number = number(name)?;
                    if group_of.get(number).copied().flatten().is_some() {
                        return Err(wrong(key, format!("`{name}` is in `groups` twice: name it once")));
                    }
                    if let Some(slot) = group_of.get_mut(number) {
                        *slot = Some(group);
                    }
                }
            }
            for (one, of_one) in group_of.iter().enumerate() {
                let others = group_of.iter().enumerate().filter(|(_, of_other)| *of_other != of_one);
                pairs.extend(others.map(|(other, _)| (one, other)));
            }
        }
        (None, silo) => {
            let to = match &document.to {
                Some(names) => names.iter().map(number).collect::<Result<BTreeSet<_>, _>>()?,
                None => (0..silos.len()).collect(),
            };
            if silo.is_none() && (document.to.is_some() || document.one_way.is_some()) {
                return Err(wrong(key, "`to` and `one_way` say in which direction from `who`: give `who`"));
            }
            if what == What::Partition && silo.is_none() {
                return Err(wrong(key, "say who is apart from whom: give `groups`, or `who`"));
            }
            let from = silo.map_or_else(|| (0..silos.len()).collect(), |silo| BTreeSet::from([silo]));
            let one_way = document.one_way.unwrap_or(false);
            for (one, other) in from.iter().flat_map(|one| to.iter().map(move |other| (*one, *other))) {
                pairs.insert((one, other));
                if !one_way {
                    pairs.insert((other, one));
                }
            }
            pairs.retain(|(one, other)| one != other);
        }
    }
    if pairs.is_empty() {
        return Err(wrong(key, "no link is between these silos: name two that differ"));
    }
    let disturbance = match what {
        What::Partition => Disturbance::Stall,
        What::Delay => {
            Disturbance::Delay(Duration::from_millis(within(key, "delay_ms", document.delay_ms, 1..=MAX_DELAY_MS)?))
        }
        What::Loss => Disturbance::Loss {
            per_mille: within(key, "loss_per_mille", document.loss_per_mille, 1..=MAX_LOSS_PER_MILLE)?,
        },
        What::Slow => Disturbance::Slow {
            bytes_per_second: within(key, "bytes_per_second", document.bytes_per_second, LINE_BYTES_PER_SECOND)?,
        },
        _ => Disturbance::Cut,
    };
    let begins = document.begins(key, silo)?;
    let lasts = document.for_ms.map(|given| milliseconds(key, given)).transpose()?;
    Ok(LinkFault { name: what.name(), disturbance, pairs, begins, lasts })
}

/// Whether the faults of one silo can come one after the other.
pub(super) fn check_faults(silo: &Silo) -> Result<(), ManifestError> {
    let key = format!("silo {}: kill", silo.name);
    if silo.faults.len() > MAX_FAULTS {
        return Err(wrong(key, format!("at most {MAX_FAULTS} kills and other faults")));
    }
    if silo.faults.is_empty() {
        return Ok(());
    }
    if !silo.start {
        return Err(wrong(key, "a node that never starts cannot be killed or disturbed: remove one of the two"));
    }
    if silo.fail_at.is_some() {
        return Err(wrong(key, "`fail_at` leaves open whether the node dies: use one of the two"));
    }
    let followed = silo.faults.iter().rev().skip(1);
    if followed.into_iter().any(|fault| fault.ends_after.is_none()) {
        return Err(wrong(
            key,
            "only the last kill may be without `restart_after_ms`: nothing is left to kill after it",
        ));
    }
    for pair in silo.faults.windows(2) {
        let [Fault { how: How::Pause, .. }, next] = pair else { continue };
        let next = match &next.when {
            When::Point(point) => format!("a kill at point `{point}`"),
            When::Start => "a full disk".to_owned(),
            When::Event(_) | When::After(_) => continue,
        };
        return Err(wrong(
            format!("silo {}: pause", silo.name),
            format!(
                "{next} needs a start of the node, and none is between it and the pause before it: give the pause last, \
                 or a `restart` between them; a kill may have `event` or `after_ms` instead"
            ),
        ));
    }
    Ok(())
}
