//! The front doors of a node: neighbours that dial it, over QUIC and over TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::places::{Place, Places};
use super::udp::SharedSocket;
use super::{Error, Fresh, Origin, Side, frames, greet, run};
use crate::bounded::Bounded;
use crate::enrol;
use crate::liveness::Pulse;
use crate::node::Node;

/// Longest handshake of QUIC, from its first packet: as long as whoever dials tries.
const QUIC_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest TLS handshake on a TCP stream.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for links to say goodbye.
const FAREWELL: Duration = Duration::from_millis(500);
/// Least time between two warnings about neighbours that were refused.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// Accepts neighbours on a QUIC endpoint until `closed`.
pub(crate) async fn accept_quic(
    node: Arc<Node>,
    endpoint: quinn::Endpoint,
    socket: Arc<SharedSocket>,
    closed: CancellationToken,
) {
    let mut door = Door::new(node, closed.clone());
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = door.tend() => continue,
            () = closed.cancelled() => None,
        };
        let Some(incoming) = incoming else { return door.shut().await };
        if enrol::is_enrolment(&incoming) {
            door.links.spawn(door.node.front.clone().receive(incoming));
            continue;
        }
        let remote = incoming.remote_address();
        let place = match incoming.remote_address_validated() {
            true => door.places.proven(remote.ip()),
            false => door.places.forgeable(),
        };
        let Some(place) = place else {
            // Many at once, or a flood from forged addresses: only who can be reached may try again.
            if incoming.may_retry() {
                let _ = incoming.retry();
            } else {
                incoming.ignore();
            }
            continue;
        };
        let socket = socket.clone();
        door.admit(remote, place, async move {
            let shaken = tokio::time::timeout(QUIC_TIMEOUT, incoming).await.map_err(|_| Error::Timeout)?;
            shaken.map(|connection| Fresh::Quic(connection, socket)).map_err(Error::Connection)
        });
    }
}

/// Accepts neighbours on a TCP socket until `closed`.
pub(crate) async fn accept_tcp(node: Arc<Node>, listener: Arc<TcpListener>, closed: CancellationToken) {
    let mut door = Door::new(node, closed.clone());
    loop {
        let (stream, remote) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of files, or a stranger that left already.
                    debug!(error = &error as &dyn std::error::Error, "cannot accept a stream");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = door.tend() => continue,
            () = closed.cancelled() => return door.shut().await,
        };
        // Who comes when all places are taken is turned away, and dials again.
        let Some(place) = door.places.proven(remote.ip()) else { continue };
        let acceptor = door.node.endpoints.acceptor();
        door.admit(remote, place, secure(acceptor, stream, remote));
    }
}

async fn secure(acceptor: TlsAcceptor, stream: TcpStream, remote: SocketAddr) -> Result<Fresh, Error> {
    frames::prepare(&stream);
    let secured = tokio::time::timeout(TLS_TIMEOUT, acceptor.accept(Bounded::new(stream))).await;
    let stream = secured.map_err(|_| Error::Timeout)?.map_err(Error::Tls)?;
    Ok(Fresh::Tcp(frames::authenticated(stream), remote))
}

/// What both kinds of door have in common.
struct Door {
    node: Arc<Node>,
    closed: CancellationToken,
    places: Places,
    links: JoinSet<()>,
    warned: Option<Instant>,
    refused: mpsc::Sender<(SocketAddr, Error)>,
    refusals: mpsc::Receiver<(SocketAddr, Error)>,
}

impl Door {
    fn new(node: Arc<Node>, closed: CancellationToken) -> Self {
        let (refused, refusals) = mpsc::channel(16);
        Self {
            node,
            closed,
            places: Places::default(),
            links: JoinSet::new(),
            warned: None,
            refused,
            refusals,
        }
    }

    /// Makes a link of what `fresh` yields.
    fn admit(
        &mut self,
        remote: SocketAddr,
        place: Place,
        fresh: impl Future<Output = Result<Fresh, Error>> + Send + 'static,
    ) {
        let (node, refused, cancel) = (self.node.clone(), self.refused.clone(), self.closed.clone());
        self.links.spawn(async move {
            // Boxed: a handshake needs more than all that comes after it.
            let greeted = Box::pin(async {
                tokio::select! {
                    greeted = async { greet(&node, fresh.await?, Side::Accepted).await } => greeted,
                    () = place.lost() => Err(Error::Crowded),
                }
            })
            .await;
            drop(place);
            match greeted {
                Ok(greeted) => {
                    let pulse = Arc::new(Pulse::new(node.watch.clone()));
                    run(&node, greeted, Origin { dialed: false, bandwidth: None, cancel, pulse }).await;
                }
                // A full channel means that nobody could read so many warnings.
                Err(error) => drop(refused.try_send((remote, error))),
            }
        });
    }

    /// Waits for the links, which end by themselves, and a moment for handshakes, which may not.
    async fn shut(mut self) {
        let ended = async { while self.links.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, ended).await;
        self.links.shutdown().await;
    }

    /// Clears away what has ended; resolves after each piece. Nothing is lost if the future is dropped.
    async fn tend(&mut self) {
        tokio::select! {
            Some(_) = self.links.join_next() => {}
            Some((remote, error)) = self.refusals.recv() => {
                let now = Instant::now();
                let loud = error.is_refusal() && self.warned.is_none_or(|at| now.duration_since(at) > WARN_EVERY);
                let error = &error as &dyn std::error::Error;
                if loud {
                    self.warned = Some(now);
                    warn!(%remote, error, "neighbour refused");
                } else {
                    debug!(%remote, error, "link not accepted");
                }
            }
        }
    }
}
