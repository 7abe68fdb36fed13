//! The API in a browser: what a client gets as JSON, whoever asks for HTML gets as a page with links. Nothing more is shown
//! than the JSON says.

use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use serde_json::Value;

use super::html::{self, escape};

/// Longest JSON that is dressed; a longer one is told how to be had as it is.
const MAX_DRESSED: usize = 1 << 20;

/// Whether a page is wanted: by what the browser accepts first, unless the address names a format.
pub(super) fn is_wanted(method: &Method, headers: &HeaderMap, query: Option<&str>) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let first = accept.split(',').next().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let named = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("format="));
    let format = matches!(named, None | Some("api" | "html"));
    matches!(*method, Method::GET | Method::HEAD) && first == "text/html" && format
}

/// The answer as a page; one that is no JSON stays as it is.
pub(super) async fn dressed(
    path: &str,
    query: Option<&str>,
    allow: Option<&str>,
    response: Response,
) -> Response {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !is_json {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let body = match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) if bytes.len() <= MAX_DRESSED => page(path, query, allow, parts.status, &value),
        Ok(_) => format!(
            "<h1>{}</h1><p>This answer has {} bytes, too many to read: <a href=\"{}\">it as JSON</a>.</p>",
            escape(path),
            bytes.len(),
            escape(&as_json(path, query)),
        ),
        Err(_) => return Response::from_parts(parts, Body::from(bytes)),
    };
    let mut page = html::answer(parts.status, path, &body);
    for (name, value) in &parts.headers {
        if !matches!(*name, header::CONTENT_TYPE | header::CONTENT_LENGTH | header::CONTENT_SECURITY_POLICY) {
            page.headers_mut().append(name, value.clone());
        }
    }
    page
}

fn as_json(path: &str, query: Option<&str>) -> String {
    let more = query.filter(|query| !query.is_empty()).map(|query| format!("&{query}")).unwrap_or_default();
    format!("{path}?format=json{more}")
}

fn page(path: &str, query: Option<&str>, allow: Option<&str>, status: StatusCode, value: &Value) -> String {
    let mut html = format!("<h1>{}</h1>", crumbs(path));
    let verbs: String = allow
        .unwrap_or_default()
        .split(", ")
        .filter(|verb| !verb.is_empty())
        .map(|verb| format!("<span class=\"verb\">{verb}</span>"))
        .collect();
    html.push_str(&format!(
        "<p class=\"soft\">{} {} &nbsp; {verbs} &nbsp; <a href=\"{}\">JSON</a></p>",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        escape(&as_json(path, query)),
    ));
    if let Some(results) = value.get("results").and_then(Value::as_array) {
        html.push_str(&table(value, results));
    }
    if path.trim_end_matches('/') == "/api/v2" {
        html.push_str("<table><tr><th>Resource<th>Address</tr>");
        for (name, at) in value.as_object().into_iter().flatten() {
            let at = escape(at.as_str().unwrap_or_default());
            html.push_str(&format!(
                "<tr><td>{}<td><a href=\"{at}\"><code>{at}</code></a></tr>",
                escape(name)
            ));
        }
        html.push_str("</table>");
        return html;
    }
    html.push_str("<pre>");
    render(value, 0, &mut html);
    html.push_str("</pre>");
    html
}

/// The way to a page, each step a link.
fn crumbs(path: &str) -> String {
    let mut at = String::from("/");
    let mut html = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at.push_str(part);
        at.push('/');
        html.push_str(&format!("/<a href=\"{}\">{}</a>", escape(&at), escape(part)));
    }
    html + "/"
}

/// A list in short: what each object is called and where it is.
fn table(list: &Value, results: &[Value]) -> String {
    let mut html = String::from("<table><tr><th>ID<th>Name<th>Address</tr>");
    for object in results {
        let text = |names: &[&str]| {
            let found = names.iter().find_map(|name| object[*name].as_str()).unwrap_or_default();
            escape(found)
        };
        let url = text(&["url"]);
        html.push_str(&format!(
            "<tr><td>{}<td>{}<td><a href=\"{url}\"><code>{url}</code></a></tr>",
            object["id"].as_i64().map(|id| id.to_string()).unwrap_or_default(),
            text(&["name", "username", "hostname", "host_name", "operation", "description"]),
        ));
    }
    html.push_str("</table><p>");
    if let Some(count) = list["count"].as_i64() {
        html.push_str(&format!("{count} in all. "));
    }
    for name in ["previous", "next"] {
        if let Some(at) = list[name].as_str() {
            html.push_str(&format!("<a href=\"{}\">{name}</a> ", escape(at)));
        }
    }
    html + "</p>"
}

/// JSON, indented, in which addresses of the API are links.
fn render(value: &Value, depth: usize, html: &mut String) {
    let indent = |depth: usize| "    ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            html.push_str("{\n");
            for (number, (name, value)) in map.iter().enumerate() {
                html.push_str(&indent(depth + 1));
                html.push_str(&escape(&Value::from(name.as_str()).to_string()));
                html.push_str(": ");
                render(value, depth + 1, html);
                html.push_str(if number + 1 < map.len() { ",\n" } else { "\n" });
            }
            html.push_str(&indent(depth));
            html.push('}');
        }
        Value::Array(items) if !items.is_empty() => {
            html.push_str("[\n");
            for (number, item) in items.iter().enumerate() {
                html.push_str(&indent(depth + 1));
                render(item, depth + 1, html);
                html.push_str(if number + 1 < items.len() { ",\n" } else { "\n" });
            }
            html.push_str(&indent(depth));
            html.push(']');
        }
        Value::String(text) if text.starts_with("/api/") && !text.contains(char::is_whitespace) => {
            let text = escape(text);
            html.push_str(&format!("&quot;<a href=\"{text}\">{text}</a>&quot;"));
        }
        other => html.push_str(&escape(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_who_asks_for_a_page_first_gets_one() {
        let wanted = |accept: &'static str, query| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            is_wanted(&Method::GET, &headers, query)
        };
        assert!(wanted("text/html,application/xhtml+xml,*/*;q=0.8", None));
        assert!(wanted("text/html", Some("format=api")));
        assert!(
            !wanted("application/json", None)
                && !wanted("*/*", None)
                && !wanted("application/json, text/html", None)
        );
        assert!(!wanted("text/html", Some("page=2&format=json")));
        assert!(!is_wanted(&Method::GET, &HeaderMap::new(), None));
    }

    #[test]
    fn what_is_stored_is_shown_and_does_nothing() {
        let value = json!({"name": "<script>alert(1)</script>", "url": "/api/v2/jobs/1/", "bad": "/api/\"onclick=\"x"});
        let html = page("/api/v2/jobs/1/", None, Some("GET, DELETE"), StatusCode::OK, &value);
        assert!(!html.contains("<script") && !html.contains("\"onclick"), "{html}");
        assert!(
            html.contains("<a href=\"/api/v2/jobs/1/\">/api/v2/jobs/1/</a>") && html.contains("DELETE"),
            "{html}"
        );
    }

    #[test]
    fn a_list_is_a_table_too() {
        let value = json!({"count": 2, "next": "/api/v2/users/?page=2", "previous": null, "results": [{"id": 1, "username": "ada", "url": "/api/v2/users/1/"}]});
        let html = page("/api/v2/users/", Some("page_size=1"), None, StatusCode::OK, &value);
        assert!(
            html.contains("<td>ada<td>")
                && html.contains("2 in all")
                && html.contains("?format=json&amp;page_size=1"),
            "{html}"
        );
    }
}
