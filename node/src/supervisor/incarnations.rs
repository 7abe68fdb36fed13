//! The highest incarnation of each cluster's database that this node was shown.
//!
//! A controller restored from a backup does not know which epochs it gave out since. Its units may be unknown
//! here, so the memory is the node's, not the units': whoever comes with a past incarnation acts on nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use plexus_proto::id::{ClusterId, OwnerEpoch};
use plexus_proto::work::{Refusal, RefusalCode};

use crate::work::refusal;

/// The file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}; delete it only if no cluster was ever restored from a backup", path.display())]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The memory, and its file.
#[derive(Debug)]
pub(super) struct Incarnations {
    path: PathBuf,
    highest: Mutex<BTreeMap<ClusterId, u64>>,
}

impl Incarnations {
    /// Reads what is known.
    pub(super) fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join("incarnations.json");
        let highest = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error { path: path.clone(), source: error.into() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(Error { path, source }),
        };
        Ok(Self { path, highest: Mutex::new(highest) })
    }

    /// Checks an epoch against the highest incarnation of its cluster, and stores a higher one, synced. That
    /// happens once in the life of a database, so the caller's thread may wait for the disk.
    ///
    /// # Errors
    /// A past incarnation, or a disk that refuses.
    pub(super) fn check(&self, cluster: &ClusterId, epoch: OwnerEpoch) -> Result<(), Refusal> {
        let mut highest = self.highest.lock().expect("no code panics under this lock");
        let known = highest.get(cluster).copied();
        if known == Some(epoch.incarnation) {
            return Ok(());
        }
        if let Some(known) = known.filter(|known| *known > epoch.incarnation) {
            let message = format!(
                "cluster {cluster} was seen with incarnation {known}; {} is past: its database was restored from a backup",
                epoch.incarnation
            );
            return Err(Refusal { incarnation: known, ..refusal(RefusalCode::PastIncarnation, message) });
        }
        let mut raised = highest.clone();
        raised.insert(cluster.clone(), epoch.incarnation);
        self.store(&raised).map_err(|error| {
            refusal(RefusalCode::NodeFull, format!("this node cannot store the incarnation: {error}"))
        })?;
        *highest = raised;
        Ok(())
    }

    fn store(&self, highest: &BTreeMap<ClusterId, u64>) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(highest)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::unsynced_bytes;

    #[test]
    fn an_incarnation_is_on_the_disk_before_it_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let epoch = OwnerEpoch { incarnation: 7, counter: 1 };
        Incarnations::open(dir.path()).unwrap().check(&"main".parse().unwrap(), epoch).unwrap();
        assert_eq!(unsynced_bytes(&dir.path().join("incarnations.json")), 0);
    }

    #[test]
    fn a_past_incarnation_acts_on_nothing_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (main, other): (ClusterId, ClusterId) = ("main".parse().unwrap(), "other".parse().unwrap());
        let epoch = |incarnation| OwnerEpoch { incarnation, counter: 9 };
        let known = Incarnations::open(dir.path()).unwrap();
        known.check(&main, epoch(1)).unwrap();
        known.check(&main, epoch(3)).unwrap();
        known.check(&other, epoch(1)).unwrap();
        let refusal = known.check(&main, epoch(2)).unwrap_err();
        assert_eq!((refusal.code(), refusal.incarnation), (RefusalCode::PastIncarnation, 3));
        let known = Incarnations::open(dir.path()).unwrap();
        assert!(known.check(&main, epoch(2)).is_err());
        known.check(&main, epoch(3)).unwrap();
        fs::write(dir.path().join("incarnations.json"), "{").unwrap();
        assert!(Incarnations::open(dir.path()).is_err());
    }
}
