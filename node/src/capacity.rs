//! What this node may use, as its control group sees it.

use std::fs;
use std::path::{Path, PathBuf};

/// What one fork takes of both: four to a core, and AWX's rule for memory.
pub const FORK_CPU_MILLIS: u32 = 250;
/// See [`FORK_CPU_MILLIS`].
pub const FORK_MEMORY_BYTES: u64 = 100 << 20;

/// Processor time and memory that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes.
    pub memory_bytes: u64,
}

/// Reads the limits of this process's control groups, of both versions, and of the machine.
pub fn measure() -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let whole = u64::try_from(cores).unwrap_or(u64::MAX).saturating_mul(1000);
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text)).unwrap_or(0);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let (mut cpu, mut memory) = (whole, machine);
    for path in candidates(&own, Path::new("/sys/fs/cgroup")) {
        let read = |file: &str| fs::read_to_string(path.join(file)).ok();
        if let Some(limit) = read("cpu.max").and_then(|text| cpu_max(&text)) {
            cpu = cpu.min(limit);
        }
        if let (Some(quota), Some(period)) = (read("cpu.cfs_quota_us"), read("cpu.cfs_period_us"))
            && let Some(limit) = cpu_max(&format!("{} {}", quota.trim(), period.trim()))
        {
            cpu = cpu.min(limit);
        }
        for file in ["memory.max", "memory.limit_in_bytes"] {
            if let Some(limit) = read(file).and_then(|text| text.trim().parse().ok()) {
                memory = memory.min(limit);
            }
        }
    }
    Capacity { cpu_millis: u32::try_from(cpu).unwrap_or(u32::MAX), memory_bytes: memory }
}

/// Bytes that this process may still write where `dir` is; 0 where that cannot be told.
pub fn free_disk(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Directories that may limit this process: its group in each hierarchy, and every group above it.
fn candidates(own: &str, root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // Version 1 mounts each controller at a directory of its name; version 2 has one tree.
        let mount = if controllers.is_empty() { root.to_owned() } else { root.join(controllers) };
        let mut group = mount.join(path.trim_start_matches('/'));
        loop {
            found.push(group.clone());
            if group == mount || !group.pop() {
                break;
            }
        }
    }
    found
}

/// "quota period" in microseconds; "max" or -1 is no limit.
fn cpu_max(text: &str) -> Option<u64> {
    let mut fields = text.split_whitespace();
    let quota: u64 = fields.next()?.parse().ok()?;
    let period: u64 = fields.next()?.parse().ok()?;
    quota.checked_mul(1000)?.checked_div(period)
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_max("50000 100000\n"), Some(500));
        assert_eq!(cpu_max("max 100000\n"), None);
        assert_eq!(cpu_max("-1 100000"), None);
        assert_eq!(cpu_max("1 0"), None);
        assert_eq!(total_memory("MemTotal:       24684092 kB\nMemFree: 1 kB\n"), Some(24_684_092 * 1024));
    }

    #[test]
    fn every_group_above_counts() {
        let found = candidates("4:memory:/a/b\n0::/x\n", Path::new("/cg"));
        let found: Vec<_> = found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(found, ["/cg/memory/a/b", "/cg/memory/a", "/cg/memory", "/cg/x", "/cg"]);
    }

    #[test]
    fn this_machine_has_something() {
        let capacity = measure();
        assert!(capacity.cpu_millis > 0 && capacity.memory_bytes > 1 << 20, "{capacity:?}");
        assert!(free_disk(Path::new("/dev/shm")) > 0);
        assert_eq!(free_disk(Path::new("/nowhere")), 0);
    }
}
