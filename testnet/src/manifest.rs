//! What a testnet is, as people write it: TOML, read strictly, with a limit on everything.
//!
//! `testnet/README.md` has the reference. Nothing here opens a file that a manifest names.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use fedprune_federation::document::{self, DocumentError};
use fedprune_mask::Digest;
use serde::{Deserialize, Serialize};

pub use faults::{
    AggregatorFault, Begin, Disturbance, FULL_DISK_BYTES, Fault, How, LINE_BYTES_PER_SECOND, LinkFault, MAX_DELAY_MS,
    MAX_FAULTS, MAX_LINK_FAULTS, MAX_LOSS_PER_MILLE, When,
};
use faults::{KillDocument, PerturbDocument};

/// Most bytes of a manifest.
pub const MANIFEST_LIMIT: usize = 256 << 10;
/// Most silos: each is a process or more on this machine.
pub const MAX_SILOS: usize = 64;
/// Longest name of a testnet or a silo, in bytes.
pub const MAX_NAME_BYTES: usize = 32;
/// Longest path, option or other text, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Most data paths of a silo.
pub const MAX_DATA_PATHS: usize = 64;
/// Furthest that a node's clock may be wrong, in milliseconds: ten years.
pub const MAX_CLOCK_SKEW_MS: i64 = 315_360_000_000;
/// Most options of `fedprune round new`.
pub const MAX_ROUND_OPTIONS: usize = 64;
/// Longest time that a testnet may take, in seconds.
pub const MAX_SECONDS: u64 = 86_400;
/// Seconds that a testnet may take when its manifest does not say.
pub const DEFAULT_SECONDS: u64 = 120;

/// Stands before the name of a bundled text.
const BUNDLED_PREFIX: &str = "bundled:";
/// Who proposes first, before the round id says who that is.
const AGGREGATOR: &str = "aggregator";

/// A testnet, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// What it is called.
    pub name: String,
    /// The model that all have.
    pub model: Source,
    /// The members, by name, ascending: as a consortium numbers them.
    pub silos: Vec<Silo>,
    /// Options of `fedprune round new`, by name without `--`.
    pub round: BTreeMap<String, RoundOption>,
    /// What goes wrong with aggregators; silos have it in [`Silo::faults`].
    pub aggregator_faults: Vec<AggregatorFault>,
    /// What goes wrong between nodes.
    pub link_faults: Vec<LinkFault>,
    /// What must come of it.
    pub expect: Expect,
}

/// A model or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The bundled model, or the bundled text of this name.
    Bundled(String),
    /// Relative to the manifest's folder, and below it.
    Path(PathBuf),
}

/// One member and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silo {
    /// Lowercase letters, digits and `-`; also the name of its folders.
    pub name: String,
    /// Its text.
    pub data: Vec<Source>,
    /// A ballot that it hands in instead of computing one.
    pub ballot: Option<PathBuf>,
    /// Whether its node starts at all.
    pub start: bool,
    /// How long after the others it starts.
    pub start_after: Duration,
    /// Passed to its node as `--fail-at`; whatever becomes of the node then is not judged.
    pub fail_at: Option<String>,
    /// What goes wrong with its node, one after the other.
    pub faults: Vec<Fault>,
    /// How its node lies; whatever becomes of the node then is not judged.
    pub lie: Option<String>,
    /// How far its clock is ahead of the machine's, in milliseconds.
    pub clock_skew_ms: i64,
}

/// A value of an option.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a text in quotes, a whole number, true or false, or a list of texts")]
pub enum RoundOption {
    /// Given without a value, or not given.
    Switch(bool),
    /// A whole number.
    Number(u64),
    /// A text.
    Text(String),
    /// The option once for each.
    List(Vec<String>),
}

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// On one mask.
    #[default]
    Agreed,
    /// On nothing, certified.
    Abandoned,
    /// Not at all in the time given: too many members are missing for a quorum.
    Stalled,
}

/// What must come of a testnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// How the round ends on every node.
    pub outcome: Outcome,
    /// Whose ballots count, at every height.
    pub contributors: Option<Contributors>,
    /// Whose ballots count at least, at every height.
    pub contributors_include: BTreeSet<String>,
    /// The global mask.
    pub mask_root: Option<Digest>,
    /// From the start of the first node to the end of the last.
    pub within: Duration,
    /// Silos that the transcripts hold evidence against, and no others.
    pub evidence_against: Option<BTreeSet<String>>,
    /// Silos that the auditor names as faulty, and no others.
    pub fault_named: Option<BTreeSet<String>>,
    /// Silos that other nodes shut out for what they sent, and no others.
    pub shut_out: Option<BTreeSet<String>>,
    /// Silos that evidence and auditor may name and nodes may shut out, if any, and no others.
    pub accused_only: Option<BTreeSet<String>>,
}

/// Whose ballots count.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a number of silos or a list of their names")]
pub enum Contributors {
    /// So many.
    Count(usize),
    /// These.
    Names(BTreeSet<String>),
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too large, no TOML, or with keys or values that a manifest does not have.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A value that may not be.
    #[error("`{key}`: {problem}")]
    Value {
        /// Which, as `silo north: kill`.
        key: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    model: String,
    silo: Vec<SiloDocument>,
    #[serde(default)]
    round: BTreeMap<String, RoundOption>,
    #[serde(default)]
    perturb: Vec<PerturbDocument>,
    expect: ExpectDocument,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiloDocument {
    name: String,
    #[serde(default)]
    data: Vec<String>,
    ballot: Option<String>,
    #[serde(default = "yes")]
    start: bool,
    #[serde(default)]
    start_after_ms: u64,
    fail_at: Option<String>,
    kill: Option<KillDocument>,
    lie: Option<String>,
    #[serde(default)]
    clock_skew_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectDocument {
    #[serde(default)]
    outcome: Outcome,
    contributors: Option<Contributors>,
    #[serde(default)]
    contributors_include: BTreeSet<String>,
    mask_root: Option<Digest>,
    within_seconds: Option<u64>,
    evidence_against: Option<BTreeSet<String>>,
    fault_named: Option<BTreeSet<String>>,
    shut_out: Option<BTreeSet<String>>,
    accused_only: Option<BTreeSet<String>>,
}

fn yes() -> bool {
    true
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`], naming the line or the key.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let document: Document = document::read(text, MANIFEST_LIMIT)?;
        check_name("name", &document.name)?;
        let model = source("model", &document.model, "bundled")?;
        let by_magnitude =
            matches!(document.round.get("pruner"), Some(RoundOption::Text(pruner)) if pruner == "magnitude");
        let mut silos = silos(document.silo, !by_magnitude)?;
        let (aggregator_faults, link_faults) = faults::perturbations(document.perturb, &mut silos)?;
        silos.iter().try_for_each(faults::check_faults)?;
        let expect = expectations(document.expect, &silos)?;
        check_round(&document.round)?;
        let round = document.round;
        Ok(Self { name: document.name, model, silos, round, aggregator_faults, link_faults, expect })
    }

    /// Whether the faults of each silo can come one after the other, once it is known which are whose.
    pub(crate) fn check_faults(&self) -> Result<(), ManifestError> {
        self.silos.iter().try_for_each(faults::check_faults)
    }
}

impl Silo {
    /// Whether its node must end with the expected outcome.
    pub fn must_finish(&self) -> bool {
        self.start && self.is_honest() && self.faults.iter().all(|fault| fault.ends_after.is_some())
    }

    /// Whether it does what members do, as far as it runs.
    pub fn is_honest(&self) -> bool {
        self.fail_at.is_none() && self.lie.is_none()
    }
}

fn wrong(key: impl Into<String>, problem: impl Into<String>) -> ManifestError {
    ManifestError::Value { key: key.into(), problem: problem.into() }
}

/// Text that may come from anybody, fit for a message.
fn shortened(text: &str) -> String {
    text.chars().take(300).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// Names become folders, arguments and columns.
fn check_name(key: &str, name: &str) -> Result<(), ManifestError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if plain && !name.starts_with('-') && (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    let shown = shortened(name);
    Err(wrong(
        key,
        format!("`{shown}` is no name here: use 1 to {MAX_NAME_BYTES} lowercase letters, digits and `-`, no `-` first"),
    ))
}

/// Arguments of the program must not be taken for options.
fn check_text(key: &str, text: &str) -> Result<(), ManifestError> {
    if (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.starts_with('-') && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(wrong(
        key,
        format!("use 1 to {MAX_TEXT_BYTES} bytes without control characters and without `-` at the beginning"),
    ))
}

/// A path below the manifest's folder: what is not is refused by its letters, links are followed.
fn relative_path(key: &str, text: &str) -> Result<PathBuf, ManifestError> {
    check_text(key, text)?;
    let path = Path::new(text);
    if path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir)) {
        return Ok(path.to_owned());
    }
    Err(wrong(
        key,
        format!(
            "`{text}` leaves the manifest's folder: use a path below it, or give `--base DIR` to have paths start elsewhere"
        ),
    ))
}

fn source(key: &str, text: &str, bundled: &str) -> Result<Source, ManifestError> {
    if text == bundled {
        return Ok(Source::Bundled(String::new()));
    }
    relative_path(key, text).map(Source::Path)
}

fn data_source(key: &str, text: &str) -> Result<Source, ManifestError> {
    match text.strip_prefix(BUNDLED_PREFIX) {
        Some(name) => {
            check_text(key, name)?;
            Ok(Source::Bundled(name.to_owned()))
        }
        None => relative_path(key, text).map(Source::Path),
    }
}

fn milliseconds(key: &str, given: u64) -> Result<Duration, ManifestError> {
    if given <= MAX_SECONDS * 1000 {
        return Ok(Duration::from_millis(given));
    }
    Err(wrong(key, format!("{given} ms is more than a day: use 0 to {}", MAX_SECONDS * 1000)))
}

/// Magnitude looks at no text: `needs_text` is for all other pruners.
fn silos(documents: Vec<SiloDocument>, needs_text: bool) -> Result<Vec<Silo>, ManifestError> {
    if !(1..=MAX_SILOS).contains(&documents.len()) {
        return Err(wrong("silo", format!("there are {} silos: give 1 to {MAX_SILOS}", documents.len())));
    }
    let mut silos = Vec::with_capacity(documents.len());
    for document in documents {
        check_name("silo: name", &document.name)?;
        let key = |field: &str| format!("silo {}: {field}", document.name);
        if document.name == AGGREGATOR {
            return Err(wrong(key("name"), "this is what `perturb` calls whoever's turn it is: choose another"));
        }
        if document.data.len() > MAX_DATA_PATHS {
            return Err(wrong(key("data"), format!("at most {MAX_DATA_PATHS} paths: give folders")));
        }
        if needs_text && document.data.is_empty() && document.ballot.is_none() && document.start {
            return Err(wrong(key("data"), "it has no text: give `data`, or a `ballot` that was made elsewhere"));
        }
        let data = document.data.iter().map(|text| data_source(&key("data"), text)).collect::<Result<_, _>>()?;
        let ballot = document.ballot.as_deref().map(|text| relative_path(&key("ballot"), text)).transpose()?;
        if let Some(point) = &document.fail_at {
            check_text(&key("fail_at"), point)?;
        }
        if let Some(lie) = &document.lie {
            check_text(&key("lie"), lie)?;
        }
        if document.clock_skew_ms.unsigned_abs() > MAX_CLOCK_SKEW_MS.unsigned_abs() {
            return Err(wrong(key("clock_skew_ms"), format!("use -{MAX_CLOCK_SKEW_MS} to {MAX_CLOCK_SKEW_MS}")));
        }
        let kill = document.kill.map(|kill| faults::kill_of(&key("kill"), kill)).transpose()?;
        let start_after = milliseconds(&key("start_after_ms"), document.start_after_ms)?;
        silos.push(Silo {
            data,
            ballot,
            start: document.start,
            start_after,
            fail_at: document.fail_at,
            faults: kill.into_iter().collect(),
            lie: document.lie,
            clock_skew_ms: document.clock_skew_ms,
            name: document.name,
        });
    }
    silos.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(pair) = silos.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(wrong("silo: name", format!("two silos are called `{}`: rename one", pair[0].name)));
    }
    Ok(silos)
}

fn expectations(document: ExpectDocument, silos: &[Silo]) -> Result<Expect, ManifestError> {
    let known = |key: &str, names: &BTreeSet<String>| match names
        .iter()
        .find(|name| !silos.iter().any(|silo| silo.name == **name))
    {
        Some(name) => Err(wrong(key, format!("`{}` is no silo of this testnet: correct the name", shortened(name)))),
        None => Ok(()),
    };
    match &document.contributors {
        Some(Contributors::Names(names)) => known("expect: contributors", names)?,
        Some(Contributors::Count(count)) if *count > silos.len() => {
            return Err(wrong("expect: contributors", format!("{count} of {} silos cannot be: lower it", silos.len())));
        }
        _ => {}
    }
    known("expect: contributors_include", &document.contributors_include)?;
    for (key, names) in [
        ("expect: evidence_against", &document.evidence_against),
        ("expect: fault_named", &document.fault_named),
        ("expect: shut_out", &document.shut_out),
        ("expect: accused_only", &document.accused_only),
    ] {
        if let Some(names) = names {
            known(key, names)?;
        }
    }
    let of_a_mask =
        document.mask_root.is_some() || document.contributors.is_some() || !document.contributors_include.is_empty();
    if document.outcome != Outcome::Agreed && of_a_mask {
        return Err(wrong(
            "expect",
            "an abandoned or stalled round has no mask: remove `mask_root`, `contributors` and `contributors_include`",
        ));
    }
    if document.outcome == Outcome::Stalled && document.fault_named.is_some() {
        return Err(wrong("expect: fault_named", "a stalled round leaves no transcript to the auditor: remove it"));
    }
    if !silos.iter().any(Silo::must_finish) {
        return Err(wrong("silo", "no node is left that could finish: let one run undisturbed"));
    }
    let seconds = document.within_seconds.unwrap_or(DEFAULT_SECONDS);
    if !(1..=MAX_SECONDS).contains(&seconds) {
        return Err(wrong("expect: within_seconds", format!("{seconds}: use 1 to {MAX_SECONDS}")));
    }
    Ok(Expect {
        outcome: document.outcome,
        contributors: document.contributors,
        contributors_include: document.contributors_include,
        mask_root: document.mask_root,
        within: Duration::from_secs(seconds),
        evidence_against: document.evidence_against,
        fault_named: document.fault_named,
        shut_out: document.shut_out,
        accused_only: document.accused_only,
    })
}

/// What the runner itself says to `fedprune round new`.
const OWN_OPTIONS: [&str; 8] = ["consortium", "model", "home", "out", "format", "quiet", "help", "version"];

fn check_round(options: &BTreeMap<String, RoundOption>) -> Result<(), ManifestError> {
    if options.len() > MAX_ROUND_OPTIONS {
        return Err(wrong("round", format!("at most {MAX_ROUND_OPTIONS} options")));
    }
    for (name, value) in options {
        let key = format!("round: {}", shortened(name));
        let plain =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte));
        if !plain || name.starts_with(['-', '_']) || !(1..=MAX_NAME_BYTES * 2).contains(&name.len()) {
            return Err(wrong(key, "this is no option: see `fedprune round new --help`, and leave out the `--`"));
        }
        if OWN_OPTIONS.contains(&name.as_str()) {
            return Err(wrong(key, "the runner itself gives this option: remove it"));
        }
        match value {
            RoundOption::Switch(_) | RoundOption::Number(_) => {}
            RoundOption::Text(text) => check_text(&key, text)?,
            RoundOption::List(texts) => {
                if texts.len() > MAX_ROUND_OPTIONS {
                    return Err(wrong(key, format!("at most {MAX_ROUND_OPTIONS} values")));
                }
                texts.iter().try_for_each(|text| check_text(&key, text))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
