//! Receptor's own functional-mesh scenarios, each by its name there, held against this mesh: real processes, real sockets.
//!
//! Scenarios of Receptor's work units have their counterparts in `trouble`, `crash` and `first_light`; what is left out on
//! purpose, and why, stands in `docs/receptor-comparison.md`.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::{Config, Credentials, Mesh};
use plexus_proto::id::Role;
use plexus_tests::net::{Hop, Net, Peer, PeerOptions};
use plexus_tests::{Seen, is_verify, wait_for};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{AlertDescription, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);

async fn start_hop(net: &Net, name: &str, peers: &[SocketAddr]) -> anyhow::Result<Hop> {
    let mut hop = net.hop(name, peers)?;
    hop.start().await?;
    Ok(hop)
}

async fn end(
    net: &Net,
    role: Role,
    name: &str,
    peers: &[SocketAddr],
    kinds: &[&str],
) -> anyhow::Result<Peer> {
    net.peer(role, name, &PeerOptions { peers, kinds, ..PeerOptions::default() }).await
}

/// A star: every node in it reaches every other, and a request goes to each.
async fn star(kinds: &[&str]) -> anyhow::Result<()> {
    let net = Net::new("receptor-star")?;
    let hop = start_hop(&net, "hop-1", &[]).await?;
    let at = [hop.address()];
    let leaves = if is_verify() { 15 } else { 4 };
    let mut controller = end(&net, Role::Controller, "controller", &at, kinds).await?;
    let mut nodes = Vec::new();
    for number in 0..leaves {
        nodes.push(end(&net, Role::Execution, &format!("node-{number}"), &at, kinds).await?);
    }
    for number in 0..leaves {
        let name = format!("node-{number}");
        controller.reach(&name, true).await?;
        controller.requests(&name, 1, Duration::ZERO).await?;
    }
    for (number, node) in nodes.iter_mut().enumerate() {
        node.reach("controller", true).await?;
        node.requests("controller", 1, Duration::ZERO).await?;
        // Nodes keep no map: their first request asks the hop for the way.
        for other in (0..leaves).filter(|other| *other != number) {
            node.requests(&format!("node-{other}"), 1, Duration::ZERO).await?;
        }
    }
    Ok(())
}

/// TestMeshStartup udp; also TestTCPSSLConnections, as every link here has mutual TLS.
#[tokio::test]
async fn mesh_startup_udp() -> anyhow::Result<()> {
    star(&["quic", "sealed"]).await
}

/// TestMeshStartup tcp, TestTCPSSLConnections tcp.
#[tokio::test]
async fn mesh_startup_tcp() -> anyhow::Result<()> {
    star(&["tcp"]).await
}

/// TestTraceroute: the path through a tree has exactly its three entries.
#[tokio::test]
async fn traceroute() -> anyhow::Result<()> {
    let net = Net::new("receptor-trace")?;
    let root = start_hop(&net, "hop-1", &[]).await?;
    let branch = start_hop(&net, "hop-2", &[root.address()]).await?;
    let _other = start_hop(&net, "hop-3", &[root.address()]).await?;
    let mut controller = end(&net, Role::Controller, "controller", &[root.address()], &[]).await?;
    let _leaf = end(&net, Role::Execution, "node-1", &[branch.address()], &[]).await?;
    controller.reach("node-1", true).await?;
    // A trace asks hop by hop; the way back to us may be news to the last of them.
    let path = wait_for("the path", DEADLINE, async || match controller.trace("node-1").await {
        Ok(path) if path.len() == 3 => Seen::Yes(path),
        other => Seen::NotYet(format!("{other:?}")),
    })
    .await?;
    ensure!(path == ["hop-1", "hop-2", "node-1"], "{path:?}");
    Ok(())
}

/// TestMeshShutdown: everything ends in order within ten seconds, and the ports are free.
#[tokio::test]
async fn mesh_shutdown() -> anyhow::Result<()> {
    let net = Net::new("receptor-shutdown")?;
    let mut first = start_hop(&net, "hop-1", &[]).await?;
    let mut second = start_hop(&net, "hop-2", &[first.address()]).await?;
    let mut controller = end(&net, Role::Controller, "controller", &[first.address()], &[]).await?;
    controller.reach("hop-2", true).await?;
    for hop in [&mut second, &mut first] {
        let began = Instant::now();
        hop.daemon.stop().await?;
        ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
        std::net::UdpSocket::bind(hop.address()).context("the port is still taken")?;
        ensure!(std::net::TcpStream::connect(hop.address()).is_err(), "somebody still listens");
    }
    Ok(())
}

/// TestCosts: the path of least cost is taken, though it has more hops.
#[tokio::test]
async fn costs() -> anyhow::Result<()> {
    let net = Net::new("receptor-costs")?;
    let near = start_hop(&net, "hop-1", &[]).await?;
    let far = start_hop(&net, "hop-2", &[near.address()]).await?;
    let mut b_config = Config::new(
        Credentials::load(&net.certify(Role::Execution, "node-1")?)?,
        net.of("node-1").join("state"),
        "test",
    );
    b_config.peers = [(near.address(), 100), (far.address(), 1)]
        .map(|(address, cost)| plexus_mesh::Peer { cost, ..plexus_mesh::Peer::new(address.to_string()) })
        .into();
    let _node = Mesh::start(b_config).await?;
    let mut controller = end(&net, Role::Controller, "controller", &[near.address()], &[]).await?;
    controller.reach("node-1", true).await?;
    wait_for("the cheap path", DEADLINE, async || match controller.trace("node-1").await {
        Ok(path) if path == ["hop-1", "hop-2", "node-1"] => Seen::Yes(()),
        other => Seen::NotYet(format!("{other:?}")),
    })
    .await
}

/// TestFirewall: what is no hop lets nothing through. Both ends talk with the node in the middle, and not with each other.
#[tokio::test]
async fn firewall() -> anyhow::Result<()> {
    let net = Net::new("receptor-firewall")?;
    let any = [SocketAddr::from(([127, 0, 0, 1], 0))];
    let listening = PeerOptions { listen: &any, ..PeerOptions::default() };
    let middle = net.peer(Role::Execution, "middle", &listening).await?;
    let at = middle.listen().to_vec();
    let mut near = end(&net, Role::Controller, "near", &at, &[]).await?;
    let mut far = end(&net, Role::Controller, "far", &at, &[]).await?;
    for side in [&mut near, &mut far] {
        side.reach("middle", true).await?;
        side.requests("middle", 1, Duration::ZERO).await?;
    }
    // What the middle knows of either had to pass it to get here.
    let passed = near.requests("far", 1, Duration::ZERO).await;
    ensure!(passed.is_err(), "a node that is no hop let a request through");
    near.reach("far", false).await?;
    far.reach("near", false).await
}

/// TestTCPSSLClientAuthFailNoKey, BadKey, ServerAuthFail…: who has no certificate of this mesh never connects.
#[tokio::test]
async fn tls_auth_fail_bad_key() -> anyhow::Result<()> {
    let net = Net::new("receptor-auth")?;
    let hop = start_hop(&net, "hop-1", &[]).await?;
    let folder = net.of("stranger");
    let other = CertificateAuthority::init(&net.of("other-ca"), &"proof".parse()?, &"main".parse()?)?;
    other.issue(Role::Execution, &"stranger".parse()?, &folder, Duration::from_secs(3600))?;
    let mut config = Config::new(Credentials::load(&folder)?, folder.join("state"), "stranger");
    config.peers = vec![plexus_mesh::Peer::new(hop.address().to_string())];
    let stranger = Mesh::start(config).await?;
    // Somebody who starts later and gets in shows that there was time enough.
    let mut controller = end(&net, Role::Controller, "controller", &[hop.address()], &[]).await?;
    controller.reach("hop-1", true).await?;
    ensure!(!stranger.watch().borrow().nodes.contains_key(&"hop-1".parse()?), "the stranger sees the hop");
    controller.reach("stranger", false).await?;
    // NoKey: a client that shows no certificate at all, whatever it thinks of the hop's.
    let address = hop.address();
    let refusal = tokio::task::spawn_blocking(move || without_certificate(address)).await??;
    ensure!(refusal == AlertDescription::CertificateRequired, "{refusal:?}");
    Ok(())
}

/// The alert that a client of a TCP link gets who has no certificate.
fn without_certificate(hop: SocketAddr) -> anyhow::Result<AlertDescription> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"plexus-link/1".to_vec()];
    let mut client = rustls::ClientConnection::new(Arc::new(config), "plexus.invalid".try_into()?)?;
    let mut socket = TcpStream::connect(hop)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    // For the client the handshake is over before the hop has seen what is missing; so it reads on.
    let heard = rustls::Stream::new(&mut client, &mut socket).read(&mut [0; 64]);
    let error = heard.err().context("the hop talks with a client without a certificate")?;
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => Ok(*alert),
        _ => Err(error).context("no alert"),
    }
}

/// Takes any server's certificate: what is tried is the hop's judgment, not the client's.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TestQuicConnectTimeout: both ends of streams whose way is gone for longer than a session waits get an error, not data and
/// not an end; and so does who talked with a process that is gone, as soon as another has taken its place.
#[tokio::test]
async fn a_peer_that_is_gone_is_an_error() -> anyhow::Result<()> {
    let net = Net::new("receptor-timeout")?;
    let mut hop = start_hop(&net, "hop-1", &[]).await?;
    let mut controller = end(&net, Role::Controller, "controller", &[hop.address()], &[]).await?;
    let mut node = end(&net, Role::Execution, "node-1", &[hop.address()], &[]).await?;
    controller.reach("node-1", true).await?;
    node.reach("controller", true).await?;
    let flow = plexus_tests::net::Flow {
        class: "bulk",
        pull: true,
        block: 1000,
        pause: Duration::from_millis(2),
        blocks: 0,
    };
    for (near, far) in [(&mut controller, "node-1"), (&mut node, "controller")] {
        near.flow(1, far, &flow).await?;
        near.moves(1, 10_000).await?;
    }
    hop.daemon.kill();
    for near in [&mut controller, &mut node] {
        let ended = near.ends(1, false, GONE).await;
        ensure!(ended.is_err(), "it passed for whole: {ended:?}");
    }

    hop.start().await?;
    // A hop that comes back takes its links one by one, so the first way may go again for a moment.
    let opened = plexus_tests::wait_for("a way over the new hop", GONE, async || {
        match controller.flow(2, "node-1", &flow).await {
            Ok(()) => plexus_tests::Seen::Yes(()),
            Err(error) => plexus_tests::Seen::NotYet(error.to_string()),
        }
    });
    opened.await?;
    controller.moves(2, 10_000).await?;
    drop(node);
    // The peer starts again: its old sessions are disowned at once instead of after their idle time.
    let mut again = end(&net, Role::Execution, "node-1", &[hop.address()], &[]).await?;
    again.reach("controller", true).await?;
    controller.reach("node-1", true).await?;
    again.requests("controller", 1, Duration::ZERO).await?;
    let ended = controller.ends(2, false, GONE).await;
    ensure!(ended.is_err(), "it passed for whole: {ended:?}");
    Ok(())
}

/// Longest wait for the end of a session that hears nothing: its idle time is a minute.
const GONE: Duration = Duration::from_secs(180);
