//! Starting a job again: what it keeps of the one before, and who may.

use axum::http::{Method, StatusCode};
use sea_query::{Expr, ExprTrait, Order, Query};
use serde_json::{Map, json};

use super::super::call::Call;
use super::super::error::ApiError;
use super::super::templates::{Attached, attached};
use super::super::{Answer, access, generic, inventory_sources, labels, ok, once, survey};
use super::{Beside, PROMPTS, may_choose, passwords, stored};
use crate::job;
use crate::registry::read::Record;
use crate::registry::roles::EXECUTE;
use crate::registry::write::parse_variables;
use crate::registry::{JOB_TEMPLATES, JOBS, options};
use crate::store::core::{CoreDb, Error as StoreError};
use crate::survey::Survey;

/// Columns that a job started again has from the one before.
const KEPT: &[&str] = &[
    "kind",
    "name",
    "description",
    "unified_job_template_id",
    "job_template_id",
    "organization_id",
    "execution_environment_id",
    "image",
    "pull",
    "image_reason",
    "inventory_id",
    "project_id",
    "job_type",
    "playbook",
    "scm_branch",
    "extra_vars",
    "job_tags",
    "skip_tags",
    "start_at_task",
    "forks",
    "verbosity",
    "timeout",
    "force_handlers",
    "use_fact_cache",
    "become_enabled",
    "diff_mode",
    "allow_simultaneous",
    "artifacts",
    "job_slice_count",
    "job_slice_number",
];

/// `jobs/N/relaunch/`: the same job once more, for all hosts or for those that failed.
pub(in super::super) async fn relaunch(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        let choices =
            json!([["all", "No change to job limit"], ["failed", "All failed and unreachable hosts"]]);
        let hosts = json!({"type": "choice", "required": false, "label": "Hosts", "choices": choices, "default": "all"});
        return ok(options::action("Relaunch Job", Map::from_iter([("hosts".to_owned(), hosts)])));
    }
    let job = generic::fetch(call, &JOBS, id).await?;
    let db = &call.app.db;
    let credentials = attached(db, "unified_job_credentials", "unified_job_id", &[job.id]).await?;
    let credentials = credentials.into_values().next().unwrap_or_default();
    let mut summaries = Query::select();
    summaries.columns(["host_name", "failed", "dark", "failures"]).from("job_host_summaries");
    summaries.and_where(Expr::col("job_id").eq(job.id)).order_by("host_name", Order::Asc);
    let rows = db.all(&summaries).await?;
    let mut failed = Vec::new();
    for row in &rows {
        if row.at::<bool>(1)? || row.at::<i64>(2)? > 0 || row.at::<i64>(3)? > 0 {
            failed.push(row.at::<String>(0)?);
        }
    }
    if call.method != Method::POST {
        let passwords: Vec<String> = credentials.iter().flat_map(Attached::passwords).collect();
        return ok(json!({
            "passwords_needed_to_start": passwords,
            "retry_counts": {"all": rows.len(), "failed": failed.len()},
        }));
    }
    access::need(call, &JOBS, job.id, EXECUTE).await?;
    if let Some(answer) = once::answered(call).await? {
        return Ok(answer);
    }
    let groups = chosen_groups(db, job.id).await?;
    let survey = job::survey_passwords(db, &call.app.vault, job.id)
        .await
        .map_err(|error| ApiError::internal("answers to the survey of the job before do not open", error))?;
    may_repeat(call, &job, &credentials, &groups, !survey.is_empty()).await?;
    let body = call.object()?;
    let limit = match body.get("hosts").map(|hosts| hosts.as_str().unwrap_or_default()) {
        None | Some("all") => job.text("limit").to_owned(),
        Some("failed") if job.text("finished").is_empty() => {
            return Err(ApiError::field("hosts", "Cannot relaunch failed hosts until the job has finished."));
        }
        Some("failed") if failed.is_empty() => {
            let words = "Cannot relaunch because previous job had 0 failed hosts.";
            return Err(ApiError::field("hosts", words));
        }
        Some("failed") => failed.join(","),
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            return Err(ApiError::field("hosts", format!("\"{other}\" is not a valid choice.")));
        }
    };
    if job.int("inventory").is_none() || job.int("project").is_none() {
        let what = if job.int("project").is_none() { "project" } else { "inventory" };
        return Err(ApiError::field(
            what,
            format!("The job's {what} is missing, so it cannot be started again."),
        ));
    }
    let passwords = passwords(&credentials, &body)?;
    let now = jiff::Timestamp::now().as_microsecond();
    let mut select = Query::select();
    select.columns(KEPT.iter().copied()).from("unified_jobs").and_where(Expr::col("id").eq(job.id));
    let fresh: Vec<(&'static str, sea_query::Value)> = vec![
        ("limit", limit.into()),
        ("launch_type", "relaunch".into()),
        ("status", "pending".into()),
        ("controller_node", (*call.app.node).into()),
        ("created", now.into()),
        ("modified", now.into()),
        ("created_by_id", user.id.into()),
        ("modified_by_id", user.id.into()),
    ];
    let columns: Vec<&str> = KEPT.iter().copied().chain(fresh.iter().map(|(column, _)| *column)).collect();
    for (_, value) in fresh {
        select.expr(Expr::val(value));
    }
    let mut insert = Query::insert();
    insert.into_table("unified_jobs").columns(columns.iter().map(|column| (*column).to_owned()));
    insert.select_from(select).map_err(|error| {
        ApiError::internal("a job was not copied", std::io::Error::other(error.to_string()))
    })?;
    let credentials: Vec<i64> = credentials.iter().map(|credential| credential.id).collect();
    let labels = labels::worn(db, &labels::JOBS, &[job.id]).await?.remove(&job.id).unwrap_or_default();
    let labels = labels.into_iter().map(|(id, _)| id).collect();
    let survey = survey.iter().map(|(name, secret)| (name.clone(), secret.expose().into())).collect();
    let updates = match job.int("inventory") {
        Some(inventory) => inventory_sources::on_launch(call, inventory).await?,
        None => Vec::new(),
    };
    let beside = Beside { credentials, labels, groups, passwords, survey, updates };
    stored(call, insert, beside, Map::new()).await
}

/// Who starts another's job again must be allowed to use what that other one chose, and the template must still ask for
/// what they answered: whoever may only start a template does not run it with other hosts, variables or a branch by way
/// of somebody else's job.
async fn may_repeat(
    call: &Call,
    job: &Record,
    credentials: &[Attached],
    groups: &[i64],
    secrets: bool,
) -> Result<(), ApiError> {
    let user = call.user()?;
    let creator = job.summary.get("created_by").and_then(|creator| creator["id"].as_i64());
    if user.is_superuser || creator == Some(user.id) {
        return Ok(());
    }
    let refuse = |words: &str| Err(ApiError::Detail(StatusCode::FORBIDDEN, words.to_owned()));
    if secrets {
        return refuse("Job was launched with secret prompts provided by another user.");
    }
    let mut chosen = Map::new();
    let mut own = Vec::new();
    if let Some(id) = job.int("job_template") {
        let template = generic::fetch(call, &JOB_TEMPLATES, &id.to_string()).await?;
        if !still_asked(call, job, &template).await? {
            return refuse("Job was launched with prompts no longer accepted.");
        }
        for name in ["inventory", "execution_environment"] {
            // The image of a template that names none was not chosen.
            let resolved = name == "execution_environment" && template.int(name).is_none();
            if job.int(name) != template.int(name) && !resolved {
                chosen.insert(name.to_owned(), job.int(name).into());
            }
        }
        let found = attached(&call.app.db, "job_template_credentials", "job_template_id", &[id]).await?;
        own = found.into_values().next().unwrap_or_default();
    }
    let ids: Vec<i64> = credentials.iter().map(|credential| credential.id).collect();
    chosen.insert("credentials".to_owned(), ids.into());
    chosen.insert("instance_groups".to_owned(), groups.to_vec().into());
    match may_choose(call, &chosen, &own).await {
        Err(ApiError::Fields(_)) => Err(ApiError::forbidden()),
        other => other,
    }
}

/// Whether all that a job has otherwise than its template is something that the template asks for.
async fn still_asked(call: &Call, job: &Record, template: &Record) -> Result<bool, ApiError> {
    for (name, flag) in PROMPTS {
        let same = match *name {
            // Checked by the right to use them.
            "inventory" | "credentials" | "execution_environment" | "labels" | "instance_groups" => true,
            "job_slice_count" => true,
            "extra_vars" => same_variables(call, job, template).await?,
            _ => job.fields.get(*name) == template.fields.get(*name),
        };
        if !same && !template.flag(flag) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn same_variables(call: &Call, job: &Record, template: &Record) -> Result<bool, ApiError> {
    let survey = match template.flag("survey_enabled") {
        true => Survey::read(&survey::stored(&call.app.db, template.id).await?),
        false => Survey::default(),
    };
    let own = parse_variables(template.text("extra_vars")).unwrap_or_default();
    let all = parse_variables(job.text("extra_vars")).unwrap_or_default();
    Ok(all.iter().all(|(name, value)| own.get(name) == Some(value) || survey.asks(name)))
}

/// The instance groups that a job was launched with.
async fn chosen_groups(db: &CoreDb, job: i64) -> Result<Vec<i64>, StoreError> {
    let mut query = Query::select();
    query.column("instance_group_id").from("unified_job_instance_groups");
    query.and_where(Expr::col("unified_job_id").eq(job)).order_by("id", Order::Asc);
    db.all(&query).await?.iter().map(|row| row.at(0)).collect()
}
