//! From a peer's manifest to a tree that is safe to lay out: pure.

use std::collections::{BTreeSet, HashMap};

use plexus_proto::work::{TreeEntry, TreeEntryKind};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::{CHUNK_BYTES, Digest, Error};

/// Most entries of a tree: the kernel's sources, Ansible's collections and all, have fewer than a fifth.
pub const ENTRIES_MAX: usize = 500_000;
/// Most bytes of all files together.
pub const BYTES_MAX: u64 = 16 << 30;
/// Most bytes of an encoded manifest: [`ENTRIES_MAX`] entries of usual length, twice over.
pub const MANIFEST_MAX: u64 = 128 << 20;
/// Longest path, as the kernel takes it.
const PATH_MAX: usize = 4095;
/// Longest name in a path, as file systems take it.
const NAME_MAX: usize = 255;

/// A checked tree: every parent is a directory of the tree and stands before its children, no path leaves it,
/// none comes twice, and no symlink has a name that differs from another only in case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// BLAKE3 of the encoded manifest: the tree's name.
    pub digest: Digest,
    /// In the order of the manifest.
    pub entries: Vec<Entry>,
    /// Every chunk once, in the order in which the manifest names them first.
    pub chunks: Vec<Chunk>,
}

/// A chunk of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// BLAKE3 of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub length: u32,
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
        /// In order; places in [`Tree::chunks`].
        chunks: Vec<u32>,
    },
    /// A symlink; its target is not looked at, for nothing is ever written through it.
    Symlink(String),
    /// A directory.
    Directory,
}

/// The digest that names an encoded manifest.
pub fn digest(manifest: &[u8]) -> Digest {
    *blake3::hash(manifest).as_bytes()
}

impl Tree {
    /// Reads and checks an encoded manifest, entry by entry: one that claims millions costs no memory for them.
    ///
    /// # Errors
    /// The first entry that is not safe, by name; or a tree that is too large.
    pub fn read(manifest: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader { tree: Self::named(digest(manifest)), ..Reader::default() };
        let broken = |_| Error::Encoding;
        let mut rest = manifest;
        while !rest.is_empty() {
            match decode_key(&mut rest).map_err(broken)? {
                (1, WireType::LengthDelimited) => {
                    let length = usize::try_from(decode_varint(&mut rest).map_err(broken)?);
                    let length = length.ok().filter(|&length| length <= rest.len()).ok_or(Error::Encoding)?;
                    let (entry, after) = rest.split_at(length);
                    reader.add(TreeEntry::decode(entry).map_err(broken)?)?;
                    rest = after;
                }
                // A newer controller's word.
                (tag, wire) => skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(broken)?,
            }
        }
        Ok(reader.tree)
    }

    fn named(digest: Digest) -> Self {
        Self { digest, entries: Vec::new(), chunks: Vec::new() }
    }

    /// Bytes of all distinct chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.length)).sum()
    }
}

#[derive(Default)]
struct Reader {
    tree: Tree,
    directories: BTreeSet<String>,
    seen: BTreeSet<String>,
    /// By path in lower case: whether one of that spelling is a symlink.
    spellings: HashMap<String, bool>,
    places: HashMap<Digest, u32>,
    bytes: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self::named([0; 32])
    }
}

impl Reader {
    fn add(&mut self, entry: TreeEntry) -> Result<(), Error> {
        if self.tree.entries.len() >= ENTRIES_MAX {
            return Err(Error::TooLarge { what: "entries", limit: ENTRIES_MAX as u64 });
        }
        let TreeEntry { path, mode, kind } = entry;
        let bad = |problem| Error::Entry { path: path.chars().take(200).collect(), problem };
        check_path(&path).map_err(bad)?;
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.directories.contains(parent)
        {
            let problem = if self.seen.contains(parent) {
                "lies below something that is no directory"
            } else {
                "comes before its directory"
            };
            return Err(bad(problem));
        }
        if !self.seen.insert(path.clone()) {
            return Err(bad("comes twice"));
        }
        // Where case does not count, writing to one name would go through the link of the other.
        let is_link = matches!(kind, Some(TreeEntryKind::Symlink(_)));
        match self.spellings.entry(path.to_lowercase()) {
            std::collections::hash_map::Entry::Occupied(mut other) => {
                if is_link || *other.get() {
                    return Err(bad("differs only in case from another name, and one of them is a symlink"));
                }
                other.insert(is_link);
            }
            std::collections::hash_map::Entry::Vacant(free) => drop(free.insert(is_link)),
        }
        let kind = match kind {
            Some(TreeEntryKind::File(file)) => {
                let chunks = self.file(file.size, &file.chunks).map_err(bad)?;
                self.bytes = self.bytes.saturating_add(file.size);
                if self.bytes > BYTES_MAX {
                    return Err(Error::TooLarge { what: "bytes", limit: BYTES_MAX });
                }
                EntryKind::File { size: file.size, chunks }
            }
            Some(TreeEntryKind::Symlink(target)) => {
                if target.is_empty() || target.len() > PATH_MAX || target.contains('\0') {
                    return Err(bad("is a symlink to nothing that can be a path"));
                }
                EntryKind::Symlink(target)
            }
            Some(TreeEntryKind::Directory(_)) => {
                self.directories.insert(path.clone());
                EntryKind::Directory
            }
            None => return Err(bad("is neither file, symlink nor directory")),
        };
        self.tree.entries.push(Entry { path, mode: mode & 0o777, kind });
        Ok(())
    }

    fn file(&mut self, size: u64, chunks: &[prost::bytes::Bytes]) -> Result<Vec<u32>, &'static str> {
        // So a size is only as large as the digests that stand for it: no petabyte out of a short manifest.
        if size.div_ceil(CHUNK_BYTES) != chunks.len() as u64 {
            return Err("has a size that does not fit its chunks");
        }
        let mut places = Vec::with_capacity(chunks.len());
        let mut left = size;
        for chunk in chunks {
            let digest = Digest::try_from(&chunk[..]).map_err(|_| "has a chunk without a digest")?;
            let length = left.min(CHUNK_BYTES);
            left -= length;
            let length = u32::try_from(length).expect("a chunk has at most 1 MiB");
            let next = u32::try_from(self.tree.chunks.len()).map_err(|_| "has too many chunks")?;
            let place = *self.places.entry(digest).or_insert(next);
            if place == next {
                self.tree.chunks.push(Chunk { digest, length });
            } else if self.tree.chunks[place as usize].length != length {
                return Err("has a chunk that has another length elsewhere");
            }
            places.push(place);
        }
        Ok(places)
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
