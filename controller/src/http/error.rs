//! Errors as clients know them: a status, and a JSON body with `detail` or with texts by field.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::auth;
use crate::registry::filter::FilterError;
use crate::registry::write::Errors;
use crate::store::core;

/// Whatever keeps a request from its answer.
#[derive(Debug)]
pub enum ApiError {
    /// 400 with texts by field.
    Fields(Errors),
    /// A status and a body of its own.
    Body(StatusCode, Value),
    /// A status and `{"detail": …}`.
    Detail(StatusCode, String),
    /// 401: nobody, or nobody known.
    Unauthorized(&'static str),
    /// 405 with the methods there are.
    Method(String, &'static str),
    /// 500; what happened goes to the log, not to the client.
    Internal(&'static str, Box<dyn std::error::Error + Send + Sync>),
}

impl ApiError {
    /// 400 `{"detail": …}`.
    pub fn bad(detail: impl Into<String>) -> Self {
        Self::Detail(StatusCode::BAD_REQUEST, detail.into())
    }

    /// 400 `{field: [text]}`.
    pub fn field(field: &str, text: impl Into<String>) -> Self {
        Self::Fields(Errors::one(field, text))
    }

    /// 403.
    pub fn forbidden() -> Self {
        Self::Detail(StatusCode::FORBIDDEN, "You do not have permission to perform this action.".to_owned())
    }

    /// 404 of an address.
    pub fn no_such_page() -> Self {
        Self::Detail(StatusCode::NOT_FOUND, "The requested resource could not be found.".to_owned())
    }

    /// 404 of an object.
    pub fn missing(model: &str) -> Self {
        Self::Detail(StatusCode::NOT_FOUND, format!("No {model} matches the given query."))
    }

    /// 500 that says in the log what was tried.
    pub fn internal(what: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Internal(what, Box::new(error))
    }
}

impl From<Errors> for ApiError {
    fn from(errors: Errors) -> Self {
        Self::Fields(errors)
    }
}

impl From<core::Error> for ApiError {
    fn from(error: core::Error) -> Self {
        match error {
            core::Error::Closed => {
                Self::Detail(StatusCode::SERVICE_UNAVAILABLE, "The controller is stopping.".to_owned())
            }
            core::Error::Pattern => {
                Self::Detail(StatusCode::BAD_REQUEST, "Invalid regular expression.".to_owned())
            }
            core::Error::Unavailable { trouble, .. } => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a request was put off");
                let detail = format!("The database {trouble}. Try again later.");
                Self::Detail(StatusCode::SERVICE_UNAVAILABLE, detail)
            }
            error => Self::internal("the database failed a request", error),
        }
    }
}

impl From<FilterError> for ApiError {
    fn from(error: FilterError) -> Self {
        let status = match &error {
            FilterError::Bad(_) => StatusCode::BAD_REQUEST,
            FilterError::Secret(_) => StatusCode::FORBIDDEN,
        };
        Self::Detail(status, error.to_string())
    }
}

impl From<auth::Error> for ApiError {
    fn from(error: auth::Error) -> Self {
        match error {
            auth::Error::Busy => {
                Self::Detail(StatusCode::TOO_MANY_REQUESTS, "Too many logins at once. Try again.".to_owned())
            }
            auth::Error::Store(error) => error.into(),
            auth::Error::Wait(_) => Self::Detail(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            error @ auth::Error::Hash => Self::internal("a password could not be handled", error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Fields(errors) => json_response(StatusCode::BAD_REQUEST, &errors.into_json()),
            Self::Body(status, body) => json_response(status, &body),
            Self::Detail(status, detail) => json_response(status, &json!({"detail": detail})),
            Self::Unauthorized(detail) => {
                let mut response = json_response(StatusCode::UNAUTHORIZED, &json!({"detail": detail}));
                response.headers_mut().insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=api authorization_url=/api/o/authorize/"),
                );
                response
            }
            Self::Method(method, allow) => {
                let method: String = method.chars().take(40).collect();
                let detail = json!({"detail": format!("Method \"{method}\" not allowed.")});
                let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &detail);
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
                response
            }
            Self::Internal(what, error) => {
                let mut chain = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    chain.push_str(": ");
                    chain.push_str(&cause.to_string());
                    source = cause.source();
                }
                tracing::error!(error = chain, "{what}");
                let detail = json!({"detail": "A server error has occurred."});
                json_response(StatusCode::INTERNAL_SERVER_ERROR, &detail)
            }
        }
    }
}

/// A JSON answer.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response {
    let mut response = (status, body.to_string()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
