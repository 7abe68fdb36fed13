//! `/metrics` and `/api/v2/metrics/`: what became of every record and event, in Prometheus's text format.
//!
//! Counters begin at zero with the process. What was received is stored, repeated, refused or undone: nothing else can become
//! of a record, so the sum balances whenever nothing is on its way.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use sea_query::{Expr, ExprTrait, Query};

use super::Answer;
use super::call::Call;
use super::error::ApiError;
use super::settings;
use crate::job;
use crate::store::events::{Counts, Histogram};

pub(super) async fn serve(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let open = settings::setting(&call.app.db, "ALLOW_METRICS_FOR_ANONYMOUS_USERS").await? == true;
    if !open && !call.user()?.is_superuser {
        return Err(ApiError::forbidden());
    }
    let mut text = String::new();
    ingest(&mut text, &call.app.events.counts());
    let meters = call.app.events.meters();
    histogram(
        &mut text,
        "plexus_event_commit_seconds",
        "Time of a transaction of events, from its begin to its commit.",
        &meters.commit_seconds,
    );
    histogram(&mut text, "plexus_event_commit_events", "Events of a transaction.", &meters.commit_events);
    head(
        &mut text,
        "plexus_job_event_lag_seconds",
        "gauge",
        "Age that a job's last event had when it was stored.",
    );
    for (job, lag) in &meters.lags {
        let _ = writeln!(text, "plexus_job_event_lag_seconds{{job=\"{job}\"}} {lag:.6}");
    }
    head(
        &mut text,
        "plexus_event_store_blocked_seconds",
        "gauge",
        "For how long the event store has not taken a write: locked, full, or away. 0 when it does.",
    );
    let _ = writeln!(text, "plexus_event_store_blocked_seconds {:.3}", meters.blocked.as_secs_f64());
    let (watched, watchers) = call.app.live.watched();
    for (name, help, value) in [
        ("plexus_watched_jobs", "Jobs that somebody watches.", watched),
        ("plexus_watchers", "Watchers of jobs.", watchers),
    ] {
        head(&mut text, name, "gauge", help);
        let _ = writeln!(text, "{name} {value}");
    }
    let behind = call.app.live.behind();
    counter(
        &mut text,
        "plexus_watcher_reads_total",
        "Times a watcher that fell behind was given events from the store.",
        behind,
    );
    jobs(call, &mut text).await?;
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn ingest(text: &mut String, counts: &Counts) {
    for (name, help, value) in [
        ("records_received", "Records that came from nodes.", counts.records_received),
        ("records_stored", "Records stored, and then acknowledged.", counts.records_stored),
        ("records_repeated", "Records stored before: acknowledged once more.", counts.records_repeated),
        (
            "records_refused",
            "Records that only a node at fault sends: never acknowledged.",
            counts.records_refused,
        ),
        ("records_undone", "Records taken and not stored after all: they are sent again.", counts.undone),
        ("records_missing", "Records that never came: a named gap.", counts.records_missing),
        ("events_stored", "Events stored.", counts.events_stored),
        ("gaps_named", "Gaps named.", counts.gaps_named),
        ("event_commits", "Transactions of events.", counts.commits),
        ("event_commit_retries", "Times a transaction was tried again.", counts.retries),
        ("units_fenced", "Units left out because another controller owns them by now.", counts.fenced),
        (
            "units_balanced",
            "Units that nodes forgot, all their records being stored or a named gap.",
            counts.units_balanced,
        ),
        (
            "units_unbalanced",
            "Units of which nodes had another number of records than are stored or a named gap: none, ever.",
            counts.units_unbalanced,
        ),
    ] {
        counter(text, &format!("plexus_{name}_total"), help, value);
    }
}

/// How many jobs there are, under AWX's names.
async fn jobs(call: &Call, text: &mut String) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.column("status").expr(Expr::col("id").count()).from("unified_jobs").group_by_col("status");
    let mut by_status = BTreeMap::new();
    for row in call.app.db.all(&query).await? {
        by_status.insert(row.at::<String>(0)?, row.at::<i64>(1)?);
    }
    let of = |status: &str| by_status.get(status).copied().unwrap_or(0);
    for (name, help, value) in [
        ("awx_running_jobs_total", "Number of running jobs on the system", of("running")),
        ("awx_pending_jobs_total", "Number of pending jobs on the system", of("pending")),
    ] {
        head(text, name, "gauge", help);
        let _ = writeln!(text, "{name} {value}");
    }
    head(text, "awx_status_total", "gauge", "Status of jobs launched");
    for (status, count) in by_status.iter().filter(|(status, _)| !job::is_active(status)) {
        let _ = writeln!(text, "awx_status_total{{status=\"{status}\"}} {count}");
    }
    Ok(())
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn counter(text: &mut String, name: &str, help: &str, value: u64) {
    head(text, name, "counter", help);
    let _ = writeln!(text, "{name} {value}");
}

fn histogram(text: &mut String, name: &str, help: &str, histogram: &Histogram) {
    head(text, name, "histogram", help);
    for (bound, count) in &histogram.buckets {
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", histogram.count);
    let _ = writeln!(text, "{name}_sum {}\n{name}_count {}", histogram.sum, histogram.count);
}
