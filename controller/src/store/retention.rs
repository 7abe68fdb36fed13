//! Keeps what is young: jobs whose time is over go, and with the last job of a month all its events at once.
//!
//! A job's time is counted from when it ended; one that is not over never goes. Rows go in small transactions, so that
//! nobody waits for the writer. A month's events go as a whole, by unlinking its file or dropping its schema; a single job
//! of a month that stays keeps its events until then, which nobody finds any more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, ToSpan};
use sea_query::{Expr, ExprTrait, Order, Query};
use tokio_util::sync::CancellationToken;

use super::core::{Class, CoreDb, Error as CoreError};
use super::events::{self, EventStore, Month};

/// Jobs that go in one transaction.
const BATCH: u64 = 100;
/// States of a job that is not over.
const ACTIVE: [&str; 4] = ["new", "pending", "waiting", "running"];

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rows of jobs.
    #[error("cannot remove jobs whose time is over")]
    Core(#[from] CoreError),
    /// Months of events.
    #[error("cannot remove months of events whose time is over")]
    Events(#[from] events::Error),
}

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Jobs.
    pub jobs: u64,
    /// Months of events.
    pub months: u64,
}

/// Removes jobs that ended before `before`, and months of events in which no job is left. Can be called again at any time,
/// also after it was interrupted.
///
/// # Errors
/// Databases that cannot be read or written. What went until then is gone.
pub async fn sweep(core: &CoreDb, events: &EventStore, before: Timestamp) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    loop {
        let mut tx = core.begin(Class::Bulk).await?;
        let mut over = Query::select();
        over.column("id")
            .from("unified_jobs")
            .and_where(Expr::col("status").is_not_in(ACTIVE))
            .and_where(Expr::col("finished").lt(before.as_microsecond()))
            .order_by("id", Order::Asc)
            .limit(BATCH);
        let rows = tx.all(over).await?;
        let jobs = rows.iter().map(|row| row.at::<i64>(0)).collect::<Result<Vec<_>, _>>()?;
        if jobs.is_empty() {
            break;
        }
        let mut delete = Query::delete();
        delete.from_table("unified_jobs").and_where(Expr::col("id").is_in(jobs));
        removed.jobs += tx.execute(delete).await?;
        tx.commit().await?;
    }
    for month in events.months().await? {
        let Some((begin, end)) = bounds(month) else { continue };
        if end > before {
            break;
        }
        let mut left = Query::select();
        left.column("id")
            .from("unified_jobs")
            .and_where(Expr::col("created").gte(begin.as_microsecond()))
            .and_where(Expr::col("created").lt(end.as_microsecond()))
            .limit(1);
        if core.optional(left).await?.is_none() {
            events.remove_month(month).await?;
            removed.months += 1;
            tracing::info!(%month, "events of a month are removed: the time of all its jobs is over");
        }
    }
    Ok(removed)
}

/// Sweeps now and every hour, until it is stopped: jobs that ended more than `days` days ago go.
pub async fn run(core: CoreDb, events: EventStore, days: u32, stop: CancellationToken) {
    let mut hours = tokio::time::interval(Duration::from_secs(3600));
    loop {
        tokio::select! {
            _ = hours.tick() => {}
            () = stop.cancelled() => return,
        }
        let Ok(before) = Timestamp::now().checked_sub(SignedDuration::from_hours(i64::from(days) * 24))
        else {
            continue; // longer ago than time reaches
        };
        match sweep(&core, &events, before).await {
            Ok(Removed { jobs: 0, months: 0 }) => {}
            Ok(removed) => {
                tracing::info!(jobs = removed.jobs, months = removed.months, "jobs past their time are gone")
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "jobs past their time stay for now");
            }
        }
    }
}

/// First moment of a month and of the next.
fn bounds(month: Month) -> Option<(Timestamp, Timestamp)> {
    let first = jiff::civil::Date::new(month.year(), month.number(), 1).ok()?;
    let next = first.checked_add(1.month()).ok()?;
    let moment = |date: jiff::civil::Date| {
        jiff::tz::Offset::UTC.to_timestamp(date.to_datetime(jiff::civil::Time::midnight())).ok()
    };
    Some((moment(first)?, moment(next)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::testing::{Spool, attempt, captured, context};
    use crate::ingest::{Ingest, UnitContext};
    use crate::store::events::JobKey;
    use crate::store::testing::{Place, on_each_engine};
    use plexus_proto::id::OwnerEpoch;

    async fn job(core: &CoreDb, created: &str, finished: Option<&str>) -> JobKey {
        let moment = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut insert = Query::insert();
        insert
            .into_table("unified_jobs")
            .columns(["kind", "status", "created", "modified", "finished"])
            .values_panic([
                "job".into(),
                if finished.is_some() { "successful" } else { "running" }.into(),
                moment(created).as_microsecond().into(),
                1.into(),
                finished.map(|text| moment(text).as_microsecond()).into(),
            ]);
        let mut tx = core.begin(Class::Intent).await.unwrap();
        let id = tx.insert(&mut insert).await.unwrap();
        tx.commit().await.unwrap();
        JobKey { id, created: moment(created) }
    }

    async fn store_events(events: &EventStore, job: JobKey) {
        let unit = u128::from(job.id.cast_unsigned());
        let context = UnitContext { job, ..context(unit, job.id) };
        let epoch = OwnerEpoch { incarnation: 1, counter: 1 };
        let mut session = Ingest::new(events.clone()).open(context, epoch).await.unwrap();
        let records = Spool::lines(attempt(unit, 1), &captured("ok-2-hosts"), 5);
        let last = records.len() as u64;
        for record in records {
            session.push(record).await.unwrap();
        }
        session.acked().wait_for(|&stored| stored == last).await.unwrap();
    }

    async fn months_go_when_the_time_of_all_their_jobs_is_over(place: Place) {
        let (core, events) = (place.core().await, place.events().await);
        let old = job(&core, "2026-03-10T00:00:00Z", Some("2026-03-11T00:00:00Z")).await;
        // Created in the last second of its month, over in the next: it lies where it was created.
        let across = job(&core, "2026-04-30T23:59:59Z", Some("2026-05-02T00:00:00Z")).await;
        let running = job(&core, "2026-05-01T00:00:00Z", None).await;
        let young = job(&core, "2026-06-20T00:00:00Z", Some("2026-06-21T00:00:00Z")).await;
        for key in [old, across, running, young] {
            store_events(&events, key).await;
        }
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let swept = sweep(&core, &events, at("2026-03-11T00:00:00Z")).await.unwrap();
        assert_eq!(swept, Removed::default(), "not before its time");
        assert_eq!(
            sweep(&core, &events, at("2026-05-01T12:00:00Z")).await.unwrap(),
            Removed { jobs: 1, months: 1 }
        );
        assert_eq!(events.summary(old).await.unwrap().events, 0);
        assert_eq!(events.summary(across).await.unwrap().events, 18, "its time is counted from its end");
        assert_eq!(
            sweep(&core, &events, at("2026-06-10T00:00:00Z")).await.unwrap(),
            Removed { jobs: 1, months: 1 }
        );
        assert_eq!(events.summary(across).await.unwrap().events, 0);
        for key in [running, young] {
            assert_eq!(
                events.summary(key).await.unwrap().events,
                18,
                "a job that is not over keeps its month"
            );
        }
        assert_eq!(sweep(&core, &events, at("2026-06-10T00:00:00Z")).await.unwrap(), Removed::default());
        // A month that went can come again.
        store_events(&events, old).await;
        assert_eq!(events.summary(old).await.unwrap().events, 18);
        events.close().await;
        core.close().await;
    }

    on_each_engine![months_go_when_the_time_of_all_their_jobs_is_over,];
}
