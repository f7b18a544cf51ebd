//! Floods of garbage during a round, as real processes: from a member, and from an outsider. The round ends on a mask, no
//! node needs much more memory or time for it, and every node names the member.
//!
//! `FEDPRUNE_FLOOD_MIB` says how much; the full size is run by hand:
//!
//! ```console
//! $ FEDPRUNE_FLOOD_MIB=1024 cargo test --release -p fedprune-tests --test flood -- --nocapture
//! ```

#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "what a flood took is for who runs it by hand")]

#[path = "faults/nodes.rs"]
#[allow(dead_code, reason = "killing and restoring is for the tests of faults")]
mod nodes;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fedprune_mask::Digest;
use nodes::{Bed, Nodes};

/// Size of a flood unless the environment has another, in MiB.
const FLOOD_MIB: u64 = 32;
/// Where the environment says another.
const BY_HAND: &str = "FEDPRUNE_FLOOD_MIB";
/// Memory that a node may need beyond what it needs without a flood.
const MEMORY_BYTES: u64 = 150 << 20;
/// Time that a round may take beyond twice what it takes without a flood, on a machine that has other things to do; none
/// when it is measured by hand.
const SLACK_SECONDS: f64 = 5.0;
/// Connections of an outsider at a time.
const OUTSIDERS: usize = 8;

const ROUND: &str = "contribution_seconds = 4";

fn flood_bytes() -> u64 {
    let mib = std::env::var(BY_HAND).map(|mib| mib.parse().expect("FEDPRUNE_FLOOD_MIB is a number"));
    mib.unwrap_or(FLOOD_MIB) << 20
}

/// What a round took, of all honest nodes the most.
#[derive(Debug, Clone, Copy)]
struct Cost {
    seconds: f64,
    memory_bytes: u64,
    received_bytes: u64,
}

/// Waits until these nodes have finished, and looks at what it took them.
fn cost(nodes: &mut Nodes, honest: &[usize]) -> Cost {
    nodes.wait("all have finished", |all| honest.iter().all(|node| all.said(*node, "finished").next().is_some()));
    let mut cost = Cost { seconds: 0.0, memory_bytes: 0, received_bytes: 0 };
    for node in honest {
        cost.memory_bytes = cost.memory_bytes.max(nodes.peak_memory_bytes(*node));
        let finished = nodes.said(*node, "finished").next().expect("it has finished");
        cost.seconds = cost.seconds.max(finished["seconds"].as_f64().expect("seconds"));
        cost.received_bytes = cost.received_bytes.max(finished["received_bytes"].as_u64().expect("bytes"));
    }
    cost
}

fn compare(what: &str, without: Cost, with: Cost) {
    println!("{what}: {} MiB\n  without {without:?}\n  with    {with:?}", flood_bytes() >> 20);
    let more = with.memory_bytes.saturating_sub(without.memory_bytes);
    assert!(more <= MEMORY_BYTES, "{more} bytes more: {without:?} {with:?}");
    let slack = if std::env::var_os(BY_HAND).is_some() { 0.0 } else { SLACK_SECONDS };
    assert!(with.seconds <= 2.0 * without.seconds + slack, "{without:?} {with:?}");
}

/// A round of all but one, which never starts: nothing of it arrives in time, as of a member that is shut out.
fn without(bed: &Bed, absent: usize) -> (Cost, Digest) {
    let honest: Vec<usize> = (0..4).filter(|node| *node != absent).collect();
    let mut nodes = bed.nodes("without");
    nodes.start(&honest);
    let cost = cost(&mut nodes, &honest);
    (cost, nodes.agree(&honest))
}

#[test]
fn a_flood_from_a_member() {
    let bed = Bed::new(ROUND);
    let liar = bed.follower();
    let honest: Vec<usize> = (0..4).filter(|node| *node != liar).collect();
    let (before, _) = without(&bed, liar);

    let mut nodes = bed.nodes("a member floods");
    let mut program = Command::new(env!("CARGO_BIN_EXE_fedprune-lying-node"));
    program.env("FEDPRUNE_LIE", "flood").env("FEDPRUNE_FLOOD_BYTES", flood_bytes().to_string());
    nodes.start_as(liar, program, &[]);
    nodes.start(&honest);
    nodes.wait("all name it", |all| honest.iter().all(|node| all.said(*node, "shut-out").next().is_some()));
    let with = cost(&mut nodes, &honest);
    nodes.agree(&honest);
    let name = nodes.name(liar).to_owned();
    for node in &honest {
        let named: Vec<_> = nodes.said(*node, "shut-out").collect();
        assert!(named.iter().all(|said| said["member"] == name.as_str()), "{named:?}");
    }
    nodes.terminate(liar);
    nodes.ended(liar);
    let closed = nodes.said(liar, "closed").next().expect("it was asked to end");
    println!("sent {} MiB before it was shut out", closed["sent_bytes"].as_u64().expect("bytes") >> 20);
    compare("a member floods", before, with);
}

/// Writes garbage to a node over and over, as somebody without a key: plain, or where an encrypted connection begins.
fn pour(address: SocketAddr, left: &AtomicU64, over: &AtomicBool) -> u64 {
    let mut poured = 0;
    let garbage: Vec<u8> = (0..1usize << 18).map(|at| (at * 7919 % 253) as u8).collect();
    let mut plain = false;
    while !over.load(Ordering::Relaxed) && left.load(Ordering::Relaxed) > 0 {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        plain = !plain;
        let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
        if !plain && stream.write_all(b"\x13/multistream/1.0.0\n\x07/noise\n").is_ok() {
            let _ = stream.read(&mut [0; 64]);
        }
        while let Ok(written) = stream.write(&garbage) {
            poured += written as u64;
            let before = left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(written as u64)));
            if written == 0 || before == Ok(0) || over.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    poured
}

#[test]
fn a_flood_from_an_outsider() {
    let bed = Bed::new(ROUND);
    let absent = bed.follower();
    let honest: Vec<usize> = (0..4).filter(|node| *node != absent).collect();
    let (before, whole) = without(&bed, absent);

    let mut nodes = bed.nodes("an outsider floods");
    let port = |address: &String| address.rsplit('/').next().and_then(|port| port.parse().ok()).expect("a port");
    let ports: Vec<u16> = honest.iter().map(|node| port(&nodes.arguments(*node).listen[0])).collect();
    let (left, over) = (Arc::new(AtomicU64::new(flood_bytes())), Arc::new(AtomicBool::new(false)));
    let outsiders: Vec<_> = (0..OUTSIDERS)
        .map(|number| {
            let address = SocketAddr::from(([127, 0, 0, 1], ports[number % ports.len()]));
            let (left, over) = (Arc::clone(&left), Arc::clone(&over));
            std::thread::spawn(move || pour(address, &left, &over))
        })
        .collect();
    nodes.start(&honest);
    let with = cost(&mut nodes, &honest);
    over.store(true, Ordering::Relaxed);
    let poured: u64 = outsiders.into_iter().map(|outsider| outsider.join().expect("it pours")).sum();
    assert_eq!(nodes.agree(&honest), whole, "what an outsider does changes no mask");
    println!("poured {} MiB", poured >> 20);
    assert!(poured >= flood_bytes() / 4 * 3, "only {poured} of {} bytes", flood_bytes());
    compare("an outsider floods", before, with);
}
