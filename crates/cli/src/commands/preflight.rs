//! `fedprune preflight`: everything that a node needs, looked at before it runs, each failure with its remedy.
//!
//! The checks of this machine are in `machine`, those of the others in `others`; here they are put together, and what
//! is missing in the home folder is said in the order in which it is made.

mod machine;
mod others;

use std::path::Path;

use anyhow::Context;
use fedprune_checkpoint::Checkpoint;
use fedprune_federation::consortium::Ratified;
use fedprune_federation::{PolicyRefusal, Round, RoundId};
use fedprune_node::storage::home::{Home, Identity};
use serde::Serialize;

pub(super) use machine::needed_memory_bytes;

use super::content_digest;
use crate::args::PreflightOptions;
use crate::exit;
use crate::files::{program, shell};
use crate::output::{chain, tame};
use crate::progress::Meter;
use crate::version;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Failed,
}

/// One thing that a node needs.
#[derive(Debug, Clone, Serialize)]
struct Check {
    /// What was looked at.
    name: String,
    state: State,
    /// What was found.
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    /// Whether it is about others, and not about this machine.
    #[serde(skip)]
    of_others: bool,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, found: found.into(), remedy: None, of_others: false }
    }

    fn warning(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Warning, remedy: Some(remedy.into()), ..Self::ok(name, found) }
    }

    fn failed(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Failed, remedy: Some(remedy.into()), ..Self::ok(name, found) }
    }

    fn of_others(self) -> Self {
        Self { of_others: true, ..self }
    }

    /// An error as a check that failed; what the error says to do is its remedy.
    fn error(name: &str, error: &anyhow::Error) -> Self {
        let text = chain(error);
        let (found, remedy) = match text.split_once("; ") {
            Some((found, remedy)) => (found.to_owned(), Some(remedy.trim_start_matches("type: ").to_owned())),
            None => (text, None),
        };
        let of_others = exit::code(error) == exit::NETWORK;
        Self { state: State::Failed, remedy, of_others, ..Self::ok(name, found) }
    }
}

/// The answer of `fedprune preflight`.
#[derive(Debug, Serialize)]
pub struct PreflightReport {
    /// Whether a node can run here.
    ready: bool,
    checks: Vec<Check>,
    /// What to type next.
    next: String,
}

crate::report!(PreflightReport, exit);

/// What the home folder says, as far as it goes.
struct Known {
    consortium: Option<(Ratified, Identity, String)>,
    /// How many members there are, 0 if that is not known.
    members: usize,
    round: Option<Round>,
    /// Whether a node runs on this home already.
    in_use: bool,
}

/// Looks at everything.
///
/// # Errors
/// Only when the checks themselves cannot be made; what they find is in the report and the exit code.
pub fn run(options: &PreflightOptions, meter: &Meter) -> anyhow::Result<PreflightReport> {
    let mut checks = vec![versions()];
    let known = membership(options, &mut checks);
    checks.push(machine::clock());
    checks.push(machine::device(&options.device));
    let checkpoint = model(options, known.round.as_ref(), meter, &mut checks);
    checks.extend(machine::text(options, known.round.as_ref()));
    if let Some(round) = &known.round {
        checks.push(
            match super::node_gate::ask_before(&options.home, options.round, options.policy.as_deref(), None) {
                Ok(_) => Check::ok("policy", "neither this site's policy nor its approval is in the way"),
                Err(error) => match error.chain().find_map(|cause| cause.downcast_ref::<PolicyRefusal>()) {
                    Some(refusal) => {
                        let home = shell(&options.home);
                        let document =
                            shell(&options.home.join("rounds").join(round.id().to_string()).join("round.toml"));
                        let remedy =
                            format!("{} round preview {document} --home {home}, then round approve", program());
                        Check::failed("policy", refusal.to_string(), remedy)
                    }
                    None => Check::error("policy", &error),
                },
            },
        );
        checks.push(machine::disk(options, round, checkpoint.as_ref(), known.members));
        checks.push(machine::memory(options, round, checkpoint.as_ref()));
    }
    if let Some((consortium, identity, name)) = &known.consortium {
        let about = others::About { consortium, identity, name, round: known.round.as_ref(), in_use: known.in_use };
        checks.extend(others::check(options, &about)?);
    }
    for check in checks.iter_mut().filter(|check| check.state == State::Failed) {
        check.remedy.get_or_insert_with(|| otherwise(&check.name, options));
    }
    let ready = checks.iter().all(|check| check.state != State::Failed);
    let next = if ready {
        format!("{} node run --home {}{}", program(), shell(&options.home), typed(options))
    } else {
        format!("{} preflight --home {}", program(), shell(&options.home))
    };
    Ok(PreflightReport { ready, checks, next })
}

/// What to do about a check that failed with an error that does not say it.
fn otherwise(name: &str, options: &PreflightOptions) -> String {
    let (program, home) = (program(), shell(&options.home));
    match name {
        "key" => "put this member's own key.pem back from where it is kept safe, readable by nobody else".to_owned(),
        "consortium" => {
            format!(
                "get the consortium's document anew from another member, then {program} consortium sign consortium.toml --home {home}"
            )
        }
        "round" => format!("{program} round approve round.toml --home {home}"),
        "model" => "give the folder of the round's model with --model DIR; if files are damaged, fetch or copy it anew"
            .to_owned(),
        "text" => "give files or folders that this user can read with --data PATH".to_owned(),
        "policy" => "mend this site's policy file, or take it away".to_owned(),
        "ports" => "give another address with --listen /ip4/0.0.0.0/tcp/4100".to_owned(),
        "network" => {
            "see that this machine has a network, that nothing blocks its ports, and that names resolve".to_owned()
        }
        _ => format!("mend that, then {program} preflight --home {home}"),
    }
}

/// What a node would need to be told, where no file does.
fn typed(options: &PreflightOptions) -> String {
    let settings = options.home.join(crate::settings::FILE);
    if settings.exists() {
        return String::new();
    }
    let model = options.model.as_deref().map_or_else(|| "DIR".to_owned(), shell);
    let data: Vec<String> = options.data.iter().map(|path| shell(path)).collect();
    let data = if data.is_empty() { String::new() } else { format!(" --data {}", data.join(" ")) };
    format!(" --model {model}{data}")
}

fn versions() -> Check {
    let protocol = fedprune_federation::wire::VERSION;
    Check::ok("versions", format!("{}, protocol {protocol}", version::name()))
}

/// Home, key, consortium, round: what is missing comes before what follows from it.
fn membership(options: &PreflightOptions, checks: &mut Vec<Check>) -> Known {
    let mut known = Known { consortium: None, members: 0, round: None, in_use: false };
    let (program, folder) = (program(), shell(&options.home));
    let home = match Home::inspect(&options.home) {
        Ok(home) => home,
        Err(error) => {
            let remedy = format!("{program} init --home {folder}");
            checks.push(Check::failed("home", chain_of(error), remedy));
            return known;
        }
    };
    known.in_use = is_in_use(&options.home);
    if !super::home::key_path(&options.home).exists() {
        checks.push(Check::failed("key", "there is no key.pem", format!("{program} init --home {folder}")));
        return known;
    }
    let document = super::home::consortium_path(&options.home);
    if !document.exists() {
        let remedy = format!("{program} consortium sign consortium.toml --home {folder}");
        checks.push(Check::failed("consortium", "there is no consortium.toml", remedy).of_others());
        return known;
    }
    let consortium = match home.consortium() {
        Ok(consortium) => consortium,
        Err(error) => {
            checks.push(Check::error("consortium", &error.into()));
            return known;
        }
    };
    // a round of before a change is finished with the consortium and the keys of then
    let round = home.round(&consortium, options.round);
    let lineage = round.as_ref().ok().and_then(|(round, _)| consortium.in_lineage(round.terms().consortium));
    let consortium = lineage.unwrap_or(&consortium).clone();
    known.members = consortium.members().len();
    let identity = match home.identity(&consortium) {
        Ok(identity) => {
            let name = consortium.member(identity.member).map(|member| member.name.clone()).unwrap_or_default();
            checks.push(Check::ok("key", format!("this is `{name}`, and nobody else can read the key")));
            Some((identity, name))
        }
        Err(error) => {
            checks.push(Check::error("key", &error.into()));
            None
        }
    };
    let found = format!("`{}`, {}, signed by all {}", consortium.consortium().name(), consortium.id(), known.members);
    checks.push(Check::ok("consortium", found));
    match round {
        Ok((round, _)) => {
            checks.push(Check::ok("round", format!("{}, approved", round.id())));
            known.round = Some(round);
        }
        // no round is approved without a member's key
        Err(_) if identity.is_none() => {}
        Err(error) => checks.push(Check::error("round", &error.into())),
    }
    known.consortium = identity.map(|(identity, name)| (consortium, identity, name));
    known
}

/// Whether a node runs on a home, without taking the lock for longer than it takes to look.
pub(super) fn is_in_use(home: &Path) -> bool {
    home.join("lock").exists()
        && Home::open(home).is_err_and(|error| matches!(error, fedprune_node::storage::home::HomeError::InUse { .. }))
}

fn chain_of(error: impl Into<anyhow::Error>) -> String {
    chain(&error.into())
}

/// Whether the model is the round's.
fn model(
    options: &PreflightOptions,
    round: Option<&Round>,
    meter: &Meter,
    checks: &mut Vec<Check>,
) -> Option<Checkpoint> {
    let Some(folder) = &options.model else {
        let remedy =
            format!("give it with --model DIR, or write it into {}", shell(&options.home.join(crate::settings::FILE)));
        checks.push(Check::warning("model", "nobody says where the model is", remedy));
        return None;
    };
    let opened = Checkpoint::open(folder).with_context(|| format!("`{}` cannot be used", folder.display()));
    let checkpoint = match opened {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            checks.push(Check::error("model", &error));
            return None;
        }
    };
    let Some(round) = round else {
        checks.push(Check::ok("model", format!("`{}` can be read; no round to compare it with", folder.display())));
        return Some(checkpoint);
    };
    let found = content_digest(&checkpoint, meter);
    checkpoint.release_all();
    let terms = round.terms();
    let tokenizer = match checkpoint.tokenizer_digest() {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            checks.push(Check::error("model", &error.into()));
            return Some(checkpoint);
        }
    };
    let pairs = [
        ("weights", found, terms.base_model),
        ("tokenizer", tokenizer, terms.tokenizer),
        ("configuration", checkpoint.configuration_digest(), terms.configuration),
    ];
    let different: Vec<String> = pairs
        .iter()
        .filter(|(_, found, expected)| found != expected)
        .map(|(what, found, expected)| format!("its {what} are {}, the round's {}", found.short(), expected.short()))
        .collect();
    checks.push(if different.is_empty() {
        Check::ok("model", format!("`{}` is the round's: {}", folder.display(), found.short()))
    } else {
        let found = format!("`{}` is another model: {}", folder.display(), different.join("; "));
        Check::failed("model", found, "give the folder that the round was made from with --model DIR")
    });
    Some(checkpoint)
}

/// A round as others call it.
fn short(round: RoundId) -> String {
    round.0.short().to_string()
}

impl PreflightReport {
    fn exit(&self) -> u8 {
        let failed = |of_others: bool| {
            self.checks.iter().any(|check| check.state == State::Failed && check.of_others == of_others)
        };
        // what is wrong here is in the way of knowing about others
        match (failed(false), failed(true)) {
            (true, _) => exit::FAILED,
            (false, true) => exit::NETWORK,
            (false, false) => 0,
        }
    }

    fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for check in &self.checks {
            let state = match check.state {
                State::Ok => "ok     ",
                State::Warning => "warning",
                State::Failed => "FAILED ",
            };
            text.push_str(&format!("{state}  {:<width$}  {}\n", tame(&check.name), tame(&check.found)));
            if let Some(remedy) = &check.remedy {
                text.push_str(&format!("{:9}{:width$}  → {}\n", "", "", tame(remedy)));
            }
        }
        let count = |state| self.checks.iter().filter(|check| check.state == state).count();
        let (failed, warnings) = (count(State::Failed), count(State::Warning));
        let verdict = match (failed, warnings) {
            (0, 0) => "a node can run here".to_owned(),
            (0, warnings) => format!("a node can run here; {warnings} to look at"),
            (failed, _) => format!("{failed} of {} failed", self.checks.len()),
        };
        format!("{text}\n{verdict}\nnext: {}", self.next)
    }
}
