//! Saved bytes of every message still decode, and are still what this build writes.
//!
//! A file under `golden/` is never changed once released: a new field gets a new sample beside the old one. A missing
//! file is written by `PLEXUS_BLESS=1 cargo test -p plexus-proto --test golden` and then committed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use bytes::Bytes;
use plexus_proto::enrol::*;
use plexus_proto::id::{Address, Attempt, UnitId};
use plexus_proto::link::*;
use plexus_proto::local::*;
use plexus_proto::packet::{self, Class, Header};
use plexus_proto::seal::{RollingHash, SpoolKey};
use plexus_proto::work::*;
use prost::Message;
use uuid::Uuid;

fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
    if !path.exists() && std::env::var_os("PLEXUS_BLESS").is_some() {
        std::fs::write(&path, format!("{hex}\n")).unwrap();
    }
    let saved = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let saved = saved.trim();
    assert_eq!(hex, saved, "{name}: this build writes other bytes than the saved ones");
    (0..saved.len()).step_by(2).map(|at| u8::from_str_radix(&saved[at..at + 2], 16).unwrap()).collect()
}

fn check<M: Message + Default + PartialEq + Debug>(name: &str, message: M) {
    let saved = golden(name, &message.encode_to_vec());
    assert_eq!(M::decode(&saved[..]).unwrap(), message, "{name}");
}

fn link(kind: LinkMessageKind) -> LinkMessage {
    LinkMessage { kind: Some(kind) }
}

fn payload(kind: PayloadMessageKind) -> PayloadMessage {
    PayloadMessage { kind: Some(kind) }
}

fn collect(kind: CollectMessageKind) -> CollectMessage {
    CollectMessage { kind: Some(kind) }
}

#[test]
fn collected_trees() {
    use CollectMessageKind::{Chunks, Manifest, Need, Open, Tree};
    let tree = Some(TreeRef { digest: Bytes::from_static(&[7; 32]), size: 100 });
    check(
        "submit-collect",
        UnitSpec { label: "project_update 12".into(), collect: true, ..UnitSpec::default() },
    );
    check("collect-open", collect(Open(CollectOpen { unit: unit(), epoch: epoch() })));
    check("collect-tree", collect(Tree(CollectTree { tree })));
    let need = PayloadNeed { manifest: true, chunks: vec![0, 2], private: false };
    check("collect-need", collect(Need(need)));
    let part = ManifestPart { data: Bytes::from_static(b"part"), last: true };
    check("collect-manifest", collect(Manifest(part)));
    let batch = ChunkBatch { data: Bytes::from_static(b"chunk"), plain_size: 0 };
    check("collect-chunks", collect(Chunks(batch)));
    check("collect-refusal", collect(CollectMessageKind::Refusal(refusal())));
}

fn records(kind: RecordMessageKind) -> RecordMessage {
    RecordMessage { kind: Some(kind) }
}

fn unit() -> Option<UnitRef> {
    Some(attempt().into())
}

fn attempt() -> Attempt {
    Attempt { unit: UnitId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001)), number: 1 }
}

fn epoch() -> Option<OwnerEpoch> {
    Some(OwnerEpoch { incarnation: 1, counter: 7 })
}

fn refusal() -> Refusal {
    Refusal {
        code: RefusalCode::OlderEpoch.into(),
        message: "owned by a later epoch".into(),
        ..Refusal::default()
    }
}

fn finished() -> Finished {
    Finished {
        outcome: Outcome::Failed.into(),
        exit_code: Some(2),
        signal: None,
        reason: "worker ended with 2".into(),
    }
}

fn status(state: UnitStatusState) -> UnitStatus {
    UnitStatus {
        unit: unit(),
        epoch: epoch(),
        state: Some(state),
        records: 12,
        acked: 9,
        kept: String::new(),
        label: String::new(),
        held: String::new(),
    }
}

#[test]
fn link_messages() {
    check(
        "link-hello",
        link(LinkMessageKind::Hello(Hello {
            min_version: 1,
            max_version: 1,
            software: "plexus 0.1.0".into(),
            boot_nonce: 0x0102_0304_0506_0708,
            cost: 10,
            sealed: false,
        })),
    );
    let body = Announcement {
        origin: 0x0001_0002,
        epoch: 3,
        sequence: 4,
        links: vec![AnnouncedLink { neighbor: 0x0001_0003, cost: 10 }],
        software: "plexus 0.1.0".into(),
        services: vec!["work".into()],
        news: 0,
    };
    check("announcement", body.clone());
    check("announcement-news", Announcement { news: 3, ..body.clone() });
    let signed = SignedAnnouncement {
        body: body.encode_to_vec().into(),
        signature: Bytes::from_static(&[9; 64]),
        chain: vec![Bytes::from_static(b"leaf"), Bytes::from_static(b"intermediate")],
    };
    check("link-announcement", link(LinkMessageKind::Announcement(signed)));
    let entries = vec![DigestEntry { origin: 0x0001_0002, epoch: 3, sequence: 4, check: 5 }];
    let digest = Digest { sum: 9, buckets: vec![1, 2], entries, ..Digest::default() };
    check("link-digest", link(LinkMessageKind::Digest(digest)));
    let timed = Digest { sum: 9, clock_ms: 1_700_000_000_001, ..Digest::default() };
    check("link-digest-clock", link(LinkMessageKind::Digest(timed)));
    let routes = vec![ToldRoute { destination: 0x0001_0002, cost: 20, hops: 2, path: 7 }];
    check(
        "link-told",
        link(LinkMessageKind::Told(Told { routes, whole: true, unknown: vec!["node-9".into()] })),
    );
    let ask = Ask { addresses: vec![0x0001_0002], names: vec!["node-9".into()], all: true };
    check("link-ask", link(LinkMessageKind::Ask(ask)));
    check("link-want", link(LinkMessageKind::Want(Want { origins: vec![0x0001_0002] })));
    check("link-probe", link(LinkMessageKind::Probe(Probe { nonce: 5 })));
    check("link-probe-reply", link(LinkMessageKind::ProbeReply(ProbeReply { nonce: 5 })));
    check("link-close", link(LinkMessageKind::Close(LinkClose { code: 2, reason: "shutting down".into() })));
    check("stream-open", StreamOpen { service: "records".into(), min_version: 1, max_version: 1 });
}

#[test]
fn enrolment_messages() {
    let bytes = |text: &'static [u8]| Bytes::from_static(text);
    let chain = || vec![bytes(b"leaf"), bytes(b"intermediate")];
    let join = JoinCall {
        token_id: bytes(&[1; 16]),
        cluster: "main".into(),
        csr: bytes(b"csr"),
        mac: bytes(&[2; 32]),
    };
    check("enrol-join", EnrolCall { kind: Some(EnrolCallKind::Join(join)) });
    let renew = RenewCall { nonce: bytes(&[3; 16]), signature: bytes(&[4; 64]), chain: chain() };
    check("enrol-renew", EnrolCall { kind: Some(EnrolCallKind::Renew(renew)) });
    let issue = Issue {
        chain: chain(),
        roots: vec![bytes(b"root")],
        call: bytes(&[5; 32]),
        endorsements: vec![bytes(b"endorsement")],
    };
    check("issue", issue.clone());
    let body = issue.encode_to_vec().into();
    let issued = SignedIssue { body, signature: bytes(&[6; 64]), chain: chain() };
    check("enrol-issued", EnrolAnswer { kind: Some(EnrolAnswerKind::Issued(issued)) });
    let refused = EnrolRefusal { code: EnrolRefusalCode::TokenUsed.into(), message: "used".into() };
    check("enrol-refused", EnrolAnswer { kind: Some(EnrolAnswerKind::Refused(refused)) });
    let pending = EnrolPending { retry_ms: 2000, message: "waits".into() };
    check("enrol-pending", EnrolAnswer { kind: Some(EnrolAnswerKind::Pending(pending)) });
    let token = EnrolToken {
        id: bytes(&[1; 16]),
        secret: bytes(&[7; 32]),
        mesh: "demo".into(),
        cluster: "main".into(),
        roots: vec![bytes(&[8; 32])],
        addresses: vec!["hop.example.org:7323".into()],
        role: "execution".into(),
        name: "node-*".into(),
        created: 1_700_000_000,
        expires: 1_700_003_600,
    };
    check("enrol-token", token);
    let entries = vec![Revocation { node: "node-1".into(), key: bytes(&[9; 32]), at: 1_700_000_000 }];
    let list = Revocations { cluster: "main".into(), number: 3, entries };
    check("revocations", list.clone());
    let body = list.encode_to_vec().into();
    let signed = SignedRevocations { body, signature: bytes(&[6; 64]), chain: chain() };
    check("link-revocations", link(LinkMessageKind::Revocations(signed)));
    check(
        "link-next-certificate",
        link(LinkMessageKind::NextCertificate(NextCertificate { chain: chain() })),
    );
}

#[test]
fn work_verbs() {
    let spec = UnitSpec {
        label: "job 12".into(),
        image: "quay.io/ansible/awx-ee:latest".into(),
        pull: PullPolicy::Missing.into(),
        tree: Some(TreeRef { digest: Bytes::from_static(&[7; 32]), size: 100 }),
        grace_seconds: 10,
        timeout_seconds: 3600,
        env: BTreeMap::from([("LANG".into(), "C.UTF-8".into())]),
        organization: "Default".into(),
        keep_seconds: 60,
        collect: false,
        owner_deadline_seconds: 0,
    };
    let store_id = Bytes::from_static(&[3; 16]);
    check(
        "submit",
        SubmitRequest { unit: unit(), epoch: epoch(), store_id: store_id.clone(), spec: Some(spec) },
    );
    check("cancel", CancelRequest { unit: unit(), epoch: epoch() });
    check("abandon", AbandonRequest { unit: unit(), epoch: epoch() });
    check("forget", ForgetRequest { unit: unit(), epoch: epoch() });
    check("status", StatusRequest { unit: unit() });
    check("list", ListRequest {});
    check("info", InfoRequest::default());
    check("info-resting", InfoRequest { resting: true, ..Default::default() });
    check("info-starts", InfoRequest { store_id: vec![9; 16].into(), starts: 12, resting: false });
    let state = UnitStatusState::Pending(Pending { needs_payload: true });
    check("reply-pending", UnitReply { result: Some(UnitReplyResult::Status(status(state))) });
    check("reply-refusal", UnitReply { result: Some(UnitReplyResult::Refusal(refusal())) });
    let full = Refusal {
        code: RefusalCode::NodeFull.into(),
        message: "cordoned".into(),
        not_taken: true,
        ..Refusal::default()
    };
    check("reply-refusal-not-taken", UnitReply { result: Some(UnitReplyResult::Refusal(full)) });
    let preparing = status(UnitStatusState::Preparing(Preparing { step: "pulling image".into() }));
    check("list-reply", ListReply { units: vec![preparing] });
    let info = NodeInfo {
        store_id,
        software: "plexus 0.1.0".into(),
        cpu_millis: 2000,
        memory_bytes: 24 << 30,
        runtime: "podman".into(),
        runtime_version: "4.3.1".into(),
        ..NodeInfo::default()
    };
    check("node-info", info.clone());
    check("node-info-start", NodeInfo { start: 0x0123_4567_89ab_cdef, starts: 12, ..info.clone() });
    let image =
        ImageInfo { names: vec!["quay.io/a/ee:1".into()], digest: "sha256:1".into(), ..Default::default() };
    let cordoned = Some("new disk".into());
    let more = NodeInfo { free_disk_bytes: 5 << 30, images: vec![image], cordoned, ..info };
    check("node-info-disk-images-cordoned", more);
    let running = UnitStatusState::Running(Running { pid: 7 });
    let held = UnitStatus { held: "the disk is full".into(), ..status(running) };
    check("reply-held", UnitReply { result: Some(UnitReplyResult::Status(held)) });
}

#[test]
fn payload_messages() {
    let open = PayloadOpen { unit: unit(), epoch: epoch(), ..PayloadOpen::default() };
    check("payload-open", payload(PayloadMessageKind::Open(open.clone())));
    let submit = SubmitRequest { store_id: vec![3; 16].into(), ..SubmitRequest::default() };
    let submits = PayloadOpen { submit: Some(submit), private: true, ..open };
    check("payload-open-submits", payload(PayloadMessageKind::Open(submits)));
    let entries = vec![
        TreeEntry { path: "roles".into(), mode: 0o755, kind: Some(TreeEntryKind::Directory(Directory {})) },
        TreeEntry { path: "link".into(), mode: 0o777, kind: Some(TreeEntryKind::Symlink("site.yml".into())) },
        TreeEntry {
            path: "site.yml".into(),
            mode: 0o644,
            kind: Some(TreeEntryKind::File(FileContent {
                size: 5,
                chunks: vec![Bytes::from_static(&[1; 32])],
            })),
        },
    ];
    let data = TreeManifest { entries }.encode_to_vec().into();
    check("payload-manifest", payload(PayloadMessageKind::Manifest(ManifestPart { data, last: true })));
    let need = PayloadNeed { manifest: false, chunks: vec![0, 2, 7, 1], private: true };
    check("payload-need", payload(PayloadMessageKind::Need(need)));
    let batch = ChunkBatch { data: Bytes::from_static(b"hosts"), plain_size: 0 };
    check("payload-chunks", payload(PayloadMessageKind::Chunks(batch)));
    let line = "pulling image".into();
    check("payload-progress", payload(PayloadMessageKind::Progress(PayloadProgress { line })));
    let file = PrivateFile {
        path: "env/settings".into(),
        mode: 0o600,
        content: Bytes::from_static(b"{}"),
        secret: true,
    };
    let registry = RegistryAuth {
        host: "quay.io".into(),
        username: "robot".into(),
        password: "p".into(),
        insecure: true,
    };
    let private = PrivateBlock {
        files: vec![file],
        stdin: Bytes::from_static(b"{\"eof\": true}\n"),
        spool_key: Bytes::from_static(&[5; 32]),
        spool_key_id: 1,
        env: BTreeMap::from([("TOKEN".into(), "t".into())]),
        registry: Some(registry),
    };
    assert!(!format!("{private:?}").contains("robot"), "the debug text of secrets shows nothing");
    check("payload-private", payload(PayloadMessageKind::Private(private)));
    let image = ImageInfo {
        names: vec!["localhost/ee:1".into()],
        id: "ab".into(),
        digest: "sha256:cd".into(),
        size: 300,
        in_use: 1,
    };
    let status_now = Some(status(UnitStatusState::Running(Running { pid: 77 })));
    let done = PayloadDone { status: status_now, image: Some(image.clone()) };
    check("payload-done", payload(PayloadMessageKind::Done(done)));
    check("payload-refusal", payload(PayloadMessageKind::Refusal(refusal())));
    check("images", ImagesRequest {});
    check("tidy-images", TidyImagesRequest { wanted: vec!["localhost/ee:1".into()] });
    let removed = vec!["localhost/ee:0".into()];
    check("tidy-images-reply", TidyImagesReply { removed, problem: "p".into() });
    check("images-reply", ImagesReply { images: vec![image.clone()], problem: "p".into() });
    check("image", ImageRequest { image: "localhost/ee:1".into(), auth: None });
    let versions = BTreeMap::from([("ansible-core".into(), "2.19.14".into())]);
    check("image-reply", ImageReply { image: Some(image), problem: "p".into(), versions });
    check("pull-progress", PullProgress { line: "copying".into(), image: None, problem: String::new() });
}

#[test]
fn record_messages() {
    let attach = Attach { unit: unit(), epoch: epoch(), from_record: 10 };
    check("records-attach", records(RecordMessageKind::Attach(attach)));
    let status = status(UnitStatusState::Finished(finished()));
    let attached = Attached { status: Some(status.clone()), first_record: 10 };
    check("records-attached", records(RecordMessageKind::Attached(attached)));
    let sealed = SealedRecord { number: 10, sealed: Bytes::from_static(b"sealed"), plain: None };
    check("records-record", records(RecordMessageKind::Record(sealed)));
    let lost = LostRecord { records: 9, reason: "the shim was killed".into() };
    let plain = Some(Record { kind: Some(RecordKind::Lost(lost)) });
    check(
        "records-lost",
        records(RecordMessageKind::Record(SealedRecord { number: 10, sealed: Bytes::new(), plain })),
    );
    check("records-ack", records(RecordMessageKind::Ack(Ack { epoch: epoch(), up_to: 9 })));
    check("records-status", records(RecordMessageKind::Status(status)));
    check("records-refusal", records(RecordMessageKind::Refusal(refusal())));
    let output = Output {
        stream: Stream::Stdout.into(),
        data: Bytes::from_static(b"{\"eof\": true}\n"),
        fragment: Fragment::Last.into(),
    };
    check("record-output", Record { kind: Some(RecordKind::Output(output)) });
    let end = EndRecord {
        finished: Some(finished()),
        records: 9,
        rolling_hash: Bytes::from_static(&[6; 32]),
        stderr_tail: Bytes::from_static(b"Traceback"),
    };
    check("record-end", Record { kind: Some(RecordKind::End(end)) });
    check("record-starting", Record { kind: Some(RecordKind::Starting(Starting { pid: 77 })) });
}

#[test]
fn local_messages() {
    let query = |kind| LocalQuery { kind: Some(kind) };
    check("local-status", query(LocalQueryKind::Status(StatusQuery {})));
    check("local-nodes", query(LocalQueryKind::Nodes(NodesQuery {})));
    let ping = PingQuery { node: "node-1".into(), timeout_ms: 1000 };
    check("local-ping", query(LocalQueryKind::Ping(ping)));
    let trace = TraceQuery { node: "node-1".into(), timeout_ms: 1000 };
    check("local-trace", query(LocalQueryKind::Trace(trace)));
    check("local-routes", query(LocalQueryKind::Routes(RoutesQuery {})));
    check("local-links", query(LocalQueryKind::Links(LinksQuery {})));
    check("local-events", query(LocalQueryKind::Events(EventsQuery { after: 7, wait_ms: 1000 })));
    let netcheck = NetcheckQuery { from: "hop-1".into(), to: "node-1".into() };
    check("local-netcheck", query(LocalQueryKind::Netcheck(netcheck)));
    check("local-act", query(LocalQueryKind::Act(ActQuery { json: "{\"action\":\"reload\"}".into() })));
    let open = LocalForwardOpen { node: "node-7".into(), target: "[::1]:80".into(), check: false };
    check("local-forward-open", LocalForward { kind: Some(LocalForwardKind::Open(open)) });
    let data = LocalForwardKind::Data(Bytes::from_static(b"GET /"));
    check("local-forward-data", LocalForward { kind: Some(data) });
    check("local-forward-end", LocalForward { kind: Some(LocalForwardKind::End(LocalForwardEnd {})) });
    check("forward-open", plexus_proto::forward::ForwardOpen { target: "[::1]:80".into(), check: true });
    check("forward-opened", plexus_proto::forward::ForwardOpened { code: 2, text: "refused".into() });
    check("local-answer", LocalAnswer { json: "{}".into() });
}

#[test]
fn packets() {
    let header = Header {
        class: Class::Bulk,
        ecn: 2,
        rekey: false,
        hop_limit: 32,
        source: Address(0x0001_0002),
        destination: Address(0x0001_0003),
    };
    let saved = golden("packet", &header.packet(b"opaque"));
    assert_eq!(Header::decode(&saved), Ok(header));
    let probes = [
        packet::Probe::Echo { nonce: 1 },
        packet::Probe::EchoReply { nonce: 1, hops_left: 30 },
        packet::Probe::HopLimitExceeded { nonce: 1 },
        packet::Probe::NoRoute { nonce: 1, destination: Address(0x0001_0003) },
    ];
    for (number, probe) in probes.into_iter().enumerate() {
        let saved = golden(&format!("packet-probe-{number}"), &probe.encode());
        assert_eq!(packet::Probe::decode(&saved), Ok(probe));
    }
}

#[test]
fn seals() {
    let key = SpoolKey::new([5; 32]);
    let saved = golden("sealed-record", &key.seal(attempt(), 1, b"line\n".to_vec()));
    assert_eq!(key.open(attempt(), 1, &saved).unwrap(), b"line\n");
    let mut hash = RollingHash::default();
    hash.update(1, &saved);
    hash.update(2, b"more");
    golden("rolling-hash", &hash.value());
}

#[test]
fn unknown_fields_do_not_disturb() {
    let mut bytes = records(RecordMessageKind::Ack(Ack { epoch: epoch(), up_to: 9 })).encode_to_vec();
    bytes.extend_from_slice(&[0xfa, 0x3f, 0x03, b'n', b'e', b'w']); // field 1023, three bytes
    let message = RecordMessage::decode(&bytes[..]).unwrap();
    assert!(matches!(message.kind, Some(RecordMessageKind::Ack(Ack { up_to: 9, .. }))));
}
