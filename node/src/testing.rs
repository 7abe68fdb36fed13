//! What only tests need.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// Bytes of a file that are in memory and not yet on the disk; empties the file.
///
/// Pages that were never written back count as canceled for whoever cuts the file. A loss of power would have taken them. On a
/// file system that is memory itself there are none, so there this says nothing.
pub(crate) fn unsynced_bytes(path: &Path) -> u64 {
    let canceled = || {
        let io = fs::read_to_string("/proc/thread-self/io").expect("the kernel counts what is written");
        let line = io.lines().find_map(|line| line.strip_prefix("cancelled_write_bytes: "));
        line.and_then(|count| count.parse::<u64>().ok()).expect("a count")
    };
    let file = OpenOptions::new().write(true).open(path).expect("the file is there");
    let before = canceled();
    file.set_len(0).expect("the file can be cut");
    canceled() - before
}
