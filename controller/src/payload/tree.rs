//! The project tree by content: a manifest of entries, files as BLAKE3 chunks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use plexus_proto::work::{Directory, FileContent, TreeEntry, TreeEntryKind, TreeManifest, TreeRef};
use prost::Message;

/// Bytes of a chunk; the last of a file may be shorter. Fixed by the protocol.
pub const CHUNK: u64 = 1024 * 1024;
/// Most entries of a tree. A manifest of that many is about 100 MB, within one frame.
pub const MAX_ENTRIES: usize = 500_000;

/// BLAKE3 of a chunk or of an encoded manifest.
pub type Digest = [u8; 32];

/// A tree that cannot be read or sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or something in it cannot be read.
    #[error("cannot read {path:?} of the project")]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that is not UTF-8 cannot be told to the node.
    #[error("the project has a file whose name is not UTF-8: {0:?}")]
    Name(PathBuf),
    /// Too many entries.
    #[error("the project has more than {MAX_ENTRIES} files and directories")]
    TooMany,
    /// The file is no longer what was hashed.
    #[error("{0:?} of the project changed while it was being sent")]
    Changed(PathBuf),
    /// The node asked for a chunk that is not part of the tree.
    #[error("node asked for a chunk that the project does not have")]
    Unknown,
}

#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    offset: u64,
    length: u64,
}

/// A project tree, read once: its manifest, and where each chunk lies.
#[derive(Debug)]
pub struct Tree {
    manifest: TreeManifest,
    reference: TreeRef,
    chunks: HashMap<Digest, Source>,
}

impl Tree {
    /// Reads and hashes everything below `root`. Blocks; call it off the runtime.
    ///
    /// Sockets, devices and FIFOs are left out. Symbolic links stay links, wherever they point: the node
    /// never follows one while it lays out the tree.
    ///
    /// # Errors
    /// The first thing that cannot be read, a name that is not UTF-8, or too many entries.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let mut tree =
            Self { manifest: TreeManifest::default(), reference: TreeRef::default(), chunks: HashMap::new() };
        tree.add_directory(root, "")?;
        tree.manifest.entries.sort_by(|a, b| a.path.cmp(&b.path));
        let encoded = tree.manifest.encode_to_vec();
        tree.reference = TreeRef {
            digest: Bytes::copy_from_slice(blake3::hash(&encoded).as_bytes()),
            size: encoded.len() as u64,
        };
        Ok(tree)
    }

    /// What the node is told in `Submit`.
    pub fn reference(&self) -> TreeRef {
        self.reference.clone()
    }

    /// The manifest, for a node that lacks it.
    pub fn manifest(&self) -> &TreeManifest {
        &self.manifest
    }

    /// Reads one chunk again and checks that it is still what was hashed. Blocks.
    ///
    /// # Errors
    /// [`Error::Changed`] when the file was written since, [`Error::Unknown`] for a foreign digest.
    pub fn chunk(&self, digest: &[u8]) -> Result<Vec<u8>, Error> {
        let digest: Digest = digest.try_into().map_err(|_| Error::Unknown)?;
        let source = self.chunks.get(&digest).ok_or(Error::Unknown)?;
        let mut data = Vec::with_capacity(usize::try_from(source.length).unwrap_or(0));
        let read = File::open(&source.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(source.offset))?;
            file.take(source.length).read_to_end(&mut data)
        });
        read.map_err(|error| Error::Read { path: source.path.clone(), source: error })?;
        if *blake3::hash(&data).as_bytes() != digest {
            return Err(Error::Changed(source.path.clone()));
        }
        Ok(data)
    }

    fn add_directory(&mut self, directory: &Path, prefix: &str) -> Result<(), Error> {
        let failed = |source| Error::Read { path: directory.to_owned(), source };
        for item in fs::read_dir(directory).map_err(failed)? {
            let item = item.map_err(failed)?;
            if self.manifest.entries.len() >= MAX_ENTRIES {
                return Err(Error::TooMany);
            }
            let path = item.path();
            let name = item.file_name().into_string().map_err(|_| Error::Name(path.clone()))?;
            let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            self.add(&path, &relative)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, relative: &str) -> Result<(), Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        let kind = if meta.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            let target = target.into_os_string().into_string().map_err(|_| Error::Name(path.to_owned()))?;
            TreeEntryKind::Symlink(target)
        } else if meta.is_dir() {
            TreeEntryKind::Directory(Directory {})
        } else if meta.is_file() {
            TreeEntryKind::File(self.hash(path, meta.size())?)
        } else {
            return Ok(());
        };
        let mode = meta.permissions().mode() & 0o777;
        self.manifest.entries.push(TreeEntry { path: relative.to_owned(), mode, kind: Some(kind) });
        if meta.is_dir() {
            self.add_directory(path, relative)?;
        }
        Ok(())
    }

    fn hash(&mut self, path: &Path, size: u64) -> Result<FileContent, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut content = FileContent::default();
        let mut buffer = Vec::with_capacity(usize::try_from(size.min(CHUNK)).unwrap_or(0));
        loop {
            buffer.clear();
            (&mut file).take(CHUNK).read_to_end(&mut buffer).map_err(failed)?;
            if buffer.is_empty() {
                return Ok(content);
            }
            let digest = *blake3::hash(&buffer).as_bytes();
            let length = buffer.len() as u64;
            self.chunks.entry(digest).or_insert_with(|| Source {
                path: path.to_owned(),
                offset: content.size,
                length,
            });
            content.chunks.push(Bytes::copy_from_slice(&digest));
            content.size += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_content_has_the_same_digest_wherever_it_lies() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [a.path(), b.path()] {
            fs::create_dir(root.join("roles")).unwrap();
            fs::write(root.join("roles/main.yml"), "x").unwrap();
            fs::write(root.join("site.yml"), vec![7; 2 * CHUNK as usize + 5]).unwrap();
            std::os::unix::fs::symlink("site.yml", root.join("link")).unwrap();
        }
        let (a, b) = (Tree::read(a.path()).unwrap(), Tree::read(b.path()).unwrap());
        assert_eq!(a.reference(), b.reference());
        let paths: Vec<_> = a.manifest().entries.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["link", "roles", "roles/main.yml", "site.yml"]);
        let Some(TreeEntryKind::File(site)) = &a.manifest().entries[3].kind else { panic!("a file") };
        assert_eq!((site.size, site.chunks.len()), (2 * CHUNK + 5, 3));
        assert_eq!(a.chunk(&site.chunks[2]).unwrap(), [7; 5]);
    }

    #[test]
    fn a_file_that_changed_is_not_sent() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("site.yml"), "one").unwrap();
        let tree = Tree::read(root.path()).unwrap();
        fs::write(root.path().join("site.yml"), "two").unwrap();
        let digest = blake3::hash(b"one");
        assert!(matches!(tree.chunk(digest.as_bytes()), Err(Error::Changed(_))));
        assert!(matches!(tree.chunk(b"short"), Err(Error::Unknown)));
    }
}
