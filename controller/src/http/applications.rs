//! Applications: what an OAuth 2 client must have. Its secret is shown once, in the answer to the POST that makes it; kept is
//! a digest.

use sea_query::{Expr, ExprTrait, Query};
use serde_json::Value;

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic};
use crate::auth;
use crate::registry::APPLICATIONS;
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::store::core::WriteTx;

/// Letters of a client's name and of its secret, as AWX's.
const ID_LETTERS: usize = 40;
const SECRET_LETTERS: usize = 128;

/// Most redirect addresses, and letters of all of them.
const MAX_REDIRECTS: usize = 64;
const MAX_LETTERS: usize = 8192;

pub(super) struct Applications;

impl Rules for Applications {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let text = |name: &str| match draft.value(name).and_then(Value::as_str) {
                Some(text) => text.to_owned(),
                None => before.map(|before| before.text(name).to_owned()).unwrap_or_default(),
            };
            if before.is_some_and(|before| {
                draft.has("authorization_grant_type")
                    && draft.text("authorization_grant_type") != before.text("authorization_grant_type")
            }) {
                let words = "The grant type of an application cannot be changed.";
                return Err(ApiError::field("authorization_grant_type", words));
            }
            let redirects = text("redirect_uris");
            let many = redirects.split_whitespace().count() > MAX_REDIRECTS || redirects.len() > MAX_LETTERS;
            if many || !redirects.split_whitespace().all(is_redirect) {
                let words = "Enter absolute addresses with http or https and without a fragment, with spaces between.";
                return Err(ApiError::field("redirect_uris", words));
            }
            if text("authorization_grant_type") == "authorization-code" && redirects.trim().is_empty() {
                let words = "redirect_uris cannot be empty with grant_type authorization-code";
                return Err(ApiError::field("redirect_uris", words));
            }
            if before.is_none() {
                draft.aside.insert("client_id".to_owned(), auth::random_text(ID_LETTERS)?.into());
                draft.aside.insert("client_secret".to_owned(), auth::random_text(SECRET_LETTERS)?.into());
            }
            Ok(())
        })
    }

    fn written<'a>(&'a self, call: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            let aside = |name: &str| draft.aside.get(name).and_then(Value::as_str);
            let (Some(client), Some(secret)) = (aside("client_id"), aside("client_secret")) else {
                return Ok(());
            };
            let mut update = Query::update();
            update.table("applications").value("client_id", client);
            update.value("client_secret_hash", auth::token_hash(secret)).and_where(Expr::col("id").eq(id));
            tx.execute(&update).await?;
            call.keep_secret(secret);
            Ok(())
        })
    }
}

/// An address that a browser may be sent to with a code.
fn is_redirect(address: &str) -> bool {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && !address.contains(['#', '"', '<', '>', '\\'])
        && address.chars().all(|c| c.is_ascii_graphic())
}

/// Makes an application; the answer is the one that has its secret.
pub(super) async fn create(call: &Call, preset: &[(&str, Value)]) -> Answer {
    let (_, mut record) = generic::created(call, &APPLICATIONS, preset, None).await?;
    if record.text("client_type") == "confidential"
        && let Some(secret) = call.kept_secret()
    {
        record.set("client_secret", secret);
    }
    let mut response = generic::created_response(record.url(), &record.into_json().into())?;
    let no_store = axum::http::HeaderValue::from_static("no-store");
    response.headers_mut().insert(axum::http::header::CACHE_CONTROL, no_store);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sent_to_whole_addresses_only() {
        for good in ["https://app.example/cb", "http://127.0.0.1:8080/", "https://a/?x=1"] {
            assert!(is_redirect(good), "{good}");
        }
        for bad in [
            "",
            "app.example/cb",
            "javascript:alert(1)",
            "https://",
            "https:///x",
            "https://a/#x",
            "//a/b",
            "https://a/\"b",
        ] {
            assert!(!is_redirect(bad), "{bad}");
        }
    }
}
