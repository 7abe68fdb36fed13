//! Starting updates of projects: asked for, after a project was made or changed, or because a job needs one first.

use axum::http::{HeaderValue, Method, StatusCode, header};
use sea_query::{Expr, ExprTrait, JoinType, Order, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::{ApiError, json_response};
use super::{Answer, access, generic, launch, ok};
use crate::project_update::{self, Scm};
use crate::registry::roles::UPDATE;
use crate::registry::{PROJECT_UPDATES, PROJECTS};
use crate::store::core::{Class, Row, WriteTx};
use crate::store::{dependencies, updates};

/// Why an update starts, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cause<'a> {
    /// AWX's word: `manual`, `dependency`, `sync`.
    pub(super) launch_type: &'static str,
    /// Another branch than the project's: what it brings is for the one job that waits for it.
    pub(super) branch: Option<&'a str>,
}

/// Somebody, or a change of the project, asked for it.
pub(super) const MANUAL: Cause<'_> = Cause { launch_type: "manual", branch: None };

const COLUMNS: [&str; 12] = [
    "local_path",
    "scm_type",
    "scm_url",
    "scm_branch",
    "scm_refspec",
    "scm_clean",
    "scm_track_submodules",
    "scm_delete_on_update",
    "timeout",
    "credential_id",
    "default_environment_id",
    "signature_validation_credential_id",
];

/// `projects/N/update/`.
pub(super) async fn of_project(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        // Clients ask with an id that need not exist.
        return ok(json!({"name": "Project Update View", "actions": {"POST": {}, "GET": {}}}));
    }
    let project = generic::fetch(call, &PROJECTS, id).await?;
    let fetches = Scm::parse(project.text("scm_type")).is_some();
    if call.method != Method::POST {
        return ok(json!({"can_update": fetches}));
    }
    access::need(call, &PROJECTS, project.id, UPDATE).await?;
    if !fetches {
        let words = "Method \"POST\" not allowed.".to_owned();
        return Err(ApiError::Detail(StatusCode::METHOD_NOT_ALLOWED, words));
    }
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let id = begin(call, &mut tx, project.id, MANUAL).await?;
    tx.commit().await?;
    let record = generic::fetch(call, &PROJECT_UPDATES, &id.to_string()).await?;
    let url = record.url();
    let mut answer = Map::from_iter([("project_update".to_owned(), Value::from(id))]);
    answer.extend(record.into_json());
    let mut response = json_response(StatusCode::ACCEPTED, &answer.into());
    if let Ok(url) = HeaderValue::from_str(&url) {
        response.headers_mut().insert(header::LOCATION, url);
    }
    Ok(response)
}

/// Stores an update of a project; what follows is the reconciler's.
pub(super) async fn begin(
    call: &Call,
    tx: &mut WriteTx,
    project: i64,
    cause: Cause<'_>,
) -> Result<i64, ApiError> {
    let user = call.user()?.id;
    let row = described(tx, project).await?;
    let (organization, default): (Option<i64>, Option<i64>) =
        (row.value("organization_id")?, row.value("organization_default")?);
    let environment = launch::of_update(&call.app.db, row.value("default_environment_id")?, default).await?;
    let word: String = row.value("scm_type")?;
    let signature: Option<i64> = row.value("signature_validation_credential_id")?;
    let tags = Scm::parse(&word).map(|scm| project_update::tags(scm, signature.is_some()));
    let branch: String = row.value("scm_branch")?;
    let credential: Option<i64> = row.value("credential_id")?;
    let mut credentials: Vec<i64> = credential.into_iter().collect();
    credentials.extend(signature);
    if let Some(organization) = organization {
        for found in galaxy(tx, organization).await? {
            if !credentials.contains(&found) {
                credentials.push(found);
            }
        }
    }
    let now = jiff::Timestamp::now().as_microsecond();
    let columns: Vec<(&'static str, sea_query::Value)> = vec![
        ("kind", PROJECT_UPDATES.type_name.into()),
        ("name", row.value::<String>("name")?.into()),
        ("description", row.value::<String>("description")?.into()),
        ("launch_type", cause.launch_type.into()),
        ("status", "pending".into()),
        ("unified_job_template_id", project.into()),
        ("project_id", project.into()),
        ("organization_id", organization.into()),
        ("execution_environment_id", environment.as_ref().map(|environment| environment.id).into()),
        ("image", environment.as_ref().map(|environment| environment.image.clone()).into()),
        ("pull", environment.as_ref().map(|environment| environment.pull.clone()).into()),
        ("image_reason", environment.as_ref().map(|environment| environment.reason.clone()).into()),
        ("controller_node", (*call.app.node).into()),
        ("job_type", if cause.branch.is_some() { "run" } else { "check" }.into()),
        ("job_tags", tags.unwrap_or_default().into()),
        ("local_path", row.value::<String>("local_path")?.into()),
        ("scm_type", word.into()),
        ("scm_url", row.value::<String>("scm_url")?.into()),
        ("scm_branch", cause.branch.map_or(branch, str::to_owned).into()),
        ("scm_refspec", row.value::<String>("scm_refspec")?.into()),
        ("scm_clean", row.value::<bool>("scm_clean")?.into()),
        ("scm_track_submodules", row.value::<bool>("scm_track_submodules")?.into()),
        ("scm_delete_on_update", row.value::<bool>("scm_delete_on_update")?.into()),
        ("timeout", row.value::<i64>("timeout")?.into()),
        ("credential_id", credential.into()),
        ("artifacts", "{}".into()),
        ("created", now.into()),
        ("modified", now.into()),
        ("created_by_id", user.into()),
        ("modified_by_id", user.into()),
    ];
    let mut insert = Query::insert()
        .into_table("unified_jobs")
        .columns(columns.iter().map(|(column, _)| *column))
        .values_panic(columns.into_iter().map(|(_, value)| Expr::val(value)))
        .take();
    let id = updates::start(tx, &mut insert, &credentials).await?;
    let changes = Map::from_iter([("id".to_owned(), Value::from(id))]);
    let mut entry = Entry::of("create", (PROJECT_UPDATES.type_name, Some(id)), changes);
    entry.organization = activity::organization_of(&PROJECT_UPDATES, id);
    activity::note(call, tx, entry).await?;
    Ok(id)
}

async fn described(tx: &mut WriteTx, project: i64) -> Result<Row, ApiError> {
    let mut query = Query::select();
    query.columns(COLUMNS.map(|column| ("p", column)));
    query.columns([("u", "name"), ("u", "description"), ("u", "organization_id")]).from_as("projects", "p");
    query.expr_as(Expr::col(("o", "default_environment_id")), "organization_default");
    let parent = Expr::col(("u", "id")).equals(("p", "id"));
    query.join_as(JoinType::InnerJoin, "unified_job_templates", "u", parent);
    let owner = Expr::col(("o", "id")).equals(("u", "organization_id"));
    query.join_as(JoinType::LeftJoin, "organizations", "o", owner);
    query.and_where(Expr::col(("p", "id")).eq(project));
    tx.optional(&query).await?.ok_or_else(|| ApiError::missing(PROJECTS.model))
}

/// Where an organization gets roles and collections from, in its order.
async fn galaxy(tx: &mut WriteTx, organization: i64) -> Result<Vec<i64>, ApiError> {
    let mut query = Query::select();
    query.column("credential_id").from("organization_galaxy_credentials");
    query.and_where(Expr::col("organization_id").eq(organization)).order_by("id", Order::Asc);
    Ok(tx.all(&query).await?.iter().map(|row| row.at(0)).collect::<Result<_, _>>()?)
}

/// Starts what a job, or an update of an inventory that lies in a project, needs first, in the transaction that stores it: the
/// update of another branch, or one of the project when it is to be updated for each launch and was not lately. One that is
/// under way is shared.
pub(super) async fn before(call: &Call, tx: &mut WriteTx, job: i64) -> Result<(), ApiError> {
    let mut query = Query::select();
    query.columns([("p", "id"), ("p", "scm_type"), ("p", "scm_branch"), ("j", "scm_branch")]);
    query.columns([("p", "scm_update_on_launch"), ("p", "scm_update_cache_timeout"), ("p", "last_updated")]);
    query.columns([("p", "last_update_failed"), ("p", "tree")]).from_as("unified_jobs", "j");
    query.join_as(JoinType::InnerJoin, "projects", "p", updates::runs_from("p", "j"));
    query.and_where(Expr::col(("j", "id")).eq(job));
    let Some(row) = tx.optional(&query).await? else { return Ok(()) };
    if Scm::parse(&row.at::<String>(1)?).is_none() {
        return Ok(());
    }
    let project: i64 = row.at(0)?;
    let (own, branch): (String, String) = (row.at(2)?, row.at(3)?);
    if !branch.is_empty() && branch != own {
        let update = begin(call, tx, project, Cause { launch_type: "sync", branch: Some(&branch) }).await?;
        return Ok(dependencies::add(tx, job, update).await?);
    }
    let under_way = updates::active(tx, project).await?;
    let has_tree = row.at::<Option<String>>(8)?.is_some();
    let wanted = row.at::<bool>(4)? && is_due(row.at(5)?, row.at(6)?, row.at::<bool>(7)?);
    let update = match under_way {
        // Without a tree there is nothing to run but what it brings.
        Some(update) if wanted || !has_tree => update,
        None if wanted => begin(call, tx, project, Cause { launch_type: "dependency", branch: None }).await?,
        _ => return Ok(()),
    };
    Ok(dependencies::add(tx, job, update).await?)
}

/// Whether the last update (its time in microseconds) is older than so many seconds, or was none.
fn is_due(cache_seconds: i64, last: Option<i64>, failed: bool) -> bool {
    let now = jiff::Timestamp::now().as_microsecond();
    last.filter(|_| !failed)
        .is_none_or(|last| now.saturating_sub(last) >= cache_seconds.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_due_when_there_was_none_it_failed_or_its_time_is_over() {
        let now = jiff::Timestamp::now().as_microsecond();
        assert!(is_due(3600, None, false));
        assert!(is_due(3600, Some(now), true));
        assert!(is_due(0, Some(now), false));
        assert!(!is_due(3600, Some(now - 60_000_000), false));
        assert!(is_due(3600, Some(now - 3_601_000_000), false));
    }
}
