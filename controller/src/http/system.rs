//! Management jobs: launched like a job template, run by the controller itself.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic, ok};
use crate::job;
use crate::registry::read::Record;
use crate::registry::{SYSTEM_JOB_TEMPLATES, SYSTEM_JOBS};
use crate::store::core::Class;
use crate::store::retention::{self, Asked, Management};

/// What the templates show beside their columns.
pub(super) struct Templates;

impl Rules for Templates {
    fn fill<'a>(&'a self, _: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                record.set("job_type", management(record.id).job_type);
            }
            Ok(())
        })
    }
}

/// What a template of a management job does.
fn management(template: i64) -> Management {
    let known = retention::MANAGEMENT.into_iter().find(|job| job.template == template);
    known.unwrap_or(retention::JOBS)
}

/// What management jobs show beside their columns.
pub(super) struct Jobs;

impl Rules for Jobs {
    fn fill<'a>(&'a self, _: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                let said = record.text("job_explanation").to_owned();
                record.set("result_stdout", said);
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

/// `system_job_templates/N/launch/`, with `{"extra_vars": {"days": 30, "dry_run": true}}`.
pub(super) async fn launch(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "System Job Template Launch", "actions": {"POST": {}, "GET": {}}}));
    }
    let template = generic::visible_id(call, &SYSTEM_JOB_TEMPLATES, id).await?;
    if call.method != Method::POST {
        return ok(json!({}));
    }
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    let asked = asked(call.object()?.get("extra_vars"))?;
    let now = jiff::Timestamp::now().as_microsecond();
    let kind = management(template);
    let mut insert = Query::insert();
    insert
        .into_table("unified_jobs")
        .columns([
            "kind",
            "name",
            "description",
            "launch_type",
            "status",
            "unified_job_template_id",
            "job_type",
            "extra_vars",
            "controller_node",
            "execution_node",
            "created",
            "modified",
            "created_by_id",
            "modified_by_id",
        ])
        .values_panic([
            "system_job".into(),
            kind.name.into(),
            kind.description.into(),
            "manual".into(),
            "pending".into(),
            template.into(),
            kind.job_type.into(),
            json!({"days": asked.days, "dry_run": asked.dry_run}).to_string().into(),
            (*call.app.node).into(),
            (*call.app.node).into(),
            now.into(),
            now.into(),
            user.id.into(),
            user.id.into(),
        ]);
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let id = tx.insert(&mut insert).await?;
    let changes = Map::from_iter([("id".to_owned(), Value::from(id)), ("name".to_owned(), kind.name.into())]);
    let entry = Entry::of("create", (SYSTEM_JOBS.type_name, Some(id)), changes);
    activity::note(call, &mut tx, entry).await?;
    tx.wake();
    tx.job_changed(id, "pending");
    tx.commit().await?;
    let record = generic::fetch(call, &SYSTEM_JOBS, &id.to_string()).await?;
    let url = record.url();
    let mut answer = Map::new();
    answer.insert("system_job".to_owned(), id.into());
    answer.extend(record.into_json());
    generic::created_response(url, &answer.into())
}

/// `system_jobs/N/cancel/`. One that runs already ends within moments.
pub(super) async fn cancel(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "System Job Cancel", "actions": {"POST": {}, "GET": {}}}));
    }
    let id = generic::visible_id(call, &SYSTEM_JOBS, id).await?;
    if call.method != Method::POST {
        let mut query = Query::select();
        query.column("status").from("unified_jobs").and_where(Expr::col("id").eq(id));
        let row = call.app.db.optional(&query).await?.ok_or_else(|| ApiError::missing(SYSTEM_JOBS.model))?;
        return ok(json!({"can_cancel": row.at::<String>(0)? == "pending"}));
    }
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    if !job::cancel(&mut tx, id).await? {
        let words = "Method \"POST\" not allowed.".to_owned();
        return Err(ApiError::Detail(StatusCode::METHOD_NOT_ALLOWED, words));
    }
    tx.commit().await?;
    Ok(Response::builder().status(StatusCode::ACCEPTED).body(Body::empty()).unwrap_or_default())
}

/// Reads the variables, which clients send as an object or as text of one.
fn asked(vars: Option<&Value>) -> Result<Asked, ApiError> {
    let wrong = |words: &str| ApiError::field("extra_vars", words.to_owned());
    let vars = match vars {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|_| wrong("This is no JSON object."))?
        }
        Some(other) => other.clone(),
    };
    let days = match vars.get("days") {
        None => retention::DAYS,
        Some(days) => days
            .as_u64()
            .or_else(|| days.as_str()?.parse().ok())
            .and_then(|days| u32::try_from(days).ok())
            .ok_or_else(|| wrong("days must be a positive integer."))?,
    };
    let dry_run = match vars.get("dry_run") {
        None | Some(Value::Null) => false,
        Some(value) => {
            crate::registry::write::boolean(value).ok_or_else(|| wrong("dry_run must be true or false."))?
        }
    };
    Ok(Asked { days, dry_run })
}
