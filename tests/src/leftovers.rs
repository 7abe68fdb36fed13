//! What a cluster left on the machine: processes, containers, files.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::layout::podman_command;

/// Everything found that has to do with a cluster's folders.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes that have to do with a folder of the cluster: pid and command line.
    pub processes: Vec<(u32, String)>,
    /// Containers with a mount from a folder of the cluster.
    pub containers: Vec<String>,
    /// Files of units that still lie there: private data on tmpfs, spools.
    pub files: Vec<PathBuf>,
    /// File systems mounted below a folder of the cluster.
    pub mounts: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for processes that have to do with `dirs`, and for containers and private data of the node whose folder on tmpfs
    /// is `runtime_dir`. `with_containers` asks podman, which costs about 0.1 s.
    pub fn find(dirs: &[&Path], runtime_dir: &Path, with_containers: bool) -> Self {
        Self {
            processes: processes(dirs),
            containers: if with_containers { containers(runtime_dir) } else { Vec::new() },
            files: private(runtime_dir),
            mounts: mounts(dirs),
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Kills the processes, removes the containers and takes down the mounts that were found; the folders are the caller's.
    pub fn sweep(&self) {
        for (pid, _) in &self.processes {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        if !self.containers.is_empty() {
            podman(&["rm", "--force", "--time", "0"], &self.containers);
        }
        for at in &self.mounts {
            unmount(at, UnmountFlags::DETACH).ok(); // without the right to, it was not ours
        }
    }
}

/// Which of the canaries files below the folder hold, in words; none is right.
pub fn found_in_files(dir: &Path, canaries: &[impl AsRef<[u8]>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = fs::read(&path).unwrap_or_default();
                    let canaries = canaries.iter().map(AsRef::as_ref);
                    let hits = canaries.filter(|canary| memchr::memmem::find(&bytes, canary).is_some());
                    found.extend(
                        hits.map(|canary| {
                            format!("{} in {}", String::from_utf8_lossy(canary), path.display())
                        }),
                    );
                }
                _ => {}
            }
        }
    }
    found
}

/// Processes other than this one that have to do with one of the folders: by an argument, a variable of their environment,
/// their working directory or an open file. A shim names nothing in its arguments; its spool gives it away.
fn processes(dirs: &[&Path]) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != std::process::id())
        .filter_map(|pid| {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // A zombie is its parent's affair; it runs nothing and holds nothing.
            if state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
                return None;
            }
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let ours = dirs
                .iter()
                .any(|dir| mentions(&arguments, dir) || mentions(&environment, dir) || holds(pid, dir));
            let line = String::from_utf8_lossy(&arguments).replace('\0', " ");
            ours.then_some((pid, line.trim().to_owned()))
        })
        .collect()
}

fn mentions(text: &[u8], dir: &Path) -> bool {
    let dir = dir.as_os_str().as_bytes();
    text.windows(dir.len()).any(|part| part == dir)
}

/// Whether the working directory or an open file of a process lies below the folder.
fn holds(pid: u32, dir: &Path) -> bool {
    let below = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    below(Path::new(&format!("/proc/{pid}/cwd")))
        || fs::read_dir(format!("/proc/{pid}/fd"))
            .is_ok_and(|files| files.flatten().any(|file| below(&file.path())))
}

/// Containers of any state with a mount below the folder.
fn containers(runtime_dir: &Path) -> Vec<String> {
    let ids: Vec<String> =
        podman(&["ps", "--all", "--quiet", "--no-trunc", "--filter", "label=plexus.unit"], &[])
            .lines()
            .map(str::to_owned)
            .collect();
    ids.into_iter()
        .filter(|id| {
            podman(
                &["inspect", "--format", "{{range .Mounts}}{{.Source}}\n{{end}}"],
                std::slice::from_ref(id),
            )
            .lines()
            .any(|source| Path::new(source).starts_with(runtime_dir))
        })
        .collect()
}

/// Control groups that the agent with this store made for shims.
pub(crate) fn groups(store: &str) -> Vec<PathBuf> {
    let is_ours = |dir: &Path| {
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&format!("plexus-{store}"))
    };
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(dir) = open.pop() {
        let below = fs::read_dir(dir).into_iter().flatten().flatten();
        let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let (ours, others): (Vec<_>, Vec<_>) =
            folders.map(|entry| entry.path()).partition(|dir| is_ours(dir));
        found.extend(ours);
        open.extend(others);
    }
    found
}

/// Mounts below one of the folders, innermost last.
fn mounts(dirs: &[&Path]) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    places.filter(|at| dirs.iter().any(|dir| at.starts_with(dir))).collect()
}

/// Folders of units on tmpfs.
fn private(runtime_dir: &Path) -> Vec<PathBuf> {
    let units = runtime_dir.join("node-1").join("units");
    fs::read_dir(units)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

fn podman(args: &[&str], more: &[String]) -> String {
    let command = podman_command();
    let Some((program, first)) = command.split_first() else { return String::new() };
    Command::new(program)
        .args(first)
        .args(args)
        .args(more)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_found_at_any_depth_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), b"\0password\0").unwrap();
        fs::write(dir.path().join("other"), b"pass").unwrap();
        let found = found_in_files(dir.path(), &["password", "passphrase"]);
        assert_eq!(found, [format!("password in {}", deep.join("file").display())]);
    }
}
