//! From a peer's manifest to a tree that is safe to lay out: pure. Nodes lay out what a controller sent, controllers keep what a
//! node sent; both read it here.

use std::collections::{BTreeSet, HashMap};

use plexus_proto::work::{TreeEntry, TreeEntryKind};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::tree::{CHUNK, Digest, MAX_ENTRIES};

/// Most bytes of all files together.
pub const BYTES_MAX: u64 = 16 << 30;
/// Most bytes of an encoded manifest: [`MAX_ENTRIES`] entries of usual length, twice over.
pub const MANIFEST_MAX: u64 = 128 << 20;
/// Longest path, as the kernel takes it.
const PATH_MAX: usize = 4095;
/// Longest name in a path, as file systems take it.
const NAME_MAX: usize = 255;

/// Bytes that are no manifest of a tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the encoding.
    #[error("manifest does not decode")]
    Encoding,
    /// Hostile or mistaken.
    #[error("tree entry {path:?} {problem}")]
    Entry {
        /// Its path as sent, cut to 200 characters.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Beyond what is kept.
    #[error("tree has more than {limit} {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// A checked tree: every parent is a directory of the tree and stands before its children, no path leaves it,
/// none comes twice, and no symlink has a name that differs from another only in case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
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
        /// In order; places in [`Manifest::chunks`].
        chunks: Vec<u32>,
    },
    /// A symlink; its target is not looked at, for nothing is ever written through it.
    Symlink(String),
    /// A directory.
    Directory,
}

/// One file of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File<'m> {
    /// Relative, '/' between plain names.
    pub path: &'m str,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// In order; places in [`Manifest::chunks`].
    pub chunks: &'m [u32],
}

/// The digest that names an encoded manifest.
pub fn digest(manifest: &[u8]) -> Digest {
    *blake3::hash(manifest).as_bytes()
}

impl Manifest {
    /// Reads and checks an encoded manifest, entry by entry: one that claims millions costs no memory for them.
    ///
    /// # Errors
    /// The first entry that is not safe, by name; or a tree that is too large.
    pub fn read(manifest: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader { manifest: Self::named(digest(manifest)), ..Reader::default() };
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
                // A newer peer's word.
                (tag, wire) => skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(broken)?,
            }
        }
        Ok(reader.manifest)
    }

    fn named(digest: Digest) -> Self {
        Self { digest, entries: Vec::new(), chunks: Vec::new() }
    }

    /// Its files, in order.
    pub fn files(&self) -> impl Iterator<Item = File<'_>> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::File { size, chunks } => {
                Some(File { path: &entry.path, mode: entry.mode, size: *size, chunks })
            }
            EntryKind::Symlink(_) | EntryKind::Directory => None,
        })
    }

    /// Bytes of all distinct chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.length)).sum()
    }
}

#[derive(Default)]
struct Reader {
    manifest: Manifest,
    directories: BTreeSet<String>,
    seen: BTreeSet<String>,
    /// By path in lower case: whether one of that spelling is a symlink.
    spellings: HashMap<String, bool>,
    places: HashMap<Digest, u32>,
    bytes: u64,
}

impl Default for Manifest {
    fn default() -> Self {
        Self::named([0; 32])
    }
}

impl Reader {
    fn add(&mut self, entry: TreeEntry) -> Result<(), Error> {
        if self.manifest.entries.len() >= MAX_ENTRIES {
            return Err(Error::TooLarge { what: "entries", limit: MAX_ENTRIES as u64 });
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
        self.manifest.entries.push(Entry { path, mode: mode & 0o777, kind });
        Ok(())
    }

    fn file(&mut self, size: u64, chunks: &[prost::bytes::Bytes]) -> Result<Vec<u32>, &'static str> {
        // So a size is only as large as the digests that stand for it: no petabyte out of a short manifest.
        if size.div_ceil(CHUNK) != chunks.len() as u64 {
            return Err("has a size that does not fit its chunks");
        }
        let mut places = Vec::with_capacity(chunks.len());
        let mut left = size;
        for chunk in chunks {
            let digest = Digest::try_from(&chunk[..]).map_err(|_| "has a chunk without a digest")?;
            let length = left.min(CHUNK);
            left -= length;
            let length = u32::try_from(length).expect("a chunk has at most 1 MiB");
            let next = u32::try_from(self.manifest.chunks.len()).map_err(|_| "has too many chunks")?;
            let place = *self.places.entry(digest).or_insert(next);
            if place == next {
                self.manifest.chunks.push(Chunk { digest, length });
            } else if self.manifest.chunks[place as usize].length != length {
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

#[cfg(test)]
mod tests {
    use plexus_proto::work::{FileContent, TreeManifest};

    use super::*;

    fn file(path: &str, size: u64, chunks: &[u8]) -> TreeEntry {
        let chunks = chunks.iter().map(|&byte| vec![byte; 32].into()).collect();
        let kind = Some(TreeEntryKind::File(FileContent { size, chunks }));
        TreeEntry { path: path.to_owned(), mode: 0o644, kind }
    }

    fn read(entries: &[TreeEntry]) -> Result<Manifest, String> {
        let bytes = TreeManifest { entries: entries.to_vec() }.encode_to_vec();
        Manifest::read(&bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn chunks_are_numbered_as_they_come_first() {
        let manifest = read(&[file("a", 3, &[1]), file("b", CHUNK + 3, &[2, 1])]).unwrap();
        assert_eq!(manifest.chunks.iter().map(|chunk| chunk.length).collect::<Vec<_>>(), [3, CHUNK as u32]);
        assert_eq!(manifest.files().nth(1).unwrap().chunks, [1, 0]);
        assert_eq!(manifest.files().map(|file| file.size).sum::<u64>(), CHUNK + 6);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        for (bad, words) in [
            (vec![file("../a", 0, &[])], "'..'"),
            (vec![file("/a", 0, &[])], "absolute path"),
            (vec![file("a", 0, &[]), file("a", 0, &[])], "twice"),
            (vec![file("a", 2 * CHUNK, &[1])], "does not fit"),
            (vec![file("a", 1, &[1]), file("b", 2, &[1])], "another length"),
        ] {
            let error = read(&bad).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(Manifest::read(&[10, 200, 1]), Err(Error::Encoding)));
    }
}
