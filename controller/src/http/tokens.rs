//! Tokens, personal ones and those of applications. The token itself is in the answer to the POST that makes it, and nowhere
//! else.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use sea_query::{Expr, ExprTrait, JoinType, Query};
use serde_json::json;

use super::Answer;
use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::generic;
use super::rules::{Rule, Rules};
use super::settings;
use crate::auth;
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::registry::{APPLICATIONS, Resource, TOKENS};
use crate::store::core::{Class, CoreDb, Error as StoreError, WriteTx};

/// Tokens last as AWX's do: about a thousand years.
const LIFE_SECONDS: u64 = 31_536_000_000;

/// How long a token can be used to refresh another, where no setting says so: as in AWX, a month.
const REFRESH_SECONDS: u64 = 2_628_000;

/// What is shown in the place of a token.
const HIDDEN: &str = "************";

pub(super) struct Tokens;

impl Rules for Tokens {
    fn check<'a>(&'a self, _: &'a Call, draft: &'a mut Draft, _: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move { check_scope(draft) })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            let of = applications(&call.app.db, records).await?;
            for record in records {
                record.set("token", HIDDEN);
                let Some((id, name, client)) = of.get(&record.id) else { continue };
                record.set("application", *id);
                record.set("refresh_token", HIDDEN);
                record.related.insert("application".to_owned(), APPLICATIONS.url(*id).into());
                let shown = json!({"id": id, "name": name, "client_id": client});
                record.summary.insert("application".to_owned(), shown);
            }
            Ok(())
        })
    }

    fn own_changes(&self) -> bool {
        true
    }
}

/// The application of each token that was given to one: id, name, client id.
async fn applications(
    db: &CoreDb,
    records: &[Record],
) -> Result<HashMap<i64, (i64, String, String)>, StoreError> {
    let mut found = HashMap::new();
    if records.is_empty() {
        return Ok(found);
    }
    let mut query = Query::select();
    query.columns([("t", "id"), ("a", "id"), ("a", "name"), ("a", "client_id")]);
    query.from_as("application_tokens", "t");
    let of = Expr::col(("a", "id")).equals(("t", "application_id"));
    query.join_as(JoinType::InnerJoin, "applications", "a", of);
    query.and_where(Expr::col(("t", "id")).is_in(records.iter().map(|record| record.id)));
    for row in db.all(&query).await? {
        found.insert(row.at(0)?, (row.at(1)?, row.at(2)?, row.at(3)?));
    }
    Ok(found)
}

/// Whether a text is a scope of tokens.
pub(super) fn is_scope(scope: &str) -> bool {
    !scope.is_empty() && scope.split(' ').all(|word| matches!(word, "read" | "write"))
}

fn check_scope(draft: &Draft) -> Result<(), ApiError> {
    if draft.has("scope") && !is_scope(draft.text("scope")) {
        let words = "Must be a simple space-separated string with allowed scopes ['read', 'write'].";
        return Err(ApiError::field("scope", words));
    }
    Ok(())
}

/// How long tokens last.
pub(super) struct Life {
    /// To be used.
    pub(super) access: Duration,
    /// To refresh another with.
    pub(super) refresh: Duration,
}

impl Life {
    /// As the setting says.
    pub(super) async fn read(db: &CoreDb) -> Result<Self, StoreError> {
        let provider = settings::setting(db, "OAUTH2_PROVIDER").await?;
        let seconds = |name: &str, otherwise: u64| {
            let given = provider[name].as_u64().filter(|life| (1..=LIFE_SECONDS).contains(life));
            Duration::from_secs(given.unwrap_or(otherwise))
        };
        Ok(Self {
            access: seconds("ACCESS_TOKEN_EXPIRE_SECONDS", LIFE_SECONDS),
            refresh: seconds("REFRESH_TOKEN_EXPIRE_SECONDS", REFRESH_SECONDS),
        })
    }
}

/// A token that was made, in clear for the one answer that has it.
pub(super) struct Made {
    pub(super) id: i64,
    pub(super) token: String,
    /// For one of an application.
    pub(super) refresh: Option<String>,
}

/// Makes a token of a user, for an application or for themselves.
pub(super) async fn make(
    tx: &mut WriteTx,
    user: i64,
    application: Option<i64>,
    scope: &str,
    description: &str,
    life: &Life,
) -> Result<Made, ApiError> {
    let (token, hash) = auth::new_token()?;
    let now = jiff::Timestamp::now().as_microsecond();
    let until = |life: Duration| now.saturating_add(i64::try_from(life.as_micros()).unwrap_or(i64::MAX));
    let mut insert = Query::insert();
    insert.into_table("tokens");
    insert.columns(["user_id", "token_hash", "description", "scope", "expires", "created", "modified"]);
    insert.values_panic([
        user.into(),
        hash.into(),
        description.into(),
        scope.into(),
        until(life.access).into(),
        now.into(),
        now.into(),
    ]);
    let id = tx.insert(&mut insert).await?;
    let mut refresh = None;
    if let Some(application) = application {
        let (text, hash) = auth::new_token()?;
        let mut insert = Query::insert();
        insert.into_table("application_tokens");
        insert.columns(["id", "application_id", "refresh_hash", "refresh_expires"]);
        insert.values_panic([id.into(), application.into(), hash.into(), until(life.refresh).into()]);
        tx.execute(&insert).await?;
        refresh = Some(text);
    }
    Ok(Made { id, token, refresh })
}

/// A POST to a list of tokens below a user or an application.
pub(super) async fn create_below(call: &Call, resource: &Resource, id: i64, list: &str) -> Answer {
    let user = call.user()?.id;
    match (resource.path, list) {
        ("applications", _) => create(call, user, Some(id)).await,
        (_, "personal_tokens") => {
            let named = call.object()?.get("application").is_some_and(|application| !application.is_null());
            if named {
                let words = "A personal token has no application.";
                return Err(ApiError::field("application", words));
            }
            create(call, id, None).await
        }
        (_, "authorized_tokens") if call.object()?.get("application").is_none_or(|id| id.is_null()) => {
            Err(ApiError::field("application", "This field is required."))
        }
        _ => create(call, id, None).await,
    }
}

/// Makes a token of `owner`, who is whoever asks: a token speaks with its owner's voice, so nobody makes another's.
pub(super) async fn create(call: &Call, owner: i64, application: Option<i64>) -> Answer {
    let user = call.user()?;
    if user.id != owner {
        return Err(ApiError::forbidden());
    }
    let mut body = call.object()?;
    if let Some(application) = application {
        body.insert("application".to_owned(), application.into());
    }
    let draft = Draft::create(&TOKENS, &body)?;
    check_scope(&draft)?;
    let application = draft.int("application");
    if let Some(id) = application {
        let absent =
            |_| ApiError::field("application", format!("Invalid pk \"{id}\" - object does not exist."));
        generic::visible_id(call, &APPLICATIONS, &id.to_string()).await.map_err(absent)?;
    }
    let life = Life::read(&call.app.db).await?;
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let made =
        make(&mut tx, owner, application, draft.text("scope"), draft.text("description"), &life).await?;
    let entry =
        Entry::on("create", &TOKENS, made.id, activity::created(made.id, &draft), |name| draft.int(name));
    activity::note(call, &mut tx, entry).await?;
    tx.commit().await?;
    let mut record = generic::fetch(call, &TOKENS, &made.id.to_string()).await?;
    record.set("token", made.token);
    if let Some(refresh) = made.refresh {
        record.set("refresh_token", refresh);
    }
    let mut response = generic::created_response(record.url(), &record.into_json().into())?;
    // The one answer with a secret in it is nobody's to keep.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
