//! Three nodes in one process: a controller and an execution node that each know only the hop between them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::{Allow, Config, Credentials, Listener, Mesh, MeshStream, Peer, View};
use plexus_proto::id::{NodeId, Role};
use plexus_proto::packet::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(20);
const ANYONE: Allow = Allow { roles: &[Role::Controller, Role::Execution, Role::Hop], same_cluster: true };

/// A mesh's authority and folders.
struct World {
    folder: tempfile::TempDir,
    authority: CertificateAuthority,
}

impl World {
    fn new() -> Self {
        plexus_mesh::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(&folder.path().join("ca"));
        Self { folder, authority }
    }

    fn credentials(&self, role: Role, name: &str) -> Credentials {
        let out = self.folder.path().join(name);
        if !out.exists() {
            let day = Duration::from_secs(24 * 3600);
            self.authority.issue(role, &id(name), &out, day).unwrap();
        }
        Credentials::load(&out).unwrap()
    }

    fn config(&self, role: Role, name: &str, listen: &[SocketAddr], peers: &[SocketAddr]) -> Config {
        Config {
            credentials: self.credentials(role, name),
            listen: listen.to_vec(),
            peers: peers.iter().map(|address| peer(*address, None)).collect(),
            state_dir: self.folder.path().join(name).join("state"),
            software: format!("test {name}"),
        }
    }

    async fn hop(&self, address: SocketAddr) -> Mesh {
        Mesh::start(self.config(Role::Hop, "hop-1", &[address], &[])).await.unwrap()
    }

    async fn leaf(&self, role: Role, name: &str, hop: SocketAddr) -> Mesh {
        Mesh::start(self.config(role, name, &[], &[hop])).await.unwrap()
    }

    /// Controller, hop and execution node, each end reachable from the other.
    async fn line(&self) -> (Mesh, Mesh, Mesh) {
        let hop = self.hop(any()).await;
        let at = hop.listen_addresses()[0];
        let controller = self.leaf(Role::Controller, "controller", at).await;
        let node = self.leaf(Role::Execution, "node-1", at).await;
        reachable(&controller, "node-1", true).await;
        reachable(&node, "controller", true).await;
        (controller, hop, node)
    }
}

fn authority(folder: &Path) -> CertificateAuthority {
    CertificateAuthority::init(folder, &"demo".parse().unwrap(), &"main".parse().unwrap()).unwrap()
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn peer(address: SocketAddr, name: Option<NodeId>) -> Peer {
    Peer { address: address.to_string(), name, cost: 10 }
}

/// Waits until `node` is (or is not) reachable from `mesh`; says what was seen last if it never is.
async fn reachable(mesh: &Mesh, node: &str, wanted: bool) {
    let (mut watch, node) = (mesh.watch(), id(node));
    let is = |view: &std::sync::Arc<View>| view.nodes.get(&node).is_some_and(|known| known.reachable);
    let outcome = tokio::time::timeout(DEADLINE, watch.wait_for(|view| is(view) == wanted)).await;
    match outcome {
        Ok(seen) => drop(seen.unwrap()),
        Err(_) => panic!("{node} reachable={wanted} was not seen; last: {:?}", *mesh.watch().borrow()),
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {DEADLINE:?}"))
}

/// Bytes whose every 4 KiB differ, so that a shift or a repetition shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[at % 3]).collect()
}

async fn accept(listener: &mut Listener) -> MeshStream {
    within("accept", listener.accept()).await.expect("mesh is up")
}

#[tokio::test]
async fn bytes_cross_a_hop_exactly_in_both_directions() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let mut listener = node.listen("echo", ANYONE).unwrap();
    let data = pattern(32 << 20);
    let stream = within("connect", controller.connect(&id("node-1"), "echo", Class::Bulk)).await.unwrap();
    assert_eq!(stream.peer().node, id("node-1"));

    let (mut reader, mut writer) = stream.into_split();
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let echo = tokio::spawn(async move {
        let stream = accept(&mut listener).await;
        assert_eq!(stream.peer().node, id("controller"));
        let (mut reader, mut writer) = stream.into_split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    tokio::time::timeout(DEADLINE * 3, reader.read_to_end(&mut back)).await.unwrap().unwrap();
    sender.await.unwrap();
    echo.await.unwrap();
    assert!(back == data, "{} bytes of {} came back, or others", back.len(), data.len());
    for mesh in [controller, hop, node] {
        within("shutdown", mesh.shutdown()).await;
    }
}

#[tokio::test]
async fn either_end_can_open_streams() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    for (from, to) in [(&controller, &node), (&node, &controller)] {
        let mut listener = to.listen("hello", ANYONE).unwrap();
        for class in [Class::Control, Class::Bulk] {
            let target = to.identity().node.clone();
            let mut near = within("connect", from.connect(&target, "hello", class)).await.unwrap();
            near.write_all(b"who is there").await.unwrap();
            let mut far = accept(&mut listener).await;
            assert_eq!(far.peer(), from.identity());
            let mut heard = [0; 12];
            far.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"who is there");
        }
    }
}
