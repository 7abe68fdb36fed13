//! `/api/plexus/v1/grep/`: which jobs, hosts and tasks failed with a text, since when.
//!
//! The answer is lines of JSON, sent as they are found: `{"hit": …}`, at the end one `{"end": …}` with a cursor if
//! the time was up before everything was searched.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, generic, ok};
use crate::grep::{Cursor, Hit, Search, Step, TEXT_MAX, Wanted};
use crate::registry::JOBS;
use crate::registry::read::time_json;

/// Seconds a search may take: unless said otherwise, and at most.
const SECONDS: (u64, u64) = (10, 60);

/// `grep/?q=TEXT`, with `all`, `since`, `template`, `host`, `cursor`, `seconds`.
pub(super) async fn serve(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Grep", "renders": ["application/x-ndjson"]}));
    }
    let text = call.parameter("q").unwrap_or_default();
    if text.is_empty() || text.len() > TEXT_MAX {
        return Err(ApiError::field("q", format!("The text to look for, 1 to {TEXT_MAX} bytes.")));
    }
    let wanted = Wanted {
        text: text.to_owned(),
        failed: !matches!(call.parameter("all"), Some("true" | "1")),
        since: call.parameter("since").map(moment).transpose()?,
        template: number(call, "template")?,
        host: call.parameter("host").map(str::to_owned),
        visible: generic::visible(&JOBS, user)?,
    };
    let cursor = call.parameter("cursor").map(str::parse::<Cursor>).transpose();
    let cursor = cursor.map_err(|_| ApiError::field("cursor", "This is no cursor of an earlier search."))?;
    let seconds =
        number(call, "seconds")?.map_or(SECONDS.0, |seconds| seconds.clamp(1, SECONDS.1 as i64) as u64);
    let (db, events) = (call.app.db.clone(), call.app.events.clone());
    let search = Search::new(db, events, wanted, cursor, Duration::from_secs(seconds));
    let body = Body::from_stream(stream::unfold(Some(search), |search| async move {
        let (text, rest) = lines(search?).await;
        Some((Ok::<_, Infallible>(text), rest))
    }));
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

async fn lines(mut search: Search) -> (Bytes, Option<Search>) {
    loop {
        match search.step().await {
            Ok(Step::Hits(hits)) if hits.is_empty() => {}
            Ok(Step::Hits(hits)) => {
                let text: String = hits.iter().map(|hit| format!("{}\n", shown(hit))).collect();
                return (text.into(), Some(search));
            }
            Ok(Step::End(searched, cursor)) => {
                let end = json!({
                    "searched_jobs": searched.jobs,
                    "searched_events": searched.events,
                    "cursor": cursor.map(|cursor| cursor.to_string()),
                });
                return (format!("{}\n", json!({"end": end})).into(), None);
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a search broke off");
                return (format!("{}\n", json!({"error": error.to_string()})).into(), None);
            }
        }
    }
}

fn shown(hit: &Hit) -> Value {
    let event = &hit.event;
    json!({"hit": {
        "job": event.job,
        "name": hit.name,
        "counter": event.counter,
        "event": event.event,
        "failed": event.failed,
        "host": event.host_name,
        "task": event.task,
        "play": event.play,
        "created": event.created.map(|created| time_json(created.as_microsecond())),
        "url": format!("/api/v2/job_events/{}/", event.id()),
        "excerpt": hit.excerpt,
    }})
}

fn number(call: &Call, name: &str) -> Result<Option<i64>, ApiError> {
    let parsed = call.parameter(name).map(str::parse).transpose();
    parsed.map_err(|_| ApiError::field(name, "A valid integer is required."))
}

/// A time, or how long ago: `90s`, `15m`, `12h`, `7d`.
fn moment(text: &str) -> Result<i64, ApiError> {
    let odd =
        || ApiError::field("since", "A time like 2026-03-01T12:00:00Z, or how long ago: 90s, 15m, 12h, 7d.");
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_microsecond());
    }
    let unit = text.chars().last().and_then(|unit| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    });
    let count = text.get(..text.len().saturating_sub(1)).and_then(|count| count.parse::<i64>().ok());
    let seconds =
        count.filter(|&count| count >= 0).zip(unit).and_then(|(count, unit)| count.checked_mul(unit));
    let micros = seconds.and_then(|seconds| seconds.checked_mul(1_000_000)).ok_or_else(odd)?;
    Ok(jiff::Timestamp::now().as_microsecond().saturating_sub(micros))
}
