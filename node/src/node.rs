//! A running node: mesh, and, unless it is a hop, supervisor and services.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::local::{LocalSocket, ServeError};
use plexus_mesh::systemd::Manager;
use plexus_mesh::{Credentials, Mesh, port_forward};
use plexus_proto::id::Role;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::{Config, WorkSection};
use crate::door::Door;
use crate::supervisor::{self, Supervisor};
use crate::{SOFTWARE, serve, store_id};

/// Least time between two announcements that this node has news: each goes to every hop and controller.
const NEWS_PAUSE: Duration = Duration::from_secs(1);

/// A node that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates or key cannot be used.
    #[error("this node has no usable identity in identity_dir {}", dir.display())]
    Identity {
        /// Where they should be.
        dir: PathBuf,
        /// Which file, and what is wrong with it.
        #[source]
        source: plexus_mesh::identity::Error,
    },
    /// A controller's certificate.
    #[error("identity_dir {} holds the certificate of a controller; a node is certified as execution or hop", dir.display())]
    Controller {
        /// Where it was found.
        dir: PathBuf,
    },
    /// The data directory of a hop.
    #[error(transparent)]
    Store(#[from] store_id::Error),
    /// Units cannot run here.
    #[error(transparent)]
    Supervisor(#[from] supervisor::StartError),
    /// The mesh did not start.
    #[error("cannot join the mesh")]
    Mesh(#[from] plexus_mesh::StartError),
    /// The local socket cannot be had.
    #[error("cannot open the local socket")]
    Local(#[from] ServeError),
    /// A service cannot be offered.
    #[error("cannot offer a service")]
    Listen(#[from] plexus_mesh::ListenError),
}

/// A running node. End it with [`Node::shutdown`].
#[derive(Debug)]
pub struct Node {
    mesh: Mesh,
    supervisor: Option<Supervisor>,
    /// Keeps a hop's data directory to itself; a supervisor has its own.
    _store: Option<store_id::Store>,
    /// What it was started with, of which some can only be changed by another start.
    config: Arc<Config>,
    manager: Arc<Manager>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Node {
    /// Starts a node. `shim_binary` is this program, which is started once more for every unit.
    ///
    /// # Errors
    /// See [`StartError`]; the texts, with their sources, say what to do.
    pub async fn start(config: Config, shim_binary: PathBuf) -> Result<Self, StartError> {
        plexus_mesh::install_crypto_provider();
        let dir = config.identity_dir.clone();
        let credentials = credentials(&config)?;
        let identity = credentials.identity().clone();
        let (supervisor, store) = match identity.role {
            Role::Controller => return Err(StartError::Controller { dir: dir.clone() }),
            Role::Hop => {
                if config.work != WorkSection::default() {
                    warn!(node = %identity.node, "a hop runs no units; section [work] has no effect");
                }
                (None, Some(store_id::Store::open(&config.data_dir)?))
            }
            Role::Execution => {
                let options = supervisor::Options {
                    data_dir: config.data_dir.clone(),
                    runtime_dir: config.runtime_dir.clone(),
                    shim_binary,
                    node: identity.node.clone(),
                    work: config.work.clone(),
                };
                (Some(Supervisor::start(options).await?), None)
            }
        };
        if let Some(folder) = config.socket.parent() {
            std::fs::create_dir_all(folder).ok(); // if that fails, binding says why
        }
        let local = LocalSocket::bind(&config.socket).await?;
        let mesh = Mesh::start(mesh_config(&config, credentials)).await?;
        mesh.keep_certified(&dir);
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let door = Door::new(mesh.clone(), supervisor.clone());
        let (answers, stop) = (Arc::new(door), cancel.clone());
        tasks.spawn(async move {
            if let Err(error) = local.serve(answers, stop.cancelled()).await {
                warn!(error = &error as &dyn std::error::Error, "local socket failed");
            }
        });
        if let Some(forwarding) = port_forward::serve(&mesh, config.forward.clone())? {
            let stop = cancel.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = forwarding => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        if let Some(supervisor) = &supervisor {
            serve::serve(&mesh, supervisor, &tasks, &cancel)?;
            let (mesh, supervisor, stop) = (mesh.clone(), supervisor.clone(), cancel.clone());
            tasks.spawn(async move { stop.run_until_cancelled(tell_news(&mesh, &supervisor)).await });
        }
        let manager = Arc::new(Manager::from_env());
        manager.ready();
        let (watched, stop) = (manager.clone(), cancel.clone());
        let (units, overlay) = (supervisor.clone(), mesh.clone());
        tasks.spawn(async move {
            let alive = async || {
                overlay.answers().await;
                if let Some(units) = &units {
                    units.answers().await;
                }
            };
            stop.run_until_cancelled(watched.keep_watched(alive)).await;
        });
        info!(node = %identity.node, role = %identity.role, listen = ?mesh.listen_addresses(), "node ready");
        Ok(Self { mesh, supervisor, _store: store, config: Arc::new(config), manager, tasks, cancel })
    }

    /// Reads `file` anew at each of `signals`, and when root asks at the local door: peers, listeners, rules and
    /// certificates are taken over, or nothing is. What needs a restart is named. Runs until the node shuts down.
    pub fn reload_from(&self, file: PathBuf, mut signals: tokio::signal::unix::Signal) {
        let started_with = self.config.clone();
        self.mesh.reload_from(move || {
            let config = Config::load(&file).map_err(|error| error.to_string())?;
            let keys = started_with.needs_restart(&config);
            if !keys.is_empty() {
                return Err(format!("only a restart changes {}; nothing was taken over", keys.join(", ")));
            }
            let credentials = credentials(&config).map_err(|error| {
                format!(
                    "{error}: {}",
                    std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
                )
            })?;
            Ok(mesh_config(&config, credentials))
        });
        let (mesh, manager, stop) = (self.mesh.clone(), self.manager.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            while let Some(Some(())) = stop.run_until_cancelled(signals.recv()).await {
                manager.reloading();
                // What changed is logged by the reload.
                match mesh.reload_again().await {
                    Ok(_) => manager.ready(),
                    Err(error) => {
                        manager.not_reloaded(&error.to_string());
                        warn!(
                            error = &error as &dyn std::error::Error,
                            "settings not reloaded, the old ones stay"
                        );
                    }
                }
            }
        });
    }

    /// The node in the mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The node's units; a hop has none.
    pub fn supervisor(&self) -> Option<&Supervisor> {
        self.supervisor.as_ref()
    }

    /// Ends services, tasks and links. Running units go on in their shims, for the next node to find.
    pub async fn shutdown(self) {
        self.manager.stopping();
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(supervisor) = &self.supervisor {
            supervisor.shutdown().await;
        }
        self.mesh.shutdown().await;
    }
}

/// Announces that controllers should ask anew what this node has.
async fn tell_news(mesh: &Mesh, supervisor: &Supervisor) {
    loop {
        supervisor.news().await;
        mesh.tell_news().await;
        tokio::time::sleep(NEWS_PAUSE).await;
    }
}

fn credentials(config: &Config) -> Result<Credentials, StartError> {
    let dir = &config.identity_dir;
    Credentials::load(dir).map_err(|source| StartError::Identity { dir: dir.clone(), source })
}

fn mesh_config(config: &Config, credentials: Credentials) -> plexus_mesh::Config {
    plexus_mesh::Config {
        listen: config.mesh.listen.clone(),
        peers: config.mesh.peers(),
        kinds: config.mesh.kinds.clone(),
        policy: config.policy.clone(),
        mtu: config.mesh.mtu,
        ..plexus_mesh::Config::new(credentials, config.data_dir.join("mesh"), SOFTWARE)
    }
}
