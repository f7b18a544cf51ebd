//! The `fedprune` command line: parsing apart from doing.
//!
//! [`args`] is what can be typed; [`commands`] has one file a command, each returning a report; [`output`] prints a
//! report as text for people or JSON for machines; [`progress`] says on standard error how far things are.
//!
//! Standard output carries the report alone. Exit codes: 0 done, 1 failed, 2 not understood, 4 refused by policy, 130 stopped by a signal;
//! `audit verify` has 10, 11 and 12 for the verdicts that are not VERIFIED, `node run` 3 for an abandoned round.

#[cfg(not(any(feature = "silo", feature = "federation", feature = "audit")))]
compile_error!("`fedprune` without any command; enable at least one of the features `silo`, `federation`, `audit`");

pub mod args;
pub mod commands;
pub mod files;
pub mod interrupt;
pub mod output;
pub mod progress;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

#[cfg(feature = "audit")]
use args::AuditCommand;
#[cfg(feature = "study")]
use args::StudyCommand;
use args::{Arguments, Command};
#[cfg(feature = "federation")]
use args::{ConsortiumCommand, KeyCommand, NodeCommand, RoundCommand, TestnetCommand};
#[cfg(feature = "silo")]
use args::{EvalCommand, MaskCommand, ModelCommand};
use output::Report;
use progress::Meter;

/// Parses the process's arguments, runs the command, prints its report.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::install();
    let printed = |report: Box<dyn Report>| {
        output::print(&*report, arguments.global.format, &mut std::io::stdout()).map(|()| report.exit_code())
    };
    match run(&arguments).and_then(printed) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A closed pipe is no failure of ours: `fedprune … | head` has seen what it wanted.
            if output::is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            let stopped = error.chain().find_map(|cause| cause.downcast_ref::<interrupt::Stopped>());
            let (message, code) = match stopped {
                Some(stopped) => (stopped.to_string(), ExitCode::from(interrupt::EXIT_CODE)),
                None => (format!("error: {}", output::chain(&error)), failure(&error)),
            };
            // Nowhere is left to report a failing standard error.
            let _ = writeln!(std::io::stderr(), "{message}");
            code
        }
    }
}

/// The exit code of an error that is no signal.
fn failure(error: &anyhow::Error) -> ExitCode {
    #[cfg(feature = "federation")]
    if error.chain().any(|cause| cause.is::<fedprune_federation::PolicyRefusal>()) {
        return ExitCode::from(commands::REFUSED_BY_POLICY);
    }
    let _ = error;
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> anyhow::Result<Box<dyn Report>> {
    let meter = Meter::new(arguments.global.quiet);
    Ok(match &arguments.command {
        #[cfg(feature = "silo")]
        Command::Model(ModelCommand::Inspect(inspect)) => Box::new(commands::model_inspect::run(inspect, &meter)?),
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
        Command::Key(KeyCommand::New(new)) => Box::new(commands::key::new(new)?),
        #[cfg(feature = "federation")]
        Command::Key(KeyCommand::Show(show)) => Box::new(commands::key::show(show)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::New(new)) => Box::new(commands::consortium::new(new)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Add(add)) => Box::new(commands::consortium::add(add)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Sign(sign)) => Box::new(commands::consortium::sign(sign)?),
        #[cfg(feature = "federation")]
        Command::Consortium(ConsortiumCommand::Show(show)) => Box::new(commands::consortium::show(show)?),
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
        Command::Node(NodeCommand::Run(run)) => Box::new(commands::node::run(run, arguments.global.format)?),
        #[cfg(feature = "federation")]
        Command::Node(NodeCommand::Status(status)) => Box::new(commands::node::status(status)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Verify(verify)) => Box::new(commands::audit::verify(verify, &meter)?),
        #[cfg(feature = "audit")]
        Command::Audit(AuditCommand::Show(show)) => Box::new(commands::audit::show(show)?),
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
