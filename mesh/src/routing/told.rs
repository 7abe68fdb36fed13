//! Nodes that keep no map, and the hops that tell them the way.
//!
//! A hop tells each execution node that is linked to it what every controller costs from there, and whomever else
//! that node has asked for; after each change, and `no route` when there is none any more. The announcement that
//! certifies a destination goes before. The node adds the cost of its link, takes the least, and keeps the second.

use std::collections::{BTreeMap, BTreeSet};

use plexus_proto::id::{Address, Identity, NodeId, Role};
use plexus_proto::link::{Ask, LinkMessageKind, Told, ToldRoute};

use super::graph::Length;
use super::{Effect, LinkId, Router};

/// Destinations that one node may ask for, and that it remembers having asked for.
const ASKED_MAX: usize = 1024;
/// Names looked up for one message.
const NAMES_MAX: usize = 16;
/// Routes taken from one hop.
const TOLD_MAX: usize = 4096;
/// Announcements that a node without a map keeps.
const KEPT_MAX: usize = 4096;

/// What goes between a hop and a node without a map, over one link; kept at either end.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Routes told, and not taken back.
    routes: BTreeMap<Address, ToldRoute>,
    /// At the hop: the link is announced by both ends, so the node can be reached by those whom it is told of.
    begun: bool,
    /// At the hop: epoch of the announcement that was shown.
    shown: BTreeMap<Address, u64>,
    /// At the hop: whom the node wants besides controllers.
    asked: BTreeSet<Address>,
}

/// Whom a node without a map has asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    addresses: BTreeSet<Address>,
    /// Names not found yet, with the hops that do not know them.
    names: BTreeMap<NodeId, BTreeSet<LinkId>>,
}

impl Telling {
    fn sum(&self) -> u64 {
        let mix =
            |sum: u64, word: u32| (sum ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let of = |told: &ToldRoute| {
            [told.cost, told.hops, told.path].into_iter().fold(told.destination.into(), mix)
        };
        self.routes.values().fold(1, |sum: u64, told| sum.wrapping_add(of(told)))
    }
}

// At the hop.
impl Router {
    fn is_told(&self, link: LinkId) -> bool {
        self.me.role == Role::Hop
            && self.links.get(&link).is_some_and(|known| known.peer.role == Role::Execution)
    }

    /// Begins to tell the nodes whose link with this hop both ends have announced by now.
    pub(super) fn begin_telling(&mut self) {
        let ready = self.links.untold().map(|(id, _)| id).filter(|&id| self.first(id).is_some());
        let ready: Vec<LinkId> = ready.filter(|&id| self.is_told(id)).collect();
        for link in ready {
            self.tell_all(link);
        }
    }

    /// Tells all there is to tell.
    pub(super) fn tell_all(&mut self, link: LinkId) {
        if !self.is_told(link) {
            return;
        }
        self.links.told(link);
        let Some(known) = self.links.get_mut(&link) else { return };
        known.telling.begun = true;
        known.telling.routes.clear();
        known.telling.shown.clear();
        let wanted = known.telling.asked.iter().copied();
        let wanted: BTreeSet<Address> = wanted.chain(self.controllers.iter().copied()).collect();
        self.tell(link, wanted, true);
    }

    /// Tells whom it concerns that the ways to `changed` may be others now.
    pub(super) fn retell(&mut self, changed: impl Iterator<Item = Address>) {
        if self.me.role != Role::Hop {
            return;
        }
        let mut by_link: BTreeMap<LinkId, BTreeSet<Address>> = BTreeMap::new();
        for address in changed {
            if self.controllers.contains(&address) {
                let told = self.links.iter().filter(|(_, known)| known.peer.role == Role::Execution);
                for (&link, _) in told {
                    by_link.entry(link).or_default().insert(address);
                }
            } else if let Some(askers) = self.askers.get(&address) {
                for &link in askers {
                    by_link.entry(link).or_default().insert(address);
                }
            }
        }
        for (link, addresses) in by_link {
            self.tell(link, addresses, false);
        }
    }

    fn tell(&mut self, link: LinkId, addresses: BTreeSet<Address>, whole: bool) {
        if self.links.get(&link).is_none_or(|known| !known.telling.begun) {
            return;
        }
        let mut routes = Vec::new();
        for address in addresses {
            let Some(known) = self.links.get_mut(&link) else { return };
            if address == known.peer.address {
                continue;
            }
            let next = self.routes.get(address).filter(|route| route.next.link != link);
            let told = match (next, known.telling.routes.contains_key(&address)) {
                (Some(route), _) => ToldRoute {
                    destination: address.0,
                    cost: route.next.cost,
                    hops: route.next.hops,
                    path: route.path,
                },
                (None, true) => ToldRoute { destination: address.0, ..ToldRoute::default() },
                (None, false) => continue,
            };
            if told.cost == 0 {
                known.telling.routes.remove(&address);
            } else if known.telling.routes.insert(address, told) == Some(told) {
                continue;
            }
            routes.push(told);
            let Some(origin) = self.origins.get(&address).filter(|_| told.cost > 0) else { continue };
            let epoch = origin.newest.version.epoch;
            if known.telling.shown.insert(address, epoch) != Some(epoch) {
                let signed = origin.newest.signed.clone();
                self.send_announcement(link, &signed);
            }
        }
        if whole || !routes.is_empty() {
            self.send(link, LinkMessageKind::Told(Told { routes, whole, unknown: Vec::new() }));
        }
    }

    pub(super) fn on_ask(&mut self, link: LinkId, ask: &Ask) {
        if !self.is_told(link) {
            return;
        }
        let mut wanted: BTreeSet<Address> =
            ask.addresses.iter().take(ASKED_MAX).map(|&a| Address(a)).collect();
        let mut unknown = Vec::new();
        for name in ask.names.iter().take(NAMES_MAX) {
            let found = name.parse::<NodeId>().ok().and_then(|name| {
                let found = self.find(&name).filter(|known| known.reachable)?;
                Some(found.identity.address)
            });
            match found {
                Some(address) => wanted.extend([address]),
                None => unknown.push(name.clone()),
            }
        }
        if let Some(known) = self.links.get_mut(&link) {
            for &address in &wanted {
                // Asked again: what was shown did not arrive, or is not believed any more.
                known.telling.routes.remove(&address);
                known.telling.shown.remove(&address);
                if known.telling.asked.len() < ASKED_MAX && known.telling.asked.insert(address) {
                    self.askers.entry(address).or_default().insert(link);
                }
            }
        }
        if ask.all {
            self.tell_all(link);
        } else {
            self.tell(link, wanted, false);
        }
        if !unknown.is_empty() {
            self.send(link, LinkMessageKind::Told(Told { routes: Vec::new(), whole: false, unknown }));
        }
    }

    /// Forgets what the node at the end of a link wanted.
    pub(super) fn unask(&mut self, link: LinkId, telling: &Telling) {
        for address in &telling.asked {
            if let Some(askers) = self.askers.get_mut(address) {
                askers.remove(&link);
                if askers.is_empty() {
                    self.askers.remove(address);
                }
            }
        }
    }

    pub(super) fn told_sum(&self, link: LinkId) -> u64 {
        self.links.get(&link).map_or(0, |known| known.telling.sum())
    }
}

// At the node without a map.
impl Router {
    /// What is left of the way behind the neighbour at the end of `link`, and its name for it.
    pub(super) fn told_of(&self, link: LinkId, destination: Address) -> (Length, u32) {
        let Some(known) = self.links.get(&link) else { return (Length::NONE, 0) };
        if known.peer.address == destination {
            return (Length::ZERO, 0);
        }
        match known.telling.routes.get(&destination) {
            Some(told) => (Length::told(told.cost, told.hops), told.path),
            None => (Length::NONE, 0),
        }
    }

    /// What its hop should have told over `link`, summed up; 0 if something that certifies it is missing.
    pub(super) fn heard_sum(&self, link: LinkId) -> u64 {
        let Some(known) = self.links.get(&link) else { return 0 };
        let certified = |address: &Address| {
            self.origins.contains_key(address) || self.links.to(*address).next().is_some()
        };
        if known.telling.routes.keys().all(certified) { known.telling.sum() } else { 0 }
    }

    pub(super) fn on_told(&mut self, link: LinkId, told: &Told) {
        if self.keeps_map() {
            return;
        }
        let Some(known) = self.links.get_mut(&link).filter(|known| known.peer.role == Role::Hop) else {
            return;
        };
        if told.whole {
            self.stale.extend(known.telling.routes.keys().copied());
            known.telling.routes.clear();
        }
        for route in told.routes.iter().take(TOLD_MAX) {
            let address = Address(route.destination);
            if route.cost == 0 {
                known.telling.routes.remove(&address);
            } else if known.telling.routes.len() < TOLD_MAX || known.telling.routes.contains_key(&address) {
                known.telling.routes.insert(address, *route);
            }
            self.stale.insert(address);
        }
        let hops: BTreeSet<LinkId> = self.links.hops().map(|(id, _)| id).collect();
        for name in told.unknown.iter().take(NAMES_MAX).filter_map(|name| name.parse::<NodeId>().ok()) {
            let Some(silent) = self.asked.names.get_mut(&name) else { continue };
            silent.insert(link);
            if hops.is_subset(silent) {
                self.asked.names.remove(&name);
                self.effects.push_back(Effect::Unknown(name));
            }
        }
    }

    /// Asks all hops for the way to nodes; whoever keeps a map knows it already.
    pub(super) fn on_lookup(&mut self, addresses: &[Address], names: &[NodeId]) {
        if self.keeps_map() {
            return names.iter().for_each(|name| self.effects.push_back(Effect::Unknown(name.clone())));
        }
        for &address in addresses {
            if self.asked.addresses.len() < ASKED_MAX {
                self.asked.addresses.insert(address);
            }
        }
        for name in names {
            if self.asked.names.len() < ASKED_MAX {
                self.asked.names.insert(name.clone(), BTreeSet::new());
            }
        }
        let ask = Ask {
            addresses: addresses.iter().map(|address| address.0).collect(),
            names: names.iter().map(ToString::to_string).collect(),
            all: false,
        };
        let hops: Vec<LinkId> = self.links.hops().map(|(link, _)| link).collect();
        if hops.is_empty() {
            let lost = std::mem::take(&mut self.asked.names);
            return lost.into_keys().for_each(|name| self.effects.push_back(Effect::Unknown(name)));
        }
        for link in hops {
            self.send(link, LinkMessageKind::Ask(ask.clone()));
        }
    }

    /// Asks a hop that has just come up for what the others were asked for.
    pub(super) fn ask_again(&mut self, link: LinkId) {
        let hop = self.links.get(&link).is_some_and(|known| known.peer.role == Role::Hop);
        if self.keeps_map() || !hop || (self.asked.addresses.is_empty() && self.asked.names.is_empty()) {
            return;
        }
        let ask = Ask {
            addresses: self.asked.addresses.iter().map(|address| address.0).collect(),
            names: self.asked.names.keys().take(NAMES_MAX).map(ToString::to_string).collect(),
            all: false,
        };
        self.send(link, LinkMessageKind::Ask(ask));
    }

    pub(super) fn ask_all(&mut self, link: LinkId) {
        let addresses = self.asked.addresses.iter().map(|address| address.0).collect();
        self.send(link, LinkMessageKind::Ask(Ask { addresses, names: Vec::new(), all: true }));
    }

    /// Whether a node without a map keeps an announcement of `who`: of controllers, and of whom it asked for.
    pub(super) fn cares_for(&mut self, who: &Identity) -> bool {
        if self.asked.names.remove(&who.node).is_some() && self.asked.addresses.len() < ASKED_MAX {
            self.asked.addresses.insert(who.address);
        }
        let room = self.origins.len() < KEPT_MAX || self.origins.contains_key(&who.address);
        room && (who.role == Role::Controller || self.asked.addresses.contains(&who.address))
    }
}
