//! The table of limits in `docs/reliability.md` is the one that the code has.

use fedprune_tests::root;

const BEGIN: &str = "<!-- limits:begin -->\n";
const END: &str = "<!-- limits:end -->";

/// `FEDPRUNE_WRITE_TABLES=1` writes the table instead of comparing it.
#[test]
fn the_committed_limits_are_those_of_the_code() {
    let path = root().join("docs/reliability.md");
    let text = std::fs::read_to_string(&path).expect("docs/reliability.md");
    let (before, rest) = text.split_once(BEGIN).expect("a place for the table begins");
    let (committed, after) = rest.split_once(END).expect("a place for the table ends");
    let table = fedprune_node::limits::markdown();
    if std::env::var_os("FEDPRUNE_WRITE_TABLES").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).expect("it can be written");
        return;
    }
    assert!(
        committed == table,
        "the limits have changed: write the table again with\n  FEDPRUNE_WRITE_TABLES=1 cargo test -p fedprune-tests --test reliability"
    );
}
