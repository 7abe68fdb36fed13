//! The machine under the numbers: said with each row, because a number without it means nothing.

use std::fs;
use std::thread;

/// Load above which wall-clock numbers are doubtful on two cores.
const BUSY: f64 = 2.0;

/// Cores, kernel and load, as text.
pub(crate) fn conditions() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = load();
    let busy = if load > BUSY { " (busy: doubt the absolute values)" } else { "" };
    format!("{cores} cores, kernel {}, load {load:.1} at start{busy}, release build", kernel.trim())
}

/// Load of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Private memory of a process in MB (10^6 bytes): what would be free again if it ended.
pub(crate) fn private_mb(pid: u32) -> Option<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib: f64 = rollup
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum();
    Some(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_private_memory_is_seen() {
        assert!(private_mb(std::process::id()).is_some_and(|mb| mb > 0.1));
    }
}
