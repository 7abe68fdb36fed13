//! Floods of handshakes by strangers: what they can make a hop hold is bounded, what flows over it flows on, and who
//! belongs to the mesh still gets in. In a process of its own, for its memory is measured.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "overlay/world.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the overlay, which use all of it")]
mod world;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plexus_mesh::{Config, Credentials, LinkKind, Mesh};
use plexus_proto::id::Role;
use plexus_proto::packet::Class;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use world::{ANYONE, World, accept, assert_same, authority, id, pattern, reachable, within};

/// Strangers that begin a handshake of QUIC. At 30 KiB for each, all of them would need 90 MiB.
const INITIALS: usize = 3000;
/// Sources that they come from.
const SOURCES: u8 = 100;
/// Strangers that begin one of TLS on TCP and stay; few, as their ends of it are files of this process too.
const STREAMS: usize = 300;
/// What all of them together may cost. Places for handshakes are a hundred at each door.
const GROWTH_MAX: u64 = 24 << 20;

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// First flights of QUIC handshakes with `to`, each of a connection of its own, by somebody of another mesh.
fn initials(stranger: &Credentials, to: SocketAddr) -> Vec<Vec<u8>> {
    let crypto = QuicClientConfig::try_from(stranger.client_config(&[b"plexus-link/1"])).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, true, None);
    let now = Instant::now();
    let mut flights = Vec::new();
    for _ in 0..INITIALS {
        let (_, mut connection) = endpoint.connect(now, config.clone(), to, "plexus.invalid").unwrap();
        let mut datagram = Vec::new();
        while connection.poll_transmit(now, 1, &mut datagram).is_some() {
            flights.push(std::mem::take(&mut datagram));
        }
    }
    assert!(flights.len() >= INITIALS);
    flights
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_costs_little_and_stops_nobody() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let other = authority(&world.of("other-ca"));
    other.issue(Role::Hop, &id("stranger"), &world.of("stranger"), Duration::from_secs(3600)).unwrap();
    let stranger = Credentials::load(&world.of("stranger")).unwrap();

    // What flows meanwhile.
    let mut listener = node.listen("flow", ANYONE).unwrap();
    let mut near = within("connect", controller.connect(&id("node-1"), "flow", Class::Bulk)).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (block, until) = (pattern(64 * 1024), over.clone());
    let sent = block.clone();
    let writer = tokio::spawn(async move {
        let mut blocks = 0;
        while !until.load(Ordering::Relaxed) {
            near.write_all(&sent).await.unwrap();
            blocks += 1;
            // A pace at which the flood is what is measured.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        near.shutdown().await.unwrap();
        blocks
    });
    let mut far = accept(&mut listener).await;
    let mut read = vec![0; block.len()];
    for _ in 0..100 {
        within("a block before the flood", far.read_exact(&mut read)).await.unwrap();
        assert_same(&read, &block);
    }

    let flights = initials(&stranger, at);
    let before = resident();
    let mut most = before;
    let sources: Vec<UdpSocket> =
        (0..SOURCES).map(|last| UdpSocket::bind(SocketAddr::from(([127, 0, 1, last], 0))).unwrap()).collect();
    let mut during = 0;
    for (number, flight) in flights.iter().enumerate() {
        // Both datagrams of a flight from one source. A full socket drops some, as it would for any flood.
        let _ = sources[number / 2 % sources.len()].send_to(flight, at);
        if number % 64 == 0 {
            within("a block in the flood", far.read_exact(&mut read)).await.unwrap();
            assert_same(&read, &block);
            during += 1;
            most = most.max(resident());
        }
    }
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // The head of a ClientHello of 16 KiB, and half of it. Who was turned away may notice here.
        let _ = stream.write_all(&[&[22, 3, 1, 0x40, 0][..], &[0; 8000]].concat()).await;
        streams.push(stream);
        most = most.max(resident());
    }
    for _ in 0..100 {
        within("a block under the flood", far.read_exact(&mut read)).await.unwrap();
        assert_same(&read, &block);
    }

    // Strangers hold every place that they can have; a member gets in, also by QUIC alone.
    let config = world.config(Role::Execution, "late", &[], &[at]);
    let late = Mesh::start(Config { kinds: vec![LinkKind::Quic], ..config }).await.unwrap();
    reachable(&late, "controller", true).await;
    reachable(&controller, "late", true).await;
    most = most.max(resident());
    println!("{} KiB more at most, {during} blocks in the flood", (most - before) / 1024);
    assert!(most - before <= GROWTH_MAX, "{} KiB more than before the flood", (most - before) / 1024);

    over.store(true, Ordering::Relaxed);
    let mut rest = Vec::new();
    within("the rest", far.read_to_end(&mut rest)).await.unwrap();
    rest.chunks(block.len()).for_each(|found| assert_same(found, &block));
    let received = 200 + during + rest.len() / block.len();
    assert_eq!(within("the writer", writer).await.unwrap(), received, "every block, once");
    drop(streams);
}
