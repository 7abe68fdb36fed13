//! The agent: runs work units where it is told to, and keeps every byte of them until a controller has it on disk.
//!
//! Read it in this order:
//!
//! * [`work`]: the life of a unit; pure.
//! * [`supervisor`]: owns all units, one task each; starts shims and finds them again.
//! * [`shim`]: the process per unit that owns worker, pipes and spool, and outlives the agent.
//! * [`spool`]: records on disk until they are acknowledged.
//! * [`runtime`]: containers and plain processes behind one trait.
//! * [`tree`], [`mod@private`]: the two blocks of a payload, one cached by content, one on tmpfs only.
//! * [`serve`]: the node's services on the mesh.
//! * [`crash`]: numbered points where tests kill agent or shim.
//! * [`Node`]: all of it, started and shut down.
//!
//! This crate knows nothing of jobs, templates or the controller's database. A node whose certificate says hop
//! runs no units at all: it forwards packets, which is the mesh's work.

pub mod capacity;
pub mod cgroup;
pub mod config;
pub mod crash;
pub mod door;
pub mod join;
pub mod kept;
pub mod private;
pub mod runtime;
pub mod serve;
pub mod shim;
pub mod spool;
pub mod store_id;
pub mod supervisor;
pub mod tree;
pub mod unit_dir;
pub mod work;

mod apart;
mod node;
#[cfg(test)]
mod testing;

pub use node::{Node, StartError};

/// Name and version, as shown to neighbours and controllers.
pub const SOFTWARE: &str = concat!("plexus-node ", env!("CARGO_PKG_VERSION"));
