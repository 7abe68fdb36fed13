//! Jobs of all kinds that run on nodes: what they show beside their columns, and how they are stopped.

use std::collections::HashMap;

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use sea_query::{Expr, ExprTrait, JoinType, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::templates::{Attached, attached};
use super::{Answer, access, generic, labels, ok};
use crate::job;
use crate::kind::Kind;
use crate::registry::JOBS;
use crate::registry::access::CANCEL;
use crate::registry::read::Record;
use crate::store::core::{Class, CoreDb, Error as StoreError};

pub(super) struct Jobs;

impl Rules for Jobs {
    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], detail: bool) -> Rule<'a> {
        Box::pin(async move {
            let db = &call.app.db;
            let ids: Vec<i64> = records.iter().map(|record| record.id).collect();
            // All at once: on a busy machine a query is mostly a wait for its turn.
            let (mut credentials, mut worn, mut work) = tokio::try_join!(
                attached(db, "unified_job_credentials", "unified_job_id", &ids),
                labels::worn(db, &labels::JOBS, &ids),
                work(db, &ids),
            )?;
            for record in records {
                if *record.resource == JOBS {
                    let attached = credentials.remove(&record.id).unwrap_or_default();
                    let shown: Vec<Value> = attached.iter().map(Attached::shown).collect();
                    record.summary.insert("credentials".to_owned(), shown.into());
                    record.summary.insert("labels".to_owned(), labels::shown(worn.remove(&record.id)));
                }
                record.set("launched_by", launched_by(record));
                let Work { unit, plays, tasks } = work.remove(&record.id).unwrap_or_default();
                record.set("work_unit_id", unit);
                if record.fields.contains_key("passwords_needed_to_start") {
                    record.set("passwords_needed_to_start", json!([]));
                }
                if detail {
                    record.set("playbook_counts", json!({"play_count": plays, "task_count": tasks}));
                    if record.fields.get("host_status_counts").is_some_and(Value::is_null) {
                        record.set("host_status_counts", json!({}));
                    }
                }
            }
            Ok(())
        })
    }

    fn may_delete<'a>(&'a self, _: &'a Call, record: &'a Record) -> Rule<'a> {
        Box::pin(async move {
            if job::is_active(record.text("status")) {
                let words = "Cannot delete running job resource.".to_owned();
                return Err(ApiError::Detail(StatusCode::FORBIDDEN, words));
            }
            Ok(())
        })
    }
}

/// What a job has done so far, and by which unit.
#[derive(Default)]
struct Work {
    unit: Option<String>,
    plays: i64,
    tasks: i64,
}

async fn work(db: &CoreDb, ids: &[i64]) -> Result<HashMap<i64, Work>, StoreError> {
    let mut work = HashMap::new();
    if ids.is_empty() {
        return Ok(work);
    }
    let mut query = Query::select();
    query.columns([("j", "id"), ("j", "play_count"), ("j", "task_count"), ("u", "unit_id")]);
    query.from_as("unified_jobs", "j");
    let of = Expr::col(("u", "job_id")).equals(("j", "id"));
    query.join_as(JoinType::LeftJoin, "units", "u", of);
    query.and_where(Expr::col(("j", "id")).is_in(ids.iter().copied()));
    for row in db.all(&query).await? {
        let unit: Option<Vec<u8>> = row.at(3)?;
        let unit = unit.and_then(|unit| uuid::Uuid::from_slice(&unit).ok()).map(|unit| unit.to_string());
        work.insert(row.at(0)?, Work { unit, plays: row.at(1)?, tasks: row.at(2)? });
    }
    Ok(work)
}

fn launched_by(record: &Record) -> Value {
    match record.summary.get("created_by") {
        Some(user) => json!({
            "id": user["id"],
            "name": user["username"],
            "type": "user",
            "url": record.related.get("created_by"),
        }),
        None => json!({}),
    }
}

/// `jobs/N/cancel/`, and of every other kind.
pub(super) async fn cancel(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    let resource = kind.names().resource;
    if call.method == Method::OPTIONS {
        let name = format!("{} Cancel", resource.label);
        return ok(json!({"name": name, "actions": {"POST": {}, "GET": {}}}));
    }
    let id = generic::visible_id(call, resource, id).await?;
    if call.method != Method::POST {
        let mut query = Query::select();
        query.column("status").from("unified_jobs").and_where(Expr::col("id").eq(id));
        let row = call.app.db.optional(&query).await?.ok_or_else(|| ApiError::missing(resource.model))?;
        return ok(json!({"can_cancel": job::is_active(&row.at::<String>(0)?)}));
    }
    access::need(call, resource, id, CANCEL).await?;
    let mut tx = call.app.db.begin(Class::Intent).await?;
    if !job::cancel(&mut tx, id).await? {
        let words = "Method \"POST\" not allowed.".to_owned();
        return Err(ApiError::Detail(StatusCode::METHOD_NOT_ALLOWED, words));
    }
    tx.wake();
    tx.commit().await?;
    Ok(Response::builder().status(StatusCode::ACCEPTED).body(Body::empty()).unwrap_or_default())
}
