//! A scenario as a file, in TOML: what a failing seed came to when it was shrunk, to be run again and looked into.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_federation::document::{self, DocumentError};
use fedprune_federation::round::{Strategy, TallyBy};
use serde::{Deserialize, Serialize};

use super::byzantine::Lie;
use super::campaign::MAX_SIMULATED_MEMBERS;
use super::network::{Cut, Faults};
use super::scenario::{NEVER_ABANDON_MS, Scenario, Trouble, TroubleKind};
use super::world::Shape;

/// Most bytes of a scenario's file.
pub const SCENARIO_LIMIT_BYTES: usize = 256 << 10;
/// Most entries of a list in it.
const MAX_ENTRIES: usize = 1_000;
/// Longest that anything in it lasts, in milliseconds: members ask each other twice a second as long as they run.
const MAX_MS: u64 = 3_600_000;
/// Longest time for which a packet or a flush is under way, in milliseconds: what is on its way waits in memory.
const MAX_DELAY_MS: u64 = 60_000;
/// A height may be abandoned after the time for ballots, which is this long in the simulator.
const LEAST_ABANDON_MS: u64 = 5_001;

/// Why a file is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// No TOML, or not of this form.
    #[error("it is no scenario: {0}")]
    Form(#[from] DocumentError),
    /// A value that no scenario has.
    #[error("`{key}` is {found}, and must be {must}")]
    Value {
        /// Which.
        key: &'static str,
        /// What it is.
        found: u64,
        /// What is possible.
        must: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    seed: u64,
    members: usize,
    strategy: Strategy,
    tally: TallyBy,
    #[serde(skip_serializing_if = "Option::is_none")]
    abandon_ms: Option<u64>,
    relays: bool,
    crashes_per_mille: u64,
    latest_start_ms: u64,
    limit_ms: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    without_ballot: Vec<usize>,
    network: NetworkDocument,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cut: Vec<CutDocument>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trouble: Vec<TroubleDocument>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    liar: Vec<LiarDocument>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkDocument {
    least_delay_ms: u64,
    most_delay_ms: u64,
    loss_per_mille: u64,
    duplicates_per_mille: u64,
    end_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutDocument {
    from_ms: u64,
    until_ms: u64,
    side: Vec<usize>,
    one_way: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TroubleDocument {
    member: usize,
    from_ms: u64,
    until_ms: u64,
    kind: KindDocument,
    #[serde(skip_serializing_if = "Option::is_none")]
    most_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KindDocument {
    Down,
    DiskFull,
    SlowFlush,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LiarDocument {
    member: usize,
    lie: Lie,
}

fn within(key: &'static str, found: u64, least: u64, most: u64) -> Result<u64, ScenarioError> {
    if (least..=most).contains(&found) {
        return Ok(found);
    }
    Err(ScenarioError::Value { key, found, must: format!("{least} to {most}") })
}

impl Scenario {
    /// The scenario as a file.
    pub fn to_toml(&self) -> String {
        let Faults { least_delay_ms, most_delay_ms, loss_per_mille, duplicates_per_mille, end_ms, .. } = self.faults;
        let cut = |cut: &Cut| CutDocument {
            from_ms: cut.from_ms,
            until_ms: cut.until_ms,
            side: cut.side.iter().copied().collect(),
            one_way: cut.one_way,
        };
        let trouble = |trouble: &Trouble| {
            let (kind, most_ms) = match trouble.kind {
                TroubleKind::Down => (KindDocument::Down, None),
                TroubleKind::DiskFull => (KindDocument::DiskFull, None),
                TroubleKind::SlowFlush(most_ms) => (KindDocument::SlowFlush, Some(most_ms)),
            };
            let Trouble { member, from_ms, until_ms, .. } = *trouble;
            TroubleDocument { member, from_ms, until_ms, kind, most_ms }
        };
        let document = Document {
            seed: self.seed,
            members: self.shape.members,
            strategy: self.shape.strategy,
            tally: self.shape.tally,
            abandon_ms: Some(self.shape.abandon_ms).filter(|after_ms| *after_ms < NEVER_ABANDON_MS),
            relays: self.relays,
            crashes_per_mille: self.crashes_per_mille,
            latest_start_ms: self.latest_start_ms,
            limit_ms: self.limit_ms,
            without_ballot: self.without_ballot.iter().copied().collect(),
            network: NetworkDocument { least_delay_ms, most_delay_ms, loss_per_mille, duplicates_per_mille, end_ms },
            cut: self.faults.cuts.iter().map(cut).collect(),
            trouble: self.troubles.iter().map(trouble).collect(),
            liar: self.liars.iter().map(|(member, lie)| LiarDocument { member: *member, lie: *lie }).collect(),
        };
        // numbers, names and lists of them, which TOML has
        toml::to_string(&document).unwrap_or_default()
    }

    /// Reads a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] for what is none.
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let document: Document = document::read(text, SCENARIO_LIMIT_BYTES)?;
        let members = within("members", document.members as u64, 1, MAX_SIMULATED_MEMBERS as u64)? as usize;
        let member = |key, index: usize| within(key, index as u64, 0, members as u64 - 1).map(|index| index as usize);
        let few = |key, entries: usize| within(key, entries as u64, 0, MAX_ENTRIES as u64);
        few("number of cuts", document.cut.len())?;
        few("number of troubles", document.trouble.len())?;
        few("number of liars", document.liar.len())?;
        let ms = |key, found| within(key, found, 0, MAX_MS);
        let per_mille = |key, found| within(key, found, 0, 1000);
        let network = document.network;
        let least_delay_ms = within("least_delay_ms", network.least_delay_ms, 0, MAX_DELAY_MS)?;
        let mut faults = Faults {
            least_delay_ms,
            most_delay_ms: within("most_delay_ms", network.most_delay_ms, least_delay_ms, MAX_DELAY_MS)?,
            loss_per_mille: per_mille("loss_per_mille", network.loss_per_mille)?,
            duplicates_per_mille: per_mille("duplicates_per_mille", network.duplicates_per_mille)?,
            cuts: Vec::new(),
            end_ms: ms("end_ms", network.end_ms)?,
        };
        for cut in document.cut {
            let from_ms = ms("from_ms", cut.from_ms)?;
            let until_ms = within("until_ms", cut.until_ms, from_ms, MAX_MS)?;
            let side: Result<BTreeSet<usize>, _> = cut.side.into_iter().map(|index| member("side", index)).collect();
            faults.cuts.push(Cut { from_ms, until_ms, side: side?, one_way: cut.one_way });
        }
        let mut troubles = Vec::new();
        for trouble in document.trouble {
            let from_ms = ms("from_ms", trouble.from_ms)?;
            troubles.push(Trouble {
                member: member("member", trouble.member)?,
                from_ms,
                until_ms: within("until_ms", trouble.until_ms, from_ms, MAX_MS)?,
                kind: match trouble.kind {
                    KindDocument::Down => TroubleKind::Down,
                    KindDocument::DiskFull => TroubleKind::DiskFull,
                    KindDocument::SlowFlush => {
                        TroubleKind::SlowFlush(within("most_ms", trouble.most_ms.unwrap_or(0), 1, MAX_DELAY_MS)?)
                    }
                },
            });
        }
        let liars: Result<BTreeMap<usize, Lie>, _> =
            document.liar.into_iter().map(|liar| Ok((member("member", liar.member)?, liar.lie))).collect();
        let liars: BTreeMap<usize, Lie> = liars.map_err(|error: ScenarioError| error)?;
        let silent: Result<BTreeSet<usize>, _> =
            document.without_ballot.into_iter().map(|index| member("without_ballot", index)).collect();
        let abandon_ms = document.abandon_ms.unwrap_or(NEVER_ABANDON_MS);
        Ok(Self {
            seed: document.seed,
            shape: Shape {
                members,
                strategy: document.strategy,
                tally: document.tally,
                abandon_ms: within("abandon_ms", abandon_ms, LEAST_ABANDON_MS, NEVER_ABANDON_MS)?,
            },
            faults,
            troubles,
            relays: document.relays,
            crashes_per_mille: per_mille("crashes_per_mille", document.crashes_per_mille)?,
            liars,
            without_ballot: silent?,
            latest_start_ms: ms("latest_start_ms", document.latest_start_ms)?,
            limit_ms: ms("limit_ms", document.limit_ms)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_read_back() {
        for seed in 0..300 {
            let scenario = Scenario::stormy(seed, Shape::of_seed(seed, 4 + seed as usize % 10));
            assert_eq!(Scenario::from_toml(&scenario.to_toml()).unwrap(), scenario, "{}", scenario.to_toml());
        }
    }

    #[test]
    fn what_no_scenario_says_is_refused() {
        let sound = Scenario::stormy(3, Shape::of_seed(3, 4)).to_toml();
        let refused = |from: &str, to: &str| {
            assert!(sound.contains(from), "{sound}");
            Scenario::from_toml(&sound.replace(from, to)).unwrap_err().to_string()
        };
        assert_eq!(refused("members = 4", "members = 129"), "`members` is 129, and must be 1 to 128");
        assert_eq!(refused("members = 4", "members = 0"), "`members` is 0, and must be 1 to 128");
        let unknown = refused("seed = 3", "seed = 3\nspeed = 4");
        assert!(unknown.contains("line 2: unknown field") && !unknown.contains('\n'), "{unknown}");
        assert!(refused("end_ms = 30000", "end_ms = 3600001").contains("`end_ms`"));
        assert!(refused("least_delay_ms = 5", "least_delay_ms = 5000").contains("`most_delay_ms`"));
        assert!(refused("least_delay_ms = 5", "least_delay_ms = 60001").contains("`least_delay_ms`"));
        assert!(refused("[[liar]]\nmember = ", "[[liar]]\nmember = 9").contains("`member`"));
        assert!(Scenario::from_toml("").unwrap_err().to_string().contains("no scenario"));
    }
}
