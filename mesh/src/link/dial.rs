//! Keeps the links that this node is told to dial.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::{Error, Greeted, Side, greet, run};
use crate::config::Peer;
use crate::node::{Node, Progress, random_u64};

/// First wait after a link was lost; doubles up to [`LONGEST`], so that a neighbour that comes back is linked within
/// two seconds.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// A neighbour that refused us is asked again this seldom at last.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

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

/// Dials the neighbour at `index` of the node's, runs the link, and dials again, until the node is cancelled.
pub(crate) async fn keep_linked(node: Arc<Node>, index: usize) {
    let Some(dialed) = node.dialed.get(index) else { return };
    let (peer, cancel) = (&dialed.peer, &node.cancel);
    let mut backoff = Backoff::default();
    let mut silent = false;
    loop {
        let attempt = tokio::select! {
            attempt = dial(&node, peer) => attempt,
            () = cancel.cancelled() => return,
        };
        let wait = match attempt {
            Ok(greeted) => {
                backoff.reset();
                silent = false;
                dialed.set(Progress::Linked(greeted.neighbor().clone()));
                // Ends by itself when the endpoints close.
                let end = run(&node, greeted, true).await;
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
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cancel.cancelled() => return,
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// One attempt: every address of the name in turn.
async fn dial(node: &Node, peer: &Peer) -> Result<Greeted, Error> {
    let resolve = |source| Error::Resolve { address: peer.label().to_owned(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(peer.label()).await.map_err(resolve)?.collect();
    let nothing = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    let mut failure = resolve(nothing);
    for address in addresses {
        match dial_address(node, address, peer).await {
            Ok(greeted) => return Ok(greeted),
            // Who says no at one address would say it at the next.
            Err(error) if error.is_refusal() => return Err(error),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn dial_address(node: &Node, address: SocketAddr, peer: &Peer) -> Result<Greeted, Error> {
    let connecting = node.endpoints.dial(address).map_err(Error::Dial)?;
    let connection = connecting.await.map_err(Error::Connection)?;
    greet(node, connection, Side::Dialed { expect: peer.name.as_ref(), cost: peer.cost }).await
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
