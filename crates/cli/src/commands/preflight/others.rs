//! Where this node listens, and who of the others can be reached.

use std::time::Duration;

use anyhow::Context;
use fedprune_federation::Round;
use fedprune_federation::consortium::Ratified;
use fedprune_node::Multiaddr;
use fedprune_node::network::{Options, Subject};
use fedprune_node::preflight::{Dialled, Outcome, PortError, Reach, Request, TryError, check_port, reach};
use fedprune_node::run::listen_addresses;
use fedprune_node::storage::home::Identity;

use super::{Check, short};
use crate::args::PreflightOptions;
use crate::files::{program, shell};
use crate::output::chain;

/// What is known about this member.
pub(super) struct About<'a> {
    pub consortium: &'a Ratified,
    pub identity: &'a Identity,
    pub name: &'a str,
    pub round: Option<&'a Round>,
    pub in_use: bool,
}

/// Ports, then each other member.
pub(super) fn check(options: &PreflightOptions, about: &About<'_>) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    let listen = match listen_addresses(&options.listen, about.consortium, about.name) {
        Ok(listen) => listen,
        Err(error) => {
            checks.push(Check::error("ports", &error.into()).of_others());
            return Ok(checks);
        }
    };
    let mut greets = about.round.is_some();
    if about.in_use {
        let home = shell(&options.home);
        let found =
            "a node runs on this home already: its ports are in use, and members were not greeted a second time";
        checks.push(Check::warning("ports", found, format!("{} node status --home {home}", program())));
        // a second node with this key is refused by those who know the first
        greets = false;
    } else {
        let ports = ports(&listen);
        greets &= ports.state != super::State::Failed;
        checks.push(ports);
    }
    let unknown = options.dial.iter().find(|(name, _)| about.consortium.consortium().index_by_name(name).is_none());
    if let Some((name, _)) = unknown {
        let found = format!("the consortium has no member `{name}` to dial");
        checks.push(Check::failed("dial", found, "correct the name in --dial NAME=MULTIADDR").of_others());
    }
    let request = Request {
        consortium: about.consortium,
        identity: about.identity,
        round: about.round.filter(|_| greets),
        listen,
        dial: &options.dial,
        program: crate::commands::node::version()?,
        options: Options { mdns: options.mdns, relay: options.relay, dcutr: false, autonat: false },
        patience: Duration::from_secs(u64::from(options.wait)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the system gives no threads")?;
    let found = runtime.block_on(reach(request));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match found {
        Ok(found) => checks.extend(found.iter().map(|reach| member(reach, about, greets))),
        Err(error) => checks.push(Check::error("network", &error.into()).of_others()),
    }
    Ok(checks)
}

fn ports(listen: &[Multiaddr]) -> Check {
    for address in listen {
        let Err(error) = check_port(address) else { continue };
        let remedy = match &error {
            PortError::Kind(_) => "give another with --listen /ip4/0.0.0.0/tcp/4100".to_owned(),
            PortError::Refused { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                "see who has it: ss -lntup; stop that, or give another with --listen /ip4/0.0.0.0/tcp/4100".to_owned()
            }
            PortError::Refused { .. } => {
                "give an address of this machine (ip address) with --listen, or 0.0.0.0 for all".to_owned()
            }
        };
        return Check::failed("ports", chain(&error.into()), remedy).of_others();
    }
    let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
    Check::ok("ports", format!("free: {}", listen.join(" ")))
}

fn member(reach: &Reach, about: &About<'_>, greets: bool) -> Check {
    let name = format!("member {}", reach.member);
    let member = &reach.member;
    match &reach.outcome {
        Outcome::Same => Check::ok(&name, "reached; the same protocol, consortium, round and model"),
        Outcome::Different(differences) => {
            let found: Vec<String> = differences.iter().map(ToString::to_string).collect();
            let remedy = match differences.first().map(|first| (first.what, first)) {
                Some((Subject::Greeting | Subject::Protocol, first)) => first.remedy(),
                Some((Subject::Consortium, _)) => format!("compare consortium.toml with `{member}`: ids must be equal"),
                Some((Subject::Round, _)) => {
                    let ours = about.round.map(|round| short(round.id())).unwrap_or_default();
                    format!("agree with `{member}` on one round.toml; this home has approved {ours}")
                }
                Some((Subject::Model, _)) | None => {
                    format!("compare the model with `{member}`: {} model inspect DIR", program())
                }
            };
            Check::failed(&name, found.join("; "), remedy).of_others()
        }
        Outcome::AnotherInstance => Check::failed(
            &name,
            "it is connected to another process with this member's key",
            "stop the other node of this member, or give each its own home and key",
        )
        .of_others(),
        Outcome::NoGreeting(why) => Check::failed(
            &name,
            format!("something answers that is no node of this member: {why}"),
            format!("ask `{member}` what listens there, and which key its node has"),
        )
        .of_others(),
        Outcome::Dialled(dialled) if dialled.is_empty() => Check::warning(
            &name,
            "the consortium has no address for it: it must dial this node",
            format!("if it cannot, give its address with --dial {}", shell(format!("{member}=MULTIADDR").as_ref())),
        ),
        Outcome::Dialled(dialled) => not_greeted(&name, member, dialled, greets),
    }
}

/// A member that did not greet: what its addresses say.
fn not_greeted(name: &str, member: &str, dialled: &[Dialled], greets: bool) -> Check {
    let said: Vec<String> = dialled
        .iter()
        .map(|dialled| match &dialled.result {
            Ok(()) => format!("{}: something answers", dialled.address),
            Err(error) => format!("{}: {error}", dialled.address),
        })
        .collect();
    let found = said.join("; ");
    let answered = dialled.iter().any(|dialled| dialled.result.is_ok());
    let there = dialled.iter().any(|dialled| matches!(dialled.result, Err(TryError::Refused)));
    let unknown_kind = dialled.iter().all(|dialled| matches!(dialled.result, Err(TryError::NotTcp)));
    if answered && !greets {
        return Check::ok(name, format!("not greeted; {found}"));
    }
    if answered {
        let remedy = format!("ask `{member}` whether its node runs there, and repeat this with --wait 30");
        return Check::failed(name, format!("no greeting; {found}"), remedy).of_others();
    }
    if there {
        let remedy = format!("ask `{member}` to start its node, or to run {} preflight at the same time", program());
        return Check::warning(name, found, remedy);
    }
    if unknown_kind {
        return Check::warning(name, format!("no greeting; {found}"), format!("ask `{member}` whether its node runs"));
    }
    let remedy = format!("ask `{member}` for its address and firewall; give another with --dial NAME=MULTIADDR");
    Check::failed(name, found, remedy).of_others()
}
