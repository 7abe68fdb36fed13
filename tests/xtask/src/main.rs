//! Build automation that is more than a line of shell: the demo, the benches, checks of the documentation.
//!
//! Run through `make`; see `make help`.

mod bench;
mod compatibility;
mod demo;
mod feed;
mod mutants;
mod pages;
mod probe;
mod report;
mod sim;

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
    /// Measures and prints a table.
    Bench(bench::Options),
    /// Checks links and commands of the documentation, and that the reference is what the programs say.
    Docs(pages::Options),
    /// Takes safety lines out of the product, one at a time, and demands that tests fail.
    Mutants(mutants::Options),
    /// Lives troubled lives of a simulated mesh, or measures quiet ones.
    Sim(sim::Options),
    /// Says how many tests ran and names those that were skipped.
    TestReport(report::Options),
    /// What a bench starts in place of a worker: writes when it began.
    #[command(hide = true)]
    Probe(probe::Probe),
    /// What a bench starts in place of a worker: copies its payload.
    #[command(hide = true)]
    Capture(probe::Capture),
    /// What a bench starts in place of a worker: prints lines, as many bytes as it is told.
    #[command(hide = true)]
    Flood(probe::Flood),
    /// What a bench starts in place of a worker: prints a prepared stream, as fast as it can or at a rate.
    #[command(hide = true)]
    Feed(feed::Options),
}

fn main() -> ExitCode {
    let began = probe::monotonic();
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Demo(options) => demo::run(&options),
        Command::DemoStop(options) => demo::stop(&options),
        Command::Docs(options) => pages::run(&options),
        Command::TestReport(options) => report::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Sim(options) => sim::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Probe(options) => probe::run(&options, began),
        Command::Capture(options) => probe::capture(&options),
        Command::Flood(options) => probe::flood(&options),
        Command::Feed(options) => feed::run(&options),
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
