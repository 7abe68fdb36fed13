//! Whether the kernel killed for lack of memory while a worker ran, by the kernel's own counters.
//!
//! The counter of the unit's control group tells for certain. Where that has none (no group, or no memory controller in it) or is
//! not the worker's (a container has one of its own, which goes with it), the machine's counter tells that it happened to somebody.

use std::fs;
use std::path::{Path, PathBuf};

/// Counter of the whole machine.
const MACHINE: &str = "/proc/vmstat";
/// File with the counter of a control group, version 2.
const GROUP: &str = "memory.events";

/// A counter, as it stood when the worker started.
#[derive(Debug)]
pub(super) struct Kills {
    file: PathBuf,
    of_group: bool,
    before: Option<u64>,
}

/// What the counter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// There is no counter.
    Unknown,
    /// Nothing was killed for it.
    No,
    /// The kernel killed in the unit's own group.
    InGroup,
    /// The kernel killed somewhere on the machine.
    OnMachine,
}

impl Kills {
    /// Begins to count: in `group` if one is named and has a counter, else on the machine.
    pub(super) fn begin(group: Option<&Path>) -> Self {
        let own = group.map(|group| group.join(GROUP)).filter(|file| count(file).is_some());
        let of_group = own.is_some();
        let file = own.unwrap_or_else(|| MACHINE.into());
        Self { before: count(&file), file, of_group }
    }

    /// What has happened since.
    pub(super) fn since(&self) -> Lack {
        judge(self.before, count(&self.file), self.of_group)
    }
}

impl Lack {
    /// Why something was killed by SIGKILL, where a counter says more than the signal.
    pub(super) fn explain(self, what: &str) -> Option<String> {
        match self {
            Self::Unknown => None,
            Self::No => Some(format!(
                "{what} was killed by signal 9 (SIGKILL), though not by the kernel for lack of memory: it counted no such kill meanwhile"
            )),
            Self::InGroup => Some(format!(
                "{what} was killed by the kernel, because the unit's control group ran out of memory"
            )),
            Self::OnMachine => Some(format!(
                "{what} was killed by signal 9 (SIGKILL), most likely by the kernel, which killed for lack of memory meanwhile: it ran out of memory"
            )),
        }
    }
}

fn judge(before: Option<u64>, after: Option<u64>, of_group: bool) -> Lack {
    match (before, after) {
        (Some(before), Some(after)) if after > before && of_group => Lack::InGroup,
        (Some(before), Some(after)) if after > before => Lack::OnMachine,
        (Some(_), Some(_)) => Lack::No,
        _ => Lack::Unknown,
    }
}

fn count(file: &Path) -> Option<u64> {
    parse(&fs::read_to_string(file).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counter_that_went_up_blames_the_memory() {
        assert_eq!(judge(Some(3), Some(4), true), Lack::InGroup);
        assert_eq!(judge(Some(3), Some(4), false), Lack::OnMachine);
        assert_eq!(judge(Some(3), Some(3), true), Lack::No);
        assert_eq!(judge(None, Some(3), true), Lack::Unknown);
        assert_eq!(judge(Some(3), None, false), Lack::Unknown);
        assert!(Lack::InGroup.explain("the worker").unwrap().contains("ran out of memory"));
        assert!(Lack::No.explain("the worker").unwrap().contains("not by the kernel"));
        assert_eq!(Lack::Unknown.explain("the worker"), None);
    }

    #[test]
    fn both_counters_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse("nr_free_pages 7\noom_kill 12\n"), Some(12));
        assert_eq!(parse("low 0\n"), None);
        let dir = tempfile::tempdir().unwrap();
        assert!(!Kills::begin(Some(dir.path())).of_group, "a group without the controller counts nothing");
        fs::write(dir.path().join(GROUP), "oom_kill 0\n").unwrap();
        let kills = Kills::begin(Some(dir.path()));
        assert_eq!(kills.since(), Lack::No);
        fs::write(dir.path().join(GROUP), "oom_kill 1\n").unwrap();
        assert_eq!(kills.since(), Lack::InGroup);
    }
}
