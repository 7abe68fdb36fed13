//! The random identity of a data directory, and the lock that keeps a second agent out of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use plexus_proto::id::StoreId;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// How long an agent waits for the one before it: a child that it was just starting holds the lock until its exec.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// Files of the identity, and of the one that it had first if it has another now.
const ID: &str = "store_id";
const FIRST_ID: &str = "first_store_id";
/// Pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not writable for this process.
    #[error(
        "cannot write to data_dir {}: {source}; make it, owned by user {user}, or set data_dir in the \
         configuration to a directory that user may write to",
        dir.display()
    )]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// Who runs this process.
        user: String,
        /// The refusal of the file system, part of the text because it names the remedy.
        source: io::Error,
    },
    /// Another agent uses it.
    #[error("data_dir {} is used by another plexus-node that runs now; stop it, or set another data_dir", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Damaged.
    #[error("{} is damaged; restore it from a backup, or delete data_dir to begin anew (its units are then lost)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// A data directory that is ours while this value lives.
#[derive(Debug)]
pub struct Store {
    /// Its identity.
    pub id: StoreId,
    /// The identity that it was made with, which the containers of its units are labelled with for good.
    pub first_id: StoreId,
    /// Drawn anew at each opening.
    pub start: u64,
    /// Openings so far, this one included. A store that was copied or brought back from a backup counts again what
    /// was counted before, which tells it from one that was only opened again.
    pub starts: u64,
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Makes the directory if it is missing, locks it, and reads its identity or gives it one.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let unwritable = |source| Error::Unwritable { dir: dir.to_owned(), user: user_name(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unwritable)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(unwritable)?;
        let give_up = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => sleep(LOCK_PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse { dir: dir.to_owned() }),
                Err(error) => return Err(unwritable(error.into())),
            }
        }
        let read = |path: PathBuf| match fs::read_to_string(&path) {
            Ok(text) => {
                let id = Uuid::parse_str(text.trim()).map_err(|_| Error::Damaged { path })?;
                Ok(Some(StoreId(id)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unwritable(error)),
        };
        let path = dir.join(ID);
        let id = match read(path.clone())? {
            Some(id) => id,
            None => {
                let id = StoreId(Uuid::new_v4());
                write_synced(dir, &path, &format!("{id}\n")).map_err(unwritable)?;
                id
            }
        };
        let first_id = read(dir.join(FIRST_ID))?.unwrap_or(id);
        let count = dir.join("starts");
        let starts = match fs::read_to_string(&count) {
            Ok(text) => text.trim().parse::<u64>().map_err(|_| Error::Damaged { path: count.clone() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(unwritable(error)),
        };
        let starts = starts.saturating_add(1);
        write_synced(dir, &count, &format!("{starts}\n")).map_err(unwritable)?;
        let (start, _) = Uuid::new_v4().as_u64_pair();
        Ok(Self { id, first_id, start, starts, dir: dir.to_owned(), _lock: lock })
    }

    /// Takes another identity, for good: somebody has heard of more starts than are counted here, so this is an old copy, and
    /// no attempt that was bound to the store may run on it.
    ///
    /// # Errors
    /// What the disk says; the identity is then as it was.
    pub fn renew(&mut self) -> io::Result<StoreId> {
        // Before the other one, for without it that would be taken for the first.
        write_synced(&self.dir, &self.dir.join(FIRST_ID), &format!("{}\n", self.first_id))?;
        let id = StoreId(Uuid::new_v4());
        write_synced(&self.dir, &self.dir.join(ID), &format!("{id}\n"))?;
        self.id = id;
        Ok(id)
    }
}

/// Writes a small file anew, whole or not at all.
pub(crate) fn write_synced(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}

/// The user this process runs as, by name where /etc/passwd has one.
pub fn user_name() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_identity_and_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let first = Store::open(&data).unwrap();
        let error = Store::open(&data).unwrap_err();
        assert!(error.to_string().contains("is used by another plexus-node"), "{error}");
        let (id, start, starts) = (first.id, first.start, first.starts);
        drop(first);
        let again = Store::open(&data).unwrap();
        assert_eq!((again.id, again.starts), (id, starts + 1));
        assert_ne!(again.start, start);
        drop(again);
        assert_ne!(Store::open(&dir.path().join("c")).unwrap().id, id);
        fs::write(data.join("store_id"), "nonsense").unwrap();
        assert!(matches!(Store::open(&data), Err(Error::Damaged { .. })));
    }

    #[test]
    fn an_identity_is_renewed_for_good_and_the_first_one_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let (first, starts) = (store.id, store.starts);
        assert_eq!(store.first_id, first);
        store.renew().unwrap();
        let second = store.renew().unwrap();
        assert_ne!(second, first);
        drop(store);
        let again = Store::open(dir.path()).unwrap();
        assert_eq!((again.id, again.first_id, again.starts), (second, first, starts + 1));
    }

    #[test]
    fn an_unwritable_directory_is_named_with_the_user_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("file/below");
        fs::write(dir.path().join("file"), "").unwrap(); // holds for root too, unlike permission bits
        let text = Store::open(&data).unwrap_err().to_string();
        assert!(text.contains(&format!("{}", data.display())), "{text}");
        assert!(text.contains(&format!("owned by user {}", user_name())), "{text}");
    }
}
