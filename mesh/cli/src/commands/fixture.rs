//! A small mesh as its controller sees it, for tests of what people read.

use jiff::{SignedDuration, Timestamp};
use plexus_mesh::status::{LinkFacts, LinkStatus, NodeStatus, Problem, SCHEMA_VERSION, Status};
use plexus_proto::id::{Address, Role};

pub(super) fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

pub(super) fn node(name: &str, role: Role, address: u32, way: Option<(u32, u32)>) -> NodeStatus {
    NodeStatus {
        node: name.parse().unwrap(),
        role,
        cluster: "main".parse().unwrap(),
        address: Address(address),
        this: false,
        reachable: way.is_some(),
        cost: way.map(|(cost, _)| cost),
        hops: way.map(|(_, hops)| hops),
        next_hop: way.map(|_| "hop-1".parse().unwrap()),
        software: "plexus-node 0.1.0".into(),
        since: ago(150),
        neighbors: Default::default(),
        backup_next_hop: None,
        backup_cost: None,
    }
}

pub(super) fn status() -> Status {
    let mut me = node("controller", Role::Controller, 0x10_0000, None);
    me.this = true;
    me.reachable = true;
    me.software = "plexus-controller 0.1.0".into();
    me.since = ago(4000);
    let mut hop = node("hop-1", Role::Hop, 0x10_0001, Some((10, 1)));
    hop.neighbors = [("controller".parse().unwrap(), 10), ("node-1".parse().unwrap(), 10)].into();
    me.neighbors = [("hop-1".parse().unwrap(), 10)].into();
    Status {
        schema_version: SCHEMA_VERSION,
        node: "controller".parse().unwrap(),
        role: Role::Controller,
        mesh: "demo".parse().unwrap(),
        cluster: "main".parse().unwrap(),
        address: Address(0x10_0000),
        software: "plexus-controller 0.1.0".into(),
        certificate_expires: now() + SignedDuration::from_hours(24 * 29 + 5),
        listen: vec![],
        peers: vec![],
        links: vec![LinkStatus {
            peer: "hop-1".parse().unwrap(),
            role: Role::Hop,
            address: Address(0x10_0001),
            remote: "127.0.0.1:7323".parse().unwrap(),
            dialed: true,
            cost: 10,
            rtt_ms: 0.2512,
            software: "plexus-node 0.1.0".into(),
            since: ago(7300),
            more: LinkFacts {
                kind: Some("quic".into()),
                mtu: Some(1452),
                loss: Some(0.005),
                key_exchange: Some("X25519MLKEM768".into()),
                ..LinkFacts::default()
            },
        }],
        nodes: vec![me, hop, node("node-1", Role::Execution, 0x10_0002, Some((20, 2)))],
        packets: plexus_mesh::status::PacketCounts::default(),
        problems: vec![],
    }
}

pub(super) fn degraded() -> Status {
    let mut status = status();
    status.nodes.push(node("node-2", Role::Execution, 0x10_0003, None));
    status.problems = vec![Problem {
        code: "node_unreachable".into(),
        subject: "node-2".into(),
        text: "node node-2 is unreachable since 2026-11-20T11:57:30Z".into(),
        advice: "look at node-2".into(),
    }];
    status
}
