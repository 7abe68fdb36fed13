//! Attempts that were forgotten or given up here: none of them ever starts again.
//!
//! A controller restored from a backup may submit what ran and was forgotten since. Names outlive their units by
//! [`KEPT_DAYS`], in one append-only file a day, so that forgetting them in turn is one unlink. An entry is 24 bytes: unit,
//! attempt, both as on the wire, and a checksum; a torn last entry promised nothing and is passed over.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use plexus_proto::id::{Attempt, UnitId};
use uuid::Uuid;

/// How long a name outlives its unit. A backup that is older must not be restored without `db recovered`.
const KEPT_DAYS: u64 = 90;
/// Bytes of one entry.
const ENTRY: usize = 24;

/// The names cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The memory, and its files.
#[derive(Debug)]
pub(super) struct Tombstones {
    dir: PathBuf,
    /// 20 bytes an attempt: 90 days of 10,000 units a day are some 40 MB with the tree around them.
    names: Mutex<BTreeSet<Attempt>>,
    /// To be written by whoever writes next.
    waiting: Mutex<Vec<Attempt>>,
    /// Held by the one that writes.
    writing: Mutex<()>,
}

impl Tombstones {
    /// Reads what is known, and drops what is older than it need be. `today` counts days of any epoch.
    pub(super) fn open(data_dir: &Path, today: u64) -> Result<Self, Error> {
        let dir = data_dir.join("tombstones");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed(&dir))?;
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(failed(&dir))?.flatten() {
            let Some(day) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
                continue;
            };
            if day.saturating_add(KEPT_DAYS) < today {
                fs::remove_file(entry.path()).ok(); // the next start tries again
                continue;
            }
            let mut bytes = Vec::new();
            File::open(entry.path())
                .and_then(|mut file| file.read_to_end(&mut bytes))
                .map_err(failed(&entry.path()))?;
            names.extend(bytes.chunks_exact(ENTRY).filter_map(parse));
        }
        Ok(Self { dir, names: Mutex::new(names), waiting: Mutex::default(), writing: Mutex::default() })
    }

    /// True for an attempt that must not start.
    pub(super) fn holds(&self, attempt: Attempt) -> bool {
        self.names.lock().expect("no code panics under this lock").contains(&attempt)
    }

    /// Stores a name, synced; with it all that came while another was being synced. Again changes nothing. Blocks for the
    /// disk.
    pub(super) fn bury(&self, attempt: Attempt, today: u64) -> io::Result<()> {
        self.waiting.lock().expect("no code panics under this lock").push(attempt);
        let _writing = self.writing.lock().expect("no code panics under this lock");
        let mut batch = std::mem::take(&mut *self.waiting.lock().expect("no code panics under this lock"));
        // Another may have taken it along, and may have failed to write it: then it is this one's.
        batch.push(attempt);
        {
            let names = self.names.lock().expect("no code panics under this lock");
            batch.sort_unstable();
            batch.dedup();
            batch.retain(|attempt| !names.contains(attempt));
        }
        if !batch.is_empty() {
            self.write(&batch, today)?;
            self.names.lock().expect("no code panics under this lock").extend(batch);
        }
        Ok(())
    }

    fn write(&self, batch: &[Attempt], today: u64) -> io::Result<()> {
        let path = self.dir.join(today.to_string());
        let fresh = !path.exists();
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        // A torn entry of an earlier life would shift all that follow it.
        let torn = file.metadata()?.len() % ENTRY as u64;
        if torn != 0 {
            file.set_len(file.metadata()?.len() - torn)?;
        }
        file.write_all(&batch.iter().flat_map(|attempt| entry(*attempt)).collect::<Vec<u8>>())?;
        file.sync_data()?;
        if fresh {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }
}

/// Days since 1970 by this machine's clock, which only decides how long names are kept.
pub(super) fn today() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs() / 86_400)
}

fn entry(attempt: Attempt) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..16].copy_from_slice(attempt.unit.0.as_bytes());
    bytes[16..20].copy_from_slice(&attempt.number.to_le_bytes());
    let check = blake3::hash(&bytes[..20]);
    bytes[20..].copy_from_slice(&check.as_bytes()[..4]);
    bytes
}

fn parse(bytes: &[u8]) -> Option<Attempt> {
    let unit = UnitId(Uuid::from_slice(bytes.get(..16)?).ok()?);
    let attempt = Attempt { unit, number: u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?) };
    (entry(attempt) == bytes).then_some(attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::unsynced_bytes;

    fn attempt(unit: u128) -> Attempt {
        Attempt { unit: UnitId(Uuid::from_u128(unit)), number: 1 }
    }

    #[test]
    fn names_outlive_restarts_for_ninety_days() {
        let dir = tempfile::tempdir().unwrap();
        let names = Tombstones::open(dir.path(), 100).unwrap();
        names.bury(attempt(1), 100).unwrap();
        names.bury(attempt(1), 100).unwrap();
        names.bury(attempt(2), 101).unwrap();
        assert_eq!(fs::metadata(dir.path().join("tombstones/100")).unwrap().len(), ENTRY as u64);
        for (today, first, second) in
            [(101, true, true), (190, true, true), (191, false, true), (192, false, false)]
        {
            let names = Tombstones::open(dir.path(), today).unwrap();
            assert_eq!((names.holds(attempt(1)), names.holds(attempt(2))), (first, second), "day {today}");
        }
    }

    #[test]
    fn a_buried_name_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        Tombstones::open(dir.path(), 7).unwrap().bury(attempt(1), 7).unwrap();
        assert_eq!(unsynced_bytes(&dir.path().join("tombstones/7")), 0);
    }

    #[test]
    fn names_that_come_together_are_all_on_the_disk_when_each_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let names = Tombstones::open(dir.path(), 7).unwrap();
        let path = dir.path().join("tombstones/7");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (names, path) = (&names, &path);
                scope.spawn(move || {
                    for number in 0..50 {
                        // Some come twice, from two at once.
                        let attempt = attempt(1 + (thread / 2) * 1000 + number * (1 + thread % 2));
                        names.bury(attempt, 7).unwrap();
                        let told = fs::read(path).unwrap();
                        assert!(told.chunks_exact(ENTRY).any(|bytes| parse(bytes) == Some(attempt)));
                    }
                });
            }
        });
        let written = fs::read(&path).unwrap();
        let all: BTreeSet<_> = written.chunks_exact(ENTRY).filter_map(parse).collect();
        assert_eq!(written.len(), all.len() * ENTRY, "none is written twice");
        assert_eq!(unsynced_bytes(&path), 0);
    }

    #[test]
    fn a_torn_or_damaged_entry_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tombstones/7");
        let names = Tombstones::open(dir.path(), 7).unwrap();
        names.bury(attempt(1), 7).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[9; 5]).unwrap();
        let names = Tombstones::open(dir.path(), 7).unwrap();
        names.bury(attempt(2), 7).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[3] ^= 1;
        fs::write(&path, bytes).unwrap();
        let names = Tombstones::open(dir.path(), 7).unwrap();
        assert!(!names.holds(attempt(1)) && names.holds(attempt(2)));
    }
}
