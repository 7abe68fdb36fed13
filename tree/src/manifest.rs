//! A manifest that a peer sent, checked: pure.

use std::collections::{BTreeSet, HashMap};

use plexus_proto::work::{TreeEntry, TreeEntryKind};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::tree::{CHUNK, Digest, MAX_ENTRIES};

/// Most bytes of an encoded manifest, as nodes take it.
pub const MANIFEST_MAX: u64 = 128 << 20;
/// Most bytes of all files together, as nodes take it.
pub const BYTES_MAX: u64 = 16 << 30;
/// Longest path, as the kernel takes it.
const PATH_MAX: usize = 4095;

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

/// A chunk of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// BLAKE3 of its bytes.
    pub digest: Digest,
    /// Bytes.
    pub length: u32,
}

/// What a manifest says, as far as it is needed to keep a tree: its files and its chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Every chunk once, in the order in which the manifest names them first.
    pub chunks: Vec<Chunk>,
    /// Files in the order of the manifest.
    pub files: Vec<File>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative, '/' between plain names.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// In order; places in [`Manifest::chunks`].
    pub chunks: Vec<u32>,
}

impl Manifest {
    /// Reads an encoded manifest, entry by entry: one that claims millions costs no memory for them. Paths stay inside the
    /// tree, and sizes fit their chunks.
    ///
    /// # Errors
    /// The first entry that is not right, by name; or a tree that is too large.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let broken = |_| Error::Encoding;
        let mut manifest = Self::default();
        let (mut places, mut seen, mut count) = (HashMap::new(), BTreeSet::new(), 0_usize);
        let mut rest = bytes;
        while !rest.is_empty() {
            match decode_key(&mut rest).map_err(broken)? {
                (1, WireType::LengthDelimited) => {
                    let length = usize::try_from(decode_varint(&mut rest).map_err(broken)?);
                    let length = length.ok().filter(|&length| length <= rest.len()).ok_or(Error::Encoding)?;
                    let (entry, after) = rest.split_at(length);
                    count += 1;
                    if count > MAX_ENTRIES {
                        return Err(Error::TooLarge { what: "entries", limit: MAX_ENTRIES as u64 });
                    }
                    let entry = TreeEntry::decode(entry).map_err(broken)?;
                    check_path(&entry.path).map_err(|problem| at(&entry.path, problem))?;
                    if !seen.insert(entry.path.clone()) {
                        return Err(at(&entry.path, "comes twice"));
                    }
                    if let Some(TreeEntryKind::File(_)) = &entry.kind {
                        manifest.add(entry, &mut places)?;
                    }
                    rest = after;
                }
                // A newer word.
                (tag, wire) => skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(broken)?,
            }
        }
        Ok(manifest)
    }

    fn add(&mut self, entry: TreeEntry, places: &mut HashMap<Digest, u32>) -> Result<(), Error> {
        let TreeEntry { path, mode, kind } = entry;
        let Some(TreeEntryKind::File(content)) = kind else { return Ok(()) };
        if content.size.div_ceil(CHUNK) != content.chunks.len() as u64 {
            return Err(at(&path, "has a size that does not fit its chunks"));
        }
        self.bytes = self.bytes.saturating_add(content.size);
        if self.bytes > BYTES_MAX {
            return Err(Error::TooLarge { what: "bytes", limit: BYTES_MAX });
        }
        let mut own = Vec::with_capacity(content.chunks.len());
        let mut left = content.size;
        for chunk in &content.chunks {
            let digest =
                Digest::try_from(&chunk[..]).map_err(|_| at(&path, "has a chunk without a digest"))?;
            let length = u32::try_from(left.min(CHUNK)).expect("a chunk has at most 1 MiB");
            left -= u64::from(length);
            let next = u32::try_from(self.chunks.len()).map_err(|_| at(&path, "has too many chunks"))?;
            let place = *places.entry(digest).or_insert(next);
            if place == next {
                self.chunks.push(Chunk { digest, length });
            } else if self.chunks[place as usize].length != length {
                return Err(at(&path, "has a chunk that has another length elsewhere"));
            }
            own.push(place);
        }
        self.files.push(File { path, mode: mode & 0o777, size: content.size, chunks: own });
        Ok(())
    }
}

fn at(path: &str, problem: &'static str) -> Error {
    Error::Entry { path: path.chars().take(200).collect(), problem }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > PATH_MAX || path.contains('\0') {
        return Err("has a path of no bytes, of too many, or with a NUL");
    }
    match path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        true => Err("has an empty name, '.' or '..' in its path"),
        false => Ok(()),
    }
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
        assert_eq!(manifest.files[1].chunks, [1, 0]);
        assert_eq!(manifest.bytes, CHUNK + 6);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        for (bad, words) in [
            (vec![file("../a", 0, &[])], "'..'"),
            (vec![file("/a", 0, &[])], "empty name"),
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
