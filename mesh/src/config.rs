//! What a mesh node is told before it starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use plexus_proto::id::NodeId;

use crate::identity::Credentials;

/// Cost of a link when nobody says otherwise.
pub const DEFAULT_COST: u32 = 10;

/// Settings of one node; immutable once [`Mesh::start`](crate::Mesh::start) has them.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this node is, and whom it trusts.
    pub credentials: Credentials,
    /// Addresses to listen on; port 0 lets the system choose. Empty: this node only dials.
    pub listen: Vec<SocketAddr>,
    /// Neighbours to dial, and to dial again whenever a link is lost.
    pub peers: Vec<Peer>,
    /// Folder for what must outlive a restart: the epoch of this node's announcements. Created if missing.
    pub state_dir: PathBuf,
    /// Name and version of the program, shown to neighbours and to people: `plexus-node 0.1.0`.
    pub software: String,
}

/// A neighbour to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `host:port`; a name is resolved anew at each attempt.
    pub address: String,
    /// Whom to expect there. Without it any certified member of the mesh will do.
    pub name: Option<NodeId>,
    /// Cost of the link. The larger of both ends' wishes counts.
    pub cost: u32,
}
