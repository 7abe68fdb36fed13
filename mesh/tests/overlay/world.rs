//! A mesh to test in: an authority, folders, and nodes on ports of the system's choice.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::{Allow, Config, Credentials, Listener, Mesh, MeshStream, Peer, StartError, View};
use plexus_proto::id::{NodeId, Role};

/// Longest wait for anything; far more than it takes, for machines with other work.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Every role of the cluster.
pub(crate) const ANYONE: Allow =
    Allow { roles: &[Role::Controller, Role::Execution, Role::Hop], same_cluster: true };

pub(crate) struct World {
    folder: tempfile::TempDir,
    authority: CertificateAuthority,
}

impl World {
    pub(crate) fn new() -> Self {
        plexus_mesh::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(&folder.path().join("ca"));
        Self { folder, authority }
    }

    /// Where a node's certificates and state are.
    pub(crate) fn of(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn authority(&self) -> &CertificateAuthority {
        &self.authority
    }

    pub(crate) fn credentials(&self, role: Role, name: &str) -> Credentials {
        let out = self.of(name);
        if !out.exists() {
            self.authority.issue(role, &id(name), &out, Duration::from_secs(24 * 3600)).unwrap();
        }
        Credentials::load(&out).unwrap()
    }

    /// A certificate for the same node and key that is valid for longer.
    pub(crate) fn renewed(&self, role: Role, name: &str) -> Credentials {
        let out = self.of(name);
        self.authority.issue(role, &id(name), &out, Duration::from_secs(48 * 3600)).unwrap();
        Credentials::load(&out).unwrap()
    }

    pub(crate) fn config(
        &self,
        role: Role,
        name: &str,
        listen: &[SocketAddr],
        peers: &[SocketAddr],
    ) -> Config {
        let own = self.credentials(role, name);
        Config {
            listen: listen.to_vec(),
            peers: peers.iter().map(|address| Peer::new(address.to_string())).collect(),
            ..Config::new(own, self.of(name).join("state"), format!("test {name}"))
        }
    }

    /// A hop that listens at `address`.
    pub(crate) async fn hop(&self, address: SocketAddr) -> Mesh {
        // One that was here a moment ago lets go of its socket once its neighbours know, which a busy machine delays.
        let start = async {
            loop {
                match Mesh::start(self.config(Role::Hop, "hop-1", &[address], &[])).await {
                    Err(StartError::Listen { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
                    started => return started.unwrap(),
                }
            }
        };
        within("a hop on its address", start).await
    }

    /// A node that knows the hop at `hop` and nothing else.
    pub(crate) async fn leaf(&self, role: Role, name: &str, hop: SocketAddr) -> Mesh {
        Mesh::start(self.config(role, name, &[], &[hop])).await.unwrap()
    }

    /// Controller and execution node behind the hop at `hop`, each reachable from the other.
    pub(crate) async fn ends(&self, hop: SocketAddr) -> (Mesh, Mesh) {
        let controller = self.leaf(Role::Controller, "controller", hop).await;
        let node = self.leaf(Role::Execution, "node-1", hop).await;
        reachable(&controller, "node-1", true).await;
        reachable(&node, "controller", true).await;
        (controller, node)
    }

    /// Controller, hop and execution node.
    pub(crate) async fn line(&self) -> (Mesh, Mesh, Mesh) {
        let hop = self.hop(any()).await;
        let (controller, node) = self.ends(hop.listen_addresses()[0]).await;
        (controller, hop, node)
    }
}

pub(crate) fn authority(folder: &Path) -> CertificateAuthority {
    CertificateAuthority::init(folder, &"demo".parse().unwrap(), &"main".parse().unwrap()).unwrap()
}

/// An address of this machine with a port of the system's choice.
pub(crate) fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Waits until `node` is (or is not) reachable from `mesh`; says what was seen last if that never comes.
pub(crate) async fn reachable(mesh: &Mesh, node: &str, wanted: bool) {
    let (mut watch, node) = (mesh.watch(), id(node));
    let is = |view: &View| view.nodes.get(&node).is_some_and(|known| known.reachable);
    let outcome = tokio::time::timeout(DEADLINE, watch.wait_for(|view| is(view) == wanted)).await;
    match outcome {
        Ok(seen) => drop(seen.unwrap()),
        Err(_) => panic!("{node} reachable={wanted} was not seen; last: {:?}", *mesh.watch().borrow()),
    }
}

/// The outcome of `future`, or a panic that names what did not come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {DEADLINE:?}"))
}

/// The next stream of a service.
pub(crate) async fn accept(listener: &mut Listener) -> MeshStream {
    within("accept", listener.accept()).await.expect("mesh is up")
}

/// Bytes in which every shift, loss or repetition shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let word = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(word).collect();
    bytes.truncate(length);
    bytes
}

/// Fails with the first difference, not with megabytes of both.
pub(crate) fn assert_same(found: &[u8], expected: &[u8]) {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "first difference");
    assert_eq!(found.len(), expected.len(), "length");
}
