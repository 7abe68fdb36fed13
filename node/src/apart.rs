//! Directories whose subdirectories have nothing to do with each other.

use std::fs::File;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tracing::debug;

/// Asks the file system to find places for the subdirectories of `dir` that lie apart from each other: `chattr +T`, which
/// ext4 knows, and other file systems may refuse.
///
/// ext4 puts a directory and what is made in it near its parent. A unit is a dozen inodes that come and go, and without a
/// journal an inode that was freed in the last one to five minutes is not taken again: each search steps over all of them
/// (`recently_deleted`, fs/ext4/ialloc.c). In places of their own there are few to step over.
pub(crate) fn keep_apart(dir: &Path) {
    let marked = File::open(dir).and_then(|dir| {
        let flags = ioctl_getflags(&dir)?;
        if !flags.contains(IFlags::TOPDIR) {
            ioctl_setflags(&dir, flags | IFlags::TOPDIR)?;
        }
        Ok(())
    });
    if let Err(error) = marked {
        debug!(%error, dir = %dir.display(), "this file system places directories as it likes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `EXT4_SUPER_MAGIC` of linux/magic.h; ext2 and ext3 have it too.
    const EXT4: u64 = 0xEF53;

    #[test]
    fn ext4_is_told_and_others_are_left_alone() {
        for parent in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
            let dir = tempfile::tempdir_in(parent).unwrap();
            keep_apart(dir.path());
            keep_apart(dir.path());
            let opened = File::open(dir.path()).unwrap();
            let kind = rustix::fs::fstatfs(&opened).unwrap().f_type;
            let told = ioctl_getflags(&opened).is_ok_and(|flags| flags.contains(IFlags::TOPDIR));
            assert_eq!(told, u64::try_from(kind) == Ok(EXT4), "{}", parent.display());
        }
    }
}
