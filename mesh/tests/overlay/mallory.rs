//! Mallory: a neighbour with a valid certificate of each role, who speaks the real protocol and says everything there
//! is to say, in its place and out of it. The verdicts are those of the table in `authorization`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use plexus_mesh::authorization::{SENT, Sent, Verdict, verdict};
use plexus_mesh::framed::FrameReader;
use plexus_mesh::revocation::{Entry, List};
use plexus_mesh::{Credentials, Mesh};
use plexus_proto::enrol::{NextCertificate, SignedRevocations};
use plexus_proto::frame::{self, LINK_FRAME_MAX};
use plexus_proto::id::{Address, Role};
use plexus_proto::link::{
    AnnouncedLink, Announcement, Ask, Digest, Hello, LinkClose, LinkMessage, LinkMessageKind, Probe,
    ProbeReply, SealedReady, SignedAnnouncement, Told, ToldRoute, Want,
};
use plexus_proto::packet::{Class, HOP_LIMIT, Header, Probe as ProbePacket};
use plexus_proto::version::{MAX_VERSION, MIN_VERSION};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::UnixTime;

use crate::world::{World, any, id, reachable, within};

const ROLES: [Role; 3] = [Role::Controller, Role::Execution, Role::Hop];
/// Close codes of links, as they stand on the wire.
const SHUTDOWN: u64 = 0;
const PROTOCOL: u64 = 1;

/// A link made by hand.
struct Mallory {
    credentials: Credentials,
    connection: quinn::Connection,
    send: quinn::SendStream,
    reader: FrameReader<quinn::RecvStream>,
    heard: Vec<LinkMessageKind>,
    nonce: u64,
    _endpoint: quinn::Endpoint,
}

impl Mallory {
    /// Links as far as the control stream; says nothing yet.
    async fn dial(world: &World, role: Role, name: &str, at: SocketAddr) -> Self {
        let credentials = world.credentials(role, name);
        let crypto = QuicClientConfig::try_from(credentials.client_config(&[b"plexus-link/1"])).unwrap();
        let mut endpoint = quinn::Endpoint::client(any()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connecting = endpoint.connect(at, "plexus.invalid").unwrap();
        let connection = within("handshake", connecting).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let reader = FrameReader::new(receive);
        Self { credentials, connection, send, reader, heard: vec![], nonce: 0, _endpoint: endpoint }
    }

    /// The same, hellos exchanged.
    async fn link(world: &World, role: Role, name: &str, at: SocketAddr) -> Self {
        let mut this = Self::dial(world, role, name, at).await;
        this.say(hello()).await;
        let first: Option<LinkMessage> = within("hello", this.reader.next(LINK_FRAME_MAX)).await.unwrap();
        assert!(matches!(first.unwrap().kind, Some(LinkMessageKind::Hello(_))));
        this
    }

    async fn say(&mut self, kind: LinkMessageKind) {
        let mut frame = BytesMut::new();
        frame::encode(&LinkMessage { kind: Some(kind) }, &mut frame);
        self.write(&frame).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        // A link that is closed already shows elsewhere.
        let _ = self.send.write_all(bytes).await;
    }

    /// Asserts that the link lives and has heard all that was said.
    async fn still_linked(&mut self, what: &str) {
        self.nonce += 1;
        let nonce = self.nonce;
        self.say(LinkMessageKind::Probe(Probe { nonce })).await;
        loop {
            let next = within(what, self.reader.next::<LinkMessage>(LINK_FRAME_MAX)).await;
            match next.unwrap_or_else(|error| panic!("{what}: {error}")).and_then(|message| message.kind) {
                Some(LinkMessageKind::ProbeReply(reply)) if reply.nonce == nonce => return,
                Some(kind) => self.heard.push(kind),
                None => panic!("{what}: {:?}", self.connection.close_reason()),
            }
        }
    }

    /// The code that the other end closes the link with.
    async fn closed(&self, what: &str) -> u64 {
        match within(what, self.connection.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("{what}: {other}"),
        }
    }

    fn address(&self) -> Address {
        self.credentials.identity().address
    }

    fn chain(&self) -> Vec<bytes::Bytes> {
        chain(&self.credentials)
    }

    /// An announcement of `origin`, signed with our own key.
    fn announces(&self, origin: Address, sequence: u64, neighbor: Address) -> SignedAnnouncement {
        let links = vec![AnnouncedLink { neighbor: neighbor.0, cost: 1 }];
        let software = format!("mallory {sequence}");
        let body =
            Announcement { origin: origin.0, epoch: 9, sequence, links, software, services: vec![], news: 0 };
        let body = body.encode_to_vec();
        let signature = self.credentials.sign(&body).into();
        SignedAnnouncement { body: body.into(), signature, chain: self.chain() }
    }

    fn packet(&self, class: Class, source: Address, destination: Address, body: &[u8]) {
        let header = Header { class, ecn: 0, rekey: false, hop_limit: HOP_LIMIT, source, destination };
        self.connection.send_datagram(header.packet(body)).unwrap();
    }

    fn echo(&self, source: Address, destination: Address) {
        self.packet(Class::Probe, source, destination, &ProbePacket::Echo { nonce: 1 }.encode());
    }
}

fn chain(credentials: &Credentials) -> Vec<bytes::Bytes> {
    credentials.chain().iter().map(|der| der.to_vec().into()).collect()
}

fn hello() -> LinkMessageKind {
    LinkMessageKind::Hello(Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        software: "mallory".to_owned(),
        boot_nonce: 1,
        cost: 1,
        ..Hello::default()
    })
}

/// An honest message of each kind. A kind that is new has to be added, or the test of the table fails.
fn sample(name: &str, mallory: &Mallory, hop: Address) -> LinkMessageKind {
    match name {
        "hello" => hello(),
        "announcement" => LinkMessageKind::Announcement(mallory.announces(mallory.address(), 1, hop)),
        "digest" => LinkMessageKind::Digest(Digest::default()),
        "want" => LinkMessageKind::Want(Want { origins: vec![hop.0] }),
        "probe" => LinkMessageKind::Probe(Probe { nonce: u64::MAX }),
        "probe_reply" => LinkMessageKind::ProbeReply(ProbeReply { nonce: 7 }),
        "close" => LinkMessageKind::Close(LinkClose { code: 0, reason: "done".to_owned() }),
        "sealed_ready" => LinkMessageKind::SealedReady(SealedReady {}),
        "revocations" => {
            let made = List::sign(&mallory.credentials, 1, &[], UnixTime::now());
            let signed = made.map_or_else(|_| SignedRevocations::default(), |list| list.signed);
            LinkMessageKind::Revocations(signed)
        }
        "next_certificate" => LinkMessageKind::NextCertificate(NextCertificate { chain: mallory.chain() }),
        "told" => {
            let routes = vec![ToldRoute { destination: 77, cost: 1, hops: 1, path: 1 }];
            LinkMessageKind::Told(Told { routes, whole: true, unknown: vec![] })
        }
        "ask" => LinkMessageKind::Ask(Ask { all: true, ..Ask::default() }),
        other => panic!("{other} is in the table and not in this test"),
    }
}

/// Waits for a counter of packets or messages.
async fn counted(mesh: &Mesh, what: &str, reached: impl Fn(&plexus_mesh::status::PacketCounts) -> bool) {
    let seen = tokio::time::timeout(crate::world::DEADLINE, async {
        while !reached(&mesh.status().packets) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(seen.await.is_ok(), "{what}: {:?}", mesh.status().packets);
}

/// Waits until `mesh` shows that announcement of mallory's, and so has read everything that came before it.
async fn announced(mesh: &Mesh, name: &str, software: &str) {
    let (mut watch, node) = (mesh.watch(), id(name));
    let seen = watch.wait_for(|view| view.nodes.get(&node).is_some_and(|known| known.software == software));
    within(software, async { drop(seen.await.unwrap()) }).await;
}

#[tokio::test]
async fn every_message_of_every_role_meets_the_verdict_of_the_table() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let (at, hop_address) = (hop.listen_addresses()[0], hop.identity().address);
    let mut refused = 0;
    for role in ROLES {
        for &(sent, _) in SENT {
            let Sent::Message(name) = sent else { continue };
            let what = format!("{name} from a neighbour of role {role}");
            let mut mallory =
                Mallory::link(&world, role, &format!("m-{role}-{}", name.replace('_', "-")), at).await;
            mallory.say(sample(name, &mallory, hop_address)).await;
            match verdict(sent, role) {
                Verdict::First | Verdict::Refused => {
                    assert_eq!(mallory.closed(&what).await, PROTOCOL, "{what}");
                    refused += 1;
                    assert_eq!(hop.status().packets.refused, refused, "{what}");
                }
                _ if name == "close" => assert_eq!(mallory.closed(&what).await, SHUTDOWN, "{what}"),
                _ => mallory.still_linked(&what).await,
            }
        }
    }
    // hello from three, told from two, ask from two
    assert_eq!(refused, 7);
    for (name, mesh) in [("node-1", &controller), ("controller", &node)] {
        let ping = within("ping", mesh.ping(&id(name), Duration::from_secs(5))).await;
        assert!(ping.is_ok(), "honest nodes go on: {ping:?}");
    }
}

#[tokio::test]
async fn a_link_that_does_not_begin_with_hello_is_closed() {
    let world = World::new();
    let hop = world.hop(any()).await;
    let (at, hop_address) = (hop.listen_addresses()[0], hop.identity().address);
    for &(sent, _) in SENT {
        let Sent::Message(name) = sent else { continue };
        if matches!(name, "hello" | "close") {
            continue;
        }
        let mut mallory = Mallory::dial(&world, Role::Hop, "mallory", at).await;
        mallory.say(sample(name, &mallory, hop_address)).await;
        assert_eq!(mallory.closed(name).await, PROTOCOL, "{name} before hello");
    }
    assert!(hop.status().links.is_empty());
}

#[tokio::test]
async fn frames_that_are_none_end_the_link_and_unknown_ones_do_not() {
    let world = World::new();
    let hop = world.hop(any()).await;
    let at = hop.listen_addresses()[0];
    let mut oversized = BytesMut::new();
    oversized.put_u32(LINK_FRAME_MAX as u32 + 1);
    let endless: &[u8] = &[0, 0, 0, 2, 0xff, 0xff];
    let truncated: &[u8] = &[0, 0, 0, 3, 0x12, 0x7f, 0];
    for bytes in [&oversized[..], &[0xff; 64], endless, truncated] {
        let mut mallory = Mallory::link(&world, Role::Hop, "mallory", at).await;
        mallory.write(bytes).await;
        assert_eq!(mallory.closed("bad frame").await, PROTOCOL, "{bytes:?}");
    }
    let mut mallory = Mallory::link(&world, Role::Hop, "mallory", at).await;
    mallory.send.finish().unwrap();
    assert_eq!(mallory.closed("no control stream").await, PROTOCOL);

    // A message of a later version, number 999 of the oneof, means nothing and harms nothing.
    let mut mallory = Mallory::link(&world, Role::Execution, "later", at).await;
    mallory.write(&[0, 0, 0, 4, 0xba, 0x3e, 1, 0]).await;
    mallory.write(&[0, 0, 0, 0]).await;
    mallory.still_linked("after a message of a later version").await;
    assert_eq!(hop.status().packets.refused, 0);
}

/// The hop limit is what ends a packet that circles: each hop takes one, and the last one counts what it drops.
#[tokio::test]
async fn a_packet_crosses_no_more_hops_than_its_limit() {
    let world = World::new();
    let first = world.hop(any()).await;
    let at = first.listen_addresses()[0];
    let mut hops = vec![first];
    for name in ["hop-2", "hop-3"] {
        let before = hops[hops.len() - 1].listen_addresses()[0];
        hops.push(Mesh::start(world.config(Role::Hop, name, &[any()], &[before])).await.unwrap());
    }
    let node = world.leaf(Role::Execution, "node-1", hops[2].listen_addresses()[0]).await;
    reachable(&hops[0], "node-1", true).await;
    let mallory = Mallory::link(&world, Role::Execution, "mallory", at).await;
    let (source, destination) = (mallory.address(), node.identity().address);
    for (hop_limit, expires_at) in [(2, Some(1)), (1, Some(0)), (3, Some(2)), (4, None)] {
        let before: Vec<_> = hops.iter().map(|hop| hop.status().packets.expired).collect();
        let unwanted = node.status().packets.unwanted;
        let header = Header { class: Class::Bulk, ecn: 0, rekey: false, hop_limit, source, destination };
        mallory.connection.send_datagram(header.packet(b"no inner connection begins like this")).unwrap();
        match expires_at {
            Some(hop) => counted(&hops[hop], "expired", |packets| packets.expired > before[hop]).await,
            None => counted(&node, "arrived", |packets| packets.unwanted > unwanted).await,
        }
        for (hop, mesh) in hops.iter().enumerate() {
            let more = mesh.status().packets.expired - before[hop];
            assert_eq!(more, u64::from(expires_at == Some(hop)), "limit {hop_limit} at hop-{}", hop + 1);
        }
    }
}

/// Forged, spliced, altered and replayed words of others, from each role; then an honest one of its own, which is read
/// after them.
#[tokio::test]
async fn nobody_speaks_for_another_node() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let (at, hop_address) = (hop.listen_addresses()[0], hop.identity().address);
    let victim = node.identity().address;
    let mut mallory = Mallory::link(&world, Role::Hop, "collector", at).await;
    mallory.say(LinkMessageKind::Want(Want { origins: vec![victim.0] })).await;
    // Answers of the router come behind the probe's.
    let genuine = loop {
        mallory.still_linked("while waiting for the victim's announcement").await;
        let found = mallory.heard.iter().find_map(|kind| match kind {
            LinkMessageKind::Announcement(signed) => {
                let body = Announcement::decode(signed.body.clone()).unwrap();
                (body.origin == victim.0).then(|| signed.clone())
            }
            _ => None,
        });
        match found {
            Some(found) => break found,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    drop(mallory);
    let before = hop.watch().borrow().nodes[&id("node-1")].clone();
    for role in ROLES {
        let name = format!("liar-{role}");
        let mut mallory = Mallory::link(&world, role, &name, at).await;
        let forged = mallory.announces(victim, 1 << 40, hop_address);
        let spliced = SignedAnnouncement { chain: genuine.chain.clone(), ..forged.clone() };
        let borrowed = SignedAnnouncement { chain: mallory.chain(), ..genuine.clone() };
        let resigned = SignedAnnouncement {
            signature: mallory.credentials.sign(&genuine.body).into(),
            ..genuine.clone()
        };
        let mut altered = genuine.clone();
        let mut body = altered.body.to_vec();
        *body.last_mut().unwrap() ^= 1;
        altered.body = body.into();
        let unsigned = SignedAnnouncement { signature: bytes::Bytes::new(), ..forged.clone() };
        let unchained = SignedAnnouncement { chain: vec![], ..forged.clone() };
        for bad in [forged, spliced, borrowed, resigned, altered, unsigned, unchained, genuine.clone()] {
            mallory.say(LinkMessageKind::Announcement(bad)).await;
        }
        let own = mallory.announces(mallory.address(), 1, hop_address);
        mallory.say(LinkMessageKind::Announcement(own)).await;
        announced(&hop, &name, "mallory 1").await;
        let now = hop.watch().borrow().nodes[&id("node-1")].clone();
        assert_eq!(now, before, "after {role}");

        // What it said itself earlier does not come back either.
        let newer = mallory.announces(mallory.address(), 3, hop_address);
        mallory.say(LinkMessageKind::Announcement(newer)).await;
        announced(&hop, &name, "mallory 3").await;
        let older = mallory.announces(mallory.address(), 2, hop_address);
        mallory.say(LinkMessageKind::Announcement(older)).await;
        let newest = mallory.announces(mallory.address(), 4, hop_address);
        mallory.say(LinkMessageKind::Announcement(newest)).await;
        let mut watch = hop.watch();
        let seen = watch.wait_for(|view| match &view.nodes[&id(&name)].software[..] {
            "mallory 2" => panic!("an older word replaced a newer one"),
            software => software == "mallory 4",
        });
        within("newest", async { drop(seen.await.unwrap()) }).await;
    }
    let ping = within("ping", controller.ping(&id("node-1"), Duration::from_secs(5))).await;
    assert!(ping.is_ok(), "{ping:?}");
}

#[tokio::test]
async fn only_a_controller_revokes_and_nobody_renews_another() {
    let world = World::new();
    let (controller, hop, _node) = world.line().await;
    let (at, hop_address) = (hop.listen_addresses()[0], hop.identity().address);
    let owner = world.credentials(Role::Controller, "controller");
    let entries = [(id("node-1"), Entry { key: None, at: jiff::Timestamp::now() })];
    let honest = List::sign(&owner, 99, &entries, UnixTime::now()).unwrap().signed;
    for role in [Role::Execution, Role::Hop] {
        let name = format!("m-{role}");
        let mut mallory = Mallory::link(&world, role, &name, at).await;
        // `sign` refuses, so the context that it puts before the body is written out here.
        let message = [&b"plexus revocations v1\0"[..], &honest.body[..]].concat();
        let own = SignedRevocations {
            signature: mallory.credentials.sign(&message).into(),
            chain: mallory.chain(),
            ..honest.clone()
        };
        let bare =
            SignedRevocations { signature: mallory.credentials.sign(&honest.body).into(), ..own.clone() };
        let spliced = SignedRevocations { chain: honest.chain.clone(), ..own.clone() };
        let mut altered = honest.clone();
        altered.body = [&honest.body[..], &[0x10, 0x64]].concat().into();
        for bad in [own, bare, spliced, altered, SignedRevocations::default()] {
            mallory.say(LinkMessageKind::Revocations(bad)).await;
        }
        let word = mallory.announces(mallory.address(), 1, hop_address);
        mallory.say(LinkMessageKind::Announcement(word)).await;
        announced(&hop, &name, "mallory 1").await;
        assert!(hop.watch().borrow().nodes[&id("node-1")].reachable, "revoked by a {role}");

        // The certificate of another is no renewal of one's own.
        mallory.say(LinkMessageKind::NextCertificate(NextCertificate { chain: chain(&owner) })).await;
        assert_eq!(mallory.closed("certificate of another").await, PROTOCOL);
    }
    let ping = within("ping", controller.ping(&id("node-1"), Duration::from_secs(5))).await;
    assert!(ping.is_ok(), "{ping:?}");

    // The genuine list works whoever brings it.
    let mut mallory = Mallory::link(&world, Role::Execution, "courier", at).await;
    mallory.say(LinkMessageKind::Revocations(honest)).await;
    reachable(&controller, "node-1", false).await;
}

/// Packets of each class from each role, for the node itself and for others, on a node of each role.
#[tokio::test]
async fn every_packet_of_every_role_meets_the_verdict_of_the_table() {
    let world = World::new();
    for here in ROLES {
        let name = format!("here-{here}");
        let mesh = Mesh::start(world.config(here, &name, &[any()], &[])).await.unwrap();
        let (at, us) = (mesh.listen_addresses()[0], mesh.identity().address);
        // A neighbour that packets for others could go to.
        let mut witness = Mallory::link(&world, Role::Hop, &format!("witness-{here}"), at).await;
        let word = witness.announces(witness.address(), 1, us);
        witness.say(LinkMessageKind::Announcement(word)).await;
        reachable(&mesh, &format!("witness-{here}"), true).await;
        let other = witness.address();
        for role in ROLES {
            let what = format!("{role} to {here}");
            let mut mallory = Mallory::link(&world, role, &format!("p-{here}-{role}"), at).await;
            let own = mallory.address();
            let count = mesh.status().packets;

            // Under another's address.
            mallory.echo(other, us);
            match verdict(Sent::PacketForUs, role) {
                Verdict::Own => counted(&mesh, &what, |now| now.forged == count.forged + 1).await,
                Verdict::Taken => {
                    mallory.still_linked(&what).await;
                    assert_eq!(mesh.status().packets.forged, count.forged, "{what}");
                }
                other => panic!("{other:?}"),
            }
            // Under the address of the node itself: from nobody.
            let forged = mesh.status().packets.forged;
            mallory.echo(us, us);
            counted(&mesh, &what, |now| now.forged == forged + 1).await;
            // Not even headers, and a session that was never begun.
            let count = mesh.status().packets;
            mallory.connection.send_datagram(bytes::Bytes::from_static(&[0xff, 1, 2])).unwrap();
            counted(&mesh, &what, |now| now.malformed > count.malformed).await;
            mallory.packet(Class::Control, own, us, &[0x40; 40]);
            mallory.packet(Class::Bulk, own, us, &[0x40; 40]);
            // For somebody else.
            mallory.packet(Class::Control, own, other, &[0x40; 40]);
            match verdict(Sent::PacketForOthers, here) {
                Verdict::Taken => counted(&mesh, &what, |now| now.forwarded > count.forwarded).await,
                Verdict::Refused => {
                    counted(&mesh, &what, |now| now.unroutable > count.unroutable).await;
                    assert_eq!(mesh.status().packets.forwarded, 0, "{what}");
                }
                other => panic!("{other:?}"),
            }
            mallory.still_linked(&what).await;
        }
        witness.still_linked("witness").await;
        mesh.shutdown().await;
    }
}
