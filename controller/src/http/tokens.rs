//! Personal tokens. The token itself is in the answer to the POST that makes it, and nowhere else.

use axum::http::StatusCode;
use sea_query::Query;

use super::Answer;
use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::generic;
use super::rules::{Rule, Rules};
use super::settings;
use crate::auth;
use crate::registry::TOKENS;
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::store::core::Class;

/// Tokens last as AWX's do: about a thousand years.
const LIFE_SECONDS: i64 = 31_536_000_000;

/// What is shown in the place of a token.
const HIDDEN: &str = "************";

pub(super) struct Tokens;

impl Rules for Tokens {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, _: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move { check_scope(draft) })
    }

    fn fill<'a>(&'a self, _: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                record.set("token", HIDDEN);
            }
            Ok(())
        })
    }

    fn own_changes(&self) -> bool {
        true
    }
}

fn check_scope(draft: &Draft) -> Result<(), ApiError> {
    let known =
        |scope: &str| !scope.is_empty() && scope.split(' ').all(|word| matches!(word, "read" | "write"));
    if draft.has("scope") && !known(draft.text("scope")) {
        let words = "Must be a simple space-separated string with allowed scopes ['read', 'write'].";
        return Err(ApiError::field("scope", words));
    }
    Ok(())
}

/// Makes a token of `owner`, who is whoever asks: a token speaks with its owner's voice, so nobody makes another's.
pub(super) async fn create(call: &Call, owner: i64) -> Answer {
    let user = call.user()?;
    if user.id != owner {
        return Err(ApiError::forbidden());
    }
    let body = call.object()?;
    if let Some(application) = body.get("application").filter(|application| !application.is_null()) {
        let words = format!("Invalid pk {application} - object does not exist.");
        return Err(ApiError::field("application", words));
    }
    let draft = Draft::create(&TOKENS, &body)?;
    check_scope(&draft)?;
    let provider = settings::setting(&call.app.db, "OAUTH2_PROVIDER").await?;
    let life =
        provider["ACCESS_TOKEN_EXPIRE_SECONDS"].as_i64().filter(|life| (1..=LIFE_SECONDS).contains(life));
    let life = life.unwrap_or(LIFE_SECONDS);
    let (token, hash) = auth::new_token()?;
    let now = jiff::Timestamp::now().as_microsecond();
    let mut insert = Query::insert();
    insert.into_table("tokens");
    insert.columns(["user_id", "token_hash", "description", "scope", "expires", "created", "modified"]);
    insert.values_panic([
        owner.into(),
        hash.into(),
        draft.text("description").into(),
        draft.text("scope").into(),
        now.saturating_add(life.saturating_mul(1_000_000)).into(),
        now.into(),
        now.into(),
    ]);
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let id = tx.insert(&mut insert).await?;
    let entry = Entry::on("create", &TOKENS, id, activity::created(id, &draft), |name| draft.int(name));
    activity::note(call, &mut tx, entry).await?;
    tx.commit().await?;
    let mut record = generic::fetch(call, &TOKENS, &id.to_string()).await?;
    record.set("token", token);
    let mut response = generic::created_response(record.url(), &record.into_json().into())?;
    debug_assert_eq!(response.status(), StatusCode::CREATED);
    // The one answer with a secret in it is nobody's to keep.
    let no_store = axum::http::HeaderValue::from_static("no-store");
    response.headers_mut().insert(axum::http::header::CACHE_CONTROL, no_store);
    Ok(response)
}
