//! Every decoder of bytes that come from somebody else, as a function that must neither panic nor lie.
//!
//! `cargo +nightly fuzz run TARGET` searches with the compiler's help (this folder is a workspace of its own);
//! `tests/tests/fuzz.rs` runs the same functions over the corpus and seeded mutations of it, in every test run.

use std::io::Cursor;

use bytes::{Bytes, BytesMut};
use plexus_controller::ingest::artifacts::Artifacts;
use plexus_controller::stream::{Item, Parser};
use plexus_mesh::enrol::{Request, Token};
use plexus_mesh::identity;
use plexus_mesh::testing::decoders;
use plexus_node::spool::segment;
use plexus_node::tree::Manifest;
use plexus_proto::enrol::{EnrolAnswer, EnrolCall, Issue, Revocations};
use plexus_proto::forward::{ForwardOpen, ForwardOpened};
use plexus_proto::frame::{self, ENROL_CALL_MAX, LINK_FRAME_MAX, OPEN_FRAME_MAX, WORK_FRAME_MAX};
use plexus_proto::id::{Attempt, NodeId, Role, StoreId, UnitId};
use plexus_proto::link::{Announcement, LinkMessage, StreamOpen};
use plexus_proto::local::{LocalAnswer, LocalForward, LocalQuery};
use plexus_proto::packet::{Header, LinkNote, Probe};
use plexus_proto::seal::SpoolKey;
use plexus_proto::work::{
    AbandonRequest, CancelRequest, ForgetRequest, ImageReply, ImageRequest, ListReply, ListRequest, NodeInfo,
    PayloadMessage, PrivateBlock, RecordMessage, SubmitRequest, TreeManifest, UnitReply, UnitStatus,
};
use prost::Message;
use rustls_pki_types::CertificateDer;
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
];

/// Decodes a message, and what it is encoded as again.
fn message<M: Message + Default + PartialEq + Clone>(data: &[u8]) {
    let Ok(found) = M::decode(data) else { return };
    let again = M::decode(&found.encode_to_vec()[..]).expect("what was encoded decodes");
    assert!(again.encode_to_vec() == found.encode_to_vec());
}

/// Takes frames off a buffer until there is none.
fn frames<M: Message + Default>(data: &[u8], limit: usize) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(_)) = frame::decode::<M>(&mut buffer, limit) {}
}

/// What neighbours say on the control stream.
fn link(data: &[u8]) {
    frames::<LinkMessage>(data, LINK_FRAME_MAX);
    message::<LinkMessage>(data);
    message::<Announcement>(data);
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

/// Certificates, as far as they are looked at outside webpki.
fn certificate(data: &[u8]) {
    let certificate = CertificateDer::from(data);
    let _ = identity::raw_public_key(&certificate);
    let _ = identity::expires(&certificate);
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
    message::<PayloadMessage>(data);
    message::<RecordMessage>(data);
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
}

/// What people's programs and a daemon say to each other on its socket.
fn local(data: &[u8]) {
    message::<LocalQuery>(data);
    message::<LocalAnswer>(data);
    message::<LocalForward>(data);
}

/// A sealed record.
fn seal(data: &[u8]) {
    let attempt = Attempt { unit: UnitId(Uuid::from_u128(1)), number: 1 };
    let key = SpoolKey::new([7; 32]);
    assert!(key.open(attempt, 1, data).is_err(), "nobody guesses a key");
    let sealed = key.seal(attempt, 1, data);
    assert_eq!(key.open(attempt, 1, &sealed).expect("it was sealed so"), data);
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
