//! `Idempotency-Key`: a launch that is sent again with the key of the first one starts nothing, and is answered with
//! the job that the first one started. Keys are a user's own, and are kept for a day.

use axum::http::{HeaderValue, StatusCode};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, generic};
use crate::registry::JOBS;
use crate::registry::read::Record;
use crate::store::core::{Error as StoreError, WriteTx};

/// Longest key.
const MAX_KEY: usize = 255;

/// How long a key is kept, in microseconds.
const LIFE: i64 = 24 * 3600 * 1_000_000;

/// The key that a request brings.
///
/// # Errors
/// 400 for one that is too long or no text.
pub(super) fn key(call: &Call) -> Result<Option<&str>, ApiError> {
    let Some(key) = call.headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_KEY => Ok(Some(key)),
        _ => Err(ApiError::bad(format!("Idempotency-Key is text of 1 to {MAX_KEY} characters."))),
    }
}

/// The answer to a launch that was made before with the same key; `None` if there was none.
///
/// # Errors
/// 422 if the key belongs to a request to another address.
pub(super) async fn answered(call: &Call) -> Result<Option<axum::response::Response>, ApiError> {
    let Some(key) = key(call)? else { return Ok(None) };
    let mut query = Query::select();
    query.columns(["job_id", "path"]).from("idempotency_keys");
    query.and_where(Expr::col("user_id").eq(call.user()?.id)).and_where(Expr::col("key").eq(key));
    query.and_where(Expr::col("created").gt(jiff::Timestamp::now().as_microsecond() - LIFE));
    let Some(row) = call.app.db.optional(&query).await? else { return Ok(None) };
    if row.at::<String>(1)? != call.path {
        let words = "This Idempotency-Key was used for another request.".to_owned();
        return Err(ApiError::Detail(StatusCode::UNPROCESSABLE_ENTITY, words));
    }
    // The first answer may not have been given yet, for want of a sync.
    call.app.db.settle().await?;
    let id = row.at(0)?;
    let record = generic::fetch(call, &JOBS, &i64::to_string(&id)).await?;
    let mut response = told(record, id, Map::new())?;
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    Ok(Some(response))
}

/// Keeps the key with the job that is launched, in its transaction.
///
/// # Errors
/// [`StoreError::Duplicate`] if a launch with this key came first meanwhile.
pub(super) async fn keep(call: &Call, tx: &mut WriteTx, job: i64) -> Result<(), ApiError> {
    let Some(key) = key(call)? else { return Ok(()) };
    let now = jiff::Timestamp::now().as_microsecond();
    let mut old = Query::delete();
    old.from_table("idempotency_keys").and_where(Expr::col("created").lte(now - LIFE));
    tx.execute(&old).await?;
    let mut insert = Query::insert();
    insert.into_table("idempotency_keys").columns(["user_id", "key", "path", "job_id", "created"]);
    insert.values_panic([
        call.user()?.id.into(),
        key.into(),
        call.path.as_str().into(),
        job.into(),
        now.into(),
    ]);
    match tx.execute(&insert).await {
        Ok(_) => Ok(()),
        Err(StoreError::Duplicate { .. }) => {
            let words = "A request with this Idempotency-Key is under way.".to_owned();
            Err(ApiError::Detail(StatusCode::CONFLICT, words))
        }
        Err(error) => Err(error.into()),
    }
}

/// 201 with a job that was just launched, as it was committed: by now it may have begun.
pub(super) async fn launched(call: &Call, id: i64, ignored: Map<String, Value>) -> Answer {
    let mut record = generic::fetch(call, &JOBS, &id.to_string()).await?;
    record.set("status", "pending");
    record.set("started", Value::Null);
    record.set("execution_node", "");
    told(record, id, ignored)
}

/// 201 with a job that was launched before, as it is now.
fn told(record: Record, id: i64, ignored: Map<String, Value>) -> Answer {
    let url = record.url();
    let mut answer = Map::new();
    answer.insert("job".to_owned(), id.into());
    answer.insert("ignored_fields".to_owned(), json!(ignored));
    answer.extend(record.into_json());
    generic::created_response(url, &answer.into())
}
