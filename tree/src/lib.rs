//! Directories by content: a manifest of entries, files as BLAKE3 chunks.
//!
//! [`Tree`] is one that can be sent: read from a directory ([`Trees`]), or out of a [`Store`] that keeps manifests and
//! chunks by their digests. Both ends of the mesh use this: a controller sends projects and takes in what an update
//! fetched, a node sends what it fetched. Knows files and messages; nobody's database, no streams.

pub mod due;
pub mod manifest;
pub mod store;
pub mod tree;

pub use due::Due;
pub use manifest::Manifest;
pub use store::Store;
pub use tree::{CHUNK, Digest, Error, MAX_ENTRIES, Tree, Trees};
