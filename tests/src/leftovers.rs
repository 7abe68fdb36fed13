//! What a cluster left on the machine: processes, containers, files on tmpfs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::layout::podman_command;

/// Everything found that names a cluster's folders.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes whose command line names a folder of the cluster: pid and command line.
    pub processes: Vec<(u32, String)>,
    /// Containers with a mount from a folder of the cluster.
    pub containers: Vec<String>,
    /// Private data that still lies on tmpfs.
    pub private: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for them. `with_containers` asks podman too, which costs about 0.1 s.
    pub fn find(dir: &Path, runtime_dir: &Path, with_containers: bool) -> Self {
        Self {
            processes: processes(&[dir, runtime_dir]),
            containers: if with_containers { containers(runtime_dir) } else { Vec::new() },
            private: private(runtime_dir),
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Kills the processes and removes the containers that were found; the folders are the caller's.
    pub fn sweep(&self) {
        for (pid, _) in &self.processes {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        if !self.containers.is_empty() {
            podman(&["rm", "--force", "--time", "0"], &self.containers);
        }
    }
}

/// Processes other than this one whose arguments name one of the folders.
fn processes(dirs: &[&Path]) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != std::process::id())
        .filter_map(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // A zombie is its parent's affair; it runs nothing and holds nothing.
            if state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
                return None;
            }
            let ours = arguments.split(|&byte| byte == 0).any(|argument| {
                let argument = PathBuf::from(OsString::from_vec(argument.to_vec()));
                dirs.iter().any(|dir| {
                    argument.starts_with(dir) || argument.to_string_lossy().contains(&*dir.to_string_lossy())
                })
            });
            let line = String::from_utf8_lossy(&arguments).replace('\0', " ");
            ours.then_some((pid, line.trim().to_owned()))
        })
        .collect()
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
