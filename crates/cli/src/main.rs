//! The `fedprune` program; everything it does is in the library beside it, where tests reach it too.

fn main() -> std::process::ExitCode {
    fedprune_cli::main(env!("CARGO_PKG_VERSION"))
}
