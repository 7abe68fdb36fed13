//! A link: the live connection of two neighbours.
//!
//! It begins with a hello in both directions on a stream of its own, which names versions and cost. Afterwards the
//! stream carries [`LinkMessage`]s for the router, and QUIC DATAGRAMs beside it carry overlay packets. Liveness is
//! quinn's: keepalives, and an end when the neighbour has been silent for [`LINK_IDLE`](crate::settings::LINK_IDLE).
//!
//! This is link kind L1. Another kind would have another [`Egress`] and another way in to
//! [`Overlay::receive`](crate::forward::Overlay::receive); hello and control stream would stay.

pub(crate) mod dial;
pub(crate) mod egress;
pub(crate) mod refusal;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use plexus_proto::frame::LINK_FRAME_MAX;
use plexus_proto::id::{Address, Identity, NodeId, Role};
use plexus_proto::link::{Hello, LinkMessage, LinkMessageKind, ProbeReply};
use plexus_proto::version::{MAX_VERSION, MIN_VERSION, negotiate};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::driver::{DriverHandle, Event};
use crate::forward::{Overlay, Slab};
use crate::framed::{self, FrameReader, FrameWriter};
use crate::identity::{self, key_fingerprint, peer_chain, peer_identity};
use crate::node::Node;
use crate::routing::LinkId;
use egress::Egress;

pub(crate) use refusal::Error;

/// Longest wait for the neighbour's hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that may wait for a neighbour's control stream. It fills when the neighbour stops reading; the link is
/// then closed, for a router that misses messages has a wrong map.
const CONTROL_BACKLOG: usize = 4096;
/// Datagrams handled before other tasks of this thread get their turn.
const BURST: usize = 64;

/// Close codes of a link; stable, on the wire.
pub(crate) mod code {
    use quinn::VarInt;

    /// Orderly end of the process.
    pub(crate) const SHUTDOWN: VarInt = VarInt::from_u32(0);
    /// The neighbour said something that makes no sense here.
    pub(crate) const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// No common protocol version.
    pub(crate) const VERSION: VarInt = VarInt::from_u32(2);
    /// Certified, but not the one expected here.
    pub(crate) const WRONG_NODE: VarInt = VarInt::from_u32(3);
    /// A later start of the same neighbour has replaced this link.
    pub(crate) const SUPERSEDED: VarInt = VarInt::from_u32(4);
    /// The neighbour did not read its control stream.
    pub(crate) const SLOW: VarInt = VarInt::from_u32(5);
    /// The neighbour's certificate was revoked.
    pub(crate) const REVOKED: VarInt = VarInt::from_u32(6);
    /// A certificate has expired while the link was up.
    pub(crate) const EXPIRED: VarInt = VarInt::from_u32(7);
}

/// A link that has said hello.
#[derive(Debug)]
pub(crate) struct Greeted {
    connection: Connection,
    neighbor: Identity,
    hello: Hello,
    /// The larger of both wishes.
    cost: u32,
    control: (FrameWriter<SendStream>, FrameReader<RecvStream>),
}

/// What the driver holds of a link.
#[derive(Debug, Clone)]
pub(crate) struct LinkHandle {
    pub(crate) id: LinkId,
    pub(crate) neighbor: Identity,
    pub(crate) software: String,
    pub(crate) boot_nonce: u64,
    pub(crate) cost: u32,
    pub(crate) dialed: bool,
    pub(crate) since: jiff::Timestamp,
    pub(crate) egress: Arc<Egress>,
    /// SHA-256 of the neighbour's public key.
    pub(crate) key: [u8; 32],
    /// End of the neighbour's certificate, as far as it has shown.
    pub(crate) expires: jiff::Timestamp,
    connection: Connection,
    control: mpsc::Sender<LinkMessage>,
}

impl LinkHandle {
    /// Queues a message for the neighbour's router. A neighbour that does not read loses the link.
    pub(crate) fn send(&self, message: LinkMessage) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(message) {
            self.close(code::SLOW, "control stream is not read");
        }
    }

    pub(crate) fn close(&self, code: VarInt, reason: &str) {
        self.connection.close(code, reason.as_bytes());
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }
}

impl Greeted {
    pub(crate) fn neighbor(&self) -> &NodeId {
        &self.neighbor.node
    }
}

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side<'a> {
    /// We dialed, and perhaps know whom to expect. `cost` is our wish.
    Dialed { expect: Option<&'a NodeId>, cost: u32 },
    /// They did.
    Accepted,
}

/// Exchanges hellos on a fresh connection.
///
/// # Errors
/// See [`Error`]. The connection is closed then, with a code that tells the neighbour why.
pub(crate) async fn greet(node: &Node, connection: Connection, side: Side<'_>) -> Result<Greeted, Error> {
    let greeting = async {
        let neighbor = peer_identity(&connection, &node.verifier).map_err(Error::Identity)?;
        if let Side::Dialed { expect: Some(expected), .. } = side
            && *expected != neighbor.node
        {
            return Err(Error::WrongNode { expected: expected.clone(), found: neighbor.node });
        }
        if neighbor.node == node.identity.node || neighbor.address == node.identity.address {
            return Err(Error::Myself);
        }
        let (send, receive, cost) = match side {
            Side::Dialed { cost, .. } => {
                let (send, receive) = connection.open_bi().await.map_err(Error::Connection)?;
                (send, receive, cost)
            }
            Side::Accepted => {
                let (send, receive) = connection.accept_bi().await.map_err(Error::Connection)?;
                (send, receive, 0)
            }
        };
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
        let ours = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            software: node.software.clone(),
            boot_nonce: node.boot_nonce,
            cost,
        };
        writer.send(&message(LinkMessageKind::Hello(ours))).await.map_err(Error::Hello)?;
        let first: Option<LinkMessage> = reader.next(LINK_FRAME_MAX).await.map_err(Error::Hello)?;
        let Some(LinkMessageKind::Hello(hello)) = first.and_then(|first| first.kind) else {
            return Err(Error::NoHello);
        };
        negotiate(hello.min_version, hello.max_version).map_err(Error::Version)?;
        let cost = cost.max(hello.cost).max(1);
        Ok((neighbor, hello, cost, (writer, reader)))
    };
    let greeted = tokio::time::timeout(HELLO_TIMEOUT, greeting).await.unwrap_or(Err(Error::Timeout));
    match greeted {
        Ok((neighbor, hello, cost, control)) => Ok(Greeted { connection, neighbor, hello, cost, control }),
        Err(error) => {
            // What the connection ended of says more than the stream on it that broke.
            let error = match connection.close_reason() {
                Some(reason) => Error::Connection(reason),
                None => error,
            };
            connection.close(error.code(), error.to_string().as_bytes());
            Err(error)
        }
    }
}

/// Runs a link to its end, and says why it ended.
pub(crate) async fn run(node: &Arc<Node>, greeted: Greeted, dialed: bool) -> ConnectionError {
    let Greeted { connection, neighbor, hello, cost, control: (writer, reader) } = greeted;
    // The handshake has judged it, so it parses; nothing is trusted that does not.
    let leaf = peer_chain(&connection).ok().and_then(|chain| chain.into_iter().next());
    let key =
        leaf.as_ref().and_then(identity::public_key).map(|key| key_fingerprint(&key)).unwrap_or_default();
    let expires = leaf.and_then(|leaf| identity::expires(&leaf).ok()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let id = node.next_link();
    let egress = Arc::new(Egress::new(connection.clone()));
    let (control, messages) = mpsc::channel(CONTROL_BACKLOG);
    let handle = LinkHandle {
        id,
        neighbor: neighbor.clone(),
        software: hello.software,
        boot_nonce: hello.boot_nonce,
        cost,
        dialed,
        since: jiff::Timestamp::now(),
        egress: egress.clone(),
        key,
        expires,
        connection: connection.clone(),
        control: control.clone(),
    };
    info!(peer = %neighbor.node, remote = %connection.remote_address(), cost, dialed, "link up");
    node.driver.send(Event::LinkUp(Box::new(handle))).await;

    let leaf = (neighbor.role != Role::Hop).then_some(neighbor.address);
    let mut tasks = JoinSet::new();
    tasks.spawn(carry(connection.clone(), node.overlay.clone(), leaf));
    tasks.spawn(async move { egress.run().await });
    tasks.spawn(write_control(connection.clone(), writer, messages));
    tasks.spawn(read_control(connection.clone(), reader, id, node.driver.clone(), control));

    let reason = tokio::select! {
        reason = connection.closed() => reason,
        () = node.cancel.cancelled() => {
            connection.close(code::SHUTDOWN, b"shutting down");
            connection.closed().await
        }
    };
    tasks.shutdown().await;
    node.driver.send(Event::LinkDown(id, reason.to_string())).await;
    match &reason {
        ConnectionError::LocallyClosed => debug!(peer = %neighbor.node, "link closed"),
        reason => warn!(peer = %neighbor.node, error = reason as &dyn std::error::Error, "link lost"),
    }
    reason
}

/// Hands every datagram of the link to the overlay.
async fn carry(connection: Connection, overlay: Arc<Overlay>, leaf: Option<Address>) {
    let mut slab = Slab::default();
    loop {
        for _ in 0..BURST {
            match connection.read_datagram().await {
                Ok(packet) => overlay.receive(leaf, packet, &mut slab),
                Err(_) => return,
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn write_control(
    connection: Connection,
    mut writer: FrameWriter<SendStream>,
    mut messages: mpsc::Receiver<LinkMessage>,
) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = write_all(&mut writer, message, &mut messages).await {
            debug!(error = &error as &dyn std::error::Error, "control stream failed");
            return connection.close(code::PROTOCOL, b"control stream failed");
        }
    }
}

/// Writes `first` and all that waits behind it.
async fn write_all(
    writer: &mut FrameWriter<SendStream>,
    first: LinkMessage,
    more: &mut mpsc::Receiver<LinkMessage>,
) -> Result<(), framed::Error> {
    writer.feed(&first).await?;
    while let Ok(message) = more.try_recv() {
        writer.feed(&message).await?;
    }
    writer.flush().await
}

async fn read_control(
    connection: Connection,
    mut reader: FrameReader<RecvStream>,
    link: LinkId,
    driver: DriverHandle,
    replies: mpsc::Sender<LinkMessage>,
) {
    loop {
        let heard = match reader.next::<LinkMessage>(LINK_FRAME_MAX).await {
            Ok(Some(heard)) => heard,
            Ok(None) => return connection.close(code::PROTOCOL, b"control stream ended"),
            Err(error) => {
                debug!(error = &error as &dyn std::error::Error, "control stream failed");
                return connection.close(code::PROTOCOL, b"control stream failed");
            }
        };
        match heard.kind {
            Some(LinkMessageKind::Probe(probe)) => {
                // A neighbour that probes faster than it reads gets fewer answers.
                let _ =
                    replies.try_send(message(LinkMessageKind::ProbeReply(ProbeReply { nonce: probe.nonce })));
            }
            Some(LinkMessageKind::Hello(_)) => {
                return connection.close(code::PROTOCOL, b"second hello");
            }
            Some(LinkMessageKind::Close(close)) => {
                debug!(code = close.code, reason = close.reason, "neighbour closes the link");
                return connection.close(code::SHUTDOWN, b"as you say");
            }
            Some(LinkMessageKind::ProbeReply(_)) => {}
            Some(kind) => driver.send(Event::Heard(link, kind)).await,
            // A message of a later version: nothing it says is needed here.
            None => {}
        }
    }
}

/// `kind` as a whole message.
pub(crate) fn message(kind: LinkMessageKind) -> LinkMessage {
    LinkMessage { kind: Some(kind) }
}
