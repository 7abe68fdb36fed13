//! Pages for people: plain HTML without scripts, under a policy that runs none.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

/// What a page of ours may load: its own style.
pub(super) const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--paper:#fff;--band:#f6f8fa;--link:#0a58ca}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--paper:#0d1117;--band:#161b22;--link:#6cb0ff}}\
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,sans-serif}\
header{border-bottom:1px solid var(--line);background:var(--band)}header>div,main{max-width:72em;margin:0 auto;padding:.8em 1.2em}\
header a{margin-right:1.4em;text-decoration:none}header b{margin-right:1.6em}main{padding-bottom:4em}\
a{color:var(--link)}h1{font-size:1.5em;margin:.7em 0 .5em}h2{font-size:1.1em;margin:1.8em 0 .4em}\
p{max-width:50em}code,pre{font:13px/1.5 ui-monospace,monospace}pre{background:var(--band);border:1px solid var(--line);\
border-radius:6px;padding:1em;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.32em .9em .32em 0;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--soft);font-weight:500}.paths td:nth-child(1){width:46%}.paths td:nth-child(2){width:27%}\
.soft{color:var(--soft)}.verb{display:inline-block;border:1px solid var(--line);border-radius:4px;\
padding:0 .4em;margin:0 .3em .2em 0;font-size:12px}label{display:block;margin:.8em 0 .2em}\
input:not([type=hidden]){font:inherit;padding:.35em .5em;width:20em;max-width:100%}button{font:inherit;padding:.35em 1em}";

/// Text that is nothing but text in HTML, attributes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A whole page.
pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{} – Plexus</title>\
         <style>{STYLE}</style></head><body><header><div><b>Plexus</b><a href=\"/api/v2/\">API</a>\
         <a href=\"/api/docs/\">Documentation</a><a href=\"/api/login/\">Log in</a><a href=\"/api/logout/\">Log out</a>\
         </div></header><main>{body}</main></body></html>\n",
        escape(title)
    )
}

/// A page as an answer.
pub(super) fn answer(status: StatusCode, title: &str, body: &str) -> Response {
    let mut response = Response::new(Body::from(document(title, body)));
    *response.status_mut() = status;
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, html);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escape("<a href='x'>&\"</a>"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;&lt;/a&gt;");
        assert!(document("<b>", "").contains("<title>&lt;b&gt; – Plexus"));
    }
}
