//! Build automation that is more than a line of shell: the demo, the benches, checks of the documentation.
//!
//! Run through `make`; see `make help`.

mod demo;
mod pages;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "Demo, benches and checks of Plexus; run through make")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts a controller, a hop and an execution node, and runs a playbook across the hop.
    Demo(demo::Options),
    /// Stops a running demo.
    DemoStop(demo::StopOptions),
    /// Checks links and commands of the documentation.
    Docs,
    /// Says how many tests ran and names those that were skipped.
    TestReport(report::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Demo(options) => demo::run(&options),
        Command::DemoStop(options) => demo::stop(&options),
        Command::Docs => pages::run(),
        Command::TestReport(options) => report::run(&options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Top of the source tree.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
