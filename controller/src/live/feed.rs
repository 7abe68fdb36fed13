//! One watched job: the task that reads its new events, and those who follow.

use std::cmp;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sea_query::{Expr, ExprTrait, Query};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::ring::{Piece, Ring};
use super::{Error, Frame, Inner, News};
use crate::job;
use crate::kind::Kind;
use crate::store::events::{EventQuery, EventStore, JobKey, Numbers};

/// Bytes of new events that are kept for all watchers of a job together.
const RING: usize = 4 << 20;
/// Events read at a time.
const PIECE: u32 = 512;

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// `successful`, `failed`, `error`, `canceled`.
    pub(crate) status: Arc<str>,
    /// Number of its last event.
    pub(crate) last: i64,
}

/// How far a job is.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Number of the last event that watchers may be given.
    ready: i64,
    end: Option<End>,
    /// Events cannot be read any more.
    broken: bool,
}

/// One watched job.
pub(super) struct Feed {
    job: JobKey,
    kind: Kind,
    events: EventStore,
    ring: Mutex<Ring>,
    progress: watch::Sender<Progress>,
    behind: Arc<AtomicU64>,
}

/// A feed whose task does not run yet.
pub(super) struct Opened {
    feed: Feed,
    head: watch::Receiver<i64>,
    news: tokio::sync::broadcast::Receiver<News>,
}

/// What a watcher gets.
#[derive(Debug)]
pub(crate) enum Next {
    /// The events after the last ones, in order. All but the first `skip` of the piece are new.
    Events(Events),
    /// The job is over, and there are no more events.
    End(End),
    /// The controller stops, or the events cannot be read: ask again later, from the last event on.
    Closed,
}

/// New events of a piece that others may share.
#[derive(Debug)]
pub(crate) struct Events {
    piece: Piece,
    skip: usize,
}

impl std::ops::Deref for Events {
    type Target = [Frame];

    fn deref(&self) -> &[Frame] {
        &self.piece[self.skip..]
    }
}

/// One watcher.
pub(crate) struct Subscription {
    feed: Arc<Feed>,
    progress: watch::Receiver<Progress>,
    /// Number of the last event that was given.
    last: i64,
}

impl Feed {
    pub(super) async fn open(inner: &Inner, job: JobKey) -> Result<Opened, Error> {
        // Before the row is read: an end in between is told by one of them.
        let news = inner.news.subscribe();
        let mut head =
            inner.events.head(job).await.map_err(|source| Error::Events { job: job.id, source })?;
        let ready = *head.borrow_and_update();
        let end = end(inner, job).await?;
        let kind = kind(inner, job.id).await?;
        let ready = end.as_ref().map_or(ready, |end| cmp::max(ready, end.last));
        let progress = watch::Sender::new(Progress { ready, end, broken: false });
        let ring = Mutex::new(Ring::new(RING));
        let behind = Arc::clone(&inner.behind);
        Ok(Opened {
            feed: Self { job, kind, events: inner.events.clone(), ring, progress, behind },
            head,
            news,
        })
    }

    pub(super) fn subscribe(self: &Arc<Self>, after: Option<i64>) -> Subscription {
        let progress = self.progress.subscribe();
        let last = cmp::max(after.unwrap_or_else(|| progress.borrow().ready), 0);
        Subscription { feed: Arc::clone(self), progress, last }
    }

    pub(super) fn watchers(&self) -> usize {
        self.progress.receiver_count()
    }

    /// As [`Self::read`], for one watcher alone.
    async fn read_behind(&self, from: i64, to: i64) -> Option<Piece> {
        self.behind.fetch_add(1, Ordering::Relaxed);
        self.read(from, to).await
    }

    async fn read(&self, from: i64, to: i64) -> Option<Piece> {
        let counter = Numbers { from: Some(from), to: Some(to) };
        let query = EventQuery { counter, limit: PIECE, total: false, ..EventQuery::default() };
        let mut frames = Vec::new();
        let page = match self.events.events(self.job, query).await {
            Ok(page) => page,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(job = self.job.id, error, "events cannot be shown");
                return None;
            }
        };
        for event in &page.events {
            if event.left_out {
                // A page of very large events holds the first of them; the others are read one by one, later.
                break;
            }
            frames.push(Frame::new(self.kind, event));
        }
        // A job whose events went away meanwhile has none to show.
        (!frames.is_empty()).then(|| frames.into())
    }
}

impl Opened {
    pub(super) fn start(self, inner: Arc<Inner>, after: Option<i64>) -> (Arc<Feed>, Subscription) {
        let feed = Arc::new(self.feed);
        let subscription = feed.subscribe(after);
        tokio::spawn(follow(inner, Arc::clone(&feed), self.head, self.news));
        (feed, subscription)
    }
}

/// Reads what is new as long as somebody watches.
async fn follow(
    inner: Arc<Inner>,
    feed: Arc<Feed>,
    mut head: watch::Receiver<i64>,
    mut news: tokio::sync::broadcast::Receiver<News>,
) {
    let id = feed.job.id;
    loop {
        let ended = tokio::select! {
            () = feed.progress.closed() => {
                let mut feeds = inner.feeds();
                // Nobody can have come in between: that, too, takes the lock.
                if feed.progress.receiver_count() == 0 {
                    feeds.remove(&id);
                    return;
                }
                continue;
            }
            () = inner.stop.cancelled() => break,
            changed = head.changed() => {
                if changed.is_err() {
                    break;
                }
                false
            }
            heard = news.recv() => match heard {
                Ok(News::Job(news)) => news.job == id && !job::is_active(&news.status),
                Ok(News::Missed) | Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => break,
            },
        };
        if !advance(&feed, &mut head).await {
            break;
        }
        if ended {
            match end(&inner, feed.job).await {
                Ok(Some(end)) => {
                    feed.progress.send_modify(|progress| {
                        progress.ready = cmp::max(progress.ready, end.last);
                        progress.end = Some(end);
                    });
                }
                Ok(None) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(job = id, error, "the end of a job cannot be shown");
                    break;
                }
            }
        }
    }
    inner.feeds().remove(&id);
    feed.progress.send_modify(|progress| progress.broken = true);
}

/// Reads up to the head; false when that does not work.
async fn advance(feed: &Feed, head: &mut watch::Receiver<i64>) -> bool {
    loop {
        let (ready, stored) = (feed.progress.borrow().ready, *head.borrow_and_update());
        if ready >= stored {
            return true;
        }
        let Some(piece) = feed.read(ready + 1, stored).await else { return false };
        let last = piece.last().map_or(stored, |frame| frame.counter);
        feed.ring.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
        feed.progress.send_modify(|progress| progress.ready = last);
    }
}

/// What kind of job it is. One that is gone has no events whose names could differ.
async fn kind(inner: &Inner, job: i64) -> Result<Kind, Error> {
    let failed = |source| Error::Job { job, source };
    let mut query = Query::select();
    query.column("kind").from("unified_jobs").and_where(Expr::col("id").eq(job));
    let row = inner.db.optional(&query).await.map_err(failed)?;
    let word = row.map(|row| row.at::<String>(0)).transpose().map_err(failed)?;
    Ok(word.and_then(|word| Kind::parse(&word)).unwrap_or(Kind::Job))
}

/// How the job ended, once all its events are stored; `None` before.
async fn end(inner: &Inner, job: JobKey) -> Result<Option<End>, Error> {
    let failed = |source| Error::Job { job: job.id, source };
    let mut query = Query::select();
    query.columns(["status", "event_processing_finished"]).from("unified_jobs");
    query.and_where(Expr::col("id").eq(job.id));
    let Some(row) = inner.db.optional(&query).await.map_err(failed)? else {
        return Ok(Some(End { status: "deleted".into(), last: 0 }));
    };
    let status: String = row.at(0).map_err(failed)?;
    if job::is_active(&status) || !row.at::<bool>(1).map_err(failed)? {
        return Ok(None);
    }
    let summary = inner.events.summary(job).await.map_err(|source| Error::Events { job: job.id, source })?;
    Ok(Some(End { status: status.into(), last: i64::try_from(summary.events).unwrap_or(i64::MAX) }))
}

impl Subscription {
    /// Waits for what comes next. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            let Progress { ready, end, broken } = self.progress.borrow_and_update().clone();
            if self.last < ready {
                let shared = {
                    let ring = self.feed.ring.lock().unwrap_or_else(PoisonError::into_inner);
                    ring.find(self.last + 1)
                };
                let piece = match shared {
                    Some(piece) => piece,
                    None => match self.feed.read_behind(self.last + 1, ready).await {
                        Some(piece) => piece,
                        None => return Next::Closed,
                    },
                };
                let skip = piece.partition_point(|frame| frame.counter <= self.last);
                self.last = piece.last().map_or(self.last, |frame| frame.counter);
                return Next::Events(Events { piece, skip });
            }
            if let Some(end) = end {
                return Next::End(end);
            }
            if broken || self.progress.changed().await.is_err() {
                return Next::Closed;
            }
        }
    }
}
