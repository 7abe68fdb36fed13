//! Launching: from a template and what was asked at launch to a job that is stored.
//!
//! A job that was answered with 201 survives whatever happens next: the answer is written after the commit. The path is
//! kept short, for many jobs a second are launched by it: the template comes with everything it points to in one
//! query, and the image is resolved with one more.

mod again;
mod image;

use axum::http::{Method, StatusCode};
use image::{Chain, add_chain, by_id, inventory_default, resolve};
use sea_query::{Expr, ExprTrait, InsertStatement, JoinType, Order, Query};
use serde_json::{Map, Value, json};

use super::activity::{self, Entry};
use super::call::Call;
use super::error::ApiError;
use super::templates::{Attached, MAX_CREDENTIALS, attached, known, one_of_a_kind};
use super::{Answer, access, generic, inventory_sources, labels, ok, once, survey, updates};
use crate::project;
use crate::registry::field::Kind;
use crate::registry::read::{self, BASE, Record};
use crate::registry::roles::{EXECUTE, READ, USE};
use crate::registry::write::{self, parse_variables, taken};
use crate::registry::{
    CREDENTIALS, EXECUTION_ENVIRONMENTS, Field, INSTANCE_GROUPS, INVENTORIES, JOB_TEMPLATES, JOBS, LABELS,
    options,
};
use crate::store::core::{Class, CoreDb, Error as StoreError};
use crate::survey::Survey;

pub(super) use again::relaunch;
pub(super) use image::{EnvironmentOf, of_update, resolved, stamped};

/// What a launch may be asked: the field, and the flag of the template that allows it.
const PROMPTS: &[(&str, &str)] = &[
    ("extra_vars", "ask_variables_on_launch"),
    ("inventory", "ask_inventory_on_launch"),
    ("scm_branch", "ask_scm_branch_on_launch"),
    ("limit", "ask_limit_on_launch"),
    ("job_tags", "ask_tags_on_launch"),
    ("skip_tags", "ask_skip_tags_on_launch"),
    ("job_type", "ask_job_type_on_launch"),
    ("verbosity", "ask_verbosity_on_launch"),
    ("diff_mode", "ask_diff_mode_on_launch"),
    ("credentials", "ask_credential_on_launch"),
    ("execution_environment", "ask_execution_environment_on_launch"),
    ("labels", "ask_labels_on_launch"),
    ("forks", "ask_forks_on_launch"),
    ("job_slice_count", "ask_job_slice_count_on_launch"),
    ("timeout", "ask_timeout_on_launch"),
    ("instance_groups", "ask_instance_groups_on_launch"),
];

/// Passwords a launch may bring.
const MAX_PASSWORDS: usize = 32;

/// A template with what a launch needs of its relations.
struct Template {
    record: Record,
    local_path: String,
    /// The project is a directory here, which can be looked into.
    is_manual: bool,
    chain: Chain,
}

pub(super) async fn launch(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    call.user()?;
    if call.method == Method::OPTIONS {
        // Clients ask with an id that need not exist.
        return ok(options::action("Launch Job Template", prompts()));
    }
    let template = template(call, id).await?;
    let worn = template.record.id;
    let credentials =
        attached(&call.app.db, "job_template_credentials", "job_template_id", &[template.record.id]).await?;
    let credentials = credentials.into_values().next().unwrap_or_default();
    if call.method != Method::POST {
        let labels = labels::worn(&call.app.db, &labels::TEMPLATES, &[worn]).await?.remove(&worn);
        let survey = survey_of(call, &template).await?;
        let groups = groups_of(&call.app.db, worn).await?;
        return ok(question(&template, &credentials, &labels.unwrap_or_default(), &groups, &survey));
    }
    access::need(call, &JOB_TEMPLATES, template.record.id, EXECUTE).await?;
    if let Some(answer) = once::answered(call).await? {
        return Ok(answer);
    }
    let mut body = call.object()?;
    if let Some(inventory) = body.shift_remove("inventory_id") {
        body.entry("inventory").or_insert(inventory);
    }
    let survey = survey_of(call, &template).await?;
    let answers = Answers::read(&template.record, &survey, &body)?;
    may_choose(call, &answers.taken, &credentials).await?;
    start(call, template, survey, credentials, answers, &body).await
}

/// Launches a template for one host, with nobody there to be asked; see [`super::callback`].
pub(super) async fn called(call: &Call, id: i64, host: &str, vars: Option<Value>) -> Answer {
    let template = template(call, &id.to_string()).await?;
    let credentials = attached(&call.app.db, "job_template_credentials", "job_template_id", &[id]).await?;
    let credentials = credentials.into_values().next().unwrap_or_default();
    let survey = survey_of(call, &template).await?;
    let body: Map<String, Value> = vars.map(|vars| ("extra_vars".to_owned(), vars)).into_iter().collect();
    let mut answers = Answers::read(&template.record, &survey, &body)?;
    answers.taken.insert("limit".to_owned(), host.into());
    answers.launch_type = "callback";
    start(call, template, survey, credentials, answers, &Map::new()).await
}

/// Id and name of a template's instance groups, in order.
async fn groups_of(db: &CoreDb, template: i64) -> Result<Vec<(i64, String)>, StoreError> {
    let mut query = Query::select();
    query.columns([("g", "id"), ("g", "name")]).from_as("job_template_instance_groups", "p");
    let group = Expr::col(("g", "id")).equals(("p", "instance_group_id"));
    query.join_as(JoinType::InnerJoin, "instance_groups", "g", group);
    query.and_where(Expr::col(("p", "job_template_id")).eq(template)).order_by(("p", "id"), Order::Asc);
    db.all(&query).await?.iter().map(|row| Ok((row.at(0)?, row.at(1)?))).collect()
}

/// The questions that the template asks.
async fn survey_of(call: &Call, template: &Template) -> Result<Survey, ApiError> {
    if !template.record.flag("survey_enabled") {
        return Ok(Survey::default());
    }
    Ok(Survey::read(&survey::stored(&call.app.db, template.record.id).await?))
}

/// What is chosen at launch must be the launcher's to use; what the template brings is not asked about.
async fn may_choose(call: &Call, taken: &Map<String, Value>, own: &[Attached]) -> Result<(), ApiError> {
    for (name, of, role) in [
        ("inventory", &INVENTORIES, USE),
        ("credentials", &CREDENTIALS, USE),
        ("execution_environment", &EXECUTION_ENVIRONMENTS, READ),
        ("instance_groups", &INSTANCE_GROUPS, USE),
        ("labels", &LABELS, READ),
    ] {
        let Some(value) = taken.get(name) else { continue };
        let mut ids = ids(value).unwrap_or_default();
        if name == "credentials" {
            ids.retain(|id| own.iter().all(|own| own.id != *id));
        }
        access::check_named(call, of, &ids, name, role).await?;
    }
    Ok(())
}

/// What was asked and answered, and what was answered without being asked.
struct Answers {
    taken: Map<String, Value>,
    ignored: Map<String, Value>,
    /// Variables that answer the survey.
    survey: Map<String, Value>,
    /// How the job came to be.
    launch_type: &'static str,
}

impl Answers {
    fn read(template: &Record, survey: &Survey, body: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut errors = write::Errors::default();
        let mut answers =
            Self { taken: Map::new(), ignored: Map::new(), survey: Map::new(), launch_type: "manual" };
        // What the survey asks for is taken, whether other variables are or not.
        let mut rest = body.get("extra_vars").cloned();
        if !survey.is_empty()
            && let Some(given) = &mut rest
        {
            let mut variables = match given {
                Value::Object(variables) => std::mem::take(variables),
                Value::String(text) => {
                    parse_variables(text).map_err(|words| ApiError::field("extra_vars", words))?
                }
                _ => Map::new(),
            };
            let (asked, others) =
                std::mem::take(&mut variables).into_iter().partition(|(name, _)| survey.asks(name));
            answers.survey = asked;
            *given = Value::Object(others);
        }
        for (name, flag) in PROMPTS {
            let value = if *name == "extra_vars" { rest.as_ref() } else { body.get(*name) };
            let Some(value) = value else { continue };
            if value.is_null() {
                errors.add(name, "This field may not be null.");
                continue;
            }
            if !template.flag(flag) {
                // An empty answer to a question that was not asked is none.
                let empty = value.as_object().is_some_and(Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty);
                if !(empty
                    || *name == "extra_vars" && value.as_str().is_some_and(|text| text.trim().is_empty()))
                {
                    answers.ignored.insert((*name).to_owned(), value.clone());
                }
                continue;
            }
            let read = match *name {
                "credentials" | "labels" | "instance_groups" => ids(value).map(Value::from),
                _ => match JOB_TEMPLATES.field(name) {
                    Some(field) => taken(field, value),
                    None => continue,
                },
            };
            match read {
                Ok(value) => {
                    answers.taken.insert((*name).to_owned(), value);
                }
                Err(words) => errors.add(name, words),
            }
        }
        errors.into_result()?;
        Ok(answers)
    }

    fn int(&self, name: &str, template: &Record) -> Option<i64> {
        self.taken.get(name).map_or_else(|| template.int(name), Value::as_i64)
    }

    fn text(&self, name: &str, template: &Record) -> String {
        let text = self.taken.get(name).and_then(Value::as_str);
        text.unwrap_or_else(|| template.text(name)).to_owned()
    }

    fn flag(&self, name: &str, template: &Record) -> bool {
        self.taken.get(name).and_then(Value::as_bool).unwrap_or_else(|| template.flag(name))
    }
}

async fn start(
    call: &Call,
    mut template: Template,
    survey: Survey,
    own: Vec<Attached>,
    answers: Answers,
    body: &Map<String, Value>,
) -> Answer {
    let user = call.user()?;
    let db = &call.app.db;
    let record = &template.record;
    let Some(project) = record.int("project") else {
        return Err(ApiError::field("project", "Job Template 'project' is missing or undefined."));
    };
    let Some(inventory) = answers.int("inventory", record) else {
        return Err(ApiError::field("inventory", "Job Template 'inventory' is missing or undefined."));
    };
    if record.int("inventory") != Some(inventory) {
        template.chain.inventory_organization = inventory_default(db, inventory).await?;
    }
    // What a fetched project holds is known once the job has its revision.
    if template.is_manual
        && !project::has_playbook(&call.app.projects_root, &template.local_path, record.text("playbook"))
    {
        return Err(ApiError::field("playbook", "Playbook not found for project."));
    }
    let credentials = match answers.taken.get("credentials") {
        Some(chosen) => merged(db, own, chosen).await?,
        None => own,
    };
    let passwords = passwords(&credentials, body)?;
    let environment = match answers.taken.get("execution_environment").and_then(Value::as_i64) {
        Some(id) => match by_id(db, id, "it was chosen at launch".to_owned()).await? {
            Some(environment) => Some(environment),
            None => {
                let words = format!("Invalid pk \"{id}\" - object does not exist.");
                return Err(ApiError::field("execution_environment", words));
            }
        },
        None => resolve(db, template.chain).await?,
    };
    let open = |variable: &str, sealed: &str| survey::opened(&call.app.vault, record.id, variable, sealed);
    let survey = survey.answer(&answers.survey, open).map_err(|words| {
        let words = words.into_iter().map(Value::from).collect();
        ApiError::Body(StatusCode::BAD_REQUEST, json!({"variables_needed_to_start": Value::Array(words)}))
    })?;
    let mut variables = parse_variables(record.text("extra_vars")).unwrap_or_default();
    variables.extend(survey.variables);
    if let Some(given) = answers.taken.get("extra_vars").and_then(Value::as_str) {
        variables.extend(parse_variables(given).map_err(|words| ApiError::field("extra_vars", words))?);
    }
    let labels = match answers.taken.get("labels") {
        Some(chosen) => labels::chosen(call, chosen).await?,
        None => {
            let mut worn = labels::worn(db, &labels::TEMPLATES, &[record.id]).await?;
            worn.remove(&record.id).unwrap_or_default().into_iter().map(|(id, _)| id).collect()
        }
    };
    let text = |name: &str| answers.text(name, record);
    let int = |name: &str| answers.int(name, record).unwrap_or(0);
    let now = jiff::Timestamp::now().as_microsecond();
    let columns: Vec<(&'static str, sea_query::Value)> = vec![
        ("kind", "job".into()),
        ("name", record.text("name").into()),
        ("description", record.text("description").into()),
        ("launch_type", answers.launch_type.into()),
        ("status", "pending".into()),
        ("unified_job_template_id", record.id.into()),
        ("job_template_id", record.id.into()),
        ("organization_id", record.int("organization").into()),
        ("execution_environment_id", environment.as_ref().map(|environment| environment.id).into()),
        ("image", environment.as_ref().map(|environment| environment.image.clone()).into()),
        ("pull", environment.as_ref().map(|environment| environment.pull.clone()).into()),
        ("image_reason", environment.as_ref().map(|environment| environment.reason.clone()).into()),
        ("controller_node", (*call.app.node).into()),
        ("inventory_id", inventory.into()),
        ("project_id", project.into()),
        ("job_type", text("job_type").into()),
        ("playbook", text("playbook").into()),
        ("scm_branch", text("scm_branch").into()),
        ("limit", text("limit").into()),
        ("extra_vars", Value::from(variables).to_string().into()),
        ("job_tags", text("job_tags").into()),
        ("skip_tags", text("skip_tags").into()),
        ("start_at_task", text("start_at_task").into()),
        ("forks", int("forks").into()),
        ("verbosity", int("verbosity").into()),
        ("timeout", int("timeout").into()),
        ("force_handlers", record.flag("force_handlers").into()),
        ("use_fact_cache", record.flag("use_fact_cache").into()),
        ("become_enabled", record.flag("become_enabled").into()),
        ("diff_mode", answers.flag("diff_mode", record).into()),
        ("allow_simultaneous", record.flag("allow_simultaneous").into()),
        ("artifacts", "{}".into()),
        ("created", now.into()),
        ("modified", now.into()),
        ("created_by_id", user.author().into()),
        ("modified_by_id", user.author().into()),
    ];
    let insert = Query::insert()
        .into_table("unified_jobs")
        .columns(columns.iter().map(|(column, _)| *column))
        .values_panic(columns.into_iter().map(|(_, value)| Expr::val(value)))
        .take();
    let credentials: Vec<i64> = credentials.iter().map(|credential| credential.id).collect();
    let groups = answers.taken.get("instance_groups").and_then(|groups| ids(groups).ok()).unwrap_or_default();
    let updates = inventory_sources::on_launch(call, inventory).await?;
    let beside = Beside { credentials, labels, groups, passwords, survey: survey.secrets, updates };
    stored(call, insert, beside, answers.ignored).await
}

/// What a job has beside its row.
struct Beside {
    credentials: Vec<i64>,
    labels: Vec<i64>,
    /// Instance groups that were chosen, in order.
    groups: Vec<i64>,
    /// For what credentials ask at launch.
    passwords: Option<Value>,
    /// Answers to a survey that do not show.
    survey: Map<String, Value>,
    /// Updates of its inventory that it waits for.
    updates: Vec<inventory_sources::Planned>,
}

/// Keeps the job; what follows is the reconciler's.
async fn stored(
    call: &Call,
    mut insert: InsertStatement,
    beside: Beside,
    ignored: Map<String, Value>,
) -> Answer {
    let mut tx = call.app.db.begin(Class::Intent).await?;
    let id = match tx.insert(&mut insert).await {
        Err(StoreError::Reference) => return Err(ApiError::bad("What the job needs was deleted meanwhile.")),
        other => other?,
    };
    for (table, column, members) in [
        ("unified_job_credentials", "credential_id", beside.credentials),
        (labels::JOBS.0, "label_id", beside.labels),
        ("unified_job_instance_groups", "instance_group_id", beside.groups),
    ] {
        if members.is_empty() {
            continue;
        }
        let mut pairs = Query::insert();
        pairs.into_table(table).columns(["unified_job_id", column]);
        for member in members {
            pairs.values_panic([id.into(), member.into()]);
        }
        tx.execute(&pairs).await?;
    }
    let survey = (!beside.survey.is_empty()).then(|| Value::Object(beside.survey));
    for (column, secrets) in [("start_args", beside.passwords), ("survey_passwords", survey)] {
        let Some(secrets) = secrets else { continue };
        let sealed = call.app.vault.encrypt("unified_jobs", id, column, &secrets.to_string());
        let mut update = Query::update();
        update.table("unified_jobs").value(column, sealed).and_where(Expr::col("id").eq(id));
        tx.execute(&update).await?;
    }
    let mut entry =
        Entry::of("create", (JOBS.type_name, Some(id)), Map::from_iter([("id".to_owned(), id.into())]));
    entry.organization = activity::organization_of(&JOBS, id);
    activity::note(call, &mut tx, entry).await?;
    inventory_sources::keep_for(call, &mut tx, id, beside.updates).await?;
    once::keep(call, &mut tx, id).await?;
    updates::before(call, &mut tx, id).await?;
    tx.wake();
    tx.job_changed(id, "pending");
    tx.commit().await?;
    once::launched(call, id, ignored).await
}

async fn template(call: &Call, id: &str) -> Result<Template, ApiError> {
    let id = match id.parse::<i64>() {
        Ok(id) => id,
        Err(_) => generic::visible_id(call, &JOB_TEMPLATES, id).await?,
    };
    let mut query = read::select(&JOB_TEMPLATES, true);
    query
        .and_where(Expr::col((BASE, "id")).eq(id))
        .and_where_option(generic::visible(&JOB_TEMPLATES, call.user()?)?);
    add_chain(&mut query);
    let row = call.app.db.optional(query.limit(1)).await?;
    let row = row.ok_or_else(|| ApiError::missing(JOB_TEMPLATES.model))?;
    let record = read::record(&JOB_TEMPLATES, true, &row)?;
    let local_path = row.value::<Option<String>>("l_path")?.unwrap_or_default();
    let is_manual = row.value::<Option<String>>("l_scm_type")?.unwrap_or_default().is_empty();
    Ok(Template { record, local_path, is_manual, chain: Chain::read(&row)? })
}

/// The template's credentials with the chosen ones in the place of those of the same type.
async fn merged(db: &CoreDb, own: Vec<Attached>, chosen: &Value) -> Result<Vec<Attached>, ApiError> {
    let ids: Vec<i64> = chosen.as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
    let found = known(db, &ids).await?;
    if let Some(id) = ids.iter().find(|id| !found.contains_key(id)) {
        let words = format!("Invalid pk \"{id}\" - object does not exist.");
        return Err(ApiError::field("credentials", words));
    }
    // The template's own do not count as chosen.
    let prompted: Vec<Attached> =
        found.into_values().filter(|credential| own.iter().all(|own| own.id != credential.id)).collect();
    one_of_a_kind(prompted.iter()).map_err(|words| ApiError::field("credentials", words))?;
    let mut merged: Vec<Attached> =
        own.into_iter().filter(|own| prompted.iter().all(|chosen| chosen.slot() != own.slot())).collect();
    merged.extend(prompted);
    merged.sort_by_key(|credential| credential.id);
    Ok(merged)
}

/// The passwords that credentials ask for, from the body.
pub(super) fn passwords(
    credentials: &[Attached],
    body: &Map<String, Value>,
) -> Result<Option<Value>, ApiError> {
    let needed: Vec<String> = credentials.iter().flat_map(Attached::passwords).take(MAX_PASSWORDS).collect();
    if needed.is_empty() {
        return Ok(None);
    }
    let nested = body.get("credential_passwords").and_then(Value::as_object);
    let mut given = Map::new();
    let mut missing = Vec::new();
    for name in needed {
        let value = nested.and_then(|nested| nested.get(&name)).or_else(|| body.get(&name));
        match value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            Some(text) => {
                given.insert(name, text.into());
            }
            None => missing.push(name),
        }
    }
    if missing.is_empty() {
        return Ok(Some(given.into()));
    }
    let mut errors = write::Errors::default();
    for name in missing {
        errors.add("passwords_needed_to_start", name);
    }
    Err(errors.into())
}

/// A list of ids: numbers, texts of numbers, or one text with commas.
pub(super) fn ids(value: &Value) -> Result<Vec<i64>, String> {
    let wrong = || "Expected a list of items but got type \"str\".".to_owned();
    let ids = match value {
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::Number(number) => number.as_i64(),
                Value::String(text) => text.trim().parse().ok(),
                _ => None,
            })
            .collect::<Option<Vec<i64>>>()
            .ok_or_else(|| "Incorrect type. Expected pk value.".to_owned())?,
        Value::String(text) if text.trim().is_empty() => Vec::new(),
        Value::String(text) => {
            text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>().ok_or_else(wrong)?
        }
        Value::Number(number) => number.as_i64().into_iter().collect(),
        Value::Null => Vec::new(),
        _ => return Err(wrong()),
    };
    if ids.len() > MAX_CREDENTIALS {
        return Err(format!("At most {MAX_CREDENTIALS} items are taken."));
    }
    let mut seen = Vec::with_capacity(ids.len());
    for id in ids {
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    Ok(seen)
}

/// What a launch may be asked, as OPTIONS says it.
fn prompts() -> Map<String, Value> {
    let mut post = Map::new();
    for (name, _) in PROMPTS {
        let mut meta = match *name {
            "credentials" => json!({"type": "list_of_ids", "label": "Credentials"}),
            "labels" | "instance_groups" => {
                json!({"type": "field", "label": crate::registry::field::label_of(name)})
            }
            _ => match JOB_TEMPLATES.field(name) {
                Some(field) => options::meta(&Field { required: false, ..*field }, true),
                None => continue,
            },
        };
        if let Some(meta) = meta.as_object_mut() {
            meta.insert("required".to_owned(), false.into());
            meta.shift_remove("default");
        }
        post.insert((*name).to_owned(), meta);
    }
    post.insert(
        "credential_passwords".to_owned(),
        json!({"type": "json", "required": false, "label": "Credential passwords"}),
    );
    post
}

fn question(
    template: &Template,
    credentials: &[Attached],
    labels: &[(i64, String)],
    groups: &[(i64, String)],
    survey: &Survey,
) -> Map<String, Value> {
    let record = &template.record;
    let passwords: Vec<String> = credentials.iter().flat_map(Attached::passwords).collect();
    let inventory_needed = record.int("inventory").is_none();
    let mut question = Map::new();
    let needed = survey.needed();
    let ready = passwords.is_empty()
        && needed.is_empty()
        && !inventory_needed
        && record.int("project").is_some()
        && !PROMPTS.iter().any(|(_, flag)| record.flag(flag));
    question.insert("can_start_without_user_input".to_owned(), ready.into());
    question.insert("passwords_needed_to_start".to_owned(), passwords.into());
    for (_, flag) in PROMPTS {
        question.insert((*flag).to_owned(), record.flag(flag).into());
    }
    question.insert("survey_enabled".to_owned(), record.flag("survey_enabled").into());
    question.insert("variables_needed_to_start".to_owned(), needed.into());
    question.insert("credential_needed_to_start".to_owned(), false.into());
    question.insert("inventory_needed_to_start".to_owned(), inventory_needed.into());
    question.insert(
        "job_template_data".to_owned(),
        json!({"name": record.text("name"), "id": record.id, "description": record.text("description")}),
    );
    let mut defaults = Map::new();
    for (name, _) in PROMPTS {
        let value = match *name {
            "credentials" => credentials.iter().map(Attached::as_default).collect::<Vec<_>>().into(),
            "labels" => labels.iter().map(|(id, name)| json!({"id": id, "name": name})).collect(),
            "instance_groups" => groups.iter().map(|(id, name)| json!({"id": id, "name": name})).collect(),
            _ => match JOB_TEMPLATES.field(name).map(|field| field.kind) {
                Some(Kind::Id(_)) => {
                    let shown = record.summary.get(*name);
                    json!({"id": shown.map(|shown| &shown["id"]), "name": shown.map(|shown| &shown["name"])})
                }
                _ => record.fields.get(*name).cloned().unwrap_or_default(),
            },
        };
        defaults.insert((*name).to_owned(), value);
    }
    question.insert("defaults".to_owned(), defaults.into());
    question
}
