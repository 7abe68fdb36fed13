//! The output of a job, as text of several kinds. It is written piece by piece, however long it is.

use std::convert::Infallible;
use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde_json::json;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, ansi, events, ok};
use crate::job;
use crate::kind::Kind;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Txt,
    Ansi,
    TxtDownload,
    AnsiDownload,
    Json,
    Html,
}

/// `jobs/N/stdout/`, and of every other kind.
pub(super) async fn of_job(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let owner = events::owner(call, kind, id).await?;
    if call.method == Method::OPTIONS {
        let name = format!("{} Stdout", kind.names().resource.label);
        return ok(json!({"name": name, "renders": ["text/plain", "application/json", "text/html"]}));
    }
    let format = format(call)?;
    let line = |name: &str| call.parameter(name).and_then(|text| text.parse::<i64>().ok());
    let wanted = line("start_line").unwrap_or(0).max(0)..line("end_line").unwrap_or(i64::MAX).max(0);
    let summary = call.app.events.summary(owner.key).await;
    let summary = summary.map_err(|error| ApiError::internal("the output of a job was not found", error))?;
    let (text, lines) = if summary.events == 0 {
        let (text, lines) = without_events(&owner, &wanted);
        (stream::iter([text]).boxed(), lines)
    } else {
        let key = owner.key.id;
        let pieces = call.app.events.stdout(owner.key, wanted.clone()).map(move |piece| {
            // What was written is sent; that something is missing must be seen in the text.
            piece.unwrap_or_else(|error| {
                let error: &dyn std::error::Error = &error;
                tracing::error!(job = key, error, "the output of a job broke off");
                "\n[The output breaks off here: it could not be read.]\n".to_owned()
            })
        });
        (pieces.boxed(), summary.last_line)
    };
    let (body, mime) = match format {
        Format::Ansi | Format::AnsiDownload => (body(text), "text/plain; charset=utf-8"),
        Format::Txt | Format::TxtDownload => {
            let plain = text.scan(ansi::Splitter::default(), |splitter, piece| {
                let plain = splitter.plain(&piece);
                async move { Some(plain) }
            });
            (body(plain), "text/plain; charset=utf-8")
        }
        Format::Html => (body(page(owner.key.id, text)), "text/html; charset=utf-8"),
        Format::Json => {
            let base64 = call.parameter("content_encoding") == Some("base64");
            (body(document(wanted, lines, base64, text)), "application/json")
        }
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(mime));
    if matches!(format, Format::TxtDownload | Format::AnsiDownload) {
        let extension = if format == Format::AnsiDownload { "ansi.txt" } else { "txt" };
        let disposition = format!("attachment; filename=\"{}_{}.{extension}\"", kind.as_str(), owner.key.id);
        if let Ok(disposition) = HeaderValue::from_str(&disposition) {
            headers.insert(header::CONTENT_DISPOSITION, disposition);
        }
    }
    Ok(response)
}

fn format(call: &Call) -> Result<Format, ApiError> {
    Ok(match call.parameter("format") {
        Some("txt") => Format::Txt,
        Some("ansi") => Format::Ansi,
        Some("txt_download") => Format::TxtDownload,
        Some("ansi_download") => Format::AnsiDownload,
        Some("json") => Format::Json,
        Some("html" | "api") => Format::Html,
        Some(_) => return Err(ApiError::Detail(StatusCode::NOT_FOUND, "Not found.".to_owned())),
        None => {
            let accept =
                call.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
            match accept {
                accept if accept.contains("text/html") => Format::Html,
                accept if accept.contains("application/json") => Format::Json,
                _ => Format::Txt,
            }
        }
    })
}

/// A job that printed nothing still says where it ran, and why it did not.
fn without_events(owner: &events::Owner, wanted: &Range<i64>) -> (String, i64) {
    let mut text = owner.image.as_deref().map(|image| job::header(image) + "\n").unwrap_or_default();
    if !owner.explanation.is_empty() {
        text.push_str(owner.explanation.trim_end());
        text.push('\n');
    }
    let lines = i64::try_from(text.lines().count()).unwrap_or(0);
    let kept = text.split_inclusive('\n').zip(0..).filter(|(_, number)| wanted.contains(number));
    (kept.map(|(line, _)| line).collect(), lines)
}

fn body(text: impl Stream<Item = String> + Send + 'static) -> Body {
    Body::from_stream(text.map(|piece| Ok::<_, Infallible>(Bytes::from(piece))))
}

fn page(
    id: i64,
    text: impl Stream<Item = String> + Send + 'static,
) -> impl Stream<Item = String> + Send + 'static {
    let head = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Job {id}</title><style>\
         body{{background:#161b1f;color:#fff}}.ansi1{{font-weight:bold}}.ansi4{{text-decoration:underline}}\
         .ansi30,.ansi90{{color:#777}}.ansi31,.ansi91{{color:#f55}}.ansi32,.ansi92{{color:#5d5}}\
         .ansi33,.ansi93{{color:#db3}}.ansi34,.ansi94{{color:#79f}}.ansi35,.ansi95{{color:#e7e}}\
         .ansi36,.ansi96{{color:#5dd}}</style></head><body><pre>\n"
    );
    let marked = text.scan(ansi::Html::default(), |html, piece| {
        let marked = html.html(&piece);
        async move { Some(marked) }
    });
    stream::once(async { head })
        .chain(marked)
        .chain(stream::once(async { "</pre></body></html>\n".to_owned() }))
}

/// `{"range": …, "content": …}`, the content in pieces of one JSON string.
fn document(
    wanted: Range<i64>,
    lines: i64,
    base64: bool,
    text: impl Stream<Item = String> + Send + 'static,
) -> impl Stream<Item = String> + Send + 'static {
    let range = json!({
        "start": wanted.start.min(lines),
        "end": wanted.end.min(lines),
        "absolute_end": lines,
    });
    let head = format!("{{\"range\":{range},\"content\":\"");
    // Base64 takes three bytes at a time; what is over waits for the next piece, and for the end.
    let content = text.map(Some).chain(stream::once(async { None })).scan(
        Vec::new(),
        move |over: &mut Vec<u8>, piece| {
            let written = match (piece, base64) {
                (Some(piece), false) => {
                    let quoted = serde_json::Value::from(piece).to_string();
                    quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
                }
                (None, false) => String::new(),
                (piece, true) => {
                    let last = piece.is_none();
                    over.extend_from_slice(piece.unwrap_or_default().as_bytes());
                    let whole = if last { over.len() } else { over.len() / 3 * 3 };
                    let written = STANDARD.encode(&over[..whole]);
                    over.drain(..whole);
                    written
                }
            };
            async move { Some(written) }
        },
    );
    stream::once(async { head }).chain(content).chain(stream::once(async { "\"}".to_owned() }))
}
