//! Trees on disk, by digest: manifests and chunks, each in a file that is named by its content.
//!
//! ```text
//! manifests/<digest>        as it came
//! chunks/<ab>/<digest>      its bytes
//! ```
//!
//! What trees have in common is there once. A manifest is written last, after everything it names was synced, so one that
//! is there stands for a whole tree. All methods block.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use plexus_proto::work::ChunkBatch;

use crate::due::{self, Due};
use crate::manifest::{self, Manifest};
use crate::tree::{Digest, Tree};

/// A tree that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What came is no manifest.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// Not the bytes that were named.
    #[error("manifest does not have the digest it was sent for")]
    Digest,
    /// Something else than the chunks that were asked for.
    #[error(transparent)]
    Chunk(#[from] due::Error),
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

impl Error {
    /// It is the disk here, not what was sent.
    pub fn is_disk(&self) -> bool {
        matches!(self, Self::Disk { .. })
    }
}

/// The file system refused to do this to that file.
pub fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { what, path, source }
}

/// Where a chunk lies below the directory of chunks.
pub(crate) fn chunk_path(dir: &Path, digest: &Digest) -> PathBuf {
    let name = hex(digest);
    dir.join(&name[..2]).join(name)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads what [`hex`] wrote of a digest.
pub fn unhex(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if text.len() != 2 * digest.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

/// The trees of one controller.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

/// A tree that is still coming.
#[derive(Debug)]
pub struct Filling {
    digest: Digest,
    bytes: Bytes,
    manifest: Manifest,
    due: Due,
}

impl Store {
    /// Opens the store in `dir`, which is made.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        for path in [dir.join("manifests"), dir.join("chunks")] {
            fs::create_dir_all(&path).map_err(disk("make", &path))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn chunks(&self) -> PathBuf {
        self.dir.join("chunks")
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("manifests").join(hex(digest))
    }

    /// A whole tree, to be sent; `None` when it is not here.
    ///
    /// # Errors
    /// The disk refuses, or what is there is not what its name says.
    pub fn tree(&self, digest: &Digest) -> Result<Option<Tree>, Error> {
        Ok(self.read(digest)?.map(|(bytes, manifest)| Tree::stored(self.chunks(), bytes, &manifest)))
    }

    /// What a whole tree holds; `None` when it is not here.
    ///
    /// # Errors
    /// As [`Store::tree`].
    pub fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, Error> {
        Ok(self.read(digest)?.map(|(_, manifest)| manifest))
    }

    fn read(&self, digest: &Digest) -> Result<Option<(Bytes, Manifest)>, Error> {
        let path = self.manifest_path(digest);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => Bytes::from(read.map_err(disk("read", &path))?),
        };
        if blake3::hash(&bytes).as_bytes() != digest {
            return Err(Error::Digest);
        }
        let manifest = Manifest::read(&bytes)?;
        Ok(Some((bytes, manifest)))
    }

    /// The beginning of a file of a tree that [`Store::manifest`] gave: its first chunk, 1 MiB at most.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn beginning(&self, manifest: &Manifest, file: manifest::File<'_>) -> Result<Vec<u8>, Error> {
        let Some(chunk) = file.chunks.first().and_then(|&place| manifest.chunks.get(place as usize)) else {
            return Ok(Vec::new());
        };
        let path = chunk_path(&self.chunks(), &chunk.digest);
        fs::read(&path).map_err(disk("read", &path))
    }

    /// Begins to take in the tree that `digest` names. Chunks that are here already must not come again; their times of
    /// change are set to now, so that [`Store::sweep`] leaves them alone meanwhile.
    ///
    /// # Errors
    /// Another digest, bytes that are no manifest, or a disk that refuses.
    pub fn begin(&self, digest: &Digest, bytes: Vec<u8>) -> Result<Filling, Error> {
        if blake3::hash(&bytes).as_bytes() != digest {
            return Err(Error::Digest);
        }
        let manifest = Manifest::read(&bytes)?;
        let (dir, now) = (self.chunks(), SystemTime::now());
        let is_here = |chunk: &manifest::Chunk| {
            let here = File::options().append(true).open(chunk_path(&dir, &chunk.digest));
            here.is_ok_and(|file| {
                file.metadata().is_ok_and(|meta| meta.len() == u64::from(chunk.length))
                    && file.set_modified(now).is_ok()
            })
        };
        let missing =
            (0..).zip(&manifest.chunks).filter(|(_, chunk)| !is_here(chunk)).map(|(place, _)| place);
        let due = Due::new(missing.collect());
        Ok(Filling { digest: *digest, bytes: bytes.into(), manifest, due })
    }

    /// Checks the next chunks and writes them.
    ///
    /// # Errors
    /// Something else than the chunks that are due, or a disk that refuses.
    pub fn take(&self, filling: &mut Filling, batch: &ChunkBatch) -> Result<(), Error> {
        let dir = self.chunks();
        filling.due.take(&filling.manifest.chunks, batch, |_, chunk, bytes| {
            write(&chunk_path(&dir, &chunk.digest), bytes)
        })
    }

    /// Keeps a tree that is whole. What it names is on the disk when this returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn keep(&self, filling: &Filling) -> Result<(), Error> {
        let sync = || File::open(&self.dir).and_then(|dir| rustix::fs::syncfs(&dir).map_err(Into::into));
        // All chunks in one go: a sync for each of ten thousand small files would take minutes on a slow disk.
        sync().map_err(disk("sync", &self.dir))?;
        write(&self.manifest_path(&filling.digest), &filling.bytes)?;
        sync().map_err(disk("sync", &self.dir))
    }

    /// Removes trees that are not `wanted`, then chunks that no tree names any more; nothing that was touched within
    /// `grace`: it may belong to a tree that is still coming. Gives the number of trees that went.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sweep(&self, wanted: &HashSet<Digest>, grace: Duration) -> Result<usize, Error> {
        let is_old = |path: &Path| {
            let touched = fs::metadata(path).and_then(|meta| meta.modified());
            touched.is_ok_and(|touched| touched.elapsed().is_ok_and(|age| age >= grace))
        };
        let mut gone = 0;
        let mut named = HashSet::new();
        for path in entries(&self.dir.join("manifests"))? {
            let digest = path.file_name().and_then(|name| name.to_str()).and_then(unhex);
            let is_wanted = digest.is_some_and(|digest| wanted.contains(&digest));
            if !is_wanted && is_old(&path) {
                fs::remove_file(&path).map_err(disk("remove", &path))?;
                gone += 1;
            } else if let Some(digest) = digest
                && let Some(manifest) = self.manifest(&digest)?
            {
                named.extend(manifest.chunks.iter().map(|chunk| chunk.digest));
            }
        }
        for below in entries(&self.chunks())? {
            for path in entries(&below)? {
                let digest = path.file_name().and_then(|name| name.to_str()).and_then(unhex);
                if !digest.is_some_and(|digest| named.contains(&digest)) && is_old(&path) {
                    fs::remove_file(&path).map_err(disk("remove", &path))?;
                }
            }
        }
        Ok(gone)
    }
}

impl Filling {
    /// What must come.
    pub fn due(&self) -> &Due {
        &self.due
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    read.map_err(disk("read", dir))
}

/// Writes a file whole or not at all, as far as other processes see.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(disk("make", parent))?;
    let fresh = path.with_extension("new");
    File::create(&fresh).and_then(|mut file| file.write_all(bytes)).map_err(disk("write", &fresh))?;
    fs::rename(&fresh, path).map_err(disk("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("roles")).unwrap();
        fs::write(dir.path().join("site.yml"), "- hosts: all\n").unwrap();
        fs::write(dir.path().join("roles/large"), vec![7; 3 << 20]).unwrap();
        let tree = Tree::read(dir.path()).unwrap();
        (dir, tree)
    }

    fn digest(tree: &Tree) -> Digest {
        Digest::try_from(&tree.reference().digest[..]).unwrap()
    }

    fn copy(from: &Tree, to: &Store) -> Vec<u32> {
        let mut filling = to.begin(&digest(from), from.manifest().to_vec()).unwrap();
        let need = filling.due().need();
        let mut batches = Vec::new();
        from.chunks(&need, |batch| {
            batches.push(batch);
            true
        })
        .unwrap();
        for batch in &batches {
            to.take(&mut filling, batch).unwrap();
        }
        assert!(filling.due().is_whole());
        to.keep(&filling).unwrap();
        need
    }

    #[test]
    fn a_tree_goes_in_and_comes_out_the_same_and_what_is_here_does_not_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (files, tree) = source();
        assert!(store.tree(&digest(&tree)).unwrap().is_none());
        assert_eq!(copy(&tree, &store), [0, 2], "one chunk three times, and a small one");
        let stored = store.tree(&digest(&tree)).unwrap().unwrap();
        assert_eq!(stored.reference(), tree.reference());
        let other = tempfile::tempdir().unwrap();
        assert_eq!(copy(&stored, &Store::open(other.path()).unwrap()), [0, 2]);
        fs::write(files.path().join("more.yml"), "more").unwrap();
        let next = Tree::read(files.path()).unwrap();
        assert_eq!(copy(&next, &store).len(), 2, "only what is new");
        let manifest = store.manifest(&digest(&next)).unwrap().unwrap();
        let site = manifest.files().find(|file| file.path == "site.yml").unwrap();
        assert_eq!(store.beginning(&manifest, site).unwrap(), b"- hosts: all\n");
    }

    #[test]
    fn what_nobody_wants_goes_and_what_others_share_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (files, first) = source();
        copy(&first, &store);
        fs::write(files.path().join("site.yml"), "- hosts: web\n").unwrap();
        let second = Tree::read(files.path()).unwrap();
        copy(&second, &store);
        assert_eq!(store.sweep(&HashSet::new(), Duration::from_secs(3600)).unwrap(), 0, "all of it is new");
        let wanted = HashSet::from([digest(&second)]);
        assert_eq!(store.sweep(&wanted, Duration::ZERO).unwrap(), 1);
        assert!(store.tree(&digest(&first)).unwrap().is_none());
        let kept = store.tree(&digest(&second)).unwrap().unwrap();
        kept.chunks(&[0, 2], |_| true).unwrap();
    }

    #[test]
    fn bytes_that_were_not_asked_for_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (_files, tree) = source();
        assert!(store.begin(&[1; 32], tree.manifest().to_vec()).is_err());
        let mut filling = store.begin(&digest(&tree), tree.manifest().to_vec()).unwrap();
        let batch = ChunkBatch { data: vec![1; 1 << 20].into(), plain_size: 0 };
        assert!(matches!(store.take(&mut filling, &batch), Err(Error::Chunk(due::Error::Digest))));
        let bomb = ChunkBatch { data: vec![1; 9].into(), plain_size: u32::MAX };
        assert!(matches!(store.take(&mut filling, &bomb), Err(Error::Chunk(due::Error::Batch))));
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        let digest: Digest = std::array::from_fn(|at| 255 - 8 * u8::try_from(at).unwrap());
        assert_eq!(unhex(&hex(&digest)), Some(digest));
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
        for bad in ["00", &"z".repeat(64), &"+1".repeat(32), &"ä".repeat(32)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
