//! The other side of the door.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use plexus_proto::local::{
    ActQuery, EventsQuery, LinksQuery, LocalClient as GrpcClient, LocalForwardOpen, LocalQuery,
    LocalQueryKind, NetcheckQuery, NodesQuery, PingQuery, RoutesQuery, StatusQuery, TraceQuery,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Action, forward};

/// Longest answer: a node takes some 400 bytes of JSON, and a mesh has thousands.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// Why a daemon's socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody there, or not for us.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The connection opened and then failed.
    #[error("connection to {path} failed")]
    Transport {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: tonic::transport::Error,
    },
    /// The daemon answered that it cannot.
    #[error("{}", .0.message())]
    Refused(Box<tonic::Status>),
}

/// A connection to the local socket of a daemon. Answers are JSON documents of [`status`](crate::status) as text.
#[derive(Debug, Clone)]
pub struct LocalClient {
    grpc: GrpcClient<Channel>,
}

impl LocalClient {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// No socket there, no daemon behind it, or no permission.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let connected = UnixStream::connect(path).await;
        let stream = connected.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        // Connected first, so that the reason why not is the system's own.
        let stream = Mutex::new(Some(stream));
        let connector = service_fn(move |_| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            std::future::ready(
                stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)),
            )
        });
        // The address is not used; it only has to be one.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|source| ClientError::Transport { path: path.to_owned(), source })?;
        Ok(Self { grpc: GrpcClient::new(channel).max_decoding_message_size(ANSWER_MAX) })
    }

    /// [`Status`](crate::status::Status).
    ///
    /// # Errors
    /// A daemon that does not answer.
    pub async fn status(&mut self) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Status(StatusQuery {})).await
    }

    /// [`Nodes`](crate::status::Nodes).
    ///
    /// # Errors
    /// A daemon that does not answer.
    pub async fn nodes(&mut self) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Nodes(NodesQuery {})).await
    }

    /// [`Ping`](crate::status::Ping).
    ///
    /// # Errors
    /// A node that is unknown, out of reach or silent.
    pub async fn ping(&mut self, node: &str, timeout: Duration) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Ping(PingQuery { node: node.to_owned(), timeout_ms: millis(timeout) }))
            .await
    }

    /// [`Trace`](crate::status::Trace).
    ///
    /// # Errors
    /// A node that is unknown or out of reach.
    pub async fn trace(&mut self, node: &str, timeout: Duration) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Trace(TraceQuery { node: node.to_owned(), timeout_ms: millis(timeout) }))
            .await
    }

    /// [`Routes`](crate::status::Routes).
    ///
    /// # Errors
    /// A daemon that does not answer.
    pub async fn routes(&mut self) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Routes(RoutesQuery {})).await
    }

    /// [`MeshLinks`](crate::status::MeshLinks).
    ///
    /// # Errors
    /// A daemon that does not answer.
    pub async fn links(&mut self) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Links(LinksQuery {})).await
    }

    /// [`MeshEvents`](crate::status::MeshEvents) after number `after`; the daemon waits for one, no longer than `wait`.
    ///
    /// # Errors
    /// A daemon that does not answer.
    pub async fn events(&mut self, after: u64, wait: Duration) -> Result<String, ClientError> {
        self.query(LocalQueryKind::Events(EventsQuery { after, wait_ms: millis(wait) })).await
    }

    /// [`Netcheck`](crate::status::Netcheck) from `from`, or the daemon's own node, to `to`; for root.
    ///
    /// # Errors
    /// A caller that is not root, or nodes that do not answer.
    pub async fn netcheck(&mut self, from: Option<&str>, to: &str) -> Result<String, ClientError> {
        let from = from.unwrap_or_default().to_owned();
        self.query(LocalQueryKind::Netcheck(NetcheckQuery { from, to: to.to_owned() })).await
    }

    /// What the daemon answers to `action`, as JSON; for root.
    ///
    /// # Errors
    /// A caller that is not root, or a daemon that cannot.
    pub async fn act(&mut self, action: &Action) -> Result<String, ClientError> {
        // The derived form has text keys only, which is all that can fail.
        let json = serde_json::to_string(action).unwrap_or_default();
        self.query(LocalQueryKind::Act(ActQuery { json })).await
    }

    /// Carries `connection` to `target` on `node`, `host:port` as that node sees it, until both directions have ended;
    /// for root.
    ///
    /// # Errors
    /// A caller that is not root, a node that cannot or may not connect, a connection that broke at either end.
    pub async fn forward(
        &self,
        node: &str,
        target: &str,
        connection: impl AsyncRead + AsyncWrite,
    ) -> Result<(), ClientError> {
        let open = LocalForwardOpen { node: node.to_owned(), target: target.to_owned(), check: false };
        forward::client(self.grpc.clone(), open, connection)
            .await
            .map_err(|status| ClientError::Refused(Box::new(status)))
    }

    /// Asks whether `node` allows [`forward`](Self::forward) to `target`; for root.
    ///
    /// # Errors
    /// A caller that is not root, a node that cannot be reached or does not allow it.
    pub async fn forward_check(&self, node: &str, target: &str) -> Result<(), ClientError> {
        let open = LocalForwardOpen { node: node.to_owned(), target: target.to_owned(), check: true };
        forward::client(self.grpc.clone(), open, tokio::io::empty())
            .await
            .map_err(|status| ClientError::Refused(Box::new(status)))
    }

    async fn query(&mut self, kind: LocalQueryKind) -> Result<String, ClientError> {
        let answer = self.grpc.query(LocalQuery { kind: Some(kind) }).await;
        answer.map(|answer| answer.into_inner().json).map_err(|status| ClientError::Refused(Box::new(status)))
    }
}

fn millis(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
}
