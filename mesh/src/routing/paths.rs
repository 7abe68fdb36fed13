//! Shortest paths over the announced links, with the runner-up by another link.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use plexus_proto::id::{Address, Identity, Role};

use super::{Link, LinkId, NextHop, Origin, Route};

/// What is known when routes are computed.
pub(super) struct Map<'a> {
    pub(super) me: &'a Identity,
    pub(super) links: &'a BTreeMap<LinkId, Link>,
    pub(super) origins: &'a BTreeMap<Address, Origin>,
}

/// One way to reach a node. Field order is the order of preference: cheap, then few hops, then the neighbor with
/// the lowest address, then its oldest link; so every router breaks ties the same way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    cost: u64,
    hops: u32,
    neighbor: Address,
    link: LinkId,
    node: Address,
}

impl Map<'_> {
    /// The best way to every reachable node, and the best one that leaves by another link.
    ///
    /// Dijkstra's algorithm where each node is settled up to twice, by ways with different first links.
    pub(super) fn routes(&self) -> BTreeMap<Address, Route> {
        let mut settled: BTreeMap<Address, Route> = BTreeMap::new();
        let mut open: BinaryHeap<Reverse<Way>> = self.first_ways().map(Reverse).collect();
        while let Some(Reverse(way)) = open.pop() {
            let next =
                NextHop { link: way.link, cost: u32::try_from(way.cost).unwrap_or(u32::MAX), hops: way.hops };
            match settled.get_mut(&way.node) {
                None => {
                    settled.insert(way.node, Route { next, second: None });
                }
                Some(route) if route.second.is_none() && route.next.link != way.link => {
                    route.second = Some(next)
                }
                Some(_) => continue,
            }
            let Some(origin) = self.origins.get(&way.node) else { continue };
            if origin.newest.identity.role != Role::Hop {
                continue; // Only hops transit.
            }
            for (&node, &cost) in &origin.newest.links {
                let done = settled.get(&node).is_some_and(|r| r.next.link == way.link || r.second.is_some());
                if node == self.me.address || done {
                    continue;
                }
                if let Some(cost) = self.edge(way.node, node, cost) {
                    open.push(Reverse(Way { cost: way.cost + cost, hops: way.hops + 1, node, ..way }));
                }
            }
        }
        settled
    }

    /// Our own links that the other end announces too.
    fn first_ways(&self) -> impl Iterator<Item = Way> {
        self.links.iter().filter_map(|(&link, known)| {
            let neighbor = known.peer.address;
            let cost = self.edge(self.me.address, neighbor, known.cost)?;
            Some(Way { cost, hops: 1, neighbor, link, node: neighbor })
        })
    }

    /// Cost of a link that `from` announces at `cost`: the dearer of what its ends say, so that both directions
    /// take the same way; nothing unless `to` announces it too.
    fn edge(&self, from: Address, to: Address, cost: u32) -> Option<u64> {
        let back = *self.origins.get(&to)?.newest.links.get(&from)?;
        Some(u64::from(cost.max(back)))
    }
}
