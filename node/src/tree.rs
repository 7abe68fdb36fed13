//! Project trees: kept by content, laid out as writable working copies.
//!
//! A tree is a manifest (paths, modes, symlinks, digests of chunks), named by the BLAKE3 digest of its encoding.
//! Manifests come from a peer, so [`plexus_tree::manifest`] refuses whatever could write outside the copy before a byte of it
//! is on disk. [`cache`] keeps whole trees between units, read-only; [`filling`] makes a new one out of chunks that
//! come and files that are there; [`working`] gives each unit a tree of its own over it.

pub mod cache;
pub mod filling;
pub mod working;

use std::io;
use std::path::{Path, PathBuf};

pub use cache::Cache;
pub use filling::Filling;
pub use plexus_tree::manifest::{self, Manifest};
pub use plexus_tree::{CHUNK as CHUNK_BYTES, Digest};

/// A tree that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What came is no manifest.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// Not the bytes that were named.
    #[error("{what} does not have the digest it was sent for")]
    Digest {
        /// Chunk or manifest.
        what: &'static str,
    },
    /// The peer sent something else than the chunks that were asked for.
    #[error("chunks came that were not asked for, or do not decompress")]
    Batch,
    /// The file system refused.
    #[error("cannot {what} {}", path.display())]
    Disk {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { what, path, source }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests;
