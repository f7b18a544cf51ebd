//! Members that lie, as real processes: the round ends on the one right mask, and the transcripts name the liar.

#![cfg(unix)]

#[path = "faults/nodes.rs"]
#[allow(dead_code, reason = "killing and restoring is for the tests of faults")]
mod nodes;

use std::process::Command;

use fedprune_audit::report::{Fault, Report};
use fedprune_audit::{Options, Verdict};
use fedprune_mask::Digest;
use fedprune_node::storage::home::Home;
use nodes::{Bed, Nodes};

const ALL: [usize; 4] = [0, 1, 2, 3];

fn others(one: usize) -> Vec<usize> {
    ALL.into_iter().filter(|other| *other != one).collect()
}

/// Starts three honest nodes and a liar, and waits until the honest ones have come to a mask.
fn run(bed: &Bed, liar: usize, lie: &str) -> (Nodes, Digest) {
    let mut nodes = bed.nodes(lie);
    let mut program = Command::new(env!("CARGO_BIN_EXE_fedprune-lying-node"));
    program.env("FEDPRUNE_LIE", lie);
    nodes.start_as(liar, program, &[]);
    nodes.start(&others(liar));
    let root = nodes.agree(&others(liar));
    (nodes, root)
}

/// What an auditor makes of the transcript of a member.
fn audit(bed: &Bed, nodes: &Nodes, node: usize) -> Report {
    let transcript = Home::inspect(nodes.home(node)).expect("a home").round_folder(bed.round()).transcript();
    let arguments = nodes.arguments(node);
    let options = Options {
        consortium: Some(bed.set_up().consortium().id()),
        round: Some(bed.round()),
        model: Some(&arguments.model),
        pruned: Some(&arguments.out),
        ..Options::default()
    };
    let report = fedprune_audit::verify(&transcript, &options, &|_| ()).expect("a transcript");
    assert_eq!(report.verdict, Verdict::Verified, "{report:?}\n{}", nodes.story());
    report
}

/// The mask of a round in which nobody lies.
fn honest(bed: &Bed) -> Digest {
    let mut nodes = bed.nodes("nobody lies");
    nodes.start(&ALL);
    nodes.agree(&ALL)
}

/// Who contributed, as a node says.
fn contributors(nodes: &Nodes, node: usize) -> Vec<String> {
    let decided = nodes.said(node, "decided").next().expect("it is decided");
    let names = decided["contributors"].as_array().expect("contributors").iter();
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn who_sends_two_ballots_is_in_every_transcript() {
    let bed = Bed::new("contribution_seconds = 4");
    let (whole, liar) = (honest(&bed), bed.follower());
    for lie in ["second-ballot", "first-ballot"] {
        let (nodes, root) = run(&bed, liar, lie);
        let name = nodes.name(liar).to_owned();
        let counts = contributors(&nodes, others(liar)[0]).contains(&name);
        // its own ballot counts for all if they have seen it first, and for none otherwise
        assert_eq!(root == whole, counts, "{}", nodes.story());
        for node in others(liar) {
            assert_eq!(contributors(&nodes, node).contains(&name), counts, "{}", nodes.story());
            let told = nodes.said(node, "evidence").any(|evidence| evidence["member"] == name.as_str());
            assert!(told, "{}", nodes.story());
            let findings = audit(&bed, &nodes, node).findings;
            let named = findings.iter().any(|found| found.fault == Fault::Equivocation && found.member == name);
            assert!(named && findings.iter().all(|found| found.member == name), "{findings:?}");
        }
    }
}

#[test]
fn an_aggregator_that_proposes_a_wrong_mask_is_named_and_passed_over() {
    let bed = Bed::new("tally = \"elected\"");
    let (whole, liar) = (honest(&bed), bed.aggregator());
    let (nodes, root) = run(&bed, liar, "wrong-mask");
    assert_eq!(root, whole, "all ballots count, the liar's too\n{}", nodes.story());
    let name = nodes.name(liar).to_owned();
    for node in others(liar) {
        let report = audit(&bed, &nodes, node);
        let named = |found: &fedprune_audit::Finding| found.fault == Fault::WrongMaskRoot && found.member == name;
        assert!(report.findings.iter().any(named), "{:?}", report.findings);
        assert!(report.findings.iter().all(|found| found.member == name), "{:?}", report.findings);
        assert_eq!(report.heights[0].recomputed_mask_root, Some(whole));
        let passed_over: Vec<_> = report.heights[0].passed_over.iter().map(|one| (&one.member, one.proposed)).collect();
        assert_eq!(passed_over, [(&name, true)]);
        let decided = nodes.said(node, "decided").next().expect("it is decided");
        assert_eq!(decided["view"], 1, "it costs one view");
    }
}
