//! `plexus-node`: arguments, logs, exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use plexus_node::config::{Config, LogFormat, LogSection};
use plexus_node::join::{Csr, Join};
use plexus_node::{Node, shim};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Runs work units and forwards packets for the controllers of its mesh.
#[derive(Debug, Parser)]
#[command(name = "plexus-node", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node until SIGTERM or SIGINT. Units go on without it.
    Run {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Join a mesh with a token: make a key, have it certified, write a configuration that just works.
    Join(Join),
    /// Make a key and a request for `plexus ca sign`, for a machine that cannot reach the mesh.
    Csr(Csr),
    /// Read a configuration file and say what is wrong with it.
    CheckConfig {
        /// Configuration file.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    // The shim is no command for people, and must be small: neither arguments nor runtime are set up for it.
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|word| word == "shim") {
        return shim::main(args);
    }
    let result = match Args::parse().command {
        Command::Run { config } => run(&config),
        Command::CheckConfig { file } => check(&file),
        Command::Join(args) => join(args),
        Command::Csr(args) => plexus_node::join::csr(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plexus-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn join(args: Join) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(plexus_node::join::join(args))
}

fn check(file: &Path) -> anyhow::Result<()> {
    Config::load(file)?;
    println!("{} is fine", file.display());
    Ok(())
}

fn run(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    start_log(&config.log)?;
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A hop forwards packets and a node passes records on: two threads carry that, and cost little memory.
        .worker_threads(2)
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
        let node = Node::start(config, own).await?;
        node.reload_from(file.to_owned(), hangup);
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM received"),
            _ = interrupt.recv() => info!("SIGINT received"),
        }
        node.shutdown().await;
        Ok(())
    })
}

fn start_log(log: &LogSection) -> anyhow::Result<()> {
    // Levels by module; filters that know regular expressions as well are a tenth of the program.
    let filter: Targets = log
        .level
        .parse()
        .with_context(|| format!("log.level {:?} is neither a level nor a filter", log.level))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log_to = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
            log_to.with(lines.with_ansi(colour)).init();
        }
        LogFormat::Json => log_to.with(lines.json()).init(),
    }
    Ok(())
}
