//! Who watches a job hears how far it is stored, once that is committed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::read::job_summary;
use super::{Error, EventStore, JobKey};

/// Watched jobs, and the counter of the last event that is stored of each.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<HashMap<i64, watch::Sender<i64>>>);

impl Watched {
    /// Tells the watchers of a job. Called after the commit, never before.
    pub(super) fn publish(&self, job: i64, counter: i64) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = jobs.get(&job) else { return };
        if sender.receiver_count() == 0 {
            jobs.remove(&job);
            return;
        }
        advance(sender, counter);
    }

    fn subscribe(&self, job: i64) -> watch::Receiver<i64> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those whom nobody watches any more go when somebody new comes: a job that ended is never published again.
        jobs.retain(|&other, sender| other == job || sender.receiver_count() > 0);
        jobs.entry(job).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

fn advance(sender: &watch::Sender<i64>, counter: i64) {
    sender.send_if_modified(|last| {
        let is_later = counter > *last;
        *last = counter.max(*last);
        is_later
    });
}

impl EventStore {
    /// The counter of the job's last stored event, now and with every commit from now on; 0 when there is none. Events up
    /// to it can be read at once: nothing is told that is not stored. It holds one number, however far behind its
    /// reader is.
    ///
    /// # Errors
    /// Events that cannot be read.
    pub async fn watch(&self, job: JobKey) -> Result<watch::Receiver<i64>, Error> {
        // Subscribed first, so that no commit falls between the look and the first word.
        let receiver = self.inner.watched.subscribe(job.id);
        if let Some(reader) = self.reader(job).await?
            && let Some(summary) = job_summary(&reader, job.id).await?
        {
            self.inner.watched.publish(job.id, summary.events);
        }
        Ok(receiver)
    }
}
