//! Other documents: routes and links of the mesh as one status shows them, and what acting verbs answer.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plexus_proto::id::{NodeId, Role};
use serde::{Deserialize, Serialize};

use super::{LinkStatus, SCHEMA_VERSION, Status, text};

/// The ways from one daemon to every other node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who answers.
    pub from: NodeId,
    /// By node; the daemon itself is not among them.
    pub routes: Vec<Route>,
}

/// The way to one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Whether there is a way.
    pub reachable: bool,
    /// Neighbor that packets are handed to.
    pub next_hop: Option<NodeId>,
    /// Cost of the path.
    pub cost: Option<u32>,
    /// Links on the path.
    pub hops: Option<u32>,
    /// Neighbor that takes over when the next hop is gone.
    pub backup_next_hop: Option<NodeId>,
    /// Cost of the path through that neighbor.
    pub backup_cost: Option<u32>,
    /// Since when it is reachable, or not.
    #[serde(with = "text")]
    pub since: Timestamp,
}

/// Every link of the mesh that one daemon knows of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeshLinks {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who answers.
    pub from: NodeId,
    /// By the names of both ends, each link once.
    pub links: Vec<MeshLink>,
}

/// A link between two nodes, as they announce it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeshLink {
    /// One end; the daemon that answers, if it is one of both.
    pub node: NodeId,
    /// The other end.
    pub peer: NodeId,
    /// Cost that `node` announces.
    pub cost: Option<u32>,
    /// Cost that `peer` announces.
    pub peer_cost: Option<u32>,
    /// Whether it carries packets: both ends can be reached and announce it, or it is our own and live.
    pub up: bool,
    /// What the daemon measures on it, if it is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<LinkStatus>,
}

impl Routes {
    /// What `status` says of routes.
    pub fn of(status: &Status) -> Self {
        let others = status.nodes.iter().filter(|node| !node.this);
        let routes = others.map(|node| Route {
            node: node.node.clone(),
            role: node.role,
            reachable: node.reachable,
            next_hop: node.next_hop.clone(),
            cost: node.cost,
            hops: node.hops,
            backup_next_hop: node.backup_next_hop.clone(),
            backup_cost: node.backup_cost,
            since: node.since,
        });
        Self { schema_version: SCHEMA_VERSION, from: status.node.clone(), routes: routes.collect() }
    }
}

impl MeshLinks {
    /// What `status` says of links: what nodes announce, and the daemon's own.
    pub fn of(status: &Status) -> Self {
        let us = &status.node;
        let reachable = |name: &NodeId| status.nodes.iter().any(|node| node.node == *name && node.reachable);
        let ends = |a: &NodeId, b: &NodeId| {
            if b == us || (a != us && b < a) { (b.clone(), a.clone()) } else { (a.clone(), b.clone()) }
        };
        // By both ends: the cost that the first announces, and the second.
        let mut announced: BTreeMap<(NodeId, NodeId), (Option<u32>, Option<u32>)> = BTreeMap::new();
        for node in &status.nodes {
            for (neighbor, &cost) in &node.neighbors {
                let key = ends(&node.node, neighbor);
                let first = key.0 == node.node;
                let costs = announced.entry(key).or_default();
                *(if first { &mut costs.0 } else { &mut costs.1 }) = Some(cost);
            }
        }
        for link in &status.links {
            announced.entry((us.clone(), link.peer.clone())).or_default();
        }
        let links = announced.into_iter().map(|((node, peer), (cost, peer_cost))| {
            let live = status.links.iter().find(|link| node == *us && link.peer == peer).cloned();
            let both = cost.is_some() && peer_cost.is_some() && reachable(&node) && reachable(&peer);
            let up = if node == *us { live.is_some() } else { both };
            MeshLink { node, peer, cost, peer_cost, up, live }
        });
        Self { schema_version: SCHEMA_VERSION, from: us.clone(), links: links.collect() }
    }
}

/// What became of a new configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What is different now, one line each; empty when nothing had changed.
    pub changed: Vec<String>,
    /// What differs in the file and waits for a restart, one line each.
    #[serde(default)]
    pub needs_restart: Vec<String>,
}

/// What UDP and TCP do between two nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who tried.
    pub from: NodeId,
    /// Whom.
    pub to: NodeId,
    /// One for each address that was tried.
    pub paths: Vec<PathCheck>,
    /// What follows from that, for people, the most important first.
    pub findings: Vec<String>,
}

/// What came of one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathCheck {
    /// `host:port` that was tried.
    pub address: String,
    /// Whether an IPv4 or IPv6 address was reached or tried; none when the name has none.
    pub resolved: Option<String>,
    /// A QUIC endpoint on UDP.
    pub udp: Option<UdpCheck>,
    /// A listener on TCP.
    pub tcp: Option<TcpCheck>,
}

/// What UDP does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UdpCheck {
    /// Whether anything came back.
    pub reachable: bool,
    /// Least round-trip time.
    pub rtt_ms: Option<f64>,
    /// Share of probes without an answer, 0 to 1.
    pub loss: f64,
    /// Largest IP packet that got through unbroken, in bytes; as far as was tried.
    pub mtu: Option<u32>,
    /// Why nothing came back, if the system said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What TCP does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpCheck {
    /// Whether a connection opened.
    pub reachable: bool,
    /// How long that took.
    pub rtt_ms: Option<f64>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::super::tests::{node, status};
    use super::*;

    #[test]
    fn routes_are_those_of_the_others() {
        let mut status = status();
        status.nodes[0].next_hop = Some("hop-1".parse().unwrap());
        let mut me = node("node-1", true);
        me.this = true;
        status.nodes.push(me);
        let routes = Routes::of(&status);
        let json = serde_json::to_string(&routes).unwrap();
        assert_eq!(
            json,
            r#"{"schema_version":1,"from":"node-1","routes":[{"node":"hop-1","role":"hop","reachable":true,"next_hop":"hop-1","cost":10,"hops":1,"backup_next_hop":null,"backup_cost":null,"since":"1970-01-01T00:00:00Z"}]}"#
        );
    }

    #[test]
    fn a_link_is_listed_once_with_what_both_ends_say() {
        let mut status = status();
        let name = |text: &str| text.parse::<NodeId>().unwrap();
        status.nodes[0].neighbors = [(name("node-1"), 10), (name("hop-2"), 5), (name("hop-0"), 3)].into();
        let mut far = node("hop-2", true);
        far.neighbors = [(name("hop-1"), 7)].into();
        status.nodes.push(far);
        let links = MeshLinks::of(&status).links;
        let told: Vec<_> = links
            .iter()
            .map(|link| (link.node.as_str(), link.peer.as_str(), link.cost, link.peer_cost, link.up))
            .collect();
        assert_eq!(
            told,
            [
                ("hop-0", "hop-1", None, Some(3), false),
                ("hop-1", "hop-2", Some(5), Some(7), true),
                ("node-1", "hop-1", None, Some(10), true),
            ]
        );
        assert!(links[2].live.is_some() && links[1].live.is_none());
    }
}
