//! The links that both of their ends announce, and the shortest ways over them from each neighbour, kept up change by
//! change.
//!
//! Only hops transit, so trees grow over hops alone; whatever else there is hangs on a few of them as a leaf. All
//! weights are the same in both directions. A tree is mended where links have changed and nowhere else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use plexus_proto::id::Address;

use super::by_address::ByAddress;

/// Length of a way: cost first, links crossed second, in one number so that both add up and compare at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Length(u64);

/// Bits for the links crossed: more than there are origins.
const HOPS_BITS: u32 = 20;

impl Length {
    pub(super) const ZERO: Self = Self(0);
    /// No way at all.
    pub(super) const NONE: Self = Self(u64::MAX);

    /// One link.
    pub(super) fn link(cost: u32) -> Self {
        Self(u64::from(cost) << HOPS_BITS | 1)
    }

    /// A way that somebody else told of.
    pub(super) fn told(cost: u32, hops: u32) -> Self {
        Self(u64::from(cost) << HOPS_BITS | u64::from(hops.min((1 << HOPS_BITS) - 1)))
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub(super) fn exists(self) -> bool {
        self != Self::NONE
    }

    pub(super) fn cost(self) -> u32 {
        u32::try_from(self.0 >> HOPS_BITS).unwrap_or(u32::MAX)
    }

    pub(super) fn hops(self) -> u32 {
        (self.0 & ((1 << HOPS_BITS) - 1)) as u32
    }
}

/// Place of a hop in the graph, and in every tree over it. A hop keeps its place for good: addresses are never given
/// to anybody else, and a hop that comes back finds its own.
pub(super) type Slot = u32;

/// Hops, their links, and the leaves that hang on them.
#[derive(Debug, Default)]
pub(super) struct Graph {
    slots: ByAddress<Slot>,
    hops: Vec<Hop>,
    leaves: ByAddress<Vec<(Slot, Length)>>,
    /// Links between hops that changed since trees were last mended, with what they were then.
    changes: Changes,
    /// Leaves whose own links changed, and whether one of them went or became longer.
    leaf_changes: BTreeMap<Address, bool>,
}

#[derive(Debug)]
struct Hop {
    address: Address,
    edges: Vec<(Slot, Length)>,
    leaves: BTreeSet<Address>,
}

/// Links between hops, the lower slot first, with their lengths before.
pub(super) type Changes = BTreeMap<(Slot, Slot), Length>;

impl Graph {
    pub(super) fn slot(&self, hop: Address) -> Option<Slot> {
        self.slots.get(&hop).copied()
    }

    pub(super) fn address(&self, slot: Slot) -> Address {
        self.hops[slot as usize].address
    }

    pub(super) fn leaves(&self, slot: Slot) -> impl Iterator<Item = Address> {
        self.hops[slot as usize].leaves.iter().copied()
    }

    /// The place of a hop, made if it has none.
    pub(super) fn place(&mut self, hop: Address) -> Slot {
        *self.slots.entry(hop).or_insert_with(|| {
            self.hops.push(Hop { address: hop, edges: Vec::new(), leaves: BTreeSet::new() });
            (self.hops.len() - 1) as Slot
        })
    }

    /// Puts the link of two hops at `length`; [`Length::NONE`] removes it.
    pub(super) fn link_hops(&mut self, a: Address, b: Address, length: Length) {
        if !length.exists() && (self.slot(a).is_none() || self.slot(b).is_none()) {
            return;
        }
        let (a, b) = (self.place(a), self.place(b));
        let before = put(&mut self.hops[a as usize].edges, b, length);
        put(&mut self.hops[b as usize].edges, a, length);
        if before != length {
            self.changes.entry((a.min(b), a.max(b))).or_insert(before);
        }
    }

    /// Puts the link of a leaf and a hop at `length`.
    pub(super) fn link_leaf(&mut self, leaf: Address, hop: Address, length: Length) {
        if !length.exists() && self.slot(hop).is_none() {
            return;
        }
        let hop = self.place(hop);
        let edges = self.leaves.entry(leaf).or_default();
        let before = put(edges, hop, length);
        if edges.is_empty() {
            self.leaves.remove(&leaf);
        }
        let leaves = &mut self.hops[hop as usize].leaves;
        if length.exists() {
            leaves.insert(leaf)
        } else {
            leaves.remove(&leaf)
        };
        if before != length {
            *self.leaf_changes.entry(leaf).or_default() |= length > before;
        }
    }

    pub(super) fn has_changed(&self) -> bool {
        !self.changes.is_empty() || !self.leaf_changes.is_empty()
    }

    pub(super) fn take_changes(&mut self) -> (Changes, BTreeMap<Address, bool>) {
        (std::mem::take(&mut self.changes), std::mem::take(&mut self.leaf_changes))
    }

    /// Length of the shortest way in `tree` to `node`, be it hop or leaf.
    pub(super) fn reach(&self, tree: &Tree, node: Address) -> Length {
        if let Some(slot) = self.slot(node) {
            return tree.length(slot);
        }
        let Some(edges) = self.leaves.get(&node) else { return Length::NONE };
        edges.iter().map(|&(hop, length)| tree.length(hop).plus(length)).min().unwrap_or(Length::NONE)
    }

    fn edges(&self, slot: Slot) -> &[(Slot, Length)] {
        &self.hops[slot as usize].edges
    }

    fn length(&self, a: Slot, b: Slot) -> Length {
        self.edges(a).iter().find(|(to, _)| *to == b).map_or(Length::NONE, |&(_, length)| length)
    }
}

/// Puts an entry, or removes it; returns what was there.
fn put(edges: &mut Vec<(Slot, Length)>, to: Slot, length: Length) -> Length {
    match edges.iter().position(|(known, _)| *known == to) {
        Some(at) if length.exists() => std::mem::replace(&mut edges[at].1, length),
        Some(at) => edges.swap_remove(at).1,
        None => {
            if length.exists() {
                edges.push((to, length));
            }
            Length::NONE
        }
    }
}

/// What became of a tree.
#[derive(Debug, Default)]
pub(super) struct Mended {
    /// Hops whose distance is another one now.
    pub(super) moved: BTreeSet<Slot>,
    /// Hops that some shortest way led to over a link that went or became longer, be the way that is left as short
    /// or not.
    pub(super) broken: BTreeSet<Slot>,
}

/// Shortest ways from one hop to all others.
#[derive(Debug)]
pub(super) struct Tree {
    root: Slot,
    lengths: Vec<Length>,
    parents: Vec<Slot>,
}

/// No parent: the root, or out of reach.
const NOBODY: Slot = Slot::MAX;

impl Tree {
    pub(super) fn new(graph: &Graph, root: Slot) -> Self {
        let mut tree = Self { root, lengths: Vec::new(), parents: Vec::new() };
        tree.grow(graph);
        tree.lengths[root as usize] = Length::ZERO;
        let mut open = BinaryHeap::new();
        tree.relax(graph, root, &mut open);
        tree.settle(graph, open, &mut |_, _| {});
        tree
    }

    pub(super) fn length(&self, slot: Slot) -> Length {
        self.lengths.get(slot as usize).copied().unwrap_or(Length::NONE)
    }

    /// Follows `changes` of the graph, which has them already: ways over links that went or became longer are given up
    /// and sought again from what borders on them, then whatever became shorter spreads (Ramalingam and Reps).
    pub(super) fn mend(&mut self, graph: &Graph, changes: &Changes) -> Mended {
        self.grow(graph);
        let mut mended = Mended::default();
        let mut orphans: BTreeMap<Slot, Length> = BTreeMap::new();
        let (mut broken, mut lost) = (Vec::new(), Vec::new());
        let worse = |a, b, before: Length| graph.length(a, b) > before;
        for (&(a, b), &before) in changes {
            for (from, to) in [(a, b), (b, a)] {
                if worse(from, to, before) && self.is_tight(from, to, before) {
                    broken.push(to);
                    if self.parents[to as usize] == from {
                        lost.push(to);
                    }
                }
            }
        }
        let before =
            |a: Slot, b: Slot, now: Length| changes.get(&(a.min(b), a.max(b))).copied().unwrap_or(now);
        while let Some(hop) = broken.pop() {
            if mended.broken.insert(hop) {
                let onward = graph.edges(hop).iter();
                broken.extend(
                    onward
                        .filter(|&&(to, now)| self.is_tight(hop, to, before(hop, to, now)))
                        .map(|&(to, _)| to),
                );
            }
        }
        while let Some(hop) = lost.pop() {
            if orphans.contains_key(&hop) {
                continue;
            }
            orphans.insert(hop, self.lengths[hop as usize]);
            let children = graph.edges(hop).iter().map(|&(to, _)| to);
            lost.extend(children.filter(|&to| self.parents[to as usize] == hop));
        }
        let mut moved = orphans.clone();
        for &hop in orphans.keys() {
            self.lengths[hop as usize] = Length::NONE;
            self.parents[hop as usize] = NOBODY;
        }
        let mut open = BinaryHeap::new();
        for &hop in orphans.keys() {
            let ways = graph.edges(hop).iter().map(|&(from, length)| (self.length(from).plus(length), from));
            open.extend(
                ways.filter(|(length, _)| length.exists()).min().map(|(l, from)| Reverse((l, hop, from))),
            );
        }
        for &(a, b) in changes.keys() {
            let length = graph.length(a, b);
            for (from, to) in [(a, b), (b, a)] {
                let way = self.length(from).plus(length);
                if way < self.length(to) {
                    open.push(Reverse((way, to, from)));
                }
            }
        }
        self.settle(graph, open, &mut |hop, before| {
            moved.entry(hop).or_insert(before);
        });
        let differs = |(hop, before): (Slot, Length)| (self.length(hop) != before).then_some(hop);
        mended.moved = moved.into_iter().filter_map(differs).collect();
        mended
    }

    fn grow(&mut self, graph: &Graph) {
        self.lengths.resize(graph.hops.len(), Length::NONE);
        self.parents.resize(graph.hops.len(), NOBODY);
    }

    /// Whether some shortest way leads over this link, of that length.
    fn is_tight(&self, from: Slot, to: Slot, length: Length) -> bool {
        let way = self.length(from).plus(length);
        to != self.root && way.exists() && way == self.length(to)
    }

    fn relax(&self, graph: &Graph, from: Slot, open: &mut Open) {
        for &(to, length) in graph.edges(from) {
            let way = self.length(from).plus(length);
            if way < self.length(to) {
                open.push(Reverse((way, to, from)));
            }
        }
    }

    /// Dijkstra's algorithm from what is open; `moving` hears of each hop before its length changes.
    fn settle(&mut self, graph: &Graph, mut open: Open, moving: &mut dyn FnMut(Slot, Length)) {
        while let Some(Reverse((way, hop, from))) = open.pop() {
            if way >= self.length(hop) {
                continue;
            }
            moving(hop, self.length(hop));
            self.lengths[hop as usize] = way;
            self.parents[hop as usize] = from;
            self.relax(graph, hop, &mut open);
        }
    }
}

/// Ways still open: length, where to, over whom last.
type Open = BinaryHeap<Reverse<(Length, Slot, Slot)>>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bellman and Ford, to share nothing with the trees.
    fn model(edges: &BTreeMap<(u32, u32), u32>, nodes: u32, root: u32) -> Vec<Length> {
        let mut lengths = vec![Length::NONE; nodes as usize];
        lengths[root as usize] = Length::ZERO;
        for _ in 0..nodes {
            for (&(a, b), &cost) in edges {
                for (a, b) in [(a, b), (b, a)] {
                    let way = lengths[a as usize].plus(Length::link(cost));
                    lengths[b as usize] = lengths[b as usize].min(way);
                }
            }
        }
        lengths
    }

    /// Changes, in batches: two nodes, and the new cost of their link; 0 removes it.
    fn check(nodes: u32, batches: Vec<Vec<(u32, u32, u32)>>) {
        let mut graph = Graph::default();
        for node in 0..nodes {
            graph.place(Address(node));
        }
        let mut edges = BTreeMap::new();
        let roots = 0..nodes.min(3);
        let mut trees: Vec<Tree> = roots.map(|root| Tree::new(&graph, root)).collect();
        for batch in batches {
            for (a, b, cost) in batch {
                let (a, b) = (a % nodes, b % nodes);
                if a == b {
                    continue;
                }
                let length = if cost == 0 { Length::NONE } else { Length::link(cost) };
                graph.link_hops(Address(a), Address(b), length);
                match cost {
                    0 => drop(edges.remove(&(a.min(b), a.max(b)))),
                    cost => drop(edges.insert((a.min(b), a.max(b)), cost)),
                }
            }
            let (changes, _) = graph.take_changes();
            for tree in &mut trees {
                let before: Vec<Length> = (0..nodes).map(|node| tree.length(node)).collect();
                let mended = tree.mend(&graph, &changes);
                let truth = model(&edges, nodes, tree.root);
                assert_eq!(tree.lengths, truth);
                let moved = (0..nodes).filter(|&n| before[n as usize] != truth[n as usize]);
                assert_eq!(mended.moved, moved.collect());
                // What became longer was broken first.
                let longer = (0..nodes).filter(|&n| before[n as usize] < truth[n as usize]);
                assert!(longer.into_iter().all(|n| mended.broken.contains(&n)));
            }
        }
    }

    proptest! {
        #[test]
        fn mended_trees_are_what_a_computation_from_nothing_gives(
            nodes in 2u32..14,
            batches in prop::collection::vec(prop::collection::vec((0u32..14, 0u32..14, 0u32..5), 1..9), 1..25),
        ) {
            check(nodes, batches);
        }
    }

    #[test]
    fn an_equal_way_that_breaks_is_noticed() {
        let mut graph = Graph::default();
        for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)] {
            graph.link_hops(Address(a), Address(b), Length::link(1));
        }
        let mut tree = Tree::new(&graph, 0);
        graph.take_changes();
        for (via, other) in [(1, 2), (2, 1)] {
            graph.link_hops(Address(via), Address(3), Length::NONE);
            let mended = tree.mend(&graph, &graph.changes);
            let [three, four] = [3, 4].map(|n| graph.slot(Address(n)).unwrap());
            assert_eq!((mended.moved.len(), mended.broken), (0, BTreeSet::from([three, four])));
            graph.link_hops(Address(via), Address(3), Length::link(1));
            let (changes, _) = graph.take_changes();
            assert!(tree.mend(&graph, &changes).broken.is_empty(), "{other}");
        }
    }
}
