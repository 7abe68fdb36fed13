//! Certificates that are renewed, expire and are revoked, on real links.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::enrol::{self, Desk, refusal};
use plexus_mesh::identity::{Credentials, key_fingerprint, raw_public_key};
use plexus_mesh::revocation::{Entry, List};
use plexus_proto::enrol::{
    EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolCallKind, EnrolRefusalCode, Issue, JoinCall, RenewCall,
};
use plexus_proto::frame;
use plexus_proto::id::{Identity, Role};
use plexus_proto::packet::{Class, HOP_LIMIT, Header, Probe};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{ANYONE, World, accept, any, id, reachable, within};

/// A controller's desk without a database: renews whatever may renew.
#[derive(Debug)]
struct Renewals {
    ca: PathBuf,
    controller: Credentials,
    validity: Duration,
    given: AtomicUsize,
}

impl Renewals {
    fn at(world: &World, controller: &Credentials, validity: Duration) -> Arc<Self> {
        let (ca, controller) = (world.of("ca"), controller.clone());
        Arc::new(Self { ca, controller, validity, given: AtomicUsize::new(0) })
    }
}

impl Desk for Renewals {
    fn answer(
        &self,
        call: EnrolCall,
        _via: Option<Identity>,
    ) -> Pin<Box<dyn Future<Output = EnrolAnswer> + Send + '_>> {
        Box::pin(async move {
            let Some(EnrolCallKind::Renew(renew)) = &call.kind else {
                return refusal(EnrolRefusalCode::UnknownToken, "renewals only");
            };
            let chain: Vec<CertificateDer<'_>> =
                renew.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
            let verifier = self.controller.verifier();
            let (identity, _) = verifier.standing(&chain, UnixTime::now()).unwrap();
            let message = enrol::renewal_message(&renew.nonce);
            verifier.verify_signature(&chain, &message, &renew.signature).unwrap();
            let authority = CertificateAuthority::open(&self.ca).unwrap();
            let key = raw_public_key(&chain[0]).unwrap();
            let (role, node, address) = (identity.role, &identity.node, Some(identity.address));
            let issued = authority.certify(role, node, address, &key, self.validity).unwrap();
            self.given.fetch_add(1, Ordering::Relaxed);
            let wire = |ders: &[CertificateDer<'_>]| ders.iter().map(|der| der.to_vec().into()).collect();
            let issue = Issue {
                chain: wire(&issued.chain),
                roots: wire(authority.roots()),
                call: enrol::call_digest(&call).into(),
                endorsements: wire(authority.endorsements()),
            };
            let signed = enrol::sign(&self.controller, &issue);
            EnrolAnswer { kind: Some(EnrolAnswerKind::Issued(signed)) }
        })
    }
}

const LONG: Duration = Duration::from_secs(3600);
/// Close code of a link whose certificate has expired, as it stands on the wire.
const EXPIRED: u64 = 9;

/// Issues a certificate that ends soon; gives its folder.
fn short_lived(world: &World, role: Role, name: &str, life: Duration) -> PathBuf {
    let out = world.of(name);
    world.authority().issue(role, &id(name), &out, life).unwrap();
    out
}

/// Waits until a certificate counts as expired: it is good through its last second.
async fn expired(credentials: &Credentials) {
    while credentials.expires() + Duration::from_secs(1) > jiff::Timestamp::now() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_again_and_again_while_a_stream_goes_on() {
    let world = World::new();
    let hop = world.hop(any()).await;
    let at = hop.listen_addresses()[0];
    short_lived(&world, Role::Execution, "node-1", Duration::from_secs(6));
    let (controller, node) = world.ends(at).await;
    let desk =
        Renewals::at(&world, &world.credentials(Role::Controller, "controller"), Duration::from_secs(6));
    controller.serve_enrolment(desk.clone()).unwrap();
    node.keep_certified(&world.of("node-1"));

    let mut listener = node.listen("echo", ANYONE).unwrap();
    let mut near =
        within("connect", controller.connect(&id("node-1"), "echo", Class::Control)).await.unwrap();
    near.write_all(b"a").await.unwrap();
    let mut far = accept(&mut listener).await;
    let start = std::time::Instant::now();
    let (mut byte, mut said) = ([0], 1_u32);
    // Well beyond the life of the first certificate and of the second.
    while start.elapsed() < Duration::from_secs(14) || desk.given.load(Ordering::Relaxed) < 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "renewed {:?} times", desk.given);
        within("byte", far.read_exact(&mut byte)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        near.write_all(b"a").await.unwrap();
        said += 1;
    }
    assert!(said > 50);
    let kept = Credentials::load(&world.of("node-1")).unwrap();
    assert!(kept.expires() > jiff::Timestamp::now(), "what is shown is on disk too");
}

/// The first step of a rollover reaches a node by its next renewal, and no further than its own files: what the old root
/// vouches for is trusted beside it, on disk as in the daemon.
#[tokio::test]
async fn a_renewal_brings_the_root_that_the_old_one_vouches_for() {
    let world = World::new();
    let hop = world.hop(any()).await;
    let dir = short_lived(&world, Role::Execution, "node-1", Duration::from_secs(8));
    let (controller, node) = world.ends(hop.listen_addresses()[0]).await;
    let introduced = world.authority().introduce_root(&[]).unwrap();
    let before = Credentials::load(&dir).unwrap().verifier().roots();
    assert_eq!(before, introduced.roots()[..1]);
    let desk = Renewals::at(&world, &world.credentials(Role::Controller, "controller"), LONG);
    controller.serve_enrolment(desk.clone()).unwrap();
    node.keep_certified(&dir);
    let learned = async {
        while Credentials::load(&dir).unwrap().verifier().roots() != introduced.roots() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the second root", learned).await;
    let text = std::fs::read_to_string(dir.join("ca.pem")).unwrap();
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
    // The daemon trusts it, too: whoever shows a chain of the new root is a neighbour.
    let switched = introduced.switch_root(&[]).unwrap();
    switched.issue(Role::Hop, &id("hop-2"), &world.of("hop-2"), LONG).unwrap();
    let other = Mesh::start(world.config(Role::Hop, "hop-2", &[any()], &[])).await.unwrap();
    let peers = [hop.listen_addresses()[0], other.listen_addresses()[0]];
    node.reload(world.config(Role::Execution, "node-1", &[], &peers)).await.unwrap();
    let linked = async {
        while node.status().links.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("a link with one of the new root", linked).await;
}

/// Both the node and the only hop of its site were dark for longer than their certificates lasted.
#[tokio::test]
async fn a_site_whose_certificates_have_all_expired_comes_back() {
    let world = World::new();
    let (hop_dir, node_dir) = (
        short_lived(&world, Role::Hop, "hop-1", Duration::from_secs(1)),
        short_lived(&world, Role::Execution, "node-1", Duration::from_secs(1)),
    );
    let (hop_was, node_was) = (Credentials::load(&hop_dir).unwrap(), Credentials::load(&node_dir).unwrap());
    expired(&hop_was).await;
    expired(&node_was).await;
    let hop = world.hop(any()).await;
    let at = hop.listen_addresses()[0];
    let node = world.leaf(Role::Execution, "node-1", at).await;
    hop.keep_certified(&hop_dir);
    node.keep_certified(&node_dir);

    // Nobody valid is there: the two of them alone get nothing, and carry nothing.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(hop.status().links.is_empty() && node.status().links.is_empty());

    let controller = world.leaf(Role::Controller, "controller", at).await;
    let desk = Renewals::at(&world, &world.credentials(Role::Controller, "controller"), LONG);
    controller.serve_enrolment(desk).unwrap();
    reachable(&controller, "hop-1", true).await;
    reachable(&controller, "node-1", true).await;
}

/// The expired end cannot dial: its neighbour does.
#[tokio::test]
async fn an_expired_node_that_is_dialed_renews_too() {
    let world = World::new();
    let dir = short_lived(&world, Role::Execution, "node-1", Duration::from_secs(1));
    expired(&Credentials::load(&dir).unwrap()).await;
    let node = Mesh::start(world.config(Role::Execution, "node-1", &[any()], &[])).await.unwrap();
    node.keep_certified(&dir);
    let hop = world.config(Role::Hop, "hop-1", &[any()], &[node.listen_addresses()[0]]);
    let hop = Mesh::start(hop).await.unwrap();
    let controller = world.leaf(Role::Controller, "controller", hop.listen_addresses()[0]).await;
    let desk = Renewals::at(&world, &world.credentials(Role::Controller, "controller"), LONG);
    controller.serve_enrolment(desk).unwrap();
    reachable(&controller, "node-1", true).await;
}

/// One call, and what comes back of it; an error where the link is closed.
async fn ask(connection: &quinn::Connection, call: &EnrolCall) -> Result<EnrolAnswerKind, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| text(&error))?;
    send.write_all(&frame::to_bytes(call)).await.map_err(|error| text(&error))?;
    send.finish().map_err(|error| text(&error))?;
    let answer = receive.read_to_end(64 * 1024).await.map_err(|error| text(&error))?;
    let body = answer.get(4..).ok_or("no answer")?;
    EnrolAnswer::decode(body).map_err(|error| text(&error))?.kind.ok_or_else(|| "no answer".to_owned())
}

/// Whoever shows an expired certificate renews it a few times and does nothing else: no packet of it is passed on, no
/// word of it is read, and what is no renewal is refused.
#[tokio::test]
async fn an_expired_neighbour_may_renew_and_nothing_else() {
    let world = World::new();
    let hop = world.hop(any()).await;
    let at = hop.listen_addresses()[0];
    let controller = world.leaf(Role::Controller, "controller", at).await;
    let desk = Renewals::at(&world, &world.credentials(Role::Controller, "controller"), LONG);
    controller.serve_enrolment(desk.clone()).unwrap();
    reachable(&hop, "controller", true).await;
    let late =
        Credentials::load(&short_lived(&world, Role::Execution, "late", Duration::from_secs(1))).unwrap();
    expired(&late).await;

    let crypto = QuicClientConfig::try_from(late.client_config(&[b"plexus-link/1"])).unwrap();
    let mut endpoint = quinn::Endpoint::client(any()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connecting = endpoint.connect(at, "plexus.invalid").unwrap();
    let connection = within("handshake", connecting).await.unwrap();

    let join = JoinCall { cluster: "main".to_owned(), ..JoinCall::default() };
    let join = EnrolCall { kind: Some(EnrolCallKind::Join(join)) };
    match within("refusal", ask(&connection, &join)).await {
        Ok(EnrolAnswerKind::Refused(refused)) => {
            assert_eq!(refused.code(), EnrolRefusalCode::Malformed, "{refused:?}");
            assert_eq!(refused.message, "an expired certificate may renew and nothing else");
        }
        other => panic!("{other:?}"),
    }
    let header = Header {
        class: Class::Probe,
        ecn: 0,
        rekey: false,
        hop_limit: HOP_LIMIT,
        source: late.identity().address,
        destination: controller.identity().address,
    };
    connection.send_datagram(header.packet(&Probe::Echo { nonce: 1 }.encode())).unwrap();
    // Three more calls are answered, and that was all.
    let nonce = vec![7; 16];
    let renew = RenewCall {
        signature: late.sign(&enrol::renewal_message(&nonce)).into(),
        nonce: nonce.into(),
        chain: late.chain().iter().map(|der| der.to_vec().into()).collect(),
    };
    let renew = EnrolCall { kind: Some(EnrolCallKind::Renew(renew)) };
    for given in 1..4 {
        let answer = within("renewal", ask(&connection, &renew)).await;
        assert!(matches!(answer, Ok(EnrolAnswerKind::Issued(_))), "{answer:?}");
        assert_eq!(desk.given.load(Ordering::Relaxed), given);
    }
    let one_too_many = within("end", ask(&connection, &renew)).await;
    assert!(one_too_many.is_err(), "{one_too_many:?}");
    match within("close", connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), EXPIRED)
        }
        other => panic!("{other}"),
    }
    assert_eq!(desk.given.load(Ordering::Relaxed), 3);
    let status = hop.status();
    assert!(status.links.iter().all(|link| link.peer == id("controller")), "{:?}", status.links);
    assert!(status.nodes.iter().all(|node| node.node != id("late")));
    assert_eq!((status.packets.forwarded, status.packets.forged), (0, 0), "nobody read its packet");
}

#[tokio::test]
async fn a_link_ends_with_the_certificate_that_nobody_renews() {
    let world = World::new();
    let hop = world.hop(any()).await;
    short_lived(&world, Role::Execution, "node-1", Duration::from_secs(4));
    let (controller, node) = world.ends(hop.listen_addresses()[0]).await;
    reachable(&controller, "node-1", false).await;
    assert!(node.status().certificate_expires <= jiff::Timestamp::now());
    let ended = async {
        while !node.status().links.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("end of the link", ended).await;
}

#[tokio::test]
async fn a_revoked_node_loses_links_and_sessions_and_stays_out() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let mut listener = node.listen("echo", ANYONE).unwrap();
    let mut near =
        within("connect", controller.connect(&id("node-1"), "echo", Class::Control)).await.unwrap();
    near.write_all(b"a").await.unwrap();
    let _far = accept(&mut listener).await;

    let owner = world.credentials(Role::Controller, "controller");
    let key = controller.key_of(&id("node-1")).unwrap();
    assert_eq!(key, key_fingerprint(world.credentials(Role::Execution, "node-1").public_key()));
    let entries = [(id("node-1"), Entry { key: Some(key), at: jiff::Timestamp::now() })];
    let list = List::sign(&owner, 1, &entries, UnixTime::now()).unwrap();
    controller.publish_revocations(list).await;
    // The session ends at once, not with the idle timeout of a minute.
    let lost = tokio::time::timeout(Duration::from_secs(10), near.read_u8()).await;
    assert!(matches!(lost, Ok(Err(_))), "{lost:?}");
    reachable(&controller, "node-1", false).await;

    // The hop starts again without a controller: it remembers, and refuses.
    controller.shutdown().await;
    hop.shutdown().await;
    let hop = world.hop(at).await;
    let refused = async {
        while !node
            .status()
            .peers
            .iter()
            .any(|peer| peer.error.as_deref().is_some_and(|text| text.contains("evoked")))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("refusal", refused).await;
    assert!(hop.status().links.is_empty());

    // Another machine with a key of its own, under the same name, is welcome.
    std::fs::rename(world.of("node-1"), world.of("node-1-old")).unwrap();
    node.shutdown().await;
    let again = world.leaf(Role::Execution, "node-1", at).await;
    reachable(&hop, "node-1", true).await;
    drop(again);
}

#[tokio::test]
async fn a_list_of_revocations_from_somebody_who_may_not_is_ignored() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let mallory = world.credentials(Role::Hop, "mallory");
    let entries = [(id("node-1"), Entry { key: None, at: jiff::Timestamp::now() })];
    assert!(List::sign(&mallory, 1, &entries, UnixTime::now()).is_err());
    let ping = within("ping", controller.ping(&id("node-1"), Duration::from_secs(5))).await;
    assert!(ping.is_ok(), "{ping:?}");
    drop((hop, node));
}
