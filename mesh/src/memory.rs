//! Memory that is free goes back to the system.
//!
//! glibc decides by the largest block it ever freed what it maps apart (up to 32 MiB) and keeps twice as much free at the end of
//! each of its heaps, of which every thread may have one: a controller that had stored and sent a gibibyte held 60 MB for
//! nothing, in steps of 20. And a program that handles blocks below its first threshold, of 128 KiB, gives the end of its heap back
//! and takes it again for each: a third of a busy shim's CPU time. Both thresholds are fixed here, at a mebibyte.
//!
//! A handshake takes some tens of KB for a moment. When many run at once, what lives on lies between what does not, and glibc
//! gives back only what is free at the end of its heap: after a thousand handshakes a controller held 35 MB of free pages.
//! The one `unsafe` code of all programs is here; every other module is compiled without leave for any.

use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

/// Quiet after which a burst is over.
const QUIET: Duration = Duration::from_secs(5);

/// Blocks from this size on are mapped apart, and heaps keep no more than this free at their ends. Buffers that live for a moment, of
/// some hundred kilobytes, stay below it.
const THRESHOLD: i32 = 1 << 20;

/// Fixes, for the whole process, what the C library keeps of what is free. A mesh does it when it starts; a program without one
/// does it itself.
pub fn fix_thresholds() {
    let fixed = glibc::fix(THRESHOLD);
    debug!(fixed, "thresholds of the heap");
}

/// Waits for the ends of bursts. At rest it holds no timer.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    stirred: Notify,
}

impl Memory {
    /// A connection came or went.
    pub(crate) fn stir(&self) {
        self.stirred.notify_one();
    }

    /// Gives free pages back after each burst, for ever.
    pub(crate) async fn keep(&self) {
        loop {
            self.stirred.notified().await;
            while tokio::time::timeout(QUIET, self.stirred.notified()).await.is_ok() {}
            // It locks one arena after the other, for as long as the walk through it takes: aside.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// Gives every free page of the heap to the system; nothing where the C library has no such call.
fn give_back() {
    let gave = glibc::trim();
    debug!(gave, "free memory given back");
}

/// The two calls of the C library that no safe crate offers; where it is another, they do nothing.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim(3) and mallopt(3)")]
mod glibc {
    /// True when memory went back.
    pub(super) fn trim() -> bool {
        // SAFETY: malloc_trim(3) is thread-safe and asks nothing of its caller; memory in use stays where it is.
        unsafe { libc::malloc_trim(0) == 1 }
    }

    /// False when the library would not have it.
    pub(super) fn fix(threshold: i32) -> bool {
        // SAFETY: mallopt(3) is thread-safe and takes two numbers; it moves no memory in use.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, threshold) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, threshold) == 1
        }
    }
}

#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn trim() -> bool {
        false
    }

    pub(super) fn fix(_threshold: i32) -> bool {
        false
    }
}
