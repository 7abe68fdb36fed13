//! The spool: a unit's records on disk, from the moment they exist until they are acknowledged.
//!
//! One writer, the unit's shim, appends; one reader per attached controller, in the agent, follows. The two share
//! nothing but files: segments named by their first record, each a checked header and checked frames
//! ([`segment`]). A segment is deleted once every record in it is acknowledged. The writer never opens an old
//! segment, so damage is found, and cut off, by the agent alone ([`repair`]).
//!
//! The spool knows neither what a record says nor who reads it: all but lost records are sealed.

pub mod reader;
pub mod repair;
pub mod segment;
pub mod writer;

use std::path::{Path, PathBuf};
use std::{fs, io};

pub use reader::Reader;
pub use repair::{Closing, Scan, close_lost, scan};
pub use writer::Writer;

/// A segment is closed and a new one begun beyond this size, so that acknowledged output leaves the disk while
/// the unit runs.
pub const SEGMENT_BYTES: u64 = 8 << 20;

/// What can go wrong with a spool.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk refused.
    #[error("cannot {what} {}", path.display())]
    Disk {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Bytes on disk are not what was written.
    #[error("spool segment {} is damaged at byte {offset}, record {record}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the first bad frame begins.
        offset: u64,
        /// The record that should be there.
        record: u64,
    },
    /// A record is asked for that is neither here nor to come.
    #[error("record {0} is not in the spool")]
    Missing(u64),
}

impl Error {
    pub(crate) fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Disk { what, path, source }
    }

    /// True when the file system is full or the quota is used up: waiting may help.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Disk { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// First records of the segments in `dir`, ascending; empty when there is no such directory.
///
/// # Errors
/// The directory cannot be read.
pub fn segments(dir: &Path) -> Result<Vec<u64>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::disk("read", dir)(error)),
    };
    let mut firsts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::disk("read", dir))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".seg")) else { continue };
        if let Ok(first) = number.parse() {
            firsts.push(first);
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Path of the segment whose first record is `first`.
pub fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

/// Bytes the spool holds on disk.
///
/// # Errors
/// The directory cannot be read.
pub fn held_bytes(dir: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for first in segments(dir)? {
        let path = segment_path(dir, first);
        match fs::metadata(&path) {
            Ok(metadata) => sum += metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // trimmed just now
            Err(error) => return Err(Error::disk("look at", &path)(error)),
        }
    }
    Ok(sum)
}

/// Deletes every segment whose records are all acknowledged. The newest stays: its writer is at work in it.
///
/// # Errors
/// A segment cannot be deleted.
pub fn trim(dir: &Path, acked: u64) -> Result<bool, Error> {
    let firsts = segments(dir)?;
    let mut trimmed = false;
    for pair in firsts.windows(2) {
        if pair[1] <= acked.saturating_add(1) {
            let path = segment_path(dir, pair[0]);
            fs::remove_file(&path).map_err(Error::disk("delete", &path))?;
            trimmed = true;
        }
    }
    Ok(trimmed)
}

#[cfg(test)]
mod tests;
