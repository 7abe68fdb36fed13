//! Directories that are made ahead for the next units: a dozen names that the disk finds places for while nobody waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::debug;

use super::Inner;
use crate::tree::working;
use crate::unit_dir::{self, make_ahead};

/// So many are kept: as many units may come while another is made.
const KEPT: usize = 2;

impl Inner {
    /// One that was made ahead, if there is one left.
    pub(super) fn take_ahead(&self) -> Option<PathBuf> {
        self.ahead.lock().expect("no code panics under this lock").pop()
    }

    /// Sees to it that the next units find theirs.
    pub(super) fn keep_ahead(self: &Arc<Self>) {
        if self.cancel.is_cancelled() || self.making_ahead.swap(true, Ordering::SeqCst) {
            return;
        }
        let (inner, maker) = (self.clone(), self.clone());
        self.tasks.spawn(async move {
            inner.blocking(move || maker.make_missing()).await;
            inner.making_ahead.store(false, Ordering::SeqCst);
        });
    }

    fn make_missing(&self) {
        let count = || self.ahead.lock().expect("no code panics under this lock").len();
        while count() < KEPT && !self.cancel.is_cancelled() {
            match self.make_one() {
                Ok(dir) => self.ahead.lock().expect("no code panics under this lock").push(dir),
                // A unit makes its own then, and says what is wrong with the disk.
                Err(error) => return debug!(error, "no directory made ahead"),
            }
        }
    }

    fn make_one(&self) -> Result<PathBuf, String> {
        let dir = make_ahead(&self.ahead_dir()).map_err(|error| error.to_string())?;
        if self.cache.has_overlay()
            && let Err(error) = working::prepare_ahead(&dir)
        {
            unit_dir::remove_tree(&dir).ok();
            return Err(error.to_string());
        }
        Ok(dir)
    }

    /// Removes those that nobody took, in this life or an earlier one. Blocks.
    pub(super) fn remove_ahead(&self) {
        while self.take_ahead().is_some() {}
        unit_dir::clear_ahead(&self.ahead_dir());
    }

    pub(super) fn ahead_dir(&self) -> PathBuf {
        self.options.data_dir.join("ahead")
    }
}
