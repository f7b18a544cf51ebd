//! `fedprune node run|status`: a member's node, and how it is doing.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use fedprune_audit::html::text::utc;
use fedprune_federation::{ConsortiumId, RoundId};
use fedprune_model::text::find_text_files;
use fedprune_node::network::ProgramName;
use fedprune_node::run::{Ending, NodeConfig, NodeEvent, Outgoing, Status, StatusError};
use fedprune_node::storage::home::Home;
use fedprune_node::storage::index::Index;
use serde::Serialize;
use serde_json::Value;

use super::approvals::{ApprovalFile, who};
use crate::args::{Format, NodeRunOptions, NodeStatusOptions};
use crate::exit;
use crate::files::{absolute, program, shell};
use crate::interrupt::{self, Stopped};
use crate::logging;
use crate::output::{Report, bytes, facts, tame};
use crate::version;

/// What this program calls itself to others.
pub(super) fn version() -> anyhow::Result<ProgramName> {
    ProgramName::new(&version::name()).context("this program's version cannot be told to others")
}

/// How often a signal is looked for.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Everything was said event by event; what is left is the exit code.
pub struct Ended(Ending);

impl Report for Ended {
    fn to_json(&self) -> serde_json::Result<Value> {
        Ok(Value::Null)
    }

    fn to_text(&self) -> String {
        String::new()
    }

    fn exit_code(&self) -> u8 {
        match self.0 {
            Ending::Agreed => 0,
            Ending::Abandoned => exit::NETWORK,
            Ending::Stopped => interrupt::EXIT_CODE,
        }
    }

    fn is_said(&self) -> bool {
        true
    }
}

/// Runs a node to the end of its round.
///
/// # Errors
/// What is in the way; what was signed or stored stays, and the same command goes on.
pub fn run(options: &NodeRunOptions, format: Format) -> anyhow::Result<Ended> {
    run_behind(options, format, None)
}

/// [`run`] with something between the member's machine and the network: members that lie, in tests, are programs of
/// their own that start here.
///
/// # Errors
/// As [`run`].
pub fn run_behind(
    options: &NodeRunOptions,
    format: Format,
    outgoing: Option<Box<dyn Outgoing>>,
) -> anyhow::Result<Ended> {
    let interrupt = interrupt::cooperative();
    let _log = logging::start(options.log)?;
    let mut compute_arguments =
        vec![format!("--device={}", options.device.device), format!("--field={}", options.field)];
    compute_arguments.extend(options.device.dtype.map(|dtype| format!("--dtype={dtype}")));
    compute_arguments.extend(options.device.threads.map(|threads| format!("--threads={threads}")));
    options.device.limit_threads();
    // a typing error should not take this member's vote: whatever can be told now is
    if options.ballot.is_none() && !options.data.is_empty() {
        find_text_files(&options.data)?;
    }
    // one that is there is left to the process that computes: opening a GPU here would hold its memory for the node's life
    if options.ballot.is_none() && !cfg!(feature = "cuda") {
        options.device.device.open()?;
    }
    let config = NodeConfig {
        home: options.home.clone(),
        round: options.round,
        model: absolute(&options.model)?,
        data: options.data.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
        ballot: options.ballot.clone(),
        compute_arguments,
        out: options.out.clone(),
        listen: options.listen.clone(),
        dial: options.dial.clone(),
        options: fedprune_node::network::Options {
            mdns: options.mdns,
            relay: options.relay,
            dcutr: options.dcutr,
            autonat: options.autonat,
        },
        observe: fedprune_node::observe::Addresses { page: options.page, metrics: options.metrics },
        linger: Duration::from_secs(options.linger),
        program: std::env::current_exe().context("the system does not say where this program lies")?,
        version: version()?,
        gate: Some(super::node_gate::gate(options)?),
        fail_at: options.fail_at,
        clock_skew_ms: options.clock_skew_ms,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the system gives no threads")?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut unheard = None;
    let mut tell = |event: &NodeEvent| {
        let line = match format {
            Format::Text => tame(&event.text()),
            Format::Json => serde_json::to_string(event).unwrap_or_default(),
        };
        let mut out = std::io::stdout().lock();
        // a node whose operator does not listen any more goes on voting
        if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
            unheard.get_or_insert(error);
        }
    };
    let ending = runtime.block_on(async {
        let watch = async {
            while interrupt.check().is_ok() {
                tokio::time::sleep(SIGNAL_INTERVAL).await;
            }
            let _ = stop.send(true); // the node has ended if nobody receives
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ending = fedprune_node::run::run_behind(config, outgoing, &mut tell, stopped) => ending,
            () = watch => unreachable!("it waits for ever"),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ending {
        Ok(Ending::Stopped) => {
            Err(Stopped::leaving("what was signed and stored stays; the same command goes on").into())
        }
        Ok(ending) => Ok(Ended(ending)),
        Err(error) => Err(error.into()),
    }
}

/// The answer of `fedprune node status`.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    #[serde(flatten)]
    status: Status,
    /// What the index of the round holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Held>,
    /// What was approved, as the file says; `round approvals` checks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<fedprune_federation::Approval>,
    /// That of the round, for the command that is to be typed next.
    #[serde(skip)]
    consortium: ConsortiumId,
}

/// How much a node has of a round.
#[derive(Debug, Serialize)]
struct Held {
    statements: u64,
    ballots: u64,
    ballots_announced: u64,
    ballot_bytes: u64,
    certificates: u64,
    evidence: u64,
}

crate::report!(StatusReport);

/// Reads how a node is doing.
///
/// # Errors
/// When it has not written that yet.
pub fn status(options: &NodeStatusOptions) -> anyhow::Result<StatusReport> {
    let home = Home::inspect(&options.home)?;
    let consortium = home.consortium()?;
    let (round, folder) = home.round(&consortium, options.round.or(newest(&home)?))?;
    let status = match Status::read(&folder.status()) {
        Err(StatusError::File(error)) if error.is_not_found() => bail!(
            "no node has run in `{}` yet; start it with: {} node run --home {} --model DIR --data PATH",
            options.home.display(),
            program(),
            shell(&options.home)
        ),
        status => status?,
    };
    // a running node may be in the middle of writing it, and nothing depends on it
    let held = Index::look(&folder.index()).ok().flatten().map(|index| Held {
        statements: index.statements,
        ballots: index.complete_bodies,
        ballots_announced: index.bodies,
        ballot_bytes: index.complete_bytes,
        certificates: index.certificates,
        evidence: index.evidence,
    });
    let approval = ApprovalFile::read(folder.folder()).ok().flatten();
    let approval = approval.and_then(|file| file.signed).map(|signed| signed.approval);
    Ok(StatusReport { status, held, approval, consortium: round.terms().consortium })
}

/// Of several approved rounds the one that was approved last, or that a node ran on last; nothing where that is not to be
/// chosen, or cannot be told.
fn newest(home: &Home) -> anyhow::Result<Option<RoundId>> {
    let approved = home.rounds_with_approval()?;
    if approved.len() < 2 {
        return Ok(None);
    }
    let touched = |round: &RoundId| {
        let folder = home.round_folder(*round);
        let changed = |path: PathBuf| std::fs::metadata(path).and_then(|about| about.modified()).ok();
        changed(folder.approval()).max(changed(folder.status()))
    };
    Ok(approved.into_iter().max_by_key(touched))
}

impl StatusReport {
    fn text(&self) -> String {
        let status = &self.status;
        let others = status.members.saturating_sub(1);
        let connected = match status.connected.as_slice() {
            [] => format!("none of {others} others"),
            names => format!("{} of {others} others: {}", names.len(), names.join(", ")),
        };
        let mut rows = vec![
            ("member", status.member.clone()),
            ("round", status.round.to_string()),
            ("phase", status.phase.clone()),
            ("heights done", format!("{} of {}", status.height, status.heights)),
            ("connected", connected),
            ("sent, received", format!("{}, {}", bytes(status.sent_bytes), bytes(status.received_bytes))),
        ];
        if let Some(owed) = &status.waits_for {
            rows.insert(3, ("waits", format!("it has {owed}")));
        }
        let parts: Vec<String> =
            status.sent.by_name().iter().map(|(of, sent)| format!("{of} {}", bytes(*sent))).collect();
        rows.push(("sent", parts.join(", ")));
        if let Some(held) = &self.held {
            rows.push((
                "holds",
                format!(
                    "{} of {} ballots announced ({}), {} statements, {} certificates, {} pieces of evidence",
                    held.ballots,
                    held.ballots_announced,
                    bytes(held.ballot_bytes),
                    held.statements,
                    held.certificates,
                    held.evidence
                ),
            ));
        }
        for (member, program) in &status.other_programs {
            let theirs = program.as_deref().unwrap_or("a program that does not tell its version");
            rows.push(("other program", format!("{member}: {theirs}; here {}, of the same protocol", status.program)));
        }
        if let Some(approval) = &self.approval {
            let ballot = match approval.ballot {
                Some(ballot) => format!("ballot {}", ballot.short()),
                None => "the round, and no ballot by name".to_owned(),
            };
            rows.push(("approved", format!("{ballot}, by {}, {}", who(approval), utc(approval.approved_unix_ms))));
        }
        if !status.shut_out.is_empty() {
            let named: Vec<String> = status.shut_out.iter().map(|(name, why)| format!("{name}, for {why}")).collect();
            rows.push(("shut out", named.join("; ")));
        }
        if let Some(root) = status.mask_root {
            rows.push(("global mask", root.to_string()));
        }
        if let Some(path) = &status.pruned {
            rows.push(("pruned model", path.display().to_string()));
        }
        if let Some(path) = &status.transcript {
            rows.push(("transcript", path.display().to_string()));
        }
        if !status.addresses.is_empty() {
            rows.push(("addresses", status.addresses.join(" ")));
        }
        let next = match &status.transcript {
            Some(path) => {
                let pruned = status.pruned.as_deref().map(|path| format!(" --pruned {}", shell(path)));
                format!(
                    "\nnext: {} audit verify {} --consortium-id {} --round-id {} --model DIR{}",
                    program(),
                    shell(path),
                    self.consortium,
                    status.round,
                    pruned.unwrap_or_default()
                )
            }
            None => String::new(),
        };
        format!("{}{next}", facts(&rows))
    }
}
