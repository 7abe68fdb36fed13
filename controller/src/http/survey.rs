//! The survey of a template: `job_templates/N/survey_spec/`.

use std::collections::HashMap;

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::{Answer, access, generic, ok};
use crate::registry::JOB_TEMPLATES;
use crate::registry::roles::ADMIN;
use crate::store::core::{Class, CoreDb, Error as StoreError};
use crate::survey;
use crate::vault::Vault;

/// A template's specification as it is stored; null if it has none.
pub(super) async fn stored(db: &CoreDb, template: i64) -> Result<Value, StoreError> {
    let mut query = Query::select();
    query.column("survey_spec").from("job_templates").and_where(Expr::col("id").eq(template));
    let text = db.optional(&query).await?.map(|row| row.at::<String>(0)).transpose()?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

/// Opens a secret default of a template's survey.
pub(super) fn opened(vault: &Vault, template: i64, variable: &str, sealed: &str) -> Option<String> {
    let open = vault.decrypt("job_templates", template, &survey::field(variable), sealed);
    open.ok().map(|secret| secret.expose().to_owned())
}

/// Seals a secret default of a template's survey.
pub(super) fn sealed(vault: &Vault, template: i64, variable: &str, plain: &str) -> String {
    vault.encrypt("job_templates", template, &survey::field(variable), plain)
}

pub(super) async fn spec(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, DELETE, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Job Template Survey Spec", "actions": {"GET": {}, "POST": {}}}));
    }
    let id = generic::visible_id(call, &JOB_TEMPLATES, id).await?;
    let db = &call.app.db;
    let old = stored(db, id).await?;
    if !matches!(call.method, Method::POST | Method::DELETE) {
        return ok(if old.is_object() { survey::shown(old) } else { json!({}) });
    }
    access::need(call, &JOB_TEMPLATES, id, ADMIN).await?;
    let text = if call.method == Method::DELETE {
        String::new()
    } else {
        let seal = |variable: &str, plain: &str| {
            call.app.vault.encrypt("job_templates", id, &survey::field(variable), plain)
        };
        let checked = survey::checked(call.object()?, &old, seal);
        checked.map_err(|words| ApiError::Body(StatusCode::BAD_REQUEST, json!({"error": words})))?.to_string()
    };
    let mut tx = db.begin(Class::Intent).await?;
    let mut update = Query::update();
    update.table("job_templates").value("survey_spec", text.as_str()).and_where(Expr::col("id").eq(id));
    tx.execute(&update).await?;
    let shown = |spec: Value| if spec.is_object() { survey::shown(spec) } else { json!({}) };
    let new = serde_json::from_str(&text).unwrap_or_default();
    let changes = Map::from_iter([("survey_spec".to_owned(), json!([shown(old), shown(new)]))]);
    let mut entry = Entry::of("update", (JOB_TEMPLATES.type_name, Some(id)), changes);
    entry.organization = activity::organization_of(&JOB_TEMPLATES, id);
    activity::note(call, &mut tx, entry).await?;
    tx.commit().await?;
    ok(json!({}))
}

/// Title and description of each survey that is asked, by template.
pub(super) async fn titles(db: &CoreDb, templates: &[i64]) -> Result<HashMap<i64, Value>, StoreError> {
    if templates.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = Query::select();
    query.columns(["id", "survey_spec"]).from("job_templates");
    query.and_where(Expr::col("id").is_in(templates.iter().copied()));
    query.and_where(Expr::col("survey_enabled").eq(true)).and_where(Expr::col("survey_spec").ne(""));
    let mut titles = HashMap::new();
    for row in db.all(&query).await? {
        let spec: Value = serde_json::from_str(&row.at::<String>(1)?).unwrap_or_default();
        titles.insert(row.at(0)?, json!({"title": spec["name"], "description": spec["description"]}));
    }
    Ok(titles)
}
