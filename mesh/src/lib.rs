//! The overlay of Plexus: who is who, who is linked to whom, and streams from end to end.
//!
//! * [`identity`]: certificates in, certified [`Identity`](plexus_proto::id::Identity) out, or the reason why not.
//! * [`ca`]: the authority that issues them.
//! * [`routing`]: what is known of the mesh, and where to forward; pure.
//! * [`status`]: what people and programs are told, as documented JSON; [`local`]: the socket that tells it.
//!
//! This crate knows nothing of work units, jobs or HTTP.

pub mod ca;
pub mod identity;
pub mod local;
pub mod routing;
pub mod status;

pub use identity::{Credentials, Verifier};

/// Makes aws-lc-rs the crypto provider of this process. Every `main` and test that uses TLS calls it first;
/// calling it again changes nothing.
pub fn install_crypto_provider() {
    // An error says that a provider is there already, which is what was asked for.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}
