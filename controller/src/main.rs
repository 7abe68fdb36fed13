//! `plexus-controller`: arguments, configuration, logs, exit code.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use plexus_controller::config::{Config, LogFormat};
use plexus_controller::store::units;
use plexus_controller::vault::Vault;
use plexus_controller::{debug, rekey, service};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Places Ansible jobs on nodes of the mesh, collects their events, and serves AWX's API.
#[derive(Debug, Parser)]
#[command(name = "plexus-controller", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the controller until SIGTERM or SIGINT
    Run {
        /// Configuration file, TOML
        #[arg(long, value_name = "FILE", env = "PLEXUS_CONTROLLER_CONFIG")]
        config: PathBuf,
    },
    /// Reads and checks a configuration file, and says what is wrong with it
    CheckConfig {
        /// Configuration file, TOML
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
    /// Acts on the database of a controller that does not run
    Db {
        #[command(subcommand)]
        command: Db,
    },
    /// Seals all secrets with a new master key, while the controller does not run
    ///
    /// Goes on where it stopped when it is given again after an interruption; the controller starts with either state.
    Rekey {
        /// Configuration file, TOML
        #[arg(long, value_name = "FILE", env = "PLEXUS_CONTROLLER_CONFIG")]
        config: PathBuf,
    },
    /// Looks into files without a running controller
    Debug(debug::Args),
}

#[derive(Debug, Subcommand)]
enum Db {
    /// After a restore from a backup: goes above every epoch that nodes were shown since that backup
    Recovered {
        /// Configuration file, TOML
        #[arg(long, value_name = "FILE", env = "PLEXUS_CONTROLLER_CONFIG")]
        config: PathBuf,
        /// The highest incarnation that a node speaks of when it refuses this controller
        #[arg(long, value_name = "N", default_value_t = 0)]
        above: i64,
    },
}

/// How much later than the API's threads get their turn that take records in; by `nice(2)`, which needs no privilege.
const NICE: i32 = 10;

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Run { config } => run(&config),
        Command::CheckConfig { config } => check(&config),
        Command::Db { command: Db::Recovered { config, above } } => recovered(&config, above),
        Command::Rekey { config } => rekey(&config),
        Command::Debug(args) => debug::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plexus-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &std::path::Path) -> anyhow::Result<()> {
    Config::load(file)?;
    println!("{} is well", file.display());
    Ok(())
}

fn recovered(file: &std::path::Path, above: i64) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let core = service::open_core(&config).await?;
        let incarnation = units::recovered(&core, above).await?;
        core.close().await;
        println!("this database is now incarnation {incarnation} of its cluster; start the controller");
        Ok(())
    })
}

fn rekey(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let secrets = config.data_dir.join("secret");
    let _held = Vault::lock(&secrets)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let core = service::open_core(&config).await?;
        let vault = Vault::begin_rekey(&secrets)?;
        let done = rekey::rekey(&core, &vault).await?;
        core.close().await;
        Vault::end_rekey(&secrets)?;
        println!(
            "{} secrets in {} rows are sealed with a new master key; the old one is gone",
            done.fields, done.rows
        );
        Ok(())
    })
}

fn run(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    init_log(&config)?;
    plexus_mesh::install_crypto_provider();
    let threads = |name: &str, nice: i32| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // Fewer turns for who is nicer is all that it asks for, so a refusal does no harm.
        builder.on_thread_start(move || _ = rustix::process::setpriority_process(None, nice));
        builder.thread_name(name).enable_all().build()
    };
    // Who asks the API does not stand in line behind records that are opened, parsed and packed for milliseconds: each has
    // threads of its own. Those of records are nicer, and so are the threads of event files that they open: at each of
    // the dozen turns that a request takes among threads, it would else wait for a whole slice of theirs.
    let (runtime, api) = (threads("plexus", 0)?, threads("plexus-api", 0)?);
    let records = threads("plexus-records", NICE)?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asked = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("asked to stop");
            asked.cancel();
        });
        service::run(config, file, (api.handle(), records.handle()), shutdown).await
    })
}

fn init_log(config: &Config) -> anyhow::Result<()> {
    let filter: Targets = config.log.level.parse()?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log_to = tracing_subscriber::registry().with(filter);
    match config.log.format {
        LogFormat::Text => log_to.with(lines.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => log_to.with(lines.json()).init(),
    }
    Ok(())
}
