//! The report: tables, figures, and what they say about the paper's findings.

use std::fmt::Write as _;

use fedprune_mask::Group;

use crate::cells::{Cell, Spread, cells, main_silos, same_text};
use crate::figures::{Figure, measured_on};
use crate::findings::{
    Comparison, Verdict, centralized_is_a_bound, federated_beats_local, iterative_beats_one_shot, iterative_bytes,
    layer_beats, layer_is_more_robust_than, local_group_matters, scaling_hurts,
};
use crate::results::{Method, ModelResults, Results, Scaling, Silos, Split, Strategy, Together};

/// Results in Markdown; `command` is what repeats them.
pub fn markdown(results: &Results, figures: &[Figure], command: &str) -> String {
    let mut text = format!("# Study `{}`\n\n", tame(&results.study));
    if !results.complete {
        text.push_str("**Not complete**: it was interrupted; the same command goes on.\n\n");
    }
    let seeds: Vec<String> = results.seeds.iter().take(64).map(u64::to_string).collect();
    let texts: Vec<String> = results.texts.iter().take(256).map(|text| format!("`{}`", tame(text))).collect();
    let _ = write!(
        text,
        "Cells are mean ± sample standard deviation over the seeds {}, each of which draws other calibration windows of {} \
         tokens. Texts of the silos: {}. Measured with {} in {:.0} s of computing; repeat it with\n\n```sh\n{command}\n```\n\n\
         where STUDY.toml is the file that `study.toml` here is a copy of: its paths are relative to where it lies.\n\n",
        seeds.join(", "),
        results.sequence_tokens,
        texts.join(", "),
        tame(&results.program),
        results.seconds
    );
    for model in &results.models {
        of_model(model, &mut text);
    }
    if !figures.is_empty() {
        text.push_str("## Figures\n\n");
    }
    for figure in figures {
        let _ = write!(text, "![{}](figures/{}.svg)\n\n{}\n\n", figure.name, figure.name, figure.caption);
    }
    text
}

/// Text from a file, on one line of a table.
fn tame(text: &str) -> String {
    text.chars().take(120).map(|char| if char.is_control() || "|`<>".contains(char) { ' ' } else { char }).collect()
}

fn of_model(results: &ModelResults, text: &mut String) {
    let (model, all) = (&results.model, cells(results));
    let _ = write!(
        text,
        "## {}\n\n{} parameters, {} of them prunable in {} blocks; content digest `{}`. Perplexity is measured on {}.\n\n",
        tame(&model.name),
        count(model.parameters),
        count(model.prunable_weights),
        model.blocks,
        model.digest,
        measured_on(results)
    );
    if let Some(dense) = all.iter().find(|cell| cell.key.method == Method::Dense) {
        let _ = write!(text, "Dense: **{:.2}**.\n\n", dense.perplexity.mean);
    }
    let Some(main) = main_silos(results) else { return };
    let _ = write!(text, "### {}\n\n", capital(&silos_in_words(&main)));
    comparison_table(&all, &main, text);
    ways_table(&all, &main, text);
    bytes_table(results, &all, &main, text);
    curve_tables(&all, &main, text);
    findings(results, text);
}

fn silos_in_words(from: &Silos) -> String {
    let split = if from.split == Split::Different { "different" } else { "identical" };
    format!("{} silos with {split} text, {} windows each", from.silos, from.samples)
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn spread(spread: Spread) -> String {
    let places = if spread.mean.abs() < 1000.0 { 2 } else { 0 };
    if spread.count > 1 {
        format!("{:.places$} ± {:.places$}", spread.mean, spread.deviation)
    } else {
        format!("{:.places$}", spread.mean)
    }
}

/// A sparsity, or the pattern that fixes it.
fn sparsity(from: &Silos) -> String {
    match from.local_group {
        Group::NofM { .. } => from.local_group.to_string(),
        _ => from.sparsity.to_string(),
    }
}

/// How silos prune: pruner, sparsity and local group of these cells, each once.
fn recipes(all: &[Cell], main: &Silos) -> Vec<Silos> {
    let mut found: Vec<Silos> = Vec::new();
    for from in all.iter().filter_map(|cell| cell.key.from).filter(|from| same_text(from, main)) {
        if !found.contains(&from) {
            found.push(from);
        }
    }
    found.sort_by(|one, other| {
        let pattern = |from: &Silos| matches!(from.local_group, Group::NofM { .. });
        (pattern(one).cmp(&pattern(other))).then(one.sparsity.as_f64().total_cmp(&other.sparsity.as_f64()))
    });
    found
}

fn find<'a>(all: &'a [Cell], from: &Silos, method: Method, together: Option<Together>) -> Option<&'a Cell> {
    all.iter()
        .find(|cell| cell.key.from.as_ref() == Some(from) && cell.key.method == method && cell.key.together == together)
}

fn main_together(from: &Silos) -> Together {
    let global_group = if matches!(from.local_group, Group::NofM { .. }) { from.local_group } else { Group::Layer };
    Together { global_group, scaling: Scaling::None, strategy: Strategy::OneShot }
}

/// A row of a table.
fn row(text: &mut String, fields: &[String]) {
    let _ = writeln!(text, "| {} |", fields.join(" | "));
}

fn head(text: &mut String, fields: &[&str], left: usize) {
    let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
    row(text, &fields);
    let lines: Vec<String> =
        (0..fields.len()).map(|at| if at < left { "---".to_owned() } else { "---:".to_owned() }).collect();
    row(text, &lines);
}

fn shown(cell: Option<&Cell>) -> String {
    cell.map_or_else(|| "–".to_owned(), |cell| spread(cell.perplexity))
}

/// Federated beside its baselines.
fn comparison_table(all: &[Cell], main: &Silos, text: &mut String) {
    text.push_str("Federated (one-shot, global group layer or the pattern, not scaled) beside its baselines:\n\n");
    let fields = ["sparsity", "pruner", "local group", "one silo alone", "least – largest", "centralized", "federated"];
    head(text, &fields, 3);
    for from in recipes(all, main) {
        let local = find(all, &from, Method::Local, None);
        let range = local.and_then(|cell| cell.range);
        row(
            text,
            &[
                sparsity(&from),
                from.pruner.to_string(),
                from.local_group.to_string(),
                shown(local),
                range.map_or_else(|| "–".to_owned(), |(least, largest)| format!("{least:.2} – {largest:.2}")),
                shown(find(all, &from, Method::Centralized, None)),
                shown(find(all, &from, Method::Federated, Some(main_together(&from)))),
            ],
        );
    }
    text.push('\n');
}

/// Ways to make one mask of the same ballots.
fn ways_table(all: &[Cell], main: &Silos, text: &mut String) {
    let ways = [
        ("layer", Group::Layer, Scaling::None, Strategy::OneShot),
        ("row", Group::Row, Scaling::None, Strategy::OneShot),
        ("column", Group::Column, Scaling::None, Strategy::OneShot),
        ("layer, scaled", Group::Layer, Scaling::Support, Strategy::OneShot),
        ("row, scaled", Group::Row, Scaling::Support, Strategy::OneShot),
        ("column, scaled", Group::Column, Scaling::Support, Strategy::OneShot),
        ("layer, iterative", Group::Layer, Scaling::None, Strategy::Iterative),
        ("row, iterative", Group::Row, Scaling::None, Strategy::Iterative),
    ];
    let cell = |from: &Silos, (_, global_group, scaling, strategy): (&str, Group, Scaling, Strategy)| {
        find(all, from, Method::Federated, Some(Together { global_group, scaling, strategy }))
    };
    let rows: Vec<Silos> = recipes(all, main)
        .into_iter()
        .filter(|from| ways.iter().filter(|way| cell(from, **way).is_some()).count() > 1)
        .collect();
    let used: Vec<_> = ways.into_iter().filter(|way| rows.iter().any(|from| cell(from, *way).is_some())).collect();
    if rows.is_empty() {
        return;
    }
    text.push_str("Federated, by global group, scaling and strategy:\n\n");
    let fields: Vec<&str> =
        ["sparsity", "pruner", "local group"].into_iter().chain(used.iter().map(|(name, ..)| *name)).collect();
    head(text, &fields, 3);
    for from in rows {
        let mut fields = vec![sparsity(&from), from.pruner.to_string(), from.local_group.to_string()];
        fields.extend(used.iter().map(|way| shown(cell(&from, *way))));
        row(text, &fields);
    }
    text.push('\n');
}

/// What a silo sends.
fn bytes_table(results: &ModelResults, all: &[Cell], main: &Silos, text: &mut String) {
    let packed = results.model.packed_bytes;
    let _ = write!(
        text,
        "Bytes that one silo sends, mean over silos and seeds, beside {} at the paper's one bit a weight:\n\n",
        count(packed)
    );
    head(text, &["sparsity", "pruner", "local group", "strategy", "bytes", "times smaller"], 4);
    let mut seen = Vec::new();
    for cell in all.iter().filter(|cell| cell.key.from.is_some_and(|from| same_text(&from, main))) {
        let (Some(from), Some(together), Some(bytes)) = (cell.key.from, cell.key.together, cell.ballot_bytes) else {
            continue;
        };
        if bytes <= 0.0 || seen.contains(&(from, together.strategy)) {
            continue;
        }
        seen.push((from, together.strategy));
        let strategy = if together.strategy == Strategy::OneShot { "one-shot" } else { "iterative" };
        row(
            text,
            &[
                sparsity(&from),
                from.pruner.to_string(),
                from.local_group.to_string(),
                strategy.to_owned(),
                count(bytes.round() as u64),
                format!("{:.0}", packed as f64 / bytes),
            ],
        );
    }
    text.push('\n');
}

/// Points that differ from the main ones in the number of silos, or of samples.
fn curve_tables(all: &[Cell], main: &Silos, text: &mut String) {
    let mut silos: Vec<Silos> = Vec::new();
    for from in all.iter().filter_map(|cell| cell.key.from) {
        let varied = Silos { silos: main.silos, split: main.split, samples: main.samples, ..from };
        if varied == *main && !silos.contains(&from) {
            silos.push(from);
        }
    }
    if silos.len() < 2 {
        return;
    }
    silos.sort_by_key(|from| (from.split, from.silos, from.samples));
    let _ = write!(
        text,
        "By number of silos and of windows; {}, sparsity {}, local group {}, global group layer:\n\n",
        main.pruner,
        sparsity(main),
        main.local_group
    );
    head(text, &["text", "silos", "windows each", "one silo alone", "centralized", "federated"], 1);
    for from in silos {
        row(
            text,
            &[
                if from.split == Split::Different { "different".to_owned() } else { "identical".to_owned() },
                from.silos.to_string(),
                from.samples.to_string(),
                shown(find(all, &from, Method::Local, None)),
                shown(find(all, &from, Method::Centralized, None)),
                shown(find(all, &from, Method::Federated, Some(main_together(&from)))),
            ],
        );
    }
    text.push('\n');
}

/// The paper's findings, one by one.
fn findings(results: &ModelResults, text: &mut String) {
    text.push_str(
        "### What holds of the paper's findings\n\nPairs of records are compared that differ in nothing but what is \
         claimed, with the same windows. A claim HOLDS if the mean difference has its sign and exceeds twice its standard \
         error, DOES NOT HOLD if it has the other sign and does, and is UNDECIDED otherwise.\n\n",
    );
    let mut say = |claim: &str, comparison: &Comparison, more: String| {
        let _ =
            writeln!(text, "- **{claim}: {}.** {}{more}", comparison.verdict().name(), capital(&comparison.in_words()));
    };
    say("Federated beats each silo alone", &federated_beats_local(results), ".".to_owned());
    for (name, group) in [("row", Group::Row), ("column", Group::Column)] {
        say(
            &format!("Comparing within layers globally beats comparing within {name}s"),
            &layer_beats(results, group),
            ".".to_owned(),
        );
    }
    let matters: Vec<String> = [Group::Layer, Group::Row, Group::Column]
        .into_iter()
        .filter_map(|global| {
            let spread = local_group_matters(results, global)?;
            Some(format!("by {:.2} % with the global group {global}", 100.0 * spread.mean))
        })
        .collect();
    let matters = match matters.is_empty() {
        true => ".".to_owned(),
        false => format!(
            "; whether silos compare within rows or layers changes the federated perplexity {}, on average.",
            matters.join(", ")
        ),
    };
    say(
        "Comparing within layers globally is more robust to the local group than comparing within rows",
        &layer_is_more_robust_than(results, Group::Row),
        matters,
    );
    say("Not scaling beats scaling", &scaling_hurts(results), ".".to_owned());
    let iterative = iterative_beats_one_shot(results);
    let bytes = iterative_bytes(results).map_or_else(
        || ".".to_owned(),
        |ratio| {
            format!(
                "; an iterative round sends {:.2} times the bytes of a one-shot one, in as many agreements as blocks.",
                ratio.mean
            )
        },
    );
    say("Iterative beats one-shot (the paper: it does not, by much)", &iterative, bytes);
    let bound = centralized_is_a_bound(results);
    let tail = match bound.verdict() {
        Verdict::Holds => ": a bound on average here.",
        Verdict::DoesNotHold => ": no bound here.",
        Verdict::Undecided => ": neither above nor below.",
        Verdict::NotMeasured => ".",
    };
    say("Centralized beats federated", &bound, tail.to_owned());
    text.push('\n');
}
