//! Commits become durable together: one sync of the log of SQLite for all that were written since the last.
//!
//! A sync takes milliseconds, a commit into the page cache a small part of one. So the writer commits without a sync
//! (`synchronous=NORMAL`) and passes the turn on; a thread syncs the log, and only then is a commit told to have happened. Readers may
//! see a commit a moment before that. Nothing is answered or done because of it: whoever acts commits first, and a sync makes all
//! commits before it durable too.
//!
//! SQLite itself still syncs the log before it copies from it into the database, and the database before it begins the log anew.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Who waits for the next sync, and whether there will be one.
#[derive(Default)]
struct State {
    waiting: Vec<oneshot::Sender<Result<(), Arc<io::Error>>>>,
    closed: bool,
}

/// The thread that syncs; it ends when this is dropped.
pub(super) struct Durable {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Durable {
    /// Starts the thread for the database at `path`.
    ///
    /// # Errors
    /// When the system has no thread.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let mut log = OsString::from(path);
        log.push("-wal");
        let shared = Arc::new((Mutex::default(), Condvar::new()));
        let own = Arc::clone(&shared);
        std::thread::Builder::new().name("core-sync".to_owned()).spawn(move || run(&own, Path::new(&log)))?;
        Ok(Self { shared })
    }

    /// Returns when everything that was committed before the call is on the disk.
    ///
    /// # Errors
    /// What the system said. Nobody knows then what is on the disk, so every later call fails too.
    pub(super) async fn settle(&self) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let (state, wake) = &*self.shared;
        state.lock().unwrap_or_else(PoisonError::into_inner).waiting.push(tell);
        wake.notify_one();
        match told.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io::Error::new(error.kind(), error)),
            Err(_) => Err(io::Error::other("the thread that syncs is gone")),
        }
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        let (state, wake) = &*self.shared;
        state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        wake.notify_one();
    }
}

fn run((state, wake): &(Mutex<State>, Condvar), log: &Path) {
    let mut open: Option<File> = None;
    let mut failed: Option<Arc<io::Error>> = None;
    loop {
        let waiting = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.waiting.is_empty() {
                if state.closed {
                    return;
                }
                state = wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::take(&mut state.waiting)
        };
        if failed.is_none()
            && let Err(error) = sync(&mut open, log)
        {
            tracing::error!(%error, "the log of the core database cannot be synced; restart when the disk is well again");
            failed = Some(Arc::new(error));
        }
        for waiting in waiting {
            // Whoever asked may have gone.
            let _ = waiting.send(failed.clone().map_or(Ok(()), Err));
        }
    }
}

/// Syncs the log that has this name now: SQLite makes another one when all its connections were closed meanwhile.
fn sync(open: &mut Option<File>, log: &Path) -> io::Result<()> {
    let named = match std::fs::metadata(log) {
        Ok(named) => named,
        // All of it is in the database, which was synced for that.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let same = match open {
        Some(file) => {
            let known = file.metadata()?;
            (known.dev(), known.ino()) == (named.dev(), named.ino())
        }
        None => false,
    };
    if !same {
        *open = Some(File::open(log)?);
    }
    match open {
        Some(file) => file.sync_data(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_wait_for_one_sync_and_a_log_may_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.sqlite");
        let durable = Durable::start(&path).unwrap();
        durable.settle().await.unwrap();
        for _ in 0..2 {
            std::fs::write(dir.path().join("core.sqlite-wal"), b"frames").unwrap();
            let all = (0..64).map(|_| durable.settle());
            for settled in futures_util::future::join_all(all).await {
                settled.unwrap();
            }
            std::fs::remove_file(dir.path().join("core.sqlite-wal")).unwrap();
        }
    }

    #[tokio::test]
    async fn a_disk_that_failed_once_is_not_trusted_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no folder/core.sqlite");
        std::fs::write(dir.path().join("no folder"), b"a file").unwrap();
        let durable = Durable::start(&path).unwrap();
        assert_eq!(durable.settle().await.unwrap_err().kind(), io::ErrorKind::NotADirectory);
        std::fs::remove_file(dir.path().join("no folder")).unwrap();
        assert!(durable.settle().await.is_err());
    }
}
