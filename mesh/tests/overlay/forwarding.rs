//! TCP connections across a hop, by policy; netcheck and events, which people use beside them.

use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_mesh::local::{LocalClient, LocalSocket};
use plexus_mesh::port_forward::{self, ForwardError, Policy, Rule};
use plexus_mesh::status::EventKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{World, assert_same, id, pattern, within};

/// Lets the controller reach every port of loopback, a number of connections at a time.
fn offer(node: &Mesh, connections: usize) {
    let rule = Rule { from: "controller".into(), to: vec!["127.0.0.1:*".into()] };
    let policy = Policy { allow: vec![rule], max_connections: connections };
    tokio::spawn(port_forward::serve(node, policy).unwrap().unwrap());
}

/// A listener on this machine, and its address as a target.
async fn target() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Reads all there is, and only then sends it back: fails unless each direction ends by itself.
async fn echo_after_the_end(listener: TcpListener) {
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut all = Vec::new();
    connection.read_to_end(&mut all).await.unwrap();
    connection.write_all(&all).await.unwrap();
}

#[tokio::test]
async fn bytes_and_ends_of_both_directions_cross_a_hop() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    offer(&node, 4);
    let (listener, address) = target().await;
    let echo = tokio::spawn(echo_after_the_end(listener));
    let stream = within("forward", controller.forward(&id("node-1"), &address, false)).await.unwrap();
    let sent = pattern(3 << 20);
    let (mut reader, mut writer) = stream.into_split();
    let whole = sent.clone();
    let sending = tokio::spawn(async move {
        writer.write_all(&whole).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut back = Vec::new();
    within("echo", reader.read_to_end(&mut back)).await.unwrap();
    assert_same(&back, &sent);
    sending.await.unwrap();
    echo.await.unwrap();
}

/// The whole way of `plexus forward`: a TCP connection here, the daemon's socket, a hop, a TCP connection there.
#[tokio::test]
async fn connections_go_through_the_local_socket_for_root_alone() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    offer(&node, 4);
    let path = world.of("door.sock");
    let socket = LocalSocket::bind(&path).await.unwrap();
    tokio::spawn(socket.serve(Arc::new(controller.clone()), std::future::pending()));
    let client = LocalClient::connect(&path).await.unwrap();
    let (listener, address) = target().await;
    let checked = within("check", client.forward_check("node-1", &address)).await;
    if !rustix::process::geteuid().is_root() {
        assert_eq!(checked.unwrap_err().to_string(), "only root of this machine may forward here");
        return;
    }
    checked.unwrap();
    let refused = within("check", client.forward_check("node-1", "192.0.2.1:80")).await.unwrap_err();
    let said = "node node-1 does not allow 192.0.2.1:80 from here; its [forward] section may";
    assert_eq!(refused.to_string(), said);

    let echo = tokio::spawn(echo_after_the_end(listener));
    let (near, ours) = pair().await;
    let carried = tokio::spawn(async move { client.forward("node-1", &address, near).await });
    let sent = pattern(2 << 20);
    let (mut reader, mut writer) = ours.into_split();
    let whole = sent.clone();
    let sending = tokio::spawn(async move {
        writer.write_all(&whole).await.unwrap();
        writer.shutdown().await.unwrap();
        writer
    });
    let mut back = Vec::new();
    within("echo", reader.read_to_end(&mut back)).await.unwrap();
    assert_same(&back, &sent);
    sending.await.unwrap();
    within("end", carried).await.unwrap().unwrap();
    echo.await.unwrap();
}

/// Both ends of a TCP connection on this machine.
async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = target().await;
    let (ours, accepted) = tokio::join!(TcpStream::connect(&address), listener.accept());
    (accepted.unwrap().0, ours.unwrap())
}

#[tokio::test]
async fn without_permission_nothing_is_opened() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let (listener, address) = target().await;
    let ask = |mesh: &Mesh, to: &str, target: &str| {
        let (mesh, to, target) = (mesh.clone(), id(to), target.to_owned());
        async move { within("forward", mesh.forward(&to, &target, false)).await.map(drop).unwrap_err() }
    };
    // No policy, no service.
    assert!(port_forward::serve(&node, Policy::default()).unwrap().is_none());
    let refused = ask(&controller, "node-1", &address).await;
    assert!(matches!(refused, ForwardError::NotOffered(_)), "{refused}");

    offer(&node, 4);
    for target in ["127.0.0.2:80", "localhost:80", "nonsense", "127.0.0.1:*"] {
        let refused = ask(&controller, "node-1", target).await;
        assert!(matches!(refused, ForwardError::Denied { .. }), "{target}: {refused}");
    }
    // The certified name counts, whoever else is in the cluster.
    let refused = ask(&hop, "node-1", &address).await;
    assert!(matches!(refused, ForwardError::Denied { .. }), "{refused}");
    let unknown = ask(&controller, "nobody", &address).await;
    assert!(matches!(unknown, ForwardError::Connect(_)), "{unknown}");
    assert!(
        tokio::time::timeout(Duration::from_millis(1), listener.accept()).await.is_err(),
        "the target was not touched"
    );
    drop(listener);
    let refused = ask(&controller, "node-1", &address).await;
    assert!(refused.to_string().contains(&format!("cannot connect to {address}: ")), "{refused}");
}

#[tokio::test]
async fn a_connection_that_breaks_there_breaks_here() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    offer(&node, 1);
    let (listener, address) = target().await;
    let mut stream = within("forward", controller.forward(&id("node-1"), &address, false)).await.unwrap();
    let (connection, _) = within("accept", listener.accept()).await.unwrap();
    // The one place is taken.
    let busy = within("forward", controller.forward(&id("node-1"), &address, false)).await.unwrap_err();
    assert!(busy.to_string().contains("as many connections as it may"), "{busy}");

    connection.set_zero_linger().unwrap();
    drop(connection);
    let mut all = Vec::new();
    within("reset", stream.read_to_end(&mut all)).await.unwrap_err();
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    offer(&node, 4);
    let (listener, address) = target().await;
    let mut stream = within("forward", controller.forward(&id("node-1"), &address, false)).await.unwrap();
    let (_connection, _) = within("accept", listener.accept()).await.unwrap();
    // More than all windows and buffers on the way together; nobody reads, so it can never be taken.
    let sent = vec![7; 256 << 20];
    let written = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&sent)).await;
    assert!(written.is_err(), "256 MiB vanished into buffers");
}

#[tokio::test]
async fn netcheck_has_another_node_try() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let checked = within("netcheck", controller.netcheck(Some(id("node-1")), id("hop-1"))).await.unwrap();
    assert_eq!((checked.from, checked.to), (id("node-1"), id("hop-1")));
    let address = hop.listen_addresses()[0].to_string();
    let path = checked.paths.iter().find(|path| path.address == address).unwrap();
    assert!(path.udp.as_ref().is_some_and(|udp| udp.reachable), "{path:?}");
    assert!(checked.findings[0].starts_with("UDP works at "), "{:?}", checked.findings);
    // Nobody but a controller has others try; from here it goes by what is known here.
    let refused = within("netcheck", node.netcheck(Some(id("controller")), id("hop-1"))).await.unwrap_err();
    assert!(refused.to_string().contains("not offer this service to this node"), "{refused}");
    let own = within("netcheck", node.netcheck(None, id("hop-1"))).await.unwrap();
    assert!(own.paths.iter().any(|path| path.address == address), "{own:?}");
}

#[tokio::test]
async fn events_tell_what_happened_and_why() {
    let world = World::new();
    let (controller, hop, _node) = world.line().await;
    let seen = controller.events(0, Duration::ZERO).await;
    let kinds: Vec<_> = seen.events.iter().map(|event| (event.event, event.node.clone().unwrap())).collect();
    assert!(kinds.contains(&(EventKind::LinkUp, id("hop-1"))), "{seen:?}");
    assert!(kinds.contains(&(EventKind::NodeReachable, id("node-1"))), "{seen:?}");
    within("shutdown", hop.shutdown()).await;
    let mut after = seen.last;
    loop {
        let page = within("events", controller.events(after, Duration::from_secs(20))).await;
        after = page.last;
        if let Some(down) = page.events.iter().find(|event| event.event == EventKind::LinkDown) {
            assert!(down.text.starts_with("link to hop-1 is down: "), "{down:?}");
            break;
        }
    }
}
