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
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::commands::{links::Links, nodes::Nodes, routes::Routes, status::Status};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::settings::{Controller, Settings};
use crate::watch::look;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    plexus_mesh::install_crypto_provider();
    let args = Args::parse();
    let mut output = Output::new(args.format(), args.color);
    let ended = run(args, &mut output).await;
    let exit = match ended {
        Ok(exit) => exit,
        Err(failure) => output.failure(&failure),
    };
    exit.into()
}

async fn run(args: Args, output: &mut Output) -> Result<Exit, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    let controller = || door::controller(Controller::find(args.controller.clone(), env));
    let settings = Settings::new(args.socket, args.controller.clone(), env);
    let watch = args.watch;
    match args.command {
        Command::Status => look(&Status, &settings, watch, output).await,
        Command::Nodes => look(&Nodes, &settings, watch, output).await,
        Command::Links => look(&Links, &settings, watch, output).await,
        Command::Routes => look(&Routes, &settings, watch, output).await,
        Command::Job(job) => commands::job::run(&api::Api::open(&settings)?, job, output).await,
        Command::Ping(ping) => commands::ping::run(&mut door::open(&settings).await?, ping, output).await,
        Command::Trace(trace) => commands::trace::run(&mut door::open(&settings).await?, trace, output).await,
        Command::Netcheck(netcheck) => {
            commands::netcheck::run(&mut door::open(&settings).await?, netcheck, output).await
        }
        Command::Events(events) => {
            commands::events::run(&mut door::open(&settings).await?, events, output).await
        }
        Command::Forward(forward) => {
            commands::forward::run(&mut door::open(&settings).await?, forward, output).await
        }
        Command::Reload => commands::reload::run(&mut door::open(&settings).await?, output).await,
        Command::Token(token) => commands::token::run(&controller()?, token, output).await,
        Command::Ca(command) => commands::ca::run(command, output),
        Command::Node(verb) => commands::node::run(&settings, controller, verb, output).await,
        Command::Work(work) => commands::work::run(&controller()?, work, watch, output).await,
        Command::Doctor(doctor) => commands::doctor::run(&settings, doctor, output).await,
        Command::Completion { shell } => commands::completion::script(shell, output),
        Command::Man { dir, markdown } => commands::man::run(dir.as_deref(), markdown, output),
        Command::Complete { words } => commands::completion::complete(&settings, &words, output).await,
    }
}
