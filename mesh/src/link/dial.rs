//! Keeps the links that this node is told to dial.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connect::connect;
use super::{End, Greeted, Origin, code, run};
use crate::config::{LinkKind, Peer};
use crate::error::chain;
use crate::liveness::Pulse;
use crate::node::{Dialed, Node, Progress, random_u64};

/// First wait after a link was lost; doubles up to [`LONGEST`], so that a neighbour that comes back is linked within
/// two seconds.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// A neighbour that refused us is asked again this seldom at last.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// First wait of a link over TCP before QUIC is tried again, and the longest; between half and all of it.
const UP_FIRST: Duration = Duration::from_secs(5);
const UP_SELDOM: Duration = Duration::from_secs(60);
/// Between two tries of TCP beside a silent link.
const SILENT_AGAIN: Duration = Duration::from_millis(500);
/// How long the old link stays beside the better one: what is on its way arrives, and both ends know the new one.
const OVERLAP: Duration = Duration::from_millis(500);

/// How long to wait before the next attempt.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next wait, between half and all of what the count of failures gives; `random` decides where.
    fn next(&mut self, refused: bool, random: u64) -> Duration {
        let longest = if refused { LONGEST_REFUSED } else { LONGEST };
        let whole = SHORTEST.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures += 1;
        whole / 2 + whole.mul_f64(0.5 * (random as f64 / u64::MAX as f64))
    }
}

/// Dials a neighbour, runs the link, and dials again, until its cancellation. A neighbour that has dialed us is left in
/// peace meanwhile.
pub(crate) async fn keep_linked(node: Arc<Node>, dialed: Arc<Dialed>) {
    let cancelled = dialed.cancel.clone();
    tokio::select! {
        () = dial_on(&node, &dialed) => {}
        () = cancelled.cancelled() => {}
    }
}

async fn dial_on(node: &Arc<Node>, dialed: &Dialed) {
    let peer = Arc::new(dialed.peer.clone());
    let mut known = peer.name.clone();
    let mut backoff = Backoff::default();
    let mut silent = false;
    loop {
        if let Some(neighbor) = known.as_ref().filter(|neighbor| node.neighbors.has(neighbor)) {
            dialed.set(Progress::Linked(neighbor.clone()));
            node.neighbors.gone(neighbor).await;
            dialed.set(Progress::Failed("link of the neighbour's is lost".to_owned()));
            // It dials again, too; who is first is left to chance.
            tokio::time::sleep(backoff.next(false, random_u64())).await;
            continue;
        }
        let wait = match connect(node, &peer, &peer.kinds).await {
            Ok(greeted) => {
                backoff.reset();
                silent = false;
                known = Some(greeted.neighbor().clone());
                dialed.set(Progress::Linked(greeted.neighbor().clone()));
                let end = run_best(node, dialed, &peer, greeted).await;
                if end.code() == Some(code::DUPLICATE) {
                    continue;
                }
                dialed.set(Progress::Failed(format!("link lost: {end}")));
                backoff.next(false, random_u64())
            }
            Err(error) if error.is_refusal() => {
                dialed.set(Progress::Failed(chain(&error)));
                let wait = backoff.next(true, random_u64());
                warn!(
                    address = peer.label(),
                    peer = peer.name.as_ref().map(tracing::field::display),
                    error = &error as &dyn std::error::Error,
                    advice = error.advice(),
                    retry_ms = wait.as_millis() as u64,
                    "link refused"
                );
                wait
            }
            Err(error) => {
                dialed.set(Progress::Failed(chain(&error)));
                let wait = backoff.next(false, random_u64());
                // Once loud, then quiet: a hop may be away for days.
                if silent {
                    debug!(
                        address = peer.label(),
                        error = &error as &dyn std::error::Error,
                        "peer does not answer"
                    );
                } else {
                    info!(
                        address = peer.label(),
                        error = &error as &dyn std::error::Error,
                        "peer does not answer, dialing on"
                    );
                }
                silent = true;
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Runs a link to its end, by the best kind that works. One over TCP makes room for one over QUIC as soon as that
/// works; one over QUIC that falls silent for one over TCP, if the neighbour answers there: UDP is blocked then. Either way
/// the new one is up before the old one goes, so streams notice nothing, or no more than the silence.
async fn run_best(node: &Arc<Node>, dialed: &Dialed, peer: &Arc<Peer>, greeted: Greeted) -> End {
    let mut link = Running::start(node, dialed, peer, greeted);
    let mut wait = UP_FIRST;
    let offers = |kind| peer.kinds.contains(&kind) && node.offers(kind);
    let (quic, tcp) = (offers(LinkKind::Quic), offers(LinkKind::Tcp));
    let movable = |link: &Running| if link.on_tcp { quic } else { tcp };
    while movable(&link) {
        let kinds = [if link.on_tcp { LinkKind::Quic } else { LinkKind::Tcp }];
        let due = async {
            if link.on_tcp {
                tokio::time::sleep(wait / 2 + jitter(wait / 2)).await
            } else {
                link.pulse.silence().await
            }
        };
        tokio::select! {
            end = &mut link.task => return ended(end),
            () = due => {}
        }
        let other = tokio::select! {
            end = &mut link.task => return ended(end),
            other = connect(node, peer, &kinds) => other,
        };
        if link.on_tcp {
            wait = (wait * 2).min(UP_SELDOM);
        }
        let other = match other {
            Ok(other) if link.on_tcp || !link.pulse.is_heard_again() => other,
            // It is about to be taken back, or nobody answers by TCP either: a link that stays silent ends by itself.
            _ if !link.on_tcp => {
                tokio::select! {
                    end = &mut link.task => return ended(end),
                    () = tokio::time::sleep(SILENT_AGAIN) => continue,
                }
            }
            _ => continue,
        };
        info!(peer = %other.neighbor(), kind = %kinds[0], "link moves");
        let old = std::mem::replace(&mut link, Running::start(node, dialed, peer, other));
        tokio::time::sleep(OVERLAP).await;
        old.cancel.cancel();
        let _ = old.task.await;
    }
    let end = (&mut link.task).await;
    ended(end)
}

/// A link in a task of its own; ends when dropped.
struct Running {
    task: tokio::task::JoinHandle<End>,
    on_tcp: bool,
    pulse: Arc<Pulse>,
    cancel: CancellationToken,
    _guard: tokio_util::sync::DropGuard,
}

impl Running {
    fn start(node: &Arc<Node>, dialed: &Dialed, peer: &Peer, greeted: Greeted) -> Self {
        let (cancel, pulse) = (dialed.cancel.child_token(), Arc::new(Pulse::new(node.watch.clone())));
        let origin =
            Origin { dialed: true, bandwidth: peer.bandwidth, cancel: cancel.clone(), pulse: pulse.clone() };
        let (running, on_tcp) = (node.clone(), greeted.is_tcp());
        let task = node.tasks.spawn(async move { run(&running, greeted, origin).await });
        Self { task, on_tcp, pulse, _guard: cancel.clone().drop_guard(), cancel }
    }
}

fn ended(task: Result<End, tokio::task::JoinError>) -> End {
    task.unwrap_or_else(|error| End::Broken(Arc::new(std::io::Error::other(error))))
}

/// Anything from nothing to `most`.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(random_u64() as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_limit_and_are_jittered() {
        for (refused, longest) in [(false, LONGEST), (true, LONGEST_REFUSED)] {
            let mut backoff = Backoff::default();
            let mut whole = SHORTEST;
            for _ in 0..40 {
                let wait = backoff.next(refused, u64::MAX);
                assert_eq!(wait, whole);
                whole = (whole * 2).min(longest);
            }
            assert_eq!(backoff.next(refused, 0), longest / 2, "jitter takes off up to half");
            backoff.reset();
            assert_eq!(backoff.next(refused, u64::MAX), SHORTEST);
        }
    }
}
