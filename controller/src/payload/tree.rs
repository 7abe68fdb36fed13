//! The project tree, by content: see [`plexus_tree`].

pub use plexus_tree::{CHUNK, Digest, Error, MAX_ENTRIES, Tree, Trees};
