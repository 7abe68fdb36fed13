//! The private block on tmpfs, and the checks that keep it off every disk.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use plexus_proto::work::PrivateFile;
use rustix::fs::{CWD, RenameFlags, renameat_with, statfs};

use crate::store_id::user_name;

/// Type of a tmpfs, as `statfs(2)` tells it.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Type of a ramfs: never swapped either.
const RAMFS_MAGIC: u64 = 0x8584_58f6;
/// Files in one private block: inventories are few and large, not many.
const FILES_MAX: usize = 10_000;

/// The runtime directory or the machine cannot keep secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not writable for this process.
    #[error(
        "cannot write to runtime_dir {}: {source}; make it, owned by user {user}, or set runtime_dir in the \
         configuration to a directory on tmpfs that user may write to",
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
    /// On a disk.
    #[error(
        "runtime_dir {0} is not on tmpfs, so secrets would be written to disk; mount one there (mount -t tmpfs \
         -o mode=0700 tmpfs {0}), or set runtime_dir in the configuration to a directory on tmpfs, such as one \
         below /run or /dev/shm",
        dir.display()
    )]
    NotTmpfs {
        /// The directory.
        dir: PathBuf,
    },
    /// The machine swaps.
    #[error(
        "swap is active on {devices}, so secrets could be written to disk; switch it off (swapoff -a), or accept \
         it, encrypted swap for instance, with allow_swap = true below [work] in the configuration"
    )]
    Swap {
        /// The devices or files.
        devices: String,
    },
    /// A hostile or mistaken private block.
    #[error("private file {path:?} {problem}")]
    File {
        /// Its path as sent, cut to 200 characters.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file system refused.
    #[error("cannot write {}", path.display())]
    Disk {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Makes the runtime directory if it is missing and checks that it is writable and on tmpfs.
///
/// # Errors
/// See [`Error`].
pub fn check_runtime_dir(dir: &Path) -> Result<(), Error> {
    let unwritable = |source| Error::Unwritable { dir: dir.to_owned(), user: user_name(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unwritable)?;
    let probe = dir.join(".probe");
    fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(unwritable)?;
    let kind = statfs(dir).map_err(|error| unwritable(error.into()))?.f_type;
    #[expect(clippy::cast_sign_loss, reason = "the kernel's numbers are bit patterns")]
    let kind = kind as u64 & 0xffff_ffff;
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        return Err(Error::NotTmpfs { dir: dir.to_owned() });
    }
    Ok(())
}

/// Refuses a machine that swaps, unless its owner accepts that.
///
/// # Errors
/// [`Error::Swap`], naming the devices.
pub fn check_swap(allow: bool) -> Result<(), Error> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    judge_swap(&swaps, allow)
}

fn judge_swap(swaps: &str, allow: bool) -> Result<(), Error> {
    // Compressed swap in memory (zram) writes to no disk.
    let devices: Vec<&str> = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .filter(|device| !device.starts_with("/dev/zram"))
        .collect();
    if devices.is_empty() || allow {
        return Ok(());
    }
    Err(Error::Swap { devices: devices.join(", ") })
}

/// Writes a private block below `dir`, which is made afresh. Blocks.
///
/// # Errors
/// A path that leaves the directory, comes twice, or is the project's; or the file system refuses. What was
/// written stays for the caller to remove.
pub fn lay_out(dir: &Path, files: &[PrivateFile]) -> Result<(), Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Disk { path, source }
    };
    check_paths(files)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
    // ansible-runner expects these three to exist.
    for name in ["env", "inventory", "artifacts"] {
        let path = dir.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(at(&path))?;
    }
    for file in files {
        let path = dir.join(&file.path);
        let parent = path.parent().unwrap_or(dir);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at(parent))?;
        let mode = if file.mode == 0 { 0o600 } else { file.mode & 0o777 };
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut out| out.write_all(&file.content))
            .map_err(at(&path))?;
    }
    Ok(())
}

/// Moves what [`lay_out`] wrote to `from` into `to`, which others may see and write to: directories first. Blocks.
///
/// # Errors
/// Something of the same name is there already; nothing there is followed or replaced.
pub fn move_into(from: &Path, to: &Path) -> Result<(), Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Disk { path, source }
    };
    let entries = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(at(from))?;
    let (folders, files): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in folders.into_iter().chain(files) {
        let target = to.join(entry.file_name());
        renameat_with(CWD, entry.path(), CWD, &target, RenameFlags::NOREPLACE)
            .map_err(|error| at(&target)(error.into()))?;
    }
    fs::remove_dir(from).map_err(at(from))
}

/// The block holds no links, so a path made of plain names cannot leave a directory that was made afresh.
fn check_paths(files: &[PrivateFile]) -> Result<(), Error> {
    let bad =
        |file: &PrivateFile, problem| Error::File { path: file.path.chars().take(200).collect(), problem };
    let mut seen = BTreeSet::new();
    for (index, file) in files.iter().enumerate() {
        if index >= FILES_MAX {
            return Err(bad(file, "is one too many"));
        }
        if file.path.is_empty() || file.path.len() > 1024 || file.path.contains('\0') {
            return Err(bad(file, "has no usable path"));
        }
        let path = Path::new(&file.path);
        if !path.components().all(|component| matches!(component, Component::Normal(_))) {
            return Err(bad(file, "must be relative and without '..'"));
        }
        if path.starts_with("project") {
            return Err(bad(file, "belongs into the project tree"));
        }
        if !seen.insert(path) {
            return Err(bad(file, "comes twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(path: &str, mode: u32) -> PrivateFile {
        PrivateFile { path: path.to_owned(), mode, content: b"content".to_vec().into(), secret: false }
    }

    #[test]
    fn a_disk_is_refused_by_name_with_the_remedy() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let text = check_runtime_dir(dir.path()).unwrap_err().to_string();
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
        assert!(text.contains("mount -t tmpfs"), "{text}");
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        check_runtime_dir(&shm.path().join("node")).unwrap();
    }

    #[test]
    fn swap_is_refused_unless_allowed() {
        let active =
            "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1 0 -2\n/swapfile file 1 0 -3\n";
        let text = judge_swap(active, false).unwrap_err().to_string();
        assert!(text.contains("/dev/sda2, /swapfile") && text.contains("allow_swap = true"), "{text}");
        judge_swap(active, true).unwrap();
        judge_swap("Filename\tType\tSize\tUsed\tPriority\n", false).unwrap();
        judge_swap("Filename\n/dev/zram0 partition 1 0 100\n", false).unwrap();
        judge_swap("", false).unwrap();
    }

    #[test]
    fn files_lie_where_they_belong_with_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("private");
        lay_out(&private, &[file("inventory/hosts", 0o700), file("env/settings", 0), file("a/b/c", 0o4755)])
            .unwrap();
        let mode = |path: &str| fs::metadata(private.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("inventory/hosts"), 0o700);
        assert_eq!(mode("env/settings"), 0o600);
        assert_eq!(mode("a/b/c") & 0o4000, 0, "setuid is dropped");
        assert_eq!(mode(""), 0o700);
    }

    #[test]
    fn what_lies_in_a_waiting_directory_is_neither_followed_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, to, elsewhere) =
            (dir.path().join("fresh"), dir.path().join("to"), dir.path().join("else"));
        for path in [&to, &elsewhere] {
            fs::create_dir(path).unwrap();
        }
        lay_out(&fresh, &[file("env/key", 0), file("script", 0)]).unwrap();
        move_into(&fresh, &to).unwrap();
        assert!(to.join("env/key").is_file() && to.join("script").is_file() && !fresh.exists());
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("trap")).unwrap();
        let trap = dir.path().join("trapped");
        fs::create_dir(&trap).unwrap();
        fs::rename(dir.path().join("trap"), trap.join("env")).unwrap();
        lay_out(&fresh, &[file("env/key", 0)]).unwrap();
        assert!(move_into(&fresh, &trap).is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }

    #[test]
    fn hostile_paths_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["/etc/x", "../x", "a/../../x", "", "a\0b", "project/x", "project", "./x"] {
            let private = dir.path().join("private");
            assert!(lay_out(&private, &[file("good", 0), file(bad, 0)]).is_err(), "{bad:?}");
            assert!(!private.exists(), "{bad:?}");
        }
        assert!(lay_out(&dir.path().join("p"), &[file("a", 0), file("a", 0)]).is_err());
    }
}
