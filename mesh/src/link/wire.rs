//! What a link runs on: a QUIC connection, or a TCP stream with TLS. And how it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use tokio::sync::watch;

use super::code;

/// Why a link ended.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum End {
    /// Its QUIC connection did.
    #[error(transparent)]
    Quic(#[from] ConnectionError),
    /// The neighbour closed its TCP stream, and said why.
    #[error("closed by peer: {reason} (code {code})")]
    Closed { code: u32, reason: String },
    /// We closed it.
    #[error("closed: {reason}")]
    Local { code: VarInt, reason: String },
    /// Nothing was heard on the TCP stream for this long.
    #[error("silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The TCP stream broke.
    #[error("stream broke")]
    Broken(#[source] Arc<io::Error>),
}

impl End {
    /// Whether the link was given up or torn away, and not merely closed by this end.
    pub(crate) fn is_loss(&self) -> bool {
        match self {
            Self::Local { code, .. } => [code::SILENT, code::SLOW].contains(code),
            Self::Quic(ConnectionError::LocallyClosed) => false,
            _ => true,
        }
    }

    /// The code with which the neighbour closed it.
    pub(crate) fn code(&self) -> Option<VarInt> {
        match self {
            Self::Quic(ConnectionError::ApplicationClosed(close)) => Some(close.error_code),
            Self::Closed { code, .. } => Some(VarInt::from_u32(*code)),
            _ => None,
        }
    }
}

/// A handle on what carries a link. Clones are cheap.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// With what this end said when it closed it, which the connection does not keep.
    Quic(Connection, Arc<OnceLock<End>>),
    Tcp(Arc<TcpWire>),
}

/// State of a TCP stream that several tasks serve.
#[derive(Debug)]
pub(crate) struct TcpWire {
    remote: SocketAddr,
    end: watch::Sender<Option<End>>,
    rtt_micros: AtomicU64,
}

impl TcpWire {
    pub(crate) fn new(remote: SocketAddr, rtt: Duration) -> Self {
        Self { remote, end: watch::Sender::new(None), rtt_micros: AtomicU64::new(rtt.as_micros() as u64) }
    }

    /// Notes the end; the first one counts.
    pub(crate) fn ends(&self, end: End) {
        self.end.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(end);
            }
            first
        });
    }

    pub(crate) async fn ended(&self) -> End {
        let mut watch = self.end.subscribe();
        let end = watch.wait_for(Option::is_some).await;
        end.ok().and_then(|end| end.clone()).unwrap_or(End::Silent(Duration::ZERO))
    }

    pub(crate) fn measured(&self, rtt: Duration) {
        self.rtt_micros.store(rtt.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Wire {
    pub(crate) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(connection, _) => connection.remote_address(),
            Self::Tcp(wire) => wire.remote,
        }
    }

    pub(crate) fn rtt(&self) -> Duration {
        match self {
            Self::Quic(connection, _) => connection.rtt(),
            Self::Tcp(wire) => Duration::from_micros(wire.rtt_micros.load(Ordering::Relaxed)),
        }
    }

    /// Ends the link; the neighbour is told why.
    pub(crate) fn close(&self, code: VarInt, reason: &str) {
        match self {
            Self::Quic(connection, said) => {
                said.get_or_init(|| End::Local { code, reason: reason.to_owned() });
                connection.close(code, reason.as_bytes());
            }
            Self::Tcp(wire) => wire.ends(End::Local { code, reason: reason.to_owned() }),
        }
    }

    pub(crate) async fn closed(&self) -> End {
        match self {
            Self::Quic(connection, said) => match (connection.closed().await, said.get()) {
                (ConnectionError::LocallyClosed, Some(said)) => said.clone(),
                (end, _) => end.into(),
            },
            Self::Tcp(wire) => wire.ended().await,
        }
    }
}
