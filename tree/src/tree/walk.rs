//! What lies in a directory, without reading a file.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, openat, readlinkat, statat};

use super::{Error, MAX_ENTRIES};

/// A change within this time of the look may leave times and size as they were: clocks of file systems tick, some
/// every 10 ms, some (in archives, on old ones) every two seconds; this covers all that count changes in the kernel.
pub(super) const SETTLED: Duration = Duration::from_millis(200);

/// From so many directories on they are read on all cores: a thread costs about as much as reading a few.
const MANY: usize = 8;
/// Bytes of names that the kernel is asked for at once.
const NAMES: usize = 32 << 10;

/// All that was found, by path below the root, in the order of paths.
pub(super) type Found = Vec<(String, Seen)>;

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
    #[expect(clippy::cast_sign_loss, reason = "the kernel says no negative size and nanoseconds")]
    #[expect(clippy::unnecessary_cast, reason = "types differ between architectures")]
    fn new(stat: &Stat, now: SystemTime) -> Self {
        let changed = (stat.st_ctime as i64, stat.st_ctime_nsec as i64);
        let at = u64::try_from(changed.0).ok().zip(u32::try_from(changed.1).ok());
        let at = at.map(|(seconds, nanos)| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
        let is_settled = at.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= SETTLED);
        Self {
            size: stat.st_size as u64,
            inode: stat.st_ino as u64,
            device: stat.st_dev as u64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
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
pub(super) fn walk(root: &Path) -> Result<Found, Error> {
    let look = Look { root, now: SystemTime::now(), count: AtomicUsize::new(0) };
    let mut found = Found::new();
    // Level by level, so that there are many directories at once to share out.
    let mut level = vec![String::new()];
    while !level.is_empty() {
        let read = look.all(&level)?;
        level.clear();
        for (path, seen) in &read {
            if seen.kind == Kind::Directory {
                level.push(path.clone());
            }
        }
        found.extend(read);
    }
    found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// One look at a tree.
struct Look<'r> {
    root: &'r Path,
    now: SystemTime,
    /// Entries so far.
    count: AtomicUsize,
}

impl Look<'_> {
    /// What is in these directories, in no order.
    fn all(&self, directories: &[String]) -> Result<Found, Error> {
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut found, mut names) = (Found::new(), Vec::with_capacity(NAMES));
            while let Some(directory) = directories.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.directory(directory, &mut names, &mut found)?;
            }
            Ok(found)
        };
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if directories.len() < MANY || cores == 1 {
            return work();
        }
        thread::scope(|scope| {
            let others: Vec<_> = (1..cores).map(|_| scope.spawn(work)).collect();
            let mut found = work()?;
            for other in others {
                found.extend(other.join().expect("a look does not panic")?);
            }
            Ok(found)
        })
    }

    /// What is in one directory, by its path below the root.
    fn directory(&self, path: &str, names: &mut Vec<u8>, found: &mut Found) -> Result<(), Error> {
        let dir = self.root.join(path);
        let read =
            |path: PathBuf| move |source: rustix::io::Errno| Error::Read { path, source: source.into() };
        // The root may be a link; what was a directory below it when it was looked at must not have become one.
        let follow = if path.is_empty() { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | follow;
        let fd = openat(rustix::fs::CWD, &dir, flags, Mode::empty()).map_err(read(dir.clone()))?;
        let mut entries = RawDir::new(&fd, names.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(read(dir.clone()))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.count.fetch_add(1, Ordering::Relaxed) >= MAX_ENTRIES {
                return Err(Error::TooMany);
            }
            let text = name.to_str().map_err(|_| Error::Name(dir.join(name.to_string_lossy().as_ref())))?;
            // Relative to the open directory, and not through a symlink.
            let stat =
                statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| read(dir.join(text))(error))?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => Kind::Symlink(target(&fd, name, &dir.join(text))?),
                FileType::Directory => Kind::Directory,
                FileType::RegularFile => Kind::File(Stamp::new(&stat, self.now)),
                _ => continue,
            };
            let mut relative = String::with_capacity(path.len() + 1 + text.len());
            if !path.is_empty() {
                relative.push_str(path);
                relative.push('/');
            }
            relative.push_str(text);
            found.push((relative, Seen { mode: stat.st_mode & 0o777, kind }));
        }
        Ok(())
    }
}

/// Where a link leads.
fn target(dir: &OwnedFd, name: &CStr, path: &Path) -> Result<String, Error> {
    let failed = |source: io::Error| Error::Read { path: path.to_owned(), source };
    let target = readlinkat(dir, name, Vec::new()).map_err(|error| failed(error.into()))?;
    target.into_string().map_err(|_| Error::Name(path.to_owned()))
}
