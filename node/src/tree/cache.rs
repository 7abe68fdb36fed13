//! Whole trees on disk, by digest, read-only: what working copies lie over.
//!
//! ```text
//! cache/trees/<digest>/
//!     manifest   as it came; its time of change is that of the last use
//!     mark       "durable", or the boot in which the tree was written
//!     tree/      the files, hard-linked between trees that share them
//! cache/new/<digest>/   a tree that is still being filled
//! ```
//!
//! A tree is not synced while a unit waits for it. Until [`Cache::settle`] has synced it, it counts only for the
//! boot in which it was written: after a power loss it comes again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use plexus_tree::store::{disk, hex, unhex};

use super::filling::{Filling, Found};
use super::manifest::{self, EntryKind};
use super::{Digest, Error, Manifest, working};
use crate::unit_dir;

/// Trees that are looked through for files of a new one. The last few versions of its project are among them.
const RELATIVES: usize = 8;
/// What a mark says once a tree survives a power loss.
const DURABLE: &str = "durable";

/// The cache of one node. Cheap to share; all methods block but [`Cache::turn`].
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    boot: String,
    overlay: bool,
    turns: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// The right to fill a tree: two units that lack the same one fetch it once.
#[derive(Debug)]
pub struct Turn {
    _guard: tokio::sync::OwnedMutexGuard<()>,
}

impl Cache {
    /// Opens the cache in `dir`, which is made.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        for path in [&dir.join("new"), &dir.join("trees")] {
            fs::create_dir_all(path).map_err(disk("make", path))?;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let overlay = working::overlay_works(&dir.join("probe"));
        Ok(Self { dir: dir.to_owned(), boot: boot.trim().to_owned(), overlay, turns: Mutex::default() })
    }

    /// True where working copies are overlays, which cost nothing to make.
    pub fn has_overlay(&self) -> bool {
        self.overlay
    }

    /// Makes copies from now on, as where there is no overlay.
    pub fn without_overlay(mut self) -> Self {
        self.overlay = false;
        self
    }

    /// Waits until nobody else fills this tree.
    pub async fn turn(&self, digest: &Digest) -> Turn {
        let mutex = {
            let mut turns = self.turns.lock().expect("no code panics under this lock");
            turns.retain(|_, mutex| Arc::strong_count(mutex) > 1);
            turns.entry(*digest).or_default().clone()
        };
        Turn { _guard: mutex.lock_owned().await }
    }

    /// The files of a tree that is whole and may be trusted; `None` when it must come first.
    pub fn files(&self, digest: &Digest) -> Option<PathBuf> {
        let dir = self.tree_dir(digest);
        let mark = fs::read_to_string(dir.join("mark")).ok()?;
        if mark != DURABLE && mark != self.boot {
            return None;
        }
        if let Ok(file) = fs::File::open(dir.join("manifest")) {
            file.set_modified(SystemTime::now()).ok();
        }
        Some(dir.join("tree"))
    }

    /// Checks a manifest against the digest it was sent for, and begins to fill its tree with what other trees
    /// have of it. To be called in one's [`turn`](Cache::turn).
    ///
    /// # Errors
    /// Another digest, a tree that is refused, or a disk that refuses.
    pub fn begin(&self, digest: &Digest, manifest: Vec<u8>) -> Result<Filling, Error> {
        let tree = Manifest::read(&manifest)?;
        if tree.digest != *digest {
            return Err(Error::Digest);
        }
        let wanted: HashSet<Digest> = tree.chunks.iter().map(|chunk| chunk.digest).collect();
        let known = self.known(&wanted);
        let fresh = self.dir.join("new").join(hex(digest));
        Filling::begin(tree, manifest, fresh, &known)
    }

    /// Takes a tree that is whole into the cache; the place of its files.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn keep(&self, filling: Filling) -> Result<PathBuf, Error> {
        let (digest, fresh) = filling.finish(&self.boot)?;
        let place = self.tree_dir(&digest);
        // One of an earlier boot, if anything.
        remove(&place)?;
        fs::rename(&fresh, &place).map_err(disk("move", &fresh))?;
        Ok(place.join("tree"))
    }

    /// Where the wanted chunks lie, as far as the trees used last have them.
    fn known(&self, wanted: &HashSet<Digest>) -> HashMap<Digest, Found> {
        let mut known = HashMap::new();
        for (digest, _) in self.by_use().into_iter().rev().take(RELATIVES) {
            let Some(files) = self.trusted(&digest) else { continue };
            let Some(tree) = self.read(&digest) else { continue };
            for entry in &tree.entries {
                let EntryKind::File { size, chunks } = &entry.kind else { continue };
                for (index, &place) in chunks.iter().enumerate() {
                    let chunk = tree.chunks[place as usize].digest;
                    if wanted.contains(&chunk) {
                        known.entry(chunk).or_insert_with(|| Found {
                            file: files.join(&entry.path),
                            size: *size,
                            mode: entry.mode,
                            index,
                        });
                    }
                }
            }
        }
        known
    }

    fn trusted(&self, digest: &Digest) -> Option<PathBuf> {
        let dir = self.tree_dir(digest);
        let mark = fs::read_to_string(dir.join("mark")).ok()?;
        (mark == DURABLE || mark == self.boot).then(|| dir.join("tree"))
    }

    fn read(&self, digest: &Digest) -> Option<Manifest> {
        let bytes = fs::read(self.tree_dir(digest).join("manifest")).ok()?;
        (manifest::digest(&bytes) == *digest).then(|| Manifest::read(&bytes).ok()).flatten()
    }

    /// Digests of all trees, those used last at the end.
    fn by_use(&self) -> Vec<(Digest, SystemTime)> {
        let mut trees = Vec::new();
        for entry in fs::read_dir(self.dir.join("trees")).into_iter().flatten().flatten() {
            let digest = entry.file_name().to_str().and_then(unhex);
            let used = fs::metadata(entry.path().join("manifest")).and_then(|file| file.modified());
            if let Some(digest) = digest {
                trees.push((digest, used.unwrap_or(SystemTime::UNIX_EPOCH)));
            }
        }
        trees.sort_by_key(|(digest, used)| (*used, *digest));
        trees
    }

    /// Deletes the trees used least recently until the rest fits into `bytes`, and unfinished ones; never one that
    /// a working copy lies over. Not to be called while a payload arrives.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn trim(&self, bytes: u64) -> Result<(), Error> {
        let new = self.dir.join("new");
        for entry in fs::read_dir(&new).into_iter().flatten().flatten() {
            remove(&entry.path())?;
        }
        let used = working::lower_dirs();
        let (mut kept, mut sum, mut full) = (BTreeSet::new(), 0, false);
        for (digest, _) in self.by_use().into_iter().rev() {
            let place = self.tree_dir(&digest);
            let (Some(tree), Some(files)) = (self.read(&digest), self.trusted(&digest)) else {
                if !used.contains(&place.join("tree")) {
                    remove(&place)?;
                }
                continue;
            };
            // Files are shared between trees: what a newer tree holds anyway costs an older one nothing.
            let fresh: BTreeMap<Digest, u32> = tree
                .chunks
                .iter()
                .filter(|chunk| !kept.contains(&chunk.digest))
                .map(|chunk| (chunk.digest, chunk.length))
                .collect();
            sum += fresh.values().map(|&length| u64::from(length)).sum::<u64>();
            full = full || sum > bytes;
            if full && !used.contains(&files) {
                remove(&place)?;
            } else {
                kept.extend(fresh.into_keys());
            }
        }
        Ok(())
    }

    /// Makes the trees of this boot survive a power loss.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn settle(&self) -> Result<(), Error> {
        let trees = self.by_use().into_iter().map(|(digest, _)| self.tree_dir(&digest).join("mark"));
        let fresh: Vec<PathBuf> =
            trees.filter(|mark| fs::read_to_string(mark).is_ok_and(|text| text == self.boot)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        fs::File::open(&self.dir)
            .and_then(|dir| rustix::fs::syncfs(&dir).map_err(Into::into))
            .map_err(disk("sync", &self.dir))?;
        for mark in fresh {
            fs::write(&mark, DURABLE).map_err(disk("write", &mark))?;
        }
        Ok(())
    }

    fn tree_dir(&self, digest: &Digest) -> PathBuf {
        self.dir.join("trees").join(hex(digest))
    }
}

/// The digest of a message, if it is one.
pub fn digest_of(bytes: &[u8]) -> Option<Digest> {
    Digest::try_from(bytes).ok()
}

fn remove(dir: &Path) -> Result<(), Error> {
    unit_dir::remove_tree(dir).map_err(|error| disk("remove", dir)(std::io::Error::other(error)))
}
