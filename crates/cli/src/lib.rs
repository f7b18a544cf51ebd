//! The `fedprune` command line: parsing apart from doing.
//!
//! [`args`] is what can be typed; [`commands`] has one file a command, each returning a report; [`output`] prints a
//! report as text for people or JSON for machines; [`progress`] says on standard error how far things are.
//!
//! Standard output carries the report alone. [`exit`] says what the program exits with.

#[cfg(not(any(feature = "silo", feature = "federation", feature = "audit")))]
compile_error!("`fedprune` without any command; enable at least one of the features `silo`, `federation`, `audit`");

pub mod args;
pub mod commands;
pub mod exit;
pub mod files;
pub mod interrupt;
#[cfg(feature = "federation")]
pub mod logging;
pub mod output;
pub mod progress;
#[cfg(feature = "federation")]
pub mod settings;
pub mod version;

use std::io::Write;
use std::process::ExitCode;

#[cfg(feature = "study")]
use args::StudyCommand;
use args::{Arguments, Command};
#[cfg(feature = "audit")]
use args::{AttestCommand, AuditCommand};
#[cfg(feature = "federation")]
use args::{ConsortiumCommand, KeyCommand, NodeCommand, RoundCommand, TestnetCommand};
#[cfg(feature = "silo")]
use args::{EvalCommand, MaskCommand, ModelCommand};
use output::Report;
use progress::Meter;

/// Parses the process's arguments, runs the command, prints its report. `version` is that of the program which calls this.
pub fn main(version: &'static str) -> ExitCode {
    version::is(version);
    #[cfg(feature = "federation")]
    let arguments = match settings::parse() {
        Ok(arguments) => arguments,
        Err(settings::Refusal::CommandLine(error)) => error.exit(),
        Err(settings::Refusal::File(error)) => return failed(&error),
    };
    #[cfg(not(feature = "federation"))]
    let arguments = <Arguments as clap::Parser>::parse();
    interrupt::install();
    let printed = |report: Box<dyn Report>| {
        output::print(&*report, arguments.global.format, &mut std::io::stdout()).map(|()| report.exit_code())
    };
    match run(&arguments).and_then(printed) {
        Ok(code) => ExitCode::from(code),
        // A closed pipe is no failure of ours: `fedprune … | head` has seen what it wanted.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Says why nothing came of it.
fn failed(error: &anyhow::Error) -> ExitCode {
    let stopped = error.chain().find_map(|cause| cause.downcast_ref::<interrupt::Stopped>());
    let message = match stopped {
        Some(stopped) => stopped.to_string(),
        None => format!("error: {}", output::chain(error)),
    };
    // Nowhere is left to report a failing standard error.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(exit::code(error))
}

fn run(arguments: &Arguments) -> anyhow::Result<Box<dyn Report>> {
    let meter = Meter::new(arguments.global.quiet);
    Ok(match &arguments.command {
        #[cfg(feature = "silo")]
        Command::Model(ModelCommand::Inspect(inspect)) => Box::new(commands::model_inspect::run(inspect, &meter)?),
        #[cfg(feature = "silo")]
        Command::Model(ModelCommand::Devices) => Box::new(commands::model_devices::run()),
        #[cfg(feature = "silo")]
        Command::Model(ModelCommand::Import(import)) => Box::new(commands::model_import::run(import, &meter)?),
        #[cfg(feature = "silo")]
        Command::Model(ModelCommand::Fetch(fetch)) => Box::new(commands::model_fetch::run(fetch, &meter)?),
        #[cfg(feature = "silo")]
        Command::Mask(MaskCommand::Compute(compute)) => Box::new(commands::mask_compute::run(compute, &meter)?),
        #[cfg(feature = "federation")]
        Command::Mask(MaskCommand::Contribute(contribute)) => Box::new(commands::contribute::run(contribute, &meter)?),
        #[cfg(feature = "silo")]
        Command::Mask(MaskCommand::Show(show)) => Box::new(commands::mask_show::run(show, &meter)?),
        #[cfg(feature = "silo")]
        Command::Tally(tally) => Box::new(commands::tally::run(tally, &meter)?),
        #[cfg(feature = "silo")]
        Command::Apply(apply) => Box::new(commands::apply::run(apply, &meter)?),
        #[cfg(feature = "silo")]
        Command::Eval(EvalCommand::Perplexity(perplexity)) => {
            Box::new(commands::eval_perplexity::run(perplexity, &meter)?)
        }
        #[cfg(feature = "federation")]
        Command::Init(init) => Box::new(commands::init::run(init)?),
        #[cfg(feature = "federation")]
        Command::Preflight(preflight) => Box::new(commands::preflight::run(preflight, &meter)?),
        #[cfg(feature = "federation")]
        Command::Key(KeyCommand::New(new)) => Box::new(commands::key::new(new)?),
        #[cfg(feature = "federation")]
        Command::Key(KeyCommand::Show(show)) => Box::new(commands::key::show(show)?),
        #[cfg(feature = "federation")]
        Command::Key(KeyCommand::Attestation(key)) => Box::new(commands::attestation_key::run(key)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::New(new)) => Box::new(commands::consortium::new(new)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Add(add)) => Box::new(commands::consortium::add(add)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Sign(sign)) => Box::new(commands::consortium::sign(sign)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Show(show)) => Box::new(commands::consortium::show(show)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Renew(renew)) => Box::new(commands::consortium::renew(renew)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Replace(replace)) => Box::new(commands::consortium::replace(replace)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Remove(remove)) => Box::new(commands::consortium::remove(remove)?),
        #[cfg(feature = "federation")]
        Command::Round(RoundCommand::New(new)) => Box::new(commands::round::new(new, &meter)?),
        #[cfg(feature = "federation")]
        Command::Round(RoundCommand::Show(show)) => Box::new(commands::round::show(show, &meter)?),
        #[cfg(feature = "federation")]
        Command::Round(RoundCommand::Preview(preview)) => Box::new(commands::round::preview(preview, &meter)?),
        #[cfg(feature = "federation")]
        Command::Round(RoundCommand::Approvals(approvals)) => Box::new(commands::round::approvals(approvals)?),
        #[cfg(feature = "federation")]
        Command::Round(RoundCommand::Approve(approve)) => Box::new(commands::round::approve(approve, &meter)?),
        #[cfg(feature = "federation")]
        Command::Node(NodeCommand::Run(run)) if run.show_settings => {
            Box::new(settings::SettingsReport::new(&run.home, &arguments.settings))
        }
        #[cfg(feature = "federation")]
        Command::Node(NodeCommand::Run(run)) => Box::new(commands::node::run(run, arguments.global.format)?),
        #[cfg(feature = "federation")]
        Command::Node(NodeCommand::Install(install)) => {
            Box::new(commands::node_install::run(install, &arguments.settings)?)
        }
        #[cfg(feature = "federation")]
        Command::Completions(completions) => Box::new(commands::command_line::completions(completions)),
        #[cfg(feature = "federation")]
        Command::Man(man) => Box::new(commands::command_line::man(man)?),
        #[cfg(feature = "federation")]
        Command::Node(NodeCommand::Status(status)) => Box::new(commands::node::status(status)?),
        #[cfg(feature = "federation")]
        Command::Node(NodeCommand::Watch(watch)) => Box::new(commands::watch::run(watch)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Verify(verify)) => Box::new(commands::audit::verify(verify, &meter)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Report(report)) => Box::new(commands::audit::report(report, &meter)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Show(show)) => Box::new(commands::audit::show(show)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Compare(compare)) => Box::new(commands::proof::compare(compare)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Prove(prove)) => Box::new(commands::proof::prove(prove)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::CheckProof(check)) => Box::new(commands::proof::check(check)?),
        #[cfg(all(feature = "audit", feature = "federation"))]
        Command::Attest(AttestCommand::Ballot(ballot)) => Box::new(commands::attest_sign::ballot(ballot)?),
        #[cfg(all(feature = "audit", feature = "federation"))]
        Command::Attest(AttestCommand::Result(result)) => Box::new(commands::attest_sign::result(result, &meter)?),
        #[cfg(all(feature = "audit", feature = "federation"))]
        Command::Attest(AttestCommand::Model(model)) => Box::new(commands::attest_sign::model(model, &meter)?),
        #[cfg(feature = "audit")]
        Command::Attest(AttestCommand::Merge(merge)) => Box::new(commands::attest::merge(merge)?),
        #[cfg(feature = "audit")]
        Command::Attest(AttestCommand::Verify(verify)) => Box::new(commands::attest::verify(verify, &meter)?),
        #[cfg(feature = "federation")]
        Command::Testnet(TestnetCommand::Run(run)) => Box::new(commands::testnet::run(run, &meter)?),
        #[cfg(feature = "federation")]
        Command::Testnet(TestnetCommand::Generate(generate)) => Box::new(commands::testnet::generate(generate)?),
        #[cfg(feature = "federation")]
        Command::Testnet(TestnetCommand::Simulate(simulate)) => Box::new(commands::simulate::run(simulate, &meter)?),
        #[cfg(feature = "study")]
        Command::Study(StudyCommand::Run(run)) => commands::study::run(run, &meter)?,
        #[cfg(feature = "study")]
        Command::Study(StudyCommand::Report(report)) => Box::new(commands::study::report(report)?),
        #[cfg(feature = "federation")]
        Command::Demo(demo) => Box::new(commands::demo::run(demo, &meter)?),
    })
}
