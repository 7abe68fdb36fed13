//! `plexus-controller`: arguments, run, exit code.

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "plexus-controller", version, about = "Places work, collects events, serves the API")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks into files without a running controller
    Debug(plexus_controller::debug::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Debug(args) => plexus_controller::debug::run(args),
    }
}
