//! Memory that a burst of handshakes leaves behind goes back to the system.
//!
//! A handshake takes some tens of KB for a moment. When many run at once, what lives on lies between what does not, and glibc
//! gives back only what is free at the end of its heap: after a thousand handshakes a controller held 35 MB of free pages.
//! Here is the one `unsafe` block of all programs; every other module is compiled without leave for one.

use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

/// Quiet after which a burst is over.
const QUIET: Duration = Duration::from_secs(5);

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
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "a call of the C library that no safe crate offers")]
        // SAFETY: malloc_trim(3) is thread-safe and asks nothing of its caller; memory in use stays where it is.
        let gave = unsafe { libc::malloc_trim(0) } == 1;
        debug!(gave, "free memory given back");
    }
}
