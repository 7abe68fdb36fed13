//! The live links of this process, and which of them matter for what: a hop with hundreds of execution nodes looks at the
//! few links to other hops whenever it seeks a way, and at one of the others only when that one's end is concerned.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Instant;

use plexus_proto::id::{Address, Identity, Role};

use super::LinkId;
use super::announcement::COST_MAX;
use super::told::Telling;
use super::wants::Wants;

/// One live link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: Identity,
    pub(super) cost: u32,
    pub(super) silent: bool,
    pub(super) wants: Wants,
    pub(super) telling: Telling,
    pub(super) since: Instant,
}

impl Link {
    pub(super) fn cost_now(&self) -> u32 {
        if self.silent { COST_MAX } else { self.cost }
    }
}

/// All of them, by id. Who is at the other end of one never changes.
#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<LinkId, Link>,
    /// Those to neighbours that keep a map.
    keepers: BTreeSet<LinkId>,
    /// Those to execution nodes that were not told anything yet.
    untold: BTreeSet<LinkId>,
    by_peer: BTreeMap<Address, BTreeSet<LinkId>>,
}

impl Deref for Links {
    type Target = BTreeMap<LinkId, Link>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Links {
    pub(super) fn get_mut(&mut self, id: &LinkId) -> Option<&mut Link> {
        self.all.get_mut(id)
    }

    pub(super) fn insert(&mut self, id: LinkId, link: Link) {
        self.remove(id);
        self.by_peer.entry(link.peer.address).or_default().insert(id);
        match link.peer.role {
            Role::Hop | Role::Controller => self.keepers.insert(id),
            Role::Execution => self.untold.insert(id),
        };
        self.all.insert(id, link);
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        let gone = self.all.remove(&id)?;
        self.keepers.remove(&id);
        self.untold.remove(&id);
        if let Some(others) = self.by_peer.get_mut(&gone.peer.address) {
            others.remove(&id);
            if others.is_empty() {
                self.by_peer.remove(&gone.peer.address);
            }
        }
        Some(gone)
    }

    /// Those to hops and controllers.
    pub(super) fn keepers(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.some(&self.keepers)
    }

    /// Those to hops.
    pub(super) fn hops(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.keepers().filter(|(_, link)| link.peer.role == Role::Hop)
    }

    /// Those to execution nodes that were not told anything yet.
    pub(super) fn untold(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.some(&self.untold)
    }

    /// Notes that the node at the other end was told where things are.
    pub(super) fn told(&mut self, id: LinkId) {
        self.untold.remove(&id);
    }

    /// Those to one neighbour.
    pub(super) fn to(&self, peer: Address) -> impl Iterator<Item = (LinkId, &Link)> {
        self.by_peer.get(&peer).into_iter().flat_map(|some| self.some(some))
    }

    fn some<'a>(&'a self, ids: &'a BTreeSet<LinkId>) -> impl Iterator<Item = (LinkId, &'a Link)> {
        ids.iter().filter_map(|&id| Some((id, self.all.get(&id)?)))
    }
}
