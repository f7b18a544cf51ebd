//! A running node, looked at while its round runs: the page's state, the metrics, `node status` and the log tell one story.

#![cfg(unix)]

#[path = "faults/nodes.rs"]
#[allow(dead_code, reason = "killing and restoring is for the tests of faults")]
mod nodes;
#[path = "observe/openmetrics.rs"]
mod openmetrics;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fedprune_node::observe::Snapshot;
use fedprune_node::observe::metrics::{METRICS, markdown};
use fedprune_node::storage::home::Home;
use fedprune_tests::root;
use nodes::{Bed, Nodes, command, program};
use openmetrics::{Family, Labels};
use serde_json::Value;

const ALL: [usize; 4] = [0, 1, 2, 3];
/// How long anything may take that is waited for here.
const PATIENCE: Duration = Duration::from_secs(40);

/// Where a node says that it is looked at.
struct Place {
    page: Option<String>,
    metrics: Option<String>,
}

/// Starts a node with more arguments, and waits until it says where it is looked at.
fn start(nodes: &mut Nodes, node: usize, more: &[&str]) -> Place {
    nodes.start_as(node, Command::new(program()), more);
    nodes.until(&[node], "serving");
    let said = nodes.said(node, "serving").next().expect("waited for").clone();
    let url = |key: &str| said[key].as_str().map(str::to_owned);
    Place { page: url("page"), metrics: url("metrics") }
}

/// Head and body of what is answered at a URL.
fn get(url: &str) -> Option<(String, String)> {
    let (authority, path) = url.strip_prefix("http://")?.split_once('/')?;
    let mut stream = TcpStream::connect(authority).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned()))
}

fn state(page: &str) -> Option<Snapshot> {
    let (head, body) = get(&format!("{page}state.json"))?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Some(serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn scrape(metrics: &str) -> Option<BTreeMap<String, Family>> {
    let (head, body) = get(metrics)?;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("openmetrics-text; version=1.0.0"), "{head}");
    Some(openmetrics::parse(&body).unwrap_or_else(|error| panic!("{error}\n{body}")))
}

fn labels(label: &str, value: &str) -> Labels {
    [(label.to_owned(), value.to_owned())].into()
}

/// The samples of a family, by the value of its only label.
fn by_label(families: &BTreeMap<String, Family>, family: &str, label: &str) -> BTreeMap<String, f64> {
    let samples = families[family].samples.iter();
    samples.map(|((_, labels), value)| (labels[label].clone(), *value)).collect()
}

/// Counters, and counts of histograms, that are less than before.
fn shrunk(before: &BTreeMap<String, Family>, now: &BTreeMap<String, Family>) -> Vec<String> {
    let mut shrunk = Vec::new();
    for (name, family) in before.iter().filter(|(_, family)| family.kind != "gauge" && family.kind != "info") {
        for (key, value) in &family.samples {
            // a sum of scores may fall
            if key.0 != "_sum" && now[name].samples.get(key).is_none_or(|now| now < value) {
                shrunk.push(format!("{name}{} {:?}: {value}, then {:?}", key.0, key.1, now[name].samples.get(key)));
            }
        }
    }
    shrunk
}

#[test]
fn a_round_is_seen_as_it_runs() {
    let bed = Bed::new("strategy = \"iterative\"");
    let mut nodes = bed.nodes("seen");
    let place = start(&mut nodes, 0, &["--page", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log", "json"]);
    let (page, metrics) = (place.page.expect("a page"), place.metrics.expect("metrics"));
    assert!(page.ends_with('/') && metrics.ends_with("/metrics"));
    let alone = state(&page).expect("a state");
    assert!(alone.status.running && alone.connected() == 0 && alone.roster.len() == 4, "{alone:?}");
    nodes.start(&ALL[1..]);
    let (mut states, mut scrapes) = (Vec::new(), Vec::new());
    let began = Instant::now();
    // until everything is known, looked at again and again
    loop {
        assert!(began.elapsed() < PATIENCE * 2, "{}", nodes.story());
        states.push(state(&page).expect("the node answers"));
        scrapes.push(scrape(&metrics).expect("the node answers"));
        let latest = states.last().expect("one");
        if latest.status.phase == "agreed" && latest.agreement.iter().all(Option::is_some) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // a chain of moments
    for pair in scrapes.windows(2) {
        assert_eq!(shrunk(&pair[0], &pair[1]), Vec::<String>::new());
    }
    for pair in states.windows(2) {
        let moments = |snapshot: &Snapshot| (snapshot.status.height, snapshot.status.sent_bytes, snapshot.unix_ms);
        assert!(moments(&pair[0]).0 <= moments(&pair[1]).0 && moments(&pair[0]).1 <= moments(&pair[1]).1);
        assert!(pair[0].unix_ms <= pair[1].unix_ms);
        let known = |snapshot: &Snapshot| snapshot.agreement.iter().flatten().count();
        assert!(known(&pair[0]) <= known(&pair[1]), "agreement is not forgotten");
    }
    let phases: BTreeSet<&str> = states.iter().map(|snapshot| snapshot.status.phase.as_str()).collect();
    assert!(phases.len() >= 3, "{phases:?}");
    let partly =
        |snapshot: &&Snapshot| (1..snapshot.agreement.len()).contains(&snapshot.agreement.iter().flatten().count());
    assert!(states.iter().any(|snapshot| partly(&snapshot)), "agreement comes block by block");
    let last = states.last().expect("one");
    assert!(last.agreement.iter().flatten().all(|share| (0.5..=1.0).contains(share)), "{:?}", last.agreement);
    assert!(last.agreement_by_chance == 0.5 && last.mean_agreement().expect("known") > 0.5);
    // the others may have ended when the last agreement is known
    let all_are_here = |snapshot: &Snapshot| {
        let mut members = snapshot.roster.iter();
        members.all(|member| member.own || (member.connected && member.heard_seconds_ago.is_some()))
    };
    assert!(states.iter().any(all_are_here), "{:?}", last.roster);
    assert!(last.roster.iter().all(|member| member.ballot.as_deref() == Some("counts")), "{:?}", last.roster);
    // the log of the page is what was said on standard output, which it did not disturb
    let told: u64 = last.events.values().sum();
    assert!(last.log.iter().any(|line| line.event == "finished") && told >= last.log.len() as u64);
    assert_eq!(last.events["decided"], u64::from(last.status.heights));

    // one moment between two scrapes
    let home = nodes.home(0).to_str().expect("a path").to_owned();
    let status = command(&["node", "status", "--home", &home]);
    let (before, between, after) = (scrape(&metrics), state(&page), scrape(&metrics));
    let (before, between, after) = (before.expect("answers"), between.expect("answers"), after.expect("answers"));
    for (kind, bytes) in between.status.sent.by_name() {
        let at = |families: &BTreeMap<String, Family>| by_label(families, "fedprune_sent_bytes", "kind")[kind];
        assert!(at(&before) <= bytes as f64 && bytes as f64 <= at(&after), "{kind}");
    }
    let gauge = |family: &str| after[family].samples[&(String::new(), Labels::new())];
    assert_eq!(gauge("fedprune_heights_done"), f64::from(between.status.heights));
    let connected = |families: &BTreeMap<String, Family>| {
        families["fedprune_members_connected"].samples[&(String::new(), Labels::new())]
    };
    assert!(scrapes.iter().any(|families| connected(families) == 3.0));
    assert_eq!(after["fedprune_phase"].samples[&(String::new(), labels("phase", "agreed"))], 1.0);
    // `node status` tells the same, at most ten seconds behind with bytes
    assert_eq!(
        (status["phase"].as_str(), status["height"].as_u64()),
        (Some("agreed"), Some(u64::from(between.status.heights)))
    );
    assert_eq!(status["page"].as_str().map(|at| format!("http://{at}/")), Some(page.clone()));
    let sent = status["sent_bytes"].as_u64().expect("bytes");
    let exported: f64 = by_label(&after, "fedprune_sent_bytes", "kind").values().sum();
    let first: f64 = by_label(&scrapes[0], "fedprune_sent_bytes", "kind").values().sum();
    assert!(first <= sent as f64 && sent as f64 <= exported, "{first} ≤ {sent} ≤ {exported}");
    // ours are those of the table, each, and libp2p's are there under their own names
    let ours: BTreeSet<String> = METRICS.iter().map(|metric| metric.full_name()).collect();
    let found: BTreeSet<String> = scrapes.iter().chain([&before, &after]).flat_map(exported_names).collect();
    let (found_ours, others): (BTreeSet<String>, BTreeSet<String>) =
        found.into_iter().partition(|name| name.starts_with("fedprune_"));
    assert_eq!(found_ours, ours);
    for expected in ["libp2p_swarm_connections_established_total", "libp2p_gossipsub_messages_total"] {
        assert!(others.contains(expected), "{expected} in {others:?}");
    }
    assert!(others.iter().all(|name| name.starts_with("libp2p_")), "{others:?}");
    dashboard_names_what_there_is(&ours, &others);
    nodes.agree(&ALL);
    assert!(get(&page).is_none(), "nothing is served once the node has ended");
    let logged = nodes.story();
    assert!(logged.contains("\"target\":\"fedprune\"") && logged.contains("\"target\":\"libp2p"), "{logged}");
}

/// Names of samples, as queries use them; for a histogram those of its parts.
fn exported_names(families: &BTreeMap<String, Family>) -> Vec<String> {
    let of = |(name, family): (&String, &Family)| {
        let names: BTreeSet<String> = family.samples.keys().map(|(suffix, _)| format!("{name}{suffix}")).collect();
        if !names.is_empty() {
            return names.into_iter().collect::<Vec<_>>();
        }
        // nothing to tell yet
        let suffix = if family.kind == "counter" { "_total" } else { "" };
        vec![format!("{name}{suffix}")]
    };
    families.iter().flat_map(of).collect()
}

/// Every name in the queries of the dashboard is exported.
fn dashboard_names_what_there_is(ours: &BTreeSet<String>, others: &BTreeSet<String>) {
    let text = std::fs::read_to_string(root().join("docs/grafana.json")).expect("docs/grafana.json");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    let mut named = BTreeSet::new();
    for query in &queries {
        let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        named.extend(
            words.filter(|word| word.starts_with("fedprune_") || word.starts_with("libp2p_")).map(str::to_owned),
        );
    }
    assert!(queries.len() >= 10 && named.len() >= 10, "{queries:?}");
    for name in &named {
        assert!(ours.contains(name) || others.contains(name), "the dashboard asks for `{name}`, which no node exports");
    }
}

/// What stands under `expr`, or asks for labels, anywhere.
fn collect(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if ["expr", "definition", "query"].contains(&key.as_str()) => {
                        queries.push(text.to_owned())
                    }
                    _ => collect(value, queries),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
        _ => {}
    }
}

/// The agreement that is shown, against that of every two ballots expanded and compared by `mask show`.
#[test]
fn agreement_is_that_of_the_ballots() {
    let bed = Bed::new("strategy = \"one-shot\"");
    let mut nodes = bed.nodes("agreement");
    let place = start(&mut nodes, 1, &["--page", "127.0.0.1:0"]);
    let page = place.page.expect("a page");
    nodes.start(&[0, 2, 3]);
    let began = Instant::now();
    let last = loop {
        assert!(began.elapsed() < PATIENCE * 2, "{}", nodes.story());
        let latest = state(&page).expect("the node answers");
        if latest.status.phase == "agreed" && latest.agreement.iter().all(Option::is_some) {
            break latest;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let transcript = Home::inspect(nodes.home(1)).expect("a home").round_folder(bed.round()).transcript();
    let bodies = std::fs::read_dir(transcript.join("bodies")).expect("ballots");
    let bodies: Vec<PathBuf> = bodies.map(|entry| entry.expect("a ballot").path()).collect();
    let model = nodes.arguments(1).model.clone();
    let mut words: Vec<&Path> = vec![Path::new("mask"), Path::new("show"), Path::new("--model"), &model];
    words.extend(bodies.iter().map(PathBuf::as_path));
    let shown = command(&words);
    let pairs: Vec<f64> =
        shown["agreement"].as_array().expect("pairs").iter().filter_map(|pair| pair["same_share"].as_f64()).collect();
    assert_eq!(pairs.len(), bodies.len() * (bodies.len() - 1) / 2);
    // all blocks of the bundled model have the same number of weights
    let (expected, found) = (pairs.iter().sum::<f64>() / pairs.len() as f64, last.mean_agreement().expect("known"));
    assert!((expected - found).abs() < 1e-9, "{expected} and {found}");
    nodes.agree(&ALL);
}

const BEGIN: &str = "<!-- metrics:begin -->\n";
const END: &str = "<!-- metrics:end -->";

/// `FEDPRUNE_WRITE_TABLES=1` writes the table instead of comparing it.
#[test]
fn the_committed_table_of_metrics_is_that_of_the_code() {
    let path = root().join("docs/observability.md");
    let text = std::fs::read_to_string(&path).expect("docs/observability.md");
    let (before, rest) = text.split_once(BEGIN).expect("a place for the table begins");
    let (committed, after) = rest.split_once(END).expect("a place for the table ends");
    if std::env::var_os("FEDPRUNE_WRITE_TABLES").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", markdown())).expect("it can be written");
        return;
    }
    assert!(
        committed == markdown(),
        "the metrics have changed: write the table again with\n  FEDPRUNE_WRITE_TABLES=1 cargo test -p fedprune-tests --test observe"
    );
}

#[test]
fn watching_needs_a_terminal_and_says_what_does_not() {
    let output = Command::new(program()).args(["node", "watch", "--home", "somewhere"]).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(said.contains("no terminal") && said.contains("node status --home somewhere --format json"), "{said}");
}
