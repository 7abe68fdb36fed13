//! Forwarding of TCP connections: the mesh service `forward`.
//!
//! The near side opens a stream, says in one frame where to, and reads one frame of answer; afterwards the stream
//! carries the bytes of one TCP connection, both directions and their ends apart. The far side connects only where its
//! own [`Policy`] allows the certified name of the near side to go; without a policy it does not offer the service.
//! Nothing is buffered beyond the stream's own window, so a slow reader at one end slows the writer at the other.

mod policy;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use plexus_proto::forward::{ForwardOpen, ForwardOpened};
use plexus_proto::frame;
use plexus_proto::id::{NodeId, Role};
use plexus_proto::packet::Class;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info};

use crate::Mesh;
use crate::error::{ConnectError, ListenError, Refusal, StreamError};
use crate::service::{Allow, Listener};
use crate::stream::MeshStream;

pub use policy::{Policy, PolicyError, Rule};

/// Name of the service.
const SERVICE: &str = "forward";
/// Longest frame of either side: a host name has 253 characters.
const FRAME_MAX: usize = 1024;
/// Longest wait for the frame that says where to.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the TCP connection at the far side.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait at the near side: the far one's, and a way there and back.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Every role may ask; the policy decides by name.
const ASKERS: Allow = Allow { roles: &[Role::Controller, Role::Execution, Role::Hop], same_cluster: true };

/// A connection that was not forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No stream to the node.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The node forwards nothing, or nothing of this node.
    #[error("node {0} forwards no ports to this node; its [forward] section may allow it")]
    NotOffered(NodeId),
    /// Its policy says no.
    #[error("node {node} does not allow {target} from here; its [forward] section may")]
    Denied {
        /// Who was asked.
        node: NodeId,
        /// Where to.
        target: String,
    },
    /// It tried, or has too much to do.
    #[error("node {node}: {text}")]
    Failed {
        /// Who was asked.
        node: NodeId,
        /// What it says.
        text: String,
    },
}

/// What the far side answers, on the wire.
mod code {
    pub(super) const OPEN: u32 = 0;
    pub(super) const DENIED: u32 = 1;
    pub(super) const FAILED: u32 = 2;
    pub(super) const BUSY: u32 = 3;
}

impl Mesh {
    /// Has `node` connect to `target`, `host:port` as that node sees it. The stream then carries the connection: its
    /// `shutdown` closes one direction, dropping it unfinished resets the far connection. With `check` the node only says
    /// whether its policy allows that; the stream has ended then.
    ///
    /// # Errors
    /// A node that cannot be reached, does not allow it, or cannot connect. Nothing is left behind then.
    pub async fn forward(
        &self,
        node: &NodeId,
        target: &str,
        check: bool,
    ) -> Result<MeshStream, ForwardError> {
        let mut stream = self.connect(node, SERVICE, Class::Bulk).await?;
        let failed = |text: String| ForwardError::Failed { node: node.clone(), text };
        let ask = async {
            let open = ForwardOpen { target: target.to_owned(), check };
            // A refusal shows at the read, and says more than a write that failed.
            let _ = stream.write_all(&frame::to_bytes(&open)).await;
            read_frame::<ForwardOpened>(&mut stream).await
        };
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, ask).await;
        match opened {
            Ok(Ok(ForwardOpened { code: code::OPEN, .. })) => Ok(stream),
            Ok(Ok(ForwardOpened { code: code::DENIED, .. })) => {
                Err(ForwardError::Denied { node: node.clone(), target: target.to_owned() })
            }
            // Words of a peer, for a terminal: no control characters, and an end.
            Ok(Ok(opened)) => {
                Err(failed(opened.text.chars().filter(|letter| !letter.is_control()).take(300).collect()))
            }
            Ok(Err(error)) => Err(match StreamError::of(&error) {
                Some(StreamError::Refused(Refusal::UnknownService | Refusal::NotAllowed)) => {
                    ForwardError::NotOffered(node.clone())
                }
                _ => failed(error.to_string()),
            }),
            Err(_) => Err(failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }
}

/// Offers the service on a node, as far as `policy` allows; a policy that allows nothing offers nothing. The task ends
/// with the mesh.
///
/// # Errors
/// A mesh that offers it already, or is shutting down.
pub fn serve(
    mesh: &Mesh,
    policy: Policy,
) -> Result<Option<impl Future<Output = ()> + Send + 'static + use<>>, ListenError> {
    if policy.is_empty() {
        return Ok(None);
    }
    let listener = mesh.listen(SERVICE, ASKERS)?;
    Ok(Some(accept(listener, Arc::new(policy))))
}

async fn accept(mut listener: Listener, policy: Arc<Policy>) {
    let turns = Arc::new(Semaphore::new(policy.max_connections()));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            Some(_) = connections.join_next() => continue,
        };
        let Some(stream) = stream else { return connections.shutdown().await };
        let (policy, turn) = (policy.clone(), turns.clone().try_acquire_owned().ok());
        connections.spawn(async move {
            let peer = stream.peer().node.clone();
            // Without a turn the answer is a refusal, so that the other side learns why.
            if let Err(error) = carry(stream, &policy, turn.is_some()).await {
                debug!(%peer, error = &error as &dyn std::error::Error, "forwarded connection broke");
            }
            drop(turn);
        });
    }
}

/// One connection, from its first frame to its last byte.
async fn carry(mut stream: MeshStream, policy: &Policy, turn: bool) -> io::Result<()> {
    let open = tokio::time::timeout(OPEN_TIMEOUT, read_frame::<ForwardOpen>(&mut stream)).await??;
    let peer = stream.peer().clone();
    if !policy.allows(&peer.node, &open.target) {
        info!(peer = %peer.node, target = open.target.escape_debug().to_string(), "forwarding denied by policy");
        return answer(&mut stream, code::DENIED, String::new()).await;
    }
    if open.check {
        return answer(&mut stream, code::OPEN, String::new()).await;
    }
    if !turn {
        return answer(&mut stream, code::BUSY, "forwards as many connections as it may".to_owned()).await;
    }
    let connected = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&open.target)).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => {
            let text = format!("cannot connect to {}: {error}", open.target);
            return answer(&mut stream, code::FAILED, text).await;
        }
        Err(_) => {
            let text = format!(
                "cannot connect to {}: no answer within {} s",
                open.target,
                CONNECT_TIMEOUT.as_secs()
            );
            return answer(&mut stream, code::FAILED, text).await;
        }
    };
    info!(peer = %peer.node, target = open.target, "connection forwarded");
    connected.set_nodelay(true).ok();
    stream.write_all(&frame::to_bytes(&ForwardOpened { code: code::OPEN, text: String::new() })).await?;
    join(&mut stream, connected).await
}

/// Carries bytes both ways until both directions have ended. An error on one side becomes a reset on the other: half
/// a conversation is not to pass for all of it.
async fn join(stream: &mut MeshStream, mut connection: TcpStream) -> io::Result<()> {
    let joined = copy_bidirectional(stream, &mut connection).await;
    if joined.is_err() {
        connection.set_zero_linger().ok();
    }
    joined.map(|_| ())
}

/// Says no, and why, and waits until that has been heard.
async fn answer(stream: &mut MeshStream, code: u32, text: String) -> io::Result<()> {
    stream.write_all(&frame::to_bytes(&ForwardOpened { code, text })).await?;
    stream.shutdown().await
}

/// Exactly one frame: what follows belongs to the connection.
async fn read_frame<M: Message + Default>(stream: &mut MeshStream) -> io::Result<M> {
    let length = stream.read_u32().await? as usize;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    M::decode(&body[..]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
