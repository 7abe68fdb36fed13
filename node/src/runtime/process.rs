//! Runtime `process`: a command of the node's configuration, on the host itself.

use std::path::Path;
use std::time::{Duration, Instant};

use plexus_proto::id::Attempt;
use rustix::process::{Pid, Signal, kill_process};

use super::{Command, Error, Holder, Job, Kind, Runtime, Slot, base_env, is_env_name, last_line, text};
use crate::shim::{MARKER, processes};
use crate::tree::working;
use crate::{cgroup, unit_dir};

/// Longest wait for killed processes to go.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Runs the configured command for every unit.
#[derive(Debug, Clone)]
pub struct Process {
    command: Vec<String>,
}

impl Process {
    /// `{dir}` in the command stands for the private data directory.
    pub fn new(command: Vec<String>) -> Self {
        Self { command }
    }
}

impl Runtime for Process {
    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn command(&self, job: &Job<'_>) -> Result<Command, Error> {
        let private = text(job.private)?;
        let mut env = base_env();
        env.insert("HOME".to_owned(), private.clone());
        for (name, value) in job.spec.env.iter().chain(job.secret_env) {
            if !is_env_name(name) {
                return Err(Error::EnvName(name.clone()));
            }
            env.insert(name.clone(), value.clone());
        }
        if let Some(project) = job.project {
            let link = job.private.join("project");
            std::os::unix::fs::symlink(project, &link)
                .map_err(|source| Error::Disk { path: link, source })?;
        }
        Ok(Command {
            argv: self.command.iter().map(|word| word.replace("{dir}", &private)).collect(),
            env,
            cwd: job.project.unwrap_or(job.private).to_owned(),
            end_argv: Vec::new(),
        })
    }

    fn warm(&self, _slot: &Slot<'_>) -> Result<Command, Error> {
        Err(Error::NoContainers)
    }

    fn give(&self, _dirs: &[Option<&Path>]) -> Result<(), Error> {
        Ok(())
    }

    fn end(&self, attempt: Attempt, runtime_dir: &Path) -> Result<(), Error> {
        self.end_marked(&attempt.to_string(), runtime_dir)
    }

    fn reap(&self, _is_stale: &dyn Fn(&Holder) -> bool) -> Result<usize, Error> {
        Ok(0) // a process is found by its attempt, and each attempt on disk or tmpfs is looked at by the agent
    }

    fn remove_tree(&self, dir: &Path) -> Result<(), Error> {
        working::close(dir);
        unit_dir::remove_tree(dir).map_err(|error| Error::Helper {
            command: format!("removing {}", dir.display()),
            reason: error.to_string(),
        })
    }

    fn version(&self) -> String {
        String::new()
    }
}

impl Process {
    /// Kills every process whose environment carries this marker, until there is none.
    pub(super) fn end_marked(&self, marker: &str, runtime_dir: &Path) -> Result<(), Error> {
        let give_up = Instant::now() + END_LIMIT;
        if let Some(group) = cgroup::noted(&runtime_dir.join(cgroup::NOTE)) {
            cgroup::end(&group, END_LIMIT);
        }
        loop {
            let left = processes::marked(MARKER, marker);
            if left.is_empty() {
                return Ok(());
            }
            for pid in left.iter().filter_map(|&pid| Pid::from_raw(pid)) {
                kill_process(pid, Signal::KILL).ok();
            }
            if Instant::now() >= give_up {
                let reason = format!("processes {left:?} do not end");
                return Err(Error::Helper { command: format!("killing {marker}"), reason });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(super) fn explain(code: i32, stderr: &str) -> Option<String> {
    match code {
        127 => Some(format!("command not found: {}", last_line(stderr)?)),
        126 => Some(format!("command cannot be run: {}", last_line(stderr)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::work::UnitSpec;

    #[test]
    fn the_project_is_linked_and_the_directory_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        let attempt = unit_dir::parse_name("01890a5d-ac96-774b-bcce-b302099a8057.1").unwrap();
        let spec = UnitSpec { env: [("A".to_owned(), "1".to_owned())].into(), ..UnitSpec::default() };
        let project = dir.path().join("copy");
        let secret = [("S".to_owned(), "2".to_owned())].into();
        let job = Job {
            attempt,
            spec: &spec,
            private: dir.path(),
            project: Some(&project),
            runtime_dir: dir.path(),
            secret_env: &secret,
            slot: None,
        };
        let runtime = Process::new(vec!["runner".to_owned(), "--dir={dir}".to_owned()]);
        let command = runtime.command(&job).unwrap();
        assert_eq!(command.argv, ["runner".to_owned(), format!("--dir={}", dir.path().display())]);
        assert_eq!(command.cwd, project);
        assert_eq!(command.env["A"], "1");
        assert_eq!(command.env["S"], "2");
        assert_eq!(std::fs::read_link(dir.path().join("project")).unwrap(), project);

        let bad = UnitSpec { env: [("A=B".to_owned(), String::new())].into(), ..UnitSpec::default() };
        let job = Job { spec: &bad, project: None, ..job };
        assert!(matches!(runtime.command(&job), Err(Error::EnvName(_))));
    }
}
