//! Ping, trace and status.

use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_mesh::status::QueryError;
use plexus_proto::id::Role;

use crate::world::{World, any, id, reachable, within};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Names on the way from `mesh` to `node`, and whether it was reached.
async fn path(mesh: &Mesh, node: &str) -> (Vec<String>, bool) {
    let trace = within("trace", mesh.trace(&id(node), TIMEOUT)).await.unwrap();
    assert_eq!((trace.from, trace.target), (mesh.identity().node.clone(), id(node)));
    let name = |hop: plexus_mesh::status::TraceHop| {
        assert!(hop.rtt_ms.is_some_and(|rtt| rtt > 0.0) && hop.address.is_some(), "{hop:?}");
        assert!(hop.kind.is_some() && hop.sent >= hop.answered && hop.answered > 0, "{hop:?}");
        hop.node.map_or_else(|| "?".to_owned(), |node| node.to_string())
    };
    (trace.hops.into_iter().map(name).collect(), trace.reached)
}

#[tokio::test]
async fn ping_and_trace_show_the_path_of_packets() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let ping = within("ping", controller.ping(&id("node-1"), TIMEOUT)).await.unwrap();
    assert_eq!((ping.from, ping.node, ping.hops), (id("controller"), id("node-1"), 2));
    assert!(ping.rtt_ms > 0.0);
    assert_eq!(path(&controller, "node-1").await, (vec!["hop-1".to_owned(), "node-1".to_owned()], true));
    assert_eq!(path(&node, "controller").await, (vec!["hop-1".to_owned(), "controller".to_owned()], true));
    assert_eq!(path(&controller, "hop-1").await, (vec!["hop-1".to_owned()], true));
    assert!(hop.status().packets.forwarded >= 2);
}

#[tokio::test]
async fn a_trace_crosses_a_chain_of_hops() {
    let world = World::new();
    let first = world.hop(any()).await;
    let at = first.listen_addresses();
    let second = Mesh::start(world.config(Role::Hop, "hop-2", &[any()], &at)).await.unwrap();
    let at = second.listen_addresses();
    let third = Mesh::start(world.config(Role::Hop, "hop-3", &[any()], &at)).await.unwrap();
    let controller = world.leaf(Role::Controller, "controller", first.listen_addresses()[0]).await;
    let _node = world.leaf(Role::Execution, "node-1", third.listen_addresses()[0]).await;
    reachable(&controller, "node-1", true).await;
    let names = ["hop-1", "hop-2", "hop-3", "node-1"].map(str::to_owned).to_vec();
    assert_eq!(path(&controller, "node-1").await, (names, true));
}

#[tokio::test]
async fn probes_to_nobody_say_why() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let ping = async |name: &str| within("ping", controller.ping(&id(name), TIMEOUT)).await.unwrap_err();
    assert_eq!(ping("nobody").await, QueryError::UnknownNode(id("nobody")));
    within("shutdown", node.shutdown()).await;
    reachable(&controller, "node-1", false).await;
    assert_eq!(ping("node-1").await, QueryError::Unreachable(id("node-1")));
    let trace = within("trace", controller.trace(&id("node-1"), TIMEOUT)).await.unwrap_err();
    assert_eq!(trace, QueryError::Unreachable(id("node-1")));
    within("shutdown", controller.shutdown()).await;
    assert_eq!(ping("hop-1").await, QueryError::ShuttingDown);
}

#[tokio::test]
async fn status_tells_links_nodes_and_peers() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let status = controller.status();
    assert_eq!((&status.node, status.role), (&id("controller"), Role::Controller));
    assert!(status.listen.is_empty());
    assert_eq!(status.links.len(), 1);
    assert_eq!((&status.links[0].peer, status.links[0].dialed), (&id("hop-1"), true));
    assert_eq!(status.links[0].remote, hop.listen_addresses()[0]);
    assert_eq!(status.links[0].software, "test hop-1");
    assert!(status.peers[0].linked && status.peers[0].node == Some(id("hop-1")));
    let names: Vec<_> = status.nodes.iter().map(|node| node.node.as_str()).collect();
    assert_eq!(names, ["controller", "hop-1", "node-1"]);
    let far = &status.nodes[2];
    assert_eq!((far.hops, far.cost, &far.next_hop), (Some(2), Some(20), &Some(id("hop-1"))));
    assert_eq!(far.software, "test node-1");
    assert_eq!(far.neighbors.keys().collect::<Vec<_>>(), [&id("hop-1")]);
    // Certificates of the test live for a day, this one and the hop's, so that much is said to be amiss.
    let problems: Vec<_> = status.problems.iter().map(|problem| problem.code.as_str()).collect();
    assert_eq!(problems, ["certificate_expires"; 2]);
    assert_eq!(hop.status().links.len(), 2);

    let address = hop.listen_addresses()[0].to_string();
    within("shutdown", hop.shutdown()).await;
    reachable(&node, "hop-1", false).await;
    let status = node.status();
    let down = status.problems.iter().find(|problem| problem.code == "peer_down").unwrap();
    assert_eq!(down.subject, address);
}

/// An execution node keeps no map: it asks its hops for whom it does not know, by name for a ping, by address for those on
/// the way of a trace.
#[tokio::test]
async fn an_execution_node_finds_whom_it_was_never_told_of() {
    let world = World::new();
    let first = world.hop(any()).await;
    let at = first.listen_addresses();
    let second = Mesh::start(world.config(Role::Hop, "hop-2", &[any()], &at)).await.unwrap();
    let node = world.leaf(Role::Execution, "node-1", at[0]).await;
    let other = world.leaf(Role::Execution, "node-2", second.listen_addresses()[0]).await;
    reachable(&first, "node-2", true).await;
    reachable(&second, "node-1", true).await;
    reachable(&node, "hop-1", true).await;
    let known = |name: &str| node.status().nodes.iter().any(|known| known.node == id(name));
    assert!(!known("node-2") && !known("hop-2"), "{:?}", node.status().nodes);
    let ping = within("ping", node.ping(&id("node-2"), TIMEOUT)).await.unwrap();
    assert_eq!((ping.node, ping.hops), (id("node-2"), 3));
    let names = ["hop-1", "hop-2", "node-2"].map(str::to_owned).to_vec();
    assert_eq!(path(&node, "node-2").await, (names, true));
    let nobody = within("ping", node.ping(&id("nobody"), TIMEOUT)).await.unwrap_err();
    assert_eq!(nobody, QueryError::UnknownNode(id("nobody")));
    drop(other);
}
