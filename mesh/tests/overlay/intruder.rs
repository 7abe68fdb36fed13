//! A certified leaf that speaks for others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_proto::frame::LINK_FRAME_MAX;
use plexus_proto::id::{Address, Role};
use plexus_proto::link::{Hello, LinkMessage, LinkMessageKind};
use plexus_proto::packet::{Class, HOP_LIMIT, Header, Probe};
use plexus_proto::version::{MAX_VERSION, MIN_VERSION};
use quinn::crypto::rustls::QuicClientConfig;

use crate::world::{World, any, id, reachable, within};

/// A leaf made of nothing but a link.
struct Leaf {
    connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Leaf {
    /// Links with the hop and says nothing else.
    async fn link(world: &World, name: &str, hop: SocketAddr, hello: Hello) -> (Self, Option<LinkMessage>) {
        let credentials = world.credentials(Role::Execution, name);
        let crypto = QuicClientConfig::try_from(credentials.client_config(&[b"plexus-link/1"])).unwrap();
        let mut endpoint = quinn::Endpoint::client(any()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connection = endpoint.connect(hop, "plexus.invalid").unwrap().await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
        writer.send(&LinkMessage { kind: Some(LinkMessageKind::Hello(hello)) }).await.unwrap();
        let answer = within("hello", reader.next::<LinkMessage>(LINK_FRAME_MAX)).await.ok().flatten();
        tokio::spawn(async move {
            // Keeps the control stream open and read for as long as the link lives.
            while let Ok(Some(_)) = reader.next::<LinkMessage>(LINK_FRAME_MAX).await {}
            drop(writer);
        });
        (Self { connection, _endpoint: endpoint }, answer)
    }

    fn send(&self, source: Address, destination: Address, nonce: u64) {
        let header =
            Header { class: Class::Probe, ecn: 0, rekey: false, hop_limit: HOP_LIMIT, source, destination };
        self.connection.send_datagram(header.packet(&Probe::Echo { nonce }.encode())).unwrap();
    }
}

fn hello(versions: (u32, u32), boot_nonce: u64) -> Hello {
    Hello {
        min_version: versions.0,
        max_version: versions.1,
        software: "raw".to_owned(),
        boot_nonce,
        cost: 1,
        ..Hello::default()
    }
}

const VERSIONS: (u32, u32) = (MIN_VERSION, MAX_VERSION);

#[tokio::test]
async fn packets_under_another_nodes_address_are_dropped() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let (mallory, _hello) = Leaf::link(&world, "mallory", at, hello(VERSIONS, 1)).await;
    let target = hop.identity().address;
    let victim = node.identity().address;
    reachable(&hop, "node-1", true).await;
    mallory.send(victim, target, 1);
    let forged = async {
        while hop.status().packets.forged < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("count of the forged packet", forged).await;
    let ping = within("ping", controller.ping(&id("node-1"), Duration::from_secs(5))).await;
    assert!(ping.is_ok(), "{ping:?}");
    assert_eq!(hop.status().packets.forged, 1, "honest packets are not taken for forged ones");
    assert_eq!(
        node.status().packets,
        plexus_mesh::status::PacketCounts::default(),
        "no answer came to the victim"
    );
}

#[tokio::test]
async fn a_neighbour_without_a_common_version_is_refused() {
    let world = World::new();
    let (_controller, hop, _node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let (leaf, _) = Leaf::link(&world, "future", at, hello((MAX_VERSION + 1, MAX_VERSION + 9), 1)).await;
    match within("refusal", leaf.connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code, quinn::VarInt::from_u32(2), "{close}");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_neighbour_that_started_again_replaces_its_old_link() {
    let world = World::new();
    let (_controller, hop, _node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let (old, _) = Leaf::link(&world, "twice", at, hello(VERSIONS, 1)).await;
    let (same, _) = Leaf::link(&world, "twice", at, hello(VERSIONS, 1)).await;
    let (new, _) = Leaf::link(&world, "twice", at, hello(VERSIONS, 2)).await;
    for stale in [old, same] {
        match within("end of the old link", stale.connection.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code, quinn::VarInt::from_u32(4), "{close}");
            }
            other => panic!("{other}"),
        }
    }
    assert!(new.connection.close_reason().is_none());
}
