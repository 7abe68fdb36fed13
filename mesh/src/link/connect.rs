//! One attempt to link with a neighbour: all its addresses, all kinds of link, the first that says hello.
//!
//! Addresses are tried a quarter of a second after one another, IPv6 and IPv4 in turn, and none is given up for the next
//! (RFC 8305). QUIC has a head start of a second before TCP: where UDP is blocked a link is up within three.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::frames::{self, Target};
use super::{Error, Fresh, Greeted, Side, greet};
use crate::bounded::Bounded;
use crate::config::{LinkKind, Peer};
use crate::node::Node;
use crate::settings::SERVER_NAME;

/// Between two addresses.
const STAGGER: Duration = Duration::from_millis(250);
/// What QUIC is given before TCP is tried beside it. Two round trips of a satellite are longer; the link then moves up.
const HEAD_START: Duration = Duration::from_secs(1);
/// Longest attempt at one address.
const PATIENCE: Duration = Duration::from_secs(10);

/// Links with `peer` by one of `kinds`.
///
/// # Errors
/// Why the last attempt failed, or the first refusal: who says no at one address would say it at the next.
pub(crate) async fn connect(
    node: &Arc<Node>,
    peer: &Arc<Peer>,
    kinds: &[LinkKind],
) -> Result<Greeted, Error> {
    let quic = kinds.contains(&LinkKind::Quic) && node.offers(LinkKind::Quic);
    let tcp = kinds.contains(&LinkKind::Tcp) && node.offers(LinkKind::Tcp);
    let (addresses, mut failure) = resolve(peer, quic || (tcp && peer.proxy.is_none())).await;
    let mut attempts = JoinSet::new();
    let mut delay = Duration::ZERO;
    if quic {
        for &address in &addresses {
            attempts.spawn(attempt(node.clone(), peer.clone(), Way::Quic(address), delay));
            delay += STAGGER;
        }
    }
    if tcp {
        delay = if attempts.is_empty() { Duration::ZERO } else { HEAD_START };
        let targets: Vec<Target> = match &peer.proxy {
            None => addresses.into_iter().map(Target::Direct).collect(),
            Some(proxy) => {
                let through =
                    |target: &String| Target::Through { proxy: proxy.clone(), target: target.clone() };
                peer.addresses.iter().map(through).collect()
            }
        };
        for target in targets {
            attempts.spawn(attempt(node.clone(), peer.clone(), Way::Tcp(target), delay));
            delay += STAGGER;
        }
    }
    let mut refusal = None;
    while let Some(ended) = attempts.join_next().await {
        match ended {
            Ok(Ok(greeted)) => return Ok(greeted),
            Ok(Err(error)) if error.is_refusal() => refusal = refusal.or(Some(error)),
            // That nobody answered one of the kinds says less than what another one was told.
            Ok(Err(Error::Timeout)) => failure = failure.or(Some(Error::Timeout)),
            Ok(Err(error)) => failure = Some(error),
            // A panic in there has been reported.
            Err(_) => {}
        }
    }
    let nothing =
        || std::io::Error::new(std::io::ErrorKind::NotFound, "no kind of link is allowed on both sides");
    Err(refusal.or(failure).unwrap_or_else(|| Error::Dial(nothing())))
}

/// Every address of every name, IPv6 and IPv4 in turn, and why a name has none.
async fn resolve(peer: &Peer, wanted: bool) -> (Vec<SocketAddr>, Option<Error>) {
    let (mut addresses, mut failure) = (Vec::new(), None);
    if !wanted {
        return (addresses, failure);
    }
    for name in &peer.addresses {
        match tokio::net::lookup_host(name).await {
            Ok(found) => addresses.extend(in_turn(found.collect())),
            Err(source) => failure = Some(Error::Resolve { address: name.clone(), source }),
        }
    }
    addresses.dedup();
    if addresses.is_empty() && failure.is_none() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        failure = Some(Error::Resolve { address: peer.label().to_owned(), source });
    }
    (addresses, failure)
}

/// One family after the other, beginning with the one that the resolver prefers.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let count = addresses.len();
    let (mut preferred, mut other): (std::collections::VecDeque<_>, std::collections::VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let mut turns = Vec::with_capacity(count);
    while !preferred.is_empty() || !other.is_empty() {
        turns.extend(preferred.pop_front());
        turns.extend(other.pop_front());
    }
    turns
}

enum Way {
    Quic(SocketAddr),
    Tcp(Target),
}

async fn attempt(node: Arc<Node>, peer: Arc<Peer>, way: Way, delay: Duration) -> Result<Greeted, Error> {
    tokio::time::sleep(delay).await;
    let fresh = async {
        match way {
            Way::Quic(address) => {
                let (connecting, socket) = node.endpoints.dial(address).map_err(Error::Dial)?;
                Ok(Fresh::Quic(connecting.await.map_err(Error::Connection)?, socket))
            }
            Way::Tcp(target) => {
                let stream = frames::connect(&target).await.map_err(Error::Dial)?;
                let remote = stream.peer_addr().map_err(Error::Dial)?;
                frames::prepare(&stream);
                let name = SERVER_NAME.try_into().expect("the name is a host name");
                let connecting = node.endpoints.connector().connect(name, Bounded::new(stream));
                let stream = connecting.await.map_err(Error::Tls)?;
                Ok(Fresh::Tcp(frames::authenticated(stream), remote))
            }
        }
    };
    let fresh = tokio::time::timeout(PATIENCE, fresh).await.map_err(|_| Error::Timeout)??;
    let sealed = peer.kinds.contains(&LinkKind::Sealed);
    greet(&node, fresh, Side::Dialed { expect: peer.name.as_ref(), cost: peer.cost, sealed }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1"]);
        assert_eq!(in_turn(mixed), parse(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "[::3]:1"]));
        let four = parse(&["10.0.0.1:1", "[::1]:1"]);
        assert_eq!(in_turn(four.clone()), four);
        assert!(in_turn(Vec::new()).is_empty());
    }
}
