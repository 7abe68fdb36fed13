//! Which demo runs: a file with its process, so that it is never started twice and can be stopped from anywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use plexus_tests::{Leftovers, Seen, podman_command, runtime_root, wait_for};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

/// Longest orderly end: running jobs are cancelled first.
const END: Duration = Duration::from_secs(60);

/// The process of a demo, told from a later one with the same number by its start time.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    /// Process id.
    pub(super) pid: i32,
    /// Start of the process, in clock ticks since boot.
    started: u64,
}

impl Running {
    /// This process.
    pub(super) fn of_this_process() -> Self {
        let pid = getpid().as_raw_nonzero().get();
        Self { pid, started: start_time(pid).unwrap_or(0) }
    }

    /// The process that the folder names, dead or alive.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file(dir)).ok()?).ok()
    }

    /// Names this process in the folder.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self).context("cannot encode")?;
        fs::write(file(dir), text).with_context(|| format!("cannot write {}", file(dir).display()))
    }

    /// Forgets the process.
    pub(super) fn remove(dir: &Path) {
        fs::remove_file(file(dir)).ok();
    }

    /// Whether that very process still lives.
    pub(super) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Asks a running demo to end and waits until it has. False when none runs.
///
/// # Errors
/// When it does not end in time.
pub(super) async fn stop_running(dir: &Path) -> anyhow::Result<bool> {
    let Some(running) = Running::read(dir).filter(Running::is_alive) else { return Ok(false) };
    let pid = Pid::from_raw(running.pid).context("not a process id")?;
    kill_process(pid, Signal::TERM).context("cannot signal the demo")?;
    wait_for("the demo to end", END, async || {
        Seen::when(!running.is_alive(), || format!("process {} still runs", running.pid))
    })
    .await?;
    Ok(true)
}

/// What a demo left: daemons, shims, containers, private files.
pub(super) fn leftovers(dir: &Path) -> Leftovers {
    let runtime_dir = runtime_dir(dir);
    let mut found = Leftovers::find(&[dir, &runtime_dir], &runtime_dir, runtime_dir.exists());
    // A person's own shell or editor may well be in the folder.
    found.processes.retain(|(_, line)| {
        let program = line.split(' ').next().unwrap_or_default();
        ["plexus-", "podman", "conmon"].iter().any(|ours| program.contains(ours))
    });
    found
}

/// Ends and removes whatever an earlier demo left.
pub(super) fn sweep(dir: &Path) {
    let runtime_dir = runtime_dir(dir);
    // Twice: a shim may have been starting a container.
    for _ in 0..2 {
        let found = leftovers(dir);
        if found.is_empty() {
            break;
        }
        found.sweep();
    }
    if fs::remove_dir_all(&runtime_dir).is_err() && runtime_dir.exists() {
        // Files of a container that belong to root, where this user is not: as podman was reached.
        if let Some((program, prefix)) =
            podman_command().split_last().and_then(|(_, prefix)| prefix.split_first())
        {
            Command::new(program).args(prefix).args(["rm", "-rf", "--"]).arg(&runtime_dir).status().ok();
        }
    }
}

/// Folder on tmpfs that belongs to the demo in `dir`; the same one each time, so that a killed demo's is found again.
pub(super) fn runtime_dir(dir: &Path) -> PathBuf {
    // FNV-1a: any stable short name of the path will do.
    let hash = dir.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    runtime_root().join(format!("plexus-demo-{hash:016x}"))
}

fn file(dir: &Path) -> PathBuf {
    dir.join("running.json")
}

/// Field 22 of /proc/PID/stat; none when there is no such process or only its zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold spaces and parentheses; fields are counted from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive_and_an_older_namesake_is_not() {
        let own = Running::of_this_process();
        assert!(own.is_alive());
        assert!(!Running { started: own.started + 1, ..own }.is_alive());
    }

    #[test]
    fn two_folders_have_two_places_on_tmpfs() {
        assert_ne!(runtime_dir(Path::new("/a/.demo")), runtime_dir(Path::new("/b/.demo")));
    }
}
