//! Sessions: the cookie that a browser and the `awx` command's password mode ride on.

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, html, root};
use crate::auth::{self, SESSION};

/// Name of the session cookie; clients are told in a header.
pub(super) const SESSION_COOKIE: &str = "awx_sessionid";

pub(super) async fn login(call: &Call) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    if call.method != Method::POST {
        return page(call, StatusCode::OK, "");
    }
    call.check_origin()?;
    let form = match call.object() {
        Ok(object) => object,
        Err(_) => return page(call, StatusCode::BAD_REQUEST, "The form cannot be read."),
    };
    let text = |name: &str| form.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    let Some(user) = call.app.auth.password(text("username"), text("password"), call.from()).await? else {
        // The clients do not look at this answer; their next request is refused.
        return page(call, StatusCode::UNAUTHORIZED, "Please enter a correct username and password.");
    };
    let key = call.app.auth.begin_session(user.id).await?;
    let mut response = redirect(text("next"));
    let headers = response.headers_mut();
    let secure = if call.encrypted { "; Secure" } else { "" };
    let age = SESSION.as_secs();
    let session = format!("{SESSION_COOKIE}={key}; HttpOnly; Max-Age={age}; Path=/; SameSite=Lax{secure}");
    let cookies = [
        session,
        format!("userLoggedIn=true; Max-Age={age}; Path=/; SameSite=Lax{secure}"),
        root::csrf_cookie()?,
    ];
    for cookie in cookies {
        let value =
            HeaderValue::from_str(&cookie).map_err(|error| ApiError::internal("a cookie is odd", error))?;
        headers.append(header::SET_COOKIE, value);
    }
    headers.insert("x-api-session-cookie-name", HeaderValue::from_static(SESSION_COOKIE));
    Ok(response)
}

pub(super) async fn logout(call: &Call) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    // A GET that ends a session would let any page log people out; the browsers' SameSite keeps others away.
    if let Some(key) = call.cookie(SESSION_COOKIE) {
        call.app.auth.end_session(key).await?;
    }
    let mut response = redirect("/api/login/");
    for name in [SESSION_COOKIE, "userLoggedIn"] {
        let gone = format!("{name}=; Max-Age=0; Path=/; SameSite=Lax");
        if let Ok(value) = HeaderValue::from_str(&gone) {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
    Ok(response)
}

/// Only paths of our own are followed.
fn redirect(next: &str) -> Response {
    let own = next.starts_with('/') && !next.starts_with("//") && !next.contains('\\');
    let target = Some(next).filter(|_| own).and_then(|next| HeaderValue::from_str(next).ok());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(header::LOCATION, target.unwrap_or(HeaderValue::from_static("/api/")));
    response
}

fn page(call: &Call, status: StatusCode, message: &str) -> Answer {
    let next = call.parameter("next").unwrap_or("/api/v2/");
    let cookie = root::csrf_cookie()?;
    let token = cookie.split(['=', ';']).nth(1).unwrap_or_default();
    let body = format!(
        "<h1>Log in</h1><p>{message}</p>\
         <form method=\"post\" action=\"/api/login/\"><input type=\"hidden\" name=\"csrfmiddlewaretoken\" value=\"{token}\">\
         <input type=\"hidden\" name=\"next\" value=\"{}\">\
         <label for=\"u\">Username</label><input id=\"u\" name=\"username\" autocomplete=\"username\" autofocus>\
         <label for=\"p\">Password</label><input id=\"p\" name=\"password\" type=\"password\" autocomplete=\"current-password\">\
         <p><button>Log in</button></p></form>",
        html::escape(next),
    );
    let mut response = html::answer(status, "Log in", &body);
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    Ok(response)
}

/// A token for the CSRF cookie.
pub(super) fn csrf_token() -> Result<String, ApiError> {
    Ok(auth::random_text(64)?)
}
