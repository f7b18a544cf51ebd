//! What the documentation says is there: links lead somewhere, files, tests and crates that it names exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fedprune_tests::root;

/// Every file of a kind in the project, without what is built or not kept.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["crates", "docs", "examples", "testnet", "tests"].iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder is readable").path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    if ending == "md" {
        found.push(root().join("README.md"));
    }
    found.sort();
    found
}

/// The text of a document without its blocks of code.
fn prose(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut kept = String::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// What stands between a beginning and an end, everywhere in a text.
fn between<'a>(text: &'a str, begin: &'a str, end: char) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| rest.split_once(end).map(|(inner, _)| inner))
}

/// Words in backticks.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The places of a document that links can name, as GitHub makes them of its headings.
fn anchors(path: &Path) -> BTreeSet<String> {
    let slug = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    prose(path).lines().filter(|line| line.starts_with('#')).map(slug).collect()
}

#[test]
fn links_lead_somewhere() {
    let documents = files("md");
    assert!(documents.len() > 15, "{documents:?}");
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for document in &documents {
        let text = prose(document);
        for link in between(&text, "](", ')') {
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').map_or((link, None), |(file, place)| (file, Some(place)));
            let target = if file.is_empty() {
                document.clone()
            } else {
                document.parent().expect("it lies in a folder").join(file)
            };
            let there = match place {
                None => target.exists(),
                Some(place) => target.is_file() && anchors(&target).contains(place),
            };
            followed += 1;
            if !there {
                wrong.push(format!("{}: ({link})", document.display()));
            }
        }
    }
    assert!(followed > 80, "{followed} links");
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn the_readme_leads_to_every_page() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let pages = files("md").into_iter().filter(|page| page.starts_with(root().join("docs")));
    let pages = pages.map(|page| page.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned());
    // reports of studies are reached from the page about them
    let missing: Vec<String> =
        pages.filter(|page| !page.ends_with("/report.md") && !readme.contains(&format!("({page})"))).collect();
    assert!(missing.is_empty(), "README.md does not link to {missing:?}");
}

/// Paths in backticks that begin with one of these are of the project's tree.
const TREES: [&str; 5] = ["crates/", "docs/", "examples/", "testnet/", "tests/"];

#[test]
fn files_that_documents_name_are_there() {
    let (mut wrong, mut found) = (Vec::new(), 0);
    for document in files("md") {
        let text = prose(&document);
        for name in spans(&text).filter(|name| TREES.iter().any(|tree| name.starts_with(tree))) {
            if name.contains([' ', '{', '*', '<', '…']) {
                continue; // a command, or several at once
            }
            found += 1;
            if !root().join(name).exists() {
                wrong.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(found > 20, "{found} files");
    assert!(wrong.is_empty(), "files that are not there:\n{}", wrong.join("\n"));
}

/// The threat model stands on tests and places in the source; both are there.
#[test]
fn the_threat_model_names_tests_and_places_that_exist() {
    let sources: Vec<String> =
        files("rs").iter().map(|path| std::fs::read_to_string(path).expect("sources are text")).collect();
    let is_test = |name: &str| {
        let declared = [format!("fn {name}("), format!("fn {name}\n")];
        sources.iter().any(|source| declared.iter().any(|declared| source.contains(declared.as_str())))
    };
    let crates = root().join("crates");
    let exists = |place: &str| {
        let from = [crates.clone(), crates.join("federation/src"), root()];
        from.iter().any(|folder| folder.join(place).exists())
    };
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).expect("docs/threat-model.md");
    let (mut rows, mut tests) = (0, BTreeSet::new());
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split(" | ").collect();
        let [_, _, places, shown] = cells.as_slice() else { continue };
        if *places == "where" {
            continue;
        }
        rows += 1;
        for place in spans(places) {
            assert!(exists(place), "`{place}` is not there: {line}");
        }
        for name in spans(shown).filter(|name| !name.ends_with(".rs")) {
            assert!(is_test(name), "there is no test `{name}`: {line}");
            tests.insert(name.to_owned());
        }
    }
    assert!(rows > 30 && tests.len() > 40, "{rows} rows, {} tests", tests.len());
    for name in spans(&text).filter(|name| name.matches('_').count() > 3 && !name.contains(['/', '.'])) {
        assert!(is_test(name), "there is no test `{name}`");
    }
}

/// The map in `docs/architecture.md`: each crate, and those of ours that it says it knows.
fn map() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let (_, rest) = text.split_once("```text\ncrates/\n").expect("the map begins");
    let (block, _) = rest.split_once("```").expect("the map ends");
    let mut rooms: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in block.lines() {
        let indent = line.len() - line.trim_start().len();
        if indent <= 2 {
            name = line.split_whitespace().next().expect("a name").trim_end_matches('/').to_owned();
        }
        // the last column stands on the last line of a room
        let columns: Vec<&str> = line.trim_start().split("  ").map(str::trim).filter(|part| !part.is_empty()).collect();
        rooms.insert(name.clone(), columns.last().copied().unwrap_or_default().to_owned());
    }
    rooms
}

/// Crates of ours that a crate's manifest names, for building alone.
fn known_by(folder: &Path) -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
    let mut known = BTreeSet::new();
    let mut counts = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            counts = line == "[dependencies]";
        } else if counts && let Some(rest) = line.strip_prefix("fedprune-") {
            known.insert(rest.split(['.', ' ', '=']).next().expect("a name").to_owned());
        }
    }
    known
}

#[test]
fn the_map_is_of_this_tree() {
    let map = map();
    let crates = root().join("crates");
    let there: BTreeSet<String> = std::fs::read_dir(&crates)
        .expect("crates/")
        .map(|entry| entry.expect("the folder is readable").file_name().to_string_lossy().into_owned())
        .collect();
    for name in &there {
        assert!(map.contains_key(name), "crates/{name} is not in the map of docs/architecture.md");
    }
    for (name, told) in &map {
        let folder = if there.contains(name) { crates.join(name) } else { root().join(name) };
        assert!(folder.is_dir(), "the map of docs/architecture.md has `{name}`, which is not there");
        // examples and tests know what they like
        if !there.contains(name) && name != "testnet" || told == "all of the above" {
            continue;
        }
        let told: BTreeSet<String> = match told.as_str() {
            told if told.starts_with("nothing of ours") => BTreeSet::new(),
            told => told.split(", ").map(str::to_owned).collect(),
        };
        assert_eq!(told, known_by(&folder), "what `{name}` knows, in the map and in its manifest");
    }
    assert!(map.len() >= 13, "{map:?}");
}
