//! What the tasks of one node share, and its front door for neighbours.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plexus_proto::id::{Identity, NodeId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::Peer;
use crate::driver::DriverHandle;
use crate::endpoint::Endpoints;
use crate::enrol::{self, Front};
use crate::forward::Overlay;
use crate::identity::{Credentials, Verifier};
use crate::link::{self, Side, greet};
use crate::routing::LinkId;

/// Handshakes that may be under way at once; more strangers must prove their address first.
const HANDSHAKES: usize = 64;
/// Least time between two warnings about neighbours that were refused.
const WARN_EVERY: Duration = Duration::from_secs(1);

/// Shared by the tasks of a node; each part guards itself.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) credentials: Credentials,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) endpoints: Endpoints,
    pub(crate) driver: DriverHandle,
    pub(crate) software: String,
    pub(crate) boot_nonce: u64,
    pub(crate) cancel: CancellationToken,
    pub(crate) last_link: AtomicU64,
    /// Neighbours to dial.
    pub(crate) dialed: Vec<Dialed>,
    /// Where machines without a certificate knock.
    pub(crate) front: Arc<Front>,
    /// Wakes the task that renews our certificate.
    pub(crate) renew_now: tokio::sync::Notify,
}

/// A neighbour to dial, and how that goes.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) peer: Peer,
    progress: Mutex<Progress>,
}

/// How dialing goes.
#[derive(Debug, Clone)]
pub(crate) enum Progress {
    /// No attempt has ended yet.
    Begun,
    Linked(NodeId),
    Failed(String),
}

impl Dialed {
    pub(crate) fn new(peer: Peer) -> Self {
        Self { peer, progress: Mutex::new(Progress::Begun) }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.lock().expect("no code panics under this lock").clone()
    }

    pub(crate) fn set(&self, progress: Progress) {
        *self.progress.lock().expect("no code panics under this lock") = progress;
    }
}

impl Node {
    /// An id that no link of this process has had.
    pub(crate) fn next_link(&self) -> LinkId {
        LinkId(self.last_link.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Accepts neighbours on one socket until the node is cancelled.
pub(crate) async fn accept(node: Arc<Node>, endpoint: quinn::Endpoint) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut links = tokio::task::JoinSet::new();
    let mut warned: Option<std::time::Instant> = None;
    let (refused, mut refusals) = tokio::sync::mpsc::channel::<(std::net::SocketAddr, link::Error)>(16);
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = links.join_next() => continue,
            Some((remote, error)) = refusals.recv() => {
                let now = std::time::Instant::now();
                let loud = error.is_refusal() && warned.is_none_or(|at| now.duration_since(at) > WARN_EVERY);
                let error = &error as &dyn std::error::Error;
                if loud {
                    warned = Some(now);
                    warn!(%remote, error, "neighbour refused");
                } else {
                    debug!(%remote, error, "link not accepted");
                }
                continue;
            }
            () = node.cancel.cancelled() => None,
        };
        let Some(incoming) = incoming else {
            return links.shutdown().await;
        };
        if enrol::is_enrolment(&incoming) {
            links.spawn(node.front.clone().receive(incoming));
            continue;
        }
        let Ok(turn) = handshakes.clone().try_acquire_owned() else {
            // Many at once, or a flood from forged addresses: only who can be reached may try again.
            if incoming.may_retry() {
                let _ = incoming.retry();
            } else {
                incoming.ignore();
            }
            continue;
        };
        let (node, refused) = (node.clone(), refused.clone());
        links.spawn(async move {
            let remote = incoming.remote_address();
            let greeted = async {
                let connection = incoming.await.map_err(link::Error::Connection)?;
                greet(&node, connection, Side::Accepted).await
            };
            let greeted = greeted.await;
            drop(turn);
            match greeted {
                Ok(greeted) => {
                    link::run(&node, greeted, false).await;
                }
                // A full channel means that nobody could read so many warnings.
                Err(error) => drop(refused.try_send((remote, error))),
            }
        });
    }
}

/// Random bits for nonces and jitter.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // No entropy: uniqueness has to come from the clock then; nothing secret hangs on it.
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64),
    }
}
