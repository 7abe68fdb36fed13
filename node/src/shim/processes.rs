//! The process tree below a shim, and its end.
//!
//! The shim is a child subreaper: whatever the worker starts stays a descendant of the shim, through double forks
//! and new sessions alike. So a walk of /proc from the shim downwards finds everything, unless a program of
//! another user hides; such a one belongs to a container, which its engine ends.

use std::collections::BTreeMap;
use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, waitid};

/// A living process: its parent, and whether it is a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    parent: i32,
    zombie: bool,
}

/// Living descendants of process `root`, without itself and without zombies.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut table = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && let Some(entry) = parse_stat(&stat)
        {
            table.insert(pid, entry);
        }
    }
    below(&table, root)
}

/// Sends SIGKILL to every living descendant of this process, a subreaper; returns how many there were.
pub fn kill_descendants() -> usize {
    // Orphans below a subreaper become its children: who has no child, not even a dead one, has no descendant. On a
    // machine with a thousand units the walk would read thousands of files at the end of each.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if matches!(waitid(WaitId::All, look), Err(Errno::CHILD)) {
        return 0;
    }
    let found = descendants(getpid().as_raw_nonzero().get());
    for pid in found.iter().filter_map(|&pid| Pid::from_raw(pid)) {
        kill_process(pid, Signal::KILL).ok(); // gone meanwhile, or another user's: the count says whether it stays
    }
    found.len()
}

/// Processes, shims aside, that carry `marker` in their environment: what a dead shim left behind. Only those of
/// this user can be seen.
pub fn marked(variable: &str, marker: &str) -> Vec<i32> {
    let wanted = format!("{variable}={marker}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(environ) = fs::read(entry.path().join("environ")) else { continue };
        let zombie = fs::read_to_string(entry.path().join("stat"))
            .ok()
            .and_then(|stat| parse_stat(&stat))
            .is_none_or(|entry| entry.zombie);
        if !zombie && environ.split(|&byte| byte == 0).any(|pair| pair == wanted.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

fn below(table: &BTreeMap<i32, Entry>, root: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (&pid, entry) in table {
        children.entry(entry.parent).or_default().push(pid);
    }
    let (mut found, mut open) = (Vec::new(), vec![root]);
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            open.push(child);
            if !table[&child].zombie {
                found.push(child);
            }
        }
    }
    found.sort_unstable();
    found
}

/// Reads state and parent of `/proc/PID/stat`. The name before them may hold anything, also parentheses.
fn parse_stat(stat: &str) -> Option<Entry> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Entry { parent, zombie: matches!(state, "Z" | "X") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_any_name() {
        assert_eq!(parse_stat("12 (a) b) (c) S 7 12 12 0"), Some(Entry { parent: 7, zombie: false }));
        assert_eq!(parse_stat("12 (x) Z 1 1"), Some(Entry { parent: 1, zombie: true }));
        assert_eq!(parse_stat("garbage"), None);
        assert_eq!(parse_stat("1 (x)"), None);
    }

    #[test]
    fn zombies_do_not_count_but_their_children_do() {
        let alive = |parent| Entry { parent, zombie: false };
        let table = BTreeMap::from([
            (1, alive(0)),
            (10, alive(1)),
            (11, Entry { parent: 10, zombie: true }),
            (12, alive(11)),
            (13, alive(1)),
        ]);
        assert_eq!(below(&table, 10), [12]);
        assert_eq!(below(&table, 1), [10, 12, 13]);
        assert!(below(&table, 99).is_empty());
    }

    #[test]
    fn own_children_are_seen() {
        let mut child =
            std::process::Command::new("sleep").arg("60").env("PLEXUS_TEST_MARK", "m1").spawn().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(descendants(me).contains(&pid));
        assert_eq!(marked("PLEXUS_TEST_MARK", "m1"), [pid]);
        assert!(marked("PLEXUS_TEST_MARK", "m").is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(me).contains(&pid));
    }
}
