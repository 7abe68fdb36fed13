//! A unit's own, writable tree over one of the cache: an overlay where the kernel gives one, else a copy.
//!
//! ```text
//! project/
//!     lower      path of the cached tree; only beside an overlay
//!     upper/ work/ merged/
//! or
//!     tree/      a copy: cloned where the file system can, else written
//! ```
//!
//! Hard links would not do: a playbook that writes in place would write into the cache.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use plexus_tree::store::disk;

use super::Error;

/// Name, beside the working tree of a unit to come, of what [`prepare_ahead`] made of it.
const AHEAD: &str = "project.ahead";

/// Makes, in the directory of a unit to come, what every overlay needs. Blocks.
///
/// # Errors
/// The disk refuses.
pub fn prepare_ahead(unit: &Path) -> Result<(), Error> {
    scaffold(&unit.join(AHEAD))
}

/// Prepares a working tree over `files` in `dir`, which must not exist. Blocks.
///
/// # Errors
/// The disk refuses; what was made stays for the caller to remove.
pub fn prepare(files: &Path, dir: &Path, overlay: bool) -> Result<(), Error> {
    if !overlay {
        make(dir)?;
        return copy(files, &dir.join("tree"));
    }
    fs::rename(dir.with_file_name(AHEAD), dir).ok(); // nothing was made ahead, or has been taken
    scaffold(dir)?;
    let lower = dir.join("lower");
    fs::write(&lower, files.as_os_str().as_encoded_bytes()).map_err(disk("write", &lower))
}

/// Makes a prepared tree visible; where it is.
///
/// # Errors
/// The kernel refuses the mount.
pub fn open(dir: &Path) -> Result<PathBuf, Error> {
    let Ok(lower) = fs::read_to_string(dir.join("lower")) else { return Ok(dir.join("tree")) };
    let merged = dir.join("merged");
    mount_overlay(Path::new(&lower), dir, &merged).map_err(disk("mount", &merged))?;
    Ok(merged)
}

/// Makes an empty directory into which [`show`] can put a tree later, also for those who mounted the directory before. `mounts`
/// says whether this process may mount.
///
/// # Errors
/// The file system, or the kernel, refuses.
pub fn stage(dir: &Path, mounts: bool) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(disk("make", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(disk("set the mode of", dir))?;
    if !mounts {
        return Ok(());
    }
    // First private, so that it begins a group of its own: what is mounted on it shows nowhere else.
    mount_bind(dir, dir)
        .and_then(|()| mount_change(dir, MountPropagationFlags::PRIVATE))
        .and_then(|()| mount_change(dir, MountPropagationFlags::SHARED))
        .map_err(|error| disk("mount", dir)(error.into()))
}

/// Shows an opened tree in a staged directory: mounted there, or moved there where `tree` is a copy. `stage` may hold nothing yet.
///
/// # Errors
/// The kernel refuses, or something of the same name is there already.
pub fn show(tree: &Path, stage: &Path, mounts: bool) -> Result<(), Error> {
    if mounts {
        return mount_bind(tree, stage).map_err(|error| disk("mount", stage)(error.into()));
    }
    for entry in fs::read_dir(tree).map_err(disk("read", tree))? {
        let entry = entry.map_err(disk("read", tree))?;
        let target = stage.join(entry.file_name());
        // A directory that may not be written cannot be moved either, but by root.
        let kind = entry.file_type().map_err(disk("read", &target))?;
        let mode = entry.metadata().map_err(disk("read", &target))?.permissions();
        let sealed = kind.is_dir() && mode.mode() & 0o200 == 0;
        if sealed {
            let open = fs::Permissions::from_mode(0o700);
            fs::set_permissions(entry.path(), open).map_err(disk("set the mode of", &target))?;
        }
        // Whoever is in there may have made something; it is neither followed nor replaced.
        renameat_with(CWD, entry.path(), CWD, &target, RenameFlags::NOREPLACE)
            .map_err(|error| disk("move", &target)(error.into()))?;
        if sealed {
            fs::set_permissions(&target, mode).map_err(disk("set the mode of", &target))?;
        }
    }
    let mode = fs::metadata(tree).map_err(disk("read", tree))?.permissions();
    fs::set_permissions(stage, mode).map_err(disk("set the mode of", stage))
}

/// The files of a working copy that is no overlay, when there is one.
pub fn collected(dir: &Path) -> Option<PathBuf> {
    Some(dir.join("tree")).filter(|tree| tree.is_dir())
}

/// Takes away every mount at or below `dir`. Blocks. What cannot be taken away stays: removing the directory then
/// fails and says so.
pub fn close(dir: &Path) {
    // Only ever asked for directories of units; without mounts this is one short read.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut below: Vec<PathBuf> =
        mounts(&table).map(|(point, _)| point).filter(|at| at.starts_with(dir)).collect();
    below.sort();
    for point in below.into_iter().rev() {
        unmount(&point, UnmountFlags::DETACH).ok();
    }
}

/// Cached trees that some overlay lies over.
pub(super) fn lower_dirs() -> BTreeSet<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts(&table).filter_map(|(_, lower)| lower).collect()
}

/// Whether this process may mount overlays in `dir`, which is made and removed.
pub(super) fn overlay_works(dir: &Path) -> bool {
    let lower = dir.join("tree");
    let tried = fs::create_dir_all(&lower).map_err(disk("make", &lower)).and_then(|()| {
        prepare(&lower, &dir.join("copy"), true)?;
        open(&dir.join("copy")).map(drop)
    });
    close(dir);
    fs::remove_dir_all(dir).ok();
    tried.is_ok()
}

fn mount_overlay(lower: &Path, dir: &Path, merged: &Path) -> io::Result<()> {
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        dir.join("upper").display(),
        dir.join("work").display()
    );
    // Nothing in a working copy is worth a sync; kernels before 5.10 do not know the word.
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for options in [format!("{options},volatile"), options] {
        let data = CString::new(options)?;
        match mount("overlay", merged, "overlay", MountFlags::empty(), data.as_c_str()) {
            Ok(()) => return Ok(()),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Mount points of a mountinfo table, with the lower directory of overlays.
fn mounts(table: &str) -> impl Iterator<Item = (PathBuf, Option<PathBuf>)> + '_ {
    table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = unescape(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        let is_overlay = after.next() == Some("overlay");
        let options = after.nth(1).unwrap_or_default();
        let lower = options.split(',').find_map(|option| option.strip_prefix("lowerdir="));
        Some((PathBuf::from(point), lower.filter(|_| is_overlay).map(|path| unescape(path).into())))
    })
}

/// The kernel writes white space and backslashes in octal.
fn unescape(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// A copy with modes; symlinks stay symlinks. Shares its blocks with the cache where the file system clones.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().mode(0o700).create(to).map_err(disk("make", to))?;
    for entry in fs::read_dir(from).map_err(disk("read", from))? {
        let entry = entry.map_err(disk("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(disk("read", &source))?;
        if kind.is_dir() {
            copy(&source, &target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(&source).map_err(disk("read", &source))?;
            symlink(link, &target).map_err(disk("link", &target))?;
        } else {
            copy_file(&source, &target).map_err(disk("copy", &target))?;
        }
    }
    let mode = fs::metadata(from).map_err(disk("read", from))?.permissions();
    fs::set_permissions(to, mode).map_err(disk("set the mode of", to))
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = fs::File::open(from)?;
    let mode = source.metadata()?.permissions();
    let target = fs::OpenOptions::new().write(true).create_new(true).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        // Stays within the kernel.
        io::copy(&mut &source, &mut &target)?;
    }
    target.set_permissions(mode)
}

/// The directories of an overlay, as far as they are missing.
fn scaffold(dir: &Path) -> Result<(), Error> {
    for dir in [dir.to_owned(), dir.join("upper"), dir.join("work"), dir.join("merged")] {
        if !dir.is_dir() {
            make(&dir)?;
        }
    }
    Ok(())
}

fn make(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().mode(0o755).create(dir).map_err(disk("make", dir))?;
    // Past the umask: the worker may run as another user.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(disk("set the mode of", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_lower_directories() {
        let table = "26 1 0:2 / /data/a\\040b/merged rw,relatime - overlay overlay rw,lowerdir=/c/t,upperdir=/u\n\
                     27 1 0:3 / /tmp rw - tmpfs tmpfs rw,size=1k\n";
        let found: Vec<_> = mounts(table).collect();
        assert_eq!(found[0], ("/data/a b/merged".into(), Some("/c/t".into())));
        assert_eq!(found[1], ("/tmp".into(), None));
    }

    #[test]
    fn a_tree_is_shown_in_a_directory_that_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        fs::create_dir_all(files.join("sub")).unwrap();
        fs::write(files.join("sub/a"), "one").unwrap();
        for overlay in [false, overlay_works(&dir.path().join("probe"))] {
            let (copy, at) =
                (dir.path().join(format!("c-{overlay}")), dir.path().join(format!("s-{overlay}/x")));
            stage(&at, overlay).unwrap();
            prepare(&files, &copy, overlay).unwrap();
            show(&open(&copy).unwrap(), &at, overlay).unwrap();
            fs::write(at.join("sub/a"), "two").unwrap();
            close(&copy);
            close(&at);
            crate::unit_dir::remove_tree(&copy).unwrap();
            crate::unit_dir::remove_tree(&at).unwrap();
            assert_eq!(fs::read_to_string(files.join("sub/a")).unwrap(), "one");
        }
        // What is there already is not overwritten, and a link of that name is not followed.
        let (copy, at) = (dir.path().join("c"), dir.path().join("s"));
        stage(&at, false).unwrap();
        symlink("/etc", at.join("sub")).unwrap();
        prepare(&files, &copy, false).unwrap();
        assert!(show(&open(&copy).unwrap(), &at, false).is_err());
    }

    #[test]
    fn overlay_and_copy_are_writable_and_leave_the_cache_alone() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("files");
        fs::create_dir_all(files.join("sub")).unwrap();
        fs::write(files.join("sub/run.sh"), "one").unwrap();
        fs::set_permissions(files.join("sub/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("sub/run.sh", files.join("link")).unwrap();
        for overlay in [false, overlay_works(&dir.path().join("probe"))] {
            let copy = dir.path().join(format!("copy-{overlay}"));
            prepare(&files, &copy, overlay).unwrap();
            let tree = open(&copy).unwrap();
            assert_eq!(fs::metadata(tree.join("sub/run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
            assert_eq!(fs::read_link(tree.join("link")).unwrap(), Path::new("sub/run.sh"));
            fs::write(tree.join("sub/run.sh"), "two").unwrap();
            fs::write(tree.join("new"), "new").unwrap();
            fs::remove_file(tree.join("link")).unwrap();
            close(&copy);
            crate::unit_dir::remove_tree(&copy).unwrap();
            assert_eq!(fs::read_to_string(files.join("sub/run.sh")).unwrap(), "one");
            assert!(files.join("link").is_symlink() && !files.join("new").exists());
        }
    }
}
