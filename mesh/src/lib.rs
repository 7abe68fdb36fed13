//! The overlay of Plexus: who is who, who is linked to whom, and streams from end to end.
//!
//! * [`identity`]: certificates in, certified [`Identity`](plexus_proto::id::Identity) out, or the reason why not.
//! * [`authorization`]: who may say and open what.
//! * [`ca`]: the authority that issues them; [`enrol`]: how a machine gets one; [`revocation`]: how it is taken back.
//! * [`routing`]: what is known of the mesh, and where to forward; pure.
//! * [`Mesh`]: a running node. It links with its neighbours, forwards overlay packets if it is a hop, and opens and
//!   accepts end-to-end streams ([`MeshStream`]) inside which hops see ciphertext only.
//! * [`grpc`] and [`framed`]: calls and messages over such streams.
//! * [`port_forward`]: TCP connections from one node to what another can reach, where its policy allows.
//! * [`status`]: what people and programs are told, as documented JSON; [`local`]: the socket that tells it.
//!
//! # Layers
//!
//! ```text
//!  programs        MeshStream, gRPC, framed messages
//!  session         one inner QUIC connection per pair of nodes and class, mutual TLS from end to end
//!  overlay packet  ten bytes of header (class, hop limit, source, destination) and one inner QUIC packet
//!  link            outer QUIC connection of two neighbours, mutual TLS; packets are its DATAGRAMs
//!  UDP
//! ```
//!
//! A hop works on overlay packets and holds nothing of a stream. So a stream survives a change of route and the
//! restart of a hop, back-pressure works from end to end, and opening a stream on a live session costs no round trip.
//!
//! # Example
//!
//! A controller talks with an execution node; both know only the hop between them.
//!
//! ```
//! use std::time::Duration;
//!
//! use plexus_mesh::ca::CertificateAuthority;
//! use plexus_mesh::{Allow, Config, Credentials, Mesh, Peer};
//! use plexus_proto::id::Role;
//! use plexus_proto::packet::Class;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let authority = CertificateAuthority::init(&folder.path().join("ca"), &"demo".parse()?, &"main".parse()?)?;
//! let config = |role, name: &str| -> Result<Config, Box<dyn std::error::Error>> {
//!     let own = folder.path().join(name);
//!     authority.issue(role, &name.parse()?, &own, Duration::from_secs(3600))?;
//!     Ok(Config::new(Credentials::load(&own)?, own.join("state"), "example 1"))
//! };
//!
//! let hop = Mesh::start(Config { listen: vec!["127.0.0.1:0".parse()?], ..config(Role::Hop, "hop-1")? }).await?;
//! let peers = vec![Peer::new(hop.listen_addresses()[0].to_string())];
//! let controller = Mesh::start(Config { peers: peers.clone(), ..config(Role::Controller, "controller")? }).await?;
//! let node = Mesh::start(Config { peers, ..config(Role::Execution, "node-1")? }).await?;
//!
//! let mut listener = node.listen("greeting", Allow { roles: &[Role::Controller], same_cluster: true })?;
//! let there = "node-1".parse()?;
//! controller.watch().wait_for(|view| view.nodes.get(&there).is_some_and(|node| node.reachable)).await?;
//! let mut near = controller.connect(&there, "greeting", Class::Control).await?;
//! near.write_all(b"hello").await?;
//! near.shutdown().await?;
//!
//! let mut far = listener.accept().await.ok_or("mesh is down")?;
//! let mut heard = String::new();
//! far.read_to_string(&mut heard).await?;
//! assert_eq!((heard.as_str(), far.peer().node.as_str()), ("hello", "controller"));
//!
//! let trace = controller.trace(&there, Duration::from_secs(5)).await?;
//! let path: Vec<_> = trace.hops.iter().flat_map(|hop| &hop.node).map(|node| node.as_str()).collect();
//! assert_eq!(path, ["hop-1", "node-1"]);
//! # Ok(())
//! # }
//! ```
//!
//! This crate knows nothing of work units, jobs or HTTP.

pub mod authorization;
pub mod ca;
pub mod crash;
pub mod enrol;
pub mod identity;
pub mod revocation;
pub mod routing;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

mod batch;
mod config;
mod endpoint;
mod link;
mod node;
mod settings;

mod bounded;
mod busy;
mod clones;
mod driver;
mod epoch;
mod forward;
mod liveness;
mod trust;
mod vouch;

mod congestion;
mod probe;
mod service;
mod session;
mod socket;
mod stream;

pub mod framed;
pub mod grpc;

pub mod local;
pub mod memory;
pub mod port_forward;
pub mod status;
pub mod systemd;

mod netcheck;

mod error;
mod events;
mod handle;
mod view;

pub use authorization::Policy;
pub use config::{Config, DEFAULT_COST, DEFAULT_MTU, LinkKind, MTU_MIN, MeshSection, Peer, PeerSection};
pub use error::{ConnectError, ListenError, Refusal, SessionError, StartError, StreamError};
pub use handle::{Mesh, ReloadError, ReloadReport};
pub use identity::{Credentials, Verifier};
pub use service::{Allow, Listener};
pub use stream::{MeshReader, MeshStream, MeshWriter};
pub use view::{NodeView, View};

/// Makes aws-lc-rs the crypto provider of this process. Every `main` and test that uses TLS calls it first;
/// calling it again changes nothing.
pub fn install_crypto_provider() {
    // An error says that a provider is there already, which is what was asked for.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}
