//! A link: the live connection of two neighbours.
//!
//! It begins with a hello in both directions, which names versions, cost and what this end can. Afterwards
//! [`LinkMessage`]s for the router go both ways, and overlay packets beside them, by one of three kinds:
//!
//! * `quic`: messages on a stream of the outer connection, packets in its DATAGRAMs;
//! * `sealed`: the same connection, packets sealed on its socket beside it ([`sealed`], [`seal`], [`udp`]);
//! * `tcp`: both as [`frames`] on one TCP stream with TLS.
//!
//! Which one is [`connect`]'s and [`dial`]'s choice; [`egress`] is the way out of each. Whether the neighbour lives is
//! [`liveness`](crate::liveness)'s to say.

pub(crate) mod accept;
mod clock;
pub(crate) mod connect;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod decoders;
pub(crate) mod dial;
pub(crate) mod egress;
pub(crate) mod frames;
mod halves;
mod places;
pub(crate) mod refusal;
mod seal;
pub(crate) mod sealed;
pub(crate) mod udp;
pub(crate) mod wire;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use plexus_proto::frame::LINK_FRAME_MAX;
use plexus_proto::id::{Address, Identity, NodeId};
use plexus_proto::link::{Hello, LinkMessage, LinkMessageKind, ProbeReply, SealedReady};
use plexus_proto::version::{MAX_VERSION, MIN_VERSION, negotiate};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::authorization::{self, Sent, Verdict, message_name};
use crate::batch::Gather;
use crate::config::LinkKind;
use crate::driver::{DriverHandle, Event};
use crate::error::chain;
use crate::forward::{Overlay, Via};
use crate::framed::{self, FrameReader, FrameWriter};
use crate::identity::{self, Standing, key_fingerprint};
use crate::liveness::Pulse;
use crate::node::Node;
use crate::routing::LinkId;
use clock::Skew;
use egress::Egress;
use halves::Halves;
use sealed::{Loss, Sealing, keep_sealed};
use udp::SharedSocket;
use wire::{TcpWire, Wire};

pub(crate) use refusal::Error;
pub(crate) use wire::End;

/// Longest wait for the neighbour's hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that may wait for a neighbour's control stream. It fills when the neighbour stops reading; the link is
/// then closed, for a router that misses messages has a wrong map. Messages are boxed: a channel always has a block of 32
/// places, which are 4 KB for each link otherwise.
const CONTROL_BACKLOG: usize = 4096;
/// Bytes read at a time of what a neighbour says.
const CONTROL_CHUNK: usize = 2048;
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
    /// Both ends dialed; the other link stays.
    pub(crate) const DUPLICATE: VarInt = VarInt::from_u32(6);
    /// The neighbour's configuration no longer has this link.
    pub(crate) const REMOVED: VarInt = VarInt::from_u32(7);
    /// Nothing is heard from the neighbour any more.
    pub(crate) const SILENT: VarInt = VarInt::from_u32(8);
    /// A certificate has expired while the link was up.
    pub(crate) const EXPIRED: VarInt = VarInt::from_u32(9);
    /// The neighbour's certificate was revoked.
    pub(crate) const REVOKED: VarInt = VarInt::from_u32(10);
}

/// A connection that has not said hello yet.
pub(crate) enum Fresh {
    Quic(Connection, Arc<SharedSocket>),
    Tcp(Box<frames::Stream>, SocketAddr),
}

/// A link that has said hello.
pub(crate) struct Greeted {
    channel: Channel,
    neighbor: Identity,
    hello: Hello,
    /// The larger of both wishes.
    cost: u32,
    sealed: bool,
}

enum Channel {
    Quic { connection: Connection, socket: Arc<SharedSocket>, control: Control },
    Tcp { stream: Box<frames::Stream>, wire: Arc<TcpWire> },
}

impl Channel {
    /// The neighbour's certificate, as the handshake has shown and judged it.
    fn leaf(&self) -> Option<CertificateDer<'static>> {
        match self {
            Self::Quic { connection, .. } => identity::peer_chain(connection).ok()?.into_iter().next(),
            Self::Tcp { stream, .. } => Some(stream.get_ref().1.peer_certificates()?.first()?.clone()),
        }
    }
}

type Control = (FrameWriter<SendStream>, FrameReader<RecvStream>);

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
    pub(crate) bandwidth: Option<u64>,
    pub(crate) egress: Arc<Egress>,
    /// SHA-256 of the neighbour's public key.
    pub(crate) key: [u8; 32],
    /// End of the neighbour's certificate, as far as it has shown.
    pub(crate) expires: jiff::Timestamp,
    pub(crate) loss: Arc<Loss>,
    pub(crate) skew: Arc<Skew>,
    wire: Wire,
    control: mpsc::Sender<Box<LinkMessage>>,
}

impl LinkHandle {
    /// Queues a message for the neighbour's router. A neighbour that does not read loses the link.
    pub(crate) fn send(&self, mut message: LinkMessage) {
        clock::stamp(&mut message, jiff::Timestamp::now());
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(Box::new(message)) {
            self.close(code::SLOW, "control stream is not read");
        }
    }

    pub(crate) fn close(&self, code: VarInt, reason: &str) {
        self.wire.close(code, reason);
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.wire.remote_address()
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.wire.rtt()
    }

    /// What carries its packets now.
    pub(crate) fn kind(&self) -> LinkKind {
        match self.wire {
            Wire::Tcp(_) => LinkKind::Tcp,
            Wire::Quic(..) if self.egress.is_sealed() => LinkKind::Sealed,
            Wire::Quic(..) => LinkKind::Quic,
        }
    }

    /// Largest overlay packet that it carries, in bytes; none: any.
    pub(crate) fn mtu(&self) -> Option<usize> {
        self.egress.mtu()
    }

    /// Share of packets that are lost on the way to the neighbour, 0 to 1; none where nobody can tell.
    pub(crate) fn lost(&self) -> Option<f64> {
        match &self.wire {
            Wire::Quic(connection, _) if !self.egress.is_sealed() => {
                let path = connection.stats().path;
                Some(path.lost_packets as f64 / path.sent_packets.max(1) as f64)
            }
            Wire::Quic(..) => Some(self.loss.share()),
            Wire::Tcp(_) => None,
        }
    }

    /// Which of both nodes dialed, by address.
    fn dialer(&self, this: Address) -> Address {
        if self.dialed { this } else { self.neighbor.address }
    }

    /// Of two links between the same two processes, dialed by each of them, the one that has to go; none if both may
    /// stay. Both ends come to the same: the one whose dialer has the higher address.
    pub(crate) fn duplicate<'a>(&'a self, other: &'a Self, this: Address) -> Option<&'a Self> {
        let crossed = self.neighbor.address == other.neighbor.address
            && self.boot_nonce == other.boot_nonce
            && self.dialed != other.dialed;
        crossed.then(|| if self.dialer(this) > other.dialer(this) { self } else { other })
    }
}

impl Greeted {
    pub(crate) fn neighbor(&self) -> &NodeId {
        &self.neighbor.node
    }

    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.channel, Channel::Tcp { .. })
    }
}

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side<'a> {
    /// We dialed, and perhaps know whom to expect. `cost` is our wish.
    Dialed { expect: Option<&'a NodeId>, cost: u32, sealed: bool },
    /// They did.
    Accepted,
}

/// Exchanges hellos on a fresh connection.
///
/// # Errors
/// See [`Error`]. The connection is closed then, with a code that tells the neighbour why.
pub(crate) async fn greet(node: &Node, fresh: Fresh, side: Side<'_>) -> Result<Greeted, Error> {
    match fresh {
        Fresh::Quic(connection, socket) => {
            let greeting = greet_quic(node, &connection, side);
            match tokio::time::timeout(HELLO_TIMEOUT, greeting).await.unwrap_or(Err(Error::Timeout)) {
                Ok((neighbor, hello, control)) => {
                    let channel = Channel::Quic { connection, socket, control };
                    Ok(greeted(node, channel, neighbor, hello, side))
                }
                Err(Error::RenewOnly(neighbor)) => {
                    node.front.renew_only(node, &connection, &neighbor).await;
                    Err(Error::RenewOnly(neighbor))
                }
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
        Fresh::Tcp(mut stream, remote) => {
            let greeting = greet_tcp(node, &mut stream, side);
            match tokio::time::timeout(HELLO_TIMEOUT, greeting).await.unwrap_or(Err(Error::Timeout)) {
                Ok((neighbor, hello, rtt)) => {
                    let channel = Channel::Tcp { stream, wire: Arc::new(TcpWire::new(remote, rtt)) };
                    Ok(greeted(node, channel, neighbor, hello, side))
                }
                Err(error) => {
                    frames::refuse(&mut stream, error.code(), &error.to_string()).await;
                    Err(error)
                }
            }
        }
    }
}

fn greeted(node: &Node, channel: Channel, neighbor: Identity, hello: Hello, side: Side<'_>) -> Greeted {
    let (wish, sealed) = match side {
        Side::Dialed { cost, sealed, .. } => (cost, sealed),
        Side::Accepted => (0, true),
    };
    let sealed = sealed && hello.sealed && node.offers(LinkKind::Sealed);
    Greeted { channel, neighbor, cost: wish.max(hello.cost).max(1), hello, sealed }
}

/// Whether the certified `neighbor` may be at the other end.
fn expected(node: &Node, neighbor: Identity, side: Side<'_>) -> Result<Identity, Error> {
    if let Side::Dialed { expect: Some(expected), .. } = side
        && *expected != neighbor.node
    {
        return Err(Error::WrongNode { expected: expected.clone(), found: neighbor.node });
    }
    if neighbor.node == node.identity.node || neighbor.address == node.identity.address {
        return Err(Error::Myself);
    }
    Ok(neighbor)
}

fn our_hello(node: &Node, side: Side<'_>) -> LinkMessage {
    let (cost, sealed) = match side {
        Side::Dialed { cost, sealed, .. } => (cost, sealed),
        Side::Accepted => (0, true),
    };
    message(LinkMessageKind::Hello(Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        software: node.software.clone(),
        boot_nonce: node.boot_nonce,
        cost,
        sealed: sealed && node.offers(LinkKind::Sealed),
    }))
}

fn their_hello(first: Option<LinkMessage>) -> Result<Hello, Error> {
    let hello = match first.and_then(|first| first.kind) {
        Some(LinkMessageKind::Hello(hello)) => hello,
        Some(LinkMessageKind::Close(close)) => {
            return Err(Error::Closed { code: close.code, reason: close.reason });
        }
        _ => return Err(Error::NoHello),
    };
    negotiate(hello.min_version, hello.max_version).map_err(Error::Version)?;
    Ok(hello)
}

async fn greet_quic(
    node: &Node,
    connection: &Connection,
    side: Side<'_>,
) -> Result<(Identity, Hello, Control), Error> {
    let shown = identity::peer_chain(connection).map_err(Error::Identity)?;
    let judged = node.verifier().standing(&shown, UnixTime::now());
    let (neighbor, standing) = judged.map_err(Error::Identity)?;
    let neighbor = expected(node, neighbor, side)?;
    if standing != Standing::Valid || node.is_expired() {
        return Err(Error::RenewOnly(neighbor.node));
    }
    let (send, receive) = match side {
        Side::Dialed { .. } => connection.open_bi().await.map_err(Error::Connection)?,
        Side::Accepted => connection.accept_bi().await.map_err(Error::Connection)?,
    };
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::quiet(receive, CONTROL_CHUNK));
    writer.send(&our_hello(node, side)).await.map_err(Error::Hello)?;
    let first: Option<LinkMessage> = reader.next(LINK_FRAME_MAX).await.map_err(Error::Hello)?;
    Ok((neighbor, their_hello(first)?, (writer, reader)))
}

async fn greet_tcp(
    node: &Node,
    stream: &mut frames::Stream,
    side: Side<'_>,
) -> Result<(Identity, Hello, Duration), Error> {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let neighbor = identity::certified(shown, &node.verifier()).map_err(Error::Identity)?;
    let neighbor = expected(node, neighbor, side)?;
    let start = Instant::now();
    frames::send(stream, &our_hello(node, side)).await.map_err(Error::Stream)?;
    let first = frames::receive(stream).await.map_err(Error::Stream)?;
    Ok((neighbor, their_hello(Some(first))?, start.elapsed()))
}

/// How a link came about.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) dialed: bool,
    /// Most that may be sent on it, in bytes per second.
    pub(crate) bandwidth: Option<u64>,
    /// Ends it.
    pub(crate) cancel: CancellationToken,
    /// Its signs of life, for whoever began it.
    pub(crate) pulse: Arc<Pulse>,
}

/// Runs a link to its end, and says why it ended.
pub(crate) async fn run(node: &Arc<Node>, greeted: Greeted, origin: Origin) -> End {
    // Boxed, as is what comes before a link: what is done once would stay in each link's task for its whole life.
    let Begun { id, peer, wire, egress, mut tasks, writer } = Box::pin(begin(node, greeted, &origin)).await;
    let end = tokio::select! {
        end = wire.closed() => end,
        () = origin.cancel.cancelled() => {
            match egress.pulse.is_silent() {
                true => wire.close(code::SILENT, "nothing is heard any more"),
                false => wire.close(code::SHUTDOWN, "shutting down"),
            }
            wire.closed().await
        }
    };
    if let Some(writer) = writer {
        // It says goodbye, in bounded time.
        let _ = writer.await;
    }
    tasks.shutdown().await;
    egress.close();
    node.neighbors.down(&peer, origin.dialed);
    if end.is_loss() {
        node.neighbors.lost(&peer, chain(&end));
    }
    node.driver.send(Event::LinkDown(id, end.to_string())).await;
    if end.is_loss() {
        warn!(%peer, error = &end as &dyn std::error::Error, "link lost");
    } else {
        debug!(%peer, "link closed");
    }
    end
}

/// What is left of a beginning link for its end.
struct Begun {
    id: LinkId,
    peer: NodeId,
    wire: Wire,
    egress: Arc<Egress>,
    tasks: JoinSet<()>,
    /// Of a TCP link, which says goodbye by itself.
    writer: Option<JoinHandle<()>>,
}

/// Tells the driver of a new link, and starts what serves it.
async fn begin(node: &Arc<Node>, greeted: Greeted, origin: &Origin) -> Begun {
    let Greeted { channel, neighbor, hello, cost, sealed } = greeted;
    // The handshake has judged it, so it parses; nothing is trusted that does not.
    let leaf_der = channel.leaf();
    let key = leaf_der.as_ref().and_then(identity::public_key).map(|key| key_fingerprint(&key));
    let expires = leaf_der.and_then(|leaf| identity::expires(&leaf).ok());
    let (key, expires) = (key.unwrap_or_default(), expires.unwrap_or(jiff::Timestamp::UNIX_EPOCH));
    let id = node.next_link();
    let (control, messages) = mpsc::channel(CONTROL_BACKLOG);
    let leaf = authorization::speaks_for_itself(neighbor.role).then_some(neighbor.address);
    let pulse = origin.pulse.clone();
    let (wire, egress) = match &channel {
        Channel::Quic { connection, .. } => {
            let egress = Egress::over_datagrams(connection.clone(), origin.bandwidth, pulse);
            (Wire::Quic(connection.clone(), Arc::default()), Arc::new(egress))
        }
        Channel::Tcp { wire, .. } => {
            (Wire::Tcp(wire.clone()), Arc::new(Egress::over_frames(origin.bandwidth, pulse)))
        }
    };
    let via = Via { leaf, egress: egress.clone() };
    let (loss, skew) = (Arc::new(Loss::default()), Arc::new(Skew::default()));
    let handle = LinkHandle {
        id,
        neighbor: neighbor.clone(),
        software: hello.software,
        boot_nonce: hello.boot_nonce,
        cost,
        dialed: origin.dialed,
        since: jiff::Timestamp::now(),
        bandwidth: origin.bandwidth,
        egress: egress.clone(),
        key,
        expires,
        loss: loss.clone(),
        skew: skew.clone(),
        wire: wire.clone(),
        control: control.clone(),
    };
    info!(peer = %neighbor.node, remote = %wire.remote_address(), kind = %handle.kind(), cost, dialed = origin.dialed, "link up");
    node.neighbors.up(&neighbor.node, origin.dialed);
    node.driver.send(Event::LinkUp(Arc::new(handle))).await;

    let ready = Arc::new(Notify::new());
    let ears = Ears {
        link: id,
        neighbor: neighbor.clone(),
        wire: wire.clone(),
        driver: node.driver.clone(),
        replies: control,
        ready,
        skew,
        overlay: node.overlay.clone(),
    };
    let mut tasks = JoinSet::new();
    let mut writer = None;
    match channel {
        Channel::Quic { connection, socket, control: (writer, reader) } => {
            tasks.spawn(carry(connection.clone(), node.overlay.clone(), via.clone()));
            let out = egress.clone();
            tasks.spawn(async move { out.run().await });
            tasks.spawn(write_control(connection.clone(), writer, messages));
            if sealed {
                let (replies, ready) = (ears.replies.clone(), ears.ready.clone());
                let (overlay, egress, dialed) = (node.overlay.clone(), egress.clone(), origin.dialed);
                let link = Sealing { connection, socket, overlay, egress, via, dialed, ready, loss };
                tasks.spawn(keep_sealed(link, move || {
                    let _ = replies.try_send(Box::new(message(LinkMessageKind::SealedReady(SealedReady {}))));
                }));
            }
            tasks.spawn(ears.read_stream(reader));
        }
        Channel::Tcp { stream, wire } => {
            let (read, write) = tokio::io::split(*stream);
            let (heard, messages_in) = mpsc::channel(16);
            tasks.spawn(frames::read(read, wire.clone(), node.overlay.clone(), via, heard));
            writer = Some(tokio::spawn(frames::write(write, wire.clone(), egress.clone(), messages)));
            tasks.spawn(ears.read_channel(messages_in));
        }
    }
    Begun { id, peer: neighbor.node, wire, egress, tasks, writer }
}

/// Hands every datagram of the link to the overlay: those that are there together, together.
async fn carry(connection: Connection, overlay: Arc<Overlay>, via: Via) {
    let (mut gather, mut halves) = (Gather::default(), Halves::default());
    loop {
        let Ok(first) = connection.read_datagram().await else { return };
        let mut next = Some(first);
        let mut left = BURST;
        while let Some(datagram) = next.take() {
            let whole = if datagram.first() == Some(&egress::FRAGMENT) {
                halves.join(&datagram)
            } else {
                Some(datagram)
            };
            match whole.map(|packet| gather.push(&packet)) {
                Some(Ok(Some(batch))) => overlay.receive(&via, batch),
                Some(Err(_)) => overlay.drops.malformed.add(1),
                Some(Ok(None)) | None => {}
            }
            left -= 1;
            if left > 0 {
                // What is there already; nothing is lost when the future is dropped.
                next = connection.read_datagram().now_or_never().and_then(Result::ok);
            }
        }
        if let Some(batch) = gather.take() {
            overlay.receive(&via, batch);
        }
        tokio::task::yield_now().await;
    }
}

async fn write_control(
    connection: Connection,
    mut writer: FrameWriter<SendStream>,
    mut messages: mpsc::Receiver<Box<LinkMessage>>,
) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = write_all(&mut writer, message, &mut messages).await {
            debug!(error = &error as &dyn std::error::Error, "control stream failed");
            return connection.close(code::PROTOCOL, b"control stream failed");
        }
        writer.rest();
    }
}

/// Writes `first` and all that waits behind it.
async fn write_all(
    writer: &mut FrameWriter<SendStream>,
    first: Box<LinkMessage>,
    more: &mut mpsc::Receiver<Box<LinkMessage>>,
) -> Result<(), framed::Error> {
    writer.feed(&*first).await?;
    while let Ok(message) = more.try_recv() {
        writer.feed(&*message).await?;
    }
    writer.flush().await
}

/// What listens to the neighbour's messages.
struct Ears {
    link: LinkId,
    neighbor: Identity,
    wire: Wire,
    driver: DriverHandle,
    replies: mpsc::Sender<Box<LinkMessage>>,
    /// Told when the neighbour is ready for sealed packets.
    ready: Arc<Notify>,
    skew: Arc<Skew>,
    overlay: Arc<Overlay>,
}

impl Ears {
    async fn read_stream(self, mut reader: FrameReader<RecvStream>) {
        loop {
            match reader.next::<LinkMessage>(LINK_FRAME_MAX).await {
                Ok(Some(heard)) => {
                    if self.hear(heard).await.is_break() {
                        return;
                    }
                }
                Ok(None) => return self.wire.close(code::PROTOCOL, "control stream ended"),
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "control stream failed");
                    return self.wire.close(code::PROTOCOL, "control stream failed");
                }
            }
        }
    }

    async fn read_channel(self, mut messages: mpsc::Receiver<Box<LinkMessage>>) {
        while let Some(heard) = messages.recv().await {
            if self.hear(*heard).await.is_break() {
                return;
            }
        }
    }

    /// The one place that every message of a link comes through: here the table of roles is kept.
    async fn hear(&self, heard: LinkMessage) -> ControlFlow<()> {
        // A message of a later version: nothing it says is needed here.
        let Some(kind) = heard.kind else { return ControlFlow::Continue(()) };
        let name = message_name(&kind);
        match authorization::verdict(Sent::Message(name), self.neighbor.role) {
            Verdict::Taken | Verdict::Signed | Verdict::SignedByController | Verdict::Own => {}
            Verdict::First | Verdict::Refused => {
                self.overlay.drops.refused.add(1);
                let (peer, role) = (&self.neighbor.node, self.neighbor.role);
                warn!(%peer, %role, message = name, "neighbour says what it may not; link closed");
                self.wire.close(code::PROTOCOL, &format!("{name} is not for this neighbour to say now"));
                return ControlFlow::Break(());
            }
        }
        if let LinkMessageKind::Digest(digest) = &kind {
            self.skew.heard(digest.clock_ms, self.wire.rtt(), jiff::Timestamp::now());
        }
        match kind {
            LinkMessageKind::Probe(probe) => {
                // A neighbour that probes faster than it reads gets fewer answers.
                let reply = LinkMessageKind::ProbeReply(ProbeReply { nonce: probe.nonce });
                let _ = self.replies.try_send(Box::new(message(reply)));
            }
            LinkMessageKind::Close(close) => {
                debug!(code = close.code, reason = close.reason, "neighbour closes the link");
                self.wire.close(code::SHUTDOWN, "as you say");
                return ControlFlow::Break(());
            }
            LinkMessageKind::ProbeReply(reply) => {
                if let (Wire::Tcp(wire), Some(took)) = (&self.wire, frames::round_trip(reply.nonce)) {
                    wire.measured(took);
                }
            }
            LinkMessageKind::SealedReady(SealedReady {}) => self.ready.notify_one(),
            kind => self.driver.send(Event::Heard(self.link, kind)).await,
        }
        ControlFlow::Continue(())
    }
}

/// `kind` as a whole message.
pub(crate) fn message(kind: LinkMessageKind) -> LinkMessage {
    LinkMessage { kind: Some(kind) }
}
