//! The running controller: opened in order, stopped in the opposite one.
//!
//! Everything that can be refused is looked at before the first port is bound: configuration, identity, database,
//! keys. A controller that says it is ready has its API open; its nodes come and go.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_mesh::Mesh;
use plexus_mesh::identity::Credentials;
use plexus_mesh::local::LocalSocket;
use plexus_mesh::systemd::Manager;
use plexus_proto::id::Role;
use plexus_tree::Store;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::enrolment::Enrolment;
use crate::http::{self, App};
use crate::https::Doors;
use crate::ingest::Ingest;
use crate::reconcile;
use crate::shown_mesh::ShownMesh;
use crate::store::core::CoreDb;
use crate::store::events::EventStore;
use crate::store::postgres::Server;
use crate::store::{retention, updates};
use crate::vault::Vault;
use crate::{auth, fleet, fresh, image_care, stray};

/// Environment variable with the administrator's password of a first start. Without it one is made and shown once.
pub const ADMIN_PASSWORD: &str = "PLEXUS_CONTROLLER_ADMIN_PASSWORD";

/// Runs the controller until `shutdown`. At SIGHUP, and when root asks at the local door, peers, listeners and
/// certificates are taken over from `file`, which `config` is from. The API is served on the first of both runtimes, records of
/// jobs are taken in on the second, everything else runs here.
///
/// # Errors
/// What keeps it from starting, in words for an operator, or what ended it.
pub async fn run(
    config: Config,
    file: &Path,
    (api, records): (&Handle, &Handle),
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let credentials = Credentials::load(&config.identity_dir)
        .with_context(|| format!("cannot use the identity in {}", config.identity_dir.display()))?;
    let identity = credentials.identity().clone();
    ensure!(
        identity.role == Role::Controller,
        "the certificate in {} is for role {}, a controller needs one for role controller: \
         plexus ca issue --role controller --name {}",
        config.identity_dir.display(),
        identity.role,
        identity.node,
    );
    let core = open_core(&config).await?;
    let secrets = config.data_dir.join("secret");
    // Whoever changes the master key must not do so beneath a controller that goes on sealing with the old one.
    let _vault_is_ours = Vault::lock(&secrets)?;
    let vault = Vault::open(&secrets)?;
    let events = open_events(&config).await?;
    let store = Arc::new(Store::open(&config.data_dir.join("trees"))?);
    let doors = Doors::open(&config.http, &config.data_dir.join("https")).await?;
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let mesh =
        Mesh::start(mesh_config(&config, credentials.clone())).await.context("cannot start the mesh node")?;
    let file = file.to_owned();
    let started_with = config.clone();
    mesh.reload_from(move || {
        let config = Config::load(&file).map_err(|error| error.to_string())?;
        let keys = started_with.needs_restart(&config);
        if !keys.is_empty() {
            return Err(format!("only a restart changes {}; nothing was taken over", keys.join(", ")));
        }
        let credentials = Credentials::load(&config.identity_dir)
            .map_err(|error| format!("{:#}", anyhow::anyhow!(error)))?;
        Ok(mesh_config(&config, credentials))
    });
    let enrolment = Enrolment::new(
        core.clone(),
        vault.clone(),
        credentials,
        config.enrolment.ca_dir.clone(),
        member_addresses(&config, &mesh),
        Duration::from_secs(config.enrolment.certificate_seconds),
    );
    enrolment.start(&mesh).await.context("cannot take calls for certificates")?;
    mesh.keep_certified(&config.identity_dir);
    let socket = LocalSocket::bind(&config.socket).await?;

    let shown = Arc::new(ShownMesh(mesh.clone()));
    let root = config.projects.root.clone();
    let mut app = App::open(
        core.clone(),
        vault.clone(),
        events.clone(),
        shown,
        root.clone(),
        identity.node.as_str(),
        shutdown.clone(),
    )
    .await?;
    app.enrolment = Some(Arc::new((enrolment, mesh.clone())));
    let wanted = std::env::var(ADMIN_PASSWORD).ok().map(Zeroizing::new);
    let made = auth::ensure_admin(&core, &app.auth, wanted.as_ref().map(|text| text.as_str())).await?;
    if let Some(password) = made {
        println!("admin password: {password}");
    }
    fresh::seed(&core, &config.fresh, &root).await?;

    let ours = shutdown.child_token();
    let (nodes, refusals, fleet) = fleet::spawn(mesh.clone(), core.clone(), ours.clone());
    app.nodes = nodes.clone();
    let stray = stray::spawn(mesh.clone(), core.clone(), nodes.clone(), ours.clone());
    let images = image_care::spawn(mesh.clone(), core.clone(), nodes.clone(), ours.clone());
    let context = reconcile::Context {
        core: core.clone(),
        events: events.clone(),
        ingest: Ingest::new(events.clone()),
        vault,
        mesh: mesh.clone(),
        nodes,
        refusals,
        projects: root,
        trees: Arc::default(),
        records: records.clone(),
        store: Arc::clone(&store),
    };
    let reconciler = reconcile::spawn(context, ours.clone());
    let retention = tokio::spawn({
        let (core, events, stop) = (core.clone(), events.clone(), ours.clone());
        let days = config.database.keep_jobs_days;
        retention::run(core, events, days, stop)
    });
    let sweeping = tokio::spawn(sweep_trees(core.clone(), store, ours.clone()));
    let manager = Arc::new(Manager::from_env());
    let reloading = tokio::spawn({
        let (mesh, manager, stop) = (mesh.clone(), manager.clone(), ours.clone());
        async move { stop.run_until_cancelled(reload_at(hangup, &mesh, &manager)).await.unwrap_or_default() }
    });
    let local = tokio::spawn(socket.serve(Arc::new(mesh.clone()), ours.clone().cancelled_owned()));
    tracing::info!(
        node = %identity.node,
        cluster = %identity.cluster,
        https = doors.https().map(tracing::field::display),
        http = doors.http().map(tracing::field::display),
        mesh = ?mesh.listen_addresses(),
        "controller ready"
    );
    manager.ready();
    let watched = tokio::spawn({
        let (mesh, manager, stop) = (mesh.clone(), manager.clone(), ours.clone());
        let (api, records) = (api.clone(), records.clone());
        // A database that is locked is waited for, so it does not count: routing does, and that each runtime has a turn.
        async move {
            let alive = async || {
                mesh.answers().await;
                let _ = api.spawn(std::future::ready(())).await;
                let _ = records.spawn(std::future::ready(())).await;
            };
            stop.run_until_cancelled(manager.keep_watched(alive)).await;
        }
    });
    let served = api.spawn(doors.serve(http::router(app), shutdown.clone())).await;

    manager.stopping();
    ours.cancel();
    for (what, task) in [
        ("fleet", fleet),
        ("stray", stray),
        ("images", images),
        ("reconciler", reconciler),
        ("retention", retention),
        ("trees", sweeping),
        ("reload", reloading),
        ("watchdog", watched),
    ] {
        if let Err(error) = task.await {
            tracing::error!(what, %error, "task ended badly");
        }
    }
    if let Ok(Err(error)) = local.await {
        tracing::error!(error = &error as &dyn std::error::Error, "local socket failed");
    }
    mesh.shutdown().await;
    events.close().await;
    core.close().await;
    tracing::info!("controller stopped");
    served.context("the API broke off")?.context("the API stopped")
}

/// Takes new settings at each signal, and tells what came of it.
async fn reload_at(mut signals: Signal, mesh: &Mesh, manager: &Manager) {
    while signals.recv().await.is_some() {
        manager.reloading();
        match mesh.reload_again().await {
            Ok(_) => manager.ready(), // what changed is logged by the reload
            Err(error) => {
                manager.not_reloaded(&error.to_string());
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "settings not reloaded, the old ones stay"
                );
            }
        }
    }
}

/// The file of jobs and settings in the data directory, where no server keeps them.
pub const CORE_FILE: &str = "core.sqlite";

/// Time between two looks for trees that nobody needs any more, and time for which they stay all the same: an update may be
/// taking in what it will need.
const SWEEP: Duration = Duration::from_secs(3600);

/// Removes trees that no project has and no job under way runs, every now and then.
async fn sweep_trees(core: CoreDb, store: Arc<Store>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stop.cancelled() => return,
        }
        let wanted = match updates::wanted(&core).await {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "trees in use cannot be told");
                continue;
            }
        };
        let swept = Arc::clone(&store);
        match tokio::task::spawn_blocking(move || swept.sweep(&wanted, SWEEP)).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(trees)) => tracing::info!(trees, "trees that nobody needs are gone"),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "trees cannot be removed");
            }
        }
    }
}

/// Opens the core database: on the server that is configured, otherwise in its file.
///
/// # Errors
/// What keeps it from opening, in words for an operator.
pub async fn open_core(config: &Config) -> anyhow::Result<CoreDb> {
    Ok(match server(config)? {
        Some(server) => CoreDb::connect(&server).await?,
        None => CoreDb::open(&config.data_dir.join(CORE_FILE)).await?,
    })
}

async fn open_events(config: &Config) -> anyhow::Result<EventStore> {
    Ok(match server(config)? {
        Some(server) => EventStore::connect(&server).await?,
        None => EventStore::open(&config.data_dir.join("events")).await?,
    })
}

fn server(config: &Config) -> anyhow::Result<Option<Server>> {
    let Some(url) = &config.database.url else { return Ok(None) };
    Server::new(url, config.database.password_file.as_deref()).map(Some).context("database.url")
}

/// Where new machines can reach a member, as far as this controller knows: what it was told, else whom it dials, and
/// where it listens itself.
fn member_addresses(config: &Config, mesh: &Mesh) -> Vec<String> {
    if !config.enrolment.addresses.is_empty() {
        return config.enrolment.addresses.clone();
    }
    let dialed = config.mesh.peers().into_iter().flat_map(|peer| peer.addresses);
    let own = mesh.listen_addresses().into_iter().filter(|address| !address.ip().is_unspecified());
    dialed.chain(own.map(|address| address.to_string())).take(16).collect()
}

fn mesh_config(config: &Config, credentials: Credentials) -> plexus_mesh::Config {
    plexus_mesh::Config {
        listen: config.mesh.listen.clone(),
        peers: config.mesh.peers(),
        kinds: config.mesh.kinds.clone(),
        policy: config.policy.clone(),
        mtu: config.mesh.mtu,
        ..plexus_mesh::Config::new(
            credentials,
            config.data_dir.join("mesh"),
            concat!("plexus-controller ", env!("CARGO_PKG_VERSION")),
        )
    }
}
