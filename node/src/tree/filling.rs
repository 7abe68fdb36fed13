//! A tree on its way into the cache: what other trees have is linked, the rest is written as it comes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use plexus_proto::work::ChunkBatch;
use plexus_tree::Due;
use plexus_tree::store::disk;

use super::manifest::{Chunk, EntryKind};
use super::{CHUNK_BYTES, Digest, Error, Manifest};
use crate::unit_dir;

/// A chunk that some tree of the cache has.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) file: PathBuf,
    pub(super) size: u64,
    pub(super) mode: u32,
    /// Which of the file's chunks.
    pub(super) index: usize,
}

/// A tree that is being filled.
#[derive(Debug)]
pub struct Filling {
    tree: Manifest,
    manifest: Vec<u8>,
    dir: PathBuf,
    due: Due,
    /// Where each chunk that is due goes: entry and index in its file.
    wanted: HashMap<u32, Vec<(u32, u32)>>,
}

impl Filling {
    /// Makes directories and everything that `known` has. What an interrupted filling of the same tree had
    /// written is looked at again.
    pub(super) fn begin(
        tree: Manifest,
        manifest: Vec<u8>,
        dir: PathBuf,
        known: &HashMap<Digest, Found>,
    ) -> Result<Self, Error> {
        let before = dir.with_extension("before");
        unit_dir::remove_tree(&before).map_err(|error| disk("remove", &before)(io::Error::other(error)))?;
        if dir.exists() {
            fs::rename(&dir, &before).map_err(disk("move", &dir))?;
        }
        let mut filling = Self { tree, manifest, dir, due: Due::default(), wanted: HashMap::new() };
        let filled = filling.fill(known, &before.join("tree"));
        unit_dir::remove_tree(&before).map_err(|error| disk("remove", &before)(io::Error::other(error)))?;
        filled?;
        Ok(filling)
    }

    fn fill(&mut self, known: &HashMap<Digest, Found>, before: &Path) -> Result<(), Error> {
        let root = self.root();
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&root);
        made.map_err(disk("make", &root))?;
        for (number, entry) in self.tree.entries.iter().enumerate() {
            let path = root.join(&entry.path);
            match &entry.kind {
                // Writable until its content is there.
                EntryKind::Directory => {
                    fs::DirBuilder::new().mode(0o700).create(&path).map_err(disk("make", &path))?;
                }
                EntryKind::File { size: 0, .. } => drop(create(&path, entry.mode, 0)?),
                EntryKind::File { size, chunks } => {
                    let first = &self.tree.chunks[chunks[0] as usize];
                    if let Some(found) = known.get(&first.digest)
                        && is_same(found, known, *size, entry.mode, chunks, &self.tree.chunks)
                        && fs::hard_link(&found.file, &path).is_ok()
                    {
                        continue;
                    }
                    if take_over(&before.join(&entry.path), &path, *size, chunks, &self.tree.chunks) {
                        set_mode(&path, entry.mode)?;
                        continue;
                    }
                    // A small file is made when its one chunk comes.
                    let is_small = chunks.len() == 1;
                    if is_small && !known.contains_key(&first.digest) {
                        let number = u32::try_from(number).unwrap_or(u32::MAX);
                        self.wanted.entry(chunks[0]).or_default().push((number, 0));
                        continue;
                    }
                    let file = create(&path, entry.mode, *size)?;
                    for (index, &place) in chunks.iter().enumerate() {
                        let chunk = self.tree.chunks[place as usize];
                        if let Some(data) = known.get(&chunk.digest).and_then(|found| found.read(chunk)) {
                            file.write_all_at(&data, index as u64 * CHUNK_BYTES)
                                .map_err(disk("write", &path))?;
                        } else {
                            let index = u32::try_from(index).unwrap_or(u32::MAX);
                            let number = u32::try_from(number).unwrap_or(u32::MAX);
                            self.wanted.entry(place).or_default().push((number, index));
                        }
                    }
                }
                EntryKind::Symlink(_) => {}
            }
        }
        self.due = Due::new(self.wanted.keys().copied().collect());
        Ok(())
    }

    /// What must come.
    pub fn due(&self) -> &Due {
        &self.due
    }

    /// Checks the next chunks and writes them to their places.
    ///
    /// # Errors
    /// Something else than the chunks that are due, or a disk that refuses.
    pub fn take(&mut self, batch: &ChunkBatch) -> Result<(), Error> {
        let root = self.root();
        self.due.take(&self.tree.chunks, batch, |place, _, bytes| {
            for &(entry, index) in self.wanted.get(&place).into_iter().flatten() {
                let entry = &self.tree.entries[entry as usize];
                let path = root.join(&entry.path);
                let file = match fs::OpenOptions::new().write(true).open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path, entry.mode, 0),
                    // Made in this directory a moment ago, and no link is here yet.
                    opened => opened.map_err(disk("open", &path)),
                };
                file?.write_all_at(bytes, u64::from(index) * CHUNK_BYTES).map_err(disk("write", &path))?;
            }
            Ok(())
        })
    }

    /// Makes what must come last: symlinks, so that nothing can be written through one even if the check of the
    /// manifest failed, and the modes of directories.
    pub(super) fn finish(self, boot: &str) -> Result<(Digest, PathBuf), Error> {
        let root = self.root();
        for entry in &self.tree.entries {
            if let EntryKind::Symlink(target) = &entry.kind {
                let path = root.join(&entry.path);
                std::os::unix::fs::symlink(target, &path).map_err(disk("link", &path))?;
            }
        }
        for entry in self.tree.entries.iter().rev().filter(|entry| entry.kind == EntryKind::Directory) {
            set_mode(&root.join(&entry.path), entry.mode)?;
        }
        for (name, content) in [("manifest", self.manifest.as_slice()), ("mark", boot.as_bytes())] {
            let path = self.dir.join(name);
            fs::write(&path, content).map_err(disk("write", &path))?;
        }
        Ok((self.tree.digest, self.dir))
    }

    fn root(&self) -> PathBuf {
        self.dir.join("tree")
    }
}

impl Found {
    /// Its bytes, unless they are no longer what they were.
    fn read(&self, chunk: Chunk) -> Option<Vec<u8>> {
        let mut data = vec![0; chunk.length as usize];
        File::open(&self.file).ok()?.read_exact_at(&mut data, self.index as u64 * CHUNK_BYTES).ok()?;
        (*blake3::hash(&data).as_bytes() == chunk.digest).then_some(data)
    }
}

/// Whether the file that has the first chunk has all of them, in order, and the mode.
fn is_same(
    found: &Found,
    known: &HashMap<Digest, Found>,
    size: u64,
    mode: u32,
    chunks: &[u32],
    all: &[Chunk],
) -> bool {
    found.size == size
        && found.mode == mode
        && chunks.iter().enumerate().all(|(index, &place)| {
            known
                .get(&all[place as usize].digest)
                .is_some_and(|other| other.index == index && other.file == found.file)
        })
}

/// Moves a file of an interrupted filling, if it is whole and right.
fn take_over(before: &Path, path: &Path, size: u64, chunks: &[u32], all: &[Chunk]) -> bool {
    let is_right = || -> io::Result<bool> {
        // Hard links of a finished tree come from elsewhere; what was written here has one name.
        let file = File::open(before)?;
        if file.metadata()?.len() != size {
            return Ok(false);
        }
        let mut data = vec![0; usize::try_from(CHUNK_BYTES.min(size)).unwrap_or(0)];
        for (index, &place) in chunks.iter().enumerate() {
            let Chunk { digest, length } = all[place as usize];
            let data = &mut data[..length as usize];
            file.read_exact_at(data, index as u64 * CHUNK_BYTES)?;
            if *blake3::hash(data).as_bytes() != digest {
                return Ok(false);
            }
        }
        Ok(true)
    };
    is_right().unwrap_or(false) && fs::rename(before, path).is_ok()
}

/// A fresh file of the mode a checkout gave it, past the umask.
fn create(path: &Path, mode: u32, size: u64) -> Result<File, Error> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(disk("create", path))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(disk("set the mode of", path))?;
    if size > CHUNK_BYTES {
        file.set_len(size).map_err(disk("size", path))?;
    }
    Ok(file)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(disk("set the mode of", path))
}
