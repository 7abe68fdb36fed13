//! `plexus`: what people type.
//!
//! A command asks a daemon ([`door`]), renders the answer as text for people or passes on its JSON ([`output`]), and
//! ends with a documented exit code ([`failure`]). Every answer is rendered by a pure function, so that what people
//! see is kept by tests.

mod api;
mod args;
mod commands;
mod door;
mod failure;
mod http;
mod output;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::settings::Settings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    plexus_mesh::install_crypto_provider();
    let args = Args::parse();
    let mut output = Output::new(args.output, args.color);
    let ended = run(args, &mut output).await;
    let exit = match ended {
        Ok(exit) => exit,
        Err(failure) => output.failure(&failure),
    };
    exit.into()
}

async fn run(args: Args, output: &mut Output) -> Result<Exit, Failure> {
    let settings = Settings::new(args.socket, args.controller, |name| std::env::var(name).ok());
    match args.command {
        Command::Ca(command) => commands::ca::run(command, output),
        Command::Job(job) => commands::job::run(&api::Api::open(&settings)?, job, output).await,
        Command::Status => commands::status::run(&mut door::open(&settings).await?, output).await,
        Command::Nodes => commands::nodes::run(&mut door::open(&settings).await?, output).await,
        Command::Ping(ping) => commands::ping::run(&mut door::open(&settings).await?, ping, output).await,
        Command::Trace(trace) => commands::trace::run(&mut door::open(&settings).await?, trace, output).await,
    }
}
