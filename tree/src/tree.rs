//! A tree that can be sent. One of a directory is read once and kept ([`Trees`]); from then on only what changed on disk is
//! read again (`walk`).

mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use plexus_proto::work::{
    ChunkBatch, Directory, FileContent, ManifestPart, TreeEntry, TreeEntryKind, TreeManifest, TreeRef,
};
use prost::Message;

use walk::{Kind, Seen, Stamp};

use crate::manifest::{Chunk, Manifest};
use crate::store;

/// Bytes of a chunk; the last of a file may be shorter. Fixed by the protocol.
pub const CHUNK: u64 = 1024 * 1024;
/// Most entries of a tree, as nodes take it.
pub const MAX_ENTRIES: usize = 500_000;
/// Bytes of chunks in one batch: with its frame well below the longest, and few enough to be on the way at once.
const BATCH: usize = 2 << 20;
/// Bytes of a manifest in one frame.
const PART: usize = 1 << 20;
/// What is tried before a batch is compressed as a whole.
const SAMPLE: usize = 32 << 10;
/// Trees kept in memory; a tree of 20,000 files takes about 8 MB.
const KEPT: usize = 16;

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

/// Where a chunk lies.
#[derive(Debug, Clone, Copy)]
struct Source {
    digest: Digest,
    /// Place in the tree's files.
    file: u32,
    offset: u64,
    length: u32,
}

/// A project tree as it was read: its manifest, and where each chunk lies.
#[derive(Debug)]
pub struct Tree {
    place: Place,
    manifest: Bytes,
    reference: TreeRef,
    /// In the order in which the manifest names them first.
    chunks: Vec<Source>,
}

/// Where the bytes of a tree lie.
#[derive(Debug)]
enum Place {
    /// In these files below a directory.
    Files { root: PathBuf, files: Vec<String> },
    /// Each chunk in a file of its own, below this directory of a [`Store`](crate::Store).
    Chunks(PathBuf),
}

/// A file's content as it was when it had this stamp.
#[derive(Debug, Clone)]
struct Content {
    stamp: Stamp,
    chunks: Vec<Digest>,
}

/// A tree and what is needed to see whether it is still so.
#[derive(Debug)]
struct Snapshot {
    tree: Arc<Tree>,
    seen: walk::Found,
    contents: HashMap<String, Content>,
}

/// Trees read lately, by their directories. All methods block.
#[derive(Debug, Default)]
pub struct Trees(Mutex<Vec<(PathBuf, Arc<Snapshot>)>>);

impl Trees {
    /// The tree at `root` as it is now. Reads only files that are new or changed since the last time.
    ///
    /// # Errors
    /// The first thing that cannot be read, a name that is not UTF-8, or too many entries.
    pub fn read(&self, root: &Path) -> Result<Arc<Tree>, Error> {
        let before = {
            let kept = self.0.lock().expect("no code panics under this lock");
            kept.iter().find(|(path, _)| path == root).map(|(_, snapshot)| Arc::clone(snapshot))
        };
        let seen = walk::walk(root)?;
        if let Some(before) = &before
            && before.seen == seen
            && before.contents.values().all(|content| content.stamp.is_settled())
        {
            return Ok(Arc::clone(&before.tree));
        }
        let snapshot = Arc::new(snapshot(root, seen, before.as_deref())?);
        let mut kept = self.0.lock().expect("no code panics under this lock");
        kept.retain(|(path, _)| path != root);
        let surplus = (kept.len() + 1).saturating_sub(KEPT);
        kept.drain(..surplus);
        kept.push((root.to_owned(), Arc::clone(&snapshot)));
        Ok(Arc::clone(&snapshot.tree))
    }
}

fn snapshot(root: &Path, seen: walk::Found, before: Option<&Snapshot>) -> Result<Snapshot, Error> {
    let known = |path: &str, stamp: &Stamp| {
        let content = before?.contents.get(path)?;
        let chunks = content.chunks.clone();
        // Read when another change could still have hidden behind the same times: then it is read again.
        (content.stamp == *stamp && content.stamp.is_settled()).then_some(Content { stamp: *stamp, chunks })
    };
    let (mut contents, mut unknown) = (HashMap::new(), Vec::new());
    for (path, seen) in &seen {
        if let Kind::File(stamp) = &seen.kind {
            match known(path, stamp) {
                Some(content) => drop(contents.insert(path.clone(), content)),
                None => unknown.push((path.as_str(), *stamp)),
            }
        }
    }
    contents.extend(hash_all(root, &unknown)?);
    let tree = Arc::new(Tree::new(root, &seen, &contents));
    Ok(Snapshot { tree, seen, contents })
}

/// Hashes files on all cores.
fn hash_all(root: &Path, files: &[(&str, Stamp)]) -> Result<Vec<(String, Content)>, Error> {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut hashed = Vec::new();
        let mut buffer = Vec::new();
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(&(path, stamp)) = files.get(at) else { return Ok(hashed) };
            let chunks = hash(&root.join(path), &mut buffer)?;
            hashed.push((path.to_owned(), Content { stamp, chunks }));
        }
    };
    let results: Vec<Result<_, Error>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores.min(files.len())).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("hashing does not panic")).collect()
    });
    let mut all = Vec::with_capacity(files.len());
    for result in results {
        all.extend(result?);
    }
    Ok(all)
}

fn hash(path: &Path, buffer: &mut Vec<u8>) -> Result<Vec<Digest>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut chunks = Vec::new();
    loop {
        buffer.clear();
        (&mut file).take(CHUNK).read_to_end(buffer).map_err(failed)?;
        if buffer.is_empty() {
            return Ok(chunks);
        }
        chunks.push(*blake3::hash(buffer).as_bytes());
    }
}

impl Tree {
    /// Reads a tree without keeping it.
    ///
    /// # Errors
    /// As [`Trees::read`].
    pub fn read(root: &Path) -> Result<Self, Error> {
        let read = Trees::default().read(root)?;
        Ok(Arc::into_inner(read).expect("nobody else has it"))
    }

    /// A tree of nothing: what a unit begins with that makes its tree itself.
    pub fn empty() -> Self {
        Self::new(Path::new(""), &[], &HashMap::new())
    }

    fn new(root: &Path, seen: &[(String, Seen)], contents: &HashMap<String, Content>) -> Self {
        let (mut files, mut chunks): (Vec<String>, Vec<Source>) = (Vec::new(), Vec::new());
        let mut places: HashMap<Digest, ()> = HashMap::new();
        let mut entries = Vec::with_capacity(seen.len());
        for (path, Seen { mode, kind }) in seen {
            let kind = match kind {
                Kind::Directory => TreeEntryKind::Directory(Directory {}),
                Kind::Symlink(target) => TreeEntryKind::Symlink(target.clone()),
                Kind::File(stamp) => {
                    let digests =
                        contents.get(path).map(|content| content.chunks.as_slice()).unwrap_or_default();
                    let file = u32::try_from(files.len()).unwrap_or(u32::MAX);
                    let mut size = 0;
                    for (index, digest) in digests.iter().enumerate() {
                        let offset = index as u64 * CHUNK;
                        let length = stamp.size.saturating_sub(offset).min(CHUNK);
                        size += length;
                        if places.insert(*digest, ()).is_none() {
                            let length = u32::try_from(length).unwrap_or(0);
                            chunks.push(Source { digest: *digest, file, offset, length });
                        }
                    }
                    files.push(path.clone());
                    let chunks = digests.iter().map(|digest| Bytes::copy_from_slice(digest)).collect();
                    TreeEntryKind::File(FileContent { size, chunks })
                }
            };
            entries.push(TreeEntry { path: path.clone(), mode: *mode, kind: Some(kind) });
        }
        let manifest = Bytes::from(TreeManifest { entries }.encode_to_vec());
        let reference = reference(&manifest);
        Self { place: Place::Files { root: root.to_owned(), files }, manifest, reference, chunks }
    }

    /// A tree whose chunks lie below `dir` of a store, by the manifest that names them.
    pub(crate) fn stored(dir: PathBuf, bytes: Bytes, manifest: &Manifest) -> Self {
        let source =
            |chunk: &Chunk| Source { digest: chunk.digest, file: 0, offset: 0, length: chunk.length };
        let chunks = manifest.chunks.iter().map(source).collect();
        Self { place: Place::Chunks(dir), reference: reference(&bytes), manifest: bytes, chunks }
    }

    /// What the node is told in `Submit`.
    pub fn reference(&self) -> TreeRef {
        self.reference.clone()
    }

    /// The encoded manifest, for a node that lacks it.
    pub fn manifest(&self) -> &Bytes {
        &self.manifest
    }

    /// The encoded manifest in parts that fit a frame; an empty one is one empty part.
    pub fn manifest_parts(&self) -> impl Iterator<Item = ManifestPart> + use<> {
        let manifest = self.manifest.clone();
        let last = manifest.len().saturating_sub(1) / PART;
        (0..=last).map(move |part| ManifestPart {
            data: manifest.slice(part * PART..manifest.len().min((part + 1) * PART)),
            last: part == last,
        })
    }

    /// Reads the chunks of `need` (pairs of first and count) and hands them over in batches until `send` says no.
    /// Each is checked to be what was hashed. Blocks.
    ///
    /// # Errors
    /// [`Error::Changed`] when a file was written since, [`Error::Unknown`] for chunks that the tree does not have.
    pub fn chunks(&self, need: &[u32], mut send: impl FnMut(ChunkBatch) -> bool) -> Result<(), Error> {
        let mut data = Vec::with_capacity(BATCH + CHUNK as usize);
        for pair in need.chunks(2) {
            let &[first, count] = pair else { return Err(Error::Unknown) };
            let (first, count) = (first as usize, count as usize);
            let end = first.checked_add(count).ok_or(Error::Unknown)?;
            for source in self.chunks.get(first..end).ok_or(Error::Unknown)? {
                self.append(source, &mut data)?;
                if data.len() >= BATCH && !send(batch(&mut data)) {
                    return Ok(());
                }
            }
        }
        if !data.is_empty() {
            send(batch(&mut data));
        }
        Ok(())
    }

    fn append(&self, source: &Source, data: &mut Vec<u8>) -> Result<(), Error> {
        let path = || match &self.place {
            Place::Files { root, files } => root.join(&files[source.file as usize]),
            Place::Chunks(dir) => store::chunk_path(dir, &source.digest),
        };
        let start = data.len();
        data.resize(start + source.length as usize, 0);
        let chunk = &mut data[start..];
        match File::open(path()).and_then(|file| file.read_exact_at(chunk, source.offset)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Error::Changed(path())),
            Err(source) => return Err(Error::Read { path: path(), source }),
        }
        if *blake3::hash(chunk).as_bytes() != source.digest {
            return Err(Error::Changed(path()));
        }
        Ok(())
    }
}

/// What names a tree.
pub(crate) fn reference(manifest: &[u8]) -> TreeRef {
    TreeRef { digest: Bytes::copy_from_slice(blake3::hash(manifest).as_bytes()), size: manifest.len() as u64 }
}

/// Takes what was gathered; compressed where a sample of it says that this is worth the time.
fn batch(data: &mut Vec<u8>) -> ChunkBatch {
    let plain = Bytes::copy_from_slice(data);
    data.clear();
    let middle = plain.len() / 2;
    let sample = &plain[middle..plain.len().min(middle + SAMPLE)];
    let compress = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).ok();
    if compress(sample).is_some_and(|small| small.len() * 10 < sample.len() * 8)
        && let Some(small) = compress(&plain)
        && let Ok(plain_size) = u32::try_from(plain.len())
    {
        return ChunkBatch { data: small.into(), plain_size };
    }
    ChunkBatch { data: plain, plain_size: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn chunks(tree: &Tree, need: &[u32]) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        tree.chunks(need, |batch| {
            all.extend(match batch.plain_size {
                0 => batch.data.to_vec(),
                size => zstd::bulk::decompress(&batch.data, size as usize).unwrap(),
            });
            true
        })?;
        Ok(all)
    }

    #[test]
    fn same_content_has_the_same_digest_wherever_it_lies() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for root in [a.path(), b.path()] {
            fs::create_dir(root.join("roles")).unwrap();
            fs::write(root.join("roles/main.yml"), "x").unwrap();
            let mut large = vec![7; 2 * CHUNK as usize];
            large[0] = 8;
            large.extend([9; 5]);
            fs::write(root.join("site.yml"), large).unwrap();
            std::os::unix::fs::symlink("site.yml", root.join("link")).unwrap();
        }
        let (a, b) = (Tree::read(a.path()).unwrap(), Tree::read(b.path()).unwrap());
        assert_eq!(a.reference(), b.reference());
        let manifest = TreeManifest::decode(a.manifest().clone()).unwrap();
        let paths: Vec<_> = manifest.entries.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["link", "roles", "roles/main.yml", "site.yml"]);
        let Some(TreeEntryKind::File(site)) = &manifest.entries[3].kind else { panic!("a file") };
        assert_eq!((site.size, site.chunks.len()), (2 * CHUNK + 5, 3));
        assert_eq!(chunks(&a, &[0, 1, 3, 1]).unwrap(), [b'x', 9, 9, 9, 9, 9]);
        assert_eq!(chunks(&a, &[0, 4]).unwrap().len() as u64, 2 * CHUNK + 6);
        for bad in [&[4, 1][..], &[0, 5], &[0], &[u32::MAX, u32::MAX]] {
            assert!(matches!(chunks(&a, bad), Err(Error::Unknown)), "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_changed_is_not_sent() {
        let root = tempfile::tempdir().unwrap();
        for (before, after) in [("one", "two"), ("one", "on"), ("one", "")] {
            fs::write(root.path().join("site.yml"), before).unwrap();
            let tree = Tree::read(root.path()).unwrap();
            fs::write(root.path().join("site.yml"), after).unwrap();
            assert!(matches!(chunks(&tree, &[0, 1]), Err(Error::Changed(_))), "{after:?}");
        }
    }

    #[test]
    fn a_kept_tree_follows_every_change() {
        let root = tempfile::tempdir().unwrap();
        let trees = Trees::default();
        let path = root.path().join("site.yml");
        let mut digests = vec![trees.read(root.path()).unwrap().reference()];
        let mut changed = |what: &str| {
            let tree = trees.read(root.path()).unwrap();
            assert_eq!(tree.reference(), Tree::read(root.path()).unwrap().reference(), "{what}");
            assert!(!digests.contains(&tree.reference()), "{what}");
            digests.push(tree.reference());
        };
        for content in ["one", "two", "six"] {
            // Same length, and within one tick of the clock.
            fs::write(&path, content).unwrap();
            changed(content);
        }
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        changed("mode");
        fs::rename(&path, root.path().join("other.yml")).unwrap();
        changed("name");
        fs::create_dir(root.path().join("empty")).unwrap();
        changed("directory");
        std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
        changed("link");
    }

    #[test]
    fn an_unchanged_tree_is_not_read_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("site.yml");
        fs::write(&path, "one").unwrap();
        // Long ago, so that the time of change cannot stand for two contents. The change time is now all the same.
        let trees = Trees::default();
        let first = trees.read(root.path()).unwrap();
        std::thread::sleep(walk::SETTLED + std::time::Duration::from_millis(50));
        let second = trees.read(root.path()).unwrap();
        let third = trees.read(root.path()).unwrap();
        assert_eq!(first.reference(), third.reference());
        assert!(Arc::ptr_eq(&second, &third));
    }
}
