//! A tree becomes a directory that its unit may write into.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::manifest::EntryKind;
use super::{Cache, Error, Tree, disk};

/// Makes `dir`, which must not exist, and lays the tree out in it. Blocks.
///
/// Symlinks come last, so that nothing can be written through one even if the check of the manifest failed.
///
/// # Errors
/// A chunk is missing, or the file system refuses; what was made stays for the caller to remove.
pub fn lay_out(tree: &Tree, cache: &Cache, dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().mode(0o755).create(dir).map_err(disk("make", dir))?;
    for entry in &tree.entries {
        let path = dir.join(&entry.path);
        match &entry.kind {
            // Writable until its content is there.
            EntryKind::Directory => {
                fs::DirBuilder::new().mode(0o700).create(&path).map_err(disk("make", &path))?;
            }
            EntryKind::File { size, chunks } => {
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(disk("create", &path))?;
                let mut written = 0;
                for digest in chunks {
                    let data = cache.chunk(digest)?;
                    file.write_all(&data).map_err(disk("write", &path))?;
                    written += data.len() as u64;
                }
                if written != *size {
                    let problem = "has another size than its chunks";
                    return Err(Error::Entry { path: entry.path.clone(), problem });
                }
                // Past the umask: a checkout's modes are part of it.
                file.set_permissions(fs::Permissions::from_mode(entry.mode))
                    .map_err(disk("set the mode of", &path))?;
            }
            EntryKind::Symlink(_) => {}
        }
    }
    for entry in &tree.entries {
        if let EntryKind::Symlink(target) = &entry.kind {
            let path = dir.join(&entry.path);
            std::os::unix::fs::symlink(target, &path).map_err(disk("link", &path))?;
        }
    }
    for entry in tree.entries.iter().rev().filter(|entry| entry.kind == EntryKind::Directory) {
        let path = dir.join(&entry.path);
        fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))
            .map_err(disk("set the mode of", &path))?;
    }
    Ok(())
}
