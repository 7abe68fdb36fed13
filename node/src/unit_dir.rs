//! What the agent remembers of a unit on disk: one directory per attempt.
//!
//! ```text
//! units/<unit>.<attempt>/
//!     unit       JSON, a line for each step, each synced before anybody is told:
//!                  owner and specification, before Submit is answered
//!                  that it starts, before the worker may: from here on the unit never starts again. With the name of the
//!                  waiting container that it takes, if it takes one
//!                  how it ended, and how many records it has; outlives the spool
//!     spool/     records, until acknowledged
//!     project/   the writable working copy of the project tree
//! ```
//!
//! One file, because a line at the end of a file is on the disk in a quarter of the time that a new file takes. A line without its
//! end was being written when the machine went down: it was told to nobody, and does not count.
//!
//! Nothing here is secret: the private block lives below the runtime directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

use plexus_proto::id::{Attempt, ClusterId, NodeId, OwnerEpoch, UnitId};
use plexus_proto::work::{Finished, TreeRef, UnitSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::apart::keep_apart;
use crate::work::Owner;

/// The directory cannot be read or written.
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
    /// The file is not what this build wrote.
    #[error("{} does not parse", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { what, path, source }
}

/// Names and files of one attempt on disk.
#[derive(Debug, Clone)]
pub struct UnitDir {
    attempt: Attempt,
    path: PathBuf,
}

/// How a unit ended, as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// The outcome.
    pub finished: Finished,
    /// Number of its last record.
    pub records: u64,
}

impl UnitDir {
    /// Names the directory of `attempt` below `units`.
    pub fn new(units: &Path, attempt: Attempt) -> Self {
        Self { attempt, path: units.join(attempt.to_string()) }
    }

    /// Which attempt.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its records are.
    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// Where its working copy is.
    pub fn project(&self) -> PathBuf {
        self.path.join("project")
    }

    /// Where the project of a container that waited for the unit is shown.
    pub fn stage(&self) -> PathBuf {
        self.path.join("project.warm")
    }

    /// Stores owner and specification, synced. Makes the directory at the first call.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn store(&self, owner: &Owner, spec: &UnitSpec) -> Result<(), Error> {
        self.store_in(None, owner, spec)
    }

    /// The same; at the first call, the directory may be one that was [made ahead](make_ahead), which is used up.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn store_in(&self, ahead: Option<&Path>, owner: &Owner, spec: &UnitSpec) -> Result<(), Error> {
        let (path, parent) = (self.file(), self.path.parent().unwrap_or(&self.path));
        let line = encode(&path, &UnitFile::new(owner, spec))?;
        if let Some(ahead) = ahead {
            if fs::rename(ahead, &self.path).is_ok() {
                let file = fs::OpenOptions::new().write(true).open(&path).map_err(disk("open", &path))?;
                return write_named(file, &line, &[parent]).map_err(disk("write", &path));
            }
            remove_tree(ahead)?; // what an earlier try left has the name
        }
        if whole(&self.read()?) > 0 {
            return self.replace(line);
        }
        // The spool's own name is safe with it, so that its records are once they are synced.
        let spool = self.spool();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&spool).map_err(disk("make", &spool))?;
        write_named(create(&path)?, &line, &[&self.path, parent]).map_err(disk("write", &path))
    }

    /// Reads owner and specification; `None` when they were never stored: its owner was told nothing.
    ///
    /// # Errors
    /// The disk refuses, or the file is not ours.
    pub fn load(&self) -> Result<Option<(Owner, UnitSpec)>, Error> {
        let text = self.read()?;
        let Some(first) = lines(&text).next() else { return Ok(None) };
        let parsed = serde_json::from_slice::<UnitFile>(first);
        parsed
            .map(|file| Some(file.into_parts()))
            .map_err(|source| Error::Parse { path: self.file(), source })
    }

    /// Marks the unit as started, synced: whatever happens, it is never started again. `claim` names the waiting container
    /// that it takes, if it takes one: nobody else ever does.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn mark_starting(&self, claim: Option<&str>) -> Result<(), Error> {
        self.append(&Note::Starting { claim: claim.map(str::to_owned) })
    }

    /// True when the unit took this waiting container, or when that cannot be told.
    pub fn has_claimed(&self, slot: &str) -> bool {
        self.notes().map_or(true, |notes| {
            notes.iter().any(|note| matches!(note, Note::Starting { claim: Some(claim) } if claim == slot))
        })
    }

    /// True when [`UnitDir::mark_starting`] was reached, or when that cannot be told.
    pub fn is_marked(&self) -> bool {
        self.notes().map_or(true, |notes| notes.iter().any(|note| matches!(note, Note::Starting { .. })))
    }

    /// Stores how it ended, synced. The latest counts.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn store_outcome(&self, ended: &Ended) -> Result<(), Error> {
        let Finished { outcome, exit_code, signal, reason } = ended.finished.clone();
        self.append(&Note::Ended { outcome, exit_code, signal, reason, records: ended.records })
    }

    /// Reads how it ended.
    ///
    /// # Errors
    /// The disk refuses, or the file is not ours.
    pub fn load_outcome(&self) -> Result<Option<Ended>, Error> {
        Ok(self.notes()?.into_iter().rev().find_map(|note| match note {
            Note::Ended { outcome, exit_code, signal, reason, records } => {
                Some(Ended { finished: Finished { outcome, exit_code, signal, reason }, records })
            }
            Note::Starting { .. } => None,
        }))
    }

    fn file(&self) -> PathBuf {
        self.path.join("unit")
    }

    /// What was noted since the unit was stored.
    fn notes(&self) -> Result<Vec<Note>, Error> {
        let text = self.read()?;
        let parse =
            |line| serde_json::from_slice(line).map_err(|source| Error::Parse { path: self.file(), source });
        lines(&text).skip(1).map(parse).collect()
    }

    /// The file; empty when there is none.
    fn read(&self) -> Result<Vec<u8>, Error> {
        match fs::read(self.file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(disk("read", &self.file())),
        }
    }

    /// Writes a line behind the last whole one. On an error nothing was added.
    fn append(&self, note: &Note) -> Result<(), Error> {
        let (path, end) = (self.file(), whole(&self.read()?) as u64);
        let line = encode(&path, note)?;
        let file = fs::OpenOptions::new().write(true).open(&path).map_err(disk("open", &path))?;
        let written = file.set_len(end).and_then(|()| file.write_all_at(&line, end));
        written.and_then(|()| file.sync_data()).map_err(|error| {
            file.set_len(end).ok();
            disk("write", &path)(error)
        })
    }

    /// Takes another first line, in one step, and keeps the notes.
    fn replace(&self, first: Vec<u8>) -> Result<(), Error> {
        let (path, fresh, before) = (self.file(), self.path.join("unit.new"), self.read()?);
        let notes = before[..whole(&before)].iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let text = [&first, &before[notes..whole(&before)]].concat();
        write_synced(create(&fresh)?, &text).map_err(disk("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(disk("write", &path))?;
        sync_dir(&self.path)
    }
}

/// Length of the whole lines.
fn whole(text: &[u8]) -> usize {
    text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text[..whole(text)].split_inclusive(|&byte| byte == b'\n')
}

/// A line; a JSON text has none of its own.
fn encode(path: &Path, content: &impl Serialize) -> Result<Vec<u8>, Error> {
    let text = serde_json::to_vec(content);
    let mut line = text.map_err(|source| Error::Parse { path: path.to_owned(), source })?;
    line.push(b'\n');
    Ok(line)
}

fn create(path: &Path) -> Result<File, Error> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(disk("create", path))
}

/// The one way in which a file that replaces nothing, or all of another, gets its content.
fn write_synced(mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_data()
}

/// The same for a file that is new; the directories of its name, and of theirs, are synced with it. All go side by side: the
/// disk's journal is written once for all of them.
fn write_named(file: File, content: &[u8], names: &[&Path]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sync = |dir| scope.spawn(move || File::open(dir).and_then(|dir| dir.sync_all()));
        let names: Vec<_> = names.iter().map(sync).collect();
        write_synced(file, content)?;
        names.into_iter().try_for_each(|synced| match synced.join() {
            Ok(synced) => synced,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Makes a directory in which units get theirs, each in a place of its own.
///
/// # Errors
/// The disk refuses.
pub fn make_parent(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(disk("make", dir))?;
    keep_apart(dir);
    Ok(())
}

/// Makes a directory in `dir` for a unit to come, and syncs what is in it, so that [`UnitDir::store_in`] has to give it its name and
/// its content only.
///
/// # Errors
/// The disk refuses.
pub fn make_ahead(dir: &Path) -> Result<PathBuf, Error> {
    let made = dir.join(Uuid::new_v4().to_string());
    let spool = made.join("spool");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&spool).map_err(disk("make", &spool))?;
    create(&made.join("unit"))?;
    sync_dir(&made)?;
    Ok(made)
}

/// Removes what [`make_ahead`] made in `dir` and nobody took. A power cut may leave a unit both names where the disk keeps no journal:
/// what has content stays.
pub fn clear_ahead(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if fs::metadata(entry.path().join("unit")).map_or(true, |unit| unit.len() == 0) {
            remove_tree(&entry.path()).ok(); // takes room and nothing else
        }
    }
}

/// Attempts that have a directory below `units`.
///
/// # Errors
/// The directory cannot be read.
pub fn list(units: &Path) -> Result<Vec<Attempt>, Error> {
    let entries = match fs::read_dir(units) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(disk("read", units)(error)),
    };
    let mut attempts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(disk("read", units))?;
        attempts.extend(entry.file_name().to_str().and_then(parse_name));
    }
    attempts.sort_unstable();
    Ok(attempts)
}

/// Reads `<unit>.<attempt>`.
pub fn parse_name(name: &str) -> Option<Attempt> {
    let (unit, number) = name.split_once('.')?;
    Some(Attempt { unit: UnitId(Uuid::parse_str(unit).ok()?), number: number.parse().ok()? })
}

/// Makes the names in a directory safe from power loss.
///
/// # Errors
/// The disk refuses.
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(disk("sync", dir))
}

/// Removes a directory and all below it, also below directories that may not be written. Missing is fine.
///
/// # Errors
/// Something cannot be removed; the rest may be gone.
pub fn remove_tree(dir: &Path) -> Result<(), Error> {
    let first = match fs::remove_dir_all(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => error,
    };
    if first.kind() != io::ErrorKind::PermissionDenied {
        return Err(disk("remove", dir)(first));
    }
    open_up(dir);
    fs::remove_dir_all(dir).map_err(disk("remove", dir))
}

/// Gives the owner all rights on the directories below `dir`. Symlinks are not followed.
fn open_up(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).ok();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[derive(Serialize, Deserialize)]
struct UnitFile {
    version: u32,
    cluster: ClusterId,
    owner: NodeId,
    incarnation: u64,
    counter: u64,
    spec: SpecFile,
}

#[derive(Serialize, Deserialize)]
struct SpecFile {
    label: String,
    image: String,
    pull: i32,
    tree_digest: Option<String>,
    tree_size: u64,
    grace_seconds: u32,
    timeout_seconds: u64,
    env: BTreeMap<String, String>,
    #[serde(default)]
    organization: String,
    #[serde(default)]
    keep_seconds: u32,
    #[serde(default)]
    owner_deadline_seconds: u64,
    #[serde(default)]
    collect: bool,
}

/// A line after the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Note {
    Starting { claim: Option<String> },
    Ended { outcome: i32, exit_code: Option<i32>, signal: Option<i32>, reason: String, records: u64 },
}

impl UnitFile {
    fn new(owner: &Owner, spec: &UnitSpec) -> Self {
        Self {
            version: 1,
            cluster: owner.cluster.clone(),
            owner: owner.node.clone(),
            incarnation: owner.epoch.incarnation,
            counter: owner.epoch.counter,
            spec: SpecFile {
                label: spec.label.clone(),
                image: spec.image.clone(),
                pull: spec.pull,
                tree_digest: spec.tree.as_ref().map(|tree| plexus_tree::store::hex(&tree.digest)),
                tree_size: spec.tree.as_ref().map_or(0, |tree| tree.size),
                grace_seconds: spec.grace_seconds,
                timeout_seconds: spec.timeout_seconds,
                env: spec.env.clone(),
                organization: spec.organization.clone(),
                keep_seconds: spec.keep_seconds,
                owner_deadline_seconds: spec.owner_deadline_seconds,
                collect: spec.collect,
            },
        }
    }

    fn into_parts(self) -> (Owner, UnitSpec) {
        let owner = Owner {
            cluster: self.cluster,
            node: self.owner,
            epoch: OwnerEpoch { incarnation: self.incarnation, counter: self.counter },
        };
        let size = self.spec.tree_size;
        let spec = UnitSpec {
            label: self.spec.label,
            image: self.spec.image,
            pull: self.spec.pull,
            tree: self.spec.tree_digest.map(|digest| TreeRef {
                digest: plexus_tree::store::unhex(&digest).map(Vec::from).unwrap_or_default().into(),
                size,
            }),
            grace_seconds: self.spec.grace_seconds,
            timeout_seconds: self.spec.timeout_seconds,
            env: self.spec.env,
            organization: self.spec.organization,
            keep_seconds: self.spec.keep_seconds,
            owner_deadline_seconds: self.spec.owner_deadline_seconds,
            collect: self.spec.collect,
        };
        (owner, spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::unsynced_bytes;

    fn attempt() -> Attempt {
        Attempt { unit: UnitId(Uuid::from_u128(77)), number: 3 }
    }

    fn owner(counter: u64) -> Owner {
        Owner {
            cluster: "main".parse().expect("a valid name"),
            node: "controller".parse().expect("a valid name"),
            epoch: OwnerEpoch { incarnation: 1, counter },
        }
    }

    #[test]
    fn what_a_failed_or_torn_store_left_is_no_obstacle() {
        for torn in [None, Some("{\"version\": 1, \"clu")] {
            let dir = tempfile::tempdir().unwrap();
            let unit = UnitDir::new(dir.path(), attempt());
            fs::create_dir(unit.path()).unwrap();
            torn.iter().for_each(|text| fs::write(unit.file(), text).unwrap());
            assert_eq!(unit.load().unwrap(), None);
            unit.store(&owner(7), &UnitSpec::default()).unwrap();
            assert_eq!(unit.load().unwrap(), Some((owner(7), UnitSpec::default())));
            assert!(unit.spool().is_dir(), "a launch finds it");
        }
    }

    #[test]
    fn a_directory_that_was_made_ahead_is_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let (units, ahead) = (dir.path().join("units"), dir.path().join("ahead"));
        fs::create_dir(&units).unwrap();
        let unit = UnitDir::new(&units, attempt());
        let made = make_ahead(&ahead).unwrap();
        unit.store_in(Some(&made), &owner(7), &UnitSpec::default()).unwrap();
        assert!(!made.exists() && unit.spool().is_dir());
        assert_eq!(unit.load().unwrap(), Some((owner(7), UnitSpec::default())));
        // One that has its directory already keeps it.
        unit.mark_starting(None).unwrap();
        let made = make_ahead(&ahead).unwrap();
        unit.store_in(Some(&made), &owner(8), &UnitSpec::default()).unwrap();
        assert!(!made.exists() && unit.is_marked());
        assert_eq!(unit.load().unwrap(), Some((owner(8), UnitSpec::default())));

        // Nobody's goes, and a unit's with both names does not.
        make_ahead(&ahead).unwrap();
        let both = ahead.join("both");
        fs::rename(unit.path(), &both).unwrap();
        clear_ahead(&ahead);
        let left: Vec<_> = fs::read_dir(&ahead).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [both]);
    }

    #[test]
    fn what_is_stored_is_on_the_disk_also_where_its_directory_was_made_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir::new(dir.path(), attempt());
        let made = make_ahead(&dir.path().join("ahead")).unwrap();
        unit.store_in(Some(&made), &owner(7), &UnitSpec::default()).unwrap();
        assert_eq!(unsynced_bytes(&unit.file()), 0);
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir::new(dir.path(), attempt());
        assert!(unit.load().unwrap().is_none());
        let spec = UnitSpec {
            label: "job 12".to_owned(),
            image: "localhost/ee".to_owned(),
            tree: Some(TreeRef { digest: vec![7; 32].into(), size: 99 }),
            grace_seconds: 10,
            env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
            ..UnitSpec::default()
        };
        unit.store(&owner(7), &spec).unwrap();
        assert_eq!(unit.load().unwrap(), Some((owner(7), spec)));
        assert!(!unit.is_marked());
        unit.mark_starting(Some("slot")).unwrap();
        assert!(unit.is_marked() && unit.has_claimed("slot") && !unit.has_claimed("other"));
        let ended = Ended {
            finished: Finished { outcome: 2, exit_code: Some(4), signal: None, reason: "x".to_owned() },
            records: 9,
        };
        assert_eq!(unit.load_outcome().unwrap(), None);
        unit.store_outcome(&ended).unwrap();
        assert_eq!(unit.load_outcome().unwrap(), Some(ended));
        assert_eq!(list(dir.path()).unwrap(), [attempt()]);
    }

    #[test]
    fn what_is_stored_is_on_the_disk() {
        // Each in a file of its own: ext4 writes what it finds in one that was cut to nothing before when it is closed, synced or not.
        let after = |step: fn(&UnitDir)| {
            let dir = tempfile::tempdir().unwrap();
            let unit = UnitDir::new(dir.path(), attempt());
            unit.store(&owner(7), &UnitSpec::default()).unwrap();
            step(&unit);
            unsynced_bytes(&unit.file())
        };
        assert_eq!(after(|_| ()), 0);
        assert_eq!(after(|unit| unit.store(&owner(8), &UnitSpec::default()).unwrap()), 0);
        // Enough to fill a page of its own.
        assert_eq!(after(|unit| unit.mark_starting(Some(&"x".repeat(9000))).unwrap()), 0);
        let ended = |unit: &UnitDir| {
            let finished = Finished { reason: "x".repeat(9000), ..Finished::default() };
            unit.store_outcome(&Ended { finished, records: 9 }).unwrap();
        };
        assert_eq!(after(ended), 0);
    }

    #[test]
    fn what_replaces_an_intent_is_on_the_disk_before_it_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir::new(dir.path(), attempt());
        unit.store(&owner(7), &UnitSpec::default()).unwrap();
        // Written through a link, for ext4 writes a file by itself when it takes another's name.
        let written = dir.path().join("written");
        std::os::unix::fs::symlink(&written, unit.path().join("unit.new")).unwrap();
        unit.store(&owner(8), &UnitSpec::default()).unwrap();
        assert_eq!(unit.load().unwrap(), Some((owner(8), UnitSpec::default())));
        assert!(fs::metadata(&written).unwrap().len() > 0);
        assert_eq!(unsynced_bytes(&written), 0);
    }

    #[test]
    fn cut_anywhere_it_tells_what_was_whole_and_takes_the_next_line() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir::new(dir.path(), attempt());
        let length = || fs::metadata(unit.file()).unwrap().len();
        let ended = Ended { finished: Finished { outcome: 2, ..Finished::default() }, records: 9 };
        unit.store(&owner(7), &UnitSpec::default()).unwrap();
        let stored = length();
        unit.mark_starting(Some("slot")).unwrap();
        let marked = length();
        unit.store_outcome(&ended).unwrap();
        let text = fs::read(unit.file()).unwrap();
        for cut in 0..=length() {
            fs::write(unit.file(), &text[..usize::try_from(cut).unwrap()]).unwrap();
            assert_eq!(unit.load().unwrap().is_some(), cut >= stored, "{cut}");
            assert_eq!((unit.is_marked(), unit.has_claimed("slot")), (cut >= marked, cut >= marked), "{cut}");
            assert_eq!(unit.load_outcome().unwrap().is_some(), cut == text.len() as u64, "{cut}");
            if cut >= stored {
                if cut % 2 == 0 {
                    unit.store(&owner(8), &UnitSpec::default()).unwrap();
                }
                unit.store_outcome(&ended).unwrap();
                assert_eq!(unit.load_outcome().unwrap().as_ref(), Some(&ended), "{cut}");
                assert_eq!(unit.is_marked(), cut >= marked, "{cut}");
                let counter = unit.load().unwrap().unwrap().0.epoch.counter;
                assert_eq!(counter, if cut % 2 == 0 { 8 } else { 7 });
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_never_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let unit = UnitDir::new(dir.path(), attempt());
        fs::create_dir(unit.path()).unwrap();
        fs::write(unit.file(), "no unit\nno note\n").unwrap();
        assert!(unit.load().is_err() && unit.load_outcome().is_err());
        assert!(unit.is_marked() && unit.has_claimed("slot"));
    }

    #[test]
    fn names_that_are_no_attempt_are_passed_over() {
        for name in ["", ".", "x.1", "01890a5d-ac96-774b-bcce-b302099a8057", "lost+found"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
        assert_eq!(parse_name(&attempt().to_string()), Some(attempt()));
    }

    #[test]
    fn read_only_directories_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("top/deep");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&deep, fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&dir.path().join("top")).unwrap();
        assert!(!dir.path().join("top").exists());
        remove_tree(&dir.path().join("top")).unwrap();
    }
}
