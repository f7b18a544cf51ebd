use super::*;
use crate::report::markdown;
use crate::results::{EvaluationFacts, ModelFacts, Profile, Record, Together};
use fedprune_mask::Digest;
use fedprune_mask::score::Pruner;

fn record(method: Method, from: Option<Silos>, together: Option<Together>, seed: u64, perplexity: f64) -> Record {
    let federated = method == Method::Federated;
    Record {
        method,
        from,
        together,
        seed: from.map(|_| seed),
        perplexity,
        perplexity_range: (method == Method::Local).then_some((perplexity - 1.0, perplexity + 1.0)),
        ballot_bytes: federated.then_some(4800.0),
        mask_root: None,
    }
}

/// Results in which federated lies between alone and centralized, and scaling hurts.
fn results() -> Results {
    let mut records = vec![record(Method::Dense, None, None, 0, 20.0)];
    let mut profiles = Vec::new();
    for (sparsity, base) in [("0.5", 30.0), ("0.7", 90.0)] {
        for (silos, pruner) in [(4, "wanda"), (4, "magnitude"), (8, "wanda")] {
            for local_group in [Group::Row, Group::Layer] {
                for seed in 0..3u64 {
                    let from = Silos {
                        silos,
                        split: Split::Different,
                        samples: 2,
                        sparsity: sparsity.parse().unwrap(),
                        pruner: pruner.parse::<Pruner>().unwrap(),
                        local_group,
                    };
                    let base = base + seed as f64;
                    records.push(record(Method::Local, Some(from), None, seed, base + 6.0));
                    records.push(record(Method::Centralized, Some(from), None, seed, base));
                    for (global_group, scaling, strategy, more) in [
                        (Group::Layer, Scaling::None, Strategy::OneShot, 1.0),
                        (Group::Row, Scaling::None, Strategy::OneShot, 2.0),
                        (Group::Layer, Scaling::Support, Strategy::OneShot, 9.0),
                        (Group::Layer, Scaling::None, Strategy::Iterative, 1.0),
                    ] {
                        let together = Together { global_group, scaling, strategy };
                        records.push(record(Method::Federated, Some(from), Some(together), seed, base + more));
                    }
                    let matrix = |block: u32, kind: &str| MatrixProfile {
                        block,
                        kind: kind.to_owned(),
                        agreement: 0.9 + 0.01 * f64::from(block),
                        energy_lost: 0.02,
                    };
                    let kinds = ["q_proj", "down_proj"];
                    let matrices = (0..3).flat_map(|block| kinds.map(|kind| matrix(block, kind))).collect();
                    profiles.push(Profile { from, global_group: Group::Layer, seed, matrices });
                }
            }
        }
    }
    let model = ModelFacts {
        name: "tiny".to_owned(),
        digest: Digest::of(b"tiny"),
        parameters: 1000,
        prunable_weights: 800,
        packed_bytes: 100_000,
        blocks: 3,
    };
    let evaluation = EvaluationFacts { files: vec!["text.txt".to_owned()], windows: 3, sequence_tokens: 64 };
    Results {
        study: "small".to_owned(),
        program: "fedprune".to_owned(),
        texts: vec!["one".to_owned(), "two".to_owned()],
        sequence_tokens: 64,
        seeds: vec![0, 1, 2],
        complete: true,
        seconds: 12.0,
        models: vec![ModelResults { model, evaluation, records, profiles }],
    }
}

#[test]
fn figures_are_pictures_and_the_same_again() {
    let results = results();
    let figures = draw(&results).unwrap();
    let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
    assert_eq!(
        names,
        ["perplexity-by-sparsity", "perplexity-by-pruner", "perplexity-by-silos", "agreement", "energy-lost"]
    );
    for figure in &figures {
        assert!(figure.png.starts_with(b"\x89PNG\r\n\x1a\n") && figure.png.len() > 5000, "{}", figure.name);
        assert!(figure.svg.contains("DejaVu Sans") && !figure.caption.is_empty());
        let greys = figure.svg.split("fill=\"#").skip(1).chain(figure.svg.split("stroke=\"#").skip(1));
        for colour in greys.map(|rest| &rest[..6]) {
            assert!(colour[..2] == colour[2..4] && colour[2..4] == colour[4..], "{colour} is no grey");
        }
    }
    assert_eq!(draw(&results).unwrap(), figures);
}

#[test]
fn reports_say_what_holds() {
    let mut results = results();
    let figures = draw(&results).unwrap();
    let text = markdown(&results, &figures, "fedprune study run x");
    for expected in [
        "Dense: **20.00**",
        "| 0.5 | wanda | row | 37.00 ± 1.00 | 35.00 – 39.00 | 31.00 ± 1.00 | 32.00 ± 1.00 |",
        "Federated beats each silo alone: HOLDS.",
        "within rows: HOLDS.",
        "within columns: NOT MEASURED.",
        "more robust to the local group than comparing within rows: UNDECIDED.",
        "Not scaling beats scaling: HOLDS.",
        "one-shot (the paper: it does not, by much): UNDECIDED.",
        "sends 1.00 times the bytes",
        "Centralized beats federated: HOLDS.",
        "![agreement](figures/agreement.svg)",
        "fedprune study run x",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let mut sensitive = results.clone();
    for record in &mut sensitive.models[0].records {
        let by_rows = record.together.is_some_and(|together| together.global_group == Group::Row);
        if by_rows && record.from.is_some_and(|from| from.local_group == Group::Layer) {
            record.perplexity *= 1.1;
        }
    }
    let text = markdown(&sensitive, &[], "x");
    assert!(text.contains("robust to the local group than comparing within rows: HOLDS."), "{text}");
    assert!(text.contains("by 0.00 % with the global group layer, by 9.53 % with the global group row"), "{text}");
    // what is claimed turned round
    for record in &mut results.models[0].records {
        if record.method == Method::Federated {
            record.perplexity += 50.0;
        }
    }
    assert!(markdown(&results, &[], "x").contains("Federated beats each silo alone: DOES NOT HOLD."));
    results.complete = false;
    assert!(markdown(&results, &[], "x").contains("Not complete"));
}

#[test]
fn odd_results_are_drawn_as_far_as_they_go() {
    let mut odd = vec![results(), results(), results(), results(), results(), results()];
    odd[0].models.clear();
    odd[1].models[0].records.clear();
    odd[2].models[0].records.truncate(2);
    odd[3].models[0].records.iter_mut().for_each(|record| record.perplexity = f64::NAN);
    odd[4].models[0].records.iter_mut().for_each(|record| record.perplexity = 1e300);
    for (at, record) in odd[5].models[0].records.iter_mut().enumerate() {
        record.perplexity = if at % 2 == 0 { f64::INFINITY } else { -1.0 };
    }
    odd[5].models[0].profiles[0].matrices.iter_mut().for_each(|matrix| matrix.agreement = f64::NAN);
    for results in odd {
        let figures = draw(&results).unwrap();
        assert!(!markdown(&results, &figures, "x").is_empty());
    }
}
