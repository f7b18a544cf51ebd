//! `docs/cli.md` is what the program says of itself, and so are the manual and the scripts that complete commands.

use std::path::Path;
use std::process::Command;

use fedprune_tests::root;

#[test]
fn the_reference_is_that_of_the_program() {
    let path = root().join("docs/cli.md");
    let made = fedprune_cli::commands::command_line::reference();
    if std::env::var_os("FEDPRUNE_REGENERATE").is_some() {
        std::fs::write(&path, &made).expect("docs can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let different = committed.lines().zip(made.lines()).position(|(old, new)| old != new);
    assert!(
        committed == made,
        "docs/cli.md is not what the program says (line {}); type: FEDPRUNE_REGENERATE=1 cargo test -p fedprune-tests --test \
         cli_reference",
        different.map_or(committed.lines().count().min(made.lines().count()) + 1, |line| line + 1)
    );
    assert!(made.contains("## fedprune node run") && !made.contains("mask contribute"));
}

fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_command_has_a_page_and_shells_take_the_scripts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    run(at, &["man", "pages"]);
    for page in ["fedprune", "fedprune-node-run", "fedprune-audit-verify", "fedprune-init"] {
        let text = std::fs::read_to_string(at.join("pages").join(format!("{page}.1"))).expect(page);
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(!at.join("pages/fedprune-mask-contribute.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let script = run(at, &["completions", shell]);
        assert!(script.contains("show-settings"), "{shell}");
        std::fs::write(at.join(shell), &script).expect("written");
        // read by the shell itself where it is here
        if let Ok(output) = Command::new(shell).arg("-n").arg(at.join(shell)).output() {
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
