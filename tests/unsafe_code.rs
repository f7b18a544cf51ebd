//! Where the workspace's own code says `unsafe`, and how often: a crate that does not, forbids it; one that does is in a
//! list here, so that nobody adds to it without saying so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Occurrences of the word in code, by package: in the crate itself, and in its tests, benches and examples.
const EXPECTED: &[(&str, usize, usize)] = &[
    // ballots of a transcript are mapped
    ("fedprune-audit", 2, 0),
    // weights are mapped, their pages given back, and a disk is asked for its room; tests count allocations and make pipes
    ("fedprune-checkpoint", 4, 9),
    // ballots are mapped
    ("fedprune-cli", 1, 0),
    // an allocator that counts
    ("fedprune-fuzz", 9, 0),
    // kernels are launched, device memory is lent as bytes and taken with anything in it, pinned memory too; the driver is asked
    // for its version and its memory, and its functions are jumped to; tests launch on the processor
    ("fedprune-gpu", 20, 1),
    // an allocator that counts
    ("fedprune-mask", 0, 5),
    // bodies are mapped and their pages given back; a disk is asked for its room, the system for its clock
    ("fedprune-node", 8, 0),
    // process groups, signals, what becomes of children, how large files may grow and how many be open; waiting for many
    // sockets
    ("fedprune-testnet", 13, 0),
];

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Count {
    code: usize,
    tests: usize,
}

/// Code without comments, strings and characters, which may say anything.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, &code) {
            length
        } else if char == '"' {
            quoted(rest)
        } else if let Some(length) = character(rest) {
            length
        } else {
            code.push(char);
            rest = &rest[char.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

/// The length of `r"…"`, `r#"…"#` and so on at the start of `text`, unless `r` ends a word.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|char: char| char.is_alphanumeric() || char == '_') {
        return None;
    }
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        let after = text.strip_prefix(prefix).map(|after| after.trim_start_matches('#'));
        after.is_some_and(|after| after.starts_with('"'))
    })?;
    let hashes = text[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
    let start = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()))
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of `'x'` or `'\n'`; lifetimes are none.
fn character(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    if inner.starts_with('\\') {
        return inner[2..].find('\'').map(|at| at + 4);
    }
    let char = inner.chars().next()?;
    inner[char.len_utf8()..].starts_with('\'').then_some(char.len_utf8() + 2)
}

fn occurrences(text: &str) -> usize {
    let code = code_of(text);
    code.split(|char: char| !char.is_alphanumeric() && char != '_').filter(|word| *word == "unsafe").count()
}

fn root() -> PathBuf {
    fedprune_tests::root()
}

/// The folders of all packages, by name.
fn packages() -> BTreeMap<String, PathBuf> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = |package: &serde_json::Value| {
        let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
        (package["name"].as_str().expect("a name").to_owned(), manifest.parent().expect("a folder").to_owned())
    };
    packages.iter().map(package).collect()
}

/// Every Rust file of a package, and whether it is of its tests; packages and builds inside it are not its files.
fn sources(folder: &Path, inside: &[PathBuf], is_test: bool, found: &mut Vec<(PathBuf, bool)>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            let skipped = name == "target" || name.starts_with('.') || inside.contains(&path);
            if !skipped {
                let tests = ["tests", "benches", "examples"].contains(&name.as_str());
                sources(&path, inside, is_test || tests, found);
            }
        } else if name.ends_with(".rs") {
            found.push((path, is_test || name == "tests.rs"));
        }
    }
}

fn counted() -> BTreeMap<String, Count> {
    let packages = packages();
    let folders: Vec<PathBuf> = packages.values().cloned().collect();
    let mut counts = BTreeMap::new();
    for (name, folder) in &packages {
        let mut files = Vec::new();
        let inside: Vec<PathBuf> = folders.iter().filter(|other| *other != folder).cloned().collect();
        sources(folder, &inside, false, &mut files);
        assert!(!files.is_empty(), "`{name}` has no code");
        let mut count = Count::default();
        for (path, is_test) in files {
            let found = occurrences(&std::fs::read_to_string(&path).expect("code is text"));
            *(if is_test { &mut count.tests } else { &mut count.code }) += found;
        }
        counts.insert(name.clone(), count);
    }
    counts
}

#[test]
fn unsafe_code_is_where_the_list_says_and_nowhere_else() {
    let counted: Vec<(String, usize, usize)> = counted()
        .into_iter()
        .filter(|(_, count)| *count != Count::default())
        .map(|(name, count)| (name, count.code, count.tests))
        .collect();
    let expected: Vec<(String, usize, usize)> =
        EXPECTED.iter().map(|(name, code, tests)| ((*name).to_owned(), *code, *tests)).collect();
    assert_eq!(counted, expected, "say in the list above where `unsafe` came or went, and in the commit why");
}

/// `#![forbid(unsafe_code)]` in the root of every crate that has none.
#[test]
fn crates_without_unsafe_code_forbid_it() {
    for (name, count) in counted() {
        let root = &packages()[&name];
        let forbids = |file: &str| {
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
            code_of(&text).contains("#![forbid(unsafe_code)]")
        };
        let library = root.join("src/lib.rs").is_file();
        if library {
            assert_eq!(forbids("src/lib.rs"), count.code == 0, "`{name}`: forbid `unsafe_code` where there is none");
        }
    }
}

#[test]
fn words_in_comments_and_strings_are_not_counted() {
    let text = r##"
        // unsafe
        /* unsafe /* unsafe */ unsafe */
        const A: &str = "unsafe \" unsafe";
        const B: &str = r#"unsafe " unsafe"#;
        const C: char = '"'; const D: char = '\''; fn e<'a>(f: &'a str) { unsafe { g(f) } }
        #![forbid(unsafe_code)]
        unsafe impl H for I {}
    "##;
    assert_eq!(occurrences(text), 2);
}
