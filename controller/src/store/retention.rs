//! Keeps what is young: jobs whose time is over go, and with the last job of a month all its events at once. By the hour
//! where the configuration says so, and whenever somebody launches the management job.
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

/// What a management job was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Jobs that ended longer ago than this go.
    pub days: u32,
    /// Only says what would go.
    pub dry_run: bool,
}

/// A management job that can be launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Management {
    /// Id of its template: below those that are counted from 1, so that what people make first has the ids that guides
    /// speak of.
    pub template: i64,
    /// AWX's word for what it does.
    pub job_type: &'static str,
    /// Its name, as AWX has it.
    pub name: &'static str,
    /// What people read of it.
    pub description: &'static str,
}

/// Removes jobs.
pub const JOBS: Management = Management {
    template: 0,
    job_type: "cleanup_jobs",
    name: "Cleanup Job Details",
    description: "Remove job history",
};
/// Removes entries of the activity stream.
pub const ACTIVITY: Management = Management {
    template: -1,
    job_type: "cleanup_activitystream",
    name: "Cleanup Activity Stream",
    description: "Remove activity stream history",
};
/// Removes sessions that are over.
pub const SESSIONS: Management = Management {
    template: -2,
    job_type: "cleanup_sessions",
    name: "Cleanup Expired Sessions",
    description: "Cleans out expired browser sessions",
};
/// Removes tokens that are over.
pub const TOKENS: Management = Management {
    template: -3,
    job_type: "cleanup_tokens",
    name: "Cleanup Expired OAuth 2 Tokens",
    description: "Cleanup expired OAuth 2 access and refresh tokens",
};
/// All there are.
pub const MANAGEMENT: [Management; 4] = [JOBS, ACTIVITY, SESSIONS, TOKENS];
/// Days of a launch that names none.
pub const DAYS: u32 = 60;

/// Makes the templates of the management jobs, each once.
///
/// # Errors
/// A database that cannot be read or written.
pub async fn seed(core: &CoreDb) -> Result<(), CoreError> {
    let mut there = Query::select();
    there.column("id").from("unified_job_templates").and_where(Expr::col("kind").eq("system_job_template"));
    let there = core.all(&there).await?.iter().map(|row| row.at(0)).collect::<Result<Vec<i64>, _>>()?;
    let now = Timestamp::now().as_microsecond();
    for job in MANAGEMENT.iter().filter(|job| !there.contains(&job.template)) {
        let mut insert = Query::insert();
        insert
            .into_table("unified_job_templates")
            .columns(["id", "kind", "name", "description", "status", "created", "modified"])
            .values_panic([
                job.template.into(),
                "system_job_template".into(),
                job.name.into(),
                job.description.into(),
                "ok".into(),
                now.into(),
                now.into(),
            ]);
        let mut tx = core.begin(Class::Bulk).await?;
        tx.insert(&mut insert).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Removes entries of the activity stream from before `before`, in small transactions; how many. With `dry_run` it only
/// counts them.
async fn sweep_activity(core: &CoreDb, before: Timestamp, dry_run: bool) -> Result<u64, Error> {
    let old = Expr::col("timestamp").lt(before.as_microsecond());
    if dry_run {
        let mut query = Query::select();
        query.expr(Expr::col("id").count()).from("activity_stream").and_where(old);
        let entries: i64 = core.optional(&query).await?.map(|row| row.at(0)).transpose()?.unwrap_or(0);
        return Ok(entries.unsigned_abs());
    }
    let mut removed = 0;
    loop {
        let mut batch = Query::select();
        batch.column("id").from("activity_stream").and_where(old.clone());
        batch.order_by("id", Order::Asc).limit(10 * BATCH);
        let mut delete = Query::delete();
        delete.from_table("activity_stream").and_where(Expr::col("id").in_subquery(batch));
        let mut tx = core.begin(Class::Bulk).await?;
        let gone = tx.execute(&delete).await?;
        tx.commit().await?;
        if gone == 0 {
            return Ok(removed);
        }
        removed += gone;
    }
}

/// Removes sessions or tokens that are over, codes for tokens with the latter; how many. A token that can still be refreshed
/// stays: whoever refreshes it needs it. With `dry_run` it only counts them.
async fn sweep_expired(core: &CoreDb, table: &'static str, dry_run: bool) -> Result<u64, Error> {
    let now = Timestamp::now().as_microsecond();
    let mut over = Expr::col("expires").lt(now);
    if table == "tokens" {
        let mut refreshable = Query::select();
        refreshable.column("id").from("application_tokens").and_where(Expr::col("refresh_expires").gte(now));
        over = over.and(Expr::col("id").not_in_subquery(refreshable));
    }
    if dry_run {
        let mut query = Query::select();
        query.expr(Expr::col("expires").count()).from(table).and_where(over);
        let gone: i64 = core.optional(&query).await?.map(|row| row.at(0)).transpose()?.unwrap_or(0);
        return Ok(gone.unsigned_abs());
    }
    let mut tx = core.begin(Class::Bulk).await?;
    let mut delete = Query::delete();
    let gone = tx.execute(delete.from_table(table).and_where(over)).await?;
    if table == "tokens" {
        let mut codes = Query::delete();
        tx.execute(codes.from_table("authorization_codes").and_where(Expr::col("expires").lt(now))).await?;
    }
    tx.commit().await?;
    Ok(gone)
}

/// Sweeps now and every hour where `days` is given: jobs that ended more than so many days ago go. Runs management jobs as
/// they are launched, and those that a death left behind. Until it is stopped.
pub async fn run(core: CoreDb, events: EventStore, days: Option<u32>, stop: CancellationToken) {
    let mut hours = tokio::time::interval(Duration::from_secs(3600));
    let mut changed = core.changed();
    loop {
        changed.mark_unchanged();
        if let Err(error) = run_asked(&core, &events).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a management job does not go on");
        }
        tokio::select! {
            _ = hours.tick(), if days.is_some() => {}
            alive = changed.changed() => match alive {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = stop.cancelled() => return,
        }
        let Some(before) = days.and_then(ago) else { continue };
        match sweep(&core, &events, before).await {
            Ok(Removed { jobs: 0, months: 0 }) => {}
            Ok(removed) => {
                tracing::info!(jobs = removed.jobs, months = removed.months, "jobs past their time are gone");
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "jobs past their time stay for now");
            }
        }
    }
}

/// So many days ago; `None` for longer ago than time reaches.
fn ago(days: u32) -> Option<Timestamp> {
    Timestamp::now().checked_sub(SignedDuration::from_hours(i64::from(days) * 24)).ok()
}

/// Runs management jobs that wait, or that a death interrupted: to sweep again does no harm.
///
/// # Errors
/// A database that cannot be read or written. The job goes on at the next look.
pub async fn run_asked(core: &CoreDb, events: &EventStore) -> Result<(), Error> {
    let mut query = Query::select();
    query
        .columns(["id", "extra_vars", "job_type"])
        .from("unified_jobs")
        .and_where(Expr::col("kind").eq("system_job"))
        .and_where(Expr::col("status").is_in(ACTIVE))
        .order_by("id", Order::Asc);
    for row in core.all(&query).await? {
        let id: i64 = row.at(0)?;
        let vars: serde_json::Value = serde_json::from_str(&row.at::<String>(1)?).unwrap_or_default();
        let days = vars["days"].as_u64().and_then(|days| u32::try_from(days).ok()).unwrap_or(DAYS);
        let began = Timestamp::now();
        let status = Expr::col("status");
        note(
            core,
            id,
            "running",
            [("status", "running".into()), ("started", began.as_microsecond().into())],
            status.is_in(ACTIVE),
        )
        .await?;
        let dry_run = vars["dry_run"] == true;
        let job_type: String = row.at(2)?;
        let activity = job_type == ACTIVITY.job_type;
        let over = match job_type.as_str() {
            "cleanup_sessions" => Some("sessions"),
            "cleanup_tokens" => Some("tokens"),
            _ => None,
        };
        let did = if dry_run { "would be removed" } else { "removed" };
        let done = match (over, ago(days)) {
            (Some(table), _) => {
                let swept = sweep_expired(core, table, dry_run).await;
                swept.map(|gone| format!("{gone} expired {table} {did}.\n"))
            }
            (None, None) => Ok("Nothing is that old.\n".to_owned()),
            (None, Some(before)) if activity => sweep_activity(core, before, dry_run)
                .await
                .map(|entries| format!("{entries} entries of the activity stream {did}.\n")),
            (None, Some(before)) if dry_run => {
                count(core, before).await.map(|jobs| format!("{jobs} jobs would be removed.\n"))
            }
            (None, Some(before)) => sweep(core, events, before).await.map(|Removed { jobs, months }| {
                format!("{jobs} jobs and {months} months of events removed.\n")
            }),
        };
        let (status, said) = match &done {
            Ok(said) => ("successful", said.clone()),
            Err(error) => ("failed", format!("{error}\n")),
        };
        let now = Timestamp::now();
        let values = [
            ("status", status.into()),
            ("failed", done.is_err().into()),
            ("finished", now.as_microsecond().into()),
            ("elapsed", now.duration_since(began).as_secs_f64().into()),
            ("job_explanation", said.into()),
            ("event_processing_finished", true.into()),
        ];
        note(core, id, status, values, Expr::col("status").eq("running")).await?;
        tracing::info!(job = id, status, "management job is over");
    }
    Ok(())
}

/// Jobs that [`sweep`] would remove.
async fn count(core: &CoreDb, before: Timestamp) -> Result<u64, Error> {
    let mut query = Query::select();
    query.expr(Expr::col("id").count()).from("unified_jobs");
    query
        .and_where(Expr::col("status").is_not_in(ACTIVE))
        .and_where(Expr::col("finished").lt(before.as_microsecond()));
    let row = core.optional(&query).await?;
    let jobs: i64 = row.map(|row| row.at(0)).transpose()?.unwrap_or(0);
    Ok(jobs.unsigned_abs())
}

async fn note<const N: usize>(
    core: &CoreDb,
    job: i64,
    status: &str,
    values: [(&'static str, Expr); N],
    holds: Expr,
) -> Result<(), Error> {
    let mut update = Query::update();
    update.table("unified_jobs").values(values).value("modified", Timestamp::now().as_microsecond());
    update.and_where(Expr::col("id").eq(job)).and_where(holds);
    let mut tx = core.begin(Class::Intent).await?;
    if tx.execute(&update).await? > 0 {
        if crate::job::is_active(status) {
            tx.job_changed(job, status);
        } else {
            crate::job::conclude(&mut tx, job).await?;
        }
    }
    tx.commit().await?;
    Ok(())
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

    async fn a_management_job_sweeps_when_it_is_launched(place: Place) {
        let (core, events) = (place.core().await, place.events().await);
        seed(&core).await.unwrap();
        seed(&core).await.unwrap();
        let old = job(&core, "2020-03-10T00:00:00Z", Some("2020-03-11T00:00:00Z")).await;
        store_events(&events, old).await;
        let launch = async |vars: &str| {
            let mut insert = Query::insert();
            let values = ["system_job".into(), "pending".into(), vars.into(), 1.into(), 1.into()];
            insert
                .into_table("unified_jobs")
                .columns(["kind", "status", "extra_vars", "created", "modified"])
                .values_panic(values);
            let mut tx = core.begin(Class::Intent).await.unwrap();
            let id = tx.insert(&mut insert).await.unwrap();
            tx.commit().await.unwrap();
            run_asked(&core, &events).await.unwrap();
            let mut query = Query::select();
            query
                .columns(["status", "job_explanation"])
                .from("unified_jobs")
                .and_where(Expr::col("id").eq(id));
            let row = core.optional(&query).await.unwrap().unwrap();
            (row.at::<String>(0).unwrap(), row.at::<String>(1).unwrap())
        };
        let done = |said: &str| ("successful".to_owned(), said.to_owned());
        // Whenever this runs, the job ended more than zero days ago, and less than ten thousand.
        assert_eq!(launch(r#"{"days": 10000}"#).await, done("0 jobs and 0 months of events removed.\n"));
        assert_eq!(launch(r#"{"days": 0, "dry_run": true}"#).await, done("2 jobs would be removed.\n"));
        assert_eq!(events.summary(old).await.unwrap().events, 18);
        let (status, said) = launch(r#"{"days": 0}"#).await;
        assert!(status == "successful" && said.starts_with("3 jobs and 1 months"), "{status} {said}");
        assert_eq!(events.summary(old).await.unwrap().events, 0);
        // The activity stream has a job of its own.
        let mut tx = core.begin(Class::Intent).await.unwrap();
        for (entry, moment) in
            [(1_i64, "2020-01-01T00:00:00Z"), (2, "2020-01-02T00:00:00Z"), (3, "2999-01-01T00:00:00Z")]
        {
            let mut insert = Query::insert();
            insert.into_table("activity_stream").columns(["id", "timestamp", "object1_id"]);
            let moment = moment.parse::<Timestamp>().unwrap().as_microsecond();
            insert.values_panic([entry.into(), moment.into(), entry.into()]);
            tx.execute(&insert).await.unwrap();
        }
        tx.commit().await.unwrap();
        let activity = async |vars: &str| {
            let mut insert = Query::insert();
            insert
                .into_table("unified_jobs")
                .columns(["kind", "status", "extra_vars", "job_type", "created", "modified"])
                .values_panic([
                    "system_job".into(),
                    "pending".into(),
                    vars.into(),
                    ACTIVITY.job_type.into(),
                    1.into(),
                    1.into(),
                ]);
            let mut tx = core.begin(Class::Intent).await.unwrap();
            let id = tx.insert(&mut insert).await.unwrap();
            tx.commit().await.unwrap();
            run_asked(&core, &events).await.unwrap();
            let mut query = Query::select();
            query.column("job_explanation").from("unified_jobs").and_where(Expr::col("id").eq(id));
            core.optional(&query).await.unwrap().unwrap().at::<String>(0).unwrap()
        };
        let would = activity(r#"{"days": 1, "dry_run": true}"#).await;
        assert_eq!(would, "2 entries of the activity stream would be removed.\n");
        assert_eq!(activity(r#"{"days": 1}"#).await, "2 entries of the activity stream removed.\n");
        assert_eq!(activity(r#"{"days": 1}"#).await, "0 entries of the activity stream removed.\n");
        events.close().await;
        core.close().await;
    }

    async fn what_is_over_goes_and_what_may_be_refreshed_stays(place: Place) {
        let core = place.core().await;
        let (past, future) = (1_i64, Timestamp::now().as_microsecond() + 1_000_000_000);
        let mut tx = core.begin(Class::Intent).await.unwrap();
        let mut user = Query::insert();
        user.into_table("users").columns(["id", "username", "created", "modified"]);
        tx.execute(user.values_panic([1.into(), "ada".into(), 0.into(), 0.into()])).await.unwrap();
        for (id, expires) in [(1_i64, past), (2, future), (3, past)] {
            let mut session = Query::insert();
            session.into_table("sessions").columns(["key_hash", "user_id", "created", "expires"]);
            session.values_panic([vec![id as u8].into(), 1.into(), 0.into(), expires.into()]);
            tx.execute(&session).await.unwrap();
            let mut token = Query::insert();
            token.into_table("tokens").columns([
                "id",
                "user_id",
                "token_hash",
                "expires",
                "created",
                "modified",
            ]);
            token.values_panic([
                id.into(),
                1.into(),
                vec![id as u8].into(),
                expires.into(),
                0.into(),
                0.into(),
            ]);
            tx.execute(&token).await.unwrap();
        }
        let mut organization = Query::insert();
        organization.into_table("organizations").columns(["id", "name", "created", "modified"]);
        tx.execute(organization.values_panic([1.into(), "o".into(), 0.into(), 0.into()])).await.unwrap();
        let mut application = Query::insert();
        application.into_table("applications");
        application.columns(["id", "organization_id", "client_secret_hash", "created", "modified"]);
        application.values_panic([1.into(), 1.into(), vec![0_u8].into(), 0.into(), 0.into()]);
        tx.execute(&application).await.unwrap();
        let mut refresh = Query::insert();
        refresh.into_table("application_tokens").columns(["id", "application_id", "refresh_expires"]);
        tx.execute(refresh.values_panic([3.into(), 1.into(), future.into()])).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(sweep_expired(&core, "sessions", true).await.unwrap(), 2);
        assert_eq!(sweep_expired(&core, "sessions", false).await.unwrap(), 2);
        assert_eq!(sweep_expired(&core, "tokens", true).await.unwrap(), 1, "one can be refreshed");
        assert_eq!(sweep_expired(&core, "tokens", false).await.unwrap(), 1);
        assert_eq!(sweep_expired(&core, "tokens", false).await.unwrap(), 0);
        core.close().await;
    }

    on_each_engine![
        what_is_over_goes_and_what_may_be_refreshed_stays,
        a_management_job_sweeps_when_it_is_launched,
        months_go_when_the_time_of_all_their_jobs_is_over,
    ];
}
