//! What a daemon tells people and programs about its mesh: the documented JSON of every front end.
//!
//! [`SCHEMA_VERSION`] rises when a field changes its meaning or goes away; new fields may come at any time. Times
//! are RFC 3339 in UTC, overlay addresses eight hexadecimal digits, times taken are milliseconds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use plexus_proto::id::{Address, ClusterId, MeshName, NodeId, Role};
use serde::{Deserialize, Serialize};

mod problems;
mod views;

pub use crate::events::{EventKind, MeshEvent, MeshEvents};
pub use views::{MeshLink, MeshLinks, Netcheck, PathCheck, Reloaded, Route, Routes, TcpCheck, UdpCheck};

/// Version of the shapes in this module.
pub const SCHEMA_VERSION: u32 = 1;

/// One daemon and its view of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who answers.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its mesh.
    pub mesh: MeshName,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its overlay address.
    #[serde(with = "text")]
    pub address: Address,
    /// Program and version.
    pub software: String,
    /// When its certificate ends.
    #[serde(with = "text")]
    pub certificate_expires: Timestamp,
    /// UDP addresses that it listens on; none when it only dials.
    pub listen: Vec<SocketAddr>,
    /// Neighbors that it was told to dial.
    pub peers: Vec<PeerStatus>,
    /// Its live links.
    pub links: Vec<LinkStatus>,
    /// Every node that it knows, itself included, by name.
    pub nodes: Vec<NodeStatus>,
    /// Packets since the start of this daemon.
    #[serde(default)]
    pub packets: PacketCounts,
    /// What is not as it should be; empty when all is well. See [`Status::find_problems`].
    pub problems: Vec<Problem>,
}

/// A neighbor to dial, by configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// `host:port` as configured.
    pub address: String,
    /// Who answers there, or should.
    pub node: Option<NodeId>,
    /// Whether a link to it is up.
    pub linked: bool,
    /// Why the last attempt failed, while there is no link.
    pub error: Option<String>,
    /// Since when the link is up, or down.
    #[serde(default, with = "text_option", skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// What became of overlay packets since the daemon started, by number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketCounts {
    /// Passed on for others.
    pub forwarded: u64,
    /// Dropped because they were no overlay packets.
    pub malformed: u64,
    /// Dropped because their sender spoke for another node.
    pub forged: u64,
    /// Dropped because no way on was known.
    pub unroutable: u64,
    /// Dropped because they had crossed too many hops.
    pub expired: u64,
    /// Dropped because nobody here wanted them, or had room.
    pub unwanted: u64,
    /// Messages of neighbours that their role may not say; each has cost its sender the link.
    pub refused: u64,
    /// Dropped because the link that they had to take was full, or too narrow; live links only.
    pub congested: u64,
}

/// A live link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Who is at the other end.
    pub peer: NodeId,
    /// Its role.
    pub role: Role,
    /// Its overlay address.
    #[serde(with = "text")]
    pub address: Address,
    /// Where it is on the network.
    pub remote: SocketAddr,
    /// Whether this end dialed.
    pub dialed: bool,
    /// Cost, as both ends agreed.
    pub cost: u32,
    /// Round-trip time as the link measures it.
    pub rtt_ms: f64,
    /// What the peer runs, as it says.
    pub software: String,
    /// Since when it is up.
    #[serde(with = "text")]
    pub since: Timestamp,
    /// What is known of it beyond that.
    #[serde(flatten)]
    pub more: LinkFacts,
}

/// What a link may tell of itself; each is none where it is not known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkFacts {
    /// What carries its packets: `quic`, `sealed` or `tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Largest overlay packet that it carries, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Share of packets lost lately, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Key exchange group of its handshake: `X25519MLKEM768`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_exchange: Option<String>,
    /// How far the peer's clock is ahead of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_skew_ms: Option<f64>,
    /// When the peer's certificate ends.
    #[serde(with = "text_option", skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<Timestamp>,
    /// Most that it may carry, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Why the link before this one to the same peer ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// A node as one daemon sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its overlay address.
    #[serde(with = "text")]
    pub address: Address,
    /// Whether it is the daemon that answers.
    pub this: bool,
    /// Whether a live path leads to it. True for the daemon that answers.
    pub reachable: bool,
    /// Cost of the path.
    pub cost: Option<u32>,
    /// Links on the path.
    pub hops: Option<u32>,
    /// Neighbor that leads to it.
    pub next_hop: Option<NodeId>,
    /// What it runs, as it says.
    pub software: String,
    /// Since when it has been reachable, or not.
    #[serde(with = "text")]
    pub since: Timestamp,
    /// Neighbors that it announces, by name, with the cost of the link.
    #[serde(default)]
    pub neighbors: BTreeMap<NodeId, u32>,
    /// Neighbor that leads to it when the next hop is gone; computed before it is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_next_hop: Option<NodeId>,
    /// Cost of the path through that neighbor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_cost: Option<u32>,
}

/// All nodes that a daemon knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nodes {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who answers.
    pub from: NodeId,
    /// As in [`Status::nodes`].
    pub nodes: Vec<NodeStatus>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// For programs: `node_unreachable`, `peer_down`, `no_links`, `certificate_expires`, `clock_skew`, `version_skew`,
    /// `clone`, `cordoned`.
    pub code: String,
    /// The node or address it is about.
    pub subject: String,
    /// For people.
    pub text: String,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// The answer to a ping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who pinged.
    pub from: NodeId,
    /// Who answered.
    pub node: NodeId,
    /// There and back.
    pub rtt_ms: f64,
    /// Links that the request crossed.
    pub hops: u32,
}

/// The path that packets take, as its nodes answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who traced; not among the hops.
    pub from: NodeId,
    /// Where to.
    pub target: NodeId,
    /// Whether the target itself answered.
    pub reached: bool,
    /// Every node on the way, in order; the last one is the target if it was reached.
    pub hops: Vec<TraceHop>,
    /// Why the trace ended before its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One node on the way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceHop {
    /// Its name; none when nobody answered for this step, or a node that is not known here.
    pub node: Option<NodeId>,
    /// Its overlay address; none when nobody answered.
    #[serde(with = "text_option")]
    pub address: Option<Address>,
    /// There and back; none when nobody answered.
    pub rtt_ms: Option<f64>,
    /// Probes that could have been answered by now.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sent: u32,
    /// Probes that were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub answered: u32,
    /// How packets travel on the link to it, where that is known: `quic`, `sealed` or `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Largest overlay packet that this link carries, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A query without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a name at all.
    #[error("{0}")]
    BadName(String),
    /// No such node has announced itself here.
    #[error("node {0} is not known in this mesh")]
    UnknownNode(NodeId),
    /// No live path.
    #[error("no route to node {0}")]
    Unreachable(NodeId),
    /// No answer in time.
    #[error("no answer from node {node} within {} ms", .timeout.as_millis())]
    Timeout {
        /// Who was asked.
        node: NodeId,
        /// How long was waited.
        timeout: Duration,
    },
    /// The daemon is on its way out.
    #[error("daemon is shutting down")]
    ShuttingDown,
}

impl QueryError {
    /// A word for programs, stable: `bad_name`, `unknown_node`, `unreachable`, `timeout`, `shutting_down`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadName(_) => "bad_name",
            Self::UnknownNode(_) => "unknown_node",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

impl Status {
    /// What is not as it should be at `now`, from the other fields; whoever builds a status keeps it in
    /// [`problems`](Self::problems).
    pub fn find_problems(&self, now: Timestamp) -> Vec<Problem> {
        problems::find(self, now)
    }

    /// The nodes alone.
    pub fn nodes(&self) -> Nodes {
        Nodes { schema_version: SCHEMA_VERSION, from: self.node.clone(), nodes: self.nodes.clone() }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A time taken, in milliseconds with three decimals.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Values that are text in JSON.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The same where there may be none.
pub(crate) mod text_option {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<impl Display>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::SignedDuration;

    use super::*;

    pub(super) fn node(name: &str, reachable: bool) -> NodeStatus {
        NodeStatus {
            node: name.parse().unwrap(),
            role: Role::Hop,
            cluster: "main".parse().unwrap(),
            address: Address(0x10_0001),
            this: false,
            reachable,
            cost: reachable.then_some(10),
            hops: reachable.then_some(1),
            next_hop: None,
            software: "plexus-node 0.1.0".into(),
            since: Timestamp::UNIX_EPOCH,
            neighbors: BTreeMap::new(),
            backup_next_hop: None,
            backup_cost: None,
        }
    }

    pub(super) fn status() -> Status {
        Status {
            schema_version: SCHEMA_VERSION,
            node: "node-1".parse().unwrap(),
            role: Role::Execution,
            mesh: "demo".parse().unwrap(),
            cluster: "main".parse().unwrap(),
            address: Address(0x10_0002),
            software: "plexus-node 0.1.0".into(),
            certificate_expires: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(30 * 24),
            listen: vec!["127.0.0.1:7323".parse().unwrap()],
            peers: vec![PeerStatus {
                address: "hop.example.org:7323".into(),
                node: Some("hop-1".parse().unwrap()),
                linked: true,
                error: None,
                since: None,
            }],
            links: vec![LinkStatus {
                peer: "hop-1".parse().unwrap(),
                role: Role::Hop,
                address: Address(0x10_0001),
                remote: "[::1]:7323".parse().unwrap(),
                dialed: true,
                cost: 10,
                rtt_ms: 0.25,
                software: "plexus-node 0.1.0".into(),
                since: Timestamp::UNIX_EPOCH,
                more: LinkFacts::default(),
            }],
            nodes: vec![node("hop-1", true)],
            packets: PacketCounts::default(),
            problems: vec![],
        }
    }

    #[test]
    fn shapes_are_stable() {
        let text = r#"{"schema_version":1,"node":"node-1","role":"execution","mesh":"demo","cluster":"main","address":"00100002","software":"plexus-node 0.1.0","certificate_expires":"1970-01-31T00:00:00Z","listen":["127.0.0.1:7323"],"peers":[{"address":"hop.example.org:7323","node":"hop-1","linked":true,"error":null}],"links":[{"peer":"hop-1","role":"hop","address":"00100001","remote":"[::1]:7323","dialed":true,"cost":10,"rtt_ms":0.25,"software":"plexus-node 0.1.0","since":"1970-01-01T00:00:00Z"}],"nodes":[{"node":"hop-1","role":"hop","cluster":"main","address":"00100001","this":false,"reachable":true,"cost":10,"hops":1,"next_hop":null,"software":"plexus-node 0.1.0","since":"1970-01-01T00:00:00Z","neighbors":{}}],"packets":{"forwarded":0,"malformed":0,"forged":0,"unroutable":0,"expired":0,"unwanted":0,"refused":0,"congested":0},"problems":[]}"#;
        assert_eq!(serde_json::to_string(&status()).unwrap(), text);
        assert_eq!(serde_json::from_str::<Status>(text).unwrap(), status());

        let trace = Trace {
            schema_version: SCHEMA_VERSION,
            from: "controller".parse().unwrap(),
            target: "node-1".parse().unwrap(),
            reached: true,
            hops: vec![
                TraceHop::default(),
                TraceHop {
                    node: Some("node-1".parse().unwrap()),
                    address: Some(Address(7)),
                    rtt_ms: Some(0.3),
                    ..TraceHop::default()
                },
            ],
            error: None,
        };
        let text = r#"{"schema_version":1,"from":"controller","target":"node-1","reached":true,"hops":[{"node":null,"address":null,"rtt_ms":null},{"node":"node-1","address":"00000007","rtt_ms":0.3}]}"#;
        assert_eq!(serde_json::to_string(&trace).unwrap(), text);
        assert_eq!(serde_json::from_str::<Trace>(text).unwrap(), trace);
    }

    #[test]
    fn times_have_three_decimals() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.235);
    }
}
