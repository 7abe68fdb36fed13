//! The door of a daemon: a Unix socket for the people of its machine.
//!
//! It answers status, nodes, routes, links, events, ping and trace, as the JSON of [`status`](crate::status), to root
//! and to group `plexus`; file permissions are the guard. Root, as the kernel vouches for it (SO_PEERCRED), may also
//! act on this daemon alone: [`Action`] and netcheck. Work is never touched here.
//!
//! The door knows no mesh, only somebody who can answer: [`Answers`].

mod action;
mod client;
mod forward;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use plexus_proto::id::NodeId;
use plexus_proto::local::{
    Local, LocalAnswer, LocalForward, LocalForwardKind, LocalQuery, LocalQueryKind, LocalServer,
};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Streaming};
use tracing::{debug, info, warn};

use crate::MeshStream;
use crate::status::{MeshEvents, MeshLinks, Netcheck, Ping, QueryError, Reloaded, Routes, Status, Trace};

pub use action::{ActError, Action};
pub use client::{ClientError, LocalClient};

/// Group whose members may ask.
const GROUP: &str = "plexus";
/// Queries of one connection that are answered at a time; further ones wait.
const QUERIES_AT_ONCE: usize = 16;
/// Waited at the end for answers that are under way; a ping to a silent node may take a minute.
const FAREWELL: Duration = Duration::from_secs(1);
/// Waited for an answer unless the query says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Waited at most, whatever the query says.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Who answers behind the door: a running mesh node, or a stand-in for it.
pub trait Answers: Send + Sync + 'static {
    /// Everything at once.
    fn status(&self) -> Status;

    /// One echo request to `node` and its answer.
    fn ping(&self, node: NodeId, timeout: Duration) -> impl Future<Output = Result<Ping, QueryError>> + Send;

    /// The path to `node`; each step is waited for no longer than `timeout`.
    fn trace(
        &self,
        node: NodeId,
        timeout: Duration,
    ) -> impl Future<Output = Result<Trace, QueryError>> + Send;

    /// The ways to every other node.
    fn routes(&self) -> Routes {
        Routes::of(&self.status())
    }

    /// Every link of the mesh that is known here.
    fn links(&self) -> MeshLinks {
        MeshLinks::of(&self.status())
    }

    /// What happened after event number `after`; waits for something to happen, no longer than `wait`.
    fn events(
        &self,
        _after: u64,
        _wait: Duration,
    ) -> impl Future<Output = Result<MeshEvents, ActError>> + Send {
        std::future::ready(Err(ActError::NotOffered("events")))
    }

    /// What UDP and TCP do between `from`, or this node, and `to`.
    fn netcheck(
        &self,
        _from: Option<NodeId>,
        _to: NodeId,
    ) -> impl Future<Output = Result<Netcheck, ActError>> + Send {
        std::future::ready(Err(ActError::NotOffered("netcheck")))
    }

    /// Reads the configuration again and takes over what may change while running: all of it or nothing.
    fn reload(&self) -> impl Future<Output = Result<Reloaded, ActError>> + Send {
        std::future::ready(Err(ActError::NotOffered("reload")))
    }

    /// Does what root of this machine asks, and answers with a JSON object of the verb's own. [`Action::Reload`] does
    /// not come here.
    fn act(&self, action: Action) -> impl Future<Output = Result<serde_json::Value, ActError>> + Send {
        std::future::ready(Err(ActError::NotOffered(action.name())))
    }

    /// Has `node` connect to `target`, `host:port` as that node sees it, and carries the connection on a stream;
    /// with `check` only asks whether it may, and the stream ends at once.
    fn forward(
        &self,
        _node: NodeId,
        _target: String,
        _check: bool,
    ) -> impl Future<Output = Result<MeshStream, ActError>> + Send {
        std::future::ready(Err(ActError::NotOffered("forward")))
    }
}

/// Why the door does not open.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A live daemon has it.
    #[error("another daemon answers at {0}; is this one running already?")]
    Taken(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("local socket failed")]
    Serve(#[source] tonic::transport::Error),
}

/// Binds `socket` and answers there until `shutdown` resolves. A daemon that wants to fail early binds a
/// [`LocalSocket`] itself.
///
/// # Errors
/// As [`LocalSocket::bind`] and [`LocalSocket::serve`].
pub async fn serve(
    answers: impl Answers,
    socket: &Path,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    LocalSocket::bind(socket).await?.serve(Arc::new(answers), shutdown).await
}

/// An open door: bound, with its permissions, not answering yet.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl LocalSocket {
    /// Binds `path`, whose folder exists. What a dead daemon left there is replaced, a live one's is not.
    ///
    /// # Errors
    /// A live daemon at that path, or a folder that cannot be written.
    pub async fn bind(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { path: path.to_owned(), source };
        if UnixStream::connect(path).await.is_ok() {
            return Err(ServeError::Taken(path.to_owned()));
        }
        // Under another name until its permissions are right; then in place at once.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        admit_group(&fresh);
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o660)).map_err(failed)?;
        std::fs::rename(&fresh, path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Answers until `shutdown` resolves, then removes the socket.
    ///
    /// # Errors
    /// A server that fails by itself.
    pub async fn serve(
        self,
        answers: Arc<impl Answers>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let stop = CancellationToken::new();
        let service = LocalServer::new(Door { answers });
        let serving = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(QUERIES_AT_ONCE)
            .serve_with_incoming_shutdown(service, incoming(self.listener), stop.cancelled());
        let shutdown = async {
            shutdown.await;
            stop.cancel();
            tokio::time::sleep(FAREWELL).await;
        };
        let served = tokio::select! {
            served = serving => served.map_err(ServeError::Serve),
            () = shutdown => Ok(()),
        };
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), error = &error as &dyn std::error::Error, "socket not removed");
        }
        served
    }
}

fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        if let Err(error) = &accepted {
            // Out of file descriptors, mostly: a pause lets others go, where a loop would only burn.
            warn!(error = error as &dyn std::error::Error, "cannot accept on the local socket");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some((accepted, listener))
    })
}

/// Gives the socket to group `plexus` where there is one and we may; otherwise it stays with our own group.
fn admit_group(path: &Path) {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(id) = group_id(&groups) else { return };
    if let Err(error) = std::os::unix::fs::chown(path, None, Some(id)) {
        debug!(path = %path.display(), error = &error as &dyn std::error::Error, "socket stays with our own group");
    }
}

fn group_id(groups: &str) -> Option<u32> {
    let line = groups.lines().find(|line| line.split(':').next() == Some(GROUP))?;
    line.split(':').nth(2)?.parse().ok()
}

struct Door<A> {
    answers: Arc<A>,
}

#[tonic::async_trait]
impl<A: Answers> Local for Door<A> {
    type ForwardStream = forward::Replies;

    async fn forward(
        &self,
        request: Request<Streaming<LocalForward>>,
    ) -> Result<Response<Self::ForwardStream>, tonic::Status> {
        is_root(&request).then_some(()).ok_or_else(|| only_root("forward"))?;
        let mut chunks = request.into_inner();
        let Some(LocalForward { kind: Some(LocalForwardKind::Open(open)) }) = chunks.message().await? else {
            return Err(tonic::Status::invalid_argument("first say where to"));
        };
        let stream = self.answers.forward(parse(&open.node)?, open.target, open.check).await?;
        Ok(Response::new(forward::carry(stream, chunks)))
    }

    async fn query(&self, request: Request<LocalQuery>) -> Result<Response<LocalAnswer>, tonic::Status> {
        let root = is_root(&request);
        let kind =
            request.into_inner().kind.ok_or_else(|| tonic::Status::unimplemented("query is unknown here"))?;
        match kind {
            LocalQueryKind::Status(_) => json(&self.answers.status()),
            LocalQueryKind::Nodes(_) => json(&self.answers.status().nodes()),
            LocalQueryKind::Ping(query) => {
                let node = parse(&query.node)?;
                json(&self.answers.ping(node, timeout(query.timeout_ms)).await.map_err(refuse)?)
            }
            LocalQueryKind::Trace(query) => {
                let node = parse(&query.node)?;
                json(&self.answers.trace(node, timeout(query.timeout_ms)).await.map_err(refuse)?)
            }
            LocalQueryKind::Routes(_) => json(&self.answers.routes()),
            LocalQueryKind::Links(_) => json(&self.answers.links()),
            LocalQueryKind::Events(query) => {
                let wait = Duration::from_millis(query.wait_ms.into()).min(TIMEOUT_MAX);
                json(&self.answers.events(query.after, wait).await?)
            }
            LocalQueryKind::Netcheck(query) => {
                root.then_some(()).ok_or_else(|| only_root("netcheck"))?;
                let from = Some(&query.from).filter(|from| !from.is_empty());
                let from = from.map(|from| parse(from)).transpose()?;
                json(&self.answers.netcheck(from, parse(&query.to)?).await?)
            }
            LocalQueryKind::Act(query) => {
                let action: Action = serde_json::from_str(&query.json)
                    .map_err(|error| tonic::Status::invalid_argument(format!("no action: {error}")))?;
                root.then_some(()).ok_or_else(|| only_root(action.name()))?;
                info!(action = action.name(), "root acts through the local socket");
                match action {
                    Action::Reload => json(&self.answers.reload().await?),
                    action => json(&self.answers.act(action).await?),
                }
            }
        }
    }
}

/// Whether the kernel says that root made this connection.
fn is_root<T>(request: &Request<T>) -> bool {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    peer.is_some_and(|peer| peer.uid() == 0)
}

fn only_root(verb: &str) -> tonic::Status {
    tonic::Status::permission_denied(format!("only root of this machine may {verb} here"))
}

fn parse(node: &str) -> Result<NodeId, tonic::Status> {
    node.parse().map_err(|error: plexus_proto::id::ParseError| refuse(QueryError::BadName(error.to_string())))
}

/// Zero means that the query leaves it to us.
fn timeout(millis: u32) -> Duration {
    match millis {
        0 => DEFAULT_TIMEOUT,
        millis => Duration::from_millis(millis.into()).min(TIMEOUT_MAX),
    }
}

fn json(answer: &impl Serialize) -> Result<Response<LocalAnswer>, tonic::Status> {
    match serde_json::to_string(answer) {
        Ok(json) => Ok(Response::new(LocalAnswer { json })),
        Err(error) => Err(tonic::Status::internal(error.to_string())),
    }
}

fn refuse(error: QueryError) -> tonic::Status {
    let text = error.to_string();
    match error {
        QueryError::BadName(_) => tonic::Status::invalid_argument(text),
        QueryError::UnknownNode(_) => tonic::Status::not_found(text),
        QueryError::Unreachable(_) | QueryError::ShuttingDown => tonic::Status::unavailable(text),
        QueryError::Timeout { .. } => tonic::Status::deadline_exceeded(text),
    }
}

#[cfg(test)]
mod tests;
