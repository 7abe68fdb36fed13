//! The controller's command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use plexus_controller::auth;
use plexus_controller::config::{Config, LogFormat};
use plexus_controller::http::{App, NoMesh, router};
use plexus_controller::https::Doors;
use plexus_controller::store::core::CoreDb;
use plexus_controller::vault::Vault;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(name = "plexus-controller", version, about = "Places work, collects events, serves the API")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the controller until SIGTERM.
    Run {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Run { config } = Arguments::parse().command;
    match start(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    logs(&config)?;
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(run(config))
}

fn logs(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level).context("log.level")?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

async fn run(config: Config) -> anyhow::Result<()> {
    let db = CoreDb::open(&config.data_dir.join("core.sqlite")).await?;
    let vault = Vault::open(&config.data_dir.join("secret"))?;
    let app =
        App::open(db.clone(), vault, Arc::new(NoMesh), config.projects.root.clone(), "controller").await?;
    let given =
        std::env::var("PLEXUS_CONTROLLER_ADMIN_PASSWORD").ok().filter(|password| !password.is_empty());
    if let Some(password) = auth::ensure_admin(&db, &app.auth, given.as_deref()).await? {
        println!("admin password: {password}");
    }
    let doors = Doors::open(&config.http, &config.data_dir.join("https")).await?;
    tracing::info!(https = ?doors.https(), http = ?doors.http(), "controller ready");
    let stop = CancellationToken::new();
    let serving = doors.serve(router(app), stop.clone());
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return Ok(served?),
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
    stop.cancel();
    serving.await?;
    db.close().await;
    Ok(())
}
