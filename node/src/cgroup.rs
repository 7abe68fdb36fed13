//! A control group (version 2) per unit, where one can be made: the sure way to end a tree whose shim is dead.
//!
//! Where none can be made (no v2 hierarchy, no delegation), nothing happens: the shim, as subreaper, and the
//! marker in the environment serve alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// File, in the runtime directory of a shim, that holds the path of its group.
pub const NOTE: &str = "cgroup";
/// Pause between two looks at a group that is being killed.
const KILL_PAUSE: Duration = Duration::from_millis(10);

/// Moves this process into a new group below its own, and writes the group's path to `note`. For every move the kernel waits
/// until all processors have passed through its scheduler, and nobody on the machine forks meanwhile: 20 ms, more under load.
pub fn join(name: &str, note: &Path) -> Option<PathBuf> {
    let group = own_group()?.join(format!("plexus-{name}"));
    fs::create_dir(&group).ok()?;
    let joined = fs::write(note, group.as_os_str().as_encoded_bytes())
        .and_then(|()| fs::write(group.join("cgroup.procs"), std::process::id().to_string()));
    if joined.is_err() {
        fs::remove_dir(&group).ok();
        fs::remove_file(note).ok();
        return None;
    }
    Some(group)
}

/// Moves this process back to where it came from and removes its group, if nobody else is in it.
pub fn leave(group: &Path) {
    if let Some(parent) = group.parent() {
        fs::write(parent.join("cgroup.procs"), std::process::id().to_string()).ok();
    }
    fs::remove_dir(group).ok(); // where the parent takes no processes, a sweep removes it later
}

/// Removes the group that a child joined under this name, if nobody is in it.
pub fn remove(name: &str) {
    if let Some(own) = own_group() {
        fs::remove_dir(own.join(format!("plexus-{name}"))).ok(); // a sweep removes it later
    }
}

/// Removes all empty groups that [`join`] made under a name that begins with `prefix`; how many are left.
pub fn sweep(prefix: &str) -> usize {
    let wanted = format!("plexus-{prefix}");
    let Some(own) = own_group() else { return 0 };
    let groups = fs::read_dir(own).into_iter().flatten().flatten();
    let groups =
        groups.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&wanted)));
    // Refused by the kernel while somebody is in it.
    groups.filter(|entry| fs::remove_dir(entry.path()).is_err()).count()
}

/// The group noted by [`join`], if there was one and it still exists.
pub fn noted(note: &Path) -> Option<PathBuf> {
    let group = PathBuf::from(fs::read_to_string(note).ok()?);
    (group.file_name()?.to_str()?.starts_with("plexus-") && group.join("cgroup.procs").exists())
        .then_some(group)
}

/// Kills everything in a group and removes it; false when something is left after `patience`. Blocks.
pub fn end(group: &Path, patience: Duration) -> bool {
    let give_up = Instant::now() + patience;
    loop {
        // Kernels before 5.14 have no cgroup.kill; there the walk over the marker does it.
        fs::write(group.join("cgroup.kill"), "1").ok();
        match fs::remove_dir(group) {
            Ok(()) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
            Err(_) if Instant::now() >= give_up => return false,
            Err(_) => std::thread::sleep(KILL_PAUSE),
        }
    }
}

/// Path of this process's own v2 group in the file system, as it was when first asked for: below it are all that it makes.
fn own_group() -> Option<&'static Path> {
    static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let read = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        find_group(&mounts, &own)
    };
    OWN.get_or_init(read).as_deref()
}

fn find_group(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, mount) = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let (root, mount) = (fields.nth(3)?, fields.next()?);
        after.starts_with("cgroup2 ").then_some((root, mount))
    })?;
    let below = own.strip_prefix(root.trim_end_matches('/'))?;
    Some(Path::new(mount).join(below.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_pure_and_mixed_hierarchies() {
        let pure = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_group(pure, "0::/system.slice/plexus-node.service\n"),
            Some("/sys/fs/cgroup/system.slice/plexus-node.service".into())
        );
        let mixed = "25 30 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     26 30 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_group(mixed, "1:cpu:/x\n0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        let contained = "26 30 0:24 /docker/7 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_group(contained, "0::/docker/7/a\n"), Some("/sys/fs/cgroup/a".into()));
        assert_eq!(find_group("", "0::/\n"), None);
        assert_eq!(find_group(pure, "1:cpu:/\n"), None);
    }

    #[test]
    fn a_killed_group_is_empty_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("cgroup");
        // A child joins a group by way of its own shell; this process stays where it is.
        let Some(own) = own_group() else { return };
        let name = format!("test-{}", std::process::id());
        let group = own.join(format!("plexus-{name}"));
        if fs::create_dir(&group).is_err() || !group.join("cgroup.kill").exists() {
            fs::remove_dir(&group).ok();
            return; // no delegation here: the fallback is what this machine uses
        }
        fs::write(&note, group.as_os_str().as_encoded_bytes()).unwrap();
        let script = format!("echo $$ > {}/cgroup.procs; (setsid sleep 60 &) ; sleep 60", group.display());
        let mut child = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let full = Instant::now() + Duration::from_secs(10);
        while fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count() < 3 {
            assert!(Instant::now() < full, "the children never came");
            std::thread::sleep(KILL_PAUSE);
        }
        assert_eq!(noted(&note), Some(group.clone()));
        assert_eq!(sweep(&name), 1);
        assert!(group.exists(), "a sweep ends nothing that lives");
        assert!(end(&group, Duration::from_secs(10)));
        assert!(!child.wait().unwrap().success());
        assert_eq!(noted(&note), None);
        fs::create_dir(&group).unwrap();
        assert_eq!(sweep(&name), 0);
        assert!(!group.exists());
    }
}
