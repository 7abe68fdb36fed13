//! The identity folder of a node: `ca.pem`, `node.pem`, `node.key`, each put in place whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use crate::identity::{self, CHAIN_FILE, ROOTS_FILE};

/// An identity folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("identity is damaged")]
    Identity(#[source] identity::Error),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    NoEntropy,
}

/// Makes the folder, for its owner alone, if it is missing.
///
/// # Errors
/// [`Error::Write`].
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)
}

/// Writes a new file and syncs it and its folder; a file that is there already is an error.
///
/// # Errors
/// [`Error::Write`].
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Puts `content` in place at once, readable by the owner alone: readers see the old file or the new one.
///
/// # Errors
/// [`Error::Write`].
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Write { path: fresh, source });
        }
        _ => {}
    }
    write_new(&fresh, content, 0o600)?;
    let rename = || {
        std::fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    rename().map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Puts certificate and roots of a node in place. The roots come first: a crash in between leaves a node that
/// trusts more than it needs, not one that cannot judge its own certificate.
///
/// # Errors
/// [`Error::Write`].
pub fn put(dir: &Path, chain: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> Result<(), Error> {
    replace(&dir.join(ROOTS_FILE), identity::pem(roots).as_bytes())?;
    replace(&dir.join(CHAIN_FILE), identity::pem(chain).as_bytes())
}
