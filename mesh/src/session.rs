//! Sessions: one end-to-end QUIC connection for each peer and class, over overlay packets.
//!
//! A session is made when a program first connects to the peer, or when the peer's first packet arrives. It has an
//! endpoint of its own, so that a full link, a kick after a change of route, or a flood concerns one peer only. Who is
//! at the other end is what its certificate says, and it must be the node that announcements certify for that address.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use plexus_proto::id::{Address, Identity};
use plexus_proto::packet::Class;
use quinn::{Connection, ConnectionError, TokioRuntime, TransportErrorCode, VarInt};
use rustls_pki_types::UnixTime;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::batch::Batch;
use crate::congestion::Kick;
use crate::endpoint::{ResetSecrets, quic_client, quic_server};
use crate::error::SessionError;
use crate::forward::Overlay;
use crate::identity::{self, Credentials, Verifier, peer_chain, peer_identity};
use crate::memory::Memory;
use crate::service::Services;
use crate::settings::{self, SERVER_NAME, SESSION_ALPN, SESSION_STREAMS, SESSION_STREAMS_MAX};
use crate::socket::{VirtualSocket, socket_address};
use crate::stream;
use crate::view::Directory;

/// Longest wait for a session: several round trips of the slowest paths, and a few lost packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// First wait for the peer after a kick, and the longest, before the next.
const KICK_AGAIN: Duration = Duration::from_millis(100);
const KICK_SELDOM: Duration = Duration::from_secs(2);
/// Longest wait at the end for peers to be told.
const FAREWELL: Duration = Duration::from_millis(300);
/// Least time between two warnings about one session.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// A session without connections is forgotten after one to two of these.
const SWEEP: Duration = Duration::from_secs(60);

/// Close codes of a session; stable, on the wire.
mod code {
    use quinn::VarInt;

    /// Orderly end of the process.
    pub(super) const SHUTDOWN: VarInt = VarInt::from_u32(0);
    /// The certificate is another node's.
    pub(super) const WRONG_PEER: VarInt = VarInt::from_u32(1);
    /// The peer has connected anew, so it has given up this connection.
    pub(super) const SUPERSEDED: VarInt = VarInt::from_u32(2);
    /// The peer's certificate was revoked.
    pub(super) const REVOKED: VarInt = VarInt::from_u32(3);
}

/// All sessions of a node.
#[derive(Debug)]
pub(crate) struct Sessions {
    overlay: Arc<Overlay>,
    services: Arc<Services>,
    directory: Arc<ArcSwap<Directory>>,
    crypto: ArcSwap<Crypto>,
    secrets: ResetSecrets,
    memory: Arc<Memory>,
    peers: DashMap<(Address, Class), Arc<Session>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    this: Weak<Sessions>,
}

/// What certificates are shown and demanded with; without transport settings, which are each session's own.
#[derive(Debug)]
struct Crypto {
    verifier: Arc<Verifier>,
    client: quinn::ClientConfig,
    server: quinn::ServerConfig,
}

impl Crypto {
    fn new(credentials: &Credentials) -> Self {
        Self {
            verifier: credentials.verifier(),
            client: quinn::ClientConfig::new(Arc::new(quic_client(credentials, SESSION_ALPN))),
            server: quinn::ServerConfig::with_crypto(Arc::new(quic_server(credentials, SESSION_ALPN))),
        }
    }

    /// The same with the transport of a session.
    fn with(&self, transport: &Arc<quinn::TransportConfig>) -> (quinn::ClientConfig, quinn::ServerConfig) {
        let (mut client, mut server) = (self.client.clone(), self.server.clone());
        // The peer has one address, and half-open connections of one node need no more than this.
        server.transport_config(transport.clone()).migration(false).max_incoming(8);
        client.transport_config(transport.clone());
        (client, server)
    }
}

/// The session with one peer in one class.
#[derive(Debug)]
pub(crate) struct Session {
    peer: Identity,
    socket: Arc<VirtualSocket>,
    endpoint: quinn::Endpoint,
    transport: Arc<quinn::TransportConfig>,
    kick: Kick,
    /// Receive window of its connections, in bytes.
    window: u32,
    live: Mutex<Live>,
    dialing: tokio::sync::Mutex<()>,
    /// Told of each change of the route to the peer.
    rerouted: Notify,
}

#[derive(Debug, Default)]
struct Live {
    dialed: Option<Established>,
    accepted: Option<Established>,
    /// Found without connections by the last sweep.
    idle: bool,
    reviving: Option<AbortHandle>,
    complained: Option<Instant>,
}

/// A connection, and who is certified to be there.
#[derive(Debug, Clone)]
struct Established {
    connection: Connection,
    peer: Arc<Identity>,
}

impl Sessions {
    pub(crate) fn start(
        overlay: Arc<Overlay>,
        services: Arc<Services>,
        credentials: &Credentials,
        directory: Arc<ArcSwap<Directory>>,
        cancel: &CancellationToken,
    ) -> Arc<Self> {
        let sessions = Arc::new_cyclic(|this| Self {
            overlay,
            services,
            directory,
            crypto: ArcSwap::from_pointee(Crypto::new(credentials)),
            secrets: ResetSecrets::of(credentials),
            memory: Arc::default(),
            peers: DashMap::new(),
            tasks: TaskTracker::new(),
            cancel: cancel.child_token(),
            this: this.clone(),
        });
        sessions.spawn(sweep(Arc::downgrade(&sessions)));
        let memory = sessions.memory.clone();
        sessions.spawn(async move { memory.keep().await });
        sessions
    }

    /// Opens a stream for `service` on the session with `peer`, which is made if there is none.
    pub(crate) async fn open(
        &self,
        peer: &Identity,
        service: &str,
        class: Class,
    ) -> Result<stream::MeshStream, SessionError> {
        loop {
            let session = self.session(peer, class)?;
            let established = match session.connection(self).await {
                // Swept away in this moment; there is room for a new one.
                Err(SessionError::ShuttingDown) if !self.cancel.is_cancelled() => continue,
                established => established?,
            };
            match stream::open(&established.connection, service, established.peer).await {
                Ok(stream) => return Ok(stream),
                // It died while nobody was looking. A fresh one is made, and its failure is final.
                Err(lost) => {
                    debug!(peer = %peer.node, error = &lost as &dyn std::error::Error, "session lost, dialing again");
                    session.forget(&established.connection);
                }
            }
        }
    }

    /// Delivers a packet of an inner connection. Only certified nodes of the mesh get a session, so what strangers'
    /// addresses can make us hold is bounded by the mesh's size.
    pub(crate) fn deliver(&self, batch: Batch) -> bool {
        let header = *batch.header();
        let key = (header.source, header.class);
        if let Some(session) = self.peers.get(&key) {
            return session.socket.deliver(batch);
        }
        let directory = self.directory.load();
        let Some(peer) = directory.by_address(header.source) else { return false };
        match self.session(peer, header.class) {
            Ok(session) => session.socket.deliver(batch),
            Err(_) => false,
        }
    }

    /// Shows and demands other certificates from now on; live connections stay.
    pub(crate) fn renew(&self, credentials: &Credentials) {
        let crypto = Arc::new(Crypto::new(credentials));
        self.crypto.store(crypto.clone());
        for session in &self.peers {
            session.endpoint.set_server_config(Some(crypto.with(&session.transport).1));
        }
    }

    /// Makes the sessions with `peer` send at once, and again until it answers: its route has changed.
    pub(crate) fn kick(&self, peer: Address) {
        for class in [Class::Control, Class::Bulk] {
            let Some(session) = self.peers.get(&(peer, class)).map(|session| session.clone()) else {
                continue;
            };
            let (cancel, overlay) = (self.cancel.clone(), self.overlay.clone());
            let reviving = self.tasks.spawn({
                let session = session.clone();
                async move {
                    tokio::select! {
                        () = session.revive(&overlay) => {}
                        () = cancel.cancelled() => {}
                    }
                }
            });
            session.revived_by(reviving.abort_handle());
        }
    }

    /// Ends the sessions with peers whose certificates were revoked.
    pub(crate) fn recheck(&self) {
        let refused = |session: &Arc<Session>| {
            let live = session.live.lock().expect("no code panics under this lock");
            let revoked = |kept: &&Established| {
                let verdict = peer_chain(&kept.connection)
                    .and_then(|chain| self.crypto.load().verifier.standing(&chain, UnixTime::now()));
                matches!(verdict, Err(identity::Error::Revoked { .. }))
            };
            live.dialed.iter().chain(&live.accepted).any(|kept| revoked(&kept))
        };
        self.peers.retain(|_, session| {
            let refused = refused(session);
            if refused {
                session.endpoint.close(code::REVOKED, b"certificate was revoked");
            }
            !refused
        });
    }

    /// A link of this node came or went, and memory with it.
    pub(crate) fn stir(&self) {
        self.memory.stir();
    }

    /// Ends all sessions, and waits a moment for the peers to be told.
    pub(crate) async fn shutdown(&self) {
        self.cancel.cancel();
        let endpoints: Vec<_> = self.peers.iter().map(|session| session.endpoint.clone()).collect();
        for endpoint in &endpoints {
            endpoint.close(code::SHUTDOWN, b"shutting down");
        }
        let told = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, told).await;
        self.peers.clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn session(&self, peer: &Identity, class: Class) -> Result<Arc<Session>, SessionError> {
        if self.cancel.is_cancelled() {
            return Err(SessionError::ShuttingDown);
        }
        let entry = self.peers.entry((peer.address, class));
        let session = entry.or_insert_with(|| {
            let session = Arc::new(self.create(peer, class));
            self.spawn(accept(self.this.clone(), session.clone()));
            session
        });
        Ok(session.clone())
    }

    fn create(&self, peer: &Identity, class: Class) -> Session {
        let kick = Kick::default();
        let transport = Arc::new(settings::session(class, &kick));
        let (_, server) = self.crypto.load().with(&transport);
        let socket = Arc::new(VirtualSocket::new(self.overlay.clone(), peer.address, class));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            self.secrets.endpoint_config(settings::INNER_MTU_CEILING),
            Some(server),
            socket.clone(),
            Arc::new(TokioRuntime),
        )
        .expect("a virtual socket always has an address, the one thing asked of it here");
        Session {
            peer: peer.clone(),
            socket,
            endpoint,
            transport,
            kick,
            window: settings::session_window(class),
            live: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            rerouted: Notify::new(),
        }
    }

    /// Takes a connection into use, if it is the peer's.
    fn adopt(
        &self,
        session: &Arc<Session>,
        connection: Connection,
        dialed: bool,
    ) -> Result<Established, SessionError> {
        let found = peer_identity(&connection, &self.crypto.load().verifier)
            .map_err(|error| SessionError::Identity(Arc::new(error)))
            .and_then(|found| {
                let same = (&found.mesh, &found.node, found.address)
                    == (&session.peer.mesh, &session.peer.node, session.peer.address);
                if same { Ok(found) } else { Err(SessionError::WrongPeer { found: found.uri() }) }
            });
        let peer = match found {
            Ok(found) => Arc::new(found),
            Err(error) => {
                connection.close(code::WRONG_PEER, b"certificate is not of this address");
                return Err(error);
            }
        };
        let established = Established { connection, peer };
        self.memory.stir();
        let before = session.keep(established.clone(), dialed);
        if let Some(before) = before {
            before.connection.close(code::SUPERSEDED, b"peer has connected anew");
        }
        self.spawn(serve(self.services.clone(), session.clone(), established.clone(), self.tasks.clone()));
        Ok(established)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = cancel.cancelled() => {}
            }
        });
    }
}

impl Session {
    /// The live connection, dialed if there is none. Concurrent callers share one dial.
    async fn connection(self: &Arc<Self>, sessions: &Sessions) -> Result<Established, SessionError> {
        if let Some(established) = self.established() {
            return Ok(established);
        }
        let _turn = self.dialing.lock().await;
        if let Some(established) = self.established() {
            return Ok(established);
        }
        let dialed = tokio::time::timeout(CONNECT_TIMEOUT, self.dial(sessions)).await;
        sessions.adopt(self, dialed.map_err(|_| SessionError::Timeout(CONNECT_TIMEOUT))??, true)
    }

    /// Dials until there is an answer: anew when the route changes under a dial whose packets may have died with the old one.
    async fn dial(&self, sessions: &Sessions) -> Result<Connection, SessionError> {
        let address = socket_address(self.peer.address);
        loop {
            let (client, _) = sessions.crypto.load().with(&self.transport);
            let connecting = self
                .endpoint
                .connect_with(client, address, SERVER_NAME)
                .map_err(|_| SessionError::ShuttingDown)?;
            let lost = async {
                // What is younger may yet be answered, or is repeated soon.
                tokio::time::sleep(settings::FIRST_RTT).await;
                self.rerouted.notified().await;
            };
            tokio::select! {
                connection = connecting => return Ok(connection?),
                () = lost => debug!(peer = %self.peer.node, "route changed, dialing again"),
            }
        }
    }

    fn established(&self) -> Option<Established> {
        let live = self.live.lock().expect("no code panics under this lock");
        let alive = |kept: &&Established| kept.connection.close_reason().is_none();
        live.dialed.as_ref().filter(alive).or(live.accepted.as_ref().filter(alive)).cloned()
    }

    /// Remembers a connection; returns the one of the same direction that it replaces.
    fn keep(&self, established: Established, dialed: bool) -> Option<Established> {
        let mut live = self.live.lock().expect("no code panics under this lock");
        let slot = if dialed { &mut live.dialed } else { &mut live.accepted };
        slot.replace(established)
    }

    fn forget(&self, connection: &Connection) {
        let mut live = self.live.lock().expect("no code panics under this lock");
        let Live { dialed, accepted, .. } = &mut *live;
        for slot in [dialed, accepted] {
            if slot.as_ref().is_some_and(|kept| kept.connection.stable_id() == connection.stable_id()) {
                *slot = None;
            }
        }
    }

    /// Dials anew where a dial waits for an answer that went another way, then kicks until the peer has been heard twice,
    /// each time after a kick.
    ///
    /// Once is not enough. A map may be older than the mesh when a route appears in it, so the first kick may go
    /// nowhere; and what is heard after it may be the peer's own kick, which a full window keeps us from
    /// acknowledging.
    async fn revive(&self, overlay: &Overlay) {
        self.rerouted.notify_waiters();
        let (mut wait, mut answers) = (KICK_AGAIN, 0);
        while answers < 2 && self.endpoint.open_connections() > 0 && overlay.has_route(self.peer.address) {
            let heard = self.socket.heard();
            self.kick();
            tokio::time::sleep(wait).await;
            if self.socket.heard() > heard {
                (wait, answers) = (KICK_AGAIN, answers + 1);
            } else {
                wait = (wait * 2).min(KICK_SELDOM);
            }
        }
    }

    /// Notes who revives the session, in place of whoever did before.
    fn revived_by(&self, reviving: AbortHandle) {
        let mut live = self.live.lock().expect("no code panics under this lock");
        if let Some(before) = live.reviving.replace(reviving) {
            before.abort();
        }
    }

    /// Warns, but not as often as somebody on the way can make us: anyone there may send packets in the peer's name.
    fn complain(&self, error: &(dyn std::error::Error + 'static), what: &'static str) {
        let now = Instant::now();
        let loud = {
            let mut live = self.live.lock().expect("no code panics under this lock");
            let loud = live.complained.is_none_or(|at| now.duration_since(at) > COMPLAIN_EVERY);
            if loud {
                live.complained = Some(now);
            }
            loud
        };
        if loud {
            warn!(peer = %self.peer.node, error, "{what}");
        } else {
            debug!(peer = %self.peer.node, error, "{what}");
        }
    }

    /// Makes live connections send something that the peer acknowledges.
    ///
    /// It is the permission to send one byte more, which quinn sends at once when its window grows and which costs nothing;
    /// the window is what it was again before any of it is used. A rebind to the same socket would make it ping as well,
    /// but takes another connection ID each time, so that the peer's word that it knows none of them goes unheard; and
    /// when both come in one turn, quinn-proto 0.11.19 panics over a connection that is gone ("invalid key").
    fn kick(&self) {
        self.kick.kick();
        let live = self.live.lock().expect("no code panics under this lock");
        for Established { connection, .. } in live.dialed.iter().chain(&live.accepted) {
            connection.set_receive_window(VarInt::from_u32(self.window + 1));
            connection.set_receive_window(VarInt::from_u32(self.window));
        }
    }

    /// Whether nothing has used the session since the last call.
    fn idles(&self) -> bool {
        let unused = self.endpoint.open_connections() == 0 && self.dialing.try_lock().is_ok();
        let mut live = self.live.lock().expect("no code panics under this lock");
        std::mem::replace(&mut live.idle, unused) && unused
    }
}

/// Accepts the peer's connections until the session's endpoint closes.
async fn accept(sessions: Weak<Sessions>, session: Arc<Session>) {
    let endpoint = session.endpoint.clone();
    while let Some(incoming) = endpoint.accept().await {
        let Some(sessions) = sessions.upgrade() else { return };
        let session = session.clone();
        let weak = sessions.this.clone();
        sessions.spawn(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, incoming).await {
                Ok(Ok(connection)) => {
                    let Some(sessions) = weak.upgrade() else { return };
                    if let Err(error) = sessions.adopt(&session, connection, false) {
                        session.complain(&error, "session refused");
                    }
                }
                Ok(Err(ConnectionError::ConnectionClosed(close)))
                    if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
                {
                    debug!(peer = %session.peer.node, "peer gave up its dial");
                }
                Ok(Err(error)) => session.complain(&error, "session handshake failed"),
                Err(_) => debug!(peer = %session.peer.node, "session handshake timed out"),
            }
        });
    }
}

/// Gives the peer's streams to their services until the connection ends.
async fn serve(services: Arc<Services>, session: Arc<Session>, established: Established, tasks: TaskTracker) {
    let Established { connection, peer } = established;
    // Each open stream holds a clone.
    let places = Arc::new(());
    let mut permitted = SESSION_STREAMS;
    let lost = loop {
        match connection.accept_bi().await {
            Ok((send, receive)) => {
                let (services, peer, place) = (services.clone(), peer.clone(), places.clone());
                if let Some(more) = room(permitted, Arc::strong_count(&places)) {
                    permitted = more;
                    connection.set_max_concurrent_bi_streams(VarInt::from_u32(more));
                }
                // Bounded by the streams that the transport permits.
                tasks.spawn(admit(services, peer, send, receive, place));
            }
            Err(lost) => break lost,
        }
    };
    debug!(peer = %peer.node, error = &lost as &dyn std::error::Error, "session ended");
    session.forget(&connection);
}

/// How many streams a session permits from now on; `None` while half of those it permits are free.
fn room(permitted: u32, open: usize) -> Option<u32> {
    let is_enough = open <= permitted as usize / 2 || permitted >= SESSION_STREAMS_MAX;
    (!is_enough).then(|| (2 * permitted).min(SESSION_STREAMS_MAX))
}

async fn admit(
    services: Arc<Services>,
    peer: Arc<Identity>,
    send: quinn::SendStream,
    mut receive: quinn::RecvStream,
    place: Arc<()>,
) {
    let permit = match stream::read_open(&mut receive).await {
        Ok(open) => services.admit(&open.service, &peer).map_err(|refusal| (refusal, Some(open.service))),
        Err(refusal) => Err((refusal, None)),
    };
    match permit {
        Ok(permit) => {
            permit.send(stream::MeshStream::new(send, receive, peer, Some(place)));
        }
        Err((refusal, service)) => {
            debug!(peer = %peer.node, service, %refusal, "stream refused");
            stream::refuse(send, receive, refusal);
        }
    }
}

/// Forgets sessions that nobody uses.
async fn sweep(sessions: Weak<Sessions>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(sessions) = sessions.upgrade() else { return };
        sessions.peers.retain(|_, session| {
            let idles = session.idles();
            if idles {
                session.endpoint.close(VarInt::from_u32(0), b"idle");
                sessions.memory.stir();
            }
            !idles
        });
    }
}

#[cfg(test)]
mod tests;
