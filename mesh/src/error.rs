//! What can go wrong with a mesh, by operation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fmt, io};

use plexus_proto::id::NodeId;
use quinn::VarInt;

use crate::authorization::Denied;
use crate::identity;

/// A mesh node that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address to listen on cannot be had.
    #[error("cannot listen on {protocol} {address}")]
    Listen {
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file with the announcement epoch cannot be read or written.
    #[error("cannot keep the announcement epoch in {path}")]
    Epoch {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file with the announcement epoch holds no number.
    #[error("{path} holds {found:?} instead of an epoch; write a number higher than any this node has used")]
    EpochContent {
        /// The file.
        path: PathBuf,
        /// Its content, cut to 40 characters.
        found: String,
    },
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A stream to a node that did not open.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No announcement of such a node has come here.
    #[error("node {node} is not known in this mesh")]
    Unknown {
        /// Who was asked for.
        node: NodeId,
    },
    /// The node is known, but no live path leads to it now.
    #[error("no route to node {node}")]
    Unreachable {
        /// Who was asked for.
        node: NodeId,
    },
    /// This node itself was asked for.
    #[error("node {node} is this node")]
    Myself {
        /// Who was asked for.
        node: NodeId,
    },
    /// The policy of this node forbids it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No end-to-end session could be made.
    #[error("cannot open a session with node {node}")]
    Session {
        /// Who was asked for.
        node: NodeId,
        /// Why not.
        #[source]
        source: SessionError,
    },
    /// This mesh is shutting down.
    #[error("mesh is shutting down")]
    ShuttingDown,
}

/// An end-to-end session that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(std::time::Duration),
    /// The connection failed, in its handshake or later.
    #[error("connection failed")]
    Connection(#[from] quinn::ConnectionError),
    /// Whoever answered holds another certificate than the node has.
    #[error("peer is certified as {found}")]
    WrongPeer {
        /// The identity in the certificate.
        found: String,
    },
    /// The peer's certificate is not valid any more.
    #[error("peer's certificate is not valid: {0}")]
    Identity(std::sync::Arc<identity::Error>),
    /// This mesh is shutting down.
    #[error("mesh is shutting down")]
    ShuttingDown,
}

/// A service that cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Someone in this process offers it already.
    #[error("service {0:?} is offered already")]
    Taken(String),
    /// A name that does not fit into the frame that opens a stream.
    #[error("service name {0:?} must be 1 to 255 bytes")]
    Name(String),
    /// This mesh is shutting down.
    #[error("mesh is shutting down")]
    ShuttingDown,
}

/// Why a node refused a stream. The numbers are on the wire and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// Nobody offers this service there.
    UnknownService = 1,
    /// The service is not for this peer: its role, or its cluster.
    NotAllowed = 2,
    /// No common protocol version.
    Version = 3,
    /// The service takes no more streams now.
    Busy = 4,
    /// The stream did not open with the frame that opens a stream.
    Malformed = 5,
}

impl Refusal {
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub(crate) fn from_code(code: VarInt) -> Option<Self> {
        let known = [Self::UnknownService, Self::NotAllowed, Self::Version, Self::Busy, Self::Malformed];
        known.into_iter().find(|refusal| refusal.code() == code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownService => "peer does not offer this service",
            Self::NotAllowed => "peer does not offer this service to this node",
            Self::Version => "peer speaks no common protocol version",
            Self::Busy => "peer takes no more streams of this service now",
            Self::Malformed => "peer could not read the opening of the stream",
        })
    }
}

/// What ended a stream before its time. Travels inside [`io::Error`]; see [`StreamError::of`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The peer refused it.
    #[error("stream refused: {0}")]
    Refused(Refusal),
    /// The peer's program let go of it before it was finished.
    #[error("stream reset by peer (code {0})")]
    Reset(u64),
    /// The session under it is gone: the peer restarted, shut down, or was out of reach for a minute.
    #[error("session lost")]
    Session(#[source] quinn::ConnectionError),
    /// It was ended on this side.
    #[error("stream is closed")]
    Closed,
}

impl StreamError {
    /// The cause inside an error of a [`MeshStream`](crate::MeshStream).
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    pub(crate) fn from_code(code: VarInt) -> Self {
        match Refusal::from_code(code) {
            Some(refusal) => Self::Refused(refusal),
            None => Self::Reset(code.into_inner()),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Refused(_) => io::ErrorKind::ConnectionRefused,
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Session(quinn::ConnectionError::TimedOut) => io::ErrorKind::TimedOut,
            StreamError::Session(_) => io::ErrorKind::ConnectionAborted,
            StreamError::Closed => io::ErrorKind::NotConnected,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_codes_are_stable() {
        let codes = [
            (Refusal::UnknownService, 1),
            (Refusal::NotAllowed, 2),
            (Refusal::Version, 3),
            (Refusal::Busy, 4),
            (Refusal::Malformed, 5),
        ];
        for (refusal, code) in codes {
            assert_eq!(refusal.code(), VarInt::from_u32(code));
            assert_eq!(Refusal::from_code(VarInt::from_u32(code)), Some(refusal));
        }
        assert_eq!(Refusal::from_code(VarInt::from_u32(0)), None);
    }

    #[test]
    fn the_cause_of_a_stream_error_is_found_again() {
        let error = io::Error::from(StreamError::from_code(VarInt::from_u32(2)));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(matches!(StreamError::of(&error), Some(StreamError::Refused(Refusal::NotAllowed))));
    }
}
