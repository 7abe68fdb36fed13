//! What a mesh node is told before it starts, and may be told anew while it runs.

mod section;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use plexus_proto::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::authorization::Policy;
use crate::identity::Credentials;

pub use section::{MeshSection, PeerSection};

/// Cost of a link when nobody says otherwise.
pub const DEFAULT_COST: u32 = 10;
/// Largest UDP payload tried on a link when nobody says otherwise: jumbo Ethernet less the headers of IPv6 and UDP.
pub const DEFAULT_MTU: u16 = 8952;
/// Least value of [`Config::mtu`]: QUIC needs it.
pub const MTU_MIN: u16 = 1200;

/// What carries the packets of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// DATAGRAMs of the QUIC connection between both neighbours.
    Quic,
    /// Sealed packets of their own on the UDP socket of that connection, with keys from it. About half the CPU time.
    Sealed,
    /// Frames on TCP with TLS, where UDP does not pass.
    Tcp,
}

impl LinkKind {
    /// All, in no order of preference.
    pub const ALL: [Self; 3] = [Self::Quic, Self::Sealed, Self::Tcp];
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Sealed => "sealed",
            Self::Tcp => "tcp",
        })
    }
}

/// Settings of one node; see [`Config::new`] for those that nobody gives.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this node is, and whom it trusts.
    pub credentials: Credentials,
    /// Addresses to listen on, UDP and TCP under one port number; port 0 lets the system choose. Empty: this node
    /// only dials.
    pub listen: Vec<SocketAddr>,
    /// Neighbours to dial, and to dial again whenever a link is lost.
    pub peers: Vec<Peer>,
    /// Kinds of link that this node takes part in. Without `quic` there is no UDP socket, without `tcp` none of TCP;
    /// `sealed` is nothing without `quic`.
    pub kinds: Vec<LinkKind>,
    /// Largest UDP payload to try on a link, in bytes; what the path carries is found out. At least [`MTU_MIN`].
    pub mtu: u16,
    /// Folder for what must outlive a restart: the epoch of this node's announcements. Created if missing.
    pub state_dir: PathBuf,
    /// Rules of an operator about services.
    pub policy: Policy,
    /// Name and version of the program, shown to neighbours and to people: `plexus-node 0.1.0`.
    pub software: String,
}

impl Config {
    /// A node that neither listens nor dials, with every kind of link.
    pub fn new(credentials: Credentials, state_dir: impl Into<PathBuf>, software: impl Into<String>) -> Self {
        Self {
            credentials,
            listen: Vec::new(),
            peers: Vec::new(),
            kinds: LinkKind::ALL.to_vec(),
            mtu: DEFAULT_MTU,
            state_dir: state_dir.into(),
            policy: Policy::default(),
            software: software.into(),
        }
    }
}

/// A neighbour to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `host:port` each, in order of preference; names are resolved anew at each attempt, and all their addresses tried.
    pub addresses: Vec<String>,
    /// Whom to expect there. Without it any certified member of the mesh will do.
    pub name: Option<NodeId>,
    /// Cost of the link. The larger of both ends' wishes counts.
    pub cost: u32,
    /// Bytes per second that may be sent on the link; none: what it carries.
    pub bandwidth: Option<u64>,
    /// Kinds of link to try; the best that works is taken.
    pub kinds: Vec<LinkKind>,
    /// `host:port` of an HTTP proxy: links of kind `tcp` are made through it, with CONNECT.
    pub proxy: Option<String>,
}

impl Peer {
    /// Whoever is certified at `address`, by the best kind of link, at the default cost.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            addresses: vec![address.into()],
            name: None,
            cost: DEFAULT_COST,
            bandwidth: None,
            kinds: LinkKind::ALL.to_vec(),
            proxy: None,
        }
    }

    /// What people and logs call it: its first address.
    pub(crate) fn label(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }
}
