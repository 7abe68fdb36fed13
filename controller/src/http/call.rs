//! One request, read and bounded, with who is asking.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, StatusCode, header, request::Parts};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::App;
use super::error::ApiError;
use crate::auth::{By, Principal, User};
use crate::https::Encrypted;
use crate::vault::Secret;

/// Longest body that is read: variables of an inventory may be long, nothing else is.
const MAX_BODY: usize = 4 << 20;

/// Longest that a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Query parameters that are read.
const MAX_PARAMETERS: usize = 256;

/// One request.
pub(super) struct Call {
    /// What serves it.
    pub(super) app: App,
    /// Its method; HEAD is GET here.
    pub(super) method: Method,
    /// Its path, as sent.
    pub(super) path: String,
    /// The parts of its path, decoded.
    pub(super) segments: Vec<String>,
    /// Its parameters, decoded, in order.
    pub(super) query: Vec<(String, String)>,
    /// Its headers.
    pub(super) headers: HeaderMap,
    /// Its body.
    pub(super) body: Bytes,
    /// Whether it came in encrypted, here or at a proxy in front of us.
    pub(super) encrypted: bool,
    /// Where it came from; a proxy's address for what came through one.
    from: IpAddr,
    who: Result<Option<Principal>, ApiError>,
    allow: OnceLock<&'static str>,
    /// A secret that was made for the answer to this request.
    secret: OnceLock<Secret>,
}

impl Call {
    /// Reads the body and finds out who is asking.
    ///
    /// # Errors
    /// 413 for a body that is too long, 400 for one that breaks off.
    pub(super) async fn read(app: App, parts: Parts, body: Body) -> Result<Self, ApiError> {
        let body = match parts.method {
            Method::GET | Method::HEAD | Method::OPTIONS => Bytes::new(),
            _ => match tokio::time::timeout(BODY_TIME, whole(body)).await {
                Ok(body) => body?,
                Err(_) => {
                    let words = "The body of the request took too long.".to_owned();
                    return Err(ApiError::Detail(StatusCode::REQUEST_TIMEOUT, words));
                }
            },
        };
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method };
        let path = parts.uri.path().to_owned();
        let segments =
            path.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect();
        let query = pairs(parts.uri.query().unwrap_or_default());
        let encrypted = parts.extensions.get::<Encrypted>().is_some()
            || parts.headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
        let from = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let from = from.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(address)| address.ip());
        let who = match super::oauth::is_clients(&path) {
            true => Ok(None),
            false => identify(&app, &parts.headers, from).await,
        };
        Ok(Self {
            app,
            method,
            path,
            segments,
            query,
            headers: parts.headers,
            body,
            encrypted,
            from,
            who,
            allow: OnceLock::new(),
            secret: OnceLock::new(),
        })
    }

    /// The same request as somebody else's, who was identified otherwise.
    pub(super) fn on_behalf_of(&self, user: User) -> Self {
        let mut headers = self.headers.clone();
        // Keys of this kind are a user's own.
        headers.remove("idempotency-key");
        Self {
            app: self.app.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            segments: self.segments.clone(),
            query: self.query.clone(),
            headers,
            body: self.body.clone(),
            encrypted: self.encrypted,
            from: self.from,
            who: Ok(Some(Principal { user, by: By::Basic })),
            allow: OnceLock::new(),
            secret: OnceLock::new(),
        }
    }

    /// Where the request came from.
    pub(super) fn from(&self) -> IpAddr {
        self.from
    }

    /// Keeps a secret that was made while something was written, for the one answer that shows it.
    pub(super) fn keep_secret(&self, secret: &str) {
        self.secret.get_or_init(|| Secret::from(secret.to_owned()));
    }

    /// The secret that was kept.
    pub(super) fn kept_secret(&self) -> Option<&str> {
        self.secret.get().map(Secret::expose)
    }

    /// Notes which methods there are at this address, and refuses the others.
    ///
    /// # Errors
    /// 405.
    pub(super) fn allow(&self, allow: &'static str) -> Result<(), ApiError> {
        let allow = self.allow.get_or_init(|| allow);
        let known = allow.split(", ").any(|method| method == self.method.as_str());
        if known { Ok(()) } else { Err(ApiError::Method(self.method.to_string(), allow)) }
    }

    /// The methods there are, if they were noted.
    pub(super) fn allowed(&self) -> Option<&'static str> {
        self.allow.get().copied()
    }

    /// Who is asking, if anybody who is known.
    pub(super) fn somebody(&self) -> Option<&Principal> {
        self.who.as_ref().ok().and_then(Option::as_ref)
    }

    /// Who is asking.
    ///
    /// # Errors
    /// 401 if nobody is, 403 if what they show does not allow changes and this is one.
    pub(super) fn principal(&self) -> Result<&Principal, ApiError> {
        let principal = match &self.who {
            Ok(Some(principal)) => principal,
            Ok(None) => {
                let detail = "Authentication credentials were not provided. To establish a login session, visit /api/login/.";
                return Err(ApiError::Unauthorized(detail));
            }
            Err(ApiError::Unauthorized(detail)) => return Err(ApiError::Unauthorized(detail)),
            Err(ApiError::Detail(status, detail)) => return Err(ApiError::Detail(*status, detail.clone())),
            Err(_) => {
                let detail = "Nobody can be identified at the moment.".to_owned();
                return Err(ApiError::Detail(StatusCode::SERVICE_UNAVAILABLE, detail));
            }
        };
        if self.writes() {
            match principal.by {
                By::Token { writes: false, .. } => return Err(ApiError::forbidden()),
                By::Session => self.check_csrf()?,
                _ => {}
            }
        }
        Ok(principal)
    }

    /// The user who is asking.
    ///
    /// # Errors
    /// As [`Call::principal`].
    pub(super) fn user(&self) -> Result<&User, ApiError> {
        Ok(&self.principal()?.user)
    }

    /// Whether the request changes things.
    pub(super) fn writes(&self) -> bool {
        !matches!(self.method, Method::GET | Method::OPTIONS)
    }

    /// A parameter of the address.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as an object; an empty body is an empty object.
    ///
    /// # Errors
    /// 400 if it is not JSON or no object, 415 if it says it is something else.
    pub(super) fn object(&self) -> Result<Map<String, Value>, ApiError> {
        let kind =
            self.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        match kind {
            "application/x-www-form-urlencoded" => {
                Ok(self.form().into_iter().map(|(name, value)| (name, value.into())).collect())
            }
            _ if self.body.iter().all(u8::is_ascii_whitespace) => Ok(Map::new()),
            "" | "application/json" => match serde_json::from_slice(&self.body) {
                Ok(Value::Object(object)) => Ok(object),
                Ok(_) => Err(ApiError::bad("JSON parse error - not a JSON object")),
                Err(error) => {
                    Err(ApiError::bad(format!("JSON parse error - {error}\nPossible cause: trailing comma.")))
                }
            },
            other => {
                let other: String = other.chars().take(80).collect();
                let detail = format!("Unsupported media type \"{other}\" in request.");
                Err(ApiError::Detail(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
            }
        }
    }

    /// The body as a form.
    pub(super) fn form(&self) -> BTreeMap<String, String> {
        pairs(&String::from_utf8_lossy(&self.body)).into_iter().collect()
    }

    fn is_form(&self) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"))
    }

    /// A cookie.
    pub(super) fn cookie(&self, name: &str) -> Option<&str> {
        cookie(&self.headers, name)
    }

    /// A request that rides on a cookie must show that its page could read the other one.
    fn check_csrf(&self) -> Result<(), ApiError> {
        let failed =
            |reason: &str| Err(ApiError::Detail(StatusCode::FORBIDDEN, format!("CSRF Failed: {reason}")));
        self.check_origin()?;
        let Some(cookie) = self.cookie("csrftoken").filter(|cookie| cookie.len() >= 32) else {
            return failed("CSRF cookie not set.");
        };
        let header = self.headers.get("x-csrftoken").and_then(|token| token.to_str().ok());
        // A form of our own brings it among its fields, as Django's do.
        let field = match (header, self.is_form()) {
            (None, true) => self.form().remove("csrfmiddlewaretoken"),
            _ => None,
        };
        match header.or(field.as_deref()) {
            Some(token) if crate::auth::same(token.as_bytes(), cookie.as_bytes()) => Ok(()),
            Some(_) => failed("CSRF token incorrect."),
            None => failed("CSRF token missing."),
        }
    }

    /// A browser names the page a request comes from: it must be one of ours.
    ///
    /// # Errors
    /// 403.
    pub(super) fn check_origin(&self) -> Result<(), ApiError> {
        let text =
            |name| self.headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
        let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return Ok(()) };
        match origin.split_once("://") {
            Some((_, from)) if from.eq_ignore_ascii_case(host) => Ok(()),
            _ => Err(ApiError::Detail(
                StatusCode::FORBIDDEN,
                "CSRF Failed: Origin checking failed.".to_owned(),
            )),
        }
    }
}

async fn whole(body: Body) -> Result<Bytes, ApiError> {
    let mut whole = BytesMut::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| ApiError::bad("The body of the request broke off."))?;
        if whole.len() + piece.len() > MAX_BODY {
            let detail = format!("The body of a request has at most {MAX_BODY} bytes.");
            return Err(ApiError::Detail(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

async fn identify(app: &App, headers: &HeaderMap, from: IpAddr) -> Result<Option<Principal>, ApiError> {
    let header = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
    if let Some((scheme, rest)) = header.and_then(|header| header.split_once(' ')) {
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = STANDARD.decode(rest.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
            let Some((name, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) else {
                return Err(ApiError::Unauthorized("Invalid basic header."));
            };
            return match app.auth.password(name, password, from).await? {
                Some(user) => Ok(Some(Principal { user, by: By::Basic })),
                None => Err(ApiError::Unauthorized("Invalid username/password.")),
            };
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            return match app.auth.token(rest.trim()).await? {
                Some(principal) => Ok(Some(principal)),
                None => Err(ApiError::Unauthorized(
                    "Authentication credentials were not provided. To establish a login session, visit /api/login/.",
                )),
            };
        }
    }
    let Some(key) = cookie(headers, super::login::SESSION_COOKIE) else { return Ok(None) };
    Ok(app.auth.session(key).await?.map(|user| Principal { user, by: By::Session }))
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// Reads `a=1&b=2`.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let parts = text.split('&').filter(|part| !part.is_empty()).take(MAX_PARAMETERS);
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        })
        .collect()
}

/// Undoes percent encoding; what is not valid stays as it is, and bytes that are no UTF-8 become the replacement
/// character.
pub(super) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', ..) if plus => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes for a query.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_encoded_again() {
        let text = "name=a+b%2Fc&empty=&bare&%zz=%e4";
        let expected = [("name", "a b/c"), ("empty", ""), ("bare", ""), ("%zz", "\u{fffd}")];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(pairs(text), expected);
        assert_eq!(encode("a b/c-ä"), "a+b%2Fc-%C3%A4");
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, "a=1; awx_sessionid=key; b=2".parse().unwrap());
        assert_eq!(cookie(&headers, "awx_sessionid"), Some("key"));
        assert_eq!(cookie(&headers, "c"), None);
    }
}
