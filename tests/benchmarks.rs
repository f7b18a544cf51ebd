//! The tables of measurements in `README.md` and `docs/performance.md` are those that `docs/performance.json` gives.

use std::path::Path;
use std::process::Command;

#[test]
fn committed_tables_are_what_the_measurements_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package of the workspace");
    let named = std::env::var_os("FEDPRUNE_PYTHON");
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let checked = Command::new(&python).arg(root.join("examples/benchmarks/report.py")).arg("--check").output();
    match checked {
        Ok(output) => assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        // without a Python this is left out; one that was named has to run
        Err(error) => assert!(named.is_none(), "`{}` does not run: {error}", python.to_string_lossy()),
    }
}
