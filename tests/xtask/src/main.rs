//! Build automation that is more than a line of shell: the demo, the benches, checks of the documentation.
//!
//! Run through `make`; see `make help`.

mod demo;

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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Demo(options) => demo::run(&options),
        Command::DemoStop(options) => demo::stop(&options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
