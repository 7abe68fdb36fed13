//! Every decoder of bytes that come from somebody else, as a function that must neither panic nor lie.
//!
//! `cargo +nightly fuzz run TARGET` searches with the compiler's help (this folder is a workspace of its own);
//! `tests/tests/fuzz.rs` runs the same functions over the corpus and seeded mutations of it, in every test run.

use std::io::Cursor;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use plexus_controller::ingest::artifacts::Artifacts;
use plexus_controller::stream::{Item, Parser};
use plexus_mesh::Verifier;
use plexus_mesh::enrol::{Request, Token};
use plexus_mesh::local::Action;
use plexus_mesh::revocation::List;
use plexus_mesh::routing::{Effect, Input, LinkId, Router, VerifiedAnnouncement};
use plexus_mesh::testing::decoders;
use plexus_node::shim::protocol::{FromShim, ToShim};
use plexus_node::spool::segment;
use plexus_node::tree::Manifest;
use plexus_proto::enrol::{EnrolAnswer, EnrolCall, Issue, Revocations};
use plexus_proto::forward::{ForwardOpen, ForwardOpened};
use plexus_proto::frame::{self, ENROL_CALL_MAX, LINK_FRAME_MAX, OPEN_FRAME_MAX, WORK_FRAME_MAX};
use plexus_proto::id::{Address, Attempt, Identity, NodeId, Role, StoreId, UnitId};
use plexus_proto::link::{Announcement, LinkMessage, LinkMessageKind, SignedAnnouncement, StreamOpen};
use plexus_proto::local::{LocalAnswer, LocalForward, LocalQuery};
use plexus_proto::packet::{Header, LinkNote, Probe};
use plexus_proto::seal::SpoolKey;
use plexus_proto::work::{
    AbandonRequest, CancelRequest, CollectMessage, EndRecord, ForgetRequest, ImageReply, ImageRequest,
    ImagesReply, ImagesRequest, InfoRequest, ListReply, ListRequest, LostRecord, NodeInfo, Output,
    PayloadMessage, PrivateBlock, PullProgress, Record, RecordMessage, Starting, StatusRequest,
    SubmitRequest, TidyImagesReply, TidyImagesRequest, TreeManifest, UnitReply, UnitStatus,
};
use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};
use uuid::Uuid;

/// A decoder by name; the name is also that of its corpus and of its cargo-fuzz target.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("link", link),
    ("packet", packet),
    ("slots", decoders::slots),
    ("datagrams", decoders::datagrams),
    ("tcp_frames", tcp_frames),
    ("sealed", decoders::sealed_packet),
    ("enrol", enrol),
    ("certificate", certificate),
    ("names", names),
    ("stream_open", stream_open),
    ("work", work),
    ("local", local),
    ("seal", seal),
    ("spool", spool),
    ("manifest", manifest),
    ("runner_stream", runner_stream),
    ("artifacts", artifacts),
    ("netcheck", decoders::netcheck),
    ("proxy", proxy),
];

/// Decodes a message, and what it is encoded as again.
fn message<M: Message + Default + PartialEq + Clone>(data: &[u8]) {
    let Ok(found) = M::decode(data) else { return };
    let again = M::decode(&found.encode_to_vec()[..]).expect("what was encoded decodes");
    assert!(again.encode_to_vec() == found.encode_to_vec());
}

/// Takes frames off a buffer until there is none.
fn frames<M: Message + Default>(data: &[u8], limit: usize) -> Vec<M> {
    let (mut buffer, mut all) = (BytesMut::from(data), Vec::new());
    while let Ok(Some(message)) = frame::decode(&mut buffer, limit) {
        all.push(message);
    }
    all
}

/// The root of the chain in the corpus of `certificate`, and a time when both are valid.
pub const ROOT: &[u8] = include_bytes!("../corpus/certificate/root.der");
/// See [`ROOT`]; seconds of Unix time.
pub const NOW: u64 = 1_795_392_000;

/// What neighbours say on the control stream, and what becomes of it: routers of each role take it from neighbours of
/// each role, as if every signature were right; lists of what is revoked are read and then refused for theirs.
fn link(data: &[u8]) {
    let mut said = frames::<LinkMessage>(data, LINK_FRAME_MAX);
    message::<LinkMessage>(data);
    message::<Announcement>(data);
    said.extend(LinkMessage::decode(data));
    for role in ROLES {
        Listener::new(role).hear(&said);
    }
    let judge =
        Verifier::new(&[ROOT.into()], "demo".parse().expect("a valid name")).expect("the root is one");
    for message in said {
        if let Some(LinkMessageKind::Revocations(list)) = message.kind {
            let found = List::verify(&judge, list, UnixTime::since_unix_epoch(Duration::from_secs(NOW)));
            assert!(found.is_err(), "nobody has a controller's key");
        }
    }
}

const ROLES: [Role; 3] = [Role::Hop, Role::Controller, Role::Execution];

fn identity(role: Role, address: u32) -> Identity {
    Identity {
        mesh: "demo".parse().expect("a valid name"),
        cluster: "main".parse().expect("a valid name"),
        role,
        node: format!("n{address}").parse().expect("a valid name"),
        address: Address(address),
    }
}

/// A router with neighbours, and the part of its shell that fuzzing needs.
struct Listener {
    router: Router,
    me: Identity,
    now: Instant,
}

impl Listener {
    fn new(role: Role) -> Self {
        let (me, now) = (identity(role, 1), Instant::now());
        let mut one = Self { router: Router::new(me.clone(), 1, "fuzz".into(), now), me, now };
        for (at, peer) in ROLES.into_iter().enumerate() {
            let peer = identity(peer, 0x0001_0002 + at as u32);
            one.take(Input::LinkUp { link: LinkId(at as u64), peer, cost: 10 });
        }
        one
    }

    fn hear(&mut self, said: &[LinkMessage]) {
        for (at, kind) in said.iter().filter_map(|message| message.kind.clone()).enumerate() {
            let link = LinkId((at % ROLES.len()) as u64);
            let input = match kind {
                LinkMessageKind::Announcement(signed) => {
                    announced(signed).map(|announcement| Input::Announcement { link, announcement })
                }
                other => Input::heard(link, other),
            };
            input.into_iter().for_each(|input| self.take(input));
            self.now += Duration::from_millis(500);
            self.router.handle_timeout(self.now);
            self.drain();
        }
    }

    fn take(&mut self, input: Input) {
        self.router.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(effect) = self.router.poll_effect() {
            match effect {
                Effect::Sign { body } => {
                    let signed = SignedAnnouncement { body: body.into(), ..SignedAnnouncement::default() };
                    let announcement = VerifiedAnnouncement::new(self.me.clone(), signed);
                    let announcement = announcement.expect("a router says what a router takes");
                    self.router.handle(Input::Signed { announcement }, self.now);
                }
                Effect::Send { message, .. } => {
                    let message = LinkMessage { kind: Some(message) };
                    assert!(message.encoded_len() <= LINK_FRAME_MAX, "what is said fits in a frame");
                }
                Effect::Routes(_) | Effect::Doubt { .. } | Effect::Unknown(_) => {}
            }
        }
        for (to, route) in self.router.routes().iter() {
            assert!(
                to != self.me.address && route.next.link.0 < ROLES.len() as u64,
                "routes lead to neighbours"
            );
        }
    }
}

/// An announcement as if its signature were right.
fn announced(signed: SignedAnnouncement) -> Option<VerifiedAnnouncement> {
    let origin = Announcement::decode(signed.body.clone()).ok()?.origin;
    let other = VerifiedAnnouncement::new(identity(Role::Hop, origin ^ 1), signed.clone());
    assert!(other.is_err(), "nobody speaks of another node");
    VerifiedAnnouncement::new(identity(ROLES[origin as usize % ROLES.len()], origin), signed).ok()
}

/// Overlay packets and the probes in them.
fn packet(data: &[u8]) {
    if let Ok(header) = Header::decode(data) {
        assert_eq!(Header::decode(&header.encode()).expect("it was encoded"), header);
    }
    if let Ok(probe) = Probe::decode(data) {
        assert_eq!(Probe::decode(&probe.encode()).expect("it was encoded"), probe);
        let _ = LinkNote::behind(&probe, data);
    }
}

/// Frames of a link on TCP, in pieces whose size the first byte tells.
fn tcp_frames(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    decoders::tcp_frames(data, cut.into());
}

/// What a machine without a certificate can say, and what it is answered.
fn enrol(data: &[u8]) {
    frames::<EnrolCall>(data, ENROL_CALL_MAX);
    message::<EnrolCall>(data);
    message::<EnrolAnswer>(data);
    message::<Issue>(data);
    message::<Revocations>(data);
    let _ = Request::parse(data);
    let _ = Token::parse(&String::from_utf8_lossy(data));
}

/// Certificates: alone, and as a chain, which certifies the node that the root's owner certified, or nobody.
fn certificate(data: &[u8]) {
    if let Some(found) = decoders::certificates(ROOT, NOW, data) {
        assert_eq!(
            (found.uri().as_str(), found.address),
            ("spiffe://demo/main/execution/node-1", Address(1 << 20))
        );
    }
    let _ = Verifier::new(&[CertificateDer::from(data)], "demo".parse().expect("a valid name"));
}

/// What a proxy answers: what lies behind its answer is left to the neighbour.
fn proxy(data: &[u8]) {
    if let Some(read) = decoders::proxy_answer(data) {
        assert!(data.starts_with(b"HTTP/1.") && data[..read].ends_with(b"\r\n\r\n"));
    }
}

/// Names and ids as text.
fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.to_string(), text);
    }
    let _ = text.parse::<Role>();
    let _ = StoreId::from_slice(data);
    let _: Result<plexus_mesh::Policy, _> = serde_json::from_slice(data);
}

/// The first words on an end-to-end stream.
fn stream_open(data: &[u8]) {
    frames::<StreamOpen>(data, OPEN_FRAME_MAX);
    frames::<ForwardOpen>(data, OPEN_FRAME_MAX);
    message::<StreamOpen>(data);
    message::<ForwardOpen>(data);
    message::<ForwardOpened>(data);
}

/// What controllers and nodes say about work.
fn work(data: &[u8]) {
    frames::<PayloadMessage>(data, WORK_FRAME_MAX);
    frames::<RecordMessage>(data, WORK_FRAME_MAX);
    frames::<CollectMessage>(data, WORK_FRAME_MAX);
    message::<PayloadMessage>(data);
    message::<RecordMessage>(data);
    message::<CollectMessage>(data);
    message::<StatusRequest>(data);
    message::<InfoRequest>(data);
    message::<ImagesRequest>(data);
    message::<ImagesReply>(data);
    message::<TidyImagesRequest>(data);
    message::<TidyImagesReply>(data);
    message::<PullProgress>(data);
    message::<SubmitRequest>(data);
    message::<CancelRequest>(data);
    message::<AbandonRequest>(data);
    message::<ForgetRequest>(data);
    message::<ListRequest>(data);
    message::<ListReply>(data);
    message::<NodeInfo>(data);
    message::<UnitReply>(data);
    message::<UnitStatus>(data);
    message::<ImageRequest>(data);
    message::<ImageReply>(data);
    message::<PrivateBlock>(data);
    message::<TreeManifest>(data);
    record(data);
    if let Ok(SubmitRequest { unit: Some(unit), .. }) = SubmitRequest::decode(data) {
        let _ = Attempt::try_from(&unit);
    }
}

/// A record as it is once its seal is open: the worker's output is in it, and the seal was a node's.
fn record(data: &[u8]) {
    message::<Record>(data);
    message::<Output>(data);
    message::<EndRecord>(data);
    message::<LostRecord>(data);
    message::<Starting>(data);
}

/// What people's programs and a daemon say to each other on its socket, and an agent with shims of another version.
fn local(data: &[u8]) {
    message::<ToShim>(data);
    message::<FromShim>(data);
    message::<LocalQuery>(data);
    message::<LocalAnswer>(data);
    message::<LocalForward>(data);
    if let Ok(action) = serde_json::from_slice::<Action>(data) {
        let again = serde_json::to_vec(&action).expect("it is JSON");
        assert_eq!(serde_json::from_slice::<Action>(&again).expect("what was encoded decodes"), action);
    }
}

/// A sealed record.
fn seal(data: &[u8]) {
    let attempt = Attempt { unit: UnitId(Uuid::from_u128(1)), number: 1 };
    let key = SpoolKey::new([7; 32]);
    assert!(key.open(attempt, 1, data).is_err(), "nobody guesses a key");
    let sealed = key.seal(attempt, 1, data.to_vec());
    let opened = key.open(attempt, 1, &sealed).expect("it was sealed so");
    assert_eq!(opened, data);
    record(&opened);
    assert!(key.open(attempt, 2, &sealed).is_err(), "a record has its own place only");
}

/// A segment of the spool, as a disk may give it back.
fn spool(data: &[u8]) {
    let _ = segment::Header::decode(data);
    let mut rest = Bytes::copy_from_slice(data);
    while let Ok(Some((_, length))) = segment::Frame::decode(&rest) {
        rest = rest.slice(length..);
    }
}

/// The list of a project's files.
fn manifest(data: &[u8]) {
    let _ = Manifest::read(data);
}

/// Output of ansible-runner, whole and in pieces whose size the first byte tells: the same comes of both.
fn runner_stream(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let read = |cut: usize, restored: bool| {
        let (mut parser, mut items, mut artifacts) = (Parser::new(), Vec::new(), Vec::new());
        for piece in data.chunks(cut) {
            parser.push(&Bytes::copy_from_slice(piece), |item| match item {
                Item::Artifacts(bytes) => artifacts.extend_from_slice(&bytes),
                item => items.push(format!("{item:?}")),
            });
            if restored {
                parser = Parser::restore(parser.snapshot(), parser.partial().to_vec());
            }
        }
        (items, artifacts)
    };
    let cut = usize::from(cut).max(1);
    let whole = read(data.len().max(1), false);
    assert_eq!(read(cut, true), whole, "in pieces of {cut}");
}

/// The zip at the end of a job.
fn artifacts(data: &[u8]) {
    let _ = Artifacts::read(Cursor::new(data));
}
