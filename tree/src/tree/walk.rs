//! What lies in a directory, without reading a file.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Error, MAX_ENTRIES};

/// A change within this time of the look may leave times and size as they were: clocks of file systems tick, some
/// every 10 ms, some (in archives, on old ones) every two seconds; this covers all that count changes in the kernel.
pub(super) const SETTLED: Duration = Duration::from_millis(200);

/// All that was found, and each file's stamp.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) seen: BTreeMap<String, Seen>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) kind: Kind,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Symlink(String),
    File(Stamp),
}

/// What changes whenever a file's content does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) size: u64,
    inode: u64,
    device: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// The look came so soon after the change that another one could hide behind the same times.
    is_settled: bool,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        (self.size, self.inode, self.device, self.modified, self.changed)
            == (other.size, other.inode, other.device, other.modified, other.changed)
    }
}

impl Eq for Stamp {}

impl Stamp {
    fn new(meta: &Metadata, now: SystemTime) -> Self {
        let changed = (meta.ctime(), meta.ctime_nsec());
        let at = u64::try_from(changed.0).ok().zip(u32::try_from(changed.1).ok());
        let at = at.map(|(seconds, nanos)| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
        let is_settled = at.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= SETTLED);
        Self {
            size: meta.size(),
            inode: meta.ino(),
            device: meta.dev(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed,
            is_settled,
        }
    }

    /// True when an equal stamp means an equal content.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }
}

/// Looks at everything below `root`. Sockets, pipes and devices are passed over.
pub(super) fn walk(root: &Path) -> Result<Walk, Error> {
    let now = SystemTime::now();
    let mut seen = Vec::new();
    directory(root, "", now, &mut seen)?;
    Ok(Walk { seen: seen.into_iter().collect() })
}

fn directory(dir: &Path, prefix: &str, now: SystemTime, seen: &mut Vec<(String, Seen)>) -> Result<(), Error> {
    let failed = |path: PathBuf| move |source: io::Error| Error::Read { path, source };
    for item in fs::read_dir(dir).map_err(failed(dir.to_owned()))? {
        let item = item.map_err(failed(dir.to_owned()))?;
        if seen.len() >= MAX_ENTRIES {
            return Err(Error::TooMany);
        }
        let name = item.file_name().into_string().map_err(|_| Error::Name(item.path()))?;
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        // Relative to the open directory, and not through a symlink.
        let meta = item.metadata().map_err(failed(item.path()))?;
        let kind = if meta.is_symlink() {
            let target = fs::read_link(item.path()).map_err(failed(item.path()))?;
            Kind::Symlink(target.into_os_string().into_string().map_err(|_| Error::Name(item.path()))?)
        } else if meta.is_dir() {
            Kind::Directory
        } else if meta.is_file() {
            Kind::File(Stamp::new(&meta, now))
        } else {
            continue;
        };
        let is_dir = kind == Kind::Directory;
        let path = item.path();
        seen.push((relative.clone(), Seen { mode: meta.permissions().mode() & 0o777, kind }));
        if is_dir {
            directory(&path, &relative, now, seen)?;
        }
    }
    Ok(())
}
