//! Job templates: what a template must have to be launched, its credentials, and what it shows of its jobs.

use std::collections::HashMap;

use axum::http::StatusCode;
use sea_query::{Expr, ExprTrait, JoinType, Order, Query, SelectStatement};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{access, labels, launch, survey};
use crate::project;
use crate::registry::read::{Record, time_json};
use crate::registry::roles::USE;
use crate::registry::write::Draft;
use crate::registry::{CREDENTIALS, JOB_TEMPLATES, PROJECTS};
use crate::store::core::{CoreDb, Error as StoreError, WriteTx};

/// Jobs that a template shows.
const RECENT: u64 = 10;

/// Most credentials a template or job may have; AWX knows far fewer kinds.
pub(super) const MAX_CREDENTIALS: usize = 64;

pub(super) struct JobTemplates;

impl Rules for JobTemplates {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let int = |draft: &Draft, name: &str| match draft.value(name) {
                Some(value) => value.as_i64(),
                None => before.and_then(|before| before.int(name)),
            };
            let text = |draft: &Draft, name: &str| match draft.value(name) {
                Some(value) => value.as_str().unwrap_or_default().to_owned(),
                None => before.map(|before| before.text(name).to_owned()).unwrap_or_default(),
            };
            let flag = |draft: &Draft, name: &str| match draft.value(name) {
                Some(value) => value.as_bool().unwrap_or_default(),
                None => before.is_some_and(|before| before.flag(name)),
            };
            let touched =
                before.is_none() || ["project", "playbook", "scm_branch"].iter().any(|name| draft.has(name));
            if touched {
                let Some(id) = int(draft, "project") else {
                    return Err(ApiError::field("project", "This field is required."));
                };
                let project = project(&call.app.db, id).await?;
                let Some(project) = project else {
                    return Err(ApiError::field(
                        "project",
                        format!("Invalid pk \"{id}\" - object does not exist."),
                    ));
                };
                let playbook = text(draft, "playbook");
                if playbook.is_empty() {
                    return Err(ApiError::field("playbook", "Must select playbook for project."));
                }
                if !has_playbook(call, id, &project, &playbook).await? {
                    return Err(ApiError::field("playbook", "Playbook not found for project."));
                }
                if !text(draft, "scm_branch").is_empty() && !project.allow_override {
                    let words = "Project does not allow overriding branch.";
                    return Err(ApiError::field("scm_branch", words));
                }
                draft.set("organization", project.organization.map_or(Value::Null, Value::from));
            }
            if int(draft, "inventory").is_none() && !flag(draft, "ask_inventory_on_launch") {
                let words = "You must either set a default value or ask to prompt on launch.";
                return Err(ApiError::field("inventory", words));
            }
            if let Some(credentials) = draft.take("credentials") {
                let ids = launch::ids(&credentials).map_err(|words| ApiError::field("credentials", words))?;
                let known = known(&call.app.db, &ids).await?;
                if let Some(id) = ids.iter().find(|id| !known.contains_key(id)) {
                    let words = format!("Invalid pk \"{id}\" - object does not exist.");
                    return Err(ApiError::field("credentials", words));
                }
                let attached = before.and_then(|before| before.summary.get("credentials"));
                let attached: Vec<i64> = attached
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|shown| shown["id"].as_i64())
                    .collect();
                let fresh: Vec<i64> = ids.iter().copied().filter(|id| !attached.contains(id)).collect();
                access::check_named(call, &CREDENTIALS, &fresh, "credentials", USE).await?;
                one_of_a_kind(known.values()).map_err(|words| ApiError::field("credentials", words))?;
                draft.aside.insert("credentials".to_owned(), ids.into());
            }
            Ok(())
        })
    }

    fn written<'a>(&'a self, _: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            let Some(ids) = draft.aside.get("credentials").and_then(Value::as_array) else { return Ok(()) };
            let mut gone = Query::delete();
            gone.from_table("job_template_credentials").and_where(Expr::col("job_template_id").eq(id));
            tx.execute(&gone).await?;
            if !ids.is_empty() {
                let mut insert = Query::insert();
                insert.into_table("job_template_credentials").columns(["job_template_id", "credential_id"]);
                for credential in ids.iter().filter_map(Value::as_i64) {
                    insert.values_panic([id.into(), credential.into()]);
                }
                tx.execute(&insert).await?;
            }
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], detail: bool) -> Rule<'a> {
        Box::pin(async move { fill(call, &mut records.iter_mut().collect::<Vec<_>>(), detail).await })
    }

    /// Credentials given at creation are taken, but not announced: whoever exports a template would take the list for a
    /// field that names one object.
    fn options(&self, fields: &mut Map<String, Value>) {
        fields.shift_remove("credentials");
    }

    fn may_attach<'a>(&'a self, tx: &'a mut WriteTx, list: &'a str, id: i64, member: i64) -> Rule<'a> {
        Box::pin(async move {
            if list != "credentials" {
                return Ok(());
            }
            let mut query = shown_credentials();
            let mut attached = Query::select();
            attached.column("credential_id").from("job_template_credentials");
            attached.and_where(Expr::col("job_template_id").eq(id));
            let id = || Expr::col(("c", "id"));
            query.and_where(id().in_subquery(attached).or(id().eq(member)));
            let rows = tx.all(&query).await?;
            let credentials: Vec<Attached> = rows.iter().map(Attached::read).collect::<Result<_, _>>()?;
            one_of_a_kind(credentials.iter())
                .map_err(|words| ApiError::Body(StatusCode::BAD_REQUEST, json!({"error": words})))
        })
    }
}

/// What a template needs to know of its project.
pub(super) struct Project {
    pub(super) local_path: String,
    pub(super) allow_override: bool,
    pub(super) organization: Option<i64>,
    /// It is a directory here, which can be looked into.
    is_manual: bool,
    /// An update brought a tree.
    was_fetched: bool,
}

async fn project(db: &CoreDb, id: i64) -> Result<Option<Project>, StoreError> {
    let mut query = Query::select();
    query.columns([("p", "local_path"), ("p", "allow_override")]).column(("u", "organization_id"));
    query.columns([("p", "scm_type"), ("p", "tree")]).from_as("projects", "p");
    query.join_as(
        JoinType::InnerJoin,
        "unified_job_templates",
        "u",
        Expr::col(("u", "id")).equals(("p", "id")),
    );
    query.and_where(Expr::col(("p", "id")).eq(id));
    let Some(row) = db.optional(&query).await? else { return Ok(None) };
    Ok(Some(Project {
        local_path: row.at(0)?,
        allow_override: row.at(1)?,
        organization: row.at(2)?,
        is_manual: row.at::<String>(3)?.is_empty(),
        was_fetched: row.at::<Option<String>>(4)?.is_some(),
    }))
}

/// Whether a playbook can be chosen. Of a project whose branch each job may choose, or that was not fetched yet, nobody
/// knows, so every name may be right.
async fn has_playbook(call: &Call, id: i64, project: &Project, playbook: &str) -> Result<bool, ApiError> {
    if project.is_manual {
        return Ok(project::has_playbook(&call.app.projects_root, &project.local_path, playbook));
    }
    if project.allow_override || !project.was_fetched {
        return Ok(true);
    }
    let listed = super::projects::stored(&call.app.db, id, "playbooks").await?;
    Ok(listed.as_array().is_some_and(|listed| listed.iter().any(|listed| listed == playbook)))
}

/// A credential as templates and jobs show it.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    pub(super) id: i64,
    name: String,
    description: String,
    kind: String,
    namespace: String,
    type_id: i64,
    type_name: String,
    vault_id: String,
    asks: Vec<String>,
}

/// The query of [`Attached`]; the caller adds which. Its first nine columns are read.
pub(super) fn shown_credentials() -> SelectStatement {
    let mut query = Query::select();
    query.columns(["id", "name", "description", "inputs"].map(|column| ("c", column)));
    query.columns(["id", "kind", "namespace", "name"].map(|column| ("t", column)));
    query.from_as("credentials", "c");
    let of_type = Expr::col(("t", "id")).equals(("c", "credential_type_id"));
    query.join_as(JoinType::InnerJoin, "credential_types", "t", of_type);
    query.order_by(("c", "id"), Order::Asc);
    query
}

impl Attached {
    pub(super) fn read(row: &crate::store::core::Row) -> Result<Self, StoreError> {
        let inputs: Value = serde_json::from_str(&row.at::<String>(3)?).unwrap_or_default();
        let kind: String = row.at(5)?;
        Ok(Self {
            id: row.at(0)?,
            name: row.at(1)?,
            description: row.at(2)?,
            vault_id: inputs["vault_id"].as_str().unwrap_or_default().to_owned(),
            asks: inputs
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, value)| *value == "ASK")
                .map(|(name, _)| name.clone())
                .collect(),
            type_id: row.at(4)?,
            namespace: row.at::<Option<String>>(6)?.unwrap_or_else(|| kind.clone()),
            kind,
            type_name: row.at(7)?,
        })
    }

    /// The family of its type: `ssh`, `cloud`.
    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// The word of its type: `aws`.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn shown(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "kind": self.namespace,
            "cloud": self.kind == "cloud",
        })
    }

    /// As `launch/` lists it among the defaults.
    pub(super) fn as_default(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "credential_type": self.type_id,
            "passwords_needed": self.passwords().collect::<Vec<_>>(),
        })
    }

    /// The names under which a launch brings what this credential asks for.
    pub(super) fn passwords(&self) -> impl Iterator<Item = String> {
        self.asks.iter().map(|name| match (name.as_str(), self.vault_id.as_str()) {
            ("password", _) => "ssh_password".to_owned(),
            ("vault_password", "") => "vault_password".to_owned(),
            ("vault_password", id) => format!("vault_password.{id}"),
            (other, _) => other.to_owned(),
        })
    }

    /// What there may be one of in a job: a type, and for vaults an id.
    pub(super) fn slot(&self) -> (i64, &str) {
        (self.type_id, if self.kind == "vault" { &self.vault_id } else { "" })
    }
}

/// A job has one credential of each type, and one vault of each id.
pub(super) fn one_of_a_kind<'a>(credentials: impl Iterator<Item = &'a Attached>) -> Result<(), String> {
    let mut slots = Vec::new();
    for credential in credentials {
        let slot = credential.slot();
        if slots.contains(&slot) {
            let name = match slot.1 {
                "" => credential.type_name.clone(),
                id => format!("{} (id={id})", credential.type_name),
            };
            return Err(format!("Cannot assign multiple {name} credentials."));
        }
        slots.push(slot);
    }
    Ok(())
}

/// The credentials with these ids.
pub(super) async fn known(db: &CoreDb, ids: &[i64]) -> Result<HashMap<i64, Attached>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = shown_credentials();
    query.and_where(Expr::col(("c", "id")).is_in(ids.iter().copied()));
    let rows = db.all(&query).await?;
    rows.iter().map(|row| Attached::read(row).map(|credential| (credential.id, credential))).collect()
}

/// The credentials of several owners, by owner: of templates or of jobs.
pub(super) async fn attached(
    db: &CoreDb,
    table: &'static str,
    owner: &'static str,
    ids: &[i64],
) -> Result<HashMap<i64, Vec<Attached>>, StoreError> {
    let mut found: HashMap<i64, Vec<Attached>> = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let mut query = shown_credentials();
    query.column(("p", owner));
    query.join_as(JoinType::InnerJoin, table, "p", Expr::col(("p", "credential_id")).equals(("c", "id")));
    query.and_where(Expr::col(("p", owner)).is_in(ids.iter().copied()));
    for row in db.all(&query).await? {
        found.entry(row.at(8)?).or_default().push(Attached::read(&row)?);
    }
    Ok(found)
}

pub(super) struct UnifiedTemplates;

impl Rules for UnifiedTemplates {
    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], detail: bool) -> Rule<'a> {
        Box::pin(async move {
            let mut templates: Vec<&mut Record> =
                records.iter_mut().filter(|record| *record.resource != PROJECTS).collect();
            fill(call, &mut templates, detail).await
        })
    }
}

async fn fill(call: &Call, records: &mut [&mut Record], detail: bool) -> Result<(), ApiError> {
    let db = &call.app.db;
    let ids: Vec<i64> =
        records.iter().filter(|record| *record.resource == JOB_TEMPLATES).map(|record| record.id).collect();
    let mut credentials = attached(db, "job_template_credentials", "job_template_id", &ids).await?;
    let mut worn = labels::worn(db, &labels::TEMPLATES, &ids).await?;
    let mut surveys = survey::titles(db, &ids).await?;
    let mut recent = recent_jobs(db, &ids).await?;
    for record in records.iter_mut() {
        let shown: Vec<Value> =
            credentials.remove(&record.id).unwrap_or_default().iter().map(Attached::shown).collect();
        record.summary.insert("credentials".to_owned(), shown.into());
        record.summary.insert("labels".to_owned(), labels::shown(worn.remove(&record.id)));
        if let Some(title) = surveys.remove(&record.id) {
            record.summary.insert("survey".to_owned(), title);
        }
        let jobs = recent.remove(&record.id).unwrap_or_default();
        if let Some(last) = jobs.first() {
            record.related.insert("last_job".to_owned(), format!("/api/v2/jobs/{}/", last["id"]).into());
            record.summary.insert("last_job".to_owned(), last.clone());
        }
        record.summary.insert("recent_jobs".to_owned(), jobs.into());
        if detail {
            let resolved = launch::resolved(db, record.id).await?;
            record.summary.insert("resolved_environment".to_owned(), resolved);
        }
    }
    Ok(())
}

/// The newest jobs of each template: one query that takes each from the end of its index.
async fn recent_jobs(db: &CoreDb, ids: &[i64]) -> Result<HashMap<i64, Vec<Value>>, StoreError> {
    let mut found: HashMap<i64, Vec<Value>> = HashMap::new();
    let columns = ["unified_job_template_id", "id", "status", "finished", "canceled_on", "kind"];
    let mut all: Option<SelectStatement> = None;
    for &id in ids {
        let mut newest = Query::select();
        newest.columns(columns).from("unified_jobs").and_where(Expr::col("unified_job_template_id").eq(id));
        newest.order_by("id", Order::Desc).limit(RECENT);
        let mut one = Query::select();
        one.columns(columns).from_subquery(newest, "n");
        match &mut all {
            None => all = Some(one),
            Some(all) => {
                all.union(sea_query::UnionType::All, one);
            }
        }
    }
    let Some(all) = all else { return Ok(found) };
    let mut rows = db.all(&all).await?;
    rows.sort_by_key(|row| std::cmp::Reverse(row.at::<i64>(1).unwrap_or(0)));
    for row in rows {
        let time = |micros: Option<i64>| micros.map_or(Value::Null, time_json);
        found.entry(row.at(0)?).or_default().push(json!({
            "id": row.at::<i64>(1)?,
            "status": row.at::<String>(2)?,
            "finished": time(row.at(3)?),
            "canceled_on": time(row.at(4)?),
            "type": row.at::<String>(5)?,
        }));
    }
    Ok(found)
}
