//! A hop that follows the protocol and means harm: it keeps what it forwards, tampers, and plays the node behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_mesh::identity::peer_identity;
use plexus_mesh::routing::{Effect, Input, LinkId, Router, Routes, VerifiedAnnouncement};
use plexus_mesh::{ConnectError, Credentials, SessionError};
use plexus_proto::frame::LINK_FRAME_MAX;
use plexus_proto::id::{Address, Role};
use plexus_proto::link::{Hello, LinkMessage, LinkMessageKind, SignedAnnouncement};
use plexus_proto::packet::{Class, HEADER_LEN, Header};
use plexus_proto::version::{MAX_VERSION, MIN_VERSION};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::world::{ANYONE, World, accept, any, assert_same, id, pattern, reachable, within};

const MARK: &[u8] = b"a secret that no hop may read ";

#[tokio::test]
async fn a_hop_sees_ciphertext_only() {
    let world = World::new();
    let hop = HostileHop::start(&world, Harm::Record);
    let (controller, node) = world.ends(hop.address).await;
    let mut listener = node.listen("confidential", ANYONE).unwrap();
    let text = MARK.repeat(20_000);
    let mut near =
        within("connect", controller.connect(&id("node-1"), "confidential", Class::Bulk)).await.unwrap();
    let sent = text.clone();
    let sender = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut got = Vec::new();
    within("transfer", accept(&mut listener).await.read_to_end(&mut got)).await.unwrap();
    assert_same(&got, &text);
    sender.await.unwrap();

    let seen = hop.state.lock().unwrap().seen.concat();
    assert!(seen.len() > text.len(), "all of it went through the hop: {} bytes", seen.len());
    let shows = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
    assert!(!shows(&MARK[..8]));
    assert!(!shows(b"confidential"));
    assert!(!shows(b"spiffe://"), "not even who talks, beyond the addresses in the headers");
}

#[tokio::test]
async fn a_hop_that_alters_and_repeats_packets_changes_nothing() {
    let world = World::new();
    let hop = HostileHop::start(&world, Harm::Tamper);
    let (controller, node) = world.ends(hop.address).await;
    let mut listener = node.listen("sink", ANYONE).unwrap();
    let data = pattern(2 << 20);
    let mut near = within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
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
    assert!(hop.state.lock().unwrap().harmed > 10, "harm was done");
}

#[tokio::test]
async fn a_hop_cannot_pass_for_the_node_behind_it() {
    let world = World::new();
    let impostor = impostor(&world.credentials(Role::Hop, "hop-1"));
    let hop = HostileHop::start(&world, Harm::Impersonate(impostor.local_addr().unwrap()));
    let (controller, _node) = world.ends(hop.address).await;
    let error =
        within("connect", controller.connect(&id("node-1"), "work", Class::Control)).await.unwrap_err();
    match &error {
        ConnectError::Session { source: SessionError::WrongPeer { found }, .. } => {
            assert_eq!(found, "spiffe://demo/main/hop/hop-1");
        }
        other => panic!("{other:?}"),
    }
    assert!(hop.state.lock().unwrap().harmed > 0, "the impostor was asked");
}

#[tokio::test]
async fn a_stream_goes_on_soon_after_its_path_does() {
    let world = World::new();
    let hop = HostileHop::start(&world, Harm::Record);
    let (controller, node) = world.ends(hop.address).await;
    let mut listener = node.listen("sink", ANYONE).unwrap();
    let data = pattern(4 << 20);
    let mut near = within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut far = accept(&mut listener).await;
    let mut got = vec![0; 64 * 1024];
    within("first part", far.read_exact(&mut got)).await.unwrap();

    // Nothing passes for so long that timers in the connections have doubled to many seconds. Then the links are made
    // anew, so that routes come back before packets pass again.
    hop.harm(Harm::Swallow);
    tokio::time::sleep(Duration::from_secs(8)).await;
    hop.cut();
    reachable(&controller, "node-1", false).await;
    reachable(&controller, "node-1", true).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    hop.harm(Harm::Record);
    let healed = Instant::now();
    within("rest", far.read_to_end(&mut got)).await.unwrap();
    assert_same(&got, &data);
    assert!(healed.elapsed() < Duration::from_secs(3), "took {:?}", healed.elapsed());
    sender.await.unwrap();
}

/// What a hop does with packets of inner connections.
enum Harm {
    Record,
    /// Drops all.
    Swallow,
    /// Flips a bit in some packets and sends others twice.
    Tamper,
    /// Sends what is for the execution node to an impostor at this address.
    Impersonate(SocketAddr),
}

struct HostileHop {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    credentials: Credentials,
    router: Router,
    routes: Arc<Routes>,
    links: BTreeMap<LinkId, Neighbor>,
    harm: Harm,
    seen: Vec<Bytes>,
    harmed: usize,
    relays: BTreeMap<Address, Arc<UdpSocket>>,
}

struct Neighbor {
    connection: quinn::Connection,
    control: mpsc::UnboundedSender<LinkMessage>,
}

impl HostileHop {
    fn start(world: &World, harm: Harm) -> Self {
        let credentials = world.credentials(Role::Hop, "hop-1");
        let crypto = QuicServerConfig::try_from(credentials.server_config(&[b"plexus-link/1"])).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = quinn::Endpoint::server(config, any()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let me = credentials.identity().clone();
        let state = Arc::new(Mutex::new(State {
            credentials,
            router: Router::new(me, 1, "hostile".to_owned(), Instant::now()),
            routes: Arc::default(),
            links: BTreeMap::new(),
            harm,
            seen: Vec::new(),
            harmed: 0,
            relays: BTreeMap::new(),
        }));
        tokio::spawn(listen(endpoint, state.clone()));
        Self { address, state }
    }

    fn harm(&self, harm: Harm) {
        self.state.lock().unwrap().harm = harm;
    }

    /// Ends all links; the neighbours will dial again.
    fn cut(&self) {
        for neighbor in self.state.lock().unwrap().links.values() {
            neighbor.connection.close(quinn::VarInt::from_u32(0), b"cut");
        }
    }
}

async fn listen(endpoint: quinn::Endpoint, state: Arc<Mutex<State>>) {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut last = 0;
    loop {
        tokio::select! {
            Some(incoming) = endpoint.accept() => {
                last += 1;
                tokio::spawn(neighbor(incoming, LinkId(last), state.clone()));
            }
            _ = tick.tick() => {
                let mut state = state.lock().unwrap();
                state.router.handle_timeout(Instant::now());
                state.apply();
            }
        }
    }
}

async fn neighbor(incoming: quinn::Incoming, link: LinkId, state: Arc<Mutex<State>>) {
    let Ok(connection) = incoming.await else { return };
    let verifier = state.lock().unwrap().credentials.verifier();
    let peer = peer_identity(&connection, &verifier).unwrap();
    let (send, receive) = connection.accept_bi().await.unwrap();
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    let Ok(Some(LinkMessage { kind: Some(LinkMessageKind::Hello(hello)) })) =
        reader.next(LINK_FRAME_MAX).await
    else {
        panic!("no hello");
    };
    let (control, mut messages) = mpsc::unbounded_channel();
    let ours = Hello {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        software: String::new(),
        boot_nonce: 1,
        cost: 1,
        ..Hello::default()
    };
    control.send(LinkMessage { kind: Some(LinkMessageKind::Hello(ours)) }).unwrap();
    let own = connection.clone();
    let up = Input::LinkUp { link, peer, cost: hello.cost };
    {
        let mut state = state.lock().unwrap();
        state.links.insert(link, Neighbor { connection: connection.clone(), control });
        state.handle(up);
    }
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            if writer.send(&message).await.is_err() {
                break;
            }
        }
    });
    let packets = state.clone();
    tokio::spawn(async move {
        while let Ok(packet) = own.read_datagram().await {
            State::forward(&packets, packet);
        }
    });
    while let Ok(Some(message)) = reader.next::<LinkMessage>(LINK_FRAME_MAX).await {
        let input = match message.kind {
            Some(LinkMessageKind::Announcement(signed)) => {
                let chain: Vec<_> = signed.chain.iter().map(|der| der.to_vec().into()).collect();
                let identity = verifier.verify(&chain, rustls_pki_types::UnixTime::now()).unwrap();
                let announcement = VerifiedAnnouncement::new(identity, signed).unwrap();
                Input::Announcement { link, announcement }
            }
            Some(LinkMessageKind::Digest(digest)) => Input::Digest { link, digest },
            Some(LinkMessageKind::Want(want)) => Input::Want { link, want },
            _ => continue,
        };
        state.lock().unwrap().handle(input);
    }
    let mut state = state.lock().unwrap();
    state.links.remove(&link);
    state.handle(Input::LinkDown { link });
}

impl State {
    fn handle(&mut self, input: Input) {
        self.router.handle(input, Instant::now());
        self.apply();
    }

    fn apply(&mut self) {
        while let Some(effect) = self.router.poll_effect() {
            match effect {
                Effect::Send { link, message } => {
                    if let Some(neighbor) = self.links.get(&link) {
                        let _ = neighbor.control.send(LinkMessage { kind: Some(message) });
                    }
                }
                Effect::Sign { body } => {
                    let signature = self.credentials.sign(&body).into();
                    let chain = self.credentials.chain().iter().map(|der| der.to_vec().into()).collect();
                    let signed = SignedAnnouncement { body: body.into(), signature, chain };
                    let announcement =
                        VerifiedAnnouncement::new(self.credentials.identity().clone(), signed).unwrap();
                    self.router.handle(Input::Signed { announcement }, Instant::now());
                }
                Effect::Routes(routes) => self.routes = routes,
            }
        }
    }

    fn forward(state: &Arc<Mutex<Self>>, packet: Bytes) {
        let mut this = state.lock().unwrap();
        let header = Header::decode(&packet).unwrap();
        let Some(&route) = this.routes.get(header.destination) else { return };
        if header.class == Class::Probe {
            return this.send(route.next.link, packet);
        }
        this.seen.push(packet.slice(HEADER_LEN..));
        let count = this.seen.len();
        let role = this.links[&route.next.link].role();
        match &this.harm {
            Harm::Record => this.send(route.next.link, packet),
            Harm::Swallow => this.harmed += 1,
            Harm::Tamper if count.is_multiple_of(17) => {
                let mut bytes = packet.to_vec();
                let at = HEADER_LEN + count % (bytes.len() - HEADER_LEN);
                bytes[at] ^= 1;
                this.harmed += 1;
                this.send(route.next.link, bytes.into());
            }
            Harm::Tamper => {
                if count.is_multiple_of(19) {
                    this.harmed += 1;
                    this.send(route.next.link, packet.clone());
                }
                this.send(route.next.link, packet);
            }
            Harm::Impersonate(_) if role != Some(Role::Execution) => this.send(route.next.link, packet),
            &Harm::Impersonate(impostor) => {
                this.harmed += 1;
                let relay = this.relay(state, header, impostor);
                let _ = relay.try_send(&packet[HEADER_LEN..]);
            }
        }
    }

    fn send(&self, link: LinkId, packet: Bytes) {
        if let Some(neighbor) = self.links.get(&link) {
            let _ = neighbor.connection.send_datagram(packet);
        }
    }

    /// A socket that talks to the impostor for one victim, and brings back its answers as if from the node.
    fn relay(&mut self, state: &Arc<Mutex<Self>>, asked: Header, impostor: SocketAddr) -> Arc<UdpSocket> {
        let start = || {
            let socket = std::net::UdpSocket::bind(any()).unwrap();
            socket.connect(impostor).unwrap();
            socket.set_nonblocking(true).unwrap();
            let socket = Arc::new(UdpSocket::from_std(socket).unwrap());
            let (answers, state) = (socket.clone(), state.clone());
            tokio::spawn(async move {
                let mut body = vec![0; 2000];
                while let Ok(length) = answers.recv(&mut body).await {
                    let back = Header { source: asked.destination, destination: asked.source, ..asked };
                    let state = state.lock().unwrap();
                    let Some(route) = state.routes.get(asked.source) else { continue };
                    state.send(route.next.link, back.packet(&body[..length]));
                }
            });
            socket
        };
        self.relays.entry(asked.source).or_insert_with(start).clone()
    }
}

impl Neighbor {
    fn role(&self) -> Option<Role> {
        let chain =
            self.connection.peer_identity()?.downcast::<Vec<rustls_pki_types::CertificateDer<'_>>>().ok()?;
        let text = String::from_utf8_lossy(&chain[0]).into_owned();
        [Role::Controller, Role::Execution, Role::Hop]
            .into_iter()
            .find(|role| text.contains(&format!("/{role}/")))
    }
}

/// A session endpoint with the hop's own certificate, the best it has.
fn impostor(credentials: &Credentials) -> quinn::Endpoint {
    let crypto = QuicServerConfig::try_from(credentials.server_config(&[b"plexus-session/1"])).unwrap();
    let endpoint =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), any()).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move { Some(incoming.await.ok()?.closed().await) });
        }
    });
    endpoint
}
