//! Why a link did not come up, and whether trying again soon can help.

use plexus_proto::id::NodeId;
use plexus_proto::version::Incompatible;
use quinn::{ConnectionError, VarInt};

use super::code;
use crate::{framed, identity};

/// A link that did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot resolve {address}")]
    Resolve {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot dial")]
    Dial(#[source] std::io::Error),
    #[error("connection failed")]
    Connection(#[source] ConnectionError),
    #[error("neighbour's certificate is not valid")]
    Identity(#[source] identity::Error),
    #[error("neighbour is {found}, not {expected}")]
    WrongNode { expected: NodeId, found: NodeId },
    #[error("neighbour is this node itself, or a copy of it")]
    Myself,
    #[error("no common protocol version")]
    Version(#[source] Incompatible),
    #[error("hello failed")]
    Hello(#[source] framed::Error),
    #[error("no TLS session over TCP")]
    Tls(#[source] std::io::Error),
    #[error("stream broke in the hello")]
    Stream(#[source] std::io::Error),
    #[error("neighbour refuses: {reason} (code {code})")]
    Closed { code: u32, reason: String },
    #[error("neighbour's first message is no hello")]
    NoHello,
    #[error("no answer in time")]
    Timeout,
    #[error("too many handshakes at once from where this one came")]
    Crowded,
    #[error("a certificate has expired: the link with {0} was good for renewing it only")]
    RenewOnly(NodeId),
}

impl Error {
    /// The close code that tells the neighbour.
    pub(crate) fn code(&self) -> VarInt {
        match self {
            Self::Version(_) => code::VERSION,
            Self::WrongNode { .. } | Self::Myself | Self::Identity(_) => code::WRONG_NODE,
            Self::RenewOnly(_) => code::EXPIRED,
            _ => code::PROTOCOL,
        }
    }

    /// Whether one of both ends has said no, as opposed to nobody answering: then it takes a person to change
    /// something, and trying again soon only fills logs.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Identity(_) | Self::WrongNode { .. } | Self::Myself | Self::Version(_) => true,
            Self::Connection(reason) => refused(reason),
            Self::Closed { code, .. } => refuses(VarInt::from_u32(*code)),
            Self::Tls(error) | Self::Stream(error) => alerted(error),
            Self::Resolve { .. }
            | Self::Dial(_)
            | Self::Hello(_)
            | Self::NoHello
            | Self::Timeout
            | Self::Crowded
            | Self::RenewOnly(_) => false,
        }
    }

    /// What a person can do about a refusal.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::WrongNode { .. } => "check address and name of the peer in the configuration",
            Self::Myself => "take this node's own address out of its peers",
            Self::Version(_) => "upgrade the older of both nodes",
            Self::Connection(ConnectionError::ApplicationClosed(close))
                if close.error_code == code::VERSION =>
            {
                "upgrade the older of both nodes"
            }
            _ => "check that both certificates are of the same mesh and not expired",
        }
    }
}

fn refuses(given: VarInt) -> bool {
    [code::VERSION, code::WRONG_NODE].contains(&given)
}

/// Whether a TLS stream failed over a certificate, here or there.
fn alerted(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::AlertReceived(_)
        )
    )
}

/// Whether a connection ended by a decision about certificates or versions.
fn refused(reason: &ConnectionError) -> bool {
    // QUIC carries TLS alerts as 0x100 and the alert's number.
    let crypto = |code: u64| (0x100..0x200).contains(&code);
    match reason {
        ConnectionError::VersionMismatch => true,
        ConnectionError::TransportError(error) => crypto(error.code.into()),
        ConnectionError::ConnectionClosed(close) => crypto(close.error_code.into()),
        ConnectionError::ApplicationClosed(close) => refuses(close.error_code),
        ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(code: VarInt) -> Error {
        let close = quinn::ApplicationClose { error_code: code, reason: Default::default() };
        Error::Connection(ConnectionError::ApplicationClosed(close))
    }

    #[test]
    fn a_decision_is_a_refusal_and_silence_is_none() {
        assert!(closed(code::VERSION).is_refusal());
        assert!(closed(code::WRONG_NODE).is_refusal());
        assert!(Error::Myself.is_refusal());
        for error in [closed(code::SHUTDOWN), Error::Connection(ConnectionError::TimedOut), Error::Timeout] {
            assert!(!error.is_refusal(), "{error}");
        }
    }

    #[test]
    fn each_refusal_tells_the_neighbour_its_kind() {
        let version = Error::Version(Incompatible { peer_min: 7, peer_max: 9 });
        assert!(closed(version.code()).is_refusal());
        assert!(closed(Error::Myself.code()).is_refusal());
        assert!(!closed(Error::NoHello.code()).is_refusal());
    }
}
