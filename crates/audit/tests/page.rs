//! The report as a page: complete in itself, whatever the transcript says, and the same for the same audit.

mod support;

use std::fs;

use fedprune_audit::html::{Brought, write};
use fedprune_audit::{Limits, Options, Verdict, overview, verify, verify_and_measure};
use support::{ELECTED, ITERATIVE, ONE_SHOT, World, first_of_class, flip};

/// The page of an audit with everything that there is, or with nothing.
fn page(world: &World, brought: bool) -> (Verdict, String) {
    let (model, pruned) = (world.path("model"), world.path("pruned"));
    let options = Options {
        consortium: Some(world.consortium.id()),
        round: Some(world.round.id()),
        model: brought.then_some(model.as_path()),
        pruned: brought.then_some(pruned.as_path()),
        limits: Limits::default(),
    };
    let report = verify_and_measure(&world.transcript(), &options, &|_| ()).unwrap();
    // what is measured besides changes nothing of what is found
    let mut plain = verify(&world.transcript(), &options, &|_| ()).unwrap();
    assert!(plain.agreement.is_empty());
    plain.agreement = report.agreement.clone();
    assert_eq!(plain, report);
    let overview = overview(&world.transcript(), Limits::default(), &report).unwrap();
    let mut bytes = Vec::new();
    write(&mut bytes, &report, &overview, Brought { program: "fedprune 7.8.9", model: brought, pruned: brought })
        .unwrap();
    (report.verdict, String::from_utf8(bytes).unwrap())
}

/// Every tag that is opened is closed, in order, and none is one that loads or runs anything.
fn assert_sound(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("a tag ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        for forbidden in ["script", "img", "link", "iframe", "object", "embed", "form", "a", "base", "image", "use"] {
            assert_ne!(name, forbidden);
        }
        assert!(!tag.contains("href") && !tag.contains("src=") && !tag.contains(" on"), "<{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !tag.ends_with('/') && !["!doctype", "meta"].contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are left open");
    assert!(!page.contains("url(") && !page.contains("@import"));
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_page_tells_it_all_and_loads_nothing() {
    for kind in [ONE_SHOT, ITERATIVE, ELECTED] {
        let world = World::new(kind);
        let (verdict, text) = page(&world, true);
        assert_eq!(verdict, Verdict::Verified);
        assert_sound(&text);
        let (consortium, round, root) =
            (world.consortium.id().to_string(), world.round.id().to_string(), world.mask_root.to_string());
        for part in
            [">VERIFIED<", &consortium, &round, &root, "east", "1970-01-01 00:00:00 UTC", "claim", "unanimous", "<svg"]
        {
            assert!(text.contains(part), "`{part}` is not in the page");
        }
        // two blocks of seven matrices, and a mean for each
        assert_eq!(text.matches("class=\"cell\"").count(), 2 * 8);
        assert_eq!(page(&world, true).1, text, "the same audit makes the same page");
        let (verdict, text) = page(&world, false);
        assert_eq!(verdict, Verdict::Incomplete);
        assert_sound(&text);
        assert!(text.contains("--model DIR") && !text.contains("<svg") && text.contains("not read"));
    }
}

/// How far the ballots agree is what counting one weight and one pair after the other says.
#[test]
fn agreement_is_that_of_the_ballots() {
    let world = World::new(ONE_SHOT);
    let model = world.path("model");
    let options = Options { model: Some(&model), ..Options::default() };
    let report = verify_and_measure(&world.transcript(), &options, &|_| ()).unwrap();
    let checkpoint = fedprune_checkpoint::Checkpoint::open(&model).unwrap();
    let ballots: Vec<_> =
        world.bodies[0].iter().map(|body| fedprune_mask::Ballot::parse(body, &world.layout).unwrap()).collect();
    assert_eq!(report.agreement.len(), world.layout.matrices().len());
    for (index, found) in report.agreement.iter().enumerate() {
        let masks: Vec<_> =
            ballots.iter().map(|ballot| ballot.mask(index, checkpoint.matrix(index)).unwrap()).collect();
        // the weights of the members, one vote each time they count
        let votes: Vec<_> = masks
            .iter()
            .zip(&world.round.terms().tally_weights)
            .flat_map(|(mask, weight)| std::iter::repeat_n(mask, *weight as usize))
            .collect();
        let (mut pairs, mut differing) = (0, 0);
        for (later, a) in votes.iter().enumerate() {
            for b in &votes[..later] {
                pairs += found.weights;
                differing += a.count_different(b);
            }
        }
        let expected = 1.0 - differing as f64 / pairs as f64;
        assert!((found.agreement - expected).abs() < 1e-12, "{} instead of {expected}", found.agreement);
        assert_eq!(found.pruned, found.weights / 2);
    }
}

#[test]
fn a_failure_is_first_and_names_what_failed() {
    let world = World::new(ONE_SHOT);
    flip(&first_of_class(&world.transcript(), "headers"));
    let (verdict, text) = page(&world, true);
    assert_eq!(verdict, Verdict::Failed);
    assert_sound(&text);
    assert!(text.find(">FAILED<").unwrap() < text.find("Members").unwrap());
    assert!(text.contains("heights/0000/headers/"));
}

/// Markup in the only places where a stranger's words get into a transcript.
#[test]
fn markup_from_a_transcript_is_text() {
    let world = World::new(ONE_SHOT);
    let hostile = "<script>alert(1)<!--'\"&`";
    fs::write(world.transcript().join("<img src=x onerror=alert(1)>"), "x").unwrap();
    let summary = serde_json::json!({
        "written_by": hostile, "program": hostile, "sent_bytes": 1, "received_bytes": 2, "seconds": { hostile: 1.0 },
    });
    fs::write(world.transcript().join("summary.json"), summary.to_string()).unwrap();
    let (_, text) = page(&world, true);
    assert_sound(&text);
    assert!(text.contains("&lt;script&gt;alert(1)&lt;!--") && text.contains("&lt;img src=x onerror"));
}
