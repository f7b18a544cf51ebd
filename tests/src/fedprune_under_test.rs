//! `fedprune`, as the command-line tests start it.

fn main() -> std::process::ExitCode {
    fedprune_cli::main(env!("CARGO_PKG_VERSION"))
}
