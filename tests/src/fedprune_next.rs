//! `fedprune` of a later version, which speaks the same protocol: what is this program in every other respect, for tests
//! of members that are upgraded one by one.

fn main() -> std::process::ExitCode {
    fedprune_cli::main("0.2.0-next")
}
