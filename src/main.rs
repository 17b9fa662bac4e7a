//! Parse, dispatch, print what went wrong.

use anyhow::Result;
use bupo::cli::{Cli, Command};
use bupo::commands::{self, start_threads};
use bupo::compute::memory::HugePages;
use bupo::run::{interrupt, progress};
use clap::Parser;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        // What a shell reports of a program that Ctrl-C ended.
        Ok(()) if interrupt::stopped() => ExitCode::from(130),
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    progress::set_quiet(cli.quiet);
    match &cli.command {
        // A recipe may name its threads; `train` makes the pool itself.
        Command::Train(args) => commands::train::run(args, cli.threads),
        // The runs compute, each in a process of its own.
        Command::Sweep(args) => commands::sweep::run(args, cli.threads),
        Command::Sft(args) => start_threads(cli.threads).and_then(|()| commands::sft::run(args)),
        Command::Analyze(args) => start_threads(cli.threads).and_then(|()| commands::analyze::run(args)),
        Command::Score(args) => start_threads(cli.threads).and_then(|()| commands::score::run(args)),
        Command::Ablate(args) => start_threads(cli.threads).and_then(|()| commands::ablate::run(args)),
        Command::States(args) => start_threads(cli.threads).and_then(|()| commands::states::run(args)),
        Command::Generate(args) => start_threads(cli.threads).and_then(|()| commands::generate::run(args)),
        Command::Evaluate(args) => start_threads(cli.threads).and_then(|()| commands::evaluate::run(args)),
        Command::Verify(args) => start_threads(cli.threads).and_then(|()| commands::verify::run(args)),
        Command::Compare(args) => start_threads(cli.threads).and_then(|()| commands::compare::run(args)),
        Command::Diff(args) => start_threads(cli.threads).and_then(|()| commands::diff::run(args)),
        Command::Merge(args) => start_threads(cli.threads).and_then(|()| commands::merge::run(args)),
        Command::Memory(args) => start_threads(cli.threads).and_then(|()| commands::memory::run(args)),
        Command::Report(args) => commands::report::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Bench(command) => start_threads(cli.threads).and_then(|()| commands::bench::run(command)),
    }
}

/// The reader of our output went away, as `head` does: no error of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|e| e.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
