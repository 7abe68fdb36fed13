//! A job's events as server-sent events: `curl -N …/api/v2/jobs/N/events/stream`.
//!
//! Every message is an event of the job, its `id` the event's number, its data the JSON of the websocket. A client that
//! lost its connection says where it was (`Last-Event-ID`, as browsers do by themselves, or `?after=`) and goes on
//! there. The last message, of type `end`, tells the status and the number of the last event.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, events, ok};
use crate::kind::Kind;
use crate::live::{Next, Subscription};

/// Silence after which a comment is sent, so that proxies keep the connection: most close idle ones after 30 s or 60 s.
const IDLE: Duration = Duration::from_secs(15);

/// `jobs/N/events/stream`, and of every other kind.
pub(super) async fn of_job(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let owner = events::owner(call, kind, id).await?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Job Event Stream", "renders": ["text/event-stream"]}));
    }
    let after = after(call)?;
    let watched = call.app.live.watch(owner.key, Some(after)).await;
    let subscription = watched.map_err(|error| ApiError::internal("a job cannot be watched", error))?;
    let start = Some(Stream { subscription, stop: call.app.live.stop().clone() });
    let body = Body::from_stream(stream::unfold(start, |stream| async move {
        let (text, rest) = stream?.next().await;
        Some((Ok::<_, Infallible>(text), rest))
    }));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold the output back until its buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn after(call: &Call) -> Result<i64, ApiError> {
    let header = call.headers.get("last-event-id").and_then(|id| id.to_str().ok());
    match header.or(call.parameter("after")) {
        None | Some("") => Ok(0),
        Some(text) => match text.parse::<i64>() {
            Ok(after) if after >= 0 => Ok(after),
            _ => Err(ApiError::field("after", "This is the number of an event: 0 or more.")),
        },
    }
}

struct Stream {
    subscription: Subscription,
    stop: CancellationToken,
}

impl Stream {
    async fn next(mut self) -> (Bytes, Option<Self>) {
        let next = tokio::select! {
            next = self.subscription.next() => next,
            () = self.stop.cancelled() => Next::Closed,
            () = tokio::time::sleep(IDLE) => return (Bytes::from_static(b": still here\n\n"), Some(self)),
        };
        match next {
            Next::Events(events) => {
                let mut text = String::with_capacity(events.iter().map(|event| event.json.len() + 32).sum());
                for event in events.iter() {
                    let _ = write!(text, "id: {}\ndata: {}\n\n", event.counter, &*event.json);
                }
                (text.into(), Some(self))
            }
            Next::End(end) => {
                let data = json!({"status": *end.status, "final_counter": end.last});
                (format!("event: end\ndata: {data}\n\n").into(), None)
            }
            // The client comes back by itself, and says where it was.
            Next::Closed => (Bytes::from_static(b"retry: 1000\n\n"), None),
        }
    }
}
