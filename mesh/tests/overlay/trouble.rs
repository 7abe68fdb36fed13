//! What goes wrong: hops that leave and return, strangers, noise.

use std::time::Duration;

use plexus_mesh::{Config, Credentials, Mesh, StartError};
use plexus_proto::id::Role;
use plexus_proto::packet::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use crate::world::{ANYONE, World, accept, any, assert_same, authority, id, pattern, reachable, within};

/// Starts a transfer from the controller, ends the hop in the middle of it, starts it again after `absence` on the
/// same port, and checks that every byte comes, on the same stream.
async fn transfer_survives_a_hop_that_is_gone_for(absence: Duration) {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let mut listener = node.listen("sink", ANYONE).unwrap();
    let mut near = within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
    let data = pattern(24 << 20);
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut far = accept(&mut listener).await;
    let mut got = vec![0; 4 << 20];
    within("first part", far.read_exact(&mut got)).await.unwrap();

    within("shutdown", hop.shutdown()).await;
    drop(hop);
    reachable(&controller, "node-1", false).await;
    tokio::time::sleep(absence).await;
    let _hop = world.hop(at).await;
    within("rest", far.read_to_end(&mut got)).await.unwrap();
    assert_same(&got, &data);
    sender.await.unwrap();
}

#[tokio::test]
async fn a_stream_survives_the_restart_of_its_hop() {
    transfer_survives_a_hop_that_is_gone_for(Duration::ZERO).await;
}

#[tokio::test]
async fn a_stream_survives_a_hop_that_is_gone_for_a_while() {
    // Longer than a link's idle timeout, and long enough for probe timers to have doubled to seconds.
    transfer_survives_a_hop_that_is_gone_for(Duration::from_secs(6)).await;
}

#[tokio::test]
async fn a_second_path_takes_over() {
    let world = World::new();
    let hops =
        [world.hop(any()).await, Mesh::start(world.config(Role::Hop, "hop-2", &[any()], &[])).await.unwrap()];
    let at: Vec<_> = hops.iter().map(|hop| hop.listen_addresses()[0]).collect();
    let start = async |role, name| Mesh::start(world.config(role, name, &[], &at)).await.unwrap();
    let (controller, node) =
        (start(Role::Controller, "controller").await, start(Role::Execution, "node-1").await);
    reachable(&controller, "hop-1", true).await;
    reachable(&controller, "hop-2", true).await;
    reachable(&controller, "node-1", true).await;
    let mut listener = node.listen("echo", ANYONE).unwrap();
    let mut near =
        within("connect", controller.connect(&id("node-1"), "echo", Class::Control)).await.unwrap();
    near.write_u8(0).await.unwrap();
    let mut far = accept(&mut listener).await;
    let echo = tokio::spawn(async move {
        while let Ok(byte) = far.read_u8().await {
            far.write_u8(byte).await.unwrap();
        }
    });
    within("echo", near.read_u8()).await.unwrap();

    let next = controller.watch().borrow().nodes[&id("node-1")].next_hop.clone();
    let [first, second] = hops;
    let (used, _spare) = if next == Some(id("hop-1")) { (first, second) } else { (second, first) };
    within("shutdown", used.shutdown()).await;
    near.write_u8(1).await.unwrap();
    assert_eq!(within("echo over the other hop", near.read_u8()).await.unwrap(), 1);
    drop(near);
    echo.await.unwrap();
}

#[tokio::test]
async fn a_node_that_started_again_disowns_its_old_sessions() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let mut listener = node.listen("sink", ANYONE).unwrap();
    let mut near = within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
    near.write_u8(1).await.unwrap();
    let far = accept(&mut listener).await;
    // Gone without a word: the handles are dropped, nothing tells the peer.
    drop((listener, far));
    let at = hop.listen_addresses()[0];
    let abrupt = within("second start", world.leaf(Role::Execution, "node-1", at)).await;
    drop(node);
    let error = within("end of the stream", near.read_u8()).await.unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
    drop(abrupt);
}

#[tokio::test]
async fn a_node_of_another_authority_gets_no_link() {
    let world = World::new();
    let (controller, hop, _node) = world.line().await;
    let out = world.of("stranger");
    let other = authority(&world.of("other-ca"));
    other.issue(Role::Execution, &id("stranger"), &out, Duration::from_secs(3600)).unwrap();
    let config = Config {
        credentials: Credentials::load(&out).unwrap(),
        ..world.config(Role::Execution, "node-2", &[], &[hop.listen_addresses()[0]])
    };
    let stranger = Mesh::start(Config { state_dir: out.join("state"), ..config }).await.unwrap();
    // Somebody who starts later and gets in shows that there was time enough.
    let _late = world.leaf(Role::Execution, "node-3", hop.listen_addresses()[0]).await;
    reachable(&controller, "node-3", true).await;
    assert!(!stranger.watch().borrow().nodes.contains_key(&id("hop-1")));
    assert!(!controller.watch().borrow().nodes.contains_key(&id("stranger")));
}

#[tokio::test]
async fn a_peer_under_another_name_gets_no_link() {
    let world = World::new();
    let (controller, hop, _node) = world.line().await;
    let mut config = world.config(Role::Execution, "node-2", &[], &[hop.listen_addresses()[0]]);
    config.peers[0].name = Some(id("hop-9"));
    let picky = Mesh::start(config).await.unwrap();
    let _late = world.leaf(Role::Execution, "node-3", hop.listen_addresses()[0]).await;
    reachable(&controller, "node-3", true).await;
    assert!(!picky.watch().borrow().nodes.contains_key(&id("hop-1")));
    assert!(!controller.watch().borrow().nodes.contains_key(&id("node-2")));
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let world = World::new();
    let taken = UdpSocket::bind(any()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = Mesh::start(world.config(Role::Hop, "hop-1", &[address], &[])).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { address: named, .. } if named == address), "{error}");
}

#[tokio::test]
async fn shutdown_frees_the_port_and_can_be_repeated() {
    let world = World::new();
    let (_controller, hop, _node) = world.line().await;
    let address = hop.listen_addresses()[0];
    within("shutdown", hop.shutdown()).await;
    within("second shutdown", hop.shutdown()).await;
    std::net::UdpSocket::bind(address).unwrap();
}

#[tokio::test]
async fn noise_on_the_port_disturbs_nobody() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let noise = tokio::spawn(async move {
        let socket = UdpSocket::bind(any()).await.unwrap();
        for round in 0u32.. {
            // Short and long headers, with and without the fixed bit, of every length up to a full packet.
            let mut bytes = pattern(1 + (round as usize * 37) % 1452);
            bytes[0] = (round * 5) as u8;
            if socket.send_to(&bytes, at).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    });
    let mut listener = node.listen("sink", ANYONE).unwrap();
    let mut near = within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
    let data = pattern(4 << 20);
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut got = Vec::new();
    within("transfer", accept(&mut listener).await.read_to_end(&mut got)).await.unwrap();
    assert_same(&got, &data);
    sender.await.unwrap();
    assert!(!noise.is_finished());
    noise.abort();
}
