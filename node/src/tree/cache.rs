//! Manifests and chunks on disk, by digest.
//!
//! Nothing is synced: every chunk is checked against its name whenever it is read, and one that is gone or
//! damaged is asked for again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use plexus_proto::work::TreeManifest;
use prost::Message;

use super::{Digest, Error, Tree, disk, hex, manifest};

/// The cache of one node. Cheap to share; all methods block.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    /// Makes names of unfinished files unique.
    serial: AtomicU64,
}

impl Cache {
    /// Opens the cache in `dir`, which is made; unfinished files of an earlier life go.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let unfinished = dir.join("new");
        fs::remove_dir_all(&unfinished).ok();
        for path in [&unfinished, &dir.join("chunks"), &dir.join("trees")] {
            fs::create_dir_all(path).map_err(disk("make", path))?;
        }
        Ok(Self { dir: dir.to_owned(), serial: AtomicU64::new(0) })
    }

    /// The checked tree of this digest; `None` when its manifest is not here.
    ///
    /// # Errors
    /// The disk refuses, or the tree is refused.
    pub fn tree(&self, digest: &Digest) -> Result<Option<Tree>, Error> {
        let path = self.dir.join("trees").join(hex(digest));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk("read", &path)(error)),
        };
        if blake3::hash(&bytes).as_bytes() != digest {
            fs::remove_file(&path).ok();
            return Ok(None);
        }
        touch(&path);
        let manifest =
            TreeManifest::decode(bytes.as_slice()).map_err(|_| Error::Digest { what: "manifest" })?;
        Tree::check(manifest).map(Some)
    }

    /// Checks a manifest against the digest it was sent for, and keeps it.
    ///
    /// # Errors
    /// Another digest, a tree that is refused, or a disk that refuses.
    pub fn keep_tree(&self, digest: &Digest, manifest: TreeManifest) -> Result<Tree, Error> {
        let bytes = manifest.encode_to_vec();
        if blake3::hash(&bytes).as_bytes() != digest {
            return Err(Error::Digest { what: "manifest" });
        }
        let tree = Tree::check(manifest)?;
        self.keep(&self.dir.join("trees").join(hex(digest)), &bytes)?;
        Ok(tree)
    }

    /// Chunks of a tree that are not here.
    pub fn missing(&self, tree: &Tree) -> Vec<Digest> {
        tree.chunks().into_iter().filter(|digest| !self.chunk_path(digest).exists()).collect()
    }

    /// Checks a chunk against the digest it was sent for, and keeps it.
    ///
    /// # Errors
    /// Another digest, or a disk that refuses.
    pub fn keep_chunk(&self, digest: &Digest, data: &[u8]) -> Result<(), Error> {
        if data.len() as u64 > super::CHUNK_BYTES || blake3::hash(data).as_bytes() != digest {
            return Err(Error::Digest { what: "chunk" });
        }
        let path = self.chunk_path(digest);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(disk("make", parent))?;
        }
        self.keep(&path, data)
    }

    /// Reads a chunk. One that is damaged is deleted, so that it is missing from now on.
    ///
    /// # Errors
    /// [`Error::Missing`], or a disk that refuses.
    pub fn chunk(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.chunk_path(digest);
        match fs::read(&path) {
            Ok(data) if blake3::hash(&data).as_bytes() == digest => Ok(data),
            Ok(_) => {
                fs::remove_file(&path).ok();
                Err(Error::Missing(*digest))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::Missing(*digest)),
            Err(error) => Err(disk("read", &path)(error)),
        }
    }

    /// Deletes the trees used least recently, and all chunks that no kept tree needs, until the rest fits into
    /// `bytes`. Not to be called while a payload arrives: its chunks belong to no tree in use yet.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn trim(&self, bytes: u64) -> Result<(), Error> {
        let mut trees = Vec::new();
        let dir = self.dir.join("trees");
        for entry in fs::read_dir(&dir).map_err(disk("read", &dir))?.flatten() {
            let used =
                entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            trees.push((used, entry.path()));
        }
        trees.sort();
        let (mut kept, mut sum, mut full) = (std::collections::BTreeSet::new(), 0, false);
        for (_, path) in trees.into_iter().rev() {
            let tree = fs::read(&path)
                .ok()
                .and_then(|bytes| TreeManifest::decode(bytes.as_slice()).ok())
                .and_then(|manifest| Tree::check(manifest).ok());
            let Some(tree) = tree else {
                fs::remove_file(&path).ok();
                continue;
            };
            let fresh: Vec<_> = tree.chunks().into_iter().filter(|digest| !kept.contains(digest)).collect();
            sum += fresh.iter().map(|digest| length(&self.chunk_path(digest))).sum::<u64>();
            full = full || sum > bytes;
            if full {
                fs::remove_file(&path).map_err(disk("delete", &path))?;
            } else {
                kept.extend(fresh);
            }
        }
        for folder in fs::read_dir(self.dir.join("chunks")).into_iter().flatten().flatten() {
            for chunk in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let name = chunk.file_name();
                let digest =
                    name.to_str().and_then(super::unhex).and_then(|bytes| Digest::try_from(bytes).ok());
                if digest.is_none_or(|digest| !kept.contains(&digest)) {
                    fs::remove_file(chunk.path()).ok();
                }
            }
        }
        Ok(())
    }

    /// Writes beside, then moves in place: a name never stands for half a content.
    fn keep(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let fresh = self.dir.join("new").join(serial.to_string());
        fs::File::create(&fresh)
            .and_then(|mut file| file.write_all(content))
            .map_err(disk("write", &fresh))?;
        fs::rename(&fresh, path).map_err(disk("write", path))
    }

    fn chunk_path(&self, digest: &Digest) -> PathBuf {
        let name = hex(digest);
        self.dir.join("chunks").join(&name[..2]).join(name)
    }
}

/// The digest of a message, if it is one.
pub fn digest_of(bytes: &[u8]) -> Option<Digest> {
    Digest::try_from(bytes).ok()
}

/// The digest that names `manifest`.
pub fn name(manifest: &TreeManifest) -> Digest {
    manifest::digest(manifest)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn touch(path: &Path) {
    if let Ok(file) = fs::File::open(path) {
        file.set_modified(SystemTime::now()).ok();
    }
}
