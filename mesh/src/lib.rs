//! The overlay of Plexus: who is who, who is linked to whom, and streams from end to end.
//!
//! * [`identity`]: certificates in, certified [`Identity`](plexus_proto::id::Identity) out, or the reason why not.
//! * [`ca`]: the authority that issues them.
//! * [`routing`]: what is known of the mesh, and where to forward; pure.
//! * [`Mesh`]: a running node. It links with its neighbours, forwards overlay packets if it is a hop, and opens and
//!   accepts end-to-end streams ([`MeshStream`]) inside which hops see ciphertext only.
//! * [`grpc`] and [`framed`]: calls and messages over such streams.
//! * [`status`]: what people and programs are told, as documented JSON; [`local`]: the socket that tells it.
//!
//! This crate knows nothing of work units, jobs or HTTP.

pub mod ca;
pub mod identity;
pub mod routing;

mod config;
mod endpoint;
mod link;
mod node;
mod settings;

mod driver;
mod epoch;
mod forward;
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
pub mod status;

mod error;
mod handle;
mod view;

pub use config::{Config, DEFAULT_COST, Peer};
pub use error::{ConnectError, ListenError, Refusal, SessionError, StartError, StreamError};
pub use handle::Mesh;
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
