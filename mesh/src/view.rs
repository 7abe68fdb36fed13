//! Who is in the mesh, as this node sees it now.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use plexus_proto::id::{Address, Identity, NodeId};

/// A snapshot of the mesh; see [`Mesh::watch`](crate::Mesh::watch).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Every node that has announced itself, and this one.
    pub nodes: BTreeMap<NodeId, NodeView>,
}

/// One node in a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Certified identity.
    pub identity: Identity,
    /// Whether a live path leads to it. True for this node itself.
    pub reachable: bool,
    /// Cost of that path; none to this node itself.
    pub cost: Option<u32>,
    /// Links on that path.
    pub hops: Option<u32>,
    /// Neighbour that leads to it.
    pub next_hop: Option<NodeId>,
    /// Neighbour that leads to it when that one falls silent, and the cost of that way.
    pub backup: Option<(NodeId, u32)>,
    /// Since when packets have gone this way.
    pub routed_since: Option<Timestamp>,
    /// Changes whenever it may answer something else than before to who asks what it has: epoch of its start, and how often it
    /// said so since.
    pub news: (u64, u64),
    /// Program and version, as the node says itself.
    pub software: String,
    /// Since when it has been reachable, or not.
    pub since: Timestamp,
    /// Neighbours that it announces, with the cost of the link.
    pub neighbors: BTreeMap<NodeId, u32>,
}

/// The same by address and by name, for lookups.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    by_address: HashMap<Address, Identity>,
    by_name: HashMap<NodeId, Address>,
}

impl Directory {
    /// Lists `nodes`; of two with one name the later counts.
    pub(crate) fn new(nodes: impl Iterator<Item = Identity>) -> Self {
        let mut directory = Self::default();
        for identity in nodes {
            directory.by_name.insert(identity.node.clone(), identity.address);
            directory.by_address.insert(identity.address, identity);
        }
        directory
    }

    pub(crate) fn by_address(&self, address: Address) -> Option<&Identity> {
        self.by_address.get(&address)
    }

    pub(crate) fn by_name(&self, node: &NodeId) -> Option<&Identity> {
        self.by_address.get(self.by_name.get(node)?)
    }
}
