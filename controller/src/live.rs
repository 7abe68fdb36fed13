//! What happens right now, for those who watch: new events of a job, and jobs that get another status.
//!
//! One task reads a watched job's new events from the store, once, as soon as they are committed, and writes them as
//! the text that watchers are sent. The last of it stays in a ring that all watchers of the job share. A watcher is a
//! number: the last event it was given. One that keeps up finds the next ones in the ring; one that does not, or that
//! asks for the past, reads the store by itself. So nothing is shown that is not stored, nobody has a queue that
//! could grow, and nobody's pace is felt by others.
//!
//! This module knows the store. Of sockets, and of who may see what, it knows nothing.

mod feed;
mod frame;
mod news;
mod ring;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::store::core::CoreDb;
use crate::store::events::{self, EventStore, JobKey};

pub(crate) use self::feed::{Next, Subscription};
pub(crate) use self::frame::Frame;
pub(crate) use self::news::{JobNews, News};

use self::feed::Feed;

/// News that are kept for who listens slowly; one that falls further behind looks the jobs up.
const NEWS: usize = 1024;

/// Why a job cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its row does not read.
    #[error("cannot read the state of job {job}")]
    Job {
        /// Which.
        job: i64,
        /// What the database said.
        #[source]
        source: crate::store::core::Error,
    },
    /// Its events do not read.
    #[error("cannot read the events of job {job}")]
    Events {
        /// Which.
        job: i64,
        /// What the store said.
        #[source]
        source: events::Error,
    },
}

/// Handle. Cheap to clone.
#[derive(Clone)]
pub struct Live {
    inner: Arc<Inner>,
}

struct Inner {
    db: CoreDb,
    events: EventStore,
    feeds: Mutex<HashMap<i64, Arc<Feed>>>,
    news: broadcast::Sender<News>,
    stop: CancellationToken,
    /// Times a watcher was given events from the store, because it had fallen behind or asked for the past.
    behind: Arc<AtomicU64>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    /// Begins to listen; ends with `stop`, and everything that is watched with it.
    pub fn start(db: CoreDb, events: EventStore, stop: CancellationToken) -> Self {
        let (news, _) = broadcast::channel(NEWS);
        let inner =
            Arc::new(Inner { db, events, feeds: Mutex::default(), news, stop, behind: Arc::default() });
        tokio::spawn(news::tell(Arc::clone(&inner)));
        Self { inner }
    }

    /// Jobs that get another status, from now on.
    pub(crate) fn news(&self) -> broadcast::Receiver<News> {
        self.inner.news.subscribe()
    }

    /// How many jobs are watched, and by how many watchers.
    pub(crate) fn watched(&self) -> (usize, usize) {
        let feeds = self.inner.feeds();
        (feeds.len(), feeds.values().map(|feed| feed.watchers()).sum())
    }

    /// Times a watcher was given events from the store instead of the ring.
    pub(crate) fn behind(&self) -> u64 {
        self.inner.behind.load(Ordering::Relaxed)
    }

    /// When nobody shall watch any longer.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    /// Events of a job after number `after`: those stored already, then those to come, until the job is over.
    /// `None` begins with those to come.
    ///
    /// # Errors
    /// A job or events that do not read.
    pub(crate) async fn watch(&self, job: JobKey, after: Option<i64>) -> Result<Subscription, Error> {
        let known = self.inner.feeds().get(&job.id).map(|feed| feed.subscribe(after));
        if let Some(subscription) = known {
            return Ok(subscription);
        }
        let feed = Feed::open(&self.inner, job).await?;
        let mut feeds = self.inner.feeds();
        if let Some(other) = feeds.get(&job.id) {
            return Ok(other.subscribe(after));
        }
        let (feed, subscription) = feed.start(Arc::clone(&self.inner), after);
        feeds.insert(job.id, feed);
        Ok(subscription)
    }

    /// News of jobs changed since a moment (microseconds), oldest first: for a listener that fell behind.
    ///
    /// # Errors
    /// A database that does not answer.
    pub(crate) async fn since(&self, moment: i64) -> Result<Vec<Arc<JobNews>>, crate::store::core::Error> {
        news::since(&self.inner, moment).await
    }
}

impl Inner {
    fn feeds(&self) -> std::sync::MutexGuard<'_, HashMap<i64, Arc<Feed>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
