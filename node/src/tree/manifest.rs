//! From a peer's manifest to a tree that is safe to lay out: pure.

use std::collections::BTreeSet;

use plexus_proto::work::{TreeEntry, TreeEntryKind, TreeManifest};
use prost::Message;

use super::{CHUNK_BYTES, Digest, Error};

/// Most entries of a tree: the kernel's sources, Ansible's collections and all, have fewer than a fifth.
pub const ENTRIES_MAX: usize = 500_000;
/// Most bytes of all files together.
pub const BYTES_MAX: u64 = 16 << 30;
/// Longest path, as the kernel takes it.
const PATH_MAX: usize = 4095;
/// Longest name in a path, as file systems take it.
const NAME_MAX: usize = 255;

/// A checked tree: every parent is a directory of the tree and stands before its children, no path leaves it,
/// none comes twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// In the order of the manifest.
    pub entries: Vec<Entry>,
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, '/' between plain names.
    pub path: String,
    /// Permission bits, without setuid, setgid and sticky.
    pub mode: u32,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file of these chunks.
    File {
        /// Bytes.
        size: u64,
        /// In order.
        chunks: Vec<Digest>,
    },
    /// A symlink; its target is not looked at, for nothing is ever written through it.
    Symlink(String),
    /// A directory.
    Directory,
}

/// The digest that names a manifest.
pub fn digest(manifest: &TreeManifest) -> Digest {
    *blake3::hash(&manifest.encode_to_vec()).as_bytes()
}

impl Tree {
    /// Checks a manifest.
    ///
    /// # Errors
    /// The first entry that is not safe, by name; or a tree that is too large.
    pub fn check(manifest: TreeManifest) -> Result<Self, Error> {
        if manifest.entries.len() > ENTRIES_MAX {
            return Err(Error::TooLarge { what: "entries", limit: ENTRIES_MAX as u64 });
        }
        let (mut seen, mut directories) = (BTreeSet::new(), BTreeSet::new());
        let mut bytes = 0_u64;
        let mut entries = Vec::with_capacity(manifest.entries.len());
        for entry in manifest.entries {
            let bad = |problem| Error::Entry { path: entry.path.chars().take(200).collect(), problem };
            check_path(&entry.path).map_err(bad)?;
            if let Some((parent, _)) = entry.path.rsplit_once('/')
                && !directories.contains(parent)
            {
                let problem = if seen.contains(parent) {
                    "lies below something that is no directory"
                } else {
                    "comes before its directory"
                };
                return Err(bad(problem));
            }
            if !seen.insert(entry.path.clone()) {
                return Err(bad("comes twice"));
            }
            let kind = check_kind(&entry).map_err(bad)?;
            match &kind {
                EntryKind::File { size, .. } => bytes = bytes.saturating_add(*size),
                EntryKind::Directory => drop(directories.insert(entry.path.clone())),
                EntryKind::Symlink(_) => {}
            }
            if bytes > BYTES_MAX {
                return Err(Error::TooLarge { what: "bytes", limit: BYTES_MAX });
            }
            entries.push(Entry { path: entry.path, mode: entry.mode & 0o777, kind });
        }
        Ok(Self { entries })
    }

    /// Every chunk the tree needs, once.
    pub fn chunks(&self) -> BTreeSet<Digest> {
        let files = self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File { chunks, .. } => Some(chunks),
            EntryKind::Symlink(_) | EntryKind::Directory => None,
        });
        files.flatten().copied().collect()
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("has no path");
    }
    if path.len() > PATH_MAX {
        return Err("has too long a path");
    }
    if path.contains('\0') {
        return Err("has a NUL in its path");
    }
    if path.starts_with('/') {
        return Err("has an absolute path");
    }
    for name in path.split('/') {
        match name {
            "" => return Err("has an empty name in its path"),
            "." | ".." => return Err("has '.' or '..' in its path"),
            _ if name.len() > NAME_MAX => return Err("has too long a name in its path"),
            _ => {}
        }
    }
    Ok(())
}

fn check_kind(entry: &TreeEntry) -> Result<EntryKind, &'static str> {
    match &entry.kind {
        Some(TreeEntryKind::File(file)) => {
            // So a size is only as large as the digests that stand for it: no petabyte out of a short manifest.
            if file.size.div_ceil(CHUNK_BYTES) != file.chunks.len() as u64 {
                return Err("has a size that does not fit its chunks");
            }
            let chunks = file.chunks.iter().map(|chunk| Digest::try_from(&chunk[..]));
            let chunks = chunks.collect::<Result<_, _>>().map_err(|_| "has a chunk without a digest")?;
            Ok(EntryKind::File { size: file.size, chunks })
        }
        Some(TreeEntryKind::Symlink(target)) => {
            if target.is_empty() || target.len() > PATH_MAX || target.contains('\0') {
                return Err("is a symlink to nothing that can be a path");
            }
            Ok(EntryKind::Symlink(target.clone()))
        }
        Some(TreeEntryKind::Directory(_)) => Ok(EntryKind::Directory),
        None => Err("is neither file, symlink nor directory"),
    }
}
