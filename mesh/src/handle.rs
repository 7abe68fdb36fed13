//! The handle that programs hold of their mesh node.

mod answers;
mod reload;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use plexus_proto::id::{Address, Identity, NodeId, Role};
use plexus_proto::packet::{Class, LinkNote, Probe};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::authorization::Denied;
use crate::batch::Batch;
use crate::config::Config;
use crate::driver::{self, Driver, DriverHandle, Event, Links, Published, Sought};
use crate::endpoint::Endpoints;
use crate::enrol::{self, Desk, Front};
use crate::error::{ConnectError, ListenError, SessionError, StartError};
use crate::events::Journal;
use crate::forward::{Allowance, Local, Overlay};
use crate::link::code;
use crate::node::{Neighbors, Node, random_u64};
use crate::probe::Probes;
use crate::revocation::List;
use crate::service::{Allow, Listener, Services};
use crate::session::Sessions;
use crate::stream::MeshStream;
use crate::trust::{Keys, Trust};
use crate::view::{Directory, View};
use crate::{epoch, install_crypto_provider, liveness, memory, netcheck};
use reload::{Fixed, Sources};
pub use reload::{ReloadError, ReloadReport};

/// Longest wait in [`Mesh::shutdown`] for neighbours to acknowledge the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// Longest wait for a hop that is asked who somebody is.
const LOOKUP: Duration = Duration::from_secs(2);

/// Senders that a node without a map asks about each second.
const STRANGERS_PER_SECOND: u64 = 16;

/// A running mesh node. Clones are cheap; when the last one is dropped, or [`shutdown`](Mesh::shutdown) is called, its
/// links close.
#[derive(Debug, Clone)]
pub struct Mesh(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    node: Arc<Node>,
    sessions: Arc<Sessions>,
    services: Arc<Services>,
    probes: Arc<Probes>,
    directory: Arc<ArcSwap<Directory>>,
    links: Arc<ArcSwap<Links>>,
    journal: Arc<Journal>,
    keys: Keys,
    view: watch::Receiver<Arc<View>>,
    tasks: TaskTracker,
    fixed: tokio::sync::Mutex<Fixed>,
    sources: Sources,
    _cancel: DropGuard,
}

impl Mesh {
    /// Binds the addresses, takes the next epoch, and begins to dial. Returns without waiting for any link; see
    /// [`watch`](Mesh::watch) for who is reachable.
    ///
    /// # Errors
    /// An address that cannot be had, or a state folder that cannot be written.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        install_crypto_provider();
        memory::fix_thresholds();
        let fixed = Fixed::of(&config);
        let Config { credentials, listen, peers, kinds, mtu, state_dir, policy, software } = config;
        let identity = credentials.identity().clone();
        let cancel = CancellationToken::new();
        let overlay = Arc::new(Overlay::new(&identity));
        let endpoints = Endpoints::new(&credentials, &kinds, mtu, overlay.drops.clone());
        let mut doors = Vec::new();
        for address in listen {
            doors.push(endpoints.bind(address, cancel.child_token()).await?);
        }
        let epoch = epoch::next(&state_dir)?;

        let services = Arc::new(Services::new(identity.clone()));
        services.go_by(policy);
        let directory: Arc<ArcSwap<Directory>> = Arc::default();
        let links: Arc<ArcSwap<Links>> = Arc::default();
        let journal: Arc<Journal> = Arc::default();
        let sessions =
            Sessions::start(overlay.clone(), services.clone(), &credentials, directory.clone(), &cancel);
        let probes = Arc::new(Probes::default());

        let (view_sender, view) = watch::channel(Arc::default());
        let (notices, noticed) = mpsc::unbounded_channel();
        let published = Published {
            view: view_sender,
            directory: directory.clone(),
            links: links.clone(),
            journal: journal.clone(),
            notices,
        };
        let watching: Arc<Notify> = Arc::default();
        let front = Arc::new(Front::new(credentials.clone(), sessions.clone(), view.clone()));
        let trust = Trust::open(credentials.verifier(), &state_dir);
        let keys = trust.keys.clone();
        let driver = Driver::new(
            credentials.clone(),
            trust,
            epoch,
            software.clone(),
            overlay.clone(),
            sessions.clone(),
            published,
        );
        let (driver_handle, inbox) = driver::channel();
        overlay.attach(Arc::new(Arrivals {
            sessions: Arc::downgrade(&sessions),
            probes: probes.clone(),
            directory: directory.clone(),
            strangers: (identity.role == Role::Execution).then(|| driver_handle.clone()),
            asked: Allowance::of(STRANGERS_PER_SECOND),
        }));

        let tasks = TaskTracker::new();
        let node = Arc::new(Node {
            identity,
            credentials: ArcSwap::from_pointee(credentials),
            overlay,
            endpoints,
            driver: driver_handle,
            software,
            boot_nonce: random_u64(),
            watch: watching.clone(),
            cancel: cancel.clone(),
            last_link: AtomicU64::new(0),
            front,
            renew_now: tokio::sync::Notify::new(),
            renewed: tokio::sync::Notify::new(),
            tasks: tasks.clone(),
            kinds,
            dialed: Mutex::default(),
            neighbors: Neighbors::default(),
        });
        tasks.spawn(driver.run(inbox, cancel.clone()));
        let driver = node.driver.clone();
        tasks.spawn(liveness::watch(node.identity.address, noticed, watching, driver, cancel.clone()));
        for door in doors {
            reload::open(&node, door);
        }
        let dialed = peers.into_iter().map(|peer| reload::dial(&node, peer)).collect();
        *node.dialed.lock().expect("no code panics under this lock") = dialed;
        let mesh = Self(Arc::new(Handle {
            node,
            sessions,
            services,
            probes,
            directory,
            links,
            journal,
            keys,
            view,
            tasks,
            fixed: tokio::sync::Mutex::new(fixed),
            sources: Sources::default(),
            _cancel: cancel.drop_guard(),
        }));
        // On a mesh this young the name is free.
        if let Ok(listener) = netcheck::listen(&mesh) {
            let weak = Arc::downgrade(&mesh.0);
            mesh.0.tasks.spawn(netcheck::serve(listener, move || weak.upgrade().map(Mesh)));
        }
        info!(node = %mesh.identity().node, listen = ?mesh.listen_addresses(), epoch, "mesh started");
        Ok(mesh)
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.0.node.identity
    }

    /// The bound addresses, with the ports that the system chose.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.0.node.endpoints.addresses()
    }

    /// Opens a stream to `service` on `node`. On a live session this costs no round trip: whether the node takes the
    /// stream shows at the first read, as [`StreamError::Refused`](crate::StreamError::Refused) if it does not.
    ///
    /// # Errors
    /// A node that is unknown or out of reach, or a session that cannot be made within ten seconds.
    pub async fn connect(
        &self,
        node: &NodeId,
        service: &str,
        class: Class,
    ) -> Result<MeshStream, ConnectError> {
        let named = || node.clone();
        if *node == self.identity().node {
            return Err(ConnectError::Myself { node: named() });
        }
        if self.0.node.cancel.is_cancelled() {
            return Err(ConnectError::ShuttingDown);
        }
        let Some(peer) = self.find(node).await else {
            return Err(ConnectError::Unknown { node: named() });
        };
        if !self.0.services.may_open(service, &peer) {
            let denied = Denied { service: service.to_owned(), node: named() };
            return Err(ConnectError::Denied(denied));
        }
        if !self.0.node.overlay.has_route(peer.address) {
            return Err(ConnectError::Unreachable { node: named() });
        }
        self.0.sessions.open(&peer, service, class).await.map_err(|source| match source {
            SessionError::ShuttingDown => ConnectError::ShuttingDown,
            source => ConnectError::Session { node: named(), source },
        })
    }

    /// The node of that name. An execution node, which keeps no map, asks its hops.
    pub(crate) async fn find(&self, node: &NodeId) -> Option<Identity> {
        if let Some(known) = self.0.directory.load().by_name(node) {
            return Some(known.clone());
        }
        self.look_up(Sought::Name(node.clone())).await;
        self.0.directory.load().by_name(node).cloned()
    }

    /// Asks for a node that is not known. Returns when there is an answer, or no hope of one.
    pub(crate) async fn look_up(&self, sought: Sought) {
        let (reply, answered) = oneshot::channel();
        self.0.node.driver.send(Event::Lookup(sought, reply)).await;
        let _ = tokio::time::timeout(LOOKUP, answered).await;
    }

    /// Offers `service` to the nodes that `allow` names, until the listener is dropped.
    ///
    /// # Errors
    /// A service that is offered already, or a name that is too long.
    pub fn listen(&self, service: &str, allow: Allow) -> Result<Listener, ListenError> {
        self.0.services.listen(service, allow)
    }

    /// Renews this node's certificate over the mesh whenever two thirds of its life are over, and keeps it in
    /// `identity_dir`. Streams go on. Call it once.
    pub fn keep_certified(&self, identity_dir: &Path) {
        let (node, dir) = (self.0.node.clone(), identity_dir.to_owned());
        self.0.tasks.spawn(enrol::renew::keep_certified(node, dir));
    }

    /// Puts a list of revocations in force here and in the whole mesh. Returns when it is in force here.
    pub async fn publish_revocations(&self, list: List) {
        let (done, told) = tokio::sync::oneshot::channel();
        self.0.node.driver.send(driver::Event::Revoke(list.signed, done)).await;
        let _ = told.await;
    }

    /// SHA-256 of the public key that `node` has announced itself with; `None` for one that was never seen here.
    pub fn key_of(&self, node: &NodeId) -> Option<[u8; 32]> {
        self.0.keys.lock().expect("no code panics under this lock").get(node).copied()
    }

    /// Decides on calls for certificates from now on: those at our own door, and those that members pass on.
    ///
    /// # Errors
    /// Somebody in this process does so already.
    pub fn serve_enrolment(&self, desk: Arc<dyn Desk>) -> Result<(), ListenError> {
        let mut listener = self.listen(enrol::SERVICE, enrol::FORWARDERS)?;
        let front = self.0.node.front.clone();
        if !front.set_desk(desk) {
            return Err(ListenError::Taken(enrol::SERVICE.to_owned()));
        }
        let cancel = self.0.node.cancel.clone();
        self.0.tasks.spawn(async move {
            let mut calls = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    stream = listener.accept() => {
                        let Some(stream) = stream else { break };
                        let front = front.clone();
                        // Bounded by the streams that sessions permit, and by the time a call may take.
                        calls.spawn(async move { front.passed_on(stream).await });
                    }
                    Some(_) = calls.join_next() => {}
                    () = cancel.cancelled() => break,
                }
            }
            calls.shutdown().await;
        });
        Ok(())
    }

    /// Who is in the mesh and reachable, now and after every change.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.clone()
    }

    /// Has all who [`watch`](Self::watch) the mesh see that this node has something new to say of itself; what, they ask. Each
    /// time is an announcement to the whole mesh: the caller sees to a measured pace.
    pub async fn tell_news(&self) {
        self.0.node.driver.send(Event::News).await;
    }

    /// Comes to its end when the task that owns all routing has taken notice: proof, for a watchdog, that it goes on.
    pub async fn answers(&self) {
        let (reply, noticed) = oneshot::channel();
        self.0.node.driver.send(Event::Alive(reply)).await;
        let _ = noticed.await;
    }

    /// Ends sessions and links, telling the other ends, and frees the sockets. Calling it again waits for the same end.
    pub async fn shutdown(&self) {
        let handle = &self.0;
        handle.services.close();
        handle.sessions.shutdown().await;
        handle.node.endpoints.close(code::SHUTDOWN, b"shutting down");
        handle.node.cancel.cancel();
        handle.tasks.close();
        handle.tasks.wait().await;
        handle.links.store(Arc::default());
        let _ = tokio::time::timeout(FAREWELL, handle.node.endpoints.freed()).await;
    }
}

/// Sends what arrives for this node to whom it concerns.
#[derive(Debug)]
struct Arrivals {
    /// Weak, for sessions hold the overlay that holds this.
    sessions: std::sync::Weak<Sessions>,
    probes: Arc<Probes>,
    directory: Arc<ArcSwap<Directory>>,
    /// Whom to ask about senders that are not known; nobody where a map is kept.
    strangers: Option<DriverHandle>,
    asked: Allowance,
}

impl Local for Arrivals {
    fn deliver(&self, batch: Batch) -> bool {
        let source = batch.header().source;
        let delivered = self.sessions.upgrade().is_some_and(|sessions| sessions.deliver(batch));
        if let Some(driver) = self.strangers.as_ref().filter(|_| !delivered)
            && self.directory.load().by_address(source).is_none()
            && self.asked.take()
        {
            // It will send its packet again, and then be known.
            driver.seek(source);
        }
        delivered
    }

    fn probed(&self, from: Address, reply: Probe, note: Option<LinkNote>) {
        self.probes.probed(from, reply, note);
    }
}
