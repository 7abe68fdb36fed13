//! How the writer does: time and size of transactions, and how far each job's stored events are behind its clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::EventStore;
use super::intake::Commits;

/// Upper bounds of the buckets of a transaction's time, in seconds.
const SECONDS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];
/// Upper bounds of the buckets of its events.
const EVENTS: [f64; 8] = [1.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 2000.0, 10_000.0];

/// A distribution, as Prometheus counts it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// Upper bound, and how many are at most that.
    pub buckets: Vec<(f64, u64)>,
    /// All of them together.
    pub sum: f64,
    /// How many there are.
    pub count: u64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { buckets: bounds.iter().map(|&bound| (bound, 0)).collect(), ..Self::default() }
    }

    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
        self.buckets.iter_mut().filter(|(bound, _)| value <= *bound).for_each(|(_, count)| *count += 1);
    }
}

/// A reading of the meters.
#[derive(Debug, Clone)]
pub struct Reading {
    /// From the begin of a transaction to its commit.
    pub commit_seconds: Histogram,
    /// Events of a transaction.
    pub commit_events: Histogram,
    /// Of each job that is being added to: seconds between its last event, by its own clock, and the commit.
    pub lags: Vec<(i64, f64)>,
    /// How long ago the store was asked for a write that it still does not take; zero when it takes all.
    pub blocked: Duration,
}

/// Shared by all who commit.
#[derive(Debug)]
pub(super) struct Meters(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    seconds: Histogram,
    events: Histogram,
    lags: HashMap<i64, (Weak<Commits>, f64)>,
    /// Since when each writer waits for its file.
    blocked: Vec<Instant>,
}

impl Default for Meters {
    fn default() -> Self {
        let (seconds, events) = (Histogram::new(&SECONDS), Histogram::new(&EVENTS));
        Self(Mutex::new(Inner { seconds, events, lags: HashMap::new(), blocked: Vec::new() }))
    }
}

impl Meters {
    /// A transaction of so many events took so long.
    pub(super) fn committed(&self, events: u64, took: Duration) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.seconds.add(took.as_secs_f64());
        inner.events.add(events as f64);
    }

    /// A writer waits since this moment.
    pub(super) fn blocked(&self, since: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).blocked.push(since);
    }

    /// The writer that waited since this moment does so no longer.
    pub(super) fn unblocked(&self, since: Instant) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = inner.blocked.iter().position(|&other| other == since) {
            inner.blocked.swap_remove(at);
        }
    }

    /// The last of a job's events that were just stored was made at this moment (microseconds).
    pub(super) fn stored(&self, job: i64, commits: &Arc<Commits>, created: Option<i64>, now: i64) {
        let Some(created) = created else { return };
        let lag = now.saturating_sub(created).max(0) as f64 / 1e6;
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.lags.insert(job, (Arc::downgrade(commits), lag));
        if inner.lags.len() > 64 {
            // So that the map grows with the jobs that run and no further.
            inner.lags.retain(|_, (commits, _)| commits.strong_count() > 0);
        }
    }
}

impl EventStore {
    /// How the writer does.
    pub fn meters(&self) -> Reading {
        let mut inner = self.inner.meters.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.lags.retain(|_, (commits, _)| commits.strong_count() > 0);
        let mut lags: Vec<_> = inner.lags.iter().map(|(&job, &(_, lag))| (job, lag)).collect();
        lags.sort_unstable_by_key(|&(job, _)| job);
        let blocked = inner.blocked.iter().min().map_or(Duration::ZERO, Instant::elapsed);
        Reading { commit_seconds: inner.seconds.clone(), commit_events: inner.events.clone(), lags, blocked }
    }
}
