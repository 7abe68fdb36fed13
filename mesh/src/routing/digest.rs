//! How neighbours find out cheaply that they hold the same, and what of it differs.
//!
//! Two nodes that keep maps compare their **island**: the hops that the hop among them can reach, and every leaf that
//! hangs on one. Both compute it from their own map; equal maps give equal sums, and the comparison costs one frame
//! of a few bytes. With a node that keeps no map, or to one, only the sender's own announcement is compared.

use std::collections::BTreeMap;
use std::time::Instant;

use plexus_proto::id::{Address, Role};
use plexus_proto::link::{Digest, DigestEntry, LinkMessageKind};

use super::graph::Tree;
use super::{LinkId, Router, Version};

/// Sums of an island, by the first byte of the hashed origin.
pub(super) const BUCKETS: usize = 256;
/// Entries in one message: a frame between neighbours holds 256 KiB, an entry at most 34 bytes.
const ENTRIES_MAX: usize = 4096;

/// Sums over one set of announcements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums(Box<[u64; BUCKETS]>);

impl Sums {
    fn of(entries: impl Iterator<Item = DigestEntry>) -> Self {
        let mut sums = Self(Box::new([0; BUCKETS]));
        for entry in entries {
            let slot = &mut sums.0[bucket(entry.origin)];
            *slot = slot.wrapping_add(hash(&entry));
        }
        sums
    }

    fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, bucket| sum.wrapping_add(*bucket))
    }
}

/// Sums that are good for one revision of the map, by the neighbour whose island they are of.
#[derive(Debug, Default)]
pub(super) struct Islands {
    revision: u64,
    sums: BTreeMap<Address, Sums>,
}

fn bucket(origin: u32) -> usize {
    (mix(u64::from(origin)) >> 56) as usize
}

fn hash(entry: &DigestEntry) -> u64 {
    let DigestEntry { origin, epoch, sequence, check } = *entry;
    mix(mix(mix(u64::from(origin) << 32 | u64::from(check)) ^ epoch) ^ sequence)
}

/// Spreads bits (SplitMix64); against chance, not malice: what is compared is signed.
fn mix(bits: u64) -> u64 {
    let z = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Router {
    /// Says the sum of what is compared over `link`.
    pub(super) fn send_digest(&mut self, link: LinkId) {
        let Some(known) = self.links.get(&link) else { return };
        let role = known.peer.role;
        let sum = if self.compares_islands(link) {
            self.island(link).total()
        } else if self.me.role == Role::Hop {
            self.told_sum(link)
        } else {
            Sums::of(self.own.signed.iter().map(|own| own.entry())).total()
        };
        // A leaf learns nothing from a leaf's or controller's sum of what it is never sent.
        if role == Role::Execution && self.me.role != Role::Hop {
            return;
        }
        self.send(link, LinkMessageKind::Digest(Digest { sum, ..Digest::default() }));
    }

    pub(super) fn on_digest(&mut self, link: LinkId, digest: &Digest, now: Instant) {
        let Some(from) = self.links.get(&link) else { return };
        let peer = from.peer.address;
        if !digest.entries.is_empty() {
            return self.on_entries(link, &digest.entries, now);
        }
        if !self.keeps_map() {
            if from.peer.role == Role::Hop && self.heard_sum(link) != digest.sum {
                self.ask_all(link);
            }
            return;
        }
        if !self.compares_islands(link) {
            let held = self.origins.get(&peer).map(|known| known.newest.entry());
            if Sums::of(held.into_iter()).total() != digest.sum && digest.sum != 0 {
                self.want(link, std::iter::once(peer.0), now);
            }
            return;
        }
        let ours = self.island(link);
        if let Ok(theirs) = <&[u64; BUCKETS]>::try_from(&digest.buckets[..]) {
            let differs: Vec<bool> = ours.0.iter().zip(theirs).map(|(ours, theirs)| ours != theirs).collect();
            let entries: Vec<DigestEntry> =
                self.islanders(peer).filter(|entry| differs[bucket(entry.origin)]).collect();
            for entries in entries.chunks(ENTRIES_MAX) {
                self.send(
                    link,
                    LinkMessageKind::Digest(Digest { entries: entries.to_vec(), ..Digest::default() }),
                );
            }
        } else if ours.total() != digest.sum {
            let buckets = ours.0.to_vec();
            self.send(
                link,
                LinkMessageKind::Digest(Digest { sum: ours.total(), buckets, ..Digest::default() }),
            );
        }
    }

    fn on_entries(&mut self, link: LinkId, entries: &[DigestEntry], now: Instant) {
        let differs = |entry: &&DigestEntry| {
            let theirs = Version { epoch: entry.epoch, sequence: entry.sequence };
            let (ours, check) = if entry.origin == self.me.address.0 {
                (self.own.version, self.own.signed.as_ref().map(|own| own.check))
            } else {
                match self.origins.get(&Address(entry.origin)) {
                    Some(known) => (known.newest.version, Some(known.newest.check)),
                    None => return true,
                }
            };
            ours < theirs || ours == theirs && check != Some(entry.check)
        };
        let lacking: Vec<u32> = entries.iter().filter(differs).map(|entry| entry.origin).collect();
        self.want(link, lacking.into_iter(), now);
    }

    /// Whether both ends of `link` keep maps and one of them is a hop.
    pub(super) fn compares_islands(&self, link: LinkId) -> bool {
        let peer = self.links.get(&link).map(|known| known.peer.role);
        match (self.me.role, peer) {
            (Role::Hop, Some(Role::Hop | Role::Controller)) | (Role::Controller, Some(Role::Hop)) => true,
            (Role::Hop | Role::Controller | Role::Execution, _) => false,
        }
    }

    /// Sums of the island at `link`.
    fn island(&mut self, link: LinkId) -> Sums {
        let hop = self.island_of(link);
        if self.islands.revision != self.revision {
            self.islands = Islands { revision: self.revision, sums: BTreeMap::new() };
        }
        // The island of another neighbour is this one too, if that neighbour is on it.
        let known = self.islands.sums.iter().find(|(other, _)| self.on_island(hop, **other));
        if let Some((_, sums)) = known {
            return sums.clone();
        }
        let sums = Sums::of(self.islanders(hop));
        self.islands.sums.insert(hop, sums.clone());
        sums
    }

    /// Whose island is compared over `link`: the neighbour's if it is a hop, ours otherwise.
    fn island_of(&self, link: LinkId) -> Address {
        match self.links.get(&link) {
            Some(known) if known.peer.role == Role::Hop => known.peer.address,
            _ => self.me.address,
        }
    }

    fn on_island(&self, hop: Address, other: Address) -> bool {
        hop == other || self.trees.get(&hop).is_some_and(|tree| self.graph.reach(tree, other).exists())
    }

    /// Entries of all that is reached from `neighbor` if it is a hop, else from this hop.
    fn islanders(&self, neighbor: Address) -> impl Iterator<Item = DigestEntry> {
        let tree = self.trees.get(&neighbor);
        let by_tree = move |node: Address| match tree {
            Some(tree) => node == neighbor || self.graph.reach(tree, node).exists(),
            None => node == self.me.address || self.routes.get(node).is_some(),
        };
        let own = self.own.signed.iter().filter(move |_| self.own_on_island(tree));
        let others = self.origins.iter().filter(move |(address, _)| by_tree(**address));
        own.map(|own| own.entry()).chain(others.map(|(_, known)| known.newest.entry()))
    }

    fn own_on_island(&self, tree: Option<&Tree>) -> bool {
        tree.is_none_or(|tree| self.graph.reach(tree, self.me.address).exists())
    }
}
