//! The forwarding table: the best way to every node, and the one to take when its first link falls silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use plexus_proto::id::{Address, Role};

use super::graph::{Length, Tree};
use super::{Effect, LinkId, Router};

/// One way out towards a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The link to send on.
    pub link: LinkId,
    /// Sum of the costs on the way, at most `u32::MAX`.
    pub cost: u32,
    /// Links crossed on the way.
    pub hops: u32,
}

/// How to reach a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The cheapest way.
    pub next: NextHop,
    /// The way to take from the moment at which `next.link` falls silent: by another link, to a neighbour that will
    /// not send the packet back here, and if there is one, past the neighbour that fell silent.
    pub backup: Option<NextHop>,
    /// Another number whenever a link broke on what was a shortest way there, also if what is left is as short: what
    /// was under way may be lost.
    pub path: u32,
}

/// Every node that can be reached, but not this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    table: BTreeMap<Address, Route>,
}

/// A route that is new, or `None` where there is none any more.
pub type RouteChange = (Address, Option<Route>);

impl Routes {
    /// How to reach `destination`; `None` when no live way is known.
    pub fn get(&self, destination: Address) -> Option<&Route> {
        self.table.get(&destination)
    }

    /// Every route, by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Address, &Route)> {
        self.table.iter().map(|(&address, route)| (address, route))
    }

    /// How many nodes can be reached.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nobody can be reached.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// One way to reach a node. Field order is the order of preference: short, then over the neighbour with the lowest
/// address, then over its oldest link; so every router breaks ties the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) length: Length,
    pub(super) neighbor: Address,
    pub(super) link: LinkId,
    /// What is left of it behind the neighbour.
    pub(super) rest: Length,
    /// What the neighbour calls its path; 0 where this router computes itself.
    pub(super) path: u32,
}

impl Way {
    fn next_hop(&self) -> NextHop {
        NextHop { link: self.link, cost: self.length.cost(), hops: self.length.hops() }
    }
}

/// What a round of computing has to look at.
#[derive(Debug, Default)]
struct Stale {
    destinations: BTreeSet<Address>,
    /// Those to which some shortest way broke, whatever the neighbour it began with.
    broken: BTreeSet<Address>,
    all: bool,
}

impl Router {
    /// Brings trees and routes up to date with the graph, and says what changed.
    pub(super) fn compute(&mut self, now: Instant) {
        let stale = if self.keeps_map() { self.mend_trees() } else { self.leaf_stale() };
        let destinations: Vec<Address> = if stale.all {
            let known = self.routes.table.keys().chain(self.origins.keys()).copied();
            known.chain(self.links.values().map(|link| link.peer.address)).collect::<BTreeSet<_>>()
        } else {
            stale.destinations
        }
        .into_iter()
        .collect();
        self.generation = self.generation.wrapping_add(1);
        let mut changes = Vec::new();
        for destination in destinations {
            let before = self.routes.table.get(&destination).copied();
            let mut after = self.evaluate(destination);
            if let (Some(after), Some(before)) = (&mut after, before)
                && self.keeps_map()
            {
                after.path = if stale.broken.contains(&destination) { self.generation } else { before.path };
            }
            if before == after {
                continue;
            }
            match after {
                Some(route) => self.routes.table.insert(destination, route),
                None => self.routes.table.remove(&destination),
            };
            self.reached(destination, after.is_some(), now);
            changes.push((destination, after));
        }
        if self.me.role == Role::Hop && std::mem::take(&mut self.own_edges_changed) {
            self.begin_telling();
        }
        if !changes.is_empty() {
            self.revision += 1;
            self.retell(changes.iter().map(|(address, _)| *address));
            self.effects.push_back(Effect::Routes(changes));
        }
    }

    fn reached(&mut self, destination: Address, reachable: bool, now: Instant) {
        let repairs = reachable && self.keeps_map();
        let Some(origin) = self.origins.get_mut(&destination).filter(|known| known.reachable != reachable)
        else {
            return;
        };
        origin.reachable = reachable;
        origin.since = now;
        // A digest sent a moment ago left it out, and a link that is younger than its news has not heard them.
        if repairs && origin.heard <= self.newest_link {
            self.digest_at = self.digest_at.min(now + super::DIGEST_SOON);
        }
    }

    fn mend_trees(&mut self) -> Stale {
        let mut stale = Stale { all: std::mem::take(&mut self.all_stale), ..Stale::default() };
        let (changes, leaf_changes) = self.graph.take_changes();
        let before: BTreeSet<Address> = self.trees.keys().copied().collect();
        let neighbors: BTreeSet<Address> = self.links.hops().map(|(_, link)| link.peer.address).collect();
        if !changes.is_empty() || !leaf_changes.is_empty() || before != neighbors {
            self.revision += 1;
        }
        self.trees.retain(|neighbor, _| neighbors.contains(neighbor));
        let (mut moved, mut broken) = (BTreeSet::new(), BTreeSet::new());
        if !changes.is_empty() {
            for tree in self.trees.values_mut() {
                let mended = tree.mend(&self.graph, &changes);
                moved.extend(mended.moved);
                broken.extend(mended.broken);
            }
        }
        for neighbor in neighbors.difference(&before) {
            let root = self.graph.place(*neighbor);
            self.trees.insert(*neighbor, Tree::new(&self.graph, root));
            stale.all = true;
        }
        stale.all |= before.difference(&neighbors).next().is_some();
        // What backups are measured against has moved.
        let measures = neighbors.iter().chain([&self.me.address]);
        stale.all |= measures.filter_map(|&node| self.graph.slot(node)).any(|slot| moved.contains(&slot));
        for &slot in moved.union(&broken) {
            let hop = self.graph.address(slot);
            let here: Vec<Address> = std::iter::once(hop).chain(self.graph.leaves(slot)).collect();
            if broken.contains(&slot) {
                stale.broken.extend(&here);
            }
            stale.destinations.extend(here);
        }
        for (leaf, worse) in leaf_changes {
            stale.destinations.insert(leaf);
            if worse {
                stale.broken.insert(leaf);
            }
        }
        stale.destinations.append(&mut self.stale);
        stale.destinations.remove(&self.me.address);
        stale
    }

    fn leaf_stale(&mut self) -> Stale {
        let all = std::mem::take(&mut self.all_stale);
        Stale { all, destinations: std::mem::take(&mut self.stale), ..Stale::default() }
    }

    fn evaluate(&self, destination: Address) -> Option<Route> {
        if destination == self.me.address {
            return None;
        }
        let ways = self.ways(destination);
        let best = *ways.iter().min()?;
        let others = ways.iter().filter(|way| way.link != best.link);
        let backup = others.filter_map(|way| Some((!self.saves(way, &best, destination)?, way))).min();
        let backup = backup.map(|(_, way)| way.next_hop());
        Some(Route { next: best.next_hop(), backup, path: best.path })
    }

    /// One for each link that leads there: those to hops, and the node's own. Where no map is kept it may be any.
    fn ways(&self, destination: Address) -> Vec<Way> {
        let way = |id| self.way(id, destination);
        if !self.keeps_map() {
            return self.links.keys().copied().filter_map(way).collect();
        }
        let hops = self.links.hops().map(|(id, _)| id);
        let own = self.links.to(destination).filter(|(_, link)| link.peer.role != Role::Hop);
        hops.chain(own.map(|(id, _)| id)).filter_map(way).collect()
    }

    /// The best way that begins with `link`.
    fn way(&self, id: LinkId, destination: Address) -> Option<Way> {
        let link = self.links.get(&id)?;
        let neighbor = link.peer.address;
        let (first, rest, path) = if self.keeps_map() {
            let first = self.first(id)?;
            let rest = match self.trees.get(&neighbor) {
                _ if neighbor == destination => Length::ZERO,
                Some(tree) => self.graph.reach(tree, destination),
                None => Length::NONE,
            };
            (first, rest, 0)
        } else {
            let (rest, path) = self.told_of(id, destination);
            (Length::link(link.cost_now()), rest, path)
        };
        let length = first.plus(rest);
        length.exists().then_some(Way { length, neighbor, link: id, rest, path })
    }

    /// Whether `other` is a way out when the link of `best` falls silent: `None` if the packet might come back,
    /// otherwise whether it surely avoids the neighbour at the end of that link (RFC 5286, inequalities 1 and 3).
    fn saves(&self, other: &Way, best: &Way, destination: Address) -> Option<bool> {
        if other.neighbor == best.neighbor {
            return Some(best.neighbor == destination);
        }
        if !self.keeps_map() {
            return Some(true); // Nobody sends through a leaf.
        }
        let Some(tree) = self.trees.get(&other.neighbor) else { return Some(true) };
        if self.me.role == Role::Hop {
            let back = self.graph.reach(tree, self.me.address).plus(best.length);
            if other.rest >= back {
                return None;
            }
        }
        let past = self.graph.reach(tree, best.neighbor).plus(best.rest);
        Some(best.neighbor == destination || other.rest < past)
    }
}
