//! Project trees: kept by content, laid out as writable working copies.
//!
//! A tree is a manifest (paths, modes, symlinks, digests of chunks), named by the BLAKE3 digest of its encoding.
//! Manifests come from a peer, so [`plexus_tree::manifest`] refuses whatever could write outside the copy before a byte of it
//! is on disk. [`cache`] keeps whole trees between units, read-only; [`filling`] makes a new one out of chunks that
//! come and files that are there; [`working`] gives each unit a tree of its own over it.

pub mod cache;
pub mod filling;
pub mod working;

pub use cache::Cache;
pub use filling::Filling;
pub use plexus_tree::manifest::{self, Manifest};
pub use plexus_tree::store::Error;
pub use plexus_tree::{CHUNK as CHUNK_BYTES, Digest};

#[cfg(test)]
mod tests;
