//! How far jobs are stored, told to those who watch them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::{Error, EventStore, JobKey};

/// Numbers of the last stored event, of the jobs that somebody watches. The writer tells only what is committed.
#[derive(Debug, Default)]
pub(super) struct Heads(Mutex<HashMap<i64, watch::Sender<i64>>>);

impl Heads {
    fn subscribe(&self, job: i64) -> watch::Receiver<i64> {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever stopped watching is found here, so that the map grows with the watched jobs and no further.
        heads.retain(|_, head| head.receiver_count() > 0);
        heads.entry(job).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Event number `last` of `job` and all before it are committed.
    pub(super) fn advance(&self, job: i64, last: i64) {
        let heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(head) = heads.get(&job) {
            head.send_if_modified(|known| {
                let is_later = last > *known;
                *known = last.max(*known);
                is_later
            });
        }
    }
}

impl EventStore {
    /// The number of the job's last stored event, now and from now on; 0 while there is none. It moves once per
    /// transaction, after the commit.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub async fn head(&self, job: JobKey) -> Result<watch::Receiver<i64>, Error> {
        // Subscribed first: what is committed between the two is told by one of them.
        let head = self.inner.heads.subscribe(job.id);
        let events = self.summary(job).await?.events;
        self.inner.heads.advance(job.id, i64::try_from(events).unwrap_or(i64::MAX));
        Ok(head)
    }
}
