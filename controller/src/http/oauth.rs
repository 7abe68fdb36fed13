//! `/api/o/`: how applications get tokens, by OAuth 2: a code that a logged-in user lets them have (RFC 6749 §4.1, with
//! RFC 7636), a user's name and password (§4.3), and a token to refresh another (§6); and how tokens are taken back
//! (RFC 7009).
//!
//! Codes, tokens and secrets of clients are long random texts, kept as digests. A code is good once, for minutes, for the
//! client and the address it was made for.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Value, json};

use super::call::{Call, encode};
use super::error::{ApiError, json_response};
use super::tokens::{self, Life};
use super::{Answer, html, ok, root, settings};
use crate::auth;
use crate::store::core::Class;

/// Letters of a code.
const CODE_LETTERS: usize = 40;

/// How long a code is good where no setting says so.
const CODE_LIFE: Duration = Duration::from_secs(600);

/// Whether requests to this address bring the client's own name and secret in place of a user's.
pub(super) fn is_clients(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), "/api/o/token" | "/api/o/revoke_token")
}

/// `/api/o/`.
pub(super) fn map(call: &Call) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    ok(json!({
        "authorize": "/api/o/authorize/",
        "token": "/api/o/token/",
        "revoke_token": "/api/o/revoke_token/",
    }))
}

/// An application as its row says.
struct Client {
    id: i64,
    name: String,
    client_id: String,
    confidential: bool,
    secret_hash: Vec<u8>,
    redirects: Vec<String>,
    grant: String,
    skips: bool,
}

async fn client(call: &Call, client_id: &str) -> Result<Option<Client>, ApiError> {
    let mut query = Query::select();
    query.columns(["id", "name", "client_type", "client_secret_hash", "redirect_uris"]);
    query.columns(["authorization_grant_type", "skip_authorization"]).from("applications");
    query.and_where(Expr::col("client_id").eq(client_id));
    let Some(row) = call.app.db.optional(&query).await? else { return Ok(None) };
    Ok(Some(Client {
        id: row.at(0)?,
        name: row.at(1)?,
        client_id: client_id.to_owned(),
        confidential: row.at::<String>(2)? == "confidential",
        secret_hash: row.at::<Option<Vec<u8>>>(3)?.unwrap_or_default(),
        redirects: row.at::<String>(4)?.split_whitespace().map(str::to_owned).collect(),
        grant: row.at(5)?,
        skips: row.at(6)?,
    }))
}

/// What a browser asks for.
struct Asked {
    client: Client,
    redirect: String,
    scope: String,
    state: String,
    /// Of RFC 7636: the method and the challenge with a colon between; empty without.
    challenge: String,
}

/// `/api/o/authorize/`: a logged-in user lets an application have a code.
pub(super) async fn authorize(call: &Call) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    if call.somebody().is_none() {
        let query: Vec<String> =
            call.query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        let next = format!("/api/o/authorize/?{}", query.join("&"));
        return Ok(found(&format!("/api/login/?next={}", encode(&next))));
    }
    let user = call.user()?;
    let form = if call.method == Method::POST { call.form() } else { call.query.iter().cloned().collect() };
    let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let asked = match asked(call, text).await? {
        Ok(asked) => asked,
        // Nobody is sent to an address that may not be the client's.
        Err((words, None)) => return problem(words),
        Err((words, Some(to))) => {
            return Ok(found(&with(&to, &[("error", words), ("state", text("state"))])));
        }
    };
    if call.method != Method::POST && !asked.client.skips {
        return page(&asked, &user.username);
    }
    if call.method == Method::POST && text("allow").is_empty() {
        let denied = [("error", "access_denied"), ("state", asked.state.as_str())];
        return Ok(found(&with(&asked.redirect, &denied)));
    }
    let code = auth::random_text(CODE_LETTERS)?;
    let life = life(call, "AUTHORIZATION_CODE_EXPIRE_SECONDS", CODE_LIFE).await?;
    let now = jiff::Timestamp::now().as_microsecond();
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let mut old = Query::delete();
    tx.execute(old.from_table("authorization_codes").and_where(Expr::col("expires").lt(now))).await?;
    let mut insert = Query::insert();
    insert.into_table("authorization_codes").columns([
        "code_hash",
        "application_id",
        "user_id",
        "redirect_uri",
        "scope",
        "challenge",
        "expires",
    ]);
    insert.values_panic([
        auth::token_hash(&code).into(),
        asked.client.id.into(),
        user.id.into(),
        asked.redirect.as_str().into(),
        asked.scope.into(),
        asked.challenge.into(),
        (now + life).into(),
    ]);
    tx.execute(&insert).await?;
    tx.commit().await?;
    Ok(found(&with(&asked.redirect, &[("code", &code), ("state", &asked.state)])))
}

/// What is wrong with a request, and where to say so.
type Wrong = (&'static str, Option<String>);

async fn asked<'f>(call: &Call, text: impl Fn(&str) -> &'f str) -> Result<Result<Asked, Wrong>, ApiError> {
    let Some(client) = client(call, text("client_id")).await? else {
        return Ok(Err(("No application has this client_id.", None)));
    };
    let redirect = match (text("redirect_uri"), client.redirects.as_slice()) {
        ("", [only]) => only.clone(),
        (given, known) if known.iter().any(|known| known == given) => given.to_owned(),
        _ => return Ok(Err(("The redirect_uri is none of the application's.", None))),
    };
    let back = |error: &'static str| Ok(Err((error, Some(redirect.clone()))));
    if client.grant != "authorization-code" {
        return back("unauthorized_client");
    }
    if text("response_type") != "code" {
        return back("unsupported_response_type");
    }
    let scope = match text("scope") {
        "" => "write".to_owned(),
        scope if tokens::is_scope(scope) => scope.to_owned(),
        _ => return back("invalid_scope"),
    };
    let challenge = match (text("code_challenge"), text("code_challenge_method")) {
        ("", _) => String::new(),
        (challenge, "S256") if challenge.len() == 43 => format!("S256:{challenge}"),
        (challenge, "" | "plain") if (43..=128).contains(&challenge.len()) => format!("plain:{challenge}"),
        _ => return back("invalid_request"),
    };
    let state = text("state").chars().take(1024).collect();
    Ok(Ok(Asked { client, redirect, scope, state, challenge }))
}

fn found(to: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An address with more parameters.
fn with(address: &str, parameters: &[(&str, &str)]) -> String {
    let parameters: Vec<String> = parameters
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    let between = if address.contains('?') { "&" } else { "?" };
    format!("{address}{between}{}", parameters.join("&"))
}

fn problem(words: &str) -> Answer {
    let body = html::document("Authorize", &format!("<h1>Authorize</h1><p>{}</p>", html::escape(words)));
    Ok((StatusCode::BAD_REQUEST, axum::response::Html(body)).into_response())
}

/// The question to the user.
fn page(asked: &Asked, user: &str) -> Answer {
    let cookie = root::csrf_cookie()?;
    let token = cookie.split(['=', ';']).nth(1).unwrap_or_default();
    let (method, challenge) = asked.challenge.split_once(':').unwrap_or_default();
    let hidden: String = [
        ("csrfmiddlewaretoken", token),
        ("client_id", &asked.client.client_id),
        ("response_type", "code"),
        ("redirect_uri", &asked.redirect),
        ("scope", &asked.scope),
        ("state", &asked.state),
        ("code_challenge", challenge),
        ("code_challenge_method", method),
    ]
    .iter()
    .map(|(name, value)| format!("<input type=\"hidden\" name=\"{name}\" value=\"{}\">", html::escape(value)))
    .collect();
    let may = if asked.scope.split(' ').any(|word| word == "write") { "read and change" } else { "read" };
    let body = format!(
        "<h1>Authorize {name}?</h1><p>The application <b>{name}</b> wants to {may}, as <b>{user}</b>, whatever you may. \
         You will be sent on to <code>{to}</code>.</p>\
         <form method=\"post\" action=\"/api/o/authorize/\">{hidden}<button name=\"allow\" value=\"Authorize\">Authorize</button> \
         <button>Cancel</button></form>",
        name = html::escape(&asked.client.name),
        user = html::escape(user),
        to = html::escape(&asked.redirect),
    );
    let mut response = axum::response::Html(html::document("Authorize", &body)).into_response();
    // The form leads on to the application's address, which the page's policy must allow.
    let policy = format!("{}; form-action 'self' {}", html::POLICY, origin(&asked.redirect));
    for (name, value) in [(header::SET_COOKIE, &cookie), (header::CONTENT_SECURITY_POLICY, &policy)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// `https://host:port` of an address.
fn origin(address: &str) -> String {
    address.splitn(4, '/').take(3).collect::<Vec<_>>().join("/")
}

/// Why no token is given: the word of RFC 6749 §5.2.
fn refused(status: StatusCode, error: &str, words: &str) -> Answer {
    let mut response = json_response(status, &json!({"error": error, "error_description": words}));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=api"));
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The client that asks, by name and secret in the header or in the form.
async fn authenticated(call: &Call) -> Result<Option<Client>, ApiError> {
    let form = call.form();
    let basic = call.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let basic = basic
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let pair = basic.and_then(|(_, pair)| String::from_utf8(STANDARD.decode(pair.trim()).ok()?).ok());
    let (id, secret) = match pair.as_deref().map(|pair| pair.split_once(':').unwrap_or((pair, ""))) {
        Some((id, secret)) => (id.to_owned(), secret.to_owned()),
        None => {
            let text = |name: &str| form.get(name).cloned().unwrap_or_default();
            (text("client_id"), text("client_secret"))
        }
    };
    let Some(client) = client(call, &id).await? else { return Ok(None) };
    let hash = auth::token_hash(&secret);
    let right = aws_lc_rs::constant_time::verify_slices_are_equal(&hash, &client.secret_hash).is_ok();
    Ok(Some(client).filter(|client| right || !client.confidential))
}

/// `/api/o/token/`.
pub(super) async fn token(call: &Call) -> Answer {
    call.allow("POST, OPTIONS")?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Token"}));
    }
    let Some(client) = authenticated(call).await? else {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client", "Unknown client, or a wrong secret.");
    };
    let form = call.form();
    let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let bad = |error: &str, words: &str| refused(StatusCode::BAD_REQUEST, error, words);
    let grant = match text("grant_type") {
        "authorization_code" => "authorization-code",
        "password" => "password",
        "refresh_token" => client.grant.as_str(),
        _ => return bad("unsupported_grant_type", "Codes, passwords and tokens to refresh are taken."),
    };
    if grant != client.grant {
        return bad("unauthorized_client", "The application was made for another grant.");
    }
    let (user, scope, replaced) = match text("grant_type") {
        "authorization_code" => match code(call, &client, text).await? {
            Some((user, scope)) => (user, scope, None),
            None => return bad("invalid_grant", "The code is not good, or not any more."),
        },
        "password" => {
            let scope = if text("scope").is_empty() { "write" } else { text("scope") };
            if !tokens::is_scope(scope) {
                return bad("invalid_scope", "Scopes are read and write.");
            }
            match call.app.auth.password(text("username"), text("password"), call.from()).await? {
                Some(user) => (user.id, scope.to_owned(), None),
                None => return bad("invalid_grant", "Invalid credentials given."),
            }
        }
        _ => match refreshed(call, &client, text("refresh_token")).await? {
            Some((user, scope, token)) => (user, scope, Some(token)),
            None => return bad("invalid_grant", "The token to refresh with is not good, or not any more."),
        },
    };
    let life = Life::read(&call.app.db).await?;
    let mut tx = call.app.db.begin(Class::Intent).await?;
    if let Some(old) = replaced {
        // Each is good once: whoever comes second has stolen it, or was stolen from.
        let mut gone = Query::delete();
        if tx.execute(gone.from_table("tokens").and_where(Expr::col("id").eq(old))).await? == 0 {
            return bad("invalid_grant", "The token to refresh with is not good any more.");
        }
    }
    let made = tokens::make(&mut tx, user, Some(client.id), &scope, "", &life).await?;
    tx.commit().await?;
    let mut response = json_response(
        StatusCode::OK,
        &json!({
            "access_token": made.token,
            "expires_in": life.access.as_secs(),
            "token_type": "Bearer",
            "scope": scope,
            "refresh_token": made.refresh,
        }),
    );
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Takes a code: whose it is, and its scope. A code that was shown is gone, whether it was good or not.
async fn code<'f>(
    call: &Call,
    client: &Client,
    text: impl Fn(&str) -> &'f str,
) -> Result<Option<(i64, String)>, ApiError> {
    let hash = auth::token_hash(text("code"));
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let mut query = Query::select();
    query.columns(["application_id", "user_id", "redirect_uri", "scope", "challenge", "expires"]);
    query.from("authorization_codes").and_where(Expr::col("code_hash").eq(hash.clone()));
    let Some(row) = tx.optional(&query).await? else { return Ok(None) };
    let mut gone = Query::delete();
    tx.execute(gone.from_table("authorization_codes").and_where(Expr::col("code_hash").eq(hash))).await?;
    tx.commit().await?;
    let redirect: String = row.at(2)?;
    let challenge: String = row.at(4)?;
    let good = row.at::<i64>(0)? == client.id
        && row.at::<i64>(5)? > jiff::Timestamp::now().as_microsecond()
        && (text("redirect_uri") == redirect
            || text("redirect_uri").is_empty() && client.redirects.len() == 1)
        && answers(&challenge, text("code_verifier"));
    Ok(if good { Some((row.at(1)?, row.at(3)?)) } else { None })
}

/// Whether a verifier answers a challenge.
fn answers(challenge: &str, verifier: &str) -> bool {
    match challenge.split_once(':') {
        None => true,
        Some(("S256", challenge)) => {
            URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes())) == challenge
        }
        Some((_, challenge)) => verifier == challenge,
    }
}

/// Whose token it refreshes, its scope, and its id.
async fn refreshed(
    call: &Call,
    client: &Client,
    refresh: &str,
) -> Result<Option<(i64, String, i64)>, ApiError> {
    let mut query = Query::select();
    query.columns([("t", "user_id"), ("t", "id")]).column(("t", "scope")).from_as("tokens", "t");
    let of = Expr::col(("a", "id")).equals(("t", "id"));
    query.join_as(sea_query::JoinType::InnerJoin, "application_tokens", "a", of);
    query.and_where(Expr::col(("a", "refresh_hash")).eq(auth::token_hash(refresh)));
    query.and_where(Expr::col(("a", "application_id")).eq(client.id));
    let now = jiff::Timestamp::now().as_microsecond();
    query.and_where(Expr::col(("a", "refresh_expires")).gt(now));
    let Some(row) = call.app.db.optional(&query).await? else { return Ok(None) };
    Ok(Some((row.at(0)?, row.at(2)?, row.at(1)?)))
}

/// `/api/o/revoke_token/`: takes back a token of the client's own, by itself or by the one that refreshes it. Anything else
/// is answered alike.
pub(super) async fn revoke(call: &Call) -> Answer {
    call.allow("POST, OPTIONS")?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Revoke Token"}));
    }
    let Some(client) = authenticated(call).await? else {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client", "Unknown client, or a wrong secret.");
    };
    let token = call.form().get("token").cloned().unwrap_or_default();
    let hash = auth::token_hash(&token);
    let mut theirs = Query::select();
    theirs.column("id").from("application_tokens");
    theirs.and_where(Expr::col("application_id").eq(client.id));
    let mut by_refresh = Query::select();
    by_refresh.column("id").from("application_tokens");
    by_refresh.and_where(Expr::col("refresh_hash").eq(hash.clone()));
    let mut gone = Query::delete();
    gone.from_table("tokens").and_where(Expr::col("id").in_subquery(theirs));
    gone.and_where(Expr::col("token_hash").eq(hash).or(Expr::col("id").in_subquery(by_refresh)));
    let mut tx = call.app.db.begin(Class::Intent).await?;
    tx.execute(&gone).await?;
    tx.commit().await?;
    Ok(Response::new(Body::empty()))
}

/// A duration of setting `OAUTH2_PROVIDER`, in microseconds.
async fn life(call: &Call, name: &str, otherwise: Duration) -> Result<i64, ApiError> {
    let provider: Value = settings::setting(&call.app.db, "OAUTH2_PROVIDER").await?;
    let seconds = provider[name].as_i64().filter(|seconds| (1..=86_400).contains(seconds));
    Ok(seconds.unwrap_or(otherwise.as_secs() as i64) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_answers_its_own_challenge_only() {
        // The example of RFC 7636, appendix B.
        let challenge = "S256:E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
        assert!(answers(challenge, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        assert!(!answers(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"));
        assert!(answers("", "") && answers("plain:x", "x") && !answers("plain:x", ""));
    }

    #[test]
    fn addresses_get_more_parameters_and_keep_theirs() {
        assert_eq!(with("https://a/b", &[("code", "x y"), ("state", "")]), "https://a/b?code=x+y");
        assert_eq!(with("https://a/?b=1", &[("code", "x")]), "https://a/?b=1&code=x");
        assert_eq!(origin("https://a:1/b/c"), "https://a:1");
    }
}
