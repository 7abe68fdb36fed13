//! What the tasks of one node share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use plexus_proto::id::{Identity, NodeId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{LinkKind, Peer};
use crate::driver::DriverHandle;
use crate::endpoint::Endpoints;
use crate::enrol::Front;
use crate::forward::Overlay;
use crate::identity::{Credentials, Verifier};
use crate::routing::LinkId;

/// Shared by the tasks of a node; each part guards itself.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    /// Replaced as a whole when certificates are.
    pub(crate) credentials: ArcSwap<Credentials>,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) endpoints: Endpoints,
    pub(crate) driver: DriverHandle,
    pub(crate) software: String,
    pub(crate) boot_nonce: u64,
    /// Wakes the watch over links when packets begin to flow.
    pub(crate) watch: Arc<Notify>,
    pub(crate) cancel: CancellationToken,
    pub(crate) last_link: AtomicU64,
    /// Everything that runs on this node's behalf and ends with it.
    pub(crate) tasks: TaskTracker,
    /// Kinds of link that this node takes part in.
    pub(crate) kinds: Vec<LinkKind>,
    /// Where machines without a certificate knock.
    pub(crate) front: Arc<Front>,
    /// Wakes the task that renews our certificate.
    pub(crate) renew_now: tokio::sync::Notify,
    /// Tells renew-only links that they are needed no more.
    pub(crate) renewed: tokio::sync::Notify,
    /// Neighbours to dial.
    pub(crate) dialed: Mutex<Vec<Arc<Dialed>>>,
    pub(crate) neighbors: Neighbors,
}

/// A neighbour to dial, and how that goes.
#[derive(Debug)]
pub(crate) struct Dialed {
    pub(crate) peer: Peer,
    /// Ends dialing and the link that came of it.
    pub(crate) cancel: CancellationToken,
    progress: Mutex<(Progress, Timestamp)>,
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
    pub(crate) fn new(peer: Peer, cancel: CancellationToken) -> Self {
        Self { peer, cancel, progress: Mutex::new((Progress::Begun, Timestamp::now())) }
    }

    /// How it goes, and since when it has been linked or not.
    pub(crate) fn progress(&self) -> (Progress, Timestamp) {
        self.progress.lock().expect("no code panics under this lock").clone()
    }

    pub(crate) fn set(&self, progress: Progress) {
        let mut known = self.progress.lock().expect("no code panics under this lock");
        let linked = |progress: &Progress| matches!(progress, Progress::Linked(_));
        if linked(&known.0) != linked(&progress) {
            known.1 = Timestamp::now();
        }
        known.0 = progress;
    }
}

/// Who is linked to this node by a link that the other end dialed: those need not be dialed. And why links were lost.
#[derive(Debug, Default)]
pub(crate) struct Neighbors {
    links: watch::Sender<HashMap<NodeId, usize>>,
    /// By neighbour, who is a certified node: bounded by the mesh.
    lost: Mutex<HashMap<NodeId, String>>,
}

impl Neighbors {
    /// Notes why a link was lost.
    pub(crate) fn lost(&self, neighbor: &NodeId, why: String) {
        self.lost.lock().expect("no code panics under this lock").insert(neighbor.clone(), why);
    }

    /// Why the last link to `neighbor` that was lost was.
    pub(crate) fn last_loss(&self, neighbor: &NodeId) -> Option<String> {
        self.lost.lock().expect("no code panics under this lock").get(neighbor).cloned()
    }

    /// Notes a link that has come up.
    pub(crate) fn up(&self, neighbor: &NodeId, dialed: bool) {
        if !dialed {
            self.links.send_modify(|links| *links.entry(neighbor.clone()).or_default() += 1);
        }
    }

    /// Notes its end.
    pub(crate) fn down(&self, neighbor: &NodeId, dialed: bool) {
        if !dialed {
            self.links.send_modify(|links| {
                if let Some(count) = links.get_mut(neighbor) {
                    *count -= 1;
                    if *count == 0 {
                        links.remove(neighbor);
                    }
                }
            });
        }
    }

    /// Whether `neighbor` has dialed us.
    pub(crate) fn has(&self, neighbor: &NodeId) -> bool {
        self.links.borrow().contains_key(neighbor)
    }

    /// Resolves when no link that `neighbor` dialed is up.
    pub(crate) async fn gone(&self, neighbor: &NodeId) {
        // The sender lives as long as this.
        let _ = self.links.subscribe().wait_for(|links| !links.contains_key(neighbor)).await;
    }
}

impl Node {
    pub(crate) fn verifier(&self) -> Arc<Verifier> {
        self.credentials.load().verifier()
    }

    /// Whether our own certificate is good for nothing but its renewal.
    pub(crate) fn is_expired(&self) -> bool {
        self.credentials.load().expires() <= Timestamp::now()
    }

    /// Whether this node takes part in links of `kind`.
    pub(crate) fn offers(&self, kind: LinkKind) -> bool {
        self.kinds.contains(&kind)
    }

    pub(crate) fn peers(&self) -> Vec<Arc<Dialed>> {
        self.dialed.lock().expect("no code panics under this lock").clone()
    }

    /// An id that no link of this process has had.
    pub(crate) fn next_link(&self) -> LinkId {
        LinkId(self.last_link.fetch_add(1, Ordering::Relaxed) + 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn links_that_others_dialed_are_counted() {
        let (neighbors, hop): (Neighbors, NodeId) = (Neighbors::default(), "hop-1".parse().unwrap());
        neighbors.up(&hop, true);
        assert!(!neighbors.has(&hop));
        neighbors.up(&hop, false);
        neighbors.up(&hop, false);
        neighbors.down(&hop, false);
        assert!(neighbors.has(&hop));
        neighbors.down(&hop, false);
        neighbors.gone(&hop).await;
    }
}
