//! What the program says: standard output, standard error and exit code of many command lines, half of them mistakes,
//! as they stand in `snapshots/messages.txt`.
//!
//! The file is the test: each line that begins with `$ ` is run by a shell, all in one folder, and what came of it is
//! compared with what stands below. What is different each time (keys, times, folders) is replaced by its name. A
//! snapshot tool would be another dependency for a loop of ten lines.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use fedprune_tests::root;

/// Set to write the snapshots anew.
const REGENERATE: &str = "FEDPRUNE_REGENERATE";
const SNAPSHOTS: &str = "tests/snapshots/messages.txt";
/// Fewest command lines, and the share of them that are mistakes.
const FEWEST: usize = 60;

/// A folder with everything that the command lines name and do not make.
fn furnished() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let program = env!("CARGO_BIN_EXE_fedprune-under-test");
    std::fs::create_dir(at.join("bin")).unwrap();
    std::os::unix::fs::symlink(program, at.join("bin/fedprune")).unwrap();
    std::os::unix::fs::symlink(root().join("examples/bundled-model/model"), at.join("model")).unwrap();
    std::os::unix::fs::symlink(root().join("tests/fixtures/llama"), at.join("other")).unwrap();
    std::fs::write(at.join("text.txt"), "the quick brown fox\n").unwrap();
    for (home, settings) in [
        ("wrong", "# a comment\nlinger = \"ten minutes\"\n"),
        ("misspelt", "\nmodle = \"model\"\n"),
        ("no-toml", "model = model\n"),
    ] {
        std::fs::create_dir(at.join(home)).unwrap();
        std::fs::write(at.join(home).join("config.toml"), settings).unwrap();
    }
    // members of another consortium
    shell(at, "fedprune key new --home stranger && fedprune key new --home other-member");
    shell(at, "fedprune consortium new --name Other --out other.toml");
    shell(at, "fedprune consortium add other.toml --name other --key other-member/key.pem");
    shell(at, "fedprune consortium sign other.toml --key other-member/key.pem");
    folder
}

/// Runs a command line; returns its exit code, standard output and standard error.
fn shell(folder: &Path, line: &str) -> (i32, String, String) {
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(folder).stdin(Stdio::null());
    // nothing of this machine's own settings
    for (name, _) in std::env::vars_os() {
        let word = name.to_string_lossy().to_ascii_lowercase();
        if ["fedprune_", "hf_"].iter().any(|of| word.starts_with(of)) || word.ends_with("_proxy") || name == "COLUMNS" {
            command.env_remove(name);
        }
    }
    let output = command.env("PATH", path).output().expect("bash runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Replaces what is different each time.
fn normalised(text: &str, folder: &Path, seen: &mut BTreeMap<String, String>) -> String {
    let folder = folder.to_string_lossy().into_owned();
    let mut text = text.replace(&folder, "[folder]").replace(&root().to_string_lossy().into_owned(), "[source]");
    text = words(&text, |word| {
        if word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(named(seen, word, "digest"));
        }
        if word.len() == 52 && word.starts_with("12D3KooW") {
            return Some(named(seen, word, "peer"));
        }
        // a digest as people see it: the first digits of one that was seen, or of one that was not printed whole
        let hexadecimal = word.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if word.len() == 8 && hexadecimal && word.bytes().any(|byte| byte.is_ascii_digit()) {
            let whole = seen.iter().find(|(whole, _)| whole.starts_with(word)).map(|(_, name)| name.clone());
            return Some(whole.map_or_else(|| "[short digest]".to_owned(), |name| name.replace("[", "[short ")));
        }
        None
    });
    times(&text)
}

fn named(seen: &mut BTreeMap<String, String>, word: &str, kind: &str) -> String {
    let number = seen.values().filter(|name| name.starts_with(&format!("[{kind}"))).count() + 1;
    seen.entry(word.to_owned()).or_insert_with(|| format!("[{kind} {number}]")).clone()
}

/// Applies `replace` to every run of letters and digits.
fn words(text: &str, mut replace: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for char in text.chars().chain(['\n']) {
        if char.is_ascii_alphanumeric() {
            word.push(char);
            continue;
        }
        if !word.is_empty() {
            out.push_str(&replace(&word).unwrap_or_else(|| word.clone()));
            word.clear();
        }
        out.push(char);
    }
    out.pop();
    out
}

/// `0.43 s` and milliseconds since 1970 become names.
fn times(text: &str) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let mut out: Vec<String> = Vec::new();
        for (at, word) in words.iter().enumerate() {
            let unit = words.get(at + 1).is_some_and(|next| next.trim_end_matches([',', ';', ')']) == "s");
            let plain = word.trim_end_matches(',');
            if unit && word.parse::<f64>().is_ok() {
                out.push("[seconds]".to_owned());
            } else if plain.len() == 13 && plain.bytes().all(|byte| byte.is_ascii_digit()) {
                out.push(word.replace(plain, "[milliseconds since 1970]"));
            } else {
                out.push((*word).to_owned());
            }
        }
        out.join(" ")
    };
    let mut lines: Vec<String> = text.split('\n').map(line).collect();
    for line in &mut lines {
        if line.starts_with("peak memory") {
            "peak memory  [bytes]".clone_into(line);
        }
        if let Some((name, _)) = line.trim_start().split_once(": ").filter(|(name, _)| *name == "\"seconds\"") {
            *line = format!("  {name}: [seconds],");
        }
    }
    lines.join("\n")
}

/// What stands below a command line in the file.
fn snapshot(code: i32, stdout: &str, stderr: &str) -> String {
    let mut text = format!("[exit code {code}]\n");
    for (name, said) in [("stdout", stdout), ("stderr", stderr)] {
        if !said.is_empty() {
            text.push_str(&format!("[{name}]\n"));
            said.lines().for_each(|line| text.push_str(&format!("    {}\n", line.trim_end()).replace("    \n", "\n")));
        }
    }
    text
}

#[test]
fn the_program_says_what_it_said() {
    let path = root().join(SNAPSHOTS);
    let committed = std::fs::read_to_string(&path).expect("the snapshots are there");
    let folder = furnished();
    let mut seen = BTreeMap::new();
    let mut fresh = String::new();
    let (mut lines, mut mistakes) = (0, 0);
    // comments and commands are kept, the rest is made
    for line in committed.lines().filter(|line| line.starts_with('#') || line.starts_with("$ ")) {
        if line.starts_with("## ") {
            fresh.push('\n');
        }
        let Some(typed) = line.strip_prefix("$ ") else {
            fresh.push_str(line);
            fresh.push('\n');
            continue;
        };
        let (code, stdout, stderr) = shell(folder.path(), typed);
        let (stdout, stderr) =
            (normalised(&stdout, folder.path(), &mut seen), normalised(&stderr, folder.path(), &mut seen));
        assert!(!stderr.contains("panicked"), "{typed}: {stderr}");
        assert!((0..=130).contains(&code), "{typed}: exit code {code}");
        lines += 1;
        mistakes += usize::from(code != 0);
        fresh.push_str(&format!("\n$ {typed}\n{}", snapshot(code, &stdout, &stderr)));
    }
    assert!(lines >= FEWEST && 2 * mistakes >= lines, "{lines} command lines, {mistakes} of them mistakes");
    if std::env::var_os(REGENERATE).is_some() {
        std::fs::write(&path, fresh).expect("the snapshots can be written");
        return;
    }
    let different = committed.lines().zip(fresh.lines()).enumerate().find(|(_, (old, new))| old != new);
    if let Some((number, (old, new))) = different {
        panic!(
            "`{SNAPSHOTS}` line {}:\n  it says  {old}\n  and now  {new}\nif that is meant, type: \
             {REGENERATE}=1 cargo test -p fedprune-tests --test messages, and read the difference",
            number + 1
        );
    }
    assert_eq!(committed.lines().count(), fresh.lines().count(), "`{SNAPSHOTS}` is longer or shorter than it was");
}
