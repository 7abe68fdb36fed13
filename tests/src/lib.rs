//! Whole-system tests of Plexus: real processes, real sockets, real containers.
//!
//! [`Cluster`] starts a controller, a hop and an execution node in a folder and on ports of their own, with certificates made
//! by `plexus ca`, and ends them when it is dropped. Controller and execution node each know only the hop. Several clusters
//! run side by side without meeting. The tests lie in `tests/tests/`; the demo and the benches of `tests/xtask` stand on the
//! same cluster, so what people try is what is tested.

mod api;
mod awx;
mod binaries;
mod cluster;
mod collection;
mod daemon;
pub mod flow;
pub mod history;
mod image;
mod layout;
mod leftovers;
pub mod net;
mod newcomer;
mod ports;
mod postgres;
pub mod proofs;
mod recap;
mod replay;
mod repository;
mod samples;
mod wait;
pub mod wire;

pub use api::{Answer, Api};
pub use awx::{Awx, text};
pub use binaries::Binaries;
pub use cluster::{Builder, Cluster, Runtime};
pub use collection::Collection;
pub use daemon::Daemon;
pub use image::{TINY, WorkerImage};
pub use layout::{Layout, podman_command, runtime_root};
pub use leftovers::{Leftovers, found_in_files};
pub use newcomer::Newcomer;
pub use ports::ReservedPort;
pub use postgres::Postgres;
pub use recap::{HostRecap, Recap, plain};
pub use replay::{Replay, essence};
pub use repository::Repository;
pub use samples::{JobOptions, Loaded, Samples, cache_dir, demo_image};
pub use wait::{Seen, wait_for};

/// Makes aws-lc-rs the process's TLS provider; HTTP clients need one before they are built. Idempotent.
pub fn install_crypto_provider() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

/// Whether this is a run of the longer proofs (`make verify`).
pub fn is_verify() -> bool {
    std::env::var_os("PLEXUS_VERIFY").is_some()
}
